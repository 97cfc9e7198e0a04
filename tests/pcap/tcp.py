"""TCP tracking: each transition, the bounds of sequence numbers, and how long a connection may idle."""

from lib import *

CLIENT, SERVER4 = (H4, 40000), (S4, 443)
CLIENT6, SERVER6 = (H6, 40000), (S6, 443)
BOTH = ((CLIENT, SERVER4), (CLIENT6, SERVER6))
OPEN = zoned(OUT)
S = 1000  # the second in the clock of a case


def finish(talk, a=1001, b=5001):
    """RFC 9293 section 3.6, figure 12; `a` and `b` are the next numbers of client and server."""
    talk.up(T("FA", a, b))
    talk.down(T("A", b, a + 1))
    talk.down(T("FA", b, a + 1))
    talk.up(T("A", a + 1, b + 1))


@story("tcp-lifecycle", "A connection from SYN to the last ACK passes with one rule for its first segment, in either family.",
       "scapy script: RFC 9293 sections 3.5 (figure 6) and 3.6 (figure 12)", zoned(rule("web", "allow", "inside", "outside", service="tcp/443")))
def _(c):
    for client, server in BOTH:
        talk = Talk(c, client, server).handshake()
        talk.up(T("PA", 1001, 5001, data=100))
        talk.down(T("A", 5001, 1101))
        talk.down(T("PA", 5001, 1101, data=1400))
        talk.up(T("A", 1101, 6401))
        talk.up(T("PAUEC", 1101, 6401, data=1, urgptr=1))  # flags that mean nothing here
        talk.down(T("A", 6401, 1102))
        finish(talk, 1102, 6401)


@story("tcp-from-outside", "A server inside: the connection begins outside, by a rule for it, and goes on as any.",
       "scapy script: RFC 9293 sections 3.5 and 3.6", zoned(rule("ssh", "allow", "outside", "inside", service="tcp/22")))
def _(c):
    for server, client in (((H4, 22), (S4, 50000)), ((H6, 22), (S6, 50000))):
        Talk(c, client, server, here=AT_SERVER, there=AT_HOST).up(T("A", 1, 1), drop="tcp-no-session")
        talk = Talk(c, client, server, here=AT_SERVER, there=AT_HOST).handshake()
        talk.down(T("PA", 5001, 1001, data=50))
        finish(talk, 1001, 5051)


@story("tcp-middle-of-nowhere", "Only a SYN begins a connection: anything else without a session is dropped though a rule allows it.",
       "scapy script: RFC 5382 REQ-1 and section 4, RFC 9293 section 3.5", OPEN)
def _(c):
    for client, server in BOTH:
        for flags in ("A", "PA", "SA", "FA", "R", "RA"):
            Talk(c, client, server).up(T(flags, 1001, 5001), drop="tcp-no-session")
        Talk(c, client, server).down(T("SA", 5000, 1001), drop="firewall-deny")
        talk = Talk(c, client, server).handshake()  # and none of it stands in the way
        talk.up(T("PA", 1001, 5001, data=10))


@story("tcp-loose", "With loose_tcp a connection is taken up in its middle, learns its bounds from both sides, and keeps them; a RST begins nothing.",
       "scapy script: the annotated config ([flows] loose_tcp)", zoned(OUT, extra="[flows]\nloose_tcp = true\n"))
def _(c):
    for client, server in BOTH:
        Talk(c, client, server).up(T("R", 1001), drop="tcp-no-session")
        Talk(c, client, server).down(T("PA", 5001, 1001, data=10), drop="firewall-deny")
        talk = Talk(c, client, server)
        talk.up(T("PA", 1001, 5001, data=100))
        talk.down(T("A", 5001, 1101))
        talk.up(T("A", 1101, 5001))
        talk.down(T("PA", 5001 + 0x40000000, 1101, data=10), drop="tcp-out-of-window")
        talk.down(T("PA", 5001, 1101, data=10))
        finish(talk, 1101, 5011)


@story("tcp-simultaneous-open", "Both sides send a SYN at once; the second passes without a rule, as the first's reply.",
       "scapy script: RFC 9293 section 3.5 (figure 7), RFC 5382 REQ-2a", OPEN)
def _(c):
    for client, server in BOTH:
        talk = Talk(c, client, server)
        talk.up(T("S", 100))
        talk.down(T("S", 300))
        talk.up(T("SA", 100, 301))
        talk.down(T("SA", 300, 101))
        talk.up(T("PA", 101, 301, data=20))
        talk.down(T("PA", 301, 121, data=20))
        finish(talk, 121, 321)


