//! A gateway: the sessions, views and outboxes of production, and around them what `hub.rs`, `listener.rs`, `heartbeat.rs` and
//! `stream.rs` do with Kafka and with sockets.

use crate::agenda::Who;
use crate::around::Around;
use crate::broker::{Append, ProducerId, Topic};
use crate::judge::events_admitted;
use nearby_pusher::delivery::{Epochs, Outgoing, SocketId, for_each_viewer};
use nearby_pusher::sessions::Sessions;
use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{Epoch, GatewayHeartbeat, GatewayId, Session, TimestampMs, UserId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

/// As in production.
const HEARTBEAT_INTERVAL_MS: i64 = 5_000;
const SESSION_RETRY_MS: i64 = 1_000;
const ASK_INTERVAL_MS: i64 = 1_000;
const FLUSH_MS: i64 = 100;
const SLOW_CLIENT_MS: i64 = 30_000;
const SILENCE_MS_MAX: i64 = 105_000;
const DRAIN_MS_MAX: i64 = 3_000;
/// The first one starts after at most so long, and the next one after it has ended.
const FIRST_START_MS_MAX: i64 = 2_000;
const RESTART_MS_MAX: i64 = 15_000;
/// Enough for everybody on one.
const CAPACITY: i32 = 64;

/// A client's end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// Which client.
    pub client: usize,
    /// The client's number for it.
    pub connection: u64,
}

/// A machine that runs a gateway.
pub struct Gateway {
    number: usize,
    ahead_ms: i64,
    /// The gateway that runs.
    pub run: Option<Run>,
    starts_at_ms: i64,
    /// The network to the broker is cut until then.
    cut_off_until_ms: i64,
    /// Its topic is not read until then.
    pub held_until_ms: i64,
}

/// One life of a gateway.
pub struct Run {
    /// Its number, never used again.
    pub number: u32,
    id: GatewayId,
    producer: ProducerId,
    codec: Codec<Session>,
    heartbeats: Codec<GatewayHeartbeat>,
    sessions: Sessions,
    epochs: Epochs,
    /// The same, as the judge sees it.
    newest: BTreeMap<i32, Epoch>,
    next_offset: i64,
    sockets: BTreeMap<SocketId, Socket>,
    next_socket: u64,
    /// Session records on their way.
    sent: BTreeMap<u64, UserId>,
    next_token: u64,
    unacknowledged: BTreeSet<UserId>,
    next_retry_ms: i64,
    next_heartbeat_ms: i64,
    ask_at_ms: Option<i64>,
    asked_ms: i64,
    drains_by_ms: Option<i64>,
    started_at: TimestampMs,
}

/// Whether there may be something new for a socket.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Socket {
    user: UserId,
    line: Line,
    woken: Arc<Woken>,
    unsent: bool,
    next_flush_ms: i64,
    /// The client reads nothing until then.
    stalled_until_ms: i64,
    /// Nobody is at the other end; noticed at this time.
    dead_at_ms: Option<i64>,
    /// A frame that was taken and does not get through, and since when.
    stuck: Option<(Outgoing, i64)>,
}

/// What clients hear from a gateway.
pub enum Heard {
    /// A frame.
    Frame(Line, UserId, Outgoing),
    /// The socket is closed.
    Closed(Line),
}

impl Gateway {
    /// A machine whose gateway is about to start.
    pub fn new(number: usize, around: &mut Around) -> Gateway {
        let ahead_ms = around.dice.between(-400, 400);
        let starts_at_ms = around.now_ms() + around.dice.between(0, FIRST_START_MS_MAX);
        around.agenda.wake(Who::Gateway(number), starts_at_ms);
        Gateway { number, ahead_ms, run: None, starts_at_ms, cut_off_until_ms: 0, held_until_ms: 0 }
    }

    /// The process ends without a word. Its clients find their sockets closed.
    pub fn crash(&mut self, around: &mut Around) -> Vec<Heard> {
        let Some(run) = self.run.take() else { return Vec::new() };
        around.broker.end_producer(run.producer, &mut around.dice);
        self.restart(around);
        run.sockets.into_values().map(|socket| Heard::Closed(socket.line)).collect()
    }

    /// The process is told to stop.
    pub fn drain(&mut self, around: &mut Around) {
        let now_ms = around.now_ms();
        if let Some(run) = self.run.as_mut().filter(|run| run.drains_by_ms.is_none()) {
            run.drains_by_ms = Some(now_ms + DRAIN_MS_MAX);
            run.next_heartbeat_ms = now_ms;
        }
        around.soon(Who::Gateway(self.number));
    }

