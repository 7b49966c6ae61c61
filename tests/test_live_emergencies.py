"""Each emergency of nbs/live/61_emergencies: the fault, what the agent does, and how it comes back. Real sockets, real files."""

import asyncio
import contextlib
import functools
import json
import os
import re
import resource
import sqlite3
import time
from pathlib import Path

import pytest
from live_world import MINUTE, Bar, Plain, Script, Wall, until
from servers import postgres  # noqa: F401 (a fixture)

from tradebench.live import postgres as postgresmodule, postgreswriter
from tradebench.live.commands import Operator
from tradebench.live.failover import FailoverFeed
from tradebench.live.places import places
from tradebench.live.sqlite import SqliteJournal
from tradebench.live.supervise import Clocks
from tradebench.live.types import FeedError, State

HERE, TWO = Path(__file__).parent, ("AAA", "BBB")
FOLLOW = "tradebench.strategies.follow:Follow"


def live(test):
    "Run a coroutine as a test, in two minutes at most"

    @functools.wraps(test)
    def run(*args, **kw):
        asyncio.run(asyncio.wait_for(test(*args, **kw), 120))

    return run


async def entered(w, **more):
    "A position of 100 with a stop at 90"
    await w.bar()
    await w.bar(target=1.0, stop=90.0, **more)
    await w.bar()
    assert w.qty() == 100.0 and not w.doubts, w.doubts
    return w


async def refused(w, target, **more):
    "A bar that asks for more is decided and nothing leaves; the control that refused"
    before, held = await sent(w), w.held()
    seen = len(await w.journal.events(kinds=["refusal"]))
    await w.bar(target=target, **more)
    await w.journal.commit(w.journal.tx())
    said = (await w.journal.events(kinds=["refusal"]))[seen:]
    assert said and w.held() == held and await sent(w) == before
    return said[-1].body["control"]


async def sent(w) -> int:
    "Orders that no control blocked"
    return len([o for o in await w.orders() if o.state is not State.BLOCKED])


async def eventually(ask, seconds=20.0):
    "What `await ask()` gives once it gives something"
    end = time.monotonic() + seconds
    while not (found := await ask()):
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    return found


async def leaves(w):
    "A bar that asks to be flat: the exit goes through"
    await w.bar(target=0.0)
    await w.bar()
    assert w.qty() == 0.0


async def nothing_lost(w):
    "The journal is whole, and a new agent on it stands where the old one stood"
    held = w.held()
    await w.stop()
    assert not [f for f in await w.journal.findings() if f.severity == "fault"]
    await w.start()
    assert w.held() == held
    names = [o.client_id for o in await w.orders()]
    assert len(names) == len(set(names))


async def resume(w, **scope):
    "What `tradebench resume` does"
    o = Operator(w.journal, "w", await places(w.journal, "w"), who="ann", why="looked at it", wait=3.0)
    answer = await o.resume(**scope)
    assert answer.done
    return answer.text


async def command(w, kind, **args):
    "Give a command and wait for its end; (state, result)"
    name = await w.journal.command("w", kind, args, "ann", "statement of the broker")

    async def end():
        return next(c for c in await w.journal.commands("w") if c.id == name)

    for _ in range(500):
        c = await end()
        if c.state in ("done", "failed"):
            return c.state, c.result
        await asyncio.sleep(0.01)
    raise AssertionError(f"{kind} was not carried out: {c}")


# -- risk


@live
async def test_risk_breach(tmp_path):
    async with Wall(tmp_path, table=dict(position_quantity=110)) as w:
        await entered(w)
        w.venue.foreign_fill("main", "AAA", 60.0, 100.0)  # a stranger makes it 160 of 110 allowed
        await until(lambda: w.qty() == 160.0)
        assert w.said("foreign_fill")
        await w.bar()
        await w.doubt("breach:main")
        await w.bar()
        assert w.qty() == 110.0 and w.said("breach")[0]["severity"] == "critical"
        held = [r for r in await eventually(w.journal.limits) if r.name == "restricted"]
        assert [(r.scope, r.value, r.who) for r in held] == [("account:main", 1.0, "agent")]
        await leaves(w)
        assert await refused(w, 0.5) == "restricted"
        await resume(w, strategy="main")
        await w.over("breach")
        await w.bar(target=1.0)
        await w.bar()
        assert w.qty() == 100.0
        await nothing_lost(w)


