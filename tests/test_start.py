"""A stopped run finds its way back, whatever became of its log directory."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from common import options, terminal
from data import checkpoints
from data.logdir import Logdir
import dreamer
import running
from runs import devices, loop, resume

# An episode of 50 decisions, and 10 of the next.
DECISIONS = 60


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
  """Log directory of a run that was stopped in prefill; not to be changed."""
  logdir = tmp_path_factory.mktemp('stopped')
  go_on(logdir, DECISIONS)
  return logdir


@pytest.fixture
def copy(stopped, tmp_path):
  return shutil.copytree(stopped, tmp_path / 'copy')


def go_on(logdir, decisions=10, **flags):
  """Takes random decisions, until a signal comes."""
  with running.signal_at(loop.Run, '_random_policy', decisions):
    assert running.run(logdir, **flags) == 143


def progress(logdir):
  return checkpoints.load(logdir / 'variables.pkl')['progress']


def test_episode_that_ends_early_when_it_is_repeated(copy, capfd):
  go_on(copy, time_limit=10, allow_changes=True)
  warning, = capfd.readouterr().err.splitlines()
  assert 'did not repeat its unfinished episode' in warning
  assert 'it ended after 5 of 10 decisions' in warning
  # The old one, and those of the new decisions alone.
  names = running.episodes(copy)
  assert [name.split('-')[-1] for name in names[:2]] == ['51.npz', '6.npz']
  assert len(names) == 3
  # A restart goes on, without another copy.
  go_on(copy, time_limit=10, allow_changes=True)
  assert len(running.episodes(copy)) == len(names) + 2


@pytest.mark.parametrize('allow', [False, True])
def test_another_number_of_machines_is_one_line(copy, capfd, allow):
  with pytest.raises(terminal.UserError, match='start it on 1,'):
    second(copy).read()  # On the other machine too.
  file = copy / 'variables.pkl'
  saved = checkpoints.load(file)
  assert saved.pop('machines') == 1
  checkpoints.save(file, {**saved, 'machines': 2})
  before = running.content(copy)
  assert running.run(copy, allow_changes=allow) == 2
  error, = capfd.readouterr().err.splitlines()
  assert f'{copy} holds a run of 2 machines, not 1: start it on 2,' in error
  assert running.content(copy) == before
  checkpoints.save(file, saved)  # As older versions saved it.
  go_on(copy)
  assert checkpoints.load(file)['machines'] == 1


def test_lengthened_run_says_so_where_its_rates_fall(copy):
  file = copy / 'variables.pkl'
  checkpoints.save(file, {**checkpoints.load(file), 'updates': 1})
  first = Logdir(copy).read_config()['steps']
  for steps in (first, 700, 700, 900):
    go_on(copy, lr_end=0.1, steps=steps, allow_changes=True)
    former = Logdir(copy).read_config().get('former_steps', '')
    assert former == {
        first: '', 700: f'{first:g}', 900: f'{first:g} 700'}[steps]


def test_lengthened_run_says_so_without_its_config(copy):
  file = copy / 'variables.pkl'
  checkpoints.save(file, {**checkpoints.load(file), 'updates': 1})
  for steps in 700, 900:
    go_on(copy, lr_end=0.1, steps=steps, allow_changes=True)
  before = Logdir(copy).read_config()
  (copy / 'config.json').unlink()
  go_on(copy, lr_end=0.1, steps=900, allow_changes=True)
  assert Logdir(copy).read_config() == before
  assert len(before['former_steps'].split()) == 2


def test_lengthened_run_that_has_not_learned_is_as_any_other(copy):
  go_on(copy, lr_end=0.1, steps=700, allow_changes=True)
  config = Logdir(copy).read_config()
  assert config['steps'] == 700 and 'former_steps' not in config


def lose(path):
  path.unlink()


def cut(path):
  path.write_bytes(path.read_bytes()[:-20])


class Second:
  """A team of two as its second worker sees it."""

  size, index, chief = 2, 1, False

  def __init__(self, run):
    # Not new, flags of the chief and how many have others, the identity, and
    # with a checkpoint.
    self._sums = [
        [False], [0], [0],
        [int(run, 16) >> i & 0xffffffff for i in range(0, 128, 32)], [True]]

  def sum(self, *values):
    return self._sums.pop(0)

  def chief_says(self, answer):
    return self.sum(answer)[0]


def second(logdir):
  """The history that the second worker of a run has."""
  config = options.dreamer().parse(running.flags(logdir))
  run = Logdir(logdir).read_config()['run']
  with contextlib.ExitStack() as stack:
    return resume.History(config, dreamer.Dreamer, Second(run), stack)


@pytest.mark.parametrize('harm', [lose, cut])
def test_all_workers_take_the_checkpoint_before(harm, copy, capfd):
  go_on(copy)
  harm(copy / 'variables.pkl')
  spare = copy / 'variables.prev.pkl'
  before = checkpoints.load(spare)
  del before['machines']  # There is only one here.
  checkpoints.save(spare, before)
  config = options.dreamer().parse(running.flags(copy))
  with contextlib.ExitStack() as stack:
    chief = resume.History(
        config, dreamer.Dreamer, devices.Team(config.batch_size), stack)
    saved = [history.read() for history in (chief, second(copy))]
  assert [one['step'] for one in saved] == [before['step']] * 2
  assert 'variables.prev.pkl is taken in its place' in capfd.readouterr().err


def test_state_of_a_worker_that_is_damaged_is_as_none(copy, capfd):
  saved = checkpoints.load(copy / 'variables.pkl')
  history, path = second(copy), copy / 'worker1.pkl'
  assert history.read_worker(saved) is None
  checkpoints.save(path, saved)
  assert history.read_worker(saved)['step'] == saved['step']
  assert capfd.readouterr().err == ''
  cut(path)
  assert history.read_worker(saved) is None
  warning, = capfd.readouterr().err.splitlines()
  assert str(path) in warning


@pytest.mark.parametrize('damage', [
    lose, *(lambda path, data=data: path.write_bytes(data) for data in (
        b'', b'{"seed": 0', b'[1, 2]', b'{}', b'{"other": 3}', b'\xff\0'))])
def test_lost_or_odd_config_is_made_again(damage, stopped, copy, capfd):
  damage(copy / 'config.json')
  assert running.run(copy, batch_size=5) == 2
  assert 'batch_size was 4, now 5' in capfd.readouterr().err
  go_on(copy)
  warning, = capfd.readouterr().err.splitlines()
  assert 'config.json is lost or damaged: it is made again' in warning
  one, two = (
      json.loads((logdir / 'config.json').read_text())
      for logdir in (stopped, copy))
  assert {**one, 'logdir': 0} == {**two, 'logdir': 0}


def test_a_checkpoint_that_is_lost_is_told(copy, capfd):
  """An agent that has learned nothing does not pass for the trained one."""
  for name in ('variables.pkl', 'variables.prev.pkl'):
    (copy / name).unlink(missing_ok=True)
  before = running.content(copy)
  assert running.run(copy) == 2
  error, = capfd.readouterr().err.splitlines()
  assert f'{copy} holds the episodes of a run, but no checkpoint' in error
  assert '--allow_changes True' in error
  assert running.content(copy) == before
  old, = (np.load(path) for path in (copy / 'episodes').iterdir())
  go_on(copy, DECISIONS, prefill=400, allow_changes=True)
  warning, = capfd.readouterr().err.splitlines()
  assert 'an agent that has learned nothing goes on' in warning
  new = np.load(copy / 'episodes' / running.episodes(copy)[1])
  assert not np.array_equal(old['action'], new['action'])
  assert not np.array_equal(old['image'][0], new['image'][0])
  go_on(copy, prefill=400)


def test_a_config_of_another_program_stays(tmp_path, capfd):
  (tmp_path / 'config.json').write_text('{"model": "bert"}')
  before = running.content(tmp_path)
  assert running.run(tmp_path) == 2
  error, = capfd.readouterr().err.splitlines()
  assert f'{tmp_path}/config.json is not of this program' in error
  assert running.content(tmp_path) == before


def test_two_starts_of_one_new_run(copy, tmp_path):
  """The second has found nothing there, and takes the directory afterwards."""
  logdir = tmp_path / 'new'
  config = dreamer.define_config().parse(running.flags(logdir))
  with contextlib.ExitStack() as stack:
    history = resume.History(
        config, dreamer.Dreamer, devices.Team(config.batch_size), stack)
    assert history.new
    copy.rename(logdir)
    before = running.content(logdir)
    with pytest.raises(terminal.UserError, match='another run began in .*new'):
      history.open()
    assert running.content(logdir) == before


def test_episodes_that_are_missing_are_named(copy, capfd):
  for path in (copy / 'episodes').iterdir():
    path.unlink()
  before = running.content(copy)
  assert running.run(copy) == 2
  error = capfd.readouterr().err
  assert f'{copy}/episodes lacks 1 of the 1 episodes' in error
  assert '--allow_changes True' in error and len(error.splitlines()) == 1
  assert running.content(copy) == before


@pytest.mark.parametrize('old', [False, True])
def test_step_stays_without_the_episodes(copy, capfd, old):
  shutil.rmtree(copy / 'episodes')
  if old:  # As older versions saved it.
    file = copy / 'variables.pkl'
    saved = checkpoints.load(file)
    saved['step'] = 100
    for key in ('newest', 'steps', 'gone'):
      del saved['progress'][key]
    checkpoints.save(file, saved)
  go_on(copy, allow_changes=True)
  captured = capfd.readouterr()
  assert 'continues at step 120' in captured.out
  assert 'stopped at step 140' in captured.out
  assert 'it goes on without them' in captured.err
  go_on(copy)
  captured = capfd.readouterr()
  assert 'continues at step 140' in captured.out
  assert captured.err == ''


def test_episodes_finished_since_are_found_by_name(copy):
  """Although an older one was removed, which shifts all positions."""
  saved = (copy / 'variables.pkl').read_bytes()
  go_on(copy, 40)
  # As after a kill: the episode that was open is finished on disk.
  (copy / 'variables.pkl').write_bytes(saved)
  first, second = running.episodes(copy)
  (copy / 'episodes' / first).unlink()
  go_on(copy, 10, prefill=400, allow_changes=True)
  open_episode, = progress(copy)['driver']['open']
  assert len(open_episode['action']) - 1 == 10
  assert running.episodes(copy) == [second]
