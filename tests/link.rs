//! Links and `softgate doctor` on real veth pairs in network namespaces of their own.
//!
//! Needs root. Without, each test says SKIPPED on stderr and passes.
#![allow(unsafe_code, reason = "setns: a thread enters a namespace; one call, with its proof")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use softgate::cli::doctor::{self, Diagnosis};
use softgate::io::link::ethtool::HIDING;
use softgate::io::link::findings::{Finding, Status};
use softgate::io::link::probe::{self, Depth};
use softgate::io::link::{
    Accepted, Ethtool, LinkChange, LinkEvent, LinkKind, LinkWatcher, OffloadGuard, XdpMode,
    explain_bind_failure,
};

/// The time within which the gateway acts on a link event (DESIGN.md section 6).
const IN_TIME: Duration = Duration::from_millis(50);
/// A wait that only a failing test sees the end of.
const LONG: Duration = Duration::from_secs(10);

/// Two namespaces, `gw` and `peer`, joined by the veth pair g0 (here) - s0 (there). Gone on drop.
struct Lab {
    gw: String,
    peer: String,
}

impl Lab {
    /// `None`, said loudly, when not root.
    fn new(pair: &str) -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        if !status.lines().any(|line| line.starts_with("Uid:\t0")) {
            eprintln!("SKIPPED: needs root to create network namespaces");
            return None;
        }
        sweep();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            gw: format!("sgl-{}-{n}-gw", std::process::id()),
            peer: format!("sgl-{}-{n}-peer", std::process::id()),
        };
        for ns in [&lab.gw, &lab.peer] {
            run(&format!("ip netns add {ns}"));
        }
        lab.pair(pair);
        Some(lab)
    }

    /// Creates the pair with more arguments for both ends, and sets it up.
    fn pair(&self, args: &str) {
        let (gw, peer) = (&self.gw, &self.peer);
        run(&format!("ip -n {gw} link add g0 {args} type veth peer name s0 netns {peer} {args}"));
        run(&format!("ip -n {gw} link set g0 up"));
        run(&format!("ip -n {peer} link set s0 up"));
    }

    fn gw(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.gw))
    }

    fn peer(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.peer))
    }

    /// Runs `work` on a thread inside the gateway's namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/var/run/netns/{}", self.gw)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: setns takes an open descriptor and a flag, and moves this thread only.
                let done = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for ns in [&self.gw, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", ns]).output();
        }
    }
}

