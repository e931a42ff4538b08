"""What is said twice about the project is said alike."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TESTED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def read(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_citation_is_of_this_project():
    citation = read("CITATION.cff")
    assert [citation[key] for key in ("title", "version", "license")] == [
        PROJECT[key] for key in ("name", "version", "license")
    ]


def test_commits_are_checked_with_the_tested_ruff():
    revisions = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in read(".pre-commit-config.yaml")["repos"]}
    assert revisions["ruff-pre-commit"] == f"v{TESTED['ruff']}"


def test_the_oldest_python_of_the_project_is_tested():
    pythons = read(".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert pythons == sorted(pythons, key=lambda version: int(version.split(".")[1]))
