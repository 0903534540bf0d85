//! `nearby run`: everything in one process, on one port.
//!
//! Order: settings, port, broker and database are checked before anything is started; then the embedded parts, then the
//! services, then `ready`. At the end the gateway drains first, the services flush, and the database goes last.

use crate::embedded::database::EmbeddedDatabase;
use crate::embedded::kafka::EmbeddedKafka;
use crate::services::{flush_reports, rules, start_processor, supervise_processor};
use crate::simulate::walkers::{self, Walkers};
use crate::{BadSetting, page, wiring};
use anyhow::Context;
use nearby_ingest::{Ingest, IngestContext};
use nearby_processor::{Processor, ProcessorSettings};
use nearby_pusher::{Pusher, PusherContext, PusherSettings};
use nearby_schemas::topics::PARTITIONS_DEFAULT;
use nearby_service::auth::Tokens;
use nearby_service::health::Readiness;
use nearby_service::http::operations;
use nearby_service::kafka::Kafka;
use nearby_service::settings::{AuthSettings, EdgeSettings, KafkaSettings, RuleSettings, TopicSettings, public_url};
use nearby_service::{Stop, stop_on_signals};
use nearby_sink::{Database, SinkSettings};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use warp::Filter;

const SINK_END_LIMIT: Duration = Duration::from_secs(4);

/// Settings of `nearby run`.
#[derive(clap::Args)]
pub struct RunSettings {
    /// Address for everything: HTTP, WebSocket and the live map
    #[arg(long, env = "NEARBY_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Address that clients are told, http://… or https://…; required when listening on 0.0.0.0
    #[arg(long, env = "NEARBY_ADVERTISE_URL", value_name = "URL")]
    advertise_url: Option<String>,
    /// Kafka brokers, HOST:PORT,…; without them Kafka is embedded and forgets everything at the end
    #[arg(long, env = "NEARBY_BROKERS", value_name = "HOST:PORT,…")]
    brokers: Option<String>,
    #[command(flatten)]
    names: TopicSettings,
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
    embedded: Option<EmbeddedDatabase>,
}

/// The running services.
struct Services {
    ingest: Ingest,
    processor: JoinHandle<anyhow::Result<()>>,
    pusher: Pusher,
    sink: JoinHandle<anyhow::Result<()>>,
    walkers: Option<JoinHandle<()>>,
}

/// Runs until a signal, or until a part fails.
pub async fn run(settings: RunSettings) -> anyhow::Result<()> {
    let started_at = Instant::now();
    wiring::check_dev_tokens(&settings.auth, settings.listen)?;
    let tokens = tokens(&settings.auth)?;
    public_url(settings.listen, settings.advertise_url.as_deref()).map_err(BadSetting)?;
    let listener = wiring::listen(settings.listen).await?;
    let given_database = match &settings.database_url {
        Some(url) => Some(nearby_sink::connect(url).await?),
        None => None,
    };
    let kafka = kafka(&settings).await?;
    let stop = Stop::new();
    stop_on_signals(stop.clone()).context("listening to signals")?;
    println!("kafka {}", kafka.access.brokers);

    let embedding = async {
        match (&settings.database_url, given_database) {
            (Some(url), Some(database)) => anyhow::Ok((DatabasePart { url: url.clone(), embedded: None }, database)),
            _ => {
                let embedded = EmbeddedDatabase::start().await?;
                let database = nearby_sink::connect(&embedded.url).await?;
                Ok((DatabasePart { url: embedded.url.clone(), embedded: Some(embedded) }, database))
            }
        }
    };
    let (database_part, database): (DatabasePart, Database) = match stop.run_until_cancelled(embedding).await {
        Some(started) => started?,
        // Stopped while the database was starting: its keeper sees that we are gone.
        None => return Ok(()),
    };
    let ended = serve(&settings, listener, &kafka, &database_part.url, database, tokens, stop.clone(), started_at);
    let mut embedded_database = database_part.embedded;
    let result = match &mut embedded_database {
        Some(embedded) => tokio::select! {
            result = ended => result,
            error = embedded.failed() => Err(error),
        },
        None => ended.await,
    };
    stop.cancel();
    if let Some(embedded) = embedded_database {
        embedded.stop().await;
    }
    drop(kafka.embedded);
    result
}