/// Removes what killed runs left behind: namespaces of test processes that are no more.
fn sweep() {
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix("sgl-").and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for the event `wanted` accepts, passing over others; says when it came.
fn await_event(watcher: &mut LinkWatcher, wanted: impl Fn(&LinkEvent) -> bool) -> (LinkEvent, Instant) {
    let deadline = Instant::now() + LONG;
    let mut seen = Vec::new();
    while Instant::now() < deadline {
        for event in watcher.wait(Duration::from_millis(200)).unwrap() {
            if wanted(&event) {
                return (event, Instant::now());
            }
            seen.push(event);
        }
    }
    panic!("no such event; seen: {seen:#?}");
}

/// A watcher that has read the links there are.
fn watcher() -> LinkWatcher {
    let mut watcher = LinkWatcher::open().unwrap();
    let first = watcher.read().unwrap();
    assert!(first.iter().all(|event| event.change == LinkChange::Appeared), "{first:#?}");
    watcher
}

#[test]
fn the_first_read_reports_every_link() {
    let Some(lab) = Lab::new("numrxqueues 4 numtxqueues 2 mtu 2000") else { return };
    lab.inside(|| {
        let mut watcher = LinkWatcher::open().unwrap();
        let events = watcher.read().unwrap();
        let g0 = events.iter().find(|event| event.device == "g0").expect("g0 is reported");
        assert_eq!(g0.change, LinkChange::Appeared);
        assert_eq!(g0.state.kind, LinkKind::Veth);
        assert_eq!(g0.state.mtu_bytes, 2000);
        assert!(g0.state.carrier && g0.state.admin_up);
        assert_eq!(g0.state.xdp, None);
        assert_eq!(g0.state.peer.map(|peer| peer.netns_id.is_some()), Some(true));
        let channels = Ethtool::open().unwrap().channels("g0").unwrap();
        assert_eq!(g0.state.rx_queues, channels.rx_queues());
        assert_eq!(g0.state.tx_queues, channels.tx_queues());
        assert_eq!(watcher.find("g0"), Some(&g0.state));
        assert!(events.iter().any(|event| event.state.kind == LinkKind::Loopback));
        assert!(watcher.read().unwrap().is_empty());
    });
}

/// Twenty changes in a row at the far end, seen through the poll loop a control thread has. Both ends have
/// the same index in their namespaces: then the kernel takes the veth for a card and holds its carrier
/// events back for up to a second. Seen at first by this test, ten times in a row; hence `follow`.
#[test]
fn carrier_loss_and_return_are_seen_within_50_ms() {
    let Some(lab) = Lab::new("") else { return };
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (said, heard) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let lab = &lab;
        scope.spawn(move || {
            lab.inside(move || {
                let mut watcher = watcher();
                watcher.follow(["g0", "not-there-yet"]).unwrap();
                let mut poll = mio::Poll::new().unwrap();
                let fd = watcher.as_raw_fd();
                poll.registry()
                    .register(&mut mio::unix::SourceFd(&fd), mio::Token(7), mio::Interest::READABLE)
                    .unwrap();
                ready.send(()).unwrap();
                let mut left = 20;
                let deadline = Instant::now() + LONG;
                while left > 0 && Instant::now() < deadline {
                    poll.poll(&mut mio::Events::with_capacity(4), Some(LONG)).unwrap();
                    for event in watcher.read().unwrap() {
                        if event.before.is_some_and(|before| before.carrier != event.state.carrier) {
                            left -= 1;
                            said.send((event.state.carrier, Instant::now())).unwrap();
                        }
                    }
                }
            });
        });
        is_ready.recv().unwrap();
        let mut worst = Duration::ZERO;
        for round in 0..20 {
            let up = round % 2 == 1;
            lab.peer(&format!("ip link set s0 {}", if up { "up" } else { "down" }));
            let done = Instant::now();
            let (carrier, at) = heard.recv_timeout(LONG).expect("the change is seen");
            assert_eq!(carrier, up);
            worst = worst.max(at.saturating_duration_since(done));
        }
        eprintln!("carrier changes seen at most {worst:?} after the command returned");
        assert!(worst < IN_TIME, "{worst:?}");
    });
}

#[test]
fn a_device_removed_and_created_again_is_another_device() {
    let Some(lab) = Lab::new("") else { return };
    lab.inside(|| {
        let mut watcher = watcher();
        let first = *watcher.find("g0").unwrap();
        lab.peer("ip link del s0");
        let done = Instant::now();
        let (gone, at) = await_event(&mut watcher, |event| event.change == LinkChange::Vanished);
        assert!(at.saturating_duration_since(done) < IN_TIME);
        assert_eq!((gone.device.as_str(), gone.ifindex), ("g0", first.ifindex));
        assert!(!gone.state.carrier);
        assert_eq!(watcher.find("g0"), None);

        run(&format!("ip -n {} link add g0 type veth peer name s0 netns {}", lab.gw, lab.peer));
        let (back, _) = await_event(&mut watcher, |event| event.change == LinkChange::Appeared);
        assert_eq!(back.device, "g0");
        assert_ne!(back.ifindex, first.ifindex);
        assert!(!back.state.admin_up && !back.state.carrier);
        watcher.follow(["g0"]).unwrap();
        lab.peer("ip link set s0 up");
        lab.gw("ip link set g0 up");
        let done = Instant::now();
        let (_, at) = await_event(&mut watcher, |event| event.device == "g0" && event.state.carrier);
        assert!(at.saturating_duration_since(done) < IN_TIME);
    });
}

#[test]
fn mtu_name_and_channel_changes_are_seen() {
    let Some(lab) = Lab::new("numrxqueues 4 numtxqueues 4") else { return };
    lab.inside(|| {
        let mut watcher = watcher();
        lab.gw("ip link set g0 mtu 9000");
        let (event, _) = await_event(&mut watcher, |event| event.change == LinkChange::Changed);
        assert_eq!((event.before.unwrap().mtu_bytes, event.state.mtu_bytes), (1500, 9000));

        lab.gw("ethtool -L g0 rx 3 tx 2");
        let done = Instant::now();
        let (event, at) = await_event(&mut watcher, |event| event.state.rx_queues == 3);
        assert_eq!(event.state.tx_queues, 2);
        assert!(at.saturating_duration_since(done) < IN_TIME);

        lab.gw("ip link set g0 down");
        await_event(&mut watcher, |event| !event.state.admin_up && !event.state.carrier);
        lab.gw("ip link set g0 name lan0");
        let (event, _) = await_event(&mut watcher, |event| event.change == LinkChange::Appeared);
        assert_eq!((event.device.as_str(), event.state.rx_queues), ("lan0", 3));
    });
}

