"""Nobody who does not belong: tokens and TLS, against real servers and, where a person would see it, real processes."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from processes import NEXUM, Finished, NexumDev, Process, environment, eventually, run
from test_demo import KEYS, ROOT

from nexum_agents.workflows import tool_call_workflow
from nexum_runtime import Client, InvalidRequest, ServerUnavailable, Unauthenticated, Worker, wire
from nexum_runtime.cli.base import NO_SERVER
from nexum_runtime.client import connection
from nexum_runtime.server.app import CannotBind, Server, ServerConfig, Tls
from nexum_runtime.server.methods.methods import Methods
from nexum_runtime.server.rpc.peers import Waiting
from nexum_runtime.server.rpc.service import Services
from nexum_runtime.server.rpc.traffic import Traffic

TOKEN = "correct-horse-battery-staple"
OTHER = "another-horse-battery-staple"
DEMANDS = "This Nexum server demands a token and got"
TELL = "set NEXUM_TOKEN to the one it was started with."
NOT_A_TOKEN = "is not 8 to 1000 printable ASCII characters on one line without spaces at its ends."
LOCAL = "subjectAltName=DNS:localhost,IP:127.0.0.1"


@dataclass(frozen=True)
class Pem:
    certificate: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        return "--tls-cert", str(self.certificate), "--tls-key", str(self.key)


def make_certificate(folder: Path, name: str, names: str = LOCAL) -> Pem:
    """A self-signed certificate for `names`."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificates with openssl")
    made = Pem(folder / f"{name}.pem", folder / f"{name}-key.pem")
    how = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    files = ["-addext", names, "-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(["openssl", "req", "-x509", *how, *files], check=True, capture_output=True)
    return made


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return make_certificate(tmp_path_factory.mktemp("pem"), "local")


@pytest.fixture(scope="session")
def other_pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return make_certificate(tmp_path_factory.mktemp("pem"), "other", "subjectAltName=DNS:other.example")


@pytest.fixture
async def guarded(tmp_path: Path) -> Any:
    server = Server(ServerConfig(tmp_path / "guarded.db", port=0, token=TOKEN))
    await server.start()
    yield server
    await server.stop()


def in_words(finished: Finished, sentence: str, code: int = 1) -> None:
    """An exit code, and on stderr one line with `sentence`, without the token."""
    assert finished.code == code, finished
    assert finished.stdout == ""
    assert sentence in finished.stderr
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert TOKEN not in finished.stderr


@contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody listens on, and nobody else is given, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


# The token, on every method


def all_methods() -> list[str]:
    """Every method that the server has, by its own tables, and some that it has not."""
    nobody: Any = None
    known = [
        method
        for handler in Services(Methods(nobody), Waiting(), Traffic()).handlers()
        for method in handler._method_handlers
    ]
    assert len(known) >= 17, "the tables were read"
    return [*known, "/nexum.NexumService/Unknown", "/nexum.NexumExtensions/Unknown", "/other.Service/Do"]


async def status_of(call: Any) -> tuple[str, str]:
    """The status code and the details that a call of any kind ends with."""
    return (await call.code()).name, await call.details()


def kinds_of_call(channel: Any, path: str, metadata: Any) -> list[Callable[[], Any]]:
    """Each starts a call. Those that stream send nothing: they are refused all the same."""

    async def requests() -> Any:
        await asyncio.Event().wait()
        yield b""

    return [
        lambda: channel.unary_unary(path)(b"", metadata=metadata),
        lambda: channel.unary_stream(path)(b"", metadata=metadata),
        lambda: channel.stream_unary(path)(requests(), metadata=metadata),
        lambda: channel.stream_stream(path)(requests(), metadata=metadata),
    ]


@pytest.mark.parametrize("path", all_methods())
async def test_without_the_token_every_method_is_refused_whatever_the_kind_of_call(guarded: Server, path: str) -> None:
    async with grpc.aio.insecure_channel(f"localhost:{guarded.port}") as channel:
        for metadata, got in (((), "none"), (((wire.AUTHORIZATION, f"Bearer {OTHER}"),), "another one")):
            for start in kinds_of_call(channel, path, metadata):
                # gRPC's client says so of itself when it is refused before it has sent all.
                while (status := await status_of(start())) == ("INTERNAL", "Internal error from Core"):
                    pass
                assert status == ("UNAUTHENTICATED", f"{DEMANDS} {got}: {TELL}")


@pytest.mark.parametrize("path", all_methods())
async def test_with_the_token_no_method_is_refused(guarded: Server, path: str) -> None:
    async with grpc.aio.insecure_channel(f"localhost:{guarded.port}") as channel:
        call = channel.unary_unary(path)(b"", metadata=((wire.AUTHORIZATION, f"Bearer {TOKEN}"),))
        assert (await status_of(call))[0] != "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "authorization",
    [
        [],
        [("authorization", "")],
        [("authorization", TOKEN)],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {TOKEN[:-1]}")],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", f"Bearer  {TOKEN}")],
        [("authorization", f"Bearer {TOKEN.upper()}")],
        [("authorization", f"Bearer {OTHER}"), ("authorization", f"Bearer {TOKEN}")],
        [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {OTHER}")],
        [("authorization-bin", f"Bearer {TOKEN}".encode())],
        [("x-authorization", f"Bearer {TOKEN}")],
    ],
    ids=str,
)
async def test_what_is_not_exactly_the_token_is_refused(guarded: Server, authorization: Any) -> None:
    async with grpc.aio.insecure_channel(f"localhost:{guarded.port}") as channel:
        call = channel.unary_unary("/nexum.NexumService/ListExecutions")(b"", metadata=tuple(authorization))
        code, details = await status_of(call)
        assert code == "UNAUTHENTICATED"
        assert TOKEN not in details


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_word_before_the_token_may_be_in_any_case(guarded: Server, scheme: str) -> None:
    async with grpc.aio.insecure_channel(f"localhost:{guarded.port}") as channel:
        metadata = (("authorization", f"{scheme} {TOKEN}"),)
        call = channel.unary_unary("/nexum.NexumService/ListExecutions")(b"", metadata=metadata)
        assert (await status_of(call))[0] == "OK"


