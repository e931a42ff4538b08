"""The stream `images`: idx files and folders of pictures, split by class or permuted, made when they are asked for."""

import gzip

import numpy as np
import pytest
import torch
from files import write_idx
from PIL import Image

from cl_toolkit.data.facts import Facts, overlap, task_hash
from cl_toolkit.data.pictures import Pictures, read_idx
from cl_toolkit.data.streams import build_stream
from cl_toolkit.errors import UserError
from cl_toolkit.runs.run import execute
from cl_toolkit.study.cells import load_run

MLP = {"name": "mlp", "input_size": 16, "num_classes": 4, "hidden_size": 16}


def config_of(folder, model=None, **stream):
    train = {"max_steps": 60, "global_batch_size": 8, "learning_rate": 0.01}
    return load_run(
        {"stream": {"name": "images", "path": str(folder), **stream}, "model": model or MLP, "train": train}
    )


def test_classes_are_split_and_pixels_are_the_bytes(tmp_path):
    write_idx(tmp_path)
    stream = build_stream(config_of(tmp_path, valid_from_train=8))
    assert [task.name for task in stream.tasks] == ["classes_0_1", "classes_2_3"]
    second = stream.tasks[1]
    assert [len(split) for split in (second.train, second.valid, second.test)] == [8, 4, 4]
    assert {(e.y, e.target, e.choices) for e in second.train} == {(2, "2", ("2", "3")), (3, "3", ("2", "3"))}
    images = read_idx(tmp_path / "train-images-idx3-ubyte")
    assert torch.equal(second.train[0].x, torch.tensor(images[2:3]) / 255)
    assert second.train[0].id == "classes_2_3/train/2"
    assert second.train[0].x.shape == (1, 4, 4)


def test_permutations_are_fixed_and_differ(tmp_path):
    write_idx(tmp_path)
    first, second, third = build_stream(config_of(tmp_path, protocol="permuted", permutations=3)).tasks
    x = [task.train[0].x.flatten() for task in (first, second, third)]
    assert torch.equal(x[0].sort().values, x[1].sort().values)
    assert not torch.equal(x[0], x[1])
    assert not torch.equal(x[1], x[2])
    assert first.train[0].choices == ("0", "1", "2", "3")
    # one order of pixels for all pictures: what the first two share, the permuted two share
    same = (first.train[0].x == first.train[4].x).sum()
    assert (second.train[0].x == second.train[4].x).sum() == same
    again = build_stream(config_of(tmp_path, protocol="permuted", permutations=2)).tasks[1]
    assert torch.equal(again.train[0].x, second.train[0].x)
    other = build_stream(config_of(tmp_path, protocol="permuted", permutations=2, seed=1)).tasks[1]
    assert not torch.equal(other.train[0].x, second.train[0].x)
    assert len({task_hash(task) for task in (first, second, third, other)}) == 4
    assert task_hash(again) == task_hash(second)


def test_what_is_known_without_making_a_picture_is_so(tmp_path):
    write_idx(tmp_path)
    train = build_stream(config_of(tmp_path)).tasks[1].train
    assert isinstance(train, Pictures)
    known, found = train.facts, Facts.of(train)
    assert known.ids == found.ids
    assert known.answers() == found.answers() == train.answers()
    for column in ("choices", "forms", "asked", "answered", "classes"):
        assert getattr(known, column).tolist() == getattr(found, column).tolist(), column
    assert len(set(map(tuple, known.digests.tolist()))) == len(train)
    assert train[1] is train[1]


