// Numbered datagrams at a rate that no script reaches, what becomes of them, and SYNs from nowhere: for scripts/bench-failover.
//
//   datagrams send ADDRESS PORT PPS FILE        from port 9001; FILE: what the sender says of itself, as JSON
//   datagrams sink PORT EVERY FILE              takes them all, answers each whose number is a multiple of EVERY
//   datagrams watch DEVICE PORT FILE            when each number was first seen on a device, in a ring of AF_PACKET's
//   datagrams judge SENT CAME BEGIN END         two such FILEs, a time in seconds since 1970 each: JSON
//   datagrams flood DEVICE MAC ADDRESS PORT PPS SYNs from random hosts of 20.0.0.0/8
//
// A datagram holds its number, 8 bytes in network order. All but judge run until SIGTERM.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, SOURCE_PORT = 9001 };

// A burst each half millisecond. What was missed for more than 5 ms is not made up for: nobody sends 20 ms of it at once.
static const uint64_t STEP_NS = 500000, LATE_NS = 5000000, SECOND_NS = 1000000000;

static volatile sig_atomic_t ended;

static void on_term(int number)
{
	(void)number;
	ended = 1;
}

static void die(const char *what)
{
	fprintf(stderr, "datagrams: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * SECOND_NS + now.tv_nsec;
}

static void ready(void)
{
	puts("ready");
	fflush(stdout);
}

static struct in_addr address_of(const char *text)
{
	struct in_addr address;

	if (inet_pton(AF_INET, text, &address) != 1)
		die(text);
	return address;
}

// In life hosts are elsewhere: they do not wait for the CPU that the gateway has.
static void go_first(void)
{
	struct sched_param parameters = { .sched_priority = 1 };

	prctl(PR_SET_TIMERSLACK, 1);
	sched_setscheduler(0, SCHED_RR, &parameters);
}

// ---- pacing, for whoever sends

struct pace {
	uint64_t pps, begun, due, late, longest;
};

static struct pace pace_begin(uint64_t pps)
{
	uint64_t now = now_ns(CLOCK_MONOTONIC);

	go_first();
	return (struct pace){ .pps = pps, .begun = now, .due = now };
}

// Waits for the next burst; how many it has.
static uint64_t pace_next(struct pace *pace, uint64_t sent)
{
	struct timespec until;
	uint64_t now, wanted;

	pace->due += STEP_NS;
	until = (struct timespec){ .tv_sec = pace->due / SECOND_NS, .tv_nsec = pace->due % SECOND_NS };
	while (!ended && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
	now = now_ns(CLOCK_MONOTONIC);
	if (now > pace->due && now - pace->due > pace->longest)
		pace->longest = now - pace->due;
	if (now > pace->due + LATE_NS) {
		pace->late++;
		pace->begun += now - pace->due;
		pace->due = now;
	}
	wanted = (unsigned __int128)(pace->due - pace->begun) * pace->pps / SECOND_NS;
	return wanted > sent ? wanted - sent : 0;
}

// ---- send, sink

static int udp_socket(uint16_t port)
{
	struct sockaddr_in own = { .sin_family = AF_INET, .sin_port = htons(port) };
	int size = 1 << 23, fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof own) < 0)
		die("socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
	setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
	return fd;
}

struct batch {
	struct mmsghdr messages[BATCH];
	struct iovec parts[BATCH];
	struct sockaddr_in peers[BATCH];
	uint64_t numbers[BATCH];
};

static void batch_init(struct batch *batch, int has_peers)
{
	memset(batch, 0, sizeof *batch);
	for (int i = 0; i < BATCH; i++) {
		batch->parts[i] = (struct iovec){ &batch->numbers[i], sizeof batch->numbers[i] };
		batch->messages[i].msg_hdr = (struct msghdr){ .msg_iov = &batch->parts[i], .msg_iovlen = 1 };
		if (has_peers)
			batch->messages[i].msg_hdr.msg_name = &batch->peers[i];
	}
}

static FILE *report(const char *name)
{
	FILE *file = fopen(name, "w");

	if (!file)
		die(name);
	return file;
}

static void send_all(const char *address, uint16_t port, uint64_t pps, const char *name)
{
	static struct batch batch, answers;
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = address_of(address) };
	uint64_t number = 0, failed = 0, begun;
	int fd = udp_socket(SOURCE_PORT);
	struct pace pace;
	FILE *file;

	batch_init(&batch, 0);
	batch_init(&answers, 0);
	if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
		die("connect");
	ready();
	pace = pace_begin(pps);
	begun = pace.begun;
	while (!ended) {
		uint64_t left = pace_next(&pace, number);

		while (left > 0) {
			int count = left < BATCH ? left : BATCH, sent;

			for (int i = 0; i < count; i++)
				batch.numbers[i] = htobe64(number + i);
			sent = sendmmsg(fd, batch.messages, count, 0);
			// A number that did not leave is not sent again: what has left is for the capture to say.
			if (sent <= 0) {
				failed++;
				sent = 1;
			}
			number += sent;
			left -= sent;
		}
		while (recvmmsg(fd, answers.messages, BATCH, MSG_DONTWAIT, NULL) == BATCH)
			;
	}
	file = report(name);
	fprintf(file, "{\"numbers\": %lu, \"failed\": %lu, \"pauses_over_5_ms\": %lu, \"longest_pause_ms\": %.1f, \"pps\": %.0f}\n", number,
		failed, pace.late, pace.longest / 1e6, number * 1e9 / (now_ns(CLOCK_MONOTONIC) - begun));
	fclose(file);
}