async def test_a_request_is_not_read_before_the_token(guarded: Server) -> None:
    """What nobody let in may send is not parsed, and not held against the limit on sizes."""
    async with grpc.aio.insecure_channel(
        f"localhost:{guarded.port}", options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        endless = channel.stream_stream("/nexum.NexumService/StartExecution")(metadata=())  # sends nothing at all
        assert (await status_of(endless))[0] == "UNAUTHENTICATED"
        garbage = channel.unary_unary("/nexum.NexumService/StartExecution")(b"\xff" * 100)
        assert (await status_of(garbage))[0] == "UNAUTHENTICATED"


async def test_a_wrong_token_starts_nothing(guarded: Server, tmp_path: Path) -> None:
    address = f"localhost:{guarded.port}"
    async with Client(address, token=TOKEN) as client, Client(address, token=OTHER) as stranger:
        await client.register(tool_call_workflow())
        with pytest.raises(Unauthenticated, match=f"^{DEMANDS} another one: {TELL}$"):
            await stranger.execute(tool_call_workflow(), {}, execution_id="e")
        with pytest.raises(Unauthenticated):
            await stranger.check()
        with pytest.raises(Unauthenticated):
            _ = [each async for each in stranger.history("e")]
        assert await client.executions() == []


async def test_a_worker_with_the_wrong_token_ends_by_saying_so(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUM_TOKEN", OTHER)
    with pytest.raises(Unauthenticated, match=DEMANDS):
        await Worker([tool_call_workflow()], port=guarded.port).run()


# What may be a token


@pytest.mark.parametrize("token", ["x" * wire.TOKEN_CHARS_MIN, "x" * wire.TOKEN_CHARS_LIMIT, "in two words"])
def test_a_token_may_have_any_length_within_its_limits(token: str) -> None:
    assert wire.check_token(token, "here") == token


BAD_TOKENS = {
    "empty": "",
    "short": "x" * (wire.TOKEN_CHARS_MIN - 1),
    "long": "x" * (wire.TOKEN_CHARS_LIMIT + 1),
    "space before": f" {TOKEN}",
    "space behind": f"{TOKEN} ",
    "two lines": f"{TOKEN}\n{TOKEN}",
    "not ascii": f"{TOKEN}é",
    "control": f"{TOKEN}\x07",
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_what_cannot_be_a_token_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wire.check_token(token, "here")
    assert str(refused.value).startswith(f"The token in here {NOT_A_TOKEN}")
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("content", [*(bad.encode() for bad in BAD_TOKENS.values()), os.urandom(5_000)])
async def test_a_token_file_that_holds_none_is_told_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    finished = await run(NEXUM, "dev", "--port", "0", "--db", tmp_path / "n.db", "--token-file", file)
    in_words(finished, f"The token in {file} {NOT_A_TOKEN}")
    assert not (tmp_path / "n.db").exists()


async def test_a_token_file_that_cannot_be_read_is_told_in_a_sentence(tmp_path: Path) -> None:
    for file, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        finished = await run(NEXUM, "dev", "--port", "0", "--db", tmp_path / "n.db", "--token-file", file)
        in_words(finished, f"Cannot read {file}: {why}.")


async def test_an_environment_s_token_that_cannot_be_one_is_told_in_a_sentence(tmp_path: Path) -> None:
    bad = environment(NEXUM_TOKEN=f" {TOKEN}", NEXUM_ADDRESS="localhost:1")
    in_words(await run(NEXUM, "dev", "--port", "0", "--db", tmp_path / "n.db", env=bad), "The token in NEXUM_TOKEN is")
    in_words(await run(NEXUM, "ps", env=bad), f"The token in NEXUM_TOKEN {NOT_A_TOKEN}")


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
async def test_a_token_file_may_end_in_a_newline_and_wins_over_the_environment(tmp_path: Path, end: str) -> None:
    (tmp_path / "token").write_bytes(f"{TOKEN}{end}".encode())
    options = ("--token-file", str(tmp_path / "token"))
    async with NexumDev(tmp_path, *options, env=environment(NEXUM_TOKEN=OTHER)) as nexum:
        async with Client(nexum.address, token=TOKEN) as client:
            await client.check()
        async with Client(nexum.address, token=OTHER) as client:
            with pytest.raises(Unauthenticated):
                await client.check()


async def test_an_empty_token_in_the_environment_is_none(tmp_path: Path) -> None:
    async with NexumDev(tmp_path, env=environment(NEXUM_TOKEN="")) as nexum:
        assert "token demanded" not in nexum.output
        finished = await run(NEXUM, "ps", env=environment(NEXUM_ADDRESS=nexum.address, NEXUM_TOKEN=""))
        assert finished == Finished(0, "No executions yet.\n", "")


# Where it listens


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("10.0.0.1", False), ("fe80::1", False)),
        *(("example.org", False), ("localhost.example.org", False), ("", False), ("0", False), ("127.1", False)),
    ],
)
def test_only_loopback_is_open_without_a_token(tmp_path: Path, host: str, loopback: bool) -> None:
    assert wire.is_loopback(host) == loopback
    config = ServerConfig(tmp_path / "n.db", host=host)
    if loopback:
        config.check()
        return
    with pytest.raises(CannotBind, match=r"could read every result and run your tools\. Demand a token"):
        Server(config)
    assert list(tmp_path.iterdir()) == [], "it was refused before anything was made"
    ServerConfig(tmp_path / "n.db", host=host, token=TOKEN).check()
    ServerConfig(tmp_path / "n.db", host=host, insecure=True).check()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "somewhere.example"])
