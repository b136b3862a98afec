"""What the LM writes after being shown real rows: a baseline, and apart from search, which sees no row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradmm.blocks import BlockRunner
from gradmm.decoding import PromptCache
from gradmm.solvers.initial import write_texts

_SHARED = 16  # texts that are written after one list of rows
_CHUNK = 256  # texts that are written together


def write_after(
    runner: BlockRunner, label: int, shown: Sequence[str], shots: int, size: int, generator: torch.Generator
) -> list[str]:
    """What the LM writes after the class's instruction and texts, and again, and then without a text.

    Args:
        runner: the run's model, task, settings and bans.
        label: the class.
        shown: texts to show, of which every prompt has some, in random order.
        shots: how many; fewer where they do not fit the context.
        size: texts to write.
        generator: random generator on the CPU.
    """
    task, config, written = runner.task, runner.config, list[str]()
    asked = task.task.instruction(label)
    while len(written) < size:
        count = min(_CHUNK, size - len(written))
        draws = [
            torch.randperm(len(shown), generator=generator)[:shots].tolist() for _ in range(-(-count // _SHARED))
        ]
        prompts = [_listed(runner, asked, [shown[i] for i in own]) for own in draws]
        cache = PromptCache(runner.lm, prompts, runner.limit)
        of_prompt = [i // _SHARED for i in range(count)]
        ids = write_texts(
            task, cache, runner.allowed_V, of_prompt, config.lengths, config.initial, generator, ("\n", asked)
        )
        written += [task.decode(row) for row in ids]
    return written


def _listed(runner: BlockRunner, asked: str, shots: list[str]) -> list[int]:
    """Tokens of the prompt, with as many of the rows as leave room for another one."""
    task = runner.task
    room = task.max_length - runner.config.lengths.max_tokens - 2
    while True:
        prompt = "".join(f"{asked} {shot}\n" for shot in shots) + asked
        ids = task.bos_ids + list(task.tokenizer(prompt, add_special_tokens=False).input_ids)
        if len(ids) <= room or not shots:
            return ids
        shots = shots[1:]
