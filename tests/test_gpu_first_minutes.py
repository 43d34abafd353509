"""The bench of GPUs where there is none: the script names what is absent; its Python runs on an emulated GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).resolve().parent
BENCH = TESTS.parent / "bench"
SCRIPT = BENCH / "gpu_first_minutes.sh"
PARTS = ["here", "quick", "tests", "cudnn", "steps", "sanitizer", "choices", "graphs", "report"]


def first_minutes(
    folder: Path, *arguments: str, python: str | Path = sys.executable, **environment: str
) -> subprocess.CompletedProcess:
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a driver: the script would begin its real work")
    command = [SCRIPT, "-o", folder, *arguments]
    environment = os.environ | {"PYTHON": str(python)} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def verdicts(done: subprocess.CompletedProcess) -> list[str]:
    """What the script says of each part at its end."""
    lines = done.stdout.rpartition("\n== ")[2].splitlines()[1:]
    return [line.partition(",")[0] for line in lines]


def test_the_script_is_bash() -> None:
    done = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_without_a_gpu_all_that_is_absent_is_named(tmp_path: Path) -> None:
    done = first_minutes(tmp_path)
    assert done.returncode == 77, done.stdout + done.stderr
    assert "nvidia-smi: absent" in done.stdout and "absent: CUDA in fastlstm: " in done.stdout
    assert "absent: torch " in done.stdout and "absent: cupy " in done.stdout
    said = "no GPU can be used: nothing was tested or timed"
    assert verdicts(done) == [*(f"{part}: skipped" for part in PARTS), said]
    assert (tmp_path / "gpu-none-log.txt").read_text() == done.stdout


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = first_minutes(tmp_path, "everything")
    assert done.returncode == 2
    assert "no part is named everything: expected some of " in done.stdout


def interpreter(folder: Path, lines: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def test_parts_that_fail_do_not_end_the_run(tmp_path: Path) -> None:
    fails = interpreter(tmp_path, 'case "$*" in *gpu_arrays*|*"import pytest"*) exit 0;; *) exit 3;; esac')
    done = first_minutes(tmp_path, "here", "quick", "steps", "report", python=fails)
    assert done.returncode == 1
    expected = ["here: passed", "quick: FAILED with status 3", "steps: FAILED with status 3", "report: skipped"]
    assert verdicts(done) == expected


def test_a_part_gets_its_share_of_the_time_that_is_left(tmp_path: Path) -> None:
    waits = interpreter(tmp_path, 'case "$*" in *gpu_arrays*) exit 0;; *) exec sleep 60;; esac')
    start = time.monotonic()
    done = first_minutes(tmp_path, "-s", "4", "here", "choices", "graphs", python=waits)
    assert time.monotonic() - start < 20
    assert done.returncode == 1
    assert verdicts(done) == ["here: passed", "choices: FAILED: out of time", "graphs: FAILED: out of time"]
    limits = [int(seconds) for seconds in re.findall(r"for at most (\d+) s", done.stdout)]
    assert len(limits) == 3 and limits[1] == 4 * 10 // 14 and limits[1] + limits[2] <= 4


def test_a_wheel_that_cannot_be_installed_ends_the_run(tmp_path: Path) -> None:
    """Else what is installed would be measured in its place."""
    fails = interpreter(tmp_path, 'case "$*" in *"pip install"*) exit 1;; *) exit 0;; esac')
    done = first_minutes(tmp_path, "-w", "no.whl", python=fails)
    assert done.returncode == 1 and "== here" not in done.stdout


def test_the_sanitizer_names_the_tool_that_fails(tmp_path: Path) -> None:
    passes = interpreter(tmp_path, "exit 0")
    tool = tmp_path / "compute-sanitizer"
    tool.write_text('#!/bin/sh\n[ "$2" = memcheck ] && exit 9\nexit 0\n')
    tool.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = first_minutes(tmp_path, "sanitizer", python=passes, PATH=path)
    assert verdicts(done) == ["sanitizer: FAILED with status 9"]
    for line in ("memcheck: FAILED with status 9", "racecheck: passed", "synccheck: passed"):
        assert line in done.stdout.splitlines()


def on_emulated_gpu(module: ModuleType, program: str, code: str = "") -> str:
    """A program of the bench as code for an interpreter, with the emulated GPU, which `code` may change before."""
    lines = f"import sys, runpy; sys.path[:0] = {[str(BENCH), str(TESTS)]!r}; import emulated_bench\n"
    lines += f"emulated_bench.install({module.__file__!r}); sys.argv[0] = {program!r}\n{code}\n"
    return f"{lines}runpy.run_path({str(BENCH / program)!r}, run_name='__main__')"


def emulated(module: ModuleType, program: str, *arguments: object, code: str = "") -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", on_emulated_gpu(module, program, code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


TINY = ["--shapes", "2,6", "3,20", "--steps", "12", "--rounds", "2", "--name", "gpu-small"]
TINY_GRIDS = {"steps": ["fp16", "fp32", "tf32"], "choices": ["fp32"], "graphs": ["fp32"]}  # and their precisions


def test_every_system_is_checked_timed_and_laid_out(emulated_module: ModuleType, tmp_path: Path) -> None:
    paths = [tmp_path / f"gpu-small-{grid}.json" for grid in TINY_GRIDS]
    systems = {"steps": 6, "choices": 4, "graphs": 5}
    for path, (grid, precisions) in zip(paths, TINY_GRIDS.items(), strict=True):
        done = emulated(emulated_module, "gpu.py", grid, *TINY, "--precisions", *precisions, "--folder", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(path.read_text())
        assert {"name", "started", "commit", "changed", "machine", "versions", "build", "settings"} <= report.keys()
        assert report["not_reached"] == 0 and report["gpu"]["name"] == "emulated"
        assert "nvidia_smi" in report["gpu"]  # the driver among it
        rows = {(row["case"], row["precision"], row["mode"], row["system"]): row for row in report["rows"]}
        assert len(rows) == len(report["rows"]) == 2 * len(precisions) * 2 * systems[grid]
        for (case, precision, _, system), row in rows.items():
            if system.endswith("graph"):
                assert row["missing"] == "the emulator has no graphs"
            elif system == "cudnn" and not find_spec("torch"):
                assert row["missing"] == "torch is not installed"
            else:
                assert row["error"] <= (1e-5 if precision == "fp32" else 1e-2)
                assert 0 < row["q1"] <= row["median"] <= row["q3"] and row["blocks"] >= 1, (case, system)
                assert row["host"] > 0
            assert system != "auto" or row["took"] in ("step", "resident", "persistent")

    done = emulated(emulated_module, "gpu_report.py", *paths)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "gpu-small.md").read_text()
    assert done.stdout.strip() == text.strip()
    for heading in ("## Beside cuDNN", "## The choice of an algorithm", "## Graphs of launches", "### Training, tf32"):
        assert heading + "\n" in text
    assert re.search(r"^\| N, H \| 6 \| 20 \|$", text, re.MULTILINE)
    assert text.count("the emulator has no graphs (4 times)") == 5
    if find_spec("matplotlib"):
        for plot in ("gpu-small-steps-inference.png", "gpu-small-steps-training.png"):
            assert f"({plot})" in text and (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


def figures(**seconds: float) -> dict[str, dict[str, object]]:
    return {system: {"system": system, "median": value, "host": value / 2} for system, value in seconds.items()}


def test_a_report_says_who_is_ahead_and_stands_beside_what_is_published(tmp_path: Path) -> None:
    """By hand: fp16, N=16, H=768, T=1024; auto takes persistent, where step would be faster."""
    systems = figures(auto=2.048e-3, step=1.024e-3, persistent=2.048e-3, cudnn=4.096e-3)
    systems["auto"]["took"] = "persistent"
    case = {"T": 1024, "B": 16, "I": 128, "H": 768}
    where = {"case": "N=16, H=768", "mode": "inference", "precision": "fp16"}
    report = {"name": "gpu-x", "grid": "steps", "started": "now", "commit": None, "changed": None, "not_reached": 3}
    report |= {"versions": {"fastlstm": "0"}, "machine": {"cpu": "", "cores": 1, "system": ""}}
    report |= {"build": {"cuda_architectures": ""}, "cases": {where["case"]: case}}
    report["gpu"] = {"name": "X", "compute_capability": "9.0", "processors": 1, "library": "", "nvidia_smi": []}
    report["rows"] = [where | row for row in systems.values()]
    (tmp_path / "gpu-x-steps.json").write_text(json.dumps(report))
    command = [sys.executable, BENCH / "gpu_report.py", tmp_path / "gpu-x-steps.json", "--no-plot"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for line in (
        "| 16 | step 2.00×, not persistent |",
        "| 16 | 768 | 1024 | 2.00 | 1.00 | 2.00 | 4.00 | persistent | 2.00 | 0.81 |",
        "| auto here | fp16 | 2.05 |  |",
        "| cuDNN | fp16 | 2.01 | 5.19 |",
        "The automatic choice over the fastest algorithm: 2.00 in the geometric mean, at most 2.00.",
        "- The time was over before 3 of the shapes, precisions and modes.",
    ):
        assert line in text.splitlines(), text


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
    timed = {row["system"]: "median" in row for row in json.loads((tmp_path / "gpu-choices.json").read_text())["rows"]}
    assert timed == {"auto": True, "step": False, "resident": True, "persistent": True}


def test_a_crash_is_reported_and_a_new_process_goes_on(emulated_module: ModuleType, tmp_path: Path) -> None:
    """An error that leaves the process without a GPU: as a new one, it would begin behind what crashed."""
    code = "def broken(*_): raise RuntimeError('an illegal memory access')\n"
    code += "import os; os.execv = lambda path, argv: sys.exit('once more: ' + ' '.join(argv[2:]))\n"
    code += "emulated_bench.EmulatedGpu.time = lambda self, run, calls: setattr(type(self), 'put', broken) or broken()"
    done = emulated(emulated_module, "gpu.py", *ONE, "--folder", tmp_path, code=code)
    assert "once more: choices" in done.stderr and "--resume --until" in done.stderr
    rows = json.loads((tmp_path / "gpu-choices.json").read_text())["rows"]
    assert all("an illegal memory access" in row["crashed"] for row in rows)
    done = emulated(emulated_module, "gpu.py", *ONE, "--folder", tmp_path, "--resume")
    assert json.loads((tmp_path / "gpu-choices.json").read_text())["rows"] == rows
    assert done.returncode == 1 and done.stdout.count("CRASHED: ") == len(rows)


def test_parts_that_time_end_in_one_report(emulated_module: ModuleType, tmp_path: Path) -> None:
    lines = f"""case "$1" in
