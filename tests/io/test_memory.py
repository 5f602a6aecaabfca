"""Free memory of machines and of control groups, from files as the kernel writes them."""

from __future__ import annotations

import sys

import pytest

from cfmvc_scvi.io.memory import free_memory

MEMINFO = "MemTotal: 9000 kB\nMemAvailable: 4000 kB\nSwapFree: 1000 kB\n"


def system(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_machine_without_limits(tmp_path):
    group = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "7\n"}
    assert free_memory(system(tmp_path, {"proc/meminfo": MEMINFO, **group})) == 5000 * 1024


@pytest.mark.parametrize(
    ("line", "folder", "limit", "use", "cached"),
    [
        ("0::/job/7", "job/7", "memory.max", "memory.current", "inactive_file"),
        ("0::/elsewhere", "", "memory.max", "memory.current", "inactive_file"),
        ("4:memory:/j", "memory/j", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_the_limit_of_a_group_counts(tmp_path, line, folder, limit, use, cached):
    base = f"sys/fs/cgroup/{folder}"
    files = {f"{base}/{limit}": "3000000\n", f"{base}/{use}": "2500000\n", f"{base}/memory.stat": f"a 1\n{cached} 99\n"}
    files |= {"proc/meminfo": MEMINFO, "proc/self/cgroup": f"9:cpu:/x\n{line}\n"}
    assert free_memory(system(tmp_path, files)) == 500099


def test_a_system_that_does_not_say(tmp_path):
    assert free_memory(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_this_machine():
    assert 2**24 < free_memory() < 2**50
