"""The bench on tiny cases: what it checks, writes and lays out. Times are never judged here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
RUN = [
    "--quick",
    "--cases",
    "tiny",
    "tiny_step",
    "--rounds",
    "1",
    "--block",
    "0.001",
    "--threads",
    "1",
    "--largest",
    "1",
]

pytest.importorskip("tqdm")


def call(program: str, *argv: str | Path, code: str = "", path: Path = BENCH) -> subprocess.CompletedProcess[str]:
    """Run a program of the bench as a user does; `code` runs before it in the same interpreter."""
    lines = f"import os, sys, runpy; sys.path.insert(0, {str(BENCH)!r}); sys.argv[0] = {program!r}\n"
    lines += f"os.environ['PYTHONPATH'] = {str(path)!r} + os.pathsep + os.environ.get('PYTHONPATH', '')\n{code}\n"
    lines += f"runpy.run_path({str(BENCH / program)!r}, run_name='__main__')"
    argv = [str(argument) for argument in argv]
    return subprocess.run([sys.executable, "-c", lines, *argv], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    done = call("run.py", *RUN, "--rivals", "torch", "numpy", "--name", "small", "--folder", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "small.json"


def test_run_writes_a_row_for_every_rival_and_mode(results: Path) -> None:
    report = json.loads(results.read_text())
    modes = [("tiny", "inference"), ("tiny", "training"), ("tiny_step", "step")]
    assert {(row["rival"], row["case"], row["mode"], row["threads"]) for row in report["rows"]} == {
        (rival, *place, 1) for rival in ("fastlstm", "torch", "numpy") for place in modes
    }
    for row in report["rows"]:
        if "missing" not in row:
            assert row["error"] <= 1e-5
            assert 0 < row["q1"] <= row["median"] <= row["q3"]
        elif row["rival"] == "torch":
            assert not find_spec("torch")
        else:
            assert (row["rival"], row["mode"]) != ("fastlstm", "inference")
    assert list(report["cases"]) == ["tiny", "tiny_step"]
    assert {"cpu", "cores", "system", "load"} <= report["machine"].keys()
    assert {"python", "numpy", "fastlstm", "torch"} <= report["versions"].keys()
    assert "commit" in report and report["import"]["median"] > 0


def test_report_lays_out_tables_and_plots(results: Path) -> None:
    pytest.importorskip("matplotlib")
    done = call("report.py", results)
    assert done.returncode == 0, done.stderr
    text = results.with_suffix(".md").read_text()
    assert done.stdout.strip() == text.strip()
    for heading in ("## Inference", "## Training", "## One step", "## The machine"):
        assert heading in text
    assert len(re.findall(r"^\| tiny \| 5,3,4,6 \| .+ \|$", text, re.MULTILINE)) == 2
    pictures = [results.with_name(name) for name in re.findall(r"!\[.*\]\((.+)\)", text)]
    assert pictures and all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_every_rival_computes_the_same_or_says_why_it_is_missing(tmp_path: Path) -> None:
    rivals = ["onnxruntime", "openvino", "jax", "onednn"]
    done = call("run.py", *RUN, "--rivals", *rivals, "--name", "peers", "--folder", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row for row in json.loads((tmp_path / "peers.json").read_text())["rows"] if row["rival"] in rivals]
    assert {row["rival"] for row in rows} == set(rivals)
    for row in rows:
        assert "median" in row or re.search("No module named|not installed|no g\\+\\+", row["missing"]), row


def test_a_missing_rival_is_reported_and_not_an_error(tmp_path: Path) -> None:
    code = "import rivals; rivals.RIVALS['torch'] = rivals.Rival('no_such_module')"
    done = call("run.py", *RUN, "--rivals", "torch", "--name", "bare", "--folder", tmp_path, code=code)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing: torch: No module named 'no_such_module'" in done.stdout
    text = call("report.py", tmp_path / "bare.json", "--no-plot").stdout
    assert "torch is missing: No module named" in text


def strange_rival(tmp_path: Path, body: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run with a rival "numpy" whose results or behaviour are those of `body`."""
    lines = ["import os", "from rivals import Runner, reference", f"def set_up(problem, mode, threads):\n    {body}"]
    (tmp_path / "strange.py").write_text("\n".join(lines))
    code = "import rivals; rivals.RIVALS['numpy'] = rivals.Rival('strange', modes=('inference', 'training'))"
    folder = ["--name", "strange", "--folder", str(tmp_path)]
    done = call("run.py", *RUN, "--rivals", "numpy", *folder, code=code, path=tmp_path)
    return done, json.loads((tmp_path / "strange.json").read_text())["rows"]


def test_a_wrong_rival_is_not_timed_and_fails_the_run(tmp_path: Path) -> None:
    done, rows = strange_rival(
        tmp_path,
        "run, read = reference.set_up(problem, mode, threads); "
        "return Runner(run, lambda result: read(result) | {'h_n': 1.01 * read(result)['h_n']})",
    )
    assert done.returncode == 1
    assert "WRONG: numpy in tiny" in done.stdout
    assert all("median" not in row and "h_n" in row["wrong"] for row in rows if row["rival"] == "numpy")
    assert all("median" in row for row in rows if row["rival"] == "fastlstm" and row["case"] == "tiny")
    assert "WRONG" in call("report.py", tmp_path / "strange.json", "--no-plot").stdout


