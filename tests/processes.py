"""What several processes of a test run: `torchrun … tests/processes.py MODE CONFIG OUTPUT`.

train       train
fail        rank 1 raises in its third step, while rank 0 takes long to write the checkpoint of the second
kill        rank 1 is killed in its third step, the first time
stop        rank 1 alone is asked to stop in its second step
gradients   one forward and backward by the first rank alone, the first two, all; each writes its gradients and losses
late        rank 1 never comes to a barrier
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

import resdet
from resdet.boxes import paired_iou
from resdet.checkpoints.checkpoint import Checkpoint
from resdet.commands.common import guarded
from resdet.data.collate import to_device
from resdet.data.dataset import DetectionDataset
from resdet.data.loader import training_loader
from resdet.data.splits import read_split
from resdet.models.detector import LossSums
from resdet.models.rcnn import RCNN
from resdet.models.roi_align import RoIAlign, flatten_rois
from resdet.runtime.distributed import data_parallel, joined
from resdet.structures import Loss, Samples
from resdet.training import saver
from resdet.training.step import TrainingStep

RANK = int(os.environ.get("RANK", 0))


def disturb(mode: str) -> None:
    step = TrainingStep.__call__

    def disturbed(this: TrainingStep, loaded: object) -> object:
        run = this.run
        if RANK == 1 and run.iteration == 3 and mode == "fail":
            raise ValueError("the third step of rank 1 is cursed")
        if RANK == 1 and run.iteration == 3 and mode == "kill" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if RANK == 1 and run.iteration == 2 and mode == "stop":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(this, loaded)

    TrainingStep.__call__ = disturbed
    save = saver.save_checkpoint

    def slow(checkpoint: Checkpoint, path: Path) -> None:
        if mode == "fail" and checkpoint.iteration == 2:
            time.sleep(5)
        save(checkpoint, path)

    saver.save_checkpoint = slow


def gradients(config: resdet.Config) -> None:
    everyone = int(os.environ["WORLD_SIZE"])
    for world in (w for w in (1, 2, 4) if RANK < w <= everyone):
        os.environ["WORLD_SIZE"] = str(world)
        gradients_of(config)


class IoUHead(nn.Module):
    """A user's head, whose loss has a count of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool, self.fc = RoIAlign(7), nn.Linear(channels * 49, 1)

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Loss]:
        found = self.fc(self.pool(features, *flatten_rois(samples.boxes)).flatten(1)).view(samples.valid.shape)
        error = (found - paired_iou(samples.boxes, samples.gt_boxes)).abs()
        return {"iou": Loss(torch.where(samples.positive, error, 0.0).sum(), samples.positive.sum())}


def gradients_of(config: resdet.Config) -> None:
    with joined(torch.device("cpu")) as processes:
        data = DetectionDataset(
            read_split(config, "train"),
            config.data,
            config.model.input,
            train=True,
            masks="masks" in config.model.outputs,
            keypoints="keypoints" in config.model.outputs,
            seed=0,
        )
        torch.manual_seed(0)
        model = resdet.build_model(config.model).train()
        if isinstance(model, RCNN):
            model.heads["iou"] = IoUHead(model.fpn.channels)
        forward = data_parallel(LossSums(model), processes, torch.device("cpu"))
        loader = training_loader(data, 4, 0, rank=processes.rank, world=processes.world)
        batch = next(islice(loader, 1, None)).batch
        found = forward(to_device(batch, torch.device("cpu")))
        divisors = processes.divisors({name: loss.count for name, loss in found.items()})
        losses = {name: loss.sum / divisors[name] for name, loss in found.items()}
        torch.stack(list(losses.values())).sum().backward()
        losses = {k: v.detach() for k, v in losses.items()}
        found = {"losses": processes.mean(losses), "gradients": {n: p.grad for n, p in model.named_parameters()}}
        torch.save(found, config.output / f"{processes.world}-{processes.rank}.pt")


def late(config: resdet.Config) -> None:
    with joined(torch.device("cpu"), config.train.timeout) as processes:
        if processes.main:
            processes.barrier("the start")
        else:
            time.sleep(4 * config.train.timeout)


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, path, output, *overrides = sys.argv[1:]
    config = resdet.load_config(path, overrides)
    config.output = Path(output)
    if mode in ("gradients", "late"):
        run = {"gradients": gradients, "late": late}[mode]
        sys.exit(guarded(lambda: run(config) or 0))
    disturb(mode)
    torch.compile = partial(torch.compile, backend="eager")  # one graph, as inductor takes it, which needs minutes
    sys.exit(guarded(lambda: 0 if resdet.train(config).finished else 75))