@live
async def test_daily_loss_breaker(tmp_path):
    async with Wall(tmp_path, capital=12_000, limits="daily_loss=0.05") as w:
        await entered(w)
        await w.bar(93.0)
        await w.doubt("breaker:main")
        await w.bar(93.0)
        assert w.qty() == 0.0
        await w.bar(93.0, target=0.5)
        await w.bar(93.0)
        assert w.qty() == 0.0, "nothing enters before the next session"
        w.ts += 24 * 60 * MINUTE
        await w.bar(93.0)
        await w.over("breaker")
        await w.bar(93.0, target=0.5)
        await w.bar(93.0)
        assert w.qty() == 50.0
        await nothing_lost(w)


@live
async def test_drawdown_breaker(tmp_path):
    async with Wall(tmp_path, capital=12_000, limits="max_drawdown=0.05") as w:
        await entered(w)
        await w.bar(93.0)
        await w.bar(93.0)
        assert w.qty() == 0.0 and "breaker:main" in w.doubts
        w.ts += 24 * 60 * MINUTE
        await w.bar(93.0, target=0.5)
        await w.bar(93.0)
        assert w.qty() == 0.0, "it stays"
        await nothing_lost(w)
        await w.bar(93.0)
        assert "breaker:main" in w.doubts, "a restart is no person"
        await resume(w)
        await w.bar(93.0)
        assert "breaker:main" in w.doubts, "the account must be named"
        assert "main trades again" in await resume(w, strategy="main")
        await w.bar(93.0, target=0.5)
        await w.bar(93.0)
        assert w.qty() == 50.0 and not w.doubts
        await nothing_lost(w)


# -- feeds


@live
async def test_stale_feed(tmp_path):
    async with Wall(tmp_path) as w:
        await entered(w)
        w.now += 3 * MINUTE  # pings may come, bars do not
        await w.doubt("feed:script:x")
        assert w.agent.status()["mode"] == "safe" and w.agent.status()["feeds"]["script:x"]["stale"]
        w.venue.market(w.ts + 2 * MINUTE, {"AAA": (95.0, 95.0, 89.0, 89.0, 1e6)})
        await until(lambda: w.qty() == 0.0)  # the stop is at the venue
        old = w.batch(89.0, target=0.5)
        w.feed.push(old)  # two minutes old: it brings the state up to date, and orders nothing
        await until(lambda: w.agent.streams[0].ts == old.ts)
        assert w.doubts and not w.one().live
        w.ts += 2 * MINUTE
        await w.bar(89.0, target=0.5)
        await w.over("feed")
        await w.bar(89.0)
        assert w.qty() == 50.0
        await nothing_lost(w)


@live
async def test_broken_feed(tmp_path):
    for error in (FeedError("the exchange has closed the account"), RuntimeError("a mistake in a feed of one's own")):
        folder = tmp_path / type(error).__name__
        folder.mkdir()
        async with Wall(folder) as w:
            await entered(w)
            w.feed.broken(error)
            await w.doubt("feed:script:x")
            assert str(error) in w.doubts["feed:script:x"] and not w.task.done()
            w.venue.market(w.ts + MINUTE, {"AAA": (95.0, 95.0, 95.0, 95.0, 1e6)})
            missed = w.batch(95.0)
            w.feed.batches.append(missed)
            await asyncio.sleep(0.2)
            assert w.agent.streams[0].ts < missed.ts
            w.feed.fail = None
            await until(lambda m=missed: w.agent.streams[0].ts == m.ts)
            await w.bar(95.0)
            await w.over("feed")
            await leaves(w)
            assert [e.body["ts"] for e in await w.journal.events(kinds=["market"])] == [b.ts for b in w.feed.batches]
            await nothing_lost(w)


