"""Names, shapes and first values of an LSTM's weights, exactly torch.nn.LSTM's. Every face uses it; computes nothing.

Letters: I input, H hidden, P projection, D directions, L layers; Hout = P if there is a projection, else H.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .device_arrays import on_gpu

LARGEST = 2**31 - 1  # size; what lies far below needs more memory than there is, but can be multiplied in 64 bits


# Where ONNX's gates i o f g and peepholes i o f stand in ours, i f g o and i f o. No other library's order is another.
ONNX_GATES = (0, 3, 1, 2)
ONNX_PEEPHOLES = (0, 2, 1)


def gates_to_onnx(array: np.ndarray, order: tuple[int, ...] = ONNX_GATES) -> np.ndarray:
    """An array whose first axis holds our gates, in ONNX's order; with `order` ONNX_PEEPHOLES its peepholes.

    >>> gates_to_onnx(np.array(list("ifgo"))).tolist()
    ['i', 'o', 'f', 'g']
    """
    return _taken(array, order)


def gates_from_onnx(array: np.ndarray, order: tuple[int, ...] = ONNX_GATES) -> np.ndarray:
    """The inverse of `gates_to_onnx`.

    >>> gates_from_onnx(np.array(list("iofg"))).tolist()
    ['i', 'f', 'g', 'o']
    """
    return _taken(array, tuple(order.index(gate) for gate in range(len(order))))


def _taken(array: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """The parts of the first axis, one for each number, in that order. np.split takes ten times as long."""
    parts = array.reshape(len(order), -1, *array.shape[1:])
    taken: np.ndarray = parts[list(order)].reshape(array.shape)
    return taken


def weight_suffix(layer: int, direction: int) -> str:
    """What the names of one layer's and direction's weights end in: `weight_suffix(1, 1)` is `"_l1_reverse"`."""
    return f"_l{layer}_reverse" if direction else f"_l{layer}"


@dataclass(frozen=True)
class WeightSpec:
    """What a weights mapping is for: the sizes and options of an LSTM, in the order of torch.nn.LSTM's arguments.

    input_size 0: there is no weight_ih_l0, and x holds pre-activations instead, 4*hidden_size for each direction.
    peepholes, layer_norm: each layer and direction has the weights of these, see `shapes`.

    Raises TypeError or ValueError that names the argument, for sizes that are not integers of at least 1, flags that
    are not booleans, and a proj_size outside `[0, hidden_size)` (0 is no projection; the bound is torch's).

    >>> spec = WeightSpec(input_size=8, hidden_size=5, bidirectional=True, proj_size=3)
    >>> spec.num_directions, spec.hidden_output, spec.output_size
    (2, 3, 6)
    >>> spec.shapes()["weight_hr_l0_reverse"]
    (3, 5)
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = True
    bidirectional: bool = False
    proj_size: int = 0
    peepholes: bool = False
    layer_norm: bool = False

    def __post_init__(self) -> None:
        for name, least in (("input_size", 0), ("hidden_size", 1), ("num_layers", 1), ("proj_size", 0)):
            size = getattr(self, name)
            if isinstance(size, (bool, np.bool_)) or not hasattr(size, "__index__"):
                raise TypeError(f"{name} is {size!r}, expected an integer of at least {least}")
            size = operator.index(size)
            if size < least:
                raise ValueError(f"{name} is {size}, expected an integer of at least {least}")
            if size > LARGEST:
                raise ValueError(f"{name} is {size}, expected an integer of at most {LARGEST}")
            object.__setattr__(self, name, size)
        for name in ("bias", "bidirectional", "peepholes", "layer_norm"):
            flag = getattr(self, name)
            if not isinstance(flag, (bool, np.bool_)):
                raise TypeError(f"{name} is {flag!r}, expected True or False")
            object.__setattr__(self, name, bool(flag))
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size is {self.proj_size}, but hidden_size is {self.hidden_size}: "
                f"expected a proj_size from 0 (none) to {self.hidden_size - 1}"
            )
        if self.layer_norm and not self.input_size:
            raise ValueError("layer_norm is True, but input_size is 0: expected an input whose product is normalised")

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def hidden_output(self) -> int:
        """Hout, the size of one direction's h: proj_size if there is a projection, else hidden_size."""
        return self.proj_size or self.hidden_size

    @property
    def output_size(self) -> int:
        """D*Hout, the size of one step of y."""
        return self.num_directions * self.hidden_output

    @property
    def x_size(self) -> int:
        """The size of one step of x: input_size, or that of the pre-activations, D*4H."""
        return self.input_size or self.num_directions * 4 * self.hidden_size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by name, in torch's order: by layer, by direction, w_ih, w_hh, b_ih, b_hh, w_hr.

        Then, where the spec has them, weight_peephole, of i f o; gamma_ih and gamma_hh, the gains of the layer
        normalisation of x . W and of h . U, and gamma_c, beta_c, its gain and bias of c.

        >>> WeightSpec(8, 5, bias=False).shapes()
        {'weight_ih_l0': (20, 8), 'weight_hh_l0': (20, 5)}
        """
        return dict(_shapes(self))

    @classmethod
    def from_weights(cls, weights: Mapping[str, np.ndarray]) -> WeightSpec:
        """The spec that a mapping with torch's names and shapes was made for. The arrays may be of any dtype.

        Raises ValueError that names the weight which is missing, unexpected or of the wrong shape, TypeError for one
        that is not a NumPy array.

        >>> WeightSpec.from_weights({"weight_ih_l0": np.zeros((20, 8)), "weight_hh_l0": np.zeros((20, 5))})
        WeightSpec(input_size=8, hidden_size=5, num_layers=1, bias=False, bidirectional=False, proj_size=0,
                   peepholes=False, layer_norm=False)
        """
        spec = _spec_of(weights)
        _named_arrays(spec, weights)
        return spec


# A training step asks for these at every call.
_spec = functools.lru_cache(maxsize=256)(WeightSpec)


@functools.lru_cache(maxsize=256)
def _shapes(spec: WeightSpec) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    gates = 4 * spec.hidden_size
    for layer in range(spec.num_layers):
        layer_input = spec.input_size if layer == 0 else spec.output_size
        for direction in range(spec.num_directions):
            suffix = weight_suffix(layer, direction)
            if layer_input:
                shapes["weight_ih" + suffix] = (gates, layer_input)
            shapes["weight_hh" + suffix] = (gates, spec.hidden_output)
            if spec.bias:
                shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = (gates,)
            if spec.proj_size:
                shapes["weight_hr" + suffix] = (spec.proj_size, spec.hidden_size)
            if spec.peepholes:
                shapes["weight_peephole" + suffix] = (3 * spec.hidden_size,)
            if spec.layer_norm:
                shapes["gamma_ih" + suffix] = shapes["gamma_hh" + suffix] = (gates,)
                shapes["gamma_c" + suffix] = shapes["beta_c" + suffix] = (spec.hidden_size,)
    return shapes


def check_array(
    name: str, array: object, shape: tuple[int, ...] | None = None, dtype: np.dtype[Any] | None = None
) -> np.ndarray:
    """`array` itself if it is a NumPy array, of this shape and dtype where given; else an error that names it.

    Raises TypeError for another type or dtype, ValueError for another shape.

    >>> check_array("x", [1.0, 2.0])
    Traceback (most recent call last):
    TypeError: x is a list, expected a numpy.ndarray
    """
    if not isinstance(array, np.ndarray):
        kind = type(array)
        module = "" if kind.__module__ == "builtins" else kind.__module__ + "."
        raise TypeError(f"{name} is a {module}{kind.__qualname__}, expected a numpy.ndarray")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if dtype is not None and array.dtype != dtype:
        cure = f"convert it with {name}.astype(np.{dtype.name})"
        raise TypeError(f"{name} has dtype {array.dtype}, expected {dtype}: {cure}")
    return array


def _check_weight(name: str, array: object) -> Any:
    return array if on_gpu(array) else check_array(name, array)


def _spec_of(weights: Mapping[str, np.ndarray]) -> WeightSpec:
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights is a {type(weights).__qualname__}, expected a mapping with torch's names")
    if "weight_hh_l0" not in weights:
        names = ", ".join(map(str, weights)) or "none"
        raise ValueError(f"weights has no weight_hh_l0: expected torch's names (weight_ih_l0, ...), got {names}")
    first = _check_weight("weight_ih_l0", weights["weight_ih_l0"]) if "weight_ih_l0" in weights else None
    if first is not None and (first.ndim != 2 or first.shape[0] % 4):
        raise ValueError(f"weight_ih_l0 has shape {first.shape}, expected (4*hidden_size, input_size)")
    second = _check_weight("weight_hh_l0", weights["weight_hh_l0"])
    if second.ndim != 2 or second.shape[0] % 4:
        raise ValueError(f"weight_hh_l0 has shape {second.shape}, expected (4*hidden_size, hidden_size or proj_size)")
    projection = _check_weight("weight_hr_l0", weights["weight_hr_l0"]) if "weight_hr_l0" in weights else None
    if projection is not None and (projection.ndim != 2 or 0 in projection.shape):
        raise ValueError(f"weight_hr_l0 has shape {projection.shape}, expected (proj_size, hidden_size)")
    num_layers = 1
    while f"weight_ih_l{num_layers}" in weights:
        num_layers += 1
    return _spec(
        0 if first is None else first.shape[1],
        (second if first is None else first).shape[0] // 4,
        num_layers,
        "bias_ih_l0" in weights or "bias_hh_l0" in weights,
        "weight_hh_l0_reverse" in weights,
        0 if projection is None else projection.shape[0],
        "weight_peephole_l0" in weights,
        "gamma_ih_l0" in weights,
    )


def _named_arrays(spec: WeightSpec, weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    shapes = _shapes(spec)
    missing = [name for name in shapes if name not in weights]
    if missing:
        raise ValueError(f"weights lacks {', '.join(missing)}: expected the weights of {spec}")
    if len(weights) != len(shapes):
        unexpected = [str(name) for name in weights if name not in shapes]
        raise ValueError(f"weights has unexpected {', '.join(unexpected)}: expected the weights of {spec}")
    arrays = [_check_weight(name, weights[name]) for name in shapes]
    for array, (name, shape) in zip(arrays, shapes.items(), strict=True):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, but {spec} needs {shape}")
    return arrays


def spec_and_arrays(weights: Mapping[str, Any], spec: WeightSpec | None = None) -> tuple[WeightSpec, list[Any]]:
    """The spec, read from the weights if None, and the arrays in torch's order, on any device, of any dtype."""
    if spec is None:
        spec = _spec_of(weights)
    return spec, _named_arrays(spec, weights)


