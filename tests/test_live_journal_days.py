"""Closed days, migrations, the check: nothing changes for a reader, whatever moves where."""

import asyncio
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import postgres  # noqa: F401 (a fixture)

from tradebench.live import dayfiles, migrations
from tradebench.live import statements as say
from tradebench.live.archive import archive, restore
from tradebench.live.journal import open_journal
from tradebench.live.types import Fenced, Fill, JournalError, LiveError, Order, State

DAY = 86_400 * 10**9


@pytest.fixture(params=["sqlite", "postgres"])
def address(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "j.sqlite")
    return request.getfixturevalue("postgres").database()


async def trade(j, days=4, each=5, start=0):
    "Some days of a small account; every third order stays open"
    for i in range(start * each, (start + days) * each):
        tx = j.tx(now=i * DAY // each)
        tx.event("batch", dict(i=i, raw=b"x" * 50), "main", i)
        tx.order(Order(f"t{i}", "main", "AAPL", 1.0, i + 1.0, stop=9.0), i)
        if i % 3:
            tx.fill(Fill(1, f"f{i}", "v", f"t{i}", "main", "AAPL", 1.0, 10.0, seq=i), i)
            tx.order_state(f"t{i}", State.FILLED, filled=1.0, value=10.0)
        else:
            tx.order_state(f"t{i}", State.WORKING, venue_id=f"v{i}", epoch=1)
        tx.position("main", "AAPL", float(sum(bool(k % 3) for k in range(i + 1))), 10.0)
        tx.equity("main", i, tx.now, 100.0 + i, 0.0)
        await j.commit(tx)


async def seen(j):
    out = [
        await j.events(),
        await j.fills(rows=True),
        await j.orders(),
        await j.positions(),
        await j.equity_rows("main"),
    ]
    return repr(out)  # nan is not equal to nan


def test_a_reader_sees_no_seam(address, tmp_path):
    async def main():
        async with open_journal(address) as j:
            await trade(j)
            before, folder = await seen(j), tmp_path / "closed"
            made = await archive(j, "1970-01-03", folder)
            assert [p.name.split(".")[0] for p in made] == [
                f"1970-01-0{d}-{what}" for d in (1, 2) for what in ("events", "fills", "orders", "equity")
            ]
            assert await seen(j) == before and await archive(j, "1970-01-03") == []
            hot = await j._look(
                say.rows(
                    "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM fills), (SELECT count(*) FROM equity)"
                )
            )
            assert hot == [(10, 7, 10)]
            assert [e.seq for e in await j.events(after_seq=8, limit=4)] == [9, 10, 11, 12]
            assert [e.t for e in await j.events(account="main", kinds="batch")] == list(range(20))
            assert len(await j.orders(states=[State.WORKING])) == 7  # none of them was moved
            assert [o.client_id for o in await j.orders(client_ids=["t1", "t19"])] == ["t1", "t19"]
            assert [f.seq for f in await j.fills(after=(1, 15))] == [16, 17, 19]
            assert await j.findings() == []
            await trade(j, 1, start=4)
            assert (await j.events())[-1].seq == 25
        async with open_journal(address) as j:  # another process knows where the files are
            assert len(await j.events()) == 25
            assert len(await j.fills()) == 16
            await archive(j, "1970-01-05")
            assert len(await j.events()) == 25 and await j.findings() == []
            with pytest.raises(LiveError, match="move that folder"):
                await archive(j, "1970-01-05", tmp_path / "elsewhere")

    asyncio.run(main())


def test_keys_of_closed_days_stay_known(address, tmp_path):
    async def main():
        async with open_journal(address) as j:
            await trade(j)
            await archive(j, "1970-01-05", tmp_path / "closed")
            assert (await j._look(say.rows("SELECT count(*) FROM events"))) == [(0,)]
            tx = j.tx()
            tx.fill(Fill(1, "f1", "v", "t1", "main", "AAPL", 50.0, 10.0, seq=1))
            tx.fill(Fill(1, "new", "v", "", "main", "AAPL", 0.0, 10.0, seq=99))
            assert await j.commit(tx) == 20  # the number goes on from the files'
            assert len(await j.fills()) == 14 and await j.fill_known(1, "f1") and await j.fill_known(1, "new")
            tx = j.tx()
            tx.event("batch", {})
            tx.order(Order("t1", "main", "AAPL", 1.0, 1.0), 0)
            with pytest.raises(JournalError, match="order t1 was entered before"):
                await j.commit(tx)
            tx = j.tx()
            tx.event("batch", {})
            assert await j.commit(tx) == 21 and [e.seq for e in await j.events(after_seq=19)] == [20, 21]

    asyncio.run(main())


def test_days_that_are_not_over_stay(address, tmp_path):
    async def main():
        async with open_journal(address) as j:
            await trade(j, 1)
            for day, text in (
                ("2999-01-01", "in the future"),
                ("soon", "is no day such as"),
                ("2024-13-01", "is no day"),
            ):
                with pytest.raises(LiveError, match=text):
                    await archive(j, day, tmp_path / "closed")
            if not hasattr(j, "path"):
                with pytest.raises(LiveError, match="say where closed days go"):
                    await archive(j, "1970-01-02")

    asyncio.run(main())


def test_without_pyarrow_the_rows_are_the_same(tmp_path, monkeypatch):
    async def main():
        async with open_journal(tmp_path / "j") as j:
            await trade(j)
            before = await seen(j)
            monkeypatch.setattr(dayfiles, "find_spec", lambda name: None)
            made = await archive(j, "1970-01-02")
            assert {p.name.partition(".")[2] for p in made} == {"msgpack.gz"} and await seen(j) == before
            monkeypatch.undo()
            made = await archive(j, "1970-01-03")
            assert {p.name.partition(".")[2] for p in made} == {"parquet"} and await seen(j) == before
            monkeypatch.setattr(dayfiles, "find_spec", lambda name: None)
            with pytest.raises(JournalError, match="pip install pyarrow"):
                await j.events()

    asyncio.run(main())


def test_a_parquet_file_is_an_ordinary_one(tmp_path):
    import pandas as pd

    async def main():
        async with open_journal(tmp_path / "j") as j:
            await trade(j)
            return await archive(j, "1970-01-02")

    frames = {p.name.split("-")[3].split(".")[0]: pd.read_parquet(p) for p in asyncio.run(main())}
    assert list(frames["orders"].columns)[:5] == ["client_id", "account", "symbol", "qty", "to"]
    assert frames["orders"].lim.isna().all() and (frames["orders"].stop == 9.0).all()
    assert frames["equity"].equity.tolist() == [100.0, 101.0, 102.0, 103.0, 104.0]


def test_files_that_were_changed_or_lost_are_an_error(tmp_path):
    async def main():
        async with open_journal(tmp_path / "j") as j:
            await trade(j)
            made = await archive(j, "1970-01-03")
            first, second = made[0], made[4]
            kept = first.read_bytes()
            first.write_bytes(kept[:-10] + bytes(10))
            with pytest.raises(JournalError, match="01-events.*content has changed since it was written"):
                await j.events()
            assert len(await j.events(after_seq=5)) == 15  # what does not need it is not held up
            assert [f.kind for f in await j.findings()][:1] == ["archive"]
            first.write_bytes(kept)
            shutil.move(second, tmp_path / "away")
            with pytest.raises(JournalError, match="02-events.*No such file"):
                await j.events()
            shutil.move(tmp_path / "away", second)
            assert await j.findings() == []

    asyncio.run(main())


@pytest.mark.parametrize("stop_at", range(1, 12))
def test_an_interrupted_move_is_finished_by_the_next(address, tmp_path, stop_at):
    "The process ends after so many transactions of the move"

    class Stop(Exception):
        pass

    async def main():
        async with open_journal(address) as j:
            await trade(j)
            before, folder = await seen(j), tmp_path / "closed"
            real, count = j._write, 0

            async def write(work):
                nonlocal count
                count += 1
                if count == stop_at:
                    raise Stop
                return await real(work)

            j._write = write
            try:
                await archive(j, "1970-01-03", folder)
            except Stop:
                pass
            del j._write
            assert await seen(j) == before
            assert not [f for f in await j.findings() if f.severity == "fault"]
            await archive(j, "1970-01-03", folder)
            assert await seen(j) == before and await j.findings() == []
            assert await j._look(say.rows("SELECT count(*) FROM events")) == [(10,)]
            assert not list(folder.glob(".*"))

    if "postgres" in address and stop_at % 4:
        pytest.skip("some are enough on the server")
    asyncio.run(main())


def test_trading_goes_on_while_days_are_moved(tmp_path, capsys):
    async def main():
        async with open_journal(tmp_path / "j") as j:
            tx = j.tx(now=0)
            for i in range(20_000):
                tx.event("batch", dict(i=i, raw=b"x" * 300), "main", i)
            await j.commit(tx)
            e = await j.acquire("d", "a", 10.0)
            spent, moving = [], asyncio.ensure_future(archive(j, "1970-01-02"))
            while not moving.done():
                tx = j.tx()
                tx.event("batch", {}, "main", 0)
                t = time.perf_counter()
                await j.commit(tx, e)
                spent.append(time.perf_counter() - t)
                await asyncio.sleep(0.002)
            await moving
            assert len(await j.events()) == 20_001 + len(spent) and await j.findings() == []
            return spent

    spent = asyncio.run(main())
    with capsys.disabled():
        print(f"\njournal: {len(spent)} commits while 20,000 events were moved, the slowest {max(spent) * 1e3:.0f} ms")
    assert len(spent) > 20 and max(spent) < 1.0


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5 * DAY), min_size=1, max_size=30), st.lists(st.integers(1, 6), max_size=3))
def test_any_split_into_days_loses_nothing(times, cuts):
    "Clocks may go back: the order of events is that of their numbers"
    import tempfile

    async def main(folder):
        async with open_journal(f"{folder}/j") as j:
            for i, ts in enumerate(times):
                tx = j.tx(now=ts)
                tx.event("e", dict(i=i))
                tx.fill(Fill(1, str(i), "v", "", "a", "A", 1.0, 1.0, seq=i))
                tx.order(Order(f"t{i}", "a", "A", 1.0, 1.0), i, State.CANCELLED)
                tx.equity("a", i, ts, 1.0, 1.0)
                await j.commit(tx)
            before = [await j.events(), await j.fills(), sorted(map(repr, await j.orders())), await j.equity_rows("a")]
            for cut in cuts:
                await archive(j, f"1970-01-0{cut}")
                got = [await j.events(), await j.fills(), sorted(map(repr, await j.orders())), await j.equity_rows("a")]
                assert repr(got) == repr(before)
            assert not [f for f in await j.findings() if f.kind not in ("clock", "position", "order")]
            await restore(j)
            got = [await j.events(), await j.fills(), sorted(map(repr, await j.orders())), await j.equity_rows("a")]
            assert repr(got) == repr(before) and await j._look(say.rows("SELECT count(*) FROM days")) == [(0,)]

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))


