//! DHCPv4 messages (RFC 2131 section 2) on their way through a relay (RFC 1542 section 4.1), and option 82 (RFC
//! 3046).

use std::net::Ipv4Addr;

use arrayvec::ArrayVec;

use super::{Message, put};
use crate::packet::DropReason;
use crate::packet::view::{array, be16, be32};
use crate::tables::relay::{Option82, Relay};

const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
/// Hardware type of Ethernet (RFC 1700), whose addresses have six bytes.
const ETHERNET: u8 = 1;
/// RFC 2131 section 2, figure 2: the leftmost bit of `flags`.
const BROADCAST_FLAG: u16 = 0x8000;

// Where the fields stand (RFC 2131 section 2, figure 1).
const HTYPE: usize = 1;
const HLEN: usize = 2;
const HOPS: usize = 3;
const FLAGS: usize = 10;
const CIADDR: usize = 12;
const YIADDR: usize = 16;
const GIADDR: usize = 24;
const CHADDR: usize = 28;
const CHADDR_BYTES: u8 = 16;
const SNAME: usize = 44;
const FILE: usize = 108;
const COOKIE: usize = 236;
const OPTIONS: usize = 240;

/// RFC 1497: options follow.
const MAGIC_COOKIE: u32 = 0x6382_5363;
/// RFC 1542 section 2.1: no message is shorter.
const LEAST_BYTES: usize = 300;

// Options (RFC 2132, RFC 3046).
const PAD: u8 = 0;
const OVERLOAD: u8 = 52;
const AGENT_INFORMATION: u8 = 82;
const END: u8 = 255;

/// The contents of option 82: one option, as long as one may be.
type Agent = ArrayVec<u8, 255>;

/// An option in a field: where it stands, with code and length.
struct Found<'m> {
    code: u8,
    whole: &'m [u8],
    value: &'m [u8],
}

/// Walks the options of a field up to the end option, or to the field's end (RFC 951 has none).
struct Options<'m> {
    rest: &'m [u8],
}

impl<'m> Iterator for Options<'m> {
    type Item = Result<Found<'m>, DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        let whole_len = match *self.rest {
            [] | [END, ..] => return None,
            [PAD, ..] => 1,
            [_, len, ..] => 2 + usize::from(len),
            [_] => usize::MAX,
        };
        let Some((whole, rest)) = self.rest.split_at_checked(whole_len) else {
            self.rest = &[];
            return Some(Err(DropReason::DhcpInvalid));
        };
        self.rest = rest;
        Some(Ok(Found { code: whole[0], whole, value: whole.get(2..).unwrap_or(&[]) }))
    }
}

fn options(field: &[u8]) -> Options<'_> {
    Options { rest: field }
}

/// What both directions ask of a message.
fn check(message: &[u8], op: u8) -> Result<(), DropReason> {
    let is_good = message.len() >= OPTIONS && message[0] == op && message[HLEN] <= CHADDR_BYTES;
    if is_good { Ok(()) } else { Err(DropReason::DhcpInvalid) }
}

fn has_options(message: &[u8]) -> bool {
    be32(message, COOKIE) == MAGIC_COOKIE
}

/// True for an address that a host may have.
fn is_host(addr: u32) -> bool {
    let first = addr >> 24;
    first != 0 && first != 127 && first < 224
}

/// True for a message from servers.
pub fn is_reply(message: &[u8]) -> bool {
    message.first() == Some(&BOOTREPLY)
}

/// Makes of a client's message what servers get. `is_ours`: a relay address of the gateway; `limit`: the longest
/// message that travels on.
pub fn request(
    message: &[u8],
    relay: &Relay,
    is_ours: impl Fn(Ipv4Addr) -> bool,
    limit: usize,
) -> Result<Message, DropReason> {
    check(message, BOOTREQUEST)?;
    let spec = &relay.spec;
    if message[HOPS] > spec.max_hops {
        return Err(DropReason::DhcpHops);
    }
    let giaddr = be32(message, GIADDR);
    let mut out = Message::new();
    if giaddr != 0 {
        // RFC 3046 section 2.1.1.
        if is_ours(giaddr.into()) {
            return Err(DropReason::DhcpLoop);
        }
        if !is_host(giaddr) {
            return Err(DropReason::DhcpInvalid);
        }
        if !spec.from_relays {
            return Err(DropReason::DhcpOtherRelay);
        }
        put(&mut out, message)?;
    } else {
        mark(message, relay, limit, &mut out)?;
        let std::net::IpAddr::V4(source) = spec.source else { return Err(DropReason::DhcpInvalid) };
        out[GIADDR..GIADDR + 4].copy_from_slice(&source.octets());
    }
    out[HOPS] = message[HOPS].saturating_add(1);
    pad(&mut out, message.len())?;
    Ok(out)
}

