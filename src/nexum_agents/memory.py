"""The SDK's own sessions inside a durable one: what they gave and took is recorded with the run.

Otherwise a run again would find in the conversation what the run before has added, and ask the model something else.
"""

from typing import Any

from agents.memory import is_openai_responses_compaction_aware_session
from pydantic_core import to_jsonable_python

from nexum_agents import seams
from nexum_agents.calls import Call, recorded
from nexum_agents.sessions import Scope, current_scope
from nexum_agents.standin import StandIn


def get(plain: Any) -> Any:
    """The seam at which a session is read."""

    async def get_items(session: Any, *limit: Any, wrapper: Any = None, **options: Any) -> Any:
        scope = current_scope()
        if scope is None:
            return await plain(session, *limit, wrapper=wrapper, **options)
        many = (limit or (options.get("limit"),))[0]

        async def read() -> Any:
            return _plain(await plain(session, *limit, wrapper=wrapper, **options))

        return await _recorded(scope, session, "get_items", {"limit": many if isinstance(many, int) else None}, read)

    return get_items


def add(plain: Any, get_plain: Any) -> Any:
    """The seam at which a session is added to."""

    async def add_items(session: Any, items: list[Any], *, wrapper: Any = None) -> None:
        scope = current_scope()
        if scope is None:
            await plain(session, items, wrapper=wrapper)
            return
        added = _plain(items)

        async def add() -> None:
            await plain(session, items, wrapper=wrapper)

        async def add_what_is_not_there() -> None:
            # A crash came between the items and their record, or before either; a session adds items all at once. They
            # are its last ones then, unless another run has used it since: that is one conversation led twice at a
            # time, which no session keeps apart.
            if _plain(await get_plain(session, limit=len(added), wrapper=wrapper)) != added:
                await add()

        await _recorded(scope, session, "add_items", {"items": added}, add, add_what_is_not_there)

    return add_items


def pop(plain: Any, get_plain: Any) -> Any:
    """The seam at which the last item of a session is taken back."""

    async def pop_item(session: Any, *, wrapper: Any = None) -> Any:
        scope = current_scope()
        if scope is None:
            return await plain(session, wrapper=wrapper)

        async def look() -> Any:
            return _plain(await get_plain(session, limit=1, wrapper=wrapper))

        last = await _recorded(scope, session, "last_item", {}, look)

        async def pop() -> None:
            if last and await look() == last:  # and it was not taken back before a crash
                await plain(session, wrapper=wrapper)

        await _recorded(scope, session, "pop_item", {"item": last}, pop)
        return last[0] if last else None

    return pop_item


def compact(plain: Any) -> Any:
    """The seam at which a session may have a model condense it."""

    async def apply(session: Any, **options: Any) -> None:
        scope = current_scope()
        if scope is not None and is_openai_responses_compaction_aware_session(session):
            session = _Compacting(session, scope)
        await plain(session, **options)

    return apply


class _Compacting(StandIn):
    """Stands for a session that is condensed once."""

    def __init__(self, session: Any, scope: Scope) -> None:
        super().__init__(session)
        self._scope = scope

    async def run_compaction(self, args: Any = None, *, wrapper: Any = None) -> None:
        async def run() -> None:
            await seams.call_session(self._stands_for.run_compaction, args, wrapper=wrapper)

        await _recorded(self._scope, self._stands_for, "run_compaction", {"args": _plain(args)}, run)


async def _recorded(
    scope: Scope, session: Any, operation: str, content: dict[str, Any], call: Call, again: Call | None = None
) -> Any:
    scope.check()
    name = f"memory:{operation}"
    content = {"memory": str(getattr(session, "session_id", "")), **content}
    return await recorded(scope.place("memory", name, content), name, content, call, again=again)


def _plain(items: Any) -> Any:
    return to_jsonable_python(items)
