//! A user with a phone that reports, and with one or two screens that show friends.

use crate::around::Around;
use crate::database::REFUSED_ACCURACY_M;
use crate::gateway::{Gateway, Line};
use crate::ingest::Ingest;
use crate::judge::View;
use crate::plan::HOMES;
use nearby_pusher::delivery::{Outgoing, SocketId};
use nearby_schemas::UserId;
use serde_json::json;
use std::collections::BTreeMap;

/// A request that was not answered is sent again after so long.
const ANSWER_MS_MAX: i64 = 15_000;
/// Reports ahead of the time by more are refused.
const AHEAD_MS_MAX: i64 = 60_000;

/// One user's devices.
pub struct Client {
    number: usize,
    /// Who.
    pub user: UserId,
    lat: f64,
    lon: f64,
    /// Its clock is ahead by so much.
    ahead_ms: i64,
    screens: usize,
    /// Open connections, by number.
    pub connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    next_request: u64,
    /// Requests without an answer: the path and body, and when it is sent again.
    waiting: BTreeMap<u64, (Request, i64)>,
    next_report_ms: i64,
    next_connect_ms: i64,
    next_reconnect_ms: i64,
    next_list_ms: i64,
}

#[derive(Clone)]
enum Request {
    Report(String),
    Withdraw(String),
}

/// A socket, as the client sees it.
pub struct Connection {
    /// The machine of the gateway, and the gateway.
    pub gateway: (usize, u32),
    /// The gateway's name for it.
    pub socket: SocketId,
    /// When it was opened.
    pub since_ms: i64,
    /// What is shown; nothing before the first snapshot.
    pub view: Option<View>,
}

impl Client {
    /// A user somewhere near the others; not all are near each other.
    pub fn new(number: usize, user: UserId, around: &mut Around) -> Client {
        let (lat, lon) = if around.dice.chance(0.85) { around.plan.home } else { *around.dice.pick(&HOMES) };
        let ahead_ms = *around.dice.pick(&[0, 0, 0, 0, 0, 45_000, 90_000, -10_000, -300_000]);
        let now_ms = around.now_ms();
        let mut client = Client {
            number,
            user,
            lat,
            lon,
            ahead_ms,
            screens: around.dice.between(1, 2).unsigned_abs() as usize,
            connections: BTreeMap::new(),
            next_connection: 0,
            next_request: 0,
            waiting: BTreeMap::new(),
            next_report_ms: now_ms + around.dice.between(0, 3_000),
            next_connect_ms: now_ms + around.dice.between(0, 5_000),
            next_reconnect_ms: now_ms + around.dice.between(0, 60_000),
            next_list_ms: now_ms + around.dice.between(0, 2_000),
        };
        client.wander(0.08, around);
        client
    }

    /// When it acts next.
    pub fn when_next(&self) -> i64 {
        let resend_ms = self.waiting.values().map(|(_, at_ms)| *at_ms).min();
        let connect_ms = (self.connections.len() < self.screens).then_some(self.next_connect_ms);
        let timers = [Some(self.next_report_ms), connect_ms, Some(self.next_reconnect_ms), Some(self.next_list_ms)];
        timers.into_iter().chain([resend_ms]).flatten().min().unwrap_or_default()
    }

    /// A frame has come.
    pub fn hear(&mut self, connection: u64, outgoing: Outgoing, around: &mut Around) {
        let (user, now_ms) = (self.user, around.now_ms());
        let Some(connection) = self.connections.get_mut(&connection) else { return };
        let shown = match outgoing {
            Outgoing::Snapshot(friends) => {
                around.note(format_args!("{user} gets a snapshot of {}", friends.len()));
                connection.view = Some(friends.iter().copied().collect());
                friends
            }
            Outgoing::Update { moved, left } => {
                around.note(format_args!("{user} gets {} moved, {left:?} left", moved.len()));
                match &mut connection.view {
                    None => around.judge.blame(now_ms, format!("{user} gets an update before a snapshot")),
                    Some(view) => {
                        view.extend(moved.iter().copied());
                        view.retain(|friend, _| !left.iter().any(|(gone, _)| gone == friend));
                    }
                }
                moved
            }
        };
        if shown.len() >= around.plan.users.len() {
            around.judge.blame(now_ms, format!("{user} is told of {} friends in one frame", shown.len()));
        }
        for (friend, shown) in &shown {
            around.judge.shown(user, *friend, shown, now_ms);
        }
    }

