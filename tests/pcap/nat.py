"""NAT: source, destination, static; mappings and who may use them; hairpinning; tenants; pools that run out."""

from lib import *

POOL, POOL2 = "203.0.113.5", "203.0.113.6"
A, B = (H4, 40000), (H4B, 40000)
DNS, DNS2 = (S4, 53), (S4B, 53)
S = 1000
INTERNET = source_nat("internet", [POOL])
NATTED = zoned(OUT, INTERNET)


def nat(**keys):
    """The table [nat]."""
    return "[nat]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())


# -- source NAT ----------------------------------------------------------------------------------------------
@story("nat-source-udp", "UDP leaves with an address of the pool and a port of its own; the reply comes back; TTL and checksums are as after one hop.",
       "scapy script: RFC 3022 section 4, RFC 4787 REQ-1 and REQ-3", NATTED)
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, DNS, seen=(POOL, p))
    talk.up(U(40))
    talk.down(U(200))
    talk.up(U(0))
    talk.down(U(1), ttl=2)
    c.rx("wan", from_server(v4(S4, H4) / U()(53, 40000)), drop="firewall-deny")  # nobody outside knows the inside


@story("nat-mss-clamped", "The MSS is lowered and the addresses change: both are in the checksum.",
       "scapy script: RFC 9293 section 3.7.1, RFC 3022 section 4", zoned(OUT, INTERNET, wan_keys={"mtu": 1400, "clamp_mss": True}))
def _(c):
    talk = Talk(c, A, (S4, 443), seen=(POOL, c.choice("p")))
    talk.up(T("S", 1000, options=[("MSS", 1460)]), heard=T("S", 1000, options=[("MSS", 1360)]))
    talk.down(T("SA", 5000, 1001, options=[("MSS", 1460)]), heard=T("SA", 5000, 1001, options=[("MSS", 1360)]))


@story("nat-source-tcp", "A TCP connection through NAT, from SYN to the last ACK; options and numbers stay as they are.",
       "scapy script: RFC 3022 section 4, RFC 5382 REQ-1 and REQ-2", NATTED)
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, (S4, 443), seen=(POOL, p))
    options = {"options": [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 7)]}
    talk.up(T("S", 1000, **options))
    talk.down(T("SA", 5000, 1001, **options))
    talk.up(T("A", 1001, 5001))
    talk.up(T("PA", 1001, 5001, data=1400))
    talk.down(T("A", 5001, 2401))
    talk.down(T("PAU", 5001, 2401, data=33, urgptr=3))
    talk.up(T("FA", 2401, 5034))
    talk.down(T("FA", 5034, 2402))
    talk.up(T("A", 2402, 5035))


@story("nat-source-icmp", "Echo and timestamp leave with an identifier of their own; replies get the host's identifier back.",
       "scapy script: RFC 5508 REQ-1, RFC 3022 section 4.1", NATTED)
def _(c):
    p, q = c.choice("p", 0), c.choice("q", 0, unlike=["p"])
    talk = Talk(c, (H4, 0x1234), (S4, 0), seen=(POOL, p))
    talk.up(ASK(1))
    talk.down(ANSWER(1))
    talk.up(ASK(2, 0))
    talk.down(ANSWER(2, 0))
    talk = Talk(c, (H4, 9), (S4, 0), seen=(POOL, q))
    talk.up(lambda s, d: ICMP(type=13, id=s, seq=1, ts_ori=1, ts_rx=0, ts_tx=0))
    talk.down(lambda s, d: ICMP(type=14, id=d, seq=1, ts_ori=1, ts_rx=2, ts_tx=3))


@story("nat-icmp-identifier-for-all", "The identifier of an ICMP query outside does not depend on whom it asks.",
       "scapy script: RFC 5508 REQ-1a", NATTED)
def _(c):
    p = c.choice("p", 0)
    for server, there in (((S4, 0), AT_SERVER), ((S4B, 0), AT_SERVER2)):
        talk = Talk(c, (H4, 7), server, seen=(POOL, p), there=there)
        talk.up(ASK())
        talk.down(ANSWER())


@story("nat-udp-without-checksum", "A UDP checksum of 0 means that there is none, and stays 0 in both directions.",
       "scapy script: RFC 768, RFC 3022 section 4.1", NATTED)
def _(c):
    talk = Talk(c, A, DNS, seen=(POOL, c.choice("p")))
    talk.up(U(40, chksum=0))
    talk.down(U(40, chksum=0))
    talk.up(U(41))


@story("nat-wrong-checksum-stays-wrong", "A wrong checksum is neither mended nor hidden by translation: it is wrong by as much as before.",
       "scapy script: RFC 1624 section 3 (the update is incremental), RFC 1812 section 5.2.2",
       zoned(rule("in", "allow", "outside", "inside"), OUT, static_nat(POOL, H4)))
def _(c):
    right, other = (rebuilt(v4(src) / U(40)(40000, 53))[UDP].chksum for src in (H4, POOL))
    # One's complement: what the right checksums differ by, the wrong ones differ by too.
    wrong = (right + 0x1111) % 0xFFFF
    wrong_after = (other + 0x1111) % 0xFFFF
    c.rx("lan", from_host(ip(H4, S4) / U(40, chksum=wrong)(40000, 53)))
    out = rebuilt(ip(POOL, S4, ttl=63) / U(40, chksum=wrong_after)(40000, 53))
    c.faulty = True
    c.tx("wan", to_server(out))


@story("nat-same-port-to-all", "One inside endpoint has one outside port, whomever it talks to (endpoint-independent mapping); UDP and TCP each their own.",
       "scapy script: RFC 4787 REQ-1, RFC 5382 REQ-1, RFC 6888 REQ-1", NATTED)
def _(c):
    p, q = c.choice("p"), c.choice("q")
    for server, there in ((DNS, AT_SERVER), ((S4, 123), AT_SERVER), (DNS2, AT_SERVER2)):
        talk = Talk(c, A, server, seen=(POOL, p), there=there)
        talk.up(U())
        talk.down(U())
    for server, there in (((S4, 80), AT_SERVER), ((S4B, 443), AT_SERVER2)):
        Talk(c, A, server, seen=(POOL, q), there=there).handshake()


