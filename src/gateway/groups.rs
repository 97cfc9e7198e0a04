//! Members of groups that come and go while the gateway runs.

use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};

use super::temporary::{Key, Temporary};
use crate::config::{Group, GroupName, Member};
use crate::control::{Fault, GroupMembers, Patch};
use crate::tables::policy::MemberChange;

/// Members named at once, beyond which those of the group are listed by hash: less are found sooner by looking at all.
const FEW: usize = 8;

/// What changes of groups come to.
#[derive(Debug, Default)]
pub struct After {
    /// All groups; those that nothing names are as they were.
    pub groups: Vec<Arc<Group>>,
    /// Addresses that have come and gone.
    pub changes: Vec<MemberChange>,
    /// Groups in groups have come or gone.
    pub is_nested_otherwise: bool,
    /// Members that go by themselves after so long; `None`: they do not any more.
    pub temporary: AHashMap<Key, Option<Duration>>,
}

impl After {
    fn note(&mut self, group: &GroupName, member: &Member, more: i32) {
        match member {
            Member::Addresses(range) => {
                self.changes.push(MemberChange { group: group.clone(), range: *range, more });
            }
            Member::Group(_) => self.is_nested_otherwise = true,
        }
    }
}

/// The groups after these changes; `None` where none of the changes is of groups.
pub fn changed(
    groups: &[Arc<Group>],
    temporary: &Temporary,
    patches: &[Patch],
) -> Result<Option<After>, Fault> {
    let mut after: Option<After> = None;
    for patch in patches {
        let (change, is_added) = match patch {
            Patch::GroupAdd(change) => (change, true),
            Patch::GroupDel(change) => (change, false),
            Patch::RouteAdd(_)
            | Patch::RouteDel(_)
            | Patch::NeighbourAdd(_)
            | Patch::NeighbourDel(_)
            | Patch::RuleAdd(_)
            | Patch::RuleDel(_)
            | Patch::ServiceSetBackends(_)
            | Patch::ServiceDelBackends(_)
            | Patch::ServiceSetBackend(_) => continue,
        };
        let after = after.get_or_insert_with(|| After { groups: groups.to_vec(), ..After::default() });
        if is_added { add(after, temporary, change)? } else { delete(after, temporary, change)? }
    }
    Ok(after)
}

fn at(groups: &[Arc<Group>], name: &GroupName) -> Result<usize, Fault> {
    let found = groups.iter().position(|group| group.name == *name);
    found.ok_or_else(|| Fault::not_found(format!("no group {name}: groups are made by the config")))
}

fn add(after: &mut After, temporary: &Temporary, change: &GroupMembers) -> Result<(), Fault> {
    let GroupMembers { group: name, members, ttl_s } = change;
    let group = at(&after.groups, name)?;
    // Inner groups that were looked into: what comes in here does not change what they hold.
    let mut looked_into: AHashSet<&GroupName> = AHashSet::new();
    for member in members {
        if let Member::Group(inner) = member
            && looked_into.insert(inner)
            && holds(&after.groups, at(&after.groups, inner)?, name)
        {
            let message = format!("group {name}: {member}: a group cannot contain itself");
            return Err(Fault::refused(message));
        }
    }
    let ttl = ttl_s.map(|seconds| Duration::from_secs(seconds.get().into()));
    let old = Arc::clone(&after.groups[group]);
    let listed: AHashSet<&Member> =
        if members.len() > FEW { old.members.iter().collect() } else { AHashSet::new() };
    let mut seen: AHashSet<&Member> = AHashSet::with_capacity(members.len());
    let mut new: Vec<Member> = Vec::new();
    for member in members.iter().filter(|member| seen.insert(member)) {
        let is_known =
            if members.len() > FEW { listed.contains(member) } else { old.members.contains(member) };
        if !is_known {
            new.push(member.clone());
            after.note(name, member, 1);
        }
        // One that is there for good stays so; one that goes goes later, or not at all.
        let key = || (name.clone(), member.clone());
        if !is_known && ttl.is_some() || is_known && is_temporary(after, temporary, key) {
            after.temporary.insert(key(), ttl);
        } else if !is_known && !after.temporary.is_empty() {
            // It was taken out before in the same transaction.
            after.temporary.insert(key(), None);
        }
    }
    if !new.is_empty() {
        Arc::make_mut(&mut after.groups[group]).members.extend(new);
    }
    Ok(())
}

fn is_temporary(after: &After, temporary: &Temporary, key: impl Fn() -> Key) -> bool {
    if after.temporary.is_empty() && temporary.is_empty() {
        return false;
    }
    let key = key();
    after.temporary.get(&key).map_or_else(|| temporary.holds(&key), Option::is_some)
}

