"""The rules of transfer on tensors, with small agents in this process."""

import contextlib
import functools
import pickle
import re
import shlex

import gymnasium as gym
import numpy as np
import pytest

from common import terminal
from common.backend import tf
from data import logdir as logdirs
import dreamer
import models
from runs import devices, loop
import running

multi, ftl, mmtl = (
    running.script_module(f'dreamer-{name}.py')
    for name in ('multi-task', 'FTL', 'MMTL'))
SIZES = dict(cnn_depth=2, deter_size=6, stoch_size=4, num_units=8)


def configure(script, logdir, **values):
  config = script.define_config()
  config.preset_name('debug')
  config.update({
      **SIZES, 'batch_size': 2, 'batch_length': 4, 'horizon': 3,
      'precision': '32', 'logdir': logdir, **values})
  return config


@functools.cache
def source_agent(actions=3, seed=7, **values):
  """An agent whose variables are all unlike any fresh ones, biases too."""
  agent = dreamer.Dreamer(configure(dreamer, '.', seed=seed, **values), actions)
  rng = np.random.default_rng(seed)
  for variable in agent.variables.values():
    variable.assign(rng.normal(0, 0.3, variable.shape).astype(np.float32))
  return agent


def save(agent, path, old=False):
  if not old:
    agent.save(path)
    return
  arrays = [variable.numpy() for variable in agent.variables.values()]
  path.write_bytes(pickle.dumps((1000, *arrays, 0.5)))


def arrays(agent):
  return {name: v.numpy() for name, v in agent.variables.items()}


def same(first, second):
  return (first.dtype == second.dtype) and np.array_equal(first, second)


def batch(actions, seed=0):
  rng = np.random.default_rng(seed)
  return {
      'image': rng.integers(0, 256, (2, 4, 64, 64, 3), np.uint8),
      'action': rng.uniform(-1, 1, (2, 4, actions)).astype(np.float32),
      'reward': rng.normal(size=(2, 4)).astype(np.float32),
      'discount': np.ones((2, 4), np.float32)}


@pytest.fixture
def eager():
  """Updates without building graphs, which takes longer than a few."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


# Fractional and modular transfer.

def start(tmp_path, source, actions=3, old=False, **values):
  """The target's fresh variables and those after the transfer."""
  save(source, tmp_path / 'variables.pkl', old)
  config = configure(
      ftl, tmp_path, transfer=True, pcont=source.config.pcont, **values)
  fresh = arrays(dreamer.Dreamer(config, actions))
  return fresh, ftl.Agent.start(config, actions)


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('pcont', [False, True])
@pytest.mark.parametrize('actions', [2, 3, 6])
def test_table(tmp_path, actions, pcont, old):
  source = source_agent(actions, pcont=pcont)
  fresh, agent = start(tmp_path, source, old=old, transfer_factor=0.3)
  given, got = arrays(source), arrays(agent)
  stoch = SIZES['stoch_size']
  scaled = {
      f'{module}/hout/{part}' for part in ('kernel', 'bias')
      for module in ['reward', 'value'] + ['pcont'] * pcont}
  assert len(got) == 55 + 8 * pcont
  for name, value in got.items():
    if name in scaled:
      expected = fresh[name] + np.float32(0.3) * given[name]
      assert not same(value, fresh[name])
    elif name.startswith('actor/hout/'):
      expected = fresh[name]
    elif name == 'dynamics/img1/kernel':
      assert value.shape[0] == stoch + 3
      expected = np.concatenate([given[name][:stoch], fresh[name][stoch:]])
    else:
      expected = given[name]
    assert same(value, expected), name


@pytest.mark.parametrize('factor', [0, 0.1, 0.2, 0.3, 0.4, 0.5, 1])
def test_factor(tmp_path, factor):
  source = source_agent()
  fresh, agent = start(tmp_path, source, transfer_factor=factor)
  given, got = arrays(source), arrays(agent)
  for module in ('reward', 'value'):
    for part in ('kernel', 'bias'):
      name = f'{module}/hout/{part}'
      assert same(
          got[name], fresh[name] + np.float32(factor) * given[name])
      assert same(got[name], fresh[name]) == (factor == 0)


def test_counters_and_moments_are_fresh(tmp_path):
  source = source_agent(seed=8)
  source.updates, source.step = 50, 4000
  source._make_optimizers()
  for optimizer in source.optimizers.values():
    optimizer._adam.iterations.assign(50)
    for slot in (*optimizer._adam._momentums, *optimizer._adam._velocities):
      slot.assign(tf.ones_like(slot))
  _, agent = start(tmp_path, source)
  agent._make_optimizers()
  state = agent.state()
  assert (state['step'], state['updates'], state['calls']) == (0, 0, [0, 0])
  names = set()
  for optimizer in state['optimizers'].values():
    assert optimizer['iterations'] == 0
    for moments in (optimizer['m'], optimizer['v']):
      assert not any(value.any() for value in moments.values())
      names |= set(moments)
  assert names == set(agent.variables)


def test_full_transfer(tmp_path):
  source = source_agent()
  _, agent = start(tmp_path, source, reset='', scale='')
  assert all(
      same(value, arrays(source)[name])
      for name, value in arrays(agent).items())


