"""Pre-trade controls: each refuses what it should and nothing else, exposure holds at its worst, exits pass, limits resolve to the strictest."""

import itertools
import math
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.live.controls import Controls
from tradebench.live.exposure import WORDS, AccountView, Bounds, View
from tradebench.live.limits import NAMES, WHOLE, WIDER, LimitSet, as_scope, as_value, from_table
from tradebench.live.types import Fill, LiveError, Order
from tradebench.strategies.strategy import STOP

NS = 1_000_000_000
NOW = 1_700_000_000 * NS
SYMBOLS = ("AAPL", "IBM", "MSFT")
COLUMN = {s: j for j, s in enumerate(SYMBOLS)}


def limits(records=(), strategies=None, **values):
    "Nothing but the named limits of scope *"
    return LimitSet.resolve(records, {**dict.fromkeys(NAMES, 0.0), **values}, strategies=strategies)


def account(name="main", qty=(0, 0, 0), mark=(100.0, 50.0, 20.0), equity=100_000.0, ts=NOW, **more):
    return AccountView(name, COLUMN, np.array(qty, float), np.array(mark), equity=equity, ts=ts, **more)


_names = itertools.count()


def order(qty, symbol="AAPL", ref=100.0, account="main", client_id="", **more):
    return Order(client_id or f"id{next(_names)}", account, symbol, float(qty), 0.0, ref=ref, **more)


def answer(orders, view, lim, controls=None, now=NOW):
    orders = orders if isinstance(orders, list) else [orders]
    view = view if isinstance(view, View) else View([view])
    return [r and r.control for r in (controls or Controls()).check(orders, view, lim, now)]


def test_with_no_limits_at_all_only_nonsense_is_refused():
    lim, view = LimitSet.none(), View([account(qty=(5, 0, 0))], seen={"used"})
    good = [order(q, s) for q in (1e9, -1e9, 5, -5) for s in SYMBOLS]
    assert answer(good, view, lim) == [None] * len(good)
    bad = [
        order(0),
        order(math.nan),
        order(math.inf),
        order(1, limit=0.0),
        order(1, limit=-1.0),
        order(1, limit=math.inf),
    ]
    assert answer(bad, view, lim) == ["invalid"] * len(bad)
    assert answer([order(1, symbol="XYZ"), order(1, account="other")], view, lim) == ["account", "account"]
    assert answer([order(1, client_id="used"), order(1, client_id="x"), order(1, client_id="x")], view, lim) == [
        "client_id",
        None,
        "client_id",
    ]
    assert answer([order(1, ref=r) for r in (math.nan, 0.0, -1.0, math.inf)], view, lim) == ["no_price"] * 4


