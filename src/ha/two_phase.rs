//! One commit on both nodes of a pair, or on neither: two-phase commit between two, without I/O and clock.
//!
//! The node that is asked leads. Both prepare (read, check, compile, assertions), then both publish, each to be taken back
//! again unless the other has published too, then the follower keeps, then the leader:
//!
//! ```text
//! leader                          follower
//! prepares        Offer ->
//!                                 prepares
//!                 <- Prepared
//! publishes       Publish ->
//!                                 publishes
//!                 <- Published
//!                 Keep ->
//!                                 keeps
//!                 <- Kept
//! keeps           Over ->
//! ```
//!
//! Until it keeps, a node that dies starts again with what was in force before, and one that hears nothing goes back to
//! it. What a leader has given up it says again (TakeBack) for [`REMEMBERED`]; a follower that waits, or has kept, says
//! so again until it has an answer, and one from a leader that knows nothing of it any more is TakeBack. So a leader that
//! has told its operator of a success has heard that the follower has it for good; one that has told of a failure gets
//! the follower back to where it was, should that have kept already. What remains is that of every two-phase commit:
//! after the follower has kept and before the leader has heard of it, a few milliseconds, the two lose each other for
//! more than [`KEEP`] and find each other after [`REMEMBERED`] only. Then they differ, and the pair says so.
//!
//! Every message may be lost, come twice or late. Messages name their commit, and say what is so rather than what is
//! next.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Fate;
use crate::time::Nanos;

/// How long a leader waits until the other node has prepared, which a transfer comes before.
pub const PREPARE: Duration = Duration::from_secs(120);
/// How long it waits until the other node has published.
pub const PUBLISH: Duration = Duration::from_secs(60);
/// How long it waits to hear that the other node keeps it.
pub const KEEP: Duration = Duration::from_secs(30);
/// How long each node waits before it takes back by itself what it has published: longer than a leader waits in all.
pub const WITHIN_S: u32 = 150;
/// How long a follower remembers what it has prepared.
pub const PREPARED: Duration = Duration::from_secs(180);
/// How long both say again how a commit has ended.
pub const REMEMBERED: Duration = Duration::from_secs(600);
/// How often something is said again.
pub const AGAIN: Duration = Duration::from_secs(1);
/// Longest reason.
const WHY_BYTES: usize = 16 * 1024;

/// What is to be committed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The node that asks for it.
    pub node: String,
    /// What errors call the config.
    pub file_name: String,
    /// The config, for both nodes.
    pub text: String,
    /// Its route files, by the path in the config.
    pub files: Vec<(String, String)>,
    /// Why.
    pub message: Option<String>,
    /// What becomes of live sessions that it would end.
    pub fate: Fate,
    /// Who asks: user and role.
    pub by: (Option<u32>, Option<String>),
    /// By which request, and about what.
    pub request: String,
    /// The first few things.
    pub about: Vec<String>,
    /// What is in force at the leader ([`crate::config::Config::sections`]).
    pub sections: Vec<(String, u64)>,
    /// Also if something else is in force at the other node.
    pub force: bool,
}

/// What the nodes say to each other of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// Prepare this.
    Offer(Box<Offer>),
    /// It is prepared.
    Prepared,
    /// It cannot be: why.
    Refused(String),
    /// Publish it.
    Publish,
    /// It is in force, as this revision, and waits.
    Published(u64),
    /// It is not, and will not be: why.
    Failed(String),
    /// Keep it.
    Keep,
    /// It is kept, as this revision.
    Kept(u64),
    /// And so it is here.
    Over,
    /// Forget it, whatever became of it.
    TakeBack,
    /// It is not in force.
    TakenBack,
}

/// A message: about which commit, and what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// A random number.
    pub commit: u64,
    /// What is said of it.
    pub said: Said,
}

/// How a commit stands at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In force as this revision, and taken back unless it is kept.
    Waits(u64),
    /// In force for good, or until the next one.
    Kept(u64),
    /// Something else is in force.
    Gone,
}

/// A node as a commit sees it.
pub trait Node {
    /// Begins to prepare; [`TwoPhase::prepared`] has what came of it.
    fn prepare(&mut self, commit: u64, offer: &Offer, leads: bool);
    /// Puts it in force, to be taken back after [`WITHIN_S`] seconds, or at a start, unless it is kept.
    fn publish(&mut self, commit: u64, offer: &Offer, leads: bool) -> Result<u64, String>;
    /// How it stands.
    fn standing(&self, commit: u64) -> Standing;
    /// True if it was kept once, whatever came after it.
    fn was_kept(&self, commit: u64) -> bool;
    /// It is there for good.
    fn keep(&mut self, commit: u64);
    /// What was in force before it is again.
    fn take_back(&mut self, commit: u64, why: &str);
}

