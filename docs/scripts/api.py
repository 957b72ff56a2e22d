"""Write docs/api.md: every public name of both packages, with the first sentence of its docstring.

python docs/scripts/api.py    # you will see nothing; a test says when it has to be run again
"""

import inspect
import re
import textwrap
from pathlib import Path
from types import ModuleType

import nexum_agents
import nexum_runtime

PAGE = Path(__file__).parents[1] / "api.md"
HEAD = """# API reference

Written by `docs/scripts/api.py` from the docstrings. In Python, `help(durable_session)` shows the whole of one. The
site that `make docs` builds has all of them on this page.
"""


def first_sentence(thing: object) -> str:
    """Of a docstring, or of the type that a name stands for."""
    text = " ".join(textwrap.dedent(inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z`])|:$", text)[0].rstrip(":")


OF_ALIASES = {
    "DurableEvent": "What `on_event` is called with: a `CallEvent` or a `TurnEvent`."
}  # they have no docstring


def table(module: ModuleType) -> str:
    rows = [
        f"| `{name}` | {OF_ALIASES.get(name) or first_sentence(getattr(module, name))} |"
        for name in sorted(module.__all__, key=str.lower)
    ]
    return "\n".join([f"## {module.__name__}", "", "| name | what it is |", "|---|---|", *rows])


def page() -> str:
    return "\n".join([HEAD, table(nexum_agents), "", table(nexum_runtime), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
