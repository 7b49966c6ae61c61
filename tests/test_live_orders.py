"""The life of orders, whatever a venue does: a random walk through decisions, faults, strangers, venue restarts and kills of the agent.

Two venues: the paper venue on its own time, with sub-accounts and protection; and a broker with one account for everything, which knows
quantities and the word cancel. The agent is the real one, its journal a real file; its tasks are stepped by hand, so that a run repeats.
"""

import asyncio
import math
import shutil
import tempfile
from collections import deque
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from live_world import World, nan

from tradebench.live import brokers, feeds
from tradebench.live.batches import on_batch
from tradebench.live.brokers import PaperBroker
from tradebench.live.durable import flush, snapshot
from tradebench.live.example_broker import ToyBroker, ToyExchange, fill_of
from tradebench.live.faults import FaultyBroker, Faults
from tradebench.live.hear import hear, route
from tradebench.live.journal import open_journal
from tradebench.live.reconcile import reconcile, resolve
from tradebench.live.sqlite import SqliteJournal
from tradebench.live.types import TERMINAL, Fill, State
from tradebench.live.venue import Venue

HERE = Path(__file__).parent
SYMBOLS = ("AAA", "BBB")


class Recorder:
    "A broker as the agent sees it, with a note of what was sent under which name"

    def __init__(self, broker, sent):
        self.inner, self.sent = broker, sent

    @property
    def caps(self):
        return self.inner.caps

    async def submit(self, orders):
        for o in orders:
            before = self.sent.setdefault(o.client_id, o)
            assert same(before, o), f"{o.client_id} was sent with another content: {before}, then {o}"
        return await self.inner.submit(orders)

    async def connect(self):
        return await self.inner.connect()

    async def cancel(self, ids):
        return await self.inner.cancel(ids)

    async def find(self, ids):
        return await self.inner.find(ids)

    async def snapshot(self, cursor):
        return await self.inner.snapshot(cursor)

    async def open_account(self, spec):
        return await self.inner.open_account(spec)

    async def protect(self, *what):
        return await self.inner.protect(*what)

    def reports(self):
        return self.inner.reports()

    async def close(self):
        pass


def same(a, b):
    "The same order; each request has an expiry of its own"
    a, b = a._replace(valid_until=0), b._replace(valid_until=0)
    return all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


