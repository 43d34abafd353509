"""Names, shapes and first values of an sLSTM's weights, and the states and gradients that it returns. Computes nothing.

Letters: I input, H hidden, N heads, K = H/N the size of a head. A unit's place in H is head * K + its place in it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .weights import LARGEST, check_array

__all__ = ["SLSTMGradients", "SLSTMSpec", "SLSTMState", "check_slstm_weights", "initial_slstm_weights"]


class SLSTMState(NamedTuple):
    """The state of an sLSTM, in the order of the xlstm package: `[1,B,H]` each, or `[1,H]` unbatched.

    h is what a step returns; c and n are sums of inputs and of their weights, both divided by e^m.
    """

    h: np.ndarray
    c: np.ndarray
    n: np.ndarray
    m: np.ndarray


class SLSTMGradients(NamedTuple):
    """The gradients of one backward pass; each array has the shape, layout and dtype of what it is the gradient of."""

    x: np.ndarray
    state: SLSTMState
    weights: dict[str, np.ndarray]


@dataclass(frozen=True)
class SLSTMSpec:
    """What an sLSTM's weights mapping is for.

    input_size 0: there is no weight_ih, and x holds its product, the pre-activations of i f z o, `[T,B,4H]`.

    Raises TypeError or ValueError that names the argument.

    >>> SLSTMSpec(input_size=8, hidden_size=6, num_heads=2).shapes()
    {'weight_ih': (24, 8), 'weight_hh': (24, 3), 'bias': (24,)}
    """

    input_size: int
    hidden_size: int
    num_heads: int = 4
    bias: bool = True

    def __post_init__(self) -> None:
        for name, least in (("input_size", 0), ("hidden_size", 1), ("num_heads", 1)):
            size = getattr(self, name)
            if isinstance(size, (bool, np.bool_)) or not hasattr(size, "__index__"):
                raise TypeError(f"{name} is {size!r}, expected an integer of at least {least}")
            size = operator.index(size)
            if not least <= size <= LARGEST:
                raise ValueError(f"{name} is {size}, expected an integer from {least} to {LARGEST}")
            object.__setattr__(self, name, size)
        if not isinstance(self.bias, (bool, np.bool_)):
            raise TypeError(f"bias is {self.bias!r}, expected True or False")
        object.__setattr__(self, "bias", bool(self.bias))
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"num_heads is {self.num_heads}, but hidden_size is {self.hidden_size}: expected a divisor of it"
            )

    @property
    def head_size(self) -> int:
        """K, the units of a head."""
        return self.hidden_size // self.num_heads

    @property
    def x_size(self) -> int:
        """The size of one step of x: input_size, or that of the pre-activations, 4H."""
        return self.input_size or 4 * self.hidden_size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by name. The 4H rows are those of the gates i f z o, each in the units' order.

        weight_hh `[4H,K]`: a row multiplies h of its own head alone. It is the diagonal of blocks of `[4H,H]`.
        """
        gates = 4 * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, self.input_size)} if self.input_size else {}
        shapes["weight_hh"] = (gates, self.head_size)
        return shapes | {"bias": (gates,)} if self.bias else shapes

    @classmethod
    def from_weights(cls, weights: Mapping[str, np.ndarray]) -> SLSTMSpec:
        """The spec that a mapping with these names and shapes was made for; raises ValueError or TypeError otherwise.

        >>> SLSTMSpec.from_weights({"weight_hh": np.zeros((24, 3)), "weight_ih": np.zeros((24, 8))})
        SLSTMSpec(input_size=8, hidden_size=6, num_heads=2, bias=False)
        """
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights is a {type(weights).__qualname__}, expected a mapping of weight_hh and others")
        if "weight_hh" not in weights:
            raise ValueError(f"weights has no weight_hh: expected it, got {', '.join(map(str, weights)) or 'none'}")
        shape = check_array("weight_hh", weights["weight_hh"]).shape
        if len(shape) != 2 or 0 in shape or shape[0] % (4 * shape[1]):
            raise ValueError(f"weight_hh has shape {shape}, expected (4*hidden_size, hidden_size/num_heads)")
        input_size = 0
        if "weight_ih" in weights:
            w_x = check_array("weight_ih", weights["weight_ih"])
            if w_x.ndim != 2 or 0 in w_x.shape:
                raise ValueError(f"weight_ih has shape {w_x.shape}, expected (4*hidden_size, input_size)")
            input_size = w_x.shape[1]
        return cls(input_size, shape[0] // 4, shape[0] // 4 // shape[1], "bias" in weights)


def check_slstm_weights(
    spec: SLSTMSpec, weights: Mapping[str, np.ndarray], dtype: npt.DTypeLike
) -> dict[str, np.ndarray]:
    """The weights in the order of `SLSTMSpec.shapes`, C-contiguous; copied only where they were not that already.

    Raises ValueError for a missing or unexpected name or a wrong shape, TypeError for what is not an array of `dtype`.
    """
    shapes = spec.shapes()
    missing = [name for name in shapes if name not in weights]
    unexpected = [str(name) for name in weights if name not in shapes]
    for word, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            raise ValueError(f"weights {word} {', '.join(names)}: expected {', '.join(shapes)} of {spec}")
    arrays = {name: check_array(name, weights[name], shape, np.dtype(dtype)) for name, shape in shapes.items()}
    return {name: np.require(array, requirements=["C", "A"]) for name, array in arrays.items()}


def initial_slstm_weights(
    spec: SLSTMSpec, *, dtype: npt.DTypeLike, rng: np.random.Generator, forget_bias: float | None = None
) -> dict[str, np.ndarray]:
    """Fresh weights as the xlstm package's sLSTM has them by default.

    weight_ih is normal with variance 2/(5 I) (Nguyen and Salazar 2019), weight_hh zero, and so are the biases, but for
    the forget gates': forget_bias, or if None 5 - 12 (k/(K-1))^0.3 for the k-th unit of each head, so that some
    remember for long. Raises ValueError for a forget_bias without bias.

    >>> weights = initial_slstm_weights(SLSTMSpec(8, 4, 2), dtype=np.float32, rng=np.random.default_rng(0))
    >>> weights["bias"][4:8]
    array([ 5., -7.,  5., -7.], dtype=float32)
    """
    if forget_bias is not None and not spec.bias:
        raise ValueError(f"forget_bias is {forget_bias}, but bias is False: expected forget_bias=None")
    weights = {name: np.zeros(shape, dtype) for name, shape in spec.shapes().items()}
    if spec.input_size:
        deviation = np.sqrt(2 / (5 * spec.input_size))
        weights["weight_ih"][...] = rng.normal(0, deviation, weights["weight_ih"].shape)
    if spec.bias:
        power_law = 5 - 12 * (np.arange(spec.head_size) / max(1, spec.head_size - 1)) ** 0.3
        forget = np.split(weights["bias"], 4)[1]
        forget[...] = np.tile(power_law, spec.num_heads) if forget_bias is None else forget_bias
    return weights
