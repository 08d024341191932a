"""A folder that is one member -> its content, with the reader that its kind needs."""

from __future__ import annotations

from ensexport.members.checkpoint import Ledger, LoadedFile, load_file
from ensexport.members.dcp import load_dcp
from ensexport.members.deepspeed import refuse_partitioned
from ensexport.members.file_sets import neighbour
from ensexport.members.folders import MemberFolder
from ensexport.members.sharded import load_sharded
from ensexport.members.trust import NO_TRUST, Trust


def load_folder(found: MemberFolder, *, trust: Trust = NO_TRUST, ledger: Ledger | None = None) -> LoadedFile:
    """Read a folder that `member_folder` found.

    Args:
        found: What lies where.
        trust: What may run code, as for `load_file`. A distributed checkpoint never may.
        ledger: As for `load_file`.

    Raises:
        CheckpointError: See `load_file`, `load_sharded`, `load_dcp` and `refuse_partitioned`; or the weights are a link
            that leaves the folder.
        UnsafeCheckpointError: See there.
    """
    if found.kind == "dcp":
        return load_dcp(found.source)
    if found.kind in {"sharded-safetensors", "sharded-torch"}:
        return load_sharded(found.source, trust=trust, ledger=ledger)
    folder = found.source.parent
    loaded = load_file(neighbour(folder, found.source.name, named_in=folder), trust=trust, ledger=ledger)
    if found.kind == "deepspeed":
        refuse_partitioned(loaded.content, str(found.source))
    return loaded
