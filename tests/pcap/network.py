"""IP headers: what a router must check, what it must leave alone, and addresses that may not be routed."""

from lib import *
from scapy.all import IPOption, IPOption_EOL, IPOption_NOP, IPOption_RR, IPOption_Router_Alert
from scapy.all import IPOption_LSRR, IPOption_SSRR

# -- upper layers are not a router's business --------------------------------------------------------------
UPPER = [
    TCP(sport=40000, dport=443, flags="S", options=[("MSS", 1460), ("WScale", 7)]),
    UDP(sport=40000, dport=50000) / payload(20),
    SCTP(sport=40000, dport=5000, tag=1) / payload(16),
    GRE(proto=0x0800) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP() / payload(8),
]
ESP_BYTES = bytes.fromhex("0000100100000007") + bytes(range(48))

c = Case("protocols-ipv4", "TCP, UDP, ICMP, SCTP, GRE, ESP and a protocol nobody knows pass alike.",
         "scapy script: RFC 1812 section 5.2.1 (forwarding does not depend on the protocol)", two_ports())
for upper in (*UPPER, ICMP(type=8, id=7, seq=1) / payload(56), ICMP(type=0, id=7, seq=1) / payload(56)):
    ip = v4() / upper
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
for proto, data in ((50, ESP_BYTES), (253, bytes(4)), (59, b"")):
    ip = v4(proto=proto) / Raw(data)
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("protocols-ipv6", "TCP, UDP, ICMPv6, SCTP, GRE, ESP, no-next-header and a protocol nobody knows pass alike.",
         "scapy script: RFC 8200 section 4 (a router looks at the IPv6 header only)", two_ports())
for upper in (*UPPER, ICMPv6EchoRequest(id=7, seq=1, data=bytes(56)), ICMPv6EchoReply(id=7, seq=1, data=bytes(56))):
    ip = v6() / upper
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
for nh, data in ((50, ESP_BYTES), (253, bytes(4)), (59, b""), (59, bytes(16))):
    ip = v6(nh=nh) / Raw(data)
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("short-upper-headers-forwarded", "A packet too short for its TCP, UDP or ICMP header is still a good IP packet and is forwarded.",
         "scapy script: RFC 1812 section 5.2.2 (the checks end with the IP header)", two_ports())
for proto, length in ((6, 4), (17, 3), (17, 0), (1, 1), (132, 5)):
    ip = v4(proto=proto) / Raw(bytes(length))
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
    ip = v6(nh=58 if proto == 1 else proto) / Raw(bytes(length))
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("bad-upper-checksums-forwarded", "A wrong UDP, TCP or ICMP checksum is for the receiver to find, and is neither mended nor dropped.",
         "scapy script: RFC 1812 section 5.2.2, RFC 8200 section 8.1", two_ports())
for ip in (v4() / UDP(sport=1, dport=2, chksum=0xBEEF) / payload(9), v4() / TCP(chksum=0xBEEF),
           v4() / ICMP(chksum=0xBEEF), v6() / UDP(sport=1, dport=2, chksum=0xBEEF) / payload(9)):
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("fragments-forwarded", "Fragments that fit pass as they are, first, middle and last; identification, offset and flags are kept.",
         "scapy script: RFC 791 section 3.2, RFC 8200 section 4.5", two_ports())
for ip in (v4(flags="MF", frag=0) / udp(88), v4(flags="MF", frag=12, proto=17) / payload(96),
           v4(frag=24, proto=17) / payload(13),
           v6() / IPv6ExtHdrFragment(m=1, offset=0, id=7) / udp(88),
           v6() / IPv6ExtHdrFragment(m=0, offset=12, id=7, nh=17) / payload(13)):
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

# -- header checks -----------------------------------------------------------------------------------------
c = Case("checksum-carry", "TTL decrement over every awkward header checksum: carries, 0xfeff, 0xffff's neighbours; RFC 1141's mistake stays away.",
         "scapy script: RFC 1624 sections 2 to 4, checksum computed from scratch", two_ports())
