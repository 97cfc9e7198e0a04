//! Columns for people: a header, blanks between, numbers to the right, no lines.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// A table with this header; a column whose name begins with `>` is of numbers.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| Cell::new(name.trim_start_matches('>'))));
    for (index, name) in header.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if name.starts_with('>') {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

/// The text of a table, without blanks at line ends.
pub(crate) fn text(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The text of a page: the header stands on the first one only.
pub(crate) fn page_text(table: &Table, with_header: bool) -> String {
    let text = text(table);
    match text.split_once('\n') {
        Some((_, rows)) if !with_header => rows.to_owned(),
        _ => text,
    }
}

/// A value, or `-`.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Several values, or `-`.
pub(crate) fn list<T: ToString>(values: &[T]) -> String {
    match values {
        [] => "-".to_owned(),
        values => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
