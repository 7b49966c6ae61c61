"Small markets of every kind that a strategy must run on, and parameters at random: shared by the tests of strategies."

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from tradebench.data.bars import prepare
from tradebench.data.simulator import simulate
from tradebench.data.sources import load

KINDS = ("daily", "daily_many", "round_the_clock", "round_the_clock_many", "new_york", "new_york_many")


def holes(frame, part: float, seed: int):
    "The frame of several symbols with a part of each symbol's rows missing, and the first symbol listed late"
    rng, out = np.random.default_rng(seed), frame.copy()
    for k, s in enumerate(dict.fromkeys(frame.columns.get_level_values(0))):
        gone = rng.random(len(frame)) < part
        if k == 0:
            gone[: len(frame) // 5] = True
        out.loc[gone, s] = np.nan
    out = out.loc[out.notna().any(axis=1)]
    out.attrs = frame.attrs
    return out


def several(seeds, **how):
    "Simulated symbols A, B, ... in one frame"
    parts = {chr(65 + k): simulate(seed=seed, symbol=chr(65 + k), **how)[0] for k, seed in enumerate(seeds)}
    out = pd.concat(parts, axis=1, names=["symbol", "field"])
    first = next(iter(parts.values())).attrs["tradebench"]
    instruments = {s: p.attrs["tradebench"]["instruments"][s] for s, p in parts.items()}
    out.attrs["tradebench"] = first | {"symbols": list(parts), "instruments": instruments}
    return out


@cache
def market(kind: str):
    "Bars of a kind; daily bars hold Apple's split of 2005, the New York minutes two half days"
    if kind == "daily":
        return prepare(load("AAPL", start="2003-06-01", end="2006-06-30"))
    if kind == "daily_many":
        return prepare(
            holes(load("stocks5", start="2003-06-01", end="2006-06-30", symbols=["GOOG", "AAPL", "IBM"]), 0.03, 1)
        )
    if kind == "round_the_clock":
        return prepare(simulate(sessions=25, seed=1, freq="30min", calendar="24/7")[0])
    if kind == "round_the_clock_many":
        return prepare(holes(several((1, 2, 3), sessions=40, freq="1h", calendar="24/7"), 0.05, 2))
    if kind == "new_york":
        return prepare(simulate(sessions=30, seed=7, freq="10min", start="2015-11-16")[0])
    if kind == "new_york_many":
        return prepare(holes(several((4, 5, 6), sessions=30, freq="15min", start="2015-11-16"), 0.05, 3))
    raise ValueError(kind)


def drawn(cls, rng):
    "An instance with random parameters within the bounds, small windows more often than large ones"
    while True:
        values = {}
        for k, p in cls.params.items():
            if p.choices:
                values[k] = p.choices[rng.integers(len(p.choices))]
                continue
            x = p.low + (p.high - p.low) * rng.random() ** 4
            values[k] = p.kind(x) if p.kind is float else p.kind(round(x))
        if cls.allows(values):
            return cls(**values)
