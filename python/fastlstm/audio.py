"""Models of guitar amplifiers and pedals in the files of audio plugins: an LSTM whose h a linear layer makes sound of.

Formats: Neural Amp Modeler's `.nam`, and RTNeural's JSON as its script writes it of a Keras model. Letters: I input,
H hidden, L layers, O outputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import exchange
from .weights import WeightSpec

__all__ = ["AudioModel", "from_nam", "from_rtneural", "to_nam", "to_rtneural"]

NAM_VERSION = "0.5.4"  # of the format


class AudioModel(NamedTuple):
    """The weights of an LSTM by torch's names, its first state, and the layer `y @ head_weight.T + head_bias` after it.

    `LSTM.from_weights(model.weights).stream(1, model.state)` is the plugin's LSTM.
    """

    weights: dict[str, np.ndarray]
    state: tuple[np.ndarray, np.ndarray]  # h and c, [L,1,H] each
    head_weight: np.ndarray  # [O,H]
    head_bias: np.ndarray  # [O]


def from_nam(path: str | os.PathLike[str]) -> AudioModel:
    """The model of a `.nam` file, in float32. Raises ValueError for another architecture than LSTM."""
    file = json.loads(Path(path).read_text())
    if file["architecture"] != "LSTM":
        raise ValueError(f"{os.fspath(path)} has the architecture {file['architecture']!r}, expected 'LSTM'")
    config = file["config"]
    I, H, L = (config[name] for name in ("input_size", "hidden_size", "num_layers"))
    numbers = np.array(file["weights"], np.float32)
    needed = sum(4 * H * ((H if layer else I) + H + 1) + 2 * H for layer in range(L)) + H + 1
    if len(numbers) != needed:
        raise ValueError(f"{os.fspath(path)} has {len(numbers)} weights, expected {needed} of its config {config}")
    rest = iter(numbers)
    weights: dict[str, np.ndarray] = {}
    h, c = [], []
    for layer in range(L):
        columns = (H if layer else I) + H
        w = _next(rest, 4 * H, columns)
        arrays = w[:, :-H].T, w[:, -H:].T, _next(rest, 4 * H)
        weights |= exchange.from_keras(arrays, layer)
        h.append(_next(rest, 1, H))
        c.append(_next(rest, 1, H))
    return AudioModel(weights, (np.stack(h), np.stack(c)), _next(rest, 1, H), _next(rest, 1))


def _next(numbers: Iterator[np.float32], *shape: int) -> np.ndarray:
    return np.fromiter(numbers, np.float32, int(np.prod(shape))).reshape(shape)


def to_nam(model: AudioModel, path: str | os.PathLike[str], *, sample_rate: float = 48_000) -> None:
    """Write a `.nam` file, which Neural Amp Modeler's plugins play."""
    spec = _spec(model)
    numbers = []
    for layer in range(spec.num_layers):
        kernel, recurrent, bias = _keras(model, spec, layer)
        numbers += [np.concatenate([kernel.T, recurrent.T], axis=1), bias, *(half[layer] for half in model.state)]
    numbers += [model.head_weight, model.head_bias]
    config = {"input_size": spec.input_size, "hidden_size": spec.hidden_size, "num_layers": spec.num_layers}
    flat = np.concatenate([array.astype(np.float32).ravel() for array in numbers]).tolist()
    _write(
        path,
        {
            "version": NAM_VERSION,
            "architecture": "LSTM",
            "config": config,
            "weights": flat,
            "sample_rate": sample_rate,
        },
    )


def from_rtneural(path: str | os.PathLike[str]) -> AudioModel:
    """The model of an RTNeural JSON file, in float32: LSTMs, then one dense layer. Raises ValueError for other layers.

    Its state is 0. JSON files of a torch state_dict are for `exchange.from_torch(json.load(file), prefix="lstm.")`.
    """
    layers = json.loads(Path(path).read_text())["layers"]
    kinds = [layer["type"] for layer in layers]
    if len(kinds) < 2 or kinds[-1] not in ("dense", "time-distributed-dense") or set(kinds[:-1]) != {"lstm"}:
        raise ValueError(f"{os.fspath(path)} has the layers {', '.join(kinds)}, expected lstm, ..., dense")
    if layers[-1]["activation"] not in ("", "linear"):
        raise ValueError(
            f"{os.fspath(path)} has a dense layer of activation {layers[-1]['activation']!r}, expected none"
        )
    weights: dict[str, np.ndarray] = {}
    for n, layer in enumerate(layers[:-1]):
        weights |= exchange.from_keras(layer["weights"], n)
    kernel, bias = map(exchange.numpy_of, layers[-1]["weights"])
    zeros = np.zeros((len(layers) - 1, 1, len(kernel)), np.float32)
    return AudioModel(weights, (zeros, zeros.copy()), kernel.T.copy(), bias)


def to_rtneural(model: AudioModel, path: str | os.PathLike[str]) -> None:
    """Write an RTNeural JSON file. Raises ValueError for a state other than 0, for which it has no place."""
    spec = _spec(model)
    if any(half.any() for half in model.state):
        raise ValueError("state is not 0, and RTNeural's files have none: expected zeros")
    shape, H, outputs = [None, None, spec.input_size], spec.hidden_size, len(model.head_bias)
    layers = [_layer("lstm", H, _keras(model, spec, layer)) for layer in range(spec.num_layers)]
    layers.append(_layer("dense", outputs, [model.head_weight.T, model.head_bias]))
    _write(path, {"in_shape": shape, "layers": layers})


def _layer(kind: str, size: int, arrays: list[np.ndarray]) -> dict[str, Any]:
    weights = [array.tolist() for array in arrays]
    return {"type": kind, "activation": "", "shape": [None, None, size], "weights": weights}


def _spec(model: AudioModel) -> WeightSpec:
    spec = WeightSpec.from_weights(model.weights)
    if spec.bidirectional:
        raise ValueError("weights has two directions, but a plugin plays sound as it comes: expected one")
    return spec


def _keras(model: AudioModel, spec: WeightSpec, layer: int) -> list[np.ndarray]:
    """Kernel, recurrent kernel and bias, zeros where the LSTM has none."""
    arrays = exchange.to_keras(model.weights, layer)
    return arrays if spec.bias else [*arrays, np.zeros(4 * spec.hidden_size, np.float32)]


def _write(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(content))
