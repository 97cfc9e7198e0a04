//! The two gateways: the kernel's in a namespace, and `softgate replay`. Both take frames and tell what came out.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pcap_file::TsResolution;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};

use super::packet::{self, End, Header, L2, UDP};
use super::plan::{self, LAN, LINKS, MTUS, OWN, ROUTES, Random, WAN};
use super::xdp_lab::{Wire, enter};

/// A frame and the link it is on.
pub type OnLink = (usize, Vec<u8>);

/// Frames on their way through the kernel at once: fewer than a CPU's backlog holds (`netdev_max_backlog`, 1000), so
/// that none is lost between the wires.
const WINDOW: usize = 200;
/// The kernel is given this long for a window. It takes a millisecond; the machine may do other things meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// Sends a datagram through the gateway, which no rule touches: when it arrives, all before it have passed.
const WATCHMAN: (&str, &str) = ("2001:db8:1::251", "2001:db8:ff::1");
const WATCHMAN_PORT: u16 = 9;

/// Settings of the kernel's gateway, each with a reason.
const SETTINGS: [(&str, &str); 32] = [
    // A link-local address would have the kernel say things by itself.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    // SoftGate's `source_check` is off as well.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // SoftGate sends none: they tell hosts of a shorter way, and change nothing about a packet.
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    // No limits on errors: each is compared.
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    // RFC 6437 section 3: a flow label is optional.
    ("net/ipv6/auto_flowlabels", "0"),
    // RFC 5382 REQ-2: as SoftGate's `loose_tcp = false`.
    ("net/netfilter/nf_conntrack_tcp_loose", "0"),
    // A router does not look at upper checksums (RFC 1812 section 5.2.2): SoftGate neither.
    ("net/netfilter/nf_conntrack_checksum", "0"),
    // The kernel lives in real time, and a test may be held up; SoftGate lives in the capture's.
    ("net/netfilter/nf_conntrack_udp_timeout", "36000"),
    ("net/netfilter/nf_conntrack_udp_timeout_stream", "36000"),
    ("net/netfilter/nf_conntrack_icmp_timeout", "36000"),
    ("net/netfilter/nf_conntrack_icmpv6_timeout", "36000"),
    ("net/netfilter/nf_conntrack_generic_timeout", "36000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_syn_sent", "36000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_syn_recv", "36000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_fin_wait", "36000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "36000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_last_ack", "36000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "36000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_close", "36000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_unacknowledged", "36000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_max_retrans", "36000"),
    ("net/netfilter/nf_conntrack_gre_timeout", "36000"),
    ("net/netfilter/nf_conntrack_gre_timeout_stream", "36000"),
    ("net/netfilter/nf_conntrack_frag6_timeout", "36000"),
    ("net/ipv4/ipfrag_time", "36000"),
];

/// The kernel as a gateway between three veth pairs; gone when dropped, also by a panic.
pub struct Kernel {
    name: String,
    wires: Vec<Wire>,
    windows: u16,
}

impl Kernel {
    /// Up, with these rules of nftables.
    pub fn up(ruleset: &str) -> Kernel {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut kernel =
            Kernel { name: format!("sgk-{}-{number}", std::process::id()), wires: Vec::new(), windows: 0 };
        kernel.build(ruleset);
        kernel
    }

    fn namespace(&self, side: &str) -> String {
        format!("{}-{side}", self.name)
    }

