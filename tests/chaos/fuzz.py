"""Send a real `nexum dev` what nobody would send, to every method of both its services, and see that it stands.

    python tests/chaos/fuzz.py --tries 100000 --seed 1

Valid calls are mixed in, so that there are executions and tasks to be broken. It prints what was answered, and ends
with exit code 1 if an answer was none of the protocol's, the log has a traceback, or the server is not what it was.
Try n of a seed always sends the same kind of thing; which task it names depends on what the server answered before.
"""

import argparse
import asyncio
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

import grpc
from nexum.proto import nexum_pb2 as pb
from processes import NexumDev

from nexum_runtime import wire
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.methods.methods import Methods
from nexum_runtime.server.rpc.peers import Waiting
from nexum_runtime.server.rpc.service import Services
from nexum_runtime.server.rpc.traffic import Traffic
from nexum_runtime.wire import batches

CHANNELS = 4
IN_FLIGHT = 50  # calls at once, over all channels
PATIENCE_SECONDS = 30.0  # an answer that takes longer is a failure
NORMAL_SECONDS = 5.0  # what a whole workflow may take when all is over
RSS_MIB_LIMIT = 200
DETAILS_LIMIT = 500  # characters of an error's text
FAILURES_SHOWN = 20
CUT_OFF = "Internal error from Core"  # gRPC's client has it that what it was sending could not be sent
STREAM_SECONDS = 0.05  # at most, before its caller ends it
HUGE_ODDS = 2_000  # one text in so many is about as large as a message may be, or larger
MIB = 1024 * 1024

EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""UNAVAILABLE is none of them: nothing here fills a disk, and a bad argument that is called so is sent for ever."""

CALLS = f"/{wire.EXTENSIONS}/StreamCalls"
NO_SUCH_METHOD = "/nexum.NexumService/Explode"
KEYS = sorted({value for value in vars(wire).values() if isinstance(value, str) and value.startswith("nexum-")})
WORKFLOWS: dict[str, dict[str, list[str]]] = {
    "one": {"run": []},
    "two": {"run": []},
    "chain": {"a": [], "b": ["a"], "c": ["a", "b"]},
    "gate": {"approval": [], "run": ["approval"]},
}


Metadata: TypeAlias = list[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Method:
    path: str
    fields: tuple[tuple[int, str, bool], ...]  # number, name, whether it is a text
    kind: str  # "unary_unary", "unary_stream" or "stream_stream", as gRPC's channels call it


def methods() -> list[Method]:
    """Every method of the server's handler tables, with the message it takes."""
    found = []
    engine = cast(Engine, None)
    for handlers in Services(Methods(engine), Waiting(), Traffic()).handlers():
        for path, handler in handlers._method_handlers.items():
            streamed = pb.StartRequest if path == CALLS else pb.CompleteRequest  # in bytes
            descriptor = (
                handler.request_deserializer(b"").DESCRIPTOR if handler.request_deserializer else streamed.DESCRIPTOR
            )
            fields = tuple((each.number, each.name, each.type == each.TYPE_STRING) for each in descriptor.fields)
            is_unary = handler.request_streaming and handler.request_deserializer  # as `Traffic.unary` makes them
            kind = "unary_unary" if is_unary else "stream_stream" if handler.request_streaming else "unary_stream"
            found.append(Method(path, fields, kind))
    return found


@dataclass
class Figures:
    tries: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")  # seconds, which try
    seconds: float = 0.0
    rss_mib: float = 0.0
    events: Counter[str] = field(default_factory=Counter)  # what the database has of them in the end

    def __str__(self) -> str:
        rate = self.tries / self.seconds if self.seconds else 0.0
        lines = [f"{self.tries} tries in {self.seconds:.0f} s, {rate:.0f} a second"]
        lines += [f"{count:>8} {code}" for code, count in self.answers.most_common()]
        lines.append(f"slowest answer {self.slowest[0]:.2f} s, {self.slowest[1]}")
        lines.append(f"the server's memory afterwards {self.rss_mib:.0f} MiB")
        lines.append("events kept: " + ", ".join(f"{count} {event}" for event, count in self.events.most_common()))
        lines += [f"FAILED: {each}" for each in self.failures[:FAILURES_SHOWN]]
        if len(self.failures) > FAILURES_SHOWN:
            lines.append(f"… and {len(self.failures) - FAILURES_SHOWN} failures more")
        return "\n".join(lines)


