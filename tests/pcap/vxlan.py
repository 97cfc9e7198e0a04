"""VXLAN overlays (RFC 7348): into tunnels and out of them, and what a tunnel end point must not take.

A segment "blue" is behind the wan: our tunnel end point is the gateway's address there, the server's is the other one.
Outer source ports come from the flow inside, by the hash that is written down in src/packet/hash.rs.
"""

from scapy.layers.vxlan import VXLAN

from lib import *

M64 = (1 << 64) - 1
#: The default of `system.key`.
KEY = (0x0001020304050607, 0x08090A0B0C0D0E0F)
VNI, VNI2 = 5001, 5002
STATION, STATION2 = "02:00:00:00:09:10", "02:00:00:00:09:11"
B4, B6 = "10.9.0.1", "2001:db8:9::1"          # the gateway on blue
T4, T6 = "10.9.0.10", "2001:db8:9::10"        # a station there
T4B = "10.9.0.11"
S4C, S6C = "198.51.100.22", "2001:db8:2::22"  # a tunnel end point that nobody has configured


# -- the written-down hash ---------------------------------------------------------------------------------
def fold(a, b):
    product = (a & M64) * (b & M64)
    return product >> 64 ^ product & M64


def hash_v4(src, dst, protocol, ports):
    tail = protocol << 32 | ports[0] << 16 | ports[1]
    return fold(fold((src << 32 | dst) ^ KEY[0], tail ^ KEY[1]) ^ KEY[0], 0x9E3779B97F4A7C15)


def hash_v6(src, dst, protocol, ports):
    tail = protocol << 32 | ports[0] << 16 | ports[1]
    h = fold(src >> 64 ^ KEY[0], src & M64 ^ KEY[1])
    h = fold(dst >> 64 ^ h, dst & M64 ^ KEY[0])
    h = fold(h ^ KEY[1], tail ^ KEY[0])
    return fold(h ^ KEY[0], 0x9E3779B97F4A7C15)


def source_port(frame):
    """Of an inner frame: RFC 7348 section 5."""
    kind, l3 = int.from_bytes(frame[12:14], "big"), frame[14:]
    word = lambda at, n: int.from_bytes(l3[at:at + n], "big")
    def ports(upper, at):
        return (word(at, 2), word(at + 2, 2)) if upper in (6, 17, 132) and len(l3) >= at + 4 else (0, 0)
    if kind == 0x0800:
        whole = not word(6, 2) & 0x3FFF
        h = hash_v4(word(12, 4), word(16, 4), l3[9], ports(l3[9], (l3[0] & 15) * 4) if whole else (0, 0))
    elif kind == 0x86DD:
        h = hash_v6(word(8, 16), word(24, 16), l3[6], ports(l3[6], 40))
    else:
        h = 0
    return 49152 | h >> 32 & 0x3FFF


# -- frames ------------------------------------------------------------------------------------------------
def tos_of(frame):
    kind = int.from_bytes(frame[12:14], "big")
    if kind == 0x0800:
        return frame[15]
    return (frame[14] << 4 | frame[15] >> 4) & 255 if kind == 0x86DD else 0


def tunnel(inner, src=W4, dst=S4, vni=VNI, port=4789, tos=None, ttl=64, checksum=False, sport=None, header=None):
    """The outer packet as the gateway makes it: DF, no checksum of UDP unless asked for. `header`: in VXLAN's place."""
    inner = raw(inner)
    tos = tos_of(inner) if tos is None else tos
    udp = UDP(sport=source_port(inner) if sport is None else sport, dport=port, **({} if checksum else {"chksum": 0}))
    vxlan = (VXLAN(flags=8, vni=vni) if header is None else header) / Raw(inner)
    if ":" in src:
        return IPv6(src=src, dst=dst, hlim=ttl, tc=tos) / udp / vxlan
    return IP(src=src, dst=dst, ttl=ttl, id=0, flags="DF", tos=tos) / udp / vxlan


def arriving(inner, src=S4, dst=W4, **keys):
    """The same as another tunnel end point sends it."""
    return tunnel(inner, src, dst, **{"sport": 55555, **keys})


def from_station(ip, mac=STATION, to=GW_WAN):
    return link(eth(mac, to), ip)


def to_station(ip, mac=STATION):
    return link(eth(GW_WAN, mac), ip)


# -- configuration -----------------------------------------------------------------------------------------
def overlay(name="blue", vni=VNI, vtep=W4, remotes=(S4,), addresses=("10.9.0.1/24", "2001:db8:9::1/64"), **keys):
    return table("interface", name=name, vni=vni, vtep=vtep, **({"remotes": list(remotes)} if remotes else {}), **keys,
                 addresses=list(addresses))


STATIONS = neighbour("blue", T4, STATION) + neighbour("blue", T6, STATION)
REMOTES = neighbour("wan", S4B, SERVER2) + neighbour("wan", S6B, SERVER2)


def net(*more, blue=None, stations=STATIONS, **keys):
    return two_ports(blue or overlay(), stations, REMOTES, *more, **keys)


UNDER6 = overlay(vtep=W6, remotes=[S6])
RFC = "scapy script: RFC 7348 section 5"

