"""Arithmetic against a counter of what torch really multiplies; workloads against runs."""

import re
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gradmm.arithmetic import Arithmetic, arithmetic_of
from gradmm.config import GenerateConfig
from gradmm.throughput import Bench, Rate, _fastest, matrix_peak, measure_rates
from gradmm.workload import GRADIENTS, PASSES, READABILITY, TUNING, UPDATE, WRITING, Workload

DENSE = ("gpt2", "gptj", "opt", "bloom", "neox", "phi", "falcon", "llama", "qwen3", "olmo2", "gemma2", "cohere")


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", DENSE)
def test_a_forward_pass_costs_what_torch_multiplies(kind, tiny_lm):
    lm, texts, length = tiny_lm(kind, "eager"), 3, 7
    cost, ids_NS = arithmetic_of(lm), torch.ones(texts, length, dtype=torch.long)
    # Eager attention also multiplies what a causal model throws away.
    ahead = texts * (length**2 - length * (length + 1) / 2) * cost.pair
    body = counted(lambda: lm.body(input_ids=ids_NS, use_cache=False))
    # Rotary angles are products too: a few for every pair of numbers.
    assert cost.forward(texts, length, 0) + ahead == pytest.approx(body, rel=0.02)
    head = counted(lambda: lm.head(torch.ones(5, lm.head.weight_VD.shape[1])))
    assert cost.forward(0, length, 5) == head


def test_experts_all_count_and_bodies_without_attention_have_no_pairs(tiny_lm):
    dense, experts = arithmetic_of(tiny_lm("llama")), arithmetic_of(tiny_lm("mixtral"))
    assert experts.body > 2 * dense.body
    assert arithmetic_of(tiny_lm("mamba")).pair == 0


def test_decoding_attends_to_the_prompt_and_to_what_stands_before():
    cost = Arithmetic(body=10, pair=1, head=100)
    assert cost.decode(1, 0, 3) == cost.forward(1, 3, 3)
    assert cost.decode(2, 5, 3) == 2 * (3 * 110 + (6 + 7 + 8))
    assert cost.forward_backward(1, 4, 0) - 2 * cost.forward(1, 4, 0) == 10, "attention once more"


@pytest.mark.parametrize("loss", ["verbalisers", "vocabulary"])
def test_every_pass_costs_what_torch_multiplies(demo_lm, demo_task, loss):
    config = GenerateConfig(solver="both", per_device_batch_size=10, space={"loss": loss})
    load, found = Workload(demo_lm, demo_task, config), Bench(demo_lm, demo_task, config).passes()
    assert list(found) == list(PASSES)
    for kind, (texts, work) in found.items():
        each = load.each(kind, config.lengths.max_tokens)
        assert texts * each == pytest.approx(counted(work), rel=0.05), kind


ALONE = {"loss": "vocabulary", "maps": [], "centred": False}
"""A space that no public text has a part in."""


def test_texts_in_each_pass_follow_from_the_settings(demo_lm, demo_task):
    def texts(**settings):
        small = {"initial": {"candidates": 3}, "admm": {"n_outer": 4, "n_inner": 5}, "space": ALONE}
        small |= {"label_check": {"reader": "model"}}
        config = GenerateConfig.model_validate(small | settings)
        return Workload(demo_lm, demo_task, config).texts([10, 20], rows=1000)

    plain = {"pool": {"texts_per_text": 8}, "refinement": {"evaluations": 0}}
    once = texts(**plain, writer={"rounds": 1})
    assert once == {GRADIENTS: 1000 + 2 * 240, READABILITY: 240, WRITING: 240, TUNING: 0, UPDATE: 0}
    thrice = texts(**plain, writer={"rounds": 3, "share": 0.5, "num_train_epochs": 2})
    assert thrice[READABILITY] == 80 + 160 + 240, "every round looks at all that there is"
    assert thrice[GRADIENTS] == 1000 + thrice[READABILITY] + 240, "labels are checked at the end"
    heeded = texts(**plain, writer={"rounds": 3}, selection={"label_weight": 0.1})
    assert heeded[GRADIENTS] == 1000 + 2 * thrice[READABILITY], "and before, where they have a say"
    assert thrice[TUNING] == 80 + 160 and thrice[WRITING] == 240
    taught = texts(**plain, writer={"rounds": 1}, label_check={"max_steps": 40})
    assert Counter(taught) == Counter(once) + Counter({TUNING: 40 * 16}), "the reader's lessons"
    few = texts(**plain, writer={"rounds": 1}, label_check={"max_steps": 900, "num_train_epochs": 2})
    assert few[TUNING] == 2 * 1000
    refined = texts(**plain | {"refinement": {"evaluations": 6, "proposals": 3}}, writer={"rounds": 1})
    assert refined[READABILITY] == 240 + 180 and refined[GRADIENTS] == once[GRADIENTS] + 180 + 60
    admm = texts(solver="admm")
    assert admm == {GRADIENTS: 1000, READABILITY: 0, WRITING: 90, TUNING: 0, UPDATE: 30 * 20}
    both = texts(solver="both", **plain, writer={"rounds": 1})
    assert Counter(both) == Counter(once) + Counter(admm) - Counter({GRADIENTS: 1000})


