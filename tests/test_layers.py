"""The architecture is a test: the table in docs/architecture.md against the imports in src/roboreel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.layers import FACE, cycle, foreign, foundation, parse_table, read_tree, violations

REPOSITORY = Path(__file__).parents[1]
TREE = read_tree(REPOSITORY / "src" / "roboreel")
TABLE = parse_table((REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8"))
SOURCES = sorted(
    path for folder in ("src", "tests", "examples", "scripts") for path in (REPOSITORY / folder).rglob("*.py")
)


def test_every_import_is_allowed_by_the_table() -> None:
    assert violations(TREE, TABLE) == []


def test_every_row_of_the_table_is_a_part() -> None:
    there = {TREE.part(module) for module in TREE.files}
    assert sorted(set(TABLE) - there) == [], "docs/architecture.md has rows of parts that do not exist: remove them"


def test_no_two_modules_import_each_other() -> None:
    assert cycle(TREE) == []


def test_below_the_dataset_nothing_imports_torch() -> None:
    below = foundation(TABLE, "dataset")
    assert {"schema", "format", "columns", "store", "convert"} <= below
    assert foreign(TREE, below, "torch") == []


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert len(lengths) > 10
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_file_is_a_drawer_for_everything() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py"}
    assert [path for path in SOURCES if path.name in drawers] == []


# The checker itself: each kind of wrong import in a small package of its own must be reported.

SMALL_TABLE = """
| part | what it does | may import |
| --- | --- | --- |
| `errors` | | – |
| `__init__` | | anything |
| `low` | | – |
| `middle/` | | low |
| `top` | | anything |
"""

CLEAN = {
    "__init__.py": "",
    "errors.py": "",
    "low.py": "import numpy\nfrom pkg.errors import Bad\n",
    "middle/__init__.py": "from pkg.middle.part import thing\n",
    "middle/part.py": "from pkg import low\nfrom ..low import x\n",
    "top.py": "import pkg\nfrom pkg import middle, __version__\n",
}


def judge(folder: Path, changes: dict[str, str]) -> tuple[list[str], list[str]]:
    """Write the clean package with `changes` and return its violations and its cycle."""
    for name, text in {**CLEAN, **changes}.items():
        path = folder / "pkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    tree = read_tree(folder / "pkg")
    return [line.removeprefix(f"{folder}/pkg/") for line in violations(tree, parse_table(SMALL_TABLE))], cycle(tree)


def test_a_clean_package_passes(tmp_path: Path) -> None:
    assert judge(tmp_path, {}) == ([], [])


@pytest.mark.parametrize(
    ("name", "text", "report"),
    [
        pytest.param(
            "low.py",
            "def f():\n    from pkg.middle import part\n",
            "low.py:2: `low` may not import `middle` (pkg.middle.part)",
            id="upward-inside-a-function",
        ),
        pytest.param(
            "low.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pkg.top as t\n",
            "low.py:3: `low` may not import `top` (pkg.top)",
            id="under-type-checking",
        ),
        pytest.param(
            "middle/part.py",
            "from .. import top\n",
            "middle/part.py:1: `middle` may not import `top` (pkg.top)",
            id="relative",
        ),
        pytest.param(
            "middle/__init__.py",
            "from ..top import x\n",
            "middle/__init__.py:1: `middle` may not import `top` (pkg.top)",
            id="relative-in-a-package",
        ),
        pytest.param(
            "low.py",
            "import importlib\nimportlib.import_module('pkg.top')\n",
            "low.py:2: `low` may not import `top` (pkg.top)",
            id="by-import-module",
        ),
        pytest.param(
            "low.py",
            "from pkg import Thing\n",
            "low.py:1: `low` may not import `__init__` (pkg)",
            id="the-public-face-from-below",
        ),
        pytest.param(
            "errors.py",
            "import pkg.low\n",
            "errors.py:1: `errors` is free for all and so may not import `low` (pkg.low)",
            id="out-of-a-free-part",
        ),
        pytest.param(
            "top.py",
            "from pkg.low import _secret\n",
            "top.py:1: `top` takes the private name `_secret` out of `low`",
            id="a-private-name",
        ),
        pytest.param(
            "fresh/part.py",
            "",
            "fresh/part.py: the part `fresh` has no row in the table of parts",
            id="an-unknown-part",
        ),
    ],
)
def test_a_wrong_import_is_reported(tmp_path: Path, name: str, text: str, report: str) -> None:
    found, _ = judge(tmp_path, {name: text})
    assert report in found


def test_a_cycle_of_modules_is_reported(tmp_path: Path) -> None:
    changes = {
        "middle/part.py": "def f():\n    from pkg.middle.other import g\n",
        "middle/other.py": "from pkg.middle import thing\n",
    }
    _, found = judge(tmp_path, changes)
    assert set(found) == {"pkg.middle", "pkg.middle.part", "pkg.middle.other"}
    assert found[0] == found[-1]


def test_a_foreign_package_below_is_reported(tmp_path: Path) -> None:
    judge(tmp_path, {"middle/part.py": "def f():\n    import torch.nn\n"})
    tree, table = read_tree(tmp_path / "pkg"), parse_table(SMALL_TABLE)
    assert foundation({**table, "top": frozenset({"middle"})}, "top") == {"middle", "low"}
    assert foreign(tree, frozenset({"middle"}), "torch") == [
        f"{tmp_path}/pkg/middle/part.py:2: `middle` imports torch.nn"
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [("| `low` | | – |", "two rows for low"), ("| `odd` | | nowhere |", "odd: nowhere")],
)
def test_a_table_that_contradicts_itself_is_refused(row: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        parse_table(f"{SMALL_TABLE.strip()}\n{row}\n")


def test_the_table_has_the_face_and_the_free_parts() -> None:
    assert {FACE, "errors", "_optional"} <= set(TABLE)
