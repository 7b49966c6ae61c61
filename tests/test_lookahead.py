"""The look-ahead hunt: each leak in tests/leaks is caught and named, its clean twin passes, and so does the whole catalogue."""

import json
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markets import several

from tradebench.cli import main, shell  # noqa: F401 - main registers the verbs
from tradebench.codefiles import load_file
from tradebench.data.bars import prepare
from tradebench.data.simulator import simulate
from tradebench.data.sources import load
from tradebench.errors import StrategyError
from tradebench.validation.futures import FUTURES, Change, FrameFutures
from tradebench.validation.lookahead import first_leak, hunt
from tradebench.validation.lookahead_catalogue import hunt_all, summary, targets

LEAKS = Path(__file__).parent / "leaks"
ROWS = 300


@cache
def bars_of(kind):
    if kind == "half_hours":
        return prepare(simulate(sessions=20, seed=3, freq="30min", start="2015-02-02")[0])
    if kind == "three":
        bars = several((1, 2, 3), sessions=220, freq="1D")
        universe = pd.DataFrame(True, bars.index, ["A", "B", "C"])
        universe.loc[bars.index[60:140], "C"] = False
        return prepare(bars, universe=universe)
    if kind == "split":
        return load("AAPL", start="2004-06-01", end="2005-12-31")
    bars = prepare(load("IBM", start="2003-01-01", end="2005-12-31"))
    bars = bars.window(end=bars.index[ROWS - 1])
    if kind == "news":
        rng = np.random.default_rng(2)
        news = rng.choice([-1, 0, 0, 0, 0, 1], ROWS)
        return bars.frame("seen").assign(news=news, rating=rng.choice(["buy", "hold", "sell"], ROWS))
    if kind == "known":
        frame = bars.frame("seen")
        frame.attrs["sum"] = float(frame.close.to_numpy() @ np.arange(ROWS))
        return frame
    return bars


def cases():
    return list(_cases())


def _cases():
    for path in sorted(LEAKS.glob("*.py")):
        for name, case in load_file(path, "CASES").CASES.items():
            yield pytest.param(path, name, case, id=name)


def hunted(path, name, case, **how):
    make = case.get("make")
    make = getattr(load_file(path, make), make + "_clean" * name.endswith("_clean")) if make else None
    kind = "known" if name == "never_twice" else case.get("on", "daily")
    return hunt(f"{path}:{name}", bars_of(kind), make=make, **how)


@pytest.mark.parametrize("path, name, case", cases())
def test_each_leak_is_caught_and_named(path, name, case):
    report = hunted(path, name, case, cuts=case.get("cuts", 30))
    assert not report.clean
    found = {f.column: f for f in report.findings}
    kind = case.get("kind", "look-ahead")
    assert case["column"] in found, found
    f = found[case["column"]]
    assert f.kind == kind
    assert f.inputs == case.get("inputs", ())
    if "bar" in case:
        assert f.bar == case["bar"]
    if case.get("ahead") == "end":
        assert f.to_the_end
    elif "ahead" in case:
        assert f.ahead == case["ahead"]
    if "via" in case:
        assert case["via"] in f.detail
    if "needed" in case:
        assert f"needs {case['needed']} " in f.detail
    assert all(g.kind == kind for g in report.findings)  # and nothing else is blamed for it
    assert f.column in repr(report) and f.column in report._repr_html_() and len(report.frame) == len(report.findings)


@pytest.mark.parametrize("path, name, case", cases())
def test_the_clean_twin_passes(path, name, case):
    report = hunted(path, name + "_clean", case, cuts=15)
    assert report.clean, report
    assert "clean" in repr(report) and report.frame.empty


@pytest.mark.slow
@pytest.mark.parametrize("path, name, case", cases())
def test_the_clean_twin_passes_at_every_bar(path, name, case):
    assert hunted(path, name + "_clean", case, cuts="every").clean


def test_there_are_enough_of_them():
    assert len(cases()) >= 50


# ---- what the hunt does


def test_a_single_bar_is_found_by_all_cuts_and_only_by_them():
    path = LEAKS / "features.py"
    assert hunt(f"{path}:single_bar", bars_of("daily"), cuts=[200, 217, 219, 250]).clean
    for cuts in ("every", "bars", [218]):
        assert hunt(f"{path}:single_bar", bars_of("daily"), cuts=cuts).first.bar == 217
    turns = hunt(f"{path}:single_bar", bars_of("daily"), cuts="bars", budget=0)
    assert turns.first.bar == 217 and "in turn" in turns.coverage


@settings(max_examples=8)
@given(st.integers(0, 98), st.sampled_from(["open", "high", "low", "close", "volume"]), st.booleans())
def test_any_single_bar_of_any_input_is_found(row, column, yes_or_no):
    "Also a mere yes or no about the next bar"

    def leaking(bars):
        out = bars.close.rolling(5).mean()
        if len(bars) > row + 1:
            x = bars[column]
            out.iloc[row] = float(x.iloc[row + 1] > x.iloc[row]) if yes_or_no else x.iloc[row + 1]
        return out

    bars = bars_of("daily")
    leak = hunt(leaking, bars.window(end=bars.index[99]), budget=0, cuts="bars", settle=None).first
    assert (leak.bar, leak.inputs, leak.ahead) == (row, (column,), (1, 1))


@settings(max_examples=8)
@given(st.integers(1, 40), st.integers(0, 20))
def test_reach_is_told_exactly(near, more):
    def window(bars):
        x = bars.close[::-1].rolling(more + 1).sum()[::-1]
        return x.shift(-near)

    leak = first_leak(window, bars_of("daily"), cuts="every")
    assert leak.ahead == (near, near + more) and leak.bar == 0


