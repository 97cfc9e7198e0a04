//! Runs the flows through both gateways in step, and compares what came out of each packet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use super::packet::{self, End, Header, ICMP, ICMPV6, L2, TCP, Which};
use super::plan::{self, Choice, Fate, Flow, From, Order, Step, Twist, WAN, What};
use super::systems::{Kernel, OnLink, Replay};

/// Where the two are known to differ, and why. What a step of the plan names must be so; nothing else may be.
pub const KNOWN: [Known; 12] = [
    Known {
        name: "address-dependent-filtering",
        softgate_passes: true,
        reason: "RFC 4787 section 5: who was sent something may answer from another port. netfilter filters by \
                 address and port.",
    },
    Known {
        name: "segments-of-long-ago",
        softgate_passes: false,
        reason: "No receiver takes a segment from before the window. netfilter translates it and leaves it to the \
                 receiver (since Linux 6.2), SoftGate drops it as tcp-out-of-window.",
    },
    Known {
        name: "overshoot",
        softgate_passes: false,
        reason: "Data that begin beyond what the receiver has offered. netfilter lets up to a window more pass, for \
                 senders that do not care; SoftGate's bound is the offer.",
    },
    Known {
        name: "half-open",
        softgate_passes: true,
        reason: "A SYN-ACK that does not answer this SYN comes from a connection that the server remembers: the \
                 client has to reset it (RFC 9293 section 3.5.2).",
    },
    Known {
        name: "reset-without-ack",
        softgate_passes: false,
        reason: "A RST that answers a SYN has to acknowledge it; no client takes another (RFC 9293 section 3.10.7.3).",
    },
    Known {
        name: "data-before-syn-ack",
        softgate_passes: false,
        reason: "No client takes data before the SYN-ACK. netfilter leaves that to the client.",
    },
    Known {
        name: "udp-length",
        softgate_passes: true,
        reason: "A router forwards a good IP packet whatever is behind its header (RFC 1812 section 5.2); who gets it has \
                 to drop it. SoftGate does not look at UDP's own length.",
    },
    Known {
        name: "malformed-options",
        softgate_passes: false,
        reason: "SoftGate has to read a SYN's options, for the window scale, and drops what it cannot read as \
                 tcp-invalid. netfilter takes the connection for one without.",
    },
    Known {
        name: "reply-without-query",
        softgate_passes: true,
        reason: "By a rule that allows everything, SoftGate lets a reply begin a session of its identifier. netfilter \
                 wants a query.",
    },
    Known {
        name: "information-request",
        softgate_passes: false,
        reason: "RFC 6918 has made it historic: SoftGate has no sessions of it.",
    },
    Known {
        name: "syn-ack-of-the-client",
        softgate_passes: true,
        reason: "In the window, a SYN-ACK on an established connection is one sent again, by either side if both opened \
                 it (RFC 9293 section 3.5). netfilter takes it of the server only.",
    },
    Known {
        name: "syn-of-the-server",
        softgate_passes: true,
        reason: "A SYN on an established connection is for the endpoint to challenge (RFC 5961 section 4.2). \
                 netfilter leaves it the client's only.",
    },
];

/// A known difference in fate.
pub struct Known {
    pub name: &'static str,
    /// And the kernel does not, or the other way round.
    pub softgate_passes: bool,
    pub reason: &'static str,
}

/// The pool of `plan::POLICY`.
const POOL: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(203, 0, 113, 0), Ipv4Addr::new(203, 0, 113, 15));
/// Ports of an interface address that are for NAT (the annotated config).
const INTERFACE_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;
/// Differences shown of each kind.
const SHOWN: usize = 3;

/// What one system has made of a flow.
#[derive(Clone, Default)]
struct View {
    /// The client as the server sees it.
    outside: Option<End>,
    /// The last IP packets that client and server got.
    got: [Option<Vec<u8>>; 2],
}

