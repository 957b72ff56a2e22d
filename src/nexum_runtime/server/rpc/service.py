"""The two gRPC services: which method does what, with which messages."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import grpc

from nexum_runtime import wire
from nexum_runtime.server.methods.methods import Call, Methods
from nexum_runtime.server.methods.orders import Fields
from nexum_runtime.server.rpc.client_calls import ClientCalls
from nexum_runtime.server.rpc.messages import streaming
from nexum_runtime.server.rpc.peers import Registrations, Waiting
from nexum_runtime.server.rpc.traffic import Traffic
from nexum_runtime.server.rpc.worker_calls import WorkerCalls
from nexum_runtime.wire.methods import EXTENSIONS, STOCK, STREAMS, Types


class Services:
    """`nexum.NexumService`, as nexum-py 0.2.0 has it, and `nexum.NexumExtensions`, made of the same messages."""

    def __init__(self, methods: Methods, waiting: Waiting, traffic: Traffic) -> None:
        self._methods = methods
        self._waiting = waiting
        self._traffic = traffic
        self._registrations = Registrations(methods.engine)
        self._client_calls = ClientCalls(methods.engine, waiting, traffic)
        self._worker_calls = WorkerCalls(methods.engine, waiting, self._registrations)

    async def RegisterWorkflow(self, request: Any, call: Call) -> Fields:
        told = await self._methods.RegisterWorkflow(request, call)
        self._registrations.add(call.peer, request.workflow_id, request.version_hash)
        return told

    async def PollTask(self, request: Any, call: Call) -> Fields:
        if wire.WORKFLOW_ID not in call.metadata:
            call.workflow_ids = await self._registrations.served(call.peer, request.version_hash)
        return await self._methods.PollTask(request, call)

    def _place_of(self, name: str) -> Any:
        """What a call of this method takes up while it is held."""
        always = name in ("Execute", "Attend", "Follow")

        def place(request: Any, call: Call) -> AbstractContextManager[None]:
            waits = always or call.metadata.get(wire.WAIT_MS, "0") != "0"
            return self._waiting.place(call.peer, request) if waits else nullcontext()

        return place if always or name in ("GetStatus", "PollTask") else None

    def handlers(self) -> tuple[Any, Any]:
        own = {
            "RegisterWorkflow": self.RegisterWorkflow,
            "PollTask": self.PollTask,
            "Execute": self._client_calls.Execute,
        }

        def method(name: str) -> Any:
            return own.get(name) or getattr(self._methods, name)

        def unary(name: str, types: Types) -> Any:
            return self._traffic.unary(name, method(name), types, self._place_of(name))

        stock = {name: unary(name, types) for name, types in STOCK.items()}
        extensions = {name: unary(name, types) for name, types in EXTENSIONS.items()}
        extensions |= {name: streaming(method(name), types, self._place_of(name)) for name, types in STREAMS.items()}
        # In bytes: see `batches` and `calls`.
        extensions["StreamTasks"] = grpc.stream_stream_rpc_method_handler(self._worker_calls.StreamTasks)
        extensions["StreamCalls"] = grpc.stream_stream_rpc_method_handler(self._client_calls.StreamCalls)
        return (
            grpc.method_handlers_generic_handler(wire.SERVICE, stock),
            grpc.method_handlers_generic_handler(wire.EXTENSIONS, extensions),
        )
