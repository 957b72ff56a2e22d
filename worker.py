"""Execute the tool calls that agents submit to Nexum.

    python worker.py [--concurrency 8] [--offline]

Start as many as you like, kill them when you like: a call whose worker dies is handed to another within seconds.
"""

import argparse
import asyncio
import functools
import inspect
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from nexum.context import ContextView
from pydantic import ValidationError, validate_call
from pydantic_core import PydanticSerializationError, to_json

import tools
from nexum_runtime import NexumError, Worker, tracing, wire
from nexum_runtime.logs import log_to_stderr
from nexum_runtime.signals import stop_requested
from nexum_runtime.text import error_line, redact, shorten
from nexum_runtime.worker import DRAIN_SECONDS
from nexum_runtime.worker.attempt import run_in_thread
from workflow import ToolCall, ToolError, ToolResult, approved_tool_call_workflow, tool_call_workflow

LOGGED_CHARS = 120  # of a call's arguments

log = logging.getLogger("worker")


@functools.cache  # it takes longer than the check itself
def _checked(tool: Callable[..., Any]) -> Callable[..., Any]:
    return validate_call(tool)


async def run_tool(context: ContextView) -> ToolResult:
    """Run one tool call, an async tool on the event loop, a sync one in a thread, and return what to record."""
    call = ToolCall.model_validate(context.input)
    tracing.annotate(tool=call.tool_name)
    tool: Callable[..., Any] | None = tools.TOOLS.get(call.tool_name)
    if tool is None:
        known = ", ".join(tools.TOOLS)
        error = f"This worker knows no tool {call.tool_name!r}; it knows {known}. If it is new, restart worker.py."
        log.warning("%s", error)
        raise ToolError(error, retryable=False, begun=False)
    checked = _checked(tool)  # the arguments come back from JSON as what the tool's signature says
    log.info("%s %s", call.tool_name, shorten(redact(wire.canonical_json(call.tool_args)), LOGGED_CHARS))
    started = time.monotonic()
    try:
        if inspect.iscoroutinefunction(tool):
            result = await checked(**call.tool_args)
        else:
            result = await run_in_thread(lambda: checked(**call.tool_args))
        text = result if isinstance(result, str) else to_json(result).decode()
    except Exception as error:
        log.warning("%s failed: %s", call.tool_name, error)
        if isinstance(error, ValidationError) and error.title == tool.__name__:
            reason = f"The arguments of {call.tool_name} do not fit: {error}"
            raise ToolError(reason, retryable=False, begun=False) from error
        if isinstance(error, PydanticSerializationError):  # it has run; running it again would end the same
            reason = f"{call.tool_name} returned what JSON cannot carry: {error}"
            raise ToolError(reason, retryable=False, unknown=True) from error
        raise
    duration_ms = round((time.monotonic() - started) * 1000)
    more = {"tool": call.tool_name, "duration_ms": duration_ms}
    log.info("%s done in %d ms", call.tool_name, duration_ms, extra=more)
    return ToolResult(result=text, duration_ms=duration_ms)


async def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the tool calls that agents submit to Nexum.")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="calls at once (default 8)")
    parser.add_argument("--offline", action="store_true", help="never use the network: only the offline web")
    parser.add_argument("--log-json", action="store_true", help="log JSON, an object a line")
    arguments = parser.parse_args()
    if arguments.concurrency < 1:
        parser.error("--concurrency must be at least 1")
    log_to_stderr("%(asctime)s  %(message)s", "%H:%M:%S", as_json=arguments.log_json)
    for name in ("worker", "nexum.worker"):
        logging.getLogger(name).setLevel(logging.INFO)
    if arguments.offline:
        try:
            import webpage
        except ModuleNotFoundError:
            parser.error("--offline is for the tools of the example, which reach the web through webpage.py")
        webpage.go_offline()
    try:
        host, port = wire.split_address(os.environ.get("NEXUM_ADDRESS", wire.DEFAULT_ADDRESS))
        workflows = [tool_call_workflow(run_tool), approved_tool_call_workflow(run_tool)]
        worker = Worker(workflows, concurrency=arguments.concurrency, host=host, port=port)
        mode = "the offline web only" if arguments.offline else "the web"
        log.info(
            "Worker for %s, on %s, %d at once. Ctrl-C stops it.", ", ".join(tools.TOOLS), mode, arguments.concurrency
        )
        working = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(stop_requested())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            log.info("Stopping; running tools have %d s to finish. Ctrl-C again stops at once.", DRAIN_SECONDS)
        worker.stop()
        await working
    except NexumError as error:
        raise SystemExit(error_line(error)) from None


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
