"""The self-audit: nothing to find after a replay, every altered bit found, and fills that cost more put down to their causes."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, strategies as st

from tradebench.backtest.costs import Costs
from tradebench.live.deployment import parse


def deployed(folder, **account):
    account = (
        dict(name="main", strategy="scalping", feed="sim:minutes,seed=3,sessions=4", costs="us_stocks", unreleased=True)
        | account
    )
    return parse(dict(id="test", journal=str(folder / "j.sqlite"), account=[account]))


def played(d):
    from tradebench.live.example import play

    assert asyncio.run(play(d)) == 0
    return d


class Copy:
    "A journal in memory, whose events a test may alter"

    address = "a copy"

    def __init__(self, d):
        from tradebench.live.record import opened

        async def read():
            async with await opened(d.journal) as journal:
                return await journal.events()

        self.all = [e._replace(body=dict(e.body)) for e in asyncio.run(read())]

    async def events(self, after_seq=0, account=None, kinds=None, limit=None):
        return [e for e in self.all if e.seq > after_seq and (not kinds or e.kind in kinds)][:limit]

    def bodies(self, kind):
        return [e.body for e in self.all if e.kind == kind]


def audited(journal, day=""):
    from tradebench.live.selfaudit import audit_day

    return asyncio.run(audit_day(journal, day))


@pytest.fixture(scope="module")
def scalper(tmp_path_factory):
    return played(deployed(tmp_path_factory.mktemp("scalper")))


DAYS = ("2015-01-02", "2015-01-05", "2015-01-06", "2015-01-07")


def test_after_a_replay_there_is_nothing_to_find_on_any_day(scalper):
    from tradebench.live.selfaudit import self_audit

    found = [self_audit(scalper.journal, day) for day in DAYS]
    assert all(a.equal for a in found) and sum(a.orders for a in found) > 10
    assert all(set(a.costs.values()) == {0.0} for a in found)
    assert [a.bars for a in found] == [390] * 4
    told = found[-1].calibration
    assert (told["measured"] - told["model"]).abs().max() < 1e-9


def a_decision(copy):
    return next(b for b in copy.bodies("batch") if b["out"] and np.frombuffer(b["out"])[0] == 1.0)


def altered_target(copy):
    b = a_decision(copy)
    out = np.frombuffer(b["out"]).copy()
    out[0] = 0.5
    b["out"] = out.tobytes()
    return "decision of SIM: target is 1 now, 0.5 in the journal"


def altered_quantity(copy):
    from tradebench.backtest.exchange import ORDER

    b = next(b for b in copy.bodies("batch") if b["orders"])
    rows = np.frombuffer(b["orders"], ORDER).copy()
    rows["qty"] += 1
    b["orders"] = rows.tobytes()
    return "order of SIM: qty is"


def altered_equity(copy):
    copy.bodies("batch")[300]["equity"] += 1e-9
    return "batch 300: equity"


def altered_bar(copy):
    held = next(b["ts"] for b in copy.bodies("batch") if b["equity"] != b["cash"])
    b = next(b for b in copy.bodies("market") if b["ts"] == held)
    raw = np.frombuffer(b["raw"]).copy()
    raw[:4] *= 1.5
    b["raw"] = raw.tobytes()
    return ""  # it is seen in orders or in the equity


def altered_name(copy):
    b = next(b for b in copy.bodies("batch") if b["sent"])
    b["sent"] = ["tsomeotherorder"]
    return "replay orders"


def altered_fill(copy):
    b = next(b for b in copy.bodies("batch") if b["reports"])
    b["reports"] = [[*r[:8], r[8] + 0.01, *r[9:]] if r[0] == 0 else r for r in b["reports"]]
    return "equity"


def lost_bars(copy):
    copy.all = [e for e in copy.all if not (e.kind == "market" and e.t == 200)]
    return "no bars before it"


@pytest.mark.parametrize(
    "alter", [altered_target, altered_quantity, altered_equity, altered_bar, altered_name, altered_fill, lost_bars]
)
def test_what_was_altered_is_found_and_named(scalper, alter):
    copy = Copy(scalper)
    word = alter(copy)
    days = [a for a in (audited(copy, day) for day in DAYS) if not a.equal]
    assert days and any(word in text for a in days for text in a.differences), [a.differences[:2] for a in days]
    assert "DECISIONS DIFFER" in str(days[0])


MINE = """
import tradebench as tb

@tb.strategy
class Mine:
    "Holds for a while, rests for a while."
    n = tb.param(10, 1, 99, "bars")
    state = dict(i=0)

    def step(s, p, row):
        s.i += 1
        return tb.long_if(s.i % (2 * p.n) < p.n {more})
"""


def test_code_that_decides_otherwise_is_found(tmp_path, capsys):
    import tradebench.cli.days  # noqa: F401
    from tradebench.cli.shell import run_app

    file = tmp_path / "mine.py"
    file.write_text(MINE.format(more=""))
    d = played(deployed(tmp_path, strategy=f"{file}:Mine"))
    assert run_app(["selfaudit", "--journal", d.journal, "--orders", "2"]) == 0
    assert "no decision differs" in capsys.readouterr().out
    file.write_text(MINE.format(more="+ 1"))
    assert run_app(["selfaudit", DAYS[0], "--journal", d.journal]) == 1
    assert "the code that decides has changed" in capsys.readouterr().out


# -- fills that are not the simulated ones

VENUE = """
from tradebench.backtest.costs import Costs
from tradebench.live.brokers import PaperBroker
from tradebench.live.types import Ack, State


