"""A file system that answers with errors while a flag file is there, as an NFS server does that has gone away."""
import errno
import os

import fsspec
from fsspec.implementations.local import LocalFileSystem

from scaling_nb.records import Storage


def _answers(path): return not os.path.exists(os.path.join(str(path).split("/runs")[0], "away"))


def _guarded(name):
    def call(self, path, *args, **kwargs):
        one = path[0] if isinstance(path, list) else getattr(path, "path", path)
        if not _answers(self._strip_protocol(one)): raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return getattr(LocalFileSystem, name)(self, path, *args, **kwargs)
    return call


class Flaky(LocalFileSystem):
    protocol = "flaky"
    cachable = False


for _name in ("cat_file", "pipe_file", "info", "ls", "find", "rm_file", "makedirs", "open", "_open", "cat", "created", "modified", "exists"): setattr(Flaky, _name, _guarded(_name))
fsspec.register_implementation("flaky", Flaky, clobber=True)


class FlakyStorage(Storage):
    "A storage on it; to unpickle one in a worker is to register the file system there."

    def __reduce__(self): return FlakyStorage, (self.url,)
