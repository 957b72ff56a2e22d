"""A chat whose answers survive the tab, this web server and the worker.

    python examples/web_chat/chat_worker.py    # one terminal
    python examples/web_chat/chat_server.py    # another one; needs: pip install fastapi uvicorn

Open http://localhost:8000 and ask something. Close the tab in the middle of the answer and open it again, or kill
either process and start it again: the answer goes on. This server keeps nothing, it only passes on. Put your own login
before it, and the user's id into the session ids: whoever knows one can read its answers.
"""

import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse

from nexum_agents.http import runs_app

FOLDER = Path(__file__).parent
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'"

app = FastAPI()
app.mount("/runs", runs_app(["Desk"]))


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(FOLDER / "page.html", headers={"Content-Security-Policy": POLICY})


@app.get("/chat.js")
async def script() -> FileResponse:
    return FileResponse(FOLDER / "chat.js")


@app.get("/chat.css")
async def style() -> FileResponse:
    return FileResponse(FOLDER / "chat.css")


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=1)  # tabs stay connected
