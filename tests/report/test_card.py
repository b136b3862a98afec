"""The data set card: what the Hub reads, what people read, and what neither may find in it."""

from __future__ import annotations

import os
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel
from huggingface_hub import DatasetCard
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from gradmm.errors import RunFolderError, printable
from gradmm.report import card as cards
from gradmm.report.card import card, write_card
from gradmm.report.metadata import COLUMNS
from gradmm.report.names import code, public_name, public_source
from gradmm.report.read import Texts, read_run
from gradmm.result import make_dataset
from run_folders import HOSTILE, HOSTILE_LABELS, REAL_TEXT, TEXTS, make_comparison_run, make_texts_run

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
HOSTILE_NAMES = (
    "---",
    "null",
    "1",
    "a: b",
    "{}",
    "# x",
    "é|`\\",
    "<img src=x>",
    "\u2028\x85\x00",
    "",
    " ",
    "\n---\n",
)


def read(path: Path, **changes: Any) -> Texts:
    run = read_run(make_texts_run(path, **changes))
    assert isinstance(run, Texts)
    return run


def head(text: str) -> dict[str, Any]:
    told: dict[str, Any] = DatasetCard(text).data.to_dict()
    return told


class Page(HTMLParser):
    """The elements of a page, and what it shows."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.links: set[str] = set()
        self.shown = ""
        self._is_in_cell = False
        self.feed(MARKDOWN.render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links |= {value or "" for key, value in attrs if key in ("href", "src")}
        assert {key for key, _ in attrs} <= {"href", "style", "class"}
        if tag == "td":
            self.cells.append("")
            self._is_in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._is_in_cell = self._is_in_cell and tag != "td"

    def handle_data(self, data: str) -> None:
        self.shown += data
        if self._is_in_cell:
            self.cells[-1] += data


def body(text: str) -> Page:
    return Page(text.split("\n---\n", 1)[1])


def test_the_hub_reads_what_it_is(tmp_path: Path) -> None:
    told = head(card(read(tmp_path / "run")))
    assert told["pretty_name"] == "Synthetic texts for train.csv"
    assert told["license"] == "unknown"
    assert told["task_categories"] == ["text-classification"]
    assert told["size_categories"] == ["n<1K"]
    assert told["tags"] == ["synthetic", "gradmm", "gradient-matching"]
    assert told["configs"][0]["data_files"] == [{"split": "train", "path": "data/synthetic.parquet"}]
    assert told["dataset_info"]["splits"][0]["num_examples"] == 6
    assert "language" not in told


def test_the_language_is_told_where_it_is_known(tmp_path: Path) -> None:
    assert head(card(read(tmp_path / "run", config={"data": {"dataset": "demo"}})))["language"] == ["en"]


def test_columns_are_those_of_the_data_set() -> None:
    features = make_dataset(("no", "yes"), [[], []], (0.0, 0.0), [[], []]).features
    kinds = {
        name: "class_label" if isinstance(kind, ClassLabel) else kind.dtype for name, kind in features.items()
    }
    assert kinds == {name: kind for name, (kind, _) in COLUMNS.items()}


@pytest.mark.parametrize(
    ("rows", "size"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**5, "100K<n<1M"), (10**7, "10M<n<100M")]
)
def test_size_categories(tmp_path: Path, rows: int, size: str) -> None:
    from gradmm.report.metadata import _size

    assert _size(rows) == size


def test_names_of_classes_come_back_as_they_are(tmp_path: Path) -> None:
    names = [name for name in HOSTILE_NAMES if name]
    run = read(tmp_path / "run", labels=names, texts=[["A text."]] * len(names), metrics=_nearness(len(names)))
    text = card(run)
    features = {one["name"]: one["dtype"] for one in head(text)["dataset_info"]["features"]}
    assert list(features["label"]["class_label"]["names"].values()) == names
    cells = body(text).cells
    assert all(printable(name).strip() in [cell.strip() for cell in cells] for name in names)


def _nearness(count: int) -> dict[str, Any]:
    own = {"texts": count, "distance": 0.1, "class_distances": [0.1] * count}
    own |= {"log_perplexity": 2.0, "distinct_2": 0.9, "tokens": 9.0}
    return {"synthetic": own, "references": {}}


def test_what_was_measured_stands_there(tmp_path: Path) -> None:
    text = card(read(tmp_path / "run"))
    assert "- **Form of writing**, which all texts took: `lowercase+no_punctuation`" in text
    cells = body(text).cells
    at = cells.index("these texts")
    assert cells[at : at + 5] == ["these texts", "6", "0.0049", "2.42", "79%"]
    at = cells.index("as many real rows")
    assert cells[at : at + 5] == ["as many real rows", "6", "0.0016", "4.46", "95%"]
    assert "as many samples of the model" in cells
    at = cells.index("negative")
    assert cells[at - 1 : at + 4] == ["0", "negative", " bad", "3", "0.0049"]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    text = card(read(tmp_path / "run", hostile=True))
    assert not {char for char in text if char != "\n" and unicodedata.category(char)[0] == "C"}
    page = body(text)
    assert set(page.tags) <= {
        *("h1", "h2", "p", "ul", "li", "strong", "em", "code", "pre", "a"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    assert page.tags.count("h1") == 1
    assert page.links == {"https://arxiv.org/abs/2502.17607"}
    assert printable(HOSTILE_LABELS[0]) in page.cells
    assert printable(HOSTILE_LABELS[1]) in page.cells
    assert tuple(DatasetCard(text).data.dataset_info["features"][1]["dtype"]["class_label"]["names"].values()) == (
        HOSTILE_LABELS
    )


@given(st.text())
@example("`").via("the fence")
@example("a ``` b\\|").via("fences and bars")
@example("\\")
@example("| |")
@example("&lt;b&gt;<b>*a*</b>")
@example("@me https://example.invalid")
def test_code_shows_every_letter(text: str) -> None:
    page = Page(f"A {code(text)} in a line.\n\n| a | b |\n| - | - |\n| {code(text)} | next |\n")
    assert page.tags.count("code") == 2
    assert set(page.tags) <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert page.cells[1] == "next"
    assert " ".join(page.cells[0].split()) == " ".join(printable(text).split())
    assert page.shown.startswith("A ")
    assert printable(text).strip() in page.shown


@pytest.mark.parametrize("private", [True, False])
def test_no_row_of_any_kind_stands_there(tmp_path: Path, private: bool) -> None:
    text = card(read(tmp_path / "run", private=private))
    assert not [row for row in (REAL_TEXT, *TEXTS[0], *TEXTS[1]) if row in text]


def test_prompts_are_left_out(tmp_path: Path) -> None:
    task = {"template": "{text} It was", "verbalisers": None, "instructions": {"negative": REAL_TEXT}}
    assert REAL_TEXT not in card(read(tmp_path / "run", config={"task": task}))


def test_a_run_that_is_not_private_says_so(tmp_path: Path) -> None:
    text = card(read(tmp_path / "run"))
    assert "This data set is not private." in body(text).shown
    assert "repeat real ones in part" in text
    assert "privacy.json" not in text


def test_a_private_run_states_its_promise(tmp_path: Path) -> None:
    text = card(read(tmp_path / "run", private=True))
    assert "differential-privacy" in head(text)["tags"]
    shown = body(text).shown
    for part in (
        "epsilon 3.2255 at delta 1e-05",
        "Unit: one row",
        "add_or_remove_one: the data and the same with any",
    ):
        assert part in shown
    assert "rdp of dp-accounting 0.6.0; the budget was 4" in shown
    assert "gradmm privacy verify" in shown
    assert "not private" not in shown.lower()
    assert body(text).cells[-4:-3] == ["target"]
    assert "as many real rows" not in shown


def test_epsilon_is_not_rounded_down(tmp_path: Path) -> None:
    run = read(tmp_path / "run", private=True)
    run.metrics["privacy"]["epsilon"] = 3.22551
    assert "epsilon 3.2256" in body(card(run)).shown


def test_the_noise_of_a_test_is_no_privacy(tmp_path: Path) -> None:
    run = read(tmp_path / "run", private=True)
    run.metrics["privacy"]["is_private"] = False
    text = card(run)
    assert "differential-privacy" not in head(text)["tags"]
    assert "NOT PRIVATE" in text
    assert "differentially private" not in text


def test_paths_are_cut(tmp_path: Path) -> None:
    config = {
        "model": {"model_name_or_path": "/home/somebody/models/tiny"},
        "data": {"dataset": "C:\\Users\\somebody\\rows.csv"},
        "pool": {"files": ["~/somebody/more.jsonl"]},
        "writer": {"files": ["~/somebody/read.jsonl"]},
    }
    text = card(read(tmp_path / "somebody", config=config))
    assert "somebody" not in text
    shown = body(text).shown
    assert all(name in shown for name in ("tiny", "rows.csv", "more.jsonl", "read.jsonl"))
    assert "word for word" in shown and "has learnt and may repeat" in shown


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("demo", "demo"),
        ("gpt2", "gpt2"),
        ("microsoft/phi-1_5", "microsoft/phi-1_5"),
        ("/home/me/tiny/", "tiny"),
        ("./tiny", "tiny"),
        ("~/a/b", "b"),
        ("../rows.jsonl.gz", "rows.jsonl.gz"),
        ("private/rows.csv", "rows.csv"),
        ("a/b/c", "c"),
        ("C:\\Users\\me\\rows.csv", "rows.csv"),
        ("\\\\server\\share\\rows", "rows"),
        ("the list in memory", "the list in memory"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_public_names(name: str, public: str) -> None:
    assert public_name(name) == public


def test_a_folder_that_is_named_like_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert public_name("mine/tiny") == "mine/tiny"
    (tmp_path / "mine" / "tiny").mkdir(parents=True)
    assert public_name("mine/tiny") == "tiny"


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("lm", "lm"),
        ("writer+refined", "writer+refined"),
        ("/a/b.csv+refined", "b.csv+refined"),
        ("a/b.csv", "b.csv"),
    ],
)
def test_public_sources(source: str, public: str) -> None:
    assert public_source(source) == public


def test_the_template_of_a_ready_made_task(tmp_path: Path) -> None:
    run = read(tmp_path / "run", config={"task": "sst2"})
    task = {"label_names": ["negative", "positive"], "verbalisers": [" poor", " fine"], "template": "{text} So"}
    assert "sst2" in body(card(run)).shown
    (run.path / "fingerprint.json").write_text(f'{{"task": {task}}}'.replace("'", '"'))
    page = body(card(run))
    assert "sst2: a text stands in {text} So" in page.shown
    assert {" poor", " fine"} <= set(page.cells)


def test_it_is_written_into_the_run_folder(tmp_path: Path) -> None:
    folder = make_texts_run(tmp_path / "run")
    before = set(folder.rglob("*"))
    path = write_card(folder)
    assert path == folder / "README.md"
    assert set(folder.rglob("*")) - before == {path}
    assert path.read_text(encoding="utf-8") == card(read_run(folder))  # type: ignore[arg-type]


def test_a_card_that_was_edited_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_texts_run(tmp_path / "run")
    path = write_card(folder)
    monkeypatch.setattr(cards, "cite", lambda: ["## Another version's"])
    assert "Another version's" in write_card(folder).read_text(encoding="utf-8")  # nobody had edited it
    for edited in (path.read_text(encoding="utf-8").replace("unknown", "mit"), "My own.\n", ""):
        path.write_text(edited, encoding="utf-8")
        write_card(folder)
        assert path.read_text(encoding="utf-8") == edited


def test_a_card_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_texts_run(tmp_path / "run")
    before = write_card(folder).read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    files = set(folder.rglob("*"))
    with pytest.raises(RunFolderError, match=r"README.md cannot be written .*No space left"):
        write_card(folder)
    assert (folder / "README.md").read_bytes() == before
    assert set(folder.rglob("*")) == files


def test_a_card_that_is_no_text(tmp_path: Path) -> None:
    folder = make_texts_run(tmp_path / "run")
    (folder / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(RunFolderError, match=r"README.md cannot be read .*save it as UTF-8"):
        write_card(folder)


def test_a_comparison_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="comparison, which has no data set"):
        write_card(make_comparison_run(tmp_path / "run"))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_templates_are_text(tmp_path: Path, text: str) -> None:
    task = {"template": "{text} " + text, "verbalisers": {"negative": text, "positive": " " + text}}
    told = card(read(tmp_path / "run", config={"task": task, "data": {"dataset": text, "split": text}}))
    page = body(told)
    assert page.links == {"https://arxiv.org/abs/2502.17607"}
    assert not {"script", "img", "textarea"} & set(page.tags)
    assert printable(text).strip() in page.shown
    assert head(told)["license"] == "unknown"


@pytest.mark.parametrize(
    ("reader", "solver", "who"),
    [
        ("rows", "search", "a text *has for a copy of the model that was trained on the real rows*"),
        ("rows", "admm", "a text was *written for*"),  # which asks nobody
        ("target", "search", "a text *has by what the target knows of the classes' words and mean hidden states*"),
        ("model", "search", "a text was *written for*"),
        (None, "search", "a text was *written for*"),  # a run of before
    ],
)
def test_whose_word_a_label_is_is_told(tmp_path: Path, reader: str | None, solver: str, who: str) -> None:
    run = read(tmp_path / "run")
    run.config.update({"solver": solver} | ({} if reader is None else {"label_check": {"reader": reader}}))
    assert f"A label is the class that {who}. Nobody has checked the texts" in card(run)
