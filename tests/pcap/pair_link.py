"""The pair link: packets that another node of a pair is to decide go to it as they came, and those that it sends are taken
as if they had come in there. Who is the Active is told to the replay."""

from lib import *
from dsr import looks
from vxlan import COMMON, COMMON_MAC, T4, overlay

PEER, E, F = "02:00:00:00:03:30", "203.0.113.1", "203.0.113.2"  # the other node; our end of the link, and its
POOL, SERVED = "198.51.100.100", "198.51.100.101"
VMAC4 = "00:00:5e:00:01:0a"
WHY = "scapy script: README, \"Packets for the other node\"; draft-eastlake-fnv (the name), RFC 5082 (the TTL)"


def fnv(name):
    h = 0x811C9DC5
    for byte in name.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h.to_bytes(4, "big")


def over(inner, name, src=E, dst=F, ttl=255, head=None, sport=None, port=5406, ecn=None):
    tos, flow = looks(inner)
    tos = tos if ecn is None else tos & ~3 | ecn
    said = UDP(sport=sport or flow, dport=port, chksum=0) / Raw((b"SG\x01\x00" + fnv(name) if head is None else head) + bytes(inner))
    return IPv6(src=src, dst=dst, hlim=ttl, tc=tos) / said if ":" in dst else IP(src=src, dst=dst, id=0, flags="DF", ttl=ttl, tos=tos) / said


def to_peer(inner, name, **keys):
    return link(eth(GW_DMZ, PEER), over(inner, name, **keys))


def from_peer(inner, name, **keys):
    return link(eth(PEER, GW_DMZ), over(inner, name, **{"src": F, "dst": E, "sport": 55555, **keys}))


def pair(lan="main", wan="main", *more, ends=(E, F)):
    ours, theirs = ends
    is_known = [neighbour("sync", theirs, PEER)] if ends == (E, F) else []
    routers = ((table("vrrp", interface="lan", id=10, addresses=["192.0.2.254", "fe80::1"], group=lan) if lan else "")
               + table("vrrp", interface="wan", id=20, addresses=["198.51.100.254", "fe80::1"], group=wan))
    return zoned(OUT, routers, interface("sync", [f"{ours}/126" if ":" in ours else f"{ours}/30"], mtu=1600, zone="pair"), *is_known, *more,
                 ports=("lan", "wan", "sync"),
                 extra=f'[pair]\nlocal = "127.0.0.1:5405"\npeer = "127.0.0.2:5405"\nkey_file = "/dev/null"\n'
                       f'link = {{ local = "{ours}", peer = "{theirs}" }}\n')


NAT = (source_nat("pool", pool=[POOL]), destination_nat("served", SERVED, H4, service="tcp/80"),
       rule("in", "allow", "outside", {"zone": "inside", "prefix": H4}))
ASKS, ASKS6 = v4() / udp(), v6() / udp()
SYN = lambda dst=S4: rebuilt(ip(H4, dst) / T("S", 1000)(4000, 80))
SYN_ACK = rebuilt(ip(S4, H4) / T("SA", 5000, 1001)(80, 4000))

c = Case("pair-link-to-the-active", "What is for a group whose Active another node is goes to it over the pair link with the name of the interface it came in by: new sessions, packets to public addresses and in their midst, fragments. What is for this very node stays.",
         WHY, pair("main", "main", *NAT))
c.role("other")
for sent in (ASKS, ASKS6, SYN(), rebuilt(ip(H4, S4) / T("A", 7, 7)(4000, 80)), v4(flags="MF") / udp()):
    c.rx("lan", from_host(sent)).tx("sync", to_peer(sent, "lan"))
for sent in (v4(src=S4, dst=POOL) / udp(), v4(src=S4, dst=SERVED) / T("S", 1)(4000, 80)):
    sent = rebuilt(sent)
    c.rx("wan", from_server(sent)).tx("sync", to_peer(sent, "wan"))
