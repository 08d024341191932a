"""Pickles that name nothing dangerous and lie: about tensors, storages, depth and size."""

import struct
import warnings

import torch

from tests.hostile.cases import BAD, UNSAFE, Case, written
from tests.hostile.payloads import STORAGE, in_legacy, in_zip, text
from tests.hostile.seeds import torch_bytes, weights


def tensor(
    offset=0, size=(4,), stride=(1,), storage=STORAGE, function="torch._utils\n_rebuild_tensor_v2", more=b"\x89N"
):
    """The pickle of `{'w': tensor}`, with numbers of one's own; its storage is data/0 of 24 bytes."""

    def number(value):
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    place = storage + number(offset) + b"(" + b"".join(map(number, size)) + b"t(" + b"".join(map(number, stride)) + b"t"
    return b"\x80\x02}" + text("w") + f"c{function}\n".encode() + b"(" + place + more + b"tRs."


def storage_id(kind="torch\nFloatStorage", key="0", numel=6):
    return (
        b"("
        + text("storage")
        + f"c{kind}\n".encode()
        + text(key)
        + text("cpu")
        + b"J"
        + struct.pack("<i", numel)
        + b"tQ"
    )


def tensors():
    row = "stride-0 and impossible tensors"
    whole = storage_id()
    yield Case(row, "a terabyte by stride 0", written(lambda: torch_bytes({"x": torch.zeros(1).expand(10**6, 10**6)})))
    yield Case(row, "16 MB by stride 0", written(lambda: torch_bytes({"x": torch.zeros(1).expand(2000, 2000)})))
    yield Case(
        row, "a terabyte, legacy", written(lambda: torch_bytes({"x": torch.zeros(1).expand(10**6, 10**6)}, legacy=True))
    )
    views = lambda: (lambda whole: {str(n): whole[n:] for n in range(20)})(torch.zeros(300_000))  # noqa: E731
    yield Case(row, "many views of one storage", written(lambda: torch_bytes(views())))
    for name, facts in (
        ("negative size", {"size": (-4,)}),
        ("negative stride", {"stride": (-1,)}),
        ("negative offset", {"offset": -1}),
        ("offset behind the end", {"offset": 10**9}),
        ("strides missing", {"size": (2, 2)}),
        ("65 dimensions", {"size": (1,) * 65, "stride": (1,) * 65}),
        ("2^63 elements", {"size": (2**31, 2**32), "stride": (0, 0)}),
        ("2^70 elements", {"size": (2**47, 2**47), "stride": (0, 0)}),
        ("a terabyte without stride 0", {"size": (2**38,)}),
        ("one element too many", {"size": (7,)}),
        ("a huge stride", {"size": (2,), "stride": (2**62,)}),
        ("requires_grad a number", {"more": b"K\x01N"}),
        ("hooks", {"more": b"\x89}K\x00K\x00s"}),
        ("flags", {"more": b"\x89N}" + text("x") + b"\x88s"}),
    ):
        yield Case(row, name, written(lambda facts=facts: in_zip(tensor(**{"storage": whole, **facts}))))

    row = "record shorter than its tensor"
    for name, storage in (
        ("7 elements in 24 bytes", storage_id(numel=7)),
        ("10^9 elements", storage_id(numel=10**9)),
        ("double for float", storage_id("torch\nDoubleStorage")),
        ("fewer than it has", storage_id(numel=4)),
        ("no such record", storage_id(key="77")),
        ("a record outside", storage_id(key="../version")),
        ("negative", storage_id(numel=-1)),
        ("another record", storage_id(key="../data.pkl")),
        ("an unknown type", storage_id("torch\nHugeStorage")),
    ):
        yield Case(
            row,
            name,
            written(lambda storage=storage: in_zip(tensor(storage=storage))),
            UNSAFE if "type" in name else BAD,
        )
    twice = b"\x80\x02]" + storage_id() + b"a" + storage_id("torch\nIntStorage") + b"a."
    yield Case(row, "one record of two types", written(lambda: in_zip(twice)))
    legacy = lambda: torch_bytes({"w": torch.zeros(4)}, legacy=True)  # noqa: E731
    yield Case(row, "legacy, cut storage", written(lambda: legacy()[:-4]))
    yield Case(row, "legacy, another count", written(lambda: legacy()[:-24] + struct.pack("<q", 10**12) + bytes(16)))
    yield Case(row, "legacy, negative count", written(lambda: legacy()[:-24] + struct.pack("<q", -4) + bytes(16)))
    yield Case(
        row, "legacy, storage never filled", written(lambda: in_legacy(tensor(storage=storage_id()[:-2] + b"NtQ")))
    )

    row = "meta, sparse, quantised tensors"
    eye = torch.eye(2)
    for name, make in (
        ("meta", lambda: torch.zeros(2, device="meta")),
        ("coo", eye.to_sparse),
        ("quantised by channel", lambda: _by_channel(eye)),
        ("quantised", lambda: torch.quantize_per_tensor(eye, 0.1, 0, torch.qint8)),
        ("csr", lambda: _csr(eye)),
        ("jagged", _jagged),
    ):
        code = UNSAFE if name == "jagged" else BAD
        yield Case(row, name, written(lambda make=make: _quietly(lambda: torch_bytes({"w": make()}))), code)
    yield Case(
        row, "coo with an index far outside", written(lambda: _quietly(lambda: torch_bytes({"w": _wild_sparse()})))
    )
    yield Case(
        row,
        "csr beside the weights",
        written(lambda: _quietly(lambda: torch_bytes({"state_dict": weights(), "x": [_csr(eye)]}))),
    )


