"""fastlstm.onnx.LSTM in onnx's ReferenceEvaluator, beside the evaluator's own LSTM and onnxruntime, one model in turns.

    python bench/onnx_programs.py

writes results/<name>.json and a table beside it. All runs on one core; a figure is the fastest of many calls. The three
agree before they are timed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from programs import fastest, on_one_core, write

CASES = {  # T, B, I, H
    "batch of rows": (100, 32, 64, 128),
    "one row": (100, 1, 64, 128),
    "one step of one row": (1, 1, 64, 64),
}
LANES = ("fastlstm", "onnx's own", "onnxruntime")


def runs(T: int, B: int, I: int, H: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """By lane, a run of the same model on the same x."""
    import onnx
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    import fastlstm
    import fastlstm.onnx

    path = folder / "model.onnx"
    fastlstm.LSTM(I, H, seed=0).to_onnx(path)
    model = onnx.load(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        "fastlstm": ReferenceEvaluator(model, new_ops=[fastlstm.onnx.LSTM]),
        "onnx's own": ReferenceEvaluator(model),
        "onnxruntime": onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]),
    }
    x, *states = (one.name for one in model.graph.input)
    feed = {x: np.random.default_rng(0).standard_normal((T, B, I), np.float32)}
    feed |= {name: np.zeros((1, B, H), np.float32) for name in states}
    made = {lane: (lambda session=session: session.run(None, feed)) for lane, session in sessions.items()}
    first = made["fastlstm"]()
    for lane in LANES[1:]:
        for one, other in zip(first, made[lane](), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=lane)
    return made


def table(found: dict[str, dict[str, float]], cpu: str) -> str:
    lines = [
        "# fastlstm.onnx in onnx's evaluator",
        "",
        f"`bench/onnx_programs.py`: a model of one LSTM in float32, on one core of {cpu}.",
        "Milliseconds of the core's time, the fastest of many calls; in brackets, how many times ours.",
        "",
        "| | " + " | ".join(LANES) + " |",
        "|---|" + "---|" * len(LANES),
    ]
    for case, seconds in found.items():
        sizes = ", ".join(f"{name}={size}" for name, size in zip("TBIH", CASES[case], strict=True))
        ours = seconds["fastlstm"]
        cells = [f"{seconds[lane] * 1e3:.3g} ({seconds[lane] / ours:.2f})" for lane in LANES[1:]]
        lines.append(f"| {case}: {sizes} | {ours * 1e3:.3g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="onnx")
    arguments = parser.parse_args()
    on_one_core()
    with tempfile.TemporaryDirectory() as folder:
        found = {case: fastest(runs(*sizes, Path(folder))) for case, sizes in CASES.items()}
    write(arguments.name, found, table)


if __name__ == "__main__":
    main()
