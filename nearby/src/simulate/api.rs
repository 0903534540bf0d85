//! The public HTTP API from a client's side: JSON over HTTP/1.1.

use crate::BadSetting;
use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::auth::{SCOPES_ALL, Tokens};
use nearby_service::settings::SigningSettings;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::net::TcpStream;

const TOKEN_VALID_MS: i64 = 86_400_000;
/// Lists in one request: 200 lists of 200 friends stay below the body's limit.
const LISTS_AT_ONCE: usize = 200;
/// A request that got 503 is sent again so often.
const RETRIES_MAX: u32 = 20;
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Where tokens come from.
#[derive(Clone)]
pub enum TokenSource {
    /// Signed with the shared secret.
    Signed(Tokens),
    /// From `GET /v1/dev/token`.
    Development,
}

impl TokenSource {
    /// Signed if there is a secret that is not empty.
    pub fn new(settings: &SigningSettings) -> anyhow::Result<TokenSource> {
        let tokens = Tokens::from_signing(settings).map_err(|error| BadSetting(error.to_string()))?;
        Ok(tokens.map_or(TokenSource::Development, TokenSource::Signed))
    }
}

/// A server's public API.
#[derive(Clone)]
pub struct Api {
    authority: String,
    token_source: TokenSource,
}

impl Api {
    /// For `http://HOST:PORT`.
    pub fn new(url: &str, token_source: TokenSource) -> anyhow::Result<Api> {
        let authority = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/').to_owned());
        let authority = authority.filter(|authority| !authority.is_empty() && !authority.contains('/'));
        let authority = authority.ok_or_else(|| BadSetting(format!("--url {url}: expected http://HOST:PORT")))?;
        Ok(Api { authority, token_source })
    }

    /// A token for the user, with every scope if it is to be privileged.
    pub async fn token(&self, user: UserId, privileged: bool) -> anyhow::Result<String> {
        match &self.token_source {
            TokenSource::Signed(tokens) => {
                let scopes = if privileged { SCOPES_ALL } else { "" };
                Ok(tokens.sign(user, scopes, TimestampMs::now().plus_ms(TOKEN_VALID_MS))?)
            }
            TokenSource::Development => {
                let answer = self.request(Method::GET, &format!("/v1/dev/token?user={user}"), None, Vec::new()).await;
                let (status, body) = answer?;
                let token = body["token"].as_str().filter(|_| status == StatusCode::OK);
                let hint =
                    "no token: set NEARBY_JWT_SECRET to the server's secret, or start the server with --dev-tokens";
                token.map(str::to_owned).with_context(|| format!("{hint} (it answered {status})"))
            }
        }
    }

    /// The WebSocket address of the gateway that the server names.
    pub async fn stream_url(&self) -> anyhow::Result<String> {
        let (status, body) = self.request(Method::GET, "/v1/gateway", None, Vec::new()).await?;
        body["url"].as_str().map(str::to_owned).with_context(|| format!("no gateway: {status} {body}"))
    }

    /// Replaces the friend lists of many users.
    pub async fn replace_friend_lists(&self, lists: &BTreeMap<UserId, Vec<UserId>>) -> anyhow::Result<()> {
        let token = self.token(UserId(0), true).await?;
        let entries: Vec<_> = lists.iter().collect();
        for chunk in entries.chunks(LISTS_AT_ONCE) {
            let chunk: serde_json::Map<String, Value> = chunk
                .iter()
                .map(|(user, friends)| {
                    let friends: Vec<String> = friends.iter().map(ToString::to_string).collect();
                    (user.to_string(), friends.into())
                })
                .collect();
            let body = serde_json::json!({ "lists": chunk }).to_string().into_bytes();
            self.post("/v1/friend-lists", &token, body).await?;
        }
        Ok(())
    }

    /// Posts, again after 503, as the API asks clients to.
    async fn post(&self, path: &str, token: &str, body: Vec<u8>) -> anyhow::Result<()> {
        for _ in 0..RETRIES_MAX {
            let (status, answer) = self.request(Method::POST, path, Some(token), body.clone()).await?;
            match status {
                StatusCode::ACCEPTED => return Ok(()),
                StatusCode::SERVICE_UNAVAILABLE => tokio::time::sleep(RETRY_AFTER).await,
                _ => bail!("POST {path} was refused: {status} {answer}"),
            }
        }
        bail!("POST {path}: still 503 after {RETRIES_MAX} tries")
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Vec<u8>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let context = || format!("{method} http://{}{path}", self.authority);
        let socket = TcpStream::connect(&self.authority).await.with_context(context)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.with_context(context)?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(&method).uri(path).header(header::HOST, &self.authority);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(body))).with_context(context)?;
        let response = sender.send_request(request).await.with_context(context)?;
        let status = response.status();
        let body = response.into_body().collect().await.with_context(context)?.to_bytes();
        connection.abort();
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }
}
