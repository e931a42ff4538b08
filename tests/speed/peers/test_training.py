"""Training beside other libraries: Hugging Face's Trainer, TRL's SFT and GRPO trainers. CPU time, one thread, medians.

They get rows of tokens that are ready; ours gets texts, tokens included. `make speed-peers` installs them apart.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from typing import Any

import pytest
import torch
from pieces import ask, byte_codec, task_view, train
from timing import llama
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from cl_toolkit.models.logits import says_logits
from cl_toolkit.models.tiny import TinyLM, build_tiny
from cl_toolkit.strategies.objectives.rft import RFT

pytestmark = [pytest.mark.speed, pytest.mark.filterwarnings("ignore")]
trl = pytest.importorskip("trl", reason="TRL is not installed here: make speed-peers")
REPEATS = 5


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def medians(arms: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of arms in turns, the first round dropped; an arm gives the seconds of what counts."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(REPEATS + 1):
        for name, arm in arms.items():
            spent = arm()
            if repeat:
                times[name].append(spent)
    return {name: statistics.median(spent) for name, spent in times.items()}


def tiny() -> Any:
    """tiny-lm, 0.36 M weights."""
    return build_tiny(TinyLM(), 0)


def texts(count: int, half: int) -> list:
    """Questions and answers of `half` tokens each."""
    draw = random.Random(0)

    def words(length: int) -> str:
        return "".join(draw.choice("abcdefgh ijk") for _ in range(length))

    return [ask(words(half - 2), words(half - 1), str(i)) for i in range(count)]


class Watch:
    """CPU seconds between the first step's end and the last one's."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self, session: Any) -> None:
        self.ends.append(time.process_time())

    @property
    def spent(self) -> float:
        return self.ends[-1] - self.ends[0]


def callback(watch: Watch) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch(None)

    return Steps()


def settings(cls: type, folder: str, size: int, steps: int, **more: Any) -> Any:
    return cls(folder, per_device_train_batch_size=size, max_steps=steps, learning_rate=3e-4, lr_scheduler_type="constant",
               report_to=[], logging_steps=10_000, save_strategy="no", use_cpu=True, disable_tqdm=True, **more)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "size", "half", "steps"), [("tiny", tiny, 8, 24, 60), ("1 M", llama, 16, 64, 6)]
)
def test_sft(measured, name, make, size, half, steps):
    from datasets import Dataset

    examples = texts(size * steps, half)
    batch = byte_codec().batch(examples)
    columns = {"input_ids": batch.inputs["input_ids"].tolist(), "labels": batch.labels.tolist()}
    data = Dataset.from_dict({**columns, "attention_mask": batch.inputs["attention_mask"].tolist()}).with_format(
        "torch"
    )

    def ours() -> float:
        model, watch = make(), Watch()
        model.says_logits = says_logits(model)
        view = task_view(examples, codec=byte_codec(), batch_size=size, max_steps=steps, wants_logits=False)
        train(model, view, None, watch)
        return watch.spent

    def trainer(cls: type, config: type, **more: Any) -> float:
        watch = Watch()
        with tempfile.TemporaryDirectory() as folder:
            arguments = settings(config, folder, size, steps, **more)
            cls(make(), arguments, train_dataset=data, callbacks=[callback(watch)], data_collator=collate).train()
        return watch.spent

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    arms = {
        "ours": ours,
        "HF Trainer": lambda: trainer(Trainer, TrainingArguments),
        "TRL": lambda: trainer(Quiet, trl.SFTConfig, dataset_kwargs={"skip_prepare_dataset": True}, bf16=False,
                               gradient_checkpointing=False, remove_unused_columns=False),
    }  # fmt: skip
    times = medians(arms)
    for peer in ("HF Trainer", "TRL"):
        measured(
            f"SFT step, {name}, {size} x {2 * half}, tokenising included",
            times["ours"] / times[peer],
            peer,
            1.0,
            REPEATS,
        )


class Quiet(trl.SFTTrainer):
    """Takes the byte tokenizer, since the models here come without one."""

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named, processing_class=byte_codec().tokenizer)


@pytest.mark.parametrize("beta", [0.0, 0.01])
def test_grpo(measured, beta):
    from datasets import Dataset

    prompts, copies, length, steps = 16, 4, 16, 4
    examples = texts(prompts * steps, 8)
    data = Dataset.from_dict({"prompt": [f"<s>{e.question}\n" for e in examples]})

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(text) % 2) for text in completions]

    def ours() -> float:
        objective, watch = RFT(RFT.Config(num_generations=copies, max_completion_length=length, beta=beta)), Watch()
        score = {"score": lambda example, answer: float(len(answer) % 2)}
        model = tiny()
        model.says_logits = says_logits(model)
        view = task_view(
            examples, objective, codec=byte_codec(), batch_size=prompts, max_steps=steps, wants_logits=False, **score
        )
        train(model, view, None, watch)
        return watch.spent

    def theirs() -> float:
        watch = Watch()
        with tempfile.TemporaryDirectory() as folder:
            arguments = settings(trl.GRPOConfig, folder, prompts * copies, steps, num_generations=copies, beta=beta,
                                 max_completion_length=length, bf16=False, gradient_checkpointing=False)  # fmt: skip
            tiny().save_pretrained(f"{folder}/start")  # where its reference is read from
            model = LlamaForCausalLM.from_pretrained(f"{folder}/start")
            trl.GRPOTrainer(model, reward, arguments, train_dataset=data, processing_class=byte_codec().tokenizer,
                            callbacks=[callback(watch)]).train()  # fmt: skip
        return watch.spent

    times = medians({"ours": ours, "TRL": theirs})
    what = f"GRPO step, {prompts} x {copies} x {length}, beta {beta:g}"
    measured(what, times["ours"] / times["TRL"], "TRL", 0.30, REPEATS)
