"""NAT64: IPv6 hosts and IPv4 servers (RFC 6146), headers and errors translated (RFC 7915), addresses (RFC 6052)."""

import ipaddress

from lib import *
from nat_icmp import error4, error6
from fates import AT_DMZ, DMZ, FAR as FAR4, THREE, far
from nat import nat
from scapy.layers.inet6 import ICMPv6ParamProblem

POOL, PREFIX = "203.0.113.5", "2001:db8:64::/96"
FAR = "198.51.100.99"  # a router somewhere outside


def nat64(name="six", pool=(POOL,), prefix=PREFIX, frm="inside", **keys):
    return table("nat.nat64", name=name, prefix=prefix, **({"from": {"zone": frm}} if frm else {}), pool=list(pool), **keys)


def six(address, prefix=PREFIX):
    """RFC 6052 section 2.2, bit by bit: where the IPv4 address stands, around bits 64 to 71."""
    net = ipaddress.IPv6Network(prefix)
    bits = f"{int(net.network_address):0128b}"[:net.prefixlen]
    for bit in f"{int(ipaddress.IPv4Address(address)):032b}":
        if len(bits) == 64:
            bits += "0" * 8
        bits += bit
    return str(ipaddress.IPv6Address(int(bits.ljust(128, "0"), 2)))


assert six("192.0.2.33", "2001:db8:122::/48") == "2001:db8:122:c000:2:2100::"  # RFC 6052 section 2.4

NATTED = zoned(OUT, nat64())


class Cross:
    """A host of IPv6 and a server of IPv4; `seen` is the host's port or identifier outside."""

    def __init__(self, c, client=(H6, 40000), server=(S4, 53), seen=None, prefix=PREFIX, pool=POOL, here=AT_HOST, there=AT_SERVER):
        self.c, self.client, self.server, self.seen = c, client, server, seen
        self.there6, self.pool, self.here, self.there = six(server[0], prefix), pool, here, there

    def known6(self, said, ttl=64, **keys):
        return rebuilt(v6(self.client[0], self.there6, hlim=ttl, **keys) / said(self.client[1], self.server[1]))

    def known4(self, said, ttl=63, **keys):
        """RFC 7915 section 5.1: up to 1260 bytes the packet has an identification and may be cut."""
        p = rebuilt(v4(self.pool, self.server[0], ttl=ttl, **{"id": 0, "flags": "DF", **keys}) / said(self.seen, self.server[1]))
        return p

    def up(self, said, said4=None, ttl=64, tos=0):
        sent = self.known6(said, ttl, tc=tos)
        small = len(bytes(sent)) <= 1280
        keys = {"id": self.c.choice(f"id{len(self.c.variables)}", 0), "flags": 0} if small else {}
        got = self.known4(said4 or said, ttl - 1, tos=tos, **keys)
        self.c.through(self.here.port, self.here.sends(sent), self.there.port, self.there.gets(got))
        return sent, got

    def back4(self, said, ttl=64, **keys):
        return rebuilt(v4(self.server[0], self.pool, ttl=ttl, **{"flags": "DF", **keys}) / said(self.server[1], self.seen))

    def back6(self, said, ttl=63, **keys):
        return rebuilt(v6(self.there6, self.client[0], hlim=ttl, **keys) / said(self.server[1], self.client[1]))

    def down(self, said, said6=None, ttl=64, tos=0, **keys):
        sent, got = self.back4(said, ttl, tos=tos, **keys), self.back6(said6 or said, ttl - 1, tc=tos)
        self.c.through(self.there.port, self.there.sends(sent), self.here.port, self.here.gets(got))
        return sent, got


# -- the three protocols -------------------------------------------------------------------------------------
@story("nat64-udp", "UDP from an IPv6 host reaches an IPv4 server with an address of the pool, and the answer comes back; class, hop limit and checksums as the RFC says.",
       "scapy script: RFC 6146 section 3.5.1, RFC 7915 sections 4.1 and 5.1", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U(40))
    t.down(U(200))
    t.up(U(0), tos=0xB8)
    t.down(U(1), ttl=2, tos=0x28)
    t.up(U(1), ttl=2)
    t.up(U(1260 - 28))  # the longest that may be cut
    t.up(U(1261 - 28))
    t.up(U(1400))
    t.down(U(60), flags=0)  # may be cut, but need not be


@story("nat64-tcp", "A TCP connection from an IPv6 host to an IPv4 server, from SYN to the last ACK.",
       "scapy script: RFC 6146 section 3.5.2, RFC 7915 sections 4.1 and 5.1", NATTED)
