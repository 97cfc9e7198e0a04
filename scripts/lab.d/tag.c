// The access ports of the lab's switch.
//
// The lab must hand the gateway 802.1Q and QinQ frames on a kernel that may have neither VLAN devices
// nor bridge VLAN filtering. So each access port of a plain Linux bridge carries two of these programs
// (tc clsact, direct action): what comes in from the client gets the port's tags, what goes out to it
// loses them. A frame with any other tags is dropped on the way out, so that flooded frames stay
// within their VLAN, as they would on a real switch.
//
// Self-contained: needs clang only, no kernel or libbpf headers. `scripts/lab build` compiles it to
// tag.o, `scripts/lab build --check` tells whether the object in the repository is up to date.
typedef unsigned int u32;
typedef unsigned short u16;

#define SEC(name) __attribute__((section(name), used))
#define htons(x) __builtin_bswap16(x)

enum { TC_ACT_OK = 0, TC_ACT_SHOT = 2 };
enum { TPID_8021Q = 0x8100, TPID_8021AD = 0x88a8 };
enum { VID_MASK = 0x0fff };

// Beginning of the kernel's struct __sk_buff (include/uapi/linux/bpf.h).
struct __sk_buff {
	u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto;
};

// bpf_skb_vlan_push and bpf_skb_vlan_pop, by their numbers in the same header.
static long (*const vlan_push)(struct __sk_buff *, u16 tpid, u16 tci) = (void *)18;
static long (*const vlan_pop)(struct __sk_buff *) = (void *)19;

// Takes off the outermost tag when it is the one named. The kernel then moves the next tag, if any, to
// where vlan_present shows it.
static __attribute__((always_inline)) int pop_tag(struct __sk_buff *skb, u16 tpid, u16 vid)
{
	if (!skb->vlan_present || skb->vlan_proto != htons(tpid) || (skb->vlan_tci & VID_MASK) != vid)
		return 0;
	return vlan_pop(skb) == 0;
}

// A veth hands the sender's queue number over as it is, and the bridge reads it as "received on queue
// number - 1": the first two queues would end up on one. Counting up by one keeps all of them apart.
static __attribute__((always_inline)) void keep_queue(struct __sk_buff *skb)
{
	skb->queue_mapping = skb->queue_mapping + 1;
}

SEC("push-100") int push_100(struct __sk_buff *skb)
{
	keep_queue(skb);
	return vlan_push(skb, htons(TPID_8021Q), 100) ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("pop-100") int pop_100(struct __sk_buff *skb)
{
	if (!pop_tag(skb, TPID_8021Q, 100))
		return TC_ACT_SHOT;
	return skb->vlan_present ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("push-200.10") int push_200_10(struct __sk_buff *skb)
{
	keep_queue(skb);
	if (vlan_push(skb, htons(TPID_8021Q), 10) || vlan_push(skb, htons(TPID_8021AD), 200))
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

SEC("pop-200.10") int pop_200_10(struct __sk_buff *skb)
{
	if (!pop_tag(skb, TPID_8021AD, 200) || !pop_tag(skb, TPID_8021Q, 10))
		return TC_ACT_SHOT;
	return skb->vlan_present ? TC_ACT_SHOT : TC_ACT_OK;
}

char _license[] SEC("license") = "GPL"; // the kernel's name for "may use every helper"
