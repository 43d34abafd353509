"""Reads what run.py wrote: figures, ratios, the best rival, the part of the machine's limit. Lays nothing out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ceilings
from rivals import OURS

TIE = 0.10  # a smaller difference is noise (README.md)


class Entry(NamedTuple):
    """What all rivals were timed on in turns."""

    case: str
    mode: str
    threads: int


class Run:
    """One report. A ratio is a rival's median over ours of the same entry: above 1 we are faster."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data, self.cases, self.ceilings = data, data["cases"], data["ceilings"]

    @classmethod
    def of(cls, path: Path) -> Run:
        return cls(json.loads(path.read_text()))

    @cached_property
    def rows(self) -> dict[Entry, dict[str, dict[str, Any]]]:
        """The rows by entry and rival, in their order."""
        found: dict[Entry, dict[str, dict[str, Any]]] = {}
        for row in self.data["rows"]:
            found.setdefault(Entry(row["case"], row["mode"], row["threads"]), {})[row["rival"]] = row
        return found

    def entries(self, mode: str = "", threads: int = 0, groups: Iterable[str] = (), dtype: str = "") -> list[Entry]:
        """All that were measured, or those of a mode, a number of threads, some groups, a dtype."""
        return [
            entry
            for entry in self.rows
            if mode in ("", entry.mode)
            and threads in (0, entry.threads)
            and (not groups or self.cases[entry.case]["group"] in groups)
            and dtype in ("", self.cases[entry.case]["dtype"])
        ]

    @property
    def threads(self) -> list[int]:
        return sorted({entry.threads for entry in self.rows})

    def rivals(self, entries: Iterable[Entry] | None = None) -> list[str]:
        """All but us that have a figure, in their order."""
        chosen = self.rows if entries is None else entries
        names = [name for entry in chosen for name, row in self.rows[entry].items() if "median" in row]
        order = list(dict.fromkeys(row["rival"] for row in self.data["rows"]))
        return [name for name in order if name != OURS and name in names]

    def median(self, entry: Entry, rival: str = OURS) -> float | None:
        return self.rows.get(entry, {}).get(rival, {}).get("median")

    def ratio(self, entry: Entry, rival: str) -> float | None:
        own, other = self.median(entry), self.median(entry, rival)
        return other / own if own and other else None

    def noisy(self, entry: Entry, rival: str = OURS) -> bool:
        return any(self.rows[entry].get(name, {}).get("noisy", False) for name in (OURS, rival))

    def best(self, entry: Entry) -> tuple[str, float] | None:
        """The fastest of the others, and its ratio. Ours with lighter weights is none of them."""
        ratios = {name: self.ratio(entry, name) for name in self.rows[entry] if not name.startswith(OURS)}
        known = {name: value for name, value in ratios.items() if value is not None}
        return min(known.items(), key=lambda pair: pair[1]) if known else None

    def limit(self, entry: Entry) -> tuple[float, str] | None:
        return ceilings.limit(self.cases[entry.case], entry.mode, entry.threads, self.ceilings)

    def share(self, entry: Entry) -> tuple[float, str] | None:
        """The part of the machine's limit that we reach, and what limits: "FLOP" or "bytes"."""
        limit, own = self.limit(entry), self.median(entry)
        return (limit[0] / own, limit[1]) if limit and own else None

    def rate(self, entry: Entry) -> float | None:
        """FLOP/s of ours."""
        own = self.median(entry)
        return self.cases[entry.case]["flops"][entry.mode] / own if own else None


def geometric_mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.exp(np.mean(np.log(known)))) if known else None


def is_tie(value: float) -> bool:
    return abs(value - 1) < TIE