class Hand:
    "A market's clock in the hand of the test"

    def __init__(self, w):
        self.w = w

    def now(self):
        return self.w.now

    async def sleep(self, ns):
        await asyncio.sleep(0.01)

    def timeout(self, ns):
        return 0.01


@live
async def test_both_feeds_gone(tmp_path):
    w = Wall(tmp_path)
    first, second = w.feed, Script(w.symbols)
    second.name = "second"
    w.feed = FailoverFeed(first, second, lag=15, pause=0.01, back=3, clock=Hand(w))
    w.feed.push = first.push
    w.feed.news, w.feed_is_read = first.news, lambda: first.readers
    async with w:
        await entered(w)
        first.broken(FeedError("gone"))
        second.broken(FeedError("gone too"))
        w.now += 2 * MINUTE
        await w.doubt("feed")
        assert w.said("both_gone") and not w.task.done()
        second.fail, w.feed.push = None, second.push
        second.push(w.batch(99.0))
        await w.bar(99.0)
        await w.over("feed")
        assert w.agent.status()["feeds"]["script:x"]["source"] == "second"
        await leaves(w)
        stamps = [e.body["ts"] for e in await w.journal.events(kinds=["market"])]
        assert stamps == sorted(set(stamps)) == [b.ts for b in first.batches + second.batches]
        first.fail = None  # and back, after three bars in time
        while not w.said("failback"):
            batch = w.batch(99.0)
            w.now = batch.ts + 10**9
            first.push(batch), second.push(batch)
            await until(lambda: w.agent.streams[0].ts == batch.ts)  # noqa: B023
        stamps = [e.body["ts"] for e in await w.journal.events(kinds=["market"])]
        assert stamps == sorted(set(stamps))


# -- the broker


@live
async def test_broker_unreachable(tmp_path):
    async with Wall(tmp_path) as w:
        await entered(w)
        await w.server.stop()
        await w.doubt("broker")
        await w.bar(target=1.5, play=False, settle=False)
        await until(lambda: w.through(w.ts))
        assert not w.one().live
        await w.bar(target=0.0, play=False, settle=False)  # an exit is tried: nobody knows what became of it
        await until(lambda: w.through(w.ts) and w.one().unknown())
        await w.open_server(w.port)
        await w.over("broker", 10)
        await until(lambda: not w.one().unknown())
        w.venue.market(w.ts + 1, {"AAA": (100.0, 100.0, 100.0, 100.0, 1e6)})
        await until(lambda: w.qty() == 0.0)
        assert len(w.venue.orders) == 2, "the entry, and one exit"
        await w.over("unknown")
        await w.bar(target=1.0)
        await w.bar()
        assert w.qty() == 100.0
        await nothing_lost(w)


@live
async def test_broker_rejecting_everything(tmp_path):
    async with Plain(tmp_path) as w:
        await entered(w)
        w.server.refuse = "no margin"
        await w.bar(target=0.0)
        await w.doubt("exit:main:AAA")
        await w.bar()
        await w.bar()
        assert len(w.server.seen) == 1 + 3, "the exit is asked for with each bar"
        w.server.refuse = ""
        await w.bar()
        await w.bar()
        await w.over("exit")
        assert w.qty() == 0.0
        w.server.refuse = "no margin"
        for i in range(5):
            await w.bar(target=0.5 + 0.1 * i)
        await w.doubt("refusals")
        asked = len(w.server.seen)
        await w.bar(target=0.3)  # after a minute one may try
        assert len(w.server.seen) == asked + 1
        assert await refused(w, 0.4) == "doubt:refusals:tests:plain"  # the next one after two
        w.server.refuse = ""
        w.ts += 10 * MINUTE
        await w.bar(target=1.0)
        await w.over("refusals")
        await w.bar()
        assert w.qty() == 100.0
        await nothing_lost(w)


