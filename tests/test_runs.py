"""Run folders: whole or absent, complete, repeatable to the last bit, and any number at once. A run in a kernel takes some seconds."""

import json, os, re, shutil, signal, subprocess, sys, time, tomllib, zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from tradebench import Costs, backtest, compare, find, load, load_run, run_backtest, runs, verify
from tradebench.backtest.execute import clean_up, runner
from tradebench.backtest.job import Job, check, costs_from, made, run_job
from tradebench.backtest.manifest import from_json, git_commit, new_id, result_hash, to_json
from tradebench.errors import DataError, EngineError, RunError, StrategyError, TradebenchError
from tradebench.ledger import trials
from tradebench.risk.sizing import Limits
from tradebench.settings import settings

FILES = ["backtest.ipynb", "equity.parquet", "fills.parquet", "manifest.json", "metrics.json", "orders.parquet"]
FILES += ["report.html", "trades.parquet"]
IDEA = """
from tradebench import long_if, param, strategy

@strategy
class Dip:
    "Long while the bar closes low in its range."
    below = param(0.3, 0.0, 1.0, "share of the range")

    def step(s, p, row):
        return long_if(row.close - row.low < p.below * (row.high - row.low))
"""


def book(path, source):
    cells = [dict(cell_type="code", source=source, metadata={}, outputs=[], execution_count=None)]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))


def project(folder):
    "A user's project: a strategy in a notebook and in a module, prices in a file"
    folder.mkdir(parents=True)
    book(folder / "ideas.ipynb", IDEA)
    (folder / "desk.py").write_text(IDEA)
    frame = load("MSFT", start="2010", end="2011")
    frame.rename_axis("date").set_axis(frame.index.strftime("%Y-%m-%d")).to_csv(
        folder / "prices.csv", index_label="date"
    )
    return folder


START = """
import json, sys
from tradebench import run_backtest
print(run_backtest(**json.loads(sys.argv[1])))
"""


