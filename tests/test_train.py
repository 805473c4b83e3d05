"""`roboreel train`: what a run leaves behind, how it goes on, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roboreel import ConfigError, LeRobotDatasetV2, LossNotFiniteError, MissingDependencyError, SourceError
from roboreel.checkpoint import CHECKPOINTS, POLICY, TRAINING, latest, run_lock, steps_done
from roboreel.cli import training
from roboreel.policies import BCConfig, BCPolicy
from roboreel.sampling.order import EpochOrder
from roboreel.train import LeRobotTrainConfig, TrainConfig, learning_rate, train
from roboreel.train.order import DrawnOrder, without_last
from roboreel.view import read_metrics
from tests.tiny_data import FPS, episode, make_dataset, write_pusht_folder

TINY = BCConfig(chunk_size=3, n_action_steps=2, width=8, keypoints=8, hidden=16, blocks=1, noises=2)
TIMES = ("data_s", "update_s")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def config(dataset: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(dataset, tmp_path / "run", steps=7, batch_size=8, num_workers=0, save_every=7, policy=TINY)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict[str, float]]:
    """Return the metrics without the seconds, which differ from run to run."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    last = latest(folder)
    assert last is not None
    found: dict[str, torch.Tensor] = torch.load(last / POLICY)["weights"]
    return found


def test_a_run_leaves_metrics_curves_and_checkpoints(config: TrainConfig) -> None:
    result = train(replace(config, save_every=3))
    out = config.output_dir
    assert [line["step"] for line in lines(out)] == [1, 2, 3, 4, 5, 6, 7]
    assert all(set(line) == {"step", "loss", "grad_norm", "lr", "update_s", "data_s"} for line in lines(out))
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and line["update_s"] > 0 for line in lines(out))
    assert [line["lr"] for line in lines(out)] == [learning_rate(config, step) for step in range(1, 8)]
    picture = (out / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    assert sorted(path.name for path in (out / CHECKPOINTS).iterdir()) == ["000003", "000006", "000007"]
    assert (result.checkpoint, result.steps, result.frames_seen) == (out / CHECKPOINTS / "000007", 7, 56)
    assert result.final_loss == lines(out)[-1]["loss"]
    assert result.update_s == pytest.approx(sum(line["update_s"] for line in lines(out)))
    assert json.loads((out / "config.json").read_text())["policy"]["chunk_size"] == 3


@pytest.mark.parametrize(("workers", "workers_after"), [(0, 0), (2, 1)])
def test_a_resumed_run_is_the_uninterrupted_one(config: TrainConfig, workers: int, workers_after: int) -> None:
    config = replace(config, num_workers=workers, save_every=3)
    train(config)
    stopped = replace(config, output_dir=config.output_dir.with_name("stopped"), num_workers=workers_after, resume=True)
    shutil.copytree(config.output_dir, stopped.output_dir)
    # As a kill in step 5, while a line was being written and a checkpoint, leaves it.
    for step in ("000006", "000007"):
        shutil.rmtree(stopped.output_dir / CHECKPOINTS / step)
    (stopped.output_dir / CHECKPOINTS / ".000006.tmp").mkdir()
    metrics = stopped.output_dir / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:4]) + '{"step": 5, "lo')
    train(stopped)
    assert timeless(stopped.output_dir) == timeless(config.output_dir)
    expected, found = weights(config.output_dir), weights(stopped.output_dir)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert not list((stopped.output_dir / CHECKPOINTS).glob(".*"))


def test_workers_change_nothing_and_the_seed_does(config: TrainConfig) -> None:
    runs: dict[str, dict[str, Any]] = {"none": {"num_workers": 0}, "two": {"num_workers": 2}, "seed": {"seed": 1}}
    for name, options in runs.items():
        train(replace(config, output_dir=config.output_dir / name, **options))
    none, two, seed = (timeless(config.output_dir / name) for name in runs)
    assert none == two
    assert none[0]["loss"] != seed[0]["loss"]


def test_a_finished_run_can_be_resumed_to_no_effect_or_to_more_steps(config: TrainConfig) -> None:
    first = train(config)
    assert train(replace(config, resume=True)) == first
    longer = train(replace(config, resume=True, steps=9))
    assert (longer.steps, steps_done(config.output_dir)) == (9, 9)
    assert [line["step"] for line in lines(config.output_dir)] == list(range(1, 10))
    with pytest.raises(ConfigError, match=r"--steps 7: the run in .* has done 9 already"):
        train(replace(config, resume=True))


