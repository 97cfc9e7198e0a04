#!/usr/bin/env python3
"""Test vectors of the keyed hash (src/packet/hash.rs), computed from its definition alone."""

M = (1 << 64) - 1
FINISH = 0x9E3779B97F4A7C15


def fold(a, b):
    p = (a & M) * (b & M)
    return (p >> 64) ^ (p & M)


def tail(proto, sp, dp):
    return proto << 32 | sp << 16 | dp


def v4(k, src, dst, proto, sp, dp):
    return fold(fold((src << 32 | dst) ^ k[0], tail(proto, sp, dp) ^ k[1]) ^ k[0], FINISH)


def v6(k, src, dst, proto, sp, dp):
    h = fold(src >> 64 ^ k[0], src & M ^ k[1])
    h = fold(dst >> 64 ^ h, dst & M ^ k[0])
    h = fold(h ^ k[1], tail(proto, sp, dp) ^ k[0])
    return fold(h ^ k[0], FINISH)


def address(k, addr, salt):
    return fold(fold(addr >> 64 ^ k[0], addr & M ^ k[1]) ^ k[0], salt ^ FINISH)


DEFAULT = (0x2436A885308D3132, 0x13198A2E03707344)
print(hex(v4(DEFAULT, 0xC0000201, 0xC6336401, 17, 4000, 53)))
print(hex(v4((1, 2), 0x0A000001, 0x14000001, 6, 1024, 1234)))
print(hex(v6(DEFAULT, 0x20010DB8 << 96 | 1, 0x20010DB8 << 96 | 2, 6, 443, 50000)))
print(hex(address(DEFAULT, 0xFFFFC0000201, 7)))
