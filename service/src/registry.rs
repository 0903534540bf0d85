//! A schema registry that speaks Confluent's HTTP API: registers what this process writes, looks up what others wrote.
//!
//! Looking up waits for as long as the registry is away, because a record whose schema cannot be had right now is a good
//! record. Only the registry's own word that it does not know an id makes a dead letter.

use crate::health::Readiness;
use nearby_schemas::codecs::{Codecs, RecordType};
use nearby_schemas::topics::Topics;
use reqwest::blocking::{Client, RequestBuilder};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The part of readiness that says whether readers wait for the registry.
const READINESS_PART: &str = "schema-registry";
/// How long an answer may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Waiting between two tries doubles from the one to the other.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// That an id is unknown is believed for so long, or rubbish that looks like ids would be asked for record by record.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// So many unknown ids are remembered.
const UNKNOWN_MAX: usize = 10_000;
/// Confluent's code for an id that was never given.
const SCHEMA_NOT_FOUND: i64 = 40_403;

/// Where the registry is; it may hold a password, which is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistryUrl(String);

impl From<String> for RegistryUrl {
    // Everything is taken here: an error of the command line would print it.
    fn from(url: String) -> RegistryUrl {
        RegistryUrl(url)
    }
}

impl fmt::Debug for RegistryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryUrl(…)")
    }
}

/// The registry cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The address is none.
    #[error("--schema-registry-url: {0}")]
    BadUrl(String),
    /// It does not answer as a registry does.
    #[error("the schema registry at {url} cannot be used: {reason}")]
    Unusable {
        /// Without user and password.
        url: String,
        /// What happened.
        reason: String,
    },
    /// It does not take a schema of ours.
    #[error("the schema registry at {url} refuses our schema for the subject {subject}: {reason}")]
    Refused {
        /// Without user and password.
        url: String,
        /// Under which it was to be kept.
        subject: String,
        /// The registry's word.
        reason: String,
    },
}

/// A request that brought no answer, or another one than was asked for.
enum Trouble {
    /// Nobody answered.
    Silent(String),
    /// The registry said no, with its own code if it has one.
    Refused(StatusCode, Option<i64>, String),
}

