"""Two processes train one policy as one process would, as a launcher starts them, on the CPU by gloo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2
from roboreel.policies import BCConfig
from roboreel.policies.part import Part
from roboreel.train import TrainConfig, train
from roboreel.train.order import DrawnOrder

POLICY = BCConfig(chunk_size=3, n_action_steps=2, width=8, keypoints=4, hidden=8, blocks=1, noises=2)


def config_of(data: Path, out: Path) -> TrainConfig:
    return TrainConfig(data, out, steps=6, batch_size=8, save_every=3, num_workers=1, device="cpu", policy=POLICY)


def as_options(config: TrainConfig) -> list[str]:
    policy = [
        f"--policy.{name.replace('_', '-')}={value}" for name, value in vars(POLICY).items() if name != "relative"
    ]
    run = {"dataset", "output_dir", "steps", "batch_size", "save_every", "num_workers", "device"}
    return [*(f"--{name.replace('_', '-')}={getattr(config, name)}" for name in sorted(run)), *policy]


def launch(*arguments: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def check_same(one: Path, other: Path) -> None:
    """The same losses, but for the order in which float32 numbers are added up."""
    for name in ("loss", "grad_norm", "lr"):
        assert [line[name] for line in lines(other)] == pytest.approx([line[name] for line in lines(one)], rel=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, and a run by one process."""
    folder = tmp_path_factory.mktemp("processes")
    rng = np.random.default_rng(0)
    with LeRobotDatasetV2(folder / "data", fps=10, image_mode="memmap") as dataset:
        for length in (12, 9, 10):
            state = rng.uniform(0, 1, (length, 2)).astype(np.float32)
            images = rng.integers(0, 256, (length, 16, 16, 3), np.uint8)
            dataset.add_episodes({"observation.image": images, "observation.state": state, "action": 2 * state})
    train(config_of(folder / "data", folder / "one"))
    return folder


def test_each_has_its_part_of_every_batch(folder: Path) -> None:
    config = config_of(folder / "data", folder / "none")
    whole = list(DrawnOrder(np.arange(31), config, 0))
    parts = [list(DrawnOrder(np.arange(31), config, 0, Part(rank, 4))) for rank in range(4)]
    assert {len(batch) for part in parts for batch in part} == {2}
    for number, batch in enumerate(whole):
        assert sorted(batch) == sorted(index for part in parts for index in part[number])
        assert DrawnOrder(np.arange(31), config, 0, Part(1, 4)).batch(number) == batch
    assert set(whole[0] + whole[1] + whole[2] + whole[3][:7]) == set(range(31))


def test_two_make_the_steps_of_one_and_one_goes_on_from_there(folder: Path) -> None:
    launch("-m", "roboreel", "train", *as_options(config_of(folder / "data", folder / "two")))
    check_same(folder / "one", folder / "two")
    assert sorted(path.name for path in (folder / "two").iterdir()) == sorted(
        path.name for path in (folder / "one").iterdir()
    )
    shutil.copytree(folder / "two", folder / "goes on")
    shutil.rmtree(folder / "goes on" / "checkpoints" / "000006")
    train(replace(config_of(folder / "data", folder / "goes on"), resume=True))
    check_same(folder / "one", folder / "goes on")


def test_two_go_on_from_one_and_stop_where_one_of_them_must(folder: Path) -> None:
    shutil.copytree(folder / "one", folder / "resumed")
    shutil.rmtree(folder / "resumed" / "checkpoints" / "000006")
    launch("-m", "tests.in_two_processes", str(folder))
    check_same(folder / "one", folder / "resumed")
    for rank in (0, 1):
        told = json.loads((folder / f"told by {rank}.json").read_text())
        assert told["resumed"] == 6
        assert "--batch-size 9 is shared by 2 processes: give a multiple of 2, as 10" in told["odd"]
        assert told["nan"].startswith("LossNotFiniteError: step 1: the loss is nan")
    assert not (folder / "odd").exists()
    bad = json.loads((folder / "nan" / "bad_batch.json").read_text())
    assert bad["indices"] == DrawnOrder(np.arange(31), config_of(folder / "data", folder), 0).batch(0)
