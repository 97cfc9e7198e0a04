// SoftGate's XDP program: control-plane packets to the kernel, everything else to the workers.
//
// Runs for every received frame of every port, before the kernel sees it. It needs no kernel headers:
// the few types and helper numbers of the BPF ABI stand here. scripts/build-xdp compiles it; the object
// is checked in, so that building SoftGate needs no clang.
//
// Verdicts:
//   XDP_PASS      VRRP, BFD, LACP and the pair port, under up to two VLAN tags. The HA thread reads
//                 them from AF_PACKET sockets, so a flood of data cannot starve them. On a member of
//                 a bridge VRRP and BFD of others are data: hosts behind other members wait for them.
//                 VRRP in a VXLAN or Geneve tunnel as well, if it is of a virtual router of ours there.
//   XDP_REDIRECT  everything else, into the AF_XDP socket of (port, receive queue).
//   XDP_DROP      no socket in that slot, or a device that is no port: the kernel never forwards.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline)) inline
#define HOST16(x) __builtin_bswap16(x)
#define BE16(x) __builtin_bswap16(x)
// BTF map definitions: numbers are array lengths, types are pointer targets (as libbpf's bpf_helpers.h).
#define NUMBER(name, value) int (*name)[value]
#define TYPE(name, type) typeof(type) *name

// enum xdp_action, enum bpf_map_type and helper numbers of <linux/bpf.h>.
enum { XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT };
enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_XSKMAP = 17 };
static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const redirect_map)(void *map, u64 key, u64 flags) = (void *)51;

struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

// --- What Rust shares with us (program.rs has the same numbers and layouts) -------------------------

enum { MAX_PORTS = 64, QUEUES_PER_PORT = 64, NO_PORT = MAX_PORTS };

// One socket map for all ports: slot = port * QUEUES_PER_PORT + queue.
struct {
	NUMBER(type, MAP_XSKMAP);
	NUMBER(key_size, 4);
	NUMBER(value_size, 4);
	NUMBER(max_entries, MAX_PORTS *QUEUES_PER_PORT);
} xsks_map SEC(".maps"); // this very name lets libbpf 0.3 (crate afxdp) adopt the map

// ifindex -> the port's place.
struct port {
	u32 base; // first slot in xsks_map
	u32 slot; // index in counters
};
struct {
	NUMBER(type, MAP_HASH);
	TYPE(key, u32);
	TYPE(value, struct port);
	NUMBER(max_entries, MAX_PORTS);
} ports SEC(".maps");

// The gateway's own addresses, IPv4 as ::ffff:a.b.c.d.
struct address {
	u32 word[4];
};
struct {
	NUMBER(type, MAP_HASH);
	TYPE(key, struct address);
	TYPE(value, u8);
	NUMBER(max_entries, 16384);
} own_addresses SEC(".maps");

struct settings {
	u32 pair_port; // UDP destination port of the pair's traffic; 0 = none
	u32 check_own; // 1 = multihop BFD and the pair port count only if sent to an own address
};
struct {
	NUMBER(type, MAP_ARRAY);
	TYPE(key, u32);
	TYPE(value, struct settings);
	NUMBER(max_entries, 1);
} settings SEC(".maps");

// Members of bridges, and which virtual routers are ours there: one bit for each VRID. Absent: no member, and
// whatever is VRRP or BFD is for the HA thread.
struct link {
	u32 ifindex;
	u16 outer, inner; // VIDs, 0 = none; a single one is the outer
};
struct routers {
	u32 v4[8], v6[8];
};
struct {
	NUMBER(type, MAP_HASH);
	TYPE(key, struct link);
	TYPE(value, struct routers);
	NUMBER(max_entries, 131072); // interfaces of a node, on as many devices as a LAG has
	NUMBER(map_flags, 1);        // BPF_F_NO_PREALLOC: few have so many
} bridged SEC(".maps");

// Segments in tunnels, and which virtual routers are ours there. Absent: none is.
struct segment {
	struct address vtep;
	u32 vni;
	u32 udp_port;
};
struct {
	NUMBER(type, MAP_HASH);
	TYPE(key, struct segment);
	TYPE(value, struct routers);
	NUMBER(max_entries, 16384); // interfaces of a node
	NUMBER(map_flags, 1);
} segments SEC(".maps");

