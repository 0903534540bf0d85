//! All viewers of one gateway, shared between the reader of its topic and the sockets.
//!
//! Viewers are spread over shards, so that a socket that takes its frame does not wait for the reader that fills another's.
//! A session record is handed to the log while the shard is locked: the log's order is the order of what happened. Which
//! record that is, [`sessions`](crate::sessions) decides.

use crate::delivery::{Epochs, Outgoing, Shown, SocketId, for_each_viewer};
use crate::flusher::{self, Outlet, Queue, WebSocketLine};
use crate::frames::Rules;
use crate::sessions::Sessions;
use nearby_schemas::batch::FriendMovedBatch;
use nearby_schemas::codec::Codec;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{GatewayId, Session, TimestampMs, UserId};
use nearby_service::append::{Acknowledged, Appender, Outgoing as Record};
use nearby_service::logs::Seldom;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

const SHARDS: usize = 64;
/// Threads that write to WebSockets, at most: one for each core.
const FLUSHERS_MAX: usize = 8;
/// Session records that were not acknowledged are written again after so long.
const SESSION_RETRY: Duration = Duration::from_secs(1);

/// The sessions of one gateway.
pub struct Hub {
    gateway: GatewayId,
    topic: String,
    partitions: i32,
    appender: Appender,
    codec: Codec<Session>,
    shards: Vec<Mutex<Sessions>>,
    epochs: Mutex<Epochs>,
    /// One for each thread that writes; a socket has one of them for good.
    queues: Vec<Arc<Queue>>,
    next_socket: AtomicU64,
    sockets: AtomicUsize,
    /// Session records that are on their way.
    unwritten: AtomicUsize,
    /// Users whose session record was not acknowledged.
    unacknowledged: Mutex<BTreeSet<UserId>>,
    /// Of these, in the log.
    told: Seldom,
}

/// A client's connection; its end ends the session, if it was the user's last.
pub struct Connection {
    hub: Arc<Hub>,
    /// Who.
    pub user: UserId,
    /// Told when there may be something to send.
    pub outlet: Arc<Outlet>,
}

impl Connection {
    /// What the client is told that its session is called.
    pub fn session(&self) -> String {
        format!("{}/{}", self.user, self.outlet.socket.0)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hub.disconnect(self);
    }
}