def test_days_come_home(address, tmp_path):
    async def main():
        async with open_journal(address) as j:
            await trade(j)
            before = await seen(j)
            await archive(j, "1970-01-04", tmp_path / "closed")
            assert await restore(j) == 12 and await seen(j) == before
            shutil.rmtree(tmp_path / "closed")
            assert await seen(j) == before and await j.findings() == []
            tx = j.tx()
            tx.order(Order("t1", "main", "AAPL", 1.0, 1.0), 0)
            with pytest.raises(JournalError, match="entered before"):
                await j.commit(tx)

    asyncio.run(main())


@pytest.mark.slow
def test_start_with_a_year_of_history(tmp_path, capsys):
    "A year of one-minute bars of five symbols, with a snapshot near its end"
    from tradebench.live.records import encode

    async def main():
        path = tmp_path / "j"
        async with open_journal(path) as j:
            body = encode(dict(ts=0, equity=1.0, cash=1.0, out=b"", orders=b"", fills=b"", raw=b"x" * 200))
            for day in range(252):
                tx = j.tx(now=day * DAY)
                for i in range(390):
                    tx.event("market", body, "stream", day * 390 + i)
                    tx.event("batch", body, "main", day * 390 + i)
                    tx.equity("main", day * 390 + i, day * DAY + i, 1.0, 1.0)
                for i in range(20):
                    tx.order(Order(f"t{day}.{i}", "main", "AAPL", 1.0, 1.0), i, State.FILLED)
                    tx.fill(Fill(1, f"{day}.{i}", "v", f"t{day}.{i}", "main", "AAPL", 1.0, 1.0, seq=i))
                if day == 251:
                    tx.snapshot("", {}, bytes(100_000))
                await j.commit(tx)
            size = await j.size()
        out = {}
        for name in ("in the file", "in closed days"):
            t = time.perf_counter()
            async with open_journal(path) as j:
                await j.acquire("d", "a", 1.0)
                seq, _, _ = await j.last_snapshot("")
                tail = await j.events(after_seq=seq - 780)
                live = await j.orders(states=[State.INTENT, State.SENT, State.WORKING, State.UNKNOWN])
                out[name] = time.perf_counter() - t
                assert len(tail) >= 780 and live == []
                if name == "in the file":
                    t = time.perf_counter()
                    await archive(j, "1970-09-01")
                    out["moving 243 days"] = time.perf_counter() - t
        return size, out

    size, out = asyncio.run(main())
    with capsys.disabled():
        print(
            f"\njournal: a year of {252 * 780:,} events is {size / 1e6:.0f} MB;",
            ", ".join(f"{k} {v:.2f} s" for k, v in out.items()),
        )
    assert out["in the file"] < 1.0 and out["in closed days"] < 1.0


