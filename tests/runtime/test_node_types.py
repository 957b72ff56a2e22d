"""ROUTER, MAP, REDUCE and SUBWORKFLOW: what comes of each result, failure, cancellation and retry, on every store."""

import json
from typing import Any

import pytest
from test_engine import LEASE_MS, Bench, bench, sqlite_bench

from nexum_runtime.errors import InvalidRequest
from nexum_runtime.server.methods.orders import task_fields
from nexum_runtime.server.model.shapes import Claimed, Forget, Resolution, StartOrder
from nexum_runtime.server.rules import answers

__all__ = ["bench", "sqlite_bench"]

EVERY = ["main", "child", "again"]  # workflows that the test's worker serves
CHOICE = {
    "decide": {"type": "ROUTER", "routes": [{"target": "report"}, {"target": "repair"}]},
    "repair": {"type": "EFFECT", "dependencies": ["decide"]},
    "report": {"type": "EFFECT", "dependencies": ["decide"]},
    "after": {"type": "COMPUTE", "dependencies": ["decide", "repair", "report"]},
}
EACH = {
    "first": {"type": "EFFECT"},
    "each": {"type": "MAP", "dependencies": ["first"]},
    "sum": {"type": "REDUCE", "dependencies": ["each"], "mapNodeId": "each"},
}
PAY = {
    "pay": {"type": "SUBWORKFLOW", "subWorkflowId": "child"},
    "thank": {"type": "COMPUTE", "dependencies": ["pay"]},
}
ONE = {"run": {"type": "EFFECT"}}
PAYMENT = {"subWorkflowId": "child", "childInput": {"amount": 3}}


async def begin(bench: Bench, nodes: dict[str, Any], workflow_id: str = "main", **order: Any) -> None:
    """Register a workflow of these nodes and, if it is the main one, start its execution e."""
    for node in nodes.values():
        node.setdefault("dependencies", [])
    await bench.engine.register(workflow_id, "h", json.dumps({"nodes": nodes}))
    if workflow_id == "main":
        await bench.start(workflow_id="main", **order)


async def take(bench: Bench, node_id: str = "", *, with_items: bool = True) -> Claimed:
    claimed = await bench.engine.poll("worker", "h", EVERY, LEASE_MS, with_items=with_items)
    assert claimed is not None, "there was nothing to claim"
    assert node_id in ("", claimed.task.node_id)
    return claimed


async def answer(bench: Bench, node_id: str, output: Any) -> str:
    """Claim the next task, which must be this node's, and complete it."""
    return await bench.engine.complete((await take(bench, node_id)).task.task_id, json.dumps(output))


async def fail(bench: Bench, node_id: str, **flags: Any) -> str:
    claimed = await take(bench, node_id)
    return await bench.engine.fail(claimed.task.task_id, "no luck", **{"retryable": False} | flags)


async def outputs(bench: Bench, execution_id: str = "e") -> dict[str, Any]:
    return {node: json.loads(text) for node, text in (await bench.snapshot(execution_id)).outputs.items()}


async def error(bench: Bench, execution_id: str = "e") -> tuple[str, str]:
    execution = (await bench.snapshot(execution_id)).execution
    return str(execution.error_code), str(execution.error)


async def nothing_is_left(bench: Bench) -> None:
    assert await bench.engine.poll("worker", "h", EVERY, LEASE_MS) is None


# ROUTER


async def test_a_router_chooses_one_branch_and_the_other_is_skipped(bench: Bench) -> None:
    await begin(bench, CHOICE)
    assert await answer(bench, "decide", {"routed_to": "repair"}) == ""
    assert await answer(bench, "repair", 1) == ""
    claimed = await take(bench, "after")
    assert json.loads(claimed.input_json)["deps"] == {"decide": {"routed_to": "repair"}, "repair": 1}
    await bench.engine.complete(claimed.task.task_id, "2")
    assert await bench.status() == "COMPLETED"
    assert await outputs(bench) == {"decide": {"routed_to": "repair"}, "repair": 1, "after": 2}


