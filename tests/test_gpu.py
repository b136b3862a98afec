"""What has to hold on a GPU, beside the CPU."""

from __future__ import annotations

import copy

import accelerate
import pytest
import torch
import transformers

import gradmm
import matrix
import oracles
from gradmm.config import GenerateConfig
from gradmm.data.vocabulary import allowed_tokens
from gradmm.decoding import PromptCache, decode, log_perplexity, sample
from gradmm.gradients.distances import DistanceConfig
from gradmm.gradients.exact_target import compute_target
from gradmm.models import LanguageModel, load_model
from gradmm.placement import is_spread
from gradmm.recorded import Replayed
from gradmm.solvers.matching import GradientMatching

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]
RECORDED = ["gpt2", "phi", "llama", "opt"]
COPYING = ["gptj", "bloom"]  # they copy numbers from the processor at every step


def on_gpu(lm):
    return LanguageModel(copy.deepcopy(lm.model).to("cuda"), lm.tokenizer, lm.name)


def shown_logits(prompts, labels_N, ids_NT):
    """Logits of every row at every step of a decode that writes these tokens."""
    seen = torch.zeros(*ids_NT.shape, prompts.lm.vocab_size)

    def show(t, rows, logits_NV):
        seen[rows.cpu(), t] = logits_NV.cpu()
        return ids_NT[rows, t], ids_NT[rows, t]

    decode(prompts, labels_N, ids_NT.shape[1], show)
    return seen


@pytest.mark.parametrize("kind", RECORDED + COPYING)
def test_recorded_decodes_are_plain_ones(tiny_lm, kind):
    """Of other rows, other numbers of rows and other lengths than the recording was made with, too."""
    lm = on_gpu(tiny_lm(kind))
    task = matrix.bind(lm)
    prompts, plain = PromptCache(lm, task.instruction_ids), matrix.without_cache(lm, task.instruction_ids)
    draw = torch.Generator().manual_seed(0)
    for count, steps in ((3, 4), (6, 4), (6, 9), (5, 2), (40, 6), (3, 9)):
        labels_N = torch.randint(3, (count,), generator=draw).to("cuda")
        ids_NT = torch.randint(2, 100, (count, steps), generator=draw).to("cuda")
        found, expected = (shown_logits(some, labels_N, ids_NT) for some in (prompts, plain))
        assert oracles.relative_error(found, expected) < 1e-4
    assert prompts._recordings._is_refused == (kind in COPYING)
    torch.randn(3, device="cuda")  # the random generator is as it was


def test_the_demo_model_is_recorded(demo_lm, demo_task):
    lm = on_gpu(demo_lm)
    prompts = PromptCache(lm, demo_task.instruction_ids)
    for _, going, _ in prompts.starts(torch.tensor([0, 1, 1], device="cuda")):
        assert isinstance(going, Replayed)


def test_a_body_that_cannot_be_recorded_is_decoded_all_the_same(tiny_lm, caplog):
    caplog.set_level("INFO", logger="gradmm")
    lm = on_gpu(tiny_lm("llama"))
    plain = matrix.without_cache(lm, matrix.bind(lm).instruction_ids)
    handle = lm.body.register_forward_hook(
        lambda body, inputs, output: float(output.last_hidden_state.sum()) and None
    )
    prompts = PromptCache(lm, matrix.bind(lm).instruction_ids)
    labels_N, ids_NT = torch.tensor([2, 1, 0], device="cuda"), torch.randint(2, 100, (3, 5), device="cuda")
    found = shown_logits(prompts, labels_N, ids_NT)
    handle.remove()
    assert oracles.relative_error(found, shown_logits(plain, labels_N, ids_NT)) < 1e-4
    assert "decoding without CUDA graphs" in caplog.text


def test_objective_and_derivative_are_the_processors(demo_lm, demo_task):
    values = []
    draw = torch.Generator().manual_seed(0)
    x_KBTE = torch.randn(2, 2, 6, demo_lm.embeddings_VE.shape[1], generator=draw) * demo_lm.embeddings_VE.std()
    for lm in (demo_lm, on_gpu(demo_lm)):
        target = compute_target(lm, demo_task, [[["A bad film."]], [["A great film."]]])
        problem = GradientMatching(
            lm, demo_task, target, DistanceConfig(), None, [1, 0], torch.tensor([[4, 6], [5, 3]])
        )
        x = x_KBTE.to(lm.device).requires_grad_()
        objective_K = problem.objective(x)
        (grad,) = torch.autograd.grad(objective_K.sum(), x)
        values.append((objective_K.detach().cpu(), grad.cpu()))
    (mine, gradient), (expected, expected_gradient) = values[1], values[0]
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    assert oracles.relative_error(gradient, expected_gradient) < 1e-3


