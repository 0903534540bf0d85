//! `nearby history erase`: one person's rows and friend list go, and it is said what remains elsewhere until when.
//!
//! First the log is told, so that nobody is shown the person any more: a withdrawal, and a tombstone for the friend list.
//! Then the sink is waited for until it has passed all that was in the log by then, the withdrawal too. Then the sessions
//! end, and only then the rows go: nothing of what was in the log can come after. Whatever interrupts this, it can be run
//! again.

use super::remains::{remains_compacted, remains_deleted};
use super::{CLOCKS_APART_MS_MAX, DatabaseSettings, DayTable, TIMED_OUT, Wait, code, grouped, maintain, tables};
use crate::log::{Log, LogError, Merged, Span};
use crate::moments::Rfc3339;
use crate::wiring;
use anyhow::{Context, bail};
use nearby_schemas::codecs::RecordType;
use nearby_schemas::partitioning::partition_of;
use nearby_schemas::{GatewayId, LocationEvent, Session, Source, TimestampMs, UserId};
use nearby_service::append::{Appender, Outgoing};
use nearby_service::health::Readiness;
use nearby_service::kafka::Kafka;
use nearby_service::settings::KafkaSettings;
use rdkafka::Message;
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Rows that one transaction removes at most.
const ROWS_AT_ONCE: i64 = 5_000;
/// Looking for a person in everybody's list may take so long.
const LISTS_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
const TOLD_INTERVAL: Duration = Duration::from_secs(2);

/// Settings of `nearby history erase`.
#[derive(clap::Args)]
pub struct EraseSettings {
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    kafka: KafkaSettings,
    /// Whose
    #[arg(long, value_name = "ID")]
    user: UserId,
    /// Change nothing, only count
    #[arg(long)]
    dry_run: bool,
    /// Give up when the sink has not come further for so long, in seconds
    #[arg(long, default_value_t = 60, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    sink_wait_s: u32,
}

/// What the history has of a person.
struct Found {
    rows: i64,
    /// First and last.
    reported: Option<(TimestampMs, TimestampMs)>,
    /// Length of the friend list.
    friends: Option<i64>,
}

/// How far the log went.
#[derive(Debug, Default)]
struct Ends(BTreeMap<(String, i32), Span>);

/// Erases.
pub async fn erase(settings: EraseSettings) -> anyhow::Result<()> {
    let user = settings.user;
    let mut connection = settings.database.connect().await?;
    let mut kafka = Kafka::from_settings(&settings.kafka);
    wiring::check_broker(&kafka).await?;
    // A schema that is written is registered.
    let written: &[RecordType] = if settings.dry_run { &[] } else { &[RecordType::LocationEvent] };
    wiring::connect_registry(&mut kafka, &settings.kafka.registry, written, &Readiness::default()).await?;
    let checked = kafka.clone();
    let partitions =
        tokio::task::spawn_blocking(move || checked.check_topics()).await.context("looking at the topics")??;
    let found = count(&mut connection, user).await?;
    if settings.dry_run {
        let sessions = ask(&kafka, move |log, kafka| sessions(log, kafka, user, partitions)).await?;
        println!("{} would be removed", found.text(user));
        println!("{} would be ended", sessions_text(&sessions));
        println!("what the sink has not written yet is not counted");
        print_remains(&mut connection, &kafka, user, TimestampMs::now()).await;
        return Ok(());
    }
    let withdrawn_at = TimestampMs::now();
    let appender = Appender::new(&kafka)?;
    tell_the_log(&appender, &kafka, user, withdrawn_at).await?;
    eprintln!("user {user} is withdrawn and the friend list is empty; now the sink has to come past that");
    let ends = ask(&kafka, move |log, kafka| Ends::now(log, kafka, user, partitions)).await?;
    wait_for_sink(&mut connection, &ends, Duration::from_secs(settings.sink_wait_s.into())).await?;
    let ended = ask(&kafka, move |log, kafka| sessions(log, kafka, user, partitions)).await?;
    end_sessions(&appender, &kafka, user, &ended, partitions).await?;
    maintain(&mut connection, Wait::UntilFree).await?;
    let rows = remove(&mut connection, user, &kafka, &ends, withdrawn_at).await?;
    let list = match found.friends {
        Some(friends) => format!("a list of {} friends", grouped(friends)),
        None => "no friend list".to_owned(),
    };
    println!("{} rows and {list} of user {user} removed from the history", grouped(rows));
    println!("{} ended", sessions_text(&ended));
    // It is done, whatever can't be asked any more.
    match count(&mut connection, user).await {
        Ok(left) if left.rows > 0 || left.friends.is_some() => {
            println!("{} came after the call: this is new data and stays", left.text(user));
        }
        Ok(_) => {}
        Err(error) => println!("whether something came after the call is not known: {error:#}"),
    }
    print_remains(&mut connection, &kafka, user, withdrawn_at).await;
    Ok(())
}