async def test_an_execution_ends_when_all_that_is_left_is_skipped(bench: Bench) -> None:
    await begin(bench, {node: CHOICE[node] for node in ("decide", "repair", "report")})
    await answer(bench, "decide", {"routed_to": "report"})
    await answer(bench, "report", 1)
    assert await bench.status() == "COMPLETED"
    await nothing_is_left(bench)


@pytest.mark.parametrize("told", [{"routed_to": "after"}, {"routed_to": ""}, {}, None, [1], "report"])
async def test_a_router_that_names_no_target_is_refused_with_its_targets(bench: Bench, told: Any) -> None:
    await begin(bench, CHOICE)
    claimed = await take(bench, "decide")
    with pytest.raises(InvalidRequest, match=r"router 'decide' answered .* with one of: report, repair"):
        await bench.engine.complete(claimed.task.task_id, json.dumps(told))
    assert await bench.engine.complete(claimed.task.task_id, '{"routed_to":"report"}') == "", "nothing was changed"


async def test_a_router_without_routes_may_answer_anything(bench: Bench) -> None:
    await begin(bench, {"decide": {"type": "ROUTER"}, "then": {"type": "EFFECT", "dependencies": ["decide"]}})
    await answer(bench, "decide", 5)
    await answer(bench, "then", 6)
    assert await bench.status() == "COMPLETED"


async def test_a_router_is_tried_again_also_in_an_execution_that_happens_once(bench: Bench) -> None:
    await begin(bench, CHOICE, effect="once", max_attempts=1)
    await take(bench, "decide")
    await bench.pass_time(LEASE_MS)
    assert (await error(bench))[0] == "TOOL_ERROR", "to choose is no effect that may have happened"
    await bench.start(workflow_id="main", effect="once", max_attempts=1, restart="failed")
    assert await answer(bench, "decide", {"routed_to": "report"}) == ""


async def test_a_late_choice_counts_once(bench: Bench) -> None:
    await begin(bench, CHOICE)
    lost = (await take(bench, "decide")).task.task_id
    await bench.pass_time(LEASE_MS)
    second = (await take(bench, "decide")).task.task_id
    assert await bench.engine.complete(lost, '{"routed_to":"report"}') == ""
    assert "was completed already" in await bench.engine.complete(second, '{"routed_to":"repair"}')
    await answer(bench, "report", 1)


async def test_a_target_that_does_not_wait_for_its_router_is_let_run(bench: Bench) -> None:
    early = CHOICE | {"repair": {"type": "EFFECT"}}
    await begin(bench, early)
    decide, repair = await take(bench, "decide"), await take(bench, "repair")
    await bench.engine.complete(decide.task.task_id, '{"routed_to":"report"}')
    await answer(bench, "report", 1)
    await nothing_is_left(bench)
    await bench.engine.complete(repair.task.task_id, "2")
    await answer(bench, "after", 3)
    assert await bench.status() == "COMPLETED"


# MAP and REDUCE


async def begin_map(bench: Bench, items: list[Any], **order: Any) -> None:
    await begin(bench, EACH, **order)
    await answer(bench, "first", "hello")
    assert await answer(bench, "each", items) == ""


async def test_a_map_has_the_results_of_its_items_in_their_order(bench: Bench) -> None:
    await begin_map(bench, ["a", {"b": 1}, None])
    claims = [await take(bench, f"each__{index}") for index in range(3)]
    assert await outputs(bench) == {"first": "hello"}
    for claimed, word in reversed([*zip(claims, ("x", "y", "z"), strict=True)]):
        await bench.engine.complete(claimed.task.task_id, json.dumps(word))
    assert await outputs(bench) == {"first": "hello", "each": ["x", "y", "z"]}
    claimed = await take(bench, "sum")
    assert json.loads(claimed.input_json) == {"input": {"q": "x"}, "deps": {"each": ["x", "y", "z"]}}
    await bench.engine.complete(claimed.task.task_id, "3")
    assert await bench.status() == "COMPLETED"
    assert "MapStarted each 1" in await bench.story()


