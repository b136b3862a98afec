"""`gradmm.teaching`, `gradmm.label_check`: who knows the classes, from rows or by the target, says a text's."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from gradmm.blocks import BlockRunner
from gradmm.config import GenerateConfig
from gradmm.data.presets import get_task
from gradmm.data.task import BoundTask
from gradmm.domain import Domain
from gradmm.errors import ConfigError, NonFiniteError
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.target import ReleasedTarget
from gradmm.gradients.target_reader import TargetReader
from gradmm.label_check import LabelCheck
from gradmm.labelling import LabelCheckConfig, label_log_probs
from gradmm.pipeline import generate
from gradmm.public_text import PublicText
from gradmm.solvers.pool import Candidate
from gradmm.teaching import Teacher
from run_tools import Interrupting, data_bytes, search_config, tiny_data

TAUGHT = {"reader": "rows", "max_steps": 30, "num_train_epochs": 300, "learning_rate": 0.02}
CLASSES = (("bad", "dull"), ("great", "fine"))
TEXTS = [[f"A {word} film." for word in words] + [f"{word} end" for word in words] for words in CLASSES]


def rows_of(counts: Any) -> list[list[str]]:
    """Rows that say their class by a word."""
    return [own[:count] for own, count in zip(TEXTS, counts, strict=True)]


@pytest.fixture
def lm(tiny_lm: Any) -> Any:
    return tiny_lm("gpt2")


def checking(lm: Any, **label_check: Any) -> tuple[LabelCheck, Any]:
    settings, task = (
        search_config(label_check=TAUGHT | label_check),
        BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length),
    )
    teacher = Teacher(Domain(lm, task, settings), settings, rows_of)
    return LabelCheck(BlockRunner(lm, task, settings), teacher), task


def pools(*texts: list[str]) -> list[list[Candidate]]:
    return [[Candidate(text, "lm") for text in sorted(own)] for own in texts]


# ---- the reader


def test_the_reader_knows_what_the_rows_say(lm: Any) -> None:
    check, task = checking(lm)
    for label, own in enumerate(TEXTS):
        log_probs_NC = label_log_probs(check.reader, task, task.texts_ids(own))
        assert log_probs_NC.argmax(1).tolist() == [label] * len(own)
    assert check.knows_classes


def test_who_learns_leaves_the_model_as_it_is(lm: Any) -> None:
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    check, _ = checking(lm)
    assert check.reader is check.reader, "he learns once"
    for name, weight in lm.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_the_same_seed_teaches_the_same(lm: Any) -> None:
    (first, task), (again, _), (other, _) = checking(lm), checking(lm), checking(lm, max_steps=29)
    found = [label_log_probs(one.reader, task, task.texts_ids(TEXTS[0])) for one in (first, again, other)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_reader_learns_from_where_the_writer_stands(lm: Any) -> None:
    """A lesson that moves nothing leaves him as who has read text of the domain, and without any as the LM is."""
    settings = search_config(label_check=TAUGHT | {"learning_rate": 1e-12})
    task = BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length)
    read = Domain(lm, task, settings, {"read": ["A film about a film ."] * 20})
    plain_NC, domain_NC = (label_log_probs(who, task, task.texts_ids(TEXTS[0])) for who in (lm, read.writer))
    assert (plain_NC - domain_NC).abs().max() > 0.01
    for domain, expected_NC in ((Domain(lm, task, settings), plain_NC), (read, domain_NC)):
        reader = Teacher(domain, settings, rows_of).reader
        torch.testing.assert_close(label_log_probs(reader, task, task.texts_ids(TEXTS[0])), expected_NC)


def test_without_a_teacher_the_lm_is_asked_and_not_trusted_to_relabel(lm: Any) -> None:
    runner = BlockRunner(
        lm, BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length), search_config(label_check=TAUGHT)
    )
    check = LabelCheck(runner)
    assert check.reader is lm and not check.knows_classes
    checked = check.checked(pools(*TEXTS))
    assert [[one.text for one in own.pool] for own in checked] == [sorted(own) for own in TEXTS]


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [
        (1000, {}, 200),
        (40, {}, 25),
        (1, {}, 1),
        (40, {"num_train_epochs": 1}, 2),
        (10**6, {"max_steps": 300}, 300),
    ],
)
def test_rows_that_are_few_are_not_seen_without_end(rows: int, settings: Any, steps: int) -> None:
    assert LabelCheckConfig(**settings).steps(rows) == steps


# ---- the candidates


def test_candidates_go_to_the_class_that_they_are_of(lm: Any) -> None:
    check, _ = checking(lm)
    mixed = pools([*TEXTS[0][:3], TEXTS[1][3]], [*TEXTS[1][:3], TEXTS[0][3]])
    found = check.checked(mixed)
    assert [{one.text for one in own.pool} for own in found] == [set(own) for own in TEXTS]
    assert [(own.relabelled_in, own.relabelled_out) for own in found] == [(1, 1), (1, 1)]


def test_scores_are_what_the_reader_says(lm: Any) -> None:
    check, task = checking(lm, relabel=False)
    for label, own in enumerate(check.checked(pools(*TEXTS))):
        texts = [one.text for one in own.pool]
        expected_NC = label_log_probs(check.reader, task, task.texts_ids(texts)).softmax(1)
        torch.testing.assert_close(own.score_N, expected_NC[:, label])


def test_a_text_carries_the_label_that_is_most_probable_and_probable_enough(lm: Any) -> None:
    check, _ = checking(lm)
    assert check.carries(0, TEXTS[0][0]) and not check.carries(1, TEXTS[0][0])
    sure, _ = checking(lm, min_probability=1.0)
    assert not sure.carries(0, TEXTS[0][0])


def test_refinement_changes_no_text_into_one_of_another_class(
    tiny_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is asked of every change that would be made, and of no other."""
    asked: list[bool] = []
    own = LabelCheck.carries

    def carries(self: LabelCheck, label: int, text: str) -> bool:
        asked.append(own(self, label, text))
        return asked[-1]

    monkeypatch.setattr(LabelCheck, "carries", carries)
    settings = search_config(label_check=TAUGHT, refinement={"evaluations": 40, "proposals": 4, "places": 2})
    figures = generate(tiny_lm("gpt2"), "sst2", tiny_data(), settings).metrics["search"]
    assert asked.count(True) == sum(group["changes"] for group in figures) > 0
    assert asked.count(False) > 0


