"""The trial ledger: the same trial counts once, whoever writes at the same time, and a broken ledger never costs a run."""

import os, signal, sqlite3, subprocess, sys, tempfile, time, warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tradebench
from tradebench import ledger, ledgerspool
from tradebench.errors import RunError
from tradebench.ledger import count, digest, record, trials
from tradebench.ledgerrows import _NEEDED, clean, moments_of, pooled
from tradebench.ledgerrows import enter as enter_rows
from tradebench.ledgerspool import waiting

DAY = 86_400 * 10**9


def bars(symbols=("AAPL",), first="2005-01-03", last="2009-12-31", hash="d0", source="AAPL", freq="session"):
    ts = np.array([pd.Timestamp(first).value, pd.Timestamp(last).value])
    return SimpleNamespace(symbols=symbols, ts=ts, hash=hash, source=source, freq=freq)


BASE = dict(
    kind="run",
    strategy="sma_cross",
    code_hash="c0",
    params=dict(fast=10),
    costs=[dict(fee=1)],
    options=dict(fill="open"),
)


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.delenv("TRADEBENCH_TRIALS", raising=False)
    return tmp_path / "place" / "trials.sqlite"


def enter(file, b=None, **more):
    return record(**BASE | more, bars=b or bars(), path=file)


def test_the_same_trial_counts_once(file):
    first, again = enter(file), enter(file, run_id="another")
    assert (first.counted, again.counted) == (True, False) and "trial 1" in again.reason
    assert count(path=file) == 1 and list(trials(path=file)["repeats"].fillna(0)) == [0, 1]


@pytest.mark.parametrize(
    "change",
    [
        dict(code_hash="c1"),
        dict(params=dict(fast=11)),
        dict(b=bars(hash="d1")),
        dict(costs=[dict(fee=2)]),
        dict(options=dict(fill="close")),
    ],
)
def test_a_change_of_anything_that_matters_counts_again(file, change):
    enter(file)
    assert enter(file, **change).counted and count(path=file) == 2


def test_order_of_keys_and_kind_of_numbers_do_not_matter():
    assert digest(dict(a=1, b=dict(c=2, d=3))) == digest(dict(b=dict(d=3, c=2), a=1))
    assert digest(dict(a=float("inf"))) != digest(dict(a=0.0))


def test_a_sweep_is_one_row_with_its_count(file):
    enter(file, kind="sweep", count=4950, params=dict(fast="5..50"))
    enter(file)
    assert count(path=file) == 4951 and list(trials(path=file)["count"]) == [4950, 1]


@pytest.mark.parametrize(
    "mode, kind, counted", [("record", "test", 0), ("verify", "verify", 0), ("", "run", 1), ("other", "run", 1)]
)
def test_repetitions_are_entered_and_not_counted(file, monkeypatch, mode, kind, counted):
    monkeypatch.setenv("TRADEBENCH_TRIALS", mode)
    made = enter(file)
    row = trials(path=file).iloc[0]
    assert (row["kind"], row["counted"], made.counted) == (kind, bool(counted), bool(counted)) and count(
        path=file
    ) == counted


def test_a_run_after_its_uncounted_repetition_counts(file, monkeypatch):
    monkeypatch.setenv("TRADEBENCH_TRIALS", "record")
    enter(file)
    monkeypatch.delenv("TRADEBENCH_TRIALS")
    assert enter(file).counted


@pytest.mark.parametrize(
    "asked, want",
    [
        (dict(), 3),
        (dict(instruments="AAPL"), 2),
        (dict(instruments=["MSFT", "AAPL"]), 3),
        (dict(instruments="AAP"), 0),
        (dict(start="2010-01-01"), 1),
        (dict(start="2009-12-31", end="2009-12-31"), 3),
        (dict(end="2004-12-31"), 0),
        (dict(end="2005-01-03"), 2),
        (dict(start=pd.Timestamp("2011-06-01", tz="America/New_York")), 1),
        (dict(source="file.csv"), 1),
        (dict(freq="1min"), 0),
        (dict(strategy="swing"), 1),
    ],
)
def test_trials_are_counted_on_overlapping_data(file, asked, want):
    enter(file)
    enter(file, bars(("AAPL", "IBM"), first="2009-06-01", last="2012-01-01", hash="d2"))
    enter(file, bars(("MSFT",), hash="d3", source="file.csv"), strategy="swing")
    assert count(**asked, path=file) == want


