//! The HTTP side: JSON over HTTP/1.1, a connection a call.

use crate::{ANSWER_WITHIN, ClientError, within};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A request that got 503 is sent again so often.
const RETRIES_MAX: u32 = 20;
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A server's public API.
#[derive(Clone, Debug)]
pub struct Api {
    authority: String,
    answer_within: Duration,
}

impl Api {
    /// For `http://HOST:PORT`.
    ///
    /// # Errors
    /// When it is no such address.
    pub fn new(url: &str) -> Result<Api, ClientError> {
        let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/').to_owned());
        let authority = authority.filter(|authority| !authority.is_empty() && !authority.contains('/'));
        let authority = authority.ok_or_else(|| ClientError::BadUrl(url.to_owned()))?;
        Ok(Api { authority, answer_within: ANSWER_WITHIN })
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
        within(self.answer_within, &call, self.answer(method, path, token, body)).await
    }

    async fn answer(
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
        // Ends with its task, which ends with this.
        let mut connections = JoinSet::new();
        connections.spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.authority);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|_| ClientError::BadToken)?;
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(http)?.to_bytes();
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_server_that_does_not_answer_to_the_end_is_given_up() {
        for said in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let url = format!("http://{}", listener.local_addr().expect("bound"));
            let api = Api { answer_within: Duration::from_millis(200), ..Api::new(&url).expect("an address") };
            let server = async {
                let (mut socket, _) = listener.accept().await.expect("a client");
                socket.write_all(said.as_bytes()).await.expect("sent");
                std::future::pending::<()>().await;
            };
            let refused = tokio::select! {
                answer = api.gateway() => answer.expect_err("there is no answer"),
                () = server => panic!("it never ends"),
            };
            assert!(matches!(&refused, ClientError::Silent(call, _) if call.ends_with("/v1/gateway")), "{refused}");
        }
    }
}
