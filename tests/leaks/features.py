"""Features of daily bars that know the future, each with a clean twin of the same name and `_clean`.

CASES says what the hunt must find: the leaking column, the inputs that leak, how far ahead it looks ((nearest, farthest) bar, or "end" for
up to the last bar), the first leaking row where it is worth saying.
"""

import numpy as np
import pandas as pd

CASES = dict(
    next_close=dict(column="ret", inputs=("close",), ahead=(1, 1), bar=0),
    next_bar_is_up=dict(column="up", inputs=("close",), ahead=(1, 1), bar=0),
    busier_tomorrow=dict(column="busier", inputs=("volume",), ahead=(1, 1), bar=0),
    centred_window=dict(column="value", inputs=("close",), ahead=(1, 5), bar=5),
    back_filled=dict(column="calm", inputs=("close", "volume")),
    interpolated=dict(column="value", inputs=("low",), ahead=(4, 4), bar=1, cuts="every"),
    z_score_of_all=dict(column="z", inputs=("close",), ahead="end", bar=0),
    min_max_of_all=dict(column="scaled", inputs=("high",), ahead="end", bar=0),
    rank_among_all=dict(column="close", inputs=("close",), ahead="end", bar=0),
    bins_of_all=dict(column="bin", inputs=("close",), bar=0),
    sorted_by_price=dict(column="step", inputs=("close", "volume")),
    trend_line=dict(column="output 0", inputs=("close",), ahead="end", bar=0),
    rolled_round=dict(column="output 0", inputs=("open",), ahead=(1, 1), bar=0),
    highest_to_come=dict(column="room", inputs=("high",), ahead="end", bar=0),
    filled_with_the_mean=dict(column="close", inputs=("close",), ahead="end", bar=0),
    clipped_at_quantiles=dict(column="ret", inputs=("close",)),
    month_end_filled_forward=dict(column="month", inputs=("close", "stamps"), bar=0),
    single_bar=dict(column="ret", inputs=("low",), ahead=(1, 1), bar=217, cuts="every"),
    one_of_many=dict(column="c7", inputs=("open",), ahead=(2, 2), bar=0),
    news_of_tomorrow=dict(column="mood", inputs=("news",), ahead=(1, 1), bar=0, on="news"),
    word_of_tomorrow=dict(column="word", inputs=("rating",), ahead=(1, 1), bar=0, on="news"),
    bars_left=dict(column="output 0", inputs=("number of rows",), bar=0),
    days_to_the_next_bar=dict(column="wait", inputs=("stamps",), bar=0),
    back_adjusted=dict(column="price", inputs=("actions",), bar=0, on="split"),
    dropped_and_counted=dict(column="value", inputs=("close",), ahead=(1, 1), bar=0),
)


def next_close(bars):
    "A return with the sign of the shift wrong."
    return pd.DataFrame(dict(ret=bars.close.shift(-1) / bars.close - 1, range=bars.high / bars.low))


def next_close_clean(bars):
    return pd.DataFrame(dict(ret=bars.close / bars.close.shift(1) - 1, range=bars.high / bars.low))


def next_bar_is_up(bars):
    "A label among the features."
    return (bars.close.shift(-1) > bars.close).rename("up")


def next_bar_is_up_clean(bars):
    return (bars.close > bars.close.shift(1)).rename("up")


def busier_tomorrow(bars):
    "Prices are honest; the volume is not."
    return pd.DataFrame(dict(ret=bars.close.pct_change(), busier=bars.volume.diff(-1) < 0))


def busier_tomorrow_clean(bars):
    return pd.DataFrame(dict(ret=bars.close.pct_change(), busier=bars.volume.diff() > 0))


def centred_window(bars):
    return bars.close.rolling(11, center=True).mean().rename("value")


def centred_window_clean(bars):
    return bars.close.rolling(11).mean().rename("value")


def back_filled(bars):
    "The price of the next busy day."
    return bars.close.where(bars.volume > bars.volume.rolling(5, min_periods=1).mean()).bfill().rename("calm")


def back_filled_clean(bars):
    return bars.close.where(bars.volume > bars.volume.rolling(5, min_periods=1).mean()).ffill().rename("calm")


def interpolated(bars):
    "Every fifth low, joined by straight lines."
    return bars.low.where(np.arange(len(bars)) % 5 == 0).interpolate().rename("value")


def interpolated_clean(bars):
    return bars.low.where(np.arange(len(bars)) % 5 == 0).ffill().rename("value")


def z_score_of_all(bars):
    return ((bars.close - bars.close.mean()) / bars.close.std()).rename("z")


def z_score_of_all_clean(bars):
    past = bars.close.expanding(20)
    return ((bars.close - past.mean()) / past.std()).rename("z")


def min_max_of_all(bars):
    return ((bars.high - bars.high.min()) / (bars.high.max() - bars.high.min())).rename("scaled")


def min_max_of_all_clean(bars):
    low, high = bars.high.cummin(), bars.high.cummax()
    return ((bars.high - low) / (high - low)).rename("scaled")


def rank_among_all(bars):
    return bars.close.rank(pct=True)


def rank_among_all_clean(bars):
    return bars.close.expanding().rank(pct=True)


def bins_of_all(bars):
    "Fifths of all closes, in words."
    return pd.qcut(bars.close, 5, labels=["lowest", "low", "middle", "high", "highest"]).rename("bin")


