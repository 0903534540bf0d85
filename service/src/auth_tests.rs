//! Which tokens count, and which do not.
//!
//! The tokens and the public key of RSA were made once, with a private key that is gone: `{"sub":"7","exp":9999999999,"aud":"app"}`.

use super::*;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::jwk::Jwk;
use serde_json::Value;
use std::time::{Duration, Instant};

const SECRET: &[u8] = b"0123456789abcdef";
const RSA_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAwTYAwJA1jeknszzg88Pk
OETzzdoljeAJ6vsE8mGgmTlgPwGs0Qcenncejf077mb2TazcRRIysMr6ohthr/Rl
ZJ+M4zoT7Jd7n0l2/JV36oBIABws+ZXuVJNIrKS4JdREjs6LID8GvJaEbAeyNNhz
KFnIuCwaiG+q0ulJqqgUE+s28nXRXQVjlFCmRa5NImn/bHrgjVW+ZzW67UjIjgtu
OES5HYXOF7MdvnpfkiuDrjxZ1NjaxdyPgVUG1pYFJE7Y8nTqB4hLgS7lrmj+JS6G
+o+bw89uIsv4/JKnIuWCFLPdf5+02cWUU+fMhKBqkzWe+yl1/oh8HRwWe3qxReb9
+wIDAQAB
-----END PUBLIC KEY-----
";
/// 1024 bits.
const WEAK_PEM: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCmiFZn2dg36iRsC/YTUQQ8xGqL
DTTFtpf2iWzxkMzfvfnbh0mta4VbwWJAa2fFMR6shCeB5obPyFeQ51XfWy3UVpY0
npWUv+QvWj4TxrzUyXuLFDkRSIEL8lmlpdLi3FbADyyIvwieeiADur/orvvjMQd1
gZ89hla3vF9bkTxnaQIDAQAB
-----END PUBLIC KEY-----
";
/// Of the same key.
const RSA_MODULUS: &str = "\
    wTYAwJA1jeknszzg88PkOETzzdoljeAJ6vsE8mGgmTlgPwGs0Qcenncejf077mb2TazcRRIysMr6ohthr_RlZJ-M4zoT7Jd7n0l2_JV36oBIAB\
    ws-ZXuVJNIrKS4JdREjs6LID8GvJaEbAeyNNhzKFnIuCwaiG-q0ulJqqgUE-s28nXRXQVjlFCmRa5NImn_bHrgjVW-ZzW67UjIjgtuOES5HYXO\
    F7MdvnpfkiuDrjxZ1NjaxdyPgVUG1pYFJE7Y8nTqB4hLgS7lrmj-JS6G-o-bw89uIsv4_JKnIuWCFLPdf5-02cWUU-fMhKBqkzWe-yl1_oh8HR\
    wWe3qxReb9-w";
/// `{"alg":"RS256","kid":"rsa-1"}`
const RS256_NAMED: &str = "\
    eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYS0xIn0.eyJzdWIiOiI3IiwiZXhwIjo5OTk5OTk5OTk5LCJhdWQiOiJhcHAifQ.t58lPkGrJVj9y-A\
    h2mvce2Np9BdWUm7RtaeoWFZwD6ERjO3Q63XWNe4Efdi0gCiEO-0Uzq67JB4Y9Lu3Kwg-edgTgiv2b3RS4b5OKmT2WjJPKoimUdDD_bi7E6QU7\
    MnT3qxzCjVjnvJZlu6pvnak-mbRkn8H_z5JcVXOxMOb1glUvVLsZoHk019LiN3RMEPMwj7rbGMyAG3MBCAWUM6j9jB063lekygg-ZnJwz9Psig\
    sTNE-Xw_D36fqWf2VDwiA6yHraLgk7UCu5MppbbG5mq_CmEq51x6g707vb0-Chkzk12mZJ3G4A1252xsKiWUn5Gqy_uQqwNWjKbrPwFaOBg";
