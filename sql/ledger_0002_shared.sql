-- What a ledger needs that many places write and import from: a name of its own for each row (uid); whether a row is a trial at all
-- (eligible; counted: and the first of its identity, and not superseded); what superseded it; the Sharpe ratios of its points.
-- up

CREATE TABLE trials_2(
  id /*sqlite INTEGER*/ /*postgres BIGINT*/ PRIMARY KEY, uid TEXT NOT NULL UNIQUE, ts TEXT NOT NULL,
  kind TEXT NOT NULL CHECK(kind IN ('backtest', 'run', 'sweep', 'study', 'verify', 'test')),
  eligible INTEGER NOT NULL, counted INTEGER NOT NULL, count BIGINT NOT NULL CHECK(count >= 1),
  strategy TEXT NOT NULL, code_hash TEXT NOT NULL, params_hash TEXT NOT NULL, params TEXT NOT NULL, instruments TEXT NOT NULL, source TEXT,
  freq TEXT, start_ns BIGINT, end_ns BIGINT, data_hash TEXT NOT NULL, costs_hash TEXT NOT NULL, costs TEXT NOT NULL,
  options_hash TEXT NOT NULL, options TEXT NOT NULL, identity TEXT NOT NULL, run_id TEXT, host TEXT, "user" TEXT, version TEXT,
  repeats BIGINT, reason TEXT,
  superseded_by TEXT, superseded_why TEXT, superseded_who TEXT, superseded_ts TEXT,  -- by: the identity of the trial that counts instead
  sharpe_n BIGINT, sharpe_mean DOUBLE PRECISION, sharpe_var DOUBLE PRECISION);  -- of the points with a finite ratio; population variance

INSERT INTO trials_2(id, uid, ts, kind, eligible, counted, count, strategy, code_hash, params_hash, params, instruments, source, freq,
    start_ns, end_ns, data_hash, costs_hash, costs, options_hash, options, identity, run_id, host, "user", version, repeats, reason)
  SELECT id, 'v1 ' || ts || ' ' || identity || ' ' || id, ts, kind,
    CASE WHEN counted = 1 OR (repeats IS NOT NULL AND kind IN ('run', 'sweep')) THEN 1 ELSE 0 END, counted, count, strategy, code_hash,
    params_hash, params, instruments, source, freq, start_ns, end_ns, data_hash, costs_hash, costs, options_hash, options, identity,
    run_id, host, "user", version, repeats, reason FROM trials;
DROP TABLE trials;
ALTER TABLE trials_2 RENAME TO trials;

CREATE UNIQUE INDEX one_count ON trials(identity) WHERE counted = 1 OR superseded_by IS NOT NULL;
CREATE INDEX by_identity ON trials(identity);
CREATE INDEX by_span ON trials(start_ns, end_ns) WHERE counted = 1;
