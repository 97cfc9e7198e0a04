"""What a golden case is made of, and how it is written to disk.

A case names every packet that goes in together with its fate (forwarded, consumed, dropped for a reason)
and every packet that must come out. All counters follow from the fates, so that none can be forgotten.
Checksums and lengths are filled in by scapy; nothing here knows SoftGate.
"""

import itertools
import json
import re
import struct
from pathlib import Path

from scapy.all import (
    ARP, Ether, Dot1AD, Dot1Q, GRE, ICMP, IP, IPv6, Raw, TCP, UDP, SCTP, fragment6,
)
from scapy.layers.inet6 import (
    ICMPv6DestUnreach, ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA,
    ICMPv6ND_RS, ICMPv6ND_Redirect, ICMPv6NDOptDstLLAddr, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting, PadN, RouterAlert, in6_getnsma, in6_getnsmac,
)

HERE = Path(__file__).parent

#: When the clock of every capture starts: 2026-01-01 00:00:00 UTC, in nanoseconds.
EPOCH_NS = 1_767_225_600 * 10**9
MS = 10**6

# Who is where, unless a case says otherwise. The gateway's MAC is the default of its ports in replay.
GW_LAN, GW_WAN, GW_DMZ = (f"02:53:47:00:00:{n:02x}" for n in range(3))
HOST, HOST2 = "02:00:00:00:01:10", "02:00:00:00:01:11"          # on lan
SERVER, SERVER2 = "02:00:00:00:02:20", "02:00:00:00:02:21"      # on wan
ALL_NODES_MAC = "33:33:00:00:00:01"
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Case:
    """One directory under tests/pcap/."""

    every = []

    def __init__(self, name, sentence, source, config, workers=(1, 2, 4), linger_ms=0, timestamps=False,
                 ecmp_macs=(), retold=False):
        self.name, self.sentence, self.source, self.config = name, sentence, source, config
        self.workers, self.linger_ms, self.timestamps, self.ecmp_macs = workers, linger_ms, timestamps, ecmp_macs
        self.inputs, self.outputs = {}, {}
        self.formats = {}
        self.drops = {}
        self.received = self.forwarded = self.sent = self.punted = self.originated = 0
        self.now_ms = 0
        self.reloads = []
        self.roles = []
        self.faulty = False  # its packets have wrong checksums on purpose
        #: name -> (first, last, unlike, what stands in its place), name -> where it is
        self.variables, self.fields, self.retold = {}, {}, retold
        if not retold:
            Case.every.append(self)

    # -- what the gateway may choose --------------------------------------------------------------------
    def choice(self, name, first=1024, last=65535, unlike=()):
        """A 16-bit word that the gateway chooses: an outside port, an identifier, the end of an address. The
        first output frame that carries it says what it is; it must be `first` to `last` and none of `unlike`."""
        value = 0xD000 + 59 * len(self.variables) if self.retold else 0xA000 + 41 * len(self.variables)
        self.variables[name] = (first, last, tuple(unlike), value)
        return value

    def reload(self, config):
        """Another config takes over now."""
        self.reloads.append((self.now_ms, config))
        return self

    def role(self, name, group=None):
        """What the node is for all its virtual routers, or those of a group, from now on: "active", "backup" while nobody
        is known to be the Active, "other" while another node is."""
        self.roles.append((self.now_ms, f"{name}@{group}" if group else name))
        return self

    # -- the story, in order of time ------------------------------------------------------------------
    def at(self, ms):
        """Moves the clock to `ms` after the start of the capture."""
        assert ms >= self.now_ms, "a case is told in order"
        self.now_ms = ms
        return self

    def rx(self, port, frame, drop=None, punt=False, times=1):
        """A frame arrives. Its fate: forwarded, unless it is dropped for a reason or consumed by us."""
        assert not (drop and punt)
        for _ in range(times):
            self.inputs.setdefault(port, []).append((self.now_ms, raw(frame)))
            self.received += 1
            if drop:
                self.drops[drop] = self.drops.get(drop, 0) + 1
            elif punt:
                self.punted += 1
            else:
                self.forwarded += 1
            self.now_ms += 1
        return self

    def together(self):
        """The next frame arrives with the one before: in one burst."""
        self.now_ms -= 1
        return self

    def tx(self, port, frame, at=None, own=False):
        """A frame must leave; `own` if the gateway made it. `at` (ms) matters with timestamps only."""
        ms = self.now_ms - 1 if at is None else at
        self.outputs.setdefault(port, []).append((ms, raw(frame)))
        if own or not self.faulty:
            check_checksums(f"{self.name}, out of {port}", raw(frame), own)
        self.sent += 1
        self.originated += own
        return self

    def through(self, rx_port, frame, tx_port, out):
        """Arrives there, leaves here."""
        return self.rx(rx_port, frame).tx(tx_port, out)

    def error(self, port, frame, reason, answer):
        """Arrives, is dropped for a reason, and the sender is told on the same port."""
        return self.rx(port, frame, drop=reason).tx(port, answer, own=True)

    def answer(self, port, frame, answer):
        """Arrives for the gateway, which answers on the same port."""
        return self.rx(port, frame, punt=True).tx(port, answer, own=True)

    # -- files ----------------------------------------------------------------------------------------
    def check(self):
        """What must hold of every case before it is believed."""
        assert self.received == self.forwarded + self.punted + sum(self.drops.values()), self.name
        assert re.fullmatch(r"[a-z0-9-]+", self.name), self.name
        assert self.sentence.endswith(".") and self.source, self.name
        for frames in (*self.inputs.values(), *self.outputs.values()):
            assert [t for t, _ in frames] == sorted(t for t, _ in frames), self.name

    def case_toml(self):
        lines = [f"sentence = {quote(self.sentence)}", f"source = {quote(self.source)}",
                 f"workers = {list(self.workers)}"]
        if self.linger_ms:
            lines.append(f"linger_ms = {self.linger_ms}")
        if self.timestamps:
            lines.append("timestamps = true")
        if self.ecmp_macs:
            lines.append("# Each output frame goes to one of these, each flow always to the same, and none is left out.")
            lines.append(f"ecmp_macs = {json.dumps(list(self.ecmp_macs))}")
        if self.reloads:
            named = [[ms, f"config-{n + 2}.toml"] for n, (ms, _) in enumerate(self.reloads)]
            lines.append(f"reloads = {json.dumps(named)}")
        if self.roles:
            lines.append(f"roles = {json.dumps(self.roles)}")
        if self.drops:
            lines += ["", "[drops]"] + [f"{name} = {count}" for name, count in sorted(self.drops.items())]
        if self.punted or self.originated:
            lines += ["", "[counts]"]
            lines += [f"{name} = {count}" for name, count in
                      (("punted", self.punted), ("originated", self.originated)) if count]
        for name, (first, last, unlike, stands_in) in self.variables.items():
            assert self.fields.get(name), f"{self.name}: {name} is in no frame"
            lines += ["", f"[variables.{name}]", f"range = [{first}, {last}]"]
            if unlike:
                lines.append(f"unlike = {json.dumps(list(unlike))}")
            lines += [f"stands_in = {stands_in}", "fields = ["]
            lines += [f'    {{ file = "{file}", frame = {frame}, at = {at}, sums = {sums} }},'
                      for file, frame, at, sums in self.fields[name]]
            lines.append("]")
        return "\n".join(lines) + "\n"

    def files(self):
        """File name -> bytes."""
        out = {"config.toml": self.config.encode(), "case.toml": self.case_toml().encode()}
        for n, (_, config) in enumerate(self.reloads):
            out[f"config-{n + 2}.toml"] = config.encode()
        for port, frames in self.inputs.items():
            out[f"in.{port}.pcap"] = self.formats.get(port, pcap_ns)(frames)
        for port, frames in self.outputs.items():
            out[f"out.{port}.pcap"] = pcap_ns(frames)
        return out


