//! `nearby token`: signs a token with the shared secret.

use crate::BadSetting;
use nearby_schemas::{TimestampMs, UserId};
use nearby_service::auth::Tokens;
use nearby_service::settings::SigningSettings;

/// Settings of `nearby token`.
#[derive(clap::Args)]
pub struct TokenSettings {
    /// Whose token it is
    #[arg(long, value_name = "ID")]
    user: UserId,
    /// What the token grants beyond the user's own affairs: friends:write, ingest:any (may be repeated)
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,
    /// How long it is valid, in seconds
    #[arg(long, env = "NEARBY_TOKEN_VALID_S", default_value_t = 86_400, value_parser = clap::value_parser!(i64).range(1..=315_360_000))]
    valid_s: i64,
    #[command(flatten)]
    signing: SigningSettings,
}

/// Prints the token.
pub fn token(settings: &TokenSettings) -> anyhow::Result<()> {
    let tokens = Tokens::from_signing(&settings.signing).map_err(|error| BadSetting(error.to_string()))?;
    let missing = || BadSetting("set NEARBY_JWT_SECRET to the secret that the services verify with".to_owned());
    let tokens = tokens.ok_or_else(missing)?;
    let expires_at = TimestampMs::now().plus_ms(settings.valid_s.saturating_mul(1000));
    println!("{}", tokens.sign(settings.user, &settings.scope.join(" "), expires_at)?);
    Ok(())
}