impl Hub {
    /// A gateway without clients, in a cluster with so many partitions of users; each client is told something at most once
    /// in the flush interval.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        gateway: GatewayId,
        topic: String,
        partitions: i32,
        appender: Appender,
        codec: Codec<Session>,
        (flush_interval, rules): (Duration, Rules),
    ) -> std::io::Result<Arc<Hub>> {
        let flushers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(FLUSHERS_MAX);
        let queues: Vec<Arc<Queue>> = (0..flushers).map(|_| Queue::new(flush_interval)).collect();
        let hub = Arc::new(Hub {
            gateway,
            topic,
            partitions,
            appender,
            codec,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            epochs: Mutex::default(),
            queues: queues.clone(),
            next_socket: AtomicU64::new(1),
            sockets: AtomicUsize::new(0),
            unwritten: AtomicUsize::new(0),
            unacknowledged: Mutex::default(),
            told: Seldom::new(),
        });
        tokio::spawn(write_again(Arc::downgrade(&hub)));
        queues.into_iter().try_for_each(|queue| flusher::start(&hub, queue, rules.clone()))?;
        Ok(hub)
    }

    /// Clients connected now.
    pub fn sockets(&self) -> usize {
        self.sockets.load(Ordering::Relaxed)
    }

    /// Session records that are not acknowledged yet.
    pub fn unwritten(&self) -> usize {
        let unacknowledged = self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        self.unwritten.load(Ordering::Relaxed) + unacknowledged.len()
    }

    /// Whether the user may have one more socket.
    pub fn has_room(&self, user: UserId) -> bool {
        self.shard(user).has_room(user)
    }

    /// A client has come. It opens its user's session, which asks for a snapshot, unless another client has done so before.
    /// None if the user has too many sockets.
    pub fn connect(self: &Arc<Self>, user: UserId) -> Option<Connection> {
        let socket = SocketId(self.next_socket.fetch_add(1, Ordering::Relaxed));
        // The next socket is the next one's.
        let queue = &self.queues[usize::try_from(socket.0).unwrap_or_default() % self.queues.len()];
        let outlet = Outlet::new(user, socket, Arc::clone(queue));
        {
            let mut shard = self.shard(user);
            if !shard.has_room(user) {
                return None;
            }
            if let Some(ask) = shard.connect(user, socket, Arc::clone(&outlet).into(), TimestampMs::now()) {
                self.write_session(user, Some(ask));
            }
        }
        self.sockets.fetch_add(1, Ordering::Relaxed);
        Some(Connection { hub: Arc::clone(self), user, outlet })
    }

    /// From now on the flusher tells this client what is new.
    pub fn attach(&self, connection: &Connection, line: &Arc<WebSocketLine>) {
        let _locked = self.shard(connection.user);
        connection.outlet.attach(line);
    }

    fn disconnect(self: &Arc<Self>, connection: &Connection) {
        let mut shard = self.shard(connection.user);
        if shard.disconnect(connection.user, connection.outlet.socket) {
            self.write_session(connection.user, None);
        }
        self.sockets.fetch_sub(1, Ordering::Relaxed);
    }

    /// What the client has to be told now. If that is nothing, or if asked, the outlet rests until there is more.
    pub fn take(&self, outlet: &Outlet, rest: bool) -> Option<Outgoing> {
        let mut shard = self.shard(outlet.user);
        let outgoing = shard.take(outlet.user, outlet.socket);
        if rest || outgoing.is_none() {
            outlet.rest();
        }
        outgoing
    }

    /// All that a connected user sees, once that is known.
    pub fn view(&self, user: UserId) -> Option<Vec<(UserId, Shown)>> {
        self.shard(user).view(user)
    }

    /// Takes in what the processors emit and wakes the sockets concerned. Viewers who are not here (any more) are passed over.
    pub fn apply(&self, batch: &FriendMovedBatch) {
        let (events, stale) = self.epochs.lock().unwrap_or_else(PoisonError::into_inner).admitted(batch);
        metrics::counter!("nearby_pusher_stale_sections_total").increment(stale as u64);
        let mut applied = 0;
        for event in events {
            for_each_viewer(event, |user, change| {
                if self.shard(user).change(user, change) {
                    applied += 1;
                }
            });
        }
        metrics::counter!("nearby_pusher_notices_total").increment(applied);
    }

    /// Something emitted for this gateway could not be read: everybody here asks for a snapshot.
    pub fn ask_all(self: &Arc<Self>) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (user, ask) in shard.ask_all(TimestampMs::now()) {
                self.write_session(user, Some(ask));
            }
        }
    }

    /// Hands the session's record to the log.
    fn write_session(self: &Arc<Self>, user: UserId, ask: Option<i64>) {
        self.unwritten.fetch_add(1, Ordering::Relaxed);
        self.write_counted_session(user, ask);
    }

    /// Hands the record of a session that is counted as unwritten to the log.
    fn write_counted_session(self: &Arc<Self>, user: UserId, ask: Option<i64>) {
        let acknowledged = self.append_session(user, ask);
        let hub = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = acknowledged.await {
                if let Some(left_out) = hub.told.may_tell() {
                    tracing::warn!(%error, left_out, "a session was not written; it will be again");
                }
                hub.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(user);
            }
            hub.unwritten.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Users whose session record has to be written again, counted as unwritten.
    fn take_unacknowledged(&self) -> BTreeSet<UserId> {
        let mut unacknowledged = self.unacknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        // Counted under the lock that `unwritten` takes: a gateway that ends must not see them in neither place and go.
        self.unwritten.fetch_add(unacknowledged.len(), Ordering::Relaxed);
        std::mem::take(&mut *unacknowledged)
    }

    fn append_session(&self, user: UserId, ask: Option<i64>) -> Acknowledged {
        let session = |ask| Session { user_id: user, gateway: self.gateway.clone(), ask };
        self.appender.append_one(Record {
            topic: self.topic.clone(),
            partition: Some(partition_of(user, self.partitions)),
            key: Some(Session::key(user, &self.gateway).into_bytes()),
            value: ask.map(|ask| self.codec.encode(&session(ask))),
            headers: None,
        })
    }

    fn shard(&self, user: UserId) -> MutexGuard<'_, Sessions> {
        let index = usize::try_from(user.0.unsigned_abs() % SHARDS as u64).unwrap_or(0);
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.queues.iter().for_each(|queue| queue.end());
    }
}

