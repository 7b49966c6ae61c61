"""Equality with vectorbt: under the same conventions the same trades and the same equity, to 1e-9.

What each side is told, so that both mean the same:

- vectorbt's signals and target weights are shifted by one row and its price is the open: a decision at a close fills at the
  next open. Its weights are measured at the close before (`val_price=-inf`). With `fill="close"` nothing is shifted.
- All-in buying: a full position of twice the equity, which the cash rule cuts to what the money buys at the fill.
- Stops: a stop is a share of the entry price, which is known at the entry bar's close; `hold` sets it there, and it starts with the
  next bar, as vectorbt's does. A take needs a touch (`limit_touch="touch"`), takes pay slippage as stops do (`maker_costs=True`,
  there `stop_exit_price="stopmarket"`), and any entry signal after an exit enters again (`reentry="always"`).
- vectorbt lets a stop go before a signal that would have traded at the open of the same bar, which no order of events inside
  a bar gives, so the tests with stops leave by them alone. It also takes a stop inside the bar for earlier than a take that the
  open has passed; levels here are wide enough that no bar holds both. Opposite signals are ignored by both.
- vectorbt trails by a share of the best price since entry but leaves out the entry bar; told that the entry price of the stop is
  the high (low) of that bar, it follows what our trailing stop follows.
- vectorbt does not sell what brings less than its fixed fee, so weights are compared without one.
"""

import numpy as np
import pandas as pd
import pytest

from tradebench.backtest.costs import Costs
from tradebench.backtest.simulation import backtest
from tradebench.data.bars import prepare
from tradebench.data.instruments import Instrument
from tradebench.errors import EngineError
from tradebench.features.indicator import SMA, sma
from tradebench.params import param
from tradebench.risk.sizing import fraction, quantity
from tradebench.strategies.strategy import STRATEGIES, column, decide, hold, long_if, strategy

TOL = 1e-9
ALL_IN = fraction(2.0)
STOPS = dict(limit_touch="touch", maker_costs=True, reentry="always")
VBT_STOPS = dict(stop_exit_price="stopmarket", upon_opposite_entry="ignore")
COSTS = [Costs(), Costs(fee_bps=10), Costs(fee_bps=7, fee_fixed=1.5, slippage_bps=4)]


@pytest.fixture(scope="module")
def vbt():
    return pytest.importorskip("vectorbt")


def path(seed, T=600):
    r = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(r.normal(0, 0.012, T)))
    first = np.r_[100.0, close[:-1]] * np.exp(r.normal(0, 0.003, T))
    high, low = (
        np.maximum(first, close) * (1 + r.uniform(0, 0.01, T)),
        np.minimum(first, close) * (1 - r.uniform(0, 0.01, T)),
    )
    return pd.DataFrame(
        dict(open=first, high=high, low=low, close=close, volume=1e6),
        index=pd.date_range("2024-01-01", periods=T, freq="D", tz="UTC", name="ts"),
    )


def vbt_costs(c) -> dict:
    return dict(fees=c.fee_bps * 1e-4, fixed_fees=c.fee_fixed, slippage=c.slippage_bps * 1e-4)


def later(signal, fill=False):
    return signal.shift(1, fill_value=fill)


def assert_same_equity(r, pf):
    np.testing.assert_allclose(r.equity.to_numpy(), pf.value().to_numpy(), rtol=TOL)
    np.testing.assert_allclose(r.to_vectorbt().value().to_numpy(), r.equity.to_numpy(), rtol=TOL)


def assert_same_trades(r, records, least):
    t, symbols = r.trades, list(r.bars.symbols)
    ours = pd.DataFrame(
        dict(
            col=[symbols.index(s) for s in t.symbol], size=t.qty, entry_idx=r.index.get_indexer(t.entry_ts),
            entry_price=t.entry_price, exit_idx=r.index.get_indexer(t.exit_ts), exit_price=t.exit_price, pnl=t.pnl,
            fees=t.fees, side=t.side, open=t.open.astype(int), **{"return": t.ret},
        )
    ).sort_values(["col", "entry_idx"], ignore_index=True)  # fmt: skip
    theirs = pd.DataFrame(np.asarray(records)) if isinstance(records, np.ndarray) else records.reset_index(drop=True)
    theirs = theirs.assign(
        fees=theirs.entry_fees + theirs.exit_fees, side=1 - 2 * theirs.direction, open=(theirs.status == 0).astype(int)
    )
    assert len(ours) == len(theirs) >= least
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=TOL, atol=1e-9, err_msg=name)


# ---- signals


@strategy
class VbtCross:
    "Long while the fast average is above the slow one."

    fast = param(8, 1, 100, "bars")
    slow = param(30, 2, 200, "bars")
    state = dict(f=SMA("fast"), s=SMA("slow"))

    def step(s, p, row):
        return long_if(sma(s.f, row.close) > sma(s.s, row.close))


