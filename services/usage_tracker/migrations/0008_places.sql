-- A walk goes over all parts of a place, but for those that lie apart.
ALTER TABLE walks ALTER COLUMN part DROP NOT NULL;
