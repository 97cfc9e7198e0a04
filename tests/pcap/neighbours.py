"""Neighbours: ARP, neighbour discovery and router advertisements, resolved and answered by the gateway itself."""

from lib import *

ONLY_HOST = two_ports(neighbours=HOST_NEIGHBOURS)  # the server has to be found
LL_LAN, LL_WAN = "fe80::53:47ff:fe00:0", "fe80::53:47ff:fe00:1"  # RFC 4291 appendix A, of the ports' MACs
WHO_HAS_S4, WHO_HAS_S6 = arp_request(GW_WAN, W4, S4), solicit(GW_WAN, W6, S6)
S4_IS_AT = arp_reply(SERVER, S4, GW_WAN, W4)
S6_IS_AT = advertise(SERVER, S6, GW_WAN, W6, R=0)


def ping(n):
    """Packets of one flow that can be told apart."""
    return v4(id=n) / udp(20 + n), v6(fl=1) / udp(20 + n)


def released(case, *packets, mac=SERVER, own=False):
    for ip in packets:
        case.tx("wan", link(eth(GW_WAN, mac), hop(ip)), own=own)


# -- resolution --------------------------------------------------------------------------------------------
for which, family, ask, told, rfc in ((0, "arp", WHO_HAS_S4, S4_IS_AT, "RFC 826, RFC 1122 section 2.3.2.2"),
                                      (1, "nd", WHO_HAS_S6, S6_IS_AT, "RFC 4861 sections 7.2.2 and 7.2.5")):
    p = [ping(n)[which] for n in range(5)]
    c = Case(f"{family}-resolves", "One question for an unknown next hop, packets wait for the answer and leave in their order, later ones at once.",
             f"scapy script: {rfc}", ONLY_HOST, timestamps=True)
    c.rx("lan", from_host(p[0])).tx("wan", ask, own=True)
    c.rx("lan", from_host(p[1])).rx("lan", from_host(p[2]))
    c.at(10).rx("wan", told, punt=True)
    released(c, *p[:3])
    c.at(20).rx("lan", from_host(p[3]))
    released(c, p[3])

    c = Case(f"{family}-queue-full", "Three packets wait for an unresolved neighbour; a fourth pushes out the oldest.",
             f"scapy script: {rfc}; the newest are the ones worth keeping (RFC 4861 section 7.2.2)", ONLY_HOST)
    c.rx("lan", from_host(p[0]), drop="neighbour-queue-full").tx("wan", ask, own=True)
    c.rx("lan", from_host(p[1]), drop="neighbour-queue-full")
    for late in p[2:]:
        c.rx("lan", from_host(late))
    c.at(50).rx("wan", told, punt=True)
    released(c, *p[2:])

    unreachable = lambda ip: to_host(icmp4(L4, H4, 3, 1, ip) if which == 0 else icmp6(L6, H6, ICMPv6DestUnreach(code=3), ip))
    c = Case(f"{family}-retries-then-fails",
             "Three questions a second apart, then the waiting packets are given up and their sender is told; for three seconds nobody is asked again.",
             f"scapy script: {rfc}" + ("; RFC 1812 section 5.2.7.1 (host unreachable)" if which == 0 else "; RFC 4443 section 3.1 (code 3)"),
             ONLY_HOST, timestamps=True, linger_ms=4000)
    c.rx("lan", from_host(p[0]), drop="neighbour-failed").tx("wan", ask, at=0, own=True)
    c.at(500).rx("lan", from_host(p[1]), drop="neighbour-failed")
    c.tx("wan", ask, at=1000, own=True).tx("wan", ask, at=2000, own=True)
    c.tx("lan", unreachable(p[0]), at=3000, own=True).tx("lan", unreachable(p[1]), at=3000, own=True)
    c.at(4000).error("lan", from_host(p[2]), "neighbour-failed", unreachable(p[2]))
    c.at(5500).error("lan", from_host(p[3]), "neighbour-failed", unreachable(p[3]))
    c.at(6500).rx("lan", from_host(p[4]), drop="neighbour-failed").tx("wan", ask, own=True)
    c.tx("wan", ask, at=7500, own=True).tx("wan", ask, at=8500, own=True)
    c.tx("lan", unreachable(p[4]), at=9500, own=True)

    c = Case(f"{family}-answer-to-second-question", "The first question is lost, the second is answered: nothing else is lost.",
             f"scapy script: {rfc}", ONLY_HOST, timestamps=True, linger_ms=3000)
    c.rx("lan", from_host(p[0])).tx("wan", ask, own=True)
    c.tx("wan", ask, at=1000, own=True)
    c.at(1200).rx("wan", told, punt=True)
    released(c, p[0])

    # A neighbour in use is asked again by unicast when it has not been heard of for the reachable time (5 s here;
    # ages are looked at once a second, so that what was confirmed at 0.01 s is old at 6 s and asked at 7 s). Packets
    # go on to the old address meanwhile.
    again = (eth(GW_WAN, SERVER) / ask[ARP] if which == 0 else
             eth(GW_WAN, SERVER) / IPv6(src=W6, dst=S6, hlim=255) / ICMPv6ND_NS(tgt=S6) / ICMPv6NDOptSrcLLAddr(lladdr=GW_WAN))
    again_rfc = "RFC 1122 section 2.3.2.1 (unicast poll)" if which == 0 else "RFC 4861 section 7.3.3 (probe by unicast)"
    five_seconds = two_ports(neighbours=HOST_NEIGHBOURS, extra="[neighbours]\nreachable_s = 5\n")

    def known_at_10_ms_and_used_at_6500():
        c.rx("lan", from_host(p[0])).tx("wan", ask, own=True)
        c.at(10).rx("wan", told, punt=True)
        released(c, p[0])
        c.at(6500).rx("lan", from_host(p[1]))
        released(c, p[1])
        c.tx("wan", again, at=7000, own=True)

    c = Case(f"{family}-probed-after-reachable-time", "A neighbour in use is asked again by unicast after the reachable time; it answers, and is asked no more until that has passed again.",
             f"scapy script: {again_rfc}", five_seconds, timestamps=True)
    known_at_10_ms_and_used_at_6500()
    c.at(7100).rx("wan", told, punt=True)
    c.at(11500).rx("lan", from_host(p[2]))
    released(c, p[2])

    c = Case(f"{family}-probed-in-vain", "Three unicast questions a second apart, all the while used at its old address; then the neighbour has failed, and the sender is told.",
             f"scapy script: {again_rfc}", five_seconds, timestamps=True)
    known_at_10_ms_and_used_at_6500()
    c.at(7500).rx("lan", from_host(p[2]))
    released(c, p[2])
    c.tx("wan", again, at=8000, own=True).tx("wan", again, at=9000, own=True)
    c.at(9500).rx("lan", from_host(p[3]))
    released(c, p[3])
    c.at(10500).error("lan", from_host(p[4]), "neighbour-failed", unreachable(p[4]))

    c = Case(f"{family}-parked-at-the-end", "Packets that still wait for their neighbour when the capture ends are counted, and their frames come home.",
             f"scapy script: {rfc}; the last packets of a capture", ONLY_HOST)
    c.rx("lan", from_host(p[0]), drop="shutdown").tx("wan", ask, own=True)
    c.rx("lan", from_host(p[1]), drop="shutdown")

