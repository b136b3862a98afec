"""A push: what leaves the machine and what does not, to where, and what is said when it cannot."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard, constants
from pydantic import BaseModel

import run_folders
from gradmm import cli_push
from gradmm.config import RunConfig
from gradmm.errors import ConfigError, GradmmError, HubError, RunFolderError
from gradmm.report.card import write_card
from gradmm.report.hub import address
from gradmm.report.publish import Pushed, push
from gradmm.report.uploads import PUBLISHED, SETTINGS
from hub_stand_in import Hub, running
from run_folders import HOSTILE_LABELS, LABELS, REAL_TEXT, make_texts_run

REPO = "me/reviews"
CANARY = "kanarienvogel"
WITHOUT_LEDGER = set(PUBLISHED) - {"privacy.json"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, with the client online, without a token of the user's and without Xet."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_ofatest")
    huggingface_hub.close_session()
    with running() as stand_in:
        yield stand_in
    huggingface_hub.close_session()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> Any:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def sent(hub: Hub, folder: Path, **options: Any) -> Pushed:
    return push(folder, REPO, endpoint=hub.endpoint, **options)


def unpacked(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def with_canaries(path: Path) -> Path:
    """A run that has the word wherever something stands that has to stay: paths, prompts, rows, words, log."""
    folder = make_texts_run(
        path,
        config={
            "model": {"model_name_or_path": f"/opt/{CANARY}/tiny", "revision": None},
            "data": {"dataset": f"/home/{CANARY}/train.csv", "split": "train"},
            "pool": {"files": [f"~/{CANARY}/more.jsonl"], "texts_per_text": 3},
            "writer": {"files": [f"~/{CANARY}/read.jsonl"]},
            "task": {
                "template": "{text} It was",
                "verbalisers": dict(zip(LABELS, (" bad", " great"), strict=True)),
                "instructions": dict.fromkeys(LABELS, f"Like this: {CANARY}"),
            },
            "notes": CANARY,
        },
    )
    words = [{"word": CANARY, "synthetic": 0.01, "reference": 0.02}]
    metrics = json.loads((folder / "metrics.json").read_text())
    found, drawn = metrics["search"], metrics["figures"]
    drawn["nearest"] = [{"row": 0, "text": f"A row, {CANARY}.", "overlap": 0.4}]
    drawn["words"] = {"reference": "real", "more": words, "fewer": words}
    _put(folder / "metrics.json", "figures", drawn)
    chosen = {"selected_texts": [[CANARY] for _ in LABELS]}
    _put(folder / "metrics.json", "search", [own | chosen for own in found])
    _put(folder / "metrics.json", "notes", CANARY)
    _put(folder / "environment.json", "platform", f"Linux-{CANARY}")
    _put(folder / "fingerprint.json", "data", CANARY)
    data = folder / "data" / "synthetic.parquet"
    table = pq.read_table(data)
    source = pa.array([f"/home/{CANARY}/more.jsonl+refined"] * table.num_rows)
    at = table.schema.get_field_index("source")
    pq.write_table(table.set_column(at, table.schema.field(at), source), data)
    (folder / "data" / "synthetic.jsonl").write_text(CANARY)
    _reseal(folder)
    (folder / "run.log").write_text(f"12:00 {CANARY}\n")
    return folder


def _put(path: Path, key: str, value: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def _reseal(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    run_folders.write_sums(folder)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("private", [True, False])
def test_it_sends_these_files_and_no_others(hub: Hub, tmp_path: Path, large: bool, private: bool) -> None:
    hub.large = large
    folder = make_texts_run(tmp_path / "run", private=private)
    done = sent(hub, folder)
    assert set(hub.files) == (set(PUBLISHED) if private else WITHOUT_LEDGER)
    assert hub.files == {upload.name: upload.content for upload in done.uploads}
    assert hub.commits == 1
    for name in ("data/synthetic.parquet", *(["privacy.json"] if private else [])):
        assert hub.files[name] == (folder / name).read_bytes()
    assert done.url == f"{hub.endpoint}/datasets/{REPO}"
    assert done.commit_url == f"{done.url}/commit/{'1' * 40}"
    assert any("/lfs/" in request.path for request in hub.requests) == large


def test_a_repository_is_private_unless_asked_otherwise(hub: Hub, tmp_path: Path) -> None:
    folder = make_texts_run(tmp_path / "run")
    assert sent(hub, folder).private
    assert hub.repos == {REPO: True}
    assert sent(hub, folder, private=False).private  # which was there, and stays as it is
    hub.repos.clear()
    assert not sent(hub, folder, private=False).private
    assert hub.repos == {REPO: False}


def test_a_public_repository_that_is_there_is_refused(hub: Hub, tmp_path: Path) -> None:
    """The client would leave it public, and say nothing."""
    hub.repos[REPO] = False
    folder = make_texts_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"{REPO} is there already and is public; give --public"):
        sent(hub, folder)
    assert not hub.files
    assert "A dull film" not in hub.sent()
    assert not sent(hub, folder, private=False).private


def test_the_ledger_of_another_run_goes(hub: Hub, tmp_path: Path) -> None:
    sent(hub, make_texts_run(tmp_path / "one", private=True))
    hub.files["NOTES.md"] = b"not ours"
    sent(hub, make_texts_run(tmp_path / "other"))
    assert set(hub.files) == WITHOUT_LEDGER | {"NOTES.md"}


def test_nothing_of_the_rows_and_of_the_machine_leaves(hub: Hub, tmp_path: Path) -> None:
    folder = with_canaries(tmp_path / CANARY)
    sent(hub, folder)
    everything = hub.sent()
    assert "It was" in everything  # what is in base64 is looked at too
    assert CANARY not in everything
    assert str(tmp_path) not in everything
    assert CANARY.encode() not in b"".join(hub.files.values())
    unpacked(hub.files, tmp_path / "there")
    rows = pq.read_table(tmp_path / "there" / "data" / "synthetic.parquet")
    assert set(rows.column("source").to_pylist()) == {"more.jsonl+refined"}
    assert rows.drop(["source"]).equals(pq.read_table(folder / "data" / "synthetic.parquet").drop(["source"]))
    settings = yaml.safe_load(hub.files["config.yaml"])
    assert (settings["model"]["model_name_or_path"], settings["data"]["dataset"]) == ("tiny", "train.csv")
    assert settings["pool"]["files"] == ["more.jsonl"]
    assert settings["writer"]["files"] == ["read.jsonl"]
    assert set(settings["task"]) == {"template", "verbalisers"}


def test_real_rows_stay_here(hub: Hub, tmp_path: Path) -> None:
    sent(hub, make_texts_run(tmp_path / "run"))
    assert REAL_TEXT in (tmp_path / "run" / "metrics.json").read_text()
    assert REAL_TEXT not in hub.sent()


@pytest.mark.parametrize("changes", [{}, {"private": True}, {"hostile": True}])
def test_what_went_up_can_be_loaded(hub: Hub, tmp_path: Path, changes: dict[str, bool]) -> None:
    sent(hub, make_texts_run(tmp_path / "run", **changes))
    folder = unpacked(hub.files, tmp_path / "there")
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert tuple(rows.features["label"].names) == (HOSTILE_LABELS if "hostile" in changes else LABELS)
    assert (
        rows["text"] == pq.read_table(tmp_path / "run" / "data" / "synthetic.parquet").column("text").to_pylist()
    )
    assert DatasetCard((folder / "README.md").read_text(encoding="utf-8")).data.pretty_name


def test_the_card_that_somebody_edited_goes_up(hub: Hub, tmp_path: Path) -> None:
    folder = make_texts_run(tmp_path / "run")
    path = write_card(folder)
    sent(hub, folder)
    assert f'load_dataset("{REPO}"' in hub.files["README.md"].decode()  # nobody had: it is made anew
    edited = path.read_text(encoding="utf-8").replace("license: unknown", "license: mit")
    path.write_text(edited, encoding="utf-8")
    sent(hub, folder)
    assert hub.files["README.md"].decode() == edited


def test_the_token_and_the_address_are_the_clients(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)  # HF_ENDPOINT, which the client reads once
    assert address(None) == hub.endpoint
    folder = make_texts_run(tmp_path / "run")
    push(folder, REPO)
    assert hub.commits == 1
    push(folder, REPO, token="hf_another")
    tokens = [request.headers.get("authorization") for request in hub.requests if "/commit/" in request.path]
    assert tokens == ["Bearer hf_ofatest", "Bearer hf_another"]


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "hf auth login"),
        (403, "may not write to 'me'"),
        (404, "mind its spelling"),
        (429, "wait a while"),
        (500, "a fault of the Hub"),
        (418, "mend what it names"),
    ],
)
@pytest.mark.parametrize("place", ["/api/repos/create", "/commit/"])
def test_a_refusal_names_the_repository_and_the_remedy(
    hub: Hub, tmp_path: Path, status: int, remedy: str, place: str
) -> None:
    hub.answers[place] = (status, '{"error": "said the server\\u001b[2J"}')
    with pytest.raises(HubError) as caught:
        sent(hub, make_texts_run(tmp_path / "run"))
    told = str(caught.value)
    assert all(part in told for part in (REPO, hub.endpoint, str(status), remedy))
    assert told.isprintable()
    assert "hf_ofatest" not in told
    assert (caught.value.exit_code, hub.commits) == (1, 0)


def test_a_refused_large_file_is_a_refusal(hub: Hub, tmp_path: Path) -> None:
    hub.answers["/store/"] = (403, "{}")
    with pytest.raises(HubError, match=rf"{REPO} .* answered 403.*may not write"):
        sent(hub, make_texts_run(tmp_path / "run"))
    assert hub.commits == 0


def test_a_page_that_is_no_hub(hub: Hub, tmp_path: Path) -> None:
    hub.answers["/"] = (200, "<html>Please log in to this network</html>")
    with pytest.raises(HubError, match=f"{REPO} .* see that {hub.endpoint} is a Hub"):
        sent(hub, make_texts_run(tmp_path / "run"))


def test_no_network(hub: Hub, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(HubError, match=f"{REPO} .*{nobody} is not reached.*see to the network"):
        push(make_texts_run(tmp_path / "run"), REPO, endpoint=nobody)


@pytest.mark.usefixtures("no_network")
def test_a_dry_run_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = make_texts_run(tmp_path / "run", private=True)
    before = sorted(path for path in folder.rglob("*"))
    done = push(folder, REPO, dry_run=True, endpoint="https://hub.invalid/")
    assert (done.url, done.commit_url, done.private) == (f"https://hub.invalid/datasets/{REPO}", None, True)
    assert {upload.name for upload in done.uploads} == set(PUBLISHED)
    assert sorted(path for path in folder.rglob("*")) == before


@pytest.mark.usefixtures("no_network")
def test_offline_nothing_is_tried(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"HF_HUB_OFFLINE is set, so nothing can be pushed to {REPO}; unset it"):
        push(tmp_path / "none", REPO)
    assert push(make_texts_run(tmp_path / "run"), REPO, dry_run=True).uploads


@pytest.mark.parametrize("address", ["hub", "ftp://hub", "http://", ""])
def test_an_address_that_is_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        push(tmp_path / "none", REPO, endpoint=address)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "reviews",
            "datasets/me/reviews",
            "https://huggingface.co/datasets/me/reviews",
            "",
            "/",
            "me/",
            "/reviews",
        ),
        *(
            "me/re views",
            "me/a--b",
            "me/a..b",
            "me/a.git",
            "me/-a",
            "me/a.",
            "me/\u202eswap",
            "../x",
            "me/" + "a" * 97,
        ),
    ],
)
def test_a_bad_name_of_a_repository(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="give NAMESPACE/NAME"):
        push(make_texts_run(tmp_path / "run"), name, dry_run=True)


@pytest.mark.parametrize("name", ["me/reviews", "Org-1/a_b.c-d", "me/" + "a" * 96])
def test_a_name_is_what_the_client_takes(tmp_path: Path, name: str) -> None:
    huggingface_hub.HfApi(endpoint="https://hub.invalid")  # the client is there
    assert push(make_texts_run(tmp_path / "run"), name, dry_run=True).url.endswith(name)


def test_settings_that_are_published_were_looked_at() -> None:
    """A new one, or one that takes any words, may hold a path or a row: decide in `uploads`, then list it here."""
    assert set(SETTINGS) == set(RunConfig.model_fields)
    assert set(_free_words(RunConfig)) == {
        *("model.model_name_or_path", "data.dataset", "task.instructions"),  # cut or left out
        *("pool.files", "writer.files"),
        *("model.revision", "model.device", "model.attn_implementation", "data.name", "data.split"),
        *("data.text_column", "data.label_column", "data.label_names", "data.classes"),
        *("texts_per_class", "privacy.public_counts", "bans.substrings", "writer.lora.target_modules"),
        *("task", "task.template", "task.verbalisers"),
        "pool.forms",  # refused unless they are names that we gave
    }


def _free_words(model: type[BaseModel], where: str = "") -> Iterator[str]:
    for name, known in model.model_fields.items():
        parts = (known.annotation, *getattr(known.annotation, "__args__", ()))
        for part in parts:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _free_words(part, f"{where}{name}.")
        if "str" in str(known.annotation).replace("<class 'str'>", "str").split("Literal")[0]:
            yield where + name


def test_the_command_says_what_goes_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_texts_run(tmp_path / "run", private=True)
    cli_push.push(folder, REPO, public=False, dry_run=True)
    told = capsys.readouterr().out
    assert all(name in told for name in PUBLISHED)
    assert f"{(folder / 'data' / 'synthetic.parquet').stat().st_size:,} bytes" in told
    assert "Nothing was sent." in told
    assert "private: you alone see it" in told


def test_the_command_pushes(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    cli_push.push(make_texts_run(tmp_path / "run"), REPO, public=True, dry_run=False)
    assert f"It is at {hub.endpoint}/datasets/{REPO} (public: everybody sees it)." in capsys.readouterr().out
    assert hub.repos == {REPO: False}


def test_figures_that_cannot_be_shown(tmp_path: Path) -> None:
    folder = make_texts_run(tmp_path / "run", metrics={"search": [{}, {}]})
    with pytest.raises(RunFolderError, match=f"{folder} holds figures that cannot be shown"):
        push(folder, REPO, dry_run=True)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    with pytest.raises(GradmmError, match="give that of `gradmm generate`"):
        push(tmp_path, REPO, dry_run=True)
