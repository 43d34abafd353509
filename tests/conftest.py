"""What every test shares: it runs on each instruction set (`isa`) and in each dtype (`dtype`) that it asks for."""

from __future__ import annotations

import gc
import os
import pkgutil
import random
import sys
import zlib
from collections.abc import Iterator
from types import ModuleType

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads spin after each product: read where NumPy is imported

import numpy as np
import pytest

import beside
import cuda_build
import emulated_cuda
import fastlstm
from combinations import CONFIG, DTYPES, RUNNABLE
from gpus import REAL, Gpu, why_not

PARAMETERS = {"isa": RUNNABLE, "dtype": DTYPES, "gpu": ["emulated", *REAL]}


def pytest_report_header() -> list[str]:
    missing = [isa for isa in CONFIG["isa_compiled"] if isa not in RUNNABLE]
    threads = f"{CONFIG['num_threads']} threads"
    return [
        f"fastlstm {fastlstm.__version__} ({CONFIG['compiler']}, {threads}) from {fastlstm.__path__[0]}",
        f"instruction sets tested: {', '.join(RUNNABLE)}; not tested here: {', '.join(missing) or 'none'}",
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Ids begin with isa and dtype, as in `test_forward[x86_v3-float32-primes]`; a test's own parameters come after."""
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    for name, values in PARAMETERS.items():
        if name in metafunc.fixturenames and not any(name in argnames for argnames in own):
            metafunc.parametrize(name, values, indirect=name in ("isa", "gpu"))


def pytest_configure(config: pytest.Config) -> None:
    beside.register(config)


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()  # some hundred thousand tests and parameters, which the collector would look through again and again
    # The build is waited for when nothing else is left to do but what runs beside.
    session.items.sort(key=lambda item: item.path.name == "test_cuda_build.py")
    wanted = any(item.path.name == "test_cuda_build.py" for item in session.items)
    if wanted and not session.config.option.collectonly and not cuda_build.why_not():
        session.config.stash[cuda_build.KEY] = cuda_build.CudaBuild()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if build := session.config.stash.get(cuda_build.KEY, None):
        build.stop()


@pytest.fixture
def isa(request: pytest.FixtureRequest, restored_settings: None) -> str:
    """The instruction set that is active during the test."""
    fastlstm.set_isa(request.param)
    return request.param


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """`_cuda`, compiled for the emulator."""
    if reason := emulated_cuda.why_not():
        pytest.skip(reason)
    return emulated_cuda.build(tmp_path_factory.mktemp("emulated_cuda"))


@pytest.fixture
def emulator(emulated_module: ModuleType) -> Iterator[emulated_cuda.Emulator]:
    """The emulator's settings, which end with the test."""
    emulator = emulated_cuda.Emulator(emulated_module)
    yield emulator
    emulator.set_mutation("")
    emulator.set_seed(0)
    emulator.set_shared_bytes()
    emulator.set_livelock_limit()


@pytest.fixture
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """What the test has its arrays on; a real GPU needs a fastlstm that was built with CUDA, and CuPy or torch."""
    if request.param.startswith("emulated"):
        module = request.getfixturevalue("emulated_module")
        monkeypatch.setitem(sys.modules, "fastlstm._cuda", module)
        # Each test has an order of threads of its own, the same in every run; another seed, other orders.
        seed = os.environ.get("FASTLSTM_EMULATION_SEED", "0")
        emulated_cuda.Emulator(module).set_seed(zlib.crc32(f"{request.node.nodeid} {seed}".encode()))
    elif reason := why_not(request.param) or fastlstm.cuda.reason():
        pytest.skip(reason)
    return Gpu(request.param)


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """A test draws the same numbers in every run, whichever ran before."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, for those who draw from it
    for name, seed_of in (("torch", "torch.manual_seed"), ("keras", "keras.utils.set_random_seed")):
        if name in sys.modules:
            pkgutil.resolve_name(seed_of)(seed)


@pytest.fixture(autouse=True)
def restored_settings() -> Iterator[None]:
    """No test leaves another number of threads or instruction set behind.

    It begins with one thread: those that are about more ask for them. On so little work as tests have, two only wait
    for one another, a slice of the scheduler at each step where another process, as nvcc, has a processor.
    """
    before = fastlstm.get_num_threads(), fastlstm.active_isa()
    fastlstm.set_num_threads(1)
    yield
    fastlstm.set_num_threads(before[0])
    fastlstm.set_isa(before[1])


@pytest.fixture
def one_thread_of_torch() -> Iterator[None]:
    """On so little work as tests have, threads only wait for one another."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def jax_with_both_dtypes() -> Iterator[None]:
    """Of all threads, unlike `jax.enable_x64`."""
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
