"""Metadata is in pyproject.toml; this file shapes the editable install.

setuptools would install a finder, which mypy and editors cannot follow, or put the whole checkout on sys.path, where
tests/ and bench/ become importable, too. A folder that holds one link to sigmoid_op is a plain path and shows one name.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel

FOLDER = ".editable"


class EditableWheel(editable_wheel):
    def finalize_options(self) -> None:
        link = Path(FOLDER, "sigmoid_op")
        try:
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(Path("..", "sigmoid_op"), target_is_directory=True)
            self.distribution.package_dir = {"": FOLDER}
        except OSError:  # Windows without the right to make links: setuptools' finder will do
            pass
        super().finalize_options()


setup(cmdclass={"editable_wheel": EditableWheel})