header = bytes(v4(id=0, chksum=0) / udp(2))[:20]
for wanted in (0x0000, 0x0001, 0x00FF, 0x0100, 0xFDFF, 0xFEFE, 0xFEFF, 0xFF00, 0xFF01, 0xFFFD, 0xFFFE):
    ident = next(i for i in range(0x10000) if ones_complement(header[:4] + i.to_bytes(2, "big") + header[6:]) == wanted)
    ip = v4(id=ident) / udp(2)
    assert int.from_bytes(bytes(ip)[10:12], "big") == wanted
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("ipv4-bad-checksum", "A wrong header checksum drops the packet in silence, even where an error were due otherwise.",
         "scapy script: RFC 1812 sections 5.2.2 and 4.3.2.7", two_ports())
for ip in (v4(chksum=0) / udp(), v4(chksum=0xFFFF) / udp(), v4(ttl=1, chksum=0x1234) / udp(),
           v4(dst=L4, chksum=0x1234) / ICMP(), v4(dst="203.0.113.9", chksum=1) / udp()):
    c.rx("lan", from_host(ip), drop="ipv4-checksum")

c = Case("ipv4-header-invalid", "Wrong version, header length under 5 words, total length shorter than the header.",
         "scapy script: RFC 1812 section 5.2.2 (tests 3 to 5)", two_ports())
def broken(ip, **fields):
    """The packet with header fields forced and the checksum right for what then looks like its header."""
    data = bytearray(bytes(ip))
    if "first" in fields:
        data[0] = fields["first"]
    if "length" in fields:
        data[2:4] = fields["length"].to_bytes(2, "big")
    head = max((data[0] & 15) * 4, 20)
    data[10:12] = b"\0\0"
    data[10:12] = ones_complement(bytes(data[:head])).to_bytes(2, "big")
    return bytes.fromhex((GW_LAN + HOST).replace(":", "")) + b"\x08\x00" + bytes(data)
for fields in ({"first": 0x55}, {"first": 0x65}, {"first": 0x05}, {"first": 0x44}, {"first": 0x40},
               {"length": 19}, {"length": 0}, {"first": 0x46, "length": 20}):
    c.rx("lan", broken(v4() / udp(60), **fields), drop="ipv4-header-invalid")

c = Case("ipv4-truncated", "The frame ends inside the IPv4 header, inside its options, or before its total length.",
         "scapy script: RFC 1812 section 5.2.2 (test 1 and the check of the link length)", two_ports())
whole = from_host(v4() / udp(60))
for length in (14, 15, 33, 34, len(whole) - 1):
    c.rx("lan", whole[:length], drop="truncated")
c.rx("lan", from_host(v4(options=[IPOption_NOP()] * 40) / udp(60))[:14 + 36], drop="truncated")
c.rx("lan", broken(v4() / udp(60), length=89), drop="truncated")
c.rx("lan", broken(v4() / udp(60), length=65535), drop="truncated")

c = Case("ipv6-header-invalid", "EtherType says IPv6, the version says otherwise.",
         "scapy script: RFC 8200 section 3 (version 6)", two_ports())
for version in (0, 4, 5, 7, 15):
    data = bytearray(from_host(v6() / udp(60)))
    data[14] = version << 4
    c.rx("lan", bytes(data), drop="ipv6-header-invalid")

c = Case("ipv6-truncated", "The frame ends inside the IPv6 header, or before its payload length.",
         "scapy script: RFC 8200 section 3 (payload length)", two_ports())
whole = from_host(v6() / udp(60))
for length in (14, 15, 53, 54, len(whole) - 1):
    c.rx("lan", whole[:length], drop="truncated")

# -- options and extension headers -------------------------------------------------------------------------
c = Case("ipv4-options-forwarded", "Options that are no source route do not hinder a packet: router alert, no-operation, one nobody knows, 40 bytes of them.",
         "scapy script: RFC 1812 section 5.3.13.1 (unrecognized options pass unchanged), RFC 7126", two_ports())
