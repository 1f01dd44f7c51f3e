"""RT-DETR's checkpoints: transformers' folders, the authors' files, resdet's own; read, written, and fine-tuned from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from oracle_rtdetr import theirs
from resdet.checkpoints.locate import find_weights
from resdet.checkpoints.recognise import open_checkpoint, recognise
from resdet.checkpoints.rtdetr_names import AUTHORS, translated
from resdet.checkpoints.transfer import completed, fill, starting_point
from resdet.commands.convert import main as convert
from resdet.config import RTDETRConfig, parse_config
from resdet.errors import UserError
from resdet.export.torchvision import save_own
from resdet.inference.predictor import Predictor
from resdet.models.build import build_model
from tiny import RTDETR, K, shaken, small_rtdetr

SIDE = 96
NAMES = ["ant", "bee", "cat", "dog", "elk"]
# As in rtdetr_r50vd_6x_coco_from_paddle.pth and the files of version 2.
OF_AUTHORS = {
    "backbone.conv1.conv1_1.conv.weight", "backbone.conv1.conv1_3.norm.running_mean",
    "backbone.res_layers.0.blocks.0.branch2a.conv.weight", "backbone.res_layers.0.blocks.0.short.conv.weight",
    "backbone.res_layers.0.blocks.0.short.norm.weight", "backbone.res_layers.1.blocks.0.short.conv.conv.weight",
    "backbone.res_layers.3.blocks.0.short.conv.norm.bias", "encoder.input_proj.0.0.weight",
    "encoder.input_proj.2.1.running_var", "encoder.encoder.0.layers.0.self_attn.in_proj_weight",
    "encoder.encoder.0.layers.0.self_attn.out_proj.bias", "encoder.encoder.0.layers.0.linear1.weight",
    "encoder.encoder.0.layers.0.norm2.weight", "encoder.lateral_convs.0.conv.weight",
    "encoder.fpn_blocks.0.conv1.norm.weight", "encoder.fpn_blocks.1.bottlenecks.2.conv2.conv.weight",
    "encoder.downsample_convs.1.norm.bias", "encoder.pan_blocks.1.bottlenecks.0.conv1.norm.weight",
    "decoder.input_proj.1.conv.weight", "decoder.input_proj.1.norm.weight",
    "decoder.decoder.layers.1.self_attn.in_proj_bias", "decoder.decoder.layers.1.cross_attn.sampling_offsets.weight",
    "decoder.decoder.layers.1.cross_attn.output_proj.bias", "decoder.decoder.layers.0.linear2.bias",
    "decoder.decoder.layers.0.norm3.weight", "decoder.denoising_class_embed.weight",
    "decoder.query_pos_head.layers.1.weight", "decoder.enc_output.0.weight", "decoder.enc_output.1.bias",
    "decoder.enc_score_head.bias", "decoder.enc_bbox_head.layers.2.weight", "decoder.dec_score_head.1.weight",
    "decoder.dec_bbox_head.0.layers.0.weight",
}  # fmt: skip


def picture(size: tuple[int, int] = (70, 110)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def by_authors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights by the names of the authors' first version."""
    back, found = [(ours, name) for name, ours in AUTHORS], {}
    for name, value in weights.items():
        joined = re.sub(r"(?<=\.attention\.)(query|key|value)\.", r"in_proj_\1.", name)
        theirs = translated(joined, back)
        assert theirs, name
        found[
            re.sub(r"^(decoder\.input_proj\.\d\.)(0|1)\.", lambda m: m[1] + ("conv.", "norm.")[int(m[2])], theirs)
        ] = value
    for name in [name for name in found if "in_proj_query." in name]:
        parts = [found.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        found[name.replace("query.", "")] = torch.cat(parts)
    return found


@pytest.mark.slow
def test_a_folder_of_transformers_detects_what_transformers_does(tmp_path) -> None:
    """Of version 2; the test after this one writes one of version 1."""
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: k for k, name in enumerate(NAMES)}}
    oracle = theirs(2, **labels, decoder_n_points=2, decoder_offset_scale=0.8)
    import transformers

    size = {"height": SIDE, "width": SIDE}
    processor = transformers.models.rt_detr.image_processing_pil_rt_detr.RTDetrImageProcessorPil(size=size)
    oracle.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = picture()
    with torch.no_grad():
        output = oracle(**processor(images=Image.fromarray(image), return_tensors="pt"))
    (wanted,) = processor.post_process_object_detection(output, threshold=0, target_sizes=[image.shape[:2]])

    found = open_checkpoint(find_weights(str(tmp_path)))
    assert found.class_names == NAMES
    assert isinstance(found.model, RTDETRConfig)
    assert found.model.queries == RTDETR["queries"]
    assert not found.left_over
    assert "RT-DETR, resnet18-d, 5 classes" in found.report()
    predictor = Predictor(parse_config({}), found, device="cpu")
    (instances,) = predictor([image])
    np.testing.assert_allclose(instances.scores, wanted["scores"], atol=1e-5)
    boxes = wanted["boxes"].numpy().clip(0, [110, 70, 110, 70])
    same = np.abs(instances.boxes - boxes).max(1) < 1e-2
    assert np.array_equal(instances.labels[same], wanted["labels"].numpy()[same])
    assert same.mean() > 0.95  # others change places with equal scores

    assert convert([str(tmp_path), str(tmp_path / "back"), "--to", "transformers"]) == 0
    again = type(oracle).from_pretrained(tmp_path / "back").eval()
    assert again.config.id2label == dict(enumerate(NAMES))
    with torch.no_grad():
        repeated = again(**transformers.AutoImageProcessor.from_pretrained(tmp_path / "back", use_fast=False)(
            images=Image.fromarray(image), return_tensors="pt"
        ))  # fmt: skip
    torch.testing.assert_close(repeated.logits, output.logits, atol=1e-2, rtol=0)


