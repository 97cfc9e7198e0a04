"""IGMP and MLD snooping (RFC 4541): A on VLAN 100 of the lan, B untagged on "far", C on the wan.

The queries of hosts and routers are scapy's; so are those that the gateway is expected to make.
"""

from scapy.all import IPOption_Router_Alert
from scapy.contrib.igmp import IGMP
from scapy.contrib.igmpv3 import IGMPv3, IGMPv3gr, IGMPv3mq, IGMPv3mr
from scapy.layers.inet6 import ICMPv6MLDMultAddrRec, ICMPv6MLDone, ICMPv6MLQuery, ICMPv6MLQuery2, ICMPv6MLReport, ICMPv6MLReport2

from lib import *
import bridge as b
from bridge import A, A4, B, B4, C, C4, G4, GATEWAY, GW, OTHER, TO_ALL, on_far, on_lan

SNOOPING = "scapy script: RFC 4541 section 2.1"
G, H = "239.1.2.3", "239.4.5.6"
G6, H6 = "ff0e::1:2:3", "ff1e::4:5:6"
LL = {A: "fe80::a", B: "fe80::b", C: "fe80::c"}
V4 = {A: A4, B: B4, C: C4}
MEMBERS = (b.ON_LAN, b.ON_FAR, {"port": "wan"})
PLACES = {A: ("lan", on_lan), B: ("far", on_far), C: ("wan", on_far)}


def group_mac(group):
    if ":" in group:
        import socket
        return "33:33:" + ":".join(f"{byte:02x}" for byte in socket.inet_pton(socket.AF_INET6, group)[12:])
    last = [int(part) for part in group.split(".")]
    return f"01:00:5e:{last[1] & 127:02x}:{last[2]:02x}:{last[3]:02x}"


def snooping(*more, members=MEMBERS, **keys):
    return b.net(b.bridge(members, snooping=True, **keys), *more)


def igmp(src, dst, message, ttl=1):
    return rebuilt(IP(src=src, dst=dst, ttl=ttl, proto=2, tos=0xC0, options=[IPOption_Router_Alert()]) / message)


def mld(src, dst, message, hlim=1):
    return rebuilt(IPv6(src=src, dst=dst, hlim=hlim) / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"")]) / message)


def put(c, station, dst, what, to, drop=None, punt=False, mac=None):
    """`station` sends to a group; `to` are the stations behind whose members it arrives."""
    port, frame = PLACES[station]
    c.rx(port, frame(station, mac or group_mac(dst), what), drop=drop, punt=punt)
    for other in to:
        port, out = PLACES[other]
        c.tx(port, out(station, mac or group_mac(dst), what))


def data(c, station, group, to, drop=None):
    what = rebuilt((v6(f"2001:db8:7::{station[-1]}", group) if ":" in group else v4(V4[station], group)) / udp())
    put(c, station, group, what, to, drop)


def query(c, station, to, group="0.0.0.0", src=None, mrcode=100):
    put(c, station, "224.0.0.1" if group == "0.0.0.0" else group,
        igmp(src or V4[station], "224.0.0.1" if group == "0.0.0.0" else group, IGMP(type=0x11, mrcode=mrcode, gaddr=group)), to)


def query6(c, station, to, group="::"):
    dst = "ff02::1" if group == "::" else group
    put(c, station, dst, mld(LL[station], dst, ICMPv6MLQuery(mladdr=group, mrd=10000 if group == "::" else 1000)), to)


def report(c, station, group, to=(), leave=False, **keys):
    dst = "224.0.0.2" if leave else group
    put(c, station, dst, igmp(V4[station], dst, IGMP(type=0x17 if leave else 0x16, mrcode=0, gaddr=group)), to, punt=not to and "drop" not in keys, **keys)


