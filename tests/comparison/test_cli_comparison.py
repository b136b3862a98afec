"""`gradmm compare` as a user meets it: its table, exit codes, misuse, interruption."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from command_line import Outcome, Run
from gradmm.comparison.compare import Comparison
from gradmm.comparison.guarantee import PathPoint
from gradmm.comparison.statistics import Interval
from gradmm.comparison.summary import Row
from gradmm.present_comparison import show_comparison
from gradmm.store import RunFolder

pytestmark = pytest.mark.usefixtures("own_folder")
TITLES = {
    "search": "gradmm",
    "lm_random": "LM samples",
    "real_random": "real rows, random",
    "real_all": "all real rows",
    "noise": "towards noise",
}
HEADINGS = ["trained on", "accuracy", "gradmm minus this", "rate", "distance", "log-perplexity", "minutes"]


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings, and beside them the rows that they name."""
    words = {"negative": ("bad", "dull"), "positive": ("great", "fine")}
    for role, each in (("train", 6), ("dev", 4), ("test", 5)):
        rows = [
            {"text": f"A {own[n % 2]} {role} {n}.", "label": name}
            for n in range(each)
            for name, own in words.items()
        ]
        (tmp_path / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"model_name_or_path": str(tiny_folder), "device": "cpu"},
        "data": {"dataset": "train.jsonl"},
        "dev": "dev.jsonl",
        "test": "test.jsonl",
        "methods": list(TITLES),
        "budgets": [2, 3],
        "seeds": 2,
        "tuning_seeds": 1,
        "learning_rates": [0.01],
        "train": {"max_steps": 1, "eval_steps": 1, "per_device_train_batch_size": 4},
        "ceiling_steps": 1,
        "generate": {
            "pool": {"texts_per_text": 6},
            "space": {"public_texts": 6},
            "refinement": {"evaluations": 0},
            "initial": {"candidates": 1},
            "label_check": {"max_steps": 1},
            "lengths": {"distribution": "uniform", "min_tokens": 4, "max_tokens": 8},
        },
    }


def given(config: dict[str, Any]) -> str:
    Path("cfg.yaml").write_text(yaml.safe_dump(config))
    return "cfg.yaml"


