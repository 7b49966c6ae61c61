"""The deployment file: what is read, what is refused and in which words, and that it means the same from any folder."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tradebench.live.deployment import Deployment, feed_text, from_plain, load_deployment, parse, shorthand
from tradebench.live.types import LiveError

ROOT = Path(__file__).resolve().parents[1]
WHOLE = """
id = "demo"
journal = "state/demo.sqlite"
grace = 5
on_stop = "cancel"

[[account]]
name = "fast"
strategy = "mine.py:Dip"
params = {bars = 3}
feed = "prices.csv,stamp=end | ccxt:binance:BTC/USDT,1m"
symbols = "AAPL, IBM"
anchor = 2010-01-04
capital = 50_000
broker = "paper"
costs = {fee_bps = 5}
sizing = "rule=quantity,quantity=10"
limits = {max_drawdown = 0.2}
options = "band=0.05"
unreleased = true
periods_per_year = 252
[account.instruments.AAPL]
lot = 1
tick = 0.01

[[account]]
name = "slow"
strategy = "sma_cross"
data = "AAPL"
anchor = 2010-01-04T09:30:00-05:00
broker = "paper:http://127.0.0.1:8080"
unreleased = true

[limits]
order_value = 50_000
"""
MINE = """
import tradebench as tb

@tb.strategy
class Dip:
    "Buys a fall."
    bars = tb.param(2, 1, 10, "bars of fall")
    state = dict(last=0.0, n=0)

    def step(s, p, row):
        s.n = s.n + 1 if row.close < s.last else 0
        s.last = row.close
        return tb.long_if(s.n >= p.bars)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "demo.toml").write_text(WHOLE)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "prices.csv").write_text("date,open,high,low,close\n")
    return tmp_path


def test_a_whole_file_is_read_with_paths_beside_it(folder, monkeypatch):
    monkeypatch.chdir("/")
    d = load_deployment(folder / "demo.toml")
    fast, slow = d.accounts
    assert (d.id, d.grace, d.on_stop, d.limits) == ("demo", 5.0, "cancel", {"order_value": 50_000})
    assert d.journal == str(folder / "state/demo.sqlite") and d.path == str(folder / "demo.toml")
    assert fast.strategy == f"{folder}/mine.py:Dip"
    assert fast.feed == f"replay:{folder}/prices.csv,stamp=end | ccxt:binance:BTC/USDT,1m"
    assert fast.symbols == ("AAPL", "IBM") and fast.periods_per_year == 252.0
    assert fast.instrument_map()["AAPL"].lot == 1
    made = fast.made()
    assert repr(made["strategy"]) == "Dip(bars=3)" and made["costs"].fee_bps == 5 and made["sizing"].quantity == 10
    assert made["limits"].max_drawdown == 0.2 and made["options"].band == 0.05
    assert slow.feed == "replay:AAPL" and slow.capital_or_default() > 0
    assert slow.anchor_ns() - fast.anchor_ns() == 14.5 * 3600 * 10**9


def test_a_deployment_is_plain_data_and_back(folder):
    d = load_deployment(folder / "demo.toml")
    assert from_plain(d.plain()) == d == pickle.loads(pickle.dumps(d))
    import msgspec

    assert from_plain(msgspec.msgpack.decode(msgspec.msgpack.encode(d.plain()))) == d


def test_options_of_a_strategy_are_those_of_its_backtest():
    from tradebench.backtest.job import Job, check

    words = dict(
        strategy="rotation", sizing="volatility", options="leverage=2", limits="max_gross=2", costs="us_stocks"
    )
    made = shorthand(feed="stocks5", **words).accounts[0].made()
    found = check(Job(**words))
    assert {k: str(v) for k, v in made.items()} == {k: str(found[k]) for k in made}