@dataclass
class Known:
    """What the server has told so far: real ids, to be used and misused."""

    task_ids: deque[str] = field(default_factory=lambda: deque(["nothing.1"], maxlen=100))
    execution_ids: deque[str] = field(default_factory=lambda: deque(["e/0"], maxlen=100))


class Inventor:
    """Makes up requests. Everything it does follows from `rng` and what is known."""

    def __init__(self, rng: random.Random, known: Known) -> None:
        self._rng = rng
        self._known = known
        self._sane = rng.random() < 0.5  # what this try sends is what a client could well send

    def pick(self, *choices: Callable[[], bytes] | str | bytes) -> bytes:
        choice = self._rng.choice(choices)
        if isinstance(choice, str):
            return choice.encode()
        return choice if isinstance(choice, bytes) else choice()

    def chance(self, odds: int) -> bool:
        return self._rng.randrange(odds) == 0

    # Requests

    def request(self, method: Method) -> bytes:
        """The bytes of a message: mostly one that can be parsed, with anything in its fields."""
        if not self._sane and self.chance(12):
            return self.garbage()
        message = b"".join(
            self.text_field(number, self.valid(name) if self._sane else self.anything(name))
            if is_text
            else varint(number << 3) + varint(self._rng.choice([0, 1, 20, 10_000, 2**31 - 1, 2**63, 2**64 - 1]))
            for number, name, is_text in method.fields
            if self._sane or not self.chance(8)
        )
        return self.broken(message) if not self._sane and self.chance(8) else message

    @staticmethod
    def text_field(number: int, value: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(value)) + value

    def broken(self, message: bytes) -> bytes:
        rng = self._rng
        return self.pick(
            lambda: message[: rng.randrange(len(message) + 1)],
            lambda: message + self.text_field(rng.randrange(16, 2**29), self.garbage()),  # unknown to the message
            lambda: message + varint(1 << 3 | 2) + varint(rng.choice([2**31, 2**32, 2**63, 2**64 - 1])) + b"x",
            lambda: message + varint(1 << 3 | rng.choice([0, 1, 3, 4, 5, 6, 7])) + self.garbage(),
            lambda: message + b"\x0b" * rng.choice([1, 50, 200, 10_000]),  # groups in groups
            lambda: message + message,
            lambda: bytes(each ^ (rng.randrange(256) if self.chance(20) else 0) for each in message[:10_000]),
        )

    def garbage(self) -> bytes:
        return self._rng.randbytes(self._rng.choice([0, 1, 2, 10, 100, 1_000]))

    def head(self, number: int, metadata: Metadata) -> bytes:
        """What goes before a request of StreamCalls."""
        told = json.dumps({key: value for key, value in metadata if isinstance(value, str)})
        if self._sane or not self.chance(4):
            return self.text_field(1, str(number).encode()) + self.text_field(2, told.encode())
        return self.broken(self.text_field(1, self.text()) + self.text_field(2, self.json()))

    def batch(self, messages: list[bytes]) -> bytes:
        """Several messages in one of StreamTasks, each after its length."""
        batch = b"".join(varint(len(message)) + message for message in messages)
        return self.broken(batch) if not self._sane and self.chance(8) else batch

    # Fields

    def valid(self, name: str) -> bytes:
        """What a well-meaning client could have put there."""
        match name:
            case "workflow_id":
                return self.pick(*WORKFLOWS)
            case "version_hash":
                return self.pick("h", "h", "h", "")
            case "ir_json":
                return ir(self._rng.choice(list(WORKFLOWS.values())))
            case "input_json" | "output_json":
                return self.pick("{}", '{"q":"x"}', self.json, '"text"', "[1,2.5,null]")
            case "worker_id":
                return self.pick("worker-1", "worker-2")
            case "execution_id":
                return self.pick(*self._known.execution_ids, "e/", "")
            case "node_id":
                return self.pick("run", "approval", "a", "b", "")
            case "task_id":
                return self.pick(*self._known.task_ids)
            case "status":
                return self.pick("", "RUNNING", "COMPLETED", "FAILED", "CANCELLED")
            case "reason":
                return self.pick('{"text":"settled"}', "It never happened.")
        return self.pick("", "a few words")

    def anything(self, name: str) -> bytes:
        return self.pick(
            lambda: self.valid(name),
            self.text,
            self.garbage,
            self.json,
            self.graph if name == "ir_json" else self.mutated_task_id if name == "task_id" else self.text,
        )

    def text(self) -> bytes:
        rng = self._rng
        return self.pick(
            "",
            "\x00",
            "a\x00b",
            " ",
            "\n\r\t\x1b[2J\u202e",
            "é" * 200,
            "é" * 201,
            "𝕏" * rng.choice([199, 200, 201, 5_000]),
            "a/" * 100,
            "a/" * 100 + "x",
            "'; DROP TABLE tasks; --",
            "%s{}{0}",
            b"\xed\xa0\x80",  # half a surrogate pair, as no UTF-8 spells it
            b"\xff\xfe",
            b"x" * rng.choice([199, 200, 201, 10_000]),
            lambda: b"x" * rng.choice([MIB, 16 * MIB, 17 * MIB, 65 * MIB]) if self.chance(HUGE_ODDS // 20) else b"y",
            lambda: "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(9))
            .encode(),
        )  # fmt: skip

    def mutated_task_id(self) -> bytes:
        task_id = self.pick(*self._known.task_ids).decode()
        key, _, attempt = task_id.rpartition(".")
        return self.pick(
            f"{key}.{int(attempt) + 1}",
            f"{key}.{int(attempt) - 1}",
            f"{key}.0",
            f"{key}.-1",
            f"{key}.00{attempt}",
            f"{key}.{'9' * self._rng.choice([9, 18, 19, 20, 5_000])}",
            f"{key}.²",
            f"{key}.٣",
            f"{key}.",
            f".{attempt}",
            key,
            key.upper() + f".{attempt}",
            f"{key}\x00.{attempt}",
            json.dumps([task_id] * self._rng.choice([1, 10, 10_000, 10_001])),
            json.dumps([task_id, 1, None]),
        )

    def json(self) -> bytes:
        rng = self._rng
        depth = rng.choice([10, 90, 200, 300, 900, 950, 980, 985, 990, 995, 1_000, 10_000, 100_000])
        return self.pick(
            lambda: json.dumps(self.value(0)).encode(),
            lambda: json.dumps(self.value(0), ensure_ascii=False).encode(errors="surrogatepass"),
            lambda: b"[" * depth + b"]" * depth,
            lambda: b'{"a":' * depth + b"1" + b"}" * depth,
            lambda: b"[" * depth,
            "NaN",
            "[Infinity,-Infinity]",
            "1e999",
            '{"q":-1e400}',
            "1e308",
            "9" * rng.choice([18, 20, 309, 4_300, 4_301]),
            "-0.0",
            '{"a":1,"a":2}',
            '"\\ud800"',
            '{"\\udfff":"\\ud800\\ud800"}',
            '"\\u0000"',
            '"\x01"',
            "\ufeff{}",
            "{}{}",
            "{'a': 1}",
            "[1,]",
            "// no\n{}",
            "",
            lambda: b'"' + b"x" * rng.choice([15 * MIB, 16 * MIB, 17 * MIB]) + b'"' if self.chance(HUGE_ODDS // 20)
            else b"0",
        )  # fmt: skip

    def value(self, depth: int) -> Any:
        rng = self._rng
        kind = rng.randrange(8 if depth < 4 else 6)
        if kind == 6:
            return [self.value(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 7:
            return {self.word(): self.value(depth + 1) for _ in range(rng.randrange(4))}
        return [None, True, rng.randrange(-(2**70), 2**70), rng.random() * 10.0**300, self.word(), ""][kind]

    def word(self) -> str:
        return "".join(chr(self._rng.choice([0, 34, 92, 97, 0xE9, 0x2028, 0xD800, 0xDFFF, 0x1F600])) for _ in range(3))

    def graph(self) -> bytes:
        """An IR of a broken shape, or nearly so."""
        rng = self._rng
        size = rng.choice([1, 2, 5, 50])
        nodes: dict[str, Any] = {
            f"n{i}": {"type": rng.choice(["EFFECT", "COMPUTE"]), "dependencies": [f"n{j}" for j in range(i)][-3:]}
            for i in range(size)
        }
        first, last = nodes["n0"], nodes[f"n{size - 1}"]
        spoil: list[Callable[[], Any]] = [
            lambda: None,
            lambda: first.update(dependencies=[f"n{size - 1}"]),
            lambda: first.update(dependencies=["n0"]),
            lambda: last.update(dependencies=["nowhere"]),
            lambda: last.update(dependencies=["n0"] * rng.choice([2, 10_000])),
            lambda: last.update(dependencies=rng.choice([None, 0, "n0", {"n0": 1}, [["n0"]], [None], ["\ud800"]])),
            lambda: first.update(
                type=rng.choice(["TIMER", "HUMAN_APPROVAL", "effect", "", None, 1, [], {}, ["EFFECT"], "\ud800"])
            ),
            lambda: first.pop("type"),
            lambda: nodes.update({rng.choice(["", "\ud800", "\x00", "x" * 201, "é" * 200]): first}),
            lambda: nodes.update({f"m{i}": first for i in range(rng.choice([900, 999, 1_001, 20_000]))}),
            lambda: nodes.update({f"c{i}": {"type": "EFFECT", "dependencies": [f"c{i - 1}"]} for i in range(1, 990)}),
            lambda: nodes.update(n0=rng.choice([None, [], 1, "EFFECT", {}])),
            nodes.clear,
        ]
        rng.choice(spoil)()
        return self.pick(
            lambda: json.dumps({"nodes": nodes}).encode(),
            lambda: json.dumps({"nodes": nodes, "more": [1]}).encode(),
            lambda: json.dumps({"nodes": list(nodes.values())}).encode(),
            lambda: json.dumps({"nodes": {"n0": nodes}}).encode(),
            lambda: json.dumps(nodes).encode(),
            b'{"nodes":{"a":{"type":"EFFECT"},"a":{"type":"COMPUTE"}}}',
            b'{"nodes":' * 400 + b"1" + b"}" * 400,
        )

    # Metadata

    def metadata(self) -> Metadata:
        usual = {wire.EXECUTION_ID, wire.WORKFLOW_ID, wire.RESOLUTION, wire.OLDER_THAN_MS, wire.DRY_RUN}
        usual |= {wire.WORKER_ID, wire.VERSION_HASH}
        odds = 10 if self._sane else 5
        sent: Metadata = [
            (key, self.metadata_value(key))
            for key in KEYS
            if not key.endswith("-bin") and (key in usual or self.chance(odds))
        ]
        if self._sane:
            return sent
        if self.chance(30):
            sent.append(("nexum-unheard-of-bin", self.garbage()))
        if self.chance(30):
            sent.append((self._rng.choice(KEYS[:5]).removesuffix("-bin"), "twice"))
        if self.chance(500):
            sent.append(("x-long", "x" * self._rng.choice([4_000, 20_000])))
        return sent

    def metadata_value(self, key: str) -> str:
        rng = self._rng
        if not self._sane and self.chance(8):  # any printable ASCII is what gRPC lets a client send
            odd = [
                "",
                " ",
                "-1",
                "+1",
                "1.0",
                "1e3",
                "0x10",
                "1_000",
                "NaN",
                "true ",
                "x" * 300,
                "9" * 400,
                "\x7e" * 41,
            ]
            return rng.choice(odd)
        legal = {
            wire.EXECUTION_ID: [*self._known.execution_ids, *(f"e/{rng.randrange(1000)}" for _ in range(30))],
            wire.EFFECT: [*wire.EFFECTS],
            wire.RESTART: ["failed", "unknown"],
            wire.WORKFLOW_ID: [*WORKFLOWS],
            wire.CLAIM: ["worker-1", "worker-2"],
            wire.WORKER_ID: ["worker-1", "worker-2"],
            wire.VERSION_HASH: ["h"],
            wire.SLOTS: ["1", "3", "1000"],
            wire.LEASE_MS: ["1000", "1500", "3600000"],
            wire.TIMEOUT_MS: ["1", "1000", "86400000"],
            wire.RETRYABLE: ["true", "false"],
            wire.INTERRUPTED: ["true", "false"],
            wire.UNKNOWN: ["true", "false"],
            wire.DRY_RUN: ["true", "false"],
            wire.BATCHES: ["true", "false"],
            wire.MAX_ATTEMPTS: ["1", "2", "20"],
            wire.RESOLUTION: ["result", "failed", "retry"],
            wire.PREFIX: ["e/", "e", "/", "e/1"],
            wire.WAIT_MS: ["0", "1", "10", "50", "60000"],
            wire.OLDER_THAN_MS: ["0", *["60000"] * 9, "1000000000000000"],
        }
        numbers = ["0", "1", "4", "20", "21", "999", "1000", "60000", "3600000", "3600001", "86400000", "86400001"]
        numbers += ["-1", "999999999999999", "9223372036854775807", "9223372036854775808", "18446744073709551616"]
        return rng.choice(legal.get(key, numbers) if self._sane or not self.chance(5) else numbers)


async def spoken(requests: list[bytes], seconds: float) -> AsyncIterator[bytes]:
    """What a caller sends on a stream, which it then keeps open for a while: it is answered meanwhile."""
    for request in requests:
        yield request
    await asyncio.sleep(seconds)


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def ir(dependencies: dict[str, list[str]]) -> bytes:
    types = {"approval": "HUMAN_APPROVAL"}
    nodes = {
        node_id: {"type": types.get(node_id, "EFFECT"), "dependencies": needed}
        for node_id, needed in dependencies.items()
    }
    return json.dumps({"nodes": nodes}).encode()


class Fuzz:
    """One run against the server at `address`."""

    def __init__(self, address: str, seed: int) -> None:
        self.figures = Figures()
        self._seed = seed
        self._known = Known()
        self._methods = methods()
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channels = [grpc.aio.insecure_channel(address, options=own) for _ in range(CHANNELS)]

    async def run(self, tries: int) -> None:
        began = time.monotonic()
        for workflow_id, dependencies in WORKFLOWS.items():
            await self._plain("RegisterWorkflow", pb.WorkflowIR(
                workflow_id=workflow_id, version_hash="h", ir_json=ir(dependencies).decode())
            )  # fmt: skip
        numbers = iter(range(tries))

        async def send() -> None:
            for number in numbers:
                await self._try(number)

        await asyncio.gather(*(send() for _ in range(IN_FLIGHT)))
        self.figures.tries = tries
        self.figures.seconds = time.monotonic() - began
        await self._serves_as_ever()
        for channel in self._channels:
            await channel.close()

    async def _try(self, number: int) -> None:
        rng = random.Random(f"{self._seed} {number}")
        inventor = Inventor(rng, self._known)
        method = rng.choice(self._methods)
        path = NO_SUCH_METHOD if inventor.chance(1_000) else method.path
        requests = [inventor.request(method) for _ in range(rng.randrange(4) if method.kind == "stream_stream" else 1)]
        metadata = inventor.metadata()
        if method.path == CALLS:
            heads = [inventor.head(number, metadata) for number in range(len(requests))]
            requests = [inventor.batch([each for pair in zip(heads, requests, strict=True) for each in pair])]
        elif method.kind == "stream_stream" and (wire.BATCHES, "true") in metadata and not inventor.chance(20):
            requests = [inventor.batch(requests)]
        if path.endswith("/Prune") and not inventor.chance(50):  # what is pruned cannot be broken any more
            metadata = [*((key, value) for key, value in metadata if key != wire.DRY_RUN), (wire.DRY_RUN, "true")]
        impatient = inventor.chance(20) or any(key == wire.WAIT_MS and len(str(value)) > 2 for key, value in metadata)
        impatient = impatient or (path.endswith("/Execute") and wire.WAIT_MS not in dict(metadata))
        impatient = (
            impatient or path == CALLS or path.endswith(("/Attend", "/Follow"))
        )  # which end when their caller does
        cancelled = inventor.chance(30)
        sizes, begin = [len(request) for request in requests], b"".join(requests)[:60]
        where = f"try {number} ({path}, {sizes} bytes, {begin!r}, {metadata})"
        channel = self._channels[number % CHANNELS]
        open_seconds = 0 if path == CALLS else rng.random() * STREAM_SECONDS  # calls are answered also afterwards
        began = time.monotonic()
        call = getattr(channel, method.kind)(path)(
            requests[0] if method.kind != "stream_stream" else spoken(requests, open_seconds),
            metadata=metadata,
            timeout=rng.choice([0.01, 0.05]) if impatient else PATIENCE_SECONDS,
        )
        try:
            if cancelled:
                asyncio.get_running_loop().call_later(rng.random() / 50, call.cancel)
            answers = [await call] if method.kind == "unary_unary" else [answer async for answer in call]
            claimed = dict(await call.trailing_metadata()).get(wire.TASK_ID)
            if dict(await call.initial_metadata()).get(wire.BATCHES) == "true":
                answers = [each for answer in answers for each in batches.unpack([pb.PollResponse], answer)]
        except asyncio.CancelledError:
            if (
                not cancelled and method.kind != "stream_stream"
            ):  # one of these gRPC cancels if it ends as it is written to
                raise
            self.figures.answers["CANCELLED (by the client)"] += 1
            return
        except grpc.aio.AioRpcError as error:
            self._judge(where, path, error, impatient=impatient)
        else:
            self.figures.answers["OK"] += 1
            for answer in answers:
                self._learn(path, answer)
            self._known.task_ids.extend([claimed] if claimed else [])
        self.figures.slowest = max(self.figures.slowest, (time.monotonic() - began, where[:80]))

    def _judge(self, where: str, path: str, error: Any, *, impatient: bool) -> None:
        code, details = error.code(), error.details() or ""
        if code == grpc.StatusCode.DEADLINE_EXCEEDED and impatient:
            self.figures.answers["DEADLINE_EXCEEDED (the client's)"] += 1
            return
        if details == CUT_OFF and path.endswith(("/StreamTasks", "/StreamCalls")):
            self.figures.answers["INTERNAL (the client's, answered while it spoke)"] += 1
            return
        self.figures.answers[code.name] += 1
        if code not in EXPECTED and not (path == NO_SUCH_METHOD and code == grpc.StatusCode.UNIMPLEMENTED):
            self.figures.failures.append(f"{where}: {code.name} {details[:300]}")
        elif not 0 < len(details) <= DETAILS_LIMIT:
            self.figures.failures.append(f"{where}: {code.name} in {len(details)} characters: {details[:300]!r}")

    def _learn(self, path: str, answer: Any) -> None:
        if path.endswith(("/PollTask", "/StreamTasks")):
            polled = pb.PollResponse.FromString(answer) if isinstance(answer, bytes) else answer
            if polled.has_task:
                self._known.task_ids.append(polled.task_id)
                self._known.execution_ids.append(polled.execution_id)
        if path.endswith("/StartExecution"):
            self._known.execution_ids.append(pb.StartResponse.FromString(answer).execution_id)

    async def _plain(self, method: str, request: Any, **metadata: str) -> bytes:
        call = self._channels[0].unary_unary(f"/{wire.SERVICE}/{method}")
        sent = tuple((f"nexum-{key.replace('_', '-')}", value) for key, value in metadata.items())
        answer: bytes = await call(request.SerializeToString(), metadata=sent, timeout=PATIENCE_SECONDS)
        return answer

    async def _serves_as_ever(self) -> None:
        """A workflow from its registration to its result."""
        began = time.monotonic()
        named = {"workflow_id": "after", "version_hash": "after"}
        await self._plain("RegisterWorkflow", pb.WorkflowIR(**named, ir_json=ir({"run": []}).decode()))
        await self._plain("StartExecution", pb.StartRequest(**named, input_json="{}"), execution_id="after/0")
        request = pb.PollRequest(worker_id="after", version_hash="after")
        polled = pb.PollResponse.FromString(await self._plain("PollTask", request, workflow_id="after"))
        await self._plain("CompleteTask", pb.CompleteRequest(task_id=polled.task_id, output_json='"done"'))
        answer = await self._plain("GetStatus", pb.StatusRequest(execution_id="after/0"))
        status = pb.StatusResponse.FromString(answer)
        if (status.status, status.completed_nodes_json) != ("COMPLETED", '{"run":"done"}'):
            self.figures.failures.append(f"afterwards a workflow ended so: {status}")
        if (seconds := time.monotonic() - began) > NORMAL_SECONDS:
            self.figures.failures.append(f"afterwards a workflow took {seconds:.1f} s")


def rss_mib(pid: int) -> float:
    """The memory of a process."""
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(found.stdout) / 1024


async def fuzz(folder: Path, tries: int, seed: int) -> Figures:
    """Send that many tries to a server of its own, with its database in `folder`."""
    async with NexumDev(folder) as nexum:
        run = Fuzz(nexum.address, seed)
        figures, pid = run.figures, nexum.pid
        await run.run(tries)
        if not nexum.alive or nexum.pid != pid:
            figures.failures.append("the server has ended")
        figures.rss_mib = rss_mib(pid)
        if figures.rss_mib > RSS_MIB_LIMIT:
            figures.failures.append(f"the server has {figures.rss_mib:.0f} MiB of memory")
        nexum.terminate()
        if code := await nexum.ended():
            figures.failures.append(f"the server ended with exit code {code}")
    log = nexum.output
    for sign in ("Traceback", "Exception", "Error"):
        if sign in log:
            at = log.index(sign)
            figures.failures.append(f"the server's log has: {log[max(0, at - 300) : at + 1500]}")
            break
    with sqlite3.connect(nexum.database) as database:
        found = database.execute("PRAGMA integrity_check").fetchone()[0]
        figures.events.update(dict(database.execute("SELECT type, count(*) FROM events GROUP BY type").fetchall()))
        stray = database.execute("PRAGMA foreign_key_check").fetchall()
    database.close()
    if found != "ok" or stray:
        figures.failures.append(f"the database: {found} {stray[:5]}")
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description="Send a Nexum server what nobody would send.")
    parser.add_argument("--tries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(fuzz(Path(folder), options.tries, options.seed))
    print(figures)
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
