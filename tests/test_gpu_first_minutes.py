"""The bench of GPUs where there is none: the script names what is absent; its Python runs on an emulated GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).resolve().parent
BENCH = TESTS.parent / "bench"
PARTS = ["here", "quick", "tests", "sanitizer", "cudnn", "steps", "choices", "report"]


def first_minutes(folder: Path, *arguments: str, python: str | Path = sys.executable) -> subprocess.CompletedProcess:
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a driver: the script would begin its real work")
    command = [BENCH / "gpu_first_minutes.sh", "-o", folder, *arguments]
    return subprocess.run(
        command, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True, timeout=120
    )


def test_without_a_gpu_all_that_is_absent_is_named(tmp_path: Path) -> None:
    done = first_minutes(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nvidia-smi: absent" in done.stdout and "absent: CUDA in fastlstm: " in done.stdout
    assert "absent: torch " in done.stdout and "absent: cupy " in done.stdout
    ends = [line.partition(",")[0] for line in done.stdout.splitlines()[-len(PARTS) :]]
    assert ends == [f"{part}: skipped" for part in PARTS]
    assert (tmp_path / "log.txt").read_text() == done.stdout


def interpreter(folder: Path, lines: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def test_parts_that_fail_do_not_end_the_run(tmp_path: Path) -> None:
    fails = interpreter(tmp_path, 'case "$*" in *gpu_arrays*|*"import pytest"*) exit 0;; *) exit 3;; esac')
    done = first_minutes(tmp_path, "here", "quick", "steps", "report", python=fails)
    assert done.returncode == 1
    ends = [line.partition(",")[0] for line in done.stdout.splitlines()[-4:]]
    assert ends == ["here: passed", "quick: FAILED with status 3", "steps: FAILED with status 3", "report: skipped"]


def test_a_part_gets_its_share_of_the_time(tmp_path: Path) -> None:
    waits = interpreter(tmp_path, 'case "$*" in *gpu_arrays*) exit 0;; *) exec sleep 60;; esac')
    done = first_minutes(tmp_path, "-s", "3", "here", "choices", python=waits)
    assert done.returncode == 1
    assert "choices: FAILED: out of time, " in done.stdout


def emulated(module: ModuleType, program: str, *arguments: object, code: str = "") -> subprocess.CompletedProcess:
    """Run a program of the bench on the emulated GPU, which `code` may change before."""
    lines = f"import sys, runpy; sys.path[:0] = {[str(BENCH), str(TESTS)]!r}; import emulated_bench\n"
    lines += f"emulated_bench.install({module.__file__!r}); sys.argv[0] = {program!r}\n{code}\n"
    lines += f"runpy.run_path({str(BENCH / program)!r}, run_name='__main__')"
    command = [sys.executable, "-c", lines, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


TINY = ["--shapes", "2,6", "3,20", "--steps", "12", "--rounds", "2", "--precisions", "fp16", "fp32", "tf32"]


def test_every_system_is_checked_timed_and_laid_out(emulated_module: ModuleType, tmp_path: Path) -> None:
    done = emulated(emulated_module, "gpu.py", "steps", *TINY, "--folder", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "steps.json").read_text())
    rows = {(row["case"], row["precision"], row["mode"], row["system"]): row for row in report["rows"]}
    assert len(rows) == len(report["rows"]) == 2 * 3 * 2 * 6
    for (case, precision, _, system), row in rows.items():
        if system == "step graph":
            assert row["missing"] == "the emulator has no graphs"
        elif system == "cudnn" and not find_spec("torch"):
            assert row["missing"] == "torch is not installed"
        else:
            assert row["error"] <= (1e-5 if precision == "fp32" else 1e-2)
            assert 0 < row["q1"] <= row["median"] <= row["q3"] and row["blocks"] >= 1, (case, system)
        assert system != "auto" or row["took"] in ("step", "resident", "persistent")
    assert report["not_reached"] == 0 and report["gpu"]["name"] == "emulated" and "commit" in report

    done = emulated(emulated_module, "gpu_report.py", tmp_path / "steps.json")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "steps.md").read_text()
    for heading in ("## Inference, fp16", "## Training, tf32", "## The automatic choice", "## Errors"):
        assert heading in text
    if find_spec("torch") and find_spec("matplotlib"):
        assert (tmp_path / "steps-training.png").read_bytes().startswith(b"\x89PNG")


ONE = ["choices", "--shapes", "2,6", "--steps", "4", "--rounds", "1", "--precisions", "fp32", "--modes", "inference"]


def test_a_wrong_result_is_not_timed(emulated_module: ModuleType, tmp_path: Path) -> None:
    code = "from fastlstm import functional; forward = functional.lstm_forward\n"
    code += "def wrong(x, weights, state, **more):\n"
    code += "    y, states, tape = forward(x, weights, state, **more)\n"
    code += "    return y * (1.01 if more['algo'] == 'step' else 1), states, tape\n"
    code += "functional.lstm_forward = lambda *a, algo=None, **more: wrong(*a, algo=algo, **more)"
    done = emulated(emulated_module, "gpu.py", *ONE, "--folder", tmp_path, code=code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WRONG: step, N=2, H=6, fp32, inference: y is 1.0e-02 off" in done.stdout
    timed = {row["system"]: "median" in row for row in json.loads((tmp_path / "choices.json").read_text())["rows"]}
    assert timed == {"auto": True, "step": False, "resident": True, "persistent": True}


def test_a_crash_is_reported_and_a_new_process_goes_on(emulated_module: ModuleType, tmp_path: Path) -> None:
    """An error that leaves the process without a GPU: as a new one, it would begin behind what crashed."""
    code = "def broken(*_): raise RuntimeError('an illegal memory access')\n"
    code += "import os; os.execv = lambda path, argv: sys.exit('once more: ' + ' '.join(argv[2:]))\n"
    code += "emulated_bench.EmulatedGpu.time = lambda self, run, calls: setattr(type(self), 'put', broken) or broken()"
    done = emulated(emulated_module, "gpu.py", *ONE, "--folder", tmp_path, code=code)
    assert "once more: choices" in done.stderr and "--resume --until" in done.stderr
    rows = json.loads((tmp_path / "choices.json").read_text())["rows"]
    assert all("an illegal memory access" in row["crashed"] for row in rows)
    done = emulated(emulated_module, "gpu.py", *ONE, "--folder", tmp_path, "--resume")
    assert json.loads((tmp_path / "choices.json").read_text())["rows"] == rows
    assert done.returncode == 1 and done.stdout.count("CRASHED: ") == len(rows)


def test_when_the_time_is_over_it_is_said(emulated_module: ModuleType, tmp_path: Path) -> None:
    done = emulated(emulated_module, "gpu.py", *ONE, "--folder", tmp_path, "--seconds", -1)
    assert done.returncode == 0, done.stderr
    assert "the time was over before 1 shapes, precisions and modes" in done.stdout
    assert (
        "The time was over before 1 of" in emulated(emulated_module, "gpu_report.py", tmp_path / "choices.json").stdout
    )
