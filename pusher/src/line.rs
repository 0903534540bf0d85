//! A WebSocket's bytes, shared between the socket's task and the [`flusher`](crate::flusher).
//!
//! What a client is told comes in waves, one for each batch of a processor's. Were every task woken for its frame, waking
//! would cost more than all the rest; so the flusher writes the frames of a wave itself, one after the other. The task reads,
//! answers, and waits for clients that do not take what is sent.
//!
//! Both write whole frames: a write is taken in full, and what the system has no room for waits here. It is one write's at
//! most: the flusher writes nothing more then, and the task waits until it is sent.

use crate::wire::Tap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The parts that two sides use.
pub struct Line<Io> {
    shared: Mutex<Shared<Io>>,
    /// The flusher has left something for the task to send.
    stuck: Notify,
    /// Somebody watches.
    pub tap: Option<Tap>,
}

struct Shared<Io> {
    io: Io,
    /// What the system has not taken yet.
    unsent: Vec<u8>,
    /// How much of that it has.
    sent: usize,
    /// The system has taken all, but something on the way to it (TLS) may not.
    flushed: bool,
    /// When something was taken, last.
    progress_at: Instant,
    /// The flusher may write.
    open: bool,
    /// The flusher has passed this socket over: there may be something new to tell it.
    passed_over: bool,
}

/// What has become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The system has it.
    All,
    /// Some of it waits, or the socket is broken; the task has been told.
    Stuck,
    /// The socket is closing.
    Closed,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Line<Io> {
    /// A socket that only its task writes to, until it is opened.
    pub fn new(io: Io, tap: Option<Tap>) -> Arc<Line<Io>> {
        let shared = Shared {
            io,
            unsent: Vec::new(),
            sent: 0,
            flushed: true,
            progress_at: Instant::now(),
            open: false,
            passed_over: false,
        };
        Arc::new(Line { shared: Mutex::new(shared), stuck: Notify::new(), tap })
    }

    /// From now on the flusher may write, or not any more.
    pub fn set_open(&self, open: bool) {
        self.lock().open = open;
    }

    /// Whether a frame can be written now. If not, the task sends what waits, and says when it has.
    pub fn has_room(&self) -> bool {
        let mut shared = self.lock();
        shared.passed_over |= !shared.is_idle();
        if shared.passed_over {
            self.stuck.notify_one();
        }
        !shared.passed_over
    }

    /// Writes a frame without waiting.
    pub fn send(&self, frame: &[u8]) -> Sent {
        let mut shared = self.lock();
        if !shared.open {
            return Sent::Closed;
        }
        // Whoever waits for this socket is its task, which is told below.
        let mut nobody = Context::from_waker(Waker::noop());
        match shared.write(&mut nobody, frame) {
            Ok(()) if shared.is_idle() => return Sent::All,
            Ok(()) => {}
            // The task finds out itself, by trying again.
            Err(_) => shared.unsent.extend_from_slice(frame),
        }
        shared.passed_over = true;
        drop(shared);
        self.stuck.notify_one();
        Sent::Stuck
    }

    /// Ends when the flusher waits for the task to send what is left.
    pub async fn stuck(&self) {
        self.stuck.notified().await;
    }

    /// When all was sent: whether the flusher has passed this socket over meanwhile. It does so no more.
    pub fn take_passed_over(&self) -> bool {
        let mut shared = self.lock();
        shared.is_idle() && std::mem::take(&mut shared.passed_over)
    }

    /// For how long the client has taken nothing of what waits.
    pub fn without_progress(&self) -> Duration {
        self.lock().progress_at.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Shared<Io>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Io: AsyncWrite + Unpin> Shared<Io> {
    fn is_idle(&self) -> bool {
        self.unsent.is_empty() && self.flushed
    }

    /// Takes all of it: what the system has no room for waits.
    fn write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        let mut taken = 0;
        if self.is_idle() {
            self.progress_at = Instant::now();
            if let Poll::Ready(written) = Pin::new(&mut self.io).poll_write(context, bytes) {
                taken = written?;
            }
        }
        self.flushed = false;
        self.unsent.extend_from_slice(&bytes[taken..]);
        if !self.unsent.is_empty() {
            return Ok(());
        }
        match self.poll_unsent(context) {
            Poll::Ready(sent) => sent,
            Poll::Pending => Ok(()),
        }
    }

    fn poll_unsent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.unsent.len() {
            let taken = ready!(Pin::new(&mut self.io).poll_write(context, &self.unsent[self.sent..]))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += taken;
            self.progress_at = Instant::now();
        }
        // Idle sockets hold no memory.
        self.unsent = Vec::new();
        self.sent = 0;
        ready!(Pin::new(&mut self.io).poll_flush(context))?;
        self.flushed = true;
        Poll::Ready(Ok(()))
    }
}

