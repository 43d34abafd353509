"""What tests/beside.py says of tests that ran in the second pytest, down to one that ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: all tests run in one process")

CONFTEST = "import beside\n\n\ndef pytest_configure(config):\n    beside.register(config)\n"
HERE = "def test_here():\n    print('pid', __import__('os').getpid())\n"
BESIDE = """
import os, pytest

def test_passes(): print("pid", os.getpid())
def test_fails(): assert 1 + 1 == 3, "a reason"
def test_skips(): pytest.skip("no need")
def test_errs(missing): pass
"""
DIES = "def test_dies(): os._exit(3)\ndef test_never_runs(): pass\n"


def session(folder: Path, tests: str) -> tuple[int, str]:
    for name, text in (("conftest", CONFTEST), ("test_here", HERE), ("test_keras", tests)):
        (folder / f"{name}.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", "-rA", "-c", os.devnull, "--rootdir", str(folder), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stdout


def test_each_report_is_shown(tmp_path: Path) -> None:
    code, said = session(tmp_path, BESIDE)
    assert code == 1 and "1 failed, 2 passed, 1 skipped, 1 error" in said, said
    assert "AssertionError: a reason" in said and "no need" in said and "fixture 'missing' not found" in said
    first, second = (line for line in said.splitlines() if line.startswith("pid"))
    assert first != second


def test_what_did_not_run_has_failed(tmp_path: Path) -> None:
    code, said = session(tmp_path, BESIDE.replace("def test_fails", DIES + "def test_fails"))
    assert code == 1 and "5 failed, 2 passed" in said, said
    assert "the pytest beside ended with 3 before this test did" in said
