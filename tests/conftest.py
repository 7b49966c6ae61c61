"""What all tests share: the place of the shared market data, a fixed hypothesis profile, the mark `slow`, runs kept apart."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists())
# The shared data lie beside the repository; TRADEBENCH_SHARED_DATA names another place.
SHARED = Path(os.environ.get("TRADEBENCH_SHARED_DATA", ROOT.parent / "shared" / "data"))

# The runs, trials and settings of whoever runs the tests stay out of them; child processes inherit this.
OWN = Path(tempfile.mkdtemp(prefix="tradebench-tests-"))
os.environ |= dict(TRADEBENCH_SETTINGS=os.devnull, TRADEBENCH_TRIALS="record")
os.environ |= dict(TRADEBENCH__RUNS__FOLDER=str(OWN / "runs"), TRADEBENCH__RUNS__LEDGER=str(OWN / "trials.sqlite"))
os.environ["TRADEBENCH__RUNS__SPOOL"] = str(OWN / "spool")

# derandomize: the same examples in every run, so that a red test is red for everyone
settings.register_profile(
    "tradebench", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tradebench")


def shared_data(name: str) -> Path:
    "Path of a file of the shared data such as 'daily/dow31_daily_2006_2017.parquet'; the test is skipped where it is absent."
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the shared market data file {name} (looked in ../shared/data beside the repository)")
    return path


@pytest.fixture(name="shared_data", scope="session")
def shared_data_fixture():
    "The function `shared_data`, for tests that prefer a fixture to an import."
    return shared_data


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run tests marked slow too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: a long variant, run with --slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="long variant: run with --slow"))


def pytest_unconfigure(config):
    if writer := sys.modules.get("tradebench.ledgerwriter"):
        writer.settle()  # before its folder goes
    shutil.rmtree(OWN, ignore_errors=True)
