"""`scripts/train_lm.py`, run in this process on a text made up on the spot; no network, a few seconds."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import train_lm
import train_lm_data as data
import train_lm_loop as loop

SHIPPED = Path(__file__).parents[2] / "src/gradmm/assets/reviews6m"
STEPS, WINDOW, BATCH = 30, 64, 8
TINY = (
    "--hidden-size 32 --layers 2 --intermediate-size 64 --vocab-size 300 --context 64 --validation 0.1 "
    f"--forms sentiment --device cpu --learning-rate 1e-2 --tokens {STEPS * WINDOW * BATCH} "
    "--eval-every 10 --save-every 5 --log-every 10"
).split()


def sentence(rng: random.Random) -> str:
    """A line of a language with little in it to learn."""
    noun, verb = ("film", "plot", "cast", "music"), ("bores", "moves", "thrills", "amuses")
    return " ".join(f"the {rng.choice(noun)} {rng.choice(verb)} me." for _ in range(rng.randint(2, 6)))


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(1)
    rows = [{"text": sentence(rng), "label": rng.choice((0, 1, None))} for _ in range(400)]
    path = tmp_path_factory.mktemp("text") / "reviews.jsonl.xz"
    with lzma.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.fixture(scope="module")
def trained(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of an uninterrupted run."""
    output = tmp_path_factory.mktemp("run") / "model"
    assert train_lm.main([str(reviews), "--output", str(output), *TINY]) == 0
    return output


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_validation_loss_falls_and_is_recorded(trained: Path, reviews: Path) -> None:
    report = read(trained / "training.json")
    assert [point["step"] for point in report["validation"]] == [0, 10, 20, 30]
    start, end = report["validation"][0]["loss"], report["validation_loss"]
    assert start == pytest.approx(np.log(300), abs=0.2)  # an untrained model knows nothing
    assert end < 0.6 * start
    assert (report["steps"], report["tokens"]) == (STEPS, STEPS * WINDOW * BATCH)
    assert report["arguments"]["learning_rate"] == 1e-2
    assert report["corpus"]["inputs"][str(reviews)]["bytes"] == reviews.stat().st_size


