"""A rival's process and the pipe to it. While it is not its turn the process is stopped, so that no thread of it runs.

This is the end of the pipe that measure.py holds; serve.py is the other one, a program of its own, so that
OMP_NUM_THREADS, KERAS_BACKEND and the like hold before anything is imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from rivals import Missing, Rival

SERVE = Path(__file__).with_name("serve.py")


class Crashed(Exception):
    """A worker died or took too long; the message says which and its last words."""


@contextmanager
def last_cores(count: int) -> Iterator[None]:
    """This process on the last `count` of its cores, where the system knows such a thing."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    may = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(may)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, may)


class Worker:
    """One rival on a number of threads, in a process that lives until `close`."""

    def __init__(self, rival: Rival, threads: int, cores: int | None = None) -> None:
        """cores: how many it may use, `threads` unless given: the last ones, since interrupts come to the first."""
        own, other = Pipe()
        words = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "{threads}") | rival.env
        env = os.environ | {name: word.format(threads=threads) for name, word in words.items()}
        self.errors = tempfile.TemporaryFile("w+")
        self.pipe, command = own, [sys.executable, str(SERVE), str(other.fileno())]
        with last_cores(cores or threads):  # which the new process inherits
            self.process = subprocess.Popen(
                command, env=env, pass_fds=[other.fileno()], stdout=self.errors, stderr=self.errors
            )
        other.close()
        self.pipe.send((rival, threads))

    def ask(self, command: str, *arguments: Any, limit: float) -> Any:
        """What `Session.<command>` returns. Raises Missing as it does, Crashed on an error or after `limit` seconds."""
        try:
            self.process.send_signal(signal.SIGCONT)
            self.pipe.send((command, arguments))
            if not self.pipe.poll(limit):
                raise Crashed(f"no answer to {command!r} within {limit:.0f} s")
            answer, value = self.pipe.recv()
            self.process.send_signal(signal.SIGSTOP)
        except (EOFError, OSError):
            raise Crashed(f"its process ended with {self.process.wait()}: {self.last_words()}") from None
        if answer == "returned":
            return value
        raise {"missing": Missing, "failed": Crashed}[answer](value)

    def last_words(self) -> str:
        self.errors.seek(0)
        return "; ".join(self.errors.read().splitlines()[-2:])[:300] or "no message"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()
        self.errors.close()
