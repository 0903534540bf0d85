//! The two wire formats: Avro's single-object encoding (`C3 01`, the writer schema's CRC-64-AVRO fingerprint in little endian,
//! the datum) and Confluent's (`00`, the schema's id in a registry in big endian, the datum).
//!
//! Source: Apache Avro specification 1.12, "Single-object encoding"; Confluent, "Wire format". Readers and writers are built
//! once per record type, because resolving a schema at each call would cost most of the time. A record written with the current
//! schema is read straight into its struct; one written with a schema of the history, or with one that only a registry knows,
//! is resolved field by field, the slow way.

use crate::codecs::{ById, Codecs, LookUp, RecordType};
use apache_avro::rabin::Rabin;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema_compatibility::SchemaCompatibility;
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

type Fingerprint = [u8; FINGERPRINT_BYTES];

/// A type that mirrors an Avro schema.
pub trait Record: Serialize + DeserializeOwned + 'static {
    /// Which one.
    const TYPE: RecordType;
    /// The `.avsc` file that records are written with.
    const SCHEMA: &'static str;
    /// Every version that was ever published, the current one included.
    const HISTORY: &'static [&'static str];

    /// All of a datum of the current schema, read by hand: for the one record whose decoding counts. None if there is anything
    /// unusual about it: then apache-avro reads it, and says what is wrong.
    fn read(_datum: &[u8]) -> Option<Self> {
        None
    }

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
    /// Written with a schema that the registry does not know, or that our own cannot read.
    #[error("written with schema id {schema_id}: {reason}")]
    UnusableSchema {
        /// The id in the record.
        schema_id: u32,
        /// What is wrong with it.
        reason: String,
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
    /// What is written in front of each datum.
    header: Vec<u8>,
    schema: &'static Schema,
    fingerprint: Fingerprint,
    writer: GenericDatumWriter<'static>,
    reader: GenericDatumReader<'static>,
    older: Vec<OlderSchema>,
    by_id: ById<Written>,
    look_up: Option<LookUp>,
    record: std::marker::PhantomData<fn() -> R>,
}

struct OlderSchema {
    fingerprint: Fingerprint,
    resolving_reader: GenericDatumReader<'static>,
}

/// With what a record was written.
enum Written {
    /// With the current schema, or with one whose data looks the same.
    AsCurrent,
    /// With another one, which the current one can read.
    Otherwise(GenericDatumReader<'static>),
    /// With a schema that cannot be read, because.
    Unreadably(String),
}

impl<R: Record> Codec<R> {
    /// Without a registry. Parses the schemas, unless that was done before.
    ///
    /// # Panics
    /// If a schema of this crate does not parse, which the tests rule out.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "costly, and meant to be seen where it happens")]
    pub fn new() -> Codec<R> {
        Codecs::default().codec()
    }

    pub(crate) fn build(id: Option<u32>, look_up: Option<LookUp>) -> Codec<R> {
        let schema = parse(R::SCHEMA).expect("schemas of this crate parse");
        let own = |text| fingerprint(text).expect("schemas of this crate parse");
        let current = own(R::SCHEMA);
        let older = R::HISTORY
            .iter()
            .map(|text| (own(text), text))
            .filter(|(older, _)| *older != current)
            .map(|(fingerprint, text)| OlderSchema {
                fingerprint,
                resolving_reader: resolving(parse(text).expect("schemas of this crate parse"), schema)
                    .expect("schemas of this crate resolve"),
            })
            .collect();
        let by_id = ById::new();
        let header = match id {
            Some(id) => {
                by_id.insert(id, Written::AsCurrent);
                [&[CONFLUENT_MAGIC][..], &id.to_be_bytes()].concat()
            }
            None => [&MARKER[..], &current].concat(),
        };
        Codec {
            header,
            schema,
            fingerprint: current,
            writer: GenericDatumWriter::builder(schema)
                .human_readable(false)
                .build()
                .expect("schemas of this crate resolve"),
            reader: GenericDatumReader::builder(schema)
                .human_readable(false)
                .build()
                .expect("schemas of this crate resolve"),
            older,
            by_id,
            look_up,
            record: std::marker::PhantomData,
        }
    }

    /// What every record of this type that is written here starts with.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The record as bytes.
    ///
    /// # Panics
    /// If the struct does not match its schema, which the golden tests rule out: there is no value that fails alone.
    pub fn encode(&self, record: &R) -> Vec<u8> {
        let mut bytes = self.header.clone();
        self.writer.write_ser(&mut bytes, record).expect("the struct mirrors its schema");
        bytes
    }

