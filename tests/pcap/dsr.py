"""Direct server return: packets go to the backend of a service as they came, and what it answers goes past the gateway."""

from lib import *
from balance import A8, FATE, IN, MAGLEV, VIP, VIP6, Backend, at, chosen, clients, on, service
from firewall import reset
from nat import AT_BLUE, BLUE, POOL, UPLINK
from nat_icmp import error4, error6
from vxlan import overlay, source_port, tos_of

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


# -- through tunnels --------------------------------------------------------------------------------------------
FAR, FAR6 = "10.5.0.10", "2001:db8:5::10"     # backends behind a router, which is the host on lan
FARB = "10.5.0.11"
TO_FAR = (route("10.5.0.0/24", H4), route("2001:db8:5::/48", H6))
RFC2003 = "scapy script: RFC 2003 section 3.1 (DF set), RFC 2473 section 3, RFC 4213 section 3.1, RFC 6040 section 4.1"
GUE = "scapy script: draft-ietf-intarea-gue sections 3.1 and 4, RFC 6935 section 5, the hash of src/packet/hash.rs"


def looks(inner):
    """TOS of a packet, and the source port of a tunnel over UDP."""
    data = bytes(inner)
    return tos_of(link(eth(HOST, GW_LAN), data)), source_port(link(eth(HOST, GW_LAN), data))


def outer(inner, src, dst, upper, behind=b"", tos=None, ttl=64):
    data = behind + bytes(inner)
    tos = looks(inner)[0] if tos is None else tos
    if ":" in dst:
        return IPv6(src=src, dst=dst, nh=upper, hlim=ttl, tc=tos) / Raw(data)
    return IP(src=src, dst=dst, proto=upper, id=0, flags="DF", ttl=ttl, tos=tos) / Raw(data)


def family(inner):
    return 4 if bytes(inner)[0] >> 4 == 4 else 41


def ipip(inner, src=L4, dst=FAR, **keys):
    return outer(inner, src, dst, family(inner), **keys)


def gue(inner, src=L4, dst=FAR, port=6080, variant=0, checksum=False, tos=None, ttl=64):
    head = bytes([0, family(inner), 0, 0]) if variant == 0 else b""
    tos, sport = looks(inner)[0] if tos is None else tos, looks(inner)[1]
    said = UDP(sport=sport, dport=port, **({} if checksum else {"chksum": 0})) / Raw(head + bytes(inner))
    if ":" in dst:
        return IPv6(src=src, dst=dst, hlim=ttl, tc=tos) / said
    return IP(src=src, dst=dst, id=0, flags="DF", ttl=ttl, tos=tos) / said


class Through(Way):
    """The same through a tunnel: `wrap` puts the packet, a hop later, into it."""

    def __init__(self, case, client, asked, wrap, here=AT_SERVER, there=AT_HOST):
        self.case, self.client, self.asked, self.here, self.there, self.wrap = case, client, asked, here, there, wrap

    def up(self, said, drop=None, ttl=64, **keys):
        (src, sport), (dst, dport) = self.client, self.asked
        sent = rebuilt(ip(src, dst, ttl, **keys) / said(sport, dport))
        self.case.rx(self.here.port, self.here.sends(sent), drop=drop)
        if not drop:
            self.case.tx(self.there.port, self.there.gets(self.wrap(hop(sent))))
        return sent


def tunnelled(mode, *backends, name="shop", address=VIP, **keys):
    return dsr(list(backends), mode, **{"name": name, "address": address, "serves": BOTH, **keys})


def chat(c, way):
    way.opened()
    way.up(T("PA", 1001, 5001, data=300))
    way.up(T("FA", 1301, 2_000_000_000))


F, FB, F6 = Backend(FAR), Backend(FARB), Backend(FAR6)


@story("dsr-ipip-ipv4", "Backends in another subnet get packets in IP; the outer source is the interface's address, the next hop their router.", RFC2003,
       zoned(tunnelled("ipip", F, FB), IN, *TO_FAR))
