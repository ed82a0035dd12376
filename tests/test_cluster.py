"""Ray is started fast, says one line, listens on loopback behind a token, and stays when the notebook dies. Real processes, real kills, real ports."""
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from scaling_nb import cluster

SECRET = "5ca1ab1e"*8


@pytest.fixture
def machine(tmp_path):
    "A machine of its own, as far as files go: environment for processes with another home and another place for what Ray writes."
    short = tempfile.mkdtemp(prefix="tc", dir="/tmp")                # sockets need short paths
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    yield env | dict(HOME=str(tmp_path), RAY_TMPDIR=short, PYTHONUNBUFFERED="1")
    for file in Path(short).glob("scaling_nb-*/head.json"):         # a test that failed half way
        with contextlib.suppress(psutil.NoSuchProcess): cluster._end(json.loads(file.read_text())["pid"])
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def here(machine, monkeypatch):
    "The same for this process."
    for k in [k for k in os.environ if k.startswith("RAY_")]: monkeypatch.delenv(k)
    for k in ("HOME", "RAY_TMPDIR"): monkeypatch.setenv(k, machine[k])
    return Path(machine["RAY_TMPDIR"])/f"scaling_nb-{os.getuid()}"


HEAD = """
import contextlib, json, os, signal, sys, time
from scaling_nb import cluster
from scaling_nb.cluster import *
"""


def started(code, env, **kw): return subprocess.Popen([sys.executable, "-c", HEAD + textwrap.dedent(code)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def said(code, env, timeout=150):
    "(stdout, stderr) of a process that ends well"
    p = started(code, env)
    try: out, err = p.communicate(timeout=timeout)
    finally: p.kill()
    assert p.returncode == 0, out + err
    return out, err


def family(pid):
    p = psutil.Process(pid)
    return [p, *p.children(recursive=True)]


def listeners(processes):
    found = set()
    for p in processes:
        with contextlib.suppress(psutil.NoSuchProcess): found |= {(c.laddr.ip.removeprefix("::ffff:"), c.laddr.port) for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return found


def _args(p):
    try: return p.cmdline()
    except psutil.Error: return []


# Files


def test_the_folder_is_ours_alone(here):
    assert cluster._private_folder() == here and here.stat().st_mode & 0o777 == 0o700
    here.chmod(0o755)
    assert cluster._private_folder().stat().st_mode & 0o777 == 0o700
    here.rmdir()
    here.symlink_to(here.parent)
    with pytest.raises(PermissionError, match="must be a directory of yours"): cluster._private_folder()
    here.unlink()
    here.write_text("")
    with pytest.raises(PermissionError, match="must be a directory of yours"): cluster._private_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(here):
    here.mkdir()
    os.chown(here, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to user 12345"): cluster._private_folder()


def test_a_token_is_made_closed(here, capfd):
    old = os.umask(0)
    try: cluster._own_token()
    finally: os.umask(old)
    file = Path.home()/".ray"/"auth_token"
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700 and len(file.read_text()) == 64 and [f.name for f in file.parent.iterdir()] == ["auth_token"]
    before = file.read_text()
    cluster._own_token()
    assert file.read_text() == before and capfd.readouterr() == ("", "")


def test_an_open_token_is_closed_and_told(here, capfd):
    file = Path.home()/".ray"/"auth_token"
    file.parent.mkdir()
    file.write_text(SECRET)
    file.chmod(0o644)
    cluster._own_token()
    out, err = capfd.readouterr()
    assert file.stat().st_mode & 0o777 == 0o600 and file.read_text() == SECRET and "now only you can read it" in out and SECRET not in out + err


def test_what_the_user_has_set_is_left_alone(here, monkeypatch, tmp_path):
    theirs = tmp_path/"theirs"
    theirs.write_text(SECRET)
    theirs.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(theirs))
    cluster._own_token()
    assert theirs.stat().st_mode & 0o777 == 0o640
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    cluster._own_token()
    assert not (Path.home()/".ray").exists()


def test_processes_that_start_at_once_agree_on_a_token(machine, tmp_path):
    code = "cluster._own_token(); print(cluster._token_file().read_text())"
    processes = [started(code, machine) for _ in range(4)]
    tokens = {p.communicate(timeout=60)[0] for p in processes}
    assert tokens == {(tmp_path/".ray"/"auth_token").read_text() + "\n"}


def test_what_dead_heads_left_is_removed(here):
    folder = cluster._private_folder()/"head-x"
    folder.mkdir()
    (folder/"up.json").write_text(json.dumps(dict(address="127.0.0.1:1", dashboard=None)))
    with subprocess.Popen(["true"]) as dead: pass
    for head in (dict(pid=dead.pid, created=time.time()), dict(pid=os.getpid(), created=1.)):       # gone; and its number in use by another
        (here/"head.json").write_text(json.dumps(head | dict(folder=str(folder))))
        folder.mkdir(exist_ok=True)
        assert cluster.find_head() is None and not folder.exists() and not (here/"head.json").exists() and not cluster.stop_head()


def test_a_head_that_does_not_come_up_is_told_and_leaves_nothing(here):
    with pytest.raises(RuntimeError, match="it ended: .*must be nonnegative"): cluster.start_head(cpus=-1)
    assert not (here/"head.json").exists() and not list(here.glob("head-*")) and not cluster._wait_for_end({p for p in psutil.process_iter() if any(str(here) in a for a in _args(p))}, 1)


# The fast start


def test_the_lazy_module_stands_in_and_gives_way(tmp_path):
    "Ray's processes find our stand-in for rfc3987_syntax first; whoever asks it for something gets the real one."
    for d in ("stub", "real"): (tmp_path/d).mkdir()
    (tmp_path/"stub"/"rfc3987_syntax.py").write_text(cluster._LAZY)
    (tmp_path/"real"/"rfc3987_syntax.py").write_text("def is_valid_syntax(kind, text): return (kind, text, 'real')\nOTHER = 7\n")
    code = "import sys, rfc3987_syntax as r; assert 'stub' in r.__file__; print(r.is_valid_syntax('iri', 'x'), r.OTHER); from rfc3987_syntax import is_valid_syntax as v; print(v('a', 'b'))"
    out = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path/"stub"), str(tmp_path/"real")])})
    assert out.stdout.split("\n")[:2] == ["('iri', 'x', 'real') 7", "('a', 'b', 'real')"], out.stderr


