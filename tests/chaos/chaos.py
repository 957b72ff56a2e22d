"""Pull plugs at random and at named points, then compare what really happened with what Nexum has recorded.

    python tests/chaos/chaos.py --rounds 20 [--seed 7] [--embedded | --postgres]       or: make chaos ROUNDS=20

A real server, two real workers and real clients, all processes. In every round two clients make a handful of calls
while one fault strikes: SIGKILL at a named point, SIGKILL at any time, SIGSTOP for longer than a lease. Some calls a
client executes itself, as local effects. What died is
started again, and each client until it has finished. Tools write a line to a ledger outside of Nexum for every real
effect, clients write down what they are told. In the end ledger, answers and database must tell the same story.

With --embedded there is no server: whichever process needs the engine has it, and is what is killed and paused above
all. With --postgres three servers have one PostgreSQL, which is killed and paused as well, and whose connections are
ended.

You will see a line for each round, then the figures. Exit code 1 if anything is wrong, with the evidence; the folder
with the database, the ledger, the answers and every log is kept then.
"""

import argparse
import asyncio
import atexit
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar, cast

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import chaos_client
import chaos_parts
import chaos_people
import chaos_runs
import postgres
from chaos_client import Call, Order, make_calls
from chaos_tools import HERE, IN_THE_WORKER, QUESTIONS
from processes import NEXUM, STARTED, NexumDev, Process, environment, eventually, run

from nexum_agents.sessions import Effect
from nexum_runtime import NexumError
from nexum_runtime.engines import host, near
from nexum_runtime.server.store.postgres.connection import Connection
from nexum_runtime.server.store.postgres.place import place_of
from nexum_runtime.wire import beside

TESTS = Path(__file__).parent
URL = "postgres-url"  # a file: of the database, when it is no file

TOOLS: dict[str, Effect] = {
    "read": "read",
    "read_in_a_thread": "read",
    "put": "idempotent",
    "put_in_a_thread": "idempotent",
    "stumble": "idempotent",  # its first attempt fails
    "send": "once",
    "send_in_a_thread": "once",
    "decline": "once",  # it fails, in its own words
    "put_here": "idempotent",
    "send_here": "once",
    "decline_here": "once",
}
ALWAYS = ("read", "send")  # among the calls of every client
RUN_AGAIN = ("read", "read_in_a_thread", "put", "put_in_a_thread")
PAUSES_MS = (0, 0, 20, 100, 400)  # of a tool, a quarter of it before its effect
SLOW_MS = 1_000
CLIENTS, CALLS, SLOTS = 2, 8, 3  # clients of a round, calls of a client, slots of each of the two workers
SERVER_PAUSES_SECONDS = (1.4, 3.4)  # beyond the workers' lease; beyond what the server takes for an absence of its own
SERVERS = 3  # on one PostgreSQL
POINT_SECONDS = 3.0  # that one of several processes gets to pass the point at which it dies
POSTGRES_AWAY_SECONDS = (0.0, 0.5, 2.0, 5.0)
LAST_STRIKE_SECONDS = 0.6
APART = "apart-"  # sessions whose names begin so are checked in their rounds, and not in the end
RECORDS_SECONDS = 0.01  # how long a fork, or a taking back, takes, about
THREADS_END_SECONDS = 0.5  # a thread cannot be cut short: its tool goes on to its effect
FINISH_SECONDS = 60.0  # for a round's clients, once the faults have stopped
OTHERS = CALLS - len(HERE) - len(ALWAYS)
CLIENTS_AT_ONCE = 4  # in the last run of every session
FAULT_WIDTH = 71  # characters of a line
EVIDENCE_LIMIT = 5  # problems that are shown
RESOLVED_EVERY = 3  # of the outcomes that are unknown in the end, a person settles the first, the fourth …

FORK = multiprocessing.get_context("forkserver")  # importing the SDK takes seconds; a client forked from it does not
FORK.set_forkserver_preload(["nexum_agents"])


Fault = Callable[["Chaos"], Awaitable[None]]
Job = Callable[[Order], Coroutine[Any, Any, None]]


class Broken(AssertionError):
    """The harness could not go on: a point was not reached, a process ended by itself, a client did not finish."""


class Client:
    """A client and its runs: one session, the same calls each time, one file of answers."""

    def __init__(
        self, name: str, session: str, calls: list[Call], folder: Path, env: dict[str, str], job: Job = make_calls
    ) -> None:
        self.name, self.session, self.calls, self._job = name, session, calls, job
        self._order = Order(session, calls, folder / f"told-{name}", folder / f"client-{name}.log", env)
        self.told = self._order.told
        self._process: Any = None

    def start(self, dies_when_told: int = 0, crash_at: str = "") -> None:
        env = self._order.environment | {"NEXUM_CRASH_AT": crash_at}
        order = Order(**vars(self._order) | {"dies_when_told": dies_when_told, "environment": env})
        self._process = FORK.Process(target=chaos_client.run, args=(order, self._job), daemon=True)
        self._process.start()

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    @property
    def code(self) -> int:
        return int(self._process.exitcode)

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        if self._process.pid is not None:  # it was started
            self._process.kill()
            self._process.join()

    async def ended(self) -> int:
        await eventually(lambda: not self.alive, f"the end of client {self.name}", FINISH_SECONDS)
        return self.code

    @property
    def output(self) -> str:
        return self._order.log.read_text() if self._order.log.exists() else ""


AProcess = TypeVar("AProcess", Process, Client)


