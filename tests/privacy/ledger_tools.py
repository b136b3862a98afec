"""Promises, spends, and what a ledger holds."""

from __future__ import annotations

import json
from pathlib import Path

from gradmm.privacy.accounting import Gaussian, calibrated
from gradmm.privacy.config import Promise
from gradmm.privacy.ledger import LEDGER
from gradmm.privacy.ledger_lines import Spend

PROMISE = Promise(neighboring_relation="add_or_remove_one", target_delta=1e-5, num_rows=500)
COUNTS, TARGET = calibrated([Gaussian(3.0), Gaussian(1.0)], 1.0, 1e-5, "add_or_remove_one", "rdp")


def spend(name="target", event=TARGET, **given) -> Spend:
    return Spend(**{"bound": 0.5, "dimension": 64, "noise": "a test's words"} | given, release=name, event=event)


def written(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()]