def start(place, **given):
    return subprocess.Popen(
        [sys.executable, "-c", START, json.dumps(given)],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


CSV = dict(data="prices.csv", load=dict(stamp="session", symbols="MSFT", columns=dict(date="ts")))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return project(tmp_path_factory.mktemp("runs") / "project")


@pytest.fixture(scope="module")
def pair(place):
    "Two runs that were started at the same moment, into one folder"
    asked = [("ideas.ipynb:Dip", 0.3), ("desk:Dip", 0.2)]
    jobs = [start(place, strategy=s, params=dict(below=b), **CSV) for s, b in asked]
    out = [j.communicate(timeout=120) for j in jobs]
    assert [j.returncode for j in jobs] == [0, 0], out
    assert all(err == "" for _, err in out)  # nothing but the path is said
    return [load_run(text.strip()) for text, _ in out]


# a good run


def test_a_run_leaves_a_whole_folder(pair):
    for run in pair:
        assert sorted(p.name for p in run.path.iterdir()) == FILES
        assert run.path.parent == settings().runs.folder and re.fullmatch(r"\d{8}-\d{6}-dip-prices-[0-9a-f]{6}", run.id)
    assert not [p for p in pair[0].path.parent.iterdir() if p.name.startswith(".")]
    assert len({r.id for r in pair}) == 2


def test_a_run_gives_what_a_direct_backtest_gives(pair, place):
    bars = load(place / "prices.csv", **CSV["load"])
    r = backtest(find("strategy", f"{place}/ideas.ipynb:Dip")(below=0.3), bars)
    run = pair[0]
    assert result_hash(r) == run.manifest["result"]["hash"]
    pd.testing.assert_frame_equal(run.trades, r.trades)
    np.testing.assert_array_equal(run.equity["equity"], r.equity)
    assert {k: v for k, v in run.metrics.items() if v == v} == {k: v for k, v in r.metrics.items() if v == v}
    assert len(run.fills) == len(r.fills) and len(run.orders) == len(r.orders)


def test_the_manifest_says_everything_that_is_needed_to_repeat_it(pair, place):
    m = pair[0].manifest
    assert m["job"]["strategy"] == f"{place}/ideas.ipynb:Dip" and m["job"]["data"] == f"{place}/prices.csv"
    assert m["params"] == dict(below=0.3) and m["seeds"] == dict(python=0, numpy=0)
    assert {"python", "numpy", "numba", "pandas", "tradebench"} <= set(m["versions"])
    assert len({m["strategy"]["code_hash"], m["strategy"]["engine_hash"], m["data"]["hash"], m["result"]["hash"]}) == 4
    assert m["costs"]["MSFT"]["fee_bps"] == settings().backtest.fee_bps and m["initial"] == settings().backtest.initial
    assert m["options"]["fill"] == "next_open" and m["limits"]["max_gross"] == "inf" and "fraction" in m["sizing"]
    assert set(m["seconds"]) == {"load", "backtest", "save", "total"} and m["data"]["rows"] == 504


def test_the_report_is_for_people_and_the_notebook_for_reviewers(pair):
    page = pair[0].report.read_text()
    shown = re.sub(r"<script>.*?</script>", "", page, flags=re.S)  # plotly.js itself names addresses
    assert "def step" not in shown and "run_job" not in shown and not re.search("(src|href)=.?https?:", shown)
    assert pair[0].id in page and pair[0].manifest["data"]["hash"] in page
    raw = json.loads(pair[0].notebook.read_text())
    assert all(c["outputs"] for c in raw["cells"] if "table(result" in "".join(c["source"]))
    shown = [
        o["data"]
        for c in raw["cells"]
        for o in c.get("outputs", ())
        if "application/vnd.plotly.v1+json" in o.get("data", {})
    ]
    assert len(shown) == 2
    assert ".tmp" not in pair[0].notebook.read_text()


def test_a_run_is_entered_in_the_ledger_and_tests_do_not_count(pair):
    table = trials().set_index("run_id")
    assert list(table.loc[[r.id for r in pair], "kind"]) == ["test", "test"] and not table["counted"].any()
    assert pair[0].manifest["trial"]["id"] == table.loc[pair[0].id, "id"]


def test_a_run_is_found_by_the_beginning_or_the_end_of_its_id(pair):
    a, b = pair
    assert load_run(a.id).id == load_run(a.path).id == load_run(a.id[-6:]).id == a.id
    with pytest.raises(RunError, match=f"2 runs begin with '{a.id[:8]}'"):
        load_run(a.id[:8] if a.id[:8] == b.id[:8] else "")
    with pytest.raises(RunError, match="unknown run 'nope'"):
        load_run("nope")
    with pytest.raises(RunError, match="there are no runs"):
        load_run("nope", folder="/none")


def test_runs_are_listed_and_what_is_no_run_is_left_out(pair):
    folder = pair[0].path.parent
    (folder / ".x.1.tmp").mkdir()
    (folder / ".x.1.tmp" / "manifest.json").write_text("{}")
    (folder / "notes").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "manifest.json").write_text("{}")
    try:
        with pytest.warns(UserWarning, match="broken is left out"):
            table = runs()
        assert set(table["id"]) == {r.id for r in pair} and list(table["params"].sort_values()) == [
            "below=0.2",
            "below=0.3",
        ]
    finally:
        subprocess.run(["rm", "-r", folder / ".x.1.tmp", folder / "notes", folder / "broken"], check=True)
    assert len(runs("/none")) == 0


def test_two_runs_are_compared_side_by_side(pair):
    table = compare(pair[0].id[-6:], pair[1])
    assert list(table.loc["input"].index) == ["params.below"]
    a, b, d = table.loc[("metric", "sharpe")]
    assert (a, b, d) == (pair[0].metrics["sharpe"], pair[1].metrics["sharpe"], b - a)


# again


