"""The journal file when things go wrong: power cuts, kills, torn and damaged files, full disks, locks, hung processes."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tradebench.live.journal import open_journal
from tradebench.live.sqlite import SqliteJournal
from tradebench.live.types import Fenced, JournalError

HERE = Path(__file__).parent

# The child commits as fast as it can and prints the number of each commit that was confirmed.
CHILD = """if True:
    import asyncio, os, sys
    from tradebench.live.journal import open_journal
    from tradebench.live.sqlite import SqliteJournal
    from tradebench.live.types import Fill, Order, State

    path, sync, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
    SqliteJournal.SYNC = sync

    async def main():
        j = open_journal(path)
        first = (await j.events(limit=1) or [None])[0]
        n = len(await j.orders())
        while n < most:
            tx = j.tx()
            tx.event("batch", dict(n=n, fill=b"x" * 400 * (n % 5)), "main", n)
            tx.order(Order(f"t{n}", "main", "AAPL", 1.0, n + 1.0), n)
            tx.fill(Fill(1, f"f{n}", "v", f"t{n}", "main", "AAPL", 1.0, 10.0, seq=n), n)
            tx.position("main", "AAPL", n + 1.0, 10.0)
            tx.equity("main", n, n, 100.0, 0.0)
            ack = j.tx()
            ack.order_state(f"t{n - 1}", State.WORKING, venue_id="v", epoch=1)
            j.append(ack)
            await j.commit(tx)
            os.write(1, b"%d\\n" % n)
            n += 1
        await j.close()

    asyncio.run(main())
