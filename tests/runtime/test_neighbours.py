"""Who is let in on loopback: this server's own user and root, where the system tells whose a connection is."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import NexumDev, run
from test_wire import ECHO

from nexum_runtime import Client, Unauthenticated
from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.server.rpc import neighbours

pytestmark = pytest.mark.skipif(not neighbours.can_tell(), reason="this system does not tell whose a connection is")

STRANGER = 65_534
ASKING = """
import os, sys, grpc
from nexum.proto import nexum_pb2 as pb, nexum_pb2_grpc as pb_grpc
os.setuid(int(sys.argv[2]))
with grpc.insecure_channel(sys.argv[1]) as channel:
    try:
        pb_grpc.NexumServiceStub(channel).ListExecutions(pb.ListRequest(), timeout=20)
        print("let in")
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""


def be_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the servers of this process take it for another user's."""

    def uid_of(theirs: neighbours.End, ours: neighbours.End) -> int | None:
        return None if neighbours._ask(theirs, ours) is None else STRANGER

    monkeypatch.setattr(neighbours, "uid_of", uid_of)


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Server]:
    server = Server(ServerConfig(folder / "nexum.db", port=0, **options))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.mark.parametrize("way", ["_ask", "_look"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_system_tells_whose_a_connection_is(way: str, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as listening,
        socket.create_connection(listening.getsockname()[:2]) as one,
    ):
        theirs, ours = one.getsockname()[:2], listening.getsockname()[:2]
        assert getattr(neighbours, way)(theirs, ours) == os.getuid()
        assert getattr(neighbours, way)((theirs[0], 1), ours) is None


@pytest.mark.parametrize("way", ["_ask", "_look"])
def test_also_when_it_was_made_by_a_socket_for_both_versions_of_ip(way: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one,
    ):
        one.connect((f"::ffff:{listening.getsockname()[0]}", listening.getsockname()[1]))
        theirs = ("127.0.0.1", one.getsockname()[1])
        assert getattr(neighbours, way)(theirs, listening.getsockname()) == os.getuid()


@pytest.mark.parametrize(
    ("peer", "end"),
    [("ipv4:127.0.0.1:4711", ("127.0.0.1", 4711)), ("ipv6:%5B::1%5D:4711", ("::1", 4711))],
)
def test_a_peer_is_read_as_grpc_spells_it(peer: str, end: tuple[str, int]) -> None:
    assert neighbours.end_of(peer) == end


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_own_user_is_let_in_and_another_is_refused_with_what_to_do(
    server: Server, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    async with Client(f"{host}:{server.port}") as client:
        assert await client.register(ECHO) == "NEW"
        be_another_user(monkeypatch)
        calls: list[Any] = [client.register(ECHO), client.journal("s/"), client.execute(ECHO, {}, execution_id="e")]
        for call in calls:
            with pytest.raises(Unauthenticated) as refusal:
                await call
            assert str(refusal.value) == (
                f"This Nexum server lets in its own user ({os.getuid()}) and root alone, and this connection is of "
                f"user {STRANGER}. Start it with --token-file, and set NEXUM_TOKEN, or let every user of its machine "
                "in with --any-local-user."
            )


@pytest.mark.parametrize("open_by", [{"any_local_user": True}, {"token": "a" * 20}, {"insecure": True}])
async def test_every_user_is_let_in_by_an_option_and_by_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_by: dict[str, Any]
) -> None:
    async with serving(tmp_path, **open_by) as server:
        be_another_user(monkeypatch)
        async with Client(f"127.0.0.1:{server.port}", token=open_by.get("token")) as client:
            assert await client.register(ECHO) == "NEW"


async def test_the_metrics_obey_the_same_rule_and_health_is_told_to_anyone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, metrics_port=0) as server:
        be_another_user(monkeypatch)
        for path, said in (("/metrics", b"HTTP/1.1 403 Forbidden"), ("/healthz", b"HTTP/1.1 200 OK")):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.metrics_port)
            writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            assert (await reader.read()).startswith(said)
            writer.close()


async def test_where_the_system_does_not_tell_everyone_is_let_in_and_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "uid_of", lambda theirs, ours: None)
    async with serving(tmp_path) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert not server.is_for_own_user
        assert await client.register(ECHO) == "NEW"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(
    ("options", "said"),
    [((), "PERMISSION_DENIED This Nexum server lets in its own"), (("--any-local-user",), "let in")],
)
async def test_another_user_of_this_machine_is_refused_unless_everyone_is_let_in(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    async with NexumDev(tmp_path, *options) as dev:
        assert ("every user of this machine is let in" in dev.output) == bool(options)
        told = await run(sys.executable, "-c", ASKING, dev.address, str(STRANGER))
        assert told.stdout.startswith(said), told.stderr
