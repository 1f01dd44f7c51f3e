from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d as TheirFrozen

from resdet.kernels import convolution
from resdet.models.layers import BatchNorm2d, ConvNorm, FrozenBatchNorm2d, conv_norm, make_norm


def test_frozen_batch_norm_is_torchvisions_at_any_eps() -> None:
    for eps in (0.0, 1e-5, 0.1):
        theirs, ours = TheirFrozen(8, eps=eps), FrozenBatchNorm2d(8, eps)
        state = {"weight": torch.rand(8), "bias": torch.rand(8), "running_mean": torch.rand(8)}
        state["running_var"] = torch.rand(8) * 0.1
        theirs.load_state_dict(state)
        ours.load_state_dict({**state, "num_batches_tracked": torch.tensor(3)})
        x = torch.randn(2, 8, 4, 4)
        torch.testing.assert_close(ours(x), theirs(x))
    assert not list(ours.parameters())


def test_padded_rows_do_not_enter_the_statistics() -> None:
    ours, plain = BatchNorm2d(6), nn.BatchNorm2d(6)
    x = torch.randn(10, 6, 5, 5, requires_grad=True)
    valid = torch.arange(10) < 7
    poisoned = torch.where(valid[:, None, None, None], x, 1e3)
    y, expected = ours(poisoned, valid), plain(x[:7])
    torch.testing.assert_close(y[:7], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    (grad,) = torch.autograd.grad((y[:7] ** 3).sum(), x)
    (wanted,) = torch.autograd.grad((expected**3).sum(), x)
    torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-4)


def test_no_valid_row_leaves_the_statistics_alone() -> None:
    norm = BatchNorm2d(6)
    y = norm(torch.randn(4, 6, 5, 5), torch.zeros(4, dtype=torch.bool))
    assert y.isfinite().all()
    assert norm.running_mean.eq(0).all()
    assert norm.running_var.eq(1).all()


def test_evaluation_uses_running_statistics_whatever_is_valid() -> None:
    norm = BatchNorm2d(6).eval()
    x = torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(norm(x, torch.zeros(4, dtype=torch.bool)), norm(x))


def test_conv_norm_passes_valid_on_and_has_a_bias_only_without_norm() -> None:
    for name in ("none", "bn", "gn"):
        conv = ConvNorm(32, 32, 3, name)
        assert (conv.conv.bias is not None) is (name == "none")
        x = torch.randn(4, 32, 7, 7)
        valid = torch.tensor([True, True, False, False])
        other = torch.where(valid[:, None, None, None], x, x + 50)
        torch.testing.assert_close(conv(x, valid)[:2], conv(other, valid)[:2], rtol=1e-4, atol=1e-4)


