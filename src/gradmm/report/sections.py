"""The chapter of a run of `gradmm generate`: from what it left to sections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from gradmm.privacy.words import promise_line
from gradmm.report import drawings, words
from gradmm.report.aim import aimed_at, reader_of
from gradmm.report.numbers import distance, duration, fixed, percent, significant
from gradmm.report.page import (
    Beside,
    Browser,
    Caution,
    Chapter,
    Charts,
    Code,
    Folded,
    Lead,
    Paragraph,
    Part,
    Row,
    Section,
    Table,
    TextCell,
    table,
)
from gradmm.report.read import Texts
from gradmm.report.repeat import command, repeat_texts

_SETTINGS = ("model", "data", "task", "distance", "space", "template")  # without which distances are not alike
_READERS = {
    "rows": "a copy of the model that has learnt the classes from real rows",
    "target": "what the target knows of the classes' words and mean hidden states",
    "model": "the model",
}


def texts_chapter(run: Texts, most_letters: int) -> Chapter:
    """A run, section by section; those without anything to show are left out.

    Args:
        run: the run.
        most_letters: that the table of texts may hold.
    """
    found = (
        _lead(run),
        _texts(run, most_letters),
        _trade_off(run),
        _history(run),
        _selection(run),
        _vocabulary(run),
        _map(run),
        _privacy(run),
        _nearest(run),
        repeat_texts(run),
    )
    sections = [section for section in found if section is not None]
    return Chapter(run.path.resolve().name, "texts", sections, facts(run))


def facts(run: Texts) -> dict[str, str]:
    """What stands side by side for several runs."""
    own, seconds = run.metrics["synthetic"], run.metrics["seconds"]
    return {
        "solver": run.metrics["solver"],
        "texts": f"{len(run.rows):,}",
        "distance": distance(own["distance"]),
        "log-perplexity": fixed(own["log_perplexity"]),
        "distinct pairs": percent(own["distinct_2"]),
        "time": duration(sum(seconds.values())) + (" + release" if run.is_private else ""),
        "privacy": words.short_privacy(run),
    }


def are_alike(runs: Sequence[Texts]) -> bool:
    """Whether their distances are between the same things: model, data, rendering, space, and privacy."""
    kept = [{key: run.config.get(key) for key in (*_SETTINGS, "privacy")} for run in runs]
    return all(one == kept[0] for one in kept)


def _lead(run: Texts) -> Section:
    sentences = (words.asked(run), words.achieved(run), words.readable(run))
    return Section("result", "What was asked, what was achieved", [*map(Lead, sentences), _measures(run)])


def _measures(run: Texts) -> Table:
    metrics = run.metrics
    rows = [
        Row(
            (
                words.SETS.get(name, name),
                f"{row['texts']:,}",
                distance(row["distance"]),
                fixed(row["log_perplexity"]),
                percent(row["distinct_2"]),
                fixed(row.get("tokens"), 1),
            ),
            name == "synthetic",
        )
        for name, row in {"synthetic": metrics["synthetic"], **metrics["references"]}.items()
    ]
    head = ("set", "texts", "distance", "log-perplexity", "distinct pairs", "tokens per text")
    return Table(
        "Distance and log-perplexity: lower is better. Distinct pairs, the share of word pairs that differ: "
        "higher is more varied",
        head,
        [("", rows)],
    )


def _texts(run: Texts, most_letters: int) -> Section:
    optional: dict[str, tuple[str, Callable[[float | None], str]]] = {
        "label score": ("label_score", fixed),
        "weight": ("weight", significant),
    }
    kept = {name: own for name, own in optional.items() if any(row.get(own[0]) is not None for row in run.rows)}
    rows = []
    for number in _fitting(run, most_letters):
        row = run.rows[number]
        cells = [
            TextCell(distance(row["gradient_distance"]), row["gradient_distance"]),
            TextCell(fixed(row["log_perplexity"]), row["log_perplexity"]),
            *(TextCell(form(row[key]), row[key]) for key, form in kept.values()),
            TextCell(row["source"]),
        ]
        rows.append((number, row["label"], row["text"], cells))
    columns = ("distance of class", "log-perplexity", *kept, "source")
    note = (
        "Distance is that of the class's whole set: single texts have none, and where classes are matched "
        "together, each by itself may be far. Source says who wrote a text; "
        "refined is one in which tokens were changed. Control and bidirectional characters are written out."
    )
    return Section("texts", "The texts", [Paragraph(note), Browser(columns, run.label_names, rows, len(run.rows))])


def _fitting(run: Texts, most_letters: int) -> list[int]:
    """Rows that fit the page, in their order; where not all do, as many of every class."""
    by_class = [[i for i, row in enumerate(run.rows) if row["label"] == c] for c in range(len(run.label_names))]
    found, letters = list[int](), 0
    for number in (i for turn in zip_longest(*by_class) for i in turn if i is not None):
        letters += len(run.rows[number]["text"]) + 150  # what the other cells take
        if letters > most_letters and found:
            break
        found.append(number)
    return sorted(found)


def _trade_off(run: Texts) -> Section:
    chart = drawings.trade_off(run)
    note = (
        "Nearer to the left, the set's gradient is nearer to the target; lower, the model finds its texts more "
        "readable. The line is the way that the set came."
    )
    return Section("trade-off", "Distance against readability", [Paragraph(note), Charts([chart])])


def _history(run: Texts) -> Section | None:
    charts = drawings.history(run)
    times = run.metrics["seconds"]
    parts: list[Part] = [Charts(charts)] if charts else []
    if times:
        rows = [(stage, duration(taken)) for stage, taken in times.items()]
        parts.append(table("Time of every stage", ("stage", "time"), rows))
    return Section("history", "How it went on", parts) if parts else None


def _selection(run: Texts) -> Section | None:
    every = run.metrics.get("search") or []
    if not every:
        return None
    note = (
        "Candidates are the class's pool, without doubles and banned texts. They carry their label where "
        f"{_READERS[reader_of(run.config)]} "
        "finds their class more probable than by chance. After greedy choice, selected and refined are "
        "values of the objective that was minimised, of all classes that are matched together: lower is better."
    )
    before = [
        (run.label_names[label], text)
        for own in every
        for label, texts in zip(own["classes"], own["selected_texts"], strict=False)
        for text in texts
    ]
    form = run.metrics.get("form")
    if form is not None and form["objectives"]:
        note += (
            f" All candidates took the form of writing {form['name']}: of {len(form['objectives'])} that were "
            "tried, texts of the model came nearest to the target in it."
        )
    if aimed := aimed_at(run.metrics):
        note += f" {aimed}"
    parts: list[Part] = [Paragraph(note), _candidates(run, every), _objectives(run, every)]
    if before:  # of a run that was published they are left out
        told = "The selected texts, before single tokens were changed"
        parts.append(Folded(told, _pairs(before, ("class", "text"))))
    return Section("selection", "Candidates and survivors", parts)


def _candidates(run: Texts, every: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (run.label_names[label], f"{there:,}", f"{carry:,}", f"{into:,} / {out:,}")
        for own in every
        for label, there, carry, into, out in zip(
            own["classes"],
            own["candidates"],
            own["carry_their_label"],
            own["relabelled_in"],
            own["relabelled_out"],
            strict=True,
        )
    ]
    return table("Candidates", ("class", "candidates", "carry their label", "relabelled in / out"), rows)


def _objectives(run: Texts, every: Sequence[Mapping[str, Any]]) -> Table:
    head = ("matched", "after greedy choice", "exchanges", "selected", "refined", "tokens changed", "sets judged")
    rows = [
        (
            "all classes together" if len(own["classes"]) > 1 else run.label_names[own["classes"][0]],
            fixed(own["objective_greedy"]),
            f"{own['exchanges']:,}",
            fixed(own["objective_selected"]),
            fixed(own["objective_refined"]),
            f"{own['changes']:,}",
            f"{own['evaluations']:,}",
        )
        for own in every
    ]
    return table("What became of them", head, rows)


def _pairs(rows: Sequence[tuple[str, ...]], head: tuple[str, ...]) -> Table:
    return table("", head, rows, range(len(head)))


def _vocabulary(run: Texts) -> Section | None:
    parts: list[Part] = []
    lengths, found = run.figures.get("lengths"), run.figures.get("words")
    if lengths:
        parts.append(Charts([drawings.lengths(lengths)]))
    if found:
        tables = list[Table]()
        beside = words.SETS.get(found["reference"], found["reference"])
        for key, title in (("more", "more often"), ("fewer", "less often")):
            rows = [
                (one["word"], percent(one["synthetic"], 2), percent(one["reference"], 2))
                for one in found.get(key) or ()
            ]
            head = ("word", "synthetic texts", beside)
            if rows:
                caption = f"Words that stand in the synthetic texts {title} than in {beside}: shares of all words"
                tables.append(table(caption, head, rows))
        parts.append(Beside(tables))
    return Section("vocabulary", "Lengths and vocabulary", parts) if parts else None


def _map(run: Texts) -> Section | None:
    found = run.figures.get("map")
    if not found or not found.get("points"):
        return None
    note = (
        "Every mark is the mean gradient of a class's texts, or the gradient of one text, on the two axes that "
        "hold most of the variance. Colour and shape are the class. The crosses are the target."
    )
    return Section("map", "Map of gradients", [Paragraph(note), Charts([drawings.gradient_map(run)])])


def _privacy(run: Texts) -> Section:
    if not run.is_private:
        return Section("privacy", "Privacy", [Caution(words.NOT_PRIVATE)])
    told = run.metrics["privacy"]
    parts: list[Part] = []
    if not told["is_private"]:
        parts.append(Caution("NOT PRIVATE: the noise was a test's, which can be repeated."))
    promised = promise_line(told["target_epsilon"], told["delta"], told["neighboring_relation"])
    said = (promised, words.spent(told), words.signal(told), words.PROTECTED)
    parts += [*map(Paragraph, said), *_ledger(run)]
    name = run.path.resolve().name
    parts.append(Code("Check the ledger", command("gradmm", "privacy", "verify", name)))
    return Section("privacy", "Privacy", parts)


def _ledger(run: Texts) -> Iterator[Part]:
    declared = [line for line in run.ledger if line["line"] != "spend"]
    rows = [
        (
            str(line["release"]) + (" (again)" if line.get("is_again") else ""),
            f"{line['dimension']:,}",
            significant(line["bound"], 4),
            f"{line['event']['noise_multiplier']:.4f}",
            f"{line['epsilon']:.4f}",
            str(line.get("noise")) + ("" if line["is_private"] else " (NOT PRIVATE)"),
        )
        for line in run.ledger
        if line["line"] == "spend"
    ]
    head = ("release", "numbers", "bound", "noise multiplier", "epsilon so far", "noise")
    yield table("The ledger: what was released", head, rows, (0, 5))
    for line in declared[1:]:
        yield Paragraph(f"The target was set to epsilon {line['target_epsilon']:g} later on.")


def _nearest(run: Texts) -> Section | None:
    found = run.figures.get("nearest")
    if not found:
        return None
    ordered = sorted(found, key=lambda one: -one["overlap"])
    rows = [
        (
            run.label_names[run.rows[one["row"]]["label"]],
            percent(one["overlap"]),
            run.rows[one["row"]]["text"],
            one["text"],
        )
        for one in ordered
    ]
    head = ("class", "overlap", "synthetic text", "nearest real row")
    parts: list[Part] = [
        Caution("These are real rows. A report for others leaves them out with --publishable."),
        table("Overlap is the share of the text's word pairs that the row has too", head, rows, (0, 2, 3)),
    ]
    return Section("nearest", "Nearest real rows", parts)
