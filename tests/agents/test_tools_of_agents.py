"""Tools that an agent's own process executes: of every kind, they are executed once, and a replay tells the same."""

import asyncio
import copy
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from agents import (
    Agent,
    ApplyPatchTool,
    Computer,
    ComputerTool,
    CustomTool,
    FunctionTool,
    GuardrailFunctionOutput,
    Handoff,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    LocalShellTool,
    Model,
    ModelProvider,
    ModelSettings,
    ProgrammaticToolCallingTool,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    Runner,
    ShellCallOutcome,
    ShellCommandOutput,
    ShellResult,
    ShellTool,
    SQLiteSession,
    Tool,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    ToolOutputGuardrail,
    ToolOutputImage,
    ToolOutputText,
    UserError,
    WebSearchTool,
    function_tool,
)
from agents.editor import ApplyPatchResult
from agents.mcp import MCPServer
from agents.testing import ModelCall, ScriptedModel, assistant_message, function_call
from agents.tool_context import ToolContext
from mcp.types import CallToolResult, TextContent
from mcp.types import Tool as MCPTool
from other_calls import computer_call, custom_call, local_shell_call, patch_call, shell_call
from pydantic import BaseModel

from nexum_agents import durable_session, durable_step
from nexum_agents.clients import nexum_client

happened: list[Any] = []
_ids = itertools.count()


