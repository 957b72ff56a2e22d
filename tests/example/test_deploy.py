"""What docs/deploy.md deploys: the files fit the command, the server, the pages and each other."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import postgres
import psycopg
import pytest
import yaml
from processes import environment
from psycopg import pq
from test_docs import PAGES, ROOT, parse_nexum

from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.server.store.postgres.place import place_of
from nexum_runtime.wire import DEFAULT_PORT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
KUBERNETES: dict[str, Any] = {
    each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
}
POD: dict[str, Any] = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SERVERS = {name: each for name, each in COMPOSE["services"].items() if name != "postgres"}
PAGE = PAGES["docs/deploy.md"]
(CREATED,) = re.findall(r"kubectl create secret generic nexum (.+?)\nkubectl", PAGE, re.DOTALL)


def option(command: list[str], name: str) -> str:
    (value,) = re.findall(rf"{name}[= ](\S+)", " ".join(command))
    return str(value)


def known_settings() -> set[str]:
    libpqs = {each.envvar.decode() for each in pq.Conninfo.get_defaults() if each.envvar}
    return libpqs | set(re.findall(r"(?m)^\| `(NEXUM_\w+)`", PAGES["docs/operating.md"]))


@pytest.mark.parametrize("command", [*[each["command"] for each in SERVERS.values()], CONTAINER["command"]])
def test_the_commands_are_those_of_nexum(command: list[str]) -> None:
    parse_nexum(command)
    assert option(command, "--host") == "0.0.0.0"  # of a container, loopback is its own


def test_each_setting_is_one_that_somebody_reads() -> None:
    given = {name for each in SERVERS.values() for name in each["environment"]} | {
        each["name"] for each in CONTAINER["env"]
    }
    assert given
    assert given <= known_settings()


def test_the_urls_of_the_databases_are_read_as_they_are_meant() -> None:
    (url,) = re.findall(r"database-url='(.+?)'", CREATED)
    assert "sslmode=verify-full" in str(place_of(url))
    for each in SERVERS.values():
        parts = psycopg.conninfo.conninfo_to_dict(place_of(each["environment"]["NEXUM_DATABASE_URL"]).conninfo)
        database = COMPOSE["services"]["postgres"]["environment"]
        assert (parts["user"], parts["dbname"]) == (database["POSTGRES_USER"], database["POSTGRES_DB"])
        assert parts["host"] in COMPOSE["services"]


def test_a_secret_has_to_be_given_and_the_page_says_how() -> None:
    asked = re.findall(r"\$\{(\w+)(:\?)?", (DEPLOY / "compose.yaml").read_text("utf-8"))
    assert all(is_demanded for _, is_demanded in asked)
    (written,) = re.findall(r"printf '(.+?)'", PAGE)
    assert {name for name, _ in asked} == set(written.replace("=%s", "").split(r"\n")) - {""}
    assert {each["valueFrom"]["secretKeyRef"]["key"] for each in CONTAINER["env"]} == set(
        re.findall(r"--from-literal=([\w-]+)=", CREATED)
    )
    assert {each["valueFrom"]["secretKeyRef"]["name"] for each in CONTAINER["env"]} == {"nexum"}
    (volume,) = POD["volumes"]
    assert f"kubectl create secret tls {volume['secret']['secretName']} " in PAGE
    (mount,) = CONTAINER["volumeMounts"]
    assert mount["name"] == volume["name"]
    for name, file in (("--tls-cert", "tls.crt"), ("--tls-key", "tls.key")):
        assert option(CONTAINER["command"], name) == f"{mount['mountPath']}/{file}"


def test_the_ports_are_those_where_the_servers_listen_and_the_page_names_them() -> None:
    ports = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert ports == {"grpc": DEFAULT_PORT, "metrics": int(option(CONTAINER["command"], "--metrics-port"))}
    (port,) = KUBERNETES["Service"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (DEFAULT_PORT, "grpc")
    assert f"`NEXUM_ADDRESS={KUBERNETES['Service']['metadata']['name']}:{port['port']}`" in PAGE
    published = [each.split(":") for server in SERVERS.values() for each in server["ports"]]
    assert {(where, inside) for where, _, inside in published} == {("127.0.0.1", str(DEFAULT_PORT))}
    assert "NEXUM_ADDRESS=" + ",".join(f"localhost:{outside}" for _, outside, _ in published) in PAGE


def test_what_kubernetes_selects_is_what_it_starts() -> None:
    spec = KUBERNETES["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    (spread,) = POD["topologySpreadConstraints"]
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    for each in (spec["selector"], KUBERNETES["PodDisruptionBudget"]["spec"]["selector"], spread["labelSelector"]):
        assert each == {"matchLabels": labels}
    assert spec["replicas"] >= 2
    assert POD["enableServiceLinks"] is False  # a Service that is called nexum would set NEXUM_PORT


async def answers(server: Server, path: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.metrics_port)
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


async def test_the_probes_ask_what_a_server_answers_without_a_token(tmp_path: Path) -> None:
    probes = {name: CONTAINER[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")}
    assert {each["port"] for each in probes.values()} == {"metrics"}
    assert {each["scheme"] for each in probes.values()} == {"HTTPS"}  # as it has --tls-cert
    server = Server(ServerConfig(tmp_path / "nexum.db", port=0, metrics_port=0, token="correct-horse-battery-staple"))
    await server.start()
    commands = [each["healthcheck"]["test"] for each in SERVERS.values()]
    assert {command[0] for command in commands} == {"CMD"}
    try:
        for each in probes.values():
            assert await answers(server, each["path"]) == 200
        assert await _checked(commands, server) == [0] * len(commands)
        server.engine.closing.set()
        assert await answers(server, probes["readinessProbe"]["path"]) == 503
        assert await answers(server, probes["livenessProbe"]["path"]) == 200
        assert await _checked(commands, server) == [1] * len(commands)
    finally:
        await server.stop()


async def _checked(commands: list[list[str]], server: Server) -> list[int]:
    """How the containers' own checks end, at this server's port."""
    ends = []
    for _, program, *arguments in commands:
        assert program == "python"
        port = option(SERVERS["one"]["command"], "--metrics-port")
        here = [each.replace(f":{port}/", f":{server.metrics_port}/") for each in arguments]
        process = await asyncio.create_subprocess_exec(sys.executable, *here, stderr=subprocess.DEVNULL)
        ends.append(await process.wait())
    return ends


def test_the_image_is_that_of_the_page_and_starts_a_server() -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert f"```dockerfile\n{text}```" in PAGES["docs/production.md"]
    (command,) = re.findall(r"(?m)^CMD (\[.+\])$", text)
    parse_nexum(json.loads(command))
    for each in SERVERS.values():
        assert (DEPLOY / each["build"]["context"]).samefile(ROOT)
        assert each["build"]["dockerfile"] == "deploy/Dockerfile"
        assert set(each["depends_on"]) <= COMPOSE["services"].keys()
    (volume,) = COMPOSE["services"]["postgres"]["volumes"]
    assert volume.split(":")[0] in COMPOSE["volumes"]
    assert "**/.env" in (ROOT / ".dockerignore").read_text().split()


def test_a_backup_of_postgresql_is_restored_by_the_commands_of_the_page(tmp_path: Path) -> None:
    """As far as there are PostgreSQL's own commands for it."""
    folder = postgres._programs()
    blocks = re.findall(r"```bash\n(.+?)```", PAGES["docs/postgres.md"].split("## Backup and restore")[1], re.DOTALL)
    if not all((folder / program).exists() for program in ("pg_dump", "pg_restore", "psql")):
        pytest.skip("the PostgreSQL that is here has no pg_dump")
    own = postgres.Postgres()
    try:
        asyncio.run(_opened(own.url))
        settings = environment(NEXUM_DATABASE_URL=own.url, PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
        with psycopg.connect(own.url, autocommit=True) as connection:
            for block, touched in zip(blocks, (7, 8), strict=True):
                connection.execute("UPDATE nexum.about SET touched = %s", (touched,))
                subprocess.run(["bash", "-ec", block], cwd=tmp_path, env=settings, check=True, capture_output=True)
            assert connection.execute("SELECT touched FROM nexum.about").fetchone() == (7,)
    finally:
        own.remove()
    assert shlex.split(blocks[0])[0] == "pg_dump"


async def _opened(url: str) -> None:
    server = Server(ServerConfig(url, port=0))
    await server.start()
    await server.stop()
