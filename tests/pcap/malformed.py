"""Packets of sessions that end too early, and upper layers whose checksum covers less than all of them."""

from lib import *

POOL = "203.0.113.5"
IN = rule("in", "allow", "outside", "inside")


def cut(ip, protocol, head):
    """A packet that ends within the header of its protocol. Ethernet fills up to 60 bytes: with what looks like the
    rest of a header, as a careless driver's buffer does."""
    packet = ip / Raw(head)
    packet.setfieldval("nh" if ip.version == 6 else "proto", protocol)
    return Raw(bytes(packet))


def padded(frame):
    data = raw(frame)
    return data + (b"\xaa\x55" * 30)[:max(0, 60 - len(data))]


@story("nat-upper-header-cut", "What ends before its ports, its identifier or its checksum is of no session: padding is no header, and nothing leaves untranslated.",
       "scapy script: RFC 768, RFC 792, RFC 894 (padding is no part of the datagram)", zoned(IN, OUT, source_nat("internet", [POOL])))
def _(c):
    ports = struct.pack(">HH", 40000, 53)
    for head in (b"", ports[:2], ports, ports + b"\0\x08", ports + b"\0\x08\0"):
        c.rx("lan", padded(from_host(cut(v4(), 17, head))), drop="upper-header-cut")
    for head in (bytes([8, 0, 0xF7, 0xFF]), bytes([8, 0, 0xF7, 0xFF, 0, 9, 0])):
        c.rx("lan", padded(from_host(cut(v4(), 1, head))), drop="upper-header-cut")
    c.rx("lan", padded(from_host(cut(v4(), 132, struct.pack(">HH", 40000, 53)))), drop="upper-header-cut")
    c.rx("lan", padded(from_host(cut(v4(), 6, ports))), drop="tcp-invalid")
    # Nor along a session there is.
    talk = Talk(c, (H4, 40000), (S4, 53), seen=(POOL, c.choice("p")))
    talk.up(U(0))
    c.rx("lan", padded(from_host(cut(v4(), 17, ports + b"\0\x08\0"))), drop="upper-header-cut")
    talk.down(U(0))


@story("upper-header-cut-ipv6", "The same for IPv6, and behind an extension header.",
       "scapy script: RFC 768, RFC 4443 section 2.1, RFC 8200 section 4", zoned(OUT))
def _(c):
    ports = struct.pack(">HH", 40000, 53)
    c.rx("lan", padded(from_host(cut(v6(), 17, ports))), drop="upper-header-cut")
    c.rx("lan", padded(from_host(cut(v6(), 58, bytes([128, 0, 0, 0])))), drop="upper-header-cut")
    behind = v6() / IPv6ExtHdrDestOpt(nh=17, options=[PadN(optdata=b"\0" * 4)]) / Raw(ports)
    c.rx("lan", padded(from_host(Raw(bytes(behind)))), drop="upper-header-cut")


def lite(src, dst, sport, dport, data, covered=None):
    """UDP-Lite (RFC 3828 section 3.1): the checksum is over the pseudo header, whose length is that of all of it, and
    the first `covered` bytes; 0 on the wire stands for all."""
    length = 8 + len(data)
    head = struct.pack(">HHHH", sport, dport, covered or 0, 0)
    packed = (v6 if ":" in src else v4)(src, dst)
    addresses = raw(packed)[8:40] if ":" in src else raw(packed)[12:20]
    pseudo = addresses + struct.pack(">II", length, 136)
    total = ones_complement(pseudo + (head + data)[:covered or length]) or 0xFFFF
    return Raw(head[:6] + struct.pack(">H", total) + data)


def dccp(src, dst, sport, dport, data):
    """A DCCP-Request (RFC 4340 sections 5.1 and 9) of service 0; everything is covered."""
    head = struct.pack(">HHBBH", sport, dport, 5, 0, 0) + struct.pack(">BBHI", 1, 0, 0, 7)[:4] + struct.pack(">II", 7, 0)
    pseudo = raw(v4(src, dst))[12:20] + struct.pack(">II", len(head) + len(data), 33)
    total = ones_complement(pseudo + head + data)
    return Raw(head[:6] + struct.pack(">H", total) + head[8:] + data)


@story("nat-static-udp-lite", "UDP-Lite and DCCP through static NAT: the address is in their checksums, however much of the data these cover.",
       "scapy script: RFC 3828 section 3.1, RFC 4340 section 9.1", zoned(IN, OUT, static_nat(POOL, H4), static_nat("2001:db8:77::/64", "2001:db8:1::/64")))
def _(c):
    outside6 = H6.replace("2001:db8:1::", "2001:db8:77::")
    data = bytes(range(40))

    def through(protocol, said, inside, outside, server):
        def packet(src, dst, ttl, *ports):
            return cut(ip(src, dst, ttl), protocol, bytes(said(src, dst, *ports)))
        up, down = (40000, 6000), (6000, 40000)
        c.rx("lan", from_host(packet(inside, server, 64, *up))).tx("wan", to_server(packet(outside, server, 63, *up)))
        c.rx("wan", from_server(packet(server, outside, 64, *down))).tx("lan", to_host(packet(server, inside, 63, *down)))

    for covered in (None, 8, 20):
        through(136, lambda *a: lite(*a, data, covered), H4, POOL, S4)
    through(136, lambda *a: lite(*a, data, 8), H6, outside6, S6)
    through(33, lambda *a: dccp(*a, data), H4, POOL, S4)


@story("nat-static-udp-lite-all-ones", "A UDP-Lite checksum that comes to 0 is sent as all ones.",
       "scapy script: RFC 3828 section 3.1", zoned(IN, OUT, static_nat(POOL, H4)))
def _(c):
    def sum_of(src, word):
        return int.from_bytes(bytes(lite(src, S4, 40000, 6000, struct.pack(">H", word)))[6:8], "big")
    word = next(word for word in range(65536) if sum_of(POOL, word) == 0xFFFF)
    data = struct.pack(">H", word)
    c.rx("lan", from_host(cut(ip(H4, S4), 136, bytes(lite(H4, S4, 40000, 6000, data)))))
    c.tx("wan", to_server(cut(ip(POOL, S4, ttl=63), 136, bytes(lite(POOL, S4, 40000, 6000, data)))))
