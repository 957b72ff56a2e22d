"""What is recorded comes back as it was: of every type that a model or a tool answers with, and of any JSON."""

import contextlib
import dataclasses
import datetime
import decimal
import enum
import functools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

import pytest
from agents import ModelResponse, ToolOutputFileContent, ToolOutputImage, ToolOutputText, Usage
from agents.items import TResponseOutputItem, TResponseStreamEvent
from agents.models.chatcmpl_converter import Converter
from agents.models.chatcmpl_stream_handler import ChatCmplStreamHandler
from agents.usage import _attach_normalized_usage, _attach_raw_usage_snapshot
from hypothesis import given
from hypothesis import strategies as st
from mcp.types import CallToolResult, EmbeddedResource, ImageContent, TextContent, TextResourceContents
from openai._models import add_request_id, construct_type
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessage
from openai.types.completion_usage import CompletionUsage
from openai.types.responses import (
    Response,
    ResponseFunctionToolCall,
    ResponseFunctionWebSearch,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
    ResponseTextDeltaEvent,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, SecretStr
from pydantic.dataclasses import dataclass as pydantic_dataclass
from test_properties import as_read, values

from nexum_agents import recording
from nexum_agents.recording import Unrecordable, from_recorded, to_recorded
from nexum_agents.values import from_value, returns_of, to_value
from nexum_runtime.wire import json_text, parse_json

DEPTH_MAX = 5  # of an example: some classes have themselves as a part


def members(union: Any) -> list[Any]:
    return list(get_args(get_args(union)[0] if get_origin(union) is Annotated else union))


def payload(annotation: Any, *, full: bool, depth: int = 0) -> Any:
    """JSON that is valid for the annotation, with every field or only with those that must be there."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return payload(arguments[0], full=full, depth=depth)
    if origin is Literal:
        return arguments[-1]
    if origin is list:
        return [payload(arguments[0], full=full, depth=depth + 1)] if depth < DEPTH_MAX else []
    if origin is dict:
        return {"key": payload(arguments[1], full=full, depth=depth + 1)}
    if arguments:  # a union
        return payload(arguments[0], full=full, depth=depth)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {
            field.alias or name: payload(field.annotation, full=full, depth=depth + 1)
            for name, field in annotation.model_fields.items()
            if field.is_required() or (full and depth < DEPTH_MAX)
        } | ({"a_field_of_tomorrow": {"$": [1, 1.0, True]}} if full else {})
    examples: dict[Any, Any] = {str: "wörd \ud83d", int: 7, float: 1.0, bool: True, object: {"seed": [0]}, Any: None}
    return examples[annotation]


def back(value: Any) -> Any:
    """The value after it went to the server and came back."""
    return from_recorded(parse_json(json_text(to_recorded(value))))


def anatomy(value: Any) -> Any:
    """All there is to a value, down to types and the order of names, in a form where == confuses nothing."""
    kind = type(value)
    if isinstance(value, dict):
        return kind, [(key, anatomy(part)) for key, part in value.items()]
    if isinstance(value, list):
        return kind, [anatomy(part) for part in value]
    if isinstance(value, BaseModel):
        own = (value.__pydantic_fields_set__, anatomy(value.__pydantic_extra__), anatomy(value.__pydantic_private__))
        return kind, anatomy(vars(value)), own
    if dataclasses.is_dataclass(value):
        return kind, anatomy(vars(value))
    return kind, repr(value)


def assert_comes_back(value: Any) -> None:
    again = back(value)
    assert anatomy(again) == anatomy(value)
    assert again == value


def input_json(items: Any) -> str:
    return json.dumps(ModelResponse(output=items, usage=Usage(), response_id=None).to_input_items())


# Every type


@pytest.mark.parametrize("cls", members(TResponseOutputItem), ids=lambda cls: cls.__name__)
def test_every_output_item_comes_back_and_feeds_the_model_the_same(cls: Any) -> None:
    for full in (True, False):
        raw = payload(cls, full=full)
        validated, constructed = construct_type(type_=cls, value=raw), cls.construct(**raw)
        assert isinstance(validated, cls)
        for item in (validated, constructed):
            assert_comes_back(item)
            assert input_json([back(item)]) == input_json([item])


@pytest.mark.parametrize("cls", members(TResponseStreamEvent), ids=lambda cls: cls.__name__)
def test_every_stream_event_comes_back(cls: Any) -> None:
    for full in (True, False):
        raw = payload(cls, full=full)
        validated = construct_type(type_=TResponseStreamEvent, value=raw)
        assert isinstance(validated, cls)
        assert_comes_back([validated, cls.construct(**raw)])


@pytest.mark.parametrize("cls", members(TResponseOutputItem) + members(TResponseStreamEvent), ids=lambda c: c.__name__)
def test_what_is_not_valid_comes_back_as_it_was(cls: Any) -> None:
    raw = payload(cls, full=False)
    assert_comes_back(cls.construct(**{name: {"not": "valid"} for name in raw}))
    assert_comes_back(cls.construct(**dict.fromkeys(raw)))
    assert_comes_back(cls.construct())
    assert_comes_back(cls.construct(type=raw["type"], sequence_number=True, content=1.0, item={}, delta=0))


# What models answer

HOSTED: list[dict[str, Any]] = [
    {
        "id": "rs_1",
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "Ich suche …"}],
        "encrypted_content": "gAAAA==",
    },
    {
        "id": "ws_1",
        "type": "web_search_call",
        "status": "completed",
        "action": {
            "type": "search",
            "query": "q",
            "queries": ["q"],
            "sources": [{"type": "url", "url": "https://a.b"}],
        },
    },
    {
        "id": "fs_1",
        "type": "file_search_call",
        "status": "completed",
        "queries": ["q"],
        "results": [{"file_id": "f", "score": 1.0, "attributes": {"year": 2024.0, "open": True}}],
    },
    {
        "id": "ci_1",
        "type": "code_interpreter_call",
        "status": "completed",
        "container_id": "c",
        "code": "1+1",
        "outputs": [{"type": "logs", "logs": "2"}],
    },
    {
        "id": "mc_1",
        "type": "mcp_call",
        "name": "n",
        "server_label": "s",
        "arguments": "{}",
        "output": "x",
        "error": None,
    },
    {
        "id": "fc_1",
        "type": "function_call",
        "name": "n",
        "call_id": "c1",
        "arguments": '{"a": 1}',
        "status": "completed",
    },
    {"id": "xx_1", "type": "a_call_of_tomorrow", "parts": [{"$": "os:system"}]},
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [
            {"type": "output_text", "text": "42", "annotations": [], "logprobs": [], "$schema": "s"},
            {"type": "refusal", "refusal": "no"},
        ],
    },
]


def hosted_items() -> list[Any]:
    return [construct_type(type_=TResponseOutputItem, value=raw) for raw in HOSTED]


def usage() -> Usage:
    total = Usage()
    for cached in (0, 3):
        total.add(
            Usage(
                requests=1,
                input_tokens=10,
                output_tokens=5,
                total_tokens=15,
                input_tokens_details=InputTokensDetails.construct(cached_tokens=cached, audio_tokens=1),
                output_tokens_details=OutputTokensDetails(reasoning_tokens=2),
            )
        )
    return total


def test_a_response_comes_back_whole_and_feeds_the_model_the_same_bytes() -> None:
    response = ModelResponse(hosted_items(), usage(), "resp_1", request_id="req_1", raw_usage={"total_tokens": 30.0})
    assert len({item.type for item in response.output}) == len(HOSTED)
    assert len(response.usage.request_usage_entries) == 2
    assert_comes_back(response)
    assert json.dumps(back(response).to_input_items()) == json.dumps(response.to_input_items())


def test_a_field_that_was_not_set_is_not_set_when_it_comes_back() -> None:
    call = ResponseFunctionToolCall(arguments="{}", call_id="c1", name="n", type="function_call")
    again = back(call)
    assert again.model_fields_set == {"arguments", "call_id", "name", "type"}
    assert (again.id, again.status) == (None, None)
    call.status = None  # set, though to what it had been
    assert "status" in back(call).model_fields_set


def test_what_libraries_attach_comes_back() -> None:
    raw = {"id": "resp_1", "output": HOSTED[:2], "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}}
    response: Any = construct_type(type_=Response, value=raw)
    add_request_id(response, "req_1")
    _attach_raw_usage_snapshot(response, {"total_tokens": 3, "$": 1})
    _attach_normalized_usage(response.usage, usage())
    assert_comes_back(response)
    assert back(response)._request_id == "req_1"
    assert back(response.usage)._agents_sdk_normalized_usage == usage()


def test_what_chat_completions_become_comes_back() -> None:
    message = ChatCompletionMessage.model_validate(
        {
            "role": "assistant",
            "content": "Let me look.",
            "reasoning_content": "Hm.",
            "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}],
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "n", "arguments": "{}"},
                    "extra_content": {"google": {"thought_signature": "t"}},
                }
            ],
        }
    )
    items = Converter.message_to_output_items(message, provider_data={"model": "gemini/x", "response_id": "r"})
    assert {"reasoning", "message", "function_call"} == {item.type for item in items}
    assert any((getattr(item, "provider_data", None) or {}).get("thought_signature") for item in items)
    assert_comes_back(ModelResponse(items, usage(), None))
    assert input_json(back(items)) == input_json(items)


async def test_a_streamed_chat_completion_comes_back() -> None:
    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> ChatCompletionChunk:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        raw = {"id": "c", "created": 1, "model": "m", "object": "chat.completion.chunk", "choices": [choice], **more}
        return ChatCompletionChunk.model_validate(raw)

    async def chunks() -> AsyncIterator[ChatCompletionChunk]:
        yield chunk({"role": "assistant", "reasoning_content": "Hm."})
        yield chunk({"content": "Let me "})
        yield chunk({"content": "look."})
        call = {"index": 0, "id": "c1", "function": {"name": "n", "arguments": '{"a"'}, "type": "function"}
        yield chunk({"tool_calls": [call]})
        yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]})
        tokens = CompletionUsage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
        yield chunk({}, "tool_calls", usage=tokens.model_dump())

    shell: Any = construct_type(type_=Response, value={"id": "r", "output": [], "object": "response", "model": "m"})
    stream: Any = chunks()
    events = [event async for event in ChatCmplStreamHandler.handle_stream(shell, stream, model="m")]
    assert len(events) > 10
    assert_comes_back(events)


# What tools answer


@pytest.mark.parametrize(
    "result",
    [
        "wörd",
        ToolOutputText(text="a"),
        [ToolOutputText(type="text", text="a"), ToolOutputImage(image_url="data:,", detail="low"), "b"],
        ToolOutputFileContent(file_data="aGk=", filename="a.txt"),
        [{"type": "text", "text": "a"}],
        CallToolResult(
            content=[
                TextContent(type="text", text="a"),
                ImageContent(type="image", data="aGk=", mime_type="image/png"),
                EmbeddedResource(type="resource", resource=TextResourceContents(uri="file:///a", text="t")),
            ],
            structured_content={"a": [1, 1.0, None]},
            is_error=False,
        ),
    ],
    ids=lambda result: type(result).__name__,
)
def test_a_tools_result_comes_back(result: Any) -> None:
    assert_comes_back(result)


# JSON

marks = st.sampled_from(["$", "$set", "$missing", "$attributes", "$private", "agents:Usage"])
marked = st.recursive(
    values | marks,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(marks, parts, max_size=3),
    max_leaves=12,
)


@given(marked.map(as_read))
def test_any_json_comes_back_also_what_looks_like_a_record(value: Any) -> None:
    assert_comes_back(value)
    assert_comes_back(to_recorded(value))
    assert_comes_back(ResponseFunctionToolCall.construct(call_id=value, extra=[value]))


def test_json_that_has_no_mark_is_recorded_as_it_is() -> None:
    value = {"a": [1, 1.0, True, None, "\ud83d", -0.0], "$ref": {"$set": ["x"]}}
    assert anatomy(to_recorded(value)) == anatomy(value)
    assert to_recorded({"$": 1}) == {"$": {"$": 1}}


# What the record looks like


def test_a_record_reads_like_the_event_with_its_class_in_front() -> None:
    raw = {"type": "response.output_text.delta", "delta": "Hi", "item_id": "m", "output_index": 0, "obfuscation": "x"}
    raw |= {"content_index": 0, "sequence_number": 4, "logprobs": []}
    event = construct_type(type_=TResponseStreamEvent, value=raw)
    assert to_recorded(event) == {"$": "openai.types.responses:ResponseTextDeltaEvent", **raw}


def test_a_class_is_named_by_the_shortest_module_that_has_it() -> None:
    record = to_recorded(hosted_items()[0])
    assert record["$"] == "openai.types.responses:ResponseReasoningItem"
    assert record["summary"][0]["$"] == "openai.types.responses.response_reasoning_item:Summary"


# Classes that change


def test_a_field_that_the_class_has_got_since_has_its_default() -> None:
    record = to_recorded([usage(), usage()])
    for each in record:
        del each["request_usage_entries"], each["input_tokens_details"]
    one, other = from_recorded(record)
    assert one.request_usage_entries == []
    assert one.request_usage_entries is not other.request_usage_entries
    assert isinstance(one.input_tokens_details, InputTokensDetails)


def test_a_field_that_the_class_has_lost_is_an_extra_or_an_error() -> None:
    record = to_recorded(ResponseOutputText(text="x", annotations=[], type="output_text"))
    assert from_recorded(record | {"gone": 1}).gone == 1
    with pytest.raises(Unrecordable, match=r"agents:Usage has no field 'gone' in this installation.* \(at \[0\]\)\.$"):
        from_recorded([to_recorded(Usage()) | {"gone": 1}])


@pytest.mark.parametrize(
    "name", ["openai.types.responses:ResponseGone", "agents.gone:Usage", "agents.usage:Usage.Gone"]
)
def test_a_class_that_is_gone_is_told_by_name(name: str) -> None:
    with pytest.raises(Unrecordable, match=rf"^{name} cannot be made here.*\(at output\[1\]\)\.$"):
        from_recorded({"output": [1, {"$": name}]})


@pytest.mark.parametrize(
    "name",
    [
        "subprocess:Popen",
        "this:s",
        "openai:OpenAI",
        "agentsx:Usage",
        "agents.usage:deserialize_usage",
        "agents.usage:json.JSONDecoder",
        "agents.usage:Any",
        "agents.tool:BaseModel",
        "agents:Runner",
        "agents:RunConfig.__init__",
        "agents..usage:Usage",
        "agents./usage:Usage",
        "agents.\0:Usage",
        "agents.\ud800:Usage",
        "agents",
        "",
        ":",
        5,
        ["agents:Usage"],
        None,
    ],
    ids=ascii,
)
def test_a_record_that_names_anything_else_is_refused_and_runs_nothing(name: Any) -> None:
    with pytest.raises(Unrecordable, match="cannot be"):
        from_recorded({"$": name, "args": ["touch x"]})
    assert "this" not in sys.modules


def test_a_package_is_not_open_for_beginning_like_one_that_is() -> None:
    with pytest.raises(Unrecordable, match="agentsx:Usage cannot be made from a record, only data classes of agents,"):
        from_recorded({"$": "agentsx:Usage"})


# What is refused


class Number(enum.IntEnum):
    ONE = 1


class Word(str):
    __slots__ = ()


class Mine(BaseModel):
    x: int = 1


@dataclasses.dataclass
class MyData:
    x: int = 1


def circle() -> list[Any]:
    turning: list[Any] = []
    turning.append(turning)
    return turning


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ((1, 2), "tuple"),
        ({1}, "set"),
        (b"x", "bytes"),
        (float("nan"), "float"),
        (float("-inf"), "float"),
        ({1: 2}, "key 1 of int"),
        ({Word("w"): 2}, "test_values:Word"),
        ({"\ud83d\ude00": 1}, "dict with the key"),
        ("\ud83d\ude00", "str with a surrogate pair in two halves"),
        (10**4300, "int"),
        (Number.ONE, "test_values:Number"),
        (Word("w"), "test_values:Word"),
        (Mine(), "test_values:Mine"),
        (MyData(), "test_values:MyData"),
        (Mine, "ModelMetaclass"),
        (len, "builtin_function_or_method"),
        (object(), "object"),
    ],
    ids=lambda part: part if isinstance(part, str) and part.isascii() else type(part).__name__,
)
def test_what_would_not_come_back_is_refused_by_name_and_place(value: Any, named: str) -> None:
    with pytest.raises(Unrecordable, match=named):
        to_recorded(value)
    item = ResponseFunctionWebSearch.construct(id="ws", action={"first query": [0, value]})
    with pytest.raises(Unrecordable, match=rf"{named}.*\(at output\[0\]\.action\['first query'\]\[1\]\)\.$"):
        to_recorded(ModelResponse([item], Usage(), None))


def test_a_value_without_an_end_is_refused() -> None:
    with pytest.raises(Unrecordable, match="list cannot be recorded, it is nested too deeply"):
        to_recorded(circle())


@pytest.mark.parametrize("name", ["$", "$private", "text"])
def test_an_extra_with_the_name_of_something_else_is_refused(name: str) -> None:
    text = ResponseOutputText.construct(text="x", other=1)
    assert text.__pydantic_extra__
    text.__pydantic_extra__[name] = 1
    with pytest.raises(Unrecordable, match="ResponseOutputText with"):
        to_recorded(text)


# Classes of other makes, as if a package that may be named had them


class Private(BaseModel):
    model_config = ConfigDict(extra="allow", defer_build=True)
    a: int
    made: list[int] = Field(default_factory=lambda: [1])
    shared: dict[str, list[int]] = {"a": [1]}
    zero: float = 0.0
    aliased: int = Field(default=1, alias="async")
    kind: ClassVar[str] = "k"
    _seen: dict[str, int] = PrivateAttr(default_factory=dict)


class Root(RootModel[list[int]]):
    pass


@pydantic_dataclass
class Checked:
    a: int
    b: list[int] = Field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any
    b: int = dataclasses.field(default=2, init=False)
    made: dict[str, int] = dataclasses.field(default_factory=dict)

    @dataclasses.dataclass
    class Inner:
        a: int


@dataclasses.dataclass(slots=True)
class Slotted:
    a: int


@dataclasses.dataclass
class HalfSlotted(Slotted):
    b: int


@dataclasses.dataclass
class Listed(list[int]):
    a: int


class Wrapped(BaseModel):
    a: int

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"__dict__": {"a": True}})


def nameless(name: str) -> Any:
    """An object of a class that this module does not have, whatever its name says."""
    return dataclasses.make_dataclass(name, ["x"], namespace={"__module__": __name__})(1)


@pytest.fixture
def open_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "PACKAGES", (*recording.PACKAGES, __name__))


def private(**more: Any) -> Private:
    made = Private(a=1, **more)
    made._seen["x"] = 1
    return made


def lost() -> Any:
    made: Any = Private(a=1)
    del made.a, made.zero
    return made


@pytest.mark.usefixtures("open_here")
@pytest.mark.parametrize(
    "make",
    [
        private,
        lambda: private(made=[], more={"x": 1}),
        lambda: private(**{"async": 2}),
        lost,
        lambda: Private.model_construct(set(), a=True, zero=-0.0, aliased=True),
        lambda: Private.model_construct({"a", "zero", "nothing"}, more=1),
        lambda: Root([1, 2]),
        lambda: Checked(a=1),
        lambda: Frozen(a=Frozen(a=1.0)),
        lambda: Frozen.Inner(a=1),
    ],
)
def test_whatever_else_a_class_can_be_comes_back(make: Callable[[], Any]) -> None:
    value = make()
    assert_comes_back(value)
    if dataclasses.is_dataclass(value):
        vars(value)["attached"] = {"$": 1}
        del vars(value)["a"]
        assert anatomy(back(value)) == anatomy(value)


@pytest.mark.usefixtures("open_here")
def test_fields_that_are_new_are_made_for_each_object() -> None:
    one, other = from_recorded([{"$": f"{__name__}:{name}"} for name in ("Private", "Private")])
    assert (one.a, one.made, one.shared, one.aliased, one.model_fields_set) == (None, [1], {"a": [1]}, 1, set())
    assert one.made is not other.made
    assert one.shared["a"] is not other.shared["a"]
    assert from_recorded({"$": f"{__name__}:Frozen", "a": 1}) == Frozen(a=1)
    assert from_recorded({"$": f"{__name__}:Checked", "a": 1}) == Checked(a=1)


@pytest.mark.usefixtures("open_here")
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Slotted(1), "Slotted cannot be recorded, its values keep more than a __dict__"),
        (HalfSlotted(1, 2), "HalfSlotted cannot be recorded, its values keep more than a __dict__"),
        (Listed(1), "Listed cannot be recorded, its values keep more than a __dict__"),
        (Wrapped(a=1), "Wrapped cannot be recorded, it does not come back as it is"),
        (nameless("Local"), "Local cannot be made here"),
        (
            nameless("Frozen"),
            "Frozen cannot be recorded, another class has",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_class_whose_values_would_come_back_as_less_is_refused(value: Any, why: str) -> None:
    with pytest.raises(Unrecordable, match=why):
        to_recorded(value)


def test_a_stream_of_events_shares_nothing_with_what_was_recorded() -> None:
    event = ResponseTextDeltaEvent.construct(delta="x", logprobs=[{"a": [1]}])
    record = to_recorded([event])
    again = from_recorded(record)[0]
    again.logprobs[0].a.append(2)
    assert record == to_recorded([event])


def test_a_message_that_was_changed_afterwards_is_recorded_as_it_is_now() -> None:
    message = ResponseOutputMessage.construct(id="m", content=[], role="assistant", status="completed", type="message")
    message.content.append(ResponseOutputText(text="x", annotations=[], type="output_text"))
    reasoning = ResponseReasoningItem(id="r", summary=[], type="reasoning")
    reasoning.provider_data = {"model": "m"}  # type: ignore[attr-defined]
    assert_comes_back([message, reasoning])


# What functions return


class Color(enum.Enum):
    RED = "red"


class Ticket(BaseModel):
    city: str
    price: decimal.Decimal = decimal.Decimal("1.50")


class DearTicket(Ticket):
    extra: int = 1


@dataclasses.dataclass
class Seat:
    row: int
    taken: set[str] = dataclasses.field(default_factory=set)


class NeverEqual(BaseModel):
    city: str

    def __eq__(self, other: object) -> bool:
        return False


class Refuses(BaseModel):
    secret: SecretStr


NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC)


def given_back(value: Any, returns: Any = None) -> tuple[Any, Any, str]:
    """What the first run sees, what a replay sees, and in which form it was recorded."""
    kept = to_value(value, returns)
    return kept.value, from_value(parse_json(json_text(kept.recorded)), kept.form, returns), kept.form


@given(values)
def test_any_json_that_a_function_returns_is_the_same_in_every_run(value: Any) -> None:
    first, again, form = given_back(value)
    assert anatomy(again) == anatomy(first)
    assert form or anatomy(first) == anatomy(value)


@pytest.mark.parametrize(
    ("value", "returns"),
    [
        (Ticket(city="Rome"), Ticket),
        ([Ticket(city="Rome")], list[Ticket]),
        ({"a": Ticket(city="Rome")}, dict[str, Ticket]),
        (Ticket(city="Rome"), Ticket | None),
        (Seat(1, {"a"}), Seat),
        (Color.RED, Color),
        (NOON, datetime.datetime),
        (decimal.Decimal("0.10"), decimal.Decimal),
        ({1, 2}, set[int]),
        ((1, "a"), tuple[int, str]),
        ({1: "a"}, dict[int, str]),
        (b"bytes", bytes),
    ],
)
def test_what_an_annotation_names_comes_back_as_that(value: Any, returns: Any) -> None:
    first, again, form = given_back(value, returns)
    assert first is value
    assert (again, type(again), form) == (value, type(value), "typed")


@pytest.mark.parametrize(
    ("value", "returns"),
    [
        (Ticket(city="Rome"), None),
        (Ticket(city="Rome"), Any),
        (DearTicket(city="Rome"), Ticket),
        (NeverEqual(city="Rome"), NeverEqual),
        (Refuses(secret=SecretStr("hush")), Refuses),
        (object, type),
        (NOON, str),
        (float("inf"), float),
        ((1, 2), None),
    ],
)
def test_what_would_come_back_as_something_else_is_its_text_in_every_run(value: Any, returns: Any) -> None:
    first, again, form = given_back(value, returns)
    assert first == again == str(value)
    assert form == "text"


def test_a_record_whose_type_is_gone_or_has_changed_is_refused() -> None:
    kept = to_value(Ticket(city="Rome"), Ticket)
    with pytest.raises(Unrecordable, match="the function names none now"):
        from_value(kept.recorded, kept.form, None)
    with pytest.raises(Unrecordable, match="does not fit the type that its function returns now"):
        from_value(kept.recorded, kept.form, Seat)


def test_the_type_that_a_function_returns_is_found_whatever_it_is() -> None:
    def plain(city: str) -> Ticket:
        raise NotImplementedError

    async def waits(city: str) -> Ticket:
        raise NotImplementedError

    def unresolved(city: str) -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    class Callable_:
        def __call__(self, city: str) -> Ticket:
            raise NotImplementedError

        def method(self, city: str) -> Ticket:
            raise NotImplementedError

    found: list[Any] = [plain, waits, Callable_(), Callable_().method, functools.partial(plain, "Rome")]
    assert [returns_of(function) for function in found] == [Ticket] * len(found)
    assert [returns_of(function) for function in (unresolved, lambda: 1, len, None)] == [None] * 4


@pytest.mark.parametrize(
    "recorded",
    [
        {"$": "agents:Usage", "$attributes": 5},
        {"$": "agents:Usage", "$missing": 5},
        {"$": "agents:Usage", "$missing": [[]]},
        {"$": "openai.types.responses:ResponseUsage", "$set": 5},
        {"$": "openai.types.responses:ResponseUsage", "$set": [{}]},
        {"$": 5},
        {"$": "agents:"},
        {"$": ":"},
        json.loads("[" * 900 + "]" * 900),
    ],
    ids=lambda recorded: str(recorded)[:60],
)
def test_what_is_no_record_of_ours_is_refused_and_raises_nothing_else(recorded: Any) -> None:
    with contextlib.suppress(Unrecordable):
        from_recorded(recorded)


def test_a_record_of_litellm_is_read_without_the_network() -> None:
    script = (
        "import sys, socket\n"
        "def refused(*_, **__): raise SystemExit('the network was asked')\n"
        "socket.getaddrinfo = socket.socket.connect = refused\n"
        "from nexum_agents.recording import from_recorded\n"
        "recorded = {'$': 'litellm.types.utils:Usage'}\n"
        "try: from_recorded(recorded)\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print('litellm' in sys.modules)\n"
    )
    clean = {name: value for name, value in os.environ.items() if name != "LITELLM_LOCAL_MODEL_COST_MAP"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=clean, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == "True"
