"""The benchmark's own arithmetic; how fast anything is stands in benchmarks/README.md, never in a test."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tiny
from benchmark import interleaved, limit, milliseconds, parts, rates, report
from peers import FUSED, side_of
from resdet.cli import main
from resdet.config import parse_config
from resdet.errors import UserError
from resdet.kernels import convolution
from resdet.models.build import build_model
from scoring import evaluation_times
from tiny import make_batch, small
from workload import Load, made_batch


@pytest.mark.slow
def test_side_by_side_with_torchvision(shapes_root, tmp_path, capsys) -> None:
    config = tiny.config_file(shapes_root, tmp_path)
    theirs = ["model.fpn.channels=256", "model.box.width=1024", "model.mask={num_convs: 4, width: 256}"]
    code = main([
        "benchmark", str(config), *theirs, "train.amp=bf16", "--size", "96", "120", "--objects", "3", "--repeats", "1",
        "--profile", "--sections", "train,inference,parts,loader", "--output", str(tmp_path / "out"),
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0, printed
    found = json.loads((tmp_path / "out/benchmark.json").read_text())
    for key in ("train step, images/s", "prediction at batch 1, ms an image"):
        assert found[key]["resdet"]["least"] <= found[key]["resdet"]["median"] <= found[key]["resdet"]["most"]
        assert found[key]["torchvision"]["median"] > 0
        assert key in printed
    sides = {"resdet", "torchvision", "torchvision float32"}
    assert found["detections"] == dict.fromkeys(sides, 100)  # all do the same amount of work
    assert set(found["train step, images/s"]) == sides
    assert all(found["peak memory of a step, MiB"][side] > 1 for side in sides)
    parts = found["parts of a train step, s"]
    assert {"backbone", "FPN", "RPN loss", "box head", "mask head", "backward"} <= set(parts)
    assert sum(parts[p] for p in ("backbone", "FPN", "box head", "mask head")) < parts["forward in all"]
    assert all(found["loader, images/s on one core"][side]["least"] > 0 for side in ("resdet", "torchvision"))
    assert json.loads((tmp_path / "out/trace.json").read_text())["traceEvents"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"kind": "retinanet", "head": {"max_detections": 20}},
        {"kind": "fcos", "head": {"scales": False, "distances": "relu", "centerness_on": "box", "max_detections": 20}},
    ],
    ids=lambda m: m["kind"],
)
def test_dense_detectors_beside_torchvision(model, shapes_root) -> None:
    backbone = {"name": "resnet18", "weights": "none", "norm": "bn", "frozen_stages": 0}
    config = parse_config(tiny.values(shapes_root, model={**model, "num_classes": 4, "backbone": backbone}))
    load, device = Load((96, 96), 1, 3, 1), torch.device("cpu")
    ours, theirs = (side_of(name, config, load, device) for name in ("resdet", "torchvision"))
    assert ours.predict(1) == theirs.predict(1) == 20
    theirs.train()


@pytest.mark.slow
def test_rt_detr_beside_transformers(shapes_root) -> None:
    pytest.importorskip("transformers")
    model = {**tiny.RTDETR, "num_classes": 4, "backbone": {"name": "resnet18", "weights": "none"}}
    config = parse_config(tiny.values(shapes_root, model=model, optimizer="adamw"))
    load, device = Load((96, 96), 1, 3, 1), torch.device("cpu")
    ours, theirs = (side_of(name, config, load, device) for name in ("resdet", "transformers"))
    assert (ours.predict(1), theirs.predict(2)) == (80, 40)  # all pairs with a class, and as many as queries
    theirs.train()
    spent = parts(config, load, device)
    assert {"encoder", "decoder", "matching on the host", "losses"} <= set(spent)


@pytest.mark.slow
def test_eight_pictures_at_a_time(shapes_root, tmp_path, capsys) -> None:
    arguments = [str(tiny.config_file(shapes_root, tmp_path)), "--size", "64", "64", "--output", str(tmp_path / "out")]
    assert main(["benchmark", *arguments, "--compare", "none", "--sections", "batch8", "--repeats", "2"]) == 0
    found = json.loads((tmp_path / "out/benchmark.json").read_text())
    speed = found["prediction at batch 8, images/s"]["resdet"]
    assert 0 < speed["least"] <= speed["median"] <= speed["most"]
    assert found["detections"]["resdet"] > 50  # of this small model's few proposals
    assert "prediction at batch 8, images/s" in capsys.readouterr().out


def test_a_half_precision_is_compared_with_both_of_the_other(capsys) -> None:
    def times(ours: float, same: float, full: float) -> dict:
        values = {"resdet": ours, "torchvision": same, "torchvision float32": full}
        return {name: {"median": v, "least": v / 2, "most": v * 2} for name, v in values.items()}

    results = {
        "train step, images/s": times(6.0, 3.0, 1.5),
        "prediction at batch 1, ms an image": times(2.0, 5.0, 9.0),
        "loader, images/s on one core": {n: v for n, v in times(9.0, 2.0, 1.0).items() if "32" not in n},
        "detections": {"resdet": 100, "torchvision": 100, "torchvision float32": 100},
    }
    report(results, ["resdet", "torchvision", "torchvision float32"])
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row and row[0] in results] == [
        ["train step, images/s", "6 ±75%", "3 ±75%", "2.00", "1.5 ±75%", "4.00"],
        ["prediction at batch 1, ms an image", "2 ±75%", "5 ±75%", "2.50", "9 ±75%", "4.50"],
        ["loader, images/s on one core", "9 ±75%", "2 ±75%", "4.50", "", ""],
        ["detections", "100", "100", "", "100", ""],
    ]


@pytest.mark.slow
def test_the_peer_that_is_not_there_is_named(shapes_root, tmp_path, capsys) -> None:
    config = tiny.config_file(shapes_root, tmp_path)
    arguments = ["benchmark", str(config), "--size", "64", "64", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--compare", "detectron2"]) == 2
    assert "detectron2: it cannot be imported" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "torchvision: it builds no model of these sizes (size mismatch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--sections", "trian"])
    assert "trian is none of train" in capsys.readouterr().err


def stand_in_for_detectron2(monkeypatch) -> SimpleNamespace:
    """What the benchmark calls of it, with its signatures; keeps the config that a model was built from."""

    class Instances:
        def __init__(self, image_size: tuple[int, int], **fields: object) -> None:
            self.image_size, self.fields = image_size, fields

        def to(self, device: str) -> Instances:
            return self

        def __len__(self) -> int:
            return len(self.fields["boxes"])

    class Model(torch.nn.Module):
        def __init__(self, config: SimpleNamespace) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def load_state_dict(self, weights: dict[str, Tensor], strict: bool) -> SimpleNamespace:
            seen.weights = weights
            return SimpleNamespace(unexpected_keys=[name for name in weights if name in seen.unknown])

        def forward(self, inputs: list[dict]) -> object:
            if not self.training:
                return [{"instances": Instances((1, 1), boxes=range(100))} for _ in inputs]
            seen.inputs = inputs
            return {"loss": self.scale * 3}

    def get_config(path: str) -> SimpleNamespace:
        parts = {"RESNETS": SimpleNamespace(), "ROI_HEADS": SimpleNamespace()}
        seen.config = SimpleNamespace(path=path, MODEL=SimpleNamespace(**parts), INPUT=SimpleNamespace())
        return seen.config

    seen = SimpleNamespace(unknown=[])
    wrapped = {name: lambda value: value for name in ("BitMasks", "Boxes")}
    for name, content in {
        "detectron2": {"model_zoo": SimpleNamespace(get_config=get_config)},
        "detectron2.modeling": {"build_model": Model},
        "detectron2.structures": {"Instances": Instances, **wrapped},
        "detectron2.utils": {},
        "detectron2.utils.events": {"EventStorage": nullcontext},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.mark.slow
def test_detectron2_is_given_the_same_architecture_images_and_objects(monkeypatch) -> None:
    seen = stand_in_for_detectron2(monkeypatch)
    model = {"num_classes": 7, "backbone": {"name": "resnet101", "weights": "none"}, "mask": {}}
    config = parse_config({"model": model})
    side = side_of("detectron2", config, Load((70, 90), 2, 5, 1), torch.device("cpu"))
    side.train()
    assert side.predict(3) == 300
    assert seen.config.path == "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    assert (seen.config.MODEL.RESNETS.DEPTH, seen.config.MODEL.ROI_HEADS.NUM_CLASSES) == (101, 7)
    torch.manual_seed(0)
    ours = build_model(config.model).state_dict()
    assert len(seen.weights) == len(ours)
    for name, their in {
        "backbone.layer3.22.conv2.weight": "backbone.bottom_up.res4.22.conv2.weight",
        "rpn.convs.0.bias": "proposal_generator.rpn_head.conv.bias",  # not counted, where there is one
        "heads.mask.convs.3.conv.weight": "roi_heads.mask_head.mask_fcn4.weight",
    }.items():
        assert torch.equal(seen.weights[their], ours[name])
    assert [tuple(given["image"].shape) for given in seen.inputs] == [(3, 70, 90)] * 2
    truth = seen.inputs[0]["instances"].fields
    boxes, masks = truth["gt_boxes"], truth["gt_masks"]
    assert masks.shape == (5, 70, 90)
    assert torch.allclose(masks.sum((1, 2)) / ((boxes[:, 2:] - boxes[:, :2]).prod(1)), torch.tensor(0.5), atol=0.2)
    seen.unknown = ["roi_heads.mask_head.predictor.bias"]
    with pytest.raises(UserError, match=r"it has no roi_heads.mask_head.predictor.bias"):
        side_of("detectron2", config, Load((70, 90), 2, 5, 1), torch.device("cpu"))
    config.model.backbone.name = "resnet18"
    with pytest.raises(UserError, match=r"not with .*resnet18"):
        side_of("detectron2", config, Load((70, 90), 2, 5, 1), torch.device("cpu"))


def test_both_sides_take_turns() -> None:
    order = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "abababab"  # one of each to warm up
    assert set(times) == {"a", "b"}
    order.clear()
    interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 1, warm_up=3)
    assert "".join(order) == "abababab"


def test_rates_and_milliseconds_of_times() -> None:
    times = {"a": {"median": 2.0, "least": 1.0, "most": 4.0}}
    assert rates(times, 8) == {"a": {"median": 4.0, "least": 2.0, "most": 8.0}}
    assert milliseconds(times) == {"a": {"median": 2000.0, "least": 1000.0, "most": 4000.0}}


def test_a_side_that_detects_nothing_is_told(capsys) -> None:
    report({"detections": {"resdet": 100, "other": 0}}, ["resdet", "other"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "detections" in line)
    assert [cell.strip() for cell in row.split("│")[2:5]] == ["100", "0", ""]


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_share_of_the_limit_is_operations_over_time(amp: str) -> None:
    found = limit(4e9, {"median": 2.0}, torch.device("cpu"), amp)
    assert (found["GFLOP"], found["GFLOP/s reached"]) == (4, 2)
    assert found["share"] == pytest.approx(2 / found["GFLOP/s of a convolution"])


def test_made_objects_lie_inside_and_have_area() -> None:
    batch = made_batch(Load((70, 90), 2, 5, 1), 2, 4, torch.device("cpu"))
    assert batch.images.shape == (2, 3, 96, 96)
    boxes = batch.targets.boxes
    assert (boxes >= 0).all()
    assert (boxes[..., 2] <= 90).all()
    assert (boxes[..., 3] <= 70).all()
    assert ((boxes[..., 2:] - boxes[..., :2]) >= 4).all()


def test_evaluation_backends_agree_on_made_up_detections() -> None:
    times = evaluation_times(images=20, objects=100)
    assert times["pycocotools"] > 0
    assert times["largest difference of 24 numbers"] < 1e-12


def test_fused_convolutions_are_counted(monkeypatch) -> None:
    model = (
        small(backbone={"name": "resnet50", "weights": "none"})
        .prepare_for_inference()
        .to(memory_format=torch.channels_last)
    )
    counts = []
    for fuses in (convolution.can_fuse, lambda *_: False):
        monkeypatch.setattr(convolution, "can_fuse", fuses)
        with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
            model.predict(make_batch([1, 1]))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 1e9
