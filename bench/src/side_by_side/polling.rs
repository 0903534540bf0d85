//! What a small team would build first: a table of positions in Postgres, and every viewer asks it for the friends within the
//! radius every 30 s.
//!
//! Time is pretended: in every 30 s everybody reports once and asks once, in orders of their own, and it goes on as fast as Postgres does.
//! So CPU time a report is that of the true rate, and how old what a viewer sees is comes from the pretended times.

use super::Settings;
use super::heard::Latency;
use super::loads::Loads;
use super::measured::{Row, Run};
use super::truth::Count;
use crate::cpu;
use crate::workload::{Move, user_id};
use anyhow::{Context, ensure};
use nearby_e2e::postgres::Postgres;
use sqlx::{Connection, PgConnection, Row as _};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

const INTERVAL_MS: u64 = 30_000;
/// Reports of one upsert: what arrives in a third of a second at 20,000 users.
const TOGETHER: usize = 200;
/// Viewers that ask at the same time.
const CONNECTIONS: usize = 4;
/// Between the numbers of users who ask one after the other: they do so in another order than they report in.
const STRIDE: u64 = 7_919;
/// Statistics and free space, before what is measured.
const SETTLE: Duration = Duration::from_secs(1);

/// How the distance is found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    /// In SQL, after a box of latitudes.
    Haversine,
    /// `ST_DWithin` of geographies on a sphere, and a GiST index.
    PostGis,
}

impl Distance {
    pub fn name(self) -> &'static str {
        match self {
            Distance::Haversine => "btree, haversine",
            Distance::PostGis => "PostGIS, GiST",
        }
    }

    fn schema(self) -> &'static str {
        match self {
            Distance::Haversine => {
                "create table friends (user_id bigint primary key, friends bigint[] not null);
                 create table positions (user_id bigint primary key, lat float8 not null, lon float8 not null,
                   reported_ms bigint not null) with (fillfactor = 50);"
            }
            Distance::PostGis => {
                "create extension postgis;
                 create table friends (user_id bigint primary key, friends bigint[] not null);
                 create table positions (user_id bigint primary key, place geography(point) not null,
                   reported_ms bigint not null) with (fillfactor = 50);
                 create index on positions using gist (place);"
            }
        }
    }

    fn upsert(self) -> &'static str {
        match self {
            Distance::Haversine => {
                "insert into positions select * from unnest($1::bigint[], $2::float8[], $3::float8[], $4::bigint[])
                 on conflict (user_id) do update set lat = excluded.lat, lon = excluded.lon, reported_ms = excluded.reported_ms"
            }
            Distance::PostGis => {
                "insert into positions select u, st_makepoint(lon, lat)::geography, at
                   from unnest($1::bigint[], $2::float8[], $3::float8[], $4::bigint[]) as report (u, lat, lon, at)
                 on conflict (user_id) do update set place = excluded.place, reported_ms = excluded.reported_ms"
            }
        }
    }

    fn ask(self) -> &'static str {
        match self {
            Distance::Haversine => {
                "select p.user_id, p.lat, p.lon, p.reported_ms from friends f, positions me, positions p
                 where f.user_id = $1 and me.user_id = $1 and p.user_id = any (f.friends)
                   and p.lat between me.lat - 0.073 and me.lat + 0.073
                   and 2 * 6371008.8 * asin(sqrt(least(1, sin(radians(p.lat - me.lat) / 2) ^ 2
                     + cos(radians(me.lat)) * cos(radians(p.lat)) * sin(radians(p.lon - me.lon) / 2) ^ 2))) <= 8000"
            }
            Distance::PostGis => {
                "select p.user_id, st_y(p.place::geometry), st_x(p.place::geometry), p.reported_ms
                 from friends f, positions me, positions p
                 where f.user_id = $1 and me.user_id = $1 and p.user_id = any (f.friends)
                   and st_dwithin(p.place, me.place, 8000, false)"
            }
        }
    }
}

