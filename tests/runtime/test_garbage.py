"""How often a server's garbage collector may look at all objects."""

import gc
from types import SimpleNamespace

import pytest

from nexum_runtime.cli import garbage
from nexum_runtime.cli.garbage import FULL_SHARE, OLDEST, rarely_full


def test_after_a_full_collection_there_is_none_for_many_times_as_long_as_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_000.0
    monkeypatch.setattr(garbage, "time", SimpleNamespace(monotonic=lambda: now))

    def take_a_second(phase: str, info: dict[str, int]) -> None:
        nonlocal now
        now += phase == "start" and info["generation"] == OLDEST

    def full_are_made() -> bool:
        return gc.get_threshold() == before

    def full_can_begin() -> bool:
        gc.collect(0)  # then it is looked at
        return full_are_made()

    before = gc.get_threshold()
    gc.disable()  # but for those made here
    try:
        with rarely_full():
            gc.callbacks.append(take_a_second)
            assert full_can_begin()
            gc.collect()
            assert not full_can_begin()
            now += FULL_SHARE - 1
            assert not full_can_begin()
            now += 1
            assert full_can_begin()
            gc.collect()
        assert full_are_made(), "it is as it was"
    finally:
        gc.callbacks.remove(take_a_second)
        gc.enable()
