"""A sweep submitted to a real cluster of two nodes, started as the docs say: what travels, what comes back, what stops it, who is refused."""
import contextlib
import http.server
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from problems import mlp_problem

from scaling_nb.jobs import Job, _loopback, is_guarded, job_server, open_package, pack_study, submit_study, version_mismatch, versions
from scaling_nb.recipes import Recipe
from scaling_nb.sweep import RunSpec, plan_sweep

GUIDE = Path(__file__).resolve().parents[1]/"nbs"/"guides"/"cluster.ipynb"


def free_port():
    "A port that nobody has, below those that the system gives away and outside those of Ray's workers"
    for port in range(20_100 + os.getpid() % 5000, 32_000):
        with contextlib.closing(socket.socket()) as s:
            if s.connect_ex(("127.0.0.1", port)):
                return port


@pytest.fixture(scope="module")
def cluster():
    "Two nodes on this machine, a core each, by the commands of the guide, with ports of their own."
    folder = Path(tempfile.mkdtemp(prefix="snb"))   # short: sockets have long names
    text = "".join("".join(c["source"]) for c in json.loads(GUIDE.read_text())["cells"])
    make_token = re.search(r"\(umask 077 && (python -c .*) > ~/ray-token\)", text)[1]
    token = folder/"ray-token"
    subprocess.run(f"(umask 077 && {make_token} > {token})", shell=True, check=True)
    assert token.stat().st_mode & 0o777 == 0o600
    gcs, server = free_port(), free_port() + 1
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    ours = {"{folder.name}": str(folder), "26379": str(gcs), "28265": str(server), "28366": str(server + 1)}
    commands = [re.sub("|".join(map(re.escape, ours)), lambda m: ours[m[0]], c) for c in re.findall(r'start\(f?"(ray start .*?)"\)', text)]
    assert len(commands) == 2
    nodes = []
    try:
        for i, command in enumerate(commands):
            log = folder/f"node{i}.log"
            nodes.append(subprocess.Popen(shlex.split(command), stdout=log.open("w"), stderr=subprocess.STDOUT, env=env, start_new_session=True))
            deadline = time.monotonic() + 120
            while "Ray runtime started" not in log.read_text():
                assert nodes[-1].poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(.2)
        yield SimpleNamespace(address=f"http://127.0.0.1:{server}", env=env, token=token.read_text().strip(), gcs=f"127.0.0.1:{gcs}")
    finally:
        for p in reversed(nodes):
            p.terminate()
            try: p.wait(60)
            except subprocess.TimeoutExpired: os.killpg(p.pid, signal.SIGKILL)
        left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False).stdout.split()
        shutil.rmtree(folder, ignore_errors=True)
    assert not left, "processes of the cluster are left"


def run(code, cluster, folder, ok=True, **env):
    "A script in `folder`, in a process of its own: what it printed"
    (folder/"script.py").write_text(textwrap.dedent(code))
    p = subprocess.run([sys.executable, "script.py"], cwd=folder, env={**cluster.env, **env}, capture_output=True, text=True, check=False, timeout=300)
    assert not ok or p.returncode == 0, p.stdout[-3000:] + p.stderr[-3000:]
    assert cluster.token not in p.stdout + p.stderr
    return p.stdout if ok else p.stdout + p.stderr


PROJECT = {
    "my_constants.py": "DEPTH = 2\n",
    "my_layers.py": """
        from torch import nn
        from my_constants import DEPTH

        class FileMLP(nn.Module):
            def __init__(self, width, n_in=8, n_out=4):
                super().__init__()
                self.layers = nn.Sequential(nn.Linear(n_in, width), *[nn.Sequential(nn.ReLU(), nn.Linear(width, width)) for _ in range(DEPTH)], nn.Linear(width, n_out))
            def forward(self, x): return self.layers(x)
        """,
    "parts/inner.py": "SCALE = 1.0\n",   # a folder without __init__.py, imported late
}

