"""A journal read as a Result: equal to the backtest after a replay, true to the record where the code has changed, and split into days."""

import asyncio
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from servers import postgres  # noqa: F401 (a fixture)

import tradebench as tb
from tradebench.live.deployment import parse
from tradebench.live.types import Batch, LiveError

FRAMES = ("equity", "returns", "fills", "orders", "trades", "positions", "exposure")


def deployed(folder, *accounts, **more):
    "A deployment with these accounts and a journal in `folder`"
    accounts = [dict(name=f"a{i}", unreleased=True, costs="us_stocks") | a for i, a in enumerate(accounts)]
    return parse(dict(id="test", journal=str(folder / "j.sqlite"), account=accounts, **more))


def played(d):
    from tradebench.live.example import play

    assert asyncio.run(play(d)) == 0
    return d


def backtested(account):
    from tradebench.live.streams import open_stream

    made = account.made()
    what = {k: made[k] for k in ("costs", "sizing", "limits", "options")}
    return tb.backtest(
        made["strategy"], open_stream(account, "x").feed.bars, initial=account.capital_or_default(), **what
    )


def assert_same(live, expected, but=()):
    for name in set(FRAMES) - set(but):
        a, b = getattr(live, name), getattr(expected, name)
        (pd.testing.assert_series_equal if a.ndim == 1 else pd.testing.assert_frame_equal)(a, b, check_exact=True)
    for name in set(expected.metrics) if not but else ():
        assert live.metrics[name] == expected.metrics[name] or expected.metrics[name] != expected.metrics[name], name
    assert live.bars.hash == expected.bars.hash and live.costs == expected.costs


CASES = [
    dict(strategy="sma_cross", feed="AAPL"),
    dict(strategy="rotation", feed="stocks5", sizing="fraction=0.9"),
    dict(strategy="gap_and_go", feed="stocks5", options="band=0.1"),
    dict(
        strategy="swing",
        feed="replay:AAPL,start=2005",
        costs={"fee_bps": 3, "borrow_rate": 0.05},
        options="at_end=close",
    ),
    dict(strategy="scalping", feed="sim:minutes,seed=3,sessions=5", capital=25_000, limits="max_drawdown=0.02"),
]


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    "A deployment of all cases that has traded"
    return played(deployed(tmp_path_factory.mktemp("five"), *CASES))


@pytest.mark.parametrize("i", range(len(CASES)), ids=[c["strategy"] for c in CASES])
def test_a_replay_is_its_backtest_in_every_frame(five, i):
    from tradebench.live.live_result import live_result

    live, expected = live_result(five.journal, f"a{i}"), backtested(five.accounts[i])
    assert_same(live, expected)
    assert len(live.fills) > 3 and live.conservation_error() < 1e-12
    assert [w for w in live.warnings if "at_end" not in w] == expected.warnings
    assert live.code_hash == expected.code_hash and live.options == expected.options
    assert any("still holds" in w for w in live.warnings) == (
        CASES[i].get("options") == "at_end=close" and live.fills["reason"].eq("end").any()
    )


