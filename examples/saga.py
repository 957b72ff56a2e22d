"""A saga: a trip is booked step by step, and what is booked is cancelled again when a later step fails.

    python examples/saga.py Rome      # kill it anywhere, run it again
    python examples/saga.py Atlantis  # where there is no car: the hotel and the flight are cancelled

You will see each booking in bookings.txt, the ledger of a fake booking service. Killed between a booking and its note,
the next run does not guess: it says what to type once you have looked into bookings.txt. Then it goes on, or cancels.
"""

import asyncio
import sys
from pathlib import Path

import stand_in
from agents import Agent, Runner, UserError, function_tool

from nexum_agents import (
    DurableEvent,
    OutcomeUnknown,
    ToolError,
    ToolFailed,
    durable_session,
    durable_step,
    print_events,
)

BOOKINGS = Path("bookings.txt")


def book(part: str, city: str) -> str:
    if (part, city) == ("car", "Atlantis"):
        raise ToolError(f"there is no {part} in {city}")
    with BOOKINGS.open("a") as ledger:
        ledger.write(f"booked: {part} in {city}\n")
    return f"{part} in {city}"


def cancel(booking: str) -> None:
    """Cancelling twice is like cancelling once, so this step may be tried until it is done."""
    if (line := f"cancelled: {booking}\n") not in BOOKINGS.read_text():
        with BOOKINGS.open("a") as ledger:
            ledger.write(line)


@function_tool(failure_error_function=None)  # what it raises ends the run, and is not told to the model
async def book_trip(city: str) -> str:
    booked: list[str] = []
    try:
        for part in ("flight", "hotel", "car"):
            booking = await durable_step(f"book {part}", book, part, city, effect="once")
            booked.append(booking)
    except OutcomeUnknown:  # it may be booked or not: neither go on nor cancel before a person has looked
        raise
    except (ToolError, ToolFailed) as error:  # the service said no: now, or before a crash
        for booking in reversed(booked):
            await durable_step("cancel", cancel, booking)
        return f"Nothing is booked, as {error}."
    return f"Booked: {', '.join(booked)}."


def tell(event: DurableEvent) -> None:
    print_events(event)
    if event.kind == "unknown":
        booking = " in ".join(event.tool_args.values())
        print(f"If {BOOKINGS} has it:     nexum resolve '{event.execution_id}' --result '{booking}'")
        print(f"If {BOOKINGS} has it not: nexum resolve '{event.execution_id}' --retry")


async def main(city: str) -> None:
    agent = Agent(name="Clerk", instructions="Book the trip.", tools=[book_trip], model=stand_in.model())
    async with durable_session(f"trip-{city}", on_event=tell):
        print((await Runner.run(agent, city)).final_output)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "Rome"))
    except UserError as error:  # what a tool raises, as the SDK has it
        sys.exit(f"{error}\nRun it again when you have said what became of it.")
