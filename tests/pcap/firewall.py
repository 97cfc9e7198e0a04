"""The firewall: which sessions begin, what is said to those that may not, and what passes without a rule."""

from lib import *
from scapy.all import IPv6ExtHdrDestOpt, PadN

DNS4, DNS6 = (S4, 53), (S6, 53)
A4, A6 = (H4, 40000), (H6, 40000)


def prohibited(p):
    """RFC 1812 section 5.2.7.1, RFC 4443 section 3.1 code 1; to a host on lan."""
    if p.version == 4:
        return icmp4(L4, p.src, 3, 13, p)
    return icmp6(L6, p.src, ICMPv6DestUnreach(code=1), p)


def reset(p):
    """RFC 9293 section 3.10.7.1: the RST in answer to a segment, as if from where it was sent to."""
    segment = p[TCP]
    length = len(segment.payload) + ("S" in segment.flags) + ("F" in segment.flags)
    if "A" in segment.flags:
        numbers = {"seq": segment.ack, "ack": 0, "flags": "R"}
    else:
        numbers = {"seq": 0, "ack": (segment.seq + length) & 0xFFFFFFFF, "flags": "RA"}
    answer = TCP(sport=segment.dport, dport=segment.sport, window=0, **numbers)
    if p.version == 4:
        return IP(src=p.dst, dst=p.src, ttl=64, id=0, flags="DF") / answer
    return IPv6(src=p.dst, dst=p.src, hlim=64) / answer


def own_echo(own, to, seq=1):
    """Echo to the gateway, and its answer."""
    if ":" in own:
        return (v6(to, own) / ICMPv6EchoRequest(id=7, seq=seq, data=bytes(8)),
                IPv6(src=own, dst=to, hlim=64) / ICMPv6EchoReply(id=7, seq=seq, data=bytes(8)))
    return (v4(to, own) / ICMP(type=8, id=7, seq=seq) / payload(8),
            IP(src=own, dst=to, ttl=64, id=0, flags="DF") / ICMP(type=0, id=7, seq=seq) / payload(8))


@story("fw-default-deny", "Between zones nothing begins without a rule, of either family and whatever the protocol; nobody is told.",
       "scapy script: the annotated config (where no rule matches), RFC 2979 section 3.1.1 (a firewall's default)", zoned())
def _(c):
    for client, server, ask in ((A4, DNS4, ASK()), (A6, DNS6, ASK6())):
        for talk in (Talk(c, client, server), ):
            for said in (U(), T("S"), ask, lambda s, d: SCTP(sport=s, dport=d, tag=0) / payload(16)):
                talk.up(said, drop="firewall-deny")
                talk.down(said, drop="firewall-deny")
    for proto in (47, 50, 89, 253):
        c.rx("lan", from_host(v4(proto=proto) / payload(24)), drop="firewall-deny")
        c.rx("wan", from_server(v6(S6, H6, nh=proto) / payload(24)), drop="firewall-deny")


@story("fw-within-a-zone", "Within a zone all may pass without a rule, and a rule can forbid it.",
       "scapy script: the annotated config (where no rule matches)",
       config(interface("one", ["192.0.2.1/24", "2001:db8:1::1/64"], port="lan", zone="inside"),
              interface("two", ["198.51.100.1/24", "2001:db8:2::1/64"], port="wan", zone="inside"),
              neighbour("one", H4, HOST), neighbour("one", H6, HOST), neighbour("two", S4, SERVER), neighbour("two", S6, SERVER),
              rule("no-telnet", "deny", "inside", "inside", service="tcp/23")))
def _(c):
    for client, server in ((A4, DNS4), (A6, DNS6)):
        talk = Talk(c, client, server)
        talk.up(U())
        talk.down(U())
        Talk(c, client, (server[0], 22)).up(T("S", 1))
        Talk(c, client, (server[0], 23)).up(T("S", 1), drop="firewall-deny")
    Talk(c, (H4, 7), (S4, 0)).down(lambda s, d: ICMP(type=8, id=d, seq=1) / payload(8))