/// What the comparison found.
#[derive(Default)]
pub struct Report {
    pub packets: usize,
    /// Packets that passed both, by class.
    pub passed: BTreeMap<&'static str, usize>,
    /// And those that passed neither.
    pub lost: BTreeMap<&'static str, usize>,
    /// Packets that both treated alike, by what they are.
    pub alike: BTreeMap<&'static str, usize>,
    /// How often each known difference was seen.
    pub known: BTreeMap<&'static str, usize>,
    /// By class and kind: how many, and the first of them.
    pub differences: BTreeMap<(&'static str, &'static str), (usize, Vec<String>)>,
    /// Flows whose port or identifier the system did not keep: SoftGate, kernel.
    pub rewritten: [usize; 2],
}

impl Report {
    fn differs(&mut self, class: &'static str, kind: &'static str, text: impl FnOnce() -> String) {
        let (count, shown) = self.differences.entry((class, kind)).or_default();
        *count += 1;
        if *count <= SHOWN {
            shown.push(text());
        }
    }

    /// All differences as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for ((class, kind), (count, shown)) in &self.differences {
            let _ = writeln!(text, "== {class}: {kind}: {count}");
            for one in shown {
                let _ = writeln!(text, "{one}");
            }
        }
        text
    }
}

/// Sends frames through a system; what came out.
type Pass<'a> = dyn FnMut(&[OnLink]) -> Vec<OnLink> + 'a;

/// A system that takes frames and gives frames.
struct Side<'a> {
    name: &'static str,
    pass: Box<Pass<'a>>,
    views: Vec<View>,
}

/// What a packet of the plan became in one system: all that came out because of it.
#[derive(Clone, Default)]
struct Became {
    sent: Vec<OnLink>,
    out: Vec<OnLink>,
    /// What the gateway told the sender in its own name, or in the name of whom it asked for.
    told: Vec<OnLink>,
}

/// SoftGate and the kernel with the same flows.
pub fn compare(flows: &[Flow], replay: &mut Replay, kernel: &mut Kernel) -> Report {
    let mut report = Report::default();
    let views = vec![View::default(); flows.len()];
    let mut sides = [
        Side { name: "softgate", pass: Box::new(|frames| replay.pass(frames)), views: views.clone() },
        Side { name: "kernel", pass: Box::new(|frames| kernel.pass(frames)), views },
    ];
    let rounds = flows.iter().map(|flow| flow.rounds.len()).max().unwrap_or(0);
    for round in 0..rounds {
        let steps = flows.iter().enumerate().flat_map(|(index, flow)| {
            flow.rounds.get(round).into_iter().flatten().map(move |step| (index, step))
        });
        phase(flows, steps.collect(), &mut sides, &mut report);
    }
    let steps =
        flows.iter().enumerate().flat_map(|(index, flow)| flow.cut.iter().map(move |step| (index, step)));
    phase(flows, steps.collect(), &mut sides, &mut report);
    let [softgate, kernel] = sides;
    judge_choices(flows, &softgate.views, &kernel.views, &mut report);
    report
}