@live
async def test_unknown_outcomes_piling_up(tmp_path):
    async with Wall(tmp_path, symbols=TWO, table=dict(position_quantity=120)) as w:
        await w.bar()
        w.faults.set(silent=1.0, **{"lost_ack:submit": 1.0, "drop_before:find": 1.0, "drop_before:snapshot": 1.0})
        await w.bar(target=1.0, stop=90.0, settle=False)
        await w.doubt("unknown", 10)
        a = w.one()
        assert len(a.unknown()) == 2 and len(w.venue.orders) == 2
        assert a.open_quantities() == {"AAA": (100.0, 0.0), "BBB": (100.0, 0.0)}, "counted as if filled"
        w.faults.set(**{"lost_ack:submit": 0.0})
        await w.bar(target=-1.0, play=False, settle=False)
        await until(lambda: w.agent.refusals)
        assert len(w.venue.orders) == 2, "nothing new while nobody knows what we hold"
        w.faults.clear()
        await w.over("unknown", 10)
        await until(lambda: not a.live)
        assert [e.state for e in w.venue.orders.values()] == [State.CANCELLED] * 2, "none was sent twice"
        await w.bar(target=1.0)
        await w.bar()
        assert w.held() == dict(AAA=100.0, BBB=100.0) == w.there()
        await nothing_lost(w)


# -- ourselves


@live
async def test_overload(tmp_path):
    async with Wall(tmp_path, accounts=("first", "last")) as w:
        await w.bar(delay=2.0)
        await w.bar(target=1.0, stop=90.0, delay=2.0)
        await w.bar(delay=2.0)
        await w.burst(45.0)
        assert list(w.doubts) == ["overload:last"], "the last one declared is shed first"
        await w.burst(45.0, target=-1.0)
        w.play({"AAA": (100.0,) * 5})
        await w.settled()
        held = {n: a.book.positions().get("AAA", 0.0) for n, a in w.agent.accounts.items()}
        assert held == dict(first=-100.0, last=0.0), "an order to the other side is cut to its exit"
        await w.burst(70.0)
        assert set(w.doubts) == {"overload:first", "overload:last"}
        await w.burst(2.0)
        assert not w.doubts
        await w.bar(target=1.0, delay=2.0)
        await w.bar(delay=2.0)
        assert [a.book.positions() for a in w.agent.accounts.values()] == [{"AAA": 100.0}] * 2
        await nothing_lost(w)


@contextlib.contextmanager
def locked(path):
    "Another process keeps the journal's write lock"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        db.execute("ROLLBACK")
        db.close()


@live
async def test_journal_slow(tmp_path):
    async with Wall(tmp_path) as w:
        await entered(w)
        w.agent.health.pace.most = 0.2
        with locked(w.path):
            await w.bar(settle=False)
            await asyncio.sleep(0.4)
        await w.doubt("journal_slow")
        await leaves(w)
        assert await refused(w, 0.5) == "doubt:journal_slow"
        for _ in range(10):
            await w.bar()
        await w.over("journal_slow")
        await w.bar(target=1.0)
        await w.bar()
        assert w.qty() == 100.0
        await nothing_lost(w)


async def without_journal(w, fault, name="journal"):
    "While the journal is in trouble: bars go on, exits leave, nothing enters, and all of it is in the journal afterwards"
    await entered(w)
    with fault:
        await w.bar(settle=False)
        await w.doubt(name, 15)
        await until(lambda: w.agent.streams[0].ts == w.ts, 15)
        await w.bar(settle=False, target=0.0)
        await until(lambda: any(t.state is State.WORKING for t in w.one().live.values()), 15)
        await w.bar(settle=False)
        await until(lambda: w.qty() == 0.0, 15)
        await w.bar(settle=False, target=1.0)
        await until(lambda: w.agent.streams[0].ts == w.ts, 15)
        await asyncio.sleep(0.1)
        assert not w.one().live and w.there().get("AAA", 0.0) == 0.0
    await w.over(name, 15)
    await w.bar(target=0.5)
    await w.bar()
    assert w.qty() == 50.0 == w.there()["AAA"]
    marks = [e.body["ts"] for e in await w.journal.events(kinds=["market"])]
    assert marks == [b.ts for b in w.feed.batches], "every bar, in order"
    await nothing_lost(w)


