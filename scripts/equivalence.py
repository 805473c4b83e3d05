"""Compare items of LeRobotDataset with ours, bit for bit: keys, dtypes, shapes, values, padding masks.

    make equivalence    # the folders that are here, in the environment of make test-lerobot; an hour
    make equivalence ARGS="--only pusht --decoders torchcodec --windows policy"
    python -m scripts.write_equivalence    # docs/equivalence.md

Both are read in one process, with the same decoder. LeRobot is given folders of v2.1 as its own converter makes them
v3.0, and folders that declare cameras without files with those taken out of info.json; ours the folders as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from roboreel import LeRobotDatasetV2
from scripts.reliability import record

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "equivalence.json"
Decoder = Literal["pyav", "torchcodec"]
PACKAGES = ("roboreel", "lerobot", "torch", "torchvision", "torchcodec", "av", "datasets", "pyarrow", "numpy")
DECODERS: tuple[Decoder, ...] = get_args(Decoder)
FOLDERS = {"pusht": ROOT / "examples" / "data" / "pusht"}
SHARED = ROOT.parent / "shared" / "data"
CONVERTER = "lerobot.datasets.v30.convert_dataset_v21_to_v30"

Windows = Mapping[str, Sequence[int]]
"""Key → offsets in frames."""


@dataclass
class Comparison:
    """What came of comparing items."""

    frames_there: int = 0
    """That LeRobot counts."""
    items: int = 0
    values: int = 0
    """Of all items; a key that only one of the two has counts too."""
    pads: int = 0
    """Frames that masks mark."""
    different: int = 0
    refused: int = 0
    """Items that LeRobot raises an error for."""
    differ: list[str] = field(default_factory=list)
    """The first that do."""
    said: list[str] = field(default_factory=list)
    """What LeRobot said of the first that it refused."""
    taken_from: dict[int, int] = field(default_factory=dict)
    """Row → the row whose picture LeRobot gives for it; -1: none near."""

    def add(self, index: int, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        self.items += 1
        for key in sorted(set(theirs) | set(ours)):
            self.values += 1
            if key not in theirs or key not in ours or not is_same(theirs[key], ours[key]):
                self.different += 1
                self._note(self.differ, f"{index}, {key!r}: {_shown(theirs.get(key))} against {_shown(ours.get(key))}")
            elif key.endswith("_is_pad"):
                self.pads += int(ours[key].sum())

    def refuse(self, index: int, error: Exception) -> None:
        self.refused += 1
        self._note(self.said, f"{index}: {told(error)}")

    @staticmethod
    def _note(notes: list[str], note: str) -> None:
        if len(notes) < 5:
            notes.append(note)


def is_same(one: Any, other: Any) -> bool:
    """Whether two values of items are of one type, dtype and shape, and have the same bytes."""
    if not hasattr(one, "numpy") or not hasattr(other, "numpy"):
        return type(one) is type(other) and bool(one == other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes())


def _shown(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if hasattr(value, "numpy") else repr(value)[:60]


def told(error: Exception) -> str:
    """The kind of an error, and what it says; of paths the last two parts."""
    words = " ".join(str(error).split())[:600].split(" ")
    parts = ["…/" + "/".join(word.split("/")[-2:]) if word.lstrip("'\"([").startswith("/") else word for word in words]
    said = " ".join(parts)
    return f"{type(error).__name__}: {said if len(said) <= 200 else said[:200] + ' …'}"


def windows_of(dataset: LeRobotDatasetV2, cameras: Mapping[str, str]) -> dict[str, Windows | None]:
    """Single frames, a policy's windows, and windows of every key that LeRobot can give them for, across the ends.

    `cameras`: those to be compared → "video" or "image".
    """
    # LeRobot asks the item for one timestamp to decode at, and for one task
    never = {"task", "task_index", *(["timestamp"] if "video" in cameras.values() else [])}
    columns = [key for key in dataset.data_keys if key not in never and key not in dataset.camera_keys]
    states = {key: [-1, 0] for key in columns if key.startswith("observation.")}
    policy = {**states, "action": [*range(-1, 15)], **{camera: [-1, 0] for camera in cameras}}
    wide = {**{key: [-30, -1, 0, 1, 30] for key in columns}, "action": [*range(100)]}
    return {"single": None, "policy": policy, "wide": {**wide, **{camera: [2, 0, -5] for camera in cameras}}}


def open_theirs(folder: Path, windows: Windows | None, fps: float, decoder: str = "pyav", **options: Any) -> Any:
    """LeRobotDataset of a folder."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    deltas = in_seconds(windows, fps)
    return LeRobotDataset(
        f"local/{folder.name}", root=folder, delta_timestamps=deltas, video_backend=decoder, **options
    )


def in_seconds(windows: Windows | None, fps: float) -> dict[str, list[float]] | None:
    return None if windows is None else {key: [step / fps for step in steps] for key, steps in windows.items()}


def compare(
    folder: Path,
    ours: LeRobotDatasetV2,
    windows: Windows | None,
    *,
    decoder: str = "pyav",
    every: int = 1,
    episodes: list[int] | None = None,
) -> Comparison:
    """Compare every so many-th item of LeRobot's dataset of a folder with that of ours.

    Of all keys that either has, but for cameras that the folder does not declare.
    """
    assert ours.fps is not None
    theirs = open_theirs(folder, windows, ours.fps, decoder, episodes=episodes)
    both = [(theirs.num_episodes, theirs.fps), (ours.num_episodes, ours.fps)]
    if both[0] != both[1]:
        raise ValueError(f"LeRobot has (episodes, frames a second) {both[0]}, and ours {both[1]}")
    left_out = {key for key in ours.camera_keys if key not in theirs.features}
    ours.set_delta_timestamps(in_seconds(windows, ours.fps))
    found = Comparison(frames_there=len(theirs))
    for index in range(0, len(ours), every):
        try:
            item = theirs[index]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what LeRobot says
            found.refuse(index, error)
            continue
        mine = {key: value for key, value in ours[index].items() if _camera_of(key) not in left_out}
        found.add(index, item, mine)
        for key in set(ours.camera_keys) & set(item) if windows is None else ():
            if not is_same(item[key], mine[key]):
                found.taken_from[index] = next(
                    (row for row in _around(ours, index) if is_same(item[key], ours[row][key])), -1
                )
    return found


