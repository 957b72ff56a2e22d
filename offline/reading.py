"""Pages that others wrote are read in processes of their own, which end when one takes too much time or memory.

What comes from the web may be made to keep its reader busy for minutes, or to take all memory, and no thread can be
stopped in the middle of that. Each process reads one page at a time, and is kept for the next one. As a program, this
is such a process: for a line of JSON and the bytes of a page on stdin it writes a line of JSON to stdout.
"""

import atexit
import codecs
import json
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

READING_SECONDS = 15.0  # for one page, decoded and parsed
READING_MIB = 1_024  # of memory that one process may ask for
READERS_KEPT = 4  # of those that have nothing to do
TITLE_CHARS_MAX = 300

# As browsers have them. Python has others, of which some take time that grows with the square of the size, such as
# punycode, and some make characters of what is none.
_CHARSETS = """
ascii utf-8 utf-8-sig utf-16 utf-16-le utf-16-be cp866 koi8-r koi8-u mac-roman mac-cyrillic cp874 gbk gb2312 gb18030
big5 big5hkscs euc_jp iso2022_jp shift_jis cp932 euc_kr cp949 tis-620 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256
cp1257 cp1258 iso8859-1 iso8859-2 iso8859-3 iso8859-4 iso8859-5 iso8859-6 iso8859-7 iso8859-8 iso8859-9 iso8859-10
iso8859-11 iso8859-13 iso8859-14 iso8859-15 iso8859-16
"""
CHARSETS = frozenset(_CHARSETS.split())


class Unread(Exception):
    """Why a page could not be read, such as "takes more than 15 s to read"."""


def read(body: bytes, charset: str | None, *, is_html: bool) -> tuple[str, str]:
    """Title and text of a page. Blocks for READING_SECONDS at most. Raises Unread."""
    reader = _take()
    try:
        return reader.read(body, charset, is_html)
    finally:
        if reader.is_fit and len(_idle) < READERS_KEPT:
            _idle.append(reader)
        else:
            reader.end()


class _Reader:
    """One process. `is_fit` for another page it is if it has read the last one, and has not grown large by it."""

    def __init__(self) -> None:
        self.is_fit = False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "offline.reading", str(READING_MIB)],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for whoever asks, and may leave time to end
        )

    def read(self, body: bytes, charset: str | None, is_html: bool) -> tuple[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.is_fit, began = False, time.monotonic()
        timer = threading.Timer(READING_SECONDS, self.process.kill)
        timer.start()
        try:
            header = {"charset": charset, "html": is_html, "bytes": len(body), "seconds": READING_SECONDS}
            self.process.stdin.write(json.dumps(header).encode() + b"\n" + body)
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError:
            answer = b""
        finally:
            timer.cancel()
        if not answer.endswith(b"\n"):
            self.end()
            if time.monotonic() - began >= READING_SECONDS or self.process.returncode == -signal.SIGXCPU:
                raise Unread(f"takes more than {READING_SECONDS:g} s to read")
            raise Unread(f"takes more than {READING_MIB:,} MiB of memory to read, or breaks what reads it")
        title, text, is_full = json.loads(answer)
        self.is_fit = not is_full
        return title, text

    def end(self) -> None:
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self.process.wait()


_idle: list[_Reader] = []


def _take() -> _Reader:
    with suppress(IndexError):
        while True:
            reader = _idle.pop()
            if reader.process.poll() is None:
                return reader
            reader.end()
    return _Reader()


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().end()


# --- what follows happens in the process that reads ---


def _peak_bytes() -> int:
    """The most memory that this process has had. What getrusage tells includes that of the process which started it."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _serve(requests: IO[bytes], answers: IO[bytes], memory_mib: int) -> None:
    """Read one page after the other, until nobody asks any more."""
    with suppress(ValueError, OSError):  # of a system that has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib * 1024**2, resource.getrlimit(resource.RLIMIT_AS)[1]))
    while line := requests.readline():
        header: dict[str, Any] = json.loads(line)
        _allow_seconds(header["seconds"])  # should whoever asks be killed meanwhile
        body = requests.read(header["bytes"])
        source = decode(body, header["charset"])
        title, text = readable(source) if header["html"] else ("", source)
        title = " ".join(title[: 10 * TITLE_CHARS_MAX].split())[:TITLE_CHARS_MAX]
        is_full = _peak_bytes() > memory_mib * 1024**2 / 4
        answers.write(json.dumps([title, text.strip(), is_full]).encode() + b"\n")
        answers.flush()


def _allow_seconds(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def decode(body: bytes, declared: str | None) -> str:
    """Text by the byte order mark, by the charset that header or page name, by UTF-8, or as browsers do."""
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    in_page = re.search(rb"""(?:charset|encoding)=["']?([\w.:-]+)""", body[:2048])
    for name in (marks.get(body[:3]), marks.get(body[:2]), declared, in_page and in_page[1].decode()):
        with suppress(LookupError, ValueError):  # not a charset that Python knows
            if name and codecs.lookup(name).name in CHARSETS:
                return body.decode(name, "replace")
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")


def readable(source: str) -> tuple[str, str]:
    """Title and text of an HTML page: its article without the menus around it, or all there is."""
    import trafilatura

    tree = trafilatura.load_html(source)
    if tree is None:  # not a whole document
        tree = trafilatura.load_html(f"<html><body>{source}</body></html>")
    if tree is None:
        return "", ""
    title = tree.findtext(".//title") or ""
    return title, trafilatura.extract(tree, include_comments=False) or trafilatura.html2txt(tree)


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]))
