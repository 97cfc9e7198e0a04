"""DHCP relay: RFC 1542 section 4, RFC 2131, RFC 3046 (option 82), RFC 3527, RFC 5107; DHCPv6: RFC 8415 section 19.

Clients are on lan, the server is on wan. Messages are scapy's; what a relay changes in them is written here by hand.
"""

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import (
    DHCP6_Advertise, DHCP6_RelayForward, DHCP6_RelayReply, DHCP6_Reply, DHCP6_Request, DHCP6_Solicit, DHCP6OptClientId,
    DHCP6OptElapsedTime, DHCP6OptIA_NA, DHCP6OptIfaceId, DHCP6OptRelayMsg, DHCP6OptRemoteID, DHCP6OptServerId,
    DUID_LL,
)

from lib import *
from vxlan import REMOTES, STATION, STATIONS, arriving, overlay, tunnel

XID = 0x5347AA01
CLIENT = "02:00:00:00:01:10"                  # no ARP entry: it has no address yet
LEASE = "192.0.2.50"
S4C = "198.51.100.22"
ALL_RELAYS, ALL_RELAYS_MAC = "ff02::1:2", "33:33:00:01:00:02"
CLIENT6 = "fe80::200:ff:fe00:110"


def chaddr(mac=CLIENT):
    return bytes.fromhex(mac.replace(":", ""))


def message(op, kind, *options, length=300, end=True, **fields):
    """A DHCP message, padded with zeros to its length."""
    fields = {"xid": XID, "chaddr": chaddr() + bytes(10), **fields}
    head = BOOTP(op=op, **fields) / DHCP(options=[("message-type", kind), *options, *(["end"] if end else [])])
    data = bytes(head)
    return data + bytes(max(0, length - len(data)))


def asks(kind="discover", *options, **fields):
    return message(1, kind, *options, **fields)


def says(kind="offer", *options, **fields):
    return message(2, kind, *options, **{"yiaddr": LEASE, "siaddr": S4, "giaddr": L4, **fields})


def heard(data, **fields):
    """The same message with other fields: what a relay changes in the fixed part."""
    head = BOOTP(data)
    for name, value in fields.items():
        setattr(head, name, value)
    return bytes(head)[:236] + data[236:]


def sub(code, value):
    return bytes([code, len(value)]) + value


def datagram(src, dst, data, sport=67, dport=67, **keys):
    return rebuilt(IP(src=src, dst=dst, **{"ttl": 64, "id": 0, "flags": "DF", **keys}) / UDP(sport=sport, dport=dport) / Raw(data))


def broadcast(data, src="0.0.0.0", mac=CLIENT, to=BROADCAST, tags=(), dst="255.255.255.255"):
    """As a client without an address says it."""
    packet = rebuilt(IP(src=src, dst=dst, ttl=64, id=7) / UDP(sport=68, dport=67) / Raw(data))
    return link(eth(mac, to, *tags), packet)


def to_servers(data, source=L4, server=S4, mac=SERVER):
    return link(eth(GW_WAN, mac), datagram(source, server, data))


def from_servers(data, source=L4, server=S4, mac=SERVER):
    return link(eth(mac, GW_WAN), datagram(server, source, data, ttl=60, id=9))


def to_client(data, addr=LEASE, mac=CLIENT, source=L4, tags=(), gateway=GW_LAN):
    return link(eth(gateway, mac, *tags), datagram(source, addr, data, dport=68))


def to_all(data, **keys):
    return to_client(data, addr="255.255.255.255", mac=BROADCAST, **keys)


def lan(addresses=("192.0.2.1/24", "2001:db8:1::1/64"), v6=None, name="lan", servers=(S4,), relay=True, rest=None, **keys):
    """An interface that relays."""
    relays = {"dhcp_relay": {"servers": list(servers), **keys}} if relay else {}
    if v6 is not None:
        relays["dhcpv6_relay"] = {"servers": [S6], **v6}
    return interface(name, list(addresses), **{**(rest or {}), **relays})


def relayed(c, data, **keys):
    """A client's message goes to the server."""
    hops = keys.pop("hops", 0)
    rx = keys.pop("rx", None)
    out = keys.pop("out", None) or heard(data, giaddr=L4, hops=hops + 1)
    return c.rx("lan", rx or broadcast(data), punt=True).tx("wan", to_servers(out, **keys), own=True)


def replied(c, data, out, rx=None):
    return c.rx("wan", rx or from_servers(data), punt=True).tx("lan", out, own=True)


RFC = "scapy script: RFC 1542 section 4.1, RFC 2131 section 4.1"
R82 = "scapy script: RFC 3046 section 2.1"
PARAMETERS = ("param_req_list", [1, 3, 6, 15])
SERVER_ID = ("server_id", S4)

# -- a lease -----------------------------------------------------------------------------------------------
c = Case("dhcp-relay-lease", "Discover, offer, request and ack go through the relay; the client is reached by its MAC address, without ARP.",
         RFC, two_ports(lan=lan()))