@story("fw-allow-and-reply", "A rule lets a session begin; its replies pass without one; another port and the other direction do not.",
       "scapy script: RFC 2979 section 3.1, the annotated config", zoned(rule("dns", "allow", "inside", "outside", service="udp/53")))
def _(c):
    for client, server in ((A4, DNS4), (A6, DNS6)):
        talk = Talk(c, client, server)
        talk.down(U(), drop="firewall-deny")  # before anyone has asked
        talk.up(U(40))
        talk.down(U(200))
        talk.down(U(100))
        talk.up(U(41))
        host, outside = client[0], server[0]
        Talk(c, client, (outside, 54)).up(U(), drop="firewall-deny")
        Talk(c, client, server).up(T("S"), drop="firewall-deny")
        Talk(c, (host, 40001), server).down(U(), drop="firewall-deny")  # another port of the host
        Talk(c, client, (outside, 54)).down(U(), drop="firewall-deny")  # another port of the server
        other = S6B if ":" in host else S4B
        Talk(c, client, (other, 53), there=AT_SERVER2).down(U(), drop="firewall-deny")  # another server


@story("fw-rule-order", "The first rule that matches decides, narrow behind wide or wide behind narrow.",
       "scapy script: the annotated config (first match)",
       zoned(rule("not-this-one", "deny", "inside", {"prefix": S4}, service="udp"),
             rule("out", "allow", "inside", "outside", service="udp"),
             rule("too-late", "deny", "inside", {"prefix": S4B}, service="udp"),
             rule("too-late-as-well", "allow", "inside", {"prefix": S4})))
def _(c):
    Talk(c, A4, DNS4).up(U(), drop="firewall-deny")
    Talk(c, A4, (S4B, 53), there=AT_SERVER2).up(U())
    Talk(c, A6, DNS6).up(U())
    Talk(c, A4, DNS4).up(T("S", 1))  # no UDP: the last rule is the first that matches


@story("fw-admin-rules-first", "Admin rules come before all others, whichever stand first in the file.",
       "scapy script: the annotated config (admin rules before all others)",
       zoned(rule("out", "allow", "inside", "outside"),
             rule("no-smtp", "deny", "inside", "outside", service="tcp/25", kind="admin_rule"),
             rule("but-ssh", "allow", "outside", "inside", service="tcp/22", kind="admin_rule"),
             rule("nothing-in", "deny", "outside", "inside")))
def _(c):
    for client, server, port in ((A4, S4, 25), (A6, S6, 25)):
        Talk(c, client, (server, port)).up(T("S", 1), drop="firewall-deny")
        Talk(c, client, (server, 443)).up(T("S", 1))
        Talk(c, (client[0], 22), (server, 50000)).down(T("S", 1))
        Talk(c, (client[0], 23), (server, 50000)).down(T("S", 1), drop="firewall-deny")


REJECT = zoned(rule("no", "reject", "inside", "outside"))


@story("fw-reject-ipv4", "Who is rejected is told: administratively prohibited, from the ingress address, quoting the packet as it came.",
       "scapy script: RFC 1812 sections 5.2.7.1 (code 13) and 4.3.2", REJECT)
def _(c):
    for said in (U(), U(600), ASK(), lambda s, d: SCTP(sport=s, dport=d, tag=0) / payload(16)):
        p = rebuilt(v4() / said(40000, 53))
        c.error("lan", from_host(p), "firewall-reject", to_host(prohibited(p)))
    p = v4(proto=47) / payload(24)
    c.error("lan", from_host(p), "firewall-reject", to_host(prohibited(p)))
    p = rebuilt(v4(ttl=1) / U()(40000, 53))  # the rules come before the TTL: traceroute learns nothing
    c.error("lan", from_host(p), "firewall-reject", to_host(prohibited(p)))


