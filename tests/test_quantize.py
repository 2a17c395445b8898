"""Codebooks: nearest codes, the EMA step, dead codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from lvt_pipeline.errors import ConfigError, ShapeError
from lvt_pipeline.models.vqvae.config import VQVAEConfig
from lvt_pipeline.models.vqvae.quantize import EMACodebook, SlicedQuantizer, integer_codes, nearest_codes


def test_nearest_codes_agree_with_the_definition() -> None:
    latents, codebook = torch.randn(3, 5, 4, 6), torch.randn(17, 5)
    distances = (latents[:, None] - codebook[None, :, :, None, None]).pow(2).sum(2)
    assert torch.equal(nearest_codes(latents, codebook), distances.argmin(1))


def test_nearest_codes_give_ties_to_the_lowest_index() -> None:
    codebook = torch.tensor([[5.0], [1.0], [1.0], [-1.0]])
    assert nearest_codes(torch.zeros(1, 1, 2, 2), codebook).unique().tolist() == [1]


def test_nearest_codes_refuse_another_width() -> None:
    with pytest.raises(ShapeError, match="latents have D=5 but the codebook has D=4"):
        nearest_codes(torch.zeros(1, 5, 2, 2), torch.zeros(3, 4))


def test_ema_step_gives_hand_computed_values() -> None:
    book = EMACodebook(2, 1, decay=0.5, epsilon=0.25)
    book.table.copy_(torch.tensor([[1.0], [-1.0]]))
    book.total.copy_(book.table)
    latents = torch.tensor([3.0, 5.0, 1.0, -2.0]).reshape(1, 1, 2, 2)
    codes = nearest_codes(latents, book.table)
    assert codes.flatten().tolist() == [0, 0, 0, 1]
    book.update(latents, codes)
    # size = 0.5*0 + 0.5*(3, 1); total = 0.5*(1, -1) + 0.5*(9, -2); n = 2
    assert book.size.tolist() == [1.5, 0.5]
    assert book.total.flatten().tolist() == [5.0, -1.5]
    # size' = (size + 0.25) / (2 + 2*0.25) * 2 = (1.4, 0.6)
    torch.testing.assert_close(book.table.flatten(), torch.tensor([5.0 / 1.4, -1.5 / 0.6]))
    book.update(latents, codes)
    assert book.size.tolist() == [2.25, 0.75]
    assert book.total.flatten().tolist() == [7.0, -1.75]


def test_table_and_accumulators_never_share_memory() -> None:
    for init in ("reference", "consistent"):
        book = EMACodebook(8, 4, ema_init=init)
        pointers = {book.table.data_ptr(), book.total.data_ptr(), book.size.data_ptr()}
        assert len(pointers) == 3
        assert torch.equal(book.table, book.total)
        assert book.size.unique().tolist() == [float(init == "consistent")]
        book.update(torch.randn(2, 4, 3, 3), torch.zeros(2, 3, 3, dtype=torch.int64))
        assert len({book.table.data_ptr(), book.total.data_ptr(), book.size.data_ptr()}) == 3


def test_reference_start_flings_unused_codes_out_and_consistent_start_does_not() -> None:
    latents = torch.randn(1, 4, 4, 4)
    codes = torch.zeros(1, 4, 4, dtype=torch.int64)
    reference, consistent = EMACodebook(8, 4), EMACodebook(8, 4, ema_init="consistent")
    before = consistent.table.clone()
    for book in (reference, consistent):
        book.update(latents, codes)
    assert reference.table[1:].norm(dim=1).min() > 50
    torch.testing.assert_close(consistent.table[1:], before[1:], rtol=1e-3, atol=1e-6)


def test_table_starts_uniform_within_one_over_k() -> None:
    table = EMACodebook(512, 64).table
    assert float(table.abs().max()) <= 1 / 512
    assert float(table.std()) == pytest.approx(1 / 512 / 3**0.5, rel=0.02)


def test_resampling_replaces_unused_codes_by_latents_and_keeps_used_ones() -> None:
    latents = torch.randn(2, 4, 8, 8)
    codes = torch.randint(0, 2, (2, 8, 8))
    kept, resampled = EMACodebook(16, 4), EMACodebook(16, 4, dead_code="resample")
    resampled.load_state_dict(kept.state_dict())
    kept.update(latents, codes)
    resampled.update(latents, codes)
    torch.testing.assert_close(resampled.total[:2], kept.total[:2])
    vectors = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    direction = torch.nn.functional.cosine_similarity(resampled.total[2:, None], vectors[None], dim=-1)
    assert float(direction.amax(1).min()) > 0.9999
    assert float(resampled.table.norm(dim=1).max()) < 10


def test_resampling_is_the_same_after_a_restart() -> None:
    book = EMACodebook(16, 4, dead_code="resample")
    steps = [(torch.randn(1, 4, 6, 6), torch.randint(0, 3, (1, 6, 6))) for _ in range(4)]
    for latents, codes in steps[:2]:
        book.update(latents, codes)
    restarted = EMACodebook(16, 4, dead_code="resample")
    restarted.load_state_dict(book.state_dict())
    torch.rand(7)
    for latents, codes in steps[2:]:
        book.update(latents, codes)
        restarted.update(latents, codes)
    assert torch.equal(book.table, restarted.table)


def _train_as_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    latents, codes = torch.randn(4, 3, 2, 2), torch.randint(0, 5, (4, 2, 2))
    updated = EMACodebook(5, 3)
    mine = slice(2 * rank, 2 * rank + 2)
    updated.update(latents[mine], codes[mine])
    started = EMACodebook(5, 3)
    vectors = torch.randn(64, 3, generator=torch.Generator().manual_seed(rank))
    started.start_from(vectors, 16, torch.Generator().manual_seed(0))
    torch.save({"updated": updated.state_dict(), "started": started.state_dict()}, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """Codebooks of two workers: after an update on different latents, and after a start from different latents."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_train_as_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_workers_end_with_the_table_of_one_that_saw_both_batches(
    ranks: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    torch.manual_seed(0)
    latents, codes = torch.randn(4, 3, 2, 2), torch.randint(0, 5, (4, 2, 2))
    alone = EMACodebook(5, 3)
    alone.update(latents, codes)
    for name, value in alone.state_dict().items():
        assert torch.equal(ranks[0]["updated"][name], ranks[1]["updated"][name])
        torch.testing.assert_close(ranks[0]["updated"][name], value)


