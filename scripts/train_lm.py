"""Trains a small causal language model and its tokenizer, from scratch or from a model, on any text.

The package ships `reviews6m` as a demo; this is how to make one's own instead of trusting that binary. The
defaults have its architecture, its kind of tokenizer and its 26 million tokens:

    python scripts/train_lm.py imdb_reviews.jsonl.xz general.jsonl.xz --forms sentiment --output my-reviews6m

With `--model` it goes on from a model that this script made, or the packaged one, on text of another domain:

    python scripts/train_lm.py news.jsonl --model src/gradmm/assets/reviews6m --learning-rate 5e-4 --output news6m

The output folder loads with `AutoModelForCausalLM` and `AutoTokenizer`; `training.json` in it says from what
and how it was made. While a run lasts, `work/` in it holds the tokens and one checkpoint. The same command
with `--resume` goes on from there and, with a `--tokens` budget, ends with the same bytes as a run that never
stopped (on one CPU with one number of threads; a `--minutes` schedule follows the clock, GPU kernels vary).

Order of events: `prepare` (text -> tokenizer -> token files), `train` (steps, checkpoints), `export`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from train_lm_data import (
    PAD_ID,
    SEPARATOR_ID,
    SMALLEST_VOCABULARY,
    Corpus,
    InputError,
    Windows,
    as_transformers,
    plain_suffix,
    train_tokenizer,
    write_tokens,
)
from train_lm_loop import Cadence, Progress, Recipe, Trainer

DEFAULT_TOKENS = 26_000_000
CHECKPOINT = "checkpoint.safetensors"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# What may differ between a run and its continuation: it changes neither the weights nor their export.
FREE_ON_RESUME = {"output", "resume", "device", "stop_after", "keep_work"}
FREE_ON_RESUME |= {"log_every", "eval_every", "save_every"}
# What a model that is given decides itself.
SHAPE = ("hidden_size", "layers", "heads", "intermediate_size", "vocab_size", "context")


def log(line: str) -> None:
    """Progress goes to stderr; stdout stays empty."""
    print(line, file=sys.stderr, flush=True)


def whole(text: str) -> int:
    """An integer of at least 1; `26_000_000` and `26e6` are fine."""
    number = float(text)
    if not 1 <= number < 2**53 or number != int(number):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(number)


def seed(text: str) -> int:
    """An integer of at least 0."""
    if not 0 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text}")
    return int(text)


def positive(text: str) -> float:
    """A number above 0."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


