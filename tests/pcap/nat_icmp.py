"""ICMP errors about sessions, with and without NAT; TTL, MTU and path MTU discovery on both sides of a NAT."""

from lib import *
from nat import A, B, DNS, INTERNET, NATTED, POOL, POOL2, S
from scapy.all import IPOption_Router_Alert
from scapy.layers.inet6 import ICMPv6ParamProblem

ROUTER = "198.51.100.99"  # somewhere outside
OPEN = zoned(OUT)


def error4(src, dst, kind, code, quoted, mtu=0, ttl=64, length=0, extra=b"", keep=None):
    """An ICMP error of some other station about `quoted`, of which it shows `keep` bytes."""
    shown = bytes(quoted)[:keep]
    head = {"nexthopmtu": mtu} if mtu else {}
    message = bytes(ICMP(type=kind, code=code, **head) / Raw(shown + extra))
    if length:  # RFC 4884 section 4.1: the length of the quoted datagram in 32-bit words
        message = message[:2] + b"\0\0" + message[4:5] + bytes([length]) + message[6:]
        message = message[:2] + ones_complement(message).to_bytes(2, "big") + message[4:]
    return rebuilt(IP(src=src, dst=dst, ttl=ttl, id=0x77, flags="DF", proto=1) / Raw(message))


def error6(src, dst, message, quoted, hlim=64):
    return rebuilt(IPv6(src=src, dst=dst, hlim=hlim) / message / Raw(bytes(quoted)[:1200]))


def pair(said, inside, outside, ttl=60, **keys):
    """A packet as it is known inside and as it is known outside; each is ((src, port), (dst, port))."""
    def packet(ends):
        (src, sport), (dst, dport) = ends
        return rebuilt(ip(src, dst, ttl=ttl, **keys) / said(sport, dport))
    return packet(inside), packet(outside)


def inbound(c, kind, code, quotes, outside=POOL, src=S4, inside=H4, **keys):
    """An error from outside about a packet of the host: `quotes` is that packet as inside and as outside knows it."""
    was, seen = quotes
    c.rx("wan", from_server(error4(src, outside, kind, code, seen, **keys)))
    c.tx("lan", to_host(error4(src, inside, kind, code, was, ttl=63, **keys)))


def outbound(c, kind, code, quotes, src=H4, shown=POOL, **keys):
    """An error from inside about a packet of the server."""
    was, seen = quotes
    c.rx("lan", from_host(error4(src, S4, kind, code, was, **keys)))
    c.tx("wan", to_server(error4(shown, S4, kind, code, seen, ttl=63, **keys)))


# -- without NAT ------------------------------------------------------------------------------------------------
@story("icmp-error-about-a-session-ipv4", "Errors about an allowed session pass without a rule, from whoever sends them, in both directions, untouched.",
       "scapy script: RFC 792, RFC 1812 section 5.2.7, the annotated config (ICMP errors about allowed sessions pass)", OPEN)
def _(c):
    talk = Talk(c, A, DNS)
    sent, got = talk.up(U(100))
    for kind, code in ((3, 1), (3, 3), (3, 13), (11, 0), (11, 1), (12, 0)):
        p = error4(S4, H4, kind, code, got)
        c.through("wan", from_server(p), "lan", to_host(hop(p)))
    p = error4(ROUTER, H4, 11, 0, got, keep=28)
    c.through("wan", from_server(p), "lan", to_host(hop(p)))
    sent, got = talk.down(U(100))
    for src in (H4, "192.0.2.77"):
        p = error4(src, S4, 3, 3, got)
        c.through("lan", from_host(p), "wan", to_server(hop(p)))


@story("icmp-error-about-a-session-ipv6", "ICMPv6 errors about an allowed session pass without a rule; packet too big above all.",
       "scapy script: RFC 4890 section 4.3.1 (must not be dropped), RFC 8201 section 3", OPEN)
def _(c):
    talk = Talk(c, (H6, 40000), (S6, 53))
    sent, got = talk.up(U(100))
    for message in (ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1280), ICMPv6TimeExceeded(code=0), ICMPv6ParamProblem(code=1, ptr=6)):
        for src in (S6, "2001:db8:99::9"):
            p = error6(src, H6, message, got)
            c.through("wan", from_server(p), "lan", to_host(hop(p)))
    sent, got = talk.down(U(100))
    p = error6(H6, S6, ICMPv6DestUnreach(code=4), got)
    c.through("lan", from_host(p), "wan", to_server(hop(p)))
    sent, got = Talk(c, (H6, 9), (S6, 9)).up(ASK6())
    p = error6("2001:db8:99::9", H6, ICMPv6TimeExceeded(code=0), got)
    c.through("wan", from_server(p), "lan", to_host(hop(p)))


