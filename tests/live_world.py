"""A small world for an agent: bars and clock in the test's hand, a venue behind a real socket, a journal on disk.

`Wall`: the paper venue on its own time, with sub-accounts. `Plain`: a broker with one account for everything, which knows
quantities and the word cancel (the example of nbs/live/35 behind HTTP). `Bar`: the paper venue in process, on bar time.
"""

import asyncio
import contextlib
import json
import math
import time

import numpy as np
from aiohttp import ClientError, ClientSession, ClientTimeout, web

from tradebench.live import brokers, feeds
from tradebench.live.agent import Agent
from tradebench.live.brokers import NetBroker, PaperBroker
from tradebench.live.deployment import parse
from tradebench.live.example_broker import Rejected, ToyBroker, ToyExchange, fill_of
from tradebench.live.faults import Faults
from tradebench.live.feeds import FeedBase
from tradebench.live.journal import open_journal
from tradebench.live.supervise import Clocks
from tradebench.live.types import Ack, Batch, BrokerError, State
from tradebench.live.venue import Venue
from tradebench.live.venue_http import VenueServer

MINUTE = 60 * 10**9
FIELDS = ("target", "stop", "take", "trail", "limit", "expire")
nan = math.nan


async def until(what, seconds: float = 20.0, say: str = ""):
    "Wait for `what()` to hold; its value"
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain: {say or what}")
        await asyncio.sleep(0.002)
    return found


class Script(FeedBase):
    "A live feed of what the test pushes; `fail` is raised instead of the next batch"

    extras = FIELDS

    def __init__(self, symbols, calendar="24/7"):
        super().__init__(symbols, "1min", calendar)
        self.name, self.batches, self.fail, self.news, self.readers = "script", [], None, asyncio.Event(), 0

    def push(self, batch):
        self.batches.append(batch)
        self.news.set()

    def broken(self, error):
        self.fail = error
        self.news.set()

    async def history(self, start, end):
        return [b for b in self.batches if start < b.ts <= end]

    async def stream(self, after):
        self.readers += 1
        i = 0
        try:
            while True:
                if self.fail is not None:
                    raise self.fail
                while i < len(self.batches):
                    i += 1
                    if self.batches[i - 1].ts > after or self.batches[i - 1].late:
                        yield self.batches[i - 1]
                self.news.clear()
                if i == len(self.batches) and self.fail is None:
                    await self.news.wait()
        finally:
            self.readers -= 1