@pytest.fixture
async def nexum(address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setenv("NEXUM_ADDRESS", address)
    happened.clear()
    yield
    await nexum_client().close()


pytestmark = pytest.mark.usefixtures("nexum")


def calls(*named: tuple[str, dict[str, Any]]) -> list[Any]:
    return [function_call(name, arguments, call_id=f"call_{next(_ids)}") for name, arguments in named]


def says(text: str) -> list[Any]:
    return [assistant_message(text, item_id=f"message_{next(_ids)}")]


def agent_with(*tools: Any, turns: list[Any] | None = None, **options: Any) -> Agent[Any]:
    """An agent that calls each of its tools once, all in one turn."""
    turns = turns or [calls(*((tool.name, {}) for tool in tools)), says("done")]
    return Agent(name="Agent", model=ScriptedModel(turns), tools=list(tools), **options)


async def run(agent: Agent[Any], session_id: str = "s", **options: Any) -> Any:
    with durable_session(session_id):
        return await Runner.run(agent, "go", **options)


async def run_twice(agent: Agent[Any], **options: Any) -> Any:
    """The result of two runs of one session, after which the model, which knows no more, has not been asked again."""
    first = await run(agent, **options)
    effects = list(happened)
    second = await run(agent, **options)
    assert second.to_input_list() == first.to_input_list()
    assert second.final_output == first.final_output
    assert happened == effects, "nothing happens again"
    return second


def outputs(result: Any) -> list[Any]:
    """What the model was told of the calls of a run, of whatever kind."""
    return [item["output"] for item in result.to_input_list() if str(item.get("type")).endswith("_output")]


# Function tools


class Weather(BaseModel):
    city: str


def returns(value: Any, **options: Any) -> FunctionTool:
    def give(context: RunContextWrapper[Any]) -> Any:
        happened.append("give")
        return value

    return function_tool(give, **options)


def breaks(**options: Any) -> FunctionTool:
    async def give(context: ToolContext[Any]) -> Any:
        happened.append(context.tool_name)
        raise ValueError("It is broken.")

    return function_tool(give, **options)


def hangs(**options: Any) -> FunctionTool:
    async def give() -> Any:
        happened.append("give")
        await asyncio.Event().wait()

    return function_tool(give, timeout=0.01, **options)


def handmade() -> FunctionTool:
    async def invoke(context: RunContextWrapper[Any], arguments: str) -> str:
        happened.append(type(context).__name__)
        return f"{type(context).__name__} {arguments}"

    return FunctionTool("give", "Give.", {"type": "object", "properties": {}}, invoke, strict_json_schema=False)


def guarded_tool(name: str) -> FunctionTool:
    """A tool with a guardrail before it, or after it, that turns down what is asked, or what is returned."""

    def check(data: Any) -> ToolGuardrailFunctionOutput:
        happened.append("check")
        return ToolGuardrailFunctionOutput.reject_content("Turned down.", output_info=Weather(city="Rome"))

    guardrail: Any = ToolInputGuardrail if name == "tool_input_guardrails" else ToolOutputGuardrail
    options: dict[str, Any] = {name: [guardrail(check)]}
    return dataclasses.replace(returns("secret"), **options)


async def _no() -> bool:
    return False


@pytest.mark.parametrize(
    "make",
    [
        lambda: returns(Weather(city="Rome")),
        lambda: returns(ToolOutputText(text="text")),
        lambda: returns([ToolOutputText(text="text"), ToolOutputImage(image_url="https://site.example/i.png")]),
        lambda: returns({"type": "text", "text": "text"}),
        lambda: returns((ToolOutputText(text="text"), ToolOutputImage(image_url="https://site.example/i.png"))),
        lambda: returns(({"type": "text", "text": "text"},)),
        lambda: returns((ToolOutputText(text="text"), 1)),
        lambda: returns(()),
        lambda: breaks(),
        lambda: breaks(failure_error_function=lambda context, error: f"Told: {error}"),
        lambda: hangs(),
        lambda: hangs(timeout_error_function=lambda context, error: f"Told: {error}"),
        lambda: handmade(),
        lambda: guarded_tool("tool_input_guardrails"),
        lambda: guarded_tool("tool_output_guardrails"),
        lambda: dataclasses.replace(returns("hidden"), is_enabled=True, needs_approval=lambda *_: _no()),
    ],
)
async def test_a_recorded_tool_tells_the_model_what_it_tells_without_a_session(make: Callable[[], Any]) -> None:
    turns = [calls(("give", {})), says("done")]
    plain = await Runner.run(agent_with(make(), turns=turns), "go")
    effects = list(happened)
    happened.clear()
    durable = await run_twice(agent_with(make(), turns=turns))
    assert durable.to_input_list() == plain.to_input_list()
    assert happened == effects


@pytest.mark.parametrize(
    ("tool", "error"),
    [
        (lambda: breaks(failure_error_function=None), UserError),
        (lambda: hangs(timeout_behavior="raise_exception"), Exception),
    ],
)
async def test_a_tool_whose_error_ends_the_run_is_called_again_by_the_next(
    tool: Callable[[], FunctionTool], error: type[Exception]
) -> None:
    agent = agent_with(tool())
    for tries in (1, 2):
        with pytest.raises(error):
            await run(agent)
        assert happened == ["give"] * tries


async def test_a_tool_that_is_not_enabled_is_not_on_offer() -> None:
    agent = agent_with(dataclasses.replace(returns("x"), is_enabled=lambda context, agent: False), turns=[says("done")])
    await run_twice(agent)
    assert asked(agent).tools == []


def asked(agent: Agent[Any]) -> ModelCall:
    assert isinstance(agent.model, ScriptedModel)
    call = agent.model.last_call
    assert call
    return call


async def test_two_sessions_of_one_agent_at_once_share_nothing() -> None:
    rolls = iter(range(100))

    @function_tool
    async def roll() -> int:
        await asyncio.sleep(0)
        return next(rolls)

    turns = [calls(("roll", {})), says("done")]
    agent = agent_with(roll, turns=[turns[0], turns[0], turns[1], turns[1]])

    async def both() -> list[Any]:
        return [outputs(each) for each in await asyncio.gather(run(agent, "one"), run(agent, "other"))]

    first = await both()
    assert sorted(first) == [["0"], ["1"]]
    assert await both() == first


class Shape(BaseModel):
    sides: int


@dataclasses.dataclass
class Drawn:
    sides: int


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Shape, Shape(sides=4)),
        (Drawn, Drawn(4)),
    ],
)
async def test_a_tool_with_an_output_schema_is_recorded_and_returns_what_fits_it_in_every_run(
    annotation: Any, value: Any
) -> None:
    def draw() -> Any:
        happened.append("draw")
        return value

    draw.__annotations__["return"] = annotation

    def agent() -> Agent[Any]:
        return agent_with(function_tool(draw, output_type=annotation), turns=[[call], says("done")])

    (call,) = calls(("draw", {}))
    plain = await Runner.run(agent(), "go")
    happened.clear()
    result = await run_twice(agent())
    assert outputs(result) == outputs(plain)
    assert result.new_items[1].output == plain.new_items[1].output
    assert happened == ["draw"]