def share(text: str) -> float:
    """A number above 0 and below 1."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1, got {text}")
    return float(text)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, help=".txt (blank lines part documents) or .jsonl; also .gz .xz .zst")
    add("--output", type=Path, required=True, help="folder for the model")
    add("--model", type=Path, help="folder of a model to go on from: its weights, shape and tokenizer")
    add("--text-column", default="text", help="of .jsonl rows")
    add("--label-column", default="label", help="of .jsonl rows; 0 is negative, 1 positive, null unlabelled")
    add("--forms", choices=("none", "sentiment"), default="none", help="add prompts of labelled rows")
    add("--validation", type=share, default=0.01, help="share of the rows that is held out")
    add("--hidden-size", type=whole, default=256, help="width of the model")
    add("--layers", type=whole, default=6, help="transformer blocks")
    add("--heads", type=whole, default=4, help="attention heads; they share the width")
    add("--intermediate-size", type=whole, default=640, help="width inside the feed-forward layers")
    add("--vocab-size", type=whole, default=8192, help="tokens, with 256 bytes and two special ones")
    add("--context", type=whole, default=1024, help="longest text the model is declared for, in tokens")
    shorter = "shorter is faster on a CPU and leaves later positions untrained"
    add("--window", type=whole, help=f"tokens in a training window (None: --context); {shorter}")
    add("--tokens", type=whole, help=f"training budget (None: {DEFAULT_TOKENS}, or unlimited with --minutes)")
    add("--minutes", type=positive, help="time limit for training, without preparation")
    add("--batch-size", type=whole, default=8, help="windows in one pass")
    add("--accumulate", type=whole, default=1, help="passes per optimizer step")
    add("--learning-rate", type=positive, default=2e-3, help="peak")
    add("--warmup-ratio", type=share, default=0.03, help="share of the run spent in warm-up")
    add("--seed", type=seed, default=0, help="of initial weights, order of the data and prompt forms")
    add("--device", default="auto", help="cpu, cuda, ...; auto takes CUDA where there is one")
    add("--autocast", choices=("auto", "bfloat16", "off"), default="auto", help="auto: if hardware has it")
    add("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the saved weights")
    add("--log-every", type=whole, default=20, help="steps")
    add("--eval-every", type=whole, default=250, help="steps")
    add("--eval-tokens", type=whole, default=65_536, help="held-out tokens used in an evaluation")
    add("--save-every", type=whole, default=50, help="steps between checkpoints")
    add("--stop-after", type=whole, help="stop at this step, to be continued with --resume")
    add("--resume", action="store_true", help="continue the run in --output; give the other arguments again")
    add("--keep-work", action="store_true", help="keep tokens and checkpoint after the run")
    return parser


def settle(args: argparse.Namespace) -> argparse.Namespace:
    """Resolves what `auto` and None stand for. Raises InputError for values that do not fit together."""
    for path in args.inputs:
        plain_suffix(path)
    if args.model:
        take_shape(args)
    if args.vocab_size < SMALLEST_VOCABULARY:
        smallest = f"{SMALLEST_VOCABULARY} (256 bytes, 2 special tokens)"
        raise InputError(f"--vocab-size must be at least {smallest}, got {args.vocab_size}; raise it")
    unit = 2 * args.heads  # rotary embeddings turn pairs of dimensions
    if args.hidden_size % unit:
        raise InputError(
            f"--hidden-size must be a multiple of twice --heads ({args.heads}), got {args.hidden_size}; "
            f"give {unit * math.ceil(args.hidden_size / unit)}"
        )
    args.window = args.window or args.context
    if args.window > args.context:
        raise InputError(f"--window must be at most --context {args.context}, got {args.window}; shorten it")
    if args.tokens is None and args.minutes is None:
        args.tokens = DEFAULT_TOKENS
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {args.device} cannot be used ({reason}); give cpu or auto") from None
    if args.autocast == "auto":
        args.autocast = "bfloat16" if computes_bfloat16(torch.device(args.device)) else "off"
    return args


def take_shape(args: argparse.Namespace) -> None:
    """Sets the shape to that of `--model`. Raises InputError for a shape beside it, or a model of another kind."""
    parser = make_parser()
    for name in SHAPE:
        if getattr(args, name) != parser.get_default(name):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag}: --model {args.model} decides it, got {getattr(args, name)}; drop {flag}")
    config = read_config(args.model)
    ids = (config.get("model_type"), config.get("eos_token_id"), config.get("pad_token_id"))
    if ids != ("qwen3", SEPARATOR_ID, PAD_ID):
        raise InputError(
            f"--model {args.model}: must be a qwen3 whose separator and padding are tokens {SEPARATOR_ID} and "
            f"{PAD_ID}, as this script makes them, got {ids[0]}, {ids[1]} and {ids[2]}; tune others with trl"
        )
    args.hidden_size, args.layers = config["hidden_size"], config["num_hidden_layers"]
    args.heads, args.intermediate_size = config["num_attention_heads"], config["intermediate_size"]
    args.vocab_size, args.context = config["vocab_size"], config["max_position_embeddings"]


def read_config(folder: Path) -> dict[str, Any]:
    """The model's `config.json`. Raises InputError where there is none, or no `tokenizer.json` beside it."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"--model {folder}: no {name} in it; give the folder of a saved model")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are a matter of hardware there, not of slow emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(bool(features.get(name)) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=2, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path)


def open_work(args: argparse.Namespace) -> Path:
    """Returns the folder of the unfinished run, new or to be resumed. Raises InputError where it cannot."""
    work: Path = args.output / "work"
    given = json.loads(json.dumps(vars(args), default=str))
    if args.resume:
        if not (work / "arguments.json").exists():
            raise InputError(f"{args.output}: no run to resume there; drop --resume, or check --output")
        begun = json.loads((work / "arguments.json").read_text(encoding="utf-8"))
        for name in sorted(given.keys() - FREE_ON_RESUME):
            if given[name] != begun[name]:
                flag = name if name == "inputs" else "--" + name.replace("_", "-")
                raise InputError(
                    f"{flag}: the run in {args.output} began with {begun[name]!r}, got {given[name]!r}; "
                    "give the former, or begin a new run in another --output"
                )
        return work
    if args.output.exists() and any(args.output.iterdir()):
        raise InputError(f"{args.output}: not empty; give another --output, or --resume the run there")
    work.mkdir(parents=True)
    write_json(work / "arguments.json", given)
    return work


def prepare(args: argparse.Namespace, work: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """Trains the tokenizer and writes the token files, or finds both done.

    Returns:
        The tokenizer, and what is known of the text: counts per side, size and SHA-256 of every input.
    """
    done = work / "corpus.json"  # written last: where it exists, the other files are whole
    if done.exists():
        return Tokenizer.from_file(str(work / "tokenizer.json")), json.loads(done.read_text(encoding="utf-8"))
    corpus = Corpus(
        paths=tuple(args.inputs),
        text_column=args.text_column,
        label_column=args.label_column,
        forms=args.forms,
        validation=args.validation,
        seed=args.seed,
    )
    tokenizer = find_tokenizer(args, corpus)
    facts: dict[str, Any] = write_tokens(corpus, tokenizer, work)
    log("text: " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in facts.items()))
    facts["inputs"] = {str(path): fingerprint(path) for path in args.inputs}
    tokenizer.save(str(work / "tokenizer.json"))
    write_json(done, facts)
    return tokenizer, facts