def test_a_line_of_several_steps_is_their_mean_and_sum(config: TrainConfig) -> None:
    every = replace(config, steps=5, save_every=4)
    train(every)
    train(replace(every, output_dir=config.output_dir / "pairs", log_every=2))
    single, pairs = lines(config.output_dir), lines(config.output_dir / "pairs")
    assert [line["step"] for line in pairs] == [2, 4, 5]
    assert pairs[0]["loss"] == pytest.approx((single[0]["loss"] + single[1]["loss"]) / 2)
    assert pairs[2]["loss"] == single[4]["loss"]


def test_the_loss_falls(config: TrainConfig) -> None:
    policy = replace(TINY, hidden=64, noises=8)
    train(replace(config, steps=120, save_every=120, warmup_steps=5, lr=5e-3, policy=policy))
    loss = read_metrics(config.output_dir / "metrics.jsonl")["loss"]
    assert loss[-10:].mean() < 0.7 * loss[:10].mean()


def test_training_does_not_touch_the_dataset(config: TrainConfig) -> None:
    before = {path: path.stat().st_mtime_ns for path in config.dataset.rglob("*")}
    train(config)
    assert {path: path.stat().st_mtime_ns for path in config.dataset.rglob("*")} == before


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_frames(config: TrainConfig) -> None:
    with pytest.raises(LossNotFiniteError, match=r"the batch's indices are in .*bad_batch\.json"):
        train(replace(config, lr=1e30, warmup_steps=0))
    report = json.loads((config.output_dir / "bad_batch.json").read_text())
    assert report["step"] > 1
    assert report["indices"] == EpochOrder(26, 8, seed=0).batch(report["step"] - 1)


def test_values_that_are_no_numbers_are_named_before_the_first_step(config: TrainConfig, tmp_path: Path) -> None:
    data = episode(12)
    data["action"][5] = np.nan
    with LeRobotDatasetV2(tmp_path / "bad", fps=FPS, image_mode="memmap") as dataset:
        dataset.add_episodes(data)
        dataset.add_episodes(episode(12, seed=1))
        data["action"][5], data["observation.state"][3] = 0, np.inf
        dataset.add_episodes(data)
        dataset.add_episodes({**data, "observation.state": data["action"]})
    bad = replace(config, dataset=tmp_path / "bad")
    with pytest.raises(ConfigError, match=r"the first at index 27; leave their episodes out: --skip-episodes 2$"):
        train(bad)
    bad = replace(bad, skip_episodes=(2,))
    with pytest.raises(ConfigError, match=r"'action' has .* the first at index 5; .*: --skip-episodes 0$"):
        train(bad)
    with pytest.raises(ConfigError, match=r"--skip-episodes: .* has no episodes \[9\]; it holds 4"):
        train(replace(bad, skip_episodes=(0, 9)))
    with pytest.raises(ConfigError, match="holds no frames to train on"):
        train(replace(bad, skip_episodes=(0, 1, 2, 3)))
    train(replace(bad, skip_episodes=(2, 0)))


def test_a_hole_in_time_is_refused_with_what_to_add(config: TrainConfig, tmp_path: Path) -> None:
    data = episode(12)
    data["timestamp"] = np.arange(12) / FPS + np.where(np.arange(12) > 6, 3.0, 0.0)
    with LeRobotDatasetV2(tmp_path / "holed", fps=FPS, image_mode="memmap") as dataset:
        dataset.add_episodes(data)
    holed = replace(config, dataset=tmp_path / "holed")
    with pytest.raises(ConfigError, match=r"apart, at 10 Hz: 0; add --on-hole nearest or --on-hole pad"):
        train(holed)
    assert not config.output_dir.exists()
    train(replace(holed, on_hole="nearest"))
    with pytest.raises(ConfigError, match="on_hole was 'nearest' and is now 'pad'"):
        train(replace(holed, on_hole="pad", resume=True))


def test_scalar_states_and_actions_are_learned(config: TrainConfig, tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.float32)
    with LeRobotDatasetV2(tmp_path / "scalar", fps=FPS) as dataset:
        dataset.add_episodes({"observation.state": values, "action": 2 * values})
    result = train(replace(config, dataset=tmp_path / "scalar"))
    policy = BCPolicy.load(result.checkpoint, torch.device("cpu"))
    assert policy.select_action({"observation.state": torch.zeros(3)}).shape == (3,)


