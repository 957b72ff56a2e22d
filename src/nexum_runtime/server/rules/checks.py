"""What is asked is checked before anything is done about it, and refused by name."""

import re
import uuid
from dataclasses import replace

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded
from nexum_runtime.server.model.shapes import Resolution, StartOrder, Until, Verdict
from nexum_runtime.text import shorten

HEAVY_CHARS = 256 * 1024  # of JSON: what is longer is parsed and compared in a process of its own
QUESTION_CHARS_LIMIT = 256 * 1024  # of a question and its choices, as JSON
ERROR_LIMIT = 64 * 1024  # characters kept of an error's text
NAME_LIMIT = 200  # characters of a workflow id, a version hash or a worker id
EXECUTION_ID_LIMIT = 200  # characters
PARK_CHARS_LIMIT = 64 * 1024  # of what an attempt is parked until, as JSON
LABELS = {"kind", "name", "text", "run", "block", "asked", "outcome"}
LABELS_LIMIT = 4_000  # characters of all labels of an execution
EXECUTION_ID = re.compile(rf"[A-Za-z0-9._:/@=-]{{1,{EXECUTION_ID_LIMIT}}}")
MARK_LIMIT = 10  # characters by which an id grows when it is taken back
KNOWN_ID = re.compile(rf"[A-Za-z0-9._:/@=~-]{{1,{EXECUTION_ID_LIMIT + MARK_LIMIT}}}")


def checked_order(order: StartOrder, max_bytes: int) -> StartOrder:
    """The order as it is carried out. That its input is JSON is checked by `check_json`."""
    if not order.execution_id:
        order = order._replace(execution_id=f"exec-{uuid.uuid4()}")
    if not EXECUTION_ID.fullmatch(order.execution_id):
        raise _no_execution_id(order.execution_id)
    check_size("The input", order.input_json, max_bytes)
    if order.restart not in ("", "failed", "unknown"):
        raise InvalidRequest(f"{wire.RESTART} is {order.restart[:40]!r}; it can be 'failed' or 'unknown'.")
    if order.effect not in wire.EFFECTS:
        raise InvalidRequest(f"{wire.EFFECT} is {order.effect[:40]!r}; it can be {', '.join(wire.EFFECTS)}.")
    if order.effect == wire.ONCE and order.max_attempts != 1:
        raise InvalidRequest(f"An effect that happens once has one attempt, not {order.max_attempts}.")
    if order.claim:
        check_name("worker id", order.claim)
    if order.labels_json:
        order = order._replace(labels_json=checked_labels(order.labels_json))
    if order.asks and len(order.input_json) > QUESTION_CHARS_LIMIT:
        raise LimitExceeded(
            f"The question {order.execution_id} is {len(order.input_json)} characters long; the limit is "
            f"{QUESTION_CHARS_LIMIT}."
        )
    return order


def checked_labels(labels_json: str) -> str:
    """The labels, with texts that are too long cut."""
    try:
        labels = wire.parse_json(labels_json)
    except ValueError as error:
        raise InvalidRequest(f"{wire.LABELS} is not JSON: {error}.") from None
    numbers = labels.get("numbers", {}) if isinstance(labels, dict) else None
    texts = {key: value for key, value in labels.items() if key != "numbers"} if isinstance(labels, dict) else {}
    if (
        not isinstance(numbers, dict)
        or texts.keys() - LABELS
        or not all(isinstance(text, str) for text in texts.values())
        or not all(type(number) in (int, float) for number in numbers.values())
        or len(labels_json) > LABELS_LIMIT
    ):
        raise InvalidRequest(
            f"{wire.LABELS} is {shorten(labels_json, 80)}; it must be an object of numbers and of the texts "
            f"{', '.join(sorted(LABELS))}."
        )
    cut = {key: text[: wire.LABEL_CHARS] for key, text in texts.items()} | ({"numbers": numbers} if numbers else {})
    return wire.canonical_json(cut)


