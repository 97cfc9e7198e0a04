//! One HTTP request becomes one on the control socket, and its answer the response.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::openapi;
use super::operations::{Operation, Operations, generator};
use crate::control::{Client, ClientError, FaultKind, Request, Staged, Terms};

/// Largest body: a config with its route files.
const MAX_BODY_BYTES: usize = 64 << 20;

/// How long a body may take.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// Longest wait for the gateway; the largest configs take seconds.
const GATEWAY_PATIENCE: Duration = Duration::from_secs(300);

/// Requests the gateway is asked at once, and those that wait for it: it has places for 64 clients, and a person at the
/// command line is to find one.
const AT_ONCE: usize = 16;
const WAITING: usize = 64;

/// Size of the pieces that configs are sent to the gateway in.
const PIECE_BYTES: usize = 1 << 20;

/// Changes of one transaction.
const MAX_CHANGES: usize = 10_000;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What the log calls it.
    pub name: String,
    /// Whether it may change something, if anybody may.
    pub may_change: bool,
}

/// What serves all connections.
pub struct Service {
    operations: Operations,
    description: Bytes,
    socket: PathBuf,
    allow_changes: bool,
    places: Arc<Semaphore>,
    waiting: Semaphore,
}

/// Why there is no answer (RFC 9457).
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    detail: String,
    /// The code of the control socket.
    code: Option<i32>,
    allow: Option<&'static str>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Problem {
        Problem { status, detail: detail.into(), code: None, allow: None }
    }

    fn wrong(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Problem {
        let detail = error.to_string();
        let ClientError::Fault(fault) = error else { return Problem::new(StatusCode::BAD_GATEWAY, detail) };
        let status = match fault.kind {
            FaultKind::Parse | FaultKind::InvalidRequest | FaultKind::InvalidParams => {
                StatusCode::BAD_REQUEST
            }
            FaultKind::NoSuchMethod | FaultKind::NotFound => StatusCode::NOT_FOUND,
            FaultKind::Refused => StatusCode::UNPROCESSABLE_ENTITY,
            FaultKind::Order | FaultKind::Conflict => StatusCode::CONFLICT,
            FaultKind::Limit => StatusCode::SERVICE_UNAVAILABLE,
            FaultKind::Forbidden => StatusCode::FORBIDDEN,
            FaultKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem { code: Some(fault.kind.code()), ..Problem::new(status, detail) }
    }
}

/// What the gateway is asked, read and checked.
enum Work {
    /// A request like any other.
    One(Request),
    /// A config, and its route files.
    Apply(Request, Vec<(String, String)>),
    /// Changes that are made as one.
    Transaction(Vec<Request>),
}

impl Service {
    /// One that asks the gateway at this socket.
    pub fn new(socket: PathBuf, allow_changes: bool) -> Service {
        Service {
            operations: Operations::of_requests(&mut generator()),
            description: Bytes::from(openapi::description().to_string()),
            socket,
            allow_changes,
            places: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Semaphore::new(WAITING),
        }
    }

    /// Answers.
    pub async fn serve(
        &self,
        request: HttpRequest<Incoming>,
        caller: &Caller,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let what = (request.method().clone(), request.uri().path().to_owned());
        let answer = self.answer(request, caller).await;
        if what.0 != Method::GET && what.0 != Method::HEAD {
            let status = answer.as_ref().map_or_else(|problem| problem.status, |_| StatusCode::OK).as_u16();
            tracing::info!(target: "softgate::audit", caller = caller.name, verb = %what.0, path = what.1, status);
        }
        Ok(match answer {
            Ok(body) => response(StatusCode::OK, "application/json", body),
            Err(problem) => refusal(&problem),
        })
    }

    async fn answer(&self, request: HttpRequest<Incoming>, caller: &Caller) -> Result<Bytes, Problem> {
        let work = match self.read(request, caller).await? {
            Ok(work) => work,
            Err(fixed) => return Ok(fixed),
        };
        let busy =
            || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests wait: ask again later");
        let _waits = self.waiting.try_acquire().map_err(|_| busy())?;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| busy())?;
        let socket = self.socket.clone();
        let asked = spawn_blocking(move || {
            let _place = place; // also when nobody waits for the answer any more
            let mut client = Client::connect(&socket)?;
            client.limit_waits(GATEWAY_PATIENCE)?;
            work.ask(&mut client)
        });
        let answer = asked
            .await
            .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(Bytes::from(String::from(Box::<str>::from(answer?))))
    }

    /// What is asked; `Err` inside: an answer that needs no gateway.
    async fn read(
        &self,
        request: HttpRequest<Incoming>,
        caller: &Caller,
    ) -> Result<Result<Work, Bytes>, Problem> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let reads = matches!(head.method, Method::GET | Method::HEAD);
        if path == openapi::PATH && reads {
            return Ok(Err(self.description.clone()));
        }
        let operation = self.operations.find(path);
        let changes = match operation {
            Some(operation) => operation.changes,
            None if path == openapi::TRANSACTION => true,
            None => {
                let detail = format!("no such path; {} has all", openapi::PATH);
                return Err(Problem::new(StatusCode::NOT_FOUND, detail));
            }
        };
        let allow = if changes { "POST" } else { "GET, HEAD" };
        if !(if changes { head.method == Method::POST } else { reads }) {
            let detail = format!("{path} is asked by {allow}");
            return Err(Problem {
                allow: Some(allow),
                ..Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
            });
        }
        let query = head.uri.query().unwrap_or("");
        let Some(operation) = operation.filter(|operation| !operation.changes) else {
            self.may_change(caller)?;
            let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
            let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
            let is_config = kind == "application/toml" && operation.is_some_and(|one| one.method == "apply");
            // Also against a browser that somebody else's page uses: it asks first before it sends this type.
            if !is_config && kind != "application/json" {
                let detail = "the body is JSON: send it with content-type: application/json";
                return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
            }
            let body = collect(body).await?;
            let work = match operation {
                Some(operation) if is_config => self.config(operation, query, &body)?,
                Some(operation) => change(operation, &body)?,
                None => transaction(&self.operations, &body)?,
            };
            return Ok(Ok(work));
        };
        let params = self.operations.params(operation, query).map_err(Problem::wrong)?;
        Ok(Ok(Work::One(request_of(&operation.method, params)?)))
    }

    fn may_change(&self, caller: &Caller) -> Result<(), Problem> {
        let detail = match (self.allow_changes, caller.may_change) {
            (true, true) => return Ok(()),
            (false, _) => "this listener is read-only: `softgate http` was started without --allow-changes",
            (true, false) => {
                "your certificate may not change anything: its DNS name is no --may-change of `softgate http`"
            }
        };
        Err(Problem::new(StatusCode::FORBIDDEN, detail))
    }

    /// A config that is the body itself.
    fn config(&self, operation: &Operation, query: &str, body: &[u8]) -> Result<Work, Problem> {
        let mut params = self.operations.params(operation, query).map_err(Problem::wrong)?;
        params.entry("file_name").or_insert("http".into());
        let text = std::str::from_utf8(body)
            .map_err(|error| Problem::wrong(format!("the body is not UTF-8: {error}")))?;
        params.insert("text".into(), text.into());
        Ok(Work::Apply(request_of(&operation.method, params)?, Vec::new()))
    }
}

