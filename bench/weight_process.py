"""The heaviest mix that is legal, against the server at an address, until it is stopped.

Results of 15 MiB, JSON that is slow to parse, answers that nobody reads or that are read slowly, a flood of starts, and
10,000 calls that wait.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any

import grpc
from nexum import workflow
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from pydantic import BaseModel

MIB = 1024 * 1024
WAITING, CONNECTIONS = 2_000, 5  # on each
UNREAD, RESULTS_AT_ONCE, FLOOD = 50, 4, 50
READ_SECONDS = 1.0  # of who reads slowly, before each part
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


class Nothing(BaseModel):
    pass


HEAVY = workflow("heavy").effect("run", Nothing, lambda _: Nothing()).build()
LIGHT = workflow("light").effect("run", Nothing, lambda _: Nothing()).build()
LARGE = json.dumps({"text": "x" * 15 * MIB})
NESTED = f"[{','.join(['[]'] * 2 * MIB)}]"


class Mix:
    def __init__(self, address: str) -> None:
        self._address = address
        self._stub = pb_grpc.NexumServiceStub(self.channel())
        self._flood = pb_grpc.NexumServiceStub(self.channel())
        self._slow = self.channel()

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._address, options=OPTIONS)

    async def start(self, execution_id: str, input_json: str = "{}") -> None:
        request = pb.StartRequest(workflow_id=HEAVY.workflow_id, version_hash=HEAVY.version_hash, input_json=input_json)
        await self._stub.StartExecution(request, metadata=[("nexum-execution-id", execution_id)])

    async def claim(self, *metadata: tuple[str, str]) -> Any:
        poll = pb.PollRequest(worker_id="heavy", version_hash=HEAVY.version_hash)
        return await self._stub.PollTask(poll, metadata=[("nexum-workflow-id", HEAVY.workflow_id), *metadata])

    async def result(self, execution_id: str) -> None:
        await self.start(execution_id)
        task = await self.claim()
        if task.has_task:
            await self._stub.CompleteTask(pb.CompleteRequest(task_id=task.task_id, output_json=LARGE))

    async def arrive(self, execution_id: str) -> None:
        request = pb.StartRequest(workflow_id=LIGHT.workflow_id, version_hash=LIGHT.version_hash, input_json="{}")
        await self._flood.StartExecution(request, metadata=[("nexum-execution-id", execution_id)])

    async def dawdle(self, _: str) -> None:
        journal = self._slow.unary_stream(
            "/nexum.NexumExtensions/Journal", pb.StatusRequest.SerializeToString, pb.StatusResponse.FromString
        )
        async for _part in journal(pb.StatusRequest(execution_id="heavy/")):
            await asyncio.sleep(READ_SECONDS)

    async def run(self) -> None:
        for each in (HEAVY, LIGHT):
            request = pb.WorkflowIR(workflow_id=each.workflow_id, version_hash=each.version_hash, ir_json=each.ir_json)
            await self._stub.RegisterWorkflow(request)
        await self.result("heavy/read")
        await self.start("heavy/waited-for")
        await self.claim(("nexum-lease-ms", "600000"))  # and no more is heard of it
        waiting = [await self._wait(self.channel()) for _ in range(CONNECTIONS)]
        unread = self._ask(self.channel())
        print("ready", flush=True)
        await asyncio.gather(
            *(self._for_ever(f"heavy/{number}", self.result) for number in range(RESULTS_AT_ONCE)),
            self._for_ever("heavy/nested", lambda execution_id: self.start(execution_id, NESTED)),
            *(self._for_ever(f"flood-{number}", self.arrive) for number in range(FLOOD)),
            self._for_ever("", self.dawdle),
        )
        del waiting, unread

    async def _wait(self, channel: grpc.aio.Channel) -> list[object]:
        """Calls that wait, each for its own answer, when the server has them."""
        stub = pb_grpc.NexumServiceStub(channel)
        request = pb.StatusRequest(execution_id="heavy/waited-for")
        calls = [stub.GetStatus(request, metadata=[("nexum-wait-ms", "60000")]) for _ in range(WAITING - 1)]
        await stub.GetStatus(request)  # which comes after them
        return calls

    def _ask(self, channel: grpc.aio.Channel) -> list[object]:
        ask = channel.unary_stream("/nexum.NexumService/GetStatus", pb.StatusRequest.SerializeToString)
        return [ask(pb.StatusRequest(execution_id="heavy/read")) for _ in range(UNREAD)]

    async def _for_ever(self, name: str, do: Callable[[str], Awaitable[None]]) -> None:
        for number in count():
            with suppress(grpc.aio.AioRpcError):
                await do(f"{name}/{number}")


async def main(address: str) -> None:
    await Mix(address).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
