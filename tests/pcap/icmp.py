"""ICMP: errors the gateway sends, errors nobody may send, their rate, path MTU, and echo."""

from lib import *
from scapy.all import IPOption, IPOption_EOL, IPOption_Router_Alert, IPOption_RR
from scapy.layers.inet6 import ICMPv6ParamProblem

EXCEEDED6 = ICMPv6TimeExceeded(code=0)


def expired4(ip, gateway=L4):
    return icmp4(gateway, ip.src, 11, 0, ip)


def expired6(ip, gateway=L6):
    return icmp6(gateway, ip.src, EXCEEDED6, ip)


# -- time exceeded -------------------------------------------------------------------------------------------
c = Case("ttl-expired-ipv4", "TTL 1 or 0 on a packet to be forwarded: time exceeded, quoting the packet as it came; TTL 2 passes.",
         "scapy script: RFC 792, RFC 1812 sections 5.3.1 and 4.3.2", two_ports())
for ttl in (1, 0):
    ip = v4(ttl=ttl) / udp()
    c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip)))
ip = v4(ttl=1) / ICMP(type=8, id=3, seq=4) / payload(56)  # an echo request may be answered with an error
c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip)))
ip = v4(ttl=2) / udp()
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("ttl-expired-ipv6", "Hop limit 1 or 0 on a packet to be forwarded: time exceeded, quoting the packet as it came; 2 passes.",
         "scapy script: RFC 4443 sections 3.3 and 2.4", two_ports())
for hlim in (1, 0):
    ip = v6(hlim=hlim) / udp()
    c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip)))
ip = v6(hlim=1) / ICMPv6EchoRequest(id=3, seq=4, data=bytes(56))
c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip)))
ip = v6(hlim=1) / IPv6ExtHdrFragment(m=0, offset=12, id=7, nh=17) / payload(13)  # IPv6 has no rule against fragments
c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip)))
ip = v6(hlim=2) / udp()
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("traceroute-through", "traceroute sees the gateway by its ingress address, then what lies behind it.",
         "scapy script: RFC 1812 section 5.3.1, RFC 1393 section 1.1 (how traceroute works)", two_ports())
port = 33434
for ttl in (1, 2, 3):
    for _ in range(3):
        ip = v4(ttl=ttl, id=port) / UDP(sport=50000, dport=port) / payload(32)
        if ttl == 1:
            c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip)))
        else:
            c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
        if ttl == 2:  # the server answers: its port unreachable crosses the gateway as any packet
            answer = icmp4(S4, H4, 3, 3, Raw(bytes(hop(ip))))
            c.through("wan", from_server(answer), "lan", to_host(hop(answer)))
        port += 1

c = Case("icmp-error-on-vlans", "An error leaves with the tags the packet came with, single and double.",
         "scapy script: RFC 792, RFC 4443, IEEE 802.1Q clause 9.6",
         two_ports(lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], vlan=[200, 10]),
                   wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], vlan=300)))
ip = v4(ttl=1) / udp()
c.error("lan", link(eth(HOST, GW_LAN, 200, 10), ip), "ttl-expired", link(eth(GW_LAN, HOST, 200, 10), expired4(ip)))
ip = v6(hlim=1) / udp()
c.error("lan", link(eth(HOST, GW_LAN, 200, 10), ip), "ttl-expired", link(eth(GW_LAN, HOST, 200, 10), expired6(ip)))
ip = v4(S4, H4, ttl=1) / udp()
c.error("wan", link(eth(SERVER, GW_WAN, 300), ip), "ttl-expired", link(eth(GW_WAN, SERVER, 300), expired4(ip, W4)))

c = Case("icmp-error-quotes-as-much-as-fits", "An IPv4 error is at most 576 bytes long, an IPv6 error at most 1280; shorter packets are quoted whole, Ethernet padding never.",
         "scapy script: RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)", two_ports())
for size in (29, 547, 548, 549, 1500):
    ip = v4(ttl=1) / udp(size - 28)
    c.error("lan", from_host(ip) + b"\xEE" * max(0, 46 - size), "ttl-expired", to_host(expired4(ip)))
for size in (49, 1231, 1232, 1233, 1500):
    ip = v6(hlim=1) / udp(size - 48)
    c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip)))

