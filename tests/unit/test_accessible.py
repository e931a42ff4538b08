"""The page for everyone: read aloud, by keyboard, on a phone, light and dark."""

import re
from itertools import pairwise

import pytest
from browser import AXE, CHROMIUM, found
from reported import failed, record, study

from cl_toolkit.report import build

browsed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
checked = pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here; `make accessible` fetches it")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with all its sections: three rates of a method, an anchor, an autopsy, a failed run."""
    runs = [*study(), *(record("slow", seed) for seed in range(3)), failed()]
    lost = {"step": 9, "n": 50, "valid": 0.5, "reminded": 0.4, "scored": "sort", "trained": "max", "strict": 0.2,
            "content": 0.6, "superficial": 0.4, "essential": 0.3, "drop": 0.7}  # fmt: skip
    for run in runs[:-1]:
        run |= {"anchors": ["talk"], "anchor_matrix": [[0.8], [0.6], [0.5], [0.4]]}
        run["probes"]["autopsy"] = [lost | {"row": 1, "drop": 0.0}, lost | {"row": 3}]
        run["config"]["train"] = {"learning_rate": 1e-4 if run["method"] == "slow" else 3e-4}
    return build(runs, tmp_path_factory.mktemp("page"))


def test_headings_tables_and_figures_have_names(page):
    text = page.read_text()
    assert '<html lang="en">' in text
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is left out"
    assert text.count("<thead>") == text.count("</thead>") > 5
    assert not re.findall(r"<th(?:\s+(?!scope)[^>]*)?>", re.sub(r"<(/?)thead>", "", text)), "every header says of what"
    regions = re.findall(r'<div class="scroll" tabindex="0" role="region" aria-label="([^"]+)">', text)
    assert text.count('class="scroll"') == len(regions) == len(set(regions))
    assert all(re.search(r'role="img" aria-label="[^"]+"', svg) for svg in re.findall(r"<svg [^>]*>", text))


def luminance(color):
    """Relative luminance of WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_in_light_and_in_dark(page):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    themes = re.findall(r":root \{([^}]*--edge[^}]*)\}", page.read_text())
    assert len(themes) == 2
    for theme in themes:
        color = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        for ink in ("ink", "muted", "accent", "warn", "bad"):
            for paper in ("paper", "soft"):
                assert contrast(color[ink], color[paper]) >= 4.5, (ink, paper)
        for ink in ("ink", "warn"):
            assert contrast(color[ink], color["care"]) >= 4.5, ink


def test_a_page_is_small(page):
    assert len(page.read_bytes()) < 3_000_000


@browsed
def test_nothing_is_wider_than_a_phone(page, tmp_path):
    script = "[innerWidth, document.documentElement.scrollWidth - document.documentElement.clientWidth]"
    assert found(page, script, tmp_path, width=390) == [390, 0]


@browsed
def test_dark_is_dark(page, tmp_path):
    script = "getComputedStyle(document.body).backgroundColor"
    assert found(page, script, tmp_path) == "rgb(255, 255, 255)"
    assert found(page, script, tmp_path, dark=True) == "rgb(20, 24, 30)"


AUDIT = "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"


def audited(page, folder, **how):
    """What axe-core finds."""
    with_axe = folder / "page.html"
    text = page.read_text(encoding="utf-8").replace(
        "</body>", f"<script>{AXE.read_text(encoding='utf-8')}</script></body>"
    )
    with_axe.write_text(text, encoding="utf-8")
    return found(with_axe, AUDIT, folder, **how)


@browsed
@checked
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_axe_finds_nothing(width, dark, page, tmp_path):
    assert audited(page, tmp_path, width=width, dark=dark) == []


@browsed
@checked
def test_axe_finds_what_is_wrong(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("<h1>", '<img src="x.png"><h1 style="color: #eee">'))
    assert {"image-alt", "color-contrast"} <= {name for name, _ in audited(broken, tmp_path)}