def test_a_run_is_verified_from_another_folder_and_under_other_settings(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRADEBENCH__BACKTEST__FEE_BPS", "50")
    before = len(runs())
    told = verify(pair[1].id, progress=False)
    assert told.ok and bool(told) and not told.differences and "the same code" in repr(told), told
    assert len(runs()) == before and list(tmp_path.iterdir()) == []
    assert trials().iloc[-1]["kind"] == "verify"


def test_a_changed_strategy_and_changed_data_are_told_apart_and_shown(pair, place, tmp_path):
    old_book, old_prices = (place / "ideas.ipynb").read_text(), (place / "prices.csv").read_text()
    try:
        book(place / "ideas.ipynb", IDEA.replace("< p.below", "<= p.below * 1.05"))
        lines = old_prices.splitlines()
        cells = lines[-2].split(",")
        cells[4] = str((float(cells[2]) + float(cells[3])) / 2)
        (place / "prices.csv").write_text("\n".join([*lines[:-2], ",".join(cells), lines[-1]]) + "\n")
        told = verify(pair[0], progress=False)
        (place / "ideas.ipynb").unlink()
        gone = verify(pair[0], progress=False)
    finally:
        (place / "ideas.ipynb").write_text(old_book)
        (place / "prices.csv").write_text(old_prices)
    text = repr(told)
    assert not told and "NOT the same" in text
    assert "code: the strategy changed" in text and "data: the bars changed" in text and "result:" in text
    assert re.search(r"trade \d+ MSFT: .*->", text) and "metric sharpe:" in text and "engine" not in text
    assert not gone and "it cannot be run again: no such file" in gone.differences[0]


# bad input


def folder_of(tmp_path):
    return tmp_path / "new" / "folder" / "run"


@pytest.mark.parametrize(
    "given, error, says",
    [
        (dict(strategy="sma_kross"), StrategyError, "did you mean sma_cross"),
        (dict(strategy="none.ipynb:X"), StrategyError, "no such file"),
        (dict(params=dict(fast=500)), StrategyError, r"must lie in"),
        (dict(params=dict(fats=5)), StrategyError, "did you mean fast"),
        (dict(params=dict(fast="many")), StrategyError, "expected int"),
        (dict(params="fast=60 slow=50"), StrategyError, "fast < slow"),
        (dict(params="fast"), EngineError, "name=value"),
        (dict(data="APPL"), DataError, "did you mean AAPL"),
        (dict(data="no/prices.csv"), DataError, "no such file"),
        (dict(data=[]), DataError, r"data = \[\]"),
        (dict(data=["AAPL", 5]), DataError, "as text"),
        (dict(load=dict(stmp="end")), DataError, "did you mean stamp"),
        (dict(start="the first"), DataError, "not a date"),
        (dict(costs="us_stock"), EngineError, "did you mean us_stocks"),
        (dict(costs="fee_bps=-1 spread_bps=x"), EngineError, "must be a number"),
        (dict(costs=dict(fee=1)), EngineError, "did you mean fee"),
        (dict(costs=dict(AAPL=dict(spread_bps=-1))), EngineError, "at least 0"),
        (dict(sizing="kely"), EngineError, "did you mean kelly"),
        (dict(limits="max_gross=0"), EngineError, "above 0"),
        (dict(options=dict(fill="now")), EngineError, "next_open"),
        (dict(options="fil=close"), EngineError, "did you mean fill"),
        (dict(options="band=wide"), EngineError, "band"),
        (dict(initial=-5), EngineError, "starts with money"),
        (dict(initial="lots"), EngineError, "starts with money"),
    ],
)
def test_bad_input_is_one_line_before_a_kernel_starts_and_leaves_nothing(tmp_path, given, error, says):
    begin = time.perf_counter()
    with pytest.raises(error, match=says) as e:
        run_backtest(**given, out=folder_of(tmp_path), progress=False)
    assert "\n" not in str(e.value) and time.perf_counter() - begin < 2
    assert list(tmp_path.iterdir()) == []


def test_dirty_data_found_in_the_kernel_is_one_line_and_leaves_nothing(tmp_path, place, capfd):
    lines = (place / "prices.csv").read_text().splitlines()
    cells = lines[100].split(",")
    cells[2] = str(float(cells[3]) / 2)  # a high below the low
    (tmp_path / "dirty.csv").write_text("\n".join([*lines[:100], ",".join(cells), *lines[101:]]))
    with pytest.raises(DataError) as e:
        run_backtest(data=str(tmp_path / "dirty.csv"), load=CSV["load"], out=folder_of(tmp_path), progress=False)
    assert "\n" not in str(e.value) and "high" in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["dirty.csv"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "job", [dict(start="2031"), dict(start="2010", end="2009"), dict(data="AAPL", load=dict(symbols="MSFT"))]
)
def test_an_empty_range_and_a_missing_symbol_are_data_errors(job):
    with pytest.raises(DataError):
        run_job(Job(**job))


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "note").write_text("mine")
    for out in (tmp_path / "x", tmp_path / "x" / "note"):
        with pytest.raises(RunError, match="exists and is not empty"):
            run_backtest(out=out, progress=False)
    with pytest.raises(RunError, match="cannot make the run folder"):
        run_backtest(out=tmp_path / "x" / "note" / "run", progress=False)
    assert (tmp_path / "x" / "note").read_text() == "mine"


