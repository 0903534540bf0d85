//! `nearby history retain` on real Postgres.

use anyhow::{Context, ensure};
use nearby_e2e::nearby::{Ended, run};
use nearby_e2e::postgres::{Postgres, psql};
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_secs(20);

fn with_history() -> anyhow::Result<Postgres> {
    let postgres = Postgres::start()?;
    postgres.make_history()?;
    Ok(postgres)
}

/// `nearby history` with words parted by spaces.
fn history(args: &str, envs: &[(&str, &str)]) -> anyhow::Result<Ended> {
    let args: Vec<&str> = ["history"].into_iter().chain(args.split(' ')).collect();
    run(&args, envs)
}

/// Makes the partitions of days so many days ago, each with so many rows; says their names.
fn make_days(postgres: &Postgres, days: &[(i64, i64)]) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for (ago, rows) in days {
        let day = format!("date_trunc('day', now() at time zone 'UTC') - interval '{ago} days'");
        let name =
            postgres.psql(&format!("select 'location_history_' || to_char({day}, 'YYYYMMDD')"))?.trim().to_owned();
        postgres.psql(&format!(
            "do $$ declare first timestamptz := ({day}) at time zone 'UTC'; begin \
               execute format('create table nearby.{name} partition of nearby.location_history for values from (%L) to (%L)', \
                 first, first + interval '1 day'); \
               insert into nearby.location_history (user_id, reported_at, received_at, lat, lon, cell, topic, kafka_partition, kafka_offset) \
               select n, first, first, 1, 2, 3, 't', {ago}, n from generate_series(1, {rows}) n; \
             end $$"
        ))?;
        names.push(name);
    }
    Ok(names)
}

fn days_left(postgres: &Postgres) -> anyhow::Result<Vec<String>> {
    let names = postgres.psql(
        "select relname from pg_class where relnamespace = 'nearby'::regnamespace and relkind = 'r' \
         and relname like 'location_history_2%' order by relname",
    )?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn until<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + STEP;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {STEP:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn retain_removes_whole_old_days_and_says_which() -> anyhow::Result<()> {
    let postgres = with_history()?;
    let url = postgres.url();
    let env = [("NEARBY_DATABASE_URL", url.as_str())];
    let names = make_days(&postgres, &[(40, 3), (31, 1_200), (30, 7), (9, 1), (0, 2)])?;
    // What an interrupted run may leave: a day that is detached, but still there; and a table that nobody knows.
    let cut = make_days(&postgres, &[(50, 5)])?.remove(0);
    postgres.psql(&format!("alter table nearby.location_history detach partition nearby.{cut}"))?;
    postgres.psql(
        "create table nearby.odd partition of nearby.location_history for values from ('2001-01-01') to ('2001-02-01')",
    )?;

    let tried = history("retain --days 30 --dry-run", &env)?;
    ensure!(tried.code == Some(0) && tried.stderr.is_empty(), "{tried:?}");
    ensure!(days_left(&postgres)?.len() == 6, "a dry run removes nothing");
    let ended = history("retain --days 30", &env)?;
    ensure!(ended.code == Some(0), "{ended:?}");
    let heads = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split(" rows").next().unwrap_or_default().to_owned()).collect()
    };
    let day = |name: &str| {
        let digits = &name["location_history_".len()..];
        format!("{}-{}-{}", &digits[..4], &digits[4..6], &digits[6..])
    };
    let expected = [
        format!("{cut}: {}, 5", day(&cut)),
        format!("{}: {}, 3", names[0], day(&names[0])),
        format!("{}: {}, 1,200", names[1], day(&names[1])),
        "odd stays: by its name it is no day's partition".to_owned(),
        "3 days with 1,208".to_owned(),
    ];
    ensure!(heads(&tried.stdout) == expected && heads(&ended.stdout) == expected, "{tried:?} {ended:?}");
    ensure!(tried.stdout.replace("would be ", "") == ended.stdout, "both say the same: {tried:?} {ended:?}");
    ensure!(ended.stdout.contains(&format!("since {}T00:00:00.000Z is kept", day(&names[2]))), "{ended:?}");
    ensure!(ended.stdout.lines().next().is_some_and(|line| line.contains("(an earlier run had begun)")), "{ended:?}");
    ensure!(days_left(&postgres)? == names[2..], "{:?}", days_left(&postgres)?);
    ensure!(postgres.psql("select count(*) from nearby.location_history")?.trim() == "10");

    let few = history("retain --days 5", &env)?;
    ensure!(few.code == Some(0) && few.stdout.contains("reports may be up to 8 days late"), "{few:?}");
    ensure!(!ended.stdout.contains("late"), "{ended:?}");
    ensure!(days_left(&postgres)? == names[4..], "{:?}", days_left(&postgres)?);
    let again = history("retain --days 30", &env)?;
    ensure!(again.code == Some(0) && again.stdout.contains("0 days with 0 rows"), "{again:?}");

    for (args, because) in [
        ("retain --days 0", "from 1 to 36500"),
        ("retain --days=-1", "from 1 to 36500"),
        ("retain --days 40000", "from 1 to 36500"),
        ("retain", "--days"),
        ("retain --days 30 --lock-wait-s 0", "--lock-wait-s"),
        ("retain --days 30 --database-url mysql://a", "it has to start with postgresql://"),
    ] {
        let refused = history(args, &env)?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(because), "{args}: {refused:?}");
    }
    let empty = Postgres::start()?;
    let refused = history("retain --days 30", &[("NEARBY_DATABASE_URL", &empty.url())])?;
    ensure!(refused.code == Some(2) && refused.stderr.contains("`nearby sink` makes it"), "{refused:?}");
    Ok(())
}

