"""`Source`: a format of one's own goes in by `from_source`, in any image mode, resumed, or refused by one error."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples.import_jpegs import JpegFolder
from PIL import Image

from roboreel import InvalidArgumentError, LeRobotDatasetV2, Source, SourceError, image_files
from roboreel.convert import IngestOptions, forecast_import, import_source
from roboreel.errors import InvalidEpisodeError
from roboreel.schema import parse_image_mode
from roboreel.store import CameraStorage, is_unfinished
from tests.recordings import CAMERA, HEIGHT, WIDTH, pictures, recording

LENGTHS = [3, 1, 4]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


class Made(Source):
    """Episodes of `recordings`: frame number n holds n in every key."""

    fps = 10

    def __init__(self, lengths: Any = None, **changed: Any) -> None:
        self.lengths: Any = LENGTHS if lengths is None else lengths
        self.changed = changed
        self.read: list[int] = []

    def read_episode(self, number: int) -> Mapping[str, Any]:
        self.read.append(number)
        first = sum(self.lengths[:number])
        return {**recording(self.lengths[number], first, camera=True, task=f"task {number}"), **self.changed}


def from_source(source: Source, root: Path, **options: Any) -> LeRobotDatasetV2:
    return LeRobotDatasetV2.from_source(source, root, progress=False, image_dtype="uint8", **options)


@pytest.mark.parametrize("mode", [None, "memmap", "png"])
def test_what_it_gives_is_there_without_loss(tmp_path: Path, mode: str | None) -> None:
    with from_source(Made(), tmp_path / "there", image_mode=mode) as dataset:
        assert (dataset.num_episodes, len(dataset), dataset.fps) == (3, 8, 10)
        items = dataset.get_batch(range(8))
        assert np.array_equal(items["observation.state"][:, 0], np.arange(8))
        assert np.array_equal(np.moveaxis(np.asarray(items[CAMERA]), 1, -1), pictures(np.arange(8)))
        assert items["task"] == [f"task {k}" for k, length in enumerate(LENGTHS) for _ in range(length)]
        assert items["frame_index"].tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
        stored = dataset._need_store().manifest
        assert stored.keys[CAMERA].image_mode is parse_image_mode(mode or "png")
        assert stored.provenance["format"] == "Made"
    LeRobotDatasetV2.check_storage_dir_integrity(tmp_path / "there")


def test_the_options_are_those_of_the_other_imports(tmp_path: Path) -> None:
    with from_source(
        Made(),
        tmp_path / "ring",
        decode_images=True,
        buffer_capacity=7,
        use_as_fifo_buffer=True,
        image_size=(8, 12),
        skip_episodes=[1],
        delta_timestamps={"action": [-0.1, 0]},
    ) as dataset:
        assert dataset.num_frames == 7
        assert dataset[0][CAMERA].shape == (3, 8, 12)
        assert dataset[5]["action"].shape == (2,)
        assert dataset[5]["task"] == "task 2"


def test_called_again_it_opens_what_is_there(tmp_path: Path) -> None:
    from_source(Made(), tmp_path / "there").close()
    again = Made()
    from_source(again, tmp_path / "there").close()
    assert again.read == []
    with pytest.raises(InvalidArgumentError, match="holds another dataset"):
        from_source(Made([3, 1]), tmp_path / "there")


def test_a_place_within_what_is_read_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="which is only read; import to another place"):
        from_source(JpegFolder(folder, 10), folder / "there")
    assert not (folder / "there").exists()


def test_interrupted_it_goes_on(tmp_path: Path) -> None:
    class Stopping(Made):
        def read_episode(self, number: int) -> Mapping[str, Any]:
            if number == 2 and len(self.read) > 3:  # after the forecast
                raise KeyboardInterrupt
            return super().read_episode(number)

        @property
        def format(self) -> str:
            return "Made"

    with pytest.raises(KeyboardInterrupt):
        from_source(Stopping(), tmp_path / "there")
    assert is_unfinished(tmp_path / "there")
    report = import_source(Made(), tmp_path / "there", IngestOptions())
    assert report is not None
    assert (report.episodes_resumed, report.episodes) == (2, 1)


def test_only_an_episode_is_asked_for_at_a_time(tmp_path: Path) -> None:
    source = Made([2] * 6)
    from_source(source, tmp_path / "there").close()
    assert source.read == [0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]  # keys, forecast, import


def test_a_forecast_writes_nothing(tmp_path: Path) -> None:
    told = forecast_import(Made(), tmp_path / "there", IngestOptions(CameraStorage.parse("memmap")))
    assert told.frames == 8
    assert told.cameras[CAMERA].before == "raw pixels"
    assert told.cameras[CAMERA].bytes_before == 8 * HEIGHT * WIDTH * 3
    assert list(tmp_path.iterdir()) == []


class Bare(Source):
    """Says nothing but what it is given."""

    def __init__(self, **said: Any) -> None:
        vars(self).update(said)

    def read_episode(self, number: int) -> Mapping[str, Any]:
        raise OSError(f"the disk is on fire at {number}")


@pytest.mark.parametrize(
    ("source", "error", "pattern"),
    [
        ({"a": 1}, InvalidArgumentError, r"is no Source; derive its class from roboreel\.Source"),
        (Bare(lengths=[1]), InvalidArgumentError, r"Bare: fps is None; a positive number"),
        (Bare(fps=float("nan"), lengths=[1]), InvalidArgumentError, r"fps is nan"),
        (Bare(fps=10, lengths=[1.5]), InvalidArgumentError, r"lengths is \[1\.5\]; one whole number"),
        (Bare(fps=10), SourceError, r"Bare: holds no episodes"),
        (Bare(fps=10, lengths=[3, 0]), SourceError, r"episode 1 has 0 frames; .*--skip-episodes 1"),
        (Bare(fps=10, lengths=[3, -2]), SourceError, r"episode 1 has -2 frames"),
        (Bare(fps=10, lengths=[3]), OSError, r"the disk is on fire"),
        (Bare(fps=10, lengths=[3], provenance={"of": {1, 2}}), InvalidArgumentError, r"provenance is no JSON object"),
        (Made(None, **{"observation.state": np.zeros((2, 2))}), InvalidEpisodeError, r"different numbers of frames"),
        (Made(None, **{"observation.depth": image_files}), InvalidEpisodeError, r"cannot be stored"),
        (Made(None, **{CAMERA: np.zeros((3, 3, HEIGHT, WIDTH), np.uint8)}), InvalidEpisodeError, r"channels last"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_stays(
    tmp_path: Path, source: Any, error: type[Exception], pattern: str
) -> None:
    with pytest.raises(error, match=pattern):
        from_source(source, tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


def test_an_episode_that_is_not_as_the_others_is_named(tmp_path: Path) -> None:
    class Odd(Made):
        def read_episode(self, number: int) -> Mapping[str, Any]:
            data = dict(super().read_episode(number))
            if number == 2:
                data["action"] = data["action"][:, None]
            return data

    with pytest.raises(InvalidEpisodeError, match=r"'action': frames of shape \(1,\)") as refused:
        from_source(Odd(), tmp_path / "there")
    assert "while taking in episode 2 of Odd" in refused.value.__notes__
    assert list(tmp_path.iterdir()) == []


def test_an_episode_of_another_length_than_was_said_is_refused(tmp_path: Path) -> None:
    class Short(Made):
        def read_episode(self, number: int) -> Mapping[str, Any]:
            return recording(self.lengths[number] - (number == 2))

    with pytest.raises(SourceError, match="Short: episode 2 has 3 frames, and lengths says 4"):
        from_source(Short(), tmp_path / "there")
    assert list(tmp_path.iterdir()) == []


# Images in files, and the example


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of JPEGs and a CSV, as the example takes it."""
    folder = tmp_path / "recording"
    (folder / "images").mkdir(parents=True)
    lines = ["episode,image,task,state.x,state.y,action.x"]
    for number, picture in enumerate(pictures(np.arange(5))):
        Image.fromarray(picture).save(folder / "images" / f"{number}.jpg", quality=95)
        lines.append(f"{number // 3},images/{number}.jpg,push {number},{number},{-number},{number * 0.5}")
    (folder / "frames.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_example(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    script = Path(__file__).parents[1] / "examples" / "import_jpegs.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(folder), str(tmp_path / "there"), "--fps", "10"])
    runpy.run_path(str(script), run_name="__main__")
    assert "5 frames" in capsys.readouterr().out
    with LeRobotDatasetV2(tmp_path / "there", image_dtype="uint8") as dataset:
        assert dataset.episode_data_index["to"].tolist() == [3, 5]
        for number in range(5):
            item = dataset[number]
            assert item["observation.state"].tolist() == [number, -number]
            assert (item["action"].tolist(), item["task"]) == ([number * 0.5], f"push {number}")
            wanted = np.asarray(Image.open(folder / "images" / f"{number}.jpg"))
            assert np.array_equal(np.moveaxis(np.asarray(item[CAMERA]), 0, -1), wanted)
    Image.fromarray(pictures(np.arange(1))[0]).save(folder / "images" / "4.jpg")
    with pytest.raises(InvalidArgumentError, match="another state of this one"):  # its files tell it from before
        from_source(JpegFolder(folder, 10), tmp_path / "there")


