"""Parameter names of RT-DETR: in transformers and in the authors' PyTorch code -> ours; and ours -> transformers'.

A table is a list of (beginning of their name, beginning of ours), with {} for a number. The first matching row counts; the rest
of a name is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

Table = list[tuple[str, str]]
QKV = ("query", "key", "value")
STEM = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))


def _fusion(theirs: str) -> Iterator[tuple[str, str]]:
    """The encoder's fusion of levels, with the same names in both."""
    yield f"{theirs}lateral_convs.", "fpn.lateral."
    yield f"{theirs}downsample_convs.", "fpn.downsample."
    for name, ours in (("fpn_blocks", "top_down"), ("pan_blocks", "bottom_up")):
        yield f"{theirs}{name}.{{}}.bottlenecks.{{}}.conv1.", f"fpn.{ours}.{{}}.blocks.{{}}.conv3x3."
        yield f"{theirs}{name}.{{}}.bottlenecks.{{}}.conv2.", f"fpn.{ours}.{{}}.blocks.{{}}.conv1x1."
        yield f"{theirs}{name}.", f"fpn.{ours}."


def _cross_attention(theirs: str) -> Iterator[tuple[str, str]]:
    for name, ours in (
        ("sampling_offsets", "offsets"), ("attention_weights", "weights"), ("value_proj", "value"), ("output_proj", "output"),
    ):  # fmt: skip
        yield f"{theirs}{name}.", f"decoder.layers.{{}}.cross_attention.{ours}."


def _transformers() -> Iterator[tuple[str, str]]:
    for k, (conv, norm) in enumerate(STEM):
        yield f"model.backbone.model.embedder.embedder.{k}.convolution.", f"backbone.{conv}."
        yield f"model.backbone.model.embedder.embedder.{k}.normalization.", f"backbone.{norm}."
    for k in range(4):
        stage, ours = f"model.backbone.model.encoder.stages.{k}.layers.{{}}.", f"backbone.layer{k + 1}.{{}}."
        for j in range(3):
            yield f"{stage}layer.{j}.convolution.", f"{ours}conv{j + 1}."
            yield f"{stage}layer.{j}.normalization.", f"{ours}bn{j + 1}."
        pooled = "" if k == 0 else "1."  # behind the average pooling
        yield f"{stage}shortcut.{pooled}convolution.", f"{ours}downsample.1."
        yield f"{stage}shortcut.{pooled}normalization.", f"{ours}downsample.2."
    for name, ours in (("encoder_input_proj", "fpn.input"), ("decoder_input_proj", "decoder.input")):
        yield f"model.{name}.{{}}.0.", f"{ours}.{{}}.conv."
        yield f"model.{name}.{{}}.1.", f"{ours}.{{}}.norm."
    # Of two spellings the first is that of transformers 4, which version 5 reads too.
    for layer, ours, norms in (
        ("model.encoder.encoder.0.layers.{}.", "fpn.aifi.{}.", ("self_attn", "final")),
        ("model.encoder.aifi.0.layers.{}.", "fpn.aifi.{}.", ("self_attn", "final")),
        ("model.decoder.layers.{}.", "decoder.layers.{}.", ("self_attn", "encoder_attn", "final")),
    ):
        for part in QKV:
            yield f"{layer}self_attn.{part[0]}_proj.", f"{ours}attention.{part}."
        for name in ("out_proj", "o_proj"):
            yield f"{layer}self_attn.{name}.", f"{ours}attention.output."
        for name in ("fc", "mlp.fc"):
            yield f"{layer}{name}1.", f"{ours}linear1."
            yield f"{layer}{name}2.", f"{ours}linear2."
        for k, norm in enumerate(norms, 1):
            yield f"{layer}{norm}_layer_norm.", f"{ours}norm{k}."
    yield from _fusion("model.encoder.")
    yield from _cross_attention("model.decoder.layers.{}.encoder_attn.")
    yield "model.decoder.query_pos_head.", "decoder.position."
    for prefix in ("model.decoder.", ""):  # some files have the heads twice, or outside the decoder
        yield f"{prefix}class_embed.", "decoder.scores."
        yield f"{prefix}bbox_embed.", "decoder.boxes."
    yield "model.enc_output.0.", "queries.project."
    yield "model.enc_output.1.", "queries.norm."
    yield "model.enc_score_head.", "queries.score."
    yield "model.enc_bbox_head.", "queries.box."
    yield "model.denoising_class_embed.", "denoising.embedding."


