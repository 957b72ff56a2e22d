"""docs/server-limits.md says what the code does: every bound of the server is in its table, with its value."""

import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import nexum_runtime.server
import nexum_runtime.wire

PAGE = Path(__file__).parents[2] / "docs" / "server-limits.md"
ASSIGNED = re.compile(r"^([A-Z][A-Z_, ]*) = ", re.MULTILINE)
DAY_MS = 86_400_000


def modules() -> dict[str, ModuleType]:
    """By the last part of their names."""
    found = {"wire": nexum_runtime.wire}
    for package in (nexum_runtime.server, nexum_runtime.wire):
        for each in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not each.ispkg and ".postgres." not in each.name:  # what it shares with SQLite is told of that
                found.setdefault(each.name.rpartition(".")[2], importlib.import_module(each.name))
    return found


def bounds() -> set[str]:
    """Every constant of them that is called a limit, as "module.NAME"."""
    return {
        f"{short}.{name}"
        for short, module in modules().items()
        if module.__file__ is not None
        for names in ASSIGNED.findall(Path(module.__file__).read_text(encoding="utf-8"))
        for name in names.split(", ")
        if "LIMIT" in name and not name.startswith("_")
    }


def told(name: str, value: float) -> set[str]:
    """How a table may say this."""
    ways = {f"{value:,g}" if isinstance(value, float) else f"{value:,}"}
    if "_MIB" in name or name.endswith("MIB"):
        return {f"{value:,} MiB"}
    if "SECONDS" in name:
        ways = {f"{value:g} s"}
    if "_MS" in name:
        ways = {f"{value:g} ms", f"{value / 1000:g} s", f"{value // 3_600_000} hour", f"{value // DAY_MS} day"}
    if isinstance(value, int):
        ways |= {f"10^{len(str(value)) - 1}"} if str(value).strip("0") == "1" else set()
        ways |= {f"{value // 1024} KiB"} if value % 1024 == 0 else set()
        ways |= {f"{value // 1024**2} MiB"} if value % 1024**2 == 0 else set()
    years_ms = value * (1000 if "SECONDS" in name else 1)
    return ways | ({f"{round(years_ms / DAY_MS / 366)} years"} if years_ms % (366 * DAY_MS) == 0 else set())


def test_every_bound_is_in_the_table_with_its_value() -> None:
    known, missing, listed = modules(), [], set()
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        for short, name in re.findall(r"`([a-z_]+)\.([A-Z_]+)`", line):
            listed.add(f"{short}.{name}")
            ways = told(name, getattr(known[short], name))
            if not any(re.search(rf"(?<![\d,]){re.escape(way)}(?![\d,]*\d)", line) for way in ways):
                missing.append(f"{short}.{name} is none of {ways} in: {line}")
    assert not missing, "\n".join(missing)
    assert bounds() <= listed, bounds() - listed


def test_the_page_is_short() -> None:
    assert PAGE.read_text(encoding="utf-8").count("\n") <= 150
