"""What becomes of what a session has recorded: it is taken back from a turn on, or copied into a new session."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nexum_runtime.errors import InvalidRequest, NotFound
from nexum_runtime.server.model.contract import TAKEN_BACK, Reader, Rebuild, Span, Stop, Transaction, is_taken_back
from nexum_runtime.server.model.shapes import Forget, Fork, Notices
from nexum_runtime.server.model.states import OPEN_STATUSES, ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.rules import parking
from nexum_runtime.server.rules.checks import EXECUTION_ID, EXECUTION_ID_LIMIT
from nexum_runtime.server.rules.sessions import SESSION_ID_LIMIT, check_known, check_whole

T = TypeVar("T")

PIECE = 500  # executions that are taken back or copied in one transaction
FEW = 3  # executions that are named in a sentence
NO_END = 1 << 62  # after all that there is


@dataclass(frozen=True)
class Choice:
    """What is to be taken back of a session, as was found when it was looked for."""

    session_id: str
    order: Forget
    first: int
    end: int
    turns: int  # how many are left
    may_change: list[int]  # orders of what may be something else by now
    again: list[tuple[int, str]]  # what would happen again, of the others


@dataclass(frozen=True)
class Choices:
    """What is to be copied of a session, as was found when it was looked for."""

    session_id: str
    order: Fork
    turn: str  # the first that is not; may be empty
    ended: list[tuple[int, int]]  # as `Reader.ended` has it
    told: dict[str, Any]


class Records:
    """The rules of what is recorded. `clock` tells epoch milliseconds.

    What a small session has is taken back or copied in one transaction, by `forget` and `fork`. With more than PIECE
    executions that would hold up everybody. So it is looked for first, by `choose` or `choose_copies`, and then taken
    back or copied in pieces: see `Rebuild`.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def forget(self, tx: Transaction, session_id: str, order: Forget) -> dict[str, Any]:
        """Take back a turn, and all that was started after it: it is another session from now on, and can be read.

        Returns `{"session_id": what that is called, "executions": how many, "turns": how many are left}`.
        """
        choice = self.choose(tx, session_id, order)
        rebuild = self.begin_forget(tx, choice)
        orders = tx.orders(Span(session_id, rebuild.first, rebuild.end))
        for piece in reversed(list(pieces(orders))):
            self.take_back(tx, rebuild, piece)
        self.end_forget(tx, rebuild)
        return {"session_id": rebuild.other, "executions": len(orders), "turns": choice.turns}

    def choose(self, reader: Reader, session_id: str, order: Forget) -> Choice:
        """What is to be taken back. Raises InvalidRequest, NotFound."""
        check_known(reader, session_id)
        _check_that_it_is_no_record(session_id)
        turns = reader.turns(session_id)
        if order.turn:
            first, _ = _found(reader, session_id, order.turn, turns)
        elif order.after < len(turns):
            first = turns[order.after][0]
        else:
            raise InvalidRequest(
                f"Session {session_id} has {_counted(len(turns), 'turn')}; there is none to take back."
            )
        span = Span(session_id, first, NO_END)
        orders = reader.orders(span)
        stays_so = [] if order.even_once else [each for each, mark in reader.ended(span) if not mark]
        again = _would_happen_again(reader, stays_so)
        may_change = sorted(set(orders).difference(stays_so))
        left = sum(order_of < first for order_of, _ in turns)
        return Choice(session_id, order, first, max(orders, default=first) + 1, left, may_change, again)

    def begin_forget(self, tx: Transaction, choice: Choice) -> Rebuild:
        """From now on nothing of the session begins. Raises InvalidRequest for what must not be taken back."""
        session_id, order = choice.session_id, choice.order
        check_known(tx, session_id)
        check_whole(tx, session_id)
        if not tx.named([choice.first]).get(choice.first, "").startswith(f"{session_id}/"):
            raise InvalidRequest(
                f"Session {session_id} was changed at this very moment. See what it has, and say it again."
            )
        self._end_what_waits(tx, Span(session_id, choice.first, NO_END))
        new = tx.orders(Span(session_id, choice.end, NO_END))
        if not order.even_once:
            _check_that_nothing_happens_again(choice.again + _would_happen_again(tx, [*choice.may_change, *new]))
        number = 1 + max((int(each.rpartition(TAKEN_BACK)[2]) for each in tx.taken_back(session_id)), default=0)
        end = max(new, default=choice.end - 1) + 1
        name = f"{session_id}{TAKEN_BACK}{number}"
        rebuild = Rebuild(session_id, name, self._clock(), order.by, choice.first, end)
        tx.set_rebuild(rebuild, rebuild.at_ms)
        return rebuild

    def take_back(self, tx: Transaction, rebuild: Rebuild, orders: Collection[int]) -> None:
        """Some of it. What is left of the session is no gap if these are the latest."""
        if self._goes_on(tx, rebuild):
            stop = Stop(rebuild.at_ms, rebuild.by, "It is not all here yet.")
            tx.take_back(rebuild.session_id, orders, rebuild.other, stop)

    def end_forget(self, tx: Transaction, rebuild: Rebuild) -> None:
        if self._goes_on(tx, rebuild):
            tx.set_stop(rebuild.other, Stop(rebuild.at_ms, rebuild.by, ""))
            tx.end_rebuild(rebuild.session_id)
            tx.delete_empty(rebuild.session_id)

    def _goes_on(self, tx: Transaction, rebuild: Rebuild) -> bool:
        """Whether it has not ended: another server may have taken this one for dead."""
        if tx.hindrances(rebuild.session_id)[1] != rebuild:
            return False
        tx.set_rebuild(rebuild, self._clock())
        return True

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
        choices = self.choose_copies(tx, session_id, order)
        rebuild = self.begin_fork(tx, choices)
        for piece in pieces(choices.ended):
            self.copy(tx, rebuild, choices, piece)
        self.end_fork(tx, rebuild)
        return choices.told

    def choose_copies(self, reader: Reader, session_id: str, order: Fork) -> Choices:
        """What is to be copied. Raises InvalidRequest, NotFound."""
        new = order.session_id
        self._check_new(reader, new)
        check_known(reader, session_id)
        _check_that_it_is_no_record(session_id)
        turns = reader.turns(session_id)
        end, turn = _found(reader, session_id, order.before, turns) if order.before else (NO_END, "")
        span = Span(session_id, 0, end)
        if reader.longest_id(span) - len(session_id) + len(new) > EXECUTION_ID_LIMIT:
            raise InvalidRequest(f"The id {new} is too long for what session {session_id} has; choose a shorter one.")
        ended = reader.ended(span)
        if not ended:
            raise InvalidRequest(f"Nothing of session {session_id} has ended{' before that' if turn else ''} yet.")
        left_out = [execution.execution_id for execution in reader.under_way(span)]
        copied = {each for each, _ in ended}
        told = {
            "executions": len(ended),
            "left_out": left_out,
            "turns": sum(each in copied for each, _ in turns),
        }
        return Choices(session_id, order, turn.partition("/")[2], ended, told)

    def begin_fork(self, tx: Transaction, choices: Choices) -> Rebuild:
        """The id of the new session is taken, and nothing of it begins. Raises InvalidRequest."""
        self._check_new(tx, choices.order.session_id)
        check_whole(tx, choices.session_id)
        rebuild = Rebuild(choices.order.session_id, choices.session_id, self._clock(), choices.order.by)
        tx.set_rebuild(rebuild, rebuild.at_ms)
        return rebuild

    def copy(self, tx: Transaction, rebuild: Rebuild, choices: Choices, piece: Sequence[tuple[int, int]]) -> None:
        """Copy some of them, the first first. Raises InvalidRequest when one has changed since."""
        orders = [order for order, _ in piece]
        self._check_that_it_goes_on(tx, rebuild)
        if tx.ended(Span(choices.session_id, 0, NO_END), orders) != list(piece):
            raise InvalidRequest(
                f"Session {choices.session_id} was changed while it was forked: something in it was tried again, "
                f"taken back or pruned. There is no session {rebuild.session_id}; fork it again."
            )
        data = {"session_id": choices.session_id, "before": choices.turn, "by": rebuild.by}
        tx.copy(choices.session_id, orders, rebuild.session_id, rebuild.at_ms, data)

    def end_fork(self, tx: Transaction, rebuild: Rebuild) -> None:
        self._check_that_it_goes_on(tx, rebuild)
        tx.end_rebuild(rebuild.session_id)
        tx.add_session(rebuild.session_id, rebuild.at_ms)

    def _check_that_it_goes_on(self, tx: Transaction, rebuild: Rebuild) -> None:
        if not self._goes_on(tx, rebuild):
            raise InvalidRequest(
                f"This server was away while it forked session {rebuild.other}, and another one has undone that. "
                "Fork it again."
            )

    def undo_fork(self, tx: Transaction, rebuild: Rebuild, limit: int) -> bool:
        """Delete so many of the copies. Returns whether there may be more."""
        if not self._goes_on(tx, rebuild):
            return False
        copies = tx.executions("", "", f"{rebuild.session_id}/", limit)
        for copy in copies:
            tx.delete_execution(copy.execution_id)
        if not copies:
            tx.end_rebuild(rebuild.session_id)
        return bool(copies)

    def _check_new(self, reader: Reader, new: str) -> None:
        if is_taken_back(new) or "/" in new or not EXECUTION_ID.fullmatch(new) or len(new) > SESSION_ID_LIMIT:
            raise InvalidRequest(f"{new[:80]!r} cannot be a session: give letters, digits and any of . _ - : @ =")
        check_whole(reader, new)
        if reader.knows_session(new):
            raise InvalidRequest(f"Session {new} is there already. Choose another id for the fork.")