@story("tcp-retransmissions", "SYN, SYN-ACK, data and FIN sent again pass again; a SYN with data as well.",
       "scapy script: RFC 9293 section 3.8.1, RFC 7413 section 2", OPEN)
def _(c):
    for client, server in BOTH:
        talk = Talk(c, client, server)
        talk.up(T("S", 1000))
        talk.up(T("S", 1000))
        talk.up(T("S", 1500))  # a client that gave up and tries anew
        talk.down(T("SA", 5000, 1501))
        talk.down(T("SA", 5000, 1501))
        talk.up(T("A", 1501, 5001))
        talk.down(T("SA", 5000, 1501))  # the ACK was lost behind us
        talk.up(T("A", 1501, 5001))
        for _ in range(2):
            talk.up(T("PA", 1501, 5001, data=100))
        talk.down(T("A", 5001, 1601))
        talk.up(T("PA", 1501, 5001, data=100))
        for _ in range(2):
            talk.up(T("FA", 1601, 5001))
        talk = Talk(c, (client[0], 40001), server)
        talk.up(T("S", 1000, data=10))
        talk.down(T("SA", 5000, 1011))
        talk.up(T("A", 1011, 5001))


@story("tcp-refused", "A RST answers the SYN if it acknowledges it; one that does not is a forgery. The client may try again.",
       "scapy script: RFC 9293 section 3.10.7.3 (SYN-SENT), RFC 5961 section 3.2", OPEN)
def _(c):
    for client, server in BOTH:
        talk = Talk(c, client, server)
        talk.up(T("S", 1000))
        talk.down(T("R", 0), drop="tcp-out-of-window")
        talk.down(T("RA", 0, 7000), drop="tcp-out-of-window")
        talk.down(T("RA", 0, 1000), drop="tcp-out-of-window")
        talk.down(T("RA", 0, 1001))
        talk.up(T("S", 2000))  # at once, from the same port
        talk.down(T("SA", 5000, 2001))
        talk.up(T("A", 2001, 5001))


@story("tcp-rst-exact", "A RST with exactly the expected number ends the connection, and its memory four minutes later.",
       "scapy script: RFC 5961 section 3.2, RFC 7857 section 2.2", OPEN)
def _(c):
    for start, (client, server) in ((0, BOTH[0]), (1000 * S, BOTH[1])):
        c.at(start)
        talk = Talk(c, client, server).handshake()
        talk.down(T("R", 5001))
        talk.up(T("A", 1001, 5001))  # crossed it
        c.at(start + 250 * S)
        talk.up(T("PA", 1001, 5001, data=10), drop="tcp-no-session")


@story("tcp-rst-then-data", "Data after a RST shows that the receiver did not take it: the connection is established again.",
       "scapy script: RFC 7857 section 2.2", OPEN)
def _(c):
    talk = Talk(c, CLIENT, SERVER4).handshake()
    talk.down(T("R", 5001))
    c.at(100 * S)
    talk.up(T("PA", 1001, 5001, data=10))
    talk.down(T("PA", 5001, 1011, data=10))
    c.at(2000 * S)
    talk.up(T("PA", 1011, 5011, data=10))


@story("tcp-rst-in-window", "A RST in the window but not exact passes for the receiver to challenge, and changes nothing; out of the window it is dropped.",
       "scapy script: RFC 5961 section 3.2 (challenge ACK), RFC 7857 section 2.2", OPEN)
def _(c):
    for start, (client, server) in ((0, BOTH[0]), (1000 * S, BOTH[1])):
        c.at(start)
        talk = Talk(c, client, server).handshake()
        talk.down(T("R", 5001 + 100))
        talk.up(T("A", 1001, 5001))  # the challenge
        for seq in (5001 + 100_000, 4000, 5001 + 0x80000000):
            talk.down(T("R", seq), drop="tcp-out-of-window")
        c.at(start + 300 * S)
        talk.up(T("PA", 1001, 5001, data=10))  # still established


@story("tcp-window-bounds", "Beyond what the receiver has offered, far behind what it has acknowledged, or acknowledging what was never sent: dropped.",
       "scapy script: RFC 9293 section 3.4 (acceptable segments) and 3.10.7.4, RFC 5961 section 5.2", OPEN)