# -- into tunnels ------------------------------------------------------------------------------------------
for name, blue, ends, outer in (("v4", overlay(), (W4, S4), "IPv4"), ("v6", UNDER6, (W6, S6), "IPv6")):
    c = Case(f"vxlan-encap-{name}", f"Routed packets leave through a tunnel over {outer}, each flow by a source port of its own.",
             f"{RFC}; {'RFC 6935 section 5 (no UDP checksum)' if name == 'v6' else 'RFC 768'}; the hash of src/packet/hash.rs", net(blue=blue))
    for ip in (v4(dst=T4) / udp(), v4(dst=T4) / udp(sport=40001), v4(dst=T4, proto=47) / payload(24), v4(dst=T4) / TCP(sport=1, dport=2),
               v4(dst=T4) / ICMP(id=7) / payload(8), v4(dst=T4, flags="DF", tos=0xB8) / udp(1), v6(dst=T6) / udp(), v6(dst=T6, tc=0x2E) / TCP(sport=3, dport=4),
               v6(dst=T6) / ICMPv6EchoRequest(id=7, data=b"x" * 8), v4(dst=T4, options=[]) / udp(1422 - (20 if name == "v6" else 0))):
        ip = rebuilt(ip)
        inner = to_station(hop(ip))
        c.through("lan", from_host(ip), "wan", to_server(tunnel(inner, *ends)))

c = Case("vxlan-encap-padding", "Padding of short Ethernet frames does not travel into the tunnel.", RFC, net())
short = rebuilt(v4(dst=T4) / udp(0))
c.through("lan", from_host(short) + bytes(18), "wan", to_server(tunnel(to_station(hop(short)))))

c = Case("vxlan-encap-tagged", "The tunnel goes over a VLAN of the port.", RFC,
         two_ports(overlay(), STATIONS, wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], vlan=100)))
ip = rebuilt(v4(dst=T4) / udp())
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, SERVER, 100), tunnel(to_station(hop(ip)))))
ip6 = rebuilt(v6(dst=T6) / udp())
c.through("lan", from_host(ip6), "wan", link(eth(GW_WAN, SERVER, 100), tunnel(to_station(hop(ip6)))))
back = rebuilt(v4(T4, H4) / udp())
c.through("wan", link(eth(SERVER, GW_WAN, 100), arriving(from_station(back))), "lan", to_host(hop(back)))

c = Case("vxlan-encap-qinq", "The tunnel goes over a QinQ pair, over IPv4 and over IPv6.", RFC,
         two_ports(overlay(), overlay("red", VNI2, W6, [S6], ["10.10.0.1/24"]), STATIONS, neighbour("red", "10.10.0.10", STATION2),
                   wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], vlan=[200, 10])))
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, SERVER, 200, 10), tunnel(to_station(hop(ip)))))
red = rebuilt(v4(dst="10.10.0.10") / udp())
c.through("lan", from_host(red), "wan", link(eth(GW_WAN, SERVER, 200, 10), tunnel(to_station(hop(red), STATION2), W6, S6, VNI2)))

c = Case("vxlan-dscp-and-ecn-copied", "DSCP and ECN of the packet inside stand in the outer header too.",
         "scapy script: RFC 6040 section 4.1 (normal mode), RFC 2983 section 3 (uniform model)", net())
for tos in (0, 1, 2, 3, 0xB8, 0xFF):
    for ip in (rebuilt(v4(dst=T4, tos=tos) / udp()), rebuilt(v6(dst=T6, tc=tos) / udp())):
        c.through("lan", from_host(ip), "wan", to_server(tunnel(to_station(hop(ip)), tos=tos)))

c = Case("vxlan-dscp-fixed", "With a DSCP and a TTL in the config outer headers carry those, and ECN as it is inside.",
         "scapy script: RFC 2983 section 3 (pipe model), RFC 6040 section 4.1", net(blue=overlay(dscp=10, ttl=9)))
for tos in (0, 2, 0xB9):
    for ip in (rebuilt(v4(dst=T4, tos=tos) / udp()), rebuilt(v6(dst=T6, tc=tos) / udp())):
        c.through("lan", from_host(ip), "wan", to_server(tunnel(to_station(hop(ip)), tos=10 << 2 | tos & 3, ttl=9)))

for name, blue, ends in (("v4", overlay(udp_checksum=True), (W4, S4)), ("v6", overlay(vtep=W6, remotes=[S6], udp_checksum=True), (W6, S6))):
    c = Case(f"vxlan-encap-checksum-{name}", "The config asks for a checksum of the outer UDP header.", "scapy script: RFC 768, RFC 8200 section 8.1", net(blue=blue))
    for ip in (rebuilt(v4(dst=T4) / udp(33)), rebuilt(v6(dst=T6) / udp())):
        c.through("lan", from_host(ip), "wan", to_server(tunnel(to_station(hop(ip)), *ends, checksum=True)))

c = Case("vxlan-udp-port", "Another UDP port of the tunnels, in both directions; 4789 is nothing special then.", "scapy script: RFC 7348 section 8", net(blue=overlay(udp_port=8472)))
c.through("lan", from_host(ip), "wan", to_server(tunnel(to_station(hop(ip)), port=8472)))
c.through("wan", from_server(arriving(from_station(back), port=8472)), "lan", to_host(hop(back)))
c.rx("wan", from_server(arriving(from_station(back))), drop="no-host-path")

# -- out of tunnels ----------------------------------------------------------------------------------------
INSIDE = [rebuilt(p) for p in (v4(T4, H4) / udp(), v4(T4, H4) / udp(0), v4(T4, H4) / TCP(sport=1, dport=2), v4(T4, H4, flags="DF") / ICMP(id=1) / payload(8),
                               v6(T6, H6) / udp(), v6(T6, H6) / TCP(sport=1, dport=2))]
