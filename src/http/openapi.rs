//! `GET /openapi.json`: this face in words that tools read, made from the proto's descriptors and comments.
//!
//! What HTTP does differently stands in [`OPERATIONS`] and in these rules: the parts named in [`FLAT`] are not nested, but
//! for those of [`NESTED`], the
//! path names the thing that is asked for, a payload is any JSON value or text or base64, enums have no prefix, and
//! durations and times are those of proto3 JSON.

mod descriptors;

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value, json};

use super::enqueue::JSON;
use descriptors::{Descriptors, Field, Kind};

/// A call, and how HTTP spells it. The router has the same paths; a test compares them.
struct Operation {
    method: &'static str,
    path: &'static str,
    service: &'static str,
    rpc: &'static str,
    /// Statuses of its good answers.
    good: &'static [u16],
    /// Statuses that say what is wrong, beside those that every call may have.
    bad: &'static [u16],
}

const fn operation(
    method: &'static str,
    path: &'static str,
    rpc: &'static str,
    good: &'static [u16],
    bad: &'static [u16],
) -> Operation {
    let service = "JobService";
    Operation {
        method,
        path,
        service,
        rpc,
        good,
        bad,
    }
}

const fn of_queues(
    method: &'static str,
    path: &'static str,
    rpc: &'static str,
    bad: &'static [u16],
) -> Operation {
    Operation {
        service: "QueueService",
        ..operation(method, path, rpc, &[200], bad)
    }
}

const fn drain(path: &'static str, rpc: &'static str) -> Operation {
    let bad = &[404, 408, 413, 415];
    Operation {
        good: &[204],
        ..of_queues("post", path, rpc, bad)
    }
}

const fn of_bulks(
    method: &'static str,
    path: &'static str,
    rpc: &'static str,
    good: &'static [u16],
    bad: &'static [u16],
) -> Operation {
    Operation {
        service: "BulkService",
        ..operation(method, path, rpc, good, bad)
    }
}

const OPERATIONS: &[Operation] = &[
    operation(
        "post",
        "/jobs",
        "Enqueue",
        &[200, 201],
        &[408, 409, 413, 415],
    ),
    operation("get", "/jobs", "ListJobs", &[200], &[]),
    operation(
        "post",
        "/jobs/batch",
        "EnqueueBatch",
        &[200, 201],
        &[408, 409, 413, 415],
    ),
    operation("get", "/jobs/{id}", "GetJob", &[200], &[404]),
    operation("get", "/jobs/{id}/events", WATCH, &[200, 204], &[404]),
    operation("get", "/jobs/{id}/explain", "ExplainJob", &[200], &[404]),
    operation(
        "post",
        "/jobs/{id}/cancel",
        "CancelJob",
        &[200],
        &[404, 408, 409, 413, 415],
    ),
    operation(
        "post",
        "/jobs/{id}/retry",
        "RetryJob",
        &[200, 201],
        &[404, 408, 409, 413, 415],
    ),
    operation(
        "post",
        "/jobs/{id}/reschedule",
        "RescheduleJob",
        &[200],
        &[404, 408, 409, 413, 415],
    ),
    operation(
        "post",
        "/jobs/{id}/priority",
        "SetJobPriority",
        &[200],
        &[404, 408, 409, 413, 415],
    ),
    operation("delete", "/jobs/{id}", "DeleteJob", &[204], &[404, 409]),
    of_queues("get", "/queues", "ListQueues", &[]),
    of_queues("get", "/queues/{queue}", "GetQueue", &[404]),
    of_queues("get", "/queues/{queue}/events", WATCH_QUEUE, &[404]),
    of_queues(
        "patch",
        "/queues/{queue}",
        UPDATE,
        &[404, 408, 409, 413, 415],
    ),
    of_queues(
        "post",
        "/queues/{queue}/pause",
        "PauseQueue",
        &[404, 408, 409, 413, 415],
    ),
    of_queues(
        "post",
        "/queues/{queue}/resume",
        "ResumeQueue",
        &[404, 408, 409, 413, 415],
    ),
    of_queues(
        "post",
        "/queues/{queue}/purge",
        "PurgeQueue",
        &[404, 408, 409, 413, 415],
    ),
    of_bulks(
        "post",
        "/bulks",
        "StartBulk",
        &[200, 201],
        &[408, 409, 413, 415],
    ),
    of_bulks("get", "/bulks", "ListBulks", &[200], &[]),
    of_bulks("get", "/bulks/{id}", "GetBulk", &[200], &[404]),
    of_bulks(
        "post",
        "/bulks/{id}/abort",
        "AbortBulk",
        &[200],
        &[404, 408, 413, 415],
    ),
    of_queues("get", "/sessions", "ListSessions", &[]),
    drain("/sessions/{id}/drain", "DrainSession"),
    of_queues("get", "/nodes", "ListNodes", &[]),
    drain("/nodes/{id}/drain", "DrainNode"),
    of_queues("get", "/sessions/{id}", "GetSession", &[404]),
    of_queues("get", "/audit", "ListAuditEvents", &[]),
];