# The SDK's other tools


def does(name: str, result: Any) -> Callable[..., Any]:
    """A function that happens, and returns its result, or raises it."""

    def do(*_: Any) -> Any:
        happened.append(name)
        if isinstance(result, Exception):
            raise result
        return result

    return do


def awaits(name: str, result: Any) -> Callable[..., Any]:
    """The same as an async function."""
    do = does(name, result)

    async def wait(*_: Any) -> Any:
        return do()

    return wait


class Editor:
    def __init__(self, result: Any) -> None:
        self.create_file, self.update_file = does("create", result), awaits("update", result)
        self.delete_file = does("delete", result)


class Screen(Computer):
    """A computer that shows what it is given, or raises it."""

    environment, dimensions = "browser", (800, 600)

    def __init__(self, picture: Any) -> None:
        self._look = does("screenshot", picture)

    def screenshot(self) -> str:
        return str(self._look())

    def click(self, x: int, y: int, button: Any) -> None:
        happened.append("click")

    double_click = scroll = type = wait = move = keypress = drag = does("never", None)


def shell_of(result: Any) -> Any:
    return ShellTool(executor=awaits("shell", result))


def local_shell_of(result: Any) -> Any:
    return LocalShellTool(executor=does("local_shell", result))


def custom_of(result: Any) -> Any:
    return CustomTool(name="own", description="Own.", on_invoke_tool=awaits("own", result))


SHELL_RESULT = ShellResult(
    [
        ShellCommandOutput(stdout="one\n", outcome=ShellCallOutcome("exit", 0), command="ls"),
        ShellCommandOutput(stderr="two\n", outcome=ShellCallOutcome("timeout"), command="cat"),
    ],
    max_output_length=100,
)
CLICK, LOOK = {"type": "click", "button": "left", "x": 1, "y": 2}, {"type": "screenshot"}
PATCH = patch_call("update_file", "a.txt", "@@\n-a\n+b\n")


@pytest.mark.parametrize(
    ("tool", "call", "effects"),
    [
        (lambda: custom_of("made"), custom_call("own", "raw text"), ["own"]),
        (lambda: custom_of(17), custom_call("own", "raw text"), ["own"]),
        (lambda: custom_of(ValueError("It broke.")), custom_call("own", "raw text"), ["own"]),
        (lambda: custom_of(ValueError()), custom_call("own", "raw text"), ["own"]),
        (lambda: shell_of("text"), shell_call("ls", "cat a"), ["shell"]),
        (lambda: shell_of(SHELL_RESULT), shell_call("ls", "cat a"), ["shell"]),
        (lambda: shell_of(ValueError("It broke.")), shell_call("ls"), ["shell"]),
        (lambda: shell_of(ValueError()), shell_call("ls"), ["shell"]),
        (lambda: local_shell_of("text"), local_shell_call("ls", "-l"), ["local_shell"]),
        (lambda: ApplyPatchTool(editor=Editor(None)), PATCH, ["update"]),
        (lambda: ApplyPatchTool(editor=Editor("patched")), patch_call("create_file", "a", "+a\n"), ["create"]),
        (
            lambda: ApplyPatchTool(editor=Editor(ApplyPatchResult(status="failed", output="It is locked."))),
            patch_call("delete_file", "a"),
            ["delete"],
        ),
        (lambda: ApplyPatchTool(editor=Editor(ValueError("It broke."))), PATCH, ["update"]),
        (lambda: ComputerTool(computer=Screen("aaaa")), computer_call(CLICK, CLICK), ["click", "click", "screenshot"]),
        (lambda: ComputerTool(computer=Screen("aaaa")), computer_call(LOOK), ["screenshot"]),
    ],
    ids=lambda value: "" if callable(value) or isinstance(value, list) else value.type,
)
async def test_each_of_the_sdks_other_tools_does_its_work_once_and_tells_the_same_in_every_run(
    tool: Callable[[], Any], call: Any, effects: list[str]
) -> None:
    turns = [[call], says("done")]
    plain = await Runner.run(agent_with(tool(), turns=copy.deepcopy(turns)), "go")
    assert happened == effects
    happened.clear()
    result = await run_twice(agent_with(tool(), turns=turns))
    assert result.to_input_list() == plain.to_input_list()
    assert [item.output for item in result.new_items if item.type == "tool_call_output_item"] == [
        item.output for item in plain.new_items if item.type == "tool_call_output_item"
    ]
    assert happened == effects


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (local_shell_of, local_shell_call("ls")),
        (lambda result: ComputerTool(computer=Screen(result)), computer_call(LOOK)),
    ],
)
async def test_a_local_shell_or_a_computer_that_raises_ends_the_run_and_works_again_in_the_next(
    make: Callable[[Any], Any], call: Any
) -> None:
    turns = [[call], says("done")]
    agent = agent_with(make(ConnectionError("It is away.")), turns=turns)
    with pytest.raises(ConnectionError, match="It is away"):
        await run(agent)
    agent.tools = [make("back")]
    assert (await run_twice(agent)).final_output == "done"


