"""Zones of a bridge's members: what goes from member to member is for the firewall's rules, and stays as it is.

A on VLAN 100 of the lan in zone "web", B untagged on "far" in zone "db", C on the wan where a case has it.
"""

from scapy.all import IPOption_Router_Alert
from scapy.layers.inet6 import ICMPv6MLDMultAddrRec, ICMPv6MLReport2

from lib import *
import bridge as b
from bridge import A, A4, A6, B, B4, B6, C, C4, G4, GATEWAY, GW, OTHER, TO_ALL, UNDERLAY, LAN2, HOSTS, ON_GATE, on_far, on_lan

RULES = "scapy script: RFC 9293 section 3.5; IEEE 802.1Q clause 8.6; DESIGN.md section 3"
WEB, DB = {**b.ON_LAN, "zone": "web"}, {**b.ON_FAR, "zone": "db"}
GATE = GATEWAY + 'zone = "segment"\n'
HTTP = rule("http", "allow", "web", "db", service=["tcp/80", "udp/53", "icmp"])
AT_A, AT_B = End("lan", A, B, 100), End("far", B, A)
REJECT = rule("no", "reject", "web", "db", service=["tcp/25", "udp/25"])
C6 = "2001:db8:7::12"


def segment(*more, members=(WEB, DB), **keys):
    return b.net(b.bridge(members, **keys), *more)


def heard(c, third=None):
    """A and B, and C, have been heard of: ARP is not for rules."""
    for (port, frame, mac, addr), others in (((("lan", on_lan, A, A4)), ("far", "wan")), ((("far", on_far, B, B4)), ("lan", "wan")),
                                             ((("wan", on_far, C, C4)), ("lan", "far"))):
        if port == "wan" and not third:
            continue
        said = (0x0806, bytes(ARP(op=1, hwsrc=mac, psrc=addr, pdst=addr)))
        c.rx(port, frame(mac, TO_ALL, said))
        for other in others:
            if other != "wan" or third:
                c.tx(other, (on_lan if other == "lan" else on_far)(mac, TO_ALL, said))
    return c


class Bridged(Talk):
    """A talk between members: no hop is counted."""

    def _one(self, rx, before, tx, after, said, drop, ttl, keys):
        (src, sport), (dst, dport) = before
        what = rebuilt(ip(src, dst, ttl, **keys) / said(sport, dport))
        self.case.rx(rx.port, rx.sends(what), drop=drop)
        if not drop:
            self.case.tx(tx.port, tx.gets(what))
        return what, what


def talk(c, client=(A4, 40000), server=(B4, 80), here=AT_A, there=AT_B):
    return Bridged(c, client, server, here=here, there=there)


THIRD = {"port": "wan", "zone": "db"}
AT_C = End("wan", C, A)

c = Case("zones-default-deny", "Between members in different zones nothing passes that no rule allows; ARP does.", RULES, segment())
heard(c)
for here, there, ends in ((AT_A, AT_B, (A4, B4)), (AT_B, AT_A, (B4, A4)), (AT_A, AT_B, (A6, B6))):
    for said in (T("S", 1), U()):
        talk(c, (ends[0], 4000), (ends[1], 80), here, there).up(said, drop="firewall-deny")

c = Case("zones-tcp", "A connection that a rule allows passes both ways, tracked, with its TTL as it was; one the other way does not.", RULES, segment(HTTP))
heard(c)
for ends in ((A4, B4), (A6, B6)):
    one = talk(c, (ends[0], 40000), (ends[1], 80)).handshake()
    one.up(T("PA", 1001, 5001, 100), ttl=1)
    one.down(T("PA", 5001, 1101, 1400), ttl=1)
    one.down(T("PA", 9_000_000, 1101, 10), drop="tcp-out-of-window")
    one.up(T("FA", 1101, 6401))
    one.down(T("FA", 6401, 1102))
    one.up(T("A", 1102, 6402))
    talk(c, (ends[1], 40000), (ends[0], 80), AT_B, AT_A).up(T("S", 1), drop="firewall-deny")
    talk(c, (ends[0], 40001), (ends[1], 80)).up(T("A", 77, 88), drop="tcp-no-session")
    talk(c, (ends[0], 40001), (ends[1], 81)).up(T("S", 77), drop="firewall-deny")

