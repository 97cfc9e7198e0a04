"""Direct server return: packets go to the backend of a service as they came, and what it answers goes past the gateway."""

from lib import *
from balance import A8, FATE, IN, MAGLEV, VIP, VIP6, Backend, at, chosen, clients, on, service
from firewall import reset
from nat import POOL
from nat_icmp import error4, error6

#: Backends keep the service's port.
A, B, A6, B6 = Backend(H4), Backend(H4B), Backend(H6), Backend(H6B)
L2 = "scapy script: RFC 1812 section 5.2 (only TTL and link header differ); " + MAGLEV.removeprefix("scapy script: ")
S = 1000
WEB, DNS = (VIP, 80), (VIP, 53)
BOTH = ["tcp/80", "udp/53"]


def dsr(backends, mode="l2-dsr", **keys):
    return service(backends, mode=mode, **keys)


def shop(*backends, net=(), lan_keys=None, wan_keys=None, **keys):
    return zoned(dsr(backends, **{"serves": BOTH, **keys}), IN, *net, lan_keys=lan_keys, wan_keys=wan_keys)


class Way:
    """What a client of a service says, and what its backend gets: the same, a hop later."""

    def __init__(self, case, client, asked, backend, here=AT_SERVER, there=None):
        self.case, self.client, self.asked, self.here = case, client, asked, here
        self.there = there or at(backend)

    def up(self, said, drop=None, ttl=64, **keys):
        (src, sport), (dst, dport) = self.client, self.asked
        sent = rebuilt(ip(src, dst, ttl, **keys) / said(sport, dport))
        self.case.rx(self.here.port, self.here.sends(sent), drop=drop)
        if not drop:
            self.case.tx(self.there.port, self.there.gets(hop(sent)))
        return sent

    def opened(self, isn=1000):
        """The client's half of RFC 9293 section 3.5, figure 6."""
        self.up(T("S", isn, options=[("MSS", 1460)]))
        self.up(T("A", isn + 1, 5001))
        return self


def one(backends, to, proto=6, out=(), asked=None):
    (client,) = on(backends, to=to, asked=asked or (WEB if proto == 6 else DNS), proto=proto, out=out)
    return client


# -- to the backend's MAC address ----------------------------------------------------------------------------
@story("dsr-l2-tcp", "A client's half of a connection, from SYN to FIN, goes to its backend with addresses and ports as they are.", L2, shop(A, B))
def _(c):
    for client in clients(8):
        way = Way(c, client, WEB, chosen([A, B], client, WEB, 6)).opened()
        way.up(T("PA", 1001, 5001, data=300))
        way.up(T("A", 1301, 60000))
        # Windows that nobody has seen the other side of.
        way.up(T("A", 1301, 2_000_000_000, window=1))
        way.up(T("FA", 1301, 2_000_000_001))
        way.up(T("A", 1302, 2_000_000_002))


@story("dsr-l2-ipv6", "The same with IPv6, and UDP.", L2 + ", RFC 8200 section 3", zoned(dsr([A6, B6], address=VIP6, serves=BOTH), IN))
def _(c):
    for client in clients(6, S6):
        way = Way(c, client, (VIP6, 80), chosen([A6, B6], client, (VIP6, 80), 6)).opened()
        way.up(T("PA", 1001, 5001, data=300))
        way.up(T("FA", 1301, 5001))
        way = Way(c, client, (VIP6, 53), chosen([A6, B6], client, (VIP6, 53), 17))
        way.up(U())
        way.up(U(100))


@story("dsr-l2-udp-stays", "A UDP flow that nobody answers to this way keeps its backend as long as one that is answered to, although the backend has left the set.",
       L2 + "; the annotated config (flows.udp_s)", shop(A, B))
def _(c):
    way = Way(c, one([A, B], A, 17), DNS, A)
    way.up(U())
    c.reload(shop(B))
    for turn in range(1, 4):
        c.at(turn * 250 * S)
        way.up(U(seed=turn))
    # Longer than flows.udp_s: it is a new flow.
    c.at(1100 * S)
    Way(c, way.client, DNS, B).up(U())


