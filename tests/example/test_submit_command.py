"""submit_task.py as a command: one call, its result on stdout, and what became of it on stderr."""

import json
import re
import sys
from pathlib import Path

import pytest
from processes import NEXUM, Finished, Process, eventually, run
from test_demo import ROOT, SHORT_LEASE_MS, Stage, completed, no_traceback, stage

__all__ = ["stage"]

SEARCH = ("web_search", json.dumps({"query": "durable execution"}), "--session", "s1")
REPORT = ("save_report", json.dumps({"name": "r.md", "text": "Durable."}), "--session", "s1")
REPORTED = "Saved as reports/r.md, 8 B.\n"


def command(*words: str) -> list[str | Path]:
    return [sys.executable, ROOT / "submit_task.py", *words]


async def submit(stage: Stage, *words: str, **changes: str) -> Finished:
    return await run(*command(*words), env=stage.environment(**changes), cwd=stage.folder)


def submitting(stage: Stage, *words: str) -> Process:
    log = stage.folder / f"submit-{len(list(stage.folder.glob('submit-*')))}.log"
    process = Process(command(*words), log, env=stage.environment(), cwd=stage.folder)
    process.start()
    return process


async def say(stage: Stage, what: str) -> Finished:
    """Run a command that was printed."""
    words = what.split()
    assert words.pop(words.index("nexum")) == "nexum"
    return await run(NEXUM, *(word for word in words if "=" not in word), env=stage.environment())


async def test_a_call_is_stored_and_the_same_again_is_cached_and_not_executed(stage: Stage) -> None:
    stage.worker()
    first = await submit(stage, *SEARCH)
    again = await submit(stage, *SEARCH)
    assert (first.code, again.code) == (0, 0), (first, again)
    assert first.stdout == again.stdout
    assert first.stdout.startswith("1. ")
    call = r'\[Nexum\] web_search\(query="durable execution"\)'
    assert re.fullmatch(rf"{call} …\n{call} stored ✓ .+\n", first.stderr)
    assert re.fullmatch(rf"{call} cached ⚡\n", again.stderr)
    assert len(stage.executions) == 1


async def test_without_a_session_each_call_is_made_anew(stage: Stage) -> None:
    stage.worker()
    for executions in (1, 2):
        finished = await submit(stage, *SEARCH[:2])
        assert finished.code == 0, finished
        assert len(stage.executions) == executions


async def test_a_call_goes_on_although_its_command_and_its_worker_are_killed(stage: Stage) -> None:
    stage.gate.unlink()
    worker = stage.worker(LEASE_MS=SHORT_LEASE_MS)
    process = submitting(stage, *SEARCH)
    await eventually(lambda: stage.executions, "the search")
    process.kill()
    worker.kill()
    stage.gate.touch()
    stage.worker()
    finished = await submit(stage, *SEARCH)
    assert finished.code == 0, finished
    assert len(stage.executions) == 2


async def test_what_happens_once_is_not_repeated_and_a_person_settles_it(stage: Stage) -> None:
    stage.gate.unlink()
    worker = stage.worker(LEASE_MS=SHORT_LEASE_MS)
    process = submitting(stage, *REPORT, "--effect", "once")
    await eventually(lambda: stage.executions, "the report")
    worker.kill()
    stage.gate.touch()
    stage.worker()
    assert await process.ended() == 1
    again = await submit(stage, *REPORT, "--effect", "once")
    assert (again.code, again.stdout) == (1, "")
    for said in (process.output, again.stderr):
        assert "unknown ?" in said
        assert said.count("This call of save_report may or may not have run.") == 1
        assert "Traceback" not in said
    listed = await run(NEXUM, "ps", "s1/", env=stage.environment())
    (execution_id,) = re.findall(r"s1/save_report/\S+", listed.stdout)
    settled = await run(NEXUM, "resolve", execution_id, "--result", "It is there.", env=stage.environment())
    assert settled.code == 0, settled
    told = await submit(stage, *REPORT, "--effect", "once")
    assert (told.code, told.stdout) == (0, "It is there.\n")
    assert len(stage.executions) == 1