STUDY = """
    import json, sys, time, torch
    from pathlib import Path
    from torch import nn
    from scaling_nb import Job, Problem, Recipe, Resources, plan_sweep, run_sweep, submit_study
    from my_layers import FileMLP

    class MainMLP(nn.Module):
        def __init__(self, width):
            super().__init__()
            from parts import inner
            self.body, self.scale = FileMLP(width), inner.SCALE
        def forward(self, x): return self.body(x)*self.scale

    torch.manual_seed(0)
    X = torch.randn(20_000, 8); Y = (X @ torch.randn(8, 4)).argmax(-1)
    problems = dict(main=Problem(MainMLP, "width", data=(X, Y), loss_fn=nn.CrossEntropyLoss()), file=Problem(FileMLP, "width", data=(X, Y), loss_fn=nn.CrossEntropyLoss()))
    plan_of = lambda p, budgets=(5e7, 1e8): plan_sweep(p, budgets, sizes=(8, 16, 32), speed=None)
    RECIPE = Recipe(batch_size=64)
    server = sys.argv[1] if len(sys.argv) > 1 else ADDRESS
    """


@pytest.fixture
def project(tmp_path, cluster):
    for name, text in PROJECT.items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(textwrap.dedent(text))
    return tmp_path


def study(code, address): return textwrap.dedent(STUDY).replace("ADDRESS", repr(address)) + textwrap.dedent(code)


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.timeout(600)
class TestOnTwoNodes:
    @pytest.mark.long
    def test_models_of_the_script_and_of_a_file_train_there_as_here(self, cluster, project):
        said = run(study("""
            jobs = {k: submit_study(p, plan_of(p), RECIPE, storage=f"there/{k}", address=server) for k, p in problems.items()}
            with open("jobs.json", "w") as f: json.dump({k: j.id for k, j in jobs.items()}, f)
            for k, p in problems.items(): run_sweep(p, plan_of(p), RECIPE, storage=f"here/{k}", resources=Resources(slots=2), view=False)
            for k, j in jobs.items():
                study = j.result(timeout=200)
                there, here = j.attach().frame, run_sweep(problems[k], plan_of(problems[k]), RECIPE, storage=f"here/{k}").frame
                told = [c for c in here if c != "wall_s"]
                there, here = (f.sort_values("run_id", ignore_index=True)[told] for f in (there, here))
                assert there.equals(here), (there, here)
                assert (here.state == "SUCCEEDED").all() and len(here) == 6 and here.loss.nunique() == 6 and len(study.runs) == 6
                again = run_sweep(problems[k], plan_of(problems[k]), RECIPE, storage=f"there/{k}")     # the same line, here: nothing is left to do
            print("equal")
            """, cluster.address), cluster, project)
        assert "equal" in said and said.count("nothing was trained") == 4
        later = run(f"""
            import json
            from scaling_nb import Job
            job = Job(json.load(open("jobs.json"))["main"], {cluster.address!r})
            print(job.status, job.storage)
            print(job.logs())
            print(repr(job), job._repr_html_())
            try: Job("raysubmit_nobody", {cluster.address!r})
            except ValueError as e: print(e)
            """, cluster, project)
        assert f"SUCCEEDED {project}/there/main" in later and "6 of 6 runs done" in later and "knows no raysubmit_nobody" in later
        assert "with 2 at a time" in later   # of a core each: both nodes took part
        assert "/.venv/" not in later and "Traceback" not in later

    @pytest.mark.long
    def test_stop_pauses_and_the_same_line_goes_on(self, cluster, project):
        said = run(study("""
            import os
            SLOW = os.path.abspath("slow")

            class Patient(FileMLP):
                "A step takes six seconds from when the file is there: longer than Ray waits by itself before it kills a job."
                def forward(self, x):
                    if self.training and os.path.exists(SLOW): time.sleep(6)
                    return super().forward(x)

            problem = Problem(Patient, "width", data=(X, Y), loss_fn=nn.CrossEntropyLoss())
            plan = plan_of(problem, (5e8,))
            submit = lambda: submit_study(problem, plan, RECIPE, storage="runs", address=server, checkpoint_s=600)
            job = submit()
            while len([f for f in Path("runs").glob("*/metrics.jsonl") if f.stat().st_size]) < 2: time.sleep(.1)
            Path(SLOW).touch()
            print("stop", job.stop(), [f.parent.name for f in Path("runs").glob("*/checkpoint")])
            Path(SLOW).unlink()
            try: job.result()
            except RuntimeError as e: print(e)
            assert "Paused" in job.logs()
            second = submit()
            print("then", second.wait(240))
            print("steps", [[json.loads(x)["step"] for x in f.read_text().splitlines()] for f in Path("runs").glob("*/metrics.jsonl")])
            from scaling_nb.training import train_run
            torch.set_num_threads(1)
            f = second.attach().frame
            for s in plan.specs: assert train_run(problem, s, RECIPE).loss == f[f["size"] == s.size].loss.item()
            print("attempts", sorted(f.attempt))
            """, cluster.address), cluster, project)
        assert re.search(r"stop STOPPED \['\w+', '\w+'\]", said), said       # Ray alone would have killed it before it wrote them
        assert "is paused, and the same `submit_study` resumes it" in said and "then SUCCEEDED" in said and "attempts [1, 2, 2]" in said
        for steps in json.loads(re.search(r"steps (.*)", said)[1]): assert steps == sorted(set(steps))

    @pytest.mark.long
    def test_a_job_that_fails_says_why(self, cluster, project):
        said = run(study("""
            other = Problem(FileMLP, "width", data=(X[:9000], Y[:9000]), loss_fn=nn.CrossEntropyLoss())
            run_sweep(other, plan_of(other), RECIPE, storage="taken", mock=True)
            job = submit_study(problems["file"], plan_of(problems["file"]), RECIPE, storage="taken", address=server)
            try: job.result()
            except RuntimeError as e: print(e)
            print(job.status)
            """, cluster.address), cluster, project)
        assert re.search(r"Job raysubmit_\w+ failed: .*StorageMismatch: .* differs in: data", said) and "The end of its log:" in said and said.strip().endswith("FAILED")

    @pytest.mark.long
    def test_the_command_line_submits_and_follows(self, cluster, project):
        (project/"my_study.py").write_text(study("problem = problems['file']", cluster.address))
        command = [sys.executable, "-m", "scaling_nb", "submit", "my_study.py:problem", *"--budgets 5e7 --sizes 8 16 --storage cli --follow --address".split(), cluster.address]
        p = subprocess.run(command, cwd=project, env=cluster.env, capture_output=True, text=True, check=False, timeout=200)
        assert p.returncode == 0 and "2 of 2 runs done" in p.stdout, p.stdout + p.stderr
        assert re.fullmatch(r"warning: \S*cli is a local path: every node .*\n", p.stderr) and cluster.token not in p.stdout

    def test_nobody_is_let_in_without_the_token(self, cluster, project, tmp_path_factory):
        assert is_guarded(cluster.address)
        wrong = tmp_path_factory.mktemp("t")/"token"
        wrong.write_text("0"*64)
        for env in (dict(RAY_AUTH_TOKEN_PATH=str(wrong)), dict(RAY_AUTH_MODE="disabled")):
            said = run(f"""
                from scaling_nb import Job
                try: Job("raysubmit_x", {cluster.address!r})
                except ConnectionError as e: print("refused", e)
                """, cluster, project, **env)
            assert "refused" in said and "RAY_AUTH_TOKEN_PATH" in said


