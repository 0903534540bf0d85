//! `nearby friends load`: friend lists out of a file of friendships.

use crate::simulate::{Api, TokenSource, bad_file};
use crate::{BadSetting, wiring};
use anyhow::Context;
use nearby_recorded::checkins::friendships;
use nearby_schemas::codecs::RecordType;
use nearby_schemas::{FriendList, TimestampMs, UserId};
use nearby_service::append::{Appender, Outgoing};
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::settings::{ClientSettings, KafkaSettings, RegistrySettings, SigningSettings, TopicSettings};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Lists handed to Kafka before their acknowledgement is waited for.
const LISTS_AT_ONCE: usize = 10_000;

/// What to do about friend lists.
#[derive(clap::Subcommand)]
pub enum FriendsCommand {
    /// Replace the list of everybody who stands first in a line of FILE
    Load(LoadSettings),
}

/// Settings of `nearby friends load`.
#[derive(clap::Args)]
pub struct LoadSettings {
    /// Lines of user, tab, friend: whom the user may see (SNAP's format), plain or gzip
    file: PathBuf,
    /// Write straight to Kafka, HOST:PORT,…; without it the lists go through the API
    #[arg(long, env = "NEARBY_BROKERS", value_name = "HOST:PORT,…", value_parser = nearby_service::settings::brokers)]
    brokers: Option<String>,
    #[command(flatten)]
    names: TopicSettings,
    #[command(flatten)]
    registry: RegistrySettings,
    #[command(flatten)]
    client: ClientSettings,
    /// Base address of the ingest, or of `nearby run`
    #[arg(long, env = "NEARBY_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    url: String,
    #[command(flatten)]
    signing: SigningSettings,
}

/// Loads.
pub async fn friends(command: FriendsCommand) -> anyhow::Result<()> {
    let FriendsCommand::Load(settings) = command;
    let lists = friendships(&settings.file).map_err(bad_file)?;
    if lists.is_empty() {
        let detail = format!("there is no friendship in {}: a line is USER, a tab, FRIEND", settings.file.display());
        return Err(BadSetting(detail).into());
    }
    if let Some((user, friends)) = lists.iter().find(|(_, friends)| friends.len() > FriendList::FRIENDS_MAX) {
        let (count, max) = (friends.len(), FriendList::FRIENDS_MAX);
        return Err(BadSetting(format!("user {user} has {count} friends; at most {max} are accepted")).into());
    }
    match settings.brokers {
        Some(brokers) => {
            let (registry, client) = (settings.registry, settings.client);
            let from = KafkaSettings { brokers, names: settings.names, registry: registry.clone(), client };
            let mut kafka = Kafka::from_settings(&from);
            wiring::connect_registry(&mut kafka, &registry, &[RecordType::FriendList], &Readiness::default()).await?;
            write(&kafka, &lists).await?;
        }
        None => {
            let token_source = TokenSource::new(&settings.signing)?;
            Api::new(&settings.url, token_source)?.replace_friend_lists(&lists).await?;
        }
    }
    let friendships: usize = lists.values().map(Vec::len).sum();
    println!("{} friend lists with {friendships} friends loaded", lists.len());
    Ok(())
}

async fn write(kafka: &Kafka, lists: &BTreeMap<UserId, Vec<UserId>>) -> anyhow::Result<()> {
    let checked = kafka.clone();
    tokio::task::spawn_blocking(move || checked.check_topics()).await.context("looking at the topics")??;
    let (appender, codec, topic) =
        (Appender::new(kafka)?, kafka.codecs.codec::<FriendList>(), kafka.topics.friend_lists());
    let lists: Vec<_> = lists.iter().collect();
    for chunk in lists.chunks(LISTS_AT_ONCE) {
        let records = chunk.iter().map(|(user, friends)| Outgoing {
            topic: topic.clone(),
            key: Some(user.to_string().into_bytes()),
            value: Some(codec.encode(&FriendList {
                user_id: **user,
                friends: (*friends).clone(),
                changed_at: TimestampMs::now(),
            })),
            ..Outgoing::default()
        });
        appender.append(records).await?;
    }
    Ok(())
}
