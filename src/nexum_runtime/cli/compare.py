"""`nexum compare`: two sessions side by side, and where they part."""

import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

import typer

from nexum_runtime import wire
from nexum_runtime.cli.base import Address, Json, app, console, counted, examples, names, print_json, run, what_text
from nexum_runtime.errors import NotFound
from nexum_runtime.text import duration_text, error_line, number_text, printable_line

COMPARED = ("turn", "call", "step", "")  # the kinds that are told of; "" has no label
END = "run"  # the kind of the end of a run, which has its answer
ANSWER_CHARS = 1_000  # of an answer, where it is not JSON
NUMBER_CELLS, TOOK_CELLS, TOKEN_CELLS = 6, 10, 7
SIDE_CELLS_MIN = TOOK_CELLS + TOKEN_CELLS + 14  # a terminal with less for each side gets a line for each
SAME, DIFFERS, ONLY_A, ONLY_B = " ", "!", "<", ">"


class Step(NamedTuple):
    """A turn, a call or a step of a session."""

    id: str  # without the session
    kind: str
    what: str
    status: str
    took_ms: int | None  # None: it has not ended
    tokens: int | float
    result: Any

    def json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name != "result"}


class Side(NamedTuple):
    """A session: what it did, and what came of it."""

    session_id: str
    steps: list[Step]
    answer: Any  # of its last run; None when that has not ended

    def json(self) -> dict[str, Any]:
        return {"session_id": self.session_id, "answer": self.answer} | self.totals()

    def totals(self) -> dict[str, Any]:
        return {
            "turns": sum(step.kind == "turn" for step in self.steps),
            "calls": sum(step.kind in ("call", "step") for step in self.steps),
            "tokens": sum(step.tokens for step in self.steps),
            "took_ms": sum(step.took_ms or 0 for step in self.steps),
        }


class Pair(NamedTuple):
    a: Step | None
    b: Step | None

    @property
    def mark(self) -> str:
        if self.a is None:
            return ONLY_B
        if self.b is None:
            return ONLY_A
        is_same = (self.a.id, self.a.status) == (self.b.id, self.b.status)
        # Models never say the very same thing twice; when it means something else, what follows differs.
        return SAME if is_same and (self.a.kind == "turn" or self.a.result == self.b.result) else DIFFERS


@app.command(epilog=examples("nexum compare my-session other-prompt", "nexum compare s1 s2 --json | jq .parts_at"))
def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A session, as `nexum sessions` shows it.", autocompletion=names)
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.", autocompletion=names)],
    as_json: Json = False,
    address: Address = None,
) -> None:
    """Compare two sessions, and show where they differ.

    Their turns and calls side by side, in order, with how long each took and the tokens it used; then their answers.
    A line begins with ! where they differ, with < or > where only the first or the second one has something.
    """
    from nexum_runtime.engines import Use, near

    async def fetch() -> tuple[Side, Side]:
        async with near(address, use=Use.LOOK) as client:
            return await _side(client, a.removesuffix("/")), await _side(client, b.removesuffix("/"))

    sides = run(fetch())
    pairs = list(paired(*(side.steps for side in sides)))
    parts_at = next((number for number, pair in enumerate(pairs) if pair.mark != SAME), None)
    if as_json:
        rows = [{"a": p.a and p.a.json(), "b": p.b and p.b.json(), "same": p.mark == SAME} for p in pairs]
        print_json({"a": sides[0].json(), "b": sides[1].json(), "parts_at": parts_at, "steps": rows})
        return
    out = console()
    for line in _lines(sides, pairs, parts_at, out.width if out.is_terminal else None):
        print(_encodable(line))


async def _side(client: Any, session_id: str) -> Side:
    """Raises NotFound for a session that has nothing."""
    histories = [history async for history in client.history(f"{session_id}/")]
    if not histories:
        raise NotFound(f"No session {session_id!r} is known. See what is there with: nexum sessions")
    outputs = await client.journal(f"{session_id}/")
    steps, answer = [], None
    for history in histories:
        labels, id = history["labels"], history["execution_id"].partition("/")[2]
        output = next(reversed(outputs.get(history["execution_id"], {}).values()), None)
        result = output["result"] if isinstance(output, dict) and "result" in output else output
        if labels.get("kind") in (END, "turn"):
            answer = result if labels["kind"] == END else None
        if labels.get("kind", "") in COMPARED:
            ended_ms = history["ended_at_ms"]
            took_ms = None if ended_ms is None else ended_ms - history["created_at_ms"]
            tokens = labels.get("numbers", {}).get("tokens", 0)
            what = what_text(labels) or id
            steps.append(Step(id, labels.get("kind", ""), what, history["status"], took_ms, tokens, result))
    return Side(session_id, steps, answer)


def paired(a: Sequence[Step], b: Sequence[Step]) -> Iterator[Pair]:
    """Each step beside the same one of the other session, in order.

    What is left between is paired if it is called the same, then if it is of the same kind.
    """
    keys: list[Callable[[Step], Any]] = [lambda s: s.id, lambda s: (s.kind, s.what), lambda s: s.kind]
    yield from _paired(a, _in_order_of(a, b), keys)


