"""The `config.json` of a member's folder: read as data, and compared, because one network is built for all members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ensexport.errors import StackError
from ensexport.members.differences import ABSENT, comparison_key, differing
from ensexport.members.json_files import read_json_object
from ensexport.members.scalars import Scalar, flatten

CONFIG_NAME = "config.json"
_MAX_BYTES = 4 * 2**20
"""A network of 21,843 classes names each twice, in about 2 MB."""
_MAX_DEPTH = 100
_MAX_SHOWN = 5


def read_config(path: str | Path) -> dict[str, Scalar]:
    """Return the values of a `config.json`, flat (`vision_config.hidden_size`, `architectures.0`), all of them.

    Args:
        path: The file. Nothing it says is done.

    Raises:
        CheckpointError: It cannot be read, is larger than 4 MiB, or holds no JSON object.
    """
    content = read_json_object(path, max_bytes=_MAX_BYTES)
    flat: dict[str, Scalar] = {}
    for name, value in content.items():
        flat |= flatten(value, name, max_entries=_MAX_BYTES, max_depth=_MAX_DEPTH)
    return flat


def check_configs_agree(labels: Sequence[str], configs: Sequence[Mapping[str, Scalar] | None]) -> None:
    """Refuse members whose configurations differ in more than the run: their weights would go into one network.

    Args:
        labels: How messages name the members, for example `member 3 (runs/s3)`.
        configs: One member each, as `read_config` returned it; None for a member that has none.

    Raises:
        StackError: An option that may shape the network differs; names it, both members and both values.
    """
    known = [(label, config) for label, config in zip(labels, configs, strict=True) if config is not None]
    shaping = differing([config for _, config in known]).shaping
    if not shaping:
        return
    texts = []
    details = []
    for name, values in shaping.items():
        other = next(index for index, value in enumerate(values) if comparison_key(value) != comparison_key(values[0]))
        first, second = known[0][0], known[other][0]
        texts.append(f"{name!r}: expected {_text(values[0])} as in {first}, got {_text(values[other])} in {second}")
        details.append({"option": name, "values": list(values)})
    more = f"; and {len(texts) - _MAX_SHOWN} more" if len(texts) > _MAX_SHOWN else ""
    raise StackError(
        f"the members' configurations differ: {'; '.join(texts[:_MAX_SHOWN])}{more}.",
        hint="All weights go into one network: stack only members trained with the same config, or mend the "
        f"{CONFIG_NAME} that is wrong.",
        differences=details[:_MAX_SHOWN],
        n_differences=len(texts),
    )


def _text(value: Scalar) -> str:
    return ABSENT if value == ABSENT else repr(value)
