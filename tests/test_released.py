"""From a bundle to an agent that trades it: by hash or alias, and not at all where anything about it is not as it was validated."""

import json

import pytest

import tradebench.cli.live  # noqa: F401 - registers the verb
from tradebench.cli.shell import run_app
from tradebench.errors import ReleaseError
from tradebench.live.deployment import parse, shorthand
from tradebench.live.example import play
from tradebench.live.record import opened, run_here
from tradebench.live.types import LiveError
from tradebench.settings import settings
from tradebench.validation.bundle import load_key, new_key, write_bundle
from tradebench.validation.released import code_hashes, store

SOURCE = """
from tradebench.params import param
from tradebench.strategies.strategy import decide, strategy


@strategy
class Sometimes:
    "Long on every other stretch of bars"

    every = param(5, 2, 50, "bars in a stretch")
    state = dict(n=0)

    def step(s, p, row):
        s.n += 1
        return decide(float(s.n // p.every % 2))
"""
FEED = "sim:minutes,seed=7,sessions=3"
WHO = dict(who="ann", why="a test")


@pytest.fixture
def place(tmp_path, monkeypatch):
    new_key(tmp_path / "keys/me.pem")
    for name, value in dict(FOLDER="releases", SIGNING_KEY="keys/me.pem", TRUSTED="keys").items():
        monkeypatch.setenv(f"TRADEBENCH__RELEASE__{name}", str(tmp_path / value))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    (tmp_path / "mine.py").write_text(SOURCE)
    yield tmp_path
    settings.cache_clear()


def release(place, every=7, passed=True, source=SOURCE, **more):
    manifest = dict(
        strategy="strategy/mine.py:Sometimes",
        params=dict(every=every),
        symbols=["SIM"],
        costs="us_stocks",
        sizing="fraction=0.5",
    )
    manifest |= code_hashes(f"{place}/mine.py:Sometimes") | more
    verdict = dict(passed=passed, lines=[dict(name="dsr", passed=passed, value=0.4, reason="0.40, wanted 0.95")])
    files = {"manifest.json": manifest, "verdict.json": verdict, "validation.ipynb": {}, "lock.txt": {}}
    files = {n: json.dumps(v).encode() for n, v in files.items()} | {"strategy/mine.py": source.encode()}
    return write_bundle(settings().release.folder, files, load_key(settings().release.signing_key))


def table(deployment):
    "Orders of an agent that trades the deployment, without names"
    run_here(play(deployment))

    async def read():
        async with await opened(deployment.journal) as j:
            started = (await j.events(kinds=["start"]))[-1].body
            return [(o.symbol, o.qty, o.bar_ts, o.filled, o.value) for o in await j.orders()], started

    return run_here(read())


def test_agent_trades_what_the_bundle_says(place):
    bundle = release(place)
    store().promote(bundle.short, **WHO)
    (place / "mine.py").write_text(SOURCE.replace("% 2", "% 3"))  # what is worked on now is not what was released
    got, started = table(
        shorthand("", FEED, id="a", journal=str(place / "a.sqlite"), release="champion", capital=50_000)
    )
    assert started["config"]["accounts"][0]["release"] == bundle.hash, (
        "the journal has the hash, whatever the name means later"
    )
    assert not started["config"]["accounts"][0]["unreleased"]
    (place / "mine.py").write_text(SOURCE)
    terms = dict(params=dict(every=7), costs="us_stocks", sizing="fraction=0.5", capital=50_000)
    plain, _ = table(shorthand(f"{place}/mine.py:Sometimes", FEED, id="b", journal=str(place / "b.sqlite"), **terms))
    assert got == plain and len(got) > 100


def test_started_again_it_is_the_same_bundle(place):
    first, second = release(place), release(place, every=9)
    store().promote(first.hash, **WHO)
    d = shorthand("", FEED, id="a", journal=str(place / "a.sqlite"), release="champion")
    store().promote(second.hash, **WHO)
    assert d.accounts[0].release == first.hash and d.accounts[0].params == dict(every=7), "a name is read once"
    assert shorthand("", FEED, id="a", release="champion").accounts[0].params == dict(every=9)
    assert shorthand("", FEED, id="a", release="previous").accounts[0].params == dict(every=7)


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(params=dict(every=8)), "params comes from the bundle"),
        (dict(strategy="sma_cross"), "strategy comes from the bundle"),
        (dict(costs="free"), "costs comes from the bundle"),
        (dict(unreleased=True), "leave out unreleased"),
        (dict(symbols=["AAPL"]), "was not validated on AAPL"),
        (dict(symbols="SIM,IBM"), "was not validated on IBM"),
        (dict(release="challenger"), "no bundle is the challenger"),
    ],
)
def test_what_the_bundle_fixes_cannot_be_changed_beside_it(place, given, said):
    bundle = release(place)
    with pytest.raises(LiveError, match=said):
        parse(dict(id="d", account=[dict(release=bundle.hash, feed=FEED) | given]))


def test_what_is_not_as_it_was_validated_does_not_trade(place):
    def refusal(bundle):
        with pytest.raises(LiveError) as e:
            parse(dict(id="d", account=[dict(release=bundle.hash, feed=FEED)]))
        return str(e.value)

    assert "may not trade: dsr: 0.40, wanted 0.95" in refusal(release(place, passed=False))
    assert "the code of the engine is not what was validated" in refusal(release(place, engine_hash="0" * 32))
    assert "the code of the strategy is not what was validated" in refusal(
        release(place, source=SOURCE.replace("% 2", "% 3"))
    )
    assert "cannot be loaded here" in refusal(release(place, strategy="strategy/mine.py:Nobody"))
    assert "cannot be loaded here" in refusal(release(place, source="import nothing_of_that_name\n" + SOURCE))
    bundle = release(place, every=11)
    bundle.file("strategy/mine.py").write_text(SOURCE.replace("% 2", "% 3"))
    assert "strategy/mine.py was altered" in refusal(bundle)
    new_key(place / "elsewhere/them.pem")
    settings.cache_clear()
    files = {n: bundle.file(n).read_bytes() for n in bundle.contents}
    forged = write_bundle(settings().release.folder, files | {"lock.txt": b"x"}, load_key(place / "elsewhere/them.pem"))
    assert "not trusted here" in refusal(forged)


def test_command_line_says_why(place, capsys):
    bundle = release(place, passed=False)
    assert run_app(["live", "--release", bundle.short, "--feed", FEED, "--dry-run"]) == 2
    assert "may not trade" in capsys.readouterr().err
    good = release(place)
    store().promote(good.hash, **WHO)
    assert run_app(["live", "--release", "champion", "--feed", FEED, "--dry-run"]) == 0
    assert f"bundle {good.short}: signature, files, verdict and code agree" in " ".join(capsys.readouterr().out.split())


def test_no_key_is_said(place, monkeypatch):
    monkeypatch.setenv("TRADEBENCH__RELEASE__SIGNING_KEY", str(place / "nothing.pem"))
    settings.cache_clear()
    with pytest.raises(ReleaseError, match="there is no key at"):
        load_key(settings().release.signing_key)