static void sink(uint16_t port, uint64_t every, const char *name)
{
	static struct batch batch, answers;
	int fd = udp_socket(port), count = 0;
	uint64_t taken = 0;
	FILE *file;

	batch_init(&batch, 1);
	batch_init(&answers, 1);
	ready();
	go_first();
	while (!ended) {
		int more = 0;

		for (int i = 0; i < BATCH; i++)
			batch.messages[i].msg_hdr.msg_namelen = sizeof batch.peers[i];
		count = recvmmsg(fd, batch.messages, BATCH, MSG_WAITFORONE, NULL);
		for (int i = 0; i < count; i++) {
			if (be64toh(batch.numbers[i]) % every != 0)
				continue;
			answers.numbers[more] = batch.numbers[i];
			answers.peers[more] = batch.peers[i];
			answers.messages[more++].msg_hdr.msg_namelen = sizeof answers.peers[0];
		}
		taken += count > 0 ? count : 0;
		if (more > 0)
			sendmmsg(fd, answers.messages, more, 0);
		// Many at a time: a turn for each datagram would cost more than the datagrams.
		if (!ended && count < BATCH / 4)
			usleep(200);
	}
	file = report(name);
	fprintf(file, "{\"taken\": %lu}\n", taken);
	fclose(file);
}

// ---- watch, judge

enum { NUMBERS = 1 << 28, TICK_NS = 10000, AGAIN = 1 << 16 };

// What is in FILE: this, and for each number when it was first seen, in steps of 10 us from the beginning (0: not yet).
struct record {
	uint64_t begun_ns, packets, drops, highest, again;
	// When numbers came once more, of the first of them.
	uint32_t again_at[AGAIN];
	uint32_t seen[];
};

static const size_t RECORD_BYTES = sizeof(struct record) + (size_t)NUMBERS * 4;

static struct record *record_of(const char *name, int flags)
{
	int fd = open(name, flags, 0644), is_new = flags & O_CREAT;
	struct record *record;

