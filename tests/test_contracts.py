"""What a user brings: bad input teaches, good input in every form passes."""
import functools
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from problems import MLP, lm_problem, mlp_problem, xy
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from scaling_nb.contracts import Problem, as_dataset, check_problem, fingerprint, split_data


class Pairs(Dataset):
    def __init__(self, n): self.x, self.y = xy(n)
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.y[i]


class Stream(IterableDataset):
    def __iter__(self): return iter(zip(*xy(100)))


@pytest.mark.parametrize("data", [xy(64), TensorDataset(*xy(64)), Pairs(64)], ids=["tensors", "TensorDataset", "map-style"])
def test_finite_data_is_split_and_said_so(data):
    report = check_problem(mlp_problem(data=data))
    assert (report.samples, report.val_samples) == (61, 3) and report.unique_tokens == 61
    assert "5% of the data is held out" in report.notes[0]
    assert split_data(mlp_problem(data=data))[1].indices == split_data(mlp_problem(data=data))[1].indices


@pytest.mark.parametrize("data", [Stream(), DataLoader(Pairs(64), batch_size=8)], ids=["iterable", "loader"])
def test_streams_need_val_data(data):
    with pytest.raises(ValueError, match="`val_data` must be given"): check_problem(mlp_problem(data=data))
    report = check_problem(mlp_problem(data=data, val_data=xy(32)))
    assert report.samples is None and report.unique_tokens is None


@pytest.mark.parametrize("change, error, words", [
    (dict(size_param="widht"), TypeError, "Did you mean `width`"),
    (dict(size_param=7), TypeError, "name of an argument"),
    (dict(model=MLP(8)), None, ""),     # an instance is callable: caught when it is called with width=
    (dict(data=(xy()[0][:0], xy()[1][:0])), ValueError, "empty"),
    (dict(data=xy()[0]), TypeError, "single tensor"),
    (dict(data=(xy()[0], xy()[1][:5])), ValueError, "one length"),
    (dict(data=None), TypeError, "`data` must be given"),
    (dict(data=iter([1])), TypeError, "IterableDataset"),
    (dict(loss_fn=None), TypeError, "must be given"),
    (dict(loss_fn=nn.CrossEntropyLoss), TypeError, "Write `CrossEntropyLoss"),
    (dict(loss_fn=lambda a: a), TypeError, "two arguments"),
    (dict(loss_fn=nn.CrossEntropyLoss(reduction="none")), ValueError, r"scalar.*\(4,\)"),
    (dict(loss_fn=lambda o, y: 1.0), TypeError, "must return a tensor"),
    (dict(loss_fn=lambda o, y: o.sum().detach()), ValueError, "must have a gradient"),
    (dict(loss_fn=lambda o, y: o.sum()*float("nan")), ValueError, "finite"),
    (dict(val_fraction=1.5), ValueError, "val_fraction"),
    (dict(size_param=lambda s: s), TypeError, "must return a dict"),
])
def test_bad_input_says_what_must_hold(change, error, words):
    with pytest.raises(error or TypeError, match=words or None): check_problem(mlp_problem(**change))


def test_model_that_ignores_its_size():
    class Fixed(MLP):
        def __init__(self, width): super().__init__(16)
    with pytest.raises(ValueError, match="must change with the size"): check_problem(mlp_problem(model=Fixed))


@pytest.mark.parametrize("value", [3.5, "12", True, None])
def test_num_params_must_be_an_int(value):
    class Odd(MLP):
        def num_params(self): return value
    with pytest.raises(TypeError, match="num_params"): check_problem(mlp_problem(model=Odd))


def test_forward_that_fails_names_the_shapes_and_the_remedy():
    with pytest.raises(ValueError, match=r"inputs \(4, 12\) and targets \(4, 12\).*flatten"): check_problem(lm_problem(T=12, loss_fn=nn.CrossEntropyLoss()))


def test_size_param_in_model_kwargs_warns_and_loses():
    p = mlp_problem(model_kwargs=dict(width=7))
    with pytest.warns(UserWarning, match="the sweep's value wins"): check_problem(p)
    assert p.kwargs(32)["width"] == 32


def test_sum_loss_warns():
    with pytest.warns(UserWarning, match="looks like a sum"): check_problem(mlp_problem(loss_fn=nn.CrossEntropyLoss(reduction="sum")))


@pytest.mark.parametrize("wrap", [lambda out: (out, "state"), lambda out: [out], lambda out: type("Out", (), dict(logits=out))()], ids=["tuple", "list", "logits"])
def test_models_that_return_more_than_logits(wrap):
    class More(MLP):
        def forward(self, x): return wrap(super().forward(x))
    assert check_problem(mlp_problem(model=More)).loss > 0


def test_check_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    check_problem(mlp_problem())
    assert torch.equal(before, torch.get_rng_state())


