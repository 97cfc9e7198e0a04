"""Ethernet and VLANs: what is accepted, and how a frame is tagged on the way out."""

from lib import *

# -- plain forwarding ----------------------------------------------------------------------------------
c = Case("forward-ipv4", "A UDP packet crosses the gateway both ways: new MAC addresses, TTL less one, checksum to match.",
         "scapy script: RFC 1812 sections 5.2 and 5.3.1, RFC 894", two_ports())
for n in range(4):
    ip = v4(id=n) / udp(18 + n, sport=40000 + n)
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
    ip = v4(S4, H4, id=n, ttl=2 + n) / udp(500, 50000, 40000 + n)
    c.through("wan", from_server(ip), "lan", to_host(hop(ip)))

c = Case("forward-ipv6", "A UDP packet crosses the gateway both ways: hop limit less one, traffic class and flow label untouched.",
         "scapy script: RFC 8200 section 3, RFC 2464", two_ports())
for n in range(4):
    ip = v6(fl=0xABCDE, tc=0x28 + n) / udp(18 + n, sport=40000 + n)
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
    ip = v6(S6, H6, hlim=2 + n) / udp(500, 50000, 40000 + n)
    c.through("wan", from_server(ip), "lan", to_host(hop(ip)))

c = Case("tos-and-ecn-untouched", "DSCP and ECN bits of a forwarded packet are nobody's business but the sender's.",
         "scapy script: RFC 2474 section 3, RFC 3168 section 5", two_ports())
for tos in (0x00, 0x03, 0xB8, 0xFF):
    ip = v4(tos=tos) / udp()
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
    ip = v6(tc=tos) / udp()
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("ethernet-padding-trimmed", "A short packet padded to Ethernet's minimum leaves with exactly its IP length; padding is never forwarded.",
         "scapy script: RFC 894 (padding is not part of the IP packet)", two_ports())
for n in (0, 1, 17):
    ip = v4() / UDP(sport=1000, dport=2000) / payload(n)
    c.through("lan", from_host(ip) + b"\xEE" * (46 - len(ip)), "wan", to_server(hop(ip)))
ip = v6() / TCP(sport=1000, dport=2000, flags="S")
c.through("lan", from_host(ip) + b"\xEE" * 6, "wan", to_server(hop(ip)))

c = Case("jumbo-frames-forwarded", "Packets of 9000 bytes cross interfaces of MTU 9000 whole.",
         "scapy script: RFC 791 (total length up to 65535), RFC 8200",
         two_ports(lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], mtu=9000),
                   wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], mtu=9000)))
for size in (1501, 4097, 8999, 9000):
    ip = v4(flags="DF") / udp(size - 28)
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
    ip = v6() / udp(size - 48)
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

# -- frames that are not for the router ------------------------------------------------------------------
c = Case("other-stations-mac", "Unicast frames for another station, seen because a switch floods, are not routed a second time.",
         "scapy script: RFC 1812 section 5.3.4 and IEEE 802 addressing", two_ports())
c.rx("lan", link(eth(HOST, "02:00:00:00:99:99"), v4() / udp()), drop="not-for-us")
c.rx("lan", link(eth(HOST, GW_WAN), v4() / udp()), drop="not-for-us")  # our MAC, but on the other port
c.rx("lan", link(eth(HOST, "02:00:00:00:99:99"), v6() / udp()), drop="not-for-us")
ip = v4() / udp()
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("configured-mac", "An interface with its own MAC address takes frames for it, refuses the port's, and sends from it.",
         "scapy script: issue 2 section 4 (`mac` of an interface)",
         two_ports(lan=interface("lan", ["192.0.2.1/24"], mac="02:00:00:00:00:aa"),
                   wan=interface("wan", ["198.51.100.1/24"], mac="02:00:00:00:00:bb"),
                   neighbours=neighbour("lan", H4, HOST) + neighbour("wan", S4, SERVER)))
ip = v4() / udp()
c.through("lan", link(eth(HOST, "02:00:00:00:00:aa"), ip), "wan", link(eth("02:00:00:00:00:bb", SERVER), hop(ip)))
c.rx("lan", link(eth(HOST, GW_LAN), ip), drop="not-for-us")

c = Case("unicast-in-broadcast-frame", "An IP unicast packet in an Ethernet broadcast or multicast frame is neither forwarded nor answered, not even when its TTL runs out.",
         "scapy script: RFC 1812 sections 5.3.4 and 4.3.2.7, RFC 4443 section 2.4 (e.4, e.5)", two_ports())