def _(c):
    for client, server in BOTH:
        talk = Talk(c, client, server).handshake()  # both windows are 8,192
        lost = "tcp-out-of-window"
        talk.up(T("PA", 1001 + 8192 + 100, 5001, data=10), drop=lost)
        talk.up(T("PA", 1001 - 100_000, 5001, data=10), drop=lost)
        talk.up(T("A", 1001, 5001 + 1000), drop=lost)
        talk.up(T("A", 1001, 5001 - 100_000), drop=lost)
        talk.down(T("PA", 5001 + 8192 + 100, 1001, data=10), drop=lost)
        talk.down(T("A", 5001, 1001 + 1000), drop=lost)
        talk.up(T("PA", 1001 + 8000, 5001, data=100))  # out of order, but offered
        talk.up(T("PA", 1001, 5001, data=1000))
        talk.down(T("A", 5001, 2001))


@story("tcp-sequence-numbers-wrap", "Bounds hold over the end of the number space.",
       "scapy script: RFC 9293 section 3.4 (arithmetic modulo 2**32)", OPEN)
def _(c):
    talk = Talk(c, CLIENT, SERVER4).handshake((0xFFFFFF00, 0xFFFFFFFF))
    talk.up(T("PA", 0xFFFFFF01, 0, data=1000))
    talk.down(T("A", 0, 0xFFFFFF01 + 1000))
    talk.up(T("PA", 0xFFFFFF01 + 1000, 0, data=1000))
    talk.up(T("PA", 0xFFFFFF01 + 20_000, 0, data=10), drop="tcp-out-of-window")
    finish(talk, 0xFFFFFF01 + 2000, 0)


@story("tcp-window-scale", "Windows are scaled if both SYNs offered it, from the segment after the SYN on; else they are what they say.",
       "scapy script: RFC 7323 section 2.2 and 2.3", OPEN)
def _(c):
    scaled = {"options": [("MSS", 1460), ("NOP", None), ("WScale", 7)]}
    talk = Talk(c, CLIENT, SERVER4)
    talk.up(T("S", 1000, **scaled))
    talk.down(T("SA", 5000, 1001, **scaled))
    talk.up(T("A", 1001, 5001))
    talk.up(T("PA", 1001 + 100_000, 5001, data=10), drop="tcp-out-of-window")  # a SYN's window is not scaled
    talk.down(T("A", 5001, 1001))  # 8192 << 7: 1 MiB
    talk.up(T("PA", 1001 + 100_000, 5001, data=10))
    talk.up(T("PA", 1001 + 2_000_000, 5001, data=10), drop="tcp-out-of-window")
    talk = Talk(c, (H4, 40001), SERVER4)
    talk.up(T("S", 1000, **scaled))
    talk.down(T("SA", 5000, 1001, options=[("MSS", 1460)]))
    talk.up(T("A", 1001, 5001))
    talk.down(T("A", 5001, 1001))
    talk.up(T("PA", 1001 + 100_000, 5001, data=10), drop="tcp-out-of-window")


@story("tcp-mss-clamped", "SYN and SYN-ACK through an interface with `clamp_mss` announce no more than its MTU carries; less stays, and nothing stays nothing.",
       "scapy script: RFC 9293 section 3.7.1, RFC 6691 section 2", zoned(OUT, wan_keys={"mtu": 1400, "clamp_mss": True}))
def _(c):
    for (client, server), headers in zip(BOTH, (40, 60)):
        fits = 1400 - headers

        def syn(mss):
            return T("S", 1000, options=[("MSS", mss), ("SAckOK", b""), ("NOP", None), ("WScale", 7)])

        def answer(mss):  # at an odd offset
            return T("SA", 5000, 1001, options=[("NOP", None), ("MSS", mss), ("WScale", 7)])
        talk = Talk(c, client, server)
        talk.up(syn(1460), heard=syn(fits))
        talk.down(answer(8960), heard=answer(fits))
        talk.up(T("A", 1001, 5001))
        talk = Talk(c, (client[0], 40001), server)
        talk.up(syn(fits))
        talk.down(answer(536))
        talk = Talk(c, (client[0], 40002), server)
        talk.up(T("S", 1000))
        talk.down(T("SA", 5000, 1001))


@story("tcp-zero-window", "A probe into a closed window passes, and so does the ACK that opens it.",
       "scapy script: RFC 9293 section 3.8.6.1", OPEN)
