"""Routing: longest prefix, equal-cost paths, routes that drop, VRFs and what leaks between them."""

from lib import *


def hops_on_wan(*numbers):
    """Next hops 198.51.100.N / 2001:db8:2::N, each known by a MAC of its own."""
    return "\n".join(neighbour("wan", address, mac_of(n)) for n in numbers
                     for address in (f"198.51.100.{n}", f"2001:db8:2::{n}"))


def mac_of(n):
    return f"02:00:00:00:02:{n:02x}"


def to_hop(n, ip):
    return link(eth(GW_WAN, mac_of(n)), ip)


# -- longest prefix ------------------------------------------------------------------------------------------
V4_ROUTES = ["0.0.0.0/0", "10.0.0.0/8", "10.128.0.0/9", "10.128.0.0/16", "10.128.64.0/18", "10.128.64.0/24",
             "10.128.64.128/25", "10.128.64.200/32", "10.128.64.202/31"]
V4_LOOKUPS = [("9.255.255.255", 0), ("11.0.0.0", 0), ("10.0.0.0", 1), ("10.127.255.255", 1), ("10.129.0.0", 2),
              ("10.255.255.255", 2), ("10.128.0.1", 3), ("10.128.63.255", 3), ("10.128.65.0", 4), ("10.128.127.255", 4),
              ("10.128.128.0", 3), ("10.128.64.0", 5), ("10.128.64.127", 5), ("10.128.64.128", 6), ("10.128.64.255", 6),
              ("10.128.64.200", 7), ("10.128.64.199", 6), ("10.128.64.201", 6), ("10.128.64.202", 8), ("10.128.64.203", 8)]
c = Case("longest-prefix-ipv4", "The most specific of nested prefixes wins, at their first and last address and just outside.",
         "scapy script: RFC 1812 section 5.2.4.3 (longest match)",
         two_ports("\n".join(route(p, f"198.51.100.{50 + i}") for i, p in enumerate(V4_ROUTES)),
                   hops_on_wan(*range(50, 50 + len(V4_ROUTES)))))
for dst, wins in V4_LOOKUPS:
    ip = v4(dst=dst) / udp()
    c.through("lan", from_host(ip), "wan", to_hop(50 + wins, hop(ip)))

V6_ROUTES = ["::/0", "2001:db8:8000::/33", "2001:db8:8000::/48", "2001:db8:8000::/63", "2001:db8:8000::/64",
             "2001:db8:8000:0:8000::/65", "2001:db8:8000::ff00/120", "2001:db8:8000::ff10/128", "2000::/3"]
V6_LOOKUPS = [("4000::1", 0), ("1fff::1", 0), ("2001:db9::1", 8), ("3fff:ffff::1", 8), ("2001:db8:ffff::1", 1),
              ("2001:db8:8001::1", 1), ("2001:db8:8000:2::1", 2), ("2001:db8:8000:ffff::1", 2),
              ("2001:db8:8000:1::1", 3), ("2001:db8:8000::1", 4), ("2001:db8:8000:0:7fff:ffff:ffff:ffff", 4),
              ("2001:db8:8000:0:8000::", 5), ("2001:db8:8000:0:ffff:ffff:ffff:ffff", 5),
              ("2001:db8:8000::ff00", 6), ("2001:db8:8000::ffff", 6), ("2001:db8:8000::ff10", 7),
              ("2001:db8:8000::ff0f", 6), ("2001:db8:8000::ff11", 6), ("2001:db8:8000::feff", 4)]
c = Case("longest-prefix-ipv6", "The most specific of nested prefixes wins, on both sides of bit 64 too.",
         "scapy script: RFC 4291 section 2.3, longest match",
         two_ports("\n".join(route(p, f"2001:db8:2::{50 + i}") for i, p in enumerate(V6_ROUTES)),
                   hops_on_wan(*range(50, 50 + len(V6_ROUTES)))))
for dst, wins in V6_LOOKUPS:
    ip = v6(dst=dst) / udp()
    c.through("lan", from_host(ip), "wan", to_hop(50 + wins, hop(ip)))

c = Case("connected-beats-default", "A connected network is more specific than the default route, and a host route more specific than that.",
         "scapy script: RFC 1812 section 5.2.4.3",
         two_ports(route("0.0.0.0/0", "198.51.100.50"), route("198.51.100.77/32", "198.51.100.51"),
                   hops_on_wan(50, 51), neighbour("wan", "198.51.100.77", mac_of(77))))
for dst, n in ((S4, None), ("203.0.113.1", 50), ("198.51.100.77", 51)):
    ip = v4(dst=dst) / udp()
    c.through("lan", from_host(ip), "wan", to_hop(n, hop(ip)) if n else to_server(hop(ip)))

c = Case("one-armed", "In and out through the same interface, for a source that is itself behind a router: no redirect is due.",
         "scapy script: RFC 1812 section 5.2.7.2 (redirects are for on-link sources)",
         two_ports(route("10.1.0.0/16", "192.0.2.11"), route("10.2.0.0/16", H4), neighbour("lan", "192.0.2.11", HOST2)))
