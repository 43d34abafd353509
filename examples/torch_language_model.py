"""Trains a language model of characters twice, with torch.nn.LSTM and fastlstm.torch.LSTM, on text from scikit-learn.

It prints the time of each epoch and the loss of both, writes a plot, and exits with 1 if they learn differently. All
that differs between the two is the class of the layer.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import sklearn.datasets
import torch
from matplotlib.figure import Figure
from torch import nn

import fastlstm.torch

EMBEDDING, HIDDEN, STEPS, ROWS = 64, 256, 64, 16
LAYERS = {"torch.nn.LSTM": nn.LSTM, "fastlstm.torch.LSTM": fastlstm.torch.LSTM}


def load_text():
    """The descriptions of scikit-learn's datasets as numbers of characters [ROWS,N], and how many characters exist."""
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.rst")))
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([alphabet[character] for character in text])
    return numbers[: len(numbers) // ROWS * ROWS].reshape(ROWS, -1), len(alphabet)


class Model(nn.Module):
    def __init__(self, kind, characters, hidden):
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.lstm = kind(EMBEDDING, hidden, batch_first=True)
        self.linear = nn.Linear(hidden, characters)

    def forward(self, text, state):
        y, state = self.lstm(self.embedding(text), state)
        return self.linear(y), state


def train_epoch(model, optimizer, text):
    """The mean loss in nats; the state is carried from one piece of the text to the next, the gradient is not."""
    losses, state = [], None
    for start in range(0, text.shape[1] - 1, STEPS):
        piece = text[:, start : start + STEPS + 1]
        scores, state = model(piece[:, :-1], state)
        state = tuple(part.detach() for part in state)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), piece[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def epochs_of(kind, text, characters, hidden):
    """Seconds and loss of each epoch, as long as one asks for the next."""
    torch.manual_seed(0)  # the same weights for both
    model = Model(kind, characters, hidden)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    while True:
        begun = time.perf_counter()
        loss = train_epoch(model, optimizer, text)
        yield time.perf_counter() - begun, loss


def train(text, characters, epochs, hidden):
    """The epochs of both, in turns, so that a busy machine is no one's fault."""
    running = {name: epochs_of(kind, text, characters, hidden) for name, kind in LAYERS.items()}
    histories = {name: [] for name in LAYERS}
    for _ in range(epochs):
        for name, history in histories.items():
            history.append(next(running[name]))
    return histories


def plot(histories, path):
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, history), style in zip(histories.items(), ("-", "--"), strict=True):
        seconds, losses = zip(*history, strict=True)
        left.plot(range(1, len(losses) + 1), losses, style, label=name)
        right.plot([sum(seconds[: n + 1]) for n in range(len(seconds))], losses, style, label=name)
    left.set(xlabel="epoch", ylabel="loss, nats a character", title="They learn the same")
    right.set(xlabel="seconds", title="The same by time")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def main(epochs, hidden, threads, folder):
    torch.set_num_threads(threads or torch.get_num_threads())
    text, characters = load_text()
    print(f"{text.numel()} characters, {torch.get_num_threads()} threads")
    histories = train(text, characters, epochs, hidden)
    for name, history in histories.items():
        best = min(seconds for seconds, _ in history)
        print(f"{name:20} {best:6.2f} s an epoch, loss {history[0][1]:.4f} to {history[-1][1]:.4f}")
    theirs, ours = histories.values()
    apart = max(math.fabs(a - b) for (_, a), (_, b) in zip(theirs, ours, strict=True))
    faster = min(seconds for seconds, _ in theirs) / min(seconds for seconds, _ in ours)
    print(f"losses differ by at most {apart:.1e}; an epoch with fastlstm is {faster:.2f} times as fast")
    plot(histories, folder / "torch_language_model.png")
    return 0 if apart < 1e-2 else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--threads", type=int, help="torch's own number if not given")
    parser.add_argument("--folder", type=Path, default=Path("."))
    sys.exit(main(**vars(parser.parse_args())))