def _(c):
    talk = Talk(c, CLIENT, SERVER4).handshake()
    talk.down(T("A", 5001, 1001, window=0))
    for n in range(8):  # what the SYN-ACK had offered
        talk.up(T("PA", 1001 + 1024 * n, 5001, data=1024))
    talk.down(T("A", 5001, 9193, window=0))
    talk.up(T("PA", 9193, 5001, data=1))
    talk.down(T("A", 5001, 9193, window=0))
    talk.down(T("A", 5001, 9193, window=8192))
    talk.up(T("PA", 9193, 5001, data=1000))


@story("tcp-half-close", "After one side's FIN the other may send for as long as it likes, idle for as long as an established connection.",
       "scapy script: RFC 9293 section 3.6 (case 2), RFC 5382 section 5 (partially closed is established)", OPEN)
def _(c):
    for start, (client, server) in ((0, BOTH[0]), (10_000 * S, BOTH[1])):
        c.at(start)
        talk = Talk(c, client, server).handshake()
        talk.down(T("FA", 5001, 1001))
        talk.up(T("A", 1001, 5002))
        c.at(start + 3000 * S)
        talk.up(T("PA", 1001, 5002, data=1000))
        talk.down(T("A", 5002, 2001))
        talk.up(T("FA", 2001, 5002))
        talk.down(T("A", 5002, 2002))
        c.at(start + 3250 * S)
        talk.up(T("A", 2002, 5002), drop="tcp-no-session")  # finished by both: four minutes


@story("tcp-time-wait-reopens", "A new SYN on the ports of a finished connection begins a new one, decided by the rules of now.",
       "scapy script: RFC 9293 section 3.6.1 and MAY-2 (TIME-WAIT and a new SYN), RFC 6191 section 2", OPEN)
def _(c):
    for client, server in BOTH:
        talk = Talk(c, client, server).handshake()
        finish(talk)
        talk.up(T("S", 90_000_000))
        talk.down(T("SA", 70_000_000, 90_000_001))
        talk.up(T("A", 90_000_001, 70_000_001))
        talk.up(T("PA", 90_000_001, 70_000_001, data=10))
        talk.down(T("A", 70_000_001, 90_000_011))
        talk.up(T("PA", 1002, 5002, data=10), drop="tcp-out-of-window")  # the old one's


@story("tcp-reopens-after-rst", "A new SYN after a RST begins a new connection on the same ports.",
       "scapy script: RFC 9293 section 3.10.7.1, RFC 7857 section 2.2", OPEN)
def _(c):
    for client, server in BOTH:
        talk = Talk(c, client, server).handshake()
        talk.up(T("R", 1001))
        Talk(c, client, server).handshake((700, 800))
        talk.up(T("PA", 701, 801, data=10))


@story("tcp-syn-on-established", "A SYN on a live connection passes and changes nothing; the endpoint's challenge ACK, the RST it provokes and the next SYN lead to a new connection.",
       "scapy script: RFC 5961 section 4.2 (challenge ACK), RFC 9293 section 3.5.1 (half-open connections)", OPEN)
def _(c):
    for client, server in BOTH:
        talk = Talk(c, client, server).handshake()
        talk.up(T("S", 0x70000000))
        talk.down(T("A", 5001, 1001))
        talk.up(T("PA", 1001, 5001, data=10))  # a forged SYN has done no harm
        talk.up(T("S", 0x70000000))
        talk.down(T("A", 5001, 1011))
        talk.up(T("R", 1011))
        talk.up(T("S", 0x70000000))
        talk.down(T("SA", 0x60000000, 0x70000001))
        talk.up(T("A", 0x70000001, 0x60000001))


@story("tcp-bad-flags", "Combinations no endpoint sends, and headers that lie about their length, with and without a session.",
       "scapy script: RFC 9293 section 3.1, RFC 3360 section 2, RFC 793 section 3.9 (no ACK, no segment)", OPEN)
def _(c):
    for client, server in BOTH:
        talk = Talk(c, client, server)
        for _ in range(2):
            for flags in ("", "SF", "SR", "FR", "F", "FPU", "SAFR", "P", "SAR"):
                talk.up(T(flags, 1001, 5001), drop="tcp-invalid")
            talk.up(T("A", 1001, 5001, dataofs=4), drop="tcp-invalid")
            talk.up(T("A", 1001, 5001, dataofs=9), drop="tcp-invalid")
            talk = talk.handshake()
        talk.down(T("SF", 5001, 1001), drop="tcp-invalid")


