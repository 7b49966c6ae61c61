"""A venue that takes requests and does not answer: what else is to be done must not wait for it request by request."""

import asyncio
import dataclasses
import time

from live_world import Plain, Wall, until
from test_live_emergencies import live

from tradebench.live import agent
from tradebench.live.account import Plan
from tradebench.live.reconcile import resolve
from tradebench.live.types import State

MANY = tuple(f"S{i:02}" for i in range(12))


def mute(gate, *names):
    "The venue's requests of these names are never answered; the counts of them"
    asked = dict.fromkeys(names, 0)

    def silent(name):
        async def never(*_):
            asked[name] += 1
            await asyncio.sleep(3600)

        return never

    for name in names:
        setattr(gate.broker, name, silent(name))
    gate.timeout = 0.3
    return asked


@live
async def test_a_mute_venue_is_asked_once_a_round_and_not_once_an_account(tmp_path):
    async with Plain(tmp_path, accounts=tuple(f"a{i}" for i in range(8))) as w:
        await w.bar()
        gate = next(iter(w.agent.gates.values()))
        asked = mute(gate, "submit", "find", "snapshot")
        w.feed.push(w.batch(target=1.0))
        w.now = w.ts + 10**9
        await until(lambda: asked["submit"] >= 1)
        async with w.agent.lock:
            states = [t.state for a in w.agent.accounts.values() for t in a.live.values()]
            assert sorted(states) == [State.INTENT] * 7 + [State.UNKNOWN], (
                states
            )  # the first was not answered, the others wait
            before, began = asked["find"], time.monotonic()
            assert not await resolve(w.agent, gate, w.agent.at(gate), patience=0.1)
            assert asked["find"] - before <= 2 and time.monotonic() - began < 1.5
        del gate.broker.submit, gate.broker.find, gate.broker.snapshot
        await w.settled()


@live
async def test_levels_that_a_mute_venue_does_not_confirm_are_told_and_nobody_waits_for_each(tmp_path):
    async with Wall(tmp_path, MANY) as w:
        await w.bar()
        await w.bar(target=0.01, stop=90.0)
        await w.bar()
        gate, a = next(iter(w.agent.gates.values())), w.one()
        nan = float("nan")
        async with w.agent.lock:
            asked, began = mute(gate, "protect"), time.monotonic()
            await gate.send(a, Plan([], [(s, 91.0, nan, nan) for s in MANY], []))
            assert time.monotonic() - began < 1.0 and asked["protect"] <= 2
            assert set(gate.bare) == {("main", s) for s in MANY}
            del gate.broker.protect


@live
async def test_asked_to_stop_it_leaves_within_its_grace_whatever_the_venue_does(tmp_path):
    async with Plain(tmp_path, MANY, accounts=tuple(f"a{i}" for i in range(6))) as w:
        await w.bar()
        gate = next(iter(w.agent.gates.values()))
        mute(gate, "submit", "find", "snapshot", "cancel")
        gate.timeout = 5.0
        w.feed.push(w.batch(target=0.01))
        w.now = w.ts + 10**9
        await until(lambda: w.agent.halfway)
        began = time.monotonic()
        w.agent.stop("SIGTERM")
        await asyncio.wait_for(asyncio.gather(w.task, return_exceptions=True), 30)
        assert time.monotonic() - began < w.deployment.grace + 0.5, time.monotonic() - began
        w.task = asyncio.create_task(asyncio.sleep(0))


@live
async def test_a_cancel_that_is_lost_is_repeated(tmp_path, monkeypatch):
    lost, keep = [], agent.keep

    async def deaf(a):  # the cancel comes in the moment of an answer
        try:
            await keep(a)
        except asyncio.CancelledError:
            if not lost:
                lost.append(True)
                await keep(a)
            raise

    monkeypatch.setattr(agent, "keep", deaf)
    async with Plain(tmp_path) as w:
        await w.bar()
        w.task.cancel()
        await asyncio.wait({w.task}, timeout=5)
        assert lost and w.task.done()
        w.task = asyncio.create_task(asyncio.sleep(0))


@live
async def test_venues_that_do_not_answer_do_not_cost_the_lease(tmp_path):
    w = Plain(tmp_path, accounts=("a", "b", "c", "d"))
    accounts = [dataclasses.replace(a, broker=f"tests:plain{i}") for i, a in enumerate(w.deployment.accounts)]
    w.deployment = dataclasses.replace(w.deployment, accounts=tuple(accounts))
    w.tune = lambda a: setattr(a, "lease", 1.2)
    async with w:
        for gate in w.agent.gates.values():
            mute(gate, "find", "snapshot")
            gate.timeout = 0.5
        left, end = [], time.monotonic() + 3.5
        while time.monotonic() < end:
            left.append((await w.journal.control("w")).lease_until - time.time_ns())
            await asyncio.sleep(0.02)
        assert min(left) > 0, min(left) / 1e9
        for gate in w.agent.gates.values():
            del gate.broker.find, gate.broker.snapshot
