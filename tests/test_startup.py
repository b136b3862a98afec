"""Commands start and end without a search for garbage that is none."""

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gradmm.startup import libraries_load

_COUNTED = """
import gc, sys
seen = []
gc.callbacks.append(lambda phase, info: seen.append(phase))
from gradmm.startup import libraries_load, load_transformers
with libraries_load():
    seen.clear()
    import gradmm.pipeline
    during = len(seen)
load_transformers()
print(during, gc.isenabled(), "transformers.modeling_utils" in sys.modules)
"""
_ENDED = """
import atexit, sys
class Cycle:
    def __del__(self):
        print("found")
one = Cycle()
one.itself = one
if sys.argv[1] == "quickly":
    from gradmm.startup import end_quickly
    end_quickly()
atexit.register(print, "promised")
"""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    was_on = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if was_on else gc.disable)()


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_pauses_while_libraries_load_and_is_then_as_it_was(on: bool) -> None:
    (gc.enable if on else gc.disable)()
    with libraries_load():
        assert not gc.isenabled()
    assert gc.isenabled() == on


def test_the_collector_is_as_it_was_after_a_library_that_cannot_be_loaded() -> None:
    gc.enable()
    with pytest.raises(ImportError), libraries_load():
        raise ImportError
    assert gc.isenabled()


def test_what_has_loaded_is_left_alone_and_later_garbage_is_still_found() -> None:
    class Cycle:
        pass

    def leave_one() -> None:
        one = Cycle()
        one.itself = one  # type: ignore[attr-defined]

    gc.collect()
    with libraries_load():
        leave_one()
    leave_one()
    before = gc.get_freeze_count()
    assert gc.collect() >= 1
    assert gc.get_freeze_count() == before > 0


def _output(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_nothing_is_collected_while_what_a_command_needs_loads() -> None:
    assert _output(_COUNTED).split() == ["0", "True", "True"]


def test_the_end_keeps_promises_and_looks_for_no_garbage_in_what_is_left() -> None:
    assert _output(_ENDED, "as ever").split() == ["promised", "found"]
    assert _output(_ENDED, "quickly").split() == ["promised"]