c = Case("arp-for-the-next-hop", "The question is for the gateway of the route, not for the destination, and from the address of its subnet.",
         "scapy script: RFC 826, RFC 1812 section 3.3.2",
         two_ports(route("0.0.0.0/0", "203.0.113.254"), wan=interface("wan", ["198.51.100.1/24", "203.0.113.1/24", "2001:db8:2::1/64"]),
                   neighbours=HOST_NEIGHBOURS))
ip = v4(dst="100.64.1.1") / udp()
c.rx("lan", from_host(ip)).tx("wan", arp_request(GW_WAN, "203.0.113.1", "203.0.113.254"), own=True)
c.rx("wan", arp_reply(SERVER2, "203.0.113.254", GW_WAN, "203.0.113.1"), punt=True)
released(c, ip, mac=SERVER2)

c = Case("arp-on-vlans", "Questions and answers carry the tags of their interface, single and double.",
         "scapy script: RFC 826, IEEE 802.1Q clause 9.6",
         two_ports(lan=interface("lan", ["192.0.2.1/24"], vlan=100), wan=interface("wan", ["198.51.100.1/24"], vlan=[200, 10]), neighbours=""))
out, back = v4() / udp(), v4(S4, H4) / udp()
c.rx("lan", link(eth(HOST, GW_LAN, 100), out)).tx("wan", arp_request(GW_WAN, W4, S4, tags=(200, 10)), own=True)
c.rx("wan", arp_reply(SERVER, S4, GW_WAN, W4, tags=(200, 10)), punt=True)
c.tx("wan", link(eth(GW_WAN, SERVER, 200, 10), hop(out)))
c.answer("lan", arp_request(HOST, H4, L4, tags=(100,)), arp_reply(GW_LAN, L4, HOST, H4, tags=(100,)))
c.through("wan", link(eth(SERVER, GW_WAN, 200, 10), back), "lan", link(eth(GW_LAN, HOST, 100), hop(back)))

