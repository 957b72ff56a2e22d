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
    output   {"result": "Durable execution is …", "agent": "Researcher", "duration_ms": 0, "trail": "7d793037a0760186"}
             {"result": null, "error": "MaxTurnsExceeded: …", "agent": …, "duration_ms": 0, "trail": …}

openai-agents-run AGENT            a run of an agent, which a worker executes that serves it; pinned to a version it is
                                   openai-agents-pinned-run VERSION AGENT
    input    {"agent": "Researcher", "input": "What is …?", "max_turns": 10, "context": null}
    output   {"result": "Durable execution is …", "duration_ms": 5310, "note": {"last_agent": …, "usage": …}}

`result` is a value as values.py writes it. In `tool_args` stands the text that the model wrote, where that is no JSON
object that every language reads alike.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer, model_validator

from nexum_runtime.definition import Node, Workflow

NODE = "tool_call"
APPROVAL_NODE = "approval"
ANSWER_NODE = "answer"
LOCAL_NODE = "local_call"
TURN_NODE = "model_turn"
RUN_NODE = "run"


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


Handler: TypeAlias = Callable[[Any], Awaitable[Recorded]]


def tool_call_workflow(handler: Handler | None = None) -> Workflow:
    """The workflow of a tool call. A client needs only its shape; a worker passes the handler that runs the calls."""
    return Workflow("openai-agents-tool-call", (Node(NODE, "EFFECT", Recorded, handler),))


def approved_tool_call_workflow(handler: Handler | None = None) -> Workflow:
    """The same for calls that need a person's yes."""
    approval, call = Node(APPROVAL_NODE, "HUMAN_APPROVAL"), Node(NODE, "EFFECT", Recorded, handler)
    return Workflow("openai-agents-approved-tool-call", (approval, call))


def run_workflow(agent: str, version: str = "", handler: Handler | None = None) -> Workflow:
    """One for each agent, so that its runs go to the workers that serve it, of that version if they are pinned."""
    workflow_id = f"openai-agents-pinned-run {version} {agent}" if version else f"openai-agents-run {agent}"
    return Workflow(workflow_id, (Node(RUN_NODE, "EFFECT", Recorded, handler),))


def _local(workflow_id: str, node_id: str) -> Workflow:
    return Workflow(workflow_id, (Node(node_id, "EFFECT", Recorded),))


TOOL_CALL, APPROVED_TOOL_CALL = tool_call_workflow(), approved_tool_call_workflow()
APPROVAL = Workflow("openai-agents-approval", (Node(APPROVAL_NODE, "HUMAN_APPROVAL"),))
QUESTION = Workflow("openai-agents-question", (Node(ANSWER_NODE, "HUMAN_APPROVAL"),))
LOCAL_CALL = _local("openai-agents-local-call", LOCAL_NODE)
MODEL_TURN = _local("openai-agents-model-turn", TURN_NODE)
RUN_END = _local("openai-agents-run-end", "run_end")
ASKED_ANEW = _local("openai-agents-asked-anew", "asked_anew")
