"""Load balancing: which backend a flow gets, by the written-down algorithm; what becomes of flows when backends come and go."""

import ipaddress

from lib import *
from firewall import reset
from nat import AT_BLUE, BLUE, POOL, UPLINK

VIP, VIP6 = "203.0.113.10", "2001:db8:77::10"
MAGLEV = "scapy script: Maglev (NSDI 2016, section 3.4) and the keyed hash, both written from their definitions in Python"
FATE = "scapy script: DESIGN section 3 (fate of a live flow), the annotated config (on_failure)"
S = 1000

# -- the algorithm, from src/packet/hash.rs and the head of src/tables/balance/maglev.rs ------------------------
M64 = (1 << 64) - 1
SEED = (0xB7E151628AED2A6A, 0xBF7158809CF4F3C7)
KEY = (0x0001020304050607, 0x08090A0B0C0D0E0F)  # the default of system.key
FINISH = 0x9E3779B97F4A7C15


def fold(a, b):
    product = (a & M64) * (b & M64)
    return (product >> 64) ^ (product & M64)


def number(addr):
    addr = ipaddress.ip_address(addr)
    return int(addr) if addr.version == 6 else 0xFFFF << 32 | int(addr)


def below(h, limit):
    return (h >> 32) * limit >> 32


class Backend:
    def __init__(self, addr, port=None, weight=1, vrf="default", **keys):
        self.addr, self.port, self.weight, self.vrf, self.keys = addr, port, weight, vrf, keys

    def identity(self):
        return ipaddress.ip_address(self.addr).packed, self.port or 0, self.vrf

    def permutation(self, places):
        addr = number(self.addr)
        h = fold(fold((addr >> 64) ^ SEED[0], addr & M64 ^ SEED[1]) ^ SEED[0], (self.port or 0) ^ FINISH)
        for byte in self.vrf.encode():
            h = fold(h ^ byte, SEED[0])
        offset, skip = below(fold(h ^ SEED[0], SEED[1]), places), 1 + below(fold(h ^ SEED[1], SEED[0]), places - 1)
        return [(offset + j * skip) % places for j in range(places)]

    def said(self):
        if self.port is None:
            address = self.addr
        else:
            address = f"[{self.addr}]:{self.port}" if ":" in self.addr else f"{self.addr}:{self.port}"
        return {"address": address, **({"weight": self.weight} if self.weight != 1 else {}), **self.keys}


def maglev(backends):
    """A table; in each round of as many passes as the heaviest weighs, everybody has as many turns as it weighs."""
    backends = sorted(backends, key=Backend.identity)
    places = 65537 if len(backends) > 40 else 4099
    orders = [iter(b.permutation(places)) for b in backends]
    table, heaviest, done = [None] * places, max(b.weight for b in backends), 0
    for turn in itertools.count(1):
        for backend, order in zip(backends, orders):
            if turn * backend.weight // heaviest == (turn - 1) * backend.weight // heaviest:
                continue
            place = next(at for at in order if table[at] is None)
            table[place] = backend
            done += 1
            if done == places:
                return table


def chosen(backends, client, asked, proto, out=(), by_client=False):
    """The backend of a flow; those `out` take none."""
    (src, sport), (dst, dport) = (client, asked)
    if by_client:
        proto = sport = dport = 0
    src, dst = number(src), number(dst)
    h = fold((src >> 64) ^ KEY[0], src & M64 ^ KEY[1])
    h = fold((dst >> 64) ^ h, dst & M64 ^ KEY[0])
    h = fold(fold(h ^ KEY[1], (proto << 32 | sport << 16 | dport) ^ KEY[0]) ^ KEY[0], FINISH)
    table, at = maglev(backends), h
    for attempt in range(1, 9):
        backend = table[below(at, len(table))]
        if backend not in out:
            return backend
        at = fold(h ^ attempt, KEY[0])
    raise AssertionError("no such luck: tell the case with another client")


# -- stories ------------------------------------------------------------------------------------------------
A8, B8, A9 = Backend(H4, 8080), Backend(H4B, 8080), Backend(H4, 8081)
IN = rule("in", "allow", "outside", "inside")
# What no service takes goes where the routes say.
DARK, DARK6 = route("203.0.113.0/24", blackhole=True), route("2001:db8:77::/48", blackhole=True)


def service(backends, name="shop", address=VIP, serves="tcp/80", **keys):
    return table("service", name=name, address=address, service=serves, **keys, backends=[b.said() for b in backends])