def checked_arrays(
    weights: Mapping[str, np.ndarray], spec: WeightSpec | None = None
) -> tuple[WeightSpec, list[np.ndarray]]:
    """The spec, read from the weights if None, and the arrays in torch's order, all of the first one's dtype.

    >>> spec, arrays = checked_arrays({"weight_hh_l0": np.ones((4, 1)), "weight_ih_l0": np.ones((4, 2))})
    >>> spec.input_size, [array.shape for array in arrays]
    (2, [(4, 2), (4, 1)])
    """
    spec, arrays = spec_and_arrays(weights, spec)
    dtype = arrays[0].dtype
    for name, array in zip(_shapes(spec), arrays, strict=True):
        check_array(name, array, dtype=dtype)
    return spec, arrays


def check_dtype(dtype: npt.DTypeLike, half: bool = False) -> np.dtype[Any]:
    """A layer's dtype; raises TypeError for another one or byte order. half: whether it may be float16, as on a GPU."""
    names = [*(["float16"] if half else []), "float32", "float64"]
    try:
        checked: np.dtype[Any] | None = np.dtype(dtype)
    except TypeError:  # NumPy has none of this name
        checked = None
    if checked is None or checked.name not in names or not checked.isnative:
        raise TypeError(f"dtype is {checked or dtype}, expected {', '.join(names[:-1])} or {names[-1]}")
    return checked


