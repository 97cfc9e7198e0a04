//! What small commits cost on a large gateway: from the request to its answer, on disk and used by every worker.
//!
//! `cargo bench --bench commits` starts a gateway without devices (it needs root) with the 100,000 rules of a ClassBench
//! set, the real BGP table, 10,000 services with two backends each, a group of 10,000 members, 1,000 static neighbours
//! and a dozen assertions, and then makes commits of each kind. For each it prints median and worst time, the medians of
//! the parts, and the CPU time of the control thread, which is the figure to look at on a machine that others use:
//! *parse* the request, *compile* it, *gates* (assertions), *publish* (every worker uses it, the old tables are freed),
//! *write* (the revision is synced). The data come from where `benches/fib.rs` and `benches/policy_change.rs` have
//! theirs; SOFTGATE_RULES, SOFTGATE_ROUTES and SOFTGATE_COMMITS take fewer rules, routes, and commits of a kind; --json
//! prints one line for each figure. What is written goes to TMPDIR: let it be on the disk that is asked about.

#[path = "../src/tables/classify/classbench.rs"]
#[allow(dead_code, reason = "the headers are others' business")]
mod classbench;
#[path = "../src/tables/fib_twin.rs"]
#[allow(dead_code, reason = "it has the table, and the twin of it")]
mod fib_twin;
#[path = "support/rules.rs"]
mod rules;

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use softgate::control::revisions::store::Limits;
use softgate::control::revisions::{Document, Revision, Store};
use softgate::control::{Backend as _, Changed, Reply, Request, Terms};
use softgate::gateway::{BackEnd, Gateway, Spent};

const RULES: usize = 100_000;
const SERVICES: usize = 10_000;
const MEMBERS: usize = 10_000;
const NEIGHBOURS: usize = 1_000;
/// Commits of each kind.
const COMMITS: usize = 50;
/// Next hops of the routes.
const HOPS: usize = 64;

const HEAD: &str = r#"schema = 1
[system]
frames = 4096
workers = [1]
[flows]
capacity = 65536
[[port]]
name = "p"
device = "sgb-none"  # it never comes
[[interface]]
name = "in"
port = "p"
vlan = 1
zone = "inside"
addresses = ["10.0.0.1/8", "2001:db8:ffff::1/64"]
[[interface]]
name = "out"
port = "p"
vlan = 2
zone = "outside"
addresses = ["192.0.2.1/24", "2001:db8:fffe::1/64"]
[[route_file]]
path = "full.routes"
[[assert]]
name = "nobody comes in by telnet"
packet = "tcp 198.51.100.7:40000 > 10.1.2.3:23"
interface = "out"
expect = { verdict = "deny" }
"#;

