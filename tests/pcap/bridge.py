"""Bridges (IEEE 802.1Q): VLANs and VNIs in one segment, learning, copies for all, and the gateway on the segment.

Two hosts A and B of a segment: A on VLAN 100 of the lan, B untagged on "far"; others behind VXLAN tunnels over the wan.
"""

from lib import *
from vxlan import KEY, arriving, fold, tunnel

A, B, C, D = (f"02:00:00:00:07:{n:02x}" for n in (0xA, 0xB, 0xC, 0xD))
A4, B4, C4, D4 = (f"10.7.0.{n}" for n in (10, 11, 12, 13))
A6, B6 = "2001:db8:7::10", "2001:db8:7::11"
G4, G6 = "10.7.0.1", "2001:db8:7::1"  # the gateway on the segment
GW = GW_LAN                           # known there by the MAC address of the first member's port
VNI = 5001
ON_LAN, ON_FAR = {"port": "lan", "vlan": 100}, {"port": "far"}
IEEE = "scapy script: IEEE 802.1Q clause 8"


def bridge(members=(ON_LAN, ON_FAR), **keys):
    return table("bridge", name="seg", members=list(members), **{"loop_probe_s": 0, **keys})


def over_wan(remotes=(S4,), vtep=W4, **keys):
    return {"vni": VNI, "vtep": vtep, "remotes": list(remotes), **keys}


GATEWAY = table("interface", name="gate", bridge="seg", addresses=["10.7.0.1/24", "2001:db8:7::1/64"])
UNDERLAY = WAN + SERVER_NEIGHBOURS + neighbour("wan", S4B, SERVER2) + neighbour("wan", S6B, SERVER2)


def net(*more, ports=("lan", "wan", "far"), **keys):
    return config(*(more or (bridge(),)), ports=ports, **keys)


def on_lan(src, dst, what, vlan=100):
    """With an IP packet, or with any payload behind an EtherType."""
    return framed(eth(src, dst, vlan), what)


def on_far(src, dst, what):
    return framed(eth(src, dst), what)


def framed(header, what):
    if isinstance(what, tuple):
        kind, data = what
        header.lastlayer().type = kind
        return bytes(header) + data
    return link(header, what)


def packet(src, dst, length=32, **keys):
    return rebuilt(v4(src, dst, **keys) / udp(length))


AB, BA = packet(A4, B4), packet(B4, A4)
OTHER = (0x88B6, bytes(range(60)))
TO_ALL = "ff:ff:ff:ff:ff:ff"


def introduced(c):
    """A and B have been heard of."""
    c.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))
    c.rx("far", on_far(B, A, BA)).tx("lan", on_lan(B, A, BA))
    return c


# -- of two nodes one passes frames on ---------------------------------------------------------------------
ROUTER = table("vrrp", interface="wan", id=9, addresses=["198.51.100.254"], group="main")
c = Case("bridge-of-a-group", "Of several nodes with a bridge the Active of its group passes frames on and learns, alone; the others take what is to them, and say what they have to say by one member. A change of the role forgets stations.",
         f"{IEEE}.8: one way between any two stations", net(bridge(group="main"), GATEWAY, UNDERLAY, ROUTER))
c.role("other")
c.rx("lan", on_lan(A, B, AB), drop="bridge-backup")
c.rx("lan", on_lan(A, TO_ALL, OTHER), drop="unknown-ethertype")
ask = arp_request(A, A4, G4, tags=(100,))
c.rx("lan", ask, punt=True).tx("lan", arp_reply(GW, G4, A, A4, tags=(100,)), own=True)
c.rx("lan", on_lan(A, B, AB), drop="bridge-backup")
c.at(20).role("active")
introduced(c)
c.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))
c.at(40).role("backup")
c.rx("far", on_far(B, A, BA), drop="bridge-backup")
c.at(60).role("active")
c.rx("far", on_far(B, C, BA)).tx("lan", on_lan(B, C, BA))
c.rx("far", on_far(B, A, BA)).tx("lan", on_lan(B, A, BA))

# -- members -----------------------------------------------------------------------------------------------
THREE = bridge([ON_LAN, ON_FAR, {"port": "wan", "vlan": [200, 10]}])
c = Case("bridge-learns", "What is for an unknown station goes to all other members, with their tags; once it has spoken, to it alone.",
         f"{IEEE}.8 and 8.7", net(THREE))
c.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB)).tx("wan", framed(eth(A, B, 200, 10), AB))
c.rx("far", on_far(B, A, BA)).tx("lan", on_lan(B, A, BA))
c.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))
c.rx("wan", framed(eth(C, A, 200, 10), BA)).tx("lan", on_lan(C, A, BA))
c.rx("far", on_far(B, C, BA)).tx("wan", framed(eth(B, C, 200, 10), BA))

V4, VMAC = "10.7.0.254", "00:00:5e:00:01:0a"
ON_GATE = {"interface": "gate", "id": 10, "addresses": [V4]}
UP = rebuilt(v4(A4, S4) / udp())
on_wan = lambda src, dst, what: framed(eth(src, dst, 200, 10), what)
c = Case("bridge-virtual-router", "The Active of a virtual router on a segment answers behind the member that asks and routes what comes to the virtual MAC address, also for a moment when it is no more; of another Active that address is a station as any other, and what was learned of it is forgotten when the role changes.",
         "scapy script: RFC 9568 sections 6.4.2, 6.4.3 and 8.1.2; IEEE 802.1Q clauses 8.7 and 8.8", net(THREE, GATEWAY, UNDERLAY, table("vrrp", **ON_GATE)))
