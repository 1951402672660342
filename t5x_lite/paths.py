"""Paths as a configuration names them, made to mean the same from any working directory.

Remote ones (gs://) are as they are. Nothing here looks whether a file is there.
"""

import glob
import importlib.machinery
import os
from pathlib import Path


def absolute(path: str) -> str:
    """The path with ~ expanded, from the root."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def absolute_globs(globs: str) -> str:
    """The same of globs separated by commas."""
    return ",".join(_absolute_glob(pattern) for part in globs.split(",") if (pattern := part.strip()))


def _absolute_glob(pattern: str) -> str:
    if "://" in pattern:
        return pattern
    # The name of the working directory is no pattern and no list, whatever is in it.
    here = glob.escape(os.getcwd()).replace(",", "?")
    return os.path.normpath(os.path.join(here, os.path.expanduser(pattern)))


def absolute_vocabulary(name: str) -> str:
    """The same of the file that a vocabulary is in; "bytes" and "demo" name no file."""
    return name if name in ("bytes", "demo") else absolute(name)


def of_module(module: str) -> list[Path]:
    """The files and folders that a module and the packages around it are found in, without importing any."""
    folders, places = None, []
    for part in module.split("."):
        found = importlib.machinery.PathFinder.find_spec(part, folders)
        if found is None:
            break
        folders = list(found.submodule_search_locations or ())
        places += [found.origin, *folders]
    return [Path(place).resolve() for place in places if place]
