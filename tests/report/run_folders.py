"""Small complete run folders, as `gradmm generate` and `gradmm compare` leave them, without a model.

`make_texts_run(path, ...)`    texts of two classes; `private`, `hostile`, `figures` and more change it
`make_comparison_run(path)`    four methods at one budget or several
Every value is made up. `HOSTILE` holds texts that would do something if a page took them for more than text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from gradmm.privacy.accounting import Gaussian
from gradmm.privacy.config import Promise
from gradmm.privacy.ledger import Ledger
from gradmm.privacy.ledger_lines import Spend

LABELS = ("negative", "positive")
TEXTS = (
    ("A dull film.", "I was bored by the second act.", "The plot is thin and the jokes are old."),
    ("A warm film.", "I laughed until the very end.", "The cast is lovely, and so is the music."),
)
HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</script><img src=x onerror=alert(1)>",
    "</textarea></td></table><h1>taken over</h1>",
    "bidi \u202egnp.exe and \u2066isolates",
    "esc \x1b[31mred\x1b[0m, null \x00, bell \x07",
    "{{ 7 * 7 }} {% for x in y %} ${alert(1)}",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' &lt;b&gt; &amp;",
    "<!-- a comment --> ]]> <![CDATA[ x",
    "http://example.invalid/track.png @import url(http://example.invalid/x.css);",
    "two\nlines\tand a tab",
    "café 電影 ☕ مرحبا",
    "| a | b |\n|---|---|\n# heading [link](javascript:alert(1))",
    "---\nlicense: other\n---",
)
HOSTILE_LABELS = ("<b>bad</b>\u202e", 'good"><script>alert(1)</script>')
REAL_TEXT = "A row that its owner keeps, verbatim."
ENVIRONMENT = {
    "python": "3.11.9",
    "platform": "Linux-x86_64",
    "packages": {"gradmm": "0.1.0", "torch": "2.9.0", "transformers": "5.1.0", "datasets": "4.7.0"},
    "device": "cpu",
    "device_name": "",
    "threads": 1,
    "cores": 2,
}


def make_texts_run(
    path: Path,
    *,
    texts: Sequence[Sequence[str]] = TEXTS,
    labels: Sequence[str] = LABELS,
    private: bool = False,
    hostile: bool = False,
    figures: bool = True,
    config: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """A complete folder of `gradmm generate`.

    Args:
        path: which is made.
        texts: per class.
        labels: names of the classes.
        private: with a budget, a ledger, and nothing of real rows.
        hostile: `HOSTILE` for texts and in every other place where a name or a text stands.
        figures: whether the metrics have `figures`.
        config, metrics: keys that are put in, or replaced.
    """
    if hostile:
        half = len(HOSTILE) // 2
        texts, labels = (HOSTILE[:half], HOSTILE[half:]), HOSTILE_LABELS
    path.mkdir(parents=True)
    rows = _rows(texts)
    _write_table(path / "data" / "synthetic.parquet", _schema(labels), rows)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (path / "data" / "synthetic.jsonl").write_text("".join(lines), encoding="utf-8")
    _write_shared(path, config_of(private, hostile) | (config or {}))
    drawn = {"figures": figures_of(texts, private, hostile)} if figures else {}
    _write_json(path / "metrics.json", metrics_of(texts, private) | drawn | (metrics or {}))
    if private:
        _write_ledger(path)
    write_sums(path)
    return path


def make_comparison_run(
    path: Path, *, budgets: Sequence[int] = (10, 50), hostile: bool = False, more: Sequence[dict[str, Any]] = ()
) -> Path:
    """A complete folder of `gradmm compare`: three data seeds of four methods at each budget, and the path."""
    path.mkdir(parents=True)
    rows = [_method_row(i, budget, hostile) for budget in budgets for i in range(len(_METHODS))] + [*more]
    points = [
        {
            "step": step,
            "error_all": 0.9 - 0.1 * i,
            "error_head": 0.4 + 0.1 * i,
            "cosine_all": 0.8,
            "weights_apart": None if step == 0 else 0.3 * i,
        }
        for i, step in enumerate((0, 20, 60))
    ]
    _write_shared(path, {"model": {"model_name_or_path": "demo"}, "data": {"dataset": "train.csv"}, "seeds": 3})
    _write_json(path / "metrics.json", {"rows": rows, "path": points})
    _write_table(path / "results.parquet", None, [_record(row, seed) for row in rows for seed in range(3)])
    write_sums(path)
    return path


def config_of(private: bool = False, hostile: bool = False) -> dict[str, Any]:
    """`config.yaml`."""
    budget = {"neighboring_relation": "add_or_remove_one", "target_epsilon": 4.0, "target_delta": 1e-5}
    return {
        "model": {"model_name_or_path": HOSTILE[0] if hostile else "demo", "dtype": "float32"},
        "data": {"dataset": HOSTILE[6] if hostile else "train.csv", "text_column": "text"},
        "task": {"template": "{text} It was", "verbalisers": {"negative": " bad", "positive": " great"}},
        "texts_per_class": 3,
        "seed": 0,
        "solver": "search",
        **({"privacy": budget | {"num_rows": 2000}} if private else {}),
    }


def metrics_of(texts: Sequence[Sequence[str]], private: bool = False) -> dict[str, Any]:
    """`metrics.json`."""
    count = sum(map(len, texts))
    sets = {
        "synthetic": (0.0049, 2.42, 0.79),
        "selected": (0.0055, 2.40, 0.78),
        "real": (0.0016, 4.46, 0.95),
        "lm": (0.0259, 2.35, 0.81),
    }
    own = {
        name: {
            **{"texts": count, "distance": distance, "class_distances": [distance * (1 + c / 10) for c in (0, 1)]},
            **{"log_perplexity": log_perplexity, "distinct_2": distinct, "tokens": 20.2},
        }
        for name, (distance, log_perplexity, distinct) in sets.items()
    }
    references = {name: own[name] for name in ("real", "lm") if not (private and name == "real")}
    return {
        "solver": "search",
        "synthetic": own["synthetic"] | {"retokenised_differently": 0},
        "steps": {"selected": own["selected"]},
        "references": references,
        "form": {
            "name": "lowercase+no_punctuation",
            "objectives": {"as_written": -1, "lowercase+no_punctuation": -2},
        },
        "search": search_of(texts, [list(range(len(texts)))]),
        "stops": [],
        "seconds": {"pool": 4.22, "writer": 31.8, "search": 13.1, "measure": 1.6},
        "trace": [],
        **({"privacy": _privacy()} if private else {}),
    }


def search_of(texts: Sequence[Sequence[str]], groups: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """`search` of the metrics, for groups of classes that were matched together."""
    return [
        {
            **{"classes": list(group), "selected_texts": [list(texts[label]) for label in group]},
            **{"relabelled_in": [1 + c for c in group], "relabelled_out": [2 * c for c in group]},
            **{"candidates": [193 - c for c in group], "carry_their_label": [116 + c for c in group]},
            **{"objective_greedy": -4.85 - at, "objective_selected": -4.94 - at, "exchanges": 7 + at},
            **{"objective_before_refinement": -4.89 - at, "objective_refined": -4.97 - at},
            **{"evaluations": 400 + at, "changes": 9 + at},
        }
        for at, group in enumerate(groups)
    ]


def figures_of(texts: Sequence[Sequence[str]], private: bool = False, hostile: bool = False) -> dict[str, Any]:
    """`figures` of the metrics, with every section; of a private run, without those of real rows."""
    sets = ["target", "synthetic set", "lm set"] + ([] if private else ["real set", "real text"])
    points = [
        {"kind": kind, "label": label, "x": 0.2 * k - label, "y": label - 0.1 * k}
        for label in range(len(texts))
        for k, kind in enumerate(sets)
    ]
    row = 0
    for label, own in enumerate(texts):
        for i in range(len(own)):
            points.append({"kind": "text", "label": label, "x": label + 0.1 * i, "y": 0.3 * i, "row": row})
            points.append({"kind": "lm text", "label": label, "x": -label - 0.1 * i, "y": -0.2 * i})
            row += 1
    word = HOSTILE[0] if hostile else "film"
    counts = {"synthetic": [1, 4, 1], "lm": [2, 2, 2]} | ({} if private else {"real": [0, 3, 3]})
    found: dict[str, Any] = {
        "version": 1,
        "map": {"explained": [0.61, 0.2], "points": points},
        "history": history_of([list(range(len(texts)))]),
        "lengths": {"unit": "tokens", "edges": [0, 8, 16, 24], "sets": counts},
        "words": {
            "reference": "lm" if private else "real",
            "more": [{"word": word, "synthetic": 0.021, "reference": 0.001}],
            "fewer": [{"word": "of", "synthetic": 0.002, "reference": 0.03}],
        },
    }
    if not private:
        found["nearest"] = [{"row": 0, "text": HOSTILE[0] if hostile else REAL_TEXT, "overlap": 0.4}]
    return found


def history_of(groups: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """`history` of the figures, for groups of classes that were matched together."""
    falling = [[step, 0.1 / step] for step in range(1, 9)]
    every = [
        {"stage": "admm", "label": None, "unit": "outer iterations", "quantity": quantity, "points": falling}
        for quantity in ("distance", "primal residual", "dual residual")
    ]
    for group in groups:
        label = group[0] if len(group) == 1 else None
        objective = [[step, -4 - 0.1 * step] for step in range(5)]
        own = {"stage": "selection", "label": label, "unit": "exchanges", "quantity": "objective"}
        every.append(own | {"points": objective})
    return every


def _privacy() -> dict[str, Any]:
    return {
        "target": "released with noise; distances are to it, not to the real rows",
        **{"is_private": True, "unit": "row", "neighboring_relation": "add_or_remove_one"},
        **{"target_epsilon": 4.0, "epsilon": 3.2255, "delta": 1e-5, "accountant": "rdp"},
        **{"accountant_version": "dp-accounting 0.6.0", "noise_multiplier": 1.4, "clip": 3.6, "dimension": 512},
        **{"divisors": [1000.0, 1000.0], "noise_norm": 0.032, "most_snr": 31.6},
        **{"expected_signal": 0.17, "expected_snr": 5.4},
    }


def _write_ledger(path: Path) -> None:
    given = {"neighboring_relation": "add_or_remove_one", "target_delta": 1e-5, "num_rows": 2000}
    promise = Promise.model_validate(given | {"accountant": "rdp"})
    noise = "opendp 0.16.0, discrete Gaussian, exactly sampled"
    Ledger(path, promise, 4.0).spend([Spend("target", Gaussian(1.4), 3.6, 1024, noise)])


_METHODS = (
    ("search", "gradmm", "synthetic", 0.70),
    ("lm_random", "LM samples", "synthetic", 0.62),
    ("real_random", "real rows, random", "real", 0.71),
    ("noise", "towards noise", "control", 0.55),
)


def all_rows(differences: dict[str, Any]) -> dict[str, Any]:
    """What is said of a training on all real rows, held against ours of every budget."""
    own = {"method": "real_all", "title": "all real rows", "budget": 0, "ours_minus_this": None}
    return _method_row(2, 0, False) | own | {"ours_minus_this_at": differences}


def _method_row(number: int, budget: int, hostile: bool) -> dict[str, Any]:
    method, title, kind, mean = _METHODS[number]
    mean += budget / 1000
    difference = {"mean": 0.70 + budget / 1000 - mean, "count": 3}
    reach = 0.02 if number == 1 else 0.2  # LM samples alone differ for sure
    around = {"low": difference["mean"] - reach, "high": difference["mean"] + reach}
    return {
        **{"method": method, "title": HOSTILE[1] if hostile else title, "kind": kind, "budget": budget},
        "accuracy": {"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "count": 3},
        "macro_f1": {"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "count": 3},
        "ours_minus_this": None if number == 0 else difference | around,
        **{"learning_rate": 1e-4, "distance": 6.3e-5 * (1 + number), "log_perplexity": 4.06},
        "costs": {
            **{"seconds_texts": 584.8, "seconds_training": 24.0},
            **{"peak_bytes_texts": 1.7e9, "peak_bytes_training": None},
        },
    }


def _record(row: dict[str, Any], seed: int) -> dict[str, Any]:
    return {
        **{key: row[key] for key in ("method", "kind", "budget", "learning_rate", "distance", "log_perplexity")},
        **{"data_seed": seed, "training_seed": 0, "steps": 60, "dev_accuracy": 0.7},
        **{"accuracy": row["accuracy"]["mean"] + 0.01 * (seed - 1), "macro_f1": 0.69, "texts": 2 * row["budget"]},
    }


def _rows(texts: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    return [
        {
            **{"text": text, "label": label, "gradient_distance": 0.0049 * (1 + label / 10)},
            **{"log_perplexity": 2.0 + 0.1 * i, "label_score": None if i == 0 else 0.9 - 0.05 * i, "weight": 1.0},
            "source": "lm+refined" if i else "writer",
        }
        for label, own in enumerate(texts)
        for i, text in enumerate(own)
    ]


def _schema(labels: Sequence[str]) -> pa.Schema:
    """With the metadata that `datasets` reads label names from."""
    floats = ("gradient_distance", "log_perplexity", "label_score", "weight")
    features: dict[str, Any] = {name: {"dtype": "float64", "_type": "Value"} for name in floats}
    features["text"] = features["source"] = {"dtype": "string", "_type": "Value"}
    features["label"] = {"names": list(labels), "_type": "ClassLabel"}
    names = ("text", "label", *floats, "source")
    types = {"text": pa.string(), "source": pa.string(), "label": pa.int64()}
    info = json.dumps({"info": {"features": {name: features[name] for name in names}}})
    return pa.schema([(name, types.get(name, pa.float64())) for name in names], {"huggingface": info})


def _write_table(path: Path, schema: pa.Schema | None, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _write_shared(path: Path, config: dict[str, Any]) -> None:
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    _write_json(path / "environment.json", ENVIRONMENT)
    _write_json(path / "fingerprint.json", {"gradmm": "0.1.0", "data": "0" * 64})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_sums(path: Path) -> None:
    files = sorted(one for one in path.rglob("*") if one.is_file())
    lines = (
        f"{hashlib.sha256(one.read_bytes()).hexdigest()}  {one.relative_to(path).as_posix()}\n" for one in files
    )
    (path / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
