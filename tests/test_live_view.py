"""The view: what a status looks like in a terminal, a log and a pipe, and that the agent outlives whoever looks at it."""

import asyncio
import io
import json
import math
import os

import numpy as np
import pytest
from rich.console import Console

from tradebench.live.picture import moment, money, picture, size, span
from tradebench.live.view import View, json_line, summary_line

NOON = 1_704_283_200_000_000_000
SECOND = 10**9


def status(symbols=1, alerts=1, **more) -> dict:
    held = {
        f"S{i:04}": dict(qty=10.0 + i, avg=100.0, mark=101.0, pnl=10.0 + i, stop=90.0, take=math.nan, trail=math.nan)
        for i in range(symbols)
    }
    account = dict(
        strategy="sma_cross", params=dict(fast=20), symbols=list(held), ts=NOON - 60 * SECOND, bars=1234, equity=1e5, cash=5e4,
        pnl=sum(p["pnl"] for p in held.values()), positions=held, orders=dict(open=2, unknown=1), unreleased=True,
        last_decision=dict(ts=NOON - 60 * SECOND, symbol="S0000", target=1.0),
    )  # fmt: skip
    said = [dict(ts=NOON - i * SECOND, severity="warning", kind="feed_stale", text=f"alert {i}") for i in range(alerts)]
    return dict(
        deployment="demo", epoch=3, mode="trading", ready=True, missing=[], now=NOON, accounts=dict(fast=account), refusals=4,
        feeds=dict(a=dict(ts=NOON, age=1.0, stale=True, source="primary")), broker=dict(paper=dict(state="connected", epoch=1, sent=12, failed=3)),
        latency=dict(p50=0.3, p99=1.0), alerts=said, journal=dict(seq=10, bytes=2048, days_to_full=400.0),
    ) | more  # fmt: skip


def text(s, width=118, height=40) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False)
    console.print(picture(s, height))
    return console.file.getvalue()


def test_the_picture_says_what_an_operator_asks():
    seen = text(status())
    for word in ("demo", "trading", "epoch 3", "unreleased", "sma_cross", "S0000", "+10.00", "stale", "connected", "alert 0",
                 "300 us", "1 ms", "4 refusals", "400 days to full", "2 1?"):  # fmt: skip
        assert word in seen, (word, seen)


@pytest.mark.parametrize("height", [20, 24, 40, 60])
def test_thousands_of_positions_fit_the_window(height):
    seen = text(status(symbols=5000, alerts=20), height=height)
    assert len(seen.splitlines()) <= height + 2
    assert "more" in seen and "S4999" in seen  # the largest is shown


@pytest.mark.parametrize(
    "s",
    [
        {},
        dict(mode="starting", latency=dict(p50=None, p99=None), journal={}, doubts={"broker:paper": "no answer"}),
        dict(mode="warming", missing=["AAPL: 3 of 50 bars"], accounts=dict(a={})),
    ],
)
def test_a_status_with_nothing_in_it_yet_is_shown(s):
    assert text(s)
    assert summary_line(s)
    assert json.loads(json_line(s)) == s


def test_json_is_strict_one_line_and_knows_numpy():
    s = status(extra=np.float64(math.inf), array=np.arange(3), some={"b", "a"})
    line = json_line(s)
    assert "\n" not in line
    back = json.loads(line, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert back["extra"] is None and back["array"] == [0, 1, 2] and sorted(back["some"]) == ["a", "b"]
    assert back["accounts"]["fast"]["positions"]["S0000"]["take"] is None


def test_markup_in_names_is_shown_not_obeyed():
    s = status()
    s["accounts"] = {"[red]x[/red]": s["accounts"]["fast"] | dict(strategy="a[b].ipynb:C")}
    assert "[red]x[/red]" in text(s) and "a[b].ipynb:C" in text(s)


def test_words_for_numbers():
    assert money(math.nan) == money(None) == "-" and money(-1234.567, True) == "-1,234.57"
    assert (
        moment(NOON, NOON) == "12:00:00"
        and moment(-1) == "-"
        and moment(NOON - 400 * 86400 * SECOND, NOON) == "2022-11-29 12:00"
    )
    assert [span(x) for x in (0.0, 5e-6, 0.02, 59, 600, 86400)] == ["0 ms", "5 us", "20 ms", "59 s", "10 min", "1 d"]
    assert [size(x) for x in (None, 999, 1e4, 5e12)] == ["0 B", "999 B", "10 kB", "5e+03 GB"]


class Agent:
    "Says one status after another, then that it has stopped"

    def __init__(self, *said):
        self.said, self.asked = list(said), 0

    def status(self):
        self.asked += 1
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


def test_a_log_gets_changes_alone():
    out = io.StringIO()
    agent = Agent(*[status()] * 5, status(alerts=2), status(mode="halted"), status(mode="stopped"))
    asyncio.run(View(out=out, every=0.0).run(agent))
    lines = out.getvalue().splitlines()
    assert sum("alert 0" in x for x in lines) == 1 and sum("alert 1" in x for x in lines) == 1
    assert [x.split(":")[0] for x in lines if "equity" in x] == ["trading", "halted", "stopped"]


def test_json_gives_a_line_a_look():
    out = io.StringIO()
    asyncio.run(View("json", out=out, every=0.0).run(Agent(status(), status(), status(mode="stopped"))))
    assert [json.loads(x)["mode"] for x in out.getvalue().splitlines()] == ["trading", "trading", "stopped"]


def test_a_terminal_gets_one_picture_that_is_drawn_again():
    out = io.StringIO()
    view = View("live", out=out, every=0.0)
    view.console = Console(file=out, force_terminal=True, width=118, height=40)
    asyncio.run(view.run(Agent(status(), status(), status(mode="stopped"))))
    assert out.getvalue().count("demo") >= 3 and view.live is None


def test_a_reader_that_goes_away_does_not_stop_the_agent(capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as out:
        agent = Agent(status(), status(mode="stopped"))
        asyncio.run(View("json", out=out, every=0.0).run(agent))
        assert agent.said[0]["mode"] == "stopped"
        assert "the agent goes on" in capsys.readouterr().err
        try:
            out.close()
        except BrokenPipeError:
            pass


def test_cancelling_the_view_leaves_the_terminal_whole():
    async def main():
        view = View("live", out=io.StringIO(), every=10)
        task = asyncio.create_task(view.run(Agent(status())))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert view.live is None

    asyncio.run(main())
