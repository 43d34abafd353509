"""Trains an LSTM to read handwritten digits row by row, with fastlstm's kernels and again with NumPy alone.

It prints how well the two agree and how long each takes, and writes the weights and a plot; it exits with 1 if they
disagree. A program of your own needs `train` and what stands above it, and no more.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import fastlstm
from fastlstm import functional, reference
from fastlstm.optim import Adam, clip_gradients

PIXELS, HIDDEN, DIGITS, BATCH = 8, 128, 10, 32


def load_data(dtype):
    """Images [N,8,8] from 0 to 1 and their digits [N]; every fifth one is kept for testing."""
    digits = load_digits()
    images = (digits.images / 16).astype(dtype)
    return train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)


def new_weights(dtype):
    """The weights of the LSTM, under torch's names, and of the dense layer that makes ten scores of its last state."""
    lstm = fastlstm.LSTM(PIXELS, HIDDEN, forget_bias=1.0, dtype=dtype, seed=0).state_dict()
    w = np.random.default_rng(0).normal(0, HIDDEN**-0.5, (HIDDEN, DIGITS)).astype(dtype)
    return lstm, {"dense_w": w, "dense_b": np.zeros(DIGITS, dtype)}


def probabilities(h, dense):
    """Softmax: the probability of each digit [..,10] after the hidden states [..,H]."""
    scores = h @ dense["dense_w"] + dense["dense_b"]
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def forward_backward(module, images, labels, lstm, dense):
    """The loss of one batch, the probabilities [B,10], and the gradient of every weight."""
    _, (h_n, _), tape = module.lstm_forward(images, lstm, batch_first=True)
    h = h_n[0]  # [B,H], after the last row of pixels
    p = probabilities(h, dense)
    truth = np.arange(len(labels)), labels
    loss = -np.log(p[truth]).mean()

    d_scores = p.copy()
    d_scores[truth] -= 1  # through cross-entropy and softmax at once
    d_scores /= len(labels)
    d_dense = {"dense_w": h.T @ d_scores, "dense_b": d_scores.sum(axis=0)}
    dh_n = (d_scores @ dense["dense_w"].T)[None]
    d_lstm = module.lstm_backward(tape, dstate=(dh_n, None)).weights
    return float(loss), p, d_lstm | d_dense


def train(module, images, labels, dtype, epochs):
    """Train by `module`, fastlstm.functional or fastlstm.reference: the weights, and all losses [epochs,batches]."""
    lstm, dense = new_weights(dtype)
    weights = lstm | dense  # the same arrays in one mapping: Adam changes them in place
    adam, rng, losses = Adam(), np.random.default_rng(1), []
    for epoch in range(1, epochs + 1):
        adam.lr = 0.01 * (1 - (epoch - 1) / epochs)
        order = rng.permutation(len(images))
        batches = np.split(order, range(BATCH, len(order), BATCH))
        losses.append([])
        right = seen = 0
        with tqdm(batches, f"  epoch {epoch:2} of {epochs}", unit="batch", ncols=100) as bar:
            for rows in bar:
                loss, p, grads = forward_backward(module, images[rows], labels[rows], lstm, dense)
                clip_gradients(grads, max_norm=1.0)
                adam.step(weights, grads)
                losses[-1].append(loss)
                right += (p.argmax(axis=1) == labels[rows]).sum()
                seen += len(rows)
                bar.set_postfix(loss=f"{np.mean(losses[-1]):.3f}", accuracy=f"{right / seen:.3f}", refresh=False)
    return lstm, dense, np.array(losses)


class Run(NamedTuple):
    """What one training gave, and how well it reads the test images."""

    lstm: dict
    dense: dict
    losses: np.ndarray  # [epochs,batches]
    seconds: float
    accuracy: float


def run(module, data, dtype, epochs):
    x_train, x_test, y_train, y_test = data
    print(f"\n{module.__name__}, {dtype}", flush=True)
    start = time.perf_counter()
    lstm, dense, losses = train(module, x_train, y_train, dtype, epochs)
    seconds = time.perf_counter() - start
    _, (h_n, _), _ = module.lstm_forward(x_test, lstm, batch_first=True, training=False)
    return Run(lstm, dense, losses, seconds, np.mean(probabilities(h_n[0], dense).argmax(axis=1) == y_test))