class Chaos:
    """The processes, and the faults that strike them. `seed` decides what is done; when, as far as processes allow."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.deaths = folder / "deaths"  # of the server: when, and which calls were under way
        self.deaths.touch()
        self.database = folder / "nexum.db"
        self.rounds = 0
        self.kills: Counter[str] = Counter()  # "{kind of process} {point}"
        self.pauses: Counter[str] = Counter()
        self.stops = self.forks = self.taken_back = self.questions = self.followed = 0
        (folder / "apart").mkdir()
        self.calls: list[Call] = []
        self.everyone: list[Client] = []
        self.clients: list[Client] = []  # of this round
        self.paused: list[Process | Client] = []
        self.settled: dict[str, tuple[str, str]] = {}  # label → what a person said of it: kind and text

    async def __aenter__(self) -> "Chaos":
        self.server = NexumDev(self.folder)
        await self.start_server()
        self.workers = [self.start_worker() for _ in range(2)]
        for worker in self.workers:
            await worker.says("Connected")
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in (*self.servers, self.server, *self.workers):
            process.kill()
        for client in self.clients:
            client.kill()

    @property
    def faults(self) -> dict[str, Any]:
        return FAULTS

    # Processes

    def environment(self, **changes: str) -> dict[str, str]:
        return environment(NEXUM_EXIT_WITH_PARENT="1", OPENAI_AGENTS_DISABLE_TRACING="1", **changes)

    async def start_server(self, crash_at: str = "") -> None:
        """Start the server; one that runs is killed."""
        self.server.kill()
        env = self.environment(NEXUM_CRASH_AT=crash_at)
        options = self.server_options()
        self.server = NexumDev(self.folder, *options, port=self.server.port, database=self.database, env=env)
        self.server.start()
        await self.server.ready()

    def server_options(self) -> list[str]:
        return []

    def start_worker(self, crash_at: str = "", script: str = "chaos_worker.py") -> Process:
        env = self.environment(NEXUM_ADDRESS=self.address, LEDGER=str(self.ledger), NEXUM_CRASH_AT=crash_at)
        command: list[str | Path] = [sys.executable, TESTS / script, str(SLOTS)]
        worker = Process(command, self.folder / f"worker-{len(STARTED)}.log", env=env)
        worker.start()
        return worker

    def enter_clients(
        self,
        pauses_ms: tuple[int, ...] = PAUSES_MS,
        dies_when_told: int = 0,
        crash_at: str = "",
        only: Collection[str] = TOOLS,
    ) -> None:
        """Start this round's clients, now and then both for one session and its calls, of `only` these tools.

        The first of them dies when it is told its answer of that number, or at that point.
        """
        env = self.environment(NEXUM_ADDRESS=self.address, LEDGER=str(self.ledger))
        twins = self.rng.random() < 1 / 3 and not crash_at  # what one of them executes the other does not
        for number in range(CLIENTS):
            name = f"r{self.rounds}-{number}"
            if twins and self.clients:
                session, calls = self.clients[0].session, self.clients[0].calls
            else:
                others = self.rng.sample([tool for tool in IN_THE_WORKER if tool not in ALWAYS], OTHERS)
                tools = [tool for tool in self.rng.sample([*HERE, *ALWAYS, *others], CALLS) if tool in only]
                pauses = self.rng.choices(pauses_ms, k=len(tools))
                session = name
                calls = [
                    Call(f"{name}-{number}", tool, TOOLS[tool], pause_ms)
                    for number, (tool, pause_ms) in enumerate(zip(tools, pauses, strict=True))
                ]
                self.calls += calls
            self.clients.append(Client(name, session, calls, self.folder, env))
        self.everyone += self.clients
        for client in self.clients:
            if client is self.clients[0]:
                client.start(dies_when_told, crash_at)
            else:
                client.start()

    def alive(self) -> list[Process | Client]:
        everyone: list[Process | Client] = [*self.servers, *self.workers, *self.clients]
        return [one for one in everyone if one.alive]

    def kill(self, victim: Process | Client, point: str) -> None:
        victim.kill()
        self.note_death(victim, point)

    def note_death(self, victim: Process | Client, point: str) -> None:
        self.kills[f"{self.kind(victim)} {point}"] += 1
        if self.has_engine(victim):
            labels = sorted({call.label for client in self.clients for call in client.calls})
            with self.deaths.open("a") as lines:
                lines.write(json.dumps({"at_ms": time.time_ns() // 1_000_000, "labels": labels}) + "\n")

    @property
    def servers(self) -> list[NexumDev]:
        return [self.server]

    @property
    def address(self) -> str:
        return self.server.address

    def has_engine(self, process: Process | Client) -> bool:
        return process is self.server

    def pause(self, victim: Process | Client) -> None:
        victim.send(signal.SIGSTOP)
        self.paused.append(victim)
        self.pauses[self.kind(victim)] += 1

    def kind(self, process: Process | Client) -> str:
        if isinstance(process, Client):
            return "client"
        return "server" if isinstance(process, NexumDev) else "worker"

    async def dies_at(self, point: str, victim: Process | Client) -> None:
        """Wait for a death that nobody but the point itself can cause."""
        code = await victim.ended()
        if code != -signal.SIGKILL:
            raise Broken(f"The {self.kind(victim)} did not die at {point}: it ended with {code}.\n{victim.output}")
        self.note_death(victim, point)

    # Rounds

    async def round(self, fault: str) -> None:
        """Let one fault strike, bring everything back, and let every client finish; then each runs once more."""
        self.rounds += 1
        self.clients = []
        await self.faults[fault](self)
        await self.heal()
        await self.finish()
        for client in self.clients:
            client.start()
        await self.finish()

    async def heal(self) -> None:
        """Bring back what is dead or paused, but for the clients."""
        for process in self.paused:
            process.send(signal.SIGCONT)  # which a dead one ignores
        self.paused = []
        if not self.server.alive:
            await self.start_server()
        for slot, worker in enumerate(self.workers):
            if not worker.alive:
                self.workers[slot] = self.start_worker()

    async def finish(self) -> None:
        """Start each client again that was killed, or began while the server was away, until all have finished."""

        def finished() -> bool:
            for client in self.clients:
                if not client.alive and client.code in (-signal.SIGKILL, chaos_client.AWAY):
                    client.start()
                elif not client.alive and client.code != 0:
                    raise Broken(f"Client {client.name} ended with {client.code}:\n{client.output}")
            return not any(client.alive for client in self.clients)

        await eventually(finished, f"the end of the clients of round {self.rounds}", FINISH_SECONDS)

    async def server_dies_at(self, point: str, passes: int) -> None:
        await self.start_server(f"{point}:{self.rng.randint(1, 1 + passes)}")
        self.enter_clients()
        await self.dies_at(point, self.server)

    async def server_dies_with_an_effect_begun(self) -> None:
        """Workers have to wait for it: what waits for them begins when it is committed."""
        await self.start_server("begun-uncommitted")

        async def both_wait() -> bool:
            async with near(self.address) as client:
                return [each["waits_for_task"] for each in (await client.inspect())["workers"]] == [True, True]

        await eventually(both_wait, "the workers")
        self.enter_clients(only=IN_THE_WORKER)
        await self.dies_at("begun-uncommitted", self.server)

    async def server_dies_with_a_local_effect_begun(self) -> None:
        await self.start_server("begun-uncommitted")
        self.enter_clients(only=HERE)
        await self.dies_at("begun-uncommitted", self.server)

    async def worker_dies_at(self, point: str) -> None:
        slot = self.rng.randrange(2)
        self.workers[slot].terminate()
        await self.workers[slot].ended()
        victim = self.workers[slot] = self.start_worker(point)
        await victim.says("Connected")
        self.enter_clients()
        await self.dies_at(point, victim)

    async def client_dies_as_its_calls_are_started(self) -> None:
        """Killed as soon as the server knows one of them."""
        self.enter_clients(pauses_ms=(300,))
        victim = self.rng.choice(self.clients)
        async with near(self.address) as client:
            await eventually(lambda: client.executions(f"{victim.session}/"))
        victim.kill()
        await self.dies_at("calls started", victim)

    async def client_dies_when_told(self) -> None:
        """Killed by itself between an answer and its writing it down."""
        self.enter_clients(dies_when_told=self.rng.randint(1, 3))
        await self.dies_at("answer come", self.clients[0])

    async def client_dies_at(self, point: str) -> None:
        self.enter_clients(crash_at=point)
        await self.dies_at(point, self.clients[0])

    async def worker_is_paused(self) -> None:
        """Until its leases have expired: its word comes late, and is taken."""
        await self.pause_in_the_middle_of(RUN_AGAIN, self.workers)

    async def client_is_paused(self) -> None:
        """Until its leases have expired, with another client there, or without."""
        await self.pause_in_the_middle_of(tuple(HERE), self.clients)

    async def worker_is_paused_for_long(self) -> None:
        """Until others have done what it had begun: its word comes second, and is not taken."""
        victim = await self.pause_in_the_middle_of(RUN_AGAIN, self.workers)
        await self.finish()
        await self.heal()
        await victim.says("was completed already; this result was not recorded|was stopped by the server")

    async def pause_in_the_middle_of(self, tools: tuple[str, ...], among: list[AProcess]) -> AProcess:
        """Pause one that is in the middle of such a tool, until its lease has expired."""
        self.enter_clients(pauses_ms=(SLOW_MS,))
        labels = {call.label for client in self.clients for call in client.calls if call.tool in tools}

        def in_the_middle() -> AProcess | None:
            written, _, _ = self.ledger.read_text().rpartition("\n")  # the last line may be just on its way
            effects = [json.loads(line) for line in written.splitlines()]
            begun = {effect["pid"] for effect in effects if effect["label"] in labels}
            return next((one for one in among if one.pid in begun), None)

        victim: AProcess = await eventually(in_the_middle, "the middle of a tool")
        self.pause(victim)
        name = f"-{victim.pid}-"

        async def silent() -> bool:
            async with near(self.address) as client:
                histories = [h for one in self.clients async for h in client.history(f"{one.session}/")]
            of_tool = [h for h in histories if h["input"]["tool_name"] in tools]
            events = [event for history in of_tool for event in history["events"]]
            return any(event["type"] == "LeaseExpired" and name in event["worker"] for event in events)

        await eventually(silent, f"the end of the leases of {name}")
        return victim

    async def server_is_paused(self) -> None:
        self.enter_clients()
        await asyncio.sleep(self.rng.uniform(0, LAST_STRIKE_SECONDS))
        self.pause(self.server)
        await asyncio.sleep(self.rng.choice(SERVER_PAUSES_SECONDS))

    async def session_is_stopped(self, *, dies: bool = False) -> None:
        """Nothing of it happens from then on, but for what could not be cut short, until it goes on."""
        self.enter_clients(pauses_ms=(400, SLOW_MS))
        session = self.clients[0].session
        its_own = [client for client in self.clients if client.session == session]
        async with near(self.address) as person:

            async def runs() -> bool:
                return any(each["running"] for each in await person.sessions(session, 1))

            await eventually(runs, f"the beginning of {session}")
            await person.stop_session(session, reason="chaos")
            self.stops += 1
            if dies:
                self.kill(self.server, "session stopped")
                await self.start_server()
            await self._have_ended(its_own)

            async def rests() -> bool:
                (found,) = await person.sessions(session, 1)
                return not found["running"]

            await eventually(rests, f"the end of what runs of {session}")
            await asyncio.sleep(THREADS_END_SECONDS)
            before = self._effects_of(its_own)
            for client in its_own:
                client.start()
            await self._have_ended(its_own)
            if self._effects_of(its_own) != before:
                raise Broken(f"Something of {session} happened after it was stopped.")
            await person.go_session(session)
        for client in its_own:
            if client.code == chaos_client.STOPPED:
                client.start()

    def apart(self, name: str, session: str, calls: list[Call], job: Job = make_calls) -> Client:
        """A client that is not checked in the end."""
        env = self.environment(NEXUM_ADDRESS=self.address, LEDGER=str(self.ledger))
        return Client(name, session, calls, self.folder / "apart", env, job)

    async def session_is_forked(self) -> None:
        """It is whole, or not there when the server dies of it, and a run of it executes nothing."""
        self.enter_clients()
        await self.finish()
        client = self.clients[0]
        fork = f"{APART}{client.name}"
        async with near(self.address) as person:
            forking = asyncio.create_task(person.fork_session(client.session, fork))
            await asyncio.sleep(self.rng.uniform(0, RECORDS_SECONDS))
            self.kill(self.server, "fork")
            await asyncio.wait([forking])
            await self.start_server()
            await person.check(FINISH_SECONDS)
            if await person.session(fork) is None:
                await person.fork_session(client.session, fork)
            was, is_now = await person.journal(f"{client.session}/"), await person.journal(f"{fork}/")
        if {f"{fork}/{id.partition('/')[2]}": outputs for id, outputs in was.items()} != is_now:
            raise Broken(f"The fork of {client.session} is not what that is.")
        self.forks += 1
        before = self._effects_of([client])
        copy = self.apart(f"{client.name}-fork", fork, client.calls)
        copy.start()
        if await copy.ended() != 0 or self._effects_of([client]) != before:
            raise Broken(f"A run of the fork of {client.session} ended with {copy.code}:\n{copy.output}")

    async def session_is_taken_back(self) -> None:
        """From some call on, while the server dies of it. It is run again from there, while something else dies."""
        self.enter_clients()
        session = f"{APART}r{self.rounds}"
        tools = self.rng.sample([*HERE, *ALWAYS, "put", "decline"], len(HERE) + len(ALWAYS) + 2)
        calls = [Call(f"{session}-{n}", tool, TOOLS[tool], self.rng.choice(PAUSES_MS)) for n, tool in enumerate(tools)]
        client = self.apart(session, session, calls)
        client.start()
        if await client.ended() != 0:
            raise Broken(f"Client {client.name} ended with {client.code}:\n{client.output}")
        async with near(self.address) as person:
            before = await chaos_people.histories_of(person, session)
            cut = self.rng.randrange(len(before))

            def taking_back() -> Awaitable[Any]:
                return person.forget_session(session, turn=before[cut]["execution_id"], even_once=True)

            forgetting = asyncio.ensure_future(taking_back())
            await asyncio.sleep(self.rng.uniform(0, RECORDS_SECONDS))
            self.kill(self.server, "forget")
            await asyncio.wait([forgetting])
            await self.start_server()
            await person.check(FINISH_SECONDS)
            if await person.session(f"{session}~1") is None:
                if await chaos_people.histories_of(person, session) != before:
                    raise Broken(f"{session} was taken back in part.")
                await taking_back()
            kept, record = [await chaos_people.histories_of(person, each) for each in (session, f"{session}~1")]
            self.expect_none(chaos_people.check_taken_back(before, cut, kept, record))
            self.taken_back += 1
            effects = len(self.ledger.read_text().splitlines())
            self.clients.append(client)
            client.start()
            await asyncio.sleep(self.rng.uniform(0, LAST_STRIKE_SECONDS))
            victims: list[Process | Client] = [self.server, *self.workers, client]
            self.kill(self.rng.choice(victims), "taken back")
            await self.heal()
            await self.finish()
            after, record_then = [await chaos_people.histories_of(person, each) for each in (session, f"{session}~1")]
            if record_then != record:
                raise Broken(f"What was taken back reads {record_then}, and was {record}")
            nonces = {json.loads(line)["nonce"] for line in self.ledger.read_text().splitlines()[effects:]}
            answers = chaos_people.told([client.told])
            self.expect_none(chaos_people.check_done_anew(before, cut, after, nonces, answers))

    async def questions_are_asked(self) -> None:
        """By two processes of one session. They are answered, or not, while the server and these are killed."""
        self.enter_clients()
        session = f"{APART}r{self.rounds}"
        calls = [Call(f"{session}-{kind}-{n}", kind, "idempotent", 0) for kind in QUESTIONS for n in range(2)]
        askers = [self.apart(f"{session}-{n}", session, self.rng.sample(calls, len(calls))) for n in range(CLIENTS)]
        self.clients += askers
        for asker in askers:
            asker.start()
        answering = asyncio.create_task(chaos_people.answer_all(self.address, session, calls))
        try:
            for _ in range(self.rng.randint(2, 4)):
                await asyncio.sleep(self.rng.uniform(0, LAST_STRIKE_SECONDS))
                victims: list[Process | Client] = [self.server, self.server, *askers]
                if alive := [each for each in victims if each.alive]:
                    self.kill(self.rng.choice(alive), "questions asked")
                await self.heal()
            _, acknowledged = await asyncio.gather(self.finish(), answering)
        finally:
            answering.cancel()
        for asker in askers:  # from the store
            asker.start()
        await self.finish()
        async with near(self.address) as person:
            histories = await chaos_people.histories_of(person, session)
        answers = chaos_people.told([asker.told for asker in askers])
        self.expect_none(chaos_people.check_questions(calls, histories, answers, acknowledged))
        self.questions += len(calls)

    async def parts_run(self) -> None:
        """A MAP in children in each other, while the server dies at a point of theirs."""
        point = self.rng.choice(chaos_parts.POINTS)
        await self.start_server(point)
        self.enter_clients()
        running = asyncio.create_task(chaos_parts.run_parts(self.address, f"{APART}r{self.rounds}/parts"))
        try:
            await self.dies_at(point, self.server)
            await self.heal()
            chaos_parts.check_parts(await running)
        finally:
            running.cancel()

    async def run_is_followed(self) -> None:
        """A run of workers: it needs nobody, and who follows it hears all of it, whichever of them dies."""
        self.enter_clients()
        session = f"{APART}r{self.rounds}"
        workers = [self.start_worker(script="chaos_runs.py") for _ in range(2)]
        followers = [self.apart(f"{session}-{n}", session, [], chaos_runs.follow_run) for n in range(CLIENTS)]
        person = self.apart(f"{session}-person", session, [], chaos_runs.say_yes)
        for client in (*followers, person):
            client.start()
        self.clients += followers
        before = self.kills.total()
        try:
            for _ in range(self.rng.randint(3, 6)):
                await asyncio.sleep(self.rng.uniform(0, 2 * LAST_STRIKE_SECONDS))
                victims: list[Process | Client] = [*self.servers, *workers, *workers, *followers, person]
                if alive := [each for each in victims if each.alive]:
                    self.kill(self.rng.choice(alive), "run followed")
                await self.heal()
                workers = [each if each.alive else self.start_worker(script="chaos_runs.py") for each in workers]
                if not person.alive:
                    person.start()
            await self.finish()
            async with near(self.address) as looking:
                histories = await chaos_people.histories_of(looking, session)
        finally:
            person.kill()
            for worker in workers:
                worker.kill()
        for follower in followers:
            self.expect_none(chaos_runs.check_followed(histories, follower.told))
        kills = self.kills.total() - before
        self.expect_none(chaos_runs.check_effects(histories, session, kills, self.ledger))
        self.followed += 1

    def expect_none(self, problems: Iterator[str]) -> None:
        if found := list(problems):
            raise Broken("\n".join(found[:EVIDENCE_LIMIT]))

    async def _have_ended(self, clients: list[Client]) -> None:
        for client in clients:
            if await client.ended() not in (0, chaos_client.STOPPED):
                raise Broken(f"Client {client.name} ended with {client.code}:\n{client.output}")

    def _effects_of(self, clients: list[Client]) -> int:
        labels = {call.label for client in clients for call in client.calls}
        return sum(json.loads(line)["label"] in labels for line in self.ledger.read_text().splitlines())

    async def all_die(self) -> None:
        self.enter_clients()
        await asyncio.sleep(self.rng.uniform(0.05, LAST_STRIKE_SECONDS))
        for process in self.alive():
            self.kill(process, "all at once")

    async def any_die(self) -> None:
        """Some are killed, some paused, now and then what is down comes back in between."""
        self.enter_clients()
        for _ in range(self.rng.randint(2, 5)):
            await asyncio.sleep(self.rng.uniform(0, LAST_STRIKE_SECONDS))
            if not (alive := self.alive()):
                break
            victim = self.rng.choice(alive)
            if self.rng.random() < 1 / 4:
                self.pause(victim)
            else:
                self.kill(victim, "at any time")
            if self.rng.random() < 1 / 2:
                await self.heal()

    # The end

    async def settle(self) -> None:
        """Stop the workers, take a person's word on some unknown outcomes, and run every session once more.

        With no worker there, every answer of that run comes from the store.
        """
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            await worker.ended()
        unknown = [story for story in read_stories(self.folder, self.calls) if story.error_code == "OUTCOME_UNKNOWN"]
        for number, story in enumerate(unknown[::RESOLVED_EVERY]):
            kind = "result" if number % 2 == 0 else "failed"
            word = f"a person looked at {story.execution_id}"
            command = (NEXUM, "resolve", story.execution_id, f"--{kind}", word, "--address", self.address)
            resolved = await run(*command, env=self.environment())
            if resolved.code != 0:
                raise Broken(f"nexum resolve {story.execution_id} failed: {resolved.stderr}")
            self.settled[story.label] = (kind, word)
        for first in range(0, len(self.everyone), CLIENTS_AT_ONCE):
            self.clients = self.everyone[first : first + CLIENTS_AT_ONCE]
            for client in self.clients:
                client.start()
            await self.finish()
        self.server.terminate()
        await self.server.ended()


class NoServer:
    """In the place of a server, where there is none."""

    alive, address, port = True, "", 0

    def kill(self) -> None:
        pass

    def terminate(self) -> None:
        pass

    async def ended(self) -> int:
        return 0


class Embedded(Chaos):
    """… without a server."""

    @property
    def faults(self) -> dict[str, Any]:
        return EMBEDDED_FAULTS

    async def start_server(self, crash_at: str = "") -> None:
        os.environ["NEXUM_DATABASE_URL"] = f"sqlite:///{self.database}"
        self.server = cast(NexumDev, NoServer())

    def environment(self, **changes: str) -> dict[str, str]:
        return super().environment(**{"NEXUM_ADDRESS": ""} | changes)

    @property
    def servers(self) -> list[NexumDev]:
        return []

    def has_engine(self, process: Process | Client) -> bool:
        return True  # it may have had it

    async def owner(self) -> Process | Client | None:
        """Who has the engine at the moment, of those that run."""
        owner = beside.owner_of(self.database)
        return next((one for one in self.alive() if owner is not None and str(one.pid) == owner.pid), None)

    async def owner_dies(self) -> None:
        self.enter_clients()
        for _ in range(self.rng.randint(1, 3)):
            await asyncio.sleep(self.rng.uniform(0.05, LAST_STRIKE_SECONDS))
            if (owner := await self.owner()) is not None:
                self.kill(owner, "as it had the engine")

    async def parts_run(self) -> None:
        """A MAP in children in each other, while whoever has the engine dies; it may also be had by this process."""
        running = asyncio.create_task(chaos_parts.run_parts("", f"{APART}r{self.rounds}/parts"))
        try:
            await self.owner_dies()
            await self.heal()
            chaos_parts.check_parts(await running)
        finally:
            running.cancel()
            await asyncio.to_thread(host.close_all)

    async def run_is_followed(self) -> None:
        try:
            await super().run_is_followed()
        finally:
            await asyncio.to_thread(host.close_all)

    async def owner_is_paused(self) -> None:
        self.enter_clients()
        await asyncio.sleep(self.rng.uniform(0.05, LAST_STRIKE_SECONDS))
        if (owner := await self.owner()) is not None:
            self.pause(owner)
            await asyncio.sleep(self.rng.choice(SERVER_PAUSES_SECONDS))
            if self.rng.random() < 1 / 2:
                self.kill(owner, "when it was paused")

    async def owner_dies_at(self, point: str) -> None:
        """A client that has the engine, as no worker runs; if the other client has it, neither of them dies."""
        for worker in self.workers:
            self.kill(worker, "to leave the engine")
        self.enter_clients(crash_at=f"{point}:{self.rng.randint(1, 3)}", only=HERE)
        if await self.clients[0].ended() == -signal.SIGKILL:
            self.note_death(self.clients[0], point)

    async def commands_come_and_go(self) -> None:
        """Those that read, and those that have the engine for a moment, some of them killed."""
        self.enter_clients()
        log = self.folder / f"command-{self.rounds}.log"
        for _ in range(self.rng.randint(2, 4)):
            command = self.rng.choice((["ps"], ["sessions"], ["doctor"], ["prune", "--older-than", "1d"]))
            process = Process([NEXUM, *command], log, env=self.environment())
            process.start()
            if (owner := await self.owner()) is not None and self.rng.random() < 1 / 2:
                self.kill(owner, "beside a command")
            await asyncio.sleep(self.rng.uniform(0, LAST_STRIKE_SECONDS))
            if self.rng.random() < 1 / 2:
                process.kill()
            elif await process.ended() not in (0, 1):  # the doctor finds something wrong
                raise Broken(f"nexum {' '.join(command)} failed: {process.output}")

    async def server_comes_and_goes(self) -> None:
        """A server that starts is left the database by whoever has it; it dies, and one of them takes it over."""
        self.enter_clients()
        await asyncio.sleep(self.rng.uniform(0.05, LAST_STRIKE_SECONDS))
        env = super().environment()
        server = NexumDev(self.folder, database=self.database, env=env)
        server.start()
        await server.ready()
        await asyncio.sleep(self.rng.uniform(0, LAST_STRIKE_SECONDS))
        self.kill(server, "beside those that could have the engine")


class OnPostgres(Chaos):
    """… with a PostgreSQL of its own, and several servers on it."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(folder, seed)
        self.others: list[NexumDev] = []
        self.postgres = postgres.Postgres(syncs=True)
        atexit.register(self.postgres.remove)  # the checks read it in the end
        (folder / URL).write_text(self.postgres.url)

    @property
    def faults(self) -> dict[str, Any]:
        return POSTGRES_FAULTS

    def server_options(self) -> list[str]:
        return ["--db", self.postgres.url]

    @property
    def servers(self) -> list[NexumDev]:
        return [self.server, *self.others]

    @property
    def address(self) -> str:
        """Each process begins with another one."""
        return ",".join(server.address for server in self.rng.sample(self.servers, len(self.servers)))

    def has_engine(self, process: Process | Client) -> bool:
        return isinstance(process, NexumDev)

    async def start_server(self, crash_at: str = "") -> None:
        await super().start_server(crash_at)
        while len(self.servers) < SERVERS:
            self.others.append(NexumDev(self.folder, *self.server_options(), env=self.environment()))
        for server in self.others:
            if not server.alive:
                server.start()
                await server.ready()

    async def round(self, fault: str) -> None:
        """What is to strike the server strikes any."""
        at = self.rng.randrange(len(self.others))
        self.server, self.others[at] = self.others[at], self.server
        await super().round(fault)

    async def heal(self) -> None:
        await super().heal()
        if not all(server.alive for server in self.servers):
            await self.start_server()

    async def dies_at(self, point: str, victim: Process | Client) -> None:
        """… or at any time, when all that passes this point is at others."""
        until = time.monotonic() + POINT_SECONDS
        while victim.alive and time.monotonic() < until:
            await asyncio.sleep(LAST_STRIKE_SECONDS / 10)
        if victim.alive:
            self.kill(victim, "at any time")
        else:
            await super().dies_at(point, victim)

    async def servers_are_upgraded(self) -> None:
        """Each is stopped in order and started anew, one after the other."""
        self.enter_clients()
        for server in list(self.servers):
            server.terminate()
            await server.ended()
            server.start()
            await server.ready()

    async def postgres_is_killed(self) -> None:
        self.enter_clients()
        for _ in range(self.rng.randint(1, 2)):
            await asyncio.sleep(self.rng.uniform(0.05, LAST_STRIKE_SECONDS))
            await asyncio.to_thread(self.postgres.stop, signal.SIGKILL)
            self.kills["postgres at any time"] += 1
            await asyncio.sleep(self.rng.choice(POSTGRES_AWAY_SECONDS))
            await asyncio.to_thread(self.postgres.start)

    async def postgres_is_paused(self) -> None:
        self.enter_clients()
        await asyncio.sleep(self.rng.uniform(0, LAST_STRIKE_SECONDS))
        self.postgres.pause()
        self.pauses["postgres"] += 1
        await asyncio.sleep(self.rng.choice(SERVER_PAUSES_SECONDS))
        self.postgres.go_on()

    async def connections_are_ended(self) -> None:
        self.enter_clients()
        for _ in range(self.rng.randint(3, 10)):
            await asyncio.sleep(self.rng.uniform(0.01, LAST_STRIKE_SECONDS / 3))
            await asyncio.to_thread(self.postgres.end_connections)
            self.kills["postgres connections"] += 1


