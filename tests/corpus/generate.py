#!/usr/bin/env python3
"""Writes what a release left behind: a folder of revisions, from the description of its format in
src/control/revisions/codec.rs and not by softgate. What a release has written is never changed here again: a new
format gets a new function and a new folder."""

import json
import pathlib
import struct
import zlib

HERE = pathlib.Path(__file__).parent

TEXT = """# Of the first release.
schema = 1
[[port]]
name = "p"
device = "eth1"
[[interface]]
name = "in"
port = "p"
addresses = ["10.0.0.1/24"]
[[route_file]]
path = "full.routes"
[[group]]
name = "blocked"
members = []
[[rule]]
name = "rest"
action = "deny"
"""


def record(head, body):
    head = json.dumps(head).encode()
    rest = struct.pack("<I", len(head)) + head + b"\0" + body
    length = struct.pack("<I", len(rest))
    return length + struct.pack("<I", zlib.crc32(length + rest)) + rest


def revision(number, request, **more):
    by = {"uid": 0, "pid": 1} if number > 1 else {}
    return {"number": number, "time": "2026-11-23T00:00:00Z", "by": by, "request": request, "changes": 1, **more}


def changes(*requests):
    return "".join(json.dumps(request) + "\n" for request in requests).encode()


def format_1():
    document = {"file_name": "gw.toml", "text": TEXT, "files": [["full.routes", "192.0.2.0/24 blackhole\n"]]}
    sources = [{"path": "/etc/softgate/gw.toml", "revision": 1, "digest": "00" * 32}]
    confirm = {"within_s": 60, "back_to": 2}
    yield b"softgate revisions 1\n"
    yield record({"record": "whole", "revision": revision(1, "start"), "sources": sources}, json.dumps(document).encode())
    yield record(
        {"record": "patches", "revision": revision(2, "commit", message="why", about=["group blocked"])},
        changes(
            {"method": "group.add", "params": {"group": "blocked", "members": ["203.0.113.0/24"]}},
            {"method": "route.add", "params": {"routes": [["198.51.100.0/24", "10.0.0.2,10.0.0.3"]]}},
            {"method": "neighbour.add", "params": {"neighbours": [
                {"interface": "in", "address": "10.0.0.2", "mac": "02:00:00:00:00:02"}]}},
        ),
    )
    yield record(
        {"record": "patches", "revision": revision(3, "rule.add", confirm=confirm)},
        changes({"method": "rule.add", "params": {"rule": {"name": "first", "action": "allow"}, "before": "rest"}}),
    )
    yield record({"record": "confirmed", "revision": 3, "by": {"uid": 0, "pid": 2}, "time": "2026-11-23T00:00:30Z"}, b"")


(HERE / "1" / f"{1:020}.revisions").write_bytes(b"".join(format_1()))
