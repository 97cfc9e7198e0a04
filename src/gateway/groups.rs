//! Members of groups that come and go while the gateway runs.

use std::sync::Arc;

use ahash::AHashSet;

use crate::config::{Group, GroupName, Member};
use crate::control::{Fault, GroupMembers, Patch};

/// Changes of a group at once, beyond which its members are listed by hash: less than that is quicker found by looking
/// at them all.
const FEW: usize = 8;

/// The groups after these changes, those that none of them names as they were; `None` where none of the changes is of
/// groups.
pub(super) fn changed(groups: &[Arc<Group>], patches: &[Patch]) -> Result<Option<Vec<Arc<Group>>>, Fault> {
    let mut new: Option<Vec<Arc<Group>>> = None;
    for patch in patches {
        let (change, is_added) = match patch {
            Patch::GroupAdd(change) => (change, true),
            Patch::GroupDel(change) => (change, false),
            Patch::RouteAdd(_) | Patch::RouteDel(_) | Patch::NeighbourAdd(_) | Patch::NeighbourDel(_) => {
                continue;
            }
        };
        let new = new.get_or_insert_with(|| groups.to_vec());
        if is_added { add(new, change)? } else { delete(new, change)? }
    }
    Ok(new)
}

fn at(groups: &[Arc<Group>], name: &GroupName) -> Result<usize, Fault> {
    let found = groups.iter().position(|group| group.name == *name);
    found.ok_or_else(|| Fault::not_found(format!("no group {name}: groups are made by the config")))
}

fn add(groups: &mut [Arc<Group>], change: &GroupMembers) -> Result<(), Fault> {
    let GroupMembers { group: name, members } = change;
    let group = at(groups, name)?;
    // Inner groups that were looked into: what comes in here does not change what they hold.
    let mut looked_into: AHashSet<&GroupName> = AHashSet::new();
    for member in members {
        if let Member::Group(inner) = member
            && looked_into.insert(inner)
            && holds(groups, at(groups, inner)?, name)
        {
            let message = format!("group {name}: {member}: a group cannot contain itself");
            return Err(Fault::refused(message));
        }
    }
    let old = &groups[group].members;
    let new: Vec<Member> = if members.len() <= FEW {
        let is_first = |at: usize| !members[..at].contains(&members[at]) && !old.contains(&members[at]);
        (0..members.len()).filter(|at| is_first(*at)).map(|at| members[at].clone()).collect()
    } else {
        let mut known: AHashSet<&Member> = old.iter().collect();
        members.iter().filter(|member| known.insert(member)).cloned().collect()
    };
    if !new.is_empty() {
        Arc::make_mut(&mut groups[group]).members.extend(new);
    }
    Ok(())
}

fn delete(groups: &mut [Arc<Group>], change: &GroupMembers) -> Result<(), Fault> {
    let GroupMembers { group: name, members } = change;
    let group = at(groups, name)?;
    let unknown = |member| Fault::not_found(format!("group {name} has no member {member}; see show groups"));
    if members.len() <= FEW {
        let mut left = groups[group].members.clone();
        for member in members {
            if !left.contains(member) {
                return Err(unknown(member));
            }
            left.retain(|known| known != member);
        }
        groups[group] = Arc::new(Group { name: name.clone(), members: left });
        return Ok(());
    }
    let known: AHashSet<&Member> = groups[group].members.iter().collect();
    let mut gone = AHashSet::with_capacity(members.len());
    for member in members {
        if !known.contains(member) || !gone.insert(member) {
            return Err(unknown(member));
        }
    }
    let left = groups[group].members.iter().filter(|member| !gone.contains(member)).cloned().collect();
    groups[group] = Arc::new(Group { name: name.clone(), members: left });
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
        make(GroupMembers { group: group.parse().expect("a name"), members })
    }

    fn told(patches: &[Patch]) -> String {
        match changed(&groups(), patches) {
            Ok(None) => String::from("nothing"),
            Ok(Some(groups)) => {
                let shown = groups.iter().map(|group| {
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
}