/// `{"alg":"RS256"}`
const RS256: &str = "\
    eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiI3IiwiZXhwIjo5OTk5OTk5OTk5LCJhdWQiOiJhcHAifQ.ulR5lFBwa9KgDuGPKjjK7a24MG803fstow\
    L-gfDdv4qwbvaNjjvFeH1PYSJvyEI5Bb8jcEkNglIp-Z8YzJe1Uw4kYQEbrtiMFbIGhF-NKLxPR2MQgHFeNlsS4RvAZT5igGeRILPOjoSsE-Qb\
    Nc0e2sVEGTbcArvc9hBPb8iJABIjhU9vjFRn8put3FuQkH2Bm5UQY7stj8RWRh88nT6HDXHQr0MvnoX2usTB8H_XPZP9DioMxjoUPPTCCW6QUU\
    hMTCEKolCozIlnSQfn3QYcaY93Vhe2E_OWJjE0vky81UyJf_OXMa7p00MqR_HApGH5IGvA9JyReweHpOLV4PiCNA";
/// `{"alg":"PS256","kid":"rsa-1"}`
const PS256_NAMED: &str = "\
    eyJhbGciOiJQUzI1NiIsImtpZCI6InJzYS0xIn0.eyJzdWIiOiI3IiwiZXhwIjo5OTk5OTk5OTk5LCJhdWQiOiJhcHAifQ.WmqxKoHCnVqR7QW\
    M8VAe4-IJV1Qyh1nFUNiAkoBqW4bSOYMMf1ITaE9nwpo7XLqh4y2UFKp6jM_Fa1pPfuEVfi2z-b0yFvZXL8ufwvuBsiQClSBe0NfwPYTqGWUuX\
    hzmrwiy0F8_UV2-lKWmKXazKDOGm6rUwSVUJVhvTX1iMp9twwlOwUbfDWs_VoMcVq7RpwIOXmhGSGeKhse-UJAoBLq7A9d0auKKqkXXuPNLVXg\
    rhUjXMX0tTIrwqawC_fMj7DMGDKhbbfb0SipJDmIbrxd-TN6NasoFu1Yv-yke3hgnRIXC3hqppIh-fpJ47mwJ8BX4GViMMnh97li92Hvimw";

/// An issuer with an Ed25519 key of its own.
struct Issuer(EncodingKey);

impl Issuer {
    fn new(seed: u8) -> Issuer {
        // PKCS #8 around the 32 bytes of the seed.
        let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        Issuer(EncodingKey::from_ed_der(&[&head[..], &[seed; 32]].concat()))
    }

    fn jwk(&self, id: &str) -> Value {
        let jwk = Jwk::from_encoding_key(&self.0, Algorithm::EdDSA).expect("a key");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = id.into();
        jwk["use"] = "sig".into();
        jwk
    }

    fn pem(&self) -> String {
        let x = URL_SAFE_NO_PAD.decode(self.jwk("")["x"].as_str().expect("a key")).expect("base64");
        let head = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
        let der = STANDARD.encode([&head[..], &x].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
    }

    fn token(&self, id: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: id.map(str::to_owned), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, claims, &self.0).expect("signs")
    }
}

fn code(tokens: &Tokens, token: &str) -> &'static str {
    tokens.verify(token).map_or_else(|problem| problem.code, |_| "accepted")
}

fn from(kind: Kind, bytes: impl AsRef<[u8]>, demands: SigningSettings) -> Result<Tokens, crate::keys::Unusable> {
    Keys::from_file(kind, bytes.as_ref(), &demands).map(|keys| Tokens::new(keys, demands))
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn rsa_jwk() -> Value {
    json!({"kty": "RSA", "kid": "rsa-1", "alg": "RS256", "use": "sig", "n": RSA_MODULUS, "e": "AQAB"})
}

fn claims() -> Value {
    json!({"sub": "7", "exp": seconds_from_now(3600)})
}

fn seconds_from_now(seconds: i64) -> i64 {
    TimestampMs::now().0 / 1000 + seconds
}

fn hs256(secret: &[u8], claims: &Value) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(secret)).expect("signs")
}