ENTRY = 'id = "d"\n[[account]]\nstrategy = "sma_cross"\nfeed = "AAPL"\nunreleased = true\n'
REFUSED = [
    ("", "id is missing"),
    ('id = "a b"', "id = 'a b'"),
    ('id = "d"', r"no \[\[account\]\]"),
    ('id = "d"\naccount = 3', "account = 3"),
    ('idd = "d"', "did you mean id"),
    ('on_stop = "kep"\n' + ENTRY, "on_stop.*did you mean keep"),
    ("grace = -1\n" + ENTRY, "grace = -1"),
    ("journal = 3\n" + ENTRY, "journal = 3"),
    (ENTRY + "capital = nan", "capital"),
    (ENTRY + "capital = true", "capital"),
    (ENTRY + 'paramz = "x"', "did you mean params"),
    (ENTRY + "params = 3", "params = 3"),
    (ENTRY + 'data = "AAPL"', "two words"),
    (ENTRY + 'anchor = "soon"', "anchor"),
    (ENTRY + 'symbols = ["A", "A"]', "twice"),
    (ENTRY + "symbols = [3]", "no symbol"),
    (ENTRY + 'broker = "paperr"', "did you mean paper"),
    (ENTRY + 'name = "a/b"', "name"),
    (ENTRY + 'release = "nosuch7"', "no bundle 'nosuch7'"),
    (ENTRY.replace("unreleased = true", ""), "unreleased = true"),
    (ENTRY.replace("true", '"yes"'), "true or false"),
    (ENTRY + '[[account]]\nstrategy = "sma_cross"\nfeed = "AAPL"\nunreleased = true', "two accounts are called 'main'"),
    (ENTRY + "[limit]\nx = 1", "did you mean limits"),
    (ENTRY + "[limits]\norder_valu = 1", "did you mean order_value"),
    (ENTRY + '[limits]\norder_value = "much"', "order_value"),
]


@pytest.mark.parametrize("text, told", REFUSED, ids=[t for _, t in REFUSED])
def test_what_is_wrong_is_said_in_one_line_with_its_place(text, told):
    with pytest.raises(LiveError, match=told) as e:
        parse(tomllib.loads(text), "demo.toml")
    assert e.value.line.startswith("demo.toml") and "\n" not in e.value.line


@pytest.mark.parametrize("more, told", [
    ('params = {fats = 3}', "did you mean fast"), ('costs = "us_stock"', "did you mean us_stocks"),
    ('limits = "max_drawdon=0.1"', "did you mean max_drawdown"), ('options = {bands = 1}', "did you mean band"),
])  # fmt: skip
def test_what_only_the_engine_knows_is_found_when_things_are_made(more, told):
    account = parse(tomllib.loads(ENTRY + more), "demo.toml").accounts[0]
    with pytest.raises(LiveError, match=rf"demo.toml: \[\[account\]\] 1 'main'.*{told}"):
        account.made()


def test_a_file_that_is_no_toml_or_not_there(tmp_path):
    (tmp_path / "a.toml").write_text("id = \nx = 1")
    with pytest.raises(LiveError, match="a.toml: no TOML.*line 1"):
        load_deployment(tmp_path / "a.toml")
    with pytest.raises(LiveError, match="b.toml: No such file"):
        load_deployment(tmp_path / "b.toml")


def test_unreleased_is_implied_on_paper_and_nowhere_else():
    assert shorthand("sma_cross", "AAPL").accounts[0].unreleased
    assert shorthand("sma_cross", "AAPL", "paper:http://127.0.0.1:1").accounts[0].unreleased
    with pytest.raises(LiveError, match="unreleased"):
        shorthand("sma_cross", "AAPL", "mine:Broker")
    assert shorthand("sma_cross", "AAPL", "mine:Broker", unreleased=True).accounts[0].broker == "mine:Broker"


def test_the_id_of_a_shorthand_is_stable_and_legal():
    d = shorthand("ideas/my notebook.ipynb:Dip", "ccxt:binance:BTC/USDT,1m")
    assert d.id == shorthand("ideas/my notebook.ipynb:Dip", "ccxt:binance:BTC/USDT,1m").id
    assert shorthand("sma_cross", "AAPL,speed=60").id == shorthand("sma_cross", "AAPL").id == "sma-cross-AAPL"
    assert isinstance(d, Deployment) and d.journal.endswith(f"{d.id}.sqlite")


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_any_feed_text_is_taken_without_a_crash(text):
    assert isinstance(feed_text(text), str)


# -- from the command line


def run(*args) -> int:
    import tradebench.cli.live  # noqa: F401
    from tradebench.cli.shell import run_app

    return run_app([str(a) for a in args])


GOOD = ENTRY + 'costs = "us_stocks"\nanchor = "2012-01-03"\n'


@pytest.fixture
def good(tmp_path):
    (tmp_path / "good.toml").write_text(GOOD)
    return tmp_path / "good.toml"


