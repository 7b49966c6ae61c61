"""Splits: no training row that knows the test, embargo kept, groups tested equally often, paths whole; equal to scikit-learn's without purging."""

from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tradebench as tb
from tradebench.data.simulator import simulate
from tradebench.errors import DataError
from tradebench.validation.splits import (
    cpcv_splits,
    embargo_end,
    label_ends,
    purged_kfold,
    runs,
    timeline,
    walk_forward_splits,
)

ROWS = st.integers(40, 160)
HORIZON = st.integers(0, 4)
EMBARGO = st.integers(0, 4)


def ends_of(n, horizon, seed):
    "Last row of each label: a constant number of bars, or any from 0 to `horizon` of them"
    reach = np.random.default_rng(seed).integers(0, horizon + 1, n) if seed else np.full(n, horizon)
    return np.minimum(np.arange(n) + reach, n - 1)


def leaks(fold, ends) -> list:
    "Pairs of a training and a test row whose labels' spans [i, ends[i]] overlap: the definition, row by row"
    return [(i, j) for i in fold.train for j in fold.test if i <= ends[j] and j <= ends[i]]


@given(ROWS, st.integers(2, 6), HORIZON, EMBARGO, st.integers(0, 3))
@settings(max_examples=30)
def test_kfold_never_trains_on_a_label_that_overlaps_the_test(n, k, horizon, embargo, seed):
    ends = ends_of(n, horizon, seed)
    for fold in purged_kfold(n, k, horizon=ends if seed else horizon, embargo=embargo):
        assert not leaks(fold, ends)
        after = fold.train[fold.train > fold.test[-1]]
        assert not len(after) or after[0] > ends[fold.test].max() + embargo


@given(ROWS, st.integers(3, 6), st.data(), HORIZON, EMBARGO, st.integers(0, 3))
@settings(max_examples=30)
def test_combinations_neither(n, groups, data, horizon, embargo, seed):
    k = data.draw(st.integers(1, groups - 1))
    ends = ends_of(n, horizon, seed)
    try:
        folds = cpcv_splits(n, groups, k, horizon=ends if seed else horizon, embargo=embargo)
    except DataError as e:
        assert "nothing is left to train on" in str(e)
        return
    for fold in folds:
        assert not leaks(fold, ends)
        for a, b in runs(fold.test):
            free = ends[a:b].max() + embargo
            assert not ((fold.train >= b) & (fold.train <= free)).any()


@given(ROWS, st.integers(10, 30), st.integers(3, 12), st.booleans(), HORIZON, EMBARGO, st.integers(0, 3))
@settings(max_examples=30)
def test_walk_forward_trains_on_the_past_alone(n, train, test, anchored, horizon, embargo, seed):
    ends = ends_of(n, horizon, seed)
    if train + test > n:
        with pytest.raises(DataError, match="too few"):
            walk_forward_splits(n, train, test, anchored=anchored)
        return
    folds = walk_forward_splits(n, train, test, anchored=anchored, horizon=ends if seed else horizon, embargo=embargo)
    for fold in folds:
        assert not leaks(fold, ends) and fold.train[-1] < fold.test[0] - embargo and len(fold.test) == test
        assert fold.train[0] == (0 if anchored else fold.test[0] - train)
    tested = np.concatenate([f.test for f in folds])
    assert (tested == np.arange(train, train + len(tested))).all() and n - tested[-1] - 1 < test


