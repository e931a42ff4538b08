"""Any number of processes and devices: DeepSpeed, ZeRO stages 0 to 3.

Every process knows the same weights by name, but from stage 1 on whole tensors exist only when they are asked for.
Asking is a collective operation: all processes read and write the same names in the same order.
"""

from __future__ import annotations

import atexit
import gc
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cl_toolkit.engine import launch
from cl_toolkit.engine.deepspeed_config import final_config, with_buckets, zero_stage
from cl_toolkit.engine.processes import DistributedProcesses, Processes
from cl_toolkit.engine.sections import Train
from cl_toolkit.engine.session import Engine, GradientsView, Session
from cl_toolkit.engine.torch_engine import make_optimizer, make_schedule, trainable
from cl_toolkit.errors import UserError
from cl_toolkit.types import Example


def start_processes(device: torch.device, minutes: float | None = None) -> Processes:
    """The processes of this job. Starts the process group on the first call: from the variables that a launcher has set
    (`deepspeed`, `torchrun`, `srun`), else a group of one. minutes: how long one waits for the others; None: torch's own 10
    or 30, which are for steps, not for a process that writes a large checkpoint or has the longest answers."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
    import deepspeed
    import torch.distributed as dist

    if not dist.is_initialized():
        launch.be_one()
        if device.type == "cpu":
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiling it takes most of a minute
        else:
            torch.cuda.set_device(launch.place(torch.cuda.device_count()))
        # torch renamed two operations that ZeRO-3 calls; the warning comes at every step and nobody can act on it.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        # to a process that is alone DeepSpeed gives no device of its own, and it is the right one
        warnings.filterwarnings("ignore", r"barrier\(\): using the device under current context")
        atexit.register(launch.leave)
        backend = "gloo" if device.type == "cpu" else "nccl"
        patience = {} if minutes is None else {"timeout": timedelta(minutes=minutes)}
        deepspeed.init_distributed(backend, **patience)
    return DistributedProcesses() if dist.get_world_size() > 1 else Processes()


@cache
def settle() -> None:
    """Once in a process: what the imports have made stays, and no collection of garbage looks through it again. It takes 0.3 s,
    and one is due at the end of each task."""
    import deepspeed  # noqa: F401

    gc.collect()
    gc.freeze()


class DeepSpeedEngine(Engine):
    """`config`: the user's DeepSpeed config as in `engine.deepspeed`. bf16 by autocast, with fp32 weights."""

    name = "deepspeed"

    def __init__(
        self,
        train: Train,
        device: torch.device,
        processes: Processes | None = None,
        config: Mapping[str, Any] | str | None = None,
    ):
        super().__init__(train, device, processes or start_processes(device))
        self.config = final_config(config, self.train)
        self.stage = zero_stage(self.config)
        self.mixes_dtypes = self.stage < 3
        settle()

    def open(self, model, task, steps):
        return DeepSpeedSession(self, model, task, steps)