c = Case("nd-on-vlans", "Solicitations and advertisements carry the tags of their interface, single and double.",
         "scapy script: RFC 4861 section 7.2, IEEE 802.1Q clause 9.6",
         two_ports(lan=interface("lan", ["2001:db8:1::1/64"], vlan=100), wan=interface("wan", ["2001:db8:2::1/64"], vlan=[200, 10]), neighbours=""))
out, back = v6() / udp(), v6(S6, H6) / udp()
c.rx("lan", link(eth(HOST, GW_LAN, 100), out)).tx("wan", solicit(GW_WAN, W6, S6, tags=(200, 10)), own=True)
c.rx("wan", advertise(SERVER, S6, GW_WAN, W6, R=0, tags=(200, 10)), punt=True)
c.tx("wan", link(eth(GW_WAN, SERVER, 200, 10), hop(out)))
c.answer("lan", solicit(HOST, H6, L6, tags=(100,)), advertise(GW_LAN, L6, HOST, H6, tags=(100,)))
c.through("wan", link(eth(SERVER, GW_WAN, 200, 10), back), "lan", link(eth(GW_LAN, HOST, 100), hop(back)))

c = Case("nd-from-link-local", "A link-local neighbour is asked for from our link-local address, and on its own link.",
         "scapy script: RFC 4861 section 7.2.2, RFC 4291 section 2.5.6", two_ports(neighbours=""))
for port, gw, own in (("lan", GW_LAN, LL_LAN), ("wan", GW_WAN, LL_WAN)):
    asked = IPv6(src="fe80::fe", dst=own) / ICMPv6EchoRequest(id=1, seq=1, data=bytes(8))
    c.rx(port, link(eth(SERVER2, gw), asked), punt=True).tx(port, solicit(gw, own, "fe80::fe"), own=True)
    c.rx(port, advertise(SERVER2, "fe80::fe", gw, own), punt=True)
    c.tx(port, link(eth(gw, SERVER2), IPv6(src=own, dst="fe80::fe", hlim=64) / ICMPv6EchoReply(id=1, seq=1, data=bytes(8))), own=True)

LL_DMZ = "fe80::53:47ff:fe00:2"
c = Case("nd-for-a-link-local-next-hop", "A router known by its link-local address is asked for on the link that the route names, and is another one there.",
         "scapy script: RFC 4861 sections 7.2.2 and 8, RFC 4007 section 11",
         two_ports(interface("dmz", ["2001:db8:3::1/64"]), route("2001:db8:a::/48", "fe80::fe%wan"), route("2001:db8:b::/48", "fe80::fe%dmz"),
                   neighbours=HOST_NEIGHBOURS, ports=("lan", "wan", "dmz")))
by_wan, by_dmz = (v6(dst=f"2001:db8:{net}::1") / udp() for net in "ab")
c.rx("lan", from_host(by_wan)).tx("wan", solicit(GW_WAN, LL_WAN, "fe80::fe"), own=True)
c.rx("lan", from_host(by_dmz)).tx("dmz", solicit(GW_DMZ, LL_DMZ, "fe80::fe"), own=True)
c.rx("wan", advertise(SERVER, "fe80::fe", GW_WAN, LL_WAN), punt=True)
c.tx("wan", link(eth(GW_WAN, SERVER), hop(by_wan)))
c.rx("dmz", advertise(SERVER2, "fe80::fe", GW_DMZ, LL_DMZ), punt=True)
c.tx("dmz", link(eth(GW_DMZ, SERVER2), hop(by_dmz)))
c.through("lan", from_host(by_wan), "wan", link(eth(GW_WAN, SERVER), hop(by_wan)))
c.through("lan", from_host(by_dmz), "dmz", link(eth(GW_DMZ, SERVER2), hop(by_dmz)))

