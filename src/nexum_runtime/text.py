"""Texts as people read them: sizes, times, long ones cut; what comes from outside made harmless, without secrets."""

import codecs
import io
import json
import os
import re
import sys
from datetime import UTC, datetime
from functools import lru_cache

KIB, MIB, GIB = 1024, 1024**2, 1024**3
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000

SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")
SECRET_CHARS_MIN = 8  # a shorter value stands in too many texts that have nothing to do with it

# What stands for a sign that an output's encoding has not, as wide as that.
_SPELLED = {"✓": "+", "✗": "x", "⚡": "*", "💥": "!", "·": "-", "…": "~", "┊": ":", "→": ">", "≤": "<"}
_SPELLED |= dict.fromkeys("▏▎▍▌▋▊▉█", "#")

# What a terminal may act on, or show in another order than it is written in; and halves of characters.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)
_USERINFO = re.compile(r'(?<=://)[^/?#\s"<>]*@')


def size_text(size_bytes: int) -> str:
    """A size: "812 B", "4.2 KiB", "20.0 MiB", "1.5 GiB"."""
    if size_bytes < KIB:
        return f"{size_bytes} B"
    if size_bytes < MIB:
        return f"{size_bytes / KIB:.1f} KiB"
    return f"{size_bytes / MIB:.1f} MiB" if size_bytes < GIB else f"{size_bytes / GIB:.1f} GiB"


def duration_text(ms: int) -> str:
    """A duration: "412 ms", "1.2 s", "3.4 min", "5.6 h", "7.8 days"."""
    for unit_ms, unit in ((DAY_MS, "days"), (HOUR_MS, "h"), (MINUTE_MS, "min")):
        if ms >= 2 * unit_ms:
            return f"{ms / unit_ms:.1f} {unit}"
    return f"{ms} ms" if ms < 1_000 else f"{ms / 1000:.1f} s"


def ago_text(ms: int) -> str:
    """How long ago it was, in the largest unit that fits: "now", "12 s", "3 h"."""
    seconds = max(ms, 0) // 1000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return "now"


def number_text(number: float) -> str:
    """With at most four characters of digits: 1,234, 12.3k, 4.5M."""
    for size, unit in ((1_000_000, "M"), (10_000, "k")):
        if number >= size:
            return f"{number / (1000 if unit == 'k' else size):.1f}{unit}"
    return f"{number:,}"


def timestamp(epoch_ms: int) -> str:
    """A time as the protocol has it: "2026-11-25T18:22:11.123Z"."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of it, an ellipsis at the end when that is not all."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def middle(text: str, limit: int) -> str:
    """At most `limit` characters of it, the middle left out: both ends tell one thing from another."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return shorten(text, limit - tail) + text[-tail:]


def printable(text: str) -> str:
    r"""`text` with control characters spelled as JSON spells them, `\u001b`, so that none can move a terminal.

    So are marks that cannot be seen, or that turn the order of what is read.

    Newlines and tabs stay. So does the meaning of a text that is JSON already.
    """
    return _UNPRINTABLE.sub(lambda found: json.dumps(found[0])[1:-1], text.replace("\r\n", "\n"))


def printable_line(text: str) -> str:
    r"""`text` as one line: printable, and its newlines spelled `\n`."""
    return printable(text).replace("\n", r"\n")


def error_line(error: object) -> str:
    """An error as one line to print: printable, without secrets. Libraries lay theirs out over several lines."""
    return " ".join(printable(redact(str(error))).split())


def redact(text: str) -> str:
    """`text` without what must not leave this process: the values of its secret environment variables, by their
    names (`[OPENAI_API_KEY]` instead), and who logs in to a URL, and with what (`https://***@host/`).
    """
    values = ((name, os.environ.get(name, "").strip()) for name in os.environ if _is_of_a_secret(name))
    secrets = {value: name for name, value in values if len(value) >= SECRET_CHARS_MIN}
    for value in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(value, f"[{secrets[value]}]")
    return _USERINFO.sub("***@", text)


@lru_cache(1_000)
def _is_of_a_secret(name: str) -> bool:
    return any(word in name.upper() for word in SECRET_NAMES)


def error_text(error: BaseException) -> str:
    """`ValueError: its words`, also of an error that cannot be put into words."""
    try:
        words = str(error)
    except Exception:
        words = "(its words cannot be had)"
    return f"{type(error).__name__}: {words}"


def spell_what_cannot_be_printed() -> None:
    """Let standard output print any text, also one whose encoding has not all signs, such as ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):  # a test's, or a notebook's
            continue
        try:
            "✓⚡█".encode(stream.encoding)
        except UnicodeEncodeError:
            codecs.register_error("nexum", _spelled)
            stream.reconfigure(errors="nexum")
        except LookupError:  # an encoding of somebody's own
            continue


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_SPELLED.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in text), error.end