def _(c):
    t = Cross(c, server=(S4, 443), seen=c.choice("p"))
    options = {"options": [("MSS", 1440), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 7)]}
    t.up(T("S", 1000, **options))
    t.down(T("SA", 5000, 1001, **options))
    t.up(T("A", 1001, 5001))
    t.up(T("PA", 1001, 5001, data=1400))
    t.down(T("A", 5001, 2401))
    t.down(T("PA", 5001, 2401, data=33))
    t.up(T("FA", 2401, 5034))
    t.down(T("FA", 5034, 2402))
    t.up(T("A", 2402, 5035))
    c.rx("wan", from_server(t.back4(T("PA", 5000000, 2403, data=10))), drop="tcp-out-of-window")


@story("nat64-echo", "Echo crosses: type and identifier change, and so does what the checksum is over.",
       "scapy script: RFC 6146 section 3.5.3, RFC 7915 sections 4.2 and 5.2", NATTED)
def _(c):
    t = Cross(c, (H6, 0x1234), (S4, 0), seen=c.choice("p", 0))
    for n, length in enumerate((56, 0, 1, 1300)):
        t.up(ASK6(n, length) if length < 256 else (lambda s, d: ICMPv6EchoRequest(id=s, seq=n, data=bytes(length))),
             ASK(n, length) if length < 256 else (lambda s, d: ICMP(type=8, id=s, seq=n) / Raw(bytes(length))))
        t.down(ANSWER(n, length % 256), ANSWER6(n, length % 256))
    c.rx("wan", from_server(t.back4(lambda s, d: ICMP(type=13, id=d, seq=1, ts_ori=1, ts_rx=0, ts_tx=0))), drop="nat64-unsupported")


@story("nat64-prefix-lengths", "The IPv4 address stands where RFC 6052 says for prefixes of every length.",
       "scapy script: RFC 6052 section 2.2",
       zoned(OUT, *(nat64(f"p{n}", [f"203.0.113.{n}"], f"2001:db8:{n}00:{'300' if n > 48 else '0'}::/{n}" if n > 40 else f"2001:{n:x}b8::/{n}") for n in (32, 40, 48, 56, 64, 96))))
def _(c):
    for n in (32, 40, 48, 56, 64, 96):
        prefix = f"2001:db8:{n}00:{'300' if n > 48 else '0'}::/{n}" if n > 40 else f"2001:{n:x}b8::/{n}"
        t = Cross(c, (H6, 40000 + n), seen=c.choice(f"p{n}"), prefix=prefix, pool=f"203.0.113.{n}")
        t.up(U())
        t.down(U())


# -- mappings ------------------------------------------------------------------------------------------------
@story("nat64-mapping", "One endpoint has one address and port for all servers; whoever sends something to it reaches it.",
       "scapy script: RFC 6146 sections 3.5.1 and 3.5.2 (endpoint-independent mapping and filtering)", NATTED)
def _(c):
    p = c.choice("p")
    Cross(c, seen=p).up(U())
    t = Cross(c, server=(S4B, 123), seen=p, there=AT_SERVER2)
    t.up(U())
    t.down(U())
    t = Cross(c, server=(S4B, 999), seen=p, there=AT_SERVER2)
    t.down(U())  # begun by the server
    t.up(U())
    t.down(U())
    other = rebuilt(v4(S4B, POOL) / TCP(sport=1, dport=p, flags="S"))
    c.rx("wan", AT_SERVER2.sends(other), drop="nat-no-mapping")


@story("nat64-filtering", "With address-dependent filtering only whom the host has sent something to reaches it.",
       "scapy script: RFC 6146 section 3.5.1 (address-dependent filtering)", zoned(OUT, nat64(), extra=nat(filtering="address-dependent")))
def _(c):
    p = c.choice("p")
    Cross(c, seen=p).up(U())
    Cross(c, server=(S4, 54), seen=p).down(U())
    c.rx("wan", AT_SERVER2.sends(Cross(c, server=(S4B, 53), seen=p).back4(U())), drop="firewall-deny")


@story("nat64-exhausted", "Two networks share a pool that has ports for one: the other is told that there is no way.",
       "scapy script: RFC 6146 section 3.5.1.1 (address unreachable)",
       zoned(OUT, route("fd00::/32", H6), nat64(ports="20032-20095")))
def _(c):
    Cross(c, seen=c.choice("p", 20032, 20095)).up(U())
    p = Cross(c, ("fd00::1", 40000)).known6(U())
    c.error("lan", from_host(p), "nat-pool-exhausted", to_host(icmp6(L6, "fd00::1", ICMPv6DestUnreach(code=3), p)))


