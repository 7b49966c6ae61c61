"""Names and addresses: every kind is found in the catalogue, in modules, files and notebooks, and a mistake is one clear line."""

import json, subprocess, sys
from pathlib import Path

import pytest

from tradebench import backtest, load
from tradebench.codefiles import code_cells, load_file, module_name, needed_cells, plain_python
from tradebench.errors import DataError, EngineError, StrategyError, TradebenchError
from tradebench.registry import KINDS, catalogue, find, split_address
from tradebench.strategies.strategy import STRATEGIES

HEAD = "from tradebench import long_if, pandas_strategy, param, strategy\n"
DIP = """
@strategy
class Dip:
    "Long while the bar closes low in its range."
    below = param(0.3, 0.0, 1.0, "share of the range")

    def step(s, p, row):
        return long_if(row.close - row.low < p.below * (row.high - row.low))
"""


def book(path, *cells):
    made = [dict(cell_type="code", source=c, metadata={}, outputs=[], execution_count=None) for c in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


def fails(kind, text, error=StrategyError):
    with pytest.raises(error) as e:
        find(kind, str(text))
    assert "\n" not in str(e.value)
    return str(e.value)


# the catalogue


@pytest.mark.parametrize("kind", KINDS)
def test_each_entry_of_the_catalogue_is_found_by_its_name_and_says_what_it_is(kind):
    table = catalogue(kind)
    assert list(table.columns) == ["name", "meaning", "parameters"] and len(table) > 4
    assert table["name"].is_unique and table["meaning"].str.len().min() > 8
    for name in table["name"]:
        assert find(kind, name) is not None


def test_a_class_name_and_its_snake_case_name_the_same_thing():
    assert find("strategy", "sma_cross") is find("strategy", "SmaCross") is find("strategy", " sma_cross ")
    assert find("indicator", "williams_r") is find("indicator", "WilliamsR")


@pytest.mark.parametrize(
    "kind, text, near, error",
    [
        ("strategy", "sma_kross", "sma_cross", StrategyError),
        ("indicator", "RSJ", "RSI", StrategyError),
        ("metric", "sharp", "sharpe", EngineError),
        ("costs", "us_stock", "us_stocks", EngineError),
        ("source", "APPL", "AAPL", DataError),
    ],
)
def test_an_unknown_name_gets_the_near_ones(kind, text, near, error):
    assert f"did you mean {near}" in fails(kind, text, error)


def test_kind_and_type_of_the_text_are_checked():
    assert "did you mean strategy" in fails("strategie", "x")
    with pytest.raises(EngineError, match="as text"):
        find("costs", 5)


def test_helpers_that_only_follow_columns_are_not_offered():
    assert not {"follow", "follow_orders"} & set(catalogue("strategy")["name"])


# addresses


@pytest.mark.parametrize(
    "text, want",
    [
        ("sma_cross", (None, "sma_cross")),
        ("a.b:C", ("a.b", "C")),
        ("x/y.py:C", ("x/y.py", "C")),
        ("/a b/n.ipynb:C", ("/a b/n.ipynb", "C")),
        ("sim:minutes", (None, "sim:minutes")),
        ("sim:minutes,seed=3", (None, "sim:minutes,seed=3")),
        ("x y:z", (None, "x y:z")),
    ],
)
def test_addresses_are_told_from_names(text, want):
    assert split_address(text) == want


def test_a_module_of_the_current_folder_counts(tmp_path, monkeypatch):
    (tmp_path / "mydesk").mkdir()
    (tmp_path / "mydesk" / "__init__.py").write_text("")
    (tmp_path / "mydesk" / "ideas.py").write_text(HEAD + DIP)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert find("strategy", "mydesk.ideas:Dip").__name__ == "Dip" and sys.path == path
    assert "did you mean Dip" in fails("strategy", "mydesk.ideas:Dipp")
    assert "no module 'mydesk.idea'" in fails("strategy", "mydesk.idea:Dip")
    (tmp_path / "mydesk" / "sick.py").write_text("import json\nx = 1 / 0\n")
    assert "sick.py, line 2: ZeroDivisionError" in fails("strategy", "mydesk.sick:X")
    (tmp_path / "mydesk" / "needs.py").write_text("import not_there_at_all\n")
    assert "not_there_at_all" in fails("strategy", "mydesk.needs:X")
    STRATEGIES.pop("dip", None)


def test_a_file_may_import_its_neighbours_and_read_beside_itself(tmp_path):
    (tmp_path / "my_neighbour_17.py").write_text("BELOW = 0.25\n")
    (tmp_path / "note.txt").write_text("x")
    text = (
        HEAD
        + "from my_neighbour_17 import BELOW\nopen('note.txt').close()\nprint('noise')\n"
        + DIP.replace("0.3", "BELOW")
    )
    (tmp_path / "ideas.py").write_text(text)
    here = Path.cwd()
    assert find("strategy", f"{tmp_path}/ideas.py:Dip")().values == dict(below=0.25)
    assert Path.cwd() == here and str(tmp_path) not in sys.path


# notebooks


def test_only_the_cells_that_are_needed_run(tmp_path):
    nb = book(tmp_path / "n.ipynb", HEAD, DIP, "raise SystemExit('hours of study')", DIP.replace("Dip", "Late"))
    assert find("strategy", f"{nb}:Dip").__name__ == "Dip"
    assert "n.ipynb, code cell 3, line 1: SystemExit" in fails("strategy", f"{nb}:Late")


def test_the_last_definition_of_a_name_wins():
    cells = [(1, "x = 1"), (2, "y = 0"), (3, "if y == 0:\n    x = 2"), (4, "z = 1")]
    assert [n for n, _ in needed_cells(cells, "x", "n")] == [1, 2, 3]


def test_with_exported_cells_only_those_run(tmp_path):
    nb = book(tmp_path / "n.ipynb", "1 / 0", "#| export\n" + HEAD, "#| export\n" + DIP, "other = 3")
    assert find("strategy", f"{nb}:Dip").__name__ == "Dip"
    assert "code cell 4 defines other, but only cells with #| export" in fails("strategy", f"{nb}:other")


@pytest.mark.parametrize(
    "source, want",
    [
        ("%load_ext x\ny = 1", "pass\ny = 1"),
        ("if 1:\n    !ls\nz = 2", "if 1:\n    pass\nz = 2"),
        ("a, b = !ls\nc = 1", "pass\nc = 1"),
        ("df.head?\nc = 1", "pass\nc = 1"),
        ("%%time\nx = 1", "#%%time\nx = 1"),
        ("%%html\n<b>", ""),
        ("x = (1\n  % 2)", "x = (1\n  % 2)"),
        ("s = '''\n%not magic\n'''", "s = '''\n%not magic\n'''"),
    ],
)
def test_magics_are_dropped_and_lines_keep_their_numbers(source, want):
    assert plain_python(source) == want


def test_errors_name_notebook_cell_and_line(tmp_path):
    nb = book(tmp_path / "n.ipynb", HEAD, "x = 1\ny = x / 0", DIP)
    assert fails("strategy", f"{nb}:Dip") == "n.ipynb, code cell 2, line 2: ZeroDivisionError: division by zero"
    nb = book(tmp_path / "m.ipynb", HEAD, "x = 1\n\ny = = 2", DIP)
    assert "m.ipynb, code cell 2, line 3: SyntaxError" in fails("strategy", f"{nb}:Dip")
    nb = book(tmp_path / "o.ipynb", HEAD, "def f():\n    return {}['k']", "g = f()", DIP)
    assert "o.ipynb, code cell 2, line 2: KeyError: 'k'" in fails("strategy", f"{nb}:Dip")
    assert "did you mean Dip" in fails("strategy", f"{nb}:Dop")
    assert "which strategy of" in fails("strategy", str(nb))
    assert "no such file" in fails("strategy", tmp_path / "none.ipynb:X")
    (tmp_path / "bad.ipynb").write_text("{}")
    assert "is not a Jupyter notebook" in fails("strategy", f"{tmp_path}/bad.ipynb:X")


def test_a_step_that_does_not_compile_names_the_line_of_the_cell(tmp_path):
    step = DIP.replace("return long_if(row.close", "names = dict(a=1)\n        return long_if(row.close")
    cls = find("strategy", f"{book(tmp_path / 'n.ipynb', HEAD, step)}:Dip")
    with pytest.raises(StrategyError, match=r"n\.ipynb#cell2, line 8: "):
        backtest(cls, load("AAPL", start="2012"))


def test_an_edit_is_seen_and_no_edit_gives_the_same_class(tmp_path):
    nb = book(tmp_path / "n.ipynb", HEAD, DIP)
    first = find("strategy", f"{nb}:Dip")
    assert find("strategy", f"{nb}:Dip") is first
    book(nb, HEAD, DIP.replace("< p.below", "> p.below"))
    second = find("strategy", f"{nb}:Dip")
    assert second is not first and second.code_hash() != first.code_hash()


def test_two_notebooks_may_use_one_name_even_that_of_a_built_in_one(tmp_path):
    built_in = find("strategy", "sma_cross")
    a = book(tmp_path / "a" / "n.ipynb", HEAD, DIP.replace("Dip", "SmaCross"))
    b = book(tmp_path / "b" / "n.ipynb", HEAD, DIP.replace("Dip", "SmaCross").replace("<", ">"))
    one, two = find("strategy", f"{a}:SmaCross"), find("strategy", f"{b}:SmaCross")
    assert len({one, two, built_in}) == 3 and one.code_hash() != two.code_hash()
    assert module_name(a) != module_name(b) and one.__module__ == module_name(a)
    assert find("strategy", "sma_cross") is built_in and STRATEGIES["sma_cross"] is built_in


def test_code_hashes_are_the_same_in_every_process_and_every_folder(tmp_path):
    pandas = '@pandas_strategy\ndef calm(bars, n=param(5, 2, 50, "bars")):\n    "Long above the mean."\n    return bars.close > bars.close.rolling(n).mean()\n'
    hashes = set()
    for place in ("a", "b"):
        nb = book(tmp_path / place / "n.ipynb", HEAD, DIP, pandas)
        code = f"from tradebench import find\nfor n in ('Dip', 'calm'): print(find('strategy', {str(nb)!r} + ':' + n).code_hash())"
        hashes.add(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert len(hashes) == 1 and len(hashes.pop().split()) == 2


def test_the_other_kinds_come_from_notebooks_too(tmp_path):
    nb = book(
        tmp_path / "n.ipynb",
        "import pandas as pd\nfrom tradebench import Costs, load\nfrom tradebench.features.indicator import SMA",
        "desk = Costs(fee_bps=0.4)\ndef by_symbol():\n    return dict(AAPL=desk)",
        "def spring():\n    return load('AAPL', start='2010-03', end='2010-05')",
        "def mean(returns):\n    return returns.mean()",
        "class Double(SMA):\n    'A mean.'",
        "number = 3",
    )
    assert find("costs", f"{nb}:desk").fee_bps == 0.4 and find("costs", f"{nb}:by_symbol")["AAPL"].fee_bps == 0.4
    assert find("source", f"{nb}:spring")(start="2010-04").index[0].month == 4
    assert find("metric", f"{nb}:mean").__name__ == "mean"
    assert find("indicator", f"{nb}:Double").__name__ == "Double"
    assert "Double" not in set(catalogue("indicator")["name"])
    for kind, error in dict(
        strategy=StrategyError, indicator=StrategyError, metric=EngineError, costs=EngineError, source=DataError
    ).items():
        fails(kind, f"{nb}:number", error)


def test_what_is_nearly_a_strategy_is_told_what_it_lacks(tmp_path):
    nb = book(
        tmp_path / "n.ipynb",
        HEAD,
        DIP,
        "tuned = Dip(below=0.2)\nclass Bare:\n    pass\ndef plain(bars):\n    return bars.close > 0",
    )
    assert "name the class Dip" in fails("strategy", f"{nb}:tuned")
    assert "@strategy above" in fails("strategy", f"{nb}:Bare")
    assert "@pandas_strategy above" in fails("strategy", f"{nb}:plain")


def test_cells_are_counted_without_prose(tmp_path):
    path = book(tmp_path / "n.ipynb", "a = 1", "b = 2")
    raw = json.loads(path.read_text())
    raw["cells"].insert(0, dict(cell_type="markdown", source=["# T"], metadata={}))
    path.write_text(json.dumps(raw))
    assert code_cells(path) == [(1, "a = 1"), (2, "b = 2")]
    assert vars(load_file(path, "b"))["b"] == 2


def test_every_error_is_of_the_family():
    for kind in KINDS:
        with pytest.raises(TradebenchError):
            find(kind, "no such thing at all")
