//! Tells clients what is new: a few threads that write the frames of all WebSockets, each those of its own ones.
//!
//! A socket that has something to be told is in one place at a time: in the [`Queue`], or with its own task if it does not
//! take what is sent, or being written to. From there it goes back to the queue, to be looked at again when the flush
//! interval is over, or to rest, until [`change`](crate::sessions::Sessions::change) wakes it.

use crate::delivery::SocketId;
use crate::frames::{self, Rules};
use crate::hub::Hub;
use crate::line::{Line, Sent};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use nearby_schemas::UserId;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Wake;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Message;

/// Sockets whose time comes within this are looked at together: every sleep costs two system calls.
const SLEEP_MIN: Duration = Duration::from_millis(1);

/// A WebSocket's bytes.
pub type WebSocketLine = Line<TokioIo<Upgraded>>;

/// How a client is told that there may be something new.
pub struct Outlet {
    /// Who.
    pub user: UserId,
    /// Which socket.
    pub socket: SocketId,
    /// For those who take it themselves.
    pub news: Notify,
    /// Its task's: what waits here must not keep a socket open.
    line: OnceLock<Weak<WebSocketLine>>,
    /// It need not be woken, because it will be looked at. Changed under the lock under which its news are changed and taken.
    awake: AtomicBool,
    queue: Arc<Queue>,
}

impl Outlet {
    /// Of a client that takes its news itself, until it is [attached](Hub::attach).
    pub fn new(user: UserId, socket: SocketId, queue: Arc<Queue>) -> Arc<Outlet> {
        Arc::new(Outlet {
            user,
            socket,
            news: Notify::new(),
            line: OnceLock::new(),
            awake: AtomicBool::new(false),
            queue,
        })
    }

    /// From now on the flusher writes to this line. Looks at it once, whether it was woken before or not.
    pub fn attach(self: &Arc<Self>, line: &Arc<WebSocketLine>) {
        line.set_open(true);
        self.awake.store(true, Ordering::Relaxed);
        self.line.get_or_init(|| Arc::downgrade(line));
        self.queue.push(Arc::clone(self));
    }

    /// It wants to be woken again. To be called under the lock of [`Hub::take`].
    pub fn rest(&self) {
        self.awake.store(false, Ordering::Relaxed);
    }

    /// Its client has taken everything: it may be told more.
    pub fn resume(self: &Arc<Self>) {
        self.queue.push_later(Arc::clone(self));
    }
}

impl Wake for Outlet {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.line.get().is_none() {
            self.news.notify_one();
        } else if !self.awake.swap(true, Ordering::Relaxed) {
            self.queue.push(Arc::clone(self));
        }
    }
}

/// Sockets that are to be looked at, by one thread.
pub struct Queue {
    flush_interval: Duration,
    waiting: Mutex<Waiting>,
    come: Condvar,
}

#[derive(Default)]
struct Waiting {
    now: Vec<Arc<Outlet>>,
    /// Each not before its time; in the order of times, because all wait for the same interval.
    later: VecDeque<(Instant, Arc<Outlet>)>,
    /// The flusher sleeps: waking it takes a system call.
    asleep: bool,
    ended: bool,
}

impl Queue {
    /// No sockets yet; each is told something at most once in the interval.
    pub fn new(flush_interval: Duration) -> Arc<Queue> {
        Arc::new(Queue { flush_interval, waiting: Mutex::default(), come: Condvar::new() })
    }

    /// The flusher's thread ends.
    pub fn end(&self) {
        self.lock().ended = true;
        self.come.notify_all();
    }

    /// It is looked at when the interval is over.
    fn push_later(&self, outlet: Arc<Outlet>) {
        let mut waiting = self.lock();
        // The clock is read under the lock, or the order might be wrong.
        let due = Instant::now() + self.flush_interval;
        waiting.later.push_back((due, outlet));
        self.wake(waiting);
    }