def test_the_earliest_of_few_cuts_is_searched_by_halves():
    def late_on(bars):
        out = bars.close.diff()
        out.iloc[150:] = bars.close.shift(-1).iloc[150:]
        return out

    assert first_leak(late_on, bars_of("daily"), cuts=6).bar == 150


def test_each_column_is_reported_once_and_the_earliest_first():
    path = LEAKS / "features.py"

    def many(bars):
        features = load_file(path, "CASES")
        return pd.concat([features.centred_window(bars), features.next_close(bars)], axis=1)

    report = hunt(many, bars_of("daily"))
    assert [(f.column, f.bar) for f in report.leaks] == [("ret", 0), ("value", 5)] and len(report.columns) == 3


@pytest.mark.parametrize("kind", ["daily", "news", "half_hours", "three", "split"])
def test_futures_leave_the_past_and_the_types_alone(kind):
    frame = bars_of(kind)
    frame = frame if isinstance(frame, pd.DataFrame) else frame.frame("seen")
    later = FrameFutures(frame)
    for cut in (1, len(frame) // 2, len(frame) - 1):
        for future in FUTURES:
            other = later(Change(cut, future))
            pd.testing.assert_frame_equal(other.iloc[:cut], frame.iloc[:cut], check_dtype=False, check_flags=False)
            assert list(other.columns) == list(frame.columns)
            assert len(other) == (cut if future == "removed" else len(frame))
            if future in ("random", "mirrored"):
                assert list(other.dtypes) == list(frame.dtypes)
                if "high" in frame:
                    assert (other.high >= other[["open", "close", "low"]].max(axis=1) * (1 - 1e-12)).all()


def test_results_that_fit_no_bars_are_errors():
    bars = bars_of("daily")
    for wrong, text in (
        (lambda b: np.zeros(len(b) - 1), r"shape \(299,\) for 300 bars"),
        (lambda b: b.close.set_axis(b.index + pd.Timedelta("1h")), "which no bar has"),
        (lambda b: pd.concat([b.close, b.close.iloc[:1]]), "the same stamp twice"),
    ):
        with pytest.raises(StrategyError, match=text):
            hunt(wrong, bars)
    with pytest.raises(StrategyError, match="did you mean sma_cross"):
        hunt("sma_cros", bars)
    with pytest.raises(StrategyError, match="row 0 no past"):
        hunt(lambda b: b.close, bars, cuts=[0])
    with pytest.raises(StrategyError, match='say "auto"'):
        hunt(lambda b: b.close, bars, cuts="all")


def test_errors_on_changed_bars_are_told_and_are_no_leak():
    report = hunt(f"{LEAKS / 'indicators.py'}:never_twice_clean", bars_of("daily"), cuts=10)
    assert report.clean and [e[1] for e in report.errors] == ["nan"] and "there are holes" in repr(report)


def test_a_leak_behind_errors_is_still_found():
    def picky(bars):
        if bars.isna().any(axis=None) or len(bars) < ROWS:
            raise ValueError("no")
        return bars.close.shift(-3)

    leak = first_leak(picky, bars_of("daily"))
    assert leak.ahead == (3, 3) and "nan" not in leak.futures and "removed" not in leak.futures


# ---- the catalogue


@pytest.mark.parametrize("entry", targets(), ids=lambda e: e[1])
def test_the_catalogue_is_clean(entry):
    (report,) = hunt_all(rows=420, entries=[entry], cuts=24)
    assert report.clean, report
    assert not report.errors and not report.notes


@pytest.mark.slow
def test_the_whole_catalogue_on_two_thousand_bars(capsys):
    "Every bar of every entry; prints the time"
    began = time.perf_counter()
    reports = hunt_all(workers=2)
    took = time.perf_counter() - began
    with capsys.disabled():
        print(f"\nlook-ahead hunt of {len(reports)} entries, 2,000 bars, two processes: {took:.0f} s")
    assert all(r.clean and r.bars == 2000 and r.coverage.startswith("every bar") for r in reports)
    assert len(summary(reports)) == len(targets())


# ---- the command


def call(capsys, *args):
    code = shell.run_app(["lookahead", *map(str, args)])
    return code, *capsys.readouterr()


def test_command_names_the_leak_and_exits_with_one(capsys):
    code, out, _ = call(capsys, f"{LEAKS / 'features.py'}:busier_tomorrow", "--data", "IBM", "--bars", 120)
    assert code == 1 and "busier" in out and "volume" in out and "1 bar" in out
    code, out, _ = call(capsys, "sma_cross", "-p", "fast=5", "slow=20", "--data", "IBM", "--bars", 120)
    assert code == 0 and "clean: every bar, every future" in out and "fast=5" in out
    code, out, _ = call(capsys, "macd", "--data", "IBM", "--bars", 120, "--exhaustive", "--json")
    found = json.loads(out)
    assert code == 0 and found["clean"] and found["columns"] == ["macd", "signal", "hist"]
    where = LEAKS / "strategies.py"
    code, out, _ = call(capsys, f"{where}:AboveTheWeek", "--make", f"{where}:week_known_on_monday", "--bars", 120)
    assert code == 1 and "input week" in out


def test_command_explains_mistakes(capsys):
    for args, text in (
        (("nothing_like_it",), "unknown strategy or indicator"),
        (("all", "-p", "fast=5"), "all"),
        (("macd", "--bars", 2), "too few"),
        (("macd", "--exhaustive", "--cuts", "5"), "--exhaustive"),
    ):
        code, _, err = call(capsys, *args)
        assert code == 2 and text in err and len(err.strip().splitlines()) == 1, err
