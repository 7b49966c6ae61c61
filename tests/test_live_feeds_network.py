"Polling, websocket and failover feeds against local servers with faults: each bar once, final, in order, none missing."

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from aiohttp import web

from feed_servers import MINUTE, SECOND, START, BarServer, check, kinds, minute_of, read, serving, truth
from tradebench.data.bars import prepare
from tradebench.data.sources import load
from tradebench.errors import TradebenchError
from tradebench.live.collect import Bar, MarketClock
from tradebench.live.failover import FailoverFeed
from tradebench.live.feeds import open_feed
from tradebench.live.polling import PollingFeed
from tradebench.live.recorded import RecordedFeed
from tradebench.live.types import Feed, FeedError

FAULTS = dict(twice=0.3, swapped=0.15, lost=0.15, partial=0.5, ping=0.3, garbage=0.2, cut=0.08, early=0.1, error=0.1)


def test_a_websocket_full_of_faults_gives_each_bar_once_in_order():
    async def one(seed):
        print("seed", seed)
        clock = MarketClock(START + 30 * SECOND, speed=400)
        server = BarServer(clock, ["A", "B"], seed=seed, until=60, **FAULTS)
        async with serving(server.routes()) as at:
            feed = open_feed(f"ws:ws://{at}/bars,symbols=A+B,wait=30", clock=clock, timeout=600, patience=4, longest=10)
            got = await read(feed, START, 25)
            await feed.close()
        check(got, ["A", "B"], 1)
        assert kinds(feed) & {"bad_message", "early", "disconnected"}

    async def main():
        await asyncio.gather(*map(one, range(4)))

    asyncio.run(main())


def test_a_stream_that_only_pings_is_replaced_and_nothing_is_lost():
    async def main():
        clock = MarketClock(START + 30 * SECOND, speed=300)
        server = BarServer(clock, ["A"], until=60)
        server.mute = True  # until the second connection
        async with serving(server.routes()) as at:
            feed = open_feed(f"ws://{at}/bars", symbols=["A"], clock=clock, timeout=600, patience=2)
            first = await read(feed, START, 4)
            server.mute = False
            got = first + await read(feed, first[-1].ts, 8)
            await feed.close()
        check(got, ["A"], 1)
        assert "stream_silent" in kinds(feed) and server.links >= 2 and server.asked >= 4

    asyncio.run(main())


def test_a_websocket_away_for_a_while_and_an_unknown_symbol():
    async def main():
        clock = MarketClock(START + 30 * SECOND, speed=300)
        async with serving(BarServer(clock, ["A"]).routes()) as at:
            unknown = open_feed(f"ws://{at}/bars,symbols=Z", clock=clock, timeout=600)
            with pytest.raises(FeedError, match="history of Z: 404"):
                await read(unknown, START, 1)
            await unknown.close()
            feed = open_feed(f"ws://{at}/bars,symbols=A", clock=clock, timeout=600, longest=5)
            begun = await read(feed, START, 3)
            port = int(at.rpartition(":")[2])
        stream = feed.stream(begun[-1].ts)
        waiting = asyncio.ensure_future(anext(stream))
        await clock.sleep(6 * MINUTE)  # nobody listens
        assert not waiting.done() and {"fetch_failed", "disconnected"} <= kinds(feed)
        server = BarServer(clock, ["A"], until=60)
        app = web.Application()
        app.add_routes(server.routes())
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        got = [*begun, await waiting]
        async for b in stream:
            got.append(b)
            if len(got) == 16:
                break
        await stream.aclose()
        await feed.close()
        await runner.cleanup()
        check(got, ["A"], 1)

    asyncio.run(main())


class Minutes(PollingFeed):
    "Minutes of the truth that are away in some spans: they answer nothing, or raise"

    def __init__(self, clock, name="A", away=(), raises=(), delay=1.0, **more):
        self.name = name
        super().__init__(["X"], "1min", "24/7", clock=clock, settle=delay, timeout=1000, longest=10, **more)
        self.away, self.raises, self.asked = away, raises, []

    async def fetch(self, symbol, after, upto):
        now = self.clock.now()
        self.asked.append(now)
        k = (now - START) / MINUTE
        if any(a <= k < b for a, b in self.raises):
            raise FeedError(f"{self.name}: no longer")
        if any(a <= k < b for a, b in self.away):
            return []
        return [Bar(ts, *truth("X", minute_of(ts))) for ts in self.grid.between(after, upto)]


