"""The lines of a ledger: how each is written, how they hang together, and what is wrong with them.

Every line holds the sha256 of what it says, and that of the line before it (null in the first) is part of that. So
no line can be changed, moved or taken out of the middle without a trace. Who writes the whole file anew, or cuts
lines off its end, leaves none: for that there is the run folder's SHA256SUMS.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from gradmm.privacy.accounting import Gaussian, accountant_version
from gradmm.privacy.config import UNIT, Promise

FORMAT = 1
DECLARATION, SPEND, RAISED = "declaration", "spend", "target_epsilon"
Line = dict[str, Any]
_NEEDED = {
    DECLARATION: ("format", "neighboring_relation", "unit", "target_epsilon", "target_delta", "accountant"),
    SPEND: ("release", "event", "is_private", "epsilon"),
    RAISED: ("target_epsilon",),
}


@dataclass(frozen=True)
class Spend:
    """One release, before it is drawn."""

    release: str
    """What is released: `target`, `counts`."""
    event: Gaussian
    """Its noise."""
    bound: float
    """What the noise multiplier is a multiple of: the clip C; of counts, `mechanism.counts_bound`."""
    dimension: int
    """How many numbers get noise."""
    noise: str
    """How it is drawn, from `Noise.describe`."""
    is_private: bool = True
    """False for a test's noise, which can be repeated."""


def declaration_line(promise: Promise, target_epsilon: float) -> Line:
    """What is promised; numbers of rows are those that are public."""
    return {
        "line": DECLARATION,
        "format": FORMAT,
        "neighboring_relation": promise.neighboring_relation,
        "unit": UNIT,
        "target_epsilon": target_epsilon,
        "target_delta": promise.delta,
        "accountant": promise.accountant,
        "accountant_version": accountant_version(),
        "num_rows": promise.rows,
        "public_counts": promise.public_counts,
    }


def spend_line(spend: Spend, epsilon: float, is_again: bool) -> Line:
    """What is about to be drawn, and epsilon of everything up to it, composed."""
    return {
        "line": SPEND,
        "release": spend.release,
        "mechanism": "gaussian",
        "event": asdict(spend.event),
        "bound": spend.bound,
        "dimension": spend.dimension,
        "noise": spend.noise,
        "is_private": spend.is_private,
        "is_again": is_again,
        "epsilon": epsilon,
    }


def raised_line(target_epsilon: float) -> Line:
    """Another target, from here on."""
    return {"line": RAISED, "target_epsilon": target_epsilon}


def chained(lines: Sequence[Line], before: Line | None) -> list[Line]:
    """The lines, each with its own sha256 and that of the line before it."""
    found: list[Line] = []
    for line in lines:
        before = {**line, "previous": None if before is None else before["sha256"]}
        before["sha256"] = _sha256(before)
        found.append(before)
    return found


def encoded(line: Line) -> bytes:
    """A line's bytes, without the line break."""
    return json.dumps(line, allow_nan=False).encode()


def _sha256(line: Line) -> str:
    """Of all that a line says but this."""
    return hashlib.sha256(encoded({key: value for key, value in line.items() if key != "sha256"})).hexdigest()


def read_lines(raw: bytes) -> tuple[list[Line], list[str]]:
    """The lines up to the first that is no line of a ledger, and what is wrong with them.

    Args:
        raw: the file's content.
    """
    lines: list[Line] = []
    *whole, rest = raw.split(b"\n")
    for number, written in enumerate(whole, 1):
        line, fault = _read_line(written, lines[-1] if lines else None)
        if line is None:
            return lines, [f"line {number} {fault}"]
        lines.append(line)
    return lines, [f"it ends in the middle of line {len(lines) + 1}"] if rest else []


def _read_line(written: bytes, before: Line | None) -> tuple[Line | None, str]:
    try:
        line = json.loads(written)
        is_as_written = isinstance(line, dict) and encoded(line) == written
    except ValueError:
        return None, "is not JSON"
    if not is_as_written or line.get("sha256") != _sha256(line):
        return None, "was changed: its sha256 is another"
    if line.get("previous") != (None if before is None else before["sha256"]):
        return None, "does not follow from the line before it: one was moved, taken out or written anew"
    kind = line.get("line")
    if kind not in _NEEDED or (kind == DECLARATION) != (before is None):
        return None, f"is no {'declaration' if before is None else 'spend'}"
    absent = [key for key in _NEEDED[kind] if key not in line]
    if absent:
        return None, f"has no {absent[0]!r}"
    return _understood(line)


def _understood(line: Line) -> tuple[Line | None, str]:
    try:
        is_known = _is_known(line)
    except (AssertionError, TypeError, ValueError, ValidationError):
        is_known = False
    return (line, "") if is_known else (None, "has values that this version does not know")


def _is_known(line: Line) -> bool:
    """Whether a line's values are such as this module writes; what is odd in another way raises."""
    if line["line"] == SPEND:
        event_of(line)
        return isinstance(line["is_private"], bool) and 0 <= line["epsilon"] < math.inf
    if line["line"] == DECLARATION:
        promise_of(line)
        if (line["format"], line["unit"]) != (FORMAT, UNIT):
            return False
    return bool(0 < line["target_epsilon"] < math.inf)


def event_of(line: Line) -> Gaussian:
    """The event of a spend."""
    return Gaussian(**line["event"])


def promise_of(line: Line) -> Promise:
    """The promise of a declaration."""
    keys = ("neighboring_relation", "target_delta", "accountant")
    return Promise.model_validate({key: line[key] for key in keys})


def target_of(lines: Sequence[Line]) -> float:
    """The target in force after these lines."""
    return float(next(line["target_epsilon"] for line in reversed(lines) if "target_epsilon" in line))


def spends_in(lines: Sequence[Line]) -> list[Line]:
    """The lines of spends."""
    return [line for line in lines if line["line"] == SPEND]
