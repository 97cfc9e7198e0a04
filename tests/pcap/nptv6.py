"""NPTv6 (RFC 6296): two prefixes that stand for each other, without any change behind the IPv6 header."""

import ipaddress

from lib import *
from nat_icmp import error6

INSIDE, OUTSIDE = "2001:db8:1::/48", "2001:db8:f0::/48"
IN = rule("in", "allow", "outside", "inside")
ROUTED = route("2001:db8:1:8000::/49", H6) + route("fd00::/32", H6)


def nptv6(name, inside, outside, **keys):
    return table("nat.nptv6", name=name, inside=inside, outside=outside, **keys)


def words(address):
    return list(struct.unpack(">8H", ipaddress.IPv6Address(address).packed))


def other(address, old, new):
    """RFC 6296 sections 3.1 to 3.5, word by word: `address` of prefix `old` as it is in `new`."""
    old, new = ipaddress.IPv6Network(old), ipaddress.IPv6Network(new)
    length = max(old.prefixlen, new.prefixlen)
    gain = (sum(words(old.network_address)) - sum(words(new.network_address))) % 0xFFFF
    mask = (1 << 128) - (1 << 128 - length)
    moved = words(ipaddress.IPv6Address(int(new.network_address) | int(ipaddress.IPv6Address(address)) & ~mask))
    at = 3 if length <= 48 else next(n for n in (4, 5, 6, 7) if moved[n] != 0xFFFF)
    moved[at] = (moved[at] + gain) % 0xFFFF  # 0xffff is written as 0
    return str(ipaddress.IPv6Address(struct.pack(">8H", *moved)))


assert other("fd01:203:405:1::1234", "fd01:203:405::/48", "2001:db8:1::/48") == "2001:db8:1:d550::1234"  # section 3.6

SEEN, SEEN_B = other(H6, INSIDE, OUTSIDE), other(H6B, INSIDE, OUTSIDE)
PLAIN = zoned(OUT, IN, ROUTED, nptv6("site", INSIDE, OUTSIDE))


def pair(said, inside, outside, ttl=60):
    """A packet as it is known inside and outside; each is ((src, port), (dst, port))."""
    def packet(ends):
        (src, sport), (dst, dport) = ends
        return rebuilt(v6(src, dst, hlim=ttl) / said(sport, dport))
    return packet(inside), packet(outside)


def moved(packet, src=None, dst=None, hops=1):
    """The very bytes of `packet` with other addresses, one hop later."""
    data = bytearray(bytes(packet))
    for at, address in ((8, src), (24, dst)):
        if address:
            data[at:at + 16] = ipaddress.IPv6Address(address).packed
    data[7] -= hops
    return Raw(bytes(data))


@story("nptv6-outward", "Sessions from inside leave with the outside prefix, and replies come back: ports, identifiers and checksums stay as they were, whatever the protocol.",
       "scapy script: RFC 6296 sections 2.6, 3.2 to 3.4", PLAIN)
def _(c):
    for talk, up, down in ((Talk(c, (H6, 40000), (S6, 53), seen=(SEEN, 40000)), U(40), U(200)),
                           (Talk(c, (H6, 9), (S6, 0), seen=(SEEN, 9)), ASK6(), ANSWER6())):
        sent, got = talk.up(up)
        assert bytes(sent)[40:] == bytes(got)[40:]
        talk.down(down)
        talk.up(up, ttl=2)
    Talk(c, (H6, 40000), (S6, 443), seen=(SEEN, 40000)).handshake()
    for proto in (50, 47, 132, 99):
        p = rebuilt(v6(nh=proto) / payload(40))
        c.through("lan", from_host(p), "wan", to_server(moved(p, src=SEEN)))
        p = rebuilt(v6(S6, SEEN, nh=proto) / payload(40))
        c.through("wan", from_server(p), "lan", to_host(moved(p, dst=H6)))


@story("nptv6-inward", "Sessions from outside reach the host by its outside address; answers leave with it. The inside address is nobody's outside.",
       "scapy script: RFC 6296 section 3.3", PLAIN)
def _(c):
    talk = Talk(c, (S6, 40000), (H6, 80), asked=(SEEN, 80), here=AT_SERVER, there=AT_HOST)
    talk.handshake()
    Talk(c, (S6, 7), (H6, 7), asked=(SEEN, 7), here=AT_SERVER, there=AT_HOST).up(ASK6())
    # The same host by both ways at once: one address outside.
    Talk(c, (H6, 80), (S6, 40001), seen=(SEEN, 80)).up(U())


