"""Options of later agents: off as published, and right when they are on."""

import re

import numpy as np
import pytest

from common import options
from common.backend import tf, tfd
from data import checkpoints, episodes
import dreamer
import running
from runs import prediction
import tools

ON = dict(
    free_nats=1.0, free_nats_of='step', kl_balance=0.9, decode_stride=2,
    imag_stride=2, return_norm=True, actor_entropy=1e-2, actor_min_std=0.1,
    action_init_std=1.0, collect_limit=60)


class Config:
  """The flags that a loss asks for."""

  def __init__(self, **values):
    vars(self).update(values)


def states(rng, mean, grow):
  """States [2, 3, 4] whose means have gradients."""
  return {
      'mean': mean * tf.constant(rng.normal(size=[2, 3, 4]), tf.float32),
      'std': tf.constant(rng.uniform(0.5, 2, [2, 3, 4]) + grow, tf.float32)}


def gaussian(state):
  return tfd.Independent(tfd.Normal(state['mean'], state['std']), 1)


def divergence(balance, nats=0.0, of='batch'):
  """Loss, divergences [2, 3], and gradients for posterior and prior."""
  rng = np.random.default_rng(0)
  post_scale, prior_scale = tf.constant(1.0), tf.constant(0.5)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([post_scale, prior_scale])
    post, prior = states(rng, post_scale, 0.0), states(rng, prior_scale, 0.1)
    loss, div = dreamer.divergence_loss(post, prior, gaussian, Config(
        kl_balance=balance, free_nats=nats, free_nats_of=of))
  return loss.numpy(), div.numpy(), [
      float(x if x is not None else 0)
      for x in tape.gradient(loss, [post_scale, prior_scale])]


def test_balance_shares_the_gradient_and_keeps_the_divergence():
  plain, div, (post, prior) = divergence(0.0)
  assert plain == pytest.approx(div.mean())
  balanced, _, (less, more) = divergence(0.8)
  assert balanced == pytest.approx(plain, rel=1e-5)
  assert less == pytest.approx(0.2 * post, rel=1e-5)
  assert more == pytest.approx(0.8 * prior, rel=1e-5)
  _, _, (none, _) = divergence(1.0)
  assert none == 0


def test_free_nats_of_a_step_and_of_a_batch():
  _, div, _ = divergence(0.0)
  between = (div.mean() + div.max()) / 2
  loss, _, (post, prior) = divergence(0.0, between)
  assert loss == pytest.approx(between) and not post and not prior
  loss, _, (post, _) = divergence(0.0, between, 'step')
  assert loss == pytest.approx(np.maximum(div, between).mean()) and post


def test_decoded_steps_lie_apart_and_begin_anywhere():
  x = tf.range(7)[None] * tf.ones([2, 1], tf.int32)
  firsts = set()
  for index in range(20):
    taken = dreamer.steps_apart(3, tf.constant([0, index]))(x).numpy()
    assert taken.shape == (2, 2) and (taken[:, 1] - taken[:, 0] == 3).all()
    firsts.add(int(taken[0, 0]))
  assert firsts == {0, 1, 2}
  assert dreamer.steps_apart(1, None)(x) is x


def test_percentile_and_running_range():
  returns = tf.constant(np.random.default_rng(0).permutation(101), tf.float32)
  assert tools.percentile(returns, 0.05) == 5
  assert tools.percentile(returns, 0.95) == 95
  range_ = tools.ReturnRange()
  assert range_.spread == 1  # Small returns are not enlarged.
  for _ in range(2000):
    range_.update(tf.constant(5.0), tf.constant(95.0))
  assert range_.spread.numpy() == pytest.approx(90, rel=1e-4)
  range_.update(tf.constant(np.nan), tf.constant(np.inf))
  assert range_.spread.numpy() == pytest.approx(90, rel=1e-4)
  other = tools.ReturnRange()
  other.restore(range_.state())
  assert other.spread == range_.spread


def test_sampled_entropy_has_the_mean_of_the_entropy():
  policy = tools.TanhNormal(tf.fill([1, 2], 0.3), tf.fill([1, 2], 0.7))
  noise = tf.constant(
      np.random.default_rng(0).normal(size=[20_000, 2]), tf.float32)
  many = tools.TanhNormal(
      tf.fill([20_000, 2], 0.3), tf.fill([20_000, 2], 0.7))
  expected = tf.reduce_mean(-many.log_prob(many.sample(noise)))
  assert policy.shape == (1, 2)
  assert float(tf.reduce_mean(many.sampled_entropy(noise))) == pytest.approx(
      float(expected), abs=0.02)


