"""What an untrusted LeRobot folder may not do: lead out of itself by a path, or give bytes that are no image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from roboreel.convert import IngestOptions, forecast_lerobot, import_lerobot
from roboreel.errors import SourceError
from roboreel.store import PngFrames
from tests import lerobot_folders as made
from tests.lerobot_folders import CAMERA, LENGTHS, V2_DATA, V3_DATA, read_lerobot
from tests.video_files import HEIGHT, WIDTH


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    """A fresh folder of one of the kinds, which the test may break."""
    return lambda kind: made.WRITERS[kind](tmp_path / kind)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n%%EndComments\n(quit)\n%%EOF\n"
IMAGE_BREAKS: list[tuple[str, Any, str]] = [
    ("a path out of the folder", {"bytes": None, "path": "../../secret.png"}, r"'../../secret\.png' leads out of"),
    ("an absolute path", {"bytes": None, "path": "/etc/passwd"}, r"'/etc/passwd' leads out of"),
    ("a path to nothing", {"bytes": None, "path": "images/9.png"}, r"the image .*images/9\.png cannot be read"),
    ("neither bytes nor path", {"bytes": None, "path": None}, r"neither the image's bytes nor its path"),
    ("null", None, r"neither the image's bytes nor its path"),
    ("a cut image", {"bytes": made.png(11)[:-20], "path": None}, r"not a whole PNG file"),
    ("what runs a program", {"bytes": EPS, "path": None}, r"not a readable image .* convert any other"),
    ("no image at all", {"bytes": b"GIF nonsense", "path": None}, r"not a readable image"),
    (
        "a JPEG among PNGs",
        {"bytes": made.png(11, "JPEG"), "path": None},
        r"an image that is not PNG, of uint8 \(64, 96, 3\)",
    ),
    (
        "a grey one",
        {"bytes": made.png(11, mode="L"), "path": None},
        r"a PNG image of uint8 \(64, 96, 1\), where the first",
    ),
]

TEMPLATES = [
    ("../{episode_index}.parquet", r"leads out of the dataset's folder"),
    ("/etc/{episode_index}.parquet", r"leads out of the dataset's folder"),
    ("data\\{episode_index}.parquet", r"leads out of the dataset's folder"),
    ("data/{episode_index.__class__}.parquet", r"unknown field 'episode_index\.__class__'"),
    ("data/{0}.parquet", r"unknown field '0'"),
    ("data/{}.parquet", r"unknown field ''"),
    ("data/{video_key}.parquet", r"unknown field 'video_key'; known are episode_chunk, episode_index"),
    ("data/{episode_index!r}.parquet", r"unknown field"),
    ("data/{episode_index:999999999d}.parquet", r"cannot format episode_index as '999999999d'"),
    ("data/{episode_index", r"path template"),
]


@pytest.mark.parametrize(("name", "image", "pattern"), IMAGE_BREAKS, ids=[name for name, _, _ in IMAGE_BREAKS])
def test_a_broken_image_is_refused_when_it_is_read(
    make: Callable[[str], Path], name: str, image: Any, pattern: str
) -> None:
    folder = make("v3-images")
    made.set_cell(folder / V3_DATA, CAMERA, 11, image)
    camera = read_lerobot(folder)[1][2].cameras[CAMERA]
    assert isinstance(camera, PngFrames)
    assert camera.read(1) == made.png(10)
    with pytest.raises(SourceError, match=rf"episode 2, camera '{CAMERA}', frame 2: .*{pattern}"):
        camera.read(2)


@pytest.mark.parametrize(("template", "pattern"), TEMPLATES)
def test_a_path_template_that_leads_elsewhere_is_refused(
    make: Callable[[str], Path], template: str, pattern: str
) -> None:
    folder = make("v2.1")
    made.edit_info(folder, data_path=template)
    with pytest.raises(SourceError, match=pattern):
        read_lerobot(folder)


def test_a_camera_whose_name_leads_elsewhere_is_refused(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    made.declare(folder, "../../../observation.image", "video", [HEIGHT, WIDTH, 3])
    with pytest.raises(SourceError, match="leads out of the dataset's folder"):
        read_lerobot(folder)


# Files of no size that unfold


def test_files_that_unfold_as_no_recording_does_are_refused(make: Callable[[str], Path], tmp_path: Path) -> None:
    folder, width = make("v2.1"), 1_200_000
    for episode, length in enumerate(LENGTHS):
        zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(length * width, np.float32)), width)
        made.set_column(folder / V2_DATA.format(episode), "wide", zeros)
    made.declare(folder, "wide", "float32", [width])
    told = forecast_lerobot(folder, tmp_path / "place", IngestOptions())
    assert told.rows_bytes > 1000 * told.rows_before > 0
    with pytest.raises(SourceError, match=r"[\d,]+ bytes of files would become 72,000,\d+ besides images, .*--force"):
        import_lerobot(folder, tmp_path / "place", IngestOptions())
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize("kind", ["v2.1", "v3.0"])
def test_an_episode_that_memory_would_not_hold_is_refused_unread(make: Callable[[str], Path], kind: str) -> None:
    folder = make(kind)
    made.declare(folder, "observation.state", "float32", [10**11])
    with pytest.raises(
        SourceError, match=r"episode 2: its 6 frames would take 2,400,000,\d+,\d+ bytes besides images, 'obs"
    ):
        read_lerobot(folder)


def test_a_long_text_is_in_memory_once_for_all_of_its_frames(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    for episode, length in enumerate(LENGTHS):
        notes = pa.DictionaryArray.from_arrays(pa.array(np.zeros(length, np.int32)), pa.array(["long " * 9999]))
        made.set_column(folder / V2_DATA.format(episode), "note", notes)
    for found in read_lerobot(folder)[1]:
        assert set(found.strings["note"]) == {"long " * 9999}
        assert len({id(text) for text in found.strings["note"]}) == 1


MANY = 30_000_000
"""Values in runs, which take next to nothing in a file."""


def run_of(values: pa.Array, rows: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, *[MANY] * rows], pa.int32()), values)


@pytest.mark.parametrize("where", ["a column of the listing", "the tasks of the listing", "an undeclared column"])
def test_columns_that_unfold_to_any_size_are_refused(make: Callable[[str], Path], where: str) -> None:
    kind = "v2.1" if where == "an undeclared column" else "v3.0"
    folder = make(kind)
    zeros = pa.array(np.zeros(MANY, np.int8))
    path = folder / (V2_DATA.format(0) if kind == "v2.1" else made.V3_EPISODES)
    table = pq.read_table(path)
    if where == "the tasks of the listing":
        texts = pa.DictionaryArray.from_arrays(zeros, pa.array([made.TASKS[0]])).cast(pa.string())
        table = table.set_column(table.schema.get_field_index("tasks"), "tasks", run_of(texts, len(table)))
    else:
        name = "x" if kind == "v2.1" else "data/bomb/chunk_index"
        table = table.append_column(name, run_of(zeros, len(table)))
    pq.write_table(table, path, compression="zstd")
    for episode in (1, 2) if kind == "v2.1" else ():
        other = folder / V2_DATA.format(episode)
        rows = pq.read_table(other)
        pq.write_table(rows.append_column("x", pa.array([[0]] * len(rows))), other)
    if where == "a column of the listing":  # it is none that anything asks for
        assert len(read_lerobot(folder)[1]) == len(LENGTHS)
        return
    with pytest.raises(SourceError, match=r"would unfold to [\d,]+ bytes, from a file of"):
        read_lerobot(folder)