for ip in (v4() / udp(), v4(ttl=1) / udp(), v6() / udp(), v6(hlim=1) / udp(), v4(dst="203.0.113.1") / udp()):
    c.rx("lan", link(eth(HOST, BROADCAST), ip), drop="link-broadcast-not-forwarded")
c.rx("lan", link(eth(HOST, "01:00:5e:01:02:03"), v4(ttl=1) / udp()), drop="link-broadcast-not-forwarded")
c.rx("lan", link(eth(HOST, "33:33:00:00:00:01"), v6(hlim=1) / udp()), drop="link-broadcast-not-forwarded")

c = Case("unknown-ethertype", "What is neither IP nor ARP (an experimental EtherType, MPLS, an 802.3 length) is counted, not forwarded.",
         "scapy script: IEEE 802.3 clause 3.2.6, RFC 894", two_ports())
for kind in (0x88B5, 0x8847, 0x0026):
    c.rx("lan", bytes.fromhex((GW_LAN + HOST).replace(":", "")) + kind.to_bytes(2, "big") + bytes(46),
         drop="unknown-ethertype")

# -- tags --------------------------------------------------------------------------------------------------
TENANTS = [interface("a", ["192.0.2.1/24", "2001:db8:1::1/64"], port="lan", vlan=100),
           interface("b", ["198.51.100.1/24", "2001:db8:2::1/64"], port="lan", vlan=101),
           interface("c", ["203.0.113.1/24", "2001:db8:3::1/64"], port="lan", vlan=[200, 10])]
A4, B4, C4 = H4, S4, "203.0.113.30"
A6, B6, C6 = H6, S6, "2001:db8:3::30"
A, B, C = HOST, SERVER, "02:00:00:00:03:30"
KNOWN = [neighbour("a", A4, A), neighbour("a", A6, A), neighbour("b", B4, B), neighbour("b", B6, B),
         neighbour("c", C4, C), neighbour("c", C6, C)]
VLANS = config(*TENANTS, *KNOWN, ports=("lan",))

c = Case("untagged-to-vlan", "From an untagged port into a VLAN and back: the tag appears and disappears.",
         "scapy script: IEEE 802.1Q clause 9.6",
         two_ports(wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], vlan=4094)))
for out, back in ((v4() / udp(), v4(S4, H4) / udp()), (v6() / udp(), v6(S6, H6) / udp())):
    c.through("lan", from_host(out), "wan", link(eth(GW_WAN, SERVER, 4094), hop(out)))
    c.through("wan", link(eth(SERVER, GW_WAN, 4094), back), "lan", to_host(hop(back)))

c = Case("vlan-to-vlan", "Routed from one VLAN to another of the same port: same wire, another tag.",
         "scapy script: IEEE 802.1Q clause 9.6", VLANS)
for out, back in ((v4(A4, B4) / udp(), v4(B4, A4) / udp()), (v6(A6, B6) / udp(), v6(B6, A6) / udp())):
    c.through("lan", link(eth(A, GW_LAN, 100), out), "lan", link(eth(GW_LAN, B, 101), hop(out)))
    c.through("lan", link(eth(B, GW_LAN, 101), back), "lan", link(eth(GW_LAN, A, 100), hop(back)))

c = Case("vlan-to-qinq", "From one tag to two and back; the outer tag sent is 802.1ad's 0x88a8.",
         "scapy script: IEEE 802.1ad clause 9.5 (S-TAG 88-A8)", VLANS)
for out, back in ((v4(A4, C4) / udp(), v4(C4, A4) / udp()), (v6(A6, C6) / udp(1400), v6(C6, A6) / udp(1400))):
    c.through("lan", link(eth(A, GW_LAN, 100), out), "lan", link(eth(GW_LAN, C, 200, 10), hop(out)))
    c.through("lan", link(eth(C, GW_LAN, 200, 10), back), "lan", link(eth(GW_LAN, A, 100), hop(back)))

c = Case("qinq-stacked-8100", "Two stacked 0x8100 tags, as many switches send QinQ, mean the same pair as 0x88a8 over 0x8100.",
         "scapy script: IEEE 802.1Q clause 9.6, stacked C-TAGs", VLANS)
for ip in (v4(C4, A4) / udp(), v6(C6, A6) / udp()):
    c.through("lan", link(Ether(src=C, dst=GW_LAN) / Dot1Q(vlan=200) / Dot1Q(vlan=10), ip),
              "lan", link(eth(GW_LAN, A, 100), hop(ip)))

