"""Executions as lines of text: a bar for each attempt, on one axis of time for all of them.

Pure: histories in, as the server tells them, and rich's Text out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from nexum_runtime.telling.bars import RUNNING, Axis, Bar
from nexum_runtime.text import duration_text, middle, printable_line

EIGHTHS = " ▏▎▍▌▋▊▉█"
GAP = "┊"
BAR_CELLS_MIN, PIPED_BAR_CELLS = 10, 40
LABEL_CELLS_MIN, LABEL_SHARE = 8, 0.45  # of the line, at most
END_CELLS = 20  # a space, how long it took, and what came of it


@dataclass(frozen=True)
class Row:
    label: str
    bar: Bar | None
    word: str = ""  # in the place of a bar


def timeline(rows: Sequence[Row], width: int | None) -> list[Text]:
    """A line for each row, `width` columns wide, or as wide as it takes where no terminal shows it."""
    longest = max((len(printable_line(row.label)) for row in rows), default=0)
    label_cells, bar_cells = longest, PIPED_BAR_CELLS
    if width is not None:
        label_cells = max(min(longest, int(width * LABEL_SHARE), width - BAR_CELLS_MIN - END_CELLS), LABEL_CELLS_MIN)
        bar_cells = max(width - label_cells - END_CELLS, BAR_CELLS_MIN)
    axis = Axis(row.bar for row in rows if row.bar)
    gaps = {int(place / axis.length * bar_cells) for place, _ in axis.left_out}
    lines = []
    for row in rows:
        bar = row.bar
        line = Text(middle(printable_line(row.label), label_cells).ljust(label_cells + 1), no_wrap=True)
        if bar:
            for i, cell in enumerate(_cells(axis.place(bar.start_ms), axis.place(bar.end_ms), bar_cells)):
                is_gap = cell == " " and i in gaps
                line.append(GAP if is_gap else cell, "dim" if is_gap else bar.style)
            line.append(duration_text(bar.end_ms - bar.start_ms).rjust(9))
            line.append(f" {bar.word}", bar.style)
        line.append(row.word, RUNNING[1])
        line.rstrip()
        lines.append(line)
    if axis.left_out:
        longest_ms = max(gap_ms for _, gap_ms in axis.left_out)
        what = "a time in which nothing ran" if len(axis.left_out) == 1 else "times in which nothing ran, the longest"
        lines.append(Text(f"{GAP} {what}: {duration_text(longest_ms)}", "dim"))
    return lines


def _cells(start: float, end: float, cells: int) -> str:
    """A bar from `start` to `end`, of 0 to 1, in blocks: its start to a cell, its end to an eighth of one."""
    first = min(int(start * cells), cells - 1)
    eighths = max(round((end * cells - first) * 8), 1)
    full, rest = divmod(min(eighths, (cells - first) * 8), 8)
    return (" " * first + EIGHTHS[8] * full + (EIGHTHS[rest] if rest else "")).ljust(cells)
