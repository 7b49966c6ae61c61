"Candles of an exchange through the real ccxt, from a local server that speaks Binance's protocol, with faults."

from __future__ import annotations

import asyncio
import os

import numpy as np
import pytest

from feed_servers import MINUTE, SECOND, START, Binance, check, kinds, minute_of, read, serving
from tradebench.live.ccxt_feed import CcxtFeed
from tradebench.live.collect import MarketClock
from tradebench.live.feeds import open_feed
from tradebench.live.types import FeedError

if not os.environ.get("CI"):
    pytest.importorskip("ccxt", reason="needs the package ccxt: pip install 'tradebench[live]'")

QUICK = dict(enableRateLimit=False)


def test_ccxt_history_in_pages_then_polling_without_a_gap_or_a_growing_candle():
    async def main():
        clock = MarketClock(START + 30 * SECOND, speed=500)
        server = Binance(clock)
        async with serving(server.routes()) as at:
            feed = open_feed(
                "ccxt:binance:BTC/USDT+ETH/USDT,1m", url=f"http://{at}", clock=clock, config=QUICK, timeout=2000
            )
            past = await feed.history(START - 2500 * MINUTE - 1, clock.now())  # also the bar that ends at that moment
            assert server.asked < 12 and len(past) >= 2501
            new = await read(feed, past[-1].ts, 6)
            await feed.close()
            check(past + new, feed.symbols, -2500)
            one = feed.instruments[1]
            assert (one.symbol, one.tick, one.lot, one.currency, one.fees) == (
                "ETH/USDT",
                0.01,
                1e-4,
                "USDT",
                {"fee_bps": 10.0},
            )
            assert feed.periods_per_year == 525_600 and feed.has_volume.all() and feed.calendar == "24/7"

    asyncio.run(main())


def test_ccxt_goes_on_through_faults():
    what = ["500", "reset", "garbage", "short", "429", "no partial", "hang"]

    async def one(seed):
        rng = np.random.default_rng(seed)
        faults = {int(k): what[int(rng.integers(len(what)))] for k in rng.choice(np.arange(2, 25), 10, replace=False)}
        print("seed", seed, faults)
        clock = MarketClock(START + 30 * SECOND, speed=500)
        server = Binance(clock, faults=faults)
        async with serving(server.routes()) as at:
            feed = CcxtFeed(
                "binance", ["BTC/USDT"], url=f"http://{at}", clock=clock, config=QUICK, timeout=120, longest=8
            )
            got = await read(feed, START, 18)
            await feed.close()
        check(got, ["BTC/USDT"], 1)
        assert not any(b.late for b in got)
        assert {"fetch_failed", "recovered"} <= kinds(feed)

    async def main():
        await asyncio.gather(*map(one, range(3)))

    asyncio.run(main())


def test_ccxt_fills_the_gap_after_the_exchange_was_away():
    async def main():
        clock = MarketClock(START + 30 * SECOND, speed=600)
        server = Binance(clock, down=(START + 4 * MINUTE, START + 14 * MINUTE))
        async with serving(server.routes()) as at:
            feed = CcxtFeed("binance", ["BTC/USDT"], url=f"http://{at}", clock=clock, config=QUICK, timeout=600)
            got = await read(feed, START, 20)
            await feed.close()
        check(got, ["BTC/USDT"], 1)
        tries = [i["tries"] for i in feed.incidents if i["kind"] == "fetch_failed"]
        assert (
            tries == list(range(1, len(tries) + 1)) and len(tries) < 60
        )  # pauses grow: ten minutes are not asked every second

    asyncio.run(main())


def test_ccxt_judges_finality_by_the_exchange_s_clock():
    async def one(skew):
        clock = MarketClock(START + 10 * SECOND, speed=200)
        server = Binance(clock, skew=skew * SECOND)
        async with serving(server.routes()) as at:
            feed = CcxtFeed("binance", ["BTC/USDT"], url=f"http://{at}", clock=clock, config=QUICK, timeout=600)
            got = await read(feed, START, 8)
            await feed.close()
        check(got, ["BTC/USDT"], 1)
        assert "clock_skew" in kinds(feed) and abs(clock.offset - skew * SECOND) < 15 * SECOND

    async def main():
        await asyncio.gather(one(-20), one(20))

    asyncio.run(main())


def test_a_late_symbol_comes_as_a_late_batch_and_the_mask_says_so():
    async def main():
        clock = MarketClock(START + 30 * SECOND, speed=150)
        server = Binance(clock, delay={"ETH/USDT": 40 * SECOND})
        async with serving(server.routes()) as at:
            feed = CcxtFeed(
                "binance", ["BTC/USDT", "ETH/USDT"], url=f"http://{at}", clock=clock, config=QUICK, wait=12, timeout=600
            )
            got = await read(feed, START, 6)
            await feed.close()
        late, seen = check(got, feed.symbols, 1)
        assert late >= 4 and all(s == "ETH/USDT" for (s, _), was in seen.items() if was)
        masked = [b for b in got if not b.late][0]
        assert masked.flags.tolist() == [7, 4] and "deadline" in kinds(feed)

    asyncio.run(main())


def test_broken_candles_are_reported_and_never_delivered():
    async def main():
        clock = MarketClock(START + 30 * SECOND, speed=500)
        server = Binance(clock, broken=[("BTC/USDT", 3), ("BTC/USDT", 4)])
        async with serving(server.routes()) as at:
            feed = CcxtFeed("binance", ["BTC/USDT"], url=f"http://{at}", clock=clock, config=QUICK, timeout=600)
            told = []
            feed.on_incident = told.append
            got = await read(feed, START, 6)
            await feed.close()
        check(got, ["BTC/USDT"], 1, holes=(3, 4))
        bad = [i for i in told if i["kind"] == "bad_bar"]
        assert (
            {minute_of(i["ts"]) for i in bad} == {3, 4}
            and "non_positive" in bad[0]["text"]
            and bad[0]["symbol"] == "BTC/USDT"
        )

    asyncio.run(main())


def test_what_ccxt_cannot_give_is_one_line():
    async def main():
        clock = MarketClock(START + 30 * SECOND, speed=500)
        server = Binance(clock, first=-100)
        said = {}
        async with serving(server.routes()) as at:
            for words, start in (
                ("binance:DOGE/USDT,1m", 5),
                ("binance:BTC/USDT,7m", 5),
                ("binanze:BTC/USDT,1m", 5),
                ("binance:BTC/USDT,1m", 5000),
            ):
                feed = open_feed(f"ccxt:{words}", url=f"http://{at}", clock=clock, config=QUICK, timeout=600)
                try:
                    await feed.history(START - start * MINUTE, clock.now())
                except FeedError as e:
                    said[words] = str(e)
                await feed.close()
        nobody = CcxtFeed("binance", ["BTC/USDT"], url="http://127.0.0.1:9", clock=clock, config=QUICK, timeout=60)
        with pytest.raises(FeedError, match="no history after 5 tries"):
            await nobody.history(START, clock.now())
        await nobody.close()
        return list(said.values())

    unknown, length, exchange, old = asyncio.run(main())
    assert "unknown symbol 'DOGE/USDT'" in unknown and "unknown time frame '7m'" in length
    assert "did you mean binance" in exchange and "choose a later anchor" in old
