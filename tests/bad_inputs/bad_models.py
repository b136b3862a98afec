"""Models that cannot be loaded or used, what does not fit a model, and run folders that cannot be taken."""

# fmt: off
# ruff: noqa: E501  (a row stands on one line)

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import transformers

from bad_table import CSV, TINY, Bad
from command_line import run
from tiny_models import make_model, make_tokenizer

SHORT = "-q -n 1 -s solver=admm -s admm.n_outer=1 -s admm.n_inner=1 -s initial.candidates=1 -s lengths.distribution=uniform -s lengths.min_tokens=4 -s lengths.max_tokens=9 -s references=false"
T = f"generate -d rows.csv -t sst2 -m {TINY} {SHORT}"


@cache
def _tiny_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        make_model("gpt2").save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_tiny(folder: Path, without: str = "", **changes: bytes) -> None:
    """Write a tiny model, without the files whose names begin so, and with other content in some."""
    folder.mkdir(exist_ok=True)
    for name, content in _tiny_files().items():
        if not without or not name.startswith(without):
            (folder / name).write_bytes(changes.get(name.split(".")[0], content))


def settings(**changes: Any) -> bytes:
    """Make the tiny model's config.json with other settings."""
    return json.dumps(json.loads(_tiny_files()["config.json"]) | changes).encode()


def model(
    name: str, told: str | re.Pattern[str], make: Callable[[Path], object] | None = None, args: str = ""
) -> Bad:
    files: dict[str, Any] = {"rows.csv": CSV, **({"tiny": make} if make else {})}
    return Bad(name, f"generate -d rows.csv -t sst2 -m {'./tiny' if make else TINY} {args}", told, files)


def _pickled(path: Path) -> None:
    write_tiny(path, without="model.")
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02")


def _adapter(path: Path) -> None:
    path.mkdir()
    (path / "adapter_config.json").write_text("{}")


def _masked(path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=120, max_position_embeddings=64, **sizes)
    transformers.BertForMaskedLM(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)


def _encoder_decoder(path: Path) -> None:
    config = transformers.T5Config(vocab_size=120, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)


def _other_tokenizer(path: Path) -> None:
    write_tiny(path)
    make_tokenizer(tokens=200, sentences=tuple(f"word{n} thing{n}" for n in range(99))).save_pretrained(path)


