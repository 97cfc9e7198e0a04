//! All virtual routers of a node: advertisements, the time and plans in; frames and roles out.
//!
//! Routers of a group move together. A group becomes Active when *all* of its members have missed an Active for their
//! Active_Down_Interval: were one enough, a cut on one of its networks would have both nodes Active on it in turn, and
//! the traffic of the other networks go back and forth with it. It is Backup as soon as one of its members hears a
//! better Active, and takes no part while the interface of one is down. Between equal priorities the addresses of one
//! member decide: that with the lowest VRID, with IPv4 before IPv6.
//!
//! Who is Active no more because another is goes on forwarding for [`LINGER`] what still comes: switches and hosts may take
//! a moment to send elsewhere, and what is in our queues was sent before.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};

use super::advert::{Advert, GROUP_MAC_V4, GROUP_MAC_V6, vrid_of};
use super::announce::Burst;
use super::machine::{Action, Event, Heard, Machine, Settings, State};
use super::{BadAdvert, LEAVING, virtual_mac};
use crate::packet::view::ethertype;
use crate::roles::Part;
use crate::time::Nanos;

/// Announcements because of another router begin at most this often.
const AGAIN: Duration = Duration::from_secs(1);

/// How long what comes is forwarded after another has been heard to be the Active.
pub const LINGER: Duration = Duration::from_secs(1);

/// A virtual router of one family, as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterPlan {
    /// What operators call it: interface and VRID.
    pub name: String,
    /// Its place in the table of roles.
    pub role: u16,
    /// Interface slot.
    pub link: u16,
    /// Virtual router identifier, 1 to 255.
    pub vrid: u8,
    /// Those of one name move together.
    pub group: String,
    /// Priority as configured.
    pub priority: u8,
    /// With the priority that is left of it for now.
    pub settings: Settings,
    /// Over IPv4 the checksum is sent with a pseudo header.
    pub pseudo_header: bool,
    /// Its addresses, in the order in which they are advertised.
    pub addresses: Vec<IpAddr>,
    /// Other addresses that the Active answers for, of NAT and services, here and on other links.
    pub also: Arc<[Also]>,
    /// The interface can send and receive.
    pub up: bool,
}

/// An address that is announced with a virtual router, and is none of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Also {
    /// Interface slot.
    pub link: u16,
    /// The MAC address that it is answered for with.
    pub mac: [u8; 6],
    /// The address.
    pub address: IpAddr,
}

impl RouterPlan {
    fn is_ipv6(&self) -> bool {
        self.settings.primary.is_ipv6()
    }

    /// What stays the same of a router: link, VRID, family.
    fn key(&self) -> (u16, u8, bool) {
        (self.link, self.vrid, self.is_ipv6())
    }

    fn mac(&self) -> [u8; 6] {
        virtual_mac(self.vrid, self.is_ipv6())
    }
}

/// The virtual routers of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In configured order.
    pub routers: Vec<RouterPlan>,
}

/// A frame without tags, for an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Interface slot.
    pub link: u16,
    /// Destination.
    pub dst_mac: [u8; 6],
    /// Source: a virtual MAC address.
    pub src_mac: [u8; 6],
    /// EtherType.
    pub ethertype: u16,
    /// What is behind it.
    pub packet: Vec<u8>,
}

/// What has to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// What the node does for a virtual router from now on.
    Role {
        /// Place in the table of roles.
        role: u16,
        /// Interface slot.
        link: u16,
        /// What it does.
        part: Part,
    },
    /// Send this.
    Send(Frame),
    /// Tell the operator.
    Changed {
        /// The virtual router.
        name: String,
        /// IPv6.
        is_ipv6: bool,
        /// What it is now.
        state: State,
    },
}

/// Advertisements of one virtual router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent, those with priority 0 included.
    pub sent: u64,
    /// Valid ones received, those with priority 0 included.
    pub received: u64,
    /// Sent with priority 0.
    pub leaving_sent: u64,
    /// Received with priority 0.
    pub leaving_received: u64,
    /// How often it has become Active.
    pub became_active: u64,
    /// By position in [`BadAdvert::ALL`].
    pub errors: [u64; BadAdvert::ALL.len()],
}