async def test_listening_elsewhere_without_a_token_is_refused_in_a_sentence(tmp_path: Path, host: str) -> None:
    finished = await run(NEXUM, "dev", "--host", host, "--port", "0", "--db", tmp_path / "n.db")
    in_words(finished, f"Whoever reaches {host} could read every result and run your tools. Demand a token")
    assert list(tmp_path.iterdir()) == []


async def test_dev_says_what_guards_it_and_warns_of_what_does_not(tmp_path: Path, pem: Pem) -> None:
    everywhere, token = ("--host", "0.0.0.0"), environment(NEXUM_TOKEN=TOKEN)
    database = f"database {tmp_path}/nexum.db"
    open_to_all = "WARNING Anyone who reaches 0.0.0.0 can read every result and run your tools."
    plain = "to and from 0.0.0.0 is not encrypted: use --tls-cert and --tls-key."
    async with NexumDev(tmp_path, *everywhere, "--insecure") as nexum:
        await nexum.says(f"WARNING What travels {plain}")
        assert f"{database}\n" in nexum.output
        assert open_to_all in nexum.output
        async with Client(f"127.0.0.1:{nexum.port}") as client:
            await client.check()
    async with NexumDev(tmp_path, *everywhere, env=token) as nexum:
        await nexum.says(f"WARNING The token and all else that travels {plain}")
        assert f"{database} · token demanded\n" in nexum.output
        assert open_to_all not in nexum.output
    async with NexumDev(tmp_path, *everywhere, *pem.options, env=token) as nexum:
        async with Client(f"127.0.0.1:{nexum.port}", token=TOKEN, tls_ca=pem.certificate) as client:
            await client.check()
        assert nexum.output == f"Nexum is ready at 0.0.0.0:{nexum.port} · {database} · TLS · token demanded\n"
    async with NexumDev(tmp_path, env=token) as nexum:
        assert nexum.output == f"Nexum is ready at localhost:{nexum.port} · {database} · token demanded\n"


