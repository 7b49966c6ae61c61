"""An account live, bar by bar through the paper venue, against the backtest on random cases: the same bytes.

The cases are those of the engine's own test (baskets, holes, splits, dividends, delistings, limits, breakers, participation, flips, stops
inside the bar). A failure prints the seed; `python tests/test_live_account.py SEED` runs it again.
"""

import random
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_engine_equals_reference import arguments_for, random_case

from tradebench.backtest.simulation import simulation
from tradebench.data.actions import forward_factor
from tradebench.live.account import SubAccount
from tradebench.live.book import Book
from tradebench.live.recovery import apply_batch, batch_event, plain, report_of
from tradebench.live.types import AccountSpec, Batch, Fill, State, Update
from tradebench.live.venue import Venue

STATE_OF_STATUS = (State.WORKING, State.FILLED, State.CANCELLED, State.EXPIRED, State.REFUSED, State.CUT)


class RowsOf:
    "Rows of a Simulation's bars, as LiveRows gives them one after the other (which has tests of its own)"

    def __init__(self, sim):
        self.sim, self.t, self.events = sim, -1, ()

    def push(self, batch):
        self.t += 1
        b, t = self.sim.bars, self.t
        self.events = batch.events
        extras = self.sim.extras[t] if self.sim.extras.size else None
        return SimpleNamespace(seen=b.seen[t], factor=b.factor[t], flags=b.flags[t], clock=b.clock[t], extras=extras)

    def state(self):
        return self.t

    def restore(self, t):
        self.t = t


def batches_of(bars):
    events = {}
    for t, j, kind, value in bars.events.tolist():
        events.setdefault(t, []).append((j, kind, value))
    for t in range(len(bars)):
        yield Batch(int(bars.ts[t]), bars.raw[t], bars.flags[t], tuple(events.get(t, ())))


def account_of(sim):
    return SubAccount("test", Book.of(sim, "a"), RowsOf(sim))


def spec_of(sim):
    b = sim.bars
    return AccountSpec(
        "a",
        b.symbols,
        b.instruments,
        sim.initial,
        tuple(sim.costs),
        asdict(sim.options),
        b.periods_per_year,
        sim.tracked,
        sim.charged,
    )


def play(sim, restart_at=()):
    "The account and what its journal would hold after all bars; at the rows `restart_at` it is made again from its snapshot"
    account, venue, bodies = account_of(sim), Venue(), []
    venue.open_account(spec_of(sim))
    for t, batch in enumerate(batches_of(sim.bars)):
        if t in restart_at:
            saved, account = account.state(), account_of(sim)
            account.restore(saved)
        account.begin(batch)
        reports = venue.advance("a", account.batch)
        for r in reports:
            news = account.take(report_of(plain(r)))
            assert news or not isinstance(r, Fill), (t, r, account.doubts)
            assert not account.take(r), "a copy is no news"
        plan = account.decide()
        bodies.append(
            batch_event(
                account, "s", t, trade=True, think=True, reports=[plain(r) for r in reports], plan=plan, refused={}
            )
        )
        wires = [account.orders[name].wire for name in plan.cancels]
        for name, ack in zip(plan.cancels, venue.cancel(wires), strict=True):
            t = account.orders[name]
            account.take(Update(1, t.venue_id, name, "a", t.order.symbol, ack.state, t.filled, t.value, t.order.reason))
        for symbol, *levels in plan.protects:
            venue.protect("a", symbol, *levels)
        for o, ack in zip(plan.submits, venue.submit(plan.submits), strict=True):
            account.orders[o.client_id].move(ack.state)
            assert ack.state is not State.REFUSED, ack
        assert not account.doubts and not account.waiting
    return account, venue, bodies


def eligible(seed: int):
    "A random case that can be traded live: fills at the next open, no end"
    case = random_case(random.Random(seed))
    given = arguments_for(case)
    given["bars"] = restated(given["bars"])
    return simulation(**given | dict(options=replace(given["options"], fill="next_open", at_end="mark")))