@story("nat-ports-not-shared", "Two hosts with the same port, and two ports of one host, have different outside ports at one address.",
       "scapy script: RFC 4787 REQ-3 (no port overloading), RFC 5382 REQ-7", NATTED)
def _(c):
    names = ["a", "b", "c", "d"]
    clients = ((A, AT_HOST), (B, AT_HOST2), ((H4, 40001), AT_HOST), ((H4B, 40001), AT_HOST2))
    talks = []
    for n, (client, here) in enumerate(clients):
        p = c.choice(names[n], unlike=names[:n])
        talks.append(Talk(c, client, DNS, seen=(POOL, p), here=here))
        talks[-1].up(U())
    for talk in talks:
        talk.down(U())


@story("nat-port-class", "A well-known source port gets a well-known port outside, any other one above 1023.",
       "scapy script: RFC 4787 REQ-3a", NATTED)
def _(c):
    for n, (port, first, last) in enumerate(((500, 1, 1023), (1, 1, 1023), (1023, 1, 1023), (1024, 1024, 65535), (65535, 1024, 65535))):
        low = [f"p{k}" for k in range(n)]
        talk = Talk(c, (H4, port), (S4, 500), seen=(POOL, c.choice(f"p{n}", first, last, unlike=low)))
        talk.up(U())
        talk.down(U())


@story("nat-port-range", "A pool with a range of ports uses these and no others, for well-known source ports too.",
       "scapy script: the annotated config (ports of a pool)", zoned(OUT, source_nat("internet", [POOL], ports="20000-20127")))
def _(c):
    for n, port in enumerate((40000, 500, 50000)):
        talk = Talk(c, (H4, port), DNS, seen=(POOL, c.choice(f"p{n}", 20000, 20127, unlike=[f"p{k}" for k in range(n)])))
        talk.up(U())
        talk.down(U())


@story("nat-paired", "All sessions of a host leave with one address of the pool, whatever their protocol.",
       "scapy script: RFC 4787 REQ-2, RFC 6888 REQ-2 (paired pooling)", zoned(OUT, source_nat("internet", ["203.0.113.0/28", "203.0.113.64-203.0.113.67"])))
def _(c):
    a = c.choice("a", 0x7100, 0x7143)
    outside = f"203.0.{a >> 8}.{a & 255}"
    for n, said in enumerate((U(), U(), T("S", 1), T("S", 1), ASK())):
        p = c.choice(f"p{n}", 0 if n == 4 else 1024)
        Talk(c, (H4, 40000 + n), (S4, 53), seen=(outside, p)).up(said)


@story("nat-exempt", "Sessions to exempt destinations keep their addresses, those of a static NAT as well; all others are translated.",
       "scapy script: RFC 6888 REQ-6, the annotated config (exempt)",
       zoned(OUT, source_nat("not-there", frm=None, to={"prefix": S4B}), source_nat("internet", [POOL]), static_nat(POOL2, H4B)))
def _(c):
    talk = Talk(c, A, DNS2, there=AT_SERVER2)
    talk.up(U())
    talk.down(U())
    Talk(c, B, DNS2, here=AT_HOST2, there=AT_SERVER2).up(U())
    Talk(c, A, DNS, seen=(POOL, c.choice("p"))).up(U())
    Talk(c, B, DNS, seen=(POOL2, 40000), here=AT_HOST2).up(U())


@story("nat-source-rules-in-order", "Source NAT rules are looked at in order; service, source and destination choose the pool, and who matches none is not translated.",
       "scapy script: the annotated config (nat.source: ordered, first match)",
       zoned(OUT, source_nat("dns", [POOL], service="udp/53"), source_nat("host", [POOL2], frm={"prefix": H4})))
def _(c):
    Talk(c, A, DNS, seen=(POOL, c.choice("p"))).up(U())
    Talk(c, A, (S4, 54), seen=(POOL2, c.choice("q"))).up(U())
    Talk(c, A, DNS, seen=(POOL2, c.choice("r"))).up(T("S", 1))
    Talk(c, B, DNS, seen=(POOL, c.choice("s", unlike=["p"])), here=AT_HOST2).up(U())
    Talk(c, B, (S4, 54), here=AT_HOST2).up(U())


@story("nat-interface", "A pool \"interface\" is the address the packet leaves by, and its ports 32768 to 60999; the gateway keeps the address and the other ports.",
       "scapy script: the annotated config (pool = \"interface\")", zoned(OUT, source_nat("internet", "interface")))
def _(c):
    p, q = c.choice("p", 32768, 60999), c.choice("q", 0)
    talk = Talk(c, A, DNS, seen=(W4, p))
    talk.up(U())
    talk.down(U())
    talk = Talk(c, (H4, 9), (S4, 0), seen=(W4, q))
    talk.up(ASK())
    talk.down(ANSWER())
    # ICMP echo to the address is the gateway's own matter, and so is what no mapping has.
    c.answer("wan", from_server(v4(S4, W4) / ICMP(type=8, id=1, seq=1) / payload(8)),
             to_server(IP(src=W4, dst=S4, ttl=64, id=0, flags="DF") / ICMP(type=0, id=1, seq=1) / payload(8)))
    c.rx("wan", from_server(v4(S4, W4) / U()(53, 20000)), drop="firewall-deny")
    c.rx("wan", from_server(v4(S4, W4) / T("S", 1)(53, 22)), drop="firewall-deny")


@story("nat-not-for-ipv6", "Source NAT is IPv4's: IPv6 sessions of the same hosts leave as they are.",
       "scapy script: the annotated config (pools are of IPv4), RFC 4864 section 2", zoned(OUT, source_nat("internet", [POOL], frm=None, to=None)))
