"""The demo with --save-report: a tool that no worker executes before a person has said yes."""

import re

from processes import Finished
from test_demo import Stage, answer, no_traceback, stage
from test_once import say
from test_readme import transcript

from nexum_runtime.text import size_text

__all__ = ["stage"]

NEXUM = r"(?:NEXUM_ADDRESS=\S+ )?nexum"
ANSWERS = rf"\n +({NEXUM} approve \S+)\n +({NEXUM} reject \S+) --reason 'why not'$"
ASKS = r'(?m)^\[Nexum\] save_report\(name="([\w.-]+)", .+ waits for your yes' + ANSWERS


async def test_the_demo_saves_its_answer_once_a_person_has_said_yes(stage: Stage) -> None:
    stage.worker()
    demo = stage.demo_process("--save-report", SESSION_ID="s6")
    await demo.says(ASKS)
    ((_, yes, _),) = re.findall(ASKS, demo.output)
    assert not (stage.folder / "reports").exists()
    demo.terminate()
    assert await demo.ended() == 130
    last = demo.output.splitlines()[-1]
    assert last.startswith("Interrupted; 3 turns and 5 calls stored. Go on with: ")
    assert last.endswith("demo.py --save-report 'What is durable execution for AI agents?'")
    assert demo.output.count(yes) == 1
    seen = re.sub(r"NEXUM_ADDRESS=\S+ ", "", demo.output).splitlines()
    assert [line for line in transcript("approval") if line not in seen] == []
    assert (await say(stage, yes)).code == 0
    finished: Finished = await stage.demo("--save-report", SESSION_ID="s6")
    assert (finished.code, no_traceback(finished)) == (0, True)
    (report,) = (stage.folder / "reports").iterdir()
    text = report.read_text(encoding="utf-8")
    assert answer(finished.stdout) == f"{text}\n\nSaved as reports/{report.name}, {size_text(len(text.encode()))}."