@contextlib.contextmanager
def full_disk():
    "No file may grow"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@live
async def test_disk_full(tmp_path, monkeypatch):
    monkeypatch.setattr(SqliteJournal, "WAIT", 0.1)
    async with Wall(tmp_path) as w:
        await without_journal(w, full_disk())
        assert any("full" in i["text"] or "failed" in i["text"] for i in w.said("journal"))


@live
async def test_journal_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(SqliteJournal, "WAIT", 0.1)
    async with Wall(tmp_path) as w:
        await without_journal(w, locked(w.path))
        assert any("locked" in i["text"] for i in w.said("journal"))


@live
async def test_journal_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(SqliteJournal, "WAIT", 0.1)

    @contextlib.contextmanager
    def away(path):
        os.rename(path, f"{path}.away")
        try:
            yield
        finally:
            os.rename(f"{path}.away", path)

    async with Wall(tmp_path) as w:
        await without_journal(w, away(w.path))
        assert any("the file is gone" in i["text"] for i in w.said("journal"))


@live
async def test_journal_server_lost(tmp_path, postgres, monkeypatch):  # noqa: F811
    for module in (postgreswriter, postgresmodule):
        monkeypatch.setattr(module, "PATIENCE", 0.3)

    @contextlib.contextmanager
    def down():
        postgres.stop("immediate")
        try:
            yield
        finally:
            postgres.start()

    async with Wall(tmp_path, journal=postgres.database()) as w:
        await without_journal(w, down())


@live
async def test_journal_lost_on_bar_time(tmp_path, monkeypatch):
    "A venue on bar time waits: nothing moves until the disk takes it, and then all goes on as if nothing had been"
    monkeypatch.setattr(SqliteJournal, "WAIT", 0.1)
    async with Bar(tmp_path) as w:
        await entered(w)
        with locked(w.path):
            await w.bar(settle=False, target=0.5)
            await w.doubt("journal")
            batches = w.agent.batches
            await w.bar(settle=False)
            await asyncio.sleep(0.2)
            assert w.agent.batches == batches
        await w.over("journal")
        await until(lambda: w.qty() == 50.0)
        await nothing_lost(w)


# -- what we hold changes


@live
async def test_split_and_dividend(tmp_path):
    async with Bar(tmp_path) as w:
        await entered(w)
        cash = float(w.one().book.account["cash"])
        await w.bar(50.0, events=[(0, 2, 2.0), (0, 1, 0.5)])
        s = w.one().book.slots[0, 0]
        assert w.qty() == 200.0 and float(s["p_stop"]) == 45.0 and not w.doubts
        assert float(w.one().book.account["cash"]) == cash + 100.0
        await w.bar(50.0, events=[(0, 1, 80.0)])  # a dividend above the price
        assert w.said("bad_action") and not w.doubts and w.qty() == 200.0
        await nothing_lost(w)


@live
async def test_split_where_the_broker_only_knows_quantities(tmp_path):
    async with Plain(tmp_path) as w:
        await entered(w)
        await w.bar(target=0.5, limit=120.0)  # an exit works at 120
        assert [t["limit"] for t in w.exchange.tickets if t["status"] == "open"] == [120.0]
        w.exchange.holdings["AAA"] = 200.0  # the broker books the split
        await w.bar(50.0, events=[(0, 2, 2.0)], settle=False)
        await until(lambda: w.qty() == 200.0)
        await until(lambda: not [t for t in w.exchange.tickets if t["status"] == "open" and t["limit"] == 120.0])
        await w.bar(50.0)
        await w.bar(50.0)
        assert w.qty() == 100.0 == w.exchange.holdings["AAA"], "the exit is asked for again, in new units"
        await w.over("exit")
        assert not w.doubts
        await nothing_lost(w)