def _(c):
    for client in clients(6):
        backend = chosen([F, FB], client, WEB, 6)
        chat(c, Through(c, client, WEB, lambda p: ipip(p, dst=backend.addr)))
    way = Through(c, (S4, 53000), DNS, lambda p: ipip(p, dst=chosen([F, FB], (S4, 53000), DNS, 17).addr))
    way.up(U(), flags=0)
    way.up(U(500, seed=3))


@story("dsr-ipip-ipv6", "IPv6 in IPv6, to a backend on the link and to one behind a router.", RFC2003,
       zoned(tunnelled("ipip", F6, address=VIP6), tunnelled("ipip", A6, name="near", address="2001:db8:77::11"), IN, *TO_FAR))
def _(c):
    chat(c, Through(c, (S6, 50000), (VIP6, 80), lambda p: ipip(p, L6, FAR6)))
    chat(c, Through(c, (S6, 50000), ("2001:db8:77::11", 80), lambda p: ipip(p, L6, H6)))


for mode, wrap in (("ipip", ipip), ("gue", gue)):
    @story(f"dsr-{mode}-other-family", "A service of IPv6 with backends that are reached over IPv4, and the other way round.", RFC2003 if mode == "ipip" else GUE,
           zoned(tunnelled(mode, F, address=VIP6), tunnelled(mode, F6, name="four"), IN, *TO_FAR))
    def _(c, wrap=wrap):
        chat(c, Through(c, (S6, 50000), (VIP6, 80), lambda p: wrap(p, L4, FAR)))
        chat(c, Through(c, (S4, 50000), WEB, lambda p: wrap(p, L6, FAR6)))


@story("dsr-gue-ipv4", "Over UDP each flow has a source port of its own; variant 0 has a header that says what is inside.", GUE, zoned(tunnelled("gue", F, FB), IN, *TO_FAR))
def _(c):
    for client in clients(6):
        backend = chosen([F, FB], client, WEB, 6)
        chat(c, Through(c, client, WEB, lambda p: gue(p, dst=backend.addr)))


@story("dsr-gue-ipv6", "The same over IPv6, with a checksum.", GUE + ", RFC 8200 section 8.1", zoned(tunnelled("gue", F6, address=VIP6, tunnel={"udp_checksum": True}), IN, *TO_FAR))
def _(c):
    chat(c, Through(c, (S6, 50000), (VIP6, 80), lambda p: gue(p, L6, FAR6, checksum=True)))
    chat(c, Through(c, (S6, 50001), (VIP6, 80), lambda p: gue(p, L6, FAR6, checksum=True)))


@story("dsr-gue-as-configured", "Variant 1 has no header; source, port, TTL and DSCP are what the config says, and with it comes a checksum.", GUE + ", RFC 2983 section 3 (pipe model)",
       zoned(tunnelled("gue", F, tunnel={"source": "192.0.2.5", "port": 5555, "variant": 1, "ttl": 9, "dscp": 10, "udp_checksum": True}), IN, *TO_FAR))
def _(c):
    for tos in (0, 2, 0xB9):
        way = Through(c, (S4, 50000 + tos), WEB, lambda p: gue(p, "192.0.2.5", port=5555, variant=1, checksum=True, ttl=9, tos=10 << 2 | tos & 3))
        way.up(T("S", 1), tos=tos)
        way.up(T("A", 2, 3), tos=tos)


@story("dsr-ipip-dscp-and-ecn", "DSCP and ECN of the packet inside stand in the outer header too.", "scapy script: RFC 6040 section 4.1 (normal mode), RFC 2983 section 3 (uniform model)",
       zoned(tunnelled("ipip", F), tunnelled("ipip", F6, name="six", address=VIP6), IN, *TO_FAR))