def server_dies_at(point: str, passes: int = 2) -> Fault:
    """… after so many passes at most."""
    return lambda chaos: chaos.server_dies_at(point, passes)


def worker_dies_at(point: str) -> Fault:
    return lambda chaos: chaos.worker_dies_at(point)


def client_dies_at(point: str) -> Fault:
    return lambda chaos: chaos.client_dies_at(point)


FAULTS: dict[str, Fault] = {
    "the server dies after it committed a start": server_dies_at("start-committed"),
    "the server dies after it committed a claim": server_dies_at("claim-committed", passes=0),
    "the server dies before a start is committed that is executed already": Chaos.server_dies_with_an_effect_begun,
    "the server dies before the start of a local effect is committed": Chaos.server_dies_with_a_local_effect_begun,
    "the server dies in the middle of a group commit": server_dies_at("in-group-commit"),
    "the server dies after it committed a completion": server_dies_at("completion-committed"),
    "a worker dies after its claim": worker_dies_at("task-claimed"),
    "a worker dies in a tool, before its effect": worker_dies_at("before-effect"),
    "a worker dies in a tool, after its effect": worker_dies_at("after-effect"),
    "a worker dies before it sends a completion": worker_dies_at("effect-done"),
    "a client dies as its calls are started": Chaos.client_dies_as_its_calls_are_started,
    "a client dies as it is told": Chaos.client_dies_when_told,
    "a client dies after its claim": client_dies_at("task-claimed"),
    "a client dies in a local effect, before it happens": client_dies_at("before-effect"),
    "a client dies in a local effect, after it happened": client_dies_at("after-effect"),
    "a client dies before it records a local effect": client_dies_at("effect-done"),
    "a client is paused beyond its lease": Chaos.client_is_paused,
    "a worker is paused beyond its lease": Chaos.worker_is_paused,
    "a worker is paused until others have done its work": Chaos.worker_is_paused_for_long,
    "the server is paused": Chaos.server_is_paused,
    "a session is stopped, and goes on": Chaos.session_is_stopped,
    "a session is stopped, and the server dies of it": lambda chaos: chaos.session_is_stopped(dies=True),
    "a session is forked, and the server dies of it": Chaos.session_is_forked,
    "a session is taken back, and the server dies of it": Chaos.session_is_taken_back,
    "questions are asked, and the server and who asks die": Chaos.questions_are_asked,
    "a MAP and its parents run, and the server dies of it": Chaos.parts_run,
    "a run of workers is followed, and any of them die": Chaos.run_is_followed,
    "all die at once": Chaos.all_die,
    "any die at any time": Chaos.any_die,
}


