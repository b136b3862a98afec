"""How much memory a run takes where it takes most, before it is run.

Every kind of pass that the run makes is made once, on a full batch, while the memory of the process (on a GPU, of
its allocator) is watched. What the run keeps beside, targets and candidates, comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradmm.config import GenerateConfig
from gradmm.data.task import BoundTask
from gradmm.gradients.losses import VOCABULARY, VerbaliserLoss
from gradmm.labelling import BATCH
from gradmm.models import LanguageModel
from gradmm.resources import peak_memory
from gradmm.solvers.initial import LengthConfig
from gradmm.solvers.kernels import HELD_BYTES
from gradmm.teaching import teach
from gradmm.throughput import Bench
from gradmm.training.trainable import TrainableModel
from gradmm.workload import GRADIENTS, Workload

_FLOAT = 4  # bytes


def measure_peak(
    lm: LanguageModel, task: BoundTask, config: GenerateConfig, counts: Sequence[int], longest: int
) -> int | None:
    """Bytes of a run with these settings, at its fullest: of the whole process, or of tensors on a GPU.

    Args:
        lm: the model, on its device.
        task: the rendering.
        config: of the run.
        counts: texts of every class that are asked for.
        longest: tokens of the longest real rows.

    Returns:
        None where the system does not tell of a part of a process's life.

    Raises:
        ConfigError: if such texts do not fit the context.
        OutOfMemoryError: if one text does not fit into memory.
    """
    asked = Workload(lm, task, config).texts(counts, rows=1)
    as_long = config.model_copy(update={"lengths": LengthConfig(distribution="fixed", max_tokens=longest)})
    with peak_memory(lm.device) as peak:
        learns = config.solver != "admm" and config.label_check.knows_rows
        # Who learns comes first and stays, as in the run, while others come and go.
        learnt = _learn(lm, task, config, longest) if learns else None
        for kind, (_, work) in Bench(lm, task, config).passes().items():
            if asked[kind]:
                work()
        Bench(lm, task, as_long).passes()[GRADIENTS][1]()  # of real rows
        del learnt
    return None if peak.bytes is None else peak.bytes + kept_bytes(lm, task, config, counts)


def kept_bytes(lm: LanguageModel, task: BoundTask, config: GenerateConfig, counts: Sequence[int]) -> int:
    """Of targets, of the candidates' factors as far as they are held, and of the writer."""
    loss = VOCABULARY if config.space.loss == "vocabulary" else VerbaliserLoss.of(task)
    size, width = loss.size(lm.head), lm.head.weight_VD.shape[1]
    targets = len(counts) * size * (width + 1) * _FLOAT
    if config.solver == "admm":
        return targets
    pairs, candidates = max(map(len, task.label_ids)), sum(counts) * config.pool.texts_per_text
    factors = min(candidates * pairs * (size + width) * _FLOAT, HELD_BYTES)
    writes = config.writer.rounds > 1 or bool(config.writer.files)
    return targets + factors + (_copy_bytes(lm, config) if writes else 0)


def _copy_bytes(lm: LanguageModel, config: GenerateConfig) -> int:
    """Of a copy that has learnt: float32, unless adapters were trained beside it."""
    weights = lm.model.parameters()
    return sum(w.numel() * (w.element_size() if config.writer.lora else _FLOAT) for w in weights)


def _learn(lm: LanguageModel, task: BoundTask, config: GenerateConfig, longest: int) -> TrainableModel:
    """Who learns the classes, after an update."""
    rows = [[task.decode([task.text_ids("a")[0]] * longest)] * BATCH] * len(task.label_ids)
    once = config.label_check.model_copy(update={"max_steps": 1})
    return teach(lm, task, rows, config.model_copy(update={"label_check": once}))
