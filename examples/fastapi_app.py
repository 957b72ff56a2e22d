"""A web server that streams an agent's answer, and whose runs survive the server.

    python examples/fastapi_app.py    # needs: pip install fastapi uvicorn
    curl -N localhost:8000/ask --json '{"session_id": "q1", "question": "Where is my parcel?"}'

You will see the answer arrive word by word, as server-sent events. Kill the server in the middle, start it again, and
send the same request: the whole answer comes, and nothing that was recorded is asked or executed again. A turn that
was cut short is asked again, as no model can go on in the middle of a word.
"""

import json
import os
from collections.abc import AsyncIterator

import stand_in
import uvicorn
from agents import Agent, Runner, function_tool
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel, Field

from nexum_agents import durable_session


class Question(BaseModel):
    session_id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")  # put your user's id in front: answers are private
    question: str


@function_tool
async def track_parcel(question: str) -> str:
    """Where a parcel is."""
    print("  tracking the parcel")
    return "The parcel is on a ship, and comes on Monday."


agent = Agent(name="Desk", instructions="Track parcels.", tools=[track_parcel], model=stand_in.model())
app = FastAPI()


@app.post("/ask")
async def ask(asked: Question) -> StreamingResponse:
    return StreamingResponse(events(asked), media_type="text/event-stream")


async def events(asked: Question) -> AsyncIterator[str]:
    with durable_session(asked.session_id):
        run = Runner.run_streamed(agent, asked.question)
        async for event in run.stream_events():
            if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
                yield f"event: text\ndata: {json.dumps(event.data.delta)}\n\n"
    yield f"event: answer\ndata: {json.dumps(run.final_output)}\n\n"


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
