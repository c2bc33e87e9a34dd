-- Whether an organization is open. A closed one keeps its row, so that it is never opened again.
CREATE TABLE orgs (
    org_id uuid PRIMARY KEY,
    opened_at timestamptz,
    closed_at timestamptz,
    CHECK (opened_at IS NOT NULL OR closed_at IS NOT NULL)
);
SELECT mindweave_protect('orgs');

-- Members of open organizations only: closing one removes them.
CREATE TABLE members (
    org_id uuid NOT NULL REFERENCES orgs,
    user_id uuid NOT NULL,
    role text NOT NULL CHECK (role IN ('owner', 'admin', 'member', 'viewer', 'billing')),
    version integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, user_id)
);
SELECT mindweave_protect('members');
-- Where a user is a member is asked before any organization is known.
CREATE POLICY self ON members FOR SELECT USING (user_id = (SELECT mindweave_user()));

CREATE INDEX members_of_user ON members (user_id) INCLUDE (org_id, role);
CREATE INDEX members_pages ON members (org_id, created_at, user_id);