relayed(c, asks("discover", PARAMETERS))
replied(c, says("offer", SERVER_ID, ("lease_time", 600)), to_client(says("offer", SERVER_ID, ("lease_time", 600))))
relayed(c, asks("request", SERVER_ID, ("requested_addr", LEASE), length=548))
replied(c, says("ack", SERVER_ID, ("lease_time", 600), length=320), to_client(says("ack", SERVER_ID, ("lease_time", 600), length=320)))

c = Case("dhcp-relay-broadcast-flag", "Whoever asks for broadcasts gets them, and so does who cannot be reached otherwise.", RFC, two_ports(lan=lan()))
relayed(c, asks(flags="B"))
replied(c, says(flags="B"), to_all(says(flags="B")))
for fields in ({"yiaddr": "0.0.0.0"}, {"htype": 32, "hlen": 0}, {"chaddr": bytes.fromhex("030000000110") + bytes(10)}, {"chaddr": bytes(16)},
               {"yiaddr": "224.0.0.9"}, {"yiaddr": "127.0.0.1"}):
    replied(c, says("nak", **fields), to_all(says("nak", **fields)))
informed = {"yiaddr": "0.0.0.0", "ciaddr": "192.0.2.60"}
replied(c, says("ack", **informed), to_client(says("ack", **informed), addr="192.0.2.60"))

c = Case("dhcp-relay-bootp", "BOOTP without options, and DHCP without an end option, go through the relay as they are; what is too short is filled up.", RFC,
         two_ports(lan=lan(option82="replace")))
bare = bytes(BOOTP(op=1, xid=XID, chaddr=chaddr() + bytes(10), options=b"")) + bytes(64)
relayed(c, bare)
short = asks(length=0)
agent = sub(1, b"lan")
relayed(c, short, out=heard(asks("discover", (82, agent)), giaddr=L4, hops=1))
endless = asks(end=False, length=0)
relayed(c, endless, out=heard(asks("discover", (82, agent)), giaddr=L4, hops=1))

c = Case("dhcp-relay-several-servers", "Each server gets a copy; either may answer.", RFC, two_ports(neighbour("wan", S4B, SERVER2), lan=lan(servers=[S4, S4B])))
ask = asks()
relayed(c, ask).tx("wan", to_servers(heard(ask, giaddr=L4, hops=1), server=S4B, mac=SERVER2), own=True)
replied(c, says(), to_client(says()))
replied(c, says(siaddr=S4B), to_client(says(siaddr=S4B)), rx=from_servers(says(siaddr=S4B), server=S4B, mac=SERVER2))

c = Case("dhcp-relay-rebinding", "A client that has an address asks all servers from it, or us because we said that we are the server.",
         RFC, two_ports(lan=lan(rest={"source_check": "strict"})))
again = asks("request", ciaddr=LEASE)
relayed(c, again, rx=broadcast(again, src=LEASE))
relayed(c, again, rx=broadcast(again, src=LEASE, to=GW_LAN, dst=L4))
c.rx("lan", broadcast(again, src="203.0.113.9"), drop="source-check")
c.rx("lan", broadcast(again, src="127.0.0.1"), drop="martian-source")

c = Case("dhcp-relay-only-where-it-is", "Broadcasts from nobody and messages to servers' ports are lost as ever where no relay is.", RFC,
         two_ports(lan=lan(relay=False)))
c.rx("lan", broadcast(asks()), drop="martian-source")
c.rx("lan", broadcast(asks(), src=H4), drop="broadcast-not-forwarded")
c.rx("lan", broadcast(asks(), src=H4, mac=HOST, to=GW_LAN, dst=L4), drop="no-host-path")
c.rx("wan", from_servers(says()), drop="no-host-path")

c = Case("dhcp-relay-only-these-ports", "A relay lets nothing else in from nobody.", RFC, two_ports(lan=lan()))
nobody = IP(src="0.0.0.0", dst="255.255.255.255", ttl=64)
c.rx("lan", link(eth(CLIENT, BROADCAST), rebuilt(nobody / UDP(sport=68, dport=69) / Raw(asks()))), drop="martian-source")
c.rx("lan", link(eth(CLIENT, BROADCAST), rebuilt(nobody / TCP(sport=68, dport=67))), drop="martian-source")
c.rx("lan", broadcast(asks(), dst="192.0.2.255"), drop="martian-source")
c.rx("lan", link(eth(CLIENT, GW_LAN), rebuilt(nobody / UDP(sport=68, dport=67) / Raw(asks()))), drop="martian-source")
c.rx("wan", broadcast(asks()), drop="martian-source")

# -- option 82 ---------------------------------------------------------------------------------------------
MARK = sub(1, b"port 7/1") + sub(2, b"gw-1")
KEYS = {"circuit_id": "port 7/1", "remote_id": "gw-1"}
THEIRS = sub(1, b"switch 3")

