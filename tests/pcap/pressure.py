"""Under pressure: what happens when the session table is full, or when more connections open than may."""

from lib import *

RFC4987 = "scapy script: RFC 4987 section 3.4 (recycling the oldest half-open TCB), the annotated config"
FULL = "[flows]\ncapacity = 64\n"
WEB = rule("web", "allow", "outside", "inside", service="tcp/80")


def zone(name, **keys):
    return table("zone", name=name, **keys)


def clients(case, count, to=(H4, 80), first=40000):
    """Connections that begin outside."""
    src = S6 if ":" in to[0] else S4
    return [Talk(case, (src, first + n), to, here=AT_SERVER, there=AT_HOST) for n in range(count)]


@story("pressure-oldest-unanswered-goes", "In a full table the session that nobody has answered to and that has waited longest makes room for a new one, TCP or not; those that were answered to stay.",
       RFC4987, zoned(OUT, extra=FULL), workers=(1,))
def _(c):
    for base, (client, server) in ((0, (H4, S4)), (100_000, (H6, S6))):
        c.at(base)
        answered = [Talk(c, (client, 30000 + n), (server, 53)) for n in range(20)]
        for talk in answered:
            talk.up(U(8))
        established = [Talk(c, (client, 31000 + n), (server, 443)).handshake() for n in range(20)]
        for talk in answered:
            talk.down(U(9))
        c.at(base + 1000)
        syns = [Talk(c, (client, 32000 + n), (server, 443)) for n in range(8)]
        for talk in syns:
            talk.up(T("S", 100))
        c.at(base + 2000)
        asked = [Talk(c, (client, 33000 + n), (server, 53)) for n in range(8)]
        for talk in asked:
            talk.up(U(8))
        c.at(base + 3000)
        late = [Talk(c, (client, 34000 + n), (server, 443)) for n in range(8)]
        for talk in late:
            talk.up(T("S", 100))
        c.at(base + 4000)
        syns[0].down(T("SA", 500, 101))  # opens still, and has got on
        syns[1].down(T("RA", 0, 101))  # never was anything
        late[7].down(T("RA", 0, 101))  # goes before older ones
        syns[2].down(T("SA", 500, 101))
        syns[2].up(T("A", 101, 501))  # stays
        asked[0].down(U(9))  # stays
        new = [Talk(c, (client, 35000 + n), (server, 53 if n % 2 else 443)) for n in range(9)]
        for talk in new:  # seven of the SYNs, and two that asked
            talk.up(T("S", 100) if talk.server[1] == 443 else U(8))
        gone = [syns[1], late[7], *syns[3:], *asked[1:3]]
        for talk in gone:
            talk.down(T("SA", 500, 101) if talk.server[1] == 443 else U(9), drop="firewall-deny")
        syns[0].down(T("SA", 500, 101))
        syns[2].down(T("PA", 501, 101, data=10))
        asked[0].up(U(8))
        for talk in asked[3:]:
            talk.down(U(9))
        for talk in late[:7]:
            talk.down(T("SA", 500, 101))
            talk.up(T("A", 101, 501))
        for talk in answered:
            talk.down(U(9))
        for talk in established:
            talk.down(T("PA", 5001, 1001, data=10))


@story("pressure-full-of-answered", "When all sessions were answered to, a new one is refused with host unreachable, however often it is tried.",
       "scapy script: RFC 6888 REQ-11, the annotated config ([flows] capacity)", zoned(OUT, extra=FULL), workers=(1,))
def _(c):
    talks = [Talk(c, (H4, 40000 + n), (S4, 443)).handshake() for n in range(64)]
    p = rebuilt(v4() / T("S", 7)(50000, 443))
    for _ in range(4):
        c.error("lan", from_host(p), "session-table-full", to_host(icmp4(L4, H4, 3, 1, p)))
    for talk in talks:
        talk.up(T("PA", 1001, 5001, data=10))
    talks[9].up(T("FA", 1011, 5001))
    talks[9].down(T("FA", 5001, 1012))  # and four minutes later there is a place
    c.at(300_000)
    Talk(c, (H4, 50000), (S4, 443)).up(T("S", 7))


@story("pressure-mappings-stay", "No NAT mapping goes to make room: the only session of one stays though nobody has answered, one of several that share it goes.",
       "scapy script: RFC 6888 REQ-11 (D), RFC 4787 REQ-1", zoned(OUT, source_nat("nat", ["203.0.113.7"]), extra=FULL), workers=(1,))
def _(c):
    shared = c.choice("shared")
    outside = ("203.0.113.7", shared)
    for n in range(3):
        Talk(c, (H4, 40000), (S4, 54 + n), seen=outside).up(U(8))
    others = [c.choice(f"p{n}", unlike=["shared", *(f"p{m}" for m in range(n))]) for n in range(61)]
    talks = [Talk(c, (H4, 50000 + n), (S4, 53), seen=("203.0.113.7", port)) for n, port in enumerate(others)]
    for talk in talks:
        talk.up(U(8))
    c.at(1000)
    for n in range(3):
        Talk(c, (H4, 40000), (S4, 60 + n), seen=outside).up(U(8))
    p = rebuilt(v4(H4B) / U(8)(40000, 53))  # others have a mapping each
    c.error("lan", AT_HOST2.sends(p), "session-table-full", AT_HOST2.gets(icmp4(L4, H4B, 3, 1, p)))
    for talk in talks:
        talk.down(U(9))


