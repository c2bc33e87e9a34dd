-- Rows of one part lie together, wherever they lie.
ALTER TABLE deleted_orgs DROP CONSTRAINT deleted_orgs_pkey, ADD PRIMARY KEY (part, org_id);
SELECT mindweave_by_part(
    'series', 'deltas', 'recent', 'blocks', 'minutes', 'hours', 'days', 'months', 'sources',
    'source_counts', 'deleted_orgs'
);
