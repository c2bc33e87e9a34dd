-- What organizations pay otherwise than the base price. Rows are added and never changed; seq grows
-- in the order of the commits, as whoever adds a row holds that of price_changes.
CREATE TABLE prices (
    id uuid PRIMARY KEY,
    seq bigint NOT NULL UNIQUE,
    org_id uuid NOT NULL,
    model text NOT NULL,
    provider text,
    service_tier text,
    effective_from timestamptz NOT NULL,
    effective_until timestamptz CHECK (effective_until > effective_from),
    -- By kind of token: [nano-dollars for a million, [[prompt longer than, nano-dollars], …]].
    unit_prices jsonb,
    discount_bp integer NOT NULL DEFAULT 0 CHECK (discount_bp BETWEEN 0 AND 10000),
    created_at timestamptz NOT NULL
);
CREATE INDEX prices_of_org ON prices (org_id, seq);
SELECT mindweave_protect('prices');

CREATE TABLE price_changes (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    last_seq bigint NOT NULL DEFAULT 0
);
INSERT INTO price_changes DEFAULT VALUES;

-- The last number, which then stands until the transaction ends: whoever adds a price asks for it
-- alone. What asks after that is a statement of its own, and sees what was committed while this
-- waited. A process whose transaction asks for nothing for so long any more keeps the others no longer.
CREATE FUNCTION hold_prices(alone boolean, patience text) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM set_config('idle_in_transaction_session_timeout', patience, true);
    IF NOT alone THEN
        PERFORM pg_advisory_xact_lock_shared(hashtextextended('mindweave.prices', 0));
        RETURN (SELECT last_seq FROM price_changes);
    END IF;
    -- While it waits for one who takes long, all others wait for it: half of the time at most.
    PERFORM set_config('lock_timeout', '100ms', true);
    FOR attempt IN 1..40 LOOP
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtextextended('mindweave.prices', 0));
            RETURN (SELECT last_seq FROM price_changes);
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.1);
        END;
    END LOOP;
    RAISE lock_not_available USING MESSAGE = 'prices are held for too long';
END
$$;

-- A worker prices events of all organizations, so it is shown the prices of all.
CREATE FUNCTION price_entries(after bigint) RETURNS SETOF prices
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    AS $$ SELECT * FROM prices WHERE seq > after ORDER BY seq $$;

-- Orders to price events anew, each carried out by the owner of every part. `model` is NULL for all.
CREATE TABLE repricings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id uuid NOT NULL,
    model text,
    unpriced_only boolean NOT NULL,
    since timestamptz NOT NULL,
    until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
CREATE INDEX repricings_open ON repricings (id) WHERE finished_at IS NULL;

-- How far an order is in a part, by the generation of the layout: another one begins it anew.
CREATE TABLE repricing_parts (
    part smallint NOT NULL,
    job bigint NOT NULL REFERENCES repricings ON DELETE CASCADE,
    generation integer NOT NULL,
    done boolean NOT NULL DEFAULT false,
    events bigint NOT NULL DEFAULT 0,
    cost_nano numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (part, job)
);

-- What events cost more or less than their rows and the adjustments before say; `number` orders
-- those of an event. `unpriced` is -1 where it got a price, 1 where it lost it. They go with the
-- rows they are about.
CREATE SEQUENCE adjustment_numbers;
CREATE TABLE adjustments (
    part smallint NOT NULL,
    received_at timestamptz NOT NULL,
    org_id uuid NOT NULL,
    event_id uuid NOT NULL,
    number bigint NOT NULL,
    job bigint NOT NULL,
    old_version text,
    new_version text,
    input_nano bigint NOT NULL,
    output_nano bigint NOT NULL,
    cache_read_nano bigint NOT NULL,
    cache_write_nano bigint NOT NULL,
    cost_nano bigint NOT NULL,
    unpriced smallint NOT NULL
) PARTITION BY RANGE (received_at);
CREATE INDEX adjustments_event ON adjustments (part, org_id, event_id);
SELECT mindweave_timeseries('adjustments');

-- Events that have no price now, by what they name; provider is '' where they name none. Written by
-- the owner of the part. Their times are those of all that ever were without one.
CREATE TABLE unpriced (
    part smallint NOT NULL,
    org_id uuid NOT NULL,
    model text NOT NULL,
    provider text NOT NULL,
    events bigint NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    PRIMARY KEY (part, org_id, model, provider)
);
CREATE INDEX unpriced_of_org ON unpriced (org_id, model, provider);
-- Up to which delta of a part that is so: a worker of the release before adds deltas only, and the
-- next one of this adds what it left.
CREATE TEMPORARY TABLE counted ON COMMIT DROP AS SELECT part, last_seq FROM parts;
INSERT INTO unpriced (part, org_id, model, provider, events, first_at, last_at)
SELECT part, org_id, model, coalesce(provider, ''), sum(unpriced_events), min(start), max(start)
FROM deltas JOIN counted USING (part)
WHERE unpriced_events <> 0 AND seq <= last_seq GROUP BY 1, 2, 3, 4;
ALTER TABLE parts ADD COLUMN unpriced_seq bigint NOT NULL DEFAULT 0;
UPDATE parts AS p SET unpriced_seq = c.last_seq FROM counted AS c WHERE c.part = p.part;