def _(c):
    for tos in (0, 1, 2, 3, 0xB8, 0xFF):
        Through(c, (S4, 50000), WEB, ipip).up(T("A", 1, 1), tos=tos)
        Through(c, (S6, 50000), (VIP6, 80), lambda p: ipip(p, L6, FAR6)).up(T("A", 1, 1), tc=tos)


for mode, wrap, head in (("ipip", ipip, 20), ("gue", gue, 32)):
    @story(f"dsr-{mode}-mtu", "What the tunnel has no room for is told to the client, or cut before it goes into the tunnel.",
           "scapy script: RFC 1191, RFC 8201, RFC 2003 section 5.1 (tunnel MTU), RFC 791 section 3.2", zoned(tunnelled(mode, F), tunnelled(mode, F6, name="six", address=VIP6), IN, *TO_FAR))
    def _(c, wrap=wrap, head=head):
        way = Through(c, (S4, 50000), WEB, wrap).opened()
        room = 1500 - head
        way.up(T("PA", 1001, 5001, data=room - 40))
        long = rebuilt(ip(S4, VIP) / T("PA", 1001, 5001, data=room - 39)(50000, 80))
        c.error("wan", from_server(long), "fragmentation-needed", to_server(icmp4(W4, S4, 3, 4, long, mtu=room)))
        way = Through(c, (S6, 50000), (VIP6, 80), lambda p: wrap(p, L6, FAR6)).opened()
        way.up(T("PA", 1001, 5001, data=room - 80))
        long = rebuilt(ip(S6, VIP6) / T("PA", 1001, 5001, data=room - 79)(50000, 80))
        c.error("wan", from_server(long), "packet-too-big", to_server(icmp6(W6, S6, ICMPv6PacketTooBig(mtu=room - 20), long)))
        cut = rebuilt(v4(S4, VIP, id=77) / U(1472)(53000, 53))
        c.rx("wan", from_server(cut))
        for piece in pieces(IP(bytes(hop(cut))), (room - 20) & ~7):
            c.tx("lan", to_host(wrap(piece)))
        # In fragments already: each goes by itself.
        for piece in pieces(rebuilt(v4(S4, VIP, id=78) / U(96)(53000, 53)), 56):
            c.through("wan", from_server(piece), "lan", to_host(wrap(hop(piece))))


@story("dsr-ipip-path-mtu", "A router on the way to the backend that takes less is believed: clients are told, in the name of the service's side.",
       "scapy script: RFC 2003 section 5.1, RFC 1191 section 3, RFC 8201 section 4", zoned(tunnelled("ipip", F), tunnelled("gue", F6, name="six", address=VIP6), IN, *TO_FAR))
def _(c):
    way = Through(c, (S4, 50000), WEB, ipip).opened()
    data = T("PA", 1001, 5001, data=1300)
    sent = way.up(data)
    c.rx("lan", from_host(error4(H4, L4, 3, 4, ipip(hop(sent)), mtu=1200, keep=40)), punt=True)
    told = rebuilt(ip(S4, VIP) / data(50000, 80))
    c.error("wan", from_server(told), "fragmentation-needed", to_server(icmp4(W4, S4, 3, 4, told, mtu=1180)))
    way.up(T("PA", 1001, 5001, data=1100))
    # Of a tunnel that there is none of, nothing is believed.
    c.rx("lan", from_host(error4(H4, L4, 3, 4, ipip(hop(sent), dst=FARB), mtu=600, keep=40)), drop="icmp-error-no-session")
    way.up(T("PA", 1001, 5001, data=1100))
    way = Through(c, (S6, 50000), (VIP6, 80), lambda p: gue(p, L6, FAR6)).opened()
    sent = way.up(data)
    c.rx("lan", from_host(error6(H6, L6, ICMPv6PacketTooBig(mtu=1300), gue(hop(sent), L6, FAR6))), punt=True)
    told = rebuilt(ip(S6, VIP6) / data(50000, 80))
    c.error("wan", from_server(told), "packet-too-big", to_server(icmp6(W6, S6, ICMPv6PacketTooBig(mtu=1248), told)))