# ---- runs


def test_an_interrupted_run_ends_the_same(tiny_lm: Any, tmp_path: Any) -> None:
    settings = search_config(label_check=TAUGHT, writer={"rounds": 2, "share": 0.5}, space={"public_texts": 3})
    lm = tiny_lm("gpt2")
    whole = generate(lm, "sst2", tiny_data(), settings, tmp_path / "whole")
    for left in (3, 9, 15):
        place = tmp_path / str(left)
        with pytest.raises(KeyboardInterrupt):
            generate(lm, "sst2", tiny_data(), settings, place, Interrupting(left))
        again = generate(lm, "sst2", tiny_data(), settings, place)
        assert again.dataset["text"] == whole.dataset["text"]
        assert data_bytes(place) == data_bytes(tmp_path / "whole")


def test_nobody_learns_again_for_sets_that_are_there(tiny_lm: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """A run that breaks off when all is selected and refined asks for no label when it goes on."""
    settings, lm = search_config(label_check=TAUGHT, references=True), tiny_lm("gpt2")
    monkeypatch.setattr("gradmm.pipeline.measure", lambda *given: pytest.fail("broken off"))
    with pytest.raises(pytest.fail.Exception, match="broken off"):
        generate(lm, "sst2", tiny_data(), settings, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("gradmm.teaching.teach", None)
    assert len(generate(lm, "sst2", tiny_data(), settings, tmp_path).dataset) == 6


def test_what_is_learnt_is_said(tiny_lm: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gradmm")
    generate(tiny_lm("gpt2"), "sst2", tiny_data(), search_config(label_check=TAUGHT))
    assert f"learning from {len(tiny_data())} real rows which texts carry their label" in caplog.text
    assert "updates" not in caplog.text, "it has but 30"


def test_a_long_lesson_tells_how_far_it_is(lm: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gradmm")
    assert checking(lm, max_steps=100)[0].reader
    assert caplog.messages.count("learning from real rows: 50 of 100 updates") == 1
    assert "100 of 100" not in caplog.text


def test_a_rate_that_is_too_high_is_named(tiny_lm: Any) -> None:
    with pytest.raises(NonFiniteError) as caught:
        generate(tiny_lm("gpt2"), "sst2", tiny_data(), search_config(label_check=TAUGHT | {"learning_rate": 1e30}))
    said = str(caught.value)
    assert said.startswith("learning the classes from real rows: ")
    assert said.endswith("(label_check.learning_rate; label_check.reader=model does without)")


# ---- privacy


PRIVATE = {
    "privacy": {
        "target_epsilon": 4,
        "target_delta": 1e-5,
        "neighboring_relation": "add_or_remove_one",
        "num_rows": 12,
    }
}


def test_a_private_run_asks_the_target_where_it_says_anything() -> None:
    assert GenerateConfig.model_validate(PRIVATE).label_check.reader == "target"
    one, silent = {"writer": {"rounds": 1}}, {"space": {"maps": ("verbaliser",)}}
    assert GenerateConfig.model_validate(PRIVATE | one).label_check.reader == "target", "by hidden states"
    assert GenerateConfig.model_validate(PRIVATE | silent).label_check.reader == "target", "by words"
    assert GenerateConfig.model_validate(PRIVATE | one | silent).label_check.reader == "model"
    with pytest.raises(ValidationError, match="unigram_step"):
        GenerateConfig.model_validate(PRIVATE | {"writer": {"unigram_step": "x"}, **silent})
    assert (
        GenerateConfig.model_validate(PRIVATE | {"label_check": {"reader": "model"}}).label_check.reader == "model"
    )
    assert GenerateConfig.model_validate({}).label_check.reader == "rows"


def test_a_private_run_lets_nobody_learn_from_rows() -> None:
    with pytest.raises((ConfigError, ValidationError)) as caught:
        GenerateConfig.model_validate(PRIVATE | {"label_check": {"reader": "rows"}})
    assert (
        "label_check.reader is 'rows', which learns from real rows what class a text is of; leave it out with "
        "privacy, or take label_check.reader: target (what is released of the classes says it) or model"
    ) in str(caught.value)


# ---- who reads by the target


def target_of(lm: Any, task: BoundTask, settings: GenerateConfig, rows: list[list[str]] = TEXTS) -> ReleasedTarget:
    runner = BlockRunner(lm, task, settings)
    space = PublicText(runner).fit_space(rows)
    return compute_target(lm, task, [[own] for own in rows], space=space).centred()


def test_the_target_says_which_text_is_of_which_class(lm: Any) -> None:
    """What it says is `TargetReader`'s evidence; a text of another class goes there."""
    settings = search_config(label_check={"reader": "target"}, space={"maps": ("whitened",)})
    task = BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length)
    target = target_of(lm, task, settings)
    check = LabelCheck(BlockRunner(lm, task, settings)).by(target)
    reader = TargetReader(lm, task, target, reads_states=True)
    texts = [text for own in TEXTS for text in own]
    evidence_NC = reader.evidence(task.texts_ids(texts))
    says, scores_NC = dict(zip(texts, evidence_NC.argmax(1).tolist(), strict=True)), evidence_NC.softmax(1).float()
    found = check.checked(pools(*TEXTS[::-1]))
    assert sum(own.relabelled_in for own in found) > 4
    for label, own in enumerate(found):
        assert {says[candidate.text] for candidate in own.pool} == {label}
        own_N = torch.stack([scores_NC[texts.index(candidate.text), label] for candidate in own.pool])
        torch.testing.assert_close(own.score_N, own_N)
    assert all(check.carries(says[text], text) and not check.carries(1 - says[text], text) for text in texts)


def test_who_reads_by_the_target_has_to_be_given_one(lm: Any) -> None:
    settings = search_config(label_check={"reader": "target"}, space={"maps": ("whitened",)})
    task = BoundTask(get_task("sst2"), lm.tokenizer, lm.max_length)
    check = LabelCheck(BlockRunner(lm, task, settings))
    with pytest.raises(AssertionError, match="by which target"):
        check.checked(pools(*TEXTS))
    target = target_of(lm, task, settings)
    assert check.by(target) is check.by(target), "reads it once"
    assert check.by(target) is not check.by(target_of(lm, task, settings, TEXTS[::-1]))
    other = LabelCheck(BlockRunner(lm, task, search_config(label_check={"reader": "model"})))
    assert other.by(target) is other, "who does not read it"


SILENT = {"label_check": {"reader": "target"}, "writer": {"rounds": 1}}


@pytest.mark.parametrize("space", [{"maps": ()}, {"centred": False}, {"maps": ("sketch",)}])
def test_a_target_that_says_nothing_of_the_classes_is_refused(space: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        GenerateConfig.model_validate(SILENT | {"space": space})
    assert (
        "label_check.reader is 'target', and this target says nothing by which a text's class could be read: that "
        "takes words (writer.unigram_step above 0, writer.rounds of 2 or more) or a centred space with 'whitened' "
        "in space.maps; else take label_check.reader: model"
    ) in str(caught.value)
    GenerateConfig.model_validate(SILENT | {"space": space, "writer": {"rounds": 2}})
    GenerateConfig.model_validate(SILENT | {"space": space, "solver": "admm"})