ping = v4(dst=L4, flags="DF") / ICMP(type=8, id=7, seq=1) / b"anybody"
c.answer("lan", from_host(ping), to_host(v4(src=L4, dst=H4, flags="DF", id=0) / ICMP(type=0, id=7, seq=1) / b"anybody"))
c.answer("lan", arp_request(HOST, H4, L4), arp_reply(GW_LAN, L4, HOST, H4))
c.rx("lan", link(eth(HOST, VMAC4), ASKS), drop="not-for-us")
long = v4() / udp(1545)
c.rx("lan", from_host(long), drop="pair-link-too-long")

c = Case("pair-link-decided-here", "What comes over the pair link is decided as if it had come in by the interface it names: rules, routes, a session that packets which come in there belong to as well. What is not from the other end, or not as it sends it, is dropped.",
         WHY, pair())
c.role("active")
for sent, answer in ((ASKS, v4(src=S4, dst=H4) / udp(sport=50000, dport=40000)), (ASKS6, v6(src=S6, dst=H6) / udp(sport=50000, dport=40000))):
    c.rx("sync", from_peer(sent, "lan")).tx("wan", to_server(hop(sent)))
    c.rx("wan", from_server(answer)).tx("lan", to_host(hop(answer)))
    c.rx("lan", from_host(sent)).tx("wan", to_server(hop(sent)))
    c.rx("sync", from_peer(answer, "wan")).tx("lan", to_host(hop(answer)))
c.rx("sync", from_peer(v4(src=S4, dst=H4) / udp(sport=1, dport=1), "wan"), drop="firewall-deny")
for wrong in ({"src": "203.0.113.3"}, {"ttl": 254}, {"head": b"SG\x02\x00" + fnv("lan")}, {"head": b"SG\x01\x00"}):
    c.rx("sync", from_peer(ASKS, "lan", **wrong), drop="pair-link-invalid")
c.rx("sync", from_peer(ASKS, "elsewhere"), drop="pair-link-invalid")
c.rx("sync", from_peer(v4(src="127.0.0.1") / udp(), "lan"), drop="martian-source")
# No other interface has the link.
c.rx("wan", link(eth(SERVER, GW_WAN), over(ASKS, "lan", src=F, dst=E, sport=55555)), drop="firewall-deny")

c = Case("pair-link-never-twice", "What came over the pair link never goes over it again: two nodes that both take the other for the Active lose a packet and do not play with it.",
         WHY, pair("main", "main", *NAT))
c.role("other")
for sent in (ASKS, ASKS6, SYN(), rebuilt(ip(H4, S4) / T("A", 7, 7)(4000, 80))):
    c.rx("sync", from_peer(sent, "lan"), drop="pair-link-loop")
c.rx("sync", from_peer(v4(src=S4, dst=POOL) / udp(), "wan"), drop="pair-link-loop")

c = Case("pair-link-between-two", "While nobody is known to be the Active a session goes on, and none begins; with the Active just lost to another, sessions there are go on here and new ones begin there.",
         WHY, pair())
answer = v4(src=S4, dst=H4) / udp(sport=50000, dport=40000)
other = v4() / udp(sport=40001)
c.role("active")
c.rx("lan", from_host(ASKS)).tx("wan", to_server(hop(ASKS)))
c.role("backup")
c.rx("wan", from_server(answer)).tx("lan", to_host(hop(answer)))
c.rx("lan", from_host(ASKS)).tx("wan", to_server(hop(ASKS)))
c.rx("lan", from_host(other), drop="no-active")
c.rx("sync", from_peer(other, "lan"), drop="no-active")
c.at(100).role("lingers")
c.rx("lan", from_host(ASKS)).tx("wan", to_server(hop(ASKS)))
c.rx("lan", from_host(other)).tx("sync", to_peer(other, "lan"))
c.at(200).role("other")
c.rx("lan", from_host(ASKS)).tx("sync", to_peer(ASKS, "lan"))

c = Case("pair-link-opening", "A connection that opened at the node which was the Active goes on opening: the new Active, which knows nothing of it, gives what is in its midst to the other node.",
         WHY, pair())
