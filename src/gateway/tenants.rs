//! Whom the things of the config belong to: which VRFs and zones they have to do with.

use ahash::AHashSet;

use crate::config::{Config, GroupName, InterfaceName, Member, Name, Side, ZoneName};
use crate::control::{Belongs, Object};

/// Whom something belongs to; what there is not, to everybody.
pub fn belongs(config: &Config, object: Object<'_>) -> Belongs {
    match object {
        Object::Vrf(vrf) => Belongs::to_vrf(vrf),
        Object::Zone(zone) => of_zone(config, zone),
        Object::Interface(name) => of_interface(config, name),
        Object::Service(name) => {
            let found = config.services.iter().find(|service| service.name == *name);
            found.map_or_else(Belongs::default, |service| {
                let others = service.backends.iter().filter_map(|backend| backend.vrf.as_ref());
                let vrfs = std::iter::once(&service.vrf).chain(others).cloned().collect();
                Belongs { vrfs, ..Belongs::default() }
            })
        }
        Object::Group(name) => of_group(config, name),
        Object::Rule(name) => {
            let found = config.rules.iter().find(|rule| rule.name == *name);
            found.map_or_else(Belongs::default, |rule| {
                of_side(config, &rule.from).and(of_side(config, &rule.to))
            })
        }
        Object::NewRule(name) => {
            let is_new = !config.admin_rules.iter().chain(&config.rules).any(|rule| rule.name == *name);
            if is_new {
                Belongs { is_new, ..Belongs::default() }
            } else {
                belongs(config, Object::Rule(name))
            }
        }
        Object::Side(side) => of_side(config, side),
        Object::Bridge(name) => {
            let own = config.interfaces.iter().find(|interface| interface.bridge.as_ref() == Some(name));
            own.map_or_else(Belongs::default, |interface| of_interface(config, &interface.name))
        }
    }
}

fn of_zone(config: &Config, zone: &ZoneName) -> Belongs {
    let within = config.interfaces.iter().filter(|interface| interface.zone.as_ref() == Some(zone));
    let vrfs: AHashSet<_> = within.map(|interface| interface.vrf.clone()).collect();
    let mut members = config.bridges.iter().flat_map(|bridge| &bridge.members);
    // Members of bridges are of no VRF.
    let is_of_members = members.any(|member| member.zone.as_ref() == Some(zone));
    let vrfs = if is_of_members { Vec::new() } else { vrfs.into_iter().collect() };
    Belongs { vrfs, zones: Some(vec![zone.clone()]), is_new: false }
}

fn of_interface(config: &Config, name: &InterfaceName) -> Belongs {
    let found = config.interfaces.iter().find(|interface| interface.name == *name);
    found.map_or_else(Belongs::default, |interface| Belongs {
        vrfs: vec![interface.vrf.clone()],
        zones: interface.zone.clone().map(|zone| vec![zone]),
        is_new: false,
    })
}

/// Where what a side matches may come from or go to. The gateway itself is everybody's.
fn of_side(config: &Config, side: &Side) -> Belongs {
    let any = Belongs { vrfs: Vec::new(), zones: Some(Vec::new()), is_new: false };
    if side.is_self() {
        return any;
    }
    let mut all = match (&side.interface, &side.zone) {
        (Some(interface), _) => of_interface(config, interface),
        (None, Some(zone)) => of_zone(config, zone),
        (None, None) => any,
    };
    if let Some(vrf) = &side.vrf {
        all.vrfs = vec![vrf.clone()];
    }
    all
}

