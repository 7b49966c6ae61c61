"""Strategies for tests of the agent: two that fail, and one that does the opposite of Follow."""

from tradebench.params import param
from tradebench.strategies.follow import Follow, pandas_strategy
from tradebench.strategies.strategy import decide, strategy


@strategy
class Breaks:
    "Follow, with a mistake in it"

    inputs = Follow.inputs

    def step(s, p, row):
        if row.target == 0.25:
            raise ValueError("a mistake in a strategy")
        return decide(row.target, row.stop, row.take, row.trail, row.limit, row.expire)


@strategy
class Opposite:
    "Short where Follow is long, its stop as far away on the other side"

    inputs = Follow.inputs

    def step(s, p, row):
        return decide(-row.target, 2.0 * row.close - row.stop, row.take, row.trail, row.limit, row.expire)


@pandas_strategy
def breaks_in_pandas(bars):
    "Long from the third bar on, and a mistake above 150"
    if bars["close"].iloc[-1] > 150:
        raise KeyError("a column that is not there")
    return dict(target=(bars["close"] > 0).cumsum().gt(2).astype(float))


@strategy
class Above:
    "Long where the close stands `n` points above 100 or higher"

    n = param(2, 1, 5, "points")
    inputs = Follow.inputs

    def step(s, p, row):
        return decide(1.0 if row.close >= 100.0 + p.n else 0.0, row.stop, row.take, row.trail, row.limit, row.expire)
