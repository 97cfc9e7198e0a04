//! HTTP/1.1 (RFC 9110, RFC 9112) as far as health checks need it: one request, and whether its answer is as expected.
//!
//! Nothing is kept of an answer but the line that is being read and as many bytes of the body as the expected text
//! may reach back.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::Reason;
use crate::config::{HealthCheck, HealthKind};

/// Bytes of status line and header fields that are read; what is longer is not read to its end.
const MAX_HEAD: usize = 16 * 1024;

/// Longest status line, header field or chunk size.
const MAX_LINE: usize = 4 * 1024;

/// Bytes of the body that are searched.
const MAX_BODY: usize = 64 * 1024;

/// What every answer begins with (RFC 9112 section 4).
const VERSION: &[u8] = b"HTTP/1.";

/// The request of a check.
pub(super) fn request(check: &HealthCheck, addr: IpAddr, port: u16) -> Vec<u8> {
    let mut text = String::new();
    let method = check.method.as_ref().map_or("GET", |method| method.as_str());
    let path = check.path.as_ref().map_or("/", |path| path.as_str());
    let default_port = if check.kind == HealthKind::Https { 443 } else { 80 };
    // Writing into a string does not fail.
    let _ = write!(text, "{method} {path} HTTP/1.1\r\nHost: ");
    let _ = match (&check.host, addr) {
        (Some(host), _) => write!(text, "{}", host.as_str()),
        (None, IpAddr::V4(addr)) => write!(text, "{addr}"),
        (None, IpAddr::V6(addr)) => write!(text, "[{addr}]"),
    };
    if check.host.is_none() && port != default_port {
        let _ = write!(text, ":{port}");
    }
    text.push_str("\r\nUser-Agent: softgate\r\nAccept: */*\r\nConnection: close\r\n\r\n");
    text.into_bytes()
}

/// Where in the answer we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Its first line.
    Status,
    /// Header fields, of an answer that is only a preliminary one (RFC 9110 section 15.2) or not.
    Fields { interim: bool },
    /// The body, of which so many bytes are left; `None`: it ends with the connection.
    Body { left: Option<u64> },
    /// The size of a chunk (RFC 9112 section 7.1).
    ChunkSize,
    /// A chunk, of which so many bytes are left.
    Chunk { left: u64 },
    /// The end of the line behind a chunk.
    ChunkEnd,
}

/// The answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    at: At,
    /// The line that is being read.
    line: Vec<u8>,
    head_bytes: usize,
    is_chunked: bool,
    content_length: Option<u64>,
    /// The last bytes of the body: what the expected text may begin in.
    tail: Vec<u8>,
    body_bytes: usize,
}

impl Answer {
    pub(super) fn new() -> Answer {
        Answer {
            at: At::Status,
            line: Vec::new(),
            head_bytes: 0,
            is_chunked: false,
            content_length: None,
            tail: Vec::new(),
            body_bytes: 0,
        }
    }

    /// Takes what has come; `Some`: that is all that there is to know.
    pub(super) fn take(&mut self, mut bytes: &[u8], check: &HealthCheck) -> Option<Reason> {
        while !bytes.is_empty() {
            let ended = match self.at {
                At::Body { left } => {
                    let part = self.part(&mut bytes, left.unwrap_or(u64::MAX));
                    self.at = At::Body { left: left.map(|left| left - part.len() as u64) };
                    self.search(part, check)
                }
                At::Chunk { left } => {
                    let part = self.part(&mut bytes, left);
                    let left = left - part.len() as u64;
                    self.at = if left == 0 { At::ChunkEnd } else { At::Chunk { left } };
                    self.search(part, check)
                }
                _ => self.take_line(&mut bytes, check),
            };
            if ended.is_some() || self.at == (At::Body { left: Some(0) }) {
                return ended.or(Some(Reason::Body));
            }
        }
        None
    }

    /// The connection has ended.
    pub(super) fn end(&self) -> Reason {
        match self.at {
            At::Body { left: None } => Reason::Body,
            _ => Reason::Closed,
        }
    }