# TLS


BAD_PAIRS = {
    "no key": (("--tls-cert", "{certificate}"), "TLS needs both --tls-cert and --tls-key."),
    "no certificate": (("--tls-key", "{key}"), "TLS needs both --tls-cert and --tls-key."),
    "another's key": (
        ("--tls-cert", "{certificate}", "--tls-key", "{other_key}"),
        "Cannot serve TLS: the key in {other_key} is not that of the certificate in {certificate}.",
    ),
    "no pem": (
        ("--tls-cert", "{junk}", "--tls-key", "{key}"),
        "Cannot serve TLS: {junk} and {key} are not both in PEM, the key without a passphrase.",
    ),
    "no pem key": (
        ("--tls-cert", "{certificate}", "--tls-key", "{junk}"),
        "Cannot serve TLS: {certificate} and {junk} are not both in PEM",
    ),
    "a locked key": (("--tls-cert", "{certificate}", "--tls-key", "{locked}"), "the key without a passphrase"),
    "empty": (("--tls-cert", "{empty}", "--tls-key", "{empty}"), "{empty} and {empty} are not both in PEM"),
    "missing": (("--tls-cert", "{missing}", "--tls-key", "{key}"), "Cannot read {missing}: No such file or directory."),
    "a folder": (("--tls-cert", "{certificate}", "--tls-key", "{folder}"), "Cannot read {folder}: Is a directory."),
}


@pytest.mark.parametrize(("options", "sentence"), BAD_PAIRS.values(), ids=BAD_PAIRS)
async def test_a_certificate_that_cannot_be_served_is_told_in_a_sentence(
    tmp_path: Path, pem: Pem, other_pem: Pem, options: tuple[str, ...], sentence: str
) -> None:
    names = {name: str(tmp_path / name) for name in ("junk", "empty", "missing", "locked", "folder")}
    names |= {"certificate": str(pem.certificate), "key": str(pem.key), "other_key": str(other_pem.key)}
    Path(names["junk"]).write_bytes(b"\x00\xff not a certificate")
    Path(names["empty"]).touch()
    Path(names["folder"]).mkdir()
    lock = ("-in", pem.key, "-aes256", "-passout", "pass:secret", "-out", names["locked"])
    assert (await run("openssl", "pkey", *lock)).code == 0
    filled = [word.format(**names) for word in options]
    finished = await run(NEXUM, "dev", "--port", "0", "--db", tmp_path / "n.db", *filled)
    in_words(finished, sentence.format(**names))
    assert not (tmp_path / "n.db").exists()


@pytest.mark.parametrize("file", ["missing", "junk", "empty", "folder", "key"])
async def test_a_file_without_certificates_to_trust_is_told_in_a_sentence(tmp_path: Path, pem: Pem, file: str) -> None:
    (tmp_path / "junk").write_bytes(b"\x00\xff not a certificate")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    path = pem.key if file == "key" else tmp_path / file
    why = {"missing": "No such file or directory", "folder": "Is a directory"}.get(file)
    sentence = (
        f"Cannot read the certificates in {path} (NEXUM_TLS_CA): {why}."
        if why
        else f"{path} (NEXUM_TLS_CA) holds no certificate in PEM."
    )
    trusting = environment(NEXUM_TLS_CA=str(path), NEXUM_ADDRESS="localhost:1")
    in_words(await run(NEXUM, "ps", env=trusting), sentence)
    for script in ("demo.py", "worker.py"):
        finished = await run(sys.executable, ROOT / script, "--offline", env=trusting, cwd=tmp_path)
        assert finished.code == 1
        assert sentence in " ".join((finished.stdout + finished.stderr).split())
        assert "Traceback" not in finished.stdout + finished.stderr


