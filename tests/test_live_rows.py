"Rows computed batch by batch equal the whole-array form of the backtest in every bit, on any bars."

from __future__ import annotations

import asyncio
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from markets import KINDS, holes, market, several
from tradebench.backtest.simulation import input_array, simulation
from tradebench.data.bars import prepare
from tradebench.data.calendars import sessions
from tradebench.data.instruments import Instrument
from tradebench.data.sources import load
from tradebench.errors import DataError, StrategyError
from tradebench.live.recorded import RecordedFeed
from tradebench.live.rows import LiveRows
from tradebench.live.types import Batch, FeedError, LiveError
from tradebench.params import param
from tradebench.registry import catalogue, find
from tradebench.strategies.follow import PandasStrategy, pandas_strategy
from tradebench.strategies.strategy import STRATEGIES, column, higher, hold, strategy

MINUTE = 60_000_000_000


@strategy
class EveryInput:
    "Declares each kind of input"

    inputs = dict(
        a=column(max_age=0), old=column("b", max_age=3), hour=higher("1h"), day=higher("session"), week=higher("1W"),
        b=column(max_age=1000), odd=higher("35min"), half=higher("4h"),
    )  # fmt: skip

    def step(s, p, row):
        return hold()


@strategy
class LongInputs:
    "The same for bars of any length up to a session"

    inputs = dict(week=higher("1W"), old=column("b", max_age=3), day=higher("session"), a=column())

    def step(s, p, row):
        return hold()


@pandas_strategy
def crossing(bars, n=param(5, 2, 50, "bars")):
    if bars.columns.nlevels == 2:
        close = bars.xs("close", axis=1, level="field")
        return dict(target=(close > close.ewm(span=n).mean()).astype(float).where(close.notna()), stop=close * 0.9)
    close = bars["close"]
    mean = close.rolling(n).mean()
    return dict(entries=close > mean, exits=close < mean, stop=close * 0.95)


for made in (EveryInput, LongInputs, crossing):
    STRATEGIES.pop(made.name())  # the catalogue is for strategies that other tests may run


def feed_rows(bars, cls, cuts=(), has_volume=True):
    "Rows of a recorded feed, with the state handed over to a new object at each of `cuts`"
    feed = RecordedFeed(bars)

    def fresh():
        return LiveRows(cls, bars.symbols, bars.instruments, bars.calendar, feed.has_volume if has_volume else None)

    live, out = fresh(), []
    for t in range(len(bars)):
        if t in cuts:
            state = live.state()
            live = fresh()
            live.restore(state)
            assert live.state() == state
        out.append(live.push(feed.batch(t)).copy())
    return out


def check(bars, cls, extras, cuts=(), say=""):
    rows = feed_rows(bars, cls, cuts)
    want = dict(seen=bars.seen, factor=bars.factor, share=bars.share, flags=bars.flags, clock=bars.clock, extras=extras)
    for name, whole in want.items():
        got = np.stack([getattr(r, name) for r in rows])
        if whole.size:
            whole = np.ascontiguousarray(whole)
            differ = got.view(f"V{got.itemsize}") != whole.view(f"V{whole.itemsize}")
            assert not differ.any(), f"{say} {name} differs first at {np.argwhere(differ)[:3].tolist()}"


