"""The fate of live sessions when the config changes under them (DESIGN section 3)."""

from lib import *
from firewall import reset
from nat import A, DNS, INTERNET, POOL, POOL2

FATE = "scapy script: DESIGN section 3 (fate of a live flow)"
FAR = "10.99.0.7"  # behind a router outside
DMZ = (interface("dmz", ["203.0.113.129/25", "2001:db8:3::1/64"], zone="outside"), neighbour("dmz", "203.0.113.130", SERVER2),
       neighbour("dmz", "2001:db8:3::2", SERVER2))
AT_DMZ = End("dmz", SERVER2, GW_DMZ)
THREE = ("lan", "wan", "dmz")
QUIET = "[icmp]\nrate = 0\n"
FAR6 = "2001:db8:99::7"


def far(via, via6=None, **keys):
    """FAR is reached this way."""
    return route("10.99.0.0/16", via, **keys) + (route("2001:db8:99::/48", via6, **keys) if via6 else "")


@story("fate-nothing-changed", "A config that says the same changes nothing: handshakes, queries and sessions without a reply go on.", FATE, zoned(OUT))
def _(c):
    opening, data, dns, ping = (Talk(c, (H4, 40000 + n), (S4, 443)) for n in range(4))
    six = Talk(c, (H6, 40000), (S6, 443)).handshake()
    opening.up(T("S", 1000))
    data.handshake()
    dns.up(U())
    ping.up(ASK())
    c.reload(zoned(OUT))
    opening.down(T("SA", 5000, 1001))
    opening.up(T("A", 1001, 5001))
    data.down(T("PA", 5001, 1001, data=10))
    data.up(T("PA", 900_000, 5001, data=10), drop="tcp-out-of-window")
    dns.down(U())
    ping.down(ANSWER())
    six.up(T("PA", 1001, 5001, data=10))


@story("fate-rule-now-denies", "A session that the rules now deny loses its next packet, from whichever side, and is forgotten.", FATE, zoned(OUT))
def _(c):
    first, second, third = (Talk(c, (H4, 40000 + n), DNS) for n in range(3))
    six = Talk(c, (H6, 40000), (S6, 443)).handshake()
    for talk in (first, second, third):
        talk.up(U())
        talk.down(U())
    c.reload(zoned(rule("out", "deny", "inside", "outside")))
    first.up(U(), drop="policy-changed")
    first.up(U(), drop="firewall-deny")
    first.down(U(), drop="firewall-deny")
    second.down(U(), drop="policy-changed")
    second.down(U(), drop="firewall-deny")
    six.up(T("PA", 1001, 5001, data=10), drop="policy-changed")
    six.up(T("PA", 1001, 5001, data=10), drop="firewall-deny")
    c.reload(zoned(OUT))
    first.up(U())  # a new one
    third.up(U())  # nothing came while it was denied
    six.up(T("PA", 1001, 5001, data=10), drop="tcp-no-session")


@story("fate-admin-rule", "An admin rule put in front ends what it denies, and nothing else.", FATE, zoned(OUT))
def _(c):
    dns, web = Talk(c, A, DNS), Talk(c, A, (S4, 443))
    dns.up(U())
    web.handshake()
    c.reload(zoned(OUT, rule("stop", "deny", None, {"prefix": S4}, service="udp", kind="admin_rule")))
    dns.down(U(), drop="policy-changed")
    web.up(T("PA", 1001, 5001, data=10))
    web.down(T("A", 5001, 1011))


@story("fate-group-changed", "Sessions follow the members of a group.", FATE,
       zoned(table("group", name="some", members=[H4]), rule("out", "allow", {"group": "some"}, "outside")))
def _(c):
    one, other = Talk(c, A, DNS), Talk(c, (H4B, 40000), DNS, here=AT_HOST2)
    one.up(U())
    other.up(U(), drop="firewall-deny")
    c.reload(zoned(table("group", name="some", members=[H4B]), rule("out", "allow", {"group": "some"}, "outside")))
    one.up(U(), drop="policy-changed")
    other.up(U())
    other.down(U())


@story("fate-still-allowed", "Still allowed, by a rule of another name, before and behind others: the session keeps its outside port.", FATE, zoned(OUT, INTERNET))
def _(c):
    p = c.choice("p")
    dns, q = Talk(c, A, DNS, seen=(POOL, p)), c.choice("q")
    web = Talk(c, A, (S4, 443), seen=(POOL, q))
    dns.up(U())
    web.handshake()
    c.reload(zoned(rule("no-smtp", "deny", "inside", "outside", service="tcp/25"), rule("web-and-dns", "allow", "inside", "outside", service=["tcp/443", "udp/53"]),
                   rule("rest", "deny"), INTERNET))
    dns.down(U())
    dns.up(U())
    web.up(T("PA", 1001, 5001, data=10))
    web.down(T("A", 5001, 1011))


