"""Settings of private runs: their defaults, what is refused and why, and the command line."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from command_line import Run
from gradmm.comparison.config import CompareConfig
from gradmm.config import GenerateConfig, RunConfig, dump_config, load_config, parse_settings
from gradmm.data.sources import load_data
from gradmm.errors import ConfigError, NonFiniteError
from gradmm.gradients.private_sums import PrivateAccumulator
from gradmm.gradients.private_target import STATE
from gradmm.gradients.spaces import LinearMap, Space, SpaceConfig
from gradmm.pipeline import generate
from gradmm.privacy.verification import verify
from gradmm.progress import Reporter, log
from gradmm.public_text import PublicText
from gradmm.reporters import make_reporter
from gradmm.search import Search
from private_tools import BUDGET, COMMAND, FEW, PRIVACY, RELATION, ROWS, config, make
from run_tools import Idle

SMALL = ("verbaliser", "contrasts", "whitened")

# ---- settings


def test_private_defaults_give_way_to_what_is_given() -> None:
    private = config(space={"rank": 8})
    assert (private.space, private.references) == (SpaceConfig(maps=SMALL, rank=8), "lm")
    assert config(space={"maps": []}).space.maps == ()
    assert config(space=SpaceConfig(maps=("sketch",))).space.maps == ("sketch",)
    assert config(space=SpaceConfig(rank=8)).space == private.space
    for whole in ({"loss": "vocabulary"}, SpaceConfig(loss="vocabulary")):  # whose gradients have no contrasts
        assert config(space=whole).space.maps == ("verbaliser", "whitened")
    assert config(references=False).references is False
    assert config(writer={"rounds": 2}).tilts and not private.tilts, "whose writer has one round"
    plain = GenerateConfig()
    assert (plain.space, plain.references, plain.privacy) == (SpaceConfig(), True, None)
    assert plain.space == private.space.model_copy(update={"maps": ("whitened",), "rank": 64}), "but for these"
    assert "privacy" not in plain.model_dump(), "in YAML, null would be read as a group that is empty"


def test_private_settings_read_back(tmp_path: Path) -> None:
    settings = load_config(None, {f"privacy.{key}": value for key, value in PRIVACY.items()})
    (tmp_path / "run.yaml").write_text(dump_config(settings))
    assert load_config(tmp_path / "run.yaml") == settings
    assert settings.generate_config().privacy == settings.privacy


EMPTY = "privacy has nothing in it; give its settings, or leave it out, and then there is no privacy"
OTHERS = "one row more or less would change which others are taken; save those rows as a file and give that"


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (
            ["references=true"],
            "settings: references is true, which measures real rows, and metrics.json would hold the figures "
            "without any noise; take references: lm (the LM's samples alone, the default with privacy) or "
            "false, and compare with real rows apart, by `gradmm compare` or `gradmm evaluate`, whose output is "
            "not private",
        ),
        (
            ["class_balance=proportional"],
            "settings: class_balance is 'proportional', and how many real rows each class has would show in the "
            "result; give privacy.public_counts (which then are public), list texts_per_class, or take "
            "class_balance: equal",
        ),
        (
            ["pool.files=[a.csv, b]"],
            "settings: pool.files brings texts of a.csv, b, which may stand in the result word for word; set "
            "privacy.files_are_public to true if they have nothing to do with the real rows, else leave them out",
        ),
        (
            ["writer.files=[a.csv, b]"],
            "settings: writer.files brings texts of a.csv, b, which may stand in the result word for word; set "
            "privacy.files_are_public to true if they have nothing to do with the real rows, else leave them out",
        ),
        (
            ["data.max_rows_per_class=50"],
            f"settings: data.max_rows_per_class is 50, which draws from the real rows: {OTHERS}",
        ),
        (
            ["data.split=train[:10%]"],
            f"settings: data.split is 'train[:10%]', a slice of the real rows: {OTHERS}",
        ),
        (
            ["task.template='{text} So'"],
            "settings: task has no names of classes, so they would be those that stand in the real rows; give "
            "task.verbalisers (--verbaliser), or data.label_names or data.classes",
        ),
        (["privacy="], EMPTY),
        (["privacy=null"], EMPTY),
    ],
)
def test_what_would_look_at_real_rows_is_refused(sets: list[str], told: str) -> None:
    given = {f"privacy.{key}": value for key, value in PRIVACY.items()}
    with pytest.raises(ConfigError) as caught:
        load_config(None, given, sets)
    assert str(caught.value) == told


def test_an_empty_group_in_a_file_is_refused_and_filled_by_flags(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("seed: 1\nprivacy:\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml")
    assert str(caught.value) == EMPTY
    given = {f"privacy.{key}": value for key, value in PRIVACY.items()}
    assert load_config(tmp_path / "run.yaml", given).privacy is not None


def test_what_is_public_may_be_used() -> None:
    counts = {key: value for key, value in PRIVACY.items() if key != "num_rows"}
    counts["public_counts"] = {"positive": 300, "negative": 100}
    settings = config(class_balance="proportional", privacy=counts)
    assert settings.count_texts(("negative", "positive"), [7, 7]) == (1, 3), "not by the real rows"
    with pytest.raises(ConfigError, match="public_counts lists 'negative', which is no class"):
        settings.count_texts(("bad", "positive"))
    assert config(writer={"files": ["a.csv"]}, privacy=PRIVACY | {"files_are_public": True})
    assert config(pool={"files": ["a.csv"]}, privacy=PRIVACY | {"files_are_public": True})
    names = {"task": {"template": "{text} So"}, "data": {"label_names": ["a", "b"]}, "privacy": PRIVACY}
    assert parse_settings(RunConfig, names).privacy is not None


@pytest.mark.parametrize("group", ["pool", "writer"])
def test_the_real_rows_are_no_public_file(tiny_lm: Any, tmp_path: Path, group: str) -> None:
    lines = (json.dumps({"text": text, "label": ("negative", "positive")[label]}) for text, label in FEW)
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    files = {"files": [str(tmp_path / "mine.jsonl")]}
    with pytest.raises(ConfigError) as caught:
        make(
            tiny_lm("gpt2"),
            load_data(tmp_path / "mine.jsonl"),
            tmp_path / "run",
            **{group: files},
            privacy=PRIVACY | {"files_are_public": True},
        )
    assert str(caught.value) == f"{group}.files has {files['files'][0]}, which holds the real rows; leave it out"
    assert not (tmp_path / "run").exists()


def test_a_private_run_needs_a_folder_for_its_ledger(tiny_lm: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        generate(tiny_lm("gpt2"), "sst2", FEW, config(), reporter=Idle())
    assert str(caught.value) == (
        "a private run has a ledger of what it spends, and output_dir is None, so nothing would keep it; give a "
        "folder for the run"
    )


def test_settings_that_were_changed_in_python_are_looked_at_again(tiny_lm: Any, tmp_path: Path) -> None:
    settings = GenerateConfig().model_copy(update={"privacy": config().privacy})
    with pytest.raises(ConfigError, match="references is true, which measures real rows"):
        generate(tiny_lm("gpt2"), "sst2", FEW, settings, tmp_path / "run")


def test_a_comparison_is_not_private() -> None:
    tree = {"data": {"dataset": "demo"}, "dev": "dev.csv", "test": "test.csv", "generate": {"privacy": PRIVACY}}
    with pytest.raises(ConfigError, match=r"generate\.privacy is not used by a comparison; leave it out"):
        parse_settings(CompareConfig, tree)


def test_a_model_whose_gradients_are_not_finite_is_told_by_public_text(
    tiny_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real rows it would be silent."""
    real = PublicText.factors

    def broken(public: PublicText, *given: Any) -> Any:
        parts = real(public, *given)
        parts[0][0].r_KJV.mul_(float("nan"))
        return parts

    monkeypatch.setattr(PublicText, "fit_space", lambda public, texts: Space([LinearMap()]))
    monkeypatch.setattr(PublicText, "factors", broken)
    with pytest.raises(NonFiniteError, match=r"a gradient of a text that the LM wrote is not finite"):
        make(tiny_lm("gpt2"), FEW, tmp_path / "run", privacy=PRIVACY | {"max_grad_norm": 0.25})
    assert verify(tmp_path / "run").spends == ()


