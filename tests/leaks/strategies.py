"""Strategies that know the future: of pandas, compiled with an input that leaks, a basket, a declared warm-up that is too short.

`make` in the table names the function that computes a compiled strategy's inputs; the twin uses the function of the same name and `_clean`.
"""

import numpy as np
import pandas as pd

from tradebench.features.indicator import SMA, sma
from tradebench.params import param
from tradebench.strategies.follow import pandas_strategy
from tradebench.strategies.strategy import column, decide, long_if, strategy

CASES = dict(
    buys_before_a_rise=dict(column="target", inputs=("close",), ahead=(1, 1), bar=0),
    stop_below_tomorrow=dict(column="stop", inputs=("low",), ahead=(1, 1), bar=0),
    cheap_against_all=dict(column="target", inputs=("close",), ahead="end"),
    AboveTheWeek=dict(column="input week", inputs=("close",), make="week_known_on_monday", via="the input week"),
    TrustsTheModel=dict(
        column="input p", inputs=("close", "actions"), make="probability_of_all", via="the input p", ahead="end"
    ),
    LimitOfTomorrow=dict(column="limit", inputs=("low",), make="lowest_tomorrow", via="the input floor", ahead=(1, 1)),
    BestOfAll=dict(column="A.target", inputs=("A.close",), make="whole_return", on="three", ahead="end"),
    TooHasty=dict(column="state m", kind="warm-up too short"),
)


@pandas_strategy
def buys_before_a_rise(bars):
    "Long when the next close is higher."
    return (bars.close.shift(-1) > bars.close).astype(float)


@pandas_strategy
def buys_before_a_rise_clean(bars):
    "Long when the last close was lower."
    return (bars.close.shift(1) < bars.close).astype(float)


@pandas_strategy
def stop_below_tomorrow(bars):
    "An honest target with a stop that no later low touches."
    return dict(target=1.0, stop=np.minimum(bars.low.shift(-1), bars.low).fillna(1.0) * 0.99)


@pandas_strategy
def stop_below_tomorrow_clean(bars):
    "A stop below the last two lows."
    return dict(target=1.0, stop=np.minimum(bars.low.shift(1), bars.low).fillna(1.0) * 0.99)


@pandas_strategy
def cheap_against_all(bars):
    "Long below the mean of all closes."
    return (bars.close < bars.close.mean()).astype(float)


@pandas_strategy
def cheap_against_all_clean(bars):
    "Long below the mean of the closes so far."
    return (bars.close < bars.close.expanding().mean()).astype(float)


@strategy
class AboveTheWeek:
    "Long below the close of a week."

    inputs = dict(week=column())

    def step(s, p, row):
        return long_if(row.close < row.week)


def _weeks(bars):
    week = bars.index.tz_localize(None).to_period("W")
    return bars.close.groupby(week).transform("last"), bars.close.groupby(week).last(), week


def week_known_on_monday(bars):
    "The higher time frame joined at its start."
    return _weeks(bars)[0].to_frame("week")


def week_known_on_monday_clean(bars):
    _, last, week = _weeks(bars)
    return pd.DataFrame(dict(week=last.shift(1).reindex(week).to_numpy()), bars.index)


@strategy
class TrustsTheModel:
    "Long when the model says so."

    inputs = dict(p=column())

    def step(s, p, row):
        return long_if(row.p > 0.5)


def _chance(bars, rows):
    ret = bars.close.pct_change().fillna(0.0).to_numpy()
    x = np.column_stack([np.ones_like(ret), ret, np.append(0.0, ret[:-1])])
    fit = slice(0, min(rows, len(x) - 1))
    weights = np.linalg.lstsq(x[fit], (ret[1:] > 0)[fit].astype(float), rcond=None)[0]
    return pd.DataFrame(dict(p=x @ weights), bars.index)


def probability_of_all(bars):
    "A linear probability model fitted on all rows."
    return _chance(bars, len(bars))


def probability_of_all_clean(bars):
    "Fitted on the first hundred rows, and silent before."
    if len(bars) < 103:
        return pd.DataFrame(dict(p=np.nan), bars.index)
    return _chance(bars, 100).where(np.arange(len(bars))[:, None] > 101)


@strategy
class LimitOfTomorrow:
    "Buys at a limit."

    inputs = dict(floor=column())

    def step(s, p, row):
        return decide(1.0, limit=row.floor)


def lowest_tomorrow(bars):
    return bars.low.shift(-1).fillna(bars.low).to_frame("floor")


def lowest_tomorrow_clean(bars):
    return bars.low.shift(1).fillna(bars.low).to_frame("floor")


@strategy
class BestOfAll:
    "Holds the symbol with the largest input."

    basket = True
    inputs = dict(score=column())

    def step(s, p, rows, out):
        best = 0
        for j in range(rows.n):
            if rows.score[j] > rows.score[best]:
                best = j
        for j in range(rows.n):
            out[j].target = 1.0 if j == best else 0.0


def _scores(bars, score):
    closes = bars.xs("close", axis=1, level=1)
    made = score(closes)
    return pd.concat({s: made[[s]].set_axis(["score"], axis=1) for s in made}, axis=1)


def whole_return(bars):
    "Return from here to the last day: the winners are known beforehand."
    return _scores(bars, lambda c: c.iloc[-1] / c)


def whole_return_clean(bars):
    return _scores(bars, lambda c: c / c.iloc[0])


@strategy
class TooHasty:
    "Says five bars and averages fifty."

    slow = param(50, 5, 200, "bars")
    state = dict(m=SMA("slow"))
    warmup = 5

    def step(s, p, row):
        return long_if(row.close > sma(s.m, row.close))


@strategy
class TooHasty_clean:
    "Says fifty bars and averages fifty."

    slow = param(50, 5, 200, "bars")
    state = dict(m=SMA("slow"))
    warmup = "slow"

    def step(s, p, row):
        return long_if(row.close > sma(s.m, row.close))


AboveTheWeek_clean, TrustsTheModel_clean = AboveTheWeek, TrustsTheModel
LimitOfTomorrow_clean, BestOfAll_clean = LimitOfTomorrow, BestOfAll
