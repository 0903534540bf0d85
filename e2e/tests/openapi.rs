//! `schemas/openapi.yaml` is true: its examples fit its schemas, and a running server answers as it says.
//!
//! A request example of the file is sent; if the answer that it should get has an example of the same name, that is the
//! body. Every answer is checked against the response that the file gives for its status: headers, media type, body. The
//! codes of all refusals that this test could drive are those of the file, less [`NOT_DRIVEN`].

use anyhow::{Context, bail, ensure};
use nearby_e2e::http::Response;
use nearby_e2e::nearby::{Nearby, token};
use nearby_e2e::ws::{Refused, Socket};
use nearby_e2e::{http, ports};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const FILE: &str = include_str!("../../schemas/openapi.yaml");
const SECRET: &str = "a secret for the tests alone";
/// `{"sub":"42","exp":1}`, signed with the secret.
const EXPIRED: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiIsImV4cCI6MX0.VYk3mKZIwfBfe05u7qyPmpzGao9Ghb884dPKugGoxsU";
/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
/// The longest that anything else may take; heartbeats come every 5 s.
const STEP: Duration = Duration::from_secs(15);
/// Few enough to fill the gateway, and so slow that filling it meets the bound on arrivals.
const GATEWAY: &[&str] = &["--connections-max", "20", "--accept-rate-per-s", "5"];

/// Codes of the file that no request can bring about here, and why.
const NOT_DRIVEN: &[(&str, &str)] = &[
    ("body_timeout", "takes half a minute"),
    ("bad_request", "stands in for rejections that no route makes"),
    ("cannot_sign", "needs a server that has a public key instead of the secret"),
    ("draining", "a process that drains takes no new connections"),
    ("kafka_unavailable", "the embedded Kafka ends with the process"),
    ("snapshot_timeout", "the processor is in the same process, and ready before it serves"),
];