def test_the_folder_loads_and_round_trips_text(trained: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    for text in ("the film moves me.", "  Ünïcode, 中文 \U0001f3ac\n\ttabs\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 0, 0)
    assert (tokenizer.pad_token_id, len(tokenizer), tokenizer.model_max_length) == (1, 300, 64)
    assert model.dtype == torch.bfloat16 and model.config.vocab_size == 300
    ids = tokenizer("the film moves me. the", return_tensors="pt")
    written = tokenizer.decode(model.generate(**ids, max_new_tokens=8, do_sample=False)[0])
    assert written.startswith("the film moves me. the ")
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "training.json",
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["stop-after", "crash"])
def test_a_resumed_run_ends_with_the_same_bytes(
    ending: str, trained: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped as told at step 13, or killed there: then the checkpoint of step 10 is what is left."""
    output = tmp_path / "model"
    command = [str(reviews), "--output", str(output), *TINY]
    if ending == "stop-after":
        assert train_lm.main([*command, "--stop-after", "13"]) == 0
    else:
        with monkeypatch.context() as patch:
            patch.setattr(loop.Trainer, "step", crash_at(13, loop.Trainer.step))
            assert train_lm.main(command) == 130
    assert not (output / "model.safetensors").exists()
    assert train_lm.main([*command, "--resume"]) == 0
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (output / name).read_bytes() == (trained / name).read_bytes(), name
    assert read(output / "training.json")["validation"] == read(trained / "training.json")["validation"]


def crash_at(step: int, original: Any) -> Any:
    def crashing(trainer: loop.Trainer) -> float:
        if trainer.progress.step == step:
            raise KeyboardInterrupt
        loss: float = original(trainer)
        return loss

    return crashing


LEARN = ["--validation", "0.1", "--device", "cpu", "--window", "32", "--eval-every", "10"]


def test_a_given_model_goes_on_from_its_weights_with_its_tokenizer(
    trained: Path, reviews: Path, tmp_path: Path
) -> None:
    """No step: the same weights. Some: another model of the same shape that knows the text better."""
    command = [str(reviews), "--model", str(trained), *LEARN]
    same, more = tmp_path / "same", tmp_path / "more"
    tiny = ["--tokens", "1", "--learning-rate", "1e-12"]
    assert train_lm.main([*command, "--output", str(same), *tiny]) == 0
    assert train_lm.main([*command, "--output", str(more), "--tokens", "10240"]) == 0
    before, untouched, after = (load_file(folder / "model.safetensors") for folder in (trained, same, more))
    for name, weight in before.items():
        assert torch.equal(untouched[name], weight), name
        assert after[name].shape == weight.shape and not torch.equal(after[name], weight), name
    for folder in (same, more):
        assert (folder / "tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
        assert read(folder / "training.json")["validation"][0]["loss"] < 0.6 * np.log(300)
        assert read(folder / "config.json") == read(trained / "config.json")
    losses = [point["loss"] for point in read(more / "training.json")["validation"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--layers 3", "--layers: --model {model} decides it, got 3; drop --layers"),
        ("--window 65", "--window must be at most --context 64, got 65; shorten it"),
    ],
)
def test_a_given_model_decides_the_shape(
    flags: str, message: str, trained: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(reviews), "--output", str(tmp_path / "model"), "--model", str(trained)]
    assert train_lm.main([*command, *flags.split()]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: " + message.format(model=trained)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "no config.json in it; give the folder of a saved model"),
        (
            {"model_type": "gpt2", "eos_token_id": 50256},
            (
                "must be a qwen3 whose separator and padding are tokens 0 and 1, as this script makes them, "
                "got gpt2, 50256 and None; tune others with trl"
            ),
        ),
    ],
)
def test_a_model_of_another_kind_is_named(
    config: dict[str, Any] | None,
    message: str,
    reviews: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "other"
    model.mkdir()
    if config:
        (model / "config.json").write_text(json.dumps(config))
        (model / "tokenizer.json").write_text("{}")
    assert train_lm.main([str(reviews), "--output", str(tmp_path / "model"), "--model", str(model)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: --model {model}: {message}"
    assert not (tmp_path / "model").exists()


def test_a_finished_run_resumes_to_nothing(trained: Path, reviews: Path) -> None:
    before = (trained / "model.safetensors").stat().st_mtime_ns
    assert train_lm.main([str(reviews), "--output", str(trained), *TINY, "--resume"]) == 0
    assert (trained / "model.safetensors").stat().st_mtime_ns == before


BAD_INPUT = {
    "missing.txt": (None, "no such file; check the path"),
    "table.csv": ("a,b\n", "not a known kind of file; give .txt or .jsonl, plain or .gz, .xz, .zst"),
    "broken.jsonl": (
        '{"text": "a"}\n{"text": \n',
        ":2: not JSON (Expecting value: line 1 column 10 (char 9)); every line must be one JSON object",
    ),
    "list.jsonl": ("[1]\n", ":1: not a JSON object ([1]); every line must be one JSON object"),
    "column.jsonl": ('{"review": "a"}\n', ":1: no column 'text' in ['review']; give --text-column"),
    "number.jsonl": ('{"text": 3}\n', ":1: 'text' must be text, got 3; give --text-column"),
    "label.jsonl": (
        '{"text": "a", "label": 2}\n',
        (
            ":1: --forms sentiment knows labels 0 (negative) and 1 (positive), got 2; "
            "relabel the row, give null for none, or drop --forms"
        ),
    ),
    "damaged.txt.gz": (
        "plain",
        "cannot be read as UTF-8 (Not a gzipped file (b'pl')); convert it, or fetch it again",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_with_its_place_and_leaves_no_trace(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BAD_INPUT[name]
    path, output = tmp_path / name, tmp_path / "model"
    if content is not None:
        path.write_text(content)
    assert train_lm.main([str(path), "--output", str(output), *TINY]) == 2
    captured = capsys.readouterr()
    gap = "" if message.startswith(":") else ": "
    assert captured.err.splitlines()[-1] == f"error: {path}{gap}{message}"
    assert captured.out == ""
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--vocab-size 99",
            "--vocab-size must be at least 258 (256 bytes, 2 special tokens), got 99; raise it",
        ),
        ("--hidden-size 36", "--hidden-size must be a multiple of twice --heads (4), got 36; give 40"),
        ("--window 65", "--window must be at most --context 64, got 65; shorten it"),
        ("--resume", "{output}: no run to resume there; drop --resume, or check --output"),
        (
            "--vocab-size 9999",
            (
                "--vocab-size: the text has only 333 different tokens in it, got 9999; "
                "give --vocab-size 333, or more text"
            ),
        ),
        (
            "--validation 1e-9",
            (
                "validation: 0 tokens are fewer than one window of 64; "
                "give more text, a smaller --window, or another --validation"
            ),
        ),
    ],
)
def test_bad_arguments_are_named(
    flags: str, message: str, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model"
    assert train_lm.main([str(reviews), "--output", str(output), *TINY, *flags.split()]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: " + message.format(output=output)
    assert not output.exists()


def test_a_diverged_run_says_so(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "cross_entropy", lambda logits, *_, **__: logits.sum() * float("nan"))
    assert train_lm.main([str(reviews), "--output", str(tmp_path / "model"), *TINY]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the training loss is nan at step 0; give a --learning-rate below 0.01, or --autocast off"
    )


def test_other_arguments_cannot_be_mixed_into_a_run(
    reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(reviews), "--output", str(tmp_path / "model"), *TINY, "--stop-after", "1"]
    assert train_lm.main(command) == 0
    assert train_lm.main([*command, "--resume", "--layers", "3"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: --layers: the run in {tmp_path / 'model'} began with 2, got 3; "
        "give the former, or begin a new run in another --output"
    )
    assert train_lm.main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {tmp_path / 'model'}: not empty; give another --output, or --resume the run there"
    )
    assert (tmp_path / "model/work/checkpoint.safetensors").exists()


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    texts = ["one\nand a second line", "two ü", "three"]
    plain = "\n\n" + "\n\n\n".join(texts) + "\n"
    rows = "".join(json.dumps({"text": f" {text}\n", "label": 1}) + "\n\n" for text in [*texts, " "])
    zstandard = pytest.importorskip("zstandard")
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
    for kind, content in ((".txt", plain), (".jsonl", rows)):
        for suffix, compress in pack.items():
            path = tmp_path / f"file{kind}{suffix}"
            path.write_bytes(compress(content.encode()))
            assert [text for text, _ in data.Corpus((path,)).documents()] == texts, path.name


def test_prompt_forms_of_labelled_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    labels = [0, 1, None, -1] * 100
    path.write_text("".join(json.dumps({"text": f"T{i}", "label": y}) + "\n" for i, y in enumerate(labels)))
    corpus = data.Corpus((path,), forms="sentiment", validation=0.3)
    documents = list(corpus.documents())
    assert documents == list(corpus.documents())  # every pass draws the same
    forms = [document for document in documents if not document[0].startswith("T") or " It was " in document[0]]
    assert len(documents) == 400 + 200 and len(forms) == 200
    sides = dict(documents)
    seen = set()
    for text, held_out in forms:
        number = int(text.split("T")[1].split()[0])
        good = labels[number] == 1
        word, verdict = ("positive", "great") if good else ("negative", "bad")
        allowed = [form.format(text=f"T{number}", word=word, verdict=verdict) for form in data.FORMS]
        assert text in allowed
        assert held_out == sides[f"T{number}"]  # or training would see what validation asks
        seen.add((allowed.index(text), good))
    assert len(seen) == 8


def test_a_text_cannot_end_its_own_document(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one<|endoftext|>two\n\nthree")
    corpus = data.Corpus((path,))
    tokenizer = data.train_tokenizer(iter(["abc"]), 258)
    counts = data.write_tokens(corpus, tokenizer, tmp_path)
    ids = np.fromfile(tmp_path / "train.bin", np.uint16)
    assert (ids == data.SEPARATOR_ID).sum() == counts["train_documents"] == 2
    assert counts["train_characters"] == len("one<|endoftext|>two") + len("three")
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=True) == "one<|endoftext|>twothree"


def test_windows_cover_every_token_once_per_epoch_in_an_order_of_its_own(tmp_path: Path) -> None:
    np.arange(101, dtype=np.uint16).tofile(tmp_path / "train.bin")
    windows = data.Windows(tmp_path / "train.bin", 300, length=10, seed=3)
    inputs, targets = windows.batch(0, 20)  # two epochs of ten windows
    assert torch.equal(targets, inputs + 1)
    first, second = inputs[:10].flatten().tolist(), inputs[10:].flatten().tolist()
    assert sorted(first) == sorted(second) == list(range(100)) and first != second
    again = data.Windows(tmp_path / "train.bin", 300, length=10, seed=3)
    assert torch.equal(again.batch(13, 4)[0], inputs[13:17])  # no state but the number of the window


def test_schedule_rises_from_zero_to_the_peak_and_falls() -> None:
    recipe = loop.Recipe(
        window=10, batch_size=2, accumulate=3, tokens=601, minutes=None, learning_rate=2.0, warmup_ratio=0.5,
        bfloat16=False,
    )  # fmt: skip
    assert recipe.tokens_per_step == 60 and recipe.fraction(10, 99.0) < 1 <= recipe.fraction(11, 0.0)
    rates = [recipe.learning_rate_at(fraction) for fraction in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0, 1, 2, 2 * 0.525, 2 * 0.05])


def test_accumulated_passes_are_one_large_batch(tmp_path: Path) -> None:
    np.random.default_rng(0).integers(0, 300, 999).astype(np.uint16).tofile(tmp_path / "train.bin")
    args = train_lm.make_parser().parse_args(["x.txt", "--output", "x", *TINY])
    weights = []
    for batch_size, accumulate in ((4, 1), (1, 4)):
        recipe = loop.Recipe(
            window=16, batch_size=batch_size, accumulate=accumulate, tokens=6400, minutes=None,
            learning_rate=1e-2, warmup_ratio=1e-9, bfloat16=False,
        )  # fmt: skip
        windows = data.Windows(tmp_path / "train.bin", 300, 16, seed=0)
        trainer = loop.Trainer(train_lm.new_model(args), windows, windows, recipe, print)
        for _ in range(3):
            trainer.step()
        weights.append(torch.cat([w.detach().flatten() for w in trainer.model.parameters()]))
    difference = (weights[0] - weights[1]).abs().max()
    assert difference < 1e-3 < weights[0].abs().max()


def test_defaults_are_those_of_the_model_that_ships() -> None:
    args = train_lm.make_parser().parse_args(["x.txt", "--output", "x", "--device", "cpu"])
    config = json.loads(train_lm.new_model(args).config.to_json_string(use_diff=False))
    shipped = read(SHIPPED / "config.json")
    for added_on_saving in ("architectures", "dtype", "transformers_version"):
        shipped.pop(added_on_saving)
    assert {name: config[name] for name in shipped} == shipped
    assert args.dtype == "bfloat16"


def test_the_tokenizer_is_of_the_kind_that_ships(trained: Path) -> None:
    mine, shipped = read(trained / "tokenizer.json"), read(SHIPPED / "tokenizer.json")
    for tokenizer in (mine, shipped):
        size, merges = len(tokenizer["model"].pop("vocab")), len(tokenizer["model"].pop("merges"))
        assert size == merges + 258
    assert mine == shipped
    configs = [read(folder / "tokenizer_config.json") for folder in (trained, SHIPPED)]
    for config in configs:
        config.pop("model_max_length")
        for how_it_was_loaded in ("is_local", "local_files_only"):
            config.pop(how_it_was_loaded, None)
    assert configs[0] == configs[1]
