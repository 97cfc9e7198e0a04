//! `softgate selftest nat`: a table for an auditor.

use std::fmt::Write as _;

use clap::Subcommand;
use serde::Serialize;

use super::{Trouble, table};
use crate::selftest::{Bench, Clause, Finding, Verdict, clauses};

/// Tests what this binary does against what standards ask for
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to test
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Every clause of RFC 4787, 5382, 5508, 7857 and 6888, with the packets as evidence
    ///
    /// Runs the packet path of this binary between an inside and an outside in memory, with a clock of its own: neither
    /// root nor devices are needed, and a running gateway is not touched. Exit code 1 if a MUST is not met.
    Nat(NatArgs),
}

/// Arguments of `selftest nat`.
#[derive(Debug, clap::Args)]
struct NatArgs {
    /// Only this clause, with its evidence, or those of one RFC: "RFC 4787 REQ-5", "RFC 4787"; several times for more
    #[arg(long, value_name = "NAME")]
    clause: Vec<String>,
    /// A clause that may fail: it is shown as any other, but does not make the exit code 1
    #[arg(long, value_name = "NAME")]
    accept: Vec<String>,
    /// Prints the packets of all clauses
    #[arg(long)]
    evidence: bool,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    /// Spoils the behaviour behind one clause, to see its check notice
    #[cfg(any(test, feature = "sabotage"))]
    #[arg(long = "break", value_name = "CLAUSE")]
    broken: Option<String>,
}

#[derive(Serialize)]
struct Json<'a> {
    version: &'static str,
    clauses: Vec<JsonClause<'a>>,
    pass: usize,
    fail: usize,
    not_applicable: usize,
    must_failed: Vec<&'a str>,
}

#[derive(Serialize)]
struct JsonClause<'a> {
    clause: &'a str,
    level: String,
    text: &'a str,
    verdict: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    evidence: &'a [String],
}

impl<'a> From<&'a Finding> for JsonClause<'a> {
    fn from(found: &'a Finding) -> JsonClause<'a> {
        let Finding { clause, verdict, evidence } = found;
        JsonClause {
            clause: clause.id,
            level: clause.level.to_string(),
            text: clause.text,
            verdict: verdict.name(),
            reason: verdict.reason(),
            evidence,
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Result<(), Trouble> {
    let What::Nat(args) = &args.what;
    let wanted = wanted(&args.clause)?;
    for name in &args.accept {
        known(name)?;
    }
    let findings = bench(args)?.run(&wanted);
    let text = match args.json {
        true => json(&findings),
        // One clause, or a few of one name, are asked for to be looked at.
        false if args.evidence || !args.clause.is_empty() && wanted.len() <= 8 => in_full(&findings),
        false => in_short(&findings),
    };
    super::print(&text)?;
    let is_accepted = |found: &&Finding| !args.accept.iter().any(|name| found.clause.is(name));
    let violated: Vec<&str> = findings
        .iter()
        .filter(|found| found.is_violation())
        .filter(is_accepted)
        .map(|found| found.clause.id)
        .collect();
    match violated.as_slice() {
        [] => Ok(()),
        ids => Err(Trouble::Wrong(format!("not met, and a MUST: {}", ids.join(", ")))),
    }
}

#[cfg(any(test, feature = "sabotage"))]
fn bench(args: &NatArgs) -> Result<Bench, Trouble> {
    let Some(name) = &args.broken else { return Ok(Bench::default()) };
    let mut meant = clauses().filter(|clause| clause.is(name));
    let found = meant.find_map(|clause| crate::selftest::breaks().find(|known| known.clause == clause.id));
    let broken =
        found.ok_or_else(|| Trouble::Unable(format!("--break {name}: nothing is known that breaks it")))?;
    eprintln!("broken: {}", broken.how);
    Ok(Bench::broken(broken))
}

#[cfg(not(any(test, feature = "sabotage")))]
fn bench(_: &NatArgs) -> Result<Bench, Trouble> {
    Ok(Bench::default())
}

fn known(name: &str) -> Result<Vec<&'static Clause>, Trouble> {
    let found: Vec<&'static Clause> = clauses().filter(|clause| clause.is(name)).collect();
    match found.is_empty() {
        true => Err(Trouble::Unable(format!("no clause `{name}`; without --clause all are shown"))),
        false => Ok(found),
    }
}

fn wanted(names: &[String]) -> Result<Vec<&'static Clause>, Trouble> {
    if names.is_empty() {
        return Ok(clauses().collect());
    }
    let mut wanted: Vec<&'static Clause> = Vec::new();
    for name in names {
        // The name of a clause is its own: `RFC 4787 REQ-1` is not also what else begins so.
        let found = known(name)?;
        wanted.extend(
            found
                .into_iter()
                .filter(|clause| !wanted.iter().any(|other| other.id == clause.id))
                .collect::<Vec<_>>(),
        );
    }
    Ok(wanted)
}

fn count(findings: &[Finding], name: &str) -> usize {
    findings.iter().filter(|found| found.verdict.name() == name).count()
}

fn json(findings: &[Finding]) -> String {
    let json = Json {
        version: env!("CARGO_PKG_VERSION"),
        clauses: findings.iter().map(JsonClause::from).collect(),
        pass: count(findings, "PASS"),
        fail: count(findings, "FAIL"),
        not_applicable: count(findings, "not applicable"),
        must_failed: findings
            .iter()
            .filter(|found| found.is_violation())
            .map(|found| found.clause.id)
            .collect(),
    };
    let mut text =
        serde_json::to_string_pretty(&json).unwrap_or_else(|error| unreachable!("plain data: {error}"));
    text.push('\n');
    text
}

fn in_short(findings: &[Finding]) -> String {
    let mut rows = table::table(["CLAUSE", "LEVEL", "VERDICT", "WHAT IT ASKS"]);
    for found in findings {
        rows.add_row([
            found.clause.id.to_owned(),
            found.clause.level.to_string(),
            found.verdict.name().to_owned(),
            found.clause.text.to_owned(),
        ]);
    }
    let mut text = table::text(&rows);
    for (verdict, title) in [("FAIL", "Not met"), ("not applicable", "Not applicable")] {
        let mut reasons = findings.iter().filter(|found| found.verdict.name() == verdict).peekable();
        if reasons.peek().is_some() {
            let _ = writeln!(text, "\n{title}:");
        }
        for found in reasons {
            let Finding { clause, verdict, .. } = found;
            let _ = writeln!(text, "  {} ({}): {}", clause.id, clause.level, verdict.reason());
        }
    }
    text + "\n" + &summary(findings)
}

fn in_full(findings: &[Finding]) -> String {
    let mut text = String::new();
    for found in findings {
        let Finding { clause, verdict, evidence } = found;
        let _ = writeln!(text, "{} ({}): {}", clause.id, clause.level, clause.text);
        evidence.iter().for_each(|line| {
            let _ = writeln!(text, "  {line}");
        });
        let _ = match verdict {
            Verdict::Pass => writeln!(text, "{}\n", verdict.name()),
            _ => writeln!(text, "{}: {}\n", verdict.name(), verdict.reason()),
        };
    }
    text + &summary(findings)
}

fn summary(findings: &[Finding]) -> String {
    let violated = findings.iter().filter(|found| found.is_violation()).count();
    format!(
        "Clauses: {}; {} PASS, {} FAIL ({violated} of them MUST), {} not applicable; softgate {}\n",
        findings.len(),
        count(findings, "PASS"),
        count(findings, "FAIL"),
        count(findings, "not applicable"),
        env!("CARGO_PKG_VERSION")
    )
}
