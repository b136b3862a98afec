"""What a run was asked and what it achieved, in sentences."""

from __future__ import annotations

from typing import Any

from gradmm.report.numbers import at_most, distance, fixed, significant
from gradmm.report.read import Texts

SETS = {"synthetic": "synthetic texts", "real": "real rows", "lm": "LM samples"}
"""What the sets of texts are called."""
STEPS = {"lm": "LM samples", "admm": "ADMM", "formed": "LM samples in the form", "selected": "selected"}
"""What the set is called after each step."""
_MOST_NAMES = 8
_PUSH = " So at the start of training they push the model where the"
_HOW = {
    "search": "the set whose mean gradient is nearest was searched for among texts that the model wrote",
    "admm": "ADMM moved embeddings towards the gradient and projected them onto tokens",
    "both": "ADMM wrote candidates, and the set whose mean gradient is nearest was searched for among them",
}


def asked(run: Texts) -> str:
    """What, from what, with what."""
    counts = [sum(row["label"] == label for row in run.rows) for label in range(len(run.label_names))]
    each = f"{counts[0]} for each of" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} for each of"
    solver = run.metrics["solver"]
    return (
        f"gradmm wrote {_counted(len(run.rows), 'text')}, {each} {_counted(len(counts), 'class', 'classes')} "
        f"({named(run.label_names)}), that stand in for the data {quoted(run.config['data'].get('dataset'))}, "
        f"with the model {quoted(run.config['model'].get('model_name_or_path'))}: {_HOW[solver]}."
    )


def achieved(run: Texts) -> str:
    """The distance beside those of the references, and what that means."""
    own, references = run.metrics["synthetic"], run.metrics["references"]
    released = "the gradients that were released, noise included" if run.is_private else "those of the real rows"
    found = f"Their mean gradients are at distance {distance(own['distance'])} from {released} (0 is best)"
    beside = [
        f"{words} are at {distance(references[name]['distance'])}"
        for name, words in (("real", "as many real rows"), ("lm", "as many texts that the model writes unguided"))
        if name in references
    ]
    found += f"; {' and '.join(beside)}" if beside else ""
    return found + "." + _meaning(own["distance"], references)


def _meaning(own: float, references: dict[str, Any]) -> str:
    if "real" in references and "lm" in references:
        real = references["real"]["distance"]
        if own <= real:
            return f"{_PUSH} real rows would, no less exactly than a sample of so many real rows."
        between = "more exactly than unguided texts, " if own < references["lm"]["distance"] else ""
        return f"{_PUSH} real rows would, {between}less exactly than a sample of so many real rows."
    if "lm" in references:
        nearer = own < references["lm"]["distance"]
        return f" So they match {'better' if nearer else 'no better'} than texts that the model writes unguided."
    return ""


def readable(run: Texts) -> str:
    """How readable, and in one clause how private."""
    own, real = run.metrics["synthetic"], run.metrics["references"].get("real")
    beside = "" if real is None else f", where real rows have {fixed(real['log_perplexity'])}"
    return (
        f"Their log-perplexity under the model is {fixed(own['log_perplexity'])} nats per token{beside} (lower is "
        f"more readable), and {privacy_clause(run)}."
    )


def privacy_clause(run: Texts) -> str:
    """The promise, or that there is none."""
    if not run.is_private:
        return "the run is not differentially private: treat the texts as derived from the rows"
    told = run.metrics["privacy"]
    if not told["is_private"]:
        return "the run is NOT private, for its noise was a test's"
    return (
        f"the texts are differentially private: epsilon {at_most(told['epsilon'])} at delta "
        f"{significant(told['delta'])}, per {told['unit']} ({told['neighboring_relation']})"
    )


def short_privacy(run: Texts) -> str:
    """For a cell of a table."""
    if not run.is_private:
        return "none"
    told = run.metrics["privacy"]
    if not told["is_private"]:
        return "NOT private (a test's noise)"
    return f"epsilon {at_most(told['epsilon'])}, delta {significant(told['delta'])}"


def spent(told: dict[str, Any]) -> str:
    """The budget against what was spent."""
    return (
        f"Spent: epsilon {at_most(told['epsilon'])} of {told['target_epsilon']:g}, computed by "
        f"{told['accountant'].upper()} ({told['accountant_version']}); making, choosing and measuring texts from "
        "what was released costs nothing more."
    )


def signal(told: dict[str, Any]) -> str:
    """What noise left of the target."""
    drowned = (
        " Noise is most of it: the distances say little about the real rows." if told["expected_snr"] < 1 else ""
    )
    return (
        f"Signal to noise: {told['expected_snr']:.3g} is expected, {told['most_snr']:.3g} at most. The noise on "
        f"a class's mean gradient of {told['dimension']:,} numbers has norm {told['noise_norm']:.3g} in units of "
        f"the clip ({told['clip']:.4g}); text that the model wrote has a signal of {told['expected_signal']:.3g}."
        f"{drowned}"
    )


PROTECTED = (
    "Protected is the part that any single row of the real data had in these texts, their figures and this whole "
    "folder, against anyone who knows the program, the settings and all the other rows. Not protected are what "
    "the model knew before, what stands in the settings (label names, declared numbers of rows), what is true of "
    "the data as a whole, someone who wrote many rows, and several runs on the same rows, whose costs compose."
)
NOT_PRIVATE = (
    "This run is NOT differentially private: its texts were chosen by gradients of the real rows, can give away "
    "what stands in them, and should be treated as derived from them."
)


def named(names: tuple[str, ...]) -> str:
    """The first few of them."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def quoted(name: Any) -> str:
    """A name that came from the settings."""
    return f"\N{LEFT DOUBLE QUOTATION MARK}{name}\N{RIGHT DOUBLE QUOTATION MARK}"


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
