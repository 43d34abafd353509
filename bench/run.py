"""Checks that all rivals compute the same LSTM, then times them in turns: python bench/run.py --quick

Writes results/<name>.json, which report.py turns into tables and plots. README.md has the method and its reasons.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

import ceilings
from cases import CASES, GROUPS, MODES, QUICK, Case, choose, matches
from extras import PARTS, profile
from machine import facts, import_times, machine, save
from measure import Settings, Team, measure, takes_part
from rivals import OURS, RIVALS

HERE = Path(__file__).resolve().parent

QUICK_RIVALS = ("torch", "onnxruntime", "onednn")
# Roughly, to share the time out: FLOP/s on a thread, and the calls of a rival that no budget can leave out
RATE, CALLS = 8e10, 5

Entry = tuple[Case, str, list[str]]  # a mode of a case, and who takes part


def entries(cases: list[Case], modes: list[str], rivals: list[str]) -> list[Entry]:
    return [
        (case, mode, [name for name in rivals if takes_part(RIVALS[name], case, mode)])
        for case in cases
        for mode in case.modes
        if mode in modes
    ]


def cost(entry: Entry, threads: int, settings: Settings) -> float:
    """Seconds that an entry will take, roughly."""
    case, mode, names = entry
    call = case.flops(mode) / (RATE * threads)
    return sum(RIVALS[name].set_up + CALLS * call + settings.rounds * settings.block for name in names)


def time_all(report: dict[str, Any], options: argparse.Namespace, path: Path) -> None:
    """All entries on each number of threads. Each gets the part of the time left that its cost has in what is left."""
    settings = Settings(options.rounds, options.block, options.limit)
    rivals = [OURS, *(name for name in RIVALS if name != OURS and name in options.rivals)]
    plan = entries(choose(options.cases), options.modes, rivals)
    costs = {threads: [cost(entry, threads, settings) for entry in plan] for threads in options.threads}
    left = sum(map(sum, costs.values()))
    deadline = time.perf_counter() + 60 * options.minutes
    print(f"{len(plan) * len(costs)} entries, about {min(left / 60, options.minutes):.0f} minutes")
    with tqdm(total=round(left), unit="s", bar_format="{l_bar}{bar}| {elapsed}<{remaining}", dynamic_ncols=True) as bar:
        for threads in options.threads:
            with Team(threads, options.limit) as team:
                for (case, mode, names), share in zip(plan, costs[threads], strict=True):
                    bar.set_description(f"{case.name} {mode}, {threads} threads")
                    budget = (deadline - time.perf_counter()) * share / max(left, share)
                    report["rows"] += measure(case, mode, team, names, settings, budget)
                    save(path, report)
                    left -= share
                    bar.update(min(round(share), bar.total - bar.n))


def described(case: Case) -> dict[str, Any]:
    """A case as the report needs it: its fields, and what its limit follows from."""
    groups = [name for name in GROUPS if matches(case, name)]
    return asdict(case) | {
        "group": groups[0] if groups else "",
        "flops": {mode: case.flops(mode) for mode in case.modes},
        "weights": case.weights(),
    }


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.profile:
        print(profile(choose([options.profile])[0], options.threads))
        return 0
    cases = choose(options.cases)
    path = options.folder / f"{options.name}.json"
    report: dict[str, Any] = {
        "name": options.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **facts(),
        "settings": {name: getattr(options, name) for name in ("rounds", "block", "minutes", "limit")},
        "import": import_times(3 if options.quick else 15),
        "cases": {case.name: described(case) for case in cases},
        "ceilings": ceilings.measure(options.threads, options.largest),
        "rows": [],
    }
    if "times" in options.parts:
        time_all(report, options, path)
    for part in (name for name in PARTS if name in options.parts):
        report[part] = PARTS[part](options)
    report["ceilings"] = ceilings.best(report["ceilings"], ceilings.measure(options.threads, options.largest))
    save(path, report)
    for kind in ("wrong", "crashed"):
        for row in (row for row in report["rows"] if kind in row):
            print(
                f"{kind.upper()}: {row['rival']} in {row['case']}, {row['mode']}, {row['threads']} threads: {row[kind]}"
            )
    for reason in dict.fromkeys(f"{row['rival']}: {row['missing']}" for row in report["rows"] if "missing" in row):
        print(f"missing: {reason}")
    print(f"{path}\nnow: python bench/report.py {path}")
    return 1 if any("wrong" in row or (row["rival"] == OURS and "crashed" in row) for row in report["rows"]) else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = machine()["cores"]
    add = parser.add_argument
    add("--quick", action="store_true", help=f"within 3 minutes: {', '.join(QUICK)}; few short blocks, few rivals")
    add("--cases", nargs="+", metavar="NAME", help=f"groups ({', '.join(GROUPS)}), names or patterns; default all")
    add("--rivals", nargs="*", choices=list(RIVALS), metavar="RIVAL", help=f"beside {OURS}: {', '.join(RIVALS)}")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--threads", nargs="+", type=int, default=[n for n in (1, 2) if n <= cores])
    add(
        "--parts", nargs="+", choices=("times", *PARTS), help="default all, and times alone if quick or cases are given"
    )
    add("--profile", metavar="CASE", help="say where the time of one case goes, and nothing else")
    add("--rounds", type=int, help="quiet blocks for each rival (default 7; quick 3)")
    add("--block", type=float, help="seconds of a block (default 0.1; quick 0.05)")
    add("--minutes", type=float, help="after which no case gets more than three blocks a rival (default 40; quick 2.5)")
    add("--limit", type=float, default=120.0, help="seconds after which a rival that does not answer has crashed")
    add("--largest", type=int, default=ceilings.LARGEST, help="megabytes read to measure the memory's bandwidth")
    add("--name", default=time.strftime("%Y-%m-%d"), help="of the file; default today")
    add("--folder", type=Path, default=HERE / "results")
    options = parser.parse_args(argv)
    quick = options.quick
    defaults = {
        "parts": ["times"] if quick or options.cases else ["times", *PARTS],
        "cases": list(QUICK) if quick else [case.name for case in CASES],
        "rivals": list(QUICK_RIVALS) if quick else list(RIVALS),
        "rounds": 3 if quick else 7,
        "block": 0.05 if quick else 0.1,
        "minutes": 2.5 if quick else 40.0,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


if __name__ == "__main__":
    sys.exit(main())