/// What a body asks of an operation that changes something.
fn change(operation: &Operation, body: &[u8]) -> Result<Work, Problem> {
    let mut params: Map<String, Value> = match body.trim_ascii() {
        [] => Map::new(),
        body => serde_json::from_slice(body)
            .map_err(|error| Problem::wrong(format!("the body is no JSON object: {error}")))?,
    };
    if operation.method != "apply" {
        return Ok(Work::One(request_of(&operation.method, params)?));
    }
    let mut files = Vec::new();
    match params.remove("files") {
        None => {}
        Some(Value::Object(all)) => {
            for (path, text) in all {
                let Value::String(text) = text else {
                    return Err(Problem::wrong(format!("files: {path:?}: its text is a string")));
                };
                files.push((path, text));
            }
        }
        Some(_) => return Err(Problem::wrong("files: an object of texts by path")),
    }
    Ok(Work::Apply(request_of(&operation.method, params)?, files))
}

/// The changes of `{"requests": [{"method": "route.add", "params": {...}}]}`.
fn transaction(operations: &Operations, body: &[u8]) -> Result<Work, Problem> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        requests: Vec<One>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct One {
        method: String,
        #[serde(default)]
        params: Map<String, Value>,
    }
    let body: Body = serde_json::from_slice(body).map_err(|error| Problem::wrong(error.to_string()))?;
    if body.requests.is_empty() || body.requests.len() > MAX_CHANGES {
        return Err(Problem::wrong(format!("requests: a transaction has 1 to {MAX_CHANGES} changes")));
    }
    let one = |(place, One { method, params })| {
        let known =
            operations.all.iter().any(|operation| operation.method == method && operation.is_staged());
        if !known {
            let method: String = method.chars().take(64).collect();
            return Err(Problem::wrong(format!(
                "requests[{place}]: {method:?} cannot be part of a transaction"
            )));
        }
        request_of(&method, params).map_err(|problem| Problem {
            detail: format!("requests[{place}]: {}", problem.detail),
            ..problem
        })
    };
    body.requests.into_iter().enumerate().map(one).collect::<Result<_, _>>().map(Work::Transaction)
}