c.role("active")
c.rx("lan", from_host(SYN())).tx("wan", to_server(hop(SYN())))
c.at(50).role("other")
c.rx("sync", from_peer(SYN_ACK, "wan")).tx("lan", to_host(hop(SYN_ACK)))
c.at(100).role("active")
strange = rebuilt(ip(S4, H4) / T("SA", 5000, 1001)(80, 4001))
c.rx("wan", from_server(strange)).tx("sync", to_peer(strange, "wan"))
c.rx("sync", from_peer(strange, "wan"), drop="firewall-deny")
# Half a minute later nobody has anything that still opens.
c.at(40_000).rx("wan", from_server(strange), drop="firewall-deny")


@story("pair-link-over-ipv6", "The link is as good over IPv6: its other end is asked for its MAC address while packets wait, ECN is copied both ways, and whose TTL ends at the node that decides hears so from it.",
       WHY + ", RFC 4861 section 7.2.2, RFC 6040, RFC 1812 section 4.3.2", pair(ends=("2001:db8:9::1", "2001:db8:9::2")))
def _(c):
    ends = {"src": "2001:db8:9::1", "dst": "2001:db8:9::2"}
    back = {"src": "2001:db8:9::2", "dst": "2001:db8:9::1"}
    c.role("other")
    c.rx("lan", from_host(ASKS)).tx("sync", solicit(GW_DMZ, ends["src"], ends["dst"]), own=True)
    c.rx("sync", advertise(PEER, ends["dst"], GW_DMZ, ends["src"], R=0), punt=True).tx("sync", to_peer(ASKS, "lan", **ends))
    marked = v4(tos=0xB9) / udp()
    c.rx("lan", from_host(marked)).tx("sync", to_peer(marked, "lan", **ends))
    c.role("active")
    congested = v4(tos=0xBB) / udp()
    c.rx("sync", from_peer(marked, "lan", ecn=3, **back)).tx("wan", to_server(hop(congested)))
    last = v4(ttl=1) / udp()
    c.rx("sync", from_peer(last, "lan", **back), drop="ttl-expired").tx("lan", to_host(icmp4(L4, H4, 11, 0, last)), own=True)


c = Case("pair-link-to-a-segment", "What is for a segment behind the tunnels of a group's Active goes to that, also from a network without virtual routers.",
         WHY, pair(None, "main", overlay(vtep=COMMON, mac=COMMON_MAC, zone="inside")))
c.role("other")
into = v4(dst=T4) / udp()
c.rx("lan", from_host(into)).tx("sync", to_peer(into, "lan"))


c = Case("pair-link-two-networks", "Between networks of two groups one node has both directions of a session: the group whose first router's name has the lower hash.",
         WHY, pair("red", "blue"))
first = min(("red", "lan/10"), ("blue", "wan/20"), key=lambda group: fnv(group[1]))[0]
second = {"red": "blue", "blue": "red"}[first]
answer = v4(src=S4, dst=H4) / udp(sport=50000, dport=40000)
c.role("other", first).role("active", second)
c.rx("lan", from_host(ASKS)).tx("sync", to_peer(ASKS, "lan"))
c.rx("wan", from_server(answer)).tx("sync", to_peer(answer, "wan"))
c.role("active", first).role("other", second)
c.rx("lan", from_host(ASKS)).tx("wan", to_server(hop(ASKS)))
c.rx("wan", from_server(answer)).tx("lan", to_host(hop(answer)))


@story("pair-link-pool-of-another-group", "With several groups a session through a pool belongs to the pool's group: its first packet goes to the Active of that, and so do those behind it.",
       WHY, pair("red", "blue", *NAT), workers=(1, 2))