# -- stories: cases with sessions, and with words that the gateway chooses -----------------------------
def story(name, sentence, source, config, workers=(1, 2, 4), **keys):
    """A case told by a function. If the gateway chooses words in it, it is told once more with other words in
    their place: what differs then are the words and the checksums over them."""
    def tell(function):
        keys.update(workers=workers)
        case = Case(name, sentence, source, config, **keys)
        function(case)
        if case.variables:
            again = Case(name, sentence, source, config, **keys, retold=True)
            function(again)
            find_choices(case, again)
        for port, frames in case.outputs.items():
            for _, data in frames if not case.faulty else ():
                check_upper_checksums(f"{name}, out of {port}", data)
        return case
    return tell


def find_choices(case, again):
    """Fills in where the chosen words stand: file, frame from 1, offset, and offsets of the checksums over it."""
    words = {v[3]: (name, again.variables[name][3]) for name, v in case.variables.items()}

    def word(data, at):
        return int.from_bytes(data[at:at + 2], "big")

    def mended(total, changes):  # RFC 1624 eqn. 3
        return ones_complement(struct.pack(f">{1 + 2 * len(changes)}H", total ^ 0xFFFF, *(w for old, new in changes for w in (old ^ 0xFFFF, new))))

    for kind, files, others in (("in", case.inputs, again.inputs), ("out", case.outputs, again.outputs)):
        for port, frames in files.items():
            for number, ((_, a), (_, b)) in enumerate(zip(frames, others[port], strict=True), 1):
                changed = [at for at in range(0, len(a) - 1, 2) if a[at:at + 2] != b[at:at + 2]]
                places = {at: (word(a, at), word(b, at)) for at in changed if words.get(word(a, at), (0, 0))[1] == word(b, at)}
                sums = {at: [] for at in places}
                where = f"{case.name}: {kind}.{port} {number}"
                for total in (at for at in changed if at not in places):
                    # Over which of the words it is: over what is not a plain sum the runner has no power.
                    choices = (c for n in range(1, len(places) + 1) for c in itertools.combinations(places, n))
                    over = [c for c in choices if mended(word(a, total), [places[at] for at in c]) == word(b, total)]
                    assert len(over) == 1, f"{where}: {total} is no checksum over {places}"
                    for at in over[0]:
                        sums[at].append(total)
                for at, (old, _) in places.items():
                    case.fields.setdefault(words[old][0], []).append((f"{kind}.{port}", number, at, sums[at]))