@story("icmp-error-about-nothing", "An error about a packet that no session knows is dropped, whatever the rules; so is one that quotes too little, or an error.",
       "scapy script: RFC 5508 REQ-4a and REQ-5a, RFC 1122 section 3.2.2",
       zoned(OUT, rule("in", "allow", "outside", "inside")))
def _(c):
    talk = Talk(c, A, DNS)
    sent, got = talk.up(U(100))
    lost = "icmp-error-no-session"
    other = rebuilt(v4(H4, S4, ttl=63) / U(100)(40001, 53))
    for quoted in (other, rebuilt(v4(H4B, S4) / U(100)(40000, 53)), rebuilt(v4(H4, S4) / T("S")(40000, 53)), sent.__class__(bytes(v4(H4, S4, proto=50) / payload(24)))):
        c.rx("wan", from_server(error4(S4, H4, 3, 3, quoted)), drop=lost)
    turned = rebuilt(v4(S4, H4) / U(100)(53, 40000))  # the host's own packet is quoted, not the server's
    c.rx("wan", from_server(error4(S4, H4, 3, 3, turned)), drop=lost)
    c.rx("wan", from_server(error4(S4, H4, 3, 3, got, keep=24)), drop=lost)
    c.rx("wan", from_server(error4(S4, H4, 3, 3, error4(H4, S4, 11, 0, got))), drop=lost)
    c.rx("lan", from_host(error4(H4, S4, 3, 3, rebuilt(v4(S4, H4) / U()(54, 40000)))), drop=lost)
    other = rebuilt(v6() / U(100)(40001, 53))
    c.rx("wan", from_server(error6(S6, H6, ICMPv6PacketTooBig(mtu=1280), other)), drop=lost)


@story("icmp-error-with-wrong-checksums", "An error whose own checksum is wrong is dropped, one whose quoted IP header is wrong as well; the quoted packet's upper checksum is not looked at.",
       "scapy script: RFC 5508 REQ-3, 3a and 3c", OPEN)
def _(c):
    sent, got = Talk(c, A, DNS).up(U(100))
    p = bytearray(bytes(error4(S4, H4, 3, 3, got)))
    p[22] ^= 0x40
    c.rx("wan", link(eth(SERVER, GW_WAN), Raw(bytes(p))), drop="icmp-invalid")
    quoted = bytearray(bytes(got))
    quoted[10] ^= 0x40
    c.rx("wan", from_server(error4(S4, H4, 3, 3, Raw(bytes(quoted)))), drop="icmp-error-no-session")
    quoted = bytearray(bytes(got))
    quoted[26] ^= 0x40
    p = error4(S4, H4, 3, 3, Raw(bytes(quoted)))
    c.through("wan", from_server(p), "lan", to_host(hop(p)))


@story("icmp-error-changes-nothing", "Errors neither end a session nor keep it alive.",
       "scapy script: RFC 5382 REQ-10, RFC 4787 REQ-12, RFC 5508 REQ-6", OPEN)
def _(c):
    talk = Talk(c, A, (S4, 443)).handshake()
    sent, got = talk.up(T("PA", 1001, 5001, data=100))
    for kind, code in ((3, 1), (3, 2), (3, 3), (3, 4), (11, 0)):
        p = error4(S4, H4, kind, code, got)
        c.through("wan", from_server(p), "lan", to_host(hop(p)))
    talk.up(T("PA", 1001, 5001, data=100))
    talk.down(T("A", 5001, 1101))
    dns = Talk(c, A, DNS)
    sent, got = dns.up(U())
    c.at(20 * S)
    p = error4(S4, H4, 3, 3, got)
    c.through("wan", from_server(p), "lan", to_host(hop(p)))
    c.at(40 * S)
    c.rx("wan", from_server(p), drop="icmp-error-no-session")


# -- through NAT --------------------------------------------------------------------------------------------------
@story("nat-icmp-error-udp", "An error about a translated datagram reaches the host with its own address and port in the quoted packet, all checksums right; from the server and from a router on the way.",
       "scapy script: RFC 5508 REQ-4b, RFC 3022 section 4.3, RFC 4787 REQ-12", NATTED)