/// A port leaving a kernel bridge comes as RTM_DELLINK too; the device has not gone.
#[test]
fn leaving_a_bridge_is_no_loss_of_the_device() {
    let Some(lab) = Lab::new("") else { return };
    if Command::new("ip")
        .args(["-n", &lab.gw, "link", "add", "br0", "type", "bridge"])
        .output()
        .is_ok_and(|o| !o.status.success())
    {
        eprintln!("SKIPPED: this kernel has no bridges");
        return;
    }
    lab.inside(|| {
        let mut watcher = watcher();
        lab.gw("ip link set g0 master br0");
        let (event, _) = await_event(&mut watcher, |event| event.state.master.is_some());
        assert_eq!(event.device, "g0");
        lab.gw("ip link set g0 nomaster");
        let (event, _) = await_event(&mut watcher, |e| e.device == "g0" && e.state.master.is_none());
        assert_eq!(event.change, LinkChange::Changed);
        assert!(
            watcher
                .wait(Duration::from_millis(100))
                .unwrap()
                .iter()
                .all(|e| e.change != LinkChange::Vanished)
        );
        assert!(watcher.find("g0").is_some());
    });
}

/// More events than the socket holds while nobody reads: the truth comes all the same.
#[test]
fn lost_messages_are_made_up_for() {
    let Some(lab) = Lab::new("") else { return };
    lab.inside(|| {
        let mut watcher = LinkWatcher::with_receive_buffer(4096).unwrap();
        watcher.read().unwrap();
        for n in 0..30 {
            lab.gw(&format!("ip link add x{n} type veth peer name y{n}"));
        }
        for n in 0..15 {
            lab.gw(&format!("ip link del x{n}"));
        }
        lab.gw("ip link set g0 mtu 1400");
        let events = watcher.wait(LONG).unwrap();
        assert!(events.len() < 75, "{} events: nothing was lost, so nothing is proven", events.len());
        for n in 0..30 {
            for device in [format!("x{n}"), format!("y{n}")] {
                assert_eq!(watcher.find(&device).is_some(), n >= 15, "{device}");
            }
        }
        assert_eq!(watcher.find("g0").unwrap().mtu_bytes, 1400);
        // And the watcher goes on as before.
        lab.gw("ip link set g0 mtu 1300");
        await_event(&mut watcher, |event| event.device == "g0" && event.state.mtu_bytes == 1300);
    });
}

#[test]
fn refresh_asks_at_once_and_survives_a_device_that_is_gone() {
    let Some(lab) = Lab::new("") else { return };
    lab.inside(|| {
        let mut watcher = watcher();
        let ifindex = watcher.find("g0").unwrap().ifindex;
        let start = Instant::now();
        for _ in 0..1000 {
            watcher.refresh(ifindex).unwrap();
            assert!(watcher.read().unwrap().is_empty());
        }
        eprintln!("one refresh takes {:?}", start.elapsed() / 1000);
        lab.gw("ip link del g0");
        watcher.refresh(ifindex).unwrap();
        await_event(&mut watcher, |event| event.change == LinkChange::Vanished);
        watcher.refresh(ifindex).unwrap();
        assert!(watcher.read().unwrap().is_empty());
    });
}

#[test]
fn the_offload_guard_switches_off_and_restores() {
    let Some(lab) = Lab::new("") else { return };
    lab.gw("ethtool -K g0 gro on rxvlan on");
    lab.inside(|| {
        let ethtool = Ethtool::open().unwrap();
        let before = ethtool.features("g0").unwrap();
        assert!(before.is_active("rx-vlan-hw-parse") && before.is_active("rx-gro"));
        let guard = OffloadGuard::engage("g0").unwrap();
        assert!(guard.report().switched_off.contains(&"rx-vlan-hw-parse"), "{:?}", guard.report());
        assert!(guard.report().switched_off.contains(&"rx-gro"));
        assert!(guard.report().stuck.is_empty());
        let during = ethtool.features("g0").unwrap();
        for (name, _) in HIDING {
            assert!(!during.is_active(name), "{name} is still on");
        }
        // A second gateway's guard finds nothing to do, and restores nothing.
        drop(OffloadGuard::engage("g0").unwrap());
        assert_eq!(ethtool.features("g0").unwrap(), during);
        drop(guard);
        assert_eq!(ethtool.features("g0").unwrap(), before);
    });
}

