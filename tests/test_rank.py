"""The forecast of rank.py: its measures, what it reads, what it refuses."""

import json
import pathlib
import pickle

import numpy as np
import pytest

from analysis import forecast
from common import terminal
from common.backend import tf
from data import checkpoints, episodes, replay
import dreamer
import rank
import running
from runs import logs
import tools

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAINED = ROOT / 'results' / 'sources' / '110' / 'multi-task.pkl'
REWARD = TRAINED.with_name('Walker2DBulletEnv-v0.pkl')
OLD = ROOT / 'tests' / 'data' / 'oracle' / 'a' / 'variables.pkl'
RUN = ROOT / 'tests' / 'data' / 'old_runs' / 'single'


@pytest.fixture(scope='module')
def hopper(tmp_path_factory):
  """A directory of random episodes of Hopper, of which TRAINED saw a kin."""
  class Config:
    task, decisions, seed, termination = 'HopperBulletEnv-v0', 60, 0, False
    time_limit = 60
    def __contains__(self, name):
      return hasattr(self, name)
  folder = tmp_path_factory.mktemp('hopper') / 'episodes'
  memory = replay.Replay(folder, batch_size=1, batch_length=2)
  for episode in forecast.played(Config()):
    memory.add(episode)
  return folder


@pytest.fixture(scope='module')
def batch(hopper):
  return forecast.sequences(forecast.recorded(hopper, 60), 6, seed=0)


def program(*words):
  """Status of `rank.py` with these arguments."""
  with pytest.raises(SystemExit) as end:
    terminal.run(rank.main, [str(word) for word in words])
  return end.value.code


def test_ranks_a_trained_source_above_one_that_has_seen_nothing(
    hopper, tmp_path, capsys):
  out, picture = tmp_path / 'rank.json', tmp_path / 'worst.png'
  assert program(
      '--episodes', hopper, '--from', OLD, TRAINED, '--sequences', 6,
      '--decisions', 100, '--fit_steps', 3, '--out', out, '--picture',
      picture) == 0
  found = json.loads(out.read_text())
  assert found['ranking'] == [str(TRAINED), str(OLD)]
  trained = found['measures'][str(TRAINED)]
  assert set(trained) == set(rank.MEASURES)
  assert all(value is not None for value in trained.values())
  assert picture.read_bytes().startswith(b'\x89PNG')
  text = capsys.readouterr().out
  assert f'{OLD} draws 0%' in text and '1. ' in text


def test_measures_are_repeatable(batch):
  source = lambda: forecast.build(forecast.read(TRAINED), 3)
  first, _ = forecast.measure(source(), batch, fit_steps=2)
  again, _ = forecast.measure(source(), batch, fit_steps=2)
  assert first == again


def test_error_of_a_fixed_autoencoder_is_that_of_the_stored_run():
  """Before a run, near what it has after 25,000 steps of training."""
  class Config:
    task, decisions, seed = 'InvertedPendulumBulletEnv-v0', 500, 0
    termination, time_limit, action_repeat = True, 1000, 2
    def __contains__(self, name):
      return hasattr(self, name)
  found = forecast.sequences(forecast.played(Config()), 48, 0)
  source = forecast.build(forecast.read(TRAINED), 1)
  alone = forecast.Source('', source.encode, source.decode)
  measures, _ = forecast.measure(alone, found)
  path = (
      ROOT / 'results' / 'runs' / Config.task / 'meta-model' / '10' /
      'metrics.jsonl')
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  losses = [row['image_loss'] for row in rows if 'image_loss' in row]
  stored = np.mean(losses[-20:]) - logs.IMAGE_CONSTANT
  assert measures['image_error'] == pytest.approx(stored, rel=0.2)
  assert forecast.coverage(measures, 'x')