@live
async def test_symbol_change(tmp_path):
    async with Plain(tmp_path) as w:
        await entered(w)
        x = w.exchange
        x.holdings["NEW"], x.last["NEW"] = x.holdings.pop("AAA"), x.last.pop("AAA")
        name = (await w.doubt("position"))[0]
        assert "tradebench rename AAA NEW" in w.doubts[name] and len(w.doubts) == 1
        assert await command(w, "rename", symbol="AAA", to="NEW") == ("done", "AAA is NEW at tests:plain")
        await w.over("position")
        w.play = lambda bars: x.set_price("NEW", bars["AAA"][0])
        w.there = lambda: {"AAA": x.holdings.get("NEW", 0.0)}
        await w.bar(target=0.5)
        await w.bar()
        assert w.qty() == 50.0 == x.holdings["NEW"] and x.tickets[-1]["market"] == "NEW"
        await nothing_lost(w)
        await w.bar(target=0.0)
        await w.bar()
        assert x.holdings["NEW"] == 0.0, "a restart remembers the name"


@live
async def test_symbol_halted(tmp_path):
    async with Wall(tmp_path, symbols=TWO) as w:
        await w.bar()
        await w.bar(target={"AAA": 1.0, "BBB": 1.0}, stop=80.0)
        await w.bar(target={"AAA": 0.5}, limit={"AAA": 120.0})
        assert w.held() == dict(AAA=100.0, BBB=100.0)
        for _ in range(6):
            await w.bar(present=("BBB",))
        await w.doubt("symbol:script:x:AAA")
        assert len(w.one().live) == 1, "an exit stays"
        await w.bar(present=("BBB",), target={"BBB": 0.5})
        await w.bar(present=("BBB",))
        assert w.held()["BBB"] == 50.0, "the others trade on"
        await w.bar()
        await w.over("symbol")
        await w.bar(target={"AAA": 0.0})
        await w.bar()
        assert "AAA" not in w.held()
        await w.bar(target={"AAA": 1.0}, limit={"AAA": 90.0})  # an entry works
        for _ in range(6):
            await w.bar(present=("BBB",))
        await w.doubt("symbol")
        await until(lambda: not w.one().live)  # it is cancelled: nobody knows the price at which trading resumes
        await nothing_lost(w)


@live
async def test_symbol_delisted(tmp_path):
    async with Bar(tmp_path) as w:
        await entered(w)
        await w.bar(60.0, events=[(0, 3, 60.0)])
        assert w.qty() == 0.0 and not w.doubts
        await nothing_lost(w)
    folder = tmp_path / "plain"
    folder.mkdir()
    async with Plain(folder) as w:
        await entered(w)
        await w.bar(60.0, events=[(0, 3, 60.0)], settle=False)
        await until(lambda: w.qty() == 0.0)
        await w.doubt("position")  # the broker keeps the shares until they are paid out
        w.exchange.holdings["AAA"] = 0.0
        await w.over("position")
        await nothing_lost(w)


# -- clocks, tasks, memory, strategies


@live
async def test_clock_jump(tmp_path):
    for jump in (3600.0, -3600.0):
        folder = tmp_path / f"{jump:.0f}"
        folder.mkdir()
        async with Wall(folder) as w:
            await entered(w)
            ahead = [0.0]
            w.agent.clocks = Clocks(w.agent.doubts, wall=lambda a=ahead: time.monotonic() + a[0], calm=0.3)
            ahead[0] = jump
            await w.doubt("clock")
            await w.bar(target=-1.0)
            await w.bar()
            assert w.qty() == 0.0, "to the other side, as far as out"
            await w.over("clock")
            await w.bar(target=0.5)
            await w.bar()
            assert w.qty() == 50.0
            await nothing_lost(w)


