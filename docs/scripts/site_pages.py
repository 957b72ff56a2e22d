"""Write into build/docs what the site is made of: the pages, the repository's README, and each docstring whole.

python docs/scripts/site_pages.py    # `make docs` calls it before it builds the site
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "docs"
FIRST = "first.md"  # the README, as a page of the site


def first_page() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("](docs/", "](").replace('"docs/', '"')
    return re.sub(r"\[([^]]+)\]\(examples/\)", r"`\1`", text)


def with_docstrings(page: str) -> str:
    """The API page, and after each table what it lists, by mkdocstrings."""
    head, *parts = re.split(r"(?m)^## (\w+)$", page)
    written = [head]
    for package, table in zip(parts[::2], parts[1::2], strict=True):
        written += [f"## {package}\n", table]
        written += [f"\n::: {package}.{name}\n" for name in re.findall(r"(?m)^\| `(\w+)`", table)]
    return "\n".join(written)


def main() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(ROOT / "docs", BUILD, ignore=shutil.ignore_patterns("scripts"))
    for page in BUILD.glob("*.md"):
        text = page.read_text(encoding="utf-8").replace("](../README.md)", f"]({FIRST})")
        page.write_text(with_docstrings(text) if page.name == "api.md" else text, encoding="utf-8")
    (BUILD / FIRST).write_text(first_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