def test_full_transfer_needs_equal_actions(tmp_path):
  with pytest.raises(terminal.UserError) as error:
    start(tmp_path, source_agent(5), reset='', scale='')
  for words in (
      'variables.pkl', 'dynamics/img1/kernel/action', '[5, 6]', '[3, 6]'):
    assert words in str(error.value)


def test_one_module_alone(tmp_path):
  source = source_agent()
  fresh, agent = start(tmp_path, source, scale='', copy='^encoder')
  for name, value in arrays(agent).items():
    taken = arrays(source) if name.startswith('encoder/') else fresh
    assert same(value, taken[name])


def test_report(tmp_path):
  _, agent = start(
      tmp_path, source_agent(), freeze='^encoder', transfer_factor=0.2)
  rows = {
      line.split()[0]: line.split('  ') for line in agent.report.splitlines()}
  cells = {
      name: [cell.strip() for cell in row[1:] if cell]
      for name, row in rows.items()}
  # The name that it has as soon as the run begins.
  assert agent.report.startswith(f'Transfer from {tmp_path / "source.pkl"}\n')
  assert 'scaled by 0.2' in agent.report
  def count(*names):
    return sum(agent.variables[name].shape.num_elements() for name in names)
  encoder = [name for name in agent.variables if name.startswith('encoder')]
  encoder = f'8 ({count(*encoder):,})'
  assert cells['encoder'] == [encoder, '-', '-', encoder]
  assert cells['actor'][2] == (
      f'2 ({count("actor/hout/kernel", "actor/hout/bias"):,})')
  assert cells['reward'][1] == '2 (9)'
  # The rows of the three actions for six units.
  assert cells['dynamics'] == [
      f'13 ({source_size(agent, "dynamics") - 18:,})', '-', '1 (18)', '-']


def source_size(agent, module):
  return sum(
      variable.shape.num_elements()
      for variable in agent.modules[module].variables.values())


@pytest.mark.parametrize('change, words', [
    (dict(num_units=9), ['actor/h0/kernel', '[10, 9]', '[10, 8]']),
    (dict(deter_size=7), ['actor/h0/kernel', '[11, 8]', '[10, 8]']),
    (dict(cnn_act='elu'), ['--cnn_act elu', 'relu']),
    (dict(dense_act='tanh'), ['--dense_act tanh', 'elu'])])
def test_source_of_other_sizes(tmp_path, change, words):
  source = source_agent(**change)
  with pytest.raises(terminal.UserError) as error:
    start(tmp_path, source)
  for word in [str(tmp_path / 'variables.pkl'), *words]:
    assert word in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ['variables.pkl']


def test_source_without_a_module(tmp_path):
  save(source_agent(), tmp_path / 'variables.pkl')
  config = configure(ftl, tmp_path, transfer=True, pcont=True)
  with pytest.raises(terminal.UserError, match='variables.pkl.*pcont/h0/ker'):
    ftl.Agent.start(config, 3)
  # It says what to do about it: learn that module from scratch.
  config.reset += '|^pcont'
  ftl.Agent.start(config, 3)


@pytest.mark.parametrize('cut', [0, 1, 100, 4000])
def test_truncated_source(tmp_path, cut):
  path = tmp_path / 'variables.pkl'
  save(source_agent(), path)
  path.write_bytes(path.read_bytes()[:cut and -cut])
  with pytest.raises(terminal.UserError, match='variables.pkl'):
    ftl.Agent.start(configure(ftl, tmp_path, transfer=True), 3)


def test_bad_pattern(tmp_path):
  save(source_agent(), tmp_path / 'variables.pkl')
  with pytest.raises(terminal.UserError, match=r"--scale '\('"):
    ftl.Agent.start(configure(ftl, tmp_path, transfer=True, scale='('), 3)


@pytest.mark.parametrize('flag', ['reset', 'scale', 'copy'])
def test_rule_that_fits_no_variable(tmp_path, flag):
  """The names are those of the rules, with img1 in two parts."""
  source = source_agent()
  for pattern in ('valeu/hout', '^reward|^valeu/hout'):
    with pytest.raises(
        terminal.UserError, match=f'--{flag} .*valeu.*value/hout'):
      start(tmp_path, source, **{flag: pattern})
  with pytest.raises(terminal.UserError, match='img1/kernel/action'):
    start(tmp_path, source, **{flag: 'dynamics/img1/kernel$'})
  start(tmp_path, source, **{flag: '^reward|^pcont|img1/kernel/action$'})


def test_source_with_bad_numbers(tmp_path):
  source = dreamer.Dreamer(configure(dreamer, '.'), 3)
  for name in ('reward/hout/kernel', 'actor/hout/bias'):
    variable = source.variables[name]
    variable.assign(variable * np.nan + np.inf)
  with pytest.raises(terminal.UserError) as error:
    start(tmp_path, source)
  assert str(tmp_path / 'variables.pkl') in str(error.value)
  # The actor's output is not taken over.
  assert 'not finite in reward/hout/kernel:' in str(error.value)
  start(tmp_path, source, reset='^(actor|reward)/hout')