c = Case("zones-udp-and-echo", "Datagrams and echoes: answers pass, questions the other way do not.", "scapy script: RFC 4787 section 4.3; RFC 792; RFC 4443 section 4", segment(HTTP))
heard(c)
for ends, ask, answer in (((A4, B4), ASK, ANSWER), ((A6, B6), ASK6, ANSWER6)):
    dns = talk(c, (ends[0], 5353), (ends[1], 53))
    dns.down(U(), drop="firewall-deny")
    dns.up(U())
    dns.down(U(100))
    dns.up(U(8))
    ping = talk(c, (ends[0], 7), (ends[1], 7))
    if ends[0] == A4:
        ping.up(ask())
        ping.down(answer())
        talk(c, (ends[1], 8), (ends[0], 8), AT_B, AT_A).up(ask(), drop="firewall-deny")

c = Case("zones-icmp-errors", "An error that quotes a session's packet passes; one that quotes another does not.", "scapy script: RFC 792; RFC 4443 section 3", segment(HTTP))
heard(c)
dns = talk(c, (A4, 5353), (B4, 53))
sent, _ = dns.up(U())
error = rebuilt(v4(B4, A4) / ICMP(type=3, code=3) / Raw(bytes(sent)[:28]))
c.rx("far", on_far(B, A, error)).tx("lan", on_lan(B, A, error))
other = rebuilt(v4(A4, B4, flags="DF") / U()(5354, 53))
c.rx("far", on_far(B, A, rebuilt(v4(B4, A4) / ICMP(type=3, code=3) / Raw(bytes(other)[:28]))), drop="icmp-error-no-session")
wrong = bytearray(bytes(error))
wrong[22] ^= 0xFF
c.rx("far", bytes(on_far(B, A, error))[:14] + bytes(wrong), drop="icmp-invalid")

SAME = ({**b.ON_LAN, "zone": "web"}, {**b.ON_FAR, "zone": "web"}, {"port": "wan", "zone": "db"})
c = Case("zones-same-zone", "Within a zone all may pass, unless a rule says otherwise.", RULES,
         segment(rule("no-telnet", "deny", "web", "web", service="tcp/23"), members=SAME))
heard(c, third=True)
talk(c).handshake()
talk(c, (B4, 1), (A4, 2), AT_B, AT_A).up(U())
talk(c, server=(B4, 23)).up(T("S", 1), drop="firewall-deny")
talk(c, server=(C4, 80), here=End("lan", A, C, 100), there=AT_C).up(T("S", 1), drop="firewall-deny")

MPLS = (0x8847, bytes(80))
c = Case("zones-other-protocols", "What is neither IP nor ARP stays in its zone.", "scapy script: IEEE 802.1Q clause 8.6", segment(members=SAME))
heard(c, third=True)
c.rx("lan", on_lan(A, B, MPLS)).tx("far", on_far(A, B, MPLS))
c.rx("lan", on_lan(A, C, MPLS), drop="bridge-zone-protocol")
c.rx("lan", on_lan(A, TO_ALL, MPLS)).tx("far", on_far(A, TO_ALL, MPLS))
c.rx("wan", on_far(C, TO_ALL, MPLS), drop="bridge-zone-protocol")

c = Case("zones-other-protocols-allowed", "What is neither IP nor ARP passes between zones where the bridge says so.", "scapy script: IEEE 802.1Q clause 8.6", segment(members=SAME, other_protocols=True))
heard(c, third=True)
c.rx("lan", on_lan(A, C, MPLS)).tx("wan", on_far(A, C, MPLS))
c.rx("wan", on_far(C, TO_ALL, MPLS)).tx("lan", on_lan(C, TO_ALL, MPLS)).tx("far", on_far(C, TO_ALL, MPLS))

