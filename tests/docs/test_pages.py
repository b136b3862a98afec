"""What pages say is there: links, anchors, names of the code, files and fields, messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

import gradmm
from doc_blocks import PAGES, ROOT, named
from doc_links import anchors_of, links_of, objects_of
from gradmm import errors
from gradmm.config import GenerateConfig, _group
from gradmm.data.presets import PRESETS
from gradmm.errors import GradmmError

DOCS, SOURCE = ROOT / "docs", ROOT / "src" / "gradmm"


# ---- links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: {link}"
        assert there.is_relative_to(ROOT), f"{page.name}: {link} leads out of the repository"
        if page.parent != ROOT:
            assert there.is_relative_to(DOCS), f"{page.name}: {link} leads out of the site"
        if anchor:
            assert there.suffix == ".md", f"{page.name}: {link}"
            assert anchor in anchors_of(there), f"{page.name}: no heading for {link}"


def test_links_and_anchors_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` (c)!\n\n[x [y]](one.md#two), `[no](link)` and ![z](three.svg)\n\n## Same\n\n## Same\n\n"
        "    [no](code)\n\n```text\n# no heading\n[no](fence)\n```\n\n::: gradmm.train\n"
    )
    assert links_of(page) == ["one.md#two", "three.svg"]
    assert anchors_of(page) == {"a-b-c", "same", "same_1", "gradmm.train"}


def test_every_page_stands_in_the_menu() -> None:
    def pages(nav: object) -> Iterator[str]:
        if isinstance(nav, str):
            yield nav
        else:
            assert isinstance(nav, dict | list)
            for item in nav.values() if isinstance(nav, dict) else nav:
                yield from pages(item)

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(pages(site["nav"]))
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_site_asks_no_other_host() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["theme"]["font"] is False
    assert not re.search(r"https?://(?!$)|repo_url|extra_(javascript|css)|analytics", text)


# ---- names of the code


def test_all_that_is_public_is_on_the_page_of_python() -> None:
    found = objects_of(DOCS / "api.md")
    assert len(set(found)) == len(found)
    assert set(found) == {f"gradmm.{name}" for name in gradmm.__all__}


def test_all_kinds_of_errors_are_on_the_page_of_python() -> None:
    kinds = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, GradmmError)
    }
    assert kinds - {"GradmmError"} <= named("api.md")


def test_every_group_of_settings_is_on_the_page_of_settings() -> None:
    page = DOCS / "settings.md"
    objects = set(objects_of(page))
    for name, field in GenerateConfig.model_fields.items():
        group = _group(field.annotation)
        if group is not None:
            assert name in anchors_of(page), name
            assert f"{group.__module__}.{group.__name__}" in objects or name == "privacy", name


def test_the_table_of_symbols_names_what_is_there() -> None:
    text = (DOCS / "method.md").read_text(encoding="utf-8").partition("## Symbols and code")[2]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 15
    for row in rows:
        for code in re.findall(r"`([\w.]+)`", row[3]):
            assert _is_in_code(code), f"method.md: no {code}"


def _is_in_code(name: str) -> bool:
    """A module's member, a setting, or a name somewhere."""
    *parents, last = name.split(".")
    files = [SOURCE.joinpath(*parents).with_suffix(".py")] if parents else list(SOURCE.rglob("*.py"))
    if parents and parents[0] in GenerateConfig.model_fields and not files[0].is_file():
        group = _group(GenerateConfig.model_fields[parents[0]].annotation)
        return group is not None and last in group.model_fields
    return any(last in _names_in(file) for file in files if file.is_file())


@cache
def _names_in(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return defined | {
        node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def test_the_table_to_read_is_that_of_the_demo_in_the_readme() -> None:
    tables = [re.findall(r"[┏┃┡│└].*", page.read_text()) for page in (ROOT / "README.md", DOCS / "index.md")]
    assert len(tables[0]) == 7 and tables[0] == tables[1]


def test_ready_made_tasks_are_listed() -> None:
    assert set(PRESETS) <= named("howto/own-data.md")


# ---- messages


@cache
def _messages() -> str:
    """All of the source, with literals joined that follow each other, and what is tested that it says."""
    files = [*SOURCE.rglob("*.py"), *(ROOT / "tests" / "bad_inputs").glob("bad_*.py")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted(files))
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", source)


def test_messages_are_those_of_the_program() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    parts = [part.strip(" ',`|") for row in rows for part in re.split(r"'\.\.\.'|\[\.\.\.\]|\.\.\.", row)]
    assert [part for part in parts if len(part) > 3 and part not in _messages()] == []