def at(backend):
    return AT_HOST if backend.addr in (H4, H6) else AT_HOST2


def talk(c, client, asked, backend, **keys):
    return Talk(c, client, (backend.addr, backend.port or asked[1]), asked=asked, **{"here": AT_SERVER, "there": at(backend), **keys})


def clients(count, addr=S4, first=50000):
    return [(addr, first + n) for n in range(count)]


@story("service-spreads-by-weight", "Connections to a service go to its backends as its Maglev table says, and answers come from the service's address.",
       MAGLEV, zoned(service([A8, Backend(H4B, 8080, weight=3)]), IN, DARK))
def _(c):
    heavy = Backend(H4B, 8080, weight=3)
    found = []
    for client in clients(24):
        backend = chosen([A8, heavy], client, (VIP, 80), 6)
        found.append(backend)
        session = talk(c, client, (VIP, 80), backend).handshake()
        session.up(T("PA", 1001, 5001, data=100))
        session.down(T("PA", 5001, 1101, data=10))
    assert 2 <= sum(backend is A8 for backend in found) <= 12
    c.rx("wan", from_server(v4(S4, VIP) / T("S", 1)(50000, 81)), drop="blackhole")


@story("service-ipv6", "A service of IPv6: TCP and UDP to several ports, which stay.", MAGLEV + ", RFC 8200 section 8.1",
       zoned(service([Backend(H6), Backend(H6B)], address=VIP6, serves=["tcp/80", "udp/5000-5010"]), IN, DARK6))
def _(c):
    backends = [Backend(H6), Backend(H6B)]
    for n, client in enumerate(clients(8, S6)):
        session = talk(c, client, (VIP6, 80), chosen(backends, client, (VIP6, 80), 6)).handshake()
        session.up(T("PA", 1001, 5001, data=100))
        session = talk(c, client, (VIP6, 5000 + n), chosen(backends, client, (VIP6, 5000 + n), 17))
        session.up(U())
        session.down(U())
    c.rx("wan", from_server(v6(S6, VIP6) / U()(50000, 5011)), drop="blackhole")


@story("service-many-backends", "More than 40 backends have a table of 65,537 places.", MAGLEV,
       zoned(service([Backend(H4, 1000 + n) for n in range(41)]), IN))
def _(c):
    backends = [Backend(H4, 1000 + n) for n in range(41)]
    for client in clients(12):
        talk(c, client, (VIP, 80), chosen(backends, client, (VIP, 80), 6)).up(T("S", 1))


@story("service-with-source-nat", "With a source NAT towards the backends they see an address of the gateway's, and need no route back.",
       MAGLEV + ", RFC 2663 section 5 (twice NAT)",
       zoned(service([A8, B8]), IN, source_nat("back", [POOL], frm="outside", to="inside")))
def _(c):
    for n, client in enumerate(clients(3)):
        p = c.choice(f"p{n}", unlike=[f"p{m}" for m in range(n)])
        backend = chosen([A8, B8], client, (VIP, 80), 6)
        session = talk(c, client, (VIP, 80), backend, seen=(POOL, p)).handshake()
        session.up(T("PA", 1001, 5001, data=100))
        session.down(T("A", 5001, 1101))


@story("service-backends-in-a-vrf", "Backends may be in another VRF than the service, and in several.", MAGLEV,
       config(*UPLINK, *BLUE, service([Backend(H4, 8080, vrf="blue")]).replace(f'"{H4}:8080"', f'"{H4}:8080", vrf = "blue"'),
              rule("in", "allow", "outside", {"zone": "inside", "vrf": "blue"}, service="tcp/8080")))
def _(c):
    session = talk(c, (S4, 50000), (VIP, 80), Backend(H4, 8080), there=AT_BLUE).handshake()
    session.down(T("PA", 5001, 1001, data=10))


@story("service-without-backends", "A service whose backends are all drained or disabled refuses: TCP with a reset, others with port unreachable.",
       "scapy script: RFC 9293 section 3.10.7.1, RFC 1812 section 5.2.7.1, the annotated config",
       zoned(service([Backend(H4, state="drain"), Backend(H4B, state="disabled"), Backend("192.0.2.12", weight=0)], serves=["tcp/80", "udp/80"]), IN))
