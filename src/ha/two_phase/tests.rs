//! Two nodes that may die at any step, over a link that loses, repeats and reorders: both end with the same.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Who is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(2);

/// What of a node outlives it.
#[derive(Clone, Debug, Default)]
struct Disk {
    /// The commit in force for good; 0: that of the beginning.
    kept: u64,
    ever: BTreeSet<u64>,
    /// What was in force before each.
    before: BTreeMap<u64, u64>,
    /// Whether the one in force came from the other node, and when.
    followed: Option<(u64, Nanos)>,
}

#[derive(Clone, Debug, Default)]
struct Fake {
    now: Nanos,
    disk: Disk,
    in_force: u64,
    waits: Option<Nanos>,
    job: Option<(u64, u64)>,
    base: BTreeMap<u64, u64>,
    refuses: bool,
}

impl Node for Fake {
    fn prepare(&mut self, commit: u64, _: &Offer, _: bool) {
        self.base.insert(commit, self.in_force);
        self.job = Some((commit, self.in_force));
    }

    fn publish(&mut self, commit: u64, _: &Offer, leads: bool) -> Result<u64, String> {
        if self.refuses || self.waits.is_some() || self.base.get(&commit) != Some(&self.in_force) {
            return Err(String::from("no"));
        }
        self.disk.before.insert(commit, self.in_force);
        self.in_force = commit;
        self.waits = Some(self.now.plus(Duration::from_secs(WITHIN_S.into())));
        if !leads {
            self.disk.followed = Some((commit, self.now));
        }
        Ok(commit)
    }

    fn standing(&self, commit: u64) -> Standing {
        match (self.in_force == commit, self.waits) {
            (false, _) => Standing::Gone,
            (true, Some(_)) => Standing::Waits(commit),
            (true, None) => Standing::Kept(commit),
        }
    }

    fn was_kept(&self, commit: u64) -> bool {
        self.disk.ever.contains(&commit)
    }

    fn keep(&mut self, commit: u64) {
        assert_eq!(self.in_force, commit);
        self.waits = None;
        self.disk.kept = commit;
        self.disk.ever.insert(commit);
    }

    fn take_back(&mut self, commit: u64, _: &str) {
        assert_eq!(self.in_force, commit);
        self.in_force = self.disk.before[&commit];
        self.waits = None;
        self.disk.kept = self.in_force;
        self.disk.ever.remove(&commit);
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A node is asked.
    Ask(usize),
    /// It dies, and is there again at once.
    Dies(usize),
    /// The cable.
    Cut(bool),
    /// A node refuses to publish, or not any more.
    Refuses(usize, bool),
    /// Compiling has come to its end.
    Compiled(usize, bool),
    /// So many milliseconds pass.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0_usize..2).prop_map(Step::Ask),
        2 => (0_usize..2).prop_map(Step::Dies),
        1 => any::<bool>().prop_map(Step::Cut),
        1 => (0_usize..2, any::<bool>()).prop_map(|(node, refuses)| Step::Refuses(node, refuses)),
        8 => (0_usize..2, prop::bool::weighted(0.9)).prop_map(|(node, is_good)| Step::Compiled(node, is_good)),
        4 => (1_u64..3000).prop_map(Step::Pass),
        8 => (1_u64..50).prop_map(Step::Pass),
    ]
}

struct World {
    now: Nanos,
    nodes: [Fake; 2],
    machines: [TwoPhase; 2],
    runs: [u64; 2],
    cut_since: Option<Nanos>,
    /// To whom, in the run of whom, what.
    link: Vec<(usize, u64, Message)>,
    luck: Vec<u8>,
    at: usize,
    commits: u64,
    endings: BTreeMap<u64, bool>,
}

impl World {
    fn new(luck: Vec<u8>) -> World {
        World {
            now: Nanos::from_secs(1),
            nodes: Default::default(),
            machines: Default::default(),
            runs: [1, 1],
            cut_since: None,
            link: Vec::new(),
            luck,
            at: 0,
            commits: 0,
            endings: BTreeMap::new(),
        }
    }