# (limits, account, order, control): each control with the smallest case that it refuses, and the same case that just passes
CASES = [
    (dict(collar=0.1), {}, dict(qty=1, limit=111), "collar", dict(qty=1, limit=109)),
    (dict(collar=0.1), {}, dict(qty=1, limit=89), "collar", dict(qty=1, limit=91)),
    (dict(collar=0.1), {}, dict(qty=1, ref=120), "collar", dict(qty=1, ref=110)),
    (dict(max_age=60), dict(ts=NOW - 61 * NS), dict(qty=1), "max_age", None),
    (dict(restricted=1), {}, dict(qty=1), "restricted", None),
    ({}, dict(unknown={"AAPL"}), dict(qty=1), "unknown", dict(qty=1, symbol="IBM", ref=50)),
    (dict(order_quantity=10), {}, dict(qty=-11), "order_quantity", dict(qty=-10)),
    (dict(order_value=1000), {}, dict(qty=11), "order_value", dict(qty=10)),
    (dict(order_value=1000), dict(multiplier=2.0), dict(qty=6), "order_value", dict(qty=5)),
    (dict(order_equity=0.01), {}, dict(qty=11), "order_equity", dict(qty=10)),
    (dict(order_equity=5), dict(equity=math.nan), dict(qty=1), "order_equity", None),
    (dict(gross_equity=5), dict(equity=-1.0), dict(qty=1), "gross_equity", None),
    (dict(participation=0.1), dict(volume=np.array([100.0, 0, math.nan])), dict(qty=11), "participation", dict(qty=10)),
    (dict(participation=0.1), dict(volume=np.array([100.0, 0, math.nan])), dict(qty=11), "participation", dict(qty=1e6, symbol="IBM", ref=50)),
    (dict(participation=0.1), dict(volume=np.array([100.0, 0, math.nan])), dict(qty=11), "participation", dict(qty=1e6, symbol="MSFT", ref=20)),
    (dict(position_quantity=100), dict(qty=(90, 0, 0)), dict(qty=11), "position_quantity", dict(qty=10)),
    (dict(position_quantity=100), dict(open={"AAPL": (90, -40)}), dict(qty=11), "position_quantity", dict(qty=-60)),
    (dict(position_value=1000), dict(qty=(9, 0, 0)), dict(qty=2), "position_value", dict(qty=1)),
    (dict(gross_value=1000), dict(qty=(5, 8, 0)), dict(qty=2), "gross_value", dict(qty=1)),
    (dict(gross_equity=0.01), dict(qty=(5, 8, 0)), dict(qty=2), "gross_equity", dict(qty=1)),
    (dict(deployment_value=1000), dict(qty=(5, 8, 0)), dict(qty=2), "deployment_value", dict(qty=1)),
    (dict(deployment_equity=0.01), dict(qty=(5, 8, 0)), dict(qty=2), "deployment_equity", dict(qty=1)),
    (dict(symbol_value=1000), dict(qty=(9, 0, 0)), dict(qty=2), "symbol_value", dict(qty=1)),
    (dict(self_match=1), dict(best={"AAPL": (math.nan, 105.0)}), dict(qty=1, limit=105), "self_match", dict(qty=1, limit=104)),
    (dict(self_match=1), dict(best={"AAPL": (95.0, math.nan)}), dict(qty=-1, limit=95), "self_match", dict(qty=-1, limit=96)),
    (dict(self_match=1), dict(best={"AAPL": (95.0, math.nan)}), dict(qty=-1), "self_match", dict(qty=1)),
]  # fmt: skip


@pytest.mark.parametrize("values, shown, bad, control, good", CASES)
def test_each_control_refuses_its_case_and_passes_the_one_just_inside(values, shown, bad, control, good):
    lim, a = limits(**values), account(**shown)
    (r,) = Controls().check([order(**bad)], View([a]), lim, NOW)
    assert r.control == control and "AAPL" in r.text or "IBM" in r.text
    if good:
        assert answer(order(**good), a, lim) == [None]


def test_every_refusal_has_words_and_every_word_a_control():
    with open("nbs/live/10_controls.ipynb") as f:
        table = f.read()
    for name in WORDS:
        assert f"`{name}`" in table, name


TIGHT = dict.fromkeys(NAMES, 1e-9) | dict(collar=0.1, period=300, self_match=1, restricted=1, message_rate=10, message_burst=10,
    message_reserve=9.5, repeat_seconds=60, duplicate_seconds=60)  # fmt: skip


