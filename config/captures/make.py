#!/usr/bin/env python3
"""Writes trunk.pcap and uplink.pcap: a tenth of a second in the life of the lab (scripts/lab), for a first look at
SoftGate without root. Needs nothing but Python; the same bytes every time.

    config/captures/make.py [DIR]
    softgate replay --config config/lab.toml --in trunk=config/captures/trunk.pcap \
        --in uplink=config/captures/uplink.pcap --out /tmp/out
"""

import ipaddress
import struct
import sys
from pathlib import Path

GATEWAY_TRUNK = bytes.fromhex("020000000001")
GATEWAY_UPLINK = bytes.fromhex("020000000002")
A = bytes.fromhex("02000000010a")
B = bytes.fromhex("02000000020a")
NET = bytes.fromhex("02000000ff01")
BROADCAST = b"\xff" * 6

TAG_A = bytes.fromhex("81000064")  # 802.1Q, VLAN 100
TAGS_B = bytes.fromhex("88a800c8" "8100000a")  # 802.1ad 200, 802.1Q 10
TAG_NOBODY = bytes.fromhex("8100012c")  # VLAN 300: no interface has it

IPV4, ARP, IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58


def address(text):
    return ipaddress.ip_address(text).packed


def checksum(data):
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(dst_mac, src_mac, tags, ethertype, payload):
    """Padded to the 60 bytes that Ethernet wants without its checksum."""
    return (dst_mac + src_mac + tags + ethertype + payload).ljust(60, b"\0")


def ipv4(src, dst, protocol, payload, ttl=64):
    def header(check):
        return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0x4000, ttl, protocol, check, address(src), address(dst))

    return header(checksum(header(0))) + payload


def ipv6(src, dst, protocol, payload, hop_limit=64):
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hop_limit) + address(src) + address(dst) + payload


def with_checksum(src, dst, protocol, payload, at):
    """Fills in the transport checksum at this offset (pseudo header as in RFC 768, RFC 8200 section 8.1)."""
    src, dst = address(src), address(dst)
    pseudo = src + dst + struct.pack("!I" if len(src) == 16 else "!H", len(payload)) + struct.pack("!H", protocol)
    return payload[:at] + struct.pack("!H", checksum(pseudo + payload) or 0xFFFF) + payload[at + 2 :]


def ip(src, dst, protocol, payload, ttl=64):
    """An EtherType and an IP packet around it."""
    if ":" in src:
        return IPV6, ipv6(src, dst, protocol, payload, ttl)
    return IPV4, ipv4(src, dst, protocol, payload, ttl)


def echo(src, dst, sequence, reply=False, ttl=64):
    data = bytes(range(32))
    if ":" in src:
        message = struct.pack("!BBHHH", 129 if reply else 128, 0, 0, 1, sequence) + data
        return ip(src, dst, ICMP6, with_checksum(src, dst, ICMP6, message, 2), ttl)
    message = struct.pack("!BBHHH", 0 if reply else 8, 0, 0, 1, sequence) + data
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    return ip(src, dst, ICMP, message, ttl)


def udp(src, dst, src_port, dst_port, data, ttl=64):
    segment = struct.pack("!HHHH", src_port, dst_port, 8 + len(data), 0) + data
    return ip(src, dst, UDP, with_checksum(src, dst, UDP, segment, 6), ttl)


def arp(operation, mac, sender, target_mac, target):
    return ARP, struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + address(sender) + target_mac + address(target)


def solicit(mac, src, target):
    """Neighbour solicitation (RFC 4861 section 4.3) to the solicited-node group, with our own MAC in it."""
    group = address("ff02::1:ff00:0")[:13] + address(target)[13:]
    dst = str(ipaddress.ip_address(group))
    message = struct.pack("!BBHI", 135, 0, 0, 0) + address(target) + b"\x01\x01" + mac
    packet = ip(src, dst, ICMP6, with_checksum(src, dst, ICMP6, message, 2), 255)
    return b"\x33\x33" + group[12:], packet


