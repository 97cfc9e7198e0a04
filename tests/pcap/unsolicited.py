"""SYNs to a NAT address that nobody has asked for (RFC 5382 section 4.3): silence, an answer after six seconds, or a
connection that both ends open."""

from lib import *
from nat import A, B, INTERNET, NATTED, POOL, S, nat

ANSWERING = zoned(OUT, INTERNET, extra=nat(filtering="address-dependent", answer_unsolicited_syn=True))
SOON = 500


def told(c, syn, to=to_server):
    """The sender of a SYN hears that the port is unreachable."""
    src = rebuilt(syn).src
    c.tx("wan", to(icmp4(W4, src, 3, 3, syn)), own=True)


def mark(c, talk):
    """A packet that shows where in the order of what leaves by wan we are."""
    talk.up(U(9))


def stranger(port, to, said=None, src=S4B):
    return rebuilt(ip(src, POOL) / (said or T("S", 7))(port, to))


AT_STRANGER = AT_SERVER2.sends
TO_STRANGER = AT_SERVER2.gets


@story("nat-unsolicited-syn-answered", "A SYN to where there is no mapping, or to one that does not let it in: six seconds of silence, then the port is unreachable. Sent again, it is the same SYN. Nothing else is answered.",
       "scapy script: RFC 5382 REQ-4, RFC 1812 section 4.3.2.3 (as much of the packet as fits 576 bytes)", ANSWERING)
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, (S4, 53), seen=(POOL, p))
    mark(c, talk)
    tcp = c.choice("t")
    Talk(c, A, (S4, 443), seen=(POOL, tcp)).handshake()
    c.at(1 * S)
    unmapped, filtered = stranger(3000, 81), stranger(3000, tcp)
    long = stranger(3001, 81, T("S", 7, data=900))
    for syn, why in ((unmapped, "nat-no-mapping"), (filtered, "firewall-deny"), (long, "nat-no-mapping")):
        c.rx("wan", AT_STRANGER(syn), drop=why)
    for flags in ("SA", "R", "A", "FS"):
        c.rx("wan", AT_STRANGER(stranger(3002, 81, T(flags, 7))), drop="nat-no-mapping")
    c.rx("wan", AT_STRANGER(stranger(3002, 81, U())), drop="nat-no-mapping")
    c.at(3 * S)
    c.rx("wan", AT_STRANGER(unmapped), drop="nat-no-mapping")
    c.at(7 * S - 10)
    mark(c, talk)
    for syn in (unmapped, filtered, long):
        told(c, syn, TO_STRANGER)
    c.at(7 * S + SOON)
    mark(c, talk)
    # What was answered is forgotten: the next one waits anew.
    c.rx("wan", AT_STRANGER(unmapped), drop="nat-no-mapping")
    c.at(13 * S + SOON)
    mark(c, talk)
    told(c, unmapped, TO_STRANGER)
    c.at(14 * S + SOON)
    mark(c, talk)


@story("nat-unsolicited-syn-crossed", "If the inside opens that very connection meanwhile, nobody is told anything: both ends have opened at once.",
       "scapy script: RFC 5382 REQ-2a and REQ-4, RFC 9293 section 3.5 figure 7", ANSWERING)
def _(c):
    p = c.choice("p")
    Talk(c, A, (S4, 443), seen=(POOL, p)).handshake()
    talk = Talk(c, A, (S4B, 3000), seen=(POOL, p), there=AT_SERVER2)
    c.at(1 * S)
    c.rx("wan", AT_STRANGER(stranger(3000, p, T("S", 5000))), drop="firewall-deny")
    other = stranger(3001, p)
    c.rx("wan", AT_STRANGER(other), drop="firewall-deny")
    c.at(4 * S)
    talk.up(T("S", 1000))
    c.at(6 * S)
    talk.down(T("S", 5000))
    talk.up(T("SA", 1000, 5001))
    talk.down(T("SA", 5000, 1001))
    talk.up(T("PA", 1001, 5001, data=10))
    # Another port of the same host was not opened.
    told(c, other, TO_STRANGER)
    c.at(30 * S)
    talk.down(T("PA", 5001, 1011, data=10))