c.role("other")
c.rx("far", on_far(VMAC, TO_ALL, OTHER)).tx("lan", on_lan(VMAC, TO_ALL, OTHER)).tx("wan", on_wan(VMAC, TO_ALL, OTHER))
c.rx("lan", on_lan(A, VMAC, UP)).tx("far", on_far(A, VMAC, UP))
c.at(20).role("active")
c.rx("lan", on_lan(A, VMAC, UP)).tx("wan", to_server(hop(UP)))
ask = {tags: arp_request(A, A4, V4, tags=tags) for tags in ((), (100,), (200, 10))}
c.rx("lan", ask[(100,)], punt=True).tx("far", ask[()]).tx("wan", ask[(200, 10)])
c.tx("lan", eth(GW, A, 100) / ARP(op=2, hwsrc=VMAC, psrc=V4, hwdst=A, pdst=A4), own=True)
# Who takes over speaks before it is known here.
c.rx("wan", on_wan(VMAC, TO_ALL, OTHER)).tx("lan", on_lan(VMAC, TO_ALL, OTHER)).tx("far", on_far(VMAC, TO_ALL, OTHER))
c.rx("lan", on_lan(A, VMAC, UP)).tx("wan", to_server(hop(UP)))
c.at(40).role("lingers")
c.rx("lan", on_lan(A, VMAC, UP)).tx("wan", to_server(hop(UP)))
c.at(60).role("other")
c.rx("lan", on_lan(A, VMAC, UP)).tx("far", on_far(A, VMAC, UP)).tx("wan", on_wan(A, VMAC, UP))
c.rx("wan", on_wan(VMAC, TO_ALL, OTHER)).tx("lan", on_lan(VMAC, TO_ALL, OTHER)).tx("far", on_far(VMAC, TO_ALL, OTHER))
c.rx("lan", on_lan(A, VMAC, UP)).tx("wan", on_wan(A, VMAC, UP))

c = Case("bridge-virtual-router-of-its-group", "Where the Active alone passes frames on, a Backup takes nothing to the virtual MAC address, and who was the Active until a moment ago still routes it.",
         "scapy script: RFC 9568 section 6.4.2; IEEE 802.1Q clause 8.8", net(bridge(group="main"), GATEWAY, UNDERLAY, table("vrrp", **ON_GATE, group="main")))
c.role("other")
c.rx("lan", on_lan(A, VMAC, UP), drop="bridge-backup")
c.at(20).role("active")
c.rx("lan", on_lan(A, VMAC, UP)).tx("wan", to_server(hop(UP)))
c.at(40).role("lingers")
c.rx("lan", on_lan(A, VMAC, UP)).tx("wan", to_server(hop(UP)))
c.at(60).role("other")
c.rx("lan", on_lan(A, VMAC, UP), drop="bridge-backup")

c = Case("bridge-vrrp-of-hosts", "Advertisements of virtual routers are for all on the segment.",
         "scapy script: RFC 9568 sections 5.1.1.2 and 5.1.2.2; IEEE 802.1Q clause 8.6", net(THREE, GATEWAY, UNDERLAY))
for dst, advert in (("01:00:5e:00:00:12", IP(src=A4, dst="224.0.0.18", ttl=255, proto=112) / payload(12)),
                    ("33:33:00:00:00:12", IPv6(src="fe80::a", dst="ff02::12", hlim=255, nh=112) / payload(28))):
    advert = rebuilt(advert)
    c.rx("lan", on_lan(VMAC, dst, advert)).tx("far", on_far(VMAC, dst, advert)).tx("wan", on_wan(VMAC, dst, advert))

c = Case("bridge-broadcast", "Broadcasts and multicasts go to all members but the one they came from.", f"{IEEE}.6", net(THREE))
for src, dst in ((A, TO_ALL), (A, "01:00:5e:01:02:03"), (A, "33:33:00:01:00:03")):
    c.rx("lan", on_lan(src, dst, OTHER)).tx("far", on_far(src, dst, OTHER)).tx("wan", framed(eth(src, dst, 200, 10), OTHER))
c.rx("far", on_far(B, TO_ALL, OTHER)).tx("lan", on_lan(B, TO_ALL, OTHER)).tx("wan", framed(eth(B, TO_ALL, 200, 10), OTHER))

c = Case("bridge-any-protocol", "What is in a frame does not matter: MPLS, lengths instead of EtherTypes, wrong IP headers, padding.",
         f"{IEEE}.6; RFC 894", net())
c.faulty = True
introduced(c)
for what in (OTHER, (0x8847, bytes(80)), (0x0026, bytes(46)), (0x0800, b"\x45" + bytes(45)), (0x86DD, bytes(46)), (0x88CC, bytes(46))):
    c.rx("lan", on_lan(A, B, what)).tx("far", on_far(A, B, what))
    c.rx("far", on_far(B, A, what)).tx("lan", on_lan(B, A, what))
short = bytes(link(eth(A, B, 100), packet(A4, B4, 0)))
c.rx("lan", short + bytes(18)).tx("far", bytes(link(eth(A, B), packet(A4, B4, 0))) + bytes(18))
c.rx("lan", on_lan(A, B, packet(A4, B4, 8, ttl=1))).tx("far", on_far(A, B, packet(A4, B4, 8, ttl=1)))

