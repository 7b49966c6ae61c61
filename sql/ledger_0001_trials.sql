-- The trial ledger: one row for each backtest, run, sweep or study (nbs/06_ledger.ipynb). Times are ns since 1970 in UTC.
-- up

CREATE TABLE trials(
  id /*sqlite INTEGER*/ /*postgres BIGINT*/ PRIMARY KEY, ts TEXT NOT NULL,
  kind TEXT NOT NULL CHECK(kind IN ('run', 'sweep', 'verify', 'test')), counted INTEGER NOT NULL, count BIGINT NOT NULL CHECK(count >= 1),
  strategy TEXT NOT NULL, code_hash TEXT NOT NULL, params_hash TEXT NOT NULL, params TEXT NOT NULL, instruments TEXT NOT NULL, source TEXT,
  freq TEXT, start_ns BIGINT, end_ns BIGINT, data_hash TEXT NOT NULL, costs_hash TEXT NOT NULL, costs TEXT NOT NULL,
  options_hash TEXT NOT NULL, options TEXT NOT NULL, identity TEXT NOT NULL, run_id TEXT, host TEXT, "user" TEXT, version TEXT,
  repeats BIGINT, reason TEXT);
CREATE UNIQUE INDEX one_count ON trials(identity) WHERE counted = 1;
CREATE INDEX by_span ON trials(start_ns, end_ns) WHERE counted = 1;