#[test]
fn retain_keeps_nobody_waiting_and_goes_on_where_it_was() -> anyhow::Result<()> {
    let postgres = with_history()?;
    let url = postgres.url();
    let env = [("NEARBY_DATABASE_URL", url.as_str())];
    let names = make_days(&postgres, &[(40, 3), (0, 2)])?;
    // An analyst in the middle of something, who has the old day in use.
    let reader = std::thread::spawn({
        let url = url.clone();
        move || psql(&url, "begin; select count(*) from nearby.location_history; select pg_sleep(600)")
    });
    let reading = "select pid from pg_stat_activity where query like '%pg_sleep(600)' and wait_event = 'PgSleep'";
    let pid = until("the reader", || {
        let pid = postgres.psql(reading)?.trim().to_owned();
        Ok((!pid.is_empty()).then_some(pid))
    })?;

    let retaining = std::thread::spawn({
        let url = url.clone();
        move || history("retain --days 30 --lock-wait-s 10", &[("NEARBY_DATABASE_URL", &url)])
    });
    // Meanwhile others read and write, and a second one is told to wait.
    let mut slowest = Duration::ZERO;
    let mut second = None;
    while !retaining.is_finished() {
        // As Postgres has it: starting psql is nobody's lock.
        let waited_ms = postgres.psql(
            "begin; select count(*) from nearby.location_history; \
             insert into nearby.location_history select 9, now(), now(), 1, 2, 0, 0, 0, 3, 't', 0, 1000 + count(*) from nearby.location_history; \
             select round(1000 * extract(epoch from clock_timestamp() - now())); commit",
        )?;
        let waited_ms = waited_ms.lines().last().context("a time")?.parse()?;
        slowest = slowest.max(Duration::from_millis(waited_ms));
        if second.is_none() && !postgres.psql("select 1 from pg_locks where locktype = 'advisory'")?.is_empty() {
            second = Some(history("retain --days 30", &env)?);
        }
    }
    ensure!(slowest < Duration::from_millis(1_900), "somebody waited for {slowest:?}");
    let second = second.context("the first one was seen at work")?;
    ensure!(second.code == Some(1) && second.stderr.contains("another `nearby history`"), "{second:?}");
    let ended = retaining.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    let because = format!("{} is in use by others after 10 s", names[0]);
    ensure!(ended.code == Some(1) && ended.stderr.contains(&because) && ended.stdout.is_empty(), "{ended:?}");
    let old = "select count(*) from nearby.location_history where reported_at < now() - interval '10 days'";
    ensure!(postgres.psql(old)?.trim() == "0", "nobody begins to read it any more");

    postgres.psql(&format!("select pg_terminate_backend({pid})"))?;
    drop(reader.join());
    let ended = history("retain --days 30", &env)?;
    ensure!(
        ended.code == Some(0) && ended.stdout.contains("3 rows") && ended.stdout.contains("an earlier run"),
        "{ended:?}"
    );
    ensure!(days_left(&postgres)? == names[1..], "{:?}", days_left(&postgres)?);
    Ok(())
}