@story("dsr-ipip-icmp-errors", "Errors of a client's routers go into the tunnel too.", "scapy script: RFC 5508 section 4, RFC 2003", zoned(tunnelled("ipip", F), IN, *TO_FAR))
def _(c):
    Through(c, (S4, 50000), WEB, ipip).opened()
    answer = rebuilt(ip(VIP, S4, 60) / T("PA", 5001, 1001, data=1200)(80, 50000))
    error = error4("198.51.100.99", VIP, 3, 4, answer, mtu=1000, keep=28)
    c.through("wan", from_server(error), "lan", to_host(ipip(hop(error))))


@story("dsr-ipip-tagged", "The tunnel leaves by a VLAN; padding of short frames does not go into it.", RFC2003, zoned(tunnelled("ipip", F), IN, *TO_FAR, lan_keys={"vlan": 7}))
def _(c):
    way = Through(c, (S4, 50000), WEB, ipip, there=End("lan", HOST, GW_LAN, 7))
    way.opened()
    short = rebuilt(ip(S4, VIP) / T("A", 1001, 5001)(50000, 80))
    c.rx("wan", from_server(short) + bytes(6))
    c.tx("lan", way.there.gets(ipip(hop(short))))


@story("dsr-ipip-many", "Packets of many tunnels in one burst, and of sessions that have none.", RFC2003,
       zoned(tunnelled("ipip", *(Backend(f"10.5.0.{n}") for n in range(10, 34))), rule("all", "allow"), *TO_FAR), workers=(1,))
def _(c):
    backends = [Backend(f"10.5.0.{n}") for n in range(10, 34)]
    others = Talk(c, (S4, 40000), (H4, 9), here=AT_SERVER, there=AT_HOST)
    others.up(U())
    for round_ in range(2):
        for n, client in enumerate(clients(40)):
            backend = chosen(backends, client, WEB, 6)
            sent = rebuilt(ip(S4, VIP) / T("PA", 1, 2, data=n)(client[1], 80))
            if n and round_:
                c.together()
            c.rx("wan", from_server(sent)).tx("lan", to_host(ipip(hop(sent), dst=backend.addr)))
        c.at(c.now_ms + 10)
        others.up(U())


@story("dsr-ipip-resolves", "The tunnel's next hop is asked for when nobody knows it; packets wait in front of the tunnel.", RFC2003 + ", RFC 826",
       two_ports(tunnelled("ipip", F), IN, *TO_FAR[:1], lan=interface("lan", ["192.0.2.1/24"], zone="inside"),
                 wan=interface("wan", ["198.51.100.1/24"], zone="outside"), neighbours=neighbour("wan", S4, SERVER)), workers=(1, 2))
def _(c):
    syn = rebuilt(ip(S4, VIP) / T("S", 1)(50000, 80))
    c.rx("wan", from_server(syn))
    c.tx("lan", arp_request(GW_LAN, L4, H4), own=True)
    c.rx("lan", arp_reply(HOST, H4, GW_LAN, L4), punt=True)
    c.tx("lan", to_host(ipip(hop(syn))))


@story("dsr-ipip-no-tunnel", "No tunnel goes through another one, and none where there is no route.", "scapy script: the annotated config (mode), RFC 1812 section 5.2.7.1",
       zoned(overlay(vtep=W4, remotes=[S4], zone="inside"), tunnelled("ipip", Backend("10.9.0.10")), tunnelled("ipip", Backend("10.66.0.1"), name="lost", address="203.0.113.11"), IN))
def _(c):
    syn = rebuilt(ip(S4, VIP) / T("S", 1)(50000, 80))
    c.error("wan", from_server(syn), "backend-no-tunnel", to_server(icmp4(W4, S4, 3, 1, syn)))
    syn = rebuilt(ip(S4, "203.0.113.11") / T("S", 1)(50000, 80))
    c.error("wan", from_server(syn), "no-route", to_server(icmp4(W4, S4, 3, 0, syn)))


