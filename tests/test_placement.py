"""`gradmm.placement`: fewer bits and several devices change how weights are held, little of what is computed."""

from __future__ import annotations

import copy
import importlib.util
import json

import pytest
import torch
import transformers
from pydantic import ValidationError

import gradmm
import matrix
import oracles
from gradmm.config import GenerateConfig
from gradmm.errors import ConfigError, ModelError
from gradmm.models import LanguageModel, ModelConfig, load_model
from gradmm.placement import is_quantised, is_spread, settled
from gradmm.training.finetune import FineTuner, TrainConfig
from gradmm.training.trainable import LoraSettings, TrainableModel

LINE = torch.tensor([[5, 17, 40, 99, 3, 77, 28, 60, 14]])
ALL = torch.arange(LINE.shape[1])[None]
SHORT = {"distribution": "uniform", "min_tokens": 3, "max_tokens": 5}
SMALL = {
    **{"texts_per_class": 2, "lengths": SHORT, "space": {"public_texts": 40}},
    **{"pool": {"texts_per_text": 5}, "refinement": {"evaluations": 4}},
}
BITS = ["load_in_8bit", "load_in_4bit"]
ROWS = [{"text": f"A {'great' if i % 2 else 'bad'} film {i}.", "label": i % 2} for i in range(12)]
WIDE = transformers.LlamaConfig(  # of 4 bits, 64 weights share a scale
    **{"vocab_size": 120, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "max_position_embeddings": 128, "tie_word_embeddings": False},
)
REMEDY = "or load it without load_in_8bit and load_in_4bit"


@pytest.fixture(scope="module")
def folder(tiny_lm, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(WIDE).save_pretrained(path)
    tiny_lm("llama").tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module", params=BITS)
def quantised(request, folder) -> LanguageModel:
    return load_model(folder, device="cpu", **{request.param: True})


def linear_layers(lm):
    return {name: m for name, m in lm.model.named_modules() if isinstance(m, torch.nn.Linear)}


def derivative(lm):
    embeds_NSE = lm.embeddings_VE[LINE].clone().requires_grad_()
    weights_D = torch.linspace(-1, 1, lm.head.weight_VD.shape[1])
    states_NLD = lm.hidden(embeds_NSE, ALL)
    (found_NSE,) = torch.autograd.grad((states_NLD.float() * weights_D).sum(), embeds_NSE)
    return states_NLD.detach(), found_NSE


# ---- fewer bits


def test_the_body_is_quantised_and_what_gradients_are_of_is_not(quantised, folder):
    plain = load_model(folder, device="cpu")
    assert is_quantised(quantised.model) and not is_quantised(plain.model)
    for name, layer in linear_layers(quantised).items():
        assert layer.weight.is_floating_point() == (name == "lm_head")
    torch.testing.assert_close(quantised.head.weight_VD, plain.head.weight_VD)
    torch.testing.assert_close(quantised.embeddings_VE, plain.embeddings_VE)


def test_passes_are_those_of_a_model_with_the_rounded_weights(quantised):
    """Forward and back, beside the same numbers held as float32."""
    whole = LanguageModel(copy.deepcopy(quantised.model).dequantize(), quantised.tokenizer)
    assert not is_quantised(whole.model)
    whole.model.float()
    for found, expected in zip(derivative(quantised), derivative(whole), strict=True):
        assert oracles.relative_error(found, expected) < 0.03  # activations have 8 bits, too, with the one


@pytest.mark.parametrize("bits", BITS)
def test_a_model_that_is_loaded_again_is_the_same_one(folder, bits):
    first, again, plain = (load_model(folder, device="cpu", **{bits: on}) for on in (True, True, False))
    assert first.fingerprint() == again.fingerprint() != plain.fingerprint()


def test_a_run_with_adapters_for_the_writer(quantised):
    config = GenerateConfig.model_validate({**SMALL, "writer": {"rounds": 2, "lora": {}}})
    first, again = (gradmm.generate(quantised, "sst2", ROWS, config) for _ in range(2))
    assert len(first.dataset) == 4 and first.dataset["text"] == again.dataset["text"]


def test_adapters_learn_in_turn_text_of_the_domain_what_was_chosen_and_the_classes(quantised, tmp_path):
    (tmp_path / "read.jsonl").write_text('{"text": "A film about a film."}\n' * 20)
    writer = {"rounds": 2, "lora": {}, "files": [str(tmp_path / "read.jsonl")], "files_max_steps": 4}
    config = GenerateConfig.model_validate({**SMALL, "writer": writer})
    assert len(gradmm.generate(quantised, "sst2", ROWS, config).dataset) == 4


def test_an_admm_run_trains_nothing(quantised):
    config = GenerateConfig.model_validate(
        {**SMALL, "block_size": 2, "solver": "admm", "admm": {"n_outer": 1, "n_inner": 2}}
    )
    assert len(gradmm.generate(quantised, "sst2", ROWS, config).dataset) == 4


def test_what_cannot_be_trained_is_refused_before_any_work(quantised, tmp_path):
    with pytest.raises(ConfigError) as caught:
        gradmm.generate(quantised, "sst2", ROWS, GenerateConfig.model_validate(SMALL), tmp_path / "run")
    said = f"{quantised.title} has weights in 8 or 4 bits, which cannot be trained; train adapters beside them"
    assert str(caught.value) == f"{said} (writer.lora={{}}), {REMEDY}"
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError) as caught:
        TrainableModel(quantised)
    assert str(caught.value) == f"{said} (lora={{}}), {REMEDY}"


