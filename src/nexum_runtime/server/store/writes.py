"""A write that waits for its commit."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from nexum_runtime.server.model.contract import Transaction


@dataclass(slots=True)
class Write:
    """See `Store.begin_write`."""

    work: Callable[[Transaction], Any]
    executed: Callable[[], bool] | None
    settled: Callable[[BaseException | None], None] | None
    outcome: asyncio.Future[Any]
    is_patient: bool = False
    is_long: bool = False
    has_begun: bool = False  # as `executed` has told
    events: Sequence[tuple[Any, ...]] = ()  # that it has added
    about: Collection[str] = ()
    about_tasks: Collection[str] = ()

    def settle(self, result: Any, error: BaseException | None = None) -> None:
        if self.settled is not None:
            self.settled(error)
        if self.outcome.cancelled():  # whoever waited has left
            return
        if error is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)
