"""Compression memory: blocks and retrieval by hand, a bank that only grows, a model that never moves, no answer in a query."""

from functools import partial

import pytest
import torch
from pieces import ask, configured, equal, task_view, tiny_model, train, weights_of
from prompts import answer_as_trained, codec, see_no_answer
from tiny import tiny_config, trajectory

import cl_toolkit as cl
from cl_toolkit.errors import UserError
from cl_toolkit.models.prompted import Prompter, hidden
from cl_toolkit.models.teacher import first_groups
from cl_toolkit.strategies.compression_memory import CompressionMemory, aggregated, cosines, nearest, recalls
from cl_toolkit.strategies.replay import Replay
from cl_toolkit.strategy import compose
from cl_toolkit.study.cells import load_run

TASKS = [[ask("ab", "c"), ask("zxy", "yy"), ask("k", "l")], [ask("xyz", "wv"), ask("b", "aa"), ask("qq", "r")]]
SMALL = {"entries": 3, "top_k": 2, "tokens": 2, "rank": 4}


def view(index=0, **changes):
    return task_view(TASKS[index % 2], index=index, codec=codec(), **{"max_steps": 4, **changes})


def memory(**changes):
    return CompressionMemory(configured(CompressionMemory, **{**SMALL, **changes}))


def learned(number, made=None, **changes):
    """The model after so many tasks."""
    model, made = tiny_model(), made or memory(**changes)
    for index in range(number):
        model = train(model, view(index), made, learning_rate=3e-1)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return learned(2)


def by_hand(top_k):
    """A bank of two tasks with two entries each, of one place: U tanh(S D) with D = 1 is (keys, values) as written below."""
    made = Prompter(partial(aggregated, top_k=top_k), 1)
    place = torch.atanh(torch.tensor([[0.5, 0], [0, 0.5]]))  # tanh of it is a half along one axis or the other
    for keys, scale in (([[1.0, 0], [0, 1]], 1.0), ([[1.0, 1], [-1, 0]], 10.0)):
        texts = place[None, :, None]
        made.add(
            {
                "keys": torch.tensor(keys)[None],
                "texts": texts,
                "down": torch.eye(2)[None, None],
                "up": scale * torch.tensor([[2.0, 4.0], [6.0, 8.0]])[None, None],
            }
        )
    return made


BLOCKS = torch.tensor([[1.0, 2], [3, 4], [10, 20], [30, 40]])
"""(key, value) of each entry: half a row of U, one and ten times."""


def says(made, *query):
    return made(torch.tensor([query])).flatten()


def test_blocks_and_what_is_retrieved_by_hand():
    """Of (2, 1) the cosines with (1, 0), (0, 1), (1, 1), (-1, 0) are 2, 1, 3 / sqrt(2) and -2, over sqrt(5)."""
    found = cosines(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]]))
    assert found.tolist() == [pytest.approx([0.89443, 0.44721, 0.94868, -0.89443], abs=1e-6)]
    assert nearest(found, 4).tolist() == [[2, 0, 1, 3]]
    for top_k, chosen in enumerate(
        ([2], [2, 0], [2, 0, 1], [2, 0, 1, 3], [2, 0, 1, 3]), 1
    ):  # 5: no more than there are
        assert torch.allclose(says(by_hand(top_k), 2.0, 1.0), BLOCKS[chosen].mean(0))


def test_of_an_entry_with_two_places_keys_come_first():
    made, place = Prompter(partial(aggregated, top_k=1), 2), torch.atanh(torch.tensor([[0.5, 0], [0, 0.5]]))
    up = torch.tensor([[2.0, 20, 4, 40], [6, 60, 8, 80]])  # two numbers of a key, two of a value
    weights = {"keys": torch.ones(1, 1, 2), "texts": place[None, None], "down": torch.eye(2)[None, None]}
    made.add({**weights, "up": torch.stack([up, -up])[:, None]})
    found = made(torch.ones(1, 2))
    assert torch.allclose(found[0, 0], torch.tensor([[1.0, 10], [3, 30], [2, 20], [4, 40]]))
    assert torch.equal(found[1], -found[0])


