"""openvino on the same model as onnxruntime, set for latency. Inference only."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino

from cases import Problem
from rivals import Runner, named
from rivals.onnx_model import feeds, model


def set_up(problem: Problem, mode: str, threads: int) -> Runner:
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    # In float32 throughout: by default it would compute in bfloat16 where the CPU has it.
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    content = model(problem).SerializeToString()
    request = core.compile_model(core.read_model(content, b""), "CPU", settings).create_infer_request()
    for name, array in feeds(problem).items():
        request.set_tensor(name, openvino.Tensor(array))  # a copy
    names = ("y", "h_n", "c_n")

    def read(_: Any) -> dict[str, np.ndarray]:
        return named(*(request.get_tensor(name).data.copy() for name in names))

    def step() -> None:
        request.infer()
        for old, new in (("h0", "h_n"), ("c0", "c_n")):
            request.get_tensor(old).data[...] = request.get_tensor(new).data

    return Runner(step if mode == "step" else request.infer, read)