class ToolsSeen(RunHooks[Any]):
    """The tools that its hooks were given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        self.seen.append(tool)

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        self.seen.append(tool)


@pytest.mark.parametrize(
    ("make", "call"),
    [
        (lambda: custom_of("made"), custom_call("own", "raw text")),
        (lambda: shell_of("text"), shell_call("ls")),
        (lambda: local_shell_of("text"), local_shell_call("ls")),
        (lambda: ApplyPatchTool(editor=Editor(None)), PATCH),
        (lambda: ComputerTool(computer=Screen("aaaa")), computer_call(LOOK)),
    ],
)
async def test_hooks_are_given_the_very_tool_in_the_first_run_and_in_a_replay(
    make: Callable[[], Any], call: Any
) -> None:
    tool = make()
    agent = agent_with(tool, turns=[[call], says("done")])
    for _ in range(2):
        hooks = ToolsSeen()
        with durable_session("s"):
            await Runner.run(agent, "go", hooks=hooks)
        assert len(hooks.seen) == 2
        assert all(each is tool for each in hooks.seen)
    assert len(happened) == 1


async def test_another_tool_of_a_class_of_ones_own_is_recorded_as_well() -> None:
    class OwnShell(ShellTool):
        def executor(self, request: Any) -> str:
            happened.append("executed")
            return "seen"

    tool = OwnShell.__new__(OwnShell)
    vars(tool).update(vars(ShellTool(executor=lambda request: "never")))
    del vars(tool)["executor"]
    await run_twice(agent_with(tool, turns=[[shell_call("ls")], says("done")]))
    assert happened == ["executed"]


async def test_calls_of_other_tools_that_are_alike_are_calls_of_their_own() -> None:
    numbers = itertools.count()
    tool = CustomTool(name="own", description="Own.", on_invoke_tool=lambda *_: next(numbers))
    first, second = custom_call("own", "x"), custom_call("own", "x")
    result = await run_twice(agent_with(tool, turns=[[first, second], [custom_call("own", "x")], says("done")]))
    assert outputs(result) == ["0", "1", "2"]


async def test_an_other_tool_with_replay_works_in_every_run_and_its_own_steps_come_from_the_store() -> None:
    async def execute(*_: Any) -> Any:
        happened.append("executed")
        return await durable_step("look", does("looked", "seen"))

    tool = CustomTool(name="own", description="Own.", on_invoke_tool=execute)
    agent = agent_with(tool, turns=[[custom_call("own", "x")], says("done")])
    for _ in range(2):
        with durable_session("s", effects={"own": "replay"}):
            assert outputs(await Runner.run(agent, "go")) == ["seen"]
    assert happened == ["executed", "looked", "executed"]


# Agents as tools, hand-offs, guardrails


async def test_an_agent_tool_with_a_run_config_of_its_own_is_recorded() -> None:
    model = ScriptedModel([calls(("give", {})), says("inner")])
    inner = Agent(name="Inner", tools=[returns("x")])
    ask = inner.as_tool("ask", "Ask.", run_config=RunConfig(model=model, workflow_name="inner"))
    await run_twice(agent_with(ask, turns=[calls(("ask", {"input": "?"})), says("done")]))
    assert (happened, len(model.calls)) == (["give"], 2)


async def test_an_agent_tool_with_a_session_of_its_own_is_recorded_and_adds_to_it_once() -> None:
    memory = SQLiteSession("inner")
    inner = agent_with(returns("x"))
    ask = inner.as_tool("ask", "Ask.", session=memory)
    await run_twice(agent_with(ask, turns=[calls(("ask", {"input": "?"})), says("done")]))
    assert happened == ["give"]
    assert len(await memory.get_items()) == 4
    memory.close()


async def test_an_agent_tool_that_fails_is_told_of_as_without_a_session_and_in_a_replay() -> None:
    def outer() -> Agent[Any]:
        inner = agent_with(breaks(failure_error_function=None), turns=[calls(("give", {}))])
        ask = inner.as_tool("ask", "Ask.", failure_error_function=lambda context, error: f"Told: {error}")
        return agent_with(ask, turns=[[function_call("ask", {"input": "x"}, call_id="call_ask")], says("done")])

    plain = await Runner.run(outer(), "go")
    agent = outer()
    assert outputs(await run_twice(agent)) == outputs(plain)
    assert outputs(plain)[0].startswith("Told: ")


async def test_a_guardrail_that_runs_beside_the_model_and_tripped_is_asked_anew() -> None:
    async def check(*_: Any) -> GuardrailFunctionOutput:
        happened.append("check")
        return GuardrailFunctionOutput({"why": "so"}, tripwire_triggered=len(happened) < 3)

    agent = agent_with(turns=[says("done")] * 3, input_guardrails=[InputGuardrail(check)])
    for _ in range(2):
        with pytest.raises(InputGuardrailTripwireTriggered) as raised:
            await run(agent)
        assert raised.value.guardrail_result.output.output_info == {"why": "so"}
    for _ in range(2):
        assert (await run(agent)).final_output == "done"
    assert happened == ["check"] * 3


class OwnTool(MCPTool):
    """As a server may have it that is written by hand."""


class Books(MCPServer):
    """An MCP server in this process, which may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    @property
    def name(self) -> str:
        return "books"

    async def connect(self) -> None: ...

    async def cleanup(self) -> None: ...

    async def list_tools(self, *_: Any, **__: Any) -> list[MCPTool]:
        self._answer("list")
        return [OwnTool(name="lend", input_schema={"type": "object", "properties": {}})]

    async def call_tool(self, *_: Any, **__: Any) -> CallToolResult:
        self._answer("lend")
        text = f"lent {len(happened)}"
        return CallToolResult(content=[TextContent(type="text", text=text)], structured_content={"lent": text})

    async def list_prompts(self) -> Any: ...

    async def get_prompt(self, *_: Any, **__: Any) -> Any: ...

    def _answer(self, what: str) -> None:
        if self.away:
            raise ConnectionError("The server is away.")
        happened.append(what)