async def test_the_task_of_an_item_is_as_the_protocol_has_it(bench: Bench) -> None:
    await begin_map(bench, ["a", {"b": "ü"}])
    await take(bench, "each__0")
    fields = task_fields(await take(bench, "each__1"))
    assert {name: fields[name] for name in ("node_id", "node_type", "is_map_subtask", "map_index", "map_total")} == {
        "node_id": "each",
        "node_type": "MAP_SUBTASK",
        "is_map_subtask": True,
        "map_index": 1,
        "map_total": 2,
    }
    assert fields["map_item_json"] == '{"b":"ü"}'
    assert fields["idempotency_key"] == "e:each__1:h"
    assert json.loads(fields["input_json"])["deps"] == {"first": "hello"}


async def test_a_map_without_items_is_done_at_once(bench: Bench) -> None:
    await begin_map(bench, [])
    await answer(bench, "sum", 0)
    assert await outputs(bench) == {"first": "hello", "each": [], "sum": 0}
    assert await bench.status() == "COMPLETED"


@pytest.mark.parametrize("told", [{}, "abc", None, 5])
async def test_items_that_are_no_list_are_refused_before_anything_changes(bench: Bench, told: Any) -> None:
    await begin(bench, {"each": {"type": "MAP"}})
    claimed = await take(bench, "each")
    with pytest.raises(InvalidRequest, match=r"The MAP 'each' answered .* it must be a list"):
        await bench.engine.complete(claimed.task.task_id, json.dumps(told))
    assert await bench.engine.complete(claimed.task.task_id, "[]") == ""
    assert await bench.status() == "COMPLETED"


async def test_too_many_items_use_up_an_attempt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ITEMS_LIMIT", 2)
    await begin(bench, {"each": {"type": "MAP"}}, max_attempts=1)
    assert "has 3 items; the limit is 2. The attempt has failed." in await answer(bench, "each", [1, 2, 3])
    assert await error(bench) == ("TOOL_ERROR", "The MAP 'each' has 3 items; the limit is 2.")


async def test_a_merged_result_that_is_too_large_fails_by_name(sqlite_bench: Bench) -> None:
    bench = sqlite_bench
    bench.engine = bench.new_engine(max_message_bytes=1_000)
    await begin(bench, {"each": {"type": "MAP"}})
    await answer(bench, "each", [1, 2])
    for index in range(2):
        await answer(bench, f"each__{index}", "x" * 600)
    code, told = await error(bench)
    assert code == "TOOL_ERROR"
    assert told.startswith("The result of all items of each is 1")
    bench.engine = bench.new_engine()  # with a larger limit
    await bench.engine.resolve("e", "", Resolution("retry"))
    assert await bench.status() == "COMPLETED"


async def test_only_the_first_items_of_a_map_count(bench: Bench) -> None:
    await begin(bench, {"each": {"type": "MAP"}})
    lost = (await take(bench, "each")).task.task_id
    await bench.pass_time(LEASE_MS)
    second = (await take(bench, "each")).task.task_id
    assert await bench.engine.complete(lost, "[1]") == ""
    assert "was answered already" in await bench.engine.complete(second, "[1,2,3]")
    await answer(bench, "each__0", 7)
    assert await outputs(bench) == {"each": [7]}


async def test_an_item_is_tried_again_by_itself(bench: Bench) -> None:
    await begin_map(bench, [1, 2])
    await fail(bench, "each__0", retryable=True)
    await answer(bench, "each__1", "b")
    await bench.pass_time(1_000)
    await answer(bench, "each__0", "a")
    await answer(bench, "sum", 2)
    assert await bench.status() == "COMPLETED"