def test_no_ledger_is_no_trial(file):
    assert count(path=file) == 0 and len(trials(path=file)) == 0 and not file.exists()
    file.parent.mkdir()
    sqlite3.connect(file).close()
    assert count(path=file) == 0


WRITER = """
import sys, time
from types import SimpleNamespace
import numpy as np
from tradebench.ledger import record
b = SimpleNamespace(symbols=("A",), ts=np.array([1, 2]), hash="d", source="s", freq=None)
while time.time() < float(sys.argv[2]): pass
for i in range(60):
    made = record("run", "s", "c", dict(i=i), b, costs=[], options={}, path=sys.argv[1])
    assert made.id, made.reason
"""


def test_several_processes_write_at_once_and_each_trial_counts_once(file):
    at = str(time.time() + 2.5)
    jobs = [subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, str(file), at]) for _ in range(3)]
    assert [j.wait(60) for j in jobs] == [0, 0, 0]
    table = trials(path=file)
    assert len(table) == 180 and table["counted"].sum() == 60 == count(path=file)


def test_threads_share_one_connection(file):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: enter(file, params=dict(i=i % 20)), range(80)))
    assert all(m.id for m in made) and sum(m.counted for m in made) == 20


def test_a_forked_child_writes_through_its_own_connection(file):
    enter(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads
        child = os.fork()
    if not child:
        os._exit(0 if enter(file, params=dict(fast=99)).id else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert enter(file, params=dict(fast=98)).counted and count(path=file) == 3


def test_a_ledger_that_was_removed_is_made_anew(file):
    enter(file)
    file.unlink()
    assert enter(file).counted and count(path=file) == 1


def spoil(file, how):
    file.parent.mkdir(exist_ok=True)
    if how == "a folder is in the way":
        file.mkdir()
    elif how == "not a data base":
        file.write_bytes(b"no data base at all" * 100)
    elif how == "of a newer version":
        with sqlite3.connect(file) as db:
            db.execute("PRAGMA user_version = 99")
    else:
        file.parent.rmdir()
        file.parent.write_text("a file where the folder should be")


@pytest.mark.parametrize("how", ["a folder is in the way", "not a data base", "of a newer version", "no folder"])
def test_a_ledger_that_cannot_be_written_warns_and_goes_on(file, how):
    spoil(file, how)
    with pytest.warns(UserWarning, match="missing from the ledger"):
        made = enter(file)
    assert made.id is None and not made.counted and str(file) in made.reason


def test_a_ledger_that_cannot_be_read_is_an_error(file):
    spoil(file, "not a data base")
    with pytest.raises(RunError, match="cannot read the trial ledger"):
        trials(path=file)


def test_a_trial_takes_milliseconds(file):
    seconds = []
    for i in range(30):
        start = time.perf_counter()
        enter(file, params=dict(i=i))
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.005


# The file's versions, imports, supersession


OLD = """
CREATE TABLE trials(
  id INTEGER PRIMARY KEY, ts TEXT NOT NULL, kind TEXT NOT NULL CHECK(kind IN ('run', 'sweep', 'verify', 'test')),
  counted INTEGER NOT NULL, count INTEGER NOT NULL CHECK(count >= 1), strategy TEXT NOT NULL, code_hash TEXT NOT NULL,
  params_hash TEXT NOT NULL, params TEXT NOT NULL, instruments TEXT NOT NULL, source TEXT, freq TEXT, start_ns INTEGER, end_ns INTEGER,
  data_hash TEXT NOT NULL, costs_hash TEXT NOT NULL, costs TEXT NOT NULL, options_hash TEXT NOT NULL, options TEXT NOT NULL,
  identity TEXT NOT NULL, run_id TEXT, host TEXT, user TEXT, version TEXT, repeats INTEGER REFERENCES trials(id), reason TEXT);
CREATE UNIQUE INDEX one_count ON trials(identity) WHERE counted;
CREATE INDEX by_span ON trials(start_ns, end_ns) WHERE counted;
PRAGMA user_version = 1;
"""


def old_file(file):
    "A ledger as version 1 wrote it: a run, its repetition, a sweep, a test, a test that repeats the run"
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = [
        "c0",
        digest(BASE["params"]),
        "d0",
        digest(BASE["costs"]),
        digest(BASE["options"]),
    ]
    b = bars()
    with sqlite3.connect(file) as db:
        db.executescript("PRAGMA journal_mode = WAL;" + OLD)
        for kind, counted, n, repeats in [("run", 1, 1, None), ("run", 0, 1, 1), ("sweep", 1, 40, None), ("test", 0, 2, None), ("test", 0, 1, 1)]:  # fmt: skip
            db.execute(
                "INSERT INTO trials(ts, kind, counted, count, strategy, code_hash, params_hash, params, instruments, source, freq, start_ns,"
                " end_ns, data_hash, costs_hash, costs, options_hash, options, identity, repeats, user, host)"
                " VALUES ('2026-01-01T00:00:00.000+00:00',?,?,?,'sma_cross',?,?,'{\"fast\": 10}','[\"AAPL\"]','AAPL','session',?,?,?,?,'[]',?,'{}',?,?,'u','h')",
                [kind, counted, n, parts[0], parts[1], int(b.ts[0]), int(b.ts[1]), *parts[2:], digest([*parts, n]), repeats],
            )  # fmt: skip
    db.close()


def test_an_old_file_is_read_as_it_is_and_upgraded_in_place_by_the_next_trial(file):
    old_file(file)
    before = file.read_bytes()
    assert count(path=file) == 41 and len(trials(path=file)) == 5 and file.read_bytes() == before
    assert not enter(file, sharpe=0.5).counted  # the run of then is known
    assert enter(file, params=dict(fast=11)).counted
    table = trials(path=file)
    assert count(path=file) == 42 and len(table) == 7 and list(table["id"]) == list(range(1, 8))
    assert list(table["counted"]) == [True, False, True, False, False, False, True]
    assert ledger.sharpe_moments(path=file).count == 1  # learnt from the repetition
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert [r[0] for r in db.execute("SELECT eligible FROM trials ORDER BY id")][:5] == [1, 1, 1, 0, 0]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_an_old_file_in_the_midst_of_an_upgrade_that_fails_stays_as_it_was(file, monkeypatch):
    from tradebench import ledgerfile

    old_file(file)
    whole, good = ledgerfile.versions, ledgerfile.versions("sqlite")
    monkeypatch.setattr(ledgerfile, "versions", lambda database: (good[0], (*good[1], "SELECT nonsense")))
    with pytest.warns(UserWarning, match="missing from the ledger"):
        enter(file, params=dict(fast=12))
    monkeypatch.setattr(ledgerfile, "versions", whole)
    with sqlite3.connect(file) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT sum(count) FROM trials WHERE counted").fetchone() == (41,)
    db.close()
    enter(file, params=dict(fast=12))  # waited, and has come in
    assert count(path=file) == 42


def test_an_old_file_can_be_imported(file):
    old_file(file)
    new = file.with_name("new.sqlite")
    assert ledger.import_trials(file, path=new) == (5, 41, 0)
    assert ledger.import_trials(file, path=new) == (5, 0, 0)
    assert count(path=new) == 41 and len(trials(path=new)) == 5


def test_a_rerun_supersedes_with_a_reason_and_both_are_kept(file):
    bad, good = enter(file), enter(file, code_hash="mended")
    ledger.supersede(bad.id, by=good.id, reason=" the fee was wrong ", who="ann", path=file)
    assert count(path=file) == 1
    row = trials(path=file).set_index("id").loc[bad.id]
    assert (
        not row["counted"]
        and row["superseded_by"] == good.id
        and row["superseded_who"] == "ann"
        and row["superseded_ts"]
    )
    assert row["reason"] == "superseded by trial 2: the fee was wrong"
    assert not enter(file).counted and count(path=file) == 1  # what was superseded does not come back


@pytest.mark.parametrize(
    "old, by, reason, says",
    [
        (1, 9, "why", "no trial 9"),
        (1, 2, " ", "give one"),
        (1, 3, "why", "differs from trial 1 in params"),
        (1, 4, "why", "trial 4 does not count"),
        (1, 1, "why", "supersede itself"),
        (5, 2, "why", "superseded already"),
        (1, 5, "why", "trial 5 does not count"),
    ],
)
def test_superseding_never_hides_a_trial(file, old, by, reason, says):
    enter(file)  # 1
    enter(file, code_hash="c1")  # 2
    enter(file, params=dict(fast=11))  # 3
    enter(file)  # 4 repeats 1
    enter(file, code_hash="c2")  # 5
    ledger.supersede(5, by=2, reason="why", path=file)
    with pytest.raises(RunError, match=says):
        ledger.supersede(old, by=by, reason=reason, path=file)
    assert count(path=file) == 3


# Counting is a sum over sets: neither order nor duplicates matter


@st.composite
def worlds(draw):
    "Rows of several ledgers with few identities, some superseded, some tests"
    rows = []
    sizes = draw(st.lists(st.integers(1, 9), min_size=4, max_size=4))
    for i in range(draw(st.integers(1, 12))):
        which = draw(st.integers(0, 3))
        kind = draw(st.sampled_from(("run", "sweep", "study", "backtest", "test", "verify")))
        eligible = kind not in ("test", "verify")
        by = draw(st.sampled_from((None, None, None, "other"))) if eligible else None
        known = draw(st.booleans())
        rows.append(
            dict.fromkeys(_NEEDED, "[]")
            | dict(
                uid=f"u{i}",
                identity=f"i{which}",
                count=sizes[which],
                kind=kind,
                eligible=int(eligible),
                superseded_by=by,
            )
            | (dict(sharpe_n=1, sharpe_mean=float(which), sharpe_var=0.0) if known else {})
        )
    return rows


def expected(rows):
    trial = {r["identity"]: r["count"] for r in rows if r["eligible"]}
    gone = {r["identity"] for r in rows if r["superseded_by"]}
    return sum(n for i, n in trial.items() if i not in gone)


@given(worlds(), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_count_depends_neither_on_order_nor_on_duplicates(rows, random):
    answers = set()
    for _ in range(3):
        random.shuffle(rows)
        cut = random.randint(0, len(rows))
        db = ledgerfile_in_memory()
        for batch in (rows[:cut], rows[cut:], rows[: cut + 1], rows):
            db.begin()
            enter_rows(db, [clean(r) for r in batch])
            db.commit()
        counted = db.rows("SELECT coalesce(sum(count), 0) FROM trials WHERE counted = 1")[0][0]
        known = db.rows(
            "SELECT identity, sharpe_mean FROM trials WHERE counted = 1 AND sharpe_n IS NOT NULL ORDER BY 1"
        )
        ids = [r[0] for r in db.rows("SELECT id FROM trials ORDER BY id")]
        assert counted == expected(rows) and ids == list(range(1, len(ids) + 1))
        assert not db.rows("SELECT 1 FROM trials WHERE counted = 1 GROUP BY identity HAVING count(*) > 1")
        answers.add((counted, tuple(known)))
        db.close()
    assert len(answers) == 1


def ledgerfile_in_memory():
    from tradebench.ledgerfile import File, upgrade

    db = File.__new__(File)
    db.db = sqlite3.connect(":memory:", isolation_level=None)
    upgrade(db, 0, "sqlite")
    return db


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=1, max_size=6), min_size=1, max_size=6),
)
def test_pooled_moments_are_those_of_all_points(groups):
    every = np.concatenate([np.array(g) for g in groups])
    got = pooled([moments_of(g) for g in groups])
    assert got.count == len(every) and np.isclose(got.mean, every.mean(), atol=1e-12)
    want = every.var(ddof=1) if len(every) > 1 else np.nan
    assert np.isclose(got.variance, want, atol=1e-12, equal_nan=True)