@live
async def test_task_dead(tmp_path, monkeypatch):
    from tradebench.live import batches, keeper

    broken = {"left": 0}

    def breaks(module, name):
        real = getattr(module, name)

        def call(*args, **kw):
            if broken["left"] and broken.get("who") == name:
                broken["left"] -= 1
                raise RuntimeError("a mistake nobody thought of")
            return real(*args, **kw)

        monkeypatch.setattr(module, name, call)

    breaks(keeper, "look_at_feeds")
    breaks(batches, "record")  # in the middle of a batch, after the decision
    async with Wall(tmp_path) as w:
        await entered(w)
        for who in ("look_at_feeds", "record"):
            broken |= dict(left=1, who=who)
            if who == "record":
                await w.bar(settle=False)
            await w.doubt("crash", 10)
            assert "a mistake nobody thought of" in w.said("crash")[-1]["text"]
            await until(lambda: w.agent.mode == "trading", 10)
            assert w.held() == w.there() == {"AAA": 100.0}
            await w.bar(settle=False)
            await w.over("crash")
            await until(lambda: w.agent.streams[0].ts == w.ts)
        await leaves(w)
        assert [e.body["ts"] for e in await w.journal.events(kinds=["market"])] == [b.ts for b in w.feed.batches]
        assert len(w.venue.orders) == 2
        await nothing_lost(w)
        broken |= dict(left=100, who="record")
        w.agent.most_crashes = 2
        await w.bar(settle=False)
        with pytest.raises(RuntimeError, match="nobody thought of"):  # it gives up, loudly
            await asyncio.wait_for(asyncio.shield(w.task), 20)
        broken["left"] = 0
        w.task = asyncio.create_task(asyncio.sleep(0))


@live
async def test_missed_heartbeat(tmp_path):
    async with Wall(tmp_path) as w:
        await entered(w)
        real, w.agent.beats.clock = w.agent.beats.clock, lambda: time.monotonic() + 3600.0
        await w.doubt("task")
        w.agent.beats.clock = real
        await w.over("task")
        w.agent.watchdog.after = 0.2
        time.sleep(0.6)  # the loop stands still: a thread says so meanwhile
        assert w.said("stalled")
        await until(lambda: [i for i in w.said("stalled") if "had stood still" in i["text"]])
        await leaves(w)


@live
async def test_memory_growing(tmp_path):
    async with Wall(tmp_path) as w:
        await entered(w)
        w.agent.memory.most = 10.0
        await w.doubt("memory")
        await w.bar(target=-1.0)
        await w.bar()
        assert w.qty() == 0.0
        w.agent.memory.most = 1e6
        await w.over("memory")
        await w.bar(target=1.0)
        await w.bar()
        assert w.qty() == 100.0


@live
async def test_exception_in_a_strategy(tmp_path):
    bad = dict(bad=f"{HERE}/strategies_for_live.py:Breaks", good=FOLLOW)
    for World in (Wall, Plain):  # the stop is the venue's, or ours
        folder = tmp_path / World.__name__
        folder.mkdir()
        async with World(folder, accounts=("bad", "good")[: 2 if World is Wall else 1], strategy=bad) as w:
            await w.bar()
            await w.bar(target=1.0, stop=90.0)
            await w.bar()
            await w.bar(target=0.25)
            await w.doubt("strategy:bad")
            await w.bar(target=0.5)
            await w.bar()
            held = {n: a.book.positions().get("AAA") for n, a in w.agent.accounts.items()}
            assert held["bad"] == 100.0 and held.get("good", 50.0) == 50.0, "the other account trades on"
            await w.bar(88.0)  # through the stop
            await w.bar(88.0)
            assert not w.agent.accounts["bad"].book.positions()
            await nothing_lost(w)
            assert "bad" in w.agent.failed, "a restart mends no strategy"
            assert "bad trades again" in await resume(w, strategy="bad")
            await w.bar(88.0, target=1.0)
            await w.bar(88.0)
            assert w.agent.accounts["bad"].book.positions() == {"AAA": 100.0} and not w.doubts
            await nothing_lost(w)


