"""Sweeps: equal to single backtests, independent of workers, bounded in memory, resumable after a kill."""

import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import tradebench as tb
from tradebench.backtest import sweep as module
from tradebench.backtest.sweep import allowed, draw, grid, metric, sweep
from tradebench.data.simulator import simulate
from tradebench.errors import EngineError, StrategyError
from tradebench.features.indicator import SMA, sma
from tradebench.jit import cache_dir
from tradebench.params import param

COSTS = tb.Costs(fee_bps=2, spread_bps=1)


@tb.strategy
class SweptCross:
    "Long while the fast average is above the slow one."

    fast = param(10, 1, 100, "bars in the fast average")
    slow = param(50, 2, 200, "bars in the slow average")
    side = param("long", choices=("long", "both"), meaning="whether to go short too")
    where = "fast < slow"
    state = dict(f=SMA("fast"), s=SMA("slow"))

    def step(s, p, row):
        up = sma(s.f, row.close) > sma(s.s, row.close)
        if p.side == 1 and not up:
            return tb.decide(-1.0)
        return tb.long_if(up)


@pytest.fixture(scope="module")
def bars():
    return tb.prepare(simulate(sessions=20, freq="5min", seed=5)[0])


RANGES = dict(fast=range(2, 40, 6), slow=range(10, 90, 20), side=["long", "both"])


@pytest.fixture(scope="module")
def swept(bars):
    return sweep(SweptCross, bars, costs=COSTS, progress=False, workers=1, **RANGES)


