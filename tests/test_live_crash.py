"""Agents killed with SIGKILL under load, at random and at named points: no order twice, no fill lost, positions the venue's, and the backtest's where it can be.

A failure prints the seed and the number of its round; `python tests/test_live_crash.py SEED ROUND VENUE [KILLS]` lives through it again.
"""

import sys

import pytest
from servers import Postgres

from tradebench.errors import TradebenchError
from tradebench.live.crash import POINTS, round_of, sweep, total
from tradebench.live.crash_life import KILLED, Lives, arm
from tradebench.live.deployment import shorthand


def run(kills, seed, venue, **more):
    outcomes = sweep(kills, seed, venue=venue, **more)
    for o in outcomes:
        assert o.ok, "\n".join([f"seed {seed}: {o}", *o.verdict.lines(), o.log])
    assert sum(o.kills for o in outcomes) == kills
    return total(outcomes), outcomes


def test_the_venue_dies_with_the_agent():
    found, _ = run(4, 5, "inside", sessions=10)
    assert found.fills > 100


def test_the_venue_waits_and_the_network_is_bad():
    found, outcomes = run(3, 5, "network", sessions=1)
    assert found.orders > 20 and outcomes[0].struck


def test_the_venue_goes_on_while_the_agent_is_dead():
    found, outcomes = run(3, 3, "wall")
    assert found.orders > 20 and outcomes[0].struck.get("silent")


@pytest.mark.parametrize("point", ["replayed"])
def test_a_named_point_is_where_it_dies(tmp_path, point):
    d = shorthand(
        "sma_cross",
        "sim:minutes,seed=3,sessions=1",
        params=dict(fast=2, slow=5),
        id=point,
        journal=str(tmp_path / "j.sqlite"),
    )
    with Lives(d, tmp_path / "log", unlimited=True) as lives:
        # the first life is killed in the middle, so that the next one has something to replay
        assert lives.run(30, dict(point="commit", moment="after", calls=8)) == KILLED
        assert lives.run(30, dict(point=point, moment="before", calls=1)) == KILLED
        assert lives.run(30) == 0


def test_an_unknown_point_is_named():
    with pytest.raises(TradebenchError, match="choose of commit, append"):
        arm("comit", "after", 1)


def test_a_round_is_repeated_by_its_seed():
    assert round_of(7, 3) == round_of(7, 3) != round_of(7, 4)
    assert {e[1]["point"] for n in range(40) for e in round_of(1, n).ends if e[1]} == set(POINTS)


@pytest.mark.slow
@pytest.mark.parametrize("venue", ["inside", "network", "wall"])
def test_a_hundred_kills(venue):
    run(100, 2024, venue)


@pytest.mark.slow
def test_a_journal_in_postgres():
    with Postgres() as server:
        run(20, 5, "network", sessions=1, journal=server.database)
        run(20, 6, "wall", journal=server.database)


if __name__ == "__main__":
    seed, number, venue = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    kills = int(sys.argv[4]) if len(sys.argv) > 4 else 20
    for o in sweep(kills, seed, venue=venue, first=number):
        print(o, f"struck: {o.struck}", *o.verdict.lines(20), o.log, sep="\n")