/// How a commit that this node leads has ended: the revisions here and there, or why it is in force on neither.
pub type Ending = Result<(u64, u64), String>;

/// How far one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// This node reads and compiles it.
    PreparingHere,
    /// The other does.
    PreparingThere,
    /// It is in force here, and about to be there.
    Publishing,
    /// It is in force on both, and about to be kept.
    Keeping,
}

#[derive(Debug, Default)]
enum Lead {
    #[default]
    Idle,
    PreparingHere {
        commit: u64,
        offer: Box<Offer>,
    },
    PreparingThere {
        commit: u64,
        offer: Box<Offer>,
        run: u64,
        until: Nanos,
    },
    Publishing {
        commit: u64,
        ours: u64,
        run: u64,
        until: Nanos,
        next: Nanos,
    },
    Keeping {
        commit: u64,
        ours: u64,
        until: Nanos,
        next: Nanos,
    },
    TakingBack {
        commit: u64,
        until: Nanos,
        next: Nanos,
    },
}

#[derive(Debug, Default)]
enum Follow {
    #[default]
    Idle,
    Preparing {
        commit: u64,
        offer: Box<Offer>,
        until: Nanos,
    },
    Prepared {
        commit: u64,
        offer: Box<Offer>,
        until: Nanos,
    },
    /// In force, waiting or kept, and the leader has not said that it is over.
    InForce {
        commit: u64,
        until: Nanos,
        next: Nanos,
    },
}

/// A node's side of commits on both.
#[derive(Debug, Default)]
pub struct TwoPhase {
    lead: Lead,
    follow: Follow,
    /// What became of the last that this node led, until it is taken.
    ending: Option<(u64, Ending)>,
    out: Vec<Message>,
}

/// A reason in a bounded length.
fn cut(mut why: String) -> String {
    why.truncate(why.floor_char_boundary(WHY_BYTES));
    why
}

impl TwoPhase {
    /// The other node, as its runs are told apart; `None`: nobody is there who knows of this.
    ///
    /// An error: one is under way, or nobody to have it with.
    pub fn begin(
        &mut self,
        commit: u64,
        offer: Offer,
        peer: Option<u64>,
        node: &mut impl Node,
    ) -> Result<(), String> {
        if self.stage().is_some() {
            return Err(String::from("another commit on both nodes is under way: try again when it is done"));
        }
        match &self.follow {
            Follow::Idle => {}
            Follow::InForce { commit, .. } if !matches!(node.standing(*commit), Standing::Waits(_)) => {}
            _ => {
                return Err(String::from(
                    "the other node is committing to both: try again when that is done",
                ));
            }
        }
        if matches!(self.lead, Lead::TakingBack { .. }) && !offer.force {
            return Err(String::from(
                "the other node has not said yet that it has taken the last one back: try again in a moment",
            ));
        }
        if peer.is_none() {
            return Err(String::from(
                "the other node is not there, or of a version that knows nothing of commits on both: see softgate show \
                 ha; without --pair this node alone is changed",
            ));
        }
        self.ending = None;
        node.prepare(commit, &offer, true);
        self.lead = Lead::PreparingHere { commit, offer: Box::new(offer) };
        Ok(())
    }

    /// This node has begun with what it has kept as a follower, shortly before: the leader is to say that it is over.
    pub fn resume(&mut self, commit: u64, now: Nanos) {
        self.follow = Follow::InForce { commit, until: now.plus(REMEMBERED), next: now };
    }

    /// How far the commit is that this node leads.
    pub fn stage(&self) -> Option<Stage> {
        match self.lead {
            Lead::Idle | Lead::TakingBack { .. } => None,
            Lead::PreparingHere { .. } => Some(Stage::PreparingHere),
            Lead::PreparingThere { .. } => Some(Stage::PreparingThere),
            Lead::Publishing { .. } => Some(Stage::Publishing),
            Lead::Keeping { .. } => Some(Stage::Keeping),
        }
    }

    /// How one has ended that this node led; the number of the commit with it.
    pub fn take_ending(&mut self) -> Option<(u64, Ending)> {
        self.ending.take()
    }

