"""Layers that own their weights: how these are read and changed, and that they are packed again when they have been."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from .weights import check_array

__all__ = ["LSTMWeights", "OwnsWeights"]


class LSTMWeights(MutableMapping[str, np.ndarray]):
    """A layer's weights by torch's names. Reading gives read-only views; assigning copies an array in.

    The set of names is the layer's: none can be added or deleted.
    """

    def __init__(self, arrays: dict[str, np.ndarray], version: int = 0) -> None:
        self._arrays = arrays
        self._version = version
        self._protect()

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name].view()

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        if name not in self._arrays:
            raise KeyError(f"{name!r} is no weight of this layer, expected one of {', '.join(self._arrays)}")
        self._write(self._arrays[name], self.check(name, array))
        self._version += 1

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name!r} cannot be deleted: a layer keeps all of its weights")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def device(self) -> str:
        return "cpu"

    def check(self, name: str, array: object) -> np.ndarray:
        """The array, if it can be assigned to this name; else TypeError or ValueError."""
        own = self._arrays[name]
        return check_array(name, array, own.shape, own.dtype)

    def copies(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._arrays.items()}

    def numpy(self) -> dict[str, np.ndarray]:
        """The weights as NumPy arrays, not to be written."""
        return self._arrays

    def _protect(self) -> None:
        for array in self._arrays.values():
            array.flags.writeable = False  # of the owner, so that no view of it can be made writable

    def _write(self, own: np.ndarray, array: np.ndarray) -> None:
        own.flags.writeable = True
        own[...] = array
        own.flags.writeable = False

    def __repr__(self) -> str:
        return "\n".join(f"{name} {array.shape} {array.dtype}" for name, array in self._arrays.items())


class _Packed(Protocol):
    @property
    def is_readable(self) -> bool:
        """Whether the active kernels read weights in this order."""


PackedT = TypeVar("PackedT", bound=_Packed)
LayerT = TypeVar("LayerT", bound="OwnsWeights[Any]")


class OwnsWeights(Generic[PackedT]):
    """What `LSTM` and `SLSTM` share; they call `_own` once."""

    _weights: LSTMWeights

    def _own(self, arrays: dict[str, np.ndarray]) -> None:
        self._weights = LSTMWeights(arrays)
        self._prepare()

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._packed: tuple[int, PackedT] | None = None

    def _pack(self) -> PackedT:
        """The weights as the active kernels read them."""
        packed, version = self._packed, self._weights._version
        if packed is None or packed[0] != version or not packed[1].is_readable:
            self._packed = packed = version, self._pack_now()
        return packed[1]

    def _pack_now(self) -> PackedT:
        raise NotImplementedError

    def _checked(self, state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All of these weights, or an error that names the one that is not this layer's."""
        raise NotImplementedError

    @property
    def weights(self) -> LSTMWeights:
        """The weights by name: read-only views. `layer.weights[name] = array` copies an array in.

        >>> import fastlstm
        >>> lstm = fastlstm.LSTM(1, 1, bias=False, seed=0)
        >>> lstm.weights["weight_hh_l0"] = np.ones((4, 1), np.float32)
        >>> lstm.weights["weight_hh_l0"][0] = 2
        Traceback (most recent call last):
        ValueError: assignment destination is read-only
        """
        return self._weights

    @contextmanager
    def updating(self) -> Iterator[dict[str, np.ndarray]]:
        """The weights as arrays to write into; they become the layer's on leaving, and stay as they were on an error.

        >>> import fastlstm
        >>> lstm = fastlstm.LSTM(1, 1, bias=False, seed=0)
        >>> with lstm.updating() as weights:
        ...     weights["weight_hh_l0"] *= 0
        >>> float(abs(lstm.weights["weight_hh_l0"]).max())
        0.0
        """
        drafts = self.state_dict()
        yield drafts
        self.load_state_dict(drafts)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the weights by name, in torch's order where it has one."""
        return self._weights.copies()

    def load_state_dict(self, state_dict: Mapping[str, np.ndarray]) -> None:
        """Take over all weights; names, shapes and dtype must be this layer's exactly, else nothing is changed."""
        for name, array in self._checked(state_dict).items():
            self._weights[name] = array

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_packed")}
        return own | {"_weights": type(self._weights)(self.state_dict())}

    def __deepcopy__(self: LayerT, memo: dict[int, Any]) -> LayerT:
        other: LayerT = type(self).__new__(type(self))
        other.__setstate__(self.__getstate__())  # which copies the weights; all else is never changed in place
        return other

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()
