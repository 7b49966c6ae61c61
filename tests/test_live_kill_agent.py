"""Operators' commands against the real agent in a process of its own: obeyed by it, past it, and after it."""

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from test_live_kill import VenueProcess

from tradebench.cli import limits, operate  # noqa: F401 - registers the verbs
from tradebench.cli.shell import run_app
from tradebench.live.journal import open_journal

STRATEGY = """
from tradebench.params import param
from tradebench.strategies.strategy import decide, strategy


@strategy
class Held:
    "Always long"

    size = param(0.5, 0.1, 1.0, "part of the account")

    def step(s, p, row):
        return decide(p.size)
"""


def tradebench(*args, code=0):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        got = run_app(list(map(str, args)))
    assert got == code, (args, got, out.getvalue())
    return out.getvalue()


class Agent:
    "An agent over recorded daily bars, some twelve a second"

    def __init__(self, folder, broker="paper", strategy="held.py:Held", params="", name="main"):
        self.folder, self.address, self.name = folder, str(folder / "demo.sqlite"), name
        (folder / "held.py").write_text(STRATEGY)
        (folder / "demo.toml").write_text(
            f'id = "demo"\n[[account]]\nname = "{name}"\nstrategy = "{strategy}"\nparams = {{{params}}}\nfeed = "replay:AAPL,speed=1000000"\n'
            f'broker = "{broker}"\nunreleased = true\n'
        )
        self.process = None

    def start(self):
        self.log = open(self.folder / "log", "w")
        args = [sys.executable, "-m", "tradebench.live.agent", str(self.folder / "demo.toml")]
        self.process = subprocess.Popen(args, stderr=self.log)
        return self

    def status(self):
        return json.loads(tradebench("status", "-j", self.address, "--json"))

    def until(self, what, found, seconds=60):
        "Wait until the status is as wanted"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            with contextlib.suppress(AssertionError):
                if found(self.status()):
                    return
            time.sleep(0.1)
        raise AssertionError(f"{what}: {self.status()}; {(self.folder / 'log').read_text()}")

    def holds(self):
        self.until("holds", lambda s: s["positions"])
        return self

    def send(self, number):
        os.kill(self.process.pid, number)

    def events(self, *kinds):
        async def main():
            async with open_journal(self.address, readonly=True) as j:
                return [e for e in await j.events(kinds=list(kinds))]

        return asyncio.run(main())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def bar_venue():
    with VenueProcess(wall=False) as made:
        yield made


def test_agent_with_its_own_venue_well_then_hung_then_dead(tmp_path):
    with Agent(tmp_path, strategy="sma_cross", params="fast = 1, slow = 2").start().holds() as agent:
        say = ["-j", agent.address, "--by", "ann", "--why", "test"]
        assert tradebench("flatten", *say).rstrip().endswith("; flat")
        found = agent.status()
        assert found["halted"] and not found["positions"] and not found["orders"] and found["agent"] == "alive"
        batches = len(agent.events("batch"))
        agent.until("goes on, silently", lambda s: len(agent.events("batch")) > batches + 10)
        assert not any(e.body["sent"] for e in agent.events("batch")[batches:]) and not agent.status()["positions"]
        assert "resumed" in tradebench("resume", *say)

        for _ in range(5):
            agent.holds().send(signal.SIGSTOP)
            said = tradebench("flatten", *say, "--wait", "0.3", code=1)
            agent.send(signal.SIGCONT)
            if "takes the command up when it runs" in said:
                break
            assert "not in the journal" in said and "again" in said  # it was stopped while it wrote
            tradebench("resume", *say)
        agent.until("flat", lambda s: not s["positions"] and s["commands"][-1]["state"] == "done")
        tradebench("resume", *say)

        agent.holds().send(signal.SIGKILL)
        agent.process.wait()
        assert "when it runs" in tradebench("flatten", *say, "--wait", "0", code=1)
        agent.start().until(
            "flat", lambda s: s["halted"] and not s["positions"] and s["commands"][-1]["state"] == "done"
        )
        assert {e.body["to"] for e in agent.events("place")} <= {0.0}
        agent.send(signal.SIGTERM)
        assert agent.process.wait(20) == 0


def test_limits_closes_and_scoped_latches_are_obeyed_by_an_agent_that_trades_on(tmp_path):
    with Agent(tmp_path, strategy="sma_cross", params="fast = 1, slow = 2").start().holds() as agent:
        epoch, say = agent.status()["epoch"], ["-j", agent.address, "--by", "ann", "--why", "test"]
        tradebench("limits", "set", "restricted", 1, "--scope", "account:main", *say)
        agent.until("a refusal", lambda s: agent.events("refusal"))
        body = agent.events("refusal")[0].body
        assert body["control"] == "restricted" and "AAPL" in body["text"] and body["symbol"] == "AAPL"
        agent.until("flat: exits went on", lambda s: not s["positions"])
        tradebench("limits", "set", "restricted", "default", "--scope", "account:main", *say)
        agent.holds()
        tradebench("close", "AAPL", *say)
        tradebench("halt", "--symbol", "AAPL", *say)
        tradebench("cancel", "nobody", *say, code=1)
        agent.until("flat", lambda s: not s["positions"])
        found = agent.status()
        assert [(c["kind"], c["state"]) for c in found["commands"]] == [
            ("close", "done"),
            ("halt", "done"),
            ("cancel", "failed"),
        ]
        assert not found["halted"] and found["epoch"] == epoch and len(agent.events("start")) == 1, (
            "nobody had to take its right"
        )


def test_past_a_healthy_agent_at_a_venue_of_its_own(tmp_path, bar_venue):
    with Agent(tmp_path, bar_venue.broker, name="healthy").start().holds() as agent:
        said = tradebench("flatten", "-j", agent.address, "--by", "ann", "--collar", "0.2")
        assert "filled" in said, said
        agent.until("the agent's books agree", lambda s: s["halted"] and not s["positions"] and not s["orders"])
        assert bar_venue.of("healthy")[:2] == ([], {})
        tradebench("resume", "-j", agent.address, "--by", "ann", "--why", "well")
        agent.send(signal.SIGTERM)
        assert agent.process.wait(20) == 0


def test_past_a_dead_agent_the_next_one_knows(tmp_path, bar_venue):
    with Agent(tmp_path, bar_venue.broker, name="dead").start().holds() as agent:
        agent.send(signal.SIGKILL)
        agent.process.wait()
        said = tradebench("flatten", "-j", agent.address, "--by", "ann", "--collar", "0.2", "--wait", "0", code=1)
        assert "1 orders still work" in said  # bar time stands still with the agent
        agent.start().until("flat", lambda s: s["halted"] and not s["positions"] and not s["orders"])
        assert bar_venue.of("dead")[:2] == ([], {})
