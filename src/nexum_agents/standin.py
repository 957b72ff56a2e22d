"""Objects that stand for others."""

from typing import Any


class StandIn:
    """Stands for an object, and passes for it: also to `isinstance`. What a subclass defines takes the place of its."""

    def __init__(self, stands_for: Any) -> None:
        self._stands_for = stands_for

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._stands_for)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stands_for, name)