/// Sends one packet after the other through both; then compares.
fn phase(flows: &[Flow], steps: Vec<(usize, &Step)>, sides: &mut [Side<'_>; 2], report: &mut Report) {
    assert!(steps.len() < 0xfff0, "a packet is known by 16 bits");
    let mut became = Vec::new();
    for side in sides.iter_mut() {
        let mut all: Vec<Became> = Vec::new();
        for (number, (index, step)) in steps.iter().enumerate() {
            let sent = make(&flows[*index], step, &side.views[*index], number as u16 + 1);
            all.push(Became { sent, ..Became::default() });
        }
        let frames: Vec<OnLink> = all.iter().flat_map(|one| one.sent.iter().cloned()).collect();
        // What a gateway says itself bears no number: a reset is known by its ends, an error by what it quotes.
        let ends =
            |ip: &[u8]| (packet::upper(ip).0, packet::end(ip, Which::Src), packet::end(ip, Which::Dst));
        let refused: HashMap<(u8, End, End), usize> = (all.iter().zip(&steps).enumerate())
            .filter(|(_, (_, (_, step)))| step.fate == Fate::Refused)
            .filter_map(|(number, (one, _))| Some((ends(&one.sent.first()?.1[L2..]), number)))
            .collect();
        for (link, frame) in (side.pass)(&frames) {
            if !packet::is_readable(&frame) {
                report.differs("-", "unreadable", || format!("{}: {}", side.name, packet::describe(&frame)));
                continue;
            }
            let ip = &frame[L2..];
            let (protocol, src, dst) = ends(ip);
            let reset = (protocol == TCP).then(|| refused.get(&(TCP, dst, src))).flatten();
            let error = packet::is_error(ip).then(|| refused.get(&ends(packet::quoted(ip)))).flatten();
            if let Some(number) = reset.or(error) {
                all[*number].told.push((link, frame));
                continue;
            }
            match number_of(ip).filter(|number| *number < all.len()) {
                Some(number) => all[number].out.push((link, frame)),
                None => report.differs("-", "came from nowhere", || {
                    format!("{}, {}: {}", side.name, plan::LINKS[link], packet::describe(&frame))
                }),
            }
        }
        for ((index, step), became) in steps.iter().zip(&all) {
            learn(step, became, &mut side.views[*index]);
        }
        became.push(all);
    }
    judge_identifications(flows, &steps, &became[0], report);
    for (number, (index, step)) in steps.iter().enumerate() {
        let one = [0, 1].map(|side| (&sides[side].views[*index], &became[side][number]));
        judge(&flows[*index], step, one, report);
    }
}

/// Frames of one packet, and the link each comes in by; none if the flow never got so far.
fn make(flow: &Flow, step: &Step, view: &View, number: u16) -> Vec<OnLink> {
    let outside = view.outside;
    let (src, dst) = match step.from {
        From::Client => (flow.client, flow.asked),
        From::Server => match outside {
            Some(outside) => (flow.server, outside),
            None => return Vec::new(),
        },
        From::Stranger(stranger) => match outside {
            Some(outside) => (stranger, outside),
            None => return Vec::new(),
        },
    };
    let (mut from, mut to, mut protocol) = (src.addr, dst.addr, flow.protocol);
    let ports = [src.port.to_be_bytes(), dst.port.to_be_bytes()].concat();
    let mut bare = false;
    let upper = match &step.what {
        What::Udp { data, checksum } => {
            bare = !checksum;
            let data = if is_numbered(step) { numbered(data.len(), number) } else { data.clone() };
            [&ports[..], &(data.len() as u16 + 8).to_be_bytes(), &[0, 0], &data].concat()
        }
        What::Tcp { flags, seq, ack, window, options, data } => {
            let words = (20 + options.len()) as u8 / 4;
            let head = [&ports[..], &seq.to_be_bytes(), &ack.to_be_bytes(), &[words << 4, *flags]].concat();
            [&head[..], &window.to_be_bytes(), &[0; 4], options, data].concat()
        }
        What::Echo { reply, sequence, data } => {
            let kind = match (protocol, reply) {
                (ICMP, false) => 8,
                (ICMP, true) => 0,
                (_, false) => 128,
                (_, true) => 129,
            };
            let id = if step.from == From::Client { src.port } else { dst.port };
            let data = if is_numbered(step) { numbered(data.len(), number) } else { data.clone() };
            [&[kind, 0, 0, 0][..], &id.to_be_bytes(), &sequence.to_be_bytes(), &data].concat()
        }
        What::Other { data } => {
            let mut data = data.clone();
            match protocol {
                TCP | packet::UDP => data[..4].copy_from_slice(&ports),
                ICMP if data.len() >= 6 => data[4..6].copy_from_slice(&src.port.to_be_bytes()),
                _ => {}
            }
            data
        }
        What::Error { kind, code, rest, quote, router, twist } => {
            let side = usize::from(step.from != From::Client);
            let Some(about) = &view.got[side] else { return Vec::new() };
            protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
            from = router.unwrap_or(from);
            to = packet::addr(about, Which::Src);
            let (mut about, l4, mut rest) = (about.clone(), packet::upper(about).1, *rest);
            about.truncate(if *twist == Twist::Extended { 128 } else { l4 + quote });
            match twist {
                Twist::None => {}
                Twist::Late => packet::set_ttl(&mut about, 1),
                Twist::Extended => {
                    about.resize(128, 0);
                    // Version 2, no checksum, one object of 8 bytes: an MPLS label stack entry (RFC 4950).
                    about.extend([0x20, 0, 0, 0, 0, 8, 1, 1, 0, 1, 0x01, 0xff]);
                    rest |= 32 << 16;
                }
                Twist::Stray => about[l4..l4 + 8].fill(0xf1),
            }
            [&[*kind, *code, 0, 0][..], &rest.to_be_bytes(), &about].concat()
        }
    };
    // Another way to know it than by its data or its identification there is not.
    let header = Header { df: step.header.df || !is_numbered(step), ..step.header.clone() };
    let mut ip = packet::ip_packet(from, to, protocol, &header, number, &upper);
    if !bare {
        packet::fill_checksum(&mut ip);
    }
    if step.broken {
        packet::spoil_checksum(&mut ip);
    }
    let (link, station) = plan::place(from);
    let frame =
        |ip: &[u8]| packet::frame(plan::station_mac(station), plan::gateway_mac(link), ip, step.padding);
    let mut pieces = match step.cut {
        Some((most, _)) => packet::fragments(&ip, most),
        None => vec![ip],
    };
    match step.cut {
        Some((_, Order::Reverse)) => pieces.reverse(),
        Some((_, Order::FirstLast)) => pieces.rotate_left(1),
        Some((_, Order::Straight)) | None => {}
    }
    pieces.iter().map(|ip| (link, frame(ip))).collect()
}

/// A packet whose data tell what it is, and not its identification: that may be new when it comes out, if it may be cut.
fn is_numbered(step: &Step) -> bool {
    match &step.what {
        What::Udp { data, .. } | What::Echo { data, .. } => {
            step.tagged || !step.header.df && data.len() >= NUMBERED_BYTES
        }
        What::Tcp { .. } | What::Other { .. } | What::Error { .. } => false,
    }
}

/// Data in which [`numbered`] has room for the number.
const NUMBERED_BYTES: usize = 8;

/// Data whose every 8 bytes tell the packet: a fragment can be told even if its identification is new.
fn numbered(len: usize, number: u16) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u32).flat_map(|at| [0x7477_696e, at << 16 | u32::from(number)]);
    let mut data: Vec<u8> = words.flat_map(u32::to_be_bytes).collect();
    data.truncate(len);
    data
}

