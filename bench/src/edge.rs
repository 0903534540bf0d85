//! A gateway process of the bench's own, with a broker, an ingest and a processor behind it, and clients that read no more of
//! what they get than they have to: the bytes are the server's, whoever the client is.

use anyhow::{Context, bail, ensure};
use nearby_e2e::cluster::{Cluster, SECRET, Service};
use nearby_e2e::ports::free_port;
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::auth::{SCOPES_ALL, Tokens};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::block_in_place;
use tokio::time::timeout;

/// The longest that anything may take.
const STEP: Duration = Duration::from_secs(60);
const TOKEN_MS: i64 = 3_600_000;
const READ_BYTES: usize = 16 * 1024;
/// Opcodes of WebSocket frames (RFC 6455, 5.2), and the bit of the last fragment.
const TEXT: u8 = 1;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// The processes.
pub struct Edge {
    pub cluster: Cluster,
    pub gateway: Service,
    tokens: Tokens,
}

impl Edge {
    /// Starts them; the gateway with these flags.
    pub fn start(flags: &[&str]) -> anyhow::Result<Edge> {
        block_in_place(|| {
            let cluster = Cluster::start("", 0, 1)?;
            let mut gateway = cluster.start_pusher(&format!("127.0.0.1:{}", free_port()?), flags)?;
            gateway.wait_ready()?;
            Ok(Edge { cluster, gateway, tokens: Tokens::from_secret(SECRET.as_bytes())? })
        })
    }

    /// A token with every scope.
    pub fn token(&self, user: i64) -> anyhow::Result<String> {
        Ok(self.tokens.sign(UserId(user), SCOPES_ALL, TimestampMs::now().plus_ms(TOKEN_MS))?)
    }
}

/// One connection of a client, and what went over it.
pub struct Line {
    stream: TcpStream,
    unread: Vec<u8>,
    /// Of the TCP connection: heads, frames and bodies.
    pub bytes_in: usize,
    pub bytes_out: usize,
}

impl Line {
    pub async fn connect(base: &str) -> anyhow::Result<Line> {
        let stream = TcpStream::connect(base.strip_prefix("http://").context("http://HOST:PORT")?).await?;
        stream.set_nodelay(true)?;
        Ok(Line { stream, unread: Vec::new(), bytes_in: 0, bytes_out: 0 })
    }

    /// Sends a GET and reads the head of the answer, which has to have this status.
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
        let head = timeout(STEP, self.fill_until(b"\r\n\r\n")).await.context("no answer")??;
        let head = String::from_utf8(self.unread.drain(..head).collect()).context("a head in ASCII")?;
        ensure!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        Ok(head)
    }

    /// Becomes a WebSocket.
    pub async fn upgrade(base: &str, token: &str) -> anyhow::Result<Line> {
        let mut line = Line::connect(base).await?;
        let more = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        line.get(base, "/v1/stream", token, more, 101).await?;
        Ok(line)
    }

    /// The next text of a WebSocket; pings are answered.
    pub async fn text(&mut self) -> anyhow::Result<Vec<u8>> {
        loop {
            self.fill(2).await?;
            let (kind, length) = (self.unread[0] & !FIN, self.unread[1]);
            let (head, length) = match length {
                126 => {
                    self.fill(4).await?;
                    (4, usize::from(u16::from_be_bytes([self.unread[2], self.unread[3]])))
                }
                127 => bail!("no frame of ours is that long"),
                short => (2, usize::from(short)),
            };
            self.fill(head + length).await?;
            let payload: Vec<u8> = self.unread.drain(..head + length).skip(head).collect();
            match kind {
                TEXT => return Ok(payload),
                PING => {
                    let length = u8::try_from(payload.len()).context("a short ping")?;
                    // A mask of zeros changes nothing.
                    let pong = [&[FIN | PONG, MASKED | length, 0, 0, 0, 0], payload.as_slice()].concat();
                    self.send(&pong).await?;
                }
                _ => bail!("the socket was closed: {}", String::from_utf8_lossy(&payload)),
            }
        }
    }

    /// The next chunk of an answer in chunks (RFC 9112, 7.1). Like [`Line::text`], it may be dropped while it waits.
    pub async fn chunk(&mut self) -> anyhow::Result<Vec<u8>> {
        let head = self.fill_until(b"\r\n").await?;
        let size = std::str::from_utf8(&self.unread[..head])?.trim();
        let size = usize::from_str_radix(size, 16).context("the size of a chunk")?;
        ensure!(size > 0, "the answer has ended");
        self.fill(head + size + 2).await?;
        let chunk: Vec<u8> = self.unread.drain(..head + size + 2).skip(head).collect();
        Ok(chunk[..size].to_vec())
    }

    /// The next bytes.
    pub async fn take(&mut self, count: usize) -> anyhow::Result<Vec<u8>> {
        self.fill(count).await?;
        Ok(self.unread.drain(..count).collect())
    }

    /// Reads on until this has come; returns where it ends.
    async fn fill_until(&mut self, end: &[u8]) -> anyhow::Result<usize> {
        loop {
            if let Some(at) = self.unread.windows(end.len()).position(|window| window == end) {
                return Ok(at + end.len());
            }
            self.fill(self.unread.len() + 1).await?;
        }
    }

    async fn fill(&mut self, count: usize) -> anyhow::Result<()> {
        while self.unread.len() < count {
            let before = self.unread.len();
            self.unread.reserve(READ_BYTES);
            let read = self.stream.read_buf(&mut self.unread).await?;
            ensure!(read > 0, "the server has gone");
            self.bytes_in += self.unread.len() - before;
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.bytes_out += bytes.len();
        Ok(self.stream.write_all(bytes).await?)
    }
}