def report6(c, station, group, to=(), leave=False, **keys):
    dst = "ff02::2" if leave else group
    message = ICMPv6MLDone(mladdr=group) if leave else ICMPv6MLReport(mladdr=group)
    put(c, station, dst, mld(LL[station], dst, message), to, punt=not to and "drop" not in keys, **keys)


def records(c, station, groups, to=(), family=4, **keys):
    """IGMPv3 or MLDv2: (record type, group, sources)."""
    if family == 4:
        dst, message = "224.0.0.22", IGMPv3(type=0x22) / IGMPv3mr(records=[IGMPv3gr(rtype=kind, maddr=group, srcaddrs=list(sources)) for kind, group, sources in groups])
        what = igmp(V4[station], dst, message)
    else:
        dst = "ff02::16"
        what = mld(LL[station], dst, ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(rtype=kind, dst=group, sources=list(sources)) for kind, group, sources in groups]))
    put(c, station, dst, what, to, punt=not to and "drop" not in keys, **keys)


c = Case("snooping-listeners", "With a querier, a stream goes to who has reported for its group, and to the querier's member; others do not get it.", f"{SNOOPING}; RFC 2236 section 3", snooping())
data(c, A, G, (B, C))  # nobody asks yet
query(c, C, (A, B))
report(c, B, G, (C,))
data(c, A, G, (B, C))
data(c, B, G, (C,))
data(c, C, G, (B,))
data(c, A, H, (B, C))  # a group that nobody listens to
put(c, A, "224.0.0.251", rebuilt(v4(A4, "224.0.0.251", ttl=255) / udp()), (B, C))
put(c, A, G, rebuilt(v4(A4, "10.7.0.255") / udp()), (B, C), mac=TO_ALL)

c = Case("snooping-mld", "The same with MLD; groups of the link go to all whoever listens.", "scapy script: RFC 4541 section 3; RFC 2710 section 3", snooping())
data(c, A, G6, (B, C))
query6(c, C, (A, B))
report6(c, B, G6, (C,))
data(c, A, G6, (B, C))
data(c, B, G6, (C,))
for group in ("ff02::fb", "ff02::1:ff00:11"):
    data(c, A, group, (B, C))
    report6(c, B, group, (C,))
    data(c, A, group, (B, C))
data(c, A, G, (B, C))  # nobody asks for IPv4

c = Case("snooping-unknown-to-routers", "A group that nobody listens to goes to routers only, where the bridge says so; without any it is lost.", f"{SNOOPING}.2", snooping(unknown_multicast="routers"))
query(c, C, (A, B))
data(c, A, H, (C,))
data(c, C, H, (), drop="multicast-no-listener")
report(c, B, H, (C,))
data(c, C, H, (B,))
data(c, B, H, (C,))

c = Case("snooping-router-configured", "A multicast router that the operator names gets streams and reports; its question is not waited for.", f"{SNOOPING}.1",
         snooping(members=(b.ON_LAN, b.ON_FAR, {"port": "wan", "multicast_router": True}), unknown_multicast="routers"))
query(c, A, (B, C), src="0.0.0.0")  # without an address: no router
report(c, B, G, (C,))
data(c, A, G, (B, C))
data(c, A, H, (C,))
data(c, B, G, (C,))

c = Case("snooping-pim-hello", "Who says hello by PIM is a router.", f"{SNOOPING}.1; RFC 7761 section 4.9", snooping(unknown_multicast="routers"))
query(c, A, (B, C), src="0.0.0.0")
data(c, A, H, (), drop="multicast-no-listener")
put(c, B, "224.0.0.13", rebuilt(IP(src=B4, dst="224.0.0.13", ttl=1, proto=103) / Raw(bytes.fromhex("2000dfff"))), (A, C))
data(c, A, H, (B,))

