"""The states of executions and tasks, and every legal move between them.

execution  RUNNING ─→ COMPLETED | FAILED | CANCELLED
           FAILED, CANCELLED ─→ RUNNING     a restart that was asked for, or a late word on an unknown outcome

task       READY ─→ RUNNING                 claimed by a worker: one attempt
           RUNNING ─→ DONE                  its result is recorded, once and for all
           RUNNING ─→ READY                 the attempt failed or its lease expired, and attempts are left; or its
                                            session was stopped
           RUNNING, READY ─→ FAILED         ... and none are left
           RUNNING, READY ─→ CANCELLED
           READY, FAILED ─→ DONE            the late word of an attempt that had been given up
           FAILED, CANCELLED ─→ READY       the execution runs again

           WAITING ─→ DONE                  without a worker: a person said yes, a timer's time has come, or the time
                                            to answer a question that has a default answer is over
           WAITING ─→ FAILED                a person said no, or nobody answered in time
           WAITING ─→ CANCELLED
           FAILED, CANCELLED ─→ WAITING     the execution runs again

           RUNNING, READY ─→ WAITING        a MAP has told its items, or a SUBWORKFLOW has started its child
           WAITING ─→ DONE, FAILED          they have ended

           RUNNING ─→ WAITING               an EFFECT is parked: its attempt was given back until an execution ends, or
                                            until a time; it holds no worker, has no lease, and counts as no attempt
           WAITING ─→ READY                 that has ended, or the time has come
           WAITING ─→ DONE                  the late word of an attempt that had been given up before
"""

from enum import StrEnum


class ExecutionStatus(StrEnum):
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class State(StrEnum):
    """How an execution, or a session, is said to be wherever people read it: never the same thing by two words."""

    STOPPED = "STOPPED"  # it would run, but its session is stopped
    UNKNOWN = "UNKNOWN"  # it may or may not have happened; a person has to say
    WAITING = "WAITING"  # for a person's answer
    PARKED = "PARKED"  # given back until another execution ends, or a time has come: nobody has to do anything with it
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


STORED = {  # how the executions of a state are stored
    State.STOPPED: ExecutionStatus.RUNNING,
    State.UNKNOWN: ExecutionStatus.FAILED,
    State.WAITING: ExecutionStatus.RUNNING,
    State.PARKED: ExecutionStatus.RUNNING,
}


class TaskStatus(StrEnum):
    READY = "READY"
    WAITING = "WAITING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


OPEN_STATUSES = (TaskStatus.READY, TaskStatus.WAITING, TaskStatus.RUNNING)


class ErrorCode(StrEnum):
    TOOL_ERROR = "TOOL_ERROR"  # the task itself said that it failed, or no person answered in time
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"  # its worker went silent: the effect may or may not have happened
    REJECTED = "REJECTED"  # a person said no
    CANCELLED = "CANCELLED"


class Event(StrEnum):
    EXECUTION_STARTED = "ExecutionStarted"
    EXECUTION_RESTARTED = "ExecutionRestarted"
    ATTEMPT_STARTED = "AttemptStarted"
    ATTEMPT_FAILED = "AttemptFailed"
    ATTEMPT_RETURNED = "AttemptReturned"  # claimed, but the worker was gone before it could be told
    ATTEMPT_STOPPED = "AttemptStopped"  # its session was stopped: it begins again when that goes on
    ATTEMPT_PARKED = "AttemptParked"  # given back until an execution ends, or until a time
    TASK_WOKEN = "TaskWoken"  # … which has come
    LEASE_EXPIRED = "LeaseExpired"
    OUTCOME_RESOLVED = "OutcomeResolved"  # a person's word on what became of it, or that it is to be tried again
    APPROVAL_REQUESTED = "ApprovalRequested"
    TASK_APPROVED = "TaskApproved"
    TASK_REJECTED = "TaskRejected"
    TASK_ANSWERED = "TaskAnswered"  # a question
    DEADLINE_PASSED = "DeadlinePassed"  # nobody had said yes or no, or answered
    TIMER_SET = "TimerSet"
    TIMER_FIRED = "TimerFired"
    MAP_STARTED = "MapStarted"  # its items are known
    CHILD_STARTED = "ChildStarted"  # an execution that a node waits for
    TASK_COMPLETED = "TaskCompleted"
    EXECUTION_COMPLETED = "ExecutionCompleted"
    EXECUTION_FAILED = "ExecutionFailed"
    EXECUTION_CANCELLED = "ExecutionCancelled"
    EXECUTION_FORKED = "ExecutionForked"  # copied from another session, with all that happened before
    EXECUTION_TAKEN_BACK = "ExecutionTakenBack"  # out of its session: the next run of that does it anew
    CANCEL_REQUESTED = "CancelRequested"  # but an effect that happens once was under way, and is let finish


EXECUTION_SOURCES: dict[ExecutionStatus, frozenset[ExecutionStatus]] = {
    ExecutionStatus.RUNNING: frozenset({ExecutionStatus.FAILED, ExecutionStatus.CANCELLED}),
    ExecutionStatus.COMPLETED: frozenset({ExecutionStatus.RUNNING}),
    ExecutionStatus.FAILED: frozenset({ExecutionStatus.RUNNING}),
    ExecutionStatus.CANCELLED: frozenset({ExecutionStatus.RUNNING}),
}
"""For each status, those it may be reached from. The store refuses every other move."""

TASK_SOURCES: dict[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.READY: frozenset({TaskStatus.RUNNING, TaskStatus.WAITING, TaskStatus.FAILED, TaskStatus.CANCELLED}),
    TaskStatus.WAITING: frozenset({TaskStatus.READY, TaskStatus.RUNNING, TaskStatus.FAILED, TaskStatus.CANCELLED}),
    TaskStatus.RUNNING: frozenset({TaskStatus.READY}),
    TaskStatus.DONE: frozenset({TaskStatus.RUNNING, TaskStatus.READY, TaskStatus.WAITING, TaskStatus.FAILED}),
    TaskStatus.FAILED: frozenset({TaskStatus.RUNNING, TaskStatus.READY, TaskStatus.WAITING}),
    TaskStatus.CANCELLED: frozenset({TaskStatus.RUNNING, TaskStatus.READY, TaskStatus.WAITING}),
}
