"""The runs of `tests/pin.py`: plain configs, each over in about a second.

A case holds what differs from TINY (text) or IMAGES (arrays). Beside sections of a config it may have `stop: true` (the run is
stopped after its first task and goes on) and `methods` (a comparison in place of one run).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WARMUP = {"steps": 400, "batch_size": 16, "learning_rate": 0.01, "skills": ["max", "last", "parity"], "length": 3}
"""Makes a start model that is right now and then: scores move, and rollouts are worth different rewards."""
TINY: dict[str, Any] = {
    "stream": {
        "name": "skills",
        "tasks": ["max", "last", "parity"],
        "length": 3,
        "train_size": 24,
        "valid_size": 4,
        "test_size": 12,
    },
    "model": {"name": "tiny-lm", **SHAPE, "warmup": WARMUP},
    "train": {"max_steps": 3, "global_batch_size": 8, "learning_rate": 0.003, "logging_steps": 1},
    "evaluate": {"max_new_tokens": 4},
    "engine": {"device": "cpu"},
}
IMAGES: dict[str, Any] = {
    "stream": {"name": "digits", "limit": {"train": 40, "test": 20}},
    "model": {"name": "small-cnn", "width": 4, "hidden_size": 16},
    "train": {"max_steps": 4, "global_batch_size": 16, "learning_rate": 0.01, "logging_steps": 1},
    "engine": {"device": "cpu"},
}
MLP = {"name": "mlp", "num_hidden_layers": 1, "hidden_size": 16}
RFT = {"name": "rft", "num_generations": 4, "max_completion_length": 4, "beta": 0.1}
SUPCON = {"name": "supcon", "projection_size": 8, "hidden_size": 16}
WORDS = {"name": "jsonl", "path": "words"}
FOLDER = {"name": "chat", "head": "lm"}


def adapter(life: str, **settings: Any) -> dict[str, Any]:
    """The start model under LoRA, at a rate that moves it."""
    lora = {"r": 2, "lora_alpha": 4, "between_tasks": life, **settings}
    return {"model": {"adapter": lora}, "train": {"learning_rate": 0.05}}


def strategy(name: str, **settings: Any) -> dict[str, Any]:
    return {"strategies": {name: settings}}


STORED = {"buffer_size": 20}
STRATEGIES: dict[str, dict[str, Any]] = {
    "sequential": {},
    "replay": strategy("replay"),
    "replay-reservoir": strategy("replay", **STORED, policy="reservoir", replay_fraction=0.25),
    "replay-ring": strategy("replay", **STORED, policy="ring"),
    "replay-quota": strategy("replay", **STORED, policy="quota"),
    "power-law": strategy("power_law", **STORED),
    "power-law-exponential": strategy("power_law", schedule="exponential", exponent=1.0, unrestricted=True),
    "power-law-uniform": strategy("power_law", schedule="uniform"),
    "ewc-separate": strategy("ewc", mode="separate", weight=100, fisher_examples=4),
    "ewc-online": strategy("ewc", mode="online", gamma=0.9, weight=100, fisher="sampled", fisher_examples=8),
    "ewc-empirical": strategy("ewc", weight=100, fisher="empirical", fisher_examples=8),
    "ewc-batched": strategy("ewc", mode="online", weight=100, fisher="batched"),
    "ewc-adapter": {**strategy("ewc", weight=100, fisher_examples=8), **adapter("continue")},
    "si": strategy("si", weight=10.0),
    "si-adapter": {**strategy("si", weight=10.0), **adapter("continue")},
    "lwf": strategy("lwf"),
    "lwf-continue": {**strategy("lwf", temperature=1.0), **adapter("continue")},
    "lwf-merge": {**strategy("lwf"), **adapter("merge")},
    "lwf-stack": {**strategy("lwf"), **adapter("stack")},
    "logit-swap": strategy("logit_swap"),
    "logit-swap-stack": {**strategy("logit_swap", temperature=2.0), **adapter("stack")},
    "agem": strategy("agem", memory_batch_size=4),
    "agem-ring": strategy("agem", memory_batch_size=4, **STORED, policy="ring"),
    "der": strategy("der", memory_batch_size=4, buffer_size=12, top_k=4),
    "derpp": strategy("derpp", memory_batch_size=4, buffer_size=12, top_k=4),
    "answer-styles": strategy("answer_styles", share=0.5),
    "answer-styles-choices": {**strategy("answer_styles", share=0.5), "stream": WORDS},
    "o-lora": {**strategy("o_lora", weight=0.5, norm_weight=0.1), **adapter("stack")},
    "o-lora-squared": {**strategy("o_lora", squared=True), **adapter("stack")},
    "reg-lora": {**strategy("reg_lora", share=0.2), **adapter("merge")},
    "reg-lora-duplicates": {**strategy("reg_lora", share=0.2, duplicates=True), **adapter("merge")},
    "three": {"strategies": {"replay": STORED, "ewc": {"weight": 100, "fisher_examples": 8}, "lwf": {}}},
    "three-adapter": {
        "strategies": {"power_law": {}, "si": {"weight": 10.0}, "logit_swap": {}},
        **adapter("continue"),
    },
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "rft-grpo": {"objective": RFT},
    "rft-rloo": {"objective": {**RFT, "algorithm": "rloo", "beta": 0}},
    "rft-two-updates": {"objective": {**RFT, "num_iterations": 2, "temperature": 0.7}},
    "rft-incompetent": {"objective": {**RFT, "instance_filter": "incompetent"}},
    "rft-zero-variance": {"objective": {**RFT, "instance_filter": "zero_variance"}},
    "rft-replay": {"objective": RFT, **strategy("replay", **STORED)},
    "rft-ewc": {"objective": RFT, **strategy("ewc", fisher_examples=4)},
    "rft-lwf-parts": {
        "objective": RFT,
        **strategy("lwf"),
        "train": {"per_device_train_batch_size": 3},
    },
    "rft-stack": {"objective": RFT, **adapter("stack")},
    "supcon-text": {"objective": SUPCON, "stream": {"tasks": ["max", "parity"], "length": 2}},
    "supcon-merge": {"objective": SUPCON, "stream": {"tasks": ["max"]}, **adapter("merge")},
}
STREAMS: dict[str, dict[str, Any]] = {
    "joint": {"stream": {"view": "joint"}},
    "cumulative": {"stream": {"view": "cumulative"}, **strategy("replay")},
    "independent": {"stream": {"view": "independent"}},
    "independent-stack": {"stream": {"view": "independent"}, **adapter("stack")},
    "start": {"stream": {"view": "start"}},
    "anchors": {"stream": {"tasks": ["max", "last"], "anchors": ["parity", "double"]}, **strategy("replay")},
    "anchors-ewc": {"stream": {"tasks": ["max"], "anchors": ["last"]}, **strategy("ewc", fisher_examples=4)},
    "order": {
        "stream": {"order": ["parity", "max", "last"]},
        "seed": {"data": 1, "init": 2, "memory": 3, "rollout": 4},
    },
    "limit": {"stream": {"limit": {"train": 10, "valid": 2, "test": 3}}},
    "words": {"stream": {**WORDS, "scorer": {"colours": "choices", "sums": "numeric", "talk": "token_f1"}}},
    "words-class": {
        "stream": {**WORDS, "tasks": ["colours", "animals"], "scenario": "class", "scorer": "choices_norm"},
        "prompt": {
            "template": "{task}: {input} ({choices})",
            "system": "Be short.",
            "suffix": " = ",
            "max_prompt_length": 30,
        },
    },
    "words-rouge": {
        "stream": {**WORDS, "scorer": {"colours": "normalized_exact", "talk": "rouge_l"}},
        "prompt": {"max_prompt_length": 16},
    },
}
TRAINING: dict[str, dict[str, Any]] = {
    "continue": adapter("continue", lora_dropout=0.2),
    "merge": adapter("merge", use_rslora=True),
    "stack": adapter("stack", target_modules=["q_proj", "v_proj"]),
    "cold-start": {"model": {"warmup": None}, "train": {"learning_rate": 0.03}},
    "epochs": {"train": {"max_steps": -1, "num_train_epochs": 1.5, "per_device_train_batch_size": 3}},
    "sgd-cosine": {
        "train": {
            "optim": "sgd",
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.4,
            "weight_decay": 0.1,
            "max_grad_norm": 0,
        }
    },
    "adam-linear": {
        "train": {"lr_scheduler_type": "linear", "weight_decay": 0.1, "adam_beta1": 0.8, "max_grad_norm": 0.1}
    },
    "bf16": {"train": {"bf16": True}, **strategy("lwf")},
    "seen": {"evaluate": {"tasks": "seen", "split": "valid", "limit": 3, "batch_size": 2}},
    "curves-linear": {"evaluate": {"forgetting_curve": {"schedule": "linear", "every": 2, "examples": 3}}},
    "curves-off": {"evaluate": {"forgetting_curve": {"schedule": "off"}}, "checkpoint": {"keep": "all"}},
    "curves-log": {"train": {"max_steps": 6, "logging_steps": 4}, "stream": {"tasks": ["max", "last"]}},
    "chat": {"model": FOLDER, "stream": WORDS, "prompt": {"system": "Be short."}},
    "chat-off": {"model": FOLDER, "prompt": {"chat_template": "off"}, **strategy("lwf")},
    "encoder": {"model": {"name": "chat", "head": "none"}, "objective": SUPCON, "stream": {"tasks": ["max"]}},
    "deepspeed": {"engine": {"name": "deepspeed", "device": "cpu"}, **strategy("lwf")},
}
ARRAYS: dict[str, dict[str, Any]] = {
    "images": {},
    "images-mlp": {
        "model": MLP,
        "stream": {"protocol": "permuted", "permutations": 3},
        **strategy("ewc", fisher_examples=8),
    },
    "images-class": {"stream": {"scenario": "class"}, **strategy("replay", buffer_size=30)},
    "images-ewc-exact": {"model": MLP, **strategy("ewc", weight=100, fisher="exact", fisher_examples=4)},
    "images-lwf": {"model": MLP, **strategy("lwf")},
    "images-der": {"model": MLP, **strategy("der", memory_batch_size=8, top_k=4)},
    "images-agem": {"model": MLP, **strategy("agem", memory_batch_size=8)},
    "images-si": {"model": MLP, **strategy("si", weight=10.0)},
    "images-joint": {"stream": {"view": "joint"}},
    "supcon": {"objective": SUPCON},
    "supcon-shift": {"objective": {**SUPCON, "augment": "shift"}, **strategy("replay", buffer_size=30)},
    "supcon-noise": {"objective": {**SUPCON, "augment": "noise", "base_temperature": None}, "model": MLP},
    "prototype-distill": {"objective": SUPCON, **strategy("prototype_distill")},
    "prototype-distill-sharp": {"objective": SUPCON, "model": MLP, **strategy("prototype_distill", kappa=0.1)},
    "prototype-distill-samples": {
        "objective": {**SUPCON, "prototype_weight": 1.0},
        **strategy("prototype_distill", relation_axis="samples", kappa=0.5),
        "stream": {"scenario": "class"},
    },
}
STOPPED = (
    "replay-ring",
    "three",
    "o-lora",
    "reg-lora",
    "derpp",
    "continue",
    "independent",
    "cumulative",
    "rft-replay",
    "anchors",
)
COMPARED = {
    "compared": {
        "seeds": [0, 1],
        "orders": [["max", "last"], ["last", "max"]],
        "stream": {"tasks": ["max", "last"]},
        "methods": {"sequential": {}, "replay": strategy("replay"), "joint": {"stream": {"view": "joint"}}},
    }
}


def layered(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A case over its basis; a section with another name stands for itself."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        found[key] = {**old, **value} if both and value.get("name", old.get("name")) == old.get("name") else value
    return found


def all_cases() -> dict[str, dict[str, Any]]:
    """Name -> whole config."""
    text = STRATEGIES | OBJECTIVES | STREAMS | TRAINING
    cases = {name: layered(TINY, case) for name, case in text.items()}
    cases |= {name: layered(IMAGES, case) for name, case in ARRAYS.items()}
    cases |= {f"{name}-stopped": {**cases[name], "stop": True} for name in (*STOPPED, "prototype-distill")}
    return cases | {name: layered(TINY, case) for name, case in COMPARED.items()}


# what the cases read ------------------------------------------------------------------------------------------------

COLOURS, ANIMALS = ["red", "green", "blue"], ["cat", "dog"]


def rows() -> dict[str, list[dict[str, Any]]]:
    """The tasks of the folder `words`: closed and open answers, conversations."""
    talk = [
        {
            "messages": [
                {"role": "user", "content": f"say {i}"},
                {"role": "assistant", "content": "which?"},
                {"role": "user", "content": f"number {i}"},
                {"role": "assistant", "content": f"it is {i}"},
            ]
        }
        for i in range(12)
    ]
    return {
        "colours": [{"input": f"thing {i}", "target": COLOURS[i % 3], "choices": COLOURS} for i in range(12)],
        "animals": [{"input": f"pet {i}", "target": ANIMALS[i % 2], "choices": ANIMALS} for i in range(12)],
        "sums": [{"instruction": "add", "input": f"{i} + {i + 1}", "target": str(2 * i + 1)} for i in range(12)],
        "talk": talk,
    }


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_inputs(folder: Path) -> None:
    """`words`, a folder of JSONL tasks, and `chat`, a one-layer Llama with a chat template."""
    for task, found in rows().items():
        for split, part in {"train": found[:8], "valid": found[8:10], "test": found[8:]}.items():
            path = folder / "words" / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    write_chat_model(folder / "chat")


def write_chat_model(folder: Path) -> None:
    """Made by the libraries alone, so that both sides of a comparison start from the same files."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|user|>", "<|assistant|>", "<|system|>"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", bos_token="<|begin|>"
    )
    fast.add_special_tokens({"additional_special_tokens": marks})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        tie_word_embeddings=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        **SHAPE,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
