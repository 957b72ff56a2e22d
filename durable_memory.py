"""Conversation memory that survives a crash: the SDK's `Session`, with every operation of a run recorded by Nexum.

    memory = durable_memory(SQLiteSession("user-1", "memory.db"), "question-1")
    result = await Runner.run(durable_agent(agent, "question-1"), question, session=memory)

Without it a run again would find in the memory what the run before had added, and ask the model something else. With
it the run again reads what the first run read, and adds nothing twice. The next question to the same memory is
another durable session: "question-2".
"""

from typing import Any

from agents import OpenAIConversationsSession
from agents.items import TResponseInputItem
from agents.memory import Session, SessionABC, is_openai_responses_compaction_aware_session
from pydantic_core import to_jsonable_python

from durable_local import Call, recorded
from durable_session import DurableSession, run_of


def durable_memory(session: Session, session_id: str) -> Session:
    """The memory, with all that a run does to it recorded under the durable session `session_id`.

    Make one for each run. What it reads is recorded whole.
    Raises TypeError for a memory that is kept or condensed by the model's provider, DurableCallError for a session id
    that is none.
    """
    kind = type(session).__name__
    if isinstance(session, OpenAIConversationsSession):
        raise TypeError(f"A {kind} cannot be made durable: the memory is the provider's, and it takes no item back.")
    if is_openai_responses_compaction_aware_session(session):
        raise TypeError(f"A {kind} cannot be made durable: it asks a model to condense it. Use the session in it.")
    return _DurableMemory(session, run_of(session_id))


class _DurableMemory(SessionABC):
    def __init__(self, session: Session, run: DurableSession) -> None:
        self.session_id, self.session_settings = session.session_id, getattr(session, "session_settings", None)
        self._session, self._run = session, run

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        async def read() -> list[Any]:
            return _plain(await self._session.get_items(limit))

        items: list[TResponseInputItem] = await self._recorded("get_items", {"limit": limit}, read)
        return items

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        added = _plain(items)

        async def add() -> None:
            await self._session.add_items(items)

        async def add_what_is_not_there() -> None:
            # A crash came between the items and their record, or before either; a memory adds items all at once. They
            # are its last ones then, unless another run has used it since: that is one conversation led twice at a
            # time, which no memory keeps apart.
            if _plain(await self._session.get_items(len(added))) != added:
                await add()

        await self._recorded("add_items", {"items": added}, add, again=add_what_is_not_there)

    async def pop_item(self) -> TResponseInputItem | None:
        last = await self.get_items(1)

        async def pop() -> None:
            if last and _plain(await self._session.get_items(1)) == last:  # and has not gone before a crash
                await self._session.pop_item()

        await self._recorded("pop_item", {"item": last}, pop)
        return last[0] if last else None

    async def clear_session(self) -> None:
        await self._recorded("clear_session", {}, self._session.clear_session)

    async def _recorded(self, operation: str, content: dict[str, Any], call: Call, again: Call | None = None) -> Any:
        return await recorded(
            self._run, f"memory:{operation}", {"memory": self.session_id, **content}, call, again=again
        )


def _plain(items: list[Any]) -> list[Any]:
    plain: list[Any] = to_jsonable_python(items)
    return plain
