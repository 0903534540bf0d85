//! The four services, each alone against real Kafka and Postgres.

use crate::{BadSetting, StoppedAtStart, wiring};
use anyhow::Context;
use nearby_ingest::IngestContext;
use nearby_ingest::reports::Reports;
use nearby_processor::{Processor, ProcessorSettings};
use nearby_pusher::{Pusher, PusherContext, PusherSettings, Rules};
use nearby_schemas::codecs::RecordType;
use nearby_service::health::Readiness;
use nearby_service::hosts::BaseUrl;
use nearby_service::http::{Door, Routes, StreamHandler, operations};
use nearby_service::kafka::Kafka;
use nearby_service::settings::{AccessSettings, AuthSettings, EdgeSettings, KafkaSettings, RuleSettings, public_url};
use nearby_service::{Stop, stop_on_signals};
use nearby_sink::SinkSettings;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::net::TcpListener;
use warp::Filter;

/// A stopping processor serves on for at most so long, until others have taken over.
const HANDOVER_MAX: Duration = Duration::from_secs(5);
/// Connections of those who only watch over a service.
const OPERATIONS_CONNECTIONS_MAX: usize = 1_000;
const LAST_REPORTS_LIMIT: Duration = Duration::from_secs(5);

/// Settings of `nearby ingest`.
#[derive(clap::Args)]
pub struct IngestCommand {
    /// Address to listen on
    #[arg(long, env = "NEARBY_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    auth: AuthSettings,
    #[command(flatten)]
    edge: EdgeSettings,
    #[command(flatten)]
    access: AccessSettings,
    #[command(flatten)]
    rules: RuleSettings,
}

/// Settings of `nearby processor`.
#[derive(clap::Args)]
pub struct ProcessorCommand {
    /// Address to listen on, for health and metrics
    #[arg(long, env = "NEARBY_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:9101")]
    listen: SocketAddr,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    rules: RuleSettings,
    /// Engines, each on a thread of its own; by default one per core. Each has some of the owned partitions and hears every report
    #[arg(long, env = "NEARBY_ENGINE_THREADS", value_parser = clap::value_parser!(u8).range(1..=64))]
    engine_threads: Option<u8>,
}

/// Settings of `nearby pusher`.
#[derive(clap::Args)]
pub struct PusherCommand {
    /// Address to listen on
    #[arg(long, env = "NEARBY_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// Address that clients are told, http://… or https://…; required when listening on 0.0.0.0
    #[arg(long, env = "NEARBY_ADVERTISE_URL", value_name = "URL")]
    advertise_url: Option<BaseUrl>,
    #[command(flatten)]
    kafka: KafkaSettings,
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
}

/// Settings of `nearby sink`.
#[derive(clap::Args)]
pub struct SinkCommand {
    /// Address to listen on, for health and metrics
    #[arg(long, env = "NEARBY_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:9102")]
    listen: SocketAddr,
    /// Postgres, postgresql://USER:PASSWORD@HOST:PORT/DB
    #[arg(long, env = "NEARBY_DATABASE_URL", hide_env_values = true, value_name = "URL")]
    database_url: String,
    #[command(flatten)]
    kafka: KafkaSettings,
    #[command(flatten)]
    sink: SinkSettings,
}

/// What the services have in common once their settings are checked.
struct Base {
    listener: TcpListener,
    kafka: Kafka,
    readiness: Readiness,
    stop: Stop,
}

