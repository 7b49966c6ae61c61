"""Returns of many sets, walk-forward and combinatorial studies: equal to single backtests, blind to the future, and the page of a study."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tradebench as tb
from tradebench.backtest import metrics as m
from tradebench.backtest.execute import execute
from tradebench.backtest.simulation import simulation
from tradebench.data.simulator import simulate
from tradebench.errors import DataError, EngineError, RunError, StrategyError
from tradebench.features.indicator import SMA, sma
from tradebench.params import param
from tradebench.validation.cpcv import choice_under_splits, cpcv
from tradebench.validation.returns import returns_of, set_at, sets_of, to_returns
from tradebench.validation.splits import cpcv_splits
from tradebench.validation.walkforward import walkforward
from tradebench.validation.walkforward_job import WalkForwardJob, run_walkforward, walkforward_page
from tradebench.validation.windows import chosen_sets, plateau, window_returns

COSTS = tb.Costs(fee_bps=2, spread_bps=2)


@tb.strategy
class WalkedCross:
    "Long while the fast average is above the slow one, with a stop."

    fast = param(10, 1, 60, "bars in the fast average")
    slow = param(40, 2, 200, "bars in the slow average")
    stop = param(0.05, 0.001, 0.5, "distance of the stop")
    where = "fast < slow"
    state = dict(f=SMA("fast"), s=SMA("slow"))

    def step(s, p, row):
        return tb.long_if(sma(s.f, row.close) > sma(s.s, row.close), stop=row.close * (1 - p.stop))


@tb.pandas_strategy
def walked_mean(bars, n=param(20, 2, 200, "bars in the average")):
    "Long while the close is above its average."
    return (bars["close"] > bars["close"].rolling(n).mean()).astype(float)


@pytest.fixture(scope="module")
def bars():
    return tb.prepare(tb.load("AAPL", start="2003", end="2010"))


GRID = dict(fast=[5, 15, 30], slow=[40, 80, 160])
WINDOWS = dict(train=400, test=150)


@pytest.fixture(scope="module")
def walked(bars):
    return walkforward(WalkedCross, bars, costs=COSTS, **WINDOWS, **GRID)


# returns of many sets


@given(
    st.integers(1, 6), st.integers(0, 99), st.sampled_from(["mark", "close"]), st.sampled_from([None, 0.2]), st.sampled_from([0.0, 5.0]),
    st.sampled_from(["fraction", "volatility"]), st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=12)
def test_every_column_is_its_backtest_bit_for_bit(count, seed, at_end, drawdown, fee, rule, workers):
    bars = tb.prepare(tb.load("MSFT", start="2007", end="2009"))
    how = dict(costs=tb.Costs(fee_bps=fee), sizing=tb.Sizing(rule), options=tb.Options(at_end=at_end), initial=5e4)
    how["limits"] = tb.Limits(max_drawdown=drawdown) if drawdown else None
    r = returns_of(WalkedCross, bars, samples=count, seed=seed, workers=workers, **how)
    assert r.values.shape == (len(bars), count) and r.values.dtype == np.float64
    for k in range(count):
        single = tb.backtest(WalkedCross(**r.params(k)), bars, **how)
        assert (r.values[:, k] == single.return_values).all()
        closed = int((~single.trades["open"]).sum())
        assert (r.stats["fills"][k], r.stats["exits"][k], r.stats["entries"][k]) == (
            len(single.fills),
            closed,
            len(single.trades),
        )
        traded = float((single.fills["qty"].abs() * single.fills["price"]).sum()) / 5e4
        np.testing.assert_allclose(r.stats["turnover"][k], traded, rtol=1e-9)


def test_returns_after_ruin_are_zero_as_in_a_result():
    equity = np.array([110.0, 55.0, 0.0, 0.0, -3.0, -4.0])
    assert to_returns(equity.copy(), 100.0).tolist() == [110 / 100 - 1, 55 / 110 - 1, -1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("name, data", [("rotation", "stocks5"), ("swing", "AAPL"), ("gap_and_go", "AAPL")])
def test_baskets_and_stateful_strategies_too(name, data):
    bars = tb.prepare(tb.load(data, start="2006", end="2008"))
    r = returns_of(name, bars, samples=3, seed=4)
    for k in range(3):
        assert (r.values[:, k] == r.backtest(k).return_values).all()


def test_a_pandas_function_is_asked_for_each_set(bars):
    r = returns_of(walked_mean, bars, n=[10, 50, 100], workers=2)
    for k in range(3):
        assert (r.values[:, k] == r.backtest(k).return_values).all()
    w = walkforward(walked_mean, bars, n=[10, 50, 100], **WINDOWS)
    sim = simulation(walked_mean(n=w.frame["n"].iloc[0]), bars, at_end="close")
    first, last = w.folds[0].test[[0, -1]]
    assert (
        w.returns.iloc[:150] == window_returns(sim, [dict(n=int(w.frame["n"].iloc[0]))], first, last + 1)[:, 0]
    ).all()


def test_sets_come_as_grid_draws_frame_dicts_or_strategies(bars):
    want = dict(fast=[5, 9], slow=[40, 80], stop=[0.05, 0.05])
    for given_ in (
        pd.DataFrame(want).assign(sharpe=1.0), want, [dict(fast=5, slow=40), dict(fast=9, slow=80)], [WalkedCross(fast=5, slow=40), WalkedCross(fast=9, slow=80)],
    ):  # fmt: skip
        found = sets_of(WalkedCross, given_)
        assert {k: v.tolist() for k, v in found.items()} == want
    assert sets_of(WalkedCross(stop=0.1), fast=[5, 50], slow=40)["stop"].tolist() == [0.1]
    assert len(sets_of(WalkedCross, samples=7, seed=1)["fast"]) == 7


@pytest.mark.parametrize(
    "given_, says",
    [
        (dict(sets=dict(fast=[90], slow=[95])), "fast = 90"),
        (dict(sets=dict(fast=[50], slow=[40])), "fast < slow"),
        (dict(sets=dict(fats=[50])), "no parameter 'fats'"),
        (dict(sets=dict(fast=[5, 6], slow=[40])), "differ in length"),
        (dict(sets=[]), "there is none"),
        (dict(sets=5), "samples=200"),
        (dict(sets=dict(fast=[5]), samples=3), "one of them"),
        (dict(fast=[50], slow=[40]), "leave no set"),
        (dict(samples=0), "at least one draw"),
    ],
)
def test_wrong_sets_say_why(given_, says):
    with pytest.raises(StrategyError, match=says):
        sets_of(WalkedCross, **given_)


def test_the_memory_ceiling_holds_before_anything_runs(bars):
    with pytest.raises(EngineError, match=r"need \d+ MiB, and the ceiling is 20 MiB"):
        returns_of(WalkedCross, bars, fast=range(1, 30), slow=range(40, 80), memory_mb=20)
    with pytest.raises(EngineError, match="memory_mb"):
        walkforward(WalkedCross, bars, fast=range(1, 60), slow=range(60, 200), memory_mb=16, **WINDOWS)


def test_the_ledger_counts_all_sets_once_and_each_study(bars, tmp_path, monkeypatch):
    from tradebench.ledger import count
    from tradebench.settings import settings as own

    monkeypatch.setenv("TRADEBENCH__RUNS__LEDGER", str(tmp_path / "trials.sqlite"))
    monkeypatch.delenv("TRADEBENCH_TRIALS", raising=False)
    own.cache_clear()
    try:
        assert returns_of(WalkedCross, bars, costs=COSTS, **GRID).trial.counted and count() == 9
        w = walkforward(
            WalkedCross, bars, costs=COSTS, **WINDOWS, **GRID
        )  # the same sets on the same bars: known already
        assert [t.counted for t in w.trials] == [False, True] and count() == 10
        walkforward(WalkedCross, bars, costs=COSTS, anchored=True, **WINDOWS, **GRID)
        assert count() == 11
    finally:
        monkeypatch.undo()
        own.cache_clear()


# walk-forward


def by_hand(bars, params, first, last, **how):
    "The window the slow way: decisions of a traced run over all bars before, let through from the first bar of the window on"
    frame = bars.frame().iloc[:last]
    t = tb.backtest(WalkedCross(**params), frame, trace=True, **how).trace
    told = {k: t[f"decision.{k}"].to_numpy().copy() for k in ("target", "stop")}
    for v in told.values():
        v[:first] = np.nan
    told = {k: pd.Series(v, frame.index) for k, v in told.items()}
    result = tb.backtest(bars=frame, reentry="changed", at_end="close", **told, **how)
    assert (result.return_values[:first] == 0).all()
    return result


def test_folds_are_what_they_are_by_hand(walked, bars):
    for i in (0, 4, len(walked) - 1):
        f, row = walked.folds[i], walked.frame.iloc[i]
        k = walked.chosen[i][0]
        params = set_at(walked.sets, k)
        test = by_hand(bars, params, f.test[0], f.test[-1] + 1, costs=COSTS)
        ours = walked.returns.loc[row["test_start"] : row["test_end"]].to_numpy()
        np.testing.assert_allclose(test.return_values[f.test], ours, rtol=0, atol=1e-13)
        np.testing.assert_allclose(row["out_of_sample"], m.sharpe(ours, 252), rtol=1e-9)
        np.testing.assert_allclose(row["total_return"], test.metrics["total_return"], rtol=1e-9)
        assert row["trades"] == test.metrics["trades"] and not test.trades["open"].any()
        train = by_hand(bars, params, f.train[0], f.train[-1] + 1, costs=COSTS)
        np.testing.assert_allclose(row["in_sample"], m.sharpe(train.return_values[f.train], 252), rtol=1e-9)
        np.testing.assert_allclose(row["is_return"], train.return_values[f.train].mean() * 252, rtol=1e-9)


def test_the_choice_is_the_best_in_sample_and_ranked_out_of_sample(walked):
    for i, k in enumerate(walked.chosen):
        assert walked.in_sample[i, k[0]] == np.nanmax(walked.in_sample[i])
        others = np.delete(walked.out_of_sample[i], k)
        others = others[np.isfinite(others)]
        if np.isfinite(walked.out_of_sample[i, k[0]]):
            worse = [
                1.0 if x < walked.out_of_sample[i, k[0]] else 0.5 if x == walked.out_of_sample[i, k[0]] else 0.0
                for x in others
            ]
            assert walked.frame["rank"].iloc[i] == pytest.approx(np.mean(worse))


def test_stitched_equity_compounds_the_folds(walked, bars):
    assert walked.equity.iloc[-1] == pytest.approx(1e5 * (1 + walked.frame["total_return"]).prod())
    assert walked.equity.index.equals(bars.index[400 : 400 + 150 * len(walked)])
    assert len(bars) - (400 + 150 * len(walked)) < 150
    inside = np.average(walked.frame["is_return"], weights=walked.frame["bars"])
    assert walked.efficiency == pytest.approx(walked.returns.mean() * 252 / inside)
    assert walked.profitable_folds == (walked.frame["total_return"] > 0).mean()


def test_yardsticks_run_through_the_test_span_without_a_break(walked, bars):
    first, last = 400, 400 + 150 * len(walked)
    best = by_hand(bars, walked.best, first, last, costs=COSTS)
    np.testing.assert_allclose(best.return_values[first:], walked.best_returns, rtol=0, atol=1e-13)
    assert m.sharpe(walked.best_returns, 252) == pytest.approx(np.nanmax(walked.fixed))
    close = bars.seen[first:last, 0, 3]
    assert (1 + walked.hold_returns).prod() == pytest.approx(close[-1] / close[0])


@given(st.integers(0, 6), st.integers(0, 149), st.booleans(), st.sampled_from(["best", "plateau"]), st.integers(1, 2))
@settings(max_examples=5)
def test_no_fold_depends_on_what_comes_after_it(i, more, anchored, select, top):
    bars = tb.prepare(tb.load("AAPL", start="2003", end="2010"))
    how = dict(costs=COSTS, anchored=anchored, select=select, top=top, purge=3, embargo=5, **WINDOWS, **GRID)
    whole = walkforward(WalkedCross, bars, **how)
    i = min(i, len(whole) - 1)
    cut = min(whole.folds[i].test[-1] + 1 + more, len(bars))
    frame = bars.frame().iloc[:cut].copy()
    part = walkforward(WalkedCross, frame, **how)
    pd.testing.assert_frame_equal(part.frame, whole.frame.iloc[: len(part)], check_exact=True)
    assert len(part) >= i + 1 and (part.returns == whole.returns.iloc[: len(part.returns)]).all()
    future = bars.frame()  # and other bars there change nothing either
    future.iloc[cut:] = future.iloc[cut:].to_numpy() * np.r_[1.0, 1.0, 1.0, 1.0, 2.0]
    future.iloc[cut:, :4] = future.iloc[cut:, :4] * 3
    other = walkforward(WalkedCross, future, **how)
    pd.testing.assert_frame_equal(other.frame.iloc[: i + 1], whole.frame.iloc[: i + 1], check_exact=True)


def test_the_number_of_workers_does_not_matter(walked, bars):
    one = walkforward(WalkedCross, bars, costs=COSTS, workers=1, **WINDOWS, **GRID)
    pd.testing.assert_frame_equal(one.frame, walked.frame, check_exact=True)
    assert (one.returns == walked.returns).all()


def test_top_sets_are_held_in_equal_parts(walked, bars):
    two = walkforward(WalkedCross, bars, costs=COSTS, top=2, **WINDOWS, **GRID)
    f, sim = two.folds[2], simulation(WalkedCross(), bars, costs=COSTS, at_end="close")
    sets = [set_at(two.sets, k) for k in two.chosen[2]]
    parts = window_returns(sim, sets, f.test[0], f.test[-1] + 1)
    assert len(sets) == 2 and two.chosen[2][0] == walked.chosen[2][0]
    np.testing.assert_allclose(two.returns.iloc[300:450], parts.mean(axis=1), rtol=0, atol=0)


def test_positions_at_the_end_are_closed_at_a_cost_or_marked(bars):
    dear = tb.Costs(fee_bps=100)
    closed = walkforward("sma_cross", bars, costs=dear, fast=[5], slow=[200], **WINDOWS)
    marked = walkforward("sma_cross", bars, costs=dear, fast=[5], slow=[200], at_end="mark", **WINDOWS)
    held = marked.frame["trades"] < closed.frame["trades"]
    assert held.any() and (marked.frame["total_return"][held] > closed.frame["total_return"][held] + 0.005).all()
    assert (marked.frame["total_return"][~held] == closed.frame["total_return"][~held]).all()


def test_a_fold_without_a_score_trades_nothing(bars):
    w = walkforward(WalkedCross, bars, fast=[5], slow=[200], stop=[0.1], train=60, test=60)
    flat = w.frame["in_sample"].isna()
    assert flat.iloc[0] and (w.frame["total_return"][flat] == 0).all() and (w.frame["trades"][flat] == 0).all()
    assert any("traded nothing" in n for n in w.warnings) and math.isfinite(w.equity.iloc[-1])
    assert "Walk-forward of" in repr(w) and w.plot_choices() is not None


def test_sessions_of_minutes_and_a_rule_of_ones_own():
    minutes = tb.prepare(simulate(sessions=24, freq="5min", seed=1)[0])
    last = walkforward(
        "sma_cross", minutes, fast=[3, 6], slow=[12, 24], train=6, test=3, unit="sessions", select=lambda s, sets: [3]
    )
    assert len(last) == 6 and all((k == [3]).all() for k in last.chosen)
    assert all(minutes.clock[f.test[0], 1] == 0 for f in last.folds)
    with pytest.raises(EngineError, match="numbers of sets"):
        walkforward(
            "sma_cross", minutes, fast=[3], slow=[12], train=6, test=3, unit="sessions", select=lambda s, sets: [9]
        )


def test_a_plateau_averages_over_neighbours_alone():
    sets = pd.DataFrame(dict(a=np.repeat([1, 2, 4], 2), b=["x", "y"] * 3))
    s = np.array([1.0, 0.0, 3.0, 0.0, 5.0, np.nan])
    assert plateau(s, sets)[[0, 2, 4]].tolist() == [2.0, 3.0, 4.0] and np.isnan(plateau(s, sets)[5])
    assert chosen_sets(s, sets, "best", 2).tolist() == [4, 2]
    assert chosen_sets(np.array([1.0, 1.0]), sets.iloc[:2]).tolist() == [0]


def test_stability_measures_the_moves(walked):
    w, values = walked, walked.frame["slow"]
    s = w.stability.loc["slow"]
    assert s["changes"] == pytest.approx((values.diff().iloc[1:] != 0).mean())
    steps = values.diff().abs().iloc[1:]
    assert s["move"] == pytest.approx(steps[steps > 0].mean() / 120) and s["distinct"] == values.nunique()


@pytest.mark.parametrize(
    "given_, error, says",
    [
        (dict(metric="sharp"), EngineError, "did you mean sharpe"),
        (dict(top=0), EngineError, "top = 0"),
        (dict(purge=-1), EngineError, "purge = -1"),
        (dict(train=5000), DataError, "too few"),
        (dict(select="worst"), EngineError, "select = 'worst'"),
        (dict(at_end="keep"), EngineError, "at_end"),
        (dict(fats=[5]), StrategyError, "fats"),
    ],
)
def test_wrong_studies_say_why(bars, given_, error, says):
    with pytest.raises(error, match=says):
        walkforward(WalkedCross, bars, **dict(WINDOWS, **GRID) | given_)


# combinatorial splits


def test_sums_of_stretches_are_the_sharpe_ratios():
    rng = np.random.default_rng(3)
    r = rng.normal(0.0003, 0.01, (700, 90))
    r[:, 5] = 0.0
    folds = cpcv_splits(700, 6, 2, horizon=7, embargo=9)
    c = choice_under_splits(r, folds)
    for i, f in enumerate(folds):
        inside = np.array([m.sharpe(r[f.train, k], 252) for k in range(90)])
        assert c.chosen[i] == np.nanargmax(inside)
        np.testing.assert_allclose(c.frame["in_sample"].iloc[i], np.nanmax(inside), rtol=1e-9)
        outside = np.array([m.sharpe(r[f.test, k], 252) for k in range(90)])
        np.testing.assert_allclose(c.frame["out_of_sample"].iloc[i], outside[c.chosen[i]], rtol=1e-9)
        others = np.delete(outside, [c.chosen[i], 5])
        assert c.frame["rank"].iloc[i] == pytest.approx((others < outside[c.chosen[i]]).mean())
    whole = folds.assemble([r[f.test, k] for f, k in zip(folds, c.chosen, strict=True)])
    assert (c.path_returns == whole).all()
    np.testing.assert_allclose(c.paths["sharpe"], [m.sharpe(whole[:, j], 252) for j in range(5)], rtol=1e-9)
    assert c.figures["probability_of_loss"] == (np.prod(1 + whole, axis=0) < 1).mean()


def test_cpcv_of_a_strategy(bars):
    c = cpcv(WalkedCross, bars, groups=6, k=2, embargo=10, costs=COSTS, **GRID)
    assert len(c) == 15 and len(c.paths) == 5 and c.returns is c.source.values
    assert {"fast", "slow", "in_sample", "out_of_sample"} <= set(c.frame.columns)
    assert len(c.plot().data) == 5 and len(c.plot_distribution().data) == 2 and "15 splits" in repr(c)


def test_a_good_set_is_found_and_noise_is_not():
    rng = np.random.default_rng(1)
    r = rng.normal(0, 0.01, (2000, 40))
    noise = choice_under_splits(r, cpcv_splits(2000, 8, 2)).figures
    r[:, 7] += 0.002
    good = choice_under_splits(r, cpcv_splits(2000, 8, 2))
    assert (good.chosen == 7).all() and good.figures["sharpe"] > 2 and good.figures["probability_of_loss"] == 0
    assert noise["in_sample"] > noise["sharpe"] + 0.4


def test_sets_that_never_trade_choose_nothing():
    c = choice_under_splits(np.zeros((100, 3)), cpcv_splits(100, 4, 2))
    assert (c.chosen == -1).all() and (c.path_returns == 0).all() and "chose nothing" in c.warnings[0]
    with pytest.raises(DataError, match="shape"):
        choice_under_splits(np.zeros((99, 3)), cpcv_splits(100, 4, 2))
    with pytest.raises(DataError, match="missing"):
        choice_under_splits(np.full((100, 3), np.nan), cpcv_splits(100, 4, 2))


# the job, the page, the command


def test_the_page_tells_the_study(bars):
    job = WalkForwardJob(
        strategy="sma_cross", data="AAPL", start="2003", end="2010", ranges=GRID, top=2, embargo="10D", anchored=True
    )
    study = run_walkforward(job)
    page = walkforward_page(study, dict(Study="x"))
    for text in (
        "Walk-forward report",
        "9 sets of parameters",
        "the best 2 in equal parts",
        "embargo 10D",
        "Buy and hold",
        "Provenance",
    ):
        assert text in page
    assert page.count('class="plot') == 3 and "http://" not in page.split("<script>")[0].replace(
        "http://www.w3.org", ""
    )


def test_the_runner_may_be_any_and_has_to_write_a_report(tmp_path, monkeypatch):
    from tradebench.backtest import execute as module

    with pytest.raises(RunError, match="lacks runners/nothing.ipynb"):
        execute("nothing", {}, tmp_path / "a")
    cells = [
        dict(
            cell_type="code",
            id="p",
            source="out = ''\nn = 1",
            metadata=dict(tags=["parameters"]),
            outputs=[],
            execution_count=None,
        )
    ]
    source = "from pathlib import Path\nif n == 2:\n    Path(out, 'report.html').write_text('page')"
    cells.append(dict(cell_type="code", id="c", source=source, metadata={}, outputs=[], execution_count=None))
    book = tmp_path / "own.ipynb"
    book.write_text(
        json.dumps(
            dict(
                cells=cells,
                metadata=dict(kernelspec=dict(name="python3", display_name="Python 3", language="python")),
                nbformat=4,
                nbformat_minor=5,
            )
        )
    )
    monkeypatch.setattr(module, "runner", lambda name="": book)
    with pytest.raises(RunError, match="wrote no report.html"):
        execute("own", {}, tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()
    made = execute("own", dict(n=2), tmp_path / "b", progress=False)
    assert sorted(p.name for p in made.iterdir()) == ["own.ipynb", "report.html"]


def test_the_command_leaves_a_folder(tmp_path, capfd):
    from tradebench.cli import main, shell  # noqa: F401 - main registers the verbs

    out = tmp_path / "study"
    line = "walkforward sma_cross --data AAPL --start 2003 --end 2008 -p fast=5:25:10 slow=50,100 --train 400 --test 150 --embargo 5D"
    assert shell.run_app([*line.split(), "--out", str(out)]) == 0
    said = capfd.readouterr().out
    assert "sma_cross on AAPL: 6 sets, refitted 7 times" in said and str(out / "report.html") in said
    names = ["equity.parquet", "folds.parquet", "report.html", "sets.parquet", "study.json", "walkforward.ipynb"]
    assert sorted(p.name for p in out.iterdir()) == names
    about = json.loads((out / "study.json").read_text())
    assert about["kind"] == "walkforward" and about["job"]["ranges"] == dict(fast=[5, 15, 25], slow=[50, 100])
    again = run_walkforward(WalkForwardJob(**about["job"])).result
    folds = pd.read_parquet(out / "folds.parquet")
    pd.testing.assert_frame_equal(folds.set_index("fold"), again.frame, check_exact=True)
    book = json.loads((out / "walkforward.ipynb").read_text())
    assert str(tmp_path) not in json.dumps(book["metadata"]) and about["seconds"]["total"] > 0


def test_the_command_quickly_and_wrongly(capsys):
    from tradebench.cli import main, shell  # noqa: F401

    line = "walkforward sma_cross --data AAPL --start 2003 --end 2008 -p fast=5,15 slow=50 --quick"
    assert shell.run_app(line.split()) == 0 and "Buy and hold" in capsys.readouterr().out
    for wrong, says in (
        ("walkforward sma_cross", "walk forward over what?"), ("walkforward sma_cross -p fast=5:10 --metric sharp", "did you mean sharpe"),
        ("walkforward sma_cross -p fast=5:10 --quick --out x", "--quick leaves no folder"), ("walkforward sma_cross -p fast=5:10 --unit days", "bars or sessions"),
    ):  # fmt: skip
        assert shell.run_app(wrong.split()) == 2
        assert says in (err := capsys.readouterr().err) and err.count("\n") == 1
