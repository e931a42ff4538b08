"""What the engines are given, setting by setting, and in how many processes."""

STAGES = (0, 1, 2, 3)
MICRO = {"whole": None, "parts": 2}  # examples per forward

REFERENCES = {
    "torch": {"engine": "torch"},
    "torch-frozen": {"engine": "torch", "frozen": True},
    "torch-bf16": {"engine": "torch", "bf16": True},
}
LAW_9 = {f"{s}-{m}": {"engine": "deepspeed", "stage": s, "micro": MICRO[m]} for s in STAGES for m in MICRO}
FROZEN = {f"{s}-frozen": {"engine": "deepspeed", "stage": s, "frozen": True} for s in (2, 3)}
BF16 = {f"{s}-bf16": {"engine": "deepspeed", "stage": s, "bf16": True} for s in (0, 2, 3)}
REOPEN = {f"{s}-reopen": {"engine": "reopen", "stage": s} for s in (0, 2, 3)}
WHOLE = {"whole": {"engine": "whole"}}
ANSWERED = {"answered": {"engine": "answered"}}

STRATEGY_SETTINGS = {  # that make a strategy felt
    "replay": {},
    "surprise_replay": {"buffer_size": 4},
    "power_law": {},
    "ewc": {"weight": 100.0, "fisher": "empirical"},
    "si": {"weight": 10.0},
    "agem": {"memory_batch_size": 2},
    "gem": {"memory_batch_size": 2},
    "ogd": {"examples": 3},
    "freeze": {},
    "der": {"memory_batch_size": 3, "buffer_size": 9, "top_k": 4},
    "derpp": {"memory_batch_size": 3, "buffer_size": 9, "top_k": 4},
    "o_lora": {},
    "inf_lora": {"energy": 0.6},
    "guard": {"margin": 8.0, "steps": 3},
    "sd_lora": {},
    "slao": {},
    "coda_prompt": {"components": 2},
    "compression_memory": {"entries": 3, "top_k": 2, "tokens": 2, "rank": 4},
    "answer_styles": {"share": 0.5},
    "reg_lora": {"share": 0.5},
    "lwf": {"weight": 5.0},
    "logit_swap": {},
    "merge": {"method": "ties", "density": 0.5},
    "ema": {"decay": 0.5, "begin": "slow"},
    "instruction_residual": {},
}
WITHOUT_TERM = (
    *("replay", "surprise_replay", "power_law", "agem", "gem", "ogd", "freeze", "guard", "inf_lora", "answer_styles"),
    *("merge", "ema", "instruction_residual", "sd_lora", "slao", "coda_prompt", "compression_memory"),
)
WITH_PENALTY = {"ewc", "si", "o_lora", "reg_lora", "adapter-continue"}
ROLLOUTS = {"num_generations": 3, "max_completion_length": 4, "beta": 0.5, "num_iterations": 2}
RFT = {"strategy": ["replay", {}], "rft": ROLLOUTS, "micro": 8}
REMAX = {**RFT, "rft": {**ROLLOUTS, "algorithm": "remax", "kl_in": "reward", "loss_type": "grpo"}}
# a teacher that moves with the weights, whose rows ride in the batch; one that is asked through the engine
OWN = {"teacher": "live", "context": "feedback", "num_generations": 2, "divergence": "reverse"}
SDFT = {
    "strategy": ["replay", {}],
    "objective": ["on_policy", {"max_completion_length": 4, "divergence": "jsd"}],
    "micro": 2,
}
SDPO = {**SDFT, "objective": ["on_policy", OWN]}
DPO = {"strategy": ["replay", {}], "objective": ["dpo", {"beta": 2.0}], "micro": 2}  # two forwards to one backward
LWF = ["lwf", STRATEGY_SETTINGS["lwf"]]
SMALL = {"layers": 1, "steps": 4}  # an epoch has three steps
LOSSES = {
    name: {"strategy": ["replay", {}], "objective": [name, settings]}
    for name, settings in {"dft": {}, "eaft": {}, "asft": {"weight": 10.0}}.items()
}
EACH = {name: {"strategy": [name, settings]} for name, settings in STRATEGY_SETTINGS.items()}
EACH["agem"]["steps"], EACH["gem"]["steps"] = 8, 16  # before that no gradient of the memory is against the step's
EACH |= {"rft": RFT, "rft-remax": REMAX, "on_policy": SDFT, "on_policy-live": SDPO, "dpo": DPO, **LOSSES}
EACH |= {f"adapter-{life}": {"life_cycle": life} for life in ("continue", "merge", "stack")}
EACH |= {  # rows that are weighted by counts of the whole step; answers that are written before a task (some of 11 end)
    "replay-share": {"strategy": ["replay", {"replay_loss_share": 0.2}]},
    "replay-self": {"strategy": ["replay", {"source": "self", "max_completion_length": 90, "temperature": 100.0}]},
}
EACH |= {  # ways to have a teacher: some weights exchanged; the adapter off
    "lwf-continue": {"strategy": LWF, "life_cycle": "continue"},
    "lwf-merge": {"strategy": LWF, "life_cycle": "merge"},
    "logit_swap-stack": {"strategy": ["logit_swap", {}], "life_cycle": "stack"},
    "lwf-start": {"strategy": ["lwf", {"weight": 5.0, "teacher": "start"}]},
}
SHARDS = {  # what else of a weight ZeRO-3 keeps on a process: the whole of a small one; a second shard
    "lwf-persistent": {"strategy": LWF, "zero": {"stage3_param_persistence_threshold": 1000}},
    "lwf-hpz": {"strategy": LWF, "zero": {"zero_hpz_partition_size": 2}},
}

