"""load: built-in names, files of all kinds, time zones, stamps, folders, and one clear line for each mistake."""

import gzip
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest

from tradebench.data.bars import prepare
from tradebench.data.catalog import SOURCES, STOCKS, register
from tradebench.data.files import known_at, name_columns, parse_times, read_table, to_utc
from tradebench.data.instruments import KNOWN, Instrument, as_instruments, instrument
from tradebench.data.quality import FAULTS, examine
from tradebench.data.sources import load
from tradebench.errors import DataError

MINUTES = pd.DataFrame({
    "time": pd.date_range("2024-01-02 14:30", periods=5, freq="min").astype(str), "open": 10.0, "high": 10.5, "low": 9.5,
    "close": [10.0, 10.1, 10.2, 10.1, 10.0], "volume": 100,
})  # fmt: skip


@pytest.fixture
def minutes(tmp_path):
    MINUTES.to_csv(tmp_path / "X.csv", index=False)
    return tmp_path / "X.csv"


# --- built-in ---------------------------------------------------------------------------------------------------------


def test_built_in_stocks_are_the_origin_row_by_row(shared_data):
    t = pd.read_parquet(shared_data("daily/wiki5_daily_2000_2013.parquet"))
    for s in STOCKS:
        f, g = load(s), t[t["symbol"] == s]
        assert np.array_equal(f.to_numpy(), g[["open", "high", "low", "close", "volume"]].to_numpy(float))
        local = f.index.tz_convert("America/New_York")
        assert (local.date == g["ts"].dt.date.to_numpy()).all() and set(local.strftime("%H:%M")) == {"16:00", "13:00"}


def test_built_in_stocks_have_no_fault():
    for s in STOCKS:
        assert not examine(load(s), s, calendar="XNYS")[1].issues["rule"].isin([*FAULTS, "gap"]).any()


def test_five_stocks_are_a_union_of_dates():
    b = prepare(load("stocks5"))
    assert b.symbols == STOCKS and len(b) == 3270 and b.periods_per_year == 252
    assert (b.flags & 1).sum(axis=0).tolist() == [3270, 196, 2148, 3270, 3270]
    assert load("stocks5", symbols=["MSFT", "FB"]).columns.get_level_values(0).unique().tolist() == ["MSFT", "FB"]
    assert prepare(load(["IBM", "AAPL"])).symbols == ("IBM", "AAPL")


def test_indices_match_the_shared_copy(shared_data):
    t = pd.read_parquet(shared_data("daily/index_sp500_nasdaq_1999_2018.parquet"))
    for s in ("SP500", "NASDAQ"):
        assert np.array_equal(load(s)["close"], t.loc[t["symbol"] == s, "close"])