/// A number from the environment.
fn wanted(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// The config and its routes.
fn document() -> Document {
    let (mut filters, _) =
        classbench::read("acl1_100000").expect("the ClassBench sets: set SOFTGATE_CLASSBENCH");
    filters.truncate(wanted("SOFTGATE_RULES", RULES));
    let (v4, v6) = fib_twin::real_table().expect("the BGP table: set SOFTGATE_BGP_TABLE");
    let mut text = String::from(HEAD);
    for n in 0..12 {
        let _ = write!(
            text,
            "[[assert]]\nname = \"host {n}\"\npacket = \"udp 10.200.0.{n}:4000 > 10.200.1.{n}:53\"\n\
             interface = \"in\"\nexpect = {{ verdict = \"allow\" }}\n"
        );
    }
    for (n, filter) in filters.iter().enumerate() {
        let _ = write!(text, "[[rule]]\n{}", rules::rule(&format!("r{n}"), filter));
    }
    text.push_str(
        "[[rule]]\nname = \"blocked\"\naction = \"deny\"\nfrom = { zone = \"inside\" }\nto = { group = \"blocked\" }\n\
         [[rule]]\nname = \"last\"\naction = \"deny\"\n[[group]]\nname = \"blocked\"\nmembers = [\n",
    );
    for n in 0..MEMBERS {
        let _ = writeln!(text, "\"172.{}.{}.{}\",", 16 + (n >> 16), n >> 8 & 255, n & 255);
    }
    text.push_str("]\n");
    for n in 0..SERVICES {
        let (high, low) = (n >> 8, n & 255);
        let _ = write!(
            text,
            "[[service]]\nname = \"s{n}\"\naddress = \"203.{high}.{low}.1\"\nservice = \"tcp/443\"\n\
             backends = [{{ address = \"10.9.{high}.{low}:443\" }}, {{ address = \"10.10.{high}.{low}:443\" }}]\n"
        );
    }
    for n in 0..NEIGHBOURS {
        let _ = write!(
            text,
            "[[neighbour]]\ninterface = \"in\"\naddress = \"10.77.{}.{}\"\nmac = \"02:00:00:00:{:02x}:{:02x}\"\n",
            n >> 8,
            n & 255,
            n >> 8,
            n & 255
        );
    }
    let mut routes = String::new();
    let most = wanted("SOFTGATE_ROUTES", usize::MAX);
    for (n, net) in v4.iter().enumerate().take(most) {
        let _ = writeln!(routes, "{net} via 192.0.2.{}", 2 + n % HOPS);
    }
    for (n, net) in v6.iter().enumerate().take(most / 4) {
        let _ = writeln!(routes, "{net} via 2001:db8:fffe::{:x}", 2 + n % HOPS);
    }
    Document {
        file_name: String::from("bench.toml"),
        text,
        files: vec![(String::from("full.routes"), routes)],
    }
}

/// CPU time of this thread so far; wall time where there is no /proc.
fn cpu_time() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let start = START.get_or_init(Instant::now);
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanos = text.and_then(|text| text.split(' ').next()?.parse().ok());
    nanos.map_or_else(|| start.elapsed(), Duration::from_nanos)
}

/// One commit.
#[derive(Clone, Copy)]
struct Took {
    all: Duration,
    parse: Duration,
    cpu: Duration,
    spent: Spent,
}

fn commit(gateway: &mut Gateway, line: &str) -> Took {
    let (begun, cpu) = (Instant::now(), cpu_time());
    let request: Request = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let parse = begun.elapsed();
    let request = match request {
        Request::Rollback { .. } => request,
        other => {
            let patch = other.into_patch().unwrap_or_else(|| panic!("{line}: changes nothing"));
            Request::Commit { patches: vec![patch], terms: Terms::default() }
        }
    };
    let answer = gateway.execute(request).unwrap_or_else(|fault| panic!("{line}: {fault}"));
    let Reply::Changed(Changed { warnings, .. }) = &answer else { panic!("{line}: {answer:?}") };
    assert!(!warnings.iter().any(|warning| warning.contains("NOT")), "{line}: {warnings:?}");
    // As a session does.
    let _ = serde_json::to_string(&answer).expect("an answer");
    Took { all: begun.elapsed(), parse, cpu: cpu_time() - cpu, spent: gateway.spent() }
}

/// The lines that bring a change and take it away again, as requests over the socket have them.
type Kind = (&'static str, Box<dyn Fn(usize) -> String>, &'static str, Box<dyn Fn(usize) -> String>);

