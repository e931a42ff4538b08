"""What `report --paper` writes: figures, a table, a paragraph, references."""

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest
from files import call
from reported import failed, record, replay, study, write_study

import cl_toolkit.api as api
from cl_toolkit.measure.metrics import HEADLINE, METRICS
from cl_toolkit.registry import OBJECTIVES, STRATEGIES
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.latex import results, tex
from cl_toolkit.report.paper import placeless, write
from cl_toolkit.report.references import ARXIV, cited, entries, field

HOSTILE = (
    "</script><script>alert(1)</script>",
    r"\input{/etc/passwd}",
    '=cmd("|calc")',
    "../../x",
    "[2ex] 100% & #1 $a_b^c$ ~ \\\\ ^^M",
    "two\nlines\\write18{x}\u2028@article{x, \x00\x1b",
)
SHOWN = {
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<", "textgreater": ">",
    "textbar": "|", "dots": "…",
}  # fmt: skip
COMMANDS = {*SHOWN, "begin", "end", "centering", "caption", "label", "toprule", "midrule", "bottomrule", "pm", "uparrow",
            "downarrow", "textbf", "underline", "usepackage", "dagger", "paragraph", "cite", "frac", "sum", "max", "le",
            "rightarrow"}  # fmt: skip


def shown(latex):
    """What LaTeX prints of escaped text; fails on anything that it would obey."""
    text, at = "", 0
    while at < len(latex):
        found = re.match(r"\\([A-Za-z]+)\{\}|\\([{}$&#_%])|(\$\\pm\$)|(-\{\}-)|([^\\{}$&#_%~^])", latex[at:])
        assert found, latex[at:]
        name, escaped, plus_minus, dashes, plain = found.groups()
        text += SHOWN[name] if name else escaped or (plus_minus and "±") or (dashes and "--") or plain
        at += found.end()
    return text


@pytest.mark.parametrize("text", [*HOSTILE, "a -- b ± 1", "sort_2%"])
def test_a_name_is_printed_and_not_obeyed(text):
    assert shown(tex(text)) == "".join(c for c in " ".join(text.split()) if c.isprintable())


def commands(text):
    return set(re.findall(r"\\([A-Za-z]+)", re.sub(r"\\\\", "", text)))


def rows(table):
    """Cells of the body, by the name of the method."""
    body = [line for line in table.splitlines() if line.startswith("{")]
    return {line.partition("}")[0][1:]: line.removesuffix(r" \\").split(" & ") for line in body}


def test_the_best_is_bold_and_what_the_tests_cannot_tell_from_it_is_underlined():
    near = [replay(seed, kept) | {"method": "near"} for seed, kept in enumerate((0.57, 0.6, 0.6))]
    table = results(Comparison.of([*study(), *near]))
    found = rows(table)
    assert {name: cells[2] for name, cells in found.items()} == {
        "replay": r"\textbf{0.70 $\pm$ 0.03}",
        "near": r"\underline{0.69 $\pm$ 0.01}",
        "rft": r"0.53 $\pm$ 0.00",
        "sequential": r"0.43 $\pm$ 0.00",
        "joint": r"0.80 $\pm$ 0.00",
    }
    assert found["near"][1:4] == ["3", r"\underline{0.69 $\pm$ 0.01}", r"$-$0.31 $\pm$ 0.02"]
    assert found["joint"][3] == "--"
    assert table.index("{sequential}") < table.rindex("\\midrule") < table.index("{joint}")
    assert {len(cells) for cells in found.values()} == {len(re.search(r"tabular\}\{(\w+)\}", table)[1])}


def test_without_a_verdict_or_without_learning_nothing_stands_alone():
    few = results(Comparison.of([record(), replay()]))
    assert [cells[2] for cells in rows(few).values()] == [r"\textbf{0.70}", r"\underline{0.43}"]
    assert "or fewer than 3 seeds or orders" in few
    guessed = results(Comparison.of([record(learned=0.1, kept=0.1), replay(learned=0.1, kept=0.1)]))
    assert "None learned" in guessed
    assert not commands(guessed) & {"textbf", "underline"}