/// Copies a message of a client, with option 82 as configured.
fn mark(message: &[u8], relay: &Relay, limit: usize, out: &mut Message) -> Result<(), DropReason> {
    if !has_options(message) {
        return put(out, message);
    }
    let (theirs, is_there, hidden) = present(message)?;
    match relay.spec.option82 {
        Option82::Off | Option82::Drop if is_there => return Err(DropReason::DhcpOption82),
        Option82::Keep if is_there => return put(out, message),
        Option82::Off => return put(out, message),
        Option82::Drop | Option82::Replace | Option82::Append | Option82::Keep => {}
    }
    copy_without(message, out)?;
    for (from, to) in hidden {
        blank(&mut out[from..to]);
    }
    let bare = out.len();
    let mut agent = Agent::new();
    if relay.spec.option82 == Option82::Append {
        agent = theirs;
    }
    let limit = limit.min(out.capacity());
    let fits = agent.try_extend_from_slice(&relay.agent).is_ok() && bare + 2 + agent.len() < limit;
    if fits {
        put_agent(out, &agent)?;
    } else if !relay.spec.is_own_source {
        // Nobody would know where the answer goes.
        return Err(DropReason::DhcpTooLong);
    } else if relay.spec.option82 == Option82::Append {
        out.clear();
        return put(out, message);
    }
    // RFC 3046 section 2.1: what would be too long with it goes without it.
    put(out, &[END])
}

/// Where options stand beside the options field: `sname` and `file`, as option 52 says (RFC 2132 section 9.3).
type Hidden = ArrayVec<(usize, usize), 2>;

/// The contents of option 82 in the options field, whether there is one anywhere, and the other fields with options.
fn present(message: &[u8]) -> Result<(Agent, bool, Hidden), DropReason> {
    let (mut theirs, mut is_there, mut overload) = (Agent::new(), false, 0);
    for option in options(&message[OPTIONS..]) {
        let option = option?;
        match (option.code, option.value) {
            (AGENT_INFORMATION, value) => {
                is_there = true;
                theirs.try_extend_from_slice(value).map_err(|_| DropReason::DhcpInvalid)?;
            }
            (OVERLOAD, [fields]) => overload = *fields,
            (OVERLOAD, _) => return Err(DropReason::DhcpInvalid),
            _ => {}
        }
    }
    let mut hidden = Hidden::new();
    for (bit, from, to) in [(1, FILE, COOKIE), (2, SNAME, FILE)] {
        if overload & bit != 0 {
            hidden.push((from, to));
            for option in options(&message[from..to]) {
                is_there |= option?.code == AGENT_INFORMATION;
            }
        }
    }
    Ok((theirs, is_there, hidden))
}

/// Copies all of a message but option 82 and what is from the end option on.
fn copy_without(message: &[u8], out: &mut Message) -> Result<(), DropReason> {
    put(out, &message[..OPTIONS])?;
    for option in options(&message[OPTIONS..]) {
        let option = option?;
        if option.code != AGENT_INFORMATION {
            put(out, option.whole)?;
        }
    }
    Ok(())
}

/// Takes option 82 out of a field of fixed length.
fn blank(field: &mut [u8]) {
    let mut at = 0;
    while let Some(Ok(option)) = options(&field[at..]).next() {
        let (code, len) = (option.code, option.whole.len());
        if code == AGENT_INFORMATION {
            field[at..at + len].fill(PAD);
        }
        at += len;
    }
}

