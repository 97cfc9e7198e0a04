//! Members of groups and backends of services that go by themselves. They belong to no config document: what is
//! applied next neither names them nor takes them away, unless it has their group or service no more or names them
//! itself, for good.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;

use super::groups;
use crate::config::{Backend, BackendKey, Group, GroupName, Member, RuleName, VirtualService};
use crate::control::{GroupMembers, Patch};
use crate::time::Nanos;

/// Members taken out at once, so that a million of them do not keep a client waiting.
const MOST: usize = 4096;

/// When what could not be taken out is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// A member, and the group it is in.
pub type Key = (GroupName, Member);

/// A backend, and the service it is of.
pub type LeaseKey = (RuleName, BackendKey);

/// When each member of a group goes that does so by itself.
pub type Temporary = Deadlines<Key>;

/// When each backend goes that does so by itself.
pub type Leases = Deadlines<LeaseKey>;

/// When each of them goes.
#[derive(Debug)]
pub struct Deadlines<K> {
    /// With the number that makes it one of several at the same time.
    deadlines: AHashMap<K, (Nanos, u64)>,
    due: BTreeMap<(Nanos, u64), K>,
    next: u64,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Deadlines<K> {
        Deadlines { deadlines: AHashMap::new(), due: BTreeMap::new(), next: 0 }
    }
}

impl<K: Clone + Eq + Hash> Deadlines<K> {
    /// True if the member goes by itself.
    pub fn holds(&self, key: &K) -> bool {
        self.deadlines.contains_key(key)
    }

    /// True if all members stay for good.
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// The member goes at `deadline`; `None`: it has gone, or stays for good.
    pub fn set(&mut self, key: K, deadline: Option<Nanos>) {
        if let Some(old) = self.deadlines.remove(&key) {
            self.due.remove(&old);
        }
        if let Some(deadline) = deadline {
            self.next += 1;
            self.deadlines.insert(key.clone(), (deadline, self.next));
            self.due.insert((deadline, self.next), key);
        }
    }

    /// When the first of them goes.
    pub fn first(&self) -> Option<Nanos> {
        self.due.keys().next().map(|(deadline, _)| *deadline)
    }

    /// Those whose time is over, the first first; not all if they are many.
    pub fn due(&self, now: Nanos) -> Vec<K> {
        self.due
            .iter()
            .take_while(|((deadline, _), _)| *deadline <= now)
            .take(MOST)
            .map(|(_, key)| key.clone())
            .collect()
    }

    /// Tries them again later.
    pub fn put_off(&mut self, keys: Vec<K>, now: Nanos) {
        keys.into_iter().for_each(|key| self.set(key, Some(now.plus(AGAIN))));
    }

    /// How long it has left, if it goes by itself.
    pub fn left(&self, key: &K, now: Nanos) -> Option<Duration> {
        self.deadlines.get(key).map(|(deadline, _)| deadline.since(now))
    }

    /// All of them.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.deadlines.keys()
    }
}

impl Leases {
    /// Puts the backends that go by themselves into the services of another config, as they are in the one before.
    /// Returns those that are none any more: the config has their service no more, or names them itself.
    pub fn join_services(
        &self,
        before: &[Arc<VirtualService>],
        services: &mut [Arc<VirtualService>],
    ) -> Vec<LeaseKey> {
        let mut given_up = Vec::new();
        // In the order in which they go, so that two runs do the same.
        for (name, key) in self.due.values() {
            let is_it = |backend: &&Backend| backend.key() == *key;
            let old = before.iter().find(|service| service.name == *name);
            let backend = old.and_then(|service| service.backends.iter().find(is_it));
            let service = services.iter_mut().find(|service| service.name == *name);
            match (backend, service) {
                (Some(backend), Some(service)) if !service.backends.iter().any(|known| is_it(&known)) => {
                    Arc::make_mut(service).backends.push(backend.clone());
                }
                _ => given_up.push((name.clone(), key.clone())),
            }
        }
        given_up
    }
}

impl Temporary {
    /// The members of a group that go, and how long each has left.
    pub fn of(&self, group: &GroupName, now: Nanos) -> Vec<(&Member, Duration)> {
        let own = self.due.iter().filter(|(_, (name, _))| name == group);
        own.map(|((deadline, _), (_, member))| (member, deadline.since(now))).collect()
    }

    /// Puts them into the groups of another config; returns those that are none any more: the config names them
    /// itself, or cannot have them.
    pub fn join(&self, groups: &mut Vec<Arc<Group>>) -> Vec<Key> {
        let mut by_group: AHashMap<&GroupName, Vec<&Member>> = AHashMap::new();
        self.due.values().for_each(|(name, member)| by_group.entry(name).or_default().push(member));
        let mut given_up = Vec::new();
        for (name, members) in by_group {
            let known = groups.iter().find(|group| group.name == *name);
            let known: ahash::AHashSet<Member> =
                known.map(|group| group.members.iter().cloned().collect()).unwrap_or_default();
            let (named, new): (Vec<&Member>, Vec<&Member>) =
                members.into_iter().partition(|m| known.contains(*m));
            given_up.extend(named.into_iter().map(|member| (name.clone(), member.clone())));
            // A group in a group may be refused, where the config nests them the other way round.
            let (addresses, inner): (Vec<&Member>, Vec<&Member>) =
                new.into_iter().partition(|member| matches!(member, Member::Addresses(_)));
            let at_once = std::iter::once(addresses).chain(inner.into_iter().map(|member| vec![member]));
            for members in at_once.filter(|members| !members.is_empty()) {
                let members: Vec<Member> = members.into_iter().cloned().collect();
                let keys = members.iter().map(|member| (name.clone(), member.clone())).collect::<Vec<_>>();
                let patch = Patch::GroupAdd(GroupMembers { group: name.clone(), members, ttl_s: None });
                match groups::changed(groups, &Temporary::default(), &[patch]) {
                    Ok(Some(after)) => *groups = after.groups,
                    Ok(None) => {}
                    Err(fault) => {
                        tracing::warn!(%fault, "a temporary member is given up");
                        given_up.extend(keys);
                    }
                }
            }
        }
        given_up
    }
}

