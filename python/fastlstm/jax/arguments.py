"""What `lstm` checks of its arguments while it is traced, and what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _core
from ..cells import LSTMCellOptions, check_cell_options, check_probability
from ..functional import check_call
from ..layouts import Layout, check_cell, check_input, enter_states
from ..weights import WeightSpec, checked_arrays
from .call import Call

__all__ = ["call_and_arrays"]

Arrays = tuple[Any, list[Any], list[Any], list[Any]]  # x, the state's, weights in torch's order, marks


def call_and_arrays(
    x: Any,
    weights: Mapping[str, Any],
    state: tuple[Any, Any] | None,
    *,
    cell: LSTMCellOptions,
    dropout: float,
    dropout_seed: Any,
    dropout_call: Any,
    marks: dict[str, Any],
    masked_output: str,
    training: bool,
    threads: int | None,
    **flags: Any,
) -> tuple[Call, Arrays]:
    check_call(masked_output, training=training, **flags)
    x = _array("x", x)
    if isinstance(weights, Mapping):
        weights = {name: _array(name, weight) for name, weight in weights.items()}
    spec, shapes = _spec_and_shapes(weights, flags["transposed_weights"])
    check_cell(spec, check_cell_options(cell))
    dtype = shapes[0].dtype
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"the weights have dtype {dtype}, expected float32 or float64")
    layout = check_input(_shape_of(x), spec, dtype, flags.pop("batch_first"))
    states = _states(state, spec, layout, dtype)
    given = {name: _mark(name, mark, layout) for name, mark in marks.items() if mark is not None}
    p = check_probability("dropout", dropout)
    draws = training and (cell.draws or (p > 0 and spec.num_layers > 1))
    if draws:
        given["seed"] = _words(dropout_seed, dropout_call)
    call = Call(
        spec,
        cell if draws else replace(cell, input_dropout=0.0, recurrent_dropout=0.0, weight_drop=0.0),
        layout,
        dtype.name,
        _core.active_isa(),
        p if draws else 0.0,
        repeat=masked_output == "repeat",
        draws=draws,
        threads=_threads(threads),
        has_state=bool(states),
        marks=tuple(given),
        **flags,
    )
    return call, (x, states, [weights[name] for name in call.names], list(given.values()))


def _spec_and_shapes(weights: Any, transposed: bool) -> tuple[WeightSpec, list[np.ndarray]]:
    if not isinstance(weights, Mapping):
        return checked_arrays(weights)
    shapes = {name: _shape_of(weight) for name, weight in weights.items()}
    if not transposed:
        return checked_arrays(shapes)
    try:
        return checked_arrays({name: shape.T for name, shape in shapes.items()})
    except ValueError as error:
        raise ValueError(f"transposed_weights is True, and of the transposes {error}") from None


def _array(name: str, value: Any) -> Any:
    """As a JAX array, on the CPU."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"{name} is a {_type(value)}, expected a jax.Array or a numpy.ndarray")
    array = value if isinstance(value, jax.Array) else jnp.asarray(value)  # which would differentiate a copy of it
    if (platforms := platforms_of(array)) - {"cpu"}:
        cure = f'jax.device_put({name}, jax.devices("cpu")[0])'
        raise ValueError(f"{name} is on {', '.join(sorted(platforms))}, expected the CPU: {cure}")
    return array


def platforms_of(array: Any) -> set[str]:
    """Where it is, as far as is known."""
    return set() if isinstance(array, jax.core.Tracer) else {device.platform for device in array.devices()}


def _shape_of(array: Any) -> np.ndarray:
    """A NumPy array of its shape and dtype, of one number, for the checks that NumPy's arrays go through."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape)


def _states(state: Any, spec: WeightSpec, layout: Layout, dtype: np.dtype[Any]) -> list[Any]:
    if state is None:
        return []
    names = "state[0] (h0)", "state[1] (c0)"
    shapes: Any = state  # refused as it is, where it is no pair
    if isinstance(state, (tuple, list)) and len(state) == 2:
        halves = [None if half is None else _array(name, half) for name, half in zip(names, state, strict=True)]
        shapes = tuple(None if half is None else _shape_of(half) for half in halves)
    enter_states("state", names, shapes, spec, layout, dtype)
    rows = spec.num_layers * spec.num_directions
    sizes = [layout.state(rows, size) for size in (spec.hidden_output, spec.hidden_size)]
    return [jnp.zeros(size, dtype) if half is None else half for half, size in zip(halves, sizes, strict=True)]


def _mark(name: str, mark: Any, layout: Layout) -> Any:
    array = jnp.asarray(mark)
    kinds, expected = ("iu", "integers") if name == "lengths" else ("biuf", "booleans, or numbers 0 and 1")
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name} has dtype {array.dtype}, expected {expected}")
    shape = layout.sequence() if name != "lengths" else () if layout.unbatched else (layout.batch,)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    return array


def _words(seed: Any, call: Any) -> Any:
    """uint32 `[3]`: the high and the low word of the seed, and the number of the call."""
    return jnp.concatenate([_seed_words(seed), _integer("dropout_call", call)[1:]])


def _seed_words(seed: Any) -> Any:
    if isinstance(seed, (jax.Array, np.ndarray)) and (
        jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) or (seed.dtype == np.uint32 and seed.ndim == 1)
    ):
        return jax.random.bits(seed, (2,), jnp.uint32)
    if isinstance(seed, (int, np.integer)) and not 0 <= seed < 2**64:
        raise ValueError(f"dropout_seed is {seed}, expected an integer from 0 to 2**64 - 1")
    return _integer("dropout_seed", seed, ", or a key of jax.random")


def _integer(name: str, number: Any, more: str = "") -> Any:
    """Its high and low word."""
    if isinstance(number, (int, np.integer)) and not isinstance(number, bool):
        return jnp.asarray(np.array([int(number) >> 32 & 0xFFFFFFFF, int(number) & 0xFFFFFFFF], np.uint32))
    if not isinstance(number, (jax.Array, np.ndarray)) or number.dtype.kind not in "iu" or number.ndim:
        shown = f"of shape {number.shape} and dtype {number.dtype}" if hasattr(number, "dtype") else repr(number)
        raise TypeError(f"{name} is {shown}, expected an integer, an array of one without axes{more}")
    number = jnp.asarray(number)
    high = number >> 32 if number.dtype.itemsize == 8 else jnp.zeros_like(number)
    return jnp.stack([high.astype(jnp.uint32), number.astype(jnp.uint32)])


def _threads(threads: Any) -> int | None:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, (int, np.integer))):
        raise TypeError(f"threads is a {_type(threads)}, expected a positive integer or None")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, expected a positive integer or None")
    return None if threads is None else int(threads)


def _type(value: Any) -> str:
    return type(value).__qualname__