def check_upper_checksums(where, data):
    """The TCP, UDP and ICMP checksums of an expected frame are right, summed up another way than scapy's."""
    offset = 12
    while data[offset:offset + 2] in (b"\x81\x00", b"\x88\xa8"):
        offset += 4
    kind, ip = int.from_bytes(data[offset:offset + 2], "big"), data[offset + 2:]
    if kind == 0x0800:
        upper, message, addresses = ip[9], ip[(ip[0] & 15) * 4:], ip[12:20]
        if int.from_bytes(ip[6:8], "big") & 0x3FFF:
            return
    elif kind == 0x86DD:
        upper, message, addresses = ip[6], ip[40:], ip[8:40]
    else:
        return
    if upper not in (1, 6, 17, 58) or upper == 17 and message[6:8] == b"\0\0":
        return
    if upper == 17:
        message = message[:int.from_bytes(message[4:6], "big")]  # RFC 768: what lies behind is no part of it
    pseudo = b"" if upper == 1 else addresses + struct.pack(">II", len(message), upper)
    assert ones_complement(pseudo + message) == 0, f"{where}: checksum of protocol {upper}"


class End:
    """A station on a link of the gateway."""

    def __init__(self, port, mac, gateway, *tags):
        self.port, self.mac, self.gateway, self.tags = port, mac, gateway, tags

    def sends(self, ip):
        return link(eth(self.mac, self.gateway, *self.tags), ip)

    def gets(self, ip):
        return link(eth(self.gateway, self.mac, *self.tags), ip)


