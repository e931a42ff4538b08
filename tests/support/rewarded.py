"""Questions, an objective and a task that is learned from rewards, small."""

from pieces import ask, task_view

from cl_toolkit.strategies.objectives.rft import RFT

QUESTIONS = [ask(q, q[:1]) for q in ("ab", "abcdef", "c", "défg", "hij klm", "n", "op", "qrstuvw")]


def rft(**config):
    return RFT(RFT.Config(**{"num_generations": 4, "max_completion_length": 5, **config}))


def even(example, answer):
    return float(sum(answer.encode()) % 2 == 0)


def view(objective, examples=QUESTIONS, **changes):
    return task_view(examples, objective, **{"score": even, "seeds": {"data": 0, "memory": 0, "rollout": 3}, **changes})
