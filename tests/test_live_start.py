"""The first steps of an agent and the last ones: a feed that cannot be reached, a deployment that cannot start, a journal after the end."""

import asyncio
import os
import subprocess
import sys
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from servers import postgres  # noqa: F401 (a fixture)

from tradebench.cli.days import _date
from tradebench.cli.live import check_start
from tradebench.errors import RunError
from tradebench.live.agent import Agent
from tradebench.live.dry_run import dry_run
from tradebench.live.deployment import parse, shorthand
from tradebench.live.feeds import FeedBase, open_feed
from tradebench.live.intake import fitting, sane
from tradebench.live.journal import open_journal
from tradebench.live.lease import holder_name
from tradebench.live.replay import replay_and_compare
from tradebench.live.standing import lines, standing
from tradebench.live.types import Batch, BrokerError, FeedError, LiveError
from tradebench.live.view import summary_line

ROOT = Path(__file__).resolve().parents[1]
FEED = """
import asyncio
from tradebench.live.feeds import FeedBase
from tradebench.live.types import FeedError

class Away(FeedBase):
    "Nobody answers"
    def __init__(self, how="hang"):
        self.how = how
        super().__init__(("AAA",), "1min", "24/7")

    async def prepare(self):
        if self.how == "wrong":
            raise FeedError("no such symbol AAA")
        if self.how == "refuse":
            raise OSError("connection refused")
        await asyncio.sleep(3600)

    async def history(self, start, end):
        return []

    async def stream(self, after):
        yield
"""


def deployment(folder, feed, **more):
    (folder / "away.py").write_text(FEED)
    return shorthand(
        "sma_cross", feed.replace("away.py", str(folder / "away.py")), journal=str(folder / "j.sqlite"), **more
    )


async def started(d, seconds=0.0):
    "An agent of a deployment that runs for so long and is stopped then; (exit code, seconds to stop, what it said)"
    heard = []
    async with open_journal(d.journal) as journal:
        agent = Agent(d, journal, on_incident=heard.append)
        agent.watchdog.after = 1.0
        task = asyncio.create_task(agent.run())
        if seconds:
            await asyncio.sleep(seconds)
            agent.stop("SIGTERM")
        began = asyncio.get_running_loop().time()
        code = await asyncio.wait_for(task, 20)
        return code, asyncio.get_running_loop().time() - began, heard, await standing(journal, d.id)


@pytest.mark.parametrize("how", ["hang", "refuse"])
def test_a_feed_that_cannot_be_reached_neither_holds_the_agent_nor_makes_it_cry_stalled(tmp_path, how):
    d = deployment(tmp_path, f"away.py:Away,how={how}", id="away")
    code, took, heard, found = asyncio.run(started(d, 3.0))
    assert code == 0 and took < 5.0
    assert not [i for i in heard if i["kind"] == "stalled"]
    assert (how == "refuse") == any("OSError: connection refused; trying again" in i["text"] for i in heard)
    assert found["lease_s"] < 0.5  # the next one need not wait


def test_what_a_feed_refuses_for_good_ends_the_start(tmp_path):
    with pytest.raises(FeedError, match="no such symbol"):
        asyncio.run(started(deployment(tmp_path, "away.py:Away,how=wrong")))


def test_an_orderly_end_is_told_and_leaves_the_journal_whole_in_one_file(tmp_path):
    d = deployment(tmp_path, "sim:minutes,sessions=1", id="end")
    assert asyncio.run(started(d))[0] == 0
    copy = shutil.copy(d.journal, tmp_path / "copy.sqlite")

    async def look(path):
        async with open_journal(path, readonly=True) as j:
            return len(await j.events()), lines(await standing(j, "end"))[0]

    count, said = asyncio.run(look(copy))
    assert count > 390 and "has stopped in order" in said


def test_an_account_may_move_to_another_venue(tmp_path):
    d = deployment(tmp_path, "sim:minutes,sessions=1", id="moves")
    asyncio.run(started(d))
    code, _, heard, _ = asyncio.run(
        started(deployment(tmp_path, "sim:minutes,sessions=1", id="moves", broker="paper:http://127.0.0.1:1"), 2.0)
    )
    said = {i["kind"] for i in heard}
    assert code == 0 and "rebuilt" in said and "broker:paper:http://127.0.0.1:1" in said


def test_a_replay_needs_recorded_bars_and_a_venue_that_is_there(tmp_path):
    with pytest.raises(LiveError, match="brings bars of now"):
        asyncio.run(replay_and_compare(shorthand("sma_cross", "ccxt:binance:BTC/USDT,1m")))
    with pytest.raises(BrokerError, match="refused"):
        asyncio.run(replay_and_compare(shorthand("sma_cross", "AAPL", "paper:http://127.0.0.1:1")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(journal="mysql://u@h/db"), "a file, or postgresql"),
        (dict(broker="paper:foo"), "the venue's address is wanted"),
        (dict(broker="paper:http://"), "the venue's address is wanted"),
    ],
)
def test_addresses(change, message):
    with pytest.raises(LiveError, match=message):
        shorthand("sma_cross", "AAPL", **change)


def test_what_cannot_start_makes_no_journal(tmp_path):
    with pytest.raises(RunError, match="there is no folder"):
        check_start(shorthand("sma_cross", "AAPL", journal=str(tmp_path / "no" / "j.sqlite")))
    with pytest.raises(LiveError, match="did you mean tick"):
        check_start(shorthand("sma_cross", "AAPL", instruments=dict(AAPL=dict(tik=1))))
    with pytest.raises(LiveError, match="command line: feed: unknown data set"):
        asyncio.run(started(shorthand("sma_cross", "NOPE", journal=str(tmp_path / "j.sqlite"))))