async def test_an_item_that_fails_fails_the_execution_and_a_retry_redoes_only_what_has_no_result(bench: Bench) -> None:
    await begin_map(bench, [1, 2, 3, 4])
    await answer(bench, "each__0", "a")
    running = await take(bench, "each__1")
    await fail(bench, "each__2")
    assert await error(bench) == ("TOOL_ERROR", "no luck")
    await nothing_is_left(bench)
    assert await bench.engine.complete(running.task.task_id, '"b"') == "", "what runs is let run"
    await bench.engine.resolve("e", "", Resolution("retry"))
    await answer(bench, "each__2", "c")
    await answer(bench, "each__3", "d")
    assert (await outputs(bench))["each"] == ["a", "b", "c", "d"]
    await answer(bench, "sum", 4)
    assert await bench.status() == "COMPLETED"


async def test_a_retry_after_the_last_item_was_done_late_goes_on_with_all_of_them(bench: Bench) -> None:
    await begin_map(bench, [1, 2])
    failed, late = await take(bench, "each__0"), await take(bench, "each__1")
    await bench.engine.fail(failed.task.task_id, "no luck", retryable=False)
    await bench.engine.complete(late.task.task_id, '"b"')
    await bench.engine.resolve("e", "", Resolution("retry"))
    await answer(bench, "each__0", "a")
    assert (await outputs(bench))["each"] == ["a", "b"]


async def test_an_item_that_happens_once_is_unknown_until_somebody_says(bench: Bench) -> None:
    await begin_map(bench, [1, 2], effect="once", max_attempts=1)
    await answer(bench, "each__0", "a")
    await take(bench, "each__1")
    await bench.pass_time(LEASE_MS)
    assert (await error(bench))[0] == "OUTCOME_UNKNOWN"
    assert "RUNNING" in await bench.engine.resolve("e", "each__1", Resolution("result", '"b"'))
    assert (await outputs(bench))["each"] == ["a", "b"]
    await answer(bench, "sum", 2)
    assert await bench.status() == "COMPLETED"


async def test_the_late_word_of_an_item_settles_it(bench: Bench) -> None:
    await begin_map(bench, [1], effect="once", max_attempts=1)
    claimed = await take(bench, "each__0")
    await bench.pass_time(LEASE_MS)
    assert await bench.engine.complete(claimed.task.task_id, '"late"') == ""
    assert (await outputs(bench))["each"] == ["late"]
    await answer(bench, "sum", 1)


async def test_a_map_that_is_cancelled_goes_on_where_it_was(bench: Bench) -> None:
    await begin_map(bench, [1, 2, 3])
    await answer(bench, "each__0", "a")
    running = await take(bench, "each__1")
    assert await bench.engine.cancel("e") == "Execution cancelled"
    await nothing_is_left(bench)
    assert "was not recorded" in await bench.engine.complete(running.task.task_id, '"b"')
    await bench.start(workflow_id="main", restart="failed")
    await answer(bench, "each__1", "b2")
    await answer(bench, "each__2", "c")
    assert (await outputs(bench))["each"] == ["a", "b2", "c"]


async def test_items_of_an_execution_that_failed_meanwhile_are_told_again(bench: Bench) -> None:
    await begin(bench, {"other": {"type": "EFFECT"}, "each": {"type": "MAP"}})
    other, each = await take(bench, "other"), await take(bench, "each")
    await bench.engine.fail(other.task.task_id, "no luck", retryable=False)
    assert "is FAILED; this result was not recorded" in await bench.engine.complete(each.task.task_id, "[1]")
    await bench.engine.resolve("e", "", Resolution("retry"))
    await answer(bench, "other", 1)
    await answer(bench, "each", [1])
    await answer(bench, "each__0", 2)
    assert await bench.status() == "COMPLETED"


async def test_two_maps_in_a_row_and_one_whose_id_begins_alike(bench: Bench) -> None:
    nodes = {"a": {"type": "MAP"}, "a__b": {"type": "MAP", "dependencies": ["a"]}}
    await begin(bench, nodes)
    await answer(bench, "a", [1, 2])
    await answer(bench, "a__0", 10)
    await answer(bench, "a__1", 20)
    claimed = await take(bench, "a__b")
    assert json.loads(claimed.input_json)["deps"] == {"a": [10, 20]}
    await bench.engine.complete(claimed.task.task_id, "[5]")
    await answer(bench, "a__b__0", 6)
    assert await outputs(bench) == {"a": [10, 20], "a__b": [6]}
    assert await bench.status() == "COMPLETED"


