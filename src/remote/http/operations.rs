//! What can be asked over HTTP: the requests of the control socket, read off the very type that serves them.
//!
//! `show.routes` is `GET /v1/show/routes`, its params are in the query. Whatever is not known to change nothing is a
//! change, so a request that is new is one until somebody says otherwise here: `route.add` is `POST /v1/route/add`, its
//! params are the body. What belongs to a connection (`begin`, `upload` ...) has no place in HTTP; a transaction is one
//! request that carries all its changes.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema as _, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::control::Request;

/// What all paths begin with.
pub const ROOT: &str = "/v1/";

/// Requests beside those that show something that change nothing.
const READING: [&str; 6] = ["ping", "nat.map", "nat.find", "drops.export", "explain", "reach"];

/// What belongs to a connection.
const OF_CONNECTIONS: [&str; 4] = ["begin", "commit", "abort", "upload"];

/// What can be part of a transaction: requests that begin so.
const STAGED: [&str; 5] = ["route.", "neighbour.", "group.", "rule.", "service."];

/// One request, as it is over HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// On the control socket.
    pub method: String,
    /// Whether it may change something.
    pub changes: bool,
    /// What it does.
    pub description: String,
    /// JSON Schema of its params, an object.
    pub params: Value,
}

/// All of them, and the definitions that their schemas refer to.
#[derive(Clone, Debug)]
pub struct Operations {
    /// In the order of [`Request`].
    pub all: Vec<Operation>,
    /// By name.
    pub definitions: Map<String, Value>,
}

/// Where definitions are.
pub const DEFINITIONS: &str = "#/components/schemas/";

/// A generator whose references are where OpenAPI has them.
pub fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = DEFINITIONS.trim_start_matches('#').trim_end_matches('/').into();
            settings.meta_schema = None;
        })
        .into_generator()
}

impl Operation {
    /// Where it is.
    pub fn path(&self) -> String {
        format!("{ROOT}{}", self.method.replace('.', "/"))
    }

    /// True if a transaction can have it.
    pub fn is_staged(&self) -> bool {
        STAGED.iter().any(|kind| self.method.starts_with(kind))
    }
}

impl Operations {
    /// Reads them off [`Request`].
    pub fn of_requests(generator: &mut SchemaGenerator) -> Operations {
        let requests = Request::json_schema(generator).to_value();
        let definitions = generator.definitions().clone();
        let variants = requests["oneOf"].as_array().unwrap_or_else(|| unreachable!("Request is an enum"));
        let all = variants.iter().filter_map(|variant| {
            let method = variant["properties"]["method"]["const"].as_str()?;
            let params = resolve(&variant["properties"]["params"], &definitions).clone();
            Some(Operation {
                method: method.to_owned(),
                changes: !(method.starts_with("show.") || READING.contains(&method)),
                description: variant["description"].as_str().unwrap_or_default().to_owned(),
                params,
            })
        });
        let all = all.filter(|operation| !OF_CONNECTIONS.contains(&operation.method.as_str())).collect();
        Operations { all, definitions }
    }

    /// The one of this path.
    pub fn find(&self, path: &str) -> Option<&Operation> {
        let method = path.strip_prefix(ROOT)?;
        self.all.iter().find(|operation| {
            operation.method.len() == method.len()
                && operation
                    .method
                    .bytes()
                    .zip(method.bytes())
                    .all(|(a, b)| a == b'.' && b == b'/' || a == b && b != b'.')
        })
    }

    /// Params from a query: `vrf=blue&limit=10`, and `filter[zone]=dmz` for what is within.
    pub fn params(&self, operation: &Operation, query: &str) -> Result<Map<String, Value>, String> {
        let mut params = Map::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, text) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, text) = (decode(key)?, decode(text)?);
            let (outer, inner) = match key.strip_suffix(']').and_then(|key| key.split_once('[')) {
                Some((outer, inner)) => (outer, Some(inner)),
                None => (key.as_str(), None),
            };
            let schema = &operation.params["properties"][outer];
            let before = match inner {
                None => params.insert(outer.to_owned(), self.value(schema, text)),
                Some(inner) => {
                    let schema = &resolve(schema, &self.definitions)["properties"][inner];
                    let value = self.value(schema, text);
                    let within = params.entry(outer).or_insert_with(|| json!({}));
                    let within = within.as_object_mut().ok_or_else(|| format!("{outer}: given twice"))?;
                    within.insert(inner.to_owned(), value)
                }
            };
            if before.is_some() {
                return Err(format!("{key}: given twice"));
            }
        }
        Ok(params)
    }

    /// A string where the schema has one, else what it is as JSON.
    fn value(&self, schema: &Value, text: String) -> Value {
        if self.has_type(schema, "string") {
            return Value::String(text);
        }
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }

    /// True if a schema has values of this type.
    pub fn has_type(&self, schema: &Value, wanted: &str) -> bool {
        let schema = resolve(schema, &self.definitions);
        let any_of = |key: &str| {
            schema[key].as_array().is_some_and(|all| all.iter().any(|one| self.has_type(one, wanted)))
        };
        schema["type"] == wanted
            || schema["type"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == wanted))
            || any_of("anyOf")
            || any_of("oneOf")
    }
}

