"""The journal: one meaning in SQLite and PostgreSQL. What is committed is there, what failed is not, rights end when they should."""

import asyncio
import sqlite3
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import postgres  # noqa: F401 (a fixture)

from tradebench.live.journal import open_journal
from tradebench.live.types import Fenced, Fill, JournalError, LiveError, Order, State, client_id

nan = float("nan")


@pytest.fixture(params=["sqlite", "postgres"])
def address(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "j.sqlite")
    return request.getfixturevalue("postgres").database()


def order(name, **kw):
    return Order(**(dict(client_id=name, account="main", symbol="AAPL", qty=1.0, to=1.0) | kw))


def fill(name, epoch=1, **kw):
    return Fill(
        **(
            dict(
                epoch=epoch,
                fill_id=name,
                venue_id="v",
                client_id="",
                account="main",
                symbol="AAPL",
                qty=1.0,
                price=10.0,
            )
            | kw
        )
    )


def same(a, b):
    "Equal, with nan equal to nan"
    return len(a) == len(b) and all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


def test_everything_comes_back_as_it_went_in(address):
    async def main():
        async with open_journal(address) as j:
            tx = j.tx(now=5)
            tx.event("batch", dict(ts=np.int64(7), equity=1.5, out=b"\x00\xff", ids={3: "t1"}), "main", t=4)
            tx.event("stop", b"\x81\xa3why\xa1x")
            sent = order(
                "t1",
                limit=9.5,
                stop=nan,
                take=np.float64(12.0),
                reduce=np.bool_(True),
                bar_ts=np.int64(2**62),
                ref=10.0,
            )
            tx.order(sent, row=np.int64(3))
            paid = fill("f1", qty=-2.5, ref=nan, fee=0.25, reason=3, ts=9, seq=11)
            tx.fill(paid, t=4)
            tx.position("main", "AAPL", -2.5, avg=10.0, trail=1.0)
            tx.equity("main", 4, 7, 100.0, 75.0)
            tx.snapshot("main", dict(version=1, dtype="abc"), b"state" * 1000)
            assert await j.commit(tx) == 2 == j.seq
            one, two = await j.events()
            assert one == (1, 5, "main", "batch", 4, dict(ts=7, equity=1.5, out=b"\x00\xff", ids={3: "t1"}))
            assert two[3:] == ("stop", -1, dict(why="x"))
            (row,) = await j.orders()
            assert same(row.order, sent) and (row.row, row.state, row.created) == (3, State.INTENT, 5)
            assert type(row.reduce) is bool and type(row.state) is State
            ((got, t, seq),) = await j.fills(rows=True)
            assert same(got, paid) and (t, seq) == (4, 2)
            (p,) = await j.positions("main")
            assert same(p, ("main", "AAPL", -2.5, 10.0, nan, nan, nan, 1.0, 5))
            assert await j.equity_rows("main") == [(4, 7, 100.0, 75.0)]
            assert await j.last_snapshot("main") == (2, dict(version=1, dtype="abc"), b"state" * 1000)
            assert await j.last_snapshot("other") is None and await j.equity_rows("other") == []
        async with open_journal(address) as j:  # and after closing it
            assert [e.kind for e in await j.events()] == ["batch", "stop"]

    asyncio.run(main())


def test_events_are_filtered_and_bounded(address):
    async def main():
        async with open_journal(address) as j:
            tx = j.tx()
            for i in range(10):
                tx.event("ab"[i % 2], dict(i=i), f"acc{i % 3}", t=i)
            await j.commit(tx)
            assert [e.seq for e in await j.events(after_seq=7)] == [8, 9, 10]
            assert [e.t for e in await j.events(account="acc1")] == [1, 4, 7]
            assert [e.t for e in await j.events(kinds="b", account="acc1", limit=1)] == [1]
            assert [e.t for e in await j.events(kinds=("a", "b"), limit=2)] == [0, 1]
            assert await j.events(kinds=[]) == [] and await j.events(limit=0) == []

    asyncio.run(main())


