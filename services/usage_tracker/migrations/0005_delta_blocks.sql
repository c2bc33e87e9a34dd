-- A worker of the release before would send on rows alone, and take blocks for sent: those that live
-- have to end first. The leases of others pass meanwhile.
DO $$
BEGIN
    FOR attempt IN 1..30 LOOP
        EXIT WHEN NOT EXISTS (
            SELECT FROM offsets WHERE lease_until > clock_timestamp() AND lease_until < 'infinity'
        );
        PERFORM pg_sleep(0.5);
    END LOOP;
    IF EXISTS (
        SELECT FROM offsets WHERE lease_until > clock_timestamp() AND lease_until < 'infinity'
    ) THEN
        RAISE 'workers of usage_tracker of the release before still run: end them first';
    END IF;
END
$$;

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
