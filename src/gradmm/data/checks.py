"""What must hold between data, task and model before any work is done."""

from __future__ import annotations

from gradmm.data.rows import LabelledData
from gradmm.data.task import BoundTask, Task
from gradmm.data.vetting import row_of
from gradmm.errors import DataError, TaskError

_BATCH = 1000
_HEAD = 50  # characters for every token that there is room for


def match_labels(task: Task, data: LabelledData) -> Task:
    """The task with its classes in the data's order.

    Data without names of their own (labels 0, 1, ...) take the task's names and order.

    Raises:
        TaskError: if the classes are not the same.
    """
    unnamed = tuple(str(label) for label in range(data.num_classes))
    if data.label_names == unnamed and data.num_classes == len(task.label_names):
        return task
    if set(data.label_names) != set(task.label_names):
        raise TaskError(
            f"the task's classes are {list(task.label_names)} but those of {data.name} are "
            f"{list(data.label_names)}; give a task over the data's classes (task.template, task.verbalisers), or "
            "set data.label_names and data.classes to the task's"
        )
    order = [task.label_names.index(name) for name in data.label_names]
    return Task(
        label_names=data.label_names,
        template=task.template,
        verbalisers=tuple(task.verbalisers[c] for c in order),
        instructions=tuple(task.instructions[c] for c in order) if task.instructions else (),
    )


def check_fits(task: BoundTask, data: LabelledData) -> int:
    """Every row fits the model's context with the template around it.

    Returns:
        Tokens of the longest row that had to be tokenised to know; 0 if all are short for certain.

    Raises:
        DataError: naming the row.
    """
    longest = 0
    backend = getattr(task.tokenizer, "backend_tokenizer", None)
    normalizes = backend is None or backend.normalizer is not None
    for label in range(data.num_classes):
        for number, batch in enumerate(data.iter_batches(label, _BATCH)):
            for at, text in enumerate(batch):
                # A token stands for a byte at least, so short rows need not be tokenised.
                if not normalizes and len(text.encode()) + 2 <= task.room:
                    continue
                head = text[: _HEAD * (task.room + 1)]  # of a very long text; it may be too long by itself
                if len(head) < len(text) and (count := len(task.text_ids(head))) > 2 * task.room:
                    _refuse(task, data, label, number * _BATCH + at, text, count)
                count = len(task.text_ids(text))
                longest = max(longest, count)
                if count > task.room:
                    _refuse(task, data, label, number * _BATCH + at, text, count)
    return longest


def _refuse(task: BoundTask, data: LabelledData, label: int, row: int, text: str, count: int) -> None:
    more = "more than " if len(text) > _HEAD * (task.room + 1) else ""
    raise DataError(
        f"{row_of(data.name, data.number_of(label, row))}: {data.text_column} has {more}{count} tokens, but the "
        f"model's context of {task.max_length} leaves room for {task.room}: {text[:60]!r}...; shorten or drop "
        "such rows, or take a model with a longer context"
    )