UNKNOWN = IPOption(b"\x9e\x06abcd")
for options in ([IPOption_Router_Alert()], [IPOption_NOP()] * 4, [UNKNOWN, IPOption_NOP(), IPOption_EOL()],
                [IPOption(b"\x9e\x28" + bytes(38))]):
    ip = v4(options=options) / udp()
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("ipv4-record-route-ignored", "A packet that asks for its route to be recorded passes as if it did not.",
         "scapy script: RFC 7126, Record Route (one of the sanctioned ways: forwarded as if the option were not there; RFC 1812 section 5.3.13.5 would record)", two_ports())
ip = v4(options=[IPOption_RR(length=11, pointer=4, routers=["0.0.0.0"] * 2), IPOption_EOL()]) / udp()
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("ipv4-source-route", "Loose and strict source routes are dropped in silence, also behind padding options and also to the gateway itself.",
         "scapy script: RFC 7126 sections 4.3 and 4.4", two_ports())
for kind in (IPOption_LSRR, IPOption_SSRR):
    route_option = kind(length=7, pointer=4, routers=["203.0.113.1"])
    c.rx("lan", from_host(v4(options=[route_option, IPOption_EOL()]) / udp()), drop="ipv4-source-route")
    c.rx("lan", from_host(v4(options=[IPOption_NOP(), IPOption_Router_Alert(), route_option]) / udp()),
         drop="ipv4-source-route")
    c.rx("lan", from_host(v4(ttl=1, options=[route_option, IPOption_EOL()]) / udp()), drop="ipv4-source-route")
    c.rx("lan", from_host(v4(dst=L4, options=[route_option, IPOption_EOL()]) / ICMP()), drop="ipv4-source-route")

c = Case("ipv4-no-source-route-after-end", "Bytes behind the end-of-options mark, or inside another option, only look like a source route.",
         "scapy script: RFC 791 section 3.1 (end of option list)", two_ports())
for options in ([IPOption(b"\x00"), IPOption(b"\x83\x07\x04\xcb\x00\x71\x01")], [IPOption(b"\x9e\x08\x83\x07\x04\x83\x83\x83")]):
    ip = v4(options=options, proto=253) / payload(32)
    assert b"\x83\x07\x04" in bytes(ip)[20:28]
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

AH_BYTES = bytes.fromhex("1104000000001000000000010102030405060708090a0b0c")  # next header UDP, 6 words - 2
def dest(n):
    """A chain of n destination options headers of 8 bytes."""
    chain = IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")])
    for _ in range(n - 1):
        chain = chain / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0\0\0")])
    return chain

c = Case("ipv6-extension-headers", "Hop-by-hop, routing, fragment, authentication, mobility and destination options pass, one by one and up to 8 of them.",
         "scapy script: RFC 8200 sections 4 and 4.1; 8 is the limit DESIGN section 3 states", two_ports())
for ip in (v6() / IPv6ExtHdrHopByHop(options=[RouterAlert(value=0)]) / udp(),
           v6() / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / IPv6ExtHdrRouting(
               type=2, segleft=0, addresses=["2001:db8:9::9"]) / TCP(flags="S"),
           v6() / IPv6ExtHdrRouting(type=4, segleft=1, addresses=["2001:db8:9::9"]) / udp(),
           v6() / IPv6ExtHdrFragment(id=9) / udp(),
           v6(nh=51) / Raw(AH_BYTES + bytes(UDP(sport=1, dport=2, chksum=1) / payload(8))),
           v6(nh=135) / Raw(bytes.fromhex("3b01050000000000") + bytes(8)),
           v6() / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(200))]) / dest(1) / ICMPv6EchoRequest(),
           v6() / dest(7) / udp(), v6() / dest(8) / udp()):
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("ipv6-nine-extension-headers", "A ninth extension header is one too many; nobody needs it but to hide something.",
         "scapy script: limit of DESIGN section 3, RFC 8200 section 4.1", two_ports())
c.rx("lan", from_host(v6() / dest(9) / udp()), drop="ipv6-too-many-headers")
c.rx("lan", from_host(v6() / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))]) / dest(8) / udp()),
     drop="ipv6-too-many-headers")

