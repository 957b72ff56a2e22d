"""examples/web_chat in a real browser: its tab, its web server and its worker go away in the middle of an answer."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.async_api", reason="pip install playwright axe-core-python")

import stand_in
from agents import Agent
from processes import NexumDev, Process, environment
from test_browser import HOSTILE, PATIENCE_MS, browser, nexum, violations

from nexum_agents import Worker

__all__ = ["browser", "nexum"]

WEB_CHAT = Path(__file__).parents[2] / "examples" / "web_chat"
PARCEL = "The parcel is on a ship, and comes on Monday."
WATCH = """seen = []; const look = () => seen.push([...document.querySelectorAll(".answer")].at(-1).textContent);
           const all = { childList: true, characterData: true, subtree: true };
           new MutationObserver(look).observe(document.getElementById("chat"), all)"""


class Chat:
    def __init__(self, folder: Path, nexum: NexumDev, port: int) -> None:
        self._folder = folder
        self._env = environment(NEXUM_ADDRESS=nexum.address, PORT=str(port), STAND_IN_SECONDS="3")
        self.url = f"http://localhost:{port}/"
        self._processes = 0

    async def start(self, script: str, says: str) -> Process:
        self._processes += 1
        log = self._folder / f"{self._processes}.log"
        process = Process([sys.executable, WEB_CHAT / script], log, env=self._env)
        process.start()
        await process.says(says)
        return process

    async def server(self) -> Process:
        return await self.start("chat_server.py", "Uvicorn running")

    async def worker(self) -> Process:
        return await self.start("chat_worker.py", "Connected to Nexum")


@pytest.fixture
async def chat(tmp_path: Path, nexum: NexumDev, free_port: Callable[[], int]) -> Chat:
    return Chat(tmp_path, nexum, free_port())


async def ask(page: Any, question: str) -> None:
    await page.get_by_label("Your question").fill(question)
    await page.get_by_role("button", name="Ask").click()


async def shows(page: Any, text: str) -> None:
    """In the last answer."""
    await page.locator(".answer").last.get_by_text(text).wait_for(timeout=PATIENCE_MS * 3)


async def test_an_answer_goes_on_whatever_goes_away_in_the_middle_of_it(browser: Any, chat: Chat) -> None:
    server, worker = await chat.server(), await chat.worker()
    context = await browser.new_context()

    async def opened() -> Any:
        page = await context.new_page()
        await page.goto(chat.url)
        await page.evaluate(f"() => {{ {WATCH} }}")
        return page

    page = await opened()
    await ask(page, "Where is my parcel?")
    await shows(page, "The parcel is")
    await page.close()
    page = await opened()
    await shows(page, PARCEL)

    await ask(page, "And now?")
    await shows(page, "The parcel is")
    server.kill()
    await page.get_by_text("The server is away").wait_for(timeout=PATIENCE_MS)
    server = await chat.server()
    await shows(page, f"{PARCEL} (You have asked 2 questions.)")

    await ask(page, "And now?")
    await shows(page, "The parcel is")
    worker.kill()
    await chat.worker()
    await shows(page, f"{PARCEL} (You have asked 3 questions.)")

    texts = await page.evaluate("seen")
    whole = [f"{PARCEL}\n(You have asked {n} questions.)" for n in (2, 3)]
    wrong = [text for text in texts if not any(each.startswith(text) for each in whole)]
    assert (wrong, "The parcel " in texts) == ([], True), "no word is lost or doubled, at any time"
    await page.reload()
    assert await page.locator(".answer").all_inner_texts() == [PARCEL, *whole]
    assert await violations(page) == []


async def test_nothing_that_a_model_says_runs(
    browser: Any, chat: Chat, nexum: NexumDev, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", nexum.address)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    await chat.server()
    worker = Worker(agents=[Agent(name="Desk", model=stand_in.model())])  # it says what it is asked
    working = asyncio.create_task(worker.run())
    page = await browser.new_page()
    await page.goto(chat.url)
    said = HOSTILE.replace("\x00", "")
    await page.evaluate("text => { document.getElementById('question').value = text }", said)
    await page.get_by_role("button", name="Ask").click()
    await page.locator(".answer", has_text="<script>window.ran = 1</script>").wait_for(timeout=PATIENCE_MS)
    assert await page.locator("#chat *:not(p)").count() == 0
    assert await page.evaluate("window.ran") is None
    worker.stop()
    await working