@story("fw-reject-ipv6", "Who is rejected is told: communication administratively prohibited, code 1.",
       "scapy script: RFC 4443 sections 3.1 and 2.4", REJECT)
def _(c):
    for said in (U(), U(1400), ASK6(), lambda s, d: SCTP(sport=s, dport=d, tag=0) / payload(16)):
        p = rebuilt(v6() / said(40000, 53))
        c.error("lan", from_host(p), "firewall-reject", to_host(prohibited(p)))


SEGMENTS = [T("S", 1000), T("S", 0xFFFFFFFF), T("SEC", 7), T("S", 1000, data=10), T("A", 1000, 9000), T("PA", 1000, 9000, data=100),
            T("FA", 1000, 9000), T("SA", 1000, 9000)]


@story("fw-reject-tcp-ipv4", "A rejected TCP segment is answered with the RST that its sender accepts; a RST is not answered.",
       "scapy script: RFC 9293 section 3.10.7.1 (SEQ and ACK of the reset)", REJECT)
def _(c):
    for said in SEGMENTS:
        p = rebuilt(v4() / said(40000, 443))
        c.error("lan", from_host(p), "firewall-reject", to_host(reset(p)))
    for said in (T("R", 1000), T("RA", 1000, 9000)):
        c.rx("lan", from_host(v4() / said(40000, 443)), drop="firewall-reject")


@story("fw-reject-tcp-ipv6", "A rejected TCP segment is answered with the RST that its sender accepts; a RST is not answered.",
       "scapy script: RFC 9293 section 3.10.7.1 (SEQ and ACK of the reset)", REJECT)
def _(c):
    for said in SEGMENTS:
        p = rebuilt(v6() / said(40000, 443))
        c.error("lan", from_host(p), "firewall-reject", to_host(reset(p)))
    for said in (T("R", 1000), T("RA", 1000, 9000)):
        c.rx("lan", from_host(v6() / said(40000, 443)), drop="firewall-reject")


@story("fw-groups", "Groups hold addresses, prefixes and ranges of both families, and other groups; the edges are in.",
       "scapy script: the annotated config (groups)",
       zoned(table("group", name="all", members=["group:some", "198.51.100.40", "2001:db8:2::40"]),
             table("group", name="some", members=["group:few", "198.51.100.32/30"]),
             table("group", name="few", members=["198.51.100.20-198.51.100.22", "2001:db8:2::20-2001:db8:2::22"]),
             table("group", name="empty", members=[]),
             rule("nobody", "deny", {"group": "empty"}),
             rule("out", "allow", "inside", {"group": "all"}),
             *(neighbour("wan", f"198.51.100.{n}", SERVER) for n in (19, 22, 23, 31, 32, 35, 36, 39, 40, 41)),
             *(neighbour("wan", f"2001:db8:2::{n}", SERVER) for n in ("1f", 22, 23, "3f", 40, 41))))
def _(c):
    inside = {20, 22, 32, 35, 40}
    for n in (19, 20, 22, 23, 31, 32, 35, 36, 39, 40, 41):
        Talk(c, A4, (f"198.51.100.{n}", 53)).up(U(), drop=None if n in inside else "firewall-deny")
    for n in ("1f", "20", "22", "23", "3f", "40", "41"):
        Talk(c, A6, (f"2001:db8:2::{n}", 53)).up(U(), drop=None if n in ("20", "22", "40") else "firewall-deny")


@story("fw-prefixes-and-ranges", "Sides are prefixes, addresses or ranges; any of them is enough, and all kinds of condition must hold.",
       "scapy script: the annotated config (sides of a rule)",
       zoned(rule("half", "allow", {"zone": "inside", "prefix": ["192.0.2.8/30", "192.0.2.20-192.0.2.21", "2001:db8:1::/112"]},
                  {"zone": "outside", "prefix": ["198.51.100.20", "2001:db8:2::20"]}),
             *(neighbour("lan", f"192.0.2.{n}", HOST) for n in (7, 8, 12, 19, 20, 21, 22))))