    /// A socket was closed.
    pub fn closed(&mut self, connection: u64, around: &mut Around) {
        self.connections.remove(&connection);
        self.next_connect_ms = around.now_ms() + around.dice.between(0, 1_500);
    }

    /// An answer has come; a refused request is given up or sent again.
    pub fn answered(&mut self, request: u64, accepted: bool, around: &mut Around) {
        if accepted || around.dice.chance(0.3) {
            self.waiting.remove(&request);
        } else if let Some((_, at_ms)) = self.waiting.get_mut(&request) {
            *at_ms = around.now_ms() + around.dice.between(0, 3_000);
        }
    }

    /// Does what its time has come for. `quiet`: says nothing new.
    pub fn step(&mut self, quiet: bool, ingests: &mut [Ingest], gateways: &mut [Gateway], around: &mut Around) {
        let now_ms = around.now_ms();
        if self.next_report_ms <= now_ms {
            let mean_ms = around.plan.report_interval_ms;
            self.next_report_ms = now_ms + around.dice.between(mean_ms / 4, mean_ms * 2);
            if !quiet {
                self.wander(0.01, around);
                let request = self.request(around);
                self.next_request += 1;
                self.waiting.insert(self.next_request, (request, now_ms));
            }
        }
        let due: Vec<u64> = self.waiting.iter().filter(|(_, (_, at_ms))| *at_ms <= now_ms).map(|(id, _)| *id).collect();
        for request in due {
            self.send(request, quiet, ingests, around);
        }
        if self.next_list_ms <= now_ms {
            let mean_ms = around.plan.list_interval_ms;
            self.next_list_ms = now_ms + around.dice.between(mean_ms / 4, mean_ms * 4);
            if !quiet {
                self.put_friends(ingests, around);
            }
        }
        if self.next_reconnect_ms <= now_ms {
            let mean_ms = around.plan.reconnect_interval_ms;
            self.next_reconnect_ms = now_ms + around.dice.between(mean_ms / 4, mean_ms * 2);
            if !quiet {
                self.reconnect(gateways, around);
            }
        }
        if self.connections.len() < self.screens && self.next_connect_ms <= now_ms {
            self.next_connect_ms = now_ms + around.dice.between(200, 2_000);
            let ingest = around.dice.below(ingests.len());
            if let Some(gateway) = ingests[ingest].choose(around) {
                self.connect(gateway, gateways, around);
            }
        }
    }

    /// The phone is gone without a word, and comes back: perhaps to the same gateway, before that has noticed.
    pub fn vanish(&mut self, gateways: &mut [Gateway], around: &mut Around) {
        for connection in std::mem::take(&mut self.connections).into_values() {
            let (machine, gateway) = connection.gateway;
            gateways[machine].vanish(gateway, connection.socket, around);
            if around.dice.chance(0.5) {
                self.connect(gateway, gateways, around);
            }
        }
        self.next_connect_ms = around.now_ms() + around.dice.between(0, 5_000);
    }

    /// Nothing is read for a while.
    pub fn stall(&mut self, until_ms: i64, gateways: &mut [Gateway]) {
        for connection in self.connections.values() {
            let (machine, gateway) = connection.gateway;
            gateways[machine].stall(gateway, connection.socket, until_ms);
        }
    }

    fn reconnect(&mut self, gateways: &mut [Gateway], around: &mut Around) {
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        if numbers.is_empty() {
            return;
        }
        let number = *around.dice.pick(&numbers);
        let again = around.dice.chance(0.3);
        let Some(connection) = self.connections.remove(&number) else { return };
        let (machine, gateway) = connection.gateway;
        // Sometimes the new one is there before the old one is closed.
        if again {
            self.connect(gateway, gateways, around);
        }
        gateways[machine].disconnect(gateway, connection.socket, around);
        self.next_connect_ms = around.now_ms() + around.dice.between(0, 3_000);
    }

    fn connect(&mut self, gateway: u32, gateways: &mut [Gateway], around: &mut Around) {
        self.next_connection += 1;
        let line = Line { client: self.number, connection: self.next_connection };
        let machine = gateways.iter().position(|machine| machine.run.as_ref().is_some_and(|run| run.number == gateway));
        let Some(machine) = machine else { return };
        if let Some(socket) = gateways[machine].connect(gateway, self.user, line, around) {
            around.note(format_args!("{} connects to gateway {gateway}", self.user));
            let connection = Connection { gateway: (machine, gateway), socket, since_ms: around.now_ms(), view: None };
            self.connections.insert(self.next_connection, connection);
        }
    }