# ---- the command line


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    lines = (json.dumps({"text": text, "label": ("negative", "positive")[label]}) for text, label in FEW)
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    return tmp_path / "mine.jsonl"


@pytest.mark.usefixtures("own_folder")
def test_from_the_command_line_to_a_verified_ledger(run: Run, tiny_folder: Path, mine: Path) -> None:
    made = ("-m", tiny_folder, "-d", mine)
    planned = run("doctor", *COMMAND, *made)
    assert planned.code == 0
    assert re.search(
        r"  ok  privacy +Plan: target with noise multiplier \d\.\d{4} \(100% of the budget\)", planned.out
    )
    assert "note  privacy      2,000 rows are said to be public, and there are 8" in planned.out
    assert "a private run cuts rows of more than" in planned.out
    done = run("generate", *COMMAND, *made, "-o", "run")
    assert done.code == 0
    assert "How close to the released gradients, how readable" in done.out
    assert "Private: epsilon 2 at delta 1e-05 (add_or_remove_one, per row). Distances are to what was" in done.out
    assert re.search(
        r"^Promise: .*^Plan: .*^pool: .*^On texts that the LM wrote", done.err, re.DOTALL | re.MULTILINE
    )
    assert run("privacy", "verify", "run").code == 0
    again = run("generate", "-c", "run/config.yaml", *made, "-o", "other")
    assert again.code == 0, "its settings read back"
    assert Path("run/data/synthetic.jsonl").read_bytes() != Path("other/data/synthetic.jsonl").read_bytes()


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            BUDGET,
            "error: privacy: neighboring_relation is missing, and what epsilon promises depends on it; choose",
        ),
        ([*RELATION, "--epsilon", "2"], "error: privacy: target_delta is missing: the probability with which"),
        ([*RELATION, "--delta", "1e-5"], "error: privacy: target_epsilon is missing: the whole budget"),
        ([*RELATION, *BUDGET[:4]], "error: privacy: count is 'public', and no number of rows is; give num_rows"),
        (
            [*RELATION, *BUDGET, "--class-balance", "proportional"],
            "error: settings: class_balance is 'proportional'",
        ),
    ],
)
def test_what_is_not_chosen_ends_with_2(run: Run, given: list[str], told: str) -> None:
    done = run("generate", "--task", "sst2", "-d", "demo", *given, "-o", "run")
    assert (done.code, done.out) == (2, "") and done.err.startswith(told)
    assert not Path("run").exists()


