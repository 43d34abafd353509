"""What the machine can do at best, measured, and how near to it a case can come. Knows no rival.

The model: a case needs at least the time of its multiply-adds at the peak rate, and at least the time of reading its
weights: those for h once in each step, since a step has to wait for the one before, those for x once in all. Training
reads both again on the way back, and then writes their gradients once. The larger of the two times is the case's limit.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
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
    arithmetic = case["flops"][mode] / rates[case["dtype"]]
    reading = sum(size / read_rate(rates, part) for size, part in traffic(case, mode))
    return (arithmetic, "FLOP") if arithmetic >= reading else (reading, "bytes")


def traffic(case: dict[str, Any], mode: str) -> Iterator[tuple[float, float]]:
    """The bytes that the model moves of each matrix, and the size of what they are read from again and again."""
    ways, written = (2, 1) if mode == "training" else (1, 0)
    item, steps = ITEM[case["dtype"]], case["T"]
    everything = item * sum(map(sum, case["weights"]))  # which single steps read again with each call
    for sizes in case["weights"]:
        for numbers, times in zip(sizes, (1, steps), strict=True):
            size = numbers * item
            yield (ways * times + written) * size, size if steps > 1 else everything


def intensity(case: dict[str, Any], mode: str) -> float:
    """FLOPs for each byte that the model moves: where the case stands on the roofline."""
    return case["flops"][mode] / sum(moved for moved, _ in traffic(case, mode))