c = Case("bridge-priority-tags", "A tag of VLAN 0 counts for untagged, and does not travel on.", "scapy script: IEEE 802.1Q clause 6.9", net())
introduced(c)
c.rx("far", framed(eth(B, A, 0), BA)).tx("lan", on_lan(B, A, BA))

c = Case("bridge-reserved-addresses", "Spanning tree, LACP and LLDP stay on their link; the next group address does not.", "scapy script: IEEE 802.1Q table 8-1", net())
for last in (0x00, 0x02, 0x03, 0x0E, 0x0F):
    c.rx("lan", on_lan(A, f"01:80:c2:00:00:{last:02x}", OTHER), drop="bridge-reserved")
c.rx("lan", on_lan(A, "01:80:c2:00:00:10", OTHER)).tx("far", on_far(A, "01:80:c2:00:00:10", OTHER))

c = Case("bridge-invalid-sources", "Nobody is learned by a group address, by none, or by the gateway's.", f"{IEEE}.8", net(bridge(), GATEWAY))
for src in ("01:00:5e:00:00:01", TO_ALL, "00:00:00:00:00:00", GW):
    c.rx("lan", on_lan(src, B, OTHER), drop="bridge-invalid-source")

c = Case("bridge-same-member", "What is for a station behind the member that it came in by is not sent back.", f"{IEEE}.6.1", net())
introduced(c)
c.rx("lan", on_lan(C, TO_ALL, OTHER)).tx("far", on_far(C, TO_ALL, OTHER))
c.rx("lan", on_lan(A, C, OTHER), drop="bridge-same-member")

c = Case("bridge-one-member", "With one member there is nobody to send to.", IEEE, net(bridge([ON_LAN])))
c.rx("lan", on_lan(A, B, AB), drop="bridge-no-member")
c.rx("lan", on_lan(A, TO_ALL, OTHER), drop="bridge-no-member")
c.rx("lan", on_lan(A, B, AB, 101), drop="unknown-vlan")

c = Case("bridge-too-long", "A frame that is too long for a member is not fragmented; of those to all, that member gets no copy.", f"{IEEE}.6; RFC 4638 section 6",
         net(bridge([ON_LAN, {**ON_FAR, "mtu": 1400}, {"port": "wan"}])))
c.rx("far", on_far(B, A, BA)).tx("lan", on_lan(B, A, BA)).tx("wan", on_far(B, A, BA))
full, over = packet(A4, B4, 1372), packet(A4, B4, 1373)
c.rx("lan", on_lan(A, B, full)).tx("far", on_far(A, B, full))
c.rx("lan", on_lan(A, B, over), drop="bridge-too-long")
c.rx("lan", on_lan(A, TO_ALL, over)).tx("wan", on_far(A, TO_ALL, over))

c = Case("bridge-segments-apart", "Two bridges: the same MAC addresses in both, and nothing goes across.", IEEE,
         net(table("bridge", name="one", members=[ON_LAN, {"port": "wan", "vlan": 100}], loop_probe_s=0),
             table("bridge", name="two", members=[{"port": "lan", "vlan": 101}, {"port": "wan", "vlan": 101}], loop_probe_s=0)))
c.rx("lan", on_lan(A, B, AB)).tx("wan", on_lan(A, B, AB))
c.rx("wan", on_lan(B, A, BA)).tx("lan", on_lan(B, A, BA))
c.rx("wan", on_lan(A, B, AB, 101)).tx("lan", on_lan(A, B, AB, 101))
c.rx("lan", on_lan(B, A, BA, 101)).tx("wan", on_lan(B, A, BA, 101))
c.rx("lan", on_lan(A, B, AB)).tx("wan", on_lan(A, B, AB))
c.rx("wan", on_lan(A, B, AB, 101)).tx("lan", on_lan(A, B, AB, 101))

# -- stations ----------------------------------------------------------------------------------------------
c = Case("bridge-move", "A station that comes up behind another member is followed with its first frame.", f"{IEEE}.8", net(THREE))
c.rx("far", on_far(B, A, BA)).tx("lan", on_lan(B, A, BA)).tx("wan", framed(eth(B, A, 200, 10), BA))
c.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))
c.rx("wan", framed(eth(B, A, 200, 10), BA)).tx("lan", on_lan(B, A, BA))
c.rx("lan", on_lan(A, B, AB)).tx("wan", framed(eth(A, B, 200, 10), AB))

c = Case("bridge-flapping", "A station that is in two places stays in one after five moves within three minutes.", "scapy script: RFC 7432 section 15.1", net(THREE))
c.rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER)).tx("wan", framed(eth(A, TO_ALL, 200, 10), OTHER))
places = [("far", on_far(B, A, BA)), ("wan", framed(eth(B, A, 200, 10), BA))]
for turn in range(8):
    c.rx(*places[turn % 2]).tx("lan", on_lan(B, A, BA))
# New at far, moved to wan, far, wan, far, wan: there it stays.
c.rx("lan", on_lan(A, B, AB)).tx("wan", framed(eth(A, B, 200, 10), AB))
c.rx(*places[0]).tx("lan", on_lan(B, A, BA))
c.rx("lan", on_lan(A, B, AB)).tx("wan", framed(eth(A, B, 200, 10), AB))
c.at(190_000).rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER)).tx("wan", framed(eth(A, TO_ALL, 200, 10), OTHER))
c.rx(*places[0]).tx("lan", on_lan(B, A, BA))
c.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))