@pytest.mark.parametrize("i", [0, 1, 2, 4])
def test_the_tables_alone_say_the_same_of_what_has_ended(five, i):
    from tradebench.live.live_result import read_result
    from tradebench.live.record import opened

    async def read():
        async with await opened(five.journal) as journal:
            return await read_result(journal, f"a{i}", tables=True)

    live, expected = asyncio.run(read()), backtested(five.accounts[i])
    ended = expected.trades[~expected.trades["open"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(live.trades, ended, check_exact=True)
    assert_same(live, expected, but=("trades", "orders"))
    same = [c for c in live.orders if c not in ("qty", "limit", "stop", "take", "trail")]  # a split restates these
    pd.testing.assert_frame_equal(live.orders[same], expected.orders[same], rtol=1e-12)
    assert "tables" in live.warnings[0]


def test_which_account_is_meant_must_be_said(five, tmp_path):
    from tradebench.live.live_result import live_result
    from tradebench.live.types import JournalError

    with pytest.raises(LiveError, match="5 accounts.*a0"):
        live_result(five.journal)
    with pytest.raises(LiveError, match="known: a0"):
        live_result(five.journal, "b0")
    with pytest.raises(JournalError, match="nothing.sqlite"):
        live_result(str(tmp_path / "nothing.sqlite"))
    assert not (tmp_path / "nothing.sqlite").exists()


MINE = """
import tradebench as tb

@tb.strategy
class Mine:
    "Buys on a fall, sells on a rise."
    n = tb.param(1, 1, 9, "bars")
    state = dict(last=0.0)

    def step(s, p, row):
        up = row.close > s.last
        s.last = row.close
        return tb.long_if({rule})
"""


def test_a_strategy_that_has_changed_since_does_not_change_the_past(tmp_path):
    from tradebench.live.live_result import live_result

    file = tmp_path / "mine.py"
    file.write_text(MINE.format(rule="not up"))
    d = played(deployed(tmp_path, dict(strategy=f"{file}:Mine", feed="replay:AAPL,start=2012")))
    before = live_result(d.journal)
    assert len(before.fills) > 20 and not any("tables" in w for w in before.warnings)
    file.write_text(MINE.format(rule="up"))
    after = live_result(d.journal)
    assert any("tables" in w for w in after.warnings)
    for name in ("equity", "fills"):
        assert getattr(after, name).equals(getattr(before, name))
    file.unlink()
    assert live_result(d.journal).equity.equals(before.equity)


def test_stopped_and_started_again_it_is_still_the_backtest(tmp_path):
    from tradebench.live.agent import Agent
    from tradebench.live.live_result import live_result, read_result
    from tradebench.live.record import opened

    d = deployed(tmp_path, dict(strategy="gap_and_go", feed="replay:stocks5,start=2008"))

    async def some(batches):
        async with await opened(d.journal, write=True) as journal:
            agent = Agent(d, journal)
            agent.unlimited = True

            async def watch():
                while agent.batches < batches and agent.mode != "stopped":
                    await asyncio.sleep(0)
                agent.stop()

            watcher = asyncio.create_task(watch())
            await agent.run()
            watcher.cancel()
            return len(
                (await read_result(journal)).equity
            )  # also while the journal is open for writing, in a running loop

    seen = [asyncio.run(some(n)) for n in (300, 500, 10_000)]
    assert seen[0] < seen[1] < seen[2] == len(backtested(d.accounts[0]))
    assert_same(live_result(d.journal), backtested(d.accounts[0]))


LATE = """
import tradebench as tb
from tradebench.live.recorded import RecordedFeed

class Late(RecordedFeed):
    "Brings the last symbol of every hundredth batch a batch later"

    def __init__(self):
        super().__init__(tb.prepare(tb.load("stocks5", start="2012")))

    async def stream(self, after):
        kept = None
        async for b in super().stream(after):
            row = self._row(b.ts) - 1
            if row % 100 == 50 and b.flags[-1] & 1:
                raw, flags = b.raw.copy(), b.flags.copy()
                raw[-1], flags[-1] = float("nan"), 4
                late, lf = b.raw * float("nan"), b.flags & 4
                late[-1], lf[-1] = b.raw[-1], b.flags[-1]
                kept = b._replace(raw=late, flags=lf, late=True, events=(), extras={})
                b = b._replace(raw=raw, flags=flags)
            yield b
            if kept is not None and row % 100 == 50:
                yield kept
                kept = None
"""


def test_late_bars_are_in_the_bars_and_time_goes_forward(tmp_path):
    from tradebench.live.live_result import live_result

    (tmp_path / "late.py").write_text(LATE)
    d = played(
        deployed(tmp_path, dict(strategy="sma_cross", params=dict(fast=5, slow=20), feed=f"{tmp_path}/late.py:Late"))
    )
    live, whole = live_result(d.journal), tb.prepare(tb.load("stocks5", start="2012"))
    assert np.array_equal(live.bars.ts, whole.ts) and np.array_equal(live.bars.raw, whole.raw, equal_nan=True)
    assert any("came after their batch" in w for w in live.warnings) and len(live.fills) > 10
    assert live.fills["ts"].is_monotonic_increasing and abs(live.equity.iloc[-1] - live.account["equity"]) < 1e-9
    assert live.fills["ts"].isin(live.index).all() and live.conservation_error() < 1e-12


@pytest.mark.parametrize("i", range(len(CASES)), ids=[c["strategy"] for c in CASES])
def test_days_and_symbols_add_up_to_the_equity(five, i):
    from tradebench.live.day import day_rows, equity_change, symbol_pnl
    from tradebench.live.live_result import live_result

    r = live_result(five.journal, f"a{i}")
    whole = symbol_pnl(r)
    scale = r.initial + whole["turnover"].sum()
    assert abs(whole["net"].sum() - equity_change(r)) < 1e-12 * scale
    assert (
        np.allclose(whole["realised"] + whole["unrealised"] + whole["dividends"] - whole["fees"], whole["net"])
        or "(account)" in whole.index
    )
    assert abs(whole["fees"].sum() - r.costs["fees"]) < 1e-9 * scale and whole["fills"].sum() == len(r.fills)
    days = np.unique(r.bars.session_days())[-25:]
    first = day_rows(r, str(days[0]))[0]
    parts = sum(symbol_pnl(r, *day_rows(r, str(d))[:2])["net"].sum() for d in days)
    assert abs(parts - equity_change(r, first)) < 1e-9 * scale


def test_the_days_report_of_all_accounts(five):
    from tradebench.errors import RunError
    from tradebench.live.day_report import read_day

    report = read_day(five.journal, "2008-10-20", seed=1)
    assert report.day == "2008-10-20" and list(report.strategies.index) == ["a0", "a1", "a2", "a3"]
    assert "a4: no bar on 2008-10-20" in report.notes  # its minutes are of another year
    assert report.strategies["net"].equals(report.strategies["backtest"])
    assert abs(report.symbols["net"].sum() - report.net) < 1e-6
    assert (
        set(report.fills["account"]) <= {"a0", "a1", "a2", "a3"}
        and (report.fills["ts"].dt.date.astype(str) == "2008-10-20").all()
    )
    assert all(band is not None and band.shape[1] == 1 for _, band in report.bands.values())
    page = report.html()
    assert page.count("<section") == 8 and "src=" not in page.split("<script>")[0]
    with pytest.raises(RunError, match="no bar on 2008-10-19"):
        read_day(five.journal, "2008-10-19", "a0")
    with pytest.raises(RunError, match="not a date"):
        read_day(five.journal, "soon", "a0")


def test_what_was_refused_is_in_the_days_report(tmp_path):
    from tradebench.live.day_report import read_day
    from tradebench.live.example import play

    from tradebench.live.live_result import live_result

    d = deployed(tmp_path, dict(strategy="sma_cross", feed="AAPL"), limits=dict(order_quantity=1000))
    asyncio.run(play(d, limited=True))
    live = live_result(d.journal)
    day = str(live.orders[live.orders["status"] == "refused"]["ts"].iloc[0].date())
    report = read_day(d.journal, day)
    assert (
        len(report.refusals) == 1
        and report.refusals["symbol"].iloc[0] == "AAPL"
        and "1000" in report.refusals.to_string()
    )
    assert any("never left" in n for n in report.notes)


class Copy:
    "A journal in memory, whose events a test may alter"

    address = "a copy"

    def __init__(self, d):
        from tradebench.live.record import opened

        async def read():
            async with await opened(d.journal) as journal:
                return await journal.events()

        self.all = asyncio.run(read())

    async def events(self, after_seq=0, account=None, kinds=None, limit=None):
        return [e for e in self.all if e.seq > after_seq and (not kinds or e.kind in kinds)][:limit]


@pytest.mark.parametrize("strategy, feed", [("sma_cross", "AAPL"), ("rotation", "replay:stocks5,start=2009")])
def test_fills_that_come_between_two_bars_belong_to_the_second(tmp_path, strategy, feed):
    from tradebench.live.live_result import live_result, read_result
    from tradebench.live.day import symbol_pnl

    d = played(deployed(tmp_path, dict(strategy=strategy, feed=feed)))
    copy, out, expected = Copy(d), [], live_result(d.journal)
    for (
        e
    ) in copy.all:  # as a venue on its own time would have told it: what was told with a batch comes before its bars
        if e.kind == "batch" and e.body["reports"]:
            out.insert(-1, e._replace(kind="report", body=dict(reports=e.body["reports"])))
            e = e._replace(body=e.body | dict(reports=[]))
        out.append(e)
    copy.all = [e._replace(seq=i) for i, e in enumerate(out, 1)]
    live = asyncio.run(read_result(copy))
    assert live.warnings == expected.warnings
    assert live.fills["ts"].equals(expected.fills["ts"]) and live.fills["qty"].equals(expected.fills["qty"])
    for column in ("entry_ts", "exit_ts", "qty"):
        assert live.trades[column].equals(expected.trades[column])
    assert np.allclose(live.equity, expected.equity, rtol=1e-12)
    assert "(account)" not in symbol_pnl(live).index or strategy != "sma_cross"


def test_a_halt_is_in_the_days_report_with_name_and_reason(tmp_path):
    from tradebench.live.day_report import read_day
    from tradebench.live.record import opened

    d = played(deployed(tmp_path, dict(strategy="sma_cross", feed="replay:AAPL,start=2012")))

    async def halt():
        async with await opened(d.journal, write=True) as journal:
            await journal.halt(d.id, "halt", "ada", "prices look wrong")

    asyncio.run(halt())
    told = read_day(d.journal).commands
    assert (
        list(told["what"]) == ["halt"]
        and told["who"].iloc[0] == "ada"
        and "prices look wrong" in read_day(d.journal).html()
    )


def test_a_journal_in_postgresql_reads_the_same(tmp_path, request):
    from tradebench.live.live_result import live_result
    from tradebench.live.selfaudit import self_audit

    d = deployed(tmp_path, dict(strategy="sma_cross", feed="replay:AAPL,start=2010"))
    d = played(replace(d, journal=request.getfixturevalue("postgres").database()))
    assert_same(live_result(d.journal), backtested(d.accounts[0]))
    assert self_audit(d.journal).equal


def test_the_band_holds_what_it_says():
    from tradebench.live.day import LEAST, expected_band, inside

    rng = np.random.default_rng(5)
    past = rng.normal(0.0, 0.01, 2000)
    band = expected_band(past, 100.0, 50, share=0.8, draws=2000, seed=3)
    hits = [inside(100.0 * np.cumprod(1 + rng.normal(0.0, 0.01, 50)), band) for _ in range(400)]
    assert abs(np.mean(hits) - 0.8) < 0.04, f"seed 5: {np.mean(hits)}"
    assert expected_band(past[: LEAST - 1], 100.0, 5) is None and np.isnan(inside([1.0], None))
    assert (expected_band(np.zeros(100), 7.0, 3, seed=1) == 7.0).all()


def test_notebook_and_page_are_left_in_the_folder(tmp_path, capsys):
    pytest.importorskip("papermill", reason="needs papermill: pip install 'tradebench[lab]'")
    import json

    import tradebench.cli.days  # noqa: F401
    from tradebench.cli.shell import run_app

    d = played(deployed(tmp_path, dict(strategy="sma_cross", feed="replay:AAPL,start=2012")))
    assert run_app(["day", "2013-02-28", "--journal", d.journal, "--out", str(tmp_path / "out")]) == 0
    page = tmp_path / "out" / "test-2013-02-28.html"
    assert str(page) in capsys.readouterr().out and page.read_text().startswith("<!DOCTYPE html>")
    book = json.loads(page.with_suffix(".ipynb").read_text())
    assert not [o for c in book["cells"] for o in c.get("outputs", ()) if o["output_type"] == "error"]


@pytest.mark.slow
def test_a_day_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path, capsys):
    pytest.importorskip("papermill", reason="needs papermill: pip install 'tradebench[lab]'")
    import tradebench.cli.days  # noqa: F401
    from tradebench.cli.shell import run_app

    d = played(deployed(tmp_path, dict(strategy="sma_cross", feed="replay:AAPL,start=2012")))
    assert run_app(["day", "2013-03-02", "--journal", d.journal, "--out", str(tmp_path / "out")]) == 2
    assert "no bar on 2013-03-02" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


def test_facts_of_a_feed_survive_the_journal():
    import msgspec

    from tradebench.live.record import FeedFacts, feed_facts
    from tradebench.live.recorded import RecordedFeed

    feed = RecordedFeed(tb.prepare(tb.load("stocks5", start="2012")))
    facts = msgspec.msgpack.decode(msgspec.msgpack.encode(feed_facts(feed)))
    again = FeedFacts.of(facts)
    assert (
        again.symbols == feed.symbols and again.instruments == feed.instruments and again.records == feed.bars.records
    )
    assert replace(feed.bars).periods_per_year == again.periods_per_year and isinstance(feed.batch(0), Batch)