def owner_dies_at(point: str) -> Callable[[Embedded], Awaitable[None]]:
    return lambda chaos: chaos.owner_dies_at(point)


EMBEDDED_FAULTS: dict[str, Callable[[Embedded], Awaitable[None]]] = {
    "whoever has the engine dies": Embedded.owner_dies,
    "whoever has the engine dies again": Embedded.owner_dies,
    "whoever has the engine is paused": Embedded.owner_is_paused,
    "a MAP and its parents run, and whoever has the engine dies": Embedded.parts_run,
    "whoever has the engine dies after it committed a start": owner_dies_at("start-committed"),
    "whoever has the engine dies before a start is committed": owner_dies_at("begun-uncommitted"),
    "whoever has the engine dies in the middle of a group commit": owner_dies_at("in-group-commit"),
    "whoever has the engine dies before it records an effect": owner_dies_at("effect-done"),
    "whoever has the engine dies after an effect": owner_dies_at("after-effect"),
    "a worker dies after its claim": worker_dies_at("task-claimed"),
    "a worker dies in a tool, after its effect": worker_dies_at("after-effect"),
    "a worker dies before it sends a completion": worker_dies_at("effect-done"),
    "a client dies after its claim": client_dies_at("task-claimed"),
    "a client dies in a local effect, after it happened": client_dies_at("after-effect"),
    "a client dies as it is told": Chaos.client_dies_when_told,
    "commands come and go, some killed": Embedded.commands_come_and_go,
    "a server comes and goes": Embedded.server_comes_and_goes,
    "a run of workers is followed, and any of them die": Embedded.run_is_followed,
    "all die at once": Chaos.all_die,
    "any die at any time": Chaos.any_die,
}


