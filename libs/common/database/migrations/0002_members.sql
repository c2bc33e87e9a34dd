-- Who shares the partitions of a topic, and until when each of them is taken to be alive.
CREATE TABLE partition_members (
    topic text NOT NULL,
    owner text NOT NULL,
    lease_until timestamptz NOT NULL,
    PRIMARY KEY (topic, owner)
) WITH (fillfactor = 50);