c = Case("icmp-error-quotes-options", "An error about a packet with IPv4 options or IPv6 extension headers quotes them too.",
         "scapy script: RFC 792, RFC 1812 section 4.3.2.3, RFC 4443 section 2.4 (c)", two_ports())
ip = v4(ttl=1, options=[IPOption_Router_Alert()]) / udp()
c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip)))
ip = v6(hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert(value=0)]) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]) / udp()
c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip)))

c = Case("icmp-error-to-routed-source", "An error to a source behind a router goes to that router.",
         "scapy script: RFC 1812 section 4.3.2.4", two_ports(route("10.9.0.0/16", H4), route("2001:db8:cafe::/48", H6)))
ip = v4("10.9.8.7", ttl=1) / udp()
c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip)))
ip = v6("2001:db8:cafe::7", hlim=1) / udp()
c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip)))

c = Case("icmp-error-source-is-primary-address", "With several addresses on the ingress interface, the first of each family speaks.",
         "scapy script: RFC 1812 section 4.3.2.4, RFC 4443 section 2.2",
         two_ports(lan=interface("lan", ["203.0.113.1/24", "192.0.2.1/24", "2001:db8:7::1/64", "2001:db8:1::1/64"])))
ip = v4(ttl=1) / udp()
c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip, "203.0.113.1")))
ip = v6(hlim=1) / udp()
c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip, "2001:db8:7::1")))

# -- when no error may be sent ---------------------------------------------------------------------------------
c = Case("no-error-about-an-error-ipv4", "An ICMP error that cannot be delivered causes no other error; an ICMP query does.",
         "scapy script: RFC 1812 section 4.3.2.7, RFC 1122 section 3.2.2", two_ports())
inner = bytes(IP(src=S4, dst=H4) / UDP(sport=1, dport=2))
for kind, code in ((3, 1), (4, 0), (5, 1), (11, 0), (12, 0)):
    c.rx("lan", from_host(v4(ttl=1) / ICMP(type=kind, code=code) / Raw(inner)), drop="ttl-expired")
    c.rx("lan", from_host(v4(dst="203.0.113.7") / ICMP(type=kind, code=code) / Raw(inner)), drop="no-route")
c.rx("lan", from_host(v4(ttl=1, options=[IPOption_Router_Alert()]) / ICMP(type=3, code=1) / Raw(inner)), drop="ttl-expired")
for kind in (0, 8, 13):
    ip = v4(ttl=1) / ICMP(type=kind, id=1, seq=1, ts_ori=1, ts_rx=2, ts_tx=3)
    c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip)))

c = Case("no-error-about-an-error-ipv6", "An ICMPv6 error or redirect that cannot be delivered causes no other error, not even behind extension headers.",
         "scapy script: RFC 4443 section 2.4 (e.1, e.2)", two_ports())
inner = Raw(bytes(IPv6(src=S6, dst=H6) / UDP(sport=1, dport=2)))
for message in (ICMPv6DestUnreach(code=3), ICMPv6PacketTooBig(mtu=1400), ICMPv6TimeExceeded(), ICMPv6ParamProblem(),):
    c.rx("lan", from_host(v6(hlim=1) / message / inner), drop="ttl-expired")
    c.rx("lan", from_host(v6(dst="2001:db8:9::7") / message / inner), drop="no-route")
    c.rx("lan", from_host(v6(hlim=1) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]) / message / inner), drop="ttl-expired")
c.rx("lan", from_host(v6(dst="2001:db8:9::7") / ICMPv6ND_Redirect(tgt="fe80::1", dst=S6)), drop="no-route")
ip = v6(hlim=1) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]) / ICMPv6EchoRequest()
c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip)))

c = Case("no-error-about-later-fragments", "Only the first fragment of an IPv4 packet may cause an error.",
         "scapy script: RFC 1812 section 4.3.2.7", two_ports())
ip = v4(ttl=1, flags="MF") / udp(88)
c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip)))
for keys in ({"frag": 12, "flags": "MF"}, {"frag": 24}, {"frag": 8000}):
    c.rx("lan", from_host(v4(ttl=1, proto=17, **keys) / payload(96)), drop="ttl-expired")
c.rx("lan", from_host(v4(dst="203.0.113.7", proto=17, frag=24) / payload(96)), drop="no-route")

