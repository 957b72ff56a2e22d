"""The client of the Nexum server that this process uses, one for each event loop."""

import asyncio
import os
from weakref import WeakKeyDictionary

from agents import get_current_span, get_current_trace

from nexum_runtime import Client
from nexum_runtime.wire import DEFAULT_ADDRESS

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, Client] = WeakKeyDictionary()


def nexum_client() -> Client:
    """The client of this event loop; NEXUM_ADDRESS says where the server is."""
    loop = asyncio.get_running_loop()
    if loop not in _clients:
        _clients[loop] = Client(os.environ.get("NEXUM_ADDRESS", DEFAULT_ADDRESS), span_attributes=_sdk_ids)
    return _clients[loop]


def _sdk_ids() -> dict[str, str]:
    """Where the SDK's own traces have what runs now."""
    trace, span = get_current_trace(), get_current_span()
    ids = {"trace_id": trace.trace_id if trace else "", "span_id": span.span_id if span else ""}
    return {f"openai_agents.{name}": id for name, id in ids.items() if id not in ("", "no-op")}
