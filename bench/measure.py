"""Checks, then times all rivals of a case in turns. README.md has the method and its reasons."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cases import Case, matches
from check import CHECK_FLOPS, FULL_TOLERANCE, TOLERANCE, Results, Wrong, exact_results, worst
from rivals import OURS, RIVALS, Missing, Rival
from worker import Crashed, Worker

BUSY = 0.05  # the part of one core that other processes may use during a block
FEWEST = 3  # blocks that make a median
LONG = 1.0  # seconds of a call that needs no untimed one before it: it warms its caches by itself
SLOW = 20.0  # times our own: such a rival is timed once


class Settings(NamedTuple):
    rounds: int  # quiet blocks for each rival
    block: float  # seconds of a block
    limit: float  # seconds in which a rival must answer


class Block(NamedTuple):
    """One timed stretch of calls of one rival."""

    seconds: float  # a call
    others: float | None  # cores that other processes used meanwhile, beyond rounding; None where that is not known

    @property
    def quiet(self) -> bool:
        return self.others is None or self.others <= BUSY


class Team:
    """The workers for one number of threads, started when first asked for, and again after a crash."""

    def __init__(self, threads: int, limit: float) -> None:
        self.threads, self.limit, self.workers = threads, limit, dict[str, Worker]()

    def ask(self, name: str, command: str, *arguments: Any) -> Any:
        if name not in self.workers:
            self.workers[name] = Worker(RIVALS[name], self.threads)
        try:
            return self.workers[name].ask(command, *arguments, limit=self.limit)
        except Crashed:
            self.workers.pop(name).close()
            raise

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()


def takes_part(rival: Rival, case: Case, mode: str) -> bool:
    return mode in rival.modes and any(matches(case, pattern) for pattern in rival.where)


def measure(case: Case, mode: str, team: Team, rivals: list[str], settings: Settings, budget: float) -> list[dict]:
    """A row for each rival, with its figures, or why there are none. About `budget` seconds in all."""
    start = time.perf_counter()
    short = case.shortened(CHECK_FLOPS, mode)
    exact, first = exact_results(short, mode), None
    rows: dict[str, dict[str, Any]] = {}
    timed: list[str] = []
    for name in rivals:
        rows[name] = row = {"case": case.name, "mode": mode, "threads": team.threads, "rival": name}
        try:
            results = checked(team, name, short, mode, exact, row)
            if short != case:
                results = team.ask(name, "set_up", case, mode)
                first = first or results
                worst(results, first, RIVALS[name].tolerance * FULL_TOLERANCE[case.dtype])
            timed.append(name)
        except Missing as reason:
            row["missing"] = str(reason)
        except Wrong as reason:
            row["wrong"] = str(reason)
        except Crashed as reason:
            row["crashed"] = str(reason)
    for name, figures in time_in_turns(timed, team, settings, start + budget).items():
        rows[name] |= figures
    return list(rows.values())


def checked(team: Team, name: str, short: Case, mode: str, exact: Results, row: dict[str, Any]) -> Results:
    results = team.ask(name, "set_up", short, mode)
    row["error"], row["error_in"] = worst(results, exact, RIVALS[name].tolerance * TOLERANCE[short.dtype])
    return results


def time_in_turns(names: list[str], team: Team, settings: Settings, deadline: float) -> dict[str, dict[str, Any]]:
    """Blocks in a new order each round, until each rival has enough quiet ones or twice as many.

    After the deadline there are no more than three of each. The figures by rival, or how it crashed.
    """
    lanes: dict[str, Lane] = {}
    crashed: dict[str, dict[str, Any]] = {}
    for name in names:
        try:
            lanes[name] = estimated(name, team, settings, lanes.get(OURS))
        except Crashed as reason:
            crashed[name] = {"crashed": str(reason)}
    rng = np.random.default_rng(0)
    for turn in range(2 * settings.rounds):
        again = [lane for lane in lanes.values() if not lane.once]
        enough = all(sum(block.quiet for block in lane.blocks) >= settings.rounds for lane in again)
        if enough or (turn >= FEWEST and time.perf_counter() > deadline):
            break
        for at in rng.permutation(len(again)):
            lane = again[at]
            if len(lane.blocks) > turn:  # the estimate was a block
                continue
            try:
                lane.blocks.append(Block(*team.ask(lane.name, "time", lane.calls, lane.warm)))
            except Crashed as reason:
                crashed[lane.name] = {"crashed": str(reason)}
                del lanes[lane.name]
    return {name: summary(lane) for name, lane in lanes.items()} | crashed


@dataclass
class Lane:
    """One rival's blocks."""

    name: str
    calls: int  # in a block
    warm: bool  # an untimed call before each block
    once: bool  # far behind: the estimate is all that it gets
    blocks: list[Block]
    estimate: float  # seconds of a call


def estimated(name: str, team: Team, settings: Settings, ours: Lane | None) -> Lane:
    """How many calls a block needs. Where one call fills it, the call that was timed for this is the first block."""
    block = Block(*team.ask(name, "time", 1, False))
    for _ in range(3):  # a single call says little, be it of microseconds or on a core that another process had
        if block.seconds > settings.block:
            break
        calls = max(1, int(settings.block / 10 / block.seconds))
        block = min(block, Block(*team.ask(name, "time", calls, False)))
    calls = max(1, round(settings.block / block.seconds))
    once = ours is not None and block.seconds > SLOW * ours.estimate
    return Lane(name, calls, block.seconds < LONG, once, [block] if once or calls == 1 else [], block.seconds)


def summary(lane: Lane) -> dict[str, Any]:
    """Median and quartiles of the quiet blocks; of all, and marked as noisy, if less than three were quiet."""
    quiet = [block for block in lane.blocks if block.quiet]
    noisy = len(quiet) < min(FEWEST, len(lane.blocks))
    used = [block.seconds for block in (lane.blocks if noisy else quiet)]
    q1, median, q3 = np.percentile(used, [25, 50, 75]).tolist()
    blocks = [block._asdict() for block in lane.blocks]
    return {"median": median, "q1": q1, "q3": q3, "noisy": noisy, "calls_per_block": lane.calls, "blocks": blocks}
