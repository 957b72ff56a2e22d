"""The page in a real browser: what people see and click, that nothing hostile runs, and that axe-core finds nothing.

`make test-browser` runs it. The pictures of the README and the docs are made by it, with `--pictures`.
"""

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.async_api", reason="pip install playwright axe-core-python")

from command import ECHO, EVIL, GATE, claim, finish, start  # noqa: E402
from processes import NexumDev, Process, environment  # noqa: E402
from test_guard import make_certificate  # noqa: E402
from test_web import TOKEN, asks, unknown  # noqa: E402

from nexum_runtime import Client  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ROOT = Path(__file__).parents[2]
AXE = "axe_core_python"
PATIENCE_MS = 20_000
UNFOLD = "document.querySelectorAll('main details').forEach(each => { each.open = true })"
HOSTILE = f'<script>window.ran = 1</script>"\'><img src=x onerror="window.ran=1"><svg onload="window.ran=1">{EVIL}\x00'
MARKDOWN = f"# A\n\n[a](javascript:window.ran=1) [b](data:text/html,<script>window.ran=1</script>)\n\n{HOSTILE}"

if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium", allow_module_level=True)


@pytest.fixture
async def nexum(tmp_path: Path) -> AsyncIterator[NexumDev]:
    async with NexumDev(tmp_path, "--web-port", "0") as nexum:
        yield nexum


@pytest.fixture
async def url(nexum: NexumDev) -> str:
    return str((await nexum.says(r"page at (http://\S+)"))[1])


