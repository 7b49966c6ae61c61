"""The journal on a PostgreSQL server when things go wrong: lost connections, commits that nobody answered, hung agents and servers."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
from servers import Postgres, free_port, postgres  # noqa: F401 (postgres is a fixture)

from tradebench.live import postgres as store
from tradebench.live import postgresdrive as pd
from tradebench.live import postgreswriter as pw
from tradebench.live.journal import open_journal
from tradebench.live.types import Fenced, JournalError, Order


@pytest.fixture(scope="module")
def server():
    "A server that tests may stop; they leave it running"
    with Postgres() as made:
        yield made


class Proxy:
    "Forwards to a server; `deaf`: answers do not come back, `mute`: questions do not arrive, `cut()`: connections break"

    def __init__(self, port):
        self.target, self.deaf, self.mute, self.closed, self.tasks = port, False, False, False, set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()

    async def _join(self, reader, writer):
        if self.closed:
            return writer.transport.abort()
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        both = {
            asyncio.create_task(self._pump(reader, far_writer, "mute")),
            asyncio.create_task(self._pump(far_reader, writer, "deaf")),
        }
        self.tasks |= both
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        self.tasks -= both
        for w in (writer, far_writer):
            w.transport.abort()

    async def _pump(self, reader, writer, fault):
        while data := await reader.read(65536):
            if not getattr(self, fault):
                writer.write(data)
                await writer.drain()

    def cut(self):
        for task in list(self.tasks):
            task.cancel()


def through(dsn, proxy):
    return dsn.replace(f":{dsn.rsplit(':', 1)[1].split('/')[0]}/", f":{proxy.port}/")


def event(j, n):
    tx = j.tx()
    tx.event("n", dict(n=n))
    tx.order(Order(f"t{n}", "main", "AAPL", 1.0, 1.0), n)
    return tx


async def numbers(j):
    return [e.body["n"] for e in await j.events(kinds="n")]


def test_a_server_that_restarts_costs_nothing(server):
    address = server.database()

    async def main():
        async with open_journal(address) as j:
            for n in range(3):
                await j.commit(event(j, n))
            for mode in ("fast", "immediate"):
                await asyncio.to_thread(server.stop, mode)
                waits = asyncio.ensure_future(j.commit(event(j, n := n + 1)))
                reads = asyncio.ensure_future(j.events())
                await asyncio.sleep(0.3)
                assert not waits.done() and not reads.done()
                await asyncio.to_thread(server.start)
                await waits
                assert len(await reads) >= 3
            assert await numbers(j) == list(range(n + 1)) and await j.findings() == []

    asyncio.run(main())


def test_a_server_that_stays_away_fails_the_commit_and_is_found_again(server, monkeypatch):
    monkeypatch.setattr(pw, "PATIENCE", 0.5)
    monkeypatch.setattr(store, "PATIENCE", 0.5)
    address = server.database()

    async def main():
        async with open_journal(address) as j:
            e = await j.acquire("d", "a", 10.0)
            await asyncio.to_thread(server.stop)
            with pytest.raises(JournalError, match="the server cannot be reached"):
                await j.commit(event(j, 0), e)
            with pytest.raises(JournalError, match="the server cannot be reached"):
                await j.acheck("d", e)
            j.append(event(j, 1))  # is kept
            await asyncio.sleep(1.0)
            await asyncio.to_thread(server.start)
            await j.commit(event(j, 2), e)
            assert await numbers(j) == [1, 2] and await j.acheck("d", e)

    asyncio.run(main())


@pytest.mark.parametrize("lost", ["deaf", "mute"])
def test_a_commit_that_nobody_answered_counts_once(postgres, lost, monkeypatch):  # noqa: F811
    "The connection breaks when COMMIT was sent: the server has done it (deaf), or has never heard of it (mute)"
    monkeypatch.setattr(pd, "DEADLINE", 1.0)

    async def main():
        async with Proxy(postgres.port) as proxy, open_journal(through(postgres.database(), proxy)) as j:
            await j.commit(event(j, 0))
            real = type(j.writer.db).execute

            async def execute(self, sql, *args, **kw):
                if sql == "COMMIT" and lost:
                    setattr(proxy, lost, True)
                    work = asyncio.ensure_future(real(self, sql, *args, **kw))
                    await asyncio.sleep(0.1)
                    proxy.cut()
                    await asyncio.sleep(0.05)
                    setattr(proxy, lost, False)
                    type(j.writer.db).execute = real
                    return await work
                return await real(self, sql, *args, **kw)

            type(j.writer.db).execute = execute
            try:
                seq = await j.commit(event(j, 1))
            finally:
                type(j.writer.db or j._reader).execute = real
            assert seq == 2
            await j.commit(event(j, 2))
            assert await numbers(j) == [0, 1, 2] and len(await j.orders()) == 3
            assert await j.findings() == []

    asyncio.run(main())


def test_an_outcome_that_stays_unknown_says_so(server, monkeypatch):
    monkeypatch.setattr(pw, "PATIENCE", 0.3)
    monkeypatch.setattr(pd, "DEADLINE", 0.6)
    address = server.database()

    async def main():
        j = open_journal(address)
        await j.commit(event(j, 0))
        real = type(j.writer.db).execute

        async def execute(self, sql, *args, **kw):
            if sql == "COMMIT":
                await asyncio.to_thread(server.stop, "immediate")
            return await real(self, sql, *args, **kw)

        type(j.writer.db).execute = execute
        try:
            with pytest.raises(JournalError, match="whether it counted is not known") as found:
                await j.commit(event(j, 1))
        finally:
            import asyncpg

            asyncpg.Connection.execute = real
        assert found.value.unknown
        await asyncio.to_thread(server.start)
        assert await numbers(j) == [0]
        await j.commit(event(j, 1))
        await j.close()

    asyncio.run(main())


def test_connections_that_break_at_random_lose_and_double_nothing(postgres):  # noqa: F811
    import random

    rng = random.Random(7)

    async def main():
        async with Proxy(postgres.port) as proxy, open_journal(through(postgres.database(), proxy)) as j:
            await j.events()

            async def breaker():
                while True:
                    await asyncio.sleep(rng.uniform(0.0, 0.06))
                    proxy.cut()

            task = asyncio.create_task(breaker())
            for n in range(60):
                await j.commit(event(j, n))
            task.cancel()
            assert await numbers(j) == list(range(60)), "seed 7"
            assert await j.findings() == []

    asyncio.run(main())


def test_a_hung_server_is_a_lost_one(server, monkeypatch):
    monkeypatch.setattr(pd, "DEADLINE", 0.5)
    monkeypatch.setattr(pw, "PATIENCE", 0.5)
    address = server.database()

    async def main():
        async with open_journal(address) as j:
            await j.commit(event(j, 0))
            pids = [
                server.pid,
                *map(int, server.sql("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()").split()),
            ]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                start = time.perf_counter()
                with pytest.raises(JournalError):
                    await j.commit(event(j, 1))
                assert time.perf_counter() - start < 5.0
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            await j.commit(event(j, 2))
            assert (await numbers(j))[-1] == 2

    asyncio.run(main())


def test_an_agent_that_hangs_inside_a_transaction_does_not_stop_a_halt(postgres):  # noqa: F811
    dsn = postgres.database()
    code = """if True:
        import asyncio, sys
        from tradebench.live import postgreswriter as pw
        from tradebench.live.journal import open_journal

        async def main():
            j = open_journal(sys.argv[1])
            e = await j.acquire("d", "agent", 100.0)
            real = pw.drive

            async def drive(db, work):
                out = await real(db, work)
                print("inside", flush=True)
                await asyncio.sleep(60)
                return out

            pw.drive = drive
            tx = j.tx()
            tx.event("n", {})
            await j.commit(tx, e)

        asyncio.run(main())
    """
    agent = subprocess.Popen([sys.executable, "-c", code, dsn], stdout=subprocess.PIPE)
    try:
        assert agent.stdout.readline() == b"inside\n"
        agent.send_signal(signal.SIGSTOP)

        async def main():
            async with open_journal(dsn) as j:
                start = time.perf_counter()
                assert await j.halt("d", "operator", "ann", "it hangs") == 2
                assert time.perf_counter() - start < 4.0
                with pytest.raises(Fenced, match="halted"):
                    await j.acheck("d", 1)
                assert [e.kind for e in await j.events()] == ["control", "control"]

        asyncio.run(main())
    finally:
        agent.kill()
        agent.communicate()


def test_openings_that_cannot_be(postgres, monkeypatch):  # noqa: F811
    monkeypatch.setattr(store, "PATIENCE", 0.2)

    def opened(address, **kw):
        async def main():
            async with open_journal(address, **kw) as j:
                await j.events()

        asyncio.run(main())

    with pytest.raises(JournalError, match="there is no such database: createdb"):
        opened(postgres.dsn("nothere"))
    with pytest.raises(JournalError, match=f"127.0.0.1:{(port := free_port())}.*cannot be reached"):
        opened(f"postgresql://app@127.0.0.1:{port}/x")
    dsn = postgres.database()
    with pytest.raises(JournalError, match="no journal at .*: the schema is empty"):
        opened(dsn, create=False)
    with pytest.raises(JournalError, match="no journal at .*: the schema is empty"):
        opened(dsn, readonly=True)
    postgres.sql(f"CREATE TABLE {dsn.rsplit('=', 1)[1]}.trials(x int)")
    with pytest.raises(JournalError, match="something else: it has the tables trials"):
        opened(dsn)
    with pytest.raises(JournalError) as found:
        opened(f"postgresql://app:secret@127.0.0.1:{port}/x")
    assert "secret" not in str(found.value) and "***" in str(found.value)


def test_deployments_in_schemas_of_one_database(postgres):  # noqa: F811
    async def main():
        async with open_journal(postgres.database()) as a, open_journal(postgres.database()) as b:
            assert await a.acquire("d", "x", 1.0) == 1 and await b.acquire("d", "x", 1.0) == 1
            await a.commit(event(a, 0))
            assert await numbers(a) == [0] and await numbers(b) == []
            assert await a.size() > 100_000

    asyncio.run(main())


def test_readonly_and_the_figure(postgres, capsys):  # noqa: F811
    dsn = postgres.database()

    async def main():
        async with open_journal(dsn) as j, open_journal(dsn, readonly=True) as look:
            e = await j.acquire("d", "a", 10.0)
            spent, bulk = [], []
            for n in range(200):
                tx = event(j, n)
                tx.equity("main", n, n, 1.0, 1.0)
                t = time.perf_counter()
                await j.commit(tx, e)
                spent.append(time.perf_counter() - t)
            tx = j.tx()
            for n in range(5000):
                tx.order(Order(f"u{n}", "main", "AAPL", 1.0, 1.0), n)
                tx.order_state(f"u{n}", 1)
                tx.order_state(f"u{n}", 2, venue_id="v", epoch=1)
            t = time.perf_counter()
            await j.commit(tx, e)
            bulk.append(time.perf_counter() - t)
            assert await look.acheck("d", e) and len(await look.orders()) == 5200
            with pytest.raises(JournalError, match="reading only"):
                await look.commit(look.tx())
            return spent, bulk

    spent, bulk = asyncio.run(main())
    with capsys.disabled():
        p50, p99 = sorted(spent)[100] * 1e3, sorted(spent)[198] * 1e3
        print(
            f"\njournal on PostgreSQL (no disk): commit p50 {p50:.2f} p99 {p99:.2f} ms, 5,000 orders + 10,000 states {bulk[0] * 1e3:.0f} ms"
        )
    assert bulk[0] < 2.0
