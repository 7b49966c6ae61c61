"""A slow reference of the backtest engine: plain Python floats, one small method per rule, written from the
conventions alone. The compiled engine must agree with it fill by fill (relative tolerance 1e-9).

All money, quantities and orders are in raw prices; decisions arrive in seen prices (seen = raw * factor).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

NAN = math.nan
YEAR_NS = 365 * 86_400 * 10**9
PRESENT, TRADED, IN_UNIVERSE = 1, 2, 4
DIVIDEND, SPLIT, DELISTING = 1, 2, 3
LAMBDA = 0.94
TOL = 1e-12  # slack of the cash rule: rounding of sums must not refuse an order that fits exactly
ZERO = 1e-12  # what is smaller than this share of the account, of a trade or of an order is rounding
DUST = 1e-9  # a quantity smaller than this share of its order (or a lot) is rounding, not an order


@dataclass
class Costs:
    fee_bps: float = 0.0
    fee_per_unit: float = 0.0
    fee_min: float = 0.0
    fee_max_bps: float = 0.0
    fee_fixed: float = 0.0
    spread_bps: float = 0.0
    slippage_bps: float = 0.0
    slippage_vol: float = 0.0
    impact: float = 0.0
    borrow_rate: float = 0.0
    funding_rate: float = 0.0


@dataclass
class Sizing:
    kind: str = "fraction"  # fraction, quantity, volatility, kelly
    fraction: float = 1.0
    quantity: float = 1.0
    vol_target: float = 0.1
    kelly_fraction: float = 0.5
    kelly_min: int = 20


@dataclass
class Options:
    reentry: str = "changed"
    band: float | None = None
    fill: str = "next_open"
    stop_from: str = "entry"
    limit_touch: str = "through"
    maker_costs: bool = False
    spread_on: str = "fills"
    on_cash: str = "cut"
    at_end: str = "mark"
    leverage: float = 1.0
    maintenance: float = 0.0
    participation: float = 0.0


@dataclass
class Limits:
    "0 (or None) = no limit."

    max_weight: float = 0.0
    max_gross: float = 0.0
    max_net: float = 0.0
    max_drawdown: float = 0.0
    daily_loss: float = 0.0


class Decision(NamedTuple):
    target: float = NAN
    stop: float = NAN
    take: float = NAN
    trail: float = NAN
    limit: float = NAN
    expire: float = 0


@dataclass
class Order:
    ts: int
    t: int
    j: int
    target: float  # units of the position it leads to
    qty: float  # signed units wanted when it was made
    limit: float = NAN
    stop: float = NAN
    take: float = NAN
    trail: float = NAN
    expire: int = 0
    reason: str = "target"
    status: str = "working"
    filled: float = 0.0
    value: float = 0.0  # sum of units * price, for the average
    bars: int = 0  # bars on which it could have filled

    @property
    def market(self):
        return math.isnan(self.limit)

    @property
    def avg_price(self):
        return self.value / self.filled if self.filled else NAN


class Fill(NamedTuple):
    ts: int
    t: int
    j: int
    qty: float
    ref: float
    price: float
    fee: float
    spread: float
    slippage: float
    impact: float
    reason: str


@dataclass
class Trade:
    j: int
    side: int
    t_in: int
    entry_ts: int
    entry_reason: str
    high: float
    low: float
    multiplier: float
    qty: float = 0.0  # all units that entered
    exit_qty: float = 0.0
    entry_price: float = 0.0
    exit_price: float = NAN
    realised: float = 0.0  # from fill prices
    fees: float = 0.0
    costs: float = 0.0
    dividends: float = 0.0
    financing: float = 0.0
    bars: int = 0  # closes at which it was held
    t_out: int = -1
    exit_ts: int = 0
    exit_reason: str = ""
    open: bool = True

    @property
    def pnl(self):
        "All the money this trade made: prices, fees, dividends, borrow and funding."
        money = self.realised - self.fees + self.dividends - self.financing
        return 0.0 if abs(money) < ZERO * self.qty * self.entry_price * self.multiplier else money

    @property
    def ret(self):
        return self.pnl / (self.qty * self.entry_price * self.multiplier)

    def excursions(self):
        if self.entry_price == 0:
            return 0.0, 0.0
        up, down = self.high / self.entry_price - 1, self.low / self.entry_price - 1
        worst, best = (down, up) if self.side > 0 else (-up, -down)
        return min(0.0, worst), max(0.0, best)


@dataclass
class Symbol:
    tick: float
    lot: float
    multiplier: float
    qty: float = 0.0
    avg: float = NAN
    mark: float = NAN
    order: Order | None = None
    stop: float = NAN
    take: float = NAN
    trail: float = NAN
    extreme: float = NAN  # best price since entry
    entered: int = -1  # bar of the entry
    entry_ref: float = NAN  # reference price of the entry
    inside: bool = False  # entered inside the bar, by a limit
    last_target: float = 0.0
    blocked: bool = False  # after a protective or forced exit the band may not enter again
    exit_reason: str = ""
    trade: Trade | None = None
    used: float = 0.0  # units filled on this bar
    close: float = NAN  # last seen close
    returns: int = 0
    var: float = 0.0
    vol: float = 0.0  # up to the last mark


class View(NamedTuple):
    "What a decision sees of the bar and of the account, after the fills of the batch."

    ts: int
    bar: tuple  # seen open, high, low, close, volume
    position: float
    avg: float
    last_target: float
    exit_reason: str
    cash: float
    equity: float


class Result(NamedTuple):
    equity: list
    fills: list
    trades: list
    orders: list
    account: dict


def sign(x):
    return (x > 0) - (x < 0)


def given(x):
    return x is not None and math.isfinite(x) and x > 0


def same(a, b):
    return abs(a - b) <= DUST * max(abs(a), abs(b))


def floor_lot(q, lot):
    "The largest multiple of the lot not above q >= 0; q itself when it is one (but for rounding)."
    if lot <= 0:
        return q
    floored = math.floor(q / lot + DUST) * lot
    return q if abs(q - floored) <= DUST * lot else floored


def round_tick(price, tick, direction):
    "Up to the tick for direction +1, down for -1."
    if tick <= 0:
        return price
    n = price / tick
    if abs(n - round(n)) < DUST:
        return price
    return (math.ceil(n) if direction > 0 else math.floor(n)) * tick


def plain(a):
    return a.tolist() if hasattr(a, "tolist") else a


class Reference:
    def __init__(self, bars, costs, sizing, options, limits, initial):
        self.ts, self.raw, self.seen, self.factor, self.flags, self.clock = (
            plain(a) for a in (bars.ts, bars.raw, bars.seen, bars.factor, bars.flags, bars.clock)
        )
        self.events = [(int(e[0]), int(e[1]), int(e[2]), float(e[3])) for e in bars.events]
        self.costs, self.sizing, self.options, self.limits = costs, sizing, options, limits
        self.periods_per_year = bars.periods_per_year
        self.initial = self.cash = self.equity = self.peak = self.session_equity = initial
        self.symbols = [Symbol(i.tick, i.lot, i.multiplier) for i in bars.instruments]
        self.gross_pnl = self.fees = self.spread = self.slippage = self.impact = self.borrow = self.funding = 0.0
        self.halted = self.liquidating = False
        self.lost_session = None  # the session in which the daily loss was reached
        self.curve, self.fills, self.trades, self.orders = [], [], [], []

    # ---- the batch

    def run(self, decide):
        for t in range(len(self.ts)):
            self.start(t)
            self.finance(t)
            for event in sorted(e for e in self.events if e[0] == t):
                self.happen(*event)
            self.trade_bar(t)
            self.mark_bar(t)
            self.guard(t)
            self.decide_bar(t, decide)
            if self.options.fill == "close":
                self.fill_at_close(t)
            if t == len(self.ts) - 1 and self.options.at_end == "close":
                self.close_at_end(t)
            self.curve.append(self.equity)
            self.peak = max(self.peak, self.equity)
        return self.result()

    def start(self, t):
        if t and self.clock[t][0] != self.clock[t - 1][0]:
            self.session_equity = self.curve[-1]
        for s in self.symbols:
            s.used = 0.0

    def has(self, t, j, bits):
        return (int(self.flags[t][j]) & bits) == bits

    def tradable(self, t):
        return [j for j in range(len(self.symbols)) if self.has(t, j, PRESENT | TRADED)]

    # ---- 0 financing

    def finance(self, t):
        if t == 0:
            return
        dt = (self.ts[t] - self.ts[t - 1]) / YEAR_NS
        for s in self.symbols:
            if s.qty == 0:
                continue
            notional = s.qty * s.mark * s.multiplier
            borrow = max(-notional, 0.0) * self.costs.borrow_rate * dt
            funding = notional * self.costs.funding_rate * dt
            self.cash -= borrow + funding
            self.borrow += borrow
            self.funding += funding
            s.trade.financing += borrow + funding
            self.check()

    # ---- 1 events

    def happen(self, t, j, kind, value):
        s = self.symbols[j]
        if kind == DIVIDEND:
            self.dividend(s, value)
        elif kind == SPLIT:
            self.split(t, j, s, value)
        elif kind == DELISTING:
            self.delist(t, j, s, value)
        self.check()

    def dividend(self, s, value):
        if s.qty == 0:
            return
        money = s.qty * s.multiplier * value
        self.cash += money
        self.gross_pnl += money
        s.trade.dividends += money

    def split(self, t, j, s, ratio):
        s.qty *= ratio
        for name in "avg mark stop take trail extreme entry_ref".split():
            setattr(s, name, getattr(s, name) / ratio)
        if s.trade:
            s.trade.qty *= ratio
            s.trade.exit_qty *= ratio
            for name in "entry_price exit_price high low".split():
                setattr(s.trade, name, getattr(s.trade, name) / ratio)
        if s.order:
            o = s.order
            o.target = sign(o.target) * floor_lot(abs(o.target) * ratio, s.lot)
            o.qty, o.filled = o.qty * ratio, o.filled * ratio
            for name in "limit stop take trail".split():
                setattr(o, name, getattr(o, name) / ratio)
        rest = abs(s.qty) - floor_lot(abs(s.qty), s.lot)
        if rest > 0:
            side = sign(s.qty)
            self.cash += side * rest * s.mark * s.multiplier
            self.fills.append(Fill(self.ts[t], t, j, -side * rest, s.mark, s.mark, 0.0, 0.0, 0.0, 0.0, "split"))
            self.leave(t, s, rest, s.mark, "split")
        if s.order and same(s.order.target, s.qty):
            self.drop(s, "cancelled")

    def delist(self, t, j, s, value):
        if s.order:
            self.drop(s, "cancelled")
        if s.qty != 0:
            price = s.mark if math.isnan(value) else value
            self.gross_pnl += s.qty * (price - s.mark) * s.multiplier
            self.cash += s.qty * price * s.multiplier
            self.fills.append(Fill(self.ts[t], t, j, -s.qty, price, price, 0.0, 0.0, 0.0, 0.0, "delisted"))
            self.leave(t, s, abs(s.qty), price, "delisted")

    # ---- 2 fills

    def trade_bar(self, t):
        here = self.tradable(t)
        for j in here:
            self.gap_exit(t, j)
        at_open = [j for j in here if self.is_market(j) and self.symbols[j].order.t < t]
        reducing = [j for j in at_open if self.reduces(j)]
        for j in reducing + [j for j in at_open if j not in reducing]:
            self.execute(t, j, self.raw[t][j][0])
        for j in here:
            self.limit_fill(t, j)
        for j in here:
            self.inside_exit(t, j)
        for j in here:
            self.end_of_bar(t, j)

    def is_market(self, j):
        order = self.symbols[j].order
        return order is not None and order.market

    def reduces(self, j):
        s = self.symbols[j]
        return (s.order.target - s.qty) * s.qty < 0

    def levels(self, s):
        "Effective stop of the position and the reason it would give."
        side = sign(s.qty)
        trail = s.extreme - side * s.trail
        if math.isnan(trail):
            return s.stop, "stop"
        if math.isnan(s.stop) or side * (trail - s.stop) > 0:
            return trail, "trail"
        return s.stop, "stop"

    def gap_exit(self, t, j):
        s = self.symbols[j]
        if s.qty == 0:
            return
        side, first = sign(s.qty), self.raw[t][j][0]
        stop, reason = self.levels(s)
        if side * (first - stop) <= 0:
            self.protective_exit(t, j, first, reason)
        elif side * (first - s.take) >= 0:
            self.protective_exit(t, j, first, "take")

    def inside_exit(self, t, j):
        s = self.symbols[j]
        new = s.entered == t
        if s.qty == 0 or (new and self.options.stop_from == "next"):
            return
        first, high, low = self.raw[t][j][:3]
        side = sign(s.qty)
        worst, best = (low, high) if side > 0 else (high, low)
        ref = s.entry_ref if new else first
        stop, reason = self.levels(s)
        beyond = side * (best - s.take)
        took = beyond > 0 or (beyond == 0 and self.options.limit_touch == "touch")
        if side * (worst - stop) <= 0:
            self.protective_exit(t, j, min(ref, stop) if side > 0 else max(ref, stop), reason)
        elif took and not (new and s.inside):
            self.protective_exit(t, j, max(ref, s.take) if side > 0 else min(ref, s.take), "take")

    def protective_exit(self, t, j, ref, reason):
        s = self.symbols[j]
        side = sign(s.qty)
        qty = self.capped(t, j, abs(s.qty))
        if qty > 0:
            self.book(t, j, -side, qty, 0.0, ref, reason, reason != "take" or self.options.maker_costs)
        s.stop = s.take = s.trail = NAN  # spent, also when only a part could leave
        if s.qty != 0:
            self.submit(t, j, 0.0, reason)
        elif s.order and s.order.target * side >= 0:
            self.drop(s, "cancelled")
        elif s.order:
            return  # an order to the other side: its target stands
        s.blocked = True
        if self.options.reentry == "always":
            s.last_target = 0.0

    def limit_fill(self, t, j):
        s = self.symbols[j]
        if s.order is None or s.order.market:
            return
        first, high, low = self.raw[t][j][:3]
        side, limit = sign(s.order.target - s.qty), s.order.limit
        best = low if side > 0 else high
        beyond = side * (limit - best)
        if side * (limit - first) >= 0:
            self.execute(t, j, first)
        elif beyond > 0 or (beyond == 0 and self.options.limit_touch == "touch"):
            self.execute(t, j, limit, inside=True)

    def execute(self, t, j, ref, inside=False, at_close=False):
        "Fill what can be filled of the working order at the reference price."
        s = self.symbols[j]
        o = s.order
        market = o.market or self.options.maker_costs
        delta = o.target - s.qty
        side = sign(delta)
        qty = self.capped(t, j, abs(delta))
        if qty == 0:
            return
        less = min(qty, abs(s.qty)) if delta * s.qty < 0 else 0.0
        more = qty - less if qty - less > DUST * qty else 0.0
        less = qty - more
        paid = self.affordable(t, j, side, less, more, ref, market, at_close) if more > 0 else 0.0
        if less + paid > 0:
            self.book(t, j, side, less, paid, ref, o.reason, market, inside, o)
        if paid > 0:
            self.protect(s, o.stop, o.take, o.trail)
        if paid < more:
            self.drop(s, "cut" if o.filled else "refused")
        elif same(s.qty, o.target):
            s.qty = o.target
            self.drop(s, "filled")

    def capped(self, t, j, qty):
        "At most the participation cap of this bar, in whole lots."
        s, volume, p = self.symbols[j], self.raw[t][j][4], self.options.participation
        if given(p) and volume > 0:
            left = p * volume - s.used
            qty = min(qty, left if left > DUST * p * volume else 0.0)
        return floor_lot(qty, s.lot)

    def price(self, t, j, side, qty, ref, market, increases):
        "Fill price and its parts spread, slippage and impact, each in price per unit."
        if not market:
            return ref, 0.0, 0.0, 0.0
        c, s, volume = self.costs, self.symbols[j], self.raw[t][j][4]
        vol = s.vol  # at the open and inside the bar: up to the bar before
        half = c.spread_bps / 2 if increases or self.options.spread_on == "fills" else 0.0
        slip = c.slippage_bps + c.slippage_vol * vol * 1e4
        impact = c.impact * vol * math.sqrt(qty / volume) * 1e4 if volume > 0 else 0.0
        if side < 0 and half + slip + impact > 1e4:  # a sale may bring nothing, never less
            half, slip, impact = (x * 1e4 / (half + slip + impact) for x in (half, slip, impact))
        exact = ref * (1 + side * (half + slip + impact) / 1e4)
        price = round_tick(exact, s.tick, side)
        return price, ref * half / 1e4, ref * slip / 1e4 + side * (price - exact), ref * impact / 1e4

    def fee(self, qty, notional):
        c = self.costs
        fee = max(c.fee_bps * 1e-4 * notional + c.fee_per_unit * qty, c.fee_min)
        if given(c.fee_max_bps):
            fee = min(fee, c.fee_max_bps * 1e-4 * notional)
        return fee + c.fee_fixed

    def affordable(self, t, j, side, less, more, ref, market, at_close):
        "How much of the increase `more` leaves gross exposure within leverage * equity."
        s = self.symbols[j]
        others = [(k, o) for k, o in enumerate(self.symbols) if k != j and o.qty != 0]
        values = [o.qty * self.cash_mark(t, k, at_close) * o.multiplier for k, o in others]

        def fits(extra):
            qty = less + extra
            price = self.price(t, j, side, qty, ref, market, True)[0]
            cash = self.cash - side * qty * price * s.multiplier - self.fee(qty, qty * price * s.multiplier)
            own = (s.qty + side * qty) * ref * s.multiplier
            equity = cash + own + sum(values)
            return abs(own) + sum(abs(v) for v in values) <= self.options.leverage * equity * (1 + TOL)

        if fits(more):
            return more
        if self.options.on_cash == "refuse":
            return 0.0
        if s.lot > 0:
            low, high = 0, round(more / s.lot)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if fits(middle * s.lot) else (low, middle)
            return low * s.lot
        low, high = 0.0, more
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        if more - low <= ZERO * more:
            return more
        return low if low > DUST * more else 0.0

    def cash_mark(self, t, k, at_close):
        return self.raw[t][k][0] if self.has(t, k, PRESENT) and not at_close else self.symbols[k].mark

    def book(self, t, j, side, less, more, ref, reason, market, inside=False, order=None):
        "Book one fill: `less` units towards zero, then `more` units that open or increase."
        s, qty = self.symbols[j], less + more
        price, spread, slip, impact = self.price(t, j, side, qty, ref, market, more > 0)
        size = qty * s.multiplier
        fee = self.fee(qty, size * price)
        spread, slip, impact = spread * size, slip * size, impact * size
        self.cash -= side * size * price + fee
        self.gross_pnl += side * size * (s.mark - ref)
        self.fees += fee
        self.spread += spread
        self.slippage += slip
        self.impact += impact
        s.used += qty
        self.fills.append(Fill(self.ts[t], t, j, side * qty, ref, price, fee, spread, slip, impact, reason))
        if order:
            order.filled += side * qty
            order.value += side * qty * price
        touched = []
        if less > 0:
            touched.append((less, self.leave(t, s, less, price, reason)))
        if more > 0:
            touched.append((more, self.enter(t, s, more, price, j, side)))
        for part, trade in touched:
            trade.fees += fee * part / qty
            trade.costs += (spread + slip + impact) * part / qty
        if more > 0 and s.entered == t and s.trade.qty == more:
            s.entry_ref, s.inside = ref, inside
        self.check()

    def leave(self, t, s, qty, price, reason):
        "Reduce the position by qty units at this price."
        trade, side = s.trade, sign(s.qty)
        trade.realised += qty * (price - s.avg) * s.multiplier * side
        before = trade.exit_price * trade.exit_qty if trade.exit_qty else 0.0
        trade.exit_qty += qty
        trade.exit_price = (before + qty * price) / trade.exit_qty
        s.qty = 0.0 if same(qty, abs(s.qty)) else s.qty - side * qty
        trade.high, trade.low = max(trade.high, price), min(trade.low, price)
        if s.qty == 0:
            trade.t_out, trade.exit_ts, trade.exit_reason, trade.open = t, self.ts[t], reason, False
            s.stop = s.take = s.trail = s.extreme = s.avg = NAN
            s.trade, s.exit_reason = None, reason
        return trade

    def enter(self, t, s, qty, price, j, side):
        "Open a position, or add to one, at this price."
        if s.qty == 0:
            s.trade = Trade(j, side, t, self.ts[t], "target", price, price, s.multiplier)
            self.trades.append(s.trade)
            s.avg = s.extreme = price
            s.entered = t
        s.avg = (abs(s.qty) * s.avg + qty * price) / (abs(s.qty) + qty)
        trade = s.trade
        trade.entry_price = (trade.qty * trade.entry_price + qty * price) / (trade.qty + qty)
        trade.qty += qty
        s.qty += side * qty
        return trade

    def end_of_bar(self, t, j):
        s = self.symbols[j]
        _, high, low = self.raw[t][j][:3]
        if s.qty != 0:
            s.extreme = max(s.extreme, high) if s.qty > 0 else min(s.extreme, low)
            s.trade.high, s.trade.low = max(s.trade.high, high), min(s.trade.low, low)
        if s.order:
            self.count_bar(s)

    def count_bar(self, s):
        s.order.bars += 1
        if 0 < s.order.expire <= s.order.bars:
            self.drop(s, "expired")

    # ---- 3 mark

    def mark_bar(self, t):
        for j, s in enumerate(self.symbols):
            if not self.has(t, j, PRESENT):
                continue
            close, seen = self.raw[t][j][3], self.seen[t][j][3]
            if s.qty != 0:
                self.gross_pnl += s.qty * (close - s.mark) * s.multiplier
                s.trade.bars += 1
            s.mark = close
            if not math.isnan(s.close):
                r = seen / s.close - 1
                s.var = LAMBDA * s.var + (1 - LAMBDA) * r * r if s.returns else r * r
                s.returns += 1
                s.vol = math.sqrt(s.var) if s.returns >= 2 else 0.0
            s.close = seen
            self.check()
        self.equity = self.worth()

    def values(self):
        return [s.qty * s.mark * s.multiplier for s in self.symbols if s.qty != 0]

    def worth(self):
        return self.cash + sum(self.values())

    # ---- 4 liquidation and breakers

    def guard(self, t):
        gross = sum(abs(v) for v in self.values())
        if gross == 0:
            self.liquidating = False
        reason = None
        ruined = self.equity <= DUST * self.initial
        if ruined or (given(self.options.maintenance) and 0 < gross
                                and self.equity <= self.options.maintenance * gross):  # fmt: skip
            self.liquidating, reason = gross > 0, "liquidation"
            self.halted = self.halted or ruined
        limit = self.limits.max_drawdown
        if given(limit) and not self.halted and 1 - self.equity / max(self.peak, self.equity) >= limit:
            self.halted, reason = True, reason or "breaker"
        limit = self.limits.daily_loss
        if given(limit) and self.session_equity > 0 and 1 - self.equity / self.session_equity >= limit:
            self.lost_session, reason = self.clock[t][0], reason or "daily_loss"
        if reason:
            self.close_all(t, reason)

    def close_all(self, t, reason):
        for j, s in enumerate(self.symbols):
            s.blocked = True
            if s.qty != 0:
                if s.order is None or s.order.reason == "target":
                    self.submit(t, j, 0.0, reason)
            elif s.order:
                self.drop(s, "cancelled")

    # ---- 5 decisions

    def decide_bar(self, t, decide):
        if self.halted or self.liquidating or self.lost_session == self.clock[t][0]:
            return
        plans, increases = {}, []
        for j, s in enumerate(self.symbols):
            if self.has(t, j, PRESENT | IN_UNIVERSE):
                view = View(self.ts[t], tuple(self.seen[t][j]), s.qty, s.avg, s.last_target, s.exit_reason,
                            self.cash, self.equity)  # fmt: skip
                plans[j] = decide(t, j, view) or Decision()
            elif self.has(t, j, PRESENT):
                plans[j] = None
        for j, wish in plans.items():
            if wish is None:
                self.leave_universe(t, j)
                continue
            units, qty = self.plan(t, j, wish), self.symbols[j].qty
            if math.isnan(wish.target):
                self.restate(t, j, wish)
            elif units is None:
                continue
            elif units * qty >= 0 and abs(units) <= abs(qty):
                self.accept(t, j, wish, units)
            else:
                increases.append((j, wish, units))
        for j, wish, units in increases:
            self.accept(t, j, wish, self.within_limits(j, units))

    def leave_universe(self, t, j):
        s = self.symbols[j]
        if s.qty == 0 and s.order is None:
            return
        if s.qty == 0:
            self.drop(s, "cancelled")
        elif not (s.order and s.order.market and s.order.target == 0):
            self.submit(t, j, 0.0, "target")
        s.last_target, s.blocked = 0.0, False

    def plan(self, t, j, wish):
        "Units wanted, or None when this decision makes no order."
        s = self.symbols[j]
        if math.isnan(wish.target):
            return None
        if self.sizing.kind != "quantity" and not -1 <= wish.target <= 1:
            raise ValueError(f"target {wish.target} of symbol {j} at bar {t} is outside [-1, 1]")
        units = self.desired(s, wish.target)
        if units is None or wish.target != s.last_target:
            return units
        if self.options.band is None or s.order or s.blocked:
            return None
        drift = abs(s.qty - units) * s.mark * s.multiplier / self.equity
        return units if drift > self.options.band else None

    def desired(self, s, target):
        "Units by the sizing rule, within max_weight and in whole lots; None when volatility is unknown."
        z, per_unit = self.sizing, s.mark * s.multiplier
        if target == 0:
            return 0.0
        if z.kind == "quantity":
            units = target * z.quantity
        elif z.kind == "volatility":
            if s.vol == 0:
                return None
            units = target * min(z.fraction, z.vol_target / (s.vol * math.sqrt(self.periods_per_year)))
            units = units * self.equity / per_unit
        elif z.kind == "kelly":
            units = target * self.kelly() * self.equity / per_unit
        else:
            units = target * z.fraction * self.equity / per_unit
        if given(self.limits.max_weight):
            most = self.limits.max_weight * self.equity / per_unit
            units = max(-most, min(most, units))
        return sign(units) * floor_lot(abs(units), s.lot)

    def kelly(self):
        z = self.sizing
        results = [trade.pnl for trade in self.trades if not trade.open]
        wins, losses = [x for x in results if x > 0], [-x for x in results if x < 0]
        if len(results) < z.kelly_min or not wins or not losses:
            return min(z.kelly_fraction, z.fraction)
        share = len(wins) / len(results)
        ratio = (sum(wins) / len(wins)) / (sum(losses) / len(losses))
        return min(max(z.kelly_fraction * (share - (1 - share) / ratio), 0.0), z.fraction)

    def within_limits(self, j, units):
        "An increase, cut towards the position until gross and net are within their limits."
        s, side = self.symbols[j], sign(units)
        gross = net = 0.0
        for k, o in enumerate(self.symbols):
            if k == j or math.isnan(o.mark):
                continue
            aim = o.order.target if o.order else o.qty
            gross += max(abs(o.qty), abs(aim)) * o.mark * o.multiplier
            net += aim * o.mark * o.multiplier
        room = math.inf
        if given(self.limits.max_gross):
            room = min(room, self.limits.max_gross * self.equity - gross)
        if given(self.limits.max_net):
            room = min(room, self.limits.max_net * self.equity - side * net)
        most = max(room, 0.0) / (s.mark * s.multiplier)
        if abs(units) <= most:
            return units
        kept = abs(s.qty) if s.qty * side > 0 else 0.0  # what is held already is never cut
        return side * (kept + floor_lot(max(most - kept, 0.0), s.lot))

    def accept(self, t, j, wish, units):
        s = self.symbols[j]
        changed = wish.target != s.last_target
        s.last_target = wish.target
        s.blocked = s.blocked and not changed
        dust = ZERO * self.peak / (s.mark * s.multiplier)
        units = units if abs(units) > dust else 0.0
        if abs(units - s.qty) <= dust:
            if changed and s.order:
                self.drop(s, "cancelled")
            self.restate(t, j, wish)
            return
        self.submit(t, j, units, "target", wish)
        if units * s.qty >= 0 and abs(units) < abs(s.qty):
            self.restate(t, j, wish)

    def restate(self, t, j, wish):
        "New levels for the position and for the working order, where given."
        s, f = self.symbols[j], self.factor[t][j]
        levels = wish.stop / f, wish.take / f, wish.trail / f
        if s.qty != 0:
            self.protect(s, *levels)
        if s.order:
            self.protect(s.order, *levels)

    def protect(self, holder, stop, take, trail):
        for name, level in (("stop", stop), ("take", take), ("trail", trail)):
            if not math.isnan(level):
                setattr(holder, name, level)

    def submit(self, t, j, units, reason, wish=None):
        "Replace the working order by one that leads to `units`."
        s, f = self.symbols[j], self.factor[t][j]
        if s.order:
            self.drop(s, "cancelled")
        s.order = Order(self.ts[t], t, j, units, units - s.qty, reason=reason)
        if wish:
            limit = round_tick(wish.limit / f, s.tick, -sign(units - s.qty)) if not math.isnan(wish.limit) else NAN
            s.order = replace(s.order, limit=limit, expire=int(wish.expire) if wish.expire > 0 else 0,
                              stop=wish.stop / f, take=wish.take / f, trail=wish.trail / f)  # fmt: skip
        self.orders.append(s.order)

    def drop(self, s, status):
        s.order.status, s.order = status, None

    # ---- fills at the close, the end

    def fill_at_close(self, t):
        def new(j):
            return self.is_market(j) and self.symbols[j].order.t == t and self.symbols[j].order.reason == "target"

        here = [j for j in self.tradable(t) if new(j)]
        reducing = [j for j in here if self.reduces(j)]
        for j in reducing + [j for j in here if j not in reducing]:
            self.execute(t, j, self.raw[t][j][3], at_close=True)
            if self.symbols[j].order:
                self.count_bar(self.symbols[j])
        self.equity = self.worth()

    def close_at_end(self, t):
        for j, s in enumerate(self.symbols):
            if s.order:
                self.drop(s, "cancelled")
            if s.qty != 0:
                self.book(t, j, -sign(s.qty), abs(s.qty), 0.0, s.mark, "end", True)
        self.equity = self.worth()

    # ---- the law, the result

    def check(self):
        "Money is conserved: what is there and what was paid is what was put in and what prices gave."
        values = self.values()
        paid = self.fees + self.spread + self.slippage + self.impact + self.borrow + self.funding
        have, due = self.cash + sum(values) + paid, self.initial + self.gross_pnl
        scale = self.initial + abs(self.cash) + sum(abs(v) for v in values) + abs(paid)
        assert abs(have - due) <= 1e-9 * scale, f"money is not conserved: {have} against {due}"

    def result(self):
        for s in self.symbols:
            if s.trade:  # an open trade is valued at the mark
                trade = s.trade
                trade.realised += s.qty * (s.mark - s.avg) * s.multiplier
                trade.t_out, trade.exit_ts, trade.exit_reason = len(self.ts) - 1, self.ts[-1], "end"
                before = trade.exit_price * trade.exit_qty if trade.exit_qty else 0.0
                trade.exit_price = (before + abs(s.qty) * s.mark) / (trade.exit_qty + abs(s.qty))
        account = {
            "cash": self.cash, "equity": self.equity, "peak": self.peak, "gross_pnl": self.gross_pnl,
            "fee": self.fees, "spread": self.spread, "slippage": self.slippage, "impact": self.impact,
            "borrow": self.borrow, "funding": self.funding, "halted": self.halted,
            "qty": [s.qty for s in self.symbols], "avg": [s.avg for s in self.symbols],
        }  # fmt: skip
        return Result(self.curve, self.fills, self.trades, self.orders, account)


def made(kind, value):
    return value if isinstance(value, kind) else kind(**(value or {}))


def run_reference(bars, decisions, costs=None, sizing=None, options=None, limits=None, initial=100_000.0):
    """Run the reference over `bars` (an object with ts, raw, seen, factor, flags, clock, events, instruments and
    periods_per_year) with `decisions`: a function (t, j, view) -> Decision or None, or an array [T, N, 6] of
    target, stop, take, trail, limit, expire. Costs and the like are the dataclasses above or dicts of their fields."""
    if not callable(decisions):
        rows = plain(decisions)

        def decisions(t, j, view):
            return Decision(*rows[t][j])

    engine = Reference(bars, made(Costs, costs), made(Sizing, sizing), made(Options, options), made(Limits, limits),
                       float(initial))  # fmt: skip
    return engine.run(decisions)