impl Base {
    /// Takes the port, finds the broker, the topics and the schema registry; nothing is started before.
    async fn check(
        listen: SocketAddr,
        settings: &KafkaSettings,
        written: &'static [RecordType],
    ) -> anyhow::Result<Base> {
        let (readiness, stop) = (Readiness::default(), Stop::new());
        // Brokers may keep us waiting.
        stop_on_signals(stop.clone()).context("listening to signals")?;
        let found = async {
            let listener = wiring::listen(listen).await?;
            let mut kafka = Kafka::from_settings(settings);
            wiring::check_broker(&kafka).await?;
            let checked = kafka.clone();
            tokio::task::spawn_blocking(move || checked.check_topics()).await.context("looking at the topics")??;
            wiring::connect_registry(&mut kafka, &settings.registry, written, &readiness).await?;
            Ok((listener, kafka))
        };
        let (listener, kafka) = unless_stopped(&stop, found).await?;
        kafka.watch(readiness.clone(), stop.clone());
        Ok(Base { listener, kafka, readiness, stop })
    }

    /// Serves the routes and says when everything is ready.
    fn serve(
        self,
        routes: Routes,
        stream: Option<StreamHandler>,
        door: Door,
    ) -> anyhow::Result<tokio::task::JoinHandle<()>> {
        let address = self.listener.local_addr().context("the listener's address")?;
        let (readiness, stop, scheme) = (self.readiness.clone(), self.stop.clone(), door.scheme());
        tracing::info!("listening on {address}");
        tokio::spawn(async move {
            if wiring::ready(&readiness, &stop).await {
                println!("ready {scheme}://{address}");
            }
        });
        let routes = routes.or(operations(self.readiness)).unify().boxed();
        Ok(wiring::serve_in_background(self.listener, routes, stream, door, &self.stop))
    }
}

/// `nearby ingest`.
pub async fn ingest(command: IngestCommand) -> anyhow::Result<()> {
    wiring::check_dev_tokens(&command.auth, command.listen)?;
    let door = wiring::door(command.listen, None, &command.access, &command.edge)?;
    let tokens = required_tokens(&command.auth)?;
    let base =
        Base::check(command.listen, &command.kafka, &[RecordType::LocationEvent, RecordType::FriendList]).await?;
    let stop = base.stop.clone();
    let ingest = nearby_ingest::start(IngestContext {
        kafka: base.kafka.clone(),
        tokens,
        edge: command.edge.clone(),
        dev_tokens: command.auth.dev_tokens,
        gateway_lost_after_ms: i64::from(command.rules.gateway_lost_after_s) * 1000,
        readiness: base.readiness.clone(),
        stop: stop.clone(),
    })?;
    let served = base.serve(ingest.routes, None, door)?;
    served.await.context("serving HTTP")?;
    flush_reports(&ingest.reports);
    Ok(())
}

/// `nearby processor`.
pub async fn processor(command: ProcessorCommand) -> anyhow::Result<()> {
    let base = Base::check(command.listen, &command.kafka, &[RecordType::FriendMovedBatch]).await?;
    let (kafka, readiness, stop) = (base.kafka.clone(), base.readiness.clone(), base.stop.clone());
    let engine_threads = match command.engine_threads.and_then(|threads| NonZeroUsize::new(threads.into())) {
        Some(threads) => threads,
        None => std::thread::available_parallelism().context("the number of cores")?,
    };
    let settings = ProcessorSettings { rules: command.rules, handover_max: HANDOVER_MAX, engine_threads };
    let processor = unless_stopped(&stop, start_processor(settings, kafka, readiness, stop.clone())).await?;
    let served =
        base.serve(warp::any().and_then(nothing_here).boxed(), None, Door::unguarded(OPERATIONS_CONNECTIONS_MAX))?;
    supervise_processor(processor, &stop).await?;
    served.await.context("serving HTTP")
}