/// Which packet of the phase comes out here.
fn number_of(ip: &[u8]) -> Option<usize> {
    let (_, l4) = packet::upper(ip);
    let first = packet::be16(ip, 6) & 0x1fff == 0;
    let data = ip.get(l4 + if first { 8 } else { 0 }..).unwrap_or(&[]);
    let told = (data.len() >= NUMBERED_BYTES && data[..4] == *b"twin")
        .then(|| usize::from(packet::be16(data, 6)).checked_sub(1));
    if packet::is_fragment(ip) || packet::may_be_cut(ip) && told.is_some() {
        return told.flatten();
    }
    usize::from(packet::number_of(ip)).checked_sub(1)
}

/// Takes down what a flow's packet looked like when it came out.
fn learn(step: &Step, became: &Became, view: &mut View) {
    let Some((_, frame)) = became.out.last() else { return };
    let mut ip = frame[L2..].to_vec();
    if packet::may_be_cut(&ip)
        && let Some((_, sent)) = became.sent.first()
    {
        // Errors quote it: the same in both.
        packet::set_identification(&mut ip, packet::number_of(&sent[L2..]));
    }
    if matches!(step.what, What::Error { .. })
        || !matches!(step.fate, Fate::Passes | Fate::Alike)
        || step.tagged
    {
        return;
    }
    match step.from {
        From::Client => {
            view.outside.get_or_insert(packet::end(&ip, Which::Src));
            view.got[1] = Some(ip);
        }
        From::Server => view.got[0] = Some(ip),
        From::Stranger(_) => {}
    }
}

