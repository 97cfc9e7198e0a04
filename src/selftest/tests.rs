//! The verdicts are those that are written down here, and each check notices when what it looks at is spoilt.

use super::*;

#[test]
fn show() {
    let only = std::env::var("CLAUSE").unwrap_or_default();
    for clause in clauses().filter(|clause| only.is_empty() || clause.is(&only)) {
        let begin = std::time::Instant::now();
        let found = Bench::default().run(&[clause]).remove(0);
        println!(
            "{:<18} {:<6} {} {} ({:?})",
            clause.id,
            clause.level,
            found.verdict.name(),
            found.verdict.reason(),
            begin.elapsed()
        );
        if !only.is_empty() {
            for line in &found.evidence {
                println!("    {line}");
            }
        }
    }
}

#[test]
fn every_check_notices() {
    let all: Vec<&'static Clause> = clauses().collect();
    let names = |findings: &[Finding]| -> Vec<&'static str> {
        findings
            .iter()
            .filter(|found| matches!(found.verdict, Verdict::Fail(_)))
            .map(|found| found.clause.id)
            .collect()
    };
    let before = names(&Bench::default().run(&all));
    let mut wrong = Vec::new();
    let begin = std::time::Instant::now();
    let findings: Vec<Vec<Finding>> = std::thread::scope(|scope| {
        let (first, second) = BREAKS.split_at(BREAKS.len() / 2);
        let run = |part: &'static [Break]| {
            let all = all.clone();
            scope.spawn(move || part.iter().map(|broken| Bench::broken(broken).run(&all)).collect::<Vec<_>>())
        };
        let threads = [run(first), run(second)];
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    for (broken, findings) in BREAKS.iter().zip(findings) {
        let mut expected = vec![broken.clause];
        expected.extend(broken.also);
        let is_must = |id: &&&str| {
            all.iter()
                .any(|clause| clause.id == **id && is_must_of(clause, &["RFC 4787", "RFC 5382", "RFC 5508"]))
        };
        if expected.iter().any(|id| is_must(&id)) {
            expected.push("RFC 6888 REQ-1");
        }
        let failed: Vec<&str> = names(&findings).into_iter().filter(|id| !before.contains(id)).collect();
        let missing: Vec<_> = expected.iter().filter(|id| !failed.contains(*id)).collect();
        let more: Vec<String> = findings
            .iter()
            .filter(|found| failed.contains(&found.clause.id) && !expected.contains(&found.clause.id))
            .map(|found| format!("{}: {}", found.clause.id, found.verdict.reason()))
            .collect();
        if !missing.is_empty() || !more.is_empty() {
            wrong.push(format!("{}: not noticed {missing:?}; besides {more:#?}", broken.clause));
        }
    }
    println!("took {:?}", begin.elapsed());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