async def test_a_replay_needs_no_mcp_server() -> None:
    books = Books()
    agent = Agent(name="A", model=ScriptedModel([calls(("lend", {})), says("done")]), mcp_servers=[books])
    first = await run(agent)
    books.away = True
    second = await run(agent)
    assert second.to_input_list() == first.to_input_list()
    assert happened.count("lend") == 1


async def test_a_call_of_an_mcp_server_that_is_away_is_told_as_without_a_session() -> None:
    def agent() -> tuple[Agent[Any], Books]:
        books = Books()
        call = [function_call("lend", {}, call_id="call_lend")]
        return Agent(name="A", model=ScriptedModel([call, says("done")]), mcp_servers=[books]), books

    async def gone(server: Books) -> Any:
        original = server._answer

        def answer(what: str) -> None:
            server.away = what == "lend"
            original(what)

        server._answer = answer  # type: ignore[method-assign]

    plain, books = agent()
    await gone(books)
    expected = outputs(await Runner.run(plain, "go"))
    durable, books = agent()
    await gone(books)
    assert outputs(await run_twice(durable)) == expected


class OwnAgent(Agent[Any]):
    def greeting(self) -> str:
        return f"I am {self.name}."


async def test_a_run_changes_nothing_of_an_agent_its_tools_and_all_that_it_reaches() -> None:
    inner = agent_with(returns("x"))
    guard = InputGuardrail(lambda *_: GuardrailFunctionOutput(None, False), "guard")
    turns = [calls(("give", {}), ("ask", {"input": "x"})), says("done")]
    agent = OwnAgent(
        name="Own",
        model=ScriptedModel(turns),
        tools=[returns("y"), inner.as_tool("ask", "Ask.")],
        input_guardrails=[guard],
    )
    other = Agent(name="Other", handoffs=[agent])
    agent.handoffs = [other]
    before = [(each, dict(vars(each))) for each in (agent, other, inner, guard, *agent.tools)]
    result = await run_twice(agent)
    for each, parts in before:
        assert {name: vars(each)[name] for name in parts} == parts
    assert result.last_agent is agent
    assert agent.greeting() == "I am Own."


