"""What a durable session tells while it runs: one event when a turn or a call begins, and one when it ends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nexum_runtime.text import duration_text, printable_line, shorten

QUESTION_CHARS = 500  # shown of a question; `nexum approvals ID` has the whole
OUTCOMES = "--result 'what it returned', --failed 'why', or --retry to attempt it again"  # for `nexum resolve`


@dataclass(frozen=True)
class CallEvent:
    """What happened to a call: of a tool, a step, a guardrail, the SDK's memory, or a question to a person.

    `kind` is one of

      started     it begins: it is not recorded yet
      waiting     it waits; `detail` says for what: server, database, worker, approval, answer, or result
      approved    a person said yes to it
      answered    a question was answered; `detail` is the answer, and `by_default` says that nobody gave it in time
      rejected    a person said no; `detail` says why
      stored      it ended and is recorded
      cached      it came from the store, and nothing was executed
      failed      it ended without a result; `detail` says why
      unknown     it may or may not have happened, and is not attempted again; `detail` says what is known
      unrecorded  it ended, but cannot be recorded; the next run executes it again; `detail` says why
    """

    kind: Literal[
        "started",
        "waiting",
        "approved",
        "answered",
        "rejected",
        "stored",
        "cached",
        "failed",
        "unknown",
        "unrecorded",
    ]
    execution_id: str
    tool_name: str  # of a question to a person: ask_person
    tool_args: dict[str, Any]
    elapsed_ms: int = 0  # since it was submitted
    saved_ms: int = 0  # cached: what it took when it ran
    detail: str = ""
    by_default: bool = False


@dataclass(frozen=True)
class TurnEvent:
    """What happened to a turn of a model. The kinds are those of `CallEvent`."""

    kind: Literal["started", "waiting", "stored", "cached", "failed", "unrecorded"]
    execution_id: str
    number: int  # of the turns of this session so far, from 1
    model: str
    elapsed_ms: int = 0  # since it was asked for
    saved_ms: int = 0  # cached: what the model took
    tokens: int = 0  # what the model counted for it, now (stored) or then (cached)
    says: str = ""  # stored, cached: what the model does, in a few words
    detail: str = ""  # started: why it is not a recorded turn


DurableEvent: TypeAlias = CallEvent | TurnEvent
OnEvent: TypeAlias = Callable[[DurableEvent], None]


@dataclass
class Saved:
    """What came from the store, and what it cost when it was recorded."""

    turns: int = 0
    calls: int = 0
    duration_ms: int = 0
    tokens: int = 0

    def add(self, event: DurableEvent) -> None:
        """Count an event of kind "cached"."""
        self.duration_ms += event.saved_ms
        if isinstance(event, TurnEvent):
            self.turns += 1
            self.tokens += event.tokens
        else:
            self.calls += 1

    def __str__(self) -> str:
        """`3 turns and 5 calls came from the store, which saved 4.1 s and 1,234 tokens`."""
        costs = [duration_text(self.duration_ms)] if self.duration_ms else []
        costs += [f"{self.tokens:,} tokens"] if self.tokens else []
        saved = f", which saved {' and '.join(costs)}" if costs else ""
        return f"{counted(self.turns, self.calls) or 'Nothing'} came from the store{saved}"


def counted(turns: int, calls: int) -> str:
    """`3 turns and 1 call`, or "" for none of either."""
    counts = ((turns, "turn"), (calls, "call"))
    return " and ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count)


def question_text(asked: dict[str, Any]) -> str:
    """`Which account? (main, savings)`, on one line."""
    choices = f" ({', '.join(asked['choices'])})" if asked["choices"] else ""
    return printable_line(f"{shorten(asked['question'], QUESTION_CHARS)}{shorten(choices, QUESTION_CHARS)}")