def _(c):
    talk = Talk(c, (H6, 40000), (S6, 53))
    talk.up(U())
    talk.down(U())
    Talk(c, A, DNS, seen=(POOL, c.choice("p"))).up(U())


@story("nat-no-mapping", "What comes to an outside address that nobody is mapped to is dropped, and nobody is told.",
       "scapy script: RFC 5382 REQ-4a, RFC 4787 section 5", zoned(OUT, rule("in", "allow", "outside", "inside"), INTERNET))
def _(c):
    for port in (1, 1023, 1024, 40000, 65535):
        c.rx("wan", from_server(v4(S4, POOL) / U()(53, port)), drop="nat-no-mapping")
        c.rx("wan", from_server(v4(S4, POOL) / T("S", 1)(53, port)), drop="nat-no-mapping")
    c.rx("wan", from_server(v4(S4, POOL) / ICMP(type=8, id=7, seq=1)), drop="nat-no-mapping")
    p = c.choice("p")
    Talk(c, A, DNS, seen=(POOL, p)).up(U())
    c.rx("wan", from_server(v4(S4, POOL) / T("S", 1)(53, p)), drop="nat-no-mapping")  # UDP's mapping is not TCP's


@story("nat-esp-and-gre", "Protocols without ports get the host's outside address; replies find their way back.",
       "scapy script: RFC 3022 section 4 (basic NAT translates the address), the annotated config", NATTED)
def _(c):
    for number in (50, 47):
        talk = Talk(c, (H4, 0), (S4, 0), seen=(POOL, 0))
        talk.up(lambda s, d: payload(24), proto=number)
        talk.down(lambda s, d: payload(25), proto=number)
        talk.up(lambda s, d: payload(26), proto=number)


@story("nat-conflict", "Two hosts whose sessions would look the same to the server: the second is refused, the first goes on.",
       "scapy script: RFC 4787 REQ-3 (no overloading), the annotated config", NATTED)
def _(c):
    talk = Talk(c, (H4, 0), (S4, 0), seen=(POOL, 0))
    talk.up(lambda s, d: payload(24), proto=50)
    Talk(c, (H4B, 0), (S4, 0), here=AT_HOST2).up(lambda s, d: payload(24), proto=50, drop="flow-conflict")
    talk.down(lambda s, d: payload(25), proto=50)


# -- who may use a mapping -------------------------------------------------------------------------------------
@story("nat-filtering-endpoint-independent", "A mapping can be used by everybody outside, unless a rule says no; each gets answers from it.",
       "scapy script: RFC 4787 REQ-8 (endpoint-independent filtering), RFC 6888 REQ-7, the annotated config (filtering)",
       zoned(rule("not-they", "deny", {"zone": "outside", "prefix": "198.51.100.66"}, "inside"), OUT, INTERNET, neighbour("wan", "198.51.100.66", SERVER2)))
def _(c):
    p = c.choice("p")
    Talk(c, A, DNS, seen=(POOL, p)).up(U())
    for server, there in (((S4, 1000), AT_SERVER), (DNS2, AT_SERVER2), ((S4B, 54), AT_SERVER2)):
        talk = Talk(c, A, server, seen=(POOL, p), there=there)
        talk.down(U())
        talk.up(U())
        talk.down(U())
    Talk(c, A, ("198.51.100.66", 53), seen=(POOL, p), there=AT_SERVER2).down(U(), drop="firewall-deny")
    q = c.choice("q")
    Talk(c, A, (S4, 80), seen=(POOL, q)).handshake()
    talk = Talk(c, (S4B, 50000), A, asked=(POOL, q), here=AT_SERVER2, there=AT_HOST)  # somebody connects to the mapping
    talk.handshake()


@story("nat-filtering-address-dependent", "A mapping can be used by those whom the host has sent something to, from any of their ports; by others only with a rule.",
       "scapy script: RFC 4787 REQ-8 (address-dependent filtering) and section 5", zoned(OUT, INTERNET, extra=nat(filtering="address-dependent")))
def _(c):
    p = c.choice("p")
    Talk(c, A, DNS, seen=(POOL, p)).up(U())
    Talk(c, A, DNS, seen=(POOL, p)).down(U())
    Talk(c, A, DNS2, seen=(POOL, p), there=AT_SERVER2).down(U(), drop="firewall-deny")
    Talk(c, A, (S4, 1000), seen=(POOL, p)).down(U())
    Talk(c, A, DNS2, seen=(POOL, p), there=AT_SERVER2).up(U())
    Talk(c, A, (S4B, 1000), seen=(POOL, p), there=AT_SERVER2).down(U())


@story("nat-session-limit", "An inside host has as many sessions as it may have and no more; other hosts are not concerned.",
       "scapy script: RFC 6888 REQ-5, the annotated config (per_host_sessions)", zoned(OUT, extra="[flows]\nper_host_sessions = 3\n\n[icmp]\nrate = 0\n"))
def _(c):
    for n in range(3):
        Talk(c, (H4, 40000 + n), DNS).up(U())
    Talk(c, (H4, 40003), DNS).up(U(), drop="host-session-limit")
    Talk(c, (H4, 40002), DNS).up(U())
    Talk(c, B, DNS, here=AT_HOST2).up(U())
    c.at(60 * S)
    Talk(c, (H4, 40003), DNS).up(U())


@story("nat-filtering-third-parties", "With address-dependent filtering nobody uses a mapping whom the host has not sent something to, unless a rule lets them.",
       "scapy script: RFC 4787 REQ-8 (address-dependent filtering) and section 5",
       zoned(OUT, INTERNET, rule("monitor", "allow", {"zone": "outside", "prefix": "198.51.100.66"}, {"prefix": H4}, service="udp/40000"),
             neighbour("wan", "198.51.100.66", SERVER2), extra=nat(filtering="address-dependent")))
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, DNS, seen=(POOL, p))
    talk.up(U())
    talk.down(U())
    other = Talk(c, A, DNS2, seen=(POOL, p), there=AT_SERVER2)
    other.down(U(), drop="firewall-deny")
    other.up(U())
    other.down(U())
    Talk(c, A, ("198.51.100.66", 1000), seen=(POOL, p), there=AT_SERVER2).down(U())