def _(c):
    p = c.choice("p")
    Talk(c, A, DNS, seen=(POOL, p)).up(U(100))
    quotes = pair(U(100), (A, DNS), ((POOL, p), DNS))
    for kind, code in ((3, 1), (3, 3), (3, 10), (11, 0), (12, 0)):
        inbound(c, kind, code, quotes)
    inbound(c, 11, 0, quotes, src=ROUTER)
    inbound(c, 11, 0, quotes, src=ROUTER, keep=28)  # as little as RFC 792 asks for
    inbound(c, 3, 3, pair(U(100, chksum=0), (A, DNS), ((POOL, p), DNS)))  # no checksum, none mended


@story("nat-icmp-error-tcp", "The same for TCP, quoted to the full and to the ports and the number only; the connection does not mind.",
       "scapy script: RFC 5508 REQ-4b, RFC 5382 REQ-9 and REQ-10", NATTED)
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, (S4, 443), seen=(POOL, p)).handshake()
    talk.up(T("PA", 1001, 5001, data=100))
    quotes = pair(T("PA", 1001, 5001, data=100), (A, (S4, 443)), ((POOL, p), (S4, 443)))
    inbound(c, 3, 1, quotes)
    inbound(c, 3, 2, quotes, src=ROUTER, keep=28)
    inbound(c, 11, 0, quotes, src=ROUTER, keep=36)
    inbound(c, 3, 4, quotes, src=ROUTER, mtu=1400)
    talk.down(T("A", 5001, 1101))
    talk.up(T("PA", 1101, 5001, data=100))


@story("nat-icmp-error-tcp-checksum-zero", "A TCP checksum of 0 in a quoted packet is a sum like any other, not UDP's word for none: it is translated.",
       "scapy script: RFC 9293 section 3.1, RFC 5508 REQ-4b, RFC 3022 section 4.3", zoned(OUT, static_nat(POOL, H4)))
def _(c):
    server, seen = (S4, 443), (POOL, 40000)

    def summing_to_zero(src, dst, flags, seq, ack=0):
        # What the checksum would be without the low word of the number, that word makes it 0.
        low = rebuilt(v4(src[0], dst[0]) / T(flags, seq, ack)(src[1], dst[1]))[TCP].chksum
        segment = T(flags, seq + low, ack)
        assert rebuilt(v4(src[0], dst[0]) / segment(src[1], dst[1]))[TCP].chksum == 0
        return segment, seq + low + 1
    talk = Talk(c, A, server, seen=seen)
    syn, acked = summing_to_zero(seen, server, "S", 0x10000000)
    talk.up(syn)
    inbound(c, 3, 1, pair(syn, (A, server), (seen, server)))
    answer, _ = summing_to_zero(server, A, "SA", 0x20000000, acked)
    talk.down(answer)
    outbound(c, 3, 1, pair(answer, (server, A), (server, seen)))


@story("nat-icmp-error-udp-checksum-all-ones", "A quoted UDP checksum that comes out as 0 by translation is shown as all ones, in both directions: that is what was sent.",
       "scapy script: RFC 768, RFC 5508 REQ-4b, RFC 3022 section 4.3", zoned(OUT, static_nat(POOL, H4)))
def _(c):
    server, seen = (S4, 53), (POOL, 40000)

    def all_ones(src, dst):
        # What the checksum would be without the last word, that word makes it 0; scapy sends it as 0xffff.
        word = rebuilt(v4(src[0], dst[0]) / UDP(sport=src[1], dport=dst[1]) / Raw(b"\0\0"))[UDP].chksum
        said = lambda s, d: UDP(sport=s, dport=d) / Raw(word.to_bytes(2, "big"))
        assert rebuilt(v4(src[0], dst[0]) / said(src[1], dst[1]))[UDP].chksum == 0xFFFF
        return said
    talk = Talk(c, A, server, seen=seen)
    asks, answers = all_ones(A, server), all_ones(server, seen)
    talk.up(asks)
    inbound(c, 3, 3, pair(asks, (A, server), (seen, server)))
    talk.down(answers)
    outbound(c, 3, 3, pair(answers, (server, A), (server, seen)))


@story("nat-icmp-error-echo", "An error about an echo request has the host's identifier in the quoted message.",
       "scapy script: RFC 5508 REQ-4b and REQ-6, RFC 3022 section 4.3", NATTED)
def _(c):
    p = c.choice("p", 0)
    talk = Talk(c, (H4, 7), (S4, 0), seen=(POOL, p))
    talk.up(ASK())
    quotes = pair(ASK(), ((H4, 7), (S4, 0)), ((POOL, p), (S4, 0)))
    inbound(c, 3, 1, quotes)
    inbound(c, 11, 0, quotes, src=ROUTER, keep=28)
    talk.down(ANSWER())