# migrations


@pytest.fixture
def newer(tmp_path, monkeypatch):
    "A switch between this tradebench and the next one, which has a third migration"
    sql, now = tmp_path / "sql", migrations.sql_folder()
    shutil.copytree(now, sql)
    text = (
        "-- a note on each order\n-- up\n\nALTER TABLE orders ADD COLUMN note TEXT NOT NULL DEFAULT '';\n"
        "-- down\n\nALTER TABLE orders DROP COLUMN note;\n"
    )
    (sql / "0003_note.sql").write_text(text)

    def switch(on: bool):
        monkeypatch.setattr(migrations, "sql_folder", lambda: sql if on else now)

    return switch


def test_up_and_down_with_working_orders_repeats_nothing(address, newer):
    "Upgrade, migrate, trade, go back: orders, positions and keys are the same, and the former agent cannot go on"

    async def main():
        async with open_journal(address) as j:
            await trade(j, 1)
            epoch = await j.acquire("d", "agent 1", 10.0)
            before = await seen(j)
        newer(True)
        with pytest.raises(
            JournalError,
            match="its schema is 2, this tradebench needs 3: stop the agent and run `tradebench db migrate",
        ):
            async with open_journal(address) as j:
                await j.events()
        assert [(s.version, s.state) for s in await migrations.status(address)] == [
            (1, "applied"),
            (2, "applied"),
            (3, "pending"),
        ]
        assert await migrations.migrate(address) == ["up 3 note"]
        assert await migrations.migrate(address) == []
        for up in (True, False):
            async with open_journal(address) as j:
                assert await seen(j) == before and (await j.control("d")).epoch > epoch
                with pytest.raises(Fenced, match=f"held by schema {3 if up else 2}"):
                    await j.acheck("d", epoch)
                tx = j.tx()
                tx.order(Order("t0", "main", "AAPL", 1.0, 1.0), 0)
                with pytest.raises(JournalError, match="order t0 was entered before"):
                    await j.commit(tx)
                assert [o.client_id for o in await j.orders(states=[State.WORKING])] == ["t0", "t3"]
                assert await j.findings() == []
            if up:
                newer(False)
                with pytest.raises(JournalError, match="its schema is 3, this tradebench knows 2.*--to 2"):
                    async with open_journal(address) as j:
                        await j.events()
                assert [s.state for s in await migrations.status(address)] == ["applied", "applied", "unknown"]
                newer(True)
                assert await migrations.migrate(address, to=2) == ["down 3 note"]
                newer(False)

    asyncio.run(main())


