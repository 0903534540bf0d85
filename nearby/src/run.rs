//! `nearby run`: everything in one process, on one port.
//!
//! Order: settings, port, broker and database are checked before anything is started; then the embedded database starts
//! beside the services, then the sink, then `ready`. At the end the gateway drains first, the services flush, and the database goes last.

use crate::embedded::database::EmbeddedDatabase;
use crate::embedded::kafka::EmbeddedKafka;
use crate::services::{flush_reports, rules, start_processor, supervise_processor, unless_stopped};
use crate::simulate::walkers::{self, Walkers};
use crate::{BadSetting, page, wiring};
use anyhow::Context;
use nearby_ingest::{Ingest, IngestContext};
use nearby_processor::ProcessorSettings;
use nearby_pusher::{Pusher, PusherContext, PusherSettings};
use nearby_schemas::codecs::RecordType;
use nearby_schemas::topics::PARTITIONS_DEFAULT;
use nearby_service::auth::Tokens;
use nearby_service::health::Readiness;
use nearby_service::hosts::BaseUrl;
use nearby_service::http::{Door, operations};
use nearby_service::kafka::Kafka;
use nearby_service::settings::{
    AccessSettings, AuthSettings, ClientSettings, EdgeSettings, KafkaSettings, RegistrySettings, RuleSettings,
    TopicSettings, public_url,
};
use nearby_service::{Stop, stop_on_signals};
use nearby_sink::{Database, SinkSettings};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use warp::Filter;

/// What the services together write.
const WRITTEN: [RecordType; 5] = [
    RecordType::LocationEvent,
    RecordType::FriendList,
    RecordType::Session,
    RecordType::GatewayHeartbeat,
    RecordType::FriendMovedBatch,
];
const PART_END_LIMIT: Duration = Duration::from_secs(3);

/// Settings of `nearby run`.
#[derive(clap::Args)]
pub struct RunSettings {
    /// Address for everything: HTTP, WebSocket and the live map
    #[arg(long, env = "NEARBY_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Address that clients are told, http://… or https://…; required when listening on 0.0.0.0
    #[arg(long, env = "NEARBY_ADVERTISE_URL", value_name = "URL")]
    advertise_url: Option<BaseUrl>,
    /// Kafka brokers, HOST:PORT,…; without them Kafka is embedded and forgets everything at the end
    #[arg(long, env = "NEARBY_BROKERS", value_name = "HOST:PORT,…", value_parser = nearby_service::settings::brokers)]
    brokers: Option<String>,
    #[command(flatten)]
    names: TopicSettings,
    #[command(flatten)]
    registry: RegistrySettings,
    #[command(flatten)]
    client: ClientSettings,
    /// Partitions of topics that have to be created
    #[arg(long, env = "NEARBY_PARTITIONS", default_value_t = PARTITIONS_DEFAULT, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// Postgres, postgresql://USER:PASSWORD@HOST:PORT/DB; without it Postgres is embedded and starts empty
    #[arg(long, env = "NEARBY_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
    /// Simulated people who walk around and see each other; user 1, the live map's, is their friend
    #[arg(long, env = "NEARBY_WALKERS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    walkers: u32,
    #[command(flatten)]
    auth: AuthSettings,
    #[command(flatten)]
    edge: EdgeSettings,
    #[command(flatten)]
    access: AccessSettings,
    #[command(flatten)]
    rules: RuleSettings,
    #[command(flatten)]
    gateway: PusherSettings,
    #[command(flatten)]
    sink: SinkSettings,
}

/// Kafka as given, or embedded.
struct KafkaPart {
    access: Kafka,
    embedded: Option<EmbeddedKafka>,
}

/// Postgres as given, or embedded.
struct DatabasePart {
    url: String,
    connected: Database,
    embedded: Option<EmbeddedDatabase>,
}

/// The services that need no database.
struct Services {
    ingest: Ingest,
    processor: JoinHandle<anyhow::Result<()>>,
    pusher: Pusher,
    served: JoinHandle<()>,
}