/// A token by hand: its header, its claims, and any signature.
fn raw(header: &str, claims: &Value, signature: &str) -> String {
    let encode = |part: &str| URL_SAFE_NO_PAD.encode(part);
    format!("{}.{}.{signature}", encode(header), encode(&claims.to_string()))
}

#[test]
fn signed_tokens_are_verified() {
    let tokens = Tokens::from_secret(SECRET).expect("long enough");
    let in_an_hour = TimestampMs::now().plus_ms(3_600_000);
    let token = tokens.sign(UserId(42), "friends:write", in_an_hour).expect("has the secret");
    let caller = tokens.verify(&token).expect("valid");
    assert_eq!(caller.user, UserId(42));
    assert!(caller.require(SCOPE_FRIENDS_WRITE).is_ok());
    let refused = caller.require(SCOPE_INGEST_ANY).expect_err("not granted");
    assert_eq!((refused.status, refused.code), (StatusCode::FORBIDDEN, "missing_scope"));
}

#[test]
fn takes_what_identity_providers_write() {
    let tokens = Tokens::from_secret(SECRET).expect("long enough");
    let claims = json!({"sub": "7", "exp": 9_999_999_999.5, "aud": ["app", "web"], "iss": "us", "scope": null});
    let caller = tokens.verify(&hs256(SECRET, &claims)).expect("valid");
    assert_eq!((caller.user, caller.expires_at), (UserId(7), TimestampMs(9_999_999_999_500)));
    for scope in ["friends:writer", "xfriends:write", "FRIENDS:WRITE", "friends:write,ingest:any", ""] {
        let caller = tokens.verify(&hs256(SECRET, &json!({"sub": "7", "exp": 9e9, "scope": scope}))).expect("valid");
        assert!(caller.require(SCOPE_FRIENDS_WRITE).is_err(), "{scope}");
    }
}