/// A native program on a veth switches GRO on for its own purposes; whichever goes first, guard or
/// program, the device ends as it was.
#[test]
fn the_offload_guard_and_an_attached_program_go_in_any_order() {
    let Some(lab) = Lab::new("") else { return };
    for gro in ["on", "off"] {
        lab.gw(&format!("ethtool -K g0 gro {gro}"));
        let before = lab.gw("ethtool -k g0");
        for guard_first in [true, false] {
            lab.inside(|| {
                let guard = OffloadGuard::engage("g0").unwrap();
                let program = probe::hold_pass_all("g0", XdpMode::Native).unwrap();
                if guard_first {
                    drop(guard);
                    drop(program);
                } else {
                    drop(program);
                    drop(guard);
                }
            });
            assert_eq!(lab.gw("ethtool -k g0"), before, "gro {gro}, guard first: {guard_first}");
        }
    }
}

#[test]
fn the_offload_guard_leaves_what_was_off_and_tolerates_loss() {
    let Some(lab) = Lab::new("") else { return };
    lab.gw("ethtool -K g0 gro off rxvlan on");
    let guard = lab.inside(|| OffloadGuard::engage("g0").unwrap());
    assert!(!guard.report().switched_off.contains(&"rx-gro"));
    // Restored from a thread of another namespace.
    guard.restore().unwrap();
    lab.inside(|| {
        let features = Ethtool::open().unwrap().features("g0").unwrap();
        assert!(features.is_active("rx-vlan-hw-parse") && !features.is_active("rx-gro"));
        let guard = OffloadGuard::engage("g0").unwrap();
        lab.gw("ip link del g0");
        guard.restore().unwrap();

        lab.pair("");
        let guard = OffloadGuard::engage("g0").unwrap();
        lab.gw("ip link del g0");
        lab.pair("");
        lab.gw("ethtool -K g0 rxvlan off");
        guard.restore().unwrap(); // another device of that name: not ours to touch
        assert!(!Ethtool::open().unwrap().features("g0").unwrap().is_active("rx-vlan-hw-parse"));
    });
    assert!(lab.inside(|| OffloadGuard::engage("nosuch")).unwrap_err().is_gone());
}

#[test]
fn channels_and_rings_are_set() {
    let Some(lab) = Lab::new("numrxqueues 4 numtxqueues 4") else { return };
    lab.inside(|| {
        let ethtool = Ethtool::open().unwrap();
        assert_eq!(ethtool.driver("g0").unwrap().driver, "veth");
        let mut channels = ethtool.channels("g0").unwrap();
        assert_eq!((channels.rx_max, channels.tx_max), (4, 4));
        (channels.rx, channels.tx) = (2, 3);
        ethtool.set_channels("g0", &channels).unwrap();
        assert_eq!(ethtool.channels("g0").unwrap(), channels);
        channels.rx = 5;
        let error = ethtool.set_channels("g0", &channels).unwrap_err();
        assert!(error.to_string().starts_with("g0: cannot set its channels: "), "{error}");
        // veth answers for its rings or does not have them; either way it is a typed answer.
        match ethtool.rings("lo") {
            Ok(rings) => assert!(rings.rx <= rings.rx_max),
            Err(error) => assert!(error.is_unsupported(), "{error}"),
        }
    });
}

/// What `ip` and `ethtool` say of the device, without the counters.
fn as_it_is(lab: &Lab) -> String {
    lab.gw("ip -details link show g0") + &lab.gw("ethtool -k g0") + &lab.peer("ethtool -k s0")
}

fn diagnose(lab: &Lab, devices: &[&str], depth: Depth) -> Diagnosis {
    let devices: Vec<String> = devices.iter().map(ToString::to_string).collect();
    lab.inside(|| doctor::diagnose(&devices, depth))
}

fn finding(diagnosis: &Diagnosis, subject: &str) -> Finding {
    let mut all = diagnosis.devices[0].findings.iter();
    all.find(|finding| finding.subject == subject)
        .unwrap_or_else(|| panic!("no {subject}: {diagnosis:#?}"))
        .clone()
}

