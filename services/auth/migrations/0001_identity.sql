-- Users, sessions and API keys belong to people before they belong to an organization, so no
-- table here has a policy by organization: only queries bound to their user, session, digest or
-- project reach the rows (architecture, "Identity and tenancy").

-- `email` is shown as it was written; `email_key` says whether two addresses are the same.
CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text NOT NULL,
    email_key text NOT NULL UNIQUE,
    display_name text NOT NULL,
    password_hash text NOT NULL,
    password_version bigint NOT NULL DEFAULT 1,
    email_verified boolean NOT NULL DEFAULT false,
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

-- A session that ends is deleted, and its refresh tokens with it.
CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ip text,
    user_agent text
);
CREATE INDEX sessions_user ON sessions (user_id, id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

-- Each refresh token of a session by its SHA-256, spent ones too: that is how a second use shows.
-- `successor` is the next token, encrypted under this one, for the few seconds of the grace.
CREATE TABLE refresh_tokens (
    digest bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    session_id uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
    issued_at timestamptz NOT NULL,
    spent_at timestamptz,
    successor bytea,
    CHECK (successor IS NULL OR spent_at IS NOT NULL)
);
CREATE UNIQUE INDEX refresh_tokens_unspent ON refresh_tokens (session_id) WHERE spent_at IS NULL;
CREATE INDEX refresh_tokens_session ON refresh_tokens (session_id);

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('user', 'project')),
    digest bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    prefix text NOT NULL,
    name text NOT NULL,
    scopes text[] NOT NULL,
    user_id uuid REFERENCES users ON DELETE CASCADE,
    org_id uuid,
    project_id uuid,
    created_by uuid,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz,
    CHECK ((kind = 'user') = (user_id IS NOT NULL)),
    CHECK ((kind = 'project') = (org_id IS NOT NULL AND project_id IS NOT NULL))
);
CREATE INDEX api_keys_user ON api_keys (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX api_keys_project ON api_keys (org_id, project_id, id) WHERE org_id IS NOT NULL;

-- The private half of a key is sealed by the service's sealing key.
CREATE TABLE signing_keys (
    kid text PRIMARY KEY,
    sealed bytea NOT NULL,
    signs_from timestamptz NOT NULL
);

-- Attempts counted while the cache is down.
CREATE TABLE attempts (
    subject text PRIMARY KEY,
    moments timestamptz[] NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX attempts_age ON attempts (updated_at);