def test_adapters_stay_beside_weights_of_few_bits(quantised):
    task = matrix.bind(quantised)
    rows = gradmm.training.rows.tokenise(task, [["A bad film."], ["A great film."], ["A film."]])
    tuner = FineTuner(
        quantised, task, rows, TrainConfig(max_steps=3, learning_rate=0.05, eval_steps=3, lora=LoraSettings(r=2))
    )
    tuner.run()
    frozen = tuner.model.language_model()
    found, expected = frozen.read(LINE, ALL), tuner.model.read(LINE, ALL)
    torch.testing.assert_close(found, expected)
    assert oracles.relative_error(found, quantised.read(LINE, ALL)) > 0.05


def test_a_comparison_that_would_train_few_bits_is_refused_before_any_work(folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    model = {"model_name_or_path": folder, "device": "cpu", "load_in_4bit": True}
    given = {"model": model, "data": {"dataset": str(rows)}, "dev": str(rows), "test": str(rows)}
    config = gradmm.CompareConfig.model_validate(given | {"methods": ["real_random"]})
    with pytest.raises(ConfigError) as caught:
        gradmm.compare(config, tmp_path / "out")
    assert "(train.lora={})" in str(caught.value) and not (tmp_path / "out").exists()


def test_a_model_of_few_bits_is_not_fine_tuned_into_a_folder(folder, tmp_path):
    with pytest.raises(ConfigError, match="cannot be merged into weights of so few bits"):
        gradmm.train(
            ModelConfig(model_name_or_path=folder, device="cpu", load_in_4bit=True),
            "sst2",
            ROWS,
            TrainConfig(lora=LoraSettings()),
            output_dir=tmp_path / "out",
        )


# ---- places


def test_a_map_over_the_devices_that_there_are(folder):
    plain, spread = load_model(folder), load_model(folder, device_map="auto")
    assert not is_spread(spread.model) or torch.cuda.device_count() > 1
    torch.testing.assert_close(spread.read(LINE.to(spread.device), ALL).cpu(), plain.read(LINE, ALL).cpu())
    assert spread.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"device_map": "auto", "device": "cpu"},
            "device 'cpu' is one device and device_map 'auto' spreads over all; set one",
        ),
        (
            {"load_in_8bit": True, "load_in_4bit": True},
            "load_in_8bit and load_in_4bit are two ways to hold the same weights; set one",
        ),
    ],
)
def test_settings_that_exclude_each_other(settings, said):
    with pytest.raises(ValidationError) as caught:
        ModelConfig.model_validate(settings)
    assert said in str(caught.value)


def test_weights_that_stay_outside_are_named(tiny_lm):
    model = copy.deepcopy(tiny_lm("llama").model)
    model.hf_device_map = {"": "cpu"}
    model.model.norm.to("meta")
    with pytest.raises(ModelError) as caught:
        settled(model, "auto")
    assert str(caught.value) == (
        "the devices' memory does not hold the whole model (model.norm.weight would stay outside), and what is "
        "outside cannot be differentiated; set model.load_in_8bit or model.load_in_4bit, a smaller model.dtype, "
        "or take a smaller model or more devices"
    )


@pytest.mark.parametrize(
    ("library", "options", "what"),
    [
        ("bitsandbytes", {"load_in_4bit": True}, "weights in 8 or 4 bits need"),
        ("accelerate", {"device_map": "auto"}, "quantised models, and those on several devices, need"),
    ],
)
def test_a_library_that_is_missing_is_named(folder, monkeypatch, library, options, what):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else there(name))
    with pytest.raises(ModelError) as caught:
        load_model(folder, **options)
    assert str(caught.value) == f"{what} the {library} library; install gradmm[large]"
