//! Whether a commit that waits to be confirmed does harm: what gets lost since, against the minute before. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Commit;
use crate::packet::DropReason;
use crate::time::Nanos;

/// What a commit is compared with.
const BEFORE: Duration = Duration::from_secs(60);

/// Over what time it is looked at: long enough that one burst is no verdict, short enough that harm ends soon.
const AFTER: Duration = Duration::from_secs(3);

/// Between two samples.
const STEP: Duration = Duration::from_secs(1);

/// Reasons that the first packet of a flow is lost for.
pub(super) const FAILED_FLOWS: [DropReason; 13] = {
    use DropReason::*;
    [
        FirewallDeny,
        FirewallReject,
        NoBackend,
        SessionTableFull,
        FlowConflict,
        NatHostQuota,
        NatHostRate,
        NatPoolExhausted,
        RuleRateLimit,
        ZoneRateLimit,
        HalfOpenLimit,
        NewFlowShed,
        HostSessionLimit,
    ]
};

/// What has been counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub at: Nanos,
    /// Packets dropped.
    pub drops: u64,
    /// New flows that came to nothing.
    pub failed_flows: u64,
}

/// What is wrong at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ills {
    pub unhealthy_backends: usize,
    pub lost_neighbours: usize,
}

/// The last minute.
#[derive(Debug, Default)]
pub(super) struct Watch {
    samples: VecDeque<Sample>,
}

/// What a commit found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    at: Nanos,
    drops_pps: f64,
    failed_flows_pps: f64,
    ills: Ills,
}

fn per_second(from: Sample, to: Sample, of: fn(Sample) -> u64) -> f64 {
    let seconds = to.at.since(from.at).as_secs_f64();
    if seconds > 0.0 { of(to).saturating_sub(of(from)) as f64 / seconds } else { 0.0 }
}

impl Watch {
    /// True if a sample is due.
    pub(super) fn is_due(&self, now: Nanos) -> bool {
        self.samples.back().is_none_or(|last| now.since(last.at) >= STEP)
    }

    /// Takes a sample.
    pub(super) fn note(&mut self, sample: Sample) {
        while self.samples.front().is_some_and(|first| sample.at.since(first.at) > BEFORE) {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// What a commit finds that is made now.
    pub(super) fn found(&self, now: Sample, ills: Ills) -> Found {
        let from = self.samples.front().copied().unwrap_or(now);
        let (drops_pps, failed_flows_pps) =
            (per_second(from, now, |of| of.drops), per_second(from, now, |of| of.failed_flows));
        Found { at: now.at, drops_pps, failed_flows_pps, ills }
    }

    /// What has become worse than it may since a commit, if anything has.
    pub(super) fn harm(&self, found: &Found, ills: Ills, limits: &Commit) -> Option<String> {
        let now = self.samples.back().copied()?;
        let since = self.samples.iter().rev().find(|sample| now.at.since(sample.at) >= AFTER);
        let rates = since.filter(|sample| sample.at >= found.at).map(|since| {
            let drops = per_second(*since, now, |of| of.drops);
            (drops, per_second(*since, now, |of| of.failed_flows))
        });
        let (drops, failed) = rates.unwrap_or_default();
        let count = |count: usize| count as f64;
        let looked_at = [
            ("drops a second", drops, found.drops_pps, limits.more_drops_pps.get()),
            ("failed new flows a second", failed, found.failed_flows_pps, limits.more_failed_flows_pps.get()),
            (
                "unhealthy backends",
                count(ills.unhealthy_backends),
                count(found.ills.unhealthy_backends),
                limits.more_unhealthy_backends.get(),
            ),
            (
                "lost neighbours",
                count(ills.lost_neighbours),
                count(found.ills.lost_neighbours),
                limits.more_lost_neighbours.get(),
            ),
        ];
        let worse = looked_at.iter().find(|(_, is, was, more)| is - was > f64::from(*more));
        worse.map(|(what, is, was, more)| {
            format!("{is:.0} {what}, against {was:.0} before it, and [commit] lets {more} more be")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: u64, drops: u64, failed_flows: u64) -> Sample {
        Sample { at: Nanos::from_secs(second), drops, failed_flows }
    }

    /// A minute with 10 drops and 1 failed flow a second, and what comes behind it with so many a second.
    fn harm(drops: u64, failed: u64, seconds: u64, ills: Ills) -> Option<String> {
        let mut watch = Watch::default();
        (0..=60).for_each(|second| watch.note(sample(second, 10 * second, second)));
        let before = Ills { unhealthy_backends: 5, lost_neighbours: 1 };
        let found = watch.found(sample(60, 600, 60), before);
        let mut harm = None;
        for second in 1..=seconds {
            watch.note(sample(60 + second, 600 + drops * second, 60 + failed * second));
            harm = harm.or(watch.harm(&found, ills, &Commit::default()));
        }
        harm
    }

    #[test]
    fn what_is_as_before_is_no_harm() {
        let ills = Ills { unhealthy_backends: 7, lost_neighbours: 9 };
        assert_eq!(harm(1010, 201, 30, ills), None);
        assert_eq!(harm(0, 0, 30, Ills::default()), None);
    }

    #[test]
    fn what_is_worse_is_told() {
        let same = Ills { unhealthy_backends: 5, lost_neighbours: 1 };
        let says = |harm: Option<String>, what: &str| {
            let harm = harm.unwrap_or_default();
            assert!(harm.starts_with(what), "{harm}");
        };
        says(
            harm(1011, 1, 3, same),
            "1011 drops a second, against 10 before it, and [commit] lets 1000 more be",
        );
        says(harm(10, 202, 3, same), "202 failed new flows a second, against 1 before it");
        says(harm(10, 1, 1, Ills { unhealthy_backends: 8, ..same }), "8 unhealthy backends, against 5");
        says(harm(10, 1, 1, Ills { lost_neighbours: 10, ..same }), "10 lost neighbours, against 1");
        // One second is no verdict: it may be a burst.
        assert_eq!(harm(100_000, 1000, 2, same), None);
    }

    #[test]
    fn a_minute_is_kept() {
        let mut watch = Watch::default();
        assert!(watch.is_due(Nanos(0)));
        (0..1000).for_each(|second| watch.note(sample(second, 0, 0)));
        assert_eq!(watch.samples.len(), 61);
        assert!(!watch.is_due(Nanos::from_secs(999)) && watch.is_due(Nanos::from_secs(1000)));
        // A gateway that has just started compares with what it has.
        let found = Watch::default().found(sample(1, 50, 0), Ills::default());
        assert_eq!(found.drops_pps, 0.0);
    }
}