/// Runs questions about the log, which block.
async fn ask<T: Send + 'static>(
    kafka: &Kafka,
    question: impl FnOnce(&Log, &Kafka) -> Result<T, LogError> + Send + 'static,
) -> anyhow::Result<T> {
    let kafka = kafka.clone();
    let asking = tokio::task::spawn_blocking(move || question(&Log::open(&kafka)?, &kafka));
    Ok(asking.await.context("reading the log")??)
}

async fn count(connection: &mut PgConnection, user: UserId) -> anyhow::Result<Found> {
    let ms = |bound| format!("floor(extract(epoch FROM {bound}(reported_at)) * 1000)::bigint");
    let counting =
        format!("SELECT count(*), {}, {} FROM nearby.location_history WHERE user_id = $1", ms("min"), ms("max"));
    let (rows, first, last): (i64, Option<i64>, Option<i64>) = sqlx::query_as(AssertSqlSafe(counting))
        .bind(user.0)
        .fetch_one(&mut *connection)
        .await
        .context("counting rows")?;
    let friends = "SELECT cardinality(friends)::bigint FROM nearby.friend_lists WHERE user_id = $1";
    let friends = sqlx::query_scalar(friends).bind(user.0).fetch_optional(&mut *connection).await;
    let reported = first.zip(last).map(|(first, last)| (TimestampMs(first), TimestampMs(last)));
    Ok(Found { rows, reported, friends: friends.context("looking for the friend list")? })
}

/// Lists of others with this person in them: none if that takes too long, as it may without the lists' index.
async fn listed_by(connection: &mut PgConnection, user: UserId) -> anyhow::Result<Option<i64>> {
    let limit = format!("SET statement_timeout = {}", LISTS_LIMIT.as_millis());
    connection.execute(AssertSqlSafe(limit)).await.context("asking Postgres")?;
    let counting = "SELECT count(*) FROM nearby.friend_lists WHERE friends @> ARRAY[$1] AND user_id <> $1";
    let counted = sqlx::query_scalar(counting).bind(user.0).fetch_one(&mut *connection).await;
    connection.execute("SET statement_timeout = 0").await.context("asking Postgres")?;
    match counted {
        Ok(count) => Ok(Some(count)),
        Err(error) if code(&error).as_deref() == Some(TIMED_OUT) => Ok(None),
        Err(error) => Err(error).context("looking through the friend lists"),
    }
}

impl Found {
    fn text(&self, user: UserId) -> String {
        let between = match self.reported {
            Some((first, last)) => format!(" (reported from {} to {})", Rfc3339(first), Rfc3339(last)),
            None => String::new(),
        };
        let list = match self.friends {
            Some(friends) => format!("a list of {} friends", grouped(friends)),
            None => "no friend list".to_owned(),
        };
        format!("{} rows{between} and {list} of user {user}", grouped(self.rows))
    }
}

/// Nobody is shown the person any more, and the person nobody.
async fn tell_the_log(appender: &Appender, kafka: &Kafka, user: UserId, now: TimestampMs) -> anyhow::Result<()> {
    let key = Some(user.to_string().into_bytes());
    let withdrawal =
        LocationEvent { user_id: user, reported_at: now, received_at: now, position: None, source: Source::Unknown };
    let records = [
        Outgoing {
            topic: kafka.topics.location_events(),
            key: key.clone(),
            value: Some(kafka.codecs.codec::<LocationEvent>().encode(&withdrawal)),
            ..Outgoing::default()
        },
        Outgoing { topic: kafka.topics.friend_lists(), key, ..Outgoing::default() },
    ];
    appender.append(records.into_iter()).await.context("withdrawing the user: nothing was removed from the history")
}