    fn peer(&self, node: usize) -> Option<u64> {
        let is_gone = self.cut_since.is_some_and(|since| self.now.since(since) > SILENCE);
        (!is_gone).then_some(self.runs[1 - node])
    }

    fn luck(&mut self) -> u8 {
        self.at += 1;
        if self.luck.is_empty() { 9 } else { self.luck[self.at % self.luck.len()] }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask(node) => {
                let (commit, peer) = (self.commits + 1, self.peer(node));
                if self.machines[node].begin(commit, Offer::default(), peer, &mut self.nodes[node]).is_ok() {
                    self.commits = commit;
                }
            }
            Step::Dies(node) => {
                let disk = self.nodes[node].disk.clone();
                self.runs[node] += 1;
                self.machines[node] = TwoPhase::default();
                if let Some((commit, at)) = disk.followed
                    && commit == disk.kept
                    && self.now.since(at) < REMEMBERED
                {
                    self.machines[node].resume(commit, self.now);
                }
                self.nodes[node] = Fake { now: self.now, in_force: disk.kept, disk, ..Fake::default() };
            }
            Step::Cut(is_cut) => self.cut_since = is_cut.then_some(self.cut_since.unwrap_or(self.now)),
            Step::Refuses(node, refuses) => self.nodes[node].refuses = refuses,
            Step::Compiled(node, is_good) => {
                if let Some((commit, _)) = self.nodes[node].job.take() {
                    let result = if is_good { Ok(Vec::new()) } else { Err(String::from("it does not hold")) };
                    let peer = self.peer(node);
                    self.machines[node].prepared(commit, result, peer, self.now);
                }
            }
            Step::Pass(millis) => self.now = self.now.plus(Duration::from_millis(millis)),
        }
        self.turn();
    }

    /// Each node looks at the time, and hears what was said before.
    fn turn(&mut self) {
        let heard = std::mem::take(&mut self.link);
        for node in 0..2 {
            let peer = self.peer(node);
            let (fake, machine) = (&mut self.nodes[node], &mut self.machines[node]);
            fake.now = self.now;
            if fake.waits.is_some_and(|deadline| self.now >= deadline) {
                fake.take_back(fake.in_force, "not in time");
            }
            machine.poll(peer, self.now, fake);
        }
        for (to, run, message) in heard {
            let luck = self.luck();
            if luck == 0 || self.cut_since.is_some() || self.runs[to] != run {
                continue;
            }
            if luck == 1 {
                self.link.push((to, run, message));
                continue;
            }
            // As on the wire.
            let bytes = serde_json::to_vec(&message).expect("plain data");
            for _ in 0..if luck == 2 { 2 } else { 1 } {
                let message = serde_json::from_slice(&bytes).expect("it was written so");
                let peer = self.peer(to);
                self.machines[to].receive(message, peer, self.now, &mut self.nodes[to]);
            }
        }
        for node in 0..2 {
            let to = 1 - node;
            let said = self.machines[node].take_messages();
            self.link.extend(said.into_iter().map(|message| (to, self.runs[to], message)));
            if let Some((commit, ending)) = self.machines[node].take_ending() {
                if ending.is_ok() {
                    let has = |fake: &Fake| fake.disk.ever.contains(&commit);
                    assert!(self.nodes.iter().all(has), "{commit} is on one only: {:?}", self.nodes);
                }
                self.endings.insert(commit, ending.is_ok());
            }
        }
    }

    /// Everything is well for long enough.
    fn heal(&mut self) {
        self.luck.clear();
        self.step(&Step::Cut(false));
        (0..2).for_each(|node| self.nodes[node].refuses = false);
        for _ in 0..1000 {
            (0..2).for_each(|node| self.step(&Step::Compiled(node, true)));
            self.step(&Step::Pass(1000));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn both_end_with_the_same(
        steps in prop::collection::vec(step(), 1..120),
        luck in prop::collection::vec(0_u8..10, 1..60),
    ) {
        let mut world = World::new(luck);
        steps.iter().for_each(|step| world.step(step));
        world.heal();
        let [one, other] = &world.nodes;
        prop_assert_eq!(one.in_force, other.in_force, "{:?}", world.endings);
        prop_assert!(one.waits.is_none() && other.waits.is_none());
        prop_assert_eq!(one.disk.kept, one.in_force);
        // Nobody is told of a failure of what is in force, or of a success that nobody has.
        prop_assert_ne!(world.endings.get(&one.in_force), Some(&false));
        for (commit, is_good) in &world.endings {
            prop_assert_eq!(one.disk.ever.contains(commit), *is_good, "{}", commit);
            prop_assert_eq!(other.disk.ever.contains(commit), *is_good, "{}", commit);
        }
    }
}

/// Asked, and all is well but what `between` does after each turn, by its number.
fn one_commit(mut between: impl FnMut(usize, &mut World)) -> World {
    let mut world = World::new(Vec::new());
    world.step(&Step::Ask(0));
    for turn in 0..20 {
        between(turn, &mut world);
        (0..2).for_each(|node| world.step(&Step::Compiled(node, true)));
        world.step(&Step::Pass(1));
    }
    world
}

#[test]
fn all_is_well() {
    let mut world = one_commit(|_, _| {});
    assert_eq!(world.endings, [(1, true)].into());
    assert_eq!(world.nodes.each_ref().map(|node| node.in_force), [1, 1]);
    assert!(world.machines.iter().all(|machine| machine.next_deadline().is_none()), "nothing is left to do");
    world.step(&Step::Ask(1));
    world.heal();
    assert_eq!(world.endings, [(1, true), (2, true)].into());
}

#[test]
fn whoever_dies_whenever_both_end_alike() {
    for node in 0..2 {
        for when in 0..20 {
            let mut world = one_commit(|turn, world| {
                if turn == when {
                    world.step(&Step::Dies(node));
                }
            });
            world.heal();
            let [one, other] = world.nodes.each_ref().map(|node| node.in_force);
            assert_eq!(one, other, "{node} dies after turn {when}");
            // A leader that dies tells nobody how it has ended.
            if let Some(is_good) = world.endings.get(&1) {
                assert_eq!(one == 1, *is_good, "{node} dies after turn {when}");
            }
        }
    }
}

#[test]
fn a_cable_that_is_cut_whenever_leaves_both_alike() {
    for when in 0..20 {
        for length in [1, 10, 100, 400] {
            let mut world = one_commit(|turn, world| world.step(&Step::Cut(turn >= when)));
            (0..length * 2).for_each(|_| world.step(&Step::Pass(500)));
            world.heal();
            let [one, other] = world.nodes.each_ref().map(|node| node.in_force);
            assert_eq!(one, other, "cut after turn {when}, for {length} s");
            assert_eq!(world.endings.get(&1), Some(&(one == 1)), "cut after turn {when}, for {length} s");
        }
    }
}

#[test]
fn two_that_are_asked_at_once_both_refuse() {
    let mut world = World::new(Vec::new());
    world.step(&Step::Ask(0));
    world.step(&Step::Ask(1));
    world.heal();
    assert_eq!(world.endings, [(1, false), (2, false)].into());
    assert_eq!(world.nodes.each_ref().map(|node| node.in_force), [0, 0]);
}

#[test]
fn one_refuses_and_neither_has_it() {
    for refuses in 0..2 {
        let mut world = World::new(Vec::new());
        world.step(&Step::Ask(0));
        world.step(&Step::Compiled(0, refuses != 0));
        world.step(&Step::Pass(1));
        world.step(&Step::Compiled(1, refuses != 1));
        world.step(&Step::Pass(1));
        assert_eq!(world.endings, [(1, false)].into());
        world.heal();
        assert_eq!(world.nodes.each_ref().map(|node| node.in_force), [0, 0]);
        // That is over: the next one goes.
        world.step(&Step::Ask(0));
        world.heal();
        assert_eq!(world.nodes.each_ref().map(|node| node.in_force), [2, 2]);
    }
}

#[test]
fn nobody_to_have_it_with() {
    let mut world = World::new(Vec::new());
    world.step(&Step::Cut(true));
    world.step(&Step::Pass(3000));
    let peer = world.peer(0);
    let said = world.machines[0].begin(1, Offer::default(), peer, &mut world.nodes[0]).expect_err("nobody");
    assert!(said.contains("the other node is not there"), "{said}");
}
