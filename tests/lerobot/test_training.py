"""`roboreel train` with LeRobot's policies: steps, checkpoints that LeRobot loads, acting, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from roboreel import ConfigError, LeRobotDatasetV2, LossNotFiniteError, SourceError
from roboreel.cli import training
from roboreel.policies import BCConfig
from roboreel.train import LeRobotTrainConfig, TrainConfig, train
from roboreel.train.lerobot import LeRobotActor, actor_from
from roboreel.train.lerobot.policy import lerobot

FPS, SIDE = 10, 48
OPTIONS: dict[str, tuple[str, ...]] = {
    "act": (
        "pretrained_backbone_weights=null",
        "chunk_size=4",
        "n_action_steps=4",
        "dim_model=16",
        "n_heads=2",
        "dim_feedforward=16",
        "n_encoder_layers=1",
        "n_vae_encoder_layers=1",
    ),
    "diffusion": (
        "pretrained_backbone_weights=null",
        "down_dims=[16,16]",
        "diffusion_step_embed_dim=16",
        "n_groups=4",
        "num_inference_steps=2",
        "horizon=4",
        "n_action_steps=2",
        "drop_n_last_frames=1",
    ),
    "vqbet": (
        "pretrained_backbone_weights=null",
        "crop_shape=null",
        "n_vqvae_training_steps=2",
        "gpt_input_dim=16",
        "gpt_output_dim=16",
        "gpt_hidden_dim=16",
        "gpt_n_layer=1",
        "gpt_n_head=2",
        "vqvae_enc_hidden_dim=16",
    ),
    "tdmpc": ("mlp_dim=16", "horizon=2", "cem_iterations=1", "n_gaussian_samples=8", "n_pi_samples=2", "n_elites=4"),
}
"""Policy -> options that make it small."""


def write_episodes(folder: Path, leave_out: tuple[str, ...] = (), **values: Any) -> Path:
    rng = np.random.default_rng(0)
    with LeRobotDatasetV2(folder, fps=FPS, image_mode="memmap") as dataset:
        for length in (12, 9):
            state = rng.uniform(0, 100, (length, 2)).astype(np.float32)
            data = {
                "observation.image": rng.integers(0, 256, (length, SIDE, SIDE, 3), np.uint8),
                "observation.state": state,
                "action": 2 * state,
                "next.reward": rng.uniform(0, 1, length).astype(np.float32),
                **values,
            }
            dataset.add_episodes({key: value for key, value in data.items() if key not in leave_out})
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_episodes(tmp_path_factory.mktemp("data") / "pushing")


def config_of(policy: Any, dataset: Path, out: Path, *options: str, **more: Any) -> LeRobotTrainConfig:
    given: dict[str, Any] = {"steps": 4, "batch_size": 4, "save_every": 2, "num_workers": 0, "device": "cpu", **more}
    return LeRobotTrainConfig(dataset, out, policy=policy, policy_options=(*OPTIONS[policy], *options), **given)


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, LeRobotTrainConfig]:
    """A finished run of each policy, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    class Runs(dict[str, LeRobotTrainConfig]):
        def __missing__(self, policy: str) -> LeRobotTrainConfig:
            self[policy] = config_of(policy, dataset, folder / policy)
            train(self[policy])
            return self[policy]

    return Runs()


def lines(folder: Path) -> list[dict[str, float]]:
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "loss", "grad_norm", "lr")} for line in told]


@dataclass
class Place:
    """Environments, as far as an actor looks at them."""

    shapes: dict[str, tuple[int, ...]]
    fps: float = FPS


PLACE = Place({"observation.image": (SIDE, SIDE, 3), "observation.state": (2,), "action": (2,)})


def observed(count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "observation.image": rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
        "observation.state": rng.uniform(0, 100, (count, 2)).astype(np.float32),
    }


