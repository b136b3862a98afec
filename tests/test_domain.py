"""Texts of the domain that the writer reads first: what it is shown and learns, and how a run depends on them."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gradmm.comparison.sets import _deciding
from gradmm.data.sources import load_texts
from gradmm.domain import Domain
from gradmm.errors import DataError, RunFolderError
from gradmm.pipeline import generate
from gradmm.seeds import make_generator
from run_tools import DATA_FILES, Interrupting, data_bytes, files, search_config, tiny_data
from writer_oracles import literal_loss

TEXTS = ["what a great film", "who was bad in it ?", "a sad film", "why does the film end and end and end and end"]


@pytest.fixture
def public(tmp_path: Path) -> str:
    path = tmp_path / "public.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def settings(**writer: Any) -> Any:
    writer = {"rounds": 2, "share": 0.5, "learning_rate": 1e-2} | writer
    return search_config(
        texts_per_class=2, space={"public_texts": 4}, writer=writer, refinement={"evaluations": 0}
    )


def make(lm: Any, *given: Any, **writer: Any) -> Any:
    return generate(lm, "sst2", tiny_data(), settings(**writer), *given)


def test_without_texts_the_lm_writes_as_it_is(tiny_lm: Any, tiny_task: Any) -> None:
    lm = tiny_lm("gpt2")
    domain = Domain(lm, tiny_task(lm), settings())
    assert domain.writer is lm and domain.ending == []


def test_texts_stand_behind_class_prompts_and_those_that_fit_end(tiny_lm: Any, tiny_task: Any) -> None:
    lm = tiny_lm("gpt2")
    task = tiny_task(lm)
    domain = Domain(lm, task, settings(), {"a": TEXTS * 5, "b": TEXTS * 5})
    examples, most = domain._examples(make_generator(0)), 8
    end = lm.tokenizer.eos_token_id
    assert domain.ending == [end]
    assert {tuple(prompt) for prompt, _ in examples} == set(map(tuple, task.instruction_ids))
    cut = 0
    for text, (_, ids) in zip(TEXTS * 10, examples, strict=True):
        whole = lm.tokenizer(f" {text}", add_special_tokens=False).input_ids
        assert list(ids) == ([*whole, end] if len(whole) <= most else whole[:most])
        cut += len(whole) > most
    assert 0 < cut < len(examples)


def test_the_writer_learns_them_and_the_lm_stays_as_it_is(tiny_lm: Any, tiny_task: Any) -> None:
    lm = tiny_lm("gpt2")
    before, domain = lm.fingerprint(), Domain(lm, tiny_task(lm), settings(num_train_epochs=20), {"a": TEXTS})
    examples = domain._examples(make_generator(0, "domain"))
    assert float(literal_loss(domain.writer.model, examples)) < 0.8 * float(literal_loss(lm.model, examples))
    assert lm.fingerprint() == before
    once = Domain(lm, tiny_task(lm), settings(num_train_epochs=20, files_max_steps=1), {"a": TEXTS})
    assert float(literal_loss(once.writer.model, examples)) > float(literal_loss(domain.writer.model, examples))


def test_who_has_read_writes_other_texts_and_learns_where_they_end(
    tiny_lm: Any, public: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = list[Any]()
    from gradmm import rounds

    own = rounds.tune_writer
    monkeypatch.setattr(rounds, "tune_writer", lambda *given: lessons.append(given) or own(*given))
    lm = tiny_lm("gpt2")
    plain, read = make(lm), make(lm, files=[public])
    assert plain.dataset["text"] != read.dataset["text"]
    assert not set(read.dataset["text"]) & set(TEXTS), "which are no candidates"
    (base, without, *_), (tuned, examples, *_) = lessons
    end = lm.tokenizer.eos_token_id
    assert base is lm and tuned.fingerprint() != lm.fingerprint(), "rounds go on from what was read"
    assert all(ids[-1] != end for _, ids in without) and all(ids[-1] == end for _, ids in examples)


def test_wherever_it_is_interrupted_a_run_ends_the_same(tiny_lm: Any, public: str, tmp_path: Path) -> None:
    make(tiny_lm("gpt2"), tmp_path / "whole", files=[public])
    for advances in count(0, 3):
        folder = tmp_path / f"{advances}"
        try:
            make(tiny_lm("gpt2"), folder, Interrupting(advances), files=[public])
            break
        except KeyboardInterrupt:
            assert not set(DATA_FILES) & files(folder)
            make(tiny_lm("gpt2"), folder, files=[public])
            assert data_bytes(folder) == data_bytes(tmp_path / "whole")
    assert advances > 6


def test_other_texts_are_another_run(tiny_lm: Any, public: str, tmp_path: Path) -> None:
    make(tiny_lm("gpt2"), tmp_path / "run", files=[public])
    Path(public).write_text(json.dumps({"text": "another film"}) + "\n")
    with pytest.raises(RunFolderError):
        make(tiny_lm("gpt2"), tmp_path / "run", files=[public])


def test_labels_are_not_needed_and_play_no_part(public: str, tmp_path: Path) -> None:
    assert load_texts(public) == TEXTS
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("label,sentence\n" + "".join(f'7,"{text}"\n' for text in TEXTS))
    assert load_texts(labelled) == TEXTS


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"words": "a"}, "no usual column of texts among words; set text_column (--text-column) to one of them"),
        ({"text": " "}, "row 0 (counted from 0): text is only white space; remove the row or give its text"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, line: dict[str, str], told: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError) as caught:
        load_texts(path)
    assert told in str(caught.value)


def test_sets_are_not_taken_from_a_comparison_whose_writer_read_other_texts() -> None:
    settings = {"real_rows_per_class": None, "budgets": [1]}
    one, other = (_deciding({"settings": settings, "read": {"a.jsonl": hashed}}) for hashed in ("1", "2"))
    assert one != other