def find_tokenizer(args: argparse.Namespace, corpus: Corpus) -> Tokenizer:
    """The tokenizer of `--model`, or a new one. Raises InputError where the text is too small for a new one."""
    if args.model:
        return Tokenizer.from_file(str(args.model / "tokenizer.json"))
    log(f"tokenizer: learning {args.vocab_size:,} tokens from {', '.join(path.name for path in args.inputs)}")
    texts = (text for text, held_out in corpus.documents() if not held_out)
    tokenizer = train_tokenizer(texts, args.vocab_size)
    if (size := tokenizer.get_vocab_size()) < args.vocab_size:
        raise InputError(
            f"--vocab-size: the text has only {size} different tokens in it, got {args.vocab_size}; "
            f"give --vocab-size {size}, or more text"
        )
    return tokenizer


def fingerprint(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file as it lies there, compressed or not."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def new_model(args: argparse.Namespace) -> Qwen3ForCausalLM:
    """The model to train, in float32: that of `--model`, or a Qwen3 with random weights."""
    model: Qwen3ForCausalLM
    if args.model:
        model = Qwen3ForCausalLM.from_pretrained(args.model, dtype=torch.float32, local_files_only=True)
    else:
        torch.manual_seed(args.seed)  # transformers draws initial weights from the global generator
        model = Qwen3ForCausalLM(new_config(args))
    torch.nn.Module.to(model, args.device)  # in place; the override in transformers has lost its types
    model.train()
    return model


def new_config(args: argparse.Namespace) -> Qwen3Config:
    """A Qwen3 of the packaged model's kind, in the shape that the arguments say."""
    return Qwen3Config(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        head_dim=args.hidden_size // args.heads,
        intermediate_size=args.intermediate_size,
        max_position_embeddings=args.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=SEPARATOR_ID,
        eos_token_id=SEPARATOR_ID,
        pad_token_id=PAD_ID,
    )


def train(args: argparse.Namespace, work: Path) -> tuple[Trainer, bool]:
    """Trains from the start or from the checkpoint; returns the trainer and whether the budget is spent."""
    recipe = Recipe(
        window=args.window,
        batch_size=args.batch_size,
        accumulate=args.accumulate,
        tokens=args.tokens,
        minutes=args.minutes,
        learning_rate=args.learning_rate,
        warmup_ratio=args.warmup_ratio,
        bfloat16=args.autocast == "bfloat16",
    )
    windows = Windows(work / "train.bin", args.vocab_size, args.window, args.seed)
    held_out = Windows(work / "validation.bin", args.vocab_size, args.window)
    trainer = Trainer(new_model(args), windows, held_out, recipe, log)
    log(f"model: {trainer.model.num_parameters():,} parameters on {args.device}, autocast {args.autocast}")
    checkpoint = work / CHECKPOINT
    if checkpoint.exists():
        trainer.load(checkpoint)
        log(f"resumed at step {trainer.progress.step:,}")
    cadence = Cadence(args.log_every, args.eval_every, args.save_every, args.eval_tokens, args.stop_after)
    return trainer, trainer.run(cadence, checkpoint)


def export(args: argparse.Namespace, trainer: Trainer, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    """Writes model, tokenizer and, last, `training.json`, which marks the run as finished."""
    trainer.model.train(False)
    torch.nn.Module.to(trainer.model, dtype=DTYPES[args.dtype])
    trainer.model.save_pretrained(args.output)
    as_transformers(tokenizer, args.context).save_pretrained(args.output)
    progress: Progress = trainer.progress
    report = {
        "arguments": vars(args),
        "corpus": facts,
        "parameters": trainer.model.num_parameters(),
        "steps": progress.step,
        "tokens": progress.step * trainer.recipe.tokens_per_step,
        "seconds": round(progress.seconds, 1),
        "validation_loss": progress.validation[-1]["loss"],
        "validation": progress.validation,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(args.output / "training.json", report)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done or stopped as told, 2 misuse, 130 interrupted."""
    args, work = make_parser().parse_args(argv), None
    try:
        args = settle(args)
        if args.resume and (args.output / "training.json").exists():
            log(f"{args.output}: already finished; nothing to do")
            return 0
        work = open_work(args)
        tokenizer, facts = prepare(args, work)
        trainer, finished = train(args, work)
        if not finished:
            log(f"stopped at step {trainer.progress.step:,}; continue with --resume")
            return 0
        export(args, trainer, tokenizer, facts)
        if not args.keep_work:
            shutil.rmtree(work)
        log(f"done: {args.output}")
        return 0
    except InputError as error:
        log(f"error: {error}")
        if work and not (work / CHECKPOINT).exists():  # nothing was learnt that a repaired command could use
            shutil.rmtree(work)
            work.parent.rmdir()
        return 2
    except KeyboardInterrupt:
        log(f"interrupted; continue from the last checkpoint in {args.output} with --resume")
        return 130


if __name__ == "__main__":
    sys.exit(main())
