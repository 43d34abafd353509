"""What the benchmarks of whole programs share: times taken in turns, and files of results."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def on_one_core() -> None:
    """Run this process there, before a library is loaded that counts the cores."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = "1"


def fastest(calls: dict[str, Callable[[], Any]], seconds: float = 2.0) -> dict[str, float]:
    """The seconds of each call, in turns; of the core's time, so that other processes on the machine do not count."""
    best = dict.fromkeys(calls, float("inf"))
    end = time.process_time() + seconds * len(calls)
    while time.process_time() < end:
        for lane, call in calls.items():
            call()  # what the other left in the caches is gone
            start = time.process_time()
            call()
            best[lane] = min(best[lane], time.process_time() - start)
    return best


def write(name: str, seconds: Any, table: Callable[[Any, str], str]) -> None:
    """results/<name>.json, and beside it the table of (seconds, the processor's name), which is printed, too."""
    from machine import facts  # which loads the library, and that counts the cores

    about = facts()
    (RESULTS / f"{name}.json").write_text(json.dumps(about | {"seconds": seconds}, indent=1) + "\n")
    text = table(seconds, about["machine"]["cpu"])
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
