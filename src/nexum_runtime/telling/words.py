"""Words that the command and the page have in common."""

import re
from datetime import UTC, datetime
from typing import Any

from nexum_runtime.text import size_text

SHOWN_CHARS = 200  # of an input or an error
OPEN = ("STOPPED", "WAITING", "PARKED", "RUNNING")  # states of what has not ended
HASH_CHARS = len("sha256:") + 12  # of a version's hash, where a person reads it


def what_text(labels: dict[str, Any]) -> str:
    """What an execution is, by its labels: `web_search("durable execution")`; "" for one without."""
    name, text = labels.get("name", ""), labels.get("text", "")
    return f"{name}({text})" if text else name


def question(histories: list[dict[str, Any]]) -> str:
    """What the last run of a session was asked, by its turns' labels; "" where it is not known."""
    return next((each["labels"]["asked"] for each in reversed(histories) if each["labels"].get("asked")), "")


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def age_ms(text: str) -> int:
    """Of an age such as 30d. Raises ValueError, saying how ages are written."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if not match:
        raise ValueError(f"{text[:80]!r}; it must be a whole number with s, m, h or d, such as 30d.")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] * 1000


def pruned(told: dict[str, int], *, dry_run: bool) -> str:
    executions = counted(told["executions"], "execution")
    if dry_run:
        return f"{executions} would be deleted."
    return f"{executions} deleted, {size_text(told['bytes'])} given back to the disk."


def clock_time(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def counts(each: dict[str, Any]) -> tuple[int, int, int, int]:
    """Runs, turns, calls with steps, and tokens."""
    kinds, tokens = each["kinds"], each["numbers"].get("tokens", 0)
    return each["runs"], kinds.get("turn", 0), kinds.get("call", 0) + kinds.get("step", 0), tokens


def waits_for(each: dict[str, Any]) -> str:
    """What a session waits for, in a few words; "" when it waits for nothing."""
    if each["state"] == "TAKEN_BACK":
        return ""
    if each["stopped"]:
        return "go"
    if each["unknown"] or each["asks"]:
        return "a person"
    if each["state"] == "PARKED":
        return "what it is parked for"
    if each["state"] == "RUNNING" and not each["running"]:
        return "a worker" if each["waits_for_worker"] else "its program"
    return ""