def _in_order_of(a: Sequence[Step], b: Sequence[Step]) -> list[Step]:
    """The steps of b; those calls of one turn that a has too, which may have begun in any order, in the order of a."""
    places = {step.id: place for place, step in enumerate(a)}
    ordered = list(b)
    turns = [place for place, step in enumerate(b) if step.kind == "turn"]
    for begin, end in pairwise([-1, *turns, len(b)]):
        slots = [place for place in range(begin + 1, end) if b[place].id in places]
        for slot, step in zip(slots, sorted((b[slot] for slot in slots), key=lambda s: places[s.id]), strict=True):
            ordered[slot] = step
    return ordered


def _paired(a: Sequence[Step], b: Sequence[Step], keys: Sequence[Callable[[Step], Any]]) -> Iterator[Pair]:
    if not keys or not a or not b:
        yield from (Pair(step, None) for step in a)
        yield from (Pair(None, step) for step in b)
        return
    key, *others = keys
    matcher = SequenceMatcher(None, [key(step) for step in a], [key(step) for step in b], autojunk=False)
    for how, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        if how == "equal":
            yield from (Pair(*both) for both in zip(a[a_from:a_to], b[b_from:b_to], strict=True))
        else:
            yield from _paired(a[a_from:a_to], b[b_from:b_to], others)


def _lines(sides: tuple[Side, Side], pairs: list[Pair], parts_at: int | None, width: int | None) -> Iterator[str]:
    for name, side in zip("AB", sides, strict=True):
        totals = side.totals()
        counts = f"{counted(totals['turns'], 'turn')}, {counted(totals['calls'], 'call')}"
        numbers = f"{number_text(totals['tokens'])} tokens, {duration_text(totals['took_ms'])}"
        yield from _folded(f"{name} {printable_line(side.session_id)}: {counts}, {numbers}", "  ", width)
    yield ""
    widest = max((len(_what(step)) for pair in pairs for step in pair[:2] if step), default=0)
    cells = widest + TOOK_CELLS + TOKEN_CELLS if width is None else (width - NUMBER_CELLS - 2) // 2
    if cells >= SIDE_CELLS_MIN or width is None:
        yield f"{'':{NUMBER_CELLS}}{'A':{cells}}  B"
        for number, pair in enumerate(pairs, 1):
            left, right = _cell(pair.a, cells), _cell(pair.b, cells)
            yield f"{pair.mark}{number:>{NUMBER_CELLS - 2}} {left}  {right}".rstrip()
    else:
        for number, pair in enumerate(pairs, 1):
            if pair.mark == SAME:
                yield f"{pair.mark}{number:>4}   {_cell(pair.a, width - 8)}".rstrip()
                continue
            for name, step in zip("AB", pair[:2], strict=True):
                if step is not None:
                    yield f"{pair.mark}{number:>4} {name} {_cell(step, width - 8)}".rstrip()
    yield ""
    if parts_at is None:
        yield "They do not part."
    else:
        yield f"They part at {parts_at + 1}:"
        for name, step in zip("AB", pairs[parts_at][:2], strict=True):
            words = f"{printable_line(step.id)} {step.status}" if step else "has nothing there"
            yield from _folded(f"{name} {words}", "  ", width)
    for name, side in zip("AB", sides, strict=True):
        if side.answer is not None:
            text = side.answer if isinstance(side.answer, str) else wire.canonical_json(side.answer)
            yield from _folded(f"{name} answers: {_cut(error_line(text), ANSWER_CHARS)}", "  ", width)
        else:
            yield f"{name} has no answer that is recorded."


def _what(step: Step) -> str:
    what = printable_line(step.what)
    return f"turn {what}" if step.kind == "turn" and "turn" not in what else what


def _cell(step: Step | None, cells: int) -> str:
    """What it is, how long it took, and its tokens, in so many cells."""
    if step is None:
        return " " * cells
    took = step.status.lower() if step.took_ms is None or step.status != "COMPLETED" else duration_text(step.took_ms)
    tokens = number_text(step.tokens) if step.tokens else ""
    took = f"{took:>{TOOK_CELLS}}"
    room = cells - len(took) - TOKEN_CELLS
    return f"{_cut(_what(step), room):{room}}{took}{tokens:>{TOKEN_CELLS}}"


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters of it, both ends of what is longer."""
    if len(text) <= limit:
        return text
    tail = max(limit // 3 - 2, 0)
    return f"{text[: limit - tail - 2]}..{text[len(text) - tail :]}"


def _folded(text: str, indent: str, width: int | None) -> Iterator[str]:
    """On lines of the terminal's width; on one where there is none."""
    from textwrap import wrap

    yield from wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) if width else [text]


def _encodable(text: str) -> str:
    r"""What the terminal has no sign for is spelled, `\u2026`."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