@given(
    pos=st.sampled_from([-100.0, 100.0]),
    cut=st.floats(0.01, 1.0),
    ref=st.sampled_from([100.0, math.nan]),
    late=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_a_reduction_passes_every_limit_that_must_not_stop_exits(pos, cut, ref, late):
    controls, lim = Controls(), limits(**TIGHT)
    a = account(qty=(pos, 0, 0), unknown={"AAPL"}, volume=np.zeros(3), ts=NOW - late * NS, equity=-5.0)
    controls.executed([Fill(1, str(i), "", f"o{i}", "main", "AAPL", -pos, 100.0) for i in range(9)], lim, NOW)
    controls.sent([order(-cut * pos)], NOW)
    got = controls.check([order(-cut * pos, ref=ref), order(cut * pos)], View([a]), lim, NOW)
    assert got[0] is None and got[1] is not None


def test_a_reduction_is_recognised_and_not_believed():
    lim = limits(restricted=1)
    assert answer(order(-101, reduce=True), account(qty=(100, 0, 0)), lim) == ["restricted"]
    assert answer(order(-100, reduce=False), account(qty=(100, 0, 0)), lim) == [None]
    assert answer(order(100), account(qty=(-100, 0, 0)), lim) == [None]
    assert answer(order(-60), account(qty=(100, 0, 0), open={"AAPL": (0, -50)}), lim) == ["restricted"]
    assert answer(order(-60), account(qty=(100, 0, 0), open={"AAPL": (0, -50)}, leaving={"AAPL": (0, -50)}), lim) == [
        None
    ]
    assert answer([order(-60), order(-60)], account(qty=(100, 0, 0)), lim) == [None, "restricted"]


def test_what_still_stops_a_reduction():
    held = account(qty=(100, 0, 0))
    assert answer(order(-10), held, limits(restricted=2)) == ["restricted"]
    assert answer(order(-10, limit=80), held, limits(collar=0.1)) == ["collar"]
    assert answer(order(-10, limit=140), held, limits(collar=0.1)) == [None]  # a price that can only be too good
    no_mark = account(qty=(100, 0, 0), mark=(math.nan, 1.0, 1.0))
    assert answer(order(-10, ref=math.nan), no_mark, limits()) == ["no_price"]
    met = account(qty=(100, 0, 0), best={"AAPL": (99.0, math.nan)})
    assert answer(order(-10), met, limits(self_match=1)) == [None]
    assert answer(order(-10), met, limits(self_match=2)) == ["self_match"]


def test_self_match_looks_over_accounts_of_one_venue_and_into_the_list():
    lim = limits(self_match=1)
    a, b = account("a", venue="x"), account("b", venue="x", best={"AAPL": (math.nan, 100.0)})
    apart = account("b", best={"AAPL": (math.nan, 100.0)})
    assert answer(order(1, account="a"), View([a, b]), lim) == ["self_match"]
    assert answer(order(1, account="a"), View([account("a"), apart]), lim) == [None]
    two = [order(1, account="a", limit=101), order(-1, account="b", limit=100.5), order(-1, account="b", limit=101.5)]
    assert answer(two, View([a, account("b", venue="x")]), lim) == [None, "self_match", None]
    view = View([a, b])
    view.put(account("b"))  # it moved to a venue of its own
    assert answer(order(1, account="a"), view, lim) == [None]


def test_self_match_remembers_the_best_of_several_orders():
    lim, view = limits(self_match=1), View([account(qty=(0, 0, 0))])
    buys = [order(1, limit=101), order(1, limit=99), order(-1, limit=100.5), order(-1, limit=102)]
    assert answer(buys, view, lim) == [None, None, "self_match", None]
    sales = [order(-1, limit=99), order(-1, limit=101), order(1, limit=99.5), order(1, limit=98)]
    assert answer(sales, view, lim) == [None, None, "self_match", None]


def test_self_match_does_not_mix_accounts_that_are_kept_apart_within_a_list():
    lim = limits(self_match=1)
    two = [order(1, account="a"), order(-1, account="b")]
    assert answer(two, View([account("a"), account("b")]), lim) == [None, None]


# -- exposure


moves = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(SYMBOLS[:2]), st.integers(-60, 60).filter(bool)),
    min_size=1,
    max_size=7,
)