c = Case("ipv6-extension-header-cut-off", "An extension header that runs past the end of the packet.",
         "scapy script: RFC 8200 section 4.2 (header extension length)", two_ports())
for nh, data in ((60, b"\x11\x01" + bytes(6)), (0, b"\x11\xff" + bytes(30)), (43, b"\x11"), (44, b"\x11\x00\x00\x00")):
    c.rx("lan", from_host(v6(nh=nh) / Raw(data)), drop="ipv6-header-invalid")

# -- addresses that may not be routed ------------------------------------------------------------------------
DEFAULTS = route("0.0.0.0/0", S4) + "\n" + route("::/0", S6)

c = Case("martian-source-ipv4", "Sources that cannot be: network zero, loopback, class E, multicast, broadcast. No error answers them, not even at TTL 1.",
         "scapy script: RFC 1812 sections 5.3.7 and 4.3.2.7", two_ports(DEFAULTS))
for src in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "240.0.0.1", "255.255.255.254", "255.255.255.255",
            "224.0.0.1", "239.255.255.255"):
    c.rx("lan", from_host(v4(src) / udp()), drop="martian-source")
c.rx("lan", from_host(v4("127.0.0.1", ttl=1) / udp()), drop="martian-source")
c.rx("lan", from_host(v4("224.0.0.5", L4) / ICMP()), drop="martian-source")
for src in ("1.0.0.1", "126.255.255.255", "128.0.0.1", "223.255.255.254"):  # just outside
    ip = v4(src) / udp()
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("martian-destination-ipv4", "Destinations that cannot be: network zero, loopback, class E. A default route does not make them reachable.",
         "scapy script: RFC 1812 sections 5.3.7 and 4.2.2.11", two_ports(DEFAULTS))
for dst in ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.1.2.3", "240.0.0.1", "255.255.255.254"):
    c.rx("lan", from_host(v4(dst=dst) / udp()), drop="martian-destination")
for dst in ("1.0.0.1", "126.255.255.255", "128.0.0.1", "223.255.255.254"):
    ip = v4(dst=dst) / udp()
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("martian-source-ipv6", "Unspecified, loopback and multicast sources are dropped and never answered.",
         "scapy script: RFC 4291 sections 2.5.2, 2.5.3 and 2.7, RFC 4443 section 2.4 (e.6)", two_ports(DEFAULTS))
for src in ("::", "::1", "ff02::1", "ff0e::1234"):
    c.rx("lan", from_host(v6(src) / udp()), drop="martian-source")
    c.rx("lan", from_host(v6(src, hlim=1) / udp()), drop="martian-source")

c = Case("martian-destination-ipv6", "Unspecified and loopback destinations never cross a link, whatever the default route.",
         "scapy script: RFC 4291 sections 2.5.2 and 2.5.3", two_ports(DEFAULTS))
for dst in ("::", "::1"):
    c.rx("lan", from_host(v6(dst=dst) / udp()), drop="martian-destination")

c = Case("link-local-ipv6", "Link-local packets stay on their link; whether the sender is told (RFC 4443 code 2) is not asked here.",
         "scapy script: RFC 4291 section 2.5.6", two_ports(DEFAULTS, extra="[icmp]\nrate = 0\n"))
c.rx("lan", from_host(v6("fe80::10", S6) / udp()), drop="link-local-not-routed")
c.rx("lan", from_host(v6(H6, "fe80::20") / udp()), drop="link-local-not-routed")
c.rx("lan", from_host(v6("fe80::10", "fe80::20") / udp()), drop="link-local-not-routed")
c.rx("lan", from_host(v6("febf::10", S6) / udp()), drop="link-local-not-routed")  # fe80::/10, not only /64

c = Case("link-local-ipv4", "169.254/16 is not routed, neither as source nor as destination.",
         "scapy script: RFC 3927 sections 2.7 and 7", two_ports(DEFAULTS, extra="[icmp]\nrate = 0\n"))
