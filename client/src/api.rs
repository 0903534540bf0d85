//! The HTTP side: JSON over HTTP/1.1, a connection a call.

use crate::ClientError;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;

/// A request that got 503 is sent again so often.
const RETRIES_MAX: u32 = 20;
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A server's public API.
#[derive(Clone, Debug)]
pub struct Api {
    authority: String,
}

impl Api {
    /// For `http://HOST:PORT`.
    ///
    /// # Errors
    /// When it is no such address.
    pub fn new(url: &str) -> Result<Api, ClientError> {
        let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/').to_owned());
        let authority = authority.filter(|authority| !authority.is_empty() && !authority.contains('/'));
        Ok(Api { authority: authority.ok_or_else(|| ClientError::BadUrl(url.to_owned()))? })
    }

    /// The WebSocket address of the gateway to connect to now: ask before each connection.
    ///
    /// # Errors
    /// When there is none.
    pub async fn gateway(&self) -> Result<String, ClientError> {
        self.string("/v1/gateway", "url").await
    }

    /// A token for any user, of a server that runs with `--dev-tokens`.
    ///
    /// # Errors
    /// When it does not.
    pub async fn dev_token(&self, user: i64) -> Result<String, ClientError> {
        self.string(&format!("/v1/dev/token?user={user}"), "token").await
    }

    /// Posts JSON, again after 503, as the API asks clients to.
    ///
    /// # Errors
    /// When it is refused, or still 503 after some tries.
    pub async fn post(&self, path: &str, token: &str, body: &Value) -> Result<(), ClientError> {
        for retries in 0.. {
            let (status, answer) = self.request(Method::POST, path, Some(token), body.to_string().into()).await?;
            match status {
                StatusCode::ACCEPTED => return Ok(()),
                StatusCode::SERVICE_UNAVAILABLE if retries < RETRIES_MAX => tokio::time::sleep(RETRY_AFTER).await,
                _ => return Err(self.refused(&Method::POST, path, status, answer)),
            }
        }
        Ok(())
    }

    /// A member of the answer to `GET`.
    async fn string(&self, path: &str, member: &str) -> Result<String, ClientError> {
        let (status, body) = self.request(Method::GET, path, None, Bytes::new()).await?;
        let member = body[member].as_str().filter(|_| status == StatusCode::OK).map(str::to_owned);
        member.ok_or_else(|| self.refused(&Method::GET, path, status, body))
    }

    fn refused(&self, method: &Method, path: &str, status: StatusCode, body: Value) -> ClientError {
        ClientError::Refused { call: self.call(method, path), status: status.as_u16(), body }
    }

    fn call(&self, method: &Method, path: &str) -> String {
        format!("{method} http://{}{path}", self.authority)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Bytes,
    ) -> Result<(StatusCode, Value), ClientError> {
        let call = self.call(&method, path);
        let http = |error| ClientError::Http(call.clone(), error);
        let socket = TcpStream::connect(&self.authority).await;
        let socket = socket.map_err(|error| ClientError::Unreachable(call.clone(), error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(http)?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.authority);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|_| ClientError::BadToken)?;
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(http)?.to_bytes();
        connection.abort();
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }
}
