-- Closed days outside of the database: which files hold them, and the keys that must stay known.
-- up

CREATE TABLE days(  -- one row a file; rows of `what` from `first` to `last` (events, fills: seq; orders, equity: time)
  file TEXT PRIMARY KEY, day TEXT NOT NULL, what TEXT NOT NULL, first BIGINT NOT NULL, last BIGINT NOT NULL, rows BIGINT NOT NULL,
  bytes BIGINT NOT NULL, checksum TEXT NOT NULL, ts BIGINT NOT NULL);

CREATE TABLE old_fills(
  account TEXT NOT NULL, epoch BIGINT NOT NULL, fill_id TEXT NOT NULL, PRIMARY KEY(account, epoch, fill_id)) /*sqlite WITHOUT ROWID*/;

CREATE TABLE old_orders(client_id TEXT PRIMARY KEY) /*sqlite WITHOUT ROWID*/;

/*sqlite
CREATE TRIGGER known_fill BEFORE INSERT ON fills
  WHEN EXISTS (SELECT 1 FROM old_fills WHERE account = new.account AND epoch = new.epoch AND fill_id = new.fill_id)
  BEGIN SELECT RAISE(IGNORE); END;
CREATE TRIGGER known_order BEFORE INSERT ON orders
  WHEN EXISTS (SELECT 1 FROM old_orders WHERE client_id = new.client_id)
  BEGIN SELECT RAISE(ABORT, 'UNIQUE constraint failed: orders.client_id (archived)'); END;
*/
/*postgres
CREATE FUNCTION known_fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF EXISTS (SELECT 1 FROM old_fills WHERE account = new.account AND epoch = new.epoch AND fill_id = new.fill_id) THEN RETURN NULL; END IF;
  RETURN new; END $$;
CREATE TRIGGER known_fill BEFORE INSERT ON fills FOR EACH ROW EXECUTE FUNCTION known_fill();
CREATE FUNCTION known_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF EXISTS (SELECT 1 FROM old_orders WHERE client_id = new.client_id) THEN
    RAISE unique_violation USING MESSAGE = 'order is archived', CONSTRAINT = 'orders_pkey'; END IF;
  RETURN new; END $$;
CREATE TRIGGER known_order BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION known_order();
*/

-- down
-- only if: SELECT count(*) = 0 FROM days -- closed days are archived; bring them back first: tradebench journal archive --restore

/*sqlite
DROP TRIGGER known_order;
DROP TRIGGER known_fill;
*/
/*postgres
DROP TRIGGER known_order ON orders;
DROP FUNCTION known_order;
DROP TRIGGER known_fill ON fills;
DROP FUNCTION known_fill;
*/
DROP TABLE old_orders;
DROP TABLE old_fills;
DROP TABLE days;
