-- The partitions or chunks of a table by day, each under the name by which it is read alone.
CREATE FUNCTION mindweave_partitions(parent regclass) RETURNS TABLE (day date, relation regclass)
    LANGUAGE plpgsql STABLE
    AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = parent)
        OR mindweave_variant() <> 'timescaledb'
    THEN
        RETURN QUERY
        SELECT to_date(right(c.relname, 8), 'YYYYMMDD'), c.oid::regclass
        FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = parent AND c.relname ~ '_p[0-9]{8}$' ORDER BY 1;
    ELSE
        RETURN QUERY
        SELECT (range_start AT TIME ZONE 'UTC')::date,
            format('%I.%I', chunk_schema, chunk_name)::regclass
        FROM timescaledb_information.chunks
        WHERE format('%I.%I', hypertable_schema, hypertable_name)::regclass = parent ORDER BY 1;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION mindweave_partition_days(parent regclass) RETURNS SETOF date
    LANGUAGE sql STABLE
    AS 'SELECT day FROM mindweave_partitions(parent)';

-- Where rows of a table lie together, in blocks that `ctid` counts: those of a day where it has days,
-- of all parts on one server, and else of each part of `parts` apart. No row is read for it.
CREATE FUNCTION mindweave_places(parent regclass, parts smallint[])
    RETURNS TABLE (part smallint, day date, blocks bigint)
    LANGUAGE plpgsql
    AS $$
DECLARE
    size bigint := current_setting('block_size');
    spread boolean := false;
    found record;
    own record;
BEGIN
    IF mindweave_variant() = 'citus' THEN
        EXECUTE 'SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = $1)'
            INTO spread USING parent;
    END IF;
    FOR found IN
        SELECT p.day, p.relation FROM mindweave_partitions(parent) AS p
        UNION ALL
        SELECT NULL, parent WHERE NOT EXISTS (SELECT FROM timeseries AS t WHERE t.parent = $1)
    LOOP
        IF NOT spread THEN
            RETURN QUERY SELECT NULL::smallint, found.day, pg_relation_size(found.relation) / size;
            CONTINUE;
        END IF;
        FOR own IN EXECUTE format(
            'SELECT p.part, s.success, s.result FROM unnest($2) AS p (part)'
            ' JOIN %s($1, $3) AS s ON s.shardid = %s($1, p.part)',
            mindweave_of_extension('run_command_on_shards'),
            mindweave_of_extension('get_shard_id_for_distribution_column')
        ) USING found.relation, parts, 'SELECT pg_relation_size(''%s'')' LOOP
            IF NOT own.success THEN
                RAISE EXCEPTION 'the node of part % cannot be asked: %', own.part, own.result
                    USING ERRCODE = 'connection_failure';
            END IF;
            RETURN QUERY SELECT own.part, found.day, own.result::bigint / size;
        END LOOP;
    END LOOP;
END
$$;
