#!/usr/bin/env python3
"""Writes the captures and routes that `scripts/bench` measures with: workloads.py DIR (needs numpy).

Frames are 64 bytes in the capture (no FCS): Ethernet, for vl_* a tag of VLAN 100, IPv4 with TTL 64, UDP and
zeros; checksums are right. Everything comes from fixed seeds, so that figures of different days and of
other gateways can be compared.

    fw_1, fw_64k, fw_1M   flows to 20.0.0.0/8, each once, in random order: H hosts x P ports as in FD.io CSIT
    vl_1 ... vl_4M        the same on VLAN 100
    lb_64k, lb_1M         the same to the one service 90.0.0.1 udp/20000, untagged
    tcp_64k               the same as TCP in the middle of a connection, on VLAN 100
    vl_16M                the same with as many flows as a worker can have; only if named, 1.3 GB
    vx_1, vx_64k          the frames of fw_* in VXLAN with VNI 13 from 192.168.1.2 to .1, each flow by its source port
    vb_64k                the frames of lb_64k in VXLAN in the same way
    imix_64k, big_64k     on VLAN 100 with frames of 64, 594 and 1518 bytes, 7 to 4 to 1, and of 1518 bytes
    rt_10k, rt_1M         one million packets, each to a random address in a random one of the routes
    routes_10k, routes_1M .txt: route files of the config, lengths roughly as in the default-free zone,
                          next hops 192.168.2.2 to .17 in turn
"""

import ipaddress
import random
import struct
import sys
from pathlib import Path

import numpy as np

INSIDE_PORT = bytes.fromhex("02fe00000000")
CLIENT = bytes.fromhex("020100000001")
FRAME_BYTES = 64
# Bytes of a frame and how often: a simple mix as on the Internet, and as long as frames get.
MIXES = {"imix": ((64, 7), (594, 4), (1518, 1)), "big": ((1518, 1),)}
MIXED_FLOWS = "64k"
VLAN = 100

# Name: (hosts, ports). The order matters: one random sequence serves all.
FLOWS = {"1": (1, 1), "1k": (16, 63), "64k": (1024, 63), "1M": (16384, 63), "4M": (65536, 63)}
# Made only if named.
SIXTEEN_MILLION = (253952, 63)
CAPTURES = {"fw": ("1", "64k", "1M"), "vl": ("1", "1k", "64k", "1M", "4M"), "tcp": ("64k",), "lb": ("64k", "1M"),
            "vx": ("1", "64k"), "vb": ("64k",)}

ROUTES = {"10k": 10_000, "1M": 1_000_000}
RANDOM_DESTINATIONS = 1_000_000
# Percent of prefix lengths.
LENGTHS = [24] * 60 + [23] * 8 + [22] * 12 + [21] * 4 + [20] * 5 + [19] * 3 + [18] * 2 + [17] * 1 + [16] * 4 + [32] * 1
# Networks of the clients, the loopback and the gateway.
NO_ROUTES_IN = (10, 127, 192)


def ipv4(text):
    return int(ipaddress.IPv4Address(text))


def big_endian(values, size):
    """Each value as `size` bytes in network order."""
    return values.astype(f">u{size}").view(np.uint8).reshape(-1, size)


def ones_complement_sum(octets):
    """Per row, the folded sum of its 16-bit words (RFC 1071); rows have an even length."""
    words = octets.astype(np.uint32)
    total = (words[:, 0::2] << 8).sum(1) + words[:, 1::2].sum(1)
    for _ in range(3):
        total = (total & 0xFFFF) + (total >> 16)
    return total