class World:
    "An agent in its surroundings; `async with` starts it"

    broker_text, account = "paper:http://there", dict(sizing="rule=quantity,quantity=100")

    def __init__(
        self,
        folder,
        symbols=("AAA",),
        *,
        accounts=("main",),
        journal="",
        strategy="tradebench.strategies.follow:Follow",
        table=None,
        **more,
    ):
        self.path, self.symbols, self.feed = journal or str(folder / "w.sqlite"), symbols, Script(symbols)
        strategies = strategy if isinstance(strategy, dict) else dict.fromkeys(accounts, strategy)
        rows = [
            self.account
            | dict(name=n, strategy=strategies[n], feed="script:x", broker=self.broker_text, unreleased=True)
            | more
            for n in accounts
        ]
        table = dict(duplicate_seconds=0.0, max_age=0) | (
            table or {}
        )  # the bars are of minutes, the test of milliseconds
        self.deployment = parse(dict(id="w", journal=self.path, account=rows, limits=table, grace=1.0))
        self.ts = time.time_ns() // MINUTE * MINUTE
        self.now, self.prices, self.heard, self.task, self.run_for = (
            self.ts,
            dict.fromkeys(symbols, 100.0),
            [],
            None,
            None,
        )

    # -- venues
    async def open_venue(self):
        raise NotImplementedError

    async def close_venue(self):
        pass

    def play(self, bars):
        "The market moves: the venue sees the bar"

    # -- life
    async def __aenter__(self):
        await self.open_venue()
        self.patched = brokers.open_broker, feeds.open_feed
        brokers.open_broker, feeds.open_feed = lambda text, journal=None: self.broker(), lambda text, **kw: self.feed
        self.journal = open_journal(self.path)
        await self.start()
        return self

    def make(self):
        a = Agent(self.deployment, self.journal, clock=lambda: self.now, on_incident=self.heard.append)
        a.clocks = Clocks(a.doubts, wall=time.monotonic, steady=time.monotonic)
        a.poll, a.reconcile_every, a.adjust_wait, a.sample_every, a.snapshot_every = 0.02, 0.25, 0.05, 0.05, 1e9
        if self.tune:
            self.tune(a)
        return a

    tune = None

    async def start(self, wait=True):
        self.agent = self.make()
        self.task = asyncio.create_task(self.agent.run())
        if wait:
            await until(lambda: self.agent.mode in ("trading", "halted") or self.task.done(), 20, "the agent starts")
            assert not self.task.done(), self.task.result()
            await until(lambda: self.feed_is_read(), 5, "the feed is read")

    def feed_is_read(self):
        "Whether the agent waits for bars: what is pushed before it does is history to it"
        return getattr(self.feed, "readers", 1)

    async def stop(self):
        self.agent.stop()
        self.feed.news.set()
        return await asyncio.wait_for(self.task, 20)

    async def __aexit__(self, kind, *_):
        brokers.open_broker, feeds.open_feed = self.patched
        try:
            if not self.task.done():
                if kind is None:
                    await self.stop()
                else:
                    self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=kind is not None)
        finally:
            with contextlib.suppress(Exception):
                await self.journal.close()
            await self.close_venue()

    # -- bars
    def batch(self, prices=None, *, events=(), present=None, late=False, **wishes):
        "The next minute's bar; wishes: target=, stop= ... as a number for all, or {symbol: number}"
        self.ts += MINUTE
        self.prices |= (
            prices if isinstance(prices, dict) else {} if prices is None else dict.fromkeys(self.symbols, prices)
        )
        raw, flags = np.full((len(self.symbols), 5), nan), np.full(len(self.symbols), 4, np.uint8)
        for j, s in enumerate(self.symbols):
            if present is None or s in present:
                p = self.prices[s]
                raw[j], flags[j] = (p, p * 1.0005, p * 0.9995, p, 1e6), 7
        extras = {f: np.full(len(self.symbols), nan) for f in FIELDS}
        extras["expire"][:] = 0.0
        for name, value in wishes.items():
            extras[name][:] = [value.get(s, nan) for s in self.symbols] if isinstance(value, dict) else value
        return Batch(self.ts, raw, flags, tuple(events), extras, late)

    async def bar(self, prices=None, *, settle=True, play=True, delay=1.0, **more):
        "One minute: the market moves, its reports arrive, the bar arrives `delay` seconds after its stamp and is decided"
        batch = self.batch(prices, **more)
        self.now = batch.ts + int(delay * 1e9)
        if play:
            self.play({s: tuple(batch.raw[j].tolist()) for j, s in enumerate(self.symbols) if batch.flags[j] & 1})
        if settle:
            await self.settled()
        before = self.agent.batches
        self.feed.push(batch)
        if settle:
            await until(
                lambda: self.through(batch.ts) and self.agent.batches > before,
                10,
                f"the batch goes through; {self.agent.doubts.open}",
            )
        return batch

    def through(self, ts):
        "Whether the bar of `ts` has gone all the way"
        return not self.agent.halfway and all(s.ts >= ts for s in self.agent.streams)

    async def burst(self, delay, **wish):
        "A bar that was there when the one before it had gone through, decided `delay` seconds after its stamp"
        first, second = self.batch(), self.batch(**wish)
        self.now = second.ts + int(delay * 1e9)
        await asyncio.sleep(0.02)  # the agent waits for the first
        self.feed.push(first), self.feed.push(second)
        await until(lambda: self.through(second.ts))

    async def settled(self):
        "Until the agent's positions are the venue's"
        await until(
            lambda: self.agree(),
            5,
            f"positions agree: {self.held()} here, {self.there()} there; {self.agent.doubts.open}",
        )

    def agree(self):
        ours, theirs = self.held(), self.there()
        return all(abs(ours.get(k, 0.0) - theirs.get(k, 0.0)) < 1e-9 for k in ours.keys() | theirs.keys())

    def held(self) -> dict:
        return {k: q for a in self.agent.accounts.values() for k, q in a.book.positions().items()}

    def there(self) -> dict:
        return {}

    def qty(self, symbol=None) -> float:
        return self.held().get(symbol or self.symbols[0], 0.0)

    # -- what happened
    @property
    def doubts(self) -> dict:
        return self.agent.doubts.open

    def said(self, kind: str) -> list:
        "Incidents of this kind that were told"
        return [i for i in self.heard if i["kind"] == kind or i["kind"].startswith(kind + ":")]

    async def doubt(self, name: str, seconds: float = 20.0):
        return await until(
            lambda: [n for n in self.doubts if n == name or n.startswith(name + ":")],
            seconds,
            f"a doubt {name}; {self.doubts}",
        )

    async def over(self, name: str, seconds: float = 20.0):
        await until(
            lambda: not [n for n in self.doubts if n == name or n.startswith(name + ":")],
            seconds,
            f"{name} ends; {self.doubts}",
        )

    async def orders(self):
        return await self.journal.orders()

    def one(self):
        "The only account"
        return next(iter(self.agent.accounts.values()))


