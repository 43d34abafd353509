"""The gradients that `lstm_backward` returns, in NumPy's reference and in the native core alike. Computes nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Gradients(NamedTuple):
    """The gradients of one backward pass; each array has the shape, layout and dtype of what it is the gradient of.

    x: `[T,B,I]`, or `[B,T,I]`, or `[T,I]`, as x was. state: `(dh0 [L*D,B,Hout], dc0 [L*D,B,H])`. weights: one array for
    each name of the weights mapping; `bias_ih` and `bias_hh` get the same values in two arrays, so that each may be
    scaled in place. x is None and weights are empty where they were not wanted.

    >>> grads = Gradients(np.zeros((5, 3, 8)), (np.zeros((1, 3, 4)), np.zeros((1, 3, 4))), {"bias_ih_l0": np.ones(16)})
    >>> grads.x.shape, grads.state[0].shape, list(grads.weights)
    ((5, 3, 8), (1, 3, 4), ['bias_ih_l0'])
    """

    x: Any  # an array, or None
    state: tuple[np.ndarray, np.ndarray]
    weights: dict[str, np.ndarray]
