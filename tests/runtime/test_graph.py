"""A workflow's IR: what is refused and in which words, which nodes are ready, what a new version means."""

import json
import random
from typing import Any

import pytest

from nexum_runtime.server.model import graph
from nexum_runtime.server.model.graph import GraphError


def ir(**nodes: Any) -> str:
    return json.dumps({"nodes": nodes})


def effect(*dependencies: str) -> dict[str, Any]:
    return {"type": "EFFECT", "dependencies": list(dependencies)}


def compute(*dependencies: str) -> dict[str, Any]:
    return {"type": "COMPUTE", "dependencies": list(dependencies)}


@pytest.mark.parametrize(
    ("ir_json", "sentence"),
    [
        ("", "the workflow's IR is not JSON"),
        ("{", "the workflow's IR is not JSON"),
        ('{"nodes": NaN}', "the workflow's IR is not JSON: NaN is not JSON"),
        ('{"nodes": {"a": {"type": "EFFECT", "weight": -Infinity}}}', "-Infinity is not JSON"),
        ("[" * 100_000, "the workflow's IR is not JSON: nested too deeply"),
        ('{"nodes":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("[]", 'the workflow\'s IR has no "nodes" object'),
        ("{}", 'the workflow\'s IR has no "nodes" object'),
        ('{"nodes": ["a"]}', 'the workflow\'s IR has no "nodes" object'),
        ('{"nodes": {}}', "the workflow has no nodes"),
        (ir(**{f"n{i}": effect() for i in range(1_001)}), "the workflow has 1001 nodes; the limit is 1000"),
        (ir(a="EFFECT"), "node 'a' is not an object"),
        (ir(a={}), "node 'a' is of unknown type 'None'"),
        (ir(a={"type": "SPAWN"}), "node 'a' is of unknown type 'SPAWN'"),
        (ir(a={"type": "effect"}), "node 'a' is of unknown type 'effect'"),
        (ir(a={"type": ["EFFECT"]}), "node 'a' is of unknown type"),
        (ir(**{"": effect()}), "node id '' must be 1 to 200 characters"),
        (ir(**{"x" * 201: effect()}), "must be 1 to 200 characters"),
        (ir(a=effect(), b={"type": "EFFECT", "dependencies": "a"}), "node 'b' has dependencies that are not a list"),
        (
            ir(a=effect(), b={"type": "EFFECT", "dependencies": {"a": 1}}),
            "node 'b' has dependencies that are not a list",
        ),
        (ir(a=effect(), b={"type": "EFFECT", "dependencies": None}), "node 'b' has dependencies that are not a list"),
        (ir(a=effect(), b={"type": "EFFECT", "dependencies": [1]}), "node 'b' has dependencies that are not a list"),
        (ir(a=effect("a")), "node 'a' depends on itself"),
        (ir(a=effect("ghost")), "node 'a' depends on 'ghost', which is not in the workflow"),
        (ir(a=effect("b"), b=effect("a")), "nodes depend on each other in a circle: "),
    ],
)
def test_a_broken_ir_is_refused_in_a_sentence_that_names_what_is_wrong(ir_json: str, sentence: str) -> None:
    with pytest.raises(GraphError) as refused:
        graph.parse(ir_json)
    assert sentence in str(refused.value)


def router(*targets: str, after: str = "") -> dict[str, Any]:
    routes = [{"condition": "$.x == 1", "target": target} for target in targets]
    return {"type": "ROUTER", "dependencies": [after] if after else [], "routes": routes}


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ({"r": router("r")}, "node 'r' routes to 'r', which is itself"),
        ({"r": router("x")}, "node 'r' routes to 'x', which is not in the workflow"),
        ({"r": {"type": "ROUTER", "routes": 5}}, "node 'r' has routes that are no list of objects with a \"target\""),
        ({"r": {"type": "ROUTER", "routes": [{"target": 5}]}}, "node 'r' has routes that are no list"),
        (
            {"a": effect(), "r": {"type": "REDUCE", "dependencies": ["a"], "mapNodeId": "a"}},
            "is no MAP that it",
        ),
        ({"m": {"type": "MAP"}, "r": {"type": "REDUCE", "mapNodeId": "m"}}, "node 'r' is a REDUCE of 'm', which is no"),
        ({"s": {"type": "SUBWORKFLOW", "subWorkflowId": 5}}, "node 's' has a subWorkflowId that is no text"),
        ({"m": {"type": "MAP"}, "m__0": effect()}, "node 'm__0' is called as an item of the MAP 'm' is"),
    ],
)
def test_what_a_node_names_has_to_be_there(nodes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GraphError) as refused:
        graph.parse(ir(**nodes))
    assert sentence in str(refused.value)


