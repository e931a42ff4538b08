"""The stream `images`: idx files and folders of pictures, split by class or permuted, made when they are asked for."""

import gzip
import shutil

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
from cl_toolkit.types import Example, Stream, Task

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


def write_classes(folder, counts, mode="L", splits=("train", "test"), kind=np.uint8):
    """Folders of random pictures; split -> how many of each class."""
    draw = np.random.default_rng(0)
    for split in splits:
        for name, count in counts.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 250, (4, 4, len(mode)) if len(mode) > 1 else (4, 4)).astype(kind)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


def test_valid_pictures_are_of_every_class_though_files_come_class_by_class(tmp_path):
    write_classes(tmp_path, {"a": 4, "b": 8, "c": 4, "d": 8})
    tasks = build_stream(config_of(tmp_path, valid_from_train=6)).tasks
    assert [[e.target for e in task.valid].count(c) for task, cs in zip(tasks, ("ab", "cd"), strict=True) for c in cs] == [
        1, 2, 1, 2
    ]  # fmt: skip
    assert [len({e.target for e in task.train}) for task in tasks] == [2, 2]


def test_idx_files_that_are_sorted_by_class_lose_none_to_valid(tmp_path):
    write_idx(tmp_path)
    labels = bytes(sorted(read_idx(tmp_path / "train-labels-idx1-ubyte.gz").tolist()))
    header = b"\0\0\x08\x01\0\0\0\x18"
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels))
    with pytest.raises(UserError, match=r"valid_from_train: 6: no training picture of class 3 would be left"):
        build_stream(config_of(tmp_path, valid_from_train=6))


def test_numbers_of_classes_are_those_of_training_pictures(tmp_path):
    write_idx(tmp_path)
    header = b"\0\0\x08\x01\0\0\0\x18"
    labels = read_idx(tmp_path / "train-labels-idx1-ubyte.gz")
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(header + np.where(labels == 3, 2, labels).astype(np.uint8).tobytes()))
    with pytest.raises(UserError, match="test has pictures of class 3, of which train has none"):
        build_stream(config_of(tmp_path))
    for file in tmp_path.glob("*labels*"):
        shown = read_idx(file)
        data = b"\0\0\x08\x01" + len(shown).to_bytes(4, "big") + (shown % 4 + 1).astype(np.uint8).tobytes()
        file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    path.write_bytes(gzip.compress(header + (labels + 1).tobytes()))
    stream = build_stream(config_of(tmp_path))
    assert [task.name for task in stream.tasks] == ["classes_1_2", "classes_3_4"]
    assert {(e.y, e.target) for e in stream.tasks[0].train} == {(0, "1"), (1, "2")}


@pytest.mark.parametrize(
    ("mode", "kind", "message"),
    [("L", np.uint16, r"0\.png: has more than 8 bits for a channel \(mode I"), ("RGBA", np.uint8, "is transparent in")],
)
def test_pictures_that_would_be_falsified_are_refused(tmp_path, mode, kind, message):
    write_classes(tmp_path, {"a": 1, "b": 1}, mode, kind=kind)
    with pytest.raises(UserError, match=message):
        build_stream(config_of(tmp_path))


def test_an_empty_class_is_refused_and_what_is_hidden_is_passed_over(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2, "c": 1, "d": 1})
    (tmp_path / "train" / ".checkpoints").mkdir()
    (tmp_path / "train" / "a" / ".store").write_text("")
    assert [len(task.train) for task in build_stream(config_of(tmp_path)).tasks] == [4, 2]
    for name in "cd":
        shutil.rmtree(tmp_path / "test" / name)
    with pytest.raises(UserError, match=r"task classes_c_d: has no test examples"):
        build_stream(config_of(tmp_path))
    (tmp_path / "train" / "e").mkdir()
    with pytest.raises(UserError, match=r"train/e: holds no pictures; every class needs some"):
        build_stream(config_of(tmp_path))


def test_the_same_bytes_in_another_shape_are_another_data_set(tmp_path):
    write_idx(tmp_path)
    first = task_hash(build_stream(config_of(tmp_path)).tasks[0])
    for file in tmp_path.glob("*images*"):
        images = read_idx(file)
        data = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (len(images), 2, 8)) + images.tobytes()
        file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    assert task_hash(build_stream(config_of(tmp_path)).tasks[0]) != first


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


def test_one_array_of_another_shape_is_noticed_wherever_it_stands():
    net = load_run({"stream": {"name": "digits"}, "model": {"name": "mlp"}}).kind
    made = [Example(id=str(i), x=torch.zeros(64 if i != 7 else 65), y=0, target="0") for i in range(9)]
    with pytest.raises(UserError, match=r"model\.input_size: expected 65"):
        net.check_stream(Stream.of("s", [Task(name="t", train=tuple(made))]), False)