def _(c):
    syn = rebuilt(v4(S4, VIP) / T("S", 1)(50000, 80))
    c.error("wan", from_server(syn), "no-backend", to_server(reset(syn)))
    datagram = v4(S4, VIP) / U()(50000, 80)
    c.error("wan", from_server(datagram), "no-backend", to_server(icmp4(W4, S4, 3, 3, datagram)))


@story("service-precedence", "The longest prefix first; in it ports, a protocol, everything; services come before destination NAT.",
       "scapy script: the annotated config (service)",
       zoned(service([Backend(H4, 8001)], "one"), service([Backend(H4)], "range", serves=["tcp/81-83", "udp/53"]), service([Backend(H4B)], "tcp", serves="tcp"),
             table("service", name="net", address="203.0.113.0/28", backends=[{"address": H4B}]),
             destination_nat("rest", VIP, f"{H4}:9999", service="udp/99"), IN))
def _(c):
    for asked, backend, said in (((VIP, 80), Backend(H4, 8001), T("S", 1)), ((VIP, 81), Backend(H4), T("S", 1)), ((VIP, 84), Backend(H4B), T("S", 1)),
                                 ((VIP, 53), Backend(H4), U()), ((VIP, 54), Backend(H4B), U()), (("203.0.113.15", 53), Backend(H4B), U())):
        talk(c, (S4, 50000), asked, backend).up(said)
    ping = Talk(c, (S4, 5), (H4B, 5), asked=("203.0.113.14", 5), here=AT_SERVER, there=AT_HOST2)
    ping.up(ASK())
    ping.down(ANSWER())


@story("service-by-client", "If asked for, all flows of a client's address go to one backend, whatever their port and protocol.",
       MAGLEV, zoned(service([A8, B8, A9], serves=["tcp/80"], by_client=True), service([Backend(H4), Backend(H4B)], "other", address="203.0.113.11", serves="udp/53", by_client=True), IN))
def _(c):
    for host, end in ((S4, AT_SERVER), (S4B, AT_SERVER2)):
        for client in clients(4, host):
            talk(c, client, (VIP, 80), chosen([A8, B8, A9], client, (VIP, 80), 6, by_client=True), here=end).up(T("S", 1))
            asked = ("203.0.113.11", 53)
            talk(c, client, asked, chosen([Backend(H4), Backend(H4B)], client, asked, 17, by_client=True), here=end).up(U())


@story("service-own-port", "A port of the gateway's own address may be a service; the rest of the address stays the gateway's.",
       MAGLEV, zoned(service([A8, B8], address=W4), IN))
def _(c):
    talk(c, (S4, 50000), (W4, 80), chosen([A8, B8], (S4, 50000), (W4, 80), 6)).handshake()
    c.rx("wan", from_server(v4(S4, W4) / T("S", 1)(50000, 81)), drop="firewall-deny")


@story("service-answers-arp", "A service's address in a network of an interface is answered for by ARP and ND there.",
       "scapy script: RFC 826, RFC 4861 section 7.2.4 (as a proxy: not to be overridden), the annotated config",
       zoned(service([A8], address="198.51.100.77"), service([Backend(H6)], "six", address="2001:db8:2::77"), IN))
def _(c):
    c.answer("wan", arp_request(SERVER, S4, "198.51.100.77"), arp_reply(GW_WAN, "198.51.100.77", SERVER, S4))
    c.rx("wan", arp_request(SERVER, S4, "198.51.100.78"), punt=True)


@story("service-rules-see-backends", "Rules see the backend, not the service: what they do not allow to it is refused.",
       "scapy script: DESIGN section 3 (rules see real endpoints)",
       zoned(service([A8]), service([B8], "other", address="203.0.113.11"), rule("in", "allow", "outside", {"prefix": H4}, service="tcp/8080")))
def _(c):
    talk(c, (S4, 50000), (VIP, 80), A8).handshake()
    c.rx("wan", from_server(v4(S4, "203.0.113.11") / T("S", 1)(50000, 80)), drop="firewall-deny")
    c.rx("wan", from_server(v4(S4, H4B) / T("S", 1)(50000, 8080)), drop="firewall-deny")


@story("service-sctp", "SCTP is balanced by address alone: its ports and its checksum stay as they are.", MAGLEV + ", RFC 9260 section 6.8",
       zoned(service([Backend(H4), Backend(H4B)], serves="sctp/3868"), IN))
