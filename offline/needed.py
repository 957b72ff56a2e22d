"""What the example's scripts cannot run without, said in a sentence: each of them imports this before all else."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "activate"
DELAY_MS = "OFFLINE_WEB_DELAY_MS"  # what each answer of the offline web takes
ON_WINDOWS = "This needs Linux or macOS. On Windows run it inside of WSL, with the folder in WSL's own file system."


def check() -> None:
    """Raise SystemExit where something is missing."""
    if sys.platform == "win32":
        sys.exit(ON_WINDOWS)
    delay_ms = os.environ.get(DELAY_MS, "0")
    if not re.fullmatch("[0-9]{1,9}", delay_ms):
        sys.exit(f"{DELAY_MS} is {delay_ms[:40]!r}; it must be a whole number of milliseconds.")
    if find_spec("nexum_agents") and find_spec("agents"):
        return
    activate = f"  . {ENVIRONMENT} && pip install -r requirements.txt"
    if not ENVIRONMENT.exists():
        activate = "  python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt"
    sys.exit(f"The packages are not installed for {sys.executable}. Install them, and run this again:\n{activate}")
