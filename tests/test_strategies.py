"Every strategy of the catalogue, found by itself, on every kind of market: the contract, not the profit."

import subprocess
import sys

import numpy as np
import pytest
from markets import KINDS, drawn, market

from tradebench.backtest.costs import Costs
from tradebench.backtest.simulation import backtest, simulation
from tradebench.data.simulator import simulate
from tradebench.features.indicator import SMA, sma
from tradebench.params import param
from tradebench.risk.sizing import Sizing
from tradebench.strategies.catalogue import STRATEGIES, GapAndGo, Intraday, Rotation, Scalping, catalogue
from tradebench.strategies.strategy import decide, strategy
from tradebench.validation.targets import recorded

COSTS = Costs(fee_bps=1, spread_bps=2, slippage_bps=1)
ARRAYS = ("state", "slots", "accounts", "equity", "out", "fills", "trades", "orders")


def entries():
    "Names of the catalogue as it is now"
    # the package's, and what the two files of this battery add: other test files define strategies in the same process
    own, left_out = ("test_strategies", "test_causality"), "tradebench.strategies.follow"
    homes = {n: c.__module__ for n, c in sorted(STRATEGIES.items())}
    return [n for n, m in homes.items() if (m.startswith("tradebench.strategies.") or m in own) and m != left_out]


def lively(name):
    "Parameters, drawn with a fixed seed, with which the strategy trades on the small markets; else its defaults"
    rng, cls = np.random.default_rng(abs(hash_of(name))), STRATEGIES[name]
    tried = [cls(), *(drawn(cls, rng) for _ in range(8))]
    return max(tried, key=lambda s: min(sum(sim_of(s, k).account["n_fills"] for k in ("daily", "new_york")), 60))


def hash_of(name):
    return int.from_bytes(name.encode()[:6], "big")


def sim_of(instance, kind, stop=None):
    bars = market(kind)
    sizing = Sizing() if instance.basket else Sizing(fraction=1 / len(bars.symbols))
    sim = simulation(instance, bars, costs=COSTS, sizing=sizing)
    sim.advance(stop)
    return sim


@pytest.fixture(scope="module", params=entries())
def instance(request):
    return lively(request.param)


def same_run(a, b):
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.tobytes() == y.tobytes(), name


# ---- each of these takes an instance, so that a new entry can be put through all of them


def check_declared(instance):
    cls = type(instance)
    assert cls.__doc__ and len(cls.__doc__.splitlines()[0]) < 140
    for p in cls.params.values():
        assert p.meaning and p.low <= p.default <= p.high
    assert cls.allows(cls().values) and cls.warm(cls().values) >= 0
    row = catalogue().loc[cls.name()]
    assert row.meaning and row.works_on == ("basket" if cls.basket else "symbol")


def check_runs(instance, kind):
    sim = sim_of(instance, kind)
    again = sim_of(instance, kind)
    same_run(sim, again)  # the same bytes twice
    r = sim.result()
    assert r.conservation_error() < 1e-12 and np.isfinite(r.equity_values).all()


def check_plain_python(instance, kind):
    bars = market(kind).window(end=market(kind).index[250 if len(market(kind).symbols) == 1 else 150])
    sizing = Sizing() if instance.basket else Sizing(fraction=1 / len(bars.symbols))
    ways = (dict(), dict(debug=True), dict(trace=True), dict(trace=True, debug=True))
    runs = [backtest(instance, bars, costs=COSTS, sizing=sizing, **how) for how in ways]
    for other in runs[1:]:
        for a, b in (
            (runs[0]._fills, other._fills),
            (runs[0]._orders, other._orders),
            (runs[0]._trades, other._trades),
        ):
            assert a.tobytes() == b.tobytes()
        np.testing.assert_array_equal(runs[0].equity_values, other.equity_values)
    assert runs[2].trace.equals(runs[3].trace)


