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


# Maglev (src/tables/balance/maglev.rs): offset and step of a backend.
SEED = (0xB7E151628AED2A6A, 0xBF7158809CF4F3C7)


def permutation(addr, port, vrf, places):
    h = address(SEED, addr, port)
    for byte in vrf.encode():
        h = fold(h ^ byte, SEED[0])
    first, second = fold(h ^ SEED[0], SEED[1]), fold(h ^ SEED[1], SEED[0])
    below = lambda n, limit: (n >> 32) * limit >> 32
    return below(first, places), 1 + below(second, places - 1)


print(permutation(0xFFFF0A000000, 8443, "default", 4099))
print(permutation(0xFFFF0A000102, 8443, "default", 65537))
print(permutation(0x20010DB8 << 96 | 5, 0, "blue", 65537))
