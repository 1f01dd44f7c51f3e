"""The GPU's suppression, in Triton's interpreter and, as far as a machine without a GPU can, compiled."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# A process of its own: Triton asks when it is imported whether to interpret.
AGREE = """
import torch, torchvision
from resdet.kernels.nms_triton import keep_mask

def boxes(b, n):
    corner = torch.rand(b, n, 2) * 60
    found = torch.cat([corner, corner + torch.rand(b, n, 2) * 60], -1)
    found[:, ::7, 2:] = found[:, ::7, :2]  # without area
    return found

torch.manual_seed(0)
for n in (0, 1, 32, 150):
    candidates, groups = boxes(2, n), torch.randint(3, (2, n))
    valid = torch.rand(2, n) < torch.tensor([[0.8], [0.3]])  # of the second, whole words are left out
    scores = (torch.rand(2, n) * 20).round() / 20  # with ties
    scores[:, 1::9] = -torch.inf  # no better than what is not valid, but valid
    for threshold, of, count in ((0.5, groups, n), (0.2, None, n), (0.5, groups, 0), (0.5, groups, 20), (0.5, groups, 45)):
        found = keep_mask(candidates, scores, of, valid, threshold, count)
        wanted = torch.zeros_like(valid)
        for b in range(2):
            for group in range(3 if of is not None else 1):
                rows = (valid[b] & (of is None or of[b] == group)).nonzero().flatten()
                wanted[b, rows[torchvision.ops.nms(candidates[b, rows], scores[b, rows], threshold)]] = True
        for b in range(2):  # the best of them; stable, so that ties go as they came
            ranked = torch.where(wanted[b], scores[b], -torch.inf).argsort(descending=True, stable=True)
            ranked = ranked[wanted[b, ranked]]
            wanted[b, ranked[count:]] = False
        assert found.shape == wanted.shape and torch.equal(found, wanted), n
        assert n < 150 or wanted.sum() < valid.sum()
print("agreed")
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from resdet.kernels.nms_triton import CHUNK, ROWS, _overlap_bits, _walk

common = dict(counts="*i64", bits="*i32", n="i32", words="constexpr")
overlap = dict(boxes="*fp32", groups="*i64", threshold="fp32", ROWS="constexpr", **common)
walk = dict(removed="*i32", enough="i32", CHUNK="constexpr", **common)
for capability in (80, 90):
    for fn, signature, number in ((_overlap_bits, overlap, {"ROWS": ROWS}), (_walk, walk, {"CHUNK": CHUNK})):
        source = ASTSource(fn=fn, signature=signature, constexprs={"words": 313, **number})
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
print("compiled")
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.slow
def test_it_keeps_what_torchvision_keeps() -> None:
    assert run(AGREE, TRITON_INTERPRET="1") == "agreed"


@pytest.mark.slow
def test_it_compiles_for_gpus(tmp_path) -> None:
    assert run(COMPILE, TRITON_CACHE_DIR=str(tmp_path)) == "compiled"
