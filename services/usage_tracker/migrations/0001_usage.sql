-- The ledger of usage. `part` is the partition of usage.events; its owner is the only writer of all
-- rows that carry it. No row-level security: rows are appended by COPY, only store.py reads them.

-- Every event for the days of raw retention, by the day it was accepted. cost_nano is NULL where
-- there is no model, or no price for it.
CREATE TABLE events (
    part smallint NOT NULL,
    received_at timestamptz NOT NULL,
    org_id uuid NOT NULL,
    event_id uuid NOT NULL,
    at timestamptz NOT NULL,
    event_type text NOT NULL,
    project_id uuid,
    team_id uuid,
    user_id uuid,
    user_ref text,
    api_key_id uuid,
    model text,
    provider text,
    service_tier text,
    mcp_server text,
    tool text,
    session_id text,
    request_id text,
    decision_id text,
    status text NOT NULL,
    error_type text,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_5m_tokens bigint NOT NULL,
    cache_write_1h_tokens bigint NOT NULL,
    latency_us bigint,
    client_cost_nano bigint,
    metadata text,
    input_nano bigint,
    output_nano bigint,
    cache_read_nano bigint,
    cache_write_nano bigint,
    cost_nano bigint,
    price_version text
) PARTITION BY RANGE (received_at);

-- Identities by the day of their first acceptance. A unique key would have to hold that time, and
-- identity does not: the partition's only writer looks before it inserts.
CREATE TABLE event_ids (
    part smallint NOT NULL,
    org_id uuid NOT NULL,
    event_id uuid NOT NULL,
    received_at timestamptz NOT NULL,
    digest bytea NOT NULL
) PARTITION BY RANGE (received_at);
CREATE INDEX event_ids_identity ON event_ids (part, org_id, event_id);

-- What batches added to the windows of one minute, numbered by the part's only writer; at once the
-- outbox of usage.windows. A correction is a further, signed row with a reason.
CREATE TABLE deltas (
    part smallint NOT NULL,
    seq bigint NOT NULL,
    org_id uuid NOT NULL,
    start timestamptz NOT NULL,
    model text,
    provider text,
    project_id uuid,
    team_id uuid,
    user_id uuid,
    api_key_id uuid,
    event_type text,
    status text,
    mcp_server text,
    tool text,
    events bigint NOT NULL,
    errors bigint NOT NULL,
    unpriced_events bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_5m_tokens bigint NOT NULL,
    cache_write_1h_tokens bigint NOT NULL,
    input_nano bigint NOT NULL,
    output_nano bigint NOT NULL,
    cache_read_nano bigint NOT NULL,
    cache_write_nano bigint NOT NULL,
    cost_nano bigint NOT NULL,
    latency_count bigint NOT NULL,
    latency_sum_us bigint NOT NULL,
    latency_bins integer[] NOT NULL,
    latency_counts bigint[] NOT NULL,
    reason text,
    PRIMARY KEY (part, seq)
);

-- One row for each part, written by its owner: the last number of its deltas, and what was counted
-- without being added.
CREATE TABLE parts (
    part smallint PRIMARY KEY,
    last_seq bigint NOT NULL DEFAULT 0,
    duplicates bigint NOT NULL DEFAULT 0,
    conflicts bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- How many deltas of a part were sent on, and the last watermark that was sent after them: whatever
-- was accepted before it is in the deltas.
CREATE TABLE relays (
    part smallint PRIMARY KEY,
    seq bigint NOT NULL DEFAULT 0,
    watermark timestamptz
) WITH (fillfactor = 50);

-- Organizations whose rows go once everything accepted before has been counted.
CREATE TABLE deleted_orgs (
    org_id uuid PRIMARY KEY,
    deleted_at timestamptz NOT NULL
);

SELECT mindweave_timeseries('events');
SELECT mindweave_timeseries('event_ids');