def test_what_must_not_be_compared_has_a_dagger():
    other = [replay(seed) | {"identity": {"data": {"sort": "2"}}} for seed in range(3)]
    runs = [record(seed=seed) | {"identity": {"data": {"sort": "1"}}} for seed in range(3)]
    table = results(Comparison.of([*runs, *other]))
    assert rows(table)["sequential"][2] == r"0.43 $\pm$ 0.00$^\dagger$"
    assert r"$^\dagger$sequential is not compared with it: other data for task sort." in table


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A paper of a study whose every name is an attack."""
    folder = tmp_path_factory.mktemp("hostile") / "DIR"
    tasks = HOSTILE[:3]
    told = {"tasks": tasks, "order": HOSTILE[3], "name": HOSTILE[0], "scorers": [HOSTILE[1]] * 3}
    runs = [make(seed=seed, **told) for make in (record, replay) for seed in range(3)]
    for run in runs:
        run["method"] = HOSTILE[4] if run["config"]["strategies"] else HOSTILE[1]
        run["config"]["strategies"] = {HOSTILE[5]: {HOSTILE[2]: HOSTILE[0]}} if run["config"]["strategies"] else {}
        run["config"]["model"]["name"] = HOSTILE[5]
    return write([*runs, failed(HOSTILE[3])], folder, {HOSTILE[5]: HOSTILE[5]})


def test_hostile_names_neither_run_nor_leave_the_folder(hostile):
    assert [p.name for p in hostile.parent.iterdir()] == ["DIR"]
    names = {str(p.relative_to(hostile)) for p in hostile.rglob("*") if p.is_file()}
    figures = {
        f"figures/{name}.{ending}" for name in ("curves", "matrix", "retention", "cost") for ending in ("pdf", "svg")
    }
    assert names == figures | {"results.tex", "setup.tex", "references.bib"}
    for name in ("results.tex", "setup.tex"):
        text = (hostile / name).read_text()
        assert commands(text) <= COMMANDS, name
        plain = re.sub(r"\\[{}]", "", text)
        assert plain.count("{") == plain.count("}"), name
    assert {len(re.findall(r"(?<!\\)&", line)) for line in (hostile / "results.tex").read_text().splitlines()
            if line.endswith(r"\\")} == {6}  # fmt: skip
    bib = (hostile / "references.bib").read_text()
    assert "% no entry: two lines" in bib
    assert set(re.findall(r"@\w+\{([^,]*),", bib)) <= set(entries())
    for path in (hostile / "figures").glob("*.svg"):
        tags = {element.tag.rpartition("}")[2] for element in ET.parse(path).iter()}
        assert not tags & {"script", "a", "image", "foreignObject"}, path


def test_figures_fit_a_column_with_letters_that_can_be_read(hostile):
    for path in (hostile / "figures").glob("*.pdf"):
        content = path.read_bytes()
        assert re.search(rb"/MediaBox \[ 0 0 (\S+) ", content)[1] == b"234", path  # 3.25 inches
        assert b"/FontFile2" in content  # TrueType, embedded
        assert b"/Type3" not in content
    for path in (hostile / "figures").glob("*.svg"):
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", path.read_text())]
        assert sizes
        assert min(sizes) >= 7, path


def test_the_same_records_give_the_same_bytes_in_any_order(tmp_path):
    runs = [make(tasks=("a", "b"), probes={}) for make in (record, replay)] + [failed()]
    one = write(runs, tmp_path / "a", api.sources(runs))
    other = api.Study(tmp_path, runs[::-1]).paper(tmp_path / "b")
    for path in sorted(p for p in one.rglob("*") if p.is_file()):
        assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path.name
    assert (one / "setup.tex").read_text().count("commit abc") == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/ann/my_model", "my_model"),
        ("ann/llama-2", "llama-2"),
        (r"C:\Users\ann\x", "x"),
        ("https://github.com/ann/code", "code"),
        ("ann@host.org:/data/x", "x"),
        ("by ann@host.org", "by [address]"),
        ("0.5", "0.5"),
        ("replay", "replay"),
    ],
)
def test_places_are_down_to_their_last_part(text, kept):
    assert placeless(text) == kept


def test_an_anonymous_paper_has_no_owner_and_no_commit(tmp_path):
    tasks = ("/home/ann/sort", "/data/ann/sort", "shift")
    runs = [make(seed=seed, tasks=tasks, probes={}) for make in (record, replay) for seed in range(2)]
    for run in runs:
        run["config"]["model"]["name"] = "/home/ann/llama"
        run["config"]["stream"] = {"name": "/home/ann/stream.py:Mine", "path": "/home/ann/data"}
        run["config"]["strategies"] = {"/home/ann/mine.py:Mine": {}} if run["method"] == "replay" else {}
        run["method"] = f"ann/{run['method']}"
        run["provenance"] |= {"commit": "c0ffee", "versions": {"cl-toolkit": "0.1.0"}}
    folder = write(runs, tmp_path, {}, anonymous=True)
    texts = {p.name: p.read_text() for p in folder.rglob("*") if p.suffix in (".tex", ".bib", ".svg")}
    for name, text in texts.items():
        assert not re.search(r"\bann\b|/home|c0ffee|cl-toolkit", text), name
    assert "in the order sort, sort 2, shift" in texts["setup.tex"]
    assert "mine.py:Mine (its source is not known)" in texts["references.bib"]
    assert ">sort 2<" in texts["matrix.svg"]


def test_entries_are_those_that_the_code_names():
    named = {getattr(thing, "tags", thing).paper for r in (STRATEGIES, OBJECTIVES) for name in r
             if r.source(name) is None for thing in [r.get(name, "test")]}  # fmt: skip
    named |= {METRICS[key].source for key in HEADLINE}
    for source in named:
        for key in cited(source):
            author = field(entries()[key], "author").partition(",")[0]
            assert author in source, (key, source)
    used = {key for source in named for key in cited(source)}
    assert set(entries()) - used == {"holm1979"}
    assert len({number for source in named for number in ARXIV.findall(source)} & {
        field(entry, "eprint") for entry in entries().values()}) >= 25  # fmt: skip
    assert cited("Kirkpatrick et al. 2017, arXiv 1612.00796; online: Schwarz et al. 2018, arXiv 1805.06370") == [
        "kirkpatrick2017ewc", "schwarz2018progress",
    ]  # fmt: skip
    assert cited("ours") == cited("Chaudhry et al. 2019") == []  # two papers of that year


def test_formulas_have_the_divisors_that_are_named():
    for key in HEADLINE:
        divisor = METRICS[key].source.partition("divided by ")[2].replace(" ", "")
        assert METRICS[key].formula.startswith(rf"\frac{{1}}{{{divisor}}}\sum"), key


def test_the_command_writes_a_paper(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "r", [failed()])
    asked = []
    monkeypatch.setattr(
        api.Study, "paper", lambda self, folder, anonymous: asked.append((folder.name, anonymous)) or folder
    )
    code, out, _ = call(monkeypatch, capsys, "report", "r", "--paper", "p", "--anonymous")
    assert (code, out.splitlines()[-1]) == (0, "paper: p")
    assert asked == [("p", True)]
    code, _, error = call(monkeypatch, capsys, "report", "r", "--anonymous")
    assert code == 2
    assert "--anonymous: is about what --paper DIR writes" in error


def test_sources_are_asked_of_names_alone(tmp_path):
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    run = replay()
    run["config"]["strategies"][f"{evil}:Evil"] = {}
    assert api.sources([run, failed()]) == {"replay": "Chaudhry et al. 2019, arXiv 1902.10486", "sft": "standard"}
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_takes_it(hostile, tmp_path):
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{results}\input{setup}\end{document}"
    for name in ("results.tex", "setup.tex"):
        shutil.copy(hostile / name, tmp_path)
    (tmp_path / "page.tex").write_text(page)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page"], cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
