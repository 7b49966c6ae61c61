"""The trial ledger on a PostgreSQL server: shared by processes, away for a while, killed, and the same in its answers as a file."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from servers import Postgres, postgres  # noqa: F401 (postgres is a fixture)
from test_ledger import bars, enter

from tradebench import ledger, ledgerwriter
from tradebench.errors import RunError
from tradebench.ledger import count, trials
from tradebench.ledgerserver import Server
from tradebench.ledgerspool import waiting
from tradebench.schema import Address


@pytest.fixture
def place(postgres, monkeypatch):  # noqa: F811
    "The address of an empty ledger, which is that of the settings, too"
    yield from chosen(postgres.database(), monkeypatch)


def chosen(address, monkeypatch):
    from tradebench.settings import settings

    monkeypatch.delenv("TRADEBENCH_TRIALS", raising=False)
    monkeypatch.setenv("TRADEBENCH__RUNS__LEDGER", address)
    settings.cache_clear()
    yield Address(address)
    ledger.flush()
    ledgerwriter._drop(Address(address))
    ledgerwriter._resting.clear()
    monkeypatch.undo()
    settings.cache_clear()


def test_it_counts_as_a_file_does(place, tmp_path):
    file = tmp_path / "t.sqlite"
    for where in (file, place):
        assert enter(where, sharpe=0.5).counted and not enter(where).counted
        enter(
            where,
            bars(("MSFT", "AAPL"), first="2012", last="2013", hash="d2"),
            kind="sweep",
            count=40,
            sharpe=[1, 2, np.nan],
        )
        enter(where, bars(("IBM",), hash="d3", source="", freq=None), kind="study", count=5)
        enter(where, code_hash="mended")
        ledger.supersede(1, by=5, reason="a bug", who="ann", path=where)
    for asked in (
        {},
        dict(instruments="AAPL"),
        dict(instruments=["IBM", "MSFT"]),
        dict(start="2012-06-01"),
        dict(end="2009-12-31", freq="session"),
        dict(source="AAPL"),
        dict(instruments=bars()),
    ):
        assert count(**asked, path=place) == count(**asked, path=file)
        assert repr(ledger.sharpe_moments(**asked, path=place)) == repr(ledger.sharpe_moments(**asked, path=file))
    volatile = ["ts", "uid", "superseded_ts"]
    a, b = trials(path=file).drop(columns=volatile), trials(path=place).drop(columns=volatile)
    assert a.to_csv() == b.to_csv()
    assert count(strategy="sma_cross") == 46


def test_a_file_and_a_server_import_each_other_as_often_as_one_likes(place, tmp_path):
    file, other = tmp_path / "t.sqlite", tmp_path / "other.sqlite"
    for i in range(30):
        enter(file, params=dict(i=i))
    enter(file, params=dict(i=3))
    assert ledger.import_trials(file) == (31, 30, 0) and ledger.import_trials(file) == (31, 0, 0)
    assert ledger.import_trials(str(place.reveal()), path=other) == (31, 30, 0) and count(path=other) == 30
    assert ledger.import_trials(place, path=file) == (31, 0, 0)
    assert len(trials()) == len(trials(path=file)) == len(trials(path=other)) == 31


def test_the_schema_ledger_is_made_where_the_address_names_none_and_a_journal_may_be_beside_it(postgres, monkeypatch):  # noqa: F811
    from tradebench.live.postgres import migrate_postgres

    postgres.sql("CREATE DATABASE desk")
    for at in chosen(postgres.dsn("desk"), monkeypatch):
        assert enter(at).counted
        assert postgres.sql("SELECT schemaname FROM pg_tables WHERE tablename = 'trials'", "desk") == "ledger"
        assert asyncio.run(migrate_postgres(at.reveal()))
        assert count() == 1


def test_a_table_of_an_older_version_is_upgraded_in_place(place, monkeypatch):
    from tradebench import ledgerfile, ledgerserver

    whole = ledgerfile.versions
    for module in (ledgerfile, ledgerserver):
        monkeypatch.setattr(module, "versions", lambda database: whole(database)[:1])
    old = Server(place)
    names = "ts, kind, counted, count, strategy, code_hash, params_hash, params, data_hash, costs_hash, costs, options_hash, options, identity"
    for i in range(3):
        old.rows(f"INSERT INTO trials(id, {names}, instruments) VALUES (?{', ?' * 14}, '[\"A\"]')", (i + 1, "2026", "run", 1, 7, *"scppdccoo", f"i{i}"))  # fmt: skip
    old.close()
    for module in (ledgerfile, ledgerserver):
        monkeypatch.setattr(module, "versions", whole)
    assert count() == 21 and enter(place).id == 4 and count() == 22


WRITER = """
import sys, time
from types import SimpleNamespace
import numpy as np
from tradebench.ledger import record
b = SimpleNamespace(symbols=("A",), ts=np.array([1, 2]), hash="d", source="s", freq=None)
while time.time() < float(sys.argv[1]): pass
for i in range(40):
    made = record("run", "s", "c", dict(i=i), b, costs=[], options={})
    assert made.id, made.reason
