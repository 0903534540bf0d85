-- Who has somebody as a friend, by an index instead of by reading every list: encounters_of and `nearby history erase` ask for it.
-- What it costs the sink is in docs/decisions/0015-history-indexes.md. Building it stops the sink's writing of lists; where
-- that would be long, the owner makes it beforehand, under this name: CREATE INDEX CONCURRENTLY friend_lists_friends …
DO $$
BEGIN
    -- One that was not finished is kept up but never used.
    IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('nearby.friend_lists_friends') AND NOT indisvalid) THEN
        DROP INDEX nearby.friend_lists_friends;
    END IF;
END
$$;
CREATE INDEX IF NOT EXISTS friend_lists_friends ON nearby.friend_lists USING gin (friends);

CREATE FUNCTION nearby.listed_by(who bigint)
RETURNS TABLE (user_id bigint)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT friend_lists.user_id FROM nearby.friend_lists WHERE friends @> ARRAY[who] AND friend_lists.user_id <> who
$$;

COMMENT ON FUNCTION nearby.listed_by IS 'Who else has this user in the friend list.';

-- As before, but for others.
CREATE OR REPLACE FUNCTION nearby.encounters_of(who bigint)
RETURNS TABLE (slot timestamptz, user_a bigint, user_b bigint, distance_m double precision)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    WITH others AS (
        SELECT unnest(friends) AS friend FROM nearby.friend_lists WHERE friend_lists.user_id = who
        UNION
        SELECT listed_by.user_id FROM nearby.listed_by(who)
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


-- The functions that came since the role was made.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nearby_analyst') THEN
        CALL nearby.let_analysts_read();
    END IF;
END
$$;