def advertise(mac, src, dst):
    """Solicited neighbour advertisement (RFC 4861 section 4.4)."""
    message = struct.pack("!BBHI", 136, 0, 0, 0x60000000) + address(src) + b"\x02\x01" + mac
    return ip(src, dst, ICMP6, with_checksum(src, dst, ICMP6, message, 2), 255)


def trunk():
    """Frames of the two tenants: (milliseconds, bytes)."""

    def a(packet, dst_mac=GATEWAY_TRUNK):
        return frame(dst_mac, A, TAG_A, *packet)

    def b(packet, dst_mac=GATEWAY_TRUNK):
        return frame(dst_mac, B, TAGS_B, *packet)

    # Both look for the gateway; it learns them by that.
    yield 0, a(arp(1, A, "10.0.1.10", bytes(6), "10.0.1.1"), BROADCAST)
    yield 1, b(arp(1, B, "10.0.2.10", bytes(6), "10.0.2.1"), BROADCAST)
    group, packet = solicit(A, "2001:db8:1::10", "2001:db8:1::1")
    yield 2, a(packet, group)
    group, packet = solicit(B, "2001:db8:2::10", "2001:db8:2::1")
    yield 3, b(packet, group)
    # Ping the gateway itself, then the outside.
    yield 5, a(echo("10.0.1.10", "10.0.1.1", 1))
    yield 6, b(echo("2001:db8:2::10", "2001:db8:2::1", 1))
    for sequence in range(1, 4):
        yield 10 * sequence, a(echo("10.0.1.10", "198.51.100.1", sequence))
        yield 10 * sequence + 1, b(echo("2001:db8:2::10", "2001:db8:ff::1", sequence))
    # From one tenant to the other: one tag off, two on.
    for i in range(20):
        yield 50 + i, a(udp("10.0.1.10", "10.0.2.10", 4000 + i, 7000, b"question"))
        yield 50 + i + 0.5, b(udp("10.0.2.10", "10.0.1.10", 7000, 4000 + i, b"answer"))
    # A first probe of traceroute, for each family.
    yield 80, a(udp("10.0.1.10", "198.51.100.1", 40000, 33434, bytes(24), ttl=1))
    yield 81, b(udp("2001:db8:2::10", "2001:db8:ff::1", 40000, 33434, bytes(24), ttl=1))
    # What gets lost, and is counted: a VLAN nobody has, an address that may never be a source.
    yield 90, frame(GATEWAY_TRUNK, A, TAG_NOBODY, *echo("10.0.3.10", "198.51.100.1", 1))
    yield 91, a(echo("127.0.0.1", "198.51.100.1", 1))


def uplink():
    """Frames of the outside."""

    def net(packet, dst_mac=GATEWAY_UPLINK):
        return frame(dst_mac, NET, b"", *packet)

    # Answers to the gateway's own questions, then to the clients'.
    yield 10.2, net(arp(2, NET, "198.51.100.1", GATEWAY_UPLINK, "198.51.100.2"))
    yield 11.2, net(advertise(NET, "2001:db8:ff::1", "2001:db8:ff::2"))
    for sequence in range(1, 4):
        yield 10 * sequence + 4, net(echo("198.51.100.1", "10.0.1.10", sequence, reply=True))
        yield 10 * sequence + 5, net(echo("2001:db8:ff::1", "2001:db8:2::10", sequence, reply=True))
    for i in range(20):
        yield 60 + i, net(udp("198.51.100.1", "10.0.2.10", 443, 50000 + i, bytes(400)))


def write(path, frames):
    """A pcap file (microseconds, Ethernet), in the order of time."""
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for milliseconds, data in sorted(frames, key=lambda entry: entry[0]):
            micros = round(milliseconds * 1000)
            out.write(struct.pack("<IIII", 1_700_000_000 + micros // 1_000_000, micros % 1_000_000, len(data), len(data)))
            out.write(data)


def main():
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    write(directory / "trunk.pcap", trunk())
    write(directory / "uplink.pcap", uplink())


if __name__ == "__main__":
    main()