def _(c):
    for client in clients(4):
        backend = chosen([Backend(H4), Backend(H4B)], client, (VIP, 3868), 132)
        session = talk(c, client, (VIP, 3868), backend)
        session.up(lambda s, d: SCTP(sport=s, dport=d, tag=7, chksum=0x12345678) / payload(24))
        session.down(lambda s, d: SCTP(sport=s, dport=d, tag=9, chksum=0x87654321) / payload(24))


@story("service-fragments", "All fragments of a datagram go to the backend of its first, in whatever order they come.", MAGLEV,
       zoned(service([A8, B8], serves="udp/80"), IN))
def _(c):
    for number, client in enumerate(clients(3)):
        backend = chosen([A8, B8], client, (VIP, 80), 17)
        sent = rebuilt(v4(S4, VIP, id=number) / U(64)(client[1], 80))
        got = rebuilt(v4(S4, backend.addr, id=c.choice(f"id{number}", 0), ttl=63) / U(64)(client[1], backend.port))

        def cut(packet):
            head, data = bytes(packet)[:20], bytes(packet)[20:]
            for offset in (0, 40):
                piece = IP(head + data[offset:offset + 40])
                piece.len, piece.chksum, piece.frag = 20 + len(data[offset:offset + 40]), None, offset // 8
                piece.flags = "MF" if offset == 0 else 0
                yield rebuilt(piece)
        before, after = list(cut(sent)), list(cut(got))
        order = (0, 1) if number != 1 else (1, 0)
        for index in order:
            c.rx("wan", AT_SERVER.sends(before[index]))
        for index in (0, 1):
            c.tx(at(backend).port, at(backend).gets(after[index]), at=c.now_ms - 1)


# -- fates ------------------------------------------------------------------------------------------------
def on(backends, *, to, asked=(VIP, 80), proto=6, count=1, out=()):
    """The first clients whose flows get this backend."""
    every = ((S4, 50000 + n) for n in itertools.count())
    return list(itertools.islice((k for k in every if chosen(backends, k, asked, proto, out) is to), count))


def shop(*backends, **keys):
    return zoned(service(backends, **keys), IN)


def said(backend, **keys):
    return Backend(backend.addr, backend.port, backend.weight, **keys)


@story("fate-backend-drained", "A drained backend keeps its connections and gets no new ones; back in service it has its share again.", FATE, shop(A8, B8))
def _(c):
    (old, new) = on([A8, B8], to=A8, count=2)
    kept = talk(c, old, (VIP, 80), A8).handshake()
    c.reload(shop(said(A8, state="drain"), B8))
    kept.up(T("PA", 1001, 5001, data=10))
    kept.down(T("A", 5001, 1011))
    talk(c, new, (VIP, 80), B8).handshake()
    c.reload(shop(A8, B8))
    kept.up(T("PA", 1011, 5001, data=10))
    (third,) = on([A8, B8], to=A8, count=3)[2:]
    talk(c, third, (VIP, 80), A8).handshake()


@story("fate-backend-left-the-set", "A backend that is taken out of the set keeps its flows, of TCP and of UDP, until they end.", FATE, shop(A8, B8, serves=["tcp/80", "udp/80"]))
def _(c):
    (web,), (dns,) = on([A8, B8], to=A8), on([A8, B8], to=A8, proto=17)
    kept, asked = talk(c, web, (VIP, 80), A8).handshake(), talk(c, dns, (VIP, 80), A8)
    asked.up(U())
    asked.down(U())
    c.reload(shop(B8, serves=["tcp/80", "udp/80"]))
    kept.up(T("PA", 1001, 5001, data=10))
    asked.up(U())
    asked.down(U())
    kept.up(T("R", 1011, 0))
    c.at(20 * S)
    talk(c, web, (VIP, 80), B8).up(T("S", 9000))


@story("fate-set-grows", "New backends take none of the flows there are.", FATE, shop(A8))
def _(c):
    every = [(k, talk(c, k, (VIP, 80), A8).handshake()) for k in clients(6)]
    c.reload(shop(A8, B8, A9))
    for _, session in every:
        session.up(T("PA", 1001, 5001, data=10))
        session.down(T("A", 5001, 1011))
    assert any(chosen([A8, B8, A9], k, (VIP, 80), 6) is not A8 for k, _ in every)
    k = on([A8, B8, A9], to=A9, count=9)[8]
    talk(c, k, (VIP, 80), A9).handshake()


@story("fate-backend-disabled", "Connections of a disabled backend are reset, towards either side; datagrams go to another one.", FATE,
       shop(A8, B8, serves=["tcp/80", "udp/80"]))