def _quietly(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse CSR, nested and quantised tensors are beta or deprecated
        return make()


def _csr(eye):
    return eye.to_sparse_csr()


def _by_channel(eye):
    return torch.quantize_per_channel(eye, torch.ones(2), torch.zeros(2), 0, torch.qint8)


def _jagged():
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(1)], layout=torch.jagged)


def _wild_sparse():
    return torch.sparse_coo_tensor([[2**40]], [1.0], (3,), check_invariants=False, is_coalesced=True)


def deep():
    """Pickles of few bytes that fill memory, never end, or end the process."""
    row = "deep and unfolding pickles"
    laughs = b"]" + b"".join(b"q" + bytes([n]) + b"](" + (b"h" + bytes([n])) * 10 + b"e" for n in range(30))
    for name, body in (
        ("a deep tuple as a key, which ends the process in torch 2.13", b"})" + b"\x85" * 200_000 + b"Ns."),
        ("a deep tuple", b")" + b"\x85" * 100_000 + b"."),
        ("deep lists", b"(" * 50_000 + b"t" * 50_000 + b"."),
        ("a list in itself", b"]q\x00h\x00a."),
        ("30 lists of ten", laughs + b"."),
        ("a quarter of a million lists", b"(" + b"]" * 250_000 + b"t."),
        ("a quarter of a million sets", b"(" + b"\x8f" * 250_000 + b"t."),
        ("a quarter of a million marks", b"(" * 250_000 + b"."),
        ("memo at 2^32", b"Nr\xff\xff\xff\xff" * 9 + b"j\x00\x00\x00\x01."),
        ("a text of 4 GB", b"X\xff\xff\xff\xff."),
        ("nothing", b""),
        ("only STOP", b"."),
        ("a mark without its list", b"t."),
        ("no STOP", b"N"),
        ("a dict of an odd number", b"}(Nu."),
        ("a key that is a list", b"}]Ns."),
        ("an append to a number", b"K\x01K\x01a."),
        ("a number of 255 bytes as a key", b"}\x8a\xff" + b"\x7f" * 255 + b"Ns."),
        ("an unknown persistent id", text("x") + b"Q."),
        ("a name without an end", b"ctorch._utils"),
        ("a name of a megabyte", b"c" + b"a" * 10**6 + b"\nb\n."),
        ("text that is no UTF-8", b"U\x01\xff."),
        ("a set of lists", b"c__builtin__\nset\n]]a\x85R."),
        ("an OrderedDict of numbers", b"ccollections\nOrderedDict\nK\x05\x85R."),
        ("a Counter of a list", b"ccollections\nCounter\n]\x85R."),
        ("a shape of texts", b"ctorch\nSize\n(" + text("x") + b"t\x85R."),
        ("a device that is a list", b"ctorch\ndevice\n]\x85R."),
        ("a device that no one knows", b"ctorch\ndevice\n" + text("moon:0") + b"\x85R."),
        ("a complex number of texts", b"c__builtin__\ncomplex\n" + text("1") + b"\x85R."),
        ("a bytearray of a number", b"c__builtin__\nbytearray\nJ\x00\x00\x00\x40\x85R."),
    ):
        yield Case(row, name, written(lambda body=body: in_zip(b"\x80\x02" + body)))