def test_two_runs_do_not_train_in_one_folder(config: TrainConfig) -> None:
    with run_lock(config.output_dir), pytest.raises(ConfigError, match=f"trained in by process {os.getpid()} on host"):
        train(config)
    assert steps_done(config.output_dir) == 0
    train(replace(config, num_workers=1))
    train(replace(config, resume=True))


def test_a_run_is_not_resumed_without_its_metrics(config: TrainConfig) -> None:
    train(config)
    metrics = config.output_dir / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.unlink()
    message = r"--resume: .*metrics\.jsonl does not hold the metrics of step 7"
    with pytest.raises(ConfigError, match=message):
        train(replace(config, resume=True))
    metrics.write_text("".join(whole.splitlines(keepends=True)[:6]))
    with pytest.raises(ConfigError, match=message):
        train(replace(config, resume=True, steps=9))
    metrics.write_text(whole + "no JSON\n")
    with pytest.raises(SourceError, match=r"metrics\.jsonl:8: not a JSON object"):
        train(replace(config, resume=True, steps=9))
    metrics.write_text(whole)
    assert train(replace(config, resume=True, steps=9)).steps == 9


def test_a_dataset_that_grows_meanwhile_is_not_taken_for_the_same(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, dataset=make_dataset(tmp_path / "growing"), steps=60, save_every=60)

    def grow() -> None:
        while not lines(config.output_dir):
            time.sleep(0.01)
        with LeRobotDatasetV2(config.dataset) as writer:
            writer.add_episodes(episode(5, seed=9))

    config.output_dir.mkdir()
    (config.output_dir / "metrics.jsonl").touch()
    thread = threading.Thread(target=grow, daemon=True)
    thread.start()
    train(config)
    thread.join()
    with pytest.raises(ConfigError, match=r"has changed: .*frames 31 \(then 26\)"):
        train(replace(config, resume=True, steps=61))


