//! JSON-RPC 2.0 (jsonrpc.org/specification): the envelope around requests and replies.
//!
//! No batches and no notifications: every request has an id and gets exactly one answer.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::{BorrowedStrDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, forward_to_deserialize_any};
use serde_json::value::RawValue;

use super::reply::Reply;
use super::request::Request;

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What kind of failure.
    pub kind: FaultKind,
    /// What was wrong and what to do about it. Several lines if several things were wrong.
    pub message: String,
}

/// Kinds of failure and their codes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum FaultKind {
    /// The line is not JSON.
    Parse = -32700,
    /// JSON, but no request.
    InvalidRequest = -32600,
    /// No such method.
    NoSuchMethod = -32601,
    /// The method does not take these parameters.
    InvalidParams = -32602,
    /// A fault of ours.
    Internal = -32603,
    /// The gateway refuses: the config is invalid, the change impossible. Nothing has changed.
    Refused = -32000,
    /// What was named does not exist.
    NotFound = -32001,
    /// Not at this point: no transaction is open, or one is.
    Order = -32002,
    /// A limit of the socket: line too long, too much staged, too many clients.
    Limit = -32003,
    /// Not this user: no role of the config includes it.
    Forbidden = -32004,
    /// Somebody else has changed the config meanwhile, or is about to. Nothing has changed.
    Conflict = -32005,
}

impl FaultKind {
    const ALL: [FaultKind; 11] = [
        FaultKind::Parse,
        FaultKind::InvalidRequest,
        FaultKind::NoSuchMethod,
        FaultKind::InvalidParams,
        FaultKind::Internal,
        FaultKind::Refused,
        FaultKind::NotFound,
        FaultKind::Order,
        FaultKind::Limit,
        FaultKind::Forbidden,
        FaultKind::Conflict,
    ];

    /// The code on the wire.
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// What a code means; an unknown one is a fault of the other side.
    pub(crate) fn from_code(code: i32) -> FaultKind {
        FaultKind::ALL.into_iter().find(|kind| kind.code() == code).unwrap_or(FaultKind::Internal)
    }
}

impl Fault {
    /// A fault of `kind`.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Fault {
        Fault { kind, message: message.into() }
    }

    /// The gateway refuses.
    pub fn refused(message: impl fmt::Display) -> Fault {
        Fault::new(FaultKind::Refused, message.to_string())
    }

    /// What was named does not exist.
    pub fn not_found(message: impl fmt::Display) -> Fault {
        Fault::new(FaultKind::NotFound, message.to_string())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    jsonrpc: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// Longest id, in bytes of JSON: every reply repeats it.
const MAX_ID_BYTES: usize = 256;

/// Reads one line. The id is as it stood there, `null` if there was none to be read.
pub(crate) fn decode(line: &[u8]) -> (&str, Result<Request, Fault>) {
    let invalid = |message: String| Fault::new(FaultKind::InvalidRequest, message);
    // Also serde would take an array of four for an envelope.
    if line.trim_ascii_start().starts_with(b"[") {
        return (
            "null",
            Err(invalid("batches are not served: send each request on a line of its own".into())),
        );
    }
    let envelope: Envelope<'_> = match serde_json::from_slice(line) {
        Ok(envelope) => envelope,
        Err(error) if error.is_data() => {
            return ("null", Err(invalid(format!("not a JSON-RPC request: {error}"))));
        }
        Err(error) => return ("null", Err(Fault::new(FaultKind::Parse, format!("not JSON: {error}")))),
    };
    let id = match envelope.id.map(RawValue::get) {
        Some(id) if id.len() <= MAX_ID_BYTES && !id.starts_with(['{', '[', 't', 'f']) => id,
        Some(_) => return ("null", Err(invalid("id is a number or a string of at most 256 bytes".into()))),
        None => {
            return (
                "null",
                Err(invalid("id is missing: every request is answered, notifications are not served".into())),
            );
        }
    };
    if envelope.jsonrpc != "2.0" {
        return (id, Err(invalid("jsonrpc is \"2.0\"".into())));
    }
    let params = envelope.params.unwrap_or_else(|| no_params());
    let call = Call { method: &envelope.method, params, next: Part::Method };
    let request = Request::deserialize(call).map_err(|error| {
        let message = error.to_string();
        match message.starts_with("unknown variant") {
            true => {
                let known =
                    message.split_once("expected one of ").map_or("", |(_, known)| known).replace('`', "");
                let method: String = envelope.method.chars().take(64).collect();
                Fault::new(FaultKind::NoSuchMethod, format!("no method {method:?}; known: {known}"))
            }
            false => Fault::new(FaultKind::InvalidParams, message),
        }
    });
    (id, request)
}

