"""Agents to be killed: each run is a process of its own, forked from this one, which has everything imported already.

A line on stdin asks for a run: `{"case": …, "out": a file for its output, "env": {…}}`. When it ends, its exit code is
in the file beside it, `{out}.code`. Every effect of a run, and every request to its models, is a line in the file
LEDGER. With DIE_AT=n the process is killed in the middle of the effect that writes line n.
"""

import asyncio
import gc
import importlib
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    ModelResponse,
    OutputGuardrail,
    RunContextWrapper,
    Runner,
    SQLiteSession,
    ToolOutputImage,
    function_tool,
    handoff,
)
from agents.handoffs import HandoffInputData
from agents.items import TResponseStreamEvent
from agents.mcp import MCPServerStdio
from agents.models.interface import Model
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.tool_context import ToolContext
from openai.types.responses import ResponseOutputItem
from pydantic import BaseModel

from nexum_agents import durable_session, serve
from nexum_agents.sessions import DurableSession
from nexum_runtime import crash

QUESTION = "Where is my money?"
one_at_a_time = threading.Lock()  # sync tools run in threads
Turn = str | Sequence[tuple[str, dict[str, Any]]]  # what the model says, or the tools that it calls


def effect(*what: Any) -> None:
    """Happen, and perhaps die of it."""
    ledger = Path(os.environ["LEDGER"])
    with one_at_a_time:
        with ledger.open("a") as lines:
            lines.write(json.dumps(what) + "\n")
        if len(ledger.read_text().splitlines()) == int(os.environ.get("DIE_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)


class Scripted(Model):
    """Says one thing after the other, each with a word that is new every time it is asked."""

    def __init__(self, name: str, *turns: Turn) -> None:
        self.name, self.turns = name, turns

    def _output(self, input: Any) -> list[ResponseOutputItem]:
        items = [] if isinstance(input, str) else input
        question = input if isinstance(input, str) else next(item["content"] for item in items if "content" in item)
        calls = [item["call_id"].split(":") for item in items if item.get("type") == "function_call"]
        number = len({number for name, number, *_ in calls if name == self.name})
        effect("model", self.name, number)
        word, turn = secrets.token_hex(4), self.turns[number]
        if isinstance(turn, str) and turn.startswith("{"):
            return [assistant_message(turn)]
        if isinstance(turn, str):
            return [assistant_message(f"{turn} {word} {question} ({len(items)} items)", item_id=f"message_{word}")]
        return [
            function_call(name, arguments, call_id=f"{self.name}:{number}:{n}:{word}")
            for n, (name, arguments) in enumerate(turn)
        ]

    async def get_response(self, system_instructions: Any, input: Any, *more: Any, **named: Any) -> ModelResponse:
        once = ScriptedModel([self._output(input)])
        return await once.get_response(system_instructions, input, *more, **named)

    async def stream_response(
        self, system_instructions: Any, input: Any, *more: Any, **named: Any
    ) -> AsyncIterator[TResponseStreamEvent]:
        once = ScriptedModel([self._output(input)])
        async for event in once.stream_response(system_instructions, input, *more, **named):
            yield event


def tool(name: str, result: Any = None, **options: Any) -> Any:
    """A tool with an effect and nothing else."""

    def run() -> Any:
        effect(name)
        return result if result is not None else f"{name} {secrets.token_hex(4)}"

    return function_tool(run, name_override=name, **options)


class Why(BaseModel):
    why: str


class Weather(BaseModel):
    city: str


def mcp_server() -> MCPServerStdio:
    here = Path(__file__).with_name("mcp_ledger_server.py")
    return MCPServerStdio({"command": sys.executable, "args": ["-S", str(here)], "env": dict(os.environ)})


async def office(stack: AsyncExitStack | None) -> Agent[Any]:
    """Hand-offs there and back, parallel tools of all kinds, an MCP server, and an agent tool of an agent tool."""
    server = mcp_server()
    if stack is not None:  # else it is connected by a worker
        await stack.enter_async_context(server)

    @function_tool
    async def deposit(context: ToolContext[Any], amount: int) -> str:
        effect("deposit", amount)
        await asyncio.sleep(0)
        return f"{context.tool_name} {amount} {secrets.token_hex(4)}"

    @function_tool
    def weather(context: RunContextWrapper[Any]) -> Weather:
        effect("weather")
        return Weather(city=secrets.token_hex(4))

    async def extracted(result: Any) -> str:
        return f"extracted: {result.final_output}"

    def filtered(data: HandoffInputData) -> HandoffInputData:
        return data.clone(input_history=f"{data.input_history} (filtered)")

    expert = Agent(name="Expert", model=Scripted("expert", [("measure", {})], "Measured."), tools=[tool("measure")])
    helper = Agent(
        name="Helper",
        model=Scripted("helper", [("look_up", {}), ("ask_expert", {"why": "depth"})], "Helped."),
        tools=[
            tool("look_up"),
            expert.as_tool("ask_expert", "Ask.", parameters=Why, custom_output_extractor=extracted),
        ],
    )
    billing: Agent[Any] = Agent(
        name="Billing",
        model=Scripted("billing", [("refund", {})], [("transfer_to_triage", {})]),
        tools=[tool("refund")],
    )
    triage = Agent(
        name="Triage",
        model=Scripted(
            "triage",
            [("deposit", {"amount": 3}), ("weather", {}), ("picture", {}), ("facts", {})],
            [("append", {"line": "one"}), ("append", {"line": "two"}), ("fail", {})],
            [("ask_helper", {"input": "help"})],
            [("transfer_to_billing", {"why": "money"})],
            "Answered.",
        ),
        tools=[
            deposit,
            weather,
            tool("picture", ToolOutputImage(image_url="https://site.example/picture.png")),
            tool("facts", {"pi": 3.14}),
            helper.as_tool("ask_helper", "Ask."),
        ],
        mcp_servers=[server],
        handoffs=[handoff(billing, on_handoff=lambda context, why: None, input_type=Why, input_filter=filtered)],
    )
    billing.handoffs = [triage]
    return triage


async def guarded(stack: AsyncExitStack | None) -> Agent[Any]:
    """Guardrails that have an effect of their own, such as asking a model."""

    def guard(name: str) -> Callable[..., Any]:
        async def check(context: Any, agent: Any, checked: Any) -> GuardrailFunctionOutput:
            effect(name)
            return GuardrailFunctionOutput(Weather(city=secrets.token_hex(4)), tripwire_triggered=False)

        return check

    return Agent(
        name="Guarded",
        model=Scripted("guarded", [("look_up", {})], "Answered."),
        tools=[tool("look_up")],
        input_guardrails=[InputGuardrail(guard("before"), "before", run_in_parallel=False)],
        output_guardrails=[OutputGuardrail(guard("after"), "after")],
    )


async def sender(stack: AsyncExitStack | None) -> Agent[Any]:
    return Agent(name="Sender", model=Scripted("sender", [("send", {})], "Answered."), tools=[tool("send", "sent")])


async def structured(stack: AsyncExitStack | None) -> Agent[Any]:
    turns: tuple[Turn, ...] = ([("look_up", {})], Weather(city="Paris").model_dump_json())
    model = Scripted("structured", *turns)
    return Agent(name="Structured", model=model, tools=[tool("look_up")], output_type=Weather)


@dataclass
class Case:
    agent: Callable[[AsyncExitStack | None], Any]
    how: str = "run"
    memory: bool = False


CASES = {
    "office": Case(office),
    "office-streamed": Case(office, "run_streamed"),
    "guarded": Case(guarded),
    "sender": Case(sender),
    "memory": Case(sender, memory=True),
    "memory-streamed": Case(sender, "run_streamed", memory=True),
    "sync": Case(sender, "run_sync"),
    "structured": Case(structured),
}


def session() -> DurableSession:
    return durable_session(os.environ["SESSION_ID"], effects={"send": "once"} if "ONCE" in os.environ else None)


async def run(case: Case) -> None:
    async with AsyncExitStack() as stack:
        agent = await case.agent(stack)
        memory = SQLiteSession("user-1", os.environ["MEMORY"]) if case.memory else None
        question = os.environ.get("QUESTION", QUESTION)
        with session():
            if case.how == "run_streamed":
                streamed = Runner.run_streamed(agent, question, session=memory)
                kinds = [event.type async for event in streamed.stream_events()]
                print("events:", len(kinds))
                tell(streamed)
            else:
                tell(await Runner.run(agent, question, session=memory))


def tell(result: Any) -> None:
    for item in result.to_input_list():
        print(json.dumps(item))
    for found in [*result.input_guardrail_results, *result.output_guardrail_results]:
        print(found.output)
    print("answer:", result.final_output)


def work(case: Case) -> None:
    """Be a worker that serves the agent, for its session alone."""
    agent: Agent[Any] = asyncio.run(case.agent(None))
    memory = (lambda _: SQLiteSession("user-1", os.environ["MEMORY"])) if case.memory else None
    serve(agents=[agent], version=os.environ["SESSION_ID"], memory=memory)


def main(case: Case) -> None:
    if "WORKS" in os.environ:
        work(case)
    elif case.how == "run_sync":
        agent: Agent[Any] = asyncio.run(case.agent(AsyncExitStack()))
        with session():
            tell(Runner.run_sync(agent, QUESTION))
    else:
        asyncio.run(run(case))


def fork(request: Any) -> bool:
    """Whether this is the process that runs the case."""
    if os.fork():
        return False
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        code = Path(f"{request['out']}.new")
        code.write_text(str(os.waitstatus_to_exitcode(status)))
        code.rename(f"{request['out']}.code")
        os._exit(0)
    Path(f"{request['out']}.pid").write_text(str(os.getpid()))
    os.environ.update(request["env"])
    importlib.reload(crash)
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        os.dup2(os.open(request["out"] if number else os.devnull, flags, 0o600), number)
    os.dup2(1, 2)
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.freeze()  # what is imported is the same in all of them
    for line in sys.stdin:
        if fork(request := json.loads(line)):
            main(CASES[request["case"]])
            if request["case"] != "sync":  # which is about its end, too; taking all that was imported down takes long
                sys.stdout.flush()
                os._exit(0)
            break