c = Case("dhcp-relay-option82-drop", "Option 82 is added behind all others and taken out of replies; clients must not have one.", R82,
         two_ports(lan=lan(option82="drop", **KEYS)))
relayed(c, asks("discover", PARAMETERS), out=heard(asks("discover", PARAMETERS, (82, MARK)), giaddr=L4, hops=1))
relayed(c, asks("discover", PARAMETERS, length=548), out=heard(asks("discover", PARAMETERS, (82, MARK), length=548), giaddr=L4, hops=1))
replied(c, says("offer", SERVER_ID, (82, MARK)), to_client(says("offer", SERVER_ID)))
replied(c, says("offer", (82, MARK), SERVER_ID, length=350), to_client(says("offer", SERVER_ID, length=350)))
replied(c, says("offer", SERVER_ID), to_client(says("offer", SERVER_ID)))
c.rx("lan", broadcast(asks("discover", (82, THEIRS))), drop="dhcp-option82")
hidden = asks("discover", (52, b"\2"), sname=sub(82, THEIRS) + b"\xff" + bytes(44))
c.rx("lan", broadcast(hidden), drop="dhcp-option82")

c = Case("dhcp-relay-option82-off", "Without option 82 nobody adds one, and clients must not have one.", R82, two_ports(lan=lan()))
c.rx("lan", broadcast(asks("discover", (82, THEIRS))), drop="dhcp-option82")
relayed(c, asks())
replied(c, says("offer", (82, THEIRS)), to_client(says("offer", (82, THEIRS))))

c = Case("dhcp-relay-option82-replace", "A client's option 82 gives way to ours, wherever it stands.", R82, two_ports(lan=lan(option82="replace", **KEYS)))
relayed(c, asks("discover", (82, THEIRS), PARAMETERS, (82, b"")), out=heard(asks("discover", PARAMETERS, (82, MARK)), giaddr=L4, hops=1))
FIELD = sub(12, b"host")
hidden = asks("discover", (52, b"\3"), sname=FIELD + sub(82, THEIRS) + b"\xff" + bytes(47), file=sub(82, b"x") + b"\xff" + bytes(124))
relayed(c, hidden, out=heard(asks("discover", (52, b"\3"), (82, MARK), sname=FIELD + bytes(12) + b"\xff" + bytes(45), file=bytes(3) + b"\xff" + bytes(124)), giaddr=L4, hops=1))
# The same bytes without option 52 are a name.
named = asks("discover", sname=sub(82, THEIRS) + bytes(52))
relayed(c, named, out=heard(asks("discover", (82, MARK), sname=sub(82, THEIRS) + bytes(52)), giaddr=L4, hops=1))
replied(c, says("offer", (82, MARK)), to_client(says("offer")))

c = Case("dhcp-relay-option82-append", "Ours stands behind what a switch has said, in one option; the reply keeps the switch's.", R82,
         two_ports(lan=lan(option82="append", **KEYS)))
relayed(c, asks("discover", (82, THEIRS), PARAMETERS), out=heard(asks("discover", PARAMETERS, (82, THEIRS + MARK)), giaddr=L4, hops=1))
relayed(c, asks("discover", PARAMETERS), out=heard(asks("discover", PARAMETERS, (82, MARK)), giaddr=L4, hops=1))
replied(c, says("offer", (82, THEIRS + MARK)), to_client(says("offer", (82, THEIRS))))
replied(c, says("offer", (82, MARK)), to_client(says("offer")))
# No room for both in an option: theirs stays.
relayed(c, asks("discover", (82, sub(1, bytes(200)) + sub(2, bytes(40))), PARAMETERS))

c = Case("dhcp-relay-option82-keep", "On a trusted circuit a switch's option 82 stays as it is, and ours is added where there is none.", R82,
         two_ports(lan=lan(option82="keep", **KEYS)))
relayed(c, asks("discover", (82, THEIRS), PARAMETERS))
relayed(c, asks("discover", PARAMETERS), out=heard(asks("discover", PARAMETERS, (82, MARK)), giaddr=L4, hops=1))
replied(c, says("offer", (82, THEIRS)), to_client(says("offer", (82, THEIRS))))
replied(c, says("offer", (82, MARK)), to_client(says("offer")))

# -- other relays ------------------------------------------------------------------------------------------
OTHER = "192.0.2.77"
c = Case("dhcp-relay-other-relay", "Another relay's messages go on as they are, one hop further; the answer to it is routed.", RFC,
         two_ports(neighbour("lan", OTHER, HOST2), lan=lan(from_relays=True, option82="replace", **KEYS)))
cascade = asks("discover", (82, THEIRS), giaddr=OTHER, hops=1)
relayed(c, cascade, rx=link(eth(HOST2, GW_LAN), datagram(OTHER, L4, cascade, ttl=3)), out=heard(cascade, hops=2))
answer = datagram(S4, OTHER, says(giaddr=OTHER), ttl=60)
c.through("wan", link(eth(SERVER, GW_WAN), answer), "lan", link(eth(GW_LAN, HOST2), hop(answer)))

