"""Small problems that many tests train."""
import random
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from scaling_nb.contracts import Problem


class MLP(nn.Module):
    def __init__(self, width, n_in=8, n_out=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_out))

    def forward(self, x):
        return self.layers(x)


class TinyLM(nn.Module):
    "A language model of one layer that counts as many tokens as it sees."
    seen = 0

    def __init__(self, width, vocab=16):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.body = nn.Linear(width, width)
        self.head = nn.Linear(width, vocab)

    def forward(self, x):
        if self.training:
            TinyLM.seen += x.numel()
        return self.head(torch.relu(self.body(self.embed(x))))


def lm_loss(logits, y):
    return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())


class Bomb(MLP):
    "Fails in its forward pass at one width."

    def forward(self, x):
        if self.layers[0].out_features == 16 and self.training and x.shape[0] > 4:
            raise RuntimeError("the bomb went off\nin two lines")
        return super().forward(x)


class Slow(MLP):
    "Takes its time, so that something can happen meanwhile."

    def forward(self, x):
        if self.training:
            time.sleep(.002)
        return super().forward(x)


def xy(n=20_000, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=g)
    return x, (x @ torch.randn(8, 4, generator=g)).argmax(-1)


def mlp_problem(**kw):
    return Problem(**{**dict(model=MLP, size_param="width", data=xy(), loss_fn=nn.CrossEntropyLoss()), **kw})


def lm_problem(windows=4000, T=16, **kw):
    g = torch.Generator().manual_seed(1)
    steps = torch.randint(1, 4, (windows, T + 1), generator=g).cumsum(1) % 16
    return Problem(**{**dict(model=TinyLM, size_param="width", data=(steps[:, :-1].contiguous(), steps[:, 1:].contiguous()), loss_fn=lm_loss), **kw})


def until(test, timeout=120):
    "Wait for something that must come."
    deadline = time.monotonic() + timeout
    while not test():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(.05)


class Killed(BaseException):
    "Ends a run as a power cut would: nothing of ours catches it."


_KILL = SimpleNamespace(steps=None)   # no plain data: a fingerprint would see it change


@contextmanager
def killed_at(n):
    "The n-th training step from here is the last."
    _KILL.steps = n
    try:
        yield
    finally:
        _KILL.steps = None


class Noisy(MLP):
    "Draws from all three generators while it trains, and can be killed in the middle of a step."

    def counted(self, x):
        if self.training and _KILL.steps is not None:
            _KILL.steps -= 1
            if _KILL.steps <= 0:
                raise Killed
        return x

    def forward(self, x):
        x = self.counted(x)
        if self.training:
            x = x + 0.1 * torch.randn_like(x) + 0.1 * float(np.random.randn()) + 0.1 * random.random()
        return nn.functional.dropout(super().forward(x), 0.2, self.training)


def curve(where, run_id):
    "Step -> what a run's metrics say, but for the clock and the attempt."
    from scaling_nb.records import open_storage
    return {m["step"]: (m["tokens"], m["loss"], m["lr"]) for m in open_storage(where).metrics(run_id)}