def _(c):
    for n in (7, 8, 10, 11, 12, 19, 20, 21, 22):
        Talk(c, (f"192.0.2.{n}", 40000), DNS4).up(U(), drop=None if n in (8, 10, 11, 20, 21) else "firewall-deny")
    Talk(c, A4, (S4B, 53), there=AT_SERVER2).up(U(), drop="firewall-deny")
    Talk(c, A6, DNS6).up(U())
    Talk(c, ("2001:db8:1::1:0", 40000), DNS6).up(U(), drop="firewall-deny")


DMZ = interface("dmz", ["203.0.113.1/24", "2001:db8:3::1/64"], zone="inside")
AT_DMZ = End("dmz", HOST2, GW_DMZ)


@story("fw-interfaces", "A rule may ask for one interface of a zone, as where a session comes from and as where it goes.",
       "scapy script: the annotated config (sides of a rule)",
       zoned(DMZ, neighbour("dmz", "203.0.113.30", HOST2),
             rule("dmz-out", "allow", {"interface": "dmz"}, {"interface": "wan"}, service="udp/53"),
             rule("into-dmz", "allow", "outside", {"zone": "inside", "interface": "dmz"}, service="tcp/80"),
             ports=("lan", "wan", "dmz")))
def _(c):
    Talk(c, ("203.0.113.30", 40000), DNS4, here=AT_DMZ).up(U())
    Talk(c, A4, DNS4).up(U(), drop="firewall-deny")
    Talk(c, ("203.0.113.30", 80), (S4, 50000), here=AT_DMZ).down(T("S", 1))
    Talk(c, (H4, 80), (S4, 50000)).down(T("S", 1), drop="firewall-deny")


@story("fw-vrfs", "A rule may ask for a VRF: the same addresses, allowed in one and not in the other.",
       "scapy script: the annotated config (sides of a rule), RFC 4364 section 3",
       config(*(text for vrf, vlan in (("red", 100), ("blue", 200)) for text in (
           interface(f"{vrf}-in", ["192.0.2.1/24"], port="lan", vlan=vlan, vrf=vrf, zone="inside"),
           interface(f"{vrf}-out", ["198.51.100.1/24"], port="wan", vlan=vlan, vrf=vrf, zone="outside"),
           neighbour(f"{vrf}-in", H4, HOST), neighbour(f"{vrf}-out", S4, SERVER))),
           rule("red-only", "allow", {"zone": "inside", "vrf": "red"}, "outside", service="udp/53"),
           rule("to-blue", "allow", "inside", {"zone": "outside", "vrf": "blue"}, service="udp/123")))
def _(c):
    for vlan, dns, ntp in ((100, None, "firewall-deny"), (200, "firewall-deny", None)):
        ends = {"here": End("lan", HOST, GW_LAN, vlan), "there": End("wan", SERVER, GW_WAN, vlan)}
        talk = Talk(c, A4, DNS4, **ends)
        talk.up(U(), drop=dns)
        talk.down(U(), drop=dns)
        Talk(c, A4, (S4, 123), **ends).up(U(), drop=ntp)


@story("fw-self-default", "Without a rule the gateway itself is open to ICMP only, from every zone; neighbour discovery and ARP always work.",
       "scapy script: the annotated config (to the gateway ICMP only), RFC 4861 section 7.2.4, RFC 826",
       zoned(rule("nothing", "deny", "outside", "inside")))
