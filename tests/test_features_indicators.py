"""Every indicator: TA-Lib's numbers, no look-ahead, one step for arrays, streams and plain Python, and no drift.

The catalogue tests walk through `INDICATORS`: an indicator added to `tradebench.features` is tested once it exists.
"""

import importlib
import os
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tradebench.features
from tradebench.features.indicator import INDICATORS, _columns, _loop
from tradebench.features.indicators import catalogue
from tradebench.validation.lookahead import first_leak

for module in pkgutil.iter_modules(tradebench.features.__path__):
    importlib.import_module(f"tradebench.features.{module.name}")
NAMES = sorted(name for name, cls in INDICATORS.items() if cls.__module__.startswith("tradebench."))
few = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


def market(seed=0, rows=400, awkward=False):
    "Bars of a random walk; `awkward` ones stand still, jump, repeat prices and go without volume for a while"
    rng = np.random.default_rng(seed)
    moves = rng.normal(0, 0.01, rows)
    if awkward:
        moves[rows // 4 : rows // 4 + 60] = 0
        moves[rows // 2] = 3.0
        moves[rows // 2 + 5] = -3.0
    close = 100 * np.exp(moves.cumsum())
    first = np.r_[100.0, close[:-1]] * np.exp(rng.normal(0, 0.004, rows) * (moves != 0))
    inner = np.sort([first, close], axis=0)
    wick = np.exp(np.abs(rng.normal(0, 0.004, (2, rows))) * (moves != 0))
    volume = rng.lognormal(10, 1, rows).round()
    if awkward:
        close, first, inner, wick = close.round(1), first.round(1), inner.round(1), np.ones((2, rows))
        volume[rows // 3 : rows // 3 + 80] = 0
    high, low = inner[1] * wick[0], inner[0] / wick[1]
    frame = pd.DataFrame(dict(open=first, high=high, low=low, close=close, volume=volume))
    return frame.assign(session=np.arange(rows) // 39)


def columns(cls, bars):
    "Inputs of `cls`; an input that is not a column of bars is a random positive series"
    extra = {k: np.random.default_rng(len(bars)).random(len(bars)) + 0.5 for k in cls.inputs if k not in bars}
    return _columns((bars.assign(**extra),), cls.inputs, cls)[0]


def fresh(cls, values):
    "State sized by the parameters' own bounds, as in a strategy: all lengths share one compiled loop"
    named = cls(**{k: k for k in cls.params})
    state = np.zeros(1, named.dtype(cls.params))
    named.bind(state, values)
    return state


def run(cls, values, bars, state=None):
    x = columns(cls, bars)
    out = np.empty((len(cls.outputs), x.shape[1]))
    _loop(cls)(fresh(cls, values) if state is None else state, x, out)
    return out


def draws(cls, top=60):
    "Random parameters within the bounds; whole numbers mostly small enough to leave the warm-up"

    def one(p):
        if p.kind is int:
            near = st.integers(int(p.low), int(min(p.high, max(top, p.low + 4))))
            return near | st.integers(int(p.low), int(p.high)) if top > 50 else near
        return st.floats(p.low, min(p.high, 1000)) if p.kind is float else st.sampled_from(p.choices or (False, True))

    return st.fixed_dictionaries({k: one(p) for k, p in cls.params.items()})


def defaults(cls):
    return {k: p.default for k, p in cls.params.items()}


def leading_nan(out):
    bad = np.isnan(out).any(0)
    return len(bad) if bad.all() else int(np.argmin(bad))


# --- the whole catalogue


def test_catalogue_lists_what_was_asked_for_with_a_meaning_and_bounds():
    wanted = """SMA EMA WMA DEMA KAMA MACD RSI Stochastic Bollinger Keltner Donchian ATR ADX DI CCI WilliamsR MFI
        OBV VWAP ROC Aroon RollingMean RollingStd ZScore RollingSkew RollingMin RollingMax RollingQuantile
        RealisedVol Parkinson GarmanKlass YangZhang Hurst EWMAVol"""
    table = catalogue()
    assert not set(wanted.split()) - set(table.index)
    assert table.meaning.str.len().min() > 20
    assert all(p.meaning for name in NAMES for p in INDICATORS[name].params.values())


def fields(dtype):
    "Names and types of all fields, nested ones too"
    for name in dtype.names:
        yield name, dtype[name].base
        yield from fields(dtype[name]) if dtype[name].names else ()


@pytest.mark.parametrize("name", NAMES)
def test_state_holds_eight_byte_numbers_under_names_that_plain_python_can_read(name):
    found = dict(fields(INDICATORS[name]().dtype()))
    assert {d.str for d in found.values() if not d.names} <= {"<f8", "<i8"}
    assert not [k for k in found if hasattr(np.record, k)], "hidden by an attribute of numpy's records"


@pytest.mark.parametrize("name", NAMES)
def test_declared_warmup_is_the_number_of_leading_nan(name):
    cls = INDICATORS[name]

    @few
    @given(draws(cls), st.integers(0, 9))
    def check(values, seed):
        assert leading_nan(run(cls, values, market(seed))) == min(cls.warmup(**values), 400)

    assert leading_nan(run(cls, defaults(cls), market())) == cls.warmup(**defaults(cls))
    check()


@pytest.mark.parametrize("name", NAMES)
def test_one_bar_at_a_time_equals_whole_array_bit_for_bit_through_a_saved_state(name):
    cls = INDICATORS[name]

    @few
    @given(draws(cls), st.integers(0, 9), st.integers(1, 399))
    def check(values, seed, cut):
        bars = market(seed, awkward=True)
        x, loop, state = columns(cls, bars), _loop(cls), fresh(cls, values)
        one = np.empty((len(cls.outputs), x.shape[1]))
        for t in range(x.shape[1]):
            if t == cut:
                state = np.frombuffer(state.tobytes(), state.dtype).copy()
            step = np.empty((len(cls.outputs), 1))
            loop(state, np.ascontiguousarray(x[:, t : t + 1]), step)
            one[:, t] = step[:, 0]
            assert all(np.array_equal(state[k], step[i], equal_nan=True) for i, k in enumerate(cls.outputs))
        assert one.tobytes() == run(cls, values, bars).tobytes()

    check()


@pytest.mark.parametrize("name", NAMES)
def test_plain_python_equals_compiled(name):
    cls = INDICATORS[name]

    @settings(few, max_examples=3)
    @given(draws(cls, 30), st.integers(0, 9))
    def check(values, seed):
        bars = market(seed, 150, awkward=seed % 2)
        state = fresh(cls, values).view(np.recarray)[0]
        with np.errstate(all="ignore"):
            plain = np.array([cls.step(state, *row) for row in columns(cls, bars).T]).T.reshape(len(cls.outputs), -1)
        assert np.allclose(plain, run(cls, values, bars), rtol=1e-12, atol=1e-12, equal_nan=True)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_past_does_not_depend_on_future(name):
    cls = INDICATORS[name]

    @settings(few, max_examples=3)
    @given(draws(cls), st.integers(0, 9))
    def check(values, seed):
        bars = market(seed, 250).assign(**dict(zip(cls.inputs, columns(cls, market(seed, 250)), strict=True)))
        assert first_leak(lambda b: tuple(run(cls, values, b)), bars, cuts=3, tolerance=0) is None

    check()


@pytest.mark.parametrize("name", NAMES)
def test_rows_with_a_missing_input_give_nan_and_leave_the_state_alone(name):
    cls = INDICATORS[name]

    @settings(few, max_examples=4)
    @given(draws(cls), st.integers(0, 9), st.sampled_from(cls.inputs), st.sets(st.integers(0, 399), max_size=60))
    def check(values, seed, column, rows):
        bars = market(seed)
        bars = bars.assign(**dict(zip(cls.inputs, columns(cls, bars).copy(), strict=True)))
        holes = np.isin(np.arange(400), list(rows))
        out = run(cls, values, bars.assign(**{column: bars[column].where(~holes)}))
        assert np.isnan(out[:, holes]).all()
        assert np.array_equal(out[:, ~holes], run(cls, values, bars[~holes]), equal_nan=True)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_states_bound_together_equal_states_bound_one_by_one(name):
    cls = INDICATORS[name]
    rows = [defaults(cls), {k: p.check(p.low) for k, p in cls.params.items()}]
    named = cls(**{k: k for k in cls.params})
    both = np.zeros(2, named.dtype(cls.params))
    named.bind(both, {k: np.array([r[k] for r in rows]) for k in cls.params})
    assert both[:1].tobytes() == fresh(cls, rows[0]).tobytes()
    assert both[1:].tobytes() == fresh(cls, rows[1]).tobytes()


# --- TA-Lib


def one(function, *names):
    "Calls `function` with columns of the bars and the parameters in their order"
    return lambda b, *p: function(*(b[k].to_numpy(float) for k in names), *p)


def talib_table():
    ta = pytest.importorskip("talib")
    hlc, c = ("high", "low", "close"), ("close",)
    return dict(
        SMA=one(ta.SMA, *c),
        EMA=one(ta.EMA, *c),
        WMA=one(ta.WMA, *c),
        DEMA=one(ta.DEMA, *c),
        KAMA=lambda b, n, fast, slow: ta.KAMA(b.close.to_numpy(), n),
        MACD=one(ta.MACD, *c),
        RSI=one(ta.RSI, *c),
        Stochastic=lambda b, n, k, d: ta.STOCH(*(b[x].to_numpy() for x in hlc), n, k, 0, d, 0),
        CCI=one(ta.CCI, *hlc),
        WilliamsR=one(ta.WILLR, *hlc),
        MFI=one(ta.MFI, *hlc, "volume"),
        ROC=one(ta.ROC, *c),
        Aroon=one(ta.AROON, "high", "low"),
        ATR=one(ta.ATR, *hlc),
        DI=lambda b, n: (one(ta.PLUS_DI, *hlc)(b, n), one(ta.MINUS_DI, *hlc)(b, n)),
        ADX=lambda b, n: tuple(one(f, *hlc)(b, n) for f in (ta.ADX, ta.PLUS_DI, ta.MINUS_DI)),
        Bollinger=lambda b, n, width: ta.BBANDS(b.close.to_numpy(), n, width, width, 0),
        Donchian=lambda b, n: (
            ta.MAX(b.high.to_numpy(), n),
            (ta.MAX(b.high.to_numpy(), n) + ta.MIN(b.low.to_numpy(), n)) / 2,
            ta.MIN(b.low.to_numpy(), n),
        ),
        OBV=one(ta.OBV, "close", "volume"),
        RollingSum=one(ta.SUM, *c),
        RollingMean=one(ta.SMA, *c),
        RollingStd=lambda b, n, ddof: ta.STDDEV(b.close.to_numpy(), n, 1.0),
        RollingMin=one(ta.MIN, *c),
        RollingMax=one(ta.MAX, *c),
    )


FIXED = dict(KAMA=dict(fast=2, slow=30), RollingStd=dict(ddof=0))
LOOSE = dict(Bollinger=3e-5, RollingStd=3e-5)  # TA-Lib's variance is a difference of squares of the price
TALIB = """SMA EMA WMA DEMA KAMA MACD RSI Stochastic CCI WilliamsR MFI ROC Aroon ATR DI ADX Bollinger Donchian OBV
    RollingSum RollingMean RollingStd RollingMin RollingMax""".split()


def agree(name, values, bars):
    cls = INDICATORS[name]
    values = {k: (values | FIXED.get(name, {}))[k] for k in cls.params}  # in TA-Lib's order
    ours, theirs = run(cls, values, bars), np.atleast_2d(talib_table()[name](bars, *values.values()))
    assert np.array_equal(np.isnan(ours), np.isnan(theirs)), "warm-up"
    assert np.allclose(ours, theirs, rtol=1e-9, atol=LOOSE.get(name, 1e-8), equal_nan=True)


@pytest.fixture(scope="module")
def real_bars(shared_data):
    "Five US stocks by day, SPY by minute (with flat and thin ones before the open)"
    stocks = pd.read_parquet(shared_data("daily/wiki5_daily_2000_2013.parquet"))
    minutes = [pd.read_parquet(shared_data(f"intraday/spy_1min_{x}.parquet")) for x in ("2020_12", "2011_01_03")]
    frames = [*(rows for _, rows in stocks.groupby("symbol")), *minutes]
    return [f.reset_index(drop=True).astype({"volume": float}) for f in frames]


@pytest.mark.parametrize("name", TALIB)
def test_equals_talib_on_real_bars_at_the_defaults(name, real_bars):
    for bars in real_bars:
        agree(name, defaults(INDICATORS[name]), bars)


@pytest.mark.parametrize("name", TALIB)
def test_equals_talib_at_random_parameters(name):
    cls = INDICATORS[name]
    whole = {k: st.integers(2, 40) if p.kind is int else st.floats(0.5, 5) for k, p in cls.params.items()}

    @settings(few, max_examples=20)
    @given(st.fixed_dictionaries(whole), st.integers(0, 50))
    def check(values, seed):
        agree(name, values, market(seed))

    check()


def test_macd_takes_the_longer_length_as_slow_as_talib_does():
    agree("MACD", dict(fast=26, slow=12, smooth=9), market())


def test_money_flow_of_small_volumes_is_not_lost():
    bars = market()
    small = bars.assign(volume=bars.volume * 1e-12)
    mfi = INDICATORS["MFI"]
    assert np.allclose(run(mfi, dict(n=14), small), run(mfi, dict(n=14), bars), equal_nan=True)


# --- definitions without TA-Lib


def test_rolling_statistics_equal_pandas_and_numpy():
    close = market(3).close
    made = {name: INDICATORS[name] for name in ("RollingStd", "ZScore", "RollingSkew", "RollingQuantile")}
    for n in (3, 20, 90):
        window = close.rolling(n)
        std = run(made["RollingStd"], dict(n=n, ddof=1), market(3))[0]
        assert np.allclose(std, window.std(), rtol=1e-9, equal_nan=True)
        z = run(made["ZScore"], dict(n=n, ddof=0), market(3))[0]
        assert np.allclose(z, (close - window.mean()) / window.std(ddof=0), rtol=1e-8, atol=1e-9, equal_nan=True)
        skew = run(made["RollingSkew"], dict(n=n), market(3))[0] * np.sqrt(n * (n - 1)) / (n - 2)
        assert np.allclose(skew, window.skew(), rtol=1e-7, atol=1e-7, equal_nan=True)
        for q in (0.0, 0.1, 0.5, 0.77, 1.0):
            got = run(made["RollingQuantile"], dict(n=n, q=q), market(3))[0]
            fresh_one = [np.quantile(close[t - n + 1 : t + 1], q) for t in range(n - 1, len(close))]
            assert np.allclose(got[n - 1 :], fresh_one, rtol=1e-13)


def test_session_average_price_begins_anew_with_each_session():
    bars = market(4, awkward=True)
    typical = bars[["high", "low", "close"]].mean(axis=1)
    money, units = ((v * bars.volume).groupby(bars.session).cumsum() for v in (typical, 1.0))
    expected = (money / units).where(units > 0, typical)
    assert np.allclose(run(INDICATORS["VWAP"], {}, bars)[0], expected, rtol=1e-12)


def test_volatilities_equal_their_formulas():
    b, n = market(5), 30
    hl, co, ho, lo = (
        np.log(b[x] / b[y]) for x, y in (("high", "low"), ("close", "open"), ("high", "open"), ("low", "open"))
    )
    gap, change = np.log(b.open / b.close.shift()), np.log(b.close).diff()

    def mean(x):
        return x.rolling(n).mean()

    k = 0.34 / (1.34 + (n + 1) / (n - 1))
    rogers_satchell = mean((ho * (ho - co) + lo * (lo - co)).where(gap.notna()))
    expected = dict(
        RealisedVol=change.rolling(n).std(),
        Parkinson=np.sqrt(mean(hl**2) / (4 * np.log(2))),
        GarmanKlass=np.sqrt(mean(hl**2 / 2 - (2 * np.log(2) - 1) * co**2)),
        YangZhang=np.sqrt(
            gap.rolling(n).var() + k * co.where(gap.notna()).rolling(n).var() + (1 - k) * rogers_satchell
        ),
    )
    for name, value in expected.items():
        assert np.allclose(run(INDICATORS[name], dict(n=n, periods=1.0), b)[0], value, rtol=1e-9, equal_nan=True), name
        yearly = run(INDICATORS[name], dict(n=n, periods=252.0), b)[0]
        assert np.allclose(yearly, value * np.sqrt(252), rtol=1e-9, equal_nan=True), name


def test_hurst_equals_the_regression_on_each_window():
    x, n = np.log(market(6).close.to_numpy()), 70
    lags = np.array([1, 2, 4, 8, 16])
    moves = [
        [np.mean((x[t - n + 1 + k : t + 1] - x[t - n + 1 : t + 1 - k]) ** 2) for k in lags]
        for t in range(n - 1, len(x))
    ]
    slopes = np.polyfit(np.log(lags), np.log(moves).T, 1)[0] / 2
    assert np.allclose(run(INDICATORS["Hurst"], dict(n=n), market(6))[0][n - 1 :], slopes, atol=1e-9)


# --- numbers that do not wear out

FLAT = dict(
    RollingSum=None, RollingStd=0.0, ZScore=0.0, RollingSkew=0.0,  Bollinger=1 / 3, RealisedVol=0.0,
    Parkinson=0.0, GarmanKlass=0.0, YangZhang=0.0, CCI=0.0, Stochastic=0.0, WilliamsR=0.0, MFI=0.0, ROC=0.0,
    Hurst=np.nan,
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(k for k, v in FLAT.items() if v is not None))
def test_flat_window_is_exactly_flat_after_noise_and_a_spike(name):
    bars = market(7, 900)
    bars.loc[40:80, ["open", "high", "low", "close"]] *= 1e7
    bars.loc[304:, ["open", "high", "low", "close"]] = 1 / 3
    cls = INDICATORS[name]
    first = 304 + cls.warmup(**defaults(cls)) + (6 if name == "Stochastic" else 1)  # its averages are plain SMAs
    out = run(cls, defaults(cls), bars)[:, first:]
    assert np.array_equal(out, np.full_like(out, FLAT[name]), equal_nan=True)


def drift(n, spike):
    "Largest error of mean, variance (against the allowed one) and skew over ten million bars near 60,000"
    rng, chunk = np.random.default_rng(11), 1_000_000
    names = ["SMA", "RollingMean", "WMA", "RollingStd", "RollingSkew", "Bollinger"]
    values = {k: defaults(INDICATORS[k]) | dict(n=n) for k in names}
    states = {k: fresh(INDICATORS[k], values[k]) for k in names}
    worst = dict.fromkeys(("mean", "variance", "skew"), 0.0)
    for part in range(10):
        x = 60_000 + rng.normal(size=chunk)
        if part == 0 and spike:
            x[1234] = 1e9
        outs = {k: np.empty((len(INDICATORS[k].outputs), chunk)) for k in names}
        for k in names:
            _loop(INDICATORS[k])(states[k], x[None], outs[k])
        rows = [chunk - 1, chunk - 2, chunk // 2]
        rows += [*range(1234 + n - 2, 1234 + 3 * n + 2, 7 if n > 100 else 1)] if part == 0 else []
        for t in rows:
            window = x[t - n + 1 : t + 1].astype(np.longdouble)
            mean, weights = window.mean(), np.arange(1, n + 1)
            away = window - mean
            variance, skew = (away**2).mean(), (away**3).mean() / (away**2).mean() ** 1.5
            allowed = max(1e-9 * variance, 1e-14 * mean**2)
            means = [outs["SMA"][0, t], outs["RollingMean"][0, t], outs["Bollinger"][1, t]]
            weighted = (window * weights).sum() / weights.sum()
            errors = [*(abs(m / mean - 1) for m in means), abs(outs["WMA"][0, t] / weighted - 1)]
            side = (outs["Bollinger"][0, t] - outs["Bollinger"][1, t]) / 2
            off = max(abs(outs["RollingStd"][0, t] ** 2 - variance), abs(side**2 - variance) - 1e-10)
            worst["mean"] = max(worst["mean"], *errors)
            worst["variance"] = max(worst["variance"], off / allowed)
            worst["skew"] = max(worst["skew"], abs(outs["RollingSkew"][0, t] - skew))
    return {k: float(v) for k, v in worst.items()}


def test_ten_million_bars_with_a_spike_leave_every_digit():
    start = time.perf_counter()
    worst = drift(20, spike=True)
    assert worst["mean"] < 1e-9 and worst["variance"] < 1 and worst["skew"] < 1e-9
    assert time.perf_counter() - start < 20


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 500])
def test_ten_million_bars_leave_every_digit_at_other_lengths(n):
    worst = drift(n, spike=n > 100)
    assert worst["mean"] < 1e-9 and worst["variance"] < 1 and worst["skew"] < 1e-8


def test_level_that_moves_by_orders_of_magnitude_keeps_its_variance():
    x = np.exp(np.linspace(0, 40, 6000) + np.random.default_rng(12).normal(0, 1e-4, 6000))
    bars = pd.DataFrame(dict(close=np.r_[x, x[::-1]]))
    std = run(INDICATORS["RollingStd"], dict(n=50, ddof=0), bars)[0]
    expected = [np.std(bars.close[t - 49 : t + 1].to_numpy(np.longdouble)) for t in range(49, 12000, 37)]
    assert np.allclose(std[49::37], np.array(expected, float), rtol=1e-9)


# --- edited code

SOURCE = """
from tradebench.features.indicator import SMA, Indicator, sma
from tradebench.features.rolling import Parts
from tradebench.jit import kernel
from tradebench.params import param

@kernel
def scale(x):
    return x * {factor}

@kernel
def scaled(s, x):
    s.value = scale(sma(s.average, x))
    return s.value

class Scaled(Parts, Indicator):
    n = param(2, 1, 10, "bars")
    parts = dict(average=SMA("n"))
    step = scaled
"""


def test_edited_step_runs_as_edited_from_the_same_cache(tmp_path):
    def result(factor):
        (tmp_path / "mine.py").write_text(SOURCE.format(factor=factor))
        code = "import mine, sys, numpy as np; print(mine.Scaled(2)(np.array([1.0, 3.0]))[1], 'numba' in sys.modules)"
        path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
        env = os.environ | dict(TRADEBENCH__DATA__CACHE=str(tmp_path), PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1")
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert result(2.0) == ["4.0", "True"]
    assert result(5.0) == ["10.0", "True"]  # an edited callee: compiled anew
    assert result(2.0) == ["4.0", "False"]  # the first one again: from the cache, without the compiler