THREE = ({**b.ON_LAN, "zone": "web"}, {**b.ON_FAR, "zone": "db"}, {"port": "wan", "zone": "lab"})
MDNS = rule("mdns", "allow", "web", "lab", service="udp/5353") + rule("games", "allow", "db", "web", service="udp/7")
c = Case("zones-to-all", "Broadcasts and multicasts go to the members in zones that the rules let them into, each by itself.", "scapy script: IEEE 802.1Q clause 8.6; RFC 6762 section 3",
         segment(MDNS, members=THREE))
group4, group6 = "01:00:5e:00:00:fb", "33:33:00:00:00:fb"
for src, dst, mac in ((A4, "224.0.0.251", group4), (A6, "ff02::fb", group6), (A4, "10.7.0.255", TO_ALL)):
    query = rebuilt(ip(src, dst, 255) / U()(5353, 5353))
    c.rx("lan", on_lan(A, mac, query)).tx("wan", on_far(A, mac, query))
    c.rx("lan", on_lan(A, mac, rebuilt(ip(src, dst, 255) / U()(5353, 5354))), drop="bridge-zone-deny")
back = rebuilt(ip(C4, "224.0.0.251", 255) / U()(5353, 5353))
c.rx("wan", on_far(C, group4, back), drop="bridge-zone-deny")
game = rebuilt(ip(B4, "10.7.0.255") / U()(9, 7))
c.rx("far", on_far(B, TO_ALL, game)).tx("lan", on_lan(B, TO_ALL, game))
broken = bytearray(on_lan(A, group4, rebuilt(ip(A4, "224.0.0.251") / U()(5353, 5353))))
broken[18 + 10] ^= 1
c.rx("lan", bytes(broken), drop="ipv4-checksum")
c.rx("lan", bytes(broken)[:30], drop="truncated")

c = Case("zones-what-always-passes", "Neighbour discovery, DHCP, IGMP and MLD are not for rules.", "scapy script: RFC 4861 section 7.1; RFC 2131 section 4.1; RFC 8415 section 7; RFC 3376 section 4; RFC 3810 section 5", segment())
for mac, what in (
    (TO_ALL, rebuilt(v4("0.0.0.0", "255.255.255.255") / UDP(sport=68, dport=67) / payload(240))),
    ("01:00:5e:00:00:16", rebuilt(v4(A4, "224.0.0.22", ttl=1, options=[IPOption_Router_Alert()], proto=2) / Raw(bytes.fromhex("2200f9fc0000000104000000ef010203")))),
    ("33:33:00:01:00:02", rebuilt(v6("fe80::a", "ff02::1:2", hlim=1) / UDP(sport=546, dport=547) / payload(20))),
    ("33:33:00:00:00:16", rebuilt(v6("fe80::a", "ff02::16", hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"")]) / ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(rtype=4, dst="ff0e::7")]))),
):
    c.rx("lan", on_lan(A, mac, what)).tx("far", on_far(A, mac, what))
ask, told = solicit(A, A6, B6, tags=(100,)), advertise(B, B6, A, A6, R=0)
c.rx("lan", ask).tx("far", solicit(A, A6, B6))
c.rx("far", told).tx("lan", advertise(B, B6, A, A6, R=0, tags=(100,)))
offer = rebuilt(v4(B4, A4) / UDP(sport=67, dport=68) / payload(240))
c.rx("far", on_far(B, A, offer)).tx("lan", on_lan(B, A, offer))
# From somewhere else it would have lost some of its hops.
c.rx("far", on_far(B, A, rebuilt(v6(B6, A6, hlim=254) / ICMPv6ND_NA(tgt=B6))), drop="firewall-deny")

