"""Flags that follow from the tasks, and what a continued run keeps."""

import contextlib
import json

import gymnasium as gym
import numpy as np
import pytest

import dreamer
import running
from common import options, terminal
from data import checkpoints
from data.logdir import Logdir
from runs import devices, resume, settings
import wrappers


def config_of(tmp_path, *argv):
  return dreamer.define_config().parse(['--logdir', str(tmp_path), *argv])


def settled(tmp_path, tasks, *argv):
  config = config_of(tmp_path, *argv)
  lines = settings.settle(config, tasks)
  return config, lines


@pytest.mark.parametrize('task,argv,expected', [
    ('CartPole-v1', [], True),
    ('hooks:good', [], True),
    ('dmc_lqr_lqr_2_1', [], True),
    ('atari_pong', [], True),
    ('dmc_walker_walk', [], False),
    ('HopperBulletEnv-v0', [], False),
    ('HopperBulletEnv-v0', ['--termination', 'True'], True),
    ('HopperBulletEnv-v0', ['--termination', 'True', '--pcont', 'False'],
     False),
    ('CartPole-v1', ['--pcont', 'False'], False),
    ('dmc_walker_walk', ['--pcont', 'True'], True),
])
def test_tasks_that_can_terminate_turn_pcont_on(
    tmp_path, task, argv, expected):
  wrappers.check_task(task)
  config, lines = settled(tmp_path, [task], *argv)
  assert config.pcont is expected
  told = any('--pcont True' in line for line in lines)
  assert told == (expected and '--pcont' not in argv)


@pytest.mark.parametrize('flags, most', [
    (['--decode_stride', '11'], 10), (['--imag_stride', '11'], 10),
    (['--imag_stride', '10', '--pcont', 'True'], 9)])
def test_strides_that_pass_over_a_whole_sequence_are_refused(
    tmp_path, capsys, flags, most):
  words = ['--preset', 'debug', '--logdir', str(tmp_path / 'new'), *flags]
  with pytest.raises(SystemExit) as exit:
    terminal.run(dreamer.main, words)
  assert exit.value.code == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith(f'error: {" ".join(flags[:2])} passes over all of')
  assert '--batch_length 10' in line and f'at most {most}' in line
  assert ('--pcont' in line) == (most == 9)
  assert not (tmp_path / 'new').exists()
  flags[1] = str(most)
  settings.check_strides(config_of(tmp_path, '--preset', 'debug', *flags))


def test_one_task_that_can_terminate_is_enough(tmp_path):
  wrappers.check_task('HopperBulletEnv-v0')
  config, lines = settled(tmp_path, ['HopperBulletEnv-v0', 'hooks:good'])
  assert config.pcont
  assert lines == ['hooks:good can terminate: --pcont True']


def test_only_lqr_terminates_in_the_suite():
  from dm_control import suite
  from dm_control.suite import base
  import importlib
  for domain in {domain for domain, _ in suite.ALL_TASKS}:
    module = importlib.import_module(f'dm_control.suite.{domain}')
    classes = [
        x for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, base.Task)]
    ends = any('get_termination' in vars(x) for x in classes)
    assert ends == wrappers.can_terminate(f'dmc_{domain}_task'), domain


def test_atari_is_as_published(tmp_path):
  config, lines = settled(tmp_path, ['atari_pong', 'atari_boxing'])
  for name, value in settings.ATARI.items():
    assert getattr(config, name) == value
    assert f'--{name} {value}' in lines[0]
  assert len(lines) == 1
  config, lines = settled(tmp_path, ['atari_pong', 'CartPole-v1'])
  assert config.horizon == 15 and config.noops == 0 and config.pcont


def test_given_flags_and_presets_win_over_atari(tmp_path):
  config, lines = settled(
      tmp_path, ['atari_pong'], '--preset', 'debug', '--kl_scale', '1',
      '--noops', '0')
  assert (config.kl_scale, config.noops) == (1.0, 0)
  assert (config.horizon, config.time_limit) == (5, 100)  # Of the preset.
  assert config.expl_amount == 0.4
  for name in ('kl_scale', 'noops', 'horizon', 'time_limit'):
    assert f'--{name}' not in lines[0]