#[expect(clippy::too_many_arguments, reason = "called once; the arguments are what the checks in `run` have yielded")]
async fn serve(
    settings: &RunSettings,
    listener: TcpListener,
    kafka: &KafkaPart,
    database_url: &str,
    database: Database,
    tokens: Tokens,
    stop: Stop,
    started_at: Instant,
) -> anyhow::Result<()> {
    database.migrate().await?;
    println!("database {database_url}");
    let address = listener.local_addr().context("the listener's address")?;
    let readiness = Readiness::default();
    kafka.access.watch(readiness.clone(), stop.clone());
    let mut services = start(settings, kafka, database, &tokens, address, &readiness, &stop).await?;
    let routes = services.ingest.routes.clone().or(services.pusher.routes.clone()).unify();
    let routes = routes.or(operations(readiness.clone())).unify().or(page::routes()).unify().boxed();
    let stream = Some(services.pusher.stream.clone());
    let origins = settings.edge.allowed_origins.clone();
    let mut served = wiring::serve_in_background(listener, routes, stream, origins, &stop);

    let failed = tokio::select! {
        result = &mut services.sink => Some(result.context("the sink").and_then(|result| result.context("the sink stopped"))),
        result = &mut services.processor => Some(result.context("the processor").and_then(|result| result)),
        _ = &mut served => None,
        () = async {
            if wiring::ready(&readiness, &stop).await {
                println!("ready http://{address}");
                tracing::info!(after_ms = started_at.elapsed().as_millis(), "ready");
                if settings.walkers > 0 {
                    services.walkers = Some(start_walkers(settings, address, tokens, &stop));
                }
            }
            stop.cancelled().await;
        } => None,
    };
    stop.cancel();
    end(services, served, failed.is_none()).await;
    failed.unwrap_or(Ok(()))
}

async fn start(
    settings: &RunSettings,
    kafka: &KafkaPart,
    database: Database,
    tokens: &Tokens,
    address: SocketAddr,
    readiness: &Readiness,
    stop: &Stop,
) -> anyhow::Result<Services> {
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
    let processor = ProcessorSettings { rules: settings.rules.clone(), handover_max: Duration::ZERO };
    let processor = start_processor(processor, kafka.access.clone(), readiness.clone(), stop.clone()).await?;
    let gateway = settings.gateway.new_gateway_id();
    if let Some(embedded) = &kafka.embedded {
        embedded.create_topics(&[kafka.access.topics.friend_moved_spec(&gateway)])?;
    }
    let public_url = match &settings.advertise_url {
        Some(url) => public_url(address, Some(url)).map_err(BadSetting)?,
        None => format!("http://{address}"),
    };
    let context = PusherContext {
        kafka: kafka.access.clone(),
        gateway,
        public_url,
        rules: rules(&settings.rules),
        reports: ingest.reports.clone(),
        tokens: tokens.clone(),
        readiness: readiness.clone(),
    };
    let pusher = Pusher::start(&settings.gateway, context).await?;
    let sink = nearby_sink::run(settings.sink.clone(), kafka.access.clone(), database, readiness.clone(), stop.clone());
    let sink = tokio::spawn(async move { sink.await.map_err(anyhow::Error::from) });
    let processor = supervise(processor, stop);
    Ok(Services { ingest, processor, pusher, sink, walkers: None })
}

fn supervise(processor: Processor, stop: &Stop) -> JoinHandle<anyhow::Result<()>> {
    let stop = stop.clone();
    tokio::spawn(async move { supervise_processor(processor, &stop).await })
}

/// Drains the gateway while requests end, then lets every service flush.
async fn end(services: Services, served: JoinHandle<()>, processor_and_sink_run: bool) {
    let Services { ingest, processor, pusher, sink, walkers } = services;
    if let Some(walkers) = walkers {
        walkers.abort();
    }
    pusher.end().await;
    if !served.is_finished() && served.await.is_err() {
        tracing::warn!("the HTTP edge failed while ending");
    }
    flush_reports(&ingest.reports);
    if !processor_and_sink_run {
        return;
    }
    for (part, handle) in [("processor", processor), ("sink", sink)] {
        match tokio::time::timeout(SINK_END_LIMIT, handle).await {
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
    let access = Kafka::from_settings(&KafkaSettings { brokers: brokers.clone(), names });
    wiring::check_broker(&access).await?;
    for topic in access.topics.standing(settings.partitions) {
        if access.create_topic(&topic).await? {
            tracing::info!(topic = topic.name, "created");
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
    Ok(Tokens::ephemeral())
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
