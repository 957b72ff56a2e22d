"""Sees every call of `Runner` in a test: what it came to, its events, the hooks that were called, and its spans.

`with watching() as watch:` replaces a few functions of the SDK by ones that note and call the original, and puts the
originals back at the end. `watch.calls` then has a `Call` for each `Runner.run`, `run_sync` and `run_streamed`, in the
order of their beginnings; one that began inside another (an agent as a tool) has that one as `parent`.
"""

import functools
import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest
from agents.lifecycle import AgentHooksBase, RunHooksBase
from agents.result import RunResultStreaming
from agents.run import AgentRunner
from agents.tracing.provider import SynchronousMultiTracingProcessor
from compare import difference, plain, result_of, unordered

UNREADABLE = {"<unreadable>": True}  # what a test made so that looking at it raises
IN_ANY_ORDER = ("hooks", "spans")  # work side by side calls and makes these in no certain order

_call: ContextVar["Call | None"] = ContextVar("watched_call", default=None)


def readable(look: Callable[[], Any]) -> Any:
    """What `look` returns; a mark if it raises, as for objects of a test that cannot be looked at."""
    try:
        return look()
    except Exception:
        return UNREADABLE


@dataclass
class Call:
    """One call of `Runner`."""

    name: str  # the agents and inputs that led here: the same in every run of the test
    how: str  # "run" or "run_streamed"
    parent: "Call | None"
    again: Any = None  # what is needed to call it once more
    result: Any = None
    error: Any = None
    why_not_whole: str = ""  # it has no result to compare a replay with, and why
    events: list[Any] = field(default_factory=list)
    hooks: list[Any] = field(default_factory=list)
    spans: list[dict[str, Any]] = field(default_factory=list)
    span_numbers: dict[str, int] = field(default_factory=dict)  # by the SDK's random id

    def ended(self, result: Any) -> None:
        self.result = readable(lambda: result_of(result))

    def failed(self, error: BaseException) -> None:
        self.error = readable(lambda: plain(error))
        self.why_not_whole = "the run ended in an error"

    def differs(self, other: "Call") -> list[str]:
        """Where this call and another one of the same differ, in lines."""
        found = []
        for what in ("result", "error", "events", *IN_ANY_ORDER):
            one, two = getattr(self, what), getattr(other, what)
            if what in IN_ANY_ORDER and one != two and unordered(one) == unordered(two):
                continue
            if (line := difference(one, two, what)) is not None:
                found.append(line)
        return found


class Watch:
    """The calls that were seen. `remember(agent, input, options)` makes what `Call.again` is to be."""

    def __init__(self, remember: Callable[[Any, Any, dict[str, Any]], Any] | None) -> None:
        self.calls: list[Call] = []
        self._names: Counter[str] = Counter()
        self._remember = remember

    def begin(self, how: str, agent: Any, input: Any, options: dict[str, Any]) -> Call:
        parent = _call.get()
        asked = input if isinstance(input, str | list) else type(input).__name__
        name = readable(lambda: f"{getattr(agent, 'name', agent)}({str(plain(asked))[:60]})")
        name = f"{parent.name} > {name}" if parent else str(name)
        call = Call(f"{name} #{self._names[name]}", how, parent)
        self._names[name] += 1
        if parent is None and self._remember is not None:
            call.again = self._remember(agent, input, options)
        self.calls.append(call)
        return call

    @contextmanager
    def aside(self) -> Iterator[list[Call]]:
        """What is called in this block is noted in a list of its own."""
        calls, names, remember = self.calls, self._names, self._remember
        self.calls, self._names, self._remember = [], Counter(), None
        token = _call.set(None)
        try:
            yield self.calls
        finally:
            self.calls, self._names, self._remember = calls, names, remember
            _call.reset(token)


@contextmanager
def watching(remember: Callable[[Any, Any, dict[str, Any]], Any] | None = None) -> Iterator[Watch]:
    """Note every call of `Runner` in the block."""
    watch = Watch(remember)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AgentRunner, "run", _watched_run(AgentRunner.run, watch))
        patch.setattr(AgentRunner, "run_streamed", _watched_run_streamed(AgentRunner.run_streamed, watch))
        _watch_hooks(patch)
        _watch_spans(patch)
        yield watch


