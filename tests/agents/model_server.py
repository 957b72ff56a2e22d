"""A local stand-in for the model APIs. It counts its requests and never gives the same answer twice.

So a test can tell a model turn that was replayed from one that was asked for again:

    def roll_once(asked: Asked) -> Answer:
        return f"You rolled {asked.outputs[0]} ({asked.token})." if asked.outputs else [Call("roll_dice", {})]

    with ModelServer(roll_once) as server:
        ...  # run an agent with `server.environment`
    assert len(server.requests) == 2

It speaks OpenAI's Responses and Chat Completions and Gemini's generateContent as litellm calls it, whole and
streamed. What a turn does is decided by a *script*, a function of the request; how that looks on the wire is
written here, with ids that no other answer has. A request must hold the whole conversation.
"""

import base64
import json
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from offline import HOST, SITE

PIECE_CHARS = 12  # how much of a text or of a call's arguments one delta of a stream brings
SOCKET_SECONDS = 10  # how long a client may stay silent before its connection is given up

Json = dict[str, Any]
Said = Iterator[tuple[str, str]]  # who (system, user or tool), and what
Events = Iterator[tuple[Json, bool]]  # an event of a stream, and whether it is a delta


@dataclass(frozen=True)
class Asked:
    """One request, as every API means it."""

    number: int  # of the requests to this server, from 0
    token: str  # random, this request's own: a script puts it into what it answers, the server into all ids
    api: str  # responses, chat or gemini
    model: str
    instructions: str  # of Gemini models that litellm does not know, it makes something that the user said
    user: str  # the last thing that the user said
    outputs: list[str]  # what tools have returned since then, in order
    tools: list[str]  # the names of those on offer
    streamed: bool
    body: Json
    sent: bytes  # the body as it came

    def identity(self, kind: str, index: int = 0) -> str:
        return f"{kind}_{self.number}_{index}_{self.token}"


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Json


@dataclass(frozen=True)
class Failure:
    """An HTTP error. OpenAI's client asks again after 408, 409, 429 and 5xx, twice, unless it is told not to."""

    status: int
    message: str
    retry_after: float | None = None  # seconds


@dataclass(frozen=True)
class Hold:
    """An answer that is kept back until a test calls `released.set()`; a server that closes breaks it off."""

    answer: "str | Sequence[str | Call] | Failure"
    deltas: int = 0  # of a streamed answer: how many are sent before it stops, at most all
    reached: threading.Event = field(default_factory=threading.Event)  # set once the client has to wait
    released: threading.Event = field(default_factory=threading.Event)


Answer = str | Sequence[str | Call] | Failure | Hold
Script = Callable[[Asked], Answer]


def research(asked: Asked) -> Answer:
    """What an agent that researches may do: two searches in parallel, visits to two of the pages found, an answer.

    Every search has a word in it that no search had before, so a turn that is asked for again leads to other calls.
    """
    if not asked.outputs:
        queries = [f"{subject} {asked.token} {SITE}" for subject in ("durable execution", "idempotency key")]
        return [Call("web_search", {"query": query, "max_results": 3}) for query in queries]
    urls = list(dict.fromkeys(re.findall(rf"https://{HOST}/[\w-]+", "\n".join(asked.outputs[:2]))))[:2]
    if len(asked.outputs) == 2 and urls:
        return [Call("visit_webpage", {"url": url}) for url in urls]
    return f"A durable run keeps each result ({asked.token}). Read: {', '.join(urls) or 'nothing was found'}."


