"""All hostile files, in the order of the list of cases."""

from tests.hostile import archives, files, pickles

GROUPS = (
    files.no_checkpoints,
    files.cut_files,
    files.noise,
    files.flipped,
    files.wrong_downloads,
    files.payload_files,
    files.modules,
    archives.programs,
    archives.zips,
    pickles.tensors,
    pickles.deep,
    files.contents,
    files.safetensors_files,
    files.special_files,
    files.honest_files,
)


def all_cases():
    """Every file, in the order of the list of cases."""
    return [case for group in GROUPS for case in group()]
