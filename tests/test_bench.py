"""The bench on one tiny case: what it checks, writes and lays out. Times are never judged here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"
RUN = ["--quick", "--cases", "tiny", "--rounds", "1", "--block", "0.001", "--threads", "1"]

pytest.importorskip("threadpoolctl")
pytest.importorskip("tqdm")


def call(program: str, *argv: str | Path, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program of the bench as a user does; `code` runs before it in the same interpreter."""
    lines = f"import sys, runpy; sys.path.insert(0, {str(BENCH)!r}); sys.argv[0] = {program!r}\n{code}\n"
    lines += f"runpy.run_path({str(BENCH / program)!r}, run_name='__main__')"
    argv = [str(argument) for argument in argv]
    return subprocess.run([sys.executable, "-c", lines, *argv], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    done = call("run.py", *RUN, "--name", "small", "--folder", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "small.json"


def test_run_writes_a_row_for_every_rival_and_mode(results):
    report = json.loads(results.read_text())
    assert {(row["rival"], row["mode"], row["threads"]) for row in report["rows"]} == {
        (rival, mode, 1) for rival in ("fastlstm", "torch", "numpy") for mode in ("inference", "training")
    }
    for row in report["rows"]:
        if row["rival"] == "torch" and not find_spec("torch"):
            assert "torch" in row["missing"] and "median" not in row
        else:
            assert row["error"] <= 1e-5
            assert 0 < row["q1"] <= row["median"] <= row["q3"]
    assert list(report["cases"]) == ["tiny"]
    assert {"cpu", "cores", "system", "load"} <= report["machine"].keys()
    assert {"python", "numpy", "fastlstm", "torch"} <= report["versions"].keys()
    assert "commit" in report and report["import"]["median"] > 0


def test_report_lays_out_a_table_and_a_plot(results):
    pytest.importorskip("matplotlib")
    done = call("report.py", results)
    assert done.returncode == 0, done.stderr
    text = results.with_suffix(".md").read_text()
    assert done.stdout.strip() == text.strip()
    for heading in ("## Inference", "## Training"):
        assert heading in text
    rows = re.findall(r"^\| tiny \| 5,3,4,6 \| .+ \|$", text, re.MULTILINE)
    assert len(rows) == 2
    assert results.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_rival_is_reported_and_not_an_error(tmp_path):
    """A package whose value in sys.modules is None cannot be imported."""
    done = call("run.py", *RUN, "--name", "bare", "--folder", tmp_path, code="sys.modules['torch'] = None")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "missing: torch: torch cannot be imported" in done.stdout
    text = call("report.py", tmp_path / "bare.json", "--no-plot").stdout
    assert "torch is missing" in text and "| missing |" in text


def test_a_wrong_rival_is_not_timed_and_fails_the_run(tmp_path):
    code = """
import rivals
def wrong(problem, mode, threads):
    run, read = rivals.numpy_reference(problem, mode, threads)
    return rivals.Runner(run, lambda result: read(result) | {"h_n": 1.01 * read(result)["h_n"]})
rivals.RIVALS["numpy"] = wrong
"""
    done = call("run.py", *RUN, "--rivals", "numpy", "--name", "wrong", "--folder", tmp_path, code=code)
    assert done.returncode == 1
    assert "WRONG: numpy in tiny" in done.stdout
    rows = json.loads((tmp_path / "wrong.json").read_text())["rows"]
    assert all("median" not in row and "h_n" in row["wrong"] for row in rows if row["rival"] == "numpy")
    assert all("median" in row for row in rows if row["rival"] == "fastlstm")
    assert "WRONG" in call("report.py", tmp_path / "wrong.json", "--no-plot").stdout


def test_an_unknown_case_is_refused():
    done = call("run.py", "--cases", "no_such_case")
    assert done.returncode != 0
    assert "no case is named no_such_case" in done.stderr
