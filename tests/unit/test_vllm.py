"""What is asked of vLLM, and when it gets weights; a few lines on top of our own generation stand for it here."""

import random

import numpy as np
import pytest
import torch
from fake_vllm import LLM, installed
from pieces import ask, byte_codec, equal, tiny_model, weights_of
from tiny import RFT, tiny_run_config, trajectory
from transformers import GPT2Config, GPT2LMHeadModel

from cl_toolkit.errors import UserError
from cl_toolkit.models import adapters
from cl_toolkit.models.by_vllm import VLLM
from cl_toolkit.models.sections import Adapter
from cl_toolkit.models.writers import Own
from cl_toolkit.runs import fit
from cl_toolkit.runs.identity import differs, settled
from cl_toolkit.runs.run import Run

BY_VLLM = {"generation": {"engine": "vllm"}}
OWN = Own()


@pytest.fixture
def vllm(monkeypatch):
    return installed(monkeypatch)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The check of the device is told that there is one."""
    make = fit.make_writer
    monkeypatch.setattr(fit, "make_writer", lambda section, device, room: make(section, torch.device("cuda"), room))


def prompts_of(codec):
    return [codec.ids(ask(q))[0] for q in ("", "ab", "what?", "ab", "z" * 9)]


def same_weights(model, llm):
    """Whether vLLM has the model's, without adapters."""
    return equal(weights_of(model), weights_of(llm.model))


@pytest.mark.parametrize("method", [{"objective": RFT}, {"strategies": {"replay": {}}}])
def test_a_run_is_that_of_own_generation_and_weights_go_over_where_they_changed(
    method, vllm, on_a_gpu, tmp_path, monkeypatch
):
    write, handed = VLLM.__call__, []

    def watched(self, model, *given, **more):
        changed = not LLM.made or not same_weights(model.eval(), LLM.made[0])
        before = LLM.made[0].handed if LLM.made else 0
        answers = write(self, model, *given, **more)
        assert same_weights(model, LLM.made[0])
        handed.append(LLM.made[0].handed - before)
        assert handed[-1] == changed
        return answers

    monkeypatch.setattr(VLLM, "__call__", watched)
    curves = {"evaluate": {"max_new_tokens": 4, "forgetting_curve": {"schedule": "linear", "every": 2, "examples": 2}}}
    mine, plain = (trajectory(tmp_path / n, **method, **curves, **way) for n, way in (("a", BY_VLLM), ("b", {})))
    assert mine.losses == plain.losses
    assert mine.record["matrix"] == plain.record["matrix"]
    assert mine.record["cost"]["rollouts"] == plain.record["cost"]["rollouts"]
    assert equal(weights_of(mine.run.model), weights_of(plain.run.model))
    assert 0 < sum(handed) < len(handed)
    (llm,) = LLM.made
    assert not llm.awake
    assert llm.options["dtype"] == "float32"


def test_what_is_asked_for(vllm):
    model, codec = tiny_model(), byte_codec()
    prompts, seeds, writer = prompts_of(codec), [7, 2**62, 3, 4, 5], VLLM(0.25, 100)
    assert writer(model, codec, prompts, 6) == OWN(model, codec, prompts, 6)
    drawn = writer(model, codec, prompts, 6, 2, seeds, 0.7)
    assert drawn == OWN(model, codec, prompts, 6, 2, seeds, 0.7)
    assert writer(model, codec, prompts[1:2], 6, None, seeds[1:2], 0.7) == drawn[1:2]  # no matter beside whom
    (llm,) = LLM.made
    greedy, sampled = llm.asked[:5], llm.asked[5:10]
    assert [how.temperature for how in greedy + sampled] == [0.0] * 5 + [0.7] * 5
    assert [how.seed for how in sampled] == seeds
    for how in llm.asked:
        assert (how.top_p, how.top_k, how.min_p, how.max_tokens) == (1.0, -1, 0.0, 6)
        assert (how.stop_token_ids, how.ignore_eos, how.detokenize) == (sorted(codec.stops), True, False)
    wanted = {"load_format": "dummy", "max_model_len": 100, "gpu_memory_utilization": 0.25, "enable_sleep_mode": True,
              "skip_tokenizer_init": True, "generation_config": "vllm"}  # fmt: skip
    assert llm.options | wanted == llm.options
    assert llm.handed == 1


