//! `nearby run` with TLS of its own and the key set of an identity provider: clients by HTTPS and WSS, and new keys and
//! certificates without a restart.

use anyhow::{Context, bail, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::{SinkExt, StreamExt};
use nearby_e2e::nearby::{Nearby, run};
use nearby_e2e::ports;
use nearby_e2e::process::Home;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
use tokio_tungstenite::{WebSocketStream, client_async};

/// The first start on a machine downloads Postgres.
const READY: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_secs(20);
const AUDIENCE: &str = "nearby-app";

/// An identity provider with an Ed25519 key.
struct Provider {
    key: PathBuf,
    id: &'static str,
}

impl Provider {
    fn new(folder: &Path, id: &'static str) -> anyhow::Result<Provider> {
        let key = folder.join(format!("{id}.pem"));
        openssl(folder, &["genpkey", "-algorithm", "ed25519", "-out", text(&key)?])?;
        Ok(Provider { key, id })
    }

    fn jwk(&self) -> anyhow::Result<Value> {
        let der = openssl(Path::new("/"), &["pkey", "-in", text(&self.key)?, "-pubout", "-outform", "DER"])?;
        let x = URL_SAFE_NO_PAD.encode(der.last_chunk::<32>().context("32 bytes of key")?);
        Ok(json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": self.id, "x": x}))
    }

    fn token(&self, user: i64, valid_s: i64) -> anyhow::Result<String> {
        let encode = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        let exp = i64::try_from(now)? + valid_s;
        let signed = format!(
            "{}.{}",
            encode(json!({"alg": "EdDSA", "kid": self.id})),
            encode(json!({"sub": user.to_string(), "aud": AUDIENCE, "exp": exp}))
        );
        let message = self.key.with_extension("message");
        fs::write(&message, &signed)?;
        let signing = ["pkeyutl", "-sign", "-rawin", "-inkey", text(&self.key)?, "-in", text(&message)?];
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(openssl(Path::new("/"), &signing)?)))
    }
}

fn openssl(folder: &Path, args: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = Command::new("openssl").args(args).current_dir(folder).output().context("run openssl")?;
    ensure!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is text")
}

/// A certificate for 127.0.0.1 that vouches for itself, into `certificate.pem` and `key.pem`.
fn make_certificate(folder: &Path, name: &str) -> anyhow::Result<()> {
    let subject = format!("/CN={name}");
    let key = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    let names = ["-subj", &subject, "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"];
    let files = ["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "certificate.pem"];
    openssl(folder, &[&key[..], &names, &files].concat()).map(drop)
}

/// As any client would: status and body.
fn curl(certificate: &Path, args: &[&str]) -> anyhow::Result<(String, String)> {
    let common = ["--silent", "--show-error", "--max-time", "15", "--write-out", "\n%{http_code}", "--cacert"];
    let output = Command::new("curl").args(common).arg(certificate).args(args).output().context("run curl")?;
    ensure!(output.status.success(), "curl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout)?;
    let (body, status) = said.rsplit_once('\n').context("a status")?;
    Ok((status.to_owned(), body.to_owned()))
}

type Secure = WebSocketStream<TlsStream<TcpStream>>;

async fn connect(url: &str, certificate: &Path, token: &str) -> anyhow::Result<Secure> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let address = url.strip_prefix("wss://").and_then(|rest| rest.split('/').next()).context("a wss address")?;
    let socket = TcpStream::connect(address).await?;
    let name = "127.0.0.1".try_into()?;
    let socket = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    let mut request = url.into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
    Ok(client_async(request, socket).await?.0)
}

/// The next frame of this type, or the code and reason of the close.
async fn frame(socket: &mut Secure, kind: &str) -> anyhow::Result<Value> {
    let next = async {
        while let Some(message) = socket.next().await {
            match message? {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text)?;
                    if frame["type"] == kind {
                        return Ok(frame);
                    }
                }
                Message::Close(Some(close)) if kind == "close" => {
                    return Ok(json!([u16::from(close.code), close.reason.as_str()]));
                }
                Message::Close(close) => bail!("closed: {close:?}"),
                _ => {}
            }
        }
        bail!("it ended")
    };
    tokio::time::timeout(STEP, next).await.with_context(|| format!("no {kind} within {STEP:?}"))?
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_keys_that_change_without_a_restart() -> anyhow::Result<()> {
    let home = Home::new("tls")?;
    let folder = home.path();
    make_certificate(folder, "first")?;
    let known = folder.join("known.pem");
    fs::copy(folder.join("certificate.pem"), &known)?;
    let (old, new) = (Provider::new(folder, "old")?, Provider::new(folder, "new")?);
    let keys = folder.join("keys.json");
    fs::write(&keys, json!({"keys": [old.jwk()?]}).to_string())?;
    let listen = format!("127.0.0.1:{}", ports::free_port()?);
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    let args = ["run", "--listen", &listen, "--tls-cert", text(&certificate)?, "--tls-key", text(&key)?];
    let args = [&args[..], &["--jwks-file", text(&keys)?, "--jwt-audience", AUDIENCE]].concat();
    let mut nearby = Nearby::start(&args, &[])?;
    let base = nearby.wait_ready(READY)?.http;
    let story = tell(&base, folder, &known, &old, &new).await;
    story.map_err(|error| anyhow::anyhow!("{error:#}\n{}", nearby.stderr()))?;
    let (status, _) = nearby.terminate()?;
    ensure!(status.success(), "{status}");

    let refused = run(&["run", "--listen", &listen, "--tls-cert", text(&certificate)?], &[])?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("--tls-key"), "{refused:?}");
    let refused = run(&["run", "--listen", &listen, "--tls-cert", text(&keys)?, "--tls-key", text(&key)?], &[])?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("--tls-cert, --tls-key: "), "{refused:?}");
    let refused = run(&[&args[..], &["--walkers", "1"]].concat(), &[])?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("--walkers"), "{refused:?}");
    let refused = run(&["run", "--listen", &listen, "--jwks-file", text(&certificate)?], &[])?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("--jwks-file /"), "{refused:?}");
    Ok(())
}

