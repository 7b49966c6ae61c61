"""The whole agent over recorded bars is the backtest, bit for bit: every strategy, in process and over the network, through restarts, alone and beside others.

Random cases print their seed; `python tests/test_live_replay.py SEED` runs one again.
"""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tradebench.live.agent import Agent
from tradebench.live.crash import BUSY
from tradebench.live.crash_check import check_all, venue_of
from tradebench.live.deployment import parse, shorthand
from tradebench.live.journal import open_journal
from tradebench.live.replay import compare, first_difference, journal_tables, replay_and_compare, simulation_of
from tradebench.live.streams import open_stream
from tradebench.live.types import LiveError
from tradebench.strategies.catalogue import catalogue

MINUTES = "sim:minutes,seed=7,sessions=3"
DAYS = "replay:AAPL,start=2004,end=2006"  # a split and dividends
BASKET = "replay:AAPL+IBM+MSFT+GOOG+FB,start=2004,end=2006"
DEAR = "fee_bps=5,spread_bps=2,slippage_vol=0.1,impact=0.1,participation=0.02,borrow_rate=0.02"
TIGHT = "max_weight=0.6,max_drawdown=0.5,daily_loss=0.2"


def deployment(folder, *accounts, broker="paper", id="replay"):
    tables = [dict(name=f"a{i}", broker=broker, unreleased=True) | a for i, a in enumerate(accounts)]
    return parse(dict(id=id, journal="replay.sqlite", account=tables), "replay", folder)


def equal(d, least=0):
    "Run and compare; the Comparisons"
    found = asyncio.run(replay_and_compare(d))
    for c in found:
        assert c.equal and c.fills >= least, str(c)
    return found


# -- every strategy


@pytest.mark.parametrize("name", sorted(catalogue().index))
@pytest.mark.parametrize("costs, limits", [("", ""), (DEAR, TIGHT)], ids=["plain", "dear"])
def test_every_strategy_of_the_catalogue(tmp_path, name, costs, limits):
    busy = dict(BUSY).get(name, dict(look=20, every=3))
    feeds = (
        [BASKET]
        if name == "rotation"
        else [MINUTES, DAYS]
        if name in ("swing", "sma_cross", "gap_and_go")
        else [MINUTES]
    )
    cases = [dict(strategy=name, feed=f, costs=costs, limits=limits, params=p) for f in feeds for p in ({}, busy)]
    found = equal(deployment(tmp_path, *cases))
    assert any(c.fills for c in found)


def test_a_basket_with_late_listings_and_two_symbols_of_a_single_strategy(tmp_path):
    a = dict(strategy="swing", feed=BASKET, params=dict(BUSY)["swing"])
    b = dict(strategy="sma_cross", feed=BASKET, params=dict(fast=3, slow=9), sizing="fraction=0.1")
    equal(deployment(tmp_path, a, b), 50)


# -- accounts beside each other


def test_each_account_is_its_own_backtest_and_the_venue_holds_the_sum(tmp_path):
    accounts = [
        dict(strategy=s, params=p, feed=MINUTES, capital=50_000.0 * (i + 1)) for i, (s, p) in enumerate(BUSY[:3])
    ]
    accounts.append(dict(strategy="sma_cross", params=dict(fast=3, slow=7), feed=MINUTES, anchor="2015-01-05"))
    accounts.append(dict(strategy="rotation", feed=BASKET, params=dict(look=10, every=2)))
    d = deployment(tmp_path, *accounts)

    async def main():
        async with open_journal(d.journal) as journal:
            agent = Agent(d, journal)
            agent.unlimited = True
            assert await agent.run() == 0
            venue, held, sums = await venue_of(journal), Counter(), Counter()
            for config in d.accounts:
                sim = simulation_of(config, open_stream(config, config.feed).feed)
                c = compare(await journal_tables(journal, config.name), sim, config.name)
                assert c.equal and c.fills, str(c)
                for symbol, qty in zip(sim.bars.symbols, sim.slots[0]["qty"].tolist(), strict=True):
                    held[symbol] += qty
            for (_, symbol), qty in venue.positions().items():
                sums[symbol] += qty
            assert {s: q for s, q in held.items() if q} == {s: q for s, q in sums.items() if q} and sums
            assert (await check_all(journal, d)).ok

    asyncio.run(main())


# -- over the network


@contextmanager
def venue(*more):
    args = [sys.executable, "-m", "tradebench.live.venue_server", *more]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())["venue"]
        finally:
            process.terminate()


def test_over_the_network(tmp_path):
    with venue() as url:
        a = dict(strategy="scalping", params=dict(BUSY)["scalping"], feed="sim:minutes,seed=7,sessions=2", costs=DEAR)
        equal(deployment(tmp_path, a, broker=f"paper:{url}"), 50)
        # a second time it would wait for bars that the venue has played
        with pytest.raises(LiveError, match="has traded account .* before"):
            asyncio.run(replay_and_compare(deployment(tmp_path, a, broker=f"paper:{url}")))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(catalogue().index))