def test_activation_of_the_source_s_dynamics_stays(tmp_path):
  """An older agent was trained with --dense_act in its RSSM too."""
  config = configure(dreamer, '.', dense_act='tanh')
  source = dreamer.Dreamer(config, 3, rssm_act='tanh')
  _, agent = start(tmp_path, source, dense_act='tanh')
  assert agent.rssm_act == 'tanh'
  agent.save(tmp_path / 'own.pkl')
  assert dreamer.load_agent(tmp_path / 'own.pkl').rssm_act == 'tanh'
  _, agent = start(tmp_path, source_agent(dense_act='tanh'), dense_act='tanh')
  assert agent.rssm_act == 'elu'


# Where the source of a transfer comes from.


@pytest.mark.parametrize('flags, transfer', [
    ('--source x', True), ('--source x --transfer False', False),
    ('--source x --transfer True', True), ('', False)])
def test_a_source_that_is_named_is_transferred_from(flags, transfer):
  config = ftl.define_config().parse(['--task1', HOPPER, *flags.split()])
  assert ftl.tasks(config) == [HOPPER] and config.transfer == transfer

def test_directory_empty(tmp_path):
  logdir = tmp_path / 'run'
  with pytest.raises(terminal.UserError, match='--source') as error:
    ftl.Agent.start(configure(ftl, logdir, transfer=True), 3)
  assert str(logdir) in str(error.value) and not logdir.exists()
  agent = ftl.Agent.start(configure(ftl, logdir, transfer=False), 3)
  assert not agent.report