fn no_params() -> &'static RawValue {
    serde_json::from_str("{}").unwrap_or_else(|_| unreachable!("{{}} is JSON"))
}

/// Method and parameters as the map that [`Request`] is read from, the method first: serde then reads
/// the parameters straight into the variant, in whichever order they arrived, and buffers nothing.
struct Call<'a, 'm> {
    method: &'m str,
    params: &'a RawValue,
    next: Part,
}

#[derive(Clone, Copy)]
enum Part {
    Method,
    Params,
    End,
}

impl<'de> Deserializer<'de> for Call<'de, '_> {
    type Error = serde_json::Error;
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, serde_json::Error> {
        visitor.visit_map(self)
    }
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'a> MapAccess<'a> for Call<'a, '_> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, serde_json::Error> {
        let key = match self.next {
            Part::Method => "method",
            Part::Params => "params",
            Part::End => return Ok(None),
        };
        seed.deserialize(BorrowedStrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, serde_json::Error> {
        match self.next {
            Part::Method => {
                self.next = Part::Params;
                seed.deserialize(StrDeserializer::new(self.method))
            }
            Part::Params | Part::End => {
                self.next = Part::End;
                seed.deserialize(self.params)
            }
        }
    }
}

/// Appends the answer to the request with this id, and a newline.
pub(crate) fn encode(id: &str, answer: &Result<Reply, Fault>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    out.extend_from_slice(id.as_bytes());
    let written = match answer {
        Ok(reply) => {
            out.extend_from_slice(b",\"result\":");
            serde_json::to_writer(&mut *out, reply)
        }
        Err(fault) => {
            out.extend_from_slice(b",\"error\":");
            serde_json::to_writer(
                &mut *out,
                &WireFault { code: fault.kind.code(), message: Cow::Borrowed(&fault.message) },
            )
        }
    };
    written.unwrap_or_else(|error| unreachable!("replies are plain data and memory takes them: {error}"));
    out.extend_from_slice(b"}\n");
}

#[derive(Serialize, Deserialize)]
struct WireFault<'a> {
    code: i32,
    #[serde(borrow)]
    message: Cow<'a, str>,
}

/// Appends a request, and a newline.
pub(crate) fn encode_request(id: u64, request: &Request, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Line<'a> {
        jsonrpc: &'a str,
        id: u64,
        #[serde(flatten)]
        request: &'a Request,
    }
    serde_json::to_writer(&mut *out, &Line { jsonrpc: "2.0", id, request })
        .unwrap_or_else(|error| unreachable!("requests are plain data and memory takes them: {error}"));
    out.push(b'\n');
}

/// An answer as the client sees it: the id, and the result as JSON or the fault. `None`: no answer.
pub(crate) fn decode_answer(line: &[u8]) -> Option<(Option<u64>, Result<&RawValue, Fault>)> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        id: Option<u64>,
        #[serde(borrow, default)]
        result: Option<&'a RawValue>,
        #[serde(borrow, default)]
        error: Option<WireFault<'a>>,
    }
    let answer: Answer<'_> = serde_json::from_slice(line).ok()?;
    match (answer.result, answer.error) {
        (_, Some(fault)) => {
            Some((answer.id, Err(Fault::new(FaultKind::from_code(fault.code), fault.message.into_owned()))))
        }
        (Some(result), None) => Some((answer.id, Ok(result))),
        (None, None) => None,
    }
}
