"""OpenTelemetry spans, if an OTLP endpoint is configured. Without one nothing of it is imported.

    client ── traceparent ──▶ server ── traceparent ──▶ worker

A span tells of an execution its id, its session, what ran and how that ended; never what went in or came out, nor the
words of an error.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from typing import Any, Literal, TypeAlias

from nexum_runtime.errors import Parked
from nexum_runtime.logs import Log
from nexum_runtime.text import error_text

Role: TypeAlias = Literal["client", "server", "worker"]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
TRANSPORTS = {"http/protobuf": "http", "grpc": "grpc"}
KINDS = {"client": "CLIENT", "server": "SERVER", "worker": "CONSUMER"}  # OpenTelemetry's names

log = Log("nexum.tracing")


class Span:
    """What is told of a piece of work: nothing, when nobody wants to know."""

    traceparent = ""  # as W3C has it: what goes on from here

    def tell(self, **attributes: str | int) -> None:
        """What there is to say: names of our own, without their prefix."""

    def running(self) -> AbstractContextManager[Any]:
        """What runs in this block is part of it. The block must be left where it was entered."""
        return nullcontext()


class _RecordedSpan(Span):
    def __init__(self, span: Any, traceparent: str) -> None:
        self._span = span
        self.traceparent = traceparent

    def tell(self, **attributes: str | int) -> None:
        with _nobodys():
            self._span.set_attributes({f"nexum.{name}": value for name, value in attributes.items() if value != ""})

    def running(self) -> AbstractContextManager[Any]:
        from opentelemetry.trace import use_span

        return use_span(self._span, record_exception=False, set_status_on_exception=False)


_NOTHING = nullcontext(Span())
_has_failed = False  # telling of a span: it was said


@contextmanager
def _nobodys() -> Iterator[None]:
    """A block of OpenTelemetry's, or of whoever it tells. What goes wrong is logged once, and is nobody's result."""
    global _has_failed
    try:
        yield
    except Exception as error:
        if not _has_failed:
            _has_failed = True
            log.warning("A span could not be sent. Nothing else is affected: %s", error, exc_info=error)


def span(
    role: Role,
    name: str,
    execution_id: str,
    *,
    parent: str = "",
    more: Callable[[], Mapping[str, str]] | None = None,
    **attributes: str | int,
) -> AbstractContextManager[Span]:
    """A span around a block, which may be left elsewhere than it was entered. An exception that leaves it is told.

    `parent` is a traceparent, by default that of the span the caller runs in; `more()` tells what has names not ours.
    """
    recorder = tracer(role)
    if recorder is None:
        return _NOTHING
    session, slash, _ = execution_id.partition("/")
    attributes |= {"execution_id": execution_id, "session": session if slash else ""}
    return _recorded(recorder, KINDS[role], name, parent, more, attributes)


def annotate(**attributes: str | int) -> None:
    """Tell more of the attempt that the caller is part of."""
    if tracer("worker") is not None:
        from opentelemetry import trace

        _RecordedSpan(trace.get_current_span(), "").tell(**attributes)


@contextmanager
def _recorded(
    recorder: Any,
    kind: str,
    name: str,
    parent: str,
    more: Callable[[], Mapping[str, str]] | None,
    attributes: Mapping[str, str | int],
) -> Iterator[Span]:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    wire_format, recorded, told = TraceContextTextMapPropagator(), None, Span()
    with _nobodys():
        context = wire_format.extract({"traceparent": parent}) if parent else None
        recorded = recorder.start_span(f"nexum.{name}", context, trace.SpanKind[kind], dict(more()) if more else {})
        carrier: dict[str, str] = {}
        wire_format.inject(carrier, trace.set_span_in_context(recorded))
        told = _RecordedSpan(recorded, carrier.get("traceparent", ""))
        told.tell(**attributes)
    try:
        yield told
    except (asyncio.CancelledError, GeneratorExit, Parked) as left:
        told.tell(outcome="parked" if isinstance(left, Parked) else "cancelled")
        raise
    except BaseException as error:
        told.tell(outcome="failed")
        with _nobodys():
            if recorded is not None:
                recorded.set_attribute("error.type", type(error).__name__)
                recorded.set_status(trace.StatusCode.ERROR)
        raise
    finally:
        with _nobodys():
            if recorded is not None:
                recorded.end()


@cache
def tracer(role: Role) -> Any:
    """OpenTelemetry's, or None. The program's own set-up of it is used if there is one.

    A process is called after its first role, unless OTEL_SERVICE_NAME says otherwise. The first call takes a moment.
    """
    if not _is_wanted():
        return None
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), "http/protobuf")
    transport = TRANSPORTS.get(protocol)
    if transport is None:
        log.warning("No spans are sent: the OTLP protocol is %r; it can be %s.", protocol, " or ".join(TRANSPORTS))
        return None
    try:
        from opentelemetry import trace

        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            trace.set_tracer_provider(_provider(role, transport))
        return trace.get_tracer("nexum")
    except ModuleNotFoundError as error:
        packages = f"opentelemetry-sdk opentelemetry-exporter-otlp-proto-{transport}"
        log.warning("No spans are sent, as there is no %s: pip install %s", error.name, packages)
    except ValueError as error:  # the value of one of its variables
        log.warning("No spans are sent: %s", error)
    except Exception as error:  # of what else it finds installed, or set up
        log.warning("No spans are sent: %s", error_text(error), exc_info=error)
    return None


def _is_wanted() -> bool:
    has_endpoint = any(os.environ.get(name) for name in ENDPOINTS)
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return has_endpoint and not is_disabled and os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "otlp"


def _provider(role: Role, transport: str) -> Any:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = import_module(f"opentelemetry.exporter.otlp.proto.{transport}.trace_exporter")
    has_name = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if has_name else {"service.name": f"nexum-{role}"}))
    provider.add_span_processor(BatchSpanProcessor(exporter.OTLPSpanExporter()))
    return provider