MISMATCHES = {
    "plaintext to a TLS server": (
        ("local", None),
        "The server at {address} hangs up. If it serves TLS (nexum dev --tls-cert), set NEXUM_TLS_CA to its",
    ),
    "TLS to a plaintext server": (
        (None, "local"),
        "The server at {address} does not answer in TLS. Unset NEXUM_TLS_CA, or start it with",
    ),
    "a certificate for another name": (
        ("other", "other"),
        "The certificate of the server at {address} is for another name. Set NEXUM_ADDRESS to a name that is in it",
    ),
    "a certificate that is not trusted": (
        ("local", "other"),
        "The certificate of the server at {address} is not trusted (self signed certificate). Set NEXUM_TLS_CA to its",
    ),
}


@pytest.mark.parametrize(("sides", "sentence"), MISMATCHES.values(), ids=MISMATCHES)
async def test_a_client_and_a_server_that_do_not_agree_on_tls_say_what_to_set(
    tmp_path: Path, pem: Pem, other_pem: Pem, sides: tuple[str | None, str | None], sentence: str
) -> None:
    server, trusted = ({"local": pem, "other": other_pem, None: None}[side] for side in sides)
    async with NexumDev(tmp_path, *(server.options if server else ())) as nexum:
        said = sentence.format(address=nexum.address)
        env = environment(NEXUM_ADDRESS=nexum.address) | ({"NEXUM_TLS_CA": str(trusted.certificate)} if trusted else {})
        in_words(await run(NEXUM, "ps", env=env), said, NO_SERVER)
        demo = await run(sys.executable, ROOT / "demo.py", "--offline", env=env, cwd=tmp_path)
        assert demo.code == 1
        assert said in " ".join(demo.stdout.split())
        assert demo.stderr == "", "gRPC's own words on it"
        worker = Process([sys.executable, ROOT / "worker.py", "--offline"], tmp_path / "worker.log", env=env)
        worker.start()
        await worker.says("Waiting for it")
        assert said in worker.output
        assert nexum.output.count("\n") == 1, "nor does the server speak of it"


async def test_a_key_is_no_part_of_what_a_configuration_shows(pem: Pem, tmp_path: Path) -> None:
    config = ServerConfig(tmp_path / "n.db", token=TOKEN, tls=Tls.read(pem.certificate, pem.key))
    assert TOKEN not in repr(config)
    assert "PRIVATE KEY" not in repr(config)


# The scripts, as processes


def person(nexum: NexumDev, **changes: str) -> dict[str, str]:
    clean = {name: value for name, value in environment().items() if name not in KEYS}
    return clean | {"NEXUM_ADDRESS": nexum.address, "OFFLINE_WEB_DELAY_MS": "0", "SESSION_ID": "s1"} | changes


def script(name: str, *words: str) -> list[str | Path]:
    return [sys.executable, ROOT / name, *words]


def command_lines() -> str:
    """What any user of this machine can see of its processes."""
    seen = subprocess.run(["ps", "-A", "-ww", "-o", "args"], check=True, capture_output=True, text=True)
    return seen.stdout


