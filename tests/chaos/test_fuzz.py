"""A short run of fuzz.py: thousands of calls that nobody would send, at a real `nexum dev`."""

from pathlib import Path

from fuzz import NO_SUCH_METHOD, fuzz, methods

TRIES = 2_000
SEED = 20_261_122


async def test_the_server_stands_whatever_is_sent_to_any_of_its_methods(tmp_path: Path) -> None:
    figures = await fuzz(tmp_path, TRIES, SEED)
    assert not figures.failures, str(figures)
    assert figures.answers["OK"] > TRIES / 10, "too little of it was valid to reach any state"
    assert figures.answers["INVALID_ARGUMENT"] > TRIES / 10, "too much of it was valid"
    story = {"ExecutionStarted", "AttemptStarted", "TaskCompleted", "ExecutionCompleted", "ExecutionCancelled"}
    assert story <= set(figures.events), str(figures)


def test_every_method_of_both_services_is_tried() -> None:
    paths = {method.path for method in methods()}
    assert {"/nexum.NexumService/RegisterWorkflow", "/nexum.NexumExtensions/Resolve"} <= paths
    assert NO_SUCH_METHOD not in paths
    streams = {method.path for method in methods() if method.kind != "unary_unary"}
    assert streams == {
        f"/nexum.NexumExtensions/{name}"
        for name in ("Attend", "Follow", "StreamCalls", "History", "Journal", "StreamTasks")
    }
