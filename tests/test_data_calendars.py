"""Sessions, the clock of a bar, half days and daylight saving, against exchange_calendars and by hand."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradebench.data.calendars import (
    DAY,
    MINUTE,
    bars_per_year,
    clock,
    guess_calendar,
    make_table,
    session_closes,
    session_starts,
    sessions,
)
from tradebench.errors import DataError


def ns(text):
    return pd.Timestamp(text, tz="UTC").as_unit("ns").value


def test_the_shipped_sessions_are_those_of_exchange_calendars():
    import exchange_calendars as ec

    cal = ec.get_calendar("XNYS", start="1985-01-01", end="2030-12-31")
    s = sessions("XNYS", ns("1990-01-02"), ns("2029-01-02"))
    assert (s.day == cal.sessions.values.astype("datetime64[D]")).all()
    for k in ("open", "close"):
        assert (getattr(s, k) == cal.schedule[k].dt.as_unit("ns").astype("int64").to_numpy()).all()
    assert (s.start == cal.sessions.as_unit("ns").tz_localize("America/New_York").asi8).all()


def test_the_table_covers_half_days_and_historic_closures():
    closes = dict(
        zip(
            *(lambda s: (s.day.astype(str), s.close))(sessions("XNYS", ns("2001-01-02"), ns("2013-01-02"))), strict=True
        )
    )
    assert closes["2012-12-24"] == ns("2012-12-24 18:00") and closes["2003-07-03"] == ns("2003-07-03 17:00")
    assert "2001-09-12" not in closes and "2012-10-29" not in closes and "2004-06-11" not in closes


def test_new_york_needs_no_calendar_package():
    code = (
        "import sys, numpy as np; from tradebench.data.calendars import clock;"
        "clock(np.array([10**18]), 'XNYS'); clock(np.array([10**18]), '24/5');"
        "sys.exit('exchange_calendars' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("stamp", "session", "left"),
    [
        ("2013-03-08 21:00", "2013-03-08", 0),  # winter: 16:00 is 21:00 UTC
        ("2013-03-11 20:00", "2013-03-11", 0),  # summer
        ("2013-03-11 13:31", "2013-03-11", 389 * 60),
        ("2012-11-23 17:59", "2012-11-23", 60),  # half day
        ("2012-11-23 20:00", "2012-11-23", 0),  # after its close
        ("2012-11-24 12:00", "2012-11-23", 0),  # Saturday
        ("2012-11-26 13:00", "2012-11-26", 8 * 3600),  # before the opening
    ],
)
def test_clock_of_new_york_stamps(stamp, session, left):
    s = sessions("XNYS", ns(stamp), ns(stamp))
    assert str(s.day[s.find(ns(stamp))]) == session
    assert clock(np.array([ns(stamp)]), "XNYS")[0].tolist() == [0, 0, left]


def test_a_future_that_opens_the_evening_before_belongs_to_the_next_session():
    s = sessions("CMES", ns("2013-09-08 12:00"), ns("2013-09-10"))
    assert str(s.day[s.find(ns("2013-09-08 23:00"))]) == "2013-09-09"  # Sunday evening


def test_midnight_belongs_to_the_day_that_ends():
    c = clock(np.array([ns("2024-01-02"), ns("2024-01-02 00:01")]), "24/7")
    assert c.tolist() == [[0, 0, 0], [1, 0, 86400 - 60]]


def test_currency_day_ends_at_five_in_new_york_in_both_halves_of_the_year():
    assert clock(np.array([ns("2024-01-05 22:00")]), "24/5")[0, 2] == 0
    assert clock(np.array([ns("2024-07-05 21:00")]), "24/5")[0, 2] == 0


def test_a_session_date_becomes_its_close_and_a_holiday_is_an_error():
    assert session_closes(["2012-11-23"], "XNYS")[0] == ns("2012-11-23 18:00")
    with pytest.raises(DataError, match="2012-11-22 is not a session of XNYS") as e:
        session_closes(["2012-11-21", "2012-11-22"], "XNYS")
    assert e.value.row == 1


def test_an_ex_date_on_a_holiday_counts_from_the_next_session():
    assert session_starts(["2012-11-22"], "XNYS")[0] == ns("2012-11-23 05:00")


def test_unknown_calendar_suggests_near_names():
    with pytest.raises(DataError, match="did you mean"):
        sessions("XNYE", ns("2020-01-01"), ns("2020-02-01"))


def test_outside_the_table_the_package_answers():
    s = sessions("XNYS", ns("1975-03-03"), ns("1975-03-05"))
    assert np.datetime64("1975-03-04") in s.day


def test_make_table_is_deterministic():
    a, b = make_table("XNYS", "2010", "2012"), make_table("XNYS", "2010", "2012")
    assert all((a[k] == b[k]).all() for k in a)


@given(
    st.lists(st.integers(0, 20 * 365 * 1440), min_size=1, max_size=200, unique=True),
    st.sampled_from(["XNYS", "24/7", "24/5"]),
)
def test_clock_agrees_with_a_plain_loop_and_with_its_prefixes(minutes, calendar):
    ts = np.array(sorted(minutes), np.int64) * MINUTE + ns("2000-01-03")
    c = clock(ts, calendar)
    s = sessions(calendar, ts[0], ts[-1])
    first, seen = None, {}
    for t, row in zip(ts, c, strict=True):
        k = max(i for i in range(len(s)) if s.start[i] < t) if len(s) < 500 else int(np.flatnonzero(s.start < t)[-1])
        first = k if first is None else first
        seen[k] = seen.get(k, -1) + 1
        assert row.tolist() == [k - first, seen[k], max(-(-(s.close[k] - t) // 10**9), 0)]
    half = len(ts) // 2 + 1
    assert (clock(ts[:half], calendar) == c[:half]).all()


@pytest.mark.parametrize(
    ("freq", "days", "calendar", "expected"),
    [("D", 400, "24/7", 365), ("W", 60, "24/7", 365 / 7), ("6h", 400, "24/7", 4 * 365)],
)
def test_periods_per_year(freq, days, calendar, expected):
    ts = pd.date_range("2020-01-01", periods=days, freq=freq, tz="UTC").as_unit("ns").asi8
    assert bars_per_year(ts, calendar) == pytest.approx(expected)


def test_weekdays_alone_suggest_a_five_day_market():
    days = pd.date_range("2024-01-01", periods=60, tz="UTC").as_unit("ns")
    assert guess_calendar(days.asi8) == "24/7" and guess_calendar(days[days.day_of_week < 5].asi8) == "24/5"
    assert guess_calendar(days[:3].asi8) == "24/7" and guess_calendar(np.empty(0, np.int64)) == "24/7"
    assert DAY == 24 * 60 * MINUTE


def test_seconds_left_are_rounded_up_so_that_zero_means_closed():
    stamps = np.array([ns("2024-01-02 20:59:59.500"), ns("2024-01-02 21:00:00")])
    assert clock(stamps, "XNYS")[:, 2].tolist() == [1, 0]
