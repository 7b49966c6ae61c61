"""The verbs `db` and `journal`, as a person or a script calls them."""

import asyncio
import json
import sqlite3

import pandas as pd
import pytest
from servers import postgres  # noqa: F401 (a fixture)

import tradebench.cli.db
import tradebench.cli.journal  # noqa: F401 - registers the verbs
from tradebench.cli.shell import run_app
from tradebench.live import migrations
from tradebench.live.example import example_journal
from tradebench.live.journal import open_journal
from tradebench.live.types import Fill, Order, State

DAY = 86_400 * 10**9


@pytest.fixture(params=["sqlite", "postgres"])
def address(request, tmp_path):
    where = str(tmp_path / "j.sqlite") if request.param == "sqlite" else request.getfixturevalue("postgres").database()

    async def main():
        async with open_journal(where) as j:
            for i in range(30):
                tx = j.tx(now=i * DAY // 10)
                tx.event("batch" if i % 10 else "incident", dict(i=i, raw=b"xy", text="all well"), "main", i)
                tx.order(Order(f"t{i}", "main", "AAPL", 1.0, i + 1.0), i)
                tx.fill(Fill(1, f"f{i}", "v", f"t{i}", "main", "AAPL", 1.0, 10.0, seq=i), i)
                tx.order_state(f"t{i}", State.FILLED if i < 29 else State.WORKING, filled=1.0, value=10.0)
                tx.position("main", "AAPL", i + 1.0, 10.0, 11.0)
                tx.equity("main", i, tx.now, 1.0, 1.0)
                await j.commit(tx)
            await j.acquire("demo", "agent 1", 10.0, now=3 * DAY)
            await j.set_limit("*", "max_qty", 5, "ann", "start")
            await j.command("demo", "cancel-all", {}, "ann", "lunch")

    asyncio.run(main())
    return where


def verb(capsys, *args):
    capsys.readouterr()
    code = run_app([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_show(address, capsys):
    code, out, _ = verb(capsys, "journal", "show", address, "-n", 3)
    assert code == 0
    assert "deployment demo: epoch 1, held by agent 1, since 1970-01-04 00:00:00.000" in out
    assert "31 events" in out and "position main AAPL +30 at 10, mark 11" in out
    assert "order t29 main AAPL +1 working" in out and "cancel-all by ann: new" in out
    lines = out.splitlines()[-3:]
    assert [x.split()[0] for x in lines] == ["29", "30", "31"] and "raw=<2 bytes>" in lines[0]
    code, out, _ = verb(capsys, "journal", "show", address, "--kind", "incident", "-n", 2, "--json")
    rows = [json.loads(x) for x in out.splitlines()]
    assert [r["t"] for r in rows] == [10, 20] and rows[0]["body"] == dict(i=10, raw="7879", text="all well")
    code, out, _ = verb(capsys, "journal", "show", address, "--after", 28, "--account", "main", "--json")
    assert [json.loads(x)["seq"] for x in out.splitlines()] == [29, 30]


def test_check_and_archive_and_export(address, capsys, tmp_path):
    assert verb(capsys, "journal", "check", address)[:2] == (0, "sound\n")
    code, out, err = verb(
        capsys, "journal", "archive", address, "--before", "1970-01-03", "--folder", tmp_path / "closed"
    )
    assert code == 0 and len(out.splitlines()) == 8 and "8 files, days before 1970-01-03" in err
    assert verb(capsys, "journal", "check", address)[0] == 0
    assert "8 files of closed days" in verb(capsys, "journal", "show", address)[1]
    code, out, _ = verb(capsys, "journal", "export", address, tmp_path / "out")
    assert code == 0 and len(out.splitlines()) == 7
    orders = pd.read_parquet(tmp_path / "out" / "orders.parquet")
    assert len(orders) == 30 == len(pd.read_parquet(tmp_path / "out" / "fills.parquet"))
    events = [json.loads(x) for x in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    assert [e["seq"] for e in events] == list(range(1, 32))
    code, _, err = verb(capsys, "journal", "export", address, tmp_path / "out")
    assert code == 2 and "is not empty" in err
    assert verb(capsys, "journal", "export", address, tmp_path / "csv", "--csv")[0] == 0
    assert len(pd.read_csv(tmp_path / "csv" / "equity.csv")) == 30
    next((tmp_path / "closed").glob("*01-events*")).write_bytes(b"gone")
    code, out, _ = verb(capsys, "journal", "check", address)
    assert code == 1 and "fault: archive" in out and "content has changed" in out


def test_restore(address, capsys, tmp_path):
    assert verb(capsys, "journal", "archive", address, "--folder", tmp_path / "closed")[0] == 0
    code, out, _ = verb(capsys, "journal", "archive", address, "--restore")
    assert code == 0 and "13 files are back" in out
    assert verb(capsys, "journal", "check", address)[0] == 0


def test_schema(address, capsys, monkeypatch):
    code, out, _ = verb(capsys, "db", "status", address)
    assert code == 0 and out.count("applied") == 3
    assert verb(capsys, "db", "migrate", address)[:2] == (0, "nothing to do\n")
    assert verb(capsys, "db", "migrate", address, "--to", 1)[:2] == (0, "down 2 archive\n")
    code, out, _ = verb(capsys, "db", "status", address)
    assert code == 1 and "pending" in out
    code, _, err = verb(capsys, "journal", "show", address)
    assert code == 2 and err.count("\n") == 1 and "its schema is 1, this tradebench needs 2" in err
    assert verb(capsys, "db", "migrate", address)[:2] == (0, "up 2 archive\n")
    assert verb(capsys, "journal", "check", address)[0] == 0
    assert migrations.migrations()


def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("TRADEBENCH_JOURNAL", raising=False)
    for args, said in (
        (("journal", "show", tmp_path / "none"), "no journal at"),
        (("journal", "check", tmp_path / "none"), "no journal at"),
        (("db", "status", tmp_path / "none"), "no journal at"),
        (("db", "migrate", tmp_path / "none"), "no journal at"),
        (("journal", "show"), "JOURNAL"),
        (("journal", "show", tmp_path / "none.toml"), "none.toml"),
    ):
        code, _, err = verb(capsys, *args)
        assert code == 2 and err.count("\n") == 1 and said in err, (args, err)
    assert not list(tmp_path.iterdir())


def test_a_killed_agents_journal_can_be_looked_at(tmp_path, capsys):
    "The log was left behind, and its shared index is gone: looking in takes it over"
    import shutil

    async def main():
        j = open_journal(tmp_path / "j")
        await j.acquire("demo", "agent", 1.0)
        for name in ("", "-wal"):
            shutil.copy(f"{tmp_path}/j{name}", f"{tmp_path}/k{name}")
        await j.close()

    asyncio.run(main())
    code, out, err = verb(capsys, "journal", "show", tmp_path / "k")
    assert code == 0 and "held by agent" in out, err


def test_replay_finds_what_the_code_would_not_have_written(tmp_path, capsys):
    path = example_journal(tmp_path)
    code, out, _ = verb(capsys, "journal", "replay", path)
    assert code == 0 and "as recorded" in out
    with sqlite3.connect(path) as db:
        db.execute("UPDATE orders SET state = ? WHERE rowid = (SELECT max(rowid) FROM orders)", (int(State.WORKING),))
    code, out, _ = verb(capsys, "journal", "replay", path)
    assert code == 1 and "is open in the journal, not now" in out
    with sqlite3.connect(path) as db:  # the bars of another moment
        bodies = "SELECT seq, body FROM events WHERE kind = 'market' ORDER BY seq"
        (seq, _), *_, (_, other) = db.execute(bodies).fetchall()[2000:2101]
        db.execute("UPDATE events SET body = ? WHERE seq = ?", (other, seq))
    code, out, _ = verb(capsys, "journal", "replay", path)
    assert code == 1 and "cannot be followed beyond event" in out