def test_fit_lowers_divergence_by_the_rows_of_actions_alone(batch):
  source = forecast.build(forecast.read(TRAINED), 3)
  data = {key: tf.convert_to_tensor(value) for key, value in batch.items()}
  before = {k: v.numpy() for k, v in source.dynamics.variables.items()}
  tf.random.set_seed(0)
  _, measured = forecast.dynamics_measures(source, data)
  forecast.fit_actions(source, data, 40)
  tf.random.set_seed(0)
  _, fitted = forecast.dynamics_measures(source, data)
  assert fitted['divergence'] < measured['divergence']
  for name, variable in source.dynamics.variables.items():
    same = before[name] == variable.numpy()
    if name == 'dynamics/img1/kernel':
      assert same[:-3].all() and not same[-3:].all()
    else:
      assert same.all(), name


def test_dynamics_of_a_source_keep_all_but_the_rows_of_actions():
  found = forecast.read(TRAINED)
  source = forecast.build(found, 2)
  for name, array in found['arrays']['dynamics'].items():
    mine = source.dynamics.variables[name].numpy()
    if name == 'dynamics/img1/kernel':
      assert mine.shape == (30 + 2, 64)
      assert np.array_equal(mine[:30], array[:30])
    else:
      assert np.array_equal(mine, array)


def test_error_ahead_of_a_still_world_is_measured_against_the_last_image(batch):
  still = dict(batch, image=np.repeat(batch['image'][:, :1], 20, 1))
  source = forecast.build(forecast.read(TRAINED), 3)
  _, measured = forecast.dynamics_measures(
      source, {key: tf.convert_to_tensor(x) for key, x in still.items()})
  # The last image is exactly right there, so that nothing can be compared.
  assert np.isnan([measured[f'ahead_{k}'] for k in forecast.AHEAD]).all()


def test_reward_measures_of_known_answers():
  reward = tf.constant([[0.0, 1.0], [2.0, 3.0]])
  right = forecast.reward_measures(tools.UnitNormal(reward), reward)
  assert right['reward_r2'] == 1
  assert right['reward_log_prob'] == pytest.approx(-0.5 * np.log(2 * np.pi))
  mean = forecast.reward_measures(
      tools.UnitNormal(tf.fill([2, 2], 1.5)), reward)
  assert mean['reward_r2'] == pytest.approx(0)
  assert np.isnan(forecast.reward_measures(
      tools.UnitNormal(reward), tf.ones([2, 2]))['reward_r2'])


def test_rewards_are_clipped_as_the_source_learned_them(batch):
  found = forecast.read(TRAINED)
  assert found['config']['clip_rewards'] == 'none'
  found['config']['clip_rewards'] = 'tanh'
  source = forecast.build(found, 3)

  def right(feat):  # What a perfect model of clipped rewards says.
    held = batch['reward'][-feat.shape[0]:]
    return tools.UnitNormal(tf.tanh(tf.convert_to_tensor(10 * held)))

  source.reward = right
  large = {**batch, 'reward': 10 * batch['reward']}
  measures, _ = forecast.measure(source, large, fit_steps=0)
  assert measures['reward_r2'] == pytest.approx(1)


def test_log_directories_module_files_and_old_files_are_sources(
    tmp_path, batch):
  assert 'dynamics' in forecast.read(RUN)['arrays']
  alone = forecast.read(REWARD, TRAINED)
  assert set(alone['arrays']) == {'encoder', 'decoder', 'reward'}
  measures, _ = forecast.measure(
      forecast.build(alone, 3), batch, fit_steps=2)
  assert 'reward_r2' in measures and 'divergence' not in measures
  # Module files of the public scripts: a tuple of arrays for each module.
  for module in ('encoder', 'decoder'):
    arrays = checkpoints.module(OLD, module)
    with (tmp_path / f'{module}.pkl').open('wb') as file:
      pickle.dump(tuple(arrays.values()), file)
    named = forecast.read(tmp_path / f'{module}.pkl', OLD)['arrays'][module]
    assert all(np.array_equal(named[key], arrays[key]) for key in arrays)
  assert set(forecast.read(tmp_path)['arrays']) == {'encoder', 'decoder'}


def test_numbers_that_are_not_finite_are_named(tmp_path, capsys):
  data = checkpoints.load(TRAINED)
  data['variables']['decoder/h5/bias'] = np.full(3, np.nan, np.float32)
  bad = tmp_path / 'bad.pkl'
  checkpoints.save(bad, data)
  assert program('--task', 'HopperBulletEnv-v0', '--from', TRAINED, bad) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: {bad} has numbers that are not finite in dec')
  assert error.count('\n') == 1