def udp_frames(src, dst, src_port, dst_port, vlan=None, tcp=False, frame_bytes=FRAME_BYTES):
    """One frame per element of the four arrays; TCP segments instead of datagrams if asked for."""
    protocol = 6 if tcp else 17
    frames = np.zeros((len(src), frame_bytes), np.uint8)
    frames[:, 0:6] = np.frombuffer(INSIDE_PORT, np.uint8)
    frames[:, 6:12] = np.frombuffer(CLIENT, np.uint8)
    l3 = 14
    if vlan is not None:
        frames[:, 12:16] = [0x81, 0x00, vlan >> 8, vlan & 255]
        l3 = 18
    frames[:, l3 - 2 : l3] = [0x08, 0x00]

    header = frames[:, l3 : l3 + 20]
    header[:, 0] = 0x45
    header[:, 2:4] = divmod(frame_bytes - l3, 256)
    header[:, 8] = 64  # TTL
    header[:, 9] = protocol
    header[:, 12:16] = big_endian(src, 4)
    header[:, 16:20] = big_endian(dst, 4)
    header[:, 10:12] = big_endian(~ones_complement_sum(header) & 0xFFFF, 2)

    datagram = frames[:, l3 + 20 :]
    length = frame_bytes - l3 - 20
    datagram[:, 0:2] = big_endian(src_port, 2)
    datagram[:, 2:4] = big_endian(dst_port, 2)
    if tcp:
        # Sequence and acknowledgement number, 5 words of header, PSH and ACK, window.
        datagram[:, 4:16] = [0, 0, 0x10, 0, 0, 0, 0x20, 0, 0x50, 0x18, 0xFF, 0xFF]
    else:
        datagram[:, 4:6] = divmod(length, 256)
    # Pseudo header (RFC 768): addresses, protocol, length.
    pseudo = ones_complement_sum(header[:, 12:20]) + protocol + length
    total = ones_complement_sum(datagram) + pseudo
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    check = ~total & 0xFFFF
    if not tcp:
        check[check == 0] = 0xFFFF
    at = 16 if tcp else 6
    datagram[:, at : at + 2] = big_endian(check, 2)
    return frames


OVERLAY = bytes.fromhex("02fe00000002")
VNI = 13


def in_vxlan(inner, source_port):
    """The same frames in VXLAN (RFC 7348) as Linux sends it: DF, no UDP checksum."""
    count, length = inner.shape
    inner[:, 0:6] = np.frombuffer(OVERLAY, np.uint8)
    frames = np.zeros((count, 50 + length), np.uint8)
    frames[:, 0:12] = np.frombuffer(INSIDE_PORT + CLIENT, np.uint8)
    frames[:, 12:14] = [0x08, 0x00]
    header = frames[:, 14:34]
    header[:, 0] = 0x45
    header[:, 2:4] = divmod(36 + length, 256)
    header[:, 6], header[:, 8], header[:, 9] = 0x40, 64, 17
    header[:, 12:16] = list(ipaddress.IPv4Address("192.168.1.2").packed)
    header[:, 16:20] = list(ipaddress.IPv4Address("192.168.1.1").packed)
    header[:, 10:12] = big_endian(~ones_complement_sum(header) & 0xFFFF, 2)
    frames[:, 34:36] = big_endian(source_port, 2)
    frames[:, 36:38] = divmod(4789, 256)
    frames[:, 38:40] = divmod(16 + length, 256)
    frames[:, 42] = 8
    frames[:, 46:49] = list(VNI.to_bytes(3, "big"))
    frames[:, 50:] = inner
    return frames


def write_capture(path, frames):
    count, length = frames.shape
    records = np.zeros((count, 16 + length), np.uint8)
    records[:, :16] = np.frombuffer(struct.pack("<IIII", 0, 0, length, length), np.uint8)
    records[:, 16:] = frames
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        out.write(records.tobytes())


def write_mixed(path, parts, order):
    """Frames of several lengths: `parts` are arrays of frames, `order` says of which part the next one is."""
    following = [iter(part) for part in parts]
    with open(path, "wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for part in order:
            frame = next(following[part]).tobytes()
            out.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)


def mixed_captures(directory, numbers):
    hosts, ports = FLOWS[MIXED_FLOWS]
    for name, mix in MIXES.items():
        index = numbers.permutation(hosts * ports)
        lengths, weights = zip(*mix)
        order = numbers.permutation(np.resize(np.repeat(np.arange(len(mix)), weights), len(index)))
        parts = []
        for part, length in enumerate(lengths):
            host, port = np.divmod(index[order == part], ports)
            fields = ipv4("10.0.0.1") + host, ipv4("20.0.0.1") + host, 1024 + port, np.full(len(host), 1234)
            parts.append(udp_frames(*fields, vlan=VLAN, frame_bytes=length))
        write_mixed(directory / f"{name}_{MIXED_FLOWS}.pcap", parts, order)


