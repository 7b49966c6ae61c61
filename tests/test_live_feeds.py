"Grid, collector, freshness, recorded bars and the words that open a feed: everything that needs no socket."

from __future__ import annotations

import asyncio
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from markets import KINDS, market
from tradebench.data.bars import prepare
from tradebench.data.calendars import MINUTE, bars_per_year, sessions
from tradebench.data.simulator import simulate
from tradebench.data.sources import load
from tradebench.errors import TradebenchError
from tradebench.live.collect import Bar, Collector, fault
from tradebench.live.feeds import Grid, open_feed, periods_per_year
from tradebench.live.freshness import Freshness, Windows, bar_length, freshness
from tradebench.live.recorded import RecordedFeed
from tradebench.live.types import Feed, FeedError

SECOND = 1_000_000_000


def ns(text) -> int:
    return pd.Timestamp(text, tz="UTC").as_unit("ns").value


@pytest.mark.parametrize(
    "freq, calendar",
    [("1min", "XNYS"), ("45min", "XNYS"), ("1h", "24/5"), ("4h", "24/7"), ("session", "XNYS"), ("1min", "24/7")],
)
def test_the_grid_has_the_stamps_of_the_simulated_market(freq, calendar):
    n = 40 if freq == "session" else 8
    frame = simulate(sessions=n, freq=freq, calendar=calendar, start="2015-11-18")[0]
    stamps = frame.index.as_unit("ns").asi8
    grid = Grid(freq, calendar)
    assert grid.between(int(stamps[0]) - 1, int(stamps[-1])) == stamps.tolist()
    rng = np.random.default_rng(0)
    for t in rng.integers(stamps[0], stamps[-1], 300).tolist() + stamps[1:-1].tolist():
        i = int(np.searchsorted(stamps, t, side="right"))
        assert grid.after(t) == stamps[i] and grid.upto(t) == stamps[i - 1]
        assert grid.on(t) == (t in stamps)
    if freq != "session":
        assert periods_per_year(freq, calendar) == bars_per_year(stamps, calendar)


def test_a_length_of_more_than_a_day_is_refused():
    for freq in ("2D", "fortnight"):
        with pytest.raises(TradebenchError):
            Grid(freq, "24/7")


GOOD = st.sampled_from(
    [(10.0, 11.0, 9.0, 10.5, 3.0), (10.0, 10.0, 10.0, 10.0, 0.0), (10.0, 12.0, 9.5, 11.0, float("nan"))]
)
BAD = st.sampled_from([(10, 9, 8, 9, 1), (np.nan, 11, 9, 10, 1), (10, 11, 9, 12, 1), (10, np.inf, 9, 10, 1), (0, 11, 0, 10, 1), (10, 11, 9, 10, -1)])  # fmt: skip
WHAT = st.sampled_from(["bar"] * 6 + ["twice", "bad", "off grid", "asked", "other", "later"])


@given(st.data())
@settings(max_examples=200)
def test_whatever_arrives_each_bar_leaves_once_in_order_and_none_is_lost(data):
    N, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8))
    start, wait, said = 28_000_000 * MINUTE, 20 * SECOND, []
    col = Collector(
        [f"S{j}" for j in range(N)],
        Grid("1min", "24/7"),
        after=start,
        wait=wait,
        report=lambda kind, text, **more: said.append(kind),
    )
    true = {(j, k): data.draw(GOOD) for j in range(N) for k in range(1, T + 1)}
    absent = data.draw(st.sets(st.sampled_from(list(true)), max_size=3))
    arrive = data.draw(st.permutations([x for x in true if x not in absent]))
    out, now = [], start

    def take():
        for b in col.take(now):
            out.append((now, b))

    for j, k in arrive:
        now = max(now, start + k * MINUTE) + data.draw(st.sampled_from([0, 0, SECOND, wait + 1]))
        bar = Bar(start + k * MINUTE, *true[j, k])
        what = data.draw(WHAT)
        if what == "bad":
            col.put(j, Bar(bar.ts, *data.draw(BAD)))
        if what == "off grid":
            col.put(j, bar._replace(ts=bar.ts + 7))
        col.put(j, bar)
        if what == "twice":
            col.put(j, bar)
        if what == "other":
            col.put(j, bar._replace(close=bar.open, volume=99.0))
        if what == "later":
            take()
            now += MINUTE
        take()
    for j in range(N):
        col.asked(j, start + T * MINUTE)
    now += wait + MINUTE
    take()
    whole = [b for _, b in out if not b.late]
    assert all(a.ts < b.ts for a, b in zip(whole, whole[1:], strict=False))
    seen = {}
    for when, b in out:
        assert b.ts <= when
        for j in np.flatnonzero(b.flags & 1).tolist():
            key = j, (b.ts - start) // MINUTE
            assert key not in seen
            seen[key] = tuple(b.raw[j].tolist())
        lacking = [j for j in range(N) if not b.flags[j] & 1]
        if lacking and not b.late and when < b.ts + wait:  # before its deadline only when its source said so
            assert when == now
    assert seen.keys() == {x for x in true if x not in absent}
    for key, values in seen.items():
        assert np.array_equal(values, true[key], equal_nan=True)