c = Case("dhcp-relay-other-relay-refused", "Another relay's messages are refused unless they are asked for.", RFC, two_ports(lan=lan()))
c.rx("lan", link(eth(HOST2, GW_LAN), datagram(OTHER, L4, cascade)), drop="dhcp-other-relay")
c.rx("lan", broadcast(cascade), drop="dhcp-other-relay")

c = Case("dhcp-relay-giaddr-is-ours", "Who says that we have relayed it already lies, or is a loop.", R82 + ".1", two_ports(lan=lan(from_relays=True)))
for ours in (L4, W4):
    c.rx("lan", broadcast(asks(giaddr=ours)), drop="dhcp-loop")
c.rx("lan", broadcast(asks(giaddr="255.255.255.255")), drop="dhcp-invalid")
c.rx("lan", broadcast(asks(giaddr="127.0.0.1")), drop="dhcp-invalid")

c = Case("dhcp-relay-hops", "A message that has been through too many relays is dropped.", "scapy script: RFC 1542 section 4.1.1", two_ports(lan=lan(max_hops=2)))
relayed(c, asks(hops=2), hops=2)
c.rx("lan", broadcast(asks(hops=3)), drop="dhcp-hops")
c.rx("lan", broadcast(asks(hops=255)), drop="dhcp-hops")

# -- what must not get through -----------------------------------------------------------------------------
c = Case("dhcp-relay-malformed", "What is cut off, or says more than there is, goes nowhere.", RFC, two_ports(lan=lan(option82="replace")))
ask = asks("discover", PARAMETERS, length=0)
for bad in (b"", ask[:1], ask[:239], ask[:244], ask[:248], asks(hlen=17), message(3, "discover"), asks() [:240] + b"\x35", asks()[:240] + sub(53, b"\1") + b"\x52\xff" + bytes(60),
            asks("discover", (82, bytes(200)), (82, bytes(100))), asks("discover", (52, b"\3\3")), asks("discover", (52, b"\2"), sname=b"\x0c\xff" + bytes(62)),
            asks("discover", (52, b"\1"), file=bytes(127) + b"\x0c")):
    c.rx("lan", broadcast(bad), drop="dhcp-invalid")
good = IP(src="0.0.0.0", dst="255.255.255.255", ttl=64)
c.faulty = True
c.rx("lan", link(eth(CLIENT, BROADCAST), good / UDP(sport=68, dport=67, chksum=0x1234) / Raw(asks())), drop="dhcp-invalid")
c.rx("lan", link(eth(CLIENT, BROADCAST), good / UDP(sport=68, dport=67, len=309) / Raw(asks())), drop="dhcp-invalid")
c.rx("lan", link(eth(CLIENT, BROADCAST), good / UDP(sport=68, dport=67, len=7) / Raw(asks())), drop="dhcp-invalid")
c.rx("wan", from_servers(says()[:200]), drop="dhcp-invalid")
c.rx("wan", from_servers(says(hlen=17)), drop="dhcp-invalid")
c.rx("wan", from_servers(says()[:242]), drop="dhcp-invalid")
c.rx("wan", from_servers(says("offer", (82, bytes(200)), (82, bytes(100)))), drop="dhcp-invalid")
unsummed = asks()
relayed(c, unsummed, rx=link(eth(CLIENT, BROADCAST), good / UDP(sport=68, dport=67, chksum=0) / Raw(unsummed)), out=heard(asks("discover", (82, sub(1, b"lan"))), giaddr=L4, hops=1))

c = Case("dhcp-relay-foreign-server", "Only configured servers are heard, and only for clients that we relay for.", RFC,
         two_ports(neighbour("wan", S4C, SERVER2), lan=lan(option82="drop")))
c.rx("wan", from_servers(says(), server=S4C, mac=SERVER2), drop="dhcp-unknown-server")
c.rx("lan", link(eth(HOST, GW_LAN), datagram(H4, L4, says())), drop="dhcp-unknown-server")
# With the address of a server, but from where no way leads to it.
c.rx("lan", link(eth(HOST, GW_LAN), datagram(S4, L4, says())), drop="dhcp-unknown-server")
c.rx("wan", from_servers(asks()), drop="dhcp-unknown-server")
c.rx("wan", from_servers(says(giaddr=OTHER)), drop="dhcp-no-client")
replied(c, says(), to_client(says()))

c = Case("dhcp-relay-rate-limit", "Clients beyond the rate of their interface's relay are not heard; servers are.", RFC, two_ports(lan=lan(rate_limit={"per_s": 1, "burst": 2})))
relayed(c, asks())
relayed(c, asks("request"))
c.rx("lan", broadcast(asks()), drop="dhcp-rate-limit", times=3)
replied(c, says(), to_client(says()))
c.at(1500)
relayed(c, asks())