#[test]
fn the_doctor_tries_a_veth_and_leaves_it_as_it_was() {
    let Some(lab) = Lab::new("numrxqueues 1 numtxqueues 1") else { return };
    let before = as_it_is(&lab);
    let diagnosis = diagnose(&lab, &["g0"], Depth::Try);
    eprintln!("{}", diagnosis.text());
    // A command that another test starts at that moment has the link's descriptor until it runs its own program.
    let until = Instant::now() + Duration::from_secs(5);
    while as_it_is(&lab) != before && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(as_it_is(&lab), before);
    let expected = [
        ("link", Status::Works),
        ("driver", Status::Works),
        ("in use", Status::Works),
        ("queues", Status::Works),
        ("native XDP", Status::Works),
        ("generic XDP", Status::Works),
        ("zero-copy", Status::Reduced),
        ("multi-buffer", Status::Works),
        ("offloads", Status::Works),
        ("checksums", Status::Reduced),
        ("lets in", Status::Works),
        ("addresses", Status::Works),
        ("ip_forward", Status::Works),
        ("kernel ipv6", Status::Reduced),
    ];
    let budget = diagnosis.host.iter().find(|finding| finding.subject == "af_xdp").unwrap();
    assert_ne!(budget.status, Status::Broken);
    for (subject, status) in expected {
        assert_eq!(finding(&diagnosis, subject).status, status, "{subject}");
    }
    assert_eq!(diagnosis.exit_code(), 0, "{}", diagnosis.text());
    let json: serde_json::Value = serde_json::from_str(&diagnosis.json()).unwrap();
    assert_eq!(json["usable"], true);
    assert_eq!(json["devices"][0]["device"], "g0");
    assert_eq!(json["devices"][0]["findings"][0]["status"], "works");
    // And once more, at once: nothing of the first time is in the way.
    assert_eq!(diagnose(&lab, &["g0"], Depth::Try).exit_code(), 0);
}

#[test]
fn the_doctor_names_what_is_wrong_with_a_veth() {
    let Some(lab) = Lab::new("numrxqueues 4 numtxqueues 4 mtu 9000") else { return };
    lab.gw("ethtool -L g0 rx 2 tx 2");
    lab.peer("ethtool -L s0 rx 4 tx 4");
    lab.gw("ip addr add 192.0.2.1/24 dev g0");
    lab.gw("sysctl -qw net.ipv4.ip_forward=1");
    let before = as_it_is(&lab);
    let diagnosis = diagnose(&lab, &["g0"], Depth::Try);
    assert_eq!(as_it_is(&lab), before);
    let native = finding(&diagnosis, "native XDP");
    assert_eq!(native.status, Status::Reduced, "{}", diagnosis.text());
    assert_eq!(native.says, "the peer sends on 4 queues and this end receives on 2");
    assert!(finding(&diagnosis, "addresses").says.contains("192.0.2.1"));
    let forwarding = finding(&diagnosis, "ip_forward");
    assert_eq!(forwarding.status, Status::Reduced);
    assert!(forwarding.mend.unwrap().contains("net/ipv4/conf/g0/forwarding=0"));
    // What it says to type, typed: then it is mended.
    let typed = native.mend.unwrap();
    lab.gw(typed.split("    (").next().unwrap());
    let diagnosis = diagnose(&lab, &["g0"], Depth::Try);
    assert_eq!(finding(&diagnosis, "native XDP").status, Status::Works);
    assert_eq!(finding(&diagnosis, "multi-buffer").status, Status::Works);

    lab.gw("ip link set g0 down");
    let diagnosis = diagnose(&lab, &["g0"], Depth::Ask);
    assert_eq!(finding(&diagnosis, "link").status, Status::Broken);
    assert_eq!(diagnosis.exit_code(), 1);
}

