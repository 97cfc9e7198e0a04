#!/usr/bin/env python3
"""Writes the handmade seeds of the fuzz target `packet` into a folder (format: fuzz_targets/packet.rs)."""
import os
import sys

GATEWAY = bytes.fromhex("020000000001")
HOST = bytes.fromhex("02000000020a")
ALL = b"\xff" * 6
MAC, LENGTH, CHECKSUM, ICMP = 0x10, 0x20, 0x40, 0x80
IP = LENGTH | CHECKSUM | ICMP
# Time before a frame.
MILLISECOND, TENTH, SECOND, THREE_SECONDS, HALF_MINUTE, TEN_MINUTES = range(2, 8)
MANY = 1
# What differs in many frames.
IDENTIFICATION, SOURCE_PORT, OFFSET, DESTINATION_PORT, SOURCE = range(5)
SUCCESSION, RESETTING, KEEPING = (bytes([MANY << 1, 0, fate, 0xFF]) for fate in range(3))
HURRY, STOP = 0x40, 0xB8


def record(frame, port=0, step=0, flags=IP, padding=0):
    return bytes([port | step << 1 | flags, len(frame), padding]) + frame


def wait(step=MILLISECOND):
    """What came before is done first; behind it stands a frame that is none."""
    return record(b"", 0, step)


def many(count, what, frame, port=0, flags=IP, padding=0):
    """Up to 32 frames that differ in `what`."""
    return bytes([port | MANY << 1 | flags, len(frame), padding, count - 1 << 3 | what]) + frame


def ether(kind, payload, dst=GATEWAY, tags=()):
    head = dst + HOST
    for tpid, vid in tags:
        head += tpid.to_bytes(2, "big") + vid.to_bytes(2, "big")
    return head + kind.to_bytes(2, "big") + payload


