"""`gradmm.data.task`: one rendering, token for token what a user's own tokenizer makes of the whole string."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import gradmm
from gradmm.data.presets import PRESETS, get_task
from gradmm.data.task import BoundTask, Task, continuation_ids
from gradmm.errors import TaskError

DEMO = Path(gradmm.__file__).parent / "assets" / "demo"
ROWS = [json.loads(line) for name in ("train", "test") for line in (DEMO / f"{name}.jsonl").open()]
TEMPLATES = ("{text} It was", "Review: {text}\nSentiment:", "A review:\n{text}\nIt was", "{text}")
PAIR = {"label_names": ("negative", "positive"), "verbalisers": (" bad", " great")}
KINDS_OF_PIECES = ("unigram", "metaspace", "llama2")


def task(**changes: Any) -> Task:
    return Task(**{**PAIR, **changes})


def pieces_tokenizer(kind: str) -> Any:
    """Of the SentencePiece sort, with a BOS token: spaces begin the words' tokens, the first word's too."""
    lines = [
        "The film is great . It was great",
        "A dull story is bad . It was bad",
        "Review : I feel sad , so\n it x",
    ]
    characters = [*sorted(set("".join(lines)) - {" "}), "▁"]
    if kind == "unigram":
        words = {f"▁{word}" for line in lines for word in line.split()} - {"▁x", "▁.", "▁,", "▁:"}
        scores = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0, **dict.fromkeys(sorted(words), -2.0)}
        tokenizer = Tokenizer(models.Unigram([*(scores | dict.fromkeys(characters, -6.0)).items()], unk_id=0))
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    if kind != "unigram":
        options = {"vocab_size": 110, "special_tokens": ["<unk>", "<s>", "</s>"], "show_progress": False}
        tokenizer.train_from_iterator(lines * 5, trainers.BpeTrainer(**options))
    if kind == "llama2":  # no pre-tokenizer: a normalizer puts the space before the first word
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


# ---- rendering


@pytest.mark.parametrize("template", TEMPLATES)
def test_rendering_is_the_tokenized_string(demo_lm, template):
    bound = BoundTask(task(template=template), demo_lm.tokenizer, demo_lm.max_length)
    assert len(ROWS) == 480
    for row in ROWS:
        whole = bound.task.string(row["text"], row["label"])
        assert whole == template.replace("{text}", row["text"]) + PAIR["verbalisers"][row["label"]]
        assert bound.render(row["text"], row["label"]) == demo_lm.tokenizer(whole).input_ids


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", KINDS_OF_PIECES)
def test_rendering_is_the_tokenized_string_with_sentencepiece(kind, template):
    tokenizer = pieces_tokenizer(kind)
    bound = BoundTask(task(template=template), tokenizer, 256)
    assert bound.bos_ids == [1]
    for text in ("The film is great .", "x", "so sad , I feel it", "It was bad"):
        assert bound.render(text, 1) == tokenizer(bound.task.string(text, 1)).input_ids
        assert bound.decode(bound.text_ids(text)) == text


@pytest.mark.parametrize("template", TEMPLATES)
def test_rendering_is_the_tokenized_string_with_bos(tiny_lm, tiny_task, template):
    for kind, bos in (("gpt2", []), ("llama", [0])):
        lm = tiny_lm(kind)
        bound = tiny_task(lm, (" bad", " surprised"), template)
        assert bound.bos_ids == bos and bound.prefix_ids[: len(bos)] == bos
        assert bound.instruction_ids == [
            bos + lm.tokenizer(f"Category: class {c}\nText:", add_special_tokens=False).input_ids for c in (0, 1)
        ]
        for text in ("The film is great.", "sad", "Happy? I feel fine!"):
            assert bound.render(text, 1) == lm.tokenizer(bound.task.string(text, 1)).input_ids


WORDS = st.lists(
    st.sampled_from(["The", "film", "isn't", "3D,", "(bad)", "great.", '"So"', "a-b", "é"]), min_size=1
)


@given(WORDS, st.sampled_from(TEMPLATES), st.sampled_from([0, 1]))
def test_texts_come_back(demo_lm, words, template, label):
    bound, text = BoundTask(task(template=template), demo_lm.tokenizer, 1024), " ".join(words)
    ids = bound.text_ids(text)
    assert bound.decode(ids) == text
    assert bound.render(text, label) == [*bound.prefix_ids, *ids, *bound.suffix_ids, *bound.label_ids[label]]


def test_a_text_that_holds_the_slot_is_only_a_text():
    assert task(template="{text} It was").string("Say {text}!", 1) == "Say {text}! It was great"


# ---- batches


@pytest.mark.parametrize(
    "verbalisers", [(" bad", " great"), (" bad", " wonderfully-made"), (" un-moving", " great")]
)
def test_batches_hold_what_is_rendered(demo_lm, verbalisers):
    """Matching (`collate`) and fine-tuning (`render`) take the same tokens."""
    bound = BoundTask(task(verbalisers=verbalisers), demo_lm.tokenizer, demo_lm.max_length)
    for start in range(0, len(ROWS), 60):
        rows = ROWS[start : start + 60]
        texts_ids, labels = [bound.text_ids(row["text"]) for row in rows], [row["label"] for row in rows]
        batch = bound.collate(texts_ids, labels)
        assert batch.ids_NS.dtype == batch.label_ids_NL.dtype == torch.long
        for n, row in enumerate(rows):
            rendered, count = bound.render(row["text"], labels[n]), len(bound.label_ids[labels[n]])
            assert batch.ids_NS[n, : len(rendered) - 1].tolist() == rendered[:-1]
            assert batch.label_mask_NL[n].tolist() == [1.0] * count + [0.0] * (
                batch.label_mask_NL.shape[1] - count
            )
            # A hidden state predicts the token after its position.
            assert [rendered[at + 1] for at in batch.predict_at_NL[n, :count]] == rendered[-count:]
            assert batch.label_ids_NL[n, :count].tolist() == rendered[-count:]
            assert batch.text_lengths_N[n] == len(texts_ids[n])
            inside = slice(batch.text_start, batch.text_start + len(texts_ids[n]))
            assert batch.ids_NS[n, inside].tolist() == texts_ids[n]
        assert batch.predict_at_NL.max() < batch.ids_NS.shape[1]


def test_only_the_text_s_embeddings_are_replaced(demo_lm):
    bound = BoundTask(task(template="Review: {text} It was"), demo_lm.tokenizer, demo_lm.max_length)
    table_VE = torch.randn(demo_lm.vocab_size, 3)
    batch = bound.collate([[300, 301], [302], [303, 304, 305]], [0, 1, 0])
    assert torch.equal(batch.embed(table_VE), table_VE[batch.ids_NS])
    text_NTE = torch.full((3, 3, 3), 7.0)
    expected_NSE = table_VE[batch.ids_NS].clone()
    for n, length in enumerate((2, 1, 3)):
        expected_NSE[n, len(bound.prefix_ids) : len(bound.prefix_ids) + length] = 7.0
    assert torch.equal(batch.embed(table_VE, text_NTE), expected_NSE)
    assert batch.embed(table_VE.half(), text_NTE).dtype == torch.float16


def test_a_batch_moves_as_a_whole(demo_task):
    batch = demo_task.collate([[300]], [1])
    moved = batch.to(torch.device("meta"))
    tensors = [field.name for field in dataclasses.fields(batch) if field.name != "text_start"]
    assert moved.text_start == batch.text_start
    assert {getattr(moved, name).device.type for name in tensors} == {"meta"}


@pytest.mark.parametrize("length", [0, 1022])
def test_a_text_without_room_is_refused(demo_task, length):
    assert demo_task.room == 1021  # 1024 less " It", " was" and " great"
    assert demo_task.collate([[300] * 1021], [0]).ids_NS.shape == (1, 1023)
    with pytest.raises(TaskError) as caught:
        demo_task.collate([[300], [300] * length], [0, 1])
    assert str(caught.value) == (
        f"text 1 has {length} tokens; with the template there is room for 1 to 1021 in the model's context of 1024"
    )


@pytest.mark.parametrize("verbalisers", [(" bad", " wonderfully-made"), (" wonderfully-made", " bad")])
def test_room_is_left_for_the_longest_verbaliser(demo_lm, verbalisers):
    bound = BoundTask(task(verbalisers=verbalisers), demo_lm.tokenizer, 40)
    lengths = [len(bound.render("", label)) for label in (0, 1)]
    assert min(lengths) < max(lengths) == 40 - bound.room


# ---- tokens in their place


@pytest.mark.parametrize("kind", KINDS_OF_PIECES)
def test_continuations_have_the_space_of_their_place(kind):
    tokenizer = pieces_tokenizer(kind)
    plain = tokenizer("great", add_special_tokens=False).input_ids
    for before in ("The film", "x", "It was", "Review :"):
        assert continuation_ids(tokenizer, before, " great") == plain  # the first word has its space by itself
        glued = continuation_ids(tokenizer, before, "great")
        assert glued != plain and tokenizer.decode([*tokenizer("x").input_ids, *glued]).endswith("xgreat")
    assert continuation_ids(tokenizer, "x", "") == []


def test_the_first_word_is_another_token_where_it_has_no_space(demo_lm, tiny_lm):
    bare = {
        "{text} It was": True,
        "Review: {text} It was": False,
        " {text} It was": False,
        "A:\n{text} It was": True,
    }
    for template, expected in bare.items():
        assert BoundTask(task(template=template), demo_lm.tokenizer, 1024).starts_bare is expected
    assert not BoundTask(task(), pieces_tokenizer("metaspace"), 1024).starts_bare


def test_a_boundary_inside_a_token_is_refused():
    vocabulary = {token: i for i, token in enumerate(["a", "x", ".", "\n", "b", "ab", "xb", ".b", "\nb"])}
    merges = [(first, "b") for first in ("a", "x", ".", "\n")]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=merges)))
    assert continuation_ids(tokenizer, "b", "b") == [vocabulary["b"]]
    with pytest.raises(TaskError) as caught:
        continuation_ids(tokenizer, "a", "b")
    assert str(caught.value) == "'b' melts into the token before it; begin it with a space or a line break"


# ---- ready-made tasks


@pytest.mark.parametrize("name", PRESETS)
def test_ready_made_tasks_fit_the_packaged_model(demo_lm, name):
    preset = get_task(name)
    bound = BoundTask(preset, demo_lm.tokenizer, demo_lm.max_length)
    classes = {"emotion": 6, "ag_news": 4, "trec": 6}.get(name, 2)
    assert len(preset.label_names) == len({ids[0] for ids in bound.label_ids}) == classes
    assert len({tuple(ids) for ids in bound.instruction_ids}) == classes
    for label, ids in enumerate(bound.label_ids):
        assert demo_lm.tokenizer.decode(ids) == preset.verbalisers[label]
        assert bound.instruction_ids[label] == demo_lm.tokenizer(preset.instruction(label)).input_ids


def test_a_ready_made_task_by_name():
    own = task()
    assert get_task(own) is own and get_task("emotion2").label_names == ("sadness", "joy")
    with pytest.raises(TaskError) as caught:
        get_task("sst3")
    assert (
        str(caught.value) == "no ready-made task 'sst3' (or give template and verbalisers); did you mean 'sst2'?"
    )


# ---- what cannot be a task

ONE_SLOT = "must hold {text} exactly once, as in '{text} It was'"
FAULTS = [
    ({"template": "It was"}, f"template 'It was' {ONE_SLOT}"),
    ({"template": "{text} or {text}"}, f"template '{{text}} or {{text}}' {ONE_SLOT}"),
    ({"label_names": ("one",), "verbalisers": (" a",)}, "a task needs two classes or more, not ['one']"),
    ({"label_names": ("a", "a")}, "label names ['a', 'a'] repeat; give every class its own"),
    ({"verbalisers": (" bad",)}, "1 verbalisers for 2 classes; give one per class"),
    ({"verbalisers": (" a", " b", " c")}, "3 verbalisers for 2 classes; give one per class"),
    ({"verbalisers": ()}, "0 verbalisers for 2 classes; give one per class"),
    ({"verbalisers": (" bad", " ")}, "verbalisers [' bad', ' '] hold an empty one; every class needs words"),
    ({"instructions": ("Write:",)}, "1 instructions for 2 classes; give one per class"),
    ({"instructions": ("A:", "")}, "instructions ['A:', ''] hold an empty one; every class needs words"),
    ({"templat": "{text}"}, "templat: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
def test_what_is_no_task_is_refused(changes, message):
    with pytest.raises(TaskError) as caught:
        task(**changes)
    assert str(caught.value) == message


def test_instructions_follow_the_classes():
    assert task().instruction(1) == "Category: positive\nText:"
    assert task(instructions=("A bad one:", "A good one:")).instruction(0) == "A bad one:"


@pytest.mark.parametrize("verbalisers", [(" good", " good indeed"), (" good indeed", " good"), (" good", " good")])
def test_a_verbaliser_that_begins_with_all_of_another_s_is_refused(demo_lm, verbalisers):
    longer = max(verbalisers, key=len)
    with pytest.raises(TaskError) as caught:
        BoundTask(task(verbalisers=verbalisers), demo_lm.tokenizer, 1024)
    assert str(caught.value) == (
        f"verbaliser {longer!r} begins with all tokens (\u0120good) of ' good', so the model cannot tell the "
        "classes apart there; choose other words"
    )


def test_verbalisers_may_share_their_first_tokens(demo_lm):
    """As those of many classes do: card_arrival, card_linking, ..."""
    names = tuple(f"card {word} {number:03d}" for word in ("good", "bad", "great") for number in range(300))
    bound = BoundTask(
        Task(label_names=names, verbalisers=tuple(f" {name}" for name in names)), demo_lm.tokenizer, 1024
    )
    assert len({ids[0] for ids in bound.label_ids}) == 1
    assert len(set(map(tuple, bound.label_ids))) == 900


def test_a_verbaliser_without_tokens_is_refused():
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(" {}xabdgretIwstW")}, merges=[]))
    with pytest.raises(TaskError) as caught:
        BoundTask(task(verbalisers=(" bad", "42")), PreTrainedTokenizerFast(tokenizer_object=raw), 64)
    assert str(caught.value) == "verbaliser '42' has no tokens; write it as it follows the template"


def test_a_template_that_fills_the_context_is_refused(demo_lm):
    assert BoundTask(task(), demo_lm.tokenizer, 4).room == 1
    with pytest.raises(TaskError) as caught:
        BoundTask(task(), demo_lm.tokenizer, 3)
    assert str(caught.value) == (
        "template '{text} It was' and verbalisers take 3 of the model's 3 tokens and leave none for the text; "
        "shorten them"
    )