@given(moves=moves, start=st.tuples(*[st.integers(-30, 30)] * 4), cap=st.integers(0, 8000), net=st.integers(100, 5000))
@settings(max_examples=150, deadline=None)
def test_whatever_fills_of_what_passed_no_limit_on_exposure_is_broken(moves, start, cap, net):
    "Every subset of the passed orders is filled in turn: the promise of counting at the worst"
    lim = limits(gross_value=4000, deployment_value=cap + 1, symbol_value=net, position_quantity=70)
    marks, held = (
        dict(zip(SYMBOLS, (100.0, 50.0, 20.0), strict=True)),
        {("a", "AAPL"): start[0], ("a", "IBM"): start[1], ("b", "AAPL"): start[2], ("b", "IBM"): start[3]},
    )
    view = View([account(n, qty=(held[n, "AAPL"], held[n, "IBM"], 0)) for n in "ab"])
    orders = [order(q, s, marks[s], a) for a, s, q in moves]
    passed = [o for o, r in zip(orders, Controls(timed=False).check(orders, view, lim, NOW), strict=True) if r is None]

    def figures(filled):
        pos = dict(held)
        for o in filled:
            pos[o.account, o.symbol] += o.qty
        value = {k: q * marks[k[1]] for k, q in pos.items()}
        gross = {n: sum(abs(v) for (m, _), v in value.items() if m == n) for n in "ab"}
        nets = {s: abs(sum(v for (_, t), v in value.items() if t == s)) for s in SYMBOLS[:2]}
        return [max(map(abs, pos.values())), *gross.values(), sum(gross.values()), *nets.values()]

    bounds = [70, 4000, 4000, cap + 1, net, net]
    before, reduced = figures([]), any(held[o.account, o.symbol] * o.qty < 0 for o in passed)
    for k in range(len(passed) + 1):
        for some in itertools.combinations(passed, k):
            for i, (was, now, limit) in enumerate(zip(before, figures(some), bounds, strict=True)):
                if i < 4 or not reduced:  # a reduction in one account may lay bare what another holds
                    assert now <= max(limit, was) + 1e-6, (i, some, was, now, limit)


@given(moves=moves)
@settings(max_examples=100, deadline=None)
def test_open_orders_count_as_much_as_orders_of_the_same_list(moves):
    "Judging one by one, each shown as open to the next, gives what judging the list gives"
    lim, marks = (
        limits(gross_value=4000, deployment_value=6000, symbol_value=3000, position_quantity=50),
        dict(AAPL=100.0, IBM=50.0),
    )
    orders = [order(q, s, marks[s], a) for a, s, q in moves]
    together = answer(orders, View([account("a"), account("b")]), lim, Controls(timed=False))
    open_, one_by_one = {"a": {}, "b": {}}, []
    for o in orders:
        view = View([account(n, open=open_[n]) for n in "ab"])
        one_by_one += answer(o, view, lim, Controls(timed=False))
        if one_by_one[-1] is None:
            b, s = open_[o.account].get(o.symbol, (0, 0))
            open_[o.account][o.symbol] = (b + max(o.qty, 0), s + min(o.qty, 0))
    assert together == one_by_one


def test_net_of_all_accounts_that_is_over_its_limit_may_come_down():
    lim, view = limits(symbol_value=1000), View([account("a", qty=(50, 0, 0)), account("b", qty=(-5, 0, 0))])
    assert answer([order(-20, account="b"), order(1, account="a")], view, lim) == [None, "symbol_value"]


def test_a_limit_tightened_below_the_position_does_not_lock_it_in():
    lim, held = limits(position_quantity=10, gross_value=100), account(qty=(100, 0, 0))
    assert answer([order(-50), order(1)], held, lim) == [None, "position_quantity"]
    assert answer(order(-150), held, lim) == [None]  # through zero, but smaller than it was
    assert answer(order(-250), held, lim) == ["position_quantity"]


# -- time


@given(
    steps=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3 * NS)), max_size=25),
    cancels=st.lists(st.integers(0, 20), max_size=25),
)
@settings(max_examples=80, deadline=None)
def test_message_bucket_never_gives_more_than_burst_and_rate_and_keeps_its_reserve(steps, cancels):
    lim, controls, view = limits(message_rate=5, message_burst=20, message_reserve=6), Controls(), View([account()])
    now, orders_sent, all_sent = NOW, 0, 0
    for (n, wait), c in itertools.zip_longest(steps, cancels[: len(steps)], fillvalue=0):
        now += wait
        some = [order(1) for _ in range(n)]
        passed = [o for o, r in zip(some, controls.check(some, view, lim, now), strict=True) if r is None]
        controls.sent(passed, now)
        allowed = 20 + 5 * (now - NOW) / NS
        orders_sent, all_sent = orders_sent + len(passed), all_sent + len(passed)
        all_sent += controls.messages(c, lim, now)
        assert all_sent <= allowed + 1e-6 and orders_sent <= allowed - 6 + 1e-6 and controls.tokens > -1e-6