@live
async def test_exception_in_a_pandas_strategy(tmp_path):
    async with Wall(tmp_path, strategy=f"{HERE}/strategies_for_live.py:breaks_in_pandas") as w:
        for _ in range(4):
            await w.bar()
        assert w.qty() == 100.0
        await w.bar(160.0)
        await w.doubt("strategy:main")
        assert "a column that is not there" in w.doubts["strategy:main"]
        await w.bar(160.0)
        assert w.qty() == 100.0 and not w.task.done()
        await nothing_lost(w)
        assert "main" in w.agent.failed


# -- what the venue says is different


@live
async def test_differences_that_stay(tmp_path):
    async with Plain(tmp_path) as w:
        await entered(w)
        w.exchange.holdings["AAA"] -= 0.5  # 50 of 100,000: a fee taken in kind
        await until(lambda: w.qty() == 99.5)
        assert w.said("adjusted") and "by agent" in w.said("adjusted")[0]["text"]
        await w.over("position")
        w.exchange.holdings["AAA"] -= 40.0  # that is too much for a machine
        await w.doubt("position")
        assert await refused_elsewhere(w) == "doubt:position:tests:plain::AAA"
        await asyncio.sleep(0.8)
        assert w.qty() == 99.5
        assert await command(w, "adjust", symbol="AAA") == ("done", "main AAA -40: we hold 59.5 now")
        await w.over("position")
        assert w.qty() == 59.5
        entries = [e.body for e in await w.journal.events(kinds=["adjust"]) if e.body["what"] == "fill"]
        assert [(b["qty"], b["label"], b["who"]) for b in entries] == [
            (-0.5, "difference", "agent"),
            (-40.0, "by hand", "ann"),
        ]
        assert await command(w, "adjust", symbol="AAA") == ("done", "AAA: positions agree, nothing to adjust")
        state, text = await command(w, "adjust", symbol="ZZZ")
        assert state == "failed" and "no account of this deployment trades ZZZ" in text
        await leaves(w)
        await nothing_lost(w)


async def refused_elsewhere(w):
    "The control that refuses more of a symbol in doubt"
    seen = len(await w.journal.events(kinds=["refusal"]))
    await w.bar(target=1.5, settle=False)
    await until(lambda: w.through(w.ts))
    await w.journal.commit(w.journal.tx())
    return (await w.journal.events(kinds=["refusal"]))[seen:][-1].body["control"]


@live
async def test_strangers_on_our_account(tmp_path):
    async with Plain(tmp_path) as w:
        await entered(w)
        x = w.exchange
        x.place("screen", "AAA", -30.0, None)  # a person at the broker's screen
        x.place("screen 2", "AAA", 5.0, 50.0)
        await w.bar()
        await until(lambda: w.agent.foreign == {"tests:plain": {"AAA": -30.0}})
        await until(lambda: w.said("foreign_order"))
        await asyncio.sleep(0.6)  # streams and snapshots tell of it again
        assert (
            w.agent.foreign == {"tests:plain": {"AAA": -30.0}}
            and len(w.said("foreign_fill")) == 1
            and len(w.said("foreign_order")) == 1
        )
        assert w.qty() == 100.0 and not w.doubts, "it is counted apart"
        await nothing_lost(w)
        assert w.agent.foreign == {"tests:plain": {"AAA": -30.0}}
        await leaves(w)
        assert x.holdings["AAA"] == -30.0


@live
async def test_protection_that_the_venue_does_not_confirm(tmp_path):
    async with Wall(tmp_path) as w:
        await entered(w)
        w.faults.set(**{"drop_before:protect": 1.0})
        await w.bar(stop=95.0)  # a hold moves the stop
        await w.doubt("protection:main:AAA")
        w.faults.clear()
        await w.over("protection")
        assert w.venue.snapshot(0).protections["main", "AAA"][0] == 95.0
        await nothing_lost(w)


def test_each_row_of_the_table_names_a_test_that_is_here():
    notebook = json.loads((HERE.parent / "nbs/live/61_emergencies.ipynb").read_text())
    prose = "".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    rows = {t for t in re.findall(r"`(test_\w+)`", prose)}
    here = {n for n in globals() if n.startswith("test_")} - {"test_each_row_of_the_table_names_a_test_that_is_here"}
    assert rows == here
