//! The rules written a second time, slowly and plainly, and what a client makes of the notices. Shares no code with the
//! engine: plain maps, everything recomputed at each question, and a distance by vectors instead of the haversine.

use nearby_engine::Notice;
use nearby_schemas::batch::LeftReason;
use nearby_schemas::{GatewayId, Place, TimestampMs, UserId};
use std::collections::{BTreeMap, BTreeSet};

pub const RADIUS_M: f64 = 8_000.0;
pub const INACTIVE_AFTER_MS: i64 = 600_000;
pub const GATEWAY_LOST_AFTER_MS: i64 = 30_000;

/// One call of the engine.
#[derive(Clone, Debug)]
pub enum Input {
    Report { user: i64, time: i64, place: Option<Place> },
    List { viewer: i64, friends: Option<Vec<i64>> },
    Session { user: i64, gateway: u8, ask: Option<i64> },
    Heartbeat { gateway: u8, appended_at: i64 },
    GatewayRemoved { gateway: u8 },
    Serve { partition: i32 },
    Forget { partition: i32 },
    Again { viewer: i64, gateway: u8 },
    Tick,
}

pub fn partition(user: i64) -> i32 {
    i32::from(user % 2 == 1)
}

pub fn gateway_id(gateway: u8) -> GatewayId {
    GatewayId::new(format!("g{gateway}")).expect("a legal name")
}

/// Friends seen, with place and time.
pub type View = BTreeMap<i64, (Place, i64)>;

/// What the log says.
#[derive(Default)]
pub struct Model {
    pub now: i64,
    positions: BTreeMap<i64, (i64, Option<Place>)>,
    lists: BTreeMap<i64, BTreeSet<i64>>,
    sessions: BTreeMap<(i64, u8), i64>,
    heartbeats: BTreeMap<u8, i64>,
    newest_heartbeat: i64,
    served: BTreeSet<i32>,
}

impl Model {
    /// Takes in an input; returns the sessions that have to get a snapshot, if they are live.
    pub fn take(&mut self, input: &Input, now: i64) -> Vec<(i64, u8)> {
        // `forget` is the one call to which no time is passed.
        if !matches!(input, Input::Forget { .. }) {
            self.now = self.now.max(now);
        }
        match input.clone() {
            Input::Report { user, time, place } => {
                let held = self.positions.get(&user).copied();
                let position = match (held, place) {
                    (None, place) => (time, place),
                    (Some((held, _)), None) => (time.max(held), None),
                    (Some((held, None)), Some(place)) if time > held => (time, Some(place)),
                    (Some((held, Some(_))), Some(place)) if time >= held => (time, Some(place)),
                    (Some(held), Some(_)) => held,
                };
                self.positions.insert(user, position);
            }
            Input::List { viewer, friends: Some(friends) } => {
                self.lists.insert(viewer, friends.into_iter().collect());
            }
            Input::List { viewer, friends: None } => drop(self.lists.remove(&viewer)),
            Input::Session { user, gateway, ask: Some(ask) } => {
                if self.sessions.insert((user, gateway), ask).is_none_or(|held| ask > held) {
                    return vec![(user, gateway)];
                }
            }
            Input::Session { user, gateway, ask: None } => drop(self.sessions.remove(&(user, gateway))),
            Input::Heartbeat { gateway, appended_at } => {
                // The log has an order: the broker's clock was set back, and with it all that is known.
                let back_ms = self.newest_heartbeat - appended_at;
                if back_ms > GATEWAY_LOST_AFTER_MS / 2 {
                    self.heartbeats.values_mut().for_each(|heartbeat| *heartbeat -= back_ms);
                    self.newest_heartbeat = appended_at;
                }
                let heartbeat = self.heartbeats.entry(gateway).or_insert(appended_at);
                *heartbeat = appended_at.max(*heartbeat);
                self.newest_heartbeat = self.newest_heartbeat.max(appended_at);
            }
            Input::GatewayRemoved { gateway } => drop(self.heartbeats.remove(&gateway)),
            Input::Serve { partition: served } => {
                self.served.insert(served);
                return self.sessions.keys().copied().filter(|(user, _)| partition(*user) == served).collect();
            }
            Input::Forget { partition: lost } => {
                self.served.remove(&lost);
                self.lists.retain(|viewer, _| partition(*viewer) != lost);
                self.sessions.retain(|(user, _), _| partition(*user) != lost);
            }
            Input::Again { viewer, gateway } if self.sessions.contains_key(&(viewer, gateway)) => {
                return vec![(viewer, gateway)];
            }
            Input::Again { .. } | Input::Tick => {}
        }
        Vec::new()
    }

    /// The sessions on gateways that are alive, in partitions that are served.
    pub fn live(&self) -> BTreeSet<(i64, u8)> {
        let alive = |gateway: &u8| {
            let heartbeat = self.heartbeats.get(gateway);
            heartbeat.is_some_and(|heartbeat| self.newest_heartbeat - heartbeat <= GATEWAY_LOST_AFTER_MS)
        };
        let live = |(user, gateway): &(i64, u8)| self.served.contains(&partition(*user)) && alive(gateway);
        self.sessions.keys().copied().filter(live).collect()
    }

