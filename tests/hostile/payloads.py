"""Pickles that would create a canary file, or worse, if anything in them were run."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from tests.hostile.mutations import rezip
from tests.hostile.seeds import torch_bytes, weights

STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"  # data/0, 4 floats
)


@dataclass(frozen=True)
class Payload:
    """One file: `make(canary)` gives its bytes."""

    name: str
    make: Callable[[str], bytes]
    code: str = "E_UNSAFE_CHECKPOINT"


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def call(module, name, *arguments, protocol=2):
    """One pickle that calls `module.name` with texts, in the way of each protocol."""
    if protocol < 2:
        values = b"".join(b"V" + item.encode("raw_unicode_escape") + b"\n" for item in arguments)
        return b"c" + f"{module}\n{name}\n".encode() + b"(" + values + b"tR."
    values = b"(" + b"".join(map(text, arguments)) + b"tR."
    head = b"\x80" + bytes([protocol])
    if protocol < 4:
        return head + b"c" + f"{module}\n{name}\n".encode() + values
    return head + text(module) + text(name) + b"\x93" + values  # STACK_GLOBAL


def in_zip(pickled):
    """An honest zip of `torch.save` around a pickle."""
    return rezip(torch_bytes(weights()), lambda name, body: [(name, pickled if name.endswith("data.pkl") else body)])


def beside_weights(module, name, *arguments):
    """A whole state dict, and after it a call under another key."""
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"state_dict": weights()}))) as file:
        honest = file.read("archive/data.pkl")
    return in_zip(honest[:-1] + text("hook") + call(module, name, *arguments)[2:-1] + b"s.")


def in_legacy(pickled):
    """The five pickles in a row of torch before 1.6, the fourth of them given."""
    honest = torch_bytes({}, legacy=True)
    file = io.BytesIO(honest)
    for _ in range(3):
        pickle.load(file)
    return honest[: file.tell()] + pickled + pickle.dumps([], protocol=2)


# What each is called with; {c} is the canary's path.
CALLS = (
    ("os", "system", "touch {c}"),
    ("posix", "system", "touch {c}"),
    ("nt", "system", "touch {c}"),
    ("os", "popen", "touch {c}"),
    ("os", "execvp", "touch", "{c}"),
    ("os", "mkdir", "{c}"),
    ("builtins", "eval", "open('{c}', 'w')"),
    ("__builtin__", "eval", "open('{c}', 'w')"),
    ("builtins", "exec", "open('{c}', 'w')"),
    ("__builtin__", "execfile", "{c}.py"),
    ("builtins", "getattr", "os", "system"),
    ("builtins", "open", "{c}", "w"),
    ("builtins", "__import__", "antigravity"),
    ("builtins", "compile", "open('{c}', 'w')", "x", "exec"),
    ("builtins", "breakpoint"),
    ("importlib", "import_module", "antigravity"),
    ("runpy", "run_path", "{c}.py"),
    ("runpy", "run_module", "antigravity"),
    ("subprocess", "getoutput", "touch {c}"),
    ("subprocess", "Popen", "touch {c}"),
    ("commands", "getoutput", "touch {c}"),
    ("pty", "spawn", "touch {c}"),
    ("ctypes", "CDLL", "{c}.so"),
    ("pip", "main", "install"),
    ("pip._internal", "main", "install"),
    ("operator", "attrgetter", "system"),
    ("operator", "methodcaller", "system", "touch {c}"),
    ("functools", "partial", "os.system"),
    ("functools", "reduce", "f", "x"),
    ("timeit", "timeit", "open('{c}', 'w')"),
    ("cProfile", "run", "open('{c}', 'w')"),
    ("pdb", "run", "open('{c}', 'w')"),
    ("doctest", "debug_script", "open('{c}', 'w')"),
    ("code", "interact", "x"),
    ("webbrowser", "open", "file://{c}"),
    ("shutil", "copyfile", "/etc/hostname", "{c}"),
    ("io", "open", "{c}", "w"),
    ("_io", "FileIO", "{c}", "w"),
    ("logging", "FileHandler", "{c}"),
    ("tempfile", "mkdtemp", "x", "y", "{c}"),
    ("sqlite3", "connect", "{c}"),
    ("zipfile", "ZipFile", "{c}", "w"),
    ("pickle", "loads", "x"),
    ("_pickle", "loads", "x"),
    ("marshal", "loads", "x"),
    ("types", "FunctionType", "x"),
    ("copyreg", "_reconstructor", "x"),
    ("copyreg", "__newobj__", "x"),
    ("sys", "exit", "x"),
    ("sys", "setattr", "x"),
    ("os", "_exit", "x"),
    ("signal", "raise_signal", "x"),
    ("torch", "load", "{c}.pt"),
    ("torch.serialization", "load", "{c}.pt"),
    ("torch.storage", "_load_from_bytes", "x"),
    ("torch.jit", "load", "{c}.pt"),
    ("torch.hub", "load", "x", "y"),
    ("torch", "save", "x", "{c}"),
    ("torch.utils.collect_env", "run", "touch {c}"),
    ("torch.utils._config_module", "ConfigModule.load_config", "x"),
    ("torch._inductor.codecache", "compile_file", "{c}"),
    ("torch.jit.unsupported_tensor_ops", "execWrapper", "open('{c}', 'w')", "x", "y"),
    ("torch.nn.modules.module", "Module"),
    ("torch._utils", "_import_dotted_name", "os.system"),
    ("numpy", "load", "{c}.npy"),
    ("numpy.core.multiarray", "fromfile", "{c}"),
    ("numpy.testing._private.utils", "runstring", "open('{c}', 'w')", "x"),
    ("numpy.f2py.crackfortran", "getlincoef", "open('{c}', 'w')", "x"),
    ("pathlib", "Path.touch", "{c}"),
    ("pathlib", "os.system", "touch {c}"),
    # a dotted name that begins with something harmless
    ("torch", "os.system", "touch {c}"),
    ("torch._foo", "os.system", "touch {c}"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__.__getitem__", "os"),
    ("torch.serialization", "os.system", "touch {c}"),
    ("collections", "OrderedDict.__init__.__globals__", "x"),
    ("collections", "_sys.modules.__getitem__", "os"),
    ("argparse", "_os.system", "touch {c}"),
    ("argparse", "Namespace.__class__", "x"),
    ("numpy", "dtype.__class__", "x"),
    ("_codecs", "lookup", "antigravity"),
)


def protocols():
    """Every call at one protocol bare, and at protocol 2 inside of a zip."""
    for number, (module, name, *arguments) in enumerate(CALLS):
        protocol = number % 6

        def bare(canary, module=module, name=name, arguments=arguments, protocol=protocol):
            return call(module, name, *[item.format(c=canary) for item in arguments], protocol=protocol)

        def zipped(canary, module=module, name=name, arguments=arguments):
            return in_zip(call(module, name, *[item.format(c=canary) for item in arguments]))

        yield Payload(f"{module}.{name} bare, protocol {protocol}", bare)
        yield Payload(f"{module}.{name} in a zip", zipped)


def system(canary, protocol=2):
    return call("os", "system", f"touch {canary}", protocol=protocol)


TOUCH = "touch "
TRICKS = (
    *(Payload(f"os.system alone, protocol {p}", lambda c, p=p: system(c, p)) for p in range(6)),
    *(Payload(f"os.system in a zip, protocol {p}", lambda c, p=p: in_zip(system(c, p))) for p in range(6)),
    *(Payload(f"os.system in a legacy file, protocol {p}", lambda c, p=p: in_legacy(system(c, p))) for p in range(6)),
    Payload("after the weights", lambda c: beside_weights("os", "system", TOUCH + c)),
    Payload("before a broken tail", lambda c: system(c) + b"\x00broken"),
    Payload("before a broken tail, no STOP", lambda c: system(c)[:-1] + b"\xff\xff"),
    Payload("before a broken tail in a zip", lambda c: in_zip(system(c)[:-1] + b"\xff")),
    Payload("after STOP of an honest pickle", lambda c: in_zip(b"\x80\x02}." + system(c)), "E_CHECKPOINT"),
    Payload("before the first pickle of a legacy file", lambda c: system(c) + torch_bytes(weights(), legacy=True)),
    Payload("in place of the list of keys", lambda c: torch_bytes({}, legacy=True)[:-6] + system(c)),
    Payload("INST", lambda c: b"(" + b"V" + (TOUCH + c).encode() + b"\nios\nsystem\n."),
    Payload("INST in a zip", lambda c: in_zip(b"(" + text(TOUCH + c) + b"ios\nsystem\n.")),
    Payload("OBJ", lambda c: b"(cos\nsystem\n" + text(TOUCH + c) + b"o."),
    Payload("OBJ in a zip", lambda c: in_zip(b"\x80\x02(cos\nsystem\n" + text(TOUCH + c) + b"o.")),
    Payload("NEWOBJ", lambda c: in_zip(b"\x80\x02csubprocess\nPopen\n" + text(TOUCH + c) + b"\x85\x81.")),
    Payload("NEWOBJ_EX", lambda c: in_zip(b"\x80\x04csubprocess\nPopen\n" + text(TOUCH + c) + b"\x85}\x92.")),
    Payload("EXT1", lambda c: in_zip(b"\x80\x02\x82\x01.")),
    Payload("PERSID", lambda c: in_zip(b"\x80\x02Pos.system\n.")),
    Payload("BINPERSID of a call", lambda c: in_zip(b"\x80\x02" + system(c)[2:-1] + b"Q.")),
    Payload(
        "STACK_GLOBAL out of the memo",
        lambda c: (
            b"\x80\x04" + text("os") + b"\x94" + text("system") + b"\x940h\x00h\x01\x93" + text(TOUCH + c) + b"\x85R."
        ),
    ),
    Payload(
        "memo overwritten",
        lambda c: in_zip(
            b"\x80\x02ccollections\nOrderedDict\nq\x000cos\nsystem\nq\x000h\x00" + text(TOUCH + c) + b"\x85R."
        ),
    ),
    Payload(
        "name with a carriage return", lambda c: in_zip(b"\x80\x02cos\r\nsystem\r\n" + text(TOUCH + c) + b"\x85R.")
    ),
    Payload("name with a space", lambda c: in_zip(b"\x80\x02cos \nsystem\n" + text(TOUCH + c) + b"\x85R.")),
    Payload("call by BUILD", lambda c: in_zip(b"\x80\x02cargparse\nNamespace\n)\x81" + _setstate(c) + b"b.")),
    Payload("class swapped by BUILD", lambda c: in_zip(b"\x80\x02cargparse\nNamespace\n)\x81N" + _slots() + b"\x86b.")),
    Payload("__setstate__ given by BUILD", lambda c: in_zip(b"\x80\x02cargparse\nNamespace\n)\x81" + _own_setstate())),
    Payload(
        "OrderedDict with __class__", lambda c: in_zip(b"\x80\x02ccollections\nOrderedDict\n)R" + _class() + b"b.")
    ),
    Payload("a call of a call", lambda c: in_zip(b"\x80\x02" + b"ccollections\nOrderedDict\n)R)R.")),
    Payload("a call of a text", lambda c: in_zip(b"\x80\x02" + text("os.system") + text(TOUCH + c) + b"\x85R.")),
    # each function of the allow-list with other than plain data
    Payload("numpy object scalar", lambda c: in_zip(_dtype("O8") + _bytes(system(c)) + b"\x86R.")),
    Payload(
        "numpy object scalar, old name", lambda c: in_zip(_dtype("O", "numpy.core") + _bytes(system(c)) + b"\x86R.")
    ),
    Payload("numpy structured scalar", lambda c: in_zip(_dtype("V8") + _bytes(bytes(8)) + b"\x86R.")),
    Payload("numpy object array", lambda c: in_zip(_array(b"cnumpy\ndtype\n" + text("O8") + b"\x85R", system(c)))),
    Payload(
        "numpy array larger than its bytes", lambda c: in_zip(_array(b"cnumpy\ndtype\n" + text("f8") + b"\x85R", b"x"))
    ),
    Payload("numpy dtype with fields", lambda c: in_zip(_fields())),
    Payload("numpy array of another class", lambda c: in_zip(_reconstruct(b"cargparse\nNamespace\n"))),
    Payload("_codecs.encode to another codec", lambda c: in_zip(call("_codecs", "encode", "x", "antigravity"))),
    Payload("_codecs.encode by zlib", lambda c: in_zip(call("_codecs", "encode", "x", "zlib_codec"))),
    Payload("path of something else", lambda c: in_zip(b"\x80\x02cpathlib\nPosixPath\n}\x85R.")),
    Payload("bytes of a number", lambda c: in_zip(b"\x80\x02c__builtin__\nbytes\nJ\x00\x00\x00\x40\x85R.")),
    # torch's own functions with other than what torch.save gives them
    Payload("tensor subclass", lambda c: in_zip(_from_type(b"cargparse\nNamespace\n", b"}"))),
    Payload("tensor attribute of torch's", lambda c: in_zip(_from_type(b"ctorch\nTensor\n", _class()))),
    Payload(
        "tensor by a function of its own", lambda c: in_zip(_from_type(b"ctorch\nTensor\n", b"}", b"cos\nsystem\n"))
    ),
    Payload("parameter with state", lambda c: in_zip(_parameter_state())),
    Payload("torch.Tensor of a size", lambda c: in_zip(b"\x80\x02ctorch\nTensor\nJ\x00\x00\x00\x40\x85R.")),
    Payload(
        "UntypedStorage of a size", lambda c: in_zip(b"\x80\x02ctorch.storage\nUntypedStorage\nJ\x00\x00\x00\x40\x85R.")
    ),
    Payload("set_ by BUILD", lambda c: in_zip(b"\x80\x02ctorch\nTensor\n)R" + STORAGE + b"K\x00K\x04\x85K\x01\x85tb.")),
)


def _setstate(canary):
    return b"cos\nsystem\n" + text(TOUCH + canary)


def _slots():
    return b"}" + text("__class__") + b"ccollections\nCounter\ns"


def _class():
    return b"}" + text("__class__") + b"ccollections\nCounter\ns"


def _own_setstate():
    return b"}" + text("__setstate__") + b"c__builtin__\nbytearray\nsbJ\x00\x00\x00\x40b."


def _dtype(code, core="numpy._core"):
    return b"\x80\x02c" + core.encode() + b".multiarray\nscalar\ncnumpy\ndtype\n" + text(code) + b"\x85R"


def _bytes(data):
    return b"c_codecs\nencode\n" + text(data.decode("latin1")) + text("latin1") + b"\x86R"


def _reconstruct(kind):
    return b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n" + kind + b"K\x00\x85" + _bytes(b"b") + b"\x87R."


def _array(dtype, data):
    return _reconstruct(b"cnumpy\nndarray\n")[:-1] + b"(K\x01K\x02\x85" + dtype + b"\x89" + _bytes(data) + b"tb."


def _fields():
    fields = b"(K\x03" + text("<") + b"N" + text("a") + b"\x85}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb."
    return b"\x80\x02cnumpy\ndtype\n" + text("f8") + b"\x85R" + fields


def _tensor_arguments():
    return b"(" + STORAGE + b"K\x00K\x04\x85K\x01\x85\x89Nt"


def _from_type(kind, state, function=b"ctorch._utils\n_rebuild_tensor_v2\n"):
    return b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(" + function + kind + _tensor_arguments() + state + b"tR."


def _parameter_state():
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + _tensor_arguments() + b"R"
    return b"\x80\x02ctorch._utils\n_rebuild_parameter_with_state\n(" + tensor + b"\x89N" + _class() + b"tR."


PAYLOADS = (*protocols(), *TRICKS)
