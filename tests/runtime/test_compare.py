"""`nexum compare`: two sessions side by side, and where they part."""

import json
from typing import Any

import pytest
from command import assert_refused, finish, nexum
from local_process import ASK
from processes import NEXUM, Terminal, environment

from nexum_runtime import Client
from nexum_runtime.cli.base import FAILED, NO_SERVER, USAGE
from nexum_runtime.cli.compare import DIFFERS, ONLY_A, ONLY_B, SAME, Step, paired

Did = tuple[str, str, str, Any]  # the id in the session, kind, name and what came of it
FIRST: list[Did] = [
    ("turn/1", "turn", "gpt-5", "calls"),
    ("search/a", "call", "search", "found a"),
    ("search/b", "call", "search", "found b"),
    ("turn/2", "turn", "gpt-5", "answers"),
    ("end/1", "run", "Desk", "It rains in Rome."),
]


async def did(client: Client, session: str, *steps: Did) -> None:
    for id, kind, name, result in steps:

        async def do(result: Any = result) -> Any:
            return {"result": result, "text": ""}

        labels: Any = {"kind": kind, "name": name, "text": id.partition("/")[2] if kind == "call" else ""}
        labels |= {"numbers": {"tokens": 500}} if kind == "turn" else {}
        await client.run_local(ASK, {}, do, execution_id=f"{session}/{id}", labels=labels)


async def compared(client: Client, address: str, *second: Did) -> list[str]:
    """The lines of the comparison of FIRST with this."""
    await did(client, "s1", *FIRST)
    await did(client, "s2", *second)
    return (await nexum(address, "compare", "s1", "s2")).stdout.splitlines()


def told(lines: list[str]) -> list[tuple[str, str, str]]:
    """The mark of each step, and how it is called on either side."""
    steps = [line for line in lines if line[:1] in (SAME, DIFFERS, ONLY_A, ONLY_B) and line[1:5].strip().isdigit()]
    middle = lines[3].index("B")
    return [(line[0], _what(line[6:middle]), _what(line[middle:])) for line in steps]


def _what(cell: str) -> str:
    return cell.strip().split("  ")[0]


# Where they part


async def test_a_fork_that_asked_another_model_parts_at_its_first_turn_of_its_own(client: Client, address: str) -> None:
    await did(client, "s1", *FIRST)
    await client.fork_session("s1", "s2", before="turn/2")
    await did(client, "s2", ("turn/9", "turn", "mini", "answers"), ("end/9", "run", "Desk", "Rain."))
    lines = (await nexum(address, "compare", "s1", "s2")).stdout.splitlines()
    assert lines[0].startswith("A s1: 2 turns, 2 calls, 1,000 tokens, ")
    assert told(lines) == [
        (SAME, "turn gpt-5", "turn gpt-5"),
        (SAME, "search(a)", "search(a)"),
        (SAME, "search(b)", "search(b)"),
        (DIFFERS, "turn gpt-5", "turn mini"),
    ]
    assert lines[-5:] == [
        "They part at 4:",
        "A turn/2 COMPLETED",
        "B turn/9 COMPLETED",
        "A answers: It rains in Rome.",
        "B answers: Rain.",
    ]


async def test_calls_of_one_turn_may_begin_in_any_order(client: Client, address: str) -> None:
    lines = await compared(client, address, FIRST[0], FIRST[2], FIRST[1], *FIRST[3:])
    assert {mark for mark, _, _ in told(lines)} == {SAME}
    assert "They do not part." in lines


async def test_a_call_that_one_session_has_alone_is_told_on_its_side(client: Client, address: str) -> None:
    other: Did = ("visit/x", "call", "visit", "page")
    lines = await compared(client, address, FIRST[0], FIRST[1], other, ("turn/8", "turn", "gpt-5", "answers"))
    assert told(lines) == [
        (SAME, "turn gpt-5", "turn gpt-5"),
        (SAME, "search(a)", "search(a)"),
        (DIFFERS, "search(b)", "visit(x)"),
        (DIFFERS, "turn gpt-5", "turn gpt-5"),
    ]
    assert lines[-1] == "B has no answer that is recorded."
    await did(client, "s3", FIRST[0])
    lines = (await nexum(address, "compare", "s3", "s1")).stdout.splitlines()
    assert [mark for mark, _, _ in told(lines)] == [SAME, ONLY_B, ONLY_B, ONLY_B]
    assert "A has nothing there" in lines
    lines = (await nexum(address, "compare", "s1", "s3")).stdout.splitlines()
    assert [mark for mark, _, _ in told(lines)] == [SAME, ONLY_A, ONLY_A, ONLY_A]


