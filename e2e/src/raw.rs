//! A socket of bytes, for what no client library sends: broken heads, broken frames.

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

/// A connection.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    unread: Vec<u8>,
    limit: Duration,
}

impl Raw {
    /// Connects to `http://HOST:PORT`; everything then has so long to come.
    pub async fn connect(base: &str, limit: Duration) -> anyhow::Result<Raw> {
        let address = base.strip_prefix("http://").context("the address begins with http://")?;
        Ok(Raw { stream: TcpStream::connect(address).await?, unread: Vec::new(), limit })
    }

    /// A WebSocket past its `101`.
    pub async fn upgrade(base: &str, token: &str, limit: Duration) -> anyhow::Result<Raw> {
        let mut raw = Raw::connect(base, limit).await?;
        let host = base.trim_start_matches("http://");
        let head = format!(
            "GET /v1/stream HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        raw.send(head.as_bytes()).await?;
        let head = raw.head().await?;
        ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Ok(raw)
    }

    /// Sends bytes as they are. The peer may have closed: that shows when reading.
    pub async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes).await.context("send bytes")
    }

    /// Sends a frame, masked as a client's has to be.
    pub async fn frame(&mut self, first: u8, payload: &[u8]) -> anyhow::Result<()> {
        self.send(&masked(first, payload)).await
    }

    /// The head of an HTTP answer.
    pub async fn head(&mut self) -> anyhow::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                return Ok(String::from_utf8(head)?);
            }
            self.read().await?;
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

    async fn read(&mut self) -> anyhow::Result<()> {
        let read = tokio::time::timeout(self.limit, self.stream.read_buf(&mut self.unread));
        match read.await.with_context(|| format!("nothing within {:?}", self.limit))? {
            Ok(0) => bail!("the connection ended"),
            read => read.map(drop).context("read"),
        }
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
