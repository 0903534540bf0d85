//! A socket of bytes, for what no client library sends (broken heads, broken frames), and for clients that read no more of what they
//! get than they have to, and count the bytes.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Text; with [`FIN`], the whole of a message or its end.
pub const TEXT: u8 = 0x1;
/// What follows the first fragment.
pub const CONTINUATION: u8 = 0x0;
/// Bytes.
pub const BINARY: u8 = 0x2;
/// A close frame.
pub const CLOSE: u8 = 0x8;
/// A ping.
pub const PING: u8 = 0x9;
/// Its answer.
pub const PONG: u8 = 0xA;
/// The last fragment of a message.
pub const FIN: u8 = 0x80;

const READ_BYTES: usize = 16 * 1024;

/// A connection.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    unread: Vec<u8>,
    limit: Duration,
    /// Bytes that have come over the connection: heads, frames and bodies.
    pub bytes_in: usize,
    /// And that were sent.
    pub bytes_out: usize,
}

impl Raw {
    /// Connects to `http://HOST:PORT`; everything then has so long to come.
    pub async fn connect(base: &str, limit: Duration) -> anyhow::Result<Raw> {
        let address = base.strip_prefix("http://").context("the address begins with http://")?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Raw { stream, unread: Vec::new(), limit, bytes_in: 0, bytes_out: 0 })
    }

    /// A WebSocket past its `101`.
    pub async fn upgrade(base: &str, token: &str, limit: Duration) -> anyhow::Result<Raw> {
        let mut raw = Raw::connect(base, limit).await?;
        let more = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        raw.get(base, "/v1/stream", token, more, 101).await?;
        Ok(raw)
    }

    /// Sends a GET with some more lines, and reads the head of the answer, which has to have this status.
    pub async fn get(
        &mut self,
        base: &str,
        path: &str,
        token: &str,
        more: &str,
        status: u16,
    ) -> anyhow::Result<String> {
        let host = base.trim_start_matches("http://");
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n{more}\r\n");
        self.send(head.as_bytes()).await?;
        let head = self.head().await?;
        ensure!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        Ok(head)
    }

    /// Sends bytes as they are. The peer may have closed: that shows when reading.
    pub async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.bytes_out += bytes.len();
        self.stream.write_all(bytes).await.context("send bytes")
    }

    /// Sends a frame, masked as a client's has to be.
    pub async fn frame(&mut self, first: u8, payload: &[u8]) -> anyhow::Result<()> {
        self.send(&masked(first, payload)).await
    }

    /// The head of an HTTP answer.
    pub async fn head(&mut self) -> anyhow::Result<String> {
        let head = self.fill_until(b"\r\n\r\n").await?;
        Ok(String::from_utf8(self.unread.drain(..head).collect())?)
    }

    /// The next bytes.
    pub async fn take(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        self.fill(count).await?;
        Ok(self.unread.drain(..count).collect())
    }

    /// The next chunk of an answer in chunks (RFC 9112, 7.1). Like [`Raw::text`], it may be dropped while it waits.
    pub async fn chunk(&mut self) -> anyhow::Result<Vec<u8>> {
        let head = self.fill_until(b"\r\n").await?;
        let size = std::str::from_utf8(&self.unread[..head])?.trim();
        let size = usize::from_str_radix(size, 16).context("the size of a chunk")?;
        ensure!(size > 0, "the answer has ended");
        self.fill(head + size + 2).await?;
        let chunk: Vec<u8> = self.unread.drain(..head + size + 2).skip(head).collect();
        Ok(chunk[..size].to_vec())
    }

    /// From now on it is looked into when somebody wants to, and nobody is woken for what comes.
    ///
    /// # Errors
    /// If the runtime does not let go of it.
    pub fn unwatched(self) -> anyhow::Result<Unwatched> {
        let stream = self.stream.into_std().context("take the socket from the runtime")?;
        Ok(Unwatched { stream, unread: self.unread })
    }

    /// The next text of a WebSocket; pings are answered.
    pub async fn text(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            match self.next().await? {
                (first, payload) if first == FIN | TEXT => return Ok(payload),
                (first, payload) if first == FIN | PING => self.frame(FIN | PONG, &payload).await?,
                (_, payload) => bail!("the socket was closed: {}", String::from_utf8_lossy(&payload)),
            }
        }
    }

    /// Reads on until this has come.
    pub async fn until(&mut self, part: &[u8]) -> anyhow::Result<()> {
        while !self.unread.windows(part.len()).any(|window| window == part) {
            self.read().await.with_context(|| String::from_utf8_lossy(&self.unread).into_owned())?;
        }
        Ok(())
    }

    /// The next frame: its first byte and its payload.
    pub async fn next(&mut self) -> anyhow::Result<(u8, Vec<u8>)> {
        loop {
            if let Some((first, header, length)) = header(&self.unread)
                && self.unread.len() >= header + length
            {
                let frame: Vec<u8> = self.unread.drain(..header + length).collect();
                return Ok((first, frame[header..].to_vec()));
            }
            self.read().await?;
        }
    }

    /// The code and reason of the close frame; others before it are passed over.
    pub async fn closed(&mut self) -> anyhow::Result<(u16, String)> {
        loop {
            let (first, payload) = self.next().await.context("no close frame came")?;
            if first == FIN | CLOSE {
                let (code, reason) = payload.split_first_chunk().context("a close frame without a code")?;
                return Ok((u16::from_be_bytes(*code), String::from_utf8(reason.to_vec())?));
            }
        }
    }

    /// Reads on until this has come; returns where it ends.
    async fn fill_until(&mut self, end: &[u8]) -> anyhow::Result<usize> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                return Ok(at + end.len());
            }
            self.read().await?;
        }
    }

    async fn fill(&mut self, count: usize) -> anyhow::Result<()> {
        while self.unread.len() < count {
            self.read().await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        let before = self.unread.len();
        self.unread.reserve(READ_BYTES);
        let read = tokio::time::timeout(self.limit, self.stream.read_buf(&mut self.unread));
        match read.await.with_context(|| format!("nothing within {:?}", self.limit))? {
            Ok(0) => bail!("the connection ended"),
            read => read.context("read")?,
        };
        self.bytes_in += self.unread.len() - before;
        Ok(())
    }
}