def modules(folder, **acts):
  """A directory of module files, each with an activation of convolutions."""
  data = checkpoints.load(TRAINED)
  folder.mkdir()
  for name, act in acts.items():
    checkpoints.save_module(
        folder / f'{name}.pkl', name, {
            key: value for key, value in data['variables'].items()
            if key.startswith(f'{name}/')}, {**data['config'], 'cnn_act': act})
  return folder


def test_convolutions_have_the_activation_of_their_own_file(tmp_path):
  both = dict(encoder='leaky_relu', decoder='leaky_relu')
  found = forecast.read(modules(tmp_path / 'a', **both, reward='relu'))
  assert found['config']['cnn_act'] == 'leaky_relu'
  reward = modules(tmp_path / 'b', reward='relu') / 'reward.pkl'
  found = forecast.read(reward, modules(tmp_path / 'c', **both))
  assert found['config']['cnn_act'] == 'leaky_relu'
  mixed = modules(tmp_path / 'd', encoder='relu', decoder='leaky_relu')
  with pytest.raises(terminal.UserError, match='decoder.pkl .*leaky_relu.*rel'):
    forecast.read(mixed)
  alone = modules(tmp_path / 'e', encoder='relu') / 'encoder.pkl'
  with pytest.raises(terminal.UserError, match='e/encoder.pkl .*c with leaky'):
    forecast.read(alone, tmp_path / 'c')


def test_dynamics_have_their_own_activation_however_they_are_named(tmp_path):
  """As a whole checkpoint, in a directory, and alone beside an autoencoder."""
  for act in ('elu', 'relu'):
    data = checkpoints.load(TRAINED)
    data['config']['dense_act'] = 'relu'
    data['rssm_act'] = act
    whole = tmp_path / act / 'whole.pkl'
    checkpoints.save(whole, data)
    for module in ('encoder', 'decoder', 'dynamics'):
      assert running.script_module('export.py').main([
          '--from', str(whole), '--module', module,
          '--to', str(tmp_path / act / f'{module}.pkl')]) is None
    for words in (
        (whole,), (whole.parent,), (whole.parent / 'dynamics.pkl', whole)):
      assert forecast.read(*words)['config']['rssm_act'] == act
  agent = dreamer.load_agent(tmp_path / 'relu' / 'whole.pkl')
  agent.save_single(agent._dynamics, tmp_path / 'alone.pkl')
  found = forecast.read(tmp_path / 'alone.pkl', TRAINED)
  assert found['config']['rssm_act'] == 'relu'


@pytest.mark.parametrize('data', [
    {'scores': [1, 2]}, {'variables': 3}, {'variables': {}}, {'format': 'x'}])
@pytest.mark.parametrize('flag', ['--from', '--autoencoder'])
def test_a_pickle_that_is_no_checkpoint_is_one_line(
    tmp_path, capsys, data, flag):
  with (tmp_path / 'x.pkl').open('wb') as file:
    pickle.dump(data, file)
  other = (
      [] if flag == '--from' else ['--from', REWARD])
  assert program(
      '--episodes', RUN / 'episodes', *other, flag, tmp_path / 'x.pkl') == 2
  error = capsys.readouterr().err
  assert 'x.pkl is not a checkpoint' in error and error.count('\n') == 1


def test_episodes_are_those_that_a_run_of_the_task_has():
  config = rank.define_config()
  config.parse(['--task', 'ReacherBulletEnv-v0', '--from', 'x'])
  lines = rank.settings.follow(config, [config.task])
  assert config.own_limit and 'ReacherBulletEnv-v0 150' in lines[0]
  config.decisions = 100
  episode, *_ = forecast.played(config)
  assert len(episode['reward']) == 76
  atari = rank.define_config()
  atari.parse(['--task', 'atari_pong', '--from', 'x', '--noops', '0'])
  rank.settings.follow(atari, [atari.task])
  assert (atari.action_repeat, atari.time_limit, atari.noops) == (4, 108000, 0)