c = Case("icmp-error-rate-limit", "Errors are limited for the whole node: a burst, then so many a second; packets are counted all the same.",
         "scapy script: RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f), token bucket",
         two_ports(extra="[icmp]\nrate = 2\nburst = 3\nper_source_rate = 1000\nper_source_burst = 1000\n"))
ip = v4(ttl=1) / udp()
for start, errors in ((0, 3), (700, 1), (5000, 3)):  # 0.7 s is worth 1.4 tokens, 4.3 s refill the bucket
    c.at(start)
    for n in range(6):
        if n < errors:
            c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip)))
        else:
            c.rx("lan", from_host(ip), drop="ttl-expired")

c = Case("icmp-error-rate-limit-per-source", "One noisy source network uses up its own share only; /24 and /64 are one source.",
         "scapy script: RFC 4443 section 2.4 (f), token bucket per prefix",
         two_ports(route("10.9.0.0/16", H4), route("2001:db8:cafe::/48", H6),
                   extra="[icmp]\nrate = 1000\nburst = 1000\nper_source_rate = 1\nper_source_burst = 2\n"))
for n in range(5):
    ip = v4(f"10.9.1.{n + 1}", ttl=1) / udp()
    c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip))) if n < 2 else c.rx("lan", from_host(ip), drop="ttl-expired")
for n in range(5):
    ip = v6(f"2001:db8:cafe:1::{n + 1}", hlim=1) / udp()
    c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip))) if n < 2 else c.rx("lan", from_host(ip), drop="ttl-expired")
for ip in (v4("10.9.2.1", ttl=1) / udp(), v4("10.9.3.1", ttl=1) / udp()):
    c.error("lan", from_host(ip), "ttl-expired", to_host(expired4(ip)))
ip = v6("2001:db8:cafe:2::1", hlim=1) / udp()
c.error("lan", from_host(ip), "ttl-expired", to_host(expired6(ip)))

c = Case("icmp-errors-off", "Rate 0 sends no error at all, and still answers echo.",
         "scapy script: RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)", two_ports(extra="[icmp]\nrate = 0\n"))
c.rx("lan", from_host(v4(ttl=1) / udp()), drop="ttl-expired")
c.rx("lan", from_host(v6(hlim=1) / udp()), drop="ttl-expired")
c.rx("lan", from_host(v4(dst="203.0.113.7") / udp()), drop="no-route")
c.answer("lan", from_host(v4(dst=L4) / ICMP(id=1, seq=1) / payload(8)),
         to_host(v4(L4, H4, id=0, flags="DF") / ICMP(type=0, id=1, seq=1) / payload(8)))

# -- path MTU ----------------------------------------------------------------------------------------------
NARROW = two_ports(wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], mtu=1400))
c = Case("fragmentation-needed", "DF set and longer than the egress MTU: 3/4 with that MTU; exactly as long passes.",
         "scapy script: RFC 1191 section 4, RFC 792", NARROW)
for size in (1401, 1500):
    ip = v4(flags="DF") / udp(size - 28)
    c.error("lan", from_host(ip), "fragmentation-needed", to_host(icmp4(L4, H4, 3, 4, ip, mtu=1400)))
ip = v4(flags="DF") / udp(1400 - 28)
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
c.rx("lan", from_host(v4(flags="DF") / ICMP(type=3, code=1) / payload(1450)), drop="fragmentation-needed")

c = Case("packet-too-big", "An IPv6 packet longer than the egress MTU: packet too big with that MTU; exactly as long passes; errors about errors do not.",
         "scapy script: RFC 4443 section 3.2, RFC 8201 section 3", NARROW)
for size in (1401, 1500):
    ip = v6() / udp(size - 48)
    c.error("lan", from_host(ip), "packet-too-big", to_host(icmp6(L6, H6, ICMPv6PacketTooBig(mtu=1400), ip)))
ip = v6() / IPv6ExtHdrFragment(m=1, id=5) / payload(1440)
c.error("lan", from_host(ip), "packet-too-big", to_host(icmp6(L6, H6, ICMPv6PacketTooBig(mtu=1400), ip)))
ip = v6() / udp(1400 - 48)
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
c.rx("lan", from_host(v6() / ICMPv6DestUnreach() / payload(1400)), drop="packet-too-big")