def test_a_killed_run_leaves_only_what_the_next_one_cleans_up(tmp_path):
    job = start(tmp_path, data="AAPL", out=str(tmp_path / "r" / "run"))
    kernel = []
    for _ in range(600):
        kernel = [c for c in psutil.Process(job.pid).children() if "ipykernel_launcher" in " ".join(c.cmdline())]
        if kernel and list((tmp_path / "r").glob(".*.tmp")):
            break
        time.sleep(0.05)
    assert clean_up(tmp_path / "r") == []  # it is being written
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    assert len(runs(tmp_path / "r")) == 0 and not (tmp_path / "r" / "run").exists()
    sockets = Path(next((tmp_path / "r").glob(".*.tmp/.lock")).read_text())
    assert (
        len(clean_up(tmp_path / "r")) == 1
        and not (sockets.name and sockets.exists())
        and list((tmp_path / "r").iterdir()) == []
    )
    assert psutil.wait_procs(kernel, timeout=15)[1] == []  # the kernel sees that nobody is there


# the parts


def test_the_notebook_declares_the_parameters_of_a_job_with_its_defaults():
    cells = json.loads(runner().read_text())["cells"]
    declared = {}
    exec("".join(next(c["source"] for c in cells if "parameters" in c["metadata"].get("tags", ()))), declared)
    declared.pop("__builtins__")
    assert declared == Job().plain()
    assert not [c for c in cells if c.get("outputs")]


def test_an_unknown_papermill_parameter_is_an_error():
    shell = dict(In=["a"], Out={}, _i=1, pd=pd, exit=print, strategy="sma_cross", params={})
    assert Job.of(shell) == Job()
    with pytest.raises(RunError, match="did you mean params"):
        Job.of(shell | dict(parms={}))


def test_text_and_objects_ask_for_the_same():
    assert (
        costs_from("fee_bps=5,spread_bps=2")
        == costs_from(dict(fee_bps=5, spread_bps=2))
        == costs_from(Costs(fee_bps=5, spread_bps=2))
    )
    assert Job(costs=Costs(fee_bps=5)).costs["fee_bps"] == 5
    assert Job(costs=dict(AAPL=Costs(fee_bps=5))).costs["AAPL"]["fee_bps"] == 5
    assert costs_from(dict(AAPL=dict(fee_bps=5)))["AAPL"] == Costs(fee_bps=5)
    assert made(Limits, Limits(max_gross=2.0), "limits") == made(Limits, "max_gross=2", "limits")
    assert check(Job(options="fill=close maker_costs=true band=none"))["options"].fill == "close"
    assert Job(params=None, load=None, start=None, initial=None, limits=None) == Job()


