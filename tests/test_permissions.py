"""Folders and files of other users are one line, and nothing is written."""

import contextlib
import importlib
import os

import pytest

from common import files, terminal
from data import checkpoints, episodes, replay
from data.logdir import Logdir
import running

NOBODY = 65534


@contextlib.contextmanager
def another_user():
  """Permissions bind in this context, which those of root do not."""
  if os.geteuid():
    yield  # Whoever is not root needs no change: modes bind already.
    return
  os.seteuid(NOBODY)
  try:
    yield
  finally:
    os.seteuid(0)


@pytest.fixture
def theirs(tmp_path):
  """A log directory that only its owner may enter, with one file of each."""
  for parent in (tmp_path, *tmp_path.parents):
    if parent.owner() == tmp_path.owner() and parent != parent.parent:
      with contextlib.suppress(PermissionError):
        parent.chmod(parent.stat().st_mode | 0o011)
  logdir = Logdir(tmp_path / 'theirs')
  logdir.path.mkdir()
  logdir.write_config({'seed': 0})
  checkpoints.save(logdir.checkpoint, {'variables': {}})
  logdir.episodes.mkdir()
  paths = [logdir.path, *logdir.path.iterdir()]
  for path in paths:
    path.chmod(0)
  yield logdir
  for path in paths:
    path.chmod(0o700)


@pytest.mark.parametrize('program', [
    ['export.py', '--module', 'encoder', '--to', '/tmp/x.pkl', '--from'],
    ['plotting.py', '--outdir', '/tmp/x', '--indir'],
    ['evaluate.py', '--from'], ['look.py', '--from'],
    ['rank.py', '--episodes', '/tmp', '--from'],
    ['dreamer.py', '--preset', 'debug', '--task', running.SWINGUP, '--logdir']])
def test_programs_name_what_they_may_not_look_at(theirs, program, capfd):
  name, *words = program
  main = importlib.import_module(name.removesuffix('.py')).main
  with another_user():
    status = terminal.attempt(main, [*words, str(theirs.path)])
  error = capfd.readouterr().err.strip().splitlines()[-1]
  assert status == 2 and str(theirs.path) in error
  assert error.startswith('error: ') and 'Traceback' not in error


@pytest.mark.parametrize('use', [
    lambda logdir: logdir.lock(),
    lambda logdir: logdir.read_config(),
    lambda logdir: logdir.write_config({'seed': 1}),
    lambda logdir: files.write_text(logdir.transfer, 'text'),
    lambda logdir: checkpoints.load(logdir.checkpoint),
    lambda logdir: checkpoints.save(logdir.checkpoint, {'variables': {}}),
    lambda logdir: checkpoints.newest(logdir.checkpoint),
    lambda logdir: episodes.paths(logdir.episodes),
    lambda logdir: replay.Replay(
        logdir.episodes, batch_size=1, batch_length=2)])
def test_what_belongs_to_others_is_named_in_one_line(theirs, use):
  with another_user(), pytest.raises(terminal.UserError) as error:
    use(theirs)
  message = str(error.value)
  assert str(theirs.path) in message and '\n' not in message