def test_reserve_is_for_cancels_and_reductions():
    lim, controls, view = (
        limits(message_burst=4, message_reserve=2, message_rate=1e-9),
        Controls(),
        View([account(qty=(9, 0, 0))]),
    )
    got = answer([order(1), order(1), order(1), order(-1), order(-1), order(-1)], view, lim, controls)
    assert got == [None, None, "message_rate", None, None, "message_rate"]
    controls.sent([order(1)] * 3, NOW)
    assert controls.messages(5, lim, NOW) == 1


def test_clock_that_goes_back_refills_nothing_and_locks_nothing():
    lim, controls, view = (
        limits(message_rate=1, message_burst=2, duplicate_seconds=5, period=60, period_collar=0.1),
        Controls(),
        account(),
    )
    assert answer([order(1), order(2)], view, lim, controls) == [None, None]
    controls.sent([order(1), order(2)], NOW)
    controls.observe(view, lim, NOW)
    assert answer(order(3), view, lim, controls, NOW - 3600 * NS) == ["message_rate"]
    assert answer([order(1), order(2)], view, lim, controls, NOW - 3590 * NS) == [None, None]


def test_the_same_again_within_the_window_is_refused():
    lim, controls, view = limits(duplicate_seconds=2), Controls(), account()
    assert answer([order(5), order(5), order(6), order(-5), order(5, "IBM", 50)], view, lim, controls) == [
        None,
        "duplicate",
        None,
        None,
        None,
    ]
    controls.sent([order(5)], NOW)
    assert answer(order(5), view, lim, controls, NOW + 2 * NS - 1) == ["duplicate"]
    assert answer(order(5), view, lim, controls, NOW + 2 * NS) == [None]
    refused_first = limits(duplicate_seconds=2, order_quantity=4)
    assert answer([order(5), order(5)], view, refused_first) == ["order_quantity"] * 2


def fill(i, qty=1.0, name=None, reason=1, account="main", symbol="AAPL"):
    return Fill(1, f"f{i}", "", f"o{i}" if name is None else name, account, symbol, qty, 100.0, reason=reason)


def test_repeated_executions_latch_until_a_person_resumes():
    lim, controls, view = limits(repeat_count=3, repeat_seconds=10), Controls(), account()
    parts = [fill(f"{n}{k}", name=n) for n in "ab" for k in range(9)]
    assert controls.executed(parts, lim, NOW) == []  # parts of two orders
    assert (
        controls.executed([fill(1, reason=STOP), fill(2, name=""), fill(3, -1.0), fill(4, symbol="IBM")], lim, NOW)
        == []
    )
    assert controls.executed([fill(5)], lim, NOW + 9 * NS) == [("main", "AAPL", 1)]
    assert controls.executed([fill(6)], lim, NOW + 9 * NS) == []  # said once
    later = NOW + 10**6 * NS
    assert answer([order(1), order(-1), order(1, "IBM", 50)], view, lim, controls, later) == ["repeat", None, None]
    assert controls.enable(account="other") == [] and controls.enable("main", "AAPL") == [("main", "AAPL", 1)]
    assert answer(order(1), view, lim, controls, later) == [None]
    slow = Controls()  # the parts of one order trickle in: it counts where it began
    assert (
        slow.executed([fill("p1", name="p")], lim, NOW)
        == []
        == slow.executed([fill("p2", name="p")], lim, NOW + 9 * NS)
    )
    assert slow.executed([fill("q"), fill("r")], lim, NOW + 11 * NS) == []
    spread = Controls()
    assert [spread.executed([fill(i)], lim, NOW + i * 6 * NS) for i in range(20)] == [[]] * 20