/// The task's end of a line.
pub struct Half<Io>(pub Arc<Line<Io>>);

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncRead for Half<Io> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().io).poll_read(context, into)
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Half<Io> {
    /// Takes all of it or nothing, so that a frame is never in two parts with another one between them. What it takes is
    /// bounded: nothing more while something waits, or who reads nothing could have us answer its pings for ever.
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.0.lock();
        if !shared.is_idle() {
            ready!(shared.poll_unsent(context))?;
        }
        Poll::Ready(shared.write(context, bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().poll_unsent(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.lock();
        ready!(shared.poll_unsent(context))?;
        Pin::new(&mut shared.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A line over a pipe that takes 8 bytes, its task's half, and the other end.
    fn line() -> (Arc<Line<tokio::io::DuplexStream>>, Half<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(8);
        let line = Line::new(ours, None);
        line.set_open(true);
        (Arc::clone(&line), Half(line), theirs)
    }

    #[tokio::test]
    async fn what_the_system_has_no_room_for_waits_for_the_task_and_nothing_comes_between() {
        let (line, mut half, mut theirs) = line();
        assert_eq!((line.has_room(), line.send(b"abc")), (true, Sent::All));
        assert_eq!((line.has_room(), line.send(b"defghijklm")), (true, Sent::Stuck));
        line.stuck().await;
        assert!(!line.has_room(), "until the task has sent the rest");
        assert!(!line.take_passed_over());
        let more = async {
            half.write_all(b"XYZ").await?;
            half.flush().await
        };
        let (flushed, read) = tokio::join!(more, async {
            let mut read = [0; 16];
            theirs.read_exact(&mut read).await.map(|_| read)
        });
        flushed.expect("flushes");
        assert_eq!(&read.expect("reads"), b"abcdefghijklmXYZ");
        assert_eq!((line.take_passed_over(), line.take_passed_over()), (true, false), "once");
        assert_eq!((line.has_room(), line.send(b"n")), (true, Sent::All));
    }

    #[tokio::test]
    async fn who_is_passed_over_while_its_task_writes_is_known_afterwards() {
        let (line, mut half, mut theirs) = line();
        half.write_all(b"0123456789").await.expect("is taken in full");
        assert!(!line.has_room());
        let mut read = [0; 10];
        let (flushed, _) = tokio::join!(half.flush(), theirs.read_exact(&mut read));
        flushed.expect("flushes");
        assert!(line.take_passed_over());
    }

    #[tokio::test]
    async fn nothing_more_is_taken_while_something_waits() {
        use futures_util::FutureExt;
        let (line, mut half, _theirs) = line();
        half.write_all(b"0123456789").await.expect("is taken in full");
        for _ in 0..1_000 {
            assert!(half.write(b"a pong").now_or_never().is_none());
        }
        assert_eq!(line.lock().unsent.len(), 2);
    }

    #[tokio::test]
    async fn a_broken_socket_is_found_by_its_task() {
        let (line, mut half, theirs) = line();
        drop(theirs);
        assert_eq!(line.send(b"abc"), Sent::Stuck);
        line.stuck().await;
        half.flush().await.expect_err("nobody is there");
    }

    #[tokio::test]
    async fn a_client_that_takes_a_little_makes_progress() {
        let (line, mut half, mut theirs) = line();
        line.send(b"0123456789abcdefghij");
        let last_progress = || Instant::now() - line.without_progress();
        let sent_at = Instant::now();
        assert!(last_progress() <= sent_at);
        let reading = async {
            theirs.read_exact(&mut [0; 1]).await.expect("reads");
            while last_progress() < sent_at {
                assert!(sent_at.elapsed() < Duration::from_secs(10), "a byte was taken");
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            flushed = half.flush() => panic!("there is no room for all of it: {flushed:?}"),
            () = reading => {}
        }
    }

    #[tokio::test]
    async fn after_the_end_nothing_is_written() {
        let (line, _half, mut theirs) = line();
        line.set_open(false);
        assert_eq!(line.send(b"abc"), Sent::Closed);
        line.set_open(true);
        assert_eq!(line.send(b"xyz"), Sent::All);
        let mut read = [0; 3];
        theirs.read_exact(&mut read).await.expect("reads");
        assert_eq!(&read, b"xyz");
    }
}