@story("half-open-per-destination", "Only so many connections may be opening from a zone to one address, on whatever worker; established, refused and expired ones do not count.",
       "scapy script: RFC 4987 section 3 (half-open connections), the annotated config ([[zone]] half_open_per_destination)",
       zoned(WEB, OUT, zone("outside", half_open_per_destination=3)))
def _(c):
    for base, here, other in ((0, H4, H4B), (1_000_000, H6, H6B)):
        c.at(base)
        talks = clients(c, 9, (here, 80))
        for talk in talks[:3]:
            talk.up(T("S", 100))
        for talk in talks[3:]:
            talk.up(T("S", 100), drop="half-open-limit")
        Talk(c, (talks[0].client[0], 50000), (other, 80), here=AT_SERVER, there=AT_HOST2).up(T("S", 100))
        for n in range(5):  # another zone has no limit
            Talk(c, (here, 50000 + n), (talks[0].client[0], 80)).up(T("S", 100))
        talks[0].up(T("S", 100))  # again
        talks[0].down(T("SA", 500, 101))
        talks[3].up(T("S", 100), drop="half-open-limit")
        talks[0].up(T("A", 101, 501))
        talks[3].up(T("S", 100))
        talks[4].up(T("S", 100), drop="half-open-limit")
        talks[1].down(T("RA", 0, 101))
        talks[4].up(T("S", 100))
        talks[5].up(T("S", 100), drop="half-open-limit")
        talks[3].down(T("SA", 500, 101))
        talks[3].up(T("R", 101))  # whoever has that address never asked
        talks[5].up(T("S", 100))
        talks[6].up(T("S", 100), drop="half-open-limit")
        c.at(base + 300_000)
        for talk in talks[6:]:
            talk.up(T("S", 100))


@story("half-open-by-flows", "The limit of [flows] is that of zones that have none of their own.",
       "scapy script: the annotated config ([flows] half_open_per_destination)",
       zoned(WEB, OUT, zone("inside", half_open_per_destination=2), extra="[flows]\nhalf_open_per_destination = 1\n"))
def _(c):
    one, two = clients(c, 2)
    one.up(T("S", 100))
    two.up(T("S", 100), drop="half-open-limit")
    for n in range(3):
        Talk(c, (H4, 50000 + n), (S4, 80)).up(T("S", 100), drop="half-open-limit" if n == 2 else None)


@story("half-open-of-the-node", "Beyond the node's number of opening connections the oldest makes room; established ones do not count, nor what is no TCP.",
       RFC4987, zoned(OUT, extra="[flows]\nhalf_open = 4\n"), workers=(1,))
def _(c):
    established = [Talk(c, (H4, 30000 + n), (S4, 443)).handshake() for n in range(6)]
    asked = [Talk(c, (H4, 31000 + n), (S4, 53)) for n in range(6)]
    for talk in asked:
        talk.up(U(8))
    talks = [Talk(c, (H4, 40000 + n), (S4, 443)) if n % 2 else Talk(c, (H6, 40000 + n), (S6, 443)) for n in range(7)]
    for n, talk in enumerate(talks):
        c.at(1000 * (n + 1))
        talk.up(T("S", 100))
    for n, talk in enumerate(talks):
        talk.down(T("SA", 500, 101), drop="firewall-deny" if n < 3 else None)
    for talk in established:
        talk.up(T("PA", 1001, 5001, data=10))
    for talk in asked:
        talk.down(U(9))


@story("half-open-none-may-go", "Where all opening connections hold NAT mappings none makes room, and the next is refused.",
       "scapy script: RFC 6888 REQ-11 (D), the annotated config ([flows] half_open)",
       zoned(OUT, source_nat("nat", ["203.0.113.7"]), extra="[flows]\nhalf_open = 2\n"), workers=(1,))
def _(c):
    one, two, three = c.choice("p"), c.choice("q", unlike=["p"]), c.choice("r", unlike=["p", "q"])
    talks = [Talk(c, (H4, 40000 + n), (S4, 443), seen=("203.0.113.7", port)) for n, port in enumerate((one, two, three))]
    talks[0].up(T("S", 100))
    talks[1].up(T("S", 100))
    talks[2].up(T("S", 100), drop="half-open-limit")
    talks[0].down(T("SA", 500, 101))
    talks[0].up(T("A", 101, 501))
    talks[2].up(T("S", 100))


@story("zone-rate-limit", "So many sessions a second may begin in a zone, on all workers together; what goes on is not limited, nor are other zones.",
       "scapy script: the annotated config ([[zone]] rate_limit)", zoned(WEB, OUT, zone("outside", rate_limit={"per_s": 1, "burst": 5})))
def _(c):
    talks = clients(c, 12)
    for n, talk in enumerate(talks[:10]):
        talk.up(T("S", 100), drop="zone-rate-limit" if n >= 5 else None)
    for talk in talks[:5]:
        talk.down(T("SA", 500, 101))
        talk.up(T("A", 101, 501))
    for n in range(10):
        Talk(c, (H4, 50000 + n), (S4, 53)).up(U(8))
    c.at(1500)
    talks[10].up(T("S", 100))
    talks[11].up(T("S", 100), drop="zone-rate-limit")