def test_a_missing_arch_is_one_clear_line(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'tradebench\[lab\]'"):
        load("SP500")


def test_loading_a_stock_imports_nothing_heavy():
    code = (
        "import sys; from tradebench.data.sources import load; from tradebench.data.bars import prepare; prepare(load('AAPL'));"
        "print([m for m in ('exchange_calendars', 'numba', 'llvmlite', 'arch', 'duckdb', 'plotly', 'scipy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_adjust_chooses_the_actions():
    kinds = {
        a: {k for _, _, k, _, _ in load("MSFT", adjust=a).attrs["tradebench"]["actions"]}
        for a in ("all", "splits", "none", "back")
    }
    assert kinds == {"all": {"split", "dividend"}, "splits": {"split"}, "none": set(), "back": set()}
    raw, back = load("MSFT"), load("MSFT", adjust="back")
    assert back["close"].iloc[-1] == raw["close"].iloc[-1] and back["close"].iloc[0] < 0.5 * raw["close"].iloc[0]


def test_simulated_minutes_are_labelled():
    f = load("sim:minutes,seed=3,sessions=2")
    assert (
        len(f) == 780
        and f.attrs["tradebench"]["label"] == "simulated (seed 3)"
        and prepare(f).label == "simulated (seed 3)"
    )
    assert len(load("sim:daily,sessions=7")) == 7


def test_start_and_end_include_both_days():
    f = load("AAPL", start="2012-01-03", end="2012-01-06")
    assert [str(d)[:10] for d in f.index] == ["2012-01-03", "2012-01-04", "2012-01-05", "2012-01-06"]
    assert len(load("stocks5", start="2012-05-17", end="2012-05-18")) == 2


def test_attrs_are_plain_values_and_survive_pandas():
    import json

    f = load("stocks5", start="2012-06-01")
    json.dumps(f.attrs)
    assert prepare(f.iloc[5:50].copy()).instruments[0] == KNOWN["AAPL"]


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kw", "words"),
    [
        (("AAPLL",), {}, "did you mean AAPL"),
        (("nothing/here.csv",), {}, "no such file"),
        (("AAPL",), {"start": "2020-01-01"}, "there are 2000-03-01 to 2013-03-01"),
        (("AAPL",), {"start": "rubbish"}, "not dates"),
        (("AAPL",), {"tz": "UTC"}, "states tz itself"),
        (("AAPL",), {"adjust": "spits"}, "did you mean splits"),
        (("stocks5",), {"symbols": ["AAPL", "IBN"]}, "did you mean IBM"),
        (("sim:minutes,seed=x",), {}, "whole numbers"),
        (("sim:ticks",), {}, "unknown simulation"),
        ((["AAPL", "x.csv"],), {}, "no such file"),
    ],
)
def test_mistakes_with_names(args, kw, words):
    with pytest.raises(DataError, match=words) as e:
        load(*args, **kw)
    assert "\n" not in str(e.value)


def test_naive_times_and_unstated_stamps_are_errors(minutes):
    with pytest.raises(DataError, match="name their zone"):
        load(minutes, stamp="start")
    with pytest.raises(DataError, match="stamp='start'.*stamp='end'.*stamp='session'"):
        load(minutes, tz="UTC")
    with pytest.raises(DataError, match="did you mean start"):
        load(minutes, tz="UTC", stamp="star")
    with pytest.raises(DataError, match="unknown time zone 'New York'"):
        load(minutes, tz="New York", stamp="start")


def test_start_and_end_stamps_differ_by_one_bar(minutes):
    a, b = load(minutes, tz="UTC", stamp="start"), load(minutes, tz="UTC", stamp="end")
    assert (a.index - b.index == pd.Timedelta("1min")).all() and a.attrs["tradebench"]["freq"] == "0 days 00:01:00"
    assert a.attrs["tradebench"]["symbols"] == ["X"] and load(minutes, tz="UTC", stamp="end", symbols="SPY").attrs[
        "tradebench"
    ]["symbols"] == ["SPY"]


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01\x02", b"a,b\n1,2\n", b"ts,open,high,low,close\n2024-01-02 10:00,1,2,x,2\n"]
)
def test_damaged_files_are_data_errors(tmp_path, content):
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(DataError):
        load(tmp_path / "bad.csv", tz="UTC", stamp="end")
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        load(tmp_path / "bad.parquet", tz="UTC", stamp="end")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(MINUTES.to_csv().encode())[:60])
    with pytest.raises(DataError, match="cannot read"):
        load(tmp_path / "cut.csv.gz", tz="UTC", stamp="end")


# --- times ------------------------------------------------------------------------------------------------------------


def test_new_york_wall_clock_over_the_spring_change(shared_data):
    path = shared_data("dirty/spy_1min_naive_newyork_dst_2011_03.csv.gz")
    truth = pd.to_datetime(pd.read_csv(path)["ts"], utc=True)
    f = load(path, columns={"local_time": "ts"}, tz="America/New_York", stamp="end", calendar="XNYS", symbols="SPY")
    assert (f.index == truth).all() and len(f) == 4102
    hours = prepare(f).index[prepare(f).clock[:, 2] == 0].tz_convert("America/New_York").hour
    assert set(hours) <= {16, 17, 18, 19, 20}


