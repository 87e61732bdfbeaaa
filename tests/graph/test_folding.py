"""The algebra of the folds, against loops over single weights and against running 1x1 layers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from models import Between, counted_macs, matrix, relative
from torch import Tensor, nn

from branchprune.blending.projections import EndPiece, Expand, Reduce, apply_folded, map_channels
from branchprune.graph.folding import flush_subnormals, fold_bias, fold_weight

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Conv1d": (nn.Conv1d(8, 12, 3, padding=1), (2, 8, 7)),
    "Conv2d": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 7, 6)),
    "Conv2d, 2 groups": (nn.Conv2d(8, 12, 3, padding=1, groups=2), (2, 8, 7, 6)),
    "Conv3d, 4 groups": (nn.Conv3d(8, 12, 2, groups=4), (2, 8, 3, 4, 3)),
    "ConvTranspose1d": (nn.ConvTranspose1d(8, 12, 3, stride=2), (2, 8, 5)),
    "ConvTranspose2d": (nn.ConvTranspose2d(8, 12, (3, 2), 2, 1, (1, 0)), (2, 8, 4, 5)),
    "ConvTranspose2d, 2 groups": (nn.ConvTranspose2d(8, 12, 3, 2, groups=2), (2, 8, 4, 5)),
    "Linear": (nn.Linear(8, 12), (3, 8)),
    "Linear on sequences": (nn.Linear(8, 12), (3, 5, 8)),
}


def ends(layer: nn.Module) -> tuple[Expand, Reduce]:
    """Return random linear ends, 8 from 4 channels and 6 from 12, for a layer."""
    groups = int(getattr(layer, "groups", 1))
    dim = -1 if isinstance(layer, nn.Linear) else 1
    b = torch.randn(8, 4 // groups, dtype=torch.float64)
    kept = 6 if 6 % groups == 0 else 4
    a = torch.randn(kept, 12 // groups, dtype=torch.float64)
    expand = Expand([EndPiece(8, 4, 1, 0, groups)], dim, [b])
    return expand, Reduce([EndPiece(12, kept, 1, 0, groups)], dim, [a])


def folded(layer: nn.Module, expand: Expand, reduce: Reduce) -> dict[str, Tensor]:
    assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    return {
        "weight": fold_weight(layer, layer.weight, reduce.folds(), expand.folds()),
        "bias": fold_bias(layer, layer.bias, reduce.folds()),
    }


@pytest.mark.parametrize("name", LAYERS)
def test_folded_layer_equals_three_layers_in_a_row(name: str) -> None:
    layer, shape = LAYERS[name]
    layer.double()
    expand, reduce = ends(layer)
    x = torch.randn(shape, dtype=torch.float64)
    narrow = x.narrow(expand.dim, 0, 4)
    expected = Between(layer, matrix(expand), matrix(reduce))(narrow)
    found = torch.func.functional_call(layer, folded(layer, expand, reduce), (narrow,))
    assert relative(expected, found) < 1e-12
    assert relative(expected, reduce(layer(expand(narrow)))) < 1e-12


def taps(weight: Tensor) -> Iterator[tuple[int, ...]]:
    yield from product(*(range(n) for n in weight.shape[2:]))


def test_convolution_by_loops() -> None:
    layer, _ = LAYERS["Conv2d, 2 groups"]
    layer.double()
    expand, reduce = ends(layer)
    w, b, a = layer.weight, expand.weights[0], reduce.weights[0]
    expected = torch.zeros(6, 2, 3, 3, dtype=torch.float64)
    for k, j, tap in product(range(6), range(2), taps(w)):
        group = k // 3
        for o, i in product(range(6), range(4)):
            middle = w[group * 6 + o, i][tap]
            expected[(k, j, *tap)] += a[k, o] * middle * b[group * 4 + i, j]
    assert torch.allclose(fold_weight(layer, w, reduce.folds(), expand.folds()), expected)


def test_transposed_convolution_by_loops() -> None:
    layer, _ = LAYERS["ConvTranspose2d, 2 groups"]
    layer.double()
    expand, reduce = ends(layer)
    w, b, a = layer.weight, expand.weights[0], reduce.weights[0]
    expected = torch.zeros(4, 3, 3, 3, dtype=torch.float64)
    for j, k, tap in product(range(4), range(3), taps(w)):
        group = j // 2
        for i, o in product(range(4), range(6)):
            middle = w[group * 4 + i, o][tap]
            expected[(j, k, *tap)] += a[group * 3 + k, o] * middle * b[group * 4 + i, j % 2]
    assert torch.allclose(fold_weight(layer, w, reduce.folds(), expand.folds()), expected)


def test_bias_by_loops() -> None:
    layer, _ = LAYERS["Conv3d, 4 groups"]
    layer.double()
    _, reduce = ends(layer)
    a, bias = reduce.weights[0], layer.bias
    expected = [sum(a[k, o] * bias[k * 3 + o] for o in range(3)) for k in range(4)]
    assert torch.allclose(fold_bias(layer, bias, reduce.folds()), torch.stack(expected))


def test_flattened_image_by_loops() -> None:
    layer = nn.Linear(8 * 6, 5).double()
    b = torch.randn(8, 3, dtype=torch.float64)
    expand = Expand([EndPiece(8, 3, 6, 0)], -1, [b])
    expected = torch.zeros(5, 3, 6, dtype=torch.float64)
    for j, i, pixel in product(range(3), range(8), range(6)):
        expected[:, j, pixel] += layer.weight[:, i * 6 + pixel] * b[i, j]
    found = fold_weight(layer, layer.weight, None, expand.folds())
    assert torch.allclose(found, expected.flatten(1))
    narrow = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    wide = F.conv2d(narrow, b[..., None, None])
    assert torch.allclose(layer(wide.flatten(1)), F.linear(narrow.flatten(1), found, layer.bias))


def test_channels_of_several_layers() -> None:
    layer = nn.Conv2d(12, 4, 3).double()
    b = torch.randn(6, 2, dtype=torch.float64)
    c = torch.randn(2, 1, dtype=torch.float64)
    pieces = [EndPiece(6, 2, 1, 0), EndPiece(2, 2, 1, None), EndPiece(2, 1, 2, 1)]
    expand = Expand(pieces, 1, [b, c])
    narrow = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    first = torch.einsum("ij,njhw->nihw", b, narrow[:, :2])
    pairs = torch.einsum("ij,njrhw->nirhw", c, narrow[:, 4:].unflatten(1, (1, 2))).flatten(1, 2)
    expected = layer(torch.cat([first, narrow[:, 2:4], pairs], 1))
    weight = fold_weight(layer, layer.weight, None, expand.folds())
    assert weight.shape == (4, 6, 3, 3)
    assert relative(expected, F.conv2d(narrow, weight, layer.bias)) < 1e-12
    assert relative(expected, layer(expand(narrow))) < 1e-12


def test_folds_that_do_not_cover_the_channels_are_an_error() -> None:
    layer = nn.Conv2d(8, 4, 1)
    with pytest.raises(AssertionError, match="6 of 8"):
        fold_weight(layer, layer.weight, None, [(6, 1, torch.randn(6, 2))])


@given(
    dims=st.integers(0, 3),
    dim=st.integers(0, 3),
    groups=st.sampled_from([1, 2]),
    repeat=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_map_channels(dims: int, dim: int, groups: int, repeat: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = [*range(2, 3 + dims)]
    dim = min(dim, dims)
    shape[dim] = 4 * repeat
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 4 // groups, generator=generator, dtype=torch.float64)
    dense = torch.block_diag(*weight.chunk(groups))
    by_channel = x.unflatten(dim, (4, repeat)).movedim(dim, -1) @ dense.T
    expected = by_channel.movedim(-1, dim).flatten(dim, dim + 1)
    assert torch.allclose(map_channels(x, weight, dim, repeat, groups), expected)
    assert torch.allclose(map_channels(x, weight, dim - x.dim(), repeat, groups), expected)


@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_expand_blends(alpha: float) -> None:
    b = torch.randn(6, 2)
    pieces = [EndPiece(6, 2, 1, 1), EndPiece(3, 3, 1, None)]
    expand = Expand(pieces, 1, [b])
    narrow, wide = torch.randn(2, 5, 4), torch.randn(2, 9, 4)
    mapped = torch.cat([torch.einsum("ij,njl->nil", b, narrow[:, :2]), narrow[:, 2:]], 1)
    expected = alpha * wide + (1 - alpha) * mapped
    assert torch.allclose(expand(narrow, wide, torch.tensor([9.0, alpha])), expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 40])
@pytest.mark.parametrize("name", LAYERS)
def test_few_and_many_positions_give_the_same(name: str, size: int) -> None:
    """`apply_folded` folds the weights or runs the ends, whichever takes fewer multiply-adds."""
    layer, shape = LAYERS[name]
    layer.double()
    expand, reduce = ends(layer)
    x = torch.randn(size, *shape[1:], dtype=torch.float64).narrow(expand.dim, 0, 4)
    wide = torch.randn(size, *shape[1:], dtype=torch.float64)
    before, behind = matrix(expand), matrix(reduce)
    both = Between(layer, before, behind)(x)
    assert relative(both, apply_folded(layer, reduce, expand, x)) < 1e-12
    first = Between(layer, before, None)(x)
    assert relative(first, apply_folded(layer, None, expand, x)) < 1e-12
    last = Between(layer, None, behind)(wide)
    assert relative(last, apply_folded(layer, reduce, None, wide)) < 1e-12


@pytest.mark.parametrize(("rows", "folds"), [(1, False), (8, False), (1000, True)])
def test_the_cheaper_way_is_taken(rows: int, folds: bool) -> None:
    layer = nn.Linear(64, 64)
    expand = Expand([EndPiece(64, 32, 1, 0)], -1, [torch.randn(64, 32)])
    reduce = Reduce([EndPiece(64, 32, 1, 0)], -1, [torch.randn(32, 64)])
    macs = counted_macs(lambda x: apply_folded(layer, reduce, expand, x), torch.randn(rows, 32))
    one_by_one = rows * (32 * 64 + 64 * 64 + 64 * 32)
    of_the_fold = 64 * 64 * 32 + 64 * 32 * 32
    of_the_bias = 64 * 32
    assert macs == (of_the_fold + of_the_bias + rows * 32 * 32 if folds else one_by_one)


def test_neither_end_has_a_bias() -> None:
    expand, reduce = ends(nn.Conv2d(8, 12, 3))
    assert [name for name, _ in expand.named_parameters()] == ["weights.0"]
    assert [name for name, _ in reduce.named_parameters()] == ["weights.0"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_flush_subnormals(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    values = torch.tensor([1.0, -tiny, tiny / 2, -tiny / 4, 0.0, float("inf")], dtype=dtype)
    expected = torch.tensor([1.0, -tiny, 0.0, 0.0, 0.0, float("inf")], dtype=dtype)
    assert torch.equal(flush_subnormals(values), expected)


def test_only_what_counts_for_nothing_is_flushed() -> None:
    values = torch.tensor([1.0, -3e-5, 2e-6, 2e-7], dtype=torch.float16)
    assert flush_subnormals(values).tolist() == [*values[:3].tolist(), 0.0]
    # Beside numbers that are below the normal range themselves, each of them counts.
    small = values[1:] / 4
    assert torch.equal(flush_subnormals(small), small)
    assert flush_subnormals(torch.full((3,), 1e-39)).tolist() == [0.0] * 3