    /// Whether the viewer's partition is served.
    pub fn serves(&self, viewer: i64) -> bool {
        self.served.contains(&partition(viewer))
    }

    /// R1, for a connected viewer.
    pub fn view(&self, viewer: i64) -> View {
        let Some((here, _)) = self.visible(viewer) else { return View::new() };
        let friends = self.lists.get(&viewer).into_iter().flatten().copied().filter(|friend| *friend != viewer);
        let seen = friends.filter_map(|friend| Some((friend, self.visible(friend)?)));
        seen.filter(|(_, (place, _))| distance_m(here, *place) <= RADIUS_M).collect()
    }

    /// A position that counts.
    pub fn visible(&self, user: i64) -> Option<(Place, i64)> {
        let (time, place) = self.positions.get(&user).copied()?;
        place.filter(|_| self.now - time <= INACTIVE_AFTER_MS).map(|place| (place, time))
    }

    pub fn withdrew(&self, user: i64) -> bool {
        matches!(self.positions.get(&user), Some((_, None)))
    }

    pub fn listed(&self, viewer: i64, friend: i64) -> bool {
        self.lists.get(&viewer).is_some_and(|friends| friends.contains(&friend))
    }
}

/// The angle between two unit vectors, by the arc tangent of cross and dot product.
pub fn distance_m(a: Place, b: Place) -> f64 {
    let vector = |place: Place| {
        let (lat, lon) = (place.lat().to_radians(), place.lon().to_radians());
        [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()]
    };
    let ([ax, ay, az], [bx, by, bz]) = (vector(a), vector(b));
    let cross = [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx];
    let length = cross.iter().map(|part| part * part).sum::<f64>().sqrt();
    6_371_008.8 * length.atan2(ax * bx + ay * by + az * bz)
}

/// What one client shows.
#[derive(Debug, Default)]
pub struct Client {
    pub place: Option<Place>,
    pub view: View,
}

/// All clients, by viewer and gateway; one appears with its first snapshot.
#[derive(Default)]
pub struct Clients {
    pub clients: BTreeMap<(i64, u8), Client>,
    /// Snapshots since this was cleared.
    pub snapshots: BTreeSet<(i64, u8)>,
}

impl Clients {
    /// Does what a client does with a notice, and complains as a client could not.
    pub fn hear(&mut self, notice: &Notice, gateway_id: impl Fn(&Notice) -> GatewayId) {
        let (Notice::FriendMoved { to, .. }
        | Notice::FriendLeft { to, .. }
        | Notice::ViewerMoved { to, .. }
        | Notice::Snapshot { to, .. }) = notice;
        let gateway = gateway_id(notice).as_str()[1..].parse().expect("gateways are numbered");
        assert_eq!(to.partition, partition(to.viewer.0));
        let key = (to.viewer.0, gateway);
        if let Notice::Snapshot { snapshot, .. } = notice {
            let place = |lat_e7, lon_e7| Place { lat_e7, lon_e7 };
            let friends = snapshot.friends.iter();
            let seen = friends.map(|seen| (seen.friend.0, (place(seen.lat_e7, seen.lon_e7), seen.updated_at.0)));
            let client = Client { place: snapshot.place, view: seen.collect() };
            assert_eq!(client.view.len(), snapshot.friends.len(), "a friend is in the snapshot twice");
            for seen in &snapshot.friends {
                check_distance(client.place, client.view[&seen.friend.0].0, seen.distance_dm);
            }
            self.clients.insert(key, client);
            self.snapshots.insert(key);
            return;
        }
        let client = self.clients.get_mut(&key);
        let client = client.unwrap_or_else(|| panic!("told before its snapshot, or while not connected: {notice:?}"));
        match notice {
            Notice::FriendMoved { friend, place, updated_at: TimestampMs(time), distance_dm, .. } => {
                check_distance(client.place, *place, *distance_dm);
                client.view.insert(friend.0, (*place, *time));
            }
            Notice::FriendLeft { friend: UserId(friend), reason, .. } => {
                assert_ne!(*reason, LeftReason::Unknown);
                assert!(client.view.remove(friend).is_some(), "leaves without having been there: {notice:?}");
            }
            Notice::ViewerMoved { place, .. } => client.place = Some(*place),
            Notice::Snapshot { .. } => unreachable!("handled above"),
        }
    }
}

fn check_distance(viewer: Option<Place>, friend: Place, distance_dm: i32) {
    let viewer = viewer.expect("a client that is told of a friend knows its own place");
    let error_dm = (distance_m(viewer, friend) * 10.0 - f64::from(distance_dm)).abs();
    assert!(error_dm < 0.51, "{distance_dm} dm from {viewer:?} to {friend:?} is wrong by {error_dm}");
}
