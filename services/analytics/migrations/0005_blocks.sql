-- Windows of the last minutes, packed as columns: one row for what a transaction of the consumer has
-- added, several of which become one from time to time. `windows` is how many there are, `first` and
-- `last` are the minutes that they are of.
CREATE TABLE blocks (
    part smallint NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    windows integer NOT NULL,
    first timestamptz NOT NULL,
    last timestamptz NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (part, number)
);
-- Packed columns are hardly worth the time to compress them, for the seconds that they stay.
ALTER TABLE blocks ALTER COLUMN data SET STORAGE EXTERNAL;
-- Windows pass through deltas in the transaction that moves them on to minutes; what stays there, and
-- in recent, is of processes of the release before.
ALTER TABLE deltas DROP CONSTRAINT deltas_pkey;
ALTER TABLE deltas ALTER COLUMN source DROP NOT NULL, ALTER COLUMN seq DROP NOT NULL;