def test_samples_are_the_same_again(demo_lm, demo_task):
    """The first ones while steps are recorded, the second ones replayed."""
    lm = on_gpu(demo_lm)
    allowed_V = allowed_tokens(lm.tokenizer, lm.vocab_size).to("cuda")
    prompts = PromptCache(lm, demo_task.instruction_ids)
    labels_N = torch.arange(20, device="cuda") % 2
    first, second = (
        sample(prompts, labels_N, 12, allowed_V, torch.Generator().manual_seed(3), top_p=0.95) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("solver", ["admm", "search"])
def test_a_run_says_of_its_texts_what_the_processor_says(demo_lm, tmp_path, solver):
    config = GenerateConfig.model_validate(
        {
            "solver": solver,
            "texts_per_class": 4,
            "block_size": 4,
            "admm": {"n_outer": 2, "n_inner": 2},
            "pool": {"texts_per_text": 5},
            "refinement": {"evaluations": 5},
            "writer": {"rounds": 1},
        }
    )
    result = gradmm.generate(on_gpu(demo_lm), "sst2", "demo", config, tmp_path / "run")
    again = gradmm.generate(on_gpu(demo_lm), "sst2", "demo", config)
    assert result.dataset["text"] == again.dataset["text"]
    ids = demo_lm.tokenizer(list(result.dataset["text"]), add_special_tokens=False).input_ids
    assert result.dataset["log_perplexity"] == pytest.approx(log_perplexity(demo_lm, ids), rel=1e-3)
    assert result.metrics["synthetic"]["distance"] < result.metrics["references"]["lm"]["distance"]


# ---- few bits, several devices


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_weights_of_few_bits_give_the_derivatives_of_the_rounded_ones(tiny_lm, tmp_path, bits):
    config = transformers.LlamaConfig(vocab_size=120, hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tiny_lm("llama").tokenizer.save_pretrained(tmp_path)
    lm = load_model(tmp_path, dtype="bfloat16", **{bits: True})
    whole = LanguageModel(copy.deepcopy(lm.model).dequantize().to(torch.bfloat16), lm.tokenizer)
    found = []
    for one in (lm, whole):
        embeds_NSE = one.embeddings_VE[torch.arange(2, 60, device="cuda")[None]].clone().requires_grad_()
        states_NLD = one.hidden(embeds_NSE, torch.tensor([[57]], device="cuda")).float()
        weights_D = torch.linspace(-1, 1, 64, device="cuda")
        found.append((states_NLD.detach(), *torch.autograd.grad((states_NLD * weights_D).sum(), embeds_NSE)))
    for mine, expected in zip(*found, strict=True):
        assert oracles.relative_error(mine.float(), expected.float()) < 0.05


def spread(lm):
    """The model with its first layer on the GPU and all that follows on the processor, and its head there, too."""
    model = copy.deepcopy(lm.model)
    device_map = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": "cpu", "model.norm": "cpu"}
    device_map |= {"model.rotary_emb": 0, "lm_head": "cpu"}
    model = accelerate.dispatch_model(model, device_map, main_device="cpu")
    return LanguageModel(model, lm.tokenizer, lm.name)


def test_a_model_on_two_devices_is_the_model(tiny_lm):
    lm, two = tiny_lm("llama"), spread(tiny_lm("llama"))
    assert is_spread(two.model) and two.device.type == "cuda" and two.head.weight_VD.device.type == "cuda"
    task, values = matrix.bind(lm), []
    ids_NT = torch.randint(2, 100, (4, 6), generator=torch.Generator().manual_seed(0))
    for one in (lm, two):
        target = compute_target(one, task, [[["A bad film."]], [["A great film."]], [["A film."]]])
        problem = GradientMatching(
            one, task, target, DistanceConfig(), None, [1, 0], torch.tensor([[4, 6], [5, 3]])
        )
        x = one.embeddings_VE[ids_NT.to(one.device)].view(2, 2, 6, -1).clone().requires_grad_()
        objective_K = problem.objective(x)
        prompts = PromptCache(one, task.instruction_ids)
        logits = shown_logits(prompts, torch.tensor([0, 1, 2, 0], device=one.device), ids_NT.to(one.device))
        values.append((objective_K.detach(), *torch.autograd.grad(objective_K.sum(), x), logits))
    for mine, expected in zip(values[1], values[0], strict=True):
        assert oracles.relative_error(mine.cpu(), expected.cpu()) < 1e-3


def test_a_run_on_two_devices(tiny_lm):
    rows = [{"text": f"A {'great' if i % 2 else 'bad'} film {i}.", "label": i % 2} for i in range(12)]
    config = GenerateConfig.model_validate(
        {
            "texts_per_class": 2,
            "lengths": {"distribution": "uniform", "min_tokens": 3, "max_tokens": 5},
            "space": {"public_texts": 40},
            "pool": {"texts_per_text": 5},
            "refinement": {"evaluations": 4},
            "writer": {"rounds": 2},
        }
    )
    assert len(gradmm.generate(spread(tiny_lm("llama")), "sst2", rows, config).dataset) == 4
