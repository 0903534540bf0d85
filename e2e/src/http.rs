//! Plain HTTP requests, one connection each.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const LIMIT: Duration = Duration::from_secs(30);

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("status {}, no JSON: {}", self.status, self.text()))
    }

    /// The answer itself if it has this status, else an error that shows it.
    pub fn expect_status(self, status: u16) -> anyhow::Result<Response> {
        if self.status != status {
            bail!("status {} where {status} was expected: {}", self.status, self.text());
        }
        Ok(self)
    }
}

/// `GET` without a token.
pub async fn get(url: &str) -> anyhow::Result<Response> {
    request("GET", url, &[], "").await
}

/// `GET` with a bearer token.
pub async fn get_as(token: &str, url: &str) -> anyhow::Result<Response> {
    request("GET", url, &[("authorization", &format!("Bearer {token}"))], "").await
}

/// `POST` of JSON with a bearer token.
pub async fn post_json(token: &str, url: &str, body: &Value) -> anyhow::Result<Response> {
    send_json("POST", token, url, body).await
}

/// JSON by any method (`PUT`, `DELETE`, …) with a bearer token.
pub async fn send_json(method: &str, token: &str, url: &str, body: &Value) -> anyhow::Result<Response> {
    let headers = [("authorization", format!("Bearer {token}")), ("content-type", "application/json".to_owned())];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    request(method, url, &headers, body.to_string()).await
}

/// Any request. The answer must be complete within 30 s.
pub async fn request(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> anyhow::Result<Response> {
    let exchange = exchange(method, url, headers, body.into());
    let answer = tokio::time::timeout(LIMIT, exchange).await;
    answer.with_context(|| format!("no answer within {LIMIT:?}")).flatten().with_context(|| format!("{method} {url}"))
}

/// The beginning of an endless answer, up to where it contains `end`.
pub async fn stream_until(url: &str, headers: &[(&str, &str)], end: &str, limit: Duration) -> anyhow::Result<String> {
    let reading = async {
        let (response, driver) = open("GET", url, headers, Bytes::new()).await?;
        let mut body = response.into_body();
        let mut text = String::new();
        while !text.contains(end) {
            let frame = body.frame().await.with_context(|| format!("it ended after {text:?}"))??;
            text.push_str(&String::from_utf8_lossy(frame.data_ref().unwrap_or(&Bytes::new())));
        }
        driver.abort();
        Ok(text)
    };
    let read = tokio::time::timeout(limit, reading).await;
    read.with_context(|| format!("{end:?} did not come within {limit:?}")).flatten().with_context(|| url.to_owned())
}

async fn exchange(method: &str, url: &str, headers: &[(&str, &str)], body: Bytes) -> anyhow::Result<Response> {
    let (response, driver) = open(method, url, headers, body).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("read the body")?.to_bytes();
    driver.abort();
    Ok(Response { status: head.status.as_u16(), headers: head.headers, body })
}

/// Sends the request; the answer's body is still to be read, while the connection's task runs.
async fn open(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> anyhow::Result<(http::Response<Incoming>, JoinHandle<hyper::Result<()>>)> {
    let uri: Uri = url.parse().context("no address")?;
    if uri.scheme_str() != Some("http") {
        bail!("only http:// is spoken here");
    }
    let authority = uri.authority().context("the address names no host")?;
    let stream = TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80))).await.context("connect")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", authority.as_str());
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok((sender.send_request(request.body(Full::new(body))?).await?, driver))
}