/// The call whose body names what it changes, without a mask.
const UPDATE: &str = "UpdateQueue";
/// The calls that answer with server-sent events, each of them a job, or a queue.
const WATCH: &str = "WatchJob";
const WATCH_QUEUE: &str = "WatchQueue";
/// Statuses of any call: a bad request, a page that may not call, a limit, a fault of ours, a store that is away.
const ALWAYS: [u16; 6] = [400, 403, 429, 500, 503, 504];
/// Fields whose own fields stand in their place.
const FLAT: [&str; 6] = ["bulk", "filter", "job", "queue", "session", "spec"];
/// Messages whose filter is a part of its own, beside fields that would be taken for its.
const NESTED: [&str; 2] = ["Bulk", "StartBulkRequest"];
/// What of a thing is not for callers to say.
const READ_ONLY: [&str; 4] = ["name", "paused", "stats", "update_mask"];
/// Fields that HTTP calls otherwise.
const RENAMED: [(&str, &str); 2] = [("requests", "jobs"), ("responses", "jobs")];

static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    Descriptors::ours().map_or_else(String::new, |ours| document(&ours).to_string())
});

/// `GET /openapi.json`
pub async fn openapi() -> Response {
    let mut response = DOCUMENT.as_str().into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

fn document(ours: &Descriptors) -> Value {
    let mut paths = Map::new();
    for one in OPERATIONS {
        let place = paths.entry(one.path).or_insert_with(|| json!({}));
        if let Some(place) = place.as_object_mut() {
            place.insert(one.method.into(), described(ours, one));
        }
    }
    let mut schemas = Map::new();
    for one in OPERATIONS {
        let (_, response, _) = ours.rpc(one.service, one.rpc);
        parts(ours, &response, &mut schemas);
    }
    schemas.insert("ProblemDetails".into(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "leasehold",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ours.about(),
        },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

/// Adds what the answers of this message are made of.
fn parts(ours: &Descriptors, message: &str, schemas: &mut Map<String, Value>) {
    for field in answer_fields(ours, message) {
        if let Kind::Message(inner) = &field.kind
            && !schemas.contains_key(inner)
        {
            let schema = object(&answer_fields(ours, inner), ours);
            schemas.insert(inner.clone(), schema);
            parts(ours, inner, schemas);
        }
    }
}

fn described(ours: &Descriptors, one: &Operation) -> Value {
    let (request, response, comment) = ours.rpc(one.service, one.rpc);
    let in_path = one
        .path
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    let mut fields = flat(ours, &request);
    // Over HTTP that is Last-Event-ID.
    fields.retain(|field| field.name != "after_revision");
    let mut parameters = Vec::new();
    if let Some((name, _)) = in_path {
        // The first field is what the call is about: its id or its name.
        let about = fields.remove(0);
        parameters.push(json!({
            "name": name, "in": "path", "required": true,
            "description": about.comment, "schema": schema(&about, ours),
        }));
    }
    if one.rpc == UPDATE {
        fields.retain(|field| !READ_ONLY.contains(&field.name.as_str()));
    }
    let mut described = json!({
        "operationId": one.rpc,
        "summary": comment.split_inclusive(['.', ':']).next().unwrap_or_default().trim_end_matches(':').trim(),
        "description": comment,
        "responses": answers(ours, one, &response),
    });
    if matches!(one.method, "get" | "delete") {
        parameters.extend(fields.iter().map(|field| in_query(ours, field)));
    } else {
        let is_needed = fields.iter().any(Field::is_required);
        described["requestBody"] = json!({
            "required": is_needed,
            "content": { JSON: { "schema": object(&fields, ours) } },
        });
    }
    if one.rpc == WATCH {
        parameters.push(json!({
            "name": "Last-Event-ID", "in": "header", "required": false,
            "description": "The id of the last event that was seen: the revision of the job in it and, with log, a line of its log. To go on from there.",
            "schema": { "type": "string" },
        }));
    }
    if one.method != "get" && !one.rpc.starts_with("Enqueue") {
        parameters.push(json!({
            "name": "leasehold-actor", "in": "header", "required": false,
            "description": "Who changes this, for the audit. Nobody checks it.",
            "schema": { "type": "string", "maxLength": 255 },
        }));
    }
    if one.rpc == "Enqueue" {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "The same as idempotency_key in the body, in visible ASCII.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$" },
        }));
    }
    described["parameters"] = parameters.into();
    described
}

