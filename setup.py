"""Puts the configs into the wheel, where `--config=configs/bccd.py` finds them from any folder."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Build the package with a copy of `configs/`; an editable install uses the folder itself."""

    def run(self):
        """Build."""
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib) / "crnas_jax" / "shipped" / "configs"
            target.mkdir(parents=True, exist_ok=True)
            for file in pathlib.Path("configs").glob("*.py"):
                shutil.copy(file, target)


setup(cmdclass={"build_py": BuildWithConfigs})