/// A virtual router as it is.
#[derive(Clone, Debug)]
pub struct Status {
    /// The plan it follows.
    pub plan: RouterPlan,
    /// Its state.
    pub state: State,
    /// Of a Backup: the Active, if one has been heard since it is Backup.
    pub active: Option<IpAddr>,
    /// Of a Backup: how long it waits for an advertisement.
    pub active_down: Duration,
    /// When the state was entered.
    pub since: Nanos,
    /// Advertisements.
    pub counters: Counters,
}

struct Router {
    plan: RouterPlan,
    machine: Machine,
    burst: Option<Burst>,
    active: Option<IpAddr>,
    since: Nanos,
    counters: Counters,
    /// It was Active and has become Backup, which its group does not know yet.
    stood_back: bool,
    /// Until when it forwards although it is Active no more.
    lingers: Option<Nanos>,
    /// What was told last.
    told: Part,
    /// Place of its group.
    group: usize,
}

/// How far a node that is to leave has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leave {
    /// It is not to leave.
    #[default]
    Stays,
    /// Nobody has been heard yet who has taken over some virtual router.
    Asks,
    /// Others have, and it forwards what still comes.
    Lingers,
    /// It takes no part any more.
    Gone,
}

/// The virtual routers of a node, running.
#[derive(Default)]
pub struct Engine {
    routers: Vec<Router>,
    /// Members of each group.
    groups: Vec<Vec<usize>>,
    /// The node is to leave all of them, as soon as others have them.
    leaves: bool,
    /// No router takes over from an Active of lower priority.
    holds_back: bool,
    /// The node takes no part: it hears nobody.
    is_cut_off: bool,
    /// Until when the last advertisement of another is word of it.
    heard_until: Nanos,
    /// By position in [`BadAdvert::ALL`]: those that are about no router of ours.
    strays: [u64; BadAdvert::ALL.len()],
}

impl Engine {
    /// Leaves the routers that are not in `plan`, which [`Engine::set_plan`] is to follow: their last word goes by
    /// links that may be gone then.
    pub fn leave_others(&mut self, plan: &Plan, now: Nanos, out: &mut Vec<Output>) {
        let stays: AHashSet<_> = plan.routers.iter().map(RouterPlan::key).collect();
        for router in self.routers.iter_mut().filter(|router| !stays.contains(&router.plan.key())) {
            router.shut_down(now, out);
        }
    }

    /// Follows another plan. A router that is in both goes on as it was; one that is no more leaves.
    pub fn set_plan(&mut self, plan: Plan, now: Nanos, out: &mut Vec<Output>) {
        self.leave_others(&plan, now, out);
        let mut old: AHashMap<_, Router> =
            std::mem::take(&mut self.routers).into_iter().map(|router| (router.plan.key(), router)).collect();
        let mut routers = Vec::with_capacity(plan.routers.len());
        for plan in plan.routers {
            let router = match old.remove(&plan.key()) {
                Some(mut router) => {
                    router.machine.set(plan.settings);
                    let announces = router.plan.addresses != plan.addresses || router.plan.also != plan.also;
                    if announces && router.machine.state() == State::Active {
                        router.burst = Some(Burst::new(now));
                    }
                    router.plan = plan;
                    router
                }
                None => Router {
                    machine: Machine::new(plan.settings),
                    plan,
                    burst: None,
                    active: None,
                    since: now,
                    counters: Counters::default(),
                    stood_back: false,
                    lingers: None,
                    told: Part::Away,
                    group: 0,
                },
            };
            routers.push(router);
        }
        let mut by_name: AHashMap<String, usize> = AHashMap::new();
        self.groups.clear();
        for (index, router) in routers.iter_mut().enumerate() {
            router.machine.hold_back(self.holds_back);
            router.group = *by_name.entry(router.plan.group.clone()).or_insert(self.groups.len());
            if router.group == self.groups.len() {
                self.groups.push(Vec::new());
            }
            self.groups[router.group].push(index);
        }
        for group in &self.groups {
            let rank = |index: &usize| (routers[*index].plan.vrid, routers[*index].plan.is_ipv6());
            let first = group.iter().copied().min_by_key(rank);
            for index in group {
                routers[*index].machine.break_ties(Some(*index) == first);
            }
        }
        self.routers = routers;
        self.settle(now, out);
    }