async def test_who_knows_nothing_of_items_is_given_other_tasks(bench: Bench) -> None:
    await begin_map(bench, [1])
    await bench.engine.register("child", "h", json.dumps({"nodes": ONE}))
    await bench.start("other", workflow_id="child")
    assert (await take(bench, with_items=False)).task.execution_id == "other"
    assert await bench.engine.poll("stock", "h", EVERY, LEASE_MS, with_items=False) is None
    await take(bench, "each__0")


# SUBWORKFLOW


async def begin_child(bench: Bench, execution_id: str = "e", child: dict[str, Any] = ONE, **order: Any) -> None:
    await begin(bench, child, "child")
    await begin(bench, PAY, execution_id=execution_id, **order)
    assert await answer(bench, "pay", PAYMENT) == ""


async def test_a_child_runs_and_its_parent_goes_on_with_its_output(bench: Bench) -> None:
    await begin_child(bench, effect="read", max_attempts=3, timeout_ms=5_000)
    child = (await bench.snapshot("e/pay")).execution
    assert (child.status, child.workflow_id, child.input_json) == ("RUNNING", "child", '{"amount":3}')
    assert (child.effect, child.max_attempts, child.timeout_ms) == ("read", 3, 5_000), "as its parent's"
    assert await bench.status() == "RUNNING"
    await answer(bench, "run", "paid")
    assert await bench.status("e/pay") == "COMPLETED"
    claimed = await take(bench, "thank")
    assert json.loads(claimed.input_json)["deps"] == {"pay": "paid"}
    await bench.engine.complete(claimed.task.task_id, "1")
    assert await bench.status() == "COMPLETED"
    assert [line for line in await bench.story() if " pay" in line] == [
        "AttemptStarted pay 1",
        "ChildStarted pay 1",
        "TaskCompleted pay",
    ]


async def test_a_child_gives_its_only_last_node_or_what_was_recorded_last(bench: Bench) -> None:
    chain = {"a": {"type": "EFFECT"}, "b": {"type": "EFFECT", "dependencies": ["a"]}, "c": {"type": "EFFECT"}}
    await begin_child(bench, child=chain)
    await answer(bench, "a", 1)
    running = await take(bench, "c")
    await answer(bench, "b", 2)
    await bench.engine.complete(running.task.task_id, "3")
    assert await outputs(bench) == {"pay": 3}, "of two ends, that which was recorded last"


async def test_a_failed_child_fails_its_parent_and_when_it_succeeds_the_parent_goes_on(bench: Bench) -> None:
    await begin_child(bench)
    await fail(bench, "run")
    assert await error(bench) == ("TOOL_ERROR", "child e/pay failed: no luck")
    await bench.engine.resolve("e/pay", "", Resolution("retry"))
    assert await bench.status() == "FAILED"
    await answer(bench, "run", "paid")
    assert await bench.status() == "RUNNING"
    await answer(bench, "thank", 1)
    assert await outputs(bench) == {"pay": "paid", "thank": 1}
    assert await bench.status() == "COMPLETED"


async def test_a_parent_that_is_tried_again_has_its_child_tried_again(bench: Bench) -> None:
    await begin_child(bench, child={"a": {"type": "EFFECT"}, "run": {"type": "EFFECT", "dependencies": ["a"]}})
    await answer(bench, "a", 1)
    await fail(bench, "run")
    await bench.start(workflow_id="main", restart="failed")
    assert (await bench.status(), await bench.status("e/pay")) == ("RUNNING", "RUNNING")
    await answer(bench, "run", "paid")
    await answer(bench, "thank", 1)
    assert await bench.status() == "COMPLETED"