/// What a schema refers to, or itself.
fn resolve<'a>(schema: &'a Value, definitions: &'a Map<String, Value>) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix(DEFINITIONS));
    name.and_then(|name| definitions.get(name)).unwrap_or(schema)
}

/// Takes `%20` and `+` back (WHATWG URL, application/x-www-form-urlencoded).
fn decode(text: &str) -> Result<String, String> {
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| format!("{text}: not UTF-8"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;

    use super::*;

    fn operations() -> Operations {
        Operations::of_requests(&mut generator())
    }

    fn read(path: &str, query: &str) -> Result<Request, String> {
        let operations = operations();
        let operation = operations.find(path).ok_or("no such path")?;
        let params = operations.params(operation, query)?;
        let request = json!({ "method": operation.method, "params": params });
        Request::deserialize(request).map_err(|error| error.to_string())
    }

    #[test]
    fn each_request_has_a_path_but_those_of_connections() {
        let operations = operations();
        let changes = |path: &str| operations.find(path).map(|operation| operation.changes);
        assert_eq!(changes("/v1/show/routes"), Some(false));
        assert_eq!(changes("/v1/show/nat/mappings"), Some(false));
        assert_eq!(changes("/v1/apply"), Some(true));
        assert_eq!(changes("/v1/clear/sessions"), Some(true));
        for none in ["/v1/begin", "/v1/upload", "/v1/show.routes", "/v1/show", "/show/routes", "/v1/", ""] {
            assert_eq!(changes(none), None, "{none}");
        }
        for operation in &operations.all {
            assert_eq!(operations.find(&operation.path()), Some(operation));
            assert!(!operation.description.is_empty(), "{}", operation.method);
        }
        assert!(operations.all.len() > 30);
    }

    #[test]
    fn queries_become_requests() {
        let request = read("/v1/show/routes", "vrf=blue&prefix=10.0.0.0%2F8&limit=10");
        let Ok(Request::ShowRoutes(query)) = request else { panic!("{request:?}") };
        assert_eq!((query.vrf.unwrap().as_str(), query.limit), ("blue", Some(10)));
        assert_eq!(query.prefix.unwrap().to_string(), "10.0.0.0/8");
        let request =
            read("/v1/show/sessions", "filter%5Bzone%5D=dmz&filter[port]=443&filter[rule]=1&count=true");
        let Ok(Request::ShowSessions(query)) = request else { panic!("{request:?}") };
        assert_eq!((query.filter.zone.unwrap().as_str(), query.count), ("dmz", true));
        // A rule may be called 1, and a port is a string that looks like a number.
        assert_eq!((query.filter.rule.as_deref(), query.filter.port.unwrap().first()), (Some("1"), 443));
        let request = read("/v1/show/routes", "after=%5B%2210.0.0.0/8%22,%22blue%22%5D");
        let Ok(Request::ShowRoutes(query)) = request else { panic!("{request:?}") };
        assert_eq!(query.after.unwrap().vrf.as_str(), "blue");
    }

    #[test]
    fn wrong_queries_are_said_to_be() {
        for (query, says) in [
            ("nope=1", "unknown field `nope`"),
            ("limit=many", "many"),
            ("vrf=a&vrf=b", "given twice"),
            ("vrf=%ff", "not UTF-8"),
            ("vrf[x]=1", ""),
            ("]=[&[]]=&==&%&[", ""),
        ] {
            let error = read("/v1/show/routes", query).expect_err(query);
            assert!(error.contains(says), "{query}: {error}");
        }
    }
}