c = Case("snooping-igmpv3", "Records of IGMPv3: joining by exclude and by sources, leaving by nothing included, with fast leave.", "scapy script: RFC 3376 section 4.2; RFC 4541 section 2.1", snooping(fast_leave=True, unknown_multicast="routers"))
query(c, C, (A, B))
records(c, B, [(4, G, ()), (5, H, (A4,)), (1, "239.9.9.9", ())], (C,))
for group, to in ((G, (B, C)), (H, (B, C)), ("239.9.9.9", (C,))):
    data(c, A, group, to)
records(c, B, [(6, H, (A4,)), (3, G, ())], (C,))
data(c, A, G, (C,))
data(c, A, H, (B, C))

c = Case("snooping-mldv2", "Records of MLDv2 likewise.", "scapy script: RFC 3810 section 5.2; RFC 4541 section 3", snooping(fast_leave=True, unknown_multicast="routers"))
query6(c, C, (A, B))
records(c, B, [(4, G6, ()), (3, H6, ("2001:db8::1",))], (C,), family=6)
data(c, A, G6, (B, C))
data(c, A, H6, (B, C))
records(c, B, [(3, G6, ())], (C,), family=6)
data(c, A, G6, (C,))

c = Case("snooping-leave", "After a leave the querier asks who is left: who answers stays, who does not is forgotten.", "scapy script: RFC 2236 section 3; RFC 4541 section 2.1.1", snooping(unknown_multicast="routers"))
query(c, C, (A, B))
report(c, A, G, (C,))
report(c, B, G, (C,))
report(c, B, G, (C,), leave=True)
data(c, C, G, (A, B))
query(c, C, (A, B), group=G, mrcode=10)
data(c, C, G, (A, B))
report(c, A, G, (C,))
c.at(4_500)
data(c, C, G, (A,))
query6(c, C, (A, B))
report6(c, B, G6, (C,))
report6(c, B, G6, (C,), leave=True)
query6(c, C, (A, B), group=G6)
data(c, C, G6, (B,))
c.at(9_000)
data(c, C, G6, (), drop="multicast-no-listener")

c = Case("snooping-ageing", "Who does not report within two queries is forgotten, and so is a querier.", "scapy script: RFC 3376 sections 8.4 and 8.5", snooping(query_interval_s=10, unknown_multicast="routers", ageing_s=1000))
query(c, C, (A, B))
report(c, B, G, (C,))
c.at(20_000)
query(c, C, (A, B))
data(c, A, G, (B, C))
c.at(32_000)
data(c, A, G, (C,))
c.at(48_000)
data(c, A, G, (B, C))

c = Case("snooping-limit", "A member listens to no more groups than it may; the report of one more is lost, and those it has stay.", SNOOPING, snooping(max_groups=2, unknown_multicast="routers"))
query(c, C, (A, B))
for group in ("239.0.0.1", "239.0.0.2"):
    report(c, B, group, (C,))
report(c, B, "239.0.0.3", drop="multicast-limit")
report(c, B, "239.0.0.1", (C,))
report(c, A, "239.0.0.3", (C,))
data(c, C, "239.0.0.2", (B,))
data(c, C, "239.0.0.3", (A,))

c = Case("snooping-malformed", "Messages that are none: another TTL, a wrong checksum, records that are not there, no group, cut off.", "scapy script: RFC 2236 section 2; RFC 3376 section 4; RFC 2710 section 3; RFC 3810 section 5", snooping())
c.faulty = True
good = igmp(B4, G, IGMP(type=0x16, mrcode=0, gaddr=G))
put(c, B, G, igmp(B4, G, IGMP(type=0x16, mrcode=0, gaddr=G), ttl=2), (), drop="igmp-invalid")
bad = bytearray(bytes(good))
bad[26] ^= 1
c.rx("far", on_far(B, group_mac(G), (0x0800, bytes(bad))), drop="igmp-invalid")
c.rx("far", on_far(B, group_mac(G), (0x0800, bytes(good)[:28])), drop="igmp-invalid")
put(c, B, "10.1.2.3", igmp(B4, "239.1.2.3", IGMP(type=0x16, mrcode=0, gaddr="10.1.2.3")), (), drop="igmp-invalid", mac=group_mac(G))
for count, sources in ((2, 0), (1, 1), (0xFFFF, 0), (1, 0xFFFF)):
    message = bytearray(bytes.fromhex("2200000000000000" "04000000ef010203"))
    message[6:8], message[10:12] = count.to_bytes(2, "big"), sources.to_bytes(2, "big")
    message[2:4] = ones_complement(bytes(message)).to_bytes(2, "big")
    put(c, B, "224.0.0.22", igmp(B4, "224.0.0.22", Raw(bytes(message))), (), drop="igmp-invalid")
