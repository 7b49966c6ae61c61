"""Features of half-hour bars: sessions, hours and days whose end is known at their start; see features.py for the table."""

import numpy as np
import pandas as pd

CASES = dict(
    high_of_the_day=dict(column="room", inputs=("high", "stamps"), bar=0),
    day_joined_by_its_label=dict(column="day", inputs=("close", "stamps"), bar=0),
    hours_labelled_left=dict(column="value", inputs=("volume", "stamps"), bar=0),
    only_at_session_ends=dict(column="overnight", inputs=("open",), ahead=(1, 1), bar=12),
    last_bar_of_the_day=dict(column="last", inputs=("stamps",), bar=0),
)
for _case in CASES.values():
    _case["on"] = "half_hours"


def _day(bars):
    return bars.index.tz_convert("America/New_York").normalize()


def high_of_the_day(bars):
    return (bars.high.groupby(_day(bars)).transform("max") / bars.close).rename("room")


def high_of_the_day_clean(bars):
    return (bars.high.groupby(_day(bars)).cummax() / bars.close).rename("room")


def day_joined_by_its_label(bars):
    "Daily closes stand at midnight before the day, and are carried forward into it."
    days = bars.close.resample("1D").last().dropna()
    return days.reindex(bars.index, method="ffill").rename("day")


def day_joined_by_its_label_clean(bars):
    days = bars.close.resample("1D").last().dropna().shift(1)
    return days.reindex(bars.index, method="ffill").rename("day")


def hours_labelled_left(bars):
    "Sums of two hours, known when the first of them begins."
    hours = bars.volume.resample("2h", label="left", closed="right").sum()
    return hours.reindex(bars.index, method="ffill").rename("value")


def hours_labelled_left_clean(bars):
    hours = bars.volume.resample("2h", label="right", closed="right").sum()
    hours.iloc[-1:] = np.where(hours.index[-1:] <= bars.index[-1], hours.iloc[-1:], np.nan)
    return hours.reindex(bars.index).ffill().rename("value")


def _at_the_close(bars):
    return bars.index.tz_convert("America/New_York").strftime("%H:%M") == "16:00"


def only_at_session_ends(bars):
    "The gap to the next morning, on the last bar of each session; nothing on the others."
    return (bars.open.shift(-1) / bars.close - 1).where(_at_the_close(bars), 0.0).rename("overnight")


def only_at_session_ends_clean(bars):
    return (bars.open / bars.close.shift(1) - 1).where(_at_the_close(bars), 0.0).rename("overnight")


def last_bar_of_the_day(bars):
    day = pd.Series(_day(bars), bars.index)
    return (day != day.shift(-1)).rename("last")


def last_bar_of_the_day_clean(bars):
    return pd.Series(_at_the_close(bars), bars.index, name="last")