c = Case("zones-fragments", "Fragments have the session of their first one, in whatever order they come; those of a denied datagram are lost.", "scapy script: RFC 791 section 3.2; RFC 8200 section 4.5; RFC 1858", segment(HTTP))
heard(c)
for port, fate in ((53, None), (54, "firewall-deny")):
    whole = rebuilt(v4(A4, B4, id=77 + port) / UDP(sport=6000, dport=port) / payload(2000))
    parts = [rebuilt(p) for p in whole.fragment(1000)]
    for at, part in enumerate(parts):
        c.rx("lan", on_lan(A, B, part), drop=(fate if at == 0 else "fragment-untracked") if fate else None)
        if not fate:
            c.tx("far", on_far(A, B, part))
whole = rebuilt(v4(A4, B4, id=200) / UDP(sport=6000, dport=53) / payload(1500))
first, second = (rebuilt(p) for p in whole.fragment(1000))
c.rx("lan", on_lan(A, B, second)).rx("lan", on_lan(A, B, first)).tx("far", on_far(A, B, first)).tx("far", on_far(A, B, second))

c = Case("zones-reject", "A rule that rejects: TCP is reset in the name of the station, others are told by the segment's own address.", "scapy script: RFC 9293 section 3.10.7.1; RFC 1812 section 5.2.7.1; RFC 4443 section 3.1",
         b.net(b.bridge([WEB, DB]), GATE, REJECT), workers=(1,))
heard(c)
for item in range(2):
    c.punted, c.forwarded = c.punted + 1, c.forwarded - 1  # ARP is the gateway's as well
for src, dst, own in ((A4, B4, G4), (A6, B6, b.G6)):
    syn = rebuilt(ip(src, dst) / T("S", 100)(40000, 25))
    reset = rebuilt(ip(dst, src, 64, **({} if ":" in src else {"id": 0})) / TCP(sport=25, dport=40000, flags="RA", seq=0, ack=101, window=0))
    c.error("lan", on_lan(A, B, syn), "firewall-reject", on_lan(B, A, reset))
    data = rebuilt(ip(src, dst) / U()(40000, 25))
    c.error("lan", on_lan(A, B, data), "firewall-reject", on_lan(GW, A, icmp4(own, src, 3, 13, data) if "." in src else icmp6(own, src, ICMPv6DestUnreach(code=1), data)))

c = Case("zones-reject-without-gateway", "Without an interface on the bridge there is no address to tell it from, and TCP alone is told.", "scapy script: RFC 9293 section 3.10.7.1", segment(REJECT), workers=(1,))
heard(c)
syn = rebuilt(ip(A4, B4) / T("S", 100)(40000, 25))
c.error("lan", on_lan(A, B, syn), "firewall-reject", on_lan(B, A, rebuilt(ip(B4, A4, 64, id=0) / TCP(sport=25, dport=40000, flags="RA", seq=0, ack=101, window=0))))
c.rx("lan", on_lan(A, B, rebuilt(ip(A4, B4) / U()(40000, 25))), drop="firewall-reject")

TWO_DB = (WEB, DB, {"port": "wan", "zone": "db"})
c = Case("zones-station-moves", "A session follows its station to another member in the same zone, and ends when that is in another.", RULES,
         segment(HTTP, members=(*TWO_DB, {"port": "lan", "vlan": 101, "zone": "lab"})))
said = (0x0806, bytes(ARP(op=1, hwsrc=B, psrc=B4, pdst=B4)))
on_101 = lambda src, dst, what: on_lan(src, dst, what, 101)
for port, mine in (("lan", on_lan), ("far", on_far)):
    mac, addr = (A, A4) if port == "lan" else (B, B4)
    said = (0x0806, bytes(ARP(op=1, hwsrc=mac, psrc=addr, pdst=addr)))
    c.rx(port, mine(mac, TO_ALL, said))
    for other, frame in (("lan", on_lan), ("far", on_far), ("wan", on_far), ("lan", on_101)):
        if frame is not mine or other != port:
            c.tx(other, frame(mac, TO_ALL, said))