def _(case):
    here = End("lan", HOST, GW_LAN)
    asks = lambda n, ttl=64: rebuilt(ip(H4, S4, ttl) / U(20 + n)(4000, 5000))
    case.role("active", "red").role("other", "blue")
    case.rx("lan", here.sends(asks(1))).tx("sync", to_peer(asks(1), "lan"))
    case.role("active", "blue")
    port = case.choice("port")
    out = lambda n: rebuilt(ip(POOL, S4, 63) / U(20 + n)(port, 5000))
    case.rx("lan", here.sends(asks(2))).tx("wan", AT_SERVER.gets(out(2)))
    case.role("other", "blue")
    case.rx("lan", here.sends(asks(3))).tx("sync", to_peer(asks(3), "lan"))


SHARED = source_nat("pool", pool=[POOL], shared=True)
REPLY = lambda port, n=1: rebuilt(ip(S4, POOL) / U(50 + n)(5000, port))


@story("pair-link-shared-pool", "Of a pool that both nodes give ports of, a session belongs to the group of its inside: the Active of that gives it a port of its half, and what comes back goes to it, whoever answers for the address.",
       WHY, pair("red", "blue", SHARED), workers=(1, 2))
def _(case):
    here = End("lan", HOST, GW_LAN)
    asks = rebuilt(ip(H4, S4) / U(21)(4000, 5000))
    case.role("active", "red").role("other", "blue")
    port = case.choice("port", 1024, 32767)
    case.rx("lan", here.sends(asks)).tx("wan", AT_SERVER.gets(rebuilt(ip(POOL, S4, 63) / U(21)(port, 5000))))
    # Straight to this one: the other node answers for the address.
    for n in (1, 2):
        case.rx("wan", from_server(REPLY(port, n))).tx("lan", here.gets(rebuilt(ip(S4, H4, 63) / U(50 + n)(5000, 4000))))
    # The other node takes over the hosts: it was told of the session.
    case.role("active", "blue").role("other", "red")
    case.rx("lan", here.sends(asks)).tx("sync", to_peer(asks, "lan"))


c = Case("pair-link-shared-pool-by-port", "What comes to a shared pool and of which nothing is known goes to the node that gives the port; the packet of an ICMP error tells it too. What came from there, or is of this node's half, is decided here.",
         WHY, pair("red", "blue", SHARED))
c.role("active", "red").role("other", "blue")
error = rebuilt(ip(S4, POOL) / ICMP(type=3, code=1) / Raw(bytes(rebuilt(ip(POOL, S4, 1) / U(21)(40000, 5000)))[:28]))
echo = lambda kind: rebuilt(ip(S4, POOL) / ICMP(type=kind, id=40000, seq=1) / b"echo")
upper = (REPLY(40000), rebuilt(ip(S4, POOL) / T("S", 1)(80, 65535)), rebuilt(ip(S4, POOL) / T("SA", 1, 1)(80, 32768)),
         rebuilt(ip(S4, POOL) / U(9)(5000, 600)), error, echo(0))
for sent in upper:
    c.rx("wan", from_server(sent)).tx("sync", to_peer(sent, "wan"))
for sent in (REPLY(32767), rebuilt(ip(S4, POOL) / T("S", 1)(80, 1024)), rebuilt(ip(S4, POOL) / U(9)(5000, 500))):
    c.rx("wan", from_server(sent), drop="nat-no-mapping")
    c.rx("sync", from_peer(sent, "wan"), drop="nat-no-mapping")
for sent in (REPLY(40000), rebuilt(ip(S4, POOL) / T("S", 1)(80, 65535))):
    c.rx("sync", from_peer(sent, "wan"), drop="nat-no-mapping")
# In the midst of a connection: the other node may have taken the port while it was alone.
midst = rebuilt(ip(S4, POOL) / T("SA", 1, 1)(80, 1024))
c.rx("wan", from_server(midst)).tx("sync", to_peer(midst, "wan"))
# Who answers for the address has what has no port.
for sent in (echo(8), rebuilt(ip(S4, POOL, proto=47) / Raw(b"\0\0\x88\xbe" + bytes(8)))):
    c.rx("wan", from_server(sent)).tx("sync", to_peer(sent, "wan"))