def test_price_that_ran_away_within_the_period_stops_new_exposure():
    lim, controls = limits(period=60, period_collar=0.1), Controls()
    show = lambda price, t: controls.observe(account(mark=(price, 50.0, math.nan)), lim, NOW + t * NS)  # noqa: E731
    ask = lambda price, t: answer(order(1, ref=price), account(mark=(price, 50.0, 20.0)), lim, controls, NOW + t * NS)  # noqa: E731
    show(100, 0)
    show(109, 30)
    assert ask(109, 30) == [None]
    show(111, 50)
    assert ask(111, 50) == ["period_collar"]
    show(111, 70)  # a new period, whose edge hides nothing
    assert ask(111, 70) == ["period_collar"]
    show(111, 130)
    assert ask(111, 130) == [None]
    show(200, 1000)  # nothing was seen for longer than the period: there is nothing to compare with
    assert ask(200, 1000) == [None]
    controls.rescale("AAPL", 0.5)
    show(100, 1010)
    assert ask(100, 1010) == [None]


@given(prices=st.lists(st.floats(50, 200), min_size=2, max_size=40), gap=st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_no_move_within_the_period_escapes(prices, gap):
    "The last price against each price of the last `period`: a larger move than allowed from the oldest of them is seen"
    lim, controls = limits(period=60, period_collar=0.1), Controls()
    for i, p in enumerate(prices):
        controls.observe(account(mark=(p, math.nan, math.nan)), lim, NOW + i * gap * NS)
    start, ref, older, last, at = controls.prices["AAPL"]
    assert last == prices[-1] and at - start < 60 * NS + gap * NS
    if (len(prices) - 1) * gap < 60:
        assert controls.moved("AAPL") >= abs(prices[-1] / prices[0] - 1) - 1e-12


def test_on_bar_time_no_control_looks_at_a_clock():
    lim = limits(
        max_age=1,
        message_burst=1,
        message_reserve=1,
        duplicate_seconds=9,
        repeat_count=1,
        repeat_seconds=9,
        period=9,
        period_collar=1e-9,
    )
    controls, view = Controls(timed=False), account(ts=0)
    controls.observe(view, lim, NOW)
    assert controls.executed([fill(1)], lim, NOW) == [] and controls.messages(50, lim, NOW) == 50
    orders = [order(1) for _ in range(5)]
    assert answer(orders, view, lim, controls) == [None] * 5
    controls.sent(orders, NOW)
    assert controls.state() == Controls(timed=False).state() | dict(tokens=1.0, at=NOW)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_checking_changes_nothing_and_a_snapshot_goes_on_alike(data):
    lim = limits(
        duplicate_seconds=3,
        message_rate=2,
        message_burst=9,
        message_reserve=2,
        repeat_count=2,
        repeat_seconds=20,
        period=10,
        period_collar=0.05,
    )
    one, now = Controls(), NOW
    for i in range(data.draw(st.integers(1, 12))):
        now += data.draw(st.integers(0, 5)) * NS
        a = account(mark=(data.draw(st.floats(90, 110)), 50.0, 20.0))
        one.observe(a, lim, now)
        orders = [order(data.draw(st.integers(-3, 3)), client_id=f"{i}.{k}") for k in range(3)]
        first = one.check(orders, View([a]), lim, now)
        assert repr(first) == repr(one.check(orders, View([a]), lim, now))
        other = Controls()
        other.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(one.state())))
        assert repr(other.check(orders, View([a]), lim, now)) == repr(first) and other.state() == one.state()
        passed = [o for o, r in zip(orders, first, strict=True) if r is None]
        one.sent(passed, now)
        one.executed([fill(o.client_id, o.qty) for o in passed], lim, now)


# -- limits


