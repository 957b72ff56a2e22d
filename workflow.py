"""What an agent does as Nexum workflows, each a single EFFECT node, some behind a person's yes.

openai-agents-tool-call   a tool call, executed by worker.py
    input    {"tool_name": "web_search", "tool_args": {"query": "durable execution", "max_results": 5}}
    output   {"result": "1. Durable execution …", "duration_ms": 412}

openai-agents-approved-tool-call  the same, after a HUMAN_APPROVAL node: nobody executes it before a person has said yes
    input, output  the same

openai-agents-approval    only the yes, to a call that the SDK itself holds back
    input    the same
    output   {"approved": true, "approver": "anna", "comment": "fine"}

openai-agents-local-call  a tool call that the agent's own process executes: a local effect
    input    the same
    output   {"result": what recording.py makes of it, "duration_ms": 3}

openai-agents-model-turn  a turn of the model, another local effect
    input    {"model": "gpt-5", "instructions": "5d41402abc4b2a76", "input": [["user", "7d793037a0760186"]], …}
    output   {"result": what recording.py makes of it, "duration_ms": 2310, "tokens": 812}
"""

from collections.abc import Awaitable, Callable
from typing import Any

from nexum import WorkflowDef, workflow
from nexum.context import ContextView
from pydantic import BaseModel, model_validator

from nexum_runtime import TaskError, human_approval

NODE = "tool_call"
APPROVAL_NODE = "approval"


class ToolCall(BaseModel):
    """What an execution is started with."""

    tool_name: str
    tool_args: dict[str, Any]


def _with_no_duration(recorded: Any) -> Any:
    """What `nexum resolve --result TEXT` records is the text alone."""
    return {"result": recorded, "duration_ms": 0} if isinstance(recorded, str) else recorded


class ToolResult(BaseModel):
    """What is recorded: the text the model gets, and how long the tool took, in milliseconds."""

    result: str
    duration_ms: int

    @model_validator(mode="before")
    @classmethod
    def _a_persons_word(cls, recorded: Any) -> Any:
        return _with_no_duration(recorded)


class ToolError(TaskError):
    """Raised by a tool to say in its own words what went wrong, to the model.

    `retryable=False` says that it will go wrong again; `unknown=True` that it may have had its effect all the same.
    """


async def _runs_in_the_worker(context: ContextView) -> ToolResult:
    raise NotImplementedError("tool calls are executed by worker.py")


class Local(BaseModel):
    """What is recorded of a local effect: the value as JSON, how long it took, and the tokens it was charged."""

    result: Any
    duration_ms: int
    tokens: int = 0

    @model_validator(mode="before")
    @classmethod
    def _a_persons_word(cls, recorded: Any) -> Any:
        return _with_no_duration(recorded)


async def _runs_in_its_own_process(context: ContextView) -> Local:
    raise NotImplementedError("a local effect is executed by the process that starts it")


def tool_call_workflow(handler: Callable[[ContextView], Awaitable[ToolResult]] = _runs_in_the_worker) -> WorkflowDef:
    """The workflow. Who submits calls needs its shape only; the worker passes the handler that runs them."""
    return workflow("openai-agents-tool-call").effect(NODE, ToolResult, handler).build()


def approved_tool_call_workflow(
    handler: Callable[[ContextView], Awaitable[ToolResult]] = _runs_in_the_worker,
) -> WorkflowDef:
    """The same for calls that need a person's yes."""
    approved = human_approval(workflow("openai-agents-approved-tool-call"), APPROVAL_NODE)
    return approved.effect(NODE, ToolResult, handler).build()


APPROVAL = human_approval(workflow("openai-agents-approval"), APPROVAL_NODE).build()
LOCAL_CALL = workflow("openai-agents-local-call").effect("local_call", Local, _runs_in_its_own_process).build()
MODEL_TURN = workflow("openai-agents-model-turn").effect("model_turn", Local, _runs_in_its_own_process).build()