@story("fate-error-about-a-denied-session", "An ICMP error about a session that is no longer allowed does not pass.", FATE, zoned(OUT))
def _(c):
    _, got = Talk(c, A, DNS).up(U())
    error = IP(src=S4, dst=H4, id=7) / ICMP(type=3, code=3) / Raw(bytes(got))
    c.through("wan", from_server(error), "lan", to_host(hop(error)))
    c.reload(zoned())
    c.rx("wan", from_server(error), drop="policy-changed")
    c.rx("wan", from_server(error), drop="icmp-error-no-session")


@story("fate-address-left-its-pool", "An address that leaves its pool is still answered for while sessions use it; new sessions get another.",
       FATE + ", RFC 6888 REQ-11d (mappings are not taken away)", zoned(OUT, source_nat("internet", [POOL])))
def _(c):
    p, q = c.choice("p"), c.choice("q")
    old = Talk(c, A, DNS, seen=(POOL, p))
    old.up(U())
    old.down(U())
    c.reload(zoned(OUT, source_nat("internet", [POOL2])))
    old.down(U())
    old.up(U())
    new = Talk(c, A, (S4, 54), seen=(POOL2, q))
    new.up(U())
    new.down(U())
    old.up(U())
    old.down(U())


@story("fate-server-replaced", "A connection to a forwarded port stays with its server when the rule leads to another; new ones go there.",
       FATE, zoned(destination_nat("web", POOL, H4, service="tcp/80"), rule("in", "allow", "outside", "inside")))
def _(c):
    old = Talk(c, (S4, 50000), (H4, 80), asked=(POOL, 80), here=AT_SERVER, there=AT_HOST).handshake()
    c.reload(zoned(destination_nat("web", POOL, H4B, service="tcp/80"), rule("in", "allow", "outside", "inside")))
    old.up(T("PA", 1001, 5001, data=10))
    old.down(T("A", 5001, 1011))
    Talk(c, (S4, 50001), (H4B, 80), asked=(POOL, 80), here=AT_SERVER, there=AT_HOST2).handshake()


@story("fate-next-hop-changed", "Routes lead to another next hop on the same link, out and back: sessions follow.", FATE,
       zoned(OUT, far(S4, S6), route("10.9.0.0/16", H4)))
def _(c):
    talk, six = Talk(c, ("10.9.8.7", 40000), (FAR, 53)), Talk(c, (H6, 40000), (FAR6, 53))
    for t in (talk, six):
        t.up(U())
        t.down(U())
    c.reload(zoned(OUT, far(S4B, S6B), route("10.9.0.0/16", H4B)))
    talk = Talk(c, ("10.9.8.7", 40000), (FAR, 53), here=AT_HOST2, there=AT_SERVER2)
    six = Talk(c, (H6, 40000), (FAR6, 53), there=AT_SERVER2)
    for t in (talk, six):
        t.down(U())
        t.up(U())


@story("fate-egress-moved", "The way out moves to another interface of the zone: sessions follow, and take replies from there.", FATE,
       zoned(OUT, *DMZ, far(S4, S6), ports=THREE))
def _(c):
    def talks(there):
        return (Talk(c, A, (FAR, 53), there=there), Talk(c, (H6, 40000), (FAR6, 53), there=there))
    for talk in talks(AT_SERVER):
        talk.up(U())
        talk.down(U())
    web = Talk(c, A, (FAR, 443)).handshake()
    c.reload(zoned(OUT, *DMZ, far("203.0.113.130", "2001:db8:3::2"), ports=THREE))
    for talk in talks(AT_DMZ):
        talk.up(U())
        talk.down(U())
    web = Talk(c, A, (FAR, 443), there=AT_DMZ)
    web.up(T("PA", 1001, 5001, data=10))
    web.down(T("A", 5001, 1011))


@story("fate-egress-moved-same-nat", "The way out moves and the NAT rule is the same: the session follows with the outside port it has.", FATE,
       zoned(OUT, INTERNET, *DMZ, far(S4), ports=THREE))
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, (FAR, 53), seen=(POOL, p))
    talk.up(U())
    talk.down(U())
    c.reload(zoned(OUT, INTERNET, *DMZ, far("203.0.113.130"), ports=THREE))
    talk = Talk(c, A, (FAR, 53), seen=(POOL, p), there=AT_DMZ)
    talk.up(U())
    talk.down(U())


@story("fate-egress-moved-static-nat", "The way out moves where a static NAT holds as well: sessions go on with the address they have.", FATE,
       zoned(OUT, static_nat(POOL, H4), *DMZ, far(S4), ports=THREE))