def frame_of(draw):
    "A frame of 1 to 4 symbols with absent rows, odd volumes and further columns; action tuples; a universe"
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    calendar = draw(st.sampled_from(["24/7", "XNYS", "24/5"]))
    step = draw(st.sampled_from([5, 30, 60, 0]))  # minutes; 0: a bar a session
    T, N = draw(st.integers(2, 160)), draw(st.integers(1, 4))
    first = pd.Timestamp("2015-10-20").value + int(rng.integers(0, 60)) * 86_400_000_000_000
    s = sessions(calendar, first, first + 400 * 86_400_000_000_000)
    lo = int(s.find(first)) + 1
    if step:
        ts = np.concatenate(
            [
                np.arange(o + step * MINUTE, c + 1, step * MINUTE)
                for o, c in zip(s.open[lo : lo + 60], s.close[lo : lo + 60], strict=True)
            ]
        )
    else:
        ts = s.close[lo:]
    keep = rng.random(len(ts)) < draw(st.sampled_from([1.0, 0.7, 0.1]))
    ts = ts[keep][:T]
    assume(len(ts) > 1)
    T = len(ts)
    if draw(st.booleans()):  # also stamps off the grid and outside sessions
        ts = np.unique(ts + (rng.random(T) < 0.2) * rng.integers(0, 4 * 3600, T) * 1_000_000_000)
        T = len(ts)
    names = [chr(65 + k) for k in range(N)]
    index, parts = pd.DatetimeIndex(ts, tz="UTC", name="ts"), {}
    for name in names:
        close = np.exp(4 + np.cumsum(rng.normal(0, 0.02, T)))
        start = np.append(close[0], close[:-1])
        volume = dict(
            some=rng.random(T) * 100 * (rng.random(T) < 0.8),
            none=np.zeros(T),
            unknown=np.full(T, np.nan),
            part=np.where(rng.random(T) < 0.5, rng.random(T), np.nan),
            late=np.where(np.arange(T) > T // 2, rng.random(T), 0.0),
        )
        volume = volume[draw(st.sampled_from(list(volume)))]
        part = pd.DataFrame(dict(open=start, high=np.maximum(start, close) * 1.01, low=np.minimum(start, close) * 0.99, close=close, volume=volume), index=index)  # fmt: skip
        if N > 1:
            part[rng.random(T) < rng.choice([0.0, 0.3, 0.9])] = np.nan
        part["a"] = np.where(rng.random(T) < 0.5, rng.normal(size=T), np.nan)
        part["b"] = np.where(rng.random(T) < 0.1, rng.normal(size=T), np.nan)
        parts[name] = part
    frame = pd.concat(parts, axis=1, names=["symbol", "field"]) if N > 1 else parts["A"]
    if N > 1:
        frame = frame.loc[frame.xs("close", axis=1, level="field").notna().any(axis=1)]
    assume(len(frame) > 1)
    frame.attrs["tradebench"] = dict(
        symbols=names, instruments={n: Instrument(n, calendar=calendar).dict() for n in names}, actions=[]
    )
    actions = []
    for _ in range(draw(st.integers(0, 6))):
        kind = ("split", "dividend", "delisting")[int(rng.integers(3))]
        value = dict(split=float(rng.choice([2.0, 0.5, 1.5, 7.0])), dividend=float(rng.random()), delisting=0.0)[kind]
        when = int(ts[rng.integers(len(ts))]) + int(rng.integers(-2, 2)) * 1_000_000_000
        actions += [(names[rng.integers(N)], when, kind, value, "")] * int(rng.integers(1, 3))
    universe = None
    if draw(st.booleans()):
        universe = pd.DataFrame(rng.random((5, N)) < 0.7, pd.DatetimeIndex(np.sort(rng.choice(ts, 5)), tz="UTC"), names)
        universe = universe[~universe.index.duplicated()]
    try:
        return prepare(frame, actions=actions, universe=universe), seed
    except DataError as e:
        assert "dividend" in str(e), e  # several that exceed the price
        assume(False)


@given(st.data())
@settings(max_examples=150)
def test_rows_equal_the_whole_arrays_on_any_bars(data):
    bars, seed = frame_of(data.draw)
    cls = EveryInput if np.diff(bars.ts).min() <= 35 * MINUTE else LongInputs
    extras = input_array(cls, bars, {})
    cuts = data.draw(st.sets(st.integers(0, len(bars) - 1), max_size=3))
    check(bars, cls, extras, cuts, f"seed {seed}, {bars}:")


@given(st.data())
@settings(max_examples=15)
def test_pandas_strategies_see_all_bars_so_far(data):
    bars, seed = frame_of(data.draw)
    bars = bars.window(end=bars.index[min(len(bars) - 1, 60)])
    made = crossing()
    extras = input_array(crossing, bars, made.columns(bars))
    cuts = data.draw(st.sets(st.integers(0, len(bars) - 1), max_size=2))
    check(bars, made, extras, cuts, f"seed {seed}, {bars}:")


@pytest.mark.parametrize("kind", KINDS)
def test_every_strategy_of_the_catalogue(kind):
    bars = market(kind)
    bars = bars.window(end=bars.index[min(len(bars), 900) - 1])
    ours = [find("strategy", name) for name in catalogue("strategy")["name"]]
    for cls in (c for c in ours if c.__module__.startswith("tradebench.")):
        name = cls.name()
        sim = simulation(cls(), bars)
        who = cls() if issubclass(cls, PandasStrategy) else cls
        if issubclass(cls, PandasStrategy):
            feed, live = RecordedFeed(bars), LiveRows(who, bars.symbols, bars.instruments, bars.calendar)
            rows = live.push_many([feed.batch(t) for t in range(len(bars))])
            assert np.stack([r.extras for r in rows]).tobytes() == sim.extras.tobytes(), name
        else:
            check(bars, who, sim.extras, (len(bars) // 3,), f"{kind} {name}:")


@pytest.mark.parametrize("name", ["AAPL", "stocks5"])
def test_real_bars_with_splits_and_dividends(name):
    frame = load(name)
    records = list(frame.attrs["tradebench"]["actions"])
    extra = [("AAPL", t, "dividend", 0.37, "") for _, t, *_ in records]  # on the day of the split as well
    frame = frame.assign(**{c: 0.0 for c in ()})
    frame.attrs["tradebench"]["actions"] = (
        records + extra + [("AAPL", pd.Timestamp(f"{y}-05-09").value, "dividend", 0.11, "") for y in range(2001, 2012)]
    )
    for bars in (prepare(frame), prepare(frame).window(start="2005-03-01")):
        assert len(bars.events) > 2
        cls = find("strategy", "swing")
        check(bars, cls, input_array(cls, bars, {}), (17, 400), name)


def test_events_of_before_the_anchor_do_not_count():
    bars = prepare(load("AAPL"))
    at = int(bars.events["t"][0])
    feed, live = (
        RecordedFeed(bars),
        LiveRows(find("strategy", "sma_cross"), bars.symbols, bars.instruments, bars.calendar),
    )
    row = live.push(feed.batch(at))  # the anchor is the ex-date itself
    assert feed.batch(at).events and live.events == () and row.factor[0] == 1.0
    later = int(bars.events["t"][1])
    live.push(feed.batch(later - 1))
    row = live.push(feed.batch(later))
    assert len(live.events) == 1 and row.factor[0] == bars.window(start=bars.index[at]).factor[later - at, 0]


def test_volume_is_learnt_where_nobody_declares_it():
    rows = LiveRows(find("strategy", "sma_cross"), ["A", "B"], [], "24/7")
    raw = np.array([[1.0, 1, 1, 1, 0], [1.0, 1, 1, 1, 0]])
    flags = np.array([5, 5], np.uint8)
    assert rows.push(Batch(MINUTE, raw, flags)).flags.tolist() == [7, 7]  # an index has no volume, and its bars count
    raw[0, 4] = 3
    rows.push(Batch(2 * MINUTE, raw, flags))
    raw[0, 4] = 0
    assert rows.push(Batch(3 * MINUTE, raw, flags)).flags.tolist() == [5, 7]
    raw[0, 4] = np.nan
    assert rows.push(Batch(4 * MINUTE, raw, flags)).flags.tolist() == [7, 7]


def test_late_bars_reach_inputs_and_longer_bars_but_not_the_clock():
    bars = market("new_york_many")
    feed, N = RecordedFeed(bars), len(bars.symbols)
    live = LiveRows(EveryInput, bars.symbols, bars.instruments, bars.calendar, feed.has_volume)
    whole = LiveRows(EveryInput, bars.symbols, bars.instruments, bars.calendar, feed.has_volume)
    rng, moved = np.random.default_rng(5), 0
    for t in range(300):
        b = feed.batch(t)
        extras = {k: np.where(rng.random(N) < 0.5, rng.normal(size=N), np.nan) for k in "ab"}
        b = b._replace(extras=extras)
        j = int(rng.integers(N))
        late = rng.random() < 0.3 and b.flags[j] & 1 and (b.flags & 1).sum() > 1
        want = whole.push(b).copy()
        if not late:
            got = live.push(b)
        else:
            moved += 1
            mask = np.arange(N) == j
            early = Batch(
                b.ts,
                np.where(mask[:, None], np.nan, b.raw),
                np.where(mask, b.flags & 4, b.flags),
                b.events,
                {k: np.where(mask, np.nan, v) for k, v in extras.items()},
            )
            after = Batch(
                b.ts,
                np.where(mask[:, None], b.raw, np.nan),
                np.where(mask, b.flags, 0).astype(np.uint8),
                (),
                {k: np.where(mask, v, np.nan) for k, v in extras.items()},
                True,
            )
            first = live.push(early).copy()
            got = live.push(after)
            assert got.seen[j].tobytes() == want.seen[j].tobytes() and got.flags[j] == want.flags[j]
            assert (got.clock == want.clock).all() and (first.clock == want.clock).all()
            assert got.extras[j].tobytes() == want.extras[j].tobytes()
            continue
        assert got.extras.tobytes() == want.extras.tobytes() and got.seen.tobytes() == want.seen.tobytes(), t
    assert moved > 30


def test_bars_out_of_order_missing_inputs_and_foreign_states_are_refused():
    bars = market("daily")
    feed = RecordedFeed(bars)
    rows = LiveRows(find("strategy", "sma_cross"), bars.symbols, bars.instruments, bars.calendar)
    rows.push(feed.batch(5))
    for t in (5, 4):
        with pytest.raises(FeedError, match="order"):
            rows.push(feed.batch(t))
    with pytest.raises(StrategyError, match="needs the input 'a'"):
        LiveRows(EveryInput, bars.symbols, bars.instruments, bars.calendar).push(feed.batch(0))
    with pytest.raises(LiveError, match="replay from the anchor"):
        LiveRows(EveryInput, bars.symbols, bars.instruments, bars.calendar).restore(rows.state())
    with pytest.raises(DataError, match="shorter than the bars"):
        LiveRows(EveryInput, bars.symbols, bars.instruments, bars.calendar, freq="2h")
    huge = feed.batch(6)._replace(events=((0, 1, 1e9),))
    with pytest.raises(DataError, match="not below the last close"):
        rows.push(huge)


def test_a_pandas_strategy_says_how_long_its_call_took():
    bars = market("daily").window(end="2003-12-31")
    feed, live = RecordedFeed(bars), LiveRows(crossing(n=7), bars.symbols, bars.instruments, bars.calendar)
    rows = live.push_many([feed.batch(t) for t in range(100)])
    live.push(feed.batch(100))
    assert len(rows) == 100 and 0 < live.took <= live.slowest < 5


def per_batch(rows, batches) -> float:
    best = np.inf
    for _ in range(3):
        live = rows()
        begin = time.perf_counter()
        for b in batches:
            live.push(b)
        best = min(best, (time.perf_counter() - begin) / len(batches))
    return best


def test_a_row_costs_microseconds():
    bars = prepare(load("sim:minutes,seed=7,sessions=10"))
    feed = RecordedFeed(bars)
    batches = [feed.batch(t) for t in range(len(bars))]
    one = per_batch(
        lambda: LiveRows(find("strategy", "sma_cross"), bars.symbols, bars.instruments, bars.calendar), batches
    )
    N = 5000
    raw, flags = np.full((N, 5), 10.0), np.full(N, 7, np.uint8)
    many = [Batch((t + 1) * MINUTE, raw, flags, ((3, 2, 2.0),) if t == 2 else ()) for t in range(50)]
    all_of = per_batch(lambda: LiveRows(find("strategy", "swing"), [f"S{k}" for k in range(N)], [], "24/7"), many)
    assert one < 15e-6 and all_of < 2e-3, (one, all_of)


def test_the_recorded_stream_costs_less_than_ten_microseconds_a_batch():
    feed = RecordedFeed(prepare(load("sim:minutes,seed=7,sessions=30")))

    async def main():
        best, beats = np.inf, 0

        async def other():
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        for _ in range(3):
            n, begin = 0, time.perf_counter()
            async for _b in feed.stream(0):
                n += 1
            best = min(best, (time.perf_counter() - begin) / n)
        task = asyncio.create_task(other())
        async for _b in feed.stream(0):
            pass
        task.cancel()
        assert beats > 50, "the event loop never breathed"
        return best

    assert asyncio.run(main()) < 10e-6


@pytest.mark.slow
def test_ten_thousand_random_bars():
    frame = holes(several((1, 2, 3, 4, 5), sessions=200, freq="15min", calendar="XNYS"), 0.1, 9)
    for s in "ABCDE":
        for k in "ab":
            frame[(s, k)] = np.where(np.random.default_rng(3).random(len(frame)) < 0.3, 1.5, np.nan)
    frame = frame.sort_index(axis=1, level=0, sort_remaining=False)
    bars = prepare(frame)
    check(bars, EveryInput, input_array(EveryInput, bars, {}), range(100, len(bars), 997))