def test_importing_ray_is_cheap(machine):
    pytest.importorskip("rfc3987_syntax", reason="nothing to save where Jupyter's schema checks are not installed")
    code = """
        c = time.process_time()
        with {}: import ray
        print(time.process_time() - c)"""
    plain, fast = (min(float(said(code.format(how), machine)[0]) for _ in range(2)) for how in ("contextlib.nullcontext()", "cluster._fast_start()"))
    assert fast < .6*plain, (fast, plain)


# Addresses


def test_an_address_where_no_ray_is_is_told_within_seconds():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address in ("127.0.0.1:1", f"127.0.0.1:{silent.getsockname()[1]}", "no-such-host.invalid:6379"):
            start = time.monotonic()
            with pytest.raises(ConnectionError, match=f"No Ray cluster answers at '{address}'"): cluster._may_join(address)
            assert time.monotonic() - start < 4


def test_addresses_of_another_form():
    for address in ("ray://head:10001", "http://head:8265", "head"):
        with pytest.raises(ValueError, match="must be host:port"): cluster._known(address)
    assert cluster._known("[::1]:6379") == "[::1]:6379"


def test_nodes_before_the_start():
    import ray
    if ray.is_initialized(): ray.shutdown()
    with pytest.raises(RuntimeError, match="Call `start_ray"): cluster.cluster_nodes()


# Ray


@pytest.mark.ray
@pytest.mark.cluster
def test_start_says_one_line_whatever_dies(machine, tmp_path):
    "Started in a thread, so that Ray has one thing more to warn of; then a killed worker, a failed task and one out of memory."
    token = tmp_path/".ray"/"auth_token"
    out, err = said("""
        import threading, psutil
        m = psutil.virtual_memory()
        os.environ.update(RAY_memory_usage_threshold=str(1 - (m.available - min(3e9, m.available/2))/m.total), RAY_memory_monitor_refresh_ms="100")
        t = threading.Thread(target=start_ray); t.start(); t.join()
        ray = start_ray()
        @ray.remote(max_restarts=0, max_task_retries=0)
        class A:
            def die(self): os.kill(os.getpid(), signal.SIGKILL)
            def eat(self):
                kept = []
                while True: kept.append(bytearray(os.urandom(1) * 100_000_000)); time.sleep(.03)
            def fail(self): print("not in the notebook"); raise ValueError
        def end(a, name):
            try: ray.get(getattr(a, name).remote(), timeout=60)
            except ray.exceptions.RayError as e: return type(e).__name__
        ends = [end(A.remote(), n) for n in ("die", "fail", "eat")]
        time.sleep(3)
        me = psutil.Process()
        print(json.dumps(dict(ends=ends, args=[p.cmdline() for p in me.children(recursive=True)], mode=os.environ.get("RAY_AUTH_MODE"), path=os.environ.get("PYTHONPATH"))))
        """, machine)
    first, last = out.splitlines()
    last = json.loads(last)
    assert first.startswith("Ray started on this machine in ") and err == ""
    assert last["ends"][:2] == ["ActorDiedError", "RayTaskError(ValueError)"] and last["ends"][2] in ("OutOfMemoryError", "ActorDiedError", "ActorUnavailableError")
    assert len(token.read_text()) == 64 and token.read_text() not in json.dumps(last) and (last["mode"], last["path"]) == (None, machine.get("PYTHONPATH"))


