"""Python's garbage collector: how often it may look at all objects of a server.

Nobody is answered meanwhile, and with 10,000 calls that wait it takes 0.3 to 0.8 s. Most of what a server makes needs
no collector: it goes with its last reference.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FULL_SHARE = 200  # after a full collection that took 1 s there is none for 200 s
OLDEST = 2  # the generation of a full one
NEVER = 2**31 - 1


@contextmanager
def rarely_full() -> Iterator[None]:
    young, middle, full = gc.get_threshold()
    began = not_before = 0.0

    def note(phase: str, info: dict[str, Any]) -> None:
        nonlocal began, not_before
        now = time.monotonic()
        if phase == "start":
            began = now
        elif info["generation"] == OLDEST:
            not_before = now + FULL_SHARE * (now - began)
            gc.set_threshold(young, middle, NEVER)
        elif now >= not_before:
            gc.set_threshold(young, middle, full)

    gc.callbacks.append(note)
    try:
        yield
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(young, middle, full)