struct Registry {
    /// With user and password, without a slash at the end.
    base: String,
    /// Without them.
    shown: String,
    client: Client,
    readiness: Readiness,
    /// An id is never given to another schema, so what is known stays.
    known: Mutex<BTreeMap<u32, Result<Arc<str>, String>>>,
    unknown: Mutex<BTreeMap<u32, Instant>>,
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

#[derive(Deserialize)]
struct Found {
    schema: String,
    #[serde(rename = "schemaType")]
    schema_type: Option<String>,
    references: Option<Vec<serde_json::Value>>,
}

#[derive(Deserialize)]
struct Refusal {
    error_code: i64,
    message: String,
}

/// Registers the schemas of the records that this process writes, and returns codecs that write and read Confluent's wire
/// format. While a reader waits for the registry, `readiness` says so ("schema-registry"). Blocks.
///
/// # Errors
/// When the registry does not answer within 5 s a request, or refuses a schema.
pub fn connect(
    url: &RegistryUrl,
    topics: &Topics,
    written: &[RecordType],
    readiness: Readiness,
) -> Result<Codecs, RegistryError> {
    let registry = Registry::new(url, readiness)?;
    // What readers will need, so that who only reads finds out now whether it can.
    if let Err(trouble @ (Trouble::Silent(_) | Trouble::Refused(..))) = registry.ask(1)
        && !trouble.is_schema_not_found()
    {
        return Err(RegistryError::Unusable { url: registry.shown, reason: trouble.to_string() });
    }
    let mut ids = BTreeMap::new();
    for record in written {
        let subject = record.subject(topics);
        let id = registry.id_of(&subject, record.schema()).map_err(|trouble| match trouble {
            Trouble::Silent(reason) => RegistryError::Unusable { url: registry.shown.clone(), reason },
            Trouble::Refused(..) => {
                let (url, subject) = (registry.shown.clone(), subject.clone());
                RegistryError::Refused { url, subject, reason: trouble.to_string() }
            }
        })?;
        tracing::info!(subject, id, "schema registered");
        ids.insert(*record, id);
    }
    registry.readiness.ready(READINESS_PART);
    Ok(Codecs::with_registry(ids, Arc::new(move |id| registry.look_up(id))))
}

impl Registry {
    fn new(url: &RegistryUrl, readiness: Readiness) -> Result<Registry, RegistryError> {
        let bad = |reason: &str| RegistryError::BadUrl(reason.to_owned());
        let parsed = Url::parse(&url.0).map_err(|error| RegistryError::BadUrl(error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(bad("has to start with http:// or https://"));
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(bad("may not have a query or a fragment"));
        }
        let mut shown = parsed.clone();
        if shown.set_username("").and_then(|()| shown.set_password(None)).is_err() {
            return Err(bad("has no host"));
        }
        // Another part of the process may have chosen one before, which is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        // Requests are rare: a connection that is kept would be found broken when it is needed.
        let client = Client::builder().timeout(REQUEST_LIMIT).pool_max_idle_per_host(0).build();
        let trimmed = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
        Ok(Registry {
            base: trimmed(&parsed),
            shown: trimmed(&shown),
            client: client.map_err(|error| RegistryError::BadUrl(with_causes(&error)))?,
            readiness,
            known: Mutex::default(),
            unknown: Mutex::default(),
        })
    }

    /// The id of a schema, which is registered if it is not yet: who may only read can use what others have registered.
    fn id_of(&self, subject: &str, schema: &str) -> Result<u32, Trouble> {
        let body = json!({"schema": schema});
        let found = answer::<Registered>(self.client.post(self.address(&["subjects", subject])).json(&body));
        let registered = match found {
            Err(Trouble::Refused(..)) => {
                answer(self.client.post(self.address(&["subjects", subject, "versions"])).json(&body))
            }
            other => other,
        };
        registered.map(|Registered { id }| id)
    }

    /// Waits until the registry has said what an id is, or that it is none; see [`LookUp`](nearby_schemas::codecs::LookUp).
    fn look_up(&self, id: u32) -> Result<Arc<str>, String> {
        if let Some(known) = lock(&self.known).get(&id) {
            return known.clone();
        }
        let unknown = || Err("the schema registry does not know it".to_owned());
        if lock(&self.unknown).get(&id).is_some_and(|since| since.elapsed() < UNKNOWN_FOR) {
            return unknown();
        }
        let mut patience = RETRY_MIN;
        loop {
            match self.ask(id) {
                Ok(schema) => {
                    self.readiness.ready(READINESS_PART);
                    return lock(&self.known).entry(id).or_insert(schema).clone();
                }
                Err(trouble) if trouble.is_schema_not_found() => {
                    self.readiness.ready(READINESS_PART);
                    self.remember_unknown(id);
                    return unknown();
                }
                Err(trouble) => {
                    let because = format!("records with schema id {id} wait for {}: {trouble}", self.shown);
                    self.readiness.not_ready(READINESS_PART, because);
                    std::thread::sleep(patience);
                    patience = (patience * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// The schema behind an id, or why it is none of ours.
    fn ask(&self, id: u32) -> Result<Result<Arc<str>, String>, Trouble> {
        let found: Found = answer(self.client.get(self.address(&["schemas", "ids", &id.to_string()])))?;
        Ok(match found.schema_type.as_deref() {
            Some(other) if other != "AVRO" => Err(format!("it is of type {other}, not AVRO")),
            _ if found.references.is_some_and(|references| !references.is_empty()) => {
                Err("it refers to other schemas, which is not supported".to_owned())
            }
            _ => Ok(found.schema.into()),
        })
    }

    fn remember_unknown(&self, id: u32) {
        let mut unknown = lock(&self.unknown);
        if unknown.len() >= UNKNOWN_MAX {
            unknown.clear();
        }
        unknown.insert(id, Instant::now());
    }

    /// Subjects have the letters of topics, which need no escaping.
    fn address(&self, path: &[&str]) -> String {
        format!("{}/{}", self.base, path.join("/"))
    }
}

impl Trouble {
    fn is_schema_not_found(&self) -> bool {
        matches!(self, Trouble::Refused(StatusCode::NOT_FOUND, Some(SCHEMA_NOT_FOUND), _))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Silent(reason) => f.write_str(reason),
            Trouble::Refused(status, _, message) if message.is_empty() => write!(f, "it answers {status}"),
            Trouble::Refused(status, _, message) => write!(f, "it answers {status}: {message}"),
        }
    }
}

fn answer<T: serde::de::DeserializeOwned>(request: RequestBuilder) -> Result<T, Trouble> {
    // The URL in an error would be one of many; the caller says which registry it is.
    let silent = |error: reqwest::Error| Trouble::Silent(with_causes(&error.without_url()));
    let response = request.header("accept", "application/vnd.schemaregistry.v1+json").send().map_err(silent)?;
    let status = response.status();
    if status.is_success() {
        return response.json().map_err(silent);
    }
    // A proxy in between answers with pages, which say nothing.
    let refusal: Option<Refusal> = response.json().ok();
    let (code, message) = refusal.map_or((None, String::new()), |refusal| (Some(refusal.error_code), refusal.message));
    Err(Trouble::Refused(status, code, message))
}

/// An error with what lies behind it, which reqwest leaves out.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