fn delete(after: &mut After, temporary: &Temporary, change: &GroupMembers) -> Result<(), Fault> {
    let GroupMembers { group: name, members, ttl_s } = change;
    if ttl_s.is_some() {
        return Err(Fault::refused("ttl_s: what is taken out goes at once"));
    }
    let group = at(&after.groups, name)?;
    let old = Arc::clone(&after.groups[group]);
    let listed: AHashSet<&Member> =
        if members.len() > FEW { old.members.iter().collect() } else { AHashSet::new() };
    let mut gone: AHashSet<&Member> = AHashSet::with_capacity(members.len());
    for member in members {
        let is_known =
            if members.len() > FEW { listed.contains(member) } else { old.members.contains(member) };
        if !is_known || !gone.insert(member) {
            return Err(Fault::not_found(format!("group {name} has no member {member}; see show groups")));
        }
        if is_temporary(after, temporary, || (name.clone(), member.clone())) {
            after.temporary.insert((name.clone(), member.clone()), None);
        }
    }
    let mut left = Vec::with_capacity(old.members.len());
    for member in &old.members {
        let goes = if members.len() > FEW { gone.contains(member) } else { members.contains(member) };
        // A config may name a member twice; then both go.
        if goes { after.note(name, member, -1) } else { left.push(member.clone()) }
    }
    after.groups[group] = Arc::new(Group { name: name.clone(), members: left });
    Ok(())
}

