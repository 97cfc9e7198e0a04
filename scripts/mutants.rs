//! Where mutants can be switched: reads Rust files, prints one JSON line for each place that `scripts/mutants` may
//! rewrite, with the byte ranges of its parts. `key` is line and column (from 1) as `cargo mutants --list` has them.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Walks one file. Within constants nothing can be asked at run time.
struct Places<'a> {
    file: &'a str,
    constant: u32,
}

fn range(span: Span) -> String {
    let range = span.byte_range();
    format!("[{},{}]", range.start, range.end)
}

/// Whether the expression is part of a chain of `let`s, which knows no parentheses.
fn has_let(expr: &syn::Expr) -> bool {
    match expr {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        _ => false,
    }
}

impl Places<'_> {
    fn print(&self, kind: &str, key: Span, whole: String, more: &str) {
        let (at, constant) = (key.start(), self.constant > 0);
        println!(
            r#"{{"file":"{}","kind":"{kind}","key":[{},{}],"span":{whole},"constant":{constant}{more}}}"#,
            self.file,
            at.line,
            at.column + 1
        );
    }

    fn function(&mut self, signature: &syn::Signature, block: &syn::Block, walk: impl FnOnce(&mut Self)) {
        self.constant += u32::from(signature.constness.is_some());
        let inside = block.brace_token.span.open().byte_range().end;
        self.print(
            "fn",
            block.span(),
            format!("[{inside},{inside}]"),
            &format!(r#","body":{}"#, range(block.span())),
        );
        walk(self);
        self.constant -= u32::from(signature.constness.is_some());
    }

    fn constant(&mut self, walk: impl FnOnce(&mut Self)) {
        self.constant += 1;
        walk(self);
        self.constant -= 1;
    }
}

impl<'ast> Visit<'ast> for Places<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block, |this| visit::visit_item_fn(this, item));
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, &item.block, |this| visit::visit_impl_item_fn(this, item));
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block, |this| visit::visit_trait_item_fn(this, item));
        }
    }

    fn visit_expr_binary(&mut self, expr: &'ast syn::ExprBinary) {
        let (left, right) = (range(expr.left.span()), range(expr.right.span()));
        let is_let = has_let(&expr.left) || has_let(&expr.right);
        let more = format!(r#","left":{left},"right":{right},"let":{is_let}"#);
        self.print("binary", expr.op.span(), range(expr.span()), &more);
        visit::visit_expr_binary(self, expr);
    }

    fn visit_expr_unary(&mut self, expr: &'ast syn::ExprUnary) {
        self.print(
            "unary",
            expr.op.span(),
            range(expr.span()),
            &format!(r#","right":{}"#, range(expr.expr.span())),
        );
        visit::visit_expr_unary(self, expr);
    }

    fn visit_expr_match(&mut self, expr: &'ast syn::ExprMatch) {
        // `None` may be read as a name.
        let is_name = |name: &syn::Ident| name.to_string().starts_with(char::is_lowercase);
        let catches_all = |arm: &syn::Arm| match &arm.pat {
            syn::Pat::Wild(_) => arm.guard.is_none(),
            syn::Pat::Ident(name) => arm.guard.is_none() && name.subpat.is_none() && is_name(&name.ident),
            _ => false,
        };
        for (index, arm) in expr.arms.iter().enumerate() {
            let is_needed =
                !expr.arms.iter().enumerate().any(|(other, arm)| other != index && catches_all(arm));
            let (guarded, whole) = match &arm.guard {
                Some((_, guard)) => (true, range(guard.span())),
                None => {
                    let behind = arm.pat.span().byte_range().end;
                    (false, format!("[{behind},{behind}]"))
                }
            };
            self.print(
                "arm",
                arm.span(),
                whole.clone(),
                &format!(r#","guarded":{guarded},"needed":{is_needed}"#),
            );
            if let Some((_, guard)) = &arm.guard {
                self.print("guard", guard.span(), whole, "");
            }
        }
        visit::visit_expr_match(self, expr);
    }

    fn visit_expr_struct(&mut self, expr: &'ast syn::ExprStruct) {
        if let Some(rest) = &expr.rest {
            for field in &expr.fields {
                let (base, value) = (range(rest.span()), range(field.expr.span()));
                let member = range(field.member.span());
                let more = format!(r#","base":{base},"value":{value},"member":{member}"#);
                self.print("field", field.span(), range(field.span()), &more);
            }
        }
        visit::visit_expr_struct(self, expr);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.constant(|this| visit::visit_item_const(this, item));
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.constant(|this| visit::visit_impl_item_const(this, item));
    }

    fn visit_trait_item_const(&mut self, item: &'ast syn::TraitItemConst) {
        self.constant(|this| visit::visit_trait_item_const(this, item));
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.constant(|this| visit::visit_item_static(this, item));
    }

    fn visit_expr_const(&mut self, expr: &'ast syn::ExprConst) {
        self.constant(|this| visit::visit_expr_const(this, expr));
    }

    fn visit_type_array(&mut self, array: &'ast syn::TypeArray) {
        self.constant(|this| visit::visit_type_array(this, array));
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.constant(|this| visit::visit_variant(this, variant));
    }

    fn visit_expr_repeat(&mut self, expr: &'ast syn::ExprRepeat) {
        self.visit_expr(&expr.expr);
        self.constant(|this| this.visit_expr(&expr.len));
    }
}

fn main() {
    for file in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        Places { file: &file, constant: 0 }.visit_file(&parsed);
    }
}