c = Case("mtu-per-interface", "The MTU belongs to the egress interface, not to its port: two VLANs of one port, two answers.",
         "scapy script: RFC 1191 section 4, RFC 4443 section 3.2",
         config(LAN, interface("small", ["198.51.100.1/24", "2001:db8:2::1/64"], port="wan", vlan=10, mtu=1300),
                interface("large", ["203.0.113.1/24", "2001:db8:3::1/64"], port="wan", vlan=20, mtu=1500), HOST_NEIGHBOURS,
                neighbour("small", S4, SERVER), neighbour("large", "203.0.113.30", SERVER2), neighbour("large", "2001:db8:3::30", SERVER2)))
ip = v4(flags="DF") / udp(1301 - 28)
c.error("lan", from_host(ip), "fragmentation-needed", to_host(icmp4(L4, H4, 3, 4, ip, mtu=1300)))
ip = v4(dst="203.0.113.30", flags="DF") / udp(1472)
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, SERVER2, 20), hop(ip)))
ip = v6(dst=S6) / udp(1301 - 48)
c.error("lan", from_host(ip), "packet-too-big", to_host(icmp6(L6, H6, ICMPv6PacketTooBig(mtu=1300), ip)))
ip = v6(dst="2001:db8:3::30") / udp(1452)
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, SERVER2, 20), hop(ip)))


# -- fragmentation -----------------------------------------------------------------------------------------
def cut(ip, mtu, later_options=b""):
    """RFC 791 section 3.2: fragments of a packet that is one hop further, each as long as the MTU lets it be."""
    whole = bytes(hop(ip))
    length = (whole[0] & 15) * 4
    head, data = whole[:length], whole[length:]
    word = int.from_bytes(head[6:8], "big")
    offset, flags, more = word & 0x1FFF, word & 0xC000, word & 0x2000
    while data:
        room = (mtu - len(head)) // 8 * 8
        part = data if len(head) + len(data) <= mtu else data[:room]
        data = data[len(part):]
        h = bytearray(head)
        h[0] = 0x40 | len(head) // 4
        h[2:4] = (len(head) + len(part)).to_bytes(2, "big")
        h[6:8] = (flags | (0x2000 if data else more) | offset).to_bytes(2, "big")
        h[10:12] = b"\0\0"
        h[10:12] = ones_complement(bytes(h)).to_bytes(2, "big")
        yield Raw(bytes(h) + part)
        offset += len(part) // 8
        head = head[:20] + later_options


def in_pieces(case, ip, mtu, **keys):
    case.rx("lan", from_host(ip))
    for piece in cut(ip, mtu, **keys):
        case.tx("wan", to_server(piece))


c = Case("fragmentation", "DF clear and too long: cut into fragments of the largest multiple of 8, in order, same identification.",
         "scapy script: RFC 791 section 3.2 (fragmentation procedure), RFC 1812 section 4.2.2.7", NARROW)
for size in (1401, 1500, 1404):
    in_pieces(c, v4(id=size) / udp(size - 28), 1400)
ip = v4() / udp(1400 - 28)
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
reference = list(cut(v4(id=1500) / udp(1472), 1400))
assert [len(bytes(r)) for r in reference] == [1396, 124]

c = Case("fragmentation-many", "A jumbo packet into an MTU of 576 becomes seventeen fragments; DF set, a single error.",
         "scapy script: RFC 791 section 3.2, RFC 1191 section 4",
         two_ports(lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], mtu=9000),
                   wan=interface("wan", ["198.51.100.1/24"], mtu=576),
                   neighbours=HOST_NEIGHBOURS + neighbour("wan", S4, SERVER)))
in_pieces(c, v4(id=9000) / udp(9000 - 28), 576)
assert c.sent == 17
ip = v4(flags="DF") / udp(9000 - 28)
c.error("lan", from_host(ip), "fragmentation-needed", to_host(icmp4(L4, H4, 3, 4, ip, mtu=576)))

c = Case("fragmentation-of-fragments", "Fragments too long for the egress are cut again: offsets go on, the last piece keeps the packet's own more-fragments flag.",
         "scapy script: RFC 791 section 3.2", NARROW)
