"No strategy knows the future: prefixes, poisoned futures, and proof that the check catches what it should."

import numpy as np
import pandas as pd
import pytest
from markets import KINDS, drawn, market
from test_strategies import COSTS, entries, lively

from tradebench.data import higher as higher_module
from tradebench.data.bars import prepare
from tradebench.data.higher import higher_columns
from tradebench.features.averages import EMA, ema
from tradebench.risk.sizing import Sizing
from tradebench.strategies.catalogue import STRATEGIES
from tradebench.strategies.follow import pandas_strategy
from tradebench.strategies.strategy import higher, long_if, strategy
from tradebench.validation.futures import FUTURES, BarsFutures, Change
from tradebench.validation.lookahead import first_leak
from tradebench.validation.targets import recorded


@pytest.fixture(scope="module", params=entries())
def instance(request):
    return lively(request.param)


def options(instance, bars):
    return dict(costs=COSTS, sizing=Sizing() if instance.basket else Sizing(fraction=1 / len(bars.symbols)))


def orders_until(sim, t):
    o = sim.orders[: sim.account["n_orders"]]
    o = o[o["t"] <= t]
    return [o[k].tobytes() for k in ("id", "t", "j", "reason", "qty", "limit", "stop", "take", "trail", "expire")]


@pytest.mark.parametrize("kind", KINDS)
def test_no_leak(instance, kind):
    bars = market(kind)
    assert first_leak(instance, bars, cuts=4, **options(instance, bars)) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_leak_many_cuts(instance, kind):
    bars, rng = market(kind), np.random.default_rng(3)
    for k in range(4):
        s = instance if k == 0 else drawn(type(instance), rng)
        assert first_leak(s, bars, cuts=20, seed=k, **options(s, bars)) is None, s


@pytest.mark.parametrize("kind", KINDS)
def test_prefix_gives_a_prefix(instance, kind):
    "Orders, fills, equity and decisions of a run on a prefix are a prefix of the run's, byte for byte"
    bars = market(kind)
    how = options(instance, bars)
    sim, decisions = recorded(instance, bars, **how)
    rng = np.random.default_rng(4)
    for cut in (1, 2, *rng.integers(3, len(bars) - 1, 8), len(bars) - 2):
        part, decided = recorded(instance, bars.window(end=bars.index[cut]), **how)
        np.testing.assert_array_equal(decided, decisions[: cut + 1])
        assert orders_until(part, cut) == orders_until(sim, cut)
        assert part.equity.tobytes() == sim.equity[: cut + 1].tobytes()
        n = part.account["n_fills"]
        assert (
            part.fills[:n].tobytes() == sim.fills[:n].tobytes()
            and (sim.fills["t"][n : sim.account["n_fills"]] > cut).all()
        )


