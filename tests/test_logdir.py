"""Files are written whole, and a log directory belongs to one run at a time."""

import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys

import pytest

from common import files, terminal
from data import logdir

ROOT = pathlib.Path(__file__).parent.parent


def test_files_are_replaced_whole(tmp_path):
  path = tmp_path / 'a.txt'
  files.write_text(path, 'one')
  with pytest.raises(ZeroDivisionError):
    with files.replacing(path) as file:
      file.write(b'half of')
      assert path.read_text() == 'one'
      1 / 0
  assert path.read_text() == 'one'
  with files.replacing(path, keep=tmp_path / 'b.txt') as file:
    file.write(b'two')
  assert path.read_text() == 'two'
  assert (tmp_path / 'b.txt').read_text() == 'one'
  assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize('number', [
    errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES])
def test_directories_that_refuse_fsync(tmp_path, monkeypatch, number):
  real = os.fsync

  def fsync(descriptor):
    if os.path.isdir(f'/proc/self/fd/{descriptor}'):
      raise OSError(number, os.strerror(number))
    real(descriptor)

  monkeypatch.setattr(os, 'fsync', fsync)
  files.write_text(tmp_path / 'a', 'text')
  assert (tmp_path / 'a').read_text() == 'text'


def test_place_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(terminal.UserError) as caught:
    files.write_text(tmp_path / 'file' / 'x', '')
  assert str(caught.value).startswith(f'{tmp_path}/file/x cannot be written: ')
  assert '\n' not in str(caught.value)


def test_config_comes_back(tmp_path):
  folder = logdir.Logdir(tmp_path)
  assert folder.read_config() == {}
  folder.write_config({'seed': 3, 'task': 'ü'})
  assert folder.read_config() == {'seed': 3, 'task': 'ü'}
  for odd in (b'', b'\xff\0', b'[1]', b'{"seed": '):
    folder.config.write_bytes(odd)
    assert folder.read_config() == {}


HOLDER = '''
import subprocess, sys
sys.path[:0] = [{root!r}]
from data import logdir
held = logdir.Logdir({directory!r}).lock()
child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
'''


def test_lock_dies_with_its_owner(tmp_path):
  path = tmp_path / 'run'
  code = HOLDER.format(root=str(ROOT), directory=str(path))
  owner = subprocess.Popen(
      [sys.executable, '-c', code], stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, text=True)
  child = int(owner.stdout.readline())
  try:
    with pytest.raises(terminal.UserError) as caught:
      logdir.Logdir(path).lock()
    message = str(caught.value)
    assert str(path) in message and str(owner.pid) in message
    assert '\n' not in message
    owner.kill()
    owner.wait()
    os.kill(child, 0)  # What the owner started is alive and has no lock.
    with logdir.Logdir(path).lock() as held:
      assert (path / '.lock').read_text().startswith(str(os.getpid()))
      with pytest.raises(terminal.UserError, match=str(os.getpid())):
        logdir.Logdir(path).lock()
    assert held.closed
    logdir.Logdir(path).lock().close()
  finally:
    owner.kill()
    os.kill(child, signal.SIGKILL)
    owner.communicate()


def test_lock_in_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(terminal.UserError, match='cannot be written'):
    logdir.Logdir(tmp_path / 'file' / 'run').lock()




def test_lock_on_a_full_disk(tmp_path):
  """It is held, though no one is told by whom."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
  try:
    held = logdir.Logdir(tmp_path).lock()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  with held, pytest.raises(terminal.UserError, match='process unknown'):
    logdir.Logdir(tmp_path).lock()
  logdir.Logdir(tmp_path).lock().close()