    /// Whether no router takes over from an Active of lower priority for now.
    pub fn hold_back(&mut self, holds_back: bool) {
        self.holds_back = holds_back;
        self.routers.iter_mut().for_each(|router| router.machine.hold_back(holds_back));
    }

    /// Whether the node takes no part for now, since it hears nobody ([`crate::ha::contact`]).
    pub fn cut_off(&mut self, is_cut_off: bool, now: Nanos, out: &mut Vec<Output>) {
        if self.is_cut_off != is_cut_off {
            self.is_cut_off = is_cut_off;
            self.settle(now, out);
        }
    }

    /// True if some router is Active.
    pub fn is_active(&self) -> bool {
        self.routers.iter().any(|router| router.machine.state() == State::Active)
    }

    /// True if some router of a group is Active.
    pub fn is_active_in(&self, group: &str) -> bool {
        let of = |router: &&Router| router.plan.group == group;
        self.routers.iter().filter(of).any(|router| router.machine.state() == State::Active)
    }

    /// True if an advertisement of another node has come so lately that the next may be on its way.
    pub fn hears_another(&self, now: Nanos) -> bool {
        now < self.heard_until
    }

    /// Whether the node is to leave all routers, each as soon as another is heard to have it, or to take part after all.
    pub fn leave(&mut self, leaves: bool, now: Nanos, out: &mut Vec<Output>) {
        let came_back = self.leaves && !leaves;
        self.leaves = leaves;
        for group in self.groups.iter().filter(|_| came_back) {
            let is = |index: &usize, state: State| self.routers[*index].machine.state() == state;
            let has_gone = group.iter().any(|index| is(index, State::Initialize));
            let first = group.iter().copied().find(|index| is(index, State::Leaving));
            // Another node has part of the group: it is to have the rest as well.
            if let Some(first) = first.filter(|_| has_gone) {
                self.routers[first].stood_back = true;
            }
        }
        self.settle(now, out);
    }

    /// How far it has come with that.
    pub fn leaving(&self) -> Leave {
        let is = |state: State| self.routers.iter().any(|router| router.machine.state() == state);
        match self.leaves {
            false => Leave::Stays,
            true if is(State::Leaving) || is(State::Active) => Leave::Asks,
            true if self.routers.iter().any(|router| router.lingers.is_some()) => Leave::Lingers,
            true => Leave::Gone,
        }
    }

    /// Takes an advertisement that came in by an interface: the IP packet from its first byte on.
    pub fn receive(&mut self, link: u16, packet: &[u8], now: Nanos, out: &mut Vec<Output>) {
        let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
        let mut routers = self.routers.iter_mut();
        let vrid = vrid_of(packet);
        let found = routers.find(|router| {
            router.plan.link == link && Some(router.plan.vrid) == vrid && router.plan.is_ipv6() == is_ipv6
        });
        let counted = match (found, Advert::parse(packet)) {
            (Some(router), Ok(advert)) => {
                router.receive(&advert, now, out);
                if advert.heard.source != router.plan.settings.primary && advert.heard.priority != LEAVING {
                    self.heard_until = self.heard_until.max(now.plus(advert.heard.interval.duration() * 4));
                }
                let group = router.group;
                self.settle_group(group, now, out);
                return;
            }
            (Some(router), Err(bad)) => (&mut router.counters.errors, bad),
            (None, Ok(_)) => (&mut self.strays, BadAdvert::UnknownRouter),
            (None, Err(bad)) => (&mut self.strays, bad),
        };
        let (errors, bad) = counted;
        count(errors, bad);
    }

    /// Somebody else claims an address of the router with this role.
    pub fn note_conflict(&mut self, role: u16, now: Nanos) {
        if let Some(router) = self.routers.iter_mut().find(|router| router.plan.role == role) {
            router.announce_again(now);
        }
    }