// Per port and CPU; the last entry counts frames of devices that are no port.
struct counters {
	u64 redirected, passed, no_socket;
};
struct {
	NUMBER(type, MAP_PERCPU_ARRAY);
	TYPE(key, u32);
	TYPE(value, struct counters);
	NUMBER(max_entries, MAX_PORTS + 1);
} counters SEC(".maps");

// --- Recognising control-plane packets ---------------------------------------------------------------

enum { IPPROTO_UDP = 17, IPPROTO_VRRP = 112 };
enum {
	BFD_SINGLE_HOP = 3784, // RFC 5881 section 4
	BFD_MULTIHOP = 4784,   // RFC 5883 section 5
	BFD_ON_LAG = 6784,     // RFC 7130 section 2.2
	// 3785, BFD echo, is data: RFC 5881 section 4 wants it looped by the forwarding plane.
};

INLINE int is_own(const struct address *dst, const struct settings *set)
{
	return !set->check_own || map_lookup(&own_addresses, dst);
}

INLINE int has_router(const struct routers *ours, const u8 *vrrp, const void *end, int is_v6)
{
	if (vrrp + 2 > (const u8 *)end)
		return 0;
	u32 vrid = vrrp[1]; // RFC 9568 section 5.1
	u32 bits = is_v6 ? ours->v6[vrid >> 5] : ours->v4[vrid >> 5];
	return bits >> (vrid & 31) & 1;
}

// An advertisement for the HA thread?
INLINE int is_own_vrrp(const u8 *vrrp, const void *end, const struct link *link, int is_v6)
{
	const struct routers *ours = map_lookup(&bridged, link);
	return !ours || has_router(ours, vrrp, end, is_v6);
}

// RFC 9568 section 5.1.1.2.
INLINE int is_group_v4(u32 dst) { return dst == __builtin_bswap32(0xe0000012); }

// RFC 9568 section 5.1.2.2.
INLINE int is_group_v6(const u32 *dst)
{
	return dst[0] == __builtin_bswap32(0xff020000) && !dst[1] && !dst[2] && dst[3] == __builtin_bswap32(0x12);
}

// An advertisement in a tunnel to a tunnel end point of ours, where the HA thread has the virtual router? All that other
// UDP packets pay is a look at six bytes: is it, in a frame behind 8 bytes of VXLAN or Geneve, to the MAC address of VRRP?
INLINE int is_tunnelled(const u8 *udp, const void *end, const struct address *dst, const struct link *link)
{
	if (udp + 30 > (const u8 *)end || *(const u16 *)(udp + 20) != BE16(0x0012))
		return 0;
	u32 upper = *(const u32 *)(udp + 16);
	if (upper != __builtin_bswap32(0x01005e00) && upper != __builtin_bswap32(0x33330000))
		return 0;
	const u8 *inner = udp + 30;
	struct segment segment = { *dst, __builtin_bswap32(*(const u32 *)(udp + 12)) >> 8,
				   HOST16(*(const u16 *)(udp + 2)) };
	const struct routers *ours = map_lookup(&segments, &segment);
	// Hosts of a bridged segment are no tunnel end points.
	if (!ours || map_lookup(&bridged, link))
		return 0;
	if (*(const u16 *)(udp + 28) == BE16(0x0800)) {
		if (inner + 20 > (const u8 *)end || inner[9] != IPPROTO_VRRP || !is_group_v4(*(const u32 *)(inner + 16)))
			return 0;
		return has_router(ours, inner + ((inner[0] & 15) << 2), end, 0);
	}
	if (*(const u16 *)(udp + 28) == BE16(0x86dd)) {
		if (inner + 40 > (const u8 *)end || inner[6] != IPPROTO_VRRP || !is_group_v6((const u32 *)(inner + 24)))
			return 0;
		return has_router(ours, inner + 40, end, 1);
	}
	return 0;
}

