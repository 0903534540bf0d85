//! Who is connected to which gateway, by the log; whether the gateway is alive is another matter.

use crate::notice::GatewayIndex;
use crate::users::Slot;
use std::collections::{BTreeMap, BTreeSet};

/// What a session record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing new.
    Nothing,
    /// For a snapshot: the session is new, or its `ask` has risen.
    Snapshot,
}

#[derive(Default)]
pub(crate) struct Sessions {
    asks: BTreeMap<(Slot, GatewayIndex), i64>,
    on_gateway: BTreeSet<(GatewayIndex, Slot)>,
}

impl Sessions {
    /// The record of a session. The last one in the log is what is held, as compaction would leave it.
    pub(crate) fn open(&mut self, user: Slot, gateway: GatewayIndex, ask: i64) -> Asked {
        self.on_gateway.insert((gateway, user));
        match self.asks.insert((user, gateway), ask) {
            Some(held) if ask <= held => Asked::Nothing,
            _ => Asked::Snapshot,
        }
    }

    /// The tombstone of a session.
    pub(crate) fn close(&mut self, user: Slot, gateway: GatewayIndex) {
        self.asks.remove(&(user, gateway));
        self.on_gateway.remove(&(gateway, user));
    }

    /// Forgets all sessions of a user.
    pub(crate) fn forget(&mut self, user: Slot) {
        let gateways: Vec<GatewayIndex> = self.of(user).collect();
        gateways.into_iter().for_each(|gateway| self.close(user, gateway));
    }

    /// The gateways to which a user is connected.
    pub(crate) fn of(&self, user: Slot) -> impl Iterator<Item = GatewayIndex> + '_ {
        self.asks.range((user, GatewayIndex(0))..=(user, GatewayIndex(u32::MAX))).map(|((_, gateway), _)| *gateway)
    }

    /// Whether a user is connected to a gateway.
    pub(crate) fn has(&self, user: Slot, gateway: GatewayIndex) -> bool {
        self.asks.contains_key(&(user, gateway))
    }

    /// The users connected to a gateway.
    pub(crate) fn on(&self, gateway: GatewayIndex) -> impl Iterator<Item = Slot> + '_ {
        self.on_gateway.range((gateway, 0)..=(gateway, Slot::MAX)).map(|(_, user)| *user)
    }
}