    fn push(&self, outlet: Arc<Outlet>) {
        let mut waiting = self.lock();
        waiting.now.push(outlet);
        self.wake(waiting);
    }

    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let asleep = std::mem::take(&mut waiting.asleep);
        drop(waiting);
        if asleep {
            self.come.notify_one();
        }
    }

    /// Waits for the sockets that are to be looked at now. False: there will be no more.
    fn next(&self, into: &mut Vec<Arc<Outlet>>) -> bool {
        let mut waiting = self.lock();
        loop {
            if waiting.ended {
                // They hold the queue.
                let held = std::mem::take(&mut *waiting);
                drop(waiting);
                drop(held);
                return false;
            }
            std::mem::swap(&mut waiting.now, into);
            let now = Instant::now();
            while waiting.later.front().is_some_and(|(due, _)| *due <= now) {
                into.extend(waiting.later.pop_front().map(|(_, outlet)| outlet));
            }
            if !into.is_empty() {
                return true;
            }
            waiting.asleep = true;
            let until_due = waiting.later.front().map(|(due, _)| due.saturating_duration_since(now));
            waiting = match until_due {
                None => self.come.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    self.come.wait_timeout(waiting, time.max(SLEEP_MIN)).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            waiting.asleep = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread. It ends with the hub.
///
/// # Errors
/// If no thread can be started.
pub fn start(hub: &Arc<Hub>, queue: Arc<Queue>, rules: Rules) -> std::io::Result<()> {
    let hub = Arc::downgrade(hub);
    std::thread::Builder::new().name("pusher flush".to_owned()).spawn(move || run(&hub, &queue, &rules))?;
    Ok(())
}

fn run(hub: &Weak<Hub>, queue: &Queue, rules: &Rules) {
    let (mut awake, mut buffer) = (Vec::new(), Vec::new());
    let rest_at_once = queue.flush_interval.is_zero();
    while queue.next(&mut awake) {
        let Some(hub) = hub.upgrade() else { return };
        let mut frames = 0;
        for outlet in awake.drain(..) {
            let Some(line) = outlet.line.get().and_then(Weak::upgrade).filter(|line| line.has_room()) else { continue };
            let Some(outgoing) = hub.take(&outlet, rest_at_once) else { continue };
            let frame = frames::web_socket(&mut buffer, &outgoing, rules);
            if let Some(tap) = &line.tap {
                tap.message("sent", &Message::text(String::from_utf8_lossy(frame.text).as_ref()));
            }
            let sent = line.send(frame.bytes);
            frames += u64::from(sent != Sent::Closed);
            if sent == Sent::All && !rest_at_once {
                queue.push_later(outlet);
            }
        }
        metrics::counter!("nearby_pusher_frames_total").increment(frames);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(500);

    #[test]
    fn a_socket_is_looked_at_when_it_is_pushed_and_when_its_interval_is_over() {
        let queue = Queue::new(INTERVAL);
        let outlet = |socket| Outlet::new(UserId(1), SocketId(socket), Arc::clone(&queue));
        let mut awake = Vec::new();
        let mut next = || {
            assert!(queue.next(&mut awake));
            awake.drain(..).map(|outlet| outlet.socket.0).collect::<Vec<_>>()
        };
        let began = Instant::now();
        queue.push_later(outlet(1));
        queue.push_later(outlet(2));
        queue.push(outlet(3));
        assert_eq!(next(), [3]);
        let mut later = next();
        assert!(began.elapsed() >= INTERVAL);
        if later.len() == 1 {
            later.extend(next());
        }
        assert_eq!(later, [1, 2]);
    }

    #[test]
    fn a_sleeper_is_woken_by_what_comes_and_by_the_end() {
        let queue = Queue::new(INTERVAL);
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let mut awake = Vec::new();
                let mut seen = 0;
                while queue.next(&mut awake) {
                    seen += awake.drain(..).count();
                }
                seen
            });
            let until_asleep = || {
                while !queue.lock().asleep {
                    std::thread::yield_now();
                }
            };
            for socket in 0..10 {
                until_asleep();
                queue.push(Outlet::new(UserId(1), SocketId(socket), Arc::clone(&queue)));
            }
            until_asleep();
            queue.end();
            assert_eq!(looking.join().expect("no panic"), 10);
        });
    }

    #[test]
    fn who_takes_its_news_itself_is_notified_and_not_queued() {
        use futures_util::FutureExt;
        let queue = Queue::new(INTERVAL);
        let outlet = Outlet::new(UserId(1), SocketId(1), Arc::clone(&queue));
        outlet.wake_by_ref();
        assert!(outlet.news.notified().now_or_never().is_some());
        assert!(queue.lock().now.is_empty());
    }
}
