"""The results as a picture for a README: how long a call takes, and how many are done in a second."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.measure import Results, shown
from bench.report import made

WIDTH_INCHES, ROW_INCHES, DPI = 8.0, 0.34, 150
NEXUM, OTHER = "#2f6f8f", "#b8bec4"
INK, PALE = "#24292f", "#6e7781"

LATENCIES = {
    "floor.call": "by hand: two synced commits, three processes",
    "calls.idempotent": "Nexum, a call",
    "dbos.step": "DBOS, a step",
    "calls.tool_cached": "Nexum, a recorded call",
    "dbos.step_again": "DBOS, a recorded step",
}
THROUGHPUTS = {
    "floor.at_50": "by hand, 50 at a time",
    "calls.at_50": "Nexum, 50 calls at a time",
    "dbos.at_50": "DBOS, 50 steps at a time",
}


def draw(results: Results, folder: Path) -> None:
    """Write benchmark.svg and benchmark.png into `folder`."""
    panels = [
        (title, unit, shown_rows)
        for title, unit, rows in (
            ("Milliseconds, at the median", "ms", LATENCIES),
            ("In a second", "", THROUGHPUTS),
        )
        if (shown_rows := {key: name for key, name in rows.items() if key in results.rounds})
    ]
    lines = sum(len(rows) + 2 for _, _, rows in panels) + 1
    matplotlib.rcParams.update({"font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "nexum"})
    figure = Figure(figsize=(WIDTH_INCHES, lines * ROW_INCHES), layout="constrained", facecolor="white")
    heights = [len(rows) + 1 for _, _, rows in panels]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for each, (title, unit, rows) in zip(axes, panels, strict=True):
        _bars(each, results, title, unit, rows)
    told = made()
    footer = f"{told['command']} · {told['date']} · {told['commit']} · {told['machine']}"
    figure.supxlabel(footer, fontsize=7, color=PALE, x=0.99, ha="right")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "benchmark.svg", metadata={"Date": None})
    figure.savefig(folder / "benchmark.png", dpi=DPI)


def _bars(axes: Axes, results: Results, title: str, unit: str, rows: dict[str, str]) -> None:
    """A bar for each row, with its value at its end and a thin line from the least to the most of the rounds."""
    values = [results.median(key) for key in rows]
    colours = [NEXUM if key.startswith("calls.") else OTHER for key in rows]
    axes.barh(list(rows.values()), values, color=colours, height=0.62)
    for row, key in enumerate(rows):
        medians = results.medians(key)
        axes.plot([min(medians), max(medians)], [row, row], color=INK, linewidth=0.8)
        text = f"{shown(values[row])} {unit}".strip()
        axes.annotate(
            text,
            (max(*medians, values[row]), row),
            (5, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=9,
        )
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.set_visible(False)
    axes.margins(x=0.12)
    axes.spines[:].set_visible(False)
