"""Draw the pictures of the README into docs/pictures, light and dark: `make pictures`.

parts    who talks to whom, drawn from the list below
crash    a run that is killed, and the second run: what the demo prints on a terminal, recorded here and now
"""

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
BIN = Path(sys.executable).parent
OF_THE_DEMO = ("demo.py", "worker.py", "tools.py", "workflow.py", "offline")
COLUMNS = 96
PATIENCE_SECONDS = 60.0
COMMANDS = ("python demo.py --crash-after 2", "python demo.py")
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


class Colors(NamedTuple):
    paper: str
    ink: str
    pale: str
    line: str
    box: str
    accent: str
    theme: TerminalTheme


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _colors(paper: str, ink: str, pale: str, line: str, box: str, accent: str, ansi: str) -> Colors:
    eight = [_rgb(each) for each in ansi.split()]  # black red green yellow blue magenta cyan white
    return Colors(paper, ink, pale, line, box, accent, TerminalTheme(_rgb(paper), _rgb(ink), eight, eight))


MODES = {
    "light": _colors(
        "#ffffff",
        "#24292f",
        "#57606a",
        "#8c959f",
        "#f3f6f8",
        "#0b7285",
        "#24292f #cf222e #1a7f37 #9a6700 #0969da #8250df #0b7285 #57606a",
    ),
    "dark": _colors(
        "#0d1117",
        "#e6edf3",
        "#9198a1",
        "#6e7681",
        "#1c2530",
        "#56d4dd",
        "#6e7681 #ff7b72 #3fb950 #e3b341 #79c0ff #d2a8ff #56d4dd #e6edf3",
    ),
}

# The parts: (x, y, width, the words in the box), and the arrows: (from x, y, to x, y, the words beside it).
WIDTH, HEIGHT, BOX_HEIGHT = 860, 250, 92
BOXES = (
    (20, 40, 230, ("Your agent", "Runner.run in a", "durable session")),
    (315, 40, 230, ("Nexum", "in your process,", "or nexum dev")),
    (610, 40, 230, ("Workers", "as many as you like,", "only if you want them")),
    (315, 182, 230, ("SQLite", "every turn and call")),
)
ARROWS = (
    (250, 72, 315, 72, "", 0),
    (315, 100, 250, 100, "", 0),
    (545, 72, 610, 72, "", 0),
    (610, 100, 545, 100, "", 0),
    (430, 132, 430, 182, "synced to disk before the agent sees it", 14),
)
WORDS = ((282, 62, "call"), (282, 122, "result"), (578, 62, "task"), (578, 122, "result"))


def parts(colors: Colors) -> str:
    def text(x: float, y: float, words: str, *, size: int = 14, color: str = colors.ink, more: str = "") -> str:
        return f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" {more}>{escape(words)}</text>'

    drawn = []
    for x, y, width, (title, *lines) in BOXES:
        height = BOX_HEIGHT if len(lines) > 1 else 58
        size = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="8"'
        drawn.append(f'<rect {size} fill="{colors.box}" stroke="{colors.line}"/>')
        middle = 'text-anchor="middle"'
        drawn.append(
            text(x + width / 2, y + 26, title, size=17, color=colors.accent, more=f'{middle} font-weight="600"')
        )
        drawn += [text(x + width / 2, y + 48 + 20 * number, line, more=middle) for number, line in enumerate(lines)]
    for x, y, to_x, to_y, words, beside in ARROWS:
        drawn.append(
            f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="{colors.line}" stroke-width="2" '
            'marker-end="url(#head)"/>'
        )
        if words:
            drawn.append(text(x + beside, (y + to_y) / 2 + 4, words, size=13, color=colors.pale))
    drawn += [text(x, y, words, size=13, color=colors.pale, more='text-anchor="middle"') for x, y, words in WORDS]
    head = f'<path d="M0 0 L8 4 L0 8 z" fill="{colors.line}"/>'
    marker = 'id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="system-ui, sans-serif">',
            "<title>Your agent asks Nexum for each turn and call; Nexum keeps them in SQLite.</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{colors.paper}"/>',
            f"<defs><marker {marker}>{head}</marker></defs>",
            *drawn,
            "</svg>\n",
        ]
    )


@contextmanager
def running(folder: Path, says: str, *command: str | Path) -> Iterator[None]:
    """A program beside, which says that it is ready."""
    log = folder / f"{Path(command[-1]).stem}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=output, stderr=output)
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while says not in log.read_text():
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit(f"{command} is not ready:\n{log.read_text()}")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def environment() -> dict[str, str]:
    """Without keys, and without another server's address: the demo is offline, and finds the server by the folder."""
    own = {name: value for name, value in os.environ.items() if not re.search("KEY|NEXUM|MODEL|NO_COLOR", name)}
    return own | {"PATH": f"{BIN}:{own['PATH']}", "SESSION_ID": "s1", "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}


def on_a_terminal(folder: Path, command: str) -> str:
    """What a command prints there, with its colors."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command.split(), cwd=folder, env=environment(), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    written = b""
    with suppress(OSError):  # the end of a terminal
        while data := os.read(master, 65536):
            written += data
    process.wait()
    os.close(master)
    return written.decode().replace("\r\n", "\n")


def recorded() -> list[Text]:
    """The two runs, without the header, and of the answer only that there is one."""
    lines: list[Text] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in OF_THE_DEMO:
            (folder / each).symlink_to(ROOT / each)
        nexum, worker = (BIN / "nexum", "dev", "--port", "0"), (BIN / "python", "worker.py")
        with running(folder, "Nexum is ready", *nexum), running(folder, "Connected", *worker):
            for command in COMMANDS:
                told = on_a_terminal(folder, command).split("\n\n")
                lines += [Text(f"$ SESSION_ID=s1 {command}", style="bold")]
                # The header, the events, then what it came to; of the answer, which is long, nothing but its place.
                lines += [Text.from_ansi(line) for line in told[1].splitlines()]
                lines += [Text("…", style="dim")] if len(told) > 3 else []
                lines += [Text.from_ansi(told[-1].splitlines()[0]), Text()]
    return lines[:-1]


def crash(colors: Colors, lines: list[Text]) -> str:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False)
    for line in lines:
        console.print(line, soft_wrap=True)
    drawn = console.export_svg(title="A run is killed, and runs again", theme=colors.theme, unique_id="crash")
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # no font from elsewhere
    drawn = drawn.replace("rgba(255,255,255,0.35)", colors.line)  # the edge, which nobody would see on white
    return re.sub(r"\n\s*\n+", "\n", drawn.replace("Fira Code, monospace", FONTS)) + "\n"


def main() -> None:
    print("Recording the demo: a run that is killed, and the second run; some ten seconds.", flush=True)
    lines = recorded()
    PICTURES.mkdir(exist_ok=True)
    for mode, colors in MODES.items():
        (PICTURES / f"parts-{mode}.svg").write_text(parts(colors), encoding="utf-8")
        (PICTURES / f"crash-{mode}.svg").write_text(crash(colors, lines), encoding="utf-8")
    print(f"Drawn: {', '.join(sorted(path.name for path in PICTURES.glob('*.svg')))} in {PICTURES}")


if __name__ == "__main__":
    main()
