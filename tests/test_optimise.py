"""Studies: repeatable, resumable to the same result after kill -9, blind to the holdout, and counted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tradebench import ledger
from tradebench.backtest.metrics import sharpe
from tradebench.backtest.simulation import simulation
from tradebench.data.bars import prepare
from tradebench.data.sources import load
from tradebench.errors import EngineError, RunError, StrategyError
from tradebench.strategies.scalping import Scalping
from tradebench.strategies.sma_cross import SmaCross
from tradebench.validation.optimise import cut, judged, optimise
from tradebench.validation.search import columns_of, space
from tradebench.validation.windows import window_returns

DATA = "sim:minutes,seed=3,sessions=12"
HOW = dict(trials=60, windows=3, batch=20)


@pytest.fixture(scope="module")
def bars():
    return prepare(load(DATA))


@pytest.fixture(scope="module")
def study(bars):
    return optimise(SmaCross, bars, **HOW)


@given(n=st.integers(100, 5000), windows=st.integers(1, 8), holdout=st.floats(0.0, 0.6), warm=st.integers(0, 30))
@settings(max_examples=200)
def test_windows_lie_side_by_side_before_the_holdout(n, windows, holdout, warm):
    try:
        s = cut(n, windows, holdout, warm)
    except EngineError as e:
        assert "shorter than 20 bars" in str(e)
        return
    ends = [warm, *(b for _, b in s.windows)]
    assert [a for a, _ in s.windows] == ends[:-1] and ends[-1] == s.holdout[0] and s.holdout[1] == n
    lengths = [b - a for a, b in s.windows]
    assert min(lengths) >= 20 and max(lengths) - min(lengths) <= 1


def test_score_is_the_mean_of_single_backtests_of_each_window(bars, study):
    row = study.frame[study.frame["state"] == "complete"].iloc[3]
    sim = simulation(SmaCross(fast=int(row["fast"]), slow=int(row["slow"])), bars)
    for i, (a, b) in enumerate(study.span.windows, 1):
        returns = window_returns(sim, [dict(fast=int(row["fast"]), slow=int(row["slow"]))], a, b)[:, 0]
        assert row[f"window_{i}"] == pytest.approx(sharpe(returns, bars.periods_per_year), rel=1e-9, nan_ok=True)
    values = row[[f"window_{i}" for i in (1, 2, 3)]].to_numpy(float)
    assert row["sharpe"] == pytest.approx(np.nan_to_num(values).mean(), abs=1e-12)


def test_the_holdout_changes_no_trial(bars, study):
    first = study.span.holdout[0]
    frame = bars.frame().copy()
    rng = np.random.default_rng(1)
    rows = frame.index[first:]
    factor = rng.lognormal(0, 0.01, len(rows)).cumprod()[:, None]
    frame.loc[rows, ["open", "high", "low", "close"]] = (
        frame.loc[rows, ["open", "high", "low", "close"]].to_numpy() * factor
    )
    frame.attrs = bars.frame().attrs
    other = optimise(SmaCross, prepare(frame), **HOW)
    assert other.frame.equals(study.frame) and other.best == study.best
    assert not other.holdout.equals(study.holdout)


def test_workers_change_nothing(bars, study):
    assert optimise(SmaCross, bars, workers=1, **HOW).frame.equals(study.frame)


def test_seed_changes_the_trials(bars, study):
    assert not optimise(SmaCross, bars, seed=1, **HOW).frame.equals(study.frame)


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes"])
def test_resumed_is_the_same(bars, tmp_path, sampler):
    whole = optimise(Scalping, bars, sampler=sampler, fixed=dict(shorts=False), **HOW)
    for stop in (20, 40, 60):
        part = optimise(
            Scalping,
            bars,
            sampler=sampler,
            fixed=dict(shorts=False),
            storage=str(tmp_path / "s"),
            **HOW | dict(trials=stop),
        )
    assert part.frame.equals(whole.frame) and part.holdout.equals(whole.holdout)


CHILD = f"""
import sys
from tradebench.validation.optimise import optimise
from tradebench.data.sources import load
optimise("scalping", load("{DATA}"), trials=400, windows=3, batch=20, storage=sys.argv[1])
"""


def test_killed_anywhere_it_goes_on_to_the_same_result(bars, tmp_path):
    path = tmp_path / "study.jsonl"
    sizes = []
    for lines in (2, 5, 8):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)])
        end = time.monotonic() + 60
        while not (path.exists() and len(path.read_text().splitlines()) > lines) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        sizes.append(path.stat().st_size)
    assert sizes == sorted(set(sizes)), "each life added something"
    with open(path, "a") as f:
        f.write('[{"params": {"n": 3')
    resumed = optimise(Scalping, bars, **HOW | dict(trials=240), storage=str(path))
    whole = optimise(Scalping, bars, **HOW | dict(trials=len(resumed.frame)))
    assert resumed.frame.equals(whole.frame) and resumed.best == whole.best


def test_file_of_another_study_is_not_taken(bars, tmp_path):
    path = str(tmp_path / "s")
    optimise(SmaCross, bars, storage=path, **HOW | dict(trials=20))
    for more, said in (
        (dict(seed=1), "seed"),
        (dict(metric="calmar"), "metric"),
        (dict(bounds=dict(fast=(5, 50))), "space"),
        (dict(costs=None, initial=5e4), "initial"),
    ):
        with pytest.raises(RunError, match=f"another {said}"):
            optimise(SmaCross, bars, storage=path, **HOW | more)
    with pytest.raises(RunError, match="another strategy"):
        optimise(Scalping, bars, storage=path, **HOW)
    Path(path).write_text("hello\n")
    with pytest.raises(RunError, match="is no study"):
        optimise(SmaCross, bars, storage=path, **HOW)


def test_storage_of_optuna_is_shared(bars, tmp_path):
    address = f"sqlite:///{tmp_path}/o.db"
    one = optimise(SmaCross, bars, storage=address, name="x", **HOW | dict(trials=20))
    two = optimise(SmaCross, bars, storage=address, name="x", **HOW | dict(trials=40))
    assert len(one.frame) == 20 and len(two.frame) == 40 and two.frame.head(20).equals(one.frame)
    with pytest.raises(RunError, match="another study called 'x'"):
        optimise(SmaCross, bars, storage=address, name="x", **HOW | dict(seed=5))


def test_rules_of_the_strategy_are_kept(bars, study):
    broken = study.frame[study.frame["fast"] >= study.frame["slow"]]
    assert len(broken) and (broken["state"] == "pruned").all() and (broken["why"] == "rule").all()
    assert broken[["window_1", "window_2", "window_3"]].isna().all(axis=None)


def test_pruning_spares_work_and_gives_up_only_what_is_below(bars):
    f = optimise(Scalping, bars, **HOW | dict(trials=120)).frame
    given_up = f[f["why"] == "below the median"]
    assert 10 < len(given_up) < 100 and given_up["window_3"].isna().any()
    all_of_them = optimise(Scalping, bars, prune=False, **HOW | dict(trials=120)).frame
    assert not (all_of_them["why"] == "below the median").any()


def test_several_objectives(bars):
    o = optimise(SmaCross, bars, metric=["sharpe", "max_drawdown"], sampler="nsga2", **HOW)
    assert {"sharpe", "max_drawdown", "holdout_max_drawdown"} <= {*o.frame.columns, *o.holdout.columns}
    assert len(o.study.best_trials) >= 1 and len(o.study.directions) == 2


def test_each_set_is_counted_once_and_before_it_runs(bars, tmp_path, monkeypatch):
    monkeypatch.delenv("TRADEBENCH_TRIALS", raising=False)
    monkeypatch.setenv("TRADEBENCH__RUNS__LEDGER", str(tmp_path / "trials.sqlite"))
    from tradebench.settings import settings as current

    current.cache_clear()
    try:
        o = optimise(SmaCross, bars, **HOW)
        assert ledger.count() == (o.frame["why"] != "rule").sum()
        optimise(SmaCross, bars, **HOW)
        assert ledger.count() == (o.frame["why"] != "rule").sum(), "the same study again is nothing new"
    finally:
        monkeypatch.undo()
        current.cache_clear()


def test_bad_arguments_are_said(bars):
    for more, kind, said in (
        (dict(metric="sharp"), EngineError, "did you mean sharpe"),
        (dict(sampler="tpee"), StrategyError, "did you mean tpe"),
        (dict(windows=500), EngineError, "shorter than 20 bars"),
        (dict(holdout=1.0), EngineError, "holdout"),
        (dict(trials=0), EngineError, "at least one"),
        (dict(bounds=dict(fast=(0, 5))), StrategyError, "must lie in"),
        (dict(fixed=dict(fast=10, slow=50)), StrategyError, "no parameter to search"),
    ):
        with pytest.raises(kind, match=said):
            optimise(SmaCross, bars, **HOW | more)


def test_space_is_that_of_the_bounds():
    found = space(Scalping)
    for k, p in Scalping.params.items():
        d = found[k]
        if hasattr(d, "choices"):
            assert set(d.choices) == set(p.choices or (False, True))
        else:
            assert (d.low, d.high) == (p.low, p.high)
    columns, good = columns_of(SmaCross, [dict(fast=3), dict(slow=2, fast=9)])
    assert columns["fast"].tolist() == [3, 9] and good.tolist() == [True, False]


def test_undefined_scores():
    nan = np.nan
    got = judged(np.array([[[1.0], [nan], [nan]], [[3.0], [2.0], [nan]]]))
    assert got[0, 0] == 2.0 and got[1, 0] == 1.0 and np.isnan(got[2, 0])