@story("dsr-l2-tcp-stays", "A connection of which one side is seen is established by the client's ACK and keeps its backend for hours; its FIN shortens that.",
       L2 + "; the annotated config (flows.tcp_established_s, flows.tcp_transitory_s)", shop(A, B))
def _(c):
    kept, ended, reset_ = (Way(c, k, WEB, A).opened() for k in on([A, B], to=A, count=3))
    c.reload(shop(B))
    c.at(7000 * S)
    kept.up(T("PA", 1001, 5001, data=10))
    ended.up(T("FA", 1001, 5001))
    ended.up(T("A", 1002, 5002))
    reset_.up(T("R", 1001))
    reset_.up(T("A", 1001, 5001))
    c.at(7200 * S)
    ended.up(T("A", 1002, 5003))
    c.at(7500 * S)
    # Whoever speaks still is taken up as one that goes on, where new ones go.
    Way(c, ended.client, WEB, B).up(T("A", 1002, 5004))
    Way(c, reset_.client, WEB, B).up(T("PA", 1001, 5001, data=9))
    c.at(14000 * S)
    kept.up(T("PA", 1011, 5001, data=10))


@story("dsr-l2-in-the-midst", "A connection of which the gateway knows nothing is taken up in its midst, where its tuple belongs; a lone RST is not.",
       L2 + "; the annotated config (mode)", shop(A, B))
def _(c):
    for client in clients(4):
        c.rx("wan", from_server(rebuilt(ip(S4, VIP) / T("R", 7)(client[1], 80))), drop="tcp-no-session")
        way = Way(c, client, WEB, chosen([A, B], client, WEB, 6))
        way.up(T("PA", 77777, 999, data=50))
        way.up(T("A", 77827, 1999))
    c.rx("wan", from_server(rebuilt(ip(S4, VIP) / T("SA", 7, 8)(59999, 80))), drop="tcp-no-session")
    c.rx("wan", from_server(rebuilt(ip(S4, VIP) / T("SF", 7, 8)(59998, 80))), drop="tcp-invalid")


@story("dsr-l2-opens-again", "A SYN behind a FIN or a RST is a new connection, which goes where new ones go; one in the midst of a connection goes to its backend.",
       L2 + ", RFC 9293 section 3.6.1", shop(A, B))
def _(c):
    first, second, third = (Way(c, k, WEB, A).opened() for k in on([A, B], to=A, count=3))
    c.reload(shop(B))
    first.up(T("FA", 1001, 5001))
    Way(c, first.client, WEB, B).opened(9000)
    second.up(T("R", 1001))
    Way(c, second.client, WEB, B).opened(9000)
    third.up(T("S", 9000))
    third.up(T("PA", 1001, 5001, data=10))


@story("dsr-l2-answers-this-way", "Answers that do come by the gateway, which the backend may have as its default gateway, pass as they are.",
       L2 + "; RFC 9293 section 3.5", shop(A, B))
def _(c):
    client = one([A, B], A)
    way = Talk(c, client, WEB, here=AT_SERVER, there=AT_HOST).handshake()
    way.up(T("PA", 1001, 5001, data=10))
    way.down(T("PA", 5001, 1011, data=600))
    way.down(T("FA", 5601, 1011))
    way.up(T("FA", 1011, 5602))
    way.down(T("A", 5602, 1012))
    asked = Talk(c, (S4, 53535), DNS, here=AT_SERVER, there=at(chosen([A, B], (S4, 53535), DNS, 17)))
    asked.up(U())
    asked.down(U(200))


@story("dsr-l2-weights-and-vlan", "Backends on a VLAN, by their weights.", L2,
       zoned(dsr([A, Backend(H4B, weight=3)], serves=BOTH), IN, lan_keys={"vlan": 30}))
def _(c):
    ends = {H4: End("lan", HOST, GW_LAN, 30), H4B: End("lan", HOST2, GW_LAN, 30)}
    for client in clients(12):
        backend = chosen([A, Backend(H4B, weight=3)], client, WEB, 6)
        Way(c, client, WEB, backend, there=ends[backend.addr]).opened()


@story("dsr-l2-every-protocol", "A service of everything: pings, SCTP and protocols without ports go to backends too.", L2,
       zoned(service([A, B], mode="l2-dsr").replace('service = "tcp/80"\n', ""), IN))