@pytest.mark.ray
@pytest.mark.cluster
def test_a_head_outlives_who_started_it(machine, here, capfd):
    code = "print(start_head(cpus=1, dashboard=True), flush=True); time.sleep(600)"
    first = [started(code, machine, start_new_session=True) for _ in range(2)]              # two at once
    try: addresses = {p.stdout.readline().strip() for p in first}
    finally:
        for p in first:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
    assert len(addresses) == 1 and cluster.find_head() in addresses, [p.stderr.read() for p in first]
    note = json.loads((here/"head.json").read_text())
    assert (here/"head.json").stat().st_mode & 0o777 == 0o600
    address, whole, token = addresses.pop(), family(note["pid"]), (Path.home()/".ray"/"auth_token").read_text()
    assert len(whole) >= 8 and not any(token in a for p in whole for a in p.cmdline())

    # a new kernel
    start = time.monotonic()
    out, err = said("""
        start = time.monotonic()
        ray = start_ray(find_head())
        print(ray.get(ray.remote(num_cpus=0)(lambda: 42).remote()), time.monotonic() - start, [n.cpus for n in cluster_nodes()])
        assert start_ray("auto") is ray and start_ray(find_head().replace("127.0.0.1", "localhost")) is ray
        ray.shutdown()
        start_ray("auto")
        """, machine)
    assert out.startswith("42 ") and out.endswith("[1.0]\n") and err == "" and out.count("\n") == 1
    joined = float(out.split()[1])
    assert joined < 5 and time.monotonic() - start < 20

    # who may enter: nobody from the network, nobody without the token
    ports = listeners(family(note["pid"]))
    assert {ip for ip, _ in ports} == {"127.0.0.1"} and len(ports) >= 6
    assert not any(cluster._listens_to_network(port) for _, port in ports)
    assert not cluster._alive(address) and not cluster._alive(address, SECRET) and cluster._alive(address, token)
    host, _, port = cluster.head_dashboard().removeprefix("http://").rpartition(":")
    def jobs(headers):
        web = http.client.HTTPConnection(host, int(port), timeout=10)
        web.request("GET", "/api/jobs/", headers=headers)
        return web.getresponse().status
    assert [jobs({}), jobs({"Authorization": f"Bearer {SECRET}"}), jobs({"Authorization": f"Bearer {token}"})] == [401, 403, 200]
    for env, why in ((dict(HOME="/nonexistent"), "but there is none here"), (dict(RAY_AUTH_TOKEN=SECRET), "that of this user is another one"), (dict(RAY_AUTH_MODE="disabled"), "Set it to 'token'")):
        out, err = said(f"""
            start = time.monotonic()
            try: start_ray({address!r})
            except PermissionError as e: print(time.monotonic() - start < 3, e)""", machine | env)
        assert out.startswith("True ") and why in out and err == "" and token not in out and SECRET not in out

    # its end
    capfd.readouterr()
    start = time.monotonic()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", note["folder"]])        # names the folder, and is none of the head's
    assert cluster.stop_head() and cluster.find_head() is None and not cluster.stop_head() and cluster.head_dashboard() is None
    took = time.monotonic() - start
    lives = bystander.poll() is None
    bystander.kill()
    bystander.wait()
    left = cluster._wait_for_end({*whole, *(p for p in psutil.process_iter() if any(str(here) in a for a in _args(p)))}, 1)
    assert lives and left == set() and not Path(note["folder"]).exists() and capfd.readouterr() == ("", "")
    print(f"joined and first task after {joined:.1f} s, ended in {took:.1f} s")


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.cluster
def test_a_dead_head_is_replaced(machine, here):
    address = cluster.start_head(cpus=1)
    note = json.loads((here/"head.json").read_text())
    with pytest.raises(RuntimeError, match="without a dashboard"): cluster.start_head(dashboard=True)
    gcs = next(p for p in family(note["pid"]) if p.name() == "gcs_server")
    gcs.kill()
    cluster._wait_for_end({gcs})
    assert cluster.find_head() is None                                       # its process may live on, but nothing answers
    again = cluster.start_head(cpus=1)
    assert again != address and cluster.find_head() == again and not psutil.pid_exists(note["pid"]) and not Path(note["folder"]).exists()
    assert cluster.stop_head()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.cluster