def test_futures_leave_the_past_alone():
    for kind in KINDS:
        bars = market(kind)
        later = BarsFutures(bars)
        for cut in (1, len(bars) // 2, len(bars) - 2, len(bars) - 1):
            for name in FUTURES:
                other = later(Change(cut, name))
                for field in ("ts", "raw", "seen", "factor", "flags", "clock"):
                    np.testing.assert_array_equal(getattr(other, field)[:cut], getattr(bars, field)[:cut])
                assert len(other) == (cut if name == "removed" else len(bars))
                assert name in ("removed", "shuffled", "shifted") or (other.seen[cut:] != bars.seen[cut:]).any()


# ---- what it must catch


@pytest.fixture
def temporary():
    "Names that a test adds to the catalogue go with it"
    before = dict(STRATEGIES)
    yield
    STRATEGIES.clear()
    STRATEGIES.update(before)


def test_catches_tomorrows_close(temporary):
    @pandas_strategy
    def leaks_tomorrow(bars):
        "Knows whether the next close is higher."
        return bars.close.shift(-1) > bars.close, bars.close.shift(-1) < bars.close

    leak = first_leak(leaks_tomorrow, market("daily"))
    assert leak.column == "target" and leak.bar == leak.cut - 1 and leak.ahead == (1, 1)


def test_catches_a_mean_over_all_bars(temporary):
    @pandas_strategy
    def leaks_mean(bars):
        "Knows the mean of all closes."
        return (bars.close < bars.close.mean()).astype(float)

    leak = first_leak(leaks_mean, market("daily"))
    assert leak.column == "target" and leak.bar < leak.cut and leak.to_the_end


@pytest.mark.parametrize("future", FUTURES)
def test_each_future_catches_tomorrow(temporary, future):
    @pandas_strategy
    def leaks_again(bars):
        "Knows whether the next close is higher."
        return (bars.close.shift(-1) > bars.close).astype(float)

    assert first_leak(leaks_again, market("daily"), cuts=20, futures=(future,)).futures == (future,)


def test_names_the_field_and_the_symbol(temporary):
    @pandas_strategy
    def leaks_stop(bars):
        "An honest target with a stop that knows tomorrow's low."
        return dict(target=1.0, stop=bars.low.shift(-1).fillna(1.0))

    leak = first_leak(leaks_stop, market("daily"))
    assert leak.column == "stop" and leak.bar == leak.cut - 1 and leak.inputs == ("low",)

    @pandas_strategy
    def leaks_one(bars):
        "Honest in all symbols but one."
        close = bars.xs("close", axis=1, level=1)
        up = close > close.shift()
        up["IBM"] = close["IBM"].shift(-1) > close["IBM"]
        return up.astype(float) / 3

    assert first_leak(leaks_one, market("daily_many")).column == "IBM.target"


def test_catches_a_week_that_is_known_too_early(temporary, monkeypatch):
    "A higher time frame joined one bar early shows as an input that knows the future"

    @strategy
    class AboveTheWeek:
        "Long above the average of weekly closes."

        inputs = dict(week=higher("1W"))
        state = dict(m=EMA(3))

        def step(s, p, row):
            if row.week_new:
                ema(s.m, row.week_close)
            return long_if(row.close > s.m.value)

    bars = market("daily")
    assert first_leak(AboveTheWeek, bars) is None

    def early(bars, freq):
        return {k: np.concatenate([v[1:], v[-1:]]) for k, v in higher_columns(bars, freq).items()}

    monkeypatch.setattr(higher_module, "higher_columns", early)
    leak = first_leak(AboveTheWeek, bars, cuts=40)
    assert (
        leak.column in ("target", "input week_close", "input week_open", "input week_new") and leak.bar == leak.cut - 1
    )


def test_passes_what_is_honest(temporary):
    @pandas_strategy
    def is_honest(bars):
        "Above the mean of the closes so far."
        return (bars.close > bars.close.expanding().mean()).astype(float)

    assert first_leak(is_honest, market("daily"), cuts=20) is None


def test_a_new_entry_is_tested(temporary):
    @strategy
    class BrandNew:
        "Long after a rise."

        state = dict(last=0.0)

        def step(s, p, row):
            rose = row.close > s.last
            s.last = row.close
            return long_if(rose)

    assert "brand_new" in entries()
    for kind in KINDS:
        assert first_leak(STRATEGIES["brand_new"], market(kind), cuts=4, sizing=Sizing(fraction=0.3)) is None


# ---- higher time frames


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("freq", ["4h", "session", "1D", "1W"])
def test_higher_columns_of_a_prefix(kind, freq):
    bars = market(kind)
    if freq == "4h" and kind.startswith("daily"):
        pytest.skip("shorter than the bars")
    whole, rng, later = higher_columns(bars, freq), np.random.default_rng(6), BarsFutures(bars)
    assert all(v.shape == bars.flags.shape for v in whole.values()) and (whole["new"] == 1).any()
    for cut in (2, *rng.integers(2, len(bars), 5)):
        for name in FUTURES:
            part = higher_columns(later(Change(int(cut), name)), freq)
            for k in whole:
                np.testing.assert_array_equal(part[k][:cut], whole[k][:cut], err_msg=f"{k} {name} {cut}")


def test_higher_columns_against_pandas():
    "Weeks and sessions by groupby on the finished ones"
    bars = market("new_york")
    frame = bars.frame("seen")
    days = bars.session_days().astype("datetime64[s]")
    for freq, key in (("session", days), ("1W", pd.DatetimeIndex(days).to_period("W"))):
        groups = frame.groupby(key)
        made = groups.agg(dict(open="first", high="max", low="min", close="last", volume="sum"))
        ends = groups.apply(lambda g: g.index[-1])
        found = higher_columns(bars, freq)
        rows = np.flatnonzero(found["new"][:, 0])
        whole = made[ends.isin(bars.index[rows]).to_numpy()]
        assert len(rows) >= len(made) - 1 and list(bars.index[rows]) == list(ends[ends.isin(bars.index[rows])])
        for f in made:
            np.testing.assert_allclose(found[f][rows, 0], whole[f], rtol=1e-12)


def test_a_week_with_a_missing_friday_is_known_on_monday():
    bars = market("daily")
    frame = bars.frame()
    fridays = frame.index[frame.index.day_of_week == 4]
    gone = fridays[10]
    found = higher_columns(prepare(frame.drop(gone)), "1W")
    monday = frame.drop(gone).index.searchsorted(gone)
    assert found["new"][monday, 0] == 1 and found["new"][monday - 1, 0] == 0
    thursday = bars.frame("seen").close.asof(gone - pd.Timedelta(hours=12))
    assert found["close"][monday, 0] == thursday