def test_a_day_is_a_date():
    assert _date("2024-01-31") == "2024-01-31" and _date("") == ""
    with pytest.raises(RunError, match="write it as 2024-01-31"):
        _date("2012-13-20")


def test_the_deployment_of_the_readme_trades(tmp_path):
    text = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    given = tomllib.loads(text) | dict(journal=str(tmp_path / "demo.sqlite"))
    given["account"][0] |= dict(feed="replay:AAPL", anchor="2010-01-04")
    found = asyncio.run(replay_and_compare(parse(given, "README.md"), limited=True))
    assert all(c.equal and c.fills > 5 for c in found)


def test_lines_of_the_view_say_what_was_refused_and_invent_no_equity():
    assert summary_line(dict(mode="starting", accounts={})) == "starting"
    status = dict(mode="trading", refusals=7, accounts=dict(a=dict(equity=1.0, pnl=0.0, bars=1, ts=1, positions={})))
    assert summary_line(status).endswith("0 positions, 7 orders refused")


def test_a_journal_keeps_accounts_of_two_deployments_apart(tmp_path):
    one, two = (deployment(tmp_path, "sim:minutes,sessions=1", id=name) for name in ("one", "two"))
    asyncio.run(started(one))
    with pytest.raises(LiveError, match="account 'main' in this journal belongs to deployment 'one'"):
        asyncio.run(started(two))
    assert asyncio.run(started(one))[0] == 0


def test_an_agent_whose_process_is_gone_is_not_called_alive(tmp_path):
    async def look():
        async with open_journal(tmp_path / "j.sqlite") as journal:
            child = await asyncio.create_subprocess_exec("sleep", "60")
            name = holder_name(child.pid)
            await journal.acquire("demo", name, 60.0)
            before = await standing(journal, "demo")
            child.kill()
            await child.wait()
            return before, await standing(journal, "demo")

    before, after = asyncio.run(look())
    assert before["agent"] == "alive" and after["agent"] == "silent" and "its process is gone" in lines(after)[0]


@pytest.mark.parametrize(
    ("raw", "flags", "message"),
    [
        (np.ones((2, 5)), np.zeros(1, np.uint8), r"raw is float64 \(2, 5\), and float64 \(1, 5\) is wanted"),
        (np.ones((1, 5)), np.zeros((1, 4), np.uint8), r"flags is uint8 \(1, 4\)"),
        (np.ones((1, 5)), np.zeros(1), r"flags is float64 \(1,\), and uint8"),
        ([[1.0] * 5], np.zeros(1, np.uint8), "raw is list"),
    ],
)
def test_a_batch_of_another_shape_is_refused_in_words(raw, flags, message):
    with pytest.raises(FeedError, match=message):
        fitting(FeedBase(("A",), "1min", "24/7"), Batch(1, raw, flags))


def test_a_feed_of_ones_own_that_cannot_be_made(tmp_path):
    (tmp_path / "mine.py").write_text("class Mine:\n    def __init__(self):\n        raise KeyError('oops')\n")
    with pytest.raises(FeedError, match="KeyError: 'oops'"):
        open_feed(f"{tmp_path}/mine.py:Mine")


def test_bars_that_cannot_be_are_dropped_before_anybody_decides():
    said = []
    agent = SimpleNamespace(doubts=SimpleNamespace(say=lambda kind, text, **_: said.append((kind, text))))
    stream = SimpleNamespace(feed=SimpleNamespace(symbols=("A", "B", "C", "D")), live=True, name="mine")
    good = (10.0, 11.0, 9.0, 10.0, np.nan)
    raw = np.array([good, (10.0, 11.0, 9.0, np.nan, 5.0), (-1.0, 11.0, -2.0, 10.0, 5.0), (np.nan,) * 5])
    batch = Batch(60 * 10**9, raw, np.array([7, 7, 7, 4], np.uint8))
    found = sane(agent, stream, batch)
    assert (
        found.flags.tolist() == [7, 4, 4, 4] and np.isnan(found.raw[1:]).all() and tuple(found.raw[0][:4]) == good[:4]
    )
    assert [k for k, _ in said] == ["bad_bar"] * 2 and said[0][1].startswith("B at 1970-01-01T00:01:00: ")
    assert batch.flags.tolist() == [7, 7, 7, 4]  # the feed's own arrays stay as they are
    same = Batch(1, raw[:1], np.array([7], np.uint8))
    assert sane(agent, stream, same) is same


def test_a_dry_run_on_an_empty_database_and_on_none(postgres):  # noqa: F811
    def journal(address):
        d = shorthand("sma_cross", "AAPL", journal=address)
        return next(c for c in asyncio.run(dry_run(d)) if c.what == "journal")

    found = journal(postgres.database())
    assert found.ok and found.text.endswith(": will be made")
    assert not journal("postgresql://u:secret@127.0.0.1:1/db").ok
    assert "secret" not in journal("postgresql://u:secret@127.0.0.1:1/db").text


@pytest.mark.slow  # compiles everything: half a minute
def test_the_first_start_on_a_new_machine_is_calm(tmp_path):
    env = os.environ | dict(XDG_CACHE_HOME=str(tmp_path / "cache"))
    line = [sys.executable, "-m", "tradebench", "live", "--strategy", "sma_cross", "--feed", "replay:AAPL"]
    out = subprocess.run([*line, "--journal", str(tmp_path / "j.sqlite")], env=env, capture_output=True, text=True)
    assert out.returncode == 0 and "stalled" not in out.stdout + out.stderr and "fenced" not in out.stdout + out.stderr
