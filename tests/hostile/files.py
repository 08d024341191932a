"""Bad and odd files, by the rows of the list of cases that a loader must survive, each with the error it must give."""

import io
import json
import os
import pickle
import random
import zipfile

import torch
from torch import nn

from tests.hostile.archives import Net
from tests.hostile.cases import NONFINITE, UNSAFE, Case, written
from tests.hostile.payloads import PAYLOADS, in_zip
from tests.hostile.seeds import safetensors_bytes, torch_bytes, trainer_state, weights


def honest(kind):
    return {
        "zip": lambda: torch_bytes(weights()),
        "legacy": lambda: torch_bytes(weights(), legacy=True),
        "trainer zip": lambda: torch_bytes(trainer_state()),
        "safetensors": safetensors_bytes,
    }[kind]()


def suffix_of(kind):
    return "m.safetensors" if kind == "safetensors" else "m.pt"


KINDS = ("zip", "legacy", "trainer zip", "safetensors")


def no_checkpoints():
    def empty(folder):
        (folder / "runs").mkdir()
        return folder / "runs"

    yield Case("empty or missing folder", "empty", empty, "E_NO_CHECKPOINT")
    yield Case("empty or missing folder", "missing", lambda folder: folder / "gone", "E_USAGE")
    for name in ("m.pt", "m.safetensors", "m.ckpt", "m.pth"):
        yield Case("0 bytes", name, written(b"", name))


def cut_files():
    for kind in KINDS:
        for what, keep in (
            ("half", lambda n: n // 2),
            ("last 10 bytes", lambda n: n - 10),
            ("last byte", lambda n: n - 1),
            ("all but 100 bytes", lambda n: 100),
            ("one more byte", lambda n: n + 1),
        ):

            def data(kind=kind, keep=keep):
                whole = honest(kind)
                return (whole + b"\0")[: keep(len(whole))]

            yield Case("truncated", f"{kind}, {what}", written(data, suffix_of(kind)))


def noise():
    for size in (1, 4, 10, 100, 1000, 100_000):
        for name in ("m.pt", "m.safetensors"):
            data = b"\xab" + random.Random(size).randbytes(size - 1)
            yield Case("random bytes", f"{size} bytes, {name}", written(data, name))
    for name, data in (
        ("text", b"hello, this is text\n"),
        ("json", b'{"a": 1}'),
        ("png", b"\x89PNG\r\n\x1a\n" + bytes(50)),
        ("gzip", b"\x1f\x8b\x08" + bytes(50)),
        ("elf", b"\x7fELF" + bytes(60)),
        ("zeros", bytes(1000)),
        ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(99)),
        ("npy", b"\x93NUMPY\x01\0v\0{'descr': '<f8'}\n"),
        ("tar", _tar()),
        ("onnx", b"\x08\x08\x12\x07pytorch"),
        ("gguf", b"GGUF\x03\0\0\0" + bytes(40)),
    ):
        yield Case("random bytes", name, written(data))


def _tar():
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("storages", "tensors", "pickle"):  # the form of torch before 0.2
            entry = tarfile.TarInfo(name)
            entry.size = 3
            file.addfile(entry, io.BytesIO(b"\x80\x02."))
    return buffer.getvalue()


def flipped():
    weight = torch.randn(100, generator=torch.Generator().manual_seed(0))
    data = torch_bytes({"w": weight})
    start = data.index(weight.numpy().tobytes())
    for place in (0, 1, 57, 200, 399):
        changed = bytearray(data)
        changed[start + place] ^= 1 << place % 8
        yield Case("one bit flipped", f"weight byte {place}", written(bytes(changed)))
    changed = bytearray(data)
    changed[data.index(b"cpu")] ^= 1
    yield Case("one bit flipped", "in the pickle", written(bytes(changed)))


def wrong_downloads():
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    pages = (
        b"<!DOCTYPE html><html>Sign in</html>",
        b"\n\n <html>",
        b"<?xml version='1.0'?><Error/>",
        b"<!-- moved -->",
    )
    for name in ("m.pt", "m.safetensors"):
        yield Case("Git LFS pointer", name, written(pointer, name))
        for number, page in enumerate(pages):
            yield Case("web page", f"{number}, {name}", written(page, name))