ip = v4("10.2.0.1", "10.1.0.1") / udp()
c.through("lan", from_host(ip), "lan", link(eth(GW_LAN, HOST2), hop(ip)))

# -- equal cost ----------------------------------------------------------------------------------------------
c = Case("ecmp-same-mac", "Two equal-cost next hops that are one machine: every flow arrives, whichever was chosen.",
         "scapy script: RFC 2992; both next hops have one MAC, so the hash does not show",
         two_ports(route("203.0.113.0/24", ["198.51.100.50", "198.51.100.51"]),
                   route("2001:db8:9::/48", ["2001:db8:2::50", "2001:db8:2::51"]),
                   *(neighbour("wan", a, SERVER) for a in ("198.51.100.50", "198.51.100.51", "2001:db8:2::50", "2001:db8:2::51"))))
for n in range(8):
    ip = v4(dst=f"203.0.113.{n}") / udp(sport=5000 + n)
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
    ip = v6(dst=f"2001:db8:9::{n}") / udp(sport=5000 + n)
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

for family in (4, 6):
    prefix, hops = ("203.0.113.0/24", [f"198.51.100.{n}" for n in (50, 51, 52)]) if family == 4 else (
        "2001:db8:9::/48", [f"2001:db8:2::{n}" for n in (50, 51, 52)])
    c = Case(f"ecmp-spreads-ipv{family}", "Three equal-cost next hops: each flow keeps to one of them, and all three get flows.",
             "scapy script: RFC 2992 sections 1 and 2; which next hop a flow takes is left open (ecmp_macs)",
             two_ports(route(prefix, hops), hops_on_wan(50, 51, 52)), ecmp_macs=[mac_of(n) for n in (50, 51, 52)])
    for again in range(3):
        for n in range(64):
            ip = (v4(dst=f"203.0.113.{n % 5 + 1}") if family == 4 else v6(dst=f"2001:db8:9::{n % 5 + 1}")) / udp(
                8 + again, sport=20000 + n)
            c.through("lan", from_host(ip), "wan", to_hop(50, hop(ip)))

# -- routes that drop ----------------------------------------------------------------------------------------
SINKS = [route("203.0.113.0/24", S4), route("2001:db8:9::/48", S6),
         route("203.0.113.128/25", blackhole=True), route("2001:db8:9:1::/64", blackhole=True)]
c = Case("route-blackhole", "A blackhole route swallows without an answer, a less specific route notwithstanding.",
         "scapy script: RFC 1812 section 5.2.4.3 (longest match), issue 2 section 4 (`blackhole`)", two_ports(*SINKS))
for inside, outside in ((v4(dst="203.0.113.128"), v4(dst="203.0.113.127")), (v6(dst="2001:db8:9:1::1"), v6(dst="2001:db8:9:2::1"))):
    c.rx("lan", from_host(inside / udp()), drop="blackhole")
    ip = outside / udp()
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("route-unreachable", "An unreachable route tells the sender: host unreachable, no route in IPv6.",
         "scapy script: RFC 792, RFC 1812 section 5.2.7.1, RFC 4443 section 3.1",
         two_ports(route("0.0.0.0/0", S4), route("::/0", S6), route("203.0.113.0/24", unreachable=True),
                   route("2001:db8:9::/48", unreachable=True)))
ip = v4(dst="203.0.113.7") / udp()
c.error("lan", from_host(ip), "unreachable-route", to_host(icmp4(L4, H4, 3, 1, ip)))
ip = v6(dst="2001:db8:9::7") / udp()
c.error("lan", from_host(ip), "unreachable-route", to_host(icmp6(L6, H6, ICMPv6DestUnreach(code=0), ip)))

c = Case("no-route", "No route: net unreachable from the ingress interface's address, no route in IPv6.",
         "scapy script: RFC 792 (3/0), RFC 1812 section 5.2.7.1, RFC 4443 section 3.1 (code 0)", two_ports())
ip = v4(dst="203.0.113.7", tos=0) / TCP(flags="S", sport=40000, dport=443)
c.error("lan", from_host(ip), "no-route", to_host(icmp4(L4, H4, 3, 0, ip)))
ip = v6(dst="2001:db8:9::7") / TCP(flags="S", sport=40000, dport=443)
c.error("lan", from_host(ip), "no-route", to_host(icmp6(L6, H6, ICMPv6DestUnreach(code=0), ip)))
ip = v4(S4, "203.0.113.7") / udp()
c.error("wan", from_server(ip), "no-route", link(eth(GW_WAN, SERVER), icmp4(W4, S4, 3, 0, ip)))