fn put_agent(out: &mut Message, agent: &[u8]) -> Result<(), DropReason> {
    put(out, &[AGENT_INFORMATION, agent.len() as u8])?;
    put(out, agent)
}

/// A message is as long as it came, and not shorter than any may be.
fn pad(out: &mut Message, len: usize) -> Result<(), DropReason> {
    const ZEROS: [u8; LEAST_BYTES] = [0; LEAST_BYTES];
    while out.len() < len.max(LEAST_BYTES) {
        let missing = (len.max(LEAST_BYTES) - out.len()).min(ZEROS.len());
        put(out, &ZEROS[..missing])?;
    }
    Ok(())
}

/// A server's message, as far as it says whose it is.
pub struct Reply<'m> {
    /// The relay it is for.
    pub giaddr: Ipv4Addr,
    /// The circuit that it names last: ours stands behind others'.
    pub circuit: Option<&'m [u8]>,
    message: &'m [u8],
}

/// Reads a server's message.
pub fn read_reply(message: &[u8]) -> Result<Reply<'_>, DropReason> {
    const CIRCUIT_ID: u8 = 1;
    check(message, BOOTREPLY)?;
    let mut circuit = None;
    if has_options(message) {
        for option in options(&message[OPTIONS..]) {
            let option = option?;
            if option.code == AGENT_INFORMATION {
                let last = sub_options(option.value).filter(|(code, _)| *code == CIRCUIT_ID).last();
                circuit = last.map(|(_, value)| value).or(circuit);
            }
        }
    }
    Ok(Reply { giaddr: be32(message, GIADDR).into(), circuit, message })
}

/// The sub-options of option 82, as far as they are whole.
fn sub_options(mut rest: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let [code, len, behind @ ..] = rest else { return None };
        let (value, next) = behind.split_at_checked(usize::from(*len))?;
        rest = next;
        Some((*code, value))
    })
}

/// How a client is reached (RFC 1542 section 4.1.2, RFC 2131 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// All on the link hear it.
    Broadcast,
    /// It alone; it has no ARP entry yet.
    Unicast {
        /// Its address.
        addr: Ipv4Addr,
        /// Its MAC address in the lower 48 bits.
        mac: u64,
    },
}

impl Reply<'_> {
    /// What the client gets: the message without our option 82.
    pub fn for_client(&self, relay: &Relay) -> Result<Message, DropReason> {
        let mut out = Message::new();
        let option82 = relay.spec.option82;
        if option82 == Option82::Off || !has_options(self.message) {
            put(&mut out, self.message)?;
            pad(&mut out, self.message.len())?;
            return Ok(out);
        }
        let mut agent = Agent::new();
        for option in options(&self.message[OPTIONS..]) {
            let option = option?;
            if option.code == AGENT_INFORMATION {
                agent.try_extend_from_slice(option.value).map_err(|_| DropReason::DhcpInvalid)?;
            }
        }
        // What others put there they take out themselves (RFC 3046 section 2.1).
        let theirs = match agent.strip_suffix(&relay.agent[..]) {
            Some(theirs) if option82 == Option82::Append => theirs,
            None if option82 == Option82::Keep => &agent,
            _ => &[],
        };
        copy_without(self.message, &mut out)?;
        if !theirs.is_empty() {
            put_agent(&mut out, theirs)?;
        }
        put(&mut out, &[END])?;
        pad(&mut out, self.message.len())?;
        Ok(out)
    }

    /// Where the client is.
    pub fn client(&self) -> Client {
        let message = self.message;
        let [yiaddr, ciaddr] = [YIADDR, CIADDR].map(|at| be32(message, at));
        let addr = if yiaddr != 0 { yiaddr } else { ciaddr };
        let mac = u64::from_be_bytes(*array(message, CHADDR)) >> 16;
        let is_station = message[HTYPE] == ETHERNET && message[HLEN] == 6 && mac != 0 && mac >> 40 & 1 == 0;
        if be16(message, FLAGS) & BROADCAST_FLAG != 0 || !is_station || !is_host(addr) {
            return Client::Broadcast;
        }
        Client::Unicast { addr: addr.into(), mac }
    }
}
