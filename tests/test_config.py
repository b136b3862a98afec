"""Settings: what wins over what, what comes back from YAML, and what a wrong key or value is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from gradmm.config import (
    PACKAGED,
    GenerateConfig,
    RunConfig,
    TaskConfig,
    dump_config,
    load_config,
    parse_config,
)
from gradmm.data.presets import get_task
from gradmm.errors import ConfigError, TaskError

OWN_TASK = {"template": "{text} All in all:", "verbalisers": {"b": " bad", "a": " good"}}


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*args)
    return str(caught.value)


# ---- precedence


def test_set_wins_over_flag_over_file_over_default(tmp_path: Path) -> None:
    file = written(tmp_path, "seed: 1\nblock_size: 11\nadmm: {n_outer: 3, n_inner: 4, rho: 0.25}\n")
    flags = {"seed": 2, "admm.n_outer": 5, "texts_per_class": None, "block_size": None}
    config = load_config(file, flags, ["admm.n_outer=6", "admm.n_outer=7"])
    assert config.seed == 2  # flag over file
    assert config.block_size == 11  # a flag that is not given leaves the file's
    assert config.admm.n_outer == 7  # --set over flag, the last one over the first
    assert (config.admm.n_inner, config.admm.rho) == (4, 0.25)  # neighbours in the file stay
    assert config.texts_per_class == RunConfig().texts_per_class
    assert config.model == RunConfig().model


def test_nothing_given_is_the_default(tmp_path: Path) -> None:
    assert load_config() == RunConfig() == load_config(written(tmp_path, "# nothing\n"))


def test_values_of_set_are_yaml() -> None:
    sets = ["bans.substrings=[a, '=b']", "references=false", " admm.patience = 3", "initial.scale=", "seed=0x10"]
    config = load_config(None, {}, sets)
    assert config.bans.substrings == ("a", "=b")
    assert (config.references, config.admm.patience, config.initial.scale, config.seed) == (False, 3, None, 16)


def test_flags_reach_a_group_that_nothing_else_names() -> None:
    verbalisers = {"a": " x", "b": " y"}
    config = load_config(None, {"task.verbalisers": verbalisers, "task.template": "{text} So"})
    assert config.task == TaskConfig(template="{text} So", verbalisers=verbalisers)


@pytest.mark.parametrize("file", ["demo", "task: sst2\n"])
def test_a_flag_of_the_own_task_wins_over_the_ready_made_task_of_a_file(file: str, tmp_path: Path) -> None:
    path = file if file == "demo" else written(tmp_path, file)
    config = load_config(path, {"task.template": "{text} So"})
    assert config.task == TaskConfig(template="{text} So")


# ---- round trip


@pytest.mark.parametrize("name", [None, *sorted(path.stem for path in PACKAGED.glob("*.yaml"))])
def test_dump_reads_back(name: str | None, tmp_path: Path) -> None:
    config = load_config(name)
    assert load_config(written(tmp_path, dump_config(config))) == config


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("{text}\r\n", {"no": "\x00", "1": ""}, ["\x85", "\u2028", "\u2029", "\n "], 1e-3)  # line breaks, in YAML
@given(
    st.text(), st.dictionaries(st.text(), st.text()), st.lists(st.text()), st.floats(0, 1e300, exclude_min=True)
)
def test_dump_reads_back_any_text(
    tmp_path: Path, template: str, verbalisers: dict[str, str], bans: list[str], rho: float
) -> None:
    tree = {"task": {"template": template, "verbalisers": verbalisers}, "bans": {"substrings": bans}}
    config = parse_config({**tree, "admm": {"rho": rho}})
    assert load_config(written(tmp_path, dump_config(config))) == config


def test_generate_config_is_the_run_without_model_data_and_task() -> None:
    run = load_config(None, {"seed": 3, "admm.rho": 0.5, "data.dataset": "demo"})
    part = run.generate_config()
    assert type(part) is GenerateConfig
    assert part.model_dump() == run.model_dump(exclude={"model", "data", "task"})


# ---- unknown keys

TYPOS = [
    ("txts_per_class", "texts_per_class"),
    ("model.model_name", "model_name_or_path"),
    ("data.text_colum", "text_column"),
    ("task.verbalizers", "verbalisers"),
    ("distance.nam", "name"),
    ("admm.learning_rat", "learning_rate"),
    ("projection.nearnes", "nearness"),
    ("initial.sorce", "source"),
    ("lengths.max_token", "max_tokens"),
    ("bans.english", "english_only"),
    ("space.map", "maps"),
    ("shrinkage.weights", "weight"),
    ("pool.file", "files"),
    ("writer.round", "rounds"),
    ("privacy.epsilon", "target_epsilon"),
    ("label_check.min_probabilty", "min_probability"),
    ("selection.exchanges", "exchange"),
    ("refinement.evaluation", "evaluations"),
]


def test_the_typos_are_of_every_group() -> None:
    groups = {name for name in RunConfig.model_fields if isinstance(getattr(RunConfig(), name), BaseModel)}
    assert {key.split(".")[0] for key, _ in TYPOS if "." in key} == {*groups, "task", "privacy"}


@pytest.mark.parametrize(("key", "meant"), TYPOS)
@pytest.mark.parametrize("given_in", ["file", "flag", "set"])
def test_an_unknown_key_names_the_nearest(key: str, meant: str, given_in: str, tmp_path: Path) -> None:
    *group, leaf = key.split(".")
    tree = {group[0]: {leaf: 1}} if group else {leaf: 1}
    args = {
        "file": (written(tmp_path, json.dumps(tree)),),
        "flag": (None, {key: 1}),
        "set": (None, {}, [f"{key}=1"]),
    }
    assert refusal(*args[given_in]) == f"unknown setting {key!r}; did you mean {meant!r}?"


def test_an_unknown_key_that_is_near_to_none_lists_them(tmp_path: Path) -> None:
    known = "; known: bias, classes, name, tag_factor"
    assert refusal(None, {}, ["distance.zzz=1"]) == "unknown setting 'distance.zzz'" + known
    assert refusal(written(tmp_path, "1: 2")).startswith("unknown setting '1'; known: admm, ")


# ---- wrong values


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("admm.rho=x", "Input should be a valid number, unable to parse string as a number (it is 'x')"),
        ("admm.rho=-1", "Input should be greater than 0 (it is -1)"),
        ("admm.rho=.nan", "Input should be a finite number (it is nan)"),
        ("admm.order=zfirst", "Input should be 'x_first' or 'z_first' (it is 'zfirst')"),
        ("texts_per_class=0", "give a whole number of at least 1, or one for each label name (it is 0)"),
        ("initial.top_p=1.5", "Input should be less than or equal to 1 (it is 1.5)"),
        ("model.device=1", "Input should be a valid string (it is 1)"),
        ("admm=3", "Input should be a group of settings by name (it is 3)"),
        ("task.template=1", "Input should be a valid string (it is 1)"),
        ("task.verbalisers.a=1", "Input should be a valid string (it is 1)"),
    ],
)
def test_a_wrong_value_names_key_and_value(setting: str, message: str) -> None:
    assert refusal(None, {}, [setting]) == f"{setting.split('=')[0]}: {message}"


@pytest.mark.parametrize("value", [0, -1])
def test_a_gradient_cannot_be_clipped_to_less_than_nothing(value: int) -> None:
    assert refusal(None, {}, [f"admm.max_grad_norm={value}"]).startswith("admm.max_grad_norm: ")


def test_every_wrong_value_is_told_at_once() -> None:
    told = refusal(None, {}, ["admm.rho=-1", "lengths.min_tokens=50", "lengths.max_tokens=32"])
    assert told.splitlines() == [
        "admm.rho: Input should be greater than 0 (it is -1)",
        "lengths: min_tokens 50 exceeds max_tokens 32",
    ]


def test_set_needs_an_equals_sign() -> None:
    assert refusal(None, {}, ["admm.rho"]) == "--set 'admm.rho' has no '='; write it as admm.rho=0.5"


def test_set_needs_yaml() -> None:
    assert refusal(None, {}, ["bans.substrings=[a"]).startswith("--set 'bans.substrings=[a'")


def test_a_value_has_no_settings_inside() -> None:
    told = refusal(None, {}, ["admm.rho=1", "admm.rho.x=1"])
    assert told == "'admm.rho.x': 'rho' is a value, not a group of settings"


# ---- files


def test_a_file_must_hold_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for text, kind in (("- a", "list"), ("3", "int"), ("word", "str")):
        told = f"{file}: holds {kind} where a mapping of settings is needed; write it as 'seed: 1'"
        assert refusal(written(tmp_path, text)) == told


@pytest.mark.parametrize("content", [b"a: [", b"a: \xff\xfe"])
def test_a_file_must_be_yaml(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    assert refusal(file).startswith(f"{file}: not YAML: ")


@pytest.mark.parametrize(
    ("name", "near"),
    [("papr", "did you mean 'paper'?"), ("dmo.yaml", "did you mean 'demo'?"), ("zzz", "known: demo, paper")],
)
def test_a_missing_file_names_the_nearest_that_ships(
    name: str, near: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(name).startswith(f"no settings file {name!r}; {near}")


def test_a_packaged_name_in_a_folder_is_a_path(tmp_path: Path) -> None:
    assert refusal(tmp_path / "paper").startswith(f"no settings file {str(tmp_path / 'paper')!r}")


def test_a_file_of_ones_own_hides_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper.yaml").write_text("seed: 77")
    assert load_config("paper.yaml").seed == 77


def test_the_papers_settings() -> None:
    config = load_config("paper")
    admm = config.admm
    assert (admm.n_outer, admm.n_inner, admm.learning_rate, admm.order) == (30, 50, 0.008, "z_first")
    assert (admm.rho, admm.rho_unit, admm.rho_schedule, admm.dual_step) == (0.1, "absolute", "fixed", 1.0)
    assert (admm.max_grad_norm, admm.clip) == (1.0, "block")
    assert (admm.relative_tolerance, admm.absolute_tolerance, admm.patience) == (0, 0, None)
    assert (config.distance.name, config.distance.bias) == ("cosine", "separate")
    assert (config.projection.order, config.projection.k) == ("nearest_then_probable", 200)
    assert (config.texts_per_class, config.block_size) == (100, 10)
    assert (config.initial.source, config.initial.candidates, config.initial.scale) == ("random", 500, 1.4)


# ---- the task over the data's classes


def test_own_task_follows_the_order_of_the_datas_classes() -> None:
    task = TaskConfig(**OWN_TASK, instructions={"b": "Worse:", "a": "Better:"}).resolve(["a", "b"])
    assert (task.label_names, task.template) == (("a", "b"), "{text} All in all:")
    assert (task.verbalisers, task.instructions) == ((" good", " bad"), ("Better:", "Worse:"))


def test_own_task_is_made_from_the_label_names() -> None:
    task = RunConfig(task=TaskConfig()).resolve_task(["World", "Sci/Tech"])
    assert (task.verbalisers, task.instructions) == ((" World", " Sci/Tech"), ())


@pytest.mark.parametrize("what", ["verbalisers", "instructions"])
@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["a", "c"]])
def test_own_task_is_for_the_datas_classes(what: str, names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        TaskConfig(**{what: {"b": " x", "a": " y"}}).resolve(names)
    expected = f"task.{what} are for ['a', 'b'] but the data's classes are {names}; give one for each"
    assert str(caught.value) == expected


def test_a_ready_made_task_is_taken_by_name() -> None:
    assert RunConfig(task="trec").resolve_task(["whatever"]) == get_task("trec")
    with pytest.raises(TaskError, match=r"^no ready-made task 'sst3' \(or give .*\); did you mean 'sst2'\?$"):
        RunConfig(task="sst3").resolve_task(["negative", "positive"])


# ---- how many texts


def test_texts_per_class_are_equal_listed_or_proportional() -> None:
    names, rows = ("sadness", "joy", "fear"), (60, 30, 10)
    assert GenerateConfig(texts_per_class=4).count_texts(names) == (4, 4, 4)
    listed = GenerateConfig(texts_per_class={"joy": 2, "fear": 1, "sadness": 7})
    assert listed.count_texts(names, rows) == (7, 2, 1)
    proportional = GenerateConfig(texts_per_class=10, class_balance="proportional")
    assert proportional.count_texts(names, rows) == (18, 9, 3)


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ({"joy": 1, "feer": 1}, "texts_per_class lists 'feer', which is no class; did you mean 'fear'?"),
        ({"joy": 1}, "texts_per_class lists no number for fear; give one for every class"),
    ],
)
def test_a_list_of_texts_names_every_class(listed: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GenerateConfig(texts_per_class=listed).count_texts(("joy", "fear"))
    assert str(caught.value) == told


@pytest.mark.parametrize(
    "value", ["0", "-1", "1.5", "true", "many", "[1]", "{}", "{joy: 0}", "{joy: yes}", "null"]
)
def test_texts_per_class_are_whole_numbers(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(sets=[f"texts_per_class={value}"])
    told = "texts_per_class: give a whole number of at least 1, or one for each label name"
    assert str(caught.value).startswith(told)


def test_listed_texts_cannot_be_proportional() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(sets=["texts_per_class={joy: 1}", "class_balance=proportional"])
    told = "settings: texts_per_class lists every class's texts, so class_balance cannot be proportional"
    assert str(caught.value) == f"{told}; give one number"


def test_a_group_with_nothing_in_it_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("admm:\nmodel:\nseed: 3\n")
    assert load_config(file) == load_config(sets=["seed=3"])


@pytest.mark.parametrize("key", ["admm.learning_rate", "admm.rho", "projection.nearness", "initial.temperature"])
@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_settings_are_finite(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(sets=[f"{key}={value}"])
    assert str(caught.value).startswith(f"{key}: Input should be a")
