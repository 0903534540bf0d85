-- A view for those who have PostGIS; everything else works without extensions. A procedure, because PostGIS may be installed
-- later than we are, or in a schema of its own.
CREATE PROCEDURE nearby.add_geography()
LANGUAGE plpgsql
AS $$
DECLARE
    postgis text := (
        SELECT quote_ident(nspname)
        FROM pg_extension
        JOIN pg_namespace ON pg_namespace.oid = extnamespace
        WHERE extname = 'postgis'
    );
BEGIN
    IF postgis IS NULL THEN
        RAISE EXCEPTION 'PostGIS is not installed in this database: CREATE EXTENSION postgis, then CALL nearby.add_geography() again'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    EXECUTE format(
        'CREATE OR REPLACE VIEW nearby.fixes_geography AS
         SELECT fixes.*, %1$s.ST_SetSRID(%1$s.ST_MakePoint(lon, lat), 4326)::%1$s.geography AS place
         FROM nearby.fixes',
        postgis
    );
    EXECUTE 'COMMENT ON VIEW nearby.fixes_geography IS ''The view fixes with the place as geography, for PostGIS.''';
    EXECUTE 'COMMENT ON COLUMN nearby.fixes_geography.place IS ''The place as a point, WGS 84.''';
    EXECUTE (
        SELECT string_agg(
            format('COMMENT ON COLUMN nearby.fixes_geography.%I IS %L', attname, col_description(attrelid, attnum)), '; '
        )
        FROM pg_attribute
        WHERE attrelid = 'nearby.fixes'::regclass AND attnum > 0
    );
    -- Whoever called this: the view is of the same owner as the others, and may be read like them.
    EXECUTE format(
        'ALTER VIEW nearby.fixes_geography OWNER TO %I',
        (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'nearby.fixes'::regclass)
    );
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'nearby_analyst') THEN
        GRANT SELECT ON nearby.fixes_geography TO nearby_analyst;
    END IF;
END
$$;

COMMENT ON PROCEDURE nearby.add_geography IS
    'Makes the view fixes_geography, once PostGIS is installed; it can be called again.';

REVOKE EXECUTE ON PROCEDURE nearby.add_geography() FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'postgis') THEN
        CALL nearby.add_geography();
    END IF;
EXCEPTION
    -- Its schema may be closed to us; the history does without.
    WHEN insufficient_privilege THEN
        RAISE WARNING 'no view fixes_geography: % may not use PostGIS (%); after GRANT USAGE on its schema: CALL nearby.add_geography()', current_user, SQLERRM;
END
$$;
