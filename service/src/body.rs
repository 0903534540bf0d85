//! Bodies of requests, read into memory: each of them bounded, and all of them together.

use crate::problem::Problem;
use futures_util::{Stream, StreamExt};
use http::StatusCode;
use std::ops::Deref;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use warp::Buf;

/// A client has so long to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Larger bodies are refused with 413.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// What all bodies of the process may have in memory together, without their first [`OWN_BYTES`].
pub const BODIES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The beginning of a body, which has room in any case: the number of connections bounds that. So a crowd of large bodies keeps no phone
/// from reporting.
const OWN_BYTES: usize = 4 * 1024;

static ROOM: Semaphore = Semaphore::const_new(BODIES_BYTES_MAX);

/// A body; its room is free again when it is dropped.
#[derive(Debug)]
pub struct Body {
    bytes: Vec<u8>,
    room: Option<SemaphorePermit<'static>>,
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The whole body, or 413 above [`BODY_BYTES_MAX`], or 408 when it does not come.
///
/// # Errors
/// `too_large`, `body_timeout`, `bad_body` when the client went away in the middle, or 503 `overloaded` when all bodies
/// together would be too large.
pub async fn read_body(body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Result<Body, Problem> {
    tokio::time::timeout(BODY_TIMEOUT, read_all(body, &ROOM)).await.unwrap_or_else(|_| {
        let detail = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", detail))
    })
}

async fn read_all(
    body: impl Stream<Item = Result<impl Buf, warp::Error>>,
    room: &'static Semaphore,
) -> Result<Body, Problem> {
    let mut read = Body { bytes: Vec::new(), room: None };
    tokio::pin!(body);
    while let Some(chunk) = body.next().await {
        let mut chunk = chunk.map_err(|_| Problem::bad_request("bad_body", "the body ended early"))?;
        let length = read.bytes.len() + chunk.remaining();
        if length > BODY_BYTES_MAX {
            let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail));
        }
        read.take_room(length, room)?;
        while chunk.has_remaining() {
            let part = chunk.chunk();
            read.bytes.extend_from_slice(part);
            let length = part.len();
            chunk.advance(length);
        }
    }
    Ok(read)
}

impl Body {
    /// Room for so many bytes in all.
    fn take_room(&mut self, length: usize, room: &'static Semaphore) -> Result<(), Problem> {
        let held = self.room.as_ref().map_or(0, SemaphorePermit::num_permits);
        let Some(more) = length.checked_sub(OWN_BYTES + held).filter(|more| *more > 0) else { return Ok(()) };
        // Not waited for: who holds half a body would wait for others who do.
        let Some(more) = u32::try_from(more).ok().and_then(|more| room.try_acquire_many(more).ok()) else {
            return Err(Problem::unavailable("overloaded", "too many large bodies at once: send it again"));
        };
        match &mut self.room {
            Some(held) => held.merge(more),
            None => self.room = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    async fn read(parts: &[usize], room: &'static Semaphore) -> Result<Body, Problem> {
        let parts = parts.iter().map(|length| Ok(std::io::Cursor::new(vec![b'x'; *length])));
        read_all(stream::iter(parts.collect::<Vec<_>>()), room).await
    }

    fn refused(read: Result<Body, Problem>) -> (u16, &'static str, Option<u32>) {
        let problem = read.expect_err("refused");
        (problem.status.as_u16(), problem.code, problem.retry_after_s)
    }

    #[tokio::test]
    async fn all_bodies_together_are_bounded_and_leave_their_room() {
        static ROOM: Semaphore = Semaphore::const_new(10_000);
        let first = read(&[OWN_BYTES, 3_000, 0, 3_000], &ROOM).await.expect("there is room");
        assert_eq!((first.len(), ROOM.available_permits()), (OWN_BYTES + 6_000, 4_000));
        let full = (503, "overloaded", Some(1));
        assert_eq!(refused(read(&[OWN_BYTES + 4_001], &ROOM).await), full);
        assert_eq!(refused(read(&[OWN_BYTES + 2_000, 2_001], &ROOM).await), full, "in the middle");
        let second = read(&[OWN_BYTES - 1, 4_001], &ROOM).await.expect("what was refused holds nothing");
        assert_eq!(ROOM.available_permits(), 0);
        read(&[1_000, OWN_BYTES - 1_000], &ROOM).await.expect("a small body has room in any case");
        drop((first, second));
        assert_eq!(ROOM.available_permits(), 10_000);
    }

    #[tokio::test]
    async fn one_body_is_bounded() {
        static ROOM: Semaphore = Semaphore::const_new(BODIES_BYTES_MAX);
        assert_eq!(read(&[BODY_BYTES_MAX], &ROOM).await.map(|body| body.len()), Ok(BODY_BYTES_MAX));
        assert_eq!(refused(read(&[BODY_BYTES_MAX, 1], &ROOM).await), (413, "too_large", None));
    }
}