def test_sharpe_moments_pool_what_is_known_on_overlapping_bars(file):
    enter(file, sharpe=1.0)
    enter(file, kind="sweep", count=4, params=dict(fast="1..4"), sharpe=[0.0, 0.5, np.nan, 2.5])
    enter(file, params=dict(fast=77))  # not known
    enter(file, bars(first="2015", last="2016", hash="d9"), sharpe=9.0)  # elsewhere
    want = np.array([1.0, 0.0, 0.5, 2.5])
    got = ledger.sharpe_moments(bars(), path=file)
    assert got.count == 4 and np.isclose(got.mean, want.mean()) and np.isclose(got.variance, want.var(ddof=1))
    assert count(bars(), path=file) == 6 and count(path=file) == 7


@pytest.mark.parametrize(
    "other, overlaps",
    [
        (dict(), True),
        (dict(hash="new bar", last="2010-01-04"), True),
        (dict(symbols=("IBM", "AAPL")), True),
        (dict(symbols=("IBM",)), False),
        (dict(source="other.csv"), False),
        (dict(source=""), True),  # what is not named restricts nothing
        (dict(freq="1min"), False),
        (dict(freq=None), True),
        (dict(first="2010-01-01", last="2011-01-01"), False),
        (dict(first="2009-12-31", last="2011-01-01"), True),
    ],
)
def test_bars_name_the_question(file, other, overlaps):
    enter(file)
    assert count(bars(**other), path=file) == int(overlaps)