def check_weights(spec: WeightSpec, weights: Mapping[str, np.ndarray], dtype: npt.DTypeLike) -> dict[str, np.ndarray]:
    """The weights in torch's order as aligned C-contiguous arrays; copied only where they were not that already.

    Raises ValueError for a missing or unexpected name or a wrong shape, TypeError for what is not a NumPy array of
    `dtype`; both name the weight, what it is and what was expected.

    >>> spec = WeightSpec(8, 5, bias=False)
    >>> weights = {"weight_hh_l0": np.zeros((20, 5)), "weight_ih_l0": np.zeros((8, 20)).T}
    >>> list(check_weights(spec, weights, np.float64))
    ['weight_ih_l0', 'weight_hh_l0']
    >>> check_weights(spec, weights, np.float32)
    Traceback (most recent call last):
    TypeError: weight_ih_l0 has dtype float64, expected float32: convert it with weight_ih_l0.astype(np.float32)
    """
    arrays = dict(zip(_shapes(spec), _named_arrays(spec, weights), strict=True))
    dtype = np.dtype(dtype)
    return {name: _contiguous(check_array(name, array, dtype=dtype)) for name, array in arrays.items()}


def _contiguous(array: np.ndarray) -> np.ndarray:
    plain = type(array) is np.ndarray and array.flags.c_contiguous and array.flags.aligned
    return array if plain else np.require(array, requirements=["C", "A", "E"])


