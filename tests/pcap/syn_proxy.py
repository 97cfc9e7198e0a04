"""The SYN proxy: cookies, the connection opened to the server, and what is shifted afterwards.

The cookie is computed here from its definition (the table in the head of the gateway's cookie module, SipHash-2-4 of
the paper, and the documented default of `system.key`): a second implementation, not a look at what came out.
"""

import ipaddress

from lib import *
from fragments import pieces
from pressure import WEB, zone

SOURCE = "scapy script: RFC 4987 section 3.6 (SYN cookies), RFC 7323 section 2, RFC 2018 section 3, SipHash-2-4 (Aumasson, Bernstein 2012)"
PROXY = zone("outside", syn_proxy_above=0)
KEY = (0x0001020304050607, 0x08090A0B0C0D0E0F)
#: A replay's clock begins a whole number of 1,000 seconds before the capture, 1,000 at least.
UPTIME_S = EPOCH_NS // 10**9 % 1000 + 1000
SIZES = (64, 216, 536, 1220, 1360, 1440, 1460, 8940)
M64 = (1 << 64) - 1


def siphash(words, key=KEY):
    def rotl(x, n):
        return (x << n | x >> 64 - n) & M64

    def rounds(n):
        nonlocal a, b, c, d
        for _ in range(n):
            a = a + b & M64; c = c + d & M64
            b = rotl(b, 13) ^ a; d = rotl(d, 16) ^ c
            a = rotl(a, 32)
            c = c + b & M64; a = a + d & M64
            b = rotl(b, 17) ^ c; d = rotl(d, 21) ^ a
            c = rotl(c, 32)
    a, b, c, d = key[0] ^ 0x736F6D6570736575, key[1] ^ 0x646F72616E646F6D, key[0] ^ 0x6C7967656E657261, key[1] ^ 0x7465646279746573
    for word in [*words, len(words) * 8 % 256 << 56]:
        d ^= word
        rounds(2)
        a ^= word
    c ^= 0xFF
    rounds(4)
    return a ^ b ^ c ^ d


# Reference vector of the authors: key 00..0f, input 00..07.
assert siphash([0x0706050403020100], (0x0706050403020100, 0x0F0E0D0C0B0A0908)) == 0x93F5F5799A932462


