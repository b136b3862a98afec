"""A plan in sentences: what is promised, what it costs, and what noise leaves of the target.

No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradmm.privacy.config import MEANINGS, UNIT
from gradmm.privacy.planning import Outlook, Plan

NOT_PRIVATE = "Computed from the rows themselves, without noise: these figures are not private."

NAMES = {"pld": "PLD", "rdp": "RDP"}
"""How accountants are called."""


def plan_lines(found: Outlook) -> Iterator[str]:
    """All of it but the advice: promise, noise multipliers, cost, signal."""
    plan = found.plan
    yield promise_line(plan.target_epsilon, plan.delta, plan.neighboring_relation)
    releases = (
        f"{one.name} with noise multiplier {one.event.noise_multiplier:.4f} ({100 * one.share:.3g}% of the budget)"
        for one in plan.releases
    )
    yield f"Plan: {', '.join(releases)}."
    yield cost_line(plan)
    signal = signal_line(found)
    if signal is not None:
        yield signal


def promise_line(epsilon: float, delta: float, relation: Any) -> str:
    """Epsilon, delta, unit and relation, and what the relation means."""
    return f"Promise: epsilon {epsilon:g}, delta {delta:.3g}, per {UNIT}, {relation}: {MEANINGS[relation]}."


def cost_line(plan: Plan) -> str:
    """Epsilon by both accountants."""
    costs = {"pld": plan.epsilon_pld, "rdp": plan.epsilon_rdp}
    check = "rdp" if plan.accountant == "pld" else "pld"
    return (
        f"Cost: epsilon {plan.epsilon:.4f} by {NAMES[plan.accountant]}, which is held to the target; "
        f"{costs[check]:.4f} by {NAMES[check]}, to compare ({plan.accountant_version}). Noise of standard "
        "deviation noise multiplier * clip is added to each number of the clipped sums."
    )


def signal_line(found: Outlook) -> str | None:
    """The signal-to-noise ratio, at most; None where it is not known."""
    if found.noise_norm is None or found.rows is None:
        return None
    return (
        f"Signal to noise: at most {found.expected_snr:.3g}. With {found.rows:,.0f} rows per class, the noise "
        f"on a class's mean gradient of {found.dimension:,} numbers has norm {found.noise_norm:.3g}, in units "
        "of the clip; the signal has 1 at most."
    )


def advice_lines(found: Outlook) -> Iterator[str]:
    """What would help, where the target drowns or may."""
    for number, sentence in enumerate(found.advice):
        yield sentence if number == 0 else f"  - {sentence}"
