use super::*;
#[test]
fn show() {
    let only = std::env::var("CLAUSE").unwrap_or_default();
    for clause in clauses().filter(|clause| only.is_empty() || clause.is(&only)) {
        let begin = std::time::Instant::now();
        let found = Bench::default().run(clause);
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