fn kinds(rules: usize) -> Vec<Kind> {
    let rule = |n: usize, port: usize| {
        format!(
            r#""rule":{{"name":"new{n}","action":"deny","from":{{"zone":"inside","prefix":"10.3.{n}.0/24"}},"to":{{"zone":"outside"}},"service":"tcp/{port}"}}"#
        )
    };
    let before = move |n: usize| (n * 7919 + rules / 3) % rules;
    let backend = |n: usize, weight: usize| {
        format!(
            r#"{{"method":"service.set-backends","params":{{"service":"s{n}","backends":[{{"address":"10.11.0.1:443","weight":{weight}}},{{"address":"10.10.0.{n}:443"}}]}}}}"#
        )
    };
    vec![
        (
            "rule insert",
            Box::new(move |n| {
                format!(r#"{{"method":"rule.add","params":{{{},"before":"r{}"}}}}"#, rule(n, 80), before(n))
            }),
            "rule delete",
            Box::new(|n| format!(r#"{{"method":"rule.del","params":{{"rules":["new{n}"]}}}}"#)),
        ),
        (
            "rule append",
            Box::new(move |n| format!(r#"{{"method":"rule.add","params":{{{}}}}}"#, rule(n, 80))),
            "rule replace",
            Box::new(move |n| format!(r#"{{"method":"rule.add","params":{{{}}}}}"#, rule(n, 81))),
        ),
        (
            "route add",
            Box::new(|n| {
                format!(r#"{{"method":"route.add","params":{{"routes":[["100.64.{n}.0/24","192.0.2.9"]]}}}}"#)
            }),
            "route delete",
            Box::new(|n| format!(r#"{{"method":"route.del","params":{{"routes":[["100.64.{n}.0/24"]]}}}}"#)),
        ),
        (
            "IPv6 route add",
            Box::new(|n| {
                format!(
                    r#"{{"method":"route.add","params":{{"routes":[["2001:db8:{n:x}::/48","2001:db8:fffe::9"]]}}}}"#
                )
            }),
            "IPv6 route delete",
            Box::new(|n| {
                format!(r#"{{"method":"route.del","params":{{"routes":[["2001:db8:{n:x}::/48"]]}}}}"#)
            }),
        ),
        (
            "member add",
            Box::new(|n| {
                format!(
                    r#"{{"method":"group.add","params":{{"group":"blocked","members":["198.18.{n}.1"]}}}}"#
                )
            }),
            "member delete",
            Box::new(|n| {
                format!(
                    r#"{{"method":"group.del","params":{{"group":"blocked","members":["198.18.{n}.1"]}}}}"#
                )
            }),
        ),
        (
            "set-backends",
            Box::new(move |n| backend(n, 1)),
            "weight",
            Box::new(move |n| {
                format!(
                    r#"{{"method":"service.set-backend","params":{{"service":"s{n}","backends":["10.11.0.1:443"],"weight":5}}}}"#
                )
            }),
        ),
        (
            "neighbour add",
            Box::new(|n| {
                format!(
                    r#"{{"method":"neighbour.add","params":{{"neighbours":[{{"interface":"in","address":"10.78.0.{n}","mac":"02:00:00:00:78:01"}}]}}}}"#
                )
            }),
            "neighbour delete",
            Box::new(|n| {
                format!(
                    r#"{{"method":"neighbour.del","params":{{"neighbours":[{{"interface":"in","address":"10.78.0.{n}"}}]}}}}"#
                )
            }),
        ),
    ]
}

fn print_head(is_json: bool) {
    if !is_json {
        println!(
            "milliseconds, medians      all    worst     worst but 5 %    parse  compile    gates  publish    write     CPU"
        );
    }
}

fn print(name: &str, times: &[Took], is_json: bool) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let sorted = |of: &dyn Fn(&Took) -> Duration| {
        let mut all: Vec<f64> = times.iter().map(|took| ms(of(took))).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let median = |of: &dyn Fn(&Took) -> Duration| sorted(of)[times.len() / 2];
    let compile =
        |took: &Took| took.all - took.parse - took.spent.gates - took.spent.publish - took.spent.write;
    let all = sorted(&|took| took.all);
    let (worst, most) = (all[all.len() - 1], all[(all.len() - 1) * 95 / 100]);
    let parts = [
        median(&|took| took.parse),
        median(&compile),
        median(&|took| took.spent.gates),
        median(&|took| took.spent.publish),
        median(&|took| took.spent.write),
        median(&|took| took.cpu),
    ];
    let [parse, compile, gates, publish, write, cpu] = parts;
    let whole = all[all.len() / 2];
    if is_json {
        println!(
            "{}",
            serde_json::json!({
                "commit": name, "count": times.len(), "median_ms": whole, "worst_ms": worst, "p95_ms": most,
                "parse_ms": parse, "compile_ms": compile, "gates_ms": gates, "publish_ms": publish,
                "write_ms": write, "cpu_ms": cpu,
            })
        );
    } else {
        println!(
            "{name:<20} {whole:>9.2} {worst:>8.2} {most:>17.2} {parse:>8.3} {compile:>8.2} {gates:>8.2} {publish:>8.2} \
             {write:>8.2} {cpu:>7.2}"
        );
    }
}

/// What a start from the revisions costs: `softgate run` without what it says.
fn start(folder: &Path, is_json: bool) -> Gateway {
    let (begun, cpu) = (Instant::now(), cpu_time());
    let (store, notices) = Store::open(folder, Limits::default()).expect("the revisions");
    assert!(notices.is_empty(), "{notices:?}");
    let last = store.last().expect("a revision").number;
    let document = store.document(last).expect("the last one");
    let read = begun.elapsed();
    let config = document.config().unwrap_or_else(|errors| panic!("{errors}"));
    let parsed = begun.elapsed();
    let mut gateway = Gateway::start(config, &document.file_name, BackEnd::Own).expect("it starts");
    gateway.keep_revisions(store, None);
    let (all, cpu) = (begun.elapsed(), cpu_time() - cpu);
    let [read, parse, start, all, cpu] =
        [read, parsed - read, all - parsed, all, cpu].map(|part| part.as_secs_f64());
    if is_json {
        let figures = serde_json::json!({
            "start_of_revision": last, "all_s": all, "read_s": read, "check_s": parse, "start_s": start, "cpu_s": cpu,
        });
        println!("{figures}");
    } else {
        println!(
            "start from revision {last}: {all:.2} s, CPU {cpu:.2} s: {read:.2} to read and write {last} changes into it, \
             {parse:.2} to check, {start:.2} to start"
        );
    }
    gateway
}

fn main() {
    let is_json = std::env::args().any(|word| word == "--json");
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: a gateway loads an XDP program, which needs root");
        return;
    }
    let document = document();
    let config = document.config().unwrap_or_else(|errors| {
        panic!("{}", errors.to_string().lines().take(5).collect::<Vec<_>>().join("; "))
    });
    let (rules, routes) = (config.rules.len(), config.all_routes().count());
    if !is_json {
        println!("{rules} rules, {routes} routes, {} services, {MEMBERS} members", config.services.len());
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (store, _) = Store::open(folder.path(), Limits::default()).expect("a store");
    let mut gateway = Gateway::start(config, &document.file_name, BackEnd::Own).expect("it starts");
    let first = Revision { number: 1, request: String::from("start"), changes: 1, ..Revision::default() };
    gateway.keep_revisions(store, Some((first, document, None)));
    let commits = wanted("SOFTGATE_COMMITS", COMMITS).clamp(1, 250);
    print_head(is_json);
    for (come, comes, go, goes) in kinds(rules - 2) {
        let mut times = [Vec::new(), Vec::new()];
        for n in 0..commits {
            times[0].push(commit(&mut gateway, &comes(n)));
            times[1].push(commit(&mut gateway, &goes(n)));
            gateway.tend_revisions();
        }
        for (name, times) in [come, go].into_iter().zip(&times) {
            print(name, times, is_json);
        }
    }
    let mut back = Vec::new();
    for n in 0..commits.min(wanted("SOFTGATE_ROLLBACKS", COMMITS)) {
        let (_, comes, ..) = &kinds(rules - 2)[n % 7];
        commit(&mut gateway, &comes(250));
        let Ok(Reply::Revisions(list)) = gateway.execute(Request::ShowRevisions {}) else { panic!("a list") };
        let line = format!(r#"{{"method":"rollback","params":{{"revision":{}}}}}"#, list.current - 1);
        back.push(commit(&mut gateway, &line));
    }
    print("rollback of one", &back, is_json);
    assert_eq!(gateway.stop(), 0);
    let gateway = start(folder.path(), is_json);
    assert_eq!(gateway.stop(), 0);
}
