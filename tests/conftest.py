"""Where and on how many threads the tests run, and which are left out."""

import importlib.util
import os
import pathlib
import signal

import pytest

# TensorFlow reads these when it is imported, here and in programs that tests
# start. The tests' networks are so small that more threads only wait.
os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
os.environ.setdefault('TF_NUM_INTEROP_THREADS', '1')
# The numbers that tests expect are those of a CPU, and many programs at once
# would not fit on a GPU: only test_gpu.py uses one.
os.environ.setdefault(
    'GPUS_OF_TESTS', os.environ.get('CUDA_VISIBLE_DEVICES', '0'))
os.environ['CUDA_VISIBLE_DEVICES'] = ''


@pytest.fixture(autouse=True)
def repository_root(monkeypatch):
  """Commands and paths are those that users type, from the root."""
  monkeypatch.chdir(pathlib.Path(__file__).parent.parent)


@pytest.fixture
def hangups():
  """Hangups as in a terminal, also where the tests run under nohup."""
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
  yield
  signal.signal(signal.SIGHUP, before)


def pytest_runtest_setup(item):
  if item.get_closest_marker('bullet') and not importlib.util.find_spec(
      'pybullet'):
    pytest.skip('PyBullet is not installed')


_WITHOUT = []  # Exceptions for want of PyBullet; a fixture's comes again.


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
  """Without PyBullet, tests that end for want of it are skipped.

  So `make test` passes on Python 3.12 and newer, which it has no wheels for.
  """
  result = yield
  report = result.get_result()
  if not report.failed or importlib.util.find_spec('pybullet'):
    return
  # Programs that tests start say the first.
  text = '\n'.join([report.longreprtext, *(part for _, part in report.sections)])
  if 'needs PyBullet' in text or "No module named 'pybullet" in text:
    _WITHOUT.append(call.excinfo.value)
  if any(error is call.excinfo.value for error in _WITHOUT):
    report.outcome = 'skipped'
    report.longrepr = (
        str(item.path), item.location[1], 'Skipped: PyBullet is not installed')
