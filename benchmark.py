"""What a durable call costs: beside the least that it could cost, beside a plain agent, beside DBOS, and as it grows.

    python benchmark.py [--rounds 9] [--only floor calls] [--full] [--json FILE] [--chart FOLDER]
    python benchmark.py --live      # the demo's agent with a real model on the real web; needs a key

Real servers and workers in a temporary folder, no key and no network. After two minutes you see a table a section.

    floor    one synced commit, one round trip, and a call written by hand with nothing else in it
    calls    a call that is executed, and one that is recorded already; how many in a second
    agent    twenty tool calls in twenty turns: plain, cold, replayed
    embedded the engine in the agent's own process; DBOS is measured beside it
    dbos     DBOS on its default SQLite, if it is installed (requirements-dev.txt)
    sizes    results from 1 KB to 5 MB
    growth   with a hundred, ten thousand, and by --full or --only growth a million stored calls
    long     three hundred turns, plain and replayed; this and weight, a small call beside the heaviest mix, by --full
    follow   200 followers of a run, and 200 runs with a follower each; by --full too, as the next one
    postgres calls on PostgreSQL, and DBOS on the same one
"""

from offline import ctrl_c

if __name__ == "__main__":
    ctrl_c.listen()  # from the first moment on

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import openai
from agents.exceptions import AgentsException
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench import dbos, growth, report
from bench.context import Context
from bench.measure import BenchmarkError, Results, run_rounds
from nexum_runtime import NexumError
from nexum_runtime.text import error_line, spell_what_cannot_be_printed
from offline.choosing import choose_model
from offline.screen import interruptible

DEFAULT = ("floor", "calls", "agent", "embedded", "dbos", "sizes", "growth")
SECTIONS = (*DEFAULT, "long", "weight", "follow", "postgres")
NOT_INSTALLED = "not installed; get it with: pip install -r requirements-dev.txt"
TOGETHER = ("floor", "calls", "agent", "embedded", "dbos", "live", "postgres")  # in the same rounds; others in a few
ROUNDS_FEW, ROUNDS, CALLS = 3, 9, 50  # and so many calls of each kind in a round
CANCEL_AGAIN_SECONDS = 5.0  # by then what was started is stopped
TOOL_MS = 50  # of the agent's tool, where it takes its time
COLUMNS = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))


async def measure(
    names: Sequence[str], sections: dict[str, ModuleType], rounds: int, arguments: argparse.Namespace, results: Results
) -> None:
    """Open these sections, and measure them together in as many rounds."""
    stored = growth.STORED + ((growth.STORED_MOST,) if arguments.full else ())
    with (
        tempfile.TemporaryDirectory(prefix="nexum-benchmark-") as folder,
        Progress(*COLUMNS, transient=True, auto_refresh=False) as progress,  # by itself it would draw while we measure
    ):
        task = progress.add_task(f"starting {', '.join(names)}", total=None)
        progress.refresh()
        async with AsyncExitStack() as stack:
            context = Context(stack, Path(folder), calls=arguments.calls, tool_ms=arguments.tool_ms, stored=stored)
            kinds = [kind for name in names for kind in await sections[name].kinds(context)]
            progress.update(task, total=sum(kind.slices for kind in kinds) * (rounds + 1))

            def note(what: str) -> None:
                progress.update(task, description=what, advance=1, refresh=True)

            await run_rounds(kinds, rounds, results, note)
            for runs in context.executed:
                for key, executed in runs.items():
                    tools, turns = zip(*executed[1:], strict=True)  # the first of them warmed up
                    results.executed[key] = (sum(tools), sum(turns))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what a durable call costs: about two minutes without flags.")
    add = parser.add_argument
    add("--rounds", type=int, default=ROUNDS, metavar="N", help="to take the median of (default 9)")
    add("--calls", type=int, default=CALLS, metavar="N", help="calls of each kind in a round (default 50)")
    add("--tool-ms", type=int, default=TOOL_MS, metavar="MS", help="that the agent's slow tool takes (default 50)")
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    add("--full", action="store_true", help="growth up to a million stored calls; so does --only growth")
    add("--json", type=Path, metavar="FILE", help="write all results to FILE")
    add("--chart", type=Path, metavar="FOLDER", help="draw benchmark.svg and .png into FOLDER")
    add("--live", action="store_true", help="a real model and the real web alone; needs a key")
    arguments = parser.parse_args()
    for name, least in (("rounds", 1), ("calls", 1), ("tool_ms", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {arguments.json.absolute().parent}")
    arguments.full = arguments.full or arguments.only == ["growth"]
    if arguments.live and choose_model(offline=False)[1] != "live":
        parser.error("--live needs OPENAI_API_KEY or GEMINI_API_KEY")
    if arguments.only and "dbos" in arguments.only and not dbos.is_installed():
        parser.error(f"dbos is {NOT_INSTALLED}")
    if arguments.chart and find_spec("matplotlib") is None:
        parser.error(f"--chart needs matplotlib, which is {NOT_INSTALLED}")
    return arguments


def main() -> None:
    spell_what_cannot_be_printed()
    arguments = parse_arguments()
    results, console = Results(), Console()
    names = ["live"] if arguments.live else arguments.only or list(SECTIONS if arguments.full else DEFAULT)
    names += ["dbos"] if arguments.only == ["embedded"] else []
    if "dbos" in names and not dbos.is_installed():
        names.remove("dbos")
        console.print(f"DBOS is left out: it is {NOT_INSTALLED}")
    sections = {name: import_module(f"bench.{name}") for name in names}
    together = [name for name in names if name in TOGETHER]
    for name in ("NEXUM_TOKEN", "NEXUM_TLS_CA"):
        os.environ.pop(name, None)  # the servers brought here, on loopback, ask for neither
    try:
        for group in [together, *([name] for name in names if name not in together)]:
            if group:
                rounds = arguments.rounds if group is together else min(arguments.rounds, ROUNDS_FEW)
                measuring = measure(group, sections, rounds, arguments, results)
                asyncio.run(interruptible(measuring, CANCEL_AGAIN_SECONDS))
    except (BenchmarkError, NexumError, AgentsException, openai.OpenAIError) as error:
        sys.exit(f"The benchmark could not be run: {error_line(error)}")
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(ctrl_c.EXIT_CODE)
    report.show(console, results, sections)
    report.show_comparisons(console, results)
    if arguments.json:
        arguments.json.write_text(json.dumps(report.as_json(results, arguments.rounds), indent=1))
    if arguments.chart:
        from bench.chart import draw

        draw(results, arguments.chart)


if __name__ == "__main__":
    main()
