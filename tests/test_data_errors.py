"""The error family: one line, fields kept, near names suggested."""

import pickle

import pytest

from tradebench import errors
from tradebench.errors import DataError, TradebenchError, unknown


@pytest.mark.parametrize("name", ["SettingsError", "DataError", "StrategyError", "EngineError", "RunError"])
def test_each_error_is_of_the_family(name):
    assert issubclass(getattr(errors, name), TradebenchError)


def test_message_folds_into_one_line():
    assert DataError("a\n  b\tc").line == "a b c"


def test_data_error_survives_a_worker_process_with_its_fields():
    e = pickle.loads(pickle.dumps(DataError("bad", row=3, ts="2024", rule="gap")))
    assert (str(e), e.row, e.ts, e.rule) == ("bad", 3, "2024", "gap")


@pytest.mark.parametrize("typed", ["APPL", "aapl", "AALP"])
def test_a_mistyped_name_suggests_the_near_one(typed):
    assert "did you mean AAPL" in unknown("data set", typed, ["AAPL", "IBM", "MSFT"])


def test_a_strange_name_lists_the_known_ones():
    assert unknown("data set", "zzzz", ["AAPL", "IBM"]) == "unknown data set 'zzzz'; known: AAPL, IBM"