in_pieces(c, v4(flags="MF", id=7) / udp(1472), 1400)
in_pieces(c, v4(flags="MF", frag=185, proto=17, id=7) / payload(1480), 1400)
in_pieces(c, v4(frag=370, proto=17, id=7) / payload(1479), 1400)

c = Case("fragmentation-with-options", "Only options with the copied flag appear in later fragments, which have the more room for it.",
         "scapy script: RFC 791 sections 3.1 (copied flag) and 3.2", NARROW)
ALERT = bytes.fromhex("94040000")  # router alert, RFC 2113: copied
ip = v4(options=[IPOption_Router_Alert(), IPOption_RR(length=7, pointer=8, routers=["10.0.0.1"]), IPOption_EOL()], id=9) / udp(1440)
in_pieces(c, ip, 1400, later_options=ALERT)
ip = v4(options=[IPOption_RR(length=7, pointer=8, routers=["10.0.0.1"]), IPOption_EOL()], id=10) / udp(1440)
in_pieces(c, ip, 1400)

# -- echo and what else is for us ----------------------------------------------------------------------------
def echo4(dst, src=H4, size=56, seq=1, **keys):
    return v4(src, dst, **keys) / ICMP(type=8, id=0x1234, seq=seq) / payload(size)


def reply4(own, to=H4, size=56, seq=1, tos=0):
    return IP(src=own, dst=to, ttl=64, id=0, flags="DF", tos=tos) / ICMP(type=0, id=0x1234, seq=seq) / payload(size)


def echo6(dst, src=H6, size=56, seq=1, **keys):
    return v6(src, dst, **keys) / ICMPv6EchoRequest(id=0x1234, seq=seq, data=bytes(range(size)))


def reply6(own, to=H6, size=56, seq=1):
    return IPv6(src=own, dst=to, hlim=64) / ICMPv6EchoReply(id=0x1234, seq=seq, data=bytes(range(size)))


c = Case("echo-ipv4", "ping to every address of the gateway is answered from that address: any length, any TTL, the request's ToS.",
         "scapy script: RFC 792, RFC 1122 section 3.2.2.6, RFC 1812 sections 4.3.3.6 and 4.3.2.5", two_ports())
for n, size in enumerate((0, 1, 56, 1472)):
    c.answer("lan", from_host(echo4(L4, size=size, seq=n)), to_host(reply4(L4, size=size, seq=n)))
c.answer("lan", from_host(echo4(L4, ttl=1)), to_host(reply4(L4)))  # TTL is for forwarding
c.answer("lan", from_host(echo4(L4, tos=0x10)), to_host(reply4(L4, tos=0x10)))
c.answer("lan", from_host(echo4(W4)), to_host(reply4(W4)))  # the far side's address, asked from here
c.answer("lan", from_host(echo4(L4, size=1)) + bytes(17), to_host(reply4(L4, size=1)))  # Ethernet padding

c = Case("echo-ipv6", "ping to every address of the gateway is answered from that address, also behind a destination options header.",
         "scapy script: RFC 4443 sections 4.1 and 4.2", two_ports())
for n, size in enumerate((0, 1, 56, 200)):
    c.answer("lan", from_host(echo6(L6, size=size, seq=n)), to_host(reply6(L6, size=size, seq=n)))
c.answer("lan", from_host(echo6(L6, hlim=1)), to_host(reply6(L6)))
c.answer("lan", from_host(echo6(W6)), to_host(reply6(W6)))
c.answer("lan", from_host(v6(H6, L6) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
                          / ICMPv6EchoRequest(id=0x1234, seq=1, data=bytes(range(8)))), to_host(reply6(L6, size=8)))

c = Case("echo-on-vlans", "ping through a VLAN and through a QinQ pair is answered with the tags it came with.",
         "scapy script: RFC 792, RFC 4443 section 4.2, IEEE 802.1Q clause 9.6",
         config(interface("one", ["192.0.2.1/24", "2001:db8:1::1/64"], port="lan", vlan=100),
                interface("two", ["198.51.100.1/24", "2001:db8:2::1/64"], port="lan", vlan=[200, 10]),
                neighbour("one", H4, HOST), neighbour("one", H6, HOST), neighbour("two", S4, SERVER), neighbour("two", S6, SERVER),
                ports=("lan",)))