for name, blue, ends in (("v4", overlay(), (S4, W4)), ("v6", UNDER6, (S6, W6))):
    c = Case(f"vxlan-decap-{name}", "What comes out of a tunnel is routed: without UDP checksum, and with one.",
             f"{RFC}; RFC 6935 section 5", net(blue=blue))
    for ip in INSIDE:
        c.through("wan", from_server(arriving(from_station(ip), *ends)), "lan", to_host(hop(ip)))
        c.through("wan", from_server(arriving(from_station(ip), *ends, checksum=True)), "lan", to_host(hop(ip)))
    # RFC 7348 section 5: reserved fields are ignored.
    odd = bytearray(bytes(arriving(from_station(INSIDE[0]), *ends)))
    at = (20 if name == "v4" else 40) + 8
    odd[at], odd[at + 1:at + 4], odd[at + 7] = 0xFF, b"\1\2\3", 4
    c.through("wan", from_server(bytes(odd)), "lan", to_host(hop(INSIDE[0])))

c = Case("vxlan-decap-padded-inside", "A short frame in the tunnel is padded to Ethernet's minimum: padding does not travel on.", RFC, net())
for outside in (0, 7):
    for ip in (INSIDE[1], INSIDE[4]):
        c.through("wan", from_server(arriving(from_station(ip) + bytes(18))) + bytes(outside), "lan", to_host(hop(ip)))

c = Case("vxlan-decap-outer-ttl-1", "A tunnel ends here whatever the outer TTL is, and outer options are looked over.", RFC, net())
c.through("wan", from_server(arriving(from_station(INSIDE[0]), ttl=1)), "lan", to_host(hop(INSIDE[0])))
with_options = arriving(from_station(INSIDE[0]))
with_options[IP].options = "\x01\x01\x01\x01"
with_options = rebuilt(with_options)
c.through("wan", from_server(with_options), "lan", to_host(hop(INSIDE[0])))

c = Case("vxlan-decap-refused", "What is no VXLAN for us is dropped, each for its reason.", f"{RFC}, section 6.1", net())
good = bytes(arriving(from_station(INSIDE[0])))


def spoiled(at, value, data=good):
    return data[:at] + bytes([value]) + data[at + 1:]


c.rx("wan", from_server(spoiled(28, 0)), drop="vxlan-invalid")
c.rx("wan", from_server(spoiled(28, 0xF7)), drop="vxlan-invalid")
c.rx("wan", from_server(spoiled(25, 29)), drop="vxlan-invalid")           # UDP length: no whole inner header
c.rx("wan", from_server(spoiled(25, good[25] + 1)), drop="vxlan-invalid")  # UDP length: beyond the packet
c.rx("wan", from_server(spoiled(27, 1)), drop="vxlan-checksum")
c.rx("wan", from_server(arriving(from_station(INSIDE[0]), vni=VNI + 1)), drop="vxlan-unknown-vni")
c.rx("wan", from_server(arriving(from_station(INSIDE[0]), S4C)), drop="vxlan-unknown-remote")
c.rx("wan", from_server(arriving(link(eth(STATION, GW_WAN, 7), INSIDE[0]))), drop="vxlan-inner-tag")
c.rx("wan", from_server(arriving(link(eth(STATION, GW_WAN, 7, 8), INSIDE[0]))), drop="vxlan-inner-tag")
c.rx("wan", from_server(arriving(from_station(INSIDE[0], to=STATION2))), drop="not-for-us")
c.rx("wan", from_server(arriving(Ether(src=STATION, dst=GW_WAN, type=0x88CC) / payload(40))), drop="unknown-ethertype")
c.rx("wan", from_server(arriving(from_station(bytes(INSIDE[0])[:30]))), drop="truncated")
c.rx("wan", from_server(rebuilt(IP(src=S4, dst=W4, id=0) / UDP(sport=1, dport=4789, chksum=0) / payload(8))), drop="truncated")
c.rx("wan", link(eth(SERVER, BROADCAST), arriving(from_station(INSIDE[0]))), drop="link-broadcast-not-forwarded")
c.through("wan", from_server(good), "lan", to_host(hop(INSIDE[0])))

c = Case("vxlan-decap-refused-v6", "The same over IPv6.", f"{RFC}; RFC 6935 section 5", net(blue=UNDER6))
good6 = bytes(arriving(from_station(INSIDE[0]), S6, W6))
c.rx("wan", from_server(spoiled(48, 0, good6)), drop="vxlan-invalid")
c.rx("wan", from_server(spoiled(47, 1, good6)), drop="vxlan-checksum")
c.rx("wan", from_server(arriving(from_station(INSIDE[0]), S6, W6, vni=1)), drop="vxlan-unknown-vni")
c.rx("wan", from_server(arriving(from_station(INSIDE[0]), S6C, W6)), drop="vxlan-unknown-remote")
c.through("wan", from_server(good6), "lan", to_host(hop(INSIDE[0])))

c = Case("vxlan-inside-is-not-trusted", "The frame inside is checked like any other: header, TTL, martians, group addresses, MAC.",
         "scapy script: RFC 1812 sections 5.2.2, 5.3.1, 5.3.4 and 5.3.7", net())
c.rx("wan", from_server(arriving(from_station(spoiled(10, 1, bytes(INSIDE[0]))))), drop="ipv4-checksum")
c.rx("wan", from_server(arriving(from_station(rebuilt(v4("127.0.0.1", H4) / udp())))), drop="martian-source")
c.rx("wan", from_server(arriving(link(eth(STATION, BROADCAST), INSIDE[0]))), drop="link-broadcast-not-forwarded")
dying = rebuilt(v4(T4, H4, ttl=1) / udp())
c.error("wan", from_server(arriving(from_station(dying))), "ttl-expired",
        to_server(tunnel(to_station(icmp4(B4, T4, 11, 0, dying)))))