@story("nat-unsolicited-syn-silent", "Unless it is asked for, SYNs that nobody asked for are never answered: as the firewall treats what no rule allows.",
       "scapy script: RFC 5382 REQ-4a, the annotated config (answer_unsolicited_syn)", zoned(OUT, INTERNET, extra=nat(filtering="address-dependent")), linger_ms=20_000)
def _(c):
    p = c.choice("p")
    Talk(c, A, (S4, 443), seen=(POOL, p)).handshake()
    c.rx("wan", AT_STRANGER(stranger(3000, 81)), drop="nat-no-mapping")
    c.rx("wan", AT_STRANGER(stranger(3000, p)), drop="firewall-deny")


@story("nat-unsolicited-syn-denied", "A rule that denies is silent, also where SYNs that nobody asked for are answered; so is one to a port that no pool gives.",
       "scapy script: RFC 5382 REQ-4a and section 4.3 (what is for the gateway itself), the annotated config (answer_unsolicited_syn)",
       zoned(OUT, rule("no-one", "deny", "outside", "inside"), source_nat("internet", [POOL], ports="20000-20127"), extra=nat(answer_unsolicited_syn=True)), linger_ms=20_000)
def _(c):
    p = c.choice("p", 20000, 20127)
    Talk(c, A, (S4, 443), seen=(POOL, p)).handshake()
    c.rx("wan", AT_STRANGER(stranger(3000, p)), drop="firewall-deny")
    c.rx("wan", AT_STRANGER(stranger(3000, 81)), drop="nat-no-mapping")


@story("nat-unsolicited-syn-interface", "At an address that is the gateway's own, only SYNs to ports of the NAT are answered like this.",
       "scapy script: RFC 5382 section 4.3 (SYNs intended for the NAT itself)", zoned(OUT, source_nat("internet", "interface"), extra=nat(answer_unsolicited_syn=True)))
def _(c):
    p = c.choice("p", 32768, 60999)
    talk = Talk(c, A, (S4, 53), seen=(W4, p))
    mark(c, talk)
    syns = [rebuilt(ip(S4B, W4) / T("S", 7)(3000, port)) for port in (22, 32767, 32768, 60999, 61000)]
    for syn in syns:
        c.rx("wan", AT_STRANGER(syn), drop="firewall-deny")
    c.at(6 * S)
    mark(c, talk)
    told(c, syns[2], TO_STRANGER)
    told(c, syns[3], TO_STRANGER)
    c.at(20 * S)
    mark(c, talk)


@story("nat-unsolicited-syn-limited", "These answers are ICMP errors like any: one source network has its share of them.",
       "scapy script: RFC 5382 REQ-4a (may be limited), RFC 1812 section 4.3.2.8, token bucket per prefix",
       zoned(OUT, INTERNET, extra="[icmp]\nrate = 1000\nburst = 1000\nper_source_rate = 1\nper_source_burst = 2\n\n" + nat(answer_unsolicited_syn=True)))
def _(c):
    talk = Talk(c, A, (S4, 53), seen=(POOL, c.choice("p")))
    mark(c, talk)
    syns = [stranger(3000 + n, 81) for n in range(5)]
    for syn in syns:
        c.rx("wan", AT_STRANGER(syn), drop="nat-no-mapping")
    c.at(20 * S)
    for syn in syns[:2]:
        told(c, syn, TO_STRANGER)
    mark(c, talk)


@story("nat-unsolicited-syn-forbidden-since", "A change that forbids answers holds for SYNs that wait for theirs.",
       "scapy script: RFC 5382 REQ-4a, the annotated config (answer_unsolicited_syn)", ANSWERING)
def _(c):
    talk = Talk(c, A, (S4, 53), seen=(POOL, c.choice("p")))
    mark(c, talk)
    c.rx("wan", AT_STRANGER(stranger(3000, 81)), drop="nat-no-mapping")
    c.at(3 * S)
    c.reload(NATTED)
    c.at(20 * S)
    mark(c, talk)
