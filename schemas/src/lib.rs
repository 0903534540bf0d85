//! What crosses Kafka: records and their Avro schemas, ids, topics, partitioning and the codec.
//!
//! The `.avsc` files in `avro/` are the source of truth; the structs here mirror them, and tests hold the two equal.
//! No I/O, no clock, no Kafka client: anything that can be said about the wire without being connected to it.

pub mod batch;
pub mod batch_encoder;
pub mod codec;
pub mod codecs;
mod ids;
pub mod moments;
pub mod nearness;
pub mod partitioning;
mod records;
pub mod topics;
mod varint;

pub use ids::{Epoch, GatewayId, InvalidGatewayId, InvalidUserId, TimestampMs, UserId};
pub use nearness::{OutOfRange, Place};
pub use records::{FriendList, GatewayHeartbeat, LocationEvent, Position, Session, Source};