c = Case("error-waits-for-its-neighbour", "An error and an echo reply to a sender not known yet wait for its address like any packet.",
         "scapy script: RFC 826, RFC 792", two_ports(neighbours=""))
ip = v4(ttl=1) / udp()
c.rx("lan", from_host(ip), drop="ttl-expired").tx("lan", arp_request(GW_LAN, L4, H4), own=True)
c.rx("lan", from_host(v4(dst=L4) / ICMP(id=1, seq=1) / payload(8)), punt=True)
c.rx("lan", arp_reply(HOST, H4, GW_LAN, L4), punt=True)
c.tx("lan", to_host(icmp4(L4, H4, 11, 0, ip)), own=True)
c.tx("lan", to_host(v4(L4, H4, id=0, flags="DF") / ICMP(type=0, id=1, seq=1) / payload(8)), own=True)

c = Case("neighbour-table-full", "An address scan cannot take more than the interface's share of the neighbour table.",
         "scapy script: RFC 6583 section 6.1, DESIGN section 4; errors off, since none is specified for this",
         two_ports(neighbours=HOST_NEIGHBOURS, extra="[neighbours]\nper_interface = 2\n\n[icmp]\nrate = 0\n"))
macs = {20: SERVER, 21: SERVER2}
for n in (20, 21):
    c.rx("lan", from_host(v4(dst=f"198.51.100.{n}") / udp())).tx("wan", arp_request(GW_WAN, W4, f"198.51.100.{n}"), own=True)
for n in (22, 23, 24):
    c.rx("lan", from_host(v4(dst=f"198.51.100.{n}") / udp()), drop="neighbour-table-full")
for n in (20, 21):
    c.rx("wan", arp_reply(macs[n], f"198.51.100.{n}", GW_WAN, W4), punt=True)
    released(c, v4(dst=f"198.51.100.{n}") / udp(), mac=macs[n])

# -- ARP: what is answered and what is learned ---------------------------------------------------------------
c = Case("arp-request-answered", "Who asks for our address is answered at once and known from then on.",
         "scapy script: RFC 826 (packet reception)", two_ports(neighbours=SERVER_NEIGHBOURS))
c.answer("lan", arp_request(HOST, H4, L4), arp_reply(GW_LAN, L4, HOST, H4))
c.answer("lan", arp_request(HOST, H4, L4, to=GW_LAN), arp_reply(GW_LAN, L4, HOST, H4))  # a unicast probe, RFC 1122
back = v4(S4, H4) / udp()
c.through("wan", from_server(back), "lan", to_host(hop(back)))

c = Case("arp-request-for-another", "A question for somebody else is neither answered nor learned from.",
         "scapy script: RFC 826 (only the target adds an entry)", two_ports(neighbours=SERVER_NEIGHBOURS))
c.rx("lan", arp_request(HOST, H4, "192.0.2.77"), punt=True)
c.rx("lan", arp_request(HOST, H4, W4), punt=True)  # ours, but not on this interface
back = v4(S4, H4) / udp()
c.rx("wan", from_server(back)).tx("lan", arp_request(GW_LAN, L4, H4), own=True)
c.rx("lan", arp_reply(HOST, H4, GW_LAN, L4), punt=True).tx("lan", to_host(hop(back)))

c = Case("arp-probe-answered", "An address probe for our address (sender 0.0.0.0) is answered, so that nobody takes it; nothing is learned.",
         "scapy script: RFC 5227 sections 2.1.1 and 1.1", two_ports())
c.answer("lan", arp_request(HOST2, "0.0.0.0", L4), arp_reply(GW_LAN, L4, HOST2, "0.0.0.0"))

c = Case("gratuitous-arp-updates-only", "A gratuitous ARP moves a neighbour that is known, and makes none that is not.",
         "scapy script: RFC 826, RFC 5227 section 3 (announcements)", ONLY_HOST)
