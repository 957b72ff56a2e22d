"""A chat with the SDK's conversation memory, in one durable session for each question.

    python examples/chat.py       # kill it anywhere, run it again; Ctrl-D ends it
    python examples/chat.py ann   # another chat

You will see the chat up to where it broke, from the store, without a question to the model. An answer that was
cut short is finished first, and then you are asked on. The conversation is in chat.db, as the SDK keeps it.
"""

import asyncio
import itertools
import sys

import stand_in
from agents import Agent, Runner, SQLiteSession, function_tool

from nexum_agents import durable_session, durable_step


@function_tool
def look_up(words: str) -> str:
    """Look something up in the handbook."""
    return f"The handbook has nothing on {words!r}."


agent = Agent(name="Desk", instructions="Answer from the handbook.", tools=[look_up], model=stand_in.model())


def ask_the_person() -> str:
    return input("You: ")


async def chat(chat_id: str) -> None:
    memory = SQLiteSession(chat_id, "chat.db")
    for number in itertools.count(1):
        # The chat and the number of the question: the same question, asked later on, is another one.
        async with durable_session(f"{chat_id}-{number}") as session:
            question = await durable_step("question", ask_the_person)
            if session.saved.calls:
                print(f"You: {question}")
            result = await Runner.run(agent, question, session=memory)
            print(f"Desk: {result.final_output}\n")


if __name__ == "__main__":
    try:
        asyncio.run(chat(sys.argv[1] if len(sys.argv) > 1 else "chat"))
    except (EOFError, KeyboardInterrupt):
        print("\nRun it again to go on.")