@pytest.mark.slow
def test_a_model_of_ours_is_the_same_in_transformers(tmp_path) -> None:
    """A ResNet-18 without the projection that transformers' has, BGR, with mean and std."""
    transformers = pytest.importorskip("transformers")
    pixels = {"bgr": True, "mean": [100, 110, 120], "std": [50, 60, 70]}
    values = {**RTDETR, "num_classes": K, "backbone": {"name": "resnet18", "weights": "none"}, "input": pixels}
    model = shaken(build_model(parse_config({"model": values}).model)).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "own.safetensors",
              metadata={"config": json.dumps({"model": values, "data": {"min_size": SIDE}})})  # fmt: skip
    assert convert([str(tmp_path / "own.safetensors"), str(tmp_path / "out"), "--to", "transformers"]) == 0
    image = picture((SIDE, SIDE))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        output = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "out").eval()(
            **processor(images=Image.fromarray(image), return_tensors="pt")
        )
    (wanted,) = processor.post_process_object_detection(output, threshold=0, target_sizes=[(SIDE, SIDE)])
    (found,) = Predictor.from_checkpoint(tmp_path / "own.safetensors", device="cpu")([image])
    n = len(wanted["scores"])
    np.testing.assert_allclose(found.scores[:n], wanted["scores"], atol=1e-4)
    same = np.abs(found.boxes[:n] - wanted["boxes"].numpy().clip(0, SIDE)).max(1) < 1e-2
    assert same.mean() > 0.9  # equal scores may change places
    assert np.array_equal(found.labels[:n][same], wanted["labels"].numpy()[same])


