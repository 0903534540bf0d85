//! Friend lists on their way into the log.

use crate::reports::{keyed, not_acknowledged};
use nearby_schemas::codec::Codec;
use nearby_schemas::{FriendList, TimestampMs, UserId};
use nearby_service::append::Appender;
use nearby_service::kafka::Kafka;
use nearby_service::problem::Problem;

/// Appends friend lists.
pub(crate) struct FriendLists {
    appender: Appender,
    topic: String,
    codec: Codec<FriendList>,
}

impl FriendLists {
    pub(crate) fn new(kafka: &Kafka, appender: Appender) -> FriendLists {
        FriendLists { appender, topic: kafka.topics.friend_lists(), codec: kafka.codecs.codec() }
    }

    /// Replaces these lists; the answer is their number once all are acknowledged. Not atomic.
    pub(crate) async fn replace(&self, lists: Vec<(UserId, Vec<UserId>)>, now: TimestampMs) -> Result<usize, Problem> {
        let count = lists.len();
        let records = lists.into_iter().map(|(user_id, friends)| {
            let list = FriendList { user_id, friends, changed_at: now };
            keyed(&self.topic, user_id, self.codec.encode(&list))
        });
        let acknowledged = self.appender.append(records);
        acknowledged.await.map(|()| count).map_err(|error| not_acknowledged(&error))
    }
}
