"""Runs cells of a notebook in one event loop, as IPython does: top-level `await` allowed, errors told, names kept.

python kernel.py notebook.py 0 1 1 2     # the numbers of the cells, in the order of their runs
"""

import ast
import asyncio
import inspect
import re
import sys
from pathlib import Path
from typing import Any


def cells(path: Path) -> list[str]:
    return re.split(r"^# %%.*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


async def run_cell(source: str, names: dict[str, Any]) -> None:
    code = compile(source, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.isawaitable(result):
        await result


async def main(path: Path, order: list[int]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number in order:
        print(f"cell {number}")
        try:
            await asyncio.create_task(run_cell(cells(path)[number], names))
        except Exception as error:
            print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    notebook = Path(sys.argv[1])
    sys.path[0] = str(notebook.parent)
    asyncio.run(main(notebook, [int(number) for number in sys.argv[2:]]))