#[test]
fn every_example_fits_its_schema() {
    let api = Api::parse();
    let mut faults = Vec::new();
    for operation in api.operations() {
        for (name, value) in examples_of(api.content(&operation.spec["requestBody"])) {
            api.check(&api.content(&operation.spec["requestBody"])["schema"], value, name, &mut faults);
        }
        for parameter in operation.parameters(&api) {
            for (name, value) in examples_of(parameter) {
                api.check(&parameter["schema"], value, name, &mut faults);
            }
        }
        for response in members(&operation.spec["responses"]).map(|(_, response)| api.resolve(response)) {
            let content = api.content(response);
            examples_of(content).for_each(|(name, value)| api.check(&content["schema"], value, name, &mut faults));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_answers_as_the_file_says() -> anyhow::Result<()> {
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let args = [&["run", "--listen", &listen, "--dev-tokens"], GATEWAY].concat();
    let mut nearby = Nearby::start(&args, &[("NEARBY_JWT_SECRET", SECRET)])?;
    let base = nearby.wait_ready(READY)?.http;
    let mut seen = Seen::default();
    let api = Api::parse();
    for operation in api.operations() {
        send_examples(&api, &base, &operation).await?;
    }
    for refusal in refusals()? {
        refuse(&api, &base, &refusal, &mut seen).await.with_context(|| format!("{refusal:?}"))?;
    }
    let broken = "transfer-encoding: chunked\r\n\r\nno chunk\r\n";
    let answer = raw(&base, "POST", "/v1/locations", &token(SECRET, 42, "")?, broken, "}").await?;
    ensure!(answer.contains("400 Bad Request"), "{answer}");
    seen.problem(&serde_json::from_str(answer.split("\r\n\r\n").nth(1).context("an answer has a body")?)?);
    fill_the_gateway(&api, &base, &mut seen).await?;
    seen.agrees_with(&api)
}

/// Sends each request example of an operation, or the one request that it has, as a user who may do everything.
async fn send_examples(api: &Api, base: &str, operation: &Operation) -> anyhow::Result<()> {
    let may_everything = token(SECRET, 42, "friends:write ingest:any")?;
    let bodies: Vec<_> = examples_of(api.content(&operation.spec["requestBody"])).collect();
    let bodies = if bodies.is_empty() { vec![("", &Value::Null)] } else { bodies };
    let (status, documented) = members(&operation.spec["responses"]).next().context("an operation has responses")?;
    for (name, body) in bodies {
        let place = || format!("{} {} {name}", operation.method, operation.path);
        let (path, headers) = operation.filled(api);
        if status == "200" && documented["content"].get("text/event-stream").is_some() {
            let until = if path == "/v1/dev/wire" { "ping_interval_ms" } else { "\"snapshot\"" };
            let answer = raw(base, &operation.method, &path, &may_everything, "\r\n", until).await;
            let answer = answer.with_context(place)?.to_lowercase();
            for part in ["200 ok", "cache-control: no-store", "content-type: text/event-stream", "\r\ndata:{"] {
                ensure!(answer.contains(part), "{}: no {part} in {answer}", place());
            }
            continue;
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let bearer = format!("Bearer {may_everything}");
        headers.push(("authorization", &bearer));
        let answer = http::request(&operation.method, &format!("{base}{path}"), &headers, body).await?;
        ensure!(answer.status.to_string() == *status, "{}: {} {}", place(), answer.status, answer.text());
        api.check_answer(operation, &answer).with_context(place)?;
        if let Some((_, expected)) = examples_of(api.content(documented)).find(|(example, _)| *example == name) {
            ensure!(answer.json()? == *expected, "{}: {} is not {expected}", place(), answer.text());
        }
    }
    Ok(())
}

/// A request that is refused.
#[derive(Clone, Debug)]
struct Refusal {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: String,
    status: u16,
    code: &'static str,
}

fn refusals() -> anyhow::Result<Vec<Refusal>> {
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let plain = bearer(&token(SECRET, 42, "")?);
    let friends_write = bearer(&token(SECRET, 42, "friends:write")?);
    let refusal = |method, path, body: String, status, code| {
        let headers = vec![friends_write.clone()];
        Refusal { method, path, headers, body, status, code }
    };
    let with = |headers: &[(&'static str, String)], refusal: Refusal| Refusal { headers: headers.to_vec(), ..refusal };
    let report = |report: Value, code| refusal("POST", "/v1/locations", report.to_string(), 400, code);
    let here = |more: Value| {
        let mut report = json!({"lat": 37.77, "lon": -122.41});
        report.as_object_mut().expect("it is an object").extend(more.as_object().expect("so is this").clone());
        report
    };
    let year_2100 = 4_102_444_800_000_i64;
    let many = |count: usize| json!(vec![here(json!({})); count]).to_string();
    let friends = |friends: Value, code| {
        refusal("PUT", "/v1/users/42/friends", json!({"friends": friends}).to_string(), 400, code)
    };
    let handshake = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "12")];
    let handshake = handshake.map(|(name, value)| (name, value.to_owned()));
    let handshake = [std::slice::from_ref(&plain), &handshake].concat();
    let mut refusals = vec![
        refusal("GET", "/v1/nothing", String::new(), 404, "not_found"),
        refusal("PUT", "/v1/locations", String::new(), 405, "method_not_allowed"),
        report(json!([here(json!({})), {"lat": 91}]), "out_of_range"),
        report(json!({"lat": 1}), "missing"),
        report(json!({"lat": "1", "lon": 1}), "wrong_type"),
        report(here(json!({"precision": "rough"})), "unknown_precision"),
        report(here(json!({"user_id": "07"})), "bad_id"),
        report(here(json!({"reported_at_ms": year_2100})), "in_future"),
        report(here(json!({"reported_at_ms": 0})), "too_old"),
        refusal("POST", "/v1/locations", "{".to_owned(), 400, "bad_json"),
        refusal("POST", "/v1/locations", r#"{"lat":1e999,"lon":1}"#.to_owned(), 400, "not_finite"),
        refusal("POST", "/v1/locations", many(1_001), 400, "too_many"),
        refusal("POST", "/v1/locations", " ".repeat(1024 * 1024 + 1), 413, "too_large"),
        refusal("POST", "/v1/locations", many(201), 429, "rate_limited"),
        refusal("POST", "/v1/locations", here(json!({"user_id": "7"})).to_string(), 403, "missing_scope"),
        refusal("DELETE", "/v1/location", r#"{"reported_at_ms":0}"#.to_owned(), 400, "too_old"),
        friends(json!(["7", "-1"]), "bad_id"),
        friends(json!("7"), "wrong_type"),
        friends(json!(vec!["7"; 5_001]), "too_many"),
        refusal("PUT", "/v1/users/07/friends", "{}".to_owned(), 400, "bad_id"),
        refusal("POST", "/v1/friend-lists", json!({"lists": {"07": []}}).to_string(), 400, "bad_id"),
        refusal("POST", "/v1/friend-lists", "{}".to_owned(), 400, "missing"),
        refusal("POST", "/owntracks", r#"{"_type":"location","lat":91,"lon":0}"#.to_owned(), 400, "out_of_range"),
        refusal("POST", "/owntracks", "{}".to_owned(), 400, "missing"),
        refusal("GET", "/v1/dev/token", String::new(), 400, "bad_id"),
        with(&[("via", "1.1 proxy".to_owned())], refusal("GET", "/v1/dev/token", String::new(), 403, "not_local")),
        refusal("GET", "/v1/stream", String::new(), 426, "upgrade_required"),
        with(&[("host", "evil.example".to_owned())], refusal("GET", "/v1/gateway", String::new(), 421, "wrong_host")),
        with(
            &[plain.clone(), ("origin", "https://evil.example".to_owned())],
            refusal("GET", "/v1/stream", String::new(), 403, "origin_not_allowed"),
        ),
        with(&handshake, refusal("GET", "/v1/stream", String::new(), 400, "bad_handshake")),
        with(&[plain], refusal("POST", "/v1/friend-lists", String::new(), 403, "missing_scope")),
        with(&[bearer(EXPIRED)], refusal("POST", "/v1/locations", String::new(), 401, "token_expired")),
        with(&[bearer("x")], refusal("POST", "/v1/locations", String::new(), 401, "bad_token")),
    ];
    let with_token = [("POST", "/v1/locations"), ("DELETE", "/v1/location"), ("PUT", "/v1/users/42/friends")];
    let with_token = with_token.iter().chain(&[("POST", "/v1/friend-lists"), ("GET", "/v1/nearby")]);
    let with_token = with_token.chain(&[("GET", "/v1/events"), ("GET", "/v1/stream"), ("POST", "/owntracks")]);
    let without = |(method, path): &(_, _)| with(&[], refusal(*method, *path, String::new(), 401, "missing_token"));
    refusals.extend(with_token.map(without));
    Ok(refusals)
}

async fn refuse(api: &Api, base: &str, refusal: &Refusal, seen: &mut Seen) -> anyhow::Result<()> {
    let headers: Vec<_> = refusal.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let url = format!("{base}{}", refusal.path);
    let answer = http::request(refusal.method, &url, &headers, refusal.body.clone()).await?;
    let answer = answer.expect_status(refusal.status)?;
    ensure!(answer.json()?["code"] == refusal.code, "{}", answer.text());
    // Those of routing are the same everywhere: the file says so in its introduction.
    if !matches!(refusal.code, "not_found" | "method_not_allowed" | "wrong_host") {
        api.check_answer(&api.operation(refusal.method, refusal.path)?, &answer)?;
    }
    seen.problem(&answer.json()?);
    Ok(())
}

/// The refusals of a gateway that cannot take everybody.
async fn fill_the_gateway(api: &Api, base: &str, seen: &mut Seen) -> anyhow::Result<()> {
    let (mut sockets, deadline) = (Vec::new(), Instant::now() + STEP);
    let stream_url = format!("{}/v1/stream", base.replacen("http", "ws", 1));
    let (someone, another) = (token(SECRET, 43, "")?, token(SECRET, 45, "")?);
    while !seen.codes.contains("gateway_full") {
        ensure!(Instant::now() < deadline, "the gateway is not full with {} sockets", sockets.len());
        let who = if seen.codes.contains("too_many_sockets") { &another } else { &someone };
        match Socket::connect(&stream_url, who).await {
            Ok(socket) => sockets.push(socket),
            Err(error) => {
                let refused: Refused = error.downcast()?;
                ensure!([429, 503].contains(&refused.status), "{refused}");
                seen.problem(&serde_json::from_str(&refused.body)?);
            }
        }
    }
    let answer = http::get_as(&token(SECRET, 44, "")?, &format!("{base}/v1/nearby")).await?.expect_status(503)?;
    api.check_answer(&api.operation("GET", "/v1/nearby")?, &answer)?;
    // It counts those whom it has sent somewhere until their heartbeat counts them.
    loop {
        ensure!(Instant::now() < deadline, "clients are still sent to a full gateway");
        let answer = http::get(&format!("{base}/v1/gateway")).await?;
        api.check_answer(&api.operation("GET", "/v1/gateway")?, &answer)?;
        if answer.status == 503 {
            seen.problem(&answer.json()?);
            return Ok(());
        }
    }
}

/// The problems that the server answered with.
#[derive(Default)]
struct Seen {
    codes: BTreeSet<String>,
    item_codes: BTreeSet<String>,
}

impl Seen {
    fn problem(&mut self, problem: &Value) {
        self.codes.extend(problem["code"].as_str().map(str::to_owned));
        let items = problem["errors"].as_array().into_iter().flatten();
        self.item_codes.extend(items.filter_map(|item| item["code"].as_str().map(str::to_owned)));
    }

    fn agrees_with(&self, api: &Api) -> anyhow::Result<()> {
        let schemas = &api.0["components"]["schemas"];
        let not_driven: BTreeSet<String> = NOT_DRIVEN.iter().map(|(code, _)| (*code).to_owned()).collect();
        let documented = strings(&schemas["Problem"]["properties"]["code"]["enum"]);
        let undriven: BTreeSet<_> = documented.difference(&self.codes).cloned().collect();
        ensure!(undriven == not_driven, "the file has codes that did not come: {undriven:?} but {NOT_DRIVEN:?}");
        let undocumented: Vec<_> = self.codes.difference(&documented).collect();
        ensure!(undocumented.is_empty(), "codes came that the file does not have: {undocumented:?}");
        let items = strings(&schemas["ItemError"]["properties"]["code"]["enum"]);
        ensure!(items == self.item_codes, "codes of items: {items:?} in the file, {:?} came", self.item_codes);
        Ok(())
    }
}

/// Sends a request that a client library would not, or reads an answer that does not end, up to `until`.
async fn raw(base: &str, method: &str, path: &str, token: &str, rest: &str, until: &str) -> anyhow::Result<String> {
    let address = base.strip_prefix("http://").context("the address begins with http://")?;
    let mut stream = TcpStream::connect(address).await?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n{rest}");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&answer).contains(until) {
            if stream.read_buf(&mut answer).await? == 0 {
                bail!("the answer ended");
            }
        }
        Ok(())
    };
    let read = tokio::time::timeout(STEP, read).await.context("the answer does not come").flatten();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    read.with_context(|| answer.clone()).map(|()| answer)
}

/// The file.
struct Api(Value);

/// A method of a path of the file.
struct Operation {
    method: String,
    path: String,
    spec: Value,
}

impl Operation {
    fn parameters<'a>(&'a self, api: &'a Api) -> impl Iterator<Item = &'a Value> {
        self.spec["parameters"].as_array().into_iter().flatten().map(|parameter| api.resolve(parameter))
    }

    /// The path with the examples of its parameters, and the headers.
    fn filled(&self, api: &Api) -> (String, Vec<(String, String)>) {
        let (mut path, mut headers) = (self.path.clone(), Vec::new());
        for parameter in self.parameters(api) {
            let name = parameter["name"].as_str().unwrap_or_default();
            let example = examples_of(parameter).map(|(_, value)| value).next();
            let value = example.or(parameter["schema"].get("const")).and_then(Value::as_str).unwrap_or_default();
            match parameter["in"].as_str() {
                Some("path") => path = path.replace(&format!("{{{name}}}"), value),
                Some("query") => path = format!("{path}?{name}={value}"),
                _ => headers.push((name.to_lowercase(), value.to_owned())),
            }
        }
        (path, headers)
    }
}

impl Api {
    fn parse() -> Api {
        let documents = Yaml::load_from_str(FILE).expect("the file is YAML");
        let [document] = documents.as_slice() else { panic!("the file is one document") };
        Api(from_yaml(document))
    }

    fn operations(&self) -> Vec<Operation> {
        let of_path = |(path, methods): (&String, &Value)| {
            let operation = |(method, spec): (&String, &Value)| Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                spec: spec.clone(),
            };
            members(methods).map(operation).collect::<Vec<_>>()
        };
        members(&self.0["paths"]).flat_map(of_path).collect()
    }

    /// The operation of a request; a part of its path in braces stands for anything.
    fn operation(&self, method: &str, path: &str) -> anyhow::Result<Operation> {
        let fits = |template: &str| {
            let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
            template.len() == path.len()
                && template.iter().zip(path).all(|(part, given)| part.starts_with('{') || *part == given)
        };
        let mut operations = self.operations().into_iter();
        let found = operations.find(|operation| operation.method == method && fits(&operation.path));
        found.with_context(|| format!("{method} {path} is not in the file"))
    }

    /// What a `$ref` refers to.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value["$ref"].as_str() else { return value };
        let target = reference.strip_prefix('#').and_then(|pointer| self.0.pointer(pointer));
        self.resolve(target.unwrap_or_else(|| panic!("{reference} refers to nothing")))
    }

    /// The one media type of a request body or a response; null if it has none.
    fn content<'a>(&'a self, value: &'a Value) -> &'a Value {
        members(&self.resolve(value)["content"]).next().map_or(&Value::Null, |(_, content)| content)
    }

    fn check_answer(&self, operation: &Operation, answer: &Response) -> anyhow::Result<()> {
        let response = operation.spec["responses"].get(answer.status.to_string());
        let response = response.map(|response| self.resolve(response));
        let response = response.with_context(|| format!("{} {} is not in the file", answer.status, answer.text()))?;
        let mut faults = Vec::new();
        for (name, header) in members(&response["headers"]) {
            let header = self.resolve(header);
            match (answer.header(name), &header["required"]) {
                (Some(value), _) => {
                    let typed = serde_json::from_str(value).ok().filter(|_| header["schema"]["type"] == "integer");
                    self.check(&header["schema"], &typed.unwrap_or_else(|| json!(value)), name, &mut faults);
                }
                (None, Value::Bool(true)) => faults.push(format!("no header {name}")),
                (None, _) => {}
            }
        }
        if let Some((media_type, content)) = members(&response["content"]).next() {
            let given = answer.header("content-type");
            if given != Some(media_type.as_str()) {
                faults.push(format!("the content type is {given:?}, not {media_type}"));
            }
            let body = if media_type.ends_with("json") { answer.json()? } else { json!(answer.text()) };
            self.check(&content["schema"], &body, "body", &mut faults);
            for (name, example) in examples_of(content).filter(|(_, example)| example.get("code") == body.get("code")) {
                if (&example["title"], &example["status"]) != (&body["title"], &body["status"]) {
                    faults.push(format!("the example {name} has another title or status"));
                }
            }
        }
        ensure!(faults.is_empty(), "{faults:?} in {} {}", answer.status, answer.text());
        Ok(())
    }

    /// As much of JSON Schema as the file uses, but for patterns and formats.
    fn check(&self, schema: &Value, value: &Value, place: &str, faults: &mut Vec<String>) {
        let mut fault = |holds: bool, what: &str| {
            if !holds {
                faults.push(format!("{place}: {value} is not {what}"));
            }
        };
        let types = schema["type"].as_str().into_iter().map(str::to_owned).chain(strings(&schema["type"]));
        let types: Vec<_> = types.collect();
        fault(types.is_empty() || types.iter().any(|name| has_type(value, name)), &format!("{types:?}"));
        if let Some(one) = schema.get("const") {
            fault(value == one, &format!("{one}"));
        }
        if let Some(some) = schema["enum"].as_array() {
            fault(some.contains(value), &format!("one of {some:?}"));
        }
        if let Some(number) = value.as_f64() {
            fault(schema["minimum"].as_f64().is_none_or(|minimum| number >= minimum), "so great");
            fault(schema["maximum"].as_f64().is_none_or(|maximum| number <= maximum), "so small");
        }
        let length = |text: &str| text.chars().count() as u64;
        if let Some(length) = value.as_str().map(length).or(value.as_array().map(|items| items.len() as u64)) {
            let bound = |of_text: &str, of_items: &str| schema[of_text].as_u64().or(schema[of_items].as_u64());
            fault(bound("minLength", "minItems").is_none_or(|minimum| length >= minimum), "so long");
            fault(bound("maxLength", "maxItems").is_none_or(|maximum| length <= maximum), "so short");
        }
        for name in strings(&schema["required"]) {
            fault(value.get(&name).is_some(), &format!("with {name}"));
        }
        if let Some(options) = schema["anyOf"].as_array() {
            let fits = |option: &Value| {
                let mut faults = Vec::new();
                self.check(option, value, place, &mut faults);
                faults.is_empty()
            };
            fault(options.iter().any(fits), "any of the options");
        }
        self.check_parts(schema, value, place, faults);
    }

    fn check_parts(&self, schema: &Value, value: &Value, place: &str, faults: &mut Vec<String>) {
        if schema.get("$ref").is_some() {
            self.check(self.resolve(schema), value, place, faults);
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.check(part, value, place, faults);
        }
        for (name, member) in members(value) {
            let place = format!("{place}.{name}");
            if let Some(schema) = schema["properties"].get(name) {
                self.check(schema, member, &place, faults);
            } else if let Some(schema) = schema.get("additionalProperties") {
                self.check(schema, member, &place, faults);
            }
            self.check(&schema["propertyNames"], &json!(name), &place, faults);
        }
        for item in value.as_array().into_iter().flatten() {
            self.check(&schema["items"], item, &format!("{place}[]"), faults);
        }
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("JSON Schema has no type {other}"),
    }
}

/// The examples of a media type or a parameter, by name.
fn examples_of(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    members(&value["examples"]).map(|(name, example)| (name.as_str(), &example["value"]))
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn strings(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn from_yaml(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => json!(value),
        Yaml::Value(Scalar::Integer(value)) => json!(value),
        Yaml::Value(Scalar::FloatingPoint(value)) => json!(value.into_inner()),
        Yaml::Value(Scalar::String(value)) => json!(value),
        Yaml::Sequence(items) => items.iter().map(from_yaml).collect(),
        Yaml::Mapping(members) => {
            let member = |(name, value): (&Yaml<'_>, &Yaml<'_>)| {
                (name.as_str().expect("every key in the file is a string").to_owned(), from_yaml(value))
            };
            Value::Object(members.iter().map(member).collect::<Map<_, _>>())
        }
        other => panic!("the file has no tags and aliases, but {other:?}"),
    }
}
