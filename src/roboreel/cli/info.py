"""`roboreel info DIR`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from roboreel.cli.caching import cache_line
from roboreel.columns.video import VideoColumn
from roboreel.format import paths
from roboreel.format.manifest import VERSION
from roboreel.store import Store, cache_report


@dataclass(frozen=True)
class InfoConfig:
    """Show what a dataset holds."""

    dir: tyro.conf.Positional[Path]
    """The directory of the dataset."""
    cache_place: Path | None = None
    """Where its decoded frames are kept, if not in it: the directory of `decoded_cache=("8GB", directory)`."""
    json: bool = False
    """Print JSON."""


def run(arguments: Sequence[str]) -> None:
    config = tyro.cli(InfoConfig, prog="roboreel info", args=arguments)
    info = collect(config.dir, config.cache_place)
    print(json.dumps(info, indent=1) if config.json else describe(info))


def collect(root: Path, cache_place: Path | None = None) -> dict[str, Any]:
    """Return what `roboreel info` shows, as JSON values."""
    store = Store.open(root)
    try:
        manifest, table, state = store.manifest, store.table, store.state
        surviving = (table.stops - table.live_starts)[table.live]
        return {
            "storage_dir": str(root),
            "format": ".".join(map(str, VERSION)),
            "uuid": manifest.uuid,
            "fps": manifest.fps,
            "episodes": len(table.live),
            "frames": state.frames,
            "seconds": round(state.frames / manifest.fps, 3),
            "lost_frames": int(state.frames - surviving.sum()),
            "shortest_episode": int(surviving.min(initial=state.frames)),
            "longest_episode": int(surviving.max(initial=0)),
            "capacity": state.capacity,
            "fixed_capacity": manifest.fixed_capacity,
            "ring": manifest.ring,
            "generation": state.generation,
            "tasks": _tasks(store),
            "keys": {key: {"dtype": spec.dtype.name, **_key(store, key)} for key, spec in manifest.keys.items()},
            "bytes": store.bytes_on_disk(),
            "decoded_cache": cache_report(
                root / paths.CACHE if cache_place is None else cache_place / manifest.uuid, manifest
            ).to_dict(),
            "provenance": dict(manifest.provenance),
        }
    finally:
        store.close()


def _tasks(store: Store) -> list[str]:
    codes = np.unique(store.table.rows["task"][store.table.live])
    return [store.strings[code] for code in codes.tolist() if code >= 0]


def _key(store: Store, key: str) -> dict[str, Any]:
    spec = store.manifest.keys[key]
    shown = spec.to_dict()
    found: dict[str, Any] = {"shape": shown["shape"], "role": shown["role"], "stored": shown["stored"]}
    for name in ("unit", "source_dtype", "resized"):
        if name in shown:
            found[name] = shown[name]
    if spec.video_options is not None:
        found["encoding"] = spec.video_options.to_dict()
    column = store.columns[key]
    if isinstance(column, VideoColumn):
        files = np.unique(store.table.rows["clips"]["file"][store.table.live, store.manifest.video_keys.index(key)])
        table = column.table(int(files[0]))
        found |= {"files": len(files), "codec": table.codec, "pix_fmt": table.pix_fmt}
        found["frames_per_key_frame"] = round(len(table) / len(table.keys), 1)
    return found


def describe(info: Mapping[str, Any]) -> str:
    """Return what `roboreel info` prints of what was collected."""
    kind = "ring" if info["ring"] else "fixed capacity" if info["fixed_capacity"] else "grows as needed"
    lines = [
        f"{info['storage_dir']}: roboreel format {info['format']}",
        f"  episodes   {info['episodes']:,}, of {_span(info['shortest_episode'], info['longest_episode'])} frames",
        f"  frames     {info['frames']:,} at {info['fps']:g} Hz ({_duration(info['seconds'])})",
        f"  capacity   {info['capacity']:,} frames, {kind}",
        f"  on disk    {info['bytes'] / 1e6:,.1f} MB",
    ]
    if info["decoded_cache"]["bytes"]:
        lines.append(f"  decoded    {cache_line(info['decoded_cache'])}")
    if info["lost_frames"]:
        lines.append(f"  lost       {info['lost_frames']:,} frames, being overwritten when their writer died")
    if "format" in info["provenance"]:
        lines.append(f"  taken from {info['provenance']['format']} {info['provenance'].get('folder', '')}".rstrip())
    for told in info["provenance"].get("conversions", []):
        changes = (f"{key} {one['from']} -> {one['to']}" for key, one in told["cameras"].items())
        lines.append(f"  converted  {', '.join(changes)}")
    lines += [f"  task       {task}" for task in info["tasks"][:3]]
    if len(info["tasks"]) > 3:
        lines.append(f"             … and {len(info['tasks']) - 3} more")
    lines.append("  keys")
    width = max(map(len, info["keys"]))
    lines += [f"    {key:<{width}}  {_key_line(fields)}" for key, fields in info["keys"].items()]
    return "\n".join(lines)


def _key_line(fields: dict[str, Any]) -> str:
    if fields["role"] == "string":
        return "string"
    shape = "x".join(map(str, fields["shape"])) or "scalar"
    if fields["role"] != "camera":
        return f"{fields['dtype']:<8} {shape}" + (f"  {fields['unit']}" if "unit" in fields else "")
    height, width, channels = fields["shape"]
    what = f"depth in {fields['unit']}" if fields["dtype"] != "uint8" else f"{channels} channels"
    what = what.removesuffix("s") if channels == 1 else what
    resized = f"resized ({fields['resized']}), " if "resized" in fields else ""
    line = f"{fields['dtype']:<8} {width}x{height}, {what}, {resized}"
    if fields["stored"] != "video":
        return line + {"column": "memmap", "png": "PNG"}[fields["stored"]]
    files = f"{fields['files']} video file{'s' if fields['files'] != 1 else ''}"
    every = f"a key frame every {fields['frames_per_key_frame']:g}"
    return line + f"{files}, {fields['codec']} {fields['pix_fmt']}, {every}; {_encoding(fields['encoding'])}"


def _encoding(options: dict[str, Any]) -> str:
    """How the next episode will be coded, which need not be how an imported file was."""
    preset = "" if options["preset"] is None else f", preset {options['preset']}"
    return f"new ones {options['codec']} {options['pix_fmt']}, gop {options['gop']}, crf {options['crf']}{preset}"


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
