"""`resdet compare-backbones`: the same detector on several backbones at an equal budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resdet.commands.common import RESUMABLE, guarded, is_override, parser_of
from resdet.errors import UserError

if TYPE_CHECKING:
    from resdet.training.comparison import Mode, Trial


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare backbones."""
    parser = parser_of(
        "compare-backbones",
        "Train the same detector on each backbone at an equal budget and write one table and picture: AP with its "
        "spread over seeds, images/s, parameters, memory. The same command continues an interrupted comparison.",
    )
    parser.add_argument("config")
    parser.add_argument(
        "rest", nargs="+", metavar="BACKBONE",
        help="resnet18, timm:NAME, torchvision:NAME; NAME@FILE or NAME@none for other weights or none; a weights file; "
        "or key.sub=value for all",
    )  # fmt: skip
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--iterations", type=int, metavar="N", help="of each training (default: train.max_iters)")
    budget.add_argument(
        "--minutes", type=float, metavar="M", help="of each training, by its speed in the first iterations"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings of each (default: 1)")
    parser.add_argument(
        "--modes", default="probe,finetune",
        help="probe: the whole backbone frozen; finetune: as configured (default: both)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("outputs/backbones"), help="default: outputs/backbones")
    args = parser.parse_intermixed_args(arguments)
    modes: list[Mode] = [mode for mode in ("probe", "finetune") if mode in args.modes.split(",")]
    if not modes or set(args.modes.split(",")) - {"probe", "finetune"}:
        parser.error(f"--modes {args.modes}: write probe, finetune or probe,finetune")
    for name in ("seeds", "iterations", "minutes"):
        if (value := getattr(args, name)) is not None and value <= 0:
            parser.error(f"--{name} must be above 0")

    def run() -> int:
        from resdet.training.comparison import base_config, candidate, planned, run_all, short_label
        from resdet.training.comparison_report import TITLES, ap_of, metric_of, write_report

        overrides = [word for word in args.rest if is_override(word)]
        if taken := [
            w for w in overrides if w.startswith(("model.backbone.name=", "model.backbone.weights=", "seed="))
        ]:
            raise UserError(f"{taken[0]}: the comparison sets it for each training; name backbones as NAME@WEIGHTS")
        if args.iterations:
            overrides.append(f"train.max_iters={args.iterations}")
        config = base_config(args.config, overrides)
        candidates = [candidate(word) for word in args.rest if not is_override(word)]
        if not candidates:
            raise UserError("no backbone to compare: name some, for example resnet18 timm:convnext_tiny")
        budget = f"{args.minutes:g} minutes" if args.minutes else f"{config.train.max_iters} iterations"
        title = f"{Path(args.config).stem}: {budget} of batch {config.train.batch_size}"
        trials = planned(candidates, modes, args.seeds, args.output)
        done: list[Trial] = []

        def note(trial: Trial) -> None:
            done.append(trial)
            what = f"{short_label(trial.candidate)}, {TITLES[trial.mode]}, seed {trial.seed}"
            metric = metric_of([trial])
            if trial.problem:
                print(f"[{len(done)}/{len(trials)}] {what}: failed: {trial.problem}", flush=True)
            else:
                v = trial.values
                print(f"[{len(done)}/{len(trials)}] {what}: {metric} {ap_of(trial, metric):.1f}, "
                      f"{v['images_per_s']:.1f} images/s, {v['seconds']:.0f} s", flush=True)  # fmt: skip
            write_report(args.output, title, candidates, done)

        run_all(trials, args.config, overrides, args.minutes or 0, note)
        print(f"\n{write_report(args.output, title, candidates, done)}\nwritten: {args.output}/results.md, .json, .png")
        failed = sum(bool(trial.problem) for trial in done)
        if failed == len(done):
            raise UserError(f"none of the {failed} trainings succeeded; their output is in {args.output}/*/*/*/log.txt")
        return 0

    return guarded(run, when_interrupted=RESUMABLE)