def test_registered_limits_hold_unless_one_is_given(tmp_path):
  wrappers.check_task('HopperBulletEnv-v0')
  tasks = ['HopperBulletEnv-v0', 'ThrowerBulletEnv-v0']
  config, lines = settled(tmp_path, tasks)
  assert config.own_limit and config.time_limit == 1000
  assert 'ThrowerBulletEnv-v0 100' in lines[0] and 'Hopper' not in lines[0]
  assert not settled(tmp_path, tasks, '--time_limit', '1000')[0].own_limit
  assert not settled(tmp_path, tasks[:1])[0].own_limit


def test_continued_run_keeps_what_it_saved(tmp_path):
  old = {'pcont': False, 'horizon': 15, 'time_limit': 1000}
  (tmp_path / 'config.json').write_text(json.dumps(old))
  fresh = config_of(tmp_path)
  for task in ('CartPole-v1', 'atari_pong', 'ReacherBulletEnv-v0'):
    config, lines = settled(tmp_path, [task])
    assert config.plain() == fresh.plain() and not lines
  assert settled(tmp_path, ['CartPole-v1'], '--pcont', 'True')[0].pcont
  saved = settings.ATARI
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  config, lines = settled(tmp_path, ['atari_pong'])
  assert {name: getattr(config, name) for name in saved} == saved


def test_source_in_the_directory_is_as_one_that_is_named(tmp_path):
  source = options.multi_task().parse(['--task1', 'HopperBulletEnv-v0'])
  named, logdir = tmp_path / 'named.pkl', Logdir(tmp_path / 'run')
  for path in (named, logdir.checkpoint):
    checkpoints.save(path, {
        'format': checkpoints.CHECKPOINT, 'script': 'dreamer-multi-task.py',
        'step': 1, 'action_dim': 8, 'config': source.plain(), 'variables': {},
        'run': 'abc'})
  task = 'ReacherBulletEnv-v0'

  def settle(*argv):
    config = options.fractional().parse([
        '--task1', task, '--termination', 'True', *argv])
    lines = settings.settle(config, [task])
    return config.own_limit, config.pcont, lines

  expected = settle('--logdir', str(tmp_path / 'new'), '--source', str(named))
  assert expected[:2] == (True, True) and len(expected[2]) == 2
  implicit = '--logdir', str(logdir), '--transfer', 'True'
  assert settle(*implicit) == expected
  # As a start leaves it that is killed before it writes config.json.
  logdir.checkpoint.rename(logdir.source)
  assert settle(*implicit) == expected


def check_flags(tmp_path, saved, *argv):
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  config = config_of(tmp_path, *argv)
  with contextlib.ExitStack() as stack:
    resume.History(config, dreamer.Dreamer, devices.Team(1), stack).read()


def test_a_run_of_another_preset_is_told_which(tmp_path):
  # Of before the preset was changed, and some of the flags were there.
  saved = config_of(tmp_path, '--preset', 'small', '--seed', '3').plain()
  saved.update(preset='cpu', script='dreamer.py', run='a' * 32)
  del saved['kl_balance'], saved['collect_short']
  seed = '--seed', '3'
  check_flags(tmp_path, saved, '--preset', 'small', *seed)
  with pytest.raises(terminal.UserError) as error:
    check_flags(tmp_path, saved, '--preset', 'cpu', *seed)
  assert 'give it --preset small to continue it' in str(error.value)
  assert 'kl_balance was 0.0, now 0.8' in str(error.value)
  with pytest.raises(terminal.UserError, match='give it the same flags'):
    check_flags(
        tmp_path, saved, '--preset', 'cpu', '--batch_size', '3', *seed)


def test_a_flag_younger_than_the_run_had_its_default(tmp_path):
  saved = config_of(tmp_path).plain()
  saved.update(script='dreamer.py', run='a' * 32)
  del saved['kl_balance']
  check_flags(tmp_path, saved)
  with pytest.raises(terminal.UserError, match='kl_balance was 0.0, now 0.5'):
    check_flags(tmp_path, saved, '--kl_balance', '0.5')
  check_flags(
      tmp_path, saved, '--kl_balance', '0.5', '--allow_changes', 'True')


