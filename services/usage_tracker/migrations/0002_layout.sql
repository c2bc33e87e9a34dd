-- How many partitions usage.events has: one row, made by the first process that asks. Events come
-- in while it is open. `wanted` is the count that it is being changed to, `fenced_until` when the
-- last lease ends of those who worked on the partitions before.
CREATE TABLE layout (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    partitions smallint NOT NULL CHECK (partitions > 0),
    generation integer NOT NULL DEFAULT 1,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'draining', 'rehashing')),
    wanted smallint CHECK (wanted > 0),
    fenced_until timestamptz,
    CHECK ((state = 'open') = (wanted IS NULL))
);

-- How far a walk over all rows of some tables has come, in blocks of each table.
CREATE TABLE walks (
    name text NOT NULL,
    relation text NOT NULL,
    next_block bigint NOT NULL,
    blocks bigint NOT NULL,
    PRIMARY KEY (name, relation)
);

-- Those whose rows the walk that is under way removes.
ALTER TABLE deleted_orgs ADD COLUMN walking boolean NOT NULL DEFAULT false;