def spoil(folder: Path) -> None:
    last = latest(folder)
    assert last is not None
    (last / TRAINING).write_bytes(b"cut short")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps 0: give 1 or more"),
        ({"batch_size": -1}, "--batch-size -1: give 1 or more"),
        ({"num_workers": -1}, "--num-workers -1: give 0 or more"),
        ({"lr": 0.0}, "--lr 0.0: give a number above 0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"weight_decay": float("nan")}, "--weight-decay nan: give 0 or more"),
        ({"weight_decay": float("inf")}, "--weight-decay inf: give 0 or more"),
        ({"seed": 2**70}, f"--seed {2**70}: give a number from 0 to"),
        ({"seed": -1}, "--seed -1: give a number from 0 to"),
        ({"ema_decay": 1.0}, "--ema-decay 1.0"),
        ({"save_every": 3, "log_every": 2}, "--save-every 3 is no multiple of --log-every 2"),
        ({"loader": "lerobot", "decode_images": True}, "decodes as it reads: leave --decode-images out"),
        ({"loader": "lerobot", "skip_episodes": (1,)}, "reads all episodes: leave --skip-episodes out"),
    ],
)
def test_options_that_cannot_be_are_refused(config: TrainConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:77"}, "--device cuda:77 cannot be used here .*--device cpu would do"),
        ({"device": "toaster"}, "--device toaster cannot be used here"),
        ({"device": "meta"}, "--device meta cannot be used here"),
        ({"device": "hpu"}, "--device hpu cannot be used here"),
        ({"dataset": Path("nowhere")}, "--dataset nowhere is no roboreel dataset; .*: roboreel import FOLDER DEST"),
        ({"resume": True}, "--resume: .* holds no checkpoint; leave --resume out"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    config: TrainConfig, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(replace(config, **options))
    assert not config.output_dir.exists()


def test_a_dataset_that_cannot_be_learned_leaves_no_run_behind(config: TrainConfig, tmp_path: Path) -> None:
    with LeRobotDatasetV2(tmp_path / "blind", fps=FPS) as dataset:
        dataset.add_episodes({"action": np.zeros((4, 2), np.float32)})
    with pytest.raises(ConfigError, match="has no camera and no state"):
        train(replace(config, dataset=tmp_path / "blind"))
    train(config)


def test_a_run_killed_before_its_first_checkpoint_is_begun_anew(config: TrainConfig) -> None:
    train(config)
    shutil.rmtree(config.output_dir / CHECKPOINTS)
    train(config)
    assert [line["step"] for line in lines(config.output_dir)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_run_is_not_overwritten_nor_continued_as_another(config: TrainConfig, tmp_path: Path) -> None:
    train(config)
    with pytest.raises(ConfigError, match="holds a run already: add --resume"):
        train(config)
    with pytest.raises(ConfigError, match=r"lr was 0\.003 and is now 0\.1"):
        train(replace(config, resume=True, lr=0.1))
    other = make_dataset(tmp_path / "other", lengths=(5, 5))
    with pytest.raises(ConfigError, match=r"goes on with the same data, .*frames 10 \(then 26\)"):
        train(replace(config, resume=True, dataset=other))
    twin = make_dataset(tmp_path / "twin")
    with pytest.raises(ConfigError, match=r"is another dataset, or has changed: uuid .*frames 26 \(then 26\)"):
        train(replace(config, resume=True, dataset=twin))
    edited = tmp_path / "edited"
    shutil.copytree(config.dataset, edited)
    train(replace(config, resume=True, dataset=edited))  # moved, the same all the same
    with LeRobotDatasetV2(edited) as dataset, dataset.edit("action") as actions:
        actions[0] = 7
    with pytest.raises(ConfigError, match="is another dataset, or has changed"):
        train(replace(config, resume=True, dataset=edited))
    assert [line["step"] for line in lines(config.output_dir)] == [1, 2, 3, 4, 5, 6, 7]
    spoil(config.output_dir)
    with pytest.raises(ValueError, match=r"training\.pt cannot be read as a checkpoint"):
        train(replace(config, resume=True))


def test_metrics_are_read_up_to_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25, "late": 3}\n{"step": 3, "lo')
    columns = read_metrics(path)
    assert columns["loss"].tolist() == [0.5, 0.25]
    assert np.array_equal(columns["late"], [np.nan, 3], equal_nan=True)
    path.write_text('{"step": 1}\nsome text\n')
    with pytest.raises(SourceError, match=r"metrics\.jsonl:2: not a JSON object of numbers: 'some text'"):
        read_metrics(path)


@pytest.mark.gpu
def test_it_trains_on_a_gpu(config: TrainConfig) -> None:
    result = train(replace(config, device="cuda"))
    assert result.steps == 7


def test_policies_of_lerobot_want_lerobot(config: TrainConfig) -> None:
    if importlib.util.find_spec("lerobot") is not None:
        pytest.skip("there is a lerobot")
    with pytest.raises(MissingDependencyError, match=r"LeRobot's policies needs .*pip install 'roboreel\[lerobot\]'"):
        train(LeRobotTrainConfig(config.dataset, config.output_dir, policy="act"))
    assert not config.output_dir.exists()


def test_a_policy_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match="--policy pi99: give bc, act, diffusion, vqbet, tdmpc"):
        training.run(["--policy", "pi99"])


def test_frames_are_drawn_once_an_epoch_but_for_the_last_of_each_episode(config: TrainConfig) -> None:
    indices = without_last([9, 5, 12], 4)
    order = DrawnOrder(indices, replace(config, batch_size=7, steps=2), start=0)
    assert sorted(index for batch in order for index in batch) == sorted(indices) == [0, 1, 2, 3, 4, 9, *range(14, 22)]
    assert list(order)[1] == order.batch(1)


@pytest.mark.parametrize("options", [{"tensorboard": True}, {"wandb": "pushing"}])
def test_a_tracker_that_is_not_installed_is_refused_before_the_first_step(
    config: TrainConfig, options: dict[str, Any]
) -> None:
    if importlib.util.find_spec(next(iter(options))) is not None:
        pytest.skip("it is installed")
    with pytest.raises(MissingDependencyError, match=r"pip install 'roboreel\[track\]'"):
        train(replace(config, **options))
    assert not config.output_dir.exists()


def test_a_lerobot_folder_is_taken_in_once(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "pusht").mkdir()
    config = replace(config, dataset=write_pusht_folder(tmp_path / "pusht"), steps=2, save_every=2)
    train(config)
    train(replace(config, output_dir=tmp_path / "decoded", decode_images=True))
    assert [line["loss"] for line in lines(config.output_dir)] == [line["loss"] for line in lines(tmp_path / "decoded")]
    places = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "home" / "roboreel" / "folders").iterdir()}
    assert len(places) == 2
    train(replace(config, resume=True, steps=3))
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "home/roboreel/folders").iterdir()} == places


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": "lerobot"}, "--loader lerobot reads a folder in LeRobot's format, .*: roboreel export"),
        ({"decode_images": True}, "--decode-images is for a folder in LeRobot's format, .*: roboreel convert"),
    ],
)
def test_a_roboreel_dataset_is_read_as_it_is(config: TrainConfig, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(replace(config, **options))
    assert not config.output_dir.exists()
