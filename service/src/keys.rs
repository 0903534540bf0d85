//! Keys that tokens are verified with: a secret, a public key, or a set of public keys.
//!
//! Every key has one algorithm, its own, and a token's `alg` has to be that of the key. So a public key is never taken for an
//! HMAC secret, and `none` is no algorithm. Keys that a token brings along (`jwk`, `jku`, `x5c`) are not looked at.

use crate::settings::SigningSettings;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::Value;

/// Shorter secrets can be guessed from one token.
const SECRET_BYTES_MIN: usize = 16;
/// 2048 bits: smaller RSA keys have been factored, or soon will be.
const RSA_MODULUS_BYTES_MIN: usize = 256;
const ED25519_BYTES: usize = 32;

/// What a key file has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A secret.
    Secret,
    /// A public key in PEM.
    PublicKey,
    /// A JSON Web Key Set.
    KeySet,
}

/// Bytes are no keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The secret can be guessed.
    #[error("the secret is shorter than 16 bytes")]
    ShortSecret,
    /// Not PEM, or another kind of key.
    #[error("neither an RSA nor an Ed25519 public key in PEM")]
    NotAPublicKey,
    /// It should not be here at all.
    #[error("a private key: only the issuer of tokens should have it")]
    Private,
    /// Below 2048 bits.
    #[error("an RSA key of less than 2048 bits")]
    WeakRsa,
    /// Not JSON, or something else.
    #[error("not a JSON Web Key Set: {0}")]
    NotAKeySet(String),
    /// None that could verify a token.
    #[error("a JSON Web Key Set without a usable key: RSA (RS256) or OKP (Ed25519), for signatures")]
    NoUsableKey,
}

/// One key, and what it demands of a token.
struct Key {
    /// In a set: the `kid` of tokens that it verifies.
    id: Option<String>,
    algorithm: Algorithm,
    decoding: DecodingKey,
    validation: Validation,
}

/// The keys that count now.
pub struct Keys {
    keys: Vec<Key>,
    encoding: Option<EncodingKey>,
}

impl Keys {
    /// HS256 with a secret.
    ///
    /// # Errors
    /// If it is shorter than 16 bytes.
    pub fn from_secret(secret: &[u8], demands: &SigningSettings) -> Result<Keys, Unusable> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(Unusable::ShortSecret);
        }
        let key = Key::new(None, Algorithm::HS256, DecodingKey::from_secret(secret), demands);
        Ok(Keys { keys: vec![key], encoding: Some(EncodingKey::from_secret(secret)) })
    }

    /// Out of a file of this kind.
    ///
    /// # Errors
    /// If there is no usable key in it.
    pub fn from_file(kind: Kind, bytes: &[u8], demands: &SigningSettings) -> Result<Keys, Unusable> {
        match kind {
            // Editors end a file with a line break.
            Kind::Secret => Keys::from_secret(bytes.trim_ascii_end(), demands),
            Kind::PublicKey => {
                let (algorithm, decoding) = public_key(bytes)?;
                Ok(Keys { keys: vec![Key::new(None, algorithm, decoding, demands)], encoding: None })
            }
            Kind::KeySet => Ok(Keys { keys: key_set(bytes, demands)?, encoding: None }),
        }
    }

    /// What verifies a token with this header, if anything does. In a set the key is the one that the token names; it may name
    /// none if there is only one.
    pub fn verifying(&self, header: &Header) -> Option<(&DecodingKey, &Validation)> {
        let names = |key: &&Key| match (&key.id, &header.kid) {
            (None, _) => self.keys.len() == 1,
            (Some(_), None) => self.keys.len() == 1,
            (Some(id), Some(named)) => id == named,
        };
        // A header that says what must be understood says nothing that is understood here (RFC 7515, 4.1.11).
        let understood = header.crit.is_none();
        let key = self.keys.iter().filter(names).find(|key| understood && key.algorithm == header.alg)?;
        Some((&key.decoding, &key.validation))
    }

    /// What signs tokens: the secret, if there is one.
    pub fn signing(&self) -> Option<&EncodingKey> {
        self.encoding.as_ref()
    }
}

impl Key {
    fn new(id: Option<String>, algorithm: Algorithm, decoding: DecodingKey, demands: &SigningSettings) -> Key {
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.validate_nbf = true;
        // Whose tokens count and for whom they are is the operator's affair; unless told, only key and subject are looked at.
        validation.validate_aud = demands.jwt_audience.is_some();
        let mut required = vec!["exp", "sub"];
        if let Some(audience) = &demands.jwt_audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &demands.jwt_issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        Key { id, algorithm, decoding, validation }
    }
}

fn public_key(pem: &[u8]) -> Result<(Algorithm, DecodingKey), Unusable> {
    if String::from_utf8_lossy(pem).contains("PRIVATE KEY") {
        return Err(Unusable::Private);
    }
    if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
        // The key's DER is its modulus and a few bytes more.
        let long = key.try_get_as_bytes().is_ok_and(|der| der.len() > RSA_MODULUS_BYTES_MIN);
        return if long { Ok((Algorithm::RS256, key)) } else { Err(Unusable::WeakRsa) };
    }
    let key = DecodingKey::from_ed_pem(pem).map_err(|_| Unusable::NotAPublicKey)?;
    let whole = key.try_get_as_bytes().is_ok_and(|x| x.len() == ED25519_BYTES);
    if whole { Ok((Algorithm::EdDSA, key)) } else { Err(Unusable::NotAPublicKey) }
}

/// Keys of other kinds are left out: a provider may publish them for others.
fn key_set(bytes: &[u8], demands: &SigningSettings) -> Result<Vec<Key>, Unusable> {
    let set: Value = serde_json::from_slice(bytes).map_err(|error| Unusable::NotAKeySet(error.to_string()))?;
    let members = set.get("keys").and_then(Value::as_array);
    let members = members.ok_or_else(|| Unusable::NotAKeySet("it has no array `keys`".to_owned()))?;
    if members.iter().any(|member| member.get("d").is_some()) {
        return Err(Unusable::Private);
    }
    let usable = |member: &Value| {
        let jwk: Jwk = serde_json::from_value(member.clone()).ok()?;
        let (algorithm, decoding) = usable(&jwk)?;
        Some(Key::new(jwk.common.key_id, algorithm, decoding, demands))
    };
    let keys: Vec<Key> = members.iter().filter_map(usable).collect();
    if keys.is_empty() { Err(Unusable::NoUsableKey) } else { Ok(keys) }
}

fn usable(jwk: &Jwk) -> Option<(Algorithm, DecodingKey)> {
    if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
        return None;
    }
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        // A secret in a file of public keys would be none.
        _ => return None,
    };
    if jwk.common.key_algorithm.is_some_and(|other| other != named) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let sound = match key.kind() {
        jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => n.len() >= RSA_MODULUS_BYTES_MIN,
        jsonwebtoken::DecodingKeyKind::SecretOrDer(x) => x.len() == ED25519_BYTES,
    };
    sound.then_some((algorithm, key))
}