a, b, x = v4(id=1) / udp(), v4(id=2) / udp(), v4(dst="198.51.100.99") / udp()
c.rx("lan", from_host(a)).tx("wan", WHO_HAS_S4, own=True)
c.rx("wan", S4_IS_AT, punt=True)
released(c, a)
c.rx("wan", arp_request(SERVER2, S4, S4), punt=True)                                       # announced as a request
c.rx("lan", from_host(b))
released(c, b, mac=SERVER2)
c.rx("wan", arp_reply(SERVER, S4, BROADCAST, S4), punt=True)                               # and as a reply
c.rx("lan", from_host(a))
released(c, a)
c.rx("wan", arp_request("02:00:00:00:02:99", "198.51.100.99", "198.51.100.99"), punt=True)  # never heard of
c.rx("lan", from_host(x)).tx("wan", arp_request(GW_WAN, W4, "198.51.100.99"), own=True)
c.rx("wan", arp_reply("02:00:00:00:02:99", "198.51.100.99", GW_WAN, W4), punt=True)
released(c, x, mac="02:00:00:00:02:99")

c = Case("neighbour-moves", "A neighbour asks from a new MAC address in mid-capture: the next packet goes there.",
         "scapy script: RFC 826 (merge), RFC 4861 section 7.2.3", two_ports(neighbours=SERVER_NEIGHBOURS))
for mac in (HOST, HOST2, HOST):
    c.answer("lan", arp_request(mac, H4, L4), arp_reply(GW_LAN, L4, mac, H4))
    c.answer("lan", solicit(mac, H6, L6), advertise(GW_LAN, L6, mac, H6))
    for back in (v4(S4, H4) / udp(), v6(S6, H6) / udp()):
        c.through("wan", from_server(back), "lan", link(eth(GW_LAN, mac), hop(back)))

c = Case("static-neighbour-stays", "A neighbour the operator wrote down is not moved by ARP or neighbour discovery from the wire.",
         "scapy script: issue 2 section 2 (static entries)", two_ports())
c.rx("wan", arp_request(SERVER2, S4, S4), punt=True)
c.answer("wan", arp_request(SERVER2, S4, W4), arp_reply(GW_WAN, W4, SERVER2, S4))
c.rx("wan", advertise(SERVER2, S6, ALL_NODES_MAC, "ff02::1", S=0), punt=True)
for ip in (v4() / udp(), v6() / udp()):
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("arp-invalid", "ARP of another hardware or protocol, with wrong lengths, an unknown operation or cut short is counted and ignored.",
         "scapy script: RFC 826 (packet reception: hardware type, protocol, lengths, opcode)", two_ports())
for keys in ({"hwtype": 6}, {"ptype": 0x86DD}, {"hwlen": 8}, {"plen": 16}, {"op": 9}, {"op": 0}):
    good = {"hwtype": 1, "ptype": 0x0800, "hwlen": 6, "plen": 4, "op": 1, **keys}
    import struct
    arp = struct.pack(">HHBBH", good["hwtype"], good["ptype"], good["hwlen"], good["plen"], good["op"]) + bytes(
        ARP(hwsrc=HOST, psrc=H4, pdst=L4))[8:]
    c.rx("lan", bytes(eth(HOST, BROADCAST))[:12] + b"\x08\x06" + arp, drop="arp-invalid")
c.rx("lan", bytes(arp_request(HOST, H4, L4))[:14 + 27], drop="arp-invalid")
c.answer("lan", arp_request(HOST, H4, L4), arp_reply(GW_LAN, L4, HOST, H4))

# -- neighbour discovery -------------------------------------------------------------------------------------
c = Case("nd-solicitation-answered", "Who solicits our address gets a solicited, overriding router's advertisement and is known from then on.",
         "scapy script: RFC 4861 sections 7.2.3 and 7.2.4", two_ports(neighbours=SERVER_NEIGHBOURS))
c.answer("lan", solicit(HOST, H6, L6), advertise(GW_LAN, L6, HOST, H6))
probe = eth(HOST, GW_LAN) / IPv6(src=H6, dst=L6, hlim=255) / ICMPv6ND_NS(tgt=L6)  # unicast, no option
c.answer("lan", probe, advertise(GW_LAN, L6, HOST, H6))
back = v6(S6, H6) / udp()
c.through("wan", from_server(back), "lan", to_host(hop(back)))

c = Case("nd-solicitation-link-local", "The link-local address made from the MAC is answered for; so is a global target asked from link-local.",
         "scapy script: RFC 4861 section 7.2.4, RFC 4291 appendix A", two_ports())
