"""Runs openai-agents' own tests plain and inside durable sessions, and tells where a session makes a difference.

    python tests/sdk_suite/run.py                                  all of them, about twenty minutes
    python tests/sdk_suite/run.py --only tests/test_run.py ...     some files of the SDK
    python tests/sdk_suite/run.py --sample                         those that `make test` runs, under a minute

The tests come from the source distribution of the version that is installed, by pip, and are kept in build/sdk-suite/.
Ends with 1 if a test fails that passes plain, if a call of `Runner` gives something else, or if its replay does, asks a
model or executes a tool; but for what expected.toml lists, with reasons. What was seen of every test is left in
build/sdk-suite/whole/, or in only/ or sample/ beside it.
"""

import argparse
import ast
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = (ROOT if os.access(ROOT, os.W_OK) else Path(tempfile.gettempdir()) / "nexum") / "build" / "sdk-suite"
SHOWN = 40  # findings that are printed
LOOK_SECONDS = 0.02  # between two looks whether the server is ready

# Where the SDK's tests call `Runner` most for the time that they take, of every kind of run: a fifth of all calls in a
# twentieth of the time, when it was measured.
SAMPLE = [
    "tests/mcp/test_mcp_approval.py",
    "tests/mcp/test_mcp_resume_binding.py",
    "tests/test_agent_as_tool.py",
    "tests/test_agent_hooks.py",
    "tests/test_agent_runner.py",
    "tests/test_agent_runner_streamed.py",
    "tests/test_agent_runner_sync.py",
    "tests/test_guardrails.py",
    "tests/test_hitl_error_scenarios.py",
    "tests/test_local_shell_tool.py",
    "tests/test_max_turns.py",
    "tests/test_programmatic_tool_calling.py",
    "tests/test_resume_tool_use_behavior.py",
    "tests/test_run_hooks.py",
]

# Tests of the SDK's own repository: its scripts and workflows, which are not in the source distribution.
LEFT_OUT = [
    "tests/docs",
    "tests/sandbox/test_docker_removal_worker.py",  # leaves os.stat replaced, which ends pytest
    "tests/test_asyncio_stability_command.py",
    "tests/test_change_detection.py",
    "tests/test_code_change_verification_policy.py",
    "tests/test_code_change_verification_runner.py",
    "tests/test_integration_runner.py",
    "tests/test_release_provenance.py",
    "tests/test_repository_workflow_interfaces.py",
    "tests/test_run_serial_tests.py",
]

NOT_OURS = re.compile(r"(?i).*(_API_KEY|_TOKEN|_PROXY)|NEXUM_.*|OTEL_.*|OPENAI_.*|PYTEST_.*")  # of the environment
REFUSED = re.compile(  # what a durable session says of what cannot be recorded, before that does anything
    r"DurableCallError: (?:Agent .+? cannot run in a durable session: it is )?([Aa]n? \w+)"
    r"(?:,| cannot (?:run|be used) in a durable session)"
)
NEVER_RUN = {
    "calls": 0,
    "seconds": 0.0,
    "unwatched": False,
    "differ": [],
    "replayed": {"alike": 0, "differ": [], "did": [], "not_replayed": []},
}

Test = dict[str, Any]


@dataclass
class Verdict:
    """What is found, by what it is about: fails, differs, replay."""

    unexpected: list[str] = field(default_factory=list)
    expected: Counter[str] = field(default_factory=Counter)  # how many tests, by reason
    met: set[tuple[str, str]] = field(default_factory=set)  # the entries of the list that were needed


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="+", metavar="FILE", help="files of the SDK, as tests/test_run.py")
    arguments.add_argument("--sample", action="store_true", help="the files that make test runs")
    arguments.add_argument("--workers", type=int, default=2, help="pytest processes at a time; 2 unless told otherwise")
    given = arguments.parse_args()
    if find_spec("nexum_agents") is None:
        sys.exit("There is no nexum_agents to test. Install it: pip install -e .")
    files = SAMPLE if given.sample else given.only
    source = sdk_source(version("openai-agents"))
    environment = suite_environment(source, [] if given.sample else [other_packages()])
    with report_folder("sample" if given.sample else "only" if given.only else "whole") as report:
        with nexum_dev(report) as address:
            run_suite(
                source, files, environment | {"NEXUM_ADDRESS": address}, 0 if given.sample else given.workers, report
            )
        tests = seen_tests(report)
        alone = passes_without_us(source, tests, environment, report)
        return tell(tests, judge(tests, alone), report, whole=files is None)


