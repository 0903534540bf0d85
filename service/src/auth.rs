//! Tokens: who is calling, and what they may do beyond their own affairs.

use crate::problem::Problem;
use crate::settings::AuthSettings;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, header};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use nearby_schemas::{TimestampMs, UserId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// May replace anybody's friend list.
pub const SCOPE_FRIENDS_WRITE: &str = "friends:write";
/// May report for anybody.
pub const SCOPE_INGEST_ANY: &str = "ingest:any";
/// Every scope there is.
pub const SCOPES_ALL: &str = "friends:write ingest:any";

/// Shorter secrets can be guessed from one token.
const SECRET_BYTES_MIN: usize = 16;

/// Who is calling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`.
    pub user: UserId,
    /// The token's `exp`.
    pub expires_at: TimestampMs,
    scopes: String,
}

impl Caller {
    /// Whether the token grants `scope`.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.split_ascii_whitespace().any(|granted| granted == scope)
    }

    /// 403 unless the token grants `scope`.
    ///
    /// # Errors
    /// `missing_scope`.
    pub fn require(&self, scope: &str) -> Result<(), Problem> {
        if self.has_scope(scope) {
            return Ok(());
        }
        Err(Problem::new(StatusCode::FORBIDDEN, "missing_scope", format!("the token lacks the scope {scope}")))
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    /// Seconds; a fraction is allowed (RFC 7519, NumericDate).
    exp: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

/// Verifies tokens, and signs them when it has the secret.
#[derive(Clone)]
pub struct Tokens {
    keys: Arc<Keys>,
}

struct Keys {
    decoding: DecodingKey,
    validation: Validation,
    encoding: Option<EncodingKey>,
}

/// The settings do not make a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Neither a secret nor a public key.
    #[error(
        "set NEARBY_JWT_SECRET (HS256) or --jwt-public-key-file (RS256, EdDSA): without a key no token can be verified"
    )]
    Missing,
    /// The secret can be guessed.
    #[error("NEARBY_JWT_SECRET is shorter than 16 bytes")]
    ShortSecret,
    /// The file cannot be read.
    #[error("--jwt-public-key-file {path}: {source}")]
    Unreadable {
        /// As given.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a key.
    #[error("--jwt-public-key-file {path}: neither an RSA nor an Ed25519 public key in PEM")]
    NotAKey {
        /// As given.
        path: String,
    },
    /// A public key signs nothing.
    #[error("signing tokens needs NEARBY_JWT_SECRET")]
    CannotSign,
}

impl Tokens {
    /// From the settings.
    ///
    /// # Errors
    /// When there is no usable key.
    pub fn from_settings(settings: &AuthSettings) -> Result<Tokens, KeyError> {
        if let Some(path) = &settings.jwt_public_key_file {
            let pem = std::fs::read(path)
                .map_err(|source| KeyError::Unreadable { path: path.display().to_string(), source })?;
            let rsa = DecodingKey::from_rsa_pem(&pem).map(|key| (key, Algorithm::RS256));
            let key = rsa.or_else(|_| DecodingKey::from_ed_pem(&pem).map(|key| (key, Algorithm::EdDSA)));
            let (key, algorithm) = key.map_err(|_| KeyError::NotAKey { path: path.display().to_string() })?;
            return Ok(Tokens::new(key, algorithm, None));
        }
        let secret = settings.jwt_secret.as_deref().filter(|secret| !secret.is_empty()).ok_or(KeyError::Missing)?;
        Tokens::from_secret(secret.as_bytes())
    }

