-- The rows of three views for a stretch of time, by as many processes as the server gives a query (max_parallel_workers_per_gather and the
-- one that asks), four at most; halves made two of it. And days and encounters for less work: planned for the days that they are asked
-- about. docs/decisions/0015-history-indexes.md has the numbers.
CREATE FUNCTION nearby.parts()
RETURNS integer
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT least(current_setting('max_parallel_workers_per_gather')::integer + 1, 4)
$$;

-- enable_indexscan: who asks may have it off, and without it the history's beginning and end are found by reading all of it.
-- CASE and not greatest() or least(): these pass over a null, and there would be no end of stretches in no history.
CREATE FUNCTION nearby.stretches(from_at timestamptz, to_at timestamptz, length interval)
RETURNS SETOF timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
SET enable_indexscan = on
AS $$
    SELECT stretch
    FROM nearby.history_span
    CROSS JOIN generate_series(
        date_bin(length, CASE WHEN from_at > first_at THEN from_at ELSE first_at END, 'epoch'),
        CASE WHEN to_at < last_at THEN to_at ELSE last_at END,
        length
    ) AS stretch
    WHERE stretch >= from_at AND stretch < to_at
$$;

COMMENT ON FUNCTION nearby.parts IS 'Into how many parts the functions …_between divide their work.';
COMMENT ON FUNCTION nearby.stretches IS
    'The beginnings of days, hours or slots, as long as is said, from one moment to before another and within the history.';


-- From the table and not from fixes, whose other columns would be sorted as nulls: a tenth of all the work.
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
        FROM (
            SELECT DISTINCT ON (user_id, reported_at) user_id, reported_at, lat, lon
            FROM nearby.location_history
            WHERE lat IS NOT NULL AND reported_at >= midnight AND reported_at < midnight + interval '24 hours'
            ORDER BY user_id, reported_at, kafka_offset DESC
        ) AS fix
        WINDOW day_of_user AS (PARTITION BY user_id ORDER BY reported_at)
    ) AS leg
    GROUP BY user_id
) AS of_day;

-- The query of the view with the day as a value: each day's plan reads its partition from end to end, where one for any day would go
-- through the index. Not a function that both call: who reads a view needs no rights on what it reads, but on what its functions read.
CREATE FUNCTION nearby.user_days_part(from_day date, to_day date, part integer)
RETURNS SETOF nearby.user_days
LANGUAGE plpgsql STABLE PARALLEL SAFE COST 100000000 ROWS 100000
SET jit = off
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    parts integer := nearby.parts();
    midnight timestamptz;
BEGIN
    IF part >= parts THEN
        RETURN;
    END IF;
    FOR midnight IN
        SELECT nearby.stretches(from_day::timestamp AT TIME ZONE 'UTC', to_day::timestamp AT TIME ZONE 'UTC', interval '24 hours')
    LOOP
        RETURN QUERY
        SELECT
            user_id,
            (midnight AT TIME ZONE 'UTC')::date,
            count(*),
            coalesce(sum(nearby.distance_m(lat_before, lon_before, lat, lon)), 0),
            min(reported_at),
            max(reported_at)
        FROM (
            SELECT
                user_id, reported_at, lat, lon,
                lag(lat) OVER day_of_user AS lat_before,
                lag(lon) OVER day_of_user AS lon_before
            FROM (
                SELECT DISTINCT ON (user_id, reported_at) user_id, reported_at, lat, lon
                FROM nearby.location_history
                WHERE lat IS NOT NULL AND reported_at >= midnight AND reported_at < midnight + interval '24 hours'
                    AND abs(user_id % parts) = part
                ORDER BY user_id, reported_at, kafka_offset DESC
            ) AS fix
            WINDOW day_of_user AS (PARTITION BY user_id ORDER BY reported_at)
        ) AS leg
        GROUP BY user_id;
    END LOOP;
END
$$;

CREATE FUNCTION nearby.cell_hours_part(from_at timestamptz, to_at timestamptz, part integer)
RETURNS SETOF nearby.cell_hours
LANGUAGE sql STABLE PARALLEL SAFE COST 100000000 ROWS 100000
SET jit = off
AS $$
    SELECT * FROM nearby.cell_hours
    WHERE hour >= from_at AND hour < to_at AND (extract(epoch FROM hour) / 3600)::bigint % nearby.parts() = part
$$;

-- The query of the view encounters with one condition more, on the first and the last slot: they are values when the plan is made, so
-- other days are not in it, and the hash tables get the size of a slot instead of that of all history, which no cache holds.
-- enable_indexscan: a slot's rows lie together, and are read by the page (a bitmap) for half of what reading them one by one costs.
-- enable_mergejoin: the planner expects a hundred times more pairs than there are, and would sort for a merge join.
CREATE FUNCTION nearby.encounters_part(from_at timestamptz, to_at timestamptz, part integer)
RETURNS SETOF nearby.encounters
LANGUAGE plpgsql STABLE PARALLEL SAFE COST 100000000 ROWS 100000
SET jit = off
SET enable_mergejoin = off
SET enable_indexscan = off
SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    parts integer := nearby.parts();
    first_slot timestamptz;
    last_slot timestamptz;
