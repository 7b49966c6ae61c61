"""The call that everyone uses: what it takes, what it refuses, and that every way of saying the same gives the same result."""

import numpy as np
import pandas as pd
import pytest

import tradebench as tb
from tradebench.data.simulator import simulate
from tradebench.errors import DataError, EngineError, StrategyError
from tradebench.features.indicator import SMA, sma
from tradebench.params import param

FREE = tb.Costs()
FIELDS = ["open", "high", "low", "close", "volume"]


@tb.strategy
class CallCross:
    "Long while the fast average is above the slow one."

    fast = param(5, 1, 50, "bars in the fast average")
    slow = param(20, 2, 100, "bars in the slow average")
    where = "fast < slow"
    state = dict(f=SMA("fast"), s=SMA("slow"))

    def step(s, p, row):
        return tb.long_if(sma(s.f, row.close) > sma(s.s, row.close))


@tb.pandas_strategy
def call_cross_pandas(bars, fast=param(5, 1, 50, "fast"), slow=param(20, 2, 100, "slow")):
    "The same in pandas"
    f, s = SMA(fast)(bars.close), SMA(slow)(bars.close)
    return (f > s).astype(float).where(s.notna())


@pytest.fixture(scope="module")
def frame():
    return simulate(sessions=120, freq="session", seed=9)[0]


@pytest.fixture(scope="module")
def three():
    parts = {s: simulate(sessions=80, freq="session", seed=k, symbol=s)[0] for k, s in enumerate(("AA", "BB", "CC"))}
    return pd.concat(parts, axis=1, names=["symbol", "field"])


@pytest.fixture(scope="module")
def traded():
    return [tb.Instrument(s, calendar="XNYS") for s in ("AA", "BB", "CC")]


def same(a, b):
    pd.testing.assert_series_equal(a.equity, b.equity, check_exact=True)
    pd.testing.assert_frame_equal(a.fills, b.fills, check_exact=True)


def test_class_instance_and_prepared_bars_give_the_same(frame):
    a = tb.backtest(CallCross, frame, costs=FREE)
    same(a, tb.backtest(CallCross(fast=5, slow=20), frame, costs=FREE))
    same(a, tb.backtest(CallCross(), tb.prepare(frame), costs=FREE))
    same(a, tb.backtest("call_cross", frame, costs=FREE))
    assert len(a.fills) > 4


def test_target_series_follows_the_strategy(frame):
    f, s = SMA(5)(frame.close), SMA(20)(frame.close)
    target = (f > s).astype(float).where(s.notna())
    same(tb.backtest(CallCross, frame, costs=FREE), tb.backtest(target=target, bars=frame, costs=FREE))


def test_pandas_strategy_equals_the_compiled_one(frame):
    same(tb.backtest(CallCross, frame, costs=FREE), tb.backtest(call_cross_pandas, frame, costs=FREE))


def test_entries_and_exits_equal_targets(frame):
    up = frame.close > frame.close.rolling(10).mean()
    e, x = up & ~up.shift(fill_value=False), ~up & up.shift(fill_value=False)
    target = pd.Series(np.where(e, 1.0, np.where(x, 0.0, np.nan)), frame.index)
    same(
        tb.backtest(entries=e, exits=x, bars=frame, costs=FREE),
        tb.backtest(target=target, bars=frame, costs=FREE, reentry="always"),
    )


def test_orders_are_bought_and_sold_as_given(frame):
    orders = pd.Series(0.0, frame.index)
    orders.iloc[[3, 7, 12]] = [100, 50, -150]
    r = tb.backtest(orders=orders, bars=frame, costs=FREE)
    assert r.fills.qty.tolist() == [100, 50, -150]
    assert (r.fills.price == frame.open.iloc[[4, 8, 13]].to_numpy()).all()
    by_hand = r.initial - (r.fills.qty * r.fills.price).sum()
    np.testing.assert_allclose(r.equity.iloc[-1], by_hand, rtol=1e-12)


def test_repeated_orders_of_one_size_all_count(frame):
    orders = pd.Series(0.0, frame.index)
    orders.iloc[[2, 3, 4, 5]] = 10
    assert tb.backtest(orders=orders, bars=frame, costs=FREE).positions.iloc[-1, 0] == 40


def test_weights_share_one_account(three, traded):
    weights = pd.DataFrame(np.nan, three.index, ["AA", "BB", "CC"])
    weights.iloc[0] = [0.5, 0.3, 0.2]
    weights.iloc[40] = [0.2, 0.3, 0.5]
    r = tb.backtest(weights=weights, bars=tb.prepare(three, instruments=traded), costs=FREE)
    close = three.xs("close", axis=1, level="field")
    worth = (r.positions * close).iloc[1] / r.equity.iloc[1]
    np.testing.assert_allclose(worth, [0.5, 0.3, 0.2], atol=0.03)
    assert r.exposure.gross.max() <= 1.05 and len(r.fills) == 5  # BB keeps its target
    again = tb.backtest(weights=weights, bars=tb.prepare(three, instruments=traded), costs=FREE, band=0.0)
    assert len(again.fills) == 6


