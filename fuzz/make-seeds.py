#!/usr/bin/env python3
"""Writes the handmade seeds of the fuzz target `packet` into a folder (format: fuzz_targets/packet.rs)."""
import os
import sys

GATEWAY = bytes.fromhex("020000000001")
HOST = bytes.fromhex("02000000020a")
ALL = b"\xff" * 6
MAC, LENGTH, CHECKSUM, ICMP = 0x10, 0x20, 0x40, 0x80
IP = LENGTH | CHECKSUM | ICMP


def record(frame, port=0, step=0, flags=IP, padding=0):
    return bytes([port | step << 1 | flags, len(frame), padding]) + frame


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


def main(out):
    os.makedirs(out, exist_ok=True)
    tags = {0: (), 1: ((0x8100, 100),), 2: ((0x88A8, 200), (0x8100, 10)), 3: (), 4: (), 5: (), 6: ()}
    for config, on in tags.items():
        for name, records in both(on).items():
            with open(os.path.join(out, f"{config}-{name}"), "wb") as file:
                file.write(bytes([config]) + b"".join(records))


main(sys.argv[1])
