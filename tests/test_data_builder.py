"""One builder in research and live: against pandas and plain loops, streaming equals batch, a prefix stays a prefix."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.data.bars import prepare
from tradebench.data.builder import AGAIN, BUILDER, KINDS, TAKEN, Builder, build_step, new_builder
from tradebench.data.calendars import MINUTE, sessions
from tradebench.data.simulator import simulate, simulate_trades
from tradebench.data.timeframes import _run, as_of, build_bars, join_higher, resample
from tradebench.errors import DataError

SIZES = {"time": "5min", "tick": 7, "volume": 300, "dollar": 30_000}


def ns(text):
    return pd.Timestamp(text, tz="UTC").as_unit("ns").value


def make_trades(seconds, seed=0, start="2024-01-02 14:30", scale=10**9):
    "Trades at the given offsets."
    rng = np.random.default_rng(seed)
    ts = np.sort(np.array(seconds, np.int64)) * scale + ns(start)
    price = (100 + np.cumsum(rng.normal(0, 0.1, len(ts)))).round(2)
    return pd.DataFrame(
        {"price": price, "size": rng.integers(1, 100, len(ts)).astype(float)},
        index=pd.DatetimeIndex(ts, tz="UTC", name="ts"),
    )


@pytest.fixture(scope="module")
def es(shared_data):
    return pd.read_parquet(shared_data("ticks/es_fut_trades_2013_09.parquet")).set_index("ts")


# --- against slow references on real trades -----------------------------------------------------------------------------


def test_minutes_of_real_trades_equal_pandas_resampling(es):
    ours = build_bars(es, "time", "1min", calendar="CMES")
    r = es.resample("1min", label="right", closed="left")
    slow = pd.concat([r["price"].ohlc(), r["size"].sum().rename("volume"), r["size"].count().rename("trades")], axis=1)
    slow = slow[slow["trades"] > 0]
    traded = ours[ours["trades"] > 0]
    common = traded.index.intersection(slow.index)
    assert len(common) >= len(traded) - 3  # the minutes that end a session keep their closing print
    fields = ["open", "high", "low", "close", "volume", "trades"]
    a, b = traded.loc[common, fields], slow.loc[common, fields].astype(float)
    differ = (a.to_numpy() != b.to_numpy()).any(axis=1)
    closes = sessions("CMES", ns("2013-09-01"), ns("2013-09-05")).close
    assert set(a.index[differ].as_unit("ns").asi8) <= set(closes.tolist())
    assert ours["volume"].sum() == es["size"][es.index < ours.index[-1]].sum()


def test_quiet_minutes_are_bars_and_sessions_end_with_one(es):
    ours = build_bars(es, "time", "1min", calendar="CMES")
    c = prepare(ours).clock
    assert (c[:, 2] == 0).sum() == 1 and (ours["trades"] == 0).sum() > 100  # Labor Day's early close lies in the data
    quiet = ours[ours["trades"] == 0]
    before = ours["close"].shift(1).loc[quiet.index]
    assert (quiet["open"] == before).all() and (quiet["high"] == quiet["low"]).all() and (quiet["volume"] == 0).all()
    assert not (prepare(ours).flags[(ours["trades"] == 0).to_numpy()] & 2).any()
    inside = np.diff(c[:, 1])[np.diff(c[:, 0]) == 0]
    step = np.diff(prepare(ours).ts)[np.diff(c[:, 0]) == 0]
    assert (inside == 1).all() and (step == MINUTE).all()  # the grid has no hole


@pytest.mark.parametrize(("kind", "size"), [("dollar", 1_400_000.0), ("volume", 5000), ("tick", 500)])
def test_threshold_bars_of_real_trades_equal_a_plain_loop(es, kind, size):
    part = es.iloc[:60_000]
    ours = build_bars(part, kind, size, calendar="CMES")
    out, total, first, last = [], 0.0, 0, -(2**63)
    close = sessions("CMES", ns("2013-09-01 23:00"), ns("2013-09-02")).close
    p, q, ts = part["price"].to_numpy(), part["size"].to_numpy(float), part.index.as_unit("ns").asi8
    session = np.searchsorted(close, ts, side="left")
    for i in range(len(part)):
        if i and session[i] != session[i - 1] and first < i:
            out.append((max(close[session[i - 1]], last + 1), p[first:i].max(), q[first:i].sum(), i - first))
            last, total, first = out[-1][0], 0.0, i
        total += {"dollar": p[i] * q[i], "volume": q[i], "tick": 1}[kind]
        if total >= size:
            out.append((max(ts[i], last + 1), p[first : i + 1].max(), q[first : i + 1].sum(), i + 1 - first))
            last, total, first = out[-1][0], 0.0, i + 1
    assert ours.index.as_unit("ns").asi8.tolist() == [o[0] for o in out]
    assert np.array_equal(ours[["high", "volume", "trades"]].to_numpy(), np.array([o[1:] for o in out]))
    assert (np.diff(ours.index.as_unit("ns").asi8) > 0).all()


def test_dollar_bars_carry_the_value_that_was_asked_for(es):
    b = build_bars(es, "dollar", 70e6 / 50, calendar="CMES")
    full = b[b["value"] >= 70e6 / 50]
    assert len(full) >= len(b) - 2 and (full["value"] - 70e6 / 50).max() < (es["price"] * es["size"]).max()


# --- one step, two drivers ----------------------------------------------------------------------------------------------


def stream(trades, kind, size, calendar, beat=None):
    live, out = Builder(kind, size, calendar=calendar), []
    for t, p, q in zip(trades.index.as_unit("ns").asi8, trades["price"], trades["size"], strict=True):
        out += live.push(t, p, volume=q)
    return out + (
        live.beat(beat if beat is not None else trades.index[-1].as_unit("ns").value) if len(trades) else []
    ), live


OFFSETS = st.lists(st.integers(0, 3 * 86_400), min_size=1, max_size=60)


@given(OFFSETS, st.sampled_from(list(KINDS)), st.sampled_from(["XNYS", "24/7"]))
@settings(max_examples=60)
def test_streaming_equals_batch(seconds, kind, calendar):
    trades = make_trades(seconds)
    batch = build_bars(trades, kind, SIZES[kind], calendar=calendar)
    live, b = stream(trades, kind, SIZES[kind], calendar)
    assert [x[0] for x in live] == batch.index.as_unit("ns").asi8.tolist()
    assert np.array_equal(np.array([x[1:] for x in live]).reshape(-1, 7), batch.to_numpy())
    assert b.record.outside == batch.attrs["outside"]


@given(OFFSETS, st.sampled_from(list(KINDS)), st.sampled_from(["XNYS", "24/7"]), st.integers(1, 60))
@settings(max_examples=60)
def test_a_prefix_of_trades_gives_a_prefix_of_bars(seconds, kind, calendar, n):
    trades = make_trades(seconds)
    full, part = (build_bars(t, kind, SIZES[kind], calendar=calendar) for t in (trades, trades.iloc[:n]))
    assert part.equals(full.iloc[: len(part)])
    if len(part) < len(full):  # what is missing was not finished at the last trade of the prefix
        assert full.index[len(part)] >= trades.index[min(n, len(trades)) - 1]


@given(OFFSETS, st.sampled_from(list(KINDS)))
@settings(max_examples=20)
def test_the_compiled_loop_equals_the_plain_one(seconds, kind):
    trades = make_trades(seconds)
    p = trades["price"].to_numpy()
    items = np.column_stack([p, p, p, p, trades["size"].to_numpy()])
    ts = trades.index.as_unit("ns").asi8.copy()
    s = sessions("XNYS", ts[0], ts[-1] + 10 * 86_400 * 10**9)
    keep = slice(s.find(ts[0]), s.find(ts[-1]) + 2)
    opens, closes = s.open[keep].copy(), s.close[keep].copy()
    got = []
    for run in (_run, _run.fn):
        state = new_builder(kind, SIZES[kind])
        out_ts, out = np.zeros(3000, np.int64), np.zeros((3000, 7))
        m = run(state if run is _run else state.view(np.recarray), opens, closes, ts, items, int(ts[-1]), out_ts, out)
        got.append((m, out_ts.tolist(), out.tobytes(), state.tobytes()))
    assert got[0] == got[1]


def test_a_builder_continues_from_its_bytes():
    trades = make_trades(range(0, 4000, 13))
    whole, _ = stream(trades, "volume", 300, "XNYS")
    first, live = stream(trades.iloc[:150], "volume", 300, "XNYS")
    other = Builder("volume", 300, calendar="XNYS")
    other.beat(trades.index[0].as_unit("ns").value - 1)
    other.state[:] = np.frombuffer(live.state.tobytes(), BUILDER)
    rest = []
    for t, p, q in zip(
        trades.index.as_unit("ns").asi8[150:], trades["price"].iloc[150:], trades["size"].iloc[150:], strict=True
    ):
        rest += other.push(t, p, volume=q)
    rest += other.beat(trades.index[-1].as_unit("ns").value)
    assert first + rest == whole or first[:-1] + rest == whole


def test_a_live_builder_runs_on_for_months_and_loses_nothing():
    minutes, _ = simulate(sessions=70, seed=1, freq="30min")
    live, out = Builder("time", "session", calendar="XNYS", right=True), []
    for t, o, h, lo, c, v in zip(
        minutes.index.as_unit("ns").asi8, *(minutes[k] for k in ("open", "high", "low", "close", "volume")), strict=True
    ):
        out += live.push(t, o, h, lo, c, v)
    daily = resample(minutes, "session")
    assert len(out) == 70 and [x[0] for x in out] == daily.index.as_unit("ns").asi8.tolist()
    assert np.array_equal(np.array([x[1:6] for x in out]), daily.to_numpy())


# --- edges ---------------------------------------------------------------------------------------------------------------


def test_edges_of_bars_and_sessions():
    live = Builder("time", "1min", calendar="XNYS")
    assert live.push(ns("2024-01-02 14:29:59"), 10.0, volume=1) == [] and live.record.outside == 1  # before the opening
    live.push(ns("2024-01-02 14:30:00"), 10.0, volume=1)
    assert live.push(ns("2024-01-02 14:31:00"), 11.0, volume=1)[0][4] == 10.0  # 14:31:00 belongs to the next minute
    live.beat(ns("2024-01-02 20:59:59"))
    live.push(ns("2024-01-02 21:00:00"), 12.0, volume=1)  # the closing print belongs to the last minute
    last = live.beat(ns("2024-01-02 21:00:00"))
    assert last[-1][0] == ns("2024-01-02 21:00") and last[-1][4:6] == (12.0, 1.0)
    assert live.push(ns("2024-01-02 21:00:01"), 13.0, volume=1) == [] and live.record.outside == 2
    first = live.push(ns("2024-01-03 14:31:30"), 14.0, volume=1)
    assert [(x[0], x[4], x[7]) for x in first] == [(ns("2024-01-03 14:31"), 12.0, 0)]  # a quiet first minute


def test_a_half_day_ends_early_and_nothing_is_built_overnight():
    trades = make_trades([0, 60 * 60], start="2012-11-23 16:30")
    b = build_bars(trades, "time", "30min", calendar="XNYS", until="close")
    assert [str(t)[11:16] for t in b.index] == ["17:00", "17:30", "18:00"]


def test_grid_begins_at_the_opening_under_summer_and_winter_time():
    for day, first in (("2024-03-08", "15:30"), ("2024-03-11", "14:30")):
        trades = make_trades([0, 23_000], start=f"{day} {'14' if first == '15:30' else '13'}:30")
        b = build_bars(trades, "time", "1h", calendar="XNYS", until="close")
        assert str(b.index[0])[11:16] == first and len(b) == 7


def test_before_the_first_trade_there_is_no_bar():
    live = Builder("time", "1min", calendar="24/7")
    assert live.beat(ns("2024-01-02 10:00")) == [] and live.beat(ns("2024-01-02 11:00")) == []
    live.push(ns("2024-01-02 11:00:30"), 5.0, volume=1)
    assert [x[0] for x in live.beat(ns("2024-01-02 11:01"))] == [ns("2024-01-02 11:01")]


def test_midnight_trades_of_a_market_without_pause_open_the_new_day():
    b = build_bars(make_trades([0, 86_399, 86_400], start="2024-01-02"), "time", "session", calendar="24/7")
    assert b["trades"].tolist() == [2] and b.index[0] == pd.Timestamp("2024-01-03", tz="UTC")


def test_late_items_are_refused():
    live = Builder("tick", 5)
    live.push(ns("2024-01-02 10:00"), 5.0)
    with pytest.raises(DataError, match="comes after"):
        live.push(ns("2024-01-02 09:59"), 5.0)
    t = make_trades([5, 10])
    with pytest.raises(DataError, match="row 1") as e:
        build_bars(t.iloc[::-1], "tick", 5)
    assert e.value.row == 1


def test_many_trades_at_one_stamp_give_increasing_bars():
    b = build_bars(make_trades([0] * 30), "tick", 4, calendar="24/7")
    assert len(b) == 7 and (np.diff(b.index.as_unit("ns").asi8) == 1).all()


@pytest.mark.parametrize(
    ("kind", "size", "words"),
    [
        ("times", "1min", "did you mean time"),
        ("time", "soon", "not a bar length"),
        ("tick", 0, "above 0"),
        ("volume", "many", "above 0"),
    ],
)
def test_bad_settings(kind, size, words):
    with pytest.raises(DataError, match=words):
        new_builder(kind, size)


def test_bad_trades_are_named():
    t = make_trades([0, 1, 2])
    t.iloc[1, 0] = 0
    with pytest.raises(DataError, match="row 1 .*price 0"):
        build_bars(t, "tick", 2)
    with pytest.raises(DataError, match="'price' is missing"):
        build_bars(t.rename(columns={"price": "p"}), "tick", 2)
    with pytest.raises(DataError, match="naive"):
        build_bars(make_trades([0]).tz_localize(None), "tick", 2)
    assert build_bars(t.iloc[:0], "tick", 2).empty


def test_the_step_returns_codes_and_never_two_things_at_once():
    state = new_builder("time", "1min")
    b = state.view(np.recarray)[0]
    s = sessions("24/7", ns("2024-01-02 10:00"), ns("2024-01-02 12:00"))
    k = s.find(ns("2024-01-02 10:00"))
    opens, closes = s.open[k : k + 2].copy(), s.close[k : k + 2].copy()
    assert build_step(b, opens, closes, ns("2024-01-02 10:00:10"), 1.0, 1.0, 1.0, 1.0, 1.0) == TAKEN
    codes = []
    while (code := build_step(b, opens, closes, ns("2024-01-02 10:03:10"), 2.0, 2.0, 2.0, 2.0, 1.0)) == AGAIN:
        codes.append(int(b.bar_n))
    assert (code, codes) == (TAKEN, [1, 0, 0])


# --- longer bars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freq", ["5min", "1h", "session"])
def test_trades_to_long_bars_equals_trades_to_minutes_to_long_bars(freq):
    minutes, _ = simulate(sessions=3, seed=9)
    trades = simulate_trades(minutes, seed=9, per_bar=5)
    direct = build_bars(trades, "time", freq, calendar="XNYS", until="close")
    via = resample(build_bars(trades, "time", "1min", calendar="XNYS", until="close"), freq)
    both = direct[["open", "high", "low", "close", "volume"]].loc[via.index]
    pd.testing.assert_frame_equal(via.iloc[1:], both.iloc[1:], check_freq=False)


@given(st.integers(1, 780), st.sampled_from(["7min", "1h", "session"]))
@settings(max_examples=25)
def test_higher_time_frame_of_a_prefix_is_a_prefix(n, freq):
    minutes = _two_sessions()
    assert join_higher(minutes.iloc[:n], freq).equals(_joined(freq).iloc[:n])


def test_a_poisoned_future_does_not_reach_the_higher_time_frame():
    minutes = _two_sessions().copy()
    minutes.iloc[400:] *= 1e6
    assert join_higher(minutes, "1h").iloc[:400].equals(_joined("1h").iloc[:400])


_CACHE: dict = {}


def _two_sessions():
    return _CACHE.setdefault("bars", simulate(sessions=2, seed=5)[0])


def _joined(freq):
    if freq not in _CACHE:
        _CACHE[freq] = join_higher(_two_sessions(), freq)
    return _CACHE[freq]


def test_as_of_uses_rows_known_at_or_before_and_tells_their_age():
    index = pd.date_range("2024-01-02 10:00", periods=4, freq="min", tz="UTC")
    other = pd.DataFrame({"x": [1.0, 2.0]}, index=index[[1, 3]])
    got = as_of(index, other)
    assert got["x"].isna().tolist() == [True, False, False, False] and got["x"].iloc[1:].tolist() == [1, 1, 2]
    assert got["age"].iloc[1:].tolist() == [0, 60, 0]
    assert as_of(index, other.iloc[:0])["x"].isna().all()


def test_resampling_many_symbols_keeps_each_ones_rows():
    a, b = simulate(sessions=2, seed=1)[0], simulate(sessions=2, seed=2)[0]
    b.iloc[:390] = np.nan
    two = pd.concat({"A": a, "B": b}, axis=1)
    r = resample(two, "session", calendar="XNYS")
    assert (
        len(r) == 2
        and r["B"]["close"].isna().tolist() == [True, False]
        and r["A"]["volume"].iloc[0] == a["volume"].iloc[:390].sum()
    )
    with pytest.raises(DataError, match="on which calendar"):
        resample(two, "session")


def test_a_bar_stamped_at_the_opening_covers_the_minute_before_it():
    live = Builder("time", "5min", calendar="XNYS", right=True)
    assert live.push(ns("2024-01-02 14:30"), 9.0, volume=1) == [] and live.record.outside == 1
    out = []
    for k in range(1, 6):
        out += live.push(ns("2024-01-02 14:30") + k * MINUTE, 10.0 + k, volume=1)
    assert [(x[0], x[1], x[4], x[7]) for x in out] == [
        (ns("2024-01-02 14:35"), 11.0, 15.0, 5)
    ]  # at once, without a beat
