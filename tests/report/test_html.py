"""A report holds what the run folder holds, and takes all of it for text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gradmm.errors import ConfigError, RunFolderError, printable
from gradmm.report.html import write_report
from run_folders import (
    HOSTILE,
    HOSTILE_LABELS,
    LABELS,
    REAL_TEXT,
    TEXTS,
    all_rows,
    figures_of,
    history_of,
    make_comparison_run,
    make_texts_run,
    metrics_of,
    search_of,
    write_sums,
)

VOID = {"meta", "link", "input", "img", "br", "hr"}
EVERYTHING = [
    *("result", "texts", "trade-off", "history", "selection", "vocabulary", "map", "privacy", "nearest", "repeat")
]


class Page(HTMLParser):
    """Elements, attributes and text of a page, as a browser would see them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.code: dict[str, str] = {}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.code[self.open[-1]] = data
        else:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return "\n".join(self.text)

    @property
    def sections(self) -> list[str]:
        return [(one["id"] or "").split("-", 1)[-1] for one in self.all("section")]


def report(*runs: Path, **options: Any) -> Page:
    path = write_report(runs, **options)
    assert path.stat().st_size < 6_000_000
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    return {
        "open": make_texts_run(place / "open"),
        "private": make_texts_run(place / "private", private=True),
        "hostile": make_texts_run(place / "hostile", hostile=True),
        "bare": make_texts_run(place / "bare", figures=False),
        "compared": make_comparison_run(place / "compared"),
        "strange": make_comparison_run(place / "strange", budgets=(10,), hostile=True),
    }


