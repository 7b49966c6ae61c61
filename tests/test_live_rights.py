"""A process that comes too late: it was stopped, slept or was asked to leave while another one trades; nothing of it may reach journal or venue."""

import asyncio

import pytest
from live_world import Wall, until
from test_live_emergencies import entered, live

from tradebench.live.adjust import enter
from tradebench.live.durable import flush, snapshot
from tradebench.live.hear import hear, strangers
from tradebench.live.reconcile import reconcile
from tradebench.live.types import Fenced, Fill, State, Update


async def frozen(w):
    "The agent's tasks end here and now, as if its process was stopped; its memory stays"
    w.task.cancel()
    await asyncio.gather(w.task, return_exceptions=True)
    w.task = asyncio.create_task(asyncio.sleep(0))
    return w.agent


@live
async def test_a_process_that_lost_the_right_leaves_nothing_in_the_journal(tmp_path):
    async with Wall(tmp_path) as w:
        await entered(w)
        old, before = await frozen(w), await w.journal.last_snapshot("")
        await w.journal.acquire("w", "another", 15.0)
        seq = (await w.journal.events())[-1].seq
        with pytest.raises(Fenced):
            await snapshot(old)
        enter(old, w.one(), "AAA", 7.0, "difference", "agent")
        a = old.accounts["main"]
        hear(old, a, [Fill(1, "late", "", "", "main", "AAA", 3.0, 100.0)])
        strangers(old, next(iter(old.gates.values())), [Fill(1, "odd", "9", "", "", "AAA", 3.0, 100.0)])
        await flush(old)
        kinds = [e.kind for e in await w.journal.events(after_seq=seq)]
        assert set(kinds) <= {"incident"}, kinds
        assert await w.journal.last_snapshot("") == before
        assert [p.qty for p in await w.journal.positions()] == [100.0]


@live
async def test_asked_to_stop_while_it_waits_it_takes_nothing_from_who_trades(tmp_path):
    async with Wall(tmp_path) as w:
        await w.bar()
        await frozen(w)
        epoch = await w.journal.acquire("w", "elsewhere:1:1", 15.0, now=w.now)
        await w.start(wait=False)
        await until(lambda: w.said("held"))
        w.agent.stop("SIGTERM")
        assert await asyncio.wait_for(w.task, 5) == 0
        control = await w.journal.control("w")
        assert (control.epoch, control.holder) == (epoch, "elsewhere:1:1")


@live
async def test_asked_to_stop_after_another_has_begun_it_takes_nothing_back(tmp_path):
    async with Wall(tmp_path) as w:
        await entered(w)
        w.agent.stopping = True  # asked to stop, and the loop has not come to it yet
        epoch = await w.journal.acquire("w", "elsewhere:1:1", 15.0, now=w.now)
        w.agent.stop("SIGTERM")
        w.feed.news.set()
        assert await asyncio.wait_for(w.task, 10) == 0
        control = await w.journal.control("w")
        assert (control.epoch, control.holder) == (epoch, "elsewhere:1:1")
        assert w.venue.positions() == {("main", "AAA"): 100.0}


@live
async def test_a_request_that_leaves_after_the_lease_is_turned_away_by_the_venue(tmp_path):
    async with Wall(tmp_path) as w:
        await w.bar()
        gate = next(iter(w.agent.gates.values()))
        inner, late = gate.broker.submit, []

        async def stopped(orders):  # SIGSTOP between the check and the socket
            late.extend(orders)
            await asyncio.sleep(1.2)
            return await inner(orders)

        await w.journal.renew("w", w.agent.epoch, 0.8)
        gate.broker.submit = stopped
        await w.bar(target=1.0, settle=False)
        await until(lambda: late and late[0].client_id in w.venue.orders, 10)
        entry = w.venue.orders[late[0].client_id]
        assert late[0].valid_until and entry.state is State.REFUSED and "valid_until" in entry.ack.text, entry.ack
        assert not w.venue.positions()


@live
async def test_an_intent_that_was_filled_before_anybody_answered_is_at_the_venue_and_is_asked_for(tmp_path):
    async with Wall(tmp_path) as w:
        await w.bar()
        a, gate = w.one(), next(iter(w.agent.gates.values()))
        async with w.agent.lock:
            o = a.operate("AAA", 10.0, 1)
            a.take(
                Fill(gate.epoch, "f1", "77", o.client_id, "main", "AAA", 4.0, 100.0)
            )  # of a life that ended before the answer
            assert a.live[o.client_id].state is State.WORKING
            find, asked = gate.broker.find, []

            async def cut(names):
                asked.extend(names)
                return [Update(gate.epoch, "77", n, "main", "AAA", State.CUT, 4.0, 400.0) for n in names]

            gate.broker.find = cut
            await reconcile(w.agent, gate, [a])
            gate.broker.find = find
            assert asked == [o.client_id] and o.client_id not in a.live
            a.take(Fill(gate.epoch, "back", "78", "", "main", "AAA", -4.0, 100.0))
