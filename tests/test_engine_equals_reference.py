"""The compiled engine against the slow reference: the same fills, trades, orders, equity and account on random cases,
whole, batch by batch, traced and as plain Python. A failure prints the seed: `python tests/test_engine_equals_reference.py SEED`
shows both sides."""

import math
import random
import sys
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from reference_engine import Costs, Limits, Options, Sizing, run_reference
from strategies_for_engine import Case, bars_of, cases, decisions_of, random_case

import tradebench.backtest.costs as costs
import tradebench.backtest.exchange as exchange
import tradebench.risk.sizing as sizing
from tradebench.backtest.simulation import backtest, simulation
from tradebench.data.bars import Bars
from tradebench.data.instruments import Instrument
from tradebench.strategies.strategy import REASONS

TOL = 1e-9


def bars_for(small) -> Bars:
    "The case's arrays as the engine's `Bars`"
    seen = small.seen if len(small.events) else small.raw
    names = ("ts", "raw", "factor", "flags", "clock", "events")
    arrays = {k: np.ascontiguousarray(getattr(small, k)) for k in names}
    return Bars(
        symbols=small.symbols, seen=np.ascontiguousarray(seen), share=np.ones_like(small.factor), extras={},
        instruments=tuple(Instrument(i.symbol, i.tick, i.lot, i.multiplier) for i in small.instruments),
        calendar=small.calendar, periods_per_year=small.periods_per_year, **arrays,
    )  # fmt: skip


def arguments_for(case) -> dict:
    "Arguments of `backtest` for a case of the reference"
    options, size, limits = (asdict(x) for x in (case.options, case.sizing, case.limits))
    cost = costs.Costs(**asdict(case.costs), participation=options.pop("participation"))
    infinite = {k: v or (1.0 if k in ("max_drawdown", "daily_loss") else math.inf) for k, v in limits.items()}
    names = ("target", "stop", "take", "trail", "limit", "expire")
    columns = {k: np.ascontiguousarray(case.decisions[:, :, i]) for i, k in enumerate(names)}
    return dict(
        bars=bars_for(case.bars), costs=cost, sizing=sizing.Sizing(rule=size.pop("kind"), **size),
        limits=sizing.Limits(**infinite), options=exchange.Options(**options), initial=case.initial, **columns,
    )  # fmt: skip


def rows(records) -> list:
    return [dict(zip(records.dtype.names, r, strict=True)) for r in records.tolist()]


def compiled_tables(r) -> dict:
    "What is compared, from the engine"
    fills = [f | dict(reason=REASONS[f["reason"]]) for f in rows(r._fills)]
    trades = sorted(rows(r._trades), key=lambda w: w["id"])
    words = ("entry_reason", "exit_reason")
    trades = [w | {k: REASONS[w[k]] for k in words} for w in trades]
    orders = [w | dict(status=exchange.STATUS[w["status"]], reason=REASONS[w["reason"]]) for w in rows(r._orders)]
    return dict(fills=fills, trades=trades, orders=orders, equity=r.equity_values.tolist())


def reference_tables(r) -> dict:
    "The same from the reference"
    trades = []
    for k, w in enumerate(r.trades):
        mae, mfe = w.excursions()
        trades.append(dict(
            id=k, j=w.j, side=w.side, entry_t=w.t_in, exit_t=w.t_out, bars=w.bars, entry_reason=w.entry_reason,
            exit_reason=w.exit_reason, open=int(w.open), qty=w.qty, entry_price=w.entry_price, exit_price=w.exit_price,
            pnl=w.pnl, fees=w.fees, costs=w.costs, mae=mae, mfe=mfe,
        ))  # fmt: skip
    names = "t j qty limit stop take trail expire filled value status reason".split()
    orders = [dict(id=k) | {n: getattr(o, n) for n in names} for k, o in enumerate(r.orders)]
    fills = [f._asdict() for f in r.fills]
    for f in fills:
        f.pop("ts")
    return dict(fills=fills, trades=trades, orders=orders, equity=r.equity)


def scales(case, table) -> dict:
    "What rounding is relative to: sums of money to the account, and units left over by a cut to the units it could carry"
    fills = table["fills"]
    money = case.initial + 5 * max((abs(f["qty"] * f["ref"]) for f in fills), default=0.0)
    units = money / min((f["ref"] for f in fills if f["ref"] > 0), default=1.0)
    return dict.fromkeys("pnl fees costs fee spread slippage impact value".split(), money) | dict(
        qty=units, filled=units
    )


def differences(case, ours, theirs) -> list:
    found, scale = [], scales(case, theirs)
    for name in ("fills", "orders", "trades"):
        a, b = ours[name], theirs[name]
        if len(a) != len(b):
            found.append(f"{name}: {len(a)} against {len(b)}")
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            for k in y:
                if isinstance(y[k], str) or y[k] == x[k]:
                    if x[k] != y[k]:
                        found.append(f"{name}[{i}].{k}: {x[k]} against {y[k]}")
                elif not math.isclose(x[k], y[k], rel_tol=TOL, abs_tol=TOL * scale.get(k, 1e-3)):
                    if not (math.isnan(x[k]) and math.isnan(y[k])):
                        found.append(f"{name}[{i}].{k}: {x[k]!r} against {y[k]!r}")
    unlike = ~np.isclose(ours["equity"], theirs["equity"], rtol=TOL, atol=TOL * scale["pnl"])
    found += [f"equity[{t}]: {ours['equity'][t]!r} against {theirs['equity'][t]!r}" for t in np.flatnonzero(unlike)]
    return found