def test_two_workers_take_the_kmeans_start_of_the_first(ranks: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    alone = EMACodebook(5, 3)
    vectors = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    alone.start_from(vectors, 16, torch.Generator().manual_seed(0))
    for rank in ranks:
        for name in ("table", "size", "total"):
            assert torch.equal(rank["started"][name], getattr(alone, name))


def test_slices_are_quantised_by_their_own_codebooks_in_channel_order() -> None:
    quantizer = SlicedQuantizer(2, 7, 6).eval()
    for book in quantizer.codebooks:
        book.table.normal_()
    latents = torch.randn(2, 6, 3, 3)
    result = quantizer(latents)
    for j, part in enumerate((latents[:, :3], latents[:, 3:])):
        assert torch.equal(result.codes[..., j], nearest_codes(part, quantizer.codebooks[j].table))
    assert torch.equal(result.vectors, quantizer.lookup(result.codes))


def test_gradient_passes_straight_through_and_the_decoder_sees_code_vectors() -> None:
    quantizer = SlicedQuantizer(2, 7, 6).eval()
    latents = torch.randn(2, 6, 3, 3, requires_grad=True)
    result = quantizer(latents)
    assert torch.equal(result.vectors.detach(), quantizer.lookup(result.codes))
    weights = torch.randn(2, 6, 3, 3)
    (result.vectors * weights).sum().backward()
    assert torch.equal(latents.grad, weights)


def test_training_forward_uses_the_old_vectors_and_commits_to_the_new_ones() -> None:
    quantizer = SlicedQuantizer(1, 4, 2)
    quantizer.codebooks[0].table.normal_()
    quantizer.codebooks[0].total.copy_(quantizer.codebooks[0].table)
    latents = torch.randn(2, 2, 4, 4)
    old = quantizer.lookup(quantizer.codes(latents))
    result = quantizer(latents)
    assert torch.equal(result.vectors, old)
    new = quantizer.lookup(result.codes)
    assert not torch.equal(new, old)
    torch.testing.assert_close(result.commitment_loss, (latents - new).pow(2).mean())


def test_codebooks_move_in_training_forwards_only() -> None:
    quantizer = SlicedQuantizer(2, 5, 4).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(1, 4, 3, 3))
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())
    quantizer.train()(torch.randn(1, 4, 3, 3))
    assert not torch.equal(before["books.0.table"], quantizer.codebooks[0].table)


