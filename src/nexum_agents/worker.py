"""A worker for the tools of agents: executes what `durable_tool`s submit."""

import asyncio
import inspect
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agents import Agent, FunctionTool
from agents.exceptions import ModelBehaviorError
from agents.function_schema import FuncSchema, function_schema
from agents.mcp import MCPServer, MCPServerManager
from agents.tool_context import ToolContext
from pydantic import ValidationError

from nexum_agents import seams
from nexum_agents.consent import APPROVED, Yes, words_of
from nexum_agents.errors import DurableCallError, ToolError
from nexum_agents.runs import reachable
from nexum_agents.starting import Memory, workflows_of
from nexum_agents.tools import Submitter, plain_tool
from nexum_agents.values import returns_of, to_value
from nexum_agents.workflows import (
    APPROVAL_NODE,
    Recorded,
    ToolCall,
    approved_tool_call_workflow,
    tool_call_workflow,
)
from nexum_runtime import NexumError, tracing, wire
from nexum_runtime import Worker as RuntimeWorker
from nexum_runtime.engines import near
from nexum_runtime.logs import Log, log_to_stderr
from nexum_runtime.signals import stop_requested
from nexum_runtime.text import error_line, error_text, redact, shorten
from nexum_runtime.worker import DRAIN_SECONDS
from nexum_runtime.worker.attempt import run_in_thread

if TYPE_CHECKING:
    from nexum.context import ContextView

LOGGED_CHARS = 120  # of a call's arguments
CONCURRENCY = 8
CONNECT_SECONDS = 10.0  # that an MCP server has to answer
INTERRUPTED = 130  # the exit code after Ctrl-C

log = Log("worker")


