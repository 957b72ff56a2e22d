"""What the tests start by a fork ends as it would otherwise, however many end at the same time."""

import signal
import sys
from pathlib import Path

from processes import Process


async def test_programs_that_end_at_the_same_time_are_each_told_of(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, sys; sys.exit(int(sys.argv[1]) + len(os.environ['TWO']))")
    env = {"TWO": "22"}
    processes = [
        Process([sys.executable, program, str(code)], tmp_path / f"{code}.log", env=env) for code in range(200)
    ]
    for number, process in enumerate(processes):
        process.start()
        if number % 3 == 0:
            process.kill()
    for code, process in enumerate(processes):
        assert await process.ended() in ((code + 2, -signal.SIGKILL) if code % 3 == 0 else (code + 2,))