def _(c):
    ping = Way(c, (S4, 5), (VIP, 5), chosen([A, B], (S4, 5), (VIP, 5), 1))
    ping.up(ASK())
    ping.up(ASK(2))
    way = Way(c, (S4, 4000), (VIP, 3868), chosen([A, B], (S4, 4000), (VIP, 3868), 132))
    way.up(lambda s, d: SCTP(sport=s, dport=d, tag=7, chksum=0x12345678) / payload(24))
    plain = rebuilt(ip(S4, VIP, proto=47) / payload(40))
    c.through("wan", from_server(plain), "lan", at(chosen([A, B], (S4, 0), (VIP, 0), 47)).gets(hop(plain)))


@story("dsr-l2-keeps-source", "Backends answer the client themselves: source NAT does not touch what they get.", L2 + "; the annotated config (mode)",
       zoned(dsr([A, B], serves=BOTH), IN, source_nat("back", [POOL], frm="outside", to="inside")))
def _(c):
    client = one([A, B], B)
    Way(c, client, WEB, B).opened()


@story("dsr-l2-rules-see-backends", "Rules see the backend, not the service, as in every mode.", "scapy script: DESIGN section 3 (rules see real endpoints)",
       zoned(dsr([A]), dsr([B], name="other", address="203.0.113.11"), rule("in", "allow", "outside", {"prefix": H4}, service="tcp/80")))
def _(c):
    Way(c, (S4, 50000), WEB, A).opened()
    c.rx("wan", from_server(v4(S4, "203.0.113.11") / T("S", 1)(50000, 80)), drop="firewall-deny")


@story("dsr-l2-resolves", "A backend whose MAC address nobody knows yet is asked for it, over IPv4 and IPv6; packets wait.", L2 + ", RFC 826, RFC 4861 section 7.2.2",
       two_ports(dsr([Backend("192.0.2.77")]), dsr([Backend("2001:db8:1::77")], name="six", address=VIP6), IN,
                 lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], zone="inside"),
                 wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], zone="outside"), neighbours=SERVER_NEIGHBOURS), workers=(1, 2))
def _(c):
    mac = "02:00:00:00:01:77"
    syn = rebuilt(ip(S4, VIP) / T("S", 1)(50000, 80))
    c.rx("wan", from_server(syn))
    c.tx("lan", arp_request(GW_LAN, "192.0.2.1", "192.0.2.77"), own=True)
    c.rx("lan", arp_reply(mac, "192.0.2.77", GW_LAN, "192.0.2.1"), punt=True)
    c.tx("lan", link(eth(GW_LAN, mac), hop(syn)))
    syn = rebuilt(ip(S6, VIP6) / T("S", 1)(50000, 80))
    c.rx("wan", from_server(syn))
    c.tx("lan", solicit(GW_LAN, "2001:db8:1::1", "2001:db8:1::77"), own=True)
    c.rx("lan", advertise(mac, "2001:db8:1::77", GW_LAN, "2001:db8:1::1", R=0), punt=True)
    c.tx("lan", link(eth(GW_LAN, mac), hop(syn)))


@story("dsr-l2-not-on-link", "A backend that is on a link of another VRF only, and for this one behind a router, gets nothing: it would not know who it is for.",
       "scapy script: the annotated config (mode), RFC 1812 section 5.2.7.1",
       zoned(dsr([Backend("10.77.0.10")]), IN, interface("far", ["10.77.0.1/24"], port="dmz", vrf="blue"), route("10.77.0.0/24", H4),
             ports=("lan", "wan", "dmz")))
def _(c):
    syn = rebuilt(ip(S4, VIP) / T("S", 1)(50000, 80))
    c.error("wan", from_server(syn), "backend-not-on-link", to_server(icmp4(W4, S4, 3, 1, syn)))


@story("dsr-l2-icmp-errors", "Errors that a client's routers send to the service go to the backend of the packet they quote, untouched.",
       "scapy script: RFC 5508 section 4, RFC 1191 section 3, RFC 8201 section 4", zoned(dsr([A, B], serves=BOTH), dsr([A6, B6], name="six", address=VIP6, serves=BOTH), IN))
