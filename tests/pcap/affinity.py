"""Affinity: a client's new flows go to the backend of its latest one, until it has begun none for a while."""

import ipaddress

from lib import *
from balance import A8, A9, AT_BLUE, B8, BLUE, FATE, IN, MAGLEV, POOL, UPLINK, VIP, VIP6, Backend, at, chosen, said, service, talk
from dsr import Way, dsr

STAYS = MAGLEV + "; the annotated config (affinity)"
S = 1000
#: Long enough for any of these stories.
HOUR = {"timeout_s": 3600}


def sticky(*backends, affinity=HOUR, **keys):
    return service(backends, affinity=affinity, **keys)


def shop(*backends, **keys):
    return zoned(sticky(*backends, **keys), IN)


def prefix(addr, length):
    return str(ipaddress.ip_network(f"{addr}/{length}", strict=False).network_address)


def home(backends, addr, asked=VIP, out=()):
    """Where a client goes of whom nothing is remembered."""
    addr = prefix(addr, 64) if ":" in addr else addr
    return chosen(backends, (addr, 0), (asked, 0), 0, out)


def who(count, to, *sets, asked=VIP, net="198.51.100.{}", first=20):
    """Clients whose home is this backend of each of these sets, or the first of pairs of both."""
    pairs = to if isinstance(to, tuple) else (to,) * len(sets)
    every = (net.format(n) for n in range(first, 250))
    found = (addr for addr in every if all(home(of, addr, asked) is one for of, one in zip(sets, pairs)))
    return list(itertools.islice(found, count))


def comes(c, addr, backend, port, asked=(VIP, 80), words=None):
    """A new flow of a client."""
    return talk(c, (addr, port), asked, backend).up(words or T("S", 1))


@story("affinity-one-backend", "Flows of a client go together, of whatever port and protocol, and clients are spread; what they say is answered as ever.", STAYS,
       shop(A8, B8, A9, serves=["tcp/80", "udp/80"]))
def _(c):
    for addr, end in ((S4, AT_SERVER), (S4B, AT_SERVER2)):
        backend = home([A8, B8, A9], addr)
        for port in range(50000, 50003):
            session = talk(c, (addr, port), (VIP, 80), backend, here=end).handshake()
            session.down(T("PA", 5001, 1001, data=10))
            asked = talk(c, (addr, port), (VIP, 80), backend, here=end)
            asked.up(U())
            asked.down(U())
    (other,) = who(1, B8, [A8, B8, A9])
    for port in range(50000, 50003):
        comes(c, other, B8, port)
        comes(c, other, B8, port, words=U())


@story("affinity-set-grows", "Clients stay where their latest flow went when backends come; who is new goes where the table now says.", STAYS, shop(A8))
def _(c):
    # Those whose home the new one is.
    old, new = who(3, B8, [A8, B8]), who(3, B8, [A8, B8], first=100)
    for addr in old:
        comes(c, addr, A8, 50000)
    c.reload(shop(A8, B8))
    for addr in old:
        comes(c, addr, A8, 50001)
        comes(c, addr, A8, 50002)
    for addr in new:
        comes(c, addr, B8, 50000)


@story("affinity-timeout", "A client that has begun no flow for the time goes where the table says, connections that are there go on.", STAYS,
       shop(A8, affinity={"timeout_s": 60}))
def _(c):
    grown = shop(A8, B8, affinity={"timeout_s": 60})
    (addr,) = who(1, B8, [A8, B8])
    comes(c, addr, A8, 50000)
    other = talk(c, (S4, 50000), (VIP, 80), A8).handshake()
    c.reload(grown)
    c.at(58 * S)
    comes(c, addr, A8, 50001)
    c.at(121 * S)
    comes(c, addr, B8, 50002)
    comes(c, addr, B8, 50003)
    other.up(T("PA", 1001, 5001, data=10))


@story("affinity-renewed", "Each new flow begins the time anew; packets of flows there are do not.", STAYS, shop(A8, affinity={"timeout_s": 30}, serves=["tcp/80", "udp/80"]))
def _(c):
    grown = shop(A8, B8, affinity={"timeout_s": 30}, serves=["tcp/80", "udp/80"])
    comes_often, speaks = who(2, B8, [A8, B8])
    comes(c, comes_often, A8, 50000)
    flow = talk(c, (speaks, 50000), (VIP, 80), A8)
    flow.up(U())
    c.reload(grown)
    for turn in range(1, 6):
        c.at(turn * 20 * S)
        comes(c, comes_often, A8, 50000 + turn)
        flow.up(U(seed=turn))
    comes(c, speaks, B8, 50001)
    c.at(140 * S)
    comes(c, comes_often, B8, 51000)


@story("affinity-drained", "A drained backend ends it: its clients stay with the one they get then, also when it takes flows again, and who did not come meanwhile is forgotten.",
       STAYS, shop(A8))
