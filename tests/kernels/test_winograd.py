"""Winograd's convolution against torch's in float64."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

import tiny
from resdet.kernels import convolution, winograd
from resdet.kernels.winograd import conv3x3, pays
from resdet.models.layers import Conv2d


def made(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def furthest(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest error, in standard deviations of what is right."""
    return float(((found.double() - exact).abs().max() / exact.std()).detach())


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square error, in standard deviations of what is right."""
    return float(((found.double() - exact).square().mean().sqrt() / exact.std()).detach())


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 5, 3), (3, 1, 1), (1, 30, 41), (7, 14, 14), (1, 8, 3000)])
@pytest.mark.parametrize("channels", [(8, 8), (5, 12)])
def test_values_and_gradients_are_those_of_the_plain_convolution(size, channels, monkeypatch) -> None:
    monkeypatch.setattr(winograd._Four, "at_once", 20)  # in many parts
    torch.manual_seed(0)
    x = made(size[0], channels[0], *size[1:]).requires_grad_()
    weight, bias = made(channels[1], channels[0], 3, 3).requires_grad_(), torch.randn(channels[1], requires_grad=True)
    found = conv3x3(x, weight, bias)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert found.shape == exact.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert furthest(found, exact) < 2e-5
    above = torch.randn(exact.shape)
    for gradient, wanted in zip(
        torch.autograd.grad(found, (x, weight, bias), above),
        torch.autograd.grad(exact, (x, weight, bias), above.double()),
        strict=True,
    ):
        assert gradient.shape == wanted.shape
        torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=2e-5 * float(wanted.abs().max()))


def test_as_precise_as_the_plain_convolution_at_its_real_size() -> None:
    torch.manual_seed(0)
    x, weight = made(1, 256, 64, 65).relu(), made(256, 256, 3, 3) / 48
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert furthest(conv3x3(x, weight, None), exact) < 2e-5  # F.conv2d: about 8e-6


@pytest.mark.parametrize("size", [(1, 4, 4), (2, 5, 3), (3, 1, 1), (1, 30, 41), (7, 14, 14), (1, 8, 3000)])
def test_bfloat16_of_any_size(size, monkeypatch) -> None:
    monkeypatch.setattr(winograd._Two, "at_once", 20)  # in many parts
    torch.manual_seed(0)
    x, above = made(size[0], 5, *size[1:]).bfloat16(), made(size[0], 12, *size[1:]).bfloat16()
    everything = [t.requires_grad_() for t in (x, made(12, 5, 3, 3).bfloat16(), torch.randn(12).bfloat16())]
    doubles = [t.detach().double().requires_grad_() for t in everything]
    found, exact = conv3x3(*everything), F.conv2d(*doubles, padding=1)
    results = [found, *torch.autograd.grad(found, everything, above)]
    for result, wanted in zip(results, [exact, *torch.autograd.grad(exact, doubles, above.double())], strict=True):
        assert result.shape == wanted.shape
        assert error(result, wanted) < 0.02


@pytest.mark.parametrize("shape", [(1, 64, 65), (20, 14, 14)])
def test_bfloat16_rounds_three_times_as_much_as_the_plain_convolution(shape) -> None:
    torch.manual_seed(0)
    x, above = (made(shape[0], 256, *shape[1:]).bfloat16() for _ in range(2))
    weight, bias = (made(256, 256, 3, 3) / 48).bfloat16(), torch.randn(256).bfloat16()
    everything = [t.requires_grad_() for t in (x, weight, bias)]
    doubles = [t.detach().double().requires_grad_() for t in everything]
    exact = F.conv2d(*doubles, padding=1)
    exactly = [exact, *torch.autograd.grad(exact, doubles, above.double())]
    for_all = []
    for conv in (conv3x3, functools.partial(F.conv2d, padding=1)):
        found = conv(x, weight, bias)
        results = [found, *torch.autograd.grad(found, everything, above)]
        assert all(t.dtype == torch.bfloat16 for t in results)
        for_all.append([error(t, wanted) for t, wanted in zip(results, exactly, strict=True)])
    for ours, plain in zip(*for_all, strict=True):
        assert ours < 3.6 * plain


def test_autocast_computes_in_its_dtype_and_gradients_keep_theirs() -> None:
    x, weight, bias = made(1, 8, 9, 9), made(8, 8, 3, 3), torch.randn(8)
    wanted = conv3x3(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    everything = [t.requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = conv3x3(x, weight, bias)
        gradients = torch.autograd.grad(found.float().square().sum(), everything)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)
    assert all(g.dtype == torch.float32 for g in gradients)
    precise = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1).square().sum(), everything)
    assert all(error(g, p.double()) < 0.02 for g, p in zip(gradients, precise, strict=True))


def test_what_comes_next_may_work_in_place() -> None:
    for height in (8, 6):  # the outputs of whole tiles, and of cut ones
        x, weight = made(1, 4, height, 8).requires_grad_(), made(4, 4, 3, 3)
        F.relu(conv3x3(x, weight, None), inplace=True).sum().backward()
        (wanted,) = torch.autograd.grad(F.relu(F.conv2d(x, weight, padding=1)).sum(), x)
        torch.testing.assert_close(x.grad, wanted, rtol=1e-4, atol=1e-5)


def test_only_where_it_pays(monkeypatch) -> None:
    x, weight = made(1, 256, 64, 64), made(256, 256, 3, 3)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert pays(x, weight)
    assert not pays(x.contiguous(), weight)
    assert not pays(x, weight.contiguous())  # where every bit is to be another tool's, the layout is torch's default
    assert not pays(x[:, :, :63].contiguous(memory_format=torch.channels_last), weight)
    assert not pays(made(1, 128, 64, 64), made(256, 128, 3, 3))
    assert not pays(x, made(256, 256, 1, 1))
    assert not pays(x.double(), weight.double())
    for avx512, amx in ((False, False), (True, False), (True, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        bfloat16_too = avx512 and not amx
        assert pays(x.bfloat16(), weight.bfloat16()) is bfloat16_too
        assert not pays(x.half(), weight.half())
        assert not pays(x.bfloat16(), weight)  # which torch refuses
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert pays(x, weight) is bfloat16_too
            assert pays(x.bfloat16(), weight) is bfloat16_too
        with torch.autocast("cpu", dtype=torch.float16):
            assert not pays(x, weight)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not pays(x, weight)  # loops over parts have no place in a graph
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not pays(x, weight)


@pytest.mark.parametrize(
    "options", [{"padding": 0}, {"padding": 1, "stride": 2}, {"padding": 1, "groups": 2}, {"padding": 2, "dilation": 2}]
)
def test_other_convolutions_are_torchs(options: dict, monkeypatch) -> None:
    monkeypatch.setattr(winograd, "pays", lambda x, weight: True)
    conv, x = Conv2d(4, 4, 3, **options), made(1, 4, 9, 9)
    assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, **options))


def test_a_detectors_losses_gradients_and_detections_hardly_change(monkeypatch) -> None:
    used = []
    monkeypatch.setattr(winograd, "conv3x3", lambda *given: used.append(len(given)) or conv3x3(*given))
    batch = tiny.make_batch([3, 5], seed=1)  # with seed 0 one activation lies at zero, where a ReLU's slope is either
    results = []
    for always in (False, True):
        layout = torch.channels_last if always else torch.contiguous_format
        monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
        monkeypatch.setattr(winograd, "MIN_PIXELS", 1)
        model = tiny.small().to(memory_format=layout)
        assert not used
        losses = model(batch)
        sum(losses.values()).backward()
        found = model.eval().predict(batch)
        results.append((losses, {n: p.grad for n, p in model.named_parameters()}, found))
        assert bool(used) is always
        used.clear()
    (losses, gradients, found), (their_losses, their_gradients, theirs) = results
    for name, loss in losses.items():
        torch.testing.assert_close(loss, their_losses[name], rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        # A keypoint's bias moves its whole heatmap, to which the softmax is blind: rounding is all of that gradient.
        if gradient is not None and name != "heads.keypoint.logits.bias":
            error = (gradient - their_gradients[name]).norm() / gradient.norm().clamp(min=1e-8)
            assert error < 1e-3, name
    torch.testing.assert_close(found.scores, theirs.scores, rtol=1e-3, atol=1e-4)


def test_a_detectors_features_are_hardly_less_precise_in_bfloat16(monkeypatch) -> None:
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_PIXELS", 1)
    model, batch = tiny.small(), tiny.make_batch([3, 5])
    errors = []
    with torch.no_grad():
        precise = model.features(batch)
        model.to(memory_format=torch.channels_last)
        for always in (False, True):
            monkeypatch.setattr(winograd, "_bound_by_arithmetic", lambda dtype, has=always: has)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = model.features(batch)
            errors.append([error(found[name], precise[name].double()) for name in precise])
    for plain, ours in zip(*errors, strict=True):
        assert plain < ours < 2 * plain  # otherwise it was not used


def test_the_switch_turns_every_faster_way_off(monkeypatch) -> None:
    conv = Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    x = made(1, 256, 64, 64)
    monkeypatch.setattr(winograd, "pays", lambda *_: pytest.fail("Winograd was asked"))
    monkeypatch.setattr(convolution, "can_fuse", lambda *_: pytest.fail("oneDNN was asked"))
    monkeypatch.setattr(convolution, "FAST_CPU", False)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1), rtol=0, atol=0)