AT_HOST, AT_HOST2 = End("lan", HOST, GW_LAN), End("lan", HOST2, GW_LAN)
AT_SERVER, AT_SERVER2 = End("wan", SERVER, GW_WAN), End("wan", SERVER2, GW_WAN)


def ip(src, dst, ttl=64, **keys):
    """A packet as hosts send it: of IPv4 with DF, unless `flags` say otherwise. NAT leaves the identification of those
    alone (RFC 6864 section 4.1)."""
    return v6(src, dst, hlim=ttl, **keys) if ":" in src else v4(src, dst, ttl=ttl, **{"flags": "DF", **keys})


class Talk:
    """Packets between a client and a server, each an (address, port). `seen` is the client as the server sees
    it, `asked` the server as the client knows it: they differ by what NAT does. What is said is a function of
    source and destination port."""

    def __init__(self, case, client, server, seen=None, asked=None, here=AT_HOST, there=AT_SERVER):
        self.case, self.client, self.server = case, client, server
        self.seen, self.asked = seen or client, asked or server
        self.here, self.there = here, there

    def up(self, said, drop=None, ttl=64, **keys):
        """Client to server; forwarded unless `drop` says why not. `heard` is what arrives, if it is not what was said.
        Returns the packet as sent and as it arrives."""
        before, after = (self.client, self.asked), (self.seen, self.server)
        return self._one(self.here, before, self.there, after, said, drop, ttl, keys)

    def down(self, said, drop=None, ttl=64, **keys):
        """Server to client."""
        before, after = (self.server, self.seen), (self.asked, self.client)
        return self._one(self.there, before, self.here, after, said, drop, ttl, keys)

    def _one(self, rx, before, tx, after, said, drop, ttl, keys):
        heard = keys.pop("heard", said)

        def packet(ends, ttl, words):
            (src, sport), (dst, dport) = ends
            return rebuilt(ip(src, dst, ttl, **keys) / words(sport, dport))
        sent, got = packet(before, ttl, said), packet(after, ttl - 1, heard)
        self.case.rx(rx.port, rx.sends(sent), drop=drop)
        if not drop:
            self.case.tx(tx.port, tx.gets(got))
        return sent, got

    def handshake(self, isn=(1000, 5000), **keys):
        """RFC 9293 section 3.5, figure 6."""
        client, server = isn
        self.up(T("S", client, **keys))
        self.down(T("SA", server, client + 1, **keys))
        self.up(T("A", client + 1, server + 1, **keys))
        return self


def U(length=32, seed=0, **keys):
    """A UDP datagram."""
    return lambda s, d: UDP(sport=s, dport=d, **keys) / payload(length, seed)


def T(flags, seq=0, ack=0, data=0, window=8192, **keys):
    """A TCP segment."""
    def said(s, d):
        head = TCP(sport=s, dport=d, flags=flags, seq=seq & 0xFFFFFFFF, ack=ack & 0xFFFFFFFF, window=window, **keys)
        return head / payload(data) if data else head
    return said


def ASK(seq=1, length=56):
    """An echo request; the client's port is the identifier."""
    return lambda s, d: ICMP(type=8, id=s, seq=seq) / payload(length)


def ANSWER(seq=1, length=56):
    return lambda s, d: ICMP(type=0, id=d, seq=seq) / payload(length)


def ASK6(seq=1, length=56):
    return lambda s, d: ICMPv6EchoRequest(id=s, seq=seq, data=bytes(range(length)))


def ANSWER6(seq=1, length=56):
    return lambda s, d: ICMPv6EchoReply(id=d, seq=seq, data=bytes(range(length)))