BEGIN
    SELECT min(stretch), max(stretch) INTO first_slot, last_slot FROM nearby.stretches(from_at, to_at, '10 minutes') AS stretch;
    IF part >= parts OR first_slot IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    -- In the order of the users, as minutes has them: what is next in one is next in the other's memory.
    WITH pairs AS MATERIALIZED (
        SELECT user_a, array_agg(user_b) AS users_b
        FROM (
            SELECT DISTINCT ON (user_a, user_b) user_a, user_b
            FROM (SELECT user_id, unnest(friends) AS friend FROM nearby.friend_lists) AS listed
            CROSS JOIN LATERAL (SELECT least(user_id, friend) AS user_a, greatest(user_id, friend) AS user_b) AS pair
            WHERE friend <> user_id
            ORDER BY user_a, user_b
        ) AS pair
        GROUP BY user_a
        ORDER BY user_a
    )
    SELECT slot, user_a, user_b, distance_m
    FROM generate_series(first_slot, last_slot, interval '10 minutes') AS slot
    CROSS JOIN LATERAL (
        WITH minutes AS MATERIALIZED (
            SELECT DISTINCT ON (user_id, date_bin('1 minute', reported_at, 'epoch')) user_id, lat, lon
            FROM nearby.location_history
            WHERE lat IS NOT NULL
                AND reported_at >= slot AND reported_at < slot + interval '10 minutes'
                AND reported_at >= first_slot AND reported_at < last_slot + interval '10 minutes'
            ORDER BY user_id, date_bin('1 minute', reported_at, 'epoch'), reported_at DESC, kafka_offset DESC
        )
        SELECT user_a, user_b, min(nearby.distance_m(a.lat, a.lon, b.lat, b.lon)) AS distance_m
        FROM (
            SELECT user_a, unnest(users_b) AS user_b, lat, lon
            FROM minutes
            JOIN pairs ON user_a = user_id
        ) AS a
        JOIN minutes AS b ON b.user_id = user_b
        WHERE abs(a.lat - b.lat) <= 0.0721
        GROUP BY user_a, user_b
    ) AS met
    WHERE distance_m <= 8000 AND (extract(epoch FROM slot) / 600)::bigint % parts = part;
END
$$;

COMMENT ON FUNCTION nearby.user_days_part IS 'Part of user_days_between: one in so many users, counted from 0.';
COMMENT ON FUNCTION nearby.cell_hours_part IS 'Part of cell_hours_between: one in so many hours, counted from 0.';
COMMENT ON FUNCTION nearby.encounters_part IS 'Part of encounters_between: one in so many slots, counted from 0.';

CREATE OR REPLACE FUNCTION nearby.user_days_between(from_day date, to_day date)
RETURNS SETOF nearby.user_days
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT * FROM nearby.user_days_part(from_day, to_day, 0)
    UNION ALL
    SELECT * FROM nearby.user_days_part(from_day, to_day, 1)
    UNION ALL
    SELECT * FROM nearby.user_days_part(from_day, to_day, 2)
    UNION ALL
    SELECT * FROM nearby.user_days_part(from_day, to_day, 3)
$$;

CREATE OR REPLACE FUNCTION nearby.cell_hours_between(from_at timestamptz, to_at timestamptz)
RETURNS SETOF nearby.cell_hours
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT * FROM nearby.cell_hours_part(from_at, to_at, 0)
    UNION ALL
    SELECT * FROM nearby.cell_hours_part(from_at, to_at, 1)
    UNION ALL
    SELECT * FROM nearby.cell_hours_part(from_at, to_at, 2)
    UNION ALL
    SELECT * FROM nearby.cell_hours_part(from_at, to_at, 3)
$$;

CREATE OR REPLACE FUNCTION nearby.encounters_between(from_at timestamptz, to_at timestamptz)
RETURNS SETOF nearby.encounters
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT * FROM nearby.encounters_part(from_at, to_at, 0)
    UNION ALL
    SELECT * FROM nearby.encounters_part(from_at, to_at, 1)
    UNION ALL
    SELECT * FROM nearby.encounters_part(from_at, to_at, 2)
    UNION ALL
    SELECT * FROM nearby.encounters_part(from_at, to_at, 3)
$$;

COMMENT ON FUNCTION nearby.user_days_between IS
    'The rows of user_days from one day to before another, by the processes that the server has free. For a day of everybody or more; one user''s days the view finds at once.';
COMMENT ON FUNCTION nearby.cell_hours_between IS
    'The rows of cell_hours whose hour is from one time to before another, by the processes that the server has free.';
COMMENT ON FUNCTION nearby.encounters_between IS
    'The rows of encounters whose slot is from one time to before another, by the processes that the server has free. One user''s are found at once by encounters_of.';

DROP FUNCTION nearby.user_days_half;
DROP FUNCTION nearby.cell_hours_half;
DROP FUNCTION nearby.encounters_half;


-- The functions that came since the role was made.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nearby_analyst') THEN
        CALL nearby.let_analysts_read();
    END IF;
END
$$;
