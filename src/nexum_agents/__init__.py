"""Durable sessions for the OpenAI Agents SDK: a run that crashes goes on where it broke.

from nexum_agents import durable_session

with durable_session("my-session"):
    result = await Runner.run(agent, "What is durable execution?")
"""

from nexum_agents import instrumentation
from nexum_agents.approvals import run_with_approvals
from nexum_agents.errors import (
    DurableCallError,
    LimitReached,
    NoAnswer,
    NotRecorded,
    OutcomeUnknown,
    RunFailed,
    SessionStopped,
    ToolError,
    ToolFailed,
    ToolRejected,
)
from nexum_agents.events import CallEvent, DurableEvent, TurnEvent
from nexum_agents.following import FollowEvent, follow
from nexum_agents.forks import fork_session
from nexum_agents.handling import final_output, go_session, stop_session
from nexum_agents.printing import print_events
from nexum_agents.questions import ask_person
from nexum_agents.sessions import DurableSession, durable_session
from nexum_agents.sleeping import durable_sleep
from nexum_agents.starting import RunOutcome, StartedRun, start_run
from nexum_agents.steps import durable_step
from nexum_agents.tools import durable_tool, submit_tool_call
from nexum_agents.worker import Worker, serve
from nexum_runtime import idempotency_key

__all__ = [
    "CallEvent",
    "DurableCallError",
    "DurableEvent",
    "DurableSession",
    "FollowEvent",
    "LimitReached",
    "NoAnswer",
    "NotRecorded",
    "OutcomeUnknown",
    "RunFailed",
    "RunOutcome",
    "SessionStopped",
    "StartedRun",
    "ToolError",
    "ToolFailed",
    "ToolRejected",
    "TurnEvent",
    "Worker",
    "ask_person",
    "durable_session",
    "durable_sleep",
    "durable_step",
    "durable_tool",
    "final_output",
    "follow",
    "fork_session",
    "go_session",
    "idempotency_key",
    "print_events",
    "run_with_approvals",
    "serve",
    "start_run",
    "stop_session",
    "submit_tool_call",
]

instrumentation.install()
