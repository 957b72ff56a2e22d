"""The demo through the real `openai` client and through litellm, against local stand-ins for their servers."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from processes import Finished
from test_demo import KEYS, Stage, answer, ended_calls, ended_turns, no_traceback, stage

from offline.choosing import choose_model

__all__ = ["stage"]

QUERY = "durable execution site:offline.example"


class StandIn(ThreadingHTTPServer):
    """Asks for one web search, then answers with what the search returned. `requests` is (path, body) of each call."""

    query = QUERY

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def reply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.status != 200:
            return {"error": {"message": "Incorrect API key provided.", "type": "invalid_request_error"}}
        arguments = json.dumps({"query": self.query, "max_results": 3})
        return _responses(body, arguments) if path.endswith("/responses") else _chat_completion(body, arguments)


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path, body))
        payload = json.dumps(self.server.reply(self.path, body)).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        pass


def _responses(body: dict[str, Any], arguments: str) -> dict[str, Any]:
    found = [item["output"] for item in body["input"] if item.get("type") == "function_call_output"]
    if found:
        text = {"type": "output_text", "text": f"It found: {found[0]}", "annotations": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}
    else:
        item = {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "web_search",
            "arguments": arguments,
            "status": "completed",
        }
    tokens = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "model": body["model"],
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": tokens | details,
    }


def _chat_completion(body: dict[str, Any], arguments: str) -> dict[str, Any]:
    found = [message["content"] for message in body["messages"] if message["role"] == "tool"]
    function = {"name": "web_search", "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    message = {"content": f"It found: {found[0]}"} if found else {"content": None, "tool_calls": [call]}
    choice = {
        "index": 0,
        "finish_reason": "stop" if found else "tool_calls",
        "message": {"role": "assistant", **message},
    }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def keys(stand_in: StandIn, **changes: str) -> dict[str, str]:
    own = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": stand_in.url, "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    return own | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"} | changes


def check_answer(finished: Finished) -> None:
    assert finished.code == 0, finished
    assert answer(finished.stdout).startswith("It found: 1. ")
    assert finished.stderr == ""


async def test_the_demo_runs_through_the_openai_client_on_the_responses_api(stage: Stage, stand_in: StandIn) -> None:
    stage.worker()
    first = await stage.demo("Q", **keys(stand_in, SESSION_ID="s1"))
    check_answer(first)
    assert [path for path, _ in stand_in.requests] == ["/v1/responses"] * 2
    tools = {tool["name"]: tool for tool in stand_in.requests[0][1]["tools"]}
    assert set(tools) == {"web_search", "visit_webpage"}
    assert tools["web_search"]["strict"] is True

    second = await stage.demo("Q", **keys(stand_in, SESSION_ID="s1"))
    check_answer(second)
    assert (ended_turns(second.stdout, "cached"), ended_calls(second.stdout, "cached")) == (2, 1)
    assert "2 turns and 1 call came from the store, which saved" in second.stdout
    assert " and 4 tokens." in second.stdout
    assert len(stand_in.requests) == 2, "the second run asks nobody"
    assert len(stage.executions) == 1


async def test_the_demo_runs_through_litellm_on_chat_completions(stage: Stage, stand_in: StandIn) -> None:
    stage.worker()
    for _ in range(2):
        finished = await stage.demo("Q", **keys(stand_in, MODEL="litellm/openai/gpt-stand-in", SESSION_ID="s1"))
        check_answer(finished)
        assert [path for path, _ in stand_in.requests] == ["/v1/chat/completions"] * 2
    assert stand_in.requests[0][1]["model"] == "gpt-stand-in"
    assert ended_turns(finished.stdout, "cached") == 2
    assert len(stage.executions) == 1


async def test_without_durable_turns_the_model_is_asked_again(stage: Stage, stand_in: StandIn) -> None:
    stage.worker()
    for requests in (2, 4):
        finished = await stage.demo("Q", "--no-durable-model", **keys(stand_in, SESSION_ID="s1"))
        check_answer(finished)
        assert len(stand_in.requests) == requests
    assert ended_calls(finished.stdout, "cached") == 1
    assert len(stage.executions) == 1


@pytest.mark.parametrize(("flags", "attempts", "requests"), [((), 1, 2), (("--no-durable-model",), 2, 4)])
async def test_a_failure_that_the_model_was_told_of_is_replayed_with_its_turns_and_else_tried_again(
    stage: Stage, stand_in: StandIn, flags: tuple[str, ...], attempts: int, requests: int
) -> None:
    stage.worker()
    stand_in.query = " "
    runs = [await stage.demo("Q", *flags, **keys(stand_in, SESSION_ID="s1")) for _ in range(2)]
    for finished in runs:
        assert ended_calls(finished.stdout, "failed ✗ The search query is empty") == 1
        assert answer(finished.stdout).startswith("It found: The search query is empty")
    assert (len(stage.executions), len(stand_in.requests)) == (attempts, requests)


@pytest.mark.parametrize("model", ["", "litellm/openai/gpt-stand-in"], ids=["openai", "litellm"])
async def test_a_key_that_is_refused_is_said_in_a_sentence(stage: Stage, stand_in: StandIn, model: str) -> None:
    stand_in.status = 401
    finished = await stage.demo("Q", **keys(stand_in), **({"MODEL": model} if model else {}))
    assert finished.code == 1
    assert "Incorrect API key provided." in finished.stdout
    assert no_traceback(finished)


async def test_a_model_server_that_cannot_be_reached_is_said_in_a_sentence(stage: Stage) -> None:
    finished = await stage.demo("Q", OPENAI_API_KEY="sk-test", OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert finished.code == 1
    assert "Connection error" in finished.stdout
    assert no_traceback(finished)


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ({"GOOGLE_API_KEY": "g"}, ("litellm/gemini/gemini-3.8-flash", "live")),
        ({"GEMINI_API_KEY": "g"}, ("litellm/gemini/gemini-3.8-flash", "live")),
        ({"GEMINI_API_KEY": "", "GOOGLE_API_KEY": "g"}, ("litellm/gemini/gemini-3.8-flash", "live")),
        ({"OPENAI_API_KEY": "o", "GEMINI_API_KEY": "g"}, (None, "live")),
        ({"MODEL": "litellm/other/model"}, ("litellm/other/model", "live")),
        ({"OPENAI_API_KEY": "o", "MODEL": "litellm/other/model"}, ("litellm/other/model", "live")),
        ({"GEMINI_API_KEY": ""}, ("offline agent", "offline, as neither OPENAI_API_KEY nor GEMINI_API_KEY is set")),
    ],
    ids=lambda value: " ".join(f"{name}={key}" for name, key in value.items()) if isinstance(value, dict) else "",
)
def test_the_keys_choose_the_model_and_model_overrides(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], chosen: tuple[str | None, str]
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    for name, key in keys.items():
        monkeypatch.setenv(name, key)
    assert choose_model(offline=False) == chosen
    assert choose_model(offline=True) == ("offline agent", "offline")
