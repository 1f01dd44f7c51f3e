"""Where a run's numbers, settings and sample predictions go, besides its folder: TensorBoard, Weights & Biases, MLflow,
Comet, ClearML.

Each is an extra, imported when used, and keeps to the settings of its own environment variables: `WANDB_MODE=offline`,
`WANDB_PROJECT`, `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` and so on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from resdet.config import Tracker
from resdet.errors import UserError, first_line
from resdet.runs.folder import flat, read_json_object
from resdet.runtime.console import console
from resdet.writing import write_json

IDS = "trackers.json"  # under which ids the trackers know the run, for the next start of it


class Backend(Protocol):
    """One tracker. id: of the run there, by which a resumed run finds it again; "" if it needs none."""

    id: str

    def numbers(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def picture(self, iteration: int, name: str, path: Path) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Event files in the run's folder, `tensorboard/`."""

    id = ""

    def __init__(self, folder: Path, settings: dict[str, Any], start: int, earlier: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.board = SummaryWriter(folder / "tensorboard", purge_step=start + 1)
        if not start:
            rows = (f"|{key}|{value}|" for key, value in flat(settings).items())
            self.board.add_text("config", "\n".join(["|key|value|", "|---|---|", *rows]))

    def numbers(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(name, value, iteration)

    def picture(self, iteration: int, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.board.add_image(name, np.asarray(image), iteration, dataformats="HWC")

    def close(self, failed: bool) -> None:
        self.board.close()


class WeightsAndBiases:
    """https://docs.wandb.ai; offline its files are in the run's folder, `wandb/`, for `wandb sync`."""

    def __init__(self, folder: Path, settings: dict[str, Any], start: int, earlier: str | None) -> None:
        import wandb

        # Its own copy of the console's output would fight with the live panel.
        quiet = wandb.Settings(console="off", silent=True)
        project = os.environ.get("WANDB_PROJECT", "resdet")
        self.run = wandb.init(
            project=project, name=folder.name, dir=folder, id=earlier, resume="allow", config=settings, settings=quiet
        )
        self.id: str = self.run.id
        self.run.define_metric("*", step_metric="iteration")  # W&B's own steps may not go back, as a resumed run does

    def numbers(self, iteration: int, values: Mapping[str, float]) -> None:
        self.run.log({"iteration": iteration, **values})

    def picture(self, iteration: int, name: str, path: Path) -> None:
        import wandb

        self.run.log({"iteration": iteration, name: wandb.Image(str(path))})

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class MLflow:
    """https://mlflow.org/docs/latest/ml/tracking: to `MLFLOW_TRACKING_URI`, in the background."""

    def __init__(self, folder: Path, settings: dict[str, Any], start: int, earlier: str | None) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "resdet"))
        self.id: str = mlflow.start_run(run_id=earlier, run_name=None if earlier else folder.name).info.run_id
        if not earlier:  # parameters cannot change in MLflow
            items = [(key, str(value)[:500]) for key, value in flat(settings).items()]
            for at in range(0, len(items), 100):  # MLflow's limit of a request
                mlflow.log_params(dict(items[at : at + 100]))
        mlflow.log_dict(settings, "config.json")

    def numbers(self, iteration: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=iteration, synchronous=False, run_id=self.id)

    def picture(self, iteration: int, name: str, path: Path) -> None:
        self.mlflow.log_artifact(str(path), name, run_id=self.id)  # from any thread

    def close(self, failed: bool) -> None:
        self.mlflow.flush_async_logging()
        self.mlflow.end_run("FAILED" if failed else "FINISHED")


class Comet:
    """https://www.comet.com/docs; offline (`COMET_START_ONLINE=0`) its archives are for `comet upload`."""

    def __init__(self, folder: Path, settings: dict[str, Any], start: int, earlier: str | None) -> None:
        import comet_ml

        off = dict.fromkeys(("auto_output_logging", "auto_metric_logging", "auto_param_logging", "log_code"), False)
        self.run = comet_ml.start(
            project_name=os.environ.get("COMET_PROJECT_NAME", "resdet"),
            experiment_key=earlier,
            experiment_config=comet_ml.ExperimentConfig(
                name=folder.name, offline_directory=str(folder / "comet"), **off
            ),
        )
        self.id: str = self.run.get_key()
        self.run.log_parameters(flat(settings))

    def numbers(self, iteration: int, values: Mapping[str, float]) -> None:
        self.run.log_metrics(dict(values), step=iteration)

    def picture(self, iteration: int, name: str, path: Path) -> None:
        self.run.log_image(str(path), name=name, step=iteration)

    def close(self, failed: bool) -> None:
        self.run.end()


class ClearML:
    """https://clear.ml/docs; offline with `CLEARML_OFFLINE_MODE=1`, for `clearml-task --import-offline-session`."""

    def __init__(self, folder: Path, settings: dict[str, Any], start: int, earlier: str | None) -> None:
        import clearml

        off = dict.fromkeys(("auto_connect_frameworks", "auto_connect_arg_parser", "auto_connect_streams"), False)
        self.task = clearml.Task.init(
            project_name=os.environ.get("CLEARML_PROJECT", "resdet"),
            task_name=folder.name,
            reuse_last_task_id=False,
            continue_last_task=earlier or False,
            **off,
        )
        self.id: str = self.task.id
        self.task.connect(settings, name="config")

    def numbers(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.task.get_logger().report_scalar(name, name, value, iteration)

    def picture(self, iteration: int, name: str, path: Path) -> None:
        self.task.get_logger().report_image(name, name, iteration, local_path=str(path))

    def close(self, failed: bool) -> None:
        if failed:
            self.task.mark_failed()
        else:
            self.task.close()


BACKENDS: dict[Tracker, tuple[str, Callable[[Path, dict[str, Any], int, str | None], Backend]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "mlflow": ("mlflow", MLflow),
    "comet": ("comet", Comet),
    "clearml": ("clearml", ClearML),
}  # and the extra that each needs


class Trackers:
    """The trackers of a run together. One that fails is named and left out; training continues."""

    def __init__(self, names: Sequence[Tracker], folder: Path, settings: dict[str, Any], start: int) -> None:
        """Raises `UserError` if one is not installed or cannot start."""
        known = read_json_object(folder / IDS) or {} if start else {}
        self.backends: dict[str, Backend] = {}
        for name in dict.fromkeys(names):
            extra, backend = BACKENDS[name]
            try:
                self.backends[name] = backend(folder, settings, start, known.get(name))
            except ImportError:
                self.close(failed=True)
                raise UserError(f"train.loggers: {name} needs the extra: pip install 'resdet[{extra}]'") from None
            except Exception as error:  # whatever the tracker's own code raises: no server, no key, no permission
                self.close(failed=True)
                raise UserError(f"train.loggers: {name} could not start ({first_line(error)})") from None
        if ids := {name: backend.id for name, backend in self.backends.items() if backend.id}:
            write_json(folder / IDS, ids)

    def numbers(self, iteration: int, values: Mapping[str, float]) -> None:
        self._each(lambda backend: backend.numbers(iteration, values))

    def picture(self, iteration: int, name: str, path: Path) -> None:
        self._each(lambda backend: backend.picture(iteration, name, path))

    def close(self, failed: bool) -> None:
        self._each(lambda backend: backend.close(failed))
        self.backends = {}

    def _each(self, act: Callable[[Backend], None]) -> None:
        for name, backend in list(self.backends.items()):
            try:
                act(backend)
            except Exception as error:  # a tracker's failure, of any kind, must not end a training
                del self.backends[name]
                console.print(f"warning: {name} failed ({first_line(error)}); training continues without it")
