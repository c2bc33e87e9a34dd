-- What every service's database has, whatever the service.

-- Messages to publish, written in the transaction of the change that they tell of.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic text NOT NULL,
    key text NOT NULL,
    value bytea NOT NULL,
    headers jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- What was answered to a call that changed something, for 24 hours; `answer` is sealed.
CREATE TABLE idempotency_keys (
    subject text NOT NULL,
    operation text NOT NULL,
    key text NOT NULL,
    request_hash bytea NOT NULL,
    answer bytea NOT NULL,
    etag bigint,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (subject, operation, key)
);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);

-- Envelopes whose effect is committed, by consumer group.
CREATE TABLE consumed_events (
    consumer text NOT NULL,
    event_id uuid NOT NULL,
    consumed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, event_id)
);
CREATE INDEX consumed_events_age ON consumed_events (consumed_at);

-- How far each partition of a topic is processed, who processes it, and until when.
CREATE TABLE offsets (
    topic text NOT NULL,
    part smallint NOT NULL,
    token text,
    birth text,
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    lease_until timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (part, topic)
) WITH (fillfactor = 50);

-- The caller's organizations and user, as the transaction was bound to them; none when it was not.
CREATE FUNCTION mindweave_orgs() RETURNS uuid[]
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN coalesce(nullif(current_setting('mindweave.orgs', true), ''), '{}')::uuid[];

CREATE FUNCTION mindweave_user() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN nullif(current_setting('mindweave.user_id', true), '')::uuid;

-- Rows of `target` are seen and written only by the organization in `col`. The owner, who migrates,
-- sees all rows: under FORCE a backfill would else change none, silently.
CREATE FUNCTION mindweave_protect(target regclass, col text DEFAULT 'org_id') RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    -- The sub-select makes the array once a statement, not once a row.
    EXECUTE format(
        'CREATE POLICY tenant ON %1$s USING (%2$I = ANY ((SELECT mindweave_orgs())::uuid[]))'
        ' WITH CHECK (%2$I = ANY ((SELECT mindweave_orgs())::uuid[]))',
        target, col
    );
    EXECUTE format(
        'CREATE POLICY owner ON %s TO CURRENT_USER USING (true) WITH CHECK (true)', target
    );
END
$$;

-- Only the owner writes what it has migrated; everyone reads it.
ALTER TABLE schema_migrations ENABLE ROW LEVEL SECURITY;
ALTER TABLE schema_migrations FORCE ROW LEVEL SECURITY;
CREATE POLICY everyone ON schema_migrations FOR SELECT USING (true);
CREATE POLICY owner ON schema_migrations TO CURRENT_USER USING (true) WITH CHECK (true);

-- Tables partitioned by day whose partitions the runtime role may have made and dropped.
CREATE TABLE timeseries (parent regclass PRIMARY KEY);
ALTER TABLE timeseries ENABLE ROW LEVEL SECURITY;
ALTER TABLE timeseries FORCE ROW LEVEL SECURITY;
CREATE POLICY everyone ON timeseries FOR SELECT USING (true);
CREATE POLICY owner ON timeseries TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE FUNCTION mindweave_timeseries(parent regclass) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_partitioned_table AS p
        JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
        WHERE p.partrelid = parent AND p.partstrat = 'r' AND p.partnatts = 1
            AND a.atttypid IN ('timestamptz'::regtype, 'date'::regtype)
    ) THEN
        RAISE EXCEPTION '% is not partitioned by range of one timestamptz or date', parent;
    END IF;
    IF (SELECT length(relname) > 53 FROM pg_class WHERE oid = parent) THEN
        RAISE EXCEPTION 'the name % leaves no room for a day', parent;
    END IF;
    INSERT INTO timeseries VALUES (parent);
END
$$;

-- Makes the partition of a day (UTC) where there is none. It is made apart and then attached, so
-- that neither readers nor writers of the table wait.
CREATE FUNCTION mindweave_ensure_partition(parent regclass, day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp SET timezone = 'UTC' SET lock_timeout = '1s'
    AS $$
DECLARE
    child text := (SELECT relname FROM pg_class WHERE oid = parent) || to_char(day, '"_p"YYYYMMDD');
BEGIN
    IF NOT EXISTS (SELECT FROM timeseries AS t WHERE t.parent = $1) THEN
        RAISE EXCEPTION '% is not a time series', parent USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF to_regclass(format('public.%I', child)) IS NOT NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('mindweave.timeseries', parent::oid::bigint));
    -- Another may have made it meanwhile; the cache that to_regclass asks need not know it yet.
    IF EXISTS (
        SELECT FROM pg_class WHERE relname = child AND relnamespace = 'public'::regnamespace
    ) THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE public.%I (LIKE %s INCLUDING ALL EXCLUDING IDENTITY)', child, parent
    );
    EXECUTE format(
        'ALTER TABLE %s ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
        parent, child, day::timestamptz, (day + 1)::timestamptz
    );
    RETURN true;
END
$$;

-- Drops the partitions of the days before `before`; the names of those dropped.
CREATE FUNCTION mindweave_drop_partitions(parent regclass, before date) RETURNS text[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '1s'
    AS $$
DECLARE
    child text;
    dropped text[] := '{}';
BEGIN
    IF NOT EXISTS (SELECT FROM timeseries AS t WHERE t.parent = $1) THEN
        RAISE EXCEPTION '% is not a time series', parent USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOR child IN
        SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = parent AND c.relname ~ '_p[0-9]{8}$'
            AND to_date(right(c.relname, 8), 'YYYYMMDD') < before
        ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE public.%I', child);
        dropped := dropped || child;
    END LOOP;
    RETURN dropped;
END
$$;