c.rx("lan", from_host(v4("169.254.1.1") / udp()), drop="link-local-not-routed")
c.rx("lan", from_host(v4(dst="169.254.169.254") / udp()), drop="link-local-not-routed")

c = Case("multicast-not-routed", "Multicast is not routed and never answered, also when its TTL runs out.",
         "scapy script: RFC 1112 section 6.4 (MAC addresses), RFC 2464 section 7, RFC 1812 section 4.3.2.7", two_ports(DEFAULTS))
for ttl in (64, 1):
    c.rx("lan", link(eth(HOST, "01:00:5e:01:02:03"), v4(dst="239.1.2.3", ttl=ttl) / udp()), drop="multicast-not-routed")
    c.rx("lan", link(eth(HOST, "33:33:00:00:12:34"), v6(dst="ff0e::1234", hlim=ttl) / udp()), drop="multicast-not-routed")

c = Case("broadcast-not-forwarded", "Broadcasts stay on their network: limited, directed to another connected network, and the network address, its old form.",
         "scapy script: RFC 1812 sections 5.3.5 and 4.2.3.1, RFC 2644 section 2", two_ports(DEFAULTS))
c.rx("lan", link(eth(HOST, BROADCAST), v4(dst="255.255.255.255") / udp()), drop="broadcast-not-forwarded")
for dst in ("198.51.100.255", "198.51.100.0"):
    c.rx("lan", from_host(v4(dst=dst) / udp()), drop="broadcast-not-forwarded")
    c.rx("lan", from_host(v4(dst=dst, ttl=1) / udp()), drop="broadcast-not-forwarded")

c = Case("point-to-point-prefixes", "A /31 and a /127 have no broadcast and no anycast address: both ends are hosts.",
         "scapy script: RFC 3021 section 2.1, RFC 6164 section 5",
         two_ports(wan=interface("wan", ["198.51.100.254/31", "2001:db8:2::/127"]),
                   neighbours=HOST_NEIGHBOURS + neighbour("wan", "198.51.100.255", SERVER) + neighbour("wan", "2001:db8:2::1", SERVER)))
ip = v4(dst="198.51.100.255") / udp()
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
ip = v6(dst="2001:db8:2::1") / udp()
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

# -- source check ----------------------------------------------------------------------------------------------
CHECKED = ["192.0.2.1/24", "2001:db8:1::1/64"]
BEHIND = (route("10.1.0.0/16", H4) + "\n" + route("2001:db8:aa::/48", H6) + "\n"
          + route("10.2.0.0/16", S4) + "\n" + route("2001:db8:bb::/48", S6) + "\n"
          + route("10.3.0.0/16", blackhole=True) + "\n")
for mode, passes in (("strict", ("10.1.0.1", "2001:db8:aa::1")),
                     ("loose", ("10.1.0.1", "2001:db8:aa::1", "10.2.0.1", "2001:db8:bb::1"))):
    c = Case(f"source-check-{mode}",
             {"strict": "Strict source check: only sources whose route leads back through the ingress interface pass; others vanish in silence.",
              "loose": "Loose source check: a source anyone has a route to passes, one without a route or with a blackhole vanishes in silence."}[mode],
             "scapy script: RFC 3704 sections " + {"strict": "2.2", "loose": "2.4"}[mode],
             two_ports(BEHIND, lan=interface("lan", CHECKED, source_check=mode)))
    for src in ("192.0.2.10", "2001:db8:1::10", "10.1.0.1", "2001:db8:aa::1", "10.2.0.1", "2001:db8:bb::1",
                "10.3.0.1", "10.4.0.1", "2001:db8:cc::1"):
        ip = (v6(src) if ":" in src else v4(src)) / udp()
        if src in passes or src in (H4, H6):
            c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
        else:
            c.rx("lan", from_host(ip), drop="source-check")
    late = v4("10.4.0.1", ttl=1) / udp()
    c.rx("lan", from_host(late), drop="source-check")
    back = v4("10.9.0.1", H4) / udp()  # the other interface asks for nothing
    c.through("wan", from_server(back), "lan", to_host(hop(back)))
