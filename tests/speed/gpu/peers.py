"""The same steps by others: a bare loop, as it is and compiled, and TRL where it is installed."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from shapes import Setting
from torch.nn.functional import cross_entropy

from cl_toolkit.models.tiny import byte_tokenizer
from cl_toolkit.types import IGNORE


def available(setting: Setting) -> dict[str, Callable[[Setting], list[float]]]:
    """Name -> what gives the seconds of single steps."""
    found: dict[str, Callable[[Setting], list[float]]] = {"a bare loop": bare, "a bare loop, compiled": compiled}
    return {**found, "TRL": trl} if find_spec("trl") and setting.device.type == "cuda" else found


def bare(setting: Setting, compile: bool = False) -> list[float]:
    """Autocast, fused AdamW, clipping, no mask; all positions are projected."""
    model, fused = setting.model().train(), setting.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0, fused=fused)

    def loss_of(ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids).logits
        return cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORE)

    forward, seconds, rows = torch.compile(loss_of) if compile else loss_of, [], setting.full()
    for step in range(setting.warm + setting.steps):
        batch = setting.codec().batch(rows.examples[step * rows.size : (step + 1) * rows.size]).to(setting.device)
        setting.wait()
        started = time.perf_counter()
        with torch.autocast(setting.device.type, torch.bfloat16):
            loss = forward(batch.inputs["input_ids"], batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        setting.wait()
        seconds.append(time.perf_counter() - started)
    return seconds[setting.warm :]


def compiled(setting: Setting) -> list[float]:
    return bare(setting, compile=True)


def trl(setting: Setting) -> list[float]:
    """SFTTrainer with its chunked loss, fused AdamW, bf16 over fp32 weights, without checkpointing."""
    import tempfile

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows, codec, seconds = setting.full(), setting.codec(), []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            setting.wait()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            setting.wait()
            seconds.append(time.perf_counter() - self.started)

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = codec.batch([rows.examples[item["index"]] for item in items])
        return {**batch.inputs, "labels": batch.labels}

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(folder, per_device_train_batch_size=rows.size, max_steps=setting.warm + setting.steps, bf16=True,
                             optim="adamw_torch_fused", gradient_checkpointing=False, report_to=[], logging_steps=1000,
                             save_strategy="no", remove_unused_columns=False,
                             dataset_kwargs={"skip_prepare_dataset": True})  # fmt: skip
        data = Dataset.from_dict({"index": list(range(len(rows.examples)))})
        model: Any = setting.model().float()
        trainer = SFTTrainer(
            model,
            settings,
            train_dataset=data,
            data_collator=collate,
            callbacks=[Watch()],
            processing_class=byte_tokenizer(),
        )
        trainer.train()
    return seconds[setting.warm :]
