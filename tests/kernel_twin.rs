//! The Linux kernel as the twin of our NAT: random flows through nftables in a network namespace and through
//! `softgate replay`. Fates, links, MAC addresses and bytes must be the same, but for what a NAT may choose.
//!
//! Flows go packet by packet in rounds: replies are made of what each system has sent, so that its own choice of a
//! port is answered. The rules of both are in `plan`; where the two may differ is in `judge::KNOWN`.
//!
//! Needs root and nft. `SOFTGATE_TWIN_SEED=n` takes other flows, `SOFTGATE_TWIN_FLOWS=n` more of them.

#[path = "kernel_twin/judge.rs"]
mod judge;
#[path = "kernel_twin/packet.rs"]
mod packet;
#[path = "kernel_twin/plan.rs"]
mod plan;
#[path = "kernel_twin/systems.rs"]
mod systems;
mod xdp_lab;

use std::process::Command;
use std::time::Instant;

use judge::{KNOWN, compare};
use plan::Generator;
use systems::{Kernel, Replay};

/// Flows of the comparison, and the least that it has to be.
const FLOWS: usize = 12_000;
const LEAST_FLOWS: usize = 10_000;

/// True if the kernel can be the twin here; otherwise says why not.
fn has_twin() -> bool {
    let nft = Command::new("nft").arg("--version").output();
    xdp_lab::has_namespaces()
        && (nft.is_ok_and(|nft| nft.status.success())
            || xdp_lab::skipped("nft is missing (scripts/install-deps lab)"))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn the_kernel_and_softgate_send_the_same_packets() {
    same_packets(1);
}

#[test]
fn the_kernel_and_several_workers_send_the_same_packets() {
    same_packets(3);
}

fn same_packets(workers: usize) {
    if !has_twin() {
        return;
    }
    let began = Instant::now();
    let count = number("SOFTGATE_TWIN_FLOWS", FLOWS as u64) as usize;
    let flows = Generator::flows(number("SOFTGATE_TWIN_SEED", 1), count);
    let mut kernel = Kernel::up(plan::RULESET);
    let report = compare(&flows, &mut Replay::new(workers), &mut kernel);
    println!("{workers} workers, {} flows, {} frames in {:?}", flows.len(), report.packets, began.elapsed());
    println!(
        "alike {:?}\nflows' packets that passed {:?}\nthat were lost {:?}",
        report.alike, report.passed, report.lost
    );
    println!(
        "known differences {:?}; ports changed by softgate and kernel {:?}",
        report.known, report.rewritten
    );
    assert!(report.differences.is_empty(), "\n{}", report.text());
    if count >= FLOWS {
        for known in &KNOWN {
            assert!(report.known.contains_key(known.name), "{} was not seen: {}", known.name, known.reason);
        }
        assert!(flows.len() >= LEAST_FLOWS, "only {} flows", flows.len());
    }
}

/// A rule of the kernel's, what it is changed to, and the class of flows that has to tell.
const CHANGES: [(&str, &str, &str); 6] = [
    ("dnat to 10.0.2.10:80", "dnat to 10.0.2.10:443", "forward"),
    ("iifname \"lan\" oifname \"wan\" udp dport 161 drop", "", "denied"),
    ("10.8.64.0/26 : 203.0.113.64/26", "10.8.64.0/26 : 203.0.113.128/26", "static-out"),
    ("203.0.113.0-203.0.113.15", "203.0.113.16-203.0.113.31", "out"),
    ("tcp dport 23 reject with tcp reset", "tcp dport 23 drop", "rejected"),
    ("ip daddr 192.0.2.128/26 return", "", "partner-out"),
];

#[test]
fn a_changed_rule_is_found() {
    if !has_twin() {
        return;
    }
    let flows = Generator::flows(2, 400);
    for (rule, changed, class) in CHANGES {
        assert!(plan::RULESET.contains(rule), "no rule `{rule}`");
        let mut kernel = Kernel::up(&plan::RULESET.replace(rule, changed));
        let report = compare(&flows, &mut Replay::new(1), &mut kernel);
        let classes: Vec<_> = report.differences.keys().map(|(class, _)| *class).collect();
        assert!(classes.contains(&class), "`{rule}` as `{changed}`: only {classes:?} differ");
    }
}