async def test_a_parent_that_is_cancelled_cancels_its_child_and_both_go_on_where_they_were(bench: Bench) -> None:
    await begin_child(bench)
    running = await take(bench, "run")
    assert await bench.engine.cancel("e") == "Execution cancelled"
    assert (await bench.status(), await bench.status("e/pay")) == ("CANCELLED", "CANCELLED")
    assert "was not recorded" in await bench.engine.complete(running.task.task_id, "1"), "a late child changes nothing"
    assert await bench.status() == "CANCELLED"
    await bench.start(workflow_id="main", restart="failed")
    await answer(bench, "run", "paid")
    await answer(bench, "thank", 1)
    assert await bench.status() == "COMPLETED"


async def test_a_child_that_completed_by_itself_is_taken_up_when_its_parent_goes_on(bench: Bench) -> None:
    await begin_child(bench)
    await bench.engine.cancel("e")
    await bench.engine.resolve("e/pay", "", Resolution("retry"))
    await answer(bench, "run", "paid")
    assert await bench.status() == "CANCELLED"
    await bench.engine.resolve("e", "", Resolution("retry"))
    await answer(bench, "thank", 1)
    assert await outputs(bench) == {"pay": "paid", "thank": 1}
    assert await bench.status() == "COMPLETED"


async def test_a_child_that_is_cancelled_fails_its_parent(bench: Bench) -> None:
    await begin_child(bench)
    await bench.engine.cancel("e/pay")
    assert await error(bench) == ("TOOL_ERROR", "child e/pay was cancelled.")


async def test_another_node_that_fails_cancels_the_child_whose_record_is_kept(bench: Bench) -> None:
    await begin(bench, ONE, "child")
    await begin(bench, PAY | {"other": {"type": "EFFECT"}})
    await answer(bench, "pay", PAYMENT)
    await fail(bench, "other")
    assert (await bench.status(), await bench.status("e/pay")) == ("FAILED", "CANCELLED")
    await nothing_is_left(bench)
    await bench.engine.resolve("e", "", Resolution("retry"))
    assert await bench.status("e/pay") == "RUNNING"


async def test_the_unknown_outcome_of_a_child_is_its_parents_until_it_is_settled(bench: Bench) -> None:
    await begin_child(bench, effect="once", max_attempts=1)
    claimed = await take(bench, "run")
    await bench.pass_time(LEASE_MS)
    assert (await error(bench))[0] == (await error(bench, "e/pay"))[0] == "OUTCOME_UNKNOWN"
    await bench.start(workflow_id="main", restart="failed", effect="once", max_attempts=1)
    await nothing_is_left(bench)
    assert await bench.engine.complete(claimed.task.task_id, '"late"') == ""
    await answer(bench, "thank", 1)
    assert await outputs(bench) == {"pay": "late", "thank": 1}


async def test_a_child_that_a_person_says_has_failed_is_no_longer_unknown_in_its_parent(bench: Bench) -> None:
    await begin_child(bench, effect="once", max_attempts=1)
    await take(bench, "run")
    await bench.pass_time(LEASE_MS)
    await bench.engine.resolve("e/pay", "", Resolution("failed", "the bank says no"))
    assert await error(bench) == ("TOOL_ERROR", "child e/pay failed: the bank says no")


async def test_a_parent_that_is_cancelled_while_its_child_does_what_happens_once_is_unknown(bench: Bench) -> None:
    await begin_child(bench, effect="once", max_attempts=1)
    claimed = await take(bench, "run")
    assert "may or may not have happened" in await bench.engine.cancel("e")
    assert (await error(bench))[0] == (await error(bench, "e/pay"))[0] == "OUTCOME_UNKNOWN"
    assert await bench.engine.complete(claimed.task.task_id, '"paid"') == ""
    assert (await bench.status(), await bench.status("e/pay")) == ("CANCELLED", "COMPLETED")