def test_order_states_keep_what_is_not_told_again(address):
    async def main():
        async with open_journal(address) as j:
            tx = j.tx(now=1)
            for i in range(200):  # enough for the form with many rows
                tx.order(order(f"t{i}"), i)
            await j.commit(tx)
            tx = j.tx(now=2)
            for i in range(200):
                tx.order_state(f"t{i}", State.WORKING, venue_id=f"v{i}", epoch=7)
                tx.order_state(f"t{i}", State.CANCELLED, filled=0.5, value=5.0)
            tx.order_state("unheard", State.FILLED)
            j.append(tx)
            tx = j.tx(now=3)
            tx.order_state("t5", State.CUT, text="no cash")
            await j.commit(tx)
            rows = {r.client_id: r for r in await j.orders()}
            assert len(rows) == 200 and rows["t6"][19:25] == (State.CANCELLED, 7, "v6", 0.5, 5.0, "")
            assert rows["t5"][19:] == (State.CUT, 7, "v5", 0.5, 5.0, "no cash", 1, 3)
            assert [r.client_id for r in await j.orders(states=[State.CUT])] == ["t5"]
            assert await j.orders(states=[State.INTENT, State.WORKING]) == []
            some = await j.orders(client_ids=[f"t{i}" for i in range(1500)])
            assert len(some) == 200 and await j.orders(client_ids=[]) == []
            assert await j.orders(account="other") == []

    asyncio.run(main())


def test_copies_of_fills_are_ignored_and_copies_of_orders_refused(address):
    async def main():
        async with open_journal(address) as j:
            tx = j.tx()
            tx.order(order("t1"), 0)
            tx.fill(fill("f1", seq=1))
            tx.fill(fill("f1", seq=1))
            await j.commit(tx)
            tx = j.tx()
            tx.event("report", {})
            tx.fill(fill("f1", qty=99.0, seq=1))
            tx.fill(fill("f2", seq=2))
            tx.fill(fill("f1", epoch=2, seq=1))
            await j.commit(tx)
            assert [(f.epoch, f.fill_id, f.qty) for f in await j.fills()] == [
                (1, "f1", 1.0),
                (1, "f2", 1.0),
                (2, "f1", 1.0),
            ]
            assert [(f.epoch, f.seq) for f in await j.fills(after=(1, 1))] == [(1, 2), (2, 1)]
            assert await j.fill_known(2, "f1") and not await j.fill_known(2, "f2")
            assert not await j.fill_known(2, "f1", "another account")
            for names in (["t9", "t1"], ["t8", "t8"], [f"u{i}" for i in range(100)] + ["t1"]):
                tx = j.tx()
                tx.event("batch", {})
                for i, name in enumerate(names):
                    tx.order(order(name), i)
                with pytest.raises(JournalError, match=f"order {names[-1]} was entered before; nothing was written"):
                    await j.commit(tx)
            assert [r.client_id for r in await j.orders()] == ["t1"] and [e.seq for e in await j.events()] == [1]

    asyncio.run(main())


def test_what_cannot_be_kept_is_an_error_and_harms_nobody_else(address):
    async def main():
        async with open_journal(address) as j:
            with pytest.raises(TypeError, match="cannot keep a object"):
                j.tx().event("x", dict(a=object()))
            assert await j.events() == []  # connects
            good, bad = j.tx(), j.tx()
            good.event("good", {})
            bad.event("bad", {})
            bad.order(order("t1", qty="many", valid_until=object()), 0)
            got = await asyncio.gather(j.commit(good), j.commit(bad), j.commit(good), return_exceptions=True)
            assert isinstance(got[1], JournalError) and "cannot be kept" in str(got[1])
            assert got[0] == 1 and got[2] == 2
            assert [e.kind for e in await j.events()] == ["good", "good"]

    asyncio.run(main())


def test_many_at_once_share_flushes_and_keep_their_order(address):
    async def main():
        async with open_journal(address) as j:
            await j.events()  # connects

            async def one(i):
                tx = j.tx()
                tx.event("n", dict(i=i))
                tx.order(order(f"t{i}"), i)
                return await j.commit(tx)

            seqs = await asyncio.gather(*(one(i) for i in range(500)))
            assert seqs == list(range(1, 501)) and [e.body["i"] for e in await j.events()] == list(range(500))
            assert j.writer.groups < 100

    asyncio.run(main())


def test_appended_is_before_the_next_commit_and_durable_without_one(address):
    async def main():
        async with open_journal(address) as j:
            assert await j.commit(j.tx()) == 0
            for i in range(3):
                tx = j.tx()
                tx.event("ack", dict(i=i))
                j.append(tx)
            tx = j.tx()
            tx.event("batch", {})
            assert await j.commit(tx) == 4
            assert [e.kind for e in await j.events()] == ["ack"] * 3 + ["batch"]
            tx = j.tx()
            tx.event("late", {})
            j.append(tx)
            for _ in range(100):
                await asyncio.sleep(0.02)
                if j.seq == 5:
                    break
            assert j.seq == 5
            j.append(tx)
        async with open_journal(address) as j:
            assert j.seq in (0, 6) and [e.kind for e in await j.events()][-2:] == [
                "late",
                "late",
            ]  # close wrote the last one

    asyncio.run(main())