@story("nat-mapping-time", "A UDP mapping lives five minutes from its last outbound packet, whether or not anybody answered.",
       "scapy script: RFC 4787 REQ-5 (not under 2 minutes, 5 recommended) and REQ-6", NATTED)
def _(c):
    p, q = c.choice("p"), c.choice("q", unlike=["p"])
    asked, answered = Talk(c, A, DNS, seen=(POOL, p)), Talk(c, (H4, 40001), DNS, seen=(POOL, q))
    asked.up(U())
    answered.up(U())
    answered.down(U())
    c.at(100 * S)
    asked.down(U())  # udp_unreplied_s is for sessions without NAT
    asked.up(U())
    c.at(290 * S)
    answered.up(U())
    c.at(390 * S)
    asked.down(U())
    c.at(600 * S)
    answered.down(U(), drop="nat-no-mapping")


@story("nat-mapping-is-remembered", "An endpoint that comes back soon gets its outside port back.",
       "scapy script: RFC 6888 REQ-8 (the port rests for others), RFC 4787 REQ-1", NATTED)
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, DNS, seen=(POOL, p))
    talk.up(U())
    c.at(350 * S)
    talk.down(U(), drop="nat-no-mapping")  # five minutes are over
    talk.up(U())
    talk.down(U())


# -- destination NAT -------------------------------------------------------------------------------------------
@story("nat-destination-address", "All that comes to an outside address goes to the server, whose answers come from that address; rules see the server.",
       "scapy script: RFC 3022 section 2.1, RFC 2663 section 4.1.1, the annotated config (rules see destinations after destination NAT)",
       zoned(destination_nat("all", POOL, H4), rule("in", "allow", "outside", {"prefix": H4}, service=["tcp/80", "udp/53", "icmp/echo-request", "esp"])))
def _(c):
    Talk(c, (S4, 50000), (H4, 80), asked=(POOL, 80), here=AT_SERVER, there=AT_HOST).handshake()
    talk = Talk(c, (S4, 50000), (H4, 53), asked=(POOL, 53), here=AT_SERVER, there=AT_HOST)
    talk.up(U())
    talk.down(U())
    talk = Talk(c, (S4, 77), (H4, 77), asked=(POOL, 77), here=AT_SERVER, there=AT_HOST)
    talk.up(ASK())
    talk.down(ANSWER())
    talk = Talk(c, (S4, 0), (H4, 0), asked=(POOL, 0), here=AT_SERVER, there=AT_HOST)
    talk.up(lambda s, d: payload(24), proto=50)
    talk.down(lambda s, d: payload(24), proto=50)
    c.rx("wan", from_server(v4(S4, POOL) / T("S", 1)(50000, 81)), drop="firewall-deny")
    Talk(c, A, (S4, 50000)).up(U(), drop="firewall-deny")  # nothing the other way


@story("nat-destination-port", "A port of an outside address is forwarded to another port of a server; other ports and protocols are not.",
       "scapy script: RFC 2663 section 4.1.2, the annotated config (nat.destination)",
       zoned(destination_nat("ssh", POOL, f"{H4}:22", service="tcp/2222"), rule("in", "allow", "outside", "inside", service="tcp/22"), route("203.0.113.0/24", blackhole=True)))
def _(c):
    talk = Talk(c, (S4, 50000), (H4, 22), asked=(POOL, 2222), here=AT_SERVER, there=AT_HOST).handshake()
    talk.up(T("PA", 1001, 5001, data=100))
    talk.down(T("PA", 5001, 1101, data=100))
    for p in (T("S", 1)(50000, 22), T("S", 1)(50000, 2223), U()(50000, 2222)):
        c.rx("wan", from_server(v4(S4, POOL) / p), drop="blackhole")


@story("nat-destination-services", "A rule may name several ports and ranges; without a port in the target they stay.",
       "scapy script: the annotated config (nat.destination)",
       zoned(destination_nat("web", POOL, H4, service=["tcp/80", "tcp/443", "udp/5000-5010"]), rule("in", "allow", "outside", "inside"), route("203.0.113.0/24", blackhole=True)))
def _(c):
    for port, said, ok in ((80, T("S", 1), 1), (443, T("S", 1), 1), (81, T("S", 1), 0), (4999, U(), 0), (5000, U(), 1), (5005, U(), 1), (5010, U(), 1), (5011, U(), 0)):
        Talk(c, (S4, 50000), (H4, port), asked=(POOL, port), here=AT_SERVER, there=AT_HOST).up(said, drop=None if ok else "blackhole")


@story("nat-destination-precedence", "Ports come before a protocol, that before the whole address, wherever they stand; among equals the first.",
       "scapy script: the annotated config (nat.destination)",
       zoned(destination_nat("all", POOL, H4), destination_nat("tcp", POOL, H4B, service="tcp"),
             destination_nat("https", POOL, f"{H4}:8443", service="tcp/443"),
             destination_nat("range", POOL, H4, service="tcp/1000-2000"),
             rule("in", "allow", "outside", "inside")))
def _(c):
    for port, host, inside, there in ((443, H4, 8443, AT_HOST), (80, H4B, 80, AT_HOST2), (1500, H4, 1500, AT_HOST), (2001, H4B, 2001, AT_HOST2)):
        Talk(c, (S4, 50000), (host, inside), asked=(POOL, port), here=AT_SERVER, there=there).up(T("S", 1))
    Talk(c, (S4, 50000), (H4, 443), asked=(POOL, 443), here=AT_SERVER, there=AT_HOST).up(U())


@story("nat-destination-from", "A rule may be for some senders only; all others find nothing there.",
       "scapy script: the annotated config (nat.destination from)",
       zoned(table("group", name="office", members=[S4]), rule("in", "allow", "outside", "inside"), route("203.0.113.0/24", blackhole=True),
             table("nat.destination", name="jump", address=POOL, service="tcp/2222", target=f"{H4}:22", **{"from": {"group": "office"}}),
             table("nat.destination", name="other", address=POOL, service="tcp/2223", target=f"{H4}:22", **{"from": {"zone": "outside", "prefix": S4B}})))