def test_an_agent_that_runs_during_a_migration_is_fenced(tmp_path, newer):
    async def main():
        async with open_journal(tmp_path / "j") as j:
            epoch = await j.acquire("d", "agent", 10.0)
            newer(True)
            await migrations.migrate(tmp_path / "j")
            with pytest.raises(Fenced):
                j.check("d", epoch)
            with pytest.raises(Fenced):
                await j.commit(j.tx(), epoch)
        assert Path(f"{tmp_path / 'j'}.schema2").exists()  # the copy from before

    asyncio.run(main())


def test_going_back_needs_the_closed_days_at_home(address, tmp_path):
    async def main():
        async with open_journal(address) as j:
            await trade(j)
            await archive(j, "1970-01-03", tmp_path / "closed")
        with pytest.raises(
            JournalError, match="closed days are archived; bring them back first: tradebench journal archive --restore"
        ):
            await migrations.migrate(address, to=1)
        async with open_journal(address) as j:
            before = await seen(j)
            await restore(j)
        assert await migrations.migrate(address, to=1) == ["down 2 archive"]
        assert await migrations.migrate(address) == ["up 2 archive"]
        async with open_journal(address) as j:
            assert await seen(j) == before
        for to in (0, 7):
            with pytest.raises(JournalError, match=f"there is no schema {to}; known: 1 to 2"):
                await migrations.migrate(address, to=to)

    asyncio.run(main())


