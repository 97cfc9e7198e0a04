"""Virtual routers (RFC 9568): what the Active answers and forwards, and a Backup does not. Who is which is told to the
replay; the protocol itself has no part in it."""

from lib import *

V4, V6, VLL = "192.0.2.254", "2001:db8:1::fe", "fe80::1"
VMAC4, VMAC6, OTHER = "00:00:5e:00:01:0a", "00:00:5e:00:02:0a", "00:00:5e:00:01:0b"
LL_LAN = "fe80::53:47ff:fe00:0"


def vrrp(**keys):
    return table("vrrp", interface="lan", id=10, addresses=[V4, VLL, V6], **keys)


def to_virtual(ip, mac=None):
    """As the host on lan sends it to its default gateway."""
    return link(eth(HOST, mac or (VMAC6 if bytes(ip)[0] >> 4 == 6 else VMAC4)), ip)


def echo(src, dst):
    head = v6(src, dst) if ":" in src else v4(src, dst, flags="DF")
    return head / (ICMPv6EchoRequest(id=7, seq=1, data=b"anybody") if ":" in src else ICMP(type=8, id=7, seq=1) / b"anybody")


def reply(src, dst):
    if ":" in src:
        return IPv6(src=src, dst=dst, hlim=64) / ICMPv6EchoReply(id=7, seq=1, data=b"anybody")
    # Ours: DF and no identification (RFC 6864 section 4.1).
    return v4(src, dst, flags="DF", id=0) / ICMP(type=0, id=7, seq=1) / b"anybody"


def is_at(mac, addr):
    """The answer to the host: it says the MAC address, and comes from the router's own (RFC 9568 section 8.1.2)."""
    if ":" in addr:
        return eth(GW_LAN, HOST) / IPv6(src=addr, dst=H6, hlim=255) / ICMPv6ND_NA(
            tgt=addr, R=1, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=mac)
    return eth(GW_LAN, HOST) / ARP(op=2, hwsrc=mac, psrc=addr, hwdst=HOST, pdst=H4)


PACKETS = [v4() / udp(), v6() / udp()]

c = Case("vrrp-backup-is-silent", "A Backup answers for none of the virtual addresses, takes no frame to a virtual MAC address, and goes on as itself.",
         "scapy script: RFC 9568 section 6.4.2", two_ports(vrrp(accept=True)))
c.rx("lan", arp_request(HOST, H4, V4), punt=True)
c.rx("lan", solicit(HOST, H6, V6), drop="multicast-not-routed")
c.rx("lan", solicit(HOST, H6, VLL), punt=True)  # to a group that an address of its own has as well
for sent in PACKETS:
    c.rx("lan", to_virtual(sent), drop="not-for-us")
    c.through("lan", from_host(sent), "wan", to_server(hop(sent)))
c.rx("lan", to_virtual(echo(H4, V4)), drop="not-for-us")
for src, dst in ((H4, V4), (H6, V6), ("fe80::10", VLL)):
    c.rx("lan", from_host(echo(src, dst)), drop="virtual-router-backup")
c.answer("lan", arp_request(HOST, H4, L4), arp_reply(GW_LAN, L4, HOST, H4))

c = Case("vrrp-active-answers", "The Active answers for the virtual addresses with the virtual MAC address and routes what comes to it; its own addresses stay at its own.",
         "scapy script: RFC 9568 sections 6.4.3, 8.1.2 and 8.2.2", two_ports(vrrp(accept=True)))
c.role("active")
c.answer("lan", arp_request(HOST, H4, V4), is_at(VMAC4, V4))
c.answer("lan", solicit(HOST, H6, V6), is_at(VMAC6, V6))
c.answer("lan", solicit(HOST, H6, VLL), is_at(VMAC6, VLL))
c.answer("lan", arp_request(HOST, H4, L4), arp_reply(GW_LAN, L4, HOST, H4))
c.answer("lan", solicit(HOST, H6, L6), advertise(GW_LAN, L6, HOST, H6))
for sent in PACKETS:
    c.through("lan", to_virtual(sent), "wan", to_server(hop(sent)))
    c.through("lan", from_host(sent), "wan", to_server(hop(sent)))
c.rx("lan", to_virtual(PACKETS[0], OTHER), drop="not-for-us")
c.rx("lan", to_virtual(PACKETS[0], VMAC6)).tx("wan", to_server(hop(PACKETS[0])))
for src, dst in ((H4, V4), (H6, V6)):
    c.answer("lan", to_virtual(echo(src, dst)), to_host(reply(dst, src)))
    c.answer("lan", from_host(echo(src, dst)), to_host(reply(dst, src)))