c = Case("dhcp-relay-too-long", "What a buffer does not hold, or the clients' link, is lost and counted; what is too long with option 82 goes without.", R82,
         two_ports(lan=lan(option82="replace", rest={"mtu": 1400}), wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], mtu=1600)))
filler = [(224, bytes(250))] * 4
for length, fits in ((1372, True), (1373, False)):
    offer = says("offer", *filler, length=length)
    if fits:
        replied(c, offer, to_client(offer))
    else:
        c.rx("wan", from_servers(offer), drop="dhcp-too-long")
AGENT = (82, sub(1, b"lan"))
# 1,508 bytes and no more have room in a buffer, 1,532 in an Ethernet frame to the server.
for length, drop in ((1500, None), (1508, None), (1509, "dhcp-too-long")):
    ask = asks("discover", *filler, length=length)
    if drop:
        c.rx("lan", broadcast(ask), drop=drop)
    else:
        relayed(c, ask, out=heard(asks("discover", *filler, AGENT, length=length), giaddr=L4, hops=1))
most = asks("discover", *filler, (225, bytes(249)), length=0)
relayed(c, most, out=heard(most, giaddr=L4, hops=1))

# -- zones, routes, VRFs -----------------------------------------------------------------------------------
c = Case("dhcp-relay-zones", "Zones that are closed to the gateway do not keep a relay from its messages, and these make no sessions.", RFC,
         zoned(lan_keys={"dhcp_relay": {"servers": [S4]}}, extra="[flows]\ncapacity = 1024\n"))
relayed(c, asks())
replied(c, says(), to_client(says()))
again = asks("request", ciaddr=LEASE)
relayed(c, again, rx=broadcast(again, src=LEASE, to=GW_LAN, dst=L4))
c.rx("lan", link(eth(HOST, GW_LAN), rebuilt(v4(dst=L4) / udp(dport=68))), drop="firewall-deny")
c.rx("wan", link(eth(SERVER, GW_WAN), datagram(S4, W4, says())), drop="firewall-deny")
c.rx("wan", from_servers(says(), server=S4B, mac=SERVER2), drop="dhcp-unknown-server")


@story("dhcp-relay-renewal-is-routed", "A client that renews its lease speaks to the server itself: that is routed, and has a session.",
       "scapy script: RFC 2131 section 4.4.5", zoned(OUT, neighbour("lan", LEASE, CLIENT), lan_keys={"dhcp_relay": {"servers": [S4], "option82": "drop"}}))
def _(c):
    renewal = Talk(c, (LEASE, 68), (S4, 67), here=End("lan", CLIENT, GW_LAN))
    renewal.up(lambda s, d: UDP(sport=s, dport=d) / Raw(asks("request", ciaddr=LEASE)))
    renewal.down(lambda s, d: UDP(sport=s, dport=d) / Raw(says("ack", ciaddr=LEASE, giaddr="0.0.0.0")))


def tenant(vrf, vlan, **keys):
    return lan(["192.0.2.1/24"], name=vrf, rest={"port": "lan", "vlan": vlan, "vrf": vrf},
               vrf="default", source=W4, option82="replace", **keys)


OVERRIDE = sub(5, bytes([192, 0, 2, 1])) + sub(11, bytes([192, 0, 2, 1]))
c = Case("dhcp-relay-two-vrfs", "Tenants with one network between them have servers in a third VRF, which tell them apart by option 82.",
         "scapy script: RFC 3046 section 3.1, RFC 3527 section 3, RFC 5107 section 4",
         config(tenant("red", 100), tenant("blue", 200, circuit_id="blue, rack 9", server_id_override=True), WAN, neighbour("wan", S4, SERVER)))
RED, BLUE = sub(1, b"red") + OVERRIDE[:6], sub(1, b"blue, rack 9") + OVERRIDE
for vlan, mark, other in ((100, RED, BLUE), (200, BLUE, RED)):
    relayed(c, asks("discover"), rx=broadcast(asks("discover"), tags=(vlan,)), out=heard(asks("discover", (82, mark)), giaddr=W4, hops=1), source=W4)
    replied(c, None, to_client(says("offer", giaddr=W4), tags=(vlan,)), rx=from_servers(says("offer", (82, mark), giaddr=W4), source=W4))
c.rx("wan", from_servers(says("offer", giaddr=W4), source=W4), drop="dhcp-no-client")
c.rx("wan", from_servers(says("offer", (82, sub(1, b"green")), giaddr=W4), source=W4), drop="dhcp-no-client")
again = asks("request", ciaddr=LEASE)
relayed(c, again, rx=broadcast(again, src=LEASE, to=GW_LAN, dst=L4, tags=(200,)), out=heard(asks("request", (82, BLUE), ciaddr=LEASE), giaddr=W4, hops=1), source=W4)

c = Case("dhcp-relay-tags", "Interfaces of a QinQ pair relay like any other.", RFC,
         config(lan(["192.0.2.1/24"], name="deep", rest={"port": "lan", "vlan": [300, 7]}), WAN, neighbour("wan", S4, SERVER)))