def test_the_ir_of_the_typescript_sdk_is_taken() -> None:
    spelled = """{"nodes":{"a":{"type":"MAP","dependencies":[]},
    "b":{"type":"REDUCE","dependencies":["a"],"mapNodeId":"a"},
    "c":{"type":"SUBWORKFLOW","dependencies":["a","b"],"subWorkflowId":"Payment","inputFn":"(ctx) => ({})"},
    "m__0":{"type":"ROUTER","dependencies":["c"]}}}"""
    parsed = graph.parse(spelled)
    assert [(node.type, node.of) for node in parsed.nodes.values()] == [
        ("MAP", ""),
        ("REDUCE", "a"),
        ("SUBWORKFLOW", "Payment"),
        ("ROUTER", ""),
    ]


def test_a_target_is_skipped_when_every_router_that_has_it_went_elsewhere() -> None:
    parsed = graph.parse(ir(r=router("a", "b"), s=router("b", "c"), a=effect("r"), b=effect("r", "s"), c=effect("s")))
    assert parsed.skipped({}, ()) == set()
    assert parsed.skipped({"r": "a"}, ()) == set(), "the other one may choose b yet"
    assert parsed.skipped({"r": "a", "s": "c"}, ()) == {"b"}
    assert parsed.skipped({"r": "a", "s": "b"}, ()) == {"c"}
    assert parsed.skipped({"r": "a", "s": "c"}, {"b"}) == set(), "b runs already"


def test_what_only_a_skipped_router_chooses_is_skipped_and_nothing_after_it() -> None:
    inner = {"s": router("b", "c", after="r"), "b": effect("s"), "c": effect("s")}
    parsed = graph.parse(ir(r=router("a", "s"), a=effect("r"), **inner, after=compute("b", "c", "a")))
    skipped = parsed.skipped({"r": "a"}, ())
    assert skipped == {"s", "b", "c"}
    assert [node.id for node in parsed.ready({"r"}, {"r"}, skipped)] == ["a"]
    assert [node.id for node in parsed.ready({"r", "a"}, {"r", "a"}, skipped)] == ["after"]


def test_other_targets_or_another_sub_workflow_are_a_breaking_change() -> None:
    for before, after in (
        (router("a"), router("b")),
        ({"type": "SUBWORKFLOW", "subWorkflowId": "p"}, {"type": "SUBWORKFLOW", "subWorkflowId": "q"}),
    ):
        old, new = (graph.parse(ir(n=node, a=effect(), b=effect())) for node in (before, after))
        assert graph.compatibility(old, new) == "BREAKING"
        assert graph.compatibility(old, old) == "IDENTICAL"


def test_a_circle_is_named_node_by_node() -> None:
    with pytest.raises(GraphError) as refused:
        graph.parse(ir(start=effect(), a=effect("start", "c"), b=effect("a"), c=effect("b")))
    circle = str(refused.value).removeprefix("nodes depend on each other in a circle: ").split(" → ")
    assert circle[0] == circle[-1]
    assert set(circle) == {"a", "b", "c"}


def test_a_node_id_that_is_no_unicode_text_is_refused() -> None:
    """JSON can spell half a surrogate pair, but no database and no protobuf message can carry it."""
    with pytest.raises(GraphError, match="node"):
        graph.parse(r'{"nodes": {"a\ud800": {"type": "EFFECT", "dependencies": []}}}')


