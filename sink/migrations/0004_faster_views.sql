-- The views again, with the same columns and rows. Each goes through the history by stretches of time (days, hours, slots of 10
-- minutes) whose beginning and end reach the table: so a question about one of them reads one partition or less, whatever it
-- is asked with, and what is sorted for one stretch fits into memory. docs/decisions/0015-history-indexes.md has the numbers.

CREATE VIEW nearby.history_span AS
SELECT min(reported_at) AS first_at, max(reported_at) AS last_at
FROM nearby.location_history;

COMMENT ON VIEW nearby.history_span IS 'From when to when there is history; read from an index.';
COMMENT ON COLUMN nearby.history_span.first_at IS 'Time of the first report.';
COMMENT ON COLUMN nearby.history_span.last_at IS 'Time of the last report.';


-- Two steps: the newest time of each user by counting alone, and then its report by the index.
CREATE OR REPLACE VIEW nearby.latest_positions AS
SELECT user_id, reported_at, received_at, lat, lon, accuracy_m, speed_mps, heading_deg, cell
FROM (
    SELECT user_id, max(reported_at) AS reported_at
    FROM nearby.location_history
    WHERE lat IS NOT NULL
    GROUP BY user_id
) AS newest_at
CROSS JOIN LATERAL (
    SELECT
        received_at, lat, lon, accuracy_m, speed_mps, heading_deg, cell, topic, kafka_partition,
        min(kafka_offset) OVER (PARTITION BY topic, kafka_partition) AS first_offset
    FROM nearby.location_history AS report
    WHERE report.user_id = newest_at.user_id AND report.reported_at = newest_at.reported_at AND lat IS NOT NULL
    ORDER BY kafka_offset DESC
    LIMIT 1
) AS newest
-- As the engine has it: a withdrawal counts at once, in the order of the log, whatever its time; and afterwards only
-- reports with a later time; so a repeated report is as old as the first of its time. Only one partition's offsets have an order.
WHERE NOT EXISTS (
    SELECT
    FROM nearby.location_history AS withdrawal
    WHERE withdrawal.user_id = newest_at.user_id
        AND withdrawal.lat IS NULL
        AND (
            withdrawal.reported_at >= newest_at.reported_at
            OR (
                (withdrawal.topic, withdrawal.kafka_partition) = (newest.topic, newest.kafka_partition)
                AND withdrawal.kafka_offset > newest.first_offset
            )
        )
);


CREATE OR REPLACE VIEW nearby.user_days AS
SELECT user_id, (midnight AT TIME ZONE 'UTC')::date AS day, fixes, distance_m, of_day.first_at, of_day.last_at
FROM nearby.history_span
CROSS JOIN generate_series(
    date_bin('24 hours', history_span.first_at, 'epoch'), history_span.last_at, interval '24 hours'
) AS midnight
CROSS JOIN LATERAL (
    SELECT
        user_id,
        count(*) AS fixes,
        coalesce(sum(nearby.distance_m(lat_before, lon_before, lat, lon)), 0) AS distance_m,
        min(reported_at) AS first_at,
        max(reported_at) AS last_at
    FROM (
        SELECT
            user_id, reported_at, lat, lon,
            lag(lat) OVER day_of_user AS lat_before,
            lag(lon) OVER day_of_user AS lon_before
        FROM nearby.fixes
        WHERE reported_at >= midnight AND reported_at < midnight + interval '24 hours'
        WINDOW day_of_user AS (PARTITION BY user_id ORDER BY reported_at)
    ) AS leg
    GROUP BY user_id
) AS of_day;


CREATE OR REPLACE VIEW nearby.cell_hours AS
SELECT cell, hour, fixes, users
FROM nearby.history_span
CROSS JOIN generate_series(
    date_bin('1 hour', history_span.first_at, 'epoch'), history_span.last_at, interval '1 hour'
) AS hour
CROSS JOIN LATERAL (
    SELECT cell, count(*) AS fixes, count(DISTINCT user_id) AS users
    FROM nearby.fixes
    WHERE reported_at >= hour AND reported_at < hour + interval '1 hour'
    GROUP BY cell
) AS cell_in_hour;


-- A loop over arrays: a window function in PL/pgSQL, as before, is called once a row.
CREATE FUNCTION nearby.stays_among(times timestamptz[], lats double precision[], lons double precision[])
RETURNS TABLE (started_at timestamptz, ended_at timestamptz, fixes bigint, lat double precision, lon double precision)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
DECLARE
    first_of_run integer := 1;
    after_last integer := cardinality(times) + 1;
BEGIN
    lat := lats[1];
    lon := lons[1];
    FOR fix IN 2 .. after_last LOOP
        CONTINUE WHEN nearby.distance_m(lat, lon, lats[fix], lons[fix]) <= 200;
        IF times[fix - 1] - times[first_of_run] >= interval '10 minutes' THEN
            started_at := times[first_of_run];
            ended_at := times[fix - 1];
            fixes := fix - first_of_run;
            RETURN NEXT;
        END IF;
        first_of_run := fix;
        lat := lats[fix];
        lon := lons[fix];
    END LOOP;
END
$$;

COMMENT ON FUNCTION nearby.stays_among IS
    'Stays among one user''s fixes, given in order of time; what a stay is, the view stays says.';

