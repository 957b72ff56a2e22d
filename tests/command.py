"""What the tests of the `nexum` command share: how it is run, and executions for it to tell of."""

import asyncio
from typing import Any

from nexum import workflow
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from processes import Finished, remote
from pydantic import BaseModel
from typer.testing import CliRunner

from nexum_runtime import Client, human_approval, wire
from nexum_runtime.cli import app
from nexum_runtime.cli.base import FAILED

EVIL = "\x1b]0;title\x07\x1b[2J\u009b31m\u202egpj\rover\x08\x7f\u2028\nforged :smile:"
SPELLED = r"\u001b]0;title\u0007\u001b[2J\u009b31m\u202egpj\rover\b\u007f\u2028"


class Text(BaseModel):
    text: str


async def unused(_: Any) -> Text:
    raise AssertionError("no worker runs this")


ECHO = workflow("echo").effect("run", Text, unused).build()


GATE = human_approval(workflow("gate"), "approve").build()
GATES = human_approval(human_approval(workflow("gates"), "first"), "second", depends_on=()).build()


async def start(
    client: Client, execution_id: str, definition: Any = ECHO, labels: dict[str, str] | None = None
) -> None:
    """Start an execution and do not wait for its end."""
    await client.register(definition)
    request = pb.StartRequest(
        workflow_id=definition.workflow_id, version_hash=definition.version_hash, input_json='{"q": "página"}'
    )
    stub = pb_grpc.NexumServiceStub(remote(client).connection.channel)
    told = ((wire.LABELS, wire.json_text(labels).encode()),) if labels else ()
    await stub.StartExecution(request, metadata=(("nexum-execution-id", execution_id), *told))


async def claim(client: Client, wait_ms: int = 0, lease_ms: int = 60_000) -> str:
    claimed = await client.poll("worker-1", ECHO, lease_ms=lease_ms, wait_ms=wait_ms)
    assert claimed is not None
    return str(claimed.task_id)


async def finish(client: Client, execution_id: str, output_json: str = '{"text": "é"}') -> None:
    await start(client, execution_id)
    await client.complete(await claim(client), output_json)


async def nexum(address: str, *words: str, **settings: str) -> Finished:
    """The `nexum` command in this process, in a thread of its own: what it prints, and how it ends.

    It costs a hundredth of a process, and is the same but for its terminal, its signals and its imports.
    """
    runner = CliRunner(env={"NEXUM_ADDRESS": address} | settings)
    result = await asyncio.to_thread(runner.invoke, app, list(words), prog_name="nexum")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Finished(result.exit_code, result.stdout, result.stderr)


def assert_refused(finished: Finished, sentence: str, code: int = FAILED) -> None:
    """An exit code and one line on stderr that holds `sentence`; nothing that only a programmer would read."""
    assert finished.code == code, finished
    assert finished.stdout == ""
    assert sentence in finished.stderr
    assert finished.stderr.count("\n") == 1, finished.stderr