#[test]
fn refuses_what_a_secret_did_not_sign_or_what_says_too_little() {
    let tokens = Tokens::from_secret(SECRET).expect("long enough");
    let exp = seconds_from_now(3600);
    let hs512 = jsonwebtoken::encode(&Header::new(Algorithm::HS512), &claims(), &EncodingKey::from_secret(SECRET));
    let good = hs256(SECRET, &claims());
    assert_eq!(code(&tokens, &good), "accepted");
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let other = raw(r#"{"alg":"HS256"}"#, &json!({"sub": "8", "exp": exp}), signature);
    let critical = Header { crit: Some(vec!["x".to_owned()]), ..Header::default() };
    let critical = jsonwebtoken::encode(&critical, &claims(), &EncodingKey::from_secret(SECRET)).expect("signs");
    for (what, token, expected) in [
        ("expired", hs256(SECRET, &json!({"sub": "7", "exp": seconds_from_now(-1)})), "token_expired"),
        ("expired long ago", hs256(SECRET, &json!({"sub": "7", "exp": 0})), "token_expired"),
        ("no exp", hs256(SECRET, &json!({"sub": "7"})), "bad_token"),
        ("exp is null", hs256(SECRET, &json!({"sub": "7", "exp": null})), "bad_token"),
        ("exp is text", hs256(SECRET, &json!({"sub": "7", "exp": "9999999999"})), "bad_token"),
        ("nbf to come", hs256(SECRET, &json!({"sub": "7", "exp": exp, "nbf": exp - 1})), "bad_token"),
        ("no sub", hs256(SECRET, &json!({"exp": exp})), "bad_token"),
        ("sub is no id", hs256(SECRET, &json!({"sub": "alice", "exp": exp})), "bad_token"),
        ("sub has a zero in front", hs256(SECRET, &json!({"sub": "07", "exp": exp})), "bad_token"),
        ("sub is a number", hs256(SECRET, &json!({"sub": 7, "exp": exp})), "bad_token"),
        ("wrong secret", hs256(b"fedcba9876543210", &claims()), "bad_token"),
        ("another algorithm", hs512.expect("signs"), "bad_token"),
        ("other claims", other, "bad_token"),
        ("no signature", format!("{signed}."), "bad_token"),
        ("none", raw(r#"{"alg":"none"}"#, &claims(), ""), "bad_token"),
        ("None, with a signature", raw(r#"{"alg":"None"}"#, &claims(), signature), "bad_token"),
        ("no algorithm", raw("{}", &claims(), signature), "bad_token"),
        ("something to understand", critical, "bad_token"),
        ("nothing", String::new(), "bad_token"),
        ("no parts", "x".to_owned(), "bad_token"),
        ("three parts", "a.b.c".to_owned(), "bad_token"),
        ("four parts", format!("{good}.x"), "bad_token"),
    ] {
        assert_eq!(code(&tokens, &token), expected, "{what}: {token}");
    }
    assert!(matches!(Tokens::from_secret(b"short"), Err(KeyError::ShortSecret)));
    assert!(matches!(Tokens::from_settings(&AuthSettings::default()), Err(KeyError::Missing)));
}

#[test]
fn a_public_key_verifies_its_own_algorithm_alone() {
    let (issuer, stranger) = (Issuer::new(1), Issuer::new(2));
    let tokens = from(Kind::PublicKey, issuer.pem(), SigningSettings::default()).expect("a key");
    assert_eq!(code(&tokens, &issuer.token(None, &claims())), "accepted");
    assert_eq!(code(&tokens, &issuer.token(Some("any"), &claims())), "accepted", "one key needs no name");
    let brings_its_key = Header {
        jwk: Some(serde_json::from_value(stranger.jwk("1")).expect("a JWK")),
        jku: Some("http://127.0.0.1/keys".to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    let brings_its_key = jsonwebtoken::encode(&brings_its_key, &claims(), &stranger.0).expect("signs");
    let x = issuer.jwk("")["x"].as_str().expect("a key").to_owned();
    for (what, token) in [
        ("another key", stranger.token(None, &claims())),
        ("a key in the token", brings_its_key),
        ("the file as a secret", hs256(issuer.pem().as_bytes(), &claims())),
        ("the file without its last line break", hs256(issuer.pem().trim_end().as_bytes(), &claims())),
        ("the key as a secret", hs256(x.as_bytes(), &claims())),
        ("the key's bytes as a secret", hs256(&URL_SAFE_NO_PAD.decode(&x).expect("base64"), &claims())),
        ("another algorithm", RS256.to_owned()),
        ("none", raw(r#"{"alg":"none"}"#, &claims(), "")),
    ] {
        assert_eq!(code(&tokens, &token), "bad_token", "{what}");
    }
    assert!(matches!(tokens.sign(UserId(1), "", TimestampMs(9)), Err(KeyError::CannotSign)));

    let rsa = from(Kind::PublicKey, RSA_PEM, SigningSettings::default()).expect("a key");
    assert_eq!(code(&rsa, RS256), "accepted");
    assert_eq!(code(&rsa, PS256_NAMED), "bad_token", "signed with the key, by another algorithm");
    assert_eq!(code(&rsa, &hs256(RSA_PEM.as_bytes(), &claims())), "bad_token");
    assert_eq!(code(&rsa, &issuer.token(None, &claims())), "bad_token");
}

#[test]
fn a_token_names_its_key_in_a_set() {
    let (first, second, stranger) = (Issuer::new(1), Issuer::new(2), Issuer::new(3));
    let oct = json!({"kty": "oct", "kid": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(SECRET)});
    let ec = json!({"kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA"});
    let mut for_encryption = stranger.jwk("enc");
    for_encryption["use"] = "enc".into();
    let keys = [first.jwk("a"), second.jwk("b"), rsa_jwk(), oct, ec, json!({"kty": "new"}), json!(7), for_encryption];
    let tokens = from(Kind::KeySet, set(&keys), SigningSettings::default()).expect("keys");
    for (what, token, expected) in [
        ("the first", first.token(Some("a"), &claims()), "accepted"),
        ("the second", second.token(Some("b"), &claims()), "accepted"),
        ("RSA", RS256_NAMED.to_owned(), "accepted"),
        ("under the name of another", first.token(Some("b"), &claims()), "bad_token"),
        ("an unknown name", first.token(Some("c"), &claims()), "bad_token"),
        ("no name, of several", first.token(None, &claims()), "bad_token"),
        ("RSA without a name", RS256.to_owned(), "bad_token"),
        ("RSA by another algorithm", PS256_NAMED.to_owned(), "bad_token"),
        ("a key for encryption", stranger.token(Some("enc"), &claims()), "bad_token"),
    ] {
        assert_eq!(code(&tokens, &token), expected, "{what}");
    }
    let shared = Header { kid: Some("oct".to_owned()), ..Header::default() };
    let shared = jsonwebtoken::encode(&shared, &claims(), &EncodingKey::from_secret(SECRET)).expect("signs");
    assert_eq!(code(&tokens, &shared), "bad_token", "no secret is taken out of a file of public keys");
    let confused = Header { kid: Some("rsa-1".to_owned()), ..Header::default() };
    let confused = jsonwebtoken::encode(&confused, &claims(), &EncodingKey::from_secret(RSA_PEM.as_bytes()));
    assert_eq!(code(&tokens, &confused.expect("signs")), "bad_token");

    let alone = from(Kind::KeySet, set(&[first.jwk("a")]), SigningSettings::default()).expect("a key");
    assert_eq!(code(&alone, &first.token(None, &claims())), "accepted", "there is only one that it can mean");
    assert_eq!(code(&alone, &first.token(Some("b"), &claims())), "bad_token");
}

#[test]
fn files_without_a_usable_key_are_refused() {
    let short_x = json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"});
    let weak = json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"});
    let mut private = Issuer::new(1).jwk("a");
    private["d"] = "AAAA".into();
    for (kind, bytes, expected) in [
        (Kind::Secret, "short\n\n\n\n\n\n\n\n\n\n\n\n".to_owned(), "the secret is shorter than 16 bytes"),
        (Kind::PublicKey, "no key".to_owned(), "neither an RSA nor an Ed25519 public key in PEM"),
        (Kind::PublicKey, WEAK_PEM.to_owned(), "an RSA key of less than 2048 bits"),
        (
            Kind::PublicKey,
            Issuer::new(1).pem().replace("PUBLIC", "PRIVATE"),
            "a private key: only the issuer of tokens should have it",
        ),
        (Kind::KeySet, String::new(), "not a JSON Web Key Set: EOF while parsing a value at line 1 column 0"),
        (Kind::KeySet, "[]".to_owned(), "not a JSON Web Key Set: it has no array `keys`"),
        (Kind::KeySet, set(&[private]), "a private key: only the issuer of tokens should have it"),
        (
            Kind::KeySet,
            set(&[short_x, weak]),
            "a JSON Web Key Set without a usable key: RSA (RS256) or OKP (Ed25519), for signatures",
        ),
    ] {
        let refused = from(kind, bytes, SigningSettings::default()).err().expect("no usable key");
        assert_eq!(refused.to_string(), expected);
    }
}

#[test]
fn tokens_are_for_this_audience_and_of_this_issuer() {
    let demands = SigningSettings {
        jwt_secret: Some("0123456789abcdef".to_owned()),
        jwt_audience: Some("app".to_owned()),
        jwt_issuer: Some("us".to_owned()),
    };
    let tokens = Tokens::from_signing(&demands).expect("long enough").expect("a secret");
    let with = |more: Value| {
        let mut claims = claims();
        claims.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        hs256(SECRET, &claims)
    };
    for (token, expected) in [
        (with(json!({"aud": "app", "iss": "us"})), "accepted"),
        (with(json!({"aud": ["web", "app"], "iss": "us"})), "accepted"),
        (with(json!({"aud": "App", "iss": "us"})), "bad_token"),
        (with(json!({"aud": ["web"], "iss": "us"})), "bad_token"),
        (with(json!({"aud": [], "iss": "us"})), "bad_token"),
        (with(json!({"aud": null, "iss": "us"})), "bad_token"),
        (with(json!({"aud": {"app": 1}, "iss": "us"})), "bad_token"),
        (with(json!({"iss": "us"})), "bad_token"),
        (with(json!({"aud": "app"})), "bad_token"),
        (with(json!({"aud": "app", "iss": "them"})), "bad_token"),
        (with(json!({"aud": "app", "iss": ["us2"]})), "bad_token"),
    ] {
        assert_eq!(code(&tokens, &token), expected, "{token}");
    }
    let own = tokens.sign(UserId(7), "", TimestampMs::now().plus_ms(60_000)).expect("has the secret");
    assert_eq!(code(&tokens, &own), "accepted", "what it signs, it accepts");
    assert!(!format!("{demands:?}").contains("0123456789abcdef"));
}

#[test]
fn a_file_is_read_again_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    let (old, new) = (Issuer::new(1), Issuer::new(2));
    let write = |text: &str| {
        // As an orchestrator does: all at once, by a new name.
        let next = folder.path().join("next");
        std::fs::write(&next, text).and_then(|()| std::fs::rename(&next, &file)).expect("writes");
    };
    write(&set(&[old.jwk("old")]));
    let settings = AuthSettings { jwks_file: Some(file.clone()), ..AuthSettings::default() };
    let tokens = Tokens::from_settings(&settings).expect("a key");
    let (by_old, by_new) = (old.token(Some("old"), &claims()), new.token(Some("new"), &claims()));
    let both = |tokens: &Tokens| (code(tokens, &by_old), code(tokens, &by_new));
    assert_eq!(both(&tokens), ("accepted", "bad_token"));
    let becomes = |expected| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while both(&tokens) != expected {
            assert!(Instant::now() < deadline, "{:?} is not {expected:?}", both(&tokens));
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    write(&set(&[old.jwk("old"), new.jwk("new")]));
    becomes(("accepted", "accepted"));
    write("{\"keys\":[");
    std::thread::sleep(2 * watched::CHECK_INTERVAL);
    assert_eq!(both(&tokens), ("accepted", "accepted"), "what was read before stays");
    std::fs::remove_file(&file).expect("removes");
    std::thread::sleep(2 * watched::CHECK_INTERVAL);
    assert_eq!(both(&tokens), ("accepted", "accepted"), "also when there is no file");
    write(&set(&[new.jwk("new")]));
    becomes(("bad_token", "accepted"));

    std::fs::remove_file(&file).expect("removes");
    let missing = Tokens::from_settings(&settings).err().expect("no file").to_string();
    assert!(missing.starts_with("--jwks-file /") && missing.contains("keys.json: No such file"), "{missing}");
}

#[test]
fn a_password_may_be_a_token() {
    let tokens = Tokens::from_secret(SECRET).expect("long enough");
    let token = hs256(SECRET, &claims());
    let called = |value: &str| {
        let mut headers = HeaderMap::new();
        if !value.is_empty() {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).expect("a header"));
        }
        tokens.basic(&headers).map_or_else(|problem| problem.code, |_| "accepted")
    };
    let basic = |credentials: &str| format!("Basic {}", STANDARD.encode(credentials));
    for (value, expected) in [
        (basic(&format!("phone:{token}")), "accepted"),
        (basic(&format!(":{token}")), "accepted"),
        (basic(&format!("phone:{token}")).replace("Basic", "bASIC"), "accepted"),
        (format!("Bearer {token}"), "accepted"),
        (basic(&token), "bad_token"),
        (basic("phone:secret"), "bad_token"),
        ("Basic ?".to_owned(), "bad_token"),
        (format!("Digest {token}"), "bad_token"),
        (String::new(), "missing_token"),
    ] {
        assert_eq!(called(&value), expected, "{value}");
    }
}