# -- VRFs ----------------------------------------------------------------------------------------------------
def tenant(name, vlan, vrf, mac):
    """A tenant with the addresses every tenant has: an inside VLAN on lan, an outside VLAN on wan."""
    return [interface(f"{name}-in", ["192.0.2.1/24", "2001:db8:1::1/64"], port="lan", vlan=vlan, vrf=vrf),
            interface(f"{name}-out", ["198.51.100.1/24", "2001:db8:2::1/64"], port="wan", vlan=vlan, vrf=vrf),
            neighbour(f"{name}-in", H4, mac + ":10"), neighbour(f"{name}-in", H6, mac + ":10"),
            neighbour(f"{name}-out", S4, mac + ":20"), neighbour(f"{name}-out", S6, mac + ":20")]


RED, BLUE = "02:00:00:00:0a", "02:00:00:00:0b"
OVERLAP = config(*tenant("red", 100, "red", RED), *tenant("blue", 200, "blue", BLUE),
                 route("203.0.113.0/24", S4, vrf="red"))
c = Case("vrf-overlap", "Two tenants with the same addresses never meet: same packet, two worlds.",
         "scapy script: RFC 4364 section 3 (one table per VRF)", OVERLAP)
for ip in (v4() / udp(), v6() / udp()):
    for vlan, mac in ((100, RED), (200, BLUE), (100, RED)):
        c.through("lan", link(eth(mac + ":10", GW_LAN, vlan), ip), "wan", link(eth(GW_WAN, mac + ":20", vlan), hop(ip)))
ip = v4(dst="203.0.113.5") / udp()  # a route of one is no route of the other
c.through("lan", link(eth(RED + ":10", GW_LAN, 100), ip), "wan", link(eth(GW_WAN, RED + ":20", 100), hop(ip)))
c.error("lan", link(eth(BLUE + ":10", GW_LAN, 200), ip), "no-route",
        link(eth(GW_LAN, BLUE + ":10", 200), icmp4(L4, H4, 3, 0, ip)))

c = Case("vrf-errors-stay-inside", "Errors and echo replies go back inside the tenant the packet came from, though another has the same addresses.",
         "scapy script: RFC 792, RFC 4443, RFC 4364 section 3", OVERLAP)
for vlan, mac in ((200, BLUE), (100, RED)):
    inside, back = eth(mac + ":10", GW_LAN, vlan), eth(GW_LAN, mac + ":10", vlan)
    ip = v4(ttl=1) / udp()
    c.error("lan", link(inside, ip), "ttl-expired", link(back, icmp4(L4, H4, 11, 0, ip)))
    ip = v6(hlim=1) / udp()
    c.error("lan", link(inside, ip), "ttl-expired", link(back, icmp6(L6, H6, ICMPv6TimeExceeded(), ip)))
    c.answer("lan", link(inside, v4(dst=L4) / ICMP(id=vlan, seq=1) / payload(8)),
             link(back, v4(L4, H4, id=0, flags="DF") / ICMP(type=0, id=vlan, seq=1) / payload(8)))

c = Case("vrf-own-address-elsewhere", "An address of the gateway in one VRF is an ordinary destination in another.",
         "scapy script: RFC 4364 section 3",
         config(interface("lan", ["192.0.2.1/24"], vrf="red"), interface("wan", ["198.51.100.1/24"], vrf="red"),
                interface("other", ["203.0.113.1/24"], port="lan", vlan=7, vrf="blue"),
                route("203.0.113.0/24", S4, vrf="red"), neighbour("lan", H4, HOST), neighbour("wan", S4, SERVER)))
ip = v4(dst="203.0.113.1") / ICMP(id=1, seq=1) / payload(8)
c.through("lan", from_host(ip), "wan", to_server(hop(ip)))

c = Case("vrf-leak", "A tenant's default route leaks into the outside VRF on purpose, and a route there leads back; nothing else crosses.",
         "scapy script: issue 2 section 4 (`ADDR@VRF`)",
         config(interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], vrf="blue"),
                interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"]),
                interface("dark", ["10.66.0.1/24"], port="wan", vlan=66, vrf="dark"),
                route("0.0.0.0/0", "198.51.100.20@default", vrf="blue"), route("::/0", "2001:db8:2::20@default", vrf="blue"),
                route("10.5.0.0/16", "192.0.2.10@blue"), route("2001:db8:5::/48", "2001:db8:1::10@blue"),
                HOST_NEIGHBOURS, SERVER_NEIGHBOURS))
for out, back in ((v4("10.5.0.1", "203.0.113.9"), v4("203.0.113.9", "10.5.0.1")),
                  (v6("2001:db8:5::1", "2001:db8:9::9"), v6("2001:db8:9::9", "2001:db8:5::1"))):
    ip = out / udp()
    c.through("lan", from_host(ip), "wan", to_server(hop(ip)))
    ip = back / udp()
    c.through("wan", from_server(ip), "lan", to_host(hop(ip)))
ip = v4(S4, H4) / udp()  # the tenant's connected network itself does not leak
c.error("wan", from_server(ip), "no-route", link(eth(GW_WAN, SERVER), icmp4(W4, S4, 3, 0, ip)))
