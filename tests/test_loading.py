"""`gradmm.loading`: a model comes back from its folder, without a network, or the error says what to do."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from transformers.utils import logging as transformers_logging

from gradmm.errors import ModelError
from gradmm.models import LanguageModel, ModelConfig, load_model, model_path

LINE = torch.tensor([[5, 17, 40, 99, 3, 77, 28, 60, 14]])


def save(lm: LanguageModel, folder: Path) -> str:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def intact(tiny_lm, tmp_path_factory) -> Path:
    """A folder with a model that can be loaded."""
    return Path(save(tiny_lm("llama"), tmp_path_factory.mktemp("intact")))


# ---- loading


@pytest.mark.parametrize("kind", ["gpt2", "phi"])
def test_a_folder_gives_back_the_model(tiny_lm, tmp_path, monkeypatch, kind):
    lm, path = tiny_lm(kind), save(tiny_lm(kind), tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in (path, Path(path), "saved", "./saved", "~/saved", ModelConfig(model_name_or_path=path)):
        found = load_model(given, device="cpu")
        torch.testing.assert_close(found.model(LINE).logits, lm.model(LINE).logits)
        assert found.name == str(given if not isinstance(given, ModelConfig) else path)
        assert found.tokenizer("It was great").input_ids == lm.tokenizer("It was great").input_ids


def test_options_are_obeyed(tiny_lm, tmp_path):
    path = save(tiny_lm("llama"), tmp_path)
    lm = load_model(path, device="cpu", dtype="bfloat16", attn_implementation="eager")
    assert lm.dtype == torch.bfloat16 and lm.model.config._attn_implementation == "eager"
    assert (
        load_model(ModelConfig(model_name_or_path=path, dtype="float16"), dtype="float32").dtype == torch.float32
    )
    assert load_model(path, device="cpu").device == torch.device("cpu")


def test_a_loaded_model_is_returned_as_it_is(tiny_lm):
    assert load_model(tiny_lm("llama")) is tiny_lm("llama")


def test_the_packaged_model_needs_no_network(demo_lm):
    assert model_path("demo").endswith("assets/reviews6m") and demo_lm.name == "demo"
    assert sum(parameter.numel() for parameter in demo_lm.model.parameters()) == 6_623_232


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "~/no/such"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(ModelError) as caught:
        load_model(name)
    assert str(caught.value) == (
        f"no model folder at {name!r}; give a folder with config.json, a Hub id, or 'demo'"
    )


def test_an_encoder_decoder_is_refused(tiny_lm, tmp_path):
    config = transformers.T5Config(vocab_size=120, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path)
    first, *_, last = str(caught.value).split("\n")
    assert first.startswith(
        f"cannot load {str(tmp_path)!r} as a causal language model: Unrecognized configuration"
    )
    assert last.startswith("It is no causal LM (an encoder-decoder, a masked LM or another kind)")


def test_bert_is_refused(tiny_lm, tmp_path):
    config = transformers.BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(BertLMHeadModel\) is a masked LM"):
        load_model(tmp_path, device="cpu")


def test_a_folder_without_the_head_s_weights_is_refused(tiny_lm, tmp_path):
    """Transformers would draw a random head and go on."""
    tiny_lm("llama").model.model.save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load_model(tmp_path, device="cpu")


def test_an_unknown_device_is_named():
    with pytest.raises(ModelError) as caught:
        load_model("demo", device="tpu")
    assert str(caught.value) == "device 'tpu' is unknown to torch; try 'auto', 'cpu' or 'cuda'"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_this_machine_lacks_is_named():
    with pytest.raises(ModelError, match="device 'cuda'"):
        load_model("demo", device="cuda")


@pytest.mark.parametrize("given", ["demo", ModelConfig()])
@pytest.mark.parametrize("options", [{"devise": "cpu"}, {"dtype": "float64"}])
def test_options_that_do_not_exist_are_refused(given, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        load_model(given, **options)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_are_left_as_they_were(shown):
    before = transformers_logging.is_progress_bar_enabled()
    try:
        (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()
        for name in ("demo", "no-one/nothing"):
            with contextlib.suppress(ModelError):
                load_model(name, device="cpu")
            assert transformers_logging.is_progress_bar_enabled() == shown
    finally:
        (transformers_logging.enable_progress_bar if before else transformers_logging.disable_progress_bar)()


# ---- folders that something is wrong with


def edit(**settings: Any):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def remove(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that must never be opened")


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


OWN_CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
FAULTS = {
    "no config": (
        remove("config.json"),
        "has no config.json; give a folder that save_pretrained wrote, or a Hub id",
    ),
    "adapter": (adapter, "has no config.json but an adapter; merge the adapter into its model and save that"),
    "broken config": (write("config.json", b"{nonsense"), "config.json' is no JSON: Expecting property name"),
    "binary config": (write("config.json", bytes([255, 254, 0])), "config.json' is no JSON: 'utf-8' codec"),
    "list for config": (write("config.json", b"[]"), "config.json' holds no settings (a JSON object is needed)"),
    "no model type": (write("config.json", b"{}"), "does not know this model_type: install a newer transformers"),
    "unknown type": (edit(model_type="llama9"), "does not know this model_type: install a newer transformers"),
    "own code": (edit(model_type="mine", auto_map=OWN_CODE), "read it, then set trust_remote_code=True"),
    "impossible sizes": (edit(num_attention_heads=5, head_dim=None), "not a multiple of the number of attention"),
    "no weights": (
        remove("model.safetensors"),
        "has no weights (model.safetensors or model.safetensors.index.json)",
    ),
    "pickle": (pickled, "has weights as pickle only (pytorch_model.bin), which can run code and is never opened"),
    "damaged weights": (write("model.safetensors", b"nonsense" * 99), "The weights are damaged or cut short"),
    "empty weights": (write("model.safetensors", b""), "The weights are damaged or cut short"),
    "weights cut short": (cut_short, "The weights are damaged or cut short"),
    "other shapes": (edit(hidden_size=64, head_dim=8), "The weights have other shapes than config.json says"),
    "other vocabulary": (edit(vocab_size=130), "The weights have other shapes than config.json says"),
    "a layer too many": (edit(num_hidden_layers=3), "has no weights for model.layers.2."),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "also holds the tokenizer's files"),
    "broken tokenizer": (write("tokenizer.json", b"{"), "also holds the tokenizer's files"),
    "empty tokenizer": (write("tokenizer.json", b"{}"), "also holds the tokenizer's files"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_said(intact, tmp_path, fault):
    change, expected = FAULTS[fault]
    folder = tmp_path / "model"
    shutil.copytree(intact, folder)
    change(folder)
    with pytest.raises(ModelError) as caught:
        load_model(folder, device="cpu")
    assert expected in str(caught.value)
    assert "model" in str(caught.value)
    assert len(str(caught.value)) < 900


def test_how_a_pickle_is_converted(intact, tmp_path):
    """The remedy that the error names is one that works."""
    folder = tmp_path / "model"
    shutil.copytree(intact, folder)
    (folder / "model.safetensors").unlink()
    torch.save(
        transformers.AutoModelForCausalLM.from_pretrained(intact).state_dict(), folder / "pytorch_model.bin"
    )
    with pytest.raises(ModelError) as caught:
        load_model(folder, device="cpu")
    remedy = str(caught.value).partition("convert it once: ")[2]
    exec(remedy, {"AutoModelForCausalLM": transformers.AutoModelForCausalLM})
    assert load_model(folder, device="cpu").fingerprint() == load_model(intact, device="cpu").fingerprint()


def test_weights_that_are_not_finite_are_named(tiny_lm, tmp_path):
    path = save(tiny_lm("llama"), tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    model.save_pretrained(path)
    with pytest.raises(ModelError, match=r"has NaN or infinity in its weight model\.norm\.weight"):
        load_model(path, device="cpu")


@pytest.mark.parametrize("attention", ["nosuch", "flash_attention_2"])
def test_attention_that_cannot_be_had_is_named(intact, attention):
    with pytest.raises(ModelError) as caught:
        load_model(intact, device="cpu", attn_implementation=attention)
    assert str(caught.value).endswith(
        f"attn_implementation={attention!r} cannot be used here; leave it out, or give 'sdpa' or 'eager'."
    )


def test_a_name_that_is_not_in_the_cache_is_named():
    with pytest.raises(ModelError) as caught:
        load_model("no-one/nothing", device="cpu")
    assert "'no-one/nothing'" in str(caught.value)


def test_a_local_folder_needs_no_network(intact, monkeypatch):
    """Not even with the Hub switched on."""
    tried = []

    def refuse(*args, **options):
        tried.append(args)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for given in (intact, "demo"):
        assert load_model(given, device="cpu").vocab_size in (120, 8192)
    assert not tried
