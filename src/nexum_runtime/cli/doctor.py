"""`nexum doctor`: is anything wrong, and what to do about it."""

import time
from typing import TYPE_CHECKING, Any

import typer

from nexum_runtime.cli.base import (
    FAILED,
    NO_SERVER,
    Address,
    Json,
    app,
    console,
    counted,
    examples,
    print_json,
    run,
    shown,
)
from nexum_runtime.telling.diagnosis import Finding, findings, short
from nexum_runtime.text import duration_text, error_line, size_text

if TYPE_CHECKING:
    from rich.console import Console


@app.command(epilog=examples("nexum doctor", "nexum doctor --json | jq -r '.findings[].text'"))
def doctor(as_json: Json = False, address: Address = None) -> None:
    """Say what is wrong, and what to do about it.

    Is the server there, is its database sound, is anyone working, what is stuck and why?
    Ends with 0 when all is well, with 1 when something is wrong, with 3 when no server answers.
    """
    from nexum_runtime.engines import Use, near
    from nexum_runtime.errors import ServerUnavailable

    async def ask() -> tuple[dict[str, Any] | None, list[Finding], int, str]:
        async with near(address, use=Use.CHANGE) as client:
            try:
                started, approvals = time.monotonic(), []
                told = await client.inspect()
                if not told["database"]["problem"]:
                    started = time.monotonic()
                    approvals = await client.approvals()
                answered_ms = round((time.monotonic() - started) * 1000)
            except ServerUnavailable as error:
                return None, [Finding("no-server", str(error))], 0, client.address
            return told, list(findings(told, approvals)), answered_ms, client.address

    told, found, answered_ms, where = run(ask())
    well = not any(finding.is_wrong for finding in found)
    if as_json:
        finding_rows = [{"cause": each.cause, "is_wrong": each.is_wrong, "text": each.text} for each in found]
        print_json({"address": where, "well": well, "findings": finding_rows, "server": told})
    else:
        out = console()
        if told:
            out.print(f"server      {shown(where)} answers in {duration_text(answered_ms)}", soft_wrap=True)
            _print_state(out, told)
        for finding in found:
            mark = "[red]✗[/]" if finding.is_wrong else "[yellow]·[/]"
            out.print(f"{mark} {shown(error_line(finding.text))}", soft_wrap=True)
        if well:
            out.print("[green]✓[/] All is well.")
    if not well:
        raise typer.Exit(FAILED if told else NO_SERVER)


def _print_state(out: "Console", told: dict[str, Any]) -> None:
    database = told["database"]
    parts = [
        database["path"],
        size_text(database["size_bytes"]),
        "damaged" if database["damage"] else "sound" if "executions" in told else "cannot be read",
        *([] if database["free_bytes"] is None else [f"{size_text(database['free_bytes'])} free"]),
    ]
    out.print(f"database    {shown(' · '.join(parts))}", soft_wrap=True)
    counts = [f"{count} {status.lower()}" for status, count in sorted(told.get("executions", {}).items())]
    out.print(f"executions  {shown(', '.join(counts) or 'none')}", soft_wrap=True)
    for i, worker in enumerate(told["workers"]):
        asks = ", ".join(f"{ask['workflow_id']} {short(ask['version_hash'])}" for ask in worker["asks_for"])
        words = [
            worker["worker_id"],
            f"asks for {asks}" if asks else "asks for nothing yet",
            f"{counted(worker['tasks'], 'task')} under way",
            "waits for one" if worker["waits_for_task"] else f"heard of {duration_text(worker['heard_ms'])} ago",
        ]
        out.print(f"{'workers' if not i else '':<12}{shown(' · '.join(words))}", soft_wrap=True)
    if not told["workers"]:
        out.print("workers     none")
