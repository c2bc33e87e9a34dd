-- How many sources there are, as windows have told last, in each partition of usage.windows. The
-- generation grows with each change of the number; an earlier one that comes late is passed over.
CREATE TABLE source_counts (
    part smallint PRIMARY KEY,
    generation integer NOT NULL,
    count smallint NOT NULL
);
