//! Tokens: who is calling, and what they may do beyond their own affairs.

use crate::keys::{Keys, Kind};
use crate::problem::Problem;
use crate::settings::{AuthSettings, SigningSettings};
use crate::watched;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, header};
use jsonwebtoken::{Algorithm, Header};
use nearby_schemas::{TimestampMs, UserId};
use serde::Deserialize;
use serde_json::json;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

/// May replace anybody's friend list.
pub const SCOPE_FRIENDS_WRITE: &str = "friends:write";
/// May report for anybody.
pub const SCOPE_INGEST_ANY: &str = "ingest:any";
/// Every scope there is.
pub const SCOPES_ALL: &str = "friends:write ingest:any";

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

#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Seconds; a fraction is allowed (RFC 7519, NumericDate).
    exp: f64,
    #[serde(default)]
    scope: Option<String>,
}

/// Verifies tokens, and signs them when it has the secret. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    shared: Arc<Shared>,
}

struct Shared {
    keys: RwLock<Arc<Keys>>,
    demands: SigningSettings,
}

/// The settings do not make a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Neither a secret nor a public key.
    #[error(
        "set NEARBY_JWT_SECRET (HS256), --jwt-public-key-file or --jwks-file (RS256, EdDSA): without a key no token can be verified"
    )]
    Missing,
    /// The secret can be guessed.
    #[error("NEARBY_JWT_SECRET is shorter than 16 bytes")]
    ShortSecret,
    /// The file cannot be read, or there is no key in it.
    #[error("{option} {reason}")]
    File {
        /// By which it was given.
        option: &'static str,
        /// Which file, and why.
        reason: String,
    },
    /// A public key signs nothing.
    #[error("signing tokens needs NEARBY_JWT_SECRET")]
    CannotSign,
}

impl Tokens {
    /// From the settings. Files are read again when they change, for as long as a clone lives.
    ///
    /// # Errors
    /// When there is no usable key.
    pub fn from_settings(settings: &AuthSettings) -> Result<Tokens, KeyError> {
        let files = [
            ("--jwt-secret-file", Kind::Secret, &settings.jwt_secret_file),
            ("--jwt-public-key-file", Kind::PublicKey, &settings.jwt_public_key_file),
            ("--jwks-file", Kind::KeySet, &settings.jwks_file),
        ];
        for (option, kind, file) in files {
            if let Some(file) = file {
                return Tokens::from_file(kind, file, settings.signing.clone())
                    .map_err(|reason| KeyError::File { option, reason });
            }
        }
        Tokens::from_signing(&settings.signing)?.ok_or(KeyError::Missing)
    }

    /// With the shared secret, if there is one that is not empty.
    ///
    /// # Errors
    /// If it is shorter than 16 bytes.
    pub fn from_signing(settings: &SigningSettings) -> Result<Option<Tokens>, KeyError> {
        let Some(secret) = settings.jwt_secret.as_deref().filter(|secret| !secret.is_empty()) else { return Ok(None) };
        let keys = Keys::from_secret(secret.as_bytes(), settings).map_err(|_| KeyError::ShortSecret)?;
        Ok(Some(Tokens::new(keys, settings.clone())))
    }

    /// HS256 with a secret.
    ///
    /// # Errors
    /// If it is shorter than 16 bytes.
    pub fn from_secret(secret: &[u8]) -> Result<Tokens, KeyError> {
        let demands = SigningSettings::default();
        let keys = Keys::from_secret(secret, &demands).map_err(|_| KeyError::ShortSecret)?;
        Ok(Tokens::new(keys, demands))
    }

    /// HS256 with a secret that nobody else knows: such tokens end with the process.
    pub fn ephemeral(settings: &SigningSettings) -> Tokens {
        let secret: [u8; 32] = rand::random();
        let keys = Keys::from_secret(&secret, settings).expect("32 bytes are long enough");
        Tokens::new(keys, settings.clone())
    }

    fn from_file(kind: Kind, file: &Path, demands: SigningSettings) -> Result<Tokens, String> {
        let files = vec![file.to_owned()];
        let held = watched::read(&files)?;
        let load = move |contents: &[Vec<u8>], demands: &SigningSettings| {
            let bytes = contents.first().map(Vec::as_slice).unwrap_or_default();
            Keys::from_file(kind, bytes, demands)
        };
        let keys = load(&held, &demands).map_err(|error| format!("{}: {error}", file.display()))?;
        let tokens = Tokens::new(keys, demands);
        let take = move |shared: &Shared, contents: &[Vec<u8>]| {
            let keys = load(contents, &shared.demands).map_err(|error| error.to_string())?;
            *shared.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            Ok(())
        };
        let watching = watched::watch("token keys", files, held, Arc::downgrade(&tokens.shared), take);
        watching.map_err(|error| format!("starting a thread: {error}"))?;
        Ok(tokens)
    }

    fn new(keys: Keys, demands: SigningSettings) -> Tokens {
        Tokens { shared: Arc::new(Shared { keys: RwLock::new(Arc::new(keys)), demands }) }
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.shared.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A token for `user`, for the audience and by the issuer that are demanded.
    ///
    /// # Errors
    /// [`KeyError::CannotSign`] with a public key.
    pub fn sign(&self, user: UserId, scopes: &str, expires_at: TimestampMs) -> Result<String, KeyError> {
        let keys = self.keys();
        let encoding = keys.signing().ok_or(KeyError::CannotSign)?;
        let mut claims = json!({ "sub": user.to_string(), "exp": expires_at.0 / 1000 });
        let SigningSettings { jwt_audience, jwt_issuer, .. } = &self.shared.demands;
        let scopes = (!scopes.is_empty()).then_some(scopes);
        for (claim, value) in [("scope", scopes), ("aud", jwt_audience.as_deref()), ("iss", jwt_issuer.as_deref())] {
            if let Some(value) = value {
                claims[claim] = value.into();
            }
        }
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, encoding).map_err(|_| KeyError::CannotSign)
    }

    /// Who holds the token.
    ///
    /// # Errors
    /// 401 `token_expired` or `bad_token`.
    pub fn verify(&self, token: &str) -> Result<Caller, Problem> {
        use jsonwebtoken::errors::ErrorKind;
        let bad = |detail| unauthorized("bad_token", detail);
        let header = jsonwebtoken::decode_header(token).map_err(|_| bad("the token is not valid here"))?;
        let keys = self.keys();
        let (key, validation) = keys.verifying(&header).ok_or_else(|| bad("no key here verifies such a token"))?;
        let decoded = jsonwebtoken::decode::<Claims>(token, key, validation);
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => unauthorized("token_expired", "the token has expired"),
            ErrorKind::InvalidAudience => bad("the token is for another audience"),
            ErrorKind::InvalidIssuer => bad("the token is of another issuer"),
            _ => bad("the token is not valid here"),
        })?;
        let user = claims.claims.sub.parse();
        let user = user.map_err(|_| bad("the token's sub is not a user id"))?;
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
#[path = "auth_tests.rs"]
mod tests;