/// Half detached, as a run leaves it that is interrupted while somebody reads.
fn half_detach(postgres: &Postgres, name: &str) -> anyhow::Result<()> {
    let sql = format!(
        "set lock_timeout = 300; alter table nearby.location_history detach partition nearby.{name} concurrently"
    );
    let url = postgres.url();
    let reader = std::thread::spawn({
        let url = url.clone();
        move || psql(&url, "begin; select count(*) from nearby.location_history; select pg_sleep(600)")
    });
    let reading = "select pid from pg_stat_activity where query like '%pg_sleep(600)' and wait_event = 'PgSleep'";
    let pid = until("the reader", || {
        let pid = postgres.psql(reading)?;
        Ok((!pid.is_empty()).then_some(pid))
    })?;
    ensure!(psql(&url, &sql).is_err(), "it is read");
    postgres.psql(&format!("select pg_terminate_backend({pid})"))?;
    drop(reader.join());
    ensure!(postgres.psql("select count(*) from pg_inherits where inhdetachpending")? == "1");
    Ok(())
}

#[test]
fn retain_gets_past_partitions_of_any_name_and_what_others_have_half_detached() -> anyhow::Result<()> {
    let postgres = with_history()?;
    let url = postgres.url();
    let env = [("NEARBY_DATABASE_URL", url.as_str())];
    let names = make_days(&postgres, &[(50, 1), (40, 3), (30, 7), (0, 2)])?;
    let weird = "\"Weird \"\"Name\"\"; --\"";
    postgres.psql(&format!(
        "create table nearby.{weird} partition of nearby.location_history for values from ('2001-01-01') to ('2001-02-01'); \
         create table nearby.location_history_20269999 partition of nearby.location_history for values from ('2002-01-01') to ('2002-02-01')"
    ))?;
    let stays = "by its name it is no day's partition";

    // A day that is to stay, which an earlier run with fewer days had begun with.
    half_detach(&postgres, &names[2])?;
    let tried = history("retain --days 45 --dry-run", &env)?;
    let again =
        format!("{} stays: an earlier run had begun to remove it, and it would be in the history again", names[2]);
    ensure!(tried.code == Some(0) && tried.stdout.contains(&again), "{tried:?}");
    let ended = history("retain --days 45", &env)?;
    for said in [again.replace("would be", "is"), format!("{}: ", names[0]), "1 days with 1 rows".to_owned()] {
        ensure!(ended.code == Some(0) && ended.stdout.contains(&said), "{said}: {ended:?}");
    }
    ensure!(ended.stdout.contains(&format!("Weird \"Name\"; -- stays: {stays}")), "{ended:?}");
    ensure!(ended.stdout.contains(&format!("location_history_20269999 stays: {stays}")), "{ended:?}");
    ensure!(postgres.psql("select count(*) from nearby.location_history")? == "12", "nothing else has gone");

    // And one that somebody made.
    half_detach(&postgres, weird)?;
    let ended = history("retain --days 35", &env)?;
    let finished = format!("Weird \"Name\"; -- stays: {stays}; detaching it, which somebody had begun, is finished");
    ensure!(ended.code == Some(0) && ended.stdout.contains(&finished), "{ended:?}");
    ensure!(ended.stdout.contains("1 days with 3 rows"), "{ended:?}");
    ensure!(postgres.psql(&format!("select count(*) from nearby.{weird}"))? == "0", "it is there");
    ensure!(postgres.psql("select count(*) from nearby.location_history")? == "9");
    Ok(())
}
