"""`resdet backbones` against the published numbers."""

from __future__ import annotations

import pytest
import torchvision

from resdet.cli import main
from resdet.commands.backbones import line, matching, measured


def test_parameters_and_multiply_adds_are_the_published_ones() -> None:
    """He et al. 2015, table 1, and torchvision's own numbers, without the classifier."""
    for name, gflops, top1 in (("resnet18", 1.8, 69.758), ("torchvision:mobilenet_v3_small", 0.056, 67.668)):
        row = measured(name, (224, 224))
        theirs = torchvision.models.get_model(name.partition(":")[2] or name)
        classifier = {id(p) for n, p in theirs.named_parameters() if n.startswith(("fc.", "classifier."))}
        assert row.parameters == sum(p.numel() for p in theirs.parameters() if id(p) not in classifier) / 1e6
        assert row.gflops == pytest.approx(gflops, rel=0.05)
        assert row.top1 == top1
    assert measured("resnet18", (448, 448)).gflops == pytest.approx(4 * 1.81, rel=0.01)


def test_names_match_with_and_without_their_library() -> None:
    assert matching(["resnext50*"]) == ["resnext50_32x4d", "torchvision:resnext50_32x4d"]
    assert matching(["torchvision:*18"]) == ["torchvision:resnet18"]


def test_the_list_fits_80_columns_and_says_what_it_leaves_out(capsys) -> None:
    pytest.importorskip("timm")
    assert main(["backbones", "timm:test_vit*", "timm:levit_128s", "--limit", "3"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "does not work as a backbone for images of any size" in text.replace("\n", " ")
    assert "more: narrow the pattern, or give --limit" in text
    assert main(["backbones", "nothing_like_it*"]) == 2
    assert "no backbone matches nothing_like_it*" in capsys.readouterr().err
    assert (
        main(["backbones", "resnet18", "torchvision:nothing"]) == 2
    )  # the others are listed, and it is not passed over
    out, err = capsys.readouterr()
    assert "resnet18 " in out
    assert "no backbone matches torchvision:nothing" in err
    for wrong in (["--size", "0", "64"], ["--limit", "0"]):
        with pytest.raises(SystemExit, match="2"):
            main(["backbones", *wrong])
    assert "--size and --limit must be above 0" in capsys.readouterr().err
    wide = measured("timm:test_vit", (64, 64))._replace(name="timm:a_name_that_is_far_longer", parameters=1234.5)
    assert max(map(len, line(wide).splitlines())) <= 80