    /// What is to be sent.
    pub fn take_messages(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.out)
    }

    /// When [`TwoPhase::poll`] has something to do at the latest.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let lead = match &self.lead {
            Lead::Idle | Lead::PreparingHere { .. } => None,
            Lead::PreparingThere { until, .. } => Some(*until),
            Lead::Publishing { until, next, .. }
            | Lead::Keeping { until, next, .. }
            | Lead::TakingBack { until, next, .. } => Some(*until.min(next)),
        };
        let follow = match &self.follow {
            Follow::Idle => None,
            Follow::Preparing { until, .. } | Follow::Prepared { until, .. } => Some(*until),
            Follow::InForce { until, next, .. } => Some(*until.min(next)),
        };
        lead.into_iter().chain(follow).min()
    }

    fn say(&mut self, commit: u64, said: Said) {
        self.out.push(Message { commit, said });
    }

    /// Gives up what this node leads.
    fn give_up(&mut self, commit: u64, why: String, now: Nanos, node: &mut impl Node) {
        if node.standing(commit) != Standing::Gone {
            node.take_back(commit, &why);
        }
        self.ending = Some((commit, Err(why)));
        self.lead = Lead::TakingBack { commit, until: now.plus(REMEMBERED), next: now.plus(AGAIN) };
        self.say(commit, Said::TakeBack);
    }

    /// What [`Node::prepare`] has begun has ended: with what is in force here, or a reason.
    pub fn prepared(
        &mut self,
        commit: u64,
        result: Result<Vec<(String, u64)>, String>,
        peer: Option<u64>,
        now: Nanos,
    ) {
        match std::mem::take(&mut self.lead) {
            Lead::PreparingHere { commit: of, mut offer } if of == commit => {
                match result.and_then(|sections| Ok((sections, peer.ok_or_else(lost)?))) {
                    Ok((sections, run)) => {
                        offer.sections = sections;
                        self.say(commit, Said::Offer(offer.clone()));
                        self.lead = Lead::PreparingThere { commit, offer, run, until: now.plus(PREPARE) };
                    }
                    Err(why) => self.ending = Some((commit, Err(why))),
                }
                return;
            }
            lead => self.lead = lead,
        }
        let result = match std::mem::take(&mut self.follow) {
            Follow::Preparing { commit: of, offer, until } if of == commit => match result {
                Ok(_) => {
                    self.follow = Follow::Prepared { commit, offer, until };
                    Said::Prepared
                }
                Err(why) => Said::Refused(cut(why)),
            },
            follow => {
                self.follow = follow;
                return;
            }
        };
        self.say(commit, result);
    }

    /// Something has come from the other node.
    pub fn receive(&mut self, message: Message, peer: Option<u64>, now: Nanos, node: &mut impl Node) {
        let Message { commit, said } = message;
        match said {
            Said::Offer(offer) => self.offered(commit, offer, now, node),
            Said::Publish => self.publish(commit, now, node),
            Said::Keep => self.keep(commit, now, node),
            Said::Over => {
                if matches!(self.follow, Follow::InForce { commit: of, .. } if of == commit) {
                    self.follow = Follow::Idle;
                }
            }
            Said::TakeBack => {
                if node.standing(commit) != Standing::Gone {
                    node.take_back(commit, "the other node has given it up");
                }
                if self.follow.commit() == Some(commit) {
                    self.follow = Follow::Idle;
                }
                // Else it is said again.
                if node.standing(commit) == Standing::Gone {
                    self.say(commit, Said::TakenBack);
                }
            }
            Said::Prepared => self.lead_publishes(commit, peer, now, node),
            Said::Refused(why) => match self.lead {
                Lead::PreparingThere { commit: of, .. } if of == commit => {
                    self.lead = Lead::Idle;
                    self.ending = Some((commit, Err(format!("the other node refuses it: {why}"))));
                }
                _ => {}
            },
            Said::Published(_) => self.lead_keeps(commit, now, node),
            Said::Failed(why) => match self.lead {
                Lead::Publishing { commit: of, .. } if of == commit => {
                    self.give_up(commit, format!("the other node could not publish it: {why}"), now, node);
                }
                _ => {}
            },
            Said::Kept(theirs) => self.lead_ends(commit, theirs, now, node),
            Said::TakenBack => match self.lead {
                Lead::Publishing { commit: of, .. } | Lead::Keeping { commit: of, .. } if of == commit => {
                    let why = String::from("the other node has taken it back");
                    self.give_up(commit, why, now, node);
                }
                Lead::TakingBack { commit: of, .. } if of == commit => self.lead = Lead::Idle,
                _ => {}
            },
        }
    }

    // ---- the follower

    fn offered(&mut self, commit: u64, offer: Box<Offer>, now: Nanos, node: &mut impl Node) {
        if self.stage().is_some() {
            let why = "it is committing to both nodes itself: ask one of them only, one after the other";
            self.say(commit, Said::Refused(String::from(why)));
            return;
        }
        if self.follow.commit() == Some(commit) {
            return;
        }
        if let Follow::InForce { commit: last, .. } = self.follow
            && node.standing(last) != Standing::Gone
        {
            let why =
                "it has not heard yet how the last commit on both nodes has ended: try again in a moment";
            self.say(commit, Said::Refused(String::from(why)));
            return;
        }
        // A leader has one at a time: what it has offered before is over.
        node.prepare(commit, &offer, false);
        self.follow = Follow::Preparing { commit, offer, until: now.plus(PREPARED) };
    }

    fn publish(&mut self, commit: u64, now: Nanos, node: &mut impl Node) {
        let in_force = Follow::InForce { commit, until: now.plus(REMEMBERED), next: now.plus(AGAIN) };
        let said = match (std::mem::take(&mut self.follow), node.standing(commit)) {
            (follow, Standing::Waits(revision)) => {
                self.follow = if follow.commit() == Some(commit) { follow } else { in_force };
                Said::Published(revision)
            }
            (follow, Standing::Kept(revision)) => {
                self.follow = follow;
                Said::Kept(revision)
            }
            (Follow::Prepared { commit: of, offer, .. }, Standing::Gone) if of == commit => {
                match node.publish(commit, &offer, false) {
                    Ok(revision) => {
                        self.follow = in_force;
                        Said::Published(revision)
                    }
                    Err(why) => Said::Failed(cut(why)),
                }
            }
            (follow, Standing::Gone) => {
                self.follow = follow;
                Said::Failed(String::from("it is not prepared there any more"))
            }
        };
        self.say(commit, said);
    }

    fn keep(&mut self, commit: u64, now: Nanos, node: &mut impl Node) {
        if let Standing::Waits(_) = node.standing(commit) {
            node.keep(commit);
            self.follow = Follow::InForce { commit, until: now.plus(REMEMBERED), next: now.plus(AGAIN) };
        }
        let said = match node.standing(commit) {
            Standing::Kept(revision) => Said::Kept(revision),
            // It could not be.
            Standing::Waits(_) => return,
            Standing::Gone => Said::TakenBack,
        };
        self.say(commit, said);
    }

    // ---- the leader

    fn lead_publishes(&mut self, commit: u64, peer: Option<u64>, now: Nanos, node: &mut impl Node) {
        let (offer, run) = match std::mem::take(&mut self.lead) {
            Lead::PreparingThere { commit: of, offer, run, .. } if of == commit && peer == Some(run) => {
                (offer, run)
            }
            lead => {
                self.lead = lead;
                return;
            }
        };
        match node.publish(commit, &offer, true) {
            Ok(ours) => {
                let (until, next) = (now.plus(PUBLISH), now.plus(AGAIN));
                self.lead = Lead::Publishing { commit, ours, run, until, next };
                self.say(commit, Said::Publish);
            }
            Err(why) => self.give_up(commit, why, now, node),
        }
    }

    fn lead_keeps(&mut self, commit: u64, now: Nanos, node: &mut impl Node) {
        match self.lead {
            Lead::Publishing { commit: of, ours, .. } if of == commit => {
                if node.standing(commit) != Standing::Waits(ours) {
                    let why = String::from("it was taken back here before it was on both nodes");
                    self.give_up(commit, why, now, node);
                    return;
                }
                let (until, next) = (now.plus(KEEP), now.plus(AGAIN));
                self.lead = Lead::Keeping { commit, ours, until, next };
                self.say(commit, Said::Keep);
            }
            // It is said again by itself.
            Lead::Keeping { commit: of, .. } if of == commit => {}
            _ => self.answer_of_old(commit, node),
        }
    }

    fn lead_ends(&mut self, commit: u64, theirs: u64, now: Nanos, node: &mut impl Node) {
        match self.lead {
            Lead::Publishing { commit: of, ours, .. } | Lead::Keeping { commit: of, ours, .. }
                if of == commit =>
            {
                if node.standing(commit) == Standing::Gone {
                    let why = String::from("it was taken back here before it was kept on both nodes");
                    self.give_up(commit, why, now, node);
                    return;
                }
                node.keep(commit);
                self.lead = Lead::Idle;
                self.ending = Some((commit, Ok((ours, theirs))));
                self.say(commit, Said::Over);
            }
            _ => self.answer_of_old(commit, node),
        }
    }

    /// The other node has published, or kept, what this node does not lead any more: given up, or forgotten by a start.
    fn answer_of_old(&mut self, commit: u64, node: &impl Node) {
        match node.standing(commit) {
            // About to be taken back by itself.
            Standing::Waits(_) => {}
            Standing::Kept(_) => self.say(commit, Said::Over),
            Standing::Gone if node.was_kept(commit) => self.say(commit, Said::Over),
            Standing::Gone => self.say(commit, Said::TakeBack),
        }
    }

    // ---- time

    /// What time brings; to be called when something has happened, and at [`TwoPhase::next_deadline`].
    pub fn poll(&mut self, peer: Option<u64>, now: Nanos, node: &mut impl Node) {
        match self.lead {
            Lead::Idle => {}
            Lead::PreparingHere { commit, .. } => {
                if peer.is_none() {
                    self.lead = Lead::Idle;
                    self.ending = Some((commit, Err(lost())));
                }
            }
            Lead::PreparingThere { commit, run, until, .. } => {
                if peer != Some(run) {
                    self.give_up(commit, lost(), now, node);
                } else if now >= until {
                    let why = format!("the other node has not prepared it within {} s", PREPARE.as_secs());
                    self.give_up(commit, why, now, node);
                }
            }
            Lead::Publishing { commit, ours, run, until, ref mut next } => {
                if node.standing(commit) != Standing::Waits(ours) {
                    let why = String::from("it was taken back here before it was on both nodes");
                    self.give_up(commit, why, now, node);
                } else if peer != Some(run) {
                    // Whoever has started again has what was in force before.
                    self.give_up(commit, lost(), now, node);
                } else if now >= until {
                    let why = format!("the other node has not published it within {} s", PUBLISH.as_secs());
                    self.give_up(commit, why, now, node);
                } else if now >= *next {
                    *next = now.plus(AGAIN);
                    self.say(commit, Said::Publish);
                }
            }
            Lead::Keeping { commit, ours, until, ref mut next } => {
                if node.standing(commit) != Standing::Waits(ours) {
                    let why = String::from("it was taken back here before it was kept on both nodes");
                    self.give_up(commit, why, now, node);
                } else if now >= until {
                    let why = String::from(
                        "the other node was to keep it and is not heard any more: this one has gone back, and so does the \
                         other when it hears that; see softgate show ha",
                    );
                    self.give_up(commit, why, now, node);
                } else if now >= *next {
                    *next = now.plus(AGAIN);
                    self.say(commit, Said::Keep);
                }
            }
            Lead::TakingBack { commit, until, ref mut next } => {
                if now >= until {
                    self.lead = Lead::Idle;
                } else if now >= *next {
                    *next = now.plus(AGAIN);
                    self.say(commit, Said::TakeBack);
                }
            }
        }
        match self.follow {
            Follow::Idle => {}
            Follow::Preparing { until, .. } | Follow::Prepared { until, .. } => {
                if now >= until {
                    self.follow = Follow::Idle;
                }
            }
            Follow::InForce { commit, until, ref mut next } => match node.standing(commit) {
                Standing::Gone => self.follow = Follow::Idle,
                _ if now >= until => self.follow = Follow::Idle,
                _ if now < *next => {}
                standing => {
                    *next = now.plus(AGAIN);
                    match standing {
                        Standing::Waits(revision) => self.say(commit, Said::Published(revision)),
                        Standing::Kept(revision) => self.say(commit, Said::Kept(revision)),
                        Standing::Gone => {}
                    }
                }
            },
        }
    }
}

impl Follow {
    fn commit(&self) -> Option<u64> {
        match self {
            Follow::Idle => None,
            Follow::Preparing { commit, .. }
            | Follow::Prepared { commit, .. }
            | Follow::InForce { commit, .. } => Some(*commit),
        }
    }
}

fn lost() -> String {
    String::from("the other node is not heard any more, or has started again")
}

#[cfg(test)]
mod tests;