    fn build(&mut self, ruleset: &str) {
        let (gateway, hosts) = (self.namespace("gw"), self.namespace("hosts"));
        for name in [&gateway, &hosts] {
            run("ip", &["netns", "add", name], "");
        }
        // No station has a stack of its own: it would answer.
        in_namespace(&hosts, || set("net/ipv6/conf/default/disable_ipv6", "1"));
        // Before there are devices, which take them over.
        in_namespace(&gateway, || SETTINGS.iter().for_each(|(name, value)| set(name, value)));
        let mut links = String::from("link set lo up\n");
        for (link, device) in LINKS.into_iter().enumerate() {
            let (mac, mtu) = (plan::mac_text(plan::gateway_mac(link)), MTUS[link]);
            links += &format!(
                "link add {device} address {mac} mtu {mtu} type veth peer name {device} mtu 1500 netns {hosts}\n\
                 addr add {} dev {device}\naddr add {} dev {device} nodad\nlink set {device} up\n",
                OWN[link][0], OWN[link][1]
            );
        }
        run("ip", &["-n", &gateway, "-batch", "-"], &links);
        let up: String = LINKS.map(|device| format!("link set {device} up\n")).concat();
        run("ip", &["-n", &hosts, "-batch", "-"], &up);
        let mut rest = String::new();
        for (prefix, via) in ROUTES {
            rest += &format!("route add {prefix} via {via}\n");
        }
        rest += &format!("route add blackhole {}\n", plan::BLACKHOLE);
        for (link, addr) in plan::neighbours() {
            let mac = plan::mac_text(plan::station_mac(addr));
            rest += &format!("neigh replace {addr} lladdr {mac} dev {} nud permanent\n", LINKS[link]);
        }
        run("ip", &["-n", &gateway, "-batch", "-"], &rest);
        for (name, device) in
            [&gateway, &hosts].into_iter().flat_map(|name| LINKS.map(|device| (name, device)))
        {
            // Every frame on the wires is as it would be on a real one: whole, with its checksums.
            let off = ["tx", "off", "rx", "off", "gso", "off", "gro", "off", "tso", "off"];
            let command = [&["netns", "exec", name, "ethtool", "-K", device][..], &off].concat();
            run("ip", &command, "");
        }
        run("ip", &["netns", "exec", &gateway, "nft", "-f", "-"], ruleset);
        self.wires = in_namespace(&hosts, || LINKS.map(Wire::open).into());
    }

