"""FLOPs are measured, and the traps of measuring are caught."""
import os
import subprocess
import sys

import pytest
import torch
from problems import lm_problem, mlp_problem
from torch import nn

from scaling_nb.contracts import Problem
from scaling_nb.flops import count_params, measure_cost, mfu, transformer_flops
from scaling_nb.zoo.gpt import GPT, next_token_loss


def gpt(vocab=128, T=64, **kw):
    x = torch.zeros(2, T + 1, dtype=torch.long)
    return Problem(GPT, "width", data=(x[:, :-1], x[:, 1:]), loss_fn=next_token_loss, model_kwargs=dict(vocab=vocab, seq_len=T, **kw))


def test_gpt2_124m_oracle():
    cost = measure_cost(gpt(vocab=50304, T=1024, depth=12, heads=12, tied=True), 768)
    assert cost.flops_per_token == transformer_flops(12, 768, 1024, 50304) == 854_654_976
    assert cost.N == 123_568_128 and cost.device == "meta"


@pytest.mark.parametrize("width, depth", [(16, 1), (32, 2), (64, 5)])
def test_gpt_equals_its_closed_form(width, depth):
    cost = measure_cost(gpt(depth=depth), width)
    assert cost.flops_per_token == transformer_flops(depth, width, 64, 128)
    assert cost.N == depth*12*width**2 + 128*width and cost.params.body == depth*12*width**2


def test_every_count_is_kept_apart():
    p = measure_cost(lm_problem(), 32).params
    assert (p.embedding, p.matmul, p.head, p.tied, p.other) == (16*32, 32*32 + 16*32, 16*32, 0, 32 + 16)
    assert p.total == p.embedding + p.matmul + p.other - p.tied


def test_frozen_parameters_are_not_trainable():
    class Frozen(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b = nn.Linear(8, width), nn.Linear(width, 4)
            self.a.requires_grad_(False)
        def forward(self, x): return self.b(torch.relu(self.a(x)))
    cost = measure_cost(mlp_problem(model=Frozen), 16)
    assert cost.params.trainable == 16*4 + 4
    assert cost.flops_per_token == 2*8*16 + 2*16*4 + 2*16*4   # no gradient flows into the frozen layer


class LooksAtValues(nn.Module):
    "Cannot run on the meta device: its forward reads a value."
    def __init__(self, width):
        super().__init__()
        self.l, self.h = nn.Linear(8, width), nn.Linear(width, 4)
    def forward(self, x):
        if x.mean().item() > 1e9: x = -x
        return self.h(torch.relu(self.l(x)))


class Attends(LooksAtValues):
    def forward(self, x):
        y = self.l(x).unsqueeze(0).unsqueeze(0)
        if float(y.detach().sum()) > 1e9: y = -y
        return self.h(nn.functional.scaled_dot_product_attention(y, y, y)[0, 0])


def test_models_that_cannot_live_on_meta_are_measured_on_the_cpu():
    cost = measure_cost(mlp_problem(model=LooksAtValues), 16)
    assert cost.device == "cpu" and cost.flops_per_token == 4*8*16 + 6*16*4


def test_attention_counts_on_the_cpu_too():
    batch = (torch.randn(32, 8), torch.zeros(32, dtype=torch.long))
    cost = measure_cost(mlp_problem(model=Attends), 16, batch)
    assert cost.device == "cpu" and cost.flops_per_token == 4*8*16 + 6*16*4 + 12*32*16


def test_uncounted_weights_warn():
    class Half(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b = nn.Linear(8, width), nn.Linear(width, 4)
        def forward(self, x): return torch.cat([self.b(torch.relu(self.a(x[:len(x)//2])))]*2)
    with pytest.warns(UserWarning, match="register_flop_formula"): measure_cost(mlp_problem(model=Half), 16)


def test_model_without_a_matmul():
    class None_(nn.Module):
        def __init__(self, width): super().__init__(); self.w = nn.Parameter(torch.ones(width))
        def forward(self, x): return x[:, :4]*self.w.sum()
    with pytest.raises(ValueError, match="none reached a matmul"): measure_cost(mlp_problem(model=None_), 16)


def test_bias_is_not_a_matmul_parameter():
    with torch.device("meta"): m, x = nn.Linear(8, 16), torch.empty(2, 8)
    assert count_params(m, x).matmul == 128


def test_unknown_convention_and_peak():
    with pytest.raises(ValueError, match="one of full, causal"): transformer_flops(1, 8, 8, 8, convention="palm")
    with pytest.raises(ValueError, match="peak_flops"): mfu(1, 1, 0)


def test_what_the_backward_pass_keeps_is_counted():
    "By hand, for a perceptron: the input, what the two ReLUs give, the logits' log-softmax, the labels, and a number for the mean."
    from problems import mlp_problem
    for w in (16, 64): assert measure_cost(mlp_problem(), w).activation_bytes == pytest.approx(4*(8 + w + w + 4) + 8, abs=4)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell the peak memory of a process")
def test_the_estimate_of_memory_is_that_of_a_process():
    "A GPT at a batch that takes hundreds of megabytes."
    code = """
import torch
torch.set_num_threads(1)
from scaling_nb import Problem, Recipe, RunSpec, Trainer, measure_cost
from scaling_nb.zoo.gpt import GPT, next_token_loss
x = torch.randint(0, 128, (300, 65))
p = Problem(GPT, 'width', data=(x[:, :-1].contiguous(), x[:, 1:].contiguous()), loss_fn=next_token_loss, model_kwargs=dict(vocab=128, depth=2))
c = measure_cost(p, 128)
peak = lambda: next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith('VmHWM'))*1024
def train(batch):
    t = Trainer(p, RunSpec(0, 128, c.N, 10**9, c.flops_per_token), Recipe(batch_size=batch), device='cpu')
    t.step(); t.step()
train(2); before = peak(); train(256)
print(c.memory(256)/(peak() - before))
"""
    ratio = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert .95 < ratio < 1.6