def _(c):
    moved, silent = who(2, B8, [A8, B8])
    for addr in (moved, silent):
        comes(c, addr, A8, 50000)
    c.reload(shop(A8, B8))
    comes(c, moved, A8, 50001)
    c.reload(shop(said(A8, state="drain"), B8))
    comes(c, moved, B8, 50002)
    (back,) = who(1, A8, [A8, B8])
    comes(c, back, B8, 50000)
    c.reload(shop(A8, B8))
    comes(c, moved, B8, 50003)
    comes(c, silent, B8, 50001)
    # At home with the one that was drained, and with the other since.
    comes(c, back, B8, 50001)


@story("affinity-weight-zero", "To weigh nothing is to be drained.", STAYS, shop(A8))
def _(c):
    (addr,) = who(1, B8, [A8, B8])
    comes(c, addr, A8, 50000)
    c.reload(shop(Backend(H4, 8080, weight=0), B8))
    comes(c, addr, B8, 50001)
    c.reload(shop(A8, B8))
    comes(c, addr, B8, 50002)


@story("affinity-backend-left", "A backend that has left the set and comes back finds none of its clients; its flows go on meanwhile.", STAYS, shop(A8, A9))
def _(c):
    (addr,) = who(1, (A8, B8), [A8, A9], [A8, B8])
    (kept,) = [S4] if home([A8, A9], S4) is A8 else [S4B]
    end = AT_SERVER if kept == S4 else AT_SERVER2
    session = talk(c, (kept, 50000), (VIP, 80), A8, here=end).handshake()
    comes(c, addr, A8, 50000)
    c.reload(shop(B8))
    session.up(T("PA", 1001, 5001, data=10))
    session.down(T("A", 5001, 1011))
    c.reload(shop(A8, B8))
    comes(c, addr, B8, 50001)


@story("affinity-rehash", "A connection that goes on at another backend in its midst takes its client along.", STAYS + "; " + FATE.removeprefix("scapy script: "),
       shop(A8, on_failure="rehash"))
def _(c):
    (addr,) = [S4] if home([A8, B8, A9], S4) is A8 else [S4B]
    end = AT_SERVER if addr == S4 else AT_SERVER2
    talk(c, (addr, 50000), (VIP, 80), A8, here=end).handshake()
    c.reload(shop(said(A8, state="disabled"), B8, on_failure="rehash"))
    moved = talk(c, (addr, 50000), (VIP, 80), B8, here=end)
    moved.up(T("PA", 1001, 5001, data=10))
    c.reload(shop(A8, B8, A9, on_failure="rehash"))
    comes(c, addr, B8, 50001)
    moved.up(T("PA", 1011, 5001, data=10))


@story("affinity-ipv6", "Addresses of one /64 are one client.", STAYS + ", RFC 8981",
       zoned(sticky(Backend(H6), address=VIP6), IN))
def _(c):
    one, two = Backend(H6), Backend(H6B)
    net = next(n for n in range(1, 99) if home([one, two], f"2001:db8:9:{n:x}::1", VIP6) is two)
    a, b = f"2001:db8:9:{net:x}::1", f"2001:db8:9:{net:x}:ffff::2"
    other = next(f"2001:db8:9:{n:x}::1" for n in range(net + 1, 99) if home([one, two], f"2001:db8:9:{n:x}::1", VIP6) is two)
    comes(c, a, one, 50000, (VIP6, 80))
    c.reload(zoned(sticky(one, two, address=VIP6), IN))
    comes(c, b, one, 50000, (VIP6, 80))
    comes(c, other, two, 50000, (VIP6, 80))


SINGLE = {"timeout_s": 3600, "ipv4_prefix": 24, "ipv6_prefix": 128}


@story("affinity-prefixes", "What one client is may be said: here IPv4 by /24, IPv6 by address.", STAYS,
       zoned(sticky(A8, affinity=SINGLE), sticky(Backend(H6), name="six", address=VIP6, affinity=SINGLE), IN))
def _(c):
    one, two = Backend(H6), Backend(H6B)

    def of(backends, addr, asked):
        return chosen(backends, (addr, 0), (asked, 0), 0)
    net = next(n for n in range(1, 99) if of([A8, B8], f"10.77.{n}.0", VIP) is B8)
    new = next(n for n in range(net + 1, 99) if of([A8, B8], f"10.77.{n}.0", VIP) is B8)
    both = [n for n in range(1, 99) if of([one, two], f"2001:db8:9::{n:x}", VIP6) is two][:2]
    comes(c, f"10.77.{net}.1", A8, 50000)
    comes(c, f"2001:db8:9::{both[0]:x}", one, 50000, (VIP6, 80))
    c.reload(zoned(sticky(A8, B8, affinity=SINGLE), sticky(one, two, name="six", address=VIP6, affinity=SINGLE), IN))
    comes(c, f"10.77.{net}.254", A8, 50000)
    comes(c, f"10.77.{new}.254", B8, 50000)
    comes(c, f"2001:db8:9::{both[0]:x}", one, 50001, (VIP6, 80))
    comes(c, f"2001:db8:9::{both[1]:x}", two, 50000, (VIP6, 80))


OTHER = "203.0.113.11"