c = Case("bridge-ageing", "Who is silent for as long as the bridge says is forgotten.", f"{IEEE}.8.3", net(bridge([{"port": "wan"}, ON_LAN, ON_FAR], ageing_s=20)))
c.rx("far", on_far(B, TO_ALL, OTHER)).tx("wan", on_far(B, TO_ALL, OTHER)).tx("lan", on_lan(B, TO_ALL, OTHER))
c.at(18_000).rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))
c.at(24_000).rx("lan", on_lan(A, B, AB)).tx("wan", on_far(A, B, AB)).tx("far", on_far(A, B, AB))

c = Case("bridge-max-macs", "No more stations than a member may have are learned; the frames of others still travel.", IEEE,
         net(bridge([{**ON_LAN, "max_macs": 2}, ON_FAR, {"port": "wan"}])))
for src in (A, C, D):
    c.rx("lan", on_lan(src, TO_ALL, OTHER)).tx("far", on_far(src, TO_ALL, OTHER)).tx("wan", on_far(src, TO_ALL, OTHER))
c.rx("far", on_far(B, A, BA)).tx("lan", on_lan(B, A, BA))
c.rx("far", on_far(B, C, BA)).tx("lan", on_lan(B, C, BA))
c.rx("far", on_far(B, D, BA)).tx("lan", on_lan(B, D, BA)).tx("wan", on_far(B, D, BA))

c = Case("bridge-storm", "More broadcasts and frames to nobody than a member may send are lost; those to known stations are not.", IEEE,
         net(bridge([{**ON_LAN, "storm_pps": 3}, ON_FAR])))
c.rx("far", on_far(B, TO_ALL, OTHER)).tx("lan", on_lan(B, TO_ALL, OTHER))
for dst in (TO_ALL, C, "01:00:5e:01:02:03"):
    c.rx("lan", on_lan(A, dst, OTHER)).tx("far", on_far(A, dst, OTHER))
c.rx("lan", on_lan(A, TO_ALL, OTHER), drop="bridge-storm").rx("lan", on_lan(A, C, OTHER), drop="bridge-storm")
c.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))
c.rx("far", on_far(B, TO_ALL, OTHER)).tx("lan", on_lan(B, TO_ALL, OTHER))
c.at(1_100).rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER))

c = Case("bridge-member-taken-out", "A station behind a member that another config takes out is unknown then.", "scapy script: DESIGN.md section 3", net(THREE))
c.rx("far", on_far(B, A, BA)).tx("lan", on_lan(B, A, BA)).tx("wan", framed(eth(B, A, 200, 10), BA))
c.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))
c.reload(net(bridge([ON_LAN, {"port": "wan", "vlan": [200, 10]}])))
c.rx("lan", on_lan(A, B, AB)).tx("wan", framed(eth(A, B, 200, 10), AB))
c.rx("far", on_far(B, A, BA), drop="unknown-vlan")

# -- VNIs --------------------------------------------------------------------------------------------------
def from_remote(src, dst, what, remote=S4, mac=SERVER, end=W4, **keys):
    return link(eth(mac, GW_WAN), arriving(framed(eth(src, dst), what), remote, end, **keys))


def to_remote(src, dst, what, remote=S4, mac=SERVER, end=W4, **keys):
    return link(eth(GW_WAN, mac), tunnel(framed(eth(src, dst), what), end, remote, **keys))


TWO_REMOTES = net(bridge([ON_LAN, ON_FAR, over_wan([S4, S4B])]), UNDERLAY)
c = Case("bridge-vni", "A VLAN and a VNI in one segment: what is for all goes to each remote, what is for a station to the one it is behind.",
         "scapy script: RFC 7348 sections 4.1 and 4.2; IEEE 802.1Q clause 8.8", TWO_REMOTES)
c.rx("lan", on_lan(A, C, AB)).tx("far", on_far(A, C, AB)).tx("wan", to_remote(A, C, AB)).tx("wan", to_remote(A, C, AB, S4B, SERVER2))
c.rx("wan", from_remote(C, A, BA, S4B, SERVER2)).tx("lan", on_lan(C, A, BA))
c.rx("lan", on_lan(A, C, AB)).tx("wan", to_remote(A, C, AB, S4B, SERVER2))
c.rx("wan", from_remote(C, A, BA)).tx("lan", on_lan(C, A, BA))  # it has moved
c.rx("lan", on_lan(A, C, AB)).tx("wan", to_remote(A, C, AB))
c.rx("wan", from_remote(C, TO_ALL, OTHER)).tx("lan", on_lan(C, TO_ALL, OTHER)).tx("far", on_far(C, TO_ALL, OTHER))
c.rx("lan", on_lan(A, C, OTHER)).tx("wan", to_remote(A, C, OTHER))

c = Case("bridge-split-horizon", "Nothing goes from one tunnel into another: unknown stations and broadcasts go to the other members only.", "scapy script: RFC 7348 section 4; RFC 4762 section 4.4", TWO_REMOTES)
c.rx("wan", from_remote(C, TO_ALL, OTHER)).tx("lan", on_lan(C, TO_ALL, OTHER)).tx("far", on_far(C, TO_ALL, OTHER))
c.rx("wan", from_remote(D, B, AB, S4B, SERVER2)).tx("lan", on_lan(D, B, AB)).tx("far", on_far(D, B, AB))
c.rx("wan", from_remote(D, C, AB, S4B, SERVER2), drop="bridge-split-horizon")
c.rx("wan", from_remote(D, D, AB, S4B, SERVER2), drop="bridge-split-horizon")