class Standin(http.server.BaseHTTPRequestHandler):
    "Answers as the job server of an older cluster that asks for no token does."
    seen, python = [], "3.9.1"

    def do_GET(self):
        Standin.seen.append(self.path)
        ray = versions()["ray"]
        answers = {"/api/jobs/": [], "/api/version": dict(version="4", ray_version=ray), "/api/v0/cluster_metadata": dict(data=dict(pythonVersion=Standin.python, rayVersion=ray))}
        body = json.dumps(answers[self.path]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self): Standin.seen.append("PUT " + self.path); self.send_response(500); self.end_headers()
    do_POST = do_PUT

    def log_message(self, *a): pass


@pytest.fixture
def open_server(monkeypatch):
    "(loopback URL, URL of another interface) of a server that lets anyone in"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Standin)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Standin.seen.clear()
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as s:
        s.connect(("192.0.2.1", 9))     # sends nothing; tells which address this machine would use
        own = s.getsockname()[0]
    yield f"http://127.0.0.1:{server.server_port}", f"http://{own}:{server.server_port}"
    server.shutdown()
    server.server_close()


def planned():
    problem = mlp_problem()
    return problem, plan_sweep(problem, (5e7,), sizes=(8, 16), speed=None)


def test_an_open_cluster_elsewhere_is_refused_and_other_versions_are(open_server, tmp_path):
    here, elsewhere = open_server
    assert _loopback(here) and _loopback("http://localhost:1") and _loopback("http://[::1]:1") and not _loopback(elsewhere) and not is_guarded(elsewhere)
    with pytest.raises(ValueError, match="must ask for a token, but .* answers anyone"): submit_study(*planned(), storage=tmp_path, address=elsewhere)
    for address, kw in ((elsewhere, dict(insecure=True)), (here, {})):
        with pytest.raises(ValueError, match=r"python is \S+ here and 3\.9\.1 there"): submit_study(*planned(), storage=tmp_path, address=address, **kw)
    Standin.python = versions()["python"]
    try:
        with pytest.raises(ValueError, match="memory of this process"): submit_study(*planned(), storage="memory://runs", address=here)
    finally: Standin.python = "3.9.1"
    assert not [x for x in Standin.seen if x.startswith("PUT")], "nothing may be sent before all is checked"


