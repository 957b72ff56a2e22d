"""A tool that a person has to approve, by the SDK's own `needs_approval`.

    python examples/approvals.py    # kill it while it waits, or anywhere else, and run it again
    nexum approve ID                # in a third terminal, as it is printed; or: nexum reject ID --reason "too rude"

You will see the agent look up the customer, and then wait for your yes with the commands that answer. Answer while it
waits or while it is not running: the next run goes on from there, looks up nothing again, and sends one e-mail.
"""

import asyncio

import stand_in
from agents import Agent, function_tool

from nexum_agents import durable_session, print_events, run_with_approvals


@function_tool
async def look_up_customer(name: str) -> str:
    """The e-mail address of a customer."""
    print(f"  looking up {name}")
    return "ann@customers.example"


@function_tool(needs_approval=True)
async def send_email(text: str) -> str:
    """Send an e-mail to the customer."""
    print(f"  sending: {text}")
    return "The e-mail is sent."


agent = Agent(
    name="Support",
    instructions="Look up the customer, and tell them what you are asked to.",
    tools=[look_up_customer, send_email],
    model=stand_in.model(),
)


async def main() -> None:
    # An e-mail cannot be taken back: cut short, it is not sent again, and the model is told that nobody knows.
    async with durable_session("approvals", effects={"send_email": "once"}, on_event=print_events):
        result = await run_with_approvals(agent, "Tell Ann that her parcel is late")
    print(result.final_output)


if __name__ == "__main__":
    asyncio.run(main())
