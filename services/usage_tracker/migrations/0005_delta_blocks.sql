-- The deltas of one commit, packed, until they have been sent on; then they are added up into rows of
-- `deltas`, each with the number of one of those in it. One row for each commit, written by the
-- part's owner. `forgetting` is set where a deleted organization may be in it.
CREATE TABLE delta_blocks (
    part smallint NOT NULL,
    first_seq bigint NOT NULL,
    last_seq bigint NOT NULL,
    reason text,
    forgetting boolean NOT NULL DEFAULT false,
    data bytea NOT NULL,
    PRIMARY KEY (part, last_seq)
);
ALTER TABLE delta_blocks ALTER COLUMN data SET STORAGE EXTERNAL;