@story("nptv6-wrong-checksum-stays", "A checksum is neither looked at nor touched: wrong ones, all ones and UDP without one stay as they came.",
       "scapy script: RFC 6296 section 2.6 (checksum-neutral)", PLAIN)
def _(c):
    c.faulty = True
    for at, wrong in enumerate((0xFFFF, 0, 0x1234)):
        for said in (UDP(sport=40000 + at, dport=53, chksum=wrong) / payload(8), TCP(sport=40000 + at, dport=80, flags="S", chksum=wrong)):
            p = rebuilt(v6() / said)
            c.through("lan", from_host(p), "wan", to_server(moved(p, src=SEEN)))


@story("nptv6-longer-prefix", "Behind a prefix beyond 48 bits the first word of the interface identifier that is not all ones is changed; the shorter prefix is extended with zeros.",
       "scapy script: RFC 6296 sections 3.5 and 3.7",
       zoned(OUT, IN, ROUTED, nptv6("site", "fd00::/48", "2001:db8:f0:100::/56")))
def _(c):
    for n, inside in enumerate(("fd00:0:0:7::1", "fd00:0:0:ff:ffff::1", "fd00::ffff:ffff:0:1", "fd00::ffff:ffff:ffff:1", "fd00::ffff:ffff:ffff:0")):
        outside = other(inside, "fd00::/56", "2001:db8:f0:100::/56")
        talk = Talk(c, (inside, 40000), (S6, 53), seen=(outside, 40000))
        talk.up(U())
        talk.down(U())
        Talk(c, (S6, 1000 + n), (inside, 22), asked=(outside, 22), here=AT_SERVER, there=AT_HOST).up(T("S", 1))


@story("nptv6-untranslatable", "Who has no address in the other prefix is dropped, and told so: subnet 0xffff behind a /48, an identifier of all ones or all zeros behind a longer prefix, and what the longer prefix has no room for.",
       "scapy script: RFC 6296 sections 3.2 and 3.7, RFC 4443 section 3.1 (address unreachable)",
       zoned(OUT, IN, ROUTED, nptv6("site", INSIDE, OUTSIDE), nptv6("lab", "fd00::/48", "2001:db8:f1:100::/56")))
def _(c):
    lost = "nat-untranslatable"
    for src in ("2001:db8:1:ffff::10", "fd00:0:0:7:ffff:ffff:ffff:ffff", "fd00:0:0:7::", "fd00:0:0:107::1"):
        p = rebuilt(v6(src) / U()(40000, 53))
        c.error("lan", from_host(p), lost, to_host(icmp6(L6, src, ICMPv6DestUnreach(code=3), p)))
    for dst in ("2001:db8:f0:ffff::10", "2001:db8:f1:107:ffff:ffff:ffff:ffff", "2001:db8:f1:107::"):
        p = rebuilt(v6(S6, dst) / U()(40000, 53))
        c.error("wan", from_server(p), lost, to_server(icmp6(W6, S6, ICMPv6DestUnreach(code=3), p)))


@story("nptv6-icmp-error-inward", "An error from outside reaches the host with its own address in the quoted packet.",
       "scapy script: RFC 6296 section 5 (ICMP), RFC 5508 REQ-4b, RFC 8201 section 3", PLAIN)
def _(c):
    for said, client, server in ((U(100), (H6, 40000), (S6, 53)), (T("S", 1), (H6, 40001), (S6, 80)), (ASK6(), (H6, 9), (S6, 9))):
        seen = (SEEN, client[1])
        Talk(c, client, server, seen=seen).up(said)
        was, quoted = pair(said, (client, server), (seen, server))
        for src in (S6, "2001:db8:99::9"):
            for message in (ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1280), ICMPv6TimeExceeded(code=0)):
                c.rx("wan", from_server(error6(src, SEEN, message, quoted)))
                c.tx("lan", to_host(error6(src, H6, message, was, hlim=63)))


@story("nptv6-icmp-error-outward", "An error from inside shows the outside address of whoever sends it, of a router on the way too, and of the host in the quoted packet.",
       "scapy script: RFC 6296 section 3.2 (every source address inside is translated), RFC 5508 REQ-5", PLAIN)