impl Ends {
    /// A list counts on its user's partition only, and compaction may have taken the last records of the others; reports
    /// may be on any.
    fn now(log: &Log, kafka: &Kafka, user: UserId, partitions: i32) -> Result<Ends, LogError> {
        let (events, lists) = (kafka.topics.location_events(), kafka.topics.friend_lists());
        let of_user = partition_of(user, partitions);
        let mut ends = Ends::default();
        for span in log.spans(&events)? {
            ends.0.insert((events.clone(), span.partition), span);
        }
        for span in log.spans(&lists)?.into_iter().filter(|span| span.partition == of_user) {
            ends.0.insert((lists.clone(), span.partition), span);
        }
        Ok(ends)
    }

    /// Records that the sink has not passed, where there are some.
    fn unpassed<'a>(&'a self, held: &BTreeMap<(String, i32), i64>) -> BTreeMap<&'a (String, i32), i64> {
        let left = |(at, span): (&'a (String, i32), &Span)| {
            let next = held.get(at).copied().unwrap_or(span.from).max(span.from);
            (next < span.end).then_some((at, span.end - next))
        };
        self.0.iter().filter_map(left).collect()
    }

    /// By partition, from 0 on, for a topic all of whose partitions are in here.
    fn of_topic(&self, topic: &str) -> Vec<i64> {
        self.0.iter().filter(|((name, _), _)| name == topic).map(|(_, span)| span.end).collect()
    }
}

