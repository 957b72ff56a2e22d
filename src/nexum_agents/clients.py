"""The client of each event loop, for as long as the loop lasts.

A client belongs to one event loop, and no caller knows whether its call is the last one. So a client is closed with its
loop. `shutdown_asyncgens()` does it: `asyncio.run` and its like call that when all tasks have ended, and the SDK's
`Runner.run_sync` at the end of each run, on a loop that it leaves open. A loop that is closed without it does it then.
"""

import asyncio
import sys
import threading
import warnings
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress

from agents import get_current_span, get_current_trace

from nexum_runtime import Client
from nexum_runtime.engines import Use, near

_clients: dict[asyncio.AbstractEventLoop, dict[Use, Client]] = {}  # until their loops end


def nexum_client(use: Use = Use.WORK) -> Client:
    """The client of the running event loop: of the server at NEXUM_ADDRESS, or else of the engine that is nearest.

    The settings are those of the call that makes it, the first one of a loop. Who only looks takes no database.
    Raises InvalidRequest for what is not an address, or no database, and ForkedWhileConnected.
    """
    loop = asyncio.get_running_loop()
    client = _clients.get(loop, {}).get(use)
    if client is None:
        client = near(use=use, span_attributes=_sdk_ids)
        if loop not in _clients:
            _clients[loop] = {}
            _close_with(loop)
        _clients[loop][use] = client
    return client


def _close_with(loop: asyncio.AbstractEventLoop) -> None:
    end = _until_the_end(loop)
    with ExitStack() as quietly:
        if getattr(loop, "_asyncgens_shutdown_called", True):  # by `run_sync`: asyncio warns of what comes later
            quietly.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", ResourceWarning)
        with suppress(StopIteration):
            anext(end).send(None)  # from here on the loop knows it
    close_loop = loop.close

    def close() -> None:
        try:
            if not (loop.is_running() or loop.is_closed()):
                _run(loop, end)
        finally:
            close_loop()

    vars(loop)["close"] = close


async def _until_the_end(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        vars(loop).pop("close", None)
        for client in _clients.pop(loop).values():
            await client.close()
        if "grpc" in sys.modules:
            from nexum_runtime.client.connection import calls_ended

            await calls_ended()


def _run(loop: asyncio.AbstractEventLoop, end: AsyncGenerator[None, None]) -> None:
    def run() -> None:
        loop.run_until_complete(end.aclose())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        run()
    else:  # another loop runs in this thread, where no second one can
        thread = threading.Thread(target=run, name="nexum-close")
        thread.start()
        thread.join()


def _sdk_ids() -> dict[str, str]:
    """Where the SDK's own traces have what runs now."""
    trace, span = get_current_trace(), get_current_span()
    ids = {"trace_id": trace.trace_id if trace else "", "span_id": span.span_id if span else ""}
    return {f"openai_agents.{name}": id for name, id in ids.items() if id not in ("", "no-op")}