@pytest.mark.parametrize('lengths', [
    (501, 501), (70,), (3,), (25, 25, 25), (20, 1000), (1000, 2), (12, 30),
    (9, 9), (50,) * 7])
def test_nothing_is_measured_on_what_was_fitted_to(lengths):
  borders = np.cumsum([0, *lengths])
  found = [
      {'reward': np.arange(*pair)} for pair in zip(borders, borders[1:])]
  parts = forecast.parted(found)
  first, second = (
      [x for episode in part for x in episode['reward']] for part in parts)
  assert first and second
  assert sorted([*first, *second]) == [*range(sum(lengths))]
  if len(parts[1]) > 5:
    assert len(first) == pytest.approx(sum(lengths) * 2 / 3, rel=0.1)
  if min(lengths) >= forecast.LENGTH:
    assert all(
        len(episode['reward']) >= forecast.LENGTH
        for part in parts for episode in part)


def test_sequences_to_fit_to_come_first():
  length = 150
  episode = {
      'image': np.zeros((length, 64, 64, 3), np.uint8),
      'action': np.zeros((length, 1), np.float32),
      'reward': np.arange(length, dtype=np.float32),
      'discount': np.ones(length, np.float32)}
  rewards = forecast.sequences([episode], 7, 0)['reward']
  count = forecast.to_fit(7)
  assert rewards.shape == (7, forecast.LENGTH) and count == 4
  fitted, held = set(rewards[:count].ravel()), set(rewards[count:].ravel())
  assert held <= {*range(40, 60), *range(100, 120)} and not fitted & held


def test_sources_without_the_measure_come_last():
  results = {
      'none': {}, 'low': {'image_r2': 0.1}, 'high': {'image_r2': 0.9},
      'nan': {'image_r2': np.nan}}
  assert rank.ranked(results, 'image_r2')[:2] == ['high', 'low']
  results = {'far': {'ahead_5': 2.0}, 'near': {'ahead_5': 0.1}}
  assert rank.ranked(results, 'ahead_5') == ['near', 'far']


@pytest.mark.parametrize('words, part', [
    (['--from', TRAINED], 'either the target with --task, or'),
    (['--from', TRAINED, '--task', 'x', '--episodes', 'y'], 'either'),
    (['--from', TRAINED, '--task', 'hoper'], "unknown task 'hoper'"),
    (['--from', REWARD, '--episodes', RUN / 'episodes'],
     'no encoder and no decoder'),
    (['--from', 'nowhere', '--episodes', RUN / 'episodes'], 'nowhere'),
    (['--from', RUN / 'episodes', '--episodes', RUN / 'episodes'],
     'neither a checkpoint'),
    (['--from', TRAINED, '--episodes', RUN], 'no episodes in'),
    (['--from', TRAINED, '--task', 'x', '--out', 'x.txt'], '.json'),
    (['--from', TRAINED, '--task', 'x', '--picture', 'no/x.png'],
     'there is no directory no')])
def test_what_cannot_be_ranked_is_one_line(words, part, capsys):
  assert program(*words) == 2
  error = capsys.readouterr().err
  assert part in error and error.count('\n') == 1


def test_a_directory_is_no_file_to_write(tmp_path, capsys):
  for flag, name in (('--picture', 'a.png'), ('--out', 'a.json')):
    (tmp_path / name).mkdir()
    assert program(
        '--from', TRAINED, '--task', 'x', flag, tmp_path / name) == 2
    assert f'{flag} {tmp_path / name} is a directory' in capsys.readouterr().err


def test_an_unfinished_directory_of_episodes_is_only_read(tmp_path, hopper):
  folder = tmp_path / 'episodes'
  folder.mkdir()
  for path in episodes.paths(hopper):
    (folder / path.name).write_bytes(path.read_bytes())
  (folder / f'{path.name}.tmp').write_bytes(b'being written')
  before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
  forecast.sequences(forecast.recorded(folder, 10), 2, 0)
  assert before == {
      path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
