"""Bars for tests of the engine: built by hand (`bars_of`), or at random (`random_case`, and `cases` for hypothesis).

Prices move on a coarse grid and levels lie on the same grid, so touches, gaps through a level and two levels in
one bar are frequent. Thresholds that are compared with computed numbers are odd, so two engines cannot differ there
by rounding alone. `random_case` takes a `random.Random`: hypothesis gives one that shrinks, a loop gives a seeded one.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from reference_engine import DELISTING, DIVIDEND, IN_UNIVERSE, PRESENT, SPLIT, TRADED, Costs, Limits, Options, Sizing

DAY = 86_400 * 10**9
NAN = math.nan
EVENT = np.dtype([("t", "i8"), ("j", "i8"), ("kind", "i8"), ("value", "f8")])


@dataclass(frozen=True)
class Contract:
    "The fields of an instrument that an engine reads."

    tick: float = 0.0
    lot: float = 0.0
    multiplier: float = 1.0
    symbol: str = "S"
    currency: str = "USD"
    calendar: str = "24/7"
    fees: dict | None = None
    kind: str = "equity"


@dataclass
class SmallBars:
    ts: np.ndarray
    raw: np.ndarray
    seen: np.ndarray
    factor: np.ndarray
    flags: np.ndarray
    clock: np.ndarray
    events: np.ndarray
    instruments: tuple
    periods_per_year: float = 252.0
    calendar: str = "24/7"

    @property
    def symbols(self):
        return tuple(i.symbol for i in self.instruments)

    @property
    def extras(self):
        return {}

    def head(self, n):
        "The first n batches: what was known then."
        cut = {name: getattr(self, name)[:n] for name in ("ts", "raw", "seen", "factor", "flags", "clock")}
        cut["clock"] = cut["clock"].copy()
        return SmallBars(**cut, events=self.events[self.events["t"] < n], instruments=self.instruments,
                         periods_per_year=self.periods_per_year)  # fmt: skip


def bars_of(rows, events=(), sessions=None, outside=(), hours=24, ppy=252.0, **contract):
    """Bars from rows[t][j] = (open, high, low, close, volume), or None where absent; a row of one symbol may be the
    tuple itself. events: (t, j, kind, value); sessions: session number of each row (default: each row its own);
    outside: pairs (t, j) out of the universe; hours between rows; contract: tick, lot, multiplier."""
    rows = [[row] if isinstance(row, tuple) else row for row in rows]
    T, N = len(rows), len(rows[0])
    raw = np.full((T, N, 5), np.nan)
    flags = np.zeros((T, N), np.uint8)
    for t, row in enumerate(rows):
        for j, bar in enumerate(row):
            if bar is not None:
                raw[t, j] = bar
                flags[t, j] = PRESENT | (TRADED if bar[4] != 0 else 0) | (0 if (t, j) in outside else IN_UNIVERSE)
    sessions = list(range(T)) if sessions is None else list(sessions)
    for t, j, kind, _ in events:
        if kind == DELISTING:  # the symbol is gone from then on
            raw[t:, j], flags[t:, j] = np.nan, 0
    clock = [[s, sessions[:t].count(s), (sessions.count(s) - sessions[:t].count(s) - 1) * hours * 3600]
             for t, s in enumerate(sessions)]  # fmt: skip
    events = np.array(sorted(events, key=lambda e: e[:3]), EVENT)
    factor, parts = factors(raw, events)
    seen = raw * np.concatenate([np.repeat(factor[:, :, None], 4, 2), 1 / parts[:, :, None]], 2)
    instruments = tuple(Contract(symbol=f"S{j}", **contract) for j in range(N))
    return SmallBars(np.arange(1, T + 1) * (hours * 3600 * 10**9), raw, seen, factor, flags,
                     np.array(clock, np.int64), events, instruments, ppy)  # fmt: skip


def factors(raw, events):
    "Forward factor [T, N] (at an ex-date times s / (1 - d / previous close)) and its split part."
    T, N = raw.shape[:2]
    factor, parts = np.ones((T, N)), np.ones((T, N))
    for t, j in sorted({(int(e["t"]), int(e["j"])) for e in events}):
        here = events[(events["t"] == t) & (events["j"] == j)]
        before = raw[:t, j, 3]
        before = before[~np.isnan(before)]
        paid = here["value"][here["kind"] == DIVIDEND].sum()
        ratio = here["value"][here["kind"] == SPLIT].prod()
        factor[t:, j] *= ratio / (1 - (paid / before[-1] if len(before) else 0.0))
        parts[t:, j] *= ratio
    return factor, parts


def decisions_of(T, wishes, N=1):
    "Array [T, N, 6] of holds, with wishes {t or (t, j): dict of Decision fields}."
    out = np.full((T, N, 6), np.nan)
    out[:, :, 5] = 0
    for key, wish in wishes.items():
        t, j = key if isinstance(key, tuple) else (key, 0)
        for name, value in wish.items():
            out[t, j, ("target", "stop", "take", "trail", "limit", "expire").index(name)] = value
    return out


# ---- random cases


@dataclass
class Case:
    bars: SmallBars
    decisions: np.ndarray
    costs: Costs
    sizing: Sizing
    options: Options
    limits: Limits
    initial: float

    @property
    def arguments(self):
        return self.bars, self.decisions, self.costs, self.sizing, self.options, self.limits, self.initial


def random_path(r, T, per_session, has_volume):
    "One symbol: rows (or None) and its events (t, kind, value)."
    price, rows, events = float(r.randint(30, 150)), [], []
    first = r.randint(0, 3) if r.random() < 0.2 else 0
    last = r.randint(T // 2, T - 1) if r.random() < 0.2 else T
    missing, quiet = r.choice([0, 0, 0.15]), r.choice([0, 0, 0.15])
    for t in range(T):
        known = any(row is not None for row in rows)
        if t == last and known:
            events.append((t, DELISTING, r.choice([NAN, 0.0, price * 0.6, price * 1.1])))
        if known and t < last and t % per_session == 0 and r.random() < 0.12:
            if r.random() < 0.5:
                paid = price * r.choice([0.01, 0.04])
                events.append((t, DIVIDEND, paid))
                price -= paid
            if r.random() < 0.6:
                ratio = r.choice([2.0, 3.0, 0.5, 1.5, 0.1])
                events.append((t, SPLIT, ratio))
                price /= ratio
        if t < first or t >= last or r.random() < missing:
            rows.append(None)
        elif has_volume and known and r.random() < quiet:
            rows.append((price, price, price, price, 0.0))
        else:
            rows.append(random_bar(r, price, has_volume))
            price = rows[-1][3]
    return rows, events


def random_bar(r, price, has_volume):
    "A bar after a close: whole-unit moves, some gaps, open or close often at the extreme."
    unit = 1.0 if price > 20 else price / 40
    gap = r.choice([0, 0, 0, 1, -1, r.randint(-9, 9)])
    first = max(price + gap * unit, unit)
    close = max(first + r.randint(-4, 4) * unit, unit)
    high = max(first, close) + r.choice([0, 0, 1, 2, 5]) * unit
    low = max(min(first, close) - r.choice([0, 0, 1, 2, 5]) * unit, unit / 2)
    return first, high, low, close, float(r.choice([7, 60, 400, 5000])) if has_volume else NAN


def random_decision(r, close, quantity, long_only):
    "target, stop, take, trail, limit, expire for a seen close; levels on the grid, now and then on the wrong side."
    unit = 1.0 if close > 20 else close / 40
    out = [NAN] * 5 + [0.0]
    if r.random() < 0.5:
        target = r.choice([1, 1, 0.5, 0.3, 0, 0, -1, -0.4] if not quantity else [1, 2, 3, 0, 0, -1, -2.5])
        out[0] = abs(target) if long_only else float(target)
    elif r.random() < 0.7:
        return out
    side = -1 if out[0] < 0 or (math.isnan(out[0]) and r.random() < 0.3) else 1
    if r.random() < 0.4:
        out[1] = close - side * r.choice([1, 2, 4, 8, -1]) * unit
    if r.random() < 0.35:
        out[2] = close + side * r.choice([1, 2, 4, 8, -1]) * unit
    if r.random() < 0.25:
        out[3] = r.choice([1, 2, 4]) * unit
    if r.random() < 0.3:
        out[4] = close - side * r.choice([0, 1, 2, 3, -2]) * unit
    if r.random() < 0.3:
        out[5] = float(r.choice([1, 2, 3]))
    return out


def some(r, *values):
    "Half the time 0, else one of the values."
    return r.choice(values) if r.random() < 0.5 else 0.0


def random_costs(r):
    if r.random() < 0.25:
        return Costs()
    return Costs(
        fee_bps=some(r, 5.0, 30.0), fee_per_unit=some(r, 0.013), fee_min=some(r, 1.0, 35.0),
        fee_max_bps=some(r, 20.0, 100.0), fee_fixed=some(r, 0.7), spread_bps=some(r, 7.0, 40.0),
        slippage_bps=some(r, 3.0), slippage_vol=some(r, 0.11), impact=some(r, 0.3),
        borrow_rate=some(r, 0.2), funding_rate=some(r, 0.15, -0.1),
    )  # fmt: skip


def random_sizing(r):
    kind = r.choice(["fraction", "fraction", "fraction", "quantity", "volatility", "kelly"])
    return Sizing(kind, r.choice([0.37, 0.93, 1.0, 2.6]), r.choice([7.0, 40.0]), r.choice([0.13, 0.6]),
                  r.choice([0.5, 1.0]), r.choice([1, 2, 3]))  # fmt: skip


def random_options(r):
    return Options(
        reentry=r.choice(["changed", "always"]), band=r.choice([None, None, 0.0117, 0.0631]),
        fill=r.choice(["next_open", "next_open", "next_open", "close"]), stop_from=r.choice(["entry", "entry", "next"]),
        limit_touch=r.choice(["through", "touch"]), maker_costs=r.random() < 0.25,
        spread_on=r.choice(["fills", "entry"]), on_cash=r.choice(["cut", "cut", "refuse"]),
        at_end=r.choice(["mark", "close"]), leverage=r.choice([1.0, 1.0, 1.7, 3.0]),
        maintenance=some(r, 0.29, 0.47), participation=r.choice([0.0, 0.0, 0.23, 0.051]),
    )  # fmt: skip


def random_limits(r):
    if r.random() < 0.5:
        return Limits()
    return Limits(some(r, 0.313, 0.771), some(r, 0.587, 1.307), some(r, 0.277, 0.613), some(r, 0.0317, 0.1213),
                  some(r, 0.0171, 0.0519))  # fmt: skip


def random_case(r: random.Random, steps=(4, 16), symbols=4) -> Case:
    T, N = r.randint(*steps), r.choice([1, 1, 2, 3, 4][: symbols + 1])
    per_session, has_volume = r.choice([1, 1, 3, 4]), r.random() < 0.85
    paths = [random_path(r, T, per_session, has_volume) for _ in range(N)]
    rows = [[path[0][t] for path in paths] for t in range(T)]
    events = [(t, j, kind, value) for j, path in enumerate(paths) for t, kind, value in path[1]]
    outside = set()
    if r.random() < 0.25:
        outside = {(t, j) for j in range(N) for t in range(r.randint(2, T), T)}
    bars = bars_of(rows, events, [t // per_session for t in range(T)], outside, r.choice([1, 24, 24 * 30]),
                   r.choice([252.0, 365.0]), tick=r.choice([0.0, 0.0, 0.01, 0.25]), lot=r.choice([0.0, 0.0, 1.0, 10.0]),
                   multiplier=r.choice([1.0, 1.0, 1.0, 5.0]))  # fmt: skip
    sizing, options = random_sizing(r), random_options(r)
    limits = random_limits(r)
    if r.random() < 0.2:  # deep in debt: liquidation and ruin
        sizing.fraction, options.leverage, options.maintenance = 2.6, 3.0, r.choice([0.0, 0.29, 0.36])
        limits = Limits()
    long_only = r.random() < 0.3
    decisions = decisions_of(T, {}, N)
    for t in range(T):
        for j in range(N):
            if bars.flags[t, j] & PRESENT:
                decisions[t, j] = random_decision(r, bars.seen[t, j, 3], sizing.kind == "quantity", long_only)
    return Case(bars, decisions, random_costs(r), sizing, options, limits, r.choice([1_000.0, 20_000.0]))


cases = st.builds(random_case, st.randoms(use_true_random=False))