@story("affinity-services-apart", "Each service remembers for itself, and one that does not say so remembers nothing.", STAYS,
       zoned(sticky(A8), sticky(B8, name="other", address=OTHER), service([A8], "plain", address="203.0.113.12"), IN))
def _(c):
    addr = next(addr for addr in who(200, B8, [A8, B8]) if home([A8, B8], addr, OTHER) is A8)
    plain = next(port for port in range(50001, 51000) if chosen([A8, B8], (addr, port), ("203.0.113.12", 80), 6) is B8)
    for port, asked, backend in ((40000, VIP, A8), (40001, OTHER, B8), (40002, "203.0.113.12", A8)):
        comes(c, addr, backend, port, (asked, 80))
    c.reload(zoned(sticky(A8, B8), sticky(A8, B8, name="other", address=OTHER), service([A8, B8], "plain", address="203.0.113.12"), IN))
    comes(c, addr, A8, 40003, (VIP, 80))
    comes(c, addr, B8, 40004, (OTHER, 80))
    comes(c, addr, B8, plain, ("203.0.113.12", 80))


@story("affinity-service-of-a-prefix", "All addresses of a service of a prefix are one service.", STAYS, zoned(sticky(A8, address="203.0.113.0/28"), IN))
def _(c):
    (addr,) = who(1, B8, [A8, B8], asked="203.0.113.0")
    (new,) = who(1, B8, [A8, B8], asked="203.0.113.0", first=120)
    comes(c, addr, A8, 50000, ("203.0.113.3", 80))
    c.reload(zoned(sticky(A8, B8, address="203.0.113.0/28"), IN))
    comes(c, addr, A8, 50001, ("203.0.113.9", 80))
    for last in range(8):
        comes(c, new, B8, 50000 + last, (f"203.0.113.{last}", 80))


@story("affinity-refused", "A flow that a rule refuses is none: nothing is remembered of it.", STAYS, zoned(sticky(A8), rule("no", "deny", "outside", "inside")))
def _(c):
    (addr,) = who(1, B8, [A8, B8])
    c.rx("wan", from_server(rebuilt(ip(addr, VIP) / T("S", 1)(50000, 80))), drop="firewall-deny")
    c.reload(shop(A8, B8))
    comes(c, addr, B8, 50001)


@story("affinity-dsr", "With direct server return it is the same.", STAYS, zoned(dsr([Backend(H4)], affinity=HOUR), IN))
def _(c):
    one, two = Backend(H4), Backend(H4B)
    (addr,) = who(1, two, [one, two])
    (new,) = who(1, two, [one, two], first=120)
    Way(c, (addr, 50000), (VIP, 80), one).up(T("S", 1))
    c.reload(zoned(dsr([one, two], affinity=HOUR), IN))
    Way(c, (addr, 50001), (VIP, 80), one).up(T("S", 1))
    Way(c, (new, 50001), (VIP, 80), two).up(T("S", 1))


@story("affinity-with-source-nat", "Behind a source NAT, where mappings of a client belong to one worker, it is the same.", STAYS + ", RFC 2663 section 5 (twice NAT)",
       zoned(sticky(B8), IN, source_nat("back", [POOL], frm="outside", to="inside")))
def _(c):
    assert home([A8, B8], S4) is A8
    for n in range(3):
        if n == 1:
            c.reload(zoned(sticky(A8, B8), IN, source_nat("back", [POOL], frm="outside", to="inside")))
        p = c.choice(f"p{n}", unlike=[f"p{m}" for m in range(n)])
        session = talk(c, (S4, 50000 + n), (VIP, 80), B8, seen=(POOL, p)).handshake()
        session.down(T("PA", 5001, 1001, data=10))


@story("affinity-in-a-vrf", "A backend in another VRF than the service is kept as any.", STAYS,
       config(*UPLINK, *BLUE, sticky(Backend(H4, 8080)).replace(f'"{H4}:8080"', f'"{H4}:8080", vrf = "blue"'),
              rule("in", "allow", "outside", {"zone": "inside", "vrf": "blue"}, service="tcp/8080-8081")))
def _(c):
    one, two = Backend(H4, 8080, vrf="blue"), Backend(H4, 8081, vrf="blue")
    blue = [f'"{H4}:{port}", vrf = "blue"' for port in (8080, 8081)]
    (addr,) = who(1, two, [one, two])
    (new,) = who(1, two, [one, two], first=120)
    talk(c, (addr, 50000), (VIP, 80), one, there=AT_BLUE).up(T("S", 1))
    both = sticky(Backend(H4, 8080), Backend(H4, 8081)).replace(f'"{H4}:8080"', blue[0]).replace(f'"{H4}:8081"', blue[1])
    c.reload(config(*UPLINK, *BLUE, both, rule("in", "allow", "outside", {"zone": "inside", "vrf": "blue"}, service="tcp/8080-8081")))
    talk(c, (addr, 50001), (VIP, 80), one, there=AT_BLUE).up(T("S", 1))
    talk(c, (new, 50001), (VIP, 80), two, there=AT_BLUE).up(T("S", 1))