/// Whoever uses a group has to do with it, and with those in it; one that nobody uses is nobody's, as what is anybody's.
fn of_group(config: &Config, name: &GroupName) -> Belongs {
    let mut all: Option<Belongs> = None;
    let mut add = |belongs: Belongs| {
        all = Some(match all.take() {
            Some(before) => before.and(belongs),
            None => belongs,
        });
    };
    let (mut names, mut next): (Vec<&GroupName>, usize) = (vec![name], 0);
    while let Some(name) = names.get(next).copied() {
        next += 1;
        let is_used = |side: &Side| side.group.as_ref() == Some(name);
        for rule in config.admin_rules.iter().chain(&config.rules) {
            [&rule.from, &rule.to].into_iter().filter(|side| is_used(side)).for_each(|side| {
                add(of_side(config, side));
            });
        }
        let mut of_nat = |side: &Side, vrf: &Name| {
            if is_used(side) {
                let said = of_side(config, side);
                let is_any = side.vrf.is_none() && side.interface.is_none() && side.zone.is_none();
                add(if is_any { Belongs { vrfs: vec![vrf.clone()], ..said } } else { said });
            }
        };
        let nat = &config.nat;
        for rule in &nat.sources {
            of_nat(&rule.from, &rule.vrf);
            of_nat(&rule.to, &rule.vrf);
        }
        nat.destinations.iter().for_each(|rule| of_nat(&rule.from, &rule.vrf));
        nat.statics.iter().for_each(|rule| of_nat(&rule.to, &rule.vrf));
        nat.nptv6.iter().for_each(|rule| of_nat(&rule.to, &rule.vrf));
        nat.nat64.iter().for_each(|rule| of_nat(&rule.from, &rule.vrf));
        for outer in &config.groups {
            let holds = |member: &Member| matches!(member, Member::Group(inner) if inner == name);
            if outer.members.iter().any(holds) && !names.contains(&&outer.name) {
                names.push(&outer.name);
            }
        }
    }
    all.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
schema = 1
[[port]]
name = "p"
device = "eth1"
[[interface]]
name = "blue-in"
port = "p"
vlan = 1
vrf = "blue"
zone = "blue-hosts"
addresses = ["10.0.1.1/24"]
[[interface]]
name = "blue-out"
port = "p"
vlan = 2
vrf = "blue"
zone = "blue-uplink"
addresses = ["10.0.2.1/24"]
[[interface]]
name = "red-in"
port = "p"
vlan = 3
vrf = "red"
zone = "red-hosts"
addresses = ["10.0.1.1/24"]
[[group]]
name = "inner"
members = ["10.0.1.5"]
[[group]]
name = "blue-only"
members = ["group:inner"]
[[group]]
name = "shared"
members = []
[[group]]
name = "unused"
members = []
[[group]]
name = "everywhere"
members = []
[[rule]]
name = "blue"
action = "allow"
from = { zone = "blue-hosts", group = "blue-only" }
to = { zone = "blue-uplink", group = "shared" }
[[rule]]
name = "red"
action = "deny"
from = { interface = "red-in", group = "shared" }
to = { group = "everywhere" }
[[service]]
name = "shop"
vrf = "blue"
address = "192.0.2.1"
service = "tcp/80"
backends = []
"#;

    #[test]
    fn things_belong_to_whoever_has_to_do_with_them() {
        let config = Config::parse(CONFIG, "tenants.toml").expect("a config");
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let of = |object: Object<'_>| {
            let Belongs { mut vrfs, zones, .. } = belongs(&config, object);
            vrfs.sort();
            vrfs.dedup();
            let words = |names: &[Name]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            (words(&vrfs), zones.map(|zones| words(&zones)))
        };
        let zones = |text: &str| Some(text.to_owned());
        assert_eq!(of(Object::Service(&name("shop"))), ("blue".into(), None));
        assert_eq!(of(Object::Service(&name("none"))), (String::new(), None));
        assert_eq!(of(Object::Interface(&name("red-in"))), ("red".into(), zones("red-hosts")));
        assert_eq!(of(Object::Zone(&name("blue-hosts"))), ("blue".into(), zones("blue-hosts")));
        assert_eq!(of(Object::Group(&name("blue-only"))), ("blue".into(), zones("blue-hosts")));
        assert_eq!(
            of(Object::Group(&name("inner"))),
            ("blue".into(), zones("blue-hosts")),
            "by the one around it"
        );
        assert_eq!(of(Object::Group(&name("shared"))), ("blue red".into(), zones("blue-uplink red-hosts")));
        assert_eq!(of(Object::Group(&name("unused"))), (String::new(), None), "nobody's");
        assert_eq!(of(Object::Group(&name("everywhere"))), (String::new(), zones("")), "anybody's");
        assert_eq!(of(Object::Rule(&name("blue"))), ("blue".into(), zones("blue-hosts blue-uplink")));
        assert_eq!(of(Object::Rule(&name("red"))), (String::new(), zones("")), "its other side is anything");
    }
}
