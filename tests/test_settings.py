"""Settings: three sources, one winner, and every mistake named with section, key, value, source and remedy."""

import os, pickle, shutil, subprocess, sys
from pathlib import Path

import pytest

from tradebench import schema
from tradebench.errors import SettingsError
from tradebench.schema import Secret, Settings, convert, keys, sections, template
from tradebench.settings import check, env_name, find_file, load, parse_ini, settings, show

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ini(tmp_path):
    def write(text):
        file = tmp_path / "settings.ini"
        file.write_text(text)
        return file

    return write


def values(s):
    return {name: getattr(s, name) for name in sections()}


def test_no_file_gives_the_packaged_defaults(tmp_path):
    code = (
        "from tradebench.settings import load; s = load(env={}); print(s.file, set(s.sources().values()), s.lab.port)"
    )
    got = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert got.split() == ["None", "{'default'}", "8888"]


def test_repository_file_is_the_template():
    git = shutil.which("git") and (ROOT / ".git").exists()
    if git and subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "settings.ini"], cwd=ROOT).returncode == 1:
        pytest.skip("settings.ini is edited in this working tree")
    assert (ROOT / "settings.ini").read_text() == template(), "run: make settings"


def test_template_means_the_defaults(ini):
    got = load(ini(template()), env={})
    assert values(got) == values(load(os.devnull, env={}))
    assert {n for n, s in got.sources().items() if s.startswith("settings.ini:")} == set(keys())


def test_no_key_ends_like_a_secret_file():
    assert not [n for n in keys() if n.endswith("_file") or "__" in n or n.startswith("_")]


def test_later_source_wins_and_is_named(ini):
    file = ini("# head\n[lab]\nPort = 9000\n[sweep]\nworkers=3\n")
    got = load(file, env={"TRADEBENCH__LAB__PORT": " 9100 "})
    assert (got.lab.port, got.sweep.workers, got.sweep.memory_mb) == (9100, 3, 1024)
    src = got.sources()
    assert (src["lab.port"], src["sweep.workers"]) == ("environment TRADEBENCH__LAB__PORT", "settings.ini:5")
    assert src["sweep.memory_mb"] == "default" and got.file == file


@pytest.mark.parametrize("name", [n for n, f in keys().items() if f.type is not Secret])
def test_every_key_can_be_overridden_from_the_environment(name):
    f = keys()[name]
    text = {int: "77", float: "2.5", str: "word", bool: "true", Path: "/some/where"}[f.type]
    got = load(os.devnull, env={env_name(*name.split(".")): text})
    section, key = name.split(".")
    assert getattr(getattr(got, section), key) == f.type(text if f.type is not bool else True)
    assert got.sources()[name].startswith("environment ")


@pytest.mark.parametrize(
    "name, text, wanted",
    [
        ("lab.port", "80.5", "a whole number from 1 to 65535"),
        ("lab.port", "0", "from 1 to 65535"),
        ("lab.port", "", "a whole number"),
        ("sweep.workers", "two", "a whole number from 0"),
        ("sweep.memory_mb", "15", "from 16"),
        ("backtest.initial", "0", "a number above 0"),
        ("backtest.initial", "nan", "a number above 0"),
        ("backtest.initial", "inf", "a number above 0"),
        ("backtest.fee_bps", "-1", "from 0 to 1000"),
        ("backtest.fee_bps", "inf", "from 0 to 1000"),
        ("data.default", "  ", "a text that is not empty"),
    ],
)
@pytest.mark.parametrize("source", ["file", "environment"])
def test_wrong_value_names_section_key_value_source_and_wish(ini, name, text, wanted, source):
    section, key = name.split(".")
    if source == "file":
        args, where = (ini(f"[{section}]\n{key} = {text}\n"), {}), "settings.ini:2"
        text = text.strip()
    else:
        args, where = (os.devnull, {env_name(section, key): text}), f"environment {env_name(section, key)}"
    with pytest.raises(SettingsError) as e:
        load(*args)
    line = str(e.value)
    assert line.startswith(f"[{section}] {key} = {text!r} ({where}): must be ") and wanted in line
    assert "; default " in line and "\n" not in line


