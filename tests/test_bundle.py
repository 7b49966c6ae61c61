"""Bundles: whatever is changed in one is found and named before anything of it is used."""

import json
import multiprocessing
import os
import shutil

import pytest
from hypothesis import given, settings, strategies as st

from tradebench.errors import ReleaseError
from tradebench.validation.bundle import (
    CONTENTS,
    NEEDED,
    SIGNATURE,
    check_bundle,
    key_name,
    load_key,
    new_key,
    read_bundle,
    trusted_keys,
    write_bundle,
)

FILES = {
    "manifest.json": json.dumps(dict(strategy="sma_cross", params=dict(fast=20, slow=100))).encode(),
    "verdict.json": json.dumps(dict(passed=True, lines=[])).encode(),
    "validation.ipynb": b'{"cells": []}',
    "lock.txt": b"numpy==2.4.6\n",
    "models/trees.bin": bytes(range(256)),
    "strategy/ideas.py": b"# nothing\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    new_key(folder / "keys/me.pem")
    new_key(folder / "other/them.pem")
    return folder


@pytest.fixture(scope="module")
def trusted(place):
    return trusted_keys(place / "keys")


@pytest.fixture(scope="module")
def made(place):
    return write_bundle(place / "store", FILES, load_key(place / "keys/me.pem"))


@pytest.fixture
def copy(made, tmp_path):
    target = tmp_path / made.path.name
    shutil.copytree(made.path, target)
    return target


def refused(path, trusted) -> str:
    with pytest.raises(ReleaseError) as e:
        check_bundle(read_bundle(path), trusted)
    return str(e.value)


def test_a_bundle_as_it_was_written_is_accepted(made, trusted):
    check_bundle(made, trusted)
    assert set(made.contents) == set(FILES) and made.passed and made.manifest["params"]["fast"] == 20


@settings(max_examples=150)
@given(name=st.sampled_from([*FILES, CONTENTS, SIGNATURE]), at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_bit_of_any_file(made, trusted, tmp_path_factory, name, at, bit):
    folder = tmp_path_factory.mktemp("one") / made.path.name
    shutil.copytree(made.path, folder)
    data = bytearray((folder / name).read_bytes())
    data[int(at * len(data))] ^= 1 << bit
    (folder / name).write_bytes(data)
    said = refused(folder, trusted)
    assert name in said or name in (CONTENTS, SIGNATURE), said
    shutil.rmtree(folder.parent)


def test_files_that_are_missing_new_or_links(copy, trusted, tmp_path):
    (copy / "models/trees.bin").rename(tmp_path / "kept")
    assert "models/trees.bin is missing" in refused(copy, trusted)
    os.symlink(tmp_path / "kept", copy / "models/trees.bin")
    assert "models/trees.bin was altered" in refused(copy, trusted)
    os.unlink(copy / "models/trees.bin")
    (tmp_path / "kept").rename(copy / "models/trees.bin")
    check_bundle(read_bundle(copy), trusted)
    (copy / "strategy/more.py").write_text("import os")
    assert "strategy/more.py was not there when it was signed" in refused(copy, trusted)


def test_a_consistent_forgery_has_another_name_or_no_signature(made, copy, trusted, place):
    other = write_bundle(
        place / "forged",
        FILES | {"manifest.json": FILES["manifest.json"].replace(b"20", b"21")},
        load_key(place / "other/them.pem"),
    )
    assert other.hash != made.hash and "not trusted here" in refused(other.path, trusted)
    for name in ("manifest.json", CONTENTS):  # under the name of the first one
        shutil.copy(other.file(name), copy / name)
    assert "contents.json was altered" in refused(copy, trusted)
    renamed = copy.with_name(other.hash)
    copy.rename(renamed)
    assert "does not belong to its contents" in refused(renamed, trusted)
    signature = json.loads(other.file(SIGNATURE).read_bytes()) | dict(key=made.signature["key"])
    (renamed / SIGNATURE).write_text(json.dumps(signature))
    assert "does not belong to its contents" in refused(renamed, trusted)


def test_verdict_decides(place, trusted):
    for verdict in (dict(passed=False), dict(passed="yes"), dict(), dict(passed=1)):
        b = write_bundle(
            place / "store", FILES | {"verdict.json": json.dumps(verdict).encode()}, load_key(place / "keys/me.pem")
        )
        assert "may not trade" in refused(b.path, trusted)
        check_bundle(b, trusted, failing=True)


def test_names_stay_inside(place):
    key = load_key(place / "keys/me.pem")
    for name in ("../x", "/etc/x", "models/../../x", "", CONTENTS, SIGNATURE):
        with pytest.raises(ReleaseError, match="no name for a file"):
            write_bundle(place / "bad", FILES | {name: b""}, key)
    for name in NEEDED:
        with pytest.raises(ReleaseError, match=name):
            write_bundle(place / "bad", {n: d for n, d in FILES.items() if n != name}, key)
    assert not (place / "bad").exists()


def _write(args):
    store, key = args
    return write_bundle(store, FILES, load_key(key)).hash


def test_many_writers_make_one(place, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        names = set(pool.map(_write, [(tmp_path / "store", place / "keys/me.pem")] * 8))
    assert len(names) == 1 and [p.name for p in (tmp_path / "store").iterdir()] == list(names)


def test_keys(tmp_path):
    name = new_key(tmp_path / "a.pem", "secret")
    assert name == key_name((tmp_path / "a.pub").read_text().strip())
    with pytest.raises(ReleaseError, match="none is overwritten"):
        new_key(tmp_path / "a.pem")
    for wrong in ("", "other"):
        with pytest.raises(ReleaseError, match="cannot be read as a key"):
            load_key(tmp_path / "a.pem", wrong)
    assert load_key(tmp_path / "a.pem", "secret")
    with pytest.raises(ReleaseError, match="no key at"):
        load_key(tmp_path / "b.pem")
    (tmp_path / "c.pub").write_text("not a key")
    with pytest.raises(ReleaseError, match="c.pub is no public key"):
        trusted_keys(tmp_path)
