"""Python programs for the tests, each forked from a process that has imported the Agents SDK, which takes seconds.

A process so begun is what it would be otherwise: its own program, arguments, environment, folder, files and signals,
and none of Nexum's modules imported yet. `NEXUM_TEST_FORKS=0` starts each anew, or the one that has it in its own; so
does any system but Linux.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LARGEST_REQUEST = 200_000  # bytes
LOOK_SECONDS = 0.01
READ_AT_START = ("PYTHON", "LC_", "LANG", "MALLOC_", "OPENAI_AGENTS_")  # variables, by the interpreter or the SDK
OPTIONS = {"-X", "dev", "-W", "error"}  # of the interpreter, that a fork can have
SETTING = "NEXUM_TEST_FORKS"

_nurseries: dict[Any, tuple[socket.socket, subprocess.Popen[bytes]]] = {}


class Forked:
    """What `subprocess.Popen` is of a process, of one that was forked."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told  # its process id, then its exit code
        self._pid = 0
        self._code: int | None = None

    @property
    def pid(self) -> int:
        """Waits until it has begun."""
        self._pid = self._pid or int(self._told.recv(100))
        return self._pid

    def poll(self) -> int | None:
        if self._code is None:
            with contextlib.suppress(BlockingIOError):
                self._pid = self._pid or int(self._told.recv(100, socket.MSG_DONTWAIT))
                self._code = int(self._told.recv(100, socket.MSG_DONTWAIT))
                self._told.close()
        return self._code

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(LOOK_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, stdin: int, stdout: int, stderr: int
) -> "Forked | subprocess.Popen[bytes]":
    """Start a program with these files, descriptors: a Python program by a fork, and any other as usual."""
    program = next((n for n, word in enumerate(command) if word.endswith(".py")), 0)
    if (
        sys.platform != "linux"
        or not program
        or command[0] != sys.executable
        or not set(command[1:program]) <= OPTIONS
        or "0" in (env.get(SETTING), os.environ.get(SETTING))
    ):
        return subprocess.Popen(command, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)
    nursery = _nursery(command[1:program], env)
    told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tells, open(os.devnull, "rb") as nothing:
        stdin = nothing.fileno() if stdin == subprocess.DEVNULL else stdin
        request = {"command": command[program:], "env": dict(env), "cwd": str(cwd or Path.cwd())}
        socket.send_fds(nursery, [json.dumps(request).encode()], [tells.fileno(), stdin, stdout, stderr])
    return Forked(told)


def _nursery(options: Sequence[str], env: Mapping[str, str]) -> socket.socket:
    """Of all that are started with these options and this environment, as far as it is read at the start."""
    read = {name: value for name, value in env.items() if name.startswith(READ_AT_START) and name != "PYTHONPATH"}
    key = (*options, *sorted(read.items()))
    if key not in _nurseries:
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LARGEST_REQUEST)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, *options, __file__, str(theirs.fileno())],
                env={name: value for name, value in os.environ.items() if not name.startswith(READ_AT_START)} | read,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        _nurseries[key] = own, process
    return _nurseries[key][0]


@atexit.register
def _close() -> None:
    for own, process in _nurseries.values():
        own.close()
        process.wait()


def _serve(requests: socket.socket) -> "dict[str, Any] | None":
    """Fork for each request until nobody asks any more. In a fork: returns what it is to become."""
    running: dict[int, socket.socket] = {}
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    while True:
        ready, _, _ = select.select([requests.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 1000)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    with running.pop(pid) as tells:
                        _tell(tells, os.waitstatus_to_exitcode(status))
        if requests.fileno() not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 4)
        if not message:
            return None
        if (pid := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for each in (requests, *running.values()):
                each.close()
            for number, descriptor in enumerate(descriptors[1:]):
                os.dup2(descriptor, number)
            for number in (woken, wakes, *descriptors):
                os.close(number)
            request: dict[str, Any] = json.loads(message)
            return request
        running[pid] = socket.socket(fileno=descriptors[0])
        _tell(running[pid], pid)
        for descriptor in descriptors[1:]:
            os.close(descriptor)


def _tell(tells: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        tells.send(str(number).encode())


def _become(request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["command"]
    path = request["env"].get("PYTHONPATH", "")
    sys.path[:1] = [str(Path(sys.argv[0]).resolve().parent), *(path.split(os.pathsep) if path else [])]


if __name__ == "__main__":
    import agents.testing  # noqa: F401

    gc.freeze()  # what is imported is the same in all of them
    wanted = _serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted is not None:
        _become(wanted)
        runpy.run_path(sys.argv[0], run_name="__main__")