POSTGRES_FAULTS: dict[str, Any] = {
    "the servers are upgraded one after the other": OnPostgres.servers_are_upgraded,
    "PostgreSQL is killed": OnPostgres.postgres_is_killed,
    "PostgreSQL is killed again": OnPostgres.postgres_is_killed,
    "PostgreSQL is paused": OnPostgres.postgres_is_paused,
    "PostgreSQL's connections are ended": OnPostgres.connections_are_ended,
    # With PostgreSQL nothing begins before its commit.
    **{name: fault for name, fault in FAULTS.items() if "committed that is" not in name and "is committed" not in name},
}


# What must be true in the end


@dataclass
class Story:
    """All that is known of one call: what the database says, what really happened, what clients were told."""

    label: str
    tool: str
    execution_id: str
    status: str
    error: str | None
    error_code: str | None
    tasks: list[tuple[str, str | None]] = field(default_factory=list)  # status, output's JSON text
    events: list[dict[str, Any]] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)  # lines of the ledger
    deaths: int = 0  # of the server, while it was under way
    told: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))  # by client, in order

    @property
    def once(self) -> bool:
        return TOOLS[self.tool] == "once"

    @property
    def attempts(self) -> int:
        types = Counter(event["type"] for event in self.events)
        return types["AttemptStarted"] - types["AttemptReturned"]

    @property
    def nonces(self) -> set[str]:
        return {line["nonce"] for line in self.effects}

    @property
    def recorded(self) -> str | None:
        """The recorded result, as a client is told it."""
        output = json.loads(self.tasks[0][1] or "null") if self.tasks else None
        return output["result"] if isinstance(output, dict) else output

    @property
    def happenings(self) -> str:
        return "".join(LETTERS[event["type"], event.get("late", event.get("as"))] for event in self.events)

    def __str__(self) -> str:
        told = [f"{client} was told {answer}" for client, answers in self.told.items() for answer in answers]
        events = [f"event {event}" for event in self.events]
        effects = [f"effect {effect}" for effect in self.effects]
        lines = [f"{self.execution_id} {self.status} {self.error_code} {self.tasks}", *events, *effects, *told]
        return "\n    ".join(lines)


