"""The model, the tasks and the settings that the engines are followed with."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cl_toolkit.engine.sections import Train
from cl_toolkit.models.kind import hide_targets
from cl_toolkit.models.prefix import Prefix, WholeRows, goes_on
from cl_toolkit.models.writers import Own
from cl_toolkit.strategies.objectives.sft import SFT
from cl_toolkit.strategy import Strategy
from cl_toolkit.task_view import TaskView
from cl_toolkit.types import IGNORE, Batch, Example, Message

CPU = torch.device("cpu")
BATCH = 5  # of 11 examples: 5, 5, 1; with rehearsed ones 10, 10, 2


class Codec:
    """Right-padded character codes; the target's are the labels."""

    eos = pad = 0
    stops = frozenset({0})
    writer = Own()

    def ids(self, example):
        return [ord(c) for c in example.question], [ord(c) for c in example.target]

    def answers(self, examples, texts):
        return [[ord(c) for c in text] for text in texts]

    def said(self, ids):
        return "".join(chr(i) for i in ids if i != self.eos)

    def ended(self, ids):
        return ids[-1:] == [self.eos]

    def class_of(self, example):
        return None

    def read(self, model, prompts):
        return (Prefix if goes_on(model, self.pad) else WholeRows)(model, prompts, self.pad)

    def prompts(self, examples):
        return self.batch(examples, [[]] * len(examples))

    def batch(self, examples, answers=None):
        prompts = [self.ids(e)[0] for e in examples]
        answers = answers or [self.ids(e)[1] for e in examples]
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.zeros(len(examples), width, dtype=torch.long)
        labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[i, : len(p) + len(a)] = torch.tensor(p + a)
            mask[i, : len(p) + len(a)] = 1
            labels[i, len(p) : len(p) + len(a)] = torch.tensor(a)
        inputs = {"input_ids": ids, "attention_mask": mask}
        return hide_targets(Batch(inputs, labels, tuple(examples), along_tokens=frozenset({*inputs, "labels"})))


def even(example, answer):
    """A reward that an untrained model earns about half of the time."""
    return float(sum(answer.encode()) % 2 == 0)


class Watched(SFT):
    """SFT that remembers the sources of the examples that this process encoded."""

    name = "sft"

    def __init__(self):
        super().__init__()
        self.shares = []

    def encode(self, model, task, examples):
        self.shares.append([e.source for e in examples])
        return super().encode(model, task, examples)


class Pull(Strategy):
    """Uses every hook over weights and gradients: a quadratic pull to the old weights, and edits of the gradient with
    the gradient on three old examples."""

    def __init__(self):
        super().__init__()
        self.anchor, self.memory = {}, ()

    def before_task(self, model, task):
        self.task = task
        return model

    def penalty(self, weights):
        # norm weights have an odd length, so that two processes hold unequal shards of them
        read = [n for n in self.anchor if n in weights and ("mlp" in n or "norm" in n or "embed" in n)]
        return {"pull": sum(0.5 * ((weights[n] - self.anchor[n]) ** 2).sum() for n in read)} if read else {}

    def before_step(self, model, step):
        if not self.memory:
            return
        reference = step.gradient_of(self.memory)
        pairs = [(step.grads[n], reference[n]) for n in step.grads]
        along = sum((g * r).sum() for g, r in pairs) / sum((r * r).sum() for _, r in pairs)
        for (name, r), (g, _) in zip(reference.items(), pairs, strict=True):
            step.grads[name] = g - 0.5 * along * r
        for name, own in step.penalty_grads.items():
            step.grads[name] = step.grads[name] - 0.25 * own + 0.01 * step.weights[name].detach()

    def after_task(self, model, task):
        self.anchor = {n: p.detach().clone() for n, p in model.named_parameters()}
        self.memory = task.examples[:3]
        return model


def make_model(layers=2):
    """Llama of 0.08 M weights with tied embeddings."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=65,
            head_dim=16,
            intermediate_size=129,
            num_hidden_layers=layers,
            num_attention_heads=5,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )


def make_tasks(objective, steps=-1, processes=None):
    """Two tasks whose targets have 1 to 12 tokens."""
    for index in range(2):
        yield TaskView(
            name=f"task{index}",
            index=index,
            examples=[
                Example(
                    id=f"{index}-{i}",
                    messages=(Message(role="user", content=f"{index}:{i}?"),),
                    target="abcdefghijklmnopqrstuvw"[i : i + 1 + (5 * i + index) % 12],
                    extra={"rejected": "wvutsrqponmlkjihgfedcba"[i : i + 1 + (7 * i + index) % 9]},
                )
                for i in range(11)
            ],
            objective=objective,
            codec=Codec(),
            score=even,
            batch_size=BATCH,
            epochs=2,
            max_steps=steps,
            processes=processes,
            validation=lambda model: {"size": -sum(float(p.detach().double().abs().sum()) for p in model.parameters())},
        )


def make_train(micro=None, **changed):
    return Train(
        **{
            "num_train_epochs": 2,
            "max_steps": -1,
            "global_batch_size": BATCH,
            "per_device_train_batch_size": micro,
            "learning_rate": 3e-3,
            "optim": "adamw_torch",
            "weight_decay": 0.01,
            "adam_beta1": 0.9,
            "adam_beta2": 0.999,
            "adam_epsilon": 1e-8,
            "max_grad_norm": 1.0,
            "lr_scheduler_type": "cosine",
            "lr_scheduler_kwargs": None,
            "warmup_ratio": 0.2,
            "lr_over": "stage",
            "lr_per_stage": None,
            "bf16": False,
            "packing": None,
            "compile": "none",
            "gradient_checkpointing": False,
            "logging_steps": 10,
            "num_threads": 1,
            **changed,
        }
    )
