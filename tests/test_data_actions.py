"""Corporate actions: the file, the factor against vendors' own factors, and the hand-written splits."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tradebench.data.actions import (
    as_records,
    back_adjust,
    check_actions,
    events,
    explain,
    forward_factor,
    read_actions,
)
from tradebench.data.bars import prepare
from tradebench.data.calendars import BUILTIN, session_closes
from tradebench.data.instruments import Instrument
from tradebench.errors import DataError


def table(*rows):
    return pd.DataFrame(rows, columns=["symbol", "date", "kind", "value", "text"])


def daily(path, symbol):
    "Raw daily frame of one symbol of a shared file, stamped at New York's closes."
    t = pd.read_parquet(path)
    t = t[t["symbol"] == symbol]
    days = t["ts"].dt.tz_localize(None).to_numpy().astype("datetime64[D]")
    f = t[["open", "high", "low", "close", "volume"]].astype(float)
    f.index = pd.DatetimeIndex(session_closes(days, "XNYS"), tz="UTC", name="ts")
    return f, days


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("A", "2020-01-02", "splt", 2.0, ""), "did you mean split"),
        (("A", "soon", "split", 2.0, ""), "date cannot be read"),
        (("A", "2020-01-02", "split", 0.0, ""), "finite value > 0"),
        (("A", "2020-01-02", "dividend", np.nan, ""), "finite value > 0"),
        (("A", "2020-01-02", "rename", np.nan, ""), "new symbol"),
        (("A", "2020-01-02", "delisting", -1.0, ""), ">= 0"),
    ],
)
def test_a_bad_action_names_its_row(row, words):
    with pytest.raises(DataError, match=words) as e:
        check_actions(table(("B", "2019-01-02", "dividend", 1.0, ""), row))
    assert e.value.row == 1


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_actions(tmp_path / "none.csv")


def test_the_hand_written_splits_are_the_three_that_adj_close_shows(shared_data):
    acts = read_actions(BUILTIN / "stocks5_actions.csv")
    splits = acts[acts["kind"] == "split"]
    assert [(s, str(d)[:10], v) for s, d, v in zip(splits.symbol, splits.date, splits.value, strict=True)] == [
        ("AAPL", "2000-06-21", 2.0), ("MSFT", "2003-02-18", 2.0), ("AAPL", "2005-02-28", 2.0),
    ]  # fmt: skip
    t = pd.read_parquet(shared_data("daily/wiki5_daily_2000_2013.parquet"))
    for s, g in t.groupby("symbol"):
        e = explain(g["ts"].dt.tz_localize(None).to_numpy(), g["close"], g["adj_close"], acts[acts["symbol"] == s])
        assert e["ok"].all(), e[~e["ok"]]
        without = acts[(acts["symbol"] == s) & (acts["kind"] != "split")]
        e = explain(g["ts"].dt.tz_localize(None).to_numpy(), g["close"], g["adj_close"], without)
        assert (~e["ok"]).sum() == (splits["symbol"] == s).sum()  # each split is needed


def test_built_in_dividends_are_the_vendors_to_the_cent(shared_data):
    ours = read_actions(BUILTIN / "stocks5_actions.csv")
    theirs = pd.read_csv(shared_data("daily/us_equity_corporate_actions.csv.gz"))
    theirs["date"] = pd.to_datetime(theirs["ts"].str[:10])
    both = theirs[theirs["symbol"].isin(["AAPL", "IBM"]) & theirs["date"].between("2000-03-02", "2013-03-01")]
    m = both.merge(ours, on=["symbol", "date", "kind"], how="outer", suffixes=("_theirs", "")).query(
        "symbol in ['AAPL', 'IBM']"
    )
    assert len(m) == 57 and (m["value"] == m["value_theirs"]).all()


@pytest.mark.parametrize("symbol", ["AAPL", "IBM", "SPY", "BAC", "AIG"])
def test_forward_factor_agrees_with_the_vendors_factor_file(shared_data, symbol):
    f, days = daily(shared_data("daily/us_equity_daily_raw.parquet"), symbol)
    acts = pd.read_csv(shared_data("daily/us_equity_corporate_actions.csv.gz")).rename(columns={"ts": "date"})
    b = prepare(
        f,
        instruments=Instrument(symbol, calendar="XNYS"),
        actions=acts[acts["symbol"] == symbol].assign(symbol="asset"),
    )
    files = pd.read_csv(shared_data("daily/us_equity_factor_files.csv.gz"))
    files = files[files["symbol"] == symbol].sort_values("ts")
    until = pd.to_datetime(files["ts"].str[:10]).to_numpy().astype("datetime64[D]")
    row = np.searchsorted(until, days)  # a row applies up to and including its date
    vendor = (files["price_factor"] * files["split_factor"]).to_numpy()[row]
    ours = b.factor[:, 0] / b.factor[-1, 0]
    # their dividends are rounded to a tenth of a cent and their reference price is their own: 0.05 % an action, at most 1 % over 23 years
    assert np.abs(np.log(ours / vendor * vendor[-1])).max() < 0.01
    steps = np.abs(np.diff(np.log(ours)) - np.diff(np.log(vendor)))
    assert steps.max() < 1e-3


def test_reverse_split_of_aig(shared_data):
    t = pd.read_parquet(shared_data("daily/wiki7_actions_daily.parquet"))
    t = t[(t["symbol"] == "AIG") & (t["ts"] >= "2009-01-01") & (t["ts"] < "2010-01-01")]
    days = t["ts"].dt.tz_localize(None).to_numpy().astype("datetime64[D]")
    acts = pd.concat([
        t[t["split_ratio"] != 1].assign(kind="split", value=lambda x: x["split_ratio"]),
        t[t["dividend"] != 0].assign(kind="dividend", value=lambda x: x["dividend"]),
    ]).assign(date=lambda x: x["ts"].dt.tz_localize(None))[["symbol", "date", "kind", "value"]]  # fmt: skip
    assert [(str(d)[:10], v) for d, v in zip(acts["date"], acts["value"], strict=True)] == [("2009-07-01", 0.05)]
    f = t[["open", "high", "low", "close", "volume"]].set_axis(
        pd.DatetimeIndex(session_closes(days, "XNYS"), tz="UTC", name="ts")
    )
    b = prepare(f, instruments=Instrument("AIG", calendar="XNYS"), actions=acts.assign(symbol="asset"))
    at = int(np.flatnonzero(days == np.datetime64("2009-07-01"))[0])
    assert b.events.tolist() == [(at, 0, 2, 0.05)] and b.factor[at - 1, 0] == 1 and b.factor[at, 0] == 0.05
    seen, adjusted = b.seen[:, 0, 3], t["adj_close"].to_numpy()
    assert seen / adjusted == pytest.approx(seen[0] / adjusted[0], rel=1e-6)  # the same series up to a constant
    assert b.seen[at, 0, 4] == pytest.approx(b.raw[at, 0, 4] * 20)  # volume in old shares
    assert abs(np.log(seen[at] / seen[at - 1])) < 0.25 < abs(np.log(b.raw[at, 0, 3] / b.raw[at - 1, 0, 3]))


@given(
    st.integers(5, 60),
    st.lists(st.tuples(st.integers(1, 59), st.sampled_from([1, 2]), st.floats(0.01, 4)), max_size=8),
    st.integers(1, 59),
    st.floats(0.01, 100),
)
def test_a_poisoned_future_never_changes_the_factor_before_it(n, draws, cut, poison):
    close = 50 + 10 * np.sin(np.arange(n))
    ev = sorted((t, k, v) for t, k, v in draws if t < n)
    rows, kinds, values = zip(*ev, strict=True) if ev else ((), (), ())
    full, share = forward_factor(close, rows, kinds, values)
    cut = min(cut, n)
    bad = close.copy()
    bad[cut:] *= poison + 1
    try:
        other, other_share = forward_factor(bad, rows, kinds, values)
    except DataError:
        return
    assert (other[: cut + 1] == full[: cut + 1]).all() and (other_share == share).all()


@given(st.floats(1, 500), st.floats(0, 0.5), st.floats(0.1, 10))
def test_whoever_reinvests_has_the_adjusted_return(close, yield_, split):
    "A share worth c pays d and is split s to 1; bought back at the ex price p, the holder has s / (1 - d / c) shares for each one."
    d = close * yield_ + 1e-9
    ex = (close - d) / split  # an ex-date on which nothing else happens
    f, _ = forward_factor(np.array([close, ex]), [1, 1], [1, 2], [d, split])
    assert ex * f[1] == pytest.approx(close, rel=1e-9)


def test_two_actions_without_a_bar_between_restate_one_reference_close():
    close = np.array([100.0, np.nan, np.nan, 24.0])
    f, _ = forward_factor(close, [1, 2], [2, 1], [4.0, 1.0])  # split 4-for-1, then 1 a new share
    assert f.tolist() == pytest.approx([1, 4, 4 / (1 - 1 / 25), 4 / (1 - 1 / 25)])


def test_a_dividend_above_the_price_is_an_error():
    with pytest.raises(DataError, match="not below the last close"):
        forward_factor(np.array([10.0, 5.0]), [1], [1], [12.0])


def test_events_are_ordered_and_end_with_the_data():
    recs = as_records(
        table(("B", "2020-01-06", "split", 2.0, ""), ("A", "2020-01-06", "split", 2.0, ""), ("A", "2020-01-06", "dividend", 1.0, ""),
              ("A", "2020-01-08", "delisting", np.nan, ""), ("A", "2020-01-03", "rename", np.nan, "Z"), ("A", "2021-01-04", "dividend", 1.0, "")),
        "XNYS",
    )  # fmt: skip
    ts = session_closes(np.array(["2020-01-02", "2020-01-03", "2020-01-06", "2020-01-07", "2020-01-08"]), "XNYS")
    e = events(recs, ["A", "B"], ts)
    assert e[["t", "j", "kind"]].tolist() == [(2, 0, 1), (2, 0, 2), (2, 1, 2), (4, 0, 3)] and np.isnan(e["value"][3])
    assert len(events(recs, ["A", "B"], ts[:2])) == 0
    assert events(recs, ["A", "B"], ts, [0, 2])[["t", "j"]].tolist() == [
        (2, 0),
        (2, 0),
        (4, 0),
    ]  # B listed on its ex-date


def test_back_adjust_keeps_the_last_price_and_all_returns():
    f = np.array([1.0, 2.0, 4.0])
    assert back_adjust(np.array([100.0, 50.0, 25.0]), f).tolist() == [25, 25, 25]
    assert back_adjust(np.ones((3, 2)), f).shape == (3, 2)


def test_two_dividends_on_one_day_count_as_their_sum():
    two, _ = forward_factor(np.array([100.0, 95.0]), [1, 1], [1, 1], [2.0, 3.0])
    one, _ = forward_factor(np.array([100.0, 95.0]), [1], [1], [5.0])
    assert two[1] == pytest.approx(one[1], rel=1e-15)


def test_a_stamp_exactly_at_the_start_of_the_ex_session_is_not_yet_ex():
    index = pd.DatetimeIndex(
        ["2024-01-02 12:00", "2024-01-03 00:00", "2024-01-03 00:01"], tz="UTC"
    )  # midnight ends the 2nd
    recs = as_records(table(("A", "2024-01-03", "split", 2.0, "")), "24/7")
    assert events(recs, ["A"], index.as_unit("ns").asi8)["t"].tolist() == [2]