lost = rebuilt(v4(T4, "203.0.113.9") / udp())
c.error("wan", from_server(arriving(from_station(lost))), "no-route", to_server(tunnel(to_station(icmp4(B4, T4, 3, 0, lost)))))

c = Case("vxlan-source-check", "The segment's interface checks sources against the routes.", "scapy script: RFC 3704 section 2.2", net(blue=overlay(source_check="strict")))
c.through("wan", from_server(arriving(from_station(INSIDE[0]))), "lan", to_host(hop(INSIDE[0])))
c.rx("wan", from_server(arriving(from_station(rebuilt(v4("192.0.2.99", H4) / udp())))), drop="source-check")

c = Case("vxlan-no-tunnel-in-a-tunnel", "A VXLAN packet in a VXLAN packet is for the gateway itself, and ends there.", "scapy script: a bound on nesting, by design", net())
c.rx("wan", from_server(arriving(from_station(arriving(from_station(INSIDE[0]))))), drop="no-host-path")

c = Case("vxlan-passing-by", "VXLAN packets to others are routed as they are, also while tunnels end here.", "scapy script: RFC 1812 section 5.2",
         net())
other = rebuilt(tunnel(from_station(INSIDE[0]), H4, S4, sport=50000))
c.through("lan", from_host(other), "wan", to_server(hop(other)))
c.through("wan", from_server(good), "lan", to_host(hop(INSIDE[0])))
c.together().through("wan", from_server(rebuilt(tunnel(from_station(INSIDE[0]), S4, H4, sport=50000))), "lan", to_host(hop(rebuilt(tunnel(from_station(INSIDE[0]), S4, H4, sport=50000)))))

# RFC 6040 section 4.2, figure 4: [inner][outer], in the order Not-ECT, ECT(1), ECT(0), CE; None is "drop".
ECN = {0: (0, 0, 0, None), 1: (1, 1, 1, 3), 2: (2, 1, 2, 3), 3: (3, 3, 3, 3)}
for name, blue, ends in (("v4", overlay(), (S4, W4)), ("v6", UNDER6, (S6, W6))):
    c = Case(f"vxlan-ecn-{name}", "Congestion met in the tunnel is carried over into the packet, or the packet is dropped where it cannot say so.",
             "scapy script: RFC 6040 section 4.2, figure 4", net(blue=blue))
    for inner, row in ECN.items():
        for outer, after in enumerate(row):
            for make in (lambda ecn: rebuilt(v4(T4, H4, tos=0xB8 | ecn) / udp()), lambda ecn: rebuilt(v6(T6, H6, tc=0xB8 | ecn) / udp())):
                sent = from_server(arriving(from_station(make(inner)), *ends, tos=outer))
                if after is None:
                    c.rx("wan", sent, drop="vxlan-ecn")
                else:
                    c.through("wan", sent, "lan", to_host(hop(make(after))))

# -- the gateway on the segment ----------------------------------------------------------------------------
c = Case("vxlan-ping", "The gateway answers pings to its addresses on the segment, and to its tunnel end point.", "scapy script: RFC 1122 section 3.2.2.6, RFC 4443 section 4.2", net())
for ask, told in ((v4(T4, B4) / ICMP(id=7) / payload(8), v4(B4, T4, id=0, flags="DF") / ICMP(type=0, id=7) / payload(8)),
                  (v6(T6, B6) / ICMPv6EchoRequest(id=7, data=b"abc"), v6(B6, T6) / ICMPv6EchoReply(id=7, data=b"abc"))):
    c.answer("wan", from_server(arriving(from_station(rebuilt(ask)))), to_server(tunnel(to_station(rebuilt(told)))))
c.answer("wan", from_server(v4(S4, W4) / ICMP(id=7) / payload(8)), to_server(v4(W4, S4, id=0, flags="DF") / ICMP(type=0, id=7) / payload(8)))

TWO = overlay(remotes=[S4, S4B])


def flood(case, frame, *to, **keys):
    for mac, remote in to or ((SERVER, S4), (SERVER2, S4B)):
        case.tx("wan", link(eth(GW_WAN, mac), tunnel(frame, dst=remote)), own=True, **keys)


c = Case("vxlan-arp-answered", "A station asks for the gateway; it is answered through the tunnel its question came from, and known there.",
         "scapy script: RFC 826; RFC 7348 section 4.1", net(blue=TWO, stations=""))
c.answer("wan", link(eth(SERVER2, GW_WAN), arriving(arp_request(STATION, T4, B4), S4B)),
         link(eth(GW_WAN, SERVER2), tunnel(arp_reply(GW_WAN, B4, STATION, T4), dst=S4B)))
ip = rebuilt(v4(dst=T4) / udp())
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, SERVER2), tunnel(to_station(hop(ip)), dst=S4B)))

c = Case("vxlan-nd-answered", "The same by neighbour discovery.", "scapy script: RFC 4861 section 7.2.4; RFC 7348 section 4.1", net(blue=TWO, stations=""))
c.answer("wan", link(eth(SERVER2, GW_WAN), arriving(solicit(STATION, T6, B6), S4B)),
         link(eth(GW_WAN, SERVER2), tunnel(advertise(GW_WAN, B6, STATION, T6), dst=S4B)))
ip6 = rebuilt(v6(dst=T6) / udp())
c.through("lan", from_host(ip6), "wan", link(eth(GW_WAN, SERVER2), tunnel(to_station(hop(ip6)), dst=S4B)))

