"""Quick starts and ends of a command: no garbage is looked for while libraries load, nor when all is done.

torch, transformers and datasets are some 4,000 modules, nearly all of whose objects stay until the end. While they
load, the collector looks through them again and again and frees nothing.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def libraries_load() -> Iterator[None]:
    """Pauses the collector, which afterwards leaves alone what there is by then, and else does what it did before.

    For commands, whose process is theirs: what a caller's objects are is not known.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def load_transformers() -> None:
    """Loads, without collecting, most of what any model's code brings along."""
    with libraries_load():
        import transformers.modeling_utils  # noqa: F401


def end_quickly() -> None:
    """When the process ends, leaves what there is to the system, where the collector would look through it again.

    What was promised for the end (`atexit`, finalizers, files that are closed with their last reference) is done
    all the same.
    """
    atexit.register(gc.freeze)