/// What takes these members out.
pub(super) fn removal(keys: &[Key]) -> Vec<Patch> {
    let mut by_group: BTreeMap<&GroupName, Vec<Member>> = BTreeMap::new();
    keys.iter().for_each(|(group, member)| by_group.entry(group).or_default().push(member.clone()));
    let patch = |(group, members): (&GroupName, Vec<Member>)| {
        Patch::GroupDel(GroupMembers { group: group.clone(), members, ttl_s: None })
    };
    by_group.into_iter().map(patch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(group: &str, member: &str) -> Key {
        (group.parse().expect("a name"), member.parse().expect("a member"))
    }

    fn at(seconds: u64) -> Nanos {
        Nanos::from_secs(seconds)
    }

    #[test]
    fn members_go_in_the_order_of_their_deadlines() {
        let mut temporary = Temporary::default();
        let keys = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|member| key("a", member));
        for (key, seconds) in keys.iter().zip([30, 10, 10]) {
            temporary.set(key.clone(), Some(at(seconds)));
        }
        assert_eq!((temporary.first(), temporary.due(at(9))), (Some(at(10)), vec![]));
        assert_eq!(temporary.due(at(10)), keys[1..]);
        // Asked for again: it stays longer. Taken out, or put in for good: it does not go.
        temporary.set(keys[1].clone(), Some(at(40)));
        temporary.set(keys[2].clone(), None);
        assert_eq!(temporary.due(at(39)), keys[..1]);
        assert!(temporary.holds(&keys[1]) && !temporary.holds(&keys[2]));
        let left = temporary.of(&keys[0].0, at(25));
        assert_eq!(left, [(&keys[0].1, Duration::from_secs(5)), (&keys[1].1, Duration::from_secs(15))]);
        temporary.put_off(keys[..1].to_vec(), at(39));
        assert_eq!(temporary.first(), Some(at(40)));
        keys.iter().for_each(|key| temporary.set(key.clone(), None));
        assert!(temporary.is_empty() && temporary.deadlines.is_empty());
    }

    #[test]
    fn not_more_than_so_many_go_at_once() {
        let mut temporary = Temporary::default();
        for n in 0..MOST as u32 + 1 {
            temporary.set(key("a", &std::net::Ipv4Addr::from(n).to_string()), Some(at(1)));
        }
        assert_eq!((temporary.due(at(2)).len(), temporary.first()), (MOST, Some(at(1))));
    }

    #[test]
    fn they_outlive_a_config_that_has_their_group() {
        let group = |name: &str, members: &[&str]| {
            let members = members.iter().map(|member| member.parse().expect("a member")).collect();
            Arc::new(Group { name: name.parse().expect("a name"), members })
        };
        let mut temporary = Temporary::default();
        let keys = [key("a", "10.0.0.1"), key("a", "10.0.0.2"), key("gone", "10.0.0.3"), key("a", "group:b")];
        keys.iter().for_each(|key| temporary.set(key.clone(), Some(at(60))));
        // One of them is in the document now, one's group is not, and `a` in `b` leaves no room for `b` in `a`.
        let mut groups = vec![group("a", &["10.0.0.2"]), group("b", &["group:a"])];
        let mut given_up = temporary.join(&mut groups);
        given_up.sort_by_key(|(_, member)| member.to_string());
        assert_eq!(given_up, [keys[1].clone(), keys[2].clone(), keys[3].clone()]);
        assert_eq!(groups, [group("a", &["10.0.0.2", "10.0.0.1"]), group("b", &["group:a"])]);
        let mut groups = vec![group("a", &[]), group("b", &[]), group("gone", &[])];
        assert_eq!(temporary.join(&mut groups), []);
        assert_eq!(groups[0].members.len(), 3);
    }

    #[test]
    fn backends_outlive_a_config_that_has_their_service() {
        let service = |name: &str, backends: &[&str]| {
            let list: Vec<String> =
                backends.iter().map(|address| format!("{{ address = \"{address}\" }}")).collect();
            let text = format!(
                "name = \"{name}\"\naddress = \"192.0.2.1\"\nservice = \"tcp/80\"\nbackends = [{}]",
                list.join(", ")
            );
            Arc::new(toml::from_str::<VirtualService>(&text).expect("a service"))
        };
        let key = |name: &str, address: &str| -> LeaseKey {
            (name.parse().expect("a name"), address.parse().expect("a backend"))
        };
        let mut leases = Leases::default();
        let keys = [key("a", "10.0.0.1:80"), key("a", "10.0.0.2:80"), key("gone", "10.0.0.3:80")];
        keys.iter().for_each(|key| leases.set(key.clone(), Some(at(60))));
        assert_eq!(leases.left(&keys[0], at(50)), Some(Duration::from_secs(10)));
        let before = [service("a", &["10.0.0.1:80", "10.0.0.2:80"]), service("gone", &["10.0.0.3:80"])];
        // The document names one of them itself now.
        let mut after = [service("a", &["10.0.0.9:80", "10.0.0.2:80"])];
        assert_eq!(leases.join_services(&before, &mut after), keys[1..]);
        assert_eq!(after[0], service("a", &["10.0.0.9:80", "10.0.0.2:80", "10.0.0.1:80"]));
    }
}