@pytest.fixture
async def client(nexum: NexumDev) -> AsyncIterator[Client]:
    async with Client(nexum.address) as client:
        await client.register(ECHO)
        yield client


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: Any, url: str) -> AsyncIterator[Any]:
    context = await browser.new_context(base_url=url, viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert errors == []


def demo(tmp_path: Path, nexum: NexumDev, *options: str) -> Process:
    env = environment(NEXUM_ADDRESS=nexum.address, SESSION_ID="s1", OFFLINE_WEB_DELAY_MS="50")
    command: list[str | Path] = [sys.executable, ROOT / "demo.py", "--offline", *options]
    return Process(command, tmp_path / "demo.log", env=env, cwd=tmp_path)


def worker(tmp_path: Path, nexum: NexumDev) -> Process:
    env = environment(NEXUM_ADDRESS=nexum.address, OFFLINE_WEB_DELAY_MS="50")
    return Process([sys.executable, ROOT / "worker.py", "--offline"], tmp_path / "worker.log", env=env, cwd=tmp_path)


async def sees(page: Any, text: str) -> None:
    await page.get_by_text(text).first.wait_for(timeout=PATIENCE_MS)


async def test_a_crash_is_watched_and_the_session_goes_on_before_ones_eyes(
    page: Any, nexum: NexumDev, tmp_path: Path
) -> None:
    await page.goto("/")
    await sees(page, "No sessions yet")
    worker(tmp_path, nexum).start()
    crashing = demo(tmp_path, nexum, "--crash-after", "2")
    crashing.start()
    await page.get_by_role("link", name="s1", exact=True).click(timeout=60_000)  # it appeared by itself
    await crashing.ended(60)
    await page.locator("#timeline .lane").nth(2).wait_for()
    lanes = await page.locator("#timeline .lane").count()
    again = demo(tmp_path, nexum)
    again.start()
    await page.locator("#head .badge.completed").wait_for(timeout=60_000)
    await page.locator("#answer").get_by_text("Durable execution for AI agents means").wait_for()
    assert await page.locator("#timeline .lane").count() > lanes
    assert await page.locator("#head .question").inner_text() == "What is durable execution for AI agents?"
    assert await page.locator("#timeline .again").count() == 1
    await again.ended(60)
    assert f"Look at it: {page.url}\n" in again.output
    await page.locator("#timeline .lane a").first.click()
    await sees(page, "Events")


async def test_an_approval_is_given_on_the_page_and_the_demo_goes_on(
    page: Any, nexum: NexumDev, tmp_path: Path
) -> None:
    worker(tmp_path, nexum).start()
    running = demo(tmp_path, nexum, "--save-report")
    running.start()
    await page.goto("/approvals")
    await page.locator("summary", has_text="Approve…").click(timeout=60_000)
    form = page.locator("form[action='/do/approve']")
    await form.get_by_label("Words").fill("read it, it's fine")
    command = await form.locator(".command").inner_text()
    assert re.fullmatch(r"nexum approve s1/\S+ \S+ --comment 'read it, it'\"'\"'s fine'( --as \S+)?", command), command
    await form.get_by_role("button", name="Approve").click()
    await sees(page, "Approved")
    assert await running.ended(60) == 0, running.output
    assert list((tmp_path / "reports").iterdir())


async def test_an_unknown_outcome_is_settled_and_a_session_stopped_forked_and_let_go(page: Any, client: Client) -> None:
    await unknown(client, "s/once")
    await page.goto("/unknown")
    await page.locator("summary", has_text="Settle…").click()
    await page.get_by_label("It happened, and this is its result").check()
    await page.get_by_label("Its result", exact=True).fill("sent, number 17")
    await page.get_by_role("button", name="Settle", exact=True).click()
    await page.get_by_role("link", name="Go on").click()
    await sees(page, "No outcome is unknown")
    assert (await client.status("s/once")).outputs == {"run": "sent, number 17"}
    await page.goto("/session?id=s")
    await page.locator("#do-stop > summary").click()
    await page.locator("#do-stop").get_by_label("Why").fill("wrong customer")
    await page.locator("#do-stop").get_by_role("button", name="Stop").click()
    await page.get_by_role("link", name="Go on").click()
    await sees(page, "wrong customer")
    await page.locator("#do-go > summary").click()
    await page.locator("#do-go").get_by_role("button").click()
    await page.goto("/session?id=s")
    await page.locator("#do-fork > summary").click()
    await page.locator("#do-fork").get_by_label("The new session").fill("t")
    await page.locator("#do-fork").get_by_role("button", name="Fork").click()
    await page.get_by_role("link", name="Go on").click()
    await sees(page, "Forked from")
    assert [each.execution_id for each in await client.executions("t/")] == ["t/once"]


async def test_a_form_that_is_filled_in_stays_while_the_page_is_live(page: Any, client: Client) -> None:
    await start(client, "s/1")
    await page.goto("/execution?id=s/1")
    await page.locator("#do-cancel > summary").click()
    await finish_first(client)
    await page.locator("#head .badge.completed").wait_for()
    await start(client, "s/2")
    await page.goto("/session?id=s")
    await page.locator("#do-fork > summary").click()
    await page.locator("#do-fork").get_by_label("The new session").fill("typed")
    await finish_first(client)
    await page.locator("#timeline .lane", has_text="2").get_by_text("completed").wait_for()
    assert await page.locator("#do-fork").get_by_label("The new session").input_value() == "typed"


async def finish_first(client: Client) -> None:
    await client.complete(await claim(client, wait_ms=20_000), '{"text": "done"}')


async def test_a_server_that_goes_away_is_said_and_the_page_goes_on_by_itself(
    browser: Any, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    port = str(free_port())
    async with NexumDev(tmp_path, "--web-port", port) as nexum:
        page = await browser.new_page()
        await page.goto(f"http://localhost:{port}/")
        await page.locator("#away").wait_for(state="hidden")
        nexum.kill()
        await page.locator("#away").wait_for(state="visible", timeout=PATIENCE_MS)
        await nexum.restart()
        async with Client(nexum.address) as client:
            await finish(client, "back/1")
        await page.get_by_role("link", name="back").wait_for(timeout=PATIENCE_MS)
        await page.locator("#away").wait_for(state="hidden")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_who_has_the_token_logs_in(browser: Any, tmp_path: Path, scheme: str) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    pem = make_certificate(tmp_path, "local") if scheme == "https" else None
    async with NexumDev(
        tmp_path, "--web-port", "0", "--token-file", str(token), *(pem.options if pem else ())
    ) as nexum:
        url = (await nexum.says(rf"page at ({scheme}://\S+)"))[1]
        context = await browser.new_context(ignore_https_errors=True)
        page = await context.new_page()
        await page.goto(url)
        await page.get_by_label("Token").fill("not the token")
        await page.get_by_role("button", name="Log in").click()
        await sees(page, "That is not the token")
        assert await violations(page) == []
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button", name="Log in").click()
        await sees(page, "No sessions yet")
        assert await page.evaluate("document.cookie") == ""
        (cookie,) = await context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["secure"]) == (True, "Strict", scheme == "https")
        async with Client(nexum.address, token=TOKEN, tls_ca=pem.certificate if pem else None) as client:
            await client.register(ECHO)
            await client.execute(ECHO, {}, execution_id="s/1", timeout=PATIENCE_MS / 1000, wait=False)
        await page.get_by_role("link", name="s", exact=True).click()  # it appeared by itself
        await page.goto(url)
        await page.get_by_role("button", name="Log out").click()
        await page.get_by_label("Token").wait_for()


async def test_nothing_that_is_recorded_runs(page: Any, client: Client, url: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    labels = {"kind": "call", "name": HOSTILE[:190], "text": HOSTILE[:190]}
    running = asyncio.create_task(client.execute(ECHO, {"q": HOSTILE}, execution_id="s/1", labels=labels))
    await client.complete(await claim(client, wait_ms=20_000), json.dumps(MARKDOWN + "\ud800"))
    await running
    failing = asyncio.create_task(client.execute(ECHO, {HOSTILE: [HOSTILE]}, execution_id="s/2", max_attempts=1))
    await client.fail(await claim(client, wait_ms=20_000), HOSTILE, retryable=False)
    await failing
    waiting = await asks(client, "s/3", asks=True, labels=labels)
    await client.stop_session("s", "anna", HOSTILE)
    for path in (
        "/",
        "/session?id=s",
        "/execution?id=s/1",
        "/execution?id=s/2",
        "/approvals",
        "/workers",
        "/workflows",
    ):
        await page.goto(path)
        await page.evaluate(UNFOLD)
        assert await page.locator("main script, main img, main iframe, main a[href^='javascript' i]").count() == 0, path
        for link in await page.locator(".markdown a").all():
            await link.click()
        assert await page.evaluate("window.ran") is None, path
        text = await page.locator("main").inner_text()
        assert not {mark for mark in ("\x1b", "\u202e", "\u2028", "\x00", "\ufffd") if mark in text}, path
    assert [each for each in asked if not each.startswith(url)] == []
    waiting.cancel()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_screen_is_accessible_and_fits(browser: Any, client: Client, url: str, scheme: str) -> None:
    await unknown(client, "invoice-17/send_invoice/0")
    waiting = [
        await asks(client, "report-4/question/0", asks=True),
        asyncio.create_task(client.execute(GATE, {"path": "a.md"}, execution_id="report-4/save/0")),
    ]
    await finish(client, "report-4/look_up/0", json.dumps({"lines": [1, {"deep": ["x"]}], "open": True}))
    await start(client, "late-1/1")
    await client.stop_session("late-1", "anna", "too many")
    context = await browser.new_context(base_url=url, color_scheme=scheme)
    page = await context.new_page()
    one = ("/session?id=report-4", "/execution?id=report-4/look_up/0", "/workflow?id=echo", "/session?id=none")
    for path in ("/", "/approvals", "/unknown", "/workers", "/workflows", *one):
        await page.set_viewport_size({"width": 1280, "height": 800})
        await page.goto(path)
        await page.evaluate(UNFOLD)
        assert await violations(page) == [], f"{path} {scheme}"
        for width in (360, 2560):
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} at {width}"
    await page.goto("/")
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    for each in waiting:
        each.cancel()


async def violations(page: Any) -> list[str]:
    """What axe-core finds wrong. It is given to the page by the browser, past the page's policy."""
    source = next(each for each in files(AXE).iterdir() if each.name.startswith("axe")).read_text(encoding="utf-8")
    await page.evaluate(f"() => {{ {source} }}")
    found = await page.evaluate("() => axe.run().then(found => found.violations)")
    return [f"{each['id']}: {each['help']}: {each['nodes'][0]['html'][:200]}" for each in found]


async def test_pictures(page: Any, nexum: NexumDev, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--pictures"):
        pytest.skip("say --pictures to make those of the README and the docs anew")
    worker(tmp_path, nexum).start()
    running = demo(tmp_path, nexum, "--save-report")
    running.start()
    await page.goto("/approvals")
    await page.locator("summary", has_text="Approve…").wait_for(timeout=60_000)
    await take(page, "approvals", "/approvals")
    (asked,) = (await (await page.request.get("/api/approvals")).json())["approvals"]
    where = {name: asked[name] for name in ("execution_id", "node_id")}
    await page.request.post("/api/approve", data=where | {"by": "anna"})
    await running.ended(60)
    await take(page, "session", "/session?id=s1")


async def take(page: Any, name: str, path: str) -> None:
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        await page.goto(path)
        await page.locator("h1").wait_for()
        await page.screenshot(path=ROOT / "docs" / "pictures" / f"page-{name}-{scheme}.png")
