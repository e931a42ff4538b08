"""A guest's hooks: what they raise and return wrongly is told with class, hook and line."""

import pytest
from tiny import tiny_run_config

from cl_toolkit import UserError
from cl_toolkit.runs.run import execute

HEAD = "import torch\nfrom cl_toolkit import Strategy\n"


def run(tmp_path, body):
    path = tmp_path / "guest.py"
    path.write_text(f"{HEAD}\nclass Guest(Strategy):\n{body}")
    return execute(tiny_run_config(strategies={f"{path}:Guest": {}}, train={"max_steps": 1}), tmp_path / "out")


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        ("build", "model, index"),
        ("before_task", "model, task"),
        ("batches", "model, task, batches"),
        ("loss", "model, part, out"),
        ("penalty", "weights"),
        ("before_step", "model, step"),
        ("after_task", "model, task"),
        ("state", ""),
    ],
)
def test_what_a_hook_raises_or_returns_wrongly_has_its_place(tmp_path, hook, arguments):
    comma = ", " if arguments else ""
    for body, told in (
        ("raise RuntimeError('boom')", f"{hook}: Guest: RuntimeError: boom ("),
        ("raise SystemExit(0)", f"{hook}: Guest: SystemExit: 0 ("),
        ("return 3", f"{hook}: Guest: expected it to return "),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        with pytest.raises(UserError) as error:
            run(folder, f"    def {hook}(self{comma}{arguments}):\n        {body}\n")
        assert told in str(error.value)
        assert "\n" not in str(error.value)
        if "raise" in body:
            assert "guest.py:6)" in str(error.value)


def test_a_right_guest_is_left_alone(tmp_path):
    body = "    def penalty(self, weights):\n        return {self.name: 0.1 * sum((w**2).sum() for w in weights.values())}\n"
    assert run(tmp_path, body)["status"] == "finished"