def test_missing_symbol_columns_mean_no_position(three, traded):
    weights = pd.DataFrame(1.0, three.index, ["BB"])
    r = tb.backtest(weights=weights, bars=tb.prepare(three, instruments=traded), costs=FREE)
    assert set(r.fills.symbol) == {"BB"}


@tb.strategy
class NeedsInput:
    "Long while the model says so."

    inputs = dict(prob=tb.column(max_age=2, meaning="probability"))

    def step(s, p, row):
        return tb.hold() if row.prob != row.prob else tb.long_if(row.prob > 0.5)


def test_inputs_come_from_columns_and_grow_old(frame):
    prob = pd.Series(np.nan, frame.index)
    prob.iloc[[5, 20]] = [0.9, 0.1]
    r = tb.backtest(NeedsInput, frame.assign(prob=prob), costs=FREE, trace=True)
    seen = r.trace
    assert seen.prob.iloc[5:8].tolist() == [0.9] * 3 and np.isnan(seen.prob.iloc[8])
    assert seen.prob_age.iloc[[4, 5, 9]].tolist() == [-1.0, 0.0, 4.0]
    assert [t for t in r.fills.ts] == [frame.index[6], frame.index[21]]


def test_missing_input_is_named(frame):
    with pytest.raises(StrategyError, match="needs the input 'prob'"):
        tb.backtest(NeedsInput, frame, costs=FREE)


def test_no_decision_before_the_warm_up(frame):
    @tb.strategy
    class Eager:
        "Short unless something is known to be above something"

        n = param(30, 2, 50, "bars")
        state = dict(m=SMA("n"))

        def step(s, p, row):
            return tb.decide(1.0) if row.close > sma(s.m, row.close) else tb.decide(-1.0)

    assert tb.backtest(Eager, frame, costs=FREE).fills.ts.iloc[0] == frame.index[30]