def restated(bars):
    "The bars with factors as the product computes them; the case's own may differ in the last bit"
    factor, seen = np.ones(bars.flags.shape), bars.raw.copy()
    for j in range(len(bars.symbols)):
        e = bars.events[(bars.events["j"] == j) & (bars.events["kind"] < 3)]
        factor[:, j], _ = forward_factor(bars.raw[:, j, 3], e["t"], e["kind"], e["value"])
    seen[..., :4] *= factor[..., None]
    return replace(bars, factor=factor, seen=seen if len(bars.events) else bars.raw)


def check(seed: int, restarts: bool = False) -> int:
    sim = eligible(seed)
    rng = random.Random(seed)
    again = {rng.randrange(1, len(sim.bars)) for _ in range(3)} if restarts else ()
    if sim.account["error"]:
        return 0
    sim.advance()
    account, venue, bodies = play(sim, again)
    a, where = sim.account, f"seed {seed}"
    equity = np.array([b["equity"] for b in bodies])
    assert equity.tobytes() == sim.equity.tobytes(), (where, np.flatnonzero(equity != sim.equity)[:3])
    fills = b"".join(b["fills"] for b in bodies)
    assert fills == sim.fills[: a["n_fills"]].tobytes(), where
    assert account.book.account["cash"] == a["cash"] and account.book.account["n_orders"] == a["n_orders"], where
    orders, by_row = sim.orders[: a["n_orders"]], {t.row: t for t in account.orders.values()}
    for w in orders:
        t = by_row[int(w["id"])]
        assert t.state in (STATE_OF_STATUS[w["status"]], State.INTENT if w["status"] == 0 else t.state), (where, w, t)
        assert t.state in (State.INTENT, State.WORKING) or STATE_OF_STATUS[w["status"]] is t.state, (where, w, t)
    ours, theirs = account.book.positions(), {s: q for (name, s), q in venue.positions().items()}
    assert ours == theirs, where
    held = {s for s in account.book.symbols if account.book.slots[0, account.book.column[s]]["guard"]}
    assert held == {s for (_, s) in venue.snapshot(0).protections}, where
    return len(orders)


@pytest.mark.parametrize("block", range(6))
def test_an_account_live_is_its_backtest(block):
    orders = sum(check(10_000 + 50 * block + i) for i in range(50))
    assert orders > 50


@pytest.mark.slow
@pytest.mark.parametrize("block", range(40))
def test_an_account_live_is_its_backtest_long(block):
    for i in range(250):
        check(100_000 + 250 * block + i, restarts=bool(i % 2))


@pytest.mark.parametrize("block", range(2))
def test_a_snapshot_changes_nothing(block):
    for i in range(40):
        check(20_000 + 40 * block + i, restarts=True)


def test_the_record_is_enough_to_do_it_again():
    "An account that goes through the recorded doors alone, without a venue, is the same account"
    for seed in range(30_000, 30_030):
        sim = eligible(seed)
        first, _, bodies = play(sim)
        again = account_of(sim)
        for batch, body in zip(batches_of(sim.bars), bodies, strict=True):
            apply_batch(again, batch, body)
        for name in ("accounts", "slots"):
            ours, theirs = getattr(again.book, name), getattr(first.book, name)
            assert ours.tobytes() == theirs.tobytes(), (seed, name)


def test_a_fill_is_entered_once_however_often_it_is_told():
    sim = eligible(10_001)
    account, venue, _ = play(sim)
    before = account.book.accounts.tobytes(), account.book.slots.tobytes()
    for f in venue.snapshot(0).fills:
        assert isinstance(f, Fill) and not account.take(f)
    assert before == (account.book.accounts.tobytes(), account.book.slots.tobytes())


if __name__ == "__main__":
    print(check(int(sys.argv[1])), "orders, the same")