odd = bytearray(bytes.fromhex("1164000000000000" "0000"))
odd[2:4] = ones_complement(bytes(odd)).to_bytes(2, "big")
put(c, B, "224.0.0.1", igmp(B4, "224.0.0.1", Raw(bytes(odd))), (), drop="igmp-invalid")
# Queries that those they ask do not hear.
ask = IGMP(type=0x11, mrcode=1, gaddr=G)
put(c, B, H, igmp(B4, H, ask), (), drop="igmp-invalid")
put(c, B, G, igmp(B4, G, ask), (), drop="igmp-invalid", mac=group_mac(H))
put(c, B, "224.0.0.1", igmp(B4, "224.0.0.1", ask), (), drop="igmp-invalid")
put(c, B, "ff02::2", mld(LL[B], "ff02::2", ICMPv6MLQuery(mladdr=G6, mrd=1)), (), drop="mld-invalid")
put(c, B, G6, mld(LL[B], G6, ICMPv6MLQuery(mladdr=G6, mrd=1)), (), drop="mld-invalid", mac=group_mac("ff02::1"))
put(c, B, G6, mld(LL[B], G6, ICMPv6MLReport(mladdr=G6), hlim=2), (), drop="mld-invalid")
put(c, B, G6, mld("2001:db8::b", G6, ICMPv6MLReport(mladdr=G6)), (), drop="mld-invalid")
put(c, B, G6, mld(LL[B], G6, ICMPv6MLReport(mladdr="2001:db8::1")), (), drop="mld-invalid")
put(c, B, "ff02::16", mld(LL[B], "ff02::16", ICMPv6MLReport2(records_number=3, records=[ICMPv6MLDMultAddrRec(rtype=4, dst=G6)])), (), drop="mld-invalid")
bad = bytearray(bytes(mld(LL[B], G6, ICMPv6MLReport(mladdr=G6))))
bad[70] ^= 1
c.rx("far", on_far(B, group_mac(G6), (0x86DD, bytes(bad))), drop="mld-invalid")
c.rx("far", on_far(B, group_mac(G6), (0x86DD, bytes(bad)[:60])), drop="mld-invalid")

c = Case("snooping-reports-and-storms", "A stream that is listened to is no storm; reports count as one.", SNOOPING,
         snooping(members=({**b.ON_LAN, "storm_pps": 2}, {**b.ON_FAR, "storm_pps": 3}, {"port": "wan"})))
query(c, C, (A, B))
for group in (G, H):
    report(c, B, group, (C,))
for _ in range(6):
    data(c, A, G, (B, C))
report(c, B, "239.0.0.9", (C,))
report(c, B, "239.0.0.10", drop="bridge-storm")

c = Case("snooping-vni", "Listeners behind the tunnels of a VNI get a stream, each remote a copy.", f"{SNOOPING}; RFC 7348 section 4.2", snooping(b.UNDERLAY, members=(b.ON_LAN, b.ON_FAR, b.over_wan([S4, S4B])), unknown_multicast="routers"))
ask = igmp(B4, "224.0.0.1", IGMP(type=0x11, mrcode=100, gaddr="0.0.0.0"))
c.rx("far", on_far(B, group_mac("224.0.0.1"), ask)).tx("lan", on_lan(B, group_mac("224.0.0.1"), ask))
for remote, mac in ((S4, SERVER), (S4B, SERVER2)):
    c.tx("wan", b.to_remote(B, group_mac("224.0.0.1"), ask, remote, mac))
