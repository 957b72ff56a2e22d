"""Spans from real processes, as a collector gets them, and what becomes of a trace's context on its way."""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from command import ECHO, Text, claim
from nexum import workflow
from nexum.context import ContextView
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp import collector
from processes import NexumDev, environment, remote, run
from test_demo import ROOT, Stage

from nexum_runtime import Client, TaskError, Worker, tracing
from nexum_runtime.server.app import Server

OBSERVABILITY = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
TRACE = "ab" * 16
TRACEPARENT = f"00-{TRACE}-{'cd' * 8}-01"

AGENT = f"""
import asyncio
from agents import Agent, Runner, function_tool, set_trace_processors, trace
from agents.testing import ScriptedModel, assistant_message, function_call
from nexum_agents import durable_session, durable_tool
from tools import web_search

@function_tool
def note(text: str) -> str:
    return "secret-result"

async def main():
    set_trace_processors([])
    search = function_call("web_search", {{"query": "secret-query"}}, call_id="a")
    noted = function_call("note", {{"text": "secret-text"}}, call_id="b")
    model = ScriptedModel([[search, noted], [assistant_message("secret-answer")]])
    agent = Agent(name="Researcher", tools=[durable_tool(web_search), note], model=model)
    with durable_session("s1"), trace("research", trace_id="trace_{TRACE}"):
        print((await Runner.run(agent, "secret-question")).final_output)

asyncio.run(main())
"""


async def test_one_trace_goes_through_agent_server_and_worker_and_tells_no_secrets(tmp_path: Path) -> None:
    with collector() as told:
        nexum_env = environment(NEXUM_EXIT_WITH_PARENT="1", **told.settings)
        async with NexumDev(tmp_path, env=nexum_env) as nexum:
            stage = Stage(tmp_path, nexum)
            worker = stage.worker(**told.settings)
            env = stage.environment(OPENAI_AGENTS_DISABLE_TRACING="0", **told.settings)
            finished = await run(sys.executable, "-c", AGENT, env=env, cwd=ROOT)
            assert finished.stdout == "secret-answer\n", finished.stderr
            worker.terminate()
            nexum.terminate()
            assert (await worker.ended(), await nexum.ended()) == (0, 0)
    (call,) = told.named("execute")
    served = [span for span in told.named("Execute") if span.parent_id == call.span_id]
    (attempt,) = told.named("attempt")
    assert {call.trace_id} == {attempt.trace_id} == {span.trace_id for span in served}
    assert attempt.parent_id in [span.span_id for span in served]
    services = [(span.service, SpanMessage.SpanKind.Name(span.kind)) for span in (call, served[0], attempt)]
    assert services == [
        ("nexum-client", "SPAN_KIND_CLIENT"),
        ("nexum-server", "SPAN_KIND_SERVER"),
        ("nexum-worker", "SPAN_KIND_CONSUMER"),
    ]
    execution_id = call.attributes["nexum.execution_id"]
    assert execution_id.startswith("s1/web_search/")
    assert attempt.attributes == {
        "nexum.execution_id": execution_id,
        "nexum.session": "s1",
        "nexum.workflow": "openai-agents-tool-call",
        "nexum.node": "tool_call",
        "nexum.tool": "web_search",
        "nexum.attempt": 1,
        "nexum.worker": attempt.attributes["nexum.worker"],
        "nexum.outcome": "completed",
    }
    assert served[-1].attributes["nexum.outcome"] == call.attributes["nexum.outcome"] == "COMPLETED"
    local = told.named("local_effect")
    assert len(local) == 4  # two turns, a note and the end
    assert {span.attributes["nexum.outcome"] for span in local} == {"COMPLETED"}
    assert {span.span_id for span in local} < {span.parent_id for span in told.named("Execute")}
    for span in (call, *local):
        assert span.attributes["openai_agents.trace_id"] == f"trace_{TRACE}"
        if "/run-end/" not in span.attributes["nexum.execution_id"]:  # the SDK's spans have ended by then
            assert span.attributes["openai_agents.span_id"].startswith("span_")
    assert b"secret" not in told.received
    said = {name for span in told.spans for name in (span.name, *span.attributes)}
    assert said <= set(re.findall(r"`([\w.]+)`", OBSERVABILITY))