def v4(src, dst, proto=17, payload=bytes(12), ttl=64, fragment=0, options=b""):
    head = bytes([0x40 | 5 + len(options) // 4, 0, 0, 0, 0, 1]) + fragment.to_bytes(2, "big")
    return head + bytes([ttl, proto, 0, 0, *src, *dst]) + options + payload


def v6(src, dst, nxt=17, payload=bytes(12), hops=64):
    return bytes([0x60, 0, 0, 0, 0, 0, nxt, hops]) + src + dst + payload


def a6(net, host):
    return bytes.fromhex("20010db8") + net.to_bytes(2, "big") + bytes(8) + host.to_bytes(2, "big")


def arp(op, sha, spa, tha, tpa):
    return bytes.fromhex("000108000604") + op.to_bytes(2, "big") + sha + bytes(spa) + tha + bytes(tpa)


A, A2, B, FAR = (10, 0, 1, 10), (10, 0, 1, 1), (10, 0, 2, 2), (192, 0, 2, 7)
OUR_LINK_LOCAL = bytes.fromhex("fe80000000000000000000fffe000001")
SOLICITED = bytes.fromhex("ff0200000000000000000001ff000001")
ALL_ROUTERS = bytes.fromhex("ff020000000000000000000000000002")
ECHO, ECHO6 = bytes([8, 0, 0, 0, 0, 1, 0, 1]) + b"softgate", bytes([128, 0, 0, 0, 0, 1, 0, 1]) + b"softgate"
NS = bytes([135, 0, 0, 0]) + bytes(4) + a6(1, 1) + bytes([1, 1]) + HOST
NA = bytes([136, 0, 0, 0, 0x60, 0, 0, 0]) + a6(1, 10) + bytes([2, 1]) + HOST
RS = bytes([133, 0, 0, 0]) + bytes(4) + bytes([1, 1]) + HOST
UDP = bytes.fromhex("0400138800140000") + bytes(12)


def both(tags, net=1):
    """The same exchanges on whatever tags interface `a` has."""
    src, own = (10, 0, net, 10), (10, 0, net, 1)
    e = lambda kind, payload, dst=GATEWAY: ether(kind, payload, dst, tags)
    p4 = lambda *args, **more: e(0x0800, v4(*args, **more))
    p6 = lambda *args, **more: e(0x86DD, v6(*args, **more))
    ask = e(0x0806, arp(1, HOST, src, bytes(6), own), ALL)
    answer = e(0x0806, arp(2, HOST, src, GATEWAY, own))
    return {
        "arp": [record(ask), record(answer, step=2)],
        "forward": [record(p4(src, FAR, payload=UDP)), record(p4(src, FAR, 6, bytes(20)), step=3)],
        "ecmp": [record(p4(src, (198, 51, 100, n), payload=UDP)) for n in range(4)],
        "echo": [record(ask), record(p4(src, own, 1, ECHO))],
        "echo-unresolved": [record(p4(src, own, 1, ECHO)), record(answer, step=3)],
        "ttl": [record(answer), record(p4(src, FAR, payload=UDP, ttl=1))],
        "unreachable": [record(answer), record(p4(src, (203, 0, 113, 200), payload=UDP))],
        "blackhole": [record(p4(src, (203, 0, 113, 2), payload=UDP))],
        "resolve": [record(p4(src, (10, 0, 2, 77), payload=UDP))] * 5 + [record(answer, step=5)],
        "fragment": [record(p4(src, FAR, payload=UDP), padding=60), record(p4(src, FAR, payload=UDP), padding=200)],
        "fragment-of-fragment": [record(p4(src, FAR, payload=UDP, fragment=0x2010), padding=60)],
        "too-big": [record(answer), record(p4(src, FAR, payload=UDP, fragment=0x4000), padding=100)],
        "options": [record(p4(src, FAR, payload=UDP, options=bytes([7, 7, 4, 0, 0, 0, 0, 0])))],
        "chain-padding": [record(p4(src, FAR, payload=UDP)[:16] + b"\0\x1c" + p4(src, FAR, payload=UDP)[18:],
                                 flags=CHECKSUM, padding=80)],
        "forward6": [record(p6(a6(1, 10), a6(0xFF, 9), payload=UDP)), record(p6(a6(1, 10), a6(2, 7), payload=UDP))],
        "echo6": [record(p6(a6(net, 10), a6(net, 1), 58, NS, 255)), record(p6(a6(net, 10), a6(net, 1), 58, ECHO6))],
        "nd": [record(e(0x86DD, v6(a6(net, 10), SOLICITED, 58, NS, 255), bytes.fromhex("3333ff000001"))),
               record(p6(a6(net, 10), a6(net, 1), 58, NA, 255))],
        "rs": [record(e(0x86DD, v6(bytes.fromhex("fe80") + bytes(13) + b"\x0a", ALL_ROUTERS, 58, RS, 255),
                        bytes.fromhex("333300000002")))],
        "hops6": [record(p6(a6(net, 10), a6(0xFF, 9), payload=UDP, hops=1))],
        "too-big6": [record(p6(a6(net, 10), a6(0xFF, 9), payload=UDP), padding=100)],
        "extensions6": [record(p6(a6(net, 10), a6(0xFF, 9), 0, bytes([60, 0]) + bytes(6) + bytes([43, 0]) + bytes(6)
                                  + bytes([44, 0]) + bytes(6) + bytes([17, 0, 0, 1, 0, 0, 0, 1]) + UDP))],
    }


# Between zones: an inside host, one that others may reach, one with a static outside address, and a server outside.
IN, SERVER, STATIC, OUT = (10, 0, 1, 10), (10, 0, 1, 2), (10, 0, 1, 9), (192, 0, 2, 7)
PUBLISHED, POOL, OUTSIDE_STATIC = (10, 0, 2, 80), (10, 0, 2, 64), (10, 0, 2, 90)
BALANCED, REFUSING = (10, 0, 2, 81), (10, 0, 2, 82)
DIRECT, IN_IP, IN_UDP, NOT_ON_LINK, IN_A_TUNNEL = (10, 0, 2, 83), (10, 0, 2, 84), bytes.fromhex("20010db8000200000000000000000085"), (10, 0, 2, 86), (10, 0, 9, 87)
STAYS = (198, 51, 100, 7)  # whichever config is in force, the way there is the same
SYN, ACK, FIN, RST = 2, 16, 1, 4
FIRST_PORT = 40000  # of the pools
ERROR = bytes([3, 1, 0, 0, 0, 0, 0, 0])


def word(value, size=2):
    return value.to_bytes(size, "big")


def udp4(src, dst, sport=4000, dport=5000, data=bytes(12), **more):
    return ether(0x0800, v4(src, dst, 17, word(sport) + word(dport) + word(8 + len(data)) + bytes(2) + data, **more))


def tcp(sport, dport, flags, seq=0, ack=0, window=8192, options=b""):
    head = word(sport) + word(dport) + word(seq, 4) + word(ack, 4) + bytes([5 + len(options) // 4 << 4, flags])
    return head + word(window) + bytes(4) + options


def tcp4(src, dst, flags, sport=4000, dport=80, **more):
    return ether(0x0800, v4(src, dst, 6, tcp(sport, dport, flags, **more)))


def udp6(src, dst, sport=4000, dport=5000, nxt=17):
    return ether(0x86DD, v6(src, dst, nxt, word(sport) + word(dport) + word(20) + bytes([1, 2]) + bytes(12)))


def piece(src, dst, at, more, payload, proto=17):
    return ether(0x0800, v4(src, dst, proto, payload, fragment=at // 8 | (0x2000 if more else 0)))


def piece6(src, dst, at, more, payload, nxt=17):
    return ether(0x86DD, v6(src, dst, 44, bytes([nxt, 0]) + word(at | more) + bytes([0, 0, 0, 9]) + payload))


def sessions():
    """By name: variant and what else is special, records."""
    outer4 = lambda inner, dst=SERVER: ether(0x0800, v4(OUT, dst, 1, ERROR + inner))
    handshake = [record(tcp4(OUT, SERVER, SYN, seq=100), 1), record(tcp4(SERVER, OUT, SYN | ACK, 80, 4000, seq=500, ack=101), 0, MILLISECOND),
                 record(tcp4(OUT, SERVER, ACK, seq=101, ack=501), 1, MILLISECOND)]
    first = piece(IN, OUT, 0, True, word(4000) + word(5000) + word(24) + bytes(2))
    mss = bytes([2, 4, 5, 180])
    live = [record(udp4(IN, OUT, dport=5000)), record(udp4(IN, OUT, dport=6000)), record(tcp4(IN, OUT, SYN)),
            record(tcp4(OUT, PUBLISHED, SYN), 1)]
    six = a6(1, 10)
    far6, stays6 = (bytes.fromhex("20010db800640000") + bytes(4) + bytes(addr) for addr in (OUT, STAYS))
    return {
        "out": (0, [record(udp4(IN, OUT)), wait(), many(32, DESTINATION_PORT, udp4(OUT, POOL, 5000, FIRST_PORT), 1),
                    many(32, DESTINATION_PORT, udp4(OUT, (10, 0, 2, 65), 5000, FIRST_PORT), 1)]),
        "others-answer": (1, [record(udp4(IN, OUT)), wait(), many(32, DESTINATION_PORT, udp4(B, POOL, 5000, FIRST_PORT), 1)]),
        "connection-out": (0, [record(tcp4(IN, OUT, SYN, seq=100, options=mss)), wait(),
                               many(32, DESTINATION_PORT, tcp4(OUT, POOL, SYN | ACK, 80, FIRST_PORT, seq=500, ack=101), 1),
                               wait(), record(tcp4(IN, OUT, ACK, seq=101, ack=501)), record(tcp4(IN, OUT, ACK | FIN, seq=101, ack=501)),
                               record(tcp4(IN, OUT, RST, seq=102))]),
        "connection-in": (0, handshake + [record(tcp4(OUT, SERVER, ACK, seq=0x4000_0000, ack=501), 1), wait(),
                                          record(tcp4(SERVER, OUT, FIN | ACK, 80, 4000, seq=501, ack=101))]),
        "clamped": (1, [record(tcp4(OUT, SERVER, SYN, options=mss), 1)]),
        "proxied": (2, handshake),
        "published": (0, [record(tcp4(OUT, PUBLISHED, SYN), 1), record(tcp4(SERVER, OUT, SYN | ACK, 80, 4000, ack=1), 0, TENTH)]),
        "balanced": (0, [record(tcp4(OUT, BALANCED, SYN), 1), record(tcp4(SERVER, OUT, SYN | ACK, 80, 4000, ack=1), 0, TENTH),
                         record(udp4(OUT, BALANCED, 4000, 53), 1), record(udp4(SERVER, OUT, 53, 4000), 0, TENTH)]),
        "no-backend": (0, [record(tcp4(OUT, REFUSING, SYN), 1), record(udp4(OUT, REFUSING, 4000, 53), 1)]),
        "backend-failed": (0, [record(tcp4(STAYS, BALANCED, SYN), 1), record(tcp4(SERVER, STAYS, SYN | ACK, 80, 4000, ack=1), 0, TENTH),
                               record(tcp4(STAYS, BALANCED, ACK, seq=1, ack=1), 1), record(udp4(STAYS, BALANCED, 4000, 53), 1), wait(),
                               SUCCESSION, record(tcp4(STAYS, BALANCED, ACK, seq=1, ack=1), 1), record(udp4(STAYS, BALANCED, 4000, 53), 1),
                               wait()]),
        "direct": (0, [record(tcp4(OUT, DIRECT, SYN), 1), record(tcp4(OUT, DIRECT, ACK, seq=1, ack=1), 1), many(8, SOURCE_PORT, udp4(OUT, DIRECT, 4000, 53), 1),
                       record(ether(0x0800, v4(OUT, DIRECT, 1, ERROR + v4(DIRECT, OUT, 6, tcp(80, 4000, ACK)))), 1), wait(), SUCCESSION,
                       record(tcp4(OUT, DIRECT, FIN | ACK, seq=1, ack=1), 1), wait()]),
        "in-ip": (0, [many(8, SOURCE_PORT, tcp4(STAYS, IN_IP, SYN), 1), record(udp4(STAYS, IN_IP, 4000, 53), 1, padding=36), wait(),
                      record(ether(0x0800, v4((10, 0, 1, 2), (10, 0, 1, 1), 1, bytes([3, 4, 0, 0, 0, 0, 3, 232]) + v4((10, 0, 1, 1), (10, 0, 1, 2), 4, UDP)))),
                      SUCCESSION, many(8, SOURCE_PORT, tcp4(STAYS, IN_IP, ACK), 1), wait()]),
        "in-udp": (0, [record(udp6(a6(0xFF, 9), IN_UDP), 1), wait(), record(udp6(a6(0xFF, 9), IN_UDP), 1), wait()]),
        "not-on-link": (0, [record(tcp4(OUT, NOT_ON_LINK, SYN), 1), wait()]),
        "conflict": (0, [record(tcp4(OUT, PUBLISHED, SYN), 1), record(tcp4(OUT, SERVER, SYN), 1)]),
        "static": (0, [record(udp4(STATIC, OUT)), record(udp4(OUT, OUTSIDE_STATIC, 5000, 4000), 1, TENTH)]),
        "hairpin": (0, [record(udp4(IN, OUTSIDE_STATIC))]),
        "hairpin-off": (1, [record(udp4(IN, OUTSIDE_STATIC))]),
        "echo": (0, [record(ether(0x0800, v4(IN, OUT, 1, ECHO)))]),
        "no-mapping": (0, [record(udp4(OUT, POOL, 5000, FIRST_PORT + 3), 1)]),
        "unsolicited": (1, [record(tcp4(OUT, POOL, SYN, 5000, FIRST_PORT + 3), 1), record(tcp4(IN, OUT, SYN), 0, HALF_MINUTE)]),
        "denied": (0, [record(udp4(OUT, (10, 0, 1, 200)), 1)]),
        "rejected": (0, [record(tcp4(IN, OUT, SYN, dport=23)), record(udp4(IN, OUT, dport=23))]),
        "no-session": (1, [record(tcp4(IN, OUT, ACK))]),
        "invalid": (0, [record(tcp4(IN, OUT, SYN | FIN))]),
        "error": (0, [record(udp4(STATIC, OUT, 1024)), record(outer4(v4(OUTSIDE_STATIC, OUT, 17, UDP), OUTSIDE_STATIC), 1, TENTH)]),
        "error-of-none": (0, [record(outer4(v4(SERVER, OUT, 17, UDP)), 1)]),
        "host-sessions": (3, [many(5, SOURCE_PORT, udp4(IN, OUT))]),
        "zone-rate": (3, [many(10, SOURCE, udp4(IN, OUT))]),
        "rule-rate": (0, [many(30, SOURCE_PORT, udp4(OUT, SERVER), 1)]),
        "half-open": (3, [many(4, SOURCE, tcp4((192, 0, 2, 9), SERVER, SYN), 1)]),
        "half-open-of-all": (7, [many(32, SOURCE_PORT, tcp4(IN, OUT, SYN))]),
        "table-full": (2, [many(32, SOURCE_PORT, udp4(IN, OUT, 4000)), many(32, SOURCE_PORT, udp4(IN, OUT, 4032)),
                           many(32, SOURCE_PORT, udp4((10, 0, 1, 11), OUT, 4000))]),
        "host-rate": (4, [many(32, SOURCE_PORT, udp4(IN, OUT)), many(32, SOURCE_PORT, udp4(IN, OUT, 4100))]),
        "host-quota": (4, [many(32, SOURCE_PORT, udp4(IN, OUT)), wait(HALF_MINUTE), many(32, SOURCE_PORT, udp4(IN, OUT, 4100)),
                           wait(HALF_MINUTE), many(32, SOURCE_PORT, udp4(IN, OUT, 4200))]),
        "deterministic": (5, [many(16, SOURCE, udp4(IN, OUT)), record(udp4((10, 0, 1, 77), OUT))]),
        "pool-exhausted": (6, [many(8, SOURCE, udp4(IN, OUT))]),
        "shed": (2, [many(32, IDENTIFICATION, udp4(IN, OUT)), many(32, IDENTIFICATION, udp4(IN, OUT)),
                     many(32, SOURCE_PORT, tcp4(OUT, SERVER, SYN), 1)]),
        "fates": (0, live + [wait()] + live + [SUCCESSION, wait()] + live),
        "fates-reset": (0, live + [wait()] + live + [RESETTING, wait()] + live),
        "fates-kept": (0, live + [wait()] + live + [KEEPING, wait()] + live),
        "other-family": (0, [record(udp6(six, stays6)), wait()] + [
            many(32, DESTINATION_PORT, udp4(STAYS, (10, 0, 2, 70), 5000, port), 1) for port in (FIRST_PORT, FIRST_PORT + 32)
        ] + [SUCCESSION]),
        "nat64": (0, [record(udp6(six, far6)), record(ether(0x86DD, v6(six, far6, 58, ECHO6))), record(ether(0x86DD, v6(six, far6, 6,
                  tcp(4000, 80, SYN)))), wait(), many(32, DESTINATION_PORT, udp4(OUT, (10, 0, 2, 70), 5000, FIRST_PORT), 1)]),
        "nat64-too-big": (0, [record(udp6(six, far6), padding=60)]),
        "nat64-unsupported": (0, [record(udp6(six, far6, nxt=47))]),
        "nptv6": (0, [record(udp6(six, a6(0xFF, 9))), record(udp6(a6(0xFF, 9), bytes.fromhex("20010db800f0") + six[6:]), 1, TENTH)]),
        "nptv6-untranslatable": (0, [record(udp6(a6(1, 10)[:6] + bytes.fromhex("ffff") + a6(1, 10)[8:], a6(0xFF, 9)))]),
        "fragments": (0, [record(first), record(piece(IN, OUT, 8, True, bytes(16))), record(piece(IN, OUT, 24, False, bytes(9)))]),
        "fragments-late-first": (0, [record(piece(IN, OUT, 8, False, bytes(16))), record(first)]),
        "fragments6": (0, [record(piece6(six, a6(0xFF, 9), 0, True, UDP[:16])), record(piece6(six, a6(0xFF, 9), 16, False, bytes(9)))]),
        "fragment-denied": (0, [record(piece(OUT, (10, 0, 1, 200), 0, True, UDP[:8]), 1),
                                record(piece(OUT, (10, 0, 1, 200), 8, False, bytes(8)), 1, TENTH)]),
        "fragment-invalid": (0, [record(piece(IN, OUT, 0, True, UDP[:13]))]),
        "fragment-tiny": (0, [record(piece(IN, OUT, 0, True, tcp(4000, 80, SYN)[:8], 6))]),
        "fragment-overlap": (0, [record(piece(IN, OUT, 0, True, UDP[:16])), record(piece(IN, OUT, 8, False, bytes(24)))]),
        "fragment-too-many": (0, [record(first)] + [many(32, OFFSET, piece(IN, OUT, at, True, bytes(8))) for at in (8, 264, 520)]),
        "fragments-of-many": (0, [bytes([MANY << 1 | IP, 42, 0, 31 << 3 | IDENTIFICATION])
                                  + piece(IN, OUT, 8, False, bytes(8)).replace(word(1) + word(1), word(base) + word(1))
                                  for base in range(0, 192, 32)]),
        "fragments-held": (0, [many(12, OFFSET, piece(IN, OUT, 8, True, bytes(8)))]),
        "fragment-alone": (0, [record(piece(IN, OUT, 8, False, bytes(16))), record(udp4(IN, OUT), 0, HALF_MINUTE)]),
    }


def borrowed():
    """With two workers: mappings that the other has."""
    return {
        "many-hosts": (0, [many(4, SOURCE, udp4(IN, OUT)), wait(), many(32, DESTINATION_PORT, udp4(OUT, POOL, 5000, FIRST_PORT), 1)]),
        "stopped": (STOP, [many(4, SOURCE, udp4(IN, OUT)), many(32, DESTINATION_PORT, udp4(OUT, POOL, 5000, FIRST_PORT), 1)]),
    } | {
        # One inside host to the mapping of another, which may be another worker's.
        f"{name}-{host}-{other}": (special, [record(udp4((10, 0, 1, host), OUT)), wait()] + [
            many(32, DESTINATION_PORT, udp4((10, 0, 1, other), (10, 0, 2, 64 + port // 128), 4000, FIRST_PORT + port % 128))
            for port in range(0, 256, 32)] + [wait()] * 5 + [wait(SECOND)] * 2)
        for host, other in ((10, 11), (16, 11)) for name, special in (("lent", 0), ("not-lent", HURRY))
    }


def devices():
    return {
        "narrow": (0, [many(32, SOURCE_PORT, udp4(A, OUT))]),
        "nobody": (0, [record(udp4(A, (203, 0, 113, 5)))]),
        "stands-by": (0, [record(udp4(A, OUT), 1)]),
        "either": (0, [many(16, SOURCE_PORT, udp4(A, (198, 51, 100, 5)))]),
    }


def overlays():
    """Frames in VXLAN, whole and spoiled; packets into tunnels; stations that are asked for and that move."""
    remote, other, stranger, vtep = (10, 0, 1, 10), (10, 0, 2, 2), (10, 0, 1, 77), (10, 0, 1, 1)
    station, ours, inside = (10, 9, 0, 10), (10, 9, 0, 1), v4((10, 9, 0, 10), FAR, payload=UDP)

    def vxlan(inner, vni=5, flags=8, checksum=0):
        return word(50000) + word(4789) + word(16 + len(inner)) + word(checksum) + bytes([flags, 0, 0, 0]) + word(vni << 8, 4) + inner

    def over4(inner, src=remote, tos=0, **more):
        ip = bytearray(v4(src, vtep, 17, vxlan(inner, **more)))
        ip[1] = tos
        return record(ether(0x0800, bytes(ip)))

    over6 = lambda inner, host=0x10: record(ether(0x86DD, v6(a6(1, host), a6(1, 1), 17, vxlan(inner, 6))))
    plain = ether(0x0800, inside)
    ask = lambda address, own: ether(0x0806, arp(1, HOST, address, bytes(6), own), ALL)
    solicited = ether(0x86DD, v6(a6(8, 10), SOLICITED, 58, NS[:8] + a6(8, 1) + NS[24:], 255), bytes.fromhex("3333ff000001"))
    return {
        "out": (0, [over4(plain), over4(ether(0x86DD, v6(a6(9, 10), a6(0xFF, 9), payload=UDP))), over6(ether(0x0800, v4((10, 8, 0, 10), FAR, payload=UDP)))]),
        "invalid": (0, [over4(plain, flags=0)]),
        "checksum": (0, [over4(plain, checksum=1)]),
        "unknown-vni": (0, [over4(plain, vni=99)]),
        "unknown-remote": (0, [over4(plain, src=stranger)]),
        "inner-tag": (0, [over4(ether(0x0800, inside, tags=((0x8100, 7),)))]),
        "ecn": (0, [over4(plain, tos=3)]),
        "no-tunnel": (0, [record(ether(0x0800, v4(A, (10, 7, 0, 10), payload=UDP)))]),
        "into": (0, [record(ether(0x0800, v4(A, station, payload=UDP))), record(ether(0x86DD, v6(a6(1, 10), a6(9, 10), payload=UDP)))]),
        "into-cut": (0, [record(ether(0x0800, v4(A, station, payload=UDP)), padding=50)]),
        "into-too-long": (0, [record(ether(0x0800, v4(A, station, payload=UDP, fragment=0x4000)), padding=36)]),
        "asked": (0, [over4(ask(station, ours)), over6(ask((10, 8, 0, 10), (10, 8, 0, 1))), over6(solicited),
                      record(ether(0x0800, v4(A, (10, 8, 0, 10), payload=UDP)))]),
        "asks": (0, [record(ether(0x0800, v4(A, (10, 9, 0, 20), payload=UDP))), wait(),
                     over4(ether(0x0806, arp(2, HOST, (10, 9, 0, 20), GATEWAY, ours)), src=other)]),
        "moves": (0, [over6(ask((10, 8, 0, 10), (10, 8, 0, 1))), over6(ether(0x0800, v4((10, 8, 0, 10), FAR, payload=UDP)), 0x11),
                      record(ether(0x0800, v4(A, (10, 8, 0, 10), payload=UDP)))]),
        "echo": (0, [over4(ether(0x0800, v4(station, ours, 1, ECHO)))]),
        "nested": (0, [over4(ether(0x0800, v4(station, vtep, 17, vxlan(plain))))]),
        "ttl": (0, [over4(ether(0x0800, v4(station, FAR, payload=UDP, ttl=1)))]),
        "in-a-tunnel": (0, [record(ether(0x0800, v4((10, 0, 9, 5), IN_A_TUNNEL, 6, tcp(4000, 80, SYN)), tags=((0x8100, 9),)), 1), wait()]),
    }


def bridges():
    """Frames between members, to all of them and to the gateway; every reason to lose one."""
    a, b, c = (bytes([2, 0, 0, 0, 7, n]) for n in (10, 11, 12))
    on = ((0x8100, 300),)
    ours, station, remote, vtep = (10, 6, 0, 1), (10, 6, 0, 10), (10, 0, 1, 10), (10, 0, 1, 1)
    inside = v4(station, (10, 6, 0, 11), payload=UDP)

    def frame(src, dst, kind=0x0800, what=inside, tags=on):
        return dst + src + b"".join(word(tpid) + word(vid) for tpid, vid in tags) + word(kind) + what

    def vxlan(inner, vni):
        return word(50000) + word(4789) + word(16 + len(inner)) + word(0) + bytes([8, 0, 0, 0]) + word(vni << 8, 4) + inner

    over4 = lambda inner: record(ether(0x0800, v4(remote, vtep, 17, vxlan(inner, 8))))
    over6 = lambda inner: record(ether(0x86DD, v6(a6(1, 0x10), a6(1, 1), 17, vxlan(inner, 9))))
    bare = lambda src, dst, **keys: frame(src, dst, tags=(), **keys)
    qinq = ((0x88A8, 200), (0x8100, 10))
    asks = frame(a, ALL, 0x0806, arp(1, a, station, bytes(6), ours))
    group, listener = bytes.fromhex("01005e010203"), (239, 1, 2, 3)

    def summed(message):
        total = sum(int.from_bytes(message[at:at + 2], "big") for at in range(0, len(message), 2))
        return message[:2] + word((total & 0xFFFF) + (total >> 16) ^ 0xFFFF) + message[4:]

    joins = lambda src, dst: frame(src, group, what=v4(station, dst, 2, summed(bytes([0x16, 0, 0, 0, *dst])), ttl=1))
    router_alert, mld = bytes([58, 0, 5, 2, 0, 0, 1, 0]), bytes([131]) + bytes(23)
    return {
        "zone-session": (3, [record(frame(b, ALL, 0x0806, arp(1, b, station, bytes(6), station)), 1), wait(), record(frame(a, b)), wait(), record(frame(b, a, what=v4((10, 6, 0, 11), station, payload=UDP[2:4] + UDP[:2] + UDP[4:])), 1), wait(SECOND)]),
        "zone-denied": (3, [record(frame(a, ALL)), wait(), record(frame(b, a), 1), wait()]),
        "zone-deny": (3, [record(frame(b, ALL, tags=qinq), 1), wait()]),
        "zone-protocol": (3, [record(frame(a, ALL, 0x88B6)), wait()]),
        "zone-hairpin": (3, [record(frame(a, GATEWAY)), wait()]),
        "zone-reject": (3, [record(frame(b, ALL, 0x0806, arp(1, b, station, bytes(6), station)), 1), wait(), record(frame(a, b, what=v4(station, (10, 6, 0, 11), 6, bytes.fromhex("0400001900000001000000005002040000000000")))), wait()]),
        "igmp-invalid": (3, [record(frame(a, group, what=v4(station, listener, 2, bytes(8)))), wait()]),
        "mld-invalid": (3, [record(frame(a, bytes.fromhex("333300000001"), 0x86DD, v6(a6(6, 0x10), bytes.fromhex("ff0e") + bytes(13) + b"\1", 0, router_alert + mld))), wait()]),
        "no-listener": (3, [wait(THREE_SECONDS), record(frame(a, group, what=v4(station, listener, payload=UDP))), wait()]),
        "listens": (3, [wait(THREE_SECONDS), record(joins(b, listener), 1), wait(), record(frame(a, group, what=v4(station, listener, payload=UDP))), wait()]),
        "multicast-limit": (3, [record(joins(a, listener)), record(joins(a, (239, 1, 2, 4))), wait()]),
        "backup": (5, [record(frame(a, b)), record(frame(b, a), 1), record(asks), wait()]),
        "learns": (0, [record(frame(a, b)), record(frame(b, a), 1), record(frame(a, b)), record(frame(c, a, tags=qinq), 1), record(frame(a, c)), wait()]),
        "to-all": (0, [record(frame(a, ALL)), record(frame(b, ALL, 0x88B6), 1), record(asks), over4(bare(c, ALL)), wait()]),
        "vnis": (0, [over4(bare(b, a)), record(frame(a, b)), over6(bare(c, a)), record(frame(a, c)), over6(bare(c, b)), over4(bare(b, b)), wait()]),
        "reserved": (0, [record(frame(a, bytes.fromhex("0180c2000000"))), wait()]),
        "invalid-source": (0, [record(frame(ALL, b)), wait()]),
        "three-tags": (0, [record(frame(a, b, tags=qinq + ((0x8100, 5),)), 1), wait()]),
        "same-member": (0, [record(frame(a, b)), record(frame(c, a)), wait()]),
        "too-long": (0, [record(frame(c, a, tags=qinq), 1), record(frame(a, c), padding=20), record(frame(a, ALL), padding=100), wait()]),
        "storm": (0, [many(20, SOURCE_PORT, frame(a, ALL)), wait()]),
        "no-member": (0, [record(frame(a, ALL, tags=((0x8100, 301),))), wait()]),
        "loop": (2, [wait(), record(frame(a, b), 0, TENTH), wait(), record(frame(b, a), 1), record(frame(a, b)), wait()]),
        "gateway": (0, [record(frame(a, GATEWAY, what=v4(station, FAR, payload=UDP))), record(frame(a, GATEWAY, what=v4(station, ours, 1, ECHO))), wait(),
                        record(ether(0x0800, v4(A, station, payload=UDP))), record(ether(0x0800, v4(A, (10, 6, 0, 11), payload=UDP))), wait()]),
        "gateway-vni": (0, [over4(bare(HOST, ALL)), wait(), record(ether(0x0800, v4(A, station, payload=UDP))), record(ether(0x0800, v4(A, station, payload=UDP)), padding=36), wait()]),
        "suppressed": (0, [record(frame(HOST, ALL), 1), wait(), record(frame(a, ALL, 0x0806, arp(1, a, (10, 6, 0, 77), bytes(6), station))), wait()]),
        "asks": (0, [record(ether(0x0800, v4(A, (10, 6, 0, 20), payload=UDP))), wait(), record(frame(b, GATEWAY, 0x0806, arp(2, b, (10, 6, 0, 20), GATEWAY, ours)), 1), wait()]),
    }


def pairs():
    """What the other node of a pair is to decide, and what it gives to be decided."""
    peer, us, cable = (10, 0, 9, 2), (10, 0, 9, 1), ((0x8100, 9),)
    nobodys, theirs, ours = (10, 0, 4, 81), (10, 0, 4, 82), (10, 0, 4, 80)
    dns = word(1024) + word(53) + word(20) + word(0) + bytes(12)
    is_there = record(ether(0x0806, arp(1, HOST, peer, bytes(6), us), ALL, cable))

    def fnv(name):
        value = 0x811C9DC5
        for byte in name.encode():
            value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
        return word(value, 4)

    def summed(packet):
        packet = packet[:2] + word(len(packet)) + packet[4:10] + bytes(2) + packet[12:]
        total = sum(int.from_bytes(packet[at:at + 2], "big") for at in range(0, 20, 2))
        return packet[:10] + word((total & 0xFFFF) + (total >> 16) ^ 0xFFFF) + packet[12:]

    def given(inner, name="c", src=peer, ttl=255, head=b"SG\x01\x00"):
        said = head + fnv(name) + summed(inner)
        return record(ether(0x0800, v4(src, us, 17, word(50000) + word(5406) + word(8 + len(said)) + word(0) + said, ttl), tags=cable))

    asks = lambda dst, **keys: record(ether(0x0800, v4(OUT, dst, payload=dns), tags=((0x8100, 7),)), 1, **keys)
    return {
        "goes": (0, [asks(theirs), wait(), is_there, wait(), asks(theirs), wait()]),
        "unresolved": (1, [asks(theirs)] * 5 + [wait(THREE_SECONDS), asks(theirs), wait()]),
        "ours": (0, [asks(ours), wait(), given(v4(OUT, ours, payload=dns)), wait()]),
        "no-active": (0, [asks(nobodys), given(v4(OUT, nobodys, payload=dns)), wait()]),
        "loop": (0, [given(v4(OUT, theirs, payload=dns)), wait()]),
        "invalid": (0, [given(v4(OUT, ours, payload=dns), **wrong) for wrong in ({"ttl": 64}, {"src": (10, 0, 9, 3)}, {"name": "x"}, {"head": b"SG\x02\x00"})] + [wait()]),
        "too-long": (0, [is_there, wait(), asks(theirs, padding=45), wait()]),
        "proxy": (2, [given(v4(OUT, ours, 6, tcp(4000, 80, SYN))), wait()]),
        "fragment": (0, [is_there, wait(), record(ether(0x0800, v4(OUT, theirs, payload=dns, fragment=0x2000), tags=((0x8100, 7),)), 1), wait()]),
    }


def relays():
    """DHCP messages of clients and servers, and what is wrong with some."""
    nobody, everybody, ours, server, client6 = bytes(4), (255,) * 4, (10, 0, 1, 1), (10, 0, 2, 2), bytes.fromhex("fe80") + bytes(12) + word(0x110)
    relays6 = bytes.fromhex("ff020000000000000000000000010002")

    def message(op=1, hops=0, giaddr=nobody, yiaddr=nobody, options=b"\xff"):
        head = bytes([op, 1, 6, hops]) + bytes(12) + bytes(yiaddr) + bytes(4) + bytes(giaddr) + HOST + bytes(10) + options
        return head + bytes(204 - len(head))

    def udp(data, total, sport=68, dport=67):
        return word(sport) + word(dport) + word(8 + total) + word(0) + data

    def asked(total=304, src=nobody, dst=everybody, to=ALL, **more):
        # What a record does not hold are zeros: two 40s more than the 246 bytes up to here.
        return record(ether(0x0800, v4(src, dst, payload=udp(message(**more), total)), to), padding=max(0, (total - 204 + 39) // 40))

    def said(src=server, dst=ours, **more):
        more = {"op": 2, "giaddr": ours, "yiaddr": (10, 0, 1, 50), **more}
        return record(ether(0x0800, v4(src, dst, payload=udp(message(**more), 304, 67))), 1, padding=3)

    def summed(src, dst, data):
        udp = word(546) + word(547) + word(8 + len(data)) + word(0) + data
        total = sum(int.from_bytes(part[at:at + 2].ljust(2, b"\0"), "big") for part in (src, dst, word(17) + word(len(udp)), udp) for at in range(0, len(part), 2))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return udp[:6] + word(total ^ 0xFFFF) + udp[8:]

    def asked6(data, src=client6, dst=relays6, to=bytes.fromhex("333300010002"), port=0):
        whole = ether(0x86DD, v6(src, dst, 17, summed(src, dst, data)), to)
        cut = whole[:len(whole) - (len(whole) - 215 + 39) // 40 * 40] if len(whole) > 255 else whole
        return record(cut, port, padding=(len(whole) - len(cut)) // 40)

    option6 = lambda code, value: word(code) + word(len(value)) + value
    solicit = bytes([1, 1, 2, 3]) + option6(8, bytes(2))
    relayed6 = lambda kind, hops, body, link=a6(1, 1): bytes([kind, hops]) + link + client6 + body
    replied6 = lambda body, src=a6(2, 2): asked6(relayed6(13, 0, body), src, a6(1, 1), GATEWAY, 1)
    advertise = option6(9, bytes([2, 1, 2, 3]))
    return {
        "lease": (0, [asked(), wait(), said(), wait()]),
        "invalid": (0, [asked(100), wait(), asked(op=3), wait(), asked(options=bytes([12, 255])), wait()]),
        "hops": (0, [asked(hops=9), wait()]),
        "loop": (0, [asked(giaddr=ours), wait()]),
        "other-relay": (0, [asked(giaddr=(10, 0, 1, 77)), wait()]),
        "relays": (1, [asked(giaddr=(10, 0, 1, 77)), asked(options=bytes([82, 3, 1, 1, 65, 255])), wait()]),
        "option82": (0, [asked(options=bytes([82, 3, 1, 1, 65, 255])), wait()]),
        "unknown-server": (0, [said(src=(10, 0, 2, 9)), wait()]),
        "no-client": (0, [said(giaddr=(10, 0, 9, 9)), wait()]),
        "rate-limit": (0, [asked()] * 8 + [wait()]),
        "zones": (2, [asked(), wait(), said(), wait()]),
        "six": (0, [asked6(solicit), wait(), replied6(advertise + option6(18, b"a")), wait(SECOND)] + [wait(SECOND)] * 3),
        "six-invalid": (0, [asked6(solicit[:-1]), replied6(option6(9, solicit)), wait()]),
        "six-hops": (1, [asked6(relayed6(12, 7, advertise)), asked6(relayed6(12, 0, advertise)), wait()]),
        "six-too-long": (0, [asked6(solicit + option6(99, bytes(1400 + 64))), wait()]),
        "six-no-client": (0, [replied6(advertise + option6(18, b"z")), wait()]),
    }


def main(out):
    os.makedirs(out, exist_ok=True)

    def write(config, name, special, records):
        with open(os.path.join(out, f"{config}-{name}"), "wb") as file:
            file.write(bytes([config, special]) + b"".join(records))

    tags = {0: (), 1: ((0x8100, 100),), 2: ((0x88A8, 200), (0x8100, 10)), 3: (), 4: (), 5: (), 6: ()}
    for config, on in tags.items():
        for name, records in both(on).items():
            write(config, name, 0, records)
    waits = record(ether(0x0800, v4(A, (10, 0, 2, 77), payload=UDP)))
    write(0, "stopped", STOP, [waits] * 3)
    write(5, "scanned", 1, [many(8, SOURCE, ether(0x0800, v4(A, (10, 0, 2, 70 + n), payload=UDP))) for n in range(8)])
    for config, seeds in {7: sessions(), 8: sessions() | borrowed(), 9: devices(), 10: overlays(), 11: bridges(), 12: relays(), 13: pairs()}.items():
        for name, (special, records) in seeds.items():
            write(config, name, special, records)


main(sys.argv[1])
