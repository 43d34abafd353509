"""The weights that a layer owns on a GPU, and how they get there; `owned_weights` has those on the CPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .cuda import native
from .device_arrays import LIBRARIES, ArrayLibrary, DeviceArray, library_of, on_gpu
from .device_layouts import check_on_gpu
from .owned_weights import LSTMWeights
from .weights import check_array, check_dtype

__all__ = ["DeviceLSTMWeights", "moved"]


class DeviceLSTMWeights(LSTMWeights):
    """A layer's weights by torch's names. Reading gives copies, since arrays on a GPU cannot be read-only.

    Assigning copies an array in, from where the layer is or NumPy's.
    """

    def __init__(self, arrays: dict[str, DeviceArray], version: int = 0) -> None:
        super().__init__(arrays, version)
        self._like = next(iter(arrays.values()))

    @property
    def library(self) -> ArrayLibrary:
        return library_of("a weight", self._like)

    @property
    def device(self) -> str:
        return f"cuda:{self.library.device(self._like)}"

    def __getitem__(self, name: str) -> DeviceArray:
        with self.library.current(self._like):
            return self.library.copied(self._arrays[name])

    def check(self, name: str, array: object) -> DeviceArray:
        own, dtype = self._arrays[name], self.library.dtype(self._like)
        if isinstance(array, np.ndarray) and not on_gpu(array):
            checked = check_array(name, array, tuple(own.shape), np.dtype(dtype))
            with self.library.current(self._like):
                return self.library.put(checked, self._like)
        check_on_gpu(name, array, tuple(own.shape), dtype, self._like)
        return array

    def copies(self) -> dict[str, DeviceArray]:
        return {name: self[name] for name in self}

    def numpy(self) -> dict[str, np.ndarray]:
        return {name: self.library.get(array) for name, array in self._arrays.items()}

    def _protect(self) -> None: ...  # by giving away copies only

    def _write(self, own: DeviceArray, array: DeviceArray) -> None:
        with self.library.current(self._like):
            own[...] = array


def moved(weights: LSTMWeights, device: str | DeviceArray, dtype: npt.DTypeLike) -> LSTMWeights:
    """Copies of the weights on another device, of this dtype; `LSTM.to` says how a device is named. Waits for them."""
    place = device if on_gpu(device) else _place(str(device))
    dtype = check_dtype(dtype, half=place is not None)
    arrays = {name: array.astype(dtype) for name, array in weights.numpy().items()}
    version = weights._version + 1  # no pack made before is of these
    if place is None:
        return LSTMWeights(arrays, version)
    native()
    library = library_of("device", place)
    with library.current(place):
        return DeviceLSTMWeights({name: library.put(array, place) for name, array in arrays.items()}, version)


def _place(device: str) -> DeviceArray:
    """An array on the device; None for the CPU."""
    kind, colon, number = device.partition(":")
    if device == "cpu":
        return None
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise ValueError(f"device is {device!r}, expected 'cpu', 'cuda', 'cuda:N', or an array on a GPU")
    native()  # the first thing to be missing
    for make in LIBRARIES.values():
        try:
            return make().at(int(number) if colon else None)
        except ImportError:
            continue
    raise RuntimeError(f"device is {device!r}, but neither CuPy nor torch is installed: pip install fastlstm[cuda13]")
