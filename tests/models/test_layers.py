from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torchvision.ops import FrozenBatchNorm2d as TheirFrozen

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