tell = igmp(C4, G, IGMP(type=0x16, mrcode=0, gaddr=G))
c.rx("wan", b.from_remote(C, group_mac(G), tell)).tx("far", on_far(C, group_mac(G), tell))
stream = rebuilt(v4(A4, G) / udp())
c.rx("lan", on_lan(A, group_mac(G), stream)).tx("far", on_far(A, group_mac(G), stream))
for remote, mac in ((S4, SERVER), (S4B, SERVER2)):
    c.tx("wan", b.to_remote(A, group_mac(G), stream, remote, mac))

c = Case("snooping-and-zones", "A stream goes to listeners in zones that the rules let it into.", f"{SNOOPING}; DESIGN.md section 3",
         snooping(rule("tv", "allow", "web", {"zone": "db", "prefix": "239.0.0.0/8"}),
                  members=({**b.ON_LAN, "zone": "web"}, {**b.ON_FAR, "zone": "db"}, {"port": "wan", "zone": "lab"})))
query(c, C, (A, B))
report(c, B, G, (C,))
data(c, A, G, (B,))
data(c, B, G, (), drop="bridge-zone-deny")

c = Case("snooping-member-taken-out", "Another config: what is known of the members that stay holds.", "scapy script: DESIGN.md section 3", snooping(unknown_multicast="routers"))
query(c, C, (A, B))
report(c, B, G, (C,))
c.reload(snooping(members=MEMBERS[1:] + (b.ON_LAN,), unknown_multicast="routers"))
data(c, A, G, (B, C))
c.reload(b.net(b.bridge(MEMBERS)))
data(c, A, H, (B, C))


def own_query(group="0.0.0.0", tenths=100):
    dst = "224.0.0.1" if group == "0.0.0.0" else group
    head = IP(src=G4, dst=dst, ttl=1, tos=0xC0, id=0, flags="DF", proto=2, options=[IPOption_Router_Alert()])
    return group_mac(dst), rebuilt(head / IGMPv3(type=0x11, mrcode=tenths) / IGMPv3mq(gaddr=group, qrv=2, qqic=125))


def own_query6(link_local, group="::", millis=10000):
    dst = "ff02::1" if group == "::" else group
    head = IPv6(src=link_local, dst=dst, hlim=1) / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"")])
    return group_mac(dst), rebuilt(head / ICMPv6MLQuery2(mladdr=group, mrd=millis, QRV=2, QQIC=125))


ONLY_V4 = table("interface", name="gate", bridge="seg", addresses=["10.7.0.1/24"])
c = Case("snooping-querier", "The gateway asks who listens, and who is left when somebody leaves; a querier with a lower address takes its place.",
         "scapy script: RFC 3376 sections 4.1, 6.6.2 and 8; RFC 2236 section 3", snooping(ONLY_V4, querier=True, unknown_multicast="routers"), workers=(1,))
c.rx("lan", on_lan(A, TO_ALL, OTHER)).tx("far", on_far(A, TO_ALL, OTHER)).tx("wan", on_far(A, TO_ALL, OTHER))
c.at(1_500)
mac, asked = own_query()
for port, frame in (("lan", on_lan), ("far", on_far), ("wan", on_far)):
    c.tx(port, frame(GW, mac, asked), own=True)
report(c, B, G)
data(c, A, G, (B,))
report(c, B, G, leave=True)
mac, asked = own_query(G, 10)
c.tx("far", on_far(GW, mac, asked), own=True)
data(c, A, G, (B,))
c.at(6_000)
data(c, A, G, (), drop="multicast-no-listener")
query(c, C, (A, B), src="10.7.0.0")
report(c, B, G, (C,))
report(c, B, G, (C,), leave=True)  # it is for the other to ask
