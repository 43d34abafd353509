"""onnxruntime on one LSTM node a layer, its thread pool spinning as it does by default. Inference only."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

from cases import Problem
from rivals import Missing, Runner, named
from rivals.onnx_model import feeds, model


def set_up(problem: Problem, mode: str, threads: int) -> Runner:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    content = model(problem).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own class of errors is not public
        raise Missing(f"{str(error).splitlines()[0][:150]}") from None
    arrays = feeds(problem)

    def step() -> Any:
        _y, arrays["h0"], arrays["c0"] = results = session.run(None, arrays)
        return results

    def read(results: Any) -> dict[str, np.ndarray]:
        return named(*results)

    return Runner(step if mode == "step" else lambda: session.run(None, arrays), read)
