//! What an operator needs to know of a device: the [facts](DeviceFacts) of [`probe`] as
//! one finding per subject, with what is lost and what to type.
//!
//! Pure but for [`explain_bind_failure`]: facts in, findings out, so that every sentence can be tested
//! without the card it is about.

use std::fmt;

use super::accept::Admission;
use super::channels::{AttachObstacle, VETH_SINGLE_BUFFER_MTU, veth_obstacle};
use super::ethtool::HIDING;
use super::probe::{self, Depth, DeviceFacts, HostFacts, Trial};
use super::watch::{LinkKind, XdpMode};

/// Capabilities `run` needs: bit (linux/capability.h), name, what needs it.
const NEEDED: [(u32, &str, &str); 4] = [
    (39, "CAP_BPF", "loading the XDP program"),
    (12, "CAP_NET_ADMIN", "attaching it, setting offloads"),
    (13, "CAP_NET_RAW", "AF_XDP sockets"),
    (14, "CAP_IPC_LOCK", "packet memory beyond the memlock limit"),
];
/// Stands in for CAP_BPF.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_IPC_LOCK: u32 = 14;
/// Locked memory without CAP_IPC_LOCK that a small gateway gets by with: two ports of one queue.
const SMALL_MEMLOCK_BYTES: u64 = 64 << 20;
/// A ring shorter than this loses frames when the worker is held up for half a millisecond at 2 Mpps.
const SHORT_RING: u32 = 1024;
/// bpf_link for XDP: `run` attaches by it, so that nothing stays behind.
const KERNEL_BPF_LINK: (u32, u32) = (5, 9);
/// AF_XDP with frames in several parts.
const KERNEL_MULTI_BUFFER: (u32, u32) = (6, 6);

/// How it stands with one subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Nothing is lost.
    Works,
    /// The gateway runs, and loses something.
    Reduced,
    /// The gateway cannot run, or would not pass frames.
    Broken,
    /// It could not be found out.
    Unknown,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Works => "works",
            Self::Reduced => "reduced",
            Self::Broken => "broken",
            Self::Unknown => "unknown",
        })
    }
}

/// One subject: how it stands, what that costs, what to type.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What it is about, in one or two words.
    pub subject: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub says: String,
    /// What is lost by it.
    pub loses: Option<String>,
    /// What to type to mend it.
    pub mend: Option<String>,
}

impl Finding {
    fn new(subject: &'static str, status: Status, says: impl Into<String>) -> Self {
        Self { subject, status, says: says.into(), loses: None, mend: None }
    }

    fn loses(self, loses: impl Into<String>) -> Self {
        Self { loses: Some(loses.into()), ..self }
    }

    fn mend(self, mend: impl Into<String>) -> Self {
        Self { mend: Some(mend.into()), ..self }
    }
}

/// The findings about machine and process, in the order they are shown.
pub fn of_host(host: &HostFacts) -> Vec<Finding> {
    vec![kernel(host), cpu(host), capabilities(host), memlock(host), af_xdp(host), pages(host), jit(host)]
}

/// The findings about one device, in the order they are shown.
pub fn of_device(facts: &DeviceFacts) -> Vec<Finding> {
    let mut list = vec![link(facts), driver(facts), in_use(facts), queues(facts)];
    list.extend([native(facts), generic(facts), zero_copy(facts), multi_buffer(facts)]);
    list.extend([offloads(facts), rings(facts)]);
    list.extend(checksums(facts));
    list.extend(facts.admission.map(|admission| admitted(&facts.device, admission)));
    list.extend([addresses(facts), forwarding(facts), ipv6(facts)]);
    list
}

/// The findings as aligned text: status, subject, what is said; below it what is lost and what to type.
pub fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.subject.len()).max().unwrap_or(0).max("loses".len());
    let mut out = String::new();
    for Finding { subject, status, says, loses, mend } in findings {
        out += &format!("  {status:<8} {subject:<width$}  {says}\n");
        for (label, line) in [("loses", loses), ("mend", mend)] {
            if let Some(line) = line {
                out += &format!("  {:<8} {label:>width$}  {line}\n", "");
            }
        }
    }
    out
}

/// Why `device` could not be bound, for people: `error` is what the attempt ended with. Only asks; the
/// device is not touched.
pub fn explain_bind_failure(device: &str, error: &str) -> String {
    let mut out = format!("cannot use {device}: {error}\n");
    let facts = match probe::device(device, Depth::Ask) {
        Ok(facts) => facts,
        Err(gone) => {
            out += &text(&[missing(device, &gone)]);
            return out;
        }
    };
    let errno = errno_in(error);
    let because = errno.and_then(|errno| because(&facts, errno));
    let subject = because.as_ref().map(|finding| finding.subject);
    let rest = of_device(&facts).into_iter().chain(of_host(&probe::host()));
    let matters = |finding: &Finding| {
        matches!(finding.status, Status::Broken | Status::Reduced) && Some(finding.subject) != subject
    };
    let list: Vec<Finding> = because.into_iter().chain(rest.filter(matters)).collect();
    out += &text(&list);
    out += &format!("  `softgate doctor {device}` tries everything out once the device is free.\n");
    out
}

/// There is no such device.
pub fn missing(device: &str, error: &std::io::Error) -> Finding {
    if error.raw_os_error() == Some(libc::ENODEV) {
        return Finding::new(
            "device",
            Status::Broken,
            format!("there is no device {device} in this network namespace"),
        )
        .loses("the port stays down until it appears")
        .mend("ip -br link    (shows the devices there are; `ip netns list` the other namespaces)");
    }
    Finding::new("device", Status::Unknown, format!("the kernel does not answer about {device}: {error}"))
}

