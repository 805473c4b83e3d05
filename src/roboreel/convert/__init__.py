"""Foreign formats: a `Source` gives episodes, `ingest` stores them."""

from __future__ import annotations

from pathlib import Path

from roboreel.convert.import_forecast import ImportForecast, forecast_source
from roboreel.convert.ingest import IngestOptions, IngestReport, Told, fingerprint, ingest, is_there, planned
from roboreel.convert.lerobot import open_lerobot
from roboreel.convert.source import Source, SourceEpisode
from roboreel.errors import InvalidArgumentError

__all__ = [
    "ImportForecast",
    "IngestOptions",
    "IngestReport",
    "Source",
    "SourceEpisode",
    "forecast_lerobot",
    "import_lerobot",
    "ingest",
    "open_lerobot",
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
