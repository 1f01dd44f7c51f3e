"""`resdet benchmark`: its arguments. What it measures stands in benchmarks/ of a checkout, outside the package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from resdet.commands.common import config_of, guarded, parser_of
from resdet.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """How fast a config trains and predicts, beside another tool's same model."""
    parser = parser_of("benchmark", "Time training, prediction, loader and evaluation, side by side with another tool.")
    sections = ("train", "inference", "batch8", "parts", "loader", "evaluation")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument(
        "--compare", choices=("torchvision", "detectron2", "transformers", "none"), default="torchvision"
    )
    parser.add_argument("--sections", default="train,inference,parts", help=f"of {','.join(sections)}; or all")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1, help="images per training step")
    parser.add_argument("--objects", type=int, default=10, help="objects per image")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each tool, after one warm-up")
    parser.add_argument("--profile", action="store_true", help="write a trace of a training step")
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="folder for benchmark.json")
    args = parser.parse_intermixed_args(arguments)
    wanted = list(sections) if args.sections == "all" else args.sections.split(",")
    if unknown := [name for name in wanted if name not in sections]:
        parser.error(f"--sections: {', '.join(unknown)} is none of {', '.join(sections)}")

    def run() -> int:
        output, args.output = args.output, None
        config = config_of(args)
        if not (BENCHMARKS / "benchmark.py").is_file():
            raise UserError(
                "the benchmark is not part of the installed package: run it in a checkout of the source, where it is "
                "benchmarks/benchmark.py, with python tools/benchmark.py"
            )
        sys.path.insert(0, str(BENCHMARKS))  # also of the processes that it starts
        from benchmark import benchmark
        from resdet.runtime.device import choose_device
        from workload import Load

        load = Load(tuple(args.size), args.batch, args.objects, args.repeats)
        benchmark(config, load, wanted, choose_device(config.device), args.compare, output, args.profile)
        return 0

    return guarded(run)