@story("nat-icmp-error-outbound", "An error of the host about the server's packet leaves with the outside address, in the quoted packet, too; so does one of a router inside, which stays hidden.",
       "scapy script: RFC 5508 REQ-5b, RFC 3022 section 4.3", NATTED)
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, DNS, seen=(POOL, p))
    talk.up(U())
    talk.down(U(100))
    quotes = pair(U(100), (DNS, A), (DNS, (POOL, p)))
    outbound(c, 3, 3, quotes)
    outbound(c, 3, 3, quotes, keep=28)
    outbound(c, 11, 0, quotes, src="192.0.2.99")
    quotes = pair(T("S", 1), ((S4, 53), A), ((S4, 53), (POOL, p)))  # not of this session
    c.rx("lan", from_host(error4(H4, S4, 3, 3, quotes[0])), drop="icmp-error-no-session")


@story("nat-icmp-error-ip-options", "IP options in the quoted packet are stepped over.",
       "scapy script: RFC 5508 REQ-3b", NATTED)
def _(c):
    p = c.choice("p")
    Talk(c, A, DNS, seen=(POOL, p)).up(U(100))
    inbound(c, 3, 3, pair(U(100), (A, DNS), ((POOL, p), DNS), options=[IPOption_Router_Alert()]))


@story("nat-icmp-error-extensions", "What follows the quoted packet (RFC 4884: MPLS labels, say) is no part of it and stays as it is.",
       "scapy script: RFC 5508 REQ-3d, RFC 4884 sections 4 and 7, RFC 4950 section 3", NATTED)
def _(c):
    p = c.choice("p")
    Talk(c, A, DNS, seen=(POOL, p)).up(U(72))
    stack = bytes.fromhex("2000") + bytes(2) + bytes.fromhex("00080101") + bytes.fromhex("00010101")
    stack = stack[:2] + ones_complement(stack).to_bytes(2, "big") + stack[4:]
    quotes = [bytes(q) + bytes(128 - len(bytes(q))) for q in pair(U(72), (A, DNS), ((POOL, p), DNS))]
    inbound(c, 11, 0, [Raw(q) for q in quotes], src=ROUTER, length=32, extra=stack)


@story("nat-icmp-error-about-nothing", "An error to an outside address about a packet that was never sent is dropped; so is one to another address than the packet came from.",
       "scapy script: RFC 5508 REQ-4a", NATTED)
def _(c):
    p, outside = c.choice("p"), POOL
    Talk(c, A, DNS, seen=(outside, p)).up(U(100))
    lost = "icmp-error-no-session"
    _, seen = pair(U(100), (A, DNS), ((outside, p), DNS))
    c.rx("wan", from_server(error4(S4, POOL2, 3, 3, seen)), drop=lost)
    for other in (T("S")(1000, 53), U(100)(p, 54)):
        c.rx("wan", from_server(error4(S4, outside, 3, 3, rebuilt(v4(outside, S4) / other))), drop=lost)


@story("nat-icmp-error-destination", "Errors about a forwarded connection: the client's and the server's, each with the addresses its receiver knows.",
       "scapy script: RFC 5508 REQ-4b and REQ-5b", zoned(destination_nat("web", POOL, f"{H4}:8080", service="tcp/80"), rule("in", "allow", "outside", "inside")))
def _(c):
    client, server = (S4, 50000), (H4, 8080)
    talk = Talk(c, client, server, asked=(POOL, 80), here=AT_SERVER, there=AT_HOST).handshake()
    talk.down(T("PA", 5001, 1001, data=100))
    said = T("PA", 5001, 1001, data=100)
    inbound(c, 3, 1, pair(said, (server, client), ((POOL, 80), client)), src=ROUTER)
    said = T("PA", 1001, 5101, data=100)
    outbound(c, 3, 3, pair(said, (client, server), (client, (POOL, 80))))
    outbound(c, 11, 0, pair(said, (client, server), (client, (POOL, 80))), src="192.0.2.99", keep=28)


@story("nat-icmp-error-static", "Errors about a session with a static NAT, in both directions, of a protocol without ports as well.",
       "scapy script: RFC 5508 REQ-4b and REQ-5b, RFC 3022 section 4.3", zoned(OUT, static_nat(POOL, H4), static_nat("2001:db8:77::10", H6)))