def _(c):
    for addr, vip, backends in ((S4, VIP, [A, B]), (S6, VIP6, [A6, B6])):
        for client in clients(3, addr):
            backend = chosen(backends, client, (vip, 80), 6)
            Way(c, client, (vip, 80), backend).opened()
            answer = rebuilt(ip(vip, client[0], 60) / T("PA", 5001, 1001, data=1200)(80, client[1]))
            if addr == S4:
                told = [error4("198.51.100.99", VIP, 3, 4, answer, mtu=1000, keep=28), error4("198.51.100.99", VIP, 11, 0, answer)]
            else:
                told = [error6("2001:db8:2::99", VIP6, ICMPv6PacketTooBig(mtu=1280), answer)]
            for error in told:
                c.through("wan", from_server(error), at(backend).port, at(backend).gets(hop(error)))
    other = rebuilt(ip(VIP, S4, 60) / T("PA", 5001, 1001, data=10)(80, 40404))
    c.rx("wan", from_server(error4("198.51.100.99", VIP, 3, 4, other, mtu=1000)), drop="icmp-error-no-session")


@story("dsr-l2-ttl-and-mtu", "It is a hop as any: TTL that has run out and packets too long for the link are told to the client, in the gateway's name.",
       "scapy script: RFC 1812 sections 5.3.1 and 5.2.7.1, RFC 1191, RFC 4443 section 3.2",
       zoned(dsr([A], serves=BOTH), dsr([A6], name="six", address=VIP6, serves=BOTH), IN, lan_keys={"mtu": 1280}))
def _(c):
    for addr, vip, backend, gate in ((S4, VIP, A, W4), (S6, VIP6, A6, W6)):
        way = Way(c, (addr, 50000), (vip, 80), backend).opened()
        gone = rebuilt(ip(addr, vip, 1) / T("PA", 1001, 5001, data=10)(50000, 80))
        long = rebuilt(ip(addr, vip) / T("PA", 1001, 5001, data=1300)(50000, 80))
        if addr == S4:
            c.error("wan", from_server(gone), "ttl-expired", to_server(icmp4(gate, addr, 11, 0, gone)))
            c.error("wan", from_server(long), "fragmentation-needed", to_server(icmp4(gate, addr, 3, 4, long, mtu=1280)))
        else:
            c.error("wan", from_server(gone), "ttl-expired", to_server(icmp6(gate, addr, ICMPv6TimeExceeded(), gone)))
            c.error("wan", from_server(long), "packet-too-big", to_server(icmp6(gate, addr, ICMPv6PacketTooBig(mtu=1280), long)))
        way.up(T("PA", 1001, 5001, data=10))


def pieces(packet, size):
    """A datagram of IPv4 in fragments of `size` bytes of data (RFC 791 section 3.2)."""
    head, data = bytes(packet)[:20], bytes(packet)[20:]
    for offset in range(0, len(data), size):
        piece = IP(head + data[offset:offset + size])
        piece.len, piece.chksum, piece.frag = 20 + len(data[offset:offset + size]), None, offset // 8
        piece.flags = "MF" if offset + size < len(data) else 0
        yield rebuilt(piece)


@story("dsr-l2-fragments", "Fragments of a datagram follow its first to the backend; what is too long and may be cut is cut.", L2 + ", RFC 791 section 3.2", 
       zoned(dsr([A, B], serves=BOTH), IN, lan_keys={"mtu": 1280}))
def _(c):
    for n, client in enumerate(clients(3)):
        backend = chosen([A, B], client, DNS, 17)
        first, second = pieces(rebuilt(v4(S4, VIP, id=n) / U(96)(client[1], 53)), 56)
        for piece in (first, second):
            c.through("wan", from_server(piece), "lan", at(backend).gets(hop(piece)))
        long = rebuilt(v4(S4, VIP, id=100 + n) / U(1400)(client[1], 53))
        c.rx("wan", from_server(long))
        for piece in pieces(IP(bytes(hop(long))), 1256):
            c.tx("lan", at(backend).gets(piece))


# -- fates ------------------------------------------------------------------------------------------------------
@story("dsr-fate-drained", "A drained backend keeps its flows and gets no new ones.", FATE, shop(A, B))
def _(c):
    old, new = on([A, B], to=A, count=2)
    kept = Way(c, old, WEB, A).opened()
    c.reload(shop(Backend(H4, state="drain"), B))
    kept.up(T("PA", 1001, 5001, data=10))
    Way(c, new, WEB, B).opened()
    c.reload(shop(A, B))
    kept.up(T("PA", 1011, 5001, data=10))