def test_the_authors_files_are_read_with_their_averaged_weights(tmp_path) -> None:
    model = shaken(small_rtdetr(backbone={"name": "resnet18", "weights": "none", "project_first": True}))
    weights = model.state_dict()
    averaged = by_authors(weights)
    assert set(averaged) >= OF_AUTHORS
    raw = {name: torch.zeros_like(value) for name, value in averaged.items()}
    extra = {"decoder.anchors": torch.zeros(1, 5, 4), "decoder.valid_mask": torch.ones(1, 5, 1)}
    file = tmp_path / "rtdetr.pth"
    torch.save({"model": raw, "ema": {"module": {**averaged, **extra}, "updates": 3}, "last_epoch": 71}, file)
    found = open_checkpoint(file)
    assert (found.source, found.left_over, found.min_size) == ("RT-DETR's authors", [], 640)
    assert {k for k in weights if not k.endswith("num_batches_tracked")} <= set(found.weights)
    assert all(torch.equal(found.weights[name], value) for name, value in weights.items())
    assert found.model.num_classes == K
    assert (found.model.backbone.norm, found.model.backbone.project_first) == ("bn", True)
    assert isinstance(found.model, RTDETRConfig)
    assert (found.model.encoder.expansion, found.model.decoder.width, found.model.decoder.layers) == (0.5, 40, 2)
    scales = {f"decoder.decoder.layers.{k}.cross_attn.num_points_scale": torch.tensor([1, 0.5, 0.5, 1 / 3, 1 / 3, 1 / 3])
              for k in range(2)}  # fmt: skip
    torch.save({"ema": {"module": {**averaged, **scales}}}, file)
    assert open_checkpoint(file).model.decoder.points == (1, 2, 3)


def test_what_resdet_does_not_have_is_named(tmp_path) -> None:
    weights = by_authors(
        small_rtdetr(backbone={"name": "resnet18", "weights": "none", "project_first": True}).state_dict()
    )
    other = {k.replace("backbone.res_layers.0", "backbone.stages.0"): v for k, v in weights.items()}
    torch.save(other, tmp_path / "hgnet.pth")
    with pytest.raises(
        UserError, match=r"an RT-DETR whose backbone is not a ResNet \(its first tensor: backbone\.stages"
    ):
        recognise(tmp_path / "hgnet.pth")
    torch.save({**weights, "decoder.enc_score_head.bias": torch.zeros(1)}, tmp_path / "agnostic.pth")
    with pytest.raises(UserError, match=r"its query selection has 1 class\(es\), its decoder 5"):
        recognise(tmp_path / "agnostic.pth")
    del weights["decoder.enc_score_head.bias"]
    torch.save(weights, tmp_path / "torn.pth")
    with pytest.raises(
        UserError, match=r"RT-DETR of RT-DETR's authors, but tensors are missing \('queries\.score\.bias'\)"
    ):
        recognise(tmp_path / "torn.pth")


def own(folder: Path, model: dict, names: list[str]) -> Path:
    """A file of resdet's with random weights."""
    detector = small_rtdetr(**model)
    found = recognise_state(detector.state_dict(), folder / "state.pth")
    found.values = {**RTDETR, "backbone": found.values["backbone"], **model, "num_classes": len(names)}
    found.class_names, found.category_ids = names, list(range(1, len(names) + 1))
    save_own(found, folder / "own.safetensors")
    return folder / "own.safetensors"


def recognise_state(weights: dict[str, Tensor], path: Path):
    torch.save(weights, path)
    return open_checkpoint(path)


