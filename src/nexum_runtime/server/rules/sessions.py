"""What is asked of whole sessions: to stop, and to go on."""

from collections.abc import Callable

from nexum_runtime.errors import InvalidRequest, NotFound, SessionStopped
from nexum_runtime.server.model.contract import (
    TAKEN_BACK,
    Reader,
    Rebuild,
    Stop,
    Transaction,
    is_taken_back,
    session_of,
)
from nexum_runtime.server.model.shapes import Notices
from nexum_runtime.server.model.states import Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.rules.course import RUNNING_LIMIT, is_once

SESSION_ID_LIMIT = 200  # characters


class Sessions:
    """The rules of sessions. `clock` tells epoch milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def stop(self, tx: Transaction, notices: Notices, session_id: str, by: str, reason: str) -> dict[str, list[str]]:
        """From now on nothing of it begins, and what runs is to stop, but for effects that happen once.

        Returns `{"stopped": [execution id], "let_finish": [execution id]}`. A session that is stopped already stays so
        by the first word.
        """
        check_known(tx, session_id)
        if tx.stop_of(session_id) is None:
            tx.set_stop(session_id, Stop(self._clock(), by, reason))
        why = words(tx, session_id)
        stopped, let_finish = [], []
        for execution in tx.executions("", ExecutionStatus.RUNNING, f"{session_id}/", RUNNING_LIMIT):
            notices.stopped[execution.execution_id] = why
            for task in tx.tasks(execution.execution_id):
                if task.status != TaskStatus.RUNNING:
                    continue
                if is_once(task, execution):  # to cut it short is not to know what it has done
                    let_finish.append(execution.execution_id)
                    continue
                data = {"worker": task.worker_id, "error": why}
                tx.add_event(task.execution_id, self._clock(), Event.ATTEMPT_STOPPED, task.node_id, task.attempt, data)
                tx.move_task(task.task_key, TaskStatus.READY, attempt_limit=task.attempt_limit + 1)
                notices.stop.append(task)
                notices.cut.add(task.task_id)
                stopped.append(execution.execution_id)
        return {"stopped": stopped, "let_finish": let_finish}

    def go(self, tx: Transaction, notices: Notices, session_id: str) -> bool:
        """Let it go on. Returns whether it was stopped."""
        check_known(tx, session_id)
        if tx.stop_of(session_id) is None:
            return False
        if is_taken_back(session_id):
            raise InvalidRequest(words(tx, session_id))
        tx.set_stop(session_id, None)
        for execution in tx.executions("", ExecutionStatus.RUNNING, f"{session_id}/", RUNNING_LIMIT):
            notices.ready.add((execution.workflow_id, execution.version_hash, execution.execution_id))
        return True


def check_known(reader: Reader, session_id: str) -> None:
    """Raise NotFound for a session that is not known, InvalidRequest for what is none."""
    if not 1 <= len(session_id) <= SESSION_ID_LIMIT or "/" in session_id:
        raise InvalidRequest(f"{session_id[:80]!r} is no session: give what stands before the first / of its ids.")
    if not reader.knows_session(session_id):
        raise NotFound(f"No session {session_id!r} is known. See what is there with: nexum sessions")


def check_that_it_goes_on(reader: Reader, execution_id: str) -> None:
    """Raise SessionStopped if nothing of the session of this execution begins."""
    if not (session_id := session_of(execution_id)):
        return
    stop, rebuild = reader.hindrances(session_id)
    if rebuild:
        raise SessionStopped(words_of_rebuild(rebuild))
    if stop:
        raise SessionStopped(words_of(session_id, stop))


def check_whole(reader: Reader, session_id: str) -> None:
    """Raise InvalidRequest while something of the session is taken back, and for a fork that is not whole yet."""
    if rebuild := reader.hindrances(session_id.partition(TAKEN_BACK)[0])[1]:
        raise InvalidRequest(words_of_rebuild(rebuild))


def words(reader: Reader, session_id: str) -> str:
    """That the session is stopped, by whom and why; "" when it is not."""
    stop = reader.stop_of(session_id)
    return words_of(session_id, stop) if stop else ""


def words_of(session_id: str, stop: Stop) -> str:
    by, reason = f" by {stop.by}" if stop.by else "", f": {stop.reason}" if stop.reason else ""
    if is_taken_back(session_id):
        of = session_id.partition(TAKEN_BACK)[0]
        not_yet = f" {stop.reason}" if stop.reason else ""
        return f"{session_id} was taken back of session {of}{by}. None of it goes on.{not_yet}"
    return f"Session {session_id} was stopped{by}{reason}. Let it go on with: nexum go {session_id}"


def words_of_rebuild(rebuild: Rebuild) -> str:
    by = f" by {rebuild.by}" if rebuild.by else ""
    if rebuild.is_fork:
        what = f"is being forked from session {rebuild.other}{by}"
    else:
        what = f"is being changed: some of it becomes {rebuild.other}, taken back{by}"
    return f"Session {rebuild.session_id} {what}. Try again when that is done."