def checked_resolution(word: Resolution, execution_id: str, max_bytes: int) -> Resolution:
    check_execution_id(execution_id)
    if word.kind not in ("result", "failed", "retry"):
        raise InvalidRequest(f"{wire.RESOLUTION} is {word.kind[:40]!r}; it can be result, failed or retry.")
    if word.kind == "result":
        check_size("The result", word.text, max_bytes)
    if word.kind == "failed" and not word.text.strip():
        raise InvalidRequest(f"Say why {execution_id} failed: the reason is empty.")
    return replace(word, text=word.text if word.kind == "result" else word.text[:ERROR_LIMIT])


def checked_until(text: str) -> Until:
    """What an attempt is parked until: `{"ended": [execution id], "ms": from now on}`, either or both."""
    try:
        told = wire.parse_json(text) if len(text) <= PARK_CHARS_LIMIT else None
    except ValueError:
        told = None
    ended, ms = (told.get("ended", []), told.get("ms")) if isinstance(told, dict) else ([], None)
    are_ids = isinstance(ended, list) and all(isinstance(each, str) for each in ended)
    is_time = ms is None or (type(ms) is int and 0 <= ms <= wire.DEADLINE_MS_LIMIT)
    if not are_ids or not is_time or (not ended and ms is None):
        raise InvalidRequest(
            'What an attempt is parked until must be {"ended": [execution id], "ms": a number of milliseconds up to '
            f"{wire.DEADLINE_MS_LIMIT}}}, as JSON."
        )
    if len(ended) > wire.PARK_LIMIT:
        raise LimitExceeded(
            f"An attempt is to be parked until one of {len(ended)} executions ends; the limit is {wire.PARK_LIMIT}."
        )
    for execution_id in ended:
        check_execution_id(execution_id)
    return Until(tuple(ended), ms)


def checked_verdict(verdict: Verdict, execution_id: str, max_bytes: int) -> Verdict:
    check_execution_id(execution_id)
    if verdict.by:
        check_name("approver", verdict.by)
    if verdict.args is not None:
        what = f"The arguments for {execution_id}"
        text = wire.canonical_json(verdict.args)
        check_size(what, text, max_bytes)
        check_json(what, text)
    return verdict


def check_size(what: str, text: str, max_bytes: int) -> None:
    if reason := wire.too_large(what, text, max_bytes):
        raise LimitExceeded(reason)


def check_json(what: str, text: str) -> None:
    try:
        value = wire.parse_json(text)
    except ValueError as error:
        raise InvalidRequest(f"{what} is not JSON: {error}.") from None
    # Counting marks is quick, and only what has many of them needs a closer look.
    if text.count("[") + text.count("{") > wire.NESTING_LIMIT and wire.is_nested_too_deeply(value):
        raise InvalidRequest(f"{what} is nested more than {wire.NESTING_LIMIT} levels deep.")


def same_json(one: str, other: str, shown_chars: int) -> tuple[str, str] | None:
    """None if both texts are the same value, else both as they can be shown."""
    texts = [wire.canonical_json(wire.parse_json(text)) for text in (one, other)]
    return None if texts[0] == texts[1] else (shorten(texts[0], shown_chars), shorten(texts[1], shown_chars))


def check_execution_id(execution_id: str) -> None:
    """Raise InvalidRequest for what cannot be the id of an execution that is there, or how one begins."""
    if not KNOWN_ID.fullmatch(execution_id):
        raise _no_execution_id(execution_id)


def _no_execution_id(execution_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"The execution id {execution_id[:80]!r} is not 1 to {EXECUTION_ID_LIMIT} of A-Z a-z 0-9 . _ : / @ = -"
    )


def check_name(what: str, name: str) -> None:
    if not 1 <= len(name) <= NAME_LIMIT:
        raise InvalidRequest(f"The {what} {name[:40]!r} must be 1 to {NAME_LIMIT} characters long.")