/// The number in "... (os error 28)", as std prints it, or after the words "errno".
fn errno_in(error: &str) -> Option<i32> {
    let after = ["os error ", "errno ", "errno="].iter().find_map(|mark| Some(error.rsplit_once(mark)?.1))?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// What an attach or bind that ended with `errno` means on this device.
fn because(facts: &DeviceFacts, errno: i32) -> Option<Finding> {
    let device = &facts.device;
    let broken = |subject, says: String| Finding::new(subject, Status::Broken, says);
    Some(match errno {
        libc::EPERM | libc::EACCES => broken(
            "capabilities",
            "the kernel does not permit it to this process".into(),
        )
        .loses("nothing can be attached or bound")
        .mend("run as root, or: setcap cap_bpf,cap_net_admin,cap_net_raw,cap_ipc_lock+ep SOFTGATE-BINARY"),
        libc::EBUSY | libc::EEXIST => broken(
            "in use",
            "somebody else has the device or a queue of it, or a process that died had it a moment ago"
                .into(),
        )
        .loses("two programs cannot share a device")
        .mend(format!("stop the other one; for what was left behind: {}", detach(facts))),
        libc::ENOSPC | libc::ERANGE => native_refused(facts, errno),
        libc::EOPNOTSUPP => broken("native XDP", "the driver does not have the mode asked for".into())
            .loses("the port cannot run in this mode")
            .mend(format!("mode = \"auto\" for the port of {device}")),
        libc::ENOMEM | libc::ENOBUFS => {
            broken("memlock", "the kernel gives no more memory for packet buffers".into())
                .loses("the queue cannot be opened")
                .mend("ulimit -l unlimited, or run with CAP_IPC_LOCK; fewer queues need less")
        }
        libc::ENETDOWN => broken("link", format!("{device} is switched off"))
            .loses("no frame passes")
            .mend(format!("ip link set {device} up")),
        libc::ENODEV | libc::ENXIO => broken("device", format!("{device} went away meanwhile"))
            .loses("the port stays down until it returns"),
        libc::ENOTCONN => broken("link", format!("{device} has lost its other end"))
            .loses("no frame passes")
            .mend(format!("ip link del {device}, and create the pair again")),
        libc::EINVAL => broken(
            "queues",
            format!(
                "the kernel found an argument invalid; {device} has {} receive queues",
                facts.state.rx_queues
            ),
        )
        .loses("the queue cannot be opened")
        .mend(format!("ethtool -l {device}    (a queue beyond those in use cannot be bound)")),
        _ => return None,
    })
}

fn kernel(host: &HostFacts) -> Finding {
    let says = format!("Linux {}", host.kernel);
    let mut numbers = host.kernel.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let finding = |status| Finding::new("kernel", status, says.clone());
    if version == (0, 0) {
        finding(Status::Unknown)
    } else if version < KERNEL_BPF_LINK {
        finding(Status::Broken)
            .loses("the XDP program cannot be attached by a bpf_link")
            .mend("a kernel from 5.9 on; 6.6 is better")
    } else if version < KERNEL_MULTI_BUFFER {
        finding(Status::Reduced)
            .loses(format!("no frames in several parts: the MTU stays below {VETH_SINGLE_BUFFER_MTU}"))
            .mend("a kernel from 6.6 on")
    } else {
        finding(Status::Works)
    }
}

fn cpu(host: &HostFacts) -> Finding {
    let has = |has, name| if has { name } else { "" };
    let says = [host.cpu.as_str(), has(host.avx2, "AVX2"), has(host.avx512, "AVX-512")];
    let says: Vec<&str> = says.into_iter().filter(|word| !word.is_empty()).collect();
    let finding = |status| Finding::new("cpu", status, says.join(", "));
    match (host.avx2, host.avx512) {
        (true, true) => finding(Status::Works),
        (true, false) => finding(Status::Reduced).loses("IPv6 and burst look-ups take the slower way"),
        (false, _) => finding(Status::Broken)
            .loses("this build needs AVX2 and ends with an illegal instruction")
            .mend("RUSTFLAGS=\"-C target-cpu=native\" cargo build --release"),
    }
}

fn capabilities(host: &HostFacts) -> Finding {
    let has = |bit: u32| host.capabilities & (1 << bit) != 0;
    let held = |bit: u32| has(bit) || (bit == 39 && has(CAP_SYS_ADMIN));
    let lacks: Vec<_> = NEEDED.iter().filter(|(bit, ..)| !held(*bit)).collect();
    if lacks.is_empty() {
        return Finding::new("capabilities", Status::Works, NEEDED.map(|(_, name, _)| name).join(", "));
    }
    // Without CAP_IPC_LOCK alone it goes on, within the limit that `memlock` tells.
    let only_lock = lacks.iter().all(|(bit, ..)| *bit == CAP_IPC_LOCK);
    let names: Vec<&str> = lacks.iter().map(|(_, name, _)| *name).collect();
    let needs: Vec<&str> = lacks.iter().map(|(.., what)| *what).collect();
    Finding::new(
        "capabilities",
        if only_lock { Status::Reduced } else { Status::Broken },
        format!("this process lacks {}", names.join(", ")),
    )
    .loses(needs.join("; "))
    .mend("run as root, or: setcap cap_bpf,cap_net_admin,cap_net_raw,cap_ipc_lock+ep SOFTGATE-BINARY")
}

fn memlock(host: &HostFacts) -> Finding {
    let locks = host.capabilities & (1 << CAP_IPC_LOCK) != 0;
    match host.memlock_bytes {
        None => Finding::new("memlock", Status::Works, "unlimited"),
        Some(bytes) if locks => {
            let says = format!("{} MB, and CAP_IPC_LOCK lifts it", bytes >> 20);
            Finding::new("memlock", Status::Works, says)
        }
        Some(bytes) => {
            let status = if bytes < SMALL_MEMLOCK_BYTES { Status::Broken } else { Status::Reduced };
            Finding::new("memlock", status, format!("{} MB of packet memory may be locked", bytes >> 20))
                .loses("ports and queues beyond it cannot be opened")
                .mend("ulimit -l unlimited (systemd: LimitMEMLOCK=infinity), or CAP_IPC_LOCK")
        }
    }
}

fn af_xdp(host: &HostFacts) -> Finding {
    match (host.af_xdp, host.tx_budget) {
        (Trial::Failed(libc::EAFNOSUPPORT), _) => {
            Finding::new("af_xdp", Status::Broken, "this kernel has no AF_XDP sockets")
                .loses("no device can be used")
                .mend("a kernel with CONFIG_XDP_SOCKETS=y")
        }
        (Trial::Failed(errno), _) => {
            Finding::new("af_xdp", Status::Unknown, format!("a socket cannot be made: {}", refusal(errno)))
        }
        (_, Trial::Works) => Finding::new("af_xdp", Status::Works, "sockets; 256 frames per transmit call"),
        (..) => Finding::new("af_xdp", Status::Reduced, "sockets; 32 frames per transmit call in copy mode")
            .loses("about a tenth of the packet rate where frames are copied")
            .mend("a kernel with XDP_MAX_TX_SKB_BUDGET (6.18 has it)"),
    }
}

fn pages(host: &HostFacts) -> Finding {
    let (all, free) = host.huge_pages;
    let reserved = format!("{free} of {all} reserved 2 MB pages free");
    match host.thp.as_str() {
        "always" | "madvise" => {
            Finding::new("huge pages", Status::Works, format!("transparent: {}; {reserved}", host.thp))
        }
        _ if free > 0 => Finding::new("huge pages", Status::Works, format!("transparent: never; {reserved}")),
        _ => Finding::new("huge pages", Status::Reduced, format!("transparent: never; {reserved}"))
            .loses("large tables miss the TLB: up to half the look-up rate with a million routes")
            .mend("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
    }
}

fn jit(host: &HostFacts) -> Finding {
    match host.bpf_jit {
        Some(true) => Finding::new("bpf jit", Status::Works, "programs are compiled"),
        Some(false) => Finding::new("bpf jit", Status::Reduced, "programs are interpreted")
            .loses("several times the cost of the XDP program for every frame")
            .mend("sysctl -w net/core/bpf_jit_enable=1"),
        None => {
            Finding::new("bpf jit", Status::Unknown, "only root in the first network namespace may read it")
        }
    }
}

fn link(facts: &DeviceFacts) -> Finding {
    let (state, device) = (&facts.state, &facts.device);
    let mac = state.mac.map(|byte| format!("{byte:02x}")).join(":");
    let says = format!("MTU {}, {mac}, ifindex {}", state.mtu_bytes, state.ifindex);
    if state.kind == LinkKind::Loopback {
        return Finding::new("link", Status::Broken, "this is the loopback device")
            .loses("no frame from outside comes this way")
            .mend("name the device the servers are connected to");
    }
    if !state.admin_up {
        return Finding::new("link", Status::Broken, format!("switched off; {says}"))
            .loses("no frame passes")
            .mend(format!("ip link set {device} up"));
    }
    if !state.carrier {
        return Finding::new("link", Status::Reduced, format!("no carrier; {says}"))
            .loses("no frame passes until the other end is there")
            .mend(format!("check cable and far port; ethtool {device} says what the card sees"));
    }
    if let Some(master) = state.master {
        return Finding::new(
            "link",
            Status::Reduced,
            format!("belongs to the kernel's device {master}; {says}"),
        )
        .loses("the kernel's bridge or bond sees none of the frames the gateway takes")
        .mend(format!("ip link set {device} nomaster"));
    }
    Finding::new("link", Status::Works, format!("up; {says}"))
}

fn driver(facts: &DeviceFacts) -> Finding {
    let Some(driver) = &facts.driver else {
        return Finding::new("driver", Status::Unknown, "the driver does not tell its name");
    };
    let mut says = driver.driver.clone();
    for (label, word) in [("firmware", &driver.firmware), ("at", &driver.bus)] {
        if !word.is_empty() && word != "N/A" {
            says += &format!(", {label} {word}");
        }
    }
    Finding::new("driver", Status::Works, says)
}

/// How to take away what sits on the device.
fn detach(facts: &DeviceFacts) -> String {
    let mode = match facts.state.xdp.map(|xdp| xdp.mode) {
        Some(XdpMode::Generic) => "xdpgeneric",
        Some(XdpMode::Offloaded) => "xdpoffload",
        Some(XdpMode::Native) => "xdpdrv",
        Some(XdpMode::Several) | None => "xdp",
    };
    format!(
        "ip link set {} {mode} off    (if refused, a bpf_link holds it: `bpftool link` shows whose)",
        facts.device
    )
}

fn in_use(facts: &DeviceFacts) -> Finding {
    let program = facts.state.xdp.map(|xdp| {
        let mode = match xdp.mode {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
            XdpMode::Offloaded => "offloaded",
            XdpMode::Several => "in several modes",
        };
        format!("XDP program {} ({mode})", xdp.program_id)
    });
    let sockets = facts.sockets.as_deref().unwrap_or_default();
    let queues: Vec<String> = sockets.iter().map(u32::to_string).collect();
    let queues = format!("AF_XDP sockets on queue {}", queues.join(", "));
    const UNTRIED: &str = "another gateway cannot take it; modes were not tried, to leave it undisturbed";
    match (program, sockets.is_empty()) {
        (None, true) if facts.sockets.is_none() => {
            Finding::new("in use", Status::Works, "free: no XDP program (sockets could not be looked for)")
        }
        (None, true) => Finding::new("in use", Status::Works, "free: no XDP program, no AF_XDP socket"),
        (Some(program), false) => Finding::new(
            "in use",
            Status::Reduced,
            format!("in use by a running gateway: {program}, {queues}"),
        )
        .loses(UNTRIED)
        .mend("stop it first, if the device is meant for another"),
        (None, false) => Finding::new("in use", Status::Reduced, format!("in use: {queues}"))
            .loses(UNTRIED)
            .mend("stop the program they belong to: ss --xdp -p"),
        (Some(program), true) if facts.sockets.is_some() => Finding::new(
            "in use",
            Status::Broken,
            format!("{program} without AF_XDP sockets: left behind, or another's"),
        )
        .loses("no program of ours can be attached; modes were not tried")
        .mend(detach(facts)),
        (Some(program), true) => Finding::new("in use", Status::Reduced, format!("in use: {program}"))
            .loses(UNTRIED)
            .mend(format!("stop the program it belongs to; if none runs: {}", detach(facts))),
    }
}

fn queues(facts: &DeviceFacts) -> Finding {
    let (state, device) = (&facts.state, &facts.device);
    let most = facts.channels.map_or(state.rx_queues, |c| (c.rx_max + c.combined_max).max(c.rx_queues()));
    let says = format!("{} receive, {} transmit; {most} possible", state.rx_queues, state.tx_queues);
    if state.rx_queues > 1 || most <= 1 {
        return Finding::new("queues", Status::Works, says);
    }
    let kind = if facts.channels.is_some_and(|c| c.combined_max > 0) { "combined" } else { "rx" };
    Finding::new("queues", Status::Reduced, says)
        .loses("one worker takes all of this device's traffic")
        .mend(format!("ethtool -L {device} {kind} {most}    (as many as there are workers)"))
}

/// Why a native attach ended with `errno`, and what mends it.
fn native_refused(facts: &DeviceFacts, errno: i32) -> Finding {
    let device = &facts.device;
    let refused = |says: String| Finding::new("native XDP", Status::Broken, says);
    let rx = facts.state.rx_queues;
    let obstacle = facts.veth_peer.as_ref().and_then(|peer| veth_obstacle(rx, peer, errno != libc::ERANGE));
    match (errno, obstacle) {
        (libc::ENOSPC, Some(obstacle @ AttachObstacle::PeerQueues { .. }))
        | (libc::ERANGE, Some(obstacle @ AttachObstacle::PeerMtu { .. })) => {
            refused(obstacle.to_string()).mend(obstacle.mend(device))
        }
        (libc::ENOSPC, _) => refused("the driver has too few queues for it".into()).mend(format!(
            "ethtool -L {device} combined N    (fewer, for cards; veth: rx as many as the peer's tx)"
        )),
        (libc::ERANGE, _) => refused(format!("MTU {} is too large for this driver", facts.state.mtu_bytes))
            .mend(format!("ip link set {device} mtu 1500    (raise it until it is refused)")),
        (libc::EPERM | libc::EACCES, _) => refused("the kernel does not permit it (see capabilities)".into()),
        (libc::EBUSY | libc::EEXIST, _) => refused("another program is attached".into()).mend(detach(facts)),
        (libc::EOPNOTSUPP, _) if facts.declared.is_some_and(|declared| declared.native) => {
            // virtio_net, for one, while the hypervisor merges segments for it.
            refused("the driver has native XDP, but not with these offloads".into()).mend(format!(
                "ethtool -K {device} lro off rx-gro-hw off    (virtual machines: guest_tso4=off,guest_tso6=off on the host)"
            ))
        }
        (libc::EOPNOTSUPP, _) => refused("the driver has no native XDP".into()),
        (libc::EINVAL, _) => refused(
            "the driver refuses it with these settings (offloads, MTU or queues)".into(),
        )
        .mend(format!(
            "ethtool -K {device} lro off rx-gro-hw off; dmesg | tail    (drivers tell the reason there)"
        )),
        (libc::ENOTCONN, _) => refused("the pair has lost its other end".into()),
        (errno, _) => refused(format!("the kernel refuses it: {}", refusal(errno))),
    }
}

/// The kernel's error in words, never a bare number.
fn refusal(errno: i32) -> String {
    let words = std::io::Error::from_raw_os_error(errno).to_string();
    words.split(" (os error").next().unwrap_or_default().to_lowercase()
}

const NOT_TRIED: &str = "not tried";

/// Not tried: what the driver declares is all there is.
fn by_declaration(
    facts: &DeviceFacts,
    subject: &'static str,
    has: impl Fn(&probe::DeclaredXdp) -> bool,
) -> Finding {
    let says = match facts.declared.as_ref().map(has) {
        Some(true) => format!("{NOT_TRIED}; the driver declares it"),
        Some(false) => format!("{NOT_TRIED}; the driver does not declare it"),
        None => NOT_TRIED.into(),
    };
    Finding::new(subject, Status::Unknown, says)
}

fn is_forbidden(trial: Trial) -> bool {
    matches!(trial, Trial::Failed(libc::EPERM | libc::EACCES))
}

fn native(facts: &DeviceFacts) -> Finding {
    // `run` attaches a program that takes frames in parts, and one that does not where that is refused.
    let best = match (facts.native_frags, facts.native) {
        (Trial::Works, _) => Trial::Works,
        (Trial::Failed(errno), Trial::Failed(_)) if errno != libc::EOPNOTSUPP => facts.native_frags,
        _ => facts.native,
    };
    match best {
        Trial::Works => Finding::new("native XDP", Status::Works, "a program runs in the driver"),
        Trial::NotTried => by_declaration(facts, "native XDP", |declared| declared.native),
        Trial::Failed(_) if is_forbidden(best) => {
            Finding::new("native XDP", Status::Unknown, "may not be tried (see capabilities)")
        }
        Trial::Failed(errno) => {
            let finding = native_refused(facts, errno);
            if facts.generic == Trial::Works {
                Finding { status: Status::Reduced, ..finding }
                    .loses("generic mode is used: every frame becomes an skb first, several times the cost")
            } else {
                finding.loses("the device cannot be used")
            }
        }
    }
}

fn generic(facts: &DeviceFacts) -> Finding {
    match facts.generic {
        Trial::Works => Finding::new("generic XDP", Status::Works, "the fallback is there"),
        Trial::NotTried => {
            Finding::new("generic XDP", Status::Unknown, format!("{NOT_TRIED}; any device has it"))
        }
        Trial::Failed(_) if is_forbidden(facts.generic) => {
            Finding::new("generic XDP", Status::Unknown, "may not be tried (see capabilities)")
        }
        Trial::Failed(errno) => {
            let native = facts.native == Trial::Works || facts.native_frags == Trial::Works;
            let status = if native { Status::Reduced } else { Status::Broken };
            Finding::new("generic XDP", status, format!("the kernel refuses it: {}", refusal(errno)))
                .loses(if native { "there is no fallback" } else { "the device cannot be used" })
                .mend(format!(
                    "ethtool -K {} lro off    (merged frames and generic mode exclude each other)",
                    facts.device
                ))
        }
    }
}

fn zero_copy(facts: &DeviceFacts) -> Finding {
    const SUBJECT: &str = "zero-copy";
    const COPIED: &str = "every frame is copied once on the way in and once on the way out";
    match (facts.zero_copy, facts.copy) {
        (Trial::Works, _) => {
            Finding::new(SUBJECT, Status::Works, "the card writes into packet memory itself")
        }
        (Trial::NotTried, _) => by_declaration(facts, SUBJECT, |declared| declared.zero_copy),
        (Trial::Failed(_), _) if is_forbidden(facts.zero_copy) || is_forbidden(facts.copy) => {
            Finding::new(SUBJECT, Status::Unknown, "may not be tried (see capabilities)")
        }
        (Trial::Failed(_), Trial::Failed(libc::EBUSY)) => {
            Finding::new(SUBJECT, Status::Unknown, "queue 0 is taken")
                .loses("nothing can be bound to it")
                .mend("ss --xdp -p    (shows whose socket it is)")
        }
        (Trial::Failed(_), Trial::Failed(errno)) => {
            let says = format!("AF_XDP cannot be bound at all: {}", refusal(errno));
            Finding::new(SUBJECT, Status::Broken, says).loses("the device cannot be used")
        }
        (Trial::Failed(libc::EOPNOTSUPP), _) => {
            Finding::new(SUBJECT, Status::Reduced, "the driver does not have it; copy mode works")
                .loses(COPIED)
        }
        (Trial::Failed(errno), _) => {
            let says = format!("refused: {}; copy mode works", refusal(errno));
            Finding::new(SUBJECT, Status::Reduced, says).loses(COPIED).mend(format!(
                "ethtool -L {} combined N    (fewer: some cards need a queue to spare)",
                facts.device
            ))
        }
    }
}

fn multi_buffer(facts: &DeviceFacts) -> Finding {
    const SUBJECT: &str = "multi-buffer";
    let mtu = facts.state.mtu_bytes;
    match (facts.native_frags, facts.native) {
        (Trial::Works, _) => Finding::new(SUBJECT, Status::Works, format!("frames in several parts; MTU {mtu} passes")),
        (Trial::NotTried, _) => by_declaration(facts, SUBJECT, |declared| declared.multi_buffer),
        (Trial::Failed(_), Trial::Works) if mtu <= VETH_SINGLE_BUFFER_MTU => Finding::new(
            SUBJECT,
            Status::Reduced,
            format!("the driver does not have it; MTU {mtu} passes without, {VETH_SINGLE_BUFFER_MTU} is about the limit"),
        )
        .loses("jumbo frames"),
        (Trial::Failed(_), Trial::Works) => {
            Finding::new(SUBJECT, Status::Broken, format!("the driver does not have it, and MTU {mtu} needs it"))
                .loses(format!("frames longer than about {VETH_SINGLE_BUFFER_MTU} bytes"))
                .mend(format!("ip link set {} mtu 1500", facts.device))
        }
        (Trial::Failed(_), Trial::Failed(_) | Trial::NotTried) => {
            Finding::new(SUBJECT, Status::Unknown, "cannot be tried without native XDP")
        }
    }
}

fn offloads(facts: &DeviceFacts) -> Finding {
    const SUBJECT: &str = "offloads";
    if facts.features.0.is_empty() {
        return Finding::new(SUBJECT, Status::Unknown, "the kernel does not tell them");
    }
    let on = HIDING.iter().filter_map(|(name, loses)| {
        facts.features.find(name).filter(|f| f.active).map(|f| (*name, *loses, f.fixed))
    });
    let (fixed, free): (Vec<_>, Vec<_>) = on.partition(|(.., fixed)| *fixed);
    if !fixed.is_empty() {
        let names: Vec<&str> = fixed.iter().map(|(name, ..)| *name).collect();
        let loses: Vec<&str> = fixed.iter().map(|(_, loses, _)| *loses).collect();
        return Finding::new(
            SUBJECT,
            Status::Reduced,
            format!("{} on, and the driver keeps it on", names.join(", ")),
        )
        .loses(loses.join("; "));
    }
    if free.is_empty() {
        return Finding::new(SUBJECT, Status::Works, "none that hides frames is on");
    }
    let names: Vec<&str> = free.iter().map(|(name, ..)| *name).collect();
    Finding::new(SUBJECT, Status::Works, format!("`run` switches off and restores: {}", names.join(", ")))
}

fn rings(facts: &DeviceFacts) -> Finding {
    let Some(rings) = facts.rings.filter(|rings| rings.rx_max > 0) else {
        return Finding::new("rings", Status::Works, "this driver has no ring sizes to set");
    };
    let says = format!("{} receive of {}, {} transmit of {}", rings.rx, rings.rx_max, rings.tx, rings.tx_max);
    let (rx, tx) = (rings.rx_max.min(4096), rings.tx_max.min(4096));
    if rings.rx >= SHORT_RING.min(rings.rx_max) && rings.tx >= SHORT_RING.min(rings.tx_max) {
        return Finding::new("rings", Status::Works, says);
    }
    Finding::new("rings", Status::Reduced, says)
        .loses("frames, when a worker is held up for a fraction of a millisecond")
        .mend(format!("ethtool -G {} rx {rx} tx {tx}", facts.device))
}

/// Which frames the device lets in, and what `run` will change about that.
fn admitted(device: &str, admission: Admission) -> Finding {
    const SUBJECT: &str = "lets in";
    let Admission { all_groups, promiscuous, trial, address_needs_all } = admission;
    let now = match (promiscuous, all_groups) {
        (0, None) => String::from("its own MAC address; of groups the kernel does not tell"),
        (0, Some(0)) => String::from("its own MAC address and the groups the kernel has joined"),
        (0, Some(all)) => format!("its own MAC address and all groups (memberships: {all})"),
        (all, _) => format!("all frames: promiscuous (memberships: {all})"),
    };
    if let Trial::Failed(errno) = trial {
        let error = std::io::Error::from_raw_os_error(errno);
        return Finding::new(
            SUBJECT,
            Status::Reduced,
            format!("{now}; memberships for more are refused: {error}"),
        )
        .loses("neighbour discovery, VRRP, and frames to MAC addresses of the config")
        .mend(format!("ip link set {device} allmulticast on promisc on"));
    }
    let plan = match address_needs_all {
        _ if promiscuous > 0 => "",
        Some(true) => "; `run` lets in all groups, and all frames where the config has other MAC addresses",
        Some(false) => "; `run` lets in all groups, and MAC addresses of the config one by one",
        None => "",
    };
    Finding::new(SUBJECT, Status::Works, now + plan)
}

/// Only veth has the trap: what crosses a real wire was summed by the card.
fn checksums(facts: &DeviceFacts) -> Option<Finding> {
    (facts.state.kind == LinkKind::Veth).then(|| {
        Finding::new(
            "checksums",
            Status::Reduced,
            "a host on the other end of a veth leaves TCP and UDP sums unfinished",
        )
        .loses("receivers drop such segments wherever they are not finished on the way; ping proves nothing")
        .mend("on the other end: ethtool -K PEER tx off")
    })
}

fn addresses(facts: &DeviceFacts) -> Finding {
    if facts.addresses.is_empty() {
        return Finding::new("addresses", Status::Works, "the kernel has none here");
    }
    let list: Vec<String> = facts.addresses.iter().map(ToString::to_string).collect();
    Finding::new("addresses", Status::Reduced, format!("the kernel has {} here", list.join(", ")))
        .loses("whatever the kernel serves at them (your SSH session?) is cut off while the gateway has the device")
        .mend(format!("ip addr flush dev {}    (from another way in)", facts.device))
}

fn forwarding(facts: &DeviceFacts) -> Finding {
    let device = &facts.device;
    let on = |family| format!("net/{family}/conf/{device}/forwarding=0");
    let mut switches = Vec::new();
    if facts.forwards_v4 == Some(true) {
        switches.push(on("ipv4"));
    }
    if facts.forwards_v6 == Some(true) {
        switches.push(on("ipv6"));
    }
    if !switches.is_empty() {
        return Finding::new("ip_forward", Status::Reduced, "the kernel forwards what comes in here")
            .loses("when the gateway stops, the kernel passes traffic on past firewall and NAT")
            .mend(format!("sysctl -w {}    (or ip_forward=0 for all devices)", switches.join(" ")));
    }
    match (facts.forwards_v4, facts.forwards_v6) {
        (None, None) => Finding::new("ip_forward", Status::Unknown, "the settings cannot be read"),
        _ => Finding::new("ip_forward", Status::Works, "off: when the gateway stops, nothing passes"),
    }
}

fn ipv6(facts: &DeviceFacts) -> Finding {
    if facts.ipv6 != Some(true) {
        return Finding::new(
            "kernel ipv6",
            Status::Works,
            "off: the gateway alone speaks neighbour discovery",
        );
    }
    Finding::new("kernel ipv6", Status::Reduced, "on: the kernel sends solicitations and MLD of its own here")
        .loses("hosts see a second IPv6 node with the gateway's MAC")
        .mend(format!("sysctl -w net/ipv6/conf/{}/disable_ipv6=1", facts.device))
}

#[cfg(test)]
mod tests {
    use super::super::channels::VethPeer;
    use super::super::ethtool::{Channels, DriverInfo, Feature, Features, Rings};
    use super::super::watch::{LinkState, XdpAttached};
    use super::*;

    /// A card with nothing wrong.
    fn good() -> DeviceFacts {
        DeviceFacts {
            device: "eth1".into(),
            state: LinkState {
                ifindex: 7,
                carrier: true,
                admin_up: true,
                mtu_bytes: 1500,
                mac: [2, 0, 0, 0, 0, 1],
                rx_queues: 4,
                tx_queues: 4,
                master: None,
                kind: LinkKind::Physical,
                xdp: None,
                peer: None,
            },
            driver: Some(DriverInfo {
                driver: "ice".into(),
                bus: "0000:17:00.0".into(),
                ..DriverInfo::default()
            }),
            channels: Some(Channels { combined: 4, combined_max: 8, ..Channels::default() }),
            rings: Some(Rings { rx: 2048, tx: 2048, rx_max: 8160, tx_max: 8160 }),
            features: Features(vec![Feature {
                name: "rx-gro".into(),
                active: false,
                requested: false,
                fixed: false,
            }]),
            veth_peer: None,
            sockets: Some(vec![]),
            declared: None,
            native: Trial::Works,
            native_frags: Trial::Works,
            generic: Trial::Works,
            zero_copy: Trial::Works,
            copy: Trial::Works,
            admission: Some(Admission {
                all_groups: Some(0),
                promiscuous: 0,
                trial: Trial::Works,
                address_needs_all: Some(false),
            }),
            addresses: vec![],
            forwards_v4: Some(false),
            forwards_v6: Some(false),
            ipv6: Some(false),
        }
    }

    fn veth(our_rx: u32, peer_tx: u32, mtu_bytes: u32) -> DeviceFacts {
        let mut facts = good();
        facts.state = LinkState { kind: LinkKind::Veth, rx_queues: our_rx, mtu_bytes, ..facts.state };
        facts.channels = None;
        facts.veth_peer = Some(VethPeer { tx_queues: peer_tx, exact: true, mtu_bytes });
        facts.zero_copy = Trial::Failed(libc::EOPNOTSUPP);
        facts
    }

    fn machine() -> HostFacts {
        HostFacts {
            kernel: "6.18.44-x".into(),
            capabilities: u64::MAX,
            memlock_bytes: Some(8 << 20),
            cpu: "Fast CPU".into(),
            avx2: true,
            avx512: true,
            thp: "madvise".into(),
            huge_pages: (0, 0),
            bpf_jit: Some(true),
            af_xdp: Trial::Works,
            tx_budget: Trial::Works,
        }
    }

    fn find(list: &[Finding], subject: &str) -> Finding {
        list.iter().find(|finding| finding.subject == subject).expect("a finding of this subject").clone()
    }

    fn on(facts: &DeviceFacts, subject: &str) -> Finding {
        find(&of_device(facts), subject)
    }

    #[test]
    fn a_good_card_on_a_good_machine_has_nothing_to_mend() {
        let all = [of_host(&machine()), of_device(&good())].concat();
        for finding in &all {
            assert_eq!(finding.status, Status::Works, "{finding:?}");
            assert_eq!((&finding.loses, &finding.mend), (&None, &None));
        }
    }

    #[test]
    fn which_frames_come_in_is_said_with_what_run_will_do() {
        let says = |admission: Admission| admitted("eth1", admission).says;
        let plain = good().admission.expect("the kernel tells");
        let end = "; `run` lets in all groups, and MAC addresses of the config one by one";
        assert_eq!(says(plain), format!("its own MAC address and the groups the kernel has joined{end}"));
        let asked =
            Admission { all_groups: Some(1), trial: Trial::NotTried, address_needs_all: None, ..plain };
        assert_eq!(says(asked), "its own MAC address and all groups (memberships: 1)");
        assert_eq!(says(Admission { promiscuous: 2, ..plain }), "all frames: promiscuous (memberships: 2)");
        let refused = admitted("eth1", Admission { trial: Trial::Failed(libc::EPERM), ..plain });
        assert_eq!(refused.status, Status::Reduced);
        assert_eq!(refused.mend.as_deref(), Some("ip link set eth1 allmulticast on promisc on"));
    }

    #[test]
    fn what_is_not_right_says_what_it_costs() {
        let mut bad = veth(2, 4, 9000);
        bad.native = Trial::Failed(libc::ENOSPC);
        bad.native_frags = Trial::Failed(libc::ENOSPC);
        bad.state.carrier = false;
        bad.forwards_v4 = Some(true);
        bad.ipv6 = Some(true);
        bad.addresses = vec![[192, 0, 2, 1].into()];
        let mut poor = machine();
        (poor.capabilities, poor.avx512, poor.bpf_jit) = (0, false, Some(false));
        poor.thp = "never".into();
        (poor.kernel, poor.tx_budget) = ("6.1.0".into(), Trial::Failed(libc::ENOPROTOOPT));
        for finding in [of_host(&poor), of_device(&bad)].concat() {
            if matches!(finding.status, Status::Broken | Status::Reduced) {
                assert!(finding.loses.is_some(), "{finding:?}");
            }
            // No bare number reaches the operator.
            assert!(!finding.says.contains("errno"), "{finding:?}");
        }
    }

    #[test]
    fn more_transmit_queues_at_the_peer_than_receive_queues_here() {
        let mut facts = veth(2, 4, 1500);
        facts.native = Trial::Failed(libc::ENOSPC);
        facts.native_frags = Trial::Failed(libc::ENOSPC);
        let finding = on(&facts, "native XDP");
        assert_eq!(finding.status, Status::Reduced);
        assert_eq!(finding.says, "the peer sends on 4 queues and this end receives on 2");
        assert!(finding.mend.unwrap().starts_with("ethtool -L eth1 rx 4"));
        facts.generic = Trial::Failed(libc::EOPNOTSUPP);
        assert_eq!(on(&facts, "native XDP").status, Status::Broken);
    }

    #[test]
    fn jumbo_needs_multi_buffer() {
        let mut facts = veth(1, 1, 9000);
        facts.native = Trial::Failed(libc::ERANGE);
        assert_eq!(on(&facts, "native XDP").status, Status::Works); // with frags it attaches
        assert_eq!(on(&facts, "multi-buffer").status, Status::Works);
        facts.native_frags = Trial::Failed(libc::EOPNOTSUPP);
        let finding = on(&facts, "native XDP");
        assert!(finding.says.contains("3506"), "{finding:?}");
        assert!(finding.mend.unwrap().starts_with("ip link set eth1 mtu 3506"));
        facts.native = Trial::Works;
        assert_eq!(on(&facts, "multi-buffer").status, Status::Broken);
    }

    #[test]
    fn a_running_gateway_and_a_leftover_are_told_apart() {
        let mut facts = good();
        facts.state.xdp = Some(XdpAttached { mode: XdpMode::Native, program_id: 42 });
        facts.sockets = Some(vec![0, 1]);
        let finding = on(&facts, "in use");
        assert_eq!(finding.status, Status::Reduced);
        assert_eq!(
            finding.says,
            "in use by a running gateway: XDP program 42 (native), AF_XDP sockets on queue 0, 1"
        );
        facts.sockets = Some(vec![]);
        let finding = on(&facts, "in use");
        assert_eq!(finding.status, Status::Broken);
        assert!(finding.mend.unwrap().starts_with("ip link set eth1 xdpdrv off"));
        facts.sockets = None;
        assert_eq!(on(&facts, "in use").status, Status::Reduced);
    }

    #[test]
    fn without_the_right_to_try_nothing_is_claimed() {
        let mut facts = good();
        let forbidden = Trial::Failed(libc::EPERM);
        (facts.native, facts.native_frags, facts.generic) = (forbidden, forbidden, forbidden);
        (facts.zero_copy, facts.copy) = (forbidden, forbidden);
        for subject in ["native XDP", "generic XDP", "zero-copy", "multi-buffer"] {
            assert_eq!(on(&facts, subject).status, Status::Unknown, "{subject}");
        }
        let mut host = machine();
        host.capabilities = 1 << 12 | 1 << CAP_SYS_ADMIN;
        let finding = find(&of_host(&host), "capabilities");
        assert_eq!(finding.status, Status::Broken);
        assert_eq!(finding.says, "this process lacks CAP_NET_RAW, CAP_IPC_LOCK");
        assert_eq!(find(&of_host(&host), "memlock").status, Status::Broken);
    }

    #[test]
    fn refusals_are_words() {
        assert_eq!(refusal(libc::EPERM), "operation not permitted");
        let mut facts = good();
        facts.sockets = None;
        assert!(on(&facts, "in use").says.contains("could not be looked for"));
        facts.declared = Some(probe::DeclaredXdp {
            native: true,
            zero_copy: true,
            multi_buffer: true,
            zero_copy_max_parts: 1,
        });
        (facts.native, facts.native_frags) =
            (Trial::Failed(libc::EOPNOTSUPP), Trial::Failed(libc::EOPNOTSUPP));
        assert!(on(&facts, "native XDP").says.contains("not with these offloads"));
    }

    #[test]
    fn error_numbers_are_found_in_the_words_around_them() {
        let std = std::io::Error::from_raw_os_error(libc::ENOSPC).to_string();
        assert_eq!(errno_in(&std), Some(libc::ENOSPC));
        assert_eq!(errno_in("attach: errno 34"), Some(34));
        assert_eq!(errno_in("it does not work"), None);
    }

    #[test]
    fn every_error_an_attach_or_bind_ends_with_has_its_explanation() {
        let errors = [
            libc::EPERM,
            libc::EBUSY,
            libc::ENOSPC,
            libc::ERANGE,
            libc::EOPNOTSUPP,
            libc::ENOBUFS,
            libc::ENETDOWN,
            libc::ENODEV,
            libc::EINVAL,
            libc::ENOTCONN,
        ];
        for errno in errors {
            let finding = because(&veth(2, 4, 9000), errno).expect("explained");
            assert_eq!(finding.status, Status::Broken, "{errno}");
        }
        assert_eq!(because(&good(), libc::EIO), None);
    }

    #[test]
    fn the_text_is_aligned() {
        let list = [
            Finding::new("link", Status::Works, "up"),
            Finding::new("multi-buffer", Status::Broken, "no").loses("jumbo frames").mend("type this"),
        ];
        let lines = [
            "  works    link          up",
            "  broken   multi-buffer  no",
            "                  loses  jumbo frames",
            "                   mend  type this",
        ];
        assert_eq!(text(&list), lines.map(|line| format!("{line}\n")).concat());
    }
}
