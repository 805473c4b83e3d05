"""Foreign formats: a `ForeignDataset` gives episodes, `ingest` stores them; anyone's `Source` is made one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roboreel.convert.encoded_images import image_files
from roboreel.convert.export_forecast import check_export_fits
from roboreel.convert.foreign import ForeignDataset, SourceEpisode
from roboreel.convert.formats import Format, detect_format, open_source, parse_format
from roboreel.convert.import_forecast import ImportForecast, forecast_source
from roboreel.convert.ingest import (
    IngestOptions,
    IngestReport,
    Told,
    check_free,
    fingerprint,
    ingest,
    is_there,
    planned,
)
from roboreel.convert.lerobot import open_lerobot
from roboreel.convert.lerobot_export import ExportOptions, ExportReport, exported_keys, write_lerobot
from roboreel.convert.lerobot_export import Version as ExportVersion
from roboreel.convert.lerobot_info import read_info
from roboreel.convert.lerobot_v1 import is_v1
from roboreel.convert.lerobot_v2 import list_v2
from roboreel.convert.lerobot_v3 import list_v3
from roboreel.convert.opened_source import OpenedSource
from roboreel.convert.source import Source
from roboreel.convert.store_source import StoreSource
from roboreel.errors import InvalidArgumentError
from roboreel.store import Store, built_beside

__all__ = [
    "ExportOptions",
    "ExportReport",
    "ExportVersion",
    "ForeignDataset",
    "Format",
    "ImportForecast",
    "IngestOptions",
    "IngestReport",
    "OpenedSource",
    "Source",
    "SourceEpisode",
    "Told",
    "check_free",
    "detect_format",
    "export_lerobot",
    "forecast_import",
    "forecast_lerobot",
    "image_files",
    "import_lerobot",
    "import_source",
    "ingest",
    "is_there",
    "listed_episodes",
    "open_lerobot",
    "open_source",
    "parse_format",
]


def import_lerobot(
    folder: Path, storage_dir: Path, options: IngestOptions, told: Told | None = None
) -> IngestReport | None:
    """Take a LeRobot folder (v1.x, v2.0, v2.1, v3.0) in; None where `storage_dir` holds just that already.

    `told` is called with the forecast before anything is written.

    Raises:
        SourceError: the folder cannot be read as what it says it is; `storage_dir` is as it was before.
    """
    storage_dir = storage_dir.resolve()  # a link to an empty directory is that directory, and "." has a name
    if storage_dir.is_relative_to(folder.resolve()):
        raise InvalidArgumentError(f"{storage_dir} lies in {folder}, which is only read; import to another place")
    source = open_lerobot(folder, options.skip_episodes, strict=True) if options.strict else None
    provenance = {"fingerprint": fingerprint(folder), "skipped_episodes": sorted(options.skip_episodes) or None}
    if is_there(storage_dir, provenance, options.cameras):
        return None
    source = source or open_lerobot(folder, options.skip_episodes)
    known = {key: value for key, value in provenance.items() if value is not None}
    return ingest(source, storage_dir, options, {**source.provenance, **known}, told)


def forecast_lerobot(folder: Path, storage_dir: Path, options: IngestOptions) -> ImportForecast:
    """Say what `import_lerobot` would take, without writing anything."""
    source = open_lerobot(folder, options.skip_episodes, strict=options.strict)
    return forecast_source(source, planned(source, options, {}), storage_dir.resolve())


def import_source(
    source: Source, storage_dir: Path, options: IngestOptions, told: Told | None = None
) -> IngestReport | None:
    """Take a source in; None where `storage_dir` holds just that already. See `import_lerobot`."""
    storage_dir = storage_dir.resolve()
    opened = OpenedSource(source, options.skip_episodes)
    for place in source.files:
        if storage_dir.is_relative_to(Path(place).resolve()):
            raise InvalidArgumentError(f"{storage_dir} lies in {place}, which is only read; import to another place")
    if is_there(storage_dir, opened.provenance, options.cameras):
        return None
    known = {key: value for key, value in opened.provenance.items() if value is not None}
    return ingest(opened, storage_dir, options, known, told)


def forecast_import(source: Source, storage_dir: Path, options: IngestOptions) -> ImportForecast:
    """Say what `import_source` would take, without writing anything."""
    opened = OpenedSource(source, options.skip_episodes)
    return forecast_source(opened, planned(opened, options, {}), storage_dir.resolve())


def export_lerobot(
    store: Store,
    rows: NDArray[np.int64],
    folder: Path,
    options: ExportOptions,
    check_same: Callable[[], object] = lambda: None,
) -> ExportReport:
    """Write the episodes in `rows` of the episode table as a LeRobot folder, there whole or not at all.

    `check_same` is called before it is put in its place, and raises where the dataset is another one by then.
    """
    source = StoreSource(store, rows, options.leave_out)
    keys = exported_keys(source, options)  # refuses what cannot be, before anything is made
    if not options.force:
        check_export_fits(source, keys, folder)
    with built_beside(store.root, folder) as place:
        report = write_lerobot(source, place, options)
        check_same()
    return replace(report, folder=str(folder))


def listed_episodes(folder: Path) -> dict[int, str | None]:
    """Which episodes a LeRobot folder lists, of which only the metadata need be there, and the file of each one's rows.

    The file is None where the metadata do not say it.
    """
    if is_v1(folder):
        raise InvalidArgumentError(f"{folder}: LeRobot v1.x keeps all episodes together; leave episodes= out")
    info = read_info(folder)
    listing = list_v3(info) if (folder / "meta" / "episodes").is_dir() else list_v2(info)
    return {index: None if path is None else path.relative_to(folder).as_posix() for index, path in listing.items()}
