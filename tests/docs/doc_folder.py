"""What the documentation takes for granted: files, a model and finished runs, all of them small."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from command_line import run
from doc_blocks import PAGES, blocks_of
from tiny_models import make_model, make_tokenizer

MODEL, RUN, PRIVATE, COMPARISON = "MODEL", "my-run", "private-run", "my-comparison"
SAME_AS = {
    RUN: RUN,
    "other-run": RUN,
    "gradmm-demo": RUN,
    PRIVATE: PRIVATE,
    "RUN": PRIVATE,
    COMPARISON: COMPARISON,
}
"""Runs that a block may begin with, and which of the three that are made each is."""
REVIEWS = {"negative": ("bad", "dull", "poor", "sad"), "positive": ("great", "fine", "warm", "funny")}
TICKETS = {"billing": ("bill", "refund"), "outage": ("error", "outage"), "other": ("hello", "thanks")}
TOPICS = {"C1": ("goal", "match"), "C2": ("song", "band"), "C3": ("soup", "bread")}
SMALL = {
    "generate": (
        *("pool.texts_per_text=4", "refinement.evaluations=1", "refinement.proposals=2", "initial.candidates=1"),
        *("writer.rounds=1", "writer.num_train_epochs=1", "space.public_texts=4"),
        "label_check.max_steps=1",
        *("lengths.distribution=uniform", "lengths.min_tokens=4", "lengths.max_tokens=8"),
    ),
    "train": ("max_steps=2", "eval_steps=1"),
    "compare": (
        *("seeds=1", "budgets=[1]", "learning_rates=[0.001]", "train.max_steps=1", "train.eval_steps=1"),
        *(
            "generate.pool.texts_per_text=4",
            "generate.refinement.evaluations=0",
            "generate.writer.rounds=1",
            "generate.label_check.max_steps=1",
        ),
        *(
            "generate.lengths.distribution=uniform",
            "generate.lengths.min_tokens=4",
            "generate.lengths.max_tokens=8",
        ),
    ),
}
"""Settings that make a verb quick; those that a command names itself go over them."""
SMALL["preview"] = SMALL["doctor"] = SMALL["generate"]


def make_model_folder(folder: Path) -> None:
    """A random model with room for the instructions of the documentation."""
    make_model("gpt2", n_positions=512).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


def make_files(folder: Path) -> None:
    """Every file that the documentation names."""
    for role in ("train", "dev", "test", "validation"):
        rows = _rows(REVIEWS, role)
        _write_csv(folder / f"{role}.csv", rows)
        with gzip.open(folder / f"{role}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(_json_lines(rows))
    _write_csv(folder / "tickets.csv", _rows(TICKETS, "day"))
    _write_csv(folder / "topics.csv", _rows(TOPICS, "post"))
    _write_csv(folder / "numbers.csv", ((text, int(name == "positive")) for text, name in _rows(REVIEWS, "old")))
    (folder / "candidates.jsonl").write_text(_json_lines(_rows(REVIEWS, "mine")), encoding="utf-8")
    (folder / "reviews.jsonl").write_text(
        _json_lines(_rows(REVIEWS, "own"), "body_text", "stars"), encoding="utf-8"
    )
    for name, text in named_files(PAGES).items():
        (folder / name).write_text(text, encoding="utf-8")


def named_files(pages: Iterable[Path]) -> dict[str, str]:
    """YAML blocks that begin with their file's name, as in `# run.yaml`."""
    found = {}
    for page in pages:
        for block in blocks_of(page):
            named = re.match(r"# (\S+\.yaml)\n", block.text) if block.kind == "yaml" else None
            if named:
                found[named[1]] = block.text
    return found


def make_runs(folder: Path) -> None:
    """One run of each kind, in a folder with files and model."""
    small = [word for one in SMALL["generate"] for word in ("-s", one)]
    base = ["generate", "-d", "train.csv", "-t", "sst2", "-n", "2", "-q", *small]
    budget = ["--epsilon", "4", "--delta", "1e-5", "--neighboring-relation", "add_or_remove_one"]
    sets = [word for one in SMALL["compare"] for word in ("-s", one)]
    for words in (
        [*base, "-o", RUN],
        [*base, *budget, "--num-rows", "8530", "-o", PRIVATE],
        ["compare", "comparison.yaml", "-q", *sets, "-s", "methods=[search,lm_random]", "-o", COMPARISON],
    ):
        done = run(*words)
        assert done.code == 0, done.err


def give_runs(text: str, made: Path, folder: Path) -> None:
    """Puts the runs that a block works on, and does not make itself, into its folder."""
    for name, kind in SAME_AS.items():
        first = re.search(rf"(-o |output_dir=\")?(?<![\w-]){name}(?![\w-])", text)
        if first and not first[1]:
            shutil.copytree(made / kind, folder / name)


def _rows(words: dict[str, tuple[str, ...]], role: str) -> list[tuple[str, str]]:
    return [(f"A {word} {role} {n}.", name) for n in range(2) for name, own in words.items() for word in own]


def _write_csv(path: Path, rows: Iterable[tuple[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def _json_lines(rows: Iterable[tuple[str, str]], text: str = "text", label: str = "label") -> str:
    return "".join(json.dumps({text: one, label: name}) + "\n" for one, name in rows)
