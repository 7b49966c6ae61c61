"""The slow reference engine, rule by rule, against numbers worked out by hand, then on random cases."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from reference_engine import DELISTING, DIVIDEND, SPLIT, Decision, Reference, run_reference
from strategies_for_engine import DAY, bars_of, cases, decisions_of, random_case

NAN = math.nan


def flat(price, volume=1000.0):
    return (price, price, price, price, volume)


def ohlc(o, h, lo, c, volume=1000.0):
    return (o, h, lo, c, volume)


def run(rows, wishes, *, initial=10_000.0, sizing=None, costs=None, limits=None, bars=None, **options):
    "Target 1 is 10 units unless a sizing is given; wishes as in decisions_of; options by name; bars: of bars_of."
    b = bars_of(rows, **(bars or {}))
    decisions = decisions_of(len(b.ts), wishes, b.raw.shape[1])
    return run_reference(b, decisions, costs, sizing or dict(kind="quantity", quantity=10.0), options, limits, initial)


def short(result):
    "Fills as (t, qty, price, reason)."
    return [(f.t, pytest.approx(f.qty), pytest.approx(f.price), f.reason) for f in result.fills]


def statuses(result):
    return [o.status for o in result.orders]


LONG = {0: dict(target=1)}


# ---- orders and the open


def test_market_order_fills_at_next_open():
    r = run([flat(100), ohlc(102, 103, 101, 103)], LONG)
    assert short(r) == [(1, 10, 102, "target")]
    assert r.equity == [10_000, 10_010]  # 10 * (103 - 102)


def test_order_waits_for_a_bar_that_is_present_and_traded():
    r = run([[flat(100)], [None], [flat(101, 0.0)], [flat(103)]], LONG)
    assert short(r) == [(3, 10, 103, "target")]


def test_unchanged_target_makes_no_second_order():
    assert len(run([flat(100)] * 4, {t: dict(target=1) for t in range(4)}).orders) == 1


def test_reductions_fill_before_increases():
    # all money is in symbol 1; symbol 0 can only be bought because symbol 1 is sold first
    rows = [[flat(100), flat(50)]] * 4
    wishes = {(0, 1): dict(target=1), (2, 0): dict(target=1), (2, 1): dict(target=0)}
    r = run(rows, wishes, initial=1000.0, sizing=dict(fraction=1.0))
    assert [(f.t, f.j, f.qty) for f in r.fills] == [(1, 1, 20), (3, 1, -20), (3, 0, 10)]


def test_reversal_is_one_fill_and_two_trades():
    r = run([flat(100), flat(100), flat(104)], {0: dict(target=1), 1: dict(target=-1)}, costs=dict(fee_fixed=2.0))
    assert short(r) == [(1, 10, 100, "target"), (2, -20, 104, "target")]
    first, second = r.trades
    assert first.fees == 3 and second.fees == 1  # 2 + half of 2; the other half
    assert first.pnl == 40 - 3 and not first.open and second.open and second.side == -1
    assert r.equity[-1] == 10_000 + 40 - 4


def test_target_outside_one_is_an_error():
    with pytest.raises(ValueError, match="outside"):
        run([flat(100)], {0: dict(target=1.5)}, sizing=dict(fraction=1.0))


def test_order_expires_after_bars_on_which_it_could_have_filled():
    # bar 1 untraded, bars 2 and 3 count, so bar 4 through the limit fills nothing
    rows = [flat(100), flat(100, 0.0), flat(100), flat(100), flat(80)]
    r = run(rows, {0: dict(target=1, limit=90, expire=2)})
    assert not r.fills and statuses(r) == ["expired"]
    r = run(rows, {0: dict(target=1, limit=90, expire=3)})
    assert short(r) == [(4, 10, 80, "target")]


def test_changed_target_without_units_cancels_the_working_order():
    r = run([flat(100), flat(100), flat(80)], {0: dict(target=1, limit=90), 1: dict(target=0)})
    assert not r.fills and statuses(r) == ["cancelled"]


# ---- limits


@pytest.mark.parametrize("low, touch, price", [(98, "through", None), (98, "touch", 98), (97.5, "through", 98)])
def test_limit_through_and_touch(low, touch, price):
    r = run([flat(100), ohlc(100, 101, low, 100)], {0: dict(target=1, limit=98)}, limit_touch=touch)
    assert short(r) == ([] if price is None else [(1, 10, price, "target")])


def test_limit_already_through_at_the_open_fills_at_the_open_without_spread():
    r = run([flat(100), ohlc(97, 99, 96, 98)], {0: dict(target=1, limit=98)}, costs=dict(spread_bps=50, slippage_bps=9))
    assert short(r) == [(1, 10, 97, "target")]


def test_maker_costs_make_a_limit_pay_the_spread():
    # 98 * (1 + 50 / 2 / 1e4) = 98.245
    r = run([flat(100), ohlc(100, 101, 97, 100)], {0: dict(target=1, limit=98)}, costs=dict(spread_bps=50),
            maker_costs=True)  # fmt: skip
    assert short(r) == [(1, 10, 98.245, "target")] and r.fills[0].spread == pytest.approx(2.45)


def test_sell_limit_is_the_mirror():
    r = run([flat(100), ohlc(100, 103, 99, 100)], {0: dict(target=-1, limit=102)})
    assert short(r) == [(1, -10, 102, "target")]


def test_limit_level_is_rounded_for_the_trader():
    r = run([flat(100), ohlc(100, 101, 97, 100)], {0: dict(target=1, limit=98.13)}, bars=dict(tick=0.25))
    assert short(r) == [(1, 10, 98.0, "target")]
    r = run([flat(100), ohlc(100, 104, 97, 100)], {0: dict(target=-1, limit=102.13)}, bars=dict(tick=0.25))
    assert short(r) == [(1, -10, 102.25, "target")]


# ---- protection


def protected(bar, *, first=None, side=1, costs=None, **levels):
    "Enter at 100 on bar 1 (`first`, default flat), then one bar."
    return run([flat(100), first or flat(100), bar], {0: dict(target=side, **levels)}, costs=costs)


def test_gap_through_the_stop_exits_at_the_open():
    assert short(protected(ohlc(93, 96, 92, 95), stop=95))[1:] == [(2, -10, 93, "stop")]
    assert short(protected(ohlc(107, 108, 104, 105), stop=105, side=-1))[1:] == [(2, 10, 107, "stop")]


def test_stop_and_take_in_one_bar_is_the_stop():
    r = protected(ohlc(100, 106, 94, 100), stop=95, take=105)
    assert short(r)[1:] == [(2, -10, 95, "stop")] and r.equity[-1] == 9_950


def test_take_inside_the_bar_needs_trading_through_and_pays_no_spread():
    assert len(protected(ohlc(100, 105, 99, 100), take=105).fills) == 1
    r = protected(ohlc(100, 105.5, 99, 100), take=105, costs=dict(spread_bps=20))
    assert short(r)[1:] == [(2, -10, 105, "take")]


def test_gap_through_the_take_exits_at_the_open():
    assert short(protected(ohlc(107, 108, 104, 105), take=105))[1:] == [(2, -10, 107, "take")]
    assert short(protected(ohlc(93, 96, 92, 95), take=95, side=-1))[1:] == [(2, 10, 93, "take")]


def test_stop_pays_market_costs():
    # 95 * (1 - 20 / 2 / 1e4) = 94.905
    r = protected(ohlc(100, 100, 94, 94), stop=95, costs=dict(spread_bps=20))
    assert r.fills[1].ref == 95 and r.fills[1].price == pytest.approx(94.905)


def test_protection_works_on_the_entry_bar_unless_stop_from_next():
    rows, wish = [flat(100), ohlc(100, 101, 94, 96), ohlc(96, 97, 94, 96)], {0: dict(target=1, stop=95)}
    assert short(run(rows, wish))[1:] == [(1, -10, 95, "stop")]
    assert short(run(rows, wish, stop_from="next"))[1:] == [(2, -10, 95, "stop")]


def test_stop_beyond_the_open_of_the_entry_bar_exits_at_that_open():
    assert short(run([flat(100), ohlc(94, 99, 93, 96)], {0: dict(target=1, stop=95)})) == [
        (1, 10, 94, "target"),
        (1, -10, 94, "stop"),
    ]


def test_limit_then_stop_in_one_bar():
    r = run([flat(100), ohlc(100, 100, 95, 99)], {0: dict(target=1, limit=98, stop=96)})
    assert short(r) == [(1, 10, 98, "target"), (1, -10, 96, "stop")]
    # a stop above the limit was already hit where the limit filled: exit at 98, not at 99
    r = run([flat(100), ohlc(100, 100, 95, 99)], {0: dict(target=1, limit=98, stop=99)})
    assert short(r) == [(1, 10, 98, "target"), (1, -10, 98, "stop")]


def test_position_opened_inside_the_bar_cannot_take_on_it():
    rows = [flat(100), ohlc(100, 105, 97, 99), ohlc(100, 105, 97, 99)]
    assert short(run(rows, {0: dict(target=1, limit=98, take=101)}))[1:] == [(2, -10, 101, "take")]
    # but one that a limit opened at the open can
    rows = [flat(100), ohlc(97, 105, 97, 99)]
    assert short(run(rows, {0: dict(target=1, limit=98, take=101)}))[1:] == [(1, -10, 101, "take")]


def test_trailing_stop_follows_the_highs_up_to_the_previous_bar():
    rows = [flat(100), ohlc(100, 104, 99, 103), ohlc(103, 106, 102, 105), ohlc(104, 104, 102, 103)]
    # levels: bar 1: 100 - 3 = 97; bar 2: 104 - 3 = 101; bar 3: 106 - 3 = 103 >= low 102
    assert short(run(rows, {0: dict(target=1, trail=3)}))[1:] == [(3, -10, 103, "trail")]


def test_reason_is_trail_only_when_it_binds_strictly():
    rows = [flat(100), flat(100), ohlc(100, 100, 90, 95)]
    assert run(rows, {0: dict(target=1, stop=97, trail=3)}).fills[1].reason == "stop"
    assert run(rows, {0: dict(target=1, stop=96, trail=3)}).fills[1].reason == "trail"


def test_short_trailing_stop_gap():
    # level 100 + 2, then bar 1 low 95: level 97, open 99 above it
    rows = [flat(100), ohlc(100, 101, 95, 96), ohlc(99, 100, 98, 99)]
    assert short(run(rows, {0: dict(target=-1, trail=2)}))[1:] == [(2, 10, 99, "trail")]


def test_hold_restates_the_stop():
    rows = [flat(100), flat(100), ohlc(100, 100, 97, 98)]
    r = run(rows, {0: dict(target=1, stop=90), 1: dict(stop=98)})
    assert short(r)[1:] == [(2, -10, 98, "stop")]


def test_unchanged_target_leaves_protection_alone():
    # protection comes with the entry; only a hold moves it
    rows = [flat(100), flat(100), ohlc(100, 100, 97, 98)]
    assert len(run(rows, {0: dict(target=1, stop=90), 1: dict(target=1, stop=98)}).fills) == 1


def test_reduction_passes_its_levels_to_what_is_left():
    rows = [flat(100), flat(100), ohlc(100, 100, 97, 98)]
    r = run(rows, {0: dict(target=1, stop=90), 1: dict(target=0.5, stop=98)})
    assert short(r)[1:] == [(2, -5, 100, "target"), (2, -5, 98, "stop")]


def test_closing_order_passes_its_levels_too():
    # out at 105 by a limit, or at 98 by a stop, whichever comes first
    rows = [flat(100), flat(100), ohlc(100, 100, 97, 98), flat(106)]
    r = run(rows, {0: dict(target=1), 1: dict(target=0, limit=105, stop=98)})
    assert short(r)[1:] == [(2, -10, 98, "stop")] and statuses(r) == ["filled", "cancelled"]


def test_target_of_the_order_that_survives_a_stop_stands():
    # stopped at 2 and turned short at the same open; the target is -1 then, also with reentry="always", so 0 closes it
    rows, wishes = (
        [flat(100), flat(100), flat(90), flat(90)],
        {0: dict(target=1, stop=95), 1: dict(target=-1), 2: dict(target=0)},
    )
    assert short(run(rows, wishes, reentry="always"))[2:] == [(2, -10, 90, "target"), (3, 10, 90, "target")]


def test_protective_exit_keeps_an_order_to_the_other_side():
    # the reversal decided at 1 meets a gap through the stop at 2: exit 10 as stop, then 10 short at the same open
    r = run([flat(100), flat(100), flat(90)], {0: dict(target=1, stop=95), 1: dict(target=-1)})
    assert short(r)[1:] == [(2, -10, 90, "stop"), (2, -10, 90, "target")]


def test_protective_exit_cancels_an_order_to_add():
    r = run([flat(100), flat(100), flat(90)], {0: dict(target=1, stop=95), 1: dict(target=2)})
    assert short(r)[1:] == [(2, -10, 90, "stop")] and statuses(r) == ["filled", "cancelled"]


@pytest.mark.parametrize("reentry, bars", [("changed", [1, 2]), ("always", [1, 2, 3])])
def test_reentry(reentry, bars):
    rows = [flat(100), flat(100), ohlc(100, 100, 94, 96), flat(96)]
    r = run(rows, {t: dict(target=1, stop=95) for t in range(4)}, reentry=reentry)
    assert [f.t for f in r.fills] == bars


def test_levels_are_seen_prices():
    # split 2 for 1 on bar 2, so seen = 2 * raw; the stop 90 given at bar 2 is 45 raw
    rows = [flat(100), flat(100), flat(50), ohlc(48, 49, 44, 46)]
    r = run(rows, {0: dict(target=1), 2: dict(stop=90)}, bars=dict(events=[(2, 0, SPLIT, 2.0)]))
    assert short(r)[1:] == [(3, -20, 45, "stop")]


# ---- cash, cap, costs


def test_cash_cut_to_what_fees_leave():
    # 10 wanted at close 100; open 110 with 100 bps fee: 1000 / (110 * 1.01) = 9.0009
    rows, costs = [flat(100), flat(110)], dict(fee_bps=100)
    r = run(rows, LONG, initial=1000.0, sizing=dict(fraction=1.0), costs=costs, bars=dict(lot=1.0))
    assert short(r) == [(1, 9, 110, "target")] and r.account["cash"] == pytest.approx(1000 - 9 * 111.1)
    r = run(rows, LONG, initial=1000.0, sizing=dict(fraction=1.0), costs=costs)
    assert r.fills[0].qty == pytest.approx(1000 / 111.1, rel=1e-9) and abs(r.account["cash"]) < 1e-8
    r = run(rows, LONG, initial=1000.0, sizing=dict(fraction=1.0), costs=costs, on_cash="refuse")
    assert not r.fills and statuses(r) == ["refused"] and r.equity == [1000, 1000]


def test_order_that_fits_exactly_is_not_refused():
    r = run([flat(99.9), flat(99.9)], LONG, initial=1000.0, sizing=dict(fraction=1.0), on_cash="refuse")
    assert statuses(r) == ["filled"]


def test_cash_rule_marks_other_symbols_at_this_open():
    # 500 of symbol 0 halves overnight: equity at the open 1000 - 250 = 750, twice that less 250 is 1250: 12.5 units
    rows = [[flat(100), flat(100)], [flat(100), flat(100)], [flat(50), flat(100)]]
    r = run(rows, {(0, 0): dict(target=0.5), (1, 1): dict(target=2)}, initial=1000.0, leverage=2.0)
    assert [(f.j, pytest.approx(f.qty)) for f in r.fills] == [(0, 5), (1, 12.5)]


def test_reversal_is_cut_in_its_increasing_part_only():
    # long 10 from 1000; the price falls to 50: equity 500, so at most 10 short; wanted 1 * 1000 / 100 = 10 at bar 1
    rows = [flat(100), flat(100), flat(40)]
    r = run(rows, {0: dict(target=1), 1: dict(target=-1)}, initial=1000.0, sizing=dict(fraction=1.0),
            costs=dict(fee_fixed=40.0), bars=dict(lot=1.0))  # fmt: skip
    # bar 1: 9 bought (900 + 40); cash 60, equity 960, wanted -9; bar 2: 60 + 360 - 40 = 380, so 9 short needs 360
    assert short(r) == [(1, 9, 100, "target"), (2, -18, 40, "target")]
    r = run(rows, {0: dict(target=1), 1: dict(target=-1)}, initial=1000.0, sizing=dict(fraction=1.0),
            costs=dict(fee_fixed=70.0), bars=dict(lot=1.0))  # fmt: skip
    # bar 1: 9 bought, cash 30, equity 930, wanted -9; bar 2: 30 + 360 - 70 = 320 = 8 short
    assert short(r) == [(1, 9, 100, "target"), (2, -17, 40, "target")]
    r = run(rows, {0: dict(target=1), 1: dict(target=-1)}, initial=1000.0, sizing=dict(fraction=0.9),
            costs=dict(fee_fixed=70.0), on_cash="refuse", bars=dict(lot=1.0))  # fmt: skip
    # bar 1: 9 bought, equity 930; wanted -0.9 * 930 / 100 = -8; bar 2: 8 short needs exactly 320
    assert short(r) == [(1, 9, 100, "target"), (2, -17, 40, "target")]


def test_refused_reversal_still_closes():
    rows = [flat(100), flat(100), flat(40)]
    r = run(rows, {0: dict(target=1), 1: dict(target=-1)}, initial=1000.0, sizing=dict(fraction=0.9),
            costs=dict(fee_fixed=90.0), on_cash="refuse", bars=dict(lot=1.0))  # fmt: skip
    # 9 bought, cash 10, equity 910; wanted -8 needs 320, there is 10 + 360 - 90 = 280
    assert short(r) == [(1, 9, 100, "target"), (2, -9, 40, "target")] and statuses(r) == ["filled", "cut"]


@pytest.mark.parametrize(
    "costs, fee",
    [
        (dict(fee_bps=10), 1.0),  # 1000 * 10 bps
        (dict(fee_bps=10, fee_per_unit=0.05), 1.5),  # + 10 * 0.05
        (dict(fee_bps=10, fee_min=5), 5.0),
        (dict(fee_bps=10, fee_min=5, fee_max_bps=30), 3.0),
        (dict(fee_bps=10, fee_min=5, fee_max_bps=30, fee_fixed=0.5), 3.5),
    ],
)
def test_fee_minimum_cap_and_fixed(costs, fee):
    r = run([flat(100), flat(100)], LONG, costs=costs)
    assert r.fills[0].fee == pytest.approx(fee) and r.equity[-1] == pytest.approx(10_000 - fee)


def test_spread_on_entry_is_not_paid_on_the_way_out():
    rows, wishes = [flat(100)] * 3, {0: dict(target=1), 1: dict(target=0)}
    assert [f.spread for f in run(rows, wishes, costs=dict(spread_bps=20)).fills] == pytest.approx([1, 1])
    assert [f.spread for f in run(rows, wishes, costs=dict(spread_bps=20), spread_on="entry").fills] == pytest.approx(
        [1, 0]
    )


def test_tick_rounds_against_the_trader_and_counts_as_slippage():
    # 100 * 1.0003 = 100.03 -> 100.05
    r = run([flat(100), flat(100)], LONG, costs=dict(slippage_bps=3), bars=dict(tick=0.05))
    assert r.fills[0].price == pytest.approx(100.05) and r.fills[0].slippage == pytest.approx(0.5)


def test_slippage_and_impact_from_volatility():
    # returns +10 % and -10 %: EWMA variance 0.94 * 0.01 + 0.06 * 0.01 = 0.01, deviation 0.1
    # slippage 0.02 * 0.1 = 0.2 %; impact 0.1 * 0.1 * sqrt(10 / 1000) = 0.1 %; price 100 * 1.003
    r = run([flat(100), flat(110), flat(99), flat(100)], {2: dict(target=1)}, costs=dict(slippage_vol=0.02, impact=0.1))
    assert r.fills[0].price == pytest.approx(100.3)
    assert (r.fills[0].slippage, r.fills[0].impact) == (pytest.approx(2.0), pytest.approx(1.0))


def test_participation_cap_carries_the_rest_on():
    r = run([flat(100)] + [flat(100, 40.0)] * 4, LONG, participation=0.1)
    assert short(r) == [(1, 4, 100, "target"), (2, 4, 100, "target"), (3, 2, 100, "target")]
    r = run([flat(100)] + [flat(100, 40.0)] * 4, {0: dict(target=0.9)}, participation=0.1, bars=dict(lot=3.0))
    assert [f.qty for f in r.fills] == [3, 3, 3]


def test_partial_fill_then_protection():
    # 4 bought on bar 1, where the stop is hit too, but the cap is used up: 4 sold at the next open, the rest cancelled
    rows = [flat(100), ohlc(100, 101, 94, 96, 40.0), flat(96, 40.0), flat(96, 40.0)]
    r = run(rows, {0: dict(target=1, stop=95)}, participation=0.1)
    assert short(r) == [(1, 4, 100, "target"), (2, -4, 96, "stop")]
    assert statuses(r) == ["cancelled", "filled"] and r.trades[0].exit_reason == "stop"


def test_remainder_of_a_stop_works_on_at_market():
    rows = [flat(100), flat(100), ohlc(100, 100, 94, 96, 60.0), flat(97, 60.0)]
    r = run(rows, {0: dict(target=1, stop=95)}, participation=0.1)
    assert short(r)[1:] == [(2, -6, 95, "stop"), (3, -4, 97, "stop")]


def test_triggered_protection_is_spent():
    # the rest of a stopped position leaves at market, although the next open is beyond the take
    rows = [flat(100), flat(100), ohlc(100, 100, 94, 96, 60.0), flat(120, 60.0)]
    r = run(rows, {0: dict(target=1, stop=95, take=110)}, participation=0.1)
    assert short(r)[1:] == [(2, -6, 95, "stop"), (3, -4, 120, "stop")]


def test_financing():
    # 1000 * 0.365 / 365 = 1 a day, from the bar after the entry on
    rows = [flat(100)] * 4
    r = run(rows, {0: dict(target=-1)}, costs=dict(borrow_rate=0.365))
    assert r.equity == pytest.approx([10_000, 10_000, 9_999, 9_998]) and r.account["borrow"] == pytest.approx(2)
    r = run(rows, LONG, costs=dict(funding_rate=0.365, borrow_rate=9.0))
    assert r.equity[-1] == pytest.approx(9_998) and r.account["funding"] == pytest.approx(2)
    r = run(rows, {0: dict(target=-1)}, costs=dict(funding_rate=0.365))
    assert r.equity[-1] == pytest.approx(10_002)


def test_multiplier():
    r = run([flat(100), flat(100), flat(102)], LONG, costs=dict(fee_bps=10), bars=dict(multiplier=5.0))
    assert r.equity[-1] == pytest.approx(10_000 - 5 + 10 * 2 * 5)  # fee 10 * 100 * 5 * 10 bps


# ---- events


def test_split_pays_the_remainder_of_a_lot_in_cash():
    # 5 bought at 90; 3 for 2: 7.5 -> 7, half a share at 90 / 1.5 = 60 is 30
    rows = [flat(90), flat(90), flat(60)]
    r = run(rows, {0: dict(target=0.5)}, bars=dict(lot=1.0, events=[(2, 0, SPLIT, 1.5)]))
    assert r.account["cash"] == pytest.approx(10_000 - 450 + 30) and r.account["qty"] == [7]
    assert r.equity[-1] == pytest.approx(10_000) and r.account["avg"] == [pytest.approx(60)]
    assert r.trades[0].qty == 7.5 and r.trades[0].entry_price == pytest.approx(60)
    assert short(r)[1:] == [(2, -0.5, 60, "split")]


def test_split_that_leaves_less_than_a_lot_closes_the_trade():
    # 5 at 90, 1 for 10: half a share at 900
    r = run([flat(90), flat(90), flat(900)], {0: dict(target=0.5)}, bars=dict(lot=1.0, events=[(2, 0, SPLIT, 0.1)]))
    assert r.account["qty"] == [0] and r.equity[-1] == pytest.approx(10_000)
    assert r.trades[0].exit_reason == "split" and not r.trades[0].open


def test_reverse_split_that_leaves_nothing_to_order_cancels_it():
    # 5 wanted, 1 for 10: half a share is less than a lot
    r = run([flat(10), flat(100)], {0: dict(target=0.5)}, bars=dict(lot=1.0, events=[(1, 0, SPLIT, 0.1)]))
    assert not r.fills and statuses(r) == ["cancelled"]


def test_split_restates_orders_and_protection():
    rows = [flat(100), flat(100), ohlc(50, 51, 46.5, 48)]
    r = run(rows, {0: dict(target=1, stop=94)}, bars=dict(events=[(2, 0, SPLIT, 2.0)]))
    assert short(r)[1:] == [(2, -20, 47, "stop")]
    r = run(rows, {0: dict(target=1, limit=94)}, bars=dict(events=[(2, 0, SPLIT, 2.0)]))
    assert short(r) == [(2, 20, 47, "target")]


def test_dividend_on_a_short_is_paid_by_it():
    r = run([flat(100), flat(100), flat(98)], {0: dict(target=-1)}, bars=dict(events=[(2, 0, DIVIDEND, 2.0)]))
    assert r.account["cash"] == 10_000 + 1000 - 20 and r.equity[-1] == 10_000
    assert r.trades[0].dividends == -20 and r.trades[0].pnl == 0


def test_dividend_leaves_levels_unchanged():
    rows = [flat(100), flat(100), ohlc(98, 98, 97, 97)]
    r = run(rows, {0: dict(target=1, stop=96)}, bars=dict(events=[(2, 0, DIVIDEND, 2.0)]))
    assert len(r.fills) == 1 and r.equity[-1] == 10_000 + 20 - 30


def test_dividend_then_split_on_one_day():
    # 1 per old share on 10, then 2 for 1
    r = run([flat(100), flat(100), flat(50)], LONG, bars=dict(events=[(2, 0, SPLIT, 2.0), (2, 0, DIVIDEND, 1.0)]))
    assert r.equity[-1] == 10_010 and r.account["qty"] == [20]


@pytest.mark.parametrize("value, price", [(40.0, 40.0), (NAN, 90.0)])
def test_delisting_closes_at_its_value_or_at_the_mark(value, price):
    rows = [[flat(100)], [ohlc(100, 100, 90, 90)], [None], [None]]
    r = run(rows, {0: dict(target=1), 1: dict(target=2)}, costs=dict(fee_fixed=1), bars=dict(
        events=[(2, 0, DELISTING, value)]))  # fmt: skip
    assert short(r)[1:] == [(2, -10, price, "delisted")] and statuses(r) == ["filled", "cancelled"]
    assert r.equity[-1] == 10_000 - 1 - 10 * (100 - price)


# ---- rebalance, sizing, limits


@pytest.mark.parametrize("band, sold", [(0.04, 0.5 * 1000 / 100 - 550 / 120), (0.05, None), (None, None)])
def test_band(band, sold):
    # 5 units; at 120 the weight is 600 / 1100 = 0.5455, 0.0455 above the target; wanted 550 / 120
    rows = [flat(100), flat(100), ohlc(100, 120, 100, 120), flat(120)]
    r = run(rows, {t: dict(target=0.5) for t in range(4)}, initial=1000.0, sizing=dict(fraction=1.0), band=band)
    assert short(r)[1:] == ([] if sold is None else [(3, -sold, 120, "target")])


def test_band_does_not_reenter_after_a_stop():
    rows = [flat(100), flat(100), ohlc(100, 100, 94, 96), flat(96)]
    r = run(rows, {t: dict(target=1, stop=95) for t in range(4)}, band=0.05, sizing=dict(fraction=0.5))
    assert [f.t for f in r.fills] == [1, 2]


def test_max_weight():
    r = run([flat(100), flat(100)], LONG, initial=1000.0, sizing=dict(fraction=1.0), limits=dict(max_weight=0.3))
    assert short(r) == [(1, 3, 100, "target")]


def test_max_weight_is_a_size_that_rebalancing_comes_back_to():
    # 3 units are 0.3 of 1000; at 200 they are 600 of 1300: 0.3 of 1300 at 200 is 1.95
    rows = [flat(100), flat(100), flat(200), flat(200)]
    r = run(rows, {t: dict(target=1) for t in range(4)}, initial=1000.0, sizing=dict(fraction=1.0),
            limits=dict(max_weight=0.3), band=0.05)  # fmt: skip
    assert short(r)[1:] == [(3, -1.05, 200, "target")]


def test_gross_cap_cuts_the_later_symbol():
    rows, wishes = [[flat(100), flat(100)]] * 2, {(0, 0): dict(target=1), (0, 1): dict(target=1)}
    r = run(rows, wishes, initial=1000.0, sizing=dict(fraction=1.0), limits=dict(max_gross=1.5), leverage=3.0)
    assert [f.qty for f in r.fills] == [10, 5]


def test_net_cap_lets_the_other_side_in():
    rows, wishes = [[flat(100), flat(100)]] * 2, {(0, 0): dict(target=1), (0, 1): dict(target=-1)}
    r = run(rows, wishes, initial=1000.0, sizing=dict(fraction=1.0), limits=dict(max_net=0.5), leverage=3.0)
    assert [f.qty for f in r.fills] == [5, -10]  # 500 long, then net down to -500


def test_limits_never_cut_what_is_held():
    # 10 held, gross limit would allow 5: adding is cut to nothing, but nothing is sold
    rows = [flat(100), flat(100), flat(200), flat(200)]
    r = run(rows, {0: dict(target=0.5), 2: dict(target=0.9)}, initial=2000.0, sizing=dict(fraction=1.0),
            limits=dict(max_gross=0.5))  # fmt: skip
    assert short(r) == [(1, 10, 100, "target")]


def test_kelly():
    # before two trades fraction * kelly_fraction = 1. Trades: +100 (10 from 100 to 110) and -50 (10 from 110 to 105):
    # W = 1/2, R = 2, k = 1/2 - 1/2 / 2 = 1/4 of equity 1050 at 105 = 2.5 units
    rows = [flat(100), ohlc(100, 110, 100, 110), flat(110), ohlc(110, 110, 105, 105), flat(105), flat(105)]
    wishes = {0: dict(target=1), 1: dict(target=0), 2: dict(target=1), 3: dict(target=0), 4: dict(target=1)}
    r = run(rows, wishes, initial=1000.0, sizing=dict(kind="kelly", kelly_fraction=1.0, kelly_min=2))
    assert [f.qty for f in r.fills] == pytest.approx([10, -10, 10, -10, 2.5])


def test_volatility_sizing():
    # deviation 0.1 (see the impact test), yearly 0.1 * sqrt(25) = 0.5, weight 0.1 / 0.5 = 0.2 of 1000 at 99; the same
    # target before two returns makes no order and is not accepted
    rows, wishes = [flat(100), flat(110), flat(99), flat(99)], {t: dict(target=1) for t in range(3)}
    r = run(rows, wishes, initial=1000.0, sizing=dict(kind="volatility", vol_target=0.1), bars=dict(ppy=25.0))
    assert short(r) == [(3, 200 / 99, 99, "target")]


def test_leaving_the_universe_closes():
    r = run([flat(100)] * 4, {t: dict(target=1) for t in range(4)}, bars=dict(outside={(2, 0), (3, 0)}))
    assert short(r)[1:] == [(3, -10, 100, "target")]


# ---- the account


def test_drawdown_breaker_closes_and_halts():
    rows = [flat(100), ohlc(100, 100, 89, 89), flat(90), flat(90)]
    r = run(rows, {0: dict(target=1), 2: dict(target=0.5)}, initial=1000.0, sizing=dict(fraction=1.0),
            limits=dict(max_drawdown=0.1))  # fmt: skip
    assert short(r)[1:] == [(2, -10, 90, "breaker")] and r.account["halted"] and r.equity[-1] == 900


def test_daily_loss_closes_and_waits_for_the_next_session():
    # 1000 -> 940 in session 0; in session 1 the same target does not enter, a changed one does
    rows = [flat(100), ohlc(100, 100, 94, 94), flat(94), flat(94), flat(94), flat(94)]
    wishes = {0: dict(target=1), 2: dict(target=0.5), 3: dict(target=1), 4: dict(target=0.5)}
    r = run(rows, wishes, initial=1000.0, sizing=dict(fraction=1.0), limits=dict(daily_loss=0.05),
            bars=dict(sessions=[0, 0, 0, 1, 1, 1]))  # fmt: skip
    assert short(r)[1:] == [(2, -10, 94, "daily_loss"), (5, 5, 94, "target")]


def test_liquidation_below_maintenance_then_on():
    # 20 at 100 on 1000; at 60 equity 200 <= 0.25 * 1200; closed at 61: 220
    rows = [flat(100), flat(100), flat(60), flat(61), flat(61)]
    r = run(rows, {0: dict(target=1), 2: dict(target=0.5), 3: dict(target=0.5)}, initial=1000.0,
            sizing=dict(fraction=2.0), leverage=2.0, maintenance=0.25)  # fmt: skip
    assert short(r)[1:] == [(3, -20, 61, "liquidation"), (4, 220 / 61, 61, "target")]


def test_ruin_halts_for_good():
    rows = [flat(100), flat(100), flat(40), flat(40), flat(40)]
    r = run(rows, {0: dict(target=1), 3: dict(target=0.5)}, initial=1000.0, sizing=dict(fraction=2.0), leverage=2.0)
    assert short(r)[1:] == [(3, -20, 40, "liquidation")] and r.account["halted"] and r.equity[-1] == -200


def test_nothing_but_rounding_left_is_ruin():
    # all the money in a symbol that is delisted at 0: what is left is 1000 - 9.87 * (1000 / 9.87), which need not be 0
    rows = [[flat(9.87)], [flat(9.87)], [None], [None]]
    r = run(rows, LONG, initial=1000.0, sizing=dict(fraction=1.0), bars=dict(events=[(2, 0, DELISTING, 0.0)]))
    assert abs(r.equity[-1]) < 1e-9 and r.account["halted"]


def test_at_end_close_and_mark():
    rows = [flat(100), flat(100), flat(110)]
    r = run(rows, LONG, costs=dict(spread_bps=20), at_end="close")
    assert short(r)[1:] == [(2, -10, 109.89, "end")] and r.trades[0].exit_reason == "end"  # 110 * 0.999
    assert r.equity[-1] == pytest.approx(10_000 + 98.9 - 1)
    r = run(rows, LONG)
    assert len(r.fills) == 1 and r.trades[0].open and r.trades[0].pnl == 100


def test_fill_at_close():
    r = run([flat(100), flat(105)], LONG, fill="close", costs=dict(fee_fixed=3))
    assert short(r) == [(0, 10, 100, "target")] and r.equity == [9_997, 10_047]


def test_fill_at_close_leaves_limits_and_stops_to_the_next_bar():
    rows = [ohlc(100, 100, 80, 100), ohlc(100, 100, 97, 98)]
    assert short(run(rows, {0: dict(target=1, limit=99)}, fill="close")) == [(1, 10, 99, "target")]
    r = run(rows, {0: dict(target=1, stop=98)}, fill="close")
    assert short(r) == [(0, 10, 100, "target"), (1, -10, 98, "stop")]


def test_fill_at_close_is_a_bar_on_which_the_order_could_fill():
    rows, wish = [flat(100, 40.0)] * 3, dict(target=1, expire=2)
    r = run(rows, {0: wish}, fill="close", participation=0.1)
    assert [f.t for f in r.fills] == [0, 1] and statuses(r) == ["expired"]


def test_forced_exit_waits_for_the_next_open_also_with_fill_at_close():
    r = run([flat(100), flat(80), flat(81)], LONG, initial=1000.0, fill="close", limits=dict(max_drawdown=0.1))
    assert short(r)[1:] == [(2, -10, 81, "breaker")]


def test_trade_excursions():
    rows = [flat(100), ohlc(100, 108, 97, 105), ohlc(105, 111, 104, 110), flat(106)]
    r = run(rows, {0: dict(target=1), 2: dict(target=0)})
    assert r.trades[0].excursions() == pytest.approx((-0.03, 0.11)) and r.trades[0].bars == 2


def test_decision_function_sees_seen_prices_and_its_position():
    seen = []

    def decide(t, j, view):
        seen.append((view.bar[3], view.position))
        return Decision(target=1.0) if t == 0 else None

    bars = bars_of([flat(100), flat(100), flat(50)], events=[(2, 0, SPLIT, 2.0)])
    run_reference(bars, decide, sizing=dict(kind="quantity", quantity=10.0))
    assert seen == [(100, 0), (100, 10), (100, 20)]


# ---- laws on random cases


def test_conservation_is_asserted(monkeypatch):
    pay = Reference.fee

    def lost(self, qty, notional):
        self.cash -= 1
        return pay(self, qty, notional)

    monkeypatch.setattr(Reference, "fee", lost)
    with pytest.raises(AssertionError, match="conserved"):
        run([flat(100), flat(100)], LONG)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_trades_add_up_and_the_future_changes_nothing(case):
    r = run_reference(*case.arguments)
    gained = r.equity[-1] - case.initial
    scale = case.initial + sum(abs(f.qty * f.price) * 5 for f in r.fills)
    assert sum(trade.pnl for trade in r.trades) == pytest.approx(gained, abs=1e-9 * scale)
    n = (len(case.bars.ts) + 1) // 2
    case.options.at_end, whole = "mark", r
    part = run_reference(case.bars.head(n), case.decisions[:n], *case.arguments[2:])
    last = n - 1 if n < len(case.bars.ts) else n
    assert part.equity[:last] == whole.equity[:last]
    assert [f for f in part.fills if f.t < last] == [f for f in whole.fills if f.t < last]


@settings(max_examples=60, deadline=None)
@given(cases)
def test_fills_respect_bars_lots_and_participation(case):
    r, bars = run_reference(*case.arguments), case.bars
    used = Counter()
    for f in r.fills:
        if f.reason in ("end", "delisted", "split"):
            continue
        o, h, lo, c, volume = bars.raw[f.t, f.j]
        assert bars.flags[f.t, f.j] & 3 == 3 and lo <= f.ref <= h
        used[f.t, f.j] += abs(f.qty)
        p = case.options.participation
        assert not (p and volume > 0) or used[f.t, f.j] <= p * volume * (1 + 1e-9)
        lots = f.qty / bars.instruments[f.j].lot if bars.instruments[f.j].lot else 0
        assert abs(lots - round(lots)) < 1e-6
        assert f.fee >= 0 and f.spread >= 0 and f.slippage >= -1e-9 and f.impact >= 0
    assert np.isfinite(r.equity).all()


def test_random_cases_reach_every_path():
    seen = Counter()
    for seed in range(600):
        r = run_reference(*random_case(random.Random(seed)).arguments)
        seen.update(f.reason for f in r.fills)
        seen.update(o.status for o in r.orders)
    wanted = "target stop take trail breaker daily_loss liquidation delisted end split "
    wanted += "filled cancelled refused cut expired working"
    assert all(seen[word] >= 3 for word in wanted.split()), seen


def test_stamps_are_days():
    assert np.diff(bars_of([flat(1)] * 3).ts).tolist() == [DAY, DAY]
