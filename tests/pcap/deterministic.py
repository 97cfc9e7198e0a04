"""Deterministic source NAT (RFC 7422): whose a port is follows from the config."""

from ipaddress import ip_address

from lib import *
from fates import FATE
from nat import A, AT_BLUE, B, DNS, DNS2, POOL, POOL2, RED, nat, tenants, told

RFC = "scapy script: RFC 7422 section 2 (sequential assignment, system ports left out)"
BOTH = [f"{POOL}-{POOL2}"]


def sharing(pool, hosts, name="cgn", vrf=None, **keys):
    """A deterministic source NAT of these hosts."""
    return source_nat(name, pool, frm={"zone": "inside", "prefix": hosts, **({"vrf": vrf} if vrf else {})},
                      deterministic=True, **keys)


def place(host, first, count, pool, per_address=None, ports=None, low=1024, high=65535):
    """The outside address and ports of a host, by RFC 7422 section 2: `count` hosts from `first` on; ports in 64s."""
    units = (high + 1) // 64 - -(-low // 64)
    per_address = per_address or (units * 64 // ports if ports else -(-count // len(pool)))
    each = ports or units // per_address * 64
    n = int(ip_address(host)) - int(ip_address(first))
    assert 0 <= n < count
    start = -(-low // 64) * 64 + n % per_address * each
    return pool[n // per_address], start, start + each - 1


def host(c, name, inside, at, unlike=(), **keys):
    """A conversation of an inside endpoint, whose port outside must be one of the host's."""
    outside, first, last = at
    return Talk(c, inside, keys.pop("to", DNS), seen=(outside, c.choice(name, first, last, unlike=unlike)), **keys)


# The RFC's own example, with other addresses: 16 hosts on 2 addresses are 8 on each, with 8064 ports.
def sixteen(inside):
    at = place(inside, "192.0.2.0", 16, [POOL, POOL2])
    assert at[2] - at[1] == 8063
    return at


@story("nat-deterministic", "Each host has an outside address and ports by its own address, for all protocols, well-known source ports too; what comes to the ports of others finds nobody.",
       RFC, zoned(OUT, rule("in", "allow", "outside", "inside"), sharing(BOTH, "192.0.2.0/28")))
def _(c):
    assert (sixteen(H4), sixteen(H4B)) == ((POOL2, 17152, 25215), (POOL2, 25216, 33279))
    names = [f"u{n}" for n in range(6)]
    talks = [host(c, names[n], (H4, port), sixteen(H4), unlike=names[:n]) for n, port in enumerate((40000, 40001, 500, 1, 65535, 25300))]
    for talk in talks:
        talk.up(U())
        talk.down(U())
    other = host(c, "other", B, sixteen(H4B), here=AT_HOST2)
    other.up(U())
    host(c, "tcp", A, sixteen(H4), to=(S4, 443)).handshake()
    ping = host(c, "id", (H4, 7), sixteen(H4), to=(S4, 0))
    ping.up(ASK())
    ping.down(ANSWER())
    talks[0].down(U())
    other.down(U())
    far = Talk(c, A, DNS2, seen=talks[0].seen, there=AT_SERVER2)  # the mapping is endpoint-independent as any other
    far.up(U())
    far.down(U())
    for port in (80, 1023, 1024, 17151, 33280, 65535):
        c.rx("wan", from_server(v4(S4, POOL2) / U()(53, port)), drop="nat-no-mapping")
    c.rx("wan", from_server(v4(S4, POOL) / U()(53, 20000)), drop="nat-no-mapping")


@story("nat-deterministic-hairpin", "Two hosts of a deterministic NAT reach each other by their outside ports.",
       RFC + ", RFC 4787 REQ-9", zoned(OUT, sharing(BOTH, "192.0.2.0/28")))
def _(c):
    b = host(c, "b", B, sixteen(H4B), here=AT_HOST2)
    b.up(U())
    outside, first, last = sixteen(H4)
    talk = Talk(c, A, B, seen=(outside, c.choice("a", first, last)), asked=b.seen, here=AT_HOST, there=AT_HOST2)
    talk.up(U())
    talk.down(U())


@story("nat-deterministic-exhausted", "A host that has used up its own ports is refused more, with administratively prohibited, although others use none of theirs; each protocol has all of them.",
       RFC + ", RFC 6888 REQ-4, RFC 5508 REQ-8", zoned(OUT, sharing([POOL], "192.0.2.8-192.0.2.11", ports_per_host=64, ports="20032-20351")))
def _(c):
    at = place(H4, "192.0.2.8", 4, [POOL], ports=64, low=20032, high=20351)
    assert at == (POOL, 20160, 20223)
    names = [f"p{n:02}" for n in range(64)]
    talks = [host(c, names[n], (H4, 30000 + n), at, unlike=names[:n]) for n in range(64)]
    for talk in talks:
        talk.up(U(4))
    lost = rebuilt(v4() / U()(40000, 53))
    c.error("lan", from_host(lost), "nat-host-quota", told(lost, 13))
    talks[0].up(U())
    talks[63].down(U())
    host(c, "tcp", A, at, to=(S4, 443)).up(T("S", 1))
    host(c, "other", B, place(H4B, "192.0.2.8", 4, [POOL], ports=64, low=20032, high=20351), here=AT_HOST2).up(U())


@story("nat-deterministic-overflow", "With overflow a host that has used up its own ports gets a block of those that are no host's.",
       RFC + " and step 3 (dynamic pool)",
       zoned(OUT, sharing([POOL], "192.0.2.8-192.0.2.11", hosts_per_address=4, ports_per_host=64, ports="20032-20351", overflow=True)))
def _(c):
    at = place(H4, "192.0.2.8", 4, [POOL], per_address=4, ports=64, low=20032, high=20351)
    names = [f"p{n:02}" for n in range(64)]
    for n in range(64):
        host(c, names[n], (H4, 30000 + n), at, unlike=names[:n]).up(U(4))
    over = host(c, "over", A, (POOL, 20288, 20351))
    over.up(U())
    over.down(U())


@story("nat-deterministic-ranges", "Hosts of several ranges are counted through them in ascending order; whoever is in none is not of this NAT.",
       RFC, zoned(OUT, sharing([POOL], ["192.0.2.11", "192.0.2.4/31", "192.0.2.9"], ports_per_host=1024), sharing([POOL2], ["192.0.2.10"], "one")))
def _(c):
    # .4, .5, .9, .11: the fourth.
    host(c, "b", B, (POOL, 1024 + 3 * 1024, 1024 + 4 * 1024 - 1), here=AT_HOST2).up(U())
    host(c, "a", A, place(H4, H4, 1, [POOL2])).up(U())  # alone at an address: all of its ports


@story("nat-deterministic-two-tenants", "Two VRFs with the same inside addresses have a deterministic NAT each.",
       RFC + ", RFC 4364 section 3", tenants(sharing([POOL], "192.0.2.0/28", "red", "red"), sharing([POOL2], "192.0.2.10/31", "blue", "blue")))
def _(c):
    red = host(c, "red", A, place(H4, "192.0.2.0", 16, [POOL]), here=RED)
    blue = host(c, "blue", A, place(H4, "192.0.2.10", 2, [POOL2]), here=AT_BLUE)
    for talk in (red, blue):
        talk.up(U())
    for talk in (red, blue):
        talk.down(U())


@story("fate-deterministic-parameters-changed", "When the parameters of a deterministic NAT change, live sessions keep their ports; new ones are computed anew.",
       FATE + ", RFC 6888 REQ-11d (mappings are not taken away)", zoned(OUT, sharing([POOL], "192.0.2.0/28")))
def _(c):
    before, after = place(H4, "192.0.2.0", 16, [POOL]), place(H4, "192.0.2.0", 16, [POOL], ports=1024)
    assert (before[1], after[1]) == (41344, 11264)
    old = host(c, "old", A, before)
    tcp = host(c, "tcp", A, before, to=(S4, 443)).handshake()
    old.up(U())
    c.reload(zoned(OUT, sharing([POOL], "192.0.2.0/28", ports_per_host=1024)))
    old.down(U())
    tcp.down(T("PA", 5001, 1001, data=10))
    new = host(c, "new", A, after, to=(S4, 54))
    new.up(U())
    old.up(U())
    tcp.up(T("A", 1001, 5011))
    new.down(U())


@story("fate-nat-becomes-deterministic", "When a dynamic NAT becomes deterministic, live sessions keep their ports; new ones of whichever host get what is computed and nobody uses.",
       FATE + ", RFC 6888 REQ-11d (mappings are not taken away)", zoned(OUT, source_nat("cgn", [POOL], ports="20096-20223"), extra=nat(block_size=128)))
def _(c):
    p = c.choice("p", 20096, 20223)
    old = Talk(c, B, DNS, seen=(POOL, p), here=AT_HOST2)
    old.up(U())
    # The block of H4B is a whole address's; each of two hosts has one half of it now.
    c.reload(zoned(OUT, sharing([POOL], "192.0.2.10/31", ports="20096-20223")))
    lost = rebuilt(v4() / U()(40000, 53))
    c.error("lan", from_host(lost), "nat-host-quota", told(lost, 13))
    old.down(U())
    old.up(U())


@story("fate-deterministic-grows-under-traffic", "Hosts whose place stays where it is, when others come behind, go on with the mappings and the ports they have; whoever moves has all of its new place.",
       FATE + ", RFC 4787 REQ-1, " + RFC[14:], zoned(OUT, sharing([POOL], "192.0.2.0/28", ports_per_host=64)))
def _(c):
    at = place(H4, "192.0.2.0", 16, [POOL], ports=64)
    old = host(c, "old", A, at)
    old.up(U())
    c.reload(zoned(OUT, sharing(BOTH, "192.0.2.0/27", ports_per_host=64)))
    far = Talk(c, A, DNS2, seen=old.seen, there=AT_SERVER2)
    far.up(U())
    far.down(U())
    new = host(c, "new", (H4, 40001), at, unlike=["old"])
    new.up(U())
    new.down(U())
    old.down(U())


@story("fate-deterministic-grows", "With a fixed number of ports, hosts and addresses that come behind the others move nobody.",
       FATE + ", " + RFC[14:], zoned(OUT, sharing([POOL], "192.0.2.0/28", ports_per_host=2048)))
def _(c):
    at = place(H4, "192.0.2.0", 16, [POOL], ports=2048)
    old = host(c, "old", A, at)
    old.up(U())
    c.reload(zoned(OUT, sharing(BOTH, "192.0.2.0/27", ports_per_host=2048)))
    old.down(U())
    old.up(U())
    new = host(c, "new", (H4, 40001), at, unlike=["old"])
    new.up(U())
    new.down(U())
