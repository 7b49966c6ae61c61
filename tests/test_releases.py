"""Names of bundles: what they mean after any order of promotions and rollbacks, with several processes at once, and what is refused."""

import json
import multiprocessing
import shutil

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tradebench.errors import ReleaseError
from tradebench.validation.bundle import load_key, new_key, trusted_keys, write_bundle
from tradebench.validation.releases import Releases

WHO = dict(who="ann", why="a test")


def files(n: int, passed: bool = True) -> dict:
    manifest = dict(strategy="sma_cross", params=dict(fast=n), created="2026-01-01")
    line = dict(name="pbo", value=0.1 * n, passed=passed, reason="so it is")
    return {
        "manifest.json": json.dumps(manifest).encode(),
        "verdict.json": json.dumps(dict(passed=passed, lines=[line])).encode(),
        "validation.ipynb": b"{}",
        "lock.txt": b"",
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    new_key(folder / "me.pem")
    key = load_key(folder / "me.pem")
    made = [write_bundle(folder / "store", files(n), key).hash for n in range(1, 4)]
    return folder, key, made


@pytest.fixture
def releases(store, tmp_path):
    folder, _, _ = store
    shutil.copytree(folder / "store", tmp_path / "store")
    return Releases(tmp_path / "store", trusted_keys(folder))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["champion", "challenger"]), st.integers(0, 2)),
            st.sampled_from(["back", "retire"]),
        ),
        max_size=12,
    )
)
def test_names_mean_what_was_last_said(store, releases, steps):
    folder, _, made = store
    releases.log.unlink(missing_ok=True)
    champions, challenger, done = [], "", 0
    for step in steps:
        now = champions[-1] if champions else ""
        try:
            if step == "back":
                wanted = _before(champions)
                releases.rollback(**WHO)
                assert wanted, "there was nothing to go back to"
                champions.append(wanted)
            elif step == "retire":
                releases.retire("challenger", **WHO)
                assert challenger
                challenger = ""
            else:
                alias, i = step
                releases.promote(made[i], alias, **WHO)
                assert made[i] != (now if alias == "champion" else challenger)
                if alias == "champion":
                    champions.append(made[i])
                else:
                    challenger = made[i]
            done += 1
        except ReleaseError:
            assert (
                (step == "back" and not _before(champions))
                or (step == "retire" and not challenger)
                or made[step[1]] == (now if step[0] == "champion" else challenger)
            )
    meant = dict(champion=champions[-1] if champions else "", challenger=challenger, previous=_before(champions) or "")
    assert releases.aliases() == {k: v for k, v in meant.items() if v}
    assert len(releases.history()) == done and all((c.who, c.why) == ("ann", "a test") for c in releases.history())


def _before(champions: list):
    "What was champion before the present one"
    return champions[-2] if len(champions) > 1 else None


def test_who_and_why_are_wanted(releases, store):
    for more in (dict(who="", why="x"), dict(who="ann", why=" ")):
        with pytest.raises(ReleaseError, match="who does this, and why"):
            releases.promote(store[2][0], **more)
    assert not releases.log.exists()


def test_what_does_not_pass_gets_no_name(releases, store):
    _, key, made = store
    bad = write_bundle(releases.folder, files(9, passed=False), key)
    with pytest.raises(ReleaseError, match="may not trade: pbo: so it is"):
        releases.promote(bad.hash, **WHO)
    (releases.folder / made[0] / "lock.txt").write_bytes(b"numpy")
    with pytest.raises(ReleaseError, match="lock.txt was altered"):
        releases.promote(made[0], **WHO)
    with pytest.raises(ReleaseError, match="unknown alias 'champio'; did you mean champion"):
        releases.promote(made[1], "champio", **WHO)
    assert releases.aliases() == {}
    table = releases.table().set_index("bundle")
    assert table["state"][bad.short] == "failed" and "altered" in table["state"][made[0][:12]]


def test_champion_that_was_altered_later_is_not_opened(releases, store):
    made = store[2]
    releases.promote(made[0], **WHO)
    releases.promote(made[1], **WHO)
    assert releases.open("champion").hash == made[1]
    (releases.folder / made[0] / "extra").write_text("x")
    with pytest.raises(ReleaseError, match="extra was not there"):
        releases.rollback(**WHO)
    assert releases.open("champion").hash == made[1], "the champion stays"


def test_finding(releases, store):
    made = store[2]
    assert releases.find(made[0][:6]).hash == made[0] == releases.find(made[0]).hash
    for text, said in ((made[0][:5], "no bundle"), ("f" * 64, "no bundle"), ("champion", "no bundle is the champion")):
        with pytest.raises(ReleaseError, match=said):
            releases.find(text)


def test_comparison(releases, store):
    made = store[2]
    found = releases.compare(made[0], made[2]).set_index("what")
    assert list(found.index) == ["params.fast", "verdict pbo"] and found.iloc[0].tolist() == [1, 3]


def test_line_that_was_not_finished_is_said(releases, store):
    releases.promote(store[2][0], **WHO)
    with open(releases.log, "a") as f:
        f.write('{"ts": 1, "al')
    with pytest.raises(ReleaseError, match="line 2 cannot be read"):
        releases.aliases()


def _promote(args):
    folder, keys, names = args
    done = 0
    for name in names:
        try:
            Releases(folder, trusted_keys(keys)).promote(name, **WHO)
            done += 1
        except ReleaseError:
            pass
    return done


def test_two_processes_at_once(releases, store):
    keys, _, made = store
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        done = pool.map(_promote, [(releases.folder, keys, made * 5)] * 2)
    history = releases.history()
    assert len(history) == sum(done)
    assert all(a.bundle != b.bundle for a, b in zip(history, history[1:], strict=False)), (
        "no promotion of what was champion"
    )