def test_a_dry_run_finds_nothing_and_leaves_nothing(good, capsys):
    assert run("live", good, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "WRONG" not in said and "unreleased: no validation" in said and "XNYS" in said and "will be made" in said
    assert [p.name for p in good.parent.iterdir()] == ["good.toml"]


@pytest.mark.parametrize("more, what", [
    ('costs = "us_stock"', "strategy of main"), ('symbols = ["IBM"]', "feed of main"), ('feed = "APPL"', "feed of main"),
    ('broker = "paper:http://127.0.0.1:9"', "broker of main"), ('feed = "nothing.here:Feed"', "feed of main"),
    ('strategy = "mine.py:Vix"', "account main"),
])  # fmt: skip
def test_a_dry_run_names_what_would_stop_the_agent(tmp_path, more, what, capsys):
    key = more.partition(" ")[0]
    lines = [x for x in ENTRY.splitlines() if not x.startswith(key)]
    (tmp_path / "bad.toml").write_text("\n".join([*lines, more]))
    (tmp_path / "mine.py").write_text(VIX)
    assert run("live", tmp_path / "bad.toml", "--dry-run") == 1
    out = capsys.readouterr()
    wrong = [x for x in out.out.splitlines() if x.strip().startswith("WRONG")]
    assert any(what in x for x in wrong), out.out
    assert "1 of" in out.err or len(wrong) > 1


VIX = """
import tradebench as tb

@tb.strategy
class Vix:
    "Needs a column that no feed brings."
    inputs = dict(vix=tb.column())

    def step(s, p, row):
        return tb.long_if(row.vix < 20)
"""


def test_a_deployment_runs_to_its_end_and_goes_on_where_it_was(good, capfd):
    assert run("live", good, "--json") == 0
    first = capfd.readouterr()
    last = json.loads(first.out.splitlines()[-1])
    assert (
        last["mode"] == "stopped"
        and last["accounts"]["main"]["bars"] > 200
        and last["accounts"]["main"]["unreleased"] is True
    )
    assert "journal" in first.err
    assert run("live", good) == 0
    again = capfd.readouterr()
    assert "goes on with" in again.err and "stopped" in again.out.splitlines()[-1]


@pytest.mark.parametrize("args, told", [
    ((), "trade what?"), (("x.toml", "--strategy", "sma_cross"), "leave out --strategy"), (("x.toml", "-p", "fast=3"), "leave out --param"),
    (("nothing.toml",), "nothing.toml"), (("--strategy", "sma_cros", "--feed", "AAPL"), "did you mean sma_cross"),
    (("--strategy", "sma_cross", "--feed", "AAPL", "--broker", "papr"), "did you mean paper"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_code_2(tmp_path, monkeypatch, capsys, args, told):
    monkeypatch.chdir(tmp_path)
    assert run("live", *args) == 2
    said = capsys.readouterr().err.strip()
    assert told in said and "\n" not in said and not list(tmp_path.iterdir())


def test_a_replay_is_compared_and_its_journal_kept(good, capsys):
    kept = good.parent / "kept.sqlite"
    assert run("replay", good, "--compare", "--journal", kept) == 0
    assert "equal, bit for bit" in capsys.readouterr().out and kept.exists()
    assert run("replay", good, "--journal", kept) == 2
    assert "must" not in capsys.readouterr().out
    assert not (good.parent / "d.sqlite").exists()  # the deployment's own journal is left alone


SLOW = 'id = "d"\ngrace = 10\n[[account]]\nstrategy = "sma_cross"\nfeed = "sim:minutes,seed=1,sessions=5,speed=1200"\nunreleased = true\n'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_the_program_leaves_everything_in_order(tmp_path, number):
    import asyncio

    (tmp_path / "slow.toml").write_text(SLOW)
    env = os.environ | dict(TRADEBENCH_DEPLOYMENT=str(tmp_path / "slow.toml"), PYTHONUNBUFFERED="1")
    agent = subprocess.Popen(
        [sys.executable, ROOT / "runners/agent.py", "--json"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in agent.stdout:
            if any(a["bars"] > 3 for a in json.loads(line)["accounts"].values()):
                break
        asked = time.monotonic()
        agent.send_signal(number)
        out, err = agent.communicate(timeout=20)
    finally:
        agent.kill()
    assert agent.returncode == 0 and time.monotonic() - asked < 10, err
    assert json.loads(out.splitlines()[-1])["mode"] == "stopped"

    async def read():
        from tradebench.live.record import opened

        async with await opened(str(tmp_path / "d.sqlite")) as journal:
            return [e.kind for e in await journal.events()]

    kinds = asyncio.run(read())
    assert kinds[-1] == "stop" and kinds.count("batch") > 3
