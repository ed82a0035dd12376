"""TinyStories and CIFAR-10 from small stand-ins in their own formats.

Neither `datasets` nor `torchvision` is required, so most tests put a module in their place that behaves as documented for what we call.
Where the real one is installed it reads the same files too; elsewhere those tests are skipped."""
import hashlib
import importlib
import json
import pickle
import subprocess
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from scaling_nb import Problem, measure_cost, plan_sweep
from scaling_nb.zoo.gpt import GPT, next_token_loss
from scaling_nb.zoo.hub import LabelledImages, cifar10, text_tokens, tiny_stories
from scaling_nb.zoo.vit import ViT


def installed(module):
    "The library itself, or None where it is not there or does not import beside this torch."
    try: return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError): return None

# --- texts as tokens

def test_bytes_with_a_separator():
    tokens, per = text_tokens([" Été.\n", "Two."]); assert per == 1 and bytes(tokens.tolist()).decode() == "Été.\n\nTwo.\n\n" and tokens.dtype == torch.uint8
    assert bytes(text_tokens(["a", "b"], separator="\0")[0].tolist()) == b"a\0b\0"

def test_a_tokenizer_and_the_bytes_its_tokens_stand_for():
    tokens, per = text_tokens(["ab cd", "éé"], tokenizer=lambda t: [len(w) for w in t.split("|")[0].split()], separator="|")
    assert tokens.tolist() == [2, 2, 2] and per == (6 + 5)/3
    assert text_tokens(["x"], tokenizer=lambda t: [70_000])[0].tolist() == [70_000]

@pytest.mark.parametrize("tokenizer, error, words", [("gpt2", TypeError, "got str.*Pass its method"), (lambda t: {"input_ids": [1]}, TypeError, "returned dict"),
                                                     (lambda t: t, TypeError, "returned str"), (lambda t: [.5], TypeError, "list of integers"), (lambda t: [], ValueError, "at least one token")])
def test_bad_tokenizers(tokenizer, error, words):
    with pytest.raises(error, match=words): text_tokens(["a story"], tokenizer)

def test_no_texts_no_tokens():
    with pytest.raises(ValueError): text_tokens([])
    with pytest.raises(ValueError, match="at least one token"): text_tokens([], tokenizer=list)


# --- TinyStories

STORIES = {"train": [f"Once upon a time there were {i} foxes.  " for i in range(50)], "validation": [f"A hat, {i} times." for i in range(20)]}

class Table:
    "What we use of `datasets.Dataset`."
    def __init__(self, texts, column): self.texts, self.column_names = texts, [column]
    def __len__(self): return len(self.texts)
    def select(self, indices): return Table([self.texts[i] for i in indices], self.column_names[0])
    def iter(self, batch_size):
        for i in range(0, len(self.texts), batch_size): yield {self.column_names[0]: self.texts[i:i + batch_size]}

def folder(tmp_path, kind, column="text"):
    "The stories as the Hub lays them out."
    for part, texts in STORIES.items():
        if kind == "parquet":
            (tmp_path/"data").mkdir(exist_ok=True); half = len(texts)//2
            for k, piece in enumerate((texts[:half], texts[half:])): pq.write_table(pa.table({column: piece}), tmp_path/"data"/f"{part}-{k:05}-of-00002-abc.parquet")
        elif kind == "jsonl": (tmp_path/f"{part}.jsonl").write_text("".join(json.dumps({column: t}) + "\n" for t in texts))
        else: (tmp_path/f"{part}.txt").write_text("".join(t + "\n" for t in texts))
    return tmp_path

@pytest.fixture
def stand_in(monkeypatch):
    "A `datasets` that reads the parquet files of a folder."
    def load_dataset(path, split=None):
        import pathlib
        files = sorted((pathlib.Path(path)/"data").glob(f"{split}-*.parquet"))
        if not files: raise ValueError(f'Unknown split "{split}".')
        tables = [pq.read_table(f) for f in files]
        return Table([t for table in tables for t in table.column(0).to_pylist()], tables[0].column_names[0])
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))

def expected(part, n=None): return b"".join(t.strip().encode() + b"\n\n" for t in STORIES[part][:n])