fn answers(ours: &Descriptors, one: &Operation, response: &str) -> Value {
    let mut answers = Map::new();
    let body = object(&answer_fields(ours, response), ours);
    for status in one.good {
        let content = match (one.rpc, status) {
            (_, 204) => json!({}),
            (WATCH | WATCH_QUEUE, _) => {
                json!({ "text/event-stream": { "schema": { "type": "string" } } })
            }
            _ => json!({ JSON: { "schema": body } }),
        };
        let name = http::StatusCode::from_u16(*status).ok();
        let mut answer = json!({
            "description": name.and_then(|name| name.canonical_reason()).unwrap_or("OK"),
            "content": content,
        });
        if *status == 201 && matches!(one.rpc, "Enqueue" | "StartBulk") {
            answer["headers"] = json!({ "Location": { "schema": { "type": "string" } } });
        }
        answers.insert(status.to_string(), answer);
    }
    for status in ALWAYS.iter().chain(one.bad) {
        let name = http::StatusCode::from_u16(*status).ok();
        let problem = json!({
            "description": name.and_then(|name| name.canonical_reason()).unwrap_or("Error"),
            "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/ProblemDetails" } } },
        });
        answers.insert(status.to_string(), problem);
    }
    answers.into()
}

/// The fields of a message with those of its flat parts, in the names that HTTP has for them.
fn flat(ours: &Descriptors, message: &str) -> Vec<Field> {
    let mut fields = Vec::new();
    for mut field in ours.fields(message) {
        match &field.kind {
            Kind::Message(inner)
                if FLAT.contains(&field.name.as_str())
                    && !field.repeated
                    && !(field.name == "filter" && NESTED.contains(&message)) =>
            {
                fields.extend(flat(ours, inner));
            }
            _ => {
                let renamed = RENAMED.iter().find(|(from, _)| *from == field.name);
                if let Some((_, to)) = renamed {
                    field.name = (*to).to_owned();
                }
                fields.push(field);
            }
        }
    }
    fields
}

/// As answers have them.
fn answer_fields(ours: &Descriptors, message: &str) -> Vec<Field> {
    let mut fields = flat(ours, message);
    for field in &mut fields {
        field.comment = field.comment.replace(" Required.", "");
        field.is_answer = true;
    }
    fields
}

fn in_query(ours: &Descriptors, field: &Field) -> Value {
    let name = match field.repeated || field.kind == Kind::Words {
        // Given once for each value.
        true => field.name.strip_suffix('s').unwrap_or(&field.name),
        false => &field.name,
    };
    let schema = match field.kind {
        Kind::Words => json!({
            "type": "array", "items": { "type": "string", "pattern": "^[A-Za-z0-9_.:/-]{1,128}=" },
        }),
        _ => schema(field, ours),
    };
    json!({
        "name": name, "in": "query", "required": false,
        "description": field.comment, "schema": schema,
    })
}

fn object(fields: &[Field], ours: &Descriptors) -> Value {
    let mut properties = Map::new();
    for field in fields {
        if field.kind == Kind::Payload {
            properties.extend(payload(field));
        } else {
            let mut schema = schema(field, ours);
            if !field.is_answer {
                or_number(&mut schema, field);
            }
            if !field.is_answer && !field.is_required() {
                or_null(&mut schema);
            }
            if !field.comment.is_empty() {
                schema["description"] = field.comment.as_str().into();
            }
            properties.insert(field.name.clone(), schema);
        }
    }
    let mut object =
        json!({ "type": "object", "properties": properties, "additionalProperties": false });
    let required: Vec<&str> = fields
        .iter()
        .filter(|field| field.is_required())
        .map(|field| field.name.as_str())
        .collect();
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object
}

/// A value of an enum may be given by its number, as proto3 JSON has it.
fn or_number(schema: &mut Value, field: &Field) {
    if let (Kind::Enum(names), false) = (&field.kind, field.repeated) {
        let numbers = (0..=names.len()).map(Value::from);
        let values: Vec<Value> = names
            .iter()
            .map(|name| json!(name))
            .chain(numbers)
            .collect();
        *schema = json!({ "type": ["string", "integer"], "enum": values });
    }
}

