"""The report of a run's last evaluation, from the files that it left."""

from __future__ import annotations

import json

from resdet.evaluation.tables import COCO_LIMIT
from resdet.runtime.console import console
from resdet.training.state import Run


def report_run(run: Run) -> None:
    """Write `report/index.html` into the run's folder. Whatever goes wrong is a warning: the run is done and saved."""
    folder = run.config.output
    try:
        from resdet.report.images import of_dataset
        from resdet.report.intervals import MANY
        from resdet.report.write import write_report

        assert run.evaluation
        assert run.val_set
        files = (folder / "eval" / name for name in ("metrics.json", "detections.json"))
        metrics, entries = (json.loads(file.read_text()) for file in files)
        page = write_report(
            folder / "report", run.evaluation, metrics, entries,
            limit=max(COCO_LIMIT, run.model.selection.max_detections), title=f"{folder}, iteration {run.iteration}",
            read=of_dataset(run.val_set), quick=len(run.evaluation.image_sizes) > MANY,
        )  # fmt: skip
    except Exception as error:
        console.print(f"warning: no report: {type(error).__name__}: {error} (train.report=false leaves it out)")
        return
    console.print(f"report: {page}")
