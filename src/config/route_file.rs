//! Route files: full tables as text, one route per line; `#` starts a comment.
//!
//! ```text
//! 192.0.2.0/24 via 198.51.100.1
//! 2001:db8:1::/48 via 2001:db8::1,2001:db8::2@blue
//! 203.0.113.0/24 blackhole
//! 203.0.113.0/25 unreachable
//! ```

use super::sections::{Route, RouteTarget};
use super::value::{NextHop, NotAllowed, VrfName};

/// A line that is no route.
pub(crate) struct BadLine {
    /// Counted from 1.
    pub line: u32,
    pub key: &'static str,
    pub value: String,
    pub allowed: NotAllowed,
}

const FORM: &str = "a line is: PREFIX via ADDRESS[@VRF][,ADDRESS...], PREFIX blackhole or PREFIX unreachable";

/// Reads all routes of `text` into the VRF `vrf`; each bad line goes to `bad`.
pub(crate) fn parse(text: &str, vrf: &VrfName, mut bad: impl FnMut(BadLine)) -> Vec<Route> {
    // A line of a full table is about 32 bytes: one growth at most.
    let mut routes = Vec::with_capacity(text.len() / 32);
    for (line, words) in lines(text) {
        match parse_line(words, vrf) {
            Ok(route) => routes.push(route),
            Err((key, value, allowed)) => bad(BadLine { line, key, value: value.to_owned(), allowed }),
        }
    }
    routes
}

/// The line, counted from 1, of the route with this index.
pub(crate) fn line_of(text: &str, index: usize) -> Option<u32> {
    lines(text).nth(index).map(|(line, _)| line)
}

/// What stands on each line that is not empty, without comments.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (u32, &str)> {
    (1..).zip(text.lines()).filter_map(|(number, line)| {
        let words = line.split_once('#').map_or(line, |(words, _)| words).trim();
        (!words.is_empty()).then_some((number, words))
    })
}

/// Key, value and what is allowed.
type Fault<'a> = (&'static str, &'a str, NotAllowed);

pub(crate) fn parse_line<'a>(words: &'a str, vrf: &VrfName) -> Result<Route, Fault<'a>> {
    let form = || ("route", words, NotAllowed::new(FORM));
    let mut split = words.split_ascii_whitespace();
    let prefix = split.next().ok_or_else(form)?;
    let prefix = prefix.parse().map_err(|allowed| ("prefix", prefix, allowed))?;
    let target = match (split.next(), split.next()) {
        (Some("via"), Some(via)) => parse_via(via).map_err(|(value, allowed)| ("via", value, allowed))?,
        (Some("blackhole"), None) => RouteTarget::Blackhole,
        (Some("unreachable"), None) => RouteTarget::Unreachable,
        _ => return Err(form()),
    };
    match split.next() {
        None => Ok(Route { prefix, vrf: vrf.clone(), target }),
        Some(_) => Err(form()),
    }
}

/// `ADDRESS[@VRF][,ADDRESS...]`
pub(crate) fn parse_via(text: &str) -> Result<RouteTarget, (&str, NotAllowed)> {
    if !text.contains(',') {
        // The usual case, without looking twice: full tables have a million of these.
        return match text.parse::<NextHop>() {
            Ok(next_hop) => Ok(RouteTarget::Via(vec![next_hop])),
            Err(allowed) => Err((text, allowed)),
        };
    }
    let mut next_hops = Vec::new();
    for word in text.split(',') {
        next_hops.push(word.parse().map_err(|allowed| (word, allowed))?);
    }
    RouteTarget::via(next_hops).map_err(|allowed| (text, allowed))
}