def test_failover_and_back_without_a_gap_or_a_copy():
    async def one(seed):
        print("seed", seed)
        rng = np.random.default_rng(seed)

        def spans(n):
            return [
                (a, a + int(rng.integers(2, 7)))
                for a in sorted(rng.choice(np.arange(2, 38), n, replace=False).tolist())
            ]

        clock = MarketClock(START, speed=600)
        a, b = (Minutes(clock, name, spans(2), spans(2), delay) for name, delay in (("A", 1.0), ("B", 4.0)))
        both = FailoverFeed(a, b, lag=25, pause=5)
        got = await read(both, START, 40)
        await both.close()
        check(got, ["X"], 1)
        assert "failover" in kinds(both)

    async def main():
        await asyncio.gather(*map(one, range(6)))

    asyncio.run(main())


def test_the_primary_is_returned_to_only_after_it_was_in_time():
    async def main():
        clock = MarketClock(START, speed=400)
        a, b = Minutes(clock, "A", [(3, 8)]), Minutes(clock, "B", delay=3.0)
        both = FailoverFeed(a, b, lag=20, back=3)
        got = await read(both, START, 14)
        state, source = both.state, both.source
        await both.close()
        check(got, ["X"], 1)
        assert [i["kind"] for i in both.incidents] == ["failover", "failback"] and (state, source) == ("primary", "A")
        idle = [t for t in b.asked if t < START + 4 * MINUTE or t > START + 13 * MINUTE]
        assert len(idle) <= 1  # the backup rests while it is not needed

    asyncio.run(main())


def test_both_feeds_gone_is_said_and_ends_by_itself():
    async def main():
        clock = MarketClock(START, speed=400)
        a, b = Minutes(clock, "A", [(3, 12)]), Minutes(clock, "B", [(3, 9)], [(6, 7)])
        both = FailoverFeed(a, b, lag=20, pause=5)
        states = []
        both.on_incident = lambda i: states.append((i["kind"], both.state))
        got = await read(both, START, 14)
        await both.close()
        check(got, ["X"], 1)
        assert ("both_gone", "gone") in states and "feed_back" in {k for k, _ in states}

    asyncio.run(main())


class Broken(PollingFeed):
    "A feed of a user's whose stream raises at once"

    name = "broken"

    def __init__(self, clock):
        super().__init__(["X"], "1min", "24/7", clock=clock)

    async def stream(self, after):
        raise ZeroDivisionError("the user's own fault")
        yield

    async def history(self, start, end):
        raise FeedError("broken: no history")


def test_a_feed_that_raises_is_left_at_once_and_history_comes_from_the_backup():
    async def main():
        clock = MarketClock(START + 5 * MINUTE + 5 * SECOND, speed=300)
        both = FailoverFeed(Broken(clock), Minutes(clock, "B"), lag=600)
        past = await both.history(START, clock.now())
        begin = time.perf_counter()
        got = past + await read(both, past[-1].ts, 3)
        check(got, ["X"], 1)
        assert time.perf_counter() - begin < 2  # long before ten minutes without data
        assert {"feed_broken", "failover"} <= kinds(both) and "ZeroDivisionError" in str(list(both.incidents))
        with pytest.raises(FeedError, match="none has history"):
            await FailoverFeed(Broken(clock), Broken(clock)).history(START, clock.now())

    asyncio.run(main())


class Slow(PollingFeed):
    "Two symbols in pages of 50 bars; answers for B take longer than a batch waits, and C, where there is one, has no bars"

    def __init__(self, clock, symbols=("A", "B"), patience=40):
        super().__init__(symbols, "1min", "24/7", clock=clock, wait=20, timeout=1000)
        self.patience = patience

    async def fetch(self, symbol, after, upto):
        if symbol == "C":
            return []
        await self.clock.sleep((self.patience if symbol == "B" else 1) * SECOND)
        return [Bar(ts, *truth(symbol, minute_of(ts))) for ts in self.grid.between(after, upto)[:50]]


def test_history_by_the_stream_waits_for_slow_symbols_but_not_for_those_without_bars():
    async def main():
        clock = MarketClock(START + 200 * MINUTE, speed=600)
        got = await read(Slow(clock), START, 195)
        assert not any(b.late for b in got) and all((b.flags == 7).all() for b in got)
        check(got, ["A", "B"], 1)
        third = await read(Slow(clock, ("A", "B", "C"), 10), START, 150)
        assert not any(b.late for b in third) and all(b.flags.tolist() == [7, 7, 4] for b in third)

    asyncio.run(main())


def test_a_primary_that_fills_a_long_gap_is_not_left():
    async def main():
        clock = MarketClock(START + 200 * MINUTE, speed=600)
        both = FailoverFeed(Slow(clock), Slow(clock, patience=1), lag=60)
        got = await read(both, START, 205)
        await both.close()
        check(got, ["A", "B"], 1)
        assert not kinds(both) & {"failover", "failback", "both_gone"}, both.incidents

    asyncio.run(main())