# Errors come from the router's own address.
late = v4(ttl=1) / udp()
c.error("lan", to_virtual(late), "ttl-expired", to_host(icmp4(L4, H4, 11, 0, late)))

c = Case("vrrp-accept-mode-off", "Without accept mode the Active forwards and answers neighbours, and takes nothing else to its virtual addresses.",
         "scapy script: RFC 9568 sections 6.1 (Accept_Mode) and 6.4.3", two_ports(vrrp()))
c.role("active")
c.answer("lan", arp_request(HOST, H4, V4), is_at(VMAC4, V4))
for src, dst in ((H4, V4), (H6, V6)):
    c.rx("lan", to_virtual(echo(src, dst)), drop="virtual-router-not-accepted")
# Neighbour solicitations are never dropped: a unicast probe.
probe = eth(HOST, VMAC6) / IPv6(src=H6, dst=V6, hlim=255) / ICMPv6ND_NS(tgt=V6)
c.answer("lan", probe, is_at(VMAC6, V6))
c.through("lan", to_virtual(PACKETS[0]), "wan", to_server(hop(PACKETS[0])))


@story("vrrp-role-changes", "A session goes on through every change of the role: frames to the virtual MAC address are taken by whoever is the Active, and nothing else changes.",
       "scapy script: RFC 9568 sections 6.4.2 and 6.4.3; DESIGN section 2 (a changed role touches one line)", zoned(vrrp(), OUT), workers=(1, 2))
def _(case):
    here = End("lan", HOST, VMAC4)
    packet = lambda n, ttl=64: rebuilt(ip(H4, S4, ttl) / U(20 + n)(4000, 5000))
    answer = lambda n, ttl=64: rebuilt(ip(S4, H4, ttl) / U(40 + n)(5000, 4000))
    case.role("active")
    case.rx("lan", here.sends(packet(1))).tx("wan", AT_SERVER.gets(packet(1, 63)))
    case.rx("wan", AT_SERVER.sends(answer(1))).tx("lan", AT_HOST.gets(answer(1, 63)))
    case.role("backup")
    case.rx("lan", here.sends(packet(2)), drop="not-for-us")
    case.rx("wan", AT_SERVER.sends(answer(2))).tx("lan", AT_HOST.gets(answer(2, 63)))
    case.at(100).role("active")
    case.rx("lan", here.sends(packet(3))).tx("wan", AT_SERVER.gets(packet(3, 63)))
    case.rx("lan", AT_HOST.sends(packet(4))).tx("wan", AT_SERVER.gets(packet(4, 63)))


c = Case("vrrp-nat-address", "An address of NAT is answered for by the Active of its group alone: beside a virtual router of it with the virtual MAC address, beside none with the interface's own.",
         "scapy script: RFC 1027, RFC 9568 section 8.1.3 (proxy ARP advertises the virtual MAC address)",
         zoned(vrrp(), OUT, static_nat("192.0.2.200", "198.51.100.9"), static_nat("198.51.100.200", "192.0.2.9")))
c.rx("lan", arp_request(HOST, H4, "192.0.2.200"), punt=True)
c.rx("wan", arp_request(SERVER, S4, "198.51.100.200"), punt=True)
c.at(10).role("active")
c.answer("lan", arp_request(HOST, H4, "192.0.2.200"), is_at(VMAC4, "192.0.2.200"))
c.answer("wan", arp_request(SERVER, S4, "198.51.100.200"), arp_reply(GW_WAN, "198.51.100.200", SERVER, S4))

RED, BLUE = "192.0.2.200", "192.0.2.201"
TWO_GROUPS = (vrrp(group="red"), table("vrrp", interface="lan", id=11, addresses=["192.0.2.253", "fe80::2"], group="blue"),
              static_nat(RED, "198.51.100.9", group="red"), static_nat(BLUE, "198.51.100.8", group="blue"),
              static_nat("2001:db8:1::cb", "2001:db8:2::9", group="blue"))
c = Case("vrrp-groups-apart", "Of several groups of virtual routers on a link each answers for its own addresses of NAT, by its own virtual MAC address, while its Active is this node.",
         "scapy script: RFC 1027, RFC 9568 sections 8.1.3 and 8.2.2", zoned(OUT, *TWO_GROUPS))