def _watched_run(run: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    @functools.wraps(run)
    async def watched(self: Any, starting_agent: Any, input: Any, **options: Any) -> Any:
        call = watch.begin("run", starting_agent, input, options)
        token = _call.set(call)
        try:
            result = await run(self, starting_agent, input, **options)
        except BaseException as error:
            call.failed(error)
            raise
        finally:
            _call.reset(token)
        call.ended(result)
        return result

    return watched


def _watched_run_streamed(run_streamed: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    @functools.wraps(run_streamed)
    def watched(self: Any, starting_agent: Any, input: Any, **options: Any) -> Any:
        call = watch.begin("run_streamed", starting_agent, input, options)
        token = _call.set(call)  # for the task that begins in here
        try:
            result = run_streamed(self, starting_agent, input, **options)
        except BaseException as error:
            call.failed(error)
            raise
        finally:
            _call.reset(token)
        if isinstance(result, RunResultStreaming) and result.run_loop_task is not None:
            _watch_stream(result, call)
        return result

    return watched


def _watch_stream(result: RunResultStreaming, call: Call) -> None:
    call.why_not_whole = "the stream had not ended when the test did"
    queue = result._event_queue
    put: Callable[[Any], None] = queue.put_nowait

    def watched_put(event: Any) -> None:
        call.events.append(readable(lambda: plain(event)))
        put(event)

    vars(queue)["put_nowait"] = watched_put
    seen = weakref.ref(result)  # tests look whether it is let go

    def ended(task: Any) -> None:
        if task.cancelled():
            call.why_not_whole = "the test cancelled the stream"
            return
        if (error := task.exception()) is not None:
            call.failed(error)
            return
        whole = seen()
        if whole is None:
            call.why_not_whole = "the test let go of the stream"
            return
        call.why_not_whole = "the test cancelled the stream" if whole._cancel_mode != "none" else ""
        call.ended(whole)
        if (stored := whole._stored_exception) is not None:
            call.failed(stored)

    assert result.run_loop_task is not None
    result.run_loop_task.add_done_callback(ended)


def _watch_hooks(patch: pytest.MonkeyPatch) -> None:
    """Note the calls of all hooks: of the classes that there are, and of those that a test makes."""

    def watch_class(kind: type) -> None:
        for name, method in list(vars(kind).items()):
            if name.startswith("on_") and inspect.iscoroutinefunction(method):
                patch.setattr(kind, name, _watched_hook(name, method))

    def watch_new_classes(base: Any) -> None:
        def made(kind: Any, /, **named: Any) -> None:
            super(base, kind).__init_subclass__(**named)
            watch_class(kind)

        patch.setattr(base, "__init_subclass__", classmethod(made), raising=False)

    for base in (RunHooksBase, AgentHooksBase):
        for kind in subclasses(base):
            watch_class(kind)
        watch_new_classes(base)


def _watched_hook(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def watched(self: Any, *asked: Any, **named: Any) -> Any:
        if (call := _call.get()) is not None:
            given = [*asked[1:], *(part for key, part in named.items() if key != "context")]  # not the context
            call.hooks.append([name, *(readable(functools.partial(_hook_part, part)) for part in given)])
        return await method(self, *asked, **named)

    return watched


def _hook_part(part: Any) -> Any:
    return part.name if hasattr(part, "name") else plain(part)  # agents and tools by their names


def _watch_spans(patch: pytest.MonkeyPatch) -> None:
    """Note the traces and spans that begin and end in a call."""

    def note_trace(trace: Any, call: Call) -> None:
        exported = {key: part for key, part in (trace.export() or {}).items() if key != "id"}
        call.spans.append({"trace": plain(exported)})

    def note_start(span: Any, call: Call) -> None:
        call.span_numbers[span.span_id] = len(call.spans)
        parent = call.span_numbers.get(span.parent_id)
        call.spans.append({"parent": call.spans[parent].get("name", "") if parent is not None else ""})
        call.spans[-1]["name"] = str(getattr(span.span_data, "name", None) or span.span_data.type)

    def note_end(span: Any, call: Call) -> None:
        if (number := call.span_numbers.get(span.span_id)) is not None:
            exported = span.export() or {}
            call.spans[number] |= {"data": plain(exported.get("span_data")), "error": plain(exported.get("error"))}

    def watch_method(name: str, note: Callable[[Any, Call], None]) -> None:
        method = getattr(SynchronousMultiTracingProcessor, name)

        @functools.wraps(method)
        def watched(self: Any, what: Any) -> None:
            if (call := _call.get()) is not None:
                readable(lambda: note(what, call))
            method(self, what)

        patch.setattr(SynchronousMultiTracingProcessor, name, watched)

    watch_method("on_trace_start", note_trace)
    watch_method("on_span_start", note_start)
    watch_method("on_span_end", note_end)


def subclasses(kind: type) -> list[type]:
    """A class and all that are made from it, each once."""
    found: dict[type, None] = {kind: None}
    below: list[type] = kind.__subclasses__()
    for each in below:
        found |= dict.fromkeys(subclasses(each))
    return list(found)