"""


def test_processes_write_at_once_and_each_trial_counts_once(place):
    "The table, too, is made by all of them at once"
    jobs = [subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, str(time.time() + 2.5)]) for _ in range(3)]
    assert [j.wait(60) for j in jobs] == [0, 0, 0]
    table = trials()
    assert len(table) == 120 and table["counted"].sum() == 40 == count() and table["id"].is_unique


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
"""


def test_what_is_noted_is_there_after_the_process_also_by_name_of_host(place, monkeypatch):
    env = os.environ | dict(TRADEBENCH__RUNS__LEDGER=place.reveal().replace("127.0.0.1", "localhost"))
    subprocess.run([sys.executable, "-W", "error", "-c", NOTES, "end", "5"], check=True, timeout=60, env=env)
    assert count() == 5


def test_a_killed_process_loses_a_second_at_most_and_leaves_the_table_whole(place):
    child = subprocess.Popen([sys.executable, "-c", NOTES, "wait", "200"], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "done\n"
    time.sleep(1.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert count() == 200 and enter(place).id == 201


def test_inside_a_running_event_loop(place):
    async def cell():
        assert enter(place).counted
        return count(), len(trials())

    assert asyncio.run(cell()) == (1, 1)


def test_a_server_that_goes_away_costs_no_trial(monkeypatch):
    with Postgres() as server:
        for place in chosen(server.database(), monkeypatch):
            assert enter(place).counted
            server.stop("immediate")
            with pytest.warns(UserWarning, match="cannot be reached.*it waits in"):
                assert enter(place, params=dict(i=1)).id is None
            start = time.perf_counter()
            with pytest.warns(UserWarning):
                enter(place, kind="sweep", count=40, params=dict(i=2))
            assert time.perf_counter() - start < 0.5  # it is left alone for a while
            assert ledger.incomplete() == 41
            with pytest.raises(RunError, match="cannot read the trial ledger .*cannot be reached"):
                count()
            server.start()
            assert ledger.incomplete() == 0 and count() == 42 and waiting(place) == 0


def test_a_commit_that_nobody_answered_counts_once(place, monkeypatch):
    enter(place)
    real = Server.commit

    def lost(self):
        real(self)
        raise RunError("the server went away in the moment of the commit")

    monkeypatch.setattr(Server, "commit", lost)
    with pytest.warns(UserWarning, match="it waits in"):
        enter(place, params=dict(i=1))
    monkeypatch.setattr(Server, "commit", real)
    assert ledger.incomplete() == 0 and count() == 2 and len(trials()) == 2


def test_the_password_is_not_shown(postgres, monkeypatch, recwarn):  # noqa: F811
    from tradebench.settings import settings

    address = f"postgresql://app:hunter2@127.0.0.1:{postgres.port}/none"
    for place in chosen(address, monkeypatch):
        with pytest.warns(UserWarning, match=r"app:\*\*\*@") as said:
            enter(place)
        assert "hunter2" not in str(said[0].message) + repr(settings())
        text = ledger.waiting.__globals__["spool_file"](place).read_text()
        assert "hunter2" not in text and place.reveal() == address
