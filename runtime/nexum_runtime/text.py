"""Sizes, times and long texts as people read them."""

KIB, MIB = 1024, 1024 * 1024


def size_text(size_bytes: int) -> str:
    """A size: "812 B", "4.2 KiB", "20.0 MiB"."""
    if size_bytes < KIB:
        return f"{size_bytes} B"
    if size_bytes < MIB:
        return f"{size_bytes / KIB:.1f} KiB"
    return f"{size_bytes / MIB:.1f} MiB"


def duration_text(ms: int) -> str:
    """A duration: "412 ms", "1.2 s"."""
    return f"{ms} ms" if ms < 1_000 else f"{ms / 1000:.1f} s"


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of it, an ellipsis at the end when that is not all."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