c.answer("lan", solicit(HOST2, "fe80::11", LL_LAN), advertise(GW_LAN, LL_LAN, HOST2, "fe80::11"))
c.answer("lan", solicit(HOST2, "fe80::11", L6), advertise(GW_LAN, L6, HOST2, "fe80::11"))

c = Case("nd-duplicate-address-probe", "A node that wants our address (source ::) hears of it on all-nodes, with the solicited flag clear.",
         "scapy script: RFC 4861 section 7.2.4, RFC 4862 section 5.4.3", two_ports())
for target in (L6, LL_LAN):
    asked = solicit(HOST2, "::", target)
    asked[ICMPv6ND_NS].remove_payload()  # no source link-layer option from ::
    c.answer("lan", asked, advertise(GW_LAN, target, ALL_NODES_MAC, "ff02::1", S=0))

c = Case("nd-solicitation-for-another", "A target that is not ours, though in our solicited-node group, is not answered.",
         "scapy script: RFC 4861 section 7.2.3", two_ports())
c.rx("lan", solicit(HOST, H6, "2001:db8:1::5:0:1"), punt=True)

c = Case("nd-invalid", "Neighbour discovery from beyond the link (hop limit 254) or malformed is ignored: code, length, options, targets, sources.",
         "scapy script: RFC 4861 sections 7.1.1 and 7.1.2", two_ports())
def ns(hlim=255, src=H6, dst=None, code=0, target=L6, options=bytes(ICMPv6NDOptSrcLLAddr(lladdr=HOST)), cut=None, **keys):
    whole = solicit(HOST, src, L6)
    ip = IPv6(src=src, dst=dst or whole[IPv6].dst, hlim=hlim)
    return eth(HOST, whole.dst) / ip / (ICMPv6ND_NS(tgt=target, code=code, **keys) / Raw(options) if cut is None else
                                        ICMPv6ND_NS(tgt=target, **keys))
c.rx("lan", ns(hlim=254), drop="nd-invalid")
c.rx("lan", ns(hlim=1), drop="nd-invalid")
c.rx("lan", ns(code=1), drop="nd-invalid")
c.rx("lan", ns(cksum=0x1234), drop="nd-invalid")
c.rx("lan", ns(target="ff02::1"), drop="nd-invalid")
c.rx("lan", ns(options=b"\x01\x00" + bytes(6)), drop="nd-invalid")                     # option of length 0
c.rx("lan", ns(options=b"\x01\x02" + bytes(6)), drop="nd-invalid")                     # option longer than the message
c.rx("lan", ns(src="::"), drop="nd-invalid")                                           # from :: with a link-layer option
c.rx("lan", ns(src="::", dst=L6, options=b""), drop="nd-invalid")                      # from :: to a unicast address
short = IPv6(src=H6, dst=L6, hlim=255, nh=58) / Raw(b"\x87\x00\x00\x00" + bytes(16))
data = bytearray(bytes(short))
sum16 = ones_complement(bytes(data[8:40]) + (20).to_bytes(4, "big") + (58).to_bytes(4, "big") + bytes(data[40:]))
data[42:44] = sum16.to_bytes(2, "big")
c.rx("lan", from_host(Raw(bytes(data))), drop="nd-invalid")                             # shorter than 24 bytes
spoof = advertise(SERVER2, S6, GW_WAN, W6)
for keys in ({"hlim": 254}, {"hlim": 64}):
    bad = spoof.copy()
    bad[IPv6].hlim = keys["hlim"]
    c.rx("wan", bad, drop="nd-invalid")
bad = advertise(SERVER2, S6, ALL_NODES_MAC, "ff02::1", S=1)                             # solicited, yet multicast
c.rx("wan", bad, drop="nd-invalid")
c.answer("lan", ns(), advertise(GW_LAN, L6, HOST, H6))

c = Case("nd-unsolicited-advertisement", "An unsolicited advertisement with the override flag moves a known neighbour, without it does not, and makes no new one.",
         "scapy script: RFC 4861 section 7.2.5", ONLY_HOST)
