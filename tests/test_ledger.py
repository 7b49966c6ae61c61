"""The trial ledger: the same trial counts once, whoever writes at the same time, and a broken ledger never costs a run."""

import os, sqlite3, subprocess, sys, time, warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tradebench.errors import RunError
from tradebench.ledger import count, digest, record, trials

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