@contextlib.contextmanager
def report_folder(name: str) -> Iterator[Path]:
    """An empty folder that is ours alone until we end; another run of the same kind waits for its turn."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(BUILD / name, ignore_errors=True)
        (BUILD / name).mkdir()
        yield BUILD / name


def sdk_source(number: str) -> Path:
    """The folder of openai-agents' source distribution, downloaded once. Ends in one sentence if it cannot be had."""
    folder = BUILD / f"openai_agents-{number}"
    if folder.exists():
        return folder
    BUILD.mkdir(parents=True, exist_ok=True)
    command = ["download", "--quiet", "--no-binary", "openai-agents", "--no-deps", f"openai-agents=={number}"]
    pip(
        [*command, "--dest", str(BUILD)],
        f"The tests of openai-agents {number} are in its source distribution, which pip could not download",
    )
    with tarfile.open(folder.with_name(f"{folder.name}.tar.gz")) as archive:
        archive.extractall(BUILD / "unpacking", filter="data")
    (BUILD / "unpacking" / folder.name).rename(folder)
    return folder


def other_packages() -> Path:
    """A folder with what the SDK's tests import and this project does not need, installed once."""
    folder, wanted = BUILD / "packages", HERE / "packages.txt"
    done = folder / "packages.txt"
    if not done.exists() or done.read_text() != wanted.read_text():
        shutil.rmtree(folder, ignore_errors=True)
        command = ["install", "--quiet", "--no-deps", "--target", str(folder), "--requirement", str(wanted)]
        pip(command, "pip could not install what the SDK's tests need")
        shutil.copy(wanted, done)
    return folder


def pip(arguments: list[str], failure: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], capture_output=True, text=True
    )
    if ended.returncode != 0:
        said = (ended.stderr.strip() or ended.stdout.strip() or "it said nothing").splitlines()[-1]
        sys.exit(f"{failure}: {said}")


def suite_environment(source: Path, more: list[Path]) -> dict[str, str]:
    """No key and no setting of a developer's; the SDK's code from the source, where its tests look for it: in src/."""
    own = {name: value for name, value in os.environ.items() if not NOT_OURS.fullmatch(name)}
    paths = [str(path) for path in (source / "src", HERE, *more)] + [own.get("PYTHONPATH", "")]
    return own | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextlib.contextmanager