	// A file with holes: room is taken for what is written.
	if (fd < 0 || (is_new && ftruncate(fd, RECORD_BYTES) < 0))
		die(name);
	record = mmap(NULL, RECORD_BYTES, is_new ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
	if (record == MAP_FAILED)
		die(name);
	return record;
}

enum { BLOCK = 1 << 20, BLOCKS = 64, SNAP = 96 };

static void note(struct record *record, const struct tpacket3_hdr *header)
{
	const uint8_t *ip = (const uint8_t *)header + header->tp_net;
	const uint8_t *udp = ip + (ip[0] & 15) * 4;
	uint64_t number, when = header->tp_sec * SECOND_NS + header->tp_nsec;
	uint32_t tick;

	if (udp + 16 > (const uint8_t *)header + header->tp_net + header->tp_snaplen)
		return;
	memcpy(&number, udp + 8, 8);
	number = be64toh(number);
	if (number >= NUMBERS || when < record->begun_ns)
		return;
	record->packets++;
	tick = (when - record->begun_ns) / TICK_NS + 1;
	if (!record->seen[number])
		record->seen[number] = tick;
	else if (record->again++ < AGAIN)
		record->again_at[record->again - 1] = tick;
	if (number > record->highest)
		record->highest = number;
}

static void watch(const char *device, uint16_t port, const char *name)
{
	// udp dst port PORT, unfragmented IPv4: as tcpdump -d has it, on the packet without its Ethernet header.
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 9),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 4),
		BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 0),
		BPF_STMT(BPF_LD | BPF_H | BPF_IND, 2),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, port, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SNAP),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog filter = { sizeof code / sizeof *code, code };
	struct tpacket_req3 request = { .tp_block_size = BLOCK, .tp_block_nr = BLOCKS, .tp_frame_size = 2048,
					.tp_frame_nr = BLOCK / 2048 * BLOCKS, .tp_retire_blk_tov = 20 };
	struct record *record = record_of(name, O_RDWR | O_CREAT | O_TRUNC);
	int fd = socket(AF_PACKET, SOCK_DGRAM, 0), version = TPACKET_V3;
	struct sockaddr_ll own = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
				   .sll_ifindex = if_nametoindex(device) };
	uint8_t *ring;

	record->begun_ns = now_ns(CLOCK_REALTIME);
	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) < 0 ||
	    setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof request) < 0)
		die("packet socket");
	ring = mmap(NULL, (size_t)BLOCK * BLOCKS, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ring == MAP_FAILED || bind(fd, (struct sockaddr *)&own, sizeof own) < 0)
		die(device);
	ready();
	for (unsigned int block = 0;; block = (block + 1) % BLOCKS) {
		struct tpacket_block_desc *desc = (struct tpacket_block_desc *)(ring + (size_t)block * BLOCK);
		struct tpacket_stats_v3 stats;
		socklen_t length = sizeof stats;
		struct tpacket3_hdr *header;

		while (!(__atomic_load_n(&desc->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER)) {
			struct pollfd wait = { .fd = fd, .events = POLLIN };

			poll(&wait, 1, 100);
			if (getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &stats, &length) == 0)
				record->drops += stats.tp_drops;
			if (ended)
				return;
		}
		header = (struct tpacket3_hdr *)((uint8_t *)desc + desc->hdr.bh1.offset_to_first_pkt);
		for (uint32_t i = 0; i < desc->hdr.bh1.num_pkts; i++) {
			note(record, header);
			header = (struct tpacket3_hdr *)((uint8_t *)header + header->tp_next_offset);
		}
		__atomic_store_n(&desc->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
	}
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

// When it was, in ns since 1970; 0: never.
static uint64_t ns_of(const struct record *record, uint32_t tick)
{
	return tick ? record->begun_ns + (uint64_t)(tick - 1) * TICK_NS : 0;
}

// Of the numbers that were sent in this time: how many did not come, and which in a row (the first 20 such rows). Of those that came in
// this time: the longest time without one.
static void judge(const struct record *sent, const struct record *came, uint64_t begin, uint64_t end)
{
	uint32_t *times = malloc(((size_t)came->highest + 1) * sizeof *times);
	uint64_t left_before = begin, left_longest = 0;
	uint64_t all = 0, lost = 0, twice = 0, arrived = 0, first = 0, last = 0, last_at = 0, longest = 0, longest_at = begin, before = begin;
	int rows = 0;

	if (!times)
		die("memory");
	printf("{\"lost_at\": [");
	for (uint64_t number = 0; number <= sent->highest + 1; number++) {
		uint64_t left = number <= sent->highest ? ns_of(sent, sent->seen[number]) : 0;
		int is_within = left >= begin && left < end, is_lost = is_within && !came->seen[number];

		if (is_within && left > left_before && left - left_before > left_longest)
			left_longest = left - left_before;
		if (is_within)
			left_before = left;
		all += is_within;
		lost += is_lost;
		// A row ends with one that came, or with the last one of all.
		if (last && (number > sent->highest || (is_within && !is_lost))) {
			if (rows++ < 20)
				printf("%s{\"first\": %lu, \"last\": %lu, \"at_ms\": %.1f, \"until_ms\": %.1f}", rows > 1 ? ", " : "",
				       first, last - 1, (ns_of(sent, sent->seen[first]) - begin) / 1e6, (last_at - begin) / 1e6);
			last = 0;
		}
		if (is_lost) {
			if (!last)
				first = number;
			last = number + 1;
			last_at = left;
		}
	}
	for (uint64_t number = 0; number <= came->highest; number++) {
		uint64_t when = ns_of(came, came->seen[number]);

		if (when >= begin && when < end)
			times[arrived++] = came->seen[number];
	}
	for (uint64_t i = 0; i < came->again && i < AGAIN; i++)
		twice += ns_of(came, came->again_at[i]) >= begin && ns_of(came, came->again_at[i]) < end;
	qsort(times, arrived, sizeof *times, by_value);
	for (uint64_t i = 0; i <= arrived; i++) {
		uint64_t when = i < arrived ? ns_of(came, times[i]) : end;

		if (when > before && when - before > longest) {
			longest = when - before;
			longest_at = before;
		}
		before = when;
	}
	printf("], \"rows\": %d, \"datagrams\": %lu, \"lost\": %lu, \"twice\": %lu, \"arrived\": %lu, \"longest_ms\": %.2f, \"longest_at_ms\": %.1f, "
	       "\"sent_longest_ms\": %.2f}\n", rows,
	       all, lost, twice, arrived, longest / 1e6, (longest_at - begin) / 1e6, left_longest / 1e6);
}

// ---- flood

static uint32_t sum_of(const void *data, size_t length)
{
	const uint8_t *bytes = data;
	uint32_t sum = 0;

	for (size_t i = 0; i + 1 < length; i += 2)
		sum += bytes[i] << 8 | bytes[i + 1];
	return sum;
}

static void put_sum(uint8_t *at, uint32_t sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = ~((sum & 0xffff) + (sum >> 16));
	at[0] = sum >> 8;
	at[1] = sum;
}

static uint64_t xorshift(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

// Ethernet is the kernel's to add (SOCK_DGRAM); IPv4 and TCP are these 40 bytes.
static void flood(const char *device, const char *mac, const char *address, uint16_t port, uint64_t pps)
{
	static uint8_t packets[BATCH][40];
	struct mmsghdr messages[BATCH];
	struct iovec parts[BATCH];
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP), .sll_halen = 6,
				  .sll_ifindex = if_nametoindex(device) };
	struct in_addr target = address_of(address);
	uint64_t state = now_ns(CLOCK_REALTIME) | 1, sent = 0;
	int fd = socket(AF_PACKET, SOCK_DGRAM, 0), one = 1;
	struct pace pace;

	if (sscanf(mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &to.sll_addr[0], &to.sll_addr[1], &to.sll_addr[2], &to.sll_addr[3],
		   &to.sll_addr[4], &to.sll_addr[5]) != 6 || fd < 0)
		die(mac);
	setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one);
	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){ packets[i], sizeof packets[i] };
		messages[i].msg_hdr = (struct msghdr){ .msg_iov = &parts[i], .msg_iovlen = 1, .msg_name = &to, .msg_namelen = sizeof to };
	}
	ready();
	pace = pace_begin(pps);
	while (!ended) {
		uint64_t left = pace_next(&pace, sent);

		while (left > 0) {
			int count = left < BATCH ? left : BATCH, done;

			for (int i = 0; i < count; i++) {
				uint8_t *ip = packets[i], *tcp = ip + 20;
				uint64_t random = xorshift(&state);
				uint16_t source_port = htons(1024 + random % 64000), target_port = htons(port);

				memset(ip, 0, 40);
				memcpy(ip, "\x45\x00\x00\x28\x00\x00\x40\x00\x40\x06", 10);
				memcpy(ip + 12, &random, 4);
				ip[12] = 20;
				memcpy(ip + 16, &target, 4);
				memcpy(tcp, &source_port, 2);
				memcpy(tcp + 2, &target_port, 2);
				random = xorshift(&state);
				memcpy(tcp + 4, &random, 4);
				memcpy(tcp + 12, "\x50\x02\xfa\xf0", 4);
				put_sum(ip + 10, sum_of(ip, 20));
				put_sum(tcp + 16, sum_of(ip + 12, 8) + IPPROTO_TCP + 20 + sum_of(tcp, 20));
			}
			done = sendmmsg(fd, messages, count, 0);
			sent += done > 0 ? done : 1;
			left -= done > 0 ? done : 1;
		}
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	struct sigaction term = { .sa_handler = on_term };

	sigaction(SIGTERM, &term, NULL);
	if (!strcmp(what, "send") && argc == 6)
		send_all(argv[2], atoi(argv[3]), strtoull(argv[4], NULL, 10), argv[5]);
	else if (!strcmp(what, "sink") && argc == 5)
		sink(atoi(argv[2]), strtoull(argv[3], NULL, 10), argv[4]);
	else if (!strcmp(what, "watch") && argc == 5)
		watch(argv[2], atoi(argv[3]), argv[4]);
	else if (!strcmp(what, "judge") && argc == 6)
		judge(record_of(argv[2], O_RDONLY), record_of(argv[3], O_RDONLY), strtod(argv[4], NULL) * 1e9, strtod(argv[5], NULL) * 1e9);
	else if (!strcmp(what, "flood") && argc == 7)
		flood(argv[2], argv[3], argv[4], atoi(argv[5]), strtoull(argv[6], NULL, 10));
	else {
		fputs("datagrams: send, sink, watch, judge or flood: see scripts/lab.d/datagrams.c\n", stderr);
		return 2;
	}
	return 0;
}
