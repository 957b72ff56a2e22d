"""The page and its API by real requests: what they tell and do, and who may ask."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from command import ECHO, EVIL, GATE, claim, finish, start
from processes import NEXUM, NexumDev, Process, environment, eventually, run

from nexum_runtime import Client
from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.server.rpc.messages import CODES as GRPC_CODES

TOKEN = "correct-horse-battery-staple"
SCREENS = (
    "/",
    "/session?id=s",
    "/execution?id=s/1",
    "/approvals",
    "/unknown",
    "/workers",
    "/workflows",
    "/workflow?id=echo",
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(ServerConfig(tmp_path / "nexum.db", port=0, web_port=0))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def web(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://localhost:{server.web_port}", timeout=30) as client:
        yield client


async def asks(client: Client, execution_id: str = "s/ask", **options: Any) -> "asyncio.Task[Any]":
    """An execution that waits for a person."""
    asking = asyncio.create_task(client.execute(GATE, {"question": "Which?"}, execution_id=execution_id, **options))

    async def waits() -> bool:
        return any(each.execution_id == execution_id for each in await client.approvals())

    await eventually(waits)
    return asking


async def unknown(client: Client, execution_id: str) -> None:
    """An execution that happens once, and of which nobody knows whether it did."""
    executing = asyncio.create_task(client.execute(ECHO, {}, execution_id=execution_id, effect="once"))
    await client.register(ECHO)
    await client.fail(await claim(client, wait_ms=20_000), "lost", unknown=True)
    await executing


async def test_every_screen_is_there_and_says_what_to_do_when_there_is_nothing(
    web: httpx.AsyncClient, client: Client
) -> None:
    assert "python demo.py" in (await web.get("/")).text
    assert "Nothing waits for you" in (await web.get("/approvals")).text
    await finish(client, "s/1")
    for path in SCREENS:
        answer = await web.get(path)
        assert answer.status_code == 200, path
        assert "<h1>" in answer.text
    assert (await web.get("/session?id=none")).status_code == 404
    assert "nexum sessions" in (await web.get("/session?id=none")).text
    assert (await web.get("/no-such-page")).status_code == 404


async def test_sessions_are_searched_filtered_and_paged(web: httpx.AsyncClient, client: Client) -> None:
    for name in ("a1/1", "a2/1", "b1/1"):
        await finish(client, name)
    await start(client, "a3/1")
    await client.stop_session("a3", "anna")

    async def found(**query: Any) -> list[str]:
        told = (await web.get("/api/sessions", params=query)).json()["sessions"]
        return sorted(each["session_id"] for each in told)

    assert await found() == ["a1", "a2", "a3", "b1"]
    assert await found(prefix="a") == ["a1", "a2", "a3"]
    assert await found(status="stopped") == ["a3"]
    assert len(await found(limit=2)) == 2
    assert (await web.get("/", params={"limit": 2})).text.count('<th scope="row">') == 2
    assert (await web.get("/api/sessions?limit=0")).json()["message"].startswith("limit is '0'")


async def test_executions_of_a_session_are_told_in_pages(web: httpx.AsyncClient, client: Client) -> None:
    for number in range(5):
        await finish(client, f"s/{number}")
    latest = (await web.get("/api/executions?session=s&limit=2")).json()
    earlier = (await web.get(f"/api/executions?session=s&limit=9&before={latest['before']}")).json()
    assert [each["execution_id"] for each in latest["executions"]] == ["s/3", "s/4"]
    assert [each["execution_id"] for each in earlier["executions"]] == ["s/0", "s/1", "s/2"]
    assert earlier["before"] is None
    assert [each["type"] for each in latest["executions"][0]["events"]][-1] == "ExecutionCompleted"


async def test_an_approval_is_given_once_and_the_second_person_is_told(web: httpx.AsyncClient, client: Client) -> None:
    asking = await asks(client)
    (waiting,) = (await web.get("/api/approvals")).json()["approvals"]
    where = {"execution_id": waiting["execution_id"], "node_id": waiting["node_id"]}
    first = await web.post("/api/approve", json=where | {"by": "anna", "comment": "fine"})
    second = await web.post("/api/reject", json=where | {"by": "ben", "reason": "no"})
    outcome = await asking
    assert first.status_code == 200
    assert outcome.outputs["approve"] == {"approved": True, "approver": "anna", "comment": "fine"}
    assert "anna" in second.json()["message"]


async def test_a_form_answers_a_question_and_says_so_with_the_command(web: httpx.AsyncClient, client: Client) -> None:
    asking = await asks(client, asks=True)
    form = {"execution_id": "s/ask", "node_id": "approve", "text": "the second", "back": "/approvals", "by": "anna"}
    answer = await web.post("/do/answer", data=form)
    assert (await asking).outputs["approve"]["comment"] == "the second"
    assert "nexum answer s/ask" in answer.text
    assert 'href="/approvals"' in answer.text
    assert 'href="/"' in (await web.post("/do/answer", data=form | {"back": "//evil.example"})).text


@pytest.mark.parametrize(
    ("given", "status"),
    [({"result": "sent"}, "COMPLETED"), ({"failed": "never"}, "FAILED"), ({"retry": True}, "RUNNING")],
)
async def test_an_unknown_outcome_is_settled_in_each_of_three_ways(
    web: httpx.AsyncClient, client: Client, given: dict[str, Any], status: str
) -> None:
    await unknown(client, "s/once")
    assert [each["execution_id"] for each in (await web.get("/api/unknown")).json()["unknown"]] == ["s/once"]
    answer = await web.post("/api/resolve", json={"execution_id": "s/once"} | given)
    assert answer.status_code == 200, answer.text
    assert (await client.status("s/once")).status == status
    assert (await web.get("/api/unknown")).json()["unknown"] == []


async def test_what_the_command_does_to_a_session_the_api_does(web: httpx.AsyncClient, client: Client) -> None:
    await finish(client, "s/1")
    await start(client, "s/2")

    async def do(name: str, **body: Any) -> str:
        answer = await web.post(f"/api/{name}", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["message"])

    assert "is stopped" in await do("stop", session_id="s", reason="wrong", by="anna")
    assert (await web.get("/api/session?id=s")).json()["stopped"]["by"] == "anna"
    assert await do("go", session_id="s") == "Session s goes on."
    assert "1 execution of s" in await do("fork", session_id="s", new="t")
    await do("cancel", execution_id="s/2")
    await do("retry", execution_id="s/2")
    assert (await client.status("s/2")).status == "RUNNING"
    await do("cancel", execution_id="s/2")
    assert await do("prune", older_than="0s", session="t", dry_run=True) == "1 execution would be deleted."
    assert "1 execution deleted" in await do("prune", older_than="0s", session="t")
    refused = await web.post("/api/forget", json={"session_id": "s", "after": "0"})
    assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_ARGUMENT")


async def test_an_execution_is_started_once_and_found_again(web: httpx.AsyncClient, client: Client) -> None:
    await client.register(ECHO)
    labels = {"kind": "import", "name": "customers"}
    asked = {"execution_id": "s/1", "workflow_id": "echo", "input": {"b": "é", "a": [1]}, "labels": labels}
    first = (await web.post("/api/start", json=asked)).json()
    again = (await web.post("/api/start", json=asked | {"version_hash": ECHO.version_hash})).json()
    assert [first, again] == [{"execution_id": "s/1", "before": each} for each in ("NEW", "RUNNING")]
    ours = asyncio.create_task(client.execute(ECHO, {"a": [1], "b": "é"}, execution_id="s/1"))
    await client.complete(await claim(client, wait_ms=20_000), '{"text": "done"}')
    assert (await ours).outputs["run"] == {"text": "done"}, "the same, wherever it is started"
    told = (await web.get("/api/execution?id=s/1")).json()
    assert (told["status"], told["labels"] | labels) == ("COMPLETED", told["labels"])
    assert told["outputs"]["run"]["json"] == '{"text": "done"}'


async def test_how_often_a_started_execution_is_attempted_is_said_with_it(
    web: httpx.AsyncClient, client: Client
) -> None:
    await client.register(ECHO)
    wishes: list[dict[str, Any]] = [{"effect": "once"}, {"max_attempts": 1}]
    for number, wish in enumerate(wishes):
        await web.post("/api/start", json={"execution_id": f"s/{number}", "workflow_id": "echo"} | wish)
        await client.fail(await claim(client, wait_ms=20_000), "no")
        assert (await client.status(f"s/{number}")).status == "FAILED"


@pytest.mark.parametrize(
    ("wrong", "status", "words"),
    [
        ({"execution_id": ""}, 400, "start needs 'execution_id'."),
        ({"workflow_id": "none"}, 404, "none"),
        ({"execution_id": "s/2", "version_hash": "none"}, 404, "none"),
        ({"workflow_id": ["echo"]}, 400, "'workflow_id' must be a text."),
        ({"agent": "Researcher"}, 400, "start takes no 'agent'."),
        ({"effect": "twice"}, 400, "twice"),
        ({"max_attempts": True}, 400, "must be a whole number"),
        ({"labels": ["a"]}, 400, "must be an object"),
        ({"input": 2}, 400, "s/1"),
    ],
)
async def test_a_start_that_cannot_be_is_refused_in_a_sentence(
    web: httpx.AsyncClient, client: Client, wrong: dict[str, Any], status: int, words: str
) -> None:
    await client.register(ECHO)
    asked = {"execution_id": "s/1", "workflow_id": "echo", "input": 1}
    await web.post("/api/start", json=asked)
    refused = await web.post("/api/start", json=asked | wrong)
    assert (refused.status_code, words in refused.json()["message"]) == (status, True), refused.text


async def test_an_error_has_the_code_and_the_sentence_that_grpc_has(web: httpx.AsyncClient, client: Client) -> None:
    from nexum_runtime.server.web import api

    assert {error: code for error, (_, code) in api.CODES.items()} == {e: code.name for e, code in GRPC_CODES.items()}
    with pytest.raises(Exception, match="No execution 'nope' is known") as told:
        await client.cancel("nope")
    refused = await web.post("/api/cancel", json={"execution_id": "nope"})
    assert (refused.status_code, refused.json()) == (404, {"code": "NOT_FOUND", "message": str(told.value)})
    assert (await web.post("/api/stop", json={"session_id": "s", "why": "x"})).json()[
        "message"
    ] == "stop takes no 'why'."
    assert (await web.post("/api/stop", content="{", headers={"content-type": "application/json"})).status_code == 400
    assert (await web.post("/api/stop", data={"session_id": "s"})).status_code == 400  # what a form could send


async def test_live_updates_go_on_from_the_last_one(web: httpx.AsyncClient, client: Client) -> None:
    async def listen(until: str, **headers: str) -> list[tuple[str, str, Any]]:
        found = []
        async with asyncio.timeout(30), web.stream("GET", "/api/live?session=s", headers=headers) as answer:
            lines: dict[str, str] = {}
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                lines[name] = value
                if not line:
                    data = json.loads(lines["data"])
                    found.append((lines["id"], lines["event"], data))
                    listening.set()
                    if until in (lines["event"], data.get("type")):
                        return found
        raise AssertionError("it ended")

    listening = asyncio.Event()
    first = asyncio.create_task(listen("ExecutionStarted"))
    await asyncio.wait_for(listening.wait(), 20)
    await finish(client, "other/1")
    await finish(client, "s/1")
    told = await first
    rest = await listen("ExecutionCompleted", **{"Last-Event-ID": told[-1][0]})
    types = [data.get("type") for _, kind, data in [*told, *rest] if kind == "event"]
    assert types == ["ExecutionStarted", "AttemptStarted", "TaskCompleted", "ExecutionCompleted"]
    assert {data["execution_id"] for _, kind, data in [*told, *rest] if kind == "event"} == {"s/1"}
    assert (await listen("again", **{"Last-Event-ID": "another-start-7"}))[0][1] == "again"


async def test_texts_from_outside_are_shown_and_do_nothing(web: httpx.AsyncClient, client: Client) -> None:
    evil = f'<script>ran()</script>"><img src=x onerror=ran()>{EVIL}\x00'
    text = json.dumps(f"# x\n<script>ran()</script> [a](javascript:ran()) ![b](http://evil.example/b.png) {evil}\ud800")
    await finish(client, "s/1", text)
    await finish(client, "s/2", json.dumps({evil: [evil]}))
    await client.stop_session("s", "anna", evil)
    for path in ("/execution?id=s/1", "/execution?id=s/2", "/session?id=s"):
        page = (await web.get(path)).text
        assert "<script>ran" not in page
        assert "<img src=x" not in page
        assert 'href="javascript' not in page
        assert page.count("<img") == page.count('<img src="/static/icon.svg"')
        assert not {mark for mark in ("\x1b", "\x00", "\u202e", "\u2028") if mark in page}, path
    assert r"\u202e" in (await web.get("/execution?id=s/2")).text
    assert (await web.get("/api/output?id=s/1&node=run")).text == text


async def test_what_is_large_is_cut_and_the_whole_of_it_is_a_link_away(web: httpx.AsyncClient, client: Client) -> None:
    await finish(client, "s/large", json.dumps("x" * 5_000_000))
    page = await web.get("/execution?id=s/large")
    assert len(page.content) < 200_000
    assert "All of it: 5.0M characters" in page.text
    assert len((await web.get("/api/output?id=s/large&node=run")).content) == 5_000_002
    assert len((await web.get("/api/execution?id=s/large")).content) < 200_000


async def test_every_answer_forbids_scripts_frames_and_readers_from_elsewhere(
    web: httpx.AsyncClient, client: Client
) -> None:
    await finish(client, "s/1")
    for path in (*SCREENS, "/api/sessions", "/static/page.js", "/nothing", "/metrics"):
        headers = (await web.get(path, headers={"Origin": "http://evil.example"})).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("access-control")]
    for path in SCREENS:
        page = (await web.get(path)).text
        assert " style=" not in page
        assert "<style" not in page
        assert page.count("<script") == page.count('<script type="module" src="/static/page.js"></script>')


async def test_another_page_can_neither_act_nor_read_by_a_name_of_its_own(
    web: httpx.AsyncClient, client: Client, server: Server
) -> None:
    await finish(client, "s/1")
    own = f"http://localhost:{server.web_port}"
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": own},
    ):
        assert (await web.post("/api/stop", json={"session_id": "s"}, headers=headers)).status_code == 403, headers
        assert (await web.post("/do/stop", data={"session_id": "s"}, headers=headers)).status_code == 403, headers
    assert (await web.get("/api/session?id=s")).json()["stopped"] is None
    for host in (
        "evil.example",
        f"evil.example:{server.web_port}",
        "localhost.evil.example",
        "",
        "localhost@evil.example",
    ):
        for path in ("/", "/api/sessions", "/metrics"):
            assert (await web.get(path, headers={"Host": host})).status_code in (400, 421), host
    assert (await web.get("/api/sessions", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert (await web.get("/", headers={"Host": f"127.0.0.1:{server.web_port}"})).status_code == 200
    same = {"Origin": own, "Sec-Fetch-Site": "same-origin"}
    assert (await web.post("/do/stop", data={"session_id": "s"}, headers=same)).status_code == 200


async def test_a_token_is_demanded_and_a_login_gives_a_cookie_that_is_not_the_token(tmp_path: Path) -> None:
    server = Server(ServerConfig(tmp_path / "nexum.db", host="0.0.0.0", port=0, web_port=0, token=TOKEN))
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.web_port}") as web:
            assert [(await web.get(path)).text for path in ("/healthz", "/readyz")] == ["ok\n", "ready\n"]
            for path in ("/api/sessions", "/metrics", "/"):
                assert (await web.get(path)).status_code == 401
            assert (await web.get("/", headers={"Accept": "text/html"})).headers["location"] == "/login"
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            assert (await web.get("/api/sessions", headers=bearer)).status_code == 200
            assert (await web.post("/login", data={"token": "wrong-token"})).status_code == 401
            login = await web.post("/login", data={"token": TOKEN})
            cookie = login.headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "samesite=strict" in cookie.lower()
            assert TOKEN not in cookie
            assert (await web.get("/api/sessions")).status_code == 200  # by the cookie
            assert (await web.post("/logout")).status_code == 303
            assert (await web.get("/api/sessions")).status_code == 401
    finally:
        await server.stop()


async def test_a_user_of_the_machine_who_is_not_its_own_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(ServerConfig(tmp_path / "nexum.db", port=0, web_port=0))
    assert server.is_for_own_user
    monkeypatch.setattr("nexum_runtime.server.rpc.neighbours.uid_of", lambda *_: 65_534)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://localhost:{server.web_port}") as web:
            for path in ("/", "/api/sessions", "/metrics", "/static/page.js"):
                assert (await web.get(path)).status_code == 403
            assert (await web.post("/api/stop", json={"session_id": "s"})).status_code == 403
    finally:
        await server.stop()


async def test_metrics_and_health_are_served_beside_the_page(web: httpx.AsyncClient, server: Server) -> None:
    metrics = await web.get("/metrics")
    assert "nexum_build_info" in metrics.text
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert (await web.get("/healthz")).text == "ok\n"
    assert (await web.get("/readyz")).text == "ready\n"
    server.engine.closing.set()
    stopping = await web.get("/readyz")
    assert (stopping.status_code, stopping.text) == (503, "not ready\n")


async def test_who_connects_and_asks_nothing_is_hung_up_on(
    web: httpx.AsyncClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await web.get("/healthz")
    monkeypatch.setattr("nexum_runtime.server.web.http.REQUEST_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.web_port)
    writer.write(b"GET / HTTP/1.1\r\n")
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()


async def test_a_port_that_is_taken_is_no_reason_not_to_serve_calls(tmp_path: Path, server: Server) -> None:
    assert server.web_port
    named = Server(ServerConfig(tmp_path / "named.db", port=0, web_port=server.web_port))
    any_other = ServerConfig(tmp_path / "other.db", port=0, web_port=server.web_port, takes_other_web_port=True)
    other = Server(any_other)
    for each in (named, other):
        await each.start()
    try:
        assert named.web_port is None
        assert "the port is in use. Choose another --web-port." in named.why_no_page
        assert other.web_port not in (None, server.web_port)
        assert not other.why_no_page
    finally:
        for each in (named, other):
            await each.stop()


async def test_nothing_is_loaded_for_the_page_before_somebody_looks(tmp_path: Path) -> None:
    script = tmp_path / "dev.py"
    script.write_text(
        "import atexit, sys\nfrom nexum_runtime.cli import main\n"
        "of_page = {'starlette', 'uvicorn', 'jinja2'}\n"
        "atexit.register(lambda: print('loaded:', sorted(of_page & set(sys.modules))))\nmain()\n"
    )
    command: list[str | Path] = [
        sys.executable,
        script,
        "dev",
        "--port",
        "0",
        "--db",
        tmp_path / "nexum.db",
        "--web-port",
        "0",
    ]
    process = Process(command, tmp_path / "dev.log", env=environment(NEXUM_TEST_FORKS="0"))
    for looks in (False, True):
        process.start()
        url = (await process.says(r"page at (http://localhost:\d+)"))[1]
        if looks:
            async with httpx.AsyncClient() as web:
                await web.get(url)
        process.terminate()
        await process.ended()
        assert f"loaded: {['jinja2', 'starlette', 'uvicorn'] if looks else []}" in process.output


async def test_a_page_and_none_are_not_both_had(tmp_path: Path) -> None:
    refused = await run(NEXUM, "dev", "--port", "0", "--db", tmp_path / "nexum.db", "--no-web", "--web-port", "0")
    assert (refused.code, refused.stderr) == (1, "Say --web-port or --no-web, not both.\n")


async def test_the_ready_line_has_a_link_to_the_page(tmp_path: Path) -> None:
    async with NexumDev(tmp_path, "--web-port", "0") as nexum:
        url = (await nexum.says(r"page at (http://localhost:\d+)"))[1]
        async with httpx.AsyncClient() as web:
            assert (await web.get(url)).status_code == 200
        nexum.terminate()
        assert await nexum.ended() == 0
    refused = await run(NEXUM, "dev", "--web-port", "70000")
    assert "--web-port is '70000'" in refused.stderr


async def test_the_curl_examples_of_the_docs_work(web: httpx.AsyncClient, client: Client, server: Server) -> None:
    page = (Path(__file__).parents[2] / "docs" / "api-http.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.+?)```", page, re.DOTALL) for line in block.splitlines()]
    commands = [line.replace("localhost:8051", f"localhost:{server.web_port}") for line in lines]
    await client.register(ECHO)
    await finish(client, "report-4/look_up/1")
    await unknown(client, "report-4/send/1")
    asking = await asks(client, "report-4/save/1")
    for command in commands:
        done = await run("bash", "-c", command)
        if "/api/live" in command:
            assert "event: hello" in done.stdout
            continue
        told = json.loads(done.stdout)
        assert done.code == 0, command
        assert "code" not in told, (command, told)
    assert len(commands) == 18
    assert (await asking).status == "COMPLETED"
    described = (await web.get("/api/openapi.json")).json()["paths"]
    assert {re.search(r"/api/\w+", line)[0] for line in lines} <= described.keys()  # type: ignore[index]


async def test_a_session_tells_what_was_asked_and_where_it_was_run_again(
    web: httpx.AsyncClient, client: Client
) -> None:
    said: list[dict[str, str]] = [
        {"block": "a", "asked": "first <b>"},
        {"block": "a"},
        {"block": "b", "asked": "second?"},
        {"block": "a"},
        {},
    ]
    for number, labels in enumerate(said):
        await start(client, f"s/{number}", labels=labels)
    page = (await web.get("/session?id=s")).text
    assert re.findall(r'class="question">(.+?)</p>', page) == ["second?"]
    assert re.findall(r'id=s%2F(\d)">|class="(again)"', page.partition("timeline-title")[2]) == [
        ("0", ""),
        ("1", ""),
        ("", "again"),
        ("2", ""),
        ("3", ""),
        ("4", ""),
    ]
    assert "first &lt;b&gt;" in (await web.get("/session?id=s&before=3")).text


async def test_attempts_and_waits_are_bars_of_their_own(web: httpx.AsyncClient, client: Client) -> None:
    await start(client, "s/retried")
    await client.fail(await claim(client), "no", retryable=True)
    await client.complete(await claim(client, wait_ms=20_000), '{"text": "x"}')
    asking = await asks(client)
    waiting = (await web.get("/session?id=s")).text
    await client.approve("s/ask", "approve", "anna")
    await asking
    page = (await web.get("/session?id=s")).text
    assert "run, attempt 1: failed" in page
    assert "run, attempt 2: done" in page
    assert "2 attempts" in page
    assert "waited for a person" in waiting
    assert "waits for an approval" in waiting
    assert "waited for a person" in page
    for x, width in re.findall(r'class="bar \w+" x="([\d.]+)%" width="([\d.]+)%"', page):
        assert 0 <= float(x) <= float(x) + float(width) <= 100.01
