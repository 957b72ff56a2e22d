"""What a person is asked at an approval, and until when: a yes, or the answer to a question.

An execution is started with `nexum-question: true` when its approvals are questions. Then its input is an object with
what is asked, and the answers there may be, if not every text is one:

    {"question": "Which account?", "choices": ["main", "savings"]}

The answer is the comment of a yes, as the protocol has it, and the node's output is that of a yes:

    {"approved": true, "approver": "anna", "comment": "main"}

With `nexum-takes-args: true` a yes may be to other arguments: they are in the output as `"args"`, and whatever depends
on the node has to heed them. With `nexum-deadline-ms` a node waits no longer than that for a person, from when it was
first asked. Then the answer is what `nexum-default` says, and `"by_default": true` stands in the output. Without a
default the execution has failed. What the start says of all this is kept in its first event.
"""

from typing import Any, NamedTuple

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded
from nexum_runtime.server.model.contract import Execution, Reader
from nexum_runtime.server.model.shapes import StartOrder
from nexum_runtime.text import shorten

SHOWN_CHARS = 300  # of choices, or an answer, in an error


class Asked(NamedTuple):
    """What is asked at the approvals of an execution."""

    takes_args: bool  # a yes may be to other arguments
    choices: list[str] | None  # the answers there may be, [] for any text; None when it is a yes that is asked for
    deadline_ms: int | None  # since it was asked
    default: str | None  # the answer then

    def of_event(self, now_ms: int) -> dict[str, Any]:
        """What the event tells by which it begins to wait."""
        told = {
            "choices": self.choices,
            "due_at_ms": self.deadline_ms and now_ms + self.deadline_ms,
            "default": self.default,
        }
        return {name: value for name, value in told.items() if value is not None}


def of_start(order: StartOrder) -> dict[str, Any]:
    """What the event of a start keeps."""
    kept = {
        "question": order.asks or None,
        "takes_args": order.takes_args or None,
        "deadline_ms": order.deadline_ms,
        "default": order.default,
    }
    return {name: value for name, value in kept.items() if value is not None}


def asked(reader: Reader, execution: Execution) -> Asked:
    kept = reader.events(execution.execution_id)[0].data
    choices = wire.parse_json(execution.input_json).get("choices") or [] if kept.get("question") else None
    return Asked(bool(kept.get("takes_args")), choices, kept.get("deadline_ms"), kept.get("default"))


def check_question(order: StartOrder) -> None:
    """Refuse an order whose question cannot be asked. Its input is JSON."""
    if order.default is not None and not (order.asks and order.deadline_ms):
        raise InvalidRequest(
            f"{wire.DEFAULT} is for a question that has a deadline: {wire.QUESTION}, {wire.DEADLINE_MS}."
        )
    if not order.asks:
        return
    input = wire.parse_json(order.input_json)
    question = input.get("question") if isinstance(input, dict) else None
    if not isinstance(question, str) or not question.strip():
        raise InvalidRequest(f'The input of {order.execution_id} has no "question", a text, to ask a person.')
    choices = input.get("choices") or []
    are_texts = isinstance(choices, list) and all(isinstance(each, str) and each.strip() for each in choices)
    if not are_texts or len(set(choices)) < len(choices) or len(choices) > wire.CHOICES_LIMIT:
        raise InvalidRequest(
            f'The "choices" of {order.execution_id} are no list of at most {wire.CHOICES_LIMIT} different texts.'
        )
    if order.default is not None:
        check_answer(f"The {wire.DEFAULT} of {order.execution_id}", order.default, choices, wire.DEFAULT_CHARS_LIMIT)


def check_answer(what: str, answer: str, choices: list[str], limit_chars: int = wire.ANSWER_CHARS_LIMIT) -> None:
    """Refuse what is no answer; `what` names it."""
    if choices and answer not in choices:
        listed = shorten(", ".join(choices), SHOWN_CHARS)
        raise InvalidRequest(f"{what} is {shorten(repr(answer), 80)}; it can be one of: {listed}")
    if not answer.strip():
        raise InvalidRequest(f"{what} is empty.")
    if len(answer) > limit_chars:
        raise LimitExceeded(f"{what} is {len(answer)} characters long; the limit is {limit_chars}.")