def sixteen_million(directory, numbers):
    hosts, ports = SIXTEEN_MILLION
    host, port = np.divmod(numbers.permutation(hosts * ports).astype(np.int32), ports)
    with open(directory / "vl_16M.pcap", "wb") as out:
        for part in range(0, len(host), 1 << 20):
            some = slice(part, part + (1 << 20))
            fields = host[some].astype(np.int64), port[some].astype(np.int64)
            frames = udp_frames(ipv4("10.0.0.1") + fields[0], ipv4("20.0.0.1") + fields[0], 1024 + fields[1],
                                np.full(len(fields[0]), 1234), vlan=VLAN)
            write_capture(directory / "vl_16M.part", frames)
            octets = (directory / "vl_16M.part").read_bytes()
            out.write(octets if part == 0 else octets[24:])
    (directory / "vl_16M.part").unlink()


def flow_captures(directory, numbers):
    for name, (hosts, ports) in FLOWS.items():
        index = numbers.permutation(hosts * ports)
        host, port = index // ports, index % ports
        fields = ipv4("10.0.0.1") + host, ipv4("20.0.0.1") + host, 1024 + port, np.full(len(host), 1234)
        if name in CAPTURES["fw"]:
            write_capture(directory / f"fw_{name}.pcap", udp_frames(*fields))
        if name in CAPTURES["vl"]:
            write_capture(directory / f"vl_{name}.pcap", udp_frames(*fields, vlan=VLAN))
        service = ipv4("10.0.0.1") + host, np.full(len(host), ipv4("90.0.0.1")), 1024 + port, np.full(len(host), 20000)
        tunnel_port = 49152 + (host * 63 + port) % 16384
        if name in CAPTURES["lb"]:
            write_capture(directory / f"lb_{name}.pcap", udp_frames(*service))
        if name in CAPTURES["vx"]:
            write_capture(directory / f"vx_{name}.pcap", in_vxlan(udp_frames(*fields), tunnel_port))
        if name in CAPTURES["vb"]:
            write_capture(directory / f"vb_{name}.pcap", in_vxlan(udp_frames(*service), tunnel_port))
        if name in CAPTURES["tcp"]:
            write_capture(directory / f"tcp_{name}.pcap", udp_frames(*fields, vlan=VLAN, tcp=True))


def route_captures(directory, numbers):
    choice = random.Random(7)
    for name, count in ROUTES.items():
        seen = set()
        while len(seen) < count:
            length = choice.choice(LENGTHS)
            network = choice.randrange(ipv4("1.0.0.0"), ipv4("223.0.0.0")) & (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF
            if network >> 24 not in NO_ROUTES_IN:
                seen.add((network, length))
        routes = sorted(seen)
        choice.shuffle(routes)
        with open(directory / f"routes_{name}.txt", "w") as out:
            for i, (network, length) in enumerate(routes):
                octets = ".".join(str(network >> shift & 255) for shift in (24, 16, 8, 0))
                out.write(f"{octets}/{length} via 192.168.2.{2 + i % 16}\n")

        picked = numbers.integers(0, count, RANDOM_DESTINATIONS)
        networks = np.array([route[0] for route in routes], np.int64)[picked]
        lengths = np.array([route[1] for route in routes])[picked]
        hosts = (numbers.random(RANDOM_DESTINATIONS) * (2.0 ** (32 - lengths))).astype(np.int64)
        ports = 1024 + (np.arange(RANDOM_DESTINATIONS) % 60000)
        sources = np.full(RANDOM_DESTINATIONS, ipv4("10.0.0.1"))
        frames = udp_frames(sources, networks + hosts, ports, np.full(RANDOM_DESTINATIONS, 1234))
        write_capture(directory / f"rt_{name}.pcap", frames)


def main():
    if len(sys.argv) != 2 and sys.argv[2:] != ["vl_16M"]:
        sys.exit(__doc__)
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(1)
    if len(sys.argv) > 2:
        sixteen_million(directory, numbers)
        return
    flow_captures(directory, numbers)
    route_captures(directory, numbers)
    mixed_captures(directory, numbers)


if __name__ == "__main__":
    main()
