"""Signals, closed terminals and threads do not cost a run."""

import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from data import checkpoints
import running
from runs import signals


pytestmark = pytest.mark.usefixtures('hangups')


@pytest.mark.parametrize('number, status', [
    (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129),
    (signal.SIGUSR1, 0)])
def test_signal_is_a_wish_to_stop(number, status):
  before = signal.getsignal(number)
  with signals.Signals() as asked:
    assert not asked.stop
    os.kill(os.getpid(), number)
    assert asked.stop and asked.status == status
  assert signal.getsignal(number) == before


def test_hangups_come_in_numbers():
  with signals.Signals() as asked:
    for _ in range(3):
      os.kill(os.getpid(), signal.SIGHUP)
    assert asked.stop and asked.status == 129


def test_hangup_stays_ignored_under_nohup():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with signals.Signals() as asked:
      os.kill(os.getpid(), signal.SIGHUP)
      assert not asked.stop
  finally:
    signal.signal(signal.SIGHUP, before)


def test_run_in_a_thread(tmp_path):
  """As sweep agents and notebooks start it; Python takes no signals there."""
  statuses = []
  thread = threading.Thread(target=lambda: statuses.append(running.run(
      tmp_path, steps=20, prefill=20, time_limit=20)))
  thread.start()
  thread.join(120)
  assert statuses == [0]
  assert checkpoints.load(tmp_path / 'variables.pkl')['progress'][
      'evaluated'] == 20


def command(logdir, **flags):
  return [
      sys.executable, str(running.ROOT / 'dreamer.py'),
      *running.flags(logdir, **flags)]


def test_closed_terminal_saves_the_run(tmp_path):
  words = command(tmp_path, prefill=int(1e6))
  child, terminal = pty.fork()
  if not child:
    os.execv(words[0], words)
  try:
    limit = time.monotonic() + 120
    while not running.episodes(tmp_path) and time.monotonic() < limit:
      if select.select([terminal], [], [], 0.1)[0]:
        os.read(terminal, 4096)
  finally:
    os.close(terminal)
  _, status = os.waitpid(child, 0)
  assert os.waitstatus_to_exitcode(status) == 129
  progress = checkpoints.load(tmp_path / 'variables.pkl')['progress']
  # The first checkpoint has none.
  assert progress['episodes'] == len(running.episodes(tmp_path)) > 0


def test_run_goes_on_when_its_output_is_closed(tmp_path):
  with subprocess.Popen(
      command(tmp_path, steps=20, prefill=20, time_limit=20),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
    run.stdout.close()
    assert run.stderr.read() == b''
  assert run.returncode == 0
  assert running.lines(tmp_path)[-1]['step'] == 20