def _(c):
    for (src, here), port, ok in (((S4, AT_SERVER), 2222, 1), ((S4B, AT_SERVER2), 2222, 0), ((S4, AT_SERVER), 2223, 0), ((S4B, AT_SERVER2), 2223, 1)):
        Talk(c, (src, 50000), (H4, 22), asked=(POOL, port), here=here, there=AT_HOST).up(T("S", 1), drop=None if ok else "blackhole")


@story("nat-rules-of-a-zone", "A NAT rule is for the zones it names: neither another source nor another destination is translated by it.",
       "scapy script: the annotated config (nat.source, nat.destination: from and to)",
       zoned(OUT, INTERNET, rule("visit", "allow", "inside", "guests"), rule("guests-out", "allow", "guests", "outside"),
             rule("web", "allow", None, {"prefix": H4}, service="tcp/8080"), route(f"{POOL2}/32", blackhole=True),
             destination_nat("web", POOL2, f"{H4}:8080", service="tcp/80", **{"from": {"zone": "outside"}}),
             interface("guest", ["203.0.113.129/25"], zone="guests"), neighbour("guest", "203.0.113.130", SERVER2),
             ports=("lan", "wan", "guest")))
def _(c):
    at_guest, guest = End("guest", SERVER2, GW_DMZ), "203.0.113.130"
    Talk(c, A, DNS, seen=(POOL, c.choice("p"))).up(U())
    for talk in (Talk(c, A, (guest, 53), there=at_guest), Talk(c, (guest, 40000), DNS, here=at_guest)):
        talk.up(U())
        talk.down(U())
    Talk(c, (S4, 50000), (H4, 8080), asked=(POOL2, 80), here=AT_SERVER, there=AT_HOST).handshake()
    Talk(c, (guest, 50000), (H4, 8080), asked=(POOL2, 80), here=at_guest, there=AT_HOST).up(T("S", 1), drop="blackhole")


@story("nat-destination-own-address", "A port of the gateway's own address may be forwarded; the rest of the address stays the gateway's.",
       "scapy script: the annotated config (nat.destination)",
       zoned(destination_nat("web", W4, f"{H4}:8080", service="tcp/80"), rule("in", "allow", "outside", "inside", service="tcp/8080")))
def _(c):
    Talk(c, (S4, 50000), (H4, 8080), asked=(W4, 80), here=AT_SERVER, there=AT_HOST).handshake()
    c.rx("wan", from_server(v4(S4, W4) / T("S", 1)(50000, 81)), drop="firewall-deny")
    c.answer("wan", from_server(v4(S4, W4) / ICMP(type=8, id=1, seq=1) / payload(8)),
             to_server(IP(src=W4, dst=S4, ttl=64, id=0, flags="DF") / ICMP(type=0, id=1, seq=1) / payload(8)))


@story("nat-destination-ipv6", "Destination NAT is for IPv6 as well.",
       "scapy script: the annotated config (address and target are of one family), RFC 8200 section 8.1",
       zoned(destination_nat("web", "2001:db8:77::7", f"[{H6}]:8080", service="tcp/80"), destination_nat("all", "2001:db8:77::8", H6),
             rule("in", "allow", "outside", "inside")))
def _(c):
    talk = Talk(c, (S6, 50000), (H6, 8080), asked=("2001:db8:77::7", 80), here=AT_SERVER, there=AT_HOST).handshake()
    talk.up(T("PA", 1001, 5001, data=100))
    talk = Talk(c, (S6, 50000), (H6, 53), asked=("2001:db8:77::8", 53), here=AT_SERVER, there=AT_HOST)
    talk.up(U())
    talk.down(U())
    talk = Talk(c, (S6, 9), (H6, 9), asked=("2001:db8:77::8", 9), here=AT_SERVER, there=AT_HOST)
    talk.up(ASK6())
    talk.down(ANSWER6())


BLUE = (interface("blue", ["192.0.2.1/24"], port="lan", vlan=200, zone="inside", vrf="blue"), neighbour("blue", H4, HOST),
        neighbour("blue", H4B, HOST2), route("0.0.0.0/0", f"{S4}@default", vrf="blue"))
AT_BLUE, AT_BLUE2 = End("lan", HOST, GW_LAN, 200), End("lan", HOST2, GW_LAN, 200)
UPLINK = (interface("wan", ["198.51.100.1/24"], zone="outside"), neighbour("wan", S4, SERVER), neighbour("wan", S4B, SERVER2))


@story("nat-destination-target-vrf", "An outside address of one VRF leads to a server in another; its answers leave where the question came in.",
       "scapy script: the annotated config (target_vrf), RFC 4364 section 3",
       config(*UPLINK, *BLUE, destination_nat("web", POOL, f"{H4}:8080", service="tcp/80", target_vrf="blue"),
              rule("in", "allow", "outside", {"zone": "inside", "vrf": "blue"}, service="tcp/8080")))
def _(c):
    talk = Talk(c, (S4, 50000), (H4, 8080), asked=(POOL, 80), here=AT_SERVER, there=AT_BLUE).handshake()
    talk.down(T("PA", 5001, 1001, data=10))


# -- static NAT --------------------------------------------------------------------------------------------------
@story("nat-static", "One outside address for one host, in both directions and with all its ports.",
       "scapy script: RFC 3022 section 2.1 (basic NAT), the annotated config (nat.static)",
       zoned(OUT, rule("in", "allow", "outside", {"prefix": H4}, service=["tcp/22", "icmp/echo-request"]), static_nat(POOL, H4), source_nat("others", [POOL2])))
