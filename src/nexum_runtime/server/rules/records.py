"""What becomes of what a session has recorded: it is taken back from a turn on, or copied into a new session."""

import re
from collections.abc import Callable
from typing import Any

from nexum_runtime.errors import InvalidRequest, NotFound
from nexum_runtime.server.model.contract import TAKEN_BACK, Reader, Span, Stop, Transaction, is_taken_back
from nexum_runtime.server.model.shapes import Forget, Fork, Notices
from nexum_runtime.server.model.states import OPEN_STATUSES, ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.rules import parking
from nexum_runtime.server.rules.checks import EXECUTION_ID, EXECUTION_ID_LIMIT
from nexum_runtime.server.rules.sessions import SESSION_ID_LIMIT, check_known

FEW = 3  # executions that are named in a sentence
NO_END = 1 << 62  # after all that there is


class Records:
    """The rules of what is recorded. `clock` tells epoch milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def forget(self, tx: Transaction, session_id: str, order: Forget) -> dict[str, Any]:
        """Take back a turn, and all that was started after it: it is another session from now on, and can be read.

        Returns `{"session_id": what that is called, "executions": how many, "turns": how many are left}`.
        """
        check_known(tx, session_id)
        _check_that_it_is_no_record(session_id)
        turns = tx.turns(session_id)
        if order.turn:
            first, _ = _found(tx, session_id, order.turn, turns)
        elif order.after < len(turns):
            first = turns[order.after][0]
        else:
            raise InvalidRequest(
                f"Session {session_id} has {_counted(len(turns), 'turn')}; there is none to take back."
            )
        span = Span(session_id, first, NO_END)
        self._end_what_waits(tx, span)
        if not order.even_once:
            _check_that_nothing_happens_again(tx, span)
        number = 1 + max((int(each.rpartition(TAKEN_BACK)[2]) for each in tx.taken_back(session_id)), default=0)
        name = f"{session_id}{TAKEN_BACK}{number}"
        count = tx.take_back(span, name, Stop(self._clock(), order.by, ""))
        left = sum(order_of < first for order_of, _ in turns)
        return {"session_id": name, "executions": count, "turns": left}

    def _end_what_waits(self, tx: Transaction, span: Span) -> None:
        """Cancel what has not ended, which a stopped session alone may have. Raises InvalidRequest if it may go on."""
        under_way = tx.under_way(span)
        waiting = {execution.execution_id for execution in under_way}
        for execution in under_way:
            if execution.parent_node is not None and execution.parent_id not in waiting:
                raise InvalidRequest(
                    f"{execution.parent_id}, which is not taken back, waits for {execution.execution_id}. "
                    f"Cancel it first: nexum cancel {execution.parent_id}"
                )
        tasks = [task for execution in under_way for task in tx.tasks(execution.execution_id)]
        running = [task.execution_id for task in tasks if task.status == TaskStatus.RUNNING]
        stop = f"Stop the session first: nexum stop {span.session_id}"
        if running:
            stopped = "It happens once, and is let finish: wait for its end."
            advice = stop if tx.stop_of(span.session_id) is None else stopped
            raise InvalidRequest(f"{_few(running)} still {'runs' if len(running) == 1 else 'run'}. {advice}")
        if under_way and tx.stop_of(span.session_id) is None:
            ids = [execution.execution_id for execution in under_way]
            raise InvalidRequest(f"{_few(ids)} {'has' if len(ids) == 1 else 'have'} not ended. {stop}")
        for task in tasks:
            if task.status in OPEN_STATUSES:
                tx.move_task(task.task_key, TaskStatus.CANCELLED)
        error, now_ms = "It was taken back before it had ended.", self._clock()
        for execution in under_way:
            moved = tx.move_execution(
                execution.execution_id,
                ExecutionStatus.CANCELLED,
                error=error,
                error_code=ErrorCode.CANCELLED,
                ended_at_ms=now_ms,
            )
            if moved is not None:
                parking.wake_all(tx, Notices(), moved, now_ms)  # of a session that is stopped: to go on is to be told
                data = {"error": error, "error_code": ErrorCode.CANCELLED}
                tx.add_event(execution.execution_id, now_ms, Event.EXECUTION_CANCELLED, data=data)

    def fork(self, tx: Transaction, session_id: str, order: Fork) -> dict[str, Any]:
        """A new session of all that has ended of another one, or of what was started there before a turn.

        Returns `{"executions": how many, "left_out": [execution id], of those that have not ended, "turns": how many
        it has}`.
        """
        new = order.session_id
        if is_taken_back(new) or "/" in new or not EXECUTION_ID.fullmatch(new) or len(new) > SESSION_ID_LIMIT:
            raise InvalidRequest(f"{new[:80]!r} cannot be a session: give letters, digits and any of . _ - : @ =")
        check_known(tx, session_id)
        _check_that_it_is_no_record(session_id)
        if tx.knows_session(new):
            raise InvalidRequest(f"Session {new} is there already. Choose another id for the fork.")
        end, turn = _found(tx, session_id, order.before, tx.turns(session_id)) if order.before else (NO_END, "")
        span = Span(session_id, 0, end)
        if tx.longest_id(span) - len(session_id) + len(new) > EXECUTION_ID_LIMIT:
            raise InvalidRequest(f"The id {new} is too long for what session {session_id} has; choose a shorter one.")
        data = {"session_id": session_id, "before": turn.partition("/")[2], "by": order.by}
        left_out = [execution.execution_id for execution in tx.under_way(span)]
        count, turns = tx.fork(span, new, self._clock(), data)
        if not count:
            raise InvalidRequest(f"Nothing of session {session_id} has ended{' before that' if turn else ''} yet.")
        return {"executions": count, "left_out": left_out, "turns": turns}


def _found(tx: Reader, session_id: str, turn: str, turns: list[tuple[int, str]]) -> tuple[int, str]:
    """The order and the id of what `turn` names: the number of a turn, or an execution's id, with or without session.

    Raises NotFound.
    """
    if re.fullmatch("[0-9]{1,9}", turn):
        if not 1 <= int(turn) <= len(turns):
            raise NotFound(f"Session {session_id} has no turn {turn}; it has {_counted(len(turns), 'turn')}.")
        return turns[int(turn) - 1]
    execution_id = turn if turn.startswith(f"{session_id}/") else f"{session_id}/{turn}"
    order = tx.order_of(execution_id)
    if order is None:
        raise NotFound(f"Session {session_id} has no {turn[:200]!r}. See what it has with: nexum show {session_id}")
    return order, execution_id


def _check_that_it_is_no_record(session_id: str) -> None:
    if is_taken_back(session_id):
        of = session_id.partition(TAKEN_BACK)[0]
        raise InvalidRequest(f"{session_id} is what was taken back of session {of}, and can only be read.")


def _check_that_nothing_happens_again(tx: Reader, span: Span) -> None:
    count, ids = tx.would_happen_again(span, FEW)
    if count == 1:
        raise InvalidRequest(
            f"{ids[0]} happens once, or had a yes, and may have been made. The next run would make it again. "
            "If it may, say --even-once."
        )
    if count:
        raise InvalidRequest(
            f"{count} calls happen once, or had a yes, and may have been made. The next run would make them again. "
            f"If it may, say --even-once. They are {_few(ids, count)}."
        )


def _few(ids: list[str], count: int = 0) -> str:
    """Some of them, and how many more there are."""
    ids = list(dict.fromkeys(ids))
    more = (count or len(ids)) - len(ids[:FEW])
    return ", ".join(ids[:FEW]) + (f" and {more} more" if more else "")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