def test_a_crash_is_reported_and_the_run_goes_on(tmp_path: Path) -> None:
    done, rows = strange_rival(tmp_path, "os.abort()")
    assert done.returncode == 0, done.stdout + done.stderr
    crashed = [row for row in rows if row["rival"] == "numpy"]
    assert len(crashed) == 2 and all("ended with -6" in row["crashed"] for row in crashed)
    assert "CRASHED: numpy in tiny" in done.stdout
    assert all("median" in row for row in rows if row["rival"] == "fastlstm" and row["case"] == "tiny")


def test_a_rival_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    code = "import worker; ask = worker.Worker.ask\n"
    code += "worker.Worker.ask = lambda self, *arguments, limit: ask(self, *arguments, limit=0.0)"
    done = call("run.py", *RUN, "--rivals", "--name", "late", "--folder", tmp_path, code=code)
    assert done.returncode == 1
    assert "CRASHED: fastlstm in tiny, inference, 1 threads: no answer to 'set_up' within 0 s" in done.stdout


def test_the_limit_is_the_larger_of_arithmetic_and_reading() -> None:
    """10 steps; 4 kB of weights for h, which each step reads, and 8 kB for x, which are read once."""
    code = """
import sys; sys.path.insert(0, sys.argv[1])
from ceilings import limit
rates = {"1": {"float32": 1e6, "float64": 5e5, "read": [[1000, 4e6], [4000, 4e6], [8000, 2e6]]}}
def of(mode, flops):
    return limit({"flops": {mode: flops}, "weights": [[2000, 1000]], "dtype": "float32", "T": 10}, mode, 1, rates)
seconds, kind = of("inference", 1e3)
assert kind == "bytes" and abs(seconds - (10 * 4000 / 4e6 + 8000 / 2e6)) < 1e-9, (seconds, kind)
assert of("inference", 1e6) == (1.0, "FLOP")
assert abs(of("training", 1e3)[0] - (21 * 4000 / 4e6 + 3 * 8000 / 2e6)) < 1e-9
assert limit({"flops": {}, "weights": [], "dtype": "float32", "T": 1}, "step", 2, rates) is None
"""
    subprocess.run([sys.executable, "-c", code, str(BENCH)], check=True)


def test_an_unknown_case_is_refused() -> None:
    done = call("run.py", "--cases", "no_such_case")
    assert done.returncode != 0
    assert "no case is named no_such_case" in done.stderr


def test_memory_of_checkpoints_is_measured_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = call("memory.py", "--steps", "1000", "20000", "--rounds", "1", "--folder", tmp_path, "--name", "small")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "small.json").read_text())
    tapes = {(row["T"], row["way"]): row["tape"] for row in report["rows"]}
    assert tapes[20000, "whole tape"] > 40 * tapes[20000, "checkpoints"]
    assert report["time ratio"].keys() == {"1000", "20000"}
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")


VARIANTS = ["--shapes", "5,3,4,6", "--threads", "1", "--rounds", "1", "--block", "0.001"]


def test_cell_variants_are_checked_timed_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("torch")
    done = call("variants.py", *VARIANTS, "--folder", tmp_path, "--name", "small")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "small.json").read_text())
    assert {("plain", "inference"), ("peepholes", "training"), ("weight_drop", "training")} <= {
        (row["variant"], row["mode"]) for row in report["rows"]
    }
    for row in report["rows"]:
        ours, torch = row["systems"]["fastlstm"], row["systems"]["torch"]
        assert torch["error"] <= 1e-5, row
        assert "missing" in ours or (ours["error"] <= 1e-5 and row["systems"]["plain"]["median"] > 0)
    text = (tmp_path / "small.md").read_text()
    assert "geometric means: cost of inference " in done.stdout and "## Training" in text
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_cell_variant_fails_the_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code = "import variants; exact = variants.exact_results\n"
    code += "variants.exact_results = lambda *case: exact(*case) | {'y': 1.01 * exact(*case)['y']}\n"
    code += f"sys.exit(variants.main({[*VARIANTS, '--variants', 'plain', '--folder', str(tmp_path)]!r}))"
    done = call("variants.py", code=code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wrong: fastlstm in plain, inference: y is 9.9e-03 off" in done.stdout


def test_docs_show_the_published_costs_of_cell_variants(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    published, page = BENCH / "results" / "variants.json", BENCH.parent / "docs" / "cells.md"
    if not published.exists():
        pytest.skip("nothing is published yet")
    copy = tmp_path / page.name
    copy.write_text(page.read_text())
    done = call("variants.py", "--docs", published, "--page", copy)
    assert done.returncode == 0, done.stderr
    assert copy.read_text() == page.read_text(), "python bench/variants.py --docs bench/results/variants.json"