relayed(c, asks(), rx=broadcast(asks(), tags=(300, 7)))
replied(c, says(), to_client(says(), tags=(300, 7)))

B4, BLEASE = "10.9.0.1", "10.9.0.50"
c = Case("dhcp-relay-vxlan", "Clients in an overlay get their addresses through its tunnel: those known behind their remote, broadcasts behind all.",
         RFC + ", RFC 7348", config(interface("wan", ["198.51.100.1/24"]), interface("lan", ["192.0.2.1/24"]), neighbour("lan", H4, HOST),
                                    neighbour("wan", S4, SERVER), overlay(addresses=["10.9.0.1/24"], dhcp_relay={"servers": [H4], "option82": "drop"}),
                                    neighbour("blue", "10.9.0.10", STATION)))
inside = asks(chaddr=chaddr(STATION) + bytes(10))
c.rx("wan", from_server(arriving(broadcast(inside, mac=STATION))), punt=True)
marked = heard(asks("discover", (82, sub(1, b"blue")), chaddr=chaddr(STATION) + bytes(10)), giaddr=B4, hops=1)
c.tx("lan", link(eth(GW_LAN, HOST), datagram(B4, H4, marked)), own=True)
for flags, mac, addr in ((0, STATION, BLEASE), ("B", BROADCAST, "255.255.255.255")):
    offer = lambda *o: says("offer", *o, giaddr=B4, yiaddr=BLEASE, flags=flags, chaddr=chaddr(STATION) + bytes(10))
    c.rx("lan", link(eth(HOST, GW_LAN), datagram(H4, B4, offer((82, sub(1, b"blue"))))), punt=True)
    inner = link(eth(GW_WAN, mac), datagram(B4, addr, offer(), dport=68))
    c.tx("wan", to_server(tunnel(inner)), own=True)

# -- DHCPv6 ------------------------------------------------------------------------------------------------
R6 = "scapy script: RFC 8415 section 19"
DUID = DUID_LL(lladdr=CLIENT)


def ask6(kind=DHCP6_Solicit, trid=0x534701):
    return bytes(kind(trid=trid) / DHCP6OptClientId(duid=DUID) / DHCP6OptElapsedTime() / DHCP6OptIA_NA(iaid=1))


def say6(kind=DHCP6_Advertise, trid=0x534701):
    return bytes(kind(trid=trid) / DHCP6OptClientId(duid=DUID) / DHCP6OptServerId(duid=DUID_LL(lladdr=SERVER)))


def option6(code, value):
    return struct.pack(">HH", code, len(value)) + value


def forward(data, peer=CLIENT6, link=L6, hops=0, ident=b"lan", remote=b"", mac=CLIENT):
    """Interface-Id, Remote-ID (RFC 4649), client link-layer address (RFC 6939), and what the client said."""
    head = bytes(DHCP6_RelayForward(hopcount=hops, linkaddr=link, peeraddr=peer)) + bytes(DHCP6OptIfaceId(ifaceid=ident))
    if remote:
        head += bytes(DHCP6OptRemoteID(enterprisenum=0, remoteid=remote))
    if mac:
        head += option6(79, b"\0\1" + chaddr(mac))
    return head + bytes(DHCP6OptRelayMsg(message=Raw(data)))


def reply6(data, peer=CLIENT6, link=L6, hops=0, ident=b"lan"):
    head = bytes(DHCP6_RelayReply(hopcount=hops, linkaddr=link, peeraddr=peer))
    return head + (bytes(DHCP6OptIfaceId(ifaceid=ident)) if ident is not None else b"") + bytes(DHCP6OptRelayMsg(message=Raw(data)))


def udp6(src, dst, data, sport=547, dport=547, hlim=64):
    return rebuilt(IPv6(src=src, dst=dst, hlim=hlim) / UDP(sport=sport, dport=dport) / Raw(data))


def all_relays(data, src=CLIENT6, mac=CLIENT, to=ALL_RELAYS_MAC, dst=ALL_RELAYS, sport=546, tags=()):
    return link(eth(mac, to, *tags), udp6(src, dst, data, sport=sport, hlim=1))


def up6(c, rx, data, source=L6):
    return c.rx("lan", rx, punt=True).tx("wan", link(eth(GW_WAN, SERVER), udp6(source, S6, data)), own=True)


def from_servers6(data, server=S6, mac=SERVER, source=L6):
    return link(eth(mac, GW_WAN), udp6(server, source, data, hlim=60))


GW_LL = "fe80::53:47ff:fe00:0"
CLIENT_NEIGHBOUR = neighbour("lan", CLIENT6, CLIENT)


def to_client6(data, dst=CLIENT6, src=GW_LL, mac=CLIENT, dport=546, tags=()):
    return link(eth(GW_LAN, mac, *tags), udp6(src, dst, data, dport=dport))


