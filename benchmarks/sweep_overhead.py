"""Wall time of a sweep over the sum of its work divided by its workers: python benchmarks/sweep_overhead.py

Forty runs that sleep for a known time inside their training steps, so that other load cannot stretch the work; workers are warm or cold."""
import math
import tempfile
import time

import torch
from torch import nn

from scaling_nb import Problem, Recipe, Resources, RunSpec, SweepPlan, run_sweep


class Sleeper(nn.Module):
    "Ten steps, each of `width` milliseconds."

    def __init__(self, width):
        super().__init__()
        self.width, self.layer = width, nn.Linear(4, width)

    def forward(self, x):
        if self.training:
            time.sleep(self.width / 1000)
        return self.layer(x)[:, :4]


def main(runs=40, workers=2):
    x, y = torch.randn(400, 4), torch.zeros(400, dtype=torch.long)
    problem = Problem(Sleeper, "width", data=(x, y), loss_fn=nn.CrossEntropyLoss())
    ms = [round(50 * 10 ** (i / (runs - 1))) for i in range(runs)]  # 0.5 to 5 s a run
    specs = tuple(RunSpec(1.0 * w, w, 4 * w, 100, float(w), seed=i) for i, w in enumerate(ms))
    work = sum(10 * w / 1000 for w in ms) / workers
    for what in ("cold", "warm"):
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            runs_ = run_sweep(problem, SweepPlan(specs), Recipe(batch_size=10, base_width=None), storage=folder, resources=Resources(slots=workers), view=False)
            wall = time.monotonic() - start
            per_run = sum(runs_.frame.wall_s)
            print(f"{what} Ray: wall {wall:.1f} s, work / workers {work:.1f} s, ratio {wall / work:.2f}; inside the runs {per_run / workers / work:.2f}")
            assert math.isclose(len(runs_.L), len(specs))


if __name__ == "__main__":
    main()