class ModelServer(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1 from the start until `close`, or to the end of a `with`.

    `requests` are the requests so far, each there before it is answered.
    """

    daemon_threads = False  # closing waits for every answer
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[Asked] = []
        self.closing = threading.Event()
        self._arriving = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # that is a client that was killed, or a hold broken off
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def environment(self) -> dict[str, str]:
        """What leads the `openai` client and litellm here."""
        openai = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": self.url}
        gemini = {"GEMINI_API_KEY": "g-test", "GEMINI_API_BASE": self.url}
        return openai | gemini | {"OPENAI_AGENTS_DISABLE_TRACING": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    def arrived(self, api: "_Api", path: str, sent: bytes) -> Asked:
        body = json.loads(sent)
        instructions, user, outputs = list[str](), "", list[str]()
        for who, text in api.said(body):
            if who == "system":
                instructions.append(text)
            elif who == "user":
                user, outputs = text, []
            else:
                outputs.append(text)
        model, _, method = path.partition("/models/")[2].partition(":")
        with self._arriving:
            asked = Asked(
                number=len(self.requests),
                token=secrets.token_hex(4),
                api=api.name,
                model=model or body["model"],
                instructions="\n".join(instructions),
                user=user,
                outputs=outputs,
                tools=list(api.tools(body)),
                streamed=method.startswith("stream") or body.get("stream") is True,
                body=body,
                sent=sent,
            )
            self.requests.append(asked)
        return asked


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"  # for its chunks: a client can tell a stream that broke off from one that ended
    timeout = SOCKET_SECONDS

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["content-length"]))
        api = next((api for api in _APIS if re.search(api.path, self.path)), None)
        if api:
            self._answer(api, self.server.arrived(api, self.path, sent))
        else:
            self._fail(Failure(404, f"The model server has no {self.path}."))

    def _answer(self, api: "_Api", asked: Asked) -> None:
        hold = None
        try:
            answer = self.server.script(asked)
        except Exception as error:
            answer = Failure(400, f"The script of the model server failed: {error!r}")
        if isinstance(answer, Hold):
            hold, answer = answer, answer.answer
        streamed = asked.streamed and not isinstance(answer, Failure)
        if hold and not (streamed and hold.deltas):
            self._wait(hold)
        if isinstance(answer, Failure):
            return self._fail(answer)
        whole = api.whole(asked, [answer] if isinstance(answer, str) else answer)
        if streamed:
            return self._stream(list(api.events(asked, whole)), api.last, hold)
        return self._send(200, whole)

    def _wait(self, hold: Hold) -> None:
        hold.reached.set()
        while not hold.released.wait(0.01):
            if self.server.closing.is_set():
                raise ConnectionAbortedError

    def _fail(self, failure: Failure) -> None:
        headers = {} if failure.retry_after is None else {"retry-after": f"{failure.retry_after:g}"}
        self._send(failure.status, {"error": {"message": failure.message, "type": "error", "code": None}}, headers)

    def _send(self, status: int, body: Json, headers: dict[str, str] | None = None) -> None:
        payload = json.dumps(body).encode()
        self._head(status, {"content-type": "application/json", "content-length": str(len(payload))} | (headers or {}))
        self.wfile.write(payload)

    def _stream(self, events: list[tuple[Json, bool]], last: str, hold: Hold | None) -> None:
        after_delta = [place for place, (_, is_delta) in enumerate(events, start=1) if is_delta]
        pause = after_delta[: hold.deltas][-1] if hold and hold.deltas else None
        self._head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
        for place, (event, _) in enumerate(events):
            if hold and place == pause:
                self._wait(hold)
            named = f"event: {event['type']}\n" if "type" in event else ""
            self._chunk(f"{named}data: {json.dumps(event)}\n\n{last if place == len(events) - 1 else ''}")
        self._chunk("")

    def _chunk(self, text: str) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(text.encode()), text.encode()))

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"connection": "close"}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class _Responses:
    name = "responses"
    path = r"/responses$"  # a pattern
    last = ""  # what a stream ends with besides its events

    def said(self, body: Json) -> Said:
        yield "system", body.get("instructions") or ""
        items = [{"role": "user", "content": body["input"]}] if isinstance(body["input"], str) else body["input"]
        for item in items:
            if item.get("role") == "user":
                yield "user", _text(item["content"])
            elif item.get("type") == "function_call_output":
                yield "tool", _text(item["output"])

    def tools(self, body: Json) -> Iterator[str]:
        return (tool["name"] for tool in body.get("tools", []) if "name" in tool)

    def whole(self, asked: Asked, parts: Sequence[str | Call]) -> Json:
        """A turn that calls tools has reasoned before, in words that only the server can read."""
        output: list[Json] = []
        if any(isinstance(part, Call) for part in parts):
            secret = base64.b64encode(asked.token.encode()).decode()
            output = [{"type": "reasoning", "id": asked.identity("rs"), "summary": [], "encrypted_content": secret}]
        for index, part in enumerate(parts):
            if isinstance(part, Call):
                identity = {"id": asked.identity("fc", index), "call_id": asked.identity("call", index)}
                item: Json = {
                    "type": "function_call",
                    "name": part.name,
                    "arguments": json.dumps(part.arguments),
                } | identity
            else:
                identity = {"id": asked.identity("msg", index), "role": "assistant"}
                text = {"type": "output_text", "text": part, "annotations": [], "logprobs": []}
                item = {"type": "message", "content": [text]} | identity
            output.append(item | {"status": "completed"})
        read, written = _tokens(asked, parts)
        return {
            "id": asked.identity("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "completed",
            "model": asked.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": asked.body.get("tools", []),
            "usage": {
                "input_tokens": read,
                "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
                "output_tokens": written,
                "output_tokens_details": {"reasoning_tokens": 1},
                "total_tokens": read + written,
            },
        }

    def events(self, asked: Asked, whole: Json) -> Events:
        for number, event in enumerate(self._events(whole)):
            yield event | {"sequence_number": number}, "delta" in event

    def _events(self, whole: Json) -> Iterator[Json]:
        begun = whole | {"status": "in_progress", "output": [], "usage": None}
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        for index, item in enumerate(whole["output"]):
            empty = {"function_call": {"arguments": ""}, "message": {"content": []}, "reasoning": {}}[item["type"]]
            added = item | empty | ({"status": "in_progress"} if empty else {})
            yield {"type": "response.output_item.added", "output_index": index, "item": added}
            at = {"output_index": index, "item_id": item["id"]}
            if item["type"] == "function_call":
                event = "response.function_call_arguments"
                for piece in _pieces(item["arguments"]):
                    yield {"type": f"{event}.delta", "delta": piece} | at
                yield {"type": f"{event}.done", "name": item["name"], "arguments": item["arguments"]} | at
            elif item["type"] == "message":
                part, at = item["content"][0], at | {"content_index": 0}
                yield {"type": "response.content_part.added", "part": part | {"text": ""}} | at
                for piece in _pieces(part["text"]):
                    yield {"type": "response.output_text.delta", "delta": piece, "logprobs": []} | at
                yield {"type": "response.output_text.done", "text": part["text"], "logprobs": []} | at
                yield {"type": "response.content_part.done", "part": part} | at
            yield {"type": "response.output_item.done", "output_index": index, "item": item}
        yield {"type": "response.completed", "response": whole}


class _Chat:
    name, path, last = "chat", r"/chat/completions$", "data: [DONE]\n\n"

    def said(self, body: Json) -> Said:
        for message in body["messages"]:
            who = "system" if message["role"] == "developer" else message["role"]
            if who != "assistant":
                yield who, _text(message["content"])

    def tools(self, body: Json) -> Iterator[str]:
        return (tool["function"]["name"] for tool in body.get("tools") or [])

    def whole(self, asked: Asked, parts: Sequence[str | Call]) -> Json:
        functions = [
            {"name": part.name, "arguments": json.dumps(part.arguments)} for part in parts if isinstance(part, Call)
        ]
        calls = [
            {"id": asked.identity("call", index), "type": "function", "function": function}
            for index, function in enumerate(functions)
        ]
        text = "\n".join(part for part in parts if isinstance(part, str))
        message = {"role": "assistant", "content": text or None} | ({"tool_calls": calls} if calls else {})
        read, written = _tokens(asked, parts)
        return {
            "id": asked.identity("chatcmpl"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": asked.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}],
            "usage": {
                "prompt_tokens": read,
                "prompt_tokens_details": {"cached_tokens": 1},
                "completion_tokens": written,
                "completion_tokens_details": {"reasoning_tokens": 1},
                "total_tokens": read + written,
            },
        }

    def events(self, asked: Asked, whole: Json) -> Events:
        (choice,) = whole["choices"]
        message = choice["message"]

        def chunk(delta: Json, finish_reason: str | None = None) -> Json:
            choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
            return whole | {"object": "chat.completion.chunk", "choices": choices, "usage": None}

        yield chunk({"role": "assistant", "content": ""}), False
        for piece in _pieces(message["content"] or ""):
            yield chunk({"content": piece}), True
        for index, call in enumerate(message.get("tool_calls", [])):
            function = call["function"] | {"arguments": ""}
            yield chunk({"tool_calls": [{"index": index} | call | {"function": function}]}), False
            for piece in _pieces(call["function"]["arguments"]):
                yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}), True
        yield chunk({}, choice["finish_reason"]), False
        if (asked.body.get("stream_options") or {}).get("include_usage"):
            yield chunk({}) | {"choices": [], "usage": whole["usage"]}, False


class _Gemini:
    name, path, last = "gemini", r"/models/[^/]+:(generateContent|streamGenerateContent\?alt=sse)$", ""

    def said(self, body: Json) -> Said:
        yield "system", _text(body.get("system_instruction", {}).get("parts", []))
        for part in (part for content in body["contents"] if content["role"] == "user" for part in content["parts"]):
            if "text" in part:
                yield "user", part["text"]
            else:  # an output that is a JSON object stands for itself, any other is in one
                output = part["function_response"]["response"]
                yield "tool", output["content"] if list(output) == ["content"] else json.dumps(output)

    def tools(self, body: Json) -> Iterator[str]:
        return (tool["name"] for group in body.get("tools", []) for tool in group.get("function_declarations", []))

    def whole(self, asked: Asked, parts: Sequence[str | Call]) -> Json:
        """Calls have no ids here: litellm makes them up, out of the signature among others."""
        signature = base64.b64encode(asked.token.encode()).decode()
        content = [
            {"functionCall": {"name": part.name, "args": part.arguments}, "thoughtSignature": signature}
            if isinstance(part, Call)
            else {"text": part}
            for part in parts
        ]
        read, written = _tokens(asked, parts)
        return {
            "responseId": asked.identity("gemini"),
            "modelVersion": asked.model,
            "candidates": [{"index": 0, "content": {"role": "model", "parts": content}, "finishReason": "STOP"}],
            "usageMetadata": {
                "promptTokenCount": read,
                "cachedContentTokenCount": 1,
                "candidatesTokenCount": written,
                "totalTokenCount": read + written,
            },
        }

    def events(self, asked: Asked, whole: Json) -> Events:
        """A call comes whole: Gemini has no deltas of arguments, so here it counts as one."""
        shared = {name: whole[name] for name in ("responseId", "modelVersion")}
        for part in whole["candidates"][0]["content"]["parts"]:
            for piece in [part] if "functionCall" in part else [{"text": text} for text in _pieces(part["text"])]:
                yield shared | {"candidates": [{"index": 0, "content": {"role": "model", "parts": [piece]}}]}, True
        end = {"index": 0, "content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP"}
        yield shared | {"candidates": [end], "usageMetadata": whole["usageMetadata"]}, False


_Api = _Responses | _Chat | _Gemini
_APIS: tuple[_Api, ...] = (_Responses(), _Chat(), _Gemini())


def _text(content: str | list[Json]) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def _pieces(text: str) -> list[str]:
    return [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]


def _tokens(asked: Asked, parts: Sequence[str | Call]) -> tuple[int, int]:
    """How many were read and written, if four characters are one."""
    return len(json.dumps(asked.body)) // 4, len(str(parts)) // 4
