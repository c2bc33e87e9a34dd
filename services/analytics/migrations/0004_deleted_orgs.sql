-- Organizations that are gone. Their windows are removed in steps, and whatever still comes of them
-- is dropped on its way, after which `removed` is false again; a row stays here for good.
CREATE TABLE deleted_orgs (
    org_id uuid PRIMARY KEY,
    part smallint NOT NULL,
    noted_at timestamptz NOT NULL,
    removed boolean NOT NULL DEFAULT false
);
CREATE INDEX deleted_orgs_left ON deleted_orgs (noted_at) WHERE NOT removed;