    /// HS256 with a secret.
    ///
    /// # Errors
    /// If it is shorter than 16 bytes.
    pub fn from_secret(secret: &[u8]) -> Result<Tokens, KeyError> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(KeyError::ShortSecret);
        }
        let encoding = EncodingKey::from_secret(secret);
        Ok(Tokens::new(DecodingKey::from_secret(secret), Algorithm::HS256, Some(encoding)))
    }

    /// HS256 with a secret that nobody else knows: such tokens end with the process.
    pub fn ephemeral() -> Tokens {
        let secret: [u8; 32] = rand::random();
        let encoding = EncodingKey::from_secret(&secret);
        Tokens::new(DecodingKey::from_secret(&secret), Algorithm::HS256, Some(encoding))
    }

    fn new(decoding: DecodingKey, algorithm: Algorithm, encoding: Option<EncodingKey>) -> Tokens {
        // One algorithm only: a public key must never be taken for an HMAC secret.
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.validate_nbf = true;
        // Which audiences there are is the issuer's affair; what counts here are key, subject and scopes.
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "sub"]);
        Tokens { keys: Arc::new(Keys { decoding, validation, encoding }) }
    }

    /// A token for `user`.
    ///
    /// # Errors
    /// [`KeyError::CannotSign`] with a public key.
    pub fn sign(&self, user: UserId, scopes: &str, expires_at: TimestampMs) -> Result<String, KeyError> {
        let encoding = self.keys.encoding.as_ref().ok_or(KeyError::CannotSign)?;
        let scope = (!scopes.is_empty()).then(|| scopes.to_owned());
        #[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
        let claims = Claims { sub: user.to_string(), exp: (expires_at.0 / 1000) as f64, scope };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, encoding).map_err(|_| KeyError::CannotSign)
    }

    /// Who holds the token.
    ///
    /// # Errors
    /// 401 `token_expired` or `bad_token`.
    pub fn verify(&self, token: &str) -> Result<Caller, Problem> {
        use jsonwebtoken::errors::ErrorKind;
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.keys.decoding, &self.keys.validation);
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => unauthorized("token_expired", "the token has expired"),
            _ => unauthorized("bad_token", "the token is not valid here"),
        })?;
        let user = claims.claims.sub.parse();
        let user = user.map_err(|_| unauthorized("bad_token", "the token's sub is not a user id"))?;
        #[expect(clippy::cast_possible_truncation, reason = "a float beyond i64 becomes its greatest value: no expiry")]
        let expires_at = TimestampMs((claims.claims.exp * 1000.0) as i64);
        Ok(Caller { user, expires_at, scopes: claims.claims.scope.unwrap_or_default() })
    }

    /// Who is calling by the `Authorization: Bearer` header.
    ///
    /// # Errors
    /// 401 `missing_token`, `token_expired` or `bad_token`.
    pub fn bearer(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match value.and_then(|value| value.split_once(' ')) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => self.verify(token.trim()),
            Some((scheme, _)) if !scheme.eq_ignore_ascii_case("bearer") => {
                Err(unauthorized("bad_token", "the authorization scheme is not Bearer"))
            }
            _ => Err(unauthorized("missing_token", "send Authorization: Bearer <token>")),
        }
    }

    /// Who is calling by an `Authorization: Basic` header whose password is the token, for clients that know nothing else.
    /// The user name is not looked at. Bearer will do, too.
    ///
    /// # Errors
    /// 401 `missing_token`, `token_expired` or `bad_token`.
    pub fn basic(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match value.and_then(|value| value.split_once(' ')) {
            Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => {
                let password = basic_password(encoded.trim());
                let password =
                    password.ok_or_else(|| unauthorized("bad_token", "no user name and password in base64"))?;
                self.verify(&password)
            }
            None => Err(unauthorized("missing_token", "send the token as the password of Authorization: Basic")),
            Some(_) => self.bearer(headers),
        }
    }
}

fn basic_password(encoded: &str) -> Option<String> {
    let credentials = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    Some(credentials.split_once(':')?.1.to_owned())
}

fn unauthorized(code: &'static str, detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef";

    fn code(tokens: &Tokens, token: &str) -> &'static str {
        tokens.verify(token).map_or_else(|problem| problem.code, |_| "accepted")
    }

    #[test]
    fn signed_tokens_are_verified() {
        let tokens = Tokens::from_secret(SECRET).expect("long enough");
        let in_an_hour = TimestampMs::now().plus_ms(3_600_000);
        let token = tokens.sign(UserId(42), "friends:write", in_an_hour).expect("has the secret");
        let caller = tokens.verify(&token).expect("valid");
        assert_eq!(caller.user, UserId(42));
        assert!(caller.require(SCOPE_FRIENDS_WRITE).is_ok());
        assert_eq!(caller.require(SCOPE_INGEST_ANY).expect_err("not granted").code, "missing_scope");
    }

    fn signed(claims: &serde_json::Value) -> String {
        jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET)).expect("signs")
    }

    #[test]
    fn takes_what_identity_providers_write() {
        let tokens = Tokens::from_secret(SECRET).expect("long enough");
        let claims = serde_json::json!({"sub": "7", "exp": 9_999_999_999.5, "aud": "app", "iss": "us", "scope": null});
        let caller = tokens.verify(&signed(&claims)).expect("valid");
        assert_eq!((caller.user, caller.expires_at), (UserId(7), TimestampMs(9_999_999_999_500)));
    }

    #[test]
    fn refuses_other_tokens() {
        let tokens = Tokens::from_secret(SECRET).expect("long enough");
        let later = TimestampMs::now().plus_ms(3_600_000);
        let expired = tokens.sign(UserId(1), "", TimestampMs::now().plus_ms(-5_000)).expect("signs");
        let foreign = Tokens::ephemeral().sign(UserId(1), "", later).expect("signs");
        let seconds = later.0 / 1000;
        let not_a_user = signed(&serde_json::json!({"sub": "alice", "exp": seconds}));
        let not_yet = signed(&serde_json::json!({"sub": "1", "exp": seconds, "nbf": seconds}));
        let endless = signed(&serde_json::json!({"sub": "1"}));
        // {"alg":"none"} . {"sub":"1","exp":9999999999} . (no signature)
        let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIiwiZXhwIjo5OTk5OTk5OTk5fQ.";
        assert_eq!(code(&tokens, &expired), "token_expired");
        for token in [foreign.as_str(), &not_a_user, &not_yet, &endless, unsigned, "", "a.b.c"] {
            assert_eq!(code(&tokens, token), "bad_token", "{token}");
        }
        assert!(matches!(Tokens::from_secret(b"short"), Err(KeyError::ShortSecret)));
        assert!(matches!(Tokens::from_settings(&AuthSettings::default()), Err(KeyError::Missing)));
    }
}