/// `nearby pusher`.
pub async fn pusher(command: PusherCommand) -> anyhow::Result<()> {
    let advertised = command.advertise_url.as_ref();
    let door = wiring::door(command.listen, advertised, &command.access, &command.edge)?;
    let public_url = public_url(command.listen, advertised, door.scheme()).map_err(BadSetting)?;
    let tokens = required_tokens(&command.auth)?;
    let base = Base::check(
        command.listen,
        &command.kafka,
        &[RecordType::LocationEvent, RecordType::Session, RecordType::GatewayHeartbeat],
    )
    .await?;
    // With port 0 the system has chosen one.
    let public_url = match command.advertise_url {
        Some(_) => public_url,
        None => format!("{}://{}", door.scheme(), base.listener.local_addr().context("the listener's address")?),
    };
    let reports = Reports::new(&base.kafka, &command.edge)?;
    let context = PusherContext {
        kafka: base.kafka.clone(),
        gateway: command.gateway.new_gateway_id(),
        public_url,
        rules: rules(&command.rules),
        reports: reports.clone(),
        tokens,
        watchable: false,
        readiness: base.readiness.clone(),
    };
    let stop = base.stop.clone();
    let pusher = Pusher::start(&command.gateway, context).await?;
    let served = base.serve(pusher.routes.clone(), Some(pusher.stream.clone()), door)?;
    stop.cancelled().await;
    pusher.end().await;
    served.await.context("serving HTTP")?;
    flush_reports(&reports);
    Ok(())
}

/// `nearby sink`.
pub async fn sink(command: SinkCommand) -> anyhow::Result<()> {
    let base = Base::check(command.listen, &command.kafka, &[]).await?;
    let connected = async {
        let database = wiring::connect_database(&command.database_url).await?;
        database.migrate().await?;
        Ok(database)
    };
    let database = unless_stopped(&base.stop, connected).await?;
    let (kafka, readiness, stop) = (base.kafka.clone(), base.readiness.clone(), base.stop.clone());
    let served =
        base.serve(warp::any().and_then(nothing_here).boxed(), None, Door::unguarded(OPERATIONS_CONNECTIONS_MAX))?;
    let ended = nearby_sink::run(command.sink, kafka, database, readiness, stop.clone()).await;
    stop.cancel();
    served.await.context("serving HTTP")?;
    ended.context("the sink stopped")
}

/// What has to be there before anything is started, unless we are asked to stop meanwhile.
///
/// # Errors
/// Its own, or [`StoppedAtStart`].
pub async fn unless_stopped<T>(stop: &Stop, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    stop.run_until_cancelled(work).await.unwrap_or_else(|| Err(StoppedAtStart.into()))
}

/// What clients are told of the rules.
pub fn rules(settings: &RuleSettings) -> Rules {
    Rules { radius_m: settings.radius_m, inactive_after_s: settings.inactive_after_s }
}

/// Starting a processor waits for the broker, so it happens off the runtime's threads.
pub async fn start_processor(
    settings: ProcessorSettings,
    kafka: Kafka,
    readiness: Readiness,
    stop: Stop,
) -> anyhow::Result<Processor> {
    let started = tokio::task::spawn_blocking(move || Processor::start(&settings, &kafka, readiness, stop));
    Ok(started.await.context("starting the processor")??)
}

/// Waits until the processor ends; an error if nobody asked it to.
pub async fn supervise_processor(processor: Processor, stop: &Stop) -> anyhow::Result<()> {
    let ended_well = tokio::task::spawn_blocking(move || processor.ended()).await.unwrap_or(false);
    if stop.is_cancelled() && ended_well {
        return Ok(());
    }
    stop.cancel();
    anyhow::bail!("the processor's engine has ended unexpectedly; the log restores it at the next start")
}

/// Reports that were handed over get a last chance to be acknowledged.
pub fn flush_reports(reports: &Reports) {
    if let Err(error) = reports.flush(LAST_REPORTS_LIMIT) {
        tracing::warn!(%error, "the last reports were not acknowledged; their senders were told so");
    }
}

fn required_tokens(settings: &AuthSettings) -> anyhow::Result<nearby_service::auth::Tokens> {
    let missing = || BadSetting(nearby_service::auth::KeyError::Missing.to_string());
    Ok(wiring::tokens(settings)?.ok_or_else(missing)?)
}

async fn nothing_here() -> Result<warp::reply::Response, warp::Rejection> {
    Err(warp::reject::not_found())
}
