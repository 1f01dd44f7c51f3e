"""`model.box: null`: the RPN alone, whose proposals are the detections."""

from __future__ import annotations

import json

import pytest
import torch

from resdet.checkpoints.rcnn import fit_hint
from resdet.checkpoints.recognise import open_checkpoint
from resdet.checkpoints.transfer import completed, fill
from resdet.config import parse_config, settings_of
from resdet.data.coco import read_coco
from resdet.data.relabel import as_objects
from resdet.errors import UserError
from resdet.export.torchvision import save_torchvision
from resdet.inference.predictor import Predictor
from resdet.models.build import build_model
from resdet.training.loop import train
from tiny import make_batch, small, values

ALONE = {"box": None, "num_classes": None}


def test_losses_and_proposals_are_those_inside_a_faster_r_cnn() -> None:
    whole, alone = small(mask=None).eval(), small(mask=None, **ALONE).eval()
    left = alone.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("heads.")})
    assert not left.missing_keys
    assert (alone.num_classes, alone.outputs) == (1, {"proposals"})
    batch = make_batch([3, 1])
    theirs, ours = whole(batch), alone(batch)
    assert set(ours) == {"rpn_objectness", "rpn_box"}
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    proposals = []
    whole.heads["box"].predict = lambda _, detections: proposals.append(detections) or detections
    whole.predict(batch)
    found = alone.predict(batch)
    for name in ("boxes", "scores", "labels", "valid"):
        assert torch.equal(getattr(found, name), getattr(proposals[0], name)), name
    assert (found.valid.sum(1) > 20).all()
    limit = float(found.scores[0, 10])
    alone.limit(score_threshold=limit, max_detections=20)
    fewer = alone.predict(batch)
    assert fewer.boxes.shape == (2, 20, 4)
    assert torch.equal(fewer.valid, found.valid[:, :20] & (found.scores[:, :20] > limit))
    assert fewer.valid[0].sum() == 10


def test_what_needs_a_box_head_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"box=null is the RPN alone.*model\.cascade=null, model\.mask=null, model\.keypoi"
    ):
        parse_config({"model": {"box": None, "mask": {}, "keypoint": {}, "cascade": {}}})


@pytest.mark.slow
def test_trained_on_several_classes_it_gives_objects(shapes_root, tmp_path) -> None:
    given = values(shapes_root, max_iters=1, eval_every=1, checkpoint_every=1, milestones=[1])
    given["model"] = {**given["model"], "mask": None, **ALONE}
    train(parse_config({**given, "output": str(tmp_path)}))
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert list(metrics) == ["proposals"]
    assert metrics["proposals"]["AR1000"] is not None
    assert (tmp_path / "checkpoints" / "best.pt").is_file()
    found = open_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert (found.class_names, found.category_ids, found.model.num_classes) == (["object"], [1], 1)
    assert "RPN alone" in found.report()
    predictor = Predictor(parse_config({"model": found.values}), found, max_detections=7)
    (instances,) = predictor([torch.randint(256, (64, 80, 3), dtype=torch.uint8).numpy()])
    assert (len(instances), set(instances.labels.tolist()), predictor.class_names) == (7, {0}, ["object"])
    with pytest.raises(UserError, match=r"torchvision cannot build the RPN alone \(model\.box=null\)"):
        save_torchvision(found, tmp_path / "out.pth")
    # A whole detector starts from it, and asks for the box head by name.
    wanted = parse_config({"model": {"box": {}, "weights": "x.pth", "num_classes": 3}}).model
    assert settings_of(wanted)["box"] == {}
    whole = completed(wanted, found)
    assert whole.box
    report = fill(build_model(whole), found, ["a", "b", "c"], whole)
    assert "not in the file, so random: heads.box" in report
    assert "left over" not in report
    assert completed(parse_config({"model": {"weights": "x.pth"}}).model, found).box is None


def test_all_classes_are_one(shapes_root) -> None:
    read = read_coco(shapes_root / "annotations" / "instances_val2017.json", shapes_root / "val2017")
    images = read.images
    images.arrays["known"] = (
        torch.tensor([[1] * len(read.class_names), [1, *[0] * (len(read.class_names) - 1)]]).bool().numpy()
    )
    images.arrays["known_rows"] = (torch.arange(len(images)) % 2).int().numpy()
    one = as_objects(read)
    assert (one.class_names, one.category_ids) == (["object"], [1])
    assert [len(info.objects.boxes) for info in one.images] == [len(info.objects.boxes) for info in images]
    assert {label for info in one.images for label in info.objects.labels.tolist()} == {0}
    assert [info.known.tolist() for info in one.images][:3] == [[True], [False], [True]]


def test_our_weights_alone_tell_what_they_are(tmp_path) -> None:
    torch.save(small(mask=None, **ALONE).state_dict(), tmp_path / "alone.pth")
    found = open_checkpoint(tmp_path / "alone.pth")
    assert found.model.box is None
    faster = parse_config(
        {"model": {"num_classes": 3, "backbone": {"name": "resnet18"}, "fpn": {"channels": 32}}}
    ).model
    assert "model.box=null" in fit_hint(found.weights, faster)