@pytest.mark.parametrize(
    "text, env, words",
    [
        ("[lab]\nprot = 1\n", {}, ["[lab] prot (settings.ini:2)", "did you mean port?"]),
        ("[swep]\nworkers = 1\n", {}, ["[swep] (settings.ini:2)", "did you mean sweep?"]),
        ("", {"TRADEBENCH__LAB__PROT": "1"}, ["TRADEBENCH__LAB__PROT", "did you mean TRADEBENCH__LAB__PORT?"]),
        ("", {"TRADEBENCH__LAB": "1"}, ["TRADEBENCH__LAB", "TRADEBENCH__SECTION__KEY"]),
        ("", {"TRADEBENCH__ZZZ__QQQ_FILE": "x"}, ["TRADEBENCH__ZZZ__QQQ_FILE", "sections: data, backtest"]),
        ("port = 1\n", {}, ["settings.ini:1", "before the first [section]"]),
        ("[lab]\nport 9000\n", {}, ["settings.ini:2", "key = value"]),
        ("[lab]\nport = 1\nport = 2\n", {}, ["settings.ini:3", "twice", "settings.ini:2"]),
    ],
)
def test_what_is_not_understood_is_an_error_with_a_hint(ini, text, env, words):
    with pytest.raises(SettingsError) as e:
        load(ini(text), env)
    assert all(w in str(e.value) for w in words), str(e.value)


def test_variables_of_other_programs_are_left_alone():
    load(os.devnull, env={"TRADEBENCH_SETTINGS": "", "TRADEBENCHX": "1", "PATH": "/bin"})


def test_check_lists_all_and_load_counts_the_rest(ini):
    file, env = ini("[lab]\nprot = 1\nport = x\n"), {"TRADEBENCH__SWEEP__WORKERS": "-1"}
    assert len(check(file, env)) == 3
    with pytest.raises(SettingsError, match="and 2 more"):
        load(file, env)
    assert check(os.devnull, {}) == []


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_mounted_secret_is_read_without_its_line_end(tmp_path, end):
    (tmp_path / "token").write_bytes(f" s3cret{end}".encode())
    got = load(os.devnull, env={"TRADEBENCH__LAB__TOKEN_FILE": str(tmp_path / "token")})
    assert got.lab.token.reveal() == " s3cret"
    assert got.sources()["lab.token"] == f"file {tmp_path / 'token'} (TRADEBENCH__LAB__TOKEN_FILE)"


def test_any_key_can_come_from_a_mounted_file(tmp_path):
    (tmp_path / "port").write_text("9000\n")
    assert load(os.devnull, env={"TRADEBENCH__LAB__PORT_FILE": str(tmp_path / "port")}).lab.port == 9000


def test_value_and_file_together_are_an_error(tmp_path):
    env = {"TRADEBENCH__LAB__TOKEN": "a", "TRADEBENCH__LAB__TOKEN_FILE": str(tmp_path / "token")}
    with pytest.raises(SettingsError, match=r"\[lab\] token: both TRADEBENCH__LAB__TOKEN and .*_FILE are set"):
        load(os.devnull, env)


def test_missing_secret_file_is_an_error_with_its_path(tmp_path):
    with pytest.raises(
        SettingsError, match=r"\[lab\] token: file named by TRADEBENCH__LAB__TOKEN_FILE, .*none: No such"
    ):
        load(os.devnull, env={"TRADEBENCH__LAB__TOKEN_FILE": str(tmp_path / "none")})


def test_secret_is_shown_nowhere(ini):
    from rich.console import Console

    got = load(ini("[lab]\ntoken = s3cret\n"), env={})
    console = Console(record=True, width=200, file=open(os.devnull, "w"))
    console.print(show(got))
    texts = [
        repr(got),
        str(got),
        f"{got}",
        repr(got.lab),
        f"{got.lab.token:>9}",
        str(got.rows()),
        console.export_text(),
    ]
    assert not [t for t in texts if "s3cret" in t] and all("***" in t for t in texts)
    assert pickle.loads(pickle.dumps(got)).lab.token.reveal() == "s3cret"