@pytest.mark.parametrize("policy", OPTIONS)
def test_a_resumed_run_is_the_uninterrupted_one(
    runs: Mapping[str, LeRobotTrainConfig], policy: str, tmp_path: Path
) -> None:
    whole = runs[policy]
    assert [line["step"] for line in lines(whole.output_dir)] == [1, 2, 3, 4]
    stopped = replace(whole, output_dir=tmp_path / "stopped", resume=True)
    shutil.copytree(whole.output_dir, stopped.output_dir, symlinks=True)
    shutil.rmtree(stopped.output_dir / "checkpoints" / "000004")
    torch.manual_seed(99)
    train(stopped)
    assert lines(stopped.output_dir) == lines(whole.output_dir)
    weights = [
        get_policy_class(policy).from_pretrained(each.output_dir / "checkpoints" / "last" / "pretrained_model")
        for each in (whole, stopped)
    ]
    for one, other in zip(*(each.state_dict().values() for each in weights), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("policy", OPTIONS)
def test_lerobots_own_tools_load_the_checkpoint(runs: Mapping[str, LeRobotTrainConfig], policy: str) -> None:
    folder = runs[policy].output_dir / "checkpoints" / "last"
    assert folder.resolve().name == "000004"
    pipeline = TrainPipelineConfig.from_pretrained(folder / "pretrained_model")
    assert (pipeline.policy.type, pipeline.steps, pipeline.batch_size) == (policy, 4, 4)
    loaded = get_policy_class(policy).from_pretrained(folder / "pretrained_model")
    optimizer = pipeline.optimizer.build(loaded.get_optim_params())
    scheduler = None if pipeline.scheduler is None else pipeline.scheduler.build(optimizer, pipeline.steps)
    loading = lerobot("utils.train_utils", or_else="common.train_utils")
    assert loading.load_training_state(folder, optimizer, scheduler)[0] == 4
    before, _ = make_pre_post_processors(loaded.config, pretrained_path=str(folder / "pretrained_model"))
    with LeRobotDatasetV2(runs[policy].dataset, readonly=True) as data:
        stats = data.stats["action"]
        ends = torch.from_numpy(np.stack([stats["min"], stats["max"]])).float()
        ready = before({"action": ends, "observation.state": torch.zeros(2, 2)})["action"].numpy()
    if policy == "act":
        expected = (np.stack([stats["min"], stats["max"]]) - stats["mean"]) / stats["std"]
    else:
        expected = np.array([[-1, -1], [1, 1]])
    np.testing.assert_allclose(ready, expected, atol=1e-4)


@pytest.mark.parametrize("policy", OPTIONS)
def test_it_acts_and_an_episode_depends_on_its_seed_alone(runs: Mapping[str, LeRobotTrainConfig], policy: str) -> None:
    folder = runs[policy].output_dir
    together = acted(actor_from(folder, PLACE, torch.device("cpu")), {0: 7, 1: 8}, observed(2))
    assert together.shape == (5, 2, 2)
    assert np.isfinite(together).all()
    second = {key: value[1:] for key, value in observed(2).items()}
    alone = acted(actor_from(folder / "checkpoints" / "last", PLACE, torch.device("cpu")), {0: 8}, second)
    np.testing.assert_array_equal(alone[:, 0], together[:, 1])


def test_averages_over_chunks_are_those_of_one_environment(dataset: Path, tmp_path: Path) -> None:
    options = ("temporal_ensemble_coeff=0.01", "n_action_steps=1")
    train(config_of("act", dataset, tmp_path / "run", *options, steps=1, save_every=1))
    actor = actor_from(tmp_path / "run", PLACE, torch.device("cpu"))
    together = acted(actor, {0: 7, 1: 8}, observed(2))
    alone = acted(actor, {0: 8}, {key: value[1:] for key, value in observed(2).items()})
    np.testing.assert_array_equal(alone[:, 0], together[:, 1])
    assert (together[:, 0] != together[:, 1]).any()


def acted(actor: LeRobotActor, seeds: dict[int, int], observation: dict[str, Any]) -> Any:
    for env, seed in seeds.items():
        actor.begin(env, seed)
    return np.stack([actor.act(observation) for _ in range(5)])


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (replace(PLACE, fps=20), "of data of 10 Hz, and the environment runs at 20 Hz"),
        (
            Place({**PLACE.shapes, "observation.state": (3,)}),
            r"observation\.state: \(2,\) in the policy, \(3,\) in the environment",
        ),
        (Place({"observation.state": (2,), "action": (2,)}), r"observation\.image: .* None in the environment"),
    ],
)
def test_an_environment_that_it_does_not_fit_is_refused(
    runs: Mapping[str, LeRobotTrainConfig], place: Place, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        actor_from(runs["tdmpc"].output_dir, place, torch.device("cpu"))


@pytest.mark.parametrize(
    ("policy", "leave_out", "message"),
    [
        ("tdmpc", ("next.reward",), r"--policy tdmpc learns from \['next\.reward'\], which the dataset lacks; it has"),
        ("diffusion", ("observation.state",), r"learns from \['observation\.state'\], which the dataset lacks"),
        ("act", ("observation.image",), r"act cannot be trained on observation\.state \(2,\): .*at least one image"),
        ("vqbet", ("observation.image",), "vqbet cannot be trained on"),
        ("tdmpc", ("observation.image",), r"a camera or from observation\.environment_state .* has observation\.state"),
    ],
)
def test_a_dataset_without_what_a_policy_wants_is_refused(
    policy: str, leave_out: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    folder = write_episodes(tmp_path / "lacking", leave_out)
    with pytest.raises(ConfigError, match=message):
        train(config_of(policy, folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("chunks=3",), r"--policy\.chunks: act has no such option; it has chunk_size, "),
        (("chunk_size=many",), r"--policy\..*chunk_size"),
        (("n_action_steps=9",), "The chunk size is the upper bound for the number of action steps"),
        (("device=cuda",), r"--policy\.device: here it is --device"),
        (("push_to_hub=true",), r"--policy\.push_to_hub: a run stays here"),
    ],
)
def test_options_that_a_policy_has_not_are_refused(
    dataset: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config_of("act", dataset, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_the_last_frames_of_an_episode_are_left_out_as_the_policy_says(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"drop_n_last_frames=12 leaves nothing of .* longest episode has 12 frames"):
        train(config_of("diffusion", dataset, tmp_path / "run", "drop_n_last_frames=12"))


def test_a_run_of_another_policy_is_not_gone_on_with(runs: Mapping[str, LeRobotTrainConfig], dataset: Path) -> None:
    other = config_of("act", dataset, runs["tdmpc"].output_dir, resume=True)
    with pytest.raises(ConfigError, match="a checkpoint of the policy 'tdmpc': go on with --policy tdmpc"):
        train(other)
    built_in = TrainConfig(dataset, runs["tdmpc"].output_dir, steps=8, resume=True, device="cpu", num_workers=0)
    with pytest.raises(ConfigError, match="a checkpoint of the policy 'tdmpc': go on with --policy tdmpc"):
        train(built_in)
    changed = replace(runs["tdmpc"], policy_options=(*OPTIONS["tdmpc"], "discount=0.5"), resume=True)
    with pytest.raises(ConfigError, match="goes on with the same options: policy_options was"):
        train(changed)


def test_a_damaged_checkpoint_is_named(runs: Mapping[str, LeRobotTrainConfig], tmp_path: Path) -> None:
    run = replace(runs["tdmpc"], output_dir=tmp_path / "run", resume=True)
    shutil.copytree(runs["tdmpc"].output_dir, run.output_dir, symlinks=True)
    weights = run.output_dir / "checkpoints" / "000004" / "pretrained_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(SourceError, match="000004 cannot be read as a checkpoint"):
        train(run)
    with pytest.raises(SourceError, match="pretrained_model cannot be read as a checkpoint"):
        actor_from(run.output_dir, PLACE, torch.device("cpu"))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_frames(dataset: Path, tmp_path: Path) -> None:
    wild = config_of("tdmpc", dataset, tmp_path / "run", "optimizer_lr=1e30", grad_clip=0)
    with pytest.raises(
        LossNotFiniteError, match=r"the batch's indices are in .*bad_batch\.json.* lower --policy\.optimizer_lr"
    ):
        train(wild)
    report = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    assert len(report["indices"]) == 4


def test_values_that_are_no_numbers_are_named_before_the_first_step(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    with LeRobotDatasetV2(bad, fps=FPS) as data:
        data.add_episodes(
            {
                "observation.state": np.zeros((5, 2), np.float32),
                "observation.environment_state": np.zeros((5, 2), np.float32),
                "action": np.array([[0, 0], [0, np.nan], [0, 0], [0, 0], [1, 1]], np.float32),
                "next.reward": np.zeros(5, np.float32),
            }
        )
    with pytest.raises(ConfigError, match=r"'action' has values that are not finite, the first at index 1"):
        train(config_of("tdmpc", bad, tmp_path / "run"))


def test_mixed_precision_and_workers_from_the_command_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--policy.{option}" for option in OPTIONS["tdmpc"]]
    place = ["--dataset", str(dataset), "--output-dir", str(tmp_path / "run"), "--device", "cpu"]
    training.run(
        [*place, "--policy=tdmpc", "--amp", "--steps", "2", "--batch-size", "4", "--num-workers", "1", *options]
    )
    assert "2 steps, final loss" in capsys.readouterr().out
    told = json.loads((tmp_path / "run" / "checkpoints" / "last" / "pretrained_model" / "config.json").read_text())
    assert (told["type"], told["use_amp"], told["mlp_dim"]) == ("tdmpc", True, 16)


@pytest.fixture(scope="module")
def lerobot_folder(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lerobot") / "pushing"
    with LeRobotDatasetV2(dataset, readonly=True) as data:
        data.to_lerobot(folder)
    return folder


def test_whoever_reads_the_frames_the_losses_are_the_same(
    lerobot_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    told: list[list[dict[str, float]]] = []
    for options in ({"loader": "lerobot"}, {}, {"decode_images": True, "num_workers": 1}):
        run = config_of("diffusion", lerobot_folder, tmp_path / str(len(told)), steps=2, **options)
        result = train(run)
        assert result.data_s > 0
        told.append(lines(run.output_dir))
    assert told[0] == told[1] == told[2]
    places = sorted(
        path.name[len("pushing-0123456789abcdef") :] for path in (tmp_path / "home/roboreel/folders").iterdir()
    )
    assert places == ["", "-decoded"]


def test_the_built_in_policy_sees_the_same_too(
    lerobot_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    small = BCConfig(chunk_size=3, n_action_steps=2, width=8, keypoints=8, hidden=16, blocks=1, noises=2)
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, "num_workers": 0, "device": "cpu", "policy": small}
    train(TrainConfig(lerobot_folder, tmp_path / "ours", **options))
    train(TrainConfig(lerobot_folder, tmp_path / "theirs", loader="lerobot", **options))
    ours, theirs = ([line["loss"] for line in lines(tmp_path / name)] for name in ("ours", "theirs"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)  # images lie otherwise in memory, and are summed up so


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loader": "lerobot"}, "--loader lerobot reads a folder in LeRobot's format, .*: roboreel export"),
        ({"decode_images": True}, "--decode-images is for a folder in LeRobot's format, .*: roboreel convert"),
        ({"device": "cuda:77"}, "--device cuda:77 cannot be used here .*--device cpu would do"),
    ],
)
def test_what_does_not_go_together_is_refused(
    dataset: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config_of("act", dataset, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_metrics_go_to_weights_and_biases(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[int, dict[str, float]]] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            logged.append((step, values))

        def finish(self) -> None:
            logged.append((-1, {}))

    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", lambda **_: Run())  # the real one starts a service of its own
    train(config_of("tdmpc", dataset, tmp_path / "run", wandb="pushing", steps=2))
    assert [step for step, _ in logged] == [1, 2, -1]
    assert [values["loss"] for _, values in logged[:2]] == [line["loss"] for line in lines(tmp_path / "run")]


def test_an_environment_that_disagrees_is_refused_before_the_first_step(dataset: Path, tmp_path: Path) -> None:
    place = ["--dataset", str(dataset), "--output-dir", str(tmp_path / "run"), "--device", "cpu", "--env", "pusht"]
    with pytest.raises(ConfigError, match=r"observation\.image: \(3, 48, 48\) in the policy, \(3, 96, 96\) in the env"):
        training.run([*place, "--policy", "tdmpc", *(f"--policy.{option}" for option in OPTIONS["tdmpc"])])
    assert not (tmp_path / "run").exists()


def test_help_tells_what_a_policy_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.run(["--policy", "vqbet", "--help"])
    told = capsys.readouterr().out
    assert "--policy.vqvae_n_embed=16" in told
    assert "--loader" in told
