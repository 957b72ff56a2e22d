"""What the tests start by a fork ends as it would otherwise, however many end at the same time."""

import sys
from pathlib import Path

from processes import Process

AT_A_WORD = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.001)
sys.exit(int(sys.argv[2]))
"""


async def test_programs_that_end_at_the_same_time_are_each_told_of(tmp_path: Path) -> None:
    program, word = tmp_path / "program.py", tmp_path / "word"
    program.write_text(AT_A_WORD)
    processes = [
        Process([sys.executable, program, word, str(code)], tmp_path / f"{code}.log", env={}) for code in range(100)
    ]
    for process in processes:
        process.start()
    assert len({process.pid for process in processes}) == 100
    word.touch()
    assert [await process.ended() for process in processes] == list(range(100))