class Dear(PaperBroker):
    "Charges other costs than the deployment believes"

    async def open_account(self, spec):
        return await super().open_account(spec._replace(costs=tuple(Costs(fee_bps=5, spread_bps=10, slippage_bps=1) for _ in spec.costs)))

class Picky(PaperBroker):
    "Refuses every fifth order"

    n = 0

    async def submit(self, orders):
        out = []
        for o in orders:
            type(self).n += 1
            if type(self).n % 5 == 0:
                out.append(Ack(o.client_id, State.REFUSED, "", "not today"))
            else:
                out += await super().submit([o])
        return out
"""


@pytest.fixture
def venue(tmp_path):
    (tmp_path / "venue.py").write_text(VENUE)
    return str(tmp_path / "venue.py")


@pytest.mark.parametrize(
    "feed, strategy", [("sim:minutes,seed=3,sessions=4", "scalping"), ("replay:stocks5,start=2008", "gap_and_go")]
)
def test_what_a_dearer_venue_charges_is_told_apart_and_measured(tmp_path, venue, feed, strategy):
    from tradebench.live.record import Fold
    from tradebench.live.selfaudit import _Watch, calibration, fills_frame

    d = played(
        deployed(
            tmp_path,
            broker=f"{venue}:Dear",
            strategy=strategy,
            feed=feed,
            costs={"spread_bps": 2, "slippage_bps": 1},
            sizing="fraction=0.4",
        )
    )
    copy, watch = Copy(d), _Watch()
    fold = Fold(copy.bodies("start")[-1], on_batch=watch)
    for e in copy.all:
        fold.apply(e)
    kept = fold.kept["main"]
    fills = fills_frame(kept, watch.shadow, 0, len(kept.equity))
    assert not watch.found  # the decisions are those of the strategy, whatever the fills cost
    both = fills[fills["qty"] == fills["simulated_qty"]]
    assert len(both) > 0.7 * len(fills) > 10
    assert (both["spread"] >= 0).all() and (both["fees"] > 0).all() and both["latency"].abs().max() < 1e-9
    turnover = both["turnover"].sum()
    assert (
        abs(both["spread"].sum() - 4e-4 * turnover) < 4e-5 * turnover  # what a limit fills pays none
        and abs(both["fees"].sum() - 5e-4 * turnover) < 2e-5 * turnover
    )
    found = calibration(both, kept.account.book.costs)["measured"]
    assert (
        abs(found["spread_bps"] - 10) < 1 and abs(found["fee_bps"] - 5) < 0.1 and abs(found["slippage_bps"] - 1) < 0.5
    )
    day = str(kept.bars().session_days()[-1])
    model = audited(copy, day)
    assert model.recalibrated(Costs(spread_bps=2), least=10**6) == Costs(spread_bps=2)  # too few fills to learn from
    assert model.equal


def test_an_order_that_the_venue_refused_is_a_matter_of_the_queue_once(tmp_path, venue):
    d = played(deployed(tmp_path, broker=f"{venue}:Picky", strategy="sma_cross", params=dict(fast=5, slow=20)))
    copy = Copy(d)
    audits = [audited(copy, day) for day in DAYS]
    assert all(a.equal for a in audits), audits[0].differences[:1]
    import pandas as pd

    fills = pd.concat([a.fills for a in audits])
    missed = fills[(fills["qty"] == 0) & (fills["simulated_qty"] != 0)]
    filled = fills[fills["qty"] != 0]
    assert 0 < len(missed) <= len(fills) / 4 and (missed[["spread", "latency", "fees", "rest"]] == 0).all().all()
    same = filled[filled["qty"] == filled["simulated_qty"]]
    assert (
        len(same) > 0.6 * len(filled)
        and (same[["spread", "latency", "queue", "fees", "rest"]].abs() < 1e-9).all().all()
    )


Numbers = st.floats(0.5, 200.0).map(lambda x: round(x, 2))


@given(
    st.sampled_from((-1, 1)),
    Numbers,
    Numbers,
    Numbers,
    Numbers,
    Numbers,
    Numbers,
    Numbers,
    st.floats(0, 5),
    st.floats(0, 5),
)
def test_the_parts_are_the_whole(side, q1, q2, p1, p2, r1, r2, mark, fee1, fee2):
    from tradebench.live.shadow import Leg, split

    real, simulated = Leg(), Leg()
    real.add(side * q1, r1, p1, fee1, q1 * 0.01, 0.0, 0.0)
    simulated.add(side * q2, r2, p2, fee2, q2 * 0.02, 0.0, 0.0)
    worth = [
        side * q * (mark - p) - fee for q, p, fee in ((q1, p1, fee1), (q2, p2, fee2))
    ]  # what each came to by the mark
    assert abs(sum(split(real, simulated, mark, 1.0).values()) - (worth[1] - worth[0])) < 1e-6
    assert set(split(real, real, mark, 1.0).values()) == {0.0}
