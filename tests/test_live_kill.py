"""The kill switch against a real venue over the network and real processes: a trader that is well, hung or dead, and a venue that misbehaves."""

import asyncio
import contextlib
import io
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from servers import postgres  # noqa: F401 (a fixture)

from tradebench import instrument
from tradebench.backtest.costs import Costs
from tradebench.cli import limits, operate  # noqa: F401 - registers the verbs
from tradebench.cli.shell import run_app
from tradebench.live.actions import Scope, order_name
from tradebench.live.brokers import open_broker
from tradebench.live.commands import Operator
from tradebench.live.flatten import Flattener
from tradebench.live.journal import open_journal
from tradebench.live.places import Place, find_deployment, places, places_of
from tradebench.live.sqlite import SqliteJournal
from tradebench.live.types import AccountSpec, Caps, Fenced, JournalError, LiveError, Order, State, client_id

SYMBOLS = ("AAPL", "IBM")
PRICES = dict(AAPL=100.0, IBM=50.0)


class VenueProcess:
    "A paper venue in a process of its own, with a clock of its own; bars come from a thread of the test"

    def __init__(self, *faults, wall=True):
        more = [x for f in faults for x in ("--fault", f)]
        args = [
            sys.executable,
            "-m",
            "tradebench.live.venue_server",
            *(["--wall"] if wall else []),
            "--seed",
            "7",
            *more,
        ]
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
        self.url = json.loads(self.process.stdout.readline())["venue"]
        self.broker, self.stopped, self.ts = f"paper:{self.url}?timeout=1", threading.Event(), time.time_ns()
        self.lock, self.paused = threading.Lock(), False
        self.thread = threading.Thread(target=self._bars, daemon=True)

    def post(self, what, **body):
        request = urllib.request.Request(
            f"{self.url}/v1/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def bar(self):
        with self.lock:
            self.ts += 1_000_000_000
            self.post("market", ts=self.ts, bars={s: (p, p * 1.001, p * 0.999, p, 1e6) for s, p in PRICES.items()})

    def _bars(self):
        while not self.stopped.wait(0.03):
            if not self.paused:
                self.bar()

    def snapshot(self):
        async def main():
            b = open_broker(f"paper:{self.url}?tries=50")
            try:
                await b.connect()
                return await b.snapshot(0)
            finally:
                await b.close()

        return asyncio.run(main())

    def of(self, account):
        "(ids of working orders, {symbol: units}, fills) of an account"
        snap = self.snapshot()
        held = {s: q for (a, s), q in snap.positions.items() if a == account and q}
        return (
            [u.client_id for u in snap.orders if u.account == account],
            held,
            [f for f in snap.fills if f.account == account],
        )

    def open(self, *accounts):
        "Accounts that hold 100 AAPL and -50 IBM each, with an order of each kind at work"

        async def main():
            b = open_broker(self.broker)
            await b.connect()
            for name in accounts:
                spec = AccountSpec(
                    name, SYMBOLS, tuple(map(instrument, SYMBOLS)), 100_000.0, (Costs(), Costs()), {}, 252.0
                )
                await b.open_account(spec)
            self.bar()
            for name in accounts:
                await b.submit([order("AAPL", 100, 100, name, 1), order("IBM", -50, -50, name, 1)])
            self.bar()
            for name in accounts:
                acks = await b.submit(
                    [order("AAPL", 100, 200, name, 2, limit=80.0), order("IBM", 50, 0, name, 2, limit=40.0)]
                )
                assert [a.state for a in acks] == [State.WORKING] * 2
            await b.close()

        asyncio.run(main())
        if not self.thread.ident:
            self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopped.set()
        if self.thread.ident:
            self.thread.join()
        self.process.kill()
        self.process.wait()


def order(symbol, qty, to, account, bar, **more):
    name = client_id("demo", account, symbol, bar)
    return Order(name, account, symbol, float(qty), float(to), bar_ts=bar, **{"ref": PRICES[symbol]} | more)


async def enter(address, venue, *accounts, broker="", deployment="demo"):
    "The journal as an agent leaves it: rights, note, the orders that work, positions"
    async with open_journal(address) as j:
        epoch = await j.acquire(deployment, "agent", 0.0)
        rows = [
            dict(name=a, strategy=f"ideas.py:{a.capitalize()}Strategy", symbols=SYMBOLS, broker=broker or venue.broker)
            for a in accounts
        ]
        await j.set_meta(
            f"deployment:{deployment}", json.dumps(dict(id=deployment, accounts=rows, limits={"order_value": 1e6}))
        )
        tx = j.tx()
        for a in accounts:
            for o in (order("AAPL", 100, 200, a, 2, limit=80.0), order("IBM", 50, 0, a, 2, limit=40.0)):
                tx.order(o, 1, State.WORKING)
            tx.position(a, "AAPL", 100.0, 100.0, 100.0)
            tx.position(a, "IBM", -50.0, 50.0, 50.0)
        await j.commit(tx)
        return epoch


def tradebench(*args, code=0, process=False):
    "The command, in this process (in a thread: it brings its own loop) or in one of its own; what it printed"
    if process:
        run = "import sys; from tradebench.cli import operate, limits; from tradebench.cli.shell import run_app; sys.exit(run_app(sys.argv[1:]))"
        done = subprocess.run([sys.executable, "-c", run, *map(str, args)], capture_output=True, text=True, timeout=60)
        got, said = done.returncode, done.stdout + done.stderr
    else:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            got = run_app(list(map(str, args)))
        said = out.getvalue()
    assert got == code, (args, got, said)
    return said


@pytest.fixture(params=["sqlite", "postgres"])
def address(request, tmp_path):
    return str(tmp_path / "j.sqlite") if request.param == "sqlite" else request.getfixturevalue("postgres").database()


@pytest.fixture(scope="module")
def shared_venue():
    with VenueProcess() as made:
        yield made


@pytest.fixture
def venue(shared_venue):
    shared_venue.post("faults", clear=True)
    yield shared_venue
    shared_venue.post("faults", clear=True)


_accounts = itertools.count()


@pytest.fixture
def name():
    "An account that no other test has"
    return f"account{next(_accounts)}"


def flat(venue, account):
    orders, held, _ = venue.of(account)
    assert not orders and not held, (orders, held)


# -- the trader: a process that holds the right, sends an order every few milliseconds, and asks before each of them

TRADER = """
import asyncio, sys, time
from tradebench.live.brokers import open_broker
from tradebench.live.journal import open_journal
from tradebench.live.types import Fenced, Order, State, client_id
address, broker, name = sys.argv[1:]
async def main():
    b = open_broker(broker)
    await b.connect()
    async with open_journal(address) as j:
        epoch = await j.acquire("demo", "trader", 10.0)
        n = 2
        while True:
            n += 1
            o = Order(client_id("demo", name, "AAPL", n), name, "AAPL", 100.0 + n % 7, 200.0 + n % 7, 80.0, bar_ts=n, ref=100.0)
            tx = j.tx()
            tx.order(o, n)
            await j.commit(tx, epoch=epoch)
            await j.acheck("demo", epoch)
            (ack,) = await b.submit([o])
            tx = j.tx()
            tx.order_state(o.client_id, ack.state, ack.venue_id)
            j.append(tx)
            if n == 12:
                print("trading", flush=True)
            await asyncio.sleep(0.01)
try:
    asyncio.run(main())
except Fenced as e:
    print("fenced", flush=True)
    sys.exit(9)
"""


class Trader:
    def __init__(self, *args):
        self.process = subprocess.Popen([sys.executable, "-c", TRADER, *args], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "trading\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize(
    "store, how", [("sqlite", "well"), ("sqlite", "hung"), ("sqlite", "dead"), ("postgres", "hung")]
)
def test_flatten_from_another_process_by_the_journals_address(request, tmp_path, venue, name, store, how):
    address = str(tmp_path / "j.sqlite") if store == "sqlite" else request.getfixturevalue("postgres").database()
    venue.open(name)
    asyncio.run(enter(address, venue, name))
    with Trader(address, venue.broker, name) as trader:
        if how != "well":
            os.kill(trader.process.pid, signal.SIGSTOP if how == "hung" else signal.SIGKILL)
        begin = time.monotonic()
        said = tradebench("flatten", "-j", address, "--by", "ann", "--why", "a test", process=True)
        assert time.monotonic() - begin < 10
        assert "AAPL -100 at 98 filled" in said and "IBM +50 at 51 filled" in said
        flat(venue, name)
        if how == "hung":
            os.kill(trader.process.pid, signal.SIGCONT)
        if how != "dead":
            assert trader.process.wait(10) == 9, "the trader was not fenced"
            flat(venue, name)  # nothing came after

    async def look():
        async with open_journal(address) as j:
            c = await j.control("demo")
            assert (c.halted, c.latch, c.who, c.why) == (True, "flatten", "ann", "a test")
            k, *more = await j.commands()
            assert (k.kind, k.state, k.who) == ("flatten", "done", "ann")
            assert [c.kind for c in more] == ["adopt"], "an agent that comes back is told of these orders"
            ours = {r.symbol: r for r in await j.orders(states=[State.FILLED]) if r.leg == 250}
            assert {s: (r.qty, r.filled, r.reduce) for s, r in ours.items()} == {
                "AAPL": (-100, -100, True),
                "IBM": (50, 50, True),
            }
            assert ours["AAPL"].client_id == order_name("demo", name, "AAPL", k.id)
            assert any(e.kind == "command" for e in await j.events())

    asyncio.run(look())


def test_a_latch_is_lifted_by_a_named_person_with_a_reason(address, venue, name):
    asyncio.run(enter(address, None, name, broker="paper"))
    tradebench("halt", "-j", address, "--by", "ann", "--why", "odd prices")
    assert "HALTED (halt) by ann: odd prices" in tradebench("status", "-j", address)
    tradebench("resume", "-j", address, "--why", "no name", code=2)
    tradebench("resume", "-j", address, "--by", "ann", code=2)
    assert "HALTED" in tradebench("status", "-j", address)
    tradebench("resume", "-j", address, "--by", "bob", "--why", "all well")
    assert "HALTED" not in tradebench("status", "-j", address)


# -- a venue that misbehaves

FAULTS = {
    "answers lost": ["lost_ack:submit=0.5", "lost_ack:cancel=0.5"],
    "done and not said": [
        "drop_after:submit=0.5",
        "drop_after:cancel=0.5",
        "drop_after:find=0.3",
        "drop_after:snapshot=0.3",
    ],
    "not done": ["drop_before:submit=0.5", "drop_before:cancel=0.5", "drop_before:find=0.3"],
    "half of a list": ["half:submit=0.5", "half:cancel=0.5"],
    "refused for no reason": ["reject:submit=0.4"],
    "too many requests": ["rate=20"],
}


@pytest.mark.parametrize("kind", FAULTS)
def test_flatten_ends_flat_and_never_beyond_with_a_faulty_venue(tmp_path, venue, name, kind):
    address = str(tmp_path / "j.sqlite")
    venue.open(name)
    asyncio.run(enter(address, venue, name))
    venue.post("faults", **{n: float(v) for n, _, v in (f.partition("=") for f in FAULTS[kind])})

    async def main():
        async with open_journal(address) as j:
            here = [p._replace(broker=p.broker.replace("timeout=1", "timeout=0.2")) for p in await places(j, "demo")]
            for _ in range(6):  # inside one command everything is tried for a while; an operator may give it again
                answer = await Operator(j, "demo", here, who="ann", wait=0.0, patience=6.0).do("flatten", collar=0.05)
                if answer.done:
                    return answer
        raise AssertionError(answer)

    asyncio.run(main())
    venue.post("faults", clear=True)
    flat(venue, name)
    for symbol, held in dict(AAPL=100.0, IBM=-50.0).items():
        closing = [f.qty for f in venue.of(name)[2] if f.symbol == symbol][1:]
        assert sum(closing) == -held and all(q * held < 0 for q in closing), (symbol, closing)


def test_same_command_carried_out_by_two_at_once_sends_each_order_once(tmp_path, venue, name):
    venue.open(name)
    address = str(tmp_path / "j.sqlite")
    asyncio.run(enter(address, venue, name))

    async def one():
        async with open_journal(address) as j:
            b = open_broker(venue.broker)
            await b.connect()
            try:
                return await Flattener(b, j, "demo", "c1", Scope(frozenset({name})), patience=8).flatten()
            finally:
                await b.close()

    async def main():
        return await asyncio.gather(one(), one(), one())

    outcomes = asyncio.run(main())
    flat(venue, name)
    ours = [f for f in venue.of(name)[2] if f.client_id == order_name("demo", name, "AAPL", "c1")]
    assert sum(f.qty for f in ours) == -100 and any(o.clean for o in outcomes), outcomes


def test_operator_who_dies_on_the_way_and_comes_again(tmp_path, venue, name):
    "Killed after the order went out, before anything was noted: the same command again asks first and adds nothing"
    address = str(tmp_path / "j.sqlite")
    venue.open(name)
    asyncio.run(enter(address, venue, name))
    venue.paused, names = True, {order_name("demo", name, s, "c1") for s in SYMBOLS}

    async def main(end):
        async with open_journal(address) as j:
            b = open_broker(venue.broker)
            await b.connect()
            try:
                hand = Flattener(b, j, "demo", "c1", Scope(frozenset({name})), patience=1.0)
                if end:
                    hand._note = _die
                return await hand.flatten()
            finally:
                await b.close()

    try:
        with pytest.raises(RuntimeError):
            asyncio.run(main(True))
        assert set(venue.of(name)[0]) == names
        left = asyncio.run(main(False))
        # its own orders were cancelled first, as every order is: what is left is told, a new command closes it
        assert (
            not left.clean
            and names <= set(left.cancelled)
            and left.left == {f"{name} AAPL": 100.0, f"{name} IBM": -50.0}
        )
    finally:
        venue.paused = False
    assert "filled" in tradebench("flatten", "-j", address, "--by", "ann")
    flat(venue, name)


async def _die(*_):
    raise RuntimeError("killed")


# -- scopes, single orders, waiting for the agent


def test_latch_of_a_strategy_or_symbol_leaves_the_rest_alone(tmp_path, venue, name):
    dip, trend = f"{name}a", f"{name}b"
    venue.open(dip, trend)
    address = str(tmp_path / "j.sqlite")
    asyncio.run(enter(address, venue, dip, trend))
    tradebench("flatten", "-j", address, "--strategy", f"{dip}_strategy", "--by", "ann")
    flat(venue, dip)
    orders, held, _ = venue.of(trend)
    assert held == dict(AAPL=100, IBM=-50) and len(orders) == 2
    tradebench("cancel-all", "-j", address, "--symbol", "IBM", "--by", "ann")
    assert venue.of(trend)[0] == [client_id("demo", trend, "AAPL", 2)]

    async def look():
        async with open_journal(address) as j:
            assert not (await j.control("demo")).halted
            assert {(r.scope, r.name, r.value) for r in await j.limits()} == {
                (f"account:{dip}", "restricted", 1),
                ("instrument:IBM", "restricted", 1),
            }
            return (await j.control("demo")).epoch

    assert asyncio.run(look()) > 1, "a hung agent could wake up with the old limits"
    assert f"restricted: account:{dip} by ann" in tradebench("status", "-j", address)
    tradebench("resume", "-j", address, "--strategy", dip, "--by", "ann", "--why", "well")
    tradebench("resume", "-j", address, "--symbol", "IBM", "--by", "ann", "--why", "well")
    assert "restricted" not in tradebench("status", "-j", address)
    for bad in (["--strategy", dip, "--symbol", "IBM"], ["--strategy", "dipp"], ["--deployment", "other"]):
        said = tradebench("halt", "-j", address, *bad, code=2)
        assert said.count("\n") == 1, said


def test_close_one_symbol_and_cancel_one_order_without_a_latch(tmp_path, venue, name):
    venue.open(name)
    address = str(tmp_path / "j.sqlite")
    asyncio.run(enter(address, venue, name))
    assert "filled" in tradebench("close", "IBM", "-j", address, "--by", "ann")
    orders, held, _ = venue.of(name)
    assert held == dict(AAPL=100) and len(orders) == 1
    assert "1 orders gone" in tradebench("cancel", orders[0], "-j", address, "--by", "ann")
    assert not venue.of(name)[0]
    found = json.loads(tradebench("status", "-j", address, "--json"))
    assert (
        not found["halted"]
        and not found["restricted"]
        and not found["orders"]
        and [c["state"] for c in found["commands"]] == ["done"] * 2
    )


def test_halt_stops_sending_and_touches_nothing(tmp_path, venue, name):
    venue.open(name)
    address = str(tmp_path / "j.sqlite")
    asyncio.run(enter(address, venue, name))
    with Trader(address, venue.broker, name) as trader:
        tradebench("halt", "-j", address, "--why", "odd prices")
        assert trader.process.wait(10) == 9
    orders, held, _ = venue.of(name)
    assert held == dict(AAPL=100, IBM=-50) and len(orders) == 2


def test_collar_is_not_left(tmp_path, venue, name):
    "A price that has run away: the order stands at the collar, what is left is said, and the exit code tells"
    address = str(tmp_path / "j.sqlite")
    venue.open(name)
    asyncio.run(enter(address, venue, name))

    async def main():
        async with open_journal(address) as j:
            operator = Operator(j, "demo", await places(j, "demo"), who="ann", wait=0.0, patience=1.5)
            return await operator.do("flatten", collar=0.02)

    PRICES["AAPL"] = 90.0
    try:
        time.sleep(0.1)
        answer = asyncio.run(main())
        assert not answer.done and answer.outcome.left == {f"{name} AAPL": 100.0} and len(answer.outcome.working) == 1
        assert venue.of(name)[1] == dict(AAPL=100)
    finally:
        PRICES["AAPL"] = 100.0
    time.sleep(0.2)
    flat(venue, name)


def test_venue_inside_the_agents_process_waits_for_the_agent(tmp_path):
    address = str(tmp_path / "j.sqlite")
    asyncio.run(enter(address, None, "main", broker="paper"))
    assert "the agent's process" in tradebench("flatten", "-j", address, "--by", "ann", code=1)
    status = tradebench("status", "-j", address)
    assert "HALTED (flatten)" in status and "(flatten of ann) is new" in status


def test_without_a_journal_the_venue_is_reached_by_its_address(tmp_path, venue, name):
    venue.open(name)
    where = ["-j", tmp_path / "gone.sqlite", "-d", "demo", "--broker", venue.broker, "--account", name, "--by", "ann"]
    tradebench("cancel-all", *where, code=2)
    assert len(venue.of(name)[0]) == 2
    assert "filled" in tradebench("flatten", *where, "--force")
    flat(venue, name)


def test_venue_that_cannot_be_reached_is_said_and_the_latch_holds(tmp_path):
    address = str(tmp_path / "j.sqlite")
    asyncio.run(enter(address, None, "main", broker="paper:http://127.0.0.1:9?timeout=0.2"))

    async def main():
        async with open_journal(address) as j:
            answer = await Operator(j, "demo", await places(j, "demo"), who="ann", wait=0.0, patience=1.0).do("flatten")
            assert not answer.done and "venue" in answer.text and (await j.control("demo")).halted
            with pytest.raises(Fenced):
                await j.acheck("demo", 1)

    asyncio.run(main())


# -- a broker with one account for everything


class OneAccount:
    "A venue that knows no sub-accounts, in a few lines"

    caps = Caps()

    def __init__(self, positions, fills=()):
        self.held, self.orders, self.fills = dict(positions), [], list(fills)

    async def snapshot(self, cursor):
        from tradebench.live.types import Snapshot

        return Snapshot(1, 0, [], self.fills, {("", s): q for s, q in self.held.items()}, 1)

    async def find(self, names):
        from tradebench.live.types import Update

        known = {o.client_id: o for o in self.orders}
        return [
            Update(1, "v", n, "", known[n].symbol, State.FILLED, known[n].qty, 0.0) if n in known else None
            for n in names
        ]

    async def submit(self, orders):
        from tradebench.live.types import Ack

        for o in orders:
            self.orders.append(o)
            self.held[o.symbol] += o.qty
        return [Ack(o.client_id, State.FILLED, "v") for o in orders]


def test_shared_account_only_what_is_ours_is_closed(tmp_path):
    from tradebench.live.types import Fill

    async def main():
        async with open_journal(str(tmp_path / "j.sqlite")) as j:
            await j.acquire("demo", "agent", 0.0)
            tx = j.tx()
            mine = Order("mine", "main", "AAPL", 20.0, 20.0)
            tx.order(mine, 1, State.WORKING)
            for a, s, q in (
                ("main", "AAPL", 30.0),
                ("other", "AAPL", 5.0),
                ("main", "IBM", -10.0),
                ("main", "MSFT", 7.0),
            ):
                tx.position(a, s, q, 100.0, 100.0)
            await j.commit(tx)
            missed = Fill(1, "f1", "v", "mine", "", "AAPL", 20.0, 100.0)  # the agent died before it heard of it
            b = OneAccount(dict(AAPL=60.0, IBM=-4.0, MSFT=-3.0), [missed])
            done = await Flattener(
                b, j, "demo", "c1", Scope(frozenset({"main"})), patience=3, ticks=dict(AAPL=0.01, IBM=0.01)
            ).flatten()
            assert {(o.symbol, o.qty) for o in b.orders} == {("AAPL", -50.0), ("IBM", 4.0)} and not done.problems
            assert b.held == dict(AAPL=10.0, IBM=0.0, MSFT=-3.0)  # a stranger's ten stay, and nothing of ours is left

    asyncio.run(main())


def test_exit_of_the_venues_own_is_left_to_it_unless_the_position_goes(tmp_path):
    from tradebench.live.types import Ack, Snapshot, Update
    from tradebench.strategies.strategy import STOP

    class Protecting(OneAccount):
        caps = Caps(accounts=True, protection=True)
        exit = [
            Update(1, "7", "", "main", "AAPL", State.WORKING, reason=STOP),
            Update(1, "8", "", "main", "AAPL", State.WORKING, reason=0),
        ]
        asked = ()

        async def snapshot(self, cursor):
            return Snapshot(1, 0, self.exit, [], {("main", s): q for s, q in self.held.items()}, 1)

        async def cancel(self, names):
            self.asked, self.exit = names, self.exit[1:]
            return [Ack(n, State.CANCELLED) for n in names]

    async def main():
        b = Protecting(dict(AAPL=60.0))
        how = dict(prices=dict(AAPL=100.0), ticks=dict(AAPL=0.01), force=True, patience=3)
        only = await Flattener(b, None, "demo", "c1", Scope(frozenset({"main"})), **how).cancel()
        assert not b.asked and only.clean
        done = await Flattener(b, None, "demo", "c2", Scope(frozenset({"main"})), **how).flatten()
        assert b.asked == ["#7"] and done.clean and b.held == dict(AAPL=0.0)

    asyncio.run(main())


def test_notes_of_deployments():
    found = places_of(
        dict(
            broker="paper:http://v:1", accounts=["a", dict(name="b", broker="paper", instruments={"X": {"tick": 0.5}})]
        )
    )
    assert [(p.account, p.broker, p.ticks) for p in found] == [
        ("a", "paper:http://v:1", {}),
        ("b", "paper", {"X": 0.5}),
    ]


# -- limits


def test_limits_are_set_shown_and_kept(address):
    asyncio.run(enter(address, None, "main", broker="paper"))
    where = ["-j", address]
    say = ["--by", "ann", "--why", "first week", *where]
    assert "version 1" in tradebench("limits", "set", "order_value", "5e4", *say)
    assert "version 2" in tradebench("limits", "set", "restricted", "1", "--scope", "symbol:AAPL", *say)
    shown = " ".join(tradebench("limits", "show", *where).split())
    assert "50,000 version 1 by ann: first week" in shown and "instrument:AAPL" in shown
    assert "version 3" in tradebench("limits", "set", "order_value", "default", *say)
    assert "1,000,000 deployment file" in " ".join(tradebench("limits", "show", *where).split())
    history = tradebench("limits", "history", *where)
    assert "taken back" in history and history.count("first week") == 3
    for bad in (["order_valu", "1"], ["collar", "wide"], ["message_rate", "1", "--scope", "account:a"]):
        assert tradebench("limits", "set", *bad, *say, code=2).count("\n") == 1
    tradebench("limits", "set", "collar", "0.1", "--by", "ann", *where, code=2)


def test_symbol_that_nobody_trades_is_a_mistake(tmp_path):
    async def main():
        async with open_journal(str(tmp_path / "j.sqlite")) as j:
            o = Operator(j, "d", [Place("main", symbols=("AAPL", "IBM"), broker="paper")], who="ann", why="x", wait=0.0)
            for kind in ("halt", "close", "flatten"):
                with pytest.raises(LiveError, match="unknown symbol 'APPL'; did you mean AAPL"):
                    await o.do(kind, symbol="APPL")
            with pytest.raises(LiveError, match="unknown symbol"):
                await o.resume(symbol="APPL")
            assert not await j.commands() and not await j.limits()
            assert (await o.do("halt", symbol="AAPL")).done is not None

    asyncio.run(main())


def test_nothing_to_act_on_is_one_line(tmp_path):
    assert "which journal" in tradebench("flatten", code=2)
    assert tradebench("flatten", "-j", tmp_path / "none.sqlite", code=2).count("\n") == 1

    async def main():
        async with open_journal(str(tmp_path / "j.sqlite")) as j:
            with pytest.raises(LiveError, match="no deployment"):
                await find_deployment(j)
            await j.acquire("one", "x", 0.0)
            with pytest.raises(LiveError, match="--broker and --account"):
                await places(j, await find_deployment(j))
            await j.acquire("two", "x", 0.0)
            with pytest.raises(LiveError, match="one or two"):
                await find_deployment(j)
            with pytest.raises(LiveError, match="author"):
                Operator(j, "one", [], who=" ")

    asyncio.run(main())


def test_journal_that_cannot_be_written_stops_reductions_unless_forced(tmp_path, venue, name):
    venue.open(name)
    address = str(tmp_path / "j.sqlite")
    asyncio.run(enter(address, venue, name))

    async def main(force):
        async with open_journal(address) as j:
            here = await places(j, "demo")

            async def broken(*_, **__):
                raise JournalError("disk full")

            j.halt = j._write = j.commit = broken  # not even the latch
            return await Operator(j, "demo", here, who="ann", wait=0.0, patience=5.0, force=force).do("flatten")

    with pytest.raises(JournalError, match="--force"):
        asyncio.run(main(False))
    assert len(venue.of(name)[0]) == 2
    answer = asyncio.run(main(True))
    assert "disk full" in answer.text and not answer.done
    flat(venue, name)


def test_process_that_was_stopped_while_it_wrote_does_not_keep_the_kill_from_the_venue(
    tmp_path, venue, name, monkeypatch
):
    monkeypatch.setattr(SqliteJournal, "WAIT", 0.5)
    venue.open(name)
    address = str(tmp_path / "j.sqlite")
    asyncio.run(enter(address, venue, name))
    db = sqlite3.connect(address, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    try:
        begin = time.monotonic()
        said = tradebench("flatten", "-j", address, "--by", "ann", "--wait", "0", code=1)
        assert time.monotonic() - begin < 20
        assert "not in the journal" in said and "AAPL -100 at 98 filled" in said
        flat(venue, name)
    finally:
        db.execute("ROLLBACK")
        db.close()
    said = json.loads(tradebench("status", "-j", address, "--json"))
    assert said["halted"], "the latch was durable beside the journal"
