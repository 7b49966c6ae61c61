"""A deployment whose accounts, parameters or symbols are others than when its positions were opened."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from live_world import Wall, until
from test_live_emergencies import live

from tradebench.live.reconcile import reconcile
from tradebench.live.types import BrokerError, JournalError, Order, State


async def again(w, accounts):
    "The agent ends, and another one starts on the same journal with these accounts"
    assert await w.stop() == 0
    w.deployment = dataclasses.replace(w.deployment, accounts=tuple(accounts))
    w.heard.clear()
    await w.start()


def by_account(w):
    return {n: x.book.positions() for n, x in w.agent.accounts.items()}


@live
async def test_a_position_of_an_account_that_was_taken_out_is_told(tmp_path):
    async with Wall(tmp_path, accounts=("a", "b")) as w:
        await w.bar()
        await w.bar(target=1.0)
        await w.bar()
        a, b = w.deployment.accounts
        await again(w, [a])
        told = [i for i in w.heard if i["severity"] == "critical" and "100" in i["text"] and "AAA" in i["text"]]
        assert told, w.heard
        assert [i["kind"] for i in told] == ["orphan"] and told[0]["account"] == "b", told
        await again(w, [a])
        assert w.said("orphan"), "and told again with each start"
        await again(w, [b, a])  # back, in another order
        await w.bar()
        assert {n: x.book.positions() for n, x in w.agent.accounts.items()} == {
            "a": {"AAA": 100.0},
            "b": {"AAA": 100.0},
        }
        assert not w.doubts


@live
async def test_an_account_that_is_added_trades_beside_one_that_holds(tmp_path):
    async with Wall(tmp_path, accounts=("a",)) as w:
        await w.bar()
        await w.bar(target=1.0)
        await w.bar()
        a = w.deployment.accounts[0]
        await again(w, [dataclasses.replace(a, name="new"), a])
        await w.bar(target=0.5)
        await w.bar()
        await until(lambda: by_account(w) == {"a": {"AAA": 50.0}, "new": {"AAA": 50.0}})
        await again(w, [a, dataclasses.replace(a, name="new")])
        await until(lambda: by_account(w) == {"a": {"AAA": 50.0}, "new": {"AAA": 50.0}})
        assert not w.doubts


@live
async def test_two_deployments_at_one_venue_are_nothing_to_each_other(tmp_path):
    async with Wall(tmp_path) as w:
        await w.bar()
        spec = w.venue.accounts["main"].spec
        w.venue.open_account(spec._replace(name="other"))
        w.venue.market(w.ts + 1, {"AAA": (100.0, 100.0, 100.0, 100.0, 1e6)})
        w.venue.submit([Order("o1", "other", "AAA", 5.0, 5.0), Order("o2", "other", "AAA", 2.0, 7.0, limit=10.0)])
        w.venue.market(w.ts + 2, {"AAA": (100.0, 100.0, 100.0, 100.0, 1e6)})
        w.venue.submit([Order("o3", "other", "AAA", 2.0, 7.0, limit=10.0)])
        gate = next(iter(w.agent.gates.values()))
        async with w.agent.lock:
            await reconcile(w.agent, gate, w.agent.at(gate))
        assert not w.said("foreign_fill") and not w.said("foreign_order") and not w.doubts


@live
async def test_an_order_of_an_operator_and_a_venue_that_is_away(tmp_path):
    async with Wall(tmp_path) as w:
        await w.bar()
        tx = w.journal.tx()
        tx.order(Order("t-by-hand", "main", "AAA", -1.0, 0.0, bar_ts=7, leg=250, reduce=True), -1, State.SENT)
        await w.journal.commit(tx)
        gate, away = next(iter(w.agent.gates.values())), []
        inner, a = gate.broker.find, w.one()

        async def find(ids):
            away.append(ids)
            if len(away) < 4:
                raise BrokerError("venue: no answer")
            return await inner(ids)

        gate.broker.find = find
        await w.journal.command("w", "adopt", {}, "ann", "test")
        await until(lambda: w.said("command") and len(away) >= 4)
        await until(lambda: not w.doubts)
        assert not w.said("crash") and a is w.one()
        rows = {r.client_id: r.state for r in await w.journal.orders()}
        assert rows["t-by-hand"] is State.CANCELLED


@live
async def test_other_parameters_under_an_open_position_are_refused_with_what_to_do(tmp_path):
    text = f"{Path(__file__).parent}/strategies_for_live.py:Above"
    async with Wall(tmp_path, strategy=text, params=dict(n=2)) as w:
        for i in range(5):
            await w.bar(100.0 + i)
        assert w.qty() == 100.0
        a = w.deployment.accounts[0]
        assert await w.stop() == 0
        w.deployment = dataclasses.replace(w.deployment, accounts=(dataclasses.replace(a, params=dict(n=3)),))
        await w.start(wait=False)
        with pytest.raises(
            JournalError, match=r"another: main \(params\).*put the former ones back, or close its positions"
        ):
            await asyncio.wait_for(w.task, 20)
        w.deployment = dataclasses.replace(w.deployment, accounts=(a,))  # put back: it goes on
        await w.start()
        await w.bar(101.0)
        await w.bar(101.0)
        assert w.qty() == 0.0 and not w.doubts