# Plain backtests


@pytest.fixture
def counted(file, monkeypatch):
    "A ledger of its own as the one of the settings"
    from tradebench.settings import settings as effective

    monkeypatch.setenv("TRADEBENCH__RUNS__LEDGER", str(file))
    monkeypatch.setenv("TRADEBENCH__RUNS__SPOOL", str(file.parent.parent / "spool"))
    effective.cache_clear()
    yield file
    ledger.flush()
    monkeypatch.undo()
    effective.cache_clear()


@pytest.fixture(scope="module")
def real():
    return tradebench.prepare(tradebench.load("AAPL", start="2008", end="2009"))


def test_every_backtest_counts_once_and_a_repetition_leaves_no_row(counted, real):
    from tradebench.strategies.sma_cross import SmaCross

    for fast in (5, 6, 5, 6, 5):
        result = tradebench.backtest(SmaCross(fast=fast, slow=30), real)
    assert count(real) == 2 and len(trials()) == 2 and set(trials()["kind"]) == {"backtest"}
    assert ledger.sharpe_moments(real).count == 2
    assert np.isclose(trials()["sharpe_mean"].iloc[0], result.metrics["sharpe"], rtol=1e-6)


def test_signals_weights_and_pandas_functions_are_told_apart_by_their_values(counted, real):
    close = real.frame("seen")["close"]
    for n in (5, 6, 5):
        tradebench.backtest(target=(close > close.rolling(n).mean()) * 1.0, bars=real)
        tradebench.backtest(entries=close > close.rolling(n).mean(), exits=close < close.rolling(n).mean(), bars=real)
    assert count(real) == 4