def test_directory_with_source(tmp_path):
  path = tmp_path / 'variables.pkl'
  save(source_agent(), path)
  content = path.read_bytes()
  config = configure(ftl, tmp_path, transfer=True)
  first = ftl.Agent.start(config, 3)
  first.begin(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['source.pkl']
  assert (tmp_path / 'source.pkl').read_bytes() == content
  # Stopped before its first checkpoint, the run starts again.
  second = ftl.Agent.start(config, 3)
  second.begin(tmp_path)
  assert (tmp_path / 'source.pkl').read_bytes() == content
  assert all(
      same(value, arrays(first)[name])
      for name, value in arrays(second).items())


def test_without_transfer_the_source_survives(tmp_path, capfd):
  save(source_agent(), tmp_path / 'variables.pkl')
  config = configure(ftl, tmp_path, transfer=False)
  agent = ftl.Agent.start(config, 3)
  agent.begin(tmp_path)
  assert 'is not used (--transfer True' in capfd.readouterr().out
  fresh = arrays(dreamer.Dreamer(config, 3))
  assert all(same(v, fresh[name]) for name, v in arrays(agent).items())
  assert [path.name for path in tmp_path.iterdir()] == ['source.pkl']


@pytest.mark.parametrize('transfer', [False, True])
def test_two_sources(tmp_path, transfer):
  for name in ('variables.pkl', 'source.pkl'):
    save(source_agent(), tmp_path / name)
  with pytest.raises(terminal.UserError, match='variables.pkl.*source.pkl'):
    ftl.Agent.start(configure(ftl, tmp_path, transfer=transfer), 3)


@pytest.mark.parametrize('named', ['source', 'source/variables.pkl'])
def test_source_by_flag(tmp_path, named):
  (tmp_path / 'source').mkdir()
  save(source_agent(), tmp_path / 'source' / 'variables.pkl')
  config = configure(
      ftl, tmp_path / 'run', transfer=True, source=str(tmp_path / named))
  agent = ftl.Agent.start(config, 3)
  assert str(tmp_path / 'source' / 'variables.pkl') in agent.report
  assert not (tmp_path / 'run').exists()
  (tmp_path / 'run').mkdir()
  save(source_agent(), tmp_path / 'run' / 'variables.pkl')
  with pytest.raises(terminal.UserError, match='could both be the source'):
    ftl.Agent.start(config, 3)


def test_source_by_flag_is_missing(tmp_path):
  config = configure(
      ftl, tmp_path, transfer=True, source=str(tmp_path / 'none'))
  with pytest.raises(terminal.UserError, match='none'):
    ftl.Agent.start(config, 3)


def test_frozen_variables_stay(tmp_path, eager):
  _, agent = start(tmp_path, source_agent(), freeze='^(encoder|decoder/h3)')
  check_frozen(agent, tmp_path, lambda name: (
      name.startswith(('encoder/', 'decoder/h3/'))))


def test_report_says_what_is_frozen(tmp_path):
  """The kernel of img1 is frozen as a whole, whatever becomes of its parts."""
  _, agent = start(tmp_path, source_agent(), freeze='^dynamics/img1/kernel$')
  row, = (x for x in agent.report.splitlines() if x.startswith('dynamics  '))
  size = agent.variables['dynamics/img1/kernel'].shape.num_elements()
  assert row.endswith(f'  2 ({size})')
  with pytest.raises(terminal.UserError, match='img1/kernel/stoch.*fits'):
    ftl.Agent.start(configure(
        ftl, tmp_path, transfer=True,
        freeze='^(encoder|dynamics/img1/kernel/stoch)'), 3)


def test_sources_are_known_by_what_they_hold(tmp_path):
  """Not by their names: they may have been copied to the log directory."""
  records = {}
  for folder, seed in (('a', 7), ('b', 7), ('c', 8)):
    (tmp_path / folder).mkdir()
    _, agent = start(tmp_path / folder, source_agent(seed=seed))
    records[folder] = agent.records['source_sha256']
  assert records['a'] == records['b'] != records['c']
  again = ftl.Agent.from_checkpoint(agent.config, 3, agent.state())
  assert again.records == agent.records


def check_frozen(agent, tmp_path, frozen):
  """Trains, resumes and trains an agent; only what is not frozen changes."""
  for _ in range(2):
    before = arrays(agent)
    for seed in range(2):
      agent.train(batch(agent.action_dim, seed))
    after = arrays(agent)
    for name, value in after.items():
      assert same(value, before[name]) == frozen(name), name
    agent.save(tmp_path / 'own.pkl')
    agent = dreamer.load_agent(tmp_path / 'own.pkl')
    assert agent.updates and all(
        same(value, after[name]) for name, value in arrays(agent).items())


# Meta-model transfer.

def store(tmp_path, name='encoder.pkl', module='_encode', **values):
  agent = source_agent(**values)
  agent.save_single(getattr(agent, module), tmp_path / name)
  return agent


@pytest.fixture
def stored(tmp_path, monkeypatch):
  """A directory with what the README's commands leave, as current one."""
  monkeypatch.chdir(tmp_path)
  store(tmp_path / 'logdir')
  store(tmp_path / 'logdir', 'decoder.pkl', '_decode')
  store(tmp_path / 'stored_meta', 'cheetah.pkl', '_reward', seed=1)
  store(tmp_path / 'stored_meta', 'AntBulletEnv-v0.pkl', '_reward', seed=2)
  return tmp_path


def meta(sources=('HalfCheetahBulletEnv-v0', 'AntBulletEnv-v0'), **values):
  names = {f'meta{i + 1}': name for i, name in enumerate(sources)}
  config = configure(
      mmtl, 'logdir/run', n_meta=len(sources), **names, **values)
  return mmtl.Agent.start(config, 3)


def test_modules_are_taken_over(stored):
  agent = meta()
  got = arrays(agent)
  for name, value in got.items():
    taken = {}
    if name.startswith(('encoder/', 'decoder/')):
      taken = arrays(source_agent())
    elif name.startswith('reward/source1/'):
      taken = arrays(source_agent(seed=1))
    elif name.startswith('reward/source2/'):
      taken = arrays(source_agent(seed=2))
    if taken:
      assert same(value, taken[name.replace('/source1', '').replace(
          '/source2', '')])
    assert agent.frozen(name) == bool(taken)
  fresh = dreamer.Dreamer(agent.config, 3)
  for name, value in arrays(fresh).items():
    if name.startswith(('dynamics', 'actor', 'value')):
      assert same(value, got[name])


@pytest.mark.parametrize('layers', [0, 1, 3])
def test_meta_reward_is_a_network_on_features_and_predictions(stored, layers):
  agent = meta(num_meta_lay=layers)
  features = np.random.default_rng(0).normal(size=(5, 7, 10)).astype('f4')
  predictions = [
      source_agent(seed=seed)._reward(features).mean().numpy()
      for seed in (1, 2)]
  inputs = np.concatenate([features, np.stack(predictions, -1)], -1)
  ordinary = models.DenseHead('reward', 12, [8] * layers)
  for name, variable in ordinary.variables.items():
    variable.assign(agent.variables[name])
  expected = ordinary(inputs).mean().numpy()
  assert expected.std() > 0
  np.testing.assert_allclose(
      agent._reward(features).mean(), expected, rtol=1e-5, atol=1e-6)
  assert set(agent._reward.variables) == set(ordinary.variables) | {
      f'reward/source{i}/{layer}/{part}' for i in (1, 2)
      for layer in ('h0', 'h1', 'hout') for part in ('kernel', 'bias')}
  inputs = tf.constant(inputs)
  with tf.GradientTape() as tape:
    tape.watch(inputs)
    total = ordinary(inputs).mean()
  slopes = tape.gradient(total, inputs)[..., -2:].numpy()
  assert (slopes != 0).any(axis=(0, 1)).all()


def test_gradient_passes_through_a_source_to_the_features(stored):
  agent = meta()
  # With the features' own rows at zero, only the sources lead to them.
  kernel = agent.variables['reward/h0/kernel']
  kernel.assign(tf.concat([tf.zeros([10, 8]), kernel[10:]], 0))
  features = tf.ones([1, 10])
  with tf.GradientTape() as tape:
    tape.watch(features)
    reward = agent._reward(features).mean()
  assert np.abs(tape.gradient(reward, features)).max() > 0


@pytest.mark.parametrize('number', [1, 2])
def test_source_is_used_in_training_and_imagination(stored, number):
  agent = meta()
  data, seed = dreamer.tensors(batch(3)), tf.constant([0, 0])
  before = agent.losses(data, seed)[1]
  bias = agent.variables[f'reward/source{number}/hout/bias']
  bias.assign(bias + 3)
  after = agent.losses(data, seed)[1]
  for name in ('reward_loss', 'actor_loss'):
    assert float(before[name]) != float(after[name])


def test_permuted_sources_are_permuted_inputs(stored):
  names = ['HalfCheetahBulletEnv-v0', 'AntBulletEnv-v0']
  first, second = meta(names), meta(names[::-1])
  features = np.random.default_rng(0).normal(size=(9, 10)).astype('f4')
  straight = first._reward(features).mean()
  assert not np.allclose(straight, second._reward(features).mean())
  kernel = second.variables['reward/h0/kernel']
  kernel.assign(tf.gather(kernel, [*range(10), 11, 10]))
  np.testing.assert_allclose(
      straight, second._reward(features).mean(), rtol=1e-5)


def test_frozen_modules_stay(stored, eager):
  agent = meta(['stored_meta/cheetah.pkl'])
  # A resume needs none of the files.
  for path in stored.rglob('*.pkl'):
    path.unlink()
  check_frozen(agent, stored, lambda name: name.startswith((
      'encoder/', 'decoder/', 'reward/source1/')))


def test_no_sources(stored):
  agent = meta([])
  assert type(agent._reward) is models.DenseHead
  assert set(agent._reward.variables) == set(
      source_agent()._reward.variables)
  frozen = {name.split('/')[0] for name in filter(
      agent.frozen, agent.variables)}
  assert frozen == {'encoder', 'decoder'}
  # Its reward model is a source then.
  agent.save_single(agent._reward, stored / 'stored_meta' / 'hopper.pkl')
  second = meta(['HopperBulletEnv-v0'])
  assert same(
      arrays(second)['reward/source1/h0/kernel'],
      arrays(agent)['reward/h0/kernel'])


def test_only_an_encoder(stored):
  (stored / 'logdir' / 'decoder.pkl').unlink()
  agent = meta()
  assert 'no decoder was found: it is trained' in agent.report
  assert not agent.frozen('decoder/h1/kernel')
  assert agent.frozen('encoder/h1/kernel')


FORMS = {'encoder-only': 'fresh', 'frozen-autoencoder': 'frozen',
         'decoder-copied': 'copied'}


@pytest.mark.parametrize('name, used', FORMS.items())
def test_forms_run_as_the_page_says(stored, name, used, capsys):
  page = (running.ROOT / 'docs' / 'transfer.md').read_text()
  command, = re.findall(
      rf"^python dreamer-MMTL.py (.*'./logdir/{name}/')$", page, re.M)
  # The modules that lie there are not needed, nor looked at.
  for module in ('encoder', 'decoder'):
    (stored / 'logdir' / f'{module}.pkl').unlink()
  source_agent().save(stored / 'logdir' / 'variables.pkl')
  sizes = [word for key, value in SIZES.items() for word in (
      f'--{key}', str(value))]
  with pytest.raises(SystemExit) as end:
    terminal.run(mmtl.main, [
        *shlex.split(command), *sizes, '--preset', 'debug', '--steps', '0',
        '--log_images', 'False'])
  assert end.value.code == 0
  logdir = stored / 'logdir' / name
  assert logdirs.Logdir(logdir).read_config()['decoder_used'] == used
  saved = dreamer.load_agent(logdir)
  assert saved.records['decoder_used'] == used
  assert saved.frozen('encoder/h1/kernel')
  assert saved.frozen('decoder/h1/kernel') == (used == 'frozen')
  key = 'decoder/h1/kernel'
  assert same(arrays(saved)[key], arrays(source_agent())[key]) == (
      used != 'fresh')
  config = saved.config
  assert same(
      arrays(saved)[key], arrays(dreamer.Dreamer(config, 3))[key]) == (
          used == 'fresh')


def test_directories_of_module_files_are_sources(stored):
  (stored / 'logdir').rename(stored / 'modules')
  store(stored / 'modules', 'reward.pkl', '_reward', seed=1)
  named = meta(
      ['./modules', 'AntBulletEnv-v0'], encoder='modules')
  for name in 'encoder', 'decoder':
    assert f'{name} from modules/{name}.pkl, frozen' in named.report
  assert 'reward/source1 from modules/reward.pkl' in named.report
  # A file that is named is that one alone.
  alone = meta(encoder='modules/encoder.pkl')
  assert 'no decoder was found: it is trained' in alone.report


def test_modules_are_known_by_what_they_hold(stored):
  first, second = meta(), meta(seed=5)
  assert first.records == second.records
  assert set(first.records) == {
      'decoder_used', 'encoder_sha256', 'decoder_sha256', 'meta1_sha256',
      'meta2_sha256'}
  # One for both parts of a checkpoint, which one flag names.
  whole = stored / 'whole.pkl'
  source_agent(seed=9).save(whole)
  (stored / 'logdir' / 'decoder.pkl').unlink()
  third = meta(encoder=str(whole))
  changed = {
      name for name in first.records
      if third.records.get(name) != first.records[name]}
  assert changed == {'encoder_sha256', 'decoder_sha256'}
  assert 'decoder_sha256' not in third.records


def test_decoder_that_is_copied_and_trained(stored, eager):
  agent = meta(freeze_decoder=False)
  decoder = stored / 'logdir' / 'decoder.pkl'
  assert f'decoder from {decoder}, copied, then trained' in agent.report
  assert 'encoder.pkl, frozen' in agent.report
  row, = (x for x in agent.report.splitlines() if x.startswith('decoder  '))
  assert row.split()[1] == '10' and row.split()[-1] == '-'
  for name, value in arrays(source_agent()).items():
    if name.startswith('decoder/'):
      assert same(value, arrays(agent)[name])
  check_frozen(agent, stored, lambda name: (
      name.startswith(('encoder/', 'reward/source'))))


def test_decoder_that_was_frozen_until_now(stored, eager):
  agent = meta()
  agent.train(batch(3))
  state = agent.state()
  assert state['frozen'] == [
      'reward/source1', 'reward/source2', 'encoder', 'decoder']
  agent.config.freeze_decoder = False
  thawed = mmtl.Agent.from_checkpoint(agent.config, 3, state)
  assert agent.records['decoder_used'] == 'frozen'
  # What it started from is still known.
  assert thawed.records == {**agent.records, 'decoder_used': 'copied'}
  thawed.train(batch(3))
  for name, value in arrays(thawed).items():
    assert same(value, state['variables'][name]) == name.startswith(
        ('encoder/', 'reward/source')), name


def test_decoder_that_was_trained_until_now(stored):
  agent = meta(freeze_decoder=False)
  state = agent.state()
  assert not mmtl.Agent.from_checkpoint(agent.config, 3, state).frozen(
      'decoder/h1/kernel')
  agent.config.freeze_decoder = True
  older = dict(state)
  del older['records']  # So do runs from before it was written down.
  for checkpoint in state, older:
    with pytest.raises(terminal.UserError, match='continue with --freeze_dec'):
      mmtl.Agent.from_checkpoint(agent.config, 3, checkpoint)


@pytest.mark.parametrize('before', [True, False])
def test_decoder_from_scratch_is_never_frozen(stored, before):
  agent = meta(decoder='none', freeze_decoder=before)
  state = agent.state()
  agent.config.freeze_decoder = True
  again = mmtl.Agent.from_checkpoint(agent.config, 3, state)
  assert again.records == agent.records
  assert again.records['decoder_used'] == 'fresh'
  assert not again.frozen('decoder/h1/kernel')


def test_source_reward_model_with_bad_numbers(stored):
  source = dreamer.Dreamer(configure(dreamer, '.'), 3)
  source.variables['reward/h0/bias'].assign([np.nan] * 8)
  source.save_single(source._reward, stored / 'stored_meta' / 'cheetah.pkl')
  with pytest.raises(
      terminal.UserError, match='cheetah.pkl .*finite in reward/source1/h0/bi'):
    meta()


def test_agent_comes_back_without_its_script(stored):
  agent = meta()
  agent.save(stored / 'own.pkl')
  loaded = dreamer.load_agent(stored / 'own.pkl')
  assert type(loaded) is dreamer.Dreamer
  assert loaded.script == 'dreamer-MMTL.py'
  assert loaded.config.meta1 == 'HalfCheetahBulletEnv-v0'
  features = np.random.default_rng(0).normal(size=(5, 10)).astype('f4')
  np.testing.assert_array_equal(
      loaded._reward(features).mean(), agent._reward(features).mean())
  assert all(loaded.frozen(x) == agent.frozen(x) for x in agent.variables)


def test_autoencoder_is_looked_for_near_the_run_first(stored):
  store(stored / 'logdir' / 'run', seed=5)
  got = arrays(meta())
  assert same(
      got['encoder/h1/kernel'], arrays(source_agent(seed=5))[
          'encoder/h1/kernel'])
  assert same(
      got['decoder/h1/kernel'], arrays(source_agent())['decoder/h1/kernel'])


@pytest.mark.parametrize('old', [False, True])
def test_autoencoder_from_a_checkpoint(stored, old):
  for path in (stored / 'logdir').glob('*.pkl'):
    path.unlink()
  source = source_agent(seed=5)
  (stored / 'other').mkdir()
  save(source, stored / 'other' / 'variables.pkl', old)
  for encoder in ('other', 'other/variables.pkl'):
    got = arrays(meta(encoder=encoder))
    for name in ('encoder/h4/bias', 'decoder/h5/kernel'):
      assert same(got[name], arrays(source)[name])


def test_no_encoder(stored):
  (stored / 'logdir' / 'encoder.pkl').unlink()
  with pytest.raises(terminal.UserError, match='no encoder.pkl in logdir/run'):
    meta()


def test_encoder_of_other_sizes(stored):
  store(stored / 'logdir', cnn_depth=3)
  with pytest.raises(terminal.UserError) as error:
    meta()
  for words in (
      'encoder.pkl', 'encoder/h1/kernel', '[4, 4, 3, 3]', '[4, 4, 3, 2]'):
    assert words in str(error.value)


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('whole', [False, True])
def test_source_with_other_hidden_layers(stored, old, whole):
  source = source_agent(seed=3, num_units=13)
  if whole:
    save(source, stored / 'other.pkl', old)
  elif old:
    reward = source._reward.variables.values()
    (stored / 'other.pkl').write_bytes(
        pickle.dumps(tuple(value.numpy() for value in reward)))
  else:
    source.save_single(source._reward, stored / 'other.pkl')
  agent = meta(['./other.pkl'])
  features = np.random.default_rng(0).normal(size=(9, 10)).astype('f4')
  np.testing.assert_allclose(
      agent._reward.sources[0](features).mean(),
      source._reward(features).mean(), rtol=1e-6)


def test_source_of_other_features(stored):
  store(stored / 'stored_meta', 'hopper.pkl', '_reward', deter_size=9)
  with pytest.raises(terminal.UserError) as error:
    meta(['HopperBulletEnv-v0'])
  for words in ('hopper.pkl', 'other layer sizes', '--deter_size 9'):
    assert words in str(error.value)


def test_source_that_is_a_meta_model(stored):
  meta().save(stored / 'meta.pkl')
  with pytest.raises(terminal.UserError, match='meta.pkl.*ordinary'):
    meta(['./meta.pkl'])


def test_source_without_a_reward_model(stored):
  with pytest.raises(terminal.UserError, match='encoder.pkl.*reward'):
    meta(['logdir/encoder.pkl'])


@pytest.mark.parametrize('task, words', [
    ('HopperBulletEnv-v0', ['no files', 'cheetah.pkl', 'AntBulletEnv-v0.pkl']),
    ('HalfCheetahBulletEnv-v0', ['2 files', 'cheetah.pkl', 'half.pkl'])])
def test_no_or_several_files_fit(stored, task, words):
  store(stored / 'stored_meta', 'half.pkl', '_reward')
  with pytest.raises(terminal.UserError) as error:
    meta([task])
  for word in [task, *words]:
    assert word in str(error.value)


def test_exact_name_wins(stored):
  store(stored / 'stored_meta', 'half.pkl', '_reward')
  store(stored / 'stored_meta', 'HalfCheetahBulletEnv-v0.pkl', '_reward')
  assert 'HalfCheetahBulletEnv-v0.pkl' in meta(
      ['HalfCheetahBulletEnv-v0']).report


# Flags.

HOPPER, ANT, CHEETAH = (
    f'{name}BulletEnv-v0' for name in ('Hopper', 'Ant', 'HalfCheetah'))


@pytest.mark.parametrize('script, flags, words', [
    (multi, '', '--task1'),
    (multi, f'--task {HOPPER}', '--task1'),
    (multi, f'--task1 {HOPPER} --task3 {ANT}', '--task2 is missing'),
    (multi, f'--task1 {HOPPER} --task2 {HOPPER}', HOPPER),
    (multi, f'--task1 {HOPPER} --task2 {ANT} --task3 {CHEETAH} --envs 2',
     '--envs 2.* 3'),
    (multi, f'--task1 {HOPPER} --task2 {ANT} --transfer True',
     'dreamer-FTL.py'),
    (multi, '--task1 HoperBulletEnv-v0', HOPPER),
    (ftl, f'--task1 {HOPPER} --envs 2', '--envs 2.* 1'),
    (ftl, f'--task1 {HOPPER} --transfer True', '--source'),
    (mmtl, f'--task1 {HOPPER} --n_meta 2 --meta1 a --meta2 b --meta3 c',
     '--n_meta 2 .* 3'),
    (mmtl, f'--task1 {HOPPER} --n_meta 2 --meta1 a', '--n_meta 2 .* 1'),
    (mmtl, f'--task1 {HOPPER} --n_meta 2 --meta1 a --meta3 c',
     '--meta2 is missing'),
    (mmtl, f'--task1 {HOPPER} --transfer True', 'unknown flag --transfer'),
    (multi, f'--task1 {HOPPER} --task2 atari_pong', 'atari_pong.*discrete'),
    (multi, f'--task1 {HOPPER} --action_dist onehot', '--action_dist onehot')])
def test_flags_that_do_not_fit(tmp_path, monkeypatch, script, flags, words):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(terminal.UserError, match=words) as error:
    script.main([*flags.split(), '--logdir', 'run', '--preset', 'debug'])
  assert '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_number_of_environments_follows_from_the_tasks():
  config = multi.define_config().parse(['--task1', 'a', '--task2', 'b'])
  assert multi.tasks(config) == ['a', 'b'] and config.envs == 2


# Several tasks in one run.

class Listener(gym.Env):
  """Draws nothing and keeps the actions that it receives."""

  def __init__(self, space):
    self.action_space = space
    self.observation_space = gym.spaces.Box(-1, 1, (1,))
    self.heard = []
    made.append(self)

  def reset(self, *, seed=None, options=None):
    return np.zeros(1, np.float32), {}

  def step(self, action):
    self.heard.append(action)
    return np.zeros(1, np.float32), 0.0, False, False, {}

  def render(self):
    return np.zeros((64, 64, 3), np.uint8)


made = []


def listeners():
  """Those that heard something, the one with fewest actions first."""
  return sorted(
      (env for env in made if env.heard),
      key=lambda env: env.action_space.shape or env.action_space.n)


def narrow():
  return Listener(gym.spaces.Box(-3, 5, (1,), np.float32))


def wide():
  return Listener(gym.spaces.Box(-1, 1, (3,), np.float32))


def few():
  return Listener(gym.spaces.Discrete(2))


def many():
  return Listener(gym.spaces.Discrete(4))


@contextlib.contextmanager
def run_of(tmp_path, *tasks, script=multi, **values):
  made.clear()
  config = configure(script, tmp_path / 'run', time_limit=20, **values)
  names = [f'{__name__}:{task.__name__}' for task in tasks]
  with contextlib.ExitStack() as stack:
    team = devices.Team(config.batch_size)
    run = loop.Run(config, script.Agent, names, True, team, stack)
    run._begin()
    run._reports.phase('train', run.step, 40)
    yield run


def test_padded_actions_never_reach_an_environment(tmp_path):
  with run_of(tmp_path, narrow, wide) as run:
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 2, 3))
    for action in actions:
      run._collector.decide(lambda obs, reset, state: (action, None))
    first, second = listeners()
    assert run._agent.action_dim == 3 and run.step == 40
  # Its own bounds, and the action repeat of two.
  np.testing.assert_allclose(
      np.array(first.heard)[::2], 1 + 4 * actions[:, 0, :1], rtol=1e-5)
  np.testing.assert_allclose(
      np.array(second.heard)[::2], actions[:, 1], rtol=1e-5)
  assert len(first.heard) == len(second.heard) == 20
  episodes = [
      np.load(path) for path in sorted((tmp_path / 'run').rglob('*.npz'))]
  assert sorted(int(episode['task'][0]) for episode in episodes) == [0, 1]
  for episode in episodes:
    # Replay keeps actions as the agent chose them.
    np.testing.assert_allclose(
        episode['action'][1:], actions[:, int(episode['task'][0])], rtol=1e-6)