def test_public_text_is_written_read_and_chosen_from_too(demo_lm, demo_task):
    def texts(solver="search", rounds=1, counts=(10, 20), **space):
        small = {"pool": {"texts_per_text": 8}, "refinement": {"evaluations": 0}, "initial": {"candidates": 3}}
        small |= {"label_check": {"reader": "model"}}
        config = GenerateConfig.model_validate(
            small | {"writer": {"rounds": rounds}} | {"solver": solver, "space": space}
        )
        return Workload(demo_lm, demo_task, config).texts(counts, rows=1000)

    few = texts(public_texts=80)  # the classes' pools have 80 and 160
    assert few[WRITING] == few[READABILITY] == 240
    assert few[GRADIENTS] == 1000 + 2 * 240 + 2 * 2 * 80, "to calibrate, and to fit a map"
    assert texts(public_texts=80, maps=["whitened"], loss="vocabulary")[GRADIENTS] == few[GRADIENTS] - 2 * 80
    many = texts(public_texts=100)
    assert many[WRITING] == many[READABILITY] == 100 + 160, "all that is written is chosen from"
    assert many[GRADIENTS] == 1000 + 2 * 260 + 2 * 2 * 100
    twice = texts(public_texts=100, rounds=2)  # of 40 and 80 in each
    assert twice[WRITING] == 2 * 100 + 120 and twice[READABILITY] == 2 * 100 + (2 * 100 + 120)
    admm = texts("admm", public_texts=50)
    assert admm[WRITING] == 90 + 2 * 50 and admm[GRADIENTS] == 1000 + 2 * 2 * 50
    assert texts(public_texts=10_000, counts=(1,) * 64)[WRITING] == 64 * (4096 // 64), "no more than are fitted on"


@pytest.mark.parametrize(
    ("lengths", "mean"),
    [
        ({"min_tokens": 4, "max_tokens": 12}, 8),
        ({"min_tokens": 4, "max_tokens": 12, "distribution": "fixed"}, 12),
        ({"mean": 9, "distribution": "normal"}, 9),
    ],
)
def test_texts_count_as_long_as_they_are_on_average_and_are_written_longer(demo_lm, demo_task, lengths, mean):
    load = Workload(demo_lm, demo_task, GenerateConfig(lengths=lengths))
    for kind in PASSES:
        longest = load.config.lengths.max_tokens + 2
        assert load.each(kind) == load.each(kind, longest if kind == WRITING else mean)


def test_rows_count_as_long_as_they_are(demo_lm, demo_task):
    load = Workload(demo_lm, demo_task, GenerateConfig(solver="admm", space=ALONE))
    short, long = (load.flop([1, 1], 1000, length)[GRADIENTS] for length in (10, 20))
    assert short == pytest.approx(1000 * load.each(GRADIENTS, 10))
    assert long == pytest.approx(1000 * load.each(GRADIENTS, 20))


def test_only_what_a_run_computes_is_measured(demo_lm, demo_task):
    small = {"per_device_batch_size": 2, "lengths": {"min_tokens": 2, "max_tokens": 4}}
    config = GenerateConfig(**small, writer={"rounds": 1}, label_check={"reader": "model"})
    rates = list(measure_rates(demo_lm, demo_task, config))
    assert [rate.kind for rate in rates] == [GRADIENTS, READABILITY, WRITING]
    load = Workload(demo_lm, demo_task, config)
    for rate in rates:
        assert rate.texts == 2 and rate.flop == 2 * load.each(rate.kind, 4)
        assert rate.seconds > 0 and 0 < rate.share == rate.flop / rate.seconds / rate.peak


@pytest.mark.parametrize(
    ("took", "tries", "fastest"),
    [([9, 2, 1, 3], 1, 9), ([4, 2, 1, 3], 4, 1), ([1, 3, 2, 4], 4, 2), ([4, 2, 9], 3, 2)],
)
def test_the_fastest_try_counts_and_what_takes_long_is_done_once(took, tries, fastest):
    now, done = [0.0], []

    def work():
        now[0] += took[len(done)]
        done.append(now[0])

    assert _fastest(work, torch.device("cpu"), lambda: now[0]) == fastest
    assert len(done) == tries


def test_every_architecture_can_be_counted(each_tiny_lm):
    cost = arithmetic_of(each_tiny_lm)
    assert cost.body > 0 and cost.head > 0 and cost.pair >= 0


def test_a_peak_counts_a_multiplication_and_an_addition(monkeypatch):
    seconds = {512: 0.01, 1024: 0.08, 2048: 0.5}
    monkeypatch.setattr("gradmm.throughput._fastest", lambda work, *given: seconds[len(work.args[0])])
    assert matrix_peak(torch.device("cpu"), torch.float32) == 2 * 2048**3 / 0.5
    seconds |= {512: 0.2, 1024: 0}
    assert matrix_peak(torch.device("cpu"), torch.bfloat16) == 2 * 512**3 / 0.2, "larger ones would take too long"
    assert Rate("x", 4, 100.0, 2.0, 200.0).share == 0.25


def test_doctor_says_how_fast_the_machine_is(run):
    small = ["--set", "per_device_batch_size=2", "--set", "lengths.max_tokens=8"]
    outcome = run("doctor", "-c", "demo", "--bench", *small)
    assert (outcome.code, outcome.err) == (0, "")
    lines = [line[6:] for line in outcome.out.splitlines() if line.startswith("  ok  ")]
    speed = [line.split(maxsplit=1)[1] for line in lines if line.startswith("speed")]
    assert re.fullmatch(
        r"products of large matrices at [\d,]+ GFLOP/s in float32, .* at [\d,]+(\.\d)? in bfloat16", speed[0]
    )
    assert [line.partition(":")[0] for line in speed[1:]] == [GRADIENTS, READABILITY, WRITING]
    assert all(re.search(r"[\d.,]+ texts a second, [\d,]+ GFLOP/s, \d+% of that$", line) for line in speed[1:])
    assert re.fullmatch(r"memory +about [\d.]+ GiB at its fullest", lines.pop())
    assert re.fullmatch(r"time +about [\d.e+]+ (seconds|minutes|hours) on this machine, .*", lines[-1])
