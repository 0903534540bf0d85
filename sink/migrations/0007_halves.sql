-- The rows of three views for a stretch of time, by two processes. A view that loops over time has no parallel plan; two calls of a
-- function have one, each by a process of its own (docs/decisions/0015-history-indexes.md has the numbers). What comes after
-- the halves is opaque on purpose: a function with a SET is not inlined, and only what is not inlined is given to
-- a process as a whole. COST says that it is worth one; no real cost is known here.
CREATE FUNCTION nearby.user_days_half(from_day date, to_day date, half integer)
RETURNS SETOF nearby.user_days
LANGUAGE sql STABLE PARALLEL SAFE COST 100000000 ROWS 100000
SET jit = off
AS $$
    SELECT * FROM nearby.user_days WHERE day >= from_day AND day < to_day AND user_id & 1 = half
$$;

CREATE FUNCTION nearby.cell_hours_half(from_at timestamptz, to_at timestamptz, half integer)
RETURNS SETOF nearby.cell_hours
LANGUAGE sql STABLE PARALLEL SAFE COST 100000000 ROWS 100000
SET jit = off
AS $$
    SELECT * FROM nearby.cell_hours WHERE hour >= from_at AND hour < to_at AND (extract(epoch FROM hour) / 3600)::bigint & 1 = half
$$;

-- The planner expects thousands of times more rows of a slot than there are, and would sort for a merge join.
CREATE FUNCTION nearby.encounters_half(from_at timestamptz, to_at timestamptz, half integer)
RETURNS SETOF nearby.encounters
LANGUAGE sql STABLE PARALLEL SAFE COST 100000000 ROWS 100000
SET jit = off
SET enable_mergejoin = off
AS $$
    SELECT * FROM nearby.encounters WHERE slot >= from_at AND slot < to_at AND (extract(epoch FROM slot) / 600)::bigint & 1 = half
$$;

COMMENT ON FUNCTION nearby.user_days_half IS 'Part of user_days_between: the users with even ids (0) or odd ones (1).';
COMMENT ON FUNCTION nearby.cell_hours_half IS 'Part of cell_hours_between: every other hour.';
COMMENT ON FUNCTION nearby.encounters_half IS 'Part of encounters_between: every other slot.';

CREATE FUNCTION nearby.user_days_between(from_day date, to_day date)
RETURNS SETOF nearby.user_days
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT * FROM nearby.user_days_half(from_day, to_day, 0)
    UNION ALL
    SELECT * FROM nearby.user_days_half(from_day, to_day, 1)
$$;

CREATE FUNCTION nearby.cell_hours_between(from_at timestamptz, to_at timestamptz)
RETURNS SETOF nearby.cell_hours
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT * FROM nearby.cell_hours_half(from_at, to_at, 0)
    UNION ALL
    SELECT * FROM nearby.cell_hours_half(from_at, to_at, 1)
$$;

CREATE FUNCTION nearby.encounters_between(from_at timestamptz, to_at timestamptz)
RETURNS SETOF nearby.encounters
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT * FROM nearby.encounters_half(from_at, to_at, 0)
    UNION ALL
    SELECT * FROM nearby.encounters_half(from_at, to_at, 1)
$$;

COMMENT ON FUNCTION nearby.user_days_between IS
    'The rows of user_days from one day to before another, by two processes where the server has them free. For a day of everybody or more; one user''s days the view finds at once.';
COMMENT ON FUNCTION nearby.cell_hours_between IS
    'The rows of cell_hours whose hour is from one time to before another, by two processes where the server has them free.';
COMMENT ON FUNCTION nearby.encounters_between IS
    'The rows of encounters whose slot is from one time to before another, by two processes where the server has them free. One user''s are found at once by encounters_of.';


-- The functions that came since the role was made.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nearby_analyst') THEN
        CALL nearby.let_analysts_read();
    END IF;
END
$$;