def _(c):
    talk = Talk(c, A, DNS, seen=(POOL, 40000))
    talk.up(U(100))
    inbound(c, 3, 3, pair(U(100), (A, DNS), ((POOL, 40000), DNS)))
    talk.down(U(100))
    outbound(c, 3, 3, pair(U(100), (DNS, A), (DNS, (POOL, 40000))))
    def esp(s, d):
        return payload(24)
    Talk(c, (H4, 0), (S4, 0), seen=(POOL, 0)).up(esp, proto=50)
    inbound(c, 3, 2, pair(esp, ((H4, 0), (S4, 0)), ((POOL, 0), (S4, 0)), proto=50))
    a, dns = (H6, 40000), (S6, 53)
    talk = Talk(c, a, dns, seen=("2001:db8:77::10", 40000))
    talk.up(U(100))
    was, seen = pair(U(100), (a, dns), (("2001:db8:77::10", 40000), dns))
    c.rx("wan", from_server(error6("2001:db8:99::9", "2001:db8:77::10", ICMPv6PacketTooBig(mtu=1280), seen)))
    c.tx("lan", to_host(error6("2001:db8:99::9", H6, ICMPv6PacketTooBig(mtu=1280), was, hlim=63)))
    talk.down(U(100))
    was, seen = pair(U(100), (dns, a), (dns, ("2001:db8:77::10", 40000)))
    c.rx("lan", from_host(error6(H6, S6, ICMPv6DestUnreach(code=4), was)))
    c.tx("wan", to_server(error6("2001:db8:77::10", S6, ICMPv6DestUnreach(code=4), seen, hlim=63)))


@story("nat-icmp-error-hairpin", "A host's error about a hairpinned datagram reaches the other host from the outside address it had sent to.",
       "scapy script: RFC 5508 REQ-7 and REQ-7a, RFC 7857 section 12", NATTED)
def _(c):
    pa, pb = c.choice("pa"), c.choice("pb", unlike=["pa"])
    Talk(c, B, DNS, seen=(POOL, pb), here=AT_HOST2).up(U())
    Talk(c, A, B, seen=(POOL, pa), asked=(POOL, pb), here=AT_HOST, there=AT_HOST2).up(U(100))
    at_b = rebuilt(v4(POOL, H4B, ttl=60) / U(100)(pa, 40000))
    at_a = rebuilt(v4(H4, POOL, ttl=60) / U(100)(40000, pb))
    c.rx("lan", AT_HOST2.sends(error4(H4B, POOL, 3, 3, at_b)))
    c.tx("lan", to_host(error4(POOL, H4, 3, 3, at_a, ttl=63)))


# -- TTL and MTU ------------------------------------------------------------------------------------------------------
@story("nat-ttl-expired-at-the-gateway", "A TTL that ends here: the sender is told about the packet it sent, from the address it knows, on either side of the NAT.",
       "scapy script: RFC 1812 sections 5.3.1 and 4.3.2.4, RFC 5508 section 4 (what is quoted is what was sent)", NATTED)
def _(c):
    p = c.choice("p")
    first = rebuilt(v4(ttl=1) / U()(40000, 53))
    c.error("lan", from_host(first), "ttl-expired", to_host(icmp4(L4, H4, 11, 0, first)))
    talk = Talk(c, A, DNS, seen=(POOL, p))
    talk.up(U())
    c.error("lan", from_host(first), "ttl-expired", to_host(icmp4(L4, H4, 11, 0, first)))
    answer = rebuilt(v4(S4, POOL, ttl=1) / U(64)(53, p))
    c.error("wan", from_server(answer), "ttl-expired", to_server(icmp4(W4, S4, 11, 0, answer)))
    talk.down(U(64))


@story("nat-traceroute", "traceroute through NAT: the gateway, a router outside, the server; each answer quotes what the host sent.",
       "scapy script: RFC 5508 REQ-10 (time exceeded), RFC 4787 REQ-12, RFC 1393 section 1.1", NATTED)
def _(c):
    for ttl, port in ((1, 33434), (2, 33435), (3, 33436)):
        probe = rebuilt(v4(ttl=ttl) / U()(50000, port))
        if ttl == 1:
            c.error("lan", from_host(probe), "ttl-expired", to_host(icmp4(L4, H4, 11, 0, probe)))
            p = c.choice("p")
            continue
        Talk(c, (H4, 50000), (S4, port), seen=(POOL, p)).up(U(), ttl=ttl)
        quotes = pair(U(), ((H4, 50000), (S4, port)), ((POOL, p), (S4, port)), ttl=1)
        inbound(c, *((11, 0) if ttl == 2 else (3, 3)), quotes, src=ROUTER if ttl == 2 else S4)