@story("nat64-hairpin", "IPv6 hosts reach each other by the mappings they have in IPv4, and show their own.",
       "scapy script: RFC 6146 section 3.8, RFC 4787 REQ-9", NATTED)
def _(c):
    pa, pb = c.choice("pa"), c.choice("pb", unlike=["pa"])
    Cross(c, (H6B, 40000), seen=pb, here=AT_HOST2).up(U())
    talk = Talk(c, (H6, 40000), (H6B, 40000), seen=(six(POOL), pa), asked=(six(POOL), pb), here=AT_HOST, there=AT_HOST2)
    talk.up(U())
    talk.down(U())
    talk.up(U())
    Cross(c, (H6, 40000), seen=pa).up(U())  # the very port it has outside
    c.rx("lan", from_host(rebuilt(v6(H6, six(POOL)) / T("S", 1)(40000, pb))), drop="nat-no-mapping")


@story("nat64-hairpin-echo", "So does echo: to the identifier of the one, with that of the other.", "scapy script: RFC 6146 section 3.8", NATTED)
def _(c):
    pa, pb = c.choice("pa", 0), c.choice("pb", 0, unlike=["pa"])
    Cross(c, (H6B, 7), (S4, 0), seen=pb, here=AT_HOST2).up(ASK6(), ASK())
    sent = rebuilt(v6(H6, six(POOL)) / ASK6()(pb, 0))
    c.through("lan", from_host(sent), "lan", AT_HOST2.gets(rebuilt(v6(six(POOL), H6B, hlim=63) / ASK6()(pa, 0))))


@story("nat64-hairpin-off", "Without hairpinning they do not.", "scapy script: the annotated config (hairpin)", zoned(OUT, nat64(), extra=nat(hairpin=False)))
def _(c):
    pb = c.choice("pb")
    Cross(c, (H6B, 40000), seen=pb, here=AT_HOST2).up(U())
    c.rx("lan", from_host(rebuilt(v6(H6, six(POOL)) / U()(40000, pb))), drop="nat-hairpin")


@story("nat64-mss-clamped", "Segments are to fit both sides: on that of IPv6 they have the longer headers.",
       "scapy script: RFC 9293 section 3.7.1, RFC 7915 section 1.4", zoned(OUT, nat64(), wan_keys={"mtu": 1400, "clamp_mss": True}))
def _(c):
    t = Cross(c, server=(S4, 443), seen=c.choice("p"))
    t.up(T("S", 1000, options=[("MSS", 1440)]), T("S", 1000, options=[("MSS", 1340)]))
    t.down(T("SA", 5000, 1001, options=[("MSS", 1460)]), T("SA", 5000, 1001, options=[("MSS", 1340)]))


# -- what does not cross ---------------------------------------------------------------------------------------
@story("nat64-refused", "Other protocols, a source in the prefix itself, addresses that are none to send to, and headers that say that the packet is elsewhere do not cross.",
       "scapy script: RFC 6146 sections 3.4 and 3.5, RFC 7915 section 5.1", zoned(OUT, route("2001:db8:64::/64", H6), nat64()))
def _(c):
    for proto in (50, 47, 132):
        c.rx("lan", from_host(v6(H6, six(S4), nh=proto) / payload(40)), drop="nat64-unsupported")
    c.rx("lan", from_host(rebuilt(v6(six("192.0.2.99"), six(S4)) / U()(1, 2))), drop="martian-source")
    for none in ("127.0.0.1", "224.0.0.1", "0.0.0.0", "255.255.255.255", "169.254.1.1"):
        c.rx("lan", from_host(rebuilt(v6(H6, six(none)) / U()(1, 2))), drop="nat64-unsupported")
    c.rx("lan", from_host(rebuilt(v6(H6, six(S4)) / IPv6ExtHdrRouting(addresses=[S6], segleft=1) / U()(40000, 53))), drop="nat64-unsupported")
    c.rx("lan", from_host(rebuilt(v6(H6, "::ffff:198.51.100.20") / U()(1, 2))), drop="martian-destination")
    # Nor does an error of IPv6 about what only IPv4 has.
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    quoted = v6(f"::ffff:{POOL}", f"::ffff:{S4}") / U()(t.seen, 53)
    c.rx("lan", from_host(error6(H6, f"::ffff:{POOL}", ICMPv6DestUnreach(code=4), quoted)), drop="martian-destination")


@story("nat64-well-known-prefix", "Behind the prefix that everybody knows there are no addresses of one network only.",
       "scapy script: RFC 6052 section 3.1", zoned(OUT, route("0.0.0.0/0", S4), nat64(prefix="64:ff9b::/96")))
