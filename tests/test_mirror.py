"""The test tree mirrors the package: from a module one knows where its tests are, and the other way round."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_prime"
TESTS = ROOT / "tests"

TABLES_TESTED_TOGETHER = (
    "model_options", "optimizer", "tables/advantage", "tables/checkpoint", "tables/evaluation", "tables/filter",
    "tables/guards", "tables/model", "tables/observability/profile", "tables/observability/rollout_log",
    "tables/performance/overlap", "tables/parallel", "tables/platform", "tables/policy",
    "tables/prm", "tables/prm_evaluation", "tables/prm_training", "tables/reference", "tables/sft", "tables/trainer",
)  # fmt: skip
MODULES_WITHOUT_TESTS: dict[str, str] = (
    {
        f"config/{name}": "options without logic of their own: tests/config/test_run.py and test_loading.py"
        for name in TABLES_TESTED_TOGETHER
    }
    | {
        f"observability/declared_metrics/{name}": "rows without logic: tests/observability/test_catalog.py"
        for name in ("rows", "learning", "evaluation", "running")
    }
    | {
        "config/stages": "a record: tests/config/test_run.py",
        "sample": "a record: tests/rewards/test_user_function.py",
        "rollout/episode": "protocols and a record: tests/engines and tests/environments",
    }
)
"""Module (without .py, relative to the package) -> why another test file covers it."""

TESTS_WITHOUT_MODULE: dict[str, str] = {
    "test_mirror": "this file",
    "test_docs": "the documents against the tree",
    "test_release": "licence, distributions, citation",
    "test_containers": "docker/",
    "algorithm/test_theory": "docs/theory.md",
    "test_structure": "sizes, names and prose of all code",
    "viewer/test_in_browser": "the viewer's pages in a real Chromium",
    "slurm/test_prime_70b": "examples/prime_70b.sh",
    "gpu/test_te_on_gpu": "layers, FP8 and checkpoints as a GPU has them",
    "gpu/test_pretend_gpu": "whole runs as a GPU would see them",
    "gpu/test_offload_on_gpu": "streams and shared memory of a GPU",
    "slurm/test_announced_ends": "examples/prime_70b.sh: time limits and preemption",
    "slurm/test_exit_codes": "examples/prime_70b.sh: what it makes of its ranks' exit codes",
    "slurm/test_resources": "examples/prime_70b.sh: the GPUs, cores and memory of its ranks",
}
"""Test (without .py, relative to tests/) -> what it tests instead of one module of the package."""

OTHER_TREES = ("examples", "tools", "benchmarks")
"""Folders of tests/ that mirror a folder beside the package."""


def package_modules() -> set[str]:
    names = {
        path.relative_to(PACKAGE).with_suffix("").as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert "types" in names
    return names


def other_modules() -> set[str]:
    return {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for tree in OTHER_TREES
        for path in (ROOT / tree).rglob("*.py")
    }


def modules_of_tests() -> set[str]:
    """`tests/a/test_b.py` as `a/b`."""
    paths = (path.relative_to(TESTS) for path in TESTS.rglob("test_*.py"))
    return {path.with_name(path.stem.removeprefix("test_")).as_posix() for path in paths}


def test_every_module_has_its_test_file():
    untested = package_modules() - modules_of_tests() - set(MODULES_WITHOUT_TESTS)
    missing = sorted(f"tests/{Path(name).parent}/test_{Path(name).name}.py" for name in untested)
    assert not missing, f"write these, or give a reason in MODULES_WITHOUT_TESTS: {missing}"


def test_every_test_file_has_its_module():
    excused = {name.replace("test_", "") for name in TESTS_WITHOUT_MODULE}
    orphans = sorted(modules_of_tests() - package_modules() - other_modules() - excused)
    assert not orphans, f"tests of no module, rename them or give a reason in TESTS_WITHOUT_MODULE: {orphans}"


def test_the_lists_of_exceptions_hold_nothing_stale():
    assert set(MODULES_WITHOUT_TESTS) <= package_modules() - modules_of_tests()
    assert all((TESTS / f"{name}.py").exists() for name in TESTS_WITHOUT_MODULE)


def test_no_two_test_files_are_one_module_to_pytest():
    """Without a package around them, files of one name shadow each other, which only a run of all tests shows."""
    names = [path.name for path in TESTS.rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    assert sorted(names) == sorted(set(names))