def _(c):
    talk = Talk(c, (S6, 40000), (H6, 53), asked=(SEEN, 53), here=AT_SERVER, there=AT_HOST)
    talk.up(U(100))
    was, seen = pair(U(100), ((S6, 40000), (H6, 53)), ((S6, 40000), (SEEN, 53)))
    for src in (H6, "2001:db8:1:77::1"):
        for message in (ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1300), ICMPv6TimeExceeded(code=0)):
            c.rx("lan", from_host(error6(src, S6, message, was)))
            c.tx("wan", to_server(error6(other(src, INSIDE, OUTSIDE), S6, message, seen, hlim=63)))
    # A router of none of the prefixes, and one that has no address outside, speak for the host.
    for src in ("fd00::1", "2001:db8:1:ffff::1"):
        c.rx("lan", from_host(error6(src, S6, ICMPv6TimeExceeded(code=0), was)))
        c.tx("wan", to_server(error6(SEEN, S6, ICMPv6TimeExceeded(code=0), seen, hlim=63)))


@story("nptv6-hairpin", "Inside hosts reach each other by their outside addresses, and show their own.",
       "scapy script: RFC 6296 section 4.3 (hairpinning), RFC 4787 REQ-9", PLAIN)
def _(c):
    talk = Talk(c, (H6, 40000), (H6B, 53), seen=(SEEN, 40000), asked=(SEEN_B, 53), here=AT_HOST, there=AT_HOST2)
    talk.up(U())
    talk.down(U())
    # Directly nothing is translated.
    Talk(c, (H6, 40000), (H6B, 54), here=AT_HOST, there=AT_HOST2).up(U())


@story("nptv6-hairpin-off", "Without hairpinning they do not.", "scapy script: the annotated config (hairpin)",
       zoned(OUT, ROUTED, nptv6("site", INSIDE, OUTSIDE), extra="[nat]\nhairpin = false\n"))
def _(c):
    c.rx("lan", from_host(rebuilt(v6(H6, SEEN_B) / U()(40000, 53))), drop="nat-hairpin")


@story("nptv6-fragments", "All fragments of a datagram get the other prefix, in both directions.",
       "scapy script: RFC 6296 section 2.6, RFC 8200 section 4.5", PLAIN)
def _(c):
    for up in (True, False):
        src, dst = (H6, S6) if up else (S6, SEEN)
        whole = rebuilt(v6(src, dst) / IPv6ExtHdrFragment(id=77) / U(2000)(40000 if up else 53, 53 if up else 40000))
        for fragment in fragment6(whole, 1280):
            p = rebuilt(fragment)
            if up:
                c.through("lan", from_host(p), "wan", to_server(moved(p, src=SEEN)))
            else:
                c.through("wan", from_server(p), "lan", to_host(moved(p, dst=H6)))


@story("nptv6-two-networks", "One inside prefix has an outside prefix towards each of two networks.",
       "scapy script: RFC 6296 section 2.4 (multihoming), the annotated config (to)",
       zoned(OUT, IN, ROUTED, nptv6("one", INSIDE, OUTSIDE, to={"prefix": S6}), nptv6("two", INSIDE, "2001:db8:f8::/45", to={"prefix": S6B})))
def _(c):
    seen = other(H6, INSIDE, "2001:db8:f8::/48")
    one = Talk(c, (H6, 40000), (S6, 53), seen=(SEEN, 40000))
    two = Talk(c, (H6, 40000), (S6B, 53), seen=(seen, 40000), there=AT_SERVER2)
    for talk in (one, two, one):
        talk.up(U())
        talk.down(U())
    # Outside addresses are known to everybody.
    Talk(c, (S6B, 1), (H6, 2), asked=(SEEN, 2), here=AT_SERVER2, there=AT_HOST).up(U())
    # The part of the /45 that the /48 inside has no room for leads nowhere.
    p = rebuilt(v6(S6, "2001:db8:f9::10") / U()(1, 2))
    c.error("wan", from_server(p), "nat-untranslatable", to_server(icmp6(W6, S6, ICMPv6DestUnreach(code=3), p)))


@story("nptv6-on-the-link", "The outside prefix is in the network of the link: the gateway answers for its addresses there, and for no others.",
       "scapy script: RFC 4861 section 7.2.4",
       zoned(OUT, IN, ROUTED, nptv6("site", "2001:db8:1::/64", "2001:db8:2:1::/64")).replace('"2001:db8:2::1/64"', '"2001:db8:2::1/48"'))
def _(c):
    seen = other(H6, "2001:db8:1::/64", "2001:db8:2:1::/64")
    c.answer("wan", solicit(SERVER, S6, seen), advertise(GW_WAN, seen, SERVER, S6))
    c.rx("wan", solicit(SERVER, S6, "2001:db8:2:2::10"), drop="multicast-not-routed")
