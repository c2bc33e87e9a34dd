-- What this service knows of an organization: whether it is deleted, so that a project which is
-- made while the deletion is on its way is refused or removed, never left behind.
CREATE TABLE orgs (
    org_id uuid PRIMARY KEY,
    deleted_at timestamptz
);
SELECT mindweave_protect('orgs');

CREATE TABLE projects (
    id uuid PRIMARY KEY,
    org_id uuid NOT NULL REFERENCES orgs,
    team_id uuid,
    name text NOT NULL,
    version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
SELECT mindweave_protect('projects');

CREATE INDEX projects_of_org ON projects (org_id, id);

-- A service asks whose a project is before it knows the organization; it gets this and no more.
CREATE FUNCTION resolve_projects(ids uuid[])
    RETURNS TABLE (id uuid, org_id uuid, team_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    AS $$ SELECT p.id, p.org_id, p.team_id FROM projects p WHERE p.id = ANY(ids) $$;