@story("tcp-opening-timeout", "An unanswered SYN is remembered for four minutes.",
       "scapy script: RFC 5382 REQ-5 (transitory: not under 4 minutes), RFC 7857 section 2.1", OPEN)
def _(c):
    first, second = (Talk(c, (H4, 40000 + n), SERVER4) for n in range(2))
    first.up(T("S", 1000))
    second.up(T("S", 1000))
    c.at(235 * S)
    first.down(T("SA", 5000, 1001))
    c.at(250 * S)
    second.down(T("SA", 5000, 1001), drop="firewall-deny")


@story("tcp-established-timeout", "An established connection may be idle for two hours and four minutes; keep-alives count.",
       "scapy script: RFC 5382 REQ-5, RFC 9293 section 3.8.4 (keep-alives)", OPEN)
def _(c):
    idle, alive = (Talk(c, (H4, 40000 + n), SERVER4).handshake() for n in range(2))
    c.at(7000 * S)
    alive.up(T("A", 1000, 5001))
    alive.down(T("A", 5001, 1001))
    c.at(7430 * S)
    idle.up(T("PA", 1001, 5001, data=1))
    c.at(14_000 * S)
    alive.down(T("PA", 5001, 1001, data=1))
    c.at((7430 + 7460) * S)
    idle.up(T("PA", 1002, 5001, data=1), drop="tcp-no-session")
    idle.down(T("PA", 5001, 1002, data=1), drop="firewall-deny")
    alive.up(T("A", 1001, 5002))


@story("tcp-configured-timeouts", "The times are those of the config.",
       "scapy script: the annotated config ([flows])",
       zoned(OUT, extra="[flows]\ntcp_established_s = 1000\ntcp_transitory_s = 50\n"))
def _(c):
    opening = Talk(c, (H4, 40000), SERVER4)
    opening.up(T("S", 1000))
    established = Talk(c, (H4, 40001), SERVER4).handshake()
    closed = Talk(c, (H4, 40002), SERVER4).handshake()
    finish(closed)
    c.at(45 * S)
    closed.up(T("A", 1002, 5002))
    c.at(60 * S)
    opening.down(T("SA", 5000, 1001), drop="firewall-deny")
    c.at(110 * S)
    closed.up(T("A", 1002, 5002), drop="tcp-no-session")
    c.at(990 * S)
    established.up(T("PA", 1001, 5001, data=1))
    c.at(2000 * S)
    established.up(T("PA", 1002, 5001, data=1), drop="tcp-no-session")


@story("udp-timeouts", "A UDP session idles 30 seconds before its first reply and five minutes after it; both directions keep it alive.",
       "scapy script: RFC 4787 REQ-5c and REQ-6, the annotated config ([flows])", OPEN)
def _(c):
    lonely, prompt, late = (Talk(c, (H4, 40000 + n), (S4, 53)) for n in range(3))
    lonely.up(U())
    prompt.up(U())
    late.up(U())
    c.at(25 * S)
    prompt.down(U())
    c.at(40 * S)
    lonely.down(U(), drop="firewall-deny")
    lonely.up(U())
    c.at(60 * S)
    lonely.up(U())
    c.at(85 * S)
    lonely.down(U())  # 25 s after the latest, 45 after the first
    c.at(320 * S)
    prompt.down(U())  # 295 s of silence
    c.at(600 * S)
    prompt.up(U())
    c.at(910 * S)
    prompt.down(U(), drop="firewall-deny")


@story("icmp-query-timeout", "An ICMP query may be answered for a minute, other protocols' sessions last ten.",
       "scapy script: RFC 5508 REQ-2, the annotated config ([flows])", OPEN)
def _(c):
    first, second = (Talk(c, (H4, 7 + n), (S4, 7 + n)) for n in range(2))
    six = Talk(c, (H6, 7), (S6, 7))
    tunnel, old = (Talk(c, (H4, 0), (S4, 0)) for _ in range(2))
    first.up(ASK())
    second.up(ASK())
    six.up(ASK6())
    tunnel.up(lambda s, d: payload(24), proto=47)
    old.up(lambda s, d: payload(24), proto=50)
    c.at(55 * S)
    first.down(ANSWER())
    six.down(ANSWER6())
    c.at(75 * S)
    second.down(ANSWER(), drop="firewall-deny")
    c.at(590 * S)
    tunnel.down(lambda s, d: payload(24), proto=47)
    c.at(620 * S)
    old.down(lambda s, d: payload(24), proto=50, drop="firewall-deny")