/// What came out of one packet, made comparable: the client's end stands for the outside end that was chosen.
fn normal(flow: &Flow, view: &View, became: &Became) -> [Vec<OnLink>; 2] {
    let chosen = view.outside.filter(|_| flow.choice != Choice::None);
    let identification = became.sent.first().map(|(_, frame)| packet::number_of(&frame[L2..]));
    let mut all = [&became.out, &became.told].map(|frames| frames.clone());
    for (_, frame) in all.iter_mut().flatten() {
        if let Some(outside) = chosen {
            packet::replace(&mut frame[L2..], flow.protocol, outside, flow.client);
        }
    }
    let [out, told] = &mut all;
    for (_, frame) in out.iter_mut().filter(|(_, frame)| packet::may_be_cut(&frame[L2..])) {
        // RFC 6864 section 5.3.1, RFC 7857 section 10: datagrams of several hosts that leave with one address need
        // identifications of that address. The kernel leaves them the hosts'; SoftGate's are judged by
        // `judge_identifications`.
        packet::set_identification(&mut frame[L2..], identification.unwrap_or(0));
    }
    for (link, frame) in told {
        same_voice(*link, &mut frame[L2..]);
    }
    // The order of fragments is that of their arrival, or of their offsets.
    all.iter_mut().for_each(|frames| frames.sort());
    all
}

/// Takes out of what a gateway says itself what each may say in its own way.
fn same_voice(link: usize, ip: &mut [u8]) {
    if ip[0] >> 4 == 6 {
        return;
    }
    // RFC 6864 section 4.1: the identification of a datagram that nobody may cut says nothing. SoftGate sends 0 and
    // "don't fragment", the kernel counts, and allows to cut.
    ip[4..8].fill(0);
    if packet::is_error(ip) {
        // RFC 1812 section 4.3.2.5: precedence 6 in both. The kernel adds the TOS bits of the packet, as that section
        // says; since RFC 2474 they are part of the DSCP, which would then be one that nobody has defined.
        ip[1] &= 0xe0;
        // The kernel sends its own errors through NAT, which puts the outside address in the place of its own.
        let own = plan::OWN[link][0].split('/').next().and_then(|own| own.parse::<Ipv4Addr>().ok());
        ip[12..16].copy_from_slice(&own.expect("an address").octets());
        let l4 = packet::upper(ip).1;
        if ip[l4..l4 + 2] == [3, 13] {
            // The kernel's filter stands behind the TTL's decrement, and that is what it quotes.
            packet::set_ttl(&mut ip[l4 + 8..], 64);
            packet::fill_checksum(ip);
        }
    }
    packet::fill_header_checksum(ip);
}

