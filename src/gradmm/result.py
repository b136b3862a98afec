"""What a run gives: texts with their labels, and figures about them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from gradmm import notebook
from gradmm.errors import DataError
from gradmm.found import Written
from gradmm.store import FINGERPRINT, RunFolder, as_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TEXTS = "data/synthetic.parquet"  # within a run folder


@dataclass(frozen=True)
class Result:
    """A synthetic data set and what it achieved."""

    dataset: datasets.Dataset
    """Columns `text`, `label` (ClassLabel), `gradient_distance` (of the label's whole set), `log_perplexity`,
    `label_score` (probability of the label, where it was looked at), `weight` (in the mean over the
    label's set) and `source` (`admm`, `lm` or a file; `+refined` where tokens were changed)."""
    metrics: dict[str, Any]
    """What `metrics.json` holds."""
    run_dir: Path | None
    """The run folder, if one was asked for."""

    def texts_of(self, label: int) -> list[str]:
        """The texts of one class."""
        return [row["text"] for row in self.dataset if row["label"] == label]

    def to_dataset(self) -> datasets.Dataset:
        """The texts as a `datasets.Dataset`."""
        return self.dataset

    def to_pandas(self) -> pd.DataFrame:
        """The texts as a data frame, with the labels' names beside their numbers."""
        frame: pd.DataFrame = self.dataset.to_pandas()
        frame.insert(2, "label_name", [self.dataset.features["label"].names[label] for label in frame["label"]])
        return frame

    def plot(self, axes: Axes | None = None) -> Axes:
        """Distance against log-perplexity, real rows and LM samples beside; needs matplotlib (`gradmm[plot]`).

        Args:
            axes: where to draw; None makes a figure.
        """
        return notebook.plot(self.metrics, axes)

    def _repr_html_(self) -> str:
        return notebook.as_html(self.dataset, self.metrics)

    def __repr__(self) -> str:
        own = self.metrics["synthetic"]
        return (
            f"Result({len(self.dataset)} texts, gradient distance {own['distance']:.4f}, "
            f"log-perplexity {own['log_perplexity']:.2f}, run_dir={str(self.run_dir) if self.run_dir else None!r})"
        )


def make_dataset(
    label_names: tuple[str, ...],
    texts: list[list[Written]],
    distances: tuple[float, ...],
    log_perplexities: list[list[float]],
) -> datasets.Dataset:
    """Rows in the order of classes; texts, distances and log-perplexities are per class."""
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(label_names)),
            "gradient_distance": datasets.Value("float64"),
            "log_perplexity": datasets.Value("float64"),
            "label_score": datasets.Value("float64"),
            "weight": datasets.Value("float64"),
            "source": datasets.Value("string"),
        }
    )
    rows = [
        vars(one) | {"label": label, "gradient_distance": distances[label], "log_perplexity": perplexity}
        for label, own in enumerate(texts)
        for one, perplexity in zip(own, log_perplexities[label], strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=features)


def write_result(folder: RunFolder, dataset: datasets.Dataset, metrics: dict[str, Any]) -> None:
    """Writes data, then metrics: a folder with metrics is complete."""
    # The schema's metadata carry the ClassLabel, so that load_dataset gets the names back.
    table: pa.Table = dataset.with_format("arrow")[:]
    folder.write(TEXTS, lambda path: pq.write_table(table, path))
    lines = (json.dumps(as_json(row), ensure_ascii=False) + "\n" for row in dataset)
    folder.write_text("data/synthetic.jsonl", "".join(lines))
    folder.write_json("metrics.json", metrics)


def texts_of_run(name: str | Path) -> Path | None:
    """The texts in the folder of a run; None if it is no such folder.

    Raises:
        DataError: if the run has written none.
    """
    folder = Path(os.path.expanduser(name))
    if not os.path.isfile(folder / FINGERPRINT):  # which `Path.is_file` raises for, if the name is too long
        return None
    if not (folder / TEXTS).is_file():
        raise DataError(
            f"{folder} is the folder of a run that holds no texts ({TEXTS}); let `gradmm generate` end there "
            "first, or give another source"
        )
    return folder / TEXTS


def read_result(folder: RunFolder) -> Result:
    """The result of a run that is complete."""
    table = pq.read_table(folder.path / TEXTS)
    return Result(datasets.Dataset(table), folder.read_json("metrics.json"), folder.path)