#[test]
fn the_doctor_does_not_disturb_what_is_attached() {
    let Some(lab) = Lab::new("") else { return };
    lab.inside(|| {
        let mut watcher = watcher();
        watcher.follow(["g0"]).unwrap(); // a bpf_link comes and goes without an event
        // The object in the way of a gateway: any program will do.
        let held = probe::hold_pass_all("g0", XdpMode::Generic).unwrap();
        let (event, _) = await_event(&mut watcher, |event| event.state.xdp.is_some());
        let attached = event.state.xdp.unwrap();
        let attached_to = event.ifindex;
        assert_eq!(attached.mode, XdpMode::Generic);

        let devices = ["g0".to_owned()];
        let diagnosis = doctor::diagnose(&devices, Depth::Try);
        let in_use = finding(&diagnosis, "in use");
        assert!(
            in_use.says.contains(&format!("XDP program {} (generic)", attached.program_id)),
            "{in_use:?}"
        );
        assert_eq!(finding(&diagnosis, "native XDP").status, Status::Unknown);
        watcher.refresh(attached_to).unwrap();
        watcher.read().unwrap();
        assert_eq!(watcher.find("g0").unwrap().xdp, Some(attached));

        let why = explain_bind_failure("g0", "attach: Device or resource busy (os error 16)");
        assert!(why.contains("in use"), "{why}");
        assert!(why.contains("ip link set g0 xdpgeneric off"), "{why}");
        assert!(finding(&diagnosis, "lets in").says.starts_with("its own MAC address and the groups"));
        // What a running gateway asks for, and takes back when it ends.
        let mut accepted = Accepted::groups(attached_to).unwrap();
        let lets_in = || finding(&doctor::diagnose(&devices, Depth::Ask), "lets in").says;
        assert_eq!(lets_in(), "its own MAC address and all groups (memberships: 1)");
        accepted.set(&[[0x02, 0, 0, 0, 0, 0x77]]).unwrap();
        // A veth cannot match another address.
        assert_eq!(lets_in(), "all frames: promiscuous (memberships: 1)");
        drop(accepted);
        assert_eq!(lets_in(), "its own MAC address and the groups the kernel has joined");
        // With sockets as well it is a running gateway.
        let socket = probe::hold_socket("g0", 0).unwrap();
        let diagnosis = doctor::diagnose(&devices, Depth::Try);
        let in_use = finding(&diagnosis, "in use");
        assert!(in_use.says.ends_with("AF_XDP sockets on queue 0"), "{in_use:?}");
        assert_eq!(in_use.status, Status::Reduced);
        drop(held);
        let in_use = finding(&doctor::diagnose(&devices, Depth::Try), "in use");
        assert_eq!(in_use.says, "in use: AF_XDP sockets on queue 0");
        drop(socket);
        await_event(&mut watcher, |event| event.change == LinkChange::Changed && event.state.xdp.is_none());
        // The kernel releases sockets some time after they are closed.
        let free = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            let diagnosis = doctor::diagnose(&devices, Depth::Try);
            finding(&diagnosis, "in use").status == Status::Works && diagnosis.exit_code() == 0
        });
        assert!(free, "{}", doctor::diagnose(&devices, Depth::Try).text());
    });
}

#[test]
fn the_doctor_on_a_missing_device() {
    let devices = ["sgl-nosuch".to_owned(), "lo".to_owned()];
    let diagnosis = doctor::diagnose(&devices, Depth::Ask);
    assert_eq!(diagnosis.exit_code(), 2);
    assert!(!diagnosis.usable && !diagnosis.devices[0].present && diagnosis.devices[1].present);
    assert!(diagnosis.text().contains("there is no device sgl-nosuch in this network namespace"));
    assert!(
        explain_bind_failure("sgl-nosuch", "No such device (os error 19)").contains("there is no device")
    );
}

/// A card drops frames to MAC addresses it does not know of before any program sees them.
#[test]
fn a_device_lets_in_other_addresses_and_all_groups_while_somebody_wants_it() {
    let Some(lab) = Lab::new("") else { return };
    let index: u32 = lab.gw("cat /sys/class/net/g0/ifindex").trim().parse().unwrap();
    let has = |mac: &str| lab.gw("bridge fdb show dev g0").lines().any(|line| line.starts_with(mac));
    let all_groups = || lab.gw("ip -d link show g0").contains("allmulti 1");
    let (first, second) = ("02:00:5e:00:00:01", "02:00:5e:00:00:02");
    assert!(!has(first) && !all_groups());
    let mut accepted = lab.inside(|| Accepted::groups(index).unwrap());
    assert!(all_groups());
    accepted.set(&[[2, 0, 0x5e, 0, 0, 1]]).unwrap();
    assert!(has(first) && !has(second));
    accepted.set(&[[2, 0, 0x5e, 0, 0, 2]]).unwrap();
    assert!(!has(first) && has(second));
    drop(accepted);
    assert!(!has(second) && !all_groups());
}