    /// Does what is due. Advertisements that have come in are to be taken first: a thread that was kept from running
    /// must not take its own absence for the Active's. So a Backup waits while its link is one of `unread`.
    pub fn poll(&mut self, now: Nanos, unread: &[u16], out: &mut Vec<Output>) {
        for router in &mut self.routers {
            let is_backup = router.machine.state() == State::Backup;
            let waits = is_backup && unread.contains(&router.plan.link);
            if !waits && router.machine.deadline().is_some_and(|due| due <= now) {
                router.step(Event::Timer, now, out);
            }
        }
        self.settle(now, out);
        for router in &mut self.routers {
            router.announce(now, out);
            if router.lingers.is_some_and(|until| until <= now) {
                router.lingers = None;
                router.tell_rest(out);
            }
        }
    }

    /// When [`Engine::poll`] has something to do.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let due = |router: &Router| {
            let burst = router.burst.as_ref().map(Burst::due);
            [router.machine.deadline(), burst, router.lingers].into_iter().flatten().min()
        };
        self.routers.iter().filter_map(due).min()
    }

    /// Leaves everything, with word to the others.
    pub fn stop(&mut self, now: Nanos, out: &mut Vec<Output>) {
        for router in &mut self.routers {
            router.shut_down(now, out);
        }
        self.routers.clear();
        self.groups.clear();
    }

    /// All routers, in the plan's order.
    pub fn status(&self) -> Vec<Status> {
        let status = |router: &Router| Status {
            plan: router.plan.clone(),
            state: router.machine.state(),
            active: router.active,
            active_down: router.machine.active_down_interval(),
            since: router.since,
            counters: router.counters,
        };
        self.routers.iter().map(status).collect()
    }

    /// Advertisements that are about no router of ours, or cannot be read, by position in [`BadAdvert::ALL`].
    pub fn strays(&self) -> &[u64; BadAdvert::ALL.len()] {
        &self.strays
    }

    /// Has groups move together.
    fn settle(&mut self, now: Nanos, out: &mut Vec<Output>) {
        for group in 0..self.groups.len() {
            self.settle_group(group, now, out);
        }
    }

    fn settle_group(&mut self, group: usize, now: Nanos, out: &mut Vec<Output>) {
        let (group, routers) = (&self.groups[group], &mut self.routers);
        let all_up = !self.is_cut_off && group.iter().all(|index| routers[*index].plan.up);
        let event = match all_up {
            false => Event::Shutdown,
            true if self.leaves => Event::Leave,
            true => Event::Startup,
        };
        for index in group {
            routers[*index].step(event, now, out);
        }
        let is = |index: &usize, state: State| routers[*index].machine.state() == state;
        // Who was Active and hears a better one is Backup, and does not want to be Active: then the others go too.
        let hears_active =
            |index: &usize| is(index, State::Backup) && !routers[*index].machine.wants_active();
        let wants = |index: &usize| routers[*index].machine.wants_active();
        let event = match () {
            () if group.iter().any(|index| routers[*index].stood_back) => Event::StandBack,
            () if group.iter().any(wants) && !group.iter().any(hears_active) => Event::TakeOver,
            () => return,
        };
        for index in group {
            routers[*index].step(event, now, out);
            routers[*index].stood_back = false;
        }
    }
}

impl Router {
    fn receive(&mut self, advert: &Advert, now: Nanos, out: &mut Vec<Output>) {
        let Heard { priority, interval, source } = advert.heard;
        if source == self.plan.settings.primary {
            count(&mut self.counters.errors, BadAdvert::OwnAddress);
            return;
        }
        self.counters.received += 1;
        self.counters.leaving_received += u64::from(priority == LEAVING);
        // RFC 9568 section 7.1: told to the operator, and taken all the same.
        if interval != self.plan.settings.interval {
            count(&mut self.counters.errors, BadAdvert::OtherInterval);
        }
        if advert.addresses != self.plan.addresses {
            count(&mut self.counters.errors, BadAdvert::OtherAddresses);
        }
        self.step(Event::Advert(advert.heard), now, out);
        self.active = match (self.machine.state(), priority) {
            (State::Backup, 1..) => Some(source),
            (State::Backup, LEAVING) => self.active.filter(|active| *active != source),
            (State::Initialize | State::Active | State::Leaving, _) => None,
        };
        self.tell_rest(out);
    }