def test_an_appended_order_that_is_known_is_reported(address):
    async def main():
        async with open_journal(address) as j:
            lost = []
            j.on_error = lambda error, tx: lost.append((str(error), len(tx.orders)))
            for _ in range(2):
                tx = j.tx()
                tx.order(order("t1"), 0)
                await j.commit(tx) if not await j.orders() else j.append(tx)
            await j.commit(j.tx())
            assert len(lost) == 1 and "order t1 was entered before" in lost[0][0] and lost[0][1] == 1

    asyncio.run(main())


def test_snapshots_keep_the_newest_three(address):
    async def main():
        async with open_journal(address) as j:
            for i in range(6):
                tx = j.tx()
                tx.event("snapshot", {})
                tx.snapshot("a", dict(i=i), bytes([i]))
                if i < 2:
                    tx.snapshot("b", dict(i=i), bytes([i]))
                await j.commit(tx)
            assert await j.last_snapshot("a") == (6, dict(i=5), b"\x05")
            assert await j.last_snapshot("b") == (2, dict(i=1), b"\x01")
            from tradebench.live import statements as say

            rows = await j._read(say.rows("SELECT account, seq FROM snapshots ORDER BY account, seq"))
            assert rows == [("a", 4), ("a", 5), ("a", 6), ("b", 1), ("b", 2)]

    asyncio.run(main())


# rights


def test_a_right_ends_with_the_next_one(address):
    async def main():
        async with open_journal(address) as one, open_journal(address) as two:
            assert (await one.control("d")).epoch == 0
            with pytest.raises(Fenced, match="epoch 1 is gone, it is 0 now: held by nobody"):
                await one.acheck("d", 1)
            a = await one.acquire("d", "one", 10.0, now=100)
            assert a == 1 and await one.acheck("d", a) == 100 + 10 * 10**9
            tx = one.tx()
            tx.event("x", {})
            await one.commit(tx, a)
            b = await two.acquire("d", "two", 10.0)
            assert b == 2
            for attempt in (one.acheck("d", a), one.commit(tx, a), one.renew("d", a, 5.0)):
                with pytest.raises(Fenced, match="epoch 1 is gone, it is 2 now: held by two"):
                    await attempt
            assert await two.renew("d", b, 5.0, now=7) == 7 + 5 * 10**9 == await two.acheck("d", b)
            assert await two.commit(tx, b) == 4 and await one.commit(tx) == 5  # without a right: what is merely told
            await two.acquire("other", "x", 1.0)
            assert await two.acheck("d", b)
            assert await one.commit(tx, b, deployment="d")
            assert [e.body["action"] for e in await one.events(kinds="control")] == ["acquire"] * 3

    asyncio.run(main())


def test_a_halt_is_latched_until_a_person_lifts_it(address):
    async def main():
        async with open_journal(address) as agent, open_journal(address) as operator:
            e = await agent.acquire("d", "agent", 10.0)
            assert await operator.halt("d", "loss", "breaker", "daily loss 3 %") == e + 1
            with pytest.raises(Fenced, match=r"halted \(loss\) by breaker: daily loss 3 %; `tradebench resume`"):
                await agent.acheck("d", e)
            with pytest.raises(Fenced):
                await agent.commit(agent.tx(), e)
            f = await agent.acquire("d", "agent", 10.0)  # may look, not send
            state = await agent.control("d")
            assert state.halted and state.epoch == f == e + 2 and state.latch == "loss"
            with pytest.raises(Fenced, match="halted"):
                await agent.acheck("d", f)
            assert await agent.acheck("d", f, halted=True) > 0  # to reduce, or to note what the venue says
            assert await agent.commit(agent.tx(), f) >= 0
            for who, why in (("", "x"), ("ann", " ")):
                with pytest.raises(LiveError, match="lifted by a person"):
                    await operator.resume("d", who, why)
            assert await operator.resume("d", "ann", "it was the feed") == f + 1
            with pytest.raises(Fenced, match="last changed by ann: it was the feed"):
                await agent.acheck("d", f)
            assert not (await agent.control("d")).halted
            g = await agent.acquire("d", "agent", 10.0)
            assert await agent.acheck("d", g)
            actions = [(x.body["action"], x.body["epoch"]) for x in await agent.events(kinds="control")]
            assert actions == [("acquire", 1), ("halt", 2), ("acquire", 3), ("resume", 4), ("acquire", 5)]

    asyncio.run(main())