def test_a_cluster_that_asks_nobody(machine):
    "Ray as it comes, without authentication: it listens to the network, and is joined only by who has said that this is wanted."
    keep = started("""
        import ray
        ray.init(address="local", include_dashboard=False, num_cpus=1, _temp_dir=os.environ["RAY_TMPDIR"], log_to_driver=False, logging_level="ERROR")
        print(ray.get_runtime_context().gcs_address, flush=True); time.sleep(600)""", machine | dict(RAY_AUTH_MODE="disabled"))
    try:
        address = keep.stdout.readline().strip()
        port = int(address.rpartition(":")[2])
        if not address.startswith("127."): assert cluster._listens_to_network(port) and "::" in {ip for ip, _ in listeners(family(keep.pid))}
        assert cluster._alive(address)
        for a in (address, f"127.0.0.1:{port}"):
            out, err = said(f"""
                try: start_ray({a!r})
                except PermissionError as e: print(e)""", machine)
            assert "asks nobody for a token" in out and "RAY_AUTH_MODE=disabled" in out and err == ""
            out, err = said(f"""
                ray = start_ray({a!r})
                class A:
                    def f(self): return 7
                a = ray.remote(A).remote()
                print(ray.get(a.f.remote(), timeout=60))""", machine | dict(RAY_AUTH_MODE="disabled"))
            assert (out, err) == ("7\n", "")
    finally:
        whole = family(keep.pid)
        keep.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(whole, timeout=10)
        for p in left: p.kill()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.cluster
def test_ray_that_was_started_before(machine):
    "By the user, with his own logs; where it listens to the network, that is said; and a process that has used a token can't do without."
    out, err = said("""
        import ray
        ray.init(address="local", include_dashboard=False, num_cpus=1, _temp_dir=os.environ["RAY_TMPDIR"], logging_level="ERROR")
        assert start_ray() is ray and start_ray("auto") is ray and start_ray(ray.get_runtime_context().gcs_address) is ray
        try: start_ray("127.0.0.1:1")
        except RuntimeError as e: print("Leave that one first" in str(e))
        @ray.remote(max_retries=0)
        def f(die): print("from a worker", flush=True); time.sleep(1); die and os.kill(os.getpid(), signal.SIGKILL)
        ray.get(f.remote(False)); time.sleep(1)
        try: ray.get(f.remote(True))
        except ray.exceptions.WorkerCrashedError: time.sleep(3)
        ray.shutdown()
        said, cluster._on_loopback = [], lambda *_: contextlib.nullcontext()
        start_ray(say=said.append); print(said[-1])
        ray.shutdown()
        os.environ["RAY_AUTH_MODE"] = "disabled"
        try: start_ray()
        except RuntimeError as e: print("Restart the kernel" in str(e))
        """, machine)
    assert "from a worker" in out + err and "(raylet)" not in out + err                            # his lines stay, Ray's own go
    lines = [x for x in out.splitlines() if "from a worker" not in x]
    assert lines[0] == "True" and lines[-1] == "True" and lines[-2].startswith(("Ray started", "Ray's ports listen on all interfaces; the token keeps others out."))


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.cluster
def test_nodes_come_and_go(machine):
    out, err = said("""
        os.environ["RAY_AUTH_MODE"] = "token"; cluster._own_token()
        with cluster._ray() as ray:
            from ray.cluster_utils import Cluster
            c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
            big = c.add_node(num_cpus=3, num_gpus=2, resources={"accelerator_type:H100": 1})
        ray = start_ray(c.address)
        told = lambda: [(n.cpus, n.gpus, n.accelerator) for n in cluster_nodes()]
        print(told(), {type(n.memory) for n in cluster_nodes()}, len({n.id for n in cluster_nodes()}))
        start = time.monotonic()
        for _ in range(100): cluster_nodes()
        print((time.monotonic() - start)/100 < .02)
        c.remove_node(big)
        deadline = time.monotonic() + 30
        while len(told()) > 1 and time.monotonic() < deadline: time.sleep(.2)
        print(told())
        ray.shutdown(); c.shutdown()
        """, machine)
    assert out.splitlines() == ["[(3.0, 2.0, 'H100'), (1.0, 0.0, None)] {<class 'int'>} 2", "True", "[(1.0, 0.0, None)]"]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
def test_an_encrypted_cluster(machine, tmp_path):
    key, cert = tmp_path/"key.pem", tmp_path/"cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
                   check=True, capture_output=True)
    tls = machine | dict(RAY_USE_TLS="1", RAY_TLS_SERVER_CERT=str(cert), RAY_TLS_SERVER_KEY=str(key), RAY_TLS_CA_CERT=str(cert))
    address = said("print(start_head(cpus=1))", tls)[0].strip()
    try:
        out, err = said("""
            ray = start_ray(find_head())
            print(ray.get(ray.remote(num_cpus=0)(lambda: 42).remote()))""", tls)
        assert (out, err) == ("42\n", "")
        out, err = said(f"""
            try: start_ray({address!r})
            except ConnectionError as e: print(e)""", machine)
        assert "No Ray cluster answers" in out and err == ""
    finally: assert said("print(stop_head())", tls)[0] == "True\n"