def test_quality_has_the_rules_of_prepare():
    rng = np.random.default_rng(1)
    choices = [np.nan, np.inf, -np.inf, 0.0, -1.0, 9.0, 10.0, 11.0]
    good = 0
    for _ in range(1200):
        values = [float(x) for x in rng.choice(choices, 5, p=[0.03, 0.03, 0.03, 0.03, 0.03, 0.25, 0.35, 0.25])]
        if values[4] == np.inf:
            assert fault(Bar(0, *values))
            continue
        frame = pd.DataFrame(
            [values],
            columns=["open", "high", "low", "close", "volume"],
            index=pd.DatetimeIndex(["2020-01-01"], tz="UTC"),
        )
        try:
            prepare(frame)
            fine = True
        except TradebenchError:
            fine = False
        assert (fault(Bar(0, *values)) == "") == fine, values
        good += fine
    assert good > 40


@pytest.mark.parametrize("freq, calendar", [("1min", "XNYS"), ("1h", "24/5"), ("session", "XNYS"), ("5min", "24/7")])
def test_data_that_are_complete_are_never_stale_at_any_moment_of_a_year(freq, calendar):
    fresh, grid = Freshness(["A"], freq, calendar, lag=10), Grid(freq, calendar)
    rng = np.random.default_rng(4)
    plan = sessions(calendar, ns("2015-01-01"), ns("2015-12-31"))
    seen = set()
    for now in rng.integers(ns("2015-01-05"), ns("2015-12-20"), 1500).tolist():
        judged = fresh.judge(now, grid.upto(now))
        i = int(np.searchsorted(plan.close, now, side="right"))
        inside = plan.open[i] <= now
        assert judged.state == ("fresh" if inside else "closed")
        seen.add(judged.state)
        missing = fresh.judge(now, grid.upto(grid.upto(now) - 1))  # the last due bar never came
        assert missing.state == ("late" if now <= grid.upto(now) + 10 * SECOND else "stale")
    assert seen == ({"fresh"} if calendar == "24/7" else {"fresh", "closed"})


def test_holidays_half_days_and_nights_in_new_york():
    fresh = Freshness(["A"], "1min", "XNYS")
    cases = {
        ("2015-11-25 21:00", "2015-11-26 18:00"): "closed",  # Thanksgiving
        ("2015-11-27 18:00", "2015-11-27 19:00"): "closed",  # the half-day after it
        ("2015-11-27 17:00", "2015-11-27 19:00"): "stale",  # but its last hour never came
        ("2015-12-24 18:00", "2015-12-28 14:30:30"): "fresh",
        ("2015-12-24 18:00", "2015-12-28 14:31:10"): "late",
        ("2015-12-24 18:00", "2015-12-28 14:31:16"): "stale",
        (
            "2015-03-06 21:00",
            "2015-03-09 13:30:59",
        ): "fresh",  # summer time began: the market opens an hour earlier in UTC
        ("2015-03-06 21:00", "2015-03-09 13:32:00"): "stale",
    }
    assert {x: fresh.judge(ns(x[1]), ns(x[0])).state for x in cases} == cases


def test_the_verdict_on_a_feed_uses_what_the_feed_states():
    feed = RecordedFeed(market("new_york"))
    last = ns("2015-11-18 15:00")
    assert freshness(feed, last, last + 10 * MINUTE + 16 * SECOND).stale and bar_length(feed) == 10 * MINUTE
    patient = RecordedFeed(market("new_york"))
    patient.stale_after, patient.windows = 60.0, Windows("daily 15:25-15:35")
    assert [freshness(patient, last, last + x).state for x in (10 * MINUTE + 16 * SECOND, 12 * MINUTE)] == [
        "late",
        "stale",
    ]
    assert freshness(patient, ns("2015-11-18 15:20"), ns("2015-11-18 15:32")).state == "excused"
    assert "no bar of 2015-11-18T15:10:00" in freshness(feed, last, last + 60 * MINUTE).text