def _(c):
    talk = Talk(c, A, DNS, seen=(POOL, 40000))
    talk.up(U())
    talk.down(U())
    Talk(c, (H4, 7), (S4, 443), seen=(POOL, 7)).handshake()
    talk = Talk(c, (H4, 9), (S4, 9), seen=(POOL, 9))
    talk.up(ASK())
    talk.down(ANSWER())
    Talk(c, (S4, 50000), (H4, 22), asked=(POOL, 22), here=AT_SERVER, there=AT_HOST).handshake()
    talk = Talk(c, (S4, 5), (H4, 5), asked=(POOL, 5), here=AT_SERVER, there=AT_HOST)
    talk.up(ASK())
    talk.down(ANSWER())
    talk = Talk(c, (H4, 0), (S4, 0), seen=(POOL, 0))
    talk.up(lambda s, d: payload(24), proto=50)
    talk.down(lambda s, d: payload(24), proto=50)
    c.rx("wan", from_server(v4(S4, POOL) / T("S", 1)(50000, 23)), drop="firewall-deny")
    Talk(c, B, DNS, seen=(POOL2, c.choice("p")), here=AT_HOST2).up(U())


@story("nat-static-prefix", "A prefix for a prefix: the rest of the address stays.",
       "scapy script: the annotated config (nat.static), RFC 3022 section 2.1",
       zoned(OUT, rule("in", "allow", "outside", "inside"), static_nat("203.0.113.32/28", "192.0.2.0/28"), static_nat("2001:db8:77::/64", "2001:db8:1::/64")))
def _(c):
    for n, here in ((10, AT_HOST), (11, AT_HOST2)):
        talk = Talk(c, (f"192.0.2.{n}", 40000), DNS, seen=(f"203.0.113.{32 + n}", 40000), here=here)
        talk.up(U())
        talk.down(U())
        Talk(c, (S4, 50000), (f"192.0.2.{n}", 80), asked=(f"203.0.113.{32 + n}", 80), here=AT_SERVER, there=here).handshake()
        talk = Talk(c, (f"2001:db8:1::{n}", 40000), (S6, 53), seen=(f"2001:db8:77::{n}", 40000), here=here)
        talk.up(U())
        talk.down(U())
        talk = Talk(c, (f"2001:db8:1::{n}", 9), (S6, 9), seen=(f"2001:db8:77::{n}", 9), here=here)
        talk.up(ASK6())
        talk.down(ANSWER6())


@story("nat-static-to", "A static NAT may be for sessions to some places only; to others the host goes by the other rules.",
       "scapy script: the annotated config (nat.static to)",
       zoned(OUT, table("nat.static", name="partner", outside=POOL, inside=H4, to={"zone": "outside", "prefix": S4B}), source_nat("internet", [POOL2])))
def _(c):
    Talk(c, A, DNS2, seen=(POOL, 40000), there=AT_SERVER2).up(U())
    Talk(c, A, DNS, seen=(POOL2, c.choice("p"))).up(U())


@story("nat-static-vrf", "A static NAT between VRFs: the same inside address in two of them, an outside address each.",
       "scapy script: the annotated config (inside_vrf), RFC 4364 section 3",
       config(*UPLINK, *BLUE, interface("lan", ["192.0.2.1/24"], zone="inside"), neighbour("lan", H4, HOST), OUT, rule("in", "allow", "outside", "inside"),
              static_nat(POOL, H4), static_nat(POOL2, H4, inside_vrf="blue")))
def _(c):
    for outside, end in ((POOL, AT_HOST), (POOL2, AT_BLUE)):
        talk = Talk(c, A, DNS, seen=(outside, 40000), here=end)
        talk.up(U())
        talk.down(U())
        Talk(c, (S4, 50000), (H4, 22), asked=(outside, 22), here=AT_SERVER, there=end).handshake()


def to_all_ones():
    """A UDP payload whose checksum, computed with the outside address, is 0 and must be sent as 0xffff."""
    for n in range(0x10000):
        data = n.to_bytes(2, "big")
        datagram = struct.pack(">4H", 40000, 53, 10, 0) + data
        pseudo = IP(bytes(IP(src=POOL, dst=S4)))
        if ones_complement(bytes(pseudo)[12:20] + struct.pack(">HH", 17, 10) + datagram) == 0:
            return data
    raise AssertionError("there is one")


@story("nat-udp-checksum-becomes-zero", "A UDP checksum that comes out as 0 by translation is sent as all ones, for 0 would say that there is none.",
       "scapy script: RFC 768, RFC 3022 section 4.1", zoned(OUT, static_nat(POOL, H4)))
def _(c):
    data = to_all_ones()
    talk = Talk(c, A, DNS, seen=(POOL, 40000))
    _, got = talk.up(lambda s, d: UDP(sport=s, dport=d) / Raw(data))
    assert got[UDP].chksum == 0xFFFF


# -- hairpinning -------------------------------------------------------------------------------------------------
@story("nat-hairpin-udp", "An inside host reaches another by its mapping, and shows its own outside address and port there.",
       "scapy script: RFC 4787 REQ-9 and REQ-9a", NATTED)
def _(c):
    pa, pb = c.choice("pa"), c.choice("pb", unlike=["pa"])
    Talk(c, B, DNS, seen=(POOL, pb), here=AT_HOST2).up(U())
    talk = Talk(c, A, B, seen=(POOL, pa), asked=(POOL, pb), here=AT_HOST, there=AT_HOST2)
    talk.up(U())
    talk.down(U())
    talk.up(U())
    Talk(c, A, DNS, seen=(POOL, pa)).up(U())  # the very port it has outside


@story("nat-hairpin-tcp", "Two inside hosts connect by their mappings.", "scapy script: RFC 5382 REQ-8 and REQ-8a", NATTED)
def _(c):
    pa, pb = c.choice("pa"), c.choice("pb", unlike=["pa"])
    Talk(c, B, (S4, 80), seen=(POOL, pb), here=AT_HOST2).handshake()
    Talk(c, A, B, seen=(POOL, pa), asked=(POOL, pb), here=AT_HOST, there=AT_HOST2).handshake()