/// What is told as null is left out, as proto3 JSON has it.
fn or_null(schema: &mut Value) {
    match schema.get_mut("type") {
        Some(Value::Array(kinds)) => kinds.push("null".into()),
        Some(kind) => *kind = json!([kind.take(), "null"]),
        None => {}
    }
    if let Some(values) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        values.push(Value::Null);
    }
}

/// The forms of a body, of which a call gives one and an answer has one.
fn payload(field: &Field) -> [(String, Value); 4] {
    let name = &field.name;
    let text = match field.is_answer {
        true => json!("string"),
        false => json!(["string", "null"]),
    };
    [
        (
            name.clone(),
            json!({ "description": format!("Any JSON value, kept byte for byte. {}", field.comment).trim() }),
        ),
        (
            format!("{name}_text"),
            json!({ "type": text, "description": "In the place of JSON: text." }),
        ),
        (
            format!("{name}_base64"),
            json!({ "type": text, "contentEncoding": "base64", "description": "In the place of JSON: bytes." }),
        ),
        (
            format!("{name}_content_type"),
            json!({ "type": text, "maxLength": 255, "description": "Media type, if it is not application/json." }),
        ),
    ]
}

fn schema(field: &Field, ours: &Descriptors) -> Value {
    let one = match &field.kind {
        Kind::Text => match field.pattern() {
            Some(pattern) => json!({ "type": "string", "pattern": pattern }),
            None => json!({ "type": "string" }),
        },
        Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Small => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
        Kind::Large => json!({ "type": "integer", "minimum": 0 }),
        Kind::Number => json!({ "type": "number" }),
        Kind::Span => {
            json!({ "type": "string", "pattern": r"^[0-9]+(\.[0-9]{1,9})?s$", "examples": ["1.5s"] })
        }
        Kind::Time => json!({ "type": "string", "format": "date-time" }),
        Kind::Words => {
            let names = field.pattern().map(|pattern| json!({ "pattern": pattern }));
            json!({
                "type": "object", "additionalProperties": { "type": "string" },
                "propertyNames": names.unwrap_or(json!(true)),
            })
        }
        Kind::Enum(values) => json!({ "type": "string", "enum": values }),
        // A request has no recursion; an answer names its parts.
        Kind::Message(inner) if field.is_answer => {
            json!({ "$ref": format!("#/components/schemas/{inner}") })
        }
        Kind::Message(inner) => object(&flat(ours, inner), ours),
        Kind::Payload => json!({}),
    };
    match field.repeated {
        true => json!({ "type": "array", "items": one }),
        false => one,
    }
}

/// RFC 9457, as this face fills it.
fn problem() -> Value {
    json!({
        "type": "object",
        "description": "What is wrong (RFC 9457); `reason` tells errors apart.",
        "properties": {
            "type": { "type": "string" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "reason": { "type": "string", "pattern": "^[A-Z_]+$" },
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": { "field": { "type": "string" }, "message": { "type": "string" } },
                    "required": ["field", "message"],
                },
            },
            "request_id": { "type": "string" },
        },
        "required": ["type", "title", "status", "detail", "reason"],
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_call_but_those_of_workers_has_a_path() {
        let ours = Descriptors::ours().unwrap();
        let calls: BTreeSet<(String, String)> = ours.rpcs().collect();
        let has_path = |one: &Operation| (one.service.to_owned(), one.rpc.to_owned());
        let paths = OPERATIONS.iter().map(has_path).collect();
        assert_eq!(calls, paths);
    }

    #[test]
    fn fields_say_what_their_comments_say_and_parts_are_there() {
        let document: Value = serde_json::from_str(&DOCUMENT).unwrap();
        let body = &document["paths"]["/jobs"]["post"]["requestBody"]["content"][JSON]["schema"];
        assert_eq!(
            body["properties"]["queue"]["pattern"],
            "^[A-Za-z0-9_.:-]{1,128}$"
        );
        assert_eq!(body["required"], json!(["queue", "kind"]));
        let states = &document["components"]["schemas"]["Failure"]["properties"];
        assert!(
            states["message"]["description"]
                .as_str()
                .unwrap()
                .contains("8 KiB")
        );
        let text = DOCUMENT.as_str();
        for (at, _) in text.match_indices("#/components/schemas/") {
            let name = text[at..]
                .split('"')
                .next()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap();
            assert!(
                document["components"]["schemas"][name].is_object(),
                "{name}"
            );
        }
    }
}
