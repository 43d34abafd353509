"""What the machine can do at best, measured, and how near to it a case can come. Knows no rival.

The model: a case needs at least the time of its multiply-adds at the peak rate, and at least the time in which each
step reads all weights of its layer once (forward; in training once more backward, and then their gradients are written
once). The larger of the two is its limit. README.md says what the model leaves out.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import numpy as np

from compile import compiled

LARGEST = 256  # MB that are read: more than any cache
ITEM = {"float32": 4, "float64": 8}


def measure(threads: list[int], largest: int = LARGEST) -> dict[str, Any]:
    """By number of threads: FLOP/s in float32 and float64, and bytes/s of reading working sets of several sizes."""
    try:
        program = compiled("ceilings.cpp", "-march=native", "-pthread")
    except RuntimeError as error:
        return {"missing": str(error)}
    return {str(n): json.loads(subprocess.check_output([str(program), str(n), str(largest)])) for n in threads}


def best(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The better figure of two measurements, each: a busy neighbour on the host makes them lower, nothing higher."""
    if "missing" in a:
        return a
    merged = {}
    for threads, rates in a.items():
        other = b[threads]
        read = [[size, max(x, y)] for (size, x), (_, y) in zip(rates["read"], other["read"], strict=True)]
        merged[threads] = {kind: max(rates[kind], other[kind]) for kind in ITEM} | {"read": read}
    return merged


def read_rate(rates: dict[str, Any], size: float) -> float:
    """Bytes a second from a working set of that size, between the sizes that were measured."""
    sizes, speeds = np.array(rates["read"]).T
    return float(np.interp(np.log2(max(size, 1)), np.log2(sizes), speeds))


def limit(case: dict[str, Any], mode: str, threads: int, ceilings: dict[str, Any]) -> tuple[float, str] | None:
    """The least seconds that a case of a report can take, and which of "FLOP" and "bytes" says so."""
    rates = ceilings.get(str(threads))
    if rates is None:
        return None
    training = mode == "training"
    arithmetic = case["flops"][mode] / rates[case["dtype"]]
    reading = 0.0
    for numbers in case["weights"]:
        size = numbers * ITEM[case["dtype"]]
        passes = 2 * case["T"] + 1 if training else case["T"]
        reading += passes * size / read_rate(rates, size)
    return (arithmetic, "FLOP") if arithmetic >= reading else (reading, "bytes")


def intensity(case: dict[str, Any], mode: str) -> float:
    """FLOPs for each byte of weights that the model reads: where the case stands on the roofline."""
    passes = 2 * case["T"] + 1 if mode == "training" else case["T"]
    return case["flops"][mode] / (passes * sum(case["weights"]) * ITEM[case["dtype"]])
