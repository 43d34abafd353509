"""LSTMClassifier's fit and predict beside the same model in Keras, on each of its backends.

    python bench/sklearn_programs.py

writes results/<name>.json and a table beside it. Each lane is a process of its own on one core, and the lanes take
turns. A figure is the fastest epoch, or the fastest prediction of all sequences, after one that compiles, in seconds of
the core's time: what all threads of the process use, so that other processes on the machine do not count.
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

from programs import on_one_core, write

HIDDEN, BATCH, EPOCHS, PREDICTIONS = 128, 32, 5, 3
LANES = ("fastlstm", "tensorflow", "torch", "jax")  # the others are Keras's backends
CASES = ("digits: T=8, I=8", "synthetic: T=100, I=64")


def data(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Sequences `[N,T,I]` in float32 and their classes `[N]`, ten of them."""
    if case.startswith("digits"):
        from sklearn.datasets import load_digits

        digits = load_digits()
        return (digits.images / 16).astype(np.float32), digits.target
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 640)
    return rng.standard_normal((640, 100, 64), np.float32) + 0.1 * y[:, None, None].astype(np.float32), y


def fit_ours(x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    from fastlstm.sklearn import LSTMClassifier

    classifier = LSTMClassifier(HIDDEN, batch_size=BATCH, learning_rate=1e-3, random_state=0)
    return lambda: classifier.partial_fit(x, y), lambda: classifier.predict_proba(x)


def fit_keras(x: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input(x.shape[1:]), keras.layers.LSTM(HIDDEN), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3, clipnorm=None, global_clipnorm=1.0),
        loss="sparse_categorical_crossentropy",
    )
    return lambda: model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0), lambda: model.predict(
        x, batch_size=1024, verbose=0
    )


def fastest(run: Any, times: int) -> float:
    run()  # compiles
    seconds = []
    for _ in range(times):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def work(lane: str, case: str) -> dict[str, float]:
    """One lane's figures of one case, in this process."""
    on_one_core()
    x, y = data(case)
    epoch, prediction = (fit_ours if lane == "fastlstm" else fit_keras)(x, y)
    found = {"epoch": fastest(epoch, EPOCHS), "predict": fastest(prediction, PREDICTIONS)}
    return found | {"accuracy": float(np.mean(prediction().argmax(axis=1) == y))}


def figures(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    best: dict[str, dict[str, dict[str, float]]] = {case: {} for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            for lane in LANES:
                environment = os.environ | {"KERAS_BACKEND": lane, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
                command = [sys.executable, __file__, "--lane", lane, "--case", case]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                before = best[case].get(lane, found)
                best[case][lane] = found | {name: min(found[name], before[name]) for name in ("epoch", "predict")}
                print(case, lane, found, flush=True)
    return best


def table(best: dict[str, dict[str, dict[str, float]]], cpu: str) -> str:
    lines = [
        "# LSTMClassifier beside Keras",
        "",
        f"`bench/sklearn_programs.py`: H = {HIDDEN}, B = {BATCH}, float32, one core of {cpu}.",
        "Milliseconds of the core's time, the fastest of several; in brackets, how many times ours.",
        "",
        "| | " + " | ".join(LANES[:1] + tuple(f"Keras on {lane}" for lane in LANES[1:])) + " |",
        "|---|" + "---|" * len(LANES),
    ]
    for case, lanes in best.items():
        for what in ("epoch", "predict"):
            ours = lanes["fastlstm"][what]
            cells = [f"{lanes[lane][what] * 1e3:.0f} ({lanes[lane][what] / ours:.1f})" for lane in LANES[1:]]
            lines.append(f"| {case}: {what} | {ours * 1e3:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lane", choices=LANES)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="sklearn")
    arguments = parser.parse_args()
    if arguments.lane:
        print(json.dumps(work(arguments.lane, arguments.case)))
        return
    write(arguments.name, figures(arguments.rounds), table)


if __name__ == "__main__":
    main()