c = Case("vxlan-arp-asked", "The gateway asks all remotes for a station; the packet that waits leaves through the tunnel the answer came from.",
         "scapy script: RFC 826; RFC 7348 section 4.2, with head-end replication for multicast", net(blue=TWO, stations=""))
c.rx("lan", from_host(ip))
flood(c, arp_request(GW_WAN, B4, T4))
c.rx("wan", link(eth(SERVER2, GW_WAN), arriving(arp_reply(STATION, T4, GW_WAN, B4), S4B)), punt=True)
c.tx("wan", link(eth(GW_WAN, SERVER2), tunnel(to_station(hop(ip)), dst=S4B)))

c = Case("vxlan-nd-asked", "The same by neighbour discovery.", "scapy script: RFC 4861 section 7.2.2; RFC 7348 section 4.2", net(blue=TWO, stations=""))
c.rx("lan", from_host(ip6))
flood(c, solicit(GW_WAN, B6, T6))
c.rx("wan", link(eth(SERVER2, GW_WAN), arriving(advertise(STATION, T6, GW_WAN, B6, R=0), S4B)), punt=True)
c.tx("wan", link(eth(GW_WAN, SERVER2), tunnel(to_station(hop(ip6)), dst=S4B)))

c = Case("vxlan-arp-no-answer", "A station that nobody answers for: three questions to all remotes, then its sender is told.",
         "scapy script: RFC 1122 section 2.3.2.1", net(blue=TWO, stations=""), timestamps=True, linger_ms=4000)
c.rx("lan", from_host(ip), drop="neighbour-failed")
for at in (0, 1000, 2000):
    flood(c, arp_request(GW_WAN, B4, T4), at=at)
c.tx("lan", to_host(icmp4(L4, H4, 3, 1, ip)), at=3000, own=True)

c = Case("vxlan-station-moves", "A station speaks from behind another remote: the next packet to it goes there.", "scapy script: RFC 7348 section 4.1 (data plane learning)",
         net(blue=TWO, stations=""))
c.answer("wan", from_server(arriving(arp_request(STATION, T4, B4))), to_server(tunnel(arp_reply(GW_WAN, B4, STATION, T4))))
c.through("lan", from_host(ip), "wan", to_server(tunnel(to_station(hop(ip)))))
c.through("wan", link(eth(SERVER2, GW_WAN), arriving(from_station(INSIDE[0]), S4B)), "lan", to_host(hop(INSIDE[0])))
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, SERVER2), tunnel(to_station(hop(ip)), dst=S4B)))
# And back, by a frame of another protocol that the gateway has no use for.
c.rx("wan", from_server(arriving(from_station(rebuilt(v4(T4, "224.0.0.5") / udp())))), drop="multicast-not-routed")
c.through("lan", from_host(ip), "wan", to_server(tunnel(to_station(hop(ip)))))
c.through("wan", link(eth(SERVER2, GW_WAN), arriving(from_station(INSIDE[4]), S4B)), "lan", to_host(hop(INSIDE[4])))
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, SERVER2), tunnel(to_station(hop(ip)), dst=S4B)))

c = Case("vxlan-static-station-stays", "Who is configured behind a remote is not followed to another.", "scapy script: the operator's word stands",
         net(blue=TWO, stations=table("neighbour", interface="blue", address=T4, mac=STATION, remote=S4B)))
c.through("wan", from_server(arriving(from_station(INSIDE[0]))), "lan", to_host(hop(INSIDE[0])))
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, SERVER2), tunnel(to_station(hop(ip)), dst=S4B)))

c = Case("vxlan-learned-remote", "Remotes of a prefix become known by what they send; others are refused.", "scapy script: RFC 7348 section 4.1",
         net(neighbour("wan", S4C, "02:00:00:00:02:22"), blue=overlay(remotes=[S4], accept_from=["198.51.100.22/31"]), stations=""))
c.rx("wan", link(eth(SERVER2, GW_WAN), arriving(arp_request(STATION, T4, B4), S4B)), drop="vxlan-unknown-remote")
third = "02:00:00:00:02:22"
c.answer("wan", link(eth(third, GW_WAN), arriving(arp_request(STATION, T4, B4), S4C)),
         link(eth(GW_WAN, third), tunnel(arp_reply(GW_WAN, B4, STATION, T4), dst=S4C)))
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, third), tunnel(to_station(hop(ip)), dst=S4C)))

# -- the way to a remote -----------------------------------------------------------------------------------
c = Case("vxlan-underlay-resolved", "The remote is on a connected network and its MAC unknown: it is asked for, and the packet waits.", "scapy script: RFC 826",
         two_ports(overlay(), STATIONS, neighbours=HOST_NEIGHBOURS))
c.rx("lan", from_host(ip)).tx("wan", arp_request(GW_WAN, W4, S4), own=True)
c.rx("wan", arp_reply(SERVER, S4, GW_WAN, W4), punt=True).tx("wan", to_server(tunnel(to_station(hop(ip)))))

far, far6 = "203.0.113.7", "2001:db8:77::7"
c = Case("vxlan-underlay-routed", "The remotes are behind a router of the underlay, over IPv4 and over IPv6.", RFC,
         net(overlay("red", VNI2, W6, [far6], ["10.10.0.1/24"]), neighbour("red", "10.10.0.10", STATION2),
             route("203.0.113.0/24", S4B), route("2001:db8:77::/48", S6B), blue=overlay(remotes=[far])))