async def test_a_call_that_needs_approval_waits_for_a_yes(stage: Stage) -> None:
    stage.worker()
    process = submitting(stage, *REPORT, "--needs-approval")
    yes = (await process.says(r"(nexum approve \S+)\n"))[1]
    assert stage.executions == []
    process.kill()
    assert (await say(stage, yes)).code == 0
    finished = await submit(stage, *REPORT, "--needs-approval")
    assert (finished.code, finished.stdout) == (0, REPORTED), finished
    assert (stage.folder / "reports" / "r.md").read_text() == "Durable."
    assert len(stage.executions) == 1


async def test_a_no_is_told_with_its_reason(stage: Stage) -> None:
    stage.worker()
    process = submitting(stage, *REPORT, "--needs-approval")
    no = (await process.says(r"(nexum reject \S+) --reason"))[1]
    assert (await say(stage, f"{no} --reason unwanted")).code == 0
    assert await process.ended() == 1
    assert "This call of save_report was not made." in process.output
    assert "unwanted" in process.output
    assert "Traceback" not in process.output
    assert stage.executions == []


async def test_a_call_without_a_worker_says_what_it_waits_for(stage: Stage) -> None:
    process = submitting(stage, *SEARCH)
    await process.says("no worker has taken this call yet")
    stage.worker()
    assert await process.ended() == 0, process.output
    listed = await run(NEXUM, "ps", "s1/", env=stage.environment())
    assert completed(listed.stdout, "/web_search/") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("web_search", "{query: lease}"), "the arguments are no JSON (Expecting property name enclosed in double"),
        (("web_search", '["lease"]'), 'the arguments must be a JSON object, by name: ["lease"]'),
        (("web_search", '{"query": NaN}'), "the arguments are no JSON (Out of range float values"),
        (("web_search", '{"query": 1e999}'), "the arguments are no JSON (Out of range float values"),
        (("web_search", '{"query":' * 10_000), "the arguments are no JSON (maximum recursion depth exceeded"),
        (("web_search", "{}", "--effect", "twice"), "invalid choice: 'twice'"),
        ((*SEARCH[:2], "--session", "no/slash"), "--session is 'no/slash'; it must be 1 to 64 characters of"),
        ((), "the following arguments are required: tool"),
    ],
    ids=["no JSON", "a list", "NaN", "infinite", "nested too deeply", "an effect that is none", "a session", "nothing"],
)
async def test_what_is_no_call_is_refused_before_it_is_submitted(
    stage: Stage, words: tuple[str, ...], sentence: str
) -> None:
    finished = await submit(stage, *words)
    assert (finished.code, finished.stdout) == (2, "")
    assert sentence in " ".join(finished.stderr.split())
    assert no_traceback(finished)


@pytest.mark.parametrize(
    ("words", "changes", "sentence"),
    [
        (("ghost",), {}, "This worker knows no tool 'ghost'; it knows web_search, visit_webpage, save_report."),
        (("web_search", '{"words": "lease"}'), {}, "The arguments of web_search do not fit: "),
        (("web_search", '{"query": " "}'), {}, "The search query is empty; say what to look for."),
        (
            SEARCH,
            {"NEXUM_ADDRESS": "localhost:1"},
            "No Nexum server answers at localhost:1. Start one with",
        ),
        (SEARCH, {"NEXUM_ADDRESS": "nonsense"}, "The Nexum address is 'nonsense'; it must be host:port"),
    ],
    ids=["an unknown tool", "other arguments", "a tool that fails", "no server", "an address"],
)
async def test_what_cannot_be_done_is_told_in_a_sentence(
    stage: Stage, words: tuple[str, ...], changes: dict[str, str], sentence: str
) -> None:
    stage.worker()
    finished = await submit(stage, *words, **changes)
    assert (finished.code, finished.stdout) == (1, "")
    assert sentence in finished.stderr
    assert no_traceback(finished)