def bins_of_all_clean(bars):
    share = bars.close.expanding().rank(pct=True)
    return pd.cut(share, [0, 0.2, 0.4, 0.6, 0.8, 1], labels=["lowest", "low", "middle", "high", "highest"]).rename(
        "bin"
    )


def sorted_by_price(bars):
    "Differences between rows that are neighbours in price, not in time."
    return bars.sort_values("close").volume.diff().sort_index().rename("step")


def sorted_by_price_clean(bars):
    "Sorted too, but within the window of each bar."
    return bars.close.rolling(10).apply(lambda x: np.sort(x)[1] - np.sort(x)[0], raw=True).rename("step")


def trend_line(bars):
    "A straight line through all closes, as an array."
    t = np.arange(len(bars))
    return bars.close.to_numpy() - np.polyval(np.polyfit(t, bars.close.to_numpy(), 1), t)


def trend_line_clean(bars):
    t = np.arange(20)
    return bars.close.rolling(20).apply(lambda x: x[-1] - np.polyval(np.polyfit(t, x, 1), 19), raw=True).to_numpy()


def rolled_round(bars):
    return np.roll(bars.open.to_numpy(), -1) / bars.open.to_numpy()


def rolled_round_clean(bars):
    x = bars.open.to_numpy()
    return x / np.append(np.nan, x[:-1])


def highest_to_come(bars):
    "Distance to the highest price from here to the end."
    return (bars.high[::-1].cummax()[::-1] / bars.close).rename("room")


def highest_to_come_clean(bars):
    return (bars.high.cummax() / bars.close).rename("room")


def filled_with_the_mean(bars):
    "Only the first five rows leak: they hold the mean of all rows."
    change = bars.close.diff(5)
    return change.fillna(change.mean())


def filled_with_the_mean_clean(bars):
    return bars.close.diff(5).fillna(0.0)


def clipped_at_quantiles(bars):
    "Only outliers leak: they are cut off at quantiles of all rows."
    ret = bars.close.pct_change()
    return ret.clip(ret.quantile(0.02), ret.quantile(0.98)).rename("ret")


def clipped_at_quantiles_clean(bars):
    ret = bars.close.pct_change()
    past = ret.expanding(20)
    return ret.clip(past.quantile(0.02), past.quantile(0.98)).rename("ret")


def month_end_filled_forward(bars):
    "A month's last close, put on its first day and carried on from there."
    month = bars.index.year * 12 + bars.index.month
    last = bars.close.groupby(month).transform("last")
    return last.where(np.diff(month, prepend=0) != 0).ffill().rename("month")


def month_end_filled_forward_clean(bars):
    month = bars.index.year * 12 + bars.index.month
    before = bars.close.shift(1)
    return before.where(np.diff(month, prepend=0) != 0).ffill().rename("month")


def single_bar(bars):
    "Honest on all rows but one."
    out = bars.close.pct_change().rename("ret")
    if len(bars) > 218:
        out.iloc[217] = bars.low.iloc[218]
    return out


def single_bar_clean(bars):
    out = bars.close.pct_change().rename("ret")
    if len(bars) > 217:
        out.iloc[217] = bars.low.iloc[216]
    return out


def one_of_many(bars):
    "Twelve columns, of which one looks two bars ahead."
    return pd.DataFrame({f"c{i}": bars.open.shift(-2 if i == 7 else i) for i in range(12)})


def one_of_many_clean(bars):
    return pd.DataFrame({f"c{i}": bars.open.shift(i) for i in range(12)})


def news_of_tomorrow(bars):
    "A further column, one day early; mostly zero."
    return np.sign(bars.news.shift(-1).fillna(0)).rename("mood")


def news_of_tomorrow_clean(bars):
    return np.sign(bars.news).rename("mood")


def word_of_tomorrow(bars):
    "A further column of words, one day early."
    return bars.rating.shift(-1).rename("word")


def word_of_tomorrow_clean(bars):
    return bars.rating.shift(1).rename("word")


def bars_left(bars):
    return np.arange(len(bars))[::-1]


def bars_left_clean(bars):
    return np.arange(len(bars))


def days_to_the_next_bar(bars):
    "Long weekends, known before they come."
    return pd.Series(bars.index, bars.index).diff(-1).dt.total_seconds().rename("wait")


def days_to_the_next_bar_clean(bars):
    return pd.Series(bars.index, bars.index).diff().dt.total_seconds().rename("wait")


def _factor(bars, later):
    split = pd.Series(1.0, bars.index)
    for _, at, kind, value, _ in bars.attrs["tradebench"]["actions"]:
        rows = bars.index < pd.Timestamp(at, tz="UTC") if later else bars.index >= pd.Timestamp(at, tz="UTC")
        if kind == "split":
            split[rows] *= 1 / value if later else value
    return split


def back_adjusted(bars):
    "Old prices divided by splits that came after them."
    return (bars.close * _factor(bars, later=True)).rename("price")


def back_adjusted_clean(bars):
    return (bars.close * _factor(bars, later=False)).rename("price")


def dropped_and_counted(bars):
    "One row dropped at the start, and the rest put back by position."
    change = bars.close.diff().dropna().to_numpy()
    return pd.DataFrame(dict(value=np.append(change, 0.0)), bars.index)


def dropped_and_counted_clean(bars):
    change = bars.close.diff().dropna().to_numpy()
    return pd.DataFrame(dict(value=np.append(0.0, change)), bars.index)
