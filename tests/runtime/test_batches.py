"""Several messages in one: what goes together, and what is none."""

import random
from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import Any

import pytest
from nexum.proto import nexum_pb2 as pb

from nexum_runtime.wire import batches
from nexum_runtime.wire.batches import BATCH_BYTES, BATCH_LIMIT


def completion(size_bytes: int, name: str = "t") -> Any:
    """A message of just so many bytes, which are more than 200."""
    message = pb.CompleteRequest(task_id=name, output_json="x" * (size_bytes - 50))
    message.output_json += "x" * (size_bytes - message.ByteSize())
    assert message.ByteSize() == size_bytes
    return message


def taken(messages: Iterable[Any]) -> list[list[Any]]:
    waiting = deque(messages)
    together = []
    while waiting:
        together.append(batches.take(waiting, lambda message: [message]))
    return together


def test_messages_come_out_as_they_went_in() -> None:
    sizes = [0, 1, 127, 128, 16_383, 16_384, 100_000]
    messages = [pb.CompleteRequest(task_id="é" * size, output_json="\0" * size) for size in sizes]
    assert messages[0].ByteSize() == 0
    assert batches.unpack([pb.CompleteRequest], batches.pack(messages)) == messages
    assert batches.unpack([pb.CompleteRequest], b"") == []


def test_bytes_that_were_spoiled_are_messages_or_a_value_error() -> None:
    rng = random.Random(1)
    packed = batches.pack([pb.CompleteRequest(task_id=f"{n}-abc.1", output_json='{"a":1}') for n in range(3)])
    cut = [packed[:length] for length in range(len(packed))]
    spoiled = [bytes(rng.randrange(256) if rng.randrange(9) == 0 else each for each in packed) for _ in range(3_000)]
    refused = 0
    for data in cut + spoiled:
        try:
            batches.unpack([pb.CompleteRequest], data)
        except ValueError:
            refused += 1
    assert refused > 1_000


@pytest.mark.parametrize(
    "spoiled", [b"\x05abc", b"\x80", b"\xff" * 9 + b"\x01", b"\xff" * 10, b"\x01\xff", b"\x02\x0a\xff"]
)
def test_what_is_no_batch_is_a_value_error(spoiled: bytes) -> None:
    sound = batches.pack([pb.CompleteRequest(task_id="t.1")])
    for data in (spoiled, sound + spoiled):
        with pytest.raises(ValueError, match=r"\w"):
            batches.unpack([pb.CompleteRequest], data)


@pytest.mark.parametrize(
    ("sizes", "together"),
    [
        ([1_000] * 65, [65]),
        ([1_000] * 66, [65, 1]),
        ([BATCH_BYTES - 1_000, 1_000, 1_000], [2, 1]),
        ([BATCH_BYTES - 1_000, 1_001], [1, 1]),
        ([BATCH_BYTES], [1]),
        ([1_000, BATCH_BYTES, 1_000], [1, 1, 1]),
        ([1_000, 10 * BATCH_BYTES, 1_000, 1_000], [1, 1, 2]),
    ],
)
def test_what_travels_together_is_at_most_64_kib_and_what_is_larger_travels_alone(
    sizes: list[int], together: list[int]
) -> None:
    messages = [completion(size, f"t{number}") for number, size in enumerate(sizes)]
    found = taken(messages)
    assert [len(each) for each in found] == together
    assert [message for each in found for message in each] == messages, "in the order in which they waited"


def test_what_waits_is_made_a_message_when_it_is_taken_along() -> None:
    waiting = deque([BATCH_BYTES - 1_000, 500, 501])
    together = batches.take(waiting, lambda size: [completion(size)])
    assert [each.ByteSize() for each in together] == [BATCH_BYTES - 1_000, 500]
    assert list(waiting) == [501]


def test_no_more_than_a_thousand_travel_together_and_more_are_refused_before_they_are_all_read() -> None:
    messages = [pb.CompleteRequest()] * (BATCH_LIMIT + 1)
    assert [len(each) for each in taken(messages)] == [BATCH_LIMIT, 1]
    assert len(batches.unpack([pb.CompleteRequest], batches.pack(messages[1:]))) == BATCH_LIMIT
    with pytest.raises(ValueError, match="it has more than 1000 messages"):
        batches.unpack([pb.CompleteRequest], batches.pack(messages) + b"\x01\xff")


def test_messages_of_several_kinds_follow_each_other_in_turn_and_are_never_parted() -> None:
    kinds = (pb.CompleteRequest, pb.StartRequest)
    pairs = [[pb.CompleteRequest(task_id=str(n)), pb.StartRequest(workflow_id=str(n))] for n in range(BATCH_LIMIT)]
    waiting = deque(pairs)
    together = [batches.take(waiting, list) for _ in range(2)]
    assert [len(each) for each in together] == [BATCH_LIMIT, BATCH_LIMIT]
    unpacked = [each for packed in map(batches.pack, together) for each in batches.unpack(kinds, packed)]
    assert unpacked == list(chain.from_iterable(pairs))
    with pytest.raises(ValueError, match="a StartRequest is missing"):
        batches.unpack(kinds, batches.pack(together[0][:3]))