def _(c):
    for own, host in ((L4, H4), (W4, H4), (L6, H6), (W6, H6)):
        ask, answer = own_echo(own, host)
        c.answer("lan", from_host(ask), to_host(answer))
        c.rx("lan", from_host(ip(host, own) / U()(40000, 53)), drop="firewall-deny")
        c.rx("lan", from_host(ip(host, own) / T("S", 1)(40000, 22)), drop="firewall-deny")
    ask, answer = own_echo(W4, S4)
    c.answer("wan", from_server(ask), to_server(answer))
    c.rx("wan", from_server(v4(S4, W4) / T("S", 1)(40000, 179)), drop="firewall-deny")
    c.answer("lan", arp_request(HOST, H4, L4), arp_reply(GW_LAN, L4, HOST, H4))
    c.answer("lan", solicit(HOST, H6, L6), advertise(GW_LAN, L6, HOST, H6))


@story("fw-self-rules", "Rules for the zone self open the gateway to a service (which nothing answers yet), and can close it to ICMP; not to ARP and neighbour discovery.",
       "scapy script: the annotated config (zone self), DESIGN section 6 (host path)",
       zoned(rule("bgp", "allow", {"zone": "outside", "prefix": [S4, S6]}, "self", service="tcp/179"),
             rule("quiet", "deny", "outside", "self"),
             rule("through", "allow", "inside", "outside")))
def _(c):
    for own, peer, other in ((W4, S4, S4B), (W6, S6, S6B)):
        c.rx("wan", from_server(ip(peer, own) / T("S", 1)(40000, 179)), drop="no-host-path")
        c.rx("wan", from_server(ip(peer, own) / T("S", 1)(40000, 180)), drop="firewall-deny")
        c.rx("wan", AT_SERVER2.sends(ip(other, own) / T("S", 1)(40000, 179)), drop="firewall-deny")
        ask, _ = own_echo(own, peer)
        c.rx("wan", from_server(ask), drop="firewall-deny")
        inside = L6 if ":" in own else L4
        c.rx("wan", from_server(ip(peer, inside) / U()(1, 2)), drop="firewall-deny")  # self, whichever address
    ask, answer = own_echo(L4, H4)
    c.answer("lan", from_host(ask), to_host(answer))
    c.answer("wan", arp_request(SERVER, S4, W4), arp_reply(GW_WAN, W4, SERVER, S4))
    c.answer("wan", solicit(SERVER, S6, W6), advertise(GW_WAN, W6, SERVER, S6))


@story("fw-any-is-the-gateway-as-well", "A rule without `to` counts for the gateway itself, too.",
       "scapy script: the annotated config (any is the gateway as well)",
       zoned(rule("no-echo", "deny", "inside", service=["icmp/echo-request", "icmpv6/echo-request"]),
             rule("ssh", "allow", "inside", service="tcp/22")))
def _(c):
    for own, host in ((L4, H4), (L6, H6)):
        ask, _ = own_echo(own, host)
        c.rx("lan", from_host(ask), drop="firewall-deny")
        c.rx("lan", from_host(ip(host, own) / T("S", 1)(40000, 22)), drop="no-host-path")
        c.rx("lan", from_host(ip(host, own) / T("S", 1)(40000, 23)), drop="firewall-deny")
    Talk(c, A4, (S4, 22)).up(T("S", 1))


@story("fw-reject-at-the-gateway", "Rejected for the zone self: the RST or the ICMP error comes from the gateway just so.",
       "scapy script: RFC 9293 section 3.10.7.1, RFC 1812 section 5.2.7.1, RFC 4443 section 3.1",
       zoned(rule("no", "reject", "inside", "self", service=["tcp", "udp"])))
def _(c):
    for own, host in ((L4, H4), (L6, H6)):
        p = rebuilt(ip(host, own) / T("S", 77)(40000, 22))
        c.error("lan", from_host(p), "firewall-reject", to_host(reset(p)))
        p = rebuilt(ip(host, own) / U()(40000, 53))
        c.error("lan", from_host(p), "firewall-reject", to_host(prohibited(p)))
        ask, answer = own_echo(own, host)
        c.answer("lan", from_host(ask), to_host(answer))