@pytest.mark.parametrize("text", ["[lab]\ntoken =\n  s3cret\n", "[lab]\ntokn = s3cret\n", "[laab]\ntoken = s3cret\n"])
def test_secret_in_a_faulty_line_is_not_shown(ini, text):
    problems = check(ini(text), {})
    assert problems and "s3cret" not in " ".join(problems)


def test_paths_home_relative_and_empty(ini, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    got = load(ini("[runs]\nfolder = out/runs\nledger = ~/l.sqlite\n[data]\ncache =\n"), env={})
    assert got.runs.folder == tmp_path / "out" / "runs" and got.runs.ledger == tmp_path / "l.sqlite"
    assert got.data.cache == load(os.devnull, env={}).data.cache and got.data.cache.is_absolute()
    monkeypatch.chdir(tmp_path / "..")
    assert load(os.devnull, env={"TRADEBENCH__RUNS__FOLDER": "here"}).runs.folder == tmp_path.parent / "here"


def test_search_order(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for where, port in ((tmp_path, 9001), (tmp_path / "a", 9002)):
        (where / "settings.ini").write_text(f"[lab]\nport = {port}\n")
    other, third = tmp_path / "other.ini", tmp_path / "third.ini"
    other.write_text("[lab]\nport = 9003\n")
    third.write_text("[lab]\nport = 9004\n")
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert load(env={}).lab.port == 9002
    assert load(env={"TRADEBENCH_SETTINGS": str(other)}).lab.port == 9003
    assert load(third, env={"TRADEBENCH_SETTINGS": str(other)}).lab.port == 9004
    for bad in ({"path": tmp_path / "none.ini", "env": {}}, {"env": {"TRADEBENCH_SETTINGS": "none.ini"}}):
        with pytest.raises(SettingsError, match="none.ini: No such file"):
            load(**bad)
        assert len(check(**bad)) == 1


def test_search_stops_at_repository_and_home_and_passes_over_nbdev_2(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[lab]\nport = 9001\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "settings.ini").write_text("# nbdev 2\n\n[DEFAULT]\nlib_name = x\n")
    assert find_file(tmp_path / "a" / "b") == tmp_path / "settings.ini"
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "a")
    assert find_file(tmp_path / "a" / "b") is None
    monkeypatch.undo()
    (tmp_path / "a" / "b" / ".git").touch()
    assert find_file(tmp_path / "a" / "b") is None


def test_unreadable_file_is_one_line(tmp_path):
    (tmp_path / "settings.ini").write_bytes(b"[lab]\nhost = \xff\n")
    assert check(tmp_path / "settings.ini", {}) == [f"settings file {tmp_path / 'settings.ini'}: is not UTF-8 text"]


def test_file_with_byte_order_mark_and_crlf():
    assert parse_ini("\ufeff[lab]\r\nport = 9000\r\n; note\r\n") == {"lab": {"port": ("9000", "settings.ini:2")}}


def test_accessor_reads_once_until_cleared(monkeypatch):
    settings.cache_clear()
    try:
        port = settings().lab.port
        monkeypatch.setenv("TRADEBENCH__LAB__PORT", "9555")
        assert settings().lab.port == port
        settings.cache_clear()
        assert settings().lab.port == 9555
    finally:
        settings.cache_clear()


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        Settings().lab.port = 1


def test_repeating_a_default_needs_no_pydantic():
    code = """if True:
        import sys, os
        from tradebench.settings import load
        load(os.devnull, env={"TRADEBENCH__LAB__PORT": "8888"})
        assert "pydantic" not in sys.modules
        load(os.devnull, env={"TRADEBENCH__LAB__PORT": "8889"})
        assert "pydantic" in sys.modules
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_truth_values_are_read_when_a_key_is_one(monkeypatch):
    from dataclasses import fields, make_dataclass

    made = make_dataclass("Made", [("flag", bool, schema.key(False, "a switch"))], frozen=True)
    monkeypatch.setattr(schema, "keys", lambda: {"made.flag": fields(made)[0]})
    schema._adapter.cache_clear()
    assert convert("made.flag", "yes", "x") is True
    with pytest.raises(SettingsError, match="must be true or false; default False"):
        convert("made.flag", "perhaps", "x")
    schema._adapter.cache_clear()
