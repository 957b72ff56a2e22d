"""A text that is the same for every attempt of a task, for an effect that shall happen only once elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import quote

_key: ContextVar[str] = ContextVar("nexum_idempotency_key")


def idempotency_key() -> str:
    """Return a text that is the same for every attempt of this task, in every process. Call it inside a handler.

    Ready for an `Idempotency-Key` header. Raises LookupError outside of a handler that a Worker or `run_local` runs.
    """
    return _key.get()


def key_of(execution_id: str, node_id: str, version_hash: str) -> str:
    """Printable ASCII, whatever the node is called."""
    return quote(f"{execution_id}:{node_id}:{version_hash}", safe="/:@=")


@contextmanager
def idempotent_by(key: str) -> Iterator[None]:
    """What runs inside is an attempt of the task with this key."""
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)
