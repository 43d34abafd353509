"""What the project set out to reach, and whether a run shows it. Knows no layout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from cases import NEIGHBOURS, SIZES
from results import Entry, Run, geometric_mean, is_tie
from rivals import OURS

AT_LIMIT = {"bytes": 0.93, "FLOP": 0.85}  # the part of its limit at which a case has reached its goal in any case
CLIFF = 1.35  # what an awkward size may cost by FLOP, beside its round neighbour


class Verdict(NamedTuple):
    goal: str
    where: str  # the entry or entries
    got: float
    needed: float
    verdict: str  # pass, limit, short (ahead, but by less than the goal), tie, or behind
    why: str


def verdicts(run: Run) -> Iterator[Verdict]:
    for entry in run.entries():
        yield from against_the_best(run, entry)
        yield from float64(run, entry)
        yield from lighter(run, entry)
    yield from means(run)
    yield from cliffs(run)
    yield from memory(run)


def against_the_best(run: Run, entry: Entry) -> Iterator[Verdict]:
    case, best = run.cases[entry.case], run.best(entry)
    wanted = needed(case, entry.mode)
    if wanted is None or best is None or case["group"] == "sweep" or case["dtype"] != "float32" or case["today"]:
        return
    goal, factor = wanted
    yield judged(run, goal, entry, best[1], factor, best[0])


def needed(case: dict[str, Any], mode: str) -> tuple[str, float] | None:
    """The name of the goal that is set for a case in a mode, and the ratio to the best rival."""
    if mode == "training":
        return "training", 1.15
    if case["B"] > 1:
        return "batched inference", 1.15
    if mode == "step" and 64 <= case["H"] <= 512:
        return "one step", 1.5
    return ("one row", 1.3) if case["T"] > 1 else None


def judged(run: Run, goal: str, entry: Entry, value: float, factor: float, rival: str) -> Verdict:
    share = run.share(entry)
    where = f"{entry.case} {entry.mode}, {entry.threads} threads"
    why = f"beside {rival}" + (f"; {share[0]:.0%} of the {share[1]} limit" if share else "")
    at_limit = share is not None and share[0] >= AT_LIMIT[share[1]]
    verdict = "pass" if value >= factor else "limit" if at_limit else ahead(value)
    return Verdict(goal, where, value, factor, verdict, why)


def ahead(value: float) -> str:
    return "tie" if is_tie(value) else "short" if value > 1 else "behind"


def float64(run: Run, entry: Entry) -> Iterator[Verdict]:
    case, value = run.cases[entry.case], run.ratio(entry, "torch")
    if case["dtype"] == "float64" and value is not None:
        yield judged(run, "float64", entry, value, 2.0 if case["H"] <= 128 else 1.5, "torch")


def lighter(run: Run, entry: Entry) -> Iterator[Verdict]:
    """Weights in bfloat16 or int8: our own float32 time over theirs."""
    case = run.cases[entry.case]
    for name in (f"{OURS}_bf16", f"{OURS}_int8"):
        value = run.ratio(entry, name)
        if value is not None and case["B"] == 1 and case["H"] >= 256:
            yield judged(run, "lighter weights", entry, 1 / value, 1.7, f"our own float32, {name}")._replace(
                verdict="pass" if 1 / value >= 1.7 else ahead(1 / value)
            )


def means(run: Run) -> Iterator[Verdict]:
    """Geometric means, of figures that are not noisy."""
    training = run.entries("training", groups=["grid"])
    torch = [run.ratio(entry, "torch") for entry in training if not run.noisy(entry, "torch")]
    named = [(entry, run.cases[entry.case]["today"]) for entry in run.entries(groups=["real"])]
    today = [run.ratio(entry, rival) for entry, rival in named if rival and not run.noisy(entry, rival)]
    for goal, values, factor in (("training beside torch", torch, 1.5), ("real workloads beside today's", today, 3.0)):
        mean = geometric_mean(values)
        if mean is not None:
            count = sum(value is not None for value in values)
            yield Verdict(
                goal, f"geometric mean of {count}", mean, factor, "pass" if mean >= factor else ahead(mean), ""
            )


def cliffs(run: Run) -> Iterator[Verdict]:
    """Time by FLOP beside the round neighbour's, and how far from linear the cost in T and B is."""

    def by_flop(of: str, size: int, mode: str, threads: int) -> float | None:
        entry = Entry(f"sweep_{of}_{size}", mode, threads)
        rate = run.rate(entry) if entry in run.rows else None
        return 1 / rate if rate else None

    for mode in ("inference", "training"):
        for threads in run.threads:
            where = f"{mode}, {threads} threads"
            for of, pairs in NEIGHBOURS.items():
                for size, neighbour in pairs.items():
                    own, other = by_flop(of, size, mode, threads), by_flop(of, neighbour, mode, threads)
                    if own and other:
                        verdict = "pass" if own / other <= CLIFF else "behind"
                        yield Verdict(
                            "no cliff", f"{of}={size} by {neighbour}, {where}", own / other, CLIFF, verdict, ""
                        )
            for of in ("T", "B"):
                sizes = [size for size in SIZES[of] if size >= 32]
                first, last = by_flop(of, sizes[0], mode, threads), by_flop(of, sizes[-1], mode, threads)
                if first and last:
                    verdict = "pass" if last / first <= CLIFF else "behind"
                    where_sizes = f"{of}={sizes[-1]} by {sizes[0]}, {where}"
                    yield Verdict(f"linear in {of}", where_sizes, last / first, CLIFF, verdict, "")


def memory(run: Run) -> Iterator[Verdict]:
    for row in run.data.get("memory", []):
        if "peak" in row:
            value = row["peak"] / row["must"]
            verdict = "pass" if value <= 1.1 else "behind"
            yield Verdict("memory", f"{row['case']} {row['mode']}", value, 1.1, verdict, "peak over what it must keep")