def make(**values):
  config = dreamer.define_config()
  config.preset_name('debug')
  config.update({'precision': '32', **values})
  return dreamer.Dreamer(config, 2)


def parts_of(agent):
  data = running.random_batch(agent.config)
  data = {key: tf.convert_to_tensor(value) for key, value in data.items()}
  losses, parts = agent.compute(data, tf.constant([0, 0]))
  return {name: float(x) for name, x in losses.items()}, {
      key: x.numpy() for key, x in parts.items() if tf.is_tensor(x)}


def test_imagination_starts_at_some_of_the_states():
  every, some = parts_of(make()), parts_of(make(imag_stride=2))
  batch = make().config.batch_size * make().config.batch_length
  assert every[1]['imag_reward'].shape[1] == batch
  assert some[1]['imag_reward'].shape[1] == batch // 2
  ends = parts_of(make(imag_stride=2, pcont=True))
  assert ends[1]['imag_reward'].shape[1] == (
      batch // 2 - make().config.batch_size)


def test_actor_loss_is_that_of_scaled_returns_and_entropy():
  plain, _ = parts_of(make())
  agent = make(return_norm=True)
  agent._range.restore(np.float32([-1, 3]))
  scaled, _ = parts_of(agent)
  assert scaled['actor'] == pytest.approx(plain['actor'] / 4, rel=1e-4)
  assert scaled['value'] == plain['value']
  less, more = (parts_of(make(actor_entropy=x))[0] for x in (1e-3, 1e-2))
  bonus = plain['actor'] - less['actor']
  assert abs(bonus) > 0
  assert plain['actor'] - more['actor'] == pytest.approx(10 * bonus, rel=1e-2)


def test_entropy_is_that_of_the_actor_at_the_imagined_states():
  agent = make(actor_entropy=1e-2)
  seed = tf.constant([3, 4])
  _, parts = agent.compute(
      dreamer.tensors(running.random_batch(agent.config)), seed)
  behaviour = tools.split_seed(seed, 3)[1]
  feat, entropy = dreamer.imagine(
      parts['post'], behaviour, agent._dynamics, agent._actor, agent.config)
  np.testing.assert_allclose(feat, parts['imag_feat'], rtol=1e-4, atol=1e-5)
  noise = tools.noise(
      [*feat.shape[:2], 2], tools.split_seed(behaviour, 2)[1], axis=1)
  expected = agent._actor(feat[:-1]).sampled_entropy(noise[1:])
  np.testing.assert_allclose(entropy[1:], expected, rtol=1e-4, atol=1e-4)
  assert dreamer.imagine(
      parts['post'], behaviour, agent._dynamics, agent._actor,
      make().config)[1] is None


def test_run_with_all_options_goes_on_as_if_it_had_not_been_stopped(tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  assert running.run(whole, threads=1, steps=500, **ON) == 0
  assert running.run(parts, threads=1, steps=350, **ON) == 0
  assert running.run(parts, threads=1, steps=500, **ON) == 0
  one, two = (
      checkpoints.load(logdir / 'variables.pkl') for logdir in (whole, parts))
  # The end of the first part is evaluated; nothing else differs.
  assert one['updates'] == two['updates'] > 0
  assert np.array_equal(one['return_range'], two['return_range'])
  assert one['return_range'].any()
  for name, array in one['variables'].items():
    assert np.array_equal(array, two['variables'][name]), name


def test_short_episodes_to_learn_from_and_whole_ones_to_judge_by(tmp_path):
  assert running.run(tmp_path, steps=300, collect_limit=60, expl_amount=0) == 0
  stored = [
      len(episodes.load(path)['reward'])
      for path in episodes.paths(tmp_path / 'episodes')]
  assert stored and set(stored) == {31}
  tests = [x for x in running.lines(tmp_path) if 'test/return' in x]
  assert tests and {x['test/length'] for x in tests} == {100}


def test_the_first_episodes_to_learn_from_are_short(tmp_path):
  values = dict(
      threads=1, collect_limit=60, collect_short=2, prefill=100, train_every=10)
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  assert running.run(whole, steps=400, **values) == 0
  lengths = lambda logdir: [
      len(episodes.load(path)['reward'])
      for path in episodes.paths(logdir / 'episodes')]
  # Decisions, and the record before them; the last one is not finished.
  assert lengths(whole) == [31, 31, 51, 51]
  for steps in (50, 150, 400):  # Stopped in the first, the third.
    assert running.run(parts, steps=steps, **values) == 0
  assert lengths(parts) == lengths(whole)


def test_metrics_tell_why_an_agent_does_not_learn(tmp_path):
  assert running.run(tmp_path, steps=300) == 0
  row = next(x for x in running.lines(tmp_path) if 'model_loss' in x)
  for name in (
      'div_first', 'div_above_free', 'imag_reward', 'imag_value',
      'replay_reward', 'replay_value', 'action_abs', 'action_std'):
    assert np.isfinite(row[name]), name
  assert 0 <= row['div_above_free'] <= 1 and 0 <= row['action_abs'] <= 1
  assert row['replay_reward'] == pytest.approx(
      min(0, row['replay_reward']))  # Swinging up is punished in every step.


def test_errors_of_the_reward_model_by_level_of_reward():
  agent = make()
  rng = np.random.default_rng(0)
  episode = {
      'image': rng.integers(0, 256, (9, 64, 64, 3), dtype=np.uint8),
      'action': rng.uniform(-1, 1, (9, 2)).astype(np.float32),
      'reward': np.float32([0, 0, 0, 1, 1, 1, 0.5, 0.5, 0.5])}
  for name, variable in agent._reward.variables.items():
    if '/hout/' in name:  # It predicts 0.25 everywhere.
      variable.assign(tf.fill(variable.shape, 0.25 * ('bias' in name)))
  errors = prediction.RewardErrors(agent)
  assert errors([episode]) == pytest.approx({
      'reward_error_low': 0.25, 'reward_error_middle': 0.25,
      'reward_error_high': 0.75})
  short = {key: value[:3] for key, value in episode.items()}
  assert errors([short]) == pytest.approx({'reward_error_low': 0.25})


def test_errors_of_a_long_episode_are_found_part_by_part(monkeypatch):
  """Its memory is that of a part, and the state goes on from part to part."""
  agent = make()
  rng = np.random.default_rng(0)
  episode = {
      'image': rng.integers(0, 256, (23, 64, 64, 3), dtype=np.uint8),
      'action': rng.uniform(-1, 1, (23, 2)).astype(np.float32),
      'reward': rng.normal(size=23).astype(np.float32)}
  whole = prediction.RewardErrors(agent)([episode])
  monkeypatch.setattr(prediction, 'PART', 10)
  lengths = []
  encode = agent._encode
  monkeypatch.setattr(agent, '_encode', lambda data: (
      lengths.append(data['image'].shape[1]), encode(data))[1])
  errors = prediction.RewardErrors(agent)
  tf.config.run_functions_eagerly(True)
  try:
    assert errors([episode]) == pytest.approx(whole, rel=1e-4)
  finally:
    tf.config.run_functions_eagerly(False)
  assert lengths == [10, 10, 3]


@pytest.mark.parametrize('source, target', [({}, ON), (ON, {})])
def test_transfer_between_agents_with_options_and_without(
    source, target, tmp_path):
  script = running.script_module('dreamer-FTL.py')
  made = make(**source)
  made.save(tmp_path / 'variables.pkl')
  config = script.define_config()
  config.preset_name('debug')
  config.update({
      **target, 'precision': '32', 'transfer': True, 'scale': '',
      'source': str(tmp_path / 'variables.pkl'), 'task1': running.SWINGUP,
      'logdir': tmp_path / 'target'})
  agent = script.Agent.start(config, 2)
  for name in ('encoder/h1/kernel', 'reward/hout/kernel', 'value/h0/kernel'):
    assert np.array_equal(agent.variables[name], made.variables[name])
  agent.train(running.random_batch(agent.config))


def test_options_are_off_by_default_and_name_their_source():
  config = options.dreamer()
  help_text = re.sub(r'\s+', ' ', config.help(''))
  off = dict(
      free_nats_of='batch', kl_balance=0.0, decode_stride=1, imag_stride=1,
      return_norm=False, actor_entropy=0.0, actor_min_std=1e-4,
      collect_limit=0, collect_short=0)
  assert {name: getattr(config, name) for name in off} == off
  assert help_text.count('Dreamer') >= 4 and '2301.04104' in help_text
  assert all(config.method(name) and config.fixed(name) for name in off)