c.through("lan", from_host(ip), "wan", link(eth(GW_WAN, SERVER2), tunnel(to_station(hop(ip)), dst=far)))
c.through("lan", from_host(red), "wan", link(eth(GW_WAN, SERVER2), tunnel(to_station(hop(red), STATION2), W6, far6, VNI2)))
c.through("wan", link(eth(SERVER2, GW_WAN), arriving(from_station(INSIDE[0]), far)), "lan", to_host(hop(INSIDE[0])))

c = Case("vxlan-no-way", "No route leads to the remote: the sender is told that the station cannot be reached.", "scapy script: RFC 1812 section 5.2.7.1",
         net(blue=overlay(remotes=[far])))
c.error("lan", from_host(ip), "vxlan-no-tunnel", to_host(icmp4(L4, H4, 3, 1, ip)))

c = Case("vxlan-underlay-vrf", "Tunnels go through another VRF than the packets in them.", RFC,
         config(interface("lan", ["192.0.2.1/24"], vrf="tenant"), interface("wan", ["198.51.100.1/24"]), overlay(addresses=["10.9.0.1/24"], vrf="tenant"),
                neighbour("lan", H4, HOST), neighbour("wan", S4, SERVER), neighbour("blue", T4, STATION)))
c.through("lan", from_host(ip), "wan", to_server(tunnel(to_station(hop(ip)))))
c.through("wan", from_server(arriving(from_station(INSIDE[0]))), "lan", to_host(hop(INSIDE[0])))
c.error("lan", from_host(rebuilt(v4() / udp())), "no-route", to_host(icmp4(L4, H4, 3, 0, rebuilt(v4() / udp()))))

c = Case("vxlan-two-tenants", "Two VNIs with the same addresses inside, in two VRFs: nothing gets from one to the other.", RFC,
         config(interface("lan", ["192.0.2.1/24"], vlan=10, port="lan", vrf="a"), interface("lan-b", ["192.0.2.1/24"], vlan=20, port="lan", vrf="b"),
                interface("wan", ["198.51.100.1/24"]), overlay(addresses=["10.9.0.1/24"], vrf="a"),
                overlay("red", VNI2, addresses=["10.9.0.1/24"], vrf="b"), neighbour("lan", H4, HOST), neighbour("lan-b", H4, HOST2),
                neighbour("wan", S4, SERVER), neighbour("blue", T4, STATION), neighbour("red", T4, STATION2)))
for tag, host, mac, vni in ((10, HOST, STATION, VNI), (20, HOST2, STATION2, VNI2)):
    c.through("lan", link(eth(host, GW_LAN, tag), ip), "wan", to_server(tunnel(to_station(hop(ip), mac), vni=vni)))
    c.together().through("wan", from_server(arriving(from_station(INSIDE[0], mac), vni=vni)), "lan", link(eth(GW_LAN, host, tag), hop(INSIDE[0])))

c = Case("vxlan-between-segments", "From one segment to another: out of one tunnel and into the next.", RFC,
         net(overlay("red", VNI2, W6, [S6], ["10.10.0.1/24"]), neighbour("red", "10.10.0.10", STATION2)))
across = rebuilt(v4(T4, "10.10.0.10") / udp())
c.through("wan", from_server(arriving(from_station(across))), "wan", to_server(tunnel(to_station(hop(across), STATION2), W6, S6, VNI2)))
back_across = rebuilt(v4("10.10.0.10", T4) / udp())
c.through("wan", from_server(arriving(from_station(back_across, STATION2), S6, W6, vni=VNI2)), "wan", to_server(tunnel(to_station(hop(back_across)))))

# -- length ------------------------------------------------------------------------------------------------
c = Case("vxlan-mtu", "What does not fit the tunnel: its sender is told the segment's MTU, or it is cut before it goes in.",
         "scapy script: RFC 1191, RFC 8201, RFC 791 section 3.2; RFC 7348 section 4.3", net())
fits, long4 = (rebuilt(v4(dst=T4, flags="DF") / udp(n - 28)) for n in (1450, 1451))
c.through("lan", from_host(fits), "wan", to_server(tunnel(to_station(hop(fits)))))
c.error("lan", from_host(long4), "fragmentation-needed", to_host(icmp4(L4, H4, 3, 4, long4, mtu=1450)))
long6 = rebuilt(v6(dst=T6) / udp(1451 - 48))
c.error("lan", from_host(long6), "packet-too-big", to_host(icmp6(L6, H6, ICMPv6PacketTooBig(mtu=1450), long6)))
cut = rebuilt(v4(dst=T4) / udp(1451 - 28))
c.rx("lan", from_host(cut))
data = bytes(cut)[20:]
for offset, part in ((0, data[:1424]), (178, data[1424:])):
    piece = rebuilt(v4(dst=T4, ttl=63, frag=offset, flags="MF" if not offset else 0, proto=17) / Raw(part))
    c.tx("wan", to_server(tunnel(to_station(piece))))

c = Case("vxlan-mtu-of-the-way", "The way to the remote takes less than the interface with the tunnel end point: that counts.",
         "scapy script: RFC 1191, RFC 8201, RFC 791 section 3.2",
         config(LAN, WAN, interface("dmz", ["203.0.113.1/24"], mtu=1400), overlay(remotes=[far]), STATIONS, HOST_NEIGHBOURS, neighbour("dmz", far, SERVER2),
                ports=("lan", "wan", "dmz")))
