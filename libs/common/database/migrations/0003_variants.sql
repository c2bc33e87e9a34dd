-- Where rows lie: natively, in hypertables where TimescaleDB is, or on the nodes of Citus. Whoever
-- uses the tables cannot tell.
CREATE FUNCTION mindweave_variant() RETURNS text
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    found text[] := ARRAY(
        SELECT extname::text FROM pg_extension WHERE extname IN ('citus', 'timescaledb')
    );
BEGIN
    -- A join of a hypertable with a distributed table gives no rows, and no error either.
    IF cardinality(found) > 1 THEN
        RAISE EXCEPTION 'Citus and TimescaleDB do not go together in one database';
    END IF;
    RETURN coalesce(found[1], 'plain');
END
$$;

-- A function of the extension, wherever it was installed.
CREATE FUNCTION mindweave_of_extension(wanted text) RETURNS text
    LANGUAGE sql STABLE
    AS $$
SELECT format('%I.%I', n.nspname, wanted) FROM pg_extension AS e
JOIN pg_depend AS d ON d.refobjid = e.oid AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass
JOIN pg_proc AS p ON p.oid = d.objid JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE e.extname = mindweave_variant() AND p.proname = wanted LIMIT 1
$$;

-- A hypertable with the columns, keys and indexes of an empty partitioned table, in its place.
CREATE FUNCTION mindweave_hypertable(parent regclass, col name) RETURNS regclass
    LANGUAGE plpgsql
    AS $$
DECLARE
    name text := (SELECT relname FROM pg_class WHERE oid = parent);
    made text := name || '_made';
    command text;
    commands text[] := ARRAY(
        SELECT format('ALTER TABLE %I ADD CONSTRAINT %I %s', name, conname, pg_get_constraintdef(oid))
        FROM pg_constraint WHERE conrelid = parent AND contype IN ('p', 'u')
        UNION ALL
        SELECT replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ') FROM pg_index
        WHERE indrelid = parent AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    );
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE %s INCLUDING ALL EXCLUDING INDEXES)', made, parent);
    EXECUTE format('DROP TABLE %s', parent);
    EXECUTE format('ALTER TABLE %I RENAME TO %I', made, name);
    FOREACH command IN ARRAY commands LOOP
        EXECUTE command;
    END LOOP;
    EXECUTE format(
        'SELECT %s(%L, %s(%L, interval ''1 day''), create_default_indexes => false)',
        mindweave_of_extension('create_hypertable'), name, mindweave_of_extension('by_range'), col
    );
    RETURN name::regclass;
END
$$;

CREATE OR REPLACE FUNCTION mindweave_timeseries(parent regclass) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    col name := (
        SELECT a.attname FROM pg_partitioned_table AS p
        JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
        WHERE p.partrelid = parent AND p.partstrat = 'r' AND p.partnatts = 1
            AND a.atttypid IN ('timestamptz'::regtype, 'date'::regtype)
    );
BEGIN
    IF col IS NULL THEN
        RAISE EXCEPTION '% is not partitioned by range of one timestamptz or date', parent;
    END IF;
    IF (SELECT length(relname) > 53 FROM pg_class WHERE oid = parent) THEN
        RAISE EXCEPTION 'the name % leaves no room for a day', parent;
    END IF;
    IF mindweave_variant() = 'timescaledb' THEN
        parent := mindweave_hypertable(parent, col);
    END IF;
    INSERT INTO timeseries VALUES (parent);
END
$$;

-- Tables with a column `part`, whose rows of one part lie on one node where there are several. Once
-- called for a database, it has to be called for each such table that comes later.
CREATE FUNCTION mindweave_by_part(VARIADIC tables regclass[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    target regclass;
    known boolean;
    place text := 'none';
BEGIN
    IF mindweave_variant() <> 'citus' THEN
        RETURN;
    END IF;
    -- SET LOCAL holds on the nodes, too.
    EXECUTE format(
        'ALTER DATABASE %I SET citus.propagate_set_commands = ''local''', current_database()
    );
    FOREACH target IN ARRAY 'offsets'::regclass || tables LOOP
        EXECUTE 'SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = $1)'
            INTO known USING target;
        IF NOT known THEN
            -- So that its rows can be moved to another node while they change.
            IF NOT EXISTS (
                SELECT FROM pg_index WHERE indrelid = target AND indisprimary
                UNION ALL SELECT FROM pg_partitioned_table WHERE partrelid = target
            ) THEN
                EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', target);
            END IF;
            EXECUTE format(
                'SELECT %s(%L, ''part'', colocate_with => %L)',
                mindweave_of_extension('create_distributed_table'), target, place
            );
        END IF;
        place := 'offsets';
    END LOOP;
END
$$;

-- The days that have a partition or a chunk.
CREATE FUNCTION mindweave_partition_days(parent regclass) RETURNS SETOF date
    LANGUAGE plpgsql STABLE
    AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = parent)
        OR mindweave_variant() <> 'timescaledb'
    THEN
        RETURN QUERY
        SELECT to_date(right(c.relname, 8), 'YYYYMMDD')
        FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = parent AND c.relname ~ '_p[0-9]{8}$' ORDER BY 1;
    ELSE
        RETURN QUERY
        SELECT (range_start AT TIME ZONE 'UTC')::date
        FROM timescaledb_information.chunks
        WHERE format('%I.%I', hypertable_schema, hypertable_name)::regclass = parent ORDER BY 1;
    END IF;
END
$$;

ALTER FUNCTION mindweave_ensure_partition(regclass, date) RENAME TO mindweave_make_partition;
ALTER FUNCTION mindweave_drop_partitions(regclass, date) RENAME TO mindweave_drop_native;

-- As before; a hypertable makes its chunks itself.
CREATE FUNCTION mindweave_ensure_partition(parent regclass, day date) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF EXISTS (
        SELECT FROM timeseries AS t WHERE t.parent = $1
            AND NOT EXISTS (SELECT FROM pg_partitioned_table AS p WHERE p.partrelid = $1)
    ) THEN
        RETURN false;
    END IF;
    RETURN mindweave_make_partition(parent, day);
END
$$;

CREATE FUNCTION mindweave_drop_partitions(parent regclass, before date) RETURNS text[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET lock_timeout = '1s'
    AS $$
DECLARE
    dropped text[] := ARRAY(
        SELECT relname || to_char(day, '"_p"YYYYMMDD')
        FROM pg_class, mindweave_partition_days(parent) AS day
        WHERE oid = parent AND day < before ORDER BY day
    );
BEGIN
    IF EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = parent)
        OR NOT EXISTS (SELECT FROM timeseries AS t WHERE t.parent = $1)
    THEN
        RETURN mindweave_drop_native(parent, before);
    END IF;
    IF cardinality(dropped) > 0 THEN
        EXECUTE format(
            'SELECT count(*) FROM %s(%L, older_than => %L::timestamptz)',
            mindweave_of_extension('drop_chunks'), parent, before
        );
    END IF;
    RETURN dropped;
END
$$;
