//! Who may ask for what: the roles of the config, and whom the things that a request names belong to.

use std::fmt;

use ahash::AHashSet;

use super::Backend;
use super::request::{Patch, Request};
use super::rpc::{Fault, FaultKind};
use crate::config::{GroupName, InterfaceName, Member, Name, Role, RuleName, Side, VrfName, ZoneName};

/// Different things that a tenant may name in one change.
const MOST_THINGS: usize = 256;

/// Who is at the other end, as the kernel says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// User.
    pub uid: u32,
    /// Groups of the user, the first one first.
    pub gids: Vec<u32>,
    /// Process.
    pub pid: i32,
}

/// Something that belongs to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Object<'a> {
    /// A VRF.
    Vrf(&'a VrfName),
    /// A zone.
    Zone(&'a ZoneName),
    /// An interface.
    Interface(&'a InterfaceName),
    /// A service.
    Service(&'a RuleName),
    /// A group of addresses.
    Group(&'a GroupName),
    /// A rule.
    Rule(&'a RuleName),
    /// A rule that may not be there yet: then it is whose it will be.
    NewRule(&'a RuleName),
    /// One side of a new rule.
    Side(&'a Side),
    /// A bridge.
    Bridge(&'a Name),
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Vrf(name) => write!(f, "vrf {name}"),
            Object::Zone(name) => write!(f, "zone {name}"),
            Object::Interface(name) => write!(f, "interface {name}"),
            Object::Service(name) => write!(f, "service {name}"),
            Object::Group(name) => write!(f, "group {name}"),
            Object::Rule(name) | Object::NewRule(name) => write!(f, "rule {name}"),
            Object::Side(_) => f.write_str("what the rule names"),
            Object::Bridge(name) => write!(f, "bridge {name}"),
        }
    }
}

/// Whom something belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Belongs {
    /// All VRFs it has to do with; none: it may have to do with any.
    pub vrfs: Vec<VrfName>,
    /// All zones it has to do with; none: with any. `None`: it has nothing to do with zones.
    pub zones: Option<Vec<ZoneName>>,
    /// It is not there yet, and will be whoever's makes it.
    pub is_new: bool,
}

impl Belongs {
    /// To one VRF, whatever the zone.
    pub fn to_vrf(vrf: &VrfName) -> Belongs {
        Belongs { vrfs: vec![vrf.clone()], ..Belongs::default() }
    }

    /// To whom the one and the other belong.
    pub fn and(mut self, other: Belongs) -> Belongs {
        let any = self.vrfs.is_empty() || other.vrfs.is_empty();
        self.vrfs = if any { Vec::new() } else { [self.vrfs, other.vrfs].concat() };
        self.zones = match (self.zones, other.zones) {
            (None, zones) | (zones, None) => zones,
            (Some(one), Some(other)) if one.is_empty() || other.is_empty() => Some(Vec::new()),
            (Some(one), Some(other)) => Some([one, other].concat()),
        };
        self
    }

    /// True if it is the role's alone.
    fn is_of(&self, role: &Role) -> bool {
        if self.is_new {
            return true;
        }
        let within = |all: &[Name], of: &[Name]| !all.is_empty() && all.iter().all(|name| of.contains(name));
        let in_vrfs = role.vrfs.is_empty() || within(&self.vrfs, &role.vrfs);
        let in_zones = role.zones.is_empty()
            || self.zones.as_ref().map_or(!role.vrfs.is_empty(), |zones| within(zones, &role.zones));
        in_vrfs && in_zones
    }
}

/// What a request asks for, in the words of [`crate::config::ASKABLE`]; `None`: what [`asked_by`] says of the change that
/// it is, or something that whoever may do anything may do.
pub(crate) fn asked_for(request: &Request) -> Option<&'static str> {
    Some(match request {
        Request::Ping {} | Request::Begin {} | Request::Abort {} | Request::Commit { .. } => return None,
        Request::ShowVersion {} => "show version",
        Request::ShowPorts {} => "show ports",
        Request::ShowInterfaces {} => "show interfaces",
        Request::ShowRoutes(_) => "show routes",
        Request::ShowNeighbours { .. } => "show neighbours",
        Request::ShowCounters {} => "show counters",
        Request::ShowDrops {} => "show drops",
        Request::ShowWorkers {} => "show workers",
        Request::ShowDhcpRelays {} => "show dhcp-relays",
        Request::ShowSessions(_) => "show sessions",
        Request::ShowNat {} => "show nat",
        Request::ShowMappings(_) => "show nat mappings",
        Request::ShowRules { .. } => "show rules",
        Request::ShowServices(_) => "show services",
        Request::ShowBridges {} => "show bridges",
        Request::ShowMacs(_) => "show macs",
        Request::ShowGroups { .. } => "show groups",
        Request::ShowHa {} => "show ha",
        Request::Drain(_) => "drain",
        Request::DrainCancel {} => "drain cancel",
        Request::Upgrade(_) => "upgrade",
        Request::NatMap(_) => "nat map",
        Request::NatFind(_) => "nat find",
        Request::DropsExport {} => "drops export",
        Request::ShowConvergence(_) => "show convergence",
        Request::ShowPairCommit { .. } => "show pair-commit",
        Request::ShowRevisions {} => "show revisions",
        Request::ShowRevision(_) => "show revision",
        Request::Rollback { .. } => "rollback",
        Request::Confirm { .. } => "confirm",
        Request::Explain(_) => "explain",
        Request::Reach(_) => "reach",
        Request::Preview(_) => "preview",
        Request::ClearSessions(_) => "clear sessions",
        Request::BridgeAddMacs(_) => "bridge add-macs",
        Request::BridgeDelMacs(_) => "bridge del-macs",
        Request::BridgeOpen(_) => "bridge open",
        Request::Upload { .. } | Request::Apply { .. } => "apply",
        Request::RouteAdd { .. }
        | Request::RouteDel { .. }
        | Request::NeighbourAdd { .. }
        | Request::NeighbourDel { .. }
        | Request::GroupAdd(_)
        | Request::GroupDel(_)
        | Request::RuleAdd(_)
        | Request::RuleDel { .. }
        | Request::ServiceSetBackends(_)
        | Request::ServiceDelBackends(_)
        | Request::ServiceSetBackend(_) => return None,
    })
}

/// What a change asks for.
pub(crate) fn asked_by(patch: &Patch) -> &'static str {
    match patch {
        Patch::RouteAdd(_) => "route add",
        Patch::RouteDel(_) => "route del",
        Patch::NeighbourAdd(_) => "neighbour add",
        Patch::NeighbourDel(_) => "neighbour del",
        Patch::GroupAdd(_) => "group add",
        Patch::GroupDel(_) => "group del",
        Patch::RuleAdd(_) => "rule add",
        Patch::RuleDel(_) => "rule del",
        Patch::ServiceSetBackends(_) => "service set-backends",
        Patch::ServiceDelBackends(_) => "service del-backends",
        Patch::ServiceSetBackend(_) => "service set-backend",
    }
}

/// What a request is about that is no change of the config; none: about the gateway as a whole.
pub(crate) fn objects_of(request: &Request) -> Vec<Object<'_>> {
    fn one(object: Option<Object<'_>>) -> Vec<Object<'_>> {
        object.into_iter().collect()
    }
    match request {
        Request::ShowRoutes(query) => one(query.vrf.as_ref().map(Object::Vrf)),
        Request::ShowNeighbours { interface } => one(interface.as_ref().map(Object::Interface)),
        Request::ShowSessions(query) => of_filter(&query.filter),
        Request::ClearSessions(query) => of_filter(&query.filter),
        Request::ShowMappings(query) => one(query.vrf.as_ref().map(Object::Vrf)),
        Request::NatMap(query) => one(query.vrf.as_ref().map(Object::Vrf)),
        Request::NatFind(query) => one(query.vrf.as_ref().map(Object::Vrf)),
        Request::ShowServices(query) => one(query.service.as_ref().map(Object::Service)),
        Request::Explain(query) => {
            one(query.packet.as_ref().and_then(|packet| packet.interface.as_ref()).map(Object::Interface))
        }
        Request::ShowGroups { group } => one(group.as_ref().map(Object::Group)),
        Request::ShowMacs(query) => one(query.bridge.as_ref().map(Object::Bridge)),
        Request::BridgeAddMacs(added) => vec![Object::Bridge(&added.bridge)],
        Request::BridgeDelMacs(removed) => vec![Object::Bridge(&removed.bridge)],
        Request::BridgeOpen(opened) => vec![Object::Bridge(&opened.bridge)],
        _ => Vec::new(),
    }
}

/// Sessions are those of a tenant that are so on one side at least.
fn of_filter(filter: &super::SessionFilter) -> Vec<Object<'_>> {
    let zones = [&filter.zone, &filter.from_zone, &filter.to_zone].into_iter().flatten().map(Object::Zone);
    filter.vrf.iter().map(Object::Vrf).chain(zones).collect()
}

/// What a change is about, each once; none: about the gateway as a whole.
pub(crate) fn objects_of_patch(patch: &Patch) -> Vec<Object<'_>> {
    match patch {
        Patch::RouteAdd(routes) => {
            let hops = routes.iter().flat_map(|route| route.target.next_hops());
            let others = hops.filter_map(|hop| hop.vrf.as_ref());
            routes.iter().map(|route| &route.vrf).chain(others).map(Object::Vrf).collect()
        }
        Patch::RouteDel(routes) => routes.iter().map(|route| Object::Vrf(&route.vrf)).collect(),
        Patch::NeighbourAdd(added) => added.iter().map(|one| Object::Interface(&one.interface)).collect(),
        Patch::NeighbourDel(keys) => keys.iter().map(|one| Object::Interface(&one.interface)).collect(),
        Patch::GroupAdd(change) | Patch::GroupDel(change) => {
            let inner = change.members.iter().filter_map(|member| match member {
                Member::Group(name) => Some(name),
                Member::Addresses(_) => None,
            });
            // Whoever takes in a group has to do with it from then on.
            std::iter::once(&change.group).chain(inner).map(Object::Group).collect()
        }
        // Before all rules of everybody.
        Patch::RuleAdd(addition) if addition.admin => Vec::new(),
        Patch::RuleAdd(addition) => {
            let sides = [&addition.rule.from, &addition.rule.to];
            let groups = sides.into_iter().filter_map(|side| side.group.as_ref());
            // One of the same name would be replaced, and before another would go first.
            let named = std::iter::once(&addition.rule.name).map(Object::NewRule);
            let before = addition.before.iter().map(Object::Rule);
            named.chain(before).chain(groups.map(Object::Group)).chain(sides.map(Object::Side)).collect()
        }
        Patch::RuleDel(rules) => rules.iter().map(Object::Rule).collect(),
        Patch::ServiceSetBackends(all) => {
            let others = all.backends.iter().filter_map(|backend| backend.vrf.as_ref()).map(Object::Vrf);
            std::iter::once(Object::Service(&all.service)).chain(others).collect()
        }
        Patch::ServiceDelBackends(removed) => vec![Object::Service(&removed.service)],
        Patch::ServiceSetBackend(change) => vec![Object::Service(&change.service)],
    }
}

/// The role by which `peer` may do that; `None`: it may do everything.
pub(crate) fn check(
    backend: &dyn Backend,
    peer: &Peer,
    asked: &str,
    objects: &[Object<'_>],
) -> Result<Option<Name>, Fault> {
    let roles = backend.roles();
    // Whoever could replace the gateway, or end it.
    let own_uid = rustix::process::getuid().as_raw();
    if roles.is_empty() || peer.uid == 0 || peer.uid == own_uid {
        return Ok(None);
    }
    let mut own = roles.iter().filter(|role| has(peer, role)).peekable();
    if own.peek().is_none() {
        let message =
            format!("user {} has no role: add its uid, or one of its groups' gid, to a [[role]]", peer.uid);
        return Err(forbidden(message));
    }
    let mut why = String::new();
    for role in own {
        let name = &role.name;
        if !role.may(asked) {
            why = format!("role {name} does not include {asked:?}: its `may` would have to");
            continue;
        }
        if !role.is_bounded() {
            return Ok(Some(name.clone()));
        }
        let to = bounds(role);
        // Each is looked for in the whole config.
        let different: AHashSet<&Object<'_>> = objects.iter().collect();
        if different.len() > MOST_THINGS {
            why =
                format!("role {name} is for {to} only, and may name {MOST_THINGS} different things at once");
            continue;
        }
        match different.into_iter().find(|object| !backend.belongs(**object).is_of(role)) {
            None if objects.is_empty() => {
                why = format!(
                    "role {name} is for {to} only, and {asked:?} is about everybody: name what is meant"
                );
            }
            None => return Ok(Some(name.clone())),
            Some(other) => why = format!("role {name} is for {to} only, and {other} is not of it alone"),
        }
    }
    Err(forbidden(why))
}

/// True if the role is one of `peer`'s.
fn has(peer: &Peer, role: &Role) -> bool {
    role.uids.contains(&peer.uid) || role.gids.iter().any(|gid| peer.gids.contains(gid))
}

fn bounds(role: &Role) -> String {
    let list = |what: &str, names: &[Name]| {
        names.iter().map(|name| format!("{what} {name}")).collect::<Vec<_>>().join(", ")
    };
    let both = [list("vrf", &role.vrfs), list("zone", &role.zones)];
    both.into_iter().filter(|list| !list.is_empty()).collect::<Vec<_>>().join(" and ")
}

fn forbidden(message: String) -> Fault {
    Fault::new(FaultKind::Forbidden, message)
}

#[cfg(test)]
mod tests {
    use super::super::audit::Audit;
    use super::super::inspect::Cleared;
    use super::super::reply::{Changed, Reply};
    use super::super::server::Limits;
    use super::super::session::{Session, Shared, Turn};
    use super::*;
    use crate::config::ASKABLE;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn names(all: &[&str]) -> Vec<Name> {
        all.iter().map(|text| name(text)).collect()
    }

    #[test]
    fn what_belongs_to_several_is_of_who_has_all_of_them() {
        let role = |vrfs: &[&str], zones: &[&str]| Role {
            name: name("r"),
            uids: vec![1],
            gids: vec![],
            may: vec![],
            vrfs: names(vrfs),
            zones: names(zones),
        };
        let of = |vrfs: &[&str], zones: Option<&[&str]>| Belongs {
            vrfs: names(vrfs),
            zones: zones.map(names),
            is_new: false,
        };
        let blue = of(&["blue"], None);
        assert!(blue.is_of(&role(&["blue"], &[])) && blue.is_of(&role(&["red", "blue"], &[])));
        assert!(!blue.is_of(&role(&["red"], &[])));
        assert!(blue.is_of(&role(&["blue"], &["web"])), "it has no zone");
        assert!(!blue.is_of(&role(&[], &["web"])), "only zones are its own");
        let web = of(&["blue"], Some(&["web"]));
        assert!(web.is_of(&role(&[], &["web"])) && !web.is_of(&role(&["blue"], &["db"])));
        assert!(!of(&["blue"], Some(&[])).is_of(&role(&["blue"], &["web"])), "any zone");
        assert!(!of(&[], None).is_of(&role(&["blue"], &[])), "any VRF");
        let both = blue.clone().and(of(&["red"], None));
        assert!(!both.is_of(&role(&["blue"], &[])) && both.is_of(&role(&["red", "blue"], &[])));
        assert!(!blue.and(of(&[], None)).is_of(&role(&["blue"], &[])), "and any");
    }

    #[test]
    fn all_that_can_be_asked_for_is_a_right() {
        let error =
            serde_json::from_str::<Request>(r#"{"method":"?"}"#).expect_err("no such method").to_string();
        let methods: Vec<&str> = error.split('`').skip(3).step_by(2).collect();
        let free = ["ping", "begin", "commit", "abort", "upload"];
        let asked =
            methods.iter().filter(|method| !free.contains(method)).map(|method| method.replace('.', " "));
        let (mut asked, mut rights): (Vec<String>, _) =
            (asked.collect(), ASKABLE.map(str::to_owned).to_vec());
        asked.sort();
        rights.sort();
        assert_eq!(asked, rights);
    }

    struct Gateway(crate::config::Config);

    impl Backend for Gateway {
        fn execute(&mut self, request: Request) -> Result<Reply, Fault> {
            Ok(match request {
                Request::ClearSessions(_) => Reply::Cleared(Cleared { ended: 2, next: None }),
                Request::Commit { .. } | Request::Apply { .. } => Reply::Changed(Changed::default()),
                _ => Reply::Pong {},
            })
        }

        fn waiting_for(&self) -> Option<u32> {
            Some(1003)
        }
        fn roles(&self) -> Vec<Role> {
            self.0.roles.clone()
        }

        fn belongs(&self, object: Object<'_>) -> Belongs {
            crate::gateway::tenants::belongs(&self.0, object)
        }
    }

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
zone = "web"
addresses = ["10.0.1.1/24"]
[[interface]]
name = "red-in"
port = "p"
vlan = 2
vrf = "red"
zone = "db"
addresses = ["10.0.1.1/24"]
[[service]]
name = "shop"
vrf = "blue"
address = "192.0.2.1"
service = "tcp/80"
backends = []
[[service]]
name = "bank"
vrf = "red"
address = "192.0.2.1"
service = "tcp/80"
backends = []
[[group]]
name = "blue-hosts"
members = ["10.0.1.5"]
[[group]]
name = "red-list"
members = ["10.0.1.6"]
[[group]]
name = "unused"
members = []
[[rule]]
name = "blue-rule"
action = "allow"
from = { zone = "web", group = "blue-hosts" }
to = { zone = "web" }
[[rule]]
name = "red-rule"
action = "deny"
from = { zone = "db", group = "red-list" }
to = { zone = "db" }
[[role]]
name = "eyes"
uids = [1000]
may = ["viewer"]
[[role]]
name = "blue-automation"
uids = [1001]
may = ["show", "clear", "service set-backends", "route", "rule", "neighbour", "group"]
vrfs = ["blue"]
[[role]]
name = "hands"
gids = [500]
may = ["operator"]
[[role]]
name = "chief"
gids = [600]
may = ["admin"]
[[role]]
name = "web-only"
uids = [1002]
may = ["rule", "clear"]
zones = ["web"]
"#;

    /// What a user's requests come to: `result`, or the error's code and message.
    fn ask(
        uid: u32,
        gids: &[u32],
        audit: Option<Audit>,
        requests: &[&str],
    ) -> Vec<Result<(), (i64, String)>> {
        let mut gateway = Gateway(crate::config::Config::parse(CONFIG, "roles.toml").expect("a config"));
        let mut session = Session::new(Peer { uid, gids: gids.to_vec(), pid: 7 });
        let (mut shared, limits) = (Shared { audit, ..Shared::default() }, Limits::default());
        for request in requests {
            session.push(format!(r#"{{"jsonrpc":"2.0","id":1,{request}}}"#).as_bytes());
            session.push(b"\n");
        }
        while session.run(&mut gateway, &mut shared, &limits) == Turn::More {}
        let lines = String::from_utf8(session.unsent().to_vec()).expect("text");
        let answers = lines.lines().map(|line| {
            let answer: serde_json::Value = serde_json::from_str(line).expect("JSON");
            match answer.get("error") {
                None => Ok(()),
                Some(error) => {
                    let message = error["message"].as_str().expect("words").to_owned();
                    Err((error["code"].as_i64().expect("a code"), message))
                }
            }
        });
        answers.collect()
    }

    const SET: &str = r#""method":"service.set-backends","params":{"service":"S","backends":[]}"#;
    const ROUTE: &str = r#""method":"route.add","params":{"routes":[["192.0.2.0/24","VIA","VRF"]]}"#;
    const RULE: &str = r#""method":"rule.add","params":{"rule":{"name":"n","action":"allow","from":FROM,"to":{"zone":"web"}},"admin":ADMIN}"#;
    const GROUP: &str = r#""method":"group.add","params":{"group":"NAME","members":["MEMBER"]}"#;
    const CLEAR: &str = r#""method":"clear.sessions","params":{"filter":FILTER}"#;

    #[test]
    fn roles_allow_what_they_say_and_no_more() {
        let set = |service: &str| SET.replace('S', service);
        let route = |via: &str, vrf: &str| ROUTE.replace("VIA", via).replace("VRF", vrf);
        let rule = |from: &str, admin: &str| RULE.replace("FROM", from).replace("ADMIN", admin);
        let group = |name: &str, member: &str| GROUP.replace("NAME", name).replace("MEMBER", member);
        let clear = |filter: &str| CLEAR.replace("FILTER", filter);
        let show = |what: &str, params: &str| format!(r#""method":"show.{what}","params":{params}"#);
        let (ping, version) = (r#""method":"ping""#.to_owned(), show("version", "{}"));
        let apply = r#""method":"apply","params":{"file_name":"x","text":"x"}"#.to_owned();
        let upload = r#""method":"upload","params":{"name":"","text":"x"}"#.to_owned();
        let preview = r#""method":"preview","params":{"text":"x"}"#.to_owned();
        let blue = r#"{"zone":"web"}"#;
        // User, groups, request, and the words that it is refused with.
        let cases: Vec<(u32, &[u32], String, &str)> = vec![
            (0, &[], apply.clone(), ""),
            (1003, &[7], version.clone(), "user 1003 has no role"),
            (1003, &[7], set("shop"), "user 1003 has no role"),
            (1003, &[7], ping.clone(), ""),
            (1000, &[], version.clone(), ""),
            (1000, &[], show("sessions", "{}"), ""),
            (1000, &[], set("shop"), "role eyes does not include \"service set-backends\""),
            (1000, &[], apply.clone(), "does not include \"apply\""),
            (1000, &[], upload.clone(), "does not include \"apply\""),
            (1000, &[], preview.clone(), "role eyes does not include \"preview\""),
            (1000, &[7, 500], set("bank"), ""),
            (1000, &[7, 500], upload.clone(), ""),
            (1000, &[7, 500], preview.clone(), ""),
            (1001, &[], preview, "does not include \"preview\""),
            (1000, &[7, 500], apply.clone(), "does not include"),
            (1000, &[600], apply, ""),
            (1000, &[600], upload, ""),
            (1001, &[], set("shop"), ""),
            (
                1001,
                &[],
                set("bank"),
                "role blue-automation is for vrf blue only, and service bank is not of it alone",
            ),
            (1001, &[], set("none"), "service none is not of it alone"),
            (
                1001,
                &[],
                set("shop").replace("[]", r#"[{"address":"10.0.0.1","vrf":"red"}]"#),
                "vrf red is not of it",
            ),
            (1001, &[], route("10.0.1.2", "blue"), ""),
            (1001, &[], route("10.0.1.2", "red"), "vrf red is not of it"),
            (1001, &[], route("10.0.1.2@red", "blue"), "vrf red is not of it"),
            (1001, &[], version, "is about everybody: name what is meant"),
            (1001, &[], show("sessions", "{}"), "is about everybody"),
            (1001, &[], show("sessions", r#"{"filter":{"vrf":"blue"}}"#), ""),
            (1001, &[], show("routes", r#"{"vrf":"red"}"#), "vrf red is not of it"),
            (1001, &[], show("neighbours", r#"{"interface":"blue-in"}"#), ""),
            (1001, &[], show("neighbours", r#"{"interface":"red-in"}"#), "interface red-in is not of it"),
            (1001, &[], clear(r#"{"vrf":"blue"}"#), ""),
            (1001, &[], clear(r#"{"rule":"x"}"#), "is about everybody"),
            (1001, &[], rule(blue, "false"), ""),
            (1001, &[], rule(blue, "true"), "is about everybody"),
            (1001, &[], rule(blue, "false").replace(r#""n""#, r#""blue-rule""#), ""),
            (1001, &[], rule(blue, "false").replace(r#""n""#, r#""red-rule""#), "rule red-rule is not of it"),
            (1001, &[], rule(r#"{"zone":"web","group":"blue-hosts"}"#, "false"), ""),
            (1001, &[], rule(r#"{"zone":"web","group":"red-list"}"#, "false"), "group red-list is not of it"),
            (1001, &[], rule(r#"{"zone":"web","group":"unused"}"#, "false"), "group unused is not of it"),
            (1001, &[], group("blue-hosts", "10.0.1.7"), ""),
            (1001, &[], group("blue-hosts", "group:red-list"), "group red-list is not of it"),
            (1001, &[], group("red-list", "10.0.1.7"), "group red-list is not of it"),
            (1001, &[], rule("{}", "false"), "what the rule names is not of it alone"),
            (1001, &[], rule(r#"{"zone":"db"}"#, "false"), "what the rule names is not of it alone"),
            (1001, &[], rule(r#"{"zone":"self"}"#, "false"), "what the rule names is not of it alone"),
            (1002, &[], rule(blue, "false"), ""),
            (1002, &[], rule(r#"{"zone":"db"}"#, "false"), "role web-only is for zone web only"),
            (1002, &[], clear(r#"{"zone":"web"}"#), ""),
            (1002, &[], clear(r#"{"vrf":"blue"}"#), "vrf blue is not of it"),
        ];
        for (uid, gids, request, refused) in cases {
            let answer = ask(uid, gids, None, &[&request]).remove(0);
            match (answer, refused) {
                (Ok(()), "") => {}
                (Err((-32004, why)), words) if !words.is_empty() && why.contains(words) => {}
                (answer, _) => panic!("{uid} {gids:?} {request}: {answer:?}, not {refused:?}"),
            }
        }
    }

    #[test]
    fn one_refusal_spoils_the_transaction() {
        let begin = r#""method":"begin""#;
        let commit = r#""method":"commit""#;
        let (own, other) = (SET.replace('S', "shop"), SET.replace('S', "bank"));
        let answers = ask(1001, &[], None, &[begin, &own, commit]);
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        let answers = ask(1001, &[], None, &[begin, &own, &other, &own, commit]);
        let failed: Vec<bool> = answers.iter().map(Result::is_err).collect();
        assert_eq!(failed, [false, false, true, true, true]);
    }

    #[test]
    fn to_keep_everybody_waiting_takes_the_right_to_confirm_one_s_own() {
        let (begin, set) = (r#""method":"begin""#, SET.replace('S', "shop"));
        let commit = r#""method":"commit","params":{"confirm_s":60}"#;
        let last = |uid: u32, gids: &[u32]| ask(uid, gids, None, &[begin, &set, commit]).remove(2);
        assert_eq!((last(1003, &[600]), last(1003, &[500])), (Ok(()), Ok(())));
        let own = "does not include \"confirm own\"";
        assert!(matches!(last(1001, &[]), Err((-32004, why)) if why.contains(own)));
        // What waits is 1003's.
        let confirm = |uid: u32, gids: &[u32]| {
            ask(uid, gids, None, &[r#""method":"confirm","params":{"revision":7}"#]).remove(0)
        };
        assert_eq!((confirm(1003, &[500]), confirm(1004, &[600])), (Ok(()), Ok(())));
        let confirms = "does not include \"confirm\"";
        assert!(matches!(confirm(1004, &[500]), Err((-32004, why)) if why.contains(confirms)));
    }

    #[test]
    fn changes_are_written_down_with_who_and_how_it_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.jsonl");
        let audit = || Some(Audit::open(path.clone()).expect("a file"));
        let (own, other) = (SET.replace('S', "shop"), SET.replace('S', "bank"));
        let show = r#""method":"show.routes","params":{"vrf":"red"}"#;
        ask(1001, &[], audit(), &[&own, &other, show, r#""method":"begin""#, &own, r#""method":"commit""#]);
        ask(0, &[], audit(), &[&CLEAR.replace("FILTER", r#"{"rule":"x"}"#)]);
        let text = std::fs::read_to_string(&path).expect("the file");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let words = |line: &serde_json::Value| {
            let of = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
            format!("{} {} {} {} {}", line["uid"], of("role"), of("request"), line["about"], of("result"))
        };
        assert_eq!(
            lines.iter().map(words).collect::<Vec<_>>(),
            [
                r#"1001 blue-automation service.set-backends ["service shop"] changed"#,
                r#"1001 - service.set-backends ["service bank"] refused"#,
                r#"1001 blue-automation commit ["service shop"] changed"#,
                r#"0 - clear.sessions null cleared"#,
            ]
        );
        assert!(lines[1]["why"].as_str().is_some_and(|why| why.contains("not of it alone")));
        assert_eq!(lines[3]["changes"], 2);
        assert!(humantime::parse_rfc3339(lines[0]["time"].as_str().expect("a time")).is_ok());
    }
}