bench/gpu.py) shift; exec {sys.executable} -c "$(cat {tmp_path}/code)" "$@" {" ".join(ONE[1:])};;
bench/gpu_report.py) exec {sys.executable} "$@";;
esac"""
    (tmp_path / "code").write_text(on_emulated_gpu(emulated_module, "gpu.py"))
    done = first_minutes(tmp_path, "choices", "steps", "report", python=interpreter(tmp_path, lines))
    assert done.returncode == 0, done.stdout
    assert verdicts(done) == ["choices: passed", "steps: passed", "report: passed"]
    text = (tmp_path / "gpu-none.md").read_text()
    assert "## Beside cuDNN\n" in text and "## The choice of an algorithm\n" in text


def test_an_interrupted_run_leaves_what_it_has_measured(emulated_module: ModuleType, tmp_path: Path) -> None:
    code = "def interrupt(self): raise KeyboardInterrupt\n"
    code += "emulated_bench.EmulatedGpu.release = interrupt"  # which is called after each shape
    several = [*ONE[:2], "2,6", "3,7", *ONE[3:]]
    done = emulated(emulated_module, "gpu.py", *several, "--folder", tmp_path, code=code)
    assert done.returncode != 0 and "N=2, H=6, T=4, fp32, inference: auto" in done.stdout
    report = json.loads((tmp_path / "gpu-choices.json").read_text())
    assert {row["case"] for row in report["rows"]} == {"N=2, H=6"} and report["not_reached"] == 1


def test_when_the_time_is_over_it_is_said(emulated_module: ModuleType, tmp_path: Path) -> None:
    done = emulated(emulated_module, "gpu.py", *ONE, "--folder", tmp_path, "--seconds", -1)
    assert done.returncode == 0, done.stderr
    assert "the time was over before 1 shapes, precisions and modes" in done.stdout
    assert (
        "The time was over before 1 of"
        in emulated(emulated_module, "gpu_report.py", tmp_path / "gpu-choices.json").stdout
    )
