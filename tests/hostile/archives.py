"""Hostile containers: programs, and zips that are not what they say."""

import io
import struct
import warnings
import zipfile

import torch
from torch import nn

from tests.hostile.cases import UNSAFE, Case, written
from tests.hostile.mutations import rezip
from tests.hostile.payloads import call
from tests.hostile.seeds import torch_bytes, weights


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(x)


def script_bytes():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated in new versions
        torch.jit.save(torch.jit.script(Net()), buffer)
    return buffer.getvalue()


def exported_bytes():
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), buffer)
    return buffer.getvalue()


def programs():
    def with_payload(make, canary):
        payload = call("os", "system", f"touch {canary}")
        return rezip(
            make(), lambda name, body: [(name, payload if name.endswith(("data.pkl", "constants.pkl")) else body)]
        )

    for name, make in (("TorchScript", script_bytes), ("torch.export", exported_bytes)):
        yield Case("TorchScript and .pt2", f"{name}, benign, as .pt", written(make), UNSAFE)
        yield Case("TorchScript and .pt2", f"{name}, benign, as .safetensors", written(make, "m.safetensors"), UNSAFE)

        def planted(folder, make=make):
            return written(with_payload(make, folder / "canary"))(folder)

        yield Case("TorchScript and .pt2", f"{name}, with a payload", planted, UNSAFE)
    old = zipped([("serialized_exported_program.json", b"{}"), ("version", b"5.1")])
    yield Case("TorchScript and .pt2", "torch.export before 2.7", written(old), UNSAFE)


def zipped(entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a duplicate name is the point of one case
        for name, data in entries:
            file.writestr(name, data)
    return buffer.getvalue()


def patched_directory(offset, value, entry=0):
    """Overwrite a field of one entry in the central directory of an honest file."""
    data = bytearray(torch_bytes(weights()))
    place = -1
    for _ in range(entry + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    data[place + offset : place + offset + len(value)] = value
    return bytes(data)


def zips():
    good = [("m/data.pkl", b"\x80\x02}."), ("m/version", b"3")]
    bomb = lambda: zipped([*good, ("m/data/0", bytes(3 * 10**7))], zipfile.ZIP_DEFLATED)  # noqa: E731
    yield Case("zip bomb", "30 MB in 30 KB", written(bomb))
    packed = lambda: zipped([("m/data.pkl", b"]" * 10**7)], zipfile.ZIP_DEFLATED)  # noqa: E731
    yield Case("zip bomb", "a compressed pickle", written(packed))
    yield Case(
        "zip bomb",
        "an entry that claims 2 GB",
        written(lambda: patched_directory(20, struct.pack("<II", 2**31, 2**31))),
    )
    yield Case(
        "zip bomb",
        "an entry that claims 2 GB in no bytes",
        written(lambda: patched_directory(24, struct.pack("<I", 2**31))),
    )
    many = lambda: zipped([*good, *((f"m/data/{n}", b"") for n in range(200_000))])  # noqa: E731
    yield Case("zip entries", "200,000", written(many))
    odd = (
        ("duplicate", [*good, ("m/version", b"4")]),
        ("duplicate but for case", [*good, ("m/Data.pkl", b"\x80\x02].")]),
        ("absolute", [*good, ("/etc/x", b"")]),
        ("parent folder", [*good, ("m/../../x", b"")]),
        ("backslash", [*good, ("m\\x", b"")]),
        ("two top folders", [*good, ("n/data.pkl", b"\x80\x02}.")]),
        ("no pickle", good[1:]),
        ("nothing", []),
        ("an npz", [("a.npy", b"x")]),
        ("no folder", [("data.pkl", b"\x80\x02}.")]),
    )
    for name, entries in odd:
        yield Case("zip entries", name, written(zipped(entries)))
    yield Case("zip entries", "encrypted", written(lambda: patched_directory(8, b"\x01\x00")))
    yield Case("zip entries", "compressed by lzma", written(lambda: patched_directory(10, b"\x0e\x00")))
    yield Case("zip entries", "starts elsewhere", written(lambda: patched_directory(42, struct.pack("<I", 9))))
    yield Case(
        "zip entries", "starts behind the file", written(lambda: patched_directory(42, struct.pack("<I", 2**31), 1))
    )
    yield Case("zip entries", "two on one place", written(lambda: patched_directory(42, struct.pack("<I", 0), 1)))
    yield Case("zip entries", "bytes before the first", written(lambda: zipped(good)[:4] + bytes(40) + zipped(good)))
    yield Case("zip entries", "a comment behind the end", written(lambda: torch_bytes(weights())[:-2] + b"\x01\x00x"))
    yield Case(
        "zip entries",
        "another name before the record",
        written(lambda: torch_bytes(weights()).replace(b"data.pkl", b"dote.pkl", 1)),
    )
    no_end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    yield Case("zip entries", "zip64 without its end", written(b"PK\x03\x04" + bytes(100) + no_end))
    for name, body in (
        ("byteorder", b"middle"),
        ("version", b"x"),
        ("version", b"99999"),
        (".storage_alignment", b"x"),
    ):

        def data(name=name, body=body):
            return rezip(
                torch_bytes(weights()), lambda entry, old: [(entry, body if entry.endswith(f"/{name}") else old)]
            )

        yield Case("zip entries", f"{name} is {body.decode()}", written(data))