def _more_tokens(path: Path) -> None:
    write_tiny(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens([f"<extra {n}>" for n in range(20)])
    tokenizer.save_pretrained(path)


def _not_finite(path: Path) -> None:
    made = make_model("gpt2")
    made.get_input_embeddings().weight.data[3, 4] = float("nan")
    made.save_pretrained(path)
    make_tokenizer().save_pretrained(path)


def _cut_weights(path: Path) -> None:
    write_tiny(path, model=_tiny_files()["model.safetensors"][:-1000])


LOADING: list[Bad] = [
    model("no such model folder", "no model folder at './nope'; give a folder with config.json, a Hub id, or 'demo'", args="-m ./nope"),
    model("no such model folder, nothing at its start", re.compile(r"(?s)cannot .*'nope/model': .* Hub .*"), args="-m nope/model"),
    model("no such user's model", re.compile(r"no model folder at '~nobody-here/model'; give a folder .*"), args="-m ~nobody-here/model"),
    model("model is a file", "no model folder at './tiny'; give a folder with config.json, a Hub id, or 'demo'", lambda path: path.write_bytes(b"x")),
    model("model has no name", "'.' has no config.json; give a folder that save_pretrained wrote, or a Hub id", args="-m ''"),
    model("model on the Hub while offline", re.compile(r"(?s)cannot .*'gtp2': .*HF_HUB_OFFLINE=1.*"), args="-m gtp2"),
    model("model folder is empty", "'tiny' has no config.json; give a folder that save_pretrained wrote, or a Hub id", lambda path: path.mkdir()),
    model("model folder is an adapter's", "'tiny' has no config.json but an adapter; merge the adapter into its model and save that", _adapter),
    model("config.json is no JSON", "'tiny/config.json' is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); copy the model again", lambda path: write_tiny(path, config=b"{")),
    model("config.json is a list", "'tiny/config.json' holds no settings (a JSON object is needed); copy the model again", lambda path: write_tiny(path, config=b"[]")),
    model("config.json is not UTF-8", "'tiny/config.json' is no JSON: 'utf-8' codec can't decode byte 0xff in position 7: invalid start byte; copy the model again", lambda path: write_tiny(path, config=b'{"a": "\xff"}')),
    model("config.json has no model_type", re.compile(r"(?s)cannot .*'tiny': .*model_type.*install a newer transformers.*"), lambda path: write_tiny(path, config=b"{}")),
    model("model_type is unknown", re.compile(r"(?s)cannot .*'tiny': .*gpt99.*install a newer transformers.*"), lambda path: write_tiny(path, config=settings(model_type="gpt99"))),
    model("weights of other shapes", re.compile(r"(?s)cannot load 'tiny' .*other shapes than config.json says; give the config.json .*"), lambda path: write_tiny(path, config=settings(n_embd=64))),
    model("weights of another depth", re.compile(r"'tiny' has no weights for transformer\.h\.2\..*; give a checkpoint of a whole causal LM"), lambda path: write_tiny(path, config=settings(n_layer=3))),
    model("no weights", "'tiny' has no weights (model.safetensors or model.safetensors.index.json); copy the whole model", lambda path: write_tiny(path, without="model.")),
    model("weights as pickle", "'tiny' has weights as pickle only (pytorch_model.bin), which can run code and is never opened here; where you trust it, convert it once: AutoModelForCausalLM.from_pretrained('tiny').save_pretrained('tiny')", _pickled),
    model("weights are cut", re.compile(r"(?s)cannot load 'tiny' .*incomplete.*damaged or cut short; copy or download them again\.?"), _cut_weights),
    model("weights are empty", re.compile(r"(?s)cannot load 'tiny' .*too small.*damaged or cut short; copy or download them again\.?"), lambda path: write_tiny(path, model=b"")),
    model("weights are not finite", "'./tiny' (GPT2LMHeadModel) has NaN or infinity in its weight transformer.wte.weight, in float32; give an intact checkpoint", _not_finite),
    model("no tokenizer", re.compile(r"'(?:\./)?tiny' has no tokenizer; copy the whole model, tokenizer\.json included"), lambda path: write_tiny(path, without="tokenizer")),
    model("tokenizer is no JSON", re.compile(r"(?s)cannot load the tokenizer of 'tiny': .*Give a folder .*tokenizer\.json.*"), lambda path: write_tiny(path, tokenizer=b"{")),
    model("tokenizer of another model", "'./tiny' (GPT2LMHeadModel) has 120 rows in its embedding table and its tokenizer has 170 tokens; give the tokenizer that it was trained with, or call model.resize_token_embeddings(170)", _other_tokenizer),
    model("tokenizer with tokens of its own", "'./tiny' (GPT2LMHeadModel) has 120 rows in its embedding table and its tokenizer has 132 tokens; give the tokenizer that it was trained with, or call model.resize_token_embeddings(132)", _more_tokens),
    model("masked language model", re.compile(r"(?s).*tiny'.*masked LM.*use a .*decoder-only.*"), _masked),
    model("encoder and decoder", re.compile(r"(?s).*tiny'.*T5.*use a decoder-only model.*"), _encoder_decoder),
    model("device is unknown", "device 'gpu' is unknown to torch; try 'auto', 'cpu' or 'cuda'", args="--device gpu"),
    model("device is not there", re.compile(r"device 'cuda:99' cannot be used here: .*; try 'auto' or 'cpu'"), args="--device cuda:99"),
    model("device is empty", "device '' is unknown to torch; try 'auto', 'cpu' or 'cuda'", args="--device ''"),
    model("attention is unknown", re.compile(r"(?s).*attn_implementation='fast' cannot be used here; leave it out, or give .*"), args="--attn-implementation fast"),
    Bad("doctor: no such model", "doctor -d rows.csv -m ./nope", "no model folder at './nope'; give a folder with config.json, a Hub id, or 'demo'", {"rows.csv": CSV}, finding="model"),
    Bad("doctor: verbalisers alike", f"doctor -d rows.csv -m {TINY} --verbaliser '0= great' --verbaliser '1= great'", "verbaliser ' great' begins with all tokens (Ġgreat) of ' great', so the model cannot tell the classes apart there; choose other words", {"rows.csv": CSV}, finding="task"),
]

LONG = b"text,label\na film,0\n" + b"a great film " * 40 + b",1\n"
FITS: list[Bad] = [
    Bad("a row longer than the context", T, "rows.csv, row 1 (counted from 0): text has 161 tokens, but the model's context of 128 leaves room for 125: 'a great film a great film a great film a great film a great '...; shorten or drop such rows, or take a model with a longer context", {"rows.csv": LONG}),
    Bad("doctor: a row longer than the context", f"doctor -d rows.csv -t sst2 -m {TINY}", "rows.csv, row 1 (counted from 0): text has 161 tokens, but the model's context of 128 leaves room for 125: 'a great film a great film a great film a great film a great '...; shorten or drop such rows, or take a model with a longer context", {"rows.csv": LONG}, finding="lengths"),
]


@cache
def _run_files() -> dict[str, bytes]:
    """Make the run of the command line `T`, whole."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.csv").write_bytes(CSV)
        write_tiny(folder / "tiny")
        command = T.replace(TINY, str(folder / "tiny")).replace("rows.csv", str(folder / "rows.csv"))
        assert run(*shlex.split(command), "-o", str(folder / "run")).code == 0
        files = [path for path in (folder / "run").rglob("*") if path.is_file()]
        return {str(path.relative_to(folder / "run")): path.read_bytes() for path in files}


def finished(spoil: Callable[[Path], object] = lambda path: None) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        for name, content in _run_files().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        spoil(path)

    return make


def folder(name: str, args: str, told: str | re.Pattern[str], run: Any = None) -> Bad:
    return Bad(name, f"{T} {args}", told, {"rows.csv": CSV, **({"run": run} if run else {})})


FOLDERS: list[Bad] = [
    folder("run folder is a file", "-o rows.csv", "rows.csv is a file; give a folder for the run"),
    folder("run folder is under a file", "-o rows.csv/run", "the run folder rows.csv/run cannot be made: it is not there any more or never was ([Errno 20] Not a directory: 'rows.csv/run/state'); put it back or give another folder"),
    folder("run folder holds other files", "-o .", ". holds files that are not a run's; give an empty or a new folder"),
    folder("run folder holds a folder of another kind", "-o run", "run holds files that are not a run's; give an empty or a new folder", lambda path: (path / "state").mkdir(parents=True) or (path / "state/x").touch()),
    folder("run folder is a link to nothing", "-o run", "the run folder run cannot be made: it is not there any more or never was ([Errno 17] File exists: 'run'); put it back or give another folder", lambda path: path.symlink_to("gone")),
    folder("run folder has a name that is too long", f"-o {'x' * 300}", "the run folder xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx cannot be read: it is not there any more or never was ([Errno 36] File name too long: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'); put it back or give another folder"),
    folder("no run to resume", "-o run --resume always", "run holds no run and resume is 'always'; give the folder of one, or resume 'if_possible'"),
    folder("a run that is not to be resumed", "-o run --resume never", "run holds a run already and resume is 'never'; give a new folder, or resume it", finished()),
    folder("a run with another seed", "-o run --seed 5", "run holds a run with other settings:\n  settings.seed: 0 -> 5\ncontinue it with the old ones, or give another folder", finished()),
    folder("a run with other settings", "-o run --seed 5 -s admm.rho=3", "run holds a run with other settings:\n  settings.admm.rho: 0.01 -> 3.0\n  settings.seed: 0 -> 5\ncontinue it with the old ones, or give another folder", finished()),
    folder("run of which the fingerprint is cut", "-o run", "run/fingerprint.json is damaged; restore it, or give another folder", finished(lambda path: (path / "fingerprint.json").write_text("{"))),
    folder("run of which a file is missing", "-o run", re.compile(r"run/metrics\.json is missing \(SHA256SUMS has [0-9a-f]{12}\.\.\.\); restore it, or run anew in another folder"), finished(lambda path: (path / "metrics.json").unlink())),
    folder("run of which a file was changed", "-o run", re.compile(r"run/data/synthetic\.jsonl is not as the run left it \(SHA256SUMS has [0-9a-f]{12}\.\.\.\); restore it, or run anew in another folder"), finished(lambda path: (path / "data/synthetic.jsonl").write_text("x"))),
    folder("run of which the checksums are damaged", "-o run", "run/SHA256SUMS is damaged (line 1 is 'x'); restore it, or run anew in another folder", finished(lambda path: (path / "SHA256SUMS").write_text("x\n"))),
    folder("run of which the checksums are empty", "-o run", "run/SHA256SUMS is damaged (config.yaml is not in it); restore it, or run anew in another folder", finished(lambda path: (path / "SHA256SUMS").write_text(""))),
]

MODELS = LOADING + FITS + FOLDERS
