//! The fake database: rows and offsets, in one transaction or not at all.

use crate::broker::Topic;
use crate::dice::Dice;
use nearby_schemas::{FriendList, LocationEvent, UserId};
use nearby_sink::batch::{Advance, Item};
use nearby_sink::record::Content;
use nearby_sink::write::{WriteError, Written};
use std::collections::BTreeMap;

/// What the sinks write to.
#[derive(Default)]
pub struct Database {
    offsets: BTreeMap<(Topic, i32), i64>,
    /// The history: by partition and offset, with how often each is there.
    pub rows: BTreeMap<(i32, i64), (LocationEvent, usize)>,
    /// The newest lists.
    pub lists: BTreeMap<UserId, FriendList>,
    /// It does not answer.
    pub away: bool,
    /// Probability that a commit happens and its answer is lost.
    pub answer_lost: f64,
}

impl Database {
    /// The offsets that it holds for a topic.
    ///
    /// # Errors
    /// When it is away.
    pub fn offsets(&self, topic: Topic) -> Result<BTreeMap<i32, i64>, WriteError> {
        self.check()?;
        let of_topic = self.offsets.iter().filter(|((of, _), _)| *of == topic);
        Ok(of_topic.map(|((_, partition), next)| (*partition, *next)).collect())
    }

    /// Whether it answers.
    ///
    /// # Errors
    /// When it is away.
    pub fn check(&self) -> Result<(), WriteError> {
        if self.away { Err(WriteError::Away("away".to_owned())) } else { Ok(()) }
    }

    /// A transaction.
    ///
    /// # Errors
    /// When it is away, or refuses a row, or when the answer gets lost.
    pub fn write<'a>(
        &mut self,
        topic: Topic,
        items: impl Iterator<Item = &'a Item>,
        advances: &[Advance],
        dice: &mut Dice,
    ) -> Result<Written, WriteError> {
        self.check()?;
        let others = |advance: &&Advance| self.offsets.get(&(topic, advance.partition)).copied() != advance.held;
        let lost: Vec<i32> = advances.iter().filter(others).map(|advance| advance.partition).collect();
        if !lost.is_empty() {
            return Ok(Written::Lost(lost));
        }
        let items: Vec<&Item> = items.collect();
        if items.iter().any(|item| refuses(item)) {
            return Err(WriteError::Refused("a row that the database does not take".to_owned()));
        }
        for advance in advances {
            self.offsets.insert((topic, advance.partition), advance.next);
        }
        let mut rows = 0;
        for item in items {
            rows += usize::from(item.content().is_some());
            self.insert(item);
        }
        if dice.chance(self.answer_lost) {
            return Err(WriteError::Away("the connection broke at the commit".to_owned()));
        }
        Ok(Written::Rows(rows))
    }

    fn insert(&mut self, item: &Item) {
        match item.content() {
            Some(Content::Reported(event, _)) => {
                let row = (item.record.partition, item.record.offset);
                self.rows.entry(row).or_insert_with(|| (*event, 0)).1 += 1;
            }
            Some(Content::Listed(list)) => {
                self.lists.insert(list.user_id, list.clone());
            }
            Some(Content::Unlisted(user)) => {
                self.lists.remove(user);
            }
            None => {}
        }
    }
}

/// Rows that this database does not take: so accurate a position is not possible.
fn refuses(item: &Item) -> bool {
    matches!(item.content(), Some(Content::Reported(event, _))
        if event.position.is_some_and(|at| at.accuracy_m == Some(REFUSED_ACCURACY_M)))
}

/// A report with this accuracy is refused.
pub const REFUSED_ACCURACY_M: f32 = 0.0625;