"""


def child(path, sync="FULL", most=10**9, **env):
    "The child as a process"
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), sync, str(most)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | env
    )  # fmt: skip


class Damaged(AssertionError):
    "What was written together is not there together"


async def examine(path) -> tuple:
    "(number of batches, findings) of a journal after a fault; every table must be the fold of the same transactions"
    async with open_journal(path) as j:
        events = await j.events(kinds="batch")
        n = len(events)
        damaged = Damaged("the tables are not the sum of the events")
        if not ([e.body["n"] for e in events] == list(range(n))):
            raise damaged
        if not ([o.row for o in await j.orders()] == list(range(n))):
            raise damaged
        if not ([f.fill_id for f in await j.fills()] == [f"f{i}" for i in range(n)]):
            raise damaged
        if not ([p.qty for p in await j.positions()] == ([float(n)] if n else [])):
            raise damaged
        if not ([r.t for r in await j.equity_rows("main")] == list(range(n))):
            raise damaged
        return n, [*j.notes, *await j.findings()]


# power cuts


@pytest.fixture(scope="session")
def power(tmp_path_factory):
    "The file layer that forgets what was not flushed"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler or sys.platform != "linux":
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            "needs a C compiler: apt-get install gcc libc6-dev"
        )
    made = tmp_path_factory.mktemp("power") / "power_cut.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", made, HERE / "power_cut.c", "-ldl", "-lpthread"], check=True
    )
    return str(made)


def cut(path, power, sync, after, seed) -> tuple:
    "Run the child until the power goes; returns (confirmed, found in the journal, findings)"
    run = child(path, sync, LD_PRELOAD=power, POWER_FILE=str(path), POWER_AFTER=str(after), POWER_SEED=str(seed))
    out, err = run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL, err.decode()
    confirmed = len(out.split())
    found, findings = asyncio.run(examine(path))
    return confirmed, found, findings


def cuts(folder, power, sync, seeds) -> list:
    "Power cuts at different moments, each in the next life of the same journal; [(confirmed, found)] of each life"
    lives, before = [], 0
    path = folder / f"{sync}.sqlite"
    asyncio.run(open_journal(path).close())
    for seed in seeds:
        confirmed, found, findings = cut(path, power, sync, 20 + seed * 397 % 6000, seed)
        assert not [f for f in findings if f.severity == "fault"], (seed, findings)
        lives.append((confirmed, found - before))
        before = found
    return lives


SEEDS = [1, 4, 9, 15]  # from some commits to several rounds of the log


def test_a_power_cut_loses_nothing_that_was_confirmed(tmp_path, power):
    lives = cuts(tmp_path, power, "FULL", SEEDS)
    assert sum(c for c, _ in lives) > 50, "the power went before anything happened"
    for seed, (confirmed, found) in zip(SEEDS, lives, strict=True):
        assert confirmed <= found <= confirmed + 1, f"seed {seed}: {confirmed} confirmed, {found} there"


@pytest.mark.parametrize("sync", ["OFF", "NORMAL"])
def test_the_power_cut_is_a_real_one(tmp_path, power, sync):
    "Without synchronous=FULL the test above would fail: confirmed commits are gone, or the file is damaged"
    try:
        lives = cuts(tmp_path, power, sync, SEEDS[:2])
    except (JournalError, Damaged):
        return
    assert any(found < confirmed for confirmed, found in lives), lives


@pytest.mark.slow
def test_many_power_cuts(tmp_path, power):
    lives = cuts(tmp_path, power, "FULL", range(1, 121))
    assert all(c <= f <= c + 1 for c, f in lives), lives


def test_a_disk_that_refuses_to_flush(tmp_path, power):
    "The commit fails, the writer goes on when the disk is well again"
    path, refuse = tmp_path / "j", tmp_path / "refuse"
    code = """if True:
        import asyncio, os, sys
        from tradebench.live.journal import open_journal
        from tradebench.live.types import JournalError

        async def main():
            async with open_journal(sys.argv[1]) as j:
                for n in range(6):
                    if n in (2, 4):
                        open(sys.argv[2], "w") if n == 2 else os.unlink(sys.argv[2])
                    tx = j.tx()
                    tx.event("n", dict(n=n))
                    try:
                        await j.commit(tx)
                    except JournalError as e:
                        print(n, e)
                print([e.body["n"] for e in await j.events()])

        asyncio.run(main())
    """
    env = os.environ | dict(LD_PRELOAD=power, POWER_FILE=str(path), POWER_REFUSE=str(refuse))
    run = subprocess.run(
        [sys.executable, "-c", code, path, refuse], env=env, capture_output=True, text=True, timeout=60
    )
    lines = run.stdout.splitlines()
    assert [x[0] for x in lines] == ["2", "3", "["], run.stderr
    assert "reading or writing failed" in lines[0] and "IOERR" in lines[0]
    assert lines[2] == "[0, 1, 4, 5]"


# kills


def test_kill_9_loses_nothing_and_says_so(tmp_path):
    path, confirmed = tmp_path / "j", 0
    for _ in range(4):
        run = child(path)
        for _ in range(40):
            confirmed = max(confirmed, int(run.stdout.readline()) + 1)
        run.kill()
        rest = run.communicate()[0].split()
        confirmed = max([confirmed, *(int(x) + 1 for x in rest)])
        found, findings = asyncio.run(examine(path))
        assert confirmed <= found <= confirmed + 1
        assert [f.kind for f in findings] in (["recovered"], ["torn"]), findings
    found, findings = asyncio.run(examine(path))
    assert findings == []  # closed in order


# torn and damaged files


def commits(path, n, start=0):
    async def main():
        async with open_journal(path) as j:
            for i in range(start, start + n):
                tx = j.tx()
                tx.event("batch", dict(n=i), "main", i)
                await j.commit(tx)

    asyncio.run(main())


def test_a_torn_last_record_is_gone_and_reported(tmp_path):
    from tradebench.live.sqlitewriter import frames

    path = tmp_path / "j"
    run = child(path)
    for _ in range(10):
        run.stdout.readline()
    run.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    for name in ("", "-wal"):  # the disk as it is at this moment
        shutil.copy(f"{path}{name}", f"{tmp_path}/copy{name}")
    run.kill()
    run.communicate()
    log = Path(f"{tmp_path}/copy-wal")
    n = frames(log)
    data = bytearray(log.read_bytes())
    at = 32 + (n - 1) * 4120 + 24
    data[at + 2000 : at + 4096] = bytes(2096)  # the second half of the last page never arrived
    log.write_bytes(data)
    found, findings = asyncio.run(examine(tmp_path / "copy"))
    assert found >= 9 and [f.kind for f in findings] == ["torn"]
    assert "was not finished and is gone; it was never confirmed" in findings[0].text
    assert asyncio.run(examine(tmp_path / "copy"))[1] == []


def test_damage_is_found_where_it_is(tmp_path):
    path = tmp_path / "j"
    commits(path, 600)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = os.urandom(4096)
    path.write_bytes(data)

    async def main():
        async with open_journal(path) as j:
            found = await j.findings()
            assert any(f.severity == "fault" and f.kind == "damage" for f in found), found
            assert all("\n" not in f.text for f in found)

    asyncio.run(main())
    path.write_bytes(b"\0" * 4096 + bytes(data[4096:]))
    with pytest.raises(JournalError, match="NOTADB|damaged"):
        open_journal(path)


# full disks


@contextlib.contextmanager
def small_disk(folder, size="6m"):
    "A file system with so many bytes, as root"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("needs root to mount a small tmpfs (the file size limit is tested below)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_until_it_fails(j):
    "Commit until the disk is full; returns (number of commits that were confirmed, the error)"

    async def main():
        n = 0
        while True:
            tx = j.tx()
            tx.event("batch", dict(n=n, x=b"x" * 20_000), "main", n)
            try:
                await j.commit(tx)
            except JournalError as e:
                return n, e
            n += 1

    return main()


def test_a_full_disk_fails_the_commit_and_heals(tmp_path):
    with small_disk(tmp_path / "disk") as disk:

        async def main():
            async with open_journal(disk / "j") as j:
                ballast = disk / "ballast"
                ballast.write_bytes(b"\0" * (512 << 10))
                n, error = await fill_until_it_fails(j)
                assert "the disk is full: free space" in str(error) and "FULL" in str(error)
                ack = j.tx()
                ack.event("ack", dict(x=b"x" * 20_000))
                j.append(ack)  # is kept
                with pytest.raises(JournalError, match="the disk is full"):
                    tx = j.tx()
                    tx.event("batch", dict(n=n, x=b"x" * 20_000), "main", n)
                    await j.commit(tx)
                assert [e.body["n"] for e in await j.events()] == list(range(n))
                ballast.unlink()
                tx = j.tx()
                tx.event("batch", dict(n=n), "main", n)
                await j.commit(tx)
                assert [e.kind for e in await j.events(after_seq=n)] == ["ack", "batch"]
                assert not [f for f in await j.findings() if f.severity == "fault"]

        asyncio.run(main())


def test_a_file_size_limit_fails_the_commit_and_heals(tmp_path):
    code = """if True:
        import asyncio, resource, signal, sys
        from tradebench.live.journal import open_journal
        from tradebench.live.types import JournalError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        async def main():
            async with open_journal(sys.argv[1]) as j:
                resource.setrlimit(resource.RLIMIT_FSIZE, (5 << 20, resource.RLIM_INFINITY))
                n, seen = 0, None
                while seen is None:
                    tx = j.tx()
                    tx.event("batch", dict(n=n, x=b"x" * 50_000), "main", n)
                    try:
                        await j.commit(tx)
                        n += 1
                    except JournalError as e:
                        seen = str(e)
                assert [e.body["n"] for e in await j.events()] == list(range(n))
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                await j.commit(tx)
                assert [e.body["n"] for e in await j.events()] == list(range(n + 1))
                print(n, seen)

        asyncio.run(main())
    """
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "j"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "file size limit" in run.stdout and int(run.stdout.split()[0]) > 20


# locks


def holder(path):
    "Another process that holds the lock to write"
    code = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN IMMEDIATE'); print('held', flush=True); input()"
    run = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout.readline() == b"held\n"
    return run


def test_a_locked_file_fails_the_commit_and_heals(tmp_path, monkeypatch):
    monkeypatch.setattr(SqliteJournal, "WAIT", 0.3)

    async def main():
        async with open_journal(tmp_path / "j") as j:
            e = await j.acquire("d", "a", 10.0)
            other = holder(tmp_path / "j")
            tx = j.tx()
            tx.event("x", {})
            start = time.perf_counter()
            with pytest.raises(JournalError, match="another process keeps it locked.*BUSY"):
                await j.commit(tx, e)
            assert 0.2 < time.perf_counter() - start < 2.0
            assert j.check("d", e) and len(await j.events()) == 1  # readers do not mind
            other.communicate(b"\n")
            assert await j.commit(tx, e) == 2

    asyncio.run(main())


def test_a_short_lock_is_waited_for(tmp_path):
    async def main():
        async with open_journal(tmp_path / "j") as j:
            other = holder(tmp_path / "j")
            tx = j.tx()
            tx.event("x", {})
            waits = asyncio.ensure_future(j.commit(tx))
            await asyncio.sleep(0.3)
            assert not waits.done()
            other.communicate(b"\n")
            assert await waits == 1

    asyncio.run(main())


def test_a_halt_works_while_a_hung_process_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(SqliteJournal, "WAIT", 0.3)
    path = tmp_path / "j"

    async def main():
        async with open_journal(path) as agent, open_journal(path) as operator:
            e = await agent.acquire("d", "agent", 10.0)
            other = holder(path)
            other.send_signal(signal.SIGSTOP)
            start = time.perf_counter()
            assert await operator.halt("d", "operator", "ann", "it hangs") == e + 1
            assert time.perf_counter() - start < 2.0
            with pytest.raises(Fenced, match=r"halted \(operator\) by ann: it hangs"):
                agent.check("d", e)
            state = await agent.control("d")
            assert state.halted and state.epoch == e + 1
            assert agent.check("d", e, halted=True)  # of another deployment, or to note something
            other.kill()
            other.communicate()
            with pytest.raises(Fenced, match="halted"):  # the next write enters the halt
                await agent.commit(agent.tx(), e)
            assert not agent.latch.there() and (await agent.control("d")).epoch == e + 1
            with pytest.raises(Fenced, match="halted"):
                agent.check("d", e)
            assert [x.body["action"] for x in await agent.events(kinds="control")] == ["acquire", "halt"]

    asyncio.run(main())


def test_halts_from_many_processes_are_all_entered(tmp_path):
    path = tmp_path / "j"
    asyncio.run(open_journal(path).close())
    code = """if True:
        import asyncio, sys
        from tradebench.live.journal import open_journal

        async def main():
            async with open_journal(sys.argv[1]) as j:
                for i in range(5):
                    await j.halt("d", "x", sys.argv[2], str(i))

        asyncio.run(main())
    """
    runs = [subprocess.Popen([sys.executable, "-c", code, path, f"p{i}"]) for i in range(3)]
    assert [r.wait(60) for r in runs] == [0, 0, 0]

    async def main():
        async with open_journal(path) as j:
            entered = [(e.body["who"], e.body["why"]) for e in await j.events(kinds="control")]
            assert sorted(set(entered)) == sorted((f"p{i}", str(k)) for i in range(3) for k in range(5))
            assert (await j.control("d")).epoch == len(entered) and not j.latch.there()

    asyncio.run(main())


# lost


def test_a_file_that_is_gone_or_another_one(tmp_path):
    async def main():
        j = open_journal(tmp_path / "j")
        tx = j.tx()
        tx.event("x", {})
        await j.commit(tx)
        os.rename(tmp_path / "j", tmp_path / "elsewhere")
        with pytest.raises(JournalError, match="the file is gone or another one"):
            await j.commit(tx)
        (tmp_path / "j").write_text("")
        with pytest.raises(JournalError, match="the file is gone or another one"):
            await j.commit(tx)
        os.replace(tmp_path / "elsewhere", tmp_path / "j")
        assert await j.commit(tx) == 2
        await j.close()

    asyncio.run(main())


def test_what_cannot_be_written_at_the_end_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(SqliteJournal, "WAIT", 0.2)

    async def main():
        j = open_journal(tmp_path / "j")
        other = holder(tmp_path / "j")
        tx = j.tx()
        tx.event("x", {})
        j.append(tx)
        with pytest.raises(JournalError, match="1 transactions could not be written"):
            await j.close()
        other.communicate(b"\n")

    asyncio.run(main())