def test_other_classes_keep_the_rows_of_names_in_common(tmp_path) -> None:
    found = open_checkpoint(own(tmp_path, {}, NAMES))
    assert found.class_names == NAMES
    config = completed(parse_config({"model": {"weights": "x"}}).model, found)
    config.num_classes = 3
    model = build_model(config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    report = fill(model, found, ["dog", "yak", "ant"], config)
    after = model.state_dict()
    assert "rows carried over for: dog, ant" in report
    assert "random" not in report
    for layer in ("queries.score", "decoder.scores.0", "decoder.scores.1"):
        assert torch.equal(after[f"{layer}.weight"][[0, 2]], found.weights[f"{layer}.weight"][[3, 0]])
        assert torch.equal(after[f"{layer}.weight"][1], before[f"{layer}.weight"][1])
        assert torch.equal(after[f"{layer}.bias"][[0, 2]], found.weights[f"{layer}.bias"][[3, 0]])
    embedding = after["denoising.embedding.weight"]
    assert torch.equal(embedding[[0, 2, 3]], found.weights["denoising.embedding.weight"][[3, 0, 5]])
    assert torch.equal(after["decoder.boxes.1.layers.2.weight"], found.weights["decoder.boxes.1.layers.2.weight"])


def test_another_number_of_layers_is_named_with_the_fix_and_of_queries_is_free(tmp_path) -> None:
    file = own(tmp_path, {}, NAMES)
    fewer = parse_config({"model": {"kind": "rtdetr", "decoder": {"layers": 1}, "queries": 7}})
    with pytest.raises(UserError, match=r"\(the model in the file needs model\.decoder\.layers=2\)"):
        Predictor(fewer, file, device="cpu")
    found = open_checkpoint(file)
    config = completed(fewer.model, found)
    config.num_classes = K
    report = fill(build_model(config), found, NAMES, config)
    assert "left over: decoder" in report
    assert "model.decoder.layers=2" in report
    predictor = Predictor(parse_config({"model": {"kind": "rtdetr", "queries": 7}}), file, device="cpu")
    assert predictor.model.queries.count == 7
    with pytest.raises(UserError, match=r"holds a detector of model\.kind=rtdetr, but the config sets model\.mask"):
        Predictor(parse_config({"model": {"mask": {}}}), file, device="cpu")


def test_what_transformers_cannot_build_is_refused(tmp_path, capsys) -> None:
    file = own(tmp_path, {"decoder": {**RTDETR["decoder"], "points": [1, 2, 3]}, "input": {"keep_ratio": True}}, NAMES)
    assert convert([str(file), str(tmp_path / "out"), "--to", "transformers"]) == 2
    file = own(tmp_path, {"decoder": {**RTDETR["decoder"], "predict_layers": 1}}, NAMES)
    assert convert([str(file), str(tmp_path / "out"), "--to", "transformers"]) == 2
    assert "model.decoder.predict_layers is 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit):
        convert([str(file), str(tmp_path / "out"), "--to", "transformers"])


def test_a_detector_on_the_hub_is_asked_for_with_its_configs(monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def offline(*arguments: str) -> None:
        asked.append(arguments)
        raise ConnectionError

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"download config\.json, .* from https://huggingface\.co/PekingU/rtdetr_r50vd"):
        find_weights("hf:PekingU/rtdetr_r50vd")
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, name: f"/hub/{repository}/{name}")
    assert find_weights("hf:PekingU/rtdetr_r50vd") == Path("/hub/PekingU/rtdetr_r50vd/model.safetensors")


def test_the_authors_backbones_are_read(tmp_path) -> None:
    model = shaken(small_rtdetr(backbone={"name": "resnet34", "weights": "none", "project_first": True}))
    weights = {
        k.removeprefix("backbone."): v for k, v in by_authors(model.state_dict()).items() if k.startswith("backbone.")
    }
    torch.save({**weights, "fc.weight": torch.zeros(3, 512)}, tmp_path / "ResNet34_vd.pth")
    backbone = {"name": "resnet34", "weights": str(tmp_path / "ResNet34_vd.pth")}
    config = parse_config({"model": {**RTDETR, "num_classes": 2, "backbone": backbone}})
    found = starting_point(config.model)
    assert found
    assert not found.left_over
    values = completed(config.model, found)
    filled = build_model(values)
    assert "random: fpn" in fill(filled, found, ["a", "b"], values)
    for name, value in model.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(filled.backbone.state_dict()[name], value), name
