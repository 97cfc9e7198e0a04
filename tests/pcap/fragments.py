"""Fragments between zones: each datagram has the fate of its first fragment, in whatever order they come."""

from lib import *
from nat import A, B, DNS, DNS2, NATTED, POOL, S
from scapy.all import IPOption_NOP

OPEN = zoned(OUT)
WEB_ONLY = zoned(rule("dns", "allow", "inside", "outside", service="udp/53"))


def pieces(packet, *cuts, ident=77):
    """The fragments of a whole packet, cut at these offsets of its payload (RFC 791 section 3.2, RFC 8200
    section 4.5)."""
    data = bytes(packet)
    size = 40 if data[0] >> 4 == 6 else (data[0] & 15) * 4
    head, body = data[:size], data[size:]
    edges = [0, *cuts, len(body)]
    out = []
    for start, end in zip(edges, edges[1:]):
        more = end < len(body)
        if len(head) == 40:
            fragment = bytes([head[6], 0]) + (start | more).to_bytes(2, "big") + ident.to_bytes(4, "big")
            h = head[:4] + (8 + end - start).to_bytes(2, "big") + b"\x2c" + head[7:]
            out.append(Raw(h + fragment + body[start:end]))
            continue
        h = bytearray(head)
        h[2:4] = (size + end - start).to_bytes(2, "big")
        h[4:6] = ident.to_bytes(2, "big")
        h[6:8] = (more << 13 | start // 8).to_bytes(2, "big")
        h[10:12] = b"\0\0"
        h[10:12] = ones_complement(bytes(h)).to_bytes(2, "big")
        out.append(Raw(bytes(h) + body[start:end]))
    return out


def whole(src, dst, said=None, ttl=64):
    return rebuilt(ip(src[0], dst[0], ttl=ttl) / (said or U(200))(src[1], dst[1]))


BOTH = ((A, DNS), ((H6, 40000), (S6, 53)))


@story("fragments-in-order", "Fragments follow the first one, by the rule for its ports, and so do those of the answer; they leave as they came.",
       "scapy script: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 4787 REQ-14", WEB_ONLY)
def _(c):
    for client, server in BOTH:
        for part in pieces(whole(client, server), 64, 128):
            c.through("lan", from_host(part), "wan", to_server(hop(part)))
        for part in pieces(whole(server, client, U(300)), 104, 200, ident=78):
            c.through("wan", from_server(part), "lan", to_host(hop(part)))
        Talk(c, client, server).down(U())  # the same session


@story("fragments-out-of-order", "Fragments that come before the first wait for it and follow it.",
       "scapy script: RFC 4787 REQ-14a, RFC 791 section 3.2", WEB_ONLY)
def _(c):
    for client, server in BOTH:
        first, second, third = pieces(whole(client, server), 64, 128)
        c.rx("lan", from_host(third))
        c.rx("lan", from_host(second))
        c.rx("lan", from_host(first))
        for part in (first, third, second):
            c.tx("wan", to_server(hop(part)))


@story("fragments-denied", "The rules deny the first fragment: the later ones go with it, those that waited as well. Reject tells the sender once.",
       "scapy script: RFC 1858 section 2, RFC 1812 section 4.3.2.7 (no error about later fragments)",
       zoned(rule("dns", "deny", "inside", "outside", service="udp/53"), rule("ntp", "reject", "inside", "outside", service="udp/123")))
def _(c):
    for client, server in BOTH:
        first, second, third = pieces(whole(client, server), 64, 128)
        c.rx("lan", from_host(first), drop="firewall-deny")
        c.rx("lan", from_host(second), drop="fragment-untracked")
        c.rx("lan", from_host(third), drop="fragment-untracked")
        first, second, third = pieces(whole(client, server), 64, 128, ident=79)
        c.rx("lan", from_host(third), drop="fragment-untracked")
        c.rx("lan", from_host(first), drop="firewall-deny")
        c.rx("lan", from_host(second), drop="fragment-untracked")
        first, second, third = pieces(whole(client, (server[0], 123)), 64, 128, ident=80)
        told = icmp6(L6, client[0], ICMPv6DestUnreach(code=1), first) if ":" in client[0] else icmp4(L4, client[0], 3, 13, first)
        c.rx("lan", from_host(first), drop="firewall-reject")
        c.tx("lan", to_host(told), own=True)
        c.rx("lan", from_host(second), drop="fragment-untracked")


@story("fragments-without-a-first", "Fragments whose first never comes are lost after a quarter of a minute; nobody is told.",
       "scapy script: RFC 791 section 3.2 (15 seconds), RFC 8200 section 4.5 (no error without the first fragment)", OPEN)
def _(c):
    for client, server in BOTH:
        _, second, third = pieces(whole(client, server), 64, 128)
        c.rx("lan", from_host(second), drop="fragment-timeout")
        c.rx("lan", from_host(third), drop="fragment-timeout")
    c.at(30 * S)
    Talk(c, *BOTH[0]).up(U())


@story("fragments-overlap", "Fragments that overlap mean that somebody reads another datagram than we: all that is left of it is dropped. An exact duplicate is none.",
       "scapy script: RFC 5722 section 3, RFC 8200 section 4.5, RFC 1858 section 4, RFC 3128", OPEN)
def _(c):
    for client, server in BOTH:
        first, second, third = pieces(whole(client, server), 64, 128)
        other = pieces(whole(client, server), 56, 128)[1]
        c.through("lan", from_host(first), "wan", to_server(hop(first)))
        c.rx("lan", from_host(other), drop="fragment-overlap")
        c.rx("lan", from_host(second), drop="fragment-overlap")
        c.rx("lan", from_host(third), drop="fragment-overlap")
        first, second, third = pieces(whole(client, server), 64, 128, ident=81)
        for part in (first, second, second, third):
            c.through("lan", from_host(part), "wan", to_server(hop(part)))


@story("fragments-tiny", "A first fragment without the ports and flags of TCP, and one that writes over them later: dropped, and the rest of the datagram with them.",
       "scapy script: RFC 1858 sections 3 and 4.2, RFC 3128 section 2", OPEN)
def _(c):
    for client, server in BOTH:
        tcp = whole(client, (server[0], 443), T("S", 1, data=64))
        for part in pieces(tcp, 16, 40):
            c.rx("lan", from_host(part), drop="fragment-tiny")
        first, second, third = pieces(tcp, 8, 40, ident=82)
        c.rx("lan", from_host(second), drop="fragment-tiny")


@story("fragments-tiny-sctp", "A first fragment that has the ports of SCTP but not its tag and checksum: dropped, and the rest with it. A whole header is enough.",
       "scapy script: RFC 1858 section 3, RFC 7112 section 5, RFC 9260 section 3.1", OPEN)
def _(c):
    for client, server in BOTH:
        sctp = whole(client, server, lambda s, d: Raw(s.to_bytes(2, "big") + d.to_bytes(2, "big") + bytes(8) + bytes(range(52))))
        data = bytearray(bytes(sctp))
        data[6 if len(data) == 104 else 9] = 132
        if len(data) == 84:
            data[10:12] = b"\0\0"
            data[10:12] = ones_complement(bytes(data[:20])).to_bytes(2, "big")
        for part in pieces(bytes(data), 8, 40):
            c.rx("lan", from_host(part), drop="fragment-tiny")
        for part in pieces(bytes(data), 16, 40, ident=78):
            c.through("lan", from_host(part), "wan", to_server(hop(part)))


@story("fragments-behind-extension-headers", "IPv6 fragments behind options and an authentication header, which are parts of each, go with their first as any others; a second fragment header may hide ports, and is refused.",
       "scapy script: RFC 8200 sections 4.1 and 4.5, RFC 4302 section 2.2", WEB_ONLY)
def _(c):
    client, server = BOTH[1]

    def behind(kind, header, part):
        """The header before the fragment header of a fragment."""
        data = bytes(part)
        length = int.from_bytes(data[4:6], "big") + len(header)
        return Raw(data[:4] + length.to_bytes(2, "big") + bytes([kind]) + data[7:40] + b"\x2c" + header[1:] + data[40:])
    options = bytes([0, 0, 1, 4, 0, 0, 0, 0])
    long_options = bytes([0, 2, 1, 20]) + bytes(20)
    signed = bytes([0, 4, 0, 0]) + bytes(range(20))  # (4 + 2) * 4 bytes
    for ident, (kind, header) in enumerate(((60, options), (60, long_options), (51, signed)), 90):
        parts = [behind(kind, header, part) for part in pieces(whole(client, server), 64, 128, ident=ident)]
        for part in parts[1:]:
            c.rx("lan", from_host(part))
        c.rx("lan", from_host(parts[0]))
        for part in parts:
            c.tx("wan", to_server(hop(part)))
    part = pieces(whole(client, server), 64, ident=99)[0]
    twice = behind(44, bytes([0, 0, 0, 1, 0, 0, 0, 7]), part)
    c.rx("lan", from_host(twice), drop="fragment-invalid")


@story("fragments-malformed", "A fragment that is not the last and not of whole 8 bytes, or that ends beyond 65,535.",
       "scapy script: RFC 791 section 3.2, RFC 8200 section 4.5", OPEN)
def _(c):
    c.rx("lan", from_host(v4(flags="MF", id=5) / U(61)(40000, 53)), drop="fragment-invalid")
    c.rx("lan", from_host(v4(frag=8189, id=6, proto=17) / payload(64)), drop="fragment-invalid")
    c.rx("lan", from_host(v6() / IPv6ExtHdrFragment(m=1, id=5, offset=0) / U(61)(40000, 53)), drop="fragment-invalid")


@story("fragments-atomic-ipv6", "A datagram that is all in one fragment is a whole one, and no other with its number concerns it.",
       "scapy script: RFC 6946 section 4, RFC 8200 section 4.5", WEB_ONLY)
def _(c):
    client, server = BOTH[1]
    first, second, _ = pieces(whole(client, server), 64, 128)
    c.through("lan", from_host(first), "wan", to_server(hop(first)))
    for n in range(2):
        part = rebuilt(v6() / IPv6ExtHdrFragment(m=0, offset=0, id=77) / U(50 + n)(40000, 53))
        c.through("lan", from_host(part), "wan", to_server(hop(part)))
    c.through("lan", from_host(second), "wan", to_server(hop(second)))


@story("fragments-of-a-connection", "TCP segments in fragments belong to their connection, whose bounds they move.",
       "scapy script: RFC 791 section 3.2, RFC 9293 section 3.4", OPEN)
def _(c):
    for client, server in (((H4, 40000), (S4, 443)), ((H6, 40000), (S6, 443))):
        talk = Talk(c, client, server).handshake()
        for part in pieces(whole(client, server, T("PA", 1001, 5001, data=1000)), 400, 800):
            c.through("lan", from_host(part), "wan", to_server(hop(part)))
        talk.down(T("A", 5001, 2001))
        talk.up(T("PA", 2001, 5001, data=10))


def out_in_pieces(c, said, inside, outside, cuts, number, order=None):
    """A datagram of the host through NAT in fragments: the datagram as it is outside, cut at the same places."""
    parts = list(zip(pieces(whole(*inside, said), *cuts), pieces(whole(*outside, said, ttl=63), *cuts, ident=number)))
    for part, _ in parts:
        c.rx("lan", from_host(part))
    for _, part in parts:
        c.tx("wan", to_server(part))


@story("fragments-nat-outbound", "A datagram in fragments through NAT: the port and the checksum of the whole in the first, the address in all, one identification.",
       "scapy script: RFC 3022 section 6.3, RFC 4787 REQ-14, RFC 7857 section 10", NATTED)
def _(c):
    p, q, i, j = c.choice("p"), c.choice("q", 0), c.choice("i", 0), c.choice("j", 0)
    out_in_pieces(c, U(600), (A, DNS), ((POOL, p), DNS), (208, 400), i)
    out_in_pieces(c, ASK(1, 600), ((H4, 7), (S4, 0)), ((POOL, q), (S4, 0)), (304,), j)
    Talk(c, A, DNS, seen=(POOL, p)).down(U())


@story("fragments-nat-inbound", "The answer in fragments, in order and the last one first.",
       "scapy script: RFC 3022 section 6.3, RFC 4787 REQ-14a", NATTED)
def _(c):
    p, i, j = c.choice("p"), c.choice("i", 0), c.choice("j", 0)
    Talk(c, A, DNS, seen=(POOL, p)).up(U())
    for ident, number, order in ((70, i, (0, 1, 2)), (71, j, (2, 0, 1))):
        outside = pieces(whole(DNS, (POOL, p), U(600)), 208, 400, ident=ident)
        inside = pieces(whole(DNS, A, U(600), ttl=63), 208, 400, ident=number)
        for n in order:
            c.rx("wan", from_server(outside[n]))
        for n in ((0, 2, 1) if order[0] else order):
            c.tx("lan", to_host(inside[n]), at=c.now_ms - 1)


@story("fragments-nat-same-identification", "Two hosts send fragments with the same identification to the same server: outside they differ, or the server would mix them up.",
       "scapy script: RFC 7857 section 10, RFC 6864 section 5.3.1, RFC 4963 section 2", NATTED)
def _(c):
    p, q, i, j = c.choice("p"), c.choice("q", unlike=["p"]), c.choice("i", 0), c.choice("j", 0, unlike=["i"])
    one = list(zip(pieces(whole(A, DNS), 104), pieces(whole((POOL, p), DNS, ttl=63), 104, ident=i)))
    other = list(zip(pieces(whole((H4B, 40000), DNS), 104), pieces(whole((POOL, q), DNS, ttl=63), 104, ident=j)))
    for n in range(2):
        for end, parts in ((AT_HOST, one), (AT_HOST2, other)):
            c.rx("lan", end.sends(parts[n][0]))
            c.tx("wan", to_server(parts[n][1]))


@story("fragments-too-many", "A datagram of more than 64 fragments: the 65th is dropped, and all that comes behind it.",
       "scapy script: the annotated catalogue of drop reasons (fragment-too-many: a stated limit)", OPEN)
def _(c):
    for client, server in BOTH:
        for n, part in enumerate(pieces(whole(client, server, U(520)), *range(8, 528, 8))):
            if n < 64:
                c.through("lan", from_host(part), "wan", to_server(hop(part)))
            else:
                c.rx("lan", from_host(part), drop="fragment-too-many")


@story("fragments-table-full", "A source may have 128 datagrams under way whose first fragment has not come; another source is not concerned.",
       "scapy script: the annotated catalogue of drop reasons (fragment-table-full: a stated limit), RFC 4787 REQ-14a", OPEN, workers=(1,))
def _(c):
    client, server = BOTH[0]
    for ident in range(130):
        _, second = pieces(whole(client, server), 64, ident=ident)
        c.rx("lan", from_host(second), drop="fragment-timeout" if ident < 128 else "fragment-table-full")
    for part in pieces(whole((H4B, 40000), server), 64):
        c.through("lan", AT_HOST2.sends(part), "wan", to_server(hop(part)))
    c.at(30 * S)
    Talk(c, client, server).up(U())


# -- the identification of whole datagrams ----------------------------------------------------------------------------
def cuttable(ends, said, ident, ttl=64, **keys):
    """A whole datagram that a router may still cut (DF clear: not atomic, RFC 6864 section 4.1)."""
    (src, sport), (dst, dport) = ends
    return rebuilt(ip(src, dst, ttl, id=ident, flags=0, **keys) / said(sport, dport))


def renumbered(c, rx, before, tx, after, said, ident, number, **keys):
    """Through NAT: it comes with one identification and leaves with another one, or with the same."""
    c.rx(rx.port, rx.sends(cuttable(before, said, ident, **keys)))
    c.tx(tx.port, tx.gets(cuttable(after, said, number, ttl=63, **keys)))


KINDS = (("u", U(50), 40000, 53), ("t", T("S", 1), 40000, 80))
WEB = ("203.0.113.9", 80)
PUBLISHED = (destination_nat("web", "203.0.113.9", "192.0.2.10:8080", service="tcp/80"),
             destination_nat("dns", "203.0.113.9", "192.0.2.11:53", service="udp/53"))


@story("nat-identification", "Two hosts send whole datagrams that may be cut with the same identification to the same server: outside each has another one, or their fragments would be mixed up. Those with DF set keep theirs, as all do that nobody translates.",
       "scapy script: RFC 7857 section 10, RFC 6864 sections 4.1 and 5.3.1", zoned(OUT, source_nat("internet", [POOL], to={"prefix": S4})))
def _(c):
    ids = []
    ports = {}
    for again in range(2):
        for kind, said, sport, dport in KINDS:
            for host, here, name in ((H4, AT_HOST, "a"), (H4B, AT_HOST2, "b")):
                key = kind + name
                if not again:
                    ports[key] = c.choice(key, unlike=[k for k in ports if k[0] == kind])
                number = c.choice(f"i{len(ids)}", 0, unlike=ids)
                ids.append(f"i{len(ids)}")
                renumbered(c, here, ((host, sport), (S4, dport)), AT_SERVER, ((POOL, ports[key]), (S4, dport)), said, 777, number)
    q = c.choice("q", 0)
    renumbered(c, AT_HOST, ((H4, 7), (S4, 0)), AT_SERVER, ((POOL, q), (S4, 0)), ASK(), 777, c.choice("e", 0, unlike=ids))
    # With options, which takes it the long way.
    renumbered(c, AT_HOST, (A, DNS), AT_SERVER, ((POOL, ports["ua"]), DNS), U(50), 777, c.choice("o", 0, unlike=[*ids, "e"]), options=[IPOption_NOP()] * 4)
    for ident in (0, 777, 0xFFFF):
        Talk(c, A, DNS, seen=(POOL, ports["ua"])).up(U(50), id=ident)
        Talk(c, A, DNS, seen=(POOL, ports["ua"])).up(U(50), id=ident, options=[IPOption_NOP()] * 4)
        renumbered(c, AT_HOST, (A, DNS2), AT_SERVER2, (A, DNS2), U(50), ident, ident)


@story("nat-identification-of-answers", "Answers through a pool have another destination only: their identification is their sender's, as before.",
       "scapy script: RFC 6864 section 5.3.1 (uniqueness by source, destination and protocol), the annotated config (identifications)", NATTED)
def _(c):
    p = c.choice("p")
    Talk(c, A, DNS, seen=(POOL, p)).up(U(50))
    for ident in (0, 777, 777, 0xFFFF):
        renumbered(c, AT_SERVER, (DNS, (POOL, p)), AT_HOST, (DNS, A), U(60), ident, ident)


@story("nat-identification-published", "Requests to a published address keep their identification. What two servers behind it answer leaves with one source: each answer that may be cut gets another identification.",
       "scapy script: RFC 7857 section 10, RFC 6864 section 5.3.1", zoned(OUT, rule("in", "allow", "outside", "inside"), *PUBLISHED))
def _(c):
    client = (S4, 50000)
    ids = []
    for n in range(3):
        for asked, server, there, ask, answer in ((WEB, (H4, 8080), AT_HOST, T("S", 1), T("SA", 9, 2)),
                                                  ((WEB[0], 53), (H4B, 53), AT_HOST2, U(40), U(300))):
            renumbered(c, AT_SERVER, (client, asked), there, (client, server), ask, 777, 777)
            number = c.choice(f"i{len(ids)}", 0, unlike=ids)
            ids.append(f"i{len(ids)}")
            renumbered(c, there, (server, client), AT_SERVER, (asked, client), answer, 777, number)
    talk = Talk(c, client, (H4B, 53), asked=(WEB[0], 53), here=AT_SERVER, there=AT_HOST2)
    talk.up(U(1), id=5)
    talk.down(U(2), id=5)


@story("nat-identification-hairpin", "Between two inside hosts by their outside addresses both ends are rewritten: another identification.",
       "scapy script: RFC 7857 section 10, RFC 6864 section 5.3.1, RFC 4787 REQ-9", NATTED)
def _(c):
    pa, pb = c.choice("pa"), c.choice("pb", unlike=["pa"])
    Talk(c, B, DNS, seen=(POOL, pb), here=AT_HOST2).up(U())
    i, j = c.choice("i", 0), c.choice("j", 0, unlike=["i"])
    renumbered(c, AT_HOST, (A, (POOL, pb)), AT_HOST2, ((POOL, pa), B), U(50), 777, i)
    renumbered(c, AT_HOST2, (B, (POOL, pa)), AT_HOST, ((POOL, pb), A), U(50), 777, j)


@story("nat-identification-of-errors", "An ICMP error of an inside host leaves with the outside address, and if it may be cut with another identification; what it quotes is what the server sent.",
       "scapy script: RFC 6864 section 5.3.1, RFC 5508 REQ-5", NATTED)
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, DNS, seen=(POOL, p))
    talk.up(U())
    talk.down(U(100))
    ids = []
    for n in range(2):
        number = c.choice(f"i{n}", 0, unlike=ids)
        ids.append(f"i{n}")
        was, seen = (rebuilt(ip(S4, dst, 60, id=99) / U(100)(53, port)) for dst, port in (A, (POOL, p)))
        for rx, src, quoted, ident, ttl in ((True, H4, was, 777, 64), (False, POOL, seen, number, 63)):
            error = rebuilt(IP(src=src, dst=S4, ttl=ttl, id=ident) / ICMP(type=3, code=3) / Raw(bytes(quoted)))
            c.rx("lan", from_host(error)) if rx else c.tx("wan", to_server(error))