# -- configuration -------------------------------------------------------------------------------------
def table(kind, /, **keys):
    """One table of a TOML array."""
    def value(v):
        if isinstance(v, bool):
            return "true" if v else "false"
        if isinstance(v, dict):
            return "{ " + ", ".join(f"{k} = {value(x)}" for k, x in v.items()) + " }"
        if isinstance(v, (list, tuple)):
            return "[" + ", ".join(map(value, v)) + "]"
        return json.dumps(v)
    return f"[[{kind}]]\n" + "".join(f"{k} = {value(v)}\n" for k, v in keys.items())


def interface(name, addresses, port=None, **keys):
    """An interface; its port is the one of its name unless said otherwise."""
    return table("interface", name=name, port=port or name, **keys, addresses=addresses)


def neighbour(where, address, mac):
    return table("neighbour", interface=where, address=address, mac=mac)


def route(prefix, via=None, **keys):
    return table("route", prefix=prefix, **({"via": [via] if isinstance(via, str) else via} if via else {}), **keys)


def rule(name, action, frm=None, to=None, kind="rule", **keys):
    """A rule of the firewall: `frm` and `to` are sides, a string is a zone."""
    def side(value):
        return {"zone": value} if isinstance(value, str) else value
    sides = {k: side(v) for k, v in (("from", frm), ("to", to)) if v}
    return table(kind, name=name, action=action, **sides, **keys)


def source_nat(name, pool=None, frm="inside", to="outside", **keys):
    def side(value):
        return {"zone": value} if isinstance(value, str) else value
    sides = {k: side(v) for k, v in (("from", frm), ("to", to)) if v}
    return table("nat.source", name=name, **sides, **({"pool": pool} if pool else {"exempt": True}), **keys)


def destination_nat(name, address, target, **keys):
    return table("nat.destination", name=name, address=address, target=target, **keys)


def static_nat(outside, inside, **keys):
    return table("nat.static", outside=outside, inside=inside, **keys)


def config(*tables, ports=("lan", "wan"), extra=""):
    """A whole config.toml: its head, the ports, and what the case is about."""
    head = 'schema = 1\n\n[system]\nname = "golden"\n'
    if extra:
        head += "\n" + extra
    text = "".join([head, *(table("port", name=p, device=f"sg-{p}") for p in ports), *tables])
    return re.sub(r"\n*\[\[", "\n\n[[", text)


# -- the small network of most cases: host - lan - gateway - wan - server ---------------------------------
H4, L4, W4, S4 = "192.0.2.10", "192.0.2.1", "198.51.100.1", "198.51.100.20"
H6, L6, W6, S6 = "2001:db8:1::10", "2001:db8:1::1", "2001:db8:2::1", "2001:db8:2::20"
LAN = interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"])
WAN = interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"])
HOST_NEIGHBOURS = neighbour("lan", H4, HOST) + neighbour("lan", H6, HOST)
SERVER_NEIGHBOURS = neighbour("wan", S4, SERVER) + neighbour("wan", S6, SERVER)


def two_ports(*more, lan=LAN, wan=WAN, neighbours=HOST_NEIGHBOURS + SERVER_NEIGHBOURS, **keys):
    """The small network, its host and server known."""
    return config(lan, wan, neighbours, *more, **keys)


def v4(src=H4, dst=S4, **keys):
    return IP(src=src, dst=dst, **{"ttl": 64, "id": 0x1234, **keys})


def v6(src=H6, dst=S6, **keys):
    return IPv6(src=src, dst=dst, **{"hlim": 64, **keys})


def udp(length=32, sport=40000, dport=50000):
    return UDP(sport=sport, dport=dport) / payload(length)


def from_host(ip):
    """As the host on lan sends it to the gateway."""
    return link(eth(HOST, GW_LAN), ip)


def to_server(ip):
    """As the gateway sends it to the server on wan."""
    return link(eth(GW_WAN, SERVER), ip)


