//! The public API as the crowd uses it: tokens for anybody, friend lists for all.

use crate::BadSetting;
use anyhow::Context;
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::auth::{SCOPES_ALL, Tokens};
use nearby_service::settings::SigningSettings;
use serde_json::{Map, json};
use std::collections::BTreeMap;

const TOKEN_VALID_MS: i64 = 86_400_000;
/// Friends in one request, of all its lists; a list alone may have more. Below the body's limit of 1 MiB at 20 digits each.
const FRIENDS_AT_ONCE: usize = 40_000;

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
    client: nearby_client::Api,
    token_source: TokenSource,
}

impl Api {
    /// For `http://HOST:PORT`.
    pub fn new(url: &str, token_source: TokenSource) -> anyhow::Result<Api> {
        let client = nearby_client::Api::new(url).map_err(|error| BadSetting(format!("--url {error}")))?;
        Ok(Api { client, token_source })
    }

    /// A token for the user, with every scope if it is to be privileged.
    pub async fn token(&self, user: UserId, privileged: bool) -> anyhow::Result<String> {
        match &self.token_source {
            TokenSource::Signed(tokens) => {
                let scopes = if privileged { SCOPES_ALL } else { "" };
                Ok(tokens.sign(user, scopes, TimestampMs::now().plus_ms(TOKEN_VALID_MS))?)
            }
            TokenSource::Development => {
                let hint =
                    "no token: set NEARBY_JWT_SECRET to the server's secret, or start the server with --dev-tokens";
                self.client.dev_token(user.0).await.context(hint)
            }
        }
    }

    /// A connection of this user to the gateway that the server names.
    pub async fn connect(&self, user: UserId) -> anyhow::Result<nearby_client::Connection> {
        let token = self.token(user, false).await?;
        Ok(nearby_client::Connection::open(&self.client.gateway().await?, &token).await?)
    }

    /// Replaces the friend lists of many users.
    pub async fn replace_friend_lists(&self, lists: &BTreeMap<UserId, Vec<UserId>>) -> anyhow::Result<()> {
        let token = self.token(UserId(0), true).await?;
        let (mut together, mut friends_together) = (Map::new(), 0);
        for (user, friends) in lists {
            // The user's id counts too: there are empty lists.
            if friends_together + friends.len() + 1 > FRIENDS_AT_ONCE && !together.is_empty() {
                let lists = std::mem::take(&mut together);
                self.client.post("/v1/friend-lists", &token, &json!({ "lists": lists })).await?;
                friends_together = 0;
            }
            friends_together += friends.len() + 1;
            let names: Vec<String> = friends.iter().map(ToString::to_string).collect();
            together.insert(user.to_string(), names.into());
        }
        if !together.is_empty() {
            self.client.post("/v1/friend-lists", &token, &json!({ "lists": together })).await?;
        }
        Ok(())
    }
}