@given(ROWS, st.integers(3, 7), st.data())
@settings(max_examples=30)
def test_every_group_is_tested_equally_often_and_every_path_is_whole(n, groups, data):
    k = data.draw(st.integers(1, groups - 1))
    folds = cpcv_splits(n, groups, k)
    assert len(folds) == comb(groups, k) and len(folds.paths) * groups == k * comb(groups, k)
    times = np.bincount(np.concatenate([f.test for f in folds]), minlength=n)
    assert (times == comb(groups - 1, k - 1)).all()
    used = [(i, g) for path in folds.paths for g, i in enumerate(path)]
    assert len(set(used)) == len(used) == k * len(folds) and all(g in folds[i].groups for i, g in used)
    whole = folds.assemble([f.test + 1000.0 * i for i, f in enumerate(folds)])
    assert (whole % 1000 == np.arange(n)[:, None]).all()  # each row once, in order
    of_split = (whole // 1000).astype(int)
    assert all(len(set(row)) == len(row) for row in of_split)  # and from another split in each path


@given(ROWS, st.integers(2, 7))
@settings(max_examples=20)
def test_kfold_without_horizon_is_sklearns(n, k):
    from sklearn.model_selection import KFold

    for fold, (train, test) in zip(purged_kfold(n, k), KFold(k).split(np.zeros(n)), strict=True):
        assert (fold.train == train).all() and (fold.test == test).all()


@given(st.integers(5, 40), st.integers(2, 20), st.integers(2, 6), st.booleans(), st.integers(0, 3))
@settings(max_examples=20)
def test_walk_forward_is_sklearns_time_series_split(train, test, k, anchored, gap):
    from sklearn.model_selection import TimeSeriesSplit

    n = train + k * test
    theirs = TimeSeriesSplit(k, test_size=test, gap=gap, max_train_size=None if anchored else train - gap)
    ours = walk_forward_splits(n, train, test, anchored=anchored, embargo=gap)
    for fold, (a, b) in zip(ours, theirs.split(np.zeros(n)), strict=True):
        assert (fold.train == a).all() and (fold.test == b).all()


def test_folds_go_into_sklearn_as_they_are():
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import cross_val_score

    x = np.arange(100.0)[:, None]
    assert len(cross_val_score(LinearRegression(), x, x[:, 0], cv=purged_kfold(100, 4, horizon=2))) == 4


def test_bars_that_arrive_later_change_no_fold():
    long = walk_forward_splits(1000, 300, 70, horizon=3)
    short = walk_forward_splits(long[4].test[-1] + 1, 300, 70, horizon=3)
    assert len(short) == 5
    for a, b in zip(short, long, strict=False):
        assert (a.train == b.train).all() and (a.test == b.test).all()


# stamps and sessions


@pytest.fixture(scope="module")
def minutes():
    return tb.prepare(simulate(sessions=15, freq="5min", seed=2)[0])


def starts(minutes):
    return set(np.flatnonzero(minutes.clock[:, 1] == 0)) | {len(minutes)}


def test_boundaries_of_intraday_bars_fall_between_sessions(minutes):
    for folds in (walk_forward_splits(minutes, 300, 200), cpcv_splits(minutes, 5, 2), purged_kfold(minutes, 4)):
        for fold in folds:
            assert all(a in starts(minutes) and b in starts(minutes) for a, b in runs(fold.test))
    assert walk_forward_splits(minutes, 300, 200, sessions=False)[0].test[0] == 300


def test_lengths_can_count_sessions(minutes):
    folds = walk_forward_splits(minutes, 6, 3, unit="sessions", anchored=True)
    numbers = minutes.clock[:, 0]
    assert [len(set(numbers[f.test])) for f in folds] == [3, 3, 3]
    assert [len(set(numbers[f.train])) for f in folds] == [6, 9, 12]


def test_a_frame_and_its_index_split_like_the_bars(minutes):
    frame = minutes.frame()
    for rows in (frame, frame.index, frame["close"]):
        folds = walk_forward_splits(rows, 6, 3, unit="sessions", calendar=minutes.calendar)
        assert [(*f.test[[0, -1]],) for f in folds] == [
            (*f.test[[0, -1]],) for f in walk_forward_splits(minutes, 6, 3, unit="sessions")
        ]


def test_a_horizon_and_an_embargo_may_be_times():
    index = pd.date_range("2020-01-01", periods=60, tz="UTC")
    line = timeline(index)
    assert embargo_end(line, 10, "5D") == 16 == embargo_end(line, 10, 5)
    ends = pd.Series(index + pd.Timedelta("36h"), index)
    assert (label_ends(line, ends) == label_ends(line, 1)).all()
    by_time = purged_kfold(index, 4, horizon=ends, embargo="3D")
    by_bars = purged_kfold(index, 4, horizon=1, embargo=3)
    for a, b in zip(by_time, by_bars, strict=True):
        assert (a.train == b.train).all()
    assert [f.train[-1] for f in walk_forward_splits(index, 20, 10, embargo="3D")] == [16, 26, 36, 46]


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: walk_forward_splits(100, 80, 30), "100 bars are too few: train = 80 and test = 30 need 110"),
        (lambda: walk_forward_splits(100, 20, 30, step=10), "the test windows would overlap"),
        (lambda: walk_forward_splits(100, 0, 30), "train = 0"),
        (lambda: walk_forward_splits(100, 20, 2.5), "test = 2.5"),
        (lambda: walk_forward_splits(100, 20, 30, unit="days"), "bars or sessions"),
        (lambda: walk_forward_splits(100, 20, 30, horizon=25), "nothing is left to train on"),
        (lambda: walk_forward_splits(100, 20, 30, embargo="1D"), "needs rows with stamps"),
        (lambda: walk_forward_splits(100, 20, 30, unit="sessions"), "sessions=True needs stamps"),
        (lambda: purged_kfold(3, 5), "too few for 5 groups"),
        (lambda: purged_kfold(100, 1), "2 or more"),
        (lambda: purged_kfold(100, 5, embargo=-1), "embargo = -1"),
        (lambda: purged_kfold(100, 5, embargo="soon"), "embargo = 'soon'"),
        (lambda: purged_kfold(100, 5, horizon=np.zeros(99, int)), "for 100 rows"),
        (lambda: purged_kfold(100, 5, horizon=np.zeros(100, int)), "the label of row 1 ends before it"),
        (lambda: cpcv_splits(100, 5, 5), "k = 5"),
        (lambda: cpcv_splits(1000, 40, 20), "at most 20,000"),
        (lambda: cpcv_splits(pd.DatetimeIndex(["2020-01-02", "2020-01-01"]), 2, 1), "increase strictly"),
    ],
)
def test_what_cannot_be_split_says_why(call, says):
    with pytest.raises(DataError, match=says.replace("(", r"\(")):
        call()


def test_sessions_too_few_or_too_long_are_named(minutes):
    with pytest.raises(DataError, match="sessions are too few"):
        cpcv_splits(minutes, 40, 2)
    with pytest.raises(DataError, match="lie within one session"):
        walk_forward_splits(minutes, 200, 10)


def test_picture_has_every_stretch(minutes):
    folds = purged_kfold(minutes, 5, horizon=10, embargo=20)
    fig = folds.plot()
    assert [t.name for t in fig.data] == ["train", "purged or embargoed", "test"]
    assert sum(v is None for v in fig.data[2].x) == 5
    assert folds.frame()["dropped"].gt(0).any() and len(fig.to_json()) < 40_000