def from_server(ip):
    return link(eth(SERVER, GW_WAN), ip)


def to_host(ip):
    return link(eth(GW_LAN, HOST), ip)


# -- the same network with zones: host and host2 inside, server and server2 outside -------------------------
H4B, S4B = "192.0.2.11", "198.51.100.21"
H6B, S6B = "2001:db8:1::11", "2001:db8:2::21"
OUT = rule("out", "allow", "inside", "outside")


def zoned(*more, lan_keys=None, wan_keys=None, **keys):
    others = (neighbour("lan", H4B, HOST2) + neighbour("lan", H6B, HOST2)
              + neighbour("wan", S4B, SERVER2) + neighbour("wan", S6B, SERVER2))
    return two_ports(others, *more, lan=interface("lan", ["192.0.2.1/24", "2001:db8:1::1/64"], zone="inside", **lan_keys or {}),
                     wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], zone="outside", **wan_keys or {}), **keys)


# -- capture files, by hand: a few lines that show what is in them -------------------------------------
def stamped(frames):
    return ((EPOCH_NS + int(ms * MS), data) for ms, data in frames)


def pcap_ns(frames):
    """pcap, nanoseconds, little-endian, Ethernet."""
    out = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)]
    for ns, data in stamped(frames):
        out.append(struct.pack("<IIII", ns // 10**9, ns % 10**9, len(data), len(data)) + data)
    return b"".join(out)


def pcap_us_big_endian(frames):
    """The classic format as a big-endian machine writes it: microseconds."""
    out = [struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)]
    for ns, data in stamped(frames):
        out.append(struct.pack(">IIII", ns // 10**9, ns % 10**9 // 1000, len(data), len(data)) + data)
    return b"".join(out)


def pcapng(frames):
    """pcapng: section header, one interface in nanoseconds, enhanced packet blocks."""
    def block(kind, body):
        body += bytes(-len(body) % 4)
        length = len(body) + 12
        return struct.pack("<II", kind, length) + body + struct.pack("<I", length)

    out = [block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)),
           block(1, struct.pack("<HHI", 1, 0, 65535) + struct.pack("<HHB3xHH", 9, 1, 9, 0, 0))]
    for ns, data in stamped(frames):
        head = struct.pack("<IIIII", 0, ns >> 32, ns & 0xFFFFFFFF, len(data), len(data))
        out.append(block(6, head + data))
    return b"".join(out)


# -- frames --------------------------------------------------------------------------------------------
def raw(frame):
    return frame if isinstance(frame, bytes) else bytes(frame)


def quote(text):
    return json.dumps(text, ensure_ascii=False)


def eth(src, dst, *tags):
    """Ethernet header with VLAN tags: eth(a, b), eth(a, b, 100), eth(a, b, 200, 10) for QinQ."""
    head = Ether(src=src, dst=dst)
    if len(tags) == 1:
        return head / Dot1Q(vlan=tags[0])
    if len(tags) == 2:  # 802.1ad: the service tag outside
        return head / Dot1AD(vlan=tags[0]) / Dot1Q(vlan=tags[1])
    assert not tags
    return head


def payload(length, seed=0):
    return Raw(bytes((seed + i) & 0xFF for i in range(length)))


def rebuilt(packet):
    """Scapy's reading of the packet's own bytes: every length and checksum is now a value."""
    return packet.__class__(bytes(packet))


def hop(packet, hops=1):
    """The IP packet one router later: TTL or hop limit less one, the header checksum to match, else untouched."""
    data = bytearray(bytes(packet))
    if data[0] >> 4 == 4:
        data[8] -= hops
        head = (data[0] & 15) * 4
        data[10:12] = b"\0\0"
        data[10:12] = ones_complement(bytes(data[:head])).to_bytes(2, "big")
    else:
        data[7] -= hops
    return Raw(bytes(data))


def ones_complement(data):
    """RFC 1071, the obvious way."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def link(header, ip):
    """An Ethernet header (with tags) before the bytes of an IP packet, with the right EtherType."""
    data = bytes(ip)
    kind = 0x0800 if data[0] >> 4 == 4 else 0x86DD
    head = header.copy()
    last = head.lastlayer()
    last.type = kind
    return bytes(head) + data


def icmp4(src, dst, kind, code, offending, mtu=0):
    """An ICMP error of the gateway: RFC 792, RFC 1812 section 4.3.2 (quotes up to 576 bytes, precedence 6)."""
    quoted = bytes(offending)[:576 - 20 - 8]
    return IP(src=src, dst=dst, ttl=64, tos=0xC0, id=0, flags="DF") / ICMP(
        type=kind, code=code, **({"nexthopmtu": mtu} if mtu else {})) / Raw(quoted)


def icmp6(src, dst, message, offending):
    """An ICMPv6 error of the gateway: RFC 4443 section 2.4 (quotes up to 1280 bytes)."""
    quoted = bytes(offending)[:1280 - 40 - 8]
    return IPv6(src=src, dst=dst, hlim=64) / message / Raw(quoted)


def arp_request(src_mac, src, dst, to=BROADCAST, tags=()):
    return eth(src_mac, to, *tags) / ARP(op=1, hwsrc=src_mac, psrc=src, hwdst="00:00:00:00:00:00", pdst=dst)


def arp_reply(src_mac, src, dst_mac, dst, tags=(), to=None):
    return eth(src_mac, to or dst_mac, *tags) / ARP(op=2, hwsrc=src_mac, psrc=src, hwdst=dst_mac, pdst=dst)


def solicit(src_mac, src, target, tags=()):
    """RFC 4861 section 7.2.2: to the solicited-node group, with the source's link-layer address."""
    import socket
    group = in6_getnsma(socket.inet_pton(socket.AF_INET6, target))
    return eth(src_mac, in6_getnsmac(group), *tags) / IPv6(
        src=src, dst=socket.inet_ntop(socket.AF_INET6, group), hlim=255
    ) / ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=src_mac)


