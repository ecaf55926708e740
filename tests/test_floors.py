"""Who may import whom: floors, no cycles, no package roots. Read from the source text; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "mta"

FLOORS: tuple[tuple[str, ...], ...] = (
    # 0 plain Python: errors, records, settings, files
    ("errors", "records", "characters", "config", "files", "folder_lock", "presets", "models", "seeds", "progress"),
    # 1 text and tokens, no tensors of a model
    ("metrics", "label_scores", "retrieval", "prompting", "packing", "transfer", "tasks", "tasks.*", "data", "data.*"),
    # 2 tensors, no model and no file: the paper's maths
    (
        "lora", "lora.adapter", "lora.routed_linear", "lora.grouped_linear", "lora.slot_rows", "lora.row_stack",
        "lora.stacked", "lora.frozen_stack", "lora.slot_adamw", "lora.gates", "lora.experts",
        "lora.expert_training", "lora.core", "block_attention", "row_grid", "rms_norm", "gated_product",
        "anchors", "merging",
    ),
    # 3 models: load, attach, train, generate, keep
    (
        "runtime", "memory_at_hand", "base_model", "tiny_model", "prompt_tokens", "row_attention", "padded_attention",
        "lean_layers", "hub", "encoder_files", "encoders", "vector_cache", "tensor_files", "flat_records",
        "lora.attach", "lora.peft_format", "adapter_files", "forward", "kv_cache", "memory", "training",
        "training_plan", "training_checkpoint", "training_store", "candidates", "mixing", "generation",
    ),
    # 4 the method
    (
        "user_rows", "judges", "bank", "bank_plan", "bank_costs", "bank_building", "adaptation", "compact",
        "weight_search", "evidence", "personalize", "cross_fit", "users",
    ),
    # 5 rivals and evaluation
    ("baselines", "baselines.*", "evaluation", "evaluation.*"),
    # 6 many machines, many requests
    ("distributed", "serving", "serving.*", "serving.migrations.*", "serving.migrations.versions.*", "vllm_plugin"),
    # 7 command line
    ("cli", "cli.*"),
    # 8 what `import mta` offers; nothing inside imports it
    ("mta",),
)  # fmt: skip
ROOTS_ALLOWED = {"tasks"}
"""Packages whose root holds more than a docstring: a table of what is in them."""

Imports = Mapping[str, set[str]]
"""Module -> modules of the package it imports; names without the leading "mta."."""


# reading ----------------------------------------------------------------------------------------------------------


def read_imports(package: Path) -> dict[str, set[str]]:
    """Find what every module imports from its own package, wherever in the file it does so."""
    paths = {_name(path, package): path for path in package.rglob("*.py")}
    return {name: set(_imported(ast.parse(path.read_text()), set(paths), package.name)) for name, path in paths.items()}


def _name(path: Path, package: Path) -> str:
    parts = [part for part in path.relative_to(package).with_suffix("").parts if part != "__init__"]
    return ".".join(parts) or package.name


def _imported(tree: ast.Module, modules: set[str], package: str) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package:
                    yield _local(alias.name, package)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            if node.module and node.module.split(".")[0] == package:
                for alias in node.names:
                    below = _local(f"{node.module}.{alias.name}", package)
                    if below not in modules or node.module == package:
                        yield _local(node.module, package)
                    if below in modules:
                        yield below


def _local(name: str, package: str) -> str:
    return name.removeprefix(f"{package}.")


# judging ----------------------------------------------------------------------------------------------------------


def floor_of(module: str) -> int | None:
    """Return a module's floor; a name of its own goes before a package's star."""
    for wanted in (module, f"{module.rsplit('.', 1)[0]}.*" if "." in module else module):
        for floor, names in enumerate(FLOORS):
            if wanted in names:
                return floor
    return None


def upward(imports: Imports) -> list[str]:
    """List imports that point to a higher floor, and modules that have none."""
    faults = [
        f"{module} has no floor; give it one in tests/test_floors.py" for module in imports if floor_of(module) is None
    ]
    for module, targets in imports.items():
        for target in sorted(targets):
            mine, theirs = floor_of(module), floor_of(target)
            if mine is not None and theirs is not None and theirs > mine:
                faults.append(f"{module} (floor {mine}) imports {target} (floor {theirs})")
    return faults


def find_cycle(imports: Imports) -> list[str]:
    """Return one chain of imports that ends where it starts, or []."""
    done: set[str] = set()

    def walk(module: str, chain: list[str]) -> list[str]:
        if module in chain:
            return [*chain[chain.index(module) :], module]
        if module in done:
            return []
        for target in sorted(imports.get(module, ())):
            if found := walk(target, [*chain, module]):
                return found
        done.add(module)
        return []

    for module in sorted(imports):
        if found := walk(module, []):
            return found
    return []


def roots_imported(imports: Imports, roots: set[str]) -> list[str]:
    """List imports from a package's root, which would run whatever stands there and hide where a name lives."""
    return [
        f"{module} imports from the package root {target}; import from the module that has the name"
        for module, targets in imports.items()
        for target in sorted(targets & roots - ROOTS_ALLOWED)
    ]


