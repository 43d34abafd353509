"""`python -m fastlstm`: what this build is, and whether its kernels agree with the reference on this machine."""

from __future__ import annotations

import itertools
import sys
import time

from . import selfcheck
from .config import BuildConfig, build_config


def main() -> int:
    """Print the configuration and the checks; return 0 if every check passed, else 1."""
    print(describe(build_config()))
    print("\nkernels against fastlstm.reference, largest relative error")
    start = time.perf_counter()
    checks = selfcheck.run()
    seconds = time.perf_counter() - start
    for (isa, dtype), group in itertools.groupby(checks, key=lambda check: (check.isa, check.dtype)):
        worst = selfcheck.worst(list(group))
        verdict = "ok" if worst.passed else f"FAILED in case {worst.case!r}"
        print(f"  {isa:<12} {dtype}  {worst.error:.1e} of {worst.tolerance:.0e} allowed ({worst.array})  {verdict}")
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} checks passed in {seconds:.1f} s")
    return 1 if failed or not checks else 0


def describe(config: BuildConfig) -> str:
    """Lay out `build_config()` as one line for each fact."""
    facts = {
        "compiler": config["compiler"],
        "instruction sets": ", ".join(config["isa_compiled"]),
        "  can run here": ", ".join(config["isa_runnable"]),
        "  active": config["isa_active"],
        "OpenMP": config["openmp"] or "no: one thread only",
        "threads": str(config["num_threads"]),
        "CUDA": "yes" if config["cuda"] else f"no: {config['cuda_reason']}",
    }
    lines = [f"  {name:<18}{value}" for name, value in facts.items()]
    return "\n".join([f"fastlstm {config['version']}", *lines])


if __name__ == "__main__":
    sys.exit(main())
