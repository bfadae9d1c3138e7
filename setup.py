"""The recipes of a checkout's training/recipes go into the wheel; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies the recipes beside ``st_jv5/recipe``; an editable install reads the checkout's own."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "st_jv5", "recipe", "recipes")
            folder.mkdir(parents=True, exist_ok=True)
            for recipe in Path("training", "recipes").glob("*.yaml"):
                shutil.copy(recipe, folder)


setup(cmdclass={"build_py": BuildWithRecipes})
