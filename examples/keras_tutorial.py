"""Keras's tutorial of an LSTM on scikit-learn's digits, eight rows of eight pixels, with Keras's layer and with ours.

The program is `tutorial`: all that differs between the two is the line that imports LSTM. It prints the time of an
epoch and the accuracy of both on each backend, writes a plot, and exits with 1 if ours reads fewer digits.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

LAYERS = {"Keras": "keras.layers.LSTM", "fastlstm": "fastlstm.keras.LSTM"}
BACKENDS = ("tensorflow", "torch", "jax")


def tutorial(layer, epochs):
    """Seconds of each epoch, and the accuracy on digits that were not learnt from."""
    if layer == "Keras":
        from keras.layers import LSTM
    else:
        from fastlstm.keras import LSTM

    import keras
    from keras.layers import Dense
    from keras.models import Sequential
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    warnings.filterwarnings("ignore", message="Do not pass an `input_shape`")  # Keras 3's advice on the old way
    digits = load_digits()
    X, y = (digits.images / 16).astype("float32"), keras.utils.to_categorical(digits.target)
    X_test, y_test, X, y = X[1500:], y[1500:], X[:1500], y[:1500]
    timesteps, input_dim, output_dim = X.shape[1], X.shape[2], y.shape[1]

    model = Sequential([LSTM(128, input_shape=(timesteps, input_dim)), Dense(output_dim, activation="softmax")])
    model.compile(loss="categorical_crossentropy", optimizer="adam")
    clock = [time.perf_counter()]
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: clock.append(time.perf_counter()))
    model.fit(X, y, epochs=epochs, batch_size=32, verbose=0, callbacks=[note])
    read = model.predict(X_test, verbose=0).argmax(axis=1)
    seconds = [after - before for before, after in itertools.pairwise(clock)]
    return {"seconds": seconds, "accuracy": float((read == y_test.argmax(axis=1)).mean())}


def run(backend, layer, epochs):
    """`tutorial` in a process of its own, as a backend is chosen when Keras is imported."""
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--layer", layer, "--epochs", str(epochs)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def plot(found, backends, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for i, layer in enumerate(LAYERS):
        times = [1e3 * min(found[backend, layer]["seconds"]) for backend in backends]
        bars = axes.bar([place + 0.4 * i - 0.2 for place in range(len(backends))], times, 0.38, label=LAYERS[layer])
        axes.bar_label(bars, fmt="%.0f")
    axes.set_xticks(range(len(backends)), backends)
    axes.set_ylabel("an epoch, milliseconds")
    axes.set_title("LSTM(128) on 1500 digits of 8 rows")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main(epochs=10, backends=BACKENDS, folder=Path()):
    found = {}
    print("backend     layer     an epoch   digits read")
    for backend in backends:
        for layer in LAYERS:
            one = found[backend, layer] = run(backend, layer, epochs)
            print(f"{backend:<11} {layer:<9} {1e3 * min(one['seconds']):5.0f} ms   {one['accuracy']:10.1%}", flush=True)
    path = folder / "keras_tutorial.png"
    plot(found, backends, path)
    print(f"wrote {path}")
    worse = [b for b in backends if found[b, "fastlstm"]["accuracy"] < found[b, "Keras"]["accuracy"] - 0.02]
    if worse:
        print(f"FAILED: reads fewer digits on {', '.join(worse)}")
    return 1 if worse else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--layer", choices=LAYERS, help="run this one alone, on the backend of KERAS_BACKEND")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    arguments = parser.parse_args()
    if arguments.layer:
        print(json.dumps(tutorial(arguments.layer, arguments.epochs)))
        sys.exit(0)
    sys.exit(main(arguments.epochs, arguments.backends))