    fn request(&self, around: &mut Around) -> Request {
        // A few were made in a tunnel.
        let old_ms =
            if around.dice.chance(0.03) { around.dice.between(0, 300_000) } else { around.dice.between(0, 2_000) };
        let reported_at_ms = around.now_ms() + self.ahead_ms - old_ms;
        if around.dice.chance(0.05) {
            let timed = around.dice.chance(0.5);
            return Request::Withdraw(if timed {
                json!({ "reported_at_ms": reported_at_ms }).to_string()
            } else {
                String::new()
            });
        }
        let mut report = json!({ "lat": self.lat, "lon": self.lon });
        if around.dice.chance(0.8) {
            report["reported_at_ms"] = json!(reported_at_ms);
        }
        if around.dice.chance(0.02) {
            report["accuracy_m"] = json!(REFUSED_ACCURACY_M);
        }
        Request::Report(report.to_string())
    }

    fn send(&mut self, id: u64, quiet: bool, ingests: &mut [Ingest], around: &mut Around) {
        let now_ms = around.now_ms();
        let Some((request, at_ms)) = self.waiting.get_mut(&id) else { return };
        *at_ms = now_ms + ANSWER_MS_MAX;
        if quiet {
            self.waiting.remove(&id);
            return;
        }
        let (user, client, request) = (self.user, self.number, request.clone());
        let ingest = around.dice.below(ingests.len());
        let ingest = &mut ingests[ingest];
        let result = match &request {
            Request::Report(body) => ingest.report(user, body, client, id, around),
            Request::Withdraw(body) => ingest.withdraw(user, body, client, id, around),
        };
        match result {
            Ok(()) => {}
            Err("kafka_unavailable") => self.answered(id, false, around),
            Err(code) => {
                // A clock that is minutes ahead is the only thing wrong here.
                if self.ahead_ms <= AHEAD_MS_MAX - 1_000 {
                    around.judge.blame(now_ms, format!("{user} is refused: {code}"));
                }
                self.waiting.remove(&id);
            }
        }
    }

    fn put_friends(&mut self, ingests: &mut [Ingest], around: &mut Around) {
        let users = around.plan.users.clone();
        let share = *around.dice.pick(&[0.3, 0.8, 1.0, 1.0]);
        // With oneself, with somebody twice, and with somebody who does not exist.
        let mut friends: Vec<String> = Vec::new();
        for user in users {
            if around.dice.chance(share) {
                friends.extend(std::iter::repeat_n(user.to_string(), if around.dice.chance(0.1) { 2 } else { 1 }));
            }
        }
        if around.dice.chance(0.1) {
            friends.push("4444".to_owned());
        }
        around.note(format_args!("{} may see {friends:?}", self.user));
        let ingest = around.dice.below(ingests.len());
        let body = json!({ "friends": friends }).to_string();
        match ingests[ingest].put_friends(self.user, &body, around) {
            Ok(()) | Err("kafka_unavailable") => {}
            Err(code) => around.judge.blame(around.agenda.now_ms(), format!("a list is refused: {code}")),
        }
    }

    /// Goes somewhere else, at most so many degrees away.
    fn wander(&mut self, degrees: f64, around: &mut Around) {
        if around.dice.chance(0.05) {
            // A jump, across the radius and back.
            self.lat += 0.15 * around.dice.around_zero();
        }
        self.lat = (self.lat + degrees * around.dice.around_zero()).clamp(-90.0, 90.0);
        let wide = if self.lat > 89.0 { 40.0 } else { 1.0 };
        self.lon += degrees * wide * around.dice.around_zero();
        self.lon = (self.lon + 540.0).rem_euclid(360.0) - 180.0;
        // Nobody gets lost: who is too far from every home comes to one.
        let close = |home: &(f64, f64)| {
            let east = (self.lon - home.1).abs();
            (self.lat - home.0).abs() < 0.3 && (home.0 > 89.0 || east.min(360.0 - east) < 0.15)
        };
        if !HOMES.iter().any(close) {
            (self.lat, self.lon) = around.plan.home;
        }
    }
}