fn request_of(method: &str, params: Map<String, Value>) -> Result<Request, Problem> {
    let request = Request::deserialize(json!({ "method": method, "params": params }));
    request.map_err(|error| Problem::wrong(error.to_string()))
}

impl Work {
    fn ask(self, client: &mut Client) -> Result<Box<RawValue>, Problem> {
        match self {
            Work::One(request) => Ok(client.call(&request)?),
            Work::Apply(mut request, files) => {
                if let Request::Apply { text, .. } = &mut request {
                    let text = std::mem::take(text);
                    for (name, text) in std::iter::once((String::new(), text)).chain(files) {
                        upload(client, &name, &text)?;
                    }
                }
                Ok(client.call(&request)?)
            }
            // Whatever goes wrong on the way: the connection closes, and nothing has changed.
            Work::Transaction(requests) => {
                let _: Staged = client.call(&Request::Begin {})?;
                for (place, request) in requests.iter().enumerate() {
                    let staged: Result<Staged, Problem> = client.call(request).map_err(Problem::from);
                    staged.map_err(|problem| Problem {
                        detail: format!("requests[{place}]: {}", problem.detail),
                        ..problem
                    })?;
                }
                Ok(client.call(&Request::Commit { patches: Vec::new(), terms: Terms::default() })?)
            }
        }
    }
}

fn upload(client: &mut Client, name: &str, text: &str) -> Result<(), Problem> {
    let mut rest = text;
    loop {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        rest = after;
        let _: Staged = client.call(&Request::Upload { name: name.to_owned(), text: piece.to_owned() })?;
        if rest.is_empty() {
            return Ok(());
        }
    }
}