def test_a_market_without_pause_over_both_changes(shared_data):
    path = shared_data("dirty/btcusd_1h_naive_newyork_dst_2018_2019.csv.gz")
    truth = pd.to_datetime(pd.read_csv(path)["ts"], utc=True) + pd.Timedelta("1h")
    f = load(path, columns={"local_time": "ts"}, tz="America/New_York", stamp="start")
    assert (f.index == truth).all()


def test_an_hour_that_occurs_twice_needs_an_order_or_a_word(shared_data):
    t = pd.read_csv(shared_data("dirty/btcusd_1h_naive_newyork_dst_2018_2019.csv.gz"))
    wall = parse_times(t["local_time"])
    twice = np.flatnonzero(wall == pd.Timestamp("2018-11-04 01:00"))
    assert len(twice) == 2
    one = wall.delete(twice[1])
    with pytest.raises(DataError, match="dst='first' or dst='second'") as e:
        to_utc(one, "America/New_York")
    assert e.value.rule == "ambiguous_time" and e.value.row == twice[0]
    truth = pd.to_datetime(t["ts"], utc=True)
    assert to_utc(one, "America/New_York", "first")[twice[0]] == truth[twice[0]]
    assert to_utc(wall.delete(twice[0]), "America/New_York", "second")[twice[0]] == truth[twice[1]]
    with pytest.raises(DataError, match="not in order"):
        to_utc(wall[np.r_[twice[0], twice[1], twice[0], twice[1]]], "America/New_York")


def test_an_hour_that_does_not_exist_is_an_error():
    with pytest.raises(DataError, match="clocks skip that hour") as e:
        to_utc(pd.DatetimeIndex(["2019-03-10 01:30", "2019-03-10 02:30"]), "America/New_York")
    assert (e.value.row, e.value.rule) == (1, "nonexistent_time")


def test_vendor_file_with_a_banner_newest_first(shared_data):
    path = shared_data("dirty/coinbase_btcusd_1h_as_downloaded.csv.gz")
    how = dict(tz="UTC", stamp="start", calendar="24/7", symbols="BTCUSD")
    with pytest.raises(DataError, match="rule order.*5 faults"):  # on 2017-11-12 the vendor interleaved two pieces
        load(path, **how)
    with pytest.warns(UserWarning, match="5 repairs"):
        f = load(path, **how, quality="repair")
    g = pd.read_parquet(shared_data("intraday/btcusd_1h_coinbase_2017_2019.parquet"))
    assert (
        len(f) == 20111 and (f.index == g["ts"] + pd.Timedelta("1h")).all() and np.array_equal(f["close"], g["close"])
    )


def test_start_stamped_bars_end_with_the_session():
    t = pd.DatetimeIndex(["2024-07-03 15:30", "2024-07-03 16:30"], tz="UTC")  # 3 July closes at 13:00, 17:00 UTC
    assert known_at(t, "start", calendar="XNYS", freq="1h")[0].tolist() == [
        pd.Timestamp("2024-07-03 16:30", tz="UTC"),
        pd.Timestamp("2024-07-03 17:00", tz="UTC"),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1704207600], "2024-01-02 15:00"), ([1704207600000], "2024-01-02 15:00"), ([1704207600000000], "2024-01-02 15:00"),
        ([20240102], "2024-01-02"), (["20240102"], "2024-01-02"), (["20240102 150000"], "2024-01-02 15:00"),
        (["2024-01-02T15:00:00Z"], "2024-01-02 15:00"), (["25/12/2023", "02/01/2024"], "2023-12-25"), (["12/25/2023 03:00 PM"], "2023-12-25 15:00"),
    ],
)  # fmt: skip
def test_forms_of_time(values, expected):
    t = parse_times(values)[0]
    assert (t.tz_localize(None) if t.tz else t) == pd.Timestamp(expected)


def test_an_unclear_date_is_not_guessed():
    with pytest.raises(DataError, match="day-first or month-first"):
        parse_times(["01/02/2024"])
    with pytest.raises(DataError, match="row 1: cannot read the time 'noon'"):
        parse_times(["2024-01-02 10:00", "noon"])


# --- forms of files ---------------------------------------------------------------------------------------------------