@pytest.mark.parametrize("costs", COSTS, ids=["free", "fees", "fees and slippage"])
@pytest.mark.parametrize("fill", ["next_open", "close"])
def test_sma_cross_all_in(vbt, costs, fill):
    bars = path(1)
    above = bars.close.rolling(8).mean() > bars.close.rolling(30).mean()
    r = backtest(VbtCross(fast=8, slow=30), bars, costs=costs, sizing=ALL_IN, initial=10_000, fill=fill)
    at = dict(price=bars.open) if fill == "next_open" else {}
    entries, exits = (later(above), later(~above)) if at else (above, ~above)
    pf = vbt.Portfolio.from_signals(bars.close, entries, exits, init_cash=10_000, freq="D", **at, **vbt_costs(costs))
    assert_same_equity(r, pf)
    assert_same_trades(r, pf.trades.records, 8)


@pytest.mark.parametrize("costs", COSTS, ids=["free", "fees", "fees and slippage"])
def test_long_and_short_with_reversals(vbt, costs):
    bars, r = path(2), np.random.default_rng(3)
    up, down = (pd.Series(r.random(len(bars)) < 0.05, bars.index) for _ in range(2))
    out, cover = (pd.Series(r.random(len(bars)) < 0.04, bars.index) for _ in range(2))
    clash = (
        (up & out) | (down & cover) | (up & down) | (up & cover) | (down & out)
    )  # each side has its own way with these
    up, down, out, cover = (x & ~clash for x in (up, down, out, cover))
    target = pd.Series(np.nan, bars.index)
    state = 0.0
    for k in range(len(bars)):  # an exit concerns its own side only
        state = 1.0 if up.iloc[k] else -1.0 if down.iloc[k] else state
        state = 0.0 if (state > 0 and out.iloc[k]) or (state < 0 and cover.iloc[k]) else state
        target.iloc[k] = state
    ours = backtest(bars=bars, target=target, costs=costs, sizing=quantity(25), initial=10_000)
    pf = vbt.Portfolio.from_signals(
        bars.close, later(up), later(out), later(down), later(cover), size=25, price=bars.open, init_cash=10_000, freq="D",
        **vbt_costs(costs),
    )  # fmt: skip
    assert_same_equity(ours, pf)
    assert_same_trades(ours, pf.trades.records, 20)
    assert set(ours.trades.side) == {1, -1}


# ---- stops


@strategy
class VbtBracket:
    "Enters on a signal; at the close of the entry bar it sets stop and take as shares of the entry price."

    lose = param(0.02, 0.0, 1.0, "share of the entry price; 1: none")
    win = param(0.03, 0.0, 1.0, "share of the entry price; 1: none")
    inputs = dict(signal=column(meaning="side to enter"))

    def step(s, p, row):
        if row.position == 0.0:
            return decide(row.signal)
        side = 1.0 if row.position > 0.0 else -1.0
        if row.held == 1:
            return hold(stop=row.entry * (1.0 - side * p.lose), take=row.entry * (1.0 + side * p.win))
        return hold()


@strategy
class VbtTrail:
    "Enters on a signal and trails by a share of the best price."

    share = param(0.03, 0.0, 1.0, "share of the best price since entry")
    inputs = dict(signal=column(meaning="side to enter"))
    state = dict(best=0.0)

    def step(s, p, row):
        if row.position == 0.0:
            return decide(row.signal)
        if row.position > 0.0:
            s.best = max(row.high, s.best) if row.held > 1 else max(row.high, row.entry)
        else:
            s.best = min(row.low, s.best) if row.held > 1 else min(row.low, row.entry)
        return hold(trail=p.share * s.best)


for made in (VbtCross, VbtBracket, VbtTrail):
    STRATEGIES.pop(made.name())  # the catalogue is for strategies that other tests may run


def signals(bars, seed, share=0.2):
    r = np.random.default_rng(seed)
    side = pd.Series(r.choice([-1.0, 0.0, 1.0], len(bars), p=[share / 2, 1 - share, share / 2]), bars.index)
    return side, dict(entries=later(side > 0), exits=False, short_entries=later(side < 0), short_exits=False)


@pytest.mark.parametrize("stop, take", [(0.02, 0.03), (0.015, 1.0), (1.0, 0.02), (0.01, 0.01)])
@pytest.mark.parametrize("costs", [Costs(), COSTS[2]], ids=["free", "costs"])
def test_stop_loss_and_take_profit(vbt, stop, take, costs):
    bars = path(4)
    side, given = signals(bars, 5)
    ours = backtest(VbtBracket(lose=stop, win=take), bars.assign(signal=side), costs=costs, sizing=quantity(20),
                    initial=10_000, **STOPS)  # fmt: skip
    pf = vbt.Portfolio.from_signals(
        bars.close, **given, size=20, price=bars.open, open=bars.open, high=bars.high, low=bars.low, init_cash=10_000,
        sl_stop=stop if stop < 1 else np.nan, tp_stop=take if take < 1 else np.nan, stop_entry_price="fillprice", freq="D",
        **VBT_STOPS, **vbt_costs(costs),
    )  # fmt: skip
    assert_same_equity(ours, pf)
    assert_same_trades(ours, pf.trades.records, 10)
    assert set(ours.trades.side) == {1, -1}
    assert {"stop" if stop < 1 else "take", "take" if take < 1 else "stop"} <= set(ours.trades.exit_reason)