// A UDP packet for the HA thread? BFD on one hop carries TTL 255 (RFC 5881 section 5, GTSM), which tells
// it from a reply to somebody whose source port happens to be 3784. No session of ours is on a bridge.
INLINE int is_control_udp(const u8 *udp, const void *end, u8 ttl, const struct address *dst, const struct link *link)
{
	if (udp + 8 > (const u8 *)end)
		return 0;
	u32 port = HOST16(*(const u16 *)(udp + 2));
	if (port == BFD_SINGLE_HOP || port == BFD_ON_LAG)
		return ttl == 255 && !map_lookup(&bridged, link);
	u32 zero = 0;
	const struct settings *set = map_lookup(&settings, &zero);
	if (!set)
		return 0;
	if (port == BFD_MULTIHOP || (set->pair_port && port == set->pair_port))
		return is_own(dst, set);
	return is_tunnelled(udp, end, dst, link);
}

INLINE int is_control(const u8 *at, const void *end, u32 ifindex)
{
	struct link link = { ifindex, 0, 0 };
	int is_tag = 1;
	if (at + 14 > (const u8 *)end)
		return 0;
	u16 type = *(const u16 *)(at + 12);
	at += 14;
#pragma unroll
	for (int tags = 0; tags < 2; tags++) {
		if (type != BE16(0x8100) && type != BE16(0x88a8) && type != BE16(0x9100))
			break;
		if (at + 4 > (const u8 *)end)
			return 0;
		// The workers take 0x9100, and what is behind it, for a payload.
		is_tag &= type != BE16(0x9100);
		u16 vid = is_tag ? HOST16(*(const u16 *)at) & 0xfff : 0;
		if (link.outer)
			link.inner = vid;
		else
			link.outer = vid;
		type = *(const u16 *)(at + 2);
		at += 4;
	}
	if (type == BE16(0x8809)) // slow protocols: LACP (IEEE 802.1AX)
		return 1;
	if (type == BE16(0x0800)) {
		if (at + 20 > (const u8 *)end)
			return 0;
		u32 dst = *(const u32 *)(at + 16);
		const u8 *upper = at + ((at[0] & 15) << 2);
		if (at[9] == IPPROTO_VRRP)
			return is_group_v4(dst) && is_own_vrrp(upper, end, &link, 0);
		if (at[9] != IPPROTO_UDP || (*(const u16 *)(at + 6) & BE16(0x1fff)))
			return 0; // later fragments carry no ports
		struct address mapped = { { 0, 0, BE16(0xffff) << 16, dst } };
		return is_control_udp(upper, end, at[8], &mapped, &link);
	}
	if (type == BE16(0x86dd)) {
		if (at + 40 > (const u8 *)end)
			return 0;
		const u32 *dst = (const u32 *)(at + 24);
		if (at[6] == IPPROTO_VRRP)
			return is_group_v6(dst) && is_own_vrrp(at + 40, end, &link, 1);
		if (at[6] != IPPROTO_UDP)
			return 0;
		struct address address = { { dst[0], dst[1], dst[2], dst[3] } };
		return is_control_udp(at + 40, end, at[7], &address, &link);
	}
	return 0;
}

// --- The program -------------------------------------------------------------------------------------

INLINE int handle(struct xdp_md *frame)
{
	u32 ifindex = frame->ingress_ifindex;
	const struct port *port = map_lookup(&ports, &ifindex);
	u32 slot = port ? port->slot : NO_PORT;
	struct counters *count = map_lookup(&counters, &slot);
	if (!count)
		return XDP_DROP;
	if (!port) {
		count->no_socket++;
		return XDP_DROP;
	}
	if (is_control((const u8 *)(long)frame->data, (const void *)(long)frame->data_end, ifindex)) {
		count->passed++;
		return XDP_PASS;
	}
	if (frame->rx_queue_index >= QUEUES_PER_PORT) { // else it would end in another port's slots
		count->no_socket++;
		return XDP_DROP;
	}
	// The low bits of the flags are the verdict for an empty slot.
	int verdict = redirect_map(&xsks_map, port->base + frame->rx_queue_index, XDP_DROP);
	if (verdict == XDP_REDIRECT)
		count->redirected++;
	else
		count->no_socket++;
	return verdict;
}

// For frames larger than one page: the driver must know multi-buffer XDP.
SEC("xdp.frags") int softgate_frags(struct xdp_md *frame) { return handle(frame); }

// The twin for drivers that do not.
SEC("xdp") int softgate_single(struct xdp_md *frame) { return handle(frame); }

// bpf_redirect_map and map lookups are not GPL-only.
char _license[] SEC("license") = "Dual MIT/GPL";