c = Case("bridge-vni-over-ipv6", "The tunnels of a member go over IPv6.", "scapy script: RFC 7348 section 4.1; RFC 6935 section 5", net(bridge([ON_LAN, over_wan([S6], W6)]), UNDERLAY))
c.rx("lan", on_lan(A, C, AB)).tx("wan", to_remote(A, C, AB, S6, end=W6))
c.rx("wan", from_remote(C, A, BA, S6, end=W6)).tx("lan", on_lan(C, A, BA))
c.rx("lan", on_lan(A, C, AB)).tx("wan", to_remote(A, C, AB, S6, end=W6))

c = Case("bridge-vni-no-learning", "With learning off, what is behind the tunnels is for all remotes.", "scapy script: RFC 7348 section 4.2", net(bridge([ON_LAN, over_wan([S4, S4B], learning=False)]), UNDERLAY))
c.rx("wan", from_remote(C, A, BA)).tx("lan", on_lan(C, A, BA))
c.rx("lan", on_lan(A, C, AB)).tx("wan", to_remote(A, C, AB)).tx("wan", to_remote(A, C, AB, S4B, SERVER2))

c = Case("bridge-vni-untrusted", "Frames of others than the remotes, of other VNIs and with tags inside come in nowhere.", "scapy script: RFC 7348 sections 6.1 and 7", TWO_REMOTES)
c.rx("wan", from_remote(C, A, BA, "198.51.100.22", SERVER2), drop="vxlan-unknown-remote")
c.rx("wan", from_remote(C, A, BA, vni=7), drop="vxlan-unknown-vni")
c.rx("wan", link(eth(SERVER, GW_WAN), arriving(on_lan(C, A, BA))), drop="vxlan-inner-tag")

c = Case("bridge-vni-ecn", "Congestion that the underlay marked is carried over into what goes on to another member.", "scapy script: RFC 6040 section 4.2", TWO_REMOTES)
ect = rebuilt(v4(C4, A4, tos=2) / udp())
c.rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER)).tx("wan", to_remote(A, TO_ALL, OTHER)).tx("wan", to_remote(A, TO_ALL, OTHER, S4B, SERVER2))
marked = rebuilt(v4(C4, A4, tos=3) / udp())
c.rx("wan", from_remote(C, A, ect, tos=3)).tx("lan", on_lan(C, A, marked))
c.rx("wan", from_remote(C, A, BA, tos=3), drop="vxlan-ecn")
c.rx("wan", from_remote(C, A, ect, tos=2)).tx("lan", on_lan(C, A, ect))

c = Case("bridge-vni-resolves", "Frames for a tunnel whose next hop is not known wait for it; copies for all do not.", "scapy script: RFC 826; RFC 1122 section 2.3.2.2",
         net(bridge([ON_LAN, over_wan([S4])]), WAN, neighbour("wan", S6, SERVER)), workers=(1,))
c.rx("lan", on_lan(A, TO_ALL, OTHER), drop="bridge-no-member").tx("wan", arp_request(GW_WAN, W4, S4), own=True)
c.rx("wan", arp_reply(SERVER, S4, GW_WAN, W4), punt=True)
c.rx("lan", on_lan(A, TO_ALL, OTHER)).tx("wan", to_remote(A, TO_ALL, OTHER))

c = Case("bridge-vni-next-hop-fails", "A frame for a tunnel whose next hop does not answer is lost, and nobody is told: it is not the gateway that its host has asked.",
         "scapy script: RFC 1122 section 2.3.2.2; IEEE 802.1Q clause 8.6", net(bridge([ON_LAN, over_wan([S4])]), WAN), workers=(1,), linger_ms=5000)
c.rx("wan", from_remote(C, A, BA)).tx("lan", on_lan(C, A, BA))
c.rx("lan", on_lan(A, C, AB), drop="neighbour-failed").tx("wan", arp_request(GW_WAN, W4, S4), own=True)
c.tx("wan", arp_request(GW_WAN, W4, S4), at=1_001, own=True).tx("wan", arp_request(GW_WAN, W4, S4), at=2_001, own=True)

# -- the gateway on the segment ----------------------------------------------------------------------------
LAN2 = interface("lan2", ["192.0.2.1/24", "2001:db8:1::1/64"], port="lan")
HOSTS = neighbour("lan2", H4, HOST) + neighbour("lan2", H6, HOST)
ON_GATE = neighbour("gate", A4, A) + neighbour("gate", A6, A) + neighbour("gate", B4, B) + neighbour("gate", B6, B)


def routed(*more, members=(ON_LAN, ON_FAR), **keys):
    return net(bridge(members, **keys), GATEWAY, LAN2, HOSTS, ON_GATE, *more)


def told_of(c):
    """Where A and B are."""
    c.rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER))
    c.rx("far", on_far(B, A, BA)).tx("lan", on_lan(B, A, BA))
    return c


