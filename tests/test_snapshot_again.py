"""Another snapshot in the same place: nothing is written twice, and who reads the old one never sees the new one's."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format.files import observed
from tests.recordings import recording
from tests.test_durability import contents
from tests.test_snapshot import MODES, everything, ring


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("readonly", [True, False])
def test_another_one_of_the_same_generation_writes_nothing(tmp_path: Path, mode: str, readonly: bool) -> None:
    dataset, place = ring(tmp_path / "dataset", mode), tmp_path / "place"
    dataset.snapshot(place)
    dataset.flush()
    taken, inode = everything(place), place.stat().st_ino
    if readonly:
        dataset.close()
        dataset = LeRobotDatasetV2(tmp_path / "dataset", readonly=True)
    seen: list[Path] = []
    with observed(lambda _kind, path: seen.append(path)):
        report = dataset.snapshot(place)
    assert [path for path in seen if "place" in path.parts[-1] or place in path.parents] == []
    assert (report.bytes_written, report.bytes_linked, report.bytes_cloned, report.generation) == (0, 0, 0, 4)
    assert (everything(place), place.stat().st_ino) == (taken, inode)


def test_what_differs_in_the_same_generation_is_taken_again(tmp_path: Path) -> None:
    dataset, place = ring(tmp_path / "dataset", "png"), tmp_path / "place"

    def written() -> int:
        return dataset.snapshot(place).bytes_written

    written()
    with dataset.edit("action") as action:
        action[0] = 9
    assert written() > 0
    next((place / "images").rglob("*.png")).unlink()
    assert written() > 0
    dataset.close()
    lost = shutil.copytree(tmp_path / "dataset", tmp_path / "lost")
    dataset.add_episodes(recording(2, 14, camera=True, task="pick"))
    written()
    dataset.close()
    shutil.rmtree(tmp_path / "dataset")  # what was not flushed is lost with the power, and its number given again
    lost.rename(tmp_path / "dataset")
    dataset.add_episodes(recording(2, 16, camera=True, task="pick"))
    assert written() > 0
    assert LeRobotDatasetV2(place, readonly=True).column("observation.state")[4:6, 0].tolist() == [16, 17]
    assert written() == 0


def test_a_place_that_cannot_be_named(tmp_path: Path) -> None:
    dataset = ring(tmp_path / "dataset")
    for dest in ("a\0b", tmp_path / ("n" * 250), tmp_path / ("n" * 300), tmp_path / "/".join(["n" * 200] * 30)):
        with pytest.raises(roboreel.InvalidArgumentError, match="cannot be the place of a snapshot"):
            dataset.snapshot(dest)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    dataset.snapshot(tmp_path / ("n" * 240))


@pytest.mark.parametrize("mode", ["png", "video"])
def test_no_image_of_the_next_one_is_served_to_who_has_this_one_open(tmp_path: Path, mode: str) -> None:
    dataset, place = ring(tmp_path / "dataset", mode), tmp_path / "place"
    dataset.snapshot(place)
    reader, read = LeRobotDatasetV2(place, readonly=True), 0
    dataset.add_episodes(recording(5, 14, camera=True, task="pick"))

    def meanwhile(kind: str, path: Path) -> None:
        nonlocal read
        if path == place or place in path.parents or ".place.snapshot" in str(path):
            with contextlib.suppress(roboreel.DatasetReplacedError):
                contents(reader)  # checks that all keys of a frame agree
                read += 1

    with observed(meanwhile):
        dataset.snapshot(place)
    assert read > 3
    with pytest.raises(roboreel.DatasetReplacedError):
        reader.get_batch(range(len(reader)))
    shutil.rmtree(place)
    with pytest.raises(roboreel.DatasetReplacedError, match="replaced or removed"):
        reader[0]