/// Compares what one packet became in both, and with what the plan says.
fn judge(flow: &Flow, step: &Step, one: [(&View, &Became); 2], report: &mut Report) {
    report.packets += one[0].1.sent.len();
    let tell = |what: &str| {
        let mut text = format!("-- {what}; {:?}, {:?}", step.from, step.fate);
        for (name, (_, became)) in ["softgate", "kernel"].into_iter().zip(one) {
            for (which, frames) in [("in  ", &became.sent), ("out ", &became.out), ("told", &became.told)] {
                for (link, frame) in frames {
                    let _ = write!(
                        text,
                        "\n   {name:8} {which} {} {}",
                        plan::LINKS[*link],
                        packet::describe(frame)
                    );
                }
            }
        }
        text
    };
    if !one.iter().all(|(_, became)| became.out.iter().all(|(_, frame)| packet::is_readable(frame))) {
        report.differs(flow.class, "unreadable", || tell("no IP packet"));
        return;
    }
    let [softgate, mut kernel] = one.map(|(view, became)| normal(flow, view, became));
    for (_, frame) in &mut kernel[0] {
        // The kernel puts IPv6 fragments together and cuts them anew. Routers should not (RFC 8200 section 4.5), and
        // SoftGate leaves them as they are.
        packet::restore_identification(&mut frame[L2..]);
    }
    kernel[0].sort();
    let fates = one.map(|(_, became)| fate_of(became));
    for (_, became) in one {
        for (_, frame) in became.out.iter().chain(&became.told) {
            let mut faults = packet::faults(&frame[L2..]);
            // A checksum that came in wrong has to go out wrong, also in what is quoted of it.
            faults.retain(|fault| !(step.broken && fault.contains("checksum of protocol")));
            if !faults.is_empty() && !quotes_broken(&became.sent) {
                report.differs(flow.class, "faulty", || tell(&faults.join(", ")));
            }
        }
    }
    if let Fate::Differs(name) = step.fate {
        let known = KNOWN.iter().find(|known| known.name == name).expect("an entry of the table");
        let passes = fates.map(|fate| fate == Fate::Passes);
        if one.iter().all(|(_, became)| became.sent.is_empty()) {
            return;
        }
        if passes == [known.softgate_passes, !known.softgate_passes] {
            *report.known.entry(name).or_default() += 1;
        } else {
            report.differs(flow.class, "no known difference", || tell(name));
        }
        return;
    }
    if one[0].1.sent.is_empty() && one[1].1.sent.is_empty() {
        return;
    }
    if softgate != kernel {
        let kind = if fates[0] == fates[1] { "another packet" } else { "another fate" };
        report.differs(flow.class, kind, || tell(&difference(&softgate.concat(), &kernel.concat())));
        return;
    }
    if fates[0] != step.fate && step.fate != Fate::Alike {
        report.differs(flow.class, "not as planned", || tell(&format!("{:?}", fates[0])));
    }
    *report.alike.entry(kind_of(flow, step)).or_default() += 1;
    let count = if fates[0] == Fate::Passes { &mut report.passed } else { &mut report.lost };
    *count.entry(flow.class).or_default() += 1;
}

/// What a packet is, for the summary.
fn kind_of(flow: &Flow, step: &Step) -> &'static str {
    match (&step.what, step.cut, step.from) {
        _ if step.fate == Fate::Refused => "refused with an answer",
        (_, Some(_), _) => "datagrams in fragments",
        _ if step.tagged => "too large",
        (What::Error { .. }, _, From::Client) => "ICMP errors of clients",
        (What::Error { .. }, _, _) => "ICMP errors of servers",
        _ if step.broken => "wrong checksum",
        _ if step.fate == Fate::Lost => "lost",
        (_, _, From::Stranger(_)) => "strangers",
        _ => match flow.protocol {
            TCP => "TCP",
            packet::UDP => "UDP",
            ICMP | ICMPV6 => "echo",
            _ => "others",
        },
    }
}

/// True if the packet in it quotes one whose checksum is wrong.
fn quotes_broken(sent: &[OnLink]) -> bool {
    sent.iter().any(|(_, frame)| {
        let ip = &frame[L2..];
        let ip = &ip[..packet::len(ip)];
        packet::is_error(ip) && packet::faults(ip).iter().any(|fault| fault.starts_with("quoted"))
    })
}

fn fate_of(became: &Became) -> Fate {
    match (became.out.is_empty(), became.told.is_empty()) {
        (false, _) => Fate::Passes,
        (true, false) => Fate::Refused,
        (true, true) => Fate::Lost,
    }
}