@dataclass(frozen=True)
class Problem:
    kind: str  # "duplicate", "loss", "stuck" or "untrue"
    text: str
    story: Story | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" + (f"\n  {self.story}" if self.story else "")


# One letter for each event, and what a whole story may look like.
LETTERS = {
    ("ExecutionStarted", None): "S",
    ("AttemptStarted", None): "a",
    ("AttemptReturned", None): "r",
    ("AttemptFailed", None): "f",
    ("AttemptFailed", True): "g",  # late
    ("AttemptStopped", None): "s",
    ("LeaseExpired", None): "x",
    ("TaskCompleted", None): "d",
    ("TaskCompleted", True): "l",  # late
    ("OutcomeResolved", "result"): "o",
    ("OutcomeResolved", "failed"): "p",
    ("ExecutionCompleted", None): "C",
    ("ExecutionFailed", None): "F",
    ("ExecutionRestarted", None): "R",
}
# "axFrR": who claimed it asks again, as the answer was lost on its way until after the lease. So it had not begun.
LEGAL_ONCE = re.compile("S(ar|axFrR)*(adC|afF|axF(g|p|lRC|oRC)?)")
LEGAL = re.compile("S(a[rfxs])*(F[gp]?R(a[rfxs])*)*(adC|a?lC|F(g|p|lRC|oRC)?)")


