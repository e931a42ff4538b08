"""Figures have room for what stands in them."""

import pytest
from matplotlib.figure import Figure
from reported import record, replay

from cl_toolkit.report import build
from cl_toolkit.report.style import PAGE, PAPER, legend_above
from cl_toolkit.report.tradeoffs import _equal_accuracy


@pytest.mark.parametrize(("number", "sheet"), [(3, PAGE), (6, PAGE), (28, PAGE), (6, PAPER)])
def test_a_legend_is_not_cut_off(number, sheet):
    """Of a figure that is narrow, since it has one panel."""
    figure = Figure(figsize=(min(4.4, sheet.width), 3.4), layout="constrained")
    axes = figure.subplots()
    lines = [axes.plot([0, 1])[0] for _ in range(number)]
    before = figure.get_figheight()
    legend_above(figure, lines, [f"a-method-{i}" for i in range(number)], sheet)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    (x0, y0), (x1, y1) = legend.get_window_extent().get_points()
    assert 0 <= x0 < x1 <= figure.bbox.width
    assert 0 <= y0 < y1 <= figure.bbox.height + 1
    assert axes.get_window_extent().height > 1.5 * figure.dpi
    assert (figure.get_figheight() > before) == (number > 3 and sheet is PAGE)


def test_names_of_any_length_leave_room_for_the_figures(tmp_path):
    """A figure whose axes collapse is a warning, which is an error here. The page has each name whole."""
    long = "a method with a name that says of each of its settings what it is"
    tasks = [f"{i}. a task that is called after the whole of its instruction, and that goes on" for i in range(3)]
    records = [
        made
        for seed in range(3)
        for made in (record(seed=seed, tasks=tasks), record(long, seed, tasks=tasks), replay(seed, tasks=tasks))
    ]
    assert long in build(records, tmp_path).read_text()


def test_a_line_of_no_accuracy_is_not_labelled_minus_zero():
    axes = Figure().add_subplot()
    axes.set(xlim=(0.48, 1.0), ylim=(-0.75, 0.2))
    _equal_accuracy(axes, 3)
    assert "ACC 0" in (labels := [text.get_text() for text in axes.texts])
    assert "ACC -0" not in labels
