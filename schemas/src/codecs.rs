//! Which wire format codecs write, and how they learn of schemas that are not compiled in: the side of a schema registry that
//! does no I/O. Who talks to it hands in ids and a [`LookUp`].

use crate::codec::{Codec, Record};
use crate::topics::Topics;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// The schema behind an id, as JSON; or why there is none, which is final: the record goes to the dead letters. It is called
/// on the thread that decodes, once per id and codec unless it fails, and may wait there for as long as the registry is away.
pub type LookUp = Arc<dyn Fn(u32) -> Result<Arc<str>, String> + Send + Sync>;

/// The records of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordType {
    /// [`LocationEvent`](crate::LocationEvent).
    LocationEvent,
    /// [`FriendList`](crate::FriendList).
    FriendList,
    /// [`Session`](crate::Session).
    Session,
    /// [`GatewayHeartbeat`](crate::GatewayHeartbeat).
    GatewayHeartbeat,
    /// [`FriendMovedBatch`](crate::batch::FriendMovedBatch).
    FriendMovedBatch,
}

impl RecordType {
    /// Under which subject the registry keeps the schema: that of the topic, or, as there is a topic per gateway, that of the
    /// record.
    pub fn subject(self, topics: &Topics) -> String {
        match self {
            RecordType::LocationEvent => format!("{}-value", topics.location_events()),
            RecordType::FriendList => format!("{}-value", topics.friend_lists()),
            RecordType::Session => format!("{}-value", topics.sessions()),
            RecordType::GatewayHeartbeat => format!("{}-value", topics.gateways()),
            RecordType::FriendMovedBatch => "nearby.v1.FriendMovedBatch".to_owned(),
        }
    }

    /// The `.avsc` file that records are written with.
    pub fn schema(self) -> &'static str {
        match self {
            RecordType::LocationEvent => crate::LocationEvent::SCHEMA,
            RecordType::FriendList => crate::FriendList::SCHEMA,
            RecordType::Session => crate::Session::SCHEMA,
            RecordType::GatewayHeartbeat => crate::GatewayHeartbeat::SCHEMA,
            RecordType::FriendMovedBatch => crate::batch::FriendMovedBatch::SCHEMA,
        }
    }
}

/// Makes the codecs of a process. By default there is no registry: records are written as Avro single objects, and nothing
/// else is read.
#[derive(Clone, Default)]
pub struct Codecs {
    ids: BTreeMap<RecordType, u32>,
    look_up: Option<LookUp>,
}

impl Codecs {
    /// With a registry: Confluent's wire format is read too, and written for these records, which have these ids there.
    pub fn with_registry(ids: BTreeMap<RecordType, u32>, look_up: LookUp) -> Codecs {
        Codecs { ids, look_up: Some(look_up) }
    }

    /// A codec for one record type. A record that has no id is written as a single object.
    pub fn codec<R: Record>(&self) -> Codec<R> {
        Codec::build(self.ids.get(&R::TYPE).copied(), self.look_up.clone())
    }
}

impl fmt::Debug for Codecs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codecs").field("ids", &self.ids).field("registry", &self.look_up.is_some()).finish()
    }
}

/// What ids mean, in the order in which they came up. It only grows, so it is read without a lock; it has few entries, and
/// usually the wanted one is the first.
pub(crate) struct ById<T>(OnceLock<Box<Entry<T>>>);

struct Entry<T> {
    id: u32,
    meaning: T,
    rest: ById<T>,
}

impl<T> ById<T> {
    pub fn new() -> ById<T> {
        ById(OnceLock::new())
    }

    pub fn get(&self, id: u32) -> Option<&T> {
        let mut list = self;
        while let Some(entry) = list.0.get() {
            if entry.id == id {
                return Some(&entry.meaning);
            }
            list = &entry.rest;
        }
        None
    }

    /// Remembers a meaning, unless another thread was faster; returns the one that is remembered.
    pub fn insert(&self, id: u32, meaning: T) -> &T {
        let mut new = Some(Box::new(Entry { id, meaning, rest: ById::new() }));
        let mut list = self;
        loop {
            let entry = list.0.get_or_init(|| new.take().expect("it is put somewhere once"));
            if entry.id == id {
                return &entry.meaning;
            }
            list = &entry.rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_meaning_of_an_id_stays() {
        let by_id = ById::new();
        assert_eq!(by_id.get(1), None);
        assert_eq!((by_id.insert(1, 'a'), by_id.insert(2, 'b'), by_id.insert(1, 'c')), (&'a', &'b', &'a'));
        assert_eq!((by_id.get(1), by_id.get(2), by_id.get(3)), (Some(&'a'), Some(&'b'), None));
    }

    #[test]
    fn subjects_follow_the_topics_and_the_batch_its_record() {
        let topics = Topics::new("eu.");
        assert_eq!(RecordType::LocationEvent.subject(&topics), "eu.location-events-value");
        assert_eq!(RecordType::GatewayHeartbeat.subject(&topics), "eu.gateways-value");
        assert_eq!(RecordType::FriendMovedBatch.subject(&topics), "nearby.v1.FriendMovedBatch");
        assert!(RecordType::FriendMovedBatch.schema().contains("FriendMovedBatch"));
    }
}