def read_stories(folder: Path, calls: list[Call]) -> list[Story]:
    """The story of every execution in the database, and of every call that is missing there but had an effect."""
    tools = {call.label: call.tool for call in calls}
    with closing(database_of(folder)) as database:
        stories = {}
        query = "SELECT execution_id, status, error, error_code, input_json FROM executions ORDER BY seq"
        for execution_id, status, error, error_code, input_json in database.execute(query):
            if execution_id.startswith(APART):
                continue
            label = json.loads(input_json)["tool_args"]["label"]
            stories[execution_id] = Story(label, tools[label], execution_id, status, error, error_code)
        for story in stories.values():
            key = (story.execution_id,)
            query = "SELECT status, output_json FROM tasks WHERE execution_id = ?"
            story.tasks = database.execute(query, key).fetchall()
            query = "SELECT type, at_ms, attempt, data_json FROM story WHERE execution_id = ? ORDER BY seq"
            for type, at_ms, attempt, data in database.execute(query, key):
                story.events.append({"type": type, "at_ms": at_ms, "attempt": attempt} | json.loads(data))
    by_label = {story.label: story for story in stories.values()}

    def story_of(label: str) -> Story:
        missing = Story(label, tools[label], "no execution", "MISSING", None, None)
        return by_label.setdefault(label, missing)

    for line in (folder / "ledger").read_text().splitlines():
        effect = json.loads(line)
        if not effect["label"].startswith(APART):
            story_of(effect["label"]).effects.append(effect)
    for line in (folder / "deaths").read_text().splitlines():
        death = json.loads(line)
        for story in map(story_of, (label for label in death["labels"] if not label.startswith(APART))):
            story.deaths += not story.events or death["at_ms"] <= story.events[-1]["at_ms"]
    for path in sorted(folder.glob("told-*")):
        for line in path.read_text().splitlines():
            answer = json.loads(line)
            story_of(answer["label"]).told[path.name.removeprefix("told-")].append(answer)
    return [*stories.values(), *(story for story in by_label.values() if story.status == "MISSING")]


def check(folder: Path, calls: list[Call], settled: dict[str, tuple[str, str]]) -> list[Problem]:
    """Everything that is wrong, after `Chaos.settle`."""
    stories = read_stories(folder, calls)
    problems = [Problem("untrue", text) for text in check_database(folder)]
    known = Counter(story.label for story in stories)
    for call in calls:
        if known[call.label] != 1:
            kind = "duplicate" if known[call.label] else "loss"
            problems.append(Problem(kind, f"call {call.label} has {known[call.label]} executions"))
    keys = Counter(key for story in stories for key in {effect["key"] for effect in story.effects})
    for story in stories:
        checks = (check_ending, check_result, check_effects, check_answers, check_events)
        found = [problem for each in checks for problem in each(story, settled.get(story.label))]
        if any(keys[effect["key"]] > 1 for effect in story.effects):
            found.append(("untrue", "its idempotency key is that of another call too"))
        problems += [Problem(kind, text, story) for kind, text in found]
    return problems


MISNUMBERED = {
    "events of no execution": "SELECT seq, type FROM events WHERE seq NOT IN (SELECT seq FROM story)",
    "tasks whose keys have another number": "SELECT seq, task_key FROM tasks WHERE instr(task_key, seq || '-') <> 1",
}


def database_of(folder: Path) -> Any:
    """A connection to what the servers have left."""
    if (url := folder / URL).exists():
        return Connection(place_of(url.read_text()))
    return sqlite3.connect(f"file:{folder / 'nexum.db'}?mode=ro", uri=True)


def check_database(folder: Path) -> Iterator[str]:
    with closing(database_of(folder)) as database:
        sound = (("integrity_check", [("ok",)]), ("foreign_key_check", [])) if not (folder / URL).exists() else ()
        for pragma, clean in sound:
            found = database.execute(f"PRAGMA {pragma}").fetchall()
            if found != clean:
                yield f"{pragma} says {found[:5]}"
        for what, query in MISNUMBERED.items():
            if found := database.execute(query).fetchall():
                yield f"{what}: {found[:5]}"


Found = Iterator[tuple[str, str]]
Word = tuple[str, str] | None


def check_ending(story: Story, word: Word) -> Found:
    """Nothing is stuck or lost."""
    if story.status not in ("COMPLETED", "FAILED"):
        yield ("loss" if story.status == "MISSING" else "stuck"), f"it is {story.status}"
    if any(status in ("READY", "RUNNING") for status, _ in story.tasks):
        yield "stuck", "a task is READY or RUNNING"
    if not story.told:
        yield "stuck", "no client was told anything"


def check_result(story: Story, word: Word) -> Found:
    """Exactly one result, and it is what one execution of the tool returned; or a failure that happened."""
    done = [output for status, output in story.tasks if status == "DONE"]
    recordings = sum(letter in "dlo" for letter in story.happenings)
    if story.status == "COMPLETED":
        if len(done) != 1 or len(story.tasks) != 1 or recordings != 1:
            yield "duplicate", f"it has {len(done)} results, recorded {recordings} times"
        if story.recorded not in ({word[1]} if word else story.nonces):
            yield "untrue", "its result is not one that the tool returned"
    elif done or recordings:
        yield "untrue", f"it is {story.status} and has a result"
    elif (
        story.error_code == "TOOL_ERROR"
        and not word
        and (
            not story.tool.startswith("decline") or story.error not in {f"Declined, {nonce}." for nonce in story.nonces}
        )
    ):
        yield "untrue", "it failed, though its tool did not say so"


def check_effects(story: Story, word: Word) -> Found:
    """No effect without an attempt, none twice that may happen once, and one key for all attempts.

    What may be repeated begins, in a worker or here, before its attempt is committed: with the server that may die.
    """
    lost = 0 if story.once else story.deaths
    if len(story.effects) > story.attempts + lost:
        yield "duplicate", f"{len(story.effects)} effects in {story.attempts} attempts, and {lost} deaths of the server"
    if story.once and len(story.effects) > 1:
        yield "duplicate", f"it had {len(story.effects)} effects, and may have one"
    if len({effect["key"] for effect in story.effects}) > 1:
        yield "untrue", "its attempts saw several idempotency keys"


