//! The description of all this in OpenAPI 3.1, made of the same types that read requests and write answers.

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::operations::{DEFINITIONS, Operation, Operations, generator};
use crate::control::{
    BridgeChanged, BridgeEntry, Changed, Cleared, Convergence, Counter, DhcpRelayEntry, DocumentPiece,
    DrainEntry, DropEntry, DropsExport, Explained, GroupEntry, HaList, InterfaceStatus, MacPage, MappingPage,
    NatHost, NeighbourEntry, PoolEntry, PortStatus, Previewed, Reached, Reply, RevisionList, RoutePage,
    RuleList, ServiceList, SessionPage, UpgradeEntry, Version, WorkerStatus,
};

/// Where it is served.
pub const PATH: &str = "/v1/openapi.json";

/// Where transactions are.
pub const TRANSACTION: &str = "/v1/transaction";

/// The whole description.
pub fn description() -> Value {
    let mut generator = generator();
    let operations = Operations::of_requests(&mut generator);
    let mut paths = Map::new();
    for operation in &operations.all {
        let verb = if operation.changes { "post" } else { "get" };
        let answer = answer(&operation.method, &mut generator).unwrap_or_else(|| {
            // One nobody has listed: any answer.
            generator.subschema_for::<Reply>()
        });
        paths.insert(operation.path(), json!({ verb: of_operation(&operations, operation, &answer) }));
    }
    let changed = generator.subschema_for::<Changed>();
    paths.insert(TRANSACTION.into(), json!({ "post": transaction(&operations, &changed) }));
    let mut schemas = generator.take_definitions(true);
    schemas.insert("Problem".into(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "SoftGate",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            "description": "The requests of a gateway's control socket. Units stand in the names; counts are totals \
                            since the start. An answer with `next` goes on: ask again with it as `after`.",
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn of_operation(operations: &Operations, operation: &Operation, answer: &Schema) -> Value {
    let mut described = json!({
        "operationId": operation.method,
        "description": operation.description,
        "responses": responses(answer),
    });
    if operation.changes {
        let mut content = json!({ "application/json": { "schema": operation.params } });
        if operation.method == "apply" {
            content = with_apply(content);
            described["parameters"] = json!([{
                "name": "file_name", "in": "query", "schema": { "type": "string" },
                "description": "What errors call a config that is the body",
            }]);
        }
        described["requestBody"] = json!({ "required": true, "content": content });
    } else {
        described["parameters"] = parameters(operations, &operation.params);
    }
    described
}

/// A config may be the body itself, and its route files come with it.
fn with_apply(mut content: Value) -> Value {
    content["application/json"]["schema"]["properties"]["files"] = json!({
        "description": "The route files, by path",
        "type": "object",
        "additionalProperties": { "type": "string" },
    });
    content["application/toml"] = json!({ "schema": { "type": "string", "description": "The config" } });
    content
}

fn parameters(operations: &Operations, params: &Value) -> Value {
    let required =
        |name: &String| params["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
    let all = params["properties"].as_object().into_iter().flatten();
    let parameters = all.map(|(name, schema)| {
        let mut parameter = json!({ "name": name, "in": "query", "required": required(name) });
        if let Some(description) = schema.get("description") {
            parameter["description"] = description.clone();
        }
        if operations.has_type(schema, "array") {
            parameter["content"] = json!({ "application/json": { "schema": schema } });
        } else {
            parameter["schema"] = schema.clone();
            if operations.has_type(schema, "object") {
                parameter["style"] = "deepObject".into(); // filter[zone]=dmz
            }
        }
        parameter
    });
    parameters.collect()
}

fn transaction(operations: &Operations, changed: &Schema) -> Value {
    let staged = operations.all.iter().filter(|operation| operation.is_staged());
    let requests = staged.map(|operation| {
        json!({
            "type": "object",
            "properties": { "method": { "const": operation.method }, "params": operation.params },
            "required": ["method", "params"],
            "additionalProperties": false,
        })
    });
    let body = json!({
        "type": "object",
        "properties": { "requests": { "type": "array", "items": { "oneOf": requests.collect::<Vec<_>>() } } },
        "required": ["requests"],
        "additionalProperties": false,
    });
    json!({
        "operationId": "transaction",
        "description": "Makes several changes as one: all or none, as one generation.",
        "requestBody": { "required": true, "content": { "application/json": { "schema": body } } },
        "responses": responses(changed),
    })
}

fn responses(answer: &Schema) -> Value {
    let problem = json!({ "$ref": format!("{DEFINITIONS}Problem") });
    json!({
        "200": { "description": "Done", "content": { "application/json": { "schema": answer } } },
        "default": {
            "description": "Not done, and why",
            "content": { "application/problem+json": { "schema": problem } },
        },
    })
}

/// RFC 9457.
fn problem() -> Value {
    json!({
        "type": "object",
        "properties": {
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string", "description": "What was wrong and what to do about it" },
            "code": { "type": "integer", "description": "The code of the control socket, where it said no" },
        },
        "required": ["title", "status", "detail"],
    })
}

/// What a request is answered with. A test asks for one for each that shows something, and the end-to-end test holds
/// what a gateway says against it.
fn answer(method: &str, generator: &mut SchemaGenerator) -> Option<Schema> {
    Some(match method {
        "ping" => schemars::json_schema!({ "type": "object" }),
        "show.version" => generator.subschema_for::<Version>(),
        "show.ports" => generator.subschema_for::<Vec<PortStatus>>(),
        "show.interfaces" => generator.subschema_for::<Vec<InterfaceStatus>>(),
        "show.routes" => generator.subschema_for::<RoutePage>(),
        "show.neighbours" => generator.subschema_for::<Vec<NeighbourEntry>>(),
        "show.counters" => generator.subschema_for::<Vec<Counter>>(),
        "show.drops" => generator.subschema_for::<Vec<DropEntry>>(),
        "show.workers" => generator.subschema_for::<Vec<WorkerStatus>>(),
        "show.dhcp-relays" => generator.subschema_for::<Vec<DhcpRelayEntry>>(),
        "show.ha" => generator.subschema_for::<HaList>(),
        "drain" | "drain.cancel" => generator.subschema_for::<DrainEntry>(),
        "upgrade" => generator.subschema_for::<UpgradeEntry>(),
        "show.sessions" => generator.subschema_for::<SessionPage>(),
        "show.nat" => generator.subschema_for::<Vec<PoolEntry>>(),
        "show.nat.mappings" => generator.subschema_for::<MappingPage>(),
        "nat.map" | "nat.find" => generator.subschema_for::<Vec<NatHost>>(),
        "show.rules" => generator.subschema_for::<RuleList>(),
        "show.services" => generator.subschema_for::<ServiceList>(),
        "show.bridges" => generator.subschema_for::<Vec<BridgeEntry>>(),
        "show.macs" => generator.subschema_for::<MacPage>(),
        "show.groups" => generator.subschema_for::<Vec<GroupEntry>>(),
        "show.convergence" => generator.subschema_for::<Convergence>(),
        "show.revisions" => generator.subschema_for::<RevisionList>(),
        "show.revision" => generator.subschema_for::<DocumentPiece>(),
        "explain" => generator.subschema_for::<Explained>(),
        "reach" => generator.subschema_for::<Reached>(),
        "preview" => generator.subschema_for::<Previewed>(),
        "drops.export" => generator.subschema_for::<DropsExport>(),
        "clear.sessions" => generator.subschema_for::<Cleared>(),
        "bridge.add-macs" | "bridge.del-macs" | "bridge.open" => generator.subschema_for::<BridgeChanged>(),
        "apply" | "rollback" | "confirm" | "show.pair-commit" => generator.subschema_for::<Changed>(),
        _ if ["route.", "neighbour.", "group.", "rule.", "service."]
            .iter()
            .any(|kind| method.starts_with(kind)) =>
        {
            generator.subschema_for::<Changed>()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_an_answer() {
        let mut generator = generator();
        for operation in Operations::of_requests(&mut generator).all {
            let described = answer(&operation.method, &mut generator);
            assert!(described.is_some(), "{}: what is it answered with? See `answer`", operation.method);
        }
    }

    #[test]
    fn what_it_refers_to_is_there() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(object) => {
                    found.extend(object.get("$ref").and_then(Value::as_str));
                    object.values().for_each(|value| references(value, found));
                }
                Value::Array(array) => array.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let description = description();
        let mut found = Vec::new();
        references(&description, &mut found);
        assert!(found.len() > 50, "{}", found.len());
        for reference in found {
            let there = reference.strip_prefix('#').and_then(|pointer| description.pointer(pointer));
            assert!(there.is_some(), "{reference}");
        }
    }

    #[test]
    fn it_says_how_to_ask() {
        let description = description();
        let routes = &description["paths"]["/v1/show/routes"]["get"];
        let names: Vec<&str> =
            routes["parameters"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
        assert_eq!(names, ["after", "limit", "lookup", "prefix", "vrf"]);
        let sessions = &description["paths"]["/v1/show/sessions"]["get"]["parameters"];
        let filter = sessions.as_array().unwrap().iter().find(|one| one["name"] == "filter").unwrap();
        assert_eq!(filter["style"], "deepObject");
        let body = &description["paths"]["/v1/rule/del"]["post"]["requestBody"]["content"]["application/json"]
            ["schema"];
        assert_eq!(body["required"], json!(["rules"]));
        assert!(description["paths"].get("/v1/begin").is_none());
    }
}