def test_entries_that_are_alike_are_taken_by_their_age_however_they_are_rounded():
    near = cosines(torch.tensor([[1.0, 2]]), torch.tensor([[1.0, 2], [1 + 1e-7, 2], [3, 6], [1, 2 - 1e-7]]))
    assert nearest(near, 4).tolist() == [[0, 1, 2, 3]]


def test_a_bank_of_one_entry_gives_it_whatever_is_asked():
    made = by_hand(4)
    made.groups = 1
    for kind in ("keys", "texts"):
        setattr(made, f"{kind}_0", torch.nn.Parameter(getattr(made, f"{kind}_0")[:, 1:]))
    for query in ((1.0, 0.0), (-3.0, 2.0), (0.0, 0.0)):
        assert says(made, *query).tolist() == [3.0, 4.0]


def test_recall_by_hand():
    """Two groups of two keys, each left out when it asks: the first group's find one another, the second's the first's."""
    keys = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.3], [-1, 0]])
    assert recalls(keys, 2, 1) == [1.0, 0.5]  # (-1, 0) finds (1, 0.3), of its own group
    assert recalls(keys, 2, 3) == [pytest.approx(1 / 3)] * 2
    assert recalls(keys, 2, 9) == recalls(keys, 2, 3)  # all others, and never itself
    assert recalls(keys[:2], 1, 4) == [1.0]
    assert recalls(keys[:1], 1, 4) == [1.0]


def test_an_entry_is_what_the_frozen_model_makes_of_an_example():
    """The key is of the prompt alone; the parts are means over equal stretches of prompt and answer."""
    made, plain = memory(entries=3), tiny_model()
    model = made.before_task(made.build(tiny_model(), 0), view())
    for i, example in enumerate(TASKS[0]):
        prompt, answer = codec().ids(example)
        with torch.no_grad():
            read = plain.base_model(input_ids=torch.tensor([prompt + answer])).last_hidden_state[0]
            alone = plain.base_model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
        half, odd = divmod(len(read), 2)
        parts = torch.stack([read[: half + odd].mean(0), read[half:].mean(0)])
        assert torch.allclose(model.prompter.keys_0[0, i], alone, atol=1e-4)
        assert torch.allclose(model.prompter.texts_0[0, i], parts / parts.norm(dim=1, keepdim=True), atol=1e-5)


def test_a_smaller_task_fills_its_entries_again_from_the_first():
    made = memory(entries=5)
    keys = made.before_task(made.build(tiny_model(), 0), view()).prompter.keys_0[0]
    assert torch.equal(keys[3:], keys[:2])
    assert len(keys.unique(dim=0)) == 3


def test_the_model_and_past_entries_never_move(model):
    first, start, after = weights_of(learned(1)), weights_of(tiny_model()), weights_of(model)
    assert equal({name: after[name] for name in start}, start)
    assert equal({name: after[name] for name in first}, first)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"prompter.down_1", "prompter.up_1"}
    assert after["prompter.up_1"].any()
    fresh = weights_of(memory().build(learned(1), 1))
    assert not torch.equal(fresh["prompter.down_1"], after["prompter.down_1"])


def test_past_entries_stay_retrievable_as_they_were(model):
    """Asked by its own key with k = 1, each entry gives the block that it gave when its task was over."""
    before = learned(1)
    for bank in (before, model):
        bank.prompter.mix = partial(aggregated, top_k=1)
    try:
        own = before.prompter.keys_0[0]
        with torch.no_grad():
            assert torch.equal(before.prompter(own), model.prompter(own))
    finally:
        model.prompter.mix = partial(aggregated, top_k=SMALL["top_k"])


