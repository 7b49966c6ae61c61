"""Compiled functions: what names the cached code, how it is kept, and what a person reads when it cannot be compiled."""

import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tradebench import jit
from tradebench.errors import StrategyError
from tradebench.jit import array_at, address, call_at, entry, fingerprint, kernel, native, record_at

GAIN = 2.0


def inner(x):
    return GAIN * x


@native
def scaled(x, out):
    for i in range(x.shape[0]):
        out[i] = inner(x[i])


def test_native_equals_plain_python():
    x, out, plain = np.linspace(0, 1, 7), np.zeros(7), np.zeros(7)
    scaled(x, out)
    scaled.fn(x, plain)
    assert (out == plain).all() and out[-1] == 2.0


def test_native_forms_follow_dtype_and_dimensions():
    @native
    def total(x, out):
        s = 0.0
        for v in x.flat:
            s += v
        out[0] = s

    out = np.zeros(1)
    total(np.arange(4.0), out)
    assert out[0] == 6.0
    total(np.arange(6, dtype="i8").reshape(2, 3), out)
    assert out[0] == 15.0


def test_native_returns_integer_only_when_annotated():
    @native
    def count(n) -> int:
        return n + 1

    assert count(3) == 4
    assert scaled(np.zeros(1), np.zeros(1)) is None


@pytest.mark.parametrize("bad", [np.arange(8.0)[::2], [1.0], "a"])
def test_native_refuses_what_it_cannot_take(bad):
    with pytest.raises(TypeError):
        scaled(bad, np.zeros(8))


def test_records_and_addresses_in_compiled_and_plain_code():
    pair = np.dtype([("a", "f8"), ("b", "i8")])

    def swap(addr):
        r = record_at(addr, pair)
        r.a, r.b = float(r.b), int(r.a)
        return r.b

    for run in (swap, entry(swap)):
        block = np.array([(3.0, 5)], pair)
        assert run(address(block)) == 3 and block[0].tolist() == (5.0, 3)
    assert array_at(address(block), (1,), pair)[0].a == 5.0


def test_entry_calls_another_by_its_address():
    def double(x):
        return 2 * x

    at = jit.compiled(double)

    def outer(block):
        a = array_at(block, (2,), np.dtype("i8"))
        return call_at(a[0], a[1])

    assert entry(outer)(address(np.array([at, 21]))) == 42
    assert outer(address(np.array([at, 21]))) == 42


def test_fingerprint_sees_a_constant_two_calls_away(monkeypatch):
    before = fingerprint(scaled.fn)
    monkeypatch.setitem(globals(), "GAIN", 3.0)
    assert fingerprint(scaled.fn) != before


def test_fingerprint_does_not_see_attribute_names():
    close = np.zeros(3)  # noqa: F841 - a global array with the name of an attribute must not matter

    def step(row):
        return row.close

    step.__globals__["close"] = np.zeros(3)
    try:
        fingerprint(step)
    finally:
        del step.__globals__["close"]


def test_functions_of_a_module_are_linked():
    import tradebench as tb

    def target(n):
        return int(tb.long_if(n > 3).target)

    assert [entry(target)(n) for n in (3, 4)] == [0, 1]


def test_kernel_mark_keeps_a_plain_function():
    @kernel(inline=False)
    def half(x):
        return 0.5 * x

    assert half(4.0) == 2.0


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
import numpy as np
from lib import twice
from tradebench.jit import native

@native
def run(x, out):
    out[0] = twice(x[0])

out = np.zeros(1)
run(np.ones(1), out)
print(out[0], "numba" in sys.modules)
"""


def _process(folder, cache):
    env = os.environ | {"TRADEBENCH__DATA__CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(folder=str(folder))], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_edit_is_seen_through_the_cache_and_a_warm_process_needs_no_compiler(tmp_path):
    lib = tmp_path / "lib.py"
    lib.write_text("def twice(x):\n    return 2.0 * x\n")
    assert _process(tmp_path, tmp_path / "cache") == ["2.0", "True"]
    assert _process(tmp_path, tmp_path / "cache") == ["2.0", "False"]
    lib.write_text("# a comment moves the lines\n\n\ndef twice(x):\n    return 2.0 * x\n")
    assert _process(tmp_path, tmp_path / "cache") == ["2.0", "False"]
    lib.write_text("def twice(x):\n    return 3.0 * x\n")
    assert _process(tmp_path, tmp_path / "cache") == ["3.0", "True"]


def test_damaged_cache_is_compiled_again(tmp_path):
    (tmp_path / "lib.py").write_text("def twice(x):\n    return 2.0 * x\n")
    _process(tmp_path, tmp_path / "cache")
    for file in (tmp_path / "cache" / "kernels").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    assert _process(tmp_path, tmp_path / "cache") == ["2.0", "True"]
    for file in (tmp_path / "cache" / "kernels").iterdir():
        file.write_bytes(b"")
    assert _process(tmp_path, tmp_path / "cache") == ["2.0", "True"]


def test_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "lib.py").write_text("def twice(x):\n    return 2.0 * x\n")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert _process(tmp_path, tmp_path / "cache") == ["2.0", "True"]


def test_two_processes_at_once_share_a_cold_cache(tmp_path):
    (tmp_path / "lib.py").write_text("def twice(x):\n    return 2.0 * x\n")
    env = os.environ | {"TRADEBENCH__DATA__CACHE": str(tmp_path / "cache")}
    text = PROGRAM.format(folder=str(tmp_path))
    jobs = [
        subprocess.Popen([sys.executable, "-c", text], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [j.communicate(timeout=120)[0].split()[0] for j in jobs] == ["2.0", "2.0"]
    assert not [f for f in (tmp_path / "cache" / "kernels").iterdir() if f.suffix != ".o"]


BROKEN = {
    "a list": ("y = [1, 2]\n    y.append('a')\n    return y[0]", "y.append('a')"),
    "an array made inside": ("y = np.zeros(3)\n    return y[0]", "np.zeros(3)"),
    "an unknown name": ("return nowhere + x", "nowhere"),
    "a dict": ("y = {'a': x}\n    return y['a']", "'a'"),
    "an attribute that is not there": ("return x.closing", "x.closing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_error_names_the_line_and_what_is_allowed(name, tmp_path):
    body, shown = BROKEN[name]
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(f"import numpy as np\n\ndef step(x):\n    {body}\n"))
    scope = {}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    step = scope["step"]

    @native
    def run(x, out):
        out[0] = step(x[0])

    with pytest.raises(StrategyError) as e:
        run(np.ones(1), np.zeros(1))
    assert "mine.py, line" in str(e.value) and shown in str(e.value) and "no lists, dicts" in str(e.value)
    assert "\n" not in str(e.value)


def test_array_from_outside_is_refused_with_a_remedy():
    table = np.arange(3.0)

    def look(i):
        return int(table[i])

    with pytest.raises(StrategyError, match="pass arrays as inputs"):
        entry(look)


def test_math_functions_need_nothing_but_the_c_library():
    @native
    def mathematics(x, out):
        out[0] = math.exp(x[0]) + math.log(x[1]) + x[0] ** 1.5 + math.sin(x[1]) + math.tanh(x[0])

    out, plain = np.zeros(1), np.zeros(1)
    mathematics(np.array([0.3, 2.0]), out)
    mathematics.fn(np.array([0.3, 2.0]), plain)
    np.testing.assert_allclose(out, plain, rtol=1e-15)
