"""`make train`: what it says is of the run that it names, also where that was interrupted."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.train_pusht import Options, cores, main

from roboreel.checkpoint import identity
from tests.tiny_data import write_pusht_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pusht_folder(tmp_path_factory.mktemp("lerobot"))


@pytest.fixture
def options(source: Path, tmp_path: Path) -> Options:
    return Options(tmp_path / "out", source, steps=2, batch_size=4, n_episodes=2, n_envs=1, max_steps=5)


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def test_an_interrupted_run_is_told_as_the_one_it_is(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    out = options.output_dir
    main(options)
    first = read(out, "summary.json")
    assert (first["steps"], first["seeds"]) == (2, 2)
    assert set(first["seconds"]) == {"import", "training", "evaluation"}
    assert first["seconds"]["training"] == pytest.approx(first["data_s"] + first["update_s"], abs=0.1)
    assert 0 <= first["coverage_initial"]["mean"] <= 1
    assert "holds the finished run already" not in capsys.readouterr().out

    # Trained on, and killed before the new weights were evaluated: the old evaluation and its summary lie there.
    longer = replace(options, steps=3)
    before = {name: (out / name).read_bytes() for name in ("summary.json", "eval_trained/eval.json")}
    main(longer)
    for name, content in before.items():
        (out / name).write_bytes(content)
    main(longer)
    printed = capsys.readouterr().out
    assert "holds the finished run already" not in printed
    assert printed.count("3 steps, 12 frames drawn") == 2
    again = read(out, "summary.json")
    weights = read(out, "eval_trained/eval.json")["weights"]
    assert again["steps"] == weights["step"] == 3
    assert weights == identity(out / "train/checkpoints/000003/policy.pt")
    assert again["seconds"]["import"] == first["seconds"]["import"]
    total = sum(read(out, f"{name}/eval.json")["seconds"] for name in ("eval_trained", "eval_random"))
    assert again["seconds"]["evaluation"] == pytest.approx(total, abs=0.1)

    # Killed just before the summary was written.
    (out / "summary.json").unlink()
    main(longer)
    assert "holds the finished run already" in capsys.readouterr().out
    assert read(out, "summary.json") == again


def test_force_begins_anew_and_leaves_what_is_not_its_own(options: Options) -> None:
    out = options.output_dir
    main(replace(options, steps=1, n_episodes=1))
    assert read(out, "summary.json")["coverage_trained"]["low"] is None
    (out / "mine.txt").touch()
    shutil.rmtree(out / "eval_random")
    main(replace(options, steps=2, n_episodes=1, force=True))
    assert (out / "mine.txt").exists()
    assert [path.name for path in (out / "train/checkpoints").iterdir()] == ["000002"]
    assert torch.load(out / "train/checkpoints/000002/policy.pt")["step"] == 2


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    assert cores() == os.cpu_count()