    /// The network to the broker is cut.
    pub fn cut_off(&mut self, until_ms: i64, around: &mut Around) {
        self.cut_off_until_ms = until_ms;
        if let Some(run) = &self.run {
            around.broker.cut_off(run.producer, until_ms > around.now_ms());
        }
        around.agenda.wake(Who::Gateway(self.number), until_ms);
    }

    /// A client connects; none if it is refused.
    pub fn connect(&mut self, gateway: u32, user: UserId, line: Line, around: &mut Around) -> Option<SocketId> {
        let run = self.run.as_mut().filter(|run| run.number == gateway && run.drains_by_ms.is_none())?;
        let now_ms = around.now_ms();
        run.next_socket += 1;
        let socket = SocketId(run.next_socket);
        let woken = Arc::new(Woken::default());
        if let Some(ask) = run.sessions.connect(user, socket, Arc::clone(&woken).into(), around.wall(self.ahead_ms)) {
            run.write_session(user, Some(ask), around);
        }
        let (stalled_until_ms, dead_at_ms, stuck) = (0, None, None);
        let next_flush_ms = now_ms;
        let entry = Socket { user, line, woken, unsent: false, next_flush_ms, stalled_until_ms, dead_at_ms, stuck };
        run.sockets.insert(socket, entry);
        around.soon(Who::Gateway(self.number));
        Some(socket)
    }

    /// A client closes its socket.
    pub fn disconnect(&mut self, gateway: u32, socket: SocketId, around: &mut Around) {
        if let Some(run) = self.run.as_mut().filter(|run| run.number == gateway) {
            run.close(socket, around);
        }
    }

    /// A client is gone and has not said so.
    pub fn vanish(&mut self, gateway: u32, socket: SocketId, around: &mut Around) {
        let notices_ms = around.now_ms() + around.dice.between(0, SILENCE_MS_MAX);
        let run = self.run.as_mut().filter(|run| run.number == gateway);
        if let Some(entry) = run.and_then(|run| run.sockets.get_mut(&socket)) {
            entry.dead_at_ms = Some(notices_ms);
            around.agenda.wake(Who::Gateway(self.number), notices_ms);
        }
    }

    /// A client reads nothing for a while.
    pub fn stall(&mut self, gateway: u32, socket: SocketId, until_ms: i64) {
        let run = self.run.as_mut().filter(|run| run.number == gateway);
        if let Some(entry) = run.and_then(|run| run.sockets.get_mut(&socket)) {
            entry.stalled_until_ms = until_ms;
        }
    }

    fn restart(&mut self, around: &mut Around) {
        self.starts_at_ms = around.now_ms() + around.dice.between(0, RESTART_MS_MAX);
        self.cut_off_until_ms = 0;
        around.agenda.wake(Who::Gateway(self.number), self.starts_at_ms);
    }

    /// A few of the things that its threads and tasks do.
    pub fn step(&mut self, around: &mut Around, next_number: &mut u32) -> Vec<Heard> {
        let (now_ms, who) = (around.now_ms(), Who::Gateway(self.number));
        if self.run.is_none() {
            if self.starts_at_ms > now_ms || around.broker.away {
                around.within(who, (self.starts_at_ms - now_ms).max(500));
                return Vec::new();
            }
            *next_number += 1;
            self.run = Some(Run::start(*next_number, who, self.ahead_ms, around));
        }
        let cut_off = self.cut_off_until_ms > now_ms;
        let Some(run) = &mut self.run else { return Vec::new() };
        around.broker.cut_off(run.producer, cut_off);
        run.hear_answers(around);
        run.beat(around);
        let mut more = false;
        if !cut_off && self.held_until_ms <= now_ms {
            more = run.read(around);
        }
        run.ask(self.ahead_ms, around);
        run.write_again(around);
        let mut heard = run.serve(around);
        if run.drains_by_ms.is_some() {
            heard.extend(run.drain(around));
            let written = run.sent.is_empty() && run.unacknowledged.is_empty();
            if run.sockets.is_empty() && (written || run.drains_by_ms.is_some_and(|by_ms| by_ms + 1_000 < now_ms)) {
                around.note(format_args!("gateway {} ends", run.number));
                around.append_unheard(run.producer, Topic::Gateways, run.id.as_str(), None);
                around.broker.delete(Topic::FriendMoved(run.number));
                self.run = None;
                self.restart(around);
                return heard;
            }
        }
        if more {
            around.soon(who)
        } else {
            around.agenda.wake(who, run.when_next(now_ms))
        }
        heard
    }
}

