"""Figures: what they show is what the result says, extremes survive thinning, and the size stays small."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from backtest_fake import fake_result, flat_result
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("plotly", reason="plotly is in the lab extra")
from tradebench.backtest import canvas, plots  # noqa: E402
from tradebench.backtest.metrics import drawdown  # noqa: E402
from tradebench.errors import DataError  # noqa: E402

ALL = (plots.plot, plots.equity, plots.underwater, plots.price, plots.monthly, plots.trade_distribution, plots.mae_mfe)
ALL += (plots.rolling_sharpe, plots.exposure)


@pytest.fixture(scope="module")
def million():
    return fake_result(1_000_000, "min", hold=300, seed=2)


def trace(fig, name):
    return next(t for t in fig.data if t.name == name)


def test_importing_plots_does_not_import_plotly():
    code = "import sys; import tradebench.backtest.plots; assert 'plotly' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("draw", ALL)
@pytest.mark.parametrize("bars", [1, 2, 30])
def test_every_figure_draws_a_result_without_trades(draw, bars):
    assert draw(flat_result(bars)).to_json()


@pytest.mark.parametrize("draw", ALL)
def test_every_figure_of_a_million_bars_is_small_and_thinned(draw, million):
    fig = draw(million)
    assert len(fig.to_json()) < 900_000
    assert all(len(t.x) < 6_500 for t in fig.data if getattr(t, "x", None) is not None)


@settings(max_examples=60, deadline=None)
@given(
    y=arrays(float, st.integers(1, 400), elements=st.one_of(st.just(np.nan), st.integers(-9, 9).map(float))),
    points=st.integers(4, 60),
)
def test_thinning_keeps_ends_and_extremes_of_every_bucket(y, points):
    at = canvas.thin(y, points=points)
    assert at[0] == 0 and at[-1] == len(y) - 1 and (np.diff(at) > 0).all()
    if len(y) > points:
        assert len(at) <= points + 4
        size = -(-len(y) // (points // 2))
        for start in range(0, len(y), size):
            part = y[start : start + size]
            if np.isfinite(part).any():
                kept = y[at[(at >= start) & (at < start + size)]]
                assert np.nanmin(kept) == np.nanmin(part) and np.nanmax(kept) == np.nanmax(part)


def test_the_deepest_drawdown_and_the_extremes_of_every_marked_trade_survive(million):
    fig = plots.plot(million)
    dd = drawdown(million.equity.to_numpy(), million.initial)
    assert trace(fig, "Drawdown").y.min() == dd.min()
    low, high = [t for t in fig.data if t.name == "Range"]
    raw, ts = million.bars.raw[:, 0], million.bars.ts
    shown = plots.shown_trades(million, "SIM")
    assert len(shown) == plots.MARKERS and set(shown.pnl.abs()) == set(million.trades.pnl.abs().nlargest(plots.MARKERS))
    for t in shown.itertuples():
        a, b = np.searchsorted(ts, [t.entry_ts.value, t.exit_ts.value])
        inside = (low.x >= ts[a] / 1e6) & (low.x < ts[b] / 1e6)  # a stretch reaches to the next point
        assert low.y[inside].min() == raw[a:b, 2].min() and high.y[inside].max() == raw[a:b, 1].max()


def test_markers_stand_at_the_prices_and_times_of_the_trades():
    r = fake_result(900, hold=30, seed=1)
    fig, t = plots.price(r), r.trades
    long, done = t[t.side > 0], t[~t.open & (t.pnl > 0)]
    np.testing.assert_allclose(trace(fig, "Long entry").y, long.entry_price)
    np.testing.assert_allclose(trace(fig, "Long entry").x, long.entry_ts.astype("int64") / 1e6)
    np.testing.assert_allclose(trace(fig, "Exit with gain").y, done.exit_price)
    assert "stop" in " ".join(trace(fig, "Exit with gain").text) + " ".join(trace(fig, "Exit with loss").text)


def test_prices_are_back_adjusted_and_hover_text_is_raw():
    r = fake_result(900, hold=30, seed=1)
    first = r.trades.iloc[0]
    split = np.searchsorted(r.bars.ts, first.entry_ts.value) + 5  # within the first trade
    r.bars.factor = np.where(np.arange(900) < split, 1.0, 2.0)[:, None]
    fig = plots.price(r)
    assert trace(fig, "SIM").y[-1] == r.bars.raw[-1, 0, 3] and trace(fig, "SIM").y[0] == r.bars.raw[0, 0, 3] / 2
    entry = trace(fig, "Long entry" if first.side > 0 else "Short entry")
    leave = trace(fig, "Exit with gain" if first.pnl > 0 else "Exit with loss")
    assert entry.y[0] == pytest.approx(first.entry_price / 2) and f"{first.entry_price:,.6g}" in entry.text[0]
    assert leave.y[0] == pytest.approx(first.exit_price)


def test_stop_levels_come_from_the_order_that_opened_the_trade():
    r = fake_result(900, hold=30, seed=1)
    assert (np.sign(r.positions.SIM).diff().abs() == 2).any()  # some fills close one trade and open the next
    stop, take = trace(plots.price(r), "Stop").y, trace(plots.price(r), "Take").y
    np.testing.assert_allclose(stop[::3], r.trades.entry_price * 0.97)
    np.testing.assert_allclose(take[1::3], r.trades.entry_price * 1.05)
    assert np.isnan(stop[2::3]).all()


def test_a_benchmark_starts_from_the_same_capital_and_none_can_be_asked_for():
    r = fake_result(300)
    names = [t.name for t in plots.equity(r).data]
    assert names == ["Equity", "Buy and hold SIM"] and plots.equity(r).data[1].y[0] == r.initial
    assert [t.name for t in plots.equity(r, benchmark=False).data] == ["Equity"]


def test_the_log_button_is_absent_after_ruin():
    r = fake_result(300)
    assert plots.equity(r, log=True).layout.yaxis.type == "log" and plots.equity(r).layout.updatemenus
    r.equity = r.equity - r.equity.iloc[150]
    fig = plots.equity(r, log=True)
    assert fig.layout.yaxis.type == "linear" and not fig.layout.updatemenus
    assert np.isnan(plots.monthly(r).data[0].z.astype(float)).any() and plots.exposure(r).to_json()


def test_rolling_sharpe_equals_pandas():
    from tradebench.backtest.charts import rolling_sharpe_values

    r = fake_result(700, seed=9).returns
    want = r.rolling(50).mean() / r.rolling(50).std() * 252**0.5
    np.testing.assert_allclose(rolling_sharpe_values(r, 50, 252), want, rtol=1e-8, atol=1e-6)
    assert np.isnan(rolling_sharpe_values(np.zeros(99), 10, 252)).all()


def test_histogram_counts_each_closed_trade_once_and_never_mixes_signs(million):
    fig = plots.trade_distribution(million)
    assert sum(t.y.sum() for t in fig.data) == (~million.trades.open).sum()
    loss, gain = trace(fig, "Losses"), trace(fig, "Gains")
    assert loss.x[loss.y > 0].max() < 0 < gain.x[gain.y > 0].min()


def test_nights_and_weekends_are_left_out_of_short_intraday_axes_only():
    week = fake_result(1950, "min").equity.index
    assert len(canvas.date_axis(week)["rangebreaks"]) == 2
    assert "rangebreaks" not in canvas.date_axis(fake_result(500).equity.index)
    crypto = pd.date_range("2024-01-01", periods=5000, freq="min", tz="UTC", unit="ns")
    assert not canvas.date_axis(crypto)["rangebreaks"]


def test_parameter_heat_map_shows_the_median_and_rings_the_best():
    frame = pd.DataFrame([(f, s, k, f * s + k) for f in (1, 2, 3) for s in (10, 20) for k in (0, 1, 8)])
    frame = frame.set_axis(["fast", "slow", "k", "sharpe"], axis=1)
    fig = plots.heatmap(frame, "fast", "slow", "sharpe")
    assert fig.data[0].z.tolist() == [[11, 21, 31], [21, 41, 61]] and (fig.data[1].x[0], fig.data[1].y[0]) == (3, 20)
    with pytest.raises(DataError, match="no column 'calmar'"):
        plots.heatmap(frame, "fast", "slow", "calmar")
    with pytest.raises(DataError, match="no finite"):
        plots.heatmap(frame.assign(sharpe=np.nan), "fast", "slow", "sharpe")


def test_no_figure_offers_to_upload_its_data_to_a_vendor():
    assert "sendChartToCloud" in plots.plot(fake_result(50)).layout.template.layout.modebar.remove


def test_an_unknown_symbol_is_named():
    with pytest.raises(DataError, match="no symbol 'XYZ'.*SIM"):
        plots.price(fake_result(50), "XYZ")
