"""A key of ours as LeRobot declares it, and its frames as a column of a LeRobot Parquet file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.errors import InvalidArgumentError
from roboreel.schema import (
    EPISODE_INDEX_KEY,
    FRAME_INDEX_KEY,
    INDEX_KEY,
    TASK_KEY,
    TIMESTAMP_KEY,
    KeySpec,
    LeRobotDatasetV2ImageMode,
)

TASK_INDEX_KEY = "task_index"
RECORDED_KEY = "recorded_timestamp"
"""The clock of the recording, where that is not k / fps, as LeRobot's `timestamp` must be."""

_ONE = {"shape": [1], "names": None}
_ROWS = {
    TIMESTAMP_KEY: {"dtype": "float32"} | _ONE,
    FRAME_INDEX_KEY: {"dtype": "int64"} | _ONE,
    EPISODE_INDEX_KEY: {"dtype": "int64"} | _ONE,
    INDEX_KEY: {"dtype": "int64"} | _ONE,
    TASK_INDEX_KEY: {"dtype": "int64"} | _ONE,
}
_MAX_SIDES = 5
"""Of one frame: `datasets` has no arrays of more."""


def features_of(keys: Sequence[KeySpec], *, is_regular: bool) -> dict[str, dict[str, Any]]:
    """The `features` of info.json; cameras without what only their files tell.

    Raises:
        InvalidArgumentError: a key that LeRobot's format has no place for.
    """
    features: dict[str, dict[str, Any]] = {}
    for spec in keys:
        if spec.name not in (TASK_KEY, TASK_INDEX_KEY):
            features[spec.name] = _feature(spec)
    if not is_regular:
        features[RECORDED_KEY] = {"dtype": "float64"} | _ONE
    return {**features, **{name: dict(feature) for name, feature in _ROWS.items()}}


def _feature(spec: KeySpec) -> dict[str, Any]:
    if "/" in spec.name:
        raise InvalidArgumentError(f"key {spec.name!r}: LeRobot allows no '/' in a name; leave it out (leave_out=)")
    if spec.is_string:
        return {"dtype": "string"} | _ONE
    if spec.is_camera:
        is_video = spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO
        feature = {
            "dtype": "video" if is_video else "image",
            "shape": list(spec.shape),
            "names": spec.names or ["height", "width", "channels"],
        }
        return feature | ({"info": {"is_depth_map": True, "depth_unit": "mm"}} if spec.is_depth else {})
    if len(spec.shape) > _MAX_SIDES:
        raise InvalidArgumentError(
            f"key {spec.name!r} has shape {spec.shape}, and LeRobot keeps at most {_MAX_SIDES} dimensions; leave it "
            "out (leave_out=)"
        )
    return {"dtype": spec.dtype.name, "shape": list(spec.shape) or [1], "names": spec.names}


def arrow_schema(features: Mapping[str, Mapping[str, Any]]) -> Any:
    """The schema of a data file, as `datasets` writes it."""
    pyarrow = require("pyarrow", purpose="writing Parquet")
    fields = [
        pyarrow.field(name, _arrow_type(pyarrow, feature))
        for name, feature in features.items()
        if feature["dtype"] != "video"
    ]
    told = {name: _hf_type(feature) for name, feature in features.items() if feature["dtype"] != "video"}
    return pyarrow.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": told}})})


def _arrow_type(pyarrow: Any, feature: Mapping[str, Any]) -> Any:
    if feature["dtype"] == "image":
        return pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    if feature["dtype"] == "string":
        return pyarrow.string()
    found, shape = pyarrow.from_numpy_dtype(np.dtype(feature["dtype"])), feature["shape"]
    if shape == [1]:
        return found
    if len(shape) == 1:
        return pyarrow.list_(found, shape[0])
    for _ in shape:
        found = pyarrow.list_(found)
    return found


def _hf_type(feature: Mapping[str, Any]) -> dict[str, Any]:
    dtype, shape = feature["dtype"], feature["shape"]
    if dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": dtype, "_type": "Value"}
    if shape == [1]:
        return value
    if len(shape) == 1:
        return {"feature": value, "length": shape[0], "_type": "Sequence"}
    return {"shape": shape, "dtype": dtype, "_type": f"Array{len(shape)}D"}


def arrow_column(values: NDArray[Any], arrow_type: Any) -> Any:
    """Rows of a key, (frames, *shape), as a column of that type."""
    pyarrow = require("pyarrow", purpose="writing Parquet")
    types = pyarrow.types
    if not types.is_nested(arrow_type):
        return pyarrow.array(np.ascontiguousarray(values).reshape(-1), arrow_type)
    column = pyarrow.array(np.ascontiguousarray(values).reshape(-1), _leaf(types, arrow_type))
    for axis in range(values.ndim - 1, 0, -1):
        rows, size = int(np.prod(values.shape[:axis])), values.shape[axis]
        if types.is_fixed_size_list(arrow_type):
            column = pyarrow.FixedSizeListArray.from_arrays(column, size)
        else:
            offsets = pyarrow.array(np.arange(rows + 1, dtype=np.int32) * size)
            column = pyarrow.ListArray.from_arrays(offsets, column)
    return column.cast(arrow_type)


def _leaf(types: Any, arrow_type: Any) -> Any:
    while types.is_nested(arrow_type):
        arrow_type = arrow_type.value_type
    return arrow_type