def initial_weights(
    spec: WeightSpec, *, dtype: npt.DTypeLike, rng: np.random.Generator, forget_bias: float | None = None
) -> dict[str, np.ndarray]:
    """Fresh weights, uniform in `[-1/sqrt(H), 1/sqrt(H)]` as torch.nn.LSTM draws them (`RNNBase.reset_parameters`).

    Layer normalisation's gains are 1, its bias is 0.
    Drawn in float64 and rounded to `dtype`, in torch's order of names: one seed gives the same weights in both dtypes.
    `forget_bias` makes the forget gate start open (Jozefowicz et al. 2015 use 1): on every layer and direction b_ih's
    f slice is that value and b_hh's is 0, so that their sum is the value. Raises ValueError if there is no bias.

    >>> spec = WeightSpec(8, 2)
    >>> weights = initial_weights(spec, dtype=np.float32, rng=np.random.default_rng(0), forget_bias=1.0)
    >>> (weights["bias_ih_l0"] + weights["bias_hh_l0"])[2:4]
    array([1., 1.], dtype=float32)
    """
    if forget_bias is not None and not spec.bias:
        raise ValueError(f"forget_bias is {forget_bias}, but bias is False: expected forget_bias=None")
    bound = 1.0 / np.sqrt(spec.hidden_size)
    constants = {"gamma": 1.0, "beta": 0.0}
    weights = {
        name: np.full(shape, constant, dtype)
        if (constant := constants.get(name.split("_")[0])) is not None
        else rng.uniform(-bound, bound, shape).astype(dtype)
        for name, shape in spec.shapes().items()
    }
    if forget_bias is not None:
        forget = slice(spec.hidden_size, 2 * spec.hidden_size)
        for name, weight in weights.items():
            if name.startswith("bias_ih"):
                weight[forget] = forget_bias
            elif name.startswith("bias_hh"):
                weight[forget] = 0.0
    return weights