def test_debug_trace_and_a_run_of_the_same_are_no_further_trials(counted, real):
    from tradebench.backtest.job import Job, run_job

    tradebench.backtest("sma_cross", real)
    tradebench.backtest("sma_cross", real, trace=True)
    tradebench.backtest("sma_cross", real, debug=True)
    made = run_job(Job(start="2008", end="2009"))
    assert made.trial.id and not made.trial.counted and count(real) == 1
    assert list(trials()["kind"]) == ["backtest", "run"]


def test_a_point_of_a_sweep_that_is_run_again_counts_nothing_more(counted, real):
    found = tradebench.sweep("sma_cross", real, fast=[5, 6], slow=[30], workers=1, progress=False)
    assert count(real) == 2 and ledger.sharpe_moments(real).count == 2
    found.best().backtest()
    assert count(real) == 2 and list(trials()["reason"])[-1] == "a point of its sweep"
    found.best().backtest(costs=tradebench.Costs(fee_bps=7))
    assert count(real) == 3


def test_what_is_declared_uncounted_is_entered_or_left_out(counted, real):
    with pytest.raises(RunError, match="say why"), ledger.uncounted(" "):
        pass
    with ledger.uncounted("folds of a walk-forward"):
        tradebench.backtest("sma_cross", real)
        with ledger.uncounted("an inner reason", keep=False):
            tradebench.backtest("sma_cross", real, initial=5e4)
    assert count() == 0 and list(trials()["reason"]) == ["folds of a walk-forward"]
    study = ledger.record(
        "study", "sma_cross", "c", dict(trials=50), real, costs=[], options={}, count=50, sharpe=np.arange(50.0)
    )
    assert study.counted and count(real) == 50 and ledger.sharpe_moments(real).count == 50
    tradebench.backtest("sma_cross", real)
    assert count(real) == 51  # an uncounted one does not stand in the way


