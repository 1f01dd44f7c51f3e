"""`resdet browse`: look at a dataset, and at predictions on it, in a web browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resdet.commands.common import detector_config_of, guarded, parser_of
from resdet.commands.eval import labelled_for
from resdet.errors import UserError

if TYPE_CHECKING:
    from resdet.browse.server import Site
    from resdet.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the pictures of a split to this machine's browser."""
    parser = parser_of(
        "browse", "Look at a dataset, and at predictions on it, in a web browser: a server for this machine only."
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--weights", type=Path, help="a checkpoint, to see its predictions and errors")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    args = parser.parse_intermixed_args(arguments)
    args.output = None
    if not 0 <= args.port < 2**16:
        parser.error("--port is from 0 to 65535")

    def run() -> int:
        from resdet.browse.server import HOST, serve
        from resdet.runtime.console import console

        server = serve(site_of(detector_config_of(args), args.split, args.weights), args.port)
        console.print(f"http://{HOST}:{server.server_port} (Ctrl-C ends it)")
        with server:
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                console.print("ended")
        return 0

    return guarded(run)


def site_of(config: Config, split: Literal["train", "val"], weights: Path | None = None) -> Site:
    """The pages of a split. Raises `UserError`."""
    from resdet.browse.findings import concerns_of
    from resdet.browse.pictures import Browsed
    from resdet.browse.server import Site
    from resdet.data.cache import cache_path, load_index
    from resdet.data.splits import read_split, require_data
    from resdet.inference.predictor import Predictor
    from resdet.runtime.console import console
    from resdet.training.setup import with_pixel_range

    require_data(config, [split])
    annotations = load_index(cache_path(config.data, split)) or read_split(config, split)
    predictor = Predictor(config, weights, amp=config.train.amp) if weights else None
    if predictor:
        if "boxes" not in predictor.model.outputs or "proposals" in predictor.model.outputs:
            raise UserError(f"{weights} predicts no objects with classes: browse the data without it")
        annotations, notes = labelled_for(predictor, annotations)
        for note in notes:
            console.print(note, markup=False)
        channels, pixel_range = predictor.model_config.input.channels, predictor.pixel_range
    else:
        given = with_pixel_range(config, annotations).data.pixel_range
        channels, pixel_range = config.model.input.channels, given if isinstance(given, tuple) else None
    browsed = Browsed(annotations, channels, pixel_range, predictor)
    return Site(browsed, f"{annotations.source.name}, {split}", lambda: concerns_of(config, split))