    fn part<'b>(&self, bytes: &mut &'b [u8], most: u64) -> &'b [u8] {
        let len = most.min(bytes.len() as u64) as usize;
        let (part, rest) = bytes.split_at(len);
        *bytes = rest;
        part
    }

    /// Reads on to the end of a line, and acts on it.
    fn take_line(&mut self, bytes: &mut &[u8], check: &HealthCheck) -> Option<Reason> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = self.part(bytes, end.map_or(u64::MAX, |end| end as u64 + 1));
        self.line.extend_from_slice(part);
        self.head_bytes += part.len();
        // What is no HTTP may never end its line.
        let begun = self.line.len().min(VERSION.len());
        if self.at == At::Status && self.line[..begun] != VERSION[..begun] {
            return Some(Reason::Protocol);
        }
        if self.line.len() > MAX_LINE || self.head_bytes > MAX_HEAD {
            return Some(Reason::Protocol);
        }
        end?;
        // A line may end without CR as well (RFC 9112 section 2.2).
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.at {
            At::Status => self.status(line, check),
            At::Fields { interim } => self.field(line, interim, check),
            At::ChunkSize => self.chunk(line),
            At::ChunkEnd if line.is_empty() => {
                self.at = At::ChunkSize;
                // Lines of chunks are none of the head.
                self.head_bytes = 0;
                None
            }
            At::ChunkEnd => Some(Reason::Protocol),
            At::Body { .. } | At::Chunk { .. } => unreachable!("these are not read by line"),
        }
    }

    /// `HTTP/1.1 200 OK`; the text may be missing, not the status (RFC 9112 section 4).
    fn status(&mut self, line: &[u8], check: &HealthCheck) -> Option<Reason> {
        let status = match line.get(VERSION.len()..) {
            Some([minor, b' ', a, b, c, rest @ ..])
                if [minor, a, b, c].iter().all(|digit| digit.is_ascii_digit())
                    && rest.first().is_none_or(|byte| *byte == b' ') =>
            {
                let digit = |byte: u8| u16::from(byte - b'0');
                digit(*a) * 100 + digit(*b) * 10 + digit(*c)
            }
            _ => return Some(Reason::Protocol),
        };
        let interim = (100..200).contains(&status) && status != 101 && !check.accepts(status);
        if !interim && !check.accepts(status) {
            return Some(Reason::Status(status));
        }
        if !interim && check.body.is_none() {
            return Some(Reason::Ok);
        }
        // No content (RFC 9112 section 6.3).
        if !interim && (status < 200 || matches!(status, 204 | 304)) {
            return Some(Reason::Body);
        }
        self.at = At::Fields { interim };
        None
    }

    fn field(&mut self, line: &[u8], interim: bool, check: &HealthCheck) -> Option<Reason> {
        if line.is_empty() {
            self.at = match (interim, self.is_chunked, self.content_length) {
                (true, ..) => At::Status,
                (_, true, _) => At::ChunkSize,
                (_, false, left) => At::Body { left },
            };
            if interim {
                (self.is_chunked, self.content_length) = (false, None);
            }
            self.tail.reserve(check.body.as_ref().map_or(0, |body| body.len()));
            return None;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Some(Reason::Protocol) };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // The last one counts, and it is the last in the list.
            let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
            self.is_chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let Some(length) = decimal(value) else { return Some(Reason::Protocol) };
            self.content_length = Some(length);
        }
        None
    }

    /// `1a;extension`; the last chunk is empty.
    fn chunk(&mut self, line: &[u8]) -> Option<Reason> {
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let size = std::str::from_utf8(size).ok().filter(|size| size.bytes().all(|b| b.is_ascii_hexdigit()));
        match size.and_then(|size| u64::from_str_radix(size, 16).ok()) {
            Some(0) => Some(Reason::Body),
            Some(left) => {
                self.at = At::Chunk { left };
                None
            }
            None => Some(Reason::Protocol),
        }
    }

    /// Looks for the expected text in the next part of the body.
    fn search(&mut self, part: &[u8], check: &HealthCheck) -> Option<Reason> {
        let wanted: &[u8] = check.body.as_deref().unwrap_or_default();
        let part = &part[..part.len().min(MAX_BODY - self.body_bytes)];
        self.body_bytes += part.len();
        self.tail.extend_from_slice(part);
        if wanted.is_empty() || self.tail.windows(wanted.len()).any(|window| window == wanted) {
            return Some(Reason::Ok);
        }
        if self.body_bytes == MAX_BODY {
            return Some(Reason::Body);
        }
        self.tail.drain(..self.tail.len().saturating_sub(wanted.len() - 1));
        None
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(keys: &str) -> HealthCheck {
        toml::from_str(&format!("type = \"http\"\n{keys}")).expect("a check")
    }

    /// What comes of an answer, however it is cut, and then the end.
    fn judge(check: &HealthCheck, parts: &[&[u8]]) -> Reason {
        let mut answer = Answer::new();
        let said = parts.iter().find_map(|part| answer.take(part, check));
        said.unwrap_or_else(|| answer.end())
    }

    const CASES: [(&str, &str, Reason); 26] = [
        ("", "HTTP/1.1 200 OK\r\n", Reason::Ok),
        ("", "HTTP/1.0 204\r\n", Reason::Ok),
        ("", "HTTP/1.1 399 \n", Reason::Ok),
        ("", "HTTP/1.1 503 Service Unavailable\r\n", Reason::Status(503)),
        ("status = 503", "HTTP/1.1 503 Service Unavailable\r\n", Reason::Ok),
        ("status = [200, \"500-503\"]", "HTTP/1.1 504 \r\n", Reason::Status(504)),
        ("", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 No\r\n\r\n", Reason::Status(500)),
        ("", "HTTP/1.1 2000 OK\r\n", Reason::Protocol),
        ("", "HTTP/1.1 20 OK\r\n", Reason::Protocol),
        ("", "HTTP/2 200\r\n", Reason::Protocol),
        ("", "SSH-2.0-OpenSSH_9.6\r\n", Reason::Protocol),
        ("", "HTTP/1.1 200 OK", Reason::Closed),
        ("", "", Reason::Closed),
        ("body = \"fine\"", "HTTP/1.1 200 OK\r\n\r\nall is fine here", Reason::Ok),
        ("body = \"fine\"", "HTTP/1.1 200 OK\r\n\r\nall is lost here", Reason::Body),
        ("body = \"fine\"", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nis fine", Reason::Body),
        ("body = \"fine\"", "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nis fine", Reason::Ok),
        ("body = \"fine\"", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Reason::Body),
        ("body = \"fine\"", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", Reason::Protocol),
        ("body = \"fine\"", "HTTP/1.1 200 OK\r\nno field\r\n\r\nfine", Reason::Protocol),
        ("body = \"fine\"", "HTTP/1.1 204 No Content\r\n\r\nfine", Reason::Body),
        (
            "body = \"fine\"",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n2\r\nfi\r\n2;a=b\r\nne\r\n0\r\n\r\n",
            Reason::Ok,
        ),
        (
            "body = \"fine\"",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nfi\r\n0\r\n\r\nne",
            Reason::Body,
        ),
        (
            "body = \"fine\"",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfiner\r\n",
            Reason::Ok,
        ),
        (
            "body = \"fine\"",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nliner\r\n",
            Reason::Protocol,
        ),
        (
            "body = \"fine\"",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+4\r\nfine\r\n",
            Reason::Protocol,
        ),
    ];

    #[test]
    fn an_answer_means_the_same_however_it_is_cut() {
        for (keys, text, expected) in CASES {
            let check = check(keys);
            assert_eq!(judge(&check, &[text.as_bytes()]), expected, "{keys} {text:?}");
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(judge(&check, &bytes), expected, "byte by byte: {keys} {text:?}");
            for at in 0..text.len() {
                let (a, b) = text.as_bytes().split_at(at);
                assert_eq!(judge(&check, &[a, b]), expected, "cut at {at}: {keys} {text:?}");
            }
        }
    }

    #[test]
    fn nothing_grows_without_bound() {
        let with_body = check("body = \"fine\"");
        let mut answer = Answer::new();
        assert_eq!(answer.take(b"HTTP/1.1 200 OK\r\n", &with_body), None);
        let fields = (0..).find_map(|_| answer.take(b"X-Padding: 0123456789\r\n", &with_body));
        assert_eq!(fields, Some(Reason::Protocol));
        assert!(answer.head_bytes <= MAX_HEAD + 23);
        let mut answer = Answer::new();
        assert_eq!(answer.take(b"HTTP/1.1 200 OK\r\n\r\n", &with_body), None);
        let body = (0..).find_map(|_| answer.take(&[b'f'; 1000], &with_body));
        assert_eq!((body, answer.body_bytes), (Some(Reason::Body), MAX_BODY));
        let mut answer = Answer::new();
        let line = (0..).find_map(|_| answer.take(b"HTTP/1.HTTP/1.", &with_body));
        assert_eq!(line, Some(Reason::Protocol));
    }

    #[test]
    fn requests() {
        let v6 = "2001:db8::1".parse().expect("an address");
        let text =
            |check: &HealthCheck, addr, port| String::from_utf8(request(check, addr, port)).expect("ASCII");
        let plain = text(&check(""), v6, 8080);
        assert!(plain.starts_with("GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n"), "{plain}");
        assert!(plain.ends_with("\r\nConnection: close\r\n\r\n"), "{plain}");
        let plain = text(&check(""), "192.0.2.1".parse().expect("an address"), 80);
        assert!(plain.starts_with("GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n"), "{plain}");
        let named = check("method = \"HEAD\"\npath = \"/up?deep=1\"\nhost = \"shop.example\"");
        let named = text(&named, v6, 8080);
        assert!(named.starts_with("HEAD /up?deep=1 HTTP/1.1\r\nHost: shop.example\r\n"), "{named}");
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(text in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400) {
            let check = check("body = \"fine\"");
            let begun = [&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..], &text].concat();
            for text in [&text, &begun] {
                let (a, b) = text.split_at(cut.min(text.len()));
                prop_assert_eq!(judge(&check, &[a, b]), judge(&check, &[text]));
            }
        }
    }
}
