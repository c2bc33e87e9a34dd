CREATE TABLE orgs (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    slug text NOT NULL UNIQUE,
    state text NOT NULL CHECK (state IN ('pending', 'active', 'closing')),
    version integer NOT NULL DEFAULT 1,
    created_by uuid NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    activated_at timestamptz,
    CHECK (state <> 'active' OR activated_at IS NOT NULL)
);
SELECT mindweave_protect('orgs', 'id');

CREATE INDEX orgs_unfinished ON orgs (updated_at) WHERE state <> 'active';

-- What a creator asked for, kept like an idempotency record: it names the organization that a
-- repeat of the call resumes, and outlives the call that made it.
CREATE TABLE openings (
    user_id uuid NOT NULL,
    key text NOT NULL,
    org_id uuid NOT NULL UNIQUE,
    request_hash bytea NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (user_id, key)
);
ALTER TABLE openings ENABLE ROW LEVEL SECURITY;
ALTER TABLE openings FORCE ROW LEVEL SECURITY;
CREATE POLICY creator ON openings
    USING (user_id = (SELECT mindweave_user()))
    WITH CHECK (user_id = (SELECT mindweave_user()));
CREATE POLICY owner ON openings TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE INDEX openings_age ON openings (created_at);

-- The sweeper sees no organization of its own: these two tell it where to look, and no more.
CREATE FUNCTION unfinished_orgs(before timestamptz, most integer) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    AS $$
        SELECT id FROM orgs WHERE state <> 'active' AND updated_at < before
        ORDER BY updated_at LIMIT most
    $$;

CREATE FUNCTION forget_openings(before timestamptz) RETURNS bigint
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    AS $$
        WITH gone AS (DELETE FROM openings WHERE created_at < before RETURNING 1)
        SELECT count(*) FROM gone
    $$;