def advertise(src_mac, src, dst_mac, dst, target=None, R=1, S=1, O=1, tags=()):
    """RFC 4861 section 7.2.4."""
    return eth(src_mac, dst_mac, *tags) / IPv6(src=src, dst=dst, hlim=255) / ICMPv6ND_NA(
        tgt=target or src, R=R, S=S, O=O) / ICMPv6NDOptDstLLAddr(lladdr=src_mac)


def check_checksums(where, data, own):
    """Lengths and checksums of an expected frame are right, by a way other than the one that wrote it. ICMP
    checksums are ours only in what we make; in what we forward they may be as wrong as they came."""
    offset = 12
    while data[offset:offset + 2] in (b"\x81\x00", b"\x88\xa8"):
        offset += 4
    kind, ip = int.from_bytes(data[offset:offset + 2], "big"), data[offset + 2:]
    if kind == 0x0800:
        head = (ip[0] & 15) * 4
        assert ones_complement(ip[:head]) == 0, f"{where}: IPv4 header checksum"
        assert int.from_bytes(ip[2:4], "big") == len(ip), f"{where}: IPv4 total length"
        whole = not int.from_bytes(ip[6:8], "big") & 0x3FFF
        if own and ip[9] == 1 and whole:
            assert ones_complement(ip[head:]) == 0, f"{where}: ICMP checksum"
    elif kind == 0x86DD:
        assert int.from_bytes(ip[4:6], "big") == len(ip) - 40, f"{where}: IPv6 payload length"
        if own and ip[6] == 58:
            pseudo = ip[8:40] + struct.pack(">II", len(ip) - 40, 58)
            assert ones_complement(pseudo + ip[40:]) == 0, f"{where}: ICMPv6 checksum"
    else:
        assert kind == 0x0806 or not own or kind == 0x88B5, f"{where}: EtherType {kind:04x}"