def down6(c, data, out):
    return c.rx("wan", from_servers6(data), punt=True).tx("lan", out, own=True)


c = Case("dhcpv6-relay-lease", "Solicit and request go to the server in a Relay-forward; what it answers goes to the client.", R6,
         two_ports(CLIENT_NEIGHBOUR, lan=lan(relay=False, v6={})))
up6(c, all_relays(ask6()), forward(ask6()))
down6(c, reply6(say6()), to_client6(say6()))
up6(c, all_relays(ask6(DHCP6_Request)), forward(ask6(DHCP6_Request)))
down6(c, reply6(say6(DHCP6_Reply)), to_client6(say6(DHCP6_Reply)))
# To one of our own addresses, from an address of the network; and without Interface-Id, which old servers do not echo.
up6(c, all_relays(ask6(DHCP6_Request), src=H6, mac=HOST, to=GW_LAN, dst=L6), forward(ask6(DHCP6_Request), peer=H6, mac=HOST))
down6(c, reply6(say6(DHCP6_Reply), peer=H6, ident=None), to_client6(say6(DHCP6_Reply), dst=H6, src=L6, mac=HOST))
# RFC 7283: types that nobody knows go through.
up6(c, all_relays(b"\x63" + bytes(9)), forward(b"\x63" + bytes(9)))
down6(c, reply6(b"\x63" + bytes(9)), to_client6(b"\x63" + bytes(9)))

c = Case("dhcpv6-relay-asks-for-the-client", "A client whose link-layer address is not known is asked for it, and gets its message then.", R6 + ", RFC 4861 section 7.2",
         two_ports(lan=lan(relay=False, v6={})))
c.rx("wan", from_servers6(reply6(say6())), punt=True).tx("lan", solicit(GW_LAN, GW_LL, CLIENT6), own=True)
c.rx("lan", advertise(CLIENT, CLIENT6, GW_LAN, GW_LL, R=0), punt=True).tx("lan", to_client6(say6()), own=True)

RELAY6, RELAY6_LL = "2001:db8:1::77", "fe80::77"
c = Case("dhcpv6-relay-nested", "Another relay's Relay-forward goes into one of ours, one hop further, and comes out of the reply again.", R6 + ".1.2, 19.2",
         two_ports(neighbour("lan", RELAY6, HOST2), neighbour("lan", RELAY6_LL, HOST2), lan=lan(relay=False, v6={"from_relays": True, "remote_id": "gw-1", "interface_id": "rack 7"})))
nested = forward(ask6(), link="2001:db8:7::1", ident=b"x", mac=None)
ours = dict(ident=b"rack 7", remote=b"gw-1", mac=None, hops=1)
up6(c, all_relays(nested, src=RELAY6, mac=HOST2, sport=547), forward(nested, peer=RELAY6, link="::", **ours))
up6(c, all_relays(nested, src=RELAY6_LL, mac=HOST2, sport=547), forward(nested, peer=RELAY6_LL, **ours))
back = reply6(say6(), link="2001:db8:7::1", ident=b"x")
down6(c, reply6(back, peer=RELAY6, link="::", hops=1, ident=b"rack 7"), to_client6(back, dst=RELAY6, src=L6, mac=HOST2, dport=547))
down6(c, reply6(back, peer=RELAY6_LL, hops=1, ident=b"rack 7"), to_client6(back, dst=RELAY6_LL, mac=HOST2, dport=547))
up6(c, all_relays(ask6()), forward(ask6(), ident=b"rack 7", remote=b"gw-1"))

c = Case("dhcpv6-relay-hops", "A Relay-forward that has been through too many relays is dropped, and so is any where none is asked for.", R6 + ".1.2",
         config(lan(relay=False, v6={"from_relays": True, "max_hops": 3}), lan(relay=False, name="other", addresses=["2001:db8:3::1/64"], rest={"port": "lan", "vlan": 5}, v6={}),
                WAN, SERVER_NEIGHBOURS))
far = lambda hops: forward(ask6(), hops=hops, mac=None)
up6(c, all_relays(far(2), src=RELAY6, sport=547), forward(far(2), peer=RELAY6, link="::", hops=3, mac=None))
for hops in (3, 4, 255):
    c.rx("lan", all_relays(far(hops), src=RELAY6, sport=547), drop="dhcp-hops")
c.rx("lan", all_relays(far(0), src="fe80::77", sport=547, tags=(5,)), drop="dhcp-other-relay")

c = Case("dhcpv6-relay-malformed", "What is cut off, what only servers say, and what comes from nobody goes nowhere.", R6, two_ports(CLIENT_NEIGHBOUR, lan=lan(relay=False, v6={"from_relays": True})))
for bad in (b"", b"\1", b"\1\0\0", ask6()[:-1], ask6()[:7], b"\0" * 4, say6(), say6(DHCP6_Reply), bytes([10]) + ask6()[1:], forward(ask6())[:33], forward(ask6())[:-1],
            ask6() + b"\0\1\xff\xff"):
    c.rx("lan", all_relays(bad), drop="dhcp-invalid")