def test_all_in_with_stop_and_take(vbt):
    bars, costs = path(6), COSTS[2]
    side, given = signals(bars, 7, 0.4)
    ours = backtest(VbtBracket(lose=0.02, win=0.025), bars.assign(signal=side.clip(lower=0)), costs=costs, sizing=ALL_IN,
                    initial=10_000, **STOPS)  # fmt: skip
    pf = vbt.Portfolio.from_signals(
        bars.close, given["entries"], False, price=bars.open, open=bars.open, high=bars.high, low=bars.low, init_cash=10_000,
        sl_stop=0.02, tp_stop=0.025, stop_entry_price="fillprice", freq="D", **VBT_STOPS, **vbt_costs(costs),
    )  # fmt: skip
    assert_same_equity(ours, pf)
    assert_same_trades(ours, pf.trades.records, 20)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["long", "short"])
def test_trailing_stop(vbt, sign):
    bars, costs = path(8), Costs(fee_bps=10)  # with slippage the fill could lie outside the bar, and be the best price
    side, given = signals(bars, 9, 0.3)
    side = side.where(side == sign, 0.0)
    given["short_entries" if sign > 0 else "entries"] = False
    ours = backtest(
        VbtTrail(share=0.03), bars.assign(signal=side), costs=costs, sizing=quantity(20), initial=10_000, **STOPS
    )
    pf = vbt.Portfolio.from_signals(
        bars.close, **given, size=20, price=bars.open, open=bars.open, high=bars.high, low=bars.low, init_cash=10_000,
        sl_stop=0.03, sl_trail=True, stop_entry_price="valprice", val_price=bars.high if sign > 0 else bars.low, freq="D",
        **VBT_STOPS, **vbt_costs(costs),
    )  # fmt: skip
    assert_same_equity(ours, pf)
    assert_same_trades(ours, pf.trades.records, 10)
    assert set(ours.trades.exit_reason[~ours.trades.open]) == {"trail"}


# ---- weights


@pytest.fixture(scope="module")
def three():
    return pd.concat({s: path(k, 300) for k, s in enumerate(("AA", "BB", "CC"))}, axis=1, names=["symbol", "field"])


def field(frame, name):
    return frame.xs(name, axis=1, level="field")


@pytest.mark.parametrize("long_only", [True, False], ids=["long", "long and short"])
@pytest.mark.parametrize("fill", ["next_open", "close"])
@pytest.mark.parametrize("costs", [Costs(), Costs(fee_bps=7, slippage_bps=4)], ids=["free", "costs"])
def test_weights_of_three_symbols_that_share_cash(vbt, three, long_only, fill, costs):
    r = np.random.default_rng(11)
    weights = pd.DataFrame(r.uniform(0.0 if long_only else -0.3, 0.3, (300, 3)), three.index, ["AA", "BB", "CC"])
    weights = weights.iloc[::10].reindex(weights.index, method="ffill")
    weights.iloc[100:120, 1] = 0.0
    ours = backtest(bars=three, weights=weights, costs=costs, initial=50_000, band=0.0, fill=fill)
    close = field(three, "close")
    how = dict(price=field(three, "open"), val_price=-np.inf) if fill == "next_open" else dict(price=close)
    pf = vbt.Portfolio.from_orders(
        close, later(weights, np.nan) if fill == "next_open" else weights, size_type="targetpercent", init_cash=50_000,
        group_by=True, cash_sharing=True, call_seq="auto", freq="D", **how, **vbt_costs(costs),
    )  # fmt: skip
    assert_same_equity(ours, pf)
    assert_same_trades(ours, pf.positions.records, 3)
    np.testing.assert_allclose(ours.positions.to_numpy(), pf.assets().to_numpy(), rtol=TOL, atol=1e-9)
    assert len(ours.fills) == len(pf.orders.records) > 800


# ---- results as portfolios


def test_a_result_becomes_a_portfolio(vbt):
    bars = path(12)
    r = backtest(VbtCross(fast=5, slow=20), bars, costs=COSTS[2], initial=10_000)
    pf = r.to_vectorbt()
    assert_same_equity(r, pf)
    assert_same_trades(r, pf.trades.records, 10)
    assert pf.total_return() == pytest.approx(r.metrics["total_return"], rel=TOL)


def test_what_would_not_be_the_same_is_refused(vbt):
    bars = path(13, 60)
    target = np.tile([-1.0] * 5 + [0.0] * 5, 6)

    def message(frame=bars, costs=None, **more):
        with pytest.raises(EngineError) as e:
            backtest(bars=frame, target=target, costs=costs or Costs(), initial=1e6, sizing=quantity(5)).to_vectorbt()
        return str(e.value)

    assert "borrow" in message(costs=Costs(borrow_rate=0.05)) and "funding" in message(costs=Costs(funding_rate=0.05))
    assert "multiplier" in message(prepare(bars, instruments=Instrument("X", multiplier=50)))
    symbol = prepare(bars).symbols[0]
    paid = prepare(bars, actions=[(symbol, int(bars.index[20].value), "dividend", 1.0, "")])
    assert len(paid.events) == 1 and "dividends" in message(paid)