@pytest.mark.parametrize('lr_end, lengths, learned, expected', [
    (0.1, (1000,), 1, ''), (0.1, (1000, 1000), 1, ''),
    (1.0, (1000, 2000), 1, ''), (0.1, (1000, 2000), 1, '1000'),
    (0.1, (1000, 2000, 2000, 1e6), 1, '1000 2000'),
    (0.1, (1000, 2000), 2, ''), (0.1, (1000, 2000, 1e6), 2, '2000')])
def test_steps_over_which_rates_fell_are_recorded(
    tmp_path, lr_end, lengths, learned, expected):
  saved = {}
  for index, steps in enumerate(lengths):
    config = config_of(
        tmp_path, '--lr_end', str(lr_end), '--steps', str(steps))
    records = resume.former_steps(
        saved, config, index >= learned) if saved else {}
    saved = {**records, **config.plain()}
  assert saved.get('former_steps', '') == expected


def test_settings_are_those_that_make_env_knows(tmp_path):
  task = 'InvertedPendulumBulletEnv-v0'
  wrappers.make_env(task, **settings.environment(config_of(tmp_path))).close()


def test_replaced_flags_say_so(tmp_path, capsys):
  spaces = {'atari_pong': wrappers.OneHot(6)}
  config = config_of(tmp_path)
  settings.match_actions(config, spaces)
  assert (config.action_dist, config.expl) == ('onehot', 'epsilon_greedy')
  assert capsys.readouterr().err == ''
  config = config_of(
      tmp_path, '--expl', 'additive_gaussian', '--action_dist', 'tanh_normal')
  settings.match_actions(config, spaces)
  assert (config.action_dist, config.expl) == ('onehot', 'epsilon_greedy')
  error = capsys.readouterr().err
  assert error.count('\n') == 2
  assert 'warning: --expl additive_gaussian is for continuous' in error
  assert 'warning: --action_dist tanh_normal is for continuous' in error


def test_actions_of_one_kind(tmp_path):
  box = gym.spaces.Box(-1, 1, (2,))
  with pytest.raises(terminal.UserError, match='train them apart'):
    settings.match_actions(
        config_of(tmp_path), {'a': wrappers.OneHot(2), 'b': box})
  with pytest.raises(terminal.UserError, match='leave the flag out'):
    settings.match_actions(
        config_of(tmp_path, '--action_dist', 'onehot'), {'b': box})


@pytest.mark.parametrize('flags,warnings,pcont', [
    ({}, 0, True), ({'pcont': False}, 1, False)])
def test_run_on_a_task_that_terminates(
    tmp_path, capsys, flags, warnings, pcont):
  assert running.run(
      tmp_path / 'run', task='hooks:uneven', steps=400, **flags) == 0
  out, err = capsys.readouterr()
  assert err.count('terminates and --pcont is off') == warnings
  assert out.count('hooks:uneven can terminate: --pcont True') == 1 - warnings
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert saved['pcont'] is pcont


def test_atari_run_that_stops_and_goes_on_is_the_same(tmp_path):
  """Episodes end with lives and begin with no-ops, also in the middle."""
  flags = dict(
      task='atari_breakout', threads=1, time_limit=2000, eval_every=10 ** 6)
  assert running.run(tmp_path / 'one', steps=1200, **flags) == 0
  for steps in (700, 1200):
    assert running.run(tmp_path / 'two', steps=steps, **flags) == 0
  episodes = []
  for name in ('one', 'two'):
    paths = sorted((tmp_path / name / 'episodes').glob('*.npz'))
    episodes.append([dict(np.load(path)) for path in paths])
  assert len(episodes[0]) == len(episodes[1]) > 2
  ends = [episode['discount'][-1] for episode in episodes[0]]
  assert 0 in ends
  for one, two in zip(*episodes):
    for key in one:
      assert np.array_equal(one[key], two[key])