@story("nat-hairpin-to-server", "An inside host reaches a server inside by its forwarded port; the server sees the host's outside address, so that answers come back this way.",
       "scapy script: RFC 4787 REQ-9, RFC 5382 REQ-8", zoned(OUT, INTERNET, destination_nat("web", POOL2, f"{H4B}:8080", service="tcp/80")))
def _(c):
    Talk(c, A, (H4B, 8080), seen=(POOL, c.choice("p")), asked=(POOL2, 80), here=AT_HOST, there=AT_HOST2).handshake()


@story("nat-hairpin-static", "Hosts with static outside addresses reach each other by them, from the one and to the other.",
       "scapy script: RFC 4787 REQ-9, RFC 5508 REQ-7 (queries with basic NAT)", zoned(OUT, static_nat(POOL, H4), static_nat(POOL2, H4B)))
def _(c):
    talk = Talk(c, A, (H4B, 53), seen=(POOL, 40000), asked=(POOL2, 53), here=AT_HOST, there=AT_HOST2)
    talk.up(U())
    talk.down(U())
    talk = Talk(c, (H4, 9), (H4B, 9), seen=(POOL, 9), asked=(POOL2, 9), here=AT_HOST, there=AT_HOST2)
    talk.up(ASK())
    talk.down(ANSWER())


@story("nat-hairpin-off", "Without hairpinning inside hosts do not reach each other by outside addresses; directly they do.",
       "scapy script: the annotated config (hairpin)",
       zoned(OUT, INTERNET, destination_nat("web", POOL2, f"{H4B}:8080", service="tcp/80"), extra=nat(hairpin=False)))
def _(c):
    pb = c.choice("pb")
    Talk(c, B, DNS, seen=(POOL, pb), here=AT_HOST2).up(U())
    c.rx("lan", from_host(v4(H4, POOL) / U()(40000, pb)), drop="nat-hairpin")
    c.rx("lan", from_host(v4(H4, POOL2) / T("S", 1)(40000, 80)), drop="nat-hairpin")
    Talk(c, A, (H4B, 8080), here=AT_HOST, there=AT_HOST2).up(T("S", 1))


# -- tenants, and pools that run out ------------------------------------------------------------------------------
def tenants(*more, **keys):
    """Two VRFs with the same addresses, and one way out in a third."""
    tables = []
    for vrf, vlan in (("red", 100), ("blue", 200)):
        tables += [interface(vrf, ["192.0.2.1/24"], port="lan", vlan=vlan, vrf=vrf, zone="inside"), neighbour(vrf, H4, HOST),
                   route("0.0.0.0/0", f"{S4}@default", vrf=vrf)]
    return config(*UPLINK, *tables, OUT, *more, **keys)


RED = End("lan", HOST, GW_LAN, 100)


@story("nat-two-tenants", "Two tenants with the same addresses and ports share a pool: different ports outside, and each reply goes to the right one.",
       "scapy script: RFC 6888 section 1 and REQ-1, RFC 4364 section 3, RFC 4787 REQ-3", tenants(INTERNET))
def _(c):
    red, blue = c.choice("red"), c.choice("blue", unlike=["red"])
    one, other = Talk(c, A, DNS, seen=(POOL, red), here=RED), Talk(c, A, DNS, seen=(POOL, blue), here=AT_BLUE)
    one.up(U(10))
    other.up(U(20))
    other.down(U(21))
    one.down(U(11))
    red, blue = c.choice("red_tcp"), c.choice("blue_tcp", unlike=["red_tcp"])
    Talk(c, A, (S4, 443), seen=(POOL, red), here=RED).handshake((1000, 5000))
    Talk(c, A, (S4, 443), seen=(POOL, blue), here=AT_BLUE).handshake((7000, 9000))
    red, blue = c.choice("red_id", 0), c.choice("blue_id", 0, unlike=["red_id"])
    one, other = (Talk(c, (H4, 7), (S4, 0), seen=(POOL, p), here=here) for p, here in ((red, RED), (blue, AT_BLUE)))
    one.up(ASK(1))
    other.up(ASK(2))
    one.down(ANSWER(1))
    other.down(ANSWER(2))


@story("nat-two-tenants-two-pools", "A source NAT rule may be for one VRF's hosts: each tenant leaves with its own address.",
       "scapy script: the annotated config (nat.source from vrf)",
       tenants(source_nat("red", [POOL], frm={"zone": "inside", "vrf": "red"}), source_nat("blue", [POOL2], frm={"vrf": "blue"})))
def _(c):
    for name, outside, here in (("red", POOL, RED), ("blue", POOL2, AT_BLUE)):
        talk = Talk(c, A, DNS, seen=(outside, c.choice(name)), here=here)
        talk.up(U())
        talk.down(U())


@story("nat-tenants-stay-apart", "A tenant's packets to an inside address of another tenant go by its own routes, and replies by the mapping's tenant.",
       "scapy script: RFC 4364 section 3, RFC 6888 section 1", tenants(INTERNET))
def _(c):
    red = c.choice("red")
    talk = Talk(c, A, DNS, seen=(POOL, red), here=RED)
    talk.up(U())
    Talk(c, B, A, here=End("lan", HOST2, GW_LAN, 100), there=RED).up(U())  # in its own network
    Talk(c, (H4, 41000), DNS, seen=(POOL, c.choice("blue", unlike=["red"])), here=AT_BLUE).up(U())
    talk.down(U())


def told(p, code):
    return to_host(icmp4(L4, p.src, 3, code, p))


@story("nat-pool-exhausted", "When the pool has no ports left a new host is refused, with host unreachable; those who have some go on.",
       "scapy script: RFC 6888 REQ-11, RFC 5508 REQ-8", zoned(OUT, source_nat("internet", [POOL], ports="20032-20095")))
