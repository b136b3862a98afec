"""The sections of a data set card, as lines of Markdown. What comes from outside stands in code spans."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from gradmm.report.aim import aimed_at
from gradmm.report.metadata import COLUMNS, data_name, keeps_promise
from gradmm.report.names import code, public_name
from gradmm.report.numbers import distance, fixed, percent
from gradmm.report.read import TEXTS, Texts

PAPER = "https://arxiv.org/abs/2502.17607"
_UNKNOWN = "see the documentation of `gradmm`"
_CHOSEN = (
    "the set whose mean gradient is nearest to the target is selected, and single tokens are changed as long as "
    "that brings it nearer or makes it more readable"
)
_SOLVERS = {
    "search": f"the model writes a pool of candidates, in rounds; {_CHOSEN}",
    "admm": "ADMM, the paper's solver, moves embeddings until their mean gradient is near the target, and maps "
    "them to tokens that the model finds likely",
    "both": f"texts made by ADMM, the paper's solver, and a pool that the model writes are candidates; {_CHOSEN}",
}
_DISTANCES = {
    "cosine": "one minus the cosine between two mean gradients",
    "relative_l2": "the squared difference of two mean gradients, over the squared norm of the target",
    "tag": "the squared difference of two mean gradients, plus a share of the absolute one",
}
_SETS = {"real": "as many real rows", "lm": "as many samples of the model"}
_BIBTEX = """@inproceedings{nguyen2025gradmm,
  title     = {Synthetic Text Generation for Training Large Language Models via Gradient Matching},
  author    = {Nguyen, Dang and Li, Zeman and Bateni, Mohammadhossein and Mirrokni, Vahab and
               Razaviyayn, Meisam and Mirzasoleiman, Baharan},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {267},
  pages     = {46008--46025},
  year      = {2025},
  note      = {arXiv:2502.17607}
}"""
Lines = list[str]


def intro(run: Texts) -> Lines:
    """What this is, in three sentences."""
    kind = "differentially private " if keeps_promise(run) else ""
    target = (
        "those that were released of the real rows, with noise" if run.is_private else "those of the real rows"
    )
    name = code(data_name(run))
    return [
        f"# Synthetic texts for {name}",
        "",
        f"{len(run.rows):,} {kind}synthetic texts in {len(run.label_names):,} classes, written by a language "
        f"model. They stand in for the real data {name} in fine-tuning: the gradients that a model gets from them "
        f"are near {target}. The method is GRADMM ([Nguyen et al., ICML 2025]({PAPER})), with what `gradmm` adds "
        "to it.",
    ]


def how(run: Texts) -> Lines:
    """Model, data, task and solver."""
    model, data, solver = run.config["model"], run.config["data"], str(run.metrics["solver"])
    task, words = _task(run)
    name = code(public_name(str(model["model_name_or_path"])))
    split = _given(", split ", data.get("split"))
    return [
        "## How it was made",
        "",
        f"- **Model**: {name}{_given(', revision ', model.get('revision'))}",
        f"- **Real data**: {code(data_name(run))}{split}; this page knows them by their name alone",
        f"- **Task**: {task}",
        f"- **Solver**: {code(solver)}: {_SOLVERS.get(solver, _UNKNOWN)}",
        *_form(run),
        *_aim(run),
        *_brought(run),
        "",
        *_classes(run, words),
    ]


def achieved(run: Texts) -> Lines:
    """How near, how readable, beside the references."""
    rows = {"**these texts**": run.metrics["synthetic"]}
    rows |= {_SETS[name]: row for name, row in run.metrics["references"].items() if name in _SETS}
    head = ("set", "texts", "distance", "log-perplexity", "distinct pairs")
    formula = _DISTANCES.get(str((run.config.get("distance") or {}).get("name", "cosine")), _UNKNOWN)
    apart = (run.config.get("distance") or {}).get("classes") == "apart"
    of_what = "averaged over the classes" if apart else "of all classes' mean gradient together"
    target = "what was released, with its noise" if run.is_private else "the real rows' mean gradients"
    return [
        "## What it achieves",
        "",
        *table(head, ((name, *_measures(row)) for name, row in rows.items()), "lrrrr"),
        "",
        f"Distance: {formula}, {of_what}; here to {target} (0 is best). Log-perplexity: nats per "
        "token under the same model (lower is more readable). Distinct pairs: of all pairs of neighbouring "
        "tokens, the share that differ.",
    ]


def columns() -> Lines:
    """What stands in a row."""
    names = {"class_label": "class"}
    cells = ((f"`{name}`", names.get(kind, kind), meaning) for name, (kind, meaning) in COLUMNS.items())
    return ["## Columns", "", *table(("column", "type", "meaning"), cells, "lll")]


def repeat(run: Texts) -> Lines:
    """The command, and what it ran on."""
    packages = ", ".join(f"{name} {version}" for name, version in run.environment["packages"].items())
    ran_on = f"{packages}, Python {run.environment['python']}, on {run.environment['device']}"
    again = (
        " The noise comes from the operating system and is drawn anew: other texts come out, and the budget is "
        "spent on the same rows once more."
    )
    return [
        "## Make it again",
        "",
        "    gradmm generate --config config.yaml --output-dir again",
        "",
        f"It was made with {code(ran_on)}. In a published `config.yaml`, paths are cut to their last component; "
        f"name your own with `--model` and `--data`.{again if run.is_private else ''}",
    ]


def load(repo_id: str | None) -> Lines:
    """How to get at the rows."""
    name = "PATH_OR_NAME" if repo_id is None else repo_id
    path = f"PATH/{TEXTS}" if repo_id is None else f"hf://datasets/{repo_id}/{TEXTS}"
    return [
        "## Load it",
        "",
        "```python",
        "import datasets",
        "import pandas",
        "",
        f'rows = datasets.load_dataset("{name}", split="train")',
        f'frame = pandas.read_parquet("{path}")',
        "```",
    ]


def cite() -> Lines:
    """The paper."""
    return ["## Cite the method", "", "```bibtex", _BIBTEX, "```"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> Lines:
    """A table in Markdown.

    Args:
        head: names of the columns.
        rows: cells; no bars and no line breaks.
        align: for every column, `l` or `r`.
    """
    marks = {"l": ":--", "r": "--:"}
    lines = [head, [marks[side] for side in align], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _form(run: Texts) -> Lines:
    form = run.metrics.get("form")
    return [f"- **Form of writing**, which all texts took: {code(str(form['name']))}"] if form is not None else []


def _aim(run: Texts) -> Lines:
    aimed = aimed_at(run.metrics)
    return [f"- **Target**: {aimed}"] if aimed else []


def _given(word: str, value: Any) -> str:
    return "" if value is None else word + code(str(value))


def _measures(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['texts']:,}",
        distance(row["distance"]),
        fixed(row["log_perplexity"]),
        percent(row["distinct_2"]),
    )


def _classes(run: Texts, words: dict[str, str]) -> Lines:
    """Every class with the words that stand for it, its texts, and how near they are."""
    sizes = [sum(row["label"] == label for row in run.rows) for label in range(len(run.label_names))]
    nearness = run.metrics["synthetic"]["class_distances"]
    rows = (
        (str(label), code(name), code(words[name]) if name in words else "", f"{size:,}", distance(apart))
        for label, (name, size, apart) in enumerate(zip(run.label_names, sizes, nearness, strict=True))
    )
    return table(("label", "class", "words", "texts", "distance"), rows, "rllrr")


def _task(run: Texts) -> tuple[str, dict[str, str]]:
    """The task in a sentence, and the words of every class: as the run resolved them, if it kept that."""
    given = run.config["task"]
    named = code(given) if isinstance(given, str) else ""
    found = json.loads((run.path / "fingerprint.json").read_text(encoding="utf-8")).get("task")
    if found is not None:
        template, words = found["template"], dict(zip(found["label_names"], found["verbalisers"], strict=True))
    elif isinstance(given, str):
        return named, {}
    else:
        template, words = given["template"], given.get("verbalisers") or {}
    return f"{named}{': ' * bool(named)}a text stands in {code(template)}, and its class's words follow", words


def _brought(run: Texts) -> Lines:
    kinds = (
        ("pool", "Candidates from files", "whose texts may stand here word for word"),
        ("writer", "Read before writing", "which whoever wrote the texts has learnt and may repeat"),
    )
    found = []
    for group, title, caution in kinds:
        files: Sequence[str] = (run.config.get(group) or {}).get("files") or ()
        if files:
            names = ", ".join(code(public_name(str(file))) for file in files)
            found.append(f"- **{title}**: {names}, {caution}")
    return found