def test_an_agent_of_several_tasks_is_trained_on(tmp_path):
  source = source_agent()
  save(source, tmp_path / 'several.pkl')
  values = dict(
      script=ftl, transfer=True, source=str(tmp_path / 'several.pkl'), reset='',
      scale='')
  with run_of(tmp_path, narrow, wide, **values) as run:
    assert all(
        same(value, arrays(source)[name])
        for name, value in arrays(run._agent).items())
    for _ in range(10):
      run._collector.decide(run._random_policy)
  assert {
      int(np.load(path)['task'][0])
      for path in (tmp_path / 'run').rglob('*.npz')} == {0, 1}


def test_discrete_tasks_turn_the_flags_over(tmp_path):
  with run_of(tmp_path, few, many) as run:
    assert run._config.action_dist == 'onehot'
    assert run._config.expl == 'epsilon_greedy'
    for _ in range(20):
      run._collector.decide(run._random_policy)
  first, second = listeners()
  # What is beyond the two actions of the first acts as its first one.
  assert set(first.heard) == {0, 1} and set(second.heard) == {0, 1, 2, 3}


def test_discrete_and_continuous_tasks(tmp_path):
  with pytest.raises(terminal.UserError, match='few.*wide.*apart'):
    with run_of(tmp_path, wide, few):
      pass