def test_every_strategy_over_the_network(tmp_path, name):
    with venue("--fault", "latency=0.001", "--fault", "drop_after=0.01", "--fault", "half=0.05") as url:
        feed = BASKET if name == "rotation" else "sim:minutes,seed=7,sessions=2"
        equal(
            deployment(
                tmp_path,
                dict(strategy=name, feed=feed, params=dict(BUSY).get(name, {})),
                broker=f"paper:{url}?timeout=0.2",
            )
        )


# -- through restarts


class Killed(BaseException):
    "The end of a process, as far as its own memory is concerned"


async def live(d, rng, often: int):
    "Start agents on the deployment's journal until one reaches the end; some are stopped in order, others fall in the middle of a commit"
    ends = Counter()
    while True:
        async with open_journal(d.journal) as journal:
            agent = Agent(d, journal, holder="test")
            agent.unlimited, agent.snapshot_every = True, rng.choice([0.0, 0.05, 1e9])
            left, kind, commit = [rng.randrange(3, often)], rng.choice(["stop", "before", "after"]), journal.commit
            if sum(ends.values()) > 12:
                kind = ""

            async def counted(tx, epoch=None, *rest):
                left[0] -= 1  # noqa: B023
                if left[0] <= 0 and kind == "before":  # noqa: B023
                    raise Killed
                seq = await commit(tx, epoch, *rest)  # noqa: B023
                if left[0] <= 0 and kind == "after":  # noqa: B023
                    raise Killed
                if left[0] <= 0 and kind == "stop":  # noqa: B023
                    agent.stop()  # noqa: B023
                return seq

            journal.commit = counted
            try:
                assert await agent.run() == 0
            except Killed:
                ends[kind] += 1
                continue
            finally:
                journal.commit = commit
            if not agent.stopping:
                break
            ends[kind] += 1
    return ends


def case(seed: int, folder):
    rng = random.Random(seed)
    accounts = []
    for name, params in rng.sample(BUSY, 2):
        feed = rng.choice([MINUTES, DAYS if name in ("swing", "sma_cross", "gap_and_go") else MINUTES])
        accounts.append(
            dict(strategy=name, params=params, feed=feed, costs=rng.choice(["", DEAR]), limits=rng.choice(["", TIGHT]))
        )
    if rng.random() < 0.5:
        accounts.append(
            dict(strategy="rotation", feed=BASKET, params=dict(look=10, every=2), costs=rng.choice(["", DEAR]))
        )
    return deployment(folder, *accounts, id=f"case-{seed}"), rng


def restarted(seed: int, folder):
    d, rng = case(seed, folder)

    async def main():
        ends = await live(d, rng, 60)
        async with open_journal(d.journal) as journal:
            v = await check_all(journal, d)
        assert v.ok, "\n".join([f"seed {seed}, after {dict(ends)}:", *v.lines()])
        return ends

    return asyncio.run(main())


@pytest.mark.parametrize("seed", [1, 2])
def test_restarts_on_the_way_change_nothing(tmp_path, seed):
    assert sum(restarted(seed, tmp_path).values()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 40))
def test_many_restarts(tmp_path, seed):
    restarted(seed, tmp_path)


# -- a difference is seen


def test_a_difference_is_named(tmp_path):
    d = shorthand("sma_cross", MINUTES, params=dict(fast=2, slow=5), id="seen", journal=str(tmp_path / "seen.sqlite"))

    async def main():
        async with open_journal(d.journal) as journal:
            await replay_and_compare(d, journal)
            found, config = await journal_tables(journal, "main"), d.accounts[0]
            sim = simulation_of(config, open_stream(config, config.feed).feed)
            assert compare(found, sim, "main").equal
            for name, field in (("fills", "price"), ("orders", "qty")):
                wrong = found[name].copy()
                wrong[field][3] = np.nextafter(wrong[field][3], np.inf)
                c = compare(found | {name: wrong}, sim, "main")
                assert not c.equal and f"{name[:-1]} 3, {field}" in c.difference
            wrong = found["equity"].copy()
            wrong[-1] = np.nextafter(wrong[-1], 0)
            assert "equity" in compare(found | dict(equity=wrong), sim, "main").difference
            gone = {k: v for k, v in found["status"].items() if k != 2}
            assert "order 2" in compare(found | dict(status=gone), sim, "main").difference
            assert "has" in first_difference("fill", found["fills"][:-1], found["fills"])

    asyncio.run(main())


def test_pre_trade_limits_are_no_part_of_a_backtest(tmp_path):
    more = dict(id="limited", journal=str(tmp_path / "limited.sqlite"), deployment_limits=dict(order_value=1_000.0))
    d = shorthand("sma_cross", MINUTES, params=dict(fast=2, slow=5), **more)
    (free,) = asyncio.run(replay_and_compare(d))
    (bound,) = asyncio.run(replay_and_compare(d, limited=True))
    assert free.equal and not bound.equal


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(restarted(int(sys.argv[1]), Path(folder)))