def nexum_dev(folder: Path) -> Iterator[str]:
    """The address of a server of our own, with a new database in `folder`."""
    command = [str(Path(sys.executable).with_name("nexum")), "dev", "--port", "0", "--db", str(folder / "nexum.db")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEXUM_")}
    environment |= {"NEXUM_EXIT_WITH_PARENT": "1", "PYTHONUNBUFFERED": "1"}
    said = folder / "nexum.log"
    with said.open("w") as log:
        # In a session of its own, out of reach of tests that signal their process group.
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        while not (ready := re.search(r"Nexum is ready at (\S+)", said.read_text())):
            if server.poll() is not None:
                sys.exit(f"nexum dev did not start; {said} says why.")
            time.sleep(LOOK_SECONDS)
        yield ready[1]
        if server.poll() is not None:
            sys.exit(f"nexum dev ended with {server.returncode} while the tests ran; {said} says why.")
    finally:
        server.kill()
        server.wait()


def run_suite(source: Path, files: list[str] | None, environment: dict[str, str], workers: int, report: Path) -> None:
    """Run tests with our plugin, which writes what it saw to `report`. How pytest ends is not what is asked."""
    side_by_side = ["-n", str(workers)] if workers > 1 else []
    ignored = [f"--ignore={path}" for path in LEFT_OUT]
    pytest = ["-m", "pytest", "-q", "--tb=native", "-p", "no:cacheprovider", "-p", "durable_plugin"]
    command = [
        sys.executable,
        *pytest,
        "--continue-on-collection-errors",
        *side_by_side,
        *ignored,
        *(files or ["tests"]),
    ]
    with (report / "pytest.log").open("w") as log:
        wanted = environment | {"SDK_SUITE_REPORT": str(report)}
        subprocess.run(command, cwd=source, env=wanted, stdout=log, stderr=subprocess.STDOUT)


def seen_tests(report: Path) -> list[Test]:
    """What the plugin wrote of each test. One that was to run and did not, as its process died, counts as failed."""
    lines = [json.loads(line) for file in sorted(report.glob("*.jsonl")) for line in file.read_text().splitlines()]
    tests = list({test["test"]: test for test in lines}.values())  # each process tells of a file it cannot import
    collected = report / "collected.txt"
    if not tests or not collected.exists():
        sys.exit(f"pytest ran no test; {report / 'pytest.log'} says why.")
    names = {ast.literal_eval(line) for line in collected.read_text().splitlines()} - {test["test"] for test in tests}
    died = {"plain": "passed", "durable": "failed", "message": "It was not run to its end: see pytest.log."}
    return tests + [NEVER_RUN | died | {"test": name} for name in sorted(names)]


def passes_without_us(source: Path, tests: list[Test], environment: dict[str, str], report: Path) -> set[str]:
    """Of the tests that fail plain, those that pass where our packages are not even imported."""
    failing = [test["test"] for test in tests if test["plain"] == "failed" and "::" in test["test"]]
    if not failing:
        return set()
    names = report / "failing-plain.txt"
    names.write_text("\n".join(failing))
    pytest = ["-m", "pytest", "-q", "--tb=no", "-rp", "-p", "no:cacheprovider", f"@{names}"]
    ended = subprocess.run(
        [sys.executable, *pytest],
        cwd=source,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return {line.removeprefix("PASSED ") for line in ended.stdout.splitlines() if line.startswith("PASSED ")}


def judge(tests: list[Test], alone: set[str]) -> Verdict:
    """Part what was found into what expected.toml has a reason for, and the rest."""
    listed = tomllib.loads((HERE / "expected.toml").read_text())
    verdict = Verdict()
    for test in tests:
        for what, lines in findings(test, alone).items():
            group = next((group for group in listed.get(what, []) if test["test"] in group["tests"]), None)
            if group is None and what == "fails" and (refused := REFUSED.search(test["message"])):
                verdict.expected[f"fails: Refused by name: {refused[1][0].lower()}{refused[1][1:]}."] += 1
            elif group is None:
                verdict.unexpected += [f"{what}  {test['test']}\n         {line}" for line in lines]
            else:
                verdict.expected[f"{what}: {group['reason']}"] += 1
                verdict.met.add((what, test["test"]))
    return verdict


def findings(test: Test, alone: set[str]) -> dict[str, list[str]]:
    """What is wrong with a test, by what it is about."""
    found: dict[str, list[str]] = {}
    if test["plain"] == "passed" and test["durable"] in ("failed", "skipped"):
        found["fails"] = [test["message"] or test["durable"]]
    if test["test"] in alone:
        found["fails"] = [f"It passes where nexum_agents is not imported. {test['message']}"]
    if test["differ"]:
        found["differs"] = test["differ"]
    if again := test["replayed"]["did"] + test["replayed"]["differ"]:
        found["replay"] = again
    return found


def tell(tests: list[Test], verdict: Verdict, report: Path, *, whole: bool) -> int:
    """Print the summary, and return the exit code."""
    outcomes = Counter((test["plain"], test["durable"]) for test in tests)
    passing = sum(count for (plain, _), count in outcomes.items() if plain == "passed")
    replays = [test["replayed"] for test in tests]
    print(f"openai-agents {version('openai-agents')}: {len(tests):,} of its own tests, {passing:,} of which pass plain")
    print(f"  inside a durable session {outcomes['passed', 'passed']:,} of them pass", end="")
    print(f", {outcomes['passed', 'failed'] + outcomes['passed', 'skipped']:,} do not", end="")
    print(f", {outcomes['passed', 'unrepeatable']:,} pass only the first time")
    print(f"  {sum(test['calls'] for test in tests):,} calls of Runner", end="")
    print(f", {sum(len(test['differ']) > 0 for test in tests):,} tests in which one differs from plain")
    not_replayed = Counter(why for replay in replays for why in replay["not_replayed"])
    print(f"  {sum(replay['alike'] for replay in replays):,} replayed alike", end="")
    print(f", {sum(len(replay['differ']) > 0 for replay in replays):,} tests in which a replay differs", end="")
    print(f", {sum(len(replay['did']) > 0 for replay in replays):,} in which one asks or executes")
    print(f"  {not_replayed.total():,} calls cannot be replayed:")
    for why, count in not_replayed.most_common():
        print(f"    {count:,} {why}")
    print(f"  {sum(test['unwatched'] for test in tests):,} tests pass only when they are not watched")
    print(f"Expected, as expected.toml says ({verdict.expected.total():,}):")
    for reason, count in verdict.expected.most_common():
        print(f"  {count:,} {reason}")
    listed = tomllib.loads((HERE / "expected.toml").read_text())
    on_the_list = {(what, test) for what, groups in listed.items() for group in groups for test in group["tests"]}
    if whole and (stale := sorted(on_the_list - verdict.met)):
        print(f"On that list without need ({len(stale):,}):")
        print("\n".join(f"  {what}  {test}" for what, test in stale[:SHOWN]))
    if not verdict.unexpected:
        print("Nothing else: a durable session makes no difference.")
        return 0
    (report / "unexpected.txt").write_text("\n".join(verdict.unexpected) + "\n")
    print(f"Not expected ({len(verdict.unexpected):,}; all of them in {report / 'unexpected.txt'}):")
    print("\n".join(f"  {line}" for line in verdict.unexpected[:SHOWN]))
    return 1


if __name__ == "__main__":
    sys.exit(main())