def test_tests_are_recorded_once_and_not_counted(counted, real, monkeypatch):
    monkeypatch.setenv("TRADEBENCH_TRIALS", "record")
    for _ in range(3):
        tradebench.backtest("sma_cross", real)
        ledger.flush()
    assert count() == 0 and list(trials()["kind"]) == ["test"]


def test_entering_a_backtest_takes_well_under_a_millisecond(counted, real):
    from tradebench.backtest.simulation import performed, trial_of
    from tradebench.strategies.sma_cross import SmaCross

    made = [trial_of(*performed(SmaCross(fast=5, slow=30 + i), real)) for i in range(200)]
    start = time.process_time()
    for trial in made:
        ledger.note(**trial)
    noted = (time.process_time() - start) / len(made)
    ledger.flush()
    whole = (time.process_time() - start) / len(made)
    assert count(real) == 200 and noted < 2e-4 and whole < 1e-3


def test_large_bars_are_not_held_until_the_next_write(counted):
    from tradebench import ledgerwriter

    big = SimpleNamespace(**vars(bars()) | dict(raw=np.zeros(ledgerwriter._FULL // 8 + 1)))
    del big.hash

    class Late(SimpleNamespace):
        hash = "computed"

    ledger.note("s", "c", {}, Late(**vars(big)), costs=[], options={})
    assert not ledgerwriter._pending and count() == 1


NOTES = """
import os, signal, sys, time
from types import SimpleNamespace
import numpy as np
from tradebench import ledger
b = SimpleNamespace(symbols=("A",), ts=np.array([1, 2]), hash="d", source="s", freq=None)
for i in range(int(sys.argv[2])):
    ledger.note("s", "c", dict(i=i), b, costs=[], options={})
if sys.argv[1] == "wait":
    print("done", flush=True)
    time.sleep(30)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "raise":
    raise SystemExit(3)
"""
REAL = """
import multiprocessing, warnings
import tradebench
from tradebench.strategies.sma_cross import SmaCross
bars = tradebench.load("AAPL", start="2008", end="2009")
def work(i):
    tradebench.backtest(SmaCross(fast=5, slow=30 + i), bars)
work(0)
warnings.simplefilter("ignore")  # newer Pythons warn of forking with threads
jobs = [multiprocessing.get_context("fork").Process(target=work, args=(i,)) for i in (0, 1, 2)]
[j.start() for j in jobs]
[j.join() for j in jobs]
work(3)
"""


def program(text, *args, **env):
    return subprocess.Popen([sys.executable, "-W", "error", "-c", text, *map(str, args)], stdout=subprocess.PIPE, text=True, env=os.environ | env)  # fmt: skip


@pytest.mark.parametrize("how, code", [("end", 0), ("raise", 3)])
def test_nothing_is_lost_by_an_end_of_the_process(counted, how, code):
    assert program(NOTES, how, 7).wait(60) == code
    assert count() == 7


def test_a_killed_process_loses_a_second_at_most(counted):
    child = program(NOTES, "wait", 7)
    assert child.stdout.readline() == "done\n"
    time.sleep(1.0)
    child.kill()
    child.wait()
    assert count() == 7
    assert program(NOTES, "kill", 3000).wait(60) == -signal.SIGKILL
    assert 7 <= count() <= 3000 and trials()["id"].is_unique  # the file is whole, whatever came through


def test_a_script_and_its_forked_workers_write_what_they_have_tried(counted):
    assert program(REAL).wait(90) == 0
    assert count() == 4


# Out of reach


def test_trials_wait_and_come_in_with_the_next_contact(counted, real):
    place = counted.parent
    place.write_text("a file where the folder should be")
    tradebench.backtest("sma_cross", real)
    with pytest.warns(UserWarning, match="1 trials are missing from the ledger .* it waits in"):
        ledger.flush()
    with pytest.warns(UserWarning, match="missing from the ledger"):
        made = ledger.record("sweep", "s", "c", {}, real, costs=[], options={}, count=40)
    assert made.id is None and ledger.incomplete() == 41
    place.unlink()
    assert ledger.incomplete() == 0 and count() == 41 and waiting(counted) == 0


def test_the_background_complains_once(counted, real):
    counted.parent.write_text("in the way")
    from tradebench.strategies.sma_cross import SmaCross

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i in range(5):
            tradebench.backtest(SmaCross(fast=5, slow=30 + i), real)
            ledger.flush()
    assert len(said) == 1 and ledger.incomplete() == 5
    counted.parent.unlink()


def test_a_spool_of_another_machine_is_imported_once(counted, real, tmp_path):
    counted.parent.write_text("in the way")
    with pytest.warns(UserWarning):
        ledger.record("sweep", "s", "c", {}, real, costs=[], options={}, count=40)
    file = tmp_path / "artefact.jsonl"
    file.write_bytes(ledgerspool.spool_file(counted).read_bytes() + b'{"row": {"uid": 3')
    ledgerspool.spool_file(counted).unlink()
    counted.parent.unlink()
    assert ledger.import_trials(file) == (1, 40, 1) and ledger.import_trials(file) == (1, 0, 1)
    assert count() == 40 and len(trials()) == 1


def test_cut_lines_stay_missing_until_somebody_looks(counted, real):
    path = ledgerspool.keep(counted, [])
    path.write_bytes(b'{"row": {"uid"')
    assert ledger.incomplete() == 1 and ledger.incomplete() == 1 and not path.exists()
    path.with_suffix(".damaged").unlink()
    assert ledger.incomplete() == 0


SPOOLER = """
import sys, time
from tradebench.ledgerspool import keep, taken
texts = "uid ts strategy code_hash params_hash params instruments data_hash costs_hash costs options_hash options identity".split()
while time.time() < float(sys.argv[2]): pass
for i in range(150):
    keep("there", [dict.fromkeys(texts, "x") | dict(uid=f"{sys.argv[1]} {i}", kind="run", count=1, eligible=1)])
"""


def test_nothing_is_lost_when_one_takes_over_what_others_append(counted):
    jobs = [program(SPOOLER, name, time.time() + 1.5) for name in "ab"]
    found, ended = [], False
    while not ended:
        ended = all(j.poll() is not None for j in jobs)
        with ledgerspool.taken("there") as rows:
            found += [r["uid"] for r in rows]
            time.sleep(0.003)  # what is appended now must wait
        time.sleep(0.002)
    assert sorted(found) == sorted(f"{name} {i}" for name in "ab" for i in range(150))


FULL = """
import resource, sys, warnings
from types import SimpleNamespace
import numpy as np
from tradebench import ledger
warnings.simplefilter("ignore")
b = SimpleNamespace(symbols=("A",), ts=np.array([1, 2]), hash="d", source="s", freq=None)
made = [ledger.record("run", "s", "c", dict(i=i), b, costs=[], options={}) for i in range(3)]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
made += [ledger.record("run", "s" * 3000, "c", dict(i=i), b, costs=[], options={}) for i in range(3, 43)]
entered = sum(m.id is not None for m in made)
print(entered, ledger.incomplete(), ledger.count())
"""


@pytest.mark.parametrize("room", [100_000, 60_000])
def test_a_full_disk_costs_no_run_and_is_known(counted, room):
    child = program(FULL, room)
    entered, missing, counted_then = map(int, child.communicate(timeout=60)[0].split())
    assert child.returncode == 0 and 3 <= entered <= counted_then < 43 and counted_then + missing == 43
    waited = waiting(counted)
    assert count() == counted_then + waited and waiting(counted) == 0  # there is room again


def test_a_ledger_that_may_not_be_written_is_read_and_what_comes_waits(counted):
    if os.geteuid() != 0:
        pytest.skip("needs root, to drop its rights")
    enter(counted)
    text = """
import os, sys, warnings
from types import SimpleNamespace
import numpy as np
from tradebench import ledger
warnings.simplefilter("ignore")
b = SimpleNamespace(symbols=("A",), ts=np.array([1, 2]), hash="d", source="s", freq=None)
ledger.record("run", "s", "c", {}, b, costs=[], options={}, path=sys.argv[1])  # imports what nobody else may read here
ledger.count(path=sys.argv[1])
os.setgid(65534), os.setuid(65534)
made = ledger.record("run", "s", "c", {}, b, costs=[], options={})
print(made.id, ledger.count(), ledger.incomplete(), "readonly" in made.reason)
"""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        os.mkdir(f"{place}/ledger", 0o755), os.mkdir(f"{place}/spool")
        os.chmod(f"{place}/spool", 0o777)
        with sqlite3.connect(counted) as source, sqlite3.connect(f"{place}/ledger/t.sqlite") as copy:
            source.backup(copy)
        source.close(), copy.close()
        where = dict(
            TRADEBENCH__RUNS__LEDGER=f"{place}/ledger/t.sqlite", TRADEBENCH__RUNS__SPOOL=f"{place}/spool", HOME="/"
        )
        out = program(text, counted.with_name("warm.sqlite"), **where).communicate(timeout=60)[0]
    assert out.split() == ["None", "1", "1", "True"]


def test_a_damaged_file_is_a_clear_error_and_backtests_go_on(counted, real):
    for i in range(60):
        enter(counted, params=dict(i=i, text="x" * 2000))
    from tradebench import ledgerwriter

    ledgerwriter._drop(counted)
    data = bytearray(counted.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    counted.write_bytes(data)
    tradebench.backtest("sma_cross", real)
    with pytest.warns(UserWarning, match="the file is damaged: bring it back from a backup"):
        ledger.flush()
    with pytest.raises(RunError, match="cannot read the trial ledger .*the file is damaged"):
        count()
    counted.unlink()
    assert count() == 1


def test_the_command_supersedes_imports_and_tells_what_is_missing(counted, real, capsys):
    from tradebench.cli.main import main

    def call(*words):
        with pytest.raises(SystemExit) as end:
            main([str(w) for w in words])
        return end.value.code, *capsys.readouterr()

    enter(counted), enter(counted, code_hash="c1")
    code, out, _ = call("trials", "supersede", 1, "--by", 2, "--reason", "a bug")
    assert code == 0 and "trial 1 is superseded by trial 2; 1 trials counted" in out
    assert "superseded by trial 2: a bug" in call("trials", "--all")[1]
    code, _, err = call("trials", "supersede", 1, "--by", 2, "--reason", "a bug")
    assert code == 2 and err == "tradebench: trial 1 is superseded already\n"
    other = counted.with_name("other.sqlite")
    enter(other, params=dict(fast=99))
    assert "1 rows read; 1 more trials count now, 2 in all" in call("trials", "import", other)[1]
    assert call("trials", "import", counted.parent / "none.sqlite")[0] == 2
    ledgerspool.keep(counted, []).write_bytes(b"spoiled")
    assert "the count is incomplete: 1 trials wait in" in call("trials")[1]