/// Writes session records that were not acknowledged again, as they are then, for as long as the hub lives.
async fn write_again(hub: Weak<Hub>) {
    loop {
        tokio::time::sleep(SESSION_RETRY).await;
        let Some(hub) = hub.upgrade() else { return };
        for user in hub.take_unacknowledged() {
            let shard = hub.shard(user);
            hub.write_counted_session(user, shard.session(user));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::{Half, Line};
    use hyper_util::rt::TokioIo;
    use nearby_schemas::Place;
    use nearby_schemas::batch::ViewerSnapshot;
    use nearby_service::kafka::Kafka;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};

    /// A hub whose broker does not answer.
    fn hub(flush_interval: Duration) -> Arc<Hub> {
        let kafka = Kafka::embedded_at("127.0.0.1:1".to_owned(), "");
        let appender = Appender::new(&kafka).expect("a producer");
        let gateway = GatewayId::new("g1").expect("a legal id");
        let rules = Rules { radius_m: 8_000, inactive_after_s: 600 };
        let hub = Hub::start(gateway, kafka.topics.sessions(), 1, appender, Codec::new(), (flush_interval, rules));
        hub.expect("a thread")
    }

    /// A connection that has left HTTP, over a pipe of so many bytes, and its other end.
    async fn upgraded(pipe_bytes: usize) -> (TokioIo<hyper::upgrade::Upgraded>, DuplexStream) {
        let (ours, mut theirs) = tokio::io::duplex(pipe_bytes);
        let (upgrades, mut upgrade) = tokio::sync::mpsc::channel(1);
        let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            upgrades.try_send(hyper::upgrade::on(&mut request)).expect("one request");
            let response = http::Response::builder().status(101).header("connection", "upgrade").header("upgrade", "x");
            async move { response.body(String::new()) }
        });
        let serve = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(ours), service);
        tokio::spawn(serve.with_upgrades());
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        theirs.write_all(request).await.expect("writes");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(theirs.read_u8().await.expect("a head"));
        }
        (TokioIo::new(upgrade.recv().await.expect("a request").await.expect("an upgrade")), theirs)
    }

    /// However news come, however slowly the client reads, whatever its task sends in between: the last state arrives, and
    /// no more frames than the interval allows.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_last_state_arrives_and_no_frame_too_many() {
        const MOVES: i32 = 3_000;
        for (interval_ms, pipe_bytes) in [(0, 64), (5, 64), (5, 64 * 1024)] {
            let interval = Duration::from_millis(interval_ms);
            let hub = hub(interval);
            let (io, mut theirs) = upgraded(pipe_bytes).await;
            let (line, connection) = (Line::new(io, None), hub.connect(UserId(1)).expect("there is room"));
            let (began, mut half) = (Instant::now(), Half(Arc::clone(&line)));
            hub.attach(&connection, &line);
            let outlet = Arc::clone(&connection.outlet);
            let task = tokio::spawn(async move {
                loop {
                    tokio::select! {
                        () = line.stuck() => {
                            half.flush().await.expect("flushes");
                            if line.take_passed_over() {
                                outlet.resume();
                            }
                        }
                        () = tokio::time::sleep(Duration::from_millis(3)) => {
                            half.write_all(&[0x89, 0]).await.expect("a ping");
                        }
                    }
                }
            });
            let telling = Arc::clone(&hub);
            let news = std::thread::spawn(move || {
                let snapshot = ViewerSnapshot { viewer: UserId(1), place: None, friends: vec![] };
                telling.shard(UserId(1)).change(UserId(1), |viewer| viewer.snapshot(&snapshot));
                for distance_dm in 1..=MOVES {
                    let place = Place { lat_e7: 0, lon_e7: 0 };
                    let shown = Shown { place, updated_at: TimestampMs(5), distance_dm };
                    telling.shard(UserId(1)).change(UserId(1), |viewer| viewer.friend_moved(UserId(2), shown));
                    if distance_dm % 10 == 0 {
                        std::thread::sleep(Duration::from_micros(500));
                    }
                }
            });
            // The last update holds this, and so does no other.
            let last = format!("\"distance_m\":{:.1},", f64::from(MOVES) / 10.0);
            let (mut bytes, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(60));
            // Whole, and pings may have come after it.
            let has_come = |bytes: &[u8]| {
                let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2_000)..]).into_owned();
                end.split_once(&last).is_some_and(|(_, rest)| rest.contains("}]}"))
            };
            while !has_come(&bytes) {
                assert!(Instant::now() < deadline, "the last state has not come");
                let mut some = [0; 50];
                if let Ok(read) = tokio::time::timeout(Duration::from_secs(5), theirs.read(&mut some)).await {
                    bytes.extend_from_slice(&some[..read.expect("reads")]);
                }
                if pipe_bytes < 100 && bytes.len() % 7 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            let elapsed = began.elapsed();
            task.abort();
            news.join().expect("no panic");
            let mut socket = WebSocket::from_raw_socket(std::io::Cursor::new(bytes), Role::Client, None);
            let mut texts = 0;
            while let Ok(message) = socket.read() {
                texts += u32::from(message.is_text());
            }
            assert!(texts > 1);
            assert!(interval * (texts - 1) <= elapsed, "{texts} frames in {elapsed:?}");
        }
    }

    #[tokio::test]
    async fn sessions_to_be_written_again_are_unwritten_all_the_time() {
        let hub = hub(Duration::ZERO);
        hub.unacknowledged.lock().expect("not poisoned").extend([UserId(1), UserId(2)]);
        assert_eq!(hub.unwritten(), 2);

        let users = hub.take_unacknowledged();
        assert_eq!((users.len(), hub.unwritten()), (2, 2));
        for user in users {
            hub.write_counted_session(user, None);
        }
        assert_eq!(hub.unwritten(), 2);
    }
}