@story("fw-ports", "Services with ports and ranges, source ports: the edges are in, what lies beyond is not; TCP's are not UDP's.",
       "scapy script: the annotated config (services)",
       zoned(rule("range", "allow", "inside", "outside", service=["tcp/1000-2000", "tcp/443", "udp/53"]),
             rule("from", "allow", "inside", "outside", service="udp/5000", source_ports=["1024-2047", "50000"])))
def _(c):
    for client, server in ((H4, S4), (H6, S6)):
        for port, ok in ((442, 0), (443, 1), (444, 0), (999, 0), (1000, 1), (1500, 1), (2000, 1), (2001, 0), (53, 0), (65535, 0)):
            Talk(c, (client, 40000), (server, port)).up(T("S", 1), drop=None if ok else "firewall-deny")
        for port, ok in ((53, 1), (443, 0), (1000, 0)):
            Talk(c, (client, 40000), (server, port)).up(U(), drop=None if ok else "firewall-deny")
        for port, ok in ((1023, 0), (1024, 1), (2047, 1), (2048, 0), (49999, 0), (50000, 1), (50001, 0)):
            Talk(c, (client, port), (server, 5000)).up(U(), drop=None if ok else "firewall-deny")


def query(kind, code=0, ident=9):
    """An ICMP message of any type, with an identifier where queries have it."""
    return lambda s, d: ICMP(type=kind, code=code, id=ident, seq=1, ts_ori=1, ts_rx=2, ts_tx=3, addr_mask="255.255.255.0")


@story("fw-icmp-types", "A rule for a type of ICMP query lets that type begin a session and its reply back, and no other.",
       "scapy script: the annotated config (services), RFC 792, RFC 4443 section 4.1",
       zoned(rule("ping", "allow", "inside", "outside", service=["icmp/echo-request", "icmpv6/128", "icmp/13"]),
             rule("ping-in", "allow", "outside", "inside", service="icmpv6/echo-request")))
def _(c):
    talk = Talk(c, (H4, 9), (S4, 9))
    talk.up(ASK())
    talk.down(ANSWER())
    talk.down(ANSWER(seq=2))
    Talk(c, (H4, 10), (S4, 10)).up(ANSWER(), drop="firewall-deny")  # a reply nobody asked for
    Talk(c, (H4, 11), (S4, 11)).down(ASK(), drop="firewall-deny")
    talk = Talk(c, (H4, 12), (S4, 12))
    talk.up(query(13, ident=12))
    talk.down(query(14, ident=12))
    Talk(c, (H4, 13), (S4, 13)).up(query(17, ident=13), drop="firewall-deny")
    talk = Talk(c, (H6, 9), (S6, 9))
    talk.up(ASK6())
    talk.down(ANSWER6())
    talk = Talk(c, (H6, 14), (S6, 14))
    talk.down(lambda s, d: ICMPv6EchoRequest(id=d, seq=1, data=bytes(8)))
    talk.up(lambda s, d: ICMPv6EchoReply(id=s, seq=1, data=bytes(8)))


@story("fw-icmp-without-session", "ICMP that is neither a query nor an error about a session has no business between zones, whatever the rules.",
       "scapy script: RFC 792, RFC 4890 section 4.3 (redirects, neighbour discovery and router messages are not forwarded), RFC 6633 section 4",
       zoned(rule("all-out", "allow", "inside", "outside"), rule("all-in", "allow", "outside", "inside")))
def _(c):
    quoted = Raw(bytes(v4(S4, H4) / U()(53, 40000)))
    for kind in (4, 5, 9, 10, 15, 40):
        c.rx("lan", from_host(v4() / ICMP(type=kind) / quoted), drop="firewall-deny")
    quoted = Raw(bytes(v6(S6, H6) / U()(53, 40000)))
    for message in (ICMPv6ND_Redirect(tgt="2001:db8:2::1", dst=S6), ICMPv6ND_NS(tgt=S6), ICMPv6ND_RA()):
        c.rx("lan", from_host(v6() / message), drop="firewall-deny")