async def test_the_same_call_with_another_result_is_where_they_part(client: Client, address: str) -> None:
    lines = await compared(client, address, FIRST[0], (*FIRST[1][:3], "found other"), *FIRST[2:])
    assert [mark for mark, _, _ in told(lines)] == [SAME, DIFFERS, SAME, SAME]
    assert "They part at 2:" in lines


async def test_sessions_without_labels_are_compared_by_their_ids(client: Client, address: str) -> None:
    for session in ("s1", "s2"):
        await finish(client, f"{session}/search/0")
    await finish(client, "s2/more/0")
    lines = (await nexum(address, "compare", "s1", "s2")).stdout.splitlines()
    assert [mark for mark, _, _ in told(lines)] == [SAME, ONLY_B]
    assert "B more/0 COMPLETED" in lines


def test_thousands_of_steps_are_compared_in_a_moment() -> None:
    a = [Step(f"call/{n}", "call", "call", "COMPLETED", 1, 0, None) for n in range(5_000)]
    b = [step._replace(id=f"other/{n}") if n % 2 else step for n, step in enumerate(a)]
    pairs = list(paired(a, b))
    assert [pair.mark for pair in pairs] == [DIFFERS if n % 2 else SAME for n in range(5_000)]


# How it is shown


@pytest.mark.parametrize("columns", [40, 80])
async def test_each_line_fits_the_terminal_and_is_ascii(client: Client, address: str, columns: int) -> None:
    long: Did = ("search/" + "very-long-words-" * 8, "call", "search", "x")
    await did(client, "s1", *FIRST[:4], ("end/1", "run", "Desk", "It rains in Rome, " * 20))
    await did(client, "s2", FIRST[0], long, ("turn/7", "turn", "a-model-of-a-very-long-name-indeed", "answers"))
    settings = environment(NEXUM_ADDRESS=address, TERM="xterm-256color", PYTHONIOENCODING="ascii")
    terminal = Terminal(NEXUM, "compare", "s1", "s2", env=settings, columns=columns)
    assert await terminal.ended() == 0
    lines = terminal.text.splitlines()
    assert max(map(len, lines)) <= columns, terminal.text
    assert terminal.text.isascii()
    assert "\x1b" not in terminal.raw
    sides = [line for line in lines if line.startswith(DIFFERS)]
    assert len(sides) >= 2
    assert all((line[6] in "AB") == (columns == 40) for line in sides), terminal.text
    assert [line for line in lines if line.startswith("They part at 2:")]


async def test_what_a_terminal_has_no_sign_for_is_spelled(client: Client, address: str) -> None:
    await did(client, "s1", ("search/1", "call", "súche\x1b", "x"), ("end/1", "run", "Desk", "Ⅻ\x1b[2J"))
    terminal = Terminal(
        NEXUM, "compare", "s1", "s1", env=environment(NEXUM_ADDRESS=address, PYTHONIOENCODING="ascii"), columns=80
    )
    assert await terminal.ended() == 0
    assert r"s\xfache\u001b(1)" in terminal.text
    assert r"answers: \u216b\u001b[2J" in terminal.text


async def test_the_json_tells_both_sides_and_where_they_part(client: Client, address: str) -> None:
    await did(client, "s1", *FIRST)
    await client.fork_session("s1", "s2", before="turn/2")
    found = json.loads((await nexum(address, "compare", "s1/", "s2", "--json")).stdout)
    assert (found["a"]["session_id"], found["a"]["turns"], found["a"]["calls"], found["a"]["tokens"]) == (
        "s1",
        2,
        2,
        1000,
    )
    assert (found["a"]["answer"], found["b"]["answer"], found["parts_at"]) == ("It rains in Rome.", None, 3)
    assert [step["same"] for step in found["steps"]] == [True, True, True, False]
    assert found["steps"][3]["b"] is None
    assert found["steps"][3]["a"].keys() == {"id", "kind", "what", "status", "took_ms", "tokens"}


async def test_it_ends_with_a_sentence_when_there_is_nothing_to_compare(client: Client, address: str) -> None:
    await did(client, "s1", *FIRST)
    for words in (("s1", "ghost"), ("ghost", "s1")):
        assert_refused(await nexum(address, "compare", *words), "No session 'ghost' is known.", FAILED)
    assert_refused(await nexum("localhost:1", "compare", "s1", "s1"), "No Nexum server answers", NO_SERVER)
    assert (await nexum(address, "compare", "s1")).code == USAGE
    assert "nexum compare my-session other-prompt" in (await nexum(address, "compare", "--help")).stdout
