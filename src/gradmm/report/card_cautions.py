"""The sections of a data set card that say what is promised of it, and what it is not."""

from __future__ import annotations

from gradmm.privacy.config import MEANINGS, UNIT
from gradmm.report.aim import reader_of
from gradmm.report.card_sections import Lines, table
from gradmm.report.metadata import data_name, keeps_promise
from gradmm.report.names import code, public_name
from gradmm.report.numbers import at_most, significant
from gradmm.report.read import LEDGER, Texts

_MEANINGS = {str(name): meaning for name, meaning in MEANINGS.items()}
_WHO_LABELS = {
    "rows": "a text *has for a copy of the model that was trained on the real rows*",
    "target": "a text *has by what the target knows of the classes' words and mean hidden states*",
    "model": "a text was *written for*",
}
_NOT_PRIVATE = (
    "**This data set is not private.** The real rows were used without noise to steer the words of these texts, "
    "to choose them and to change them, so texts may repeat real ones in part, and whoever has the texts may "
    "learn something of single rows. Nothing here measures how much."
)
_TEST_NOISE = "**This data set is NOT PRIVATE**: the noise of its release was a test's, which can be repeated."
_RELEASED = (
    "- **Released**: sums of the rows' clipped gradients, class by class, once, with Gaussian noise; and sums of "
    "their shares of words, and numbers of rows, only where they stand below. Everything here was computed from "
    "that and from what is public."
)
_NOT_PROTECTED = (
    "Not protected: what the model knew before; what stands in the settings (the task, the names of the classes, "
    "numbers of rows that were declared public); what is true of many rows; what other runs released of the same "
    "rows."
)


def privacy(run: Texts) -> Lines:
    """What is promised about the real rows."""
    if keeps_promise(run):
        return ["## Privacy", "", *_promise(run)]
    return ["## Privacy", "", _TEST_NOISE if run.is_private else _NOT_PRIVATE]


def limits(run: Texts) -> Lines:
    """What the texts are not."""
    model = code(public_name(str(run.config["model"]["model_name_or_path"])))
    return [
        "## Limits",
        "",
        f"- A label is the class that {_who_labels(run)}. Nobody has checked the texts, and some do not show "
        "their class.",
        "- The texts are a language model's. They hold its biases and its errors, may offend, and are no source "
        "for facts or opinions.",
        f"- The figures above were measured on {model}, as it is. How well it or another model learns from the "
        "texts they do not say; `gradmm compare` trains and measures that.",
        "- **Licence**: none was chosen. The terms of the real data and of the model may bind what was made from "
        "them; who publishes this sets `license` at the head of this page.",
    ]


def _who_labels(run: Texts) -> str:
    return _WHO_LABELS[reader_of(run.config)]


def _promise(run: Texts) -> Lines:
    """Epsilon, delta, unit, relation, and all that was released."""
    spent = run.metrics["privacy"]
    relation = str(spent["neighboring_relation"])
    accountant = code(f"{spent['accountant']} of {spent['accountant_version']}")
    releases = (
        (
            *(code(str(line["release"])), f"{line['dimension']:,}"),
            *(f"{line['event']['noise_multiplier']:.4f}", code(str(line["noise"]))),
        )
        for line in run.ledger
        if line["line"] == "spend"
    )
    return [
        f"This data set is differentially private with respect to the rows of {code(data_name(run))}: "
        f"**epsilon {at_most(spent['epsilon'])}** at **delta {spent['delta']:.3g}**.",
        "",
        f"- **Unit**: one {UNIT}. Ten rows of one person are protected ten times less.",
        f"- **Relation**: {code(relation)}: {_MEANINGS[relation]}.",
        f"- **Accountant**: {accountant}; the budget was {spent['target_epsilon']:g}.",
        f"- **Signal to noise** of a class's target: about {significant(spent['expected_snr'])} is expected, by "
        "texts that the model wrote.",
        _RELEASED,
        "",
        *table(("release", "numbers", "noise multiplier", "noise"), releases, "lrrl"),
        "",
        f"`gradmm privacy verify FOLDER` computes the cost anew from the ledger, `{LEDGER}`. {_NOT_PROTECTED}",
    ]