@story("fw-dscp", "A rule may ask for the DSCP of the first packet; later packets of the session may have another.",
       "scapy script: the annotated config (dscp), RFC 2474 section 3, RFC 3246 (EF is 46)",
       zoned(rule("marked", "allow", "inside", "outside", dscp=["ef", 12])))
def _(c):
    for client, server in ((A4, S4), (A6, S6)):
        name = "tc" if ":" in client[0] else "tos"
        for port, dscp, ok in ((1, 46, 1), (2, 12, 1), (3, 0, 0), (4, 45, 0), (5, 47, 0), (6, 11, 0)):
            talk = Talk(c, client, (server, port))
            talk.up(U(), drop=None if ok else "firewall-deny", **{name: dscp << 2 | 1})  # the ECN bits do not count
            talk.down(U(), drop=None if ok else "firewall-deny")
            if ok:
                talk.up(U(), **{name: 0})


@story("fw-tcp-flags", "A rule may ask for flags of the first segment, set and not set.",
       "scapy script: the annotated config (tcp_flags), RFC 9293 section 3.1, RFC 3168 section 6.1.1 (an ECN-setup SYN has ECE and CWR)",
       zoned(rule("plain-syn", "allow", "inside", "outside", service="tcp/80", tcp_flags=["syn", "!ack", "!ece"]),
             rule("ecn-syn", "allow", "inside", "outside", service="tcp/81", tcp_flags=["syn", "ece", "cwr"])))
def _(c):
    for client, server in ((H4, S4), (H6, S6)):
        for n, (port, flags, ok) in enumerate(((80, "S", 1), (80, "SEC", 0), (80, "SA", 0), (80, "A", 0),
                                               (81, "S", 0), (81, "SEC", 1), (81, "SE", 0))):
            Talk(c, (client, 41000 + n), (server, port)).up(T(flags, 1, 1 if "A" in flags else 0), drop=None if ok else "firewall-deny")


@story("fw-protocols", "Protocols without ports are sessions between two addresses; each with a name or a number of its own.",
       "scapy script: the annotated config (services), IANA protocol numbers",
       zoned(rule("some", "allow", "inside", "outside", service=["esp", "gre", "proto/89", "sctp/5000"])))
def _(c):
    for client, server, key in ((H4, S4, "proto"), (H6, S6, "nh")):
        for number, ok in ((50, 1), (47, 1), (89, 1), (115, 0), (253, 0)):
            talk = Talk(c, (client, 0), (server, 0))
            drop = None if ok else "firewall-deny"
            talk.down(lambda s, d: payload(24), drop="firewall-deny", **{key: number})
            talk.up(lambda s, d: payload(24), drop=drop, **{key: number})
            talk.down(lambda s, d: payload(25), drop=drop, **{key: number})
        for port, ok in ((5000, 1), (5001, 0)):
            talk = Talk(c, (client, 7), (server, port))
            talk.up(lambda s, d: SCTP(sport=s, dport=d, tag=0) / payload(16), drop=None if ok else "firewall-deny")
            talk.down(lambda s, d: SCTP(sport=s, dport=d, tag=9) / payload(16), drop=None if ok else "firewall-deny")


@story("fw-extension-headers", "Behind IPv6 extension headers the ports are found, in both directions; behind an unknown one the protocol is that.",
       "scapy script: RFC 8200 section 4.1, RFC 7045 section 2.1",
       zoned(rule("dns", "allow", "inside", "outside", service="udp/53")))
def _(c):
    def behind(said):
        return lambda s, d: IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]) / said(s, d)
    talk = Talk(c, A6, DNS6)
    talk.up(behind(U()))
    talk.down(U())
    talk.down(behind(U()))
    Talk(c, A6, (S6, 54)).up(behind(U()), drop="firewall-deny")