impl Run {
    fn start(number: u32, who: Who, ahead_ms: i64, around: &mut Around) -> Run {
        let id = GatewayId::new(format!("g-{number}")).expect("legal");
        around.note(format_args!("gateway {number} starts"));
        around.judge.gateway_started(id.as_str(), number);
        around.broker.create(Topic::FriendMoved(number), 1);
        let now_ms = around.now_ms();
        Run {
            number,
            id,
            producer: around.broker.producer(who),
            codec: Codec::new(),
            heartbeats: Codec::new(),
            sessions: Sessions::default(),
            epochs: Epochs::default(),
            newest: BTreeMap::new(),
            next_offset: 0,
            sockets: BTreeMap::new(),
            next_socket: 0,
            sent: BTreeMap::new(),
            next_token: 0,
            unacknowledged: BTreeSet::new(),
            next_retry_ms: now_ms,
            next_heartbeat_ms: now_ms,
            ask_at_ms: None,
            asked_ms: i64::MIN,
            drains_by_ms: None,
            started_at: around.wall(ahead_ms),
        }
    }

    fn hear_answers(&mut self, around: &mut Around) {
        for (token, acknowledged) in around.broker.answers(self.producer) {
            if let Some(user) = self.sent.remove(&token).filter(|_| !acknowledged) {
                self.unacknowledged.insert(user);
            }
        }
    }

    fn beat(&mut self, around: &mut Around) {
        if around.now_ms() < self.next_heartbeat_ms {
            return;
        }
        self.next_heartbeat_ms = around.now_ms() + HEARTBEAT_INTERVAL_MS;
        let url = format!("ws://{}/v1/stream", self.id);
        let beat = GatewayHeartbeat {
            gateway: self.id.clone(),
            stream_url: url.clone(),
            http_url: url,
            connections: i32::try_from(self.sockets.len()).unwrap_or(i32::MAX),
            capacity: CAPACITY,
            draining: self.drains_by_ms.is_some(),
            started_at: self.started_at,
            accept_rate_per_s: 0,
        };
        let value = self.heartbeats.encode(&beat);
        around.append_unheard(self.producer, Topic::Gateways, self.id.as_str(), Some(value));
    }

    /// The listener; true if there is more to read.
    fn read(&mut self, around: &mut Around) -> bool {
        let topic = Topic::FriendMoved(self.number);
        let (first, end) = around.broker.ends(topic, 0);
        if self.next_offset < first && !around.broker.away {
            // First to the end, then asked: what comes after the question has to be heard.
            self.next_offset = end;
            self.ask_at_ms.get_or_insert(around.now_ms());
        }
        for _ in 0..around.dice.between(0, 4) {
            let Some((offset, record)) = around.broker.read(topic, 0, self.next_offset) else { break };
            self.next_offset = offset + 1;
            let batch = around.batches.decode(record.value.as_deref().unwrap_or_default());
            let Ok(batch) = batch else {
                self.ask_at_ms.get_or_insert(around.now_ms());
                continue;
            };
            let expected = events_admitted(&batch, &mut self.newest);
            let (events, _) = self.epochs.admitted(&batch);
            let mut count = 0;
            for event in events {
                count += 1;
                for_each_viewer(event, |user, change| {
                    self.sessions.change(user, change);
                });
            }
            if count != expected {
                let what = format!("gateway {} takes {count} events instead of {expected}", self.number);
                around.judge.blame(around.agenda.now_ms(), what);
            }
        }
        around.broker.read(topic, 0, self.next_offset).is_some()
    }

    /// Something could not be read: everybody asks for a snapshot, not too often.
    fn ask(&mut self, ahead_ms: i64, around: &mut Around) {
        let now_ms = around.now_ms();
        if self.ask_at_ms.is_some_and(|at_ms| at_ms <= now_ms)
            && now_ms >= self.asked_ms.saturating_add(ASK_INTERVAL_MS)
        {
            (self.ask_at_ms, self.asked_ms) = (None, now_ms);
            for (user, ask) in self.sessions.ask_all(around.wall(ahead_ms)) {
                self.write_session(user, Some(ask), around);
            }
        }
    }

