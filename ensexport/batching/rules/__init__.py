"""One file per family of ops; each registers its rules when imported."""

import importlib
import pkgutil


def load() -> None:
    """Import every rule module of this package, so that its rules are registered."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
