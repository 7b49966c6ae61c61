"""A result in the shape of `tradebench.backtest.result.Result`, built with pandas alone: for tests of metrics, plots and report."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

REASONS = np.array(["target", "stop", "take", "trail"])


def stamps(bars: int, freq: str = "D") -> pd.DatetimeIndex:
    "Known-at stamps: daily closes on weekdays, or minutes of New York sessions of 390 bars"
    if freq == "D":
        days = pd.bdate_range("2014-01-02", periods=bars, tz="America/New_York") + pd.Timedelta(hours=16)
        return days.tz_convert("UTC").as_unit("ns").rename("ts")
    days = pd.bdate_range("2014-01-02", periods=-(-bars // 390), tz="America/New_York") + pd.Timedelta("9h30min")
    days = days.tz_convert("UTC").as_unit("ns").asi8
    return pd.DatetimeIndex((days[:, None] + np.arange(1, 391) * 60_000_000_000).ravel()[:bars], tz="UTC", name="ts")


def fake_result(bars=1500, freq="D", symbols=("SIM",), seed=0, hold=30, initial=100_000.0, fee_bps=5.0, drift=3e-4):
    "A long, flat and short rule of random trend over simulated bars: fills at the open, a fee, equity marked at the close"
    rng, n, ts = np.random.default_rng(seed), len(symbols), stamps(bars, freq)
    scale = 0.012 if freq == "D" else 0.0006
    drift = drift if freq == "D" else drift / 390
    step = rng.standard_t(5, (bars, n)) * scale * 0.77 + drift
    close = 100 * np.exp(np.cumsum(step, axis=0))
    open_ = np.vstack([np.full((1, n), 100.0), close[:-1]]) * np.exp(rng.normal(0, scale / 4, (bars, n)))
    high = np.maximum(open_, close) * np.exp(np.abs(rng.normal(0, scale / 2, (bars, n))))
    low = np.minimum(open_, close) * np.exp(-np.abs(rng.normal(0, scale / 2, (bars, n))))
    raw = np.stack([open_, high, low, close, rng.integers(1_000, 9_000, (bars, n)).astype(float)], axis=2)
    side = np.repeat(rng.choice([1, 0, -1, 1], (bars // hold + 1, n)), hold, axis=0)[:bars]
    units = np.floor(0.9 * initial / n / 100) * side
    move = np.diff(units, axis=0, prepend=0.0)
    fee = np.abs(move) * open_ * fee_bps * 1e-4
    half = np.abs(move) * open_ * 1e-4
    gain = units * (close - open_) + np.vstack([np.zeros((1, n)), units[:-1] * (open_[1:] - close[:-1])]) - fee - half
    equity = pd.Series(initial + np.cumsum(gain.sum(axis=1)), ts, name="equity")
    at, j = np.nonzero(move)
    fills = pd.DataFrame(
        dict(ts=ts[at], symbol=np.array(symbols)[j], qty=move[at, j], ref=open_[at, j])
        | dict(price=open_[at, j] * (1 + np.sign(move[at, j]) * 1e-4), fee=fee[at, j], spread=half[at, j])
        | dict(slippage=0.0, impact=0.0, reason="target", order=np.arange(len(at)), trade=-1)
    )
    trades = pd.concat([_trades(k, s, ts, units[:, k], raw[:, k], fee_bps + 1, rng) for k, s in enumerate(symbols)])
    trades = trades.sort_values("entry_ts", kind="stable").reset_index(drop=True)
    trades["id"] = np.arange(len(trades))
    e = equity.to_numpy()[:, None]
    weights = units * close / e
    flags = np.full((bars, n), 7, np.uint8)
    instruments = tuple(SimpleNamespace(symbol=s, multiplier=1.0, currency="USD", calendar="XNYS") for s in symbols)
    per_year = 252.0 if freq == "D" else 252.0 * 390
    market = dict(symbols=tuple(symbols), ts=ts.asi8, raw=raw, seen=raw, flags=flags, instruments=instruments)
    market |= dict(calendar="XNYS", periods_per_year=per_year, hash="0" * 32, factor=np.ones((bars, n)))
    return SimpleNamespace(
        equity=equity,
        returns=equity / equity.shift(fill_value=initial) - 1,
        initial=initial,
        fills=fills,
        orders=_orders(fills),
        trades=trades,
        positions=pd.DataFrame(units, ts, list(symbols)),
        exposure=pd.DataFrame(dict(gross=np.abs(weights).sum(axis=1), net=weights.sum(axis=1)), ts),
        costs=dict(fees=fee.sum(), spread=half.sum(), slippage=0.0, impact=0.0, borrow=0.0, funding=0.0),
        bars=SimpleNamespace(**market),
        strategy="random_trend",
        params=dict(hold=hold, drift=drift),
        options=dict(fill="next_open", stop_from="entry", leverage=1.0),
        costs_model=[dict(fee_bps=fee_bps, spread_bps=2.0, impact=0.0)] * n,
        sizing=dict(rule="quantity"),
        limits=dict(max_gross=float("inf"), max_drawdown=1.0),
        benchmark=None,
        warnings=["simulated prices: this is an example, not evidence"],
        periods_per_year=per_year,
    )


def _orders(fills):
    "One filled market order for each fill"
    rows = fills[["ts", "symbol", "qty"]].assign(
        limit=np.nan, stop=fills.ref * 0.97, take=fills.ref * 1.05, trail=np.nan
    )
    rows = rows.assign(expire=0, status="filled", filled=fills.qty, avg_price=fills.price, reason="target")
    return rows.rename_axis("id").reset_index()


def _trades(k, symbol, ts, units, raw, cost_bps, rng):
    "Round trips of one symbol: spans of one constant, non-zero position"
    cut = np.flatnonzero(np.diff(units, prepend=0.0, append=np.nan))
    start, end = cut[:-1], cut[1:]
    keep = units[start] != 0
    start, end = start[keep], end[keep]
    if not len(start):
        return pd.DataFrame(columns=COLUMNS)
    last, is_open = np.minimum(end, len(units) - 1), end >= len(units)
    entry, side, qty = raw[start, 0], np.sign(units[start]), np.abs(units[start])
    out = np.where(is_open, raw[-1, 3], raw[last, 0])
    span = np.column_stack([start, end]).ravel()
    high = np.maximum.reduceat(np.append(raw[:, 1], 0), span)[::2] / entry - 1
    low = np.minimum.reduceat(np.append(raw[:, 2], np.inf), span)[::2] / entry - 1
    costs = qty * (entry + np.where(is_open, 0, out)) * cost_bps * 1e-4
    pnl = side * qty * (out - entry) - costs
    return pd.DataFrame(
        dict(id=0, symbol=symbol, side=side.astype(int), entry_ts=ts[start], exit_ts=ts[last], qty=qty)
        | dict(entry_price=entry, exit_price=out, pnl=pnl, ret=pnl / (qty * entry), fees=costs / 2, costs=costs / 2)
        | dict(mae=np.minimum(np.where(side > 0, low, -high), 0), mfe=np.maximum(np.where(side > 0, high, -low), 0))
        | dict(bars=end - start, entry_reason="target", open=is_open)
        | dict(exit_reason=np.where(is_open, "", REASONS[rng.integers(0, 4, len(start))]))
    )[COLUMNS]


COLUMNS = (
    "id symbol side entry_ts exit_ts qty entry_price exit_price pnl ret fees costs mae mfe bars entry_reason".split()
)
COLUMNS += ["exit_reason", "open"]


def flat_result(bars=5, initial=1000.0):
    "A result that never traded"
    r = fake_result(max(bars, 2), hold=max(bars, 2))
    keep = slice(0, bars)
    r.equity = pd.Series(initial, r.equity.index[keep], name="equity")
    r.returns, r.initial, r.warnings = r.equity * 0.0, initial, []
    r.fills, r.orders, r.trades = r.fills.iloc[:0], r.orders.iloc[:0], r.trades.iloc[:0]
    r.positions, r.exposure = r.positions.iloc[keep] * 0.0, r.exposure.iloc[keep] * 0.0
    r.costs = dict.fromkeys(r.costs, 0.0)
    r.bars.ts, r.bars.raw, r.bars.flags = r.bars.ts[keep], r.bars.raw[keep], r.bars.flags[keep]
    r.bars.seen = r.bars.raw
    return r
