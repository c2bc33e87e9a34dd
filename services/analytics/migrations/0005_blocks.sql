-- What has arrived and is not added up yet: one row for each transaction of the consumer, its deltas
-- packed as columns. `deltas` is how many came, `first` and `last` are the minutes that they are of.
CREATE TABLE blocks (
    part smallint NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    deltas integer NOT NULL,
    first timestamptz NOT NULL,
    last timestamptz NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (part, number)
);
-- Packed columns are hardly worth the time to compress them, for the seconds that they stay.
ALTER TABLE blocks ALTER COLUMN data SET STORAGE EXTERNAL;
-- Only passed through by those that are added up, in the transaction that does; and by processes of
-- the release before.
ALTER TABLE deltas DROP CONSTRAINT deltas_pkey;
ALTER TABLE deltas ALTER COLUMN source DROP NOT NULL, ALTER COLUMN seq DROP NOT NULL;
