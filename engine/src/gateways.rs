//! Which gateways are alive (R8).
//!
//! A gateway is alive when it has a heartbeat that is not too far behind the newest of all. Append times and the order of the log alone
//! decide, so every processor comes to the same result, whenever it reads them.
//!
//! Append times may go back: a broker's clock is corrected, or another broker leads. A heartbeat that is last in the log and long before the
//! newest says so, and then all that came before it are as long ago as they were.

use crate::notice::GatewayIndex;
use nearby_schemas::{GatewayId, TimestampMs};
use std::collections::{BTreeMap, BTreeSet};

struct Gateway {
    id: GatewayId,
    /// Append time of the newest heartbeat.
    heartbeat: Option<TimestampMs>,
    /// The engine's clock when the gateway was first mentioned, or its heartbeat removed.
    without_heartbeat_since: TimestampMs,
}

/// What a heartbeat changed.
pub(crate) struct Beat {
    /// Its gateway was not alive before, and is now.
    pub(crate) revived: bool,
    /// Those that were alive and are too far behind now.
    pub(crate) lost: Vec<GatewayIndex>,
}

pub(crate) struct Gateways {
    lost_after_ms: i64,
    indexes: BTreeMap<GatewayId, GatewayIndex>,
    /// By index.
    gateways: Vec<Gateway>,
    alive: BTreeSet<GatewayIndex>,
    newest: TimestampMs,
}

impl Gateways {
    pub(crate) fn new(lost_after_ms: i64) -> Gateways {
        Gateways {
            lost_after_ms,
            indexes: BTreeMap::new(),
            gateways: Vec::new(),
            alive: BTreeSet::new(),
            newest: TimestampMs(i64::MIN),
        }
    }

    /// The number of a gateway, which may be new.
    pub(crate) fn index(&mut self, id: &GatewayId, clock: TimestampMs) -> GatewayIndex {
        if let Some(index) = self.find(id) {
            return index;
        }
        let index = u32::try_from(self.gateways.len()).map(GatewayIndex);
        let index = index.expect("an engine hears of less than 2^32 gateways");
        self.indexes.insert(id.clone(), index);
        self.gateways.push(Gateway { id: id.clone(), heartbeat: None, without_heartbeat_since: clock });
        index
    }

    /// The number of a gateway that was mentioned before.
    pub(crate) fn find(&self, id: &GatewayId) -> Option<GatewayIndex> {
        self.indexes.get(id).copied()
    }

    pub(crate) fn id(&self, index: GatewayIndex) -> &GatewayId {
        &self.gateways[index.0 as usize].id
    }

    #[inline]
    pub(crate) fn alive(&self, index: GatewayIndex) -> bool {
        self.alive.contains(&index)
    }

    /// How many are alive.
    pub(crate) fn alive_count(&self) -> usize {
        self.alive.len()
    }

    /// A heartbeat of a gateway.
    pub(crate) fn beat(&mut self, index: GatewayIndex, appended_at: TimestampMs) -> Beat {
        let back_ms = self.newest.since_ms(appended_at);
        if back_ms > self.lost_after_ms / 2 {
            self.newest = appended_at;
            for heartbeat in self.gateways.iter_mut().filter_map(|gateway| gateway.heartbeat.as_mut()) {
                *heartbeat = heartbeat.plus_ms(-back_ms);
            }
        }
        self.newest = self.newest.max(appended_at);
        let heartbeat = &mut self.gateways[index.0 as usize].heartbeat;
        *heartbeat = (*heartbeat).max(Some(appended_at));
        let was_alive = !self.alive.insert(index);
        let late = |index: &GatewayIndex| self.lost_for_ms(*index).is_none_or(|lost_for_ms| lost_for_ms > 0);
        let lost: Vec<GatewayIndex> = self.alive.iter().copied().filter(late).collect();
        for index in &lost {
            self.alive.remove(index);
        }
        Beat { revived: !was_alive && self.alive(index), lost }
    }

    /// The tombstone of a gateway's heartbeat.
    pub(crate) fn remove(&mut self, index: GatewayIndex, clock: TimestampMs) {
        let gateway = &mut self.gateways[index.0 as usize];
        (gateway.heartbeat, gateway.without_heartbeat_since) = (None, clock);
        self.alive.remove(&index);
    }

    /// The gateways that are lost for longer than `lost_for_ms`. By append times where there is a heartbeat; the others,
    /// whose heartbeat was removed or never came, by the engine's clock, since it first knew.
    pub(crate) fn lost_for_longer(
        &self,
        lost_for_ms: i64,
        clock: TimestampMs,
    ) -> impl Iterator<Item = GatewayIndex> + '_ {
        let stale = move |index: &GatewayIndex| match self.lost_for_ms(*index) {
            Some(found_ms) => found_ms > lost_for_ms.max(0),
            None => clock.since_ms(self.gateways[index.0 as usize].without_heartbeat_since) > lost_for_ms,
        };
        self.indexes.values().copied().filter(stale)
    }

    /// For how long a gateway has been lost, negative or 0 if it is not; `None` without a heartbeat.
    fn lost_for_ms(&self, index: GatewayIndex) -> Option<i64> {
        let heartbeat = self.gateways[index.0 as usize].heartbeat?;
        Some(self.newest.since_ms(heartbeat).saturating_sub(self.lost_after_ms))
    }
}