def test_fingerprint_names_the_part_that_changed():
    base = fingerprint(mlp_problem())
    differs = lambda **kw: [k for k, v in fingerprint(mlp_problem(**kw)).items() if v != base[k] and k != "name"]
    assert differs() == []
    assert differs(model_kwargs=dict(n_out=8)) == ["model_kwargs"]
    assert differs(data=xy(seed=3)) == ["data"]
    assert differs(loss_fn=nn.CrossEntropyLoss(label_smoothing=.1)) == ["loss"]
    assert differs(model=functools.partial(MLP, n_in=8)) == ["model"]
    assert differs(val_data=xy(seed=5)) == ["data"]
    assert fingerprint(pickle.loads(pickle.dumps(mlp_problem()))) == base


def test_a_constant_beside_the_model_or_in_a_closure_counts(tmp_path):
    "A run may only be reused when nothing that decides its result has changed; a comment decides nothing."
    def prints(comment="", hidden=2, scale=1.0):
        (tmp_path/"mine.py").write_text(textwrap.dedent(f'''
            import torch
            from torch import nn
            HIDDEN = {hidden}
            class Block(nn.Module):
                "{comment}"
                def __init__(self, w): super().__init__(); self.l = nn.Linear(w, w)   # {comment}
                def forward(self, x): return self.l(x)
            class Net(nn.Module):
                def __init__(self, width):
                    super().__init__()
                    self.b = nn.Sequential(nn.Linear(8, width), *[Block(width) for _ in range(HIDDEN)], nn.Linear(width, 4))
                def forward(self, x): return self.b(x)
            def scaled(k):
                def loss(o, y): return k*nn.functional.cross_entropy(o, y)
                return loss
            from scaling_nb.contracts import Problem, fingerprint
            x = torch.arange(80.).reshape(10, 8)
            f = fingerprint(Problem(Net, "width", data=(x, torch.zeros(10, dtype=torch.long)), loss_fn=scaled({scale})))
            print(f["model"], f["loss"])'''))
        return subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    base = prints()
    assert prints() == base                          # another process
    assert prints(comment="a note") == base
    assert prints(hidden=3)[0] != base[0]
    assert prints(scale=2.0)[1] != base[1]


def test_one_tensor_dataset_kinds_keep_their_identity():
    data = TensorDataset(*xy(10))
    assert as_dataset(data) is data


def test_problem_needs_a_class_not_an_object():
    with pytest.raises(TypeError, match="must be a class or a factory"): Problem(3, "width")


def _maker(cls):
    def make(params): return cls(params, lr=.1)
    return make


def test_what_a_recipe_or_a_loss_holds_decides_too():
    from scaling_nb.contracts import content_hash
    weights = [nn.CrossEntropyLoss(weight=torch.tensor([1., 1., 1., w])) for w in (1., 2.)]
    made = [(lambda p, lr=lr: torch.optim.SGD(p, lr=lr)) for lr in (.1, .5)]
    closed = [_maker(c) for c in (torch.optim.SGD, torch.optim.Adam)]
    for a, b in (weights, made, closed, [functools.partial(MLP, n_in=n) for n in (4, 8)], [dict(act=a) for a in (torch.relu, torch.tanh)]):
        assert content_hash(a) != content_hash(b)
        assert content_hash(a) == content_hash(a)


NOTEBOOK = """
import torch
from torch import nn
from scaling_nb.contracts import Problem, fingerprint
class Base(nn.Module):
    scale = {scale}
class Block(nn.Module):
    mult = {mult}          # {comment}
    def __init__(self, w): super().__init__(); self.l = nn.Linear(w, self.mult*w); self.o = nn.Linear(self.mult*w, w)
    def forward(self, x): return self.o(self.l(x)) if str(x.ndim) in {{"1", "2", "3", "4"}} else x
class Net(Base):
    def __init__(self, width, depth={depth}): super().__init__(); self.b = nn.Sequential(nn.Linear(8, width), *[Block(width) for _ in range(depth)], nn.Linear(width, 4))
    def forward(self, x): return self.scale*self.b(x)
x = torch.arange(80.).reshape(10, 8)
print(fingerprint(Problem(Net, "width", data=(x, torch.zeros(10, dtype=torch.long)), loss_fn=nn.CrossEntropyLoss(), model_kwargs=dict(depth=2))))
"""


def test_classes_of_a_notebook_are_read_from_its_cells():
    "In a kernel a class has no file; its defaults, attributes, bases and neighbours decide all the same, and an address never does."
    import nbformat
    from nbclient import NotebookClient
    cases = [dict(), dict(), dict(comment="a note"), dict(mult=8), dict(depth=5), dict(scale=2.0)]
    def prints(cells):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK.format(**{**dict(scale=1.0, mult=4, depth=3, comment=""), **c})) for c in cells])
        NotebookClient(nb, timeout=120, kernel_name="python3").execute(stderr=subprocess.DEVNULL)
        return [eval(c.outputs[0]["text"])["model"] for c in nb.cells]
    first, = prints(cases[:1])
    base, note, mult, depth, scale = prints(cases[1:])       # another kernel
    assert first == base == note and len({base, mult, depth, scale}) == 4
