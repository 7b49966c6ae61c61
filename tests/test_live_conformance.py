"""The broker conformance suite on every broker we have: the paper venue in process, over the network, with faults of
many kinds at random, as a process of its own, on wall-clock time, and the documented example of a user's adapter."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from unittest import SkipTest

import pytest
from aiohttp import ClientSession

from tradebench.live.brokers import NetBroker, PaperBroker
from tradebench.live.conformance import BrokerConformance, conformance
from tradebench.live.conformance_hooks import case
from tradebench.live.example_broker import ToyBroker, ToyExchange
from tradebench.live.faults import FaultyBroker, Faults
from tradebench.live.types import Ack, BrokerError, State
from tradebench.live.venue import Venue
from tradebench.live.venue_http import VenueServer

SEED = int(os.environ.get("TRADEBENCH_SEED", 20250103))  # of all faults; a failing one is repeated by naming it
ON_REQUESTS = dict(drop_before=0.06, drop_after=0.06, lost_ack=0.04, late=0.05, half=0.05, rate_limit=0.05)
ON_STREAM = dict(duplicate=0.3, disorder=0.3, silent=0.2)


class InProcess(BrokerConformance):
    "Hooks of a venue in this process"

    async def setup(self):
        self.venue = Venue()

    async def restart(self):
        self.venue.restart()

    async def stranger(self, qty, price):
        self.venue.foreign_fill(self.account, self.symbol, qty, price)


class TestPaper(InProcess):
    async def broker(self):
        return PaperBroker(self.venue)


class TestPaperFaulty(InProcess):
    "Faults without a network: thousands of draws in no time"

    async def setup(self):
        await super().setup()
        self.faults = Faults(SEED, split=0.3, cut=0.05, **ON_REQUESTS, **ON_STREAM)

    async def broker(self):
        return FaultyBroker(PaperBroker(self.venue), self.faults)

    async def silence(self):
        self.faults.set(drop_before=0, late=0, half=0, rate_limit=0)
        self.faults.once("lost_ack:submit")

    async def busy(self):
        self.faults.once("rate_limit:submit")

    async def vanish(self):
        self.faults.set(drop_before=1)


class OverNetwork(InProcess):
    "A real socket; the server lives in this process, so the hooks can reach into it"

    chances: dict = {}
    timeout = 0.15

    async def setup(self):
        await super().setup()
        self.faults = Faults(SEED, **self.chances)
        self.server = VenueServer(self.venue, self.faults, heartbeat=0.05)
        self.port = await self.server.start()

    async def teardown(self):
        await self.server.stop()

    async def broker(self):
        return NetBroker(f"http://127.0.0.1:{self.port}", timeout=self.timeout, patience=5)

    async def disconnect(self):
        self.server._break_streams()

    async def silence(self):
        self.faults.clear()
        self.faults.once("lost_ack:submit")

    async def busy(self):
        self.faults.once("rate_limit:submit")

    async def vanish(self):
        await self.server.stop()


class TestNet(OverNetwork):
    pass


class TestNetFaulty(OverNetwork):
    "Everything at once"

    chances = dict(latency=0.002, late_by=0.05, split=0.3, skew=2.0, **ON_REQUESTS, **ON_STREAM)


class TestNetBadStream(OverNetwork):
    "A stream that is as bad as it can be, on a connection that is sound"

    chances = dict(duplicate=0.8, disorder=0.8, silent=0.5, cut=0.1)


class TestNetLimited(OverNetwork):
    "A venue with a limit of requests a second"

    chances = dict(rate=200.0)


class TestNetWall(OverNetwork):
    "A venue that runs on its own time: the agent hears of fills by the stream and the snapshot"

    async def setup(self):
        await super().setup()
        self.venue.caps = self.venue.caps._replace(bar_time=False)

    async def trade(self, broker, price):
        async with (
            ClientSession() as web,
            web.post(
                f"http://127.0.0.1:{self.port}/v1/market",
                json=dict(ts=self.bar(price).ts, bars={self.symbol: [price] * 4 + [1e9]}),
            ) as answer,
        ):
            assert answer.status == 200


class TestProcess(BrokerConformance):
    "The venue as a process of its own, one for the whole class: its history grows"

    @classmethod
    def setup_class(cls):
        line = [sys.executable, "-m", "tradebench.live.venue_server", "--seed", str(SEED), "--heartbeat", "0.05"]
        line += ["--fault", "lost_ack=0.03", "--fault", "duplicate=0.3", "--fault", "silent=0.2"]
        cls.process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        cls.url = json.loads(cls.process.stdout.readline())["venue"]

    @classmethod
    def teardown_class(cls):
        cls.process.terminate()
        assert cls.process.wait(10) == 0
        cls.process.stdout.close()

    async def control(self, name, **body):
        async with ClientSession() as web, web.post(f"{self.url}/v1/{name}", json=body) as answer:
            assert answer.status == 200, await answer.text()

    async def broker(self):
        return NetBroker(self.url, timeout=0.2, patience=5)

    async def disconnect(self):
        await self.control("faults", once=["cut:stream"])
        await self.control(
            "foreign", account="", symbol=self.symbol, qty=1, price=1.0
        )  # something to say, so that it is cut

    async def restart(self):
        await self.control("restart")

    async def silence(self):
        await self.control("faults", once=["lost_ack:submit"])

    async def busy(self):
        await self.control("faults", once=["rate_limit:submit"])

    async def stranger(self, qty, price):
        await self.control("foreign", account=self.account, symbol=self.symbol, qty=qty, price=price)

    @case
    async def test_a_stopped_process_is_unknown_and_goes_on(self):
        "SIGSTOP: the process is there and says nothing; after SIGCONT the order is found, once"
        broker = await self.opened()
        order = self.order(self.size, limit=self.away)
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            (ack,) = await broker.submit([order])
            assert ack.state is State.UNKNOWN and "no answer" in ack.text
            with pytest.raises(BrokerError, match="is it running"):
                await broker.find([order.client_id])
        finally:
            os.kill(self.process.pid, signal.SIGCONT)
        assert (await self.found(broker, order)).state is State.WORKING
        assert len((await self.snap(broker)).orders) == 1


class TestToy(BrokerConformance):
    "The documented example of a user's adapter"

    symbol, price, lot, tick = "BTC/USDT", 60_000.0, 0.001, 0.5

    async def setup(self):
        self.exchange = ToyExchange()

    async def broker(self):
        return ToyBroker(self.exchange)

    async def trade(self, broker, price):
        self.exchange.set_price(self.symbol, price)

    async def disconnect(self):
        self.exchange.hang_up(self.exchange.streams)

    async def restart(self):
        self.exchange.reboot()

    async def silence(self):
        self.exchange.mood = "mute"

    async def vanish(self):
        self.exchange.mood = "down"

    async def busy(self):
        self.exchange.mood = "busy"

    async def stranger(self, qty, price):
        self.exchange.trade("", "", self.symbol, qty, price)


# -- the suite itself: each of these brokers breaks one promise, and the test named with it must see that


class Resends(NetBroker):
    "Repeats an order by itself, under another name"

    async def submit(self, orders):
        acks = await super().submit(orders)
        again = [
            o._replace(client_id=o.client_id[::-1])
            for o, a in zip(orders, acks, strict=True)
            if a.state is State.UNKNOWN
        ]
        return await super().submit(again) if again else acks


class Raises(NetBroker):
    async def submit(self, orders):
        acks = await super().submit(orders)
        if any(a.state is State.UNKNOWN for a in acks):
            raise BrokerError("time-out")
        return acks


class Guesses(NetBroker):
    async def submit(self, orders):
        return [
            a._replace(state=State.REFUSED) if a.state is State.UNKNOWN else a for a in await super().submit(orders)
        ]


class CancelFails(NetBroker):
    async def cancel(self, ids):
        return [a if a.state is State.CANCELLED else Ack(a.client_id, State.REFUSED) for a in await super().cancel(ids)]


class ForgetsClosed(NetBroker):
    async def find(self, ids):
        return [u if u and u.state is State.WORKING else None for u in await super().find(ids)]


class OneEpoch(NetBroker):
    async def snapshot(self, cursor=0):
        s = await super().snapshot(cursor)
        return s._replace(epoch=1, fills=[f._replace(epoch=1) for f in s.fills])


class ForgetsCursor(NetBroker):
    async def snapshot(self, cursor=0):
        return await super().snapshot(0)


class HidesStrangers(NetBroker):
    async def snapshot(self, cursor=0):
        s = await super().snapshot(cursor)
        return s._replace(fills=[f for f in s.fills if f.client_id])


class NoProtection(NetBroker):
    async def submit(self, orders):
        return await super().submit([o._replace(stop=float("nan")) for o in orders])


class NoExpiry(NetBroker):
    async def submit(self, orders):
        return await super().submit([o._replace(valid_until=0) for o in orders])


class MixesAccounts(NetBroker):
    async def open_account(self, spec):
        try:
            return await super().open_account(spec)
        except BrokerError:
            return 0


BROKEN = {
    Resends: "test_no_answer_is_unknown_and_the_order_is_there",
    Raises: "test_no_answer_is_unknown_and_the_order_is_there",
    Guesses: "test_no_answer_is_unknown_and_the_order_is_there",
    CancelFails: "test_cancel_of_a_gone_order_is_a_success",
    ForgetsClosed: "test_find_knows_open_and_closed_orders",
    OneEpoch: "test_the_epoch_rises_when_the_venue_restarts",
    ForgetsCursor: "test_a_cursor_gives_what_came_after_it",
    HidesStrangers: "test_a_stranger_is_seen",
    NoProtection: "test_protection_is_live",
    NoExpiry: "test_valid_until_is_honoured",
    MixesAccounts: "test_accounts_are_kept_apart",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda c: c.__name__)
def test_the_suite_finds_a_broken_promise(broken):
    class Suite(OverNetwork):
        wait = 0.4

        async def broker(self):
            return broken(f"http://127.0.0.1:{self.port}", timeout=0.15)

    with pytest.raises((AssertionError, BrokerError)):
        getattr(Suite(), BROKEN[broken])()


def test_a_missing_hook_is_a_skip_that_names_it():
    with pytest.raises(SkipTest, match="write the hook disconnect"):
        TestPaper().test_nothing_is_lost_by_a_disconnect()


def test_the_suite_runs_without_pytest():
    results = asyncio.run(conformance(TestToy))
    assert len(results) >= 20 and not [r for r in results if r[1] == "FAILED"]
