"""`gradmm doctor`: checks settings, model, data and task against each other without running anything.

With `bench` it also measures how fast this machine is at what the run would compute, and so how long that takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gradmm.config import RunConfig
from gradmm.data.checks import check_fits, match_labels
from gradmm.data.sources import LabelledData, load_data
from gradmm.data.task import BoundTask
from gradmm.data.vocabulary import allowed_tokens
from gradmm.environment import describe_environment
from gradmm.errors import GradmmError
from gradmm.footprint import measure_peak
from gradmm.models import LanguageModel, load_model
from gradmm.privacy.words import plan_lines
from gradmm.private_run import look_ahead
from gradmm.throughput import Rate, matrix_peak, measure_rates
from gradmm.workload import Workload

_SAMPLE = 100  # rows whose rendering is compared with the tokenizer's
_LOOKED_AT = 1000  # of every class, for the longest


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "note", "fail"]
    name: str
    detail: str


def examine(config: RunConfig, bench: bool = False) -> Iterator[Finding]:
    """Looks at everything that a run needs; goes on as far as what was found allows.

    Args:
        config: of the run.
        bench: also measure this machine's speed.
    """
    model = _attempt(lambda: load_model(config.model))
    if isinstance(model, Finding):
        yield model
        yield from _about(lambda: load_data(None, config.data), "data", _describe_data)
        return
    yield _describe_machine(model)
    yield _describe_model(model)
    yield from _about(
        lambda: allowed_tokens(model.tokenizer, model.vocab_size, config.bans),
        "vocabulary",
        lambda mask: f"{int(mask.sum()):,} of {model.vocab_size:,} tokens may stand in a text",
    )
    data = _attempt(lambda: load_data(None, config.data), "data")
    if isinstance(data, Finding):
        yield data
        return
    yield Finding("ok", "data", _describe_data(data))
    yield from _examine_task(config, model, data, bench)


def _examine_task(config: RunConfig, model: LanguageModel, data: LabelledData, bench: bool) -> Iterator[Finding]:
    def bind() -> BoundTask:
        task = match_labels(config.resolve_task(data.label_names), data)
        return BoundTask(task, model.tokenizer, model.max_length)

    bound = _attempt(bind, "task")
    if isinstance(bound, Finding):
        yield bound
        return
    yield Finding("ok", "task", _describe_task(bound))
    fits = _about(
        lambda: check_fits(bound, data),
        "lengths",
        lambda longest: f"every row fits; there is room for {bound.room} tokens",
    )
    yield from fits if config.privacy is None else _examine_privacy(config, model, bound, data)
    yield _compare_rendering(bound, data)
    counts = _attempt(lambda: config.count_texts(bound.task.label_names, data.counts()), "work")
    if isinstance(counts, Finding):
        yield counts
        return
    flop = Workload(model, bound, config).flop(counts, len(data), _row_length(bound, data))
    yield Finding("ok", "work", _describe_work(counts, flop))
    if bench:
        yield from _measure(config, model, bound, flop)
        yield from _about(
            lambda: measure_peak(model, bound, config, counts, _longest(bound, data)), "memory", _describe_memory
        )


def _measure(
    config: RunConfig, model: LanguageModel, bound: BoundTask, flop: Mapping[str, float]
) -> Iterator[Finding]:
    """Speed of the machine in every kind of pass that the run makes, and so the time that it takes."""
    found = _attempt(lambda: list(measure_rates(model, bound, config)), "speed")
    if isinstance(found, Finding):
        yield found
        return
    yield Finding("ok", "speed", _describe_peak(model, found[0].peak))
    for rate in found:
        yield Finding("ok", "speed", _describe_rate(rate))
    seconds = sum(flop[rate.kind] / rate.per_second for rate in found)
    yield Finding("ok", "time", f"about {_rounded(seconds)} on this machine, if it has nothing else to do")


def _examine_privacy(
    config: RunConfig, model: LanguageModel, bound: BoundTask, data: LabelledData
) -> Iterator[Finding]:
    """The plan, before any of it is spent, and what its owner has to know of the data."""
    privacy = config.privacy
    assert privacy is not None, "not a private run"
    found = _attempt(lambda: look_ahead(model, bound, config, privacy), "privacy")
    if isinstance(found, Finding):
        yield found
        return
    for line in plan_lines(found):
        yield Finding("ok", "privacy", line)
    if found.advice:
        yield Finding("note", "privacy", f"{found.advice[0]} {'; or '.join(found.advice[1:])}")
    if privacy.rows not in (None, len(data)):
        told = f"{privacy.rows:,} rows are said to be public, and there are {len(data):,}"
        yield Finding("note", "privacy", f"{told}: the mean is divided by the former")
    yield Finding(
        "note",
        "lengths",
        f"a private run cuts rows of more than {bound.room} tokens, and says nothing of its rows; what doctor "
        "says of them is for their owner, and not private",
    )


def _attempt(make: Callable[[], Any], name: str = "model") -> Any:
    try:
        return make()
    except GradmmError as err:
        return Finding("fail", name, str(err))


def _about(make: Callable[[], Any], name: str, describe: Callable[[Any], str]) -> Iterator[Finding]:
    found = _attempt(make, name)
    yield found if isinstance(found, Finding) else Finding("ok", name, describe(found))


def _describe_machine(model: LanguageModel) -> Finding:
    facts = describe_environment(model.device)
    packages = facts["packages"]
    detail = (
        f"Python {facts['python']}, torch {packages['torch']}, transformers {packages['transformers']}, "
        f"{facts['device']} with {facts['threads']} threads"
    )
    return Finding("ok", "machine", detail)


def _describe_model(model: LanguageModel) -> Finding:
    count = sum(parameter.numel() for parameter in model.model.parameters())
    tied = model.head.weight_VD.data_ptr() == model.model.get_input_embeddings().weight.data_ptr()
    bias = "with" if model.head.bias_V is not None else "without"
    dtype = _name(model.dtype)
    detail = (
        f"{model.name}: {type(model.model).__name__}, {count:,} parameters, {dtype}, "
        f"head {tuple(model.head.weight_VD.shape)} {bias} bias, {'tied' if tied else 'untied'}, "
        f"context {model.max_length}"
    )
    return Finding("ok", "model", detail)


def _describe_data(data: LabelledData) -> str:
    counts = (f"{name} {count:,}" for name, count in zip(data.label_names, data.counts(), strict=True))
    columns = f"texts from {data.text_column!r}, labels from {data.label_column!r}"
    return f"{data.name}: {len(data):,} rows ({', '.join(counts)}), {columns}"


def _describe_task(bound: BoundTask) -> str:
    decode = bound.tokenizer.decode
    labels = (
        f"{name} = {'|'.join(decode([i]) for i in ids)!r}"
        for name, ids in zip(bound.task.label_names, bound.label_ids, strict=True)
    )
    return f"{bound.task.template!r}, label tokens {', '.join(labels)}"


def _compare_rendering(bound: BoundTask, data: LabelledData) -> Finding:
    """Whether tokenising the whole string, as other trainers do, gives the tokens that are matched."""
    differ = count = 0
    for label in range(data.num_classes):
        for text in next(data.iter_batches(label, _SAMPLE)):
            count += 1
            differ += bound.tokenizer(bound.task.string(text, label)).input_ids != bound.render(text, label)
    if not differ:
        return Finding("ok", "rendering", f"{count} rows tokenise to the same tokens whole and in segments")
    detail = (
        f"{differ} of {count} rows tokenise differently as one string; train on the tokens of BoundTask.render, "
        "or choose a template that begins after the text with a space"
    )
    return Finding("note", "rendering", detail)


def _row_length(bound: BoundTask, data: LabelledData) -> int:
    """Mean tokens of the first rows of every class."""
    lengths = [
        len(ids)
        for label in range(data.num_classes)
        for ids in bound.texts_ids(next(data.iter_batches(label, _SAMPLE)))
    ]
    return min(bound.room, -(-sum(lengths) // len(lengths)))


def _longest(bound: BoundTask, data: LabelledData) -> int:
    """Tokens of the longest of the first rows of every class."""
    firsts = (next(data.iter_batches(label, _LOOKED_AT)) for label in range(data.num_classes))
    return min(bound.room, max(len(ids) for texts in firsts for ids in bound.texts_ids(texts)))


def _describe_memory(peak: int | None) -> str:
    return f"about {peak / 2**30:.2g} GiB at its fullest" if peak else "this system does not tell how much is used"


def _describe_work(counts: Sequence[int], flop: Mapping[str, float]) -> str:
    total = sum(flop.values())
    each = f"{counts[0]} of every class" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)} of a class"
    parts = ", ".join(f"{kind} {own / total:.0%}" for kind, own in flop.items() if own)
    return f"{sum(counts)} texts ({each}): about {total / 1e12:.2g} TFLOP ({parts})"


def _describe_peak(model: LanguageModel, peak: float) -> str:
    other = torch.float32 if model.dtype != torch.float32 else torch.bfloat16
    beside = matrix_peak(model.device, other)
    return (
        f"products of large matrices at {peak / 1e9:,.0f} GFLOP/s in {_name(model.dtype)}, the model's own, "
        f"and at {beside / 1e9:,.{0 if beside >= 1e10 else 1}f} in {_name(other)}"
    )


def _describe_rate(rate: Rate) -> str:
    return (
        f"{rate.kind}: {rate.texts / rate.seconds:,.1f} texts a second, {rate.per_second / 1e9:,.0f} GFLOP/s, "
        f"{rate.share:.0%} of that"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounded(seconds: float) -> str:
    unit, of = next(
        (u, n) for u, n in (("hours", 3600), ("minutes", 60), ("seconds", 1)) if seconds >= n or n == 1
    )
    return f"{max(1.0, seconds / of):.2g} {unit}"
