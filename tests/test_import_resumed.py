"""An import that was killed or interrupted goes on where it was; what it will take is said before it begins."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2, VideoOptions
from roboreel.cli.main import main
from roboreel.convert import ImportForecast, IngestOptions, import_lerobot
from roboreel.errors import (
    DiskSpaceError,
    InvalidArgumentError,
    RoboreelError,
    RoboreelWarning,
    SourceError,
    StorageDirCorruptError,
)
from roboreel.format.files import observed
from roboreel.store import CameraStorage, is_unfinished
from tests import lerobot_folders as made
from tests.lerobot_folders import CAMERA, LENGTHS, V2_VIDEO, write_v2, write_v3
from tests.test_durability import Failing
from tests.video_files import read_numbers, write_video

ROWS = sum(LENGTHS)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


def _import(folder: Path, root: Path, **options: Any) -> int | None:
    """Import, and return how many episodes an earlier try had taken in."""
    report = import_lerobot(folder, root, IngestOptions(**options))
    return None if report is None else report.episodes_resumed


def _killed_at(folder: Path, root: Path, at: int, options: dict[str, Any]) -> None:
    """Have a process die at its file effect number `at`."""

    def doomed() -> None:
        counting = Failing()

        def kill(kind: str, path: Path) -> None:
            if counting.seen >= at:
                os.kill(os.getpid(), signal.SIGKILL)
            counting(kind, path)

        with observed(kill):
            _import(folder, root, **options)

    child = multiprocessing.get_context("fork").Process(target=doomed)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def _contents(root: Path) -> dict[str, Any]:
    with LeRobotDatasetV2(root, readonly=True, image_dtype="uint8") as dataset:
        found = {key: np.asarray(value).tolist() for key, value in dataset.get_batch(range(len(dataset))).items()}
        warned = dataset._need_store().manifest.provenance["warnings"]
    LeRobotDatasetV2.check_storage_dir_integrity(root)
    return {**found, "warned": warned, "videos": sorted(path.name for path in root.glob("videos/*/*"))}


KEPT: dict[str, Any] = {}
DECODED: dict[str, Any] = {"cameras": CameraStorage.parse("memmap")}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("v3.0", KEPT),  # all episodes in one video, which must not be copied twice
        ("v2.1", DECODED),
        ("v3-images", {"buffer_capacity": 10, "ring": True}),
        ("v3-images", {"buffer_capacity": "1MB"}),
    ],
)
def test_a_killed_import_is_gone_on_with(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    folder, root = made.WRITERS[kind](tmp_path / "folder"), tmp_path / "place"
    counting = Failing()
    with observed(counting):
        assert _import(folder, tmp_path / "whole", **options) == 0
    whole, resumed = _contents(tmp_path / "whole"), set()
    for at in np.linspace(3, counting.seen - 3, 5).astype(int).tolist():
        _killed_at(folder, root, at, options)
        if is_unfinished(root):
            with pytest.raises(StorageDirCorruptError, match=r"half an import.*type the same import again"):
                LeRobotDatasetV2(root, readonly=True)
        resumed.add(_import(folder, root, **options))
        assert _contents(root) == whole
        shutil.rmtree(root)
    assert resumed & {1, 2}


def test_one_of_another_folder_or_with_other_options_begins_anew(tmp_path: Path) -> None:
    folder, root = write_v2(tmp_path / "folder"), tmp_path / "place"
    for changed in ("options", "folder"):
        _interrupted(folder, root)
        if changed == "folder":
            write_video(folder / V2_VIDEO.format(2), range(50, 56))
        with pytest.warns(RoboreelWarning, match="another source, or with other options; this one begins anew"):
            assert _import(folder, root, **(DECODED if changed == "options" else KEPT)) == 0
        _contents(root)
        shutil.rmtree(root)


def _interrupted(folder: Path, root: Path, **options: Any) -> None:
    """Have Ctrl-C come with the last episode."""

    def interrupt(kind: str, path: Path) -> None:
        if kind == "write" and path.name == "episodes.bin" and path.exists() and path.stat().st_size >= 256:
            raise KeyboardInterrupt

    with observed(interrupt), pytest.raises(KeyboardInterrupt) as caught:
        _import(folder, root, **options)
    assert any("the same import goes on with it" in note for note in caught.value.__notes__)


def test_ctrl_c_keeps_what_is_done_and_an_error_keeps_what_was_there_before(tmp_path: Path) -> None:
    folder, root = write_v2(tmp_path / "folder"), tmp_path / "place"
    _interrupted(folder, root)
    assert is_unfinished(root)
    with observed(Failing(3, for_good=True)), pytest.raises(RoboreelError):
        _import(folder, root)
    assert is_unfinished(root)
    assert _import(folder, root) == 2
    _contents(root)


# What it will take


def test_an_import_that_will_not_fit_is_refused_before_a_byte_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = write_v3(tmp_path / "folder"), tmp_path / "place"
    monkeypatch.setattr("roboreel.convert.import_forecast.free_bytes", lambda _: 70_000)
    png = ["import", str(folder), str(root), "--image-mode", "png"]
    main([*png, "--forecast"])
    assert "does not fit" in capsys.readouterr().out
    with pytest.raises(DiskSpaceError, match=r"needs [\d,]+ bytes and 70,000 are free in .*place; keep .*force=True"):
        LeRobotDatasetV2.from_lerobot(folder, root, image_mode="png", progress=False)
    assert not root.exists()
    main([*png, "--force"])
    said = capsys.readouterr().out
    assert said.index("does not fit") < said.index("imported in")
    assert CAMERA in _contents(root)


@pytest.mark.parametrize("mode", [None, "memmap", "png", "video"])
@pytest.mark.parametrize("kind", ["v2.1", "v3-images"])
def test_the_forecast_is_about_what_comes(tmp_path: Path, kind: str, mode: str | None) -> None:
    folder, root = made.WRITERS[kind](tmp_path / "folder"), tmp_path / "place"
    found: list[ImportForecast] = []
    options = IngestOptions(CameraStorage.parse(mode, VideoOptions("h264") if mode == "video" else None))
    import_lerobot(folder, root, options, found.append)
    taken = sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file() and CAMERA in str(path))
    forecast, camera = found[0], found[0].cameras[CAMERA]
    assert forecast.frames == ROWS
    assert forecast.bytes_after >= camera.bytes_after
    assert abs(camera.bytes_after - taken) <= 0.1 * taken + 4096  # the checksums, which are not the camera's alone
    sizes = [path.stat().st_size for path in (folder / "videos").rglob("*.mp4")]
    assert camera.before == ("video" if sizes else "images")
    assert camera.bytes_before >= sum(sizes)


# Leaving episodes out


def test_a_damaged_episode_is_named_and_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_v2(tmp_path / "folder")
    path = folder / V2_VIDEO.format(1)
    write_video(path, range(5, 9), container_options={"movflags": "faststart"})
    raw = path.read_bytes()
    path.write_bytes(raw[:-300] + b"\xff" * 100 + raw[-200:])
    with pytest.raises(
        SourceError, match=rf"episode 1, camera '{CAMERA}': .* cannot be decoded .*leave the episode out"
    ):
        LeRobotDatasetV2.from_lerobot(folder, tmp_path / "place", True, progress=False)
    main(["import", str(folder), str(tmp_path / "place"), "--decode-images", "--skip-episodes", "1", "--quiet"])
    with LeRobotDatasetV2(tmp_path / "place", image_dtype="uint8") as dataset:
        assert read_numbers(dataset.get_batch(range(11))[CAMERA].movedim(-3, -1).numpy()) == [*range(5), *range(9, 15)]
        assert dataset.num_episodes == 2


def test_what_is_skipped_is_part_of_what_was_imported(tmp_path: Path) -> None:
    folder, root = write_v3(tmp_path / "folder"), tmp_path / "place"
    dataset = LeRobotDatasetV2.from_lerobot(folder, root, skip_episodes=[0], image_dtype="uint8", progress=False)
    assert read_numbers(dataset.get_batch(range(10))[CAMERA].movedim(-3, -1).numpy()) == list(range(5, 15))
    assert _import(folder, root, skip_episodes=[0]) is None
    with pytest.raises(InvalidArgumentError, match="another state of this one"):
        _import(folder, root)
    with pytest.raises(InvalidArgumentError, match=r"skip_episodes names 3, and .* lists 3 episodes, from 0 to 2"):
        _import(folder, tmp_path / "other", skip_episodes=[3])