def test_feeds_that_differ_cannot_stand_in_for_each_other():
    clock = MarketClock()
    other = Minutes(clock)
    other.symbols = ("Y",)
    with pytest.raises(FeedError, match="differ in symbols"):
        FailoverFeed(Minutes(clock), other)
    both = open_feed("replay:AAPL,start=2012-01-01 | replay:AAPL,start=2012-01-01")
    bars = both.feeds[0].bars

    async def main():
        return [b.ts async for b in both.stream(0)]

    assert asyncio.run(main()) == bars.ts.tolist() and not both.live


def test_nothing_is_asked_while_the_market_is_closed():
    bars = prepare(load("sim:minutes,seed=7,sessions=2"))
    friday, monday = bars.session_ends().tolist()
    close = int(bars.ts[friday])

    class NewYork(PollingFeed):
        def __init__(self, clock, **more):
            super().__init__(["SIM"], "1min", "XNYS", clock=clock, **more)
            self.asked = []

        async def fetch(self, symbol, after, upto):
            self.asked.append(self.clock.now())
            rows = np.flatnonzero((bars.ts > after) & (bars.ts <= upto))
            return [Bar(int(bars.ts[t]), *bars.raw[t, 0].tolist()) for t in rows]

    async def main():
        weekend = int(bars.ts[friday + 1]) - close
        clock = MarketClock(close + SECOND, speed=weekend / 1e9)  # the weekend takes a second
        feed = NewYork(clock, timeout=1e7)
        got = await read(feed, int(bars.ts[friday - 3]), 4)
        assert [b.ts for b in got] == bars.ts[friday - 2 : friday + 2].tolist()
        quiet = [t for t in feed.asked if close + 5 * MINUTE < t < int(bars.ts[friday + 1])]
        return quiet, len(feed.asked)

    quiet, asked = asyncio.run(main())
    assert not quiet and asked < 200


def test_a_feed_of_a_file_is_opened_by_its_address(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from tradebench.live.polling import PollingFeed\n"
        "from tradebench.live.collect import Bar\n\n"
        "class Flat(PollingFeed):\n"
        "    name = 'flat'\n\n"
        "    def __init__(self, symbol='X', price='1', **more):\n"
        "        super().__init__([symbol], '1min', '24/7', **more)\n"
        "        self.price = float(price)\n\n"
        "    async def fetch(self, symbol, after, upto):\n"
        "        return [Bar(ts, *[self.price] * 4, 1.0) for ts in self.grid.between(after, upto)]\n\n"
        "class Nothing:\n"
        "    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    clock = MarketClock(START + 10 * MINUTE, speed=600)
    for address in (f"{tmp_path}/mine.py:Flat,price=2.5,symbol=Z", "mine:Flat,price=2.5,symbol=Z"):
        feed = open_feed(address, clock=clock, timeout=600)
        past = asyncio.run(feed.history(START, clock.now()))
        assert feed.symbols == ("Z",) and past[0].raw[0, 3] == 2.5 and minute_of(past[0].ts) == 1
    for words, said in (
        ("mine.py:Nothing", "it has no 'symbols'"),
        ("mine:Flat,cost=1", "cost"),
        ("mine:Missing", "Missing"),
        ("nobody.here:Feed", "no module"),
    ):
        with pytest.raises(TradebenchError, match=said):
            open_feed(words)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 8])
def test_long_failover_over_two_faulty_sources(first):
    async def one(seed):
        print("seed", seed)
        clock = MarketClock(START + 30 * SECOND, speed=250)
        servers = [BarServer(clock, ["A", "B"], seed=100 * seed + i, until=400, **FAULTS, mute=0.05) for i in (0, 1)]
        async with serving(servers[0].routes()) as here, serving(servers[1].routes()) as there:
            kw = dict(symbols=["A", "B"], clock=clock, timeout=600, patience=4, longest=10, wait=30)
            feed = FailoverFeed(*(open_feed(f"ws://{at}/bars", **kw) for at in (here, there)), lag=40)
            got = await read(feed, START, 120, seconds=90)
            await feed.close()
        check(got, ["A", "B"], 1)

    async def main():
        await asyncio.gather(*map(one, range(first, first + 8)))

    asyncio.run(main())


def test_the_recorded_feed_is_a_feed_as_any_other():
    feed = RecordedFeed(prepare(load("AAPL", start="2012-01-01")))
    assert isinstance(feed, Feed) and isinstance(open_feed("ws://127.0.0.1:9/x,symbols=A"), Feed)
