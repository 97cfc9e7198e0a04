//! The verdicts are those that are written down here, and each check notices when what it looks at is spoilt.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Clauses that are not met, each with what it would take.
const NOT_MET: &[(&str, &str)] = &[
    ("RFC 5508 REQ-8 resources", "RFC 6888 REQ-11B wants another code, and is younger"),
    ("RFC 7857 8 request", "PCP"),
    (
        "RFC 6888 REQ-1 DCCP",
        "DCCP's ports would have to be translated as UDP's are, or it would not have to be forwarded",
    ),
    ("RFC 6888 REQ-9", "PCP"),
    ("RFC 6888 REQ-10 MIB", "SNMP"),
    ("RFC 6888 REQ-11B quota", "RFC 5508 REQ-8 wants another code for administrative limits"),
    ("RFC 6888 REQ-11C", "notifications"),
];

const NOT_APPLICABLE: &[&str] = &[
    "RFC 4787 REQ-4",
    "RFC 4787 REQ-5a",
    "RFC 4787 REQ-7",
    "RFC 4787 REQ-10a",
    "RFC 5382 REQ-3b",
    "RFC 5508 REQ-9",
    "RFC 7857 3",
    "RFC 6888 REQ-4b",
    "RFC 6888 REQ-10",
    "RFC 6888 REQ-12",
];

static ALL: LazyLock<Vec<&'static Clause>> = LazyLock::new(|| clauses().collect());
static SOUND: LazyLock<Vec<Finding>> = LazyLock::new(|| Bench::default().run(&ALL));

fn failed(findings: &[Finding]) -> BTreeSet<&'static str> {
    let fails = |found: &&Finding| matches!(found.verdict, Verdict::Fail(_));
    findings.iter().filter(fails).map(|found| found.clause.id).collect()
}

#[test]
fn the_verdicts_are_as_written_down() {
    for found in SOUND.iter() {
        let Finding { clause, verdict, evidence } = found;
        let wanted = match clause.id {
            id if NOT_MET.iter().any(|(known, _)| *known == id) => "FAIL",
            id if NOT_APPLICABLE.contains(&id) => "not applicable",
            _ => "PASS",
        };
        assert_eq!(verdict.name(), wanted, "{}: {}\n{}", clause.id, verdict.reason(), evidence.join("\n"));
        // Nothing passes without having been seen.
        assert_eq!(*verdict == Verdict::Pass, verdict.reason().is_empty(), "{}", clause.id);
        assert!(*verdict != Verdict::Pass || !evidence.is_empty(), "{}: no evidence", clause.id);
    }
    let ids: BTreeSet<&str> = ALL.iter().map(|clause| clause.id).collect();
    assert_eq!(ids.len(), ALL.len(), "an id is there twice");
    assert_eq!(SOUND.len(), ALL.len());
}

#[test]
fn evidence_is_the_same_each_time() {
    for name in ["RFC 4787 REQ-1", "RFC 5382 REQ-2", "RFC 7857 9"] {
        let clause: Vec<_> = clauses().filter(|clause| clause.is(name)).collect();
        for found in Bench::default().run(&clause) {
            let before = SOUND.iter().find(|before| before.clause.id == found.clause.id).expect("all");
            assert_eq!(before.evidence, found.evidence, "{name}");
        }
    }
}

/// For each clause that passes: with its behaviour spoilt it fails, and with it only what is said to.
#[test]
fn every_check_notices() {
    let before = failed(&SOUND);
    let all: Vec<&Break> = breaks().collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut wrong = Vec::new();
        while let Some(broken) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut expected = BTreeSet::from([broken.clause]);
            expected.extend(broken.also);
            for clause in ALL.iter() {
                // It is made up of others.
                if let Test::All(rfcs) = clause.test
                    && ALL.iter().any(|part| is_must_of(part, rfcs) && expected.contains(part.id))
                {
                    expected.insert(clause.id);
                }
            }
            let findings = Bench::broken(broken).run(&ALL);
            let now: BTreeSet<&str> = failed(&findings).difference(&before).copied().collect();
            if now != expected {
                let reason = |found: &Finding| format!("    {}: {}", found.clause.id, found.verdict.reason());
                let more = findings.iter().filter(|found| now.contains(found.clause.id));
                let more: Vec<String> = more.map(reason).collect();
                wrong.push(format!(
                    "{} ({}) should turn {expected:?} to FAIL, not {now:?}\n{}",
                    broken.clause,
                    broken.how,
                    more.join("\n")
                ));
            }
        }
        wrong
    };
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_clause_that_passes_can_be_broken() {
    for found in SOUND.iter().filter(|found| found.verdict == Verdict::Pass) {
        let is_known = breaks().any(|known| known.clause == found.clause.id);
        assert!(is_known != matches!(found.clause.test, Test::All(_)), "{}", found.clause.id);
    }
    for known in breaks() {
        for id in known.also.iter().chain([&known.clause]) {
            assert!(ALL.iter().any(|clause| clause.id == *id), "{id}");
        }
    }
}

#[test]
fn clauses_are_found_by_name() {
    let found =
        |name: &str| ALL.iter().filter(|clause| clause.is(name)).map(|clause| clause.id).collect::<Vec<_>>();
    assert_eq!(found("rfc4787 req-9"), ["RFC 4787 REQ-9", "RFC 4787 REQ-9a"]);
    assert_eq!(found("RFC 4787 REQ-9a"), ["RFC 4787 REQ-9a"]);
    assert_eq!(found("RFC 7857 section 7"), ["RFC 7857 7"]);
    assert_eq!(found("RFC 5382").len(), super::rfc5382::CLAUSES.len());
    assert_eq!(found(""), [""; 0]);
    assert_eq!(found("RFC 1"), [""; 0]);
}
