"""Indicators, and functions with a declared warm-up, that promise too much; and what is wrong without being look-ahead."""

import numpy as np

from tradebench.features.averages import EMA, ema
from tradebench.features.indicator import SMA, Indicator, sma
from tradebench.features.rolling import Parts
from tradebench.jit import kernel
from tradebench.params import param

SHORT, UNSTABLE = "warm-up too short", "not deterministic"
CASES = dict(
    Twice=dict(column="value", kind=SHORT, needed=39),
    Forgetful=dict(column="value", kind=SHORT),
    Shifted=dict(column="value", inputs=("close",), ahead=(1, 1)),
    declares_too_little=dict(column="close", kind=SHORT, needed=59),
    declares_no_recursion=dict(column="close", kind=SHORT),
    draws_lots=dict(column="close", kind=UNSTABLE),
    remembers_calls=dict(column="close", kind=UNSTABLE),
    never_twice=dict(column="(all)", kind="could not be tested"),
)


@kernel
def twice(s, x):
    s.value = sma(s.outer, sma(s.inner, x))
    if s.value != s.value:
        s.value = x
    return s.value


class Twice(Parts, Indicator):
    "An average of an average that shows the price until it has one, and declares half of what it needs."

    n = param(20, 2, 100, "bars")
    parts = dict(inner=SMA("n"), outer=SMA("n"))
    step = twice

    @classmethod
    def warmup(cls, n):
        return n - 1


@kernel
def twice_clean(s, x):
    inner = sma(s.inner, x)
    s.value = sma(s.outer, inner) if inner == inner else np.nan
    return s.value


class Twice_clean(Parts, Indicator):
    "An average of an average."

    n = param(20, 2, 100, "bars")
    parts = dict(inner=SMA("n"), outer=SMA("n"))
    step = twice_clean

    @classmethod
    def warmup(cls, n):
        return 2 * n - 2


@kernel
def forgetful(s, x):
    s.value = ema(s.e, x)
    return s.value


class Forgetful(Parts, Indicator):
    "An exponential average that does not say that it never forgets."

    n = param(20, 2, 100, "bars")
    parts = dict(e=EMA("n"))
    step = forgetful

    @classmethod
    def warmup(cls, n):
        return n - 1


class Forgetful_clean(Forgetful):
    "It says so."

    recursive = True


class Shifted(SMA):
    "A step that is honest under a call that is not."

    def __call__(self, *data):
        return super().__call__(*data).shift(-1).rename("value")


class Shifted_clean(SMA):
    "Moved the other way."

    def __call__(self, *data):
        return super().__call__(*data).shift(1).rename("value")

    @classmethod
    def warmup(cls, n):
        return n


def declares_too_little(bars):
    "Sixty bars, filled at the start so that no missing value gives it away."
    return bars.close.rolling(60, min_periods=1).mean()


def declares_too_little_clean(bars):
    return bars.close.rolling(60, min_periods=1).mean()


declares_too_little.warmup, declares_too_little_clean.warmup = 20, 59


def declares_no_recursion(bars):
    return bars.close.ewm(span=20).mean()


def declares_no_recursion_clean(bars):
    return bars.close.ewm(span=20).mean()


declares_no_recursion.warmup, declares_no_recursion_clean.warmup = 20, 20
declares_no_recursion_clean.recursive = True


def draws_lots(bars):
    return bars.close + np.random.default_rng().normal(size=len(bars))


def draws_lots_clean(bars):
    "A seed that does not depend on the number of rows, and draws in order."
    return bars.close + np.random.default_rng(1).normal(size=len(bars))


_calls = []


def remembers_calls(bars):
    "Counts how often it was called."
    _calls.append(1)
    return bars.close * 0 + len(_calls)


def remembers_calls_clean(bars):
    return bars.close * 0 + 1


def never_twice(bars):
    "Takes these bars and no others."
    if len(bars) != 300 or not abs(bars.close.to_numpy() @ np.arange(300) - bars.attrs["sum"]) < 1e-6:
        raise ValueError("not the bars that I know")
    return bars.close


def never_twice_clean(bars):
    "Refuses holes, which is its right."
    if bars.isna().any(axis=None):
        raise ValueError("there are holes")
    return bars.close