def check_stories(path):
    train, val = tiny_stories(path, seq_len=16)
    for part, windows in (("train", train), ("validation", val)):
        assert bytes(windows.tokens.tolist()) == expected(part) and windows.tokens_per_sample == 16 and windows.bytes_per_token == 1
    few, _ = tiny_stories(path, 16, stories=3); assert bytes(few.tokens.tolist()) == expected("train", 3)
    assert bytes(tiny_stories(path, 16, stories=10**6)[1].tokens.tolist()) == expected("validation")
    words, _ = tiny_stories(path, 16, tokenizer=lambda t: [len(w) for w in t.split()]); assert words.bytes_per_token == pytest.approx(len(expected("train"))/len(words.tokens))

def test_stories_from_a_stand_in(tmp_path, stand_in): check_stories(folder(tmp_path, "parquet"))

def test_stories_make_a_study(tmp_path, stand_in):
    train, val = tiny_stories(folder(tmp_path, "parquet"), seq_len=16)
    problem = Problem(GPT, "width", data=train, val_data=val, loss_fn=next_token_loss, model_kwargs=dict(seq_len=16))
    assert len(plan_sweep(problem, [1e8], sizes=[8, 16], speed=None)) == 2

def test_another_column_and_other_splits(tmp_path, stand_in):
    path = folder(tmp_path, "parquet", column="story")
    with pytest.raises(ValueError, match="one of story, but got 'text'"): tiny_stories(path, 16)
    assert bytes(tiny_stories(path, 16, column="story", split=("validation", "train"))[0].tokens.tolist()) == expected("validation")

@pytest.mark.skipif(installed("datasets") is None, reason="the package `datasets` is not installed; a stand-in is tested above")
@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_stories_by_the_real_datasets(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path/"cache")
    (tmp_path/"hub").mkdir(); check_stories(folder(tmp_path/"hub", kind))


# --- CIFAR-10

def archive(root):
    "Pickled batches as the archive has them: rows of 3072 bytes, all red, then all green, then all blue."
    base = root/"cifar-10-batches-py"; base.mkdir(parents=True); rng = np.random.default_rng(0)
    for k, name in enumerate(["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]):
        rows = rng.integers(0, 256, (4, 3072), dtype=np.uint8); rows[:, 0], rows[:, 1024], rows[:, 2048] = 10 + k, 100 + k, 200 + k   # the upper left pixel
        (base/name).write_bytes(pickle.dumps({"batch_label": name, "labels": [k, 1, 2, 3], "data": rows, "filenames": [""]*4}))
    (base/"batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij"), "num_cases_per_batch": 4, "num_vis": 3072}))
    return root