@story("fw-stale-reply", "A reply passes while its session lives and not a moment longer; who asks again is answered again.",
       "scapy script: the annotated config ([flows] udp_unreplied_s, udp_s)",
       zoned(rule("dns", "allow", "inside", "outside", service="udp/53"), extra="[flows]\nudp_unreplied_s = 20\nudp_s = 60\n"))
def _(c):
    for start, client, server in ((0, A4, DNS4), (200_000, A6, DNS6)):
        c.at(start)
        talk = Talk(c, client, server)
        talk.up(U())
        c.at(start + 25_000)
        talk.down(U(), drop="firewall-deny")
        talk.up(U())
        talk.down(U())
        c.at(start + 80_000)
        talk.down(U())  # 55 s later
        c.at(start + 145_000)
        talk.down(U(), drop="firewall-deny")


@story("fw-answers-of-the-gateway", "What the gateway itself says needs no rule: errors about packets between zones reach their senders.",
       "scapy script: the annotated config (from the gateway itself all may pass), RFC 1812 section 5.3.1, RFC 4443 sections 3.1 and 3.3", zoned(OUT))
def _(c):
    for client, own, unrouted in ((H4, L4, "203.0.113.77"), (H6, L6, "2001:db8:77::7")):
        server = S6 if ":" in client else S4
        p = rebuilt(ip(client, server, ttl=1) / U()(40000, 53))
        told = icmp6(own, client, ICMPv6TimeExceeded(), p) if ":" in client else icmp4(own, client, 11, 0, p)
        c.error("lan", from_host(p), "ttl-expired", to_host(told))
        p = rebuilt(ip(client, unrouted) / U()(40000, 53))
        told = icmp6(own, client, ICMPv6DestUnreach(code=0), p) if ":" in client else icmp4(own, client, 3, 0, p)
        c.error("lan", from_host(p), "no-route", to_host(told))


@story("fw-full-table", "When the session table is full a new session is refused, with host unreachable, and the old ones go on.",
       "scapy script: RFC 6888 REQ-11, the annotated config ([flows] capacity)", zoned(OUT, extra="[flows]\ncapacity = 64\n"), workers=(1,))
def _(c):
    talks = [Talk(c, (H4, 40000 + n), DNS4) for n in range(64)]
    for talk in talks:
        talk.up(U(8))
        talk.down(U(9))
    p = rebuilt(v4() / U(8)(41000, 53))
    c.error("lan", from_host(p), "session-table-full", to_host(icmp4(L4, H4, 3, 1, p)))
    for talk in talks[::21]:
        talk.down(U(9))


@story("fw-denied-is-forgotten", "What is denied or expires on the way out leaves no session behind for replies to use.",
       "scapy script: the annotated config (replies pass of allowed sessions only)", zoned(rule("dns", "allow", "inside", "outside", service="udp/53")))
def _(c):
    Talk(c, A4, (S4, 54)).up(U(), drop="firewall-deny")
    Talk(c, A4, (S4, 54)).down(U(), drop="firewall-deny")
    p = rebuilt(v4(ttl=1) / U()(40000, 53))
    c.error("lan", from_host(p), "ttl-expired", to_host(icmp4(L4, H4, 11, 0, p)))
    Talk(c, A4, DNS4).down(U(), drop="firewall-deny")


@story("fw-other-way-in", "A session's packet that comes in elsewhere passes within the zone, and not from another zone.",
       "scapy script: DESIGN section 2 (a hit from another ingress), RFC 3704 section 2.2",
       zoned(DMZ, neighbour("dmz", "203.0.113.30", HOST2), OUT, route("10.9.0.0/16", H4), ports=("lan", "wan", "dmz")))
def _(c):
    talk = Talk(c, ("10.9.8.7", 40000), DNS4)
    talk.up(U())
    Talk(c, ("10.9.8.7", 40000), DNS4, here=AT_DMZ).up(U())  # asymmetric, same zone
    talk.down(U())  # the way back follows the routes
    c.rx("wan", from_server(v4("10.9.8.7", S4) / U()(40000, 53)), drop="source-check")