def account_differences(case, sim, theirs) -> list:
    found, account, scale = [], theirs.account, scales(case, reference_tables(theirs))
    scale, units = scale["pnl"], scale["qty"]
    names = dict(cash="cash", equity="equity", gross_pnl="gross_pnl", fees="fee") | {
        k: k for k in ("spread", "slippage", "impact", "borrow", "funding", "peak")
    }
    for mine, other in names.items():
        if not math.isclose(sim.account[mine], account[other], rel_tol=TOL, abs_tol=TOL * scale):
            found.append(f"account.{mine}: {sim.account[mine]!r} against {account[other]!r}")
    if (sim.account["halted"] == 2) != account["halted"]:
        found.append(f"account.halted: {sim.account['halted']} against {account['halted']}")
    qty = sim.slots[0]["qty"]
    if not np.allclose(qty, account["qty"], rtol=TOL, atol=TOL * units):
        found.append(f"qty: {qty} against {account['qty']}")
    if not np.allclose(sim.result().position_values[-1], qty, rtol=TOL, atol=TOL * units):
        found.append(f"positions: {sim.result().position_values[-1]} against {qty}")
    held = qty != 0
    if not np.allclose(sim.slots[0]["avg"][held], np.array(account["avg"])[held], rtol=TOL):
        found.append(f"avg: {sim.slots[0]['avg']} against {account['avg']}")
    return found


def finished(case):
    sim = simulation(**arguments_for(case))
    sim.advance()
    return sim


def compare(case) -> list:
    "All that differs between engine and reference, in words"
    sim, theirs = finished(case), run_reference(*case.arguments)
    found = differences(case, compiled_tables(sim.result()), reference_tables(theirs))
    found += account_differences(case, sim, theirs)
    if (gap := sim.result().conservation_error()) > TOL:
        found.append(f"conservation: {gap}")
    return found


def seeds_that_differ(seeds) -> str:
    found = {seed: compare(random_case(random.Random(seed))) for seed in seeds}
    return "\n".join(f"seed {seed}: {'; '.join(words[:4])}" for seed, words in found.items() if words)


@settings(max_examples=150)
@given(cases)
def test_engine_equals_reference(case):
    assert not compare(case)


def test_engine_equals_reference_in_bulk():
    assert not seeds_that_differ(range(1200))


@pytest.mark.slow
def test_engine_equals_reference_in_bulk_long():
    assert not seeds_that_differ(range(100_000, 130_000))


def bits(sim) -> dict:
    "Everything that a run leaves behind, as bytes"
    r = sim.result()
    kept = dict(equity=r.equity_values, fills=r._fills, trades=r._trades, orders=r._orders)
    return {k: v.tobytes() for k, v in (kept | dict(account=sim.accounts, slots=sim.slots)).items()}


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_batch_by_batch_is_the_same_and_money_is_conserved_after_every_batch(first):
    for seed in range(first, first + 100):
        case = random_case(random.Random(seed))
        sim = simulation(**arguments_for(case))
        for t in range(len(case.bars.ts)):
            sim.advance(t + 1)
            gap = sim.result().conservation_error()
            assert gap < 1e-12, f"seed {seed}, batch {t}: {gap}"
        assert bits(sim) == bits(finished(case)), f"seed {seed}"


def test_running_sums_give_the_metrics_of_the_equity():
    for seed in range(60):
        sim = finished(random_case(random.Random(seed)))
        metrics = sim.result().metrics
        for name, value in sim.headline().items():
            assert value == pytest.approx(metrics[name], rel=1e-6, abs=1e-9, nan_ok=True), f"seed {seed}: {name}"


def small_cases(seeds):
    for seed in seeds:
        yield seed, random_case(random.Random(seed), steps=(4, 9), symbols=2)


@pytest.mark.parametrize("how", [dict(debug=True), dict(trace=True), dict(debug=True, trace=True)], ids=str)
def test_debug_and_trace_run_the_same(how):
    for seed, case in small_cases(range(40)):
        a, b = backtest(**arguments_for(case), **how), backtest(**arguments_for(case))
        for name in ("equity_values", "account", "_fills", "_trades", "_orders"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), f"seed {seed}: {name}"


def test_rows_are_never_lost():
    "More fills in one run than the first buffers hold, also where every order is filled at the close that made it"
    bar = (100.0, 101.0, 99.0, 100.0, np.nan)
    wishes = {t: dict(target=(-1.0) ** t) for t in range(1500)}
    for fill in ("close", "next_open"):
        case = Case(
            bars_of([bar] * 1500), decisions_of(1500, wishes), Costs(), Sizing(), Options(fill=fill), Limits(), 1e4
        )
        sim = finished(case)
        assert len(sim.result()._fills) == sim.account["n_fills"] >= 1499
        assert not compare(case)


def show(seed):
    case = random_case(random.Random(seed))
    sim, theirs = finished(case), run_reference(*case.arguments)
    a, b = compiled_tables(sim.result()), reference_tables(theirs)
    print(case.costs, case.sizing, case.options, case.limits, case.initial, case.bars.instruments[0], sep="\n")
    print(case.bars.events)
    for t in range(len(case.bars.ts)):
        for j in range(len(case.bars.symbols)):
            print(t, j, case.bars.flags[t, j], case.bars.raw[t, j], "decides", case.decisions[t, j])
    for name in ("fills", "orders", "trades"):
        for side, table in (("engine", a), ("reference", b)):
            print(name, side)
            for row in table[name]:
                print("   ", {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
    print(*compare(case), sep="\n")


if __name__ == "__main__":
    show(int(sys.argv[1]))