c = Case("priority-tag", "VID 0 carries only a priority: the frame belongs to the untagged interface, and the tag goes no further.",
         "scapy script: IEEE 802.1Q clause 9.6, table 9-2 (null VID)", two_ports())
for prio in (0, 5, 7):
    for ip in (v4() / udp(), v6() / udp()):
        c.through("lan", link(Ether(src=HOST, dst=GW_LAN) / Dot1Q(vlan=0, prio=prio), ip), "wan", to_server(hop(ip)))

c = Case("vlan-priority-ignored", "Priority and drop-eligible bits of a tag do not hide its VID.",
         "scapy script: IEEE 802.1Q clause 9.6 (PCP and DEI are not part of the VID)", VLANS)
ip = v4(A4, B4) / udp()
for prio, dei in ((7, 0), (0, 1), (3, 1)):
    c.through("lan", link(Ether(src=A, dst=GW_LAN) / Dot1Q(prio=prio, id=dei, vlan=100), ip),
              "lan", link(eth(GW_LAN, B, 101), hop(ip)))

c = Case("unknown-vlan", "A tag, a pair or the lack of one that no interface owns: outer alone, pair with another inner, pair swapped, untagged.",
         "scapy script: issue 2 section 2 (VLAN pair to interface)", VLANS)
ip = v4(A4, B4) / udp()
for tags in ((999,), (200,), (10,), (200, 11), (10, 200), (100, 10), (201, 10), ()):
    c.rx("lan", link(eth(A, GW_LAN, *tags), ip), drop="unknown-vlan")

c = Case("vlan-same-id-two-ports", "The same VID on two ports is two interfaces.",
         "scapy script: issue 2 section 2 (VLAN pair to interface, per port)",
         two_ports(lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], vlan=100),
                   wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], vlan=100)))
ip, back = v4() / udp(), v4(S4, H4) / udp()
c.through("lan", link(eth(HOST, GW_LAN, 100), ip), "wan", link(eth(GW_WAN, SERVER, 100), hop(ip)))
c.through("wan", link(eth(SERVER, GW_WAN, 100), back), "lan", link(eth(GW_LAN, HOST, 100), hop(back)))

c = Case("truncated-link-headers", "Frames that end inside the Ethernet header or a VLAN tag.",
         "scapy script: IEEE 802.3 clause 3.2, IEEE 802.1Q clause 9.6", VLANS)
whole = link(eth(A, GW_LAN, 200, 10), v4(C4, A4) / udp())
for length in (1, 13, 14, 17, 18, 21):
    c.rx("lan", whole[:length], drop="truncated")

# -- captures ----------------------------------------------------------------------------------------------
for name, form, sentence, source in (
        ("input-pcapng", pcapng, "A pcapng capture is read as well, whatever its file is called.",
         "scapy script: draft-ietf-opsawg-pcapng sections 4.1 to 4.3"),
        ("input-pcap-microseconds-big-endian", pcap_us_big_endian,
         "A classic capture of a big-endian machine, in microseconds, is read as well.",
         "scapy script: draft-ietf-opsawg-pcap section 4")):
    c = Case(name, sentence, source, two_ports(), timestamps=True, workers=(1,))
    c.formats["lan"] = form
    for n in range(3):
        ip = v4(id=n) / udp(31 + n)
        c.at(n * 1500).through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("inputs-merged-by-time", "Frames of two captures are taken in the order of their timestamps; at the same instant in the order of the ports in the config.",
         "scapy script: DESIGN section 5 (time comes from the capture)",
         two_ports(interface("dmz", ["203.0.113.1/24"]), neighbour("dmz", "203.0.113.30", "02:00:00:00:03:30"),
                   ports=("lan", "wan", "dmz")), timestamps=True, workers=(1,))
to_dmz = eth(GW_DMZ, "02:00:00:00:03:30")
for n in range(4):
    lan, wan = v4(H4, "203.0.113.30", id=n) / udp(20), v4(S4, "203.0.113.30", id=n) / udp(40)
    start = 10 * n
    c.at(start).rx("lan", from_host(lan))
    c.now_ms = start
    c.rx("wan", from_server(wan))
    c.tx("dmz", link(to_dmz, hop(lan)), at=start).tx("dmz", link(to_dmz, hop(wan)), at=start)
    early, late = v4(S4, "203.0.113.30", id=100 + n) / udp(60), v4(H4, "203.0.113.30", id=100 + n) / udp(80)
    c.at(start + 3).through("wan", from_server(early), "dmz", link(to_dmz, hop(early)))
    c.at(start + 5).through("lan", from_host(late), "dmz", link(to_dmz, hop(late)))