def test_two_writers_leave_no_hole(address):
    async def main():
        async with open_journal(address) as a, open_journal(address) as b:

            async def go(j, name):
                for i in range(60):
                    tx = j.tx()
                    tx.event(name, dict(i=i))
                    await j.commit(tx)

            await asyncio.gather(go(a, "a"), go(b, "b"))
            events = await a.events()
            assert [e.seq for e in events] == list(range(1, 121))
            assert [e.body["i"] for e in events if e.kind == "b"] == list(range(60))

    asyncio.run(main())


# commands, limits, notes


def test_commands_and_limits(address):
    async def main():
        async with open_journal(address) as j:
            name = await j.command("d", "flatten", dict(symbol="AAPL"), "ann", "why")
            other = await j.command("d", "halt", {}, "ann", "why")
            await j.command("e", "halt", {}, "ann", "why")
            assert [c.id for c in await j.pending("d")] == [name, other]
            tx = j.tx()
            tx.command_state(name, "taken", epoch=4)
            tx.command_state(other, "done", "nothing to do")
            await j.commit(tx)
            (left,) = await j.pending("d")
            assert left[2:] == ("d", "flatten", dict(symbol="AAPL"), "ann", "why", "taken", "", 4, tx.now)
            assert [c.state for c in await j.commands("d")] == ["taken", "done"] and len(await j.commands()) == 3
            assert await j.limits() == [] and await j.limits_version() == 0
            assert await j.set_limit("*", "max_qty", 100, "ann", "start") == 1
            before = time.time_ns()
            assert await j.set_limit("symbol:A", "restricted", True, "ann", "news") == 2
            assert await j.set_limit("*", "max_qty", 50.5, "bob", "less") == 3
            assert [(r.scope, r.value) for r in await j.limits()] == [("symbol:A", True), ("*", 50.5)]
            assert [(r.scope, r.value) for r in await j.limits(at=before)] == [("*", 100)]
            await j.set_limit("symbol:A", "restricted", None, "ann", "over")
            assert [r.version for r in await j.limits()] == [3] and await j.limits_version() == 4
            assert [r.who for r in await j.limit_history()] == ["ann", "ann", "bob", "ann"]
            await j.set_meta("deployment:d", '{"broker": "paper"}')
            await j.set_meta("deployment:d", '{"broker": "x"}')
            assert await j.meta("deployment:d") == '{"broker": "x"}' and await j.meta("none") is None

    asyncio.run(main())


# opening


def test_openings_that_cannot_be(tmp_path):
    with pytest.raises(JournalError, match=r"unknown scheme 'postgres\+x'; did you mean postgresql"):
        open_journal("postgres+x://a/b")
    with pytest.raises(JournalError, match="no journal at .*none.sqlite"):
        open_journal(tmp_path / "none.sqlite", create=False)
    with pytest.raises(JournalError, match="no journal at"):
        open_journal(tmp_path / "none.sqlite", readonly=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "text").write_text("hello " * 1000)
    with pytest.raises(JournalError, match=r"it is no journal.*NOTADB"):
        open_journal(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other.sqlite") as db:
        db.execute("CREATE TABLE trials(x)")
    with pytest.raises(JournalError, match="something else: it has the tables trials"):
        open_journal(tmp_path / "other.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="journal .*file/x"):
        open_journal(tmp_path / "file" / "x")


def test_readonly_looks_and_does_not_touch(tmp_path):
    async def main():
        async with open_journal(tmp_path / "j") as j:
            e = await j.acquire("d", "a", 1.0)
            look = open_journal(tmp_path / "j", readonly=True)
            assert look.seq == 1 and look.check("d", e) and (await look.control("d")).holder == "a"
            with pytest.raises(JournalError, match="reading only"):
                await look.commit(look.tx())
            tx = j.tx()
            tx.event("x", {})
            await j.commit(tx)
            assert look.seq == 2 and len(await look.events()) == 2
            await look.close()
        with pytest.raises(JournalError, match="closed"):
            await j.commit(j.tx())
        with pytest.raises(JournalError, match="closed"):
            await j.events()

    asyncio.run(main())


# property: the tables are the fold of the transactions, in any split into commits


@settings(max_examples=25)
@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.booleans()), max_size=6), max_size=8))
def test_tables_equal_a_plain_model(steps):
    import tempfile

    async def main(folder):
        orders, fills, seq = {}, {}, 0
        async with open_journal(f"{folder}/j") as j:
            for step in steps:
                tx = j.tx()
                model = dict(orders), dict(fills)
                bad = False
                for kind, n, flag in step:
                    if kind == 0:
                        tx.event("e", dict(n=n))
                    elif kind == 1:
                        tx.order(order(f"t{n}"), n)
                        bad |= n in model[0]
                        model[0].setdefault(n, (State.INTENT, ""))
                    elif kind in (2, 3):
                        tx.order_state(f"t{n}", State.WORKING if flag else State.FILLED, venue_id="v" if flag else "")
                    else:
                        tx.fill(fill(f"f{n}", epoch=int(flag)))
                        model[1].setdefault((int(flag), n), None)
                for kind, n, flag in step:  # states are entered after new orders
                    if kind in (2, 3) and n in model[0]:
                        model[0][n] = (State.WORKING if flag else State.FILLED, "v" if flag or model[0][n][1] else "")
                try:
                    await j.commit(tx)
                    assert not bad
                    orders, fills = model
                    seq += len(tx.events)
                except JournalError:
                    assert bad
                assert j.seq == seq
            got = {r.client_id: (r.state, r.venue_id) for r in await j.orders()}
            assert got == {f"t{n}": v for n, v in orders.items()}
            assert {(f.epoch, f.fill_id) for f in await j.fills()} == {(e, f"f{n}") for e, n in fills}

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))