def _(c):
    p, q = c.choice("p", 20032, 20095), c.choice("q", 20032, 20095, unlike=["p"])
    talk = Talk(c, A, DNS, seen=(POOL, p))
    talk.up(U())
    lost = rebuilt(v4(H4B) / U()(40000, 53))
    c.rx("lan", AT_HOST2.sends(lost), drop="nat-pool-exhausted")
    c.tx("lan", AT_HOST2.gets(icmp4(L4, H4B, 3, 1, lost)), own=True)
    talk.down(U())
    talk.up(U())
    Talk(c, (H4, 40001), DNS, seen=(POOL, q)).up(U())


@story("nat-host-quota", "A host that has all the ports it may have is refused more, with administratively prohibited; no two of its ports are the same.",
       "scapy script: RFC 6888 REQ-4, RFC 4787 REQ-3, RFC 5508 REQ-8",
       zoned(OUT, source_nat("internet", [POOL], ports="20032-20223"), extra=nat(max_blocks_per_host=1)))
def _(c):
    for n in range(64):
        name = f"p{n:02}"
        p = c.choice(name, 20032, 20223, unlike=[f"p{k:02}" for k in range(n)])
        Talk(c, (H4, 30000 + n), DNS, seen=(POOL, p)).up(U(4))
    lost = rebuilt(v4() / U()(40000, 53))
    c.error("lan", from_host(lost), "nat-host-quota", told(lost, 13))
    q = c.choice("other", 20032, 20223)
    Talk(c, B, DNS, seen=(POOL, q), here=AT_HOST2).up(U())
    q = c.choice("tcp", 20032, 20223)  # each protocol has its own ports in the block
    Talk(c, A, (S4, 443), seen=(POOL, q)).up(T("S", 1))


@story("nat-host-rate", "A host that asks for mappings too fast is refused more for a while, with administratively prohibited; those it has go on, and others do not notice.",
       "scapy script: RFC 6888 REQ-4c (a token bucket: 2 at once, 10 a second), RFC 5508 REQ-8",
       zoned(OUT, source_nat("internet", [POOL]), extra="[nat]\nnew_mappings_per_host = { per_s = 10, burst = 2 }\n"))
def _(c):
    p, q, r, t = (c.choice(name) for name in "pqrt")
    first = Talk(c, (H4, 30000), DNS, seen=(POOL, p))
    first.up(U())
    Talk(c, (H4, 30001), DNS, seen=(POOL, q)).up(U())
    lost = rebuilt(v4() / U()(30002, 53))
    c.error("lan", from_host(lost), "nat-host-rate", told(lost, 13))
    first.up(U())
    first.down(U())
    Talk(c, (H4, 30000), DNS2, seen=(POOL, p), there=AT_SERVER2).up(U())  # a session more, no mapping
    Talk(c, B, DNS, seen=(POOL, r), here=AT_HOST2).up(U())
    c.at(110)
    Talk(c, (H4, 30002), DNS, seen=(POOL, t)).up(U())
    lost = rebuilt(v4() / U()(30003, 53))
    c.error("lan", from_host(lost), "nat-host-rate", told(lost, 13))


@story("nat-hold-down", "A freed port rests for two minutes before another host gets it.",
       "scapy script: RFC 6888 REQ-8",
       zoned(OUT, source_nat("internet", [POOL], ports="20032-20095"), extra="[icmp]\nrate = 0\n"))
def _(c):
    p, q = c.choice("p", 20032, 20095), c.choice("q", 20032, 20095)
    Talk(c, A, DNS, seen=(POOL, p)).up(U())
    other = Talk(c, B, DNS, seen=(POOL, q), here=AT_HOST2)
    c.at(290 * S)
    other.up(U(), drop="nat-pool-exhausted")
    c.at(400 * S)  # freed 100 s ago
    other.up(U(), drop="nat-pool-exhausted")
    c.at(500 * S)  # what has rested is collected within a minute
    other.up(U())
    other.down(U())


@story("nat-hold-down-configured", "How long a freed port rests is configured.",
       "scapy script: RFC 6888 REQ-8 (must be configurable), the annotated config (hold_down_s)",
       zoned(OUT, source_nat("internet", [POOL], ports="20032-20095"), extra=nat(hold_down_s=10) + "\n[icmp]\nrate = 0\n"))
def _(c):
    p, q = c.choice("p", 20032, 20095), c.choice("q", 20032, 20095)
    Talk(c, A, DNS, seen=(POOL, p)).up(U())
    other = Talk(c, B, DNS, seen=(POOL, q), here=AT_HOST2)
    c.at(305 * S)
    other.up(U(), drop="nat-pool-exhausted")
    c.at(400 * S)
    other.up(U())
    other.down(U())


# -- who asks for an outside address on the link --------------------------------------------------------------------
@story("nat-answers-arp", "Outside addresses in a network of an interface are answered for by ARP and ND on it, with the gateway's address; their neighbours are not.",
       "scapy script: RFC 1027 section 2.3 (proxy ARP), RFC 4861 section 7.2.8 (proxy: override clear)",
       zoned(OUT, source_nat("internet", ["198.51.100.64/30"]), static_nat("198.51.100.70", H4), destination_nat("web", "198.51.100.71", H4B, service="tcp/80")))
def _(c):
    for n in (64, 67, 70, 71):
        c.answer("wan", arp_request(SERVER, S4, f"198.51.100.{n}"), arp_reply(GW_WAN, f"198.51.100.{n}", SERVER, S4))
    for n in (63, 68, 72):
        c.rx("wan", arp_request(SERVER, S4, f"198.51.100.{n}"), punt=True)
    c.rx("lan", arp_request(HOST, H4, "198.51.100.64"), punt=True)


@story("nat-rate-limit", "A rule with a rate limit lets so many sessions begin; their packets are not limited.",
       "scapy script: the annotated config (rate_limit), token bucket", zoned(rule("out", "allow", "inside", "outside", rate_limit={"per_s": 1, "burst": 3})))
def _(c):
    for start, free in ((0, 3), (2000, 2)):
        c.at(start)
        for n in range(5):
            talk = Talk(c, (H4, 40000 + start + n), DNS)
            talk.up(U(), drop=None if n < free else "rule-rate-limit")
            if n < free:
                talk.down(U())
                talk.up(U())