    /// Sends the frames, each on its link, one after the other.
    pub fn pass(&mut self, frames: &[OnLink]) -> Vec<OnLink> {
        std::thread::scope(|scope| {
            // One CPU: what is sent, forwarded and received there stays in order, and a window is one backlog.
            let work = scope.spawn(|| {
                if let Some(cpu) = core_affinity::get_core_ids().and_then(|all| all.first().copied()) {
                    core_affinity::set_for_current(cpu);
                }
                let mut all = Vec::new();
                for window in frames.chunks(WINDOW) {
                    self.window(window, &mut all);
                }
                all
            });
            work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn window(&mut self, frames: &[OnLink], all: &mut Vec<OnLink>) {
        for (link, frame) in frames {
            self.wires[*link].send(frame);
        }
        self.windows = self.windows.wrapping_add(1);
        self.wires[LAN].send(&watchman(self.windows));
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 4096];
        let mut passed = false;
        while !passed {
            assert!(Instant::now() < deadline, "the kernel did not forward the watchman within {PATIENCE:?}");
            for (link, wire) in self.wires.iter().enumerate() {
                // The uplink is where the watchman comes out; what others got was there before him.
                let mut patience = Duration::from_millis(if link == WAN { 100 } else { 0 });
                while let Some(frame) = wire.receive(&mut buffer, patience) {
                    patience = Duration::ZERO;
                    if link == WAN && is_watchman(frame) {
                        passed |= packet::number_of(&frame[L2..]) == self.windows;
                    } else if !is_noise(frame) {
                        all.push((link, frame.to_vec()));
                    }
                }
            }
        }
        // The order in which the wires were looked at: once more those before the uplink.
        for (link, wire) in self.wires.iter().enumerate() {
            while let Some(frame) = wire.receive(&mut buffer, Duration::ZERO) {
                if !is_noise(frame) {
                    all.push((link, frame.to_vec()));
                }
            }
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        for side in ["gw", "hosts"] {
            let _ = Command::new("ip").args(["netns", "del", &self.namespace(side)]).output();
        }
    }
}

/// Takes away what a process left that was killed.
fn sweep() {
    let listed = Command::new("ip").args(["netns", "list"]).output().expect("ip runs");
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix("sgk-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn watchman(number: u16) -> Vec<u8> {
    let (src, dst) = (WATCHMAN.0.parse().expect("an address"), WATCHMAN.1.parse().expect("an address"));
    let header = Header { ttl: 64, tos: 0, df: true, options: Vec::new() };
    let upper = [WATCHMAN_PORT, WATCHMAN_PORT, 8, 0].map(u16::to_be_bytes).concat();
    let mut ip = packet::ip_packet(src, dst, UDP, &header, number, &upper);
    packet::fill_checksum(&mut ip);
    packet::frame(plan::station_mac(src), plan::gateway_mac(LAN), &ip, 0)
}

fn is_watchman(frame: &[u8]) -> bool {
    let watchman = End { addr: WATCHMAN.0.parse().expect("an address"), port: WATCHMAN_PORT };
    frame[12..14] == [0x86, 0xdd] && packet::end(&frame[L2..], packet::Which::Src) == watchman
}

/// Multicast listener reports: what a kernel says on its own account. No packet of a flow goes to a group.
fn is_noise(frame: &[u8]) -> bool {
    frame[0] & 1 != 0
}

fn set(name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn in_namespace<R: Send>(name: &str, work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(name);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run(program: &str, arguments: &[&str], input: &str) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let done = child.wait_with_output().expect("our own child");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {}: {said}", arguments.join(" "));
}

/// `softgate replay`: what came before is replayed again, with the new frames behind it. It is deterministic, so
/// that the new frames meet the state that the old ones left.
pub struct Replay {
    dir: tempfile::TempDir,
    workers: usize,
    random: Random,
    captures: Vec<PcapWriter<fs::File>>,
    sent: [bool; 3],
    now: Duration,
    /// Frames that came out on each link before.
    known: [usize; 3],
}

/// 2026-01-01.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);
/// Between two bursts.
const TICK: Duration = Duration::from_micros(10);
/// Frames that arrive together at most.
const BURST: usize = 20;

impl Replay {
    pub fn new(workers: usize) -> Replay {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("gw.toml"), plan::config()).expect("the config");
        let header = PcapHeader { ts_resolution: TsResolution::NanoSecond, ..PcapHeader::default() };
        let capture = |name| {
            let file = fs::File::create(dir.path().join(format!("{name}.pcap"))).expect("a capture");
            PcapWriter::with_header(file, header).expect("a capture")
        };
        let captures = LINKS.map(capture).into();
        Replay { dir, workers, random: Random::new(4), captures, sent: [false; 3], now: EPOCH, known: [0; 3] }
    }

    /// Sends the frames, each on its link, one after the other; those next to each other on one link in bursts.
    pub fn pass(&mut self, frames: &[OnLink]) -> Vec<OnLink> {
        let (mut left, mut last) = (0, usize::MAX);
        for (link, frame) in frames {
            if left == 0 || *link != last {
                (left, last) = (self.random.within(1, BURST), *link);
                self.now += TICK;
            }
            left -= 1;
            let packet = PcapPacket::new(self.now, frame.len() as u32, frame);
            self.captures[*link].write_packet(&packet).expect("the capture grows");
            self.sent[*link] = true;
        }
        let path = |name: &str| self.dir.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_softgate"));
        command.arg("replay").arg("--config").arg(path("gw.toml")).arg("--out").arg(path("out"));
        for link in LINKS.into_iter().enumerate().filter(|(link, _)| self.sent[*link]).map(|(_, name)| name) {
            command.arg("--in").arg(format!("{link}={}", path(&format!("{link}.pcap")).display()));
        }
        command.arg("--workers").arg(self.workers.to_string());
        let done = command.output().expect("softgate runs");
        assert!(done.status.success(), "softgate replay: {}", String::from_utf8_lossy(&done.stderr));
        let mut all = Vec::new();
        for (link, name) in LINKS.into_iter().enumerate() {
            let Ok(bytes) = fs::read(path(&format!("out/{name}.pcap"))) else { continue };
            let mut reader = PcapReader::new(&bytes[..]).expect("a capture");
            let mut count = 0;
            while let Some(packet) = reader.next_packet() {
                let packet = packet.expect("a packet");
                if count >= self.known[link] {
                    all.push((link, packet.data.into_owned()));
                }
                count += 1;
            }
            self.known[link] = count;
        }
        all
    }
}
