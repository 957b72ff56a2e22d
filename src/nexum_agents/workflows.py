"""What an agent does as Nexum workflows. Each is one EFFECT node, some after a person's yes.

openai-agents-tool-call            a tool call that a worker executes
    input    {"tool_name": "web_search", "tool_args": {"query": "durable execution", "max_results": 5}}
    output   {"result": "1. Durable execution …", "duration_ms": 412}

openai-agents-approved-tool-call   the same after a HUMAN_APPROVAL node: no worker gets it before a person said yes

openai-agents-approval             a person's yes alone, to a call that the SDK itself holds back
    output   {"approved": true, "approver": "anna", "comment": "fine"}

openai-agents-question             a question to a person, whose answer is the words of a yes
    input    {"question": "Which account?", "choices": ["main", "savings"]}
    output   {"approved": true, "approver": "anna", "comment": "savings"}

openai-agents-local-call           a call that the agent's own process executes: a local effect
    input    as above
    output   {"result": …, "duration_ms": 3}

openai-agents-model-turn           a turn of a model, another local effect
    input    {"model": "gpt-5", "instructions": "5d41402abc4b2a76", "input": [["user", "7d793037a0760186"]], …}
    output   {"result": …, "duration_ms": 2310, "tokens": 812}

openai-agents-asked-anew           a note that a recorded turn or check ended a run in an error
    output   {"result": {"id": "model-turn/…/0", "times": 1, "why": "ModelBehaviorError: …"}, "duration_ms": 0}

openai-agents-run-end              how a run ended
    output   {"result": "Durable execution is …", "agent": "Researcher", "duration_ms": 0}
             {"result": null, "error": "MaxTurnsExceeded: …", "agent": …, "duration_ms": 0}

`result` is a value as values.py writes it. In `tool_args` stands the text that the model wrote, where that is no JSON
object that every language reads alike.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from nexum import WorkflowDef, workflow
from nexum.context import ContextView
from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer, model_validator

from nexum_runtime import human_approval

NODE = "tool_call"
APPROVAL_NODE = "approval"
ANSWER_NODE = "answer"
LOCAL_NODE = "local_call"
TURN_NODE = "model_turn"


class ToolCall(BaseModel):
    """What an execution is started with."""

    tool_name: str
    tool_args: dict[str, Any] | str


class Recorded(BaseModel):
    """What is recorded of a call or a turn."""

    result: Any  # see values.py
    duration_ms: int = 0  # a worker of somebody else's may record none
    form: str = ""  # how `result` is to be read: see values.py
    note: dict[str, Any] = {}  # of a call: what is to be known besides
    tokens: int = 0  # of a turn: what the model counted for it
    scope: str = ""  # of a turn: where it was asked
    nth: int = 0  # of a turn: its number there, from 1

    @model_validator(mode="before")
    @classmethod
    def _a_persons_word(cls, recorded: Any) -> Any:
        """What `nexum resolve --result TEXT` records is the text alone."""
        return {"result": recorded, "duration_ms": 0} if isinstance(recorded, str) else recorded

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        always = ("result", "duration_ms")
        return {name: value for name, value in dump(self).items() if value or name in always}


Handler = Callable[[ContextView], Awaitable[Recorded]]


async def _runs_in_a_worker(context: ContextView) -> Recorded:
    raise NotImplementedError("a worker executes tool calls")


async def _runs_in_its_own_process(context: ContextView) -> Recorded:
    raise NotImplementedError("the process that starts a local effect executes it")


def tool_call_workflow(handler: Handler = _runs_in_a_worker) -> WorkflowDef:
    """The workflow of a tool call. A client needs only its shape; a worker passes the handler that runs the calls."""
    return workflow("openai-agents-tool-call").effect(NODE, Recorded, handler).build()


def approved_tool_call_workflow(handler: Handler = _runs_in_a_worker) -> WorkflowDef:
    """The same for calls that need a person's yes."""
    approved = human_approval(workflow("openai-agents-approved-tool-call"), APPROVAL_NODE)
    return approved.effect(NODE, Recorded, handler).build()


TOOL_CALL, APPROVED_TOOL_CALL = tool_call_workflow(), approved_tool_call_workflow()
APPROVAL = human_approval(workflow("openai-agents-approval"), APPROVAL_NODE).build()
QUESTION = human_approval(workflow("openai-agents-question"), ANSWER_NODE).build()
LOCAL_CALL = workflow("openai-agents-local-call").effect(LOCAL_NODE, Recorded, _runs_in_its_own_process).build()
MODEL_TURN = workflow("openai-agents-model-turn").effect(TURN_NODE, Recorded, _runs_in_its_own_process).build()
RUN_END = workflow("openai-agents-run-end").effect("run_end", Recorded, _runs_in_its_own_process).build()
ASKED_ANEW = workflow("openai-agents-asked-anew").effect("asked_anew", Recorded, _runs_in_its_own_process).build()