one = talk(c).handshake()
one.there = End("wan", B, A)
one.down(T("PA", 5001, 1001, 10))
one.up(T("A", 1001, 5011))
one.there = AT_B
one.down(T("PA", 5011, 1001, 10))
one.up(T("A", 1001, 5021))
c.rx("lan", on_101(B, TO_ALL, said))
for port, frame in (("lan", on_lan), ("far", on_far), ("wan", on_far)):
    c.tx(port, frame(B, TO_ALL, said))
one.up(T("PA", 1001, 5021, 10), drop="policy-changed")
one.up(T("PA", 1001, 5021, 10), drop="firewall-deny")

c = Case("zones-another-zone-forges", "A station in another zone that sends with the addresses of a session is not part of it.", "scapy script: DESIGN.md section 2", segment(HTTP, members=THREE))
heard(c, third=True)
one = talk(c).handshake()
c.rx("wan", on_far(C, A, rebuilt(ip(B4, A4) / T("PA", 5001, 1001, 10)(80, 40000))), drop="source-check")
one.down(T("PA", 5001, 1001, 10))

c = Case("zones-rules-change", "Another config: a session that is still allowed goes on, one that is not ends.", "scapy script: DESIGN.md section 3", segment(HTTP))
heard(c)
web, dns = talk(c).handshake(), talk(c, (A4, 5353), (B4, 53))
dns.up(U())
dns.down(U())
c.reload(segment(rule("http", "allow", "web", "db", service="tcp/80")))
web.up(T("PA", 1001, 5001, 100))
web.down(T("A", 5001, 1101))
dns.down(U(), drop="policy-changed")
dns.up(U(), drop="firewall-deny")
c.reload(b.net(b.bridge()))
web.up(T("PA", 1101, 5001, 100))
talk(c, (B4, 9), (A4, 9), AT_B, AT_A).up(U())

c = Case("zones-given-to-members", "Members that get zones: what passed before is for the rules from now on.", "scapy script: DESIGN.md section 3", b.net(b.bridge()))
heard(c)
talk(c, (B4, 9), (A4, 9), AT_B, AT_A).up(U())
c.reload(segment(HTTP))
talk(c, (B4, 9), (A4, 9), AT_B, AT_A).up(U(), drop="firewall-deny")
talk(c).handshake()

c = Case("zones-unknown-station", "A packet to a station that nobody knows goes to the members in zones that the rules let it into; a session begins when it is known.", RULES, segment(HTTP, members=THREE))
syn = rebuilt(ip(A4, B4) / T("S", 1)(40000, 80))
c.rx("lan", on_lan(A, B, syn)).tx("far", on_far(A, B, syn))
c.rx("lan", on_lan(A, B, rebuilt(ip(A4, B4) / T("S", 1)(40000, 81))), drop="bridge-zone-deny")
c.rx("far", on_far(B, A, rebuilt(ip(B4, A4) / T("SA", 7, 2)(80, 40000))), drop="firewall-deny")
talk(c).handshake()

c = Case("zones-station-not-let-in", "A station that its member has no place for: what answers it is found by its session, and goes to all members of its zone.", RULES,
         segment(HTTP, members=({**WEB, "max_macs": 1}, DB, {"port": "wan", "zone": "web"})))
said = (0x0806, bytes(ARP(op=1, hwsrc=C, psrc=C4, pdst=C4)))
c.rx("lan", on_lan(C, TO_ALL, said)).tx("far", on_far(C, TO_ALL, said)).tx("wan", on_far(C, TO_ALL, said))
said = (0x0806, bytes(ARP(op=1, hwsrc=B, psrc=B4, pdst=B4)))
c.rx("far", on_far(B, TO_ALL, said)).tx("lan", on_lan(B, TO_ALL, said)).tx("wan", on_far(B, TO_ALL, said))
there, back = rebuilt(ip(A4, B4) / U()(5353, 53)), rebuilt(ip(B4, A4) / U()(53, 5353))
c.rx("lan", on_lan(A, B, there)).tx("far", on_far(A, B, there))
c.rx("far", on_far(B, A, back)).tx("lan", on_lan(B, A, back)).tx("wan", on_far(B, A, back))