@story("dsr-fate-disabled", "Connections of a disabled backend are reset when the client speaks; datagrams go to another one.", FATE, shop(A, B))
def _(c):
    web, dns = one([A, B], A), one([A, B], A, 17)
    Way(c, web, WEB, A).opened()
    Way(c, dns, DNS, A).up(U())
    c.reload(shop(Backend(H4, state="disabled"), B))
    sent = rebuilt(ip(S4, VIP) / T("PA", 1001, 5001, data=10)(web[1], 80))
    c.error("wan", from_server(sent), "backend-failed", to_server(reset(sent)))
    Way(c, dns, DNS, B).up(U())
    Way(c, web, WEB, B).opened(7000)


@story("dsr-fate-rehash-and-finish", "With on_failure = rehash a connection goes on at another backend, with finish at its own.", FATE,
       zoned(dsr([A, B], on_failure="rehash"), dsr([A, B], name="calm", address="203.0.113.11", on_failure="finish"), IN))
def _(c):
    calm = ("203.0.113.11", 80)
    hasty, stays = one([A, B], A), one([A, B], A, asked=calm)
    Way(c, hasty, WEB, A).opened()
    kept = Way(c, stays, calm, A).opened()
    gone = [Backend(H4, state="disabled"), B]
    c.reload(zoned(dsr(gone, on_failure="rehash"), dsr(gone, name="calm", address=calm[0], on_failure="finish"), IN))
    Way(c, hasty, WEB, B).up(T("PA", 1001, 5001, data=10))
    kept.up(T("PA", 1001, 5001, data=10))


@story("dsr-fate-mode-changes", "Flows keep the way they were begun with when the service gets another mode; new ones have the new one.", FATE, shop(A8, serves="tcp/80", mode="nat"))
def _(c):
    nat = Talk(c, (S4, 50000), (H4, 8080), asked=WEB, here=AT_SERVER, there=AT_HOST).handshake()
    c.reload(shop(A, serves="tcp/80"))
    nat.up(T("PA", 1001, 5001, data=10))
    nat.down(T("A", 5001, 1011))
    direct = Way(c, (S4, 50001), WEB, A).opened()
    c.reload(shop(A8, serves="tcp/80", mode="nat"))
    direct.up(T("PA", 1001, 5001, data=10))
    nat.up(T("PA", 1011, 5001, data=10))
    Talk(c, (S4, 50002), (H4, 8080), asked=WEB, here=AT_SERVER, there=AT_HOST).handshake()


@story("dsr-fate-backend-moves", "A backend that is found on another link of the same zone is followed; its MAC address is asked for there.", "scapy script: DESIGN section 3 (egress moved, same zone: follows), RFC 826",
       config(interface("lan", ["192.0.2.1/24"], zone="inside"), interface("dmz", ["10.3.0.1/24"], zone="inside"),
              interface("wan", ["198.51.100.1/24"], zone="outside"), neighbour("lan", H4, HOST), neighbour("wan", S4, SERVER), dsr([A]), IN, ports=("lan", "wan", "dmz")))
def _(c):
    way = Way(c, (S4, 50000), WEB, A).opened()
    c.reload(config(interface("lan", ["10.3.0.1/24"], zone="inside"), interface("dmz", ["192.0.2.1/24"], zone="inside"),
                    interface("wan", ["198.51.100.1/24"], zone="outside"), neighbour("dmz", H4, HOST2), neighbour("wan", S4, SERVER), dsr([A]), IN, ports=("lan", "wan", "dmz")))
    way.there = End("dmz", HOST2, GW_DMZ)
    way.up(T("PA", 1001, 5001, data=10))


@story("dsr-fate-denied", "A rule that denies the backend ends its flows.", FATE, shop(A))
def _(c):
    way = Way(c, (S4, 50000), WEB, A).opened()
    c.reload(zoned(dsr([A], serves=BOTH), rule("no", "deny", "outside", "inside")))
    way.up(T("PA", 1001, 5001, data=10), drop="policy-changed")