BLUE_MAC4, BLUE_MAC6 = "00:00:5e:00:01:0b", "00:00:5e:00:02:0b"
asks = lambda addr: arp_request(HOST, H4, addr)
c.role("active", "red")
c.answer("lan", asks(RED), is_at(VMAC4, RED))
c.rx("lan", asks(BLUE), punt=True).rx("lan", asks("192.0.2.253"), punt=True)
c.at(10).role("active", "blue")
c.answer("lan", asks(BLUE), is_at(BLUE_MAC4, BLUE))
c.answer("lan", solicit(HOST, H6, "2001:db8:1::cb"), is_at(BLUE_MAC6, "2001:db8:1::cb"))
c.answer("lan", asks("192.0.2.253"), is_at(BLUE_MAC4, "192.0.2.253"))
c.at(20).role("other", "red")
c.rx("lan", asks(RED), punt=True)
c.answer("lan", asks(BLUE), is_at(BLUE_MAC4, BLUE))

c = Case("vrrp-somebody-claims", "While it is the Active nobody else can have a virtual address; as Backup it believes what the Active says of it.",
         "scapy script: RFC 826, RFC 5227 section 2.4, RFC 4861 section 7.1.2", two_ports(vrrp(), neighbours=SERVER_NEIGHBOURS))
claim = eth(HOST2, BROADCAST) / ARP(op=1, hwsrc=HOST2, psrc=V4, hwdst="00:00:00:00:00:00", pdst=V4)
advert = advertise(HOST2, V6, ALL_NODES_MAC, "ff02::1", S=0)
c.rx("lan", claim, punt=True).rx("lan", advert, punt=True)
c.at(10).role("active")
c.rx("lan", claim, drop="arp-invalid").rx("lan", advert, drop="nd-invalid")
c.answer("lan", arp_request(HOST, H4, V4), is_at(VMAC4, V4))

# -- router advertisements: hosts are to have the virtual router for their default router -----------------------
ASKS = eth(HOST, "33:33:00:00:00:02") / IPv6(src="::", dst="ff02::2", hlim=255) / ICMPv6ND_RS()
c = Case("vrrp-router-advertisement", "A Backup leaves solicitations of routers to the Active, which answers as the virtual router: from its link-local address, with its MAC address as an option.",
         "scapy script: RFC 9568 sections 6.4.2, 6.4.3 and 8.2.3; RFC 4861 section 6.2.3",
         two_ports(vrrp(), lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], router_advertisements=True)), linger_ms=600)
c.rx("lan", ASKS, punt=True)
c.at(4000).role("active")
c.answer("lan", ASKS, eth(GW_LAN, ALL_NODES_MAC) / IPv6(src=VLL, dst="ff02::1", hlim=255) / ICMPv6ND_RA(
    chlim=64, M=0, O=0, prf=0, routerlifetime=1800, reachabletime=0, retranstimer=0) / ICMPv6NDOptSrcLLAddr(
    lladdr=VMAC6) / ICMPv6NDOptPrefixInfo(prefixlen=64, L=1, A=1, R=0, validlifetime=2592000,
                                          preferredlifetime=604800, prefix="2001:db8:1::"))

c = Case("vrrp-session-comes-back", "A connection that another node carried on in between is taken up where it stands by then, in both directions and once; what is out of its windows before and after is dropped.",
         "scapy script: RFC 9293 section 3.4 (acceptable segments); the numbers of a connection that went on elsewhere are not known",
         zoned(rule("out", "allow", {"zone": "inside"}, {"zone": "outside"}), vrrp()))
c.role("active")
talk = Talk(c, (H4, 40000), (S4, 80)).handshake()
FAR = 1_000_000
c.at(1000)
talk.up(T("PA", 1001, 5001, data=10))
talk.down(T("A", 5001, 1011))
talk.up(T("PA", 1011 + FAR, 5001, data=10), drop="tcp-out-of-window")
c.at(5000)
c.role("backup")
c.at(9000)
c.role("active")
c.at(9500)
talk.up(T("PA", 1011 + FAR, 5001 + FAR, data=10))
talk.down(T("PA", 5001 + FAR, 1021 + FAR, data=10))
talk.up(T("A", 1021 + FAR, 5011 + FAR))
# Once: both directions have been seen since.
talk.up(T("PA", 1021, 5011, data=10), drop="tcp-out-of-window")
talk.down(T("PA", 5011 + 3 * FAR, 1021 + FAR, data=10), drop="tcp-out-of-window")
# The other direction alone may be behind: what is new on this side passes, what acknowledges it is not known yet.
c.at(20_000)
c.role("backup")
c.at(21_000)
c.role("active")
c.at(22_000)
talk.down(T("PA", 5011 + FAR, 1021 + FAR, data=10))
talk.up(T("A", 1021 + FAR, 5021 + 2 * FAR))
talk.down(T("PA", 5021 + 2 * FAR, 1021 + FAR, data=10))
