"""prepare: what comes in, what is refused, and that the future never changes the past."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.data.bars import Bars, prepare
from tradebench.data.checks import FIELDS, first_violation
from tradebench.data.instruments import Instrument, instrument
from tradebench.errors import DataError

STOCK = {s: Instrument(s, calendar="XNYS") for s in "ABC"}


def walk(n, seed=0, symbols=None, holes=0.0):
    "Valid daily bars of New York sessions: plain columns, or (symbol, field) with holes."
    rng = np.random.default_rng(seed)
    from tradebench.data.calendars import sessions

    s = sessions("XNYS", pd.Timestamp("2005-01-03").as_unit("ns").value, pd.Timestamp("2005-02-03").as_unit("ns").value)
    a = int(np.searchsorted(s.day, np.datetime64("2005-01-03")))
    index = pd.DatetimeIndex(s.close[a : a + n], tz="UTC", name="ts")

    def one():
        c = 50 * np.exp(np.cumsum(rng.normal(0, 0.02, n)))
        o = c * np.exp(rng.normal(0, 0.01, n))
        h, lo = np.maximum(o, c) * (1 + rng.random(n) / 50), np.minimum(o, c) * (1 - rng.random(n) / 50)
        return pd.DataFrame(
            dict(zip(FIELDS, (o, h, lo, c, rng.integers(0, 1000, n).astype(float)), strict=True)), index=index
        )

    if symbols is None:
        return one()
    frames = {s: one() for s in symbols}
    for f in frames.values():
        f.loc[rng.random(n) < holes] = np.nan
    return pd.concat(frames, axis=1)


def actions_of(draws, index, symbols):
    "Actions table from (row, symbol number, kind, value) draws."
    days = index.tz_convert("America/New_York").tz_localize(None).normalize()
    rows = [
        (
            symbols[j % len(symbols)],
            days[r % len(days)],
            "split" if split else "dividend",
            (0.5 + 2.5 * v) if split else 0.01 + 2 * v,
            "",
        )
        for r, j, split, v in draws
    ]
    return pd.DataFrame(rows, columns=["symbol", "date", "kind", "value", "text"])


EVENTS = st.lists(st.tuples(st.integers(1, 200), st.integers(0, 2), st.booleans(), st.floats(0, 1)), max_size=6)


def test_arrays_are_owned_writable_and_c_contiguous():
    f = walk(30)
    b = prepare(f, instruments=Instrument("A", calendar="XNYS"))
    for a in (b.ts, b.raw, b.factor, b.flags, b.clock):
        assert a.flags.c_contiguous and a.flags.writeable and a.base is None
    b.raw[0, 0, 0] = 1.0
    assert f["open"].iloc[0] != 1.0
    assert b.raw.shape == (30, 1, 5) and b.raw.dtype == float and b.ts.dtype == np.int64 and b.clock.dtype == np.int64


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_any_unit_of_time_gives_nanoseconds(unit):
    f = walk(5)
    g = f.copy()
    g.index = f.index.as_unit(unit)
    assert prepare(g).ts.tolist() == f.index.as_unit("ns").asi8.tolist()


def test_prepare_is_idempotent_and_bars_go_back_to_the_frame():
    f = walk(40, symbols="ABC", holes=0.2)
    b = prepare(f, instruments=STOCK)
    assert prepare(b) is b
    again = prepare(b.frame())
    assert again.hash == b.hash and again.instruments == b.instruments
    with pytest.raises(DataError, match="are Bars already"):
        prepare(b, universe=pd.DataFrame())


def test_absent_rows_stay_visible_and_dates_are_not_intersected():
    f = walk(40, symbols="ABC", holes=0.3)
    b = prepare(f, instruments=STOCK)
    assert len(b) == 40
    for j, s in enumerate("ABC"):
        there = f[s]["close"].notna().to_numpy()
        assert ((b.flags[:, j] & 1) == there).all() and np.isnan(b.raw[~there, j]).all()


def test_all_zero_or_missing_volume_means_unknown_not_untraded():
    f = walk(10)
    assert (prepare(f.assign(volume=0.0)).flags & 2).all() and (prepare(f.drop(columns="volume")).flags & 2).all()
    f.iloc[3, 4] = 0.0
    f.iloc[4, 4] = np.nan
    flags = prepare(f.assign(volume=f["volume"].where(f["volume"] != 0, 0.0))).flags[:, 0]
    assert not flags[3] & 2 and flags[4] & 2


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize(
    ("value", "rule"), [(np.nan, "missing"), (np.inf, "missing"), (0.0, "non_positive"), (-1.0, "non_positive")]
)
def test_bad_prices_are_refused_with_row_and_rule(column, value, rule):
    f = walk(20)
    f.iloc[7, column] = value
    with pytest.raises(DataError) as e:
        prepare(f)
    assert (e.value.row, e.value.rule, e.value.ts) == (7, rule, f.index[7])
    assert "row 7" in str(e.value) and "2005-01-12" in str(e.value) and "\n" not in str(e.value)


def test_partly_missing_cell_of_many_symbols_is_refused():
    f = walk(20, symbols="AB")
    f.loc[f.index[4], ("B", "high")] = np.nan
    with pytest.raises(DataError, match="B: row 4 .*missing"):
        prepare(f, instruments={s: STOCK[s] for s in "AB"})


@given(st.integers(0, 40_000), st.sampled_from(["high", "low", "close", "volume"]))
@settings(max_examples=30)
def test_the_block_check_finds_what_the_plain_rule_finds(row, column):
    n = 40_001
    f = pd.DataFrame(
        {"open": 10.0, "high": 11.0, "low": 9.0, "close": 10.0, "volume": 1.0},
        index=pd.date_range("2020", periods=n, freq="min", tz="UTC"),
    )
    f.loc[f.index[row], column] = {"high": 9.5, "low": 10.5, "close": 12.0, "volume": -1.0}[column]
    with pytest.raises(DataError) as e:
        prepare(f)
    assert (e.value.row, e.value.rule) == first_violation([f[c].to_numpy() for c in FIELDS])[:2] == (row, e.value.rule)


def test_times_must_increase():
    f = walk(10)
    for g, rule in ((f.iloc[[0, 2, 1]], "order"), (f.iloc[[0, 1, 1]], "duplicate")):
        with pytest.raises(DataError) as e:
            prepare(g)
        assert (e.value.rule, e.value.row) == (rule, 2)
    with pytest.raises(DataError, match="naive"):
        prepare(f.tz_localize(None))


def test_mixed_calendars_are_refused():
    f = walk(5, symbols="AB")
    with pytest.raises(DataError, match="one frame has one calendar"):
        prepare(f, instruments={"A": STOCK["A"], "B": Instrument("B")})


def test_columns_in_any_case_extras_and_text():
    f = walk(5).rename(columns=str.title).assign(signal=1, label="x")
    b = prepare(f)
    assert list(b.extras) == ["signal"] and b.extras["signal"].tolist() == [[1.0]] * 5


def test_swapped_levels_are_explained():
    f = walk(5, symbols="AB").swaplevel(axis=1)
    with pytest.raises(DataError, match="swaplevel"):
        prepare(f)


def test_known_symbols_bring_their_instrument_and_unknown_ones_a_note():
    f = walk(30)
    f.attrs["tradebench"] = {"symbols": ["AAPL"]}
    assert prepare(f).instruments[0] == instrument("AAPL") and not prepare(f).notes
    assert "24/5 assumed" in prepare(walk(30)).notes[0]


def test_universe_is_known_at_and_carried_forward():
    f = walk(10, symbols="AB")
    u = pd.DataFrame({"A": [True, False], "B": [False, True]}, index=f.index[[2, 6]])
    b = prepare(f, instruments={s: STOCK[s] for s in "AB"}, universe=u)
    member = (b.flags & 4) > 0
    assert member[:, 0].tolist() == [False] * 2 + [True] * 4 + [False] * 4
    assert member[:, 1].tolist() == [False] * 6 + [True] * 4


def test_anchor_drops_rows_and_restarts_the_factor():
    f = walk(30)
    a = actions_of([(5, 0, True, 0.5), (20, 0, True, 0.5)], f.index, ["asset"])
    b = prepare(f, actions=a, instruments=STOCK["A"], anchor=f.index[10])
    assert len(b) == 20 and b.factor[0, 0] == 1 and b.factor[-1, 0] == 1.75


@given(st.integers(0, 10), st.integers(20, 80), EVENTS, st.integers(2, 79))
@settings(max_examples=40)
def test_a_prefix_and_a_poisoned_future_leave_the_past_alone(seed, n, draws, cut):
    symbols, cut = ["A", "B", "C"], min(cut, n - 1)
    f = walk(n, seed, symbols, holes=0.1)
    acts = actions_of(draws, f.index, symbols)
    full = prepare(f, instruments=STOCK, actions=acts)
    poisoned = f.copy()
    poisoned.iloc[cut:] *= 1000.0
    for other in (
        prepare(f.iloc[:cut], instruments=STOCK, actions=acts),
        prepare(poisoned, instruments=STOCK, actions=acts),
    ):
        for k in ("raw", "seen", "factor", "share", "flags", "clock"):
            assert np.array_equal(getattr(other, k)[:cut], getattr(full, k)[:cut], equal_nan=k in ("raw", "seen"))
        assert (other.events[other.events["t"] < cut] == full.events[full.events["t"] < cut]).all()


@given(st.integers(0, 5), EVENTS, st.integers(0, 40), st.integers(41, 70))
@settings(max_examples=40)
def test_a_window_equals_preparing_the_cut_frame(seed, draws, a, b):
    symbols = ["A", "B", "C"]
    f = walk(70, seed, symbols, holes=0.1)
    acts = actions_of(draws, f.index, symbols)
    w = prepare(f, instruments=STOCK, actions=acts).window(f.index[a], f.index[b - 1])
    p = prepare(f.iloc[a:b], instruments=STOCK, actions=acts)
    for k in ("ts", "raw", "seen", "factor", "share", "flags", "clock"):
        assert np.array_equal(getattr(w, k), getattr(p, k), equal_nan=k in ("raw", "seen")), k
    assert (w.events == p.events).all() and (w.seen is w.raw) == (p.seen is p.raw)


def test_seen_prices_follow_the_formula_of_the_contract():
    f = walk(60, 3)
    acts = pd.DataFrame(
        {
            "symbol": "asset",
            "date": [f.index[20], f.index[20], f.index[40]],
            "kind": ["split", "dividend", "dividend"],
            "value": [2.0, 1.5, 0.7],
        }
    )
    acts["date"] = acts["date"].dt.tz_convert("America/New_York").dt.tz_localize(None).dt.normalize()
    b = prepare(f, instruments=STOCK["A"], actions=acts)
    c = f["close"].to_numpy()
    f1 = 2.0 / (1 - 1.5 / c[19])
    f2 = f1 / (1 - 0.7 / c[39])
    assert b.factor[[19, 20, 39, 40], 0] == pytest.approx([1, f1, f1, f2], rel=1e-14)
    assert b.seen[:, 0, 3] == pytest.approx(c * b.factor[:, 0], rel=1e-15) and b.seen[20:, 0, 4] * 2 == pytest.approx(
        b.raw[20:, 0, 4]
    )
    assert b.events["kind"].tolist() == [1, 2, 1] and b.events["t"].tolist() == [20, 20, 40]


def test_intraday_rows_of_the_ex_day_are_all_ex_even_before_the_opening():
    index = pd.DatetimeIndex(
        ["2005-02-25 21:00", "2005-02-26 00:30", "2005-02-28 13:00", "2005-02-28 14:31"], tz="UTC"
    )  # 00:30 UTC: after hours
    f = pd.DataFrame(
        {"open": [90, 90, 45, 45.0], "high": 95.0, "low": 40.0, "close": [90, 90, 45, 45.0], "volume": 1.0}, index=index
    )
    acts = pd.DataFrame({"symbol": ["asset"], "date": ["2005-02-28"], "kind": ["split"], "value": [2.0]})
    assert prepare(f, instruments=STOCK["A"], actions=acts).factor[:, 0].tolist() == [1, 1, 2, 2]


def test_back_adjusted_ends_at_the_raw_price():
    f = walk(50, 1)
    acts = actions_of([(10, 0, True, 0.5), (30, 0, False, 0.2)], f.index, ["asset"])
    b = prepare(f, instruments=STOCK["A"], actions=acts)
    back = b.frame("back")
    assert back["close"].iloc[-1] == pytest.approx(f["close"].iloc[-1], rel=1e-15)
    ratio = b.frame("seen")["close"] / back["close"]
    assert ratio.to_numpy() == pytest.approx(ratio.iloc[0], rel=1e-12)


def test_hash_depends_on_content_alone():
    f = walk(30)
    a, b = prepare(f), prepare(f.copy())
    g = f.copy()
    g.iloc[29, 3] += 1e-9
    assert a.hash == b.hash != prepare(g).hash and isinstance(a, Bars)


def test_a_million_rows_in_a_fraction_of_a_second():
    n = 1_000_000
    f = pd.DataFrame(
        np.full((5, n), 10.0).T, columns=list(FIELDS), index=pd.date_range("2015", periods=n, freq="min", tz="UTC")
    )
    prepare(f)
    best = min(_timed(prepare, f) for _ in range(3))
    assert best < 0.25, f"{best * 1e3:.0f} ms"  # 20 ms on a quiet machine


def _timed(fn, *args):
    t = time.perf_counter()
    fn(*args)
    return time.perf_counter() - t


def test_real_listing_dates_survive(shared_data):
    t = pd.read_parquet(shared_data("daily/us20_adjclose_1989_2018.parquet")).set_index("ts")
    wide = pd.concat({s: pd.DataFrame({f: t[s] for f in FIELDS[:4]}) for s in t.columns}, axis=1)
    b = prepare(wide)
    j = b.symbols.index("BABA")
    assert len(b) == len(t) and str(b.index[(b.flags[:, j] & 1).argmax()])[:10] == "2014-09-19"