@story("dsr-ipip-fates", "A flow keeps its tunnel as it keeps its backend: drained, gone from the set, another mode; and leaves both when the backend is disabled.", FATE,
       zoned(tunnelled("ipip", F, FB), IN, *TO_FAR))
def _(c):
    old, new = on([F, FB], to=F, count=2)
    kept = Through(c, old, WEB, ipip).opened()
    ended = Through(c, one([F, FB], FB), WEB, lambda p: ipip(p, dst=FARB)).opened()
    c.reload(zoned(tunnelled("ipip", Backend(FAR, state="drain"), FB), IN, *TO_FAR))
    kept.up(T("PA", 1001, 5001, data=10))
    Through(c, new, WEB, lambda p: ipip(p, dst=FARB)).opened()
    c.reload(zoned(tunnelled("gue", FB), IN, *TO_FAR))
    kept.up(T("PA", 1011, 5001, data=10))
    ended.up(T("PA", 1001, 5001, data=10))
    Through(c, (S4, 60000), WEB, lambda p: gue(p, dst=FARB)).opened()
    c.reload(zoned(tunnelled("gue", Backend(FARB, state="disabled")), IN, *TO_FAR))
    sent = rebuilt(ip(S4, VIP) / T("PA", 1011, 5001, data=10)(ended.client[1], 80))
    c.error("wan", from_server(sent), "backend-failed", to_server(reset(sent)))
    kept.up(T("PA", 1021, 5001, data=10))


@story("dsr-one-arm", "Client, gateway and backends on one link: the packet goes out where it came in.", L2, zoned(dsr([Backend(S4B)]), tunnelled("ipip", Backend(S4B), name="tunnel", address="203.0.113.11"), IN))
def _(c):
    Way(c, (S4, 50000), WEB, Backend(S4B), there=AT_SERVER2).opened()
    Through(c, (S4, 50000), ("203.0.113.11", 80), lambda p: ipip(p, W4, S4B), there=AT_SERVER2).opened()


@story("dsr-backends-in-a-vrf", "Backends in another VRF than the service, on the link and through a tunnel.", L2 + "; " + RFC2003,
       config(*UPLINK, *BLUE, dsr([Backend(H4)]).replace(f'"{H4}"', f'"{H4}", vrf = "blue"'),
              tunnelled("ipip", Backend(H4), name="tunnel", address="203.0.113.11").replace(f'"{H4}"', f'"{H4}", vrf = "blue"'),
              rule("in", "allow", "outside", {"zone": "inside", "vrf": "blue"})))
def _(c):
    Way(c, (S4, 50000), WEB, Backend(H4), there=AT_BLUE).opened()
    Through(c, (S4, 50000), ("203.0.113.11", 80), lambda p: ipip(p, "192.0.2.1", H4), there=AT_BLUE).opened()


@story("dsr-ipip-jumbo", "Long frames, in several buffers, go through tunnels too, whole or cut.", RFC2003 + ", RFC 791 section 3.2",
       zoned(tunnelled("ipip", F), tunnelled("gue", F6, name="six", address=VIP6, tunnel={"udp_checksum": True}), IN, *TO_FAR, lan_keys={"mtu": 6000}, wan_keys={"mtu": 9000}))
def _(c):
    way = Through(c, (S4, 50000), WEB, ipip).opened()
    way.up(T("PA", 1001, 5001, data=5940))
    cut = rebuilt(v4(S4, VIP, id=77) / U(7000)(53000, 53))
    c.rx("wan", from_server(cut))
    for piece in pieces(IP(bytes(hop(cut))), (5980 - 20) & ~7):
        c.tx("lan", to_host(ipip(piece)))
    way = Through(c, (S6, 50000), (VIP6, 80), lambda p: gue(p, L6, FAR6, checksum=True)).opened()
    way.up(T("PA", 1001, 5001, data=5888))