/// Runs until a signal, or until a part fails.
pub async fn run(settings: RunSettings) -> anyhow::Result<()> {
    let (started_at, readiness, stop) = (Instant::now(), Readiness::default(), Stop::new());
    stop_on_signals(stop.clone()).context("listening to signals")?;
    wiring::check_dev_tokens(&settings.auth, settings.listen)?;
    let tokens = tokens(&settings.auth)?;
    let door = door(&settings)?;
    let listener = wiring::listen(settings.listen).await?;
    let (address, scheme) = (listener.local_addr().context("the listener's address")?, door.scheme());
    let found = async {
        let given_database = match &settings.database_url {
            Some(url) => Some((url.clone(), wiring::connect_database(url).await?)),
            None => None,
        };
        let mut kafka = kafka(&settings).await?;
        wiring::connect_registry(&mut kafka.access, &settings.registry, &WRITTEN, &readiness).await?;
        Ok((given_database, kafka))
    };
    let (given_database, kafka) = unless_stopped(&stop, found).await?;
    kafka.access.watch(readiness.clone(), stop.clone());
    println!("kafka {}", kafka.access.brokers);

    // The database takes the longest to start, so the services start beside it.
    readiness.not_ready("database", "starting");
    let starting = async {
        let starting = start(&settings, listener, door, &kafka, &tokens, &readiness, &stop);
        tokio::try_join!(database(given_database), starting)
    };
    // If stopped meanwhile, the keeper of an embedded database sees that we are gone.
    let (database, mut services) = unless_stopped(&stop, starting).await?;
    println!("database {}", database.url);
    let sink = nearby_sink::run(
        settings.sink.clone(),
        kafka.access.clone(),
        database.connected,
        readiness.clone(),
        stop.clone(),
    );
    let mut sink = tokio::spawn(async move { sink.await.context("the sink stopped") });
    let mut walkers = None;
    let going = async {
        if wiring::ready(&readiness, &stop).await {
            println!("ready {scheme}://{address}");
            tracing::info!(after_ms = started_at.elapsed().as_millis(), "ready");
            if settings.walkers > 0 {
                walkers = Some(start_walkers(&settings, address, tokens, &stop));
            }
        }
        stop.cancelled().await;
    };
    let mut embedded_database = database.embedded;
    let failed = tokio::select! {
        () = going => None,
        ended = &mut sink => Some(ended.context("the sink").and_then(|ended| ended)),
        ended = &mut services.processor => Some(ended.context("the processor").and_then(|ended| ended)),
        error = lost(&mut embedded_database) => Some(Err(error)),
    };
    stop.cancel();
    if let Some(walkers) = walkers {
        walkers.abort();
    }
    // After a failure the log makes good at the next start for what is not flushed now.
    let flushing = if failed.is_none() { Some(sink) } else { None };
    end(services, flushing).await;
    if let Some(embedded) = embedded_database {
        embedded.stop().await;
    }
    drop(kafka.embedded);
    failed.unwrap_or(Ok(()))
}

/// Who may come in, once the address that clients are told is found to be one.
fn door(settings: &RunSettings) -> anyhow::Result<Door> {
    let advertised = settings.advertise_url.as_ref();
    let door = wiring::door(settings.listen, advertised, &settings.access, &settings.edge)?;
    public_url(settings.listen, advertised, door.scheme()).map_err(BadSetting)?;
    if settings.walkers > 0 && door.scheme() == "https" {
        return Err(BadSetting("--walkers speak plain HTTP: not with --tls-cert".to_owned()).into());
    }
    Ok(door)
}

/// Connects to the given database or starts the embedded one, and brings its schema up to date.
async fn database(given: Option<(String, Database)>) -> anyhow::Result<DatabasePart> {
    let part = match given {
        Some((url, connected)) => DatabasePart { url, connected, embedded: None },
        None => {
            let embedded = EmbeddedDatabase::start().await?;
            let connected = nearby_sink::connect(&embedded.url).await?;
            DatabasePart { url: embedded.url.clone(), connected, embedded: Some(embedded) }
        }
    };
    part.connected.migrate().await?;
    Ok(part)
}

/// Ends when the embedded database does; never without one.
async fn lost(embedded: &mut Option<EmbeddedDatabase>) -> anyhow::Error {
    match embedded {
        Some(embedded) => embedded.failed().await,
        None => std::future::pending().await,
    }
}