/// A WebSocket that nobody is woken for: it is looked into now and then. Pings are not answered.
#[derive(Debug)]
pub struct Unwatched {
    stream: std::net::TcpStream,
    unread: Vec<u8>,
}

impl Unwatched {
    /// Tells of all texts that have come, in order; reads as much at once as the buffer holds.
    ///
    /// # Errors
    /// If the socket was closed.
    pub fn texts(&mut self, buffer: &mut [u8], mut each: impl FnMut(&[u8])) -> anyhow::Result<()> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => bail!("the connection ended"),
                Ok(read) => {
                    self.unread.extend_from_slice(&buffer[..read]);
                    if read < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("read"),
            }
        }
        let mut unread = self.unread.as_slice();
        while let Some((first, header, length)) = header(unread)
            && let Some(payload) = unread.get(header..header + length)
        {
            match first {
                _ if first == FIN | TEXT => each(payload),
                _ if first == FIN | PING => {}
                _ => bail!("the socket was closed: {}", String::from_utf8_lossy(payload)),
            }
            unread = &unread[header + length..];
        }
        let read = self.unread.len() - unread.len();
        self.unread.drain(..read);
        Ok(())
    }
}

/// A masked frame; the mask is not 0, so that a server which does not take it off reads garbage.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let length = payload.len();
    let mut frame = vec![first];
    match u16::try_from(length) {
        Ok(short @ 0..=125) => frame.push(0x80 | short.to_be_bytes()[1]),
        Ok(middle) => {
            frame.push(0x80 | 126);
            frame.extend(middle.to_be_bytes());
        }
        Err(_) => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// First byte, length of the header, and of the payload; none while bytes are missing. Servers do not mask.
fn header(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    match second {
        126 => Some((first, 4, u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into())),
        127 => Some((first, 10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?)),
        short => Some((first, 2, short.into())),
    }
}