async def test_a_server_hands_a_trace_on_to_each_attempt_and_forgets_it_at_the_end(
    server: Server, client: Client
) -> None:
    await client.register(ECHO)
    request = pb.StartRequest(workflow_id="echo", version_hash=ECHO.version_hash, input_json="{}")
    stub = pb_grpc.NexumServiceStub(remote(client).connection.channel)
    traces = server.engine._executions._course._traces
    for execution_id, given, handed_on in (("s/1", TRACEPARENT, [TRACEPARENT] * 2), ("s/2", 'x","y":"', [None] * 2)):
        metadata = (("nexum-execution-id", execution_id), ("traceparent", given))
        await stub.StartExecution(request, metadata=metadata)
        handed = []
        for _ in range(2):
            claimed = await client.poll("worker-1", ECHO, lease_ms=60_000)
            assert claimed is not None
            handed.append(json.loads(claimed.input_json).get("traceparent"))
            await client.fail(claimed.task_id, "Its worker was stopped.", interrupted=True)
        assert handed == handed_on
        await client.complete(await claim(client), "{}")
        await stub.StartExecution(request, metadata=metadata)  # it has ended, and nobody attempts it any more
    assert not traces


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of this process."""
    told, provider = InMemorySpanExporter(), TracerProvider()
    vars(provider)["_disabled"] = False  # which the tests' environment says
    provider.add_span_processor(SimpleSpanProcessor(told))
    monkeypatch.setattr(tracing, "tracer", lambda role: provider.get_tracer("nexum"))
    return told


def attributes(spans: InMemorySpanExporter, name: str) -> list[dict[str, Any]]:
    return [dict(span.attributes or {}) for span in spans.get_finished_spans() if span.name == f"nexum.{name}"]


async def test_a_failure_is_told_by_its_type_and_an_attempt_that_follows_is_part_of_the_trace(
    server: Server, client: Client, spans: InMemorySpanExporter
) -> None:
    attempts = 0

    async def fail(_: ContextView) -> Text:
        nonlocal attempts
        attempts += 1
        raise TaskError("secret", retryable=attempts < 2)

    failing = workflow("failing").effect("run", Text, fail).build()
    worker = Worker([failing], port=server.port, poll_interval=0.01)
    working = asyncio.create_task(worker.run())
    outcome = await client.execute(failing, {}, execution_id="s/1")
    worker.stop()
    await working
    told = [(each["nexum.attempt"], each["nexum.outcome"], each["error.type"]) for each in attributes(spans, "attempt")]
    assert told == [(1, "failed", "TaskError"), (2, "failed", "TaskError")]
    assert (outcome.status, attributes(spans, "execute")[0]["nexum.outcome"]) == ("FAILED", "FAILED")
    finished = spans.get_finished_spans()
    assert len({span.context.trace_id for span in finished if span.context}) == 1
    assert "secret" not in "".join(span.to_json() for span in finished)
    assert not any(span.events for span in finished)


async def test_what_a_local_effect_does_is_part_of_its_span(client: Client, spans: InMemorySpanExporter) -> None:
    from opentelemetry import trace

    running = []

    async def effect() -> dict[str, str]:
        running.append(trace.get_current_span().get_span_context().span_id)
        return {"text": "x"}

    for _ in range(2):
        await client.run_local(ECHO, {}, effect, execution_id="s/1")
    first, second = (span for span in spans.get_finished_spans() if span.name == "nexum.local_effect")
    assert first.context is not None
    assert running == [first.context.span_id]
    assert not trace.get_current_span().get_span_context().is_valid
    told = [(each["nexum.before"], each["nexum.outcome"]) for each in attributes(spans, "local_effect")]
    assert told == [("NEW", "COMPLETED"), ("COMPLETED", "COMPLETED")]
    assert second.attributes


async def test_a_call_that_is_refused_is_told_as_one(client: Client, spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="secret"):
        async with client.local_effect(ECHO, {}, execution_id="s/1"):
            raise ValueError("secret")
    (told,) = attributes(spans, "local_effect")
    assert (told["nexum.outcome"], told["error.type"]) == ("failed", "ValueError")


class Broken(SpanProcessor):
    """Raises whenever it is told of a span."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        raise RuntimeError("the processor is broken")

    def on_end(self, span: Any) -> None:
        raise RuntimeError("the processor is broken")


