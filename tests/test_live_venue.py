"""The paper venue: what must hold whatever is asked of it, and that a network with faults changes nothing of what is true."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from aiohttp import ClientSession
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tradebench.backtest.costs import Costs
from tradebench.data.instruments import Instrument
from tradebench.live.brokers import NetBroker, PaperBroker, open_broker
from tradebench.live.faults import FaultyBroker, Faults
from tradebench.live.types import (
    AccountSpec,
    Batch,
    BrokerError,
    Caps,
    Fill,
    NAN,
    Order,
    State,
    TERMINAL,
    Update,
    client_id,
)
from tradebench.live.venue import Venue, venue_from, venue_state
from tradebench.live.venue_http import VenueServer

SYMBOLS = ("AAA", "BBB")
MINUTE = 60 * 10**9


def spec(name="a", symbols=SYMBOLS, **more):
    things = tuple(Instrument(s, tick=0.01, lot=1) for s in symbols)
    costs = (Costs(fee_bps=5, spread_bps=2, participation=0.1),) * len(symbols)
    return AccountSpec(name, symbols, things, 1e6, costs, {}, 252.0)._replace(**more)


def bar(ts, prices, volume=1000.0, spread=0.02):
    raw = np.array([[p, p * (1 + spread), p * (1 - spread), p, volume] for p in prices])
    return Batch(ts, raw, np.full(len(prices), 7, np.uint8))


# -- whatever is asked


class VenueMachine(RuleBasedStateMachine):
    ids = Bundle("ids")

    @initialize(seed=st.integers(0, 999))
    def start(self, seed):
        self.rng, self.faults = random.Random(seed), Faults(seed, split=0.3)
        self.venue = Venue(faults=self.faults)
        self.venue.listeners.append(self.hear)
        self.heard, self.fills, self.cursor, self.ended, self.n, self.ts, self.last = [], {}, 0, {}, 0, 0, None
        for name in ("a", "b"):
            self.venue.open_account(spec(name))
        self.prices = [100.0, 50.0]
        self.play("a"), self.play("b")

    def hear(self, reports):
        self.heard += reports

    def play(self, name):
        self.prices = [round(p * self.rng.uniform(0.97, 1.03), 2) for p in self.prices]
        self.ts += MINUTE
        self.last = name, bar(self.ts, self.prices)
        self.told = self.venue.advance(*self.last)

    @rule(target=ids, name=st.sampled_from("ab"), j=st.integers(0, 1), to=st.integers(-300, 300), price=st.floats(0.95, 1.05),
          at=st.booleans(), stop=st.booleans())  # fmt: skip
    def submit(self, name, j, to, price, at, stop):
        self.n += 1
        held = self.venue.positions().get((name, SYMBOLS[j]), 0.0)
        limit = round(self.prices[j] * price, 2) if at else NAN
        guard = round(self.prices[j] * (0.97 if to > 0 else 1.03), 2) if stop and to else NAN
        order = Order(
            client_id("m", name, SYMBOLS[j], self.n), name, SYMBOLS[j], (to - held) or 1.0, float(to), limit, guard
        )
        (self.ack,) = self.venue.submit([order])
        assert self.venue.submit([order, order]) == [self.ack] * 2
        return order

    @rule(order=ids)
    def copy(self, order):
        before = repr(self.venue.snapshot())
        self.venue.submit([order])
        assert repr(self.venue.snapshot()) == before

    @rule(order=ids)
    def cancel(self, order):
        (ack,) = self.venue.cancel([order.client_id])
        assert ack.state in TERMINAL and self.venue.cancel([order.client_id]) == [ack]

    @rule(name=st.sampled_from("ab"))
    def advance(self, name):
        self.play(name)

    @rule()
    def again(self):
        assert self.venue.advance(*self.last) is self.told or repr(self.venue.advance(*self.last)) == repr(self.told)

    @rule(name=st.sampled_from("ab"), j=st.integers(0, 1), stop=st.floats(0.9, 0.99))
    def protect(self, name, j, stop):
        assert self.venue.protect(name, SYMBOLS[j], self.prices[j] * stop, NAN, NAN).state is State.WORKING

    @rule(name=st.sampled_from(["a", "b", ""]), j=st.integers(0, 1), qty=st.integers(-50, 50))
    def foreign_fill(self, name, j, qty):
        self.venue.foreign_fill(name, SYMBOLS[j], qty or 1, self.prices[j])

    @rule(name=st.sampled_from("ab"), j=st.integers(0, 1), qty=st.integers(-50, 50), at=st.booleans())
    def foreign_order(self, name, j, qty, at):
        self.venue.foreign_order(name, SYMBOLS[j], qty or 1, self.prices[j] if at else NAN)

    @rule(reuse=st.booleans())
    def restart(self, reuse):
        epoch = self.venue.epoch
        assert self.venue.restart(reuse) == epoch + 1

    @rule()
    def remember(self):
        "Written to a file and read again, it is the same venue"
        twin = venue_from(venue_state(self.venue), faults=self.faults)
        assert repr(twin.snapshot()) == repr(self.venue.snapshot())
        self.venue = twin
        twin.listeners.append(self.hear)

    @invariant()
    def nothing_lost_nothing_twice(self):
        snapshot = self.venue.snapshot(self.cursor)
        assert snapshot.cursor >= self.cursor
        self.cursor = snapshot.cursor
        for f in snapshot.fills:
            assert (f.epoch, f.fill_id) not in self.fills
            self.fills[f.epoch, f.fill_id] = f
        assert list(self.fills.values()) == self.venue.fills
        assert [r for r in self.heard if isinstance(r, Fill)] == self.venue.fills
        sums: dict = {}
        for f in self.fills.values():
            sums[f.account, f.symbol] = sums.get((f.account, f.symbol), 0.0) + f.qty
        assert {k: v for k, v in sums.items() if abs(v) > 1e-9} == pytest.approx(snapshot.positions)
        open_ids = [u.client_id for u in snapshot.orders if u.client_id]
        assert len(set(open_ids)) == len(open_ids)
        assert len({(u.epoch, u.venue_id) for u in snapshot.orders}) == len(snapshot.orders)

    @invariant()
    def what_has_ended_stays(self):
        for cid, e in self.venue.orders.items():
            if e.state in TERMINAL:
                assert self.ended.setdefault(cid, (e.state, e.filled)) == (e.state, e.filled)
            mine = sum(f.qty for f in self.fills.values() if f.client_id == cid and f.venue_id and f.reason == 1)
            assert e.filled == pytest.approx(mine), (e.update(), mine)


VenueMachine.TestCase.settings = settings(
    max_examples=20, stateful_step_count=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
TestVenueMachine = VenueMachine.TestCase


@pytest.mark.slow
def test_the_venue_holds_in_many_more_scenarios():
    more = settings(
        VenueMachine.TestCase.settings,
        max_examples=400,
        stateful_step_count=50,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(VenueMachine, settings=more)


def test_memory_is_bounded_and_ids_stay_unique():
    venue = Venue(keep=100)
    venue.open_account(spec(symbols=("AAA",)))
    orders = []
    for t in range(1, 1001):
        venue.advance("a", bar(t, [100.0], volume=1e9))
        orders.append(Order(client_id("m", "a", "AAA", t), "a", "AAA", 1.0, float(t), bar_ts=t))
        assert venue.submit(orders[-1:])[0].state is State.WORKING
    assert len(venue.orders) <= 101 and len(venue.fills) <= 200 and len(venue.accounts["a"].told) <= 16
    before = venue.positions()
    assert {a.state for a in venue.submit(orders[:800])} == {State.REFUSED}
    venue.advance("a", bar(2000, [100.0], volume=1e9))
    assert venue.positions() == before | {("a", "AAA"): 1000.0}
    with pytest.raises(BrokerError, match="no longer kept"):
        venue.snapshot(5)
    with pytest.raises(BrokerError, match="lost its memory or is another"):
        venue.snapshot(1 << 60)
    with pytest.raises(BrokerError, match="not kept"):
        venue.advance("a", bar(3, [100.0]))


def test_many_orders_of_one_bar_are_not_taken_for_copies():
    "All with one stamp, more of them than the venue remembers"
    venue = Venue(keep=50)
    venue.open_account(spec(symbols=("AAA",)))
    venue.advance("a", bar(7, [100.0]))
    orders = [Order(client_id("m", "a", "AAA", 7, leg=i), "a", "AAA", 1.0, 1.0 + i, bar_ts=7) for i in range(500)]
    assert {a.state for a in venue.submit(orders)} == {State.WORKING}
    assert {a.state for a in venue.submit(orders[:300])} == {State.REFUSED}


def test_the_rest_of_a_protective_exit_is_an_order_of_the_venue():
    "The bar's volume lets 100 units out of 150: the rest works on under a number, and can be taken back by it"
    venue = Venue()
    venue.open_account(spec(symbols=("AAA",)))
    venue.advance("a", bar(1, [100.0], volume=1e9))
    venue.submit([Order("entry", "a", "AAA", 150.0, 150.0, stop=95.0)])
    venue.advance("a", bar(2, [100.0], volume=1e9))
    fill, rest = venue.advance("a", bar(3, [90.0], volume=1000.0))
    assert (fill.qty, fill.reason, fill.client_id, fill.venue_id) == (-100.0, 2, "entry", "")
    assert (rest.client_id, rest.state, rest.reason) == ("", State.WORKING, 2) and rest.venue_id
    (known,) = venue.find([f"#{rest.venue_id}"])
    assert known == venue.snapshot().orders[0] and known.venue_id == rest.venue_id
    twin = venue_from(venue_state(venue))
    (last, done) = twin.advance("a", bar(4, [90.0], volume=1000.0))
    assert (last.qty, last.venue_id, last.client_id, done.state) == (-50.0, rest.venue_id, "entry", State.FILLED)
    (ack,) = venue.cancel([f"#{rest.venue_id}"])
    assert ack.state is State.CANCELLED and venue.advance("a", bar(4, [90.0], volume=1000.0)) == []
    assert venue.positions() == {("a", "AAA"): 50.0} and venue.cancel(["#99"])[0].state is State.UNKNOWN


def test_an_account_keeps_its_terms():
    venue = Venue()
    assert (
        venue.open_account(spec()) == 0 == venue.open_account(spec(options=dict(leverage=1.0)))
    )  # a default spelled out
    for change in (
        dict(initial=5.0),
        dict(symbols=("AAA",)),
        dict(options=dict(leverage=2.0)),
        dict(costs=(Costs(),) * 2),
    ):
        with pytest.raises(BrokerError, match=f"exists at the venue with other {next(iter(change))}"):
            venue.open_account(spec(**change))
    with pytest.raises(BrokerError, match="a batch of 1 symbols, the account has 2"):
        venue.advance("a", bar(1, [1.0]))
    with pytest.raises(BrokerError, match="unknown account 'aa'; did you mean a"):
        venue.advance("aa", bar(1, [1.0]))


def test_a_state_of_another_layout_is_refused():
    from tradebench.live.wire import decode, encode

    body = decode(venue_state(Venue()))
    with pytest.raises(BrokerError, match="layout 99"):
        venue_from(encode([99, *body[1:]]))


# -- over the network nothing changes


async def play(broker, bars, seed):
    "A careful little agent: what the venue said of each bar"
    rng, told, n = random.Random(seed), [], 0
    while True:
        try:
            await broker.connect()
            await broker.open_account(spec())
            break
        except BrokerError:
            pass
    for t, prices in enumerate(bars, 1):
        told += await broker.advance("a", bar(t * MINUTE, prices))
        orders = []
        for j, symbol in enumerate(SYMBOLS):
            if rng.random() < 0.5:
                n += 1
                limit = round(prices[j] * rng.uniform(0.98, 1.02), 2) if rng.random() < 0.5 else NAN
                to = float(rng.randrange(-200, 200))
                stop = round(prices[j] * (0.98 if to > 0 else 1.02), 2)
                orders.append(Order(client_id("n", "a", symbol, t), "a", symbol, to or 1.0, to, limit, stop, bar_ts=t))
        while orders:
            acks = {a.client_id: a for a in await broker.submit(orders)}
            unknown = [o for o in orders if acks[o.client_id].state is State.UNKNOWN]
            again = [o for o in orders if acks[o.client_id].text.startswith("rate limit")]
            while unknown:
                try:
                    found = await broker.find([o.client_id for o in unknown])
                    again += [o for o, u in zip(unknown, found, strict=True) if u is None]
                    break
                except BrokerError:
                    pass
            orders = again
    return told


def walk(seed, n):
    rng, prices, out = random.Random(seed), [100.0, 50.0], []
    for _ in range(n):
        prices = [round(p * rng.uniform(0.98, 1.02), 2) for p in prices]
        out.append(prices)
    return out


def bare(reports):
    "Without the numbers that the venue gave: late copies use some up"
    return [repr(r._replace(seq=0, venue_id="")) for r in reports]


ROUGH = dict(drop_before=0.1, drop_after=0.1, half=0.1, late=0.05, rate_limit=0.1, duplicate=0.3)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_faults_change_what_is_told_and_nothing_that_is_true(seed):
    "The same orders and bars: in process, in process with faults, over the network with faults; floats bit for bit"
    bars = walk(seed, 80)

    async def over_network():
        faults = Faults(seed, late_by=0.02, lost_ack=0.01, **ROUGH)
        server = VenueServer(Venue(), faults)
        net = NetBroker(f"http://127.0.0.1:{await server.start()}", timeout=0.15)
        told = await play(net, bars, seed)
        await net.close()
        await server.stop()
        assert sum(faults.counts.values()) > 30, faults.counts
        return told, server.venue

    paper = PaperBroker()
    plain = asyncio.run(play(paper, bars, seed))
    faulty = FaultyBroker(PaperBroker(), Faults(seed, lost_ack=0.1, **ROUGH))
    rough = asyncio.run(play(faulty, bars, seed))
    net, venue = asyncio.run(over_network())
    assert len(plain) > 60
    assert bare(plain) == bare(rough) == bare(net), f"seed {seed}"
    assert paper.venue.positions() == venue.positions() == faulty.venue.positions()


def served(test, *, wall=False, **chances):
    "Run `test(broker, server)` against a server in this loop"

    async def main():
        server = VenueServer(Venue(bar_time=not wall), Faults(5, **chances), heartbeat=0.05)
        broker = NetBroker(f"http://127.0.0.1:{await server.start()}", timeout=0.3)
        try:
            await broker.connect()
            await broker.open_account(spec())
            return await test(broker, server)
        finally:
            await broker.close()
            await server.stop()

    return asyncio.run(main())


async def post(broker, path, body, kind="application/json"):
    async with ClientSession() as web:
        async with web.post(f"{broker.url}/v1/{path}", data=body, headers={"Content-Type": kind}) as answer:
            return answer.status, await answer.read()


def test_a_request_that_makes_no_sense_is_answered_400_and_harms_nothing():
    names = "connect account submit cancel find protect snapshot advance foreign market faults nonsense".split()
    values = st.recursive(
        st.none() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=4) | st.booleans(),
        lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(["orders", "ids", "account", "batch", "cursor", "spec", "bars", "ts"]), c, max_size=4),
    )  # fmt: skip

    async def test(broker, server):
        before = repr(server.venue.snapshot())
        loop = asyncio.get_running_loop()

        @settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(names), st.binary(max_size=30) | values.map(lambda v: json.dumps(v).encode()))
        def fuzz(name, body):
            status, text = asyncio.run_coroutine_threadsafe(post(broker, name, body), loop).result(5)
            assert status in (200, 400), (name, body, status, text)

        await asyncio.to_thread(fuzz)
        server.faults.clear()
        assert repr(server.venue.snapshot()) == before
        (ack,) = await broker.submit([Order("x", "a", "AAA", 1.0, 1.0)])
        assert ack.state is State.REFUSED and "no price yet" in ack.text

    served(test)


def test_a_hang_is_unknown_and_then_the_order_is_there():
    async def test(broker, server):
        await broker.advance("a", bar(1, [100.0, 50.0]))
        server.faults.set(hang=0.7)
        order = Order("t1", "a", "AAA", 5.0, 5.0)
        began = time.monotonic()
        (ack,) = await broker.submit([order])
        assert ack.state is State.UNKNOWN and time.monotonic() - began < 0.6
        again = await broker.advance("a", bar(1, [100.0, 50.0]))  # waits until the hang is over
        assert again == [] and time.monotonic() - began > 0.6
        await asyncio.sleep(0.1)
        assert (await broker.find(["t1"]))[0].state is State.WORKING

    served(test)


def test_a_clock_that_is_wrong_is_seen():
    async def test(broker, server):
        await post(broker, "faults", json.dumps(dict(skew=3600)).encode())
        await broker.advance("a", bar(1, [100.0, 50.0]))
        soon = time.time_ns() + 60 * 10**9
        (ack,) = await broker.submit([Order("t1", "a", "AAA", 5.0, 5.0, valid_until=soon)])
        assert ack.state is State.REFUSED and "valid_until" in ack.text

        async def listen():
            async for _ in broker.reports():
                pass

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.2)
        assert broker.clock_off == pytest.approx(3600, abs=1)
        task.cancel()

    served(test)


def test_a_stream_without_heartbeats_ends():
    async def test(broker, server):
        broker.timeout = 0.1
        task = asyncio.create_task(anext(broker.reports(), "ended"))
        await asyncio.sleep(0.15)
        server.faults.set(hang=3)
        assert await asyncio.wait_for(task, 1.5) == "ended"
        server.faults.clear()

    served(test)


def test_on_wall_time_reports_come_by_the_stream():
    async def test(broker, server):
        assert not broker.caps.bar_time and broker.caps.protection
        heard = []

        async def listen():
            async for r in broker.reports():
                heard.append(r)

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.1)
        server.venue.market(1, dict(AAA=(100, 100, 100, 100, 1e6)))
        before = time.time_ns()
        await broker.submit([Order("t1", "a", "AAA", 5.0, 5.0, stop=99.0)])
        server.venue.market(2, dict(AAA=(100, 100, 100, 100, 1e6)))
        server.venue.market(3, dict(AAA=(98, 98, 98, 98, 1e6)))
        for _ in range(50):
            if sum(isinstance(r, Fill) for r in heard) == 2:
                break
            await asyncio.sleep(0.02)
        entry, out = [r for r in heard if isinstance(r, Fill)]
        assert (entry.client_id, entry.qty, out.qty, out.reason, out.client_id) == ("t1", 5.0, -5.0, 2, "t1")
        assert entry.ts >= before and (await broker.snapshot()).ts >= before
        task.cancel()

    served(test, wall=True)


def test_the_random_stranger_and_restart_are_booked():
    async def test(broker, server):
        for t, prices in enumerate(walk(3, 40), 1):
            await broker.advance("a", bar(t, prices))
        snapshot = await broker.snapshot()
        assert snapshot.epoch > 1 and len({f.epoch for f in snapshot.fills}) > 1
        keys = {(f.epoch, f.fill_id) for f in snapshot.fills}
        assert len(keys) == len(snapshot.fills) > 5 and len({f.fill_id for f in snapshot.fills}) < len(keys)
        sums: dict = {}
        for f in snapshot.fills:
            assert not f.client_id
            sums["a", f.symbol] = sums.get(("a", f.symbol), 0.0) + f.qty
        assert {k: v for k, v in sums.items() if v} == snapshot.positions

    served(test, foreign=0.5, restart=0.2)


def started(*more):
    line = [sys.executable, "-m", "tradebench.live.venue_server", *more]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline() or "{}")


def test_a_process_remembers_and_its_epoch_rises(tmp_path):
    file = str(tmp_path / "venue.state")

    async def before(url):
        broker = NetBroker(url)
        await broker.connect(), await broker.open_account(spec())
        await broker.advance("a", bar(1, [100.0, 50.0]))
        await broker.submit([Order("t1", "a", "AAA", 5.0, 5.0), Order("t2", "a", "BBB", 7.0, 7.0, 40.0)])
        told = await broker.advance("a", bar(2, [101.0, 51.0]))
        cursor = (await broker.snapshot()).cursor
        await broker.close()
        return told, cursor, broker.epoch

    async def after(url, told, cursor, epoch):
        broker = NetBroker(url)
        assert await broker.connect() == epoch + 1
        assert await broker.open_account(spec()) == 2
        assert repr(await broker.advance("a", bar(2, [101.0, 51.0]))) == repr(told)
        one, two = await broker.find(["t1", "t2"])
        assert one.state is State.FILLED and two.state is State.WORKING
        assert (await broker.submit([Order("t1", "a", "AAA", 5.0, 5.0)]))[
            0
        ].state is State.WORKING  # the first one's answer
        assert not (await broker.snapshot(cursor)).fills
        assert [type(r) for r in await broker.advance("a", bar(3, [39.0, 39.0]))] == [Fill, Update]
        (fill,) = (await broker.snapshot(cursor)).fills
        assert (fill.epoch, fill.client_id) == (epoch + 1, "t2")
        await broker.close()

    process, told = started("--state", file)
    try:
        known = asyncio.run(before(told["venue"]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        process.communicate()
        process, told = started("--state", file, "--reuse-ids")
        asyncio.run(after(told["venue"], *known))
    finally:
        process.kill()
        process.communicate()


def test_a_process_that_cannot_start_says_why(capsys):
    from tradebench.live.venue_server import main

    for more, text in (
        (["--fault", "lost_acks=1"], "unknown fault 'lost_acks'"),
        (["--fault", "late"], "write NAME=NUMBER"),
    ):
        assert main(more) == 2
        said = capsys.readouterr()
        assert not said.out and text in said.err and said.err.count("\n") == 1


# -- names


def test_a_broker_of_ones_own_is_found_by_its_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from tradebench.live.brokers import PaperBroker\n"
        "class Mine(PaperBroker):\n"
        "    def __init__(self, journal=None):\n"
        "        super().__init__()\n"
        "        self.journal = journal\n"
        "class Lame:\n"
        "    from tradebench.live.types import Caps\n"
        "    caps = Caps(protection=True)\n"
        "    connect = submit = cancel = find = snapshot = reports = close = None\n"
        "class Sick:\n"
        "    def __init__(self):\n"
        "        raise KeyError('TOKEN')\n"
    )
    assert open_broker(f"{file}:Mine", journal="j").journal == "j"
    assert isinstance(open_broker("tradebench.live.example_broker:ToyBroker").caps, Caps)
    for text, error in {
        f"{file}:Lame": "lacks protect",
        f"{file}:Sick": "cannot be made: KeyError: 'TOKEN'",
        f"{file}:Nobody": "unknown name 'Nobody'",
        "paper:http://h:1?patience=x": "timeout=, tries= and patience=",
        "binance": "write paper, paper:http://host:port",
        "no.such.module:Broker": "no module 'no'",
    }.items():
        with pytest.raises(BrokerError, match=error.replace("?", r"\?")):
            open_broker(text)


def test_the_verbs_of_the_command_line(tmp_path, capsys):
    import tradebench.cli.venue  # noqa: F401 - registers the verbs
    from tradebench.cli.shell import run_app

    file = tmp_path / "suite.py"
    file.write_text(
        "from tradebench.live.brokers import PaperBroker\n"
        "from tradebench.live.conformance import BrokerConformance\n"
        "from tradebench.live.venue import Venue\n"
        "class Good(BrokerConformance):\n"
        "    async def setup(self):\n"
        "        self.venue = Venue()\n"
        "    async def broker(self):\n"
        "        return PaperBroker(self.venue)\n"
        "class Bad(Good):\n"
        "    async def broker(self):\n"
        "        return PaperBroker()\n"
    )
    assert run_app(["check-broker", f"{file}:Good"]) == 0
    said = capsys.readouterr()
    assert "test_a_stranger_is_seen" in said.out and "write the hook" in said.out and " 0 broken" in said.err
    file.write_text(file.read_text().replace("PaperBroker()\n", "None\n"))
    assert run_app(["check-broker", f"{file}:Bad"]) == 1
    assert "FAILED" in capsys.readouterr().out


# -- speed


def test_the_venue_in_process_is_fast():
    "The best of several runs, since the machine may be busy: one order, 5,000 orders, a bar on which nothing happens"
    symbols = tuple(f"S{i}" for i in range(5000))

    async def main():
        paper = PaperBroker()
        await paper.open_account(spec("one", ("AAA",)))
        await paper.open_account(spec("many", symbols))
        await paper.advance("one", bar(1, [100.0]))
        single, quiet, bulk = [], [], []
        for i in range(300):
            order = Order(client_id("f", "one", "AAA", i), "one", "AAA", 1.0, 1.0 + i, 50.0)
            began = time.perf_counter()
            await paper.submit([order])
            single.append(time.perf_counter() - began)
        await paper.cancel([order.client_id])
        for i in range(300):
            batch = bar(2 + i, [100.0])
            began = time.perf_counter()
            await paper.advance("one", batch)
            quiet.append(time.perf_counter() - began)
        for i in range(4):
            await paper.advance("many", bar(1 + i, [100.0] * 5000))
            orders = [Order(client_id("f", "many", s, i), "many", s, 1.0, 1.0 + i) for s in symbols]
            began = time.perf_counter()
            await paper.submit(orders)
            bulk.append(time.perf_counter() - began)
        return np.median(single), np.median(quiet), min(bulk)

    one, quiet, bulk = (min(x) for x in zip(*(asyncio.run(main()) for _ in range(2)), strict=True))
    assert one < 30e-6 and quiet < 30e-6 and bulk < 60e-3, (one, quiet, bulk)