def _authors() -> Iterator[tuple[str, str]]:
    for k, (conv, norm) in enumerate(STEM, 1):
        yield f"backbone.conv1.conv1_{k}.conv.", f"backbone.{conv}."
        yield f"backbone.conv1.conv1_{k}.norm.", f"backbone.{norm}."
    for k in range(4):
        stage, ours = f"backbone.res_layers.{k}.blocks.{{}}.", f"backbone.layer{k + 1}.{{}}."
        for j, branch in enumerate("abc", 1):
            yield f"{stage}branch2{branch}.conv.", f"{ours}conv{j}."
            yield f"{stage}branch2{branch}.norm.", f"{ours}bn{j}."
        for short in ("short.conv.", "short.") if k else ("short.",):  # the first behind average pooling
            yield f"{stage}{short}conv.", f"{ours}downsample.1."
            yield f"{stage}{short}norm.", f"{ours}downsample.2."
    for side, ours in (("encoder", "fpn"), ("decoder", "decoder")):
        for conv, norm in (("0", "1"), ("conv", "norm")):
            yield f"{side}.input_proj.{{}}.{conv}.", f"{ours}.input.{{}}.conv."
            yield f"{side}.input_proj.{{}}.{norm}.", f"{ours}.input.{{}}.norm."
    for layer, ours in (
        ("encoder.encoder.0.layers.{}.", "fpn.aifi.{}."),
        ("decoder.decoder.layers.{}.", "decoder.layers.{}."),
    ):
        yield f"{layer}self_attn.in_proj_", f"{ours}attention.in_proj_"  # of which `to_ours` makes three
        yield f"{layer}self_attn.out_proj.", f"{ours}attention.output."
        for name in ("linear1.", "linear2.", "norm1.", "norm2.", "norm3."):
            yield f"{layer}{name}", f"{ours}{name}"
    yield from _fusion("encoder.")
    yield from _cross_attention("decoder.decoder.layers.{}.cross_attn.")
    yield "decoder.query_pos_head.", "decoder.position."
    yield "decoder.dec_score_head.", "decoder.scores."
    yield "decoder.dec_bbox_head.", "decoder.boxes."
    for project, norm in (("0", "1"), ("proj", "norm")):
        yield f"decoder.enc_output.{project}.", "queries.project."
        yield f"decoder.enc_output.{norm}.", "queries.norm."
    yield "decoder.enc_score_head.", "queries.score."
    yield "decoder.enc_bbox_head.", "queries.box."
    yield "decoder.denoising_class_embed.", "denoising.embedding."


TRANSFORMERS: Table = list(_transformers())
AUTHORS: Table = list(_authors())
# Computed from the rest of the model.
COMPUTED = r"(anchors|valid_mask|num_points_scale|n_points_scale|num_batches_tracked)$|\.pos_embed\d*$"


def to_ours(weights: dict[str, Tensor], table: Table) -> tuple[dict[str, Tensor], list[str]]:
    """Weights by our names, and the names that no row of the table knows."""
    found: dict[str, Tensor] = {}
    unknown = []
    for name, value in weights.items():
        ours = translated(name, table)
        if ours is None:
            unknown += [] if re.search(COMPUTED, name) else [name]
        elif ".in_proj_" in ours:
            prefix, _, last = ours.partition("in_proj_")
            found |= {f"{prefix}{part}.{last}": rows for part, rows in zip(QKV, value.chunk(3), strict=True)}
        else:
            found[ours] = value
    return found, unknown


def to_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours by transformers' names. Raises `KeyError` for others."""
    back = [(ours, theirs) for theirs, ours in TRANSFORMERS]
    found = {}
    for name, value in weights.items():
        theirs = translated(name, back)
        if theirs is None:
            raise KeyError(name)
        found[theirs] = value
    return found


def translated(name: str, table: Table) -> str | None:
    """A name by the first row of the table that fits; None if there is none."""
    for before, after in table:
        if match := re.match(re.escape(before).replace(r"\{\}", r"(\d+)"), name):
            return after.format(*match.groups()) + name[match.end() :]
    return None