class Worker:
    """A worker that executes the calls of these tools: functions, `function_tool`s or `durable_tool`s.

    `agents` are those whose runs it executes: see `start_run`; with a `version` of theirs also the runs that are pinned
    to it. `memory` makes the SDK's session of a run, from the `session_id` that it was started with:
    `lambda session_id: SQLiteSession(session_id, "chats.db")`. `workflows` are workflows of your own that it executes
    as well, as nexum-py's `workflow(…).build()` returns them. `concurrency` is how many calls run at once, and beside
    them how many runs of agents; `address` where the server is, by default NEXUM_ADDRESS, or else the engine that is
    nearest.
    Raises ValueError for nothing to serve, for two tools, or two agents, of one name, and for a `version` or `memory`
    without agents, TypeError for a tool that takes the run context and a `memory` that is no function, and
    DurableCallError for an agent that cannot be recorded and a bad `version`.
    """

    def __init__(
        self,
        tools: Iterable[Callable[..., Any] | FunctionTool] = (),
        *,
        agents: Iterable[Agent[Any]] = (),
        version: str = "",
        memory: Memory | None = None,
        workflows: Iterable[Any] = (),
        concurrency: int = CONCURRENCY,
        address: str | None = None,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be at least 1.")
        self._tools: dict[str, _Tool] = {}
        for given in tools:
            tool = _Tool(given)
            if tool.name in self._tools:
                raise ValueError(
                    f"Two tools are called {tool.name!r}: a worker could not tell whose a call is. Rename one."
                )
            self._tools[tool.name] = tool
        agents = list(agents)
        self.agent_names, self.version = [agent.name for agent in agents], version
        if not agents and (version or memory is not None):
            raise ValueError("version and memory are of agents, and this worker serves none.")
        if memory is not None and not callable(memory):
            raise TypeError("memory must be a function that makes the SDK's session from a session_id.")
        seen: set[int] = set()
        everyone = [each for agent in agents for each in reachable(agent, seen)]
        # Agents may share one, which is connected once.
        self.mcp_servers = list(
            dict.fromkeys(server for each in everyone for server in getattr(each, "mcp_servers", ()))
        )
        workflows = list(workflows)
        if self._tools:  # else it would take calls of tools that it has not, from the workers that have them
            workflows += [tool_call_workflow(self._run), approved_tool_call_workflow(self._run_approved)]
        # A run waits for calls of its tools, perhaps by this very worker: it has no place of theirs.
        jobs = [each for each in (workflows, workflows_of(agents, version, memory)) if each]
        if not jobs:
            raise ValueError("A worker needs tools, agents or workflows to serve.")
        self._workers = [
            RuntimeWorker(each, concurrency=concurrency, open_client=lambda: near(address)) for each in jobs
        ]

    @property
    def tool_names(self) -> list[str]:
        return list(self._tools)

    async def run(self) -> None:
        """Work until `stop()`, then let what runs finish for a while, and hand the rest back."""
        running = [asyncio.create_task(worker.run()) for worker in self._workers]
        try:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            await asyncio.gather(*running)
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def stop(self) -> None:
        """Take nothing new, and end `run()`."""
        for worker in self._workers:
            worker.stop()

    async def _run(self, context: "ContextView") -> Recorded:
        return await self._execute(context, {})

    async def _run_approved(self, context: "ContextView") -> Recorded:
        return await self._execute(context, context.get(APPROVAL_NODE))

    async def _execute(self, context: "ContextView", yes: Yes) -> Recorded:
        call = ToolCall.model_validate(context.input)
        tracing.annotate(tool=call.tool_name)
        tool = self._tools.get(call.tool_name)
        if tool is None:
            known = ", ".join(self._tools)
            error = f"This worker knows no tool {call.tool_name!r}; it knows {known}. If it is new, restart the worker."
            log.warning("%s", error)
            raise ToolError(error, retryable=False, begun=False)
        args: dict[str, Any] | str = yes.get("args", call.tool_args)
        asked = args if isinstance(args, str) else wire.canonical_json(args)
        log.info("%s %s", tool.name, shorten(redact(asked), LOGGED_CHARS))
        started = time.monotonic()
        try:
            result = await tool.call(args)
        except Exception as error:
            log.warning("%s failed: %s", tool.name, error)
            raise
        duration_ms = round((time.monotonic() - started) * 1000)
        value = to_value(result, tool.returns)
        log.info("%s done in %d ms", tool.name, duration_ms, extra={"tool": tool.name, "duration_ms": duration_ms})
        note = {APPROVED: words} if (words := words_of(yes)) else {}
        return Recorded(result=value.recorded, form=value.form, duration_ms=duration_ms, note=note)


class _Tool:
    """A tool as a worker executes it: as `function_tool` would, but a sync function in a thread of its own."""

    def __init__(self, given: Callable[..., Any] | FunctionTool) -> None:
        submitter = getattr(given, "on_invoke_tool", None)
        given = submitter.tool if isinstance(submitter, Submitter) else plain_tool(given, {})
        self.name = given.name
        function = getattr(given, "__wrapped__", None)
        self.returns = returns_of(function)
        self._tool = seams.raising(given)
        self._function: Any = function if function is None or inspect.isroutine(function) else function.__call__
        self._schema: FuncSchema | None = None
        if self._function is not None:  # else it was not made by function_tool, and is executed as the SDK would
            self._schema = function_schema(self._function, use_docstring_info=False, strict_json_schema=False)

    async def call(self, asked: dict[str, Any] | str) -> Any:
        """Raises what the tool raises, and ToolError for arguments that do not fit."""
        if self._schema is None:
            text = asked if isinstance(asked, str) else json.dumps(asked)
            context = ToolContext(context=None, tool_name=self.name, tool_call_id="", tool_arguments=text)
            try:
                return await self._tool.on_invoke_tool(context, text)
            except ModelBehaviorError as error:
                raise self._do_not_fit(error) from error
        args, named = self._arguments(self._schema, asked)
        function = self._function
        if inspect.iscoroutinefunction(function):
            return await function(*args, **named)
        return await run_in_thread(lambda: function(*args, **named))

    def _arguments(self, schema: FuncSchema, asked: dict[str, Any] | str) -> tuple[list[Any], dict[str, Any]]:
        try:
            given = json.loads(asked or "{}") if isinstance(asked, str) else asked
            if not isinstance(given, dict):
                raise ValueError("they are not a JSON object")
            return schema.to_call_args(schema.params_pydantic_model(**given))
        except (ValueError, RecursionError) as error:  # pydantic's errors are ValueErrors
            raise self._do_not_fit(error) from error

    def _do_not_fit(self, error: Exception) -> ToolError:
        return ToolError(f"The arguments of {self.name} do not fit: {_words_of(error)}", retryable=False, begun=False)


def _words_of(error: Exception) -> str:
    """What does not fit, for the model: pydantic's own text has the addresses of its website in it."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found)


def serve(
    tools: Iterable[Callable[..., Any] | FunctionTool] = (),
    *,
    agents: Iterable[Agent[Any]] = (),
    version: str = "",
    memory: Memory | None = None,
    workflows: Iterable[Any] = (),
    concurrency: int = CONCURRENCY,
    log_json: bool = False,
) -> None:
    """Execute the calls of these tools, and the runs of these agents, until Ctrl-C or SIGTERM. A worker's script ends
    with it.

        serve(tools=[web_search, visit_webpage], agents=[researcher])

    Start as many as you like, kill them when you like: a call whose worker dies is handed to another within seconds.
    `version`, `memory` and `workflows` are as `Worker` takes them. The agents' MCP servers are connected first.
    NEXUM_ADDRESS says where the server is; one that is away is waited for. Logs to stderr, with `log_json` an object a
    line. Ends the process with exit code 130 after Ctrl-C, and with a sentence for what `Worker` refuses, for an MCP
    server that cannot be connected, and when the server refuses a workflow.
    """
    log_to_stderr("%(asctime)s  %(message)s", "%H:%M:%S", as_json=log_json)
    for name in ("worker", "nexum.worker", "nexum_agents"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        worker = Worker(
            tools, agents=agents, version=version, memory=memory, workflows=workflows, concurrency=concurrency
        )
        signaled = asyncio.run(_serve(worker, concurrency))
    except (DurableCallError, NexumError, ValueError, TypeError) as error:
        raise SystemExit(error_line(error)) from None
    except KeyboardInterrupt:
        signaled = signal.SIGINT
    if signaled == signal.SIGINT:
        raise SystemExit(INTERRUPTED)


async def _serve(worker: Worker, concurrency: int) -> int:
    """Returns the signal that it was stopped by, or 0."""
    version = f" {worker.version}" if worker.version else ""
    served = ", ".join([*worker.tool_names, *(f"agent {name}{version}" for name in worker.agent_names)])
    log.info("Worker for %s, %d at once. Ctrl-C stops it.", served, concurrency)
    stopping = asyncio.create_task(stop_requested())
    async with _connected(worker.mcp_servers, stopping):
        working = asyncio.create_task(worker.run())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            log.info("Stopping; running tools have %d s to finish. Ctrl-C again stops at once.", DRAIN_SECONDS)
        signaled = stopping.result() if stopping.done() else 0
        stopping.cancel()
        worker.stop()
        await working
    return signaled


@asynccontextmanager
async def _connected(servers: list[MCPServer], stopping: asyncio.Task[int]) -> AsyncIterator[None]:
    """Raises DurableCallError for one that cannot be connected. Once `stopping` is done, none is waited for."""
    manager = MCPServerManager(servers, connect_timeout_seconds=CONNECT_SECONDS, connect_in_parallel=True)
    connecting = asyncio.create_task(manager.connect_all())
    try:
        await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if connecting.done():
            await connecting
        for server, error in manager.errors.items():
            late = f"no answer within {CONNECT_SECONDS:g} s. Start it, and this worker again."
            why = late if isinstance(error, TimeoutError) else error_text(error)
            raise DurableCallError(f"Cannot connect to the MCP server {server.name!r}: {why}")
        yield
    finally:
        connecting.cancel()
        await asyncio.wait({connecting})
        await manager.cleanup_all()
