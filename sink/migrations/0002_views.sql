-- least() ignores nulls, so both its sides are null when an argument is. The bound 1 is for antipodes, where rounding
-- can lift the haversine above it. Not STRICT, because Postgres would not inline it then.
CREATE FUNCTION nearby.distance_m(lat1 double precision, lon1 double precision, lat2 double precision, lon2 double precision)
RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 2 * 6371008.8 * asin(least(
    1 + 0 * (lat1 + lon1 + lat2 + lon2),
    sqrt(
        sin(radians(lat2 - lat1) / 2) ^ 2
        + cos(radians(lat1)) * cos(radians(lat2)) * sin(radians(lon2 - lon1) / 2) ^ 2
    )
));

COMMENT ON FUNCTION nearby.distance_m IS
    'Great-circle distance in metres between two places in degrees (haversine, radius of the Earth 6371008.8 m); null if an argument is.';


CREATE VIEW nearby.fixes AS
SELECT DISTINCT ON (user_id, reported_at)
    user_id, reported_at, received_at, lat, lon, accuracy_m, speed_mps, heading_deg, cell
FROM nearby.location_history
WHERE lat IS NOT NULL
ORDER BY user_id, reported_at, kafka_offset DESC;

COMMENT ON VIEW nearby.fixes IS
    'Reports with a place, each (user, reported_at) once: of several the last in the log. The other views are built on it.';
COMMENT ON COLUMN nearby.fixes.user_id IS 'Who.';
COMMENT ON COLUMN nearby.fixes.reported_at IS 'When, by the client''s clock.';
COMMENT ON COLUMN nearby.fixes.received_at IS 'When a gateway accepted the report.';
COMMENT ON COLUMN nearby.fixes.lat IS 'Latitude in degrees, WGS 84.';
COMMENT ON COLUMN nearby.fixes.lon IS 'Longitude in degrees, WGS 84.';
COMMENT ON COLUMN nearby.fixes.accuracy_m IS 'Radius of uncertainty in metres, if the client said.';
COMMENT ON COLUMN nearby.fixes.speed_mps IS 'Speed in metres per second, if the client said.';
COMMENT ON COLUMN nearby.fixes.heading_deg IS 'Heading in degrees clockwise from true north, if the client said.';
COMMENT ON COLUMN nearby.fixes.cell IS 'H3 index at resolution 9 as a 64-bit number.';


CREATE VIEW nearby.latest_positions AS
SELECT user_id, reported_at, received_at, lat, lon, accuracy_m, speed_mps, heading_deg, cell
FROM (
    SELECT DISTINCT ON (user_id) *
    FROM nearby.location_history
    WHERE lat IS NOT NULL
    ORDER BY user_id, reported_at DESC, kafka_offset DESC
) AS newest
-- As the engine has it: a withdrawal counts at once, in the order of the log, whatever its time; and afterwards only
-- reports with a later time.
WHERE NOT EXISTS (
    SELECT
    FROM nearby.location_history AS withdrawal
    WHERE withdrawal.user_id = newest.user_id
        AND withdrawal.lat IS NULL
        AND (
            withdrawal.reported_at >= newest.reported_at
            OR (withdrawal.topic = newest.topic AND withdrawal.kafka_offset > newest.kafka_offset)
        )
);

COMMENT ON VIEW nearby.latest_positions IS
    'Where each user was at the newest report. A user who withdrew the position and has not shared again has no row.';
COMMENT ON COLUMN nearby.latest_positions.user_id IS 'Who.';
COMMENT ON COLUMN nearby.latest_positions.reported_at IS 'When, by the client''s clock.';
COMMENT ON COLUMN nearby.latest_positions.received_at IS 'When a gateway accepted the report.';
COMMENT ON COLUMN nearby.latest_positions.lat IS 'Latitude in degrees, WGS 84.';
COMMENT ON COLUMN nearby.latest_positions.lon IS 'Longitude in degrees, WGS 84.';
COMMENT ON COLUMN nearby.latest_positions.accuracy_m IS 'Radius of uncertainty in metres, if the client said.';
COMMENT ON COLUMN nearby.latest_positions.speed_mps IS 'Speed in metres per second, if the client said.';
COMMENT ON COLUMN nearby.latest_positions.heading_deg IS 'Heading in degrees clockwise from true north, if the client said.';
COMMENT ON COLUMN nearby.latest_positions.cell IS 'H3 index at resolution 9 as a 64-bit number.';


