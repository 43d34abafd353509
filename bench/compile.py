"""Compiles the bench's C++ with g++, at first use, into bench/build/. Called by ceilings.py and rivals/onednn.py."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def compiled(source: str, *flags: str) -> Path:
    """What `g++ -O2 -std=c++17 <flags>` makes of cpp/<source>; RuntimeError with g++'s first words if it cannot."""
    path = HERE / "cpp" / source
    command = ["g++", "-O2", "-std=c++17", *flags, str(path)]
    key = hashlib.sha256(path.read_bytes() + " ".join(command).encode() + _cpu()).hexdigest()[:16]
    target = HERE / "build" / f"{path.stem}-{key}"
    if target.exists():
        return target
    if shutil.which("g++") is None:
        raise RuntimeError("there is no g++")
    target.parent.mkdir(exist_ok=True)
    draft = target.with_suffix(".part")
    done = subprocess.run([*command, "-o", str(draft)], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr[:200]]
        raise RuntimeError(f"g++ cannot compile {source}: {errors[0]}")
    draft.replace(target)
    return target


def _cpu() -> bytes:
    """What -march=native depends on, in a folder that several machines may share."""
    path = Path("/proc/cpuinfo")
    return b"".join(path.read_bytes().partition(b"flags")[2].splitlines()[:1]) if path.exists() else b""