class Life(RuleBasedStateMachine):
    "What both venues have in common"

    accounts: dict = {}
    text = "tests:venue"

    @initialize(seed=st.integers(0, 9999))
    def begin(self, seed):
        self.seed, self.loop, self.folder = seed, asyncio.new_event_loop(), Path(tempfile.mkdtemp(prefix="orders-"))
        self.rng, self.sent, self.ended, self.pending, self.alerts = Random(seed), {}, {}, deque(), []
        self.patched = brokers.open_broker, feeds.open_feed, SqliteJournal.SYNC
        SqliteJournal.SYNC = "OFF"  # no power is cut here
        rows = dict(accounts=tuple(self.accounts), strategy=self.accounts)
        self.world = World(self.folder, SYMBOLS, **rows)
        self.world.deployment = self.world.deployment.__class__(**{
            **self.world.deployment.__dict__,
            "accounts": tuple(type(a)(**{**a.__dict__, "broker": self.text}) for a in self.world.deployment.accounts),
        })  # fmt: skip
        self.world.ts = self.world.now = (
            1_900_000_020 * 10**9
        )  # fixed, so that names repeat; ahead of the lease, which has the real time
        self.open_venue()
        brokers.open_broker = lambda text, journal=None: Recorder(self.broker(), self.sent)
        feeds.open_feed = lambda text, **kw: self.world.feed
        self.agent = None
        self.kill()
        self.bar(move=0.0, wishes=(nan, nan), limit=False, stop=False, expire=0)

    def run(self, work):
        return self.loop.run_until_complete(work)

    @property
    def gate(self):
        return self.agent.gates[self.text]

    def mine(self):
        return list(self.agent.accounts.values())

    # -- what the agent does
    @rule(move=st.floats(-0.04, 0.04), wishes=st.tuples(*[st.sampled_from([nan, -1.0, -0.5, 0.0, 0.5, 1.0])] * 2),
          limit=st.booleans(), stop=st.booleans(), expire=st.sampled_from([0, 0, 1, 2]))  # fmt: skip
    def bar(self, move, wishes, limit, stop, expire):
        "The market moves, and the bar is decided"
        w = self.world
        w.prices = {s: round(p * (1 + move * k), 1) for k, (s, p) in zip((1, -1), w.prices.items(), strict=True)}
        more = dict(target=dict(zip(SYMBOLS, wishes, strict=True)))
        if limit:
            more |= dict(limit={s: math.floor(p * 1.98) / 2 for s, p in w.prices.items()}, expire=float(expire))
        if stop:
            more["stop"] = {s: math.floor(p * 1.9) / 2 for s, p in w.prices.items()}
        batch = w.batch(**more)
        w.now = batch.ts + 10**9
        self.play({s: tuple(batch.raw[j].tolist()) for j, s in enumerate(SYMBOLS)})
        self.run(on_batch(self.agent, self.agent.streams[0], batch))
        w.feed.batches.append(batch)

    @rule(n=st.integers(1, 6))
    def listen(self, n):
        "Some of what the stream of reports says arrives, with gaps, copies and disorder"
        for _ in range(min(n, len(self.pending))):
            r = self.pending.popleft()
            chance = self.rng.random()
            if chance < 0.15:
                continue
            if chance < 0.3 and self.pending:
                self.pending.insert(self.rng.randrange(len(self.pending) + 1), r)
                continue
            self.take(r)
            if chance > 0.85:
                self.take(r)
        self.run(flush(self.agent))

    def take(self, r):
        if isinstance(r, Fill):
            route(self.agent, self.gate, self.mine(), [r])
        else:
            for a in self.mine():
                if a.name == r.account or r.client_id in a.orders or (r.epoch, r.venue_id) in a.by_venue:
                    hear(self.agent, a, [r])

    @rule()
    def ask(self):
        self.run(resolve(self.agent, self.gate, self.mine(), patience=0.0))

    @rule()
    def compare(self):
        self.run(reconcile(self.agent, self.gate, self.mine()))

    @rule(saved=st.booleans())
    def kill(self, saved=False):
        "The agent dies here and now; another one starts on its journal"
        if self.agent is not None:
            if saved:
                self.run(snapshot(self.agent))
            self.run(self.world.journal.close())  # what was appended before is on disk, as the writer would have it
        calm = self.calm()
        self.world.journal = open_journal(self.world.path)
        self.agent = self.world.agent = self.world.make()
        self.agent.on_incident = self.alerts.append
        self.agent.epoch = 0
        self.run(self.agent._start())
        self.storm(calm)

    # -- what others do
    @rule(j=st.integers(0, 1), qty=st.sampled_from([-7.0, -3.0, 2.0, 5.0]))
    def stranger(self, j, qty):
        self.foreign(SYMBOLS[j], qty)

    @rule()
    def hand(self):
        "A person cancels one of our orders at the venue"
        if working := self.working():
            self.withdraw(self.rng.choice(sorted(working)))

    @rule(reuse=st.booleans())
    def reboot(self, reuse):
        self.restart(reuse)

    # -- what must hold
    @invariant()
    def an_ended_order_stays_ended(self):
        if getattr(self, "agent", None) is None:
            return
        for a in self.mine():
            for name, t in a.orders.items():
                if name in self.ended:
                    assert t.state is self.ended[name], f"{name}: {self.ended[name].name}, now {t.state.name}"
                elif t.state in TERMINAL:
                    self.ended[name] = t.state
                    self.word(name, t)

    def word(self, name, t):
        "An order has just ended: by the venue's word, or it never was there, or a control blocked it"
        truth = self.truth(name)
        if t.state is State.BLOCKED:
            assert truth is None
        elif truth is None:
            assert t.state is State.CANCELLED, f"{name} is {t.state.name}, and the venue has never seen it"
        else:
            assert truth is t.state or self.excused(t), f"{name} is {t.state.name}, the venue says {truth.name}"

    def excused(self, t):
        return 100 <= t.order.leg < 200  # an exit of the venue's own making is known by its number only

    @invariant()
    def what_may_trade_is_counted(self):
        if getattr(self, "agent", None) is None:
            return
        for name, rest in self.working().items():
            found = [a for a in self.mine() if name in a.live]
            assert found, f"{name} works at the venue, and we think it has ended"
            symbol = found[0].live[name].order.symbol
            buys, sells = found[0].open_quantities()[symbol]
            assert rest is None or sells - 1e-9 <= rest <= buys + 1e-9, (
                f"{name}: {rest} at the venue, {sells} to {buys} counted"
            )

    @rule()
    def peace(self):
        "Nothing goes wrong for a while: everything must agree, and stay so"
        calm = self.calm()
        for _ in range(3):
            self.pending.clear()
            self.run(resolve(self.agent, self.gate, self.mine(), patience=0.2))
            assert self.run(reconcile(self.agent, self.gate, self.mine())) is not None
        self.agree()
        before = self.everything()
        self.run(reconcile(self.agent, self.gate, self.mine()))
        self.run(resolve(self.agent, self.gate, self.mine(), patience=0.0))
        assert self.everything() == before, "a second look changed something"
        for a in self.mine():
            assert not a.waiting, a.waiting
            assert all(t.state is State.WORKING for t in a.live.values()), list(a.live.values())
            assert set(a.live) == {n for n in self.working() if n in a.orders} | {
                n for n, t in a.live.items() if self.excused(t)
            }
        self.protected()
        self.storm(calm)

    def everything(self):
        return [a.state() for a in self.mine()], dict(self.agent.doubts.open), dict(self.agent.foreign)

    def teardown(self):
        if getattr(self, "agent", None) is None:
            return
        try:
            self.peace()
            self.run(flush(self.agent))
            faults = [f for f in self.run(self.world.journal.findings()) if f.severity == "fault"]
            assert not faults, faults
        finally:
            brokers.open_broker, feeds.open_feed, SqliteJournal.SYNC = self.patched
            self.run(self.world.journal.close())
            self.run(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.agent = None


# -- the paper venue on its own time


CHANCES = "drop_before drop_after lost_ack half rate_limit".split()


class PaperLife(Life):
    accounts = dict(a="tradebench.strategies.follow:Follow", b=f"{HERE}/strategies_for_live.py:Opposite")

    def open_venue(self):
        self.venue, self.faults = Venue(bar_time=False), Faults(self.seed, split=0.3)
        self.venue.listeners.append(self.pending.extend)
        self.venue.faults = self.faults

    def broker(self):
        return FaultyBroker(PaperBroker(self.venue), self.faults)

    @rule(
        kind=st.sampled_from(CHANCES),
        request=st.sampled_from(["submit", "cancel", "find", "snapshot", "protect"]),
        chance=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def fault(self, kind, request, chance):
        self.faults.set(**{f"{kind}:{request}": chance})

    @rule()
    def refuse(self):
        self.faults.once("reject:submit")

    def calm(self):
        chances = dict(self.faults.chances)
        self.faults.chances, self.faults.armed = dict(split=0.3), []
        return chances

    def storm(self, chances):
        self.faults.chances = chances

    def play(self, bars):
        self.venue.market(self.world.ts, bars)

    def foreign(self, symbol, qty):
        self.venue.foreign_fill(self.rng.choice("ab"), symbol, qty, self.world.prices[symbol])

    def restart(self, reuse):
        self.venue.restart(reuse)
        self.pending.clear()

    def working(self):
        return {
            e.order.client_id: None for a in self.venue.accounts.values() for e in a.rows.values() if e.order.client_id
        }

    def withdraw(self, name):
        self.venue.cancel([name])

    def truth(self, name):
        e = self.venue.orders.get(name)
        return None if e is None else e.state

    def agree(self):
        ours = {(a.name, s): q for a in self.mine() for s, q in a.book.positions().items()}
        theirs = {k: q for k, q in self.venue.positions().items() if k[0]}
        assert ours.keys() == theirs.keys() and all(abs(ours[k] - theirs[k]) < 1e-9 for k in ours), (ours, theirs)

    def protected(self):
        held = self.venue.snapshot(0).protections
        for a in self.mine():
            for symbol in a.book.positions():
                s = a.book.slots[0, a.book.column[symbol]]
                asked = any(s[f] == s[f] for f in ("p_stop", "p_take", "p_trail"))
                assert not asked or (a.name, symbol) in held or (a.name, symbol) in self.gate.bare, (
                    f"{a.name} {symbol} is bare, and nobody says so"
                )


# -- a broker that knows quantities


class Shaky(ToyExchange):
    "Requests that are not answered, not done, or too many"

    def __init__(self, rng):
        super().__init__()
        self.rng, self.chance = rng, 0.0

    def call(self, method, *args):
        if self.rng.random() < self.chance:
            self.mood = self.rng.choice(["mute", "busy", "lost"])
        if self.mood == "lost":
            self.mood = ""
            raise ConnectionError("the connection broke before it was sent")
        return super().call(method, *args)


class PlainLife(Life):
    accounts = dict(a="tradebench.strategies.follow:Follow", b=f"{HERE}/strategies_for_live.py:Opposite")

    def open_venue(self):
        self.exchange = Shaky(self.rng)
        for s, p in self.world.prices.items():
            self.exchange.set_price(s, p)

    def broker(self):
        return ToyBroker(self.exchange)

    @rule(chance=st.sampled_from([0.0, 0.2, 0.6]))
    def fault(self, chance):
        self.exchange.chance = chance

    def calm(self):
        chance, self.exchange.chance = self.exchange.chance, 0.0
        return chance

    def storm(self, chance):
        self.exchange.chance = chance

    def play(self, bars):
        before = len(self.exchange.trades)
        for symbol, (price, *_) in bars.items():
            self.exchange.set_price(symbol, price)
        self.pending.extend(fill_of(t) for t in self.exchange.trades[before:])

    def foreign(self, symbol, qty):
        before = len(self.exchange.trades)
        self.exchange.trade("screen", "", symbol, qty, self.world.prices[symbol])
        self.pending.extend(fill_of(t) for t in self.exchange.trades[before:])

    def restart(self, reuse):
        self.exchange.boot += 1
        self.pending.clear()

    def working(self):
        return {t["tag"]: t["amount"] for t in self.exchange.tickets if t["status"] == "open"}

    def withdraw(self, name):
        next(t for t in self.exchange.tickets if t["tag"] == name and t["status"] == "open")["status"] = "withdrawn"

    def truth(self, name):
        found = [t for t in self.exchange.tickets if t["tag"] == name]
        assert len(found) <= 1, f"{name} was placed twice"
        return (
            {"open": State.WORKING, "done": State.FILLED, "withdrawn": State.CANCELLED}[found[0]["status"]]
            if found
            else None
        )

    def agree(self):
        for s in SYMBOLS:
            ours = sum(a.book.positions().get(s, 0.0) for a in self.mine()) + self.agent.foreign.get(self.text, {}).get(
                s, 0.0
            )
            assert abs(ours - self.exchange.holdings.get(s, 0.0)) < 1e-9, (s, ours, self.exchange.holdings)

    def protected(self):
        for a in self.mine():
            for symbol in a.unprotected():
                raise AssertionError(f"{a.name} {symbol}: its stop is lost")


def walk(machine, examples, steps):
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=steps, suppress_health_check=checks)
    )


@pytest.mark.parametrize("machine", [PaperLife, PlainLife])
def test_orders_live_and_end_as_they_should(machine):
    walk(machine, 40, 40)


@pytest.mark.slow
@pytest.mark.parametrize("machine", [PaperLife, PlainLife])
def test_orders_live_and_end_as_they_should_for_long(machine):
    walk(machine, 300, 60)