c = Case("bridge-gateway-routes", "Packets between the segment and another network are routed, and leave by the member their station is behind.", "scapy script: RFC 1812 section 5; IEEE 802.1Q clause 8.8", routed())
told_of(c)
for station, here4, here6, frame, port in ((A, A4, A6, on_lan, "lan"), (B, B4, B6, on_far, "far")):
    for here, there, make in ((here4, H4, v4), (here6, H6, v6)):
        up, down = rebuilt(make(here, there) / udp()), rebuilt(make(there, here) / TCP(sport=1, dport=2))
        c.rx(port, frame(station, GW, up)).tx("lan", link(eth(GW_LAN, HOST), hop(up)))
        c.rx("lan", from_host(down)).tx(port, frame(GW, station, hop(down)))

c = Case("bridge-gateway-unknown-station", "A packet for a neighbour that no member is known for goes to all members, once it has spoken to it alone.", "scapy script: IEEE 802.1Q clause 8.6", routed())
down = rebuilt(v4(H4, B4) / udp())
c.rx("lan", from_host(down)).tx("lan", on_lan(GW, B, hop(down))).tx("far", on_far(GW, B, hop(down)))
c.rx("far", on_far(B, TO_ALL, OTHER)).tx("lan", on_lan(B, TO_ALL, OTHER))
c.rx("lan", from_host(down)).tx("far", on_far(GW, B, hop(down)))

c = Case("bridge-gateway-arp", "Who asks for the gateway is answered behind his member, and the others hear the question as well.", "scapy script: RFC 826; IEEE 802.1Q clause 8.6",
         net(bridge(), GATEWAY))
ask = arp_request(A, A4, G4, tags=(100,))
c.rx("lan", ask, punt=True).tx("far", arp_request(A, A4, G4)).tx("lan", arp_reply(GW, G4, A, A4, tags=(100,)), own=True)
ask = solicit(B, B6, G6)
c.rx("far", ask, punt=True).tx("lan", solicit(B, B6, G6, tags=(100,))).tx("far", advertise(GW, G6, B, B6), own=True)

c = Case("bridge-gateway-asks", "The gateway asks for a station behind all members, and sends what waited to the one that answers.", "scapy script: RFC 826; RFC 1122 section 2.3.2.2",
         net(bridge(), GATEWAY, LAN2, HOSTS), workers=(1,))
down = rebuilt(v4(H4, B4) / udp())
c.rx("lan", from_host(down)).tx("lan", arp_request(GW, G4, B4, tags=(100,)), own=True).tx("far", arp_request(GW, G4, B4), own=True)
c.rx("far", arp_reply(B, B4, GW, G4), punt=True).tx("far", on_far(GW, B, hop(down)))

c = Case("bridge-gateway-ping", "The gateway answers pings of stations.", "scapy script: RFC 1122 section 3.2.2.6", routed())
told_of(c)
ping, pong = (rebuilt(v4(*ends, id=0, flags="DF") / ICMP(type=kind, id=7) / payload(8)) for ends, kind in (((A4, G4), 8), ((G4, A4), 0)))
c.answer("lan", on_lan(A, GW, ping), on_lan(GW, A, pong))

c = Case("bridge-gateway-other-groups", "Group frames that nobody at the gateway listens to are copied, and no more.", f"{IEEE}.6", routed())
for what, dst in ((rebuilt(v4(A4, "224.0.0.251", ttl=255) / udp()), "01:00:5e:00:00:fb"), (rebuilt(v4(A4, "10.7.0.255") / udp()), TO_ALL),
                  (rebuilt(v6(A6, "ff02::fb") / udp()), "33:33:00:00:00:fb")):
    c.rx("lan", on_lan(A, dst, what)).tx("far", on_far(A, dst, what))

VNI_TOO = (ON_LAN, ON_FAR, over_wan([S4, S4B]))
c = Case("bridge-gateway-through-vni", "A station of the segment behind a tunnel is routed to through it, and told what does not fit.",
         "scapy script: RFC 7348 section 4.1; RFC 1191 section 4", routed(UNDERLAY, neighbour("gate", C4, C), members=VNI_TOO))
c.rx("wan", from_remote(C, GW, rebuilt(v4(C4, H4) / udp()))).tx("lan", link(eth(GW_LAN, HOST), hop(rebuilt(v4(C4, H4) / udp()))))
down = rebuilt(v4(H4, C4) / udp())
c.rx("lan", from_host(down)).tx("wan", to_remote(GW, C, hop(down)))
full, over = packet(H4, C4, 1422, flags="DF"), packet(H4, C4, 1423, flags="DF")
c.rx("lan", from_host(full)).tx("wan", to_remote(GW, C, hop(full)))
c.error("lan", from_host(over), "fragmentation-needed", to_host(icmp4(L4, H4, 3, 4, over, mtu=1450)))

c = Case("bridge-gateway-fragments", "What is too long for the tunnel of a station is fragmented for it.", "scapy script: RFC 791 section 2.3",
         routed(UNDERLAY, neighbour("gate", C4, C), members=VNI_TOO))
