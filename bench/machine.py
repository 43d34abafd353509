"""What a report says about where it was made: machine, commit, versions, time of import. Writes reports."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fastlstm
from rivals import versions

HERE = Path(__file__).resolve().parent


def facts() -> dict[str, Any]:
    return {
        **commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions(), "fastlstm": fastlstm.__version__},
        "build": fastlstm.build_config(),
    }


def machine() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    return {"cpu": (names or [platform.processor()])[0], "cores": cores, "system": platform.platform(), "load": load}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def commit() -> dict[str, Any]:
    """The commit of the checkout, and whether it was changed. (The build may be an older one.)

    Outside of one, it is what the environment's COMMIT says, or None.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--verify", "HEAD")
    changed = bool(git("status", "--porcelain")) if head else None
    return {"commit": head or os.environ.get("COMMIT"), "changed": changed}


def import_times(runs: int) -> dict[str, float]:
    """Seconds that `import fastlstm` takes after `import numpy`, and NumPy's own, in fresh interpreters."""
    code = "import time as t; a = t.perf_counter(); import numpy; b = t.perf_counter(); import fastlstm"
    code += "; print(b - a, t.perf_counter() - b)"
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, capture_output=True)  # reads the files into the page cache
    printed = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(runs)]
    times = np.array([[float(word) for word in line.split()] for line in printed])
    q1, median, q3 = np.percentile(times[:, 1], [25, 50, 75]).tolist()
    return {"numpy": float(np.median(times[:, 0])), "median": median, "q1": q1, "q3": q3, "runs": runs}


def save(path: Path, report: dict[str, Any]) -> None:
    """Replaced at once, so that an interrupted run leaves all that it has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(report, indent=1) + "\n")
    draft.replace(path)