async def test_what_a_child_has_begun_once_is_not_begun_again_by_a_restart(bench: Bench) -> None:
    await begin(bench, ONE, "child")
    await begin(bench, PAY | {"other": {"type": "COMPUTE"}}, effect="once", max_attempts=1)
    await answer(bench, "pay", PAYMENT)
    other, _ = await take(bench, "other"), await take(bench, "run")
    await bench.engine.fail(other.task.task_id, "no luck", retryable=False)
    assert (await error(bench, "e/pay"))[0] == "OUTCOME_UNKNOWN"
    await bench.start(workflow_id="main", restart="failed", effect="once", max_attempts=1)
    assert (await bench.status(), await bench.status("e/pay")) == ("FAILED", "FAILED")
    assert "ExecutionRestarted" not in await bench.story()
    await nothing_is_left(bench)


async def test_a_workflow_that_is_not_registered_uses_up_an_attempt(bench: Bench) -> None:
    await begin(bench, PAY, max_attempts=2)
    assert "No workflow 'child' is registered. The attempt has failed." in await answer(bench, "pay", PAYMENT)
    await bench.pass_time(1_000)
    await begin(bench, ONE, "child")
    assert await answer(bench, "pay", PAYMENT) == ""
    assert await bench.status("e/pay") == "RUNNING"


@pytest.mark.parametrize("told", [{}, {"subWorkflowId": 5}, [], "child", {"subWorkflowId": ""}])
async def test_an_answer_that_names_no_workflow_is_refused(bench: Bench, told: Any) -> None:
    await begin(bench, PAY)
    claimed = await take(bench, "pay")
    with pytest.raises(InvalidRequest, match=r"The sub-workflow 'pay' answered .* it must be"):
        await bench.engine.complete(claimed.task.task_id, json.dumps(told))


async def test_a_workflow_that_calls_itself_ends_at_the_limit(bench: Bench) -> None:
    again = {"in": {"type": "SUBWORKFLOW", "subWorkflowId": "again"}}
    await begin(bench, again, "again")
    await bench.start("top", workflow_id="again", max_attempts=1)
    told = {"subWorkflowId": "again"}
    deepest = ""
    for _ in range(answers.DEPTH_LIMIT):
        claimed = await take(bench, "in")
        deepest = claimed.task.execution_id
        assert await bench.engine.complete(claimed.task.task_id, json.dumps(told)) == ""
    message = await answer(bench, "in", told)
    assert f"Execution {deepest}" in message
    assert "is 20 sub-workflows deep, and can start no other one. The attempt has failed." in message
    assert await bench.status("top") == "FAILED"
    assert (await error(bench, "top"))[1].count("again top/in") == answers.DEPTH_LIMIT


async def test_the_id_of_a_child_is_short_and_safe_whatever_its_node_is_called(bench: Bench) -> None:
    await begin(bench, ONE, "child")
    nodes = {"página / 1": {"type": "SUBWORKFLOW"}, "x" * 200: {"type": "SUBWORKFLOW"}}
    await begin(bench, nodes)
    for node_id in nodes:
        assert await answer(bench, node_id, PAYMENT) == ""
    for node_id in nodes:
        claimed = await take(bench, "run")
        assert len(claimed.task.execution_id) == len("e/123456")
        await bench.engine.complete(claimed.task.task_id, json.dumps(node_id[:1]))
    assert await outputs(bench) == {"página / 1": "p", "x" * 200: "x"}


async def test_an_id_that_is_taken_by_another_execution_is_no_child(bench: Bench) -> None:
    await begin(bench, ONE, "child")
    await bench.start("e/pay", workflow_id="child")
    await begin(bench, PAY, max_attempts=1)
    claims = {claimed.task.node_id: claimed for claimed in [await take(bench), await take(bench)]}
    message = await bench.engine.complete(claims["pay"].task.task_id, json.dumps(PAYMENT))
    assert "Execution e/pay is there already, and is no child of this one." in message
    await bench.engine.complete(claims["run"].task.task_id, "1")
    assert await bench.status() == "FAILED"