KINDS = ["open", "private", "hostile", "bare", "compared", "strange"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_and_asks_for_nothing(folders: dict[str, Path], kind: str) -> None:
    page = report(folders[kind])
    assert page.open == []
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert page.all("html") == [{"lang": "en"}]
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset", "data", "poster", "xlink:href")
    ]
    assert all(value and value.startswith(("#", "data:,")) for value in addresses)
    assert "url(" not in page.code["style"] and "@import" not in page.code["style"]
    assert not {"img", "iframe", "object", "embed", "base", "form", "video"} & {tag for tag, _ in page.tags}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in addresses if value and value.startswith("#")} <= set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_allows_what_is_there_and_nothing_else(folders: dict[str, Path], kind: str) -> None:
    page = report(folders[kind])
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("style", "script"):
        assert len(page.all(tag)) == 1
        digest = base64.b64encode(hashlib.sha256(page.code[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    attributes = {name for _, own in page.tags for name in own}
    assert not {name for name in attributes if name.startswith("on") or name == "style"}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_that_steers_how_a_page_reads(folders: dict[str, Path], kind: str) -> None:
    source = write_report([folders[kind]]).read_text(encoding="utf-8")
    assert {char for char in source if unicodedata.category(char)[0] == "C"} == {"\n"}


def test_hostile_texts_stand_there_as_text(folders: dict[str, Path]) -> None:
    page = report(folders["hostile"])
    for text in (*HOSTILE, *HOSTILE_LABELS):
        assert printable(text) in page.words
    assert "49" not in re.findall(r"\{\{ 7 \* 7 \}\}|\b49\b", page.words)  # no template in a template
    assert not any(text in page.code["script"] for text in HOSTILE)


def test_scripts_and_styles_are_the_same_whatever_the_run_holds(folders: dict[str, Path]) -> None:
    assert report(folders["open"]).code == report(folders["hostile"]).code


# ---- what it says


def test_every_section_is_there_in_order(folders: dict[str, Path]) -> None:
    page = report(folders["open"])
    assert page.sections == EVERYTHING
    for own in TEXTS:
        for text in own:
            assert text in page.words
    assert REAL_TEXT in page.words
    assert "0.0049" in page.words and "0.0016" in page.words and "0.0259" in page.words
    assert "NOT differentially private" in page.words
    assert "took the form of writing lowercase+no_punctuation: of 2 that were tried" in page.words


@pytest.mark.parametrize(
    ("groups", "names"), [([[0, 1]], ["all classes together"]), ([[0], [1]], ["negative", "positive"])]
)
def test_candidates_are_told_by_class_and_objectives_by_what_was_matched(
    tmp_path: Path, groups: list[list[int]], names: list[str]
) -> None:
    drawn = figures_of(TEXTS) | {"history": history_of(groups)}
    run = make_texts_run(tmp_path / "run", metrics={"search": search_of(TEXTS, groups), "figures": drawn})
    page = report(run)
    lines = "\n".join(line for line in page.words.split("\n") if line.strip())
    counted = "carry their label\nrelabelled in / out\nnegative\n193\n116\n1 / 0\npositive\n192\n117\n2 / 2\n"
    assert counted in lines
    rows = [
        f"{name}\n{-4.85 - at:.2f}\n{7 + at}\n{-4.94 - at:.2f}\n{-4.97 - at:.2f}\n{9 + at}\n{400 + at}\n"
        for at, name in enumerate(names)
    ]
    assert f"sets judged\n{''.join(rows)}" in lines
    before = lines[lines.index("The selected texts, before single tokens were changed") :]
    assert before.startswith(
        "\n".join(
            [
                *("The selected texts, before single tokens were changed", "class", "text"),
                *(part for name, own in zip(LABELS, TEXTS, strict=True) for text in own for part in (name, text)),
            ]
        )
    )
    curves = [name if len(groups) > 1 else "all classes" for name in names]
    assert f"Selection: objective.\n{'; '.join(f'{name} from -4 to -4.4' for name in curves)}.\n" in lines


def test_what_a_run_did_not_keep_is_left_out(folders: dict[str, Path]) -> None:
    assert report(folders["bare"]).sections == [
        one for one in EVERYTHING if one not in ("vocabulary", "map", "nearest")
    ]


def test_a_private_run_says_what_was_promised_and_spent(folders: dict[str, Path]) -> None:
    page = report(folders["private"])
    assert "NOT differentially private" not in page.words
    for said in ("epsilon 4, delta 1e-05", "epsilon 3.2255 of 4", "add_or_remove_one", "discrete Gaussian"):
        assert said in page.words
    assert "gradients that were released" in page.words


def test_a_tests_noise_is_called_not_private(tmp_path: Path) -> None:
    told = metrics_of(TEXTS, private=True)["privacy"] | {"is_private": False}
    page = report(make_texts_run(tmp_path / "run", private=True, metrics={"privacy": told}))
    assert "NOT PRIVATE" in page.words and "are differentially private" not in page.words


def test_real_rows_in_a_private_folder_are_not_shown(tmp_path: Path) -> None:
    run = make_texts_run(tmp_path / "run", private=True, metrics={"figures": figures_of(TEXTS)})
    assert REAL_TEXT not in report(run).words


def test_a_page_for_others_has_no_real_rows_and_no_paths(tmp_path: Path) -> None:
    config = {"data": {"dataset": "/home/someone/secret/train.csv"}, "model": {"model_name_or_path": "/opt/lm"}}
    run = make_texts_run(tmp_path / "run", config=config)
    full, page = report(run), report(run, publishable=True)
    assert "/home/someone" in full.words and REAL_TEXT in full.words and "Do not publish" in full.words
    for hidden in ("/home", "secret", "/opt", REAL_TEXT, "Do not publish", "0.10%", "mean of real rows"):
        assert hidden not in page.words
    assert "train.csv" in page.words
    assert page.sections == [one for one in EVERYTHING if one != "nearest"]


def test_several_runs_stand_side_by_side(folders: dict[str, Path], tmp_path: Path) -> None:
    runs = [folders[kind] for kind in ("open", "private", "compared")]
    page = report(*runs, output=tmp_path / "all.html")
    assert page.sections[0] == "overview"
    assert page.sections.count("result") == 3
    assert "do not compare" in page.words  # one is private


def test_runs_that_are_alike_are_not_warned_about(folders: dict[str, Path], tmp_path: Path) -> None:
    page = report(folders["open"], folders["bare"], output=tmp_path / "two.html")
    assert "do not compare" not in page.words


def test_a_comparison_stars_what_is_sure(folders: dict[str, Path]) -> None:
    page = report(folders["compared"])
    assert page.sections == ["result", "budget-10", "budget-50", "budgets", "path", "trainings", "repeat"]
    stars = [cell for cell in page.text if cell.endswith(" *")]
    assert stars == ["+8.0 ± 2.0 *"] * 2
    assert page.words.count("ahead of LM samples") == 2


def test_all_real_rows_are_held_against_ours_of_every_budget(tmp_path: Path) -> None:
    sure, unsure = {"mean": -0.2, "low": -0.3, "high": -0.1, "count": 3}, {"mean": -0.1, "low": None, "high": None}
    whole = all_rows({"10": sure, "50": unsure | {"count": 1}})
    page = report(make_comparison_run(tmp_path / "new", more=[whole]))
    assert page.text.count("-20.0 ± 10.0 *") == 1 and page.text.count("-10.0") == 1
    assert page.words.count("behind all real rows") == 1
    del whole["ours_minus_this_at"]
    before = report(make_comparison_run(tmp_path / "old", more=[whole]))
    assert before.text.count("all real rows") == page.text.count("all real rows") and "-20.0" not in before.words


def test_what_no_interval_tells_of_is_not_said_to_contain_zero(tmp_path: Path) -> None:
    def page(name: str, mean: float, low: float | None, high: float | None) -> Any:
        run = make_comparison_run(tmp_path / name, budgets=(10,))
        metrics = json.loads((run / "metrics.json").read_text())
        for row in filter(lambda row: row["ours_minus_this"], metrics["rows"]):
            row["ours_minus_this"] |= {"mean": mean, "low": low, "high": high}
        (run / "metrics.json").write_text(json.dumps(metrics))
        write_sums(run)
        return report(run)

    said = "no interval of its difference from another method excludes zero"
    assert said in page("many seeds", 0.0, -0.1, 0.1).words
    assert said not in page("one seed", 0.1, None, None).words and said not in page("sure", 0.15, 0.1, 0.2).words


def test_one_budget_has_no_curve(folders: dict[str, Path]) -> None:
    assert "budgets" not in report(folders["strange"]).sections


def test_a_large_data_set_fits_and_says_what_is_left_out(tmp_path: Path) -> None:
    texts = [[f"{label} {i} " + "word " * 60 for i in range(count)] for label, count in (("a", 12_000), ("b", 5))]
    run = make_texts_run(tmp_path / "run", texts=texts, figures=False, metrics={"search": []})
    page = report(run)
    rows = [one for one in page.all("tr") if "data-class" in one]
    assert 1000 < len(rows) < 12_005
    assert sum(one["data-class"] == "1" for one in rows) == 5  # the small class is there in full
    assert f"{len(rows):,} of 12,005 texts are shown" in page.words


def test_the_same_folder_gives_the_same_bytes(folders: dict[str, Path], tmp_path: Path) -> None:
    pages = [write_report([folders["open"]], tmp_path / f"{i}.html").read_bytes() for i in range(2)]
    assert pages[0] == pages[1]


# ---- where it goes, and what it refuses


def test_the_page_stands_in_the_first_run_and_nothing_else_is_touched(tmp_path: Path) -> None:
    run = make_texts_run(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert write_report([run]) == run / "report.html"
    write_report([run])  # again, in its place
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {path for path in after if path not in before} == {run / "report.html"}
    assert all(after[path] == raw for path, raw in before.items())


def test_a_page_overwrites_no_other_kind_of_file(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.json.*ends in \.html"):
        write_report([folders["open"]], folders["open"] / "metrics.json")


def test_a_place_that_is_not_there_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="give another place"):
        write_report([folders["open"]], tmp_path / "absent" / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_no_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="no run"):
        write_report([])


@pytest.mark.parametrize(
    "broken",
    [
        {"map": {"explained": [1, 0], "points": [{"kind": "text", "label": 7, "x": 0, "y": 0, "row": 0}]}},
        {"history": [{"stage": "admm", "label": 9, "unit": "u", "quantity": "distance", "points": [[0, 1]]}]},
        {"history": [{"stage": "admm"}]},
        {"nearest": [{"row": 99, "text": "x", "overlap": 1}]},
        {"lengths": {"unit": "tokens", "edges": [0], "sets": 3}},
    ],
    ids=["label of a point", "label of a curve", "curve", "row", "lengths"],
)
def test_figures_of_another_kind_are_an_error_that_names_the_folder(tmp_path: Path, broken: Any) -> None:
    run = make_texts_run(tmp_path / "run", metrics={"figures": broken})
    with pytest.raises(RunFolderError, match="run holds figures that cannot be shown"):
        write_report([run])
    assert not (run / "report.html").exists()


def test_the_verb_prints_where_the_page_is(folders: dict[str, Path], tmp_path: Path) -> None:
    from typer import Typer
    from typer.testing import CliRunner

    from gradmm.cli_report import report as verb

    app = Typer()
    app.command()(verb)
    page = tmp_path / "page.html"
    found = CliRunner().invoke(app, [str(folders["open"]), "-o", str(page), "--publishable"])
    assert found.exit_code == 0, found.output
    assert found.output.strip() == str(page)
    assert REAL_TEXT not in page.read_text()


def test_a_report_needs_no_torch() -> None:
    code = (
        "import sys, gradmm.report.html, gradmm.cli_report\n"
        "print(*{'torch', 'transformers', 'datasets', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
