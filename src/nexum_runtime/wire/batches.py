"""Several messages in one message of a stream: each is preceded by its length, as protobuf's delimited streams have it.

What comes at the same moment travels together, which costs both ends less than a message each.
"""

from collections import deque
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import cycle
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed

from nexum_runtime import wire

BATCH_BYTES = 64 * 1024  # about, of several in one; what is larger travels alone
BATCH_LIMIT = 1_000  # messages in one


def take(waiting: deque[Any], messages_of: Callable[[Any], list[Any]] = lambda each: each) -> list[Any]:
    """Take from the front what travels together, as messages: of one at the least."""
    taken = messages_of(waiting.popleft())
    size_bytes = _size_bytes(taken)
    while waiting:
        messages = messages_of(waiting[0])
        size_bytes += _size_bytes(messages)
        if size_bytes > BATCH_BYTES or len(taken) + len(messages) > BATCH_LIMIT:
            break
        taken += messages
        waiting.popleft()
    return taken


def _size_bytes(messages: list[Any]) -> int:
    return sum(message.ByteSize() for message in messages)


def pack(messages: Sequence[Any]) -> bytes:
    packed = BytesIO()
    for message in messages:
        serialize_length_prefixed(message, packed)
    return packed.getvalue()


def unpack(kinds: Sequence[Any], data: bytes) -> list[Any]:
    """The messages, whose kinds follow each other in turn. Raises ValueError when the bytes are no such messages, and
    MemoryError."""
    packed, messages = BytesIO(data), []
    try:
        for kind in cycle(kinds):
            if (message := parse_length_prefixed(kind, packed)) is None:
                break
            messages.append(message)
            if len(messages) > BATCH_LIMIT:
                raise ValueError(f"it has more than {BATCH_LIMIT} messages")
    except (DecodeError, OverflowError) as error:
        if wire.is_lack_of_memory(error):
            raise MemoryError(wire.NO_MEMORY) from None
        raise ValueError(str(error)) from None
    if len(messages) % len(kinds):
        raise ValueError(f"a {kinds[len(messages) % len(kinds)].DESCRIPTOR.name} is missing")
    return messages