/// The first byte that differs.
fn difference(softgate: &[OnLink], kernel: &[OnLink]) -> String {
    for ((link, ours), (other, theirs)) in softgate.iter().zip(kernel) {
        if link != other {
            return format!("leaves by {} and by {}", plan::LINKS[*link], plan::LINKS[*other]);
        }
        let (l2, l3) = (&ours[L2..], &theirs[L2..]);
        if let Some(at) = (0..l2.len().min(l3.len())).find(|at| l2[*at] != l3[*at]) {
            return format!("byte {at} of the IP packet: {:#04x} and {:#04x}", l2[at], l3[at]);
        }
        if ours != theirs {
            return format!("{} and {} bytes, or another link header", ours.len(), theirs.len());
        }
    }
    format!("{} and {} frames", softgate.len(), kernel.len())
}

/// What may be cut, and fragments of one datagram, leave SoftGate with one identification: their own, or one that no other
/// datagram between the two ends has. That is if their source has changed, and of fragments if their destination has.
fn judge_identifications(flows: &[Flow], steps: &[(usize, &Step)], became: &[Became], report: &mut Report) {
    let mut taken = HashSet::new();
    for ((index, _), one) in steps.iter().zip(became) {
        let fragments = || one.out.iter().map(|(_, frame)| &frame[L2..]).filter(|ip| packet::may_be_cut(ip));
        let (Some(sent), Some(first)) = (one.sent.first(), fragments().next()) else { continue };
        let (sent, id) = (&sent.1[L2..], packet::number_of(first));
        let ends = [Which::Src, Which::Dst].map(|which| packet::addr(first, which));
        let moved = [0, 1].map(|end| ends[end] != packet::addr(sent, [Which::Src, Which::Dst][end]));
        let moved = moved[0] || moved[1] && packet::is_fragment(first);
        let one_for_all = fragments().all(|ip| packet::number_of(ip) == id);
        let lawful = if moved {
            taken.insert((ends, packet::upper(first).0, id))
        } else {
            id == packet::number_of(sent)
        };
        if !one_for_all || !lawful {
            report.differs(flows[*index].class, "identification", || packet::describe_ip(first));
        }
    }
}

/// What the systems chose is theirs to choose: of the pool or the range, never shared, and SoftGate's the same for all
/// whom an inside end talks to.
fn judge_choices(flows: &[Flow], softgate: &[View], kernel: &[View], report: &mut Report) {
    let mut mappings: HashMap<(u8, End), End> = HashMap::new();
    let mut owners: HashMap<(u8, End), End> = HashMap::new();
    let mut hosts: HashMap<(IpAddr, Choice), IpAddr> = HashMap::new();
    let mut tuples: HashSet<(u8, End, End)> = HashSet::new();
    for (flow, (ours, theirs)) in flows.iter().zip(softgate.iter().zip(kernel)) {
        for (side, view) in [ours, theirs].into_iter().enumerate() {
            let Some(outside) = view.outside.filter(|_| flow.choice != Choice::None) else { continue };
            report.rewritten[side] += usize::from(outside.port != flow.client.port);
            if let Some(wrong) = unlawful(flow, outside) {
                let name = ["softgate", "kernel"][side];
                report.differs(flow.class, "choice", || {
                    format!("{name}: {:?} as {outside:?}: {wrong}", flow.client)
                });
            }
        }
        if let Some(outside) = ours.outside.filter(|_| flow.choice != Choice::None) {
            let key = (flow.protocol, flow.client);
            if *mappings.entry(key).or_insert(outside) != outside {
                report.differs(flow.class, "mapping depends on the destination", || format!("{flow:?}"));
            }
            if *owners.entry((flow.protocol, outside)).or_insert(flow.client) != flow.client {
                report
                    .differs(flow.class, "shared outside port", || format!("{outside:?} {:?}", flow.client));
            }
            let host = (flow.client.addr, flow.choice);
            if *hosts.entry(host).or_insert(outside.addr) != outside.addr {
                report.differs(flow.class, "not paired", || format!("{outside:?} {:?}", flow.client));
            }
        }
        // The kernel tells an identifier of an echo from the same one of a timestamp, which are among the malformed.
        if let Some(outside) = theirs.outside.filter(|_| flow.choice != Choice::None)
            && flow.class != "malformed"
            && !tuples.insert((flow.protocol, outside, flow.server))
        {
            report.differs(flow.class, "kernel: shared tuple", || format!("{outside:?}"));
        }
    }
}