# figures


def quantile(values, q):
    return sorted(values)[int(len(values) * q)] * 1e6


def test_figures(tmp_path, capsys):
    "One small commit against the disk's own flush; 5,000 orders and 10,000 states in one commit; the look at the right to trade"
    import os

    raw = os.open(tmp_path / "raw", os.O_CREAT | os.O_RDWR)
    os.pwrite(raw, b"z" * (8 << 20), 0)
    os.fsync(raw)

    async def main():
        commit, flush, look, bulk = [], [], [], []
        async with open_journal(tmp_path / "j") as j:
            e = await j.acquire("d", "a", 60.0)
            for i in range(400):
                t = time.perf_counter()
                os.pwrite(raw, b"x" * 20_000, i * 20_000)
                os.fdatasync(raw)
                flush.append(time.perf_counter() - t)
                tx = j.tx()
                tx.event("batch", dict(ts=i, out=b"x" * 100, orders=b"y" * 100), "main", i)
                tx.order(order(f"t{i}"), i)
                tx.equity("main", i, i, 1.0, 1.0)
                t = time.perf_counter()
                await j.commit(tx, e)
                commit.append(time.perf_counter() - t)
            for _ in range(2000):
                t = time.perf_counter()
                j.check("d", e)
                look.append(time.perf_counter() - t)
            for k in range(3):
                tx = j.tx()
                names = [client_id("d", "main", str(i), k) for i in range(5000)]
                for i, name in enumerate(names):
                    tx.order(order(name), i)
                for state in (State.SENT, State.WORKING):
                    for name in names:
                        tx.order_state(name, state, venue_id="v", epoch=1)
                t = time.perf_counter()
                await j.commit(tx, e)
                bulk.append(time.perf_counter() - t)
        return commit, flush, look, bulk

    commit, flush, look, bulk = asyncio.run(main())
    with capsys.disabled():
        print(
            f"\njournal: commit p50 {quantile(commit, 0.5):.0f} p99 {quantile(commit, 0.99):.0f} us (the disk's flush alone "
            f"{quantile(flush, 0.5):.0f} and {quantile(flush, 0.99):.0f}), check p50 {quantile(look, 0.5):.1f} us, "
            f"5,000 orders + 10,000 states {min(bulk) * 1e3:.0f} ms"
        )
    assert quantile(look, 0.5) < 20
    assert min(bulk) < 0.120
    assert quantile(commit, 0.1) - quantile(flush, 0.1) < 500  # of our own, on a busy machine


def test_a_busy_loop_does_not_starve_the_writer(tmp_path):
    "Each call into SQLite gives the interpreter away; with a call a row this took 20 s"

    async def main():
        async with open_journal(tmp_path / "j") as j:
            tx = j.tx()
            names = [f"t{i}" for i in range(5000)]
            for i, name in enumerate(names):
                tx.order(order(name), i)
                tx.order_state(name, State.SENT)
            t = time.perf_counter()
            waits = asyncio.ensure_future(j.commit(tx))
            while not waits.done():
                sum(range(20_000))
                await asyncio.sleep(0)
            return time.perf_counter() - t

    assert asyncio.run(main()) < 3.0


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))


def test_two_brokers_may_give_out_the_same_numbers(address):
    async def main():
        async with open_journal(address) as j:
            for account in ("a", "b", "a"):
                tx = j.tx()
                tx.fill(Fill(1, "f1", "v1", f"t-{account}", account, "AAPL", 1.0, 100.0))
                await j.commit(tx)
            assert [f.account for f in await j.fills()] == ["a", "b"]
            assert await j.fill_known(1, "f1", "b") and not await j.fill_known(1, "f1", "c")

    asyncio.run(main())
