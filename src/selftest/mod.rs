//! `softgate selftest nat`: every clause of the NAT RFCs against the packet path this binary has, with the packets as
//! evidence.
//!
//! ```text
//! packet    packets as the checks make, read and print them
//! rig       a gateway between an inside and an outside, and a clock
//! rfc4787, rfc5382, rfc5508, rfc7857, rfc6888   the clauses, each with its check
//! sabotage  spoils the behaviour behind one clause, so that a test sees its check notice (not in a shipped binary)
//! ```
//!
//! A check sees packets and time, nothing else: no counter, no table, no state of the gateway. A clause that SoftGate
//! does not meet is in the table like any other, with the verdict FAIL and the reason; one that is about something
//! SoftGate does not have is "not applicable", with the reason. PASS needs a check that ran.

mod packet;
mod rfc4787;
mod rfc5382;
mod rfc5508;
mod rfc6888;
mod rfc7857;
mod rig;
#[cfg(any(test, feature = "sabotage"))]
mod sabotage;
#[cfg(test)]
mod tests;

use std::fmt;

use rig::{Proof, Rig};
#[cfg(any(test, feature = "sabotage"))]
pub use sabotage::{Break, breaks};

/// How much a clause asks (RFC 2119; RECOMMENDED is SHOULD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Whoever breaks it does not follow the RFC.
    Must,
    /// Not without a good reason.
    Should,
    /// As one likes.
    May,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Must => "MUST",
            Level::Should => "SHOULD",
            Level::May => "MAY",
        })
    }
}

/// How a clause gets its verdict.
enum Test {
    /// By a check.
    Check(fn(&mut Rig) -> Proof),
    /// It is met if no MUST of these RFCs fails.
    All(&'static [&'static str]),
    /// It is about something that SoftGate does not have; why.
    NotApplicable(&'static str),
    /// SoftGate does not do that, and there is nothing to try; why.
    Missing(&'static str),
}

/// One clause of an RFC.
pub struct Clause {
    /// RFC and requirement or section: `RFC 4787 REQ-1`.
    pub id: &'static str,
    /// How much it asks.
    pub level: Level,
    /// What it asks, in our words.
    pub text: &'static str,
    test: Test,
}

impl Clause {
    const fn check(
        id: &'static str,
        level: Level,
        text: &'static str,
        check: fn(&mut Rig) -> Proof,
    ) -> Clause {
        Clause { id, level, text, test: Test::Check(check) }
    }

    const fn not_applicable(id: &'static str, level: Level, text: &'static str, why: &'static str) -> Clause {
        Clause { id, level, text, test: Test::NotApplicable(why) }
    }

    const fn missing(id: &'static str, level: Level, text: &'static str, why: &'static str) -> Clause {
        Clause { id, level, text, test: Test::Missing(why) }
    }

    /// The RFC it is in: `RFC 4787`.
    pub fn rfc(&self) -> &'static str {
        self.id.split_at(8).0
    }

    /// True if `name` means this clause or all of a group it is in: `RFC 4787`, `RFC 4787 REQ-5`, `rfc4787 req-5c`.
    pub fn is(&self, name: &str) -> bool {
        let plain = |text: &str| {
            let text = text.to_ascii_lowercase().replace(' ', "").replace("section", "");
            text.replace('§', "")
        };
        let (id, name) = (plain(self.id), plain(name));
        // `REQ-1` is neither `REQ-10` nor, of the sections, is 7 also 7.1.
        id.strip_prefix(&name).is_some_and(|rest| {
            !name.is_empty() && !rest.starts_with(|next: char| next.is_ascii_digit() || next == '.')
        })
    }
}

/// What was found of a clause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A check saw it met.
    Pass,
    /// It is not met; what was seen instead, or why.
    Fail(String),
    /// It is not about this kind of gateway; why.
    NotApplicable(&'static str),
}

impl Verdict {
    /// As printed.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Pass => "PASS",
            Verdict::Fail(_) => "FAIL",
            Verdict::NotApplicable(_) => "not applicable",
        }
    }

    /// Why it is not PASS.
    pub fn reason(&self) -> &str {
        match self {
            Verdict::Pass => "",
            Verdict::Fail(why) => why,
            Verdict::NotApplicable(why) => why,
        }
    }
}