c = Case("zones-bridges-apart", "The same addresses in two bridges: a session of one lets nothing pass in the other.", RULES,
         b.net(table("bridge", name="one", members=[WEB, DB], loop_probe_s=0),
               table("bridge", name="two", members=[{"port": "lan", "vlan": 101, "zone": "web"}, {"port": "far", "vlan": 101, "zone": "db"}], loop_probe_s=0), HTTP))
heard(c)
two_a, two_b = End("lan", A, B, 101), End("far", B, A, 101)
for end, other, addr in ((two_a, two_b, A4), (two_b, two_a, B4)):
    said = (0x0806, bytes(ARP(op=1, hwsrc=end.mac, psrc=addr, pdst=addr)))
    c.rx(end.port, b.framed(eth(end.mac, TO_ALL, 101), said)).tx(other.port, b.framed(eth(end.mac, TO_ALL, 101), said))
one, two = talk(c, server=(B4, 53)), talk(c, server=(B4, 53), here=two_a, there=two_b)
one.up(U())
two.down(U(), drop="firewall-deny")
one.down(U())
two.up(U())
two.down(U())

c = Case("zones-vni", "Between a VLAN and a VNI in different zones: sessions through the tunnel.", "scapy script: RFC 7348 section 4.1; RFC 9293 section 3.5",
         b.net(b.bridge([WEB, {**b.over_wan([S4]), "zone": "db"}]), UNDERLAY, HTTP))
c.rx("lan", on_lan(A, TO_ALL, (0x0806, bytes(ARP(op=1, hwsrc=A, psrc=A4, pdst=A4))))).tx("wan", b.to_remote(A, TO_ALL, (0x0806, bytes(ARP(op=1, hwsrc=A, psrc=A4, pdst=A4)))))
c.rx("wan", b.from_remote(C, TO_ALL, (0x0806, bytes(ARP(op=1, hwsrc=C, psrc=C4, pdst=C4))))).tx("lan", on_lan(C, TO_ALL, (0x0806, bytes(ARP(op=1, hwsrc=C, psrc=C4, pdst=C4)))))
for said, up in ((T("S", 1), True), (T("SA", 7, 2), False), (T("A", 2, 8), True), (T("PA", 8, 2, 100), False)):
    if up:
        what = rebuilt(ip(A4, C4) / said(40000, 80))
        c.rx("lan", on_lan(A, C, what)).tx("wan", b.to_remote(A, C, what))
    else:
        what = rebuilt(ip(C4, A4) / said(80, 40000))
        c.rx("wan", b.from_remote(C, A, what)).tx("lan", on_lan(C, A, what))
c.rx("wan", b.from_remote(C, A, rebuilt(ip(C4, A4) / T("S", 1)(9, 80))), drop="firewall-deny")
c.rx("lan", on_lan(A, C, rebuilt(ip(A4, C4) / T("S", 1)(9, 81))), drop="firewall-deny")

c = Case("zones-around-by-gateway", "What is routed through the segment's interface has that one's zone; from the segment into the same it is lost, for it would go around the rules.",
         "scapy script: DESIGN.md section 3; RFC 1812 section 5", b.net(b.bridge([WEB, DB]), GATE, LAN2 + 'zone = "office"\n', HOSTS, ON_GATE, rule("out", "allow", "segment", "office"), HTTP))
out = rebuilt(v4(A4, H4) / udp())
c.rx("lan", on_lan(A, GW, out)).tx("lan", link(eth(GW_LAN, HOST), hop(out)))
for src, dst in ((A4, B4), (A6, B6)):
    c.rx("lan", on_lan(A, GW, rebuilt(ip(src, dst) / T("S", 1)(40000, 80))), drop="bridge-zone-hairpin")

