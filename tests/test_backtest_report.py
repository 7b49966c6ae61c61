"""The page of a result: self-contained, small, safe, complete, and drawn by a real browser without a network."""

import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from backtest_fake import fake_result, flat_result

pytest.importorskip("plotly", reason="plotly is in the lab extra")
from tradebench.backtest import metrics as m  # noqa: E402
from tradebench.backtest.report import break_even_cost, breakdown, cost_table, drawdown_table, report_html  # noqa: E402
from tradebench.errors import DataError  # noqa: E402

SPLITS = ("year", "side", "symbol", "weekday", "hour", "exit_reason")
PROVENANCE = dict(code_hash="c0de", data_hash="da7a", versions=dict(numpy="2.4"))


@pytest.fixture(scope="module")
def result():
    return fake_result(1500, symbols=("AAA", "B&B"), hold=20, seed=3)


@pytest.fixture(scope="module")
def page(result):
    return report_html(result, "A <title>", subtitle="what it is", provenance=PROVENANCE)


@pytest.mark.parametrize("by", SPLITS)
def test_each_breakdown_adds_up_to_all_closed_trades(by, result):
    t, closed = breakdown(result, by), result.trades[~result.trades.open]
    assert t.trades.sum() == len(closed) and t.pnl.sum() == pytest.approx(closed.pnl.sum())
    assert t.costs.sum() == pytest.approx((closed.fees + closed.costs).sum())


def test_hours_and_weekdays_are_those_of_the_exchange():
    r = fake_result(4000, "min", hold=60)
    assert breakdown(r, "hour").index.min() == 9 and breakdown(r, "hour").index.max() == 15
    assert list(breakdown(r, "weekday").index) == ["Mon", "Tue", "Wed", "Thu", "Fri"]
    r.bars.calendar = "24/7"
    assert breakdown(r, "hour").index.min() >= 14
    r.bars.calendar = "XLON"
    assert breakdown(r, "hour").index.max() <= 21


def test_an_unknown_breakdown_is_an_error_that_names_the_choices(result):
    with pytest.raises(DataError, match="choose one of year, side"):
        breakdown(result, "month")


def test_breakdown_by_year_compounds_to_the_total(result):
    t = breakdown(result, "year")
    assert (1 + t["return"]).prod() - 1 == pytest.approx(m.metrics(result)["total_return"])
    assert t.max_drawdown.min() >= m.metrics(result)["max_drawdown"] - 1e-12


def test_costs_and_break_even_agree(result):
    t = cost_table(result)
    assert t.money["total"] == pytest.approx(t.money.drop("total").sum())
    net = result.equity.iloc[-1] - result.initial
    at_zero = net + t.money["total"] - break_even_cost(result) * 1e-4 * m.notional(result).sum()
    assert at_zero == pytest.approx(0, abs=1e-6)


def test_drawdowns_are_sorted_disjoint_and_begin_with_the_deepest(result):
    t, x = drawdown_table(result, 4), m.metrics(result)
    assert t.depth.iloc[0] == pytest.approx(x["max_drawdown"]) and t.depth.is_monotonic_increasing
    every = drawdown_table(result, 10_000)
    assert every.bars.max() == x["max_drawdown_bars"]
    assert every.loc[every.bars.idxmax(), "days"] == pytest.approx(x["max_drawdown_days"])
    below = (m.drawdown(result.equity, result.initial) < 0).sum()
    assert every.bars.sum() == below


def test_the_page_says_what_was_tested_and_warns_before_the_figures(page):
    for words in (
        "A &lt;title&gt;",
        "AAA, B&amp;B",
        "2014-01-02 to",
        "1,500 daily",
        "fee 5 bps, spread 2 bps",
        "252 bars a year",
    ):
        assert words in page, words
    assert page.index("simulated prices: this is an example") < page.index('class="cards"')
    assert "c0de" in page and "versions.numpy" in page and "next_open" in page
    assert "Break-even cost" in page and "By exit reason" in page


def test_everything_from_outside_is_escaped():
    r = fake_result(200)
    evil = "</script><script>alert(1)</script>"
    r.strategy, r.params, r.warnings = evil, {evil: evil}, [evil]
    r.trades["exit_reason"] = evil
    page = report_html(r, provenance={evil: [evil]})
    assert "alert(1)</script>" not in page.replace("alert(1)&lt;/script&gt;", "").replace("alert(1)<\\/script>", "")


def test_the_page_has_one_plotly_no_code_and_no_address_outside(page):
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", own) and "cdn." not in own
    assert page.count("plotly.js v") == 1 and "MathJax.js" not in own and "import pandas" not in own
    assert "default-src 'none'" in page and 'lang="en"' in page


