"""How the results are shown: a table and a sentence for each section, then what was compared, and a file of JSON."""

import os
import platform
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.comparisons import COMPARISONS
from bench.measure import Results, shown

ROOT = Path(__file__).parents[1]
LIBRARIES = ("grpcio", "nexum-py", "openai-agents")


def show(console: Console, results: Results, sections: Mapping[str, ModuleType]) -> None:
    for name, section in sections.items():
        keys = [key for key in results.kinds if key.partition(".")[0].startswith(name)]
        table = Table(title=name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("")
        for column in ("p50", "least – most", "p99"):
            table.add_column(column, justify="right")
        for key in keys:
            kind, medians = results.kinds[key], results.medians(key)
            many = len(results.rounds[key][0]) > 1
            table.add_row(
                kind.name,
                f"{shown(results.percentile(key, 50))} {kind.unit}",
                f"{shown(min(medians))} – {shown(max(medians))}",
                shown(results.percentile(key, 99)) if many else "",
            )
        console.print(table)
        console.print(section.sentence(results), "\n")


def show_comparisons(console: Console, results: Results) -> None:
    table = Table(title="compared, within each round", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("median", "least – most", "goal", ""):
        table.add_column(column, justify="right")
    for each in COMPARISONS:
        if values := each.values(results):
            table.add_row(
                each.name,
                f"{shown(statistics.median(values))} {each.unit(results)}",
                f"{shown(min(values))} – {shown(max(values))}",
                each.goal_text,
                {True: "[green]✓[/]", False: "[yellow]missed[/]", None: ""}[each.holds(results)],
            )
    if table.row_count:
        console.print(table)


def made() -> dict[str, Any]:
    """When, how and where this was measured."""
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python", "benchmark.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            **{library: version(library) for library in LIBRARIES},
        },
    }


def as_json(results: Results, rounds: int) -> dict[str, Any]:
    """What --json writes:

    made           date, command, commit, machine, versions
    rounds         how many
    measurements   by key, "section.kind": see Results.as_json
    executed       by an agent's key: {"tools": how many were executed, "turns": how many were asked} in all rounds
    comparisons    by name: see Comparison.as_json
    """
    return {
        "made": made(),
        "rounds": rounds,
        "measurements": results.as_json(),
        "executed": {key: {"tools": tools, "turns": turns} for key, (tools, turns) in results.executed.items()},
        "comparisons": {each.name: each.as_json(results) for each in COMPARISONS if each.values(results)},
    }