def _sync_worker(rank: int, file: str, x: torch.Tensor, expected: torch.Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    norm = make_norm("sync_bn", 6)
    y = norm(x[rank * 3 : rank * 3 + 3])
    torch.testing.assert_close(y, expected[rank * 3 : rank * 3 + 3], rtol=1e-4, atol=1e-5)
    dist.destroy_process_group()


@pytest.mark.slow
def test_sync_batch_norm_over_two_processes_equals_one(tmp_path) -> None:
    x = torch.randn(6, 6, 5, 5)
    expected = nn.BatchNorm2d(6)(x).detach()
    mp.spawn(_sync_worker, args=(str(tmp_path / "rendezvous"), x, expected), nprocs=2)
    assert not torch.allclose(nn.BatchNorm2d(6)(x[:3]), expected[:3], atol=1e-3)


@pytest.mark.parametrize("norm", ["frozen_bn", "bn", "gn"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_folded_norm_gives_the_same_values_and_gradients(norm: str, training: bool, groups: int) -> None:
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=groups == 4, groups=groups).double()
    layer = make_norm(norm, 16).double().train(training)
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64, requires_grad=True)
    results = []
    for together in (lambda: conv_norm(conv, layer, x), lambda: layer(conv(x))):
        y = together()
        results.append([y, *torch.autograd.grad((y**3).sum(), [x, conv.weight])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class Fused(TorchDispatchMode):
    """Counts the convolutions that add or rectify."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func.name().startswith("mkldnn::_convolution_pointwise")
        return func(*args, **(kwargs or {}))


on_x86 = pytest.mark.skipif(
    not (torch.backends.cpu.get_cpu_capability().startswith("AVX") and torch.backends.mkldnn.is_available()),
    reason="fused on x86 alone",
)
half_precision = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs AVX-512"),
)


@on_x86
@pytest.mark.parametrize("dtype", [torch.float32, half_precision])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("shortcut", "relu"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 2, 1), (3, 1, 4), (7, 2, 1)])
def test_what_follows_a_convolution_is_fused_without_gradients(
    monkeypatch, dtype: torch.dtype, autocast: bool, shortcut: bool, relu: bool, kernel: int, stride: int, groups: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, kernel, stride, padding=kernel // 2, groups=groups)
    norm = make_norm("frozen_bn" if dtype == torch.float32 else "none", 24)  # folding would round in bfloat16
    for value in norm.state_dict().values():
        value.copy_(torch.rand_like(value) + 0.5)
    x, other = torch.randn(2, 16, 14, 20), torch.randn(2, 24, -(-14 // stride), -(-20 // stride))
    given = [t.to(dtype).float().to(memory_format=torch.channels_last) for t in (x, other)]
    for parameter in conv.parameters():
        parameter.data.copy_(parameter.to(dtype))  # so that only the results are rounded
    if not autocast:
        conv, norm, given = conv.to(dtype), norm.to(dtype), [t.to(dtype) for t in given]
    conv.to(memory_format=torch.channels_last)
    exact = copy.deepcopy(norm).double()(copy.deepcopy(conv).double()(given[0].double()))
    exact = exact + given[1] if shortcut else exact
    exact = F.relu(exact) if relu else exact
    copies = [t.clone(memory_format=torch.preserve_format) for t in given]

    def computed() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast and dtype != torch.float32):
            return conv_norm(conv, norm, given[0], shortcut=given[1] if shortcut else None, relu=relu)

    with Fused() as fused:
        found = computed()
    assert fused.count == (groups == 1 or not shortcut)
    assert found.dtype == dtype
    assert all(map(torch.equal, given, copies))
    monkeypatch.setattr(convolution, "can_fuse", lambda *_: False)
    if dtype == torch.float32:
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, computed(), rtol=1e-6, atol=1e-6)
    else:  # a sum that is rounded once is nearer to the truth
        error, other_error = ((y - exact).abs().mean() for y in (found.double(), computed().double()))
        assert error < 0.9 * other_error if shortcut and groups == 1 else error == other_error
        assert other_error < 0.01


@on_x86
@pytest.mark.parametrize("dtype", [torch.float32, half_precision])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_maps_of_a_single_row_or_pixel(dtype: torch.dtype, size: tuple[int, int]) -> None:
    """Their strides are ambiguous, as those of 1 x 1 kernels are."""
    conv = nn.Conv2d(16, 16, 1).to(dtype)
    plain = torch.randn(1, 16, *size).to(dtype)
    with torch.no_grad():
        expected = F.relu(conv(plain) + plain)
        for strides in (
            (80, 1, 16, 16),
            (80, 1, 16, 1),
            (80, 1, 80, 16),
            (16 * size[0] * size[1], 1, 16 * size[1], 16),
        ):
            x = torch.zeros(1000, dtype=dtype).as_strided(plain.shape, strides).copy_(plain)
            if x.is_contiguous(memory_format=torch.channels_last):
                found = conv_norm(conv, nn.Identity(), x, shortcut=x, relu=True)
                torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@on_x86
@pytest.mark.parametrize("dtype", [torch.float32, half_precision])
def test_a_single_channel(dtype: torch.dtype) -> None:
    for inputs, outputs in ((1, 8), (8, 1), (1, 1)):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1).to(dtype).to(memory_format=torch.channels_last)
        x, shortcut = torch.randn(2, inputs, 5, 7).to(dtype), torch.randn(2, outputs, 5, 7).to(dtype)
        with torch.no_grad():
            found = conv_norm(
                conv, nn.Identity(), x.to(memory_format=torch.channels_last), shortcut=shortcut, relu=True
            )
            torch.testing.assert_close(found, F.relu(conv(x) + shortcut), rtol=1e-2, atol=1e-2)


def test_nothing_is_fused_where_gradients_flow_or_another_layout_is_wanted() -> None:
    conv, norm = nn.Conv2d(8, 8, 1, bias=False), make_norm("frozen_bn", 8)
    x = torch.randn(1, 8, 6, 5)
    last = {"memory_format": torch.channels_last}
    with Fused() as fused:
        conv_norm(conv.to(**last), norm, x.to(**last), relu=True).sum().backward()
        assert conv.weight.grad is not None
        conv.requires_grad_(False)
        conv_norm(conv, norm, x.to(**last).requires_grad_(), relu=True).sum().backward()
        conv_norm(conv, norm, x.to(**last), shortcut=x.to(**last).requires_grad_(), relu=True).sum().backward()
        with torch.no_grad():
            conv_norm(conv, norm, x, relu=True)
        biased = nn.Conv2d(8, 8, 1).to(**last)
        biased.weight.requires_grad_(False)
        conv_norm(biased, nn.Identity(), x.to(**last), relu=True).sum().backward()
        assert biased.bias.grad is not None
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
            exact = conv_norm(copy.deepcopy(conv).double(), nn.Identity(), x.double().to(**last), relu=True)
        assert exact.dtype == torch.float64
    assert fused.count == 0