/// Runs and returns the line of the tables.
pub async fn run(settings: &Settings, mut loads: Loads, reports: usize, distance: Distance) -> anyhow::Result<Row> {
    let postgres = Postgres::start()?;
    postgres.psql(distance.schema())?;
    let mut polling = Polling::connect(&postgres, distance, &loads).await?;
    let pid = postgres.pid().context("Postgres runs")?;
    let mut row = Row { peer: "polling", setting: distance.name().to_owned(), ..Row::default() };
    let mut stale_us = Vec::new();
    let places: Vec<Move> = (0..).zip(loads.places.iter().copied()).collect();
    for together in places.chunks(TOGETHER) {
        polling.report(together).await?;
    }
    postgres.psql("analyze")?;
    for number in 0..=settings.runs {
        // The first one fills every viewer's screen.
        let wanted = if number == 0 { loads.users() } else { reports };
        let (moves, truth) = loads.run(wanted, settings.runs + 1);
        ensure!(
            number > 0 || moves.len() == loads.users(),
            "a part of the recording is too short for everybody to ask"
        );
        let (began, before_s) = (Instant::now(), cpu::of_family(pid)?);
        let told = polling.go_on(&moves, &mut stale_us).await?;
        if number == 0 {
            stale_us.clear();
            postgres.psql("vacuum analyze")?;
            tokio::time::sleep(SETTLE).await;
            continue;
        }
        let cpu_s = vec![("postgres", cpu::of_family(pid)? - before_s)];
        let run = Run { reports: moves.len() as u64, seconds: began.elapsed().as_secs_f64(), cpu_s, told, truth };
        run.print(&row);
        row.runs.push(run);
        row.resident_bytes = vec![("postgres", cpu::resident_bytes_of_family(pid)?)];
    }
    let stale = Latency::of(stale_us);
    let [p50, p95, p99, max] = [stale.p50_us, stale.p95_us, stale.p99_us, stale.max_us].map(|us| us / 1_000_000);
    row.note = format!(
        "what a viewer is shown is p50 {p50} s, p95 {p95} s, p99 {p99} s, at most {max} s old; two reports between two questions are told once{}",
        if reports < loads.users() {
            "; a run is shorter than 30 s, and its first questions tell of the run before"
        } else {
            ""
        }
    );
    Ok(row)
}

struct Polling {
    distance: Distance,
    writer: PgConnection,
    askers: Vec<PgConnection>,
    /// By user: whom the screen shows, and when that one had reported.
    screens: Vec<HashMap<i64, i64>>,
    /// Reports so far.
    done: u64,
}

impl Polling {
    async fn connect(postgres: &Postgres, distance: Distance, loads: &Loads) -> anyhow::Result<Polling> {
        let url = postgres.url();
        let mut writer = PgConnection::connect(&url).await?;
        for (user, friends) in (0..).zip(loads.friends.iter()) {
            let friends: Vec<i64> = friends.iter().map(|friend| user_id(*friend).0).collect();
            sqlx::query("insert into friends values ($1, $2)")
                .bind(user_id(user).0)
                .bind(friends)
                .execute(&mut writer)
                .await?;
        }
        let mut askers = Vec::new();
        for _ in 0..CONNECTIONS {
            askers.push(PgConnection::connect(&url).await?);
        }
        let screens = vec![HashMap::new(); loads.users()];
        Ok(Polling { distance, writer, askers, screens, done: 0 })
    }

    /// Reports, and between them as many questions.
    async fn go_on(&mut self, moves: &[Move], stale_us: &mut Vec<u64>) -> anyhow::Result<Count> {
        let mut count = Count::default();
        for together in moves.chunks(TOGETHER) {
            let from = self.done;
            self.report(together).await?;
            let viewers: Vec<(u64, u32)> = (from..self.done)
                .map(|nth| Ok((self.at_ms(nth), u32::try_from((nth * STRIDE) % self.users())?)))
                .collect::<anyhow::Result<_>>()?;
            let each = viewers.len().div_ceil(CONNECTIONS).max(1);
            let (sql, parts) = (self.distance.ask(), viewers.chunks(each));
            let answers = self.askers.iter_mut().zip(parts).map(|(asker, part)| ask(asker, sql, part));
            for (now_ms, viewer, seen) in futures_util::future::try_join_all(answers).await?.into_iter().flatten() {
                count += shown(&mut self.screens[viewer as usize], seen, now_ms, stale_us);
            }
        }
        Ok(count)
    }

