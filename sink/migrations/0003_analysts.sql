-- An H3 index has its resolution in bits 52 to 55 and below them a digit of three bits for each resolution from 1 to 15,
-- finest last; digits finer than the cell are 7. (h3geo.org, "H3Index Bit Layout"; pentagons are no exception.)
CREATE FUNCTION nearby.cell_parent(cell bigint, resolution integer)
RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    -- Mode 1 and nothing in the reserved bits: a cell, and not some number.
    WHEN resolution BETWEEN 0 AND ((cell >> 52) & 15) AND cell >> 56 = 8
        THEN (cell & ~(15::bigint << 52)) | (resolution::bigint << 52) | ((1::bigint << (3 * (15 - resolution))) - 1)
END;

COMMENT ON FUNCTION nearby.cell_parent IS
    'The H3 cell of a coarser resolution that this cell belongs to: 9 has about 0.1 km², 7 about 5 km², 5 about 250 km². Null if the resolution is finer than the cell''s own, or none, or the number is no cell.';


CREATE FUNCTION nearby.people_at_least(k integer)
RETURNS integer
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
AS $$
BEGIN
    IF k IS NULL OR k < 1 THEN
        RAISE EXCEPTION 'cell_hours_k(%): k has to be 1 or more', coalesce(k::text, 'null') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN k;
END
$$;

COMMENT ON FUNCTION nearby.people_at_least IS 'k, or an error if it is less than 1.';

-- A single SELECT, so that Postgres inlines it, and a condition on hour reaches the partitions.
CREATE FUNCTION nearby.cell_hours_k(k integer)
RETURNS TABLE (cell bigint, hour timestamptz, fixes bigint, users bigint)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT busy.cell, busy.hour, busy.fixes, busy.users
    FROM nearby.cell_hours AS busy
    WHERE busy.users >= nearby.people_at_least(k)
$$;

COMMENT ON FUNCTION nearby.cell_hours_k IS
    'cell_hours without the cells and hours in which fewer than k different people were. Each row is about k people or more; this hides nobody who was in a place alone, and still tells what several rows together tell.';


-- Who may read the history and change nothing: GRANT nearby_analyst TO somebody. Its own procedure, because the server may
-- not let us make a role: then an administrator makes it, and calls this again as the owner of the schema.
CREATE PROCEDURE nearby.let_analysts_read()
LANGUAGE plpgsql
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nearby_analyst') THEN
        BEGIN
            CREATE ROLE nearby_analyst NOLOGIN;
        EXCEPTION
            -- Roles belong to the server: another database's migration was faster.
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE WARNING 'there is no role nearby_analyst, and % may not make it: CREATE ROLE nearby_analyst NOLOGIN as an administrator, then CALL nearby.let_analysts_read()', current_user;
                RETURN;
        END;
    END IF;
    GRANT USAGE ON SCHEMA nearby TO nearby_analyst;
    GRANT SELECT ON ALL TABLES IN SCHEMA nearby TO nearby_analyst;
    -- The views call them; procedures are not among these.
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA nearby TO nearby_analyst;
    -- Partitions to come: the table's owner makes them, who need not be the one that calls this.
    EXECUTE format(
        'ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA nearby GRANT SELECT ON TABLES TO nearby_analyst',
        (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'nearby.location_history'::regclass)
    );
END
$$;

COMMENT ON PROCEDURE nearby.let_analysts_read IS
    'Makes the role nearby_analyst if it may and has to, and lets it read every table and view of the schema nearby, those to come too, and call its functions. It can be called again.';

REVOKE EXECUTE ON PROCEDURE nearby.let_analysts_read() FROM PUBLIC;

CALL nearby.let_analysts_read();