def test_windows_with_zones_follow_summer_time_and_excuse_nothing_else():
    w = Windows("daily 17:00-18:00 America/New_York", "sun 23:50-00:10", "2024-03-02T01:00/2024-03-02T03:00")
    assert [w.covers(ns(t)) for t in ("2024-03-08 22:30", "2024-03-11 22:30", "2024-03-11 21:30")] == [
        True,
        False,
        True,
    ]
    assert [
        w.covers(ns(t)) for t in ("2024-03-10 23:49", "2024-03-10 23:51", "2024-03-11 00:10", "2024-03-11 00:11")
    ] == [False, True, True, False]
    assert [w.covers(ns(t)) for t in ("2024-03-02 01:00", "2024-03-02 03:00", "2024-03-02 03:01")] == [
        False,
        True,
        False,
    ]
    for text in (
        "",
        "sun",
        "sun 1-2",
        "sun 25:00-26:00",
        "2024-03-02T03:00/2024-03-02T01:00",
        "noday 01:00-02:00",
        "sun 01:00-02:00 Mars/Base",
    ):
        with pytest.raises(FeedError, match="window"):
            Windows(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_feed_gives_the_bars_as_they_are(kind):
    bars = market(kind)
    feed = RecordedFeed(bars)
    middle = int(bars.ts[len(bars) // 2])

    async def main():
        past = await feed.history(0, middle)
        return past + [b async for b in feed.stream(middle)]

    got = asyncio.run(main())
    assert isinstance(feed, Feed) and not feed.live
    assert [b.ts for b in got] == bars.ts.tolist()
    assert np.stack([b.raw for b in got]).tobytes() == bars.raw.tobytes()
    assert np.stack([b.flags for b in got]).tobytes() == bars.flags.tobytes()
    events = [(t, *e) for t, b in enumerate(got) for e in b.events]
    assert events == [tuple(e) for e in bars.events.tolist()]
    assert feed.periods_per_year == bars.periods_per_year and feed.calendar == bars.calendar
    assert feed.instruments == bars.instruments and feed.symbols == bars.symbols


def test_further_columns_come_with_each_batch():
    frame = load("AAPL", start="2012-01-01")
    frame["mood"] = np.where(np.arange(len(frame)) % 2, 0.5, np.nan)
    feed = RecordedFeed(prepare(frame))
    assert (
        feed.extras == ("mood",)
        and feed.batch(1).extras["mood"].tolist() == [0.5]
        and np.isnan(feed.batch(2).extras["mood"][0])
    )


def test_symbols_without_volume_are_known_from_the_recorded_bars():
    frame = load("stocks5", start="2012-01-01", symbols=["AAPL", "IBM"])
    frame[("IBM", "volume")] = 0.0
    bars = prepare(frame)
    feed = RecordedFeed(bars)
    assert feed.has_volume.tolist() == [True, False] and (bars.flags[:, 1] & 2).all()


def test_replay_keeps_its_speed_and_skips_the_night():
    feed = open_feed("sim:minutes,seed=7,sessions=2,speed=1500")
    ends = feed.bars.session_ends()

    async def main():
        out, begin = [], time.perf_counter()
        async for b in feed.stream(int(feed.bars.ts[ends[0] - 10])):
            out.append(b.ts)
            if len(out) == 20:
                return out, time.perf_counter() - begin

    stamps, took = asyncio.run(main())
    assert stamps == feed.bars.ts[ends[0] - 9 : ends[0] + 11].tolist()
    assert 0.6 < took < 5  # 20 bars of 40 ms, also the one after the night


def test_words_that_open_recorded_feeds(tmp_path):
    assert open_feed("replay:AAPL").symbols == ("AAPL",) and open_feed("replay:AAPL").speed == 0
    assert open_feed("replay:AAPL+IBM,speed=10").symbols == ("AAPL", "IBM")
    assert open_feed("replay:stocks5,symbols=IBM+AAPL,start=2012-01-01,end=2012-06-30").symbols == ("IBM", "AAPL")
    short = open_feed("replay:AAPL,start=2012-01-01", end="2012-02-01", speed=3)
    assert len(short.bars) == 21 and short.speed == 3
    sim = open_feed("sim:minutes,seed=9,sessions=2,speed=60")
    assert sim.speed == 60 and sim.freq == "1min" and len(sim.bars) == 780
    assert open_feed("replay:sim:daily,seed=9,sessions=30").freq == "session"
    file = tmp_path / "own.csv"
    load("AAPL", start="2012-01-01").to_csv(file)
    own = open_feed(f"replay:{file},stamp=end,symbols=MINE,calendar=XNYS")
    assert (
        own.symbols == ("MINE",)
        and own.calendar == "XNYS"
        and (own.bars.raw == open_feed("replay:AAPL,start=2012-01-01").bars.raw).all()
    )


@pytest.mark.parametrize(
    "words, said",
    [
        ("replay:APPL", "did you mean AAPL"),
        ("replay:AAPL,speed=-1", "speed"),
        ("replay:AAPL,start=2030-01-01", "2030"),
        ("sim:hours", "sim:minutes"),
        ("reply:AAPL", "replay:NAME"),
        ("AAPL", "unknown feed"),
        ("", "unknown feed"),
        ("ccxt:binance", "ccxt:EXCHANGE:SYMBOL"),
        ("ccxt:binance:BTC/USDT,3w", "time frame"),
        ("ws://localhost/x", "symbols=A+B"),
        ("replay:AAPL | replay:IBM", "differ in symbols"),
        ("tradebench.live.types:Batch", "missing"),
    ],
)
def test_words_that_open_nothing_are_one_line(words, said):
    with pytest.raises(TradebenchError) as e:
        open_feed(words)
    assert said in str(e.value) and "\n" not in str(e.value), e.value
