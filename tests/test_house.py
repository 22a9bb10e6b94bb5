"""The house: which room may import which, what the lowest floor needs, how long a file may be."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "gruclip"

#: The floor that imports torch and the standard library alone.
LIBRARY = ("errors", "choices", "kernels", "spectral", "gru", "layers", "dynamics", "clipping")

#: Lines of a file without a reason for more in its first one.
LONGEST_FILE = 300


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """`lint-imports` over the package in `root`, which is found before the installed one."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    arguments = ["--config", str(REPOSITORY / "pyproject.toml"), "--no-cache"]
    environment = {"PYTHONPATH": str(root), "PATH": ""}
    return subprocess.run(
        [*command, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def test_every_import_goes_downward() -> None:
    done = lint_imports(REPOSITORY)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "rule"),
    [
        ("kernels/memory.py", "from gruclip.training import engine", "Rooms import downward only"),
        ("model/losses.py", "from gruclip.report import tables", "Rooms import downward only"),
        ("cellar/__init__.py", "", "Rooms import downward only"),
        ("runs/folder.py", "import omegaconf", "Only cli and hydra_plugin know Hydra and OmegaConf"),
        ("training/runner.py", "import pandas", "Only report and bench know pandas and matplotlib"),
    ],
)
def test_a_planted_import_is_found_and_its_rule_named(file: str, line: str, rule: str, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "gruclip", ignore=shutil.ignore_patterns("__pycache__"))
    planted = tmp_path / "gruclip" / file
    planted.parent.mkdir(exist_ok=True)
    planted.write_text((planted.read_text() if planted.exists() else "") + f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert re.search(rf"{rule}.*BROKEN", done.stdout) or "cellar" in done.stdout + done.stderr, done.stdout


def test_the_library_imports_torch_and_the_standard_library_alone() -> None:
    """With every other package hidden, as on a machine that has torch and no more."""
    names = [f"gruclip.{name}" for name in LIBRARY]
    code = f"""
import sys
hidden = {{}}
class Hide:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("gruclip", "torch", "torchgen", "functorch"):
            return None
        raise ModuleNotFoundError(f"hidden: {{name}}", name=name)
import torch  # with what it needs itself
known = {{name.partition(".")[0] for name in sys.modules}}
sys.meta_path.insert(0, Hide())
for name in {names}:
    __import__(name)
from gruclip import GRU, SpectralClipping, clip_singular_values_
model = GRU(3, 4)
SpectralClipping(model, delta=0.2).clip()
model(torch.randn(2, 1, 3))[0].sum().backward()
ours = [name for name in sys.modules if name.startswith("gruclip.")]
print(sorted({{name.split(".")[1] for name in ours}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(eval(done.stdout)) <= set(LIBRARY)


def test_a_long_file_gives_its_reason_in_its_first_line() -> None:
    files = [path for kind in ("*.py", "*.cpp", "*.h") for path in PACKAGE.rglob(kind)]
    assert len(files) > 100
    too_long = {
        str(path.relative_to(REPOSITORY)): lines[0]
        for path in files
        if len(lines := path.read_text().splitlines()) > LONGEST_FILE and "one file because" not in lines[0]
    }
    assert not too_long


def test_every_room_says_what_lives_in_it() -> None:
    for room in (path.parent for path in PACKAGE.rglob("__init__.py")):
        text = (room / "__init__.py").read_text()
        docstring = text.split('"""')[1] if '"""' in text else ""
        assert "tart with" in docstring or "start here" in docstring or room == PACKAGE, room
        for module in room.glob("*.py"):
            if module.stem not in ("__init__", "__main__"):
                assert f"`{module.stem}`" in docstring or room == PACKAGE, f"{module}: not named in its room's __init__"
