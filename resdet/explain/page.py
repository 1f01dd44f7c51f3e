"""A prediction explained: pictures in a folder, and a page of all of them that needs no other file."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html import escape
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from resdet import html
from resdet.data.pixels import for_display
from resdet.drawing.layout import SMALLEST_SIDE
from resdet.explain.pictures import Figure, Section
from resdet.explain.record import recorded
from resdet.explain.stages import (
    Seen,
    attention,
    classification,
    feature_maps,
    masks,
    objectness,
    refinement,
)
from resdet.inference.predictor import Predictor, prepare
from resdet.visualize import draw
from resdet.writing import make_folder, write_text


def explain(predictor: Predictor, image: np.ndarray) -> list[Section]:
    """Predict an image, as `Predictor.read` returns it, and show what happened on the way; the final result comes first."""
    with recorded(predictor.model) as calls:
        (found,) = predictor.predict_units([image])
    resized = prepare(image, predictor.model_config, predictor.min_size, predictor.max_size)
    h, w = resized.shape[:2]
    factor = max(1, -(-SMALLEST_SIDE // min(h, w)))
    shown = cv2.resize(for_display(resized), (w * factor, h * factor), interpolation=cv2.INTER_CUBIC)
    padded = calls["backbone"].inputs[0].shape[-2:]
    scale = np.array([w / found.image_size[1], h / found.image_size[0]] * 2, np.float32)
    in_frame = replace(found, boxes=found.boxes * scale)
    seen = Seen(calls, shown, (padded[0] * factor, padded[1] * factor), factor, in_frame, predictor.class_names)
    drawn = draw(
        for_display(image), found, predictor.class_names, edges=predictor.edges, label_names=predictor.label_names
    )
    threshold = predictor.model.selection.score_threshold
    what = f"{len(found)} object{'' if len(found) == 1 else 's'} with a score of {threshold:.0%} or more."
    has_boxes = "boxes" in predictor.model.outputs
    result = Section("The result", what if has_boxes else "", [Figure(drawn, "the image as it is")])
    chapters = (feature_maps, objectness, classification, refinement, masks, attention)
    return [result, *(section for chapter in chapters for section in chapter(seen) if section.figures)]


def write_explanation(title: str, sections: list[Section], folder: Path) -> Path:
    """-> the page, `index.html`, beside a file for each picture. Raises `UserError`."""
    make_folder(folder)
    body = ""
    for number, section in enumerate(sections, 1):
        figures = ""
        for k, (picture, caption) in enumerate(section.figures, 1):
            data = io.BytesIO()
            Image.fromarray(picture).save(data, "JPEG", quality=88)
            name = re.sub(r"\W+", "_", section.title.lower()).strip("_")
            (folder / f"{number}_{name}_{k}.jpg").write_bytes(data.getvalue())
            figures += html.figure(html.picture(data.getvalue(), f"{section.title}: {caption}"), caption)
        row = f'<div class="row{" small" if section.small else ""}">{figures}</div>'
        body += f'<h2>{escape(section.title)}</h2><p class="note">{escape(section.text)}</p>{row}'
    page = folder / "index.html"
    write_text(page, html.document(title, body))
    return page