def test_columns_are_found_in_any_case_and_mapped():
    t = name_columns(
        pd.DataFrame(columns=["Date", "Time", "O", "HIGH", "Low", "Last", "Vol."]), {"O": "open", "Last": "close"}
    )
    assert list(t.columns) == ["open", "HIGH".lower(), "low", "close", "Vol.", "ts"]
    with pytest.raises(DataError, match="did you mean Last"):
        name_columns(pd.DataFrame(columns=["Last"]), {"Lst": "close"})


@pytest.mark.parametrize("sep", [",", ";", "\t"])
def test_separators_and_thousands(tmp_path, sep):
    (tmp_path / "a.txt").write_text(
        sep.join(["Date", "Open", "High", "Low", "Close", "Volume"])
        + "\n"
        + sep.join(["2024-01-02", "1", "2", "1", "2", '"1,000"'])
        + "\n"
    )
    f = load(tmp_path / "a.txt", stamp="session", calendar="XNYS")
    assert f["volume"].tolist() == [1000] and str(f.index[0]) == "2024-01-02 21:00:00+00:00"


def test_parquet_with_a_symbol_column_becomes_one_frame(shared_data):
    f = load(shared_data("daily/crypto3_daily_2014_2019.parquet"), stamp="session", calendar="24/7")
    b = prepare(f)
    assert b.symbols == ("BTCUSD", "ETHUSD", "LTCUSD") and (b.flags & 1).sum(axis=0).tolist() == [1865, 788, 925]
    assert str(b.index[0]) == "2014-11-29 00:00:00+00:00"  # the day of 28 November is known when it is over
    assert f.attrs["tradebench"]["quality"]["counts"]["gap"] == 3


def test_strict_repair_and_off_on_a_dirty_file(shared_data):
    path = shared_data("dirty/spy_1min_2011_01_dirty.csv.gz")
    with pytest.raises(DataError, match="row 253"):
        load(path, stamp="end", symbols="SPY")
    with pytest.warns(UserWarning, match="66 repairs"):
        f, report = load(path, stamp="end", symbols="SPY", quality="repair", report=True)
    assert prepare(f).calendar == "XNYS" and len(report.repairs) == 66 and f.attrs["tradebench"]["quality"]["score"] < 1
    raw = load(path, stamp="end", symbols="SPY", quality="off")
    assert len(raw) == 7737
    with pytest.raises(DataError):
        prepare(raw)


