"""Trees of files as the kernel shows them; the real ones of the machine that runs the tests are of no use here."""

import pytest

from ensexport.control_groups import group_limits

MB = 10**6
V2_MOUNT = "30 20 0:25 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v2(folder, limit, used, stat=""):
    where = f"sys/fs/cgroup/{folder}".rstrip("/")
    return {f"{where}/memory.max": f"{limit}\n", f"{where}/memory.current": f"{used}\n", f"{where}/memory.stat": stat}


def v1(folder, limit, used, stat=""):
    where = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    return {
        f"{where}/memory.limit_in_bytes": f"{limit}\n",
        f"{where}/memory.usage_in_bytes": f"{used}\n",
        f"{where}/memory.stat": stat,
    }


def process(mounts, groups):
    return {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups}


CASES = {
    "nothing": ({}, []),
    "v2-own-and-parents": (
        process(V2_MOUNT, "0::/user/job\n") | v2("user/job", 900 * MB, 300 * MB) | v2("user", 500 * MB, 400 * MB),
        [(600 * MB, 900 * MB), (100 * MB, 500 * MB)],
    ),
    "v2-no-limit": (process(V2_MOUNT, "0::/job\n") | v2("job", "max", 5), []),
    "v2-in-a-container": (process(V2_MOUNT, "0::/\n") | v2("", 900, 300), [(600, 900)]),
    "v2-cache-is-free": (
        process(V2_MOUNT, "0::/a\n")
        | v2("a", 900, 800, "anon 100\nfile 700\ninactive_file 400\nactive_file 200\nslab 9\n"),
        [(700, 900)],
    ),
    "v2-above-its-limit": (process(V2_MOUNT, "0::/a\n") | v2("a", 900, 1000), [(0, 900)]),
    "v2-odd-files": (process(V2_MOUNT, "0::/a\n") | v2("a", "many", "few", "active_file none\n\x00"), []),
    "v2-no-usage": (process(V2_MOUNT, "0::/a\n") | {"sys/fs/cgroup/a/memory.max": "900"}, []),
    "v2-space-in-the-mount": (
        process(V2_MOUNT.replace("/sys/fs/cgroup", "/my\\040groups"), "0::/a\n")
        | {"my groups/a/memory.max": "900", "my groups/a/memory.current": "100"},
        [(800, 900)],
    ),
    "v1": (
        process(V1_MOUNT, "5:cpu,cpuacct:/x\n4:memory:/job/7\n0::/\n")
        | v1(
            "job/7", 2 * 10**9, 5 * 10**8, "cache 1\ninactive_file 1\ntotal_inactive_file 200\ntotal_active_file 100\n"
        )
        | v1("job", 9223372036854771712, 6 * 10**8),
        [(2 * 10**9 - 5 * 10**8 + 300, 2 * 10**9)],
    ),
    "v1-mounted-in-part": (
        process(V1_MOUNT.replace("0:32 / ", "0:32 /docker/abc "), "4:memory:/docker/abc\n") | v1("", 900, 100),
        [(800, 900)],
    ),
    "v1-path-outside-of-the-mount": (process(V1_MOUNT, "4:memory:/docker/abc\n") | v1("", 900, 100), [(800, 900)]),
    "both": (
        process(V1_MOUNT + V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"), "4:memory:/j\n0::/j\n")
        | v1("j", 900, 100)
        | v2("unified/j", 700, 100),
        [(800, 900), (600, 700)],
    ),
    "broken-lines": (process("a b c\n - cgroup2\n\n", "no colon\n0::/a\n:::\n"), []),
}


@pytest.mark.parametrize(("files", "expected"), CASES.values(), ids=CASES)
def test_each_group_with_a_limit_says_what_it_leaves(files, expected, tmp_path):
    assert sorted(group_limits(tree(tmp_path, files))) == sorted(expected)
