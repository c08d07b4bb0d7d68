"""The fields of diffdistill.json that decide what a model draws, checked where they are read.

The digest of the record finds damage; what somebody wrote by hand has none, and may be of any type.
"""

from typing import Any

from diffdistill.errors import CheckpointError
from diffdistill.pipelines.folder import METADATA

ROLES = ("teacher", "student", "aligned")
"""What a model is: students are sampled at their own few levels, the others by a solver."""
DECODERS = "decoders"  # of a student with one encoder pass: the levels of its decoders
MOST = 1e30  # of a noise level, as of those of a scheduler


def check_record(record: dict[str, Any]) -> None:
    """CheckpointError for a field of a type, or in a range, that no record of ours has; absent ones are right."""
    if "_class_name" in record:
        raise CheckpointError(f"{METADATA} holds a config of diffusers and no record; make or fetch the folder again")
    size = "a list of three whole numbers from 1"
    rules = {
        "role": (record.get("role") in ROLES, " or ".join(ROLES)),
        "levels": (_levels(record.get("levels")), f"a list of numbers above 0 to {MOST:g}"),
        DECODERS: (_decoders(record.get(DECODERS), record.get("levels")), "falling levels from its own"),
        "null_class": (_none_or_whole(record.get("null_class"), 0), "null or a whole number from 0"),
        "num_classes": (_none_or_whole(record.get("num_classes"), 1), "null or a whole number from 1"),
        "class_names": (_names(record.get("class_names"), record.get("num_classes")), "a text for each class"),
        "image_shape": (_shape(record.get("image_shape")), size),
        "guidance_scale": (_none_or_number(record.get("guidance_scale")), f"null or a number from 0 to {MOST:g}"),
        "noise": (_noise(record.get("noise")), "a law, gaussian or student_t with a dimension above 2"),
        "path": (isinstance(record.get("path"), str), "a text"),
        "call": (_call(record.get("call")), "an object whose height is a whole number and guidance_scale a number"),
    }
    for key, (right, allowed) in rules.items():
        if key in record and not right:
            raise CheckpointError(
                f"{METADATA} has the {key} {record[key]!r:.60}, and it must be {allowed}; make or fetch the folder "
                f"again"
            )


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 1 << 31


def _none_or_whole(value: Any, low: int) -> bool:
    return value is None or _whole(value, low)


def _none_or_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST)


def _levels(value: Any) -> bool:
    return isinstance(value, list) and all(level not in (None, 0) and _none_or_number(level) for level in value)


def _decoders(value: Any, levels: Any) -> bool:
    if not (_levels(value) and _levels(levels)):
        return False
    return len(value) > 1 and value[:1] == levels and value == sorted(set(value), reverse=True)


def _names(value: Any, count: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and count in (None, len(value))


def _shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_whole(side, 1) for side in value)


def _noise(value: Any) -> bool:
    if not isinstance(value, dict) or not {"law"} <= value.keys() <= {"law", "dimension"}:
        return False
    dimension = value.get("dimension")
    if value["law"] == "gaussian":
        return dimension is None
    return value["law"] == "student_t" and dimension is not None and _none_or_number(dimension) and dimension > 2


def _call(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return _none_or_whole(value.get("height", 1), 1) and _none_or_number(value.get("guidance_scale"))