async fn collect(body: Incoming) -> Result<Bytes, Problem> {
    let collected = timeout(BODY_PATIENCE, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let collected =
        collected.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body takes too long"))?;
    collected.map(http_body_util::Collected::to_bytes).map_err(|error| match error.is::<LengthLimitError>() {
        true => {
            let most = MAX_BODY_BYTES >> 20;
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {most} MiB"))
        }
        false => Problem::wrong(format!("the body broke off: {error}")),
    })
}

fn refusal(problem: &Problem) -> Response<Full<Bytes>> {
    let Problem { status, detail, code, allow } = problem;
    let mut body = json!({
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "detail": detail,
    });
    if let Some(code) = code {
        body["code"] = (*code).into();
    }
    let mut response = response(*status, "application/problem+json", Bytes::from(body.to_string()));
    if let Some(allow) = *allow {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    }
    if *status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let fixed: [(HeaderName, &'static str); 3] =
        [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    for (name, value) in fixed {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Fault;

    fn service(allow_changes: bool) -> Service {
        Service::new("/nonexistent/control.sock".into(), allow_changes)
    }

    #[test]
    fn nobody_changes_anything_unless_both_say_so() {
        let caller = |may_change| Caller { name: "test".into(), may_change };
        for (allow, may, status) in [(true, true, None), (true, false, Some(403)), (false, true, Some(403))] {
            let said = service(allow).may_change(&caller(may)).err().map(|problem| problem.status.as_u16());
            assert_eq!(said, status);
        }
    }

    #[test]
    fn bodies_become_requests_or_say_what_is_wrong() {
        let service = service(true);
        let read = |path: &str, body: &str| {
            change(service.operations.find(path).expect("it is there"), body.as_bytes())
        };
        assert!(matches!(
            read("/v1/route/add", r#"{"routes":[["192.0.2.0/24","198.51.100.1"]]}"#),
            Ok(Work::One(Request::RouteAdd { .. }))
        ));
        let Ok(Work::Apply(_, files)) =
            read("/v1/apply", r#"{"file_name":"x","text":"schema = 1","files":{"a.routes":"b"}}"#)
        else {
            panic!("a config")
        };
        assert_eq!(files, [("a.routes".to_owned(), "b".to_owned())]);
        for (path, body, says) in [
            ("/v1/route/add", "[]", "no JSON object"),
            ("/v1/route/add", r#"{"routes":[],"more":1}"#, "unknown field `more`"),
            ("/v1/route/add", "", "missing field `routes`"),
            ("/v1/apply", r#"{"file_name":"x","files":{"a":1}}"#, "its text is a string"),
        ] {
            let problem = read(path, body).err().expect(body);
            assert_eq!(problem.status, StatusCode::BAD_REQUEST);
            assert!(problem.detail.contains(says), "{}", problem.detail);
        }
    }

    #[test]
    fn transactions_take_only_what_can_be_staged() {
        let service = service(true);
        let read = |body: &str| transaction(&service.operations, body.as_bytes());
        let good = r#"{"requests":[{"method":"group.add","params":{"group":"g","members":["192.0.2.1"]}}]}"#;
        assert!(matches!(read(good), Ok(Work::Transaction(all)) if all.len() == 1));
        for (body, says) in [
            (r#"{"requests":[]}"#, "1 to 10000"),
            (
                r#"{"requests":[{"method":"clear.sessions","params":{"all":true}}]}"#,
                "requests[0]: \"clear.sessions\"",
            ),
            (r#"{"requests":[{"method":"commit"}]}"#, "cannot be part"),
            (r#"{"requests":[{"method":"rule.del","params":{}}]}"#, "requests[0]: missing field `rules`"),
        ] {
            let problem = read(body).err().expect(body);
            assert!(problem.detail.contains(says), "{}", problem.detail);
        }
    }

    #[test]
    fn faults_have_the_status_of_their_kind() {
        for (kind, status) in
            [(FaultKind::Refused, 422), (FaultKind::Forbidden, 403), (FaultKind::NotFound, 404)]
        {
            let problem = Problem::from(ClientError::from(Fault::new(kind, "no")));
            assert_eq!((problem.status.as_u16(), problem.code), (status, Some(kind.code())));
        }
        assert_eq!(Problem::from(ClientError::Unreachable("gone".into())).status, StatusCode::BAD_GATEWAY);
    }
}