    /// Leaves at once.
    fn shut_down(&mut self, now: Nanos, out: &mut Vec<Output>) {
        self.step(Event::Shutdown, now, out);
        self.lingers = None;
        self.tell_rest(out);
    }

    fn step(&mut self, event: Event, now: Nanos, out: &mut Vec<Output>) {
        let before = self.machine.state();
        let actions = self.machine.step(event, now);
        let state = self.machine.state();
        for action in actions {
            match action {
                Action::BecomeActive => {
                    self.counters.became_active += 1;
                    (self.burst, self.lingers) = (Some(Burst::new(now)), None);
                    self.stood_back = false;
                    self.tell(Part::Active, out);
                }
                Action::BecomeInactive => {
                    self.burst = None;
                    self.stood_back = state == State::Backup;
                    // Otherwise its link is gone, or the process goes.
                    let is_another = matches!(event, Event::Advert(_) | Event::StandBack);
                    self.lingers = is_another.then(|| now.plus(LINGER));
                    self.tell(if is_another { Part::Forwards } else { Part::Away }, out);
                }
                Action::Advertise(priority) => self.advertise(priority, out),
                // The first one is under way already.
                Action::Announce => self.announce_again(now),
            }
        }
        if state != before {
            (self.since, self.active) = (now, None);
            let (name, is_ipv6) = (self.plan.name.clone(), self.plan.is_ipv6());
            out.push(Output::Changed { name, is_ipv6, state });
        }
        self.tell_rest(out);
    }

    fn tell(&mut self, part: Part, out: &mut Vec<Output>) {
        self.told = part;
        out.push(Output::Role { role: self.plan.role, link: self.plan.link, part });
    }

    /// Tells whether another is heard, of a router that does nothing by itself.
    fn tell_rest(&mut self, out: &mut Vec<Output>) {
        let is_busy =
            matches!(self.machine.state(), State::Active | State::Leaving) || self.lingers.is_some();
        let part = if self.active.is_some() { Part::Backup } else { Part::Away };
        if !is_busy && self.told != part {
            self.tell(part, out);
        }
    }

    fn advertise(&mut self, priority: u8, out: &mut Vec<Output>) {
        let Settings { interval, primary: source, .. } = self.plan.settings;
        let advert = Advert {
            vrid: self.plan.vrid,
            heard: Heard { priority, interval, source },
            addresses: self.plan.addresses.clone(),
        };
        self.counters.sent += 1;
        self.counters.leaving_sent += u64::from(priority == LEAVING);
        let is_ipv6 = self.plan.is_ipv6();
        out.push(Output::Send(Frame {
            link: self.plan.link,
            dst_mac: if is_ipv6 { GROUP_MAC_V6 } else { GROUP_MAC_V4 },
            src_mac: self.plan.mac(),
            ethertype: if is_ipv6 { ethertype::IPV6 } else { ethertype::IPV4 },
            packet: advert.emit(self.plan.pseudo_header),
        }));
    }

    fn announce_again(&mut self, now: Nanos) {
        let began = self.burst.as_ref().map(Burst::began);
        if self.machine.state() == State::Active && began.is_none_or(|began| now.since(began) >= AGAIN) {
            self.burst = Some(Burst::new(now));
        }
    }

    fn announce(&mut self, now: Nanos, out: &mut Vec<Output>) {
        let Some(burst) = &mut self.burst else { return };
        let (link, mac) = (self.plan.link, virtual_mac(self.plan.vrid, self.plan.settings.primary.is_ipv6()));
        let own = self.plan.addresses.iter().map(|address| Also { link, mac, address: *address });
        let all = own.chain(self.plan.also.iter().copied());
        if !burst.step(all, now, |frame| out.push(Output::Send(frame))) {
            self.burst = None;
        }
    }
}

fn count(errors: &mut [u64; BadAdvert::ALL.len()], bad: BadAdvert) {
    let place = BadAdvert::ALL.iter().position(|known| *known == bad);
    errors[place.unwrap_or_else(|| unreachable!("all of them are in the list"))] += 1;
}