    fn write_again(&mut self, around: &mut Around) {
        if around.now_ms() < self.next_retry_ms {
            return;
        }
        self.next_retry_ms = around.now_ms() + SESSION_RETRY_MS;
        for user in std::mem::take(&mut self.unacknowledged) {
            self.write_session(user, self.sessions.session(user), around);
        }
    }

    fn write_session(&mut self, user: UserId, ask: Option<i64>, around: &mut Around) {
        self.next_token += 1;
        self.sent.insert(self.next_token, user);
        let value = ask.map(|ask| self.codec.encode(&Session { user_id: user, gateway: self.id.clone(), ask }));
        let append = Append {
            topic: Topic::Sessions,
            partition: partition_of(user, around.plan.partitions),
            key: Some(Session::key(user, &self.id).into_bytes()),
            value,
            token: self.next_token,
        };
        around.note(format_args!("gateway {}: session of {user} {ask:?}", self.number));
        around.append(self.producer, append);
    }

    /// The tasks of the sockets.
    fn serve(&mut self, around: &mut Around) -> Vec<Heard> {
        let (now_ms, mut heard, mut closed) = (around.now_ms(), Vec::new(), Vec::new());
        for (id, socket) in &mut self.sockets {
            socket.unsent |= socket.woken.0.swap(false, Ordering::Relaxed);
            if socket.dead_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
                closed.push(*id);
                continue;
            }
            let stalled = socket.stalled_until_ms > now_ms;
            if let Some((frame, since_ms)) = socket.stuck.take() {
                if !stalled {
                    heard.push(Heard::Frame(socket.line, socket.user, frame));
                } else if now_ms - since_ms < SLOW_CLIENT_MS {
                    socket.stuck = Some((frame, since_ms));
                    continue;
                } else {
                    closed.push(*id);
                    continue;
                }
            }
            if !socket.unsent || socket.next_flush_ms > now_ms {
                continue;
            }
            socket.unsent = false;
            socket.next_flush_ms = now_ms + FLUSH_MS;
            match self.sessions.take(socket.user, *id).filter(|_| socket.dead_at_ms.is_none()) {
                // Its buffers are full: the frame waits, and nothing else is taken.
                Some(frame) if stalled => socket.stuck = Some((frame, now_ms)),
                Some(frame) => heard.push(Heard::Frame(socket.line, socket.user, frame)),
                None => {}
            }
        }
        for id in closed {
            heard.extend(self.close(id, around).map(Heard::Closed));
        }
        heard
    }

    fn drain(&mut self, around: &mut Around) -> Vec<Heard> {
        let sockets: Vec<SocketId> = self.sockets.keys().copied().collect();
        sockets.into_iter().filter_map(|id| self.close(id, around)).map(Heard::Closed).collect()
    }

    fn close(&mut self, id: SocketId, around: &mut Around) -> Option<Line> {
        let socket = self.sockets.remove(&id)?;
        if self.sessions.disconnect(socket.user, id) {
            self.write_session(socket.user, None, around);
        }
        Some(socket.line)
    }

    fn when_next(&self, now_ms: i64) -> i64 {
        let flushes = self.sockets.values().filter(|socket| socket.unsent && socket.stuck.is_none());
        let flushes = flushes.map(|socket| socket.next_flush_ms);
        let stuck = self.sockets.values().filter(|socket| socket.stuck.is_some()).map(|_| now_ms + 200);
        let deaths = self.sockets.values().filter_map(|socket| socket.dead_at_ms);
        let retry = (!self.unacknowledged.is_empty()).then_some(self.next_retry_ms);
        let ask = self.ask_at_ms.map(|_| self.asked_ms.saturating_add(ASK_INTERVAL_MS));
        let drain = self.drains_by_ms.map(|_| now_ms + 50);
        let timers = [Some(self.next_heartbeat_ms), retry, ask, drain];
        let next_ms = timers.into_iter().flatten().chain(flushes).chain(deaths).chain(stuck).min().unwrap_or(now_ms);
        next_ms.max(now_ms + 10)
    }
}

/// The number of a gateway's run is the last part of its name.
pub fn number_of(gateway: &str) -> u32 {
    let last = gateway.rsplit('-').next().and_then(|number| number.parse().ok());
    last.expect("gateways of the simulator have numbers")
}
