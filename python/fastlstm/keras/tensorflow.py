"""The backend tensorflow, which calls NumPy code at a fixed cost of some 70 microseconds, outside XLA."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from ..functional import Tape
from .call import Arrays, Call, backward, forward

__all__ = ["LEADING_ZEROS", "run"]

LEADING_ZEROS = True  # the output of a masked step before the first

KEPT = 8  # tapes of a layer


class Tapes:
    """A layer's tapes between forward and backward, by numbers, since a graph hands on nothing but tensors.

    Each is used once. Where no backward pass comes, as after a call with training=True and no GradientTape, they are
    left over: the oldest goes when there are too many. A backward pass without one runs forward again.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._tapes: OrderedDict[int, Tape] = OrderedDict()

    def put(self, tape: Tape) -> int:
        number = next(self._numbers)
        self._tapes[number] = tape
        if len(self._tapes) > KEPT:
            self._tapes.popitem(last=False)
        return number

    def take(self, number: int) -> Tape | None:
        return self._tapes.pop(number, None)


def run(layer: Any, call: Call, x: Any, state: Any, weights: Sequence[Any], mask: Any, seed: Any) -> Any:
    tapes = layer.__dict__.setdefault("_tapes", Tapes())
    marks = [one for one in (mask, seed) if one is not None]

    def arguments(arrays: Sequence[np.ndarray]) -> Any:
        """Of `forward`, after the call."""
        x, h0, c0, *others = arrays
        others, given = others[: len(weights)], others[len(weights) :]
        return x, (h0, c0), others, given[0] if mask is not None else None, given[-1] if seed is not None else None

    def run_forward(*arrays: np.ndarray) -> Arrays:
        results, tape = forward(call, *arguments(arrays))
        return (*results, np.array(-1 if tape is None else tapes.put(tape), np.int64))

    def run_backward(number: np.ndarray, *arrays: np.ndarray) -> Arrays:
        grads = arrays[-len(shapes) :]
        tape = tapes.take(int(number))
        if tape is None:
            _, tape = forward(replace(call, keeps_tape=True), *arguments(arrays[: -len(shapes)]))
        assert tape is not None
        return backward(tape, grads)

    shapes = [(*x.shape[:2], call.spec.hidden_size)] * call.sequence + [one.shape for one in state]

    @tf.custom_gradient
    def differentiable(*inputs: Any) -> Any:
        *results, number = tf.numpy_function(run_forward, [*inputs, *marks], [x.dtype] * len(shapes) + [tf.int64])
        for result, shape in zip(results, shapes, strict=True):
            result.set_shape(shape)

        return tuple(results), lambda *grads: gradients(number, *inputs, *marks, *grads)

    @tf.custom_gradient
    def gradients(*arguments: Any) -> Any:
        like = arguments[1 : 4 + len(weights)]  # x, h0, c0 and the weights
        found = tf.numpy_function(run_backward, arguments, [one.dtype for one in like])
        for one, shape in zip(found, like, strict=True):
            one.set_shape(shape.shape)
        return tuple(found), _refuse

    return differentiable(x, *state, *weights)


def _refuse(*_: Any) -> Any:
    raise NotImplementedError("fastlstm.keras.LSTM has no second derivatives on tensorflow: use keras.layers.LSTM")