c.rx("wan", from_remote(C, GW, rebuilt(v4(C4, H4) / udp()))).tx("lan", link(eth(GW_LAN, HOST), hop(rebuilt(v4(C4, H4) / udp()))))
long = packet(H4, C4, 1460)
data = bytes(hop(long))[20:]
parts = [rebuilt(v4(H4, C4, ttl=63, frag=at // 8, flags=more, proto=17) / Raw(data[at:end])) for at, end, more in ((0, 1424, "MF"), (1424, len(data), 0))]
c.rx("lan", from_host(long))
for part in parts:
    c.tx("wan", to_remote(GW, C, part))

# -- answers in the name of stations -----------------------------------------------------------------------
c = Case("bridge-suppress-arp", "Who asks for a station that the gateway knows behind another member is answered in its name; nobody else is asked.",
         "scapy script: RFC 7432 section 10; RFC 826", routed())
told_of(c)
c.rx("lan", arp_request(A, A4, B4, tags=(100,)), punt=True).tx("lan", arp_reply(B, B4, A, A4, tags=(100,)), own=True)
c.rx("far", arp_request(B, B4, A4), punt=True).tx("far", arp_reply(A, A4, B, B4), own=True)
# Whether somebody has the address only its owner says (RFC 5227 section 2.1.1).
c.rx("far", arp_request(D, "0.0.0.0", A4), punt=True).tx("lan", arp_request(D, "0.0.0.0", A4, tags=(100,)))
# Of others, of himself, and for one behind the same member: these are for all.
c.rx("lan", arp_request(A, A4, C4, tags=(100,)), punt=True).tx("far", arp_request(A, A4, C4))
c.rx("lan", arp_request(A, A4, A4, tags=(100,)), punt=True).tx("far", arp_request(A, A4, A4))
c.rx("lan", arp_request(D, D4, A4, tags=(100,)), punt=True).tx("far", arp_request(D, D4, A4))

c = Case("bridge-suppress-unknown-asker", "Who is not learned cannot be answered in another's name: the question is for all.", "scapy script: RFC 7432 section 10",
         routed(members=({**ON_LAN, "max_macs": 1}, ON_FAR)))
told_of(c)
c.rx("lan", arp_request(C, C4, B4, tags=(100,)), punt=True).tx("far", arp_request(C, C4, B4))

c = Case("bridge-no-tunnel-end", "A host of a segment that sends with the address of a remote gets into no other segment.", "scapy script: RFC 7348 section 7",
         routed(UNDERLAY, members=VNI_TOO))
c.rx("lan", on_lan(A, GW, arriving(framed(eth(C, B), AB))), drop="no-host-path")

c = Case("bridge-max-macs-and-moves", "A member that has as many stations as it may have gets none by moving either.", IEEE,
         net(bridge([{**ON_LAN, "max_macs": 1}, ON_FAR])))
introduced(c)
c.rx("lan", on_lan(B, C, AB)).tx("far", on_far(B, C, AB))
c.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))

c = Case("bridge-vnis-renumbered", "A config that puts another VNI before: what was learned behind the tunnels of the first is learned anew.", "scapy script: RFC 7348 section 4.1",
         TWO_REMOTES)
c.rx("wan", from_remote(C, A, BA)).tx("lan", on_lan(C, A, BA)).tx("far", on_far(C, A, BA))
c.reload(net(bridge([ON_LAN, over_wan([S4B], vni=4999), over_wan([S4])]), UNDERLAY))
c.rx("lan", on_lan(A, C, AB)).tx("wan", to_remote(A, C, AB, S4B, SERVER2, vni=4999)).tx("wan", to_remote(A, C, AB))
c.rx("wan", from_remote(C, A, BA)).tx("lan", on_lan(C, A, BA))
c.rx("lan", on_lan(A, C, AB)).tx("wan", to_remote(A, C, AB))

c = Case("bridge-suppress-nd", "Likewise neighbour solicitations; one of who has no address yet is for all.", "scapy script: RFC 7432 section 10; RFC 4861 section 7.2.4", routed())
told_of(c)
c.rx("lan", solicit(A, A6, B6, tags=(100,)), punt=True).tx("lan", advertise(B, B6, A, A6, R=0, tags=(100,)), own=True)
c.rx("far", solicit(B, B6, A6), punt=True).tx("far", advertise(A, A6, B, B6, R=0), own=True)
c.rx("lan", solicit(A, A6, "2001:db8:7::99", tags=(100,))).tx("far", solicit(A, A6, "2001:db8:7::99"))

c = Case("bridge-suppress-off", "Without it every question is for all.", "scapy script: IEEE 802.1Q clause 8.6", routed(suppress=False))
told_of(c)
c.rx("lan", arp_request(A, A4, B4, tags=(100,)), punt=True).tx("far", arp_request(A, A4, B4))
c.rx("far", solicit(B, B6, A6)).tx("lan", solicit(B, B6, A6, tags=(100,)))

c = Case("bridge-suppress-through-vni", "A station behind a tunnel that asks is answered through it alone.", "scapy script: RFC 7432 section 10",
         routed(UNDERLAY, members=VNI_TOO))
c.rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER)).tx("wan", to_remote(A, TO_ALL, OTHER)).tx("wan", to_remote(A, TO_ALL, OTHER, S4B, SERVER2))
question, reply = bytes(ARP(op=1, hwsrc=C, psrc=C4, pdst=A4)), bytes(ARP(op=2, hwsrc=A, psrc=A4, hwdst=C, pdst=C4))
c.rx("wan", from_remote(C, TO_ALL, (0x0806, question)), punt=True).tx("wan", to_remote(A, C, (0x0806, reply)), own=True)

