//! Settings that more than one service has. Every one is a flag and an environment variable `NEARBY_…`.

use crate::addresses::Network;
use crate::client_properties::{ClientProperties, PropertiesParser};
use crate::hosts::{BaseUrl, host_name, origin};
use crate::registry::RegistryUrl;
use clap::builder::TypedValueParser;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

/// `--brokers`, as librdkafka takes it.
///
/// # Errors
/// It is a web address.
pub fn brokers(text: &str) -> Result<String, String> {
    if text.split(',').any(|broker| broker.starts_with("http://") || broker.starts_with("https://")) {
        return Err("a broker is HOST:PORT, without http://".to_owned());
    }
    Ok(text.to_owned())
}

/// Where Kafka is and how its topics are called.
#[derive(Clone, Debug, clap::Args)]
pub struct KafkaSettings {
    /// Kafka brokers, HOST:PORT,…
    #[arg(long, env = "NEARBY_BROKERS", value_name = "HOST:PORT,…", value_parser = brokers)]
    pub brokers: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "its parts are documented; clap would print a text here as a heading")]
    pub names: TopicSettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "as above")]
    pub registry: RegistrySettings,
    #[command(flatten)]
    #[allow(missing_docs, reason = "as above")]
    pub client: ClientSettings,
}

/// Which wire format records have.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RegistrySettings {
    /// Schema registry, http://HOST:PORT or https://USER:PASSWORD@HOST: records are then written in Confluent's wire format, and read in both
    #[arg(long, env = "NEARBY_SCHEMA_REGISTRY_URL", hide_env_values = true, value_name = "URL", value_parser = clap::builder::StringValueParser::new().map(RegistryUrl::from))]
    pub schema_registry_url: Option<RegistryUrl>,
}

/// What every Kafka client needs besides the brokers' addresses.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ClientSettings {
    /// Property of every Kafka client by librdkafka's name, such as security.protocol=SASL_SSL; may be given several times.
    /// The variable has one a line: a value may hold anything but a line break. Passwords belong into the variable: others
    /// on the machine can read flags
    #[arg(long = "kafka-property", env = "NEARBY_KAFKA_PROPERTIES", hide_env_values = true, value_name = "KEY=VALUE", requires = "brokers", value_parser = PropertiesParser)]
    pub properties: Vec<ClientProperties>,
}

/// How topics are called.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TopicSettings {
    /// Put in front of the name of every topic and consumer group
    #[arg(long, env = "NEARBY_TOPIC_PREFIX", default_value = "", value_parser = legal_prefix)]
    pub topic_prefix: String,
}

fn legal_prefix(prefix: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if prefix.len() <= 100 && prefix.bytes().all(legal) {
        Ok(prefix.to_owned())
    } else {
        Err("at most 100 characters out of a-z, A-Z, 0-9, '.', '_' and '-'".to_owned())
    }
}

/// A secret that services and tools share, and what tokens say besides.
#[derive(Clone, Default, clap::Args)]
pub struct SigningSettings {
    /// Secret of at least 16 bytes for tokens signed with HS256
    #[arg(long, env = "NEARBY_JWT_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub jwt_secret: Option<String>,
    /// Whom tokens have to be for (their aud); without it that is not looked at
    #[arg(long, env = "NEARBY_JWT_AUDIENCE", value_name = "AUDIENCE")]
    pub jwt_audience: Option<String>,
    /// Who has to have issued tokens (their iss); without it that is not looked at
    #[arg(long, env = "NEARBY_JWT_ISSUER", value_name = "ISSUER")]
    pub jwt_issuer: Option<String>,
}

impl std::fmt::Debug for SigningSettings {
    /// Without the secret.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secret = self.jwt_secret.as_ref().map(|_| "…");
        let mut shown = formatter.debug_struct("SigningSettings");
        shown.field("jwt_secret", &secret).field("jwt_audience", &self.jwt_audience);
        shown.field("jwt_issuer", &self.jwt_issuer).finish()
    }
}

