//! The catalogue of drop reasons: the only way to lose a packet.

/// The ICMP error a lost packet causes, where one may be sent (RFC 1812, RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// IPv4 11/0, IPv6 3/0.
    TimeExceeded,
    /// IPv4 3/0, IPv6 1/0.
    NetUnreachable,
    /// IPv4 3/1, IPv6 1/3 (address unreachable).
    HostUnreachable,
    /// IPv4 3/13, IPv6 1/1: administratively prohibited.
    Prohibited,
    /// IPv4 3/1, IPv6 1/0: a route says "unreachable".
    RouteUnreachable,
    /// IPv4 3/4, IPv6 2/0, with the next hop's MTU.
    TooBig,
    /// IPv4 3/3, IPv6 1/4.
    PortUnreachable,
}

/// Why a packet was lost. Each has a counter; names are stable and appear in every output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than its headers say.
    Truncated,
    /// Unicast to another station.
    NotForUs,
    /// No interface for the tags.
    UnknownVlan,
    /// Neither IP nor ARP.
    UnknownEthertype,
    /// RFC 1812 section 5.2.2.
    Ipv4HeaderInvalid,
    /// RFC 1812 section 5.2.2.
    Ipv4Checksum,
    /// RFC 7126.
    Ipv4SourceRoute,
    /// RFC 8200.
    Ipv6HeaderInvalid,
    /// More than 8.
    Ipv6TooManyHeaders,
    /// RFC 1812 section 5.3.7.
    MartianSource,
    /// RFC 1812 section 5.3.7.
    MartianDestination,
    /// RFC 3704.
    SourceCheck,
    /// A stated limit.
    MulticastNotRouted,
    /// RFC 1812 section 5.3.5.
    BroadcastNotForwarded,
    /// RFC 1812 section 5.3.4.
    LinkBroadcastNotForwarded,
    /// RFC 4291 section 2.5.6, RFC 3927 section 2.7.
    LinkLocalNotRouted,
    /// Sends net unreachable.
    NoRoute,
    /// On purpose, in silence.
    Blackhole,
    /// On purpose, with an error.
    UnreachableRoute,
    /// RFC 1812 section 5.3.1.
    TtlExpired,
    /// RFC 1191.
    FragmentationNeeded,
    /// RFC 8201.
    PacketTooBig,
    /// The queue of an unresolved neighbour overflowed.
    NeighbourQueueFull,
    /// The neighbour does not answer.
    NeighbourFailed,
    /// Cap of the interface or of the table.
    NeighbourTableFull,
    /// To our own address, but nothing listens.
    NoHostPath,
    /// RFC 9568 section 6.4.2.
    VirtualRouterBackup,
    /// RFC 9568 section 6.4.3.
    VirtualRouterNotAccepted,
    /// Nobody to decide for a group of virtual routers.
    NoActive,
    /// Over the pair link, and would go back.
    PairLinkLoop,
    /// Over the pair link, or from somebody who pretends to be there.
    PairLinkInvalid,
    /// For the pair link, and its MTU.
    PairLinkTooLong,
    /// Answers to health checks come faster than they are looked at.
    ProbeQueueFull,
    /// An answer to a health check that fits no buffer.
    ProbeAnswerTooLong,
    /// RFC 1122 section 3.3.2 asks hosts to reassemble; a stated limit.
    LocalFragment,
    /// RFC 826.
    ArpInvalid,
    /// RFC 4861.
    NdInvalid,
    /// Bad ICMP to us.
    IcmpInvalid,
    /// No free frame for a copy, a fragment or an answer.
    NoBuffer,
    /// The device takes no more.
    TxRingFull,
    /// The egress port is gone or has no queue.
    PortDown,
    /// Received by a device of a LAG that stands by.
    BackupDevice,
    /// The other worker's ring is full.
    HandOverFull,
    /// Parked when the gateway stopped.
    Shutdown,
    /// A rule, or no rule.
    FirewallDeny,
    /// A rule, with an answer.
    FirewallReject,
    /// A session's packet, but the rules now deny it.
    PolicyChanged,
    /// The same, and the commit has said that both ends are to be told.
    PolicyReset,
    /// The session's egress or NAT rule is another one now.
    NatPathChanged,
    /// To a service, none of whose backends takes it.
    NoBackend,
    /// A session's packet, but the backend has failed or is disabled.
    BackendFailed,
    /// Direct server return on the link, and the backend is not on it.
    BackendNotOnLink,
    /// No way through a tunnel to the backend.
    BackendNoTunnel,
    /// A TCP packet that begins no connection.
    TcpNoSession,
    /// RFC 9293: flags or header.
    TcpInvalid,
    /// Outside the window.
    TcpOutOfWindow,
    /// RFC 768, RFC 792: shorter than the header of its protocol.
    UpperHeaderCut,
    /// `flows.capacity`.
    SessionTableFull,
    /// Two sessions would have the same replies.
    FlowConflict,
    /// RFC 6888 REQ-4.
    NatHostQuota,
    /// RFC 6888 REQ-4c.
    NatHostRate,
    /// RFC 6888 REQ-11.
    NatPoolExhausted,
    /// To an address of a pool, but nobody has asked for it.
    NatNoMapping,
    /// A translation between IPv4 and IPv6.
    NatFamily,
    /// RFC 6146 section 3.4, RFC 7915 sections 4.2, 5.1 and 5.2.
    Nat64Unsupported,
    /// RFC 6296 sections 3.2 and 3.7.
    NatUntranslatable,
    /// From its own zone to an outside address, and `nat.hairpin` is off.
    NatHairpin,
    /// `rate_limit` of the rule.
    RuleRateLimit,
    /// `rate_limit` of the zone.
    ZoneRateLimit,
    /// `half_open_per_destination`, or `flows.half_open` and none may go.
    HalfOpenLimit,
    /// Nobody may stand behind it, and the worker has others to serve.
    NewFlowShed,
    /// `flows.per_host_sessions`.
    HostSessionLimit,
    /// RFC 5508 REQ-4.
    IcmpErrorNoSession,
    /// A fragment of which the first is not known any more.
    FragmentUntracked,
    /// RFC 791, RFC 8200 section 4.5.
    FragmentInvalid,
    /// RFC 1858, RFC 3128.
    FragmentTiny,
    /// RFC 5722.
    FragmentOverlap,
    /// More than 64.
    FragmentTooMany,
    /// Too many datagrams under way.
    FragmentTableFull,
    /// Too many fragments wait for their first.
    FragmentQueueFull,
    /// The first never came.
    FragmentTimeout,
    /// RFC 7348 section 5.
    VxlanInvalid,
    /// RFC 768.
    VxlanChecksum,
    /// No interface has it.
    VxlanUnknownVni,
    /// Neither in `remotes` nor in `accept_from`.
    VxlanUnknownRemote,
    /// RFC 7348 section 6.1.
    VxlanInnerTag,
    /// RFC 6040 section 4.2.
    VxlanEcn,
    /// Towards a remote tunnel end point.
    VxlanNoTunnel,
    /// Shut because of a loop.
    BridgeMemberShut,
    /// A group address, none, or our own.
    BridgeInvalidSource,
    /// IEEE 802.1Q table 8-1.
    BridgeReserved,
    /// Back to where it came from.
    BridgeSameMember,
    /// From one tunnel into another.
    BridgeSplitHorizon,
    /// Longer than the MTU of a member; or to all, and in several buffers.
    BridgeTooLong,
    /// `storm_pps`.
    BridgeStorm,
    /// To all, and there is nobody.
    BridgeNoMember,
    /// To all, and no rule lets it into any other zone.
    BridgeZoneDeny,
    /// Neither IP nor ARP, between zones.
    BridgeZoneProtocol,
    /// From a segment into the same by way of the gateway, past the zones of its members.
    BridgeZoneHairpin,
    /// Another node passes frames on.
    BridgeBackup,
    /// RFC 3376 section 4.
    IgmpInvalid,
    /// RFC 3810 section 5.
    MldInvalid,
    /// RFC 4541 section 2.1.2.
    MulticastNoListener,
    /// `max_groups`.
    MulticastLimit,
    /// RFC 2131, RFC 8415.
    DhcpInvalid,
    /// RFC 1542 section 4.1.1, RFC 8415 section 19.1.2.
    DhcpHops,
    /// RFC 3046 section 2.1.1.
    DhcpLoop,
    /// `from_relays` of the relay.
    DhcpOtherRelay,
    /// RFC 3046 section 2.1.
    DhcpOption82,
    /// Not one of the relay's.
    DhcpUnknownServer,
    /// A reply for nobody.
    DhcpNoClient,
    /// `rate_limit` of the relay.
    DhcpRateLimit,
    /// With what a relay adds.
    DhcpTooLong,
}

