"""Where and on how many threads the tests run."""

import os
import pathlib

import pytest

# TensorFlow reads these when it is imported, here and in programs that tests
# start. The tests' networks are so small that more threads only wait.
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
os.environ.setdefault('TF_NUM_INTEROP_THREADS', '1')


@pytest.fixture(autouse=True)
def repository_root(monkeypatch):
  """Commands and paths are those that users type, from the root."""
  monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