def cells(out: str) -> list[list[str]]:
    """The body of all tables."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")
    ]


# ---- what is printed


def test_the_table_says_what_is_in_the_run_folder(run: Run, config: dict[str, Any]) -> None:
    outcome = run("compare", given(config), "-o", "run", "--path")
    assert outcome.code == 0
    rows = json.loads(Path("run/metrics.json").read_text())["rows"]
    lines = [line.rstrip() for line in outcome.out.splitlines()]
    assert [line for line in lines if line.endswith("texts per class")] == [
        "2 texts per class",
        "3 texts per class",
    ]
    kinds = ["no real row is handed out", "real rows", "controls, there to be beaten"]
    found = cells(outcome.out)
    assert [row[0] for row in found if not row[1]] == kinds * 2
    body = [row for row in found if row[1]]
    assert len(body) == 10
    for budget, part in ((2, body[:5]), (3, body[5:])):
        for row in part:
            (own,) = (one for one in rows if TITLES[one["method"]] == row[0] and one["budget"] in (budget, 0))
            accuracy, less = own["accuracy"], own["ours_minus_this"] or own["ours_minus_this_at"].get(str(budget))
            mean = f"{100 * accuracy['mean']:.1f}"
            reach = "" if accuracy["high"] is None else f" ± {100 * (accuracy['high'] - accuracy['mean']):.1f}"
            assert row[1] == mean + reach
            assert row[2].split(" ")[0] == ("" if less is None else f"{100 * less['mean']:+.1f}")
            assert row[3] == "0.01"
            assert row[4] == ("" if own["distance"] is None else f"{own['distance']:.4f}")
    assert any(line.startswith("Step 1: gradient error ") for line in lines)
    assert lines[-2:] == ["Run folder: run", "Report:     run/report.html"]
    assert "real rows, random" in Path("run/report.html").read_text(encoding="utf-8")
    assert "\x1b" not in outcome.out + outcome.err
    assert outcome.err.splitlines()[0] == "compare: 17 trainings"

    # Once more, it is read back; here without a word on stderr.
    again = run("compare", "cfg.yaml", "-o", "run", "-s", "path=true", "-q")
    assert again == Outcome(0, outcome.out, "")


def test_settings_can_be_given_beside_the_file(run: Run, config: dict[str, Any]) -> None:
    more = ["-s", "methods=[lm_random]", "-s", "budgets=[2]", "--set", "seeds=1", "-s", "dev.split=train[:50%]"]
    assert run("compare", given(config), *more, "-o", "run", "-q").code == 0
    (row,) = json.loads(Path("run/metrics.json").read_text())["rows"]
    assert (row["method"], row["budget"], row["accuracy"]["count"]) == ("lm_random", 2, 1)
    kept = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (kept["dev"]["dataset"], kept["dev"]["split"], kept["path"]) == ("dev.jsonl", "train[:50%]", False)
    told = "run holds a run already and resume is 'never'; give a new folder, or resume it"
    assert run("compare", "cfg.yaml", *more, "-o", "run", "--resume", "never") == Outcome(
        1, "", f"error: {told}\n"
    )


def shown(*rows: Row, **more: Any) -> str:
    out = io.StringIO()
    show_comparison(Console(file=out, width=200), Comparison([], list(rows), more.get("path", []), None))
    return out.getvalue()


def row(method: str = "lm_random", budget: int = 5, kind: str = "synthetic", **more: Any) -> Row:
    whole = {
        **{"method": method, "title": TITLES.get(method, method), "kind": kind, "budget": budget},
        **{"accuracy": Interval(0.75, 0.7, 0.8, 3), "macro_f1": Interval(0.7, None, None, 3)},
        **{"ours_minus_this": None, "learning_rate": 3e-4, "distance": None, "log_perplexity": None},
        "ours_minus_this_at": {},
        "costs": {"seconds_texts": 90.0, "seconds_training": 30.0, "peak_bytes_texts": None},
    }
    return Row(**whole | more)


def test_a_difference_has_a_star_where_its_interval_excludes_zero() -> None:
    apart, near = Interval(0.05, 0.01, 0.09, 3), Interval(-0.05, -0.11, 0.01, 3)
    (_, first, second, third) = cells(
        shown(
            row("a", ours_minus_this=apart, accuracy=Interval(0.9, None, None, 1)),
            row("b", ours_minus_this=near, distance=0.12345, log_perplexity=4.5),
            row("[bold]c", ours_minus_this=Interval(0.0, None, None, 1), accuracy=Interval(0.1, 0.0, 0.2, 3)),
        )
    )
    assert first == ["a", "90.0", "+5.0 ± 4.0 *", "0.0003", "", "", "2.0"]
    assert second == ["b", "75.0 ± 5.0", "-5.0 ± 6.0", "0.0003", "0.1235", "4.50", "2.0"]
    assert third[:3] == ["[bold]c", "10.0 ± 10.0", "+0.0"]


def test_all_real_rows_stand_in_every_table_and_alone_in_one_of_their_own() -> None:
    less = {"5": Interval(-0.2, -0.3, -0.1, 3)}
    everything = replace(row("real_all", 0, "real", ours_minus_this_at=less), title="all real rows")
    assert [line[0] for line in cells(shown(row(), row(budget=9), everything))].count("all real rows") == 2
    told = [line[2] for line in cells(shown(row(), row(budget=9), everything)) if line[0] == "all real rows"]
    assert told == ["-20.0 ± 10.0 *", ""]
    alone = shown(everything)
    assert cells(alone)[1][:2] == ["all real rows", "75.0 ± 5.0"]
    assert "0 texts per class" not in alone


def test_the_path_is_told_step_by_step() -> None:
    points = [PathPoint(0, 0.5, 0.25, 0.9, None), PathPoint(3, 1.5, 1.25, -0.9, 2.0)]
    lines = shown(row(), path=points).splitlines()
    assert lines[-2:] == [
        "Step 0: gradient error 0.50 on all weights (cosine 0.90), 0.25 on the head",
        "Step 3: gradient error 1.50 on all weights (cosine -0.90), 1.25 on the head; weights apart 2.00 of the "
        "way",
    ]


# ---- misuse, failure, interruption


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"dev": None},
            "settings: no split to choose by is named; set dev to a split or slice of the data, as in "
            "dev=train[:10%], or to another source",
        ),
        (
            {"test": None},
            "settings: no split to judge by is named; set test to a split or slice of the data, as in "
            "test=train[:10%], or to another source",
        ),
        (
            {"methods": ["serch"]},
            "methods.0: no method 'serch'; give file:PATH for texts of your own; did you mean 'search'? (it is "
            "'serch')",
        ),
        (
            {"methods": ["search", "noise", "search"]},
            "settings: methods ['search', 'noise', 'search'] holds one twice; name each once",
        ),
        ({"budgets": [3, 3]}, "settings: budgets [3, 3] holds one twice; name each once"),
        ({"methods": []}, "settings: methods is empty; name one at least"),
        ({"budgets": []}, "settings: budgets is empty; name one at least"),
        ({"learning_rates": []}, "settings: learning_rates is empty; name one at least"),
        ({"budgets": [5, 0]}, "budgets.1: Input should be greater than or equal to 1 (it is 0)"),
        ({"learning_rates": [0]}, "learning_rates.0: Input should be greater than 0 (it is 0)"),
        ({"budgtes": [5]}, "unknown setting 'budgtes'; did you mean 'budgets'?"),
        ({"train": {"max_step": 5}}, "unknown setting 'train.max_step'; did you mean 'max_steps'?"),
        ({"generate": {"admm": {"roh": 1}}}, "unknown setting 'generate.admm.roh'; did you mean 'rho'?"),
        ({"dev": {"splt": "train"}}, "unknown setting 'dev.splt'; did you mean 'split'?"),
    ],
)
def test_settings_that_cannot_be_meant_end_with_2(
    change: dict[str, Any], told: str, run: Run, config: dict[str, Any]
) -> None:
    before = {*map(str, Path().iterdir()), "cfg.yaml"}
    assert run("compare", given(config | change)) == Outcome(2, "", f"error: {told}\n")
    assert set(map(str, Path().iterdir())) == before


def test_a_command_that_cannot_be_meant_ends_with_2(run: Run) -> None:
    usage = "Usage: gradmm compare [OPTIONS]; --help lists what there is\n"
    assert run("compare") == Outcome(2, "", f"error: missing argument 'CONFIG'\n{usage}")
    outcome = run("compare", "nope/cfg.yaml")
    told = "no settings file 'nope/cfg.yaml', for there is no folder 'nope'; mend the path"
    assert outcome == Outcome(2, "", f"error: {told}\n")


def test_files_that_are_not_there_end_with_1_before_any_work(run: Run, config: dict[str, Any]) -> None:
    for change, name in (({"test": "./tset.jsonl"}, "tset"), ({"methods": ["search", "file:./mine.csv"]}, "mine")):
        outcome = run("compare", given(config | change), "-o", "run")
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err.startswith(f"error: ./{name}.") and len(outcome.err.splitlines()) == 1
        assert not Path("run").exists()


def test_an_interrupted_comparison_ends_with_130_and_goes_on(
    run: Run, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = config | {"methods": ["lm_random", "real_random"], "budgets": [2]}
    names: list[str] = []
    own, is_interrupted = RunFolder.save_state, [False]

    def save(self: RunFolder, name: str, *more: Any) -> None:
        if "trained-real_random" in name and not is_interrupted[0]:
            is_interrupted[0] = True
            raise KeyboardInterrupt
        names.append(name)
        own(self, name, *more)

    monkeypatch.setattr(RunFolder, "save_state", save)
    outcome = run("compare", given(few), "-o", "run", "-q")
    assert outcome == Outcome(130, "", "interrupted; the same command goes on from here\n")
    assert "seed-000-trained-lm_random-2-0.01-0" in names
    assert not Path("run/results.parquet").exists()
    done = run("compare", "cfg.yaml", "-o", "run", "-q")
    assert (done.code, done.err) == (0, "")
    assert len(set(names)) == len(names)  # nothing was done twice
    assert Path("run/results.parquet").exists()