CREATE VIEW nearby.user_days AS
WITH legs AS (
    SELECT
        user_id,
        (reported_at AT TIME ZONE 'UTC')::date AS day,
        reported_at,
        nearby.distance_m(lag(lat) OVER day_of_user, lag(lon) OVER day_of_user, lat, lon) AS distance_m
    FROM nearby.fixes
    WINDOW day_of_user AS (PARTITION BY user_id, (reported_at AT TIME ZONE 'UTC')::date ORDER BY reported_at)
)
SELECT
    user_id,
    day,
    count(*) AS fixes,
    coalesce(sum(distance_m), 0) AS distance_m,
    min(reported_at) AS first_at,
    max(reported_at) AS last_at
FROM legs
GROUP BY user_id, day;

COMMENT ON VIEW nearby.user_days IS 'How far each user moved on each UTC day.';
COMMENT ON COLUMN nearby.user_days.user_id IS 'Who.';
COMMENT ON COLUMN nearby.user_days.day IS 'UTC day of reported_at.';
COMMENT ON COLUMN nearby.user_days.fixes IS 'Number of fixes on that day.';
COMMENT ON COLUMN nearby.user_days.distance_m IS
    'Sum of the great-circle distances in metres between consecutive fixes of the day; what lies across midnight counts on neither day.';
COMMENT ON COLUMN nearby.user_days.first_at IS 'Time of the first fix of the day.';
COMMENT ON COLUMN nearby.user_days.last_at IS 'Time of the last fix of the day.';


CREATE VIEW nearby.cell_hours AS
SELECT
    cell,
    date_trunc('hour', reported_at, 'UTC') AS hour,
    count(*) AS fixes,
    count(DISTINCT user_id) AS users
FROM nearby.fixes
GROUP BY cell, hour;

COMMENT ON VIEW nearby.cell_hours IS 'How busy each H3 cell was in each UTC hour.';
COMMENT ON COLUMN nearby.cell_hours.cell IS 'H3 index at resolution 9 as a 64-bit number.';
COMMENT ON COLUMN nearby.cell_hours.hour IS 'Beginning of the UTC hour.';
COMMENT ON COLUMN nearby.cell_hours.fixes IS 'Number of fixes in the cell in that hour.';
COMMENT ON COLUMN nearby.cell_hours.users IS 'Number of different users that they are of.';


CREATE TYPE nearby.stay_run AS (number bigint, lat double precision, lon double precision);

COMMENT ON TYPE nearby.stay_run IS 'A run of fixes within 200 m of its first fix.';
COMMENT ON COLUMN nearby.stay_run.number IS 'Number of the run in the user''s history, from 1.';
COMMENT ON COLUMN nearby.stay_run.lat IS 'Latitude of the run''s first fix in degrees.';
COMMENT ON COLUMN nearby.stay_run.lon IS 'Longitude of the run''s first fix in degrees.';

CREATE FUNCTION nearby.stay_run_with(run nearby.stay_run, next_lat double precision, next_lon double precision)
RETURNS nearby.stay_run
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    IF run.number IS NULL THEN
        RETURN ROW(1, next_lat, next_lon)::nearby.stay_run;
    ELSIF nearby.distance_m(run.lat, run.lon, next_lat, next_lon) <= 200 THEN
        RETURN run;
    ELSE
        RETURN ROW(run.number + 1, next_lat, next_lon)::nearby.stay_run;
    END IF;
END
$$;

