//! Why a device could not become a port, in the operator's words: which device, which call, what the
//! kernel's answer means there, and what to type. No bare errno reaches the operator.

use std::fmt;
use std::io;

use super::device::Refusal;

/// Why the XDP program or a socket of a device could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XdpError {
    /// The name is not a device in this network namespace.
    #[error("{device}: there is no such device in this network namespace; `ip -br link` lists them")]
    NoDevice {
        /// As configured.
        device: String,
    },
    /// A capability is missing.
    #[error(
        "{device}: {call} is not permitted; run as root, or grant CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and \
         CAP_IPC_LOCK (systemd: AmbientCapabilities=, container: --cap-add)"
    )]
    NotPermitted {
        /// Device.
        device: String,
        /// What was refused.
        call: Call,
    },
    /// The memory registered with the socket counts against RLIMIT_MEMLOCK.
    #[error(
        "{device}: {call}: the packet memory ({bytes} bytes) exceeds the limit for locked memory; grant \
         CAP_IPC_LOCK, or type `ulimit -l unlimited` (systemd: LimitMEMLOCK=infinity), or lower `system.frames`"
    )]
    LockedMemory {
        /// Device.
        device: String,
        /// What was refused.
        call: Call,
        /// Bytes asked for.
        bytes: usize,
    },
    /// The kernel was built without AF_XDP.
    #[error("{device}: this kernel has no AF_XDP sockets; use one with CONFIG_XDP_SOCKETS=y")]
    NoAfXdp {
        /// Device.
        device: String,
    },
    /// Somebody else's XDP program is on the device.
    #[error(
        "{device}: the XDP program `{program}` (id {id}) of somebody else is attached; if it may go: \
         `ip link set {device} xdp off`, for generic mode `ip link set {device} xdpgeneric off`"
    )]
    ForeignProgram {
        /// Device.
        device: String,
        /// Name of the attached program.
        program: String,
        /// Its id, as `bpftool prog show` has it.
        id: u32,
    },
    /// Another running SoftGate has the device.
    #[error(
        "{device}: another SoftGate process holds the device (XDP program id {id}, attached by a live link); \
         stop it: `pgrep -a softgate` finds it"
    )]
    HeldBySoftGate {
        /// Device.
        device: String,
        /// Its program's id.
        id: u32,
    },
    /// Another AF_XDP socket is bound to the queue.
    #[error(
        "{device}: queue {queue} is taken by another AF_XDP socket and stayed so for {waited_ms} ms; \
         stop the other program: `ss -p --xdp` finds it"
    )]
    QueueBusy {
        /// Device.
        device: String,
        /// Queue.
        queue: u16,
        /// How long the bind was retried.
        waited_ms: u64,
    },
    /// veth: the peer can address more queues than the device has.
    #[error(
        "{device}: the driver has too few receive queues for native XDP (on veth: the peer has more transmit \
         queues than {device} has receive queues); type `ethtool -L {device} rx N` or `ethtool -L PEER tx N`, \
         or set `mode = \"generic\"`"
    )]
    TooFewReceiveQueues {
        /// Device.
        device: String,
    },
    /// The MTU does not fit the single-buffer program.
    #[error(
        "{device}: the MTU is too large for native XDP without multi-buffer support in this driver; type \
         `ip link set {device} mtu 1500` (veth and most drivers take up to about 3500), or set `mode = \"generic\"`"
    )]
    MtuTooLarge {
        /// Device.
        device: String,
    },
    /// The driver cannot do what the mode needs.
    #[error("{device}: the driver cannot do {what} ({call}); set `mode = \"auto\"` to take the best it can")]
    NotSupported {
        /// Device.
        device: String,
        /// What was refused.
        call: Call,
        /// What it lacks.
        what: &'static str,
    },
    /// The device is not up.
    #[error("{device}: the device is down; type `ip link set {device} up`")]
    Down {
        /// Device.
        device: String,
    },
    /// The kernel found no memory for rings or maps.
    #[error("{device}: {call}: the kernel has no memory left for it; free memory or choose smaller rings")]
    NoMemory {
        /// Device.
        device: String,
        /// What was refused.
        call: Call,
    },
    /// Numbers that cannot work.
    #[error("{device}: {what} is {given}; allowed is {allowed}")]
    Value {
        /// Device.
        device: String,
        /// What was given.
        what: &'static str,
        /// The value.
        given: u64,
        /// What would have been right.
        allowed: String,
    },
    /// Every mode was refused.
    #[error("{device}: no mode works: {}", list(.refused))]
    NoMode {
        /// Device.
        device: String,
        /// What was tried, and why it was refused.
        refused: Vec<Refusal>,
    },
    /// The kernel refused the XDP program itself.
    #[error(
        "the kernel refuses SoftGate's XDP program: {reason}; SoftGate needs Linux 5.18 or later with \
         CONFIG_BPF_SYSCALL=y and CONFIG_XDP_SOCKETS=y (`uname -r`, `zgrep XDP /proc/config.gz`)"
    )]
    Program {
        /// The loader's words.
        reason: String,
    },
    /// Anything else, with the call it came from.
    #[error("{device}: {call} failed: {source}; `softgate doctor {device}` shows what the device can do")]
    System {
        /// Device.
        device: String,
        /// What was refused.
        call: Call,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn list(refused: &[Refusal]) -> String {
    refused.iter().map(|r| format!("{}: {}", r.mode, r.reason)).collect::<Vec<_>>().join("; ")
}

/// What the kernel was asked for when it refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Creating the socket.
    Socket,
    /// `setsockopt(XDP_UMEM_REG)`.
    RegisterMemory,
    /// `setsockopt` of a ring's size.
    Ring(&'static str),
    /// `getsockopt(XDP_MMAP_OFFSETS)`.
    RingOffsets,
    /// `mmap` of a ring.
    MapRing,
    /// `bind`.
    Bind {
        /// Queue.
        queue: u16,
        /// With `XDP_ZEROCOPY`.
        zero_copy: bool,
    },
    /// Attaching the XDP program to the device.
    Attach {
        /// In generic mode.
        generic: bool,
    },
    /// Reading or writing a BPF map.
    Map(&'static str),
    /// Asking the kernel about a device.
    Query(&'static str),
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::Socket => f.write_str("socket(AF_XDP)"),
            Call::RegisterMemory => f.write_str("setsockopt(XDP_UMEM_REG)"),
            Call::Ring(ring) => write!(f, "setsockopt({ring})"),
            Call::RingOffsets => f.write_str("getsockopt(XDP_MMAP_OFFSETS)"),
            Call::MapRing => f.write_str("mmap of a ring"),
            Call::Bind { queue, zero_copy: true } => write!(f, "zero-copy bind of queue {queue}"),
            Call::Bind { queue, zero_copy: false } => write!(f, "copy-mode bind of queue {queue}"),
            Call::Attach { generic: false } => f.write_str("attaching the XDP program in native mode"),
            Call::Attach { generic: true } => f.write_str("attaching the XDP program in generic mode"),
            Call::Map(map) => write!(f, "updating the BPF map `{map}`"),
            Call::Query(what) => write!(f, "asking for {what}"),
        }
    }
}

impl XdpError {
    /// Puts the kernel's answer to `call` into words.
    pub(super) fn of(device: &str, call: Call, error: io::Error) -> XdpError {
        let device = device.to_owned();
        match (error.raw_os_error().unwrap_or(0), call) {
            (libc::EPERM | libc::EACCES, _) => XdpError::NotPermitted { device, call },
            (libc::EAFNOSUPPORT, Call::Socket) => XdpError::NoAfXdp { device },
            (libc::ENODEV | libc::ENXIO, _) => XdpError::NoDevice { device },
            (libc::ENETDOWN, _) => XdpError::Down { device },
            (libc::ENOSPC, Call::Attach { .. }) => XdpError::TooFewReceiveQueues { device },
            (libc::ERANGE, Call::Attach { .. }) => XdpError::MtuTooLarge { device },
            (libc::EOPNOTSUPP, Call::Attach { generic: false }) => {
                XdpError::NotSupported { device, call, what: "native XDP" }
            }
            (libc::EOPNOTSUPP | libc::EINVAL, Call::Bind { zero_copy: true, .. }) => {
                XdpError::NotSupported { device, call, what: "zero-copy" }
            }
            (libc::EOPNOTSUPP, Call::Bind { .. }) => {
                XdpError::NotSupported { device, call, what: "AF_XDP with these options" }
            }
            // veth answers so while its peer is being deleted.
            (libc::ENOTCONN, Call::Attach { .. }) => XdpError::NoDevice { device },
            (libc::ENOMEM, _) => XdpError::NoMemory { device, call },
            _ => XdpError::System { device, call, source: error },
        }
    }

    /// True if another mode of the same device may work where this one did not.
    pub(super) fn is_about_the_mode(&self) -> bool {
        match self {
            XdpError::TooFewReceiveQueues { .. }
            | XdpError::MtuTooLarge { .. }
            | XdpError::NotSupported { .. } => true,
            // Drivers refuse what they cannot do with many numbers, most often EINVAL.
            XdpError::System { call: Call::Attach { .. } | Call::Bind { .. }, .. } => true,
            XdpError::NoMemory { call: Call::Attach { .. } | Call::Bind { zero_copy: true, .. }, .. } => true,
            _ => false,
        }
    }
}