# the package ------------------------------------------------------------------------------------------------------

IMPORTS = read_imports(PACKAGE)
PACKAGES = {_name(path, PACKAGE) for path in PACKAGE.rglob("__init__.py")}


def test_the_package_is_read() -> None:
    assert len(IMPORTS) > 60
    assert {"bank", "merging", "adaptation"} <= IMPORTS["personalize"]
    assert {"config", "errors", "lora.adapter", "seeds"} == IMPORTS["merging"]


def test_imports_point_down() -> None:
    assert upward(IMPORTS) == []


def test_there_is_no_cycle() -> None:
    assert find_cycle(IMPORTS) == []


def test_nobody_imports_from_a_package_root() -> None:
    assert roots_imported(IMPORTS, PACKAGES) == []


def test_package_roots_are_a_docstring() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        name = _name(path, PACKAGE)
        if name not in ROOTS_ALLOWED | {"mta"}:
            body = ast.parse(path.read_text()).body
            assert [type(node) for node in body] == [ast.Expr], f"{name}: a root stays a docstring"


def test_only_the_tables_of_names_that_exist_are_kept() -> None:
    """A floor of a module that is gone would guard nothing; those to come are named here."""
    to_come = {"users", "distributed", "serving", "serving.*"}
    known = set(IMPORTS) | {f"{name.rsplit('.', 1)[0]}.*" for name in IMPORTS if "." in name}
    assert {name for names in FLOORS for name in names} - known <= to_come


# the judges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("imports", "fault"),
    [
        ({"merging": {"training"}}, "merging (floor 2) imports training (floor 3)"),
        ({"errors": {"cli.main"}}, "errors (floor 0) imports cli.main (floor 7)"),
        ({"lora.adapter": {"lora.attach"}}, "lora.adapter (floor 2) imports lora.attach (floor 3)"),
        ({"cli.main": {"mta"}}, "cli.main (floor 7) imports mta (floor 8)"),
        ({"helpers": set()}, "helpers has no floor; give it one in tests/test_floors.py"),
        ({"lora.other": set()}, "lora.other has no floor; give it one in tests/test_floors.py"),
    ],
)
def test_a_wrong_import_is_named(imports: Imports, fault: str) -> None:
    assert upward(imports) == [fault]


def test_imports_down_and_aside_are_fine() -> None:
    assert upward({"cli.main": {"errors", "evaluation.run"}, "training": {"forward"}, "tasks": {"tasks.task"}}) == []


def test_a_cycle_is_found_wherever_it_starts() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert find_cycle({"a": {"a"}}) == ["a", "a"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import mta.errors", {"errors"}),
        ("import mta", {"mta"}),
        ("from mta.errors import MtaError", {"errors"}),
        ("from mta import errors", {"mta", "errors"}),
        ("from mta import User", {"mta"}),
        ("from mta.lora import adapter as a, peft_format", {"lora.adapter", "lora.peft_format"}),
        ("from mta.lora import adapter, Adapter", {"lora.adapter", "lora"}),
        ("def f():\n    from mta.errors import MtaError", {"errors"}),
        ("from __future__ import annotations\nimport torch\nfrom torch import nn", set()),
    ],
)
def test_imports_of_every_form_are_read(text: str, found: set[str]) -> None:
    modules = {"errors", "lora", "lora.adapter", "lora.peft_format"}
    assert set(_imported(ast.parse(text), modules, "mta")) == found


def test_a_root_import_is_named() -> None:
    assert roots_imported({"bank": {"tasks", "lora"}}, {"tasks", "lora"}) == [
        "bank imports from the package root lora; import from the module that has the name"
    ]