/// How tokens are verified (and, with a secret, signed). Key files are read again when they change.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct AuthSettings {
    #[command(flatten)]
    #[allow(missing_docs, reason = "its parts are documented; clap would print a text here as a heading")]
    pub signing: SigningSettings,
    /// File with that secret; read again when it changes, as all key files are
    #[arg(long, env = "NEARBY_JWT_SECRET_FILE", value_name = "FILE", conflicts_with_all = ["jwt_secret", "jwt_public_key_file", "jwks_file"])]
    pub jwt_secret_file: Option<PathBuf>,
    /// PEM file with the public key for tokens signed with RS256 or EdDSA
    #[arg(long, env = "NEARBY_JWT_PUBLIC_KEY_FILE", value_name = "FILE", conflicts_with_all = ["jwt_secret", "jwks_file"])]
    pub jwt_public_key_file: Option<PathBuf>,
    /// JSON Web Key Set with public keys for tokens signed with RS256 or EdDSA; a token names its key by kid
    #[arg(long, env = "NEARBY_JWKS_FILE", value_name = "FILE", conflicts_with = "jwt_secret")]
    pub jwks_file: Option<PathBuf>,
    /// Serve GET /v1/dev/token, which gives anybody on this machine a token for any user; for development, on loopback only, and not behind a proxy
    #[arg(long, env = "NEARBY_DEV_TOKENS", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new())]
    pub dev_tokens: bool,
}

/// What may come in over HTTP and WebSocket.
#[derive(Clone, Debug, clap::Args)]
pub struct EdgeSettings {
    /// Origins of web pages that may call, besides pages of the same host (comma-separated)
    #[arg(long, env = "NEARBY_ALLOWED_ORIGINS", value_delimiter = ',', value_name = "ORIGIN,…", value_parser = origin)]
    pub allowed_origins: Vec<String>,
    /// Reports a second that one user may send in the long run; polls, and requests that are refused or ignored, count as one each
    #[arg(long, env = "NEARBY_USER_RATE_PER_S", default_value = "10")]
    pub user_rate_per_s: NonZeroU32,
    /// Reports that one user may send at once
    #[arg(long, env = "NEARBY_USER_BURST", default_value = "200")]
    pub user_burst: NonZeroU32,
}

/// Who may call at all, and how connections are held.
#[derive(Clone, Debug, clap::Args)]
pub struct AccessSettings {
    /// Names that requests may have in Host, besides the advertised one and, on loopback, localhost (comma-separated, without ports)
    #[arg(long, env = "NEARBY_ALLOWED_HOSTS", value_delimiter = ',', value_name = "HOST,…", value_parser = host_name)]
    pub allowed_hosts: Vec<String>,
    /// Requests a second that one address may send in the long run; an IPv6 /64 is one address
    #[arg(long, env = "NEARBY_ADDRESS_RATE_PER_S", default_value = "10000")]
    pub address_rate_per_s: NonZeroU32,
    /// Requests that one address may send at once
    #[arg(long, env = "NEARBY_ADDRESS_BURST", default_value = "50000")]
    pub address_burst: NonZeroU32,
    /// Proxies whose X-Forwarded-For says which address a request is from, such as 10.0.0.0/8 (comma-separated)
    #[arg(long, env = "NEARBY_TRUSTED_PROXIES", value_delimiter = ',', value_name = "ADDRESS[/BITS],…")]
    pub trusted_proxies: Vec<Network>,
    /// Connections that are held at once, not counting WebSockets; others wait to be accepted
    #[arg(long, env = "NEARBY_HTTP_CONNECTIONS_MAX", default_value_t = 60_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub http_connections_max: u32,
    /// PEM file with the certificate, and the chain to its root, to serve HTTPS and WSS with; read again when it changes
    #[arg(long, env = "NEARBY_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate
    #[arg(long, env = "NEARBY_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

/// The rules of nearness that the engine and the gateways share.
#[derive(Clone, Debug, clap::Args)]
pub struct RuleSettings {
    /// Friends within this distance are shown, in metres
    #[arg(long, env = "NEARBY_RADIUS_M", default_value_t = 8000, value_parser = clap::value_parser!(u32).range(1..=20_000_000))]
    pub radius_m: u32,
    /// A friend is hidden this long after the last report, in seconds
    #[arg(long, env = "NEARBY_INACTIVE_AFTER_S", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub inactive_after_s: u32,
    /// A gateway is lost when its heartbeat is this far behind the newest one, in seconds
    #[arg(long, env = "NEARBY_GATEWAY_LOST_AFTER_S", default_value_t = 30, value_parser = clap::value_parser!(u32).range(6..=86_400))]
    pub gateway_lost_after_s: u32,
}

/// The public base address `http://HOST:PORT` (or https) of a listener: as advertised, or the address itself.
///
/// # Errors
/// If the address says nothing to clients (0.0.0.0, ::) and none is advertised.
pub fn public_url(listen: SocketAddr, advertised: Option<&BaseUrl>, scheme: &str) -> Result<String, String> {
    match advertised {
        Some(url) => Ok(url.to_string()),
        None if listen.ip().is_unspecified() => {
            Err(format!("listening on {listen} needs --advertise-url: clients have to be told an address"))
        }
        None => Ok(format!("{scheme}://{listen}")),
    }
}
