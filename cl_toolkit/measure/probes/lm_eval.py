"""General ability beside the stream: tasks of EleutherAI's evaluation harness on the live model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar

from cl_toolkit.errors import UserError, short
from cl_toolkit.measure.probe import Moment, Probe
from cl_toolkit.models.requests import Completion, Continuation, Reply, Request
from cl_toolkit.ranges import SEED, at_least
from cl_toolkit.seeds import random_numbers_kept

LONGEST = 256
"""Tokens of an answer where a task does not say."""


class LmEval(Probe):
    """Tasks of the harness (Gao et al. 2021), at the start and after each stage: prompts, few-shot examples, filters and
    metrics are its own, the model is asked in the pass of everybody's requests.

    Prompts stand as the harness writes them, without the model's chat template. Rows: step, trained, row, task, metric, value,
    standard_error (the harness's; None where it has none), n, harness (its version). A task is one of the harness's names, or
    of a folder of YAML files, which needs no network where its data are local.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """tasks: names, of tasks, groups or tags. include: a folder with YAML files of one's own. limit: documents of each
        task; null: all. num_fewshot: examples before each question; null: the task's own. seed: of the few-shot examples."""

        tasks: tuple[str, ...]
        include: str | None = None
        limit: Annotated[int, at_least(1)] | None = None
        num_fewshot: Annotated[int, at_least(0)] | None = None
        seed: Annotated[int, SEED] = 1234

    paper: ClassVar[str] = "EleutherAI, lm-evaluation-harness"
    needs: ClassVar[frozenset[str]] = frozenset({"continues"})

    def due(self, moment: Moment) -> bool:
        return moment.kind != "step"

    def ask(self, moment: Moment) -> list[Request]:
        return [request for of_way in self._asked.values() for request in of_way.values()]

    def read(self, moment: Moment, replies: Sequence[Reply]) -> Iterator[dict[str, Any]]:
        given = iter(replies)
        found = {way: {key: next(given) for key in of_way} for way, of_way in self._asked.items()}
        from lm_eval.evaluator import evaluate

        with random_numbers_kept(), told("evaluation"):
            self._begin()
            results = evaluate(
                Told(found), self._tasks, limit=self.config.limit, bootstrap_iters=100, log_samples=False
            )
        common = {"step": moment.step, "trained": moment.task, "row": moment.row}
        for task, metrics in results["results"].items():
            for name, value in metrics.items():
                metric, _, filter_ = name.partition(",")
                if not filter_ or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                    continue
                error = metrics.get(f"{metric}_stderr,{filter_}")
                yield {
                    **common,
                    "task": task,
                    "metric": metric if filter_ == "none" else f"{metric} ({filter_})",
                    "value": float(value),
                    "standard_error": float(error) if isinstance(error, (int, float)) else None,
                    "n": results.get("n-samples", {}).get(task, {}).get("effective"),
                    "harness": version("lm-eval"),
                }

    @cached_property
    def _tasks(self) -> Any:
        """The tasks, loaded once."""
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise UserError(
                f"evaluate.probes.lm_eval: needs lm-eval ({error}); pip install 'cl-toolkit[eval]'"
            ) from error
        config = self.config
        include = None if config.include is None else str(Path(config.include).expanduser())
        with random_numbers_kept(), told("tasks"):
            found = TaskManager(include_path=include).load(list(config.tasks))
            for task in found["tasks"].values():
                if config.num_fewshot is not None:
                    task.set_config(key="num_fewshot", value=config.num_fewshot)
        return found

    def _begin(self) -> None:
        """Few-shot examples are drawn as requests are built: each time from the same seed."""
        for task in self._tasks["tasks"].values():
            task.set_fewshot_seed(seed=self.config.seed)

    @cached_property
    def _asked(self) -> dict[str, dict[tuple, Request]]:
        """Way -> what the harness says -> what is asked, each once. The same at every moment."""
        found: dict[str, dict[tuple, Request]] = {}
        self._begin()
        for task in self._tasks["tasks"].values():
            with random_numbers_kept(), told("tasks"):
                task.build_all_requests(limit=self.config.limit, rank=0, world_size=1)
            for instance in task.instances:
                key, request = translated(instance)
                found.setdefault(instance.request_type, {})[key] = request
        return found


class told:
    """Whatever the harness raises, in one line."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            text = short(" ".join(f"{type(error).__name__}: {error}".split()), 200)
            raise UserError(f"evaluate.probes.lm_eval.{self.what}: {text}") from error


def translated(instance: Any) -> tuple[tuple, Request]:
    """(what the harness says, what is asked of the model)."""
    if instance.request_type == "loglikelihood":
        context, text = instance.args
        return (context, text), Continuation(context, text)
    if instance.request_type == "loglikelihood_rolling":
        (text,) = instance.args
        return (text,), Continuation("", text)
    if instance.request_type == "generate_until":
        context, options = instance.args
        if options.get("do_sample") and options.get("temperature", 1.0):
            raise UserError("evaluate.probes.lm_eval.tasks: a task that samples its answers is not asked here")
        stops = options.get("until", [])
        stops = (stops,) if isinstance(stops, str) else tuple(stops)
        limit = int(options.get("max_gen_toks", options.get("max_new_tokens", LONGEST)))
        return (context, limit, stops), Completion(context, limit, stops)
    raise UserError(f"evaluate.probes.lm_eval.tasks: asks in a way that is not known here, {instance.request_type}")


class Told:
    """A model, for the harness: a table of replies."""

    rank, world_size = 0, 1

    def __init__(self, replies: Mapping[str, Mapping[tuple, Reply]]):
        self.replies = replies

    def _each(self, way: str, requests: Iterable[Any]) -> Iterator[Reply]:
        return (self.replies[way][translated(request)[0]] for request in requests)

    def loglikelihood(self, requests: Iterable[Any]) -> list[tuple[float, bool]]:
        return [(sum(r.logprobs), r.likeliest) for r in self._each("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: Iterable[Any]) -> list[float]:
        return [sum(r.logprobs) for r in self._each("loglikelihood_rolling", requests)]

    def generate_until(self, requests: Iterable[Any]) -> list[str]:
        return [r.text for r in self._each("generate_until", requests)]