class DeepSpeedSession(Session):
    """A training step under ZeRO. `model` is DeepSpeed's engine around `plain`."""

    engine: DeepSpeedEngine

    def start(self):
        import deepspeed

        self._weights = trainable(self.module)
        self._shapes = {name: weight.shape for name, weight in self._weights.items()}
        self._owners = [(owner, dict(vars(owner))) for owner in (*self.module.parameters(), *self.module.modules())]
        self._linear = nn.functional.linear  # ZeRO-3 puts another one in its place, for the whole program
        parameters = list(self._weights.values())
        self.optimizer = make_optimizer(self.engine.train, parameters)
        self.schedule = make_schedule(self.engine.train, self.optimizer, self.steps, self.engine.standing)
        config = with_buckets(self.engine.config, sum(weight.numel() for weight in parameters))
        self.model, *_ = deepspeed.initialize(
            model=self.module, model_parameters=parameters, optimizer=self.optimizer, config=config
        )
        self._whole = _Weights(self._weights)
        if self.engine.stage == 3:
            plain: Any = self.module
            plain.swapped_shards = self._swapped_shards  # for `access.swapped`; gone when the engine is closed
            plain.gathered = self._gathered  # for `access.in_one_piece`
            self._hooks = (
                self.module.register_forward_pre_hook(self._before_forward, prepend=True),
                self.module.register_forward_hook(self._after_forward),
            )

    def _before_forward(self, *_: object) -> None:
        # By these counts ZeRO-3 sees in backward that it may let go of a module's weights. Each forward starts them anew:
        # after a teacher's, between a forward and its backward, all weights would stay whole until the backward ends.
        if not torch.is_grad_enabled():
            modules = [module for module in self.module.modules() if hasattr(module, "ds_grads_remaining")]
            self._remaining = [(module, module.ds_grads_remaining) for module in modules]

    def _after_forward(self, *_: object) -> None:
        if not torch.is_grad_enabled():
            for module, remaining in self._remaining:
                module.ds_grads_remaining = remaining

    def accumulate(self, loss):
        self.model.set_gradient_accumulation_boundary(self.last_part)
        self.model.backward(loss * self.processes.world)  # DeepSpeed averages over processes, the step is a sum

    def weights(self):
        return self._whole

    def add_penalty(self, penalty):
        read = self._whole.read
        grads = torch.autograd.grad(penalty, list(read.values()), allow_unused=True)
        found = {name: grad for name, grad in zip(read, grads, strict=True) if grad is not None}
        gradients = self.gradients()
        for name, grad in found.items():
            gradients[name] = gradients[name] + grad
        return found

    def gradients(self):
        return _Gradients(self._weights, self._shapes)

    def gradient_of(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        whole = {name: torch.zeros(shape, device=self.engine.device) for name, shape in self._shapes.items()}
        for part in self.aside(self.task.encode(self.share(examples), self.model)):
            # Past DeepSpeed's engine: inside it, this backward would be taken for a part of the step.
            with torch.autocast(self.engine.device.type, torch.bfloat16, enabled=bool(self.engine.train.bf16)):
                loss = self.task.forward(self.module, part).loss
            grads = torch.autograd.grad(loss * self.processes.world, list(self._weights.values()), allow_unused=True)
            for name, grad in zip(self._shapes, grads, strict=True):
                if grad is not None:
                    whole[name] += grad
        self.extra_backwards += 1
        self.processes.mean_(list(whole.values()))
        return whole

    @contextmanager
    def _swapped_shards(self, values: Mapping[str, Tensor]):
        """ZeRO-3 with other values of some weights. A forward puts weights together from the shards of all processes, so
        each process exchanges its own; nothing that was put together before may be left, nor afterwards."""
        from deepspeed.accelerator import get_accelerator

        parameters: dict[str, Any] = dict(self.module.named_parameters())
        shards = {name: parameters[name].ds_tensor for name in values}
        if any(shard.final_location == "nvme" for shard in shards.values()):
            raise UserError(
                "engine.deepspeed: zero_optimization.offload_param.device: nvme keeps weights where a teacher's cannot be "
                "put in their place; use cpu instead"
            )
        before = {name: shard.data for name, shard in shards.items()}
        self._only_shards()
        try:
            for name, shard in shards.items():
                size = shard.ds_numel
                mine = values[name].flatten()[size * self.processes.rank :][:size]  # the last ones may be shorter
                shard.data = nn.functional.pad(mine, (0, size - mine.numel())).to(shard)
            get_accelerator().synchronize()  # weights are put together in a stream of their own
            yield
        finally:
            self._only_shards()
            for name, data in before.items():
                shards[name].data = data

    @contextmanager
    def _gathered(self):
        """ZeRO-3 with every weight whole and its hooks, which fetch and let go of weights at each forward, out of the way."""
        import deepspeed

        plain: Any = self.module
        weights = list(plain.parameters())
        if getattr(plain, "whole", False) or not self._fit(weights):
            yield
            return
        parts = self.model.optimizer.parameter_offload
        handles = [*parts.forward_hooks, *parts.backward_hooks, parts.fwd_pre_hook]
        known: dict[int, Any] = {id(hooks): hooks for hooks in (handle.hooks_dict_ref() for handle in handles)}
        before = [(hooks, dict(hooks)) for hooks in known.values()]
        self._only_shards()
        with deepspeed.zero.GatheredParameters(weights):
            for handle in handles:
                handle.hooks_dict_ref().pop(handle.id)
            plain.whole = True
            try:
                yield
            finally:
                plain.whole = False
                for hooks, own in before:  # in their order
                    hooks.clear()
                    hooks.update(own)

    def _fit(self, weights: Sequence[Any]) -> bool:
        """Whether all weights fit into half of what every process has free, which leaves as much for what they compute."""
        import psutil

        wanted = sum(weight.ds_numel * weight.element_size() for weight in weights)
        device = self.engine.device
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        else:
            free = psutil.virtual_memory().available // self.processes.world
        return not self.processes.max(int(2 * wanted > free))

    def _only_shards(self) -> None:
        """Leave no weight whole, nor the second shards of `zero_hpz_partition_size`."""
        self.model.optimizer.empty_partition_cache()
        self.model.optimizer.invalidate_secondary_tensor()

    def forget(self):
        raise NotImplementedError("a step under DeepSpeed cannot begin again")

    def update(self):
        limit = self.engine.train.max_grad_norm
        if limit and self.engine.stage == 0:  # where DeepSpeed clips without saying the norm
            self.grad_norm = nn.utils.get_total_norm([w.grad for w in self._weights.values() if w.grad is not None])
        self.model.step()
        if limit and self.engine.stage > 0:
            self.grad_norm = self.model.get_global_grad_norm()
        self.schedule.step()
        self._whole.read.clear()

    @property
    def learning_rate(self):
        return self.optimizer.param_groups[0]["lr"]

    def close(self):
        import deepspeed

        if self.engine.stage == 3:
            for hook in self._hooks:
                hook.remove()
        self.model.destroy()
        self.model.module_forward_pre_hook.remove()
        self.model.module_forward_post_hook.remove()
        nn.functional.linear = self._linear
        for weight in self.module.parameters():
            weight.grad = None
            if self.engine.stage > 0:  # a shard, or a view of a buffer of all weights
                with deepspeed.zero.GatheredParameters([weight], enabled=self.engine.stage == 3):
                    whole = weight.data.clone()
                weight.data = whole
        for owner, attributes in self._owners:
            if isinstance(owner, nn.Module):
                vars(owner)["_parameters"] = dict(owner._parameters)
                attributes = {key: vars(owner)[key] for key in vars(owner) if key in attributes}
            vars(owner).clear()
            vars(owner).update(attributes)
        self.model = self.module
        del self.optimizer, self.schedule, self._whole, self._owners
        gc.collect()  # DeepSpeed's parts refer to each other; the next task needs their memory


class _Weights(Mapping):
    """Whole fp32 weights by name, fetched when asked for and kept in `read` until the step is over."""

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self._weights = weights
        self.read: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        if name not in self.read:
            whole = safe_get_full_fp32_param(self._weights[name])
            # Stage 0 in fp32 has no copy: the parameter is the whole weight.
            self.read[name] = self._weights[name] if whole is None else whole.detach().requires_grad_()
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class _Gradients(GradientsView):
    def __init__(self, weights: Mapping[str, nn.Parameter], shapes: Mapping[str, torch.Size]):
        self._weights, self._shapes = weights, shapes

    def __getitem__(self, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_grad

        grad = safe_get_full_grad(self._weights[name])
        return torch.zeros(self._shapes[name], device=self._weights[name].device) if grad is None else grad

    def __setitem__(self, name: str, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_grad

        weight: Any = self._weights[name]
        if hasattr(weight, "ds_id"):  # ZeRO-3 cuts equal pieces from the value, so it must be as long as all of them
            world = torch.distributed.get_world_size()
            missing = weight.partition_numel() * world - value.numel()
            safe_set_full_grad(weight, nn.functional.pad(value.flatten(), (0, missing)))
        elif weight.grad is None and not hasattr(weight, "_hp_mapping"):  # stage 0, a weight that the loss did not use
            weight.grad = value
        else:
            safe_set_full_grad(weight, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