def _(c):
    web = on([A8, B8], to=A8, count=2)
    (dns,) = on([A8, B8], to=A8, proto=17)
    first, second = (talk(c, k, (VIP, 80), A8).handshake() for k in web)
    asked = talk(c, dns, (VIP, 80), A8)
    asked.up(U())
    asked.down(U())
    (other,) = on([A8, B8], to=B8)
    stays = talk(c, other, (VIP, 80), B8).handshake()
    c.reload(shop(said(A8, state="disabled"), B8, serves=["tcp/80", "udp/80"]))
    sent = rebuilt(ip(web[0][0], VIP) / T("PA", 1001, 5001, data=10)(web[0][1], 80))
    c.error("wan", from_server(sent), "backend-failed", to_server(reset(sent)))
    sent = rebuilt(ip(H4, web[1][0]) / T("PA", 5001, 1001, data=10)(8080, web[1][1]))
    c.error("lan", from_host(sent), "backend-failed", to_host(reset(sent)))
    # Its client is told as well, when it speaks.
    sent = rebuilt(ip(web[1][0], VIP) / T("A", 1001, 5011)(web[1][1], 80))
    c.error("wan", from_server(sent), "backend-failed", to_server(reset(sent)))
    stays.up(T("PA", 1001, 5001, data=10))
    moved = talk(c, dns, (VIP, 80), B8)
    moved.up(U())
    moved.down(U())
    # The old one's answers do not pass for the new one's.
    c.rx("lan", from_host(ip(H4, dns[0]) / U()(8080, dns[1])), drop="firewall-deny")


@story("fate-backend-disabled-new", "Who opens anew where a connection of a disabled backend was is led to another one: nothing is refused.", FATE, shop(A8, B8))
def _(c):
    first, second = on([A8, B8], to=A8, count=2)
    talk(c, first, (VIP, 80), A8).handshake()
    talk(c, second, (VIP, 80), A8).up(T("S", 900))
    c.reload(shop(said(A8, state="disabled"), B8))
    # One whose client has forgotten it, and one that nobody has answered to.
    for client in (first, second):
        talk(c, client, (VIP, 80), B8).handshake()


@story("fate-backend-disabled-rehash", "With on_failure = rehash a connection goes on at another backend, in its midst.", FATE, shop(A8, B8, on_failure="rehash"))
def _(c):
    (web,) = on([A8, B8], to=A8)
    talk(c, web, (VIP, 80), A8).handshake()
    c.reload(shop(said(A8, state="disabled"), B8, on_failure="rehash"))
    moved = talk(c, web, (VIP, 80), B8)
    moved.up(T("PA", 1001, 5001, data=10))
    moved.down(T("R", 5001, 0))


@story("fate-backend-disabled-finish", "With on_failure = finish the flows of a disabled backend go on.", FATE, shop(A8, B8, on_failure="finish"))
def _(c):
    (web, new) = on([A8, B8], to=A8, count=2)
    kept = talk(c, web, (VIP, 80), A8).handshake()
    c.reload(shop(said(A8, state="disabled"), B8, on_failure="finish"))
    kept.up(T("PA", 1001, 5001, data=10))
    kept.down(T("A", 5001, 1011))
    talk(c, new, (VIP, 80), B8).up(T("S", 1))


@story("fate-service-deleted", "What a service's flows come to when it is deleted is its own word: reset here, finish there.", FATE,
       zoned(service([A8]), service([A9], "calm", address="203.0.113.11", on_failure="finish"), IN))
def _(c):
    hasty, calm = talk(c, (S4, 50000), (VIP, 80), A8).handshake(), talk(c, (S4, 50000), ("203.0.113.11", 80), A9).handshake()
    c.reload(zoned(IN))
    sent = rebuilt(ip(S4, VIP) / T("PA", 1001, 5001, data=10)(50000, 80))
    c.error("wan", from_server(sent), "backend-failed", to_server(reset(sent)))
    calm.up(T("PA", 1001, 5001, data=10))
    calm.down(T("A", 5001, 1011))
    assert hasty


@story("fate-backend-denied", "A rule that denies the backend ends its flows, whatever the service says.", FATE, shop(A8))
def _(c):
    session = talk(c, (S4, 50000), (VIP, 80), A8).handshake()
    c.reload(zoned(service([A8]), rule("no", "deny", "outside", "inside")))
    session.up(T("PA", 1001, 5001, data=10), drop="policy-changed")
