"Local servers that speak an exchange's REST protocol and the websocket protocol of tradebench, with faults by seed."

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import numpy as np
from aiohttp import web

from tradebench.live.collect import MarketClock

MINUTE, SECOND = 60_000_000_000, 1_000_000_000
START = 28_400_000 * MINUTE  # 2023-12-31 05:20 UTC


def truth(symbol: str, k: int) -> tuple:
    "Open, high, low, close, volume of minute `k` (counted from START, at its end); decimals that binary fractions hold"
    rng = np.random.default_rng([len(symbol), ord(symbol[0]), k + 10_000_000])
    o, c = (100 + rng.integers(-400, 400, 2) / 64).tolist()
    return o, max(o, c) + 1.25, min(o, c) - 0.5, c, float(rng.integers(1, 50))


def minute_of(ts: int) -> int:
    k, rest = divmod(ts - START, MINUTE)
    assert rest == 0, f"{ts} is no whole minute"
    return k


@asynccontextmanager
async def serving(routes):
    "Address of a local server with these routes"
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


class Binance:
    """Public spot endpoints of Binance: time, exchangeInfo, klines with the growing one.

    faults: {number of the klines request: what it gets}; delay: {symbol: ns until a candle is listed}; skew: ns that its clock is ahead.
    """

    NAMES = {"BTCUSDT": "BTC/USDT", "ETHUSDT": "ETH/USDT"}

    def __init__(self, clock: MarketClock, *, faults=None, delay=None, skew=0, down=(0, 0), first=-(10**9), broken=()):
        self.clock, self.faults, self.delay, self.skew, self.down = clock, faults or {}, delay or {}, skew, down
        self.first, self.broken, self.asked, self.log = first, set(broken), 0, []

    def now(self) -> int:
        return self.clock.now() - self.clock.offset + self.skew

    def routes(self):
        return [
            web.get("/api/v3/klines", self.klines),
            web.get("/api/v3/exchangeInfo", self.markets),
            web.get("/api/v3/time", self.time),
        ]

    async def time(self, request):
        return web.json_response(dict(serverTime=self.now() // 1_000_000))

    async def markets(self, request):
        def one(symbol, tick, step):
            base = symbol.removesuffix("USDT")
            filters = [
                dict(filterType="PRICE_FILTER", minPrice=tick, maxPrice="1000000.00000000", tickSize=tick),
                dict(filterType="LOT_SIZE", minQty=step, maxQty="9000.00000000", stepSize=step),
                dict(filterType="MIN_NOTIONAL", minNotional="10.00000000"),
            ]
            return dict(
                symbol=symbol, status="TRADING", baseAsset=base, quoteAsset="USDT", baseAssetPrecision=8, quotePrecision=8,
                quoteAssetPrecision=8, orderTypes=["LIMIT", "MARKET"], isSpotTradingAllowed=True, isMarginTradingAllowed=False,
                permissions=["SPOT"], permissionSets=[["SPOT"]], filters=filters,
            )  # fmt: skip

        symbols = [one("BTCUSDT", "0.01000000", "0.00001000"), one("ETHUSDT", "0.01000000", "0.00010000")]
        return web.json_response(
            dict(timezone="UTC", serverTime=self.now() // 1_000_000, rateLimits=[], exchangeFilters=[], symbols=symbols)
        )

    def candle(self, symbol, k):
        "Candle that ends at minute `k`; a growing one has part of its range and volume"
        o, h, lo, c, v = truth(symbol, k)
        part = min(1.0, 1 - (START + k * MINUTE - self.now()) / MINUTE)
        if part < 1:
            h, lo, c, v = max(o, o + (h - o) * part), min(o, o + (lo - o) * part), o, v * part * 0.5
        if (symbol, k) in self.broken:
            lo = -1.0
        start = (START + (k - 1) * MINUTE) // 1_000_000
        text = [f"{x:.8f}" for x in (o, h, lo, c, v)]
        return [start, *text, start + 59_999, "0.0", 7, "0.0", "0.0", "0"]

    async def klines(self, request):
        self.asked += 1
        now, q = self.now(), request.query
        symbol = self.NAMES.get(q["symbol"])
        self.log.append((symbol, now))
        fault = self.faults.get(self.asked)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "reset" or self.down[0] <= now < self.down[1]:
            request.transport.abort()
            return web.Response()
        if fault == "500":
            return web.Response(status=500, text="internal")
        if fault == "429":
            body = dict(code=-1003, msg="Too many requests; current limit is 1200 request weight per 1 MINUTE.")
            return web.json_response(body, status=429, headers={"Retry-After": "1"})
        if fault == "garbage":
            return web.Response(text="<html>we will be back</html>")
        if symbol is None:
            return web.json_response(dict(code=-1121, msg="Invalid symbol."), status=400)
        assert q["interval"] == "1m"
        first = max(-(-(int(q["startTime"]) * 1_000_000 - START) // MINUTE) + 1, self.first)
        delay = self.delay.get(symbol, 0)
        last = (now - delay - START) // MINUTE + (
            delay == 0
        )  # the growing one is listed, but for a symbol that is behind
        rows = [
            self.candle(symbol, k) for k in range(first, min(last, first + min(int(q.get("limit", 500)), 1000) - 1) + 1)
        ]
        if fault == "short":
            rows = rows[:-2]
        if fault == "no partial":
            rows = rows[:-1]
        return web.json_response(rows)


class BarServer:
    """The protocol of tradebench.live.websocket over symbols, with random faults from `seed`.

    rates: probability of each fault a minute: twice, swapped, lost, partial, ping, garbage, cut (the stream ends), mute (pings only).
    """

    def __init__(self, clock, symbols, *, seed=0, until=30, **rates):
        self.clock, self.symbols, self.until, self.rates = clock, symbols, until, rates
        self.rng, self.links, self.asked, self.done = np.random.default_rng(seed), 0, 0, {}
        self.mute = False

    def routes(self):
        return [web.get("/bars", self.stream), web.get("/bars/history", self.history)]

    def happens(self, fault) -> bool:
        return self.rng.random() < self.rates.get(fault, 0.0)

    def bar(self, symbol, k, **more):
        prices = dict(zip(("open", "high", "low", "close", "volume"), truth(symbol, k), strict=True))
        return dict(type="bar", symbol=symbol, ts=START + k * MINUTE, **prices, final=True) | more

    async def stream(self, request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        said = json.loads(await ws.receive_str())
        assert said["op"] == "subscribe" and said["freq"] == "1min"
        self.links += 1
        mute, k = self.mute, (self.clock.now() - START) // MINUTE
        try:
            while k < self.until:
                await self.clock.sleep(START + (k + 1) * MINUTE - self.clock.now() + SECOND // 5)
                k += 1
                if self.happens("cut"):
                    break
                mute = mute or self.happens("mute")
                if mute or self.happens("ping"):
                    await ws.send_json(dict(type="ping", ts=START + k * MINUTE))
                if not mute:
                    for message in self.messages(k):
                        await (ws.send_str if isinstance(message, str) else ws.send_json)(message)
            await ws.close()
        except ConnectionError:
            pass
        return ws

    def messages(self, k) -> list:
        out = []
        for s in self.symbols:
            if self.happens("lost"):
                continue
            if self.happens("swapped"):  # not now, but after the next one
                self.done[s] = k
                continue
            out.append(self.bar(s, k))
            if s in self.done:
                out.append(self.bar(s, self.done.pop(s)))
            if self.happens("twice"):
                out.append(self.bar(s, k - int(self.rng.integers(0, 3))))
            if self.happens("partial"):
                out.append(self.bar(s, k + 1, close=-1.0, final=False))
            if self.happens("early"):
                out.append(self.bar(s, k + 1, volume=0.5))
            if self.happens("garbage"):
                out.append(
                    ["{not json", '{"type": "bar", "symbol": "A"}', "[1, 2]", '"bar"'][int(self.rng.integers(4))]
                )
        return out

    async def history(self, request):
        self.asked += 1
        symbol, a, b = request.query["symbol"], *(int(request.query[x]) for x in ("after", "upto"))
        if symbol not in self.symbols:
            return web.Response(status=404, text=f"no symbol {symbol}")
        if self.happens("error"):
            return web.Response(status=503)
        last = min((b - START) // MINUTE, (self.clock.now() - START) // MINUTE)
        found = [self.bar(symbol, k) for k in range((a - START) // MINUTE + 1, last + 1)]
        return web.json_response(
            dict(bars=[[m[f] for f in ("ts", "open", "high", "low", "close", "volume")] for m in found])
        )


async def read(feed, after, n, seconds=15.0) -> list:
    "The first `n` batches after `after` that are not late, and the late ones between"
    out, count, stream = [], 0, feed.stream(after)

    async def reading():
        nonlocal count
        async for b in stream:
            out.append(b)
            count += not b.late
            if count == n:
                return

    try:
        async with asyncio.timeout(seconds):
            await reading()
    except TimeoutError:
        raise AssertionError(f"{count} of {n} batches in {seconds} s; {list(feed.incidents)[-6:]}") from None
    finally:
        await stream.aclose()
    return out


def check(batches, symbols, first, *, holes=()):
    "Each bar once, in order from minute `first` on, equal to the truth; returns the number of late ones"
    whole = [b for b in batches if not b.late]
    stamps = [minute_of(b.ts) for b in whole]
    assert stamps == [k for k in range(first, stamps[-1] + 1) if k not in holes], stamps
    seen = {}
    for b in batches:
        k = minute_of(b.ts)
        for j, s in enumerate(symbols):
            if b.flags[j] & 1:
                assert (s, k) not in seen, f"{s} minute {k} came twice"
                assert tuple(b.raw[j]) == truth(s, k), f"{s} minute {k}: {b.raw[j]} is not {truth(s, k)}"
                seen[s, k] = b.late
            else:
                assert np.isnan(b.raw[j]).all()
    return sum(seen.values()), seen


def kinds(feed) -> set:
    return {i["kind"] for i in feed.incidents}
