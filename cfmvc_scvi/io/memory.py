"""How much memory a process can still take, where the system says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

#: Files of a control group's limit, use, and statistics with the name of cached files, of its two versions.
_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_memory(root: str | Path = "/") -> int | None:
    """Bytes that this process can still take: what the machine has available, swap included, or its group may have.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.

    Returns
    -------
    Bytes; ``None`` where the system does not say (it does on Linux).
    """
    found = [*_of_machine(Path(root) / "proc/meminfo"), *_of_groups(Path(root))]
    return min(found) if found else None


def _of_machine(path: Path) -> Iterator[int]:
    sizes = {line.split(":")[0]: line.split()[1] for line in _lines(path)}
    if "MemAvailable" in sizes:
        yield 1024 * (int(sizes["MemAvailable"]) + int(sizes.get("SwapFree", 0)))


def _of_groups(root: Path) -> Iterator[int]:
    """What is left to the control groups of the process, of containers and batch systems."""
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = mounted / "memory" if controllers else mounted
        for folder in {base, base / name.lstrip("/")}:
            for limit, use, cached in _LIMITS:
                most, used = _lines(folder / limit), _lines(folder / use)
                if most and used and most[0].isdigit():
                    statistics = dict(line.split() for line in _lines(folder / "memory.stat"))
                    yield max(0, int(most[0]) - int(used[0]) + int(statistics.get(cached, 0)))


def _lines(path: Path) -> list[str]:
    """Lines of a small file; none where it cannot be read."""
    try:
        return path.read_text().split("\n")[:-1]
    except OSError:
        return []
