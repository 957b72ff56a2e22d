"""Submit one tool call to Nexum, with no agent, and print its result.

    python submit_task.py web_search '{"query": "durable execution"}' --session s1

This is what a `durable_tool` does with each call of an agent. worker.py executes it, the server records what came of
it, and the same command again prints that at once: `cached ⚡` on stderr, instead of `stored ✓`.
"""

from offline import ctrl_c

if __name__ == "__main__":
    ctrl_c.listen()  # from the first moment on

import argparse
import asyncio
import json
import secrets
import sys
from functools import partial
from typing import Any

from nexum_agents import DurableCallError, ToolFailed, durable_session, print_events, submit_tool_call
from offline import screen


async def submit(tool_name: str, tool_args: dict[str, Any], session_id: str, effect: Any, needs_approval: bool) -> Any:
    """The result of one call. Its session, the tool and the arguments say which call it is, so it is made once."""
    with durable_session(session_id, on_event=partial(print_events, stderr=True)):
        return await submit_tool_call(tool_name, tool_args, session_id, effect=effect, needs_approval=needs_approval)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Submit one tool call to Nexum, and print its result.")
    parser.add_argument("tool", help="the tool's name, as worker.py has it: web_search, visit_webpage, save_report")
    parser.add_argument("arguments", nargs="?", default="{}", help='as JSON: \'{"query": "durable execution"}\'')
    parser.add_argument("--session", default="", metavar="ID", help="default: a new one")
    parser.add_argument("--effect", choices=("read", "idempotent", "once"), default="idempotent")
    parser.add_argument("--needs-approval", action="store_true", help="wait for a person's yes first: nexum approve")
    arguments = parser.parse_args()
    try:
        arguments.arguments = json.loads(arguments.arguments)
        json.dumps(arguments.arguments, allow_nan=False)
    except (ValueError, RecursionError) as error:
        parser.error(f"the arguments are no JSON ({error}): {arguments.arguments}")
    if not isinstance(arguments.arguments, dict):
        parser.error(f"the arguments must be a JSON object, by name: {json.dumps(arguments.arguments)}")
    arguments.session = arguments.session or f"call-{secrets.token_hex(3)}"
    if not screen.is_session_id(arguments.session):
        parser.error(f"--session is {arguments.session!r}; it must be 1 to 64 characters of A-Za-z0-9._-")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    ctrl_c.says(f"Interrupted. For its result ask again with --session {arguments.session}")
    try:
        result = asyncio.run(
            submit(arguments.tool, arguments.arguments, arguments.session, arguments.effect, arguments.needs_approval)
        )
    except (DurableCallError, ToolFailed) as error:
        sys.exit(str(error))
    print(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str))


if __name__ == "__main__":
    main()
