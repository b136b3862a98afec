"""The head of a data set card: what the Hub and `datasets` read of it. YAML, made by a dumper."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq
import yaml

from gradmm.errors import printable
from gradmm.report.names import public_name
from gradmm.report.read import TEXTS, Texts

COLUMNS = {
    "text": ("string", "the synthetic text"),
    "label": ("class_label", "the class that the text stands for"),
    "gradient_distance": ("float64", "distance of the class's whole set to the target, the same in all its rows"),
    "log_perplexity": ("float64", "of the text under the model, in nats per token; lower is more readable"),
    "label_score": (
        "float64",
        "probability of the label in the label check; null where it was not asked",
    ),
    "weight": ("float64", "weight of the text in the mean over its class's set"),
    "source": (
        "string",
        "`lm` (the model) or `writer` (its copy that was tuned on what was chosen), `admm`, or a file's name; "
        "`+refined` where tokens were changed",
    ),
}
"""Type and meaning of every column."""
LANGUAGES = {"demo": "en"}
"""Of the data that ship in the package; of other data the language is not known."""
LICENSE = "unknown"
"""The terms of the data and of the model decide, and neither is known here. `other` would have to name one."""
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def front_matter(run: Texts) -> str:
    """The lines between and with the two `---`, in ASCII: a name cannot turn letters around or end it."""
    told = yaml.safe_dump(_metadata(run), sort_keys=False, allow_unicode=False)
    return f"---\n{told}---\n"


def title(run: Texts) -> str:
    """What the data set is called."""
    return f"Synthetic texts for {data_name(run)}"


def data_name(run: Texts) -> str:
    """The real data's name, as it may be published."""
    return public_name(str(run.config["data"]["dataset"]))


def keeps_promise(run: Texts) -> bool:
    """Whether the set is private; one that a test's noise made is not."""
    return run.is_private and bool(run.metrics["privacy"]["is_private"])


def _metadata(run: Texts) -> dict[str, Any]:
    language = LANGUAGES.get(str(run.config["data"]["dataset"]))
    private = ["differential-privacy"] if keeps_promise(run) else []
    return {
        "pretty_name": printable(title(run)),
        **({} if language is None else {"language": [language]}),
        "license": LICENSE,
        "task_categories": ["text-classification"],
        "size_categories": [_size(len(run.rows))],
        "annotations_creators": ["machine-generated"],
        "language_creators": ["machine-generated"],
        "tags": ["synthetic", "gradmm", "gradient-matching", *private],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": TEXTS}]}],
        "dataset_info": {
            "features": [{"name": name, "dtype": _dtype(run, kind)} for name, (kind, _) in COLUMNS.items()],
            "splits": [{"name": "train", "num_bytes": _bytes(run), "num_examples": len(run.rows)}],
        },
    }


def _dtype(run: Texts, kind: str) -> Any:
    if kind == "class_label":
        return {"class_label": {"names": {str(i): name for i, name in enumerate(run.label_names)}}}
    return kind


def _bytes(run: Texts) -> int:
    """In memory, which `datasets` asks for where the number of rows stands."""
    return int(pq.read_table(run.path / TEXTS).nbytes)


def _size(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "10M<n<100M")
