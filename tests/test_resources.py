import mmap
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ensexport.errors import MemoryLimitError, OutputError
from ensexport.resources import (
    MemoryLimit,
    PeakMemory,
    Reserve,
    available_memory,
    check_disk,
    check_memory,
    memory_limits,
    size_text,
    status_bytes,
)

GB = 10**9
MEMINFO = "MemTotal:       20000000 kB\nMemFree:         1000000 kB\nMemAvailable:   10000000 kB\n"
STATUS = "Name:\tpython\nVmPeak:\t 3000000 kB\nVmSize:\t 2000000 kB\nVmRSS:\t  500000 kB\nVmData:\t 1000000 kB\n"
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max file size             unlimited            unlimited            bytes
Max data size             {data}            unlimited            bytes
Max resident set          7                    unlimited            bytes
Max address space         {space}            unlimited            bytes
"""
MACHINE = MemoryLimit(10_000_000 * 1024, 20_000_000 * 1024, "memory of this machine")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc and ulimit -v are Linux's")


@pytest.fixture
def system(tmp_path):
    """Makes a `/proc` of a machine with 20 GB, half of them free."""

    def make(data="unlimited", space="unlimited", **files):
        files = {
            "meminfo": MEMINFO,
            "self/status": STATUS,
            "self/limits": LIMITS.format(data=data, space=space),
        } | files
        for name, text in files.items():
            path = tmp_path / "proc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


# -- what there is -----------------------------------------------------------------------------------


def test_without_limits_it_is_what_the_machine_has(system):
    assert memory_limits(root=system()) == [MACHINE]
    assert available_memory(root=system()) == MACHINE


def test_limits_of_the_process_less_what_it_holds(system):
    root = system(data=3 * GB, space=4 * GB)
    assert memory_limits(root=root)[1:] == [
        MemoryLimit(4 * GB - 2_048_000_000, 4 * GB, "address space, ulimit -v", counts_files=True),
        MemoryLimit(3 * GB - 1_024_000_000, 3 * GB, "data segment, ulimit -d"),
    ]
    assert available_memory(root=root).what == "address space, ulimit -v"


def test_a_limit_below_what_is_held_leaves_nothing(system):
    assert available_memory(root=system(space=GB)) == MemoryLimit(0, GB, "address space, ulimit -v", counts_files=True)


def test_a_control_group_counts(system, tmp_path):
    root = system(**{"self/cgroup": "0::/job\n", "self/mountinfo": "1 1 0:1 / /cg rw - cgroup2 none rw\n"})
    (tmp_path / "cg" / "job").mkdir(parents=True)
    (tmp_path / "cg" / "job" / "memory.max").write_text(str(3 * GB))
    (tmp_path / "cg" / "job" / "memory.current").write_text(str(GB))
    assert available_memory(root=root) == MemoryLimit(2 * GB, 3 * GB, "memory of the control group")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"meminfo": "", "self/status": "", "self/limits": ""},
        {"meminfo": "MemAvailable: lots kB\n", "self/status": "VmSize: 12 MB\n", "self/limits": "Max address space\n"},
        {"meminfo": "\x00\xff", "self/limits": "Max address space     -1\nMax data size  12x\n"},
    ],
    ids=["none", "empty", "odd", "broken"],
)
def test_what_cannot_be_found_out_is_no_limit(files, tmp_path):
    for name, text in files.items():
        (tmp_path / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / name).write_text(text)
    assert memory_limits(root=tmp_path) == []
    assert available_memory(root=tmp_path) is None
    check_memory({"everything": 10**18}, task="pack", hint="", root=tmp_path)


@LINUX
def test_this_machine_says_what_it_has():
    limit = available_memory()
    assert 0 < limit.size_bytes < limit.total_bytes
    assert status_bytes("VmRSS") < status_bytes("VmSize")
    assert status_bytes("VmNothing") is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_460_000_000, "3.5 GB"), (21_000 * GB, "21000.0 GB")],
)
def test_sizes_are_read_in_decimal_units(size, text):
    assert size_text(size) == text


# -- memory ------------------------------------------------------------------------------------------


def test_more_than_there_is_is_refused_with_both_numbers(system):
    with pytest.raises(MemoryLimitError) as caught:
        check_memory(
            {"one member": 350_000_000, "the packed file": 11 * GB},
            task="pack 32 members", hint="Leave out --validate.", root=system(),
        )  # fmt: skip
    assert caught.value.message == (
        "cannot pack 32 members: 11.3 GB of memory are needed (one member 350.0 MB, the packed file 11.0 GB), and "
        "10.2 GB of 20.5 GB are left (memory of this machine)."
    )
    assert caught.value.hint == "Leave out --validate."
    assert caught.value.details == {
        "needed_bytes": 11_350_000_000, "available_bytes": 10_240_000_000, "limit": "memory of this machine",
    }  # fmt: skip
    assert (caught.value.exit_code, caught.value.code) == (3, "E_MEMORY")


def test_as_much_as_there_is_is_taken(system):
    check_memory({"a": MACHINE.size_bytes - 5, "b": 5}, task="pack", hint="", root=system())
    with pytest.raises(MemoryLimitError):
        check_memory({"a": MACHINE.size_bytes - 5, "b": 6}, task="pack", hint="", root=system())


def test_mapped_files_count_for_the_address_space_alone(system):
    needs, mapped = {"one member": GB}, {"the packed file": 10 * GB}
    check_memory(needs, mapped=mapped, task="pack", hint="", root=system(data=3 * GB))
    with pytest.raises(MemoryLimitError, match=r"11\.0 GB .*the packed file 10\.0 GB.*ulimit -v"):
        check_memory(needs, mapped=mapped, task="pack", hint="", root=system(space=12 * GB))


def test_the_limit_that_lacks_most_is_named(system):
    with pytest.raises(MemoryLimitError, match="ulimit -d") as caught:
        check_memory({"all": 9 * GB}, task="pack", hint="", root=system(data=2 * GB, space=9 * GB))
    assert caught.value.details["available_bytes"] == 2 * GB - 1_024_000_000


# -- disks -------------------------------------------------------------------------------------------


def test_what_fits_on_the_disk_is_no_error(tmp_path):
    check_disk({tmp_path / "a.onnx": 1000, tmp_path / "a.onnx.data": 1000, tmp_path / "missing" / "b.ts": 10**18})


def test_a_full_disk_is_said_before_the_first_byte(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    sizes = {tmp_path / "a.onnx": free * 2 // 3, tmp_path / "a.data": free * 2 // 3}
    for path, size in sizes.items():
        check_disk({path: size})
    with pytest.raises(OutputError) as caught:
        check_disk(sizes)
    assert f"cannot write '{tmp_path / 'a.onnx'}' and '{tmp_path / 'a.data'}': " in caught.value.message
    assert caught.value.message.endswith(" are free on that disk.")
    assert caught.value.hint == "Free some space, or write elsewhere."
    assert caught.value.details["needed_bytes"] == sum(sizes.values())
    assert caught.value.details["needed_bytes"] > caught.value.details["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_file_that_is_replaced_does_not_count_as_free(tmp_path):
    target = tmp_path / "a.onnx"
    target.write_bytes(b"old")
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OutputError, match="What is replaced stays until the new files are whole"):
        check_disk({target: free + 10**9})


def test_each_file_system_counts_on_its_own(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    here, there = shutil.disk_usage(tmp_path).free, shutil.disk_usage(other).free
    check_disk({tmp_path / "a": here * 2 // 3, other / "a": there * 2 // 3})
    with pytest.raises(OutputError, match="cannot write '/dev/shm/a' and '/dev/shm/b'"):
        check_disk({tmp_path / "a": 1, other / "a": there, other / "b": there})


@pytest.mark.skipif(os.name != "posix", reason="ulimit -f")
def test_a_limit_on_file_sizes_is_said_before_the_first_byte(tmp_path):
    script = (
        "import resource, sys; from pathlib import Path; from ensexport.resources import check_disk\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "check_disk({Path(sys.argv[1], 'a'): 5000, Path(sys.argv[1], 'b'): 5000})\n"
        "check_disk({Path(sys.argv[1], 'a'): 5000, Path(sys.argv[1], 'b'): 5001})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"cannot write '{tmp_path / 'b'}': it will have 5.0 kB, and files may have 5.0 kB" in done.stderr
    assert "(file size, ulimit -f)" in done.stderr


# -- peaks and reserves ------------------------------------------------------------------------------


def touched(size):
    block = mmap.mmap(-1, size)
    for place in range(0, size, mmap.PAGESIZE):
        block[place] = 1
    return block


@LINUX
def test_the_peak_is_of_the_time_since_the_reset():
    peak = PeakMemory()
    if not peak.reset():
        pytest.skip("the kernel does not let this process reset its peak")
    before = peak.peak_bytes()
    touched(200_000_000).close()
    assert peak.peak_bytes() - before > 150_000_000
    peak.reset()
    assert peak.peak_bytes() - before < 100_000_000


def test_the_account_of_getrusage_is_in_bytes(monkeypatch):
    touched(50_000_000).close()
    monkeypatch.setattr("ensexport.resources.status_bytes", lambda field: None)  # as on a system without /proc
    peak = PeakMemory().peak_bytes()
    assert 60_000_000 < peak < 10**12
    assert peak == pytest.approx(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform != "darwin" else 1)
    )


@LINUX
def test_a_reserve_takes_no_memory_and_can_be_given_back():
    size, resident = status_bytes("VmSize"), status_bytes("VmRSS")
    reserve = Reserve()
    assert status_bytes("VmSize") - size >= 2**24
    assert status_bytes("VmRSS") - resident < 2**22
    reserve.release()
    reserve.release()
    assert status_bytes("VmSize") - size < 2**24
