"""A server that speaks S3, in a process of its own on loopback."""
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def s3_environment(port):
    "What botocore reads; nothing of the user's own."
    return dict(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="us-east-1",
                AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull, AWS_EC2_METADATA_DISABLED="true")


@contextmanager
def s3_server(start_s=60):
    "Start it and point this process, and those that it starts, at it: one a process, since fsspec keeps its connections."
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before, deadline = {k: os.environ.get(k) for k in s3_environment(port)}, time.monotonic() + start_s
    try:
        while True:
            try: socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "moto.server did not start"
                time.sleep(.05)
            else: break
        os.environ.update(s3_environment(port))
        yield
    finally:
        server.kill(); server.wait()
        for k, v in before.items(): os.environ.pop(k, None) if v is None else os.environ.update({k: v})