async def test_a_hand_off_that_decides_where_to_during_the_run_is_recorded_too() -> None:
    target = agent_with(returns("x"))

    async def decide(context: Any, arguments: str) -> Agent[Any]:
        return target

    handoff = Handoff[Any, Any]("go_on", "Go on.", {}, decide, "Agent")
    agent = Agent(name="First", model=ScriptedModel([calls(("go_on", {}))]), handoffs=[handoff])
    result = await run_twice(agent)
    assert result.last_agent is target
    assert happened == ["give"]


class Named(ModelProvider):
    def __init__(self) -> None:
        self.models: dict[str | None, ScriptedModel] = {}

    def get_model(self, model_name: str | None) -> Model:
        return self.models.setdefault(model_name, ScriptedModel([calls(("give", {})), says("done")]))


@pytest.mark.parametrize("model", [None, "gpt-5.1", "gpt-4o"])
@pytest.mark.parametrize("settings", [None, ModelSettings(), ModelSettings(temperature=0.5, parallel_tool_calls=False)])
async def test_a_model_given_by_name_is_asked_the_same_as_without_a_session(
    model: str | None, settings: ModelSettings | None
) -> None:
    def build() -> Agent[Any]:
        named = {} if settings is None else {"model_settings": settings}
        return Agent(name="Agent", model=model, tools=[returns("x"), *hosted], output_type=Weather | None, **named)  # type: ignore[arg-type]

    hosted: list[Tool] = [
        WebSearchTool(),
        ShellTool(environment={"type": "container_auto"}),
        ProgrammaticToolCallingTool(),
    ]
    plain, durable = Named(), Named()
    plain_config = RunConfig(model_provider=plain, model_settings=ModelSettings(top_p=0.9))
    with pytest.raises(Exception, match="JSON"):  # as "done" is no Weather
        await Runner.run(build(), "go", run_config=plain_config)
    durable_config = RunConfig(model_provider=durable, model_settings=ModelSettings(top_p=0.9))
    with pytest.raises(Exception, match="JSON"):
        await run(build(), run_config=durable_config)

    def told(call: ModelCall) -> Any:
        schema = call.output_schema and call.output_schema.json_schema()
        offered = [
            (tool.name, tool.params_json_schema) if isinstance(tool, FunctionTool) else tool for tool in call.tools
        ]
        return call.system_instructions, call.model_settings, offered, schema, call.prompt, call.handoffs

    assert durable.models.keys() == plain.models.keys() == {model}
    assert [told(call) for call in durable.models[model].calls] == [told(call) for call in plain.models[model].calls]