def _(c):
    talk = Talk(c, A, (FAR, 53), seen=(POOL, 40000))
    talk.up(U())
    talk.down(U())
    c.reload(zoned(OUT, static_nat(POOL, H4), *DMZ, far("203.0.113.130"), ports=THREE))
    talk = Talk(c, A, (FAR, 53), seen=(POOL, 40000), there=AT_DMZ)
    talk.up(U())
    talk.down(U())


@story("fate-egress-moved-static-nat-changed", "The way out moves, and the static NAT has another address now: the session ends, for the server would see another one.", FATE,
       zoned(OUT, static_nat(POOL, H4), *DMZ, far(S4), ports=THREE, extra=QUIET))
def _(c):
    talk = Talk(c, A, (FAR, 53), seen=(POOL, 40000))
    talk.up(U())
    talk.down(U())
    c.reload(zoned(OUT, static_nat(POOL2, H4), *DMZ, far("203.0.113.130"), ports=THREE, extra=QUIET))
    talk.up(U(), drop="nat-path-changed")
    Talk(c, A, (FAR, 53), seen=(POOL2, 40000), there=AT_DMZ).up(U())


BY_WAY = (source_nat("by-wan", [POOL], to={"interface": "wan"}), source_nat("by-dmz", [POOL2], to={"interface": "dmz"}))


@story("fate-egress-moved-other-nat", "The way out moves to where another NAT rule applies: the session has ended, and the next packet begins one with the new address.", FATE,
       zoned(OUT, *BY_WAY, *DMZ, far(S4), ports=THREE))
def _(c):
    talk = Talk(c, A, (FAR, 53), seen=(POOL, c.choice("p")))
    talk.up(U())
    talk.down(U())
    c.reload(zoned(OUT, *BY_WAY, *DMZ, far("203.0.113.130"), ports=THREE))
    talk.up(U(), drop="nat-path-changed")
    talk = Talk(c, A, (FAR, 53), seen=(POOL2, c.choice("q")), there=AT_DMZ)
    talk.up(U())
    talk.down(U())


@story("fate-egress-moved-other-nat-tcp", "A TCP connection that cannot go on, because it would have another address, is reset for the host inside, which need not wait.",
       FATE + ", RFC 9293 section 3.10.7.1 (SEQ and ACK of the reset)", zoned(OUT, *BY_WAY, *DMZ, far(S4), ports=THREE))
def _(c):
    talk = Talk(c, A, (FAR, 443), seen=(POOL, c.choice("p"))).handshake()
    c.reload(zoned(OUT, *BY_WAY, *DMZ, far("203.0.113.130"), ports=THREE))
    p = rebuilt(v4(H4, FAR) / T("PA", 1001, 5001, data=10)(40000, 443))
    c.error("lan", from_host(p), "nat-path-changed", to_host(reset(p)))
    Talk(c, (H4, 40000), (FAR, 443), seen=(POOL2, c.choice("q")), there=AT_DMZ).handshake((7000, 9000))


@story("fate-interface-gone", "Sessions over an interface that is gone have ended.", FATE, zoned(OUT, *DMZ, ports=THREE))
def _(c):
    talk, stays = Talk(c, A, ("203.0.113.130", 53), there=AT_DMZ), Talk(c, A, DNS)
    for t in (talk, stays):
        t.up(U())
        t.down(U())
    c.reload(zoned(OUT, ports=THREE))
    talk.up(U(), drop="policy-changed")
    p = rebuilt(v4(H4, "203.0.113.130") / U()(40000, 53))
    c.error("lan", from_host(p), "no-route", to_host(icmp4(L4, H4, 3, 0, p)))
    c.rx("dmz", AT_DMZ.sends(v4("203.0.113.130", H4) / U()(53, 40000)), drop="unknown-vlan")
    stays.down(U())
    stays.up(U())


@story("fate-zone-renamed", "An interface in a zone without rules: what was allowed is not any more.", FATE, zoned(OUT))
def _(c):
    talk = Talk(c, A, DNS)
    talk.up(U())
    c.reload(two_ports(OUT.replace('"outside"', '"partner"').replace('"inside"', '"other"'), lan=interface("lan", ["192.0.2.1/24"], zone="other"),
                       wan=interface("wan", ["198.51.100.1/24"], zone="strangers"),
                       neighbours=neighbour("lan", H4, HOST) + neighbour("wan", S4, SERVER) + neighbour("spare", "203.0.113.130", SERVER2)
                       + interface("spare", ["203.0.113.129/25"], port="wan", vlan=9, zone="partner")))
    talk.up(U(), drop="policy-changed")
    talk.up(U(), drop="firewall-deny")


# -- more than one packet in a burst, and what only shows when decisions are made again ------------------------
@story("fate-denied-in-a-burst", "Two packets in one burst of a session that the rules now deny: the first ends it, the second finds none.", FATE, zoned(OUT))
def _(c):
    talk = Talk(c, A, DNS)
    talk.up(U())
    c.reload(zoned(rule("out", "deny", "inside", "outside")))
    talk.up(U(), drop="policy-changed")
    c.together()
    talk.up(U(), drop="firewall-deny")