    /// One upsert.
    async fn report(&mut self, together: &[Move]) -> anyhow::Result<()> {
        let (mut ids, mut lats, mut lons, mut times) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (nth, (user, place)) in (self.done..).zip(latest(together)) {
            ids.push(user_id(user).0);
            lats.push(place.lat());
            lons.push(place.lon());
            times.push(i64::try_from(self.at_ms(nth))?);
        }
        let upsert = sqlx::query(self.distance.upsert()).bind(ids).bind(lats).bind(lons).bind(times);
        upsert.execute(&mut self.writer).await.context("an upsert")?;
        self.done += together.len() as u64;
        Ok(())
    }

    /// When that report is made, in pretended time.
    fn at_ms(&self, nth: u64) -> u64 {
        nth * INTERVAL_MS / self.users()
    }

    fn users(&self) -> u64 {
        self.screens.len() as u64
    }
}

/// An upsert may have a user once.
fn latest(moves: &[Move]) -> Vec<Move> {
    let mut seen = HashSet::new();
    let mut latest: Vec<Move> = moves.iter().rev().filter(|(user, _)| seen.insert(*user)).copied().collect();
    latest.reverse();
    latest
}

/// What the screen shows now, and what that tells the viewer.
fn shown(screen: &mut HashMap<i64, i64>, seen: HashMap<i64, i64>, now_ms: u64, stale_us: &mut Vec<u64>) -> Count {
    let mut count = Count::default();
    for (friend, reported_ms) in &seen {
        if screen.get(friend) != Some(reported_ms) {
            count.shown += 1;
            stale_us.push(now_ms.saturating_sub(reported_ms.cast_unsigned()) * 1_000);
        }
    }
    count.left += screen.keys().filter(|friend| !seen.contains_key(friend)).count() as u64;
    *screen = seen;
    count
}

/// Each viewer's friends within the radius, and when they had reported.
async fn ask(
    asker: &mut PgConnection,
    sql: &'static str,
    viewers: &[(u64, u32)],
) -> anyhow::Result<Vec<(u64, u32, HashMap<i64, i64>)>> {
    let mut answers = Vec::with_capacity(viewers.len());
    for (now_ms, viewer) in viewers {
        let rows = sqlx::query(sql).bind(user_id(*viewer).0).fetch_all(&mut *asker).await.context("a question")?;
        let mut seen = HashMap::with_capacity(rows.len());
        for row in rows {
            // What a client would draw is read, too.
            let (_, _): (f64, f64) = (row.try_get(1)?, row.try_get(2)?);
            seen.insert(row.try_get(0)?, row.try_get(3)?);
        }
        answers.push((*now_ms, *viewer, seen));
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearby_schemas::Place;

    #[test]
    fn of_several_reports_of_a_user_the_last_is_written() {
        let at = |user, lat_e7| (user, Place { lat_e7, lon_e7: 0 });
        assert_eq!(latest(&[at(1, 1), at(2, 2), at(1, 3), at(3, 4)]), [at(2, 2), at(1, 3), at(3, 4)]);
    }

    #[test]
    fn a_screen_tells_what_is_new_on_it_and_what_has_gone() {
        let (mut screen, mut stale_us) = (HashMap::from([(1, 10), (2, 10), (3, 10)]), Vec::new());
        let seen = HashMap::from([(1, 10), (2, 20), (4, 5)]);
        let count = shown(&mut screen, seen.clone(), 25, &mut stale_us);
        assert_eq!(count, Count { shown: 2, left: 1, distances_dm: 0 });
        assert_eq!(screen, seen);
        stale_us.sort_unstable();
        assert_eq!(stale_us, [5_000, 20_000]);
    }
}
