"""What grows with months of trading: memory is bounded, and what it has forgotten is not taken for news."""

import asyncio

from live_world import Bar, Plain, Wall
from test_live_emergencies import live

from tradebench.live import account, recovery
from tradebench.live.durable import snapshot
from tradebench.live.reconcile import foreign_order, reconcile
from tradebench.live.types import TERMINAL, State, Update


async def killed(w):
    "The process ends without a word, and another one starts"
    w.task.cancel()
    await asyncio.gather(w.task, return_exceptions=True)
    await w.journal.commit(w.journal.tx())
    await w.start()


@live
async def test_fills_that_memory_has_forgotten_are_not_entered_again(tmp_path, monkeypatch):
    async with Wall(tmp_path) as w:
        for i in range(13):
            await w.bar(target=1.0 if i % 2 else 0.0)
            if i == 11:
                gate = next(iter(w.agent.gates.values()))
                async with w.agent.lock:
                    await reconcile(w.agent, gate, w.agent.at(gate))
                    await snapshot(w.agent)
        await w.bar()
        fills, cash = len(await w.journal.fills()), float(w.one().book.account["cash"])
        assert fills > 8
        held = w.qty()
        monkeypatch.setattr(recovery, "LAYOUT", 2)  # a new program: everything is made again from the first event
        monkeypatch.setattr(account, "KEPT", 4)
        await killed(w)
        assert w.said("rebuilt")
        await w.bar()
        assert w.qty() == held and not w.doubts and not w.said("foreign_fill"), (w.qty(), w.doubts)
        assert float(w.one().book.account["cash"]) == cash


@live
async def test_an_order_that_works_for_months_does_not_keep_all_the_others_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(account, "KEPT", 6)
    async with Wall(tmp_path, ("AAA", "BBB"), table=dict(collar=0)) as w:
        await w.bar()
        await w.bar(
            target=dict(AAA=1.0, BBB=0.0), limit=dict(AAA=50.0, BBB=float("nan")), expire=0.0
        )  # far away: it works and works
        for i in range(14):
            await w.bar(target=dict(AAA=float("nan"), BBB=float((i + 1) % 2)))
        a = w.one()
        assert "AAA" in [t.order.symbol for t in a.live.values() if t.state is State.WORKING]
        assert len(a.orders) <= 6 + len(a.live), len(a.orders)
        assert all(n in a.orders for n in a.live)
        assert sum(t.state in TERMINAL for t in a.orders.values()) <= 6


@live
async def test_orders_of_strangers_are_told_once_and_not_remembered_for_ever(tmp_path):
    async with Plain(tmp_path) as w:
        gate = next(iter(w.agent.gates.values()))
        for i in range(12_000):
            foreign_order(w.agent, gate, Update(1, str(i), "", "", "AAA", State.WORKING))
        assert len(w.agent.stuck) <= 5000
        before = len(w.said("foreign_order"))
        foreign_order(w.agent, gate, Update(1, "11999", "", "", "AAA", State.WORKING))
        assert len(w.said("foreign_order")) == before


@live
async def test_a_venue_in_this_process_does_not_tell_it_all_again_either(tmp_path, monkeypatch):
    monkeypatch.setattr(account, "KEPT", 4)
    async with Bar(tmp_path) as w:
        for i in range(13):
            await w.bar(target=1.0 if i % 2 else 0.0)
        held, cash = w.qty(), float(w.one().book.account["cash"])
        await killed(w)
        await asyncio.sleep(0.5)  # compared meanwhile
        assert (w.qty(), float(w.one().book.account["cash"])) == (held, cash) and not w.doubts