@given(
    st.lists(st.tuples(st.sampled_from(["*", "account:a", "strategy:s", "instrument:AAPL", "account:b", "strategy:t", "instrument:IBM"]),
                       st.sampled_from(sorted(set(NAMES) - WHOLE)), st.one_of(st.none(), st.integers(0, 5))), max_size=30),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 5)),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_most_restrictive_of_the_scopes_that_apply_wins(rows, table):
    records = [(i + 1, 0, scope, name, value, "ann", "why") for i, (scope, name, value) in enumerate(rows)]
    made = LimitSet.resolve(reversed(records), dict.fromkeys(NAMES, 3.0), table, {"a": "s"})
    b = made.bounds("a", "AAPL")
    for name in NAMES:
        found = []
        for scope in ("*", "account:a", "strategy:s", "instrument:AAPL"):
            said = [v for s, n, v in rows if (s, n) == (scope, name)]
            file = table.get(name, 3.0) if scope == "*" else None
            value = said[-1] if said and said[-1] is not None else file
            if value is not None:
                found.append(value if name in WIDER or value else math.inf)
        want = max(found) if name in WIDER else min(found)
        assert getattr(b, name) == want, name
    assert made.version == len(rows)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: as_scope("acount:x"), ["acount", "did you mean account:NAME"]),
        (lambda: as_scope("account:"), ["account:"]),
        (lambda: as_value("*", "colar", 1), ["colar", "did you mean collar"]),
        (lambda: as_value("*", "collar", -1), ["at least 0"]),
        (lambda: as_value("*", "collar", True), ["at least 0"]),
        (lambda: as_value("*", "collar", "inf"), ["none: no limit"]),
        (lambda: as_value("instrument:X", "deployment_value", 1), ["its scope is *"]),
        (lambda: from_table({"ordervalue": 1}), ["order_value"]),
        (lambda: from_table({"account": 5}), ["limits.account.NAME"]),
        (lambda: from_table({"account": {"main": 5}}), ["limits.account.main"]),
        (lambda: from_table({"collar": "default"}), ["leave the line out"]),
    ],
)
def test_a_wrong_limit_is_one_line_that_says_how_to_mend_it(call, words):
    with pytest.raises(LiveError) as e:
        call()
    assert all(w in e.value.line for w in words) and "\n" not in str(e.value)


def test_files_tables_of_narrower_scopes_and_records_of_other_versions():
    table = {
        "order_value": 5000,
        "account": {"main": {"order_value": "1e3"}},
        "instrument": {"BTC/USDT": {"restricted": "on"}},
    }
    made = LimitSet.resolve([(1, 0, "*", "a_limit_of_a_later_version", 1.0, "x", "y")], table=table)
    assert made.bounds("main", "IBM").order_value == 1000 and made.bounds("other", "IBM").order_value == 5000
    assert made.bounds("other", "BTC/USDT").restricted == 1 and Bounds() == LimitSet.none().wide
    assert {s.source for s in made.rows()} == {"settings", "deployment file"}


def test_default_limits_pass_ordinary_orders_of_five_thousand_symbols():
    n = 5000
    column = {f"S{i}": i for i in range(n)}
    a = AccountView("main", column, np.zeros(n), np.full(n, 100.0), equity=1e6, volume=np.full(n, 1e5), ts=NOW)
    orders = [order(2, s) for s in column]
    assert set(answer(orders, a, LimitSet.resolve())) == {None}


def test_speed():
    "5 us an order for 5,000 at once, 25 us for a single one; twice that is let pass on a busy machine"
    n, lim, controls = 5000, LimitSet.resolve(), Controls()
    column = {f"S{i}": i for i in range(n)}
    many = View(
        [AccountView("main", column, np.zeros(n), np.full(n, 100.0), equity=1e7, volume=np.full(n, 1e6), ts=NOW)]
    )
    orders = [order(2, s) for s in column]
    best = min(_timed(lambda i=i: controls.check(orders, many, lim, NOW + i * NS)) for i in range(7)) / n
    one, few = View([account(volume=np.full(3, 1e6))]), [order(2)]
    single = min(_timed(lambda: [controls.check(few, one, lim, NOW) for _ in range(200)]) for _ in range(5)) / 200
    assert best <= 10e-6 and single <= 50e-6, (best, single)


def _timed(work):
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