def test_json_holds_what_is_not_finite_in_a_form_that_every_reader_takes():
    text = to_json(dict(a=np.nan, b=np.inf, c=-np.inf, d=np.float64(1.5), e=[np.int64(3)], f=(None, True)))
    back = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert back == dict(a=None, b="inf", c="-inf", d=1.5, e=[3], f=[None, True])
    assert from_json(dict(a=None, b="-inf", d=1.5))["b"] == -np.inf


def test_ids_of_one_second_differ_and_are_safe_names():
    ids = {new_id(Job(strategy="a/b.ipynb:MyIdea", data="/x y/p q.csv.gz")) for _ in range(50)}
    assert len(ids) == 50 and all(re.fullmatch(r"[\w-]+-my_idea-p_q-[0-9a-f]{6}", i) for i in ids)
    assert re.search(r"-sim_minutes_seed_3-", new_id(Job(data="sim:minutes,seed=3"))) and "-AAPL-" in new_id(
        Job(data=["AAPL", "MSFT"])
    )


def test_several_names_and_a_source_of_ones_own_run(tmp_path):
    (tmp_path / "src.py").write_text(
        "from tradebench import load\ndef spring():\n    return load('AAPL', start='2010', end='2010')\n"
    )
    assert run_job(Job(data=["AAPL", "MSFT"], start="2010", end="2010")).result.bars.symbols == ("AAPL", "MSFT")
    assert len(run_job(Job(data=f"{tmp_path}/src.py:spring")).result) == 252


def test_a_seed_makes_a_random_strategy_repeatable(tmp_path):
    text = "import numpy as np\nfrom tradebench import pandas_strategy\n@pandas_strategy\ndef coin(bars):\n    'Tosses.'\n    return (bars.close * 0 + np.random.rand(len(bars)) > 0.5) * 1.0\n"
    (tmp_path / "coin.py").write_text(text)
    one, two, other = (result_hash(run_job(Job(strategy=f"{tmp_path}/coin.py:coin", seed=s)).result) for s in (1, 1, 2))
    assert one == two != other


def test_a_ledger_that_cannot_be_written_is_a_warning_of_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRADEBENCH__RUNS__LEDGER", str(tmp_path / "file" / "x.sqlite"))
    settings.cache_clear()
    try:
        with pytest.warns(UserWarning, match="missing from the ledger"):
            outcome = run_job(Job(start="2012"))
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert "missing from the ledger" in outcome.result.warnings[-1]


def test_the_commit_of_a_repository_is_found(tmp_path):
    assert git_commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    (tmp_path / "f").write_text("1")
    for command in (["init", "-q"], ["add", "f"], ["commit", "-qm", "m"]):
        subprocess.run([*git, *command], check=True)
    assert re.fullmatch("[0-9a-f]{40}", git_commit(tmp_path))
    (tmp_path / "f").write_text("2")
    assert git_commit(tmp_path).endswith("-dirty")


def test_every_error_of_a_run_is_of_the_family():
    for job in (dict(strategy=""), dict(strategy=":"), dict(data=":"), dict(params=dict(a=1)), dict(options="=")):
        with pytest.raises(TradebenchError):
            check(Job(**job))


ROOT = Path(__file__).parents[1]


def test_an_installed_tradebench_brings_the_notebook_along():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = {
        "share/tradebench/runners": ["runners/*.ipynb", "runners/*.py"],
        "share/tradebench/nbs": ["nbs/index.ipynb"],
        "share/tradebench/sql": ["sql/*.sql"],
    }
    assert project["tool"]["setuptools"]["data-files"] == shipped


@pytest.mark.slow
def test_the_wheel_holds_the_notebook_where_it_is_looked_for(tmp_path):
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(
        lambda n: (ROOT / n).is_file() and (n == "nbs/index.ipynb" or not n.startswith("nbs/")),
        names.stdout.split("\n"),
    ):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "src" / name)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(tmp_path / "src"),
    ]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    found = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("data/share/tradebench/runners/backtest.ipynb")]
    assert len(found) == 1 and zipfile.ZipFile(wheel).read(found[0]) == runner().read_bytes()
