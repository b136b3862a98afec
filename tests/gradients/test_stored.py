"""`gradmm.gradients.stored`: factors are the same wherever they are kept, and leave nothing behind."""

import gc
import io
import mmap
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradmm.errors import OutOfMemoryError
from gradmm.gradients.factors import Factors
from gradmm.gradients.stored import StoredFactors

MAPS = Path("/proc/self/maps")


def blocks(sizes, pairs=2, v=7, d=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [Factors(*(torch.randn(n, pairs, *m, generator=draw) for m in ((v,), (d,), ()))) for n in sizes]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def bytes_of(block):
    return sum(part.nbytes for part in block.tensors())


@given(st.lists(st.integers(1, 50), max_size=6), st.integers(0, 20_000), st.integers(1, 3))
def test_blocks_are_the_same_wherever_they_are_kept_and_however_often_they_are_read(sizes, held_bytes, pairs):
    own = blocks(sizes, pairs)
    kept = StoredFactors(iter(own), held_bytes)
    assert len(kept) == len(own)
    for _ in range(2):
        for block, expected in zip(kept, own, strict=True):
            assert same(block, expected)
            assert [part.data_ptr() % 64 for part in block.tensors()] == [0, 0, 0], "sums would round otherwise"
    for at in reversed(range(len(own))):
        assert same(kept[at], own[at])


def test_so_many_bytes_stay_where_they_are():
    own = blocks([3, 40, 3, 3])
    kept = StoredFactors(iter(own), 2 * bytes_of(own[0]))
    assert [kept[at].r_KJV is own[at].r_KJV for at in range(4)] == [True, False, True, False]


def test_a_block_that_is_left_can_still_be_read():
    own = blocks([mmap.PAGESIZE // 8, 5, mmap.PAGESIZE // 8])
    kept = StoredFactors(iter(own), 0)
    read = list(kept)  # all have been left by now
    assert all(same(block, expected) for block, expected in zip(read, own, strict=True))


def test_views_of_other_tensors_are_stored_too():
    (block,) = blocks([6])
    view = Factors(block.r_KJV[::2], block.h_KJD[::2], block.weight_KJ[:1].expand(3, -1))
    assert same(StoredFactors([view], 0)[0], view)


def test_nothing_is_written_where_memory_holds_everything(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    own = blocks([3, 4])
    assert len(list(StoredFactors(own, sum(map(bytes_of, own))))) == 2
    assert len(StoredFactors([], 0)) == 0


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc")
def test_the_file_has_no_name_and_goes_with_who_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = StoredFactors(blocks([4, 5]), 0)
    assert not list(tmp_path.iterdir()) and str(tmp_path) in MAPS.read_text()
    block = kept[1]
    del kept
    gc.collect()
    assert same(block, blocks([4, 5])[1]), "a block that is still in use can be read"
    del block
    gc.collect()
    assert str(tmp_path) not in MAPS.read_text()


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc")
def test_a_pass_takes_no_more_memory_than_a_block(tmp_path, monkeypatch):
    """Of 16 blocks, each a mebibyte, no more is resident than the last one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = StoredFactors(iter(blocks([16] * 16, 1, 2**14, 4)), 0)
    resident = []
    for block in kept:
        block.r_KJV.sum()
        resident.append(resident_bytes(str(tmp_path)))
    assert max(resident) < 4 * 2**20 and min(resident) >= 2**20


def resident_bytes(name):
    lines = Path("/proc/self/smaps").read_text().splitlines()
    (at,) = (i for i, line in enumerate(lines) if name in line)
    return next(int(line.split()[1]) * 1024 for line in lines[at:] if line.startswith("Rss:"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_without_room_is_told_with_what_would_help(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: io.FileIO("/dev/full", "w"))
    with pytest.raises(OutOfMemoryError) as caught:
        StoredFactors(blocks([4, 5]), 0)
    assert str(caught.value) == (
        "the candidates' gradients are more than memory should hold, and cannot be kept in the temporary folder "
        f"{tmp_path} ([Errno 28] No space left on device); set TMPDIR to a folder with more room, lower "
        "pool.texts_per_text, or match in a smaller space (space.maps)"
    )