COMMENT ON FUNCTION nearby.stay_run_with IS
    'The run that the next fix belongs to: the present one if the fix is within 200 m of its first fix, else a new one that begins with it.';

CREATE AGGREGATE nearby.stay_run_of(double precision, double precision) (
    SFUNC = nearby.stay_run_with,
    STYPE = nearby.stay_run
);

COMMENT ON AGGREGATE nearby.stay_run_of(double precision, double precision) IS
    'Over (lat, lon) of fixes in order of time: the run that the last of them belongs to.';

CREATE VIEW nearby.stays AS
WITH runs AS (
    SELECT
        user_id,
        reported_at,
        nearby.stay_run_of(lat, lon) OVER (PARTITION BY user_id ORDER BY reported_at) AS run
    FROM nearby.fixes
)
SELECT
    user_id,
    min(reported_at) AS started_at,
    max(reported_at) AS ended_at,
    extract(epoch FROM max(reported_at) - min(reported_at))::double precision AS duration_s,
    count(*) AS fixes,
    (run).lat,
    (run).lon
FROM runs
GROUP BY user_id, run
HAVING max(reported_at) - min(reported_at) >= interval '10 minutes';

COMMENT ON VIEW nearby.stays IS
    'Where someone stayed for at least 10 minutes within 200 m. The fixes of a user, in order of time, are cut into runs: a run begins with a fix and takes in every following fix up to the first that is more than 200 m from where the run began; that one begins the next run. A stay is a run whose last fix is at least 10 minutes after its first. Silence does not end a run.';
COMMENT ON COLUMN nearby.stays.user_id IS 'Who.';
COMMENT ON COLUMN nearby.stays.started_at IS 'Time of the first fix of the stay.';
COMMENT ON COLUMN nearby.stays.ended_at IS 'Time of the last fix of the stay.';
COMMENT ON COLUMN nearby.stays.duration_s IS 'Seconds from the first to the last fix.';
COMMENT ON COLUMN nearby.stays.fixes IS 'Number of fixes.';
COMMENT ON COLUMN nearby.stays.lat IS 'Latitude of the first fix in degrees; all fixes are within 200 m of it.';
COMMENT ON COLUMN nearby.stays.lon IS 'Longitude of the first fix in degrees.';


CREATE VIEW nearby.encounters AS
WITH pairs AS (
    SELECT DISTINCT least(user_id, friend) AS user_a, greatest(user_id, friend) AS user_b
    FROM nearby.friend_lists, unnest(friends) AS friend
    WHERE friend <> user_id
),
minutes AS (
    SELECT DISTINCT ON (user_id, date_trunc('minute', reported_at))
        user_id,
        date_bin('10 minutes', reported_at, 'epoch') AS slot,
        lat,
        lon
    FROM nearby.fixes
    ORDER BY user_id, date_trunc('minute', reported_at), reported_at DESC
)
SELECT
    slot,
    user_a,
    user_b,
    min(nearby.distance_m(a.lat, a.lon, b.lat, b.lon)) AS distance_m
FROM pairs
JOIN minutes AS a ON a.user_id = user_a
JOIN minutes AS b USING (slot)
WHERE b.user_id = user_b
GROUP BY slot, user_a, user_b
HAVING min(nearby.distance_m(a.lat, a.lon, b.lat, b.lon)) <= 8000;

COMMENT ON VIEW nearby.encounters IS
    'Friends who were within 8 km of each other in the same 10-minute slot; each pair once a slot. Two users are friends when one is in the other''s present friend list. Of each user the last fix of every minute is compared.';
COMMENT ON COLUMN nearby.encounters.slot IS 'Beginning of the 10 minutes (UTC hour, or 10, 20, 30, 40, 50 minutes past).';
COMMENT ON COLUMN nearby.encounters.user_a IS 'The friend with the smaller id.';
COMMENT ON COLUMN nearby.encounters.user_b IS 'The friend with the greater id.';
COMMENT ON COLUMN nearby.encounters.distance_m IS 'Smallest distance in metres between a place of the one and a place of the other within the slot.';