async fn wait_for_sink(connection: &mut PgConnection, ends: &Ends, silence_max: Duration) -> anyhow::Result<()> {
    let (mut least, mut since, mut told) = (i64::MAX, Instant::now(), None::<Instant>);
    loop {
        let rows: Vec<(String, i32, i64)> =
            sqlx::query_as("SELECT topic, kafka_partition, next_offset FROM nearby.sink_offsets")
                .fetch_all(&mut *connection)
                .await
                .context("asking how far the sink is; no row was removed, run this again")?;
        let held = rows.into_iter().map(|(topic, partition, next)| ((topic, partition), next)).collect();
        let unpassed = ends.unpassed(&held);
        let left: i64 = unpassed.values().sum();
        let Some((topic, partition)) = unpassed.keys().next() else { return Ok(()) };
        if left < least {
            (least, since) = (left, Instant::now());
        } else if since.elapsed() >= silence_max {
            bail!(
                "the sink has not come further for {} s: {} records of {} partitions are not in the history yet, the first of \
                 them {topic}/{partition}. Does a sink run? The user is withdrawn, no row was removed; run this again then",
                silence_max.as_secs(),
                grouped(left),
                unpassed.len(),
            );
        }
        if told.is_none_or(|told| told.elapsed() >= TOLD_INTERVAL) {
            eprintln!("the sink has {} records of {} partitions to go", grouped(left), unpassed.len());
            told = Some(Instant::now());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The gateways on which the user has a session.
fn sessions(log: &Log, kafka: &Kafka, user: UserId, partitions: i32) -> Result<BTreeSet<GatewayId>, LogError> {
    let (topic, of_user) = (kafka.topics.sessions(), partition_of(user, partitions));
    let spans: Vec<Span> = log.spans(&topic)?.into_iter().filter(|span| span.partition == of_user).collect();
    let reading = log.read(&topic, &spans, |record| {
        let key = record.key().and_then(|key| Session::parse_key(std::str::from_utf8(key).ok()?));
        (key, record.payload().is_some())
    })?;
    let (mut records, mut open) = (Merged::new(vec![reading])?, BTreeSet::new());
    while let Some(record) = records.next()? {
        match record.what {
            (Some((of, gateway)), true) if of == user => drop(open.insert(gateway)),
            (Some((of, gateway)), false) if of == user => drop(open.remove(&gateway)),
            _ => {}
        }
    }
    Ok(open)
}

async fn end_sessions(
    appender: &Appender,
    kafka: &Kafka,
    user: UserId,
    open: &BTreeSet<GatewayId>,
    partitions: i32,
) -> anyhow::Result<()> {
    let tombstones = open.iter().map(|gateway| Outgoing {
        topic: kafka.topics.sessions(),
        partition: Some(partition_of(user, partitions)),
        key: Some(Session::key(user, gateway).into_bytes()),
        ..Outgoing::default()
    });
    appender.append(tombstones).await.context("ending the sessions: no row was removed, run this again")
}

fn sessions_text(open: &BTreeSet<GatewayId>) -> String {
    let gateways: Vec<&str> = open.iter().map(GatewayId::as_str).collect();
    match gateways.len() {
        0 => "no session".to_owned(),
        1 => format!("1 session, on {}", gateways[0]),
        several => format!("{several} sessions, on {}", gateways.join(", ")),
    }
}

/// Removes the rows, some at a time; how many there were, but for our own withdrawal. What stays is new data: beyond the ends,
/// and received since. Of a topic that was made again the offsets alone say nothing, nor of one that is not this deployment's.
async fn remove(
    connection: &mut PgConnection,
    user: UserId,
    kafka: &Kafka,
    ends: &Ends,
    withdrawn_at: TimestampMs,
) -> anyhow::Result<i64> {
    let topic = kafka.topics.location_events();
    let of_topic = ends.of_topic(&topic);
    let mut rows = 0;
    for DayTable { sql: table, .. } in tables(connection).await? {
        let removing = format!(
            "DELETE FROM {table} WHERE ctid = ANY (ARRAY( \
               SELECT ctid FROM {table} \
               WHERE user_id = $1 AND NOT (topic = $2 \
                 AND kafka_offset >= coalesce(($3::bigint[])[kafka_partition + 1], 0) \
                 AND extract(epoch FROM received_at) * 1000 >= $6) LIMIT $4)) \
             RETURNING topic = $2 AND lat IS NULL AND reported_at = received_at AND extract(epoch FROM reported_at) * 1000 = $5"
        );
        loop {
            let removed: Vec<bool> = sqlx::query_scalar(AssertSqlSafe(removing.clone()))
                .bind(user.0)
                .bind(&topic)
                .bind(&of_topic)
                .bind(ROWS_AT_ONCE)
                .bind(withdrawn_at.0)
                .bind(withdrawn_at.0 - CLOCKS_APART_MS_MAX)
                .fetch_all(&mut *connection)
                .await
                .with_context(|| format!("removing rows of {table}, after {} rows; run this again", grouped(rows)))?;
            rows += i64::try_from(removed.iter().filter(|ours| !**ours).count()).unwrap_or(i64::MAX);
            if i64::try_from(removed.len()).unwrap_or(i64::MAX) < ROWS_AT_ONCE {
                break;
            }
        }
    }
    Ok(rows)
}

/// Says all of it, and in the place of what cannot be asked why.
async fn print_remains(connection: &mut PgConnection, kafka: &Kafka, user: UserId, now: TimestampMs) {
    let others = match listed_by(connection, user).await {
        Ok(Some(count)) => format!("{} others", grouped(count)),
        Ok(None) => "others (too many lists to count)".to_owned(),
        Err(error) => format!("others (how many is not known: {error:#})"),
    };
    let (events, lists, letters) =
        (kafka.topics.location_events(), kafka.topics.friend_lists(), kafka.topics.dead_letters());
    let (sessions, counted) =
        (kafka.topics.sessions(), ask(kafka, move |log, kafka| letters_of(log, kafka, user)).await);
    println!("what remains elsewhere:");
    println!("- reports in {}", remains_deleted(&events, &settings_of(kafka, &events).await, now));
    println!("- the old friend list in {}", remains_compacted(&lists, &settings_of(kafka, &lists).await, now));
    println!(
        "- on which gateways the user was in {}",
        remains_compacted(&sessions, &settings_of(kafka, &sessions).await, now)
    );
    let letters = remains_deleted(&letters, &settings_of(kafka, &letters).await, now);
    if let Some(text) = letters_text(&counted, &letters) {
        println!("- {text}");
    }
    println!("- the id in the friend lists of {others}: whose graph it is has to replace those");
    println!(
        "- what gateways were told, in friend-moved-<gateway>, until retention or their end; topics and files of `nearby replay`; \
         exports; backups of Postgres, and its own files until vacuum"
    );
    println!("what the user reports from now on is new data: take the account's tokens away first");
}

async fn settings_of(kafka: &Kafka, topic: &str) -> Result<BTreeMap<String, String>, String> {
    kafka.topic_settings(topic).await.map_err(|error| error.to_string())
}

/// None: there are none.
fn letters_text(counted: &anyhow::Result<usize>, remains: &str) -> Option<String> {
    match counted {
        Ok(0) => None,
        Ok(count) => Some(format!(
            "{count} dead letters with this user's key in {remains}; redriving them would bring them back"
        )),
        Err(error) => Some(format!("perhaps dead letters with this user's key in {remains}: not known, {error:#}")),
    }
}

/// Dead letters whose key is the user's, or that of one of the user's sessions.
fn letters_of(log: &Log, kafka: &Kafka, user: UserId) -> Result<usize, LogError> {
    let topic = kafka.topics.dead_letters();
    let (whole, start) = (user.to_string(), format!("{user}/"));
    let is_of_user = |key: &[u8]| key == whole.as_bytes() || key.starts_with(start.as_bytes());
    let reading = log.read(&topic, &log.spans(&topic)?, |record| record.key().is_some_and(is_of_user))?;
    let (mut records, mut count) = (Merged::new(vec![reading])?, 0);
    while let Some(record) = records.next()? {
        count += usize::from(record.what);
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sink_has_to_pass_every_end_but_not_what_is_empty() {
        let span = |partition, from, end| Span { partition, from, end };
        let at = |partition| ("events".to_owned(), partition);
        let ends = Ends(
            [span(0, 0, 5), span(1, 7, 7), span(2, 3, 9)].map(|span| (at(span.partition), span)).into_iter().collect(),
        );
        assert_eq!(ends.of_topic("events"), [5, 7, 9]);
        assert_eq!(ends.of_topic("lists"), Vec::<i64>::new());
        let unpassed = |held: &[(i32, i64)]| {
            let held = held.iter().map(|(partition, next)| (at(*partition), *next)).collect();
            ends.unpassed(&held).into_iter().map(|((_, partition), left)| (*partition, left)).collect::<Vec<_>>()
        };
        assert_eq!(unpassed(&[]), [(0, 5), (2, 6)]);
        assert_eq!(unpassed(&[(0, 4), (2, 8)]), [(0, 1), (2, 1)]);
        // What retention has taken nobody has to pass.
        assert_eq!(unpassed(&[(0, 5), (2, 1)]), [(2, 6)]);
        assert_eq!(unpassed(&[(0, 5), (2, 12)]), []);
    }

    #[test]
    fn dead_letters_that_nobody_could_count_are_told_of() {
        let text = |counted| letters_text(&counted, "dead-letters for ever");
        assert_eq!(text(Ok(0)), None);
        let some = "2 dead letters with this user's key in dead-letters for ever; redriving them would bring them back";
        assert_eq!(text(Ok(2)).as_deref(), Some(some));
        let unknown =
            "perhaps dead letters with this user's key in dead-letters for ever: not known, reading the log: no broker";
        let error = anyhow::anyhow!("no broker").context("reading the log");
        assert_eq!(text(Err(error)).as_deref(), Some(unknown));
    }

    #[test]
    fn what_was_found_is_told() {
        let found = Found { rows: 1_234, reported: Some((TimestampMs(0), TimestampMs(1))), friends: Some(2) };
        let text = "1,234 rows (reported from 1970-01-01T00:00:00.000Z to 1970-01-01T00:00:00.001Z) and a list of 2 friends of user 7";
        assert_eq!(found.text(UserId(7)), text);
        let nothing = Found { rows: 0, reported: None, friends: None };
        assert_eq!(nothing.text(UserId(7)), "0 rows and no friend list of user 7");
    }
}