async def test_agent_and_worker_reach_a_server_that_demands_a_token_over_tls_and_no_word_tells_it(
    tmp_path: Path, pem: Pem
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    async with NexumDev(tmp_path, *pem.options, "--token-file", str(tmp_path / "token")) as nexum:
        env = person(nexum, NEXUM_TOKEN=TOKEN, NEXUM_TLS_CA=str(pem.certificate))
        worker = Process(script("worker.py", "--offline"), tmp_path / "worker.log", env=env)
        worker.start()
        await worker.says("Connected to Nexum")
        first = await run(*script("demo.py", "--offline"), env=env, cwd=tmp_path)
        second = await run(*script("demo.py", "--offline", "--worker"), env=env, cwd=tmp_path)
        assert (first.code, second.code) == (0, 0), (first, second)
        assert (first.stdout.count("stored ✓"), second.stdout.count("cached ⚡")) == (8, 8)  # 3 turns and 5 calls
        listed = await run(NEXUM, "ps", env=env)
        shown = await run(NEXUM, "show", "s1", "--json", env=env)
        assert listed.stdout.count("COMPLETED") == shown.stdout.count('"status":"COMPLETED"') == 9
        assert TOKEN not in command_lines()
        nexum.terminate()
        assert await nexum.ended() == 0
        told = [each.stdout + each.stderr for each in (first, second, listed, shown)]
        for text in (*told, worker.output, nexum.output):
            assert TOKEN not in text
        for file in tmp_path.rglob("*"):
            assert file.name == "token" or file.is_dir() or TOKEN.encode() not in file.read_bytes(), file


@pytest.mark.parametrize("token", [OTHER, ""], ids=["wrong", "missing"])
async def test_without_the_right_token_every_command_and_script_ends_at_once_and_says_what_to_do(
    tmp_path: Path, token: str
) -> None:
    said = f"{DEMANDS} {'another one' if token else 'none'}: {TELL}"
    async with NexumDev(tmp_path, env=environment(NEXUM_TOKEN=TOKEN)) as nexum:
        env = person(nexum, NEXUM_TOKEN=token)
        for words in (
            ("ps",),
            ("show", "s1"),
            ("resolve", "s1", "--retry"),
            ("prune", "--older-than", "0s"),
        ):
            in_words(await run(NEXUM, *words, env=env), said)
        for arguments in (("demo.py", "--offline"), ("demo.py", "--offline", "--worker"), ("worker.py", "--offline")):
            finished = await run(*script(*arguments), env=env, cwd=tmp_path)
            assert finished.code == 1, finished
            assert said in " ".join((finished.stdout + finished.stderr).split())
            assert "Traceback" not in finished.stdout + finished.stderr


async def test_a_worker_ends_when_its_server_comes_back_with_another_token(tmp_path: Path) -> None:
    async with NexumDev(tmp_path, env=environment(NEXUM_TOKEN=TOKEN)) as nexum:
        env = person(nexum, NEXUM_TOKEN=TOKEN)
        worker = Process(script("worker.py", "--offline"), tmp_path / "worker.log", env=env)
        worker.start()
        await worker.says("Connected to Nexum")
        nexum.kill()
        async with NexumDev(tmp_path, port=nexum.port, env=environment(NEXUM_TOKEN=OTHER)):
            assert await worker.ended() == 1
    assert worker.output.endswith(f"{DEMANDS} another one: {TELL}\n")


async def test_the_benchmark_is_not_disturbed_by_the_settings_of_a_server_elsewhere(tmp_path: Path, pem: Pem) -> None:
    env = environment(NEXUM_TOKEN=TOKEN, NEXUM_TLS_CA=str(pem.certificate), OFFLINE_WEB_DELAY_MS="0")
    finished = await run(
        *script("benchmark.py", "--rounds", "1", "--tool-ms", "1", "--only", "agent"), env=env, cwd=tmp_path
    )
    assert finished.code == 0, finished
    assert "Run again it executed 0 tools and asked 0 turns." in " ".join(finished.stdout.split())


async def test_a_client_without_settings_of_its_own_goes_by_the_environment(
    guarded: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUM_TOKEN", TOKEN)
    async with Client(f"localhost:{guarded.port}") as client:
        await client.check()
    async with Client(f"localhost:{guarded.port}", token=OTHER) as client:
        with pytest.raises(Unauthenticated):
            await client.check()


async def test_a_stock_client_is_refused_with_the_sentence(guarded: Server) -> None:
    async with grpc.aio.insecure_channel(f"localhost:{guarded.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await pb_grpc.NexumServiceStub(channel).ListExecutions(pb.ListRequest())
    assert refused.value.details() == f"{DEMANDS} none: {TELL}"


async def test_a_server_that_dies_in_mid_call_is_not_taken_for_one_that_serves_tls(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        await client.register(tool_call_workflow())
        waiting = asyncio.create_task(client.execute(tool_call_workflow(), {}, execution_id="e", timeout=1.0))
        await eventually(client.executions, "the execution")
        nexum.kill()
        with pytest.raises(ServerUnavailable, match=r"^No Nexum server answers at"):
            await waiting


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1:1", 0), ("[::1]:1", 0), ("nexum.example:1", 1)])
async def test_a_token_that_goes_to_another_machine_without_tls_is_said_once(
    address: str, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    connection._warn_of_open_token.cache_clear()
    for _ in range(2):
        await Client(address, token="a" * 20).close()
    assert [each.message.partition(", for")[0] for each in caplog.records] == [
        f"The token goes to {address} without TLS"
    ] * said
