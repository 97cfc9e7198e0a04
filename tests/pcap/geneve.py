"""Geneve tunnels (RFC 8926): as VXLAN's, with options that may be passed over and some that must not."""

from scapy.contrib.geneve import GENEVE, GeneveOptions

from lib import *
import bridge as b
import vxlan as x
from vxlan import GW_WAN, INSIDE, T4, T6, VNI, from_station, net, overlay, to_station

RFC = "scapy script (scapy.contrib.geneve): RFC 8926"
ETHERNET = 0x6558
PORT = 6081
BLUE = overlay(encapsulation="geneve")
BLUE6 = overlay(vtep=W6, remotes=[S6], encapsulation="geneve")


def tunnel(inner, *ends, vni=VNI, header=None, **keys):
    header = GENEVE(proto=ETHERNET, vni=vni) if header is None else header
    return x.tunnel(inner, *ends, header=header, **{"port": PORT, **keys})


def arriving(inner, src=S4, dst=W4, **keys):
    return tunnel(inner, src, dst, **{"sport": 55555, **keys})


def with_options(count, vni=VNI, **keys):
    """Options that nobody knows, four bytes of data each."""
    options = [GeneveOptions(classid=0x0102, type=7 + n, length=1, data=b"abcd") for n in range(count)]
    return GENEVE(proto=ETHERNET, vni=vni, options=options, **keys)


for name, blue, ends in (("v4", BLUE, (W4, S4)), ("v6", BLUE6, (W6, S6))):
    c = Case(f"geneve-encap-{name}", "Routed packets leave through a tunnel without options, each flow by a source port of its own.",
             f"{RFC} sections 3.3 and 3.4; the hash of src/packet/hash.rs", net(blue=blue))
    for ip in (v4(dst=T4) / udp(), v4(dst=T4) / udp(sport=40001), v4(dst=T4, tos=0xBA) / TCP(sport=1, dport=2), v6(dst=T6) / udp()):
        ip = rebuilt(ip)
        c.through("lan", from_host(ip), "wan", to_server(tunnel(to_station(hop(ip)), *ends)))

    c = Case(f"geneve-decap-{name}", "What comes out of a tunnel is routed, whatever options it has that may be passed over.", f"{RFC} section 3.5", net(blue=blue))
    back = tuple(reversed(ends))
    for ip in INSIDE:
        for header in (None, with_options(1), with_options(3), with_options(31, optionlen=62)):  # scapy works out fewer than eight by itself
            c.through("wan", from_server(arriving(from_station(ip), *back, header=header)), "lan", to_host(hop(ip)))
            c.through("wan", from_server(arriving(from_station(ip), *back, header=header, checksum=True)), "lan", to_host(hop(ip)))
    # Section 3.4: reserved bits are ignored.
    odd = bytearray(bytes(arriving(from_station(INSIDE[0]), *back)))
    at = (20 if name == "v4" else 40) + 8
    odd[at + 1], odd[at + 7] = 0x3F, 0xFF
    c.through("wan", from_server(bytes(odd)), "lan", to_host(hop(INSIDE[0])))

c = Case("geneve-decap-refused", "Control messages, critical options, other versions and protocols, options that do not end: none of it comes in.", f"{RFC} sections 3.4 and 3.5", net(blue=BLUE))
good = bytes(arriving(from_station(INSIDE[0])))


def spoiled(at, value):
    return good[:at] + bytes([value]) + good[at + 1:]


for header in (GENEVE(proto=ETHERNET, vni=VNI, oam=1), with_options(1, critical=1), GENEVE(proto=ETHERNET, vni=VNI, version=1), GENEVE(proto=0x0800, vni=VNI)):
    c.rx("wan", from_server(arriving(from_station(INSIDE[0]), header=header)), drop="vxlan-invalid")
c.rx("wan", from_server(spoiled(28, 0x3F)), drop="vxlan-invalid")  # longer options than there is packet
c.rx("wan", from_server(arriving(from_station(INSIDE[0]), header=GENEVE(proto=ETHERNET, vni=VNI + 1))), drop="vxlan-unknown-vni")
c.rx("wan", from_server(arriving(from_station(INSIDE[0]), S4B)), drop="vxlan-unknown-remote")
c.rx("wan", from_server(x.arriving(from_station(INSIDE[0]), port=PORT)), drop="vxlan-invalid")
c.rx("wan", from_server(x.arriving(from_station(INSIDE[0]))), drop="no-host-path")
c.through("wan", from_server(good), "lan", to_host(hop(INSIDE[0])))

c = Case("geneve-beside-vxlan", "A VXLAN segment and a Geneve segment at one tunnel end point: out of the one and into the other.", f"{RFC} section 3.3; RFC 7348 section 5",
         net(overlay("red", x.VNI2, addresses=["10.10.0.1/24"]), neighbour("red", "10.10.0.10", x.STATION2), blue=BLUE))
for ip in (rebuilt(v4(T4, "10.10.0.10") / udp()), rebuilt(v4(T4, "10.10.0.10") / udp(700))):
    for header in (None, with_options(2)):
        c.through("wan", from_server(arriving(from_station(ip), header=header)), "wan", to_server(x.tunnel(to_station(hop(ip), x.STATION2), vni=x.VNI2)))
    back = rebuilt(v4("10.10.0.10", T4) / udp())
    c.through("wan", from_server(x.arriving(from_station(back, x.STATION2), vni=x.VNI2)), "wan", to_server(tunnel(to_station(hop(back)))))

c = Case("geneve-ecn", "Congestion that the underlay marked is carried over, also where options and a checksum stand in between.", f"{RFC} section 4.4.2; RFC 6040 section 4.2", net(blue=BLUE6))
for header in (None, with_options(2)):
    for checksum in (False, True):
        for ip in (rebuilt(v4(T4, H4, tos=2) / udp()), rebuilt(v6(T6, H6, tc=2) / udp())):
            marked = rebuilt(v4(T4, H4, tos=3) / udp()) if IP in ip else rebuilt(v6(T6, H6, tc=3) / udp())
            c.through("wan", from_server(arriving(from_station(ip), S6, W6, tos=3, header=header, checksum=checksum)), "lan", to_host(hop(marked)))

c = Case("geneve-bridged", "A VLAN and a Geneve segment in one bridge.", f"{RFC}; IEEE 802.1Q clause 8.8", b.net(b.bridge([b.ON_LAN, b.over_wan([S4], encapsulation="geneve")]), b.UNDERLAY))
there = lambda src, dst, what: link(eth(GW_WAN, SERVER), tunnel(b.framed(eth(src, dst), what), W4, S4, vni=x.VNI))
back = lambda src, dst, what, header=None: link(eth(SERVER, GW_WAN), arriving(b.framed(eth(src, dst), what), header=header))
c.rx("lan", b.on_lan(b.A, TO_ALL := b.TO_ALL, b.OTHER)).tx("wan", there(b.A, TO_ALL, b.OTHER))
c.rx("wan", back(b.C, b.A, b.BA)).tx("lan", b.on_lan(b.C, b.A, b.BA))
c.rx("lan", b.on_lan(b.A, b.C, b.AB)).tx("wan", there(b.A, b.C, b.AB))
c.rx("wan", back(b.C, b.A, b.BA, with_options(2, vni=x.VNI))).tx("lan", b.on_lan(b.C, b.A, b.BA))