def test_a_clean_file_warns_of_nothing(minutes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(minutes, tz="UTC", stamp="start")


def test_frames_pass_through_the_same_door():
    f = MINUTES.set_index(pd.DatetimeIndex(MINUTES["time"])).drop(columns="time")
    with pytest.raises(DataError, match="name their zone"):
        load(f, stamp="end")
    g = load(f, stamp="end", tz="America/New_York", calendar="XNYS")
    assert str(g.index[0]) == "2024-01-02 19:30:00+00:00"
    assert prepare(load(g, start="2024-01-02 19:32")).calendar == "XNYS"  # a loaded frame may be loaded again


def test_actions_file_and_renames(tmp_path):
    days = ["2012-01-03", "2012-01-04", "2012-01-05", "2012-01-06"]
    t = pd.DataFrame(
        {
            "date": days,
            "symbol": ["OLD", "OLD", "NEW", "NEW"],
            "open": [10, 10, 5, 5.0],
            "high": 11.0,
            "low": 4.0,
            "close": [10, 10, 5, 5.0],
        }
    )
    t.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "a.csv").write_text(
        "symbol,date,kind,value,text\nOLD,2012-01-05,rename,,NEW\nNEW,2012-01-05,split,2,\nNEW,2012-01-06,dividend,0.5,\n"
    )
    f = load(tmp_path / "t.csv", stamp="session", calendar="XNYS", actions=tmp_path / "a.csv")
    b = prepare(f)
    assert b.symbols == ("NEW",) and len(b) == 4 and b.events["kind"].tolist() == [2, 1]
    assert b.seen[:3, 0, 3].tolist() == [10, 10, 10] and "jump" not in f.attrs["tradebench"]["quality"]["counts"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("symbol_column", [True, False])
def test_a_folder_of_many_symbols(tmp_path, kind, symbol_column):
    for k, s in enumerate(("A", "B", "C")):
        t = load("IBM", start=f"2012-0{k + 1}-01", end="2012-06-30").reset_index()
        if symbol_column:
            t["symbol"] = s
        name = tmp_path / (f"part{k}.{kind}" if symbol_column else f"{s}.{kind}")
        t.to_parquet(name, index=False) if kind == "parquet" else t.to_csv(name, index=False)
    f = load(tmp_path, stamp="end", calendar="XNYS")
    b = prepare(f)
    assert b.symbols == ("A", "B", "C") and (b.flags & 1).sum(axis=0).tolist() == [
        len(load("IBM", start=f"2012-0{k}-01", end="2012-06-30")) for k in (1, 2, 3)
    ]
    assert prepare(load(tmp_path, stamp="end", calendar="XNYS", symbols=["C", "A"])).symbols == ("C", "A")
    with pytest.raises(DataError):
        load(tmp_path, stamp="end", calendar="XNYS", symbols=["D"])


def test_a_real_folder_query(shared_data):
    f = load(
        shared_data("daily/us88_daily_2012_2017.parquet"), symbols=["BABA", "AAPL"], stamp="session", calendar="XNYS"
    )
    b = prepare(f)
    assert b.symbols == ("BABA", "AAPL") and (b.flags & 1).sum(axis=0).tolist() == [745, 1258] and len(b) == 1258


def test_an_empty_folder_and_a_registered_source(tmp_path):
    with pytest.raises(DataError, match="no .parquet"):
        load(tmp_path)
    register("unit-test", lambda: load("IBM", end="2000-04-01"))
    try:
        assert len(load("unit-test", start="2000-03-10")) == 16
    finally:
        del SOURCES["unit-test"]


def test_universe_column_reaches_the_flags():
    u = pd.DataFrame({"AAPL": [True, False]}, index=pd.DatetimeIndex(["2012-01-01", "2012-02-01"], tz="UTC"))
    b = prepare(load("AAPL", start="2011-12-01", end="2012-03-01", universe=u))
    member = pd.Series((b.flags[:, 0] & 4) > 0, b.index)
    assert (
        not member[:"2011-12-31"].any() and member["2012-01-03":"2012-01-31"].all() and not member["2012-02-01":].any()
    )
    assert "in_universe" not in b.extras


def test_hourly_currency_bars_need_no_calendar_but_note_the_guess(shared_data):
    t = pd.read_parquet(shared_data("intraday/eurusd_1h_bidask_2007_2018.parquet")).head(3000)
    bid = t.rename(columns={c: c.removesuffix("_bid") for c in t.columns})
    f = load(bid[["ts", "open", "high", "low", "close"]], stamp="start", symbols="EURUSD")
    b = prepare(f)
    assert b.calendar == "24/5" and b.periods_per_year == 24 * 252 and (b.flags & 2).all()


# --- instruments ------------------------------------------------------------------------------------------------------


def test_instruments_from_every_form():
    a = instrument("AAPL", lot=0)
    assert (
        as_instruments(a)
        == as_instruments([a])
        == as_instruments({"AAPL": a})
        == as_instruments({"AAPL": a.dict()})
        == {"AAPL": a}
    )
    assert prepare(load("AAPL", instrument=a)).instruments == (a,)
    assert prepare(load("AAPL", instrument={"AAPL": {"tick": 0.05}})).instruments[0].tick == 0.05


@pytest.mark.parametrize(
    "bad", [{"tick": -1}, {"multiplier": 0}, {"kind": "stock"}, {"lot": float("nan")}, {"tick": "1"}]
)
def test_bad_instruments_are_refused(bad):
    with pytest.raises(DataError, match="instrument 'X'"):
        Instrument("X", **bad)


def test_read_table_says_which_file(tmp_path):
    with pytest.raises(DataError, match="nope.csv"):
        read_table(tmp_path / "nope.csv")
