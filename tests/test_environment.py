"""One list of dependencies: pyproject.toml; what is locked, offered to conda and imported agrees with it."""

import ast
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from lock import MACHINES, applies, marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch"}  # where conda-forge calls a package something else
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra]


def locked() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(pin.name) for pin in found}) == len(found), "a package is pinned twice"
    return {canonicalize_name(pin.name): pin for pin in found}


def version(pin: Requirement) -> Version:
    (clause,) = pin.specifier
    return Version(clause.version)


def test_conda_environment_names_the_same_packages_with_the_same_bounds() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *listed, with_pip = environment["dependencies"]
    assert with_pip == {"pip": ["-e ."]}
    python, pip, *packages = listed
    assert pip == "pip"
    assert Version(python.removeprefix("python=")) in Requirement(f"python{PROJECT['requires-python']}").specifier
    conda = {requirement.name: requirement.specifier for requirement in map(Requirement, packages)}
    assert len(conda) == len(packages)
    assert conda == {CONDA_NAMES.get(r.name, r.name): r.specifier for r in RUNTIME + EXTRAS}


def test_lock_pins_every_direct_dependency_inside_its_bounds() -> None:
    pins = locked()
    for requirement in RUNTIME + EXTRAS:
        pin = pins[canonicalize_name(requirement.name)]
        assert version(pin) in requirement.specifier, f"{pin} is outside {requirement}"
        assert pin.marker is None
    assert version(pins["torch"]) == Version("2.13.0")


def test_lock_is_portable() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not [line for line in text.splitlines() if line.startswith("-") or "://" in line]
    for pin in locked().values():
        assert [clause.operator for clause in pin.specifier] == ["=="], f"{pin} is not pinned"
        assert version(pin).local is None and not pin.url, f"{pin} exists on one machine only"
        assert not pin.name.startswith(("nvidia", "triton", "cuda")), f"{pin}: left to torch"


def test_lock_is_complete_and_consistent() -> None:
    pins = locked()
    checked = 0
    for package in metadata.distributions():
        name = canonicalize_name(package.name)
        if name not in pins or Version(package.version).public != str(version(pins[name])):
            continue
        for requirement in map(Requirement, package.requires or []):
            machines = [
                m for m in MACHINES if applies(requirement, m, ()) and not (name == "torch" and m[0] == "linux")
            ]
            if not machines or pins[name].marker is not None:
                continue
            checked += 1
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None, f"{name} needs {requirement}, which is not locked"
            assert version(pin) in requirement.specifier, f"{name} needs {requirement}, locked is {pin}"
            assert all(applies(pin, machine, ()) for machine in machines), f"{name} needs {pin} on {machines}"
    assert checked > 50, "hardly anything of the lock is installed; run the tests in the environment of `make install`"


@pytest.mark.parametrize(
    ("machines", "expected"),
    [
        (set(MACHINES), ""),
        ({m for m in MACHINES if m[0] == "darwin"}, ' ; sys_platform == "darwin"'),
        ({("linux", "3.12"), ("darwin", "3.12")}, ' ; python_version == "3.12"'),
        (
            {("darwin", "3.11"), ("darwin", "3.12")},
            ' ; sys_platform == "darwin" and (python_version == "3.11" or python_version == "3.12")',
        ),
    ],
)
def test_markers_select_exactly_the_machines_that_need_the_package(machines: set, expected: str) -> None:
    assert marker(machines) == expected
    requirement = Requirement(f"package==1{expected}")
    assert {machine for machine in MACHINES if applies(requirement, machine, ())} == machines


def test_everything_that_the_package_imports_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in RUNTIME}
    providers = metadata.packages_distributions()
    undeclared = []
    for path in sorted((ROOT / "gptlib").rglob("*.py")):
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))) - set(sys.stdlib_module_names) - {"gptlib"}:
            if not {canonicalize_name(package) for package in providers.get(name, [])} & declared:
                undeclared.append(f"{path.relative_to(ROOT)}: {name}")
    assert not undeclared


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of the absolute imports anywhere in `tree`."""
    nodes = list(ast.walk(tree))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0]
        for name in plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    }