to_far = lambda frame: link(eth(GW_DMZ, SERVER2), tunnel(frame, dst=far))
fits, long4 = (rebuilt(v4(dst=T4, flags="DF") / udp(n - 28)) for n in (1350, 1351))
c.through("lan", from_host(fits), "dmz", to_far(to_station(hop(fits))))
c.error("lan", from_host(long4), "fragmentation-needed", to_host(icmp4(L4, H4, 3, 4, long4, mtu=1350)))
long6 = rebuilt(v6(dst=T6) / udp(1351 - 48))
c.error("lan", from_host(long6), "packet-too-big", to_host(icmp6(L6, H6, ICMPv6PacketTooBig(mtu=1350), long6)))
cut = rebuilt(v4(dst=T4) / udp(1351 - 28))
c.rx("lan", from_host(cut))
data = bytes(cut)[20:]
for offset, part in ((0, data[:1328]), (166, data[1328:])):
    piece = rebuilt(v4(dst=T4, ttl=63, frag=offset, flags="MF" if not offset else 0, proto=17) / Raw(part))
    c.tx("dmz", to_far(to_station(piece)))

c = Case("vxlan-jumbo", "Frames of several buffers go into a tunnel and come out of one.", RFC,
         two_ports(overlay(), STATIONS, lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], mtu=9000),
                   wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], mtu=9100)))
for ip_ in (rebuilt(v4(dst=T4) / udp(8000)), rebuilt(v6(dst=T6) / udp(8000))):
    c.through("lan", from_host(ip_), "wan", to_server(tunnel(to_station(hop(ip_)))))
for ip_ in (rebuilt(v4(T4, H4) / udp(8000)), rebuilt(v6(T6, H6) / udp(8000))):
    c.through("wan", from_server(arriving(from_station(ip_))), "lan", to_host(hop(ip_)))
    c.through("wan", from_server(arriving(from_station(ip_), checksum=True)), "lan", to_host(hop(ip_)))

def too_big(sent, mtu, src=S4B, dst=W4):
    """What a router of the underlay says of an outer packet."""
    if ":" in src:
        return IPv6(src=src, dst=dst, hlim=60) / ICMPv6PacketTooBig(mtu=mtu) / Raw(bytes(sent)[:1232])
    return IP(src=src, dst=dst, ttl=60) / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(bytes(sent)[:548])


for name, blue, ends, router, over in (("v4", overlay(), (W4, S4), (S4B, W4), 50), ("v6", UNDER6, (W6, S6), (S6B, W6), 70)):
    c = Case(f"vxlan-path-mtu-{name}", "A router in the underlay takes less: what does not fit is told so for ten minutes; who quotes no tunnel of ours changes nothing.",
             "scapy script: RFC 1191 section 3, RFC 8201 section 4", net(blue=blue))
    full = rebuilt(v4(dst=T4, flags="DF") / udp(1500 - over - 28))
    sent = tunnel(to_station(hop(full)), *ends)
    c.through("lan", from_host(full), "wan", to_server(sent))
    for forged in (tunnel(to_station(hop(full)), ends[0], router[0]), tunnel(to_station(hop(full)), *ends, port=4790), tunnel(to_station(hop(full)), *ends, sport=1000)):
        c.rx("wan", from_server(too_big(forged, 1400, *router)), punt=True)
    bad = bytearray(bytes(too_big(sent, 1400, *router)))
    bad[-1] ^= 1
    c.rx("wan", from_server(bytes(bad)), drop="icmp-invalid")
    c.through("lan", from_host(full), "wan", to_server(sent))
    c.rx("wan", from_server(too_big(sent, 1400, *router)), punt=True)
    c.error("lan", from_host(full), "fragmentation-needed", to_host(icmp4(L4, H4, 3, 4, full, mtu=1400 - over)))
    less = rebuilt(v4(dst=T4, flags="DF") / udp(1400 - over - 28))
    c.through("lan", from_host(less), "wan", to_server(tunnel(to_station(hop(less)), *ends)))
    # As little as somebody may make us believe.
    c.rx("wan", from_server(too_big(sent, 68, *router)), punt=True)
    least = (576 if name == "v4" else 1280) - over
    c.error("lan", from_host(less), "fragmentation-needed", to_host(icmp4(L4, H4, 3, 4, less, mtu=least)))
    c.at(610_000).through("lan", from_host(full), "wan", to_server(sent))

# -- sessions ----------------------------------------------------------------------------------------------
ZONED = zoned(overlay(zone="segment", addresses=["10.9.0.1/24", "2001:db8:9::1/64"]), STATIONS,
              rule("in", "allow", "inside", "segment"), rule("net", "allow", "segment", "outside"),
              source_nat("pool", ["198.51.100.77"], frm="segment"))


class Tunnelled(End):
    """A station of the segment."""

    def sends(self, ip):
        return from_server(arriving(from_station(ip)))

    def gets(self, ip):
        return to_server(tunnel(to_station(ip)))


AT_STATION = Tunnelled("wan", STATION, GW_WAN)


def told(case):
    Talk(case, (H4, 4000), (T4, 80), there=AT_STATION).handshake()
    Talk(case, (H6, 4000), (T6, 80), there=AT_STATION).handshake()
    ask = rebuilt(v4(T4, H4B, flags="DF") / UDP(sport=1, dport=2) / payload(8))
    case.rx("wan", AT_STATION.sends(ask), drop="firewall-deny")
    outer = rebuilt(v4(S4, W4) / UDP(sport=1, dport=5000) / payload(8))
    case.rx("wan", from_server(outer), drop="firewall-deny")
    case.rx("wan", from_server(arriving(from_station(ask), S4C)), drop="vxlan-unknown-remote")
    sent = tunnel(to_station(rebuilt(v4(dst=T4) / udp())))
    case.rx("wan", from_server(too_big(sent, 1400)), punt=True)
    case.rx("wan", from_server(too_big(tunnel(to_station(ask), dst=S4C), 1400)), drop="icmp-error-no-session")