@story("tcp-refused-and-asked-in-a-burst", "A refused connection's server sends two SYNs in one burst: the connection is over, and they are nobody's.",
       "scapy script: RFC 9293 section 3.6.1, RFC 4787 section 5", zoned(OUT, INTERNET))
def _(c):
    talk = Talk(c, A, (S4, 80), seen=(POOL, c.choice("p")))
    talk.up(T("S", 1000))
    talk.down(T("RA", 0, 1001))
    talk.down(T("S", 5000), drop="nat-no-mapping")
    c.together()
    talk.down(T("S", 5000), drop="nat-no-mapping")


@story("fate-way-back-gone", "The route to the host is withdrawn: replies have nowhere to go, until it is there again.", FATE,
       zoned(OUT, route("10.9.0.0/16", H4), extra=QUIET))
def _(c):
    talk = Talk(c, ("10.9.8.7", 40000), DNS)
    talk.up(U())
    talk.down(U())
    c.reload(zoned(OUT, extra=QUIET))
    talk.down(U(), drop="no-route")
    talk.up(U())
    c.reload(zoned(OUT, route("10.9.0.0/16", H4), extra=QUIET))
    talk.down(U())


@story("fate-other-way-in-stays", "Replies come by another interface of the zone: a change of routes that has nothing to do with it changes nothing.", FATE,
       zoned(OUT, *DMZ, ports=THREE))
def _(c):
    talk = Talk(c, A, DNS)
    talk.up(U())
    Talk(c, A, DNS, there=AT_DMZ).down(U())
    c.reload(zoned(OUT, *DMZ, far(S4), ports=THREE))
    Talk(c, A, DNS, there=AT_DMZ).down(U())
    talk.up(U())


@story("fate-egress-moved-into-nat", "A session without NAT, whose way out moves to where NAT applies, ends: its address must not be seen there.", FATE,
       zoned(OUT, source_nat("by-wan", [POOL], to={"interface": "wan"}), *DMZ, far("203.0.113.130"), ports=THREE, extra=QUIET))
def _(c):
    talk = Talk(c, A, (FAR, 53), there=AT_DMZ)
    talk.up(U())
    talk.down(U())
    c.reload(zoned(OUT, source_nat("by-wan", [POOL], to={"interface": "wan"}), *DMZ, far(S4), ports=THREE, extra=QUIET))
    talk.up(U(), drop="nat-path-changed")


@story("fate-destination-nat-appears", "A destination NAT for a live session's destination is for new sessions.", FATE, zoned(OUT, *DMZ, ports=THREE))
def _(c):
    talk = Talk(c, A, DNS)
    talk.up(U())
    talk.down(U())
    c.reload(zoned(OUT, *DMZ, destination_nat("elsewhere", S4, "203.0.113.130"), ports=THREE))
    talk.up(U())
    talk.down(U())


@story("nat-filtering-other-zone", "Endpoint-independent filtering is for the zones that the pool is for: others need a rule.",
       "scapy script: DESIGN section 3 (between zones: default deny), RFC 4787 section 5",
       zoned(OUT, INTERNET, interface("guest", ["203.0.113.129/25"], zone="guest"), neighbour("guest", "203.0.113.130", SERVER2), ports=("lan", "wan", "guest")))
def _(c):
    p = c.choice("p")
    Talk(c, A, DNS, seen=(POOL, p)).up(U())
    Talk(c, A, ("203.0.113.130", 5000), seen=(POOL, p), there=End("guest", SERVER2, GW_DMZ)).down(U(), drop="firewall-deny")
    Talk(c, A, (S4, 5000), seen=(POOL, p)).down(U())


@story("nat-session-limit-inbound", "Sessions that come in by a mapping count for the host that has it, and clients of a published server for nobody.",
       "scapy script: RFC 6888 REQ-5, the annotated config (per_host_sessions)",
       zoned(OUT, INTERNET, rule("web", "allow", "outside", {"prefix": H4B}), destination_nat("web", POOL2, H4B), extra="[flows]\nper_host_sessions = 2\n\n" + QUIET))
def _(c):
    p = c.choice("p")
    Talk(c, A, DNS, seen=(POOL, p)).up(U())
    Talk(c, A, (S4, 5000), seen=(POOL, p)).down(U())
    Talk(c, A, (S4, 5001), seen=(POOL, p)).down(U(), drop="host-session-limit")
    for n in range(4):
        Talk(c, (S4, 6000 + n), (H4B, 80), asked=(POOL2, 80), here=AT_SERVER, there=AT_HOST2).up(U())
