//! Avro single-object encoding: `C3 01`, the writer schema's CRC-64-AVRO fingerprint (little endian), the datum.
//!
//! Source: Apache Avro specification 1.12, "Single-object encoding". Readers and writers are built once per record type,
//! because resolving a schema at each call would cost most of the time. A record written with the current schema is read
//! straight into its struct; one written with a schema of the history is resolved field by field, the slow way.

use apache_avro::rabin::Rabin;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use apache_avro::{Schema, from_value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

const MARKER: [u8; 2] = [0xC3, 0x01];
const CONFLUENT_MAGIC: u8 = 0;
const FINGERPRINT_BYTES: usize = 8;
/// Bytes in front of the datum.
pub const HEADER_BYTES: usize = MARKER.len() + FINGERPRINT_BYTES;

/// A type that mirrors an Avro schema.
pub trait Record: Serialize + DeserializeOwned + 'static {
    /// The `.avsc` file that records are written with.
    const SCHEMA: &'static str;
    /// Every version that was ever published, the current one included.
    const HISTORY: &'static [&'static str];

    /// What the schema cannot say: ranges of ids and coordinates.
    fn check(&self) -> Result<(), Invalid>;
}

/// A decoded record holds a value that the schema allows and the system does not; names the field.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} out of range")]
pub struct Invalid(pub &'static str);

/// Why bytes are not a record. All of them are final: the bytes go to the dead letters.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than the header, or none of the two wire formats.
    #[error("not an Avro single object: it does not start with C3 01")]
    NotSingleObject,
    /// Confluent's wire format, which needs a schema registry.
    #[error("in Confluent's wire format (schema id {schema_id}), but no schema registry is configured")]
    NeedsRegistry {
        /// The id that the registry knows.
        schema_id: u32,
    },
    /// Written with a schema that was never published here.
    #[error("written with an unknown schema (fingerprint {fingerprint:016x})")]
    UnknownSchema {
        /// CRC-64-AVRO of the writer's schema.
        fingerprint: u64,
    },
    /// The datum does not follow the schema that it names, or ends early.
    #[error("malformed: {0}")]
    Malformed(#[source] Box<apache_avro::Error>),
    /// Bytes are left after the datum.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// A value is out of the system's range.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Reads and writes one record type. Build it once and keep it.
pub struct Codec<R> {
    header: [u8; HEADER_BYTES],
    writer: GenericDatumWriter<'static>,
    reader: GenericDatumReader<'static>,
    older: Vec<OlderSchema>,
    record: std::marker::PhantomData<fn() -> R>,
}

struct OlderSchema {
    fingerprint: [u8; FINGERPRINT_BYTES],
    resolving_reader: GenericDatumReader<'static>,
}

impl<R: Record> Codec<R> {
    /// Parses the schemas, unless that was done before.
    ///
    /// # Panics
    /// If a schema of this crate does not parse, which the tests rule out.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "costly, and meant to be seen where it happens")]
    pub fn new() -> Codec<R> {
        let schema = parse(R::SCHEMA);
        let current = fingerprint(R::SCHEMA);
        let older = R::HISTORY
            .iter()
            .map(|text| (fingerprint(text), text))
            .filter(|(older, _)| *older != current)
            .map(|(fingerprint, text)| OlderSchema {
                fingerprint,
                resolving_reader: GenericDatumReader::builder(parse(text))
                    .reader_schema(schema)
                    .build()
                    .expect("schemas of this crate resolve"),
            })
            .collect();
        let mut header = [0; HEADER_BYTES];
        header[..2].copy_from_slice(&MARKER);
        header[2..].copy_from_slice(&current);
        Codec {
            header,
            writer: GenericDatumWriter::builder(schema)
                .human_readable(false)
                .build()
                .expect("schemas of this crate resolve"),
            reader: GenericDatumReader::builder(schema)
                .human_readable(false)
                .build()
                .expect("schemas of this crate resolve"),
            older,
            record: std::marker::PhantomData,
        }
    }

    /// What every record of this type starts with.
    pub fn header(&self) -> &[u8; HEADER_BYTES] {
        &self.header
    }

    /// The record as bytes.
    ///
    /// # Panics
    /// If the struct does not match its schema, which the golden tests rule out: there is no value that fails alone.
    pub fn encode(&self, record: &R) -> Vec<u8> {
        let mut bytes = self.header.to_vec();
        self.writer.write_ser(&mut bytes, record).expect("the struct mirrors its schema");
        bytes
    }

    /// The record out of bytes, checked.
    pub fn decode(&self, bytes: &[u8]) -> Result<R, DecodeError> {
        let (fingerprint, mut datum) = split(bytes)?;
        let record: R = if fingerprint == self.header[2..] {
            self.reader.read_deser(&mut datum).map_err(malformed)?
        } else {
            let older = self.older.iter().find(|older| older.fingerprint == fingerprint);
            let older = older.ok_or(DecodeError::UnknownSchema { fingerprint: u64::from_le_bytes(fingerprint) })?;
            let value = older.resolving_reader.read_value(&mut datum).map_err(malformed)?;
            from_value(&value).map_err(malformed)?
        };
        if !datum.is_empty() {
            return Err(DecodeError::Trailing(datum.len()));
        }
        record.check()?;
        Ok(record)
    }
}

fn split(bytes: &[u8]) -> Result<([u8; FINGERPRINT_BYTES], &[u8]), DecodeError> {
    if let Some((&CONFLUENT_MAGIC, rest)) = bytes.split_first()
        && let Some(schema_id) = rest.first_chunk::<4>()
    {
        return Err(DecodeError::NeedsRegistry { schema_id: u32::from_be_bytes(*schema_id) });
    }
    let rest = bytes.strip_prefix(&MARKER).ok_or(DecodeError::NotSingleObject)?;
    let (fingerprint, datum) = rest.split_first_chunk().ok_or(DecodeError::NotSingleObject)?;
    Ok((*fingerprint, datum))
}

/// Each schema is parsed once and lives as long as the process.
fn parse(text: &'static str) -> &'static Schema {
    static PARSED: Mutex<BTreeMap<&str, &Schema>> = Mutex::new(BTreeMap::new());
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    parsed.entry(text).or_insert_with(|| {
        let schema = Schema::parse_str(text).expect("schemas of this crate parse");
        Box::leak(Box::new(schema))
    })
}

/// CRC-64-AVRO of the schema's Parsing Canonical Form, as it stands in the header.
///
/// The form has no logical types, and a primitive is its name alone. apache-avro 0.22 drops the former but then leaves
/// `{"type":"long"}`, which gives another fingerprint than every other implementation's: so both are done here, before it.
fn fingerprint(text: &str) -> [u8; FINGERPRINT_BYTES] {
    let mut schema: Value = serde_json::from_str(text).expect("schemas of this crate are JSON");
    plain_primitives(&mut schema);
    let schema = Schema::parse(&schema).expect("schemas of this crate parse");
    schema.fingerprint::<Rabin>().bytes.try_into().expect("a Rabin fingerprint has 8 bytes")
}

fn plain_primitives(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("logicalType");
            fields.values_mut().for_each(plain_primitives);
            if fields.len() == 1
                && let Some(Value::String(name)) = fields.get("type")
            {
                *schema = Value::String(name.clone());
            }
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(plain_primitives),
        _ => {}
    }
}

fn malformed(error: apache_avro::Error) -> DecodeError {
    DecodeError::Malformed(Box::new(error))
}
