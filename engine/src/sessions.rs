//! Who is connected to which gateway, by the log; whether the gateway is alive is another matter.

use crate::notice::GatewayIndex;
use crate::users::Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// What a session record did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing new.
    Nothing,
    /// For a snapshot: the session is new, or its `ask` has risen.
    Snapshot,
}

#[derive(Clone, Copy)]
struct Session {
    ask: i64,
    /// Whether the user is told there what happens.
    told: bool,
}

#[derive(Default)]
pub(crate) struct Sessions {
    sessions: BTreeMap<(Slot, GatewayIndex), Session>,
    on_gateway: BTreeSet<(GatewayIndex, Slot)>,
}

impl Sessions {
    /// The record of a session. The last one in the log is what is held, as compaction would leave it.
    pub(crate) fn open(&mut self, user: Slot, gateway: GatewayIndex, ask: i64) -> Asked {
        self.on_gateway.insert((gateway, user));
        let held = self.sessions.get(&(user, gateway)).copied();
        self.sessions.insert((user, gateway), Session { ask, told: held.is_some_and(|held| held.told) });
        match held {
            Some(held) if ask <= held.ask => Asked::Nothing,
            _ => Asked::Snapshot,
        }
    }

    /// The tombstone of a session.
    pub(crate) fn close(&mut self, user: Slot, gateway: GatewayIndex) {
        self.sessions.remove(&(user, gateway));
        self.on_gateway.remove(&(gateway, user));
    }

    /// Forgets all sessions of a user.
    pub(crate) fn forget(&mut self, user: Slot) {
        let of_user = self.sessions.range(of(user)).map(|((_, gateway), _)| *gateway);
        of_user.collect::<Vec<GatewayIndex>>().into_iter().for_each(|gateway| self.close(user, gateway));
    }

    /// Decides for each session of a user whether the user is told there; returns where that is new.
    pub(crate) fn tell_on(&mut self, user: Slot, live: impl Fn(GatewayIndex) -> bool) -> Vec<GatewayIndex> {
        let mut new = Vec::new();
        for ((_, gateway), session) in self.sessions.range_mut(of(user)) {
            let was_told = std::mem::replace(&mut session.told, live(*gateway));
            if session.told && !was_told {
                new.push(*gateway);
            }
        }
        new
    }

    /// The gateways on which a user is told what happens.
    pub(crate) fn told(&self, user: Slot) -> impl Iterator<Item = GatewayIndex> + '_ {
        self.sessions.range(of(user)).filter(|(_, session)| session.told).map(|((_, gateway), _)| *gateway)
    }

    /// Whether a user is connected to a gateway.
    pub(crate) fn has(&self, user: Slot, gateway: GatewayIndex) -> bool {
        self.sessions.contains_key(&(user, gateway))
    }

    /// The users connected to a gateway, from one on.
    pub(crate) fn on(&self, gateway: GatewayIndex, from: Slot) -> impl Iterator<Item = Slot> + '_ {
        self.on_gateway.range((gateway, from)..=(gateway, Slot::MAX)).map(|(_, user)| *user)
    }
}

fn of(user: Slot) -> RangeInclusive<(Slot, GatewayIndex)> {
    (user, GatewayIndex(0))..=(user, GatewayIndex(u32::MAX))
}
