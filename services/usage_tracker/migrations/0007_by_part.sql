-- Rows of one part lie together, wherever they lie; what is about all parts stays in one place.
SELECT mindweave_by_part(
    'events', 'event_ids', 'adjustments', 'deltas', 'delta_blocks', 'session_deltas', 'sessions',
    'parts', 'relays', 'unpriced'
);

-- Walks go over the rows of one part of a table, and of one day where it has days. Those that are
-- under way begin anew, but for that of a change of the layout, which must not end before its time.
DO $$
BEGIN
    IF EXISTS (SELECT FROM layout WHERE state = 'rehashing') THEN
        RAISE 'the number of partitions is being changed: end that with the release before';
    END IF;
END
$$;
DELETE FROM walks;
UPDATE deleted_orgs SET walking = false WHERE walking;
UPDATE repricing_parts SET generation = 0 WHERE NOT done;
ALTER TABLE walks ADD COLUMN part smallint NOT NULL, ADD COLUMN day date;
ALTER TABLE walks DROP CONSTRAINT walks_pkey;
CREATE UNIQUE INDEX walks_range ON walks (name, relation, part, day) NULLS NOT DISTINCT;
