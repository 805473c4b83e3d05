"""Depth and grey cameras: every stored number comes back, in the unit that was asked for, whatever the way it took."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.cli import main
from roboreel.store import repair, verify
from tests.lerobot_folders import CAMERA, LENGTHS, V3_DATA, declare, set_column, write_v3
from tests.make_golden import DEPTH_M, DEPTH_MM, GOLDEN_DEPTH, SMALL, depth_cameras, make_depth
from tests.recordings import recording

DEPTH = "observation.images.depth"
EVERY_LEVEL = np.arange(1 << 16, dtype=np.uint16).reshape(4, 128, 128, 1)
"""Four frames that between them hold every distance that 16 bits can say."""


def metres(frames: int = 3, seed: int = 0) -> NDArray[np.float32]:
    depth = np.random.default_rng(seed).uniform(0.2, 7, (frames, 6, 8, 1)).astype(np.float32)
    depth[:, 0, 0] = 0
    depth[0, 0, 1] = np.nan  # some sensors say so
    return depth


def made(root: Path, depth: NDArray[Any], **options: Any) -> LeRobotDatasetV2:
    dataset = LeRobotDatasetV2(root, fps=10, **options)
    dataset.add_episodes({DEPTH: depth, "action": np.arange(len(depth), dtype=np.float32)})
    return dataset


CASES = [(EVERY_LEVEL, "png"), (EVERY_LEVEL, "memmap"), (metres(), "memmap")]
IDS = ["uint16-png", "uint16-memmap", "float32-memmap"]


@pytest.mark.parametrize(("depth", "mode"), CASES, ids=IDS)
class TestDepth:
    def test_comes_back_bit_for_bit(self, tmp_path: Path, depth: NDArray[Any], mode: str) -> None:
        made(tmp_path / "dataset", depth, image_mode=mode).close()
        dataset = LeRobotDatasetV2(tmp_path / "dataset", depth_unit="raw", readonly=True)
        stored = dataset.get_episode(0)[DEPTH]
        assert (stored.dtype, stored.shape) == (depth.dtype, depth.shape)
        assert stored.tobytes() == depth.tobytes()
        item = dataset[1][DEPTH]
        assert item.dtype == (torch.uint16 if depth.dtype == np.uint16 else torch.float32)
        assert np.array_equal(item.numpy(), np.moveaxis(depth[1], -1, 0))
        LeRobotDatasetV2.check_storage_dir_integrity(tmp_path / "dataset", mode)

    def test_is_given_in_metres(self, tmp_path: Path, depth: NDArray[Any], mode: str) -> None:
        dataset = made(tmp_path / "dataset", depth, image_mode=mode, image_dtype="uint8")
        for shared in (dataset, pickle.loads(pickle.dumps(dataset))):
            batch = shared.get_batch(range(len(depth)))[DEPTH]
            assert (batch.dtype, batch.shape) == (torch.float32, (len(depth), 1, *depth.shape[1:3]))
            scale = 1000 if depth.dtype == np.uint16 else 1
            wanted = np.moveaxis(depth.astype(np.float64) / scale, -1, 1).astype(np.float32)
            assert np.array_equal(batch.numpy(), wanted, equal_nan=True)
            assert (batch == 0).sum() == (depth == 0).sum() > 0

    def test_windows_and_loaders(self, tmp_path: Path, depth: NDArray[Any], mode: str) -> None:
        dataset = made(tmp_path / "dataset", depth, image_mode=mode, depth_unit="raw")
        dataset.set_delta_timestamps({DEPTH: [-0.1, 0]})
        loader: Any = torch.utils.data.DataLoader(dataset, batch_size=len(depth))
        single: Any = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=list)
        batch = next(iter(loader))
        assert batch[DEPTH].shape == (len(depth), 2, 1, *depth.shape[1:3])
        assert batch[DEPTH + "_is_pad"].tolist() == [[k == 0, False] for k in range(len(depth))]
        for k, sample in enumerate(one for pair in single for one in pair):
            wanted = np.moveaxis(depth[[max(k - 1, 0), k]], -1, 1)
            assert np.array_equal(sample[DEPTH].numpy(), wanted, equal_nan=True)
            assert np.array_equal(batch[DEPTH][k].numpy(), wanted, equal_nan=True)

    def test_statistics_leave_out_what_was_not_measured(self, tmp_path: Path, depth: NDArray[Any], mode: str) -> None:
        stats = made(tmp_path / "dataset", depth, image_mode=mode).stats[DEPTH]
        scale = 1000 if depth.dtype == np.uint16 else 1
        valid = depth[(depth != 0) & np.isfinite(depth)].astype(np.float64) / scale
        assert stats["count"].tolist() == [len(depth)]
        for name in ("mean", "std", "min", "max"):
            assert stats[name].shape == (1, 1, 1)
            np.testing.assert_allclose(stats[name].item(), getattr(valid, name)(), rtol=1e-9)

    def test_a_ring_takes_more_and_all_tools_know_it(self, tmp_path: Path, depth: NDArray[Any], mode: str) -> None:
        root = tmp_path / "ring"
        dataset = made(root, depth, image_mode=mode, buffer_capacity=len(depth) + 1, use_as_fifo_buffer=True)
        dataset.add_episodes({DEPTH: depth[::-1], "action": np.zeros(len(depth), np.float32)})
        assert dataset.get_episode(1)[DEPTH].tobytes() == depth[::-1].tobytes()
        dataset.snapshot(tmp_path / "copy")
        dataset.close()
        for place in (root, tmp_path / "copy"):
            assert verify(place).problems == []
        spoiled = max((root / "images").rglob("*.png"), default=root / "columns" / f"{DEPTH}.bin")
        raw = bytearray(spoiled.read_bytes())
        raw[len(raw) // 3] ^= 0xFF
        spoiled.unlink()  # it may be one file with that of the snapshot
        spoiled.write_bytes(raw)
        assert any(problem.key == DEPTH for problem in verify(root).problems)
        repair(root)
        assert verify(root).problems == []
        again = LeRobotDatasetV2(tmp_path / "copy", readonly=True, depth_unit="raw")
        assert again.get_episode(1)[DEPTH].tobytes() == depth[::-1].tobytes()

    def test_metadata_say_unit_and_feature(self, tmp_path: Path, depth: NDArray[Any], mode: str, capsys: Any) -> None:
        made(tmp_path / "dataset", depth, image_mode=mode).close()
        metadata = json.loads((tmp_path / "dataset" / "metadata.json").read_text())
        unit = "mm" if depth.dtype == np.uint16 else "m"
        assert (metadata["keys"][DEPTH]["unit"], metadata["incompatible"]) == (unit, ["depth"])
        main(["info", str(tmp_path / "dataset")])
        height, width = depth.shape[1:3]
        assert f"{width}x{height}, depth in {unit}, {'PNG' if mode == 'png' else mode}" in capsys.readouterr().out
        main(["forecast", str(tmp_path / "dataset"), "--frames", "100"])
        assert ("cannot be stored as video" if mode == "png" else DEPTH) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "mode"),
    [
        (EVERY_LEVEL[:2], "png"),
        (metres(), "memmap"),
        (np.zeros((2, 16, 16, 1), np.uint8), "png"),
        (np.zeros((2, 16, 16, 4), np.uint8), "png"),
        (np.zeros((2, 64, 64, 3), np.uint8), "video"),
    ],
)
def test_without_a_mode_only_colour_loses_anything(tmp_path: Path, images: NDArray[Any], mode: str) -> None:
    made(tmp_path / "dataset", images).close()
    LeRobotDatasetV2.check_storage_dir_integrity(tmp_path / "dataset", mode)


def refused(name: str, array: NDArray[Any], words: str) -> Any:
    return pytest.param(array, words, id=name)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        refused("no channel", EVERY_LEVEL[..., 0], r"type data\['observation.images.depth'\]\[..., None\] for one"),
        refused("no channel, float", metres()[..., 0], r"float32 of shape \(3, 6, 8\); type data\[.*\]\[..., None\]"),
        refused("grey without channel", np.zeros((2, 9, 9), np.uint8), r"\[..., None\] for one channel"),
        refused(
            "colours in 0 to 1", np.zeros((2, 9, 9, 3), np.float32), r"\* 255\).round\(\).astype\('uint8'\) for col"
        ),
        refused("16 bits of colour", np.zeros((2, 9, 9, 3), np.uint16), r"uint16 of shape \(2, 9, 9, 3\)"),
        refused("float64", metres().astype(np.float64), r"astype\('float32'\) for depth in metres"),
        refused("int32", EVERY_LEVEL.astype(np.int32), r"astype\('uint16'\) for depth in millimetres"),
        refused("channels first", np.moveaxis(EVERY_LEVEL, -1, 1), r"uint16 of shape \(4, 1, 128, 128\)"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, array: NDArray[Any], words: str) -> None:
    with pytest.raises(roboreel.InvalidEpisodeError, match=words):
        made(tmp_path / "dataset", array, image_mode="memmap")
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    ("depth", "mode", "words"),
    [
        (EVERY_LEVEL, "video", "uint16 in mm, and cannot be stored as 'video': .*='png' or 'memmap' would do"),
        (metres(), "video", "float32 in m, and cannot be stored as 'video': .*image_mode='memmap' would do"),
        (metres(), "png", "'png': PNG holds no floats; image_mode='memmap' would do, or depth as uint16"),
    ],
)
def test_modes_that_would_change_a_distance(tmp_path: Path, depth: NDArray[Any], mode: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(tmp_path / "dataset", depth, image_mode=mode)
    assert not (tmp_path / "dataset").exists()


def test_another_dtype_later_is_refused(tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", EVERY_LEVEL)
    for other, words in (
        (EVERY_LEVEL.astype(np.float32) / 1000, "frames of float32, where the dataset has uint16 in mm; convert"),
        ((EVERY_LEVEL >> 8).astype(np.uint8), "frames of uint8, where the dataset has uint16 in mm; convert"),
    ):
        with pytest.raises(roboreel.InvalidEpisodeError, match=words):
            dataset.add_episodes({DEPTH: other, "action": np.zeros(4, np.float32)})
    dataset.add_episodes({DEPTH: EVERY_LEVEL.astype(">u2"), "action": np.zeros(4, np.float32)})
    assert np.array_equal(dataset.get_episode(1)[DEPTH], EVERY_LEVEL)


def test_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"depth_unit='cm'; 'm' \(metres\) and 'raw' \(as stored\) would do"):
        LeRobotDatasetV2(tmp_path / "dataset", fps=10, depth_unit="cm")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unit": "cm"}, "depth in the unit 'cm'"),
        ({"unit": None}, "depth in the unit None"),
        ({"stored": "video"}, "cannot be stored as 'video'"),
        ({"dtype": "<f4"}, "cannot be stored as 'png'"),
        ({"dtype": "<i2"}, "a camera's frames are uint8 .height, width, channels., or depth"),
        ({"shape": [128, 128, 3]}, "a camera's frames are uint8"),
        ({"shape": [128, 128]}, "a camera's frames are uint8"),
    ],
)
def test_metadata_that_lie_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    made(tmp_path / "dataset", EVERY_LEVEL).close()
    path = tmp_path / "dataset" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["keys"][DEPTH].update(change)
    path.write_text(json.dumps(metadata))
    with pytest.raises(roboreel.StorageDirCorruptError, match=words):
        LeRobotDatasetV2(tmp_path / "dataset", readonly=True)


def png(image: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@pytest.mark.parametrize("other", [np.zeros((128, 128, 1), np.uint8), np.zeros((128, 128, 3), np.uint8)])
def test_a_png_of_another_kind_in_its_place_is_told(tmp_path: Path, other: NDArray[Any]) -> None:
    made(tmp_path / "dataset", EVERY_LEVEL).close()
    min((tmp_path / "dataset").rglob("*.png")).write_bytes(png(other))
    with pytest.raises(roboreel.SourceError, match=r"a PNG of 8 bits a channel.*, where 16 bits, grey, as depth has"):
        LeRobotDatasetV2(tmp_path / "dataset", readonly=True)[0]


@pytest.mark.parametrize("decode_images", [False, True])
def test_depth_in_a_lerobot_folder(tmp_path: Path, decode_images: bool) -> None:
    folder, rows = write_v3(tmp_path / "folder", "image"), sum(LENGTHS)
    depth = np.resize(EVERY_LEVEL, (rows, 64, 64, 1))
    files = [png(image) for image in depth]
    column = [{"bytes": data, "path": f"frame-{k:06d}.png"} for k, data in enumerate(files)]
    set_column(folder / V3_DATA, CAMERA, pa.array(column, pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    declare(folder, CAMERA, "image", (64, 64, 1))
    with pytest.warns(roboreel.RoboreelWarning, match="grey images of 16 bits: taken as depth in millimetres"):
        dataset = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "dataset", decode_images)
    first = dataset.get_episode(0)[CAMERA]
    assert np.array_equal(first, depth[: LENGTHS[0]])
    assert torch.equal(dataset[1][CAMERA][0], torch.from_numpy((depth[1, ..., 0] / 1000).astype(np.float32)))
    stored = sorted((tmp_path / "dataset").rglob("*.png"))
    assert [path.read_bytes() for path in stored] == ([] if decode_images else files)  # as others wrote them


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((64, 64, 1), np.uint8), r"frame 3: a PNG image of uint8 \(64, 64, 1\), where the first is of uint16"),
        (np.zeros((64, 64, 3), np.uint8), r"frame 3: a PNG image of uint8 \(64, 64, 3\), where the first is of uint16"),
    ],
)
def test_a_lerobot_folder_that_changes_its_mind(tmp_path: Path, image: NDArray[Any], words: str) -> None:
    folder = write_v3(tmp_path / "folder", "image")
    files = [png(np.zeros((64, 64, 1), np.uint16))] * sum(LENGTHS)
    files[3] = png(image)
    column = [{"bytes": data, "path": None} for data in files]
    set_column(folder / V3_DATA, CAMERA, pa.array(column, pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    declare(folder, CAMERA, "image", (64, 64, 1))
    with pytest.raises(roboreel.SourceError, match=words):
        LeRobotDatasetV2.from_lerobot(folder, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_grey_and_depth_beside_colour(tmp_path: Path) -> None:
    data = recording(3, camera=True)
    data["observation.images.grey"] = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 1), np.uint8)
    data[DEPTH] = metres()
    seen = []

    def transform(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape))
        return images.flip(-1)

    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_mode="memmap", image_transform=transform)
    dataset.add_episodes(data)
    item = dataset[1]
    assert seen == [(3, 16, 24), (1, 8, 9)]  # colours and greys; depth is no picture
    assert torch.equal(item[DEPTH], torch.from_numpy(data[DEPTH][1]).movedim(-1, 0))
    grey = item["observation.images.grey"][0].flip(-1) * 255
    assert np.array_equal(grey.round().numpy(), data["observation.images.grey"][1, ..., 0])


def test_the_golden_dataset_with_depth(tmp_path: Path) -> None:
    """Its bytes are those of the format's page, opened with numpy, json and Pillow alone, and are written so today."""
    make_depth(tmp_path / "new")
    frames = depth_cameras()
    small = {
        DEPTH_MM: frames[DEPTH_MM][:, 1::2, 1::2],
        DEPTH_M: frames[DEPTH_M],
        SMALL: np.array(
            [[[[15, 16, 17], [21, 22, 23], [26, 27, 28]], [[43, 44, 45], [49, 50, 51], [54, 55, 56]]]], np.uint8
        ),
    }
    for root in (GOLDEN_DEPTH, tmp_path / "new"):
        metadata = json.loads((root / "metadata.json").read_text())
        assert metadata["incompatible"] == ["depth"]
        fields = {key: metadata["keys"][key] for key in frames}
        assert [fields[key].get("unit") for key in frames] == ["mm", "m", None]
        assert [fields[key].get("resized") for key in frames] == ["nearest", None, "pillow-bilinear"]
        for key in (DEPTH_M, SMALL):
            column = np.memmap(root / f"columns/{key}.bin", fields[key]["dtype"], "r", shape=(2, *fields[key]["shape"]))
            assert np.array_equal(column[: len(small[key])], small[key])
        images = [Image.open(root / f"images/{DEPTH_MM}/000000000/{frame:06d}.png") for frame in range(2)]
        assert np.array_equal(np.stack([np.asarray(image) for image in images])[..., None], small[DEPTH_MM])
        dataset = LeRobotDatasetV2(root, readonly=True)
        assert dataset[1][DEPTH_MM].max().item() == np.float32(65.535)
        LeRobotDatasetV2.check_storage_dir_integrity(root)
    assert (GOLDEN_DEPTH / "metadata.json").read_bytes() == (tmp_path / "new" / "metadata.json").read_bytes()