CREATE OR REPLACE VIEW nearby.stays AS
SELECT
    user_id,
    started_at,
    ended_at,
    extract(epoch FROM ended_at - started_at)::double precision AS duration_s,
    fixes,
    lat,
    lon
FROM (
    SELECT user_id, array_agg(reported_at) AS times, array_agg(lat) AS lats, array_agg(lon) AS lons
    -- In order, because DISTINCT ON has them sorted; the test on recorded movement would notice if it were not so.
    FROM (SELECT user_id, reported_at, lat, lon FROM nearby.fixes ORDER BY user_id, reported_at) AS in_order
    GROUP BY user_id
) AS history
CROSS JOIN LATERAL nearby.stays_among(times, lats, lons);

DROP AGGREGATE nearby.stay_run_of(double precision, double precision);
DROP FUNCTION nearby.stay_run_with;
DROP TYPE nearby.stay_run;


-- From a slot's fixes to the friends of who was there: pairs are hashed once, and joined before they are unnested.
CREATE OR REPLACE VIEW nearby.encounters AS
WITH pairs AS MATERIALIZED (
    SELECT user_a, array_agg(user_b) AS users_b
    FROM (
        SELECT DISTINCT least(user_id, friend) AS user_a, greatest(user_id, friend) AS user_b
        FROM nearby.friend_lists, unnest(friends) AS friend
        WHERE friend <> user_id
    ) AS pair
    GROUP BY user_a
)
SELECT slot, user_a, user_b, distance_m
FROM nearby.history_span
CROSS JOIN generate_series(
    date_bin('10 minutes', history_span.first_at, 'epoch'), history_span.last_at, interval '10 minutes'
) AS slot
CROSS JOIN LATERAL (
    WITH minutes AS MATERIALIZED (
        SELECT DISTINCT ON (user_id, date_bin('1 minute', reported_at, 'epoch')) user_id, lat, lon
        FROM nearby.location_history
        WHERE lat IS NOT NULL AND reported_at >= slot AND reported_at < slot + interval '10 minutes'
        ORDER BY user_id, date_bin('1 minute', reported_at, 'epoch'), reported_at DESC, kafka_offset DESC
    )
    SELECT user_a, user_b, min(nearby.distance_m(a.lat, a.lon, b.lat, b.lon)) AS distance_m
    FROM (
        SELECT user_a, unnest(users_b) AS user_b, lat, lon
        FROM minutes
        JOIN pairs ON user_a = user_id
    ) AS a
    JOIN minutes AS b ON b.user_id = user_b
    -- 8 km are 0.07195 degrees of latitude: who is farther apart than that needs no haversine.
    WHERE abs(a.lat - b.lat) <= 0.0721
    GROUP BY user_a, user_b
) AS met
WHERE distance_m <= 8000;

-- The view goes by time; this goes by person. Who has this user as a friend is found by reading all friend lists: a GIN index on
-- friends would find it at once, and the sink would pay for it at each list that changes.
CREATE FUNCTION nearby.encounters_of(who bigint)
RETURNS TABLE (slot timestamptz, user_a bigint, user_b bigint, distance_m double precision)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    WITH others AS (
        SELECT unnest(friends) AS friend FROM nearby.friend_lists WHERE friend_lists.user_id = who
        UNION
        SELECT friend_lists.user_id FROM nearby.friend_lists WHERE who = ANY (friends)
    ),
    mine AS MATERIALIZED (
        SELECT DISTINCT ON (date_bin('1 minute', reported_at, 'epoch'))
            date_bin('10 minutes', reported_at, 'epoch') AS met_at, lat, lon
        FROM nearby.location_history
        WHERE location_history.user_id = who AND lat IS NOT NULL
        ORDER BY date_bin('1 minute', reported_at, 'epoch'), reported_at DESC, kafka_offset DESC
    )
    SELECT met_at, least(who, friend), greatest(who, friend), min(nearby.distance_m(mine.lat, mine.lon, theirs.lat, theirs.lon))
    FROM others
    CROSS JOIN LATERAL (
        SELECT DISTINCT ON (date_bin('1 minute', reported_at, 'epoch'))
            date_bin('10 minutes', reported_at, 'epoch') AS met_at, lat, lon
        FROM nearby.location_history
        WHERE location_history.user_id = friend AND lat IS NOT NULL
        ORDER BY date_bin('1 minute', reported_at, 'epoch'), reported_at DESC, kafka_offset DESC
    ) AS theirs
    JOIN mine USING (met_at)
    WHERE friend <> who
    GROUP BY met_at, friend
    HAVING min(nearby.distance_m(mine.lat, mine.lon, theirs.lat, theirs.lon)) <= 8000
$$;

COMMENT ON FUNCTION nearby.encounters_of IS 'The rows of encounters in which this user is one of the two, found by the user''s own history.';


-- Compiling a plan takes seconds where there are many partitions, most of them never read: of a question of 0.3 s about 10 minutes
-- 4.4 s were that. New connections have it off, as Postgres 19 will by default; ALTER DATABASE … RESET jit undoes it.
DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET jit = off', current_database());
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE WARNING '% does not own the database: questions are answered sooner after ALTER DATABASE … SET jit = off', current_user;
END
$$;


-- The functions that came since the role was made.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nearby_analyst') THEN
        CALL nearby.let_analysts_read();
    END IF;
END
$$;
