"""What the README and the documents show is what a committed result says, and its Python runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.write_readme_figures import README, RESULTS, ROOT, with_figures


def test_the_figures_are_those_of_the_committed_result() -> None:
    readme = README.read_text(encoding="utf-8")
    assert with_figures(readme, json.loads(RESULTS.read_text(encoding="utf-8"))) == readme


def test_other_figures_would_be_seen() -> None:
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    readme = README.read_text(encoding="utf-8")
    assert with_figures(readme, {**result, "final_loss": result["final_loss"] + 1}) != readme


def test_the_difference_to_chance_is_no_chance() -> None:
    difference = json.loads(RESULTS.read_text(encoding="utf-8"))["coverage_difference"]
    assert difference["low"] > 0


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_there_are_examples_to_run() -> None:
    assert len(_blocks()) >= 2


@pytest.mark.parametrize("number", range(len(_blocks())))
def test_the_examples_run_and_give_what_their_comments_say(number: int, tmp_path: Path) -> None:
    """Each block runs as a script of its own; `expression    # value` must be true where the value is Python."""
    lines = []
    for line in _blocks()[number].replace('"examples/', f'"{ROOT}/examples/').splitlines():
        code, _, comment = line.partition("  # ")
        value = re.match(r"(\([\d, ]+\)|\"[^\"]*\")", comment.strip())
        is_expression = value and "=" not in code and ":" not in code
        lines.append(f"assert ({code}) == {value[0]}, ({code})" if value and is_expression else line)
    program = "\n".join(["if __name__ == '__main__':", *(f"    {line}" for line in lines)])
    assert program.count("assert") >= 1
    script = tmp_path / "example.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