CONTRASTIVE = {"projection_size": 8, "hidden_size": 16}  # cannot be cut: one process, whole batches
# SGD, since Adam would blow up a past prototype's first gradient, which is 0 up to rounding; and a small rate: at 0.1 the
# norm of the gradient climbs from 4 to 111 in eight steps, and a last bit (5e-7 of a loss of 4) grows fortyfold.
PLAIN = {"optim": "sgd", "learning_rate": 0.01}
DISTILL = {"strategy": ["prototype_distill", {}], "supcon": CONTRASTIVE, "micro": None, "train": PLAIN}


def at_stage(stage, setting):
    return {"engine": "deepspeed", "stage": stage, "micro": 2, **SMALL, **setting}


GRID_ALONE = (
    *("surprise_replay", "replay-self", "power_law", "answer_styles", "gem", "inf_lora", "slao", "der", "merge", "ema"),
    *("instruction_residual", "freeze", "guard", "rft-remax", "on_policy-live", "dft", "eaft", "adapter-merge"),
)
"""What uses no more of an engine than others do: it is followed in `make grid` alone."""
USUAL = {name: setting for name, setting in EACH.items() if name not in GRID_ALONE}
EACH_TORCH = {f"torch-{name}": {"engine": "torch", **SMALL, **setting} for name, setting in EACH.items()}
USUAL_TORCH = {f"torch-{name}": EACH_TORCH[f"torch-{name}"] for name in USUAL}
SHARED = {  # a pass over a task's examples that the processes share, at one stage each
    "0-ewc-exact": {"strategy": ["ewc", {"weight": 100.0, "fisher": "exact", "fisher_examples": 3}]},
    "1-ewc-sampled": {"strategy": ["ewc", {"weight": 100.0}]},
    "2-ewc-batched": {"strategy": ["ewc", {"weight": 10000.0, "fisher": "batched"}]},
    "3-ewc-one": {"strategy": ["ewc", {"weight": 100.0, "fisher_examples": 1}]},  # a process without any
    "1-ewc-rft": {**RFT, "strategy": ["ewc", {"weight": 100.0}]},
    "3-rft-filter": {**RFT, "rft": {**ROLLOUTS, "instance_filter": "zero_variance"}},
}
SHARED_TORCH = {f"torch-{name}": {"engine": "torch", **SMALL, **setting} for name, setting in SHARED.items()}
SHARED_ZERO = {name: at_stage(int(name[0]), setting) for name, setting in SHARED.items()}
OFF_TORCH = {f"off-{name}": EACH_TORCH[f"torch-{name}"] | {"strategy": []} for name in WITHOUT_TERM if name in USUAL}
DISTILL_ZERO = {f"{stage}-prototype_distill": at_stage(stage, DISTILL) for stage in STAGES}
DISTILL_TORCH = {"torch-prototype_distill": {"engine": "torch", **SMALL, **DISTILL}}
EACH_ZERO = {name: at_stage(3, setting) for name, setting in (USUAL | SHARDS).items()}
# Uses every hook; without clipping, since DeepSpeed clips by the norm of before a gradient was edited then.
HOST = {"offload_optimizer": {"device": "cpu"}}
UNCLIPPED = {"train": {"max_grad_norm": 0.0}, **SMALL}
OFFLOAD = {
    f"{stage}-offload": at_stage(
        stage, {"zero": HOST | ({"offload_param": HOST["offload_optimizer"]} if stage == 3 else {})}
    )
    | UNCLIPPED
    for stage in (1, 2, 3)
}
OFFLOAD_TORCH = {"torch-offload": {"engine": "torch", **UNCLIPPED}}
ALONE = OFFLOAD_TORCH | REOPEN | WHOLE | USUAL_TORCH | SHARED_TORCH | OFF_TORCH | DISTILL_TORCH | DISTILL_ZERO
SETTINGS = {1: REFERENCES | LAW_9 | ALONE, 2: LAW_9 | FROZEN | BF16 | EACH_ZERO | SHARED_ZERO | ANSWERED | OFFLOAD}
"""By number of processes."""
ALWAYS = {
    *(
        "torch",
        "0-whole",
        "1-parts",
        "2-parts",
        "3-whole",
        "3-parts",
        "frozen",
        "3-frozen",
        "bf16",
        "3-bf16",
        "3-reopen",
    ),
    *("whole", "answered", "offload", "3-offload", "prototype_distill", "3-prototype_distill", "1-ewc-sampled"),
    *("3-rft-filter", "replay", "ewc", "agem", "lwf", "rft", "on_policy", "adapter-stack", "lwf-continue"),
}
"""What `make test` follows, with its references; the others are followed in `make test-long`."""


def is_quick(name):
    return name.removeprefix("torch-").removeprefix("off-") in ALWAYS


GRID = {f"{stage}-{name}": at_stage(stage, setting) for stage in STAGES for name, setting in EACH.items()}
RUNS = [(world, name) for world in SETTINGS for name in LAW_9] + [(2, name) for name in FROZEN | BF16]