def modules():
    for name, make in (
        ("nn.Linear", lambda: nn.Linear(2, 2)),
        ("a class of its own", Net),
        ("under a key", lambda: {"model": nn.Sequential(nn.ReLU())}),
    ):
        for legacy in (False, True):
            data = lambda make=make, legacy=legacy: torch_bytes(make(), legacy=legacy)  # noqa: E731
            yield Case("whole pickled module", f"{name}, {'legacy' if legacy else 'zip'}", written(data), UNSAFE)
    yield Case("blocked globals", "random.Random", written(lambda: torch_bytes({"rng": random.Random(0)})), UNSAFE)
    yield Case("blocked globals", "a bare pickle of plain values", written(pickle.dumps({"a": 1})), UNSAFE)
    yield Case("blocked globals", "protocol 4", written(lambda: torch_bytes({"a": [1]}, pickle_protocol=4)), UNSAFE)


def contents():
    for name, content in (
        ("a list", [torch.zeros(1)]),
        ("a tensor", torch.zeros(1)),
        ("a number", 3),
        ("None", None),
        ("an empty dict", {}),
        ("no tensors", {"epoch": 3}),
        ("a dict of dicts", {"a": {"b": 1}}),
    ):
        yield Case("no dict of tensors", name, written(lambda content=content: torch_bytes(content)))
    for name, value in (("NaN", float("nan")), ("Inf", float("inf")), ("-Inf", float("-inf"))):
        for kind, data in (("zip", torch_bytes), ("safetensors", safetensors_bytes)):
            make = lambda data=data, value=value: data({"w": torch.tensor([1.0, value])})  # noqa: E731
            yield Case("NaN and Inf", f"{name}, {kind}", written(make, suffix_of(kind)), NONFINITE)


def header(text_or_object, data=b"", length=None):
    body = text_or_object if isinstance(text_or_object, bytes) else json.dumps(text_or_object).encode()
    return (len(body) if length is None else length).to_bytes(8, "little") + body + data