class CIFAR10:
    "What we use of `torchvision.datasets.CIFAR10`; it unpickles, we do not."
    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        import pathlib
        base = pathlib.Path(root)/"cifar-10-batches-py"
        if not base.is_dir() and not download: raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        batches = [pickle.loads((base/n).read_bytes()) for n in ([f"data_batch_{k}" for k in range(1, 6)] if train else ["test_batch"])]
        self.data = np.vstack([b["data"] for b in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1); self.targets = [t for b in batches for t in b["labels"]]

def fake(monkeypatch):
    module = types.ModuleType("torchvision.datasets"); module.CIFAR10 = CIFAR10
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision")); monkeypatch.setitem(sys.modules, "torchvision.datasets", module)

def check_cifar(root):
    train, val = cifar10(root)
    assert (len(train), len(val)) == (20, 4) and train.labels.tolist() == [v for k in range(5) for v in (k, 1, 2, 3)] and val.labels.tolist() == [5, 1, 2, 3]
    assert train.pixels.dtype == torch.uint8 and train.pixels.shape == (20, 3, 32, 32)
    x, y = train.batch([4]); mean, std = torch.tensor([.4914, .4822, .4465]), torch.tensor([.2470, .2435, .2616])
    torch.testing.assert_close(x[0, :, 0, 0], (torch.tensor([11., 101., 201.])/255 - mean)/std); assert y.item() == 1   # channels in their places
    assert train.fingerprint() != val.fingerprint() and train.tokens_per_sample == 1 and train.unique_tokens == 20
    problem = Problem(ViT, "width", data=train, val_data=val, loss_fn=F.cross_entropy, model_kwargs=dict(image=32, channels=3))
    assert measure_cost(problem, 16).tokens_per_sample == 1 and any("more than four times" in n for n in plan_sweep(problem, [1e11], sizes=[8, 16], speed=None).notes)

def test_cifar_from_a_stand_in(tmp_path, monkeypatch): fake(monkeypatch); check_cifar(archive(tmp_path))

def test_what_torchvision_says_of_missing_files_comes_through(tmp_path, monkeypatch):
    fake(monkeypatch)
    with pytest.raises(RuntimeError, match="download=True"): cifar10(tmp_path)

@pytest.mark.skipif(installed("torchvision.datasets") is None, reason="`torchvision` is not installed, or does not import beside this torch; a stand-in is tested above")
def test_cifar_by_the_real_torchvision(tmp_path, monkeypatch):
    real, root = importlib.import_module("torchvision.datasets").CIFAR10, archive(tmp_path)
    md5 = lambda name: hashlib.md5((root/"cifar-10-batches-py"/name).read_bytes()).hexdigest()
    for part in ("train_list", "test_list"): monkeypatch.setattr(real, part, [[name, md5(name)] for name, _ in getattr(real, part)])
    monkeypatch.setattr(real, "meta", {**real.meta, "md5": md5("batches.meta")})
    check_cifar(root)

def test_images_keep_their_bytes_and_take_numpy():
    p = np.random.default_rng(0).integers(0, 256, (30, 8, 6, 1), dtype=np.uint8); d = LabelledImages(p, list(range(30)), (.5,), (.25,))
    x, _ = d.batch([2]); assert x.shape == (1, 1, 8, 6) and torch.allclose(x[0, 0], (torch.tensor(p[2, :, :, 0])/255 - .5)/.25, atol=1e-6)
    assert len(pickle.dumps(d)) < p.nbytes + 5_000
    q = p.copy(); q[7, 3, 3, 0] ^= 1; labels = list(range(30)); labels[4] = 9
    others = [LabelledImages(q, list(range(30)), (.5,), (.25,)), LabelledImages(p, labels, (.5,), (.25,)), LabelledImages(p, list(range(30)), (.5,), (.2,))]
    assert len({d.fingerprint(), *(o.fingerprint() for o in others)}) == 4

@pytest.mark.parametrize("pixels, labels, mean, words", [(torch.zeros(3, 8, 8, 1), [0]*3, (.5,), "uint8"), (torch.zeros(3, 8, 8, dtype=torch.uint8), [0]*3, (.5,), "n, H, W, channels"),
    (torch.zeros(3, 8, 8, 1, dtype=torch.uint8), [0]*2, (.5,), "2 labels"), (torch.zeros(3, 8, 8, 1, dtype=torch.uint8), [0]*3, (.5, .5), "each of 1 channels")])
def test_bad_images(pixels, labels, mean, words):
    with pytest.raises(ValueError, match=words): LabelledImages(pixels, labels, mean, (.3,))


# --- libraries that are not there

@pytest.mark.parametrize("call, name", [(tiny_stories, "datasets"), (lambda: cifar10("x"), "torchvision")])
def test_a_missing_library_is_named_with_what_to_install(monkeypatch, call, name):
    for m in (name, f"{name}.datasets"): monkeypatch.setitem(sys.modules, m, None)
    with pytest.raises(ImportError, match=f"needs the package `{name}`.*not installed.*pip install {name}.*scaling_nb.zoo") as e: call()
    assert e.value.name == name

@pytest.mark.parametrize("body, words", [("raise RuntimeError('operator torchvision::nms does not exist')", "installed but cannot be imported: operator torchvision::nms.*fits torch"),
                                         ("import a_part_that_is_missing", "No module named 'a_part_that_is_missing'")])
def test_a_library_that_breaks_speaks_for_itself(tmp_path, monkeypatch, body, words):
    (tmp_path/"torchvision").mkdir(); (tmp_path/"torchvision"/"__init__.py").write_text(body)
    for m in [m for m in sys.modules if m.split(".")[0] == "torchvision"]: monkeypatch.delitem(sys.modules, m)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=words): cifar10("x")

def test_importing_the_zoo_imports_neither():
    code = "import sys; import scaling_nb.zoo.hub, scaling_nb.zoo.images, scaling_nb.zoo.vit, scaling_nb.zoo.teacher; print([m for m in ('datasets', 'torchvision') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
