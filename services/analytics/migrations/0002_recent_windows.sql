-- Windows of the last minutes, on their way from the deltas to minutes, hours, days and months: what
-- arrives for one window within a minute is added up here, in one row of one table.
CREATE TABLE recent (LIKE minutes INCLUDING INDEXES) WITH (fillfactor = 50);
