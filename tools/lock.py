"""Print requirements.lock: what pyproject.toml asks for and all that follows from it, pinned for every machine.

Run by `make lock` in a fresh environment. Versions are those installed there; packages that only another platform or
Python version needs are looked up with pip and get a marker. torch's own Linux requirements (CUDA) are left to torch,
which names their exact versions itself, so that one lock serves machines with and without a GPU.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from itertools import product
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PLATFORMS = {"linux": "Linux", "darwin": "Darwin"}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
OLDEST = "3.11.0"
MACHINES = tuple(product(PLATFORMS, PYTHONS))
Machine = tuple[str, str]
Found = tuple[str, list[str]]  # version, requirements

HEADER = """\
# Every package of a complete environment, pinned, for Linux and macOS with Python 3.11 or newer.
# Written by `make lock` (tools/lock.py) from pyproject.toml; do not edit. To renew: `make lock`, then `make test`.
# torch keeps its pin when the others are renewed; to move it, change its line here first. Its CUDA packages are not
# listed: on Linux torch requires them itself, and a CPU-only torch (`make install TORCH=cpu`) has none."""


def roots(pyproject: Path) -> list[str]:
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return project["dependencies"] + [item for extra in project["optional-dependencies"].values() for item in extra]


def look_up(requirement: Requirement) -> Found:
    """Version and requirements of the installed package; of pip's choice where none is installed that suits OLDEST."""
    try:
        package = metadata.distribution(requirement.name)
        if OLDEST in SpecifierSet(package.metadata["Requires-Python"] or ""):
            return package.version, package.requires or []
    except metadata.PackageNotFoundError:
        pass
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
    pip += ["--python-version", OLDEST, "--target", "unused", "--report", "-"]
    wanted = f"{requirement.name}{requirement.specifier}"
    report = subprocess.run([*pip, wanted], check=True, stdout=subprocess.PIPE, text=True).stdout
    package_json = json.loads(report)["install"][0]["metadata"]
    return package_json["version"], package_json.get("requires_dist", [])


def applies(requirement: Requirement, machine: Machine, extras: Iterable[str]) -> bool:
    if requirement.marker is None:
        return True
    platform, python = machine
    here = {
        "sys_platform": platform,
        "platform_system": PLATFORMS[platform],
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    return any(requirement.marker.evaluate(here | {"extra": extra}) for extra in ("", *extras))


def closure(requirements: list[str]) -> dict[str, tuple[str, set[Machine]]]:
    """{package: (version, the machines that need it)}, following requirements from `requirements` on."""
    found: dict[str, Found] = {}
    needed: dict[str, set[Machine]] = {}
    for machine in MACHINES:
        waiting, seen = [(Requirement(text), machine) for text in requirements], set()
        while waiting:
            requirement, target = waiting.pop()
            name = canonicalize_name(requirement.name)
            if (name, *sorted(requirement.extras)) in seen:
                continue
            seen.add((name, *sorted(requirement.extras)))
            found[name] = found.get(name) or look_up(requirement)
            needed.setdefault(name, set()).add(machine)
            below = ("darwin", machine[1]) if name == "torch" else target
            parsed = map(Requirement, found[name][1])
            waiting += [(item, target) for item in parsed if applies(item, below, requirement.extras)]
    return {name: (found[name][0], needed[name]) for name in sorted(needed)}


def marker(machines: set[Machine]) -> str:
    """The environment marker that selects `machines`; nothing where all need the package."""
    platforms, pythons = {p for p, _ in machines}, sorted({v for _, v in machines}, key=Version)
    terms = [] if len(platforms) == len(PLATFORMS) else [f'sys_platform == "{platforms.pop()}"']
    if len(pythons) < len(PYTHONS):
        choice = " or ".join(f'python_version == "{version}"' for version in pythons)
        terms.append(f"({choice})" if terms and len(pythons) > 1 else choice)
    return " ; " + " and ".join(terms) if terms else ""


def main() -> None:
    print(HEADER)
    for name, (version, machines) in closure(roots(Path(__file__).parents[1] / "pyproject.toml")).items():
        print(f"{name}=={Version(version).public}{marker(machines)}")


if __name__ == "__main__":
    main()
