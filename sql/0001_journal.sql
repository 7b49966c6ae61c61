-- The journal of a deployment: what happened (events), and what follows from it (the other tables).
-- One text for both databases; a comment that starts with the name of one is read by that one only. Times are ns since 1970 in UTC.
-- up

CREATE TABLE events(  -- append-only, numbered without holes
  seq /*sqlite INTEGER*/ /*postgres BIGINT*/ PRIMARY KEY,
  ts BIGINT NOT NULL, account TEXT NOT NULL, kind TEXT NOT NULL, t BIGINT NOT NULL, body BYTEA NOT NULL);

CREATE TABLE orders(  -- the last state of each order
  client_id TEXT PRIMARY KEY, account TEXT NOT NULL, symbol TEXT NOT NULL, qty DOUBLE PRECISION NOT NULL, "to" DOUBLE PRECISION NOT NULL,
  lim DOUBLE PRECISION, stop DOUBLE PRECISION, take DOUBLE PRECISION, trail DOUBLE PRECISION, expire DOUBLE PRECISION NOT NULL,
  reason BIGINT NOT NULL, bar_ts BIGINT NOT NULL, leg BIGINT NOT NULL, attempt BIGINT NOT NULL, reduce BOOLEAN NOT NULL,
  ref DOUBLE PRECISION, valid_until BIGINT NOT NULL,
  deployment TEXT NOT NULL, "row" BIGINT NOT NULL, state BIGINT NOT NULL, venue_epoch BIGINT NOT NULL, venue_id TEXT NOT NULL,
  filled DOUBLE PRECISION NOT NULL, value DOUBLE PRECISION NOT NULL, text TEXT NOT NULL, created BIGINT NOT NULL, updated BIGINT NOT NULL);
CREATE INDEX orders_open ON orders(state) WHERE state < 4;  -- intent, sent, working, unknown

CREATE TABLE fills(  -- a copy of a fill has the same key and is not entered again; two brokers of one deployment may give out the same numbers
  epoch BIGINT NOT NULL, fill_id TEXT NOT NULL, venue_id TEXT NOT NULL, client_id TEXT NOT NULL, account TEXT NOT NULL, symbol TEXT NOT NULL,
  qty DOUBLE PRECISION NOT NULL, price DOUBLE PRECISION NOT NULL, fee DOUBLE PRECISION NOT NULL, ref DOUBLE PRECISION,
  spread DOUBLE PRECISION NOT NULL, slippage DOUBLE PRECISION NOT NULL, impact DOUBLE PRECISION NOT NULL, reason BIGINT NOT NULL,
  ts BIGINT NOT NULL, vseq BIGINT NOT NULL, t BIGINT NOT NULL, seq BIGINT NOT NULL, PRIMARY KEY(account, epoch, fill_id));
CREATE INDEX fills_by_seq ON fills(seq);

CREATE TABLE positions(
  account TEXT NOT NULL, symbol TEXT NOT NULL, qty DOUBLE PRECISION NOT NULL, avg DOUBLE PRECISION, mark DOUBLE PRECISION,
  stop DOUBLE PRECISION, take DOUBLE PRECISION, trail DOUBLE PRECISION, updated BIGINT NOT NULL, PRIMARY KEY(account, symbol));

CREATE TABLE equity(  -- one row a batch and account
  account TEXT NOT NULL, t BIGINT NOT NULL, ts BIGINT NOT NULL, equity DOUBLE PRECISION, cash DOUBLE PRECISION,
  PRIMARY KEY(account, t)) /*sqlite WITHOUT ROWID*/;

CREATE TABLE snapshots(  -- the newest three of each account
  account TEXT NOT NULL, seq BIGINT NOT NULL, header BYTEA NOT NULL, body BYTEA NOT NULL, PRIMARY KEY(account, seq));

CREATE TABLE control(  -- who may trade, and whether anybody may
  deployment TEXT PRIMARY KEY, epoch BIGINT NOT NULL, holder TEXT NOT NULL, lease_until BIGINT NOT NULL, halted BIGINT NOT NULL,
  latch TEXT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL, ts BIGINT NOT NULL);

CREATE TABLE commands(
  id TEXT PRIMARY KEY, ts BIGINT NOT NULL, deployment TEXT NOT NULL, kind TEXT NOT NULL, args TEXT NOT NULL, who TEXT NOT NULL,
  why TEXT NOT NULL, state TEXT NOT NULL, result TEXT NOT NULL, taken_by_epoch BIGINT NOT NULL, updated BIGINT NOT NULL);

CREATE TABLE limits(  -- append-only; value is JSON, null takes a limit back
  version /*sqlite INTEGER*/ /*postgres BIGINT*/ PRIMARY KEY,
  ts BIGINT NOT NULL, scope TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL);

CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);

-- down

DROP TABLE meta;
DROP TABLE limits;
DROP TABLE commands;
DROP TABLE control;
DROP TABLE snapshots;
DROP TABLE equity;
DROP TABLE positions;
DROP TABLE fills;
DROP TABLE orders;
DROP TABLE events;