story("vxlan-sessions", "The segment has a zone of its own: sessions into it, none out of it without a rule; the zone of the wan is not asked for the tunnel.",
      "scapy script: DESIGN.md section 3; RFC 7348 section 7", ZONED)(told)


def natted(case):
    port = case.choice("port")
    talk = Talk(case, (T4, 5000), (S4B, 53), seen=("198.51.100.77", port), here=AT_STATION, there=AT_SERVER2)
    talk.up(U(20))
    talk.down(U(30))
    talk.up(U(9))


story("vxlan-nat", "A station reaches a server outside by source NAT, and is answered through the tunnel.", "scapy script: RFC 4787; RFC 7348 section 5", ZONED)(natted)

c = Case("vxlan-fragments-inside", "Fragments in the tunnel that come before the first of their datagram wait in their tunnel, and follow it.",
         "scapy script: RFC 791 section 3.2", zoned(overlay(zone="segment"), STATIONS, rule("in", "allow", "segment", "inside")))
whole = rebuilt(v4(T4, H4, id=9) / udp(40))
data = bytes(whole)[20:]
first, last = (rebuilt(v4(T4, H4, id=9, frag=at, flags=more, proto=17) / Raw(part)) for at, more, part in ((0, "MF", data[:24]), (3, 0, data[24:])))
c.rx("wan", from_server(arriving(from_station(last))))
c.rx("wan", from_server(arriving(from_station(first))))
c.tx("lan", to_host(hop(first))).tx("lan", to_host(hop(last)))


# -- a tunnel end point that several nodes have ----------------------------------------------------------------
COMMON, COMMON_MAC, VMAC_WAN = "198.51.100.254", "02:00:5e:00:00:01", "00:00:5e:00:01:14"


@story("vxlan-vtep-of-a-virtual-router", "A tunnel end point that is a virtual router's address: its Active alone, or who was it until a moment ago, sends and takes what is in tunnels, with the MAC address that all nodes have on the segment.",
       "scapy script: RFC 7348 section 5, RFC 9568 section 6.4; README, \"What belongs to a group\"; the hash of src/packet/hash.rs",
       net(table("vrrp", interface="wan", id=20, addresses=[COMMON], group="main"), blue=overlay(vtep=COMMON, mac=COMMON_MAC)))
def _(c):
    sent, back = rebuilt(v4(dst=T4) / udp()), rebuilt(v4(T4, H4) / udp())
    strange = rebuilt(v4(dst="10.9.0.77") / udp())
    asks = eth(STATION, "ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=STATION, psrc=T4, pdst=B4)
    comes = lambda inner, to=VMAC_WAN: link(eth(SERVER, to), arriving(inner, dst=COMMON))

    def here():
        c.through("lan", from_host(sent), "wan", to_server(tunnel(link(eth(COMMON_MAC, STATION), hop(sent)), COMMON)))
        c.through("wan", comes(from_station(back, to=COMMON_MAC)), "lan", to_host(hop(back)))
        answer = eth(COMMON_MAC, STATION) / ARP(op=2, hwsrc=COMMON_MAC, psrc=B4, hwdst=STATION, pdst=T4)
        c.answer("wan", comes(asks), to_server(tunnel(answer, COMMON)))

    def elsewhere():
        for to in (sent, strange):
            c.rx("lan", from_host(to), drop="virtual-router-backup")
        c.rx("wan", comes(from_station(back, to=COMMON_MAC)), drop="not-for-us")
        for inner in (from_station(back, to=COMMON_MAC), asks):
            c.rx("wan", comes(inner, GW_WAN), drop="virtual-router-backup")

    c.role("backup")
    elsewhere()
    c.role("active")
    here()
    c.role("lingers")
    here()
    c.role("other")
    elsewhere()


VIRTUAL, VMAC_BLUE = "10.9.0.254", "00:00:5e:00:01:1e"


@story("vxlan-virtual-router", "A virtual router on a segment in tunnels: its Active answers for the address, with the virtual MAC address, and routes what comes to that; a Backup does neither.",
       "scapy script: RFC 9568 sections 6.4.2, 6.4.3 and 8.1.2; RFC 7348 section 5; the hash of src/packet/hash.rs",
       net(table("vrrp", interface="blue", id=30, addresses=[VIRTUAL])))
def _(c):
    back = rebuilt(v4(T4, H4) / udp())
    asks = eth(STATION, "ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=STATION, psrc=T4, pdst=VIRTUAL)
    comes = lambda inner: link(eth(SERVER, GW_WAN), arriving(inner))

    def routes():
        c.through("wan", comes(from_station(back, to=VMAC_BLUE)), "lan", to_host(hop(back)))

    def does_not():
        c.rx("wan", comes(from_station(back, to=VMAC_BLUE)), drop="not-for-us")
        c.rx("wan", comes(asks), punt=True)
        c.through("wan", comes(from_station(back)), "lan", to_host(hop(back)))

    c.role("other")
    does_not()
    c.role("active")
    routes()
    answer = eth(GW_WAN, STATION) / ARP(op=2, hwsrc=VMAC_BLUE, psrc=VIRTUAL, hwdst=STATION, pdst=T4)
    c.answer("wan", comes(asks), to_server(tunnel(answer)))
    c.role("lingers")
    routes()
    c.rx("wan", comes(asks), punt=True)
    c.role("other")
    does_not()