# -- loops -------------------------------------------------------------------------------------------------
def loop_frame(second, segment, member, name="golden", mac=None):
    own = int((mac or (GW_LAN, GW_DMZ)[member]).replace(":", ""), 16)
    digest = 0xCBF29CE484222325
    for byte in name.encode():
        digest = (digest ^ byte) * 0x100000001B3 & (1 << 64) - 1
    what = digest << 64 | second << 32 | segment << 16 | member
    what ^= own << 80
    h = fold(what >> 64 ^ KEY[0], what & (1 << 64) - 1 ^ KEY[1])
    h = fold(h ^ KEY[0], 0x53474C50 ^ 0x9E3779B97F4A7C15)
    head = b"SGLP" + second.to_bytes(4, "big") + segment.to_bytes(2, "big") + member.to_bytes(2, "big") + h.to_bytes(8, "big")
    return (0x88B5, head.ljust(46, b"\0"))


LOOPS = "03:53:47:4c:50:00"
#: Segments have numbers above those of interfaces, of which there may be 16,384.
SEGMENT = 16384
c = Case("bridge-loop", "A frame that looks for loops comes back: the later member of the two is shut for as long as the bridge says, and opened again.",
         "scapy script: the frame of src/pipeline/slow/loops.rs, the hash of src/packet/hash.rs", net(bridge(loop_probe_s=10, loop_hold_s=5)), workers=(1,))
look = lambda second, member, name="golden", mac=None: loop_frame(1600 + second, SEGMENT, member, name, mac)
every = lambda second: c.tx("lan", on_lan(GW_LAN, LOOPS, look(second, 0)), own=True).tx("far", on_far(GW_DMZ, LOOPS, look(second, 1)), own=True)
c.rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER))
c.at(1_500)
every(1)
c.rx("far", on_far(B, A, BA)).tx("lan", on_lan(B, A, BA))
c.rx("far", on_far(GW_LAN, LOOPS, look(1, 0)), punt=True)
c.rx("far", on_far(B, A, BA), drop="bridge-member-shut")
c.rx("lan", on_lan(A, TO_ALL, OTHER), drop="bridge-no-member")
# It may be anywhere: what was learned came round.
c.rx("lan", on_lan(A, B, AB), drop="bridge-no-member")
c.at(7_000).rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER))
c.at(11_500)
every(11)
# Another node's is a frame as any other, and what is old proves nothing.
c.rx("far", on_far(D, LOOPS, look(11, 0, "another"))).tx("lan", on_lan(D, LOOPS, look(11, 0, "another")))
# Of the same name too, as the other one of a pair may be.
c.rx("far", on_far(D, LOOPS, look(11, 0, mac=D))).tx("lan", on_lan(D, LOOPS, look(11, 0, mac=D)))
c.at(22_500)
every(21)
c.rx("far", on_far(GW_LAN, LOOPS, look(11, 0)), punt=True)
c.rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER))
# Behind one member.
c.rx("lan", on_lan(GW_LAN, LOOPS, look(21, 0)), punt=True)
c.rx("lan", on_lan(A, TO_ALL, OTHER), drop="bridge-member-shut")
c.rx("far", on_far(B, TO_ALL, OTHER), drop="bridge-no-member")

c = Case("bridge-loop-through-another", "What looks for loops goes through another bridge of the gateway as any frame, so that a way around through both is found.",
         "scapy script: the frame of src/pipeline/slow/loops.rs; IEEE 802.1Q clause 8.6",
         net(table("bridge", name="one", members=[ON_LAN, ON_FAR], loop_probe_s=0), table("bridge", name="two", members=[{"port": "lan", "vlan": 101}, {"port": "wan"}], loop_probe_s=0)))
c.rx("lan", on_lan(GW_LAN, LOOPS, loop_frame(1600, SEGMENT, 0), 101)).tx("wan", on_far(GW_LAN, LOOPS, loop_frame(1600, SEGMENT, 0)))
c.rx("lan", on_lan(GW_LAN, LOOPS, OTHER, 101), drop="bridge-invalid-source")
c.rx("lan", on_lan(GW_LAN, LOOPS, loop_frame(1600, SEGMENT, 0)), punt=True)

# -- sessions ----------------------------------------------------------------------------------------------
ZONED = config(bridge(), table("interface", name="gate", bridge="seg", zone="segment", addresses=["10.7.0.1/24"]), table("interface", name="wan", port="wan", zone="outside", addresses=["198.51.100.1/24"]),
               neighbour("gate", A4, A), neighbour("gate", B4, B), neighbour("wan", S4, SERVER), table("zone", name="segment"), table("zone", name="outside"),
               rule("out", "allow", "segment", "outside"), source_nat("pool", ["198.51.100.77"], frm="segment"), ports=("lan", "wan", "far"))


class Bridged(End):
    """A station on VLAN 100."""

    def sends(self, ip):
        return on_lan(A, GW, ip)

    def gets(self, ip):
        return on_lan(GW, A, ip)


def natted(case):
    told_of(case)
    port = case.choice("port")
    talk = Talk(case, (A4, 5000), (S4, 53), seen=("198.51.100.77", port), here=Bridged("lan", A, GW), there=AT_SERVER)
    talk.up(U(20))
    talk.down(U(30))
    talk.up(U(9))
    # Within the segment nobody asks for a rule.
    case.rx("lan", on_lan(A, B, AB)).tx("far", on_far(A, B, AB))


story("bridge-nat", "A station reaches a server outside by source NAT; between stations there is no firewall.", "scapy script: RFC 4787; DESIGN.md section 3", ZONED)(natted)
