"""Ways to damage a file: seeded, so that each number names one file for ever."""

import io
import pickletools
import random
import struct
import zipfile

NASTY_INTS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
PICKLE_CODES = [ord(code.code) for code in pickletools.opcodes]
LINES = (b"cposix\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nTensor\n", b"ctorch.storage\nUntypedStorage\n")


def flip_bits(data, source):
    for _ in range(source.choice((1, 1, 1, 3, 10))):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def cut(data, source):
    del data[source.randrange(len(data)) :]


def drop_run(data, source):
    start = source.randrange(len(data))
    del data[start : start + source.choice((1, 2, 8, 64))]


def double_run(data, source):
    start = source.randrange(len(data))
    data[start:start] = data[start : start + source.choice((1, 4, 32, 300))]


def move_run(data, source):
    start, target, size = source.randrange(len(data)), source.randrange(len(data)), source.choice((4, 16, 64))
    data[target : target + size] = data[start : start + size]


def fill_run(data, source):
    start, size = source.randrange(len(data)), source.choice((1, 2, 4, 8, 30))
    data[start : start + size] = bytes([source.choice((0, 0xFF, 0x2E, source.randrange(256)))]) * size


def set_int(data, source):
    form = source.choice("BHIQ")
    packed = struct.pack(f"<{form}", source.choice(NASTY_INTS) % 2 ** (8 * struct.calcsize(f"<{form}")))
    start = source.randrange(len(data))
    data[start : start + len(packed)] = packed


def edit_head(data, source):
    start = source.randrange(min(len(data), 400))
    data[start] = source.randrange(256)


def edit_end(data, source):
    start = len(data) - 1 - source.randrange(min(len(data), 700))  # the directory of a zip
    data[start] = source.choice((0, 1, 0xFF, source.randrange(256)))


BYTE_MUTATIONS = (flip_bits, cut, drop_run, double_run, move_run, fill_run, set_int, edit_head, edit_end)


def edit_pickle(data, source):
    """Change one pickle instruction: another code, another argument, one more, one less, or a name that is blocked."""
    places = _instructions(data)
    start = source.choice(places)
    kind = source.randrange(5)
    if kind == 0:
        data[start] = source.choice(PICKLE_CODES)
    elif kind == 1:
        other = source.choice(places)
        data[start:start] = data[other : other + source.choice((1, 2, 10, 40))]
    elif kind == 2:
        del data[start : next((place for place in places if place > start), start + 1)]
    elif kind == 3:
        packed = struct.pack("<I", source.choice(NASTY_INTS) % 2**32)
        data[start + 1 : start + 1 + len(packed)] = packed
    else:
        data[start:start] = source.choice(LINES)


def _instructions(data):
    places = [0]
    file = io.BytesIO(bytes(data))
    try:
        for _ in range(6):  # a legacy file is five pickles and bytes
            begin = file.tell()
            places += [begin + place for _, _, place in pickletools.genops(file.read())]
            file.seek(begin + places[-1] - begin + 1)
    except ValueError:
        pass
    return [place for place in places if place < len(data)] or [0]


def rezip(data, change):
    """Rewrite a zip with one change to its records, so that checksums and directory are right again."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            for name, body in change(entry.filename, old.read(entry)):
                new.writestr(name, body)
    return buffer.getvalue()


def mutate_torch_zip(data, source):
    """Half of all files keep an honest zip around a damaged record, so that the damage gets past the checksums."""
    if source.random() < 0.4:
        return mutate_bytes(data, source)
    target = source.choice(
        ("data.pkl",) * 6 + ("byteorder", "version", "data/0", ".format_version", ".storage_alignment")
    )

    def change(name, body):
        if name.partition("/")[2] != target:
            return [(name, body)]
        edited = bytearray(body)
        for _ in range(source.choice((1, 1, 2, 4))):
            if edited:
                (edit_pickle if target == "data.pkl" and source.random() < 0.6 else source.choice(BYTE_MUTATIONS))(
                    edited, source
                )
        return [(name, bytes(edited))]

    return rezip(data, change)


def mutate_legacy(data, source):
    if source.random() < 0.5:
        return mutate_bytes(data, source)
    edited = bytearray(data)
    edit_pickle(edited, source)
    return bytes(edited)


def mutate_safetensors(data, source):
    """Bytes, or a header that is honest JSON with dishonest numbers."""
    if source.random() < 0.5:
        return mutate_bytes(data, source)
    size = int.from_bytes(data[:8], "little")
    header = bytearray(data[8 : 8 + size])
    for _ in range(source.choice((1, 1, 2))):
        digits = [place for place, byte in enumerate(header) if 48 <= byte <= 57]
        start = source.choice(digits)
        header[start : start + 1] = str(source.choice((*NASTY_INTS, source.randrange(100)))).encode()
    length = len(header) if source.random() < 0.8 else source.choice(NASTY_INTS)
    return length.to_bytes(8, "little") + bytes(header) + data[8 + size :]


def mutate_bytes(data, source):
    edited = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 5))):
        if edited:
            source.choice(BYTE_MUTATIONS)(edited, source)
    return bytes(edited)


def source_of(seed, number):
    return random.Random(f"{seed}/{number}")