/// Everything that is to be said of a reason, in the order of the enum.
const CATALOGUE: [(DropReason, &str, Option<IcmpError>, &str); DropReason::COUNT] = {
    use DropReason::*;
    use IcmpError::*;
    [
        (
            Truncated,
            "truncated",
            None,
            "The frame ends before its headers or its IP length say. Look for a sender or a device that cuts frames.",
        ),
        (
            NotForUs,
            "not-for-us",
            None,
            "Unicast to a MAC address that is not the interface's. Normal on flooded segments; much of it means stale ARP entries at the sender.",
        ),
        (UnknownVlan, "unknown-vlan", None, "No interface is configured for this port and VLAN pair."),
        (
            UnknownEthertype,
            "unknown-ethertype",
            None,
            "Neither IPv4, IPv6 nor ARP (LLDP, STP, 802.3 frames ...).",
        ),
        (
            Ipv4HeaderInvalid,
            "ipv4-header-invalid",
            None,
            "Version, header length or total length is wrong (RFC 1812 section 5.2.2).",
        ),
        (
            Ipv4Checksum,
            "ipv4-checksum",
            None,
            "The IPv4 header checksum is wrong: corruption on the way, or a sender that leaves it to an offload that is off.",
        ),
        (Ipv4SourceRoute, "ipv4-source-route", None, "IPv4 source routing is never honoured (RFC 7126)."),
        (
            Ipv6HeaderInvalid,
            "ipv6-header-invalid",
            None,
            "Version or payload length is wrong, or an extension header is cut off (RFC 8200).",
        ),
        (Ipv6TooManyHeaders, "ipv6-too-many-headers", None, "More than 8 IPv6 extension headers."),
        (
            MartianSource,
            "martian-source",
            None,
            "The source address must never appear on a wire: 0/8, 127/8, 240/4, multicast, ::, ::1 (RFC 1812 section 5.3.7).",
        ),
        (
            MartianDestination,
            "martian-destination",
            None,
            "The destination must never be routed: 0/8, 127/8, 240/4, ::, ::1.",
        ),
        (
            SourceCheck,
            "source-check",
            None,
            "The way back to the source does not lead through the ingress interface (`source_check`, RFC 3704): spoofed, or asymmetric routing that wants `loose`.",
        ),
        (MulticastNotRouted, "multicast-not-routed", None, "Multicast is not routed."),
        (
            BroadcastNotForwarded,
            "broadcast-not-forwarded",
            None,
            "Broadcast of a connected network, or its network address (RFC 2644).",
        ),
        (
            LinkBroadcastNotForwarded,
            "link-broadcast-not-forwarded",
            None,
            "An IP unicast packet in an Ethernet broadcast or multicast frame is not forwarded (RFC 1812 section 5.3.4).",
        ),
        (
            LinkLocalNotRouted,
            "link-local-not-routed",
            None,
            "Link-local addresses stay on their link (RFC 4291 section 2.5.6, RFC 3927 section 2.7).",
        ),
        (
            NoRoute,
            "no-route",
            Some(NetUnreachable),
            "No route to the destination in this VRF. `softgate show routes --lookup ADDR`.",
        ),
        (Blackhole, "blackhole", None, "A blackhole route drops it in silence."),
        (
            UnreachableRoute,
            "unreachable-route",
            Some(RouteUnreachable),
            "An unreachable route rejects it with an ICMP error.",
        ),
        (
            TtlExpired,
            "ttl-expired",
            Some(TimeExceeded),
            "TTL or hop limit ran out: traceroute, or a routing loop if there is much of it.",
        ),
        (
            FragmentationNeeded,
            "fragmentation-needed",
            Some(TooBig),
            "Longer than the egress MTU with DF set; the sender is told the MTU (RFC 1191).",
        ),
        (
            PacketTooBig,
            "packet-too-big",
            Some(TooBig),
            "IPv6 packet longer than the egress MTU; the sender is told the MTU (RFC 8201).",
        ),
        (
            NeighbourQueueFull,
            "neighbour-queue-full",
            None,
            "More packets than `neighbours.queue` waited for one neighbour's address; the oldest went.",
        ),
        (
            NeighbourFailed,
            "neighbour-failed",
            Some(HostUnreachable),
            "The neighbour does not answer ARP or ND.",
        ),
        (
            NeighbourTableFull,
            "neighbour-table-full",
            None,
            "`neighbours.per_interface` unresolved or learned entries are in use: an address scan, or the cap is too low.",
        ),
        (NoHostPath, "no-host-path", None, "Addressed to the gateway itself, which offers no such service."),
        (
            VirtualRouterBackup,
            "virtual-router-backup",
            None,
            "To an address of a virtual router, or through a tunnel that ends at one, whose Active is another node, or nobody yet. `softgate show ha` says who.",
        ),
        (
            VirtualRouterNotAccepted,
            "virtual-router-not-accepted",
            None,
            "To an address of a virtual router that forwards and answers ARP and ND only: `accept = true` has it answer pings.",
        ),
        (
            NoActive,
            "no-active",
            None,
            "The first packet of a session of a group of virtual routers that this node is not the Active of, while nobody is known to be, or the way to the other node (`[pair]`, `link`) is down. `softgate show ha` says how it is; between two Actives a moment of it is usual.",
        ),
        (
            PairLinkLoop,
            "pair-link-loop",
            None,
            "The other node has sent it over the pair link to be decided here, and here another node is taken for the Active, or none. Between two Actives a moment of it is usual; else a third router is the Active.",
        ),
        (
            PairLinkInvalid,
            "pair-link-invalid",
            None,
            "To our end of the pair link, but not as the other node sends it: another source, a TTL other than 255, a header that is none, or the name of an interface that this node has not. Are both configs the same?",
        ),
        (
            PairLinkTooLong,
            "pair-link-too-long",
            None,
            "For the other node of the pair, and longer than the pair link takes with its headers: give its interface an MTU that is 36 bytes (over IPv6 56) above that of all others.",
        ),
        (
            ProbeQueueFull,
            "probe-queue-full",
            None,
            "An answer to a health check, while 512 others waited to be looked at: is the thread `health` kept from its CPU?",
        ),
        (
            ProbeAnswerTooLong,
            "probe-answer-too-long",
            None,
            "An answer to a health check in a packet of more than 2,048 bytes: let the service answer with less.",
        ),
        (
            LocalFragment,
            "local-fragment",
            None,
            "A fragment addressed to the gateway itself, which puts none together: ping it with what fits the MTU.",
        ),
        (ArpInvalid, "arp-invalid", None, "Malformed ARP, or a sender address that cannot be."),
        (
            NdInvalid,
            "nd-invalid",
            None,
            "Neighbour discovery that breaks RFC 4861: hop limit not 255, bad checksum, length or options.",
        ),
        (IcmpInvalid, "icmp-invalid", None, "ICMP to the gateway with a bad checksum or length."),
        (NoBuffer, "no-buffer", None, "No free frame for a fragment or an answer; raise `system.frames`."),
        (TxRingFull, "tx-ring-full", None, "The device does not take frames as fast as they come."),
        (
            PortDown,
            "port-down",
            None,
            "The egress port has no carrier or no queue. `softgate show ports` says why.",
        ),
        (
            BackupDevice,
            "backup-device",
            None,
            "It came in on a device of an active-backup LAG that stands by: what switches flood to all their ports. The active device gets it, too.",
        ),
        (HandOverFull, "hand-over-full", None, "The ring to the worker that owns the egress queue is full."),
        (Shutdown, "shutdown", None, "Waited for a neighbour, or for a fragment, when the gateway stopped."),
        (
            FirewallDeny,
            "firewall-deny",
            None,
            "A rule denies it, or no rule allows it: between zones the default is to deny. `softgate show rules`.",
        ),
        (FirewallReject, "firewall-reject", Some(Prohibited), "A rule with action `reject` refuses it."),
        (
            PolicyChanged,
            "policy-changed",
            None,
            "Its session was allowed once; the rules, zones or addresses of now do not allow it.",
        ),
        (
            PolicyReset,
            "policy-reset",
            Some(Prohibited),
            "Its session was allowed once; a commit with `--fate reset` has ended it, and its ends are told.",
        ),
        (
            NatPathChanged,
            "nat-path-changed",
            None,
            "Its session's egress moved to where another NAT rule applies: the session has ended.",
        ),
        (
            NoBackend,
            "no-backend",
            Some(PortUnreachable),
            "It is for a service that has no backend, or only such as are drained or disabled. `softgate show services`.",
        ),
        (
            BackendFailed,
            "backend-failed",
            None,
            "The backend that its session goes to has failed or was disabled: the session has ended (`on_failure`).",
        ),
        (
            BackendNotOnLink,
            "backend-not-on-link",
            Some(HostUnreachable),
            "It is for a service with `mode = \"l2-dsr\"`, and its backend is in no network of an interface by now: nobody has its MAC address.",
        ),
        (
            BackendNoTunnel,
            "backend-no-tunnel",
            Some(HostUnreachable),
            "It is for a service with `mode = \"ipip\"` or `\"gue\"`, and no tunnel leads to its backend: there is no route to that, or it would go through another tunnel or the interface of a bridge, or the interface it leaves by has no address of the backend's family (`tunnel.source`).",
        ),
        (
            TcpNoSession,
            "tcp-no-session",
            None,
            "A TCP packet without SYN that belongs to no session: it ended or was never seen. `flows.loose_tcp` picks such connections up.",
        ),
        (
            TcpInvalid,
            "tcp-invalid",
            None,
            "TCP with a malformed header or an impossible combination of flags.",
        ),
        (
            TcpOutOfWindow,
            "tcp-out-of-window",
            None,
            "A TCP packet outside the window its receiver has offered: a forgery, or a packet that was very late.",
        ),
        (
            UpperHeaderCut,
            "upper-header-cut",
            None,
            "A packet between zones ends before the 8 bytes that every UDP and ICMP header has (RFC 768, RFC 792), so that it is of no session. Look for a broken sender, or a scan.",
        ),
        (
            SessionTableFull,
            "session-table-full",
            Some(HostUnreachable),
            "`flows.capacity` sessions exist, and none of them that nobody has answered to: others are never given up for new ones; or NAT has as many hosts or port blocks as it has room for, one for 32 sessions.",
        ),
        (
            FlowConflict,
            "flow-conflict",
            None,
            "Its replies would look like those of another session: two translations that lead to the same addresses and ports.",
        ),
        (
            NatHostQuota,
            "nat-host-quota",
            Some(Prohibited),
            "The host has `nat.max_blocks_per_host` blocks of ports in use, or all of its own by a deterministic NAT (RFC 6888 REQ-4).",
        ),
        (
            NatHostRate,
            "nat-host-rate",
            Some(Prohibited),
            "The host asked for new NAT mappings faster than `nat.new_mappings_per_host` allows (RFC 6888 REQ-4c). Those it has go on.",
        ),
        (
            NatPoolExhausted,
            "nat-pool-exhausted",
            Some(HostUnreachable),
            "The pool has no free block of ports for the host. `softgate show nat`.",
        ),
        (
            NatNoMapping,
            "nat-no-mapping",
            None,
            "To a NAT address, but no inside host has a mapping there: scans, or late replies.",
        ),
        (NatFamily, "nat-family", None, "The translation leads from IPv4 to IPv6 or back."),
        (
            Nat64Unsupported,
            "nat64-unsupported",
            None,
            "NAT64 has no word for it in the other family: a protocol but TCP, UDP and echo, ICMP or UDP without a checksum in fragments, a routing or authentication header, an ICMP error of another kind, an IPv4 address that is none to send to.",
        ),
        (
            NatUntranslatable,
            "nat-untranslatable",
            Some(HostUnreachable),
            "NPTv6 has no address in the other prefix for it: subnet 0xffff, an interface identifier of all ones or zeros behind a prefix beyond /48, or outside the part both prefixes have (RFC 6296 sections 3.2, 3.7); or it is a local IPv4 address, and the prefix of NAT64 is 64:ff9b::/96 (RFC 6052 section 3.1).",
        ),
        (
            NatHairpin,
            "nat-hairpin",
            None,
            "From an inside host to another's outside address, and `nat.hairpin` is false.",
        ),
        (
            RuleRateLimit,
            "rule-rate-limit",
            None,
            "A new session beyond the `rate_limit` of the rule that allows it.",
        ),
        (
            ZoneRateLimit,
            "zone-rate-limit",
            None,
            "A new session beyond the `rate_limit` of the zone that it comes from.",
        ),
        (
            HalfOpenLimit,
            "half-open-limit",
            None,
            "A SYN to a destination to which `half_open_per_destination` connections open already, or beyond `flows.half_open` where none may make room: a flood of SYNs, or a server that does not answer.",
        ),
        (
            NewFlowShed,
            "new-flow-shed",
            None,
            "It would have been answered with a cookie, or have begun a session in the place of another, while the worker was full of packets that need neither: under a flood they come first.",
        ),
        (
            HostSessionLimit,
            "host-session-limit",
            Some(Prohibited),
            "A new session of a host (IPv6: a /64) that has `flows.per_host_sessions` already.",
        ),
        (
            IcmpErrorNoSession,
            "icmp-error-no-session",
            None,
            "An ICMP error that quotes no packet of a session (RFC 5508 REQ-4).",
        ),
        (
            FragmentUntracked,
            "fragment-untracked",
            None,
            "A fragment between zones that has no session to follow: its datagram's first fragment was lost, for a reason counted there, or the session has ended.",
        ),
        (
            FragmentInvalid,
            "fragment-invalid",
            None,
            "A fragment that cannot be: empty, not of whole 8 bytes, of a datagram beyond 65,535 bytes, or itself in fragments. Its whole datagram is dropped.",
        ),
        (
            FragmentTiny,
            "fragment-tiny",
            None,
            "A first fragment too short for its TCP, UDP, ICMP or SCTP header, or TCP that goes on at byte 8 (RFC 1858, RFC 3128): an attempt to get by the rules. Its whole datagram is dropped.",
        ),
        (
            FragmentOverlap,
            "fragment-overlap",
            None,
            "Fragments that overlap, or contradict each other about the end or the ports of their datagram (RFC 5722): all of it is dropped.",
        ),
        (
            FragmentTooMany,
            "fragment-too-many",
            None,
            "More than 64 fragments: the whole datagram is dropped.",
        ),
        (
            FragmentTableFull,
            "fragment-table-full",
            None,
            "4,096 datagrams of the worker, or 256 of their source, are under way in fragments; half of that if their first fragments have not come. New ones have to wait for their end.",
        ),
        (
            FragmentQueueFull,
            "fragment-queue-full",
            None,
            "Too many fragments came before the first of their datagram, in all or from one source; the datagram is dropped.",
        ),
        (
            FragmentTimeout,
            "fragment-timeout",
            None,
            "The first fragment of its datagram did not come within 15 seconds: it was lost on the way, or somebody sends fragments without a beginning.",
        ),
        (
            VxlanInvalid,
            "vxlan-invalid",
            None,
            "To a tunnel end point of ours, but no VXLAN (the I flag is clear: RFC 7348 section 5) or Geneve that is known here (no control message, critical option or other protocol: RFC 8926 section 3.4), or the UDP length does not fit the packet.",
        ),
        (
            VxlanChecksum,
            "vxlan-checksum",
            None,
            "The outer UDP checksum of a VXLAN packet is wrong: corruption on the way.",
        ),
        (
            VxlanUnknownVni,
            "vxlan-unknown-vni",
            None,
            "A VXLAN packet with a VNI that no interface has at this tunnel end point and UDP port.",
        ),
        (
            VxlanUnknownRemote,
            "vxlan-unknown-remote",
            None,
            "A VXLAN packet from an address that is neither in `remotes` nor in `accept_from` of its VNI's interface: forged, or a tunnel end point nobody has configured.",
        ),
        (
            VxlanInnerTag,
            "vxlan-inner-tag",
            None,
            "The frame in the tunnel has a VLAN tag (RFC 7348 section 6.1): the other end has to take it off.",
        ),
        (
            VxlanEcn,
            "vxlan-ecn",
            None,
            "A router marked the outer packet as having met congestion, and the one inside cannot say so: its transport does not know ECN (RFC 6040 section 4.2).",
        ),
        (
            VxlanNoTunnel,
            "vxlan-no-tunnel",
            Some(HostUnreachable),
            "No tunnel leads to the station: `underlay_vrf` has no route to the remote, or it leads into another tunnel; or nobody has said behind which remote a static neighbour is.",
        ),
        (
            BridgeMemberShut,
            "bridge-member-shut",
            None,
            "The member of the bridge is shut: a frame by which the gateway looks for loops came back through it. Take the second way around out; `bridge open` opens the member at once.",
        ),
        (
            BridgeInvalidSource,
            "bridge-invalid-source",
            None,
            "The frame's source is a group address, zero, or the gateway's own MAC address: a loop, or a forgery.",
        ),
        (
            BridgeReserved,
            "bridge-reserved",
            None,
            "To an address that no bridge passes on (01:80:c2:00:00:00 to 0f, IEEE 802.1Q table 8-1): spanning tree, LACP, LLDP.",
        ),
        (
            BridgeSameMember,
            "bridge-same-member",
            None,
            "The station that the frame is for is behind the member it came in by: a switch there has not learned it yet, or sends everything to everybody.",
        ),
        (
            BridgeSplitHorizon,
            "bridge-split-horizon",
            None,
            "The frame came out of a tunnel, and its station is behind another: tunnel end points send to each other directly. Name all of them to each of them.",
        ),
        (
            BridgeTooLong,
            "bridge-too-long",
            None,
            "The frame is longer than the MTU of the member it would leave by; bridges do not fragment. Give hosts the smallest MTU of the members.",
        ),
        (
            BridgeStorm,
            "bridge-storm",
            None,
            "More broadcasts, multicasts and frames to unknown stations came in by the member than its `storm_pps` allows.",
        ),
        (
            BridgeNoMember,
            "bridge-no-member",
            None,
            "The frame was for all members of the bridge, and there is no other that is up and takes it, or no buffer was free.",
        ),
        (
            BridgeZoneDeny,
            "bridge-zone-deny",
            None,
            "A broadcast, a multicast or a packet to an unknown station, and the rules let it into the zone of no other member. `softgate show rules`.",
        ),
        (
            BridgeZoneProtocol,
            "bridge-zone-protocol",
            None,
            "Neither IP nor ARP, from a member in one zone to one in another: rules say nothing of it. `other_protocols = true` of the bridge lets it pass.",
        ),
        (
            BridgeZoneHairpin,
            "bridge-zone-hairpin",
            None,
            "From a host of a bridge whose members have zones to another of the same by way of the gateway: that would be past the rules between its members. Give the hosts the network as on-link.",
        ),
        (
            BridgeBackup,
            "bridge-backup",
            None,
            "From a station of a bridge to another, on a node that is not the Active of the bridge's `group`: the Active passes it on. Usual on a Backup. `softgate show ha` says who is.",
        ),
        (
            IgmpInvalid,
            "igmp-invalid",
            None,
            "On a bridge with `snooping`: an IGMP message with a TTL other than 1, a wrong checksum, a length that its records do not have, a group that is none, or a query that is sent neither to all hosts nor to its group.",
        ),
        (
            MldInvalid,
            "mld-invalid",
            None,
            "On a bridge with `snooping`: an MLD message with a hop limit other than 1, a source that is not link-local, a wrong checksum, a length that its records do not have, a group that is none, or a query that is sent neither to all nodes nor to its group.",
        ),
        (
            MulticastNoListener,
            "multicast-no-listener",
            None,
            "On a bridge with `snooping`: behind no other member somebody listens to the group, and no multicast router is there.",
        ),
        (
            MulticastLimit,
            "multicast-limit",
            None,
            "On a bridge with `snooping`: a report of more groups than the member may listen to (`max_groups`). The groups that it has stay.",
        ),
        (
            DhcpInvalid,
            "dhcp-invalid",
            None,
            "To a DHCP relay of ours, but no message that can be relayed: cut off, options that leave it, a wrong UDP checksum, a server's word from a client, no address to answer to.",
        ),
        (
            DhcpHops,
            "dhcp-hops",
            None,
            "A DHCP message that has been through more relays than `max_hops` of the interface's relay allows: a loop, or a long chain.",
        ),
        (
            DhcpLoop,
            "dhcp-loop",
            None,
            "A DHCP message from a client's side that says we have relayed it already (giaddr is ours): relays that send to each other, or a forgery.",
        ),
        (
            DhcpOtherRelay,
            "dhcp-other-relay",
            None,
            "A DHCP message of another relay nearer to the client: write `from_relays = true` on the interface, if there is one.",
        ),
        (
            DhcpOption82,
            "dhcp-option82",
            None,
            "A client's DHCP message that has an option 82 already: forged, or a switch put it there; `option82` of the interface's relay says what becomes of those.",
        ),
        (
            DhcpUnknownServer,
            "dhcp-unknown-server",
            None,
            "To a DHCP relay of ours from the side of servers, but not from one of its `servers`: forged, or a server that answers from another address.",
        ),
        (
            DhcpNoClient,
            "dhcp-no-client",
            None,
            "A DHCP server's reply that names no interface we relay for: its giaddr, circuit ID, Interface-Id or link-address is not one of ours any more, or the server does not echo what we told it.",
        ),
        (
            DhcpRateLimit,
            "dhcp-rate-limit",
            None,
            "A DHCP message of a client beyond the `rate_limit` of its interface's relay. Clients ask again.",
        ),
        (
            DhcpTooLong,
            "dhcp-too-long",
            None,
            "A DHCP message that with what a relay adds is longer than its buffer of 1,536 bytes or the MTU of the clients' interface, or that came in a jumbo frame.",
        ),
    ]
};

impl DropReason {
    /// Number of reasons.
    pub const COUNT: usize = DropReason::DhcpTooLong as usize + 1;

    /// All reasons, in order.
    pub fn all() -> impl Iterator<Item = DropReason> {
        CATALOGUE.iter().map(|entry| entry.0)
    }

    /// Position in the counters.
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Stable name.
    pub fn name(self) -> &'static str {
        CATALOGUE[self.index()].1
    }

    /// What it means and what the operator can do.
    pub fn explanation(self) -> &'static str {
        CATALOGUE[self.index()].3
    }

    /// The error the sender is told, if the packet is one that may be answered.
    pub fn icmp_error(self) -> Option<IcmpError> {
        CATALOGUE[self.index()].2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_in_the_order_of_the_enum() {
        for (index, (reason, name, _, says)) in CATALOGUE.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert!(
                !says.is_empty()
                    && name.bytes().all(|b| b == b'-' || b.is_ascii_lowercase() || b.is_ascii_digit())
            );
        }
        let names: std::collections::HashSet<_> = DropReason::all().map(DropReason::name).collect();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