def check_answers(story: Story, word: Word) -> Found:
    """Every client was told the same, which is what is recorded; what was unknown is told as unknown until settled."""
    ending = {"OUTCOME_UNKNOWN": "unknown", "TOOL_ERROR": "failed"}.get(story.error_code or "", "result")
    if word and ending != word[0]:
        yield "untrue", f"a person said {word[0]}, and it is {ending}"
    for client, answers in story.told.items():
        kinds = [answer["kind"] for answer in answers]
        told = {answer["value"] for answer in answers if answer["kind"] == "result"}
        if {answer["execution_id"] for answer in answers} != {story.execution_id}:
            yield "loss", f"{client} was told of another execution"
        if told - {story.recorded}:
            yield "loss", f"{client} was told {told}, and {story.recorded} is recorded"
        if "result" in kinds[: kinds.count("result") * -1 or None]:
            yield "loss", f"{client} was told a result, and later something else"
        if kinds[-1] != ending:
            yield "untrue", f"{client} was last told {kinds[-1]}, and it is {ending}"
        if ending == "failed" and str(story.error) not in answers[-1]["value"]:
            yield "untrue", f"{client} was last told another error"
        if story.once and "failed" in kinds and ending != "failed":
            yield "untrue", f"{client} was told that it failed"
        if "unknown" in kinds and "F" not in story.happenings:
            yield "untrue", f"{client} was told that it is unknown, which it never was"
        if "unknown" in kinds and story.once and ending == "result" and not re.search("[lo]RC$", story.happenings):
            yield "untrue", f"{client} was told that it is unknown, and nobody's late word settled it"


def check_events(story: Story, word: Word) -> Found:
    """The events tell a legal story, and the one that the tables tell."""
    if not (LEGAL_ONCE if story.once else LEGAL).fullmatch(story.happenings):
        yield "untrue", f"its events are no legal story: {story.happenings}"
    elif story.happenings[-1] not in {"COMPLETED": "C"}.get(story.status, "p" if word else "Fg"):
        yield "untrue", f"its events end with {story.happenings[-1]}"
    latest = 0
    for event in story.events:
        if event["type"] == "AttemptStarted":
            latest += 1
        if event["attempt"] not in (None, latest) and not (event.get("late") and 0 < event["attempt"] < latest):
            yield "untrue", f"{event['type']} names attempt {event['attempt']} while {latest} is the latest"


def figures(chaos: Chaos, problems: list[Problem], seconds: float) -> str:
    stories = read_stories(chaos.folder, chaos.calls)
    unknown = [story for story in stories if any(e.get("error_code") == "OUTCOME_UNKNOWN" for e in story.events)]
    late = sum(bool(set("lg") & set(story.happenings)) for story in unknown)
    wrong = Counter(problem.kind for problem in problems)
    kinds = Counter(name.split()[0] for name in chaos.kills.elements())
    return "\n".join(
        [
            f"{chaos.rounds} rounds in {seconds:.0f} s",
            f"kills survived: {chaos.kills.total()} ({shown(kinds)})",
            *(f"  {count:4} {name}" for name, count in sorted(chaos.kills.items())),
            f"pauses: {chaos.pauses.total()} ({shown(chaos.pauses)})",
            f"sessions stopped: {chaos.stops}, forked: {chaos.forks}, taken back: {chaos.taken_back}; "
            f"questions: {chaos.questions}, runs followed: {chaos.followed}",
            f"calls: {len(chaos.calls)}, attempts: {sum(story.attempts for story in stories)}, "
            f"effects: {sum(len(story.effects) for story in stories)}",
            f"unknown outcomes: {len(unknown)}, settled by a late word: {late}, by a person: {len(chaos.settled)}",
            f"duplicates: {wrong['duplicate']}, losses: {wrong['loss']}, stuck: {wrong['stuck']}, "
            f"otherwise untrue: {wrong['untrue']}",
        ]
    )


def shown(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def schedule(rounds: int, faults: Collection[str], rng: random.Random) -> Iterator[str]:
    """Every fault in a new order, again and again."""
    deck: list[str] = []
    for _ in range(rounds):
        deck = deck or rng.sample(list(faults), len(faults))
        yield deck.pop()


async def survive(folder: Path, rounds: int, seed: int, kind: type[Chaos] = Chaos) -> bool:
    """Whether nothing is wrong; prints what it does, and the evidence."""
    began = time.monotonic()
    async with kind(folder, seed) as chaos:
        try:
            for number, fault in enumerate(schedule(rounds, chaos.faults, chaos.rng), start=1):
                round_began = time.monotonic()
                await chaos.round(fault)
                seconds = time.monotonic() - round_began
                print(f"round {number:{len(str(rounds))}}/{rounds}  {fault:{FAULT_WIDTH}} {seconds:4.1f} s", flush=True)
            await chaos.settle()
            problems = check(folder, chaos.calls, chaos.settled)
        except (AssertionError, NexumError) as error:
            unfinished = check(folder, chaos.calls, chaos.settled)
            problems = [
                Problem("stuck", f"in a round in which {fault}: {error}"),
                *(one for one in unfinished if one.kind != "untrue"),
            ]
    for problem in problems[:EVIDENCE_LIMIT]:
        print(problem)
    print(figures(chaos, problems, time.monotonic() - began))
    return not problems


def main() -> None:
    parser = argparse.ArgumentParser(description="Pull plugs, and check that nothing is lost or done twice.")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="how many (default 20)")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="repeat the faults of an earlier run")
    on = parser.add_mutually_exclusive_group()
    on.add_argument("--embedded", action="store_true", help="no server: who needs the engine has it")
    on.add_argument("--postgres", action="store_true", help="the database is a PostgreSQL")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(10**6)
    folder = Path(tempfile.mkdtemp(prefix="nexum-chaos-"))
    kind = Embedded if arguments.embedded else OnPostgres if arguments.postgres else Chaos
    option = " --embedded" if arguments.embedded else " --postgres" if arguments.postgres else ""
    again = f"--rounds {arguments.rounds} --seed {seed}{option}"
    print(f"The same faults again: python tests/chaos/chaos.py {again}", flush=True)
    ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)
    forkserver.ensure_running()  # for good without Ctrl-C, which is for us
    signal.signal(signal.SIGINT, ctrl_c)
    try:
        sound = asyncio.run(survive(folder, arguments.rounds, seed, kind))
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        raise SystemExit(130) from None
    if not sound:
        print(f"Something is wrong. Database, ledger, answers and logs are in {folder}")
        raise SystemExit(1)
    shutil.rmtree(folder)
    print("Nothing is wrong.")


if __name__ == "__main__":
    main()