a, x = v6() / udp(), v6(dst="2001:db8:2::99") / udp()
c.rx("lan", from_host(a)).tx("wan", WHO_HAS_S6, own=True)
c.rx("wan", S6_IS_AT, punt=True)
released(c, a)
c.rx("wan", advertise(SERVER2, S6, ALL_NODES_MAC, "ff02::1", S=0, O=0, R=0), punt=True)
c.rx("lan", from_host(a))
released(c, a)
c.rx("wan", advertise(SERVER2, S6, ALL_NODES_MAC, "ff02::1", S=0, O=1, R=0), punt=True)
c.rx("lan", from_host(a))
released(c, a, mac=SERVER2)
c.rx("wan", advertise("02:00:00:00:02:99", "2001:db8:2::99", ALL_NODES_MAC, "ff02::1", S=0, O=1, R=0), punt=True)
c.rx("lan", from_host(x)).tx("wan", solicit(GW_WAN, W6, "2001:db8:2::99"), own=True)
c.rx("wan", advertise("02:00:00:00:02:99", "2001:db8:2::99", GW_WAN, W6, R=0), punt=True)
released(c, x, mac="02:00:00:00:02:99")

# -- router advertisements -----------------------------------------------------------------------------------
def solicit_router(src="::", hlim=255):
    return eth(HOST, "33:33:00:00:00:02") / IPv6(src=src, dst="ff02::2", hlim=hlim) / ICMPv6ND_RS()


def advertise_router(lifetime=1800):
    """RFC 4861 sections 4.2 and 6.2.3 with the defaults of 6.2.1."""
    return eth(GW_LAN, ALL_NODES_MAC) / IPv6(src=LL_LAN, dst="ff02::1", hlim=255) / ICMPv6ND_RA(
        chlim=64, M=0, O=0, prf=0, routerlifetime=lifetime, reachabletime=0, retranstimer=0) / ICMPv6NDOptSrcLLAddr(
        lladdr=GW_LAN) / ICMPv6NDOptPrefixInfo(prefixlen=64, L=1, A=1, R=0, validlifetime=2592000,
                                               preferredlifetime=604800, prefix="2001:db8:1::")


c = Case("router-advertisement", "A host that asks for routers hears one within half a second, on all-nodes, with the prefix of the interface.",
         "scapy script: RFC 4861 sections 6.2.1, 6.2.3 and 6.2.6",
         two_ports(lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], router_advertisements=True)), linger_ms=600)
c.answer("lan", solicit_router(), advertise_router())

c = Case("router-advertisement-lifetime", "The router lifetime is the configured one; two solicitations share one advertisement.",
         "scapy script: RFC 4861 sections 6.2.3 and 6.2.6 (at most one per 3 s)",
         two_ports(lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"],
                                 router_advertisements={"interval_s": 200, "lifetime_s": 600})), linger_ms=600)
c.rx("lan", solicit_router(), punt=True)
c.answer("lan", solicit_router(), advertise_router(600))

c = Case("router-advertisement-gap", "Who asks less than three seconds after an advertisement is answered when the three seconds are over, within another half.",
         "scapy script: RFC 4861 section 6.2.6 (MIN_DELAY_BETWEEN_RAS, MAX_RA_DELAY_TIME)",
         two_ports(lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], router_advertisements=True)))


def echo_to_lan():
    """A clock in the capture: what left before and what after."""
    asked = v6(dst=L6) / ICMPv6EchoRequest(id=1, seq=c.now_ms, data=bytes(8))
    reply = v6(L6, H6) / ICMPv6EchoReply(id=1, seq=c.now_ms, data=bytes(8))
    c.answer("lan", from_host(asked), to_host(reply))


c.answer("lan", solicit_router(), advertise_router())
c.at(500)
echo_to_lan()                                                                # the first came within half a second ...
c.at(1000).rx("lan", solicit_router(), punt=True)
c.at(2990)
echo_to_lan()                                                                # ... the second not before 3 s ...
c.at(3100).tx("lan", advertise_router(), own=True)
c.at(4000)
echo_to_lan()                                                                # ... and not after 4 s

c = Case("router-solicitation-ignored", "Without `router_advertisements` nobody is told; with a wrong hop limit or options from :: nobody is heard.",
         "scapy script: RFC 4861 sections 6.1.1 and 6.2.2",
         two_ports(wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], router_advertisements=True)), linger_ms=600)
c.rx("lan", solicit_router(), punt=True)
c.rx("wan", solicit_router(hlim=254), drop="nd-invalid")
c.rx("wan", solicit_router() / ICMPv6NDOptSrcLLAddr(lladdr=HOST), drop="nd-invalid")