def _around(ours: LeRobotDatasetV2, index: int) -> Iterator[int]:
    """Rows near one, the nearest first."""
    for steps in range(1, 60):
        yield from (row for row in (index - steps, index + steps) if 0 <= row < len(ours))


def _camera_of(key: str) -> str:
    return key.removesuffix("_is_pad")


def converted(folder: Path, place: Path) -> Path:
    """A copy of a v2.1 folder in `place` that LeRobot's own converter has made v3.0."""
    copy = place / "local" / folder.name
    shutil.copytree(folder, copy)
    asked = ["--repo-id", f"local/{folder.name}", "--root", str(place), "--push-to-hub", "false"]
    run = subprocess.run([sys.executable, "-m", CONVERTER, *asked], capture_output=True, text=True, check=False)
    if run.returncode:
        raise ValueError(run.stderr.strip().splitlines()[-1])
    return copy


def without(folder: Path, cameras: Sequence[str], place: Path) -> Path:
    """A copy of a folder whose info.json does not declare these cameras."""
    copy = place / "declared" / folder.name
    shutil.copytree(folder, copy)
    info = json.loads((copy / "meta" / "info.json").read_text())
    info["features"] = {key: feature for key, feature in info["features"].items() if key not in cameras}
    (copy / "meta" / "info.json").write_text(json.dumps(info))
    return copy


def prepared(folder: Path, ours: LeRobotDatasetV2, place: Path) -> tuple[Path, list[str]]:
    """The folder that LeRobot is given, and what was done to it."""
    if not (folder / "meta" / "info.json").exists():
        return folder, []  # before v2.0
    info = json.loads((folder / "meta" / "info.json").read_text())
    done = []
    if absent := sorted(set(_cameras(info)) - set(ours.camera_keys)):
        folder = without(folder, absent, place)
        done.append(f"without {', '.join(f'`{key}`' for key in absent)}, declared and not there")
    if info["codebase_version"] == "v2.1":
        folder = converted(folder, place)
        done.append("converted by LeRobot")
    return folder, done


def _cameras(info: Mapping[str, Any]) -> dict[str, str]:
    kinds = {key: str(feature["dtype"]) for key, feature in info["features"].items()}
    return {key: kind for key, kind in kinds.items() if kind in ("video", "image")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="folders; all that are here, if not given")
    parser.add_argument("--decoders", nargs="*", default=DECODERS, choices=DECODERS)
    parser.add_argument("--windows", nargs="*", default=["single", "policy", "wide"])
    parser.add_argument("--every", type=int, default=1, help="of so many items one")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    shared = sorted(path for path in SHARED.glob("v*") if path.is_dir()) if SHARED.is_dir() else []
    folders = {**FOLDERS, **{path.name: path for path in shared}}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache  # LeRobot keeps a copy of all rows there
        for name, folder in folders.items():
            if not asked.only or name in asked.only:
                with tempfile.TemporaryDirectory() as temporary:
                    _compare_folder(name, folder, Path(temporary), asked)


def _compare_folder(name: str, folder: Path, place: Path, asked: argparse.Namespace) -> None:
    ours = LeRobotDatasetV2.from_lerobot(folder, place / "ours", progress=False)
    try:
        given, done = prepared(folder, ours, place)
        open_theirs(given, None, ours.fps or 0.0)
    except Exception as error:  # noqa: BLE001 - as above
        print(f"{name}: LeRobot does not open it: {told(error)}", flush=True)
        record("not opened", name, {"error": told(error)}, RESULTS, PACKAGES)
        return
    finally:
        ours.close()
    refused = _compare_given(name, given, done, place, asked)
    if refused:
        cameras = ours.camera_keys
        named = ", ".join(f"`{key}`" for key in cameras)
        given = without(given, cameras, place / "columns")
        _compare_given(f"{name}, columns", given, [*done, f"without {named}, which it fails at"], place, asked)


def _compare_given(name: str, given: Path, done: list[str], place: Path, asked: argparse.Namespace) -> int:
    """Compare one folder with each decoder and each set of windows; returns how many items LeRobot refused."""
    info = json.loads((given / "meta" / "info.json").read_text())
    cameras = _cameras(info)
    has_video = "video" in cameras.values()
    refused = 0
    for decoder in asked.decoders if has_video else asked.decoders[:1]:
        ours = LeRobotDatasetV2(place / "ours", video_decoder=decoder)
        for kind, windows in windows_of(ours, cameras).items():
            if kind not in asked.windows:
                continue
            found = compare(given, ours, windows, decoder=decoder, every=asked.every)
            refused += found.refused
            used = decoder if has_video else "PNG" if cameras else ""
            figures = {
                "folder": name,
                "given": "; ".join(done),
                "cameras": len(cameras),
                "decoder": used,
                "windows": kind,
            }
            figures |= {"frames": len(ours), "episodes": ours.num_episodes, **vars(found)}
            print(json.dumps(figures), flush=True)
            record("compared", " ".join([name, kind, used]).strip(), figures, RESULTS, PACKAGES)
        ours.close()
    return refused


if __name__ == "__main__":
    main()
