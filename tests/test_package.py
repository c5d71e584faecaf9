"""Checks the package as a whole: what it imports, how fast it answers, what it never calls."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite import config

PACKAGE = Path(__file__).parents[1] / "t5x_lite"
FILES = sorted(PACKAGE.rglob("*.py"))

# CONTRIBUTING lists the modules from the top down. A module may import those of later lines and of its own package.
CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FLOORS = CONTRIBUTING.split("```floors\n")[1].split("```")[0]
RANK = {name.rstrip("/"): -number for number, line in enumerate(FLOORS.splitlines()) for name in line.split(", ")}

# Modules that verbs which only read a run's files never need.
HEAVY = ("jax", "flax", "numpy", "scipy", "sklearn", "matplotlib", "t5x_lite.tasks", "t5x_lite.training")
# Each call runs code or commands that a file or a user's text may contain.
DANGEROUS = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads",
    "torch.load", "joblib.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "shelve.open",
}  # fmt: skip


def module_name(file: Path) -> str:
    """ "data.packing" for t5x_lite/data/packing.py."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(file: Path, late: bool = True) -> set[str]:
    """Returns the full names that a file imports; `late`: also inside functions."""
    found = set()
    tree = ast.parse(file.read_bytes())
    inside_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if not late and id(node) in inside_functions:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import; write the whole name"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_parts(names: set[str]) -> set[str]:
    """Returns the first part below t5x_lite of each name: {"data", "errors"}."""
    return {part for name in names if name.startswith("t5x_lite.") and (part := name.split(".")[1]) in RANK}


def fresh(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240, check=False)


def test_every_module_has_its_layer():
    parts = {module_name(file).split(".")[0] for file in FILES} - {""}
    assert parts == set(RANK), "the floors of CONTRIBUTING.md list each module once"
    tree = CONTRIBUTING.split("```tree\n")[1].split("```")[0]
    folders = [line.split()[0] for line in tree.splitlines() if line.startswith("    ")]
    assert sorted(folders) == [
        f"{file.parent.name}/"
        for file in FILES
        if len(file.relative_to(PACKAGE).parts) == 2 and file.name == "__init__.py"
    ]


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_down_only(file):
    me = module_name(file).split(".")[0]
    if not me:
        return
    for part in own_parts(imports(file, late=me != "cli")) - {me}:
        assert RANK[part] < RANK[me], f"{file.name} imports {part}, which stands above or beside it"


def test_data_knows_no_model_and_no_jax_and_models_know_no_data():
    for file in FILES:
        roots = {name.split(".")[0] for name in imports(file)}
        me, own = module_name(file).split(".")[0], own_parts(imports(file))
        if me in ("data", "tasks"):
            assert not roots & {"jax", "jaxlib", "flax", "optax", "orbax", "torch"}, file
            assert "models" not in own, file
        if me == "models":
            assert not own & {"data", "tasks", "config"}, file


def test_no_file_names_tensorflow_or_torch():
    banned = {"tensorflow", "torch", "transformers", "seqio", "t5x"}
    for file in FILES:
        assert not {name.split(".")[0] for name in imports(file)} & banned, file


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_no_call_that_runs_what_a_file_says(file):
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in DANGEROUS, f"{file}:{node.lineno}: {name}"
            for keyword in node.keywords:
                unsafe = keyword.arg in ("shell", "allow_pickle", "trust_remote_code")
                assert not (unsafe and getattr(keyword.value, "value", True)), f"{file}:{node.lineno}: {keyword.arg}"


def test_a_training_process_holds_no_tensorflow_and_no_torch():
    code = (
        "import sys, t5x_lite.cli, t5x_lite.train, t5x_lite.evaluation.infer, t5x_lite.data.sources\n"
        "from t5x_lite.tasks import builtin; builtin.register()\n"
        "import tensorflow_datasets, array_record, pyarrow.parquet\n"
        "print(sorted({'tensorflow', 'tensorflow_text', 'torch'} & set(sys.modules)))"
    )
    done = fresh("-c", code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_importing_train_brings_in_what_one_run_needs():
    """Counts our lines. The verbs and kinds of data that use the rest import it."""
    code = (
        "import sys, t5x_lite.train\n"
        "files = [m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 't5x_lite']\n"
        "print(sum(len(open(file).readlines()) for file in files))"
    )
    done = fresh("-c", code)
    assert int(done.stdout) <= 9_500, done.stdout + done.stderr


def test_listing_and_inspecting_tasks_brings_no_jax(tmp_path):
    (tmp_path / "a.txt").write_text("some line of text\n" * 20)
    inspect = ["inspect", f"--config.data.files={tmp_path / 'a.txt'}", "--config.data.length=64", "-n", "0", "--json"]
    code = (
        "import sys; from t5x_lite import cli\n"
        f"print(cli.run(['tasks']), cli.run({inspect}), [m for m in ('jax', 'flax') if m in sys.modules])"
    )
    done = fresh("-c", code)
    assert done.stdout.splitlines()[-1] == "0 0 []", done.stdout + done.stderr


def test_reports_need_neither_jax_nor_tasks():
    """Reports read only a run's files; functions that draw or compute import their libraries themselves."""
    grounds = {
        "errors",
        "atomic",
        "console",
        "lineage",
        "lookup",
        "config",
        "own_code",
        "side_files",
        "redaction",
        "reports",
    }
    reports = [file for file in FILES if module_name(file).startswith("reports.")]
    for file in reports:
        assert own_parts(imports(file)) <= grounds | {"reports"}, file
    modules = [f"t5x_lite.{module_name(file)}" for file in reports if file.stem != "confidence"]  # it computes
    done = fresh("-c", f"import sys, {', '.join(modules)}\nprint([m for m in {HEAVY} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_comparing_and_printing_a_sweep_bring_nothing_heavy(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config.to_json(config.base()))
    sweep = str(PACKAGE.parent / "configs" / "sweep_quickstart.yaml")
    code = (
        "import sys; from t5x_lite import cli\n"
        f"print(cli.run(['compare', {str(tmp_path / 'a')!r}, {str(tmp_path / 'b')!r}]),\n"
        f"      cli.run(['sweep', {sweep!r}, '--print']), [m for m in {HEAVY} if m in sys.modules])"
    )
    done = fresh("-c", code)
    assert done.stdout.splitlines()[-1] == "0 0 []", done.stdout + done.stderr


def test_importing_a_metric_registers_no_task():
    done = fresh(
        "-c", "from t5x_lite.tasks import text_metrics; from t5x_lite.data import registry; print(registry.REGISTRY)"
    )
    assert done.stdout.strip() == "{}", done.stdout + done.stderr


def test_importing_the_package_warns_of_nothing():
    done = fresh("-W", "error", "-c", "import t5x_lite")
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_that_takes_long():
    done = fresh("-m", "t5x_lite.cli", "--help")
    assert done.returncode == 0 and "train" in done.stdout
    code = """
import sys
from t5x_lite import cli
sys.argv[1:] = ["train", "--help"]
try:
    cli.main()
except SystemExit:
    print("jax" in sys.modules, "numpy" in sys.modules)
"""
    done = fresh("-c", code)
    assert done.stdout.splitlines()[-1:] == ["False False"], done.stdout + done.stderr


def test_the_version_is_the_distribution_s():
    import tomllib

    import t5x_lite

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == t5x_lite.__version__


def test_the_licence_is_apache_2():
    text = (PACKAGE.parent / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
