-- What batches added to sessions: a row for each organization of a batch, packed, numbered as the
-- last delta of the windows that the batch added. Moved to `sessions` after some minutes.
CREATE TABLE session_deltas (
    part smallint NOT NULL,
    org_id uuid NOT NULL,
    seq bigint NOT NULL,
    appended_at timestamptz NOT NULL DEFAULT now(),
    deltas integer NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (part, org_id, seq)
);
-- Tells whether any of them are due, without the others.
CREATE INDEX session_deltas_age ON session_deltas (appended_at);
-- Packed already; to try again takes longer than to write it.
ALTER TABLE session_deltas ALTER COLUMN data SET STORAGE EXTERNAL;

-- Sessions of all time by what they called: added up as far as nothing that comes late can part them,
-- and within a day. `part` is a hash of the organization; `key` says what may be one session.
CREATE TABLE sessions (
    part smallint NOT NULL,
    org_id uuid NOT NULL,
    key uuid NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    project_id uuid,
    user_id uuid,
    session_id text,
    event_type text NOT NULL,
    model text,
    mcp_server text,
    tool text,
    events bigint NOT NULL,
    errors bigint NOT NULL,
    unpriced_events bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    cost_nano bigint NOT NULL
);
CREATE INDEX sessions_key ON sessions (part, org_id, key, first_at);
CREATE INDEX sessions_time ON sessions (part, org_id, first_at);

-- Which blocks hold events of a time: a page of events reads these alone. Of days to come only:
-- those that are there would be read, and written to by nobody meanwhile.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = 'events'::regclass) THEN
        CREATE INDEX events_at ON ONLY events USING brin (at) WITH (autosummarize = on);
    ELSE
        CREATE INDEX events_at ON events USING brin (at) WITH (autosummarize = on);
    END IF;
END
$$;