def test_own_run_goes_on_with_and_without_its_source(tmp_path):
  logdir = tmp_path / 'run'
  logdir.mkdir()
  save(source_agent(), logdir / 'variables.pkl')
  again = functools.partial(
      run_of, tmp_path, wide, script=ftl, transfer=True)
  with again() as run:
    assert run._agent.report
    run._agent.variables['encoder/h1/bias'].assign([5.0, 5.0])
    run._save()
  for _ in range(2):
    with again() as run:
      assert not run._agent.report
      assert (arrays(run._agent)['encoder/h1/bias'] == 5).all()
    (logdir / 'source.pkl').unlink(missing_ok=True)
  # What another run saved is no progress of this one.
  save(source_agent(), logdir / 'variables.pkl')
  with pytest.raises(terminal.UserError, match='not written by this run'):
    with again():
      pass


@pytest.mark.parametrize('episodes', [False, True])
def test_progress_without_its_configuration_is_no_source(
    tmp_path, capfd, episodes):
  logdir = tmp_path / 'run'
  logdir.mkdir()
  save(source_agent(), logdir / 'variables.pkl')
  with run_of(tmp_path, wide, script=ftl, transfer=True) as run:
    for _ in range(10 * episodes):
      run._collector.decide(run._random_policy)
    run._save()
  own = (logdir / 'variables.pkl').read_bytes()
  (logdir / 'config.json').unlink()
  again = run_of(tmp_path, wide, script=ftl, transfer=True)
  if episodes:
    with again as run:  # The checkpoint knows the run.
      assert not run._agent.report
    assert 'is made again from' in capfd.readouterr().err
    assert (logdir / 'config.json').exists()
  else:
    with pytest.raises(terminal.UserError, match='both be the source'):
      with again:
        pass
  assert (logdir / 'variables.pkl').read_bytes() == own


@pytest.mark.parametrize('name, flags', [
    ('dreamer-FTL.py', '--transfer True --source {}/multi-task.pkl'),
    ('dreamer-MMTL.py', '--encoder {}/multi-task.pkl'),
    ('dreamer-MMTL.py', '--encoder {0}/multi-task.pkl --n_meta 1 --meta1 '
     '{0}/Walker2DBulletEnv-v0.pkl')])
def test_sources_of_the_study_name_their_sizes(name, flags):
  """With the flags that the error names, the same source is taken."""
  script = running.script_module(name)
  folder = running.ROOT / 'results' / 'sources' / '110'
  words = (
      '--task1 HopperBulletEnv-v0 --pcont True ' + flags.format(folder)).split()
  config = script.define_config().parse(words)
  with pytest.raises(terminal.UserError, match='Sizes that fit') as error:
    script.Agent.start(config, 3)
  sizes = re.search('Sizes that fit it: (.*)[.]', str(error.value))[1]
  assert sizes == '--cnn_depth 8 --deter_size 64 --num_units 64'
  config = script.define_config().parse([*words, *sizes.split()])
  script.Agent.start(config, 3)
