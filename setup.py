"""What pyproject.toml cannot say: a wheel for x86-64 Linux holds the C++ kernels prebuilt, and is tagged so.

Where they cannot be compiled the wheel holds their sources alone, as for every other platform; the build says why.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = "gruclip/kernels"


class BuildWithKernels(build_py):
    """Python files, and the kernels for each level of instructions; not for an editable installation."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib) / KERNELS / "prebuilt"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
        try:
            # By its path: the package needs torch, which need not be there.
            runpy.run_path(str(Path(__file__).parent / KERNELS / "build.py"))["prebuild"](folder)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            shutil.rmtree(folder, ignore_errors=True)  # some of them are not what the wheel's tag says
            written = getattr(error, "stderr", None) or error
            print(f"gruclip: this wheel holds no prebuilt kernels: {written}", file=sys.stderr)


class WheelWithKernels(bdist_wheel):
    """For this platform and every Python if it holds prebuilt kernels; for every platform if not."""

    def run(self) -> None:
        self.run_command("build")
        if (Path(self.get_finalized_command("build").build_lib) / KERNELS / "prebuilt").is_dir():
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelWithKernels})