def test_kmeans_start_puts_the_table_where_the_latents_are() -> None:
    quantizer = SlicedQuantizer(2, 8, 6, dead_code="none").eval()
    places = torch.randn(8, 6) * 5
    latents = (places[torch.arange(512) % 8] + 0.01 * torch.randn(512, 6)).T.reshape(1, 6, 16, 32)
    quantizer.start_from(latents, 128, torch.Generator().manual_seed(0))
    for j, book in enumerate(quantizer.codebooks):
        distances = torch.cdist(places[:, 3 * j : 3 * j + 3], book.table)
        assert float(distances.amin(1).max()) < 0.01
        # 512 / 8 latents a code, of which a step of 128 brings a quarter.
        torch.testing.assert_close(book.size, torch.full((8,), 16.0))
        torch.testing.assert_close(book.total, book.table * 16)
        assert len({tensor.data_ptr() for tensor in (book.table, book.total, book.size)}) == 3
        assert int(book.updates) == 0


def test_kmeans_start_leaves_codes_without_latents_where_they_are() -> None:
    book = EMACodebook(6, 2)
    book.start_from(torch.tensor([[1.0, 0.0], [0.0, 3.0]]).repeat(5, 1), 10, torch.Generator().manual_seed(0))
    assert book.table.unique(dim=0).tolist() == [[0.0, 3.0], [1.0, 0.0]]
    before = book.table.clone()
    latents = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    book.update(latents, nearest_codes(latents, book.table))
    torch.testing.assert_close(book.table, before, rtol=1e-3, atol=1e-3)


def test_kmeans_start_depends_on_the_generator_alone() -> None:
    latents = torch.randn(2, 4, 16, 16)
    tables = []
    for seed in (3, 3, 4):
        quantizer = SlicedQuantizer(2, 16, 4)
        quantizer.start_from(latents, 100, torch.Generator().manual_seed(seed))
        torch.rand(5)
        tables.append(quantizer.codebooks[0].table)
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_averages_settle_when_their_start_is_forgotten() -> None:
    quantizer = SlicedQuantizer(2, 4, 4, decay=0.9)  # 0.9 ** 65 > 0.001 > 0.9 ** 66
    for book in quantizer.codebooks:
        book.updates.fill_(66)
    assert quantizer.is_settled
    quantizer.codebooks[1].updates.fill_(65)
    assert not quantizer.is_settled


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="ema_init='zero' is not one of reference, consistent"):
        VQVAEConfig(ema_init="zero")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dead_code='drop' is not one of none, resample"):
        VQVAEConfig(dead_code="drop")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="code_width=7 does not divide into 2 codebooks"):
        SlicedQuantizer(2, 4, 7)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_codes_of_any_integer_dtype_are_accepted(dtype: type) -> None:
    codes = np.arange(12, dtype=dtype).reshape(1, 2, 2, 3)
    codes.flags.writeable = False
    assert integer_codes(codes, "(N, h, w, n_c)", 4, 3, 12).flatten().tolist() == list(range(12))
    assert integer_codes(torch.tensor(codes), "(N, h, w, n_c)", 4, 3, 12).dtype == torch.int64


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((1, 2, 2, 3)), "codes are integers (N, h, w, n_c), found float64 (1, 2, 2, 3)"),
        (torch.zeros(1, 2, 2, 3, dtype=torch.bool), "codes are integers (N, h, w, n_c), found torch.bool"),
        (np.zeros((2, 2, 3), np.uint8), "codes are (N, h, w, n_c) with n_c=3, found (2, 2, 3)"),
        (np.zeros((1, 2, 2, 4), np.uint8), "codes are (N, h, w, n_c) with n_c=3, found (1, 2, 2, 4)"),
        (np.full((1, 2, 2, 3), 12), "codes must be in [0, 12), found values from 12 to 12"),
        (np.full((1, 2, 2, 3), -1), "codes must be in [0, 12), found values from -1 to -1"),
    ],
)
def test_unusable_codes_are_refused(codes: object, message: str) -> None:
    with pytest.raises(ShapeError) as error:
        integer_codes(codes, "(N, h, w, n_c)", 4, 3, 12)  # type: ignore[arg-type]
    assert message in str(error.value)