c = Case("zones-icmp-errors-from-elsewhere", "An error that quotes a session's packet counts only from the zone that the session's other side is in.", "scapy script: RFC 792; DESIGN.md section 3", segment(HTTP, members=THREE))
heard(c, third=True)
sent, _ = talk(c, (A4, 5353), (B4, 53)).up(U())
error = rebuilt(v4(B4, A4) / ICMP(type=3, code=3) / Raw(bytes(sent)[:28]))
c.rx("wan", on_far(C, A, error), drop="source-check")
c.rx("far", on_far(B, A, error)).tx("lan", on_lan(B, A, error))

TUNNELLED = lambda remotes: b.net(b.bridge([WEB, {**b.over_wan(remotes), "zone": "db"}, {**b.ON_FAR, "zone": "lab"}]), UNDERLAY, HTTP)
c = Case("zones-tunnel-closed", "A session to a station behind a remote that the config does not have any more: its packets go to all of the zone they were let into, and nowhere else.",
         "scapy script: RFC 7348 section 4.1; DESIGN.md section 3", TUNNELLED([S4]))
said = (0x0806, bytes(ARP(op=1, hwsrc=C, psrc=C4, pdst=C4)))
c.rx("wan", b.from_remote(C, TO_ALL, said)).tx("lan", on_lan(C, TO_ALL, said)).tx("far", on_far(C, TO_ALL, said))
asked = rebuilt(ip(A4, C4) / U()(40000, 53))
c.rx("lan", on_lan(A, C, asked)).tx("wan", b.to_remote(A, C, asked))
c.reload(TUNNELLED([b.S4B]))
c.rx("lan", on_lan(A, C, asked)).tx("wan", b.to_remote(A, C, asked, b.S4B, b.SERVER2))
c.rx("wan", b.from_remote(C, A, rebuilt(ip(C4, A4) / U()(53, 40000))), drop="vxlan-unknown-remote")


def known(c):
    """As heard, where the segment has an interface: ARP is the gateway's as well."""
    heard(c)
    c.punted, c.forwarded = c.punted + 2, c.forwarded - 2


AROUND = lambda members, *rules: b.net(b.bridge(members), GATE, ON_GATE, *rules)
c = Case("zones-around-by-gateway-before", "A session that goes from a station to another by way of the gateway ends when its members get zones.", "scapy script: DESIGN.md section 3", AROUND([b.ON_LAN, b.ON_FAR]))
known(c)
there, back = rebuilt(v4(A4, B4) / U()(7, 9)), rebuilt(v4(B4, A4) / U()(9, 7))
c.rx("lan", on_lan(A, GW, there)).tx("far", on_far(GW, B, hop(there)))
c.rx("far", on_far(B, GW, back)).tx("lan", on_lan(GW, A, hop(back)))
c.reload(AROUND([WEB, DB], HTTP))
c.rx("lan", on_lan(A, GW, there), drop="policy-changed")
c.rx("lan", on_lan(A, GW, there), drop="bridge-zone-hairpin")
c.rx("far", on_far(B, GW, back), drop="bridge-zone-hairpin")

MAPPED = config(b.bridge([WEB, DB]), GATE, ON_GATE, table("interface", name="wan", port="wan", zone="outside", addresses=["198.51.100.1/24"]), neighbour("wan", S4, SERVER),
                table("zone", name="segment"), table("zone", name="outside"), rule("out", "allow", "segment", "outside"), source_nat("pool", ["198.51.100.77"], frm="segment"), ports=("lan", "wan", "far"))


def around_by_mapping(c):
    known(c)
    port = c.choice("port")
    there = End("far", B, GW)
    talk = Talk(c, (B4, 5000), (S4, 53), seen=("198.51.100.77", port), here=there, there=AT_SERVER)
    talk.up(U(20))
    talk.down(U(30))
    # What is behind the mapping is a station of the same segment, in another zone.
    c.rx("lan", on_lan(A, GW, rebuilt(v4(A4, "198.51.100.77") / U()(5001, port))), drop="bridge-zone-hairpin")


story("zones-around-by-mapping", "A NAT mapping is no way round the rules between members: what a station sends to the mapping of another is lost.", "scapy script: DESIGN.md section 3; RFC 4787 section 6", MAPPED)(around_by_mapping)
