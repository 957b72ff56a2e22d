"""What a call is known by, for whatever a model may write: legal, the same in every run, and no two calls' alike."""

import json
import random
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_properties import as_read, texts, values

from nexum_agents import durable_tool
from nexum_agents.sessions import Scope, root_of
from nexum_runtime import wire
from nexum_runtime.server.rules.checks import EXECUTION_ID

session_ids = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
arguments = st.dictionaries(texts, values, max_size=4).map(as_read)
tool_names = texts | st.text(min_size=60, max_size=300)


def next_id(block: Scope, tool_name: str, tool_args: dict[str, Any]) -> str:
    return block.place("call", tool_name, tool_args).execution_id


@given(session_ids, tool_names, arguments)
def test_a_call_has_the_same_legal_id_in_every_run(session_id: str, tool_name: str, tool_args: dict[str, Any]) -> None:
    first, again = root_of(session_id), root_of(session_id)
    ids = [next_id(first, tool_name, tool_args) for _ in range(2)]
    rewritten = json.loads(json.dumps(tool_args, indent=1))
    assert ids == [next_id(again, tool_name, rewritten) for _ in range(2)]
    assert ids[0] != ids[1]
    for number, execution_id in enumerate(ids):
        assert EXECUTION_ID.fullmatch(execution_id)
        assert execution_id.startswith(f"{session_id}/")
        assert execution_id.count("/") == 3
        assert execution_id.endswith(f"/{number}")


@given(st.lists(st.tuples(tool_names, arguments), max_size=5), st.randoms(use_true_random=False))
def test_calls_share_an_id_only_if_they_are_the_same(
    calls: list[tuple[str, dict[str, Any]]], shuffle: random.Random
) -> None:
    block = root_of("s")
    ids = [next_id(block, *call) for call in calls]
    assert len(set(ids)) == len(ids)
    shuffle.shuffle(calls)
    block = root_of("s")
    assert {next_id(block, *call) for call in calls} == set(ids), "the order of parallel calls is no matter"


def a_tool(city: str) -> str:
    """A tool."""
    return city


@given(st.sampled_from(["read", "idempotent", "once"]) | texts, st.integers(-2, 30), st.floats(-1, 100_000))
def test_a_tool_is_made_within_the_limits_of_its_effect_attempts_and_timeout_and_refused_beyond(
    effect: Any, max_attempts: int, timeout: float
) -> None:
    taken = (
        effect in wire.EFFECTS and 1 <= max_attempts <= (1 if effect == "once" else 20) and 0.001 <= timeout <= 86_400
    )
    with nullcontext() if taken else pytest.raises(ValueError, match="of a_tool is"):
        durable_tool(a_tool, effect=effect, max_attempts=max_attempts, timeout=timeout)
