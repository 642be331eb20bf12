"""The packages; pyproject.toml declares everything else. An installed package holds the recipes of configs/, too."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["isnet_jax*"]), "isnet_jax.recipes"],
    package_dir={"isnet_jax.recipes": "configs"},
)
