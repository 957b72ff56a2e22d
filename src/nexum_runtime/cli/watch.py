"""Looking again and again: a screen that is redrawn, or on a pipe a line for each change."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from nexum_runtime.cli.base import LOOK_SECONDS
from nexum_runtime.errors import ServerUnavailable
from nexum_runtime.text import error_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

SPARE_LINES = 2  # of a screen: the cursor's, and one for a word of what is wrong


async def redraw(out: "Console", look: "Callable[[], Awaitable[tuple[Sequence[RenderableType], bool]]]") -> None:
    """Show what `look` returns, the end of it where the screen is too small, until it says that this is over.

    What was there at last stays on the screen, as a whole. A server that goes away meanwhile is waited for.
    """
    from rich.live import Live

    seen: Sequence[RenderableType] = ()
    try:
        with Live(console=out, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
            over = False
            while not over:
                trouble = ""
                try:
                    seen, over = await look()
                except ServerUnavailable as error:
                    if not seen:
                        raise
                    trouble = error_line(error)
                live.update(_fitting(out, [*seen, trouble]), refresh=True)
                await _pause(over)
    finally:
        for line in seen:
            out.print(line, soft_wrap=isinstance(line, str))


async def repeat(look: Callable[[], Awaitable[bool]]) -> None:
    """Call `look`, which prints what is new, until it says that this is over. A server that goes away is waited for."""
    looked, over, trouble = False, False, ""
    while not over:
        try:
            over = await look()
            looked, trouble = True, ""
        except ServerUnavailable as error:
            if not looked:
                raise
            if not trouble:
                trouble = error_line(error)
                print(trouble, file=sys.stderr, flush=True)
        await _pause(over)


async def _pause(over: bool) -> None:
    if not over:
        await asyncio.sleep(LOOK_SECONDS)


def _fitting(out: "Console", lines: "Sequence[RenderableType]") -> "RenderableType":
    """As many of the last lines as the screen has room for."""
    from rich.console import Group

    room, fitting = out.height - SPARE_LINES, len(lines)
    while fitting and (room := room - len(out.render_lines(lines[fitting - 1]))) >= 0:
        fitting -= 1
    return Group(*lines[fitting:])
