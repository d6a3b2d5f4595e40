"""The rules of the house: who may import whom, and that our packages are the ones that scripts get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "data": {"data"},
    "models": {"data", "models"},
    "trainer": {"data", "models", "trainer"},
    "launch": {"data", "models", "trainer", "launch"},
}


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_downwards_only(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        found = imports(path)
        bare = sorted(name for name in found if name.split(".")[0] in MAY_IMPORT)
        assert not bare, f"{path.relative_to(ROOT)} imports {bare}, expected stagecoach.*"
        ours = {name.split(".")[1] for name in found if name.startswith("stagecoach.")} & set(MAY_IMPORT)
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {sorted(ours - MAY_IMPORT[package])}"


def test_the_trainer_names_no_family():
    families = [p.name for p in (ROOT / "models").iterdir() if (p / "family.py").is_file()]
    assert "fantasy_world" in families
    for path in (ROOT / "trainer").rglob("*.py"):
        for name in imports(path):
            assert not any(name.startswith(f"stagecoach.models.{family}") for family in families), (
                f"{path} imports {name}"
            )


def test_a_script_gets_the_packages_of_this_repository_even_if_others_are_installed(tmp_path):
    for package in ("data", "models", "trainer"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('the wrong package')")
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, runpy; sys.path.append({str(ROOT / 'launch')!r})\n"
            f"sys.argv = ['stage1.py', '--help']\nrunpy.run_path({str(ROOT / 'launch' / 'stage1.py')!r}, "
            f"run_name='x')\n"
            "from stagecoach import models; print(models.__file__)",
        ],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip().splitlines()[-1]) == ROOT / "stagecoach" / "models" / "__init__.py"


def test_every_launch_script_puts_the_repository_first():
    scripts = [path for path in (ROOT / "launch").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert len(scripts) >= 8
    for path in scripts:
        assert "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))" in path.read_text(), path