def test_a_picture_in_train_and_test_is_noticed(tmp_path):
    write_idx(tmp_path)
    assert overlap(build_stream(config_of(tmp_path)).tasks) == {}
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte.gz"):
        (tmp_path / f"t10k-{kind}").write_bytes((tmp_path / f"train-{kind}").read_bytes())
    assert overlap(build_stream(config_of(tmp_path)).tasks) == {"classes_0_1": 12, "classes_2_3": 12}


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_folder_for_each_class(tmp_path, mode):
    draw = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for name in ("cat", "ant"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 255, (4, 4) if mode == "L" else (4, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    channels = 1 if mode == "L" else 3
    model = {**MLP, "input_size": 16 * channels, "num_classes": 2}
    (task,) = build_stream(config_of(tmp_path, model)).tasks
    assert task.name == "classes_ant_cat"
    assert task.train[0].x.shape == (channels, 4, 4)
    assert [e.target for e in task.test] == ["ant", "ant", "cat", "cat"]
    Image.fromarray(np.zeros((5, 4), np.uint8)).save(tmp_path / "test" / "cat" / "9.png")
    with pytest.raises(UserError, match=r"9\.png: has the shape \([13], 5, 4\), .* expected one for all"):
        build_stream(config_of(tmp_path, model))
    (tmp_path / "test" / "cat" / "9.png").write_text("no picture")
    with pytest.raises(UserError, match=r"9\.png: cannot be read"):
        build_stream(config_of(tmp_path, model))
    (tmp_path / "test" / "cat" / "9.png").rename(tmp_path / "test" / "cat" / "notes.txt")
    with pytest.raises(UserError, match=r"notes\.txt: expected a picture"):
        build_stream(config_of(tmp_path, model))
    (tmp_path / "test" / "cat" / "notes.txt").unlink()
    (tmp_path / "test" / "dog").mkdir()
    with pytest.raises(
        UserError, match=r"dog: the training split has no such class; its classes are ant and cat|ant, cat"
    ):
        build_stream(config_of(tmp_path, model))


def test_a_run_learns_and_rehearses_them(tmp_path):
    write_idx(tmp_path, {"train": 80, "t10k": 16})
    config = config_of(tmp_path)
    plain = execute(config, tmp_path / "plain")
    settings = {**config.plain, "strategies": {"replay": {"replay_fraction": 0.5, "buffer_size": 20}}}
    replay = execute(
        load_run({k: settings[k] for k in ("stream", "model", "train", "strategies")}), tmp_path / "replay"
    )
    assert plain["matrix"][1][0] == 1.0  # the bright corner tells the class
    assert replay["matrix"][2][0] > plain["matrix"][2][0]
    assert replay["cost"]["stored_examples"] == 20
    state = (tmp_path / "replay" / "checkpoints" / "task-2" / "state.json").read_text()
    assert '"classes_0_1/train/' in state  # rehearsed pictures are named there by their ids alone
    assert '"x"' not in state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "train-images-idx3-ubyte").unlink(), "expected idx files such as train-images-idx3-ubyte"),
        (lambda f: (f / "train-labels-idx1-ubyte.gz").unlink(), "its labels are missing"),
        (lambda f: (f / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03"), "is no whole idx file of bytes"),
        (lambda f: (f / "train-labels-idx1-ubyte.gz").write_bytes(b"no gzip"), "cannot be read: Not a gzipped file"),
        (lambda f: (f / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x01\x02")),
         r"its shape is \(24, 4, 4\), that of its labels \(1,\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, change, message):
    write_idx(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        build_stream(config_of(tmp_path))


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match=r"stream\.path: .*nowhere: no such folder"):
        config_of(tmp_path / "nowhere")
    write_idx(tmp_path)
    with pytest.raises(UserError, match=r"stream\.valid_from_train: 24, and there are 24 training pictures"):
        build_stream(config_of(tmp_path, valid_from_train=24))
    with pytest.raises(UserError, match=r"model\.input_size: expected 16, as task classes_0_1 has arrays of shape"):
        build_stream(config_of(tmp_path, {**MLP, "input_size": 9}))
    with pytest.raises(UserError, match=r"model\.num_classes: expected more than 3"):
        build_stream(config_of(tmp_path, {**MLP, "num_classes": 3}))
