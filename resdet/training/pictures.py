"""What a run draws: predictions on a few validation images, how they change (`film.jpg`), and `curves.png`."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from resdet.config import Config
from resdet.data.collate import collate, to_device
from resdet.data.dataset import DetectionDataset
from resdet.data.pixels import for_display
from resdet.errors import UserError
from resdet.inference.batch import predict_batch
from resdet.inference.postprocess import to_instances
from resdet.models.detector import Detector
from resdet.runtime.console import console
from resdet.runtime.distributed import WRITER
from resdet.structures import Instances
from resdet.training.loggers import RunLog
from resdet.training.state import Run
from resdet.visualize import annotated_instances, contact_sheet, draw, save_image

IMAGES = 4  # validation images in the film strip
COLUMNS = 10  # evaluations in the film strip at most, spread over all
TILE = 300  # side of its cells
SCORE = 0.5  # lowest score drawn
WAIT = 60.0  # seconds that the end of a run waits for curves.png


class Predicted(NamedTuple):
    """pixels: (H, W, 3) uint8 RGB. found: the detections from `SCORE` on."""

    name: str
    pixels: np.ndarray
    truth: Instances
    found: Instances


def predict_images(
    model: Detector, dataset: DetectionDataset, config: Config, indices: Sequence[int]
) -> list[Predicted]:
    """The model's predictions on images of a dataset; unreadable images, which evaluation reports, are left out."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    predicted = []
    for index in indices:
        sample = dataset[index, 0]
        if isinstance(sample, UserError):
            raise sample
        if sample.problems:
            continue
        batch = to_device(collate([sample], config.data.pad_multiple).batch, device)
        info = dataset.annotations.images[index]
        (found,) = to_instances(predict_batch(model.predict, batch, config.train.amp), [info.size])
        label_map = dataset.label_maps.read(info) if dataset.label_maps else None
        truth = annotated_instances(info.objects, info.size, label_map=label_map)
        predicted.append(Predicted(info.file.name, for_display(dataset.read(index)), truth, found.above(SCORE)))
    model.train(was_training)
    return predicted


def drawn(one: Predicted, dataset: DetectionDataset, *, truth: bool = False) -> np.ndarray:
    """The predictions of an image drawn on it, or the ground truth."""
    return draw(
        one.pixels,
        one.truth if truth else one.found,
        dataset.annotations.class_names,
        scores=not truth,
        edges=dataset.annotations.skeleton.edges if dataset.annotations.skeleton else [],
        label_names=dataset.label_maps.names if dataset.label_maps else [],
    )


def prediction_sheet(model: Detector, dataset: DetectionDataset, config: Config, count: int = 6) -> Path:
    """Draw annotations and predictions of the first images side by side -> `config.output`/predictions.jpg."""
    tiles = []
    for one in predict_images(model, dataset, config, range(min(count, len(dataset)))):
        tiles.append((drawn(one, dataset, truth=True), f"{one.name}: annotated"))
        title = f"predicted: {len(one.found)} with a score of {SCORE:.0%} or more"
        tiles.append((drawn(one, dataset), title if "boxes" in model.outputs else "predicted"))
    path = config.output / "predictions.jpg"
    save_image(contact_sheet(tiles, columns=4), path)
    return path


class RunPictures:
    """`film.jpg` and `curves.png`, drawn anew at each evaluation: the film strip in a thread, from predictions made beside the
    evaluation, the curves in a process of their own, so that training waits for neither. A context manager.

    Where `train.pictures` is off, and in processes other than the main one, nothing is drawn.
    """

    def __init__(self, run: Run, log: RunLog) -> None:
        self.run, self.log = run, log
        self.on = run.config.train.pictures and run.distributed.main
        self.folder = run.config.output / "film"
        self._thread: threading.Thread | None = None
        self._curves: subprocess.Popen[str] | None = None
        self._stale = False  # whether curves.png lacks the last evaluation
        if self.on:
            for frame in self.folder.glob("[0-9]*.jpg"):  # of an interrupted run
                if frame.stem.isdigit() and int(frame.stem) > run.iteration:
                    frame.unlink()
            if run.config.train.eval_every and not find_spec("matplotlib"):
                console.print("curves.png is not drawn: it needs pip install 'resdet[plots]'")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.wait()
        if not self._curves:
            return
        try:
            if self._ended(WAIT) and self._stale and kind is None:
                self._draw_curves()
                self._ended(WAIT)
        except subprocess.TimeoutExpired:
            self._curves.kill()

    def evaluated(self, model: Detector) -> None:
        """Predict the images of the film strip, which takes the time of as many images of the evaluation; start to draw."""
        if not self.on:
            return
        if self.run.evaluation:  # a classifier draws its pictures at the end only
            self._predict_film(model)
        if find_spec("matplotlib"):
            self._stale = not (self._curves is None or self._ended(0))  # else it is still drawing the last one's
            if not self._stale:
                self._draw_curves()

    def _predict_film(self, model: Detector) -> None:
        assert self.run.val_set
        dataset = self.run.val_set
        chosen = np.unique(np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).astype(int)).tolist()
        predicted = predict_images(model, dataset, self.run.config, chosen)
        self.wait()
        self._thread = threading.Thread(target=self._film, args=(self.run.iteration, predicted, dataset), name=WRITER)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the thread; needed before forking processes, too."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def _film(self, iteration: int, predicted: list[Predicted], dataset: DetectionDataset) -> None:
        """Draw an evaluation's column, then the strip of all."""
        if not predicted:
            return
        try:
            first = self.folder / "annotated.jpg"
            if not first.exists():
                tiles = [(drawn(one, dataset, truth=True), one.name) for one in predicted]
                save_image(contact_sheet(tiles, 1, TILE), first)
            frame = self.folder / f"{iteration:08d}.jpg"
            tiles = [(drawn(one, dataset), f"iteration {iteration}: {len(one.found)}") for one in predicted]
            save_image(contact_sheet(tiles, 1, TILE), frame)
            frames = sorted(self.folder.glob("[0-9]*.jpg"))
            places = np.unique(np.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).round().astype(int))
            columns = [np.asarray(Image.open(path)) for path in [first, *(frames[k] for k in places)]]
            height = len(columns[-1])
            strip = np.concatenate([column for column in columns if len(column) == height], axis=1)
            save_image(strip, self.run.config.output / "film.jpg")
        except (UserError, OSError) as error:
            console.print(f"warning: film.jpg could not be drawn ({error}); training continues")
            return
        self.log.trackers.picture(iteration, "predictions", frame)

    def _draw_curves(self) -> None:
        command = [sys.executable, "-m", "resdet.runs.curves", str(self.run.config.output)]
        self._curves = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self._stale = False

    def _ended(self, seconds: float) -> bool:
        """Whether the process that draws curves.png has ended; a failure is reported. Raises `TimeoutExpired` unless 0."""
        assert self._curves
        if not seconds and self._curves.poll() is None:
            return False
        _, errors = self._curves.communicate(timeout=seconds or None)
        if self._curves.returncode and errors:
            console.print(f"warning: curves.png could not be drawn ({errors.splitlines()[-1]})")
        return True