@pytest.mark.usefixtures("own_folder")
def test_preview_spends_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(dump_config(RunConfig.model_validate({"privacy": PRIVACY})))
    done = run("preview", "-c", tmp_path / "run.yaml", "-d", "demo")
    assert done.code == 2
    assert done.err.startswith("error: preview keeps no run folder, and so no ledger of what it would spend;")


@pytest.mark.usefixtures("own_folder")
def test_a_refused_budget_ends_with_3_and_draws_nothing(
    run: Run, tiny_folder: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    command = ["generate", *COMMAND, "-m", tiny_folder, "-d", mine, "-o", "run"]
    with monkeypatch.context() as patch:
        patch.setattr(Search, "run", interrupted)
        assert run(*command).code == 130
    Path(f"run/state/{STATE}.safetensors").unlink()
    before = Path("run/privacy.json").read_bytes()
    monkeypatch.setattr(PrivateAccumulator, "release", None)
    done = run(*command)
    assert done.code == 3
    assert done.err.startswith("error: releasing target would bring epsilon to ")
    assert (
        "target was spent before and is lost, and another draw costs as much again); nothing was drawn" in done.err
    )
    assert Path("run/privacy.json").read_bytes() == before


# ---- the screen


def test_progress_of_the_release_is_whole_percents_on_the_screen_alone(
    tiny_lm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    level, handlers = log.level, list(log.handlers)
    told = list[float]()

    class Told(Reporter):
        @contextmanager
        def stage(self, name: str, total: float, unit: str) -> Any:
            with super().stage(name, total, unit) as stage:
                yield SimpleNamespace(advance=lambda done=1, **_: told.append(done)) if name == "target" else stage

    try:
        make_reporter()
        make(tiny_lm("gpt2"), ROWS, tmp_path / "run", Told())
    finally:
        log.setLevel(level)
        log.handlers[:] = handlers
    assert sum(told) == 100 and set(told) == {2, 3}
    assert "target: 100 %\n" in capsys.readouterr().err
    assert "target:" not in (tmp_path / "run" / "run.log").read_text()
