#!/usr/bin/env python3
"""Writes the golden cases: one directory each with config.toml, case.toml, in.PORT.pcap and out.PORT.pcap.

The expected output is written here from the RFCs, with scapy; SoftGate is never asked. The cases stand in
link.py, network.py, routes.py, icmp.py, neighbours.py, firewall.py, tcp.py, nat.py, nat_icmp.py, nptv6.py,
nat64.py, deterministic.py, unsolicited.py, fates.py, fragments.py, malformed.py, pressure.py, syn_proxy.py, balance.py,
affinity.py, vxlan.py, geneve.py, bridge.py, member_zones.py, snooping.py, relay.py, vrrp.py and pair_link.py, their vocabulary in lib.py.

    generate.py            write what differs
    generate.py --check    write nothing; exit 1 if a file on disk is not what the cases say
    generate.py --list     names and sentences
"""

import sys
import tomllib

sys.dont_write_bytecode = True

import lib
import link, network, routes, icmp, neighbours, firewall, tcp, nat, nat_icmp, fates, fragments, malformed, pressure, syn_proxy, nptv6, nat64, deterministic, unsolicited, balance, dsr, affinity, vxlan, geneve, bridge, member_zones, snooping, relay, vrrp, pair_link  # noqa: E401,F401  each registers its cases


def main():
    mode = sys.argv[1] if len(sys.argv) > 1 else "--write"
    if mode not in ("--write", "--check", "--list"):
        sys.exit(__doc__)
    names = [case.name for case in lib.Case.every]
    assert len(names) == len(set(names)), "two cases of one name"
    wrong = []
    for case in lib.Case.every:
        case.check()
        folder = lib.HERE / case.name
        if mode == "--list":
            print(f"{case.name:44} {case.sentence}")
            continue
        if (folder / "case.toml").exists() and "regenerated" in tomllib.loads((folder / "case.toml").read_text()):
            print(f"{case.name}: regenerated from SoftGate by hand, left alone", file=sys.stderr)
            continue
        files = case.files()
        on_disk = {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}
        if files == on_disk:
            continue
        wrong.append(case.name)
        if mode == "--write":
            folder.mkdir(exist_ok=True)
            for name in on_disk.keys() - files.keys():
                (folder / name).unlink()
            for name, data in files.items():
                (folder / name).write_bytes(data)
    strays = sorted({p.parent.name for p in lib.HERE.glob("*/case.toml")} - set(names))
    print(f"{len(names)} cases, {len(wrong)} {'differ' if mode == '--check' else 'written'}: {' '.join(wrong)}")
    if strays:
        print(f"not from here: {' '.join(strays)}")
    if mode == "--check" and wrong:
        sys.exit(1)


main()