async def test_what_a_processor_of_spans_raises_is_logged_once_and_is_nobodys_result(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider()
    vars(provider)["_disabled"] = False  # which the tests' environment says
    provider.add_span_processor(Broken())
    monkeypatch.setattr(tracing, "tracer", lambda role: provider.get_tracer("nexum"))
    monkeypatch.setattr(tracing, "_has_failed", False)

    async def effect() -> dict[str, str]:
        return {"text": "x"}

    def raises() -> dict[str, str]:
        raise RuntimeError("no attributes")

    async with Client(address, span_attributes=raises) as client:
        for n in range(2):
            assert (await client.run_local(ECHO, {}, effect, execution_id=f"s/{n}")).status == "COMPLETED"
        with pytest.raises(ValueError, match="its own"):
            async with client.local_effect(ECHO, {}, execution_id="s/3"):
                raise ValueError("its own")
    assert [record.name for record in caplog.records].count("nexum.tracing") == 1


# Off

NOTHING = """
import asyncio, sys
from pathlib import Path
from nexum import workflow
from pydantic import BaseModel
from nexum_runtime import Client, Worker
from nexum_runtime.server.app import Server, ServerConfig

class Text(BaseModel):
    text: str

async def run(context):
    return Text(text="done")

async def main():
    server = Server(ServerConfig(Path(sys.argv[1]), port=0))
    await server.start()
    built = workflow("echo").effect("run", Text, run).build()
    worker = Worker([built], port=server.port)
    working = asyncio.create_task(worker.run())
    async with Client(f"localhost:{server.port}") as client:
        outcome = await client.execute(built, {}, execution_id="s/1")
        await client.run_local(built, {}, lambda: asyncio.sleep(0, {"text": "here"}), execution_id="s/2")
    worker.stop()
    await working
    await server.stop()
    wanted = ("opentelemetry", "prometheus_client", "requests", "nexum_runtime.server.web.scrape")
    print(outcome.status, sorted(name for name in sys.modules if name.startswith(wanted)))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "settings",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:1", "OTEL_SDK_DISABLED": "true"}],
    ids=["nothing set", "disabled"],
)
async def test_without_an_endpoint_and_a_metrics_port_nothing_is_imported_for_them(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    finished = await run(sys.executable, "-c", NOTHING, tmp_path / "nexum.db", env=environment(**settings))
    assert finished.stdout == "COMPLETED []\n", finished


async def test_without_the_packages_it_says_so_once_and_calls_go_on(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    tracing.tracer.cache_clear()
    for execution_id in ("s/1", "s/2"):
        outcome = await client.run_local(ECHO, {}, lambda: asyncio.sleep(0, {}), execution_id=execution_id)
        assert outcome.status == "COMPLETED"
    tracing.tracer.cache_clear()
    said = [record.getMessage() for record in caplog.records if record.name == "nexum.tracing"]
    assert set(said) == {
        "No spans are sent, as there is no opentelemetry.sdk.trace: "
        "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
    }
    assert len(said) == 2  # by the server and by the client


async def test_a_setting_that_is_none_is_named_and_calls_go_on(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke")
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    tracing.tracer.cache_clear()
    outcome = await client.run_local(ECHO, {}, lambda: asyncio.sleep(0, {}), execution_id="s/1")
    tracing.tracer.cache_clear()
    assert outcome.status == "COMPLETED"
    assert "No spans are sent: the OTLP protocol is 'smoke'; it can be http/protobuf or grpc." in caplog.text
