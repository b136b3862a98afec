"""A result in a notebook: what is data shows as text, what is drawn is what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from gradmm import notebook
from gradmm.errors import ConfigError
from gradmm.found import Written
from gradmm.result import Result, make_dataset

NAMES = ("<b>bad</b>", "good\u202e")
METRICS: dict[str, Any] = {
    "synthetic": {"texts": 14, "distance": 0.01, "log_perplexity": 4.0},
    "steps": {"selected": {"texts": 14, "distance": 0.02, "log_perplexity": 3.5}},
    "references": {
        "real": {"texts": 14, "distance": 0.03, "log_perplexity": 5.0},
        "lm": {"texts": 14, "distance": 0.5, "log_perplexity": 3.0},
    },
}


@pytest.fixture
def result() -> Result:
    texts = [[Written(f"<script>{label}.{n}</script>", "lm") for n in range(7)] for label in range(2)]
    return Result(make_dataset(NAMES, texts, (0.1, 0.2), [[1.0] * 7] * 2), METRICS, Path("run"))


def test_a_notebook_shows_some_texts_of_every_class_as_text(result: Result) -> None:
    shown = result._repr_html_()
    assert "<script>" not in shown and "<b>bad" not in shown and "\u202e" not in shown
    for label in range(2):
        assert [f"&lt;script&gt;{label}.{n}&lt;" in shown for n in range(7)] == [True] * 5 + [False] * 2
    assert "good\\u202e" in shown and "and 4 more" in shown
    assert "<td>real rows</td><td>14</td><td>0.0300</td><td>5.00</td>" in shown


def test_a_data_frame_names_the_labels(result: Result) -> None:
    frame = result.to_pandas()
    assert list(frame.columns[:3]) == ["text", "label", "label_name"]
    assert frame["label_name"].tolist() == [NAMES[0]] * 7 + [NAMES[1]] * 7
    assert frame["text"].tolist() == [row["text"] for row in result.to_dataset()]


def test_a_picture_has_every_set_where_it_was_measured(result: Result) -> None:
    matplotlib.use("agg")
    axes = result.plot()
    drawn = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.get_lines()}
    assert drawn == {
        "synthetic texts": (4.0, 0.01),
        "selected": (3.5, 0.02),
        "real rows": (5.0, 0.03),
        "LM samples": (3.0, 0.5),
    }
    assert axes.get_yscale() == "log"
    assert notebook.plot(result.metrics, axes) is axes and len(axes.get_lines()) == 8


def test_without_matplotlib_it_says_what_to_install(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'gradmm\[plot\]'"):
        result.plot()