def save_and_load(folder, trained, images):
    """Write the trained net, read it back, and see that both say the same: the belief after every row [N,8,10]."""
    lstm = fastlstm.LSTM(PIXELS, HIDDEN, batch_first=True)
    lstm.load_state_dict(trained.lstm)
    lstm.save(folder / "digits.safetensors")
    save_file(trained.dense, folder / "digits_dense.safetensors")

    loaded, dense = fastlstm.LSTM.load(folder / "digits.safetensors"), load_file(folder / "digits_dense.safetensors")
    y, _ = lstm(images)
    loaded_y, _ = loaded(images)
    belief = probabilities(loaded_y, dense)
    return belief, np.array_equal(belief, probabilities(y, trained.dense))


def main(epochs=10, folder=Path(__file__).parent):
    """Train four times, compare, save, load, plot: 0, or 1 if anything disagrees or the net learnt too little."""
    folder = Path(folder)
    checks = []  # (what, value, limit): a value must not be above its limit
    runs = {}
    for dtype in ("float64", "float32"):
        data = load_data(dtype)
        ours, theirs = runs[dtype] = [run(module, data, dtype, epochs) for module in (functional, reference)]
        if dtype == "float64":
            checks.append(("float64, any loss of any batch", np.abs(ours.losses - theirs.losses).max(), 1e-8))
        else:
            first = ours.losses[0].mean() - theirs.losses[0].mean()
            checks.append(("float32, first epoch's loss", abs(first), 1e-4))
            checks.append(("float32, final test accuracy", abs(ours.accuracy - theirs.accuracy), 0.01))
    belief, same = save_and_load(folder, ours, data[1])
    plot(folder / "digits.png", ours, theirs, data[1], data[3], belief)

    print("\ntraining        fastlstm    NumPy   test accuracy")
    for dtype, (ours, theirs) in runs.items():
        times = f"{ours.seconds:6.2f} s {theirs.seconds:6.2f} s"
        print(f"  {dtype}     {times}   {ours.accuracy:.4f} and {theirs.accuracy:.4f}")
    print("\ndifference between fastlstm and NumPy")
    for what, value, limit in checks:
        print(f"  {what:32} {value:.1e} of {limit:.0e} allowed  {'ok' if value <= limit else 'FAILED'}")
    print(f"  {'saved, loaded, predicts the same':32} {'yes' if same else 'FAILED'}")
    learnt = epochs < 10 or ours.accuracy >= 0.96
    if not learnt:
        print(f"  test accuracy is {ours.accuracy:.4f}, expected at least 0.96")
    print(f"\nplot: {folder / 'digits.png'}")
    return 0 if same and learnt and all(value <= limit for _, value, limit in checks) else 1


# The plot. Nothing below is about LSTMs.

PAPER, INK, FAINT, BLUE, ORANGE = "#fbfaf7", "#22303c", "#b4bac0", "#2a6f97", "#e4572e"
HEADING = {"loc": "left", "weight": "bold", "fontsize": 10.8, "pad": 10}
PEN = LinearSegmentedColormap.from_list("pen", ["#ffffff", "#8fa3b3", INK])
BELIEF = LinearSegmentedColormap.from_list("belief", ["#f3f1ea", "#9cc4d9", BLUE, "#143a52"])


def plot(path, ours, theirs, images, labels, belief):
    """One picture: the loss of both trainings, what the net reads, and how it makes up its mind row by row."""
    style = {"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.labelcolor": INK}
    style |= {"xtick.color": INK, "ytick.color": INK, "axes.edgecolor": FAINT, "figure.facecolor": PAPER}
    style |= {"axes.facecolor": PAPER, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(13, 8.6))
        grid = figure.add_gridspec(2, 2, height_ratios=[1.7, 1], width_ratios=[1, 1.25], hspace=0.32, wspace=0.08)
        grid.update(left=0.06, right=0.975, top=0.85, bottom=0.05)
        figure.text(0.06, 0.945, "An LSTM learns to read digits", fontsize=20, weight="bold")
        summary = (
            f"Each image goes in row by row, from the top. Test accuracy {ours.accuracy:.1%} of {len(labels)} images"
        )
        epochs = f"{len(ours.losses)} epochs in {ours.seconds:.1f} s"
        figure.text(0.06, 0.91, f"{summary}, after {epochs} (NumPy alone: {theirs.seconds:.1f} s).", fontsize=11)
        plot_loss(figure.add_subplot(grid[0, 0]), ours.losses, theirs.losses)
        plot_readings(figure, grid[0, 1], images, labels, belief[:, -1])
        plot_beliefs(figure, grid[1, :], images, labels, belief)
        figure.savefig(path, dpi=140)


