"""The verb `gradmm privacy`: what a budget buys, before it is spent, and whether a run kept its promise.

Neither torch nor dp-accounting is imported before it runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradmm.cli_options import Delta, Epsilon, Relation, Rows
from gradmm.errors import ConfigError

if TYPE_CHECKING:
    from gradmm.privacy.planning import Outlook

app = typer.Typer(invoke_without_command=True)

NoiseMultiplier = Annotated[
    float | None,
    typer.Option(metavar="NUMBER", min=0.01, max=1e9, help="Instead of --epsilon: what so much noise costs."),
]
Classes = Annotated[
    int, typer.Option(metavar="INTEGER", min=1, help="Classes that --num-rows is shared out to, for the ratio.")
]
Dimension = Annotated[
    int | None,
    typer.Option(metavar="INTEGER", min=1, help="Numbers of one class's target: shows the signal-to-noise ratio."),
]
AccountantFlag = Annotated[str | None, typer.Option(metavar="NAME", help="pld (the default) or rdp.")]
CountFraction = Annotated[
    float | None, typer.Option(metavar="NUMBER", help="Share of the budget for noisy counts; without it, none.")
]
WordsFraction = Annotated[
    float | None, typer.Option(metavar="NUMBER", help="Share of the budget for words; without it, none.")
]
Rounds = Annotated[int, typer.Option(metavar="INTEGER", min=1, help="Targets that share the budget.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


@app.callback()
def privacy(
    context: typer.Context,
    epsilon: Epsilon = None,
    delta: Delta = None,
    neighboring_relation: Relation = None,
    noise_multiplier: NoiseMultiplier = None,
    num_rows: Rows = None,
    num_classes: Classes = 1,
    dimension: Dimension = None,
    accountant: AccountantFlag = None,
    count_fraction: CountFraction = None,
    words_fraction: WordsFraction = None,
    rounds: Rounds = 1,
    as_json: Json = False,
) -> None:
    """Show what a budget of privacy buys before it is spent; `verify` checks what was."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from gradmm.present_privacy import outlook_as_json, show_outlook

    given = {
        "target_epsilon": epsilon,
        "target_delta": delta,
        "neighboring_relation": neighboring_relation,
        "num_rows": num_rows,
        "accountant": accountant,
    }
    fractions = {"--count-fraction": count_fraction, "--words-fraction": words_fraction}
    if noise_multiplier is None:
        outlook = _forth(given, fractions, rounds, dimension, num_classes)
    else:
        outlook = _back(given, noise_multiplier, fractions, rounds, dimension, num_classes)
    if as_json:
        typer.echo(json.dumps(outlook_as_json(outlook), indent=2))
    else:
        show_outlook(Console(), outlook)


@app.command()
def verify(run: Run, as_json: Json = False) -> None:
    """Compute a run folder's ledger anew: every cost, the budget, and whether a line was changed."""
    from rich.console import Console

    from gradmm.present_privacy import show_verification
    from gradmm.privacy.verification import verify as check

    found = check(run)
    if as_json:
        typer.echo(json.dumps({"holds": found.holds} | asdict(found), indent=2))
    else:
        show_verification(Console(), found)
    if not found.holds:
        raise typer.Exit(1)


def _forth(
    given: dict[str, Any], fractions: dict[str, float | None], rounds: int, dimension: int | None, classes: int
) -> Outlook:
    """From epsilon to noise."""
    from gradmm.privacy.config import Budget, read_privacy
    from gradmm.privacy.planning import COUNTS, WORDS, make_plan, outlook

    shares = {flag: share for flag, share in fractions.items() if share is not None}
    for flag, share in shares.items():
        if not 0 < share < 1:
            raise ConfigError(f"{flag} is {share:g}; give a share of the budget, above 0 and below 1")
    names = {"--count-fraction": COUNTS, "--words-fraction": WORDS}
    budget = read_privacy(Budget, given)
    plan = make_plan(budget, {names[flag]: share for flag, share in shares.items()}, rounds)
    return outlook(budget, plan, dimension, classes)


def _back(
    given: dict[str, Any],
    noise_multiplier: float,
    fractions: dict[str, float | None],
    rounds: int,
    dimension: int | None,
    classes: int,
) -> Outlook:
    """From noise to epsilon."""
    from gradmm.privacy.config import Promise, read_privacy
    from gradmm.privacy.planning import outlook, plan_of_noise

    for flag, value in (("--epsilon", given.pop("target_epsilon")), *fractions.items()):
        if value is not None:
            raise ConfigError(
                f"--noise-multiplier asks what noise costs, and {flag} is given too; give one of both"
            )
    promise = read_privacy(Promise, given)
    return outlook(promise, plan_of_noise(promise, noise_multiplier, rounds), dimension, classes)
