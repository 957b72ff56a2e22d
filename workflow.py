"""A Nexum workflow of your own, on the same server and the same worker, with no agent in it.

    python workflow.py "What is durable execution?"      # the answer waits for your yes: nexum approve ID

A workflow is a graph of nodes. An agent's tool call is the smallest there is, one EFFECT node:

    workflow("openai-agents-tool-call").effect("tool_call", Recorded, execute_the_tool).build()

Here are four: search → read → approval → save. Each EFFECT is executed by worker.py and recorded by the server before
the next one begins, so kill what you like and run it again: with the same SESSION_ID it is the same execution, and it
goes on where it broke. You will see where the report was saved.
"""

from offline import ctrl_c

if __name__ == "__main__":
    ctrl_c.listen()  # from the first moment on

import asyncio
import re
import sys
from functools import cache

from nexum import workflow
from nexum.context import ContextView
from pydantic import BaseModel

import tools
from nexum_agents import ToolError
from nexum_runtime import NexumError, human_approval, near
from offline import screen

DAY_SECONDS = 86_400.0


class Found(BaseModel):
    url: str


class Page(BaseModel):
    text: str


class Saved(BaseModel):
    where: str


async def search(context: ContextView) -> Found:
    found = await tools.web_search(context.input["question"], max_results=1)
    url = re.search(r"https?://\S+", found)
    if url is None:
        raise ToolError(f"Nothing was found. {found}", retryable=False)
    return Found(url=url[0])


async def read(context: ContextView) -> Page:
    return Page(text=await tools.visit_webpage(context.get("search").url))


async def save(context: ContextView) -> Saved:
    name = re.sub(r"\W+", "-", context.input["question"].lower()).strip("-")[:60]
    return Saved(where=tools.save_report(f"{name}.md", context.get("read").text))


REPORT = (
    human_approval(workflow("report").effect("search", Found, search).effect("read", Page, read), "approval")
    .effect("save", Saved, save)
    .build()
)


@cache
def say_once(line: str) -> None:
    print(line, file=sys.stderr)


async def main(question: str, session_id: str) -> None:
    def on_wait(what: str) -> None:  # every few seconds
        if what == "approval":
            say_once(f"The report waits for your yes: nexum approve {execution_id}")

    execution_id = f"{session_id}/report/0"
    async with near() as nexum:
        await nexum.check()
        outcome = await nexum.execute(
            REPORT, {"question": question}, execution_id=execution_id, timeout=DAY_SECONDS, on_wait=on_wait
        )
    if outcome.status != "COMPLETED":
        raise SystemExit(f"The report is {outcome.status}: {outcome.error}")
    print(outcome.outputs["save"]["where"])


if __name__ == "__main__":
    ctrl_c.says("Interrupted. Run it again, and it goes on.")
    try:
        asked = " ".join(sys.argv[1:]) or "What is durable execution?"
        asyncio.run(main(asked, screen.session_id("report")))
    except NexumError as error:
        raise SystemExit(str(error)) from None
