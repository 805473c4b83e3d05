"""Foreign formats: a `Source` gives episodes, `ingest` stores them."""

from __future__ import annotations

from pathlib import Path

from roboreel.convert.ingest import IngestOptions, fingerprint, ingest, is_there
from roboreel.convert.lerobot import open_lerobot
from roboreel.convert.source import Source, SourceEpisode
from roboreel.errors import InvalidArgumentError

__all__ = ["IngestOptions", "Source", "SourceEpisode", "import_lerobot", "ingest", "open_lerobot"]


def import_lerobot(folder: Path, storage_dir: Path, options: IngestOptions) -> None:
    """Take a LeRobot folder (v2.0, v2.1, v3.0) in, unless `storage_dir` holds just that already.

    Raises:
        SourceError: the folder cannot be read as what it says it is; `storage_dir` is as it was before.
    """
    storage_dir = storage_dir.resolve()  # a link to an empty directory is that directory, and "." has a name
    if storage_dir.is_relative_to(folder.resolve()):
        raise InvalidArgumentError(f"{storage_dir} lies in {folder}, which is only read; import to another place")
    provenance = {"fingerprint": fingerprint(folder)}
    if is_there(storage_dir, provenance, options.cameras):
        return
    source = open_lerobot(folder)
    ingest(source, storage_dir, options, {**source.provenance, **provenance})