def test_every_point_equals_its_own_backtest(swept, bars):
    for row in range(0, len(swept), 5):
        point = swept.point(row)
        single = tb.backtest(SweptCross(**point.params), bars, costs=COSTS)
        for name in (
            "total_return",
            "annual_return",
            "volatility",
            "sharpe",
            "sortino",
            "calmar",
            "max_drawdown",
            "max_drawdown_bars",
            "trades",
            "hit_rate",
            "profit_factor",
            "expectancy",
            "avg_win",
            "avg_loss",
            "costs",
            "final_equity",
        ):
            np.testing.assert_allclose(point.metrics[name], single.metrics[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("workers", [2, 5])
def test_result_does_not_depend_on_workers(swept, bars, workers):
    other = sweep(SweptCross, bars, costs=COSTS, progress=False, workers=workers, **RANGES)
    pd.testing.assert_frame_equal(swept.frame, other.frame, check_exact=True)


def test_rules_are_kept_and_one_value_is_a_range():
    columns = grid(SweptCross, dict(fast=[5, 50], slow=20))
    assert columns["fast"].tolist() == [5] and columns["slow"].tolist() == [20] and columns["side"].tolist() == ["long"]
    both = allowed(
        type("Rule", (SweptCross,), dict(where=("fast < slow and slow < 100",))),
        dict(fast=np.array([1, 1]), slow=np.array([50, 150])),
        2,
    )
    assert both["slow"].tolist() == [50]


def test_draws_stay_in_bounds_and_repeat_with_their_seed():
    drawn = draw(SweptCross, 300, seed=4)
    assert (drawn["fast"] < drawn["slow"]).all() and drawn["fast"].min() >= 1 and drawn["slow"].max() <= 200
    assert all((drawn[k] == draw(SweptCross, 300, seed=4)[k]).all() for k in drawn)
    assert (drawn["fast"] != draw(SweptCross, 300, seed=5)["fast"]).any()


def test_samples_as_a_number_and_as_a_table(bars):
    assert len(sweep(SweptCross, bars, samples=25, costs=COSTS, progress=False)) == 25
    table = pd.DataFrame(dict(fast=[5, 6, 90], slow=[20, 30, 40]))
    assert sweep(SweptCross, bars, samples=table, costs=COSTS, progress=False).frame.fast.tolist() == [5, 6]


def test_symbols_and_costs_are_dimensions():
    frames = {s: simulate(sessions=5, freq="5min", seed=k, symbol=s)[0] for k, s in enumerate(("AA", "BB"))}
    traded = [tb.Instrument(**f.attrs["tradebench"]["instruments"][s]) for s, f in frames.items()]
    both = tb.prepare(pd.concat(frames, axis=1, names=["symbol", "field"]), instruments=traded)
    models = {"free": tb.Costs(), "dear": tb.Costs(fee_bps=20)}
    s = sweep(SweptCross, both, costs=models, progress=False, fast=[3, 5], slow=[20])
    assert s.frame.groupby(["symbol", "costs_model"]).size().tolist() == [2, 2, 2, 2]
    one = s.point(len(s) - 1)
    alone = tb.backtest(SweptCross(**one.params), frames[one.symbol], costs=models[one.costs])
    np.testing.assert_allclose(one.metrics["final_equity"], alone.equity.iloc[-1], rtol=1e-12)
    assert (s.frame[s.frame.costs_model == "free"].costs == 0).all()


@metric
class LastReturn:
    "The last batch's return, and how many there were"

    state = dict(last=0.0, n=0)

    def update(s, equity, ret):
        s.last = ret
        s.n += 1

    def value(s):
        return s.last + s.n


def test_metric_of_the_users_own(bars):
    s = sweep(SweptCross, bars, costs=COSTS, metrics=[LastReturn], progress=False, fast=[3, 5, 8], slow=[20])
    for row in range(3):
        returns = s.point(row).backtest().returns
        np.testing.assert_allclose(s.frame.lastreturn[row], returns.iloc[-1] + len(returns), rtol=1e-12)
    assert len(s.top(1, by="lastreturn")) == 1


@pytest.mark.parametrize(
    "given, error, text",
    [
        (dict(fast=[5], slow=[3]), EngineError, "leave no point"),
        (dict(fast=[]), StrategyError, "range is empty"),
        (dict(fast=[1000]), StrategyError, r"\[1, 100\]"),
        (dict(quick=[1, 2]), StrategyError, "no parameter 'quick'"),
        (dict(samples=5, fast=[1, 2]), EngineError, "not both"),
    ],
)
def test_bad_ranges_are_named(bars, given, error, text):
    with pytest.raises(error, match=text):
        sweep(SweptCross, bars, costs=COSTS, progress=False, **given)


def test_metric_names_and_heat_maps_are_checked(swept):
    with pytest.raises(EngineError, match="no metric 'sharp'"):
        swept.top(by="sharp")
    assert swept.heatmap("sharpe") is not None
    assert swept.varied() == ["fast", "slow", "side"]


def test_plan_is_printed_and_a_ceiling_refuses(bars, capsys, monkeypatch):
    sweep(SweptCross, bars, costs=COSTS, fast=[3, 5], slow=[20])
    assert "2 points x" in (said := capsys.readouterr().out) and "MiB" in said and " s on " in said
    monkeypatch.setattr(module, "ACCOUNT", np.dtype([("pad", "u1", (2**30,))]))
    with pytest.raises(EngineError, match="ceiling is 1,024 MiB"):
        module._plan([(None, None, None)] * 0 or [(None, None, type("S", (), dict(bars=bars))())], {"a": 1}, 5, 1, 1024)


def test_target_out_of_range_is_an_error(bars):
    @tb.strategy
    class Wild:
        "Asks for too much"

        size = param(1.0, 0.0, 5.0, "target")

        def step(s, p, row):
            return tb.decide(p.size)

    with pytest.raises(EngineError, match=r"outside \[-1, 1\]"):
        sweep(Wild, bars, costs=COSTS, progress=False, size=[0.5, 2.0])


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import test_sweep as t
t.module.LONG = 0.0
bars = t.tb.prepare(t.simulate(sessions=200, freq="5min", seed=5)[0])
t.sweep(t.SweptCross, bars, costs=t.COSTS, progress=False, workers=2, fast=range(1, 60), slow=range(60, 120))
"""


def test_killed_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "kernels").symlink_to(cache_dir())  # compiled code need not be made again
    env = os.environ | {"TRADEBENCH__DATA__CACHE": str(tmp_path)}
    program = PROGRAM.format(tests=os.path.dirname(__file__))
    for _ in range(6):  # until a kill comes between the first and the last tile
        job = subprocess.Popen([sys.executable, "-c", program], env=env)
        done = _wait_for_marks(job, tmp_path)
        job.send_signal(signal.SIGKILL)
        job.wait()
        files = list((tmp_path / "sweeps").glob("*.part"))
        if done and files:
            break
    else:
        pytest.fail("the sweep was never caught half-way")
    bars = tb.prepare(simulate(sessions=200, freq="5min", seed=5)[0])
    given = dict(costs=COSTS, progress=False, workers=2, fast=range(1, 60), slow=range(60, 120))
    ran = []
    monkeypatch.setattr(module, "LONG", 0.0)
    monkeypatch.setenv("TRADEBENCH__DATA__CACHE", str(tmp_path))
    from tradebench.settings import settings

    settings.cache_clear()
    real = module.run_points
    monkeypatch.setattr(
        module,
        "run_points",
        lambda sim, columns, accounts, own=None: (ran.append(len(accounts)), real(sim, columns, accounts, own)),
    )
    try:
        rest = sweep(SweptCross, bars, **given)
    finally:
        settings.cache_clear()
    assert 2 < sum(ran) < len(rest) + 2, "everything was run again"  # two runs are the estimate's
    assert not list((tmp_path / "sweeps").glob("*.part")), "the finished sweep left its file"
    fresh = sweep(SweptCross, bars, resume=False, **given)
    pd.testing.assert_frame_equal(rest.frame, fresh.frame, check_exact=True)


def _wait_for_marks(job, folder) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end and job.poll() is None:
        for file in (folder / "sweeps").glob("*.part"):
            if any(file.read_bytes()[-20:]):
                return True
        time.sleep(0.005)
    return False


def test_memory_does_not_grow_with_the_number_of_points(bars):
    psutil = pytest.importorskip("psutil")
    sweep(SweptCross, bars, samples=200, costs=COSTS, progress=False)
    me = psutil.Process()
    before = me.memory_info().rss
    sweep(SweptCross, bars, samples=4000, costs=COSTS, progress=False)
    assert me.memory_info().rss - before < 60 * 2**20


def test_headline_of_an_empty_account_is_nan_not_an_error():
    from tradebench.backtest.simulation import account_metrics, new_accounts

    found = account_metrics(new_accounts(1000.0), 252.0)
    assert math.isnan(found["sharpe"][0]) and found["total_return"][0] == 0.0


def test_sweep_is_one_row_of_the_ledger_with_its_count(bars, tmp_path, monkeypatch):
    from tradebench import ledger
    from tradebench.settings import settings

    monkeypatch.setenv("TRADEBENCH__RUNS__LEDGER", str(tmp_path / "trials.sqlite"))
    monkeypatch.delenv("TRADEBENCH_TRIALS", raising=False)
    settings.cache_clear()
    try:
        for _ in range(2):  # the same again is no new trial
            sweep(SweptCross, bars, costs=COSTS, progress=False, fast=[3, 5], slow=[20, 30])
        rows = ledger.trials(counted=None)
        assert rows.kind.tolist() == ["sweep", "sweep"] and rows["count"].tolist() == [4, 4]
        assert ledger.count() == 4
        sweep(SweptCross, bars, costs=COSTS, progress=False, fast=[3, 5], slow=[20, 31])
        assert ledger.count() == 8
    finally:
        settings.cache_clear()


@tb.pandas_strategy
def swept_mean(bars, n=param(20, 2, 100, "bars in the average")):
    "Long while the close is above its average."
    return (bars["close"] > bars["close"].rolling(n).mean()).astype(float)


def test_a_pandas_strategy_is_asked_anew_for_each_set(bars):
    found = sweep(swept_mean, bars, n=[5, 20, 60], costs=COSTS, progress=False, workers=2)
    single = [tb.backtest(swept_mean(n=n), bars, costs=COSTS).metrics["sharpe"] for n in found.frame["n"]]
    np.testing.assert_allclose(found.frame["sharpe"], single, rtol=1e-9)
    assert found.frame["sharpe"].nunique() == 3