class Wall(World):
    "The paper venue on its own time, behind HTTP and websocket"

    async def open_venue(self):
        self.venue, self.faults = Venue(bar_time=False), Faults(7)
        await self.open_server()

    async def open_server(self, port: int = 0):
        self.server = VenueServer(self.venue, self.faults, heartbeat=0.05)
        self.port = await self.server.start(port=port)

    async def close_venue(self):
        await self.server.stop()

    def broker(self):
        return NetBroker(f"http://127.0.0.1:{self.port}", timeout=0.4)

    def play(self, bars):
        self.venue.market(self.ts, bars)

    def there(self):
        return {s: q for (_, s), q in self.venue.positions().items()}


class Bar(World):
    "The paper venue in this process, on bar time"

    broker_text = "paper"

    async def open_venue(self):
        pass

    def broker(self):
        return PaperBroker()

    async def settled(self):
        pass


# -- a broker with one account for everything, behind HTTP


class PlainServer:
    "ToyExchange behind HTTP; `mood` of the exchange: down, mute, busy; `refuse` makes it say no to every order"

    def __init__(self):
        self.exchange, self.refuse, self.seen, self.slow = ToyExchange(), "", [], 0.0
        app = web.Application()
        app.add_routes([web.post("/call/{name}", self._call), web.get("/trades", self._trades)])
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def start(self, port=0):
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        self.port = self.runner.addresses[0][1]

    async def _call(self, http):
        name, args = http.match_info["name"], await http.json()
        try:
            if name == "place":
                self.seen.append(args)
                if self.refuse:
                    raise Rejected(self.refuse)
            return web.json_response(dict(out=self.exchange.call(name, *args)))
        except Rejected as e:
            return web.json_response(dict(no=str(e)))
        except TimeoutError:
            await asyncio.sleep(5)
        except ConnectionError:
            http.transport.abort()
        return web.Response(status=499)

    async def _trades(self, http):
        out = web.StreamResponse()
        await out.prepare(http)
        queue = self.exchange.subscribe()
        with contextlib.suppress(ConnectionError):
            while (trade := await queue.get()) is not None:
                await out.write(json.dumps(trade).encode() + b"\n")
        return out


class PlainBroker(ToyBroker):
    "ToyBroker over a socket"

    def __init__(self, url):
        self.url, self.streams, self.session = url, [], None

    def _open(self):
        self.session = self.session or ClientSession(timeout=ClientTimeout(total=0.3))
        return self.session

    async def _post(self, name, *args):
        try:
            async with self._open().post(f"{self.url}/call/{name}", json=args) as answer:
                if answer.status != 200:
                    raise ConnectionError("the connection broke")
                said = await answer.json()
        except (ClientError, OSError, TimeoutError) as e:
            raise ConnectionError(str(e) or "no answer") from None
        if "no" in said:
            raise Rejected(said["no"])
        return said["out"]

    async def _ask(self, *request):
        try:
            return await self._post(*request)
        except (ConnectionError, Rejected) as e:
            raise BrokerError(f"plain: {request[0]}: {e}") from None

    async def _send(self, order, *request) -> Ack:
        try:
            return Ack(order.client_id, State.WORKING, (await self._post(*request))["number"])
        except ConnectionError as e:
            return Ack(order.client_id, State.UNKNOWN, "", str(e))
        except Rejected as e:
            if str(e) == "tag in use":
                return (await self.cancel([order.client_id], withdraw=False))[0]
            return Ack(order.client_id, State.REFUSED, "", str(e))

    async def reports(self):
        try:
            async with self._open().get(f"{self.url}/trades", timeout=ClientTimeout(total=None, connect=1)) as answer:
                async for line in answer.content:
                    yield fill_of(json.loads(line))
        except (ClientError, OSError):
            return

    async def close(self):
        if self.session:
            await self.session.close()


class Plain(World):
    "A broker with one account for everything: no sub-accounts, no protection, no expiry"

    broker_text = "tests:plain"

    async def open_venue(self):
        self.server = PlainServer()
        await self.server.start()
        self.exchange = self.server.exchange

    async def close_venue(self):
        self.exchange.hang_up(self.exchange.streams)
        await self.server.runner.cleanup()

    def broker(self):
        return PlainBroker(f"http://127.0.0.1:{self.server.port}")

    def play(self, bars):
        for symbol, (price, *_) in bars.items():
            self.exchange.set_price(symbol, price)

    def there(self):
        foreign = {}
        for known in self.agent.foreign.values():
            for s, q in known.items():
                foreign[s] = foreign.get(s, 0.0) + q
        return {s: q - foreign.get(s, 0.0) for s, q in self.exchange.holdings.items()}