/// True if the group is the one called `name`, or that is in it at any depth.
fn holds(groups: &[Arc<Group>], group: usize, name: &GroupName) -> bool {
    let mut seen = vec![false; groups.len()];
    let mut open = vec![group];
    while let Some(group) = open.pop() {
        if groups[group].name == *name {
            return true;
        }
        if !std::mem::replace(&mut seen[group], true) {
            open.extend(groups[group].members.iter().filter_map(|member| match member {
                Member::Group(inner) => at(groups, inner).ok(),
                Member::Addresses(_) => None,
            }));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups() -> Vec<Arc<Group>> {
        let group = |name: &str, members: &[&str]| {
            let members = members.iter().map(|member| member.parse().expect("a member")).collect();
            Arc::new(Group { name: name.parse().expect("a name"), members })
        };
        vec![group("a", &["10.0.0.0/8", "group:b"]), group("b", &["group:c"]), group("c", &[])]
    }

    fn patch(make: fn(GroupMembers) -> Patch, group: &str, members: &[&str]) -> Patch {
        let members = members.iter().map(|member| member.parse().expect("a member")).collect();
        make(GroupMembers { group: group.parse().expect("a name"), members, ttl_s: None })
    }

    fn told(patches: &[Patch]) -> String {
        match changed(&groups(), &Temporary::default(), patches) {
            Ok(None) => String::from("nothing"),
            Ok(Some(after)) => {
                let shown = after.groups.iter().map(|group| {
                    let members: Vec<String> = group.members.iter().map(ToString::to_string).collect();
                    format!("{}: {}", group.name, members.join(" "))
                });
                shown.collect::<Vec<_>>().join("; ")
            }
            Err(fault) => fault.to_string(),
        }
    }

    #[test]
    fn members_come_and_go() {
        let (add, del) = (Patch::GroupAdd as fn(_) -> _, Patch::GroupDel as fn(_) -> _);
        assert_eq!(told(&[]), "nothing");
        let several = [
            patch(add, "c", &["192.0.2.1", "2001:db8::/32"]),
            patch(add, "c", &["192.0.2.1"]),
            patch(del, "a", &["group:b"]),
            patch(add, "c", &["group:a"]),
        ];
        assert_eq!(told(&several), "a: 10.0.0.0/8; b: group:c; c: 192.0.2.1 2001:db8::/32 group:a");
        let refused = [
            (patch(add, "c", &["group:a"]), "group c: group:a: a group cannot contain itself"),
            (patch(add, "c", &["group:c"]), "group c: group:c: a group cannot contain itself"),
            (patch(add, "c", &["group:d"]), "no group d: groups are made by the config"),
            (patch(add, "d", &["10.0.0.1"]), "no group d: groups are made by the config"),
            (patch(del, "a", &["10.0.0.1"]), "group a has no member 10.0.0.1; see show groups"),
        ];
        for (patch, why) in refused {
            assert_eq!(told(&[patch]), why);
        }
    }
    /// Few and many at once are looked for in other ways.
    #[test]
    fn few_and_many_come_to_the_same() {
        let (add, del) = (Patch::GroupAdd as fn(_) -> _, Patch::GroupDel as fn(_) -> _);
        let all: Vec<String> = (0..3 * FEW).map(|n| format!("10.1.0.{n}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let one_by_one = |make: fn(GroupMembers) -> Patch| {
            all.iter().map(move |member| patch(make, "b", &[*member])).collect::<Vec<_>>()
        };
        assert_eq!(told(&[patch(add, "b", &all)]), told(&one_by_one(add)));
        let twice: Vec<&str> = all.iter().chain(&all).copied().collect();
        assert_eq!(told(&[patch(add, "b", &twice)]), told(&one_by_one(add)));
        let (there, gone) = (patch(add, "b", &all), patch(del, "b", &all[1..]));
        let mut few = one_by_one(add);
        few.extend(all[1..].chunks(FEW).map(|part| patch(del, "b", part)));
        assert_eq!(told(&[there.clone(), gone]), told(&few));
        assert_eq!(told(&few), "a: 10.0.0.0/8 group:b; b: group:c 10.1.0.0; c: ");
        let why = "group b has no member 10.1.0.0; see show groups";
        assert_eq!(told(&[there, patch(del, "b", &twice)]), why);
        assert_eq!(told(&[patch(add, "b", &["10.1.0.0"]), patch(del, "b", &["10.1.0.0", "10.1.0.0"])]), why);
    }

    #[test]
    fn what_has_changed_is_told_by_address() {
        let (add, del) = (Patch::GroupAdd as fn(_) -> _, Patch::GroupDel as fn(_) -> _);
        let after = |patches: &[Patch]| {
            let after =
                changed(&groups(), &Temporary::default(), patches).expect("it can be").expect("groups");
            let change =
                |change: &MemberChange| format!("{}: {:+} {}", change.group, change.more, change.range);
            (after.changes.iter().map(change).collect::<Vec<_>>().join(", "), after.is_nested_otherwise)
        };
        let known = [patch(add, "a", &["10.0.0.0/8", "10.0.0.1"]), patch(del, "a", &["10.0.0.0/8"])];
        assert_eq!(after(&known), (String::from("a: +1 10.0.0.1, a: -1 10.0.0.0/8"), false));
        assert_eq!(after(&[patch(add, "a", &["10.0.0.0/8", "group:b"])]), (String::new(), false));
        assert_eq!(after(&[patch(add, "a", &["group:c"])]), (String::new(), true));
        assert_eq!(after(&[patch(del, "b", &["group:c"])]), (String::new(), true));
    }

    /// Which members go by themselves, after each of several changes.
    #[test]
    fn a_member_goes_by_itself_until_somebody_says_otherwise() {
        let key = |member: &str| ("c".parse().expect("a name"), member.parse().expect("a member"));
        let mut known = Temporary::default();
        let mut groups = groups();
        let mut now = Vec::new();
        let change = |make: fn(GroupMembers) -> Patch, member: &str, ttl_s: Option<u32>| {
            let ttl_s = ttl_s.map(|seconds| crate::config::Seconds::new(seconds).expect("in range"));
            let members = vec![member.parse().expect("a member")];
            make(GroupMembers { group: "c".parse().expect("a name"), members, ttl_s })
        };
        let (add, del) = (Patch::GroupAdd as fn(_) -> _, Patch::GroupDel as fn(_) -> _);
        let (a, b) = ("192.0.2.1", "192.0.2.2");
        let steps: Vec<Vec<Patch>> = vec![
            vec![change(add, a, Some(60)), change(add, b, None)],
            vec![change(add, a, Some(90)), change(add, b, Some(90))],
            vec![change(add, a, None)],
            vec![change(add, a, Some(5)), change(del, b, None), change(add, b, Some(7))],
            vec![change(del, b, None), change(add, b, None)],
            vec![change(del, b, None), change(add, b, Some(8)), change(del, b, None)],
            vec![change(add, b, Some(8)), change(add, b, None)],
        ];
        for patches in steps {
            let after = changed(&groups, &known, &patches).expect("it can be").expect("groups");
            groups = after.groups;
            for (key, ttl) in after.temporary {
                known.set(key, ttl.map(|ttl| crate::time::Nanos(0).plus(ttl)));
            }
            let left = |member: &str| {
                let of = known.of(&key(member).0, crate::time::Nanos(0));
                of.iter().find(|(known, _)| **known == key(member).1).map(|(_, left)| left.as_secs())
            };
            now.push((left(a), left(b)));
        }
        let expected = [
            (Some(60), None), // b is there for good
            (Some(90), None), // a later, b still
            (None, None),     // a for good
            (None, Some(7)),  // a still; b is a new one
            (None, None),
            (None, None),
            (None, None),
        ];
        assert_eq!(now, expected);
        let refused = changed(&groups, &known, &[change(del, a, Some(5))]);
        assert_eq!(refused.unwrap_err().to_string(), "ttl_s: what is taken out goes at once");
    }
}
