"""`generate()` from end to end: what it gives, what it leaves on disk, how it goes on, what it refuses."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

import gradmm
from gradmm import pipeline
from gradmm.blocks import BlockRunner
from gradmm.comparison.material import Silent
from gradmm.config import load_config
from gradmm.data.sources import DataConfig, LabelledData, load_data
from gradmm.data.task import BoundTask, Task
from gradmm.decoding import log_perplexity
from gradmm.errors import ConfigError, DataError, GradmmError, RunFolderError, TaskError
from gradmm.gradients.exact_target import Unfinished, compute_target
from gradmm.measures import measure
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.pipeline import generate
from gradmm.progress import Reporter
from gradmm.result import Result
from gradmm.search import Search
from run_tools import (
    DATA_FILES,
    FILES,
    TINY_ROWS,
    Idle,
    Interrupting,
    admm_config,
    data_bytes,
    figures,
    files,
    tiny_data,
)
from store_tools import Kept

PLAIN = {"initial": {"candidates": 1}, "references": False}


def jsonl_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / DATA_FILES[0]).read_bytes().splitlines()]


def holds_text_of(folder: Path, texts: list[str]) -> list[tuple[str, str]]:
    forms = [(text, form.encode()) for text in texts for form in {text, json.dumps(text)[1:-1]}]
    return [(name, t) for name in files(folder) for t, form in forms if form in (folder / name).read_bytes()]


@pytest.fixture(scope="module")
def demo_rows() -> LabelledData:
    return load_data("demo")


@pytest.fixture(scope="module")
def finished(demo_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return generate(demo_lm, "sst2", "demo", admm_config(), tmp_path_factory.mktemp("demo") / "run")


@pytest.fixture(scope="module")
def whole(tiny_lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return generate(tiny_lm("gpt2"), "sst2", TINY_ROWS, admm_config(), tmp_path_factory.mktemp("tiny") / "run")


# ---- what a run gives


def test_the_data_set_is_labelled_text(finished: Result) -> None:
    assert finished.dataset.column_names == [
        *("text", "label", "gradient_distance", "log_perplexity", "label_score", "weight", "source")
    ]
    assert finished.dataset.features["label"] == datasets.ClassLabel(names=["negative", "positive"])
    assert finished.dataset["label"][:] == [0, 0, 0, 1, 1, 1]
    assert set(finished.dataset["source"]) == {"admm"}
    assert all(text.strip() for text in finished.dataset["text"])
    assert finished.texts_of(0) + finished.texts_of(1) == finished.dataset["text"][:]
    assert f"Result(6 texts, gradient distance {finished.metrics['synthetic']['distance']:.4f}" in repr(finished)


def test_the_metrics_say_what_was_made_and_how(finished: Result) -> None:
    metrics = finished.metrics
    parts = {
        "solver",
        "synthetic",
        "steps",
        "references",
        "form",
        "shrinkage",
        "search",
        "stops",
        "seconds",
        "trace",
        "figures",
    }
    assert set(metrics) == parts
    assert metrics["form"] is None and metrics["shrinkage"] is None
    assert (metrics["solver"], metrics["steps"], metrics["search"]) == ("admm", {}, [])
    measures = {"texts", "distance", "class_distances", "log_perplexity", "distinct_2", "tokens"}
    assert set(metrics["synthetic"]) == measures | {"retokenised_differently"}
    assert {name: set(row) for name, row in metrics["references"].items()} == {"real": measures, "lm": measures}
    assert [row["texts"] for row in (metrics["synthetic"], *metrics["references"].values())] == [6, 6, 6]
    assert set(metrics["seconds"]) == {"pool", "target", "admm", "measure"}
    assert [(stop["first_block"], stop["blocks"], stop["reason"]) for stop in metrics["stops"]] == [
        (0, 2, "max_outer")
    ]
    assert [row["outer"] for row in metrics["trace"]] == [1, 2]
    assert all(row["best"] <= row["text"] for row in metrics["trace"])


def test_the_run_folder_holds_exactly_this(finished: Result, demo_lm: LanguageModel) -> None:
    assert files(finished.run_dir) == FILES
    assert not (finished.run_dir / "state").exists()
    settings = load_config(finished.run_dir / "config.yaml")
    assert settings.generate_config() == admm_config()
    assert (settings.model.model_name_or_path, settings.data.dataset) == ("demo", "demo")
    ready = gradmm.get_task("sst2")
    assert settings.resolve_task(ready.label_names) == ready
    assert json.loads((finished.run_dir / "environment.json").read_text())["device"] == str(demo_lm.device)
    log = (finished.run_dir / "run.log").read_text()
    assert [line.split()[1] for line in log.splitlines() if " done in " in line] == [
        "pool:",
        "target:",
        "admm:",
        "measure:",
    ]


def test_all_files_hold_the_same_rows(finished: Result, tmp_path: Path) -> None:
    rows = list(finished.dataset)
    paths = [str(finished.run_dir / name) for name in DATA_FILES]
    options = {"split": "train", "cache_dir": str(tmp_path)}
    from_json = datasets.load_dataset("json", data_files=paths[0], **options)
    from_parquet = datasets.load_dataset("parquet", data_files=paths[1], **options)
    assert jsonl_rows(finished.run_dir) == list(from_json) == list(from_parquet) == rows
    assert from_parquet.features == finished.dataset.features  # the names of the classes come with the file
    assert pd.read_json(paths[0], lines=True)["text"].tolist() == finished.dataset["text"][:]
    frame = pd.read_parquet(paths[1])
    assert frame.astype(object).where(frame.notna(), None).to_dict("records") == rows


def test_no_real_row_leaves(finished: Result, demo_rows: LabelledData) -> None:
    real = demo_rows.texts_of(0) + demo_rows.texts_of(1)
    assert len(real) == 240
    assert not set(real) & set(finished.dataset["text"])
    assert holds_text_of(finished.run_dir, real) == []
    assert holds_text_of(finished.run_dir, finished.dataset["text"][:1]) != []  # the search finds what is there


def test_the_figures_are_those_of_the_texts(
    finished: Result, demo_lm: LanguageModel, demo_task: BoundTask, demo_rows: LabelledData
) -> None:
    """In the space that follows from what the LM writes, which is written once more."""
    rows, config = jsonl_rows(finished.run_dir), admm_config()
    texts = [[row["text"] for row in rows if row["label"] == label] for label in range(2)]
    search = Search(BlockRunner(demo_lm, demo_task, config))
    space = search.public.fit_space(search.write(Kept(), Silent()))
    real = [demo_rows.iter_batches(label, 33) for label in range(2)]
    target = compute_target(demo_lm, demo_task, real, space=space).centred()
    own, *_ = measure(demo_lm, demo_task, target, config.distance, texts, BatchLimit(2))
    told, best = finished.metrics["synthetic"], finished.metrics["trace"][-1]["best"]
    assert told["distance"] == pytest.approx(own.distance, abs=1e-5)
    assert list(told["class_distances"]) == pytest.approx(own.class_distances, abs=1e-5)
    assert sum(told["class_distances"]) / 2 == pytest.approx(
        best, abs=1e-5
    )  # one block a class: what was optimised is what is told
    assert [row["gradient_distance"] for row in rows] == [told["class_distances"][row["label"]] for row in rows]
    nll = log_perplexity(demo_lm, [demo_task.text_ids(row["text"]) for row in rows], BatchLimit(1))
    assert [row["log_perplexity"] for row in rows] == pytest.approx(nll, rel=1e-4)
    assert told["log_perplexity"] == pytest.approx(sum(nll) / len(nll), rel=1e-4)


def test_metrics_are_json_for_everyone(tiny_lm: Any, tmp_path: Path) -> None:
    lengths = {"distribution": "fixed", "min_tokens": 1, "max_tokens": 1}  # one word has no pair of words
    generate(tiny_lm("gpt2"), "sst2", TINY_ROWS, admm_config(lengths=lengths), tmp_path / "run")
    text = (tmp_path / "run" / "metrics.json").read_text()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


# ---- chance


def test_the_seed_decides(tiny_lm: Any, whole: Result, tmp_path: Path) -> None:
    for seed in (0, 1):
        generate(tiny_lm("gpt2"), "sst2", TINY_ROWS, admm_config(seed=seed), tmp_path / f"{seed}")
    assert data_bytes(tmp_path / "0") == data_bytes(whole.run_dir)
    assert figures(tmp_path / "0") == figures(whole.run_dir)
    assert not set(whole.dataset["text"]) & {row["text"] for row in jsonl_rows(tmp_path / "1")}


def test_the_batch_size_changes_nothing(tiny_lm: Any) -> None:
    lengths = {"distribution": "uniform", "min_tokens": 3, "max_tokens": 20}
    means = []
    for size in (64, 1):
        config = admm_config(block_size=1, per_device_batch_size=size, lengths=lengths, references=False)
        by_outer = defaultdict(list)
        for row in generate(tiny_lm("llama"), "sst2", TINY_ROWS, config).metrics["trace"]:
            by_outer[row["outer"]].append(row["primal_residual"])
        means.append([sum(own) / len(own) for own in by_outer.values()])
    assert means[0] == pytest.approx(means[1], rel=1e-3)


# ---- what stays


def test_without_a_folder_nothing_stays(tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = admm_config(texts_per_class=5, references=False)  # five are no multiple of a block's three
    result = generate(tiny_lm("llama"), "sst2", TINY_ROWS, config)
    assert result.run_dir is None
    assert result.dataset["label"][:] == [0] * 5 + [1] * 5
    assert (result.metrics["synthetic"]["texts"], result.metrics["references"]) == (10, {})
    assert list(tmp_path.iterdir()) == []


def test_a_complete_run_is_returned_without_work(tiny_lm: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = generate(tiny_lm("llama"), "sst2", TINY_ROWS, admm_config(), folder)
    before = {name: (folder / name).stat().st_mtime_ns for name in files(folder)}
    (folder / "state").mkdir()  # as a kill before the last step leaves it
    config = admm_config(per_device_batch_size=5)  # what does not change the texts
    again = generate(tiny_lm("llama"), "sst2", TINY_ROWS, config, str(folder), Idle())
    assert {name: (folder / name).stat().st_mtime_ns for name in files(folder)} == before
    assert not (folder / "state").exists()
    assert (list(again.dataset), again.dataset.features) == (list(first.dataset), first.dataset.features)
    assert (again.metrics, again.run_dir) == (first.metrics, folder)


# ---- interruption


def test_wherever_a_run_of_several_waves_is_interrupted_it_ends_the_same(tiny_lm: Any, tmp_path: Path) -> None:
    def make(name: str, reporter: Reporter | None = None) -> Result:
        config = admm_config(**PLAIN, texts_per_class=4, block_size=2, per_device_batch_size=4)
        return generate(tiny_lm("gpt2"), "sst2", tiny_data(), config, tmp_path / name, reporter)

    whole = make("whole")
    for advances in count():  # a kill at every single point, until there is none left
        folder = tmp_path / f"{advances}"
        try:
            make(folder.name, Interrupting(advances))
            break
        except KeyboardInterrupt:
            assert not set(DATA_FILES) & files(folder)
            assert holds_text_of(folder, [text for text, _ in TINY_ROWS]) == []
            assert list(make(folder.name).dataset) == list(whole.dataset)
            assert data_bytes(folder) == data_bytes(tmp_path / "whole")
            assert figures(folder) == figures(tmp_path / "whole")
            assert files(folder) == FILES
    # LM texts of two classes, batches of rows; in each wave start, iterations, end; measures
    assert advances == 2 + 4 + 2 * (1 + 2 + 1) + 1
    for _ in range(advances):  # one run, killed again and again; what is done already is told anew
        try:
            make("often", Interrupting(7))
            break
        except KeyboardInterrupt:
            pass
    assert data_bytes(tmp_path / "often") == data_bytes(tmp_path / "whole")


def test_a_target_that_takes_long_goes_on_in_the_middle_of_a_class(
    tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "Unfinished", partial(Unfinished, seconds=0))
    monkeypatch.setattr(pipeline, "WINDOW", 1)
    config, kept = admm_config(per_device_batch_size=1), list[str]()

    def make(name: str, reporter: Reporter | None = None) -> Result:
        return generate(tiny_lm("gpt2"), "sst2", TINY_ROWS, config, tmp_path / name, reporter)

    whole = make("whole")
    for advances in range(3, 6):
        with pytest.raises(KeyboardInterrupt):
            make(f"{advances}", Interrupting(advances))
        kept += [path.name for path in (tmp_path / f"{advances}" / "state").glob("unfinished-*")]
        again = make(f"{advances}")
        assert list(again.dataset) == list(whole.dataset)
        assert figures(tmp_path / f"{advances}") == figures(tmp_path / "whole")
    assert set(kept) == {"unfinished-target-000000.safetensors"}


@pytest.mark.parametrize("advances", [5, 7, 8])
@pytest.mark.parametrize("sizes", [(64, 2), (2, 64)])
def test_an_interrupted_run_goes_on_with_another_batch_size(
    sizes: tuple[int, int], advances: int, tiny_lm: Any, tmp_path: Path
) -> None:
    def make(size: int, reporter: Reporter | None = None) -> Result:
        config = admm_config(**PLAIN, texts_per_class=4, block_size=2, per_device_batch_size=size)
        return generate(tiny_lm("gpt2"), "sst2", TINY_ROWS[3:7], config, tmp_path / "run", reporter)

    with pytest.raises(KeyboardInterrupt):
        make(sizes[0], Interrupting(advances))
    assert make(sizes[1]).dataset["label"][:] == [0] * 4 + [1] * 4


# ---- refusals


def test_other_settings_data_or_model_are_refused(tiny_lm: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(tiny_lm("gpt2"), "sst2", TINY_ROWS, admm_config(), tmp_path / "run", Interrupting(3))
    head = f"{tmp_path / 'run'} holds a run with other settings:\n"
    tail = "\ncontinue it with the old ones, or give another folder"
    with pytest.raises(RunFolderError) as caught:
        generate(tiny_lm("gpt2"), "sst2", TINY_ROWS, admm_config(seed=1, admm={"n_outer": 9}), tmp_path / "run")
    lines = str(caught.value).removeprefix(head).removesuffix(tail).splitlines()
    assert "  settings.seed: 0 -> 1" in lines
    assert "  settings.admm.n_outer: 2 -> 9" in lines
    for model, rows, key in (("gpt2", TINY_ROWS[1:], "data"), ("neox", TINY_ROWS, "model")):
        with pytest.raises(RunFolderError) as caught:
            generate(tiny_lm(model), "sst2", rows, admm_config(), tmp_path / "run")
        line = str(caught.value).removeprefix(head).removesuffix(tail)
        assert line.startswith(f"  {key}: ") and "\n" not in line


def test_labels_that_are_not_the_tasks_are_refused_before_any_work(tiny_lm: Any, tmp_path: Path) -> None:
    rows = [{"text": f"row {n}", "label": ("neg", "pos")[n % 2]} for n in range(6)]
    with pytest.raises(TaskError) as caught:
        generate(tiny_lm("llama"), "sst2", rows, admm_config(), tmp_path / "run", Idle())
    assert str(caught.value) == (
        "the task's classes are ['negative', 'positive'] but those of the list in memory are ['neg', 'pos']; give "
        "a task over the data's classes (task.template, task.verbalisers), or set data.label_names and "
        "data.classes to the task's"
    )
    assert not (tmp_path / "run").exists()


def test_a_row_beyond_the_context_is_refused_before_any_work(tiny_lm: Any, tiny_task: Any, tmp_path: Path) -> None:
    lm, long = tiny_lm("llama"), "A dull story " * 60
    bound = tiny_task(lm)
    with pytest.raises(DataError) as caught:
        generate(lm, "sst2", [*TINY_ROWS, ("fine", 0), (long, 0)], admm_config(), tmp_path / "run", Idle())
    assert str(caught.value) == (
        f"the list in memory, row {len(TINY_ROWS) + 1} (counted from 0): text has {len(bound.text_ids(long))} "
        f"tokens, but the model's context of {lm.max_length} leaves room for {bound.room}: {long[:60]!r}...; "
        "shorten or drop such rows, "
        "or take a model with a longer context"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_texts_beyond_the_context_are_refused_before_any_work(kind: str, tiny_lm: Any, tmp_path: Path) -> None:
    lengths = {"distribution": "fixed", "max_tokens": 200}
    with pytest.raises(GradmmError, match=r"lengths\.max_tokens"):
        generate(tiny_lm(kind), "sst2", TINY_ROWS, admm_config(lengths=lengths), tmp_path / "run", Idle())
    assert not (tmp_path / "run").exists()


def test_bans_of_everything_are_refused_before_any_work(tiny_lm: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the bans \{.*\} leave no token of 120; loosen them$"):
        generate(tiny_lm("gpt2"), "sst2", TINY_ROWS, admm_config(bans={"substrings": [""]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # it would refuse the mended settings


# ---- tasks and data of one's own


def test_three_classes_from_a_list_of_dicts(tiny_lm: Any) -> None:
    words = {"dull": " boring", "fine": " good", "rude": " awful"}
    task = Task(label_names=tuple(words), verbalisers=tuple(words.values()), template="{text} The film is")
    rows = [{"text": f"{name} film number {n}", "label": name, "other": n} for n in range(3) for name in words]
    result = generate(tiny_lm("llama"), task, rows, admm_config(texts_per_class=2))
    assert result.dataset.features["label"].names == ["dull", "fine", "rude"]
    assert [len(result.texts_of(label)) for label in range(3)] == [2, 2, 2]
    assert len(result.metrics["synthetic"]["class_distances"]) == 3


def test_a_csv_with_columns_of_its_own(tiny_lm: Any, tmp_path: Path) -> None:
    lines = [f'"{text}",{("negative", "positive")[label]}' for text, label in TINY_ROWS]
    (tmp_path / "rows.csv").write_text("\n".join(["review,mood", *lines]))
    data = load_data(tmp_path / "rows.csv", DataConfig(text_column="review", label_column="mood"))
    from_csv = generate(tiny_lm("llama"), "sst2", data, admm_config())
    in_memory = generate(tiny_lm("llama"), "sst2", TINY_ROWS, admm_config())
    assert list(from_csv.dataset) == list(in_memory.dataset)