def is_large(reader: Reader, session_id: str) -> bool:
    return reader.is_larger(session_id, PIECE)


def pieces(whole: Sequence[T]) -> Iterator[Sequence[T]]:
    return (whole[at : at + PIECE] for at in range(0, len(whole), PIECE))


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


def _would_happen_again(reader: Reader, orders: Sequence[int]) -> list[tuple[int, str]]:
    return [each for piece in pieces(orders) for each in reader.would_happen_again(piece)]


def _check_that_nothing_happens_again(found: list[tuple[int, str]]) -> None:
    ids = [execution_id for _, execution_id in sorted(found)]
    if len(ids) == 1:
        raise InvalidRequest(
            f"{ids[0]} happens once, or had a yes, and may have been made. The next run would make it again. "
            "If it may, say --even-once."
        )
    if ids:
        raise InvalidRequest(
            f"{len(ids)} calls happen once, or had a yes, and may have been made. The next run would make them again. "
            f"If it may, say --even-once. They are {_few(ids)}."
        )


def _few(ids: list[str]) -> str:
    """Some of them, and how many more there are."""
    ids = list(dict.fromkeys(ids))
    more = len(ids) - len(ids[:FEW])
    return ", ".join(ids[:FEW]) + (f" and {more} more" if more else "")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