c.rx("lan", all_relays(ask6(), src="::"), drop="dhcp-invalid")
c.rx("lan", all_relays(reply6(say6())), drop="dhcp-unknown-server")
c.faulty = True
for chksum in (0, 0x1234):
    c.rx("lan", link(eth(CLIENT, ALL_RELAYS_MAC), IPv6(src=CLIENT6, dst=ALL_RELAYS) / UDP(sport=546, dport=547, chksum=chksum) / Raw(ask6())), drop="dhcp-invalid")
head = bytes(DHCP6_RelayReply(linkaddr=L6, peeraddr=CLIENT6))
ident = bytes(DHCP6OptIfaceId(ifaceid=b"lan"))
for bad in (head[:33], head, head + ident, head + option6(9, b""), head + ident + option6(9, b"\2\0\0"), head + ident + option6(9, ask6()), head + ident * 2 + option6(9, say6()),
            head + option6(9, say6()) * 2, head + ident + option6(9, say6())[:-1], reply6(far(0)), reply6(say6(), peer="::"), reply6(say6(), peer="ff02::1"),
            reply6(say6(), peer="::1"), reply6(say6(), peer="::ffff:192.0.2.9"), reply6(say6(), peer=GW_LL), reply6(say6(), peer=L6)):
    c.rx("wan", from_servers6(bad), drop="dhcp-invalid")

c = Case("dhcpv6-relay-foreign-server", "Only configured servers are heard, and only for links that we relay for.", R6,
         two_ports(CLIENT_NEIGHBOUR, neighbour("wan", S6B, SERVER2), lan=lan(relay=False, v6={})))
c.rx("wan", from_servers6(reply6(say6()), server=S6B, mac=SERVER2), drop="dhcp-unknown-server")
c.rx("wan", from_servers6(ask6()), drop="dhcp-unknown-server")
c.rx("wan", from_servers6(reply6(say6(), ident=b"wan")), drop="dhcp-no-client")
# Further away than the link there are relays only, and nobody has said that there are any.
c.rx("wan", from_servers6(reply6(say6(), peer="2001:db8:99::9")), drop="dhcp-no-client")
c.rx("wan", from_servers6(reply6(say6(), ident=None, link=W6)), drop="dhcp-no-client")
down6(c, reply6(say6()), to_client6(say6()))

c = Case("dhcpv6-relay-zones", "Zones that are closed to the gateway do not keep a relay from its messages.", R6,
         zoned(CLIENT_NEIGHBOUR, lan_keys={"dhcpv6_relay": {"servers": [S6], "rate_limit": {"per_s": 1, "burst": 1}}}))
up6(c, all_relays(ask6()), forward(ask6()))
down6(c, reply6(say6()), to_client6(say6()))
c.rx("lan", all_relays(ask6()), drop="dhcp-rate-limit")
c.rx("wan", link(eth(SERVER, GW_WAN), udp6(S6, W6, reply6(say6()))), drop="firewall-deny")


def tenant6(vrf, vlan, **keys):
    return lan(["2001:db8:1::1/64"], name=vrf, relay=False, rest={"port": "lan", "vlan": vlan, "vrf": vrf}, v6={"vrf": "default", "source": W6, **keys})


c = Case("dhcpv6-relay-two-vrfs", "Tenants with one network between them have servers in a third VRF, which tell them apart by the Interface-Id.", R6,
         config(tenant6("red", 100), tenant6("blue", 200), WAN, SERVER_NEIGHBOURS, neighbour("red", CLIENT6, CLIENT), neighbour("blue", CLIENT6, HOST2)))
for vlan, ident, mac in ((100, b"red", CLIENT), (200, b"blue", HOST2)):
    up6(c, all_relays(ask6(), tags=(vlan,), mac=mac), forward(ask6(), ident=ident, mac=mac), source=W6)
    c.rx("wan", from_servers6(reply6(say6(), ident=ident), source=W6), punt=True).tx("lan", to_client6(say6(), mac=mac, tags=(vlan,)), own=True)

c = Case("dhcpv6-relay-too-long", "What does not fit a Relay-forward, or the clients' link, is lost and counted.", R6,
         two_ports(CLIENT_NEIGHBOUR, lan=lan(relay=False, v6={}, rest={"mtu": 1500}), wan=interface("wan", ["198.51.100.1/24", "2001:db8:2::1/64"], mtu=1700)))
big = ask6() + option6(99, bytes(1490 - len(ask6()) - 4))
c.rx("lan", all_relays(big), drop="dhcp-too-long")
c.rx("wan", from_servers6(reply6(say6() + option6(99, bytes(1453 - len(say6()) - 4)))), drop="dhcp-too-long")
whole = say6() + option6(99, bytes(1452 - len(say6()) - 4))
down6(c, reply6(whole), to_client6(whole))
