"""The examples, as their users run them, but shorter; the pages of docs/, block by block."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from emulated_arrays import emulated
from fastlstm.device_arrays import LIBRARIES

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = {page.stem: page for page in sorted((EXAMPLES.parent / "docs").glob("*.md"))}
# Packages, of the pages of faces
NEEDS = {"jax": ("jax",), "onnx": ("onnx",), "sklearn": ("sklearn",), "torch": ("torch",)}


# That on Keras runs on each of its backends, in tests/keras_models.py.
@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"gpu", "keras"}))
def test_every_block_of_a_page_runs(page: str) -> None:
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    run_blocks(PAGES[page])


def test_every_block_of_the_page_on_gpus_runs(
    emulated_module: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    # CuPy's place is taken by the emulated arrays.
    monkeypatch.setattr("fastlstm.device_owned_weights.LIBRARIES", {"cupy": LIBRARIES["emulated_arrays"]})
    cupy = SimpleNamespace(asarray=emulated, ones=lambda shape, dtype: emulated(np.ones(shape, dtype)))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "fastlstm._cuda", emulated_module)
    run_blocks(PAGES["gpu"])


def run_blocks(page: Path) -> None:
    text, names = page.read_text(), {}
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    for block in blocks:
        line = text.count("\n", 0, block.start(1))  # so that a traceback shows the page's own line
        exec(compile("\n" * line + block[1], str(page), "exec"), names)
    assert blocks and text.count("```") == 2 * len(blocks), "a block that is not Python is not run"


def test_the_language_models_learn_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("matplotlib", "sklearn", "torch"):
        pytest.importorskip(package)
    assert example("torch_language_model").main(epochs=1, hidden=32, threads=1, folder=tmp_path) == 0
    assert "losses differ by at most" in capsys.readouterr().out
    assert (tmp_path / "torch_language_model.png").read_bytes().startswith(b"\x89PNG")


def test_processes_learn_together_and_outlive_one_of_them(tmp_path: Path) -> None:
    """Two of them, one killed in the second epoch, end where one process does that sees whole batches."""
    for package in ("sklearn", "torch"):
        pytest.importorskip(package)
    import torch

    together, alone = tmp_path / "together.pt", tmp_path / "alone.pt"
    program = [str(EXAMPLES / "torch_ddp.py"), "--epochs", "2", "--checkpoint", str(together), "--kill-in-epoch", "1"]
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "3",
    ]
    done = subprocess.run([*run, *program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:]
    assert "process 0 goes on with epoch 1" in done.stdout and "process 1 goes on with epoch 1" in done.stdout
    threads = torch.get_num_threads()
    try:
        accuracy = example("torch_ddp").main(alone, epochs=2)
    finally:
        torch.set_num_threads(threads)
    assert f"2 processes read {accuracy:.1%}" in done.stdout and accuracy > 0.2
    found, expected = (torch.load(path)["model"] for path in (together, alone))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


def test_co2_forecasts_are_better_than_last_year_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("matplotlib", "sklearn", "statsmodels", "tqdm"):
        pytest.importorskip(package)
    assert example("co2_forecast").main(epochs=4, folder=tmp_path) == 0
    assert "2284 weeks, 59 of them missing" in capsys.readouterr().out
    assert (tmp_path / "co2_forecast.png").read_bytes().startswith(b"\x89PNG")


def test_the_tutorial_reads_as_many_digits_with_either_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("keras", "matplotlib", "sklearn", "torch"):
        pytest.importorskip(package)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # more of them only wait for one another on so little work
    assert example("keras_tutorial").main(epochs=1, backends=["torch"], folder=tmp_path) == 0
    assert capsys.readouterr().out.count("%") == 2
    assert (tmp_path / "keras_tutorial.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    for package in ("matplotlib", "safetensors", "sklearn", "tqdm"):
        pytest.importorskip(package)
    return example("digits")


def test_digits_agrees_with_the_reference_and_writes_its_files(digits, tmp_path, capsys):
    assert digits.main(epochs=2, folder=tmp_path) == 0
    said = capsys.readouterr().out
    assert "FAILED" not in said and said.count("allowed  ok") == 3
    assert "saved, loaded, predicts the same yes" in said
    assert {path.name for path in tmp_path.iterdir()} == {
        "digits.png",
        "digits.safetensors",
        "digits_dense.safetensors",
    }
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_digits_learns(digits):
    data = digits.load_data("float32")
    ours = digits.run(digits.functional, data, "float32", epochs=10)
    assert ours.accuracy >= 0.96
    assert ours.losses[-1].mean() < 0.1 * ours.losses[0].mean()


def test_digits_fails_where_the_two_disagree(digits, tmp_path, monkeypatch, capsys):
    forward = digits.functional.lstm_forward

    def slightly_wrong(x, weights, **options):
        y, (h_n, c_n), tape = forward(x, weights, **options)
        return y, (h_n * (1 + 1e-3), c_n), tape

    monkeypatch.setattr(digits.functional, "lstm_forward", slightly_wrong)
    assert digits.main(epochs=1, folder=tmp_path) == 1
    assert "FAILED" in capsys.readouterr().out
