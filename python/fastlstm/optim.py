"""Adam and gradient clipping over mappings of names to NumPy or CuPy arrays, as torch's. Knows nothing of LSTMs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) in the form, and with the defaults, of torch.optim.Adam; state per name.

    Each step, for the gradient g of every weight w (all elementwise, t counts the steps from 1)::

        g = g + weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - lr / (1 - beta1**t) * m / (sqrt(v) / sqrt(1 - beta2**t) + eps)

    `lr` and the other settings are attributes that may be changed between steps. Raises ValueError for settings out of
    range: lr, eps or weight_decay below 0, a beta outside `[0, 1)`.

    >>> weights = {"w": np.array([1.0, -1.0])}
    >>> adam = Adam(lr=0.1)
    >>> for _ in range(100):  # minimise the sum of w**2
    ...     adam.step(weights, {"w": 2 * weights["w"]})
    >>> bool(np.abs(weights["w"]).max() < 0.05)
    True
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}, expected a number of at least 0")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas is {betas}, expected two numbers from 0 to below 1")
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self._step = 0
        self._m: dict[str, np.ndarray] = {}
        self._v: dict[str, np.ndarray] = {}

    def step(self, weights: Mapping[str, np.ndarray], grads: Mapping[str, np.ndarray]) -> None:
        """One step: changes every array of `weights` in place; `grads` has the same names, shapes and dtypes.

        The first step fixes the names. An LSTM's weights are writable inside `with lstm.updating() as weights`.
        Raises ValueError or TypeError that names the weight before anything is written: for other names than at the
        first step or in `grads`, another shape or dtype, a read-only weight.
        """
        self._check(weights, grads)
        if not self._m:
            self._m = {name: np.zeros_like(weight) for name, weight in weights.items()}
            self._v = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self._step += 1
        beta1, beta2 = self.betas
        step_size = self.lr / (1 - beta1**self._step)
        v_scale = (1 - beta2**self._step) ** 0.5
        for name, w in weights.items():
            m, v = self._m[name], self._v[name]
            g = grads[name] + self.weight_decay * w if self.weight_decay else grads[name]
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * g * g
            w -= step_size * (m / (np.sqrt(v) / v_scale + self.eps))

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything a later run needs: the settings, `step`, and `m` and `v`, each an array by name."""
        return {
            "lr": self.lr,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "step": self._step,
            "m": {name: m.copy() for name, m in self._m.items()},
            "v": {name: v.copy() for name, v in self._v.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`, which is copied. Raises ValueError that names a missing or unexpected key."""
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise ValueError(f"state has the keys {', '.join(map(str, state))}, expected {', '.join(expected)}")
        if state["m"].keys() != state["v"].keys():
            raise ValueError(f"state has m of {', '.join(state['m'])}, but v of {', '.join(state['v'])}")
        loaded = Adam(state["lr"], tuple(state["betas"]), state["eps"], state["weight_decay"])
        loaded._step = int(state["step"])
        loaded._m = {name: m.copy() for name, m in state["m"].items()}
        loaded._v = {name: v.copy() for name, v in state["v"].items()}
        vars(self).update(vars(loaded))

    def _check(self, weights: Mapping[str, np.ndarray], grads: Mapping[str, np.ndarray]) -> None:
        for what, names in (("grads", grads.keys()), ("the first step", self._m.keys() or weights.keys())):
            if names != weights.keys():
                raise ValueError(
                    f"weights has {', '.join(weights)}, but {what} had {', '.join(names)}: expected the same"
                )
        for name, w in weights.items():
            if not _is_writable(w):
                raise ValueError(
                    f"{name} is read-only, expected a writable array: "
                    "an LSTM's weights are, inside `with lstm.updating() as weights`"
                )
            for what, array in (("its gradient", grads[name]), ("Adam's state", self._m.get(name, w))):
                if array.shape != w.shape:
                    raise ValueError(f"{name} has shape {w.shape}, but {what} has {array.shape}: expected the same")
                if array.dtype != w.dtype or w.dtype.kind != "f":
                    raise TypeError(
                        f"{name} has dtype {w.dtype}, but {what} has {array.dtype}: expected one floating-point dtype"
                    )


def _is_writable(array: np.ndarray) -> bool:
    return bool(getattr(array.flags, "writeable", True))  # CuPy's always are


def clip_gradients(grads: Mapping[str, np.ndarray], max_norm: float) -> float:
    """Scale all gradients in place so that their joint 2-norm is at most max_norm; returns the norm before that.

    As torch.nn.utils.clip_grad_norm_: the factor is `max_norm / (norm + 1e-6)` where that is below 1. The norm is
    summed in float64 whatever the dtype. An infinite or NaN gradient is not an error: the norm says so, and the caller
    should skip the step. On a GPU the norm is waited for. Raises ValueError for a negative or NaN max_norm and for a
    read-only gradient.

    >>> grads = {"w": np.array([3.0, 0.0]), "b": np.array([4.0])}
    >>> clip_gradients(grads, max_norm=1.0)
    5.0
    >>> grads["b"].round(5)
    array([0.8])
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm is {max_norm}, expected a number of at least 0")
    for name, g in grads.items():
        if not _is_writable(g):
            raise ValueError(f"the gradient of {name} is read-only, expected a writable array")
    norm = float(np.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in grads.values())))
    factor = float(np.minimum(max_norm / (norm + 1e-6), 1.0))  # np.minimum passes a NaN on
    with np.errstate(invalid="ignore"):  # an infinite gradient times 0
        for g in grads.values():
            g *= factor
    return norm