async def test_an_approval_in_a_child_is_asked_and_a_no_is_its_parents(bench: Bench) -> None:
    await begin_child(bench, child={"ask": {"type": "HUMAN_APPROVAL"}})
    assert await bench.pending() == [("e/pay", "ask")]
    await bench.reject(execution_id="e/pay")
    assert await error(bench) == ("REJECTED", "child e/pay failed: Rejected by bob: too dear")
    await bench.start(workflow_id="main", restart="failed")
    assert await bench.status() == "FAILED", "only a person takes that back"
    await bench.engine.resolve("e", "", Resolution("retry"))
    await bench.approve(execution_id="e/pay")
    await answer(bench, "thank", 1)


async def test_a_map_of_a_child_and_a_child_of_a_child(bench: Bench) -> None:
    await begin(bench, {"each": {"type": "MAP"}}, "again")
    await begin(bench, {"in": {"type": "SUBWORKFLOW"}}, "child")
    await begin(bench, PAY)
    await answer(bench, "pay", PAYMENT)
    await answer(bench, "in", {"subWorkflowId": "again"})
    await answer(bench, "each", [1, 2])
    await answer(bench, "each__0", "a")
    await answer(bench, "each__1", "b")
    assert await outputs(bench) == {"pay": ["a", "b"]}
    await answer(bench, "thank", 1)
    for execution_id in ("e", "e/pay", "e/pay/in"):
        assert await bench.status(execution_id) == "COMPLETED"


# Sessions


async def test_a_session_that_is_stopped_begins_no_item_and_nothing_of_a_child(bench: Bench) -> None:
    await begin_child(bench, "s/e", child={"each": {"type": "MAP"}})
    await bench.engine.stop_session("s", "anna", "")
    await nothing_is_left(bench)
    await bench.engine.go_session("s")
    await answer(bench, "each", [1])
    await bench.engine.stop_session("s", "anna", "")
    await nothing_is_left(bench)
    await bench.engine.go_session("s")
    await answer(bench, "each__0", 1)
    await answer(bench, "thank", 1)


async def test_what_is_pruned_is_what_has_ended(bench: Bench) -> None:
    await begin_child(bench)
    await answer(bench, "run", 1)
    bench.now_ms += 10_000
    assert (await bench.engine.prune("", 5_000, dry_run=False))[0] == 1, "the child; its parent still runs"
    await answer(bench, "thank", 1)
    assert await outputs(bench) == {"pay": 1, "thank": 1}


async def test_a_failed_child_that_was_pruned_is_started_anew(bench: Bench) -> None:
    await begin_child(bench)
    await fail(bench, "run")
    await bench.engine.prune("e/", 0, dry_run=False)
    await bench.engine.resolve("e", "", Resolution("retry"))
    await answer(bench, "pay", PAYMENT)
    await answer(bench, "run", "paid")
    await answer(bench, "thank", 1)


async def test_a_child_that_its_parent_waits_for_is_not_taken_back_without_it(bench: Bench) -> None:
    await begin_child(bench)
    await bench.engine.stop_session("e", "", "")
    turn = '{"kind":"turn"}'
    await bench.engine.go_session("e")
    await bench.start("e/turn", workflow_id="child", labels_json=turn)
    await bench.engine.stop_session("e", "", "")
    with pytest.raises(InvalidRequest, match=r"has not|waits for e/pay|There is none|none to take back") as refused:
        await bench.engine.forget("e", Forget(0, "e/pay"))
    assert "e, which is not taken back, waits for e/pay. Cancel it first: nexum cancel e" in str(refused.value)


async def test_a_child_of_the_newest_version_is_started(bench: Bench) -> None:
    await begin(bench, ONE, "child")
    await bench.engine.register("child", "h2", json.dumps({"nodes": {"new": {"type": "EFFECT", "dependencies": []}}}))
    await begin(bench, PAY)
    await answer(bench, "pay", PAYMENT)
    assert (await bench.snapshot("e/pay")).execution.version_hash == "h2"
    await bench.engine.start(StartOrder("child", "h2", '{"amount": 3}', "e/pay"))  # its id is like any other