def _(c):
    for none in ("10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", S4):
        c.rx("lan", from_host(rebuilt(v6(H6, six(none, "64:ff9b::/96")) / U()(1, 2))), drop="nat64-unsupported")
    t = Cross(c, server=("9.9.9.9", 53), seen=c.choice("p"), prefix="64:ff9b::/96")
    t.up(U())
    t.down(U())


@story("nat64-rules", "Rules say of such a session what they say of one between the host and the IPv4 server: by prefix, by group, in both directions.",
       "scapy script: the annotated config (rules see where a session really goes)",
       config(table("group", name="dark", members=[f"{S4B}/32"]), LAN.replace("port =", 'zone = "inside"\nport ='), WAN.replace("port =", 'zone = "outside"\nport ='),
              HOST_NEIGHBOURS + SERVER_NEIGHBOURS + neighbour("wan", S4B, SERVER2),
              rule("not-web", "deny", to={"prefix": "198.51.100.0/27"}, service="tcp/80"), rule("not-dark", "deny", to={"zone": "outside", "group": "dark"}),
              rule("not-from", "deny", frm={"prefix": "198.51.100.30"}),
              rule("six", "allow", frm={"prefix": "2001:db8:1::/64"}, to={"prefix": "198.51.100.0/24"}), nat64()))
def _(c):
    p = c.choice("p")
    Cross(c, seen=p).up(U())
    c.rx("lan", from_host(Cross(c, server=(S4, 80)).known6(T("S", 1))), drop="firewall-deny")
    c.rx("lan", from_host(Cross(c, server=(S4B, 53)).known6(U())), drop="firewall-deny")
    c.rx("wan", from_server(Cross(c, server=("198.51.100.30", 53), seen=p).back4(U())), drop="firewall-deny")
    c.rx("lan", from_host(rebuilt(v6("2001:db8:9::1", six(S4)) / U()(1, 2))), drop="firewall-deny")


@story("nat64-rules-in-order", "A rule that names an IPv4 prefix comes before those behind it: the rule behind that names none does not let in what it denies.",
       "scapy script: the annotated config (ordered, first match)",
       zoned(rule("not-web", "deny", "inside", {"zone": "outside", "prefix": "198.51.100.0/27"}, service="tcp/80"), OUT, nat64()))
def _(c):
    c.rx("lan", from_host(Cross(c, server=(S4, 80)).known6(T("S", 1))), drop="firewall-deny")
    Cross(c, seen=c.choice("p")).up(U())


# -- TTL, MTU, fragments ----------------------------------------------------------------------------------------
@story("nat64-ttl", "A packet whose hops are used up is told of in its own family, and quoted as it came.",
       "scapy script: RFC 7915 sections 4.1 and 5.1 (before translation), RFC 792, RFC 4443 section 3.3", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    p = t.known6(U(), ttl=1)
    c.error("lan", from_host(p), "ttl-expired", to_host(icmp6(L6, H6, ICMPv6TimeExceeded(), p)))
    p = t.back4(U(), ttl=1)
    c.error("wan", from_server(p), "ttl-expired", to_server(icmp4(W4, S4, 11, 0, p)))


@story("nat64-mtu", "What is too long for the other side in its new header is told of with the MTU for the old one.",
       "scapy script: RFC 7915 sections 4.1 and 5.1 (path MTU), RFC 1191 section 4, RFC 8201",
       zoned(OUT, nat64(), wan_keys={"mtu": 1400}))
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U(1400 - 28))
    p = t.known6(U(1401 - 28))
    c.error("lan", from_host(p), "packet-too-big", to_host(icmp6(L6, H6, ICMPv6PacketTooBig(mtu=1420), p)))


