"""A workflow of all kinds of parts, a MAP whose items are many and children in each other, run to its end by a worker
in this process, whatever happens to the server meanwhile."""

import asyncio
from typing import Any

from chaos_tools import LEASE_MS
from nexum import workflow
from nexum.context import ContextView
from processes import PATIENCE_SECONDS
from pydantic import BaseModel

from nexum_runtime import Worker, map_over, near, reduce, router, subworkflow

POINTS = ("in-fan-out", "in-fan-in", "in-child-start", "in-child-end")  # at which a server may die
ITEMS = 12


class Total(BaseModel):
    total: int


async def square(context: ContextView, item: int) -> int:
    return item * item


def add(context: ContextView) -> Total:
    return Total(total=sum(context.get_map_results("each")))


def of_child(context: ContextView) -> Total:
    return Total(total=context.get("child").total + 1)


_squares = map_over(workflow("parts-squares"), "each", lambda context: range(context.input["items"]), square)
SQUARES = reduce(_squares, "sum", "each", Total, add).build()
_middle = subworkflow(workflow("parts-middle"), "child", "parts-squares", lambda c: c.input, output_model=Total)
MIDDLE = _middle.compute("more", Total, of_child).build()
_choice = router(workflow("parts"), "decide", ["none", "child"], lambda context: "child")
_choice = _choice.effect("none", Total, lambda _: Total(total=0))
_chosen = subworkflow(_choice, "child", "parts-middle", lambda c: c.input, output_model=Total, depends_on=["decide"])
PARTS = _chosen.compute("more", Total, of_child).build()
EXPECTED = sum(n * n for n in range(ITEMS)) + 2


async def run_parts(address: str, execution_id: str) -> dict[str, Any]:
    """Returns its outputs. Raises AssertionError when it does not complete."""
    worker = Worker([PARTS, MIDDLE, SQUARES], open_client=lambda: near(address), lease_ms=LEASE_MS)
    async with near(address) as client:
        for each in (SQUARES, MIDDLE, PARTS):
            await client.register(each)
        working = asyncio.create_task(worker.run())
        try:
            given = {"items": ITEMS}
            outcome = await client.execute(PARTS, given, execution_id=execution_id, timeout=PATIENCE_SECONDS)
        finally:
            worker.stop()
            await working
    assert outcome.status == "COMPLETED", outcome
    return outcome.outputs


def check_parts(outputs: dict[str, Any]) -> None:
    assert outputs["more"] == {"total": EXPECTED}, outputs
    assert set(outputs) == {"decide", "child", "more"}