def check_resumes(instance, kind):
    whole = sim_of(instance, kind)
    half = sim_of(instance, kind, len(whole.bars) // 2)
    fresh = sim_of(instance, kind, 0)
    for name in ARRAYS:
        old = getattr(half, name)
        setattr(fresh, name, np.frombuffer(bytearray(old.tobytes()), old.dtype).reshape(old.shape))
    for name in ("slots", "out"):  # the block points at the arrays that came from bytes
        fresh.batch[name] = getattr(fresh, name).ctypes.data
    fresh.next = half.next
    fresh.advance()
    same_run(whole, fresh)


def check_alone(instance, kind):
    "Two instances that take turns are what each is by itself"
    other = drawn(type(instance), np.random.default_rng(5))
    alone = [sim_of(s, kind) for s in (instance, other)]
    both = [sim_of(s, kind, 0) for s in (instance, other)]
    for stop in (*range(50, len(market(kind)), 97), None):
        for sim in both:
            sim.advance(stop)
    for a, b in zip(alone, both, strict=True):
        same_run(a, b)


def check_warmup(instance, kind):
    sim, decisions = recorded(instance, market(kind))
    warm, present = type(instance).warm(instance.values), sim.bars.flags & 1
    for j in range(present.shape[1]):
        count = np.arange(1, len(present) + 1) if instance.basket else np.cumsum(present[:, j])
        assert np.isnan(decisions[count <= warm, j, 0]).all()
        assert np.isnan(decisions[present[:, j] == 0, j, 0]).all() or instance.basket
    targets = decisions[:, :, 0]
    assert np.nanmax(np.abs(targets), initial=0) <= 1
    assert (sim.orders["t"][: sim.account["n_orders"]] >= warm).all()


def check_random_parameters(instance, count):
    rng = np.random.default_rng(11)
    for k in range(count):
        drawn_one = drawn(type(instance), rng)
        sim = sim_of(drawn_one, KINDS[k % len(KINDS)])
        assert sim.result().conservation_error() < 1e-12 and not sim.account["error"]


# ---- the catalogue


def test_declared(instance):
    check_declared(instance)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_everywhere(instance, kind):
    check_runs(instance, kind)


@pytest.mark.parametrize("kind", ("daily", "new_york_many"))
def test_compiled_equals_plain_python_and_trace(instance, kind):
    check_plain_python(instance, kind)


@pytest.mark.parametrize("kind", ("daily_many", "new_york"))
def test_state_is_bytes(instance, kind):
    check_resumes(instance, kind)


@pytest.mark.parametrize("kind", ("daily_many", "new_york"))
def test_instances_share_nothing(instance, kind):
    check_alone(instance, kind)


@pytest.mark.parametrize("kind", ("daily", "daily_many", "new_york_many"))
def test_warmup(instance, kind):
    check_warmup(instance, kind)


def test_random_parameters(instance):
    check_random_parameters(instance, 12)


@pytest.mark.slow
def test_many_random_parameters(instance):
    check_random_parameters(instance, 100)


def test_not_vacuous(instance):
    "The parameters of these tests make the strategy trade"
    assert sum(sim_of(instance, k).account["n_fills"] for k in KINDS) > 20


def test_new_entry_is_picked_up():
    assert "test_only_entry" not in entries()
    try:

        @strategy
        class TestOnlyEntry:
            "Long above an average, short below, with a trailing stop."

            n = param(5, 2, 50, "bars in the average")
            state = dict(m=SMA("n"), seen=0)

            def step(s, p, row):
                s.seen += 1
                mean = sma(s.m, row.close)
                return decide(1.0 if row.close > mean else -1.0, trail=0.1 * row.close)

        assert "test_only_entry" in entries() and "test_only_entry" in catalogue().index
        entry = TestOnlyEntry()
        check_declared(entry)
        for kind in KINDS:
            check_runs(entry, kind)
        for check in (check_plain_python, check_resumes, check_alone, check_warmup):
            check(entry, "new_york_many")
        check_random_parameters(entry, 6)
    finally:
        STRATEGIES.pop("test_only_entry", None)


def test_import_is_light():
    code = (
        "import sys, tradebench.strategies.catalogue as c; "
        "assert len(c.STRATEGIES) >= 6; print([m for m in ('numba', 'plotly', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ---- single strategies


@pytest.mark.parametrize("cls", [Intraday, GapAndGo])
@pytest.mark.parametrize("freq", ["5min", "15min", "30min", "45min", "1h", "2h"])
@pytest.mark.parametrize("calendar", ["XNYS", "24/7"])
def test_flat_when_the_session_ends(cls, freq, calendar):
    frame, _ = simulate(sessions=20, seed=3, freq=freq, calendar=calendar, start="2015-11-16")
    quick = dict(opening=1, trend=5) if cls is Intraday else dict(gap=0.05, n=2)
    r = backtest(cls(**quick), frame, costs=Costs())
    assert len(r.trades) > 3
    assert (r.positions.iloc[r.bars.session_ends()] == 0).all(axis=None)


def test_a_position_left_by_missing_bars_is_closed_in_the_next_session():
    frame, _ = simulate(sessions=12, seed=3, freq="10min")
    clock = market_clock(frame)
    short = frame[~((clock[:, 2] < 3600) & (clock[:, 0] % 2 == 1))]  # every second session loses its last hour
    r = backtest(Intraday(opening=2, trend=5, leave=5, stop=5.0, gain=20.0), short, costs=Costs())
    sessions = dict(zip(r.index, r.bars.clock[:, 0], strict=True))
    nights = [sessions[b] - sessions[a] for a, b in zip(r.trades.entry_ts, r.trades.exit_ts, strict=True)]
    assert max(nights) == 1
    late = r.trades[np.array(nights) == 1]
    bar = dict(zip(r.index, r.bars.clock[:, 1], strict=True))
    assert all(bar[t] == 1 for t in late.exit_ts)  # decided on the first bar of the session, filled at the next open


def market_clock(frame):
    from tradebench.data.bars import prepare

    return prepare(frame).clock


@pytest.mark.parametrize("top", [1, 2, 5])
def test_rotation_weights_and_dates(top):
    bars = market("daily_many")
    sim, decisions = recorded(Rotation(look=20, top=top, every=10), bars, costs=COSTS)
    targets = decisions[:, :, 0]
    chosen = ~np.isnan(targets)
    assert set(np.unique(targets[chosen])) <= {0.0, 1.0 / top}
    assert np.nansum(targets, axis=1).max() <= 1 + 1e-12
    days = np.flatnonzero(chosen.any(axis=1))
    assert (np.diff(bars.clock[days, 0]) >= 10).all() and len(days) > 20
    r = sim.result()
    assert r.exposure.gross.max() < 1.1 and (r.positions >= 0).all(
        axis=None
    )  # gains between choices may lift it a little
    assert ((r.positions != 0).sum(axis=1) <= max(top, 1)).all()


def test_rotation_ignores_who_is_no_member():
    "Whoever is no member is not wanted, and takes no place away from a member"
    import pandas as pd

    from tradebench.data.bars import prepare

    bars = market("daily_many")
    universe = pd.DataFrame([[True, True, False]], bars.index[:1], list(bars.symbols))
    bars = prepare(bars.frame(), universe=universe)
    sim, decisions = recorded(Rotation(look=20, top=2, floor=-50.0), bars, costs=COSTS)
    targets, both = decisions[:, :, 0], (bars.flags[:, :2] & 1).all(axis=1)
    known = np.cumsum(bars.flags[:, 0] & 1) > 20
    days = ~np.isnan(targets).all(axis=1) & both & known
    assert days.sum() > 10 and (targets[days, :2] == 0.5).all()
    assert not (targets[:, 2] > 0).any() and (sim.result().positions[bars.symbols[2]] == 0).all()


def test_rotation_keeps_the_place_of_what_cannot_be_sold():
    "What is held and has no row on the day of choice keeps its place: no more than `top` are wanted"
    import pandas as pd

    from tradebench.data.bars import prepare

    frame = market("daily_many").frame()
    rng = np.random.default_rng(2)
    for s in dict.fromkeys(frame.columns.get_level_values(0)):
        gone = pd.Series(rng.random(len(frame)) < 0.01).rolling(15, min_periods=1).max().to_numpy() > 0
        frame.loc[gone, s] = np.nan
    frame = frame.loc[frame.notna().any(axis=1)]
    sim, decisions = recorded(Rotation(look=10, top=2, every=3, floor=-50.0), prepare(frame), costs=COSTS)
    targets, r = decisions[:, :, 0], sim.result()
    stuck = (r.positions.to_numpy() != 0) & (sim.bars.flags & 1 == 0)
    days = ~np.isnan(targets).all(axis=1)
    assert stuck[days].any() and len(r.trades) > 20
    assert ((targets > 0).sum(axis=1) + stuck.sum(axis=1))[days].max() == 2


def test_scalping_takes_and_stops_at_its_distances():
    bars = market("new_york")
    s = Scalping(extreme=40.0, width=1.0, stop=1.5, gain=1.0)
    trace = backtest(s, bars, costs=Costs(), trace=True).trace
    entry = trace[trace["decision.target"].abs() == 1]
    assert len(entry) > 10
    side = entry["decision.target"]
    np.testing.assert_allclose((entry.close - entry["decision.stop"]) * side, 1.5 * entry["atr.value"])
    np.testing.assert_allclose((entry["decision.take"] - entry.close) * side, entry["atr.value"])
