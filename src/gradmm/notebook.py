"""A result in a notebook: as a table, and as a picture."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gradmm.errors import ConfigError, printable

if TYPE_CHECKING:
    import datasets
    from matplotlib.axes import Axes

_SHOWN = 5  # texts per class
_SETS = {
    "synthetic": "synthetic texts",
    "real": "real rows",
    "lm": "LM samples",
    "selected": "selected",
    "admm": "ADMM",
}
_MARKERS = "o*D^sPX"


def as_html(dataset: datasets.Dataset, metrics: Mapping[str, Any]) -> str:
    """Some texts of every class, and how the set compares. All that is data is escaped.

    Args:
        dataset: of a `Result`.
        metrics: of the same.
    """
    names = dataset.features["label"].names
    by_label: dict[int, list[str]] = {label: [] for label in range(len(names))}
    for row in dataset:
        by_label[row["label"]].append(row["text"])
    rows = "".join(_row((names[label], text)) for label, own in by_label.items() for text in own[:_SHOWN])
    left = sum(max(0, len(own) - _SHOWN) for own in by_label.values())
    more = f"<p>and {left} more: <code>.to_pandas()</code></p>" if left else ""
    measured = "".join(
        _row((name, str(own["texts"]), f"{own['distance']:.4f}", f"{own['log_perplexity']:.2f}"))
        for name, own in sets_of(metrics)
    )
    return (
        f"<table>{_row(('set', 'texts', 'gradient distance', 'log-perplexity'), 'th')}{measured}</table>"
        f"<table>{_row(('label', 'text'), 'th')}{rows}</table>{more}"
    )


def plot(metrics: Mapping[str, Any], axes: Axes | None = None) -> Axes:
    """Distance against log-perplexity: the set, the steps to it, real rows and LM samples. Lower is better.

    Args:
        metrics: of a `Result`.
        axes: where to draw; None makes a figure.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as err:
        raise ConfigError("plot needs matplotlib; install it with: pip install 'gradmm[plot]'") from err
    if axes is None:
        axes = pyplot.figure().add_subplot()
    for marker, (name, own) in zip(_MARKERS, sets_of(metrics), strict=False):
        axes.plot(own["log_perplexity"], own["distance"], marker, markersize=8, label=name)
    axes.set(yscale="log", xlabel="log-perplexity (nats per token)", ylabel="distance of the mean gradient")
    axes.legend()
    return axes


def sets_of(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every set that was measured, by a name to show."""
    for key, own in ({"synthetic": metrics["synthetic"]} | metrics["steps"] | metrics["references"]).items():
        yield _SETS.get(key, key), own


def _row(cells: tuple[str, ...], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(printable(cell))}</{tag}>' for cell in cells)}</tr>"