def test_a_million_bars_and_thousands_of_trades_stay_below_ten_megabytes():
    r = fake_result(1_000_000, "min", hold=120, symbols=("SIM",))
    assert len(r.trades) > 3000
    size = len(report_html(r, provenance=PROVENANCE).encode())
    assert size < 8_000_000, f"{size / 1e6:.1f} MB"


@pytest.mark.parametrize("bars", [1, 2, 40])
def test_a_result_without_trades_has_a_page(bars):
    page = report_html(flat_result(bars))
    assert "No trades." in page and "nan" not in re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)


def test_the_trade_list_shows_the_last_ones_first(result):
    page = report_html(result, last_trades=5)
    body = page[page.index('id="trade-list"') :].split("</table>")[0]
    ids = re.findall(r'<th scope=row class="n" data-v="(\d+)"', body)
    assert [int(i) for i in ids] == result.trades.id.tail(5).tolist()[::-1]
    assert f"The last 5 of {len(result.trades):,} trades" in page


# ---- in a browser ----
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    found = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    if not found:
        message = "no Chromium on the path: the page is not opened (apt-get install chromium)"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is in the test extra")
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=found, headless=True, args=FLAGS)
        yield b
        b.close()


def opened(browser, tmp_path, page, width=1400, height=900):
    "(page in the browser, requests that left the file, console messages), all figures drawn"
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    tab = browser.new_context(viewport=dict(width=width, height=height), offline=True).new_page()
    outside, log = [], []
    tab.on("request", lambda q: q.url.startswith(("file:", "data:", "blob:")) or outside.append(q.url))
    tab.on("console", lambda c: log.append(c.text))
    tab.on("pageerror", lambda e: log.append(str(e)))
    tab.goto((tmp_path / "report.html").as_uri())
    tab.wait_for_function("document.documentElement.dataset.drawn", timeout=60_000)
    return tab, outside, log


@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_draws_offline_without_errors_or_sideways_scroll(browser, tmp_path, page, width):
    tab, outside, log = opened(browser, tmp_path, page, width)
    assert outside == [] and log == []
    n = tab.evaluate("document.querySelectorAll('.plot').length")
    assert n == 7 and tab.evaluate("document.querySelectorAll('.plot .main-svg').length") >= n
    assert tab.evaluate("document.querySelectorAll('#plot-overview .scatterlayer .trace').length") >= 5
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    small = (
        "Array.from(document.querySelectorAll('.plot')).filter(d => d.clientHeight < 100 || d.clientWidth < 250).length"
    )
    assert tab.evaluate(small) == 0


def test_a_heading_sorts_the_trades_and_the_menu_changes_the_symbol(browser, tmp_path, page, result):
    tab, _, log = opened(browser, tmp_path, page)
    tab.click("#trade-list thead button:has-text('Net P&L')")
    first = tab.inner_text("#trade-list tbody tr:first-child td:nth-child(11)")
    assert first == m.text("expectancy", result.trades.pnl.tail(200).max()).join(("+", ""))
    names = tab.eval_on_selector_all(".pick option", "o => o.map(x => x.textContent)")
    tab.select_option(".pick select", label=names[1])
    tab.wait_for_function(f"document.querySelector('#plot-price').data.some(t => t.name === {names[1]!r})")
    assert sorted(names) == ["AAA", "B&B"] and log == []


def test_text_has_enough_contrast_and_every_figure_a_description(browser, tmp_path, page):
    tab, _, _ = opened(browser, tmp_path, page)
    assert tab.evaluate("Array.from(document.querySelectorAll('.plot')).every(d => d.getAttribute('aria-label'))")
    colours = tab.evaluate(
        "Array.from(new Set(Array.from(document.querySelectorAll('header *, section p, td, th, dt, dd, small, nav a'))"
        ".map(e => getComputedStyle(e).color)))"
    )

    def light(c):
        v = [int(x) / 255 for x in re.findall(r"\d+", c)[:3]]
        v = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in v]
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]

    for c in colours:
        assert 1.05 / (light(c) + 0.05) >= 4.5, c  # WCAG AA on white


def test_the_real_engine_s_result_has_a_page():
    simulate = pytest.importorskip("tradebench.data.simulator").simulate
    simulation = pytest.importorskip("tradebench.backtest.simulation")
    bars, _ = simulate(sessions=300, seed=1, freq="session")
    up = bars.close > bars.close.rolling(20).mean()
    r = simulation.backtest(weights=up.astype(float), bars=bars, costs=dict(SIM=simulation.Costs(fee_bps=5)))
    page = report_html(r)
    assert "fee 5 bps" in page and "simulated" in page and np.isfinite(breakdown(r, "year")["return"]).all()
    assert isinstance(cost_table(r), pd.DataFrame)