NARROW = zoned(OUT, INTERNET, wan_keys={"mtu": 1400})


@story("nat-fragmentation-needed", "Too long for the way out with DF set: the host is told the MTU, about the packet it sent; exactly as long passes, translated.",
       "scapy script: RFC 1191 section 4, RFC 4787 REQ-13", NARROW)
def _(c):
    talk = Talk(c, A, DNS, seen=(POOL, c.choice("p")))
    talk.up(U(1372), flags="DF")
    p = rebuilt(v4(flags="DF") / U(1373)(40000, 53))
    c.error("lan", from_host(p), "fragmentation-needed", to_host(icmp4(L4, H4, 3, 4, p, mtu=1400)))
    talk.up(U(10), flags="DF")


@story("nat-fragments-on-the-way-out", "Too long for the way out with DF clear: translated, then cut; the fragments are of the datagram as it is outside.",
       "scapy script: RFC 791 section 3.2, RFC 4787 REQ-13a, RFC 7857 section 10 (an identification of the NAT's choice)", NARROW)
def _(c):
    p, number = c.choice("p"), c.choice("id", 0)
    c.rx("lan", from_host(v4(H4, S4, id=77) / U(1472)(40000, 53)))
    whole = bytes(rebuilt(v4(POOL, S4, ttl=63) / U(1472)(p, 53)))
    for offset, end in ((0, 1376), (1376, 1480)):
        part = IP(src=POOL, dst=S4, ttl=63, id=number, proto=17, flags="MF" if end < 1480 else 0, frag=offset // 8) / Raw(whole[20 + offset:20 + end])
        c.tx("wan", to_server(part))
    Talk(c, A, DNS, seen=(POOL, p)).down(U())


@story("nat-fragmentation-needed-inbound", "Too long for the way in: the server is told, about the packet it sent, by the address it can see.",
       "scapy script: RFC 1191 section 4, RFC 1812 section 4.3.2.4", zoned(OUT, INTERNET, lan_keys={"mtu": 1400}))
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, DNS, seen=(POOL, p))
    talk.up(U())
    long = rebuilt(v4(S4, POOL, flags="DF") / U(1400)(53, p))
    c.error("wan", from_server(long), "fragmentation-needed", to_server(icmp4(W4, S4, 3, 4, long, mtu=1400)))
    talk.down(U(1372), flags="DF")


@story("nat-path-mtu-discovery", "Fragmentation needed from a router outside, and from one inside, reach their senders through NAT with the MTU in them.",
       "scapy script: RFC 1191 section 4, RFC 5508 REQ-4b and REQ-5b, RFC 2923 section 2.1 (the black hole otherwise)", NATTED)
def _(c):
    p = c.choice("p")
    talk = Talk(c, A, (S4, 443), seen=(POOL, p)).handshake()
    talk.up(T("A", 1001, 5001, data=1460), flags="DF")
    quotes = pair(T("A", 1001, 5001, data=1460), (A, (S4, 443)), ((POOL, p), (S4, 443)), flags="DF")
    inbound(c, 3, 4, quotes, src=ROUTER, mtu=1420, keep=548)
    inbound(c, 3, 4, quotes, src=ROUTER, mtu=1420, keep=28)
    talk.up(T("A", 1001, 5001, data=1380), flags="DF")
    talk.down(T("A", 5001, 2381, data=1460), flags="DF")
    quotes = pair(T("A", 5001, 2381, data=1460), ((S4, 443), A), ((S4, 443), (POOL, p)), flags="DF")
    outbound(c, 3, 4, quotes, src="192.0.2.99", mtu=1300, keep=28)


@story("nat-echo-to-an-outside-address", "ping to an address of a pool is for nobody; to one with a static NAT it is for the host.",
       "scapy script: RFC 5508 REQ-1, RFC 792", zoned(source_nat("internet", [POOL]), static_nat(POOL2, H4), rule("ping", "allow", "outside", "inside", service="icmp/echo-request"), OUT))
def _(c):
    c.rx("wan", from_server(v4(S4, POOL) / ICMP(type=8, id=7, seq=1) / payload(8)), drop="nat-no-mapping")
    talk = Talk(c, (S4, 7), (H4, 7), asked=(POOL2, 7), here=AT_SERVER, there=AT_HOST)
    talk.up(ASK())
    talk.down(ANSWER())