def plot_loss(axes, ours, theirs):
    """Every batch faintly, each epoch's mean in front; the reference dashed on top, so that a difference would show."""
    epochs, batches = ours.shape
    axes.plot(np.arange(ours.size) / batches, ours.ravel(), color=BLUE, alpha=0.25, linewidth=0.8)
    middle = np.arange(epochs) + 0.5
    axes.plot(middle, ours.mean(axis=1), color=BLUE, linewidth=4, alpha=0.85, label="fastlstm", solid_capstyle="round")
    axes.plot(middle, theirs.mean(axis=1), "--o", color=ORANGE, linewidth=1.3, markersize=3.5, label="NumPy reference")
    axes.set(yscale="log", xlabel="epochs", xlim=(0, epochs))
    axes.set_title("Loss of each batch, and its mean over each epoch", **HEADING)
    axes.grid(axis="y", color=FAINT, alpha=0.35, linewidth=0.6)
    axes.legend(frameon=False, fontsize=10)


def head(axes, text):
    axes.axis("off")
    axes.set_title(text, **HEADING)


def draw(axes, image, colour, interpolation):
    axes.imshow(image, cmap=PEN, interpolation=interpolation, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.8 if colour == ORANGE else 0.6)


def plot_readings(figure, place, images, labels, p, rows=4, columns=8):
    """The surest mistakes first, then others in a random order."""
    read, sure = p.argmax(axis=1), p.max(axis=1)
    shuffled = np.random.default_rng(2).permutation(len(labels))
    wrong = sorted(np.flatnonzero(read != labels), key=lambda n: -sure[n])
    shown = [*wrong[:columns], *(n for n in shuffled if read[n] == labels[n])][: rows * columns]
    cells = place.subgridspec(rows + 1, columns, height_ratios=[0.01, *[1] * rows], hspace=0.4, wspace=0.12)
    head(figure.add_subplot(cells[0, :]), f"What it reads in test images: {len(wrong)} mistakes, the surest first")
    for place, n in zip([cells[1 + i // columns, i % columns] for i in range(rows * columns)], shown, strict=True):
        axes, right = figure.add_subplot(place), read[n] == labels[n]
        draw(axes, images[n], FAINT if right else ORANGE, "bicubic")
        text = f"{read[n]}" if right else f"{read[n]}, not {labels[n]}"
        axes.set_title(text, fontsize=10, pad=3, color=INK if right else ORANGE, weight="bold")


def plot_beliefs(figure, place, images, labels, belief):
    """One image of each digit, and beside each of its rows the probability of the ten digits after that row."""
    cells = place.subgridspec(3, 5, height_ratios=[0.001, 1, 1], hspace=0.25, wspace=0.1)
    text = "How it makes up its mind: beside each row of pixels, the probability of each digit after it"
    head(figure.add_subplot(cells[0, :]), text)
    for digit in range(DIGITS):
        n = np.flatnonzero((labels == digit) & (belief[:, -1].argmax(axis=1) == digit))[0]
        image, mind = cells[1 + digit // 5, digit % 5].subgridspec(1, 2, width_ratios=[8, 10], wspace=0.06)
        draw(figure.add_subplot(image), images[n], FAINT, "nearest")
        axes = figure.add_subplot(mind)
        axes.imshow(belief[n], cmap=BELIEF, aspect="auto", vmin=0, vmax=1)
        axes.spines[:].set_visible(False)
        axes.set(xticks=range(DIGITS), yticks=[])
        axes.tick_params(length=0, labelsize=7.5, pad=2)
        axes.get_xticklabels()[digit].set(weight="bold", color=ORANGE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where weights and plot go")
    sys.exit(main(**vars(parser.parse_args())))