def test_dependencies_may_be_left_out_and_node_ids_may_be_any_text() -> None:
    parsed = graph.parse('{"nodes": {"página 🦊 \'x\'": {"type": "EFFECT"}}}')
    assert parsed.nodes["página 🦊 'x'"].dependencies == ()


def test_a_dependency_that_is_named_twice_is_one() -> None:
    named_twice = graph.parse(ir(a=effect(), b=effect("a", "a")))
    assert named_twice.nodes["b"].dependencies == ("a",)
    assert named_twice == graph.parse(ir(a=effect(), b=effect("a")))


@pytest.mark.parametrize("delay_seconds", [None, "60", True, -1, -0.1, 1e12, [], {}])
def test_a_timer_without_a_proper_delay_is_refused(delay_seconds: Any) -> None:
    sentence = "node 'nap' is a TIMER whose delay_seconds is .*; it must be a number from 0 to 316224000"
    with pytest.raises(GraphError, match=sentence):
        graph.parse(ir(nap={"type": "TIMER", "delay_seconds": delay_seconds}))


@pytest.mark.parametrize("delay_seconds", [0, 1, 0.25, 316_224_000])
def test_a_timer_may_wait_for_any_part_of_a_second_and_for_years(delay_seconds: float) -> None:
    assert graph.parse(ir(nap={"type": "TIMER", "delay_seconds": delay_seconds})).nodes["nap"].delay_seconds == (
        delay_seconds
    )


def test_what_nexum_py_builds_is_understood() -> None:
    from nexum import workflow
    from pydantic import BaseModel

    built = workflow("w").effect("a", BaseModel, print).compute("b", BaseModel, print).timer("c", 60).build()
    parsed = graph.parse(built.ir_json)
    assert [(node.id, node.type, node.dependencies) for node in parsed.nodes.values()] == [
        ("a", "EFFECT", ()),
        ("b", "COMPUTE", ("a",)),
        ("c", "TIMER", ("a", "b")),
    ]
    assert parsed.nodes["c"].delay_seconds == 60


def test_a_node_is_ready_once_all_it_depends_on_is_done() -> None:
    diamond = graph.parse(ir(a=effect(), b=effect("a"), c=effect("a"), d=compute("b", "c")))

    def ready(done: set[str], scheduled: set[str]) -> list[str]:
        return [node.id for node in diamond.ready(done, scheduled)]

    assert ready(set(), set()) == ["a"]
    assert ready(set(), {"a"}) == []
    assert ready({"a"}, {"a"}) == ["b", "c"]
    assert ready({"a", "c"}, {"a", "c"}) == ["b"]
    assert ready({"a", "c"}, {"a", "b", "c"}) == []
    assert ready({"a", "b", "c"}, {"a", "b", "c"}) == ["d"]
    assert ready({"a", "b", "c", "d"}, {"a", "b", "c", "d"}) == []


def test_nodes_become_ready_in_the_order_of_the_ir() -> None:
    names = [f"n{i}" for i in range(50)]
    random.Random(7).shuffle(names)
    assert [node.id for node in graph.parse(ir(**{name: effect() for name in names})).ready((), ())] == names


@pytest.mark.parametrize(
    ("new", "meaning"),
    [
        (ir(a=effect(), b=compute("a")), "IDENTICAL"),
        (ir(b=compute("a"), a=effect()), "IDENTICAL"),
        (ir(a=effect(), b=compute("a"), c=effect("b")), "SAFE"),
        (ir(a=effect()), "BREAKING"),
        (ir(a=effect(), b=effect("a")), "BREAKING"),
        (ir(a=effect(), b=compute()), "BREAKING"),
        (ir(a=effect(), z=compute("a")), "BREAKING"),
    ],
)
def test_a_new_version_is_compared_with_the_old(new: str, meaning: str) -> None:
    old = graph.parse(ir(a=effect(), b=compute("a")))
    assert graph.compatibility(old, graph.parse(new)) == meaning


def test_a_timer_that_takes_another_time_is_another_node() -> None:
    hour, minute = (graph.parse(ir(a={"type": "TIMER", "delay_seconds": seconds})) for seconds in (3_600, 60))
    assert graph.compatibility(hour, minute) == "BREAKING"