def test_the_compressor_learns_and_says_what_it_kept():
    made = memory()
    model = learned(2, made)
    noted = made.told()
    assert noted["bytes_per_entry"] == 4 * (2 + 1) * 16  # two places and a key, 16 wide
    assert noted["recall_by_task"] == recalls(torch.cat(model.prompter.all_of("keys"), 1)[0], 2, 2)
    assert noted["recall"] == pytest.approx(sum(noted["recall_by_task"]) / 2)
    losses = []
    train(
        tiny_model(), view(max_steps=40), memory(), learning_rate=3e-2, watch=lambda s: losses.append(s.losses["sft"])
    )
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("groups", [0, None])
def test_an_empty_bank_is_the_plain_model(model, groups):
    inputs = view().encode(TASKS[0]).inputs
    plain = {name: value for name, value in inputs.items() if name != "prompt_lengths"}
    with torch.no_grad():
        wanted = tiny_model()(**plain).logits
        if groups is None:
            assert torch.equal(memory(entries=0).build(tiny_model(), 0)(**plain).logits, wanted)
            return
        with first_groups(model, groups):
            assert torch.equal(model(**inputs).logits, wanted)
        assert not torch.allclose(model(**inputs).logits, wanted, atol=1e-2)


def test_an_answer_is_not_in_its_own_query(model):
    see_no_answer(model)


def test_what_is_answered_is_what_is_trained(model, monkeypatch):
    answer_as_trained(model, [*TASKS[0], *TASKS[1]], monkeypatch)


def test_a_row_has_its_prefix_whoever_stands_beside_it(model):
    examples = [*TASKS[0], *TASKS[1]]
    batch = codec().batch(examples)
    with torch.no_grad():
        together = model(**batch.inputs).logits
        for i, example in enumerate(examples):
            alone = codec().batch([example])
            assert torch.allclose(model(**alone.inputs).logits[0], together[i, : alone.labels.shape[1]], atol=1e-4)


def test_a_prompt_of_the_bank_finds_its_own_entry_first(model):
    for index, examples in enumerate(TASKS):
        keys = torch.cat(model.prompter.all_of("keys"), 1)[0]
        for i, example in enumerate(examples):
            query = hidden(model, torch.tensor([codec().ids(example)[0]]))[:, -1]
            assert nearest(cosines(query, keys), 1).item() == 3 * index + i


def test_rehearsed_rows_read_behind_their_own_entries():
    found = learned(2, compose(memory(), Replay(configured(Replay, replay_fraction=0.5))))
    assert {name for name, weight in found.named_parameters() if weight.requires_grad} == {
        "prompter.down_1",
        "prompter.up_1",
    }


def test_a_run_is_loaded_again_and_not_exported(tmp_path):
    found = trajectory(tmp_path, strategies={"compression_memory": {"entries": 3}}, train={"learning_rate": 1.0})
    noted = [stage["told"]["compression_memory"] for stage in found.record["adapters"]]
    assert [len(note["recall_by_task"]) for note in noted] == [1, 2]
    model, _ = cl.load_model(tmp_path)
    assert equal(weights_of(model), weights_of(found.run.model))
    with pytest.raises(UserError, match=r"export: prompter\..*a strategy has added it"):
        cl.export(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"train": {"packing": 64}},
            r"train\.packing: 64: cannot be where strategies\.compression_memory puts prompts",
        ),
        (
            {"model": {"adapter": {"r": 2, "between_tasks": "merge"}}},
            r"compression_memory: needs model\.adapter\.between_tasks: no adapter; got merge",
        ),
        ({"strategies": {"compression_memory": {"top_k": 0}}}, "top_k: expected 1 or more"),
        ({"strategies": {"compression_memory": {}, "coda_prompt": {}}}, "only one of them can own prefix"),
    ],
)
def test_what_cannot_be_beside_it_is_refused(changes, told):
    with pytest.raises(UserError, match=told):
        load_run(tiny_config(**{"strategies": {"compression_memory": {}}, **changes}))
