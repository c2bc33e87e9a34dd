-- Copies of the windows of usage_tracker. No row-level security: only store.py, bound to one
-- organization, reads these tables. `part` is the partition of usage.windows, the hash of org_id.

-- One row for each combination of dimensions; series_id is the 128-bit hash of all of them.
CREATE TABLE series (
    part smallint NOT NULL,
    org_id uuid NOT NULL,
    series_id uuid NOT NULL,
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
    PRIMARY KEY (part, org_id, series_id)
);

-- What has arrived and is not yet rolled up: seconds of data, appended and then moved.
CREATE TABLE deltas (
    part smallint NOT NULL,
    source smallint NOT NULL,
    seq bigint NOT NULL,
    org_id uuid NOT NULL,
    start timestamptz NOT NULL,
    series_id uuid NOT NULL,
    events bigint NOT NULL,
    errors bigint NOT NULL,
    unpriced_events bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_tokens bigint NOT NULL,
    cache_write_tokens bigint NOT NULL,
    input_nano bigint NOT NULL,
    output_nano bigint NOT NULL,
    cache_read_nano bigint NOT NULL,
    cache_write_nano bigint NOT NULL,
    cost_nano bigint NOT NULL,
    latency_count bigint NOT NULL,
    latency_sum_us bigint NOT NULL,
    latency_bins integer[] NOT NULL,
    latency_counts bigint[] NOT NULL,
    PRIMARY KEY (part, source, seq)
);
CREATE INDEX deltas_org ON deltas (part, org_id, start);

-- Sums of years may pass 64 bits; those of one delta do not.
CREATE TABLE minutes (
    part smallint NOT NULL,
    org_id uuid NOT NULL,
    start timestamptz NOT NULL,
    series_id uuid NOT NULL,
    events bigint NOT NULL,
    errors bigint NOT NULL,
    unpriced_events bigint NOT NULL,
    input_tokens numeric NOT NULL,
    output_tokens numeric NOT NULL,
    cache_read_tokens numeric NOT NULL,
    cache_write_tokens numeric NOT NULL,
    input_nano numeric NOT NULL,
    output_nano numeric NOT NULL,
    cache_read_nano numeric NOT NULL,
    cache_write_nano numeric NOT NULL,
    cost_nano numeric NOT NULL,
    latency_count bigint NOT NULL,
    latency_sum_us numeric NOT NULL,
    latency_bins integer[] NOT NULL,
    latency_counts bigint[] NOT NULL,
    PRIMARY KEY (part, org_id, start, series_id)
);
CREATE TABLE hours (LIKE minutes INCLUDING INDEXES);
CREATE TABLE days (LIKE minutes INCLUDING INDEXES);
CREATE TABLE months (LIKE minutes INCLUDING INDEXES);

-- How far each source (partition of usage.events) has come in each partition of usage.windows.
CREATE TABLE sources (
    part smallint NOT NULL,
    source smallint NOT NULL,
    last_seq bigint NOT NULL DEFAULT 0,
    watermark timestamptz,
    PRIMARY KEY (part, source)
);