@story("nat64-mtu-inward", "An IPv4 packet that must not be cut and is too long for IPv6 is told of with an MTU that leaves room for the longer header.",
       "scapy script: RFC 7915 section 4.1, RFC 1191 section 4", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    t.down(U(1480 - 28))
    p = t.back4(U(1481 - 28))
    c.error("wan", from_server(p), "fragmentation-needed", to_server(icmp4(W4, S4, 3, 4, p, mtu=1480)))


def parts6(whole, cuts, ident):
    """The fragments of an IPv6 packet without extension headers (RFC 8200 section 4.5), cut at these offsets."""
    data = bytes(whole)
    head, body = data[:40], data[40:]
    out = []
    for start, end in zip([0, *cuts], [*cuts, len(body)]):
        word = start | (end < len(body))
        fragment = bytes([head[6], 0]) + word.to_bytes(2, "big") + ident.to_bytes(4, "big") + body[start:end]
        out.append(Raw(head[:4] + len(fragment).to_bytes(2, "big") + bytes([44]) + head[7:] + fragment))
    return out


def parts4(whole, cuts, ident, flags=0):
    """The fragments of an IPv4 packet without options (RFC 791 section 3.2)."""
    data = bytes(whole)
    body = data[20:]
    out = []
    for start, end in zip([0, *cuts], [*cuts, len(body)]):
        word = flags | start // 8 | (0x2000 if end < len(body) else 0)
        head = data[:2] + (20 + end - start).to_bytes(2, "big") + ident.to_bytes(2, "big") + word.to_bytes(2, "big") + data[8:10] + b"\0\0" + data[12:20]
        out.append(Raw(head[:10] + ones_complement(head).to_bytes(2, "big") + head[12:] + body[start:end]))
    return out


@story("nat64-cut-inward", "An IPv4 packet that may be cut and is longer than every IPv6 link carries is cut to that.",
       "scapy script: RFC 7915 section 4 (fragments of 1280 bytes at most), section 4.1", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    t.down(U(1240 - 28), flags=0)
    c.rx("wan", from_server(t.back4(U(1472), flags=0, id=0x4321)))
    for part in parts6(t.back6(U(1472)), [1232], 0x4321):
        c.tx("lan", to_host(part))


@story("nat64-cut-inward-into-many", "A long IPv4 packet of a link with large frames is cut into as many as it takes; so is what follows in a later fragment.",
       "scapy script: RFC 7915 sections 4 and 4.1, RFC 8200 section 4.5", zoned(OUT, nat64(), wan_keys={"mtu": 9000}, lan_keys={"mtu": 9000}))
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    c.rx("wan", from_server(t.back4(U(3500), flags=0, id=0x4321)))
    for part in parts6(t.back6(U(3500)), [1232, 2464], 0x4321):
        c.tx("lan", to_host(part))
    for part in parts4(t.back4(U(5000)), [1600], 0x77):
        c.rx("wan", from_server(part))
    for part in parts6(t.back6(U(5000)), [1232, 1600, 2832, 4064], 0x77):
        c.tx("lan", to_host(part))


@story("nat64-udp-checksum-all-ones", "A UDP checksum that comes out as 0 in IPv6 is sent as all ones: 0 is none, which IPv6 does not have.",
       "scapy script: RFC 768, RFC 7915 section 4.5, RFC 8200 section 8.1", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    # What the checksum would be without the last word, that word makes it 0; scapy sends it as 0xffff.
    word = t.back6(lambda s, d: UDP(sport=s, dport=d) / Raw(b"\0\0"))[UDP].chksum
    _, got = t.down(lambda s, d: UDP(sport=s, dport=d) / Raw(word.to_bytes(2, "big")))
    assert got[UDP].chksum == 0xFFFF


@story("nat64-fragments", "Fragments cross one by one, in any order, in both directions, with their identification.",
       "scapy script: RFC 6146 section 3.4, RFC 7915 sections 4.1 and 5.1.1", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    p = t.known6(U(2000))
    for a, b in zip(parts6(p, [1000, 1600], 0xABCD1234), parts4(t.known4(U(2000)), [1000, 1600], 0x1234)):
        c.through("lan", from_host(a), "wan", to_server(b))
    for a, b in zip(parts4(t.back4(U(2000)), [1000, 1600], 0x77), parts6(t.back6(U(2000)), [1000, 1600], 0x77)):
        c.through("wan", from_server(a), "lan", to_host(b))
    # The last one first: it waits.
    first, last = parts4(t.back4(U(1500)), [800], 0x78)
    c.rx("wan", from_server(last)).rx("wan", from_server(first))
    first, last = parts6(t.back6(U(1500)), [800], 0x78)
    c.tx("lan", to_host(first)).tx("lan", to_host(last))
    # One that is too long for IPv6's least MTU is cut again.
    (a, b), whole = parts4(t.back4(U(1700)), [1400], 0x79), t.back6(U(1700))
    c.rx("wan", from_server(a))
    for part in parts6(whole, [1232, 1400], 0x79)[:2]:
        c.tx("lan", to_host(part))
    c.through("wan", from_server(b), "lan", to_host(parts6(whole, [1232, 1400], 0x79)[2]))


@story("nat64-atomic-fragment", "All of a datagram in one fragment crosses as a whole one that may be cut.",
       "scapy script: RFC 7915 section 5.1.1, RFC 6946", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    (a,) = parts6(t.known6(U(100)), [], 0x10002)
    (b,) = parts4(t.known4(U(100)), [], 2)
    c.through("lan", from_host(a), "wan", to_server(b))


@story("nat64-fragments-refused", "Echo in fragments does not cross, nor UDP without a checksum in fragments: neither checksum can be told from one of them.",
       "scapy script: RFC 7915 sections 4.2 and 5.2 (fragmented ICMP), RFC 6146 section 3.4", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    first, _ = parts4(t.back4(U(1500, chksum=0)), [800], 0x80)
    c.rx("wan", from_server(first), drop="nat64-unsupported")
    first, _ = parts6(rebuilt(v6(H6, six(S4)) / ICMPv6EchoRequest(id=1, seq=1, data=bytes(1400))), [800], 0x81)
    c.rx("lan", from_host(first), drop="nat64-unsupported")


@story("nat64-udp-without-checksum", "UDP without a checksum gets one on its way into IPv6.",
       "scapy script: RFC 6146 section 3.4, RFC 8200 section 8.1", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    for length in (0, 1, 1000):
        t.down(U(length, chksum=0), U(length))
    # What lies behind the datagram in its packet is no part of it (RFC 768).
    sent, got = bytes(t.back4(U(10, chksum=0))), bytes(t.back6(U(10)))
    sent = sent[:2] + (len(sent) + 5).to_bytes(2, "big") + sent[4:10] + b"\0\0" + sent[12:] + b"after"
    sent = sent[:10] + ones_complement(sent[:20]).to_bytes(2, "big") + sent[12:]
    got = got[:4] + (len(got) - 40 + 5).to_bytes(2, "big") + got[6:] + b"after"
    c.through("wan", from_server(Raw(sent)), "lan", to_host(Raw(got)))


@story("nat64-extension-headers", "Hop-by-hop and destination options stay behind; so do options of IPv4.",
       "scapy script: RFC 7915 sections 4.1 and 5.1", NATTED)
def _(c):
    from scapy.all import IPOption_NOP
    t = Cross(c, seen=c.choice("p"))
    p = rebuilt(v6(H6, t.there6) / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]) / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])
                / IPv6ExtHdrRouting(addresses=[], segleft=0) / U(50)(40000, 53))
    c.rx("lan", from_host(p))
    c.tx("wan", to_server(t.known4(U(50), id=c.choice("id", 0), flags=0)))
    p = rebuilt(v4(S4, POOL, flags="DF", options=[IPOption_NOP()] * 4) / U(50)(53, t.seen))
    c.through("wan", from_server(p), "lan", to_host(t.back6(U(50))))


# -- errors ------------------------------------------------------------------------------------------------------
@story("nat64-error-inward", "An ICMP error about a session reaches the IPv6 host as ICMPv6: type, code, pointer and MTU in its words, the quoted packet as it was sent.",
       "scapy script: RFC 7915 sections 4.2 and 4.3, RFC 6146 section 3.6", NATTED)
def _(c):
    p, q, r = c.choice("p"), c.choice("q"), c.choice("r", 0)
    echo = Cross(c, (H6, 9), (S4, 0), seen=r)
    talks = [(Cross(c, seen=p), U(1400), U(1400)), (Cross(c, (H6, 40001), (S4, 80), seen=q), T("S", 1), T("S", 1)), (echo, ASK6(1, 100), ASK(1, 100))]
    for t, said6, said4 in talks:
        t.up(said6, said4)
        was = t.known6(said6, ttl=60)
        seen = t.known4(said4, ttl=60, **({} if t.client[1] == 40000 else {"id": 0x5555, "flags": 0}))
        for src in (S4, FAR):
            for kind, code, keys, message in (
                    (3, 0, {}, ICMPv6DestUnreach(code=0)), (3, 1, {}, ICMPv6DestUnreach(code=0)), (3, 2, {}, ICMPv6ParamProblem(code=1, ptr=6)),
                    (3, 3, {}, ICMPv6DestUnreach(code=4)), (3, 4, {"mtu": 1400}, ICMPv6PacketTooBig(mtu=1420)), (3, 4, {"mtu": 500}, ICMPv6PacketTooBig(mtu=1280)),
                    (3, 13, {}, ICMPv6DestUnreach(code=1)), (11, 0, {}, ICMPv6TimeExceeded(code=0)), (11, 1, {}, ICMPv6TimeExceeded(code=1))):
                c.rx("wan", from_server(error4(src, POOL, kind, code, seen, **keys)))
                quoted = bytes(was)[:1280 - 48]
                c.tx("lan", to_host(rebuilt(IPv6(src=six(src), dst=H6, hlim=63) / message / Raw(quoted))))
        c.rx("wan", from_server(error4(S4, POOL, 3, 14, seen)), drop="nat64-unsupported")
    c.rx("wan", from_server(error4(FAR, POOL, 11, 0, seen, keep=28)))
    c.tx("lan", to_host(rebuilt(IPv6(src=six(FAR), dst=H6, hlim=63) / ICMPv6TimeExceeded(code=0) / Raw(bytes(was)[:48]))))


@story("nat64-error-extensions", "What stands behind the quoted packet of an error stays behind.",
       "scapy script: RFC 4884 section 4.1, RFC 7915 section 4.2", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U(100))
    was, seen = t.known6(U(100), ttl=60), t.known4(U(100), ttl=60, id=0x5555, flags=0)
    c.rx("wan", from_server(error4(FAR, POOL, 11, 0, seen, length=32, extra=b"\x20\0\x12\x34" + bytes(8))))
    c.tx("lan", to_host(rebuilt(IPv6(src=six(FAR), dst=H6, hlim=63) / ICMPv6TimeExceeded(code=0) / Raw(bytes(was)))))


@story("nat64-error-outward", "An ICMPv6 error about a session reaches the IPv4 server as ICMP, from the address it knows.",
       "scapy script: RFC 7915 sections 5.2 and 5.3, RFC 6146 section 3.6", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    t.down(U(1400))
    # The quoted packet never was an IPv4 one with this identification.
    was, seen = t.back6(U(1400), ttl=60), t.back4(U(1400), ttl=60, id=0)
    n = 0
    for src in (H6, "2001:db8:1::77"):
        for message, kind, code, rest in (
                (ICMPv6DestUnreach(code=0), 3, 1, 0), (ICMPv6DestUnreach(code=1), 3, 10, 0), (ICMPv6DestUnreach(code=3), 3, 1, 0),
                (ICMPv6DestUnreach(code=4), 3, 3, 0), (ICMPv6PacketTooBig(mtu=1400), 3, 4, 1380), (ICMPv6TimeExceeded(code=0), 11, 0, 0),
                (ICMPv6ParamProblem(code=1, ptr=6), 3, 2, 0), (ICMPv6ParamProblem(code=0, ptr=7), 12, 0, 8 << 24)):
            quoted = bytes(was)[:1200]
            c.rx("lan", from_host(rebuilt(IPv6(src=src, dst=six(S4), hlim=64) / message / Raw(quoted))))
            body = bytes([kind, code, 0, 0]) + rest.to_bytes(4, "big") + bytes(seen)[:1180]
            body = body[:2] + ones_complement(body).to_bytes(2, "big") + body[4:]
            c.tx("wan", to_server(rebuilt(IP(src=POOL, dst=S4, ttl=63, id=c.choice(f"error{n}", 1), proto=1) / Raw(body))))
            n += 1
        c.rx("lan", from_host(rebuilt(IPv6(src=src, dst=six(S4), hlim=64) / ICMPv6ParamProblem(code=2, ptr=6) / Raw(bytes(was)[:1200]))), drop="nat64-unsupported")


# -- life ----------------------------------------------------------------------------------------------------------
@story("nat64-next-hop-unknown", "A packet waits for its next hop's address as it came, and crosses then.",
       "scapy script: RFC 826, RFC 1122 section 2.3.2.2",
       config(LAN.replace("port =", 'zone = "inside"\nport ='), WAN.replace("port =", 'zone = "outside"\nport ='), HOST_NEIGHBOURS, OUT, nat64()))
def _(c):
    t = Cross(c, seen=c.choice("p"))
    c.rx("lan", from_host(t.known6(U())))
    c.tx("wan", arp_request(GW_WAN, W4, S4), own=True)
    c.rx("wan", arp_reply(SERVER, S4, GW_WAN, W4), punt=True)
    c.tx("wan", to_server(t.known4(U(), id=c.choice("id", 0), flags=0)))
    t.down(U())


@story("nat64-reload", "A commit keeps the session as long as the rules and the NAT do; then its next packet ends it.",
       "scapy script: the README (fate of a live flow)", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    c.at(c.now_ms + 10).reload(zoned(OUT, rule("more", "allow", "outside", "inside"), nat64())).at(c.now_ms + 10)
    t.down(U())
    t.up(U())
    c.at(c.now_ms + 10).reload(zoned(OUT)).at(c.now_ms + 10)
    c.rx("lan", from_host(t.known6(U())), drop="policy-changed")


@story("nat64-way-out-moves", "The way out moves to another interface of the zone: the session follows with the address and port it has.",
       "scapy script: the README (fate of a live flow)", zoned(OUT, nat64(), *DMZ, far(S4), ports=THREE))
def _(c):
    p = c.choice("p")
    t = Cross(c, server=(FAR4, 53), seen=p)
    t.up(U())
    t.down(U())
    c.at(c.now_ms + 10).reload(zoned(OUT, nat64(), *DMZ, far("203.0.113.130"), ports=THREE)).at(c.now_ms + 10)
    t = Cross(c, server=(FAR4, 53), seen=p, there=AT_DMZ)
    t.up(U())
    t.down(U())


@story("nat64-address-left-its-pool", "An address that has left the pool still answers for the sessions that have it; new ones get another.",
       "scapy script: the README (what the rules allow keeps its mapping, also if the address has left the pool)", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    t.down(U())
    c.at(c.now_ms + 10).reload(zoned(OUT, nat64(pool=["203.0.113.6"]))).at(c.now_ms + 10)
    t.up(U())
    t.down(U())
    was, seen = t.known6(U(), ttl=60), t.known4(U(), ttl=60, id=0x5555, flags=0)
    c.rx("wan", from_server(error4(FAR, POOL, 11, 0, seen)))
    c.tx("lan", to_host(rebuilt(IPv6(src=t.there6, dst=H6, hlim=63) / ICMPv6TimeExceeded(code=0) / Raw(bytes(was)))))
    other = Cross(c, (H6, 40001), seen=c.choice("q"), pool="203.0.113.6")
    other.up(U())
    other.down(U())


@story("nat64-error-too-long-for-the-link", "An error that quotes more than the IPv4 link carries is cut to that.",
       "scapy script: RFC 7915 sections 5.1 and 5.2, RFC 1812 section 4.3.2.3",
       config(LAN.replace("port =", 'zone = "inside"\nport ='), interface("wan", ["198.51.100.1/24"], zone="outside", mtu=700),
              HOST_NEIGHBOURS + neighbour("wan", S4, SERVER), OUT, nat64()))
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    t.down(U(600))
    # Sent before the MTU was so low.
    was, seen = t.back6(U(1400), ttl=60), t.back4(U(1400), ttl=60, id=0)
    c.rx("lan", from_host(rebuilt(IPv6(src=H6, dst=six(S4), hlim=64) / ICMPv6DestUnreach(code=4) / Raw(bytes(was)[:1200]))))
    body = bytes([3, 3, 0, 0, 0, 0, 0, 0]) + bytes(seen)[:700 - 28]
    body = body[:2] + ones_complement(body).to_bytes(2, "big") + body[4:]
    c.tx("wan", to_server(rebuilt(IP(src=POOL, dst=S4, ttl=63, id=c.choice("error", 1), proto=1) / Raw(body))))


@story("nat64-fragments-that-must-not-be-cut", "A fragment that must not be cut gets a fragment header in IPv6 as well: its sender is told of the room that leaves.",
       "scapy script: RFC 7915 sections 4 and 4.1, RFC 1191 section 4", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    whole4, whole6 = t.back4(U(2000), flags=0), t.back6(U(2000))
    first, _ = parts4(whole4, [1456], 0x90, flags=0x4000)
    c.error("wan", from_server(first), "fragmentation-needed", to_server(icmp4(W4, S4, 3, 4, first, mtu=1472)))
    for a, b in zip(parts4(whole4, [1448], 0x91, flags=0x4000), parts6(whole6, [1448], 0x91)):
        c.through("wan", from_server(a), "lan", to_host(b))


@story("nat64-session-limit", "Sessions through NAT64 count for the network that begins them, as any do.",
       "scapy script: RFC 6888 REQ-5, the annotated config (per_host_sessions)", zoned(OUT, nat64(), extra="[flows]\nper_host_sessions = 3\n\n[icmp]\nrate = 0\n"))
def _(c):
    p = c.choice("p")
    for port in (53, 54, 55):
        Cross(c, server=(S4, port), seen=p).up(U())
    c.rx("lan", from_host(Cross(c, server=(S4, 56)).known6(U())), drop="host-session-limit")
    Cross(c, server=(S4, 55), seen=p).down(U())
    c.at(c.now_ms + 310_000)  # all of them are over
    Cross(c, server=(S4, 56), seen=c.choice("q")).up(U())


@story("nat64-address-of-another-pool", "An address that is of a pool of IPv4 now: what comes to a mapping of before is lost, and nothing of it crosses.",
       "scapy script: the README (NAT addresses belong to one pool)", NATTED)
def _(c):
    t = Cross(c, seen=c.choice("p"))
    t.up(U())
    c.at(c.now_ms + 10).reload(zoned(OUT, source_nat("internet", [POOL]), nat64(pool=["203.0.113.6"]))).at(c.now_ms + 10)
    c.rx("wan", from_server(t.back4(U())), drop="nat-family")
    talk = Talk(c, (H4, 40000), (S4, 53), seen=(POOL, c.choice("q", unlike=["p"])))
    talk.up(U())
    talk.down(U())
