"""Features over several symbols; see features.py for the table."""

import numpy as np
import pandas as pd

CASES = dict(
    members_at_the_end=dict(column="C", inputs=("C.in_universe",), ahead="end", bar=0),
    weights_of_one_symbol=dict(column="B", inputs=("B.close",), ahead="end"),
    ranked_on_tomorrow=dict(column="A", inputs=("A.close", "C.close"), ahead=(1, 1), bar=0),
)
for _case in CASES.values():
    _case["on"] = "three"


def _closes(bars):
    return bars.xs("close", axis=1, level=1)


def _member(bars):
    return bars.xs("in_universe", axis=1, level=1) > 0


def members_at_the_end(bars):
    "Survivors: symbols that are in the universe on the last day."
    return _closes(bars).pct_change().fillna(0.0).where(_member(bars).iloc[-1], -1.0, axis=1)


def members_at_the_end_clean(bars):
    return _closes(bars).pct_change().fillna(0.0).where(_member(bars), -1.0)


def weights_of_one_symbol(bars):
    "Each symbol by its own volatility; that of B is over all days."
    ret = _closes(bars).pct_change()
    vol = ret.expanding(20).std()
    vol["B"] = ret["B"].std()
    return ret / vol


def weights_of_one_symbol_clean(bars):
    ret = _closes(bars).pct_change()
    return ret / ret.expanding(20).std()


def ranked_on_tomorrow(bars):
    return _closes(bars).pct_change().shift(-1).rank(axis=1)


def ranked_on_tomorrow_clean(bars):
    return pd.DataFrame(np.sign(_closes(bars).pct_change()).rank(axis=1))