def entry(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def safetensors_files():
    good = {"w": entry(0, 8, [2])}
    same = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for name, data in (
        ("header of 0 bytes", header(b"")),
        ("header of 7 bytes", header(b'{"a":1}')),
        ("header of 10^12 bytes", header(good, bytes(8), 10**12)),
        ("header of 2^64 - 1 bytes", header(good, bytes(8), 2**64 - 1)),
        ("7 bytes in all", b"\x05\0\0\0\0\0\0"),
        ("bad JSON", header(b'{"w": nope}')),
        ("cut JSON", header(b'{"w":{"dtype"')),
        ("no UTF-8", header(b'{"\xff\xff":1}')),
        ("a list", header(b"[1, 2]")),
        ("deep JSON", header(b'{"a":' + b"[" * 100_000)),
        ("overlaps", header({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12))),
        ("one place twice", header({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, bytes(4))),
        ("a hole", header({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12))),
        ("a hole at the start", header({"a": entry(4, 8, [1])}, bytes(8))),
        ("trailing bytes", header(good, bytes(9))),
        ("bytes missing", header(good, bytes(7))),
        ("wrong shape", header({"w": entry(0, 8, [3])}, bytes(8))),
        ("a shape of 2^64", header({"w": entry(0, 8, [2**32, 2**32])}, bytes(8))),
        ("negative shape", header({"w": entry(0, 8, [-2])}, bytes(8))),
        ("a shape that overflows", header({"w": entry(0, 0, [2**63, 4])})),
        ("end before start", header({"w": entry(8, 0, [2])}, bytes(8))),
        ("negative start", header({"w": entry(-8, 0, [2])}, bytes(8))),
        ("unknown dtype", header({"w": entry(0, 8, [2], "F33")}, bytes(8))),
        ("no dtype", header({"w": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4))),
        ("one offset", header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, bytes(4))),
        ("duplicate key", header(b"{" + same + b"," + same + b"}", bytes(4))),
        ("duplicate field", header(b'{"w":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))),
        ("duplicate metadata", header(b'{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"},' + same + b"}", bytes(4))),
        ("metadata of numbers", header(b'{"__metadata__":{"a":1},' + same + b"}", bytes(4))),
        ("no tensors", header({})),
    ):
        yield Case("safetensors headers", name, written(data, "m.safetensors"))


def special_files():
    row = "special files"

    def fifo(folder):
        os.mkfifo(folder / "m.pt")
        return folder / "m.pt"

    def link(target):
        def make(folder):
            (folder / "m.pt").symlink_to(target)
            return folder / "m.pt"

        return make

    def loop(folder):
        (folder / "n.pt").symlink_to(folder / "m.pt")
        return link(folder / "n.pt")(folder)

    def folder_as_file(folder):
        (folder / "x.pt").mkdir()
        return folder / "x.pt"

    def locked(folder):
        path = written(lambda: torch_bytes(weights()))(folder)
        path.chmod(0)
        return path

    def socket_file(folder):
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(folder / "m.pt"))
        return folder / "m.pt"

    for name, make, code in (
        ("fifo", fifo, None),
        ("link to /dev/zero", link("/dev/zero"), None),
        ("link to /dev/null", link("/dev/null"), None),
        ("socket", socket_file, None),
        ("loop of links", loop, None),
        ("dangling link", link("nowhere.pt"), None),
        ("folder named x.pt", folder_as_file, None),
        ("link to /proc/self/mem", link("/proc/self/mem"), None),
    ):
        yield Case(row, name, make, code or "any")
    if os.geteuid():
        yield Case(row, "unreadable", locked)


def honest_files():
    """Odd, and right: these must load."""
    row = "odd files that load"
    state = weights()
    for name, content in (
        ("under state_dict", {"state_dict": state, "epoch": 3}),
        ("under model", {"model": state}),
        ("prefix module.", {f"module.{n}": t for n, t in state.items()}),
        ("what trainers save", trainer_state()),
        ("parameters", {n: nn.Parameter(t.float()) for n, t in state.items()}),
        ("tied", {"a": state["fc.weight"], "b": state["fc.weight"]}),
        ("a view", {"a": torch.arange(100.0)[10:20]}),
        ("transposed", {"a": torch.ones(3, 2).t()}),
        ("complex, conjugated", {"a": torch.ones(2, dtype=torch.complex64).conj()}),
        ("empty", {"a": torch.zeros(0, 3)}),
        ("scalars", {"a": torch.tensor(1), "b": torch.tensor(True)}),
        ("half and bfloat16", {"a": torch.ones(2).half(), "b": torch.ones(2).bfloat16()}),
        ("uint16 and float8", {"a": torch.ones(2, dtype=torch.uint16), "b": torch.ones(2).to(torch.float8_e5m2)}),
        ("a module's state", nn.BatchNorm1d(3).state_dict()),
    ):
        yield Case(row, name, written(lambda content=content: torch_bytes(content)), None)
    for name in (
        "a b.pt",
        "line\nbreak.pt",
        "\N{SNOWMAN}.pt",
        "-x.pt",
        "é.pth",
        "m.pth.tar",
        "torch.load.pt",
        "m.safetensors",
    ):
        yield Case(row, f"named {name!r}", written(lambda: torch_bytes(weights()), name), None)
    yield Case(row, "safetensors named .pt", written(safetensors_bytes), None)
    yield Case(
        row,
        "safetensors with metadata",
        written(lambda: safetensors_bytes(metadata={"format": "pt"}), "m.safetensors"),
        None,
    )
    yield Case(row, "legacy", written(lambda: torch_bytes(weights(), legacy=True)), None)
    cuda = lambda legacy: torch_bytes(weights(), legacy=legacy).replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")  # noqa: E731
    tagged = lambda: in_zip(rezip_pickle().replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"))  # noqa: E731
    yield Case(row, "CUDA tensors, no GPU", written(tagged), None)
    yield Case(row, "CUDA tensors, legacy", written(lambda: cuda(True)), None)

    def folder_with_code(folder):
        for name in ("torch.py", "numpy.py", "config.py", "conftest.py", "sitecustomize.py"):
            (folder / name).write_text(f"open({str(folder / 'canary')!r}, 'w')\n")
        (folder / "config.json").write_text('{"auto_map": {"AutoModel": "config.Model"}, "trust_remote_code": true}')
        return written(lambda: torch_bytes(weights()))(folder)

    yield Case(row, "beside torch.py and a config that asks for code", folder_with_code, None)


def rezip_pickle():
    with zipfile.ZipFile(io.BytesIO(torch_bytes(weights()))) as file:
        return file.read("archive/data.pkl")


def payload_files():
    for payload in PAYLOADS:

        def make(folder, payload=payload):
            return written(payload.make(str(folder / "canary")))(folder)

        yield Case("pickles with a payload", payload.name, make, payload.code)