async fn tell(base: &str, folder: &Path, known: &Path, old: &Provider, new: &Provider) -> anyhow::Result<()> {
    ensure!(base.starts_with("https://"), "{base}");
    let (status, body) = curl(known, &[&format!("{base}/v1/gateway")])?;
    let gateway: Value = serde_json::from_str(&body)?;
    let stream = gateway["url"].as_str().context("a url")?.to_owned();
    ensure!(status == "200" && gateway["http_url"] == base && stream.starts_with("wss://"), "{body}");
    let report = |token: &str| {
        let (bearer, url) = (format!("Authorization: Bearer {token}"), format!("{base}/v1/locations"));
        curl(known, &["-H", &bearer, "-d", r#"{"lat":50,"lon":8}"#, &url])
    };
    ensure!(report(&old.token(7, 60)?)?.0 == "202");
    ensure!(report(&new.token(7, 60)?)?.0 == "401", "the new key is not there yet");
    let mut socket = connect(&stream, known, &old.token(7, 300)?).await?;
    let mut expiring = connect(&stream, known, &old.token(8, 5)?).await?;
    frame(&mut socket, "snapshot").await?;
    ensure!(frame(&mut expiring, "close").await? == json!([1008, "token_expired"]));

    // Both keys, then the new one alone: a token of the new one renews the socket.
    fs::write(folder.join("keys.json"), json!({"keys": [old.jwk()?, new.jwk()?]}).to_string())?;
    until(|| Ok(report(&new.token(7, 60)?)?.0 == "202"))?;
    ensure!(report(&old.token(7, 60)?)?.0 == "202");
    fs::write(folder.join("keys.json"), json!({"keys": [new.jwk()?]}).to_string())?;
    until(|| Ok(report(&old.token(7, 60)?)?.0 == "401"))?;
    ensure!(report(&new.token(7, 60)?)?.0 == "202");
    socket.send(Message::text(json!({"type": "auth", "token": old.token(7, 60)?}).to_string())).await?;
    ensure!(frame(&mut socket, "error").await?["code"] == "bad_token", "who is gone renews nothing");
    socket.send(Message::text(json!({"type": "auth", "token": new.token(7, 60)?, "ref": 1}).to_string())).await?;
    frame(&mut socket, "accepted").await?;

    // The certificate, while a socket is open.
    make_certificate(folder, "second")?;
    until(|| Ok(curl(&folder.join("certificate.pem"), &[&format!("{base}/healthz")]).is_ok()))?;
    ensure!(curl(known, &[&format!("{base}/healthz")]).is_err(), "the first certificate is still in use");
    let mut other = connect(&stream, &folder.join("certificate.pem"), &new.token(7, 60)?).await?;
    frame(&mut other, "snapshot").await?;
    socket.send(Message::text(json!({"type": "unshare", "ref": 2}).to_string())).await?;
    frame(&mut socket, "accepted").await.map(drop)
}

fn until(mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + STEP;
    while !holds()? {
        ensure!(Instant::now() < deadline, "it does not come");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
