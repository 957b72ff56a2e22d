"""The harness finds what it is to find, and the sample of the SDK's tests comes out as it should."""

import subprocess
import sys
from pathlib import Path

import compare
import run
from openai.types.responses import ResponseOutputText

HERE = Path(__file__).parent


def test_each_fault_of_the_suite_of_faults_is_found_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "test_faults.py").write_text((HERE / "suite_of_faults.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    environment = run.suite_environment(tmp_path, [])
    with run.nexum_dev(tmp_path) as address:
        run.run_suite(tmp_path, ["test_faults.py"], environment | {"NEXUM_ADDRESS": address}, 0, tmp_path)
    seen = {test["test"].partition("::test_")[2]: test for test in run.seen_tests(tmp_path)}
    found = {name: run.findings(test, set()) for name, test in seen.items()}
    assert {name: list(what) for name, what in found.items()} == {
        "sound": [],
        "sound_streamed": [],
        "sound_sync": [],
        "replay_asks": ["replay"],
        "replay_executes": ["replay"],
        "differs": ["differs"],
        "fails_in_a_session": ["fails"],
        "passes_only_once": [],
        "fails_plain": [],
    }
    assert [test["replayed"]["alike"] for name, test in seen.items() if name.startswith("sound")] == [1, 1, 1]
    assert "ScriptedModel.get_response" in str(found["replay_asks"])
    assert "FunctionTool weather" in str(found["replay_executes"])
    assert "result.new_items[2].raw_item" in str(found["differs"])
    assert seen["passes_only_once"]["durable"] == "unrepeatable"
    assert "not imported" in str(run.findings(seen["fails_plain"], {seen["fails_plain"]["test"]}))


def test_a_test_whose_process_died_counts_as_failed(tmp_path: Path) -> None:
    (tmp_path / "main.jsonl").write_text('{"test": "test_a.py::one"}\n')
    (tmp_path / "collected.txt").write_text("'test_a.py::one'\n'test_a.py::two'\n")
    *_, died = run.seen_tests(tmp_path)
    assert died["test"] == "test_a.py::two"
    assert "not run to its end" in str(run.findings(died, set())["fails"])


def test_what_is_random_by_nature_is_no_difference() -> None:
    one = {"id": "trace_8f14e45fceea167a5a36dedd4bea2543", "at": 1_753_000_000, "where": "<Agent at 0x7f1c2d3e4f50>"}
    two = {"id": "trace_c9f0f895fb98ab9159f51fd0297e236d", "at": 1_753_000_001, "where": "<Agent at 0x7f1c2d3e4f90>"}
    assert compare.difference(compare.plain(one), compare.plain(two)) is None


def test_the_first_difference_is_named_by_its_place() -> None:
    text = ResponseOutputText(annotations=[], text="a", type="output_text")
    one, two = (
        compare.plain([{"content": [text]}]),
        compare.plain([{"content": [text.model_copy(update={"text": "b"})]}]),
    )
    assert compare.difference(one, two, "items") == 'items[0].content[0].text: "a" and "b"'


def test_another_kind_of_object_with_the_same_parts_is_a_difference() -> None:
    text = ResponseOutputText(annotations=[], text="a", type="output_text")
    assert compare.difference(compare.plain(text), compare.plain(text.model_dump(exclude_none=True))) is not None


def test_the_sample_of_the_sdks_tests_comes_out_as_it_should() -> None:
    for _ in range(2):  # what a busy machine brings about once, it does not bring about again
        ended = subprocess.run([sys.executable, HERE / "run.py", "--sample"], capture_output=True, text=True)
        if ended.returncode == 0:
            break
    assert ended.returncode == 0, ended.stdout + ended.stderr