def test_an_edited_migration_is_noticed(address, tmp_path, monkeypatch):
    async def main():
        async with open_journal(address) as j:
            await j.events()
        sql = tmp_path / "sql"
        shutil.copytree(migrations.sql_folder(), sql)
        with open(sql / "0001_journal.sql", "a") as f:
            f.write("\n-- a remark\n")
        monkeypatch.setattr(migrations, "sql_folder", lambda: sql)
        with pytest.raises(JournalError, match=r"migration 1 \(journal\) was applied from another text"):
            async with open_journal(address) as j:
                await j.events()
        assert [s.state for s in await migrations.status(address)] == ["changed", "applied"]

    asyncio.run(main())


def test_a_migration_that_fails_changes_nothing(address, newer, tmp_path):
    async def main():
        async with open_journal(address) as j:
            await trade(j, 1)
            before = await seen(j)
        newer(True)
        path = tmp_path / "sql" / "0003_note.sql"
        path.write_text(path.read_text().replace("\n-- down", "\nCREATE TABLE orders(x BIGINT);\n-- down"))
        with pytest.raises(JournalError):
            await migrations.migrate(address)
        newer(False)
        async with open_journal(address) as j:
            assert await seen(j) == before

    asyncio.run(main())


def test_migrations_that_are_no_migrations(tmp_path):
    for name, text, said in (
        ("0001_a.sql", "CREATE TABLE a(x)", "has the lines"),
        ("0002_a.sql", "--\n-- up\nX\n-- down\n", "must be numbered 1, 2, 3"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(JournalError, match=said):
            migrations.migrations(folder)


def test_every_way_down_leaves_nothing(tmp_path):
    with closing(sqlite3.connect(tmp_path / "x")) as db:
        from tradebench.live.sqlitedrive import drive

        known = migrations.migrations()
        drive(db, migrations.go(known, len(known), "x", "sqlite"))
        drive(db, migrations.go(known, 0, "x", "sqlite"))
        left = [r[0] for r in db.execute("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")]
        assert left == ["migrations"]


def test_many_processes_create_one_journal(tmp_path):
    import subprocess
    import sys

    code = "import asyncio, sys; from tradebench.live.journal import open_journal; j = open_journal(sys.argv[1]); print(asyncio.run(j.acquire('d', 'x', 1)))"
    runs = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "j"], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert sorted(int(r.communicate()[0]) for r in runs) == [1, 2, 3]


def test_growth_is_stated(tmp_path):
    async def main():
        async with open_journal(tmp_path / "j") as j:
            assert await j.days_to_full() is None  # too young to say
            await trade(j)
            days = await j.days_to_full()
            free = shutil.disk_usage(tmp_path).free
            assert 0 < days < free and await j.size() > 4096

    asyncio.run(main())
