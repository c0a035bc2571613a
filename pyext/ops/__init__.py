"""The rows: every module here describes one row of ops and registers its specs. Adding a row is adding a module."""

from importlib import import_module
from pkgutil import iter_modules

from ..spec import all_specs

for _module in sorted(m.name for m in iter_modules(__path__) if not m.name.startswith("_")):
    import_module(f"{__name__}.{_module}")

__all__ = [spec.name for spec in all_specs()]
globals().update({spec.name: spec.function for spec in all_specs()})