def test_a_server_that_is_none(tmp_path):
    with contextlib.closing(socket.socket()) as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        start = time.monotonic()
        with pytest.raises(ConnectionError, match="No Ray job server answers"): is_guarded(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=1)     # listens and says nothing
        assert time.monotonic() - start < 5
    with pytest.raises(ConnectionError, match="tunnel"): submit_study(*planned(), storage=tmp_path, address="http://127.0.0.1:9")
    with pytest.raises(ValueError, match="must be the URL of a job server"): job_server("127.0.0.1:6379")
    assert "does not answer" in repr(Job("raysubmit_1", "http://127.0.0.1:9", "s3://b/x"))


def test_the_address_of_the_environment(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265/")
    assert job_server() == "http://head:8265" and job_server("http://other:1") == "http://other:1"
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    assert job_server() == "http://127.0.0.1:8265"


@pytest.fixture
def job(monkeypatch, tmp_path):
    "submit_study to a cluster that isn't there: (what it sends, what the job of that calls)"
    from scaling_nb import jobs, scheduling
    sent, called = [], []
    class Client:
        def submit_job(self, entrypoint, runtime_env, metadata):
            sent.append((entrypoint, shutil.copytree(runtime_env["working_dir"], tmp_path/f"package{len(sent)}")))
            return "raysubmit_1"
    monkeypatch.setattr(jobs, "_client", lambda address: Client())
    monkeypatch.setattr(jobs, "_check_cluster", lambda *a: None)
    monkeypatch.setattr(scheduling, "start_ray", lambda *a, **kw: None)
    monkeypatch.setattr(signal, "signal", lambda *a: None)
    for module, name in ((jobs, "train_study"), (scheduling, "run_sweep")):
        monkeypatch.setattr(module, name, lambda problem, plan, recipe, name=name, **kw: called.append((name, plan, recipe, kw)))
    def submit(problem, plan, recipe=None, **kw):
        submit_study(problem, plan, recipe, storage=tmp_path/"runs", address="http://127.0.0.1:9", **kw)
        command, folder = sent[-1]
        monkeypatch.chdir(folder)
        assert jobs.main(shlex.split(command)[3:]) == 0
        return called[-1]
    return SimpleNamespace(submit=submit, sent=sent, called=called)


def aimed(**kw):
    problem = mlp_problem()
    return problem, plan_sweep(problem, (5e7,), sizes=(8, 16), speed=None, target=1e9, **kw)


@pytest.mark.filterwarnings("ignore:.*is a local path")
def test_rounds_reach_the_job(job):
    name, plan, recipe, options = job.submit(*aimed(), rounds=5)
    assert (name, plan.target, recipe, options["rounds"]) == ("train_study", 1e9, None, 5)
    assert job.submit(*aimed(), Recipe(batch_size=4))[3]["rounds"] == 2
    name, *_, options = job.submit(*planned(), rounds=5)
    assert name == "run_sweep" and "rounds" not in options                    # it takes none


@pytest.mark.filterwarnings("ignore:.*is a local path")
def test_recipes_of_single_runs_are_those_of_the_plan(job):
    problem, plan = aimed()
    each = [Recipe(batch_size=4 + i) for i in range(len(plan))]
    name, _, recipe, options = job.submit(problem, plan, each)
    assert (name, recipe) == ("run_sweep", each) and "rounds" not in options


@pytest.mark.parametrize("change", [dict(reserve_flops=1e7), dict(specs=(RunSpec(5e7, 8, 1000, 5000, 1e4), RunSpec(1.5e8, 16, 2000, 7500, 2e4, role="hold-out")))])
@pytest.mark.filterwarnings("ignore:.*is a local path")
def test_recipes_of_single_runs_are_refused_where_others_follow(job, change, tmp_path):
    problem, plan = aimed()
    plan = replace(plan, **change)
    with pytest.raises(ValueError, match="`recipe` must be one recipe for all runs"): job.submit(problem, plan, [Recipe()]*len(plan))
    assert not job.sent and not job.called and not (tmp_path/"runs").exists()
    assert job.submit(problem, plan, Recipe())[0] == "train_study" and job.submit(problem, replace(plan, target=None), [Recipe()]*len(plan))[0] == "run_sweep"


class Trap:
    "Says so when it is unpickled."
    def __reduce__(self): return (os.mkdir, (str(Trap.where),))


def test_nothing_is_loaded_that_was_changed_or_is_of_another_version(tmp_path):
    import hashlib
    Trap.where, package = tmp_path/"sprung", tmp_path/"package"
    package.mkdir()
    sha = pack_study(package, *planned())
    assert set(open_package(package, sha)) == {"problem", "plan", "recipe", "options", "prints"}
    trap = pickle.dumps(Trap())
    (package/"study.pkl").write_bytes(trap)
    with pytest.raises(RuntimeError, match="SHA-256"): open_package(package, sha)
    other = {**versions(), "torch": "1.2.3"}
    (package/"versions.json").write_text(json.dumps(other))
    with pytest.raises(RuntimeError, match="torch is 1.2.3 here"): open_package(package, hashlib.sha256(trap).hexdigest())
    assert not Trap.where.exists()
    (package/"versions.json").write_text(json.dumps(versions()))
    open_package(package, hashlib.sha256(trap).hexdigest())
    assert Trap.where.exists(), "the trap works"


def test_versions_that_go_together():
    a = dict(python="3.11.7", ray="2.60.0", torch="2.13.0")
    assert version_mismatch(a, dict(python="3.11.2", ray="2.60.3", torch="2.13.1")) == "" == version_mismatch(a, {})
    assert version_mismatch(a, dict(ray="2.59.0")) == "ray is 2.60.0 here and 2.59.0 there"
    assert "+" not in versions()["torch"]


def test_modules_that_travel(tmp_path):
    "Packages, files beside each other, and folders without __init__.py; nothing that is installed."
    files = {"pkg_a/__init__.py": "from . import deep", "pkg_a/deep.py": "import lone_b\nclass A: pass", "lone_b.py": "def f():\n    import late_c", "late_c.py": "import json, torch",
             "spaced/d.py": "class D: pass", "unused_e.py": ""}
    for name, text in files.items():
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text(text)
    code = """
        import sys
        from ray import cloudpickle
        import pkg_a.deep, spaced.d, unused_e
        from scaling_nb.jobs import own_modules
        class Mine(pkg_a.deep.A): pass
        print({k: v.name for k, v in sorted(own_modules(cloudpickle.dumps([Mine, spaced.d.D(), sys.path])).items())})
        print(sorted(own_modules(cloudpickle.dumps(1), modules=[unused_e, "late_c"])))
        for wrong in ("torch", "no_such_module"):
            try: own_modules(b"N.", modules=[wrong])
            except ValueError as e: print(e)
        """
    (tmp_path/"script.py").write_text(textwrap.dedent(code))
    said = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == "{'late_c': 'late_c.py', 'lone_b': 'lone_b.py', 'pkg_a': 'pkg_a', 'spaced': 'spaced'}"
    assert said[1] == "['late_c', 'unused_e']" and "torch is installed or not found" in said[2] and "no_such_module" in said[3]


def test_a_package_that_is_too_large_says_what_is(tmp_path):
    import torch
    with pytest.raises(ValueError, match=r"under 90 MiB, but it is 1\d\d MiB: study.pkl .*Of the problem: data 1\d\d MiB"):
        pack_study(tmp_path, mlp_problem(data=(torch.zeros(3_200_000, 8), torch.zeros(3_200_000, dtype=torch.long))), planned()[1])
