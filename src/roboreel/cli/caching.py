"""`roboreel cache DIR`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from roboreel.format import paths
from roboreel.format.manifest import read_manifest
from roboreel.store import cache_report, clear_cache


@dataclass(frozen=True)
class CacheConfig:
    """Show how full the cache of decoded frames is (`decoded_cache="8GB"` when a dataset is opened), or clear it.

    Nothing is lost by clearing but the time to decode again. Processes that are reading go on, and fill it anew.
    """

    dir: tyro.conf.Positional[Path]
    """The directory of the dataset."""
    clear: bool = False
    """Remove it."""
    place: Path | None = None
    """Where the caches are, if not in the dataset: the directory of `decoded_cache=("8GB", directory)`."""
    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(CacheConfig, prog="roboreel cache", args=arguments)
    manifest, _ = read_manifest(config.dir)
    folder = config.dir / paths.CACHE if config.place is None else config.place / manifest.uuid
    report = cache_report(folder, manifest).to_dict()
    was_there = clear_cache(folder) if config.clear else True
    if config.json:
        print(json.dumps({"cleared": report} if config.clear else report, indent=1))
    elif was_there:
        print(f"{folder}: {cache_line(report)}{', cleared' if config.clear else ''}")
    else:
        print(f"{folder}: there is no cache to clear")


def cache_line(report: Mapping[str, Any]) -> str:
    """Say in one line how full a cache is."""
    return f"{report['frames']:,} of {report['capacity']:,} camera frames kept, {report['bytes'] / 1e6:,.1f} MB"
