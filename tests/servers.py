"""Real servers for tests, each on a free port in a folder of its own, gone when the test is over.

`with Postgres() as pg:` or the session fixture `postgres` (import it into the test's module); `pg.database()` is the address of an empty one.
Without the program the test is skipped with a line that names the package; in CI that is a failure.
"""

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import tempfile
import uuid

import pytest


def free_port() -> int:
    "A port of 127.0.0.1 that nobody listens on"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def missing(what: str):
    "Skip, or fail in CI: a suite that skips what it came for looks green"
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {what} (.ci/deps installs it)")


def postgres_bin() -> str | None:
    "Folder of the server's programs, the newest version"
    config = shutil.which("pg_config")
    found = [subprocess.check_output([config, "--bindir"], text=True).strip()] if config else []
    found += sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: int(p.split("/")[4]), reverse=True)
    return next((d for d in found if os.path.exists(f"{d}/initdb")), None)


class Postgres:
    "A PostgreSQL server with fsync on; stop, start and kill it as you like"

    def __init__(self):
        self.bin = postgres_bin() or missing("PostgreSQL: apt-get install postgresql")
        memory = (
            os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 1 << 30
        )  # many small files: spare the disk
        self.root, self.port, self.running = (
            tempfile.mkdtemp(prefix="pg-", dir="/dev/shm" if memory else None),
            free_port(),
            False,
        )
        self.data, self.sockets = f"{self.root}/data", f"{self.root}/s"  # short: a socket's path has 107 characters
        os.makedirs(self.sockets)
        self.prefix = []
        if os.geteuid() == 0:  # the server refuses to be root
            import pwd

            user = pwd.getpwnam("postgres")
            for path in (self.root, self.sockets):
                os.chown(path, user.pw_uid, user.pw_gid)
            self.prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

    def _run(self, *args):
        done = subprocess.run(
            [*self.prefix, *args], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done

    def start(self):
        "Start, and wait until it answers"
        if not os.path.exists(self.data):
            self._run(
                f"{self.bin}/initdb", "-D", self.data, "-U", "app", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"
            )
        options = f"-p {self.port} -k {self.sockets} -c listen_addresses=127.0.0.1 -c max_connections=40 -c shared_buffers=32MB"
        self._run(
            f"{self.bin}/pg_ctl", "-D", self.data, "-l", f"{self.root}/log", "-w", "-t", "60", "-o", options, "start"
        )
        self.running = True
        return self

    def stop(self, mode: str = "fast"):
        "Stop; mode immediate: as in a crash"
        self._run(f"{self.bin}/pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")
        self.running = False

    @property
    def pid(self) -> int:
        "Process id of the server"
        with open(f"{self.data}/postmaster.pid") as f:
            return int(f.readline())

    def dsn(self, database: str = "postgres") -> str:
        "Address of a database"
        return f"postgresql://app@127.0.0.1:{self.port}/{database}"

    def sql(self, text: str, database: str = "postgres") -> str:
        "Run a statement with psql; returns what it prints"
        out = subprocess.run(
            [f"{self.bin}/psql", "-XAtq", "-v", "ON_ERROR_STOP=1", self.dsn(database), "-c", text], text=True, capture_output=True, check=True
        )  # fmt: skip
        return out.stdout.strip()

    def database(self) -> str:
        "Address of an empty database; in truth of a schema of its own, which costs nothing"
        name = f"t{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE SCHEMA {name}")
        return f"{self.dsn()}?search_path={name}"

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        with contextlib.suppress(AssertionError):
            if self.running:
                self.stop("immediate")
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres():
    "A server for all tests of the session"
    with Postgres() as server:
        yield server
