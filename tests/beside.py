"""Tests that run in a second pytest beside the session, which shows their reports when its own tests are done.

They are those on the emulated GPU and of Keras: minutes of one processor, and a machine has two. With --pdb, -s, one
processor or no other tests, all run in one process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

FOLDER = "FASTLSTM_TESTS_BESIDE"  # where the second pytest finds what to run, and leaves its reports


def register(config: pytest.Config) -> None:
    """Make the session one of the two."""
    folder = os.environ.pop(FOLDER, None)  # not in the environment of what its tests start
    config.pluginmanager.register(Taken(config, Path(folder)) if folder else Beside(), "beside")


def belongs_beside(item: pytest.Item) -> bool:
    on = getattr(item, "callspec", None) and item.callspec.params.get("gpu", "")  # type: ignore[attr-defined]
    fixtures = getattr(item, "fixturenames", ())
    return "emulated_module" in fixtures or str(on).startswith("emulated") or item.path.name == "test_keras.py"


class Beside:
    """In the session that a user started."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._items: set[str] = set()
        self._reports: dict[str, list[pytest.TestReport]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Take the tests that belong there, unless they are all there is, or a user wants to see them run."""
        option = session.config.option
        taken = [item for item in session.items if belongs_beside(item)]
        watched = option.usepdb or option.capture != "fd" or option.collectonly
        if watched or not 0 < len(taken) < len(session.items) or len(os.sched_getaffinity(0)) < 2:
            return
        session.items.sort(key=belongs_beside)
        self._items = {item.nodeid for item in taken}
        self._config = session.config
        self._temporary = tempfile.TemporaryDirectory(prefix="fastlstm-beside-", ignore_cleanup_errors=True)
        folder = Path(self._temporary.name)
        (folder / "items.json").write_text(json.dumps(sorted(self._items)))
        (folder / "reports").touch()
        self._log, self._lines = folder / "log.txt", (folder / "reports").open()
        files = sorted({str(item.path) for item in taken})
        command = [sys.executable, "-m", "pytest", "--rootdir", str(session.config.rootpath), f"--tb={option.tbstyle}"]
        with self._log.open("w") as log:
            # After the session's own tests and before the build of cuda_build.py, which can use both processors later.
            self._process = subprocess.Popen(
                ["nice", "-n", "10", *command, "-p", "no:cacheprovider", *files],
                cwd=session.config.invocation_params.dir,
                env=os.environ | {FOLDER: str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if item.nodeid not in self._items:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports_of(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports_of(self, item: pytest.Item) -> list[pytest.TestReport]:
        while True:
            ended = self._process is None or self._process.poll() is not None  # asked before the last lines are read
            self._read()
            reports = self._reports.get(item.nodeid, [])
            if reports and reports[-1].when == "teardown":
                return reports
            if ended:
                code = self._process and self._process.returncode
                said = f"the pytest beside ended with {code} before this test did:\n{self._log.read_text()[-4000:]}"
                keywords = dict.fromkeys(item.keywords, 1)
                return [pytest.TestReport(item.nodeid, item.location, keywords, "failed", said, "call")]
            time.sleep(0.1)

    def _read(self) -> None:
        for line in whole_lines(self._lines):
            report = self._config.hook.pytest_report_from_serializable(config=self._config, data=json.loads(line))
            if isinstance(report.longrepr, list):  # where, and why it was skipped: a tuple that went through JSON
                report.longrepr = tuple(report.longrepr)
            self._reports.setdefault(report.nodeid, []).append(report)

    def pytest_sessionfinish(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # it ends what it has begun
        self._process.wait()
        self._lines.close()
        self._temporary.cleanup()


def whole_lines(file: TextIO) -> Iterator[str]:
    """What was written since the last call, but for a line that is not yet whole."""
    while True:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)
            return
        yield line


class Taken:
    """In the second pytest, which runs what the first has taken."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._config = config
        self._items = set(json.loads((folder / "items.json").read_text()))
        self._reports = (folder / "reports").open("a", buffering=1)  # by lines

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._items]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data: dict[str, Any] = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._reports.write(json.dumps(data) + "\n")
