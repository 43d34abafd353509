"""fit and predict of a Keras model with fastlstm.keras.LSTM, beside keras.layers.LSTM, on each backend.

    python bench/keras_programs.py

writes results/<name>.json and a table beside it. Each backend is a process of its own, on one core or on two, in which
three models take turns: with fastlstm's layer, with Keras's, and with one that does next to nothing, whose time is
Keras's own work. A figure is the fastest of several epochs, or predictions of all sequences, after one that compiles:
on one core in its time, on two by the clock, so that nothing else should run meanwhile. Before that, both layers
predict the same from the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from programs import write
from sklearn_programs import BATCH, CASES, HIDDEN, data

BACKENDS = ("tensorflow", "torch", "jax")
LAYERS = ("fastlstm", "keras", "nothing")
THREADS = (1, 2)
TURNS = 7


def model_of(layer: str, x: np.ndarray) -> Any:
    import keras

    import fastlstm.keras

    class Nothing(keras.layers.Layer):
        """The last step by a matrix, so that there are weights to update."""

        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(shape[-1], HIDDEN))

        def call(self, x: Any) -> Any:
            return keras.ops.matmul(x[:, -1], self.kernel)

    kinds = {"fastlstm": fastlstm.keras.LSTM, "keras": keras.layers.LSTM}
    keras.utils.set_random_seed(0)
    first = kinds[layer](HIDDEN) if layer in kinds else Nothing()
    model = keras.Sequential([keras.layers.Input(x.shape[1:]), first, keras.layers.Dense(10, activation="softmax")])
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam")
    return model


def work(case: str, threads: int) -> dict[str, dict[str, float]]:
    """Seconds of an epoch and of a prediction by layer, in this process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    x, y = data(case)
    models = {layer: model_of(layer, x) for layer in LAYERS}

    def predict(model: Any) -> Any:
        return model.predict(x, batch_size=BATCH, verbose=0)

    np.testing.assert_allclose(predict(models["fastlstm"]), predict(models["keras"]), atol=1e-5)
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, dict[str, list[float]]] = {layer: {"epoch": [], "predict": []} for layer in LAYERS}
    for _ in range(TURNS):
        for layer, model in models.items():
            for what, run in (
                ("epoch", lambda model=model: model.fit(x, y, batch_size=BATCH, verbose=0)),
                ("predict", lambda model=model: predict(model)),
            ):
                start = clock()
                run()
                seconds[layer][what].append(clock() - start)
    return {layer: {what: min(times[1:]) for what, times in found.items()} for layer, found in seconds.items()}


Figures = dict[str, dict[str, dict[str, dict[str, float]]]]  # by case, lane (backend and threads), layer, what


def figures(rounds: int) -> Figures:
    best: Figures = {case: {} for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            for backend in BACKENDS:
                for threads in THREADS:
                    own = {"KERAS_BACKEND": backend, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
                    command = [sys.executable, __file__, "--case", case, "--threads", str(threads)]
                    done = subprocess.run(command, env=os.environ | own, stdout=subprocess.PIPE, text=True, check=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    lane = f"{backend}, {threads} thread{'s' * (threads > 1)}"
                    before = best[case].get(lane, found)
                    best[case][lane] = {
                        layer: {what: min(seconds, before[layer][what]) for what, seconds in times.items()}
                        for layer, times in found.items()
                    }
                    print(case, lane, found, flush=True)
    return best


def table(best: Figures, cpu: str) -> str:
    lines = [
        "# fastlstm.keras.LSTM beside keras.layers.LSTM",
        "",
        f"`bench/keras_programs.py`: Sequential of LSTM({HIDDEN}) and Dense(10), B = {BATCH}, float32, on {cpu}.",
        "Milliseconds of an epoch or of a prediction of all sequences, on one thread in CPU time, on two by the clock.",
        "Without an LSTM it is Keras's own time: the gain of the layer is Keras's time over ours, both less that.",
        "",
        "| | fastlstm | Keras | no LSTM | gain | of the layer |",
        "|---|---|---|---|---|---|",
    ]
    for case, lanes in best.items():
        for lane, layers in lanes.items():
            for what in ("epoch", "predict"):
                ours, theirs, nothing = (layers[layer][what] * 1e3 for layer in LAYERS)
                layer = (theirs - nothing) / (ours - nothing)
                cells = f"{ours:.0f} | {theirs:.0f} | {nothing:.0f} | {theirs / ours:.2f} | {layer:.2f}"
                lines.append(f"| {case}; {lane}: {what} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--threads", type=int, choices=THREADS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="keras")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(work(arguments.case, arguments.threads)))
        return
    write(arguments.name, figures(arguments.rounds), table)


if __name__ == "__main__":
    main()