def test_every_way_in_which_weights_change_is_seen(vllm):
    model, codec, writer = tiny_model(), byte_codec(), VLLM(0.3, 100)
    prompts, weight = prompts_of(codec), model.lm_head.weight
    changes = [
        lambda: None,
        lambda: weight.data.copy_(weight.data * 2),  # as DeepSpeed does, and torch's counter does not
        lambda: setattr(weight, "data", weight.data.flip(1) + 1),
        lambda: torch.optim.AdamW([weight], lr=0.1).step(lambda: weight.grad.sum()),
    ]
    weight.grad = torch.ones_like(weight)
    for number, change in enumerate(changes):
        change()
        for _ in range(2):
            assert writer(model, codec, prompts, 4) == OWN(model, codec, prompts, 4)
            assert LLM.made[0].handed == number + 1


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_positions=96, n_embd=16, n_layer=2, n_head=2, vocab_size=259, bos_token_id=256, eos_token_id=257)
    ).eval()


@pytest.mark.parametrize("make", [tiny_model, gpt2])  # whose linear weights lie the other way round
def test_adapters_go_over_with_the_weights_and_nothing_is_merged(make, vllm):
    model, codec, writer = make(), byte_codec(), VLLM(0.3, 90)
    plain = writer(model, codec, prompts_of(codec), 8)
    for task in range(2):
        model = adapters.begin_task(model, Adapter(r=2, between_tasks="stack"), task, 0)
    with torch.no_grad():
        for weight in adapters.weights(model).values():
            weight.normal_(0, 0.7, generator=torch.Generator().manual_seed(weight.numel()))
    before, states = weights_of(model), (random.getstate(), torch.get_rng_state())
    found = writer(model, codec, prompts_of(codec), 8)
    assert found == OWN(model, codec, prompts_of(codec), 8) != plain
    assert equal(before, weights_of(model))
    assert states[0] == random.getstate()
    assert torch.equal(states[1], torch.get_rng_state())


def test_no_random_number_of_others_is_drawn(vllm):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    wanted = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    codec = byte_codec()
    VLLM(0.3, 100)(tiny_model(), codec, prompts_of(codec), 4)
    assert (random.random(), np.random.rand(), torch.rand(1)) == wanted


def test_what_vllm_has_no_place_for_is_refused(vllm, monkeypatch):
    model, codec = tiny_model(), byte_codec()
    prompts = prompts_of(codec)
    with pytest.raises(
        UserError, match=r"may have \d+ tokens, and vLLM was made for 12; lower prompt\.max_prompt_length"
    ):
        VLLM(0.3, 12)(model, codec, prompts, 4)
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"has a weight extra\.weight that LlamaForCausalLM has not; use own$"):
        VLLM(0.3, 100)(model, codec, prompts, 4)

    def unknown(*_, **__):
        raise ValueError("architectures are\nnot supported")

    monkeypatch.setattr(LLM, "__init__", unknown)
    with pytest.raises(
        UserError, match=r"cannot take LlamaForCausalLM: ValueError: architectures are not supp.*; use own$"
    ):
        VLLM(0.3, 100)(tiny_model(), codec, prompts, 4)


def test_where_it_is_not_installed_it_is_refused():
    with pytest.raises(UserError, match=r"generation\.engine: vllm: is not installed here; use own, or pip install"):
        tiny_run_config(**BY_VLLM)


def test_without_a_gpu_it_is_refused_before_a_model_is_loaded(vllm, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "load_model", lambda self: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match=r"^generation\.engine: vllm: needs a GPU, and engine\.device is cpu; use own$"):
        Run(tiny_run_config(**BY_VLLM), tmp_path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"generation": {"engine": "vllm", "cache": "static"}},
            r"generation\.cache: static: vLLM keeps a cache of its own",
        ),
        (
            {**BY_VLLM, "engine": {"deepspeed": {"zero_optimization": {"stage": 3}}}},
            "takes whole weights, in one process",
        ),
        ({"generation": {"engine": "vlm"}}, r"generation\.engine: expected own | vllm, got 'vlm'"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, why, vllm):
    with pytest.raises(UserError, match=why):
        tiny_run_config(**changes)


def test_several_processes_are_refused(vllm, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match="takes whole weights, in one process; use own with several processes or ZeRO-3"
    ):
        tiny_run_config(**BY_VLLM, engine={"name": "deepspeed"})


def test_whose_answers_they_are_is_a_part_of_a_result(vllm):
    mine, plain = (settled(tiny_run_config(**way).plain) for way in (BY_VLLM, {}))
    assert differs(plain, mine) == "generation.engine: 'own' there, 'vllm' here"


def test_the_room_is_that_of_the_longest_answer_of_a_run(vllm, on_a_gpu, tmp_path):
    config = tiny_run_config(
        **BY_VLLM,
        objective={**RFT, "max_completion_length": 9},
        evaluate={"max_new_tokens": 4, "probes": {"drift": {"examples": 1, "max_new_tokens": 11}}},
        prompt={"max_prompt_length": 50},
    )
    assert fit.writer_of(config, torch.device("cuda")).room == 61