/// What is wrong with the outside end of a flow.
fn unlawful(flow: &Flow, outside: End) -> Option<&'static str> {
    let IpAddr::V4(addr) = outside.addr else { return Some("not IPv4") };
    let identifier = flow.protocol == ICMP;
    match flow.choice {
        Choice::None => None,
        Choice::Pool if !(POOL.0..=POOL.1).contains(&addr) => Some("not of the pool"),
        // RFC 4787 REQ-3a. An identifier has no classes.
        Choice::Pool if !identifier && (flow.client.port < 1024) != (outside.port < 1024) => {
            Some("port of another class")
        }
        Choice::Interface if plan::OWN[WAN][0].split('/').next() != Some(&addr.to_string()) => {
            Some("not the interface's")
        }
        Choice::Interface if !identifier && !INTERFACE_PORTS.contains(&outside.port) => {
            Some("not of the range")
        }
        Choice::Pool | Choice::Interface => None,
    }
}

/// Forwards a client's packet as a NAT without faults would.
fn forwarded(flow: &Flow, outside: End, sent: &OnLink) -> OnLink {
    let (link, station) = plan::place(flow.server.addr);
    let ip = &sent.1[L2..];
    let mut ip = ip[..packet::len(ip)].to_vec();
    packet::replace(&mut ip, flow.protocol, flow.client, outside);
    packet::set_ttl(&mut ip, sent.1[L2 + 8] - 1);
    (link, packet::frame(plan::gateway_mac(link), plan::station_mac(station), &ip, 0))
}

#[test]
fn a_changed_bit_is_found() {
    let flows = plan::Generator::flows(3, 300);
    let mut tried = 0;
    for flow in flows.iter().filter(|flow| flow.class == "out").take(40) {
        // Two systems, and what each chose.
        let chosen = [("203.0.113.1", 5000), ("203.0.113.9", 6000)]
            .map(|(addr, port)| End { addr: addr.parse().expect("an address"), port });
        let step = &flow.rounds[0][0];
        if step.fate != Fate::Passes {
            continue;
        }
        let views = chosen.map(|outside| View { outside: Some(outside), ..View::default() });
        let sent = make(flow, step, &views[0], 77);
        let became = chosen.map(|outside| Became {
            sent: sent.clone(),
            out: vec![forwarded(flow, outside, &sent[0])],
            told: Vec::new(),
        });
        let verdict = |became: &[Became; 2]| {
            let mut report = Report::default();
            judge(flow, step, [(&views[0], &became[0]), (&views[1], &became[1])], &mut report);
            report.differences
        };
        assert!(verdict(&became).is_empty(), "{:?}", verdict(&became));
        for side in 0..2 {
            for bit in 0..became[side].out[0].1.len() * 8 {
                let mut other = became.clone();
                other[side].out[0].1[bit / 8] ^= 1 << (bit % 8);
                tried += 1;
                assert!(
                    !verdict(&other).is_empty(),
                    "bit {bit} of {}",
                    packet::describe(&other[side].out[0].1)
                );
            }
            let mut other = became.clone();
            other[side].out.clear();
            assert!(!verdict(&other).is_empty(), "a lost packet");
            other[side].out = vec![became[side].out[0].clone(); 2];
            assert!(!verdict(&other).is_empty(), "a packet twice");
            other[side].out = vec![(plan::LAN, became[side].out[0].1.clone())];
            assert!(!verdict(&other).is_empty(), "out of another link");
        }
    }
    assert!(tried > 10_000, "only {tried} bits");
}
