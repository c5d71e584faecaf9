"""Finds the ClassLabel features that Hugging Face's `datasets` describes in the schema of an Arrow or Parquet file, and
replaces their numbers by their names."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

# ((path, names), …). A path has the keys that lead to the number; "*" stands for every item of a list.
Labels = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
UNLABELLED = -1  # the number in rows without a label, such as those of test sets; it has no name


def labels_in(metadata: Mapping[bytes, bytes]) -> Labels:
    """Returns the ClassLabel features in the metadata of a schema; () if `datasets` did not write it.

    >>> feature = {"names": ["no", "yes"], "_type": "ClassLabel"}
    >>> labels_in({b"huggingface": json.dumps({"info": {"features": {"label": feature}}}).encode()})
    ((('label',), ('no', 'yes')),)
    """
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return ()
    return tuple(_labels(features, ()))


def _labels(feature: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    if isinstance(feature, list) and len(feature) == 1:  # an earlier notation of lists
        yield from _labels(feature[0], (*path, "*"))
    elif isinstance(feature, dict) and not isinstance(feature.get("_type"), str):  # an object
        for key, inner in feature.items():
            yield from _labels(inner, (*path, key))
    elif isinstance(feature, dict) and feature["_type"] == "ClassLabel" and feature.get("names"):
        yield path, tuple(map(str, feature["names"]))
    elif isinstance(feature, dict) and isinstance(inner := feature.get("feature"), dict | list):
        is_of_objects = isinstance(inner, dict) and not isinstance(inner.get("_type"), str)
        if feature["_type"] == "Sequence" and is_of_objects:  # is stored as an object of lists
            for key, part in inner.items():  # type: ignore[union-attr]
                yield from _labels(part, (*path, key, "*"))
        else:
            yield from _labels(inner, (*path, "*"))


def named(example: Mapping[str, Any], labels: Labels) -> Mapping[str, Any]:
    """Returns the example with names in place of numbers. null and UNLABELLED stay. Raises ValueError for a number
    without a name.

    >>> named({"tags": [0, 1, -1]}, ((("tags", "*"), ("O", "B")),))
    {'tags': ['O', 'B', -1]}
    """
    for path, names in labels:
        example = _named(example, path, names)
    return example


def _named(value: Any, path: tuple[str, ...], names: tuple[str, ...]) -> Any:
    if value is None:
        return None
    if not path:
        if value != UNLABELLED and not 0 <= value < len(names):
            raise ValueError(f"the label {value} has no name; the names are {', '.join(names[:20])}")
        return value if value == UNLABELLED else names[value]
    if path[0] == "*":
        return [_named(item, path[1:], names) for item in value]
    return {**value, path[0]: _named(value.get(path[0]), path[1:], names)} if path[0] in value else value
