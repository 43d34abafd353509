"""A GPU as gpu.py sees it: the arrays of a library, its clock, its graphs. Computes no LSTM.

python bench/gpu_arrays.py says what is here; it exits with 1 if there is a GPU that fastlstm cannot use, 3 if none.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

import fastlstm
from rivals import Missing

GPU_QUERY = ("name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "power.limit")
NOT_USABLE, NO_GPU = 1, 3


class Gpu(Protocol):
    """A library whose arrays are on a GPU."""

    name: str

    def put(self, array: np.ndarray, dtype: str) -> Any: ...
    def get(self, array: Any) -> np.ndarray: ...
    def use_tf32(self, allowed: bool) -> None:
        """In the library's own float32 products and LSTM; raises Missing where that cannot be said."""

    def time(self, run: Callable[[], Any], calls: int) -> tuple[float, float]:
        """Seconds of a call on the GPU, and until it returns to Python."""

    def graph(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """`run`, captured once; what comes back runs it again, into the same arrays."""

    def release(self) -> None:
        """Memory that is kept for later calls."""

    def facts(self) -> dict[str, Any]: ...


class TorchGpu:
    name, device = "torch", "cuda"

    def __init__(self) -> None:
        self.torch = importlib.import_module("torch")
        if not self.torch.cuda.is_available():
            raise Missing("torch sees no GPU")

    def put(self, array: np.ndarray, dtype: str) -> Any:
        return self.torch.from_numpy(np.array(array)).to(self.device, getattr(self.torch, dtype))

    def get(self, array: Any) -> np.ndarray:
        return array.detach().double().cpu().numpy()

    def use_tf32(self, allowed: bool) -> None:
        self.torch.backends.cuda.matmul.allow_tf32 = allowed
        self.torch.backends.cudnn.allow_tf32 = allowed

    def time(self, run: Callable[[], Any], calls: int) -> tuple[float, float]:
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        host = time.perf_counter() - start
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls, host / calls

    def graph(self, run: Callable[[], Any]) -> Callable[[], Any]:
        cuda = self.torch.cuda
        side = cuda.Stream()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):  # handles and workspaces are made before the capture, which could not
            run()
        cuda.current_stream().wait_stream(side)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            result = run()

        def replay() -> Any:
            graph.replay()
            return result

        return replay

    def release(self) -> None:
        self.torch.cuda.empty_cache()

    def facts(self) -> dict[str, Any]:
        of = self.torch.cuda.get_device_properties(0)
        return {
            "library": f"torch {self.torch.__version__}, CUDA {self.torch.version.cuda}",
            "cudnn": self.torch.backends.cudnn.version(),
            "name": of.name,
            "compute_capability": f"{of.major}.{of.minor}",
            "processors": of.multi_processor_count,
        }


class CupyGpu:
    name = "cupy"

    def __init__(self) -> None:
        self.cupy = importlib.import_module("cupy")
        if not self.cupy.cuda.is_available():
            raise Missing("cupy sees no GPU")

    def put(self, array: np.ndarray, dtype: str) -> Any:
        if dtype == "bfloat16":
            raise Missing("cupy has no bfloat16")
        return self.cupy.asarray(array, dtype)

    def get(self, array: Any) -> np.ndarray:
        return array.get().astype(np.float64)

    def use_tf32(self, allowed: bool) -> None:
        if allowed:
            raise Missing("cupy is told of tf32 by its environment alone")

    def time(self, run: Callable[[], Any], calls: int) -> tuple[float, float]:
        begin, end = (self.cupy.cuda.Event() for _ in range(2))
        self.cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        host = time.perf_counter() - start
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(begin, end) / 1e3 / calls, host / calls

    def graph(self, run: Callable[[], Any]) -> Callable[[], Any]:
        cuda = self.cupy.cuda
        stream, pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()  # the graph's own memory: nobody else's
        cuda.Device().synchronize()
        with stream, cuda.using_allocator(pool.malloc):
            run()  # and with it come the memory and the handles, which a capture could not take
            stream.begin_capture()
            result = run()
            graph = stream.end_capture()

        def replay() -> Any:
            graph.launch()
            return result, pool

        return replay

    def release(self) -> None:
        self.cupy.get_default_memory_pool().free_all_blocks()

    def facts(self) -> dict[str, Any]:
        of = self.cupy.cuda.runtime.getDeviceProperties(0)
        return {
            "library": f"cupy {self.cupy.__version__}, CUDA {self.cupy.cuda.runtime.runtimeGetVersion()}",
            "name": of["name"].decode(),
            "compute_capability": f"{of['major']}.{of['minor']}",
            "processors": of["multiProcessorCount"],
        }


LIBRARIES: dict[str, Callable[[], Gpu]] = {"torch": TorchGpu, "cupy": CupyGpu}  # torch first: it has cuDNN's LSTM


def find() -> tuple[Gpu | None, list[str]]:
    """The first library that sees a GPU, unless fastlstm sees none; and what is absent."""
    found: list[Gpu] = []
    absent: list[str] = []
    for name, make in LIBRARIES.items():
        try:
            found.append(make())
        except ImportError:
            absent.append(f"{name} is not installed")
        except Missing as reason:
            absent.append(str(reason))
    why = fastlstm.cuda.reason()
    absent += [f"CUDA in fastlstm: {why}"] if why else []
    return (found[0] if found and not why else None), absent


def nvidia_smi() -> list[str]:
    """A line of GPU_QUERY for each GPU; none without a driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def main() -> int:
    lines = nvidia_smi()
    print("nvidia-smi:", "; ".join(lines) or "absent, or it sees no GPU")
    for name, value in fastlstm.build_config().items():
        print(f"fastlstm {fastlstm.__version__}, {name}: {value}")
    gpu, absent = find()
    absent += [f"{name} is not installed" for name in ("pytest", "matplotlib") if find_spec(name) is None]
    absent += [f"{name} is not on PATH" for name in ("compute-sanitizer",) if shutil.which(name) is None]
    for what in absent:
        print(f"absent: {what}")
    if gpu is None:
        print("no GPU can be used")
        return NOT_USABLE if lines else NO_GPU
    print(f"arrays are those of {gpu.name}:", ", ".join(f"{name} {value}" for name, value in gpu.facts().items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