def cookie_of(client, server, isn, ms, mss=None, scale=None, sack=False):
    """The sequence number of our SYN-ACK."""
    six = ":" in client[0]
    src, dst = (int(ipaddress.ip_address(end[0])) | (0 if six else 0xFFFF << 32) for end in (client, server))
    ends = client[1] << 32 | server[1] << 16  # VRF slot 0
    who = [src >> 64, src & M64, dst >> 64, dst & M64, ends, isn]
    slot = (UPTIME_S + ms // 1000) // 64
    mss = (1220 if six else 536) if mss is None else mss
    size = max(n for n, size in enumerate(SIZES) if size <= mss)
    data = (slot & 1) << 8 | size << 5 | (15 if scale is None else scale) << 1 | sack
    mac = siphash([*who, data, slot]) >> 41
    return mac << 9 | data ^ siphash([*who, M64, M64]) & 0x1FF


def options(mss=None, scale=None, sack=False):
    out = [("MSS", mss)] if mss else []
    out += [("NOP", None), ("NOP", None), ("SAckOK", b"")] if sack else []
    return {"options": out + ([("NOP", None), ("WScale", scale)] if scale is not None else [])}


class Proxied(Talk):
    """A connection through the proxy. `isn` is the client's number, `number` the server's."""

    def __init__(self, case, client, server, isn=1000, number=5000, mss=1460, scale=7, sack=True, window=500, **keys):
        super().__init__(case, client, server, **{"here": AT_SERVER, "there": AT_HOST, **keys})
        self.isn, self.number, self.window = isn, number, window
        self.said = dict(mss=mss, scale=scale, sack=sack)
        self.mss = mss or (1220 if ":" in client[0] else 536)
        self.carried = 1440 if ":" in client[0] else 1460
        self.cookie = None

    def own(self, port, ends, words, station):
        (src, sport), (dst, dport) = ends
        keys = {} if ":" in src else {"id": 0, "flags": "DF"}
        self.case.tx(port, station.gets(rebuilt(ip(src, dst, 64, **keys) / words(sport, dport))), own=True)

    def to_client(self, words):
        self.own(self.here.port, (self.asked, self.client), words, self.here)

    def to_server(self, words):
        self.own(self.there.port, (self.seen, self.server), words, self.there)

    def from_client(self, words):
        (src, sport), (dst, dport) = self.client, self.asked
        self.case.rx(self.here.port, self.here.sends(rebuilt(ip(src, dst) / words(sport, dport))), punt=True)

    def from_server(self, words, drop=None):
        (src, sport), (dst, dport) = self.server, self.seen
        self.case.rx(self.there.port, self.there.sends(rebuilt(ip(src, dst) / words(sport, dport))), drop=drop, punt=not drop)

    def ask(self):
        """SYN, and our SYN-ACK; the first of them is what the client goes on with."""
        cookie = cookie_of(self.client, self.asked, self.isn, self.case.now_ms, **self.said)
        self.cookie = self.cookie if self.cookie is not None else cookie
        self.from_client(T("S", self.isn, **options(**self.said)))
        promised = dict(self.said, mss=self.carried, scale=None if self.said["scale"] is None else 7)
        self.to_client(T("SA", cookie, self.isn + 1, window=0, **options(**promised)))
        return self

    def syn(self):
        """Our SYN to the server."""
        window = min(self.window << (self.said["scale"] or 0), 65535)
        size = max(size for size in SIZES if size <= self.mss)
        said = dict(self.said, mss=min(size, self.carried))
        self.to_server(T("S", self.isn, window=window, **options(**said)))
        return self

    def prove(self, seq=None):
        """The client's ACK, and our SYN."""
        self.from_client(T("A", self.isn + 1 if seq is None else seq, self.cookie + 1, window=self.window))
        return self.syn()

    def answer(self, window=8192, to_client=None, to_server=None, first=True, **said):
        """The server's SYN-ACK, our ACK to it, and what opens the client's window."""
        self.from_server(T("SA", self.number, self.isn + 1, window=window, **options(**said)))
        self.to_server(T("A", self.isn + 1, self.number + 1, window=self.window if to_server is None else to_server))
        if first:
            self.to_client(T("A", self.cookie + 1, self.isn + 1, window=window >> 7 if to_client is None else to_client))
        return self

    def open(self):
        return self.ask().prove().answer(mss=1460, scale=7, sack=True)

    # What each side says in its own numbers, from the first byte of data on.
    def client_says(self, flags="PA", at=0, ack=0, data=0, edges=(), before=(), window=500, heard=None, **keys):
        def said(base):
            return {"options": [*before, ("NOP", None), ("NOP", None), ("SAck", tuple(base + 1 + edge & 0xFFFFFFFF for edge in edges))]} if edges else {}
        heard = window if heard is None else heard
        self.up(T(flags, self.isn + 1 + at, self.cookie + 1 + ack, data=data, window=window, **said(self.cookie)),
                heard=T(flags, self.isn + 1 + at, self.number + 1 + ack, data=data, window=heard, **said(self.number)), **keys)

    def server_says(self, flags="PA", at=0, ack=0, data=0, edges=(), window=500, heard=None, **keys):
        sack = {"options": [("NOP", None), ("NOP", None), ("SAck", tuple(self.isn + 1 + edge & 0xFFFFFFFF for edge in edges))]} if edges else {}
        heard = window if heard is None else heard
        self.down(T(flags, self.number + 1 + at, self.isn + 1 + ack, data=data, window=window, **sack),
                  heard=T(flags, self.cookie + 1 + at, self.isn + 1 + ack, data=data, window=heard, **sack), **keys)


BOTH = (((S4, 40000), (H4, 80)), ((S6, 40000), (H6, 80)))


@story("syn-proxy-opens", "A client that acknowledges the cookie is connected to the server; numbers, acknowledgments and SACK blocks are shifted between them, up to the last FIN.",
       SOURCE, zoned(WEB, PROXY))
def _(c):
    for client, server in BOTH:
        talk = Proxied(c, client, server, isn=0xFFFFFFFE, number=0xFFFFFF00).open()
        talk.client_says(data=100)
        talk.server_says("A", ack=100)
        talk.server_says(data=1000, ack=100)
        talk.server_says(at=2000, data=500, ack=100)
        talk.client_says("A", at=100, ack=1000, edges=(2000, 2500))
        # Other options before them: one of a length, and one that nobody knows.
        stamp, unknown = (("NOP", None), ("NOP", None), ("Timestamp", (7, 9))), ((253, b"\x05\x0a\x05\x0a"),)
        talk.client_says("A", at=100, ack=1000, edges=(2000, 2500), before=stamp)
        talk.client_says("A", at=100, ack=1000, edges=(2000, 2200, 2300, 2500), before=unknown)
        talk.client_says(at=200, data=100, ack=1000, edges=(2000, 2500))
        talk.server_says("A", at=2500, ack=100, edges=(200, 300))
        talk.server_says(at=1000, data=1000, ack=100, edges=(200, 300))
        talk.client_says(at=100, data=100, ack=2500)
        talk.client_says(at=100_000, data=10, ack=2500, window=500, drop="tcp-out-of-window")
        talk.server_says("FA", at=2500, ack=300)
        talk.client_says("FA", at=300, ack=2501)
        talk.server_says("A", at=2501, ack=301)
        again = Proxied(c, client, server, isn=90_000_000, number=7).open()  # on the same ports
        again.client_says(data=10)
        again.server_says("R", ack=10)


@story("syn-proxy-remembers-nothing", "Every SYN is answered, and the acknowledgment of any of the cookies of the last minute opens, or a probe of the closed window; before it there is no session.",
       SOURCE, zoned(WEB, PROXY))
def _(c):
    talk = Proxied(c, *BOTH[0])
    for n in range(3):
        talk.ask()
    c.at(40_000)  # within two slots of 64 seconds
    Talk(c, (H4, 80), (S4, 40000)).up(T("SA", 5000, 1001), drop="firewall-deny")
    talk.prove().answer(mss=1460, scale=7, sack=True)
    talk.client_says(data=10)
    probes = Proxied(c, *BOTH[1]).ask().prove(seq=1000).answer(mss=1460, scale=7, sack=True)  # its ACK was lost
    probes.client_says(data=10)


@story("syn-proxy-wrong-cookies", "A number we did not choose, another client's, another connection's, one that is too old: no session.",
       SOURCE, zoned(WEB, PROXY))
def _(c):
    lost = "tcp-no-session"
    for base, (client, server) in ((0, BOTH[0]), (1_000_000, BOTH[1])):
        c.at(base)
        talk = Proxied(c, client, server).ask()
        for bit in range(32):
            talk.up(T("A", 1001, (talk.cookie ^ 1 << bit) + 1), drop=lost)
        talk.up(T("A", 1003, talk.cookie + 1), drop=lost)
        talk.up(T("RA", 1001, talk.cookie + 1), drop=lost)
        Talk(c, (client[0], 40001), server, here=AT_SERVER, there=AT_HOST).up(T("A", 1001, talk.cookie + 1), drop=lost)
        Talk(c, client, (H6B if ":" in server[0] else H4B, 80), here=AT_SERVER, there=AT_HOST2).up(T("A", 1001, talk.cookie + 1), drop=lost)
        c.at(base + 128_000)
        talk.up(T("A", 1001, talk.cookie + 1), drop=lost)


@story("syn-proxy-what-it-promises", "What the SYN offered comes back out of the cookie: MSS, window scale, SACK; windows are scaled anew where the server does otherwise than promised.",
       SOURCE, zoned(WEB, PROXY))
def _(c):
    plain = Proxied(c, (S4, 40000), (H4, 80), mss=None, scale=None, sack=False).ask().prove()
    plain.answer(mss=1460, window=8000, to_client=8000)
    plain.client_says(data=10)
    plain.server_says("A", ack=10, window=9000)
    unscaled = Proxied(c, (S4, 40001), (H4, 80), mss=1400, scale=3, sack=True).ask().prove()
    unscaled.answer(mss=1460, window=64_000, to_server=4000)
    unscaled.client_says(data=10, window=1000, heard=8000)
    unscaled.server_says("A", ack=10, window=60_000, heard=60_000 >> 7)
    wide = Proxied(c, (S6, 40002), (H6, 80), mss=8940, scale=14, sack=False, window=4).ask().prove()
    wide.answer(mss=1440, scale=9, window=64_000)
    wide.server_says("A", window=1000, heard=4000)
    wide.client_says(data=10, window=4, heard=4)


@story("syn-proxy-server-silent", "A server that does not answer is asked again after one second, two, four, and whenever the client probes; nothing reaches the client, and after four minutes the session is gone.",
       SOURCE + ", RFC 6298 section 5.5", zoned(WEB, PROXY))
def _(c):
    for base, (client, server) in ((0, BOTH[0]), (1_000_000, BOTH[1])):
        c.at(base)
        talk = Proxied(c, client, server).ask().prove()
        c.at(base + 1000)
        talk.prove()  # sent again
        talk.prove(seq=1000)  # a probe
        talk.syn()  # and by ourselves
        for second in (2, 4, 8, 16, 32, 64, 128):
            c.at(base + second * 1000 + 100)
            talk.syn()
        c.at(base + 250_000)
        talk.from_server(T("SA", 5000, 1001), drop="firewall-deny")


@story("syn-proxy-server-refuses", "A server's RST reaches the client in the numbers that it knows, and it may try again; a forged one does not.",
       SOURCE, zoned(WEB, PROXY))
def _(c):
    for client, server in BOTH:
        talk = Proxied(c, client, server).ask().prove()
        talk.from_server(T("R", 0), drop="tcp-out-of-window")
        talk.from_server(T("RA", 0, 7000), drop="tcp-out-of-window")
        talk.from_server(T("RA", 0, 1001))
        talk.to_client(T("RA", talk.cookie + 1, 1001, window=0))
        again = Proxied(c, client, server, isn=2000, number=6000).open()
        again.client_says(data=10)


@story("syn-proxy-sent-again", "The server's SYN-ACK sent again is acknowledged again, data sent again passes again; a RST ends the connection.",
       SOURCE, zoned(WEB, PROXY))
def _(c):
    for client, server in BOTH:
        talk = Proxied(c, client, server).open()
        for _ in range(2):
            talk.answer(mss=1460, scale=7, sack=True, first=False)
        for _ in range(2):
            talk.client_says(data=100)
            talk.server_says(data=100, ack=100)
        talk.server_says("R", at=100, ack=100)
        c.at(c.now_ms + 250_000)
        talk.client_says(at=100, data=1, ack=100, drop="tcp-no-session")


@story("syn-proxy-old-connection", "A server that answers with the numbers of an older connection is told to forget it, as a client would.",
       SOURCE + ", RFC 9293 section 3.5.1 (half-open connections)", zoned(WEB, PROXY))
def _(c):
    talk = Proxied(c, *BOTH[0]).ask().prove()
    talk.from_server(T("A", 70_000, 60_000))
    talk.to_server(T("R", 60_000, window=0))
    talk.prove().answer(mss=1460, scale=7, sack=True)
    talk.server_says(data=10)


@story("syn-proxy-through-nat", "Behind destination NAT the server is asked at its own address, and the client is answered from the one it asked.",
       SOURCE + ", RFC 3022 section 2.2", zoned(WEB, PROXY, destination_nat("web", "203.0.113.9", H4 + ":80", service="tcp/8080")))
def _(c):
    talk = Proxied(c, (S4, 40000), (H4, 80), asked=("203.0.113.9", 8080)).open()
    talk.client_says(data=100)
    talk.server_says(data=1000, ack=100)
    talk.server_says(at=2000, data=500, ack=100)
    talk.client_says("A", at=100, ack=1000, edges=(2000, 2500))


@story("syn-proxy-above-a-number", "Only when so many connections open to a destination are SYNs to it answered with cookies; established ones make it ordinary again.",
       SOURCE, zoned(WEB, zone("outside", syn_proxy_above=2, half_open_per_destination=3)))
def _(c):
    for (client, server), other in zip(BOTH, (H4B, H6B)):
        plain = [Talk(c, (client[0], 30000 + n), server, here=AT_SERVER, there=AT_HOST) for n in range(4)]
        plain[0].up(T("S", 100))
        plain[1].up(T("S", 100))
        talk = Proxied(c, client, server).open()
        talk.client_says(data=10)
        Talk(c, client, (other, 80), here=AT_SERVER, there=AT_HOST2).up(T("S", 100))
        plain[0].down(T("SA", 500, 101))
        plain[0].up(T("A", 101, 501))
        plain[2].up(T("S", 100))
        Proxied(c, (client[0], 30003), server).ask()
        talk.server_says(data=10, ack=10)


@story("syn-proxy-fragments", "Segments of a proxied connection that come in fragments pass as whole ones do, in both directions, and what they carry counts.",
       SOURCE + ", RFC 791 section 3.2, RFC 8200 section 4.5", zoned(WEB, PROXY))
def _(c):
    for n, (client, server) in enumerate(BOTH):
        talk = Proxied(c, client, server, isn=1000, number=3_000_000_000).open()
        sent = rebuilt(ip(*(end[0] for end in (server, client))) / T("PA", talk.number + 1, talk.isn + 1, data=600)(server[1], client[1]))
        got = rebuilt(ip(*(end[0] for end in (server, client)), ttl=63) / T("PA", talk.cookie + 1, talk.isn + 1, data=600)(server[1], client[1]))
        for a, b in zip(pieces(sent, 104, 400, ident=50 + n), pieces(got, 104, 400, ident=50 + n)):
            c.through("lan", from_host(a), "wan", to_server(b))
        talk.client_says("A", ack=600)
        sent = rebuilt(ip(*(end[0] for end in (client, server))) / T("PA", talk.isn + 1, talk.cookie + 601, data=600, window=500)(client[1], server[1]))
        got = rebuilt(ip(*(end[0] for end in (client, server)), ttl=63) / T("PA", talk.isn + 1, talk.number + 601, data=600, window=500)(client[1], server[1]))
        for a, b in zip(pieces(sent, 104, 400, ident=60 + n), pieces(got, 104, 400, ident=60 + n)):
            c.through("wan", from_server(a), "lan", to_host(b))
        talk.server_says("A", at=600, ack=600)