async fn start(
    settings: &RunSettings,
    listener: TcpListener,
    door: Door,
    kafka: &KafkaPart,
    tokens: &Tokens,
    readiness: &Readiness,
    stop: &Stop,
) -> anyhow::Result<Services> {
    let address = listener.local_addr().context("the listener's address")?;
    let ingest = nearby_ingest::start(IngestContext {
        kafka: kafka.access.clone(),
        tokens: tokens.clone(),
        edge: settings.edge.clone(),
        dev_tokens: settings.auth.dev_tokens,
        gateway_lost_after_ms: i64::from(settings.rules.gateway_lost_after_s) * 1000,
        readiness: readiness.clone(),
        stop: stop.clone(),
    })?;
    // One process: nobody can take over from it, so there is no handover to wait for.
    let processor = ProcessorSettings {
        rules: settings.rules.clone(),
        handover_max: Duration::ZERO,
        // The other cores have the other services.
        engine_threads: NonZeroUsize::MIN,
    };
    let processor = start_processor(processor, kafka.access.clone(), readiness.clone(), stop.clone()).await?;
    let gateway = settings.gateway.new_gateway_id();
    if let Some(embedded) = &kafka.embedded {
        embedded.create_topics(&[kafka.access.topics.friend_moved_spec(&gateway)])?;
    }
    let public_url = match &settings.advertise_url {
        Some(url) => public_url(address, Some(url), door.scheme()).map_err(BadSetting)?,
        None => format!("{}://{address}", door.scheme()),
    };
    let context = PusherContext {
        kafka: kafka.access.clone(),
        gateway,
        public_url,
        rules: rules(&settings.rules),
        reports: ingest.reports.clone(),
        tokens: tokens.clone(),
        // The page that shows it is here alone.
        watchable: settings.auth.dev_tokens,
        readiness: readiness.clone(),
    };
    let pusher = Pusher::start(&settings.gateway, context).await?;
    let routes = ingest.routes.clone().or(pusher.routes.clone()).unify();
    let routes = routes.or(operations(readiness.clone())).unify().or(page::routes()).unify().boxed();
    let served = wiring::serve_in_background(listener, routes, Some(pusher.stream.clone()), door, stop);
    let supervised = stop.clone();
    let processor = tokio::spawn(async move { supervise_processor(processor, &supervised).await });
    Ok(Services { ingest, processor, pusher, served })
}

/// Drains the gateway while requests end, then lets every service flush.
async fn end(services: Services, sink: Option<JoinHandle<anyhow::Result<()>>>) {
    let Services { ingest, processor, pusher, served } = services;
    pusher.end().await;
    if served.await.is_err() {
        tracing::warn!("the HTTP edge failed while ending");
    }
    flush_reports(&ingest.reports);
    let Some(sink) = sink else { return };
    for (part, handle) in [("processor", processor), ("sink", sink)] {
        match tokio::time::timeout(PART_END_LIMIT, handle).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!("{part}: {error:#}"),
            Ok(Err(error)) => tracing::warn!("{part}: {error}"),
            Err(_) => tracing::warn!("{part} did not end in time; the log makes good for it at the next start"),
        }
    }
}

async fn kafka(settings: &RunSettings) -> anyhow::Result<KafkaPart> {
    let names = settings.names.clone();
    let Some(brokers) = &settings.brokers else {
        let embedded = EmbeddedKafka::start()?;
        let access = embedded.access(&names.topic_prefix);
        embedded.create_topics(&access.topics.standing(settings.partitions))?;
        return Ok(KafkaPart { access, embedded: Some(embedded) });
    };
    let access = Kafka::from_settings(&KafkaSettings {
        brokers: brokers.clone(),
        names,
        registry: RegistrySettings::default(),
        client: settings.client.clone(),
    });
    wiring::check_broker(&access).await?;
    for (topic, new) in access.create_standing_topics(settings.partitions).await? {
        if new {
            tracing::info!(topic, "created");
        }
    }
    Ok(KafkaPart { access, embedded: None })
}

/// Without a key only this process can sign: enough for the live map and the walkers.
fn tokens(settings: &AuthSettings) -> anyhow::Result<Tokens> {
    if let Some(tokens) = wiring::tokens(settings)? {
        return Ok(tokens);
    }
    tracing::warn!(
        "NEARBY_JWT_SECRET is not set: tokens are signed with a secret of this run only, so `nearby token` cannot make any"
    );
    Ok(Tokens::ephemeral(&settings.signing))
}

fn start_walkers(settings: &RunSettings, address: SocketAddr, tokens: Tokens, stop: &Stop) -> JoinHandle<()> {
    let walkers = Walkers { count: settings.walkers, ..Walkers::default() };
    let (url, stop) = (format!("http://{address}"), stop.clone());
    tokio::spawn(async move {
        if let Err(error) = walkers::run_in_process(walkers, &url, tokens, stop).await {
            tracing::error!("walkers: {error:#}");
        }
    })
}
