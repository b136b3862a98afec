"""What recordings of decodes are kept, as far as it can be seen without a GPU; `test_gpu` has the rest."""

import torch

from gradmm import recorded
from gradmm.continuation import Continuation
from gradmm.recorded import Recordings, rounded


def test_few_recordings_serve_batches_of_every_size():
    sizes = [rounded(rows) for rows in range(1, 513)]
    assert all(rows <= size < rows + 32 for rows, size in enumerate(sizes, start=1))
    assert all(size < 2 * rows for rows, size in enumerate(sizes, start=1))
    assert [rounded(rows) for rows in (1, 2, 3, 16, 17, 32, 33, 64)] == [1, 2, 4, 16, 32, 32, 64, 64]
    assert len(set(sizes)) == 5 + 16


def test_without_a_gpu_steps_are_taken_as_they_are(tiny_lm):
    lm = tiny_lm("llama")
    read, _ = Continuation.begin(lm.body, torch.tensor([[2, 3, 4], [5, 6, 7]]), "past_key_values")
    rows_N, ids_N = torch.tensor([1, 0, 1]), torch.tensor([8, 9, 10])
    going = Recordings().begin(read, rows_N)
    assert isinstance(going, Continuation)
    assert torch.equal(going.step(ids_N), read.chosen(rows_N).step(ids_N))


def test_the_latest_recordings_are_kept(monkeypatch):
    monkeypatch.setattr(recorded._Recording, "of", classmethod(lambda cls, read, rows, device: (read, rows)))
    kept, reads = Recordings(), ["a", "b"]
    first = [kept.take(read, rows, None) for read in reads for rows in (1, 2)]
    assert [kept.take(read, rows, None) for read in reads for rows in (1, 2)] == first
    kept.take("a", 1, None)  # is the latest now
    kept.take("a", 4, None)  # one too many
    assert [rows for _, rows in kept._kept] == [1, 2, 1, 4]
    assert kept.take("a", 1, None) is first[0]


def test_what_is_refused_is_recorded_no_more(caplog):
    caplog.set_level("INFO", logger="gradmm")
    kept = Recordings()
    kept.refuse("a reason")
    assert caplog.messages == ["decoding without CUDA graphs (a reason), which takes longer"]
