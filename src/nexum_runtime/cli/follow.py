"""`nexum follow`: a session as it happens, with the words that are being said."""

import sys
from contextlib import aclosing
from typing import Annotated, Any

import typer

from nexum_runtime.cli.base import Address, Json, app, examples, print_json, run
from nexum_runtime.telling.story import Story
from nexum_runtime.telling.words import clock_time, what_text
from nexum_runtime.text import printable, printable_line

PATIENCE_SECONDS = 600.0  # for a server that is away
QUIET = ("ExecutionStarted", "TaskCompleted", "CaughtUp")  # types of events that say nothing new to a person


@app.command(
    epilog=examples(
        "nexum follow my-session", "nexum follow my-session --after 12:", "nexum follow my-session --json | jq .type"
    )
)
def follow(
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Its id. It may be one that is yet to begin.")],
    after: Annotated[str, typer.Option(metavar="CURSOR", help="Go on behind this, as --json tells it.")] = "",
    keep_on: Annotated[bool, typer.Option("--keep-on", help="Go on when its run has ended.")] = False,
    as_json: Json = False,
    address: Address = None,
) -> None:
    """Print what happens in a session, as it happens.

    What its model says comes while it says it. It begins with what has happened, and ends when a run has ended and
    nothing of the session is under way.
    """
    from nexum_runtime.engines import Use, near

    async def tell() -> None:
        screen = _Screen()
        async with near(address, use=Use.LOOK) as client:
            following = client.follow(
                session.removesuffix("/"), after, to_the_end=not keep_on, patience=PATIENCE_SECONDS
            )
            async with aclosing(following) as told:
                async for each in told:
                    if as_json:
                        print_json(each)
                    elif "words" in each:
                        screen.say(each)
                    elif each["type"] not in QUIET:
                        screen.tell(each)
        screen.end()

    run(tell())


class _Screen:
    """Lines, and between them words as they come."""

    def __init__(self) -> None:
        self._says = ""  # whose words the line is in
        self._stories: dict[str, Story] = {}

    def say(self, told: dict[str, Any]) -> None:
        if self._says != told["execution_id"] or told["anew"]:
            self.end()
            self._says = told["execution_id"]
        left_out = "…" if told["skipped"] else ""
        print(f"{left_out}{printable(told['words'])}", end="", flush=True)

    def tell(self, told: dict[str, Any]) -> None:
        self.end()
        id = told["execution_id"]
        story = self._stories.setdefault(id, Story({"workflow_id": told["labels"].get("name", id)}))
        what = what_text(told["labels"]) or id
        print(printable_line(f"{clock_time(told['at_ms'])}  {what}  {story.tell(told)}"), flush=True)

    def end(self) -> None:
        if self._says:
            self._says = ""
            sys.stdout.write("\n")
            sys.stdout.flush()