def test_the_source_of_the_page_is_that_of_the_example() -> None:
    root = Path(__file__).parents[1]
    shown = re.findall(r"```python\n(.*?)```", (root / "docs" / "formats.md").read_text("utf-8"), re.DOTALL)
    example = (root / "examples" / "import_jpegs.py").read_text("utf-8")
    classes = [block for block in shown if block.startswith("class ")]
    assert classes
    assert all(block.strip() in example for block in classes)
    assert all(len(block.strip().splitlines()) <= 30 for block in classes)


def test_png_files_stay_the_files_that_they_are(tmp_path: Path) -> None:
    for number, picture in enumerate(pictures(np.arange(3))):
        Image.fromarray(picture).save(tmp_path / f"{number}.png", compress_level=number)
    files = [tmp_path / f"{number}.png" for number in range(3)]

    class Pngs(Source):
        fps, lengths = 10, (3,)

        def read_episode(self, number: int) -> Mapping[str, Any]:
            return {CAMERA: image_files(files[number:])}

    from_source(Pngs(), tmp_path / "there").close()
    stored = sorted((tmp_path / "there" / "images").rglob("*.png"))
    assert [path.read_bytes() for path in stored] == [path.read_bytes() for path in files]
    found = json.loads((tmp_path / "there" / "metadata.json").read_text())
    assert found["keys"][CAMERA]["stored"] == "png"


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda path: path.unlink(), r"2\.jpg: cannot be read \(No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), r"(?s)not a readable image"),
        (lambda path: path.write_bytes(b"no image"), r"2\.jpg: not a readable image"),
        (lambda path: Image.new("RGB", (5, 5)).save(path), r"2\.jpg: an image that is not PNG, of uint8 \(5, 5, 3\)"),
    ],
)
def test_a_broken_image_is_named_and_nothing_stays(tmp_path: Path, folder: Path, make: Any, pattern: str) -> None:
    make(folder / "images" / "2.jpg")
    with pytest.raises(SourceError, match=pattern):
        from_source(JpegFolder(folder, 10), tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["recording"]