for tags, mac, peers in (((100,), HOST, (H4, L4, H6, L6)), ((200, 10), SERVER, (S4, W4, S6, W6))):
    h4, g4, h6, g6 = peers
    c.answer("lan", link(eth(mac, GW_LAN, *tags), echo4(g4, h4)), link(eth(GW_LAN, mac, *tags), reply4(g4, h4)))
    c.answer("lan", link(eth(mac, GW_LAN, *tags), echo6(g6, h6)), link(eth(GW_LAN, mac, *tags), reply6(g6, h6)))

LL_LAN = "fe80::53:47ff:fe00:0"  # of 02:53:47:00:00:00, RFC 4291 appendix A
c = Case("echo-ipv6-link-local", "The gateway's link-local address, made from its MAC, answers a link-local neighbour.",
         "scapy script: RFC 4291 sections 2.5.6 and appendix A, RFC 4443 section 4.2",
         two_ports(neighbour("lan", "fe80::10", HOST)))
c.answer("lan", from_host(echo6(LL_LAN, "fe80::10")), to_host(reply6(LL_LAN, "fe80::10")))

c = Case("icmp-to-us-bad-checksum", "An echo request with a wrong ICMP checksum, or cut short, is not answered.",
         "scapy script: RFC 1122 section 3.2.2, RFC 4443 section 2.3", two_ports())
c.rx("lan", from_host(v4(dst=L4) / ICMP(type=8, id=1, seq=1, chksum=0x1234) / payload(56)), drop="icmp-invalid")
c.rx("lan", from_host(v6(dst=L6) / ICMPv6EchoRequest(id=1, seq=1, cksum=0x1234, data=bytes(56))), drop="icmp-invalid")
c.rx("lan", from_host(v6(dst=L6) / ICMPv6EchoRequest(id=1, seq=1, cksum=0, data=bytes(56))), drop="icmp-invalid")
c.rx("lan", from_host(v4(dst=L4, proto=1) / Raw(b"\x08\x00\xf7\xff")), drop="icmp-invalid")

c = Case("tcp-to-own-address", "TCP to the gateway itself has nobody to take it yet: counted, not answered with ICMP.",
         "scapy script: DESIGN section 6 (host path), RFC 9293 section 3.10.7.1 (TCP has its own way to refuse)", two_ports())
for ip in (v4(dst=L4), v4(dst=W4)):
    c.rx("lan", from_host(ip / TCP(sport=40000, dport=22, flags="S")), drop="no-host-path")
for ip in (v6(dst=L6), v6(dst=W6)):
    c.rx("lan", from_host(ip / TCP(sport=40000, dport=179, flags="S")), drop="no-host-path")

c = Case("fragments-to-own-address", "Fragments to the gateway itself, of a ping or of anything else, are counted by a reason of their own and not answered.",
         "scapy script: README (limits); RFC 1122 section 3.3.2 would have a host put them together", two_ports())
whole = bytes(ICMP(id=1, seq=1) / payload(1592))
for part in (v4(dst=L4, proto=1, flags="MF") / Raw(whole[:1480]), v4(dst=L4, proto=1, frag=185) / Raw(whole[1480:])):
    c.rx("lan", from_host(part), drop="local-fragment")
c.rx("lan", from_host(v4(dst=W4, proto=17, flags="MF") / Raw(bytes(UDP(sport=1, dport=2) / payload(1472)))), drop="local-fragment")
for part in fragment6(v6(dst=L6) / IPv6ExtHdrFragment(id=7) / ICMPv6EchoRequest(id=1, seq=1, data=bytes(1592)), 1280):
    c.rx("lan", from_host(part), drop="local-fragment")

c = Case("ospf-to-own-address", "A routing protocol to the gateway itself is no error in the packet: counted as without a host path.",
         "scapy script: DESIGN section 6 (host path); errors off, because RFC 1122's protocol unreachable is a SHOULD for hosts",
         two_ports(extra="[icmp]\nrate = 0\n"))
c.rx("lan", from_host(v4(dst=L4, proto=89) / payload(44)), drop="no-host-path")
c.rx("lan", from_host(v4(dst=L4) / udp()), drop="no-host-path")
c.rx("lan", from_host(v6(dst=L6, nh=89) / payload(40)), drop="no-host-path")
c.rx("lan", from_host(v6(dst=L6) / udp()), drop="no-host-path")