/// A clause with its verdict.
pub struct Finding {
    /// The clause.
    pub clause: &'static Clause,
    /// What was found.
    pub verdict: Verdict,
    /// The packets, one a line: seconds, side, `>` to the gateway or `<` from it.
    pub evidence: Vec<String>,
}

impl Finding {
    /// True if it is a MUST that is not met.
    pub fn is_violation(&self) -> bool {
        self.clause.level == Level::Must && matches!(self.verdict, Verdict::Fail(_))
    }
}

/// The clauses, in the order of the RFCs.
pub fn clauses() -> impl Iterator<Item = &'static Clause> {
    [rfc4787::CLAUSES, rfc5382::CLAUSES, rfc5508::CLAUSES, rfc7857::CLAUSES, rfc6888::CLAUSES]
        .into_iter()
        .flatten()
}

/// Which gateway is tested: the real one.
#[derive(Clone, Copy, Default)]
pub struct Bench {
    #[cfg(any(test, feature = "sabotage"))]
    broken: Option<&'static Break>,
}

impl Bench {
    /// With the behaviour behind one clause spoilt.
    #[cfg(any(test, feature = "sabotage"))]
    pub fn broken(with: &'static Break) -> Bench {
        Bench { broken: Some(with) }
    }

    #[cfg(any(test, feature = "sabotage"))]
    fn rig(self) -> Rig {
        Rig::with_shim(self.broken.map(Break::shim))
    }

    #[cfg(not(any(test, feature = "sabotage")))]
    fn rig(self) -> Rig {
        Rig::new()
    }

    /// Tests clauses; the findings are in the same order.
    pub fn run(self, wanted: &[&'static Clause]) -> Vec<Finding> {
        // What a clause is made up of, as far as it is not wanted itself.
        let parts = |clause: &&'static Clause| match clause.test {
            Test::All(rfcs) => clauses().filter(|other| is_must_of(other, rfcs)).collect(),
            _ => vec![*clause],
        };
        let mut findings: Vec<Finding> = Vec::new();
        for clause in wanted.iter().flat_map(parts) {
            if !findings.iter().any(|found| found.clause.id == clause.id) {
                findings.push(self.one(clause));
            }
        }
        for clause in wanted {
            if let Test::All(rfcs) = clause.test {
                findings.push(sum_up(clause, rfcs, &findings));
            }
        }
        let place = |found: &Finding| wanted.iter().position(|clause| clause.id == found.clause.id);
        findings.retain(|found| place(found).is_some());
        findings.sort_by_key(place);
        findings
    }

    fn one(self, clause: &'static Clause) -> Finding {
        let (verdict, evidence) = match clause.test {
            Test::NotApplicable(why) => (Verdict::NotApplicable(why), Vec::new()),
            Test::Missing(why) => (Verdict::Fail(why.to_owned()), Vec::new()),
            Test::Check(check) => {
                let mut rig = self.rig();
                let verdict = match check(&mut rig) {
                    Ok(()) => Verdict::Pass,
                    Err(seen) => Verdict::Fail(seen),
                };
                (verdict, rig.into_evidence())
            }
            Test::All(_) => unreachable!("it is made up of others"),
        };
        Finding { clause, verdict, evidence }
    }
}

fn is_must_of(clause: &Clause, rfcs: &[&str]) -> bool {
    rfcs.contains(&clause.rfc()) && clause.level == Level::Must
}

/// The finding of a clause that is met if all others of some RFCs are.
fn sum_up(clause: &'static Clause, rfcs: &[&str], findings: &[Finding]) -> Finding {
    let parts: Vec<&Finding> = findings.iter().filter(|found| is_must_of(found.clause, rfcs)).collect();
    let failed: Vec<&str> =
        parts.iter().filter(|found| found.is_violation()).map(|found| found.clause.id).collect();
    let verdict = match failed.is_empty() {
        true => Verdict::Pass,
        false => Verdict::Fail(format!("not met: {}", failed.join(", "))),
    };
    let line = |found: &&Finding| format!("-- {}: {}", found.clause.id, found.verdict.name());
    Finding { clause, verdict, evidence: parts.iter().map(line).collect() }
}
