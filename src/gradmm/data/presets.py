"""Ready-made tasks for the data sets that the field compares on."""

from __future__ import annotations

from gradmm.data.task import Task
from gradmm.errors import TaskError, nearest

_SENTIMENT = Task(
    label_names=("negative", "positive"),
    template="{text} It was",
    verbalisers=(" bad", " great"),
    instructions=("A negative movie review:", "A positive movie review:"),
)
_EMOTIONS = ("sadness", "joy", "love", "anger", "fear", "surprise")
_FEELINGS = (" sad", " happy", " loving", " angry", " afraid", " surprised")
_TREC = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "thing",
    "HUM": "person",
    "LOC": "place",
    "NUM": "number",
}


def _emotion(count: int) -> Task:
    names = _EMOTIONS[:count]
    return Task(
        label_names=names,
        template="{text} I feel",
        verbalisers=_FEELINGS[:count],
        instructions=tuple(f"Someone writes about a feeling of {name}:" for name in names),
    )


PRESETS: dict[str, Task] = {
    "sst2": _SENTIMENT,
    "rotten_tomatoes": _SENTIMENT,
    "imdb": _SENTIMENT,
    "emotion": _emotion(6),
    "emotion2": _emotion(2),
    "ag_news": Task(
        label_names=("World", "Sports", "Business", "Sci/Tech"),
        template="{text} This is about",
        verbalisers=(" politics", " sports", " business", " technology"),
        instructions=(
            "A news story about world politics:",
            "A news story about sports:",
            "A news story about business:",
            "A news story about science and technology:",
        ),
    ),
    "trec": Task(
        label_names=tuple(_TREC),
        template="{text} It asks for the",
        verbalisers=tuple(f" {word}" for word in _TREC.values()),
        instructions=tuple(f"A question whose answer is a {word}:" for word in _TREC.values()),
    ),
}
"""By name; `emotion2` is the paper's pair of sadness and joy."""


def get_task(task: str | Task) -> Task:
    """A ready-made task by name; a `Task` is returned as it is.

    Raises:
        TaskError: if there is no such task.
    """
    if isinstance(task, Task):
        return task
    if task not in PRESETS:
        raise TaskError(f"no ready-made task {task!r} (or give template and verbalisers){nearest(task, PRESETS)}")
    return PRESETS[task]