BAD = {
    "two ways at once": (dict(strategy=CallCross, target=1.0), EngineError, "not both"),
    "nothing to run": (dict(), EngineError, "backtest what"),
    "unknown option": (dict(strategy=CallCross, leverag=2), EngineError, "no argument 'leverag'"),
    "option out of its choices": (dict(strategy=CallCross, on_cash="borrow"), EngineError, "choose one of cut, refuse"),
    "costs of a wrong kind": (dict(strategy=CallCross, costs=0.001), EngineError, "give Costs"),
    "costs missing a symbol": (dict(strategy=CallCross, costs={"XX": FREE}), EngineError, "none given for 'SIM'"),
    "no money": (dict(strategy=CallCross, initial=0), EngineError, "starts with money"),
    "orders and exits": (dict(orders=1.0, exits=1.0), EngineError, "cannot go with exits"),
    "target out of range": (dict(target=1.5), EngineError, r"outside \[-1, 1\]"),
    "unknown strategy": (dict(strategy="sma_cros"), StrategyError, "sma_cros"),
    "rows that are not in the bars": (
        dict(target=pd.Series(1.0, pd.DatetimeIndex(["2001-01-01"], tz="UTC"))), StrategyError, "not in the bars"),
    "a column of another length": (dict(target=np.ones(3)), StrategyError, "expected 120 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_are_answered_in_one_line(case, frame):
    given, error, text = BAD[case]
    with pytest.raises(error, match=text) as e:
        tb.backtest(bars=frame, **given)
    assert "\n" not in str(e.value)


def test_empty_range_and_dirty_bars_are_named(frame):
    with pytest.raises((EngineError, DataError), match="empty|no bars"):
        tb.backtest(CallCross, frame.iloc[:0], costs=FREE)
    dirty = frame.copy()
    dirty.iloc[7, 3] = -1.0
    with pytest.raises(DataError, match="row 7"):
        tb.backtest(CallCross, dirty, costs=FREE)


def test_two_currencies_are_refused(three):
    money = [
        tb.Instrument("AA", calendar="XNYS"),
        tb.Instrument("BB", calendar="XNYS", currency="EUR"),
        tb.Instrument("CC", calendar="XNYS"),
    ]
    with pytest.raises(EngineError, match="EUR, USD"):
        tb.backtest(weights=pd.DataFrame(0.1, three.index, ["AA"]), bars=tb.prepare(three, instruments=money))


def test_warnings_say_what_a_reader_must_know(frame):
    r = tb.backtest(CallCross, frame, costs=FREE, fill="close")
    text = " ".join(r.warnings)
    assert "comparison" in text and "no costs" in text and "simulated" in text
    assert "nothing was traded" in " ".join(tb.backtest(target=0.0, bars=frame).warnings)


def test_default_costs_come_from_settings_and_instrument(frame):
    r = tb.backtest(CallCross, frame)
    assert r.costs["fees"] > 0 and r.costs["spread"] > 0 and r.costs["slippage"] > 0
    dear = tb.Instrument("SIM", calendar="XNYS", fees={"fee_bps": 50})
    assert tb.backtest(CallCross, tb.prepare(frame, instruments=[dear])).costs["fees"] > 20 * r.costs["fees"]


def test_result_is_shown_in_a_notebook(frame):
    r = tb.backtest(CallCross, frame, costs=FREE)
    assert "Sharpe" in repr(r) and "<table" in r._repr_html_() and r.plot().data


def test_200_backtests_leave_memory_flat(frame):
    psutil = pytest.importorskip("psutil")
    bars, me = tb.prepare(frame), psutil.Process()
    for k in range(260):
        if k == 60:
            before = me.memory_info().rss
        tb.backtest(CallCross, bars, costs=FREE)
    assert me.memory_info().rss - before < 5 * 2**20


def test_a_live_call_is_the_entry_on_one_batch(frame):
    from tradebench.backtest.simulation import simulation
    from tradebench.jit import address, entry

    sim = simulation(CallCross, frame, costs=FREE)
    sim.advance(50)
    call = entry(CallCross.entry_function())
    sim.batch["t"], sim.batch["state"], sim.batch["params"] = 50, address(sim.state), address(sim.params)
    sim.batch["always"] = 1
    assert call(address(sim.batch)) in (0, 1) and sim.out["target"][0] in (0.0, 1.0)


def test_vectorbt_is_not_needed_to_import():
    import subprocess
    import sys

    code = "import tradebench, sys; assert not {'numba', 'pandas', 'vectorbt', 'plotly'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_step_that_fails_stops_the_run_and_says_where_to_look(frame):
    @tb.strategy
    class Falls:
        "Returns nothing on one path"

        def step(s, p, row):
            if row.close > 0:
                raise ValueError("too high")
            return tb.flat()

    with pytest.raises(EngineError, match="the step failed; run it with debug=True"):
        tb.backtest(Falls, frame, costs=FREE)
    with pytest.raises(ValueError, match="too high"):
        tb.backtest(Falls, frame, costs=FREE, debug=True)


def test_debug_runs_what_cannot_be_compiled(frame):
    @tb.strategy
    class Prints:
        "Uses a list"

        def step(s, p, row):
            return tb.long_if([row.close, 1.0][0] > 0 and len({"a": 1}) == 1)

    assert len(tb.backtest(Prints, frame, costs=FREE, debug=True).fills) == 1


def test_a_rule_about_no_parameter_is_refused():
    with pytest.raises(StrategyError, match="the rule 'a < b' cannot be read"):

        @tb.strategy
        class Ruled:
            "x"

            where = "a < b"

            def step(s, p, row):
                return tb.flat()


def test_a_field_that_is_not_there_is_named(frame):
    @tb.strategy
    class Typo:
        "x"

        level = param(1.0, 0.0, 2.0, "level")

        def step(s, p, row):
            return tb.long_if(row.close > p.levle)

    with pytest.raises(StrategyError, match="no field 'levle'"):
        tb.backtest(Typo, frame, costs=FREE)


def test_what_a_newcomer_gets_wrong_is_answered(frame):
    with pytest.raises(StrategyError, match="signals are True or False"):
        tb.backtest(entries=frame.close, exits=frame.close > 0, bars=frame, costs=FREE)
    with pytest.raises(EngineError, match="0.2 for 20 %"):
        tb.Limits(max_drawdown=20)
    up = (frame.close > frame.close.shift()).tolist()
    assert len(tb.backtest(entries=up, exits=[not u for u in up], bars=frame, costs=FREE).fills) > 2
    stock = tb.load("AAPL")
    with pytest.raises((DataError, EngineError), match="no bars|empty|no rows"):
        tb.backtest(CallCross, stock.iloc[:0], costs=FREE)
    assert "splits lie in the span" in " ".join(tb.backtest(weights=1.0, bars=stock, costs=FREE).warnings)


def test_a_file_with_a_header_alone_is_named(tmp_path):
    (tmp_path / "header.csv").write_text("ts,open,high,low,close,volume\n")
    with pytest.raises(DataError, match="no rows"):
        tb.load(tmp_path / "header.csv", stamp="end", tz="UTC")