    /// The record out of bytes, checked. With a registry this may wait for it, but only at the first record with an id.
    pub fn decode(&self, bytes: &[u8]) -> Result<R, DecodeError> {
        let (resolving_reader, mut datum) = match bytes.strip_prefix(self.header.as_slice()) {
            Some(datum) => (None, datum),
            None => self.split(bytes)?,
        };
        if resolving_reader.is_none()
            && let Some(record) = R::read(datum)
        {
            record.check()?;
            return Ok(record);
        }
        let record: R = match resolving_reader {
            None => self.reader.read_deser(&mut datum).map_err(malformed)?,
            Some(reader) => from_value(&reader.read_value(&mut datum).map_err(malformed)?).map_err(malformed)?,
        };
        if !datum.is_empty() {
            return Err(DecodeError::Trailing(datum.len()));
        }
        record.check()?;
        Ok(record)
    }

    /// The datum and who reads it, if not the reader of the current schema.
    fn split<'a>(&self, bytes: &'a [u8]) -> Result<(Option<&GenericDatumReader<'static>>, &'a [u8]), DecodeError> {
        if let Some((&CONFLUENT_MAGIC, rest)) = bytes.split_first()
            && let Some((schema_id, datum)) = rest.split_first_chunk()
        {
            let schema_id = u32::from_be_bytes(*schema_id);
            return match self.written(schema_id)? {
                Written::AsCurrent => Ok((None, datum)),
                Written::Otherwise(reader) => Ok((Some(reader), datum)),
                Written::Unreadably(reason) => Err(DecodeError::UnusableSchema { schema_id, reason: reason.clone() }),
            };
        }
        let rest = bytes.strip_prefix(&MARKER).ok_or(DecodeError::NotSingleObject)?;
        let (fingerprint, datum) = rest.split_first_chunk().ok_or(DecodeError::NotSingleObject)?;
        if *fingerprint == self.fingerprint {
            return Ok((None, datum));
        }
        let older = self.older.iter().find(|older| older.fingerprint == *fingerprint);
        let older = older.ok_or(DecodeError::UnknownSchema { fingerprint: u64::from_le_bytes(*fingerprint) })?;
        Ok((Some(&older.resolving_reader), datum))
    }

    /// What an id stands for. Ids are never given to another schema, so each is asked for once.
    fn written(&self, schema_id: u32) -> Result<&Written, DecodeError> {
        if let Some(written) = self.by_id.get(schema_id) {
            return Ok(written);
        }
        let look_up = self.look_up.as_ref().ok_or(DecodeError::NeedsRegistry { schema_id })?;
        let text = look_up(schema_id).map_err(|reason| DecodeError::UnusableSchema { schema_id, reason })?;
        Ok(self.by_id.insert(schema_id, self.written_with(&text)))
    }

    fn written_with(&self, text: &str) -> Written {
        // Same canonical form, same bytes.
        if fingerprint(text).is_ok_and(|fingerprint| fingerprint == self.fingerprint) {
            return Written::AsCurrent;
        }
        let schema = match parse(text) {
            Ok(schema) => schema,
            Err(error) => return Written::Unreadably(format!("it does not parse: {error}")),
        };
        // Reading alone would not see that it is another record: every field of ours has a default.
        if let Err(error) = SchemaCompatibility::can_read(schema, self.schema) {
            return Written::Unreadably(format!("our schema cannot read it: {error}"));
        }
        match resolving(schema, self.schema) {
            Ok(reader) => Written::Otherwise(reader),
            Err(error) => Written::Unreadably(format!("it does not resolve: {error}")),
        }
    }
}

/// Reads what was written with one schema as another one has it.
fn resolving(
    writer: &'static Schema,
    reader: &'static Schema,
) -> Result<GenericDatumReader<'static>, apache_avro::Error> {
    GenericDatumReader::builder(writer).reader_schema(reader).build()
}

/// Each schema is parsed once and lives as long as the process: there are as many as were ever published.
fn parse(text: &str) -> Result<&'static Schema, apache_avro::Error> {
    static PARSED: Mutex<BTreeMap<String, &Schema>> = Mutex::new(BTreeMap::new());
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(schema) = parsed.get(text) {
        return Ok(schema);
    }
    let schema: &'static Schema = Box::leak(Box::new(Schema::parse_str(text)?));
    parsed.insert(text.to_owned(), schema);
    Ok(schema)
}

/// CRC-64-AVRO of the schema's Parsing Canonical Form, as it stands in the header.
///
/// The form has no logical types, and a primitive is its name alone. apache-avro 0.22 drops the former but then leaves
/// `{"type":"long"}`, which gives another fingerprint than every other implementation's: so both are done here, before it.
fn fingerprint(text: &str) -> Result<Fingerprint, apache_avro::Error> {
    let mut schema: Value = serde_json::from_str(text).map_err(apache_avro::error::Details::ParseSchemaJson)?;
    plain_primitives(&mut schema);
    let schema = Schema::parse(&schema)?;
    Ok(schema.fingerprint::<Rabin>().bytes.try_into().expect("a Rabin fingerprint has 8 bytes"))
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
