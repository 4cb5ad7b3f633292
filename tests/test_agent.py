"""The agent: same function as the published one, and how it acts and learns."""

import copy
import json
import pathlib
import pickle

import numpy as np
import pytest
import scipy.stats

from common import patterns, precision, terminal
from common.backend import tf, tfd
from data import checkpoints
import dreamer
import models
import running
from runs import prediction
import tensorflow_probability as tfp
import tools

ORACLE = pathlib.Path(__file__).parent / 'data' / 'oracle'
ACTIONS = 3


@pytest.fixture(autouse=True)
def eager():
  """Updates without building graphs, which would take most of the time."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


@pytest.fixture
def compiled(eager):
  """Updates as users run them."""
  tf.config.run_functions_eagerly(False)


def make_config(**changes):
  config = dreamer.define_config()
  config.preset_name('debug')
  config.update(dict(
      batch_size=2, batch_length=6, horizon=4, free_nats=0.0,
      precision='32') | changes)
  return config


def make_agent(**changes):
  return dreamer.Dreamer(make_config(**changes), ACTIONS)


def make_batch(config, seed=0):
  rng = np.random.default_rng(seed)
  shape = config.batch_size, config.batch_length
  batch = dict(
      image=rng.integers(0, 256, (*shape, 64, 64, 3), dtype=np.uint8),
      action=rng.uniform(-1, 1, (*shape, ACTIONS)).astype(np.float32),
      reward=rng.normal(size=shape).astype(np.float32),
      discount=np.ones(shape, np.float32), first=np.zeros(shape, bool))
  batch['discount'][0, 2] = 0
  batch['first'][0, 3] = True
  if config.action_dist == 'onehot':
    batch['action'] = np.eye(ACTIONS, dtype=np.float32)[
        batch['action'].argmax(-1)]
  return batch


def train(agent, count=1):
  for _ in range(count):
    metrics = agent.train(make_batch(agent.config, agent.updates))
  return {name: value.numpy() for name, value in metrics.items()}


def arrays(agent):
  return {
      name: variable.numpy() for name, variable in agent.variables.items()}


def assert_same(left, right):
  assert list(left) == list(right)
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], name)


def changed(before, after):
  return {
      name for name in before if not np.array_equal(before[name], after[name])}


def normal(rng, *shape):
  return tf.constant(rng.normal(size=shape), tf.float32)


### The published agent's numbers ###


class Oracle:

  def __init__(self, name):
    self.sizes = json.loads((ORACLE / name / 'config.json').read_text())
    self.agent = dreamer.load_agent(ORACLE / name / 'variables.pkl')
    with np.load(ORACLE / name / 'expected.npz') as data:
      self.given = dict(data)
    self.computed = self._compute()

  def _compute(self):
    agent, given = self.agent, self.given
    image = tf.constant(given['image'])
    embed = agent._encode({'image': dreamer.scale_image(image)})
    state = {name: tf.constant(given[f'prev_{name}'])
             for name in ('stoch', 'deter')}
    post, prior = agent._dynamics.obs_step(
        state, tf.constant(given['prev_action']), embed[:, 0])
    feat = tf.constant(given['feat'])
    actor = agent._actor(feat)
    decoder = agent._decode(feat)
    computed = {
        'embed': embed,
        **{f'prior_{k}': prior[k] for k in ('mean', 'std', 'deter')},
        **{f'post_{k}': post[k] for k in ('mean', 'std', 'deter')},
        'decoder_mean': decoder.mean(),
        'decoder_log_prob': decoder.log_prob(dreamer.scale_image(image)),
        'reward_mean': agent._reward(feat).mean(),
        'value_mean': agent._value(feat).mean(),
        'actor_mean': actor.mean_before,
        'actor_std': actor.std_before,
        'actor_log_prob': actor.log_prob(tf.constant(given['action'])),
        'lambda_return': tools.lambda_return(
            *(tf.constant(given[f'lr_{name}']) for name in (
                'reward', 'value', 'pcont', 'bootstrap')), 0.95, axis=0),
        'kl': tfd.kl_divergence(*(
            agent._dynamics.get_dist({
                'mean': tf.constant(given[f'kl_{name}_mean']),
                'std': tf.constant(given[f'kl_{name}_std'])})
            for name in ('post', 'prior')))}
    if self.sizes['pcont']:
      computed['pcont_mean'] = agent._pcont(feat).mean()
    return {name: value.numpy() for name, value in computed.items()}


@pytest.fixture(scope='module')
def oracles():
  return {name: Oracle(name) for name in 'ab'}


INPUTS = {
    'image', 'prev_stoch', 'prev_deter', 'prev_action', 'feat', 'action',
    'lr_reward', 'lr_value', 'lr_pcont', 'lr_bootstrap', 'kl_post_mean',
    'kl_post_std', 'kl_prior_mean', 'kl_prior_std'}


@pytest.mark.parametrize('name', 'ab')
def test_oracle(oracles, name):
  oracle = oracles[name]
  assert set(oracle.computed) == set(oracle.given) - INPUTS
  for key, value in oracle.computed.items():
    expected = oracle.given[key]
    assert value.shape == expected.shape, key
    np.testing.assert_allclose(
        value, expected, rtol=1e-3 if 'log_prob' in key else 1e-4, atol=1e-5,
        err_msg=key)


@pytest.mark.parametrize('name', 'ab')
def test_oracle_sizes(oracles, name):
  agent, sizes = oracles[name].agent, dict(oracles[name].sizes)
  assert agent.action_dim == sizes.pop('A')
  for key, value in sizes.items():
    assert getattr(agent.config, key) == value, key


@pytest.mark.parametrize('name', 'ab')
def test_oracle_filters_and_answers(oracles, name):
  """What is read off a loaded agent without knowing its inside."""
  agent, given = oracles[name].agent, oracles[name].given
  feat = tf.constant(given['feat'])
  for module in (agent._reward, agent._value):
    np.testing.assert_array_equal(
        module(feat).mode(), module(feat).mean())
    assert module(feat).log_prob(tf.zeros([2, 3])).shape == [2, 3]
  np.testing.assert_array_equal(
      agent._decode(feat).mode(), agent._decode(feat).mean())
  dist = agent._actor(feat)
  assert dist.sample().shape == given['action'].shape
  assert dist.entropy().shape == [2, 3]
  action, state = agent.policy({'image': given['image'][:, 0]}, None, False)
  assert action.shape == given['action'][:, 0].shape
  assert np.abs(action).max() <= 1
  if name == 'b':
    assert set(np.unique(agent._pcont(feat).mode())) <= {0, 1}
    assert agent._pcont(feat).log_prob(tf.ones([2, 3])).shape == [2, 3]


### Recurrent state-space model ###


class Sequences:
  """A fresh model, and inputs of 4 sequences of 7."""

  def __init__(self):
    rng = np.random.default_rng(0)
    self.model = models.RSSM(
        embed=9, actions=ACTIONS, stoch=4, deter=6)
    self.embed = normal(rng, 4, 7, 9)
    self.action = normal(rng, 4, 7, ACTIONS)
    self.noise = normal(rng, 2, 4, 7, 4)

  def observe(self, part, **kwargs):
    return self.model.observe(
        self.embed[:, part], self.action[:, part],
        noise=self.noise[:, :, part], **kwargs)


@pytest.fixture
def sequences():
  return Sequences()


def assert_close(left, right):
  assert set(left) == set(right) == {'mean', 'std', 'stoch', 'deter'}
  for key in left:
    np.testing.assert_allclose(left[key], right[key], 1e-5, 1e-5, err_msg=key)


def last(states):
  return {key: value[:, -1] for key, value in states.items()}


def stack(states):
  return {key: tf.stack([s[key] for s in states], 1) for key in states[0]}


def test_observe_repeats_obs_step(sequences):
  s = sequences
  state, posts, priors = s.model.initial(4), [], []
  for t in range(7):
    post, _ = s.model.obs_step(
        state, s.action[:, t], s.embed[:, t], s.noise[0, :, t])
    priors.append(s.model.img_step(state, s.action[:, t], s.noise[1, :, t]))
    posts.append(post)
    state = post
  post, prior = s.observe(slice(None))
  assert post['deter'].shape == [4, 7, 6]
  assert_close(post, stack(posts))
  assert_close(prior, stack(priors))


def test_imagine_repeats_img_step(sequences):
  s = sequences
  start = last(s.observe(slice(None))[0])
  state, priors = start, []
  for t in range(7):
    state = s.model.img_step(state, s.action[:, t], s.noise[1, :, t])
    priors.append(state)
  assert_close(s.model.imagine(s.action, start, s.noise[1]), stack(priors))
  np.testing.assert_array_equal(
      s.model.imagine(s.action, noise=s.noise[1])['deter'],
      s.model.imagine(s.action, s.model.initial(4), s.noise[1])['deter'])


def test_observe_continues_a_state(sequences):
  s = sequences
  begin, _ = s.observe(slice(0, 3))
  end, _ = s.observe(slice(3, 7), state=last(begin))
  whole, _ = s.observe(slice(None))
  assert_close(
      whole, {k: tf.concat([begin[k], end[k]], 1) for k in begin})


def test_first_resets_the_state(sequences):
  s = sequences
  first = np.zeros([4, 7], bool)
  first[1:3, 3] = True
  whole, prior = s.observe(slice(None), first=tf.constant(first))
  plain, _ = s.observe(slice(None))
  # As if nothing had been before: no state, and no action that led here.
  s.action = tf.concat(
      [s.action[:, :3], tf.zeros([4, 1, ACTIONS]), s.action[:, 4:]], 1)
  anew, anew_prior = s.observe(slice(3, 7))
  for states, expected in ((whole, anew), (prior, anew_prior)):
    assert_close(
        {k: x[1:3, 3:] for k, x in states.items()},
        {k: x[1:3] for k, x in expected.items()})
  np.testing.assert_array_equal(whole['stoch'][::3], plain['stoch'][::3])
  np.testing.assert_array_equal(whole['stoch'][:, :3], plain['stoch'][:, :3])
  assert np.abs(whole['stoch'] - plain['stoch'])[1:3, 3:].min(1).max() > 1e-3


def test_states_without_noise_are_drawn(sequences):
  s = sequences
  one, two = (
      s.model.img_step(s.model.initial(4), s.action[:, 0]) for _ in range(2))
  np.testing.assert_array_equal(one['mean'], two['mean'])
  assert np.all(one['stoch'] != two['stoch'])
  assert s.model.get_feat(one).shape == [4, 10]


### Distributions ###


@pytest.fixture
def tanh_normal():
  rng = np.random.default_rng(0)
  return tools.TanhNormal(
      normal(rng, 5, 2), tf.nn.softplus(normal(rng, 5, 2)) + 0.2)


def test_tanh_normal_density(tanh_normal):
  expected = tfd.Independent(tfd.TransformedDistribution(
      tfd.Normal(tanh_normal.mean_before, tanh_normal.std_before),
      tfp.bijectors.Tanh()), 1)
  action = tf.tanh(normal(np.random.default_rng(1), 5, 2))
  np.testing.assert_allclose(
      tanh_normal.log_prob(action), expected.log_prob(action), rtol=1e-4)


def test_tanh_normal_entropy(tanh_normal):
  """Against the integral of -p log p over the Normal before tanh."""
  mean, std = (
      x.numpy().astype(float) for x in (
          tanh_normal.mean_before, tanh_normal.std_before))
  grid = np.linspace(-12, 12, 20001)[:, None, None]
  draw = mean + std * grid
  density = np.exp(-0.5 * grid ** 2) / np.sqrt(2 * np.pi)
  slope = np.log(1 - np.tanh(draw) ** 2 + 1e-300)
  inside = np.abs(draw) < 15
  expected = 0.5 * np.log(2 * np.pi * np.e) + np.log(std) + np.trapezoid(
      density * np.where(inside, slope, 0), grid, axis=0)
  rng = np.random.default_rng(2)
  estimates = np.stack([
      tanh_normal.entropy(normal(rng, 100, 5, 2)) for _ in range(200)])
  np.testing.assert_allclose(estimates.mean(0), expected.sum(-1), atol=0.03)


def test_tanh_normal_samples(tanh_normal):
  rng = np.random.default_rng(1)
  noise = normal(rng, 5, 2)
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([tanh_normal.mean_before, tanh_normal.std_before])
    action = tanh_normal.sample(noise)
  np.testing.assert_allclose(action, np.tanh(
      tanh_normal.mean_before + tanh_normal.std_before * noise), rtol=1e-5)
  slope = 1 - action.numpy() ** 2
  np.testing.assert_allclose(
      tape.gradient(action, tanh_normal.mean_before), slope, atol=1e-6)
  np.testing.assert_allclose(
      tape.gradient(action, tanh_normal.std_before), slope * noise, atol=1e-6)
  draws = np.stack([tanh_normal.sample() for _ in range(2000)])
  np.testing.assert_allclose(
      np.arctanh(draws).mean(0), tanh_normal.mean_before, atol=0.15)


def test_tanh_normal_mode_is_the_likeliest_draw(tanh_normal):
  noise = normal(np.random.default_rng(1), 100, 5, 2)
  draws = np.stack([tanh_normal.sample(x) for x in noise])
  scores = np.stack([tanh_normal.log_prob(tf.constant(x)) for x in draws])
  expected = draws[scores.argmax(0), np.arange(5)]
  np.testing.assert_allclose(tanh_normal.mode(noise), expected, atol=1e-6)
  assert tools.TanhNormal.samples == 100
  # Its own draws find nearly the same.
  likely = tanh_normal.log_prob(tanh_normal.mode())
  assert np.all(likely > np.median(scores, 0))


def test_tanh_normal_is_finite_at_the_bounds(tanh_normal):
  for bound in (-1.0, 1.0):
    action = bound * tf.ones([5, 2])
    with tf.GradientTape() as tape:
      tape.watch(tanh_normal.mean_before)
      log_prob = tanh_normal.log_prob(action)
    assert np.isfinite(log_prob).all()
    assert np.isfinite(tape.gradient(log_prob, tanh_normal.mean_before)).all()


@pytest.fixture
def logits():
  return normal(np.random.default_rng(0), 5, 4)


def test_one_hot_density(logits):
  dist, expected = tools.OneHot(logits), tfd.OneHotCategorical(logits)
  action = tf.eye(4)[:, None]
  np.testing.assert_allclose(
      dist.log_prob(action), expected.log_prob(action), rtol=1e-4)
  np.testing.assert_allclose(dist.entropy(), expected.entropy(), rtol=1e-4)
  np.testing.assert_allclose(
      dist.mode(), np.eye(4)[np.argmax(logits, -1)], atol=1e-6)


def test_one_hot_samples(logits):
  draws = tools.OneHot(tf.tile(logits[None], [20000, 1, 1])).sample().numpy()
  np.testing.assert_allclose(draws.max(-1), 1, atol=1e-6)
  np.testing.assert_allclose(draws.sum(-1), 1, atol=1e-6)
  np.testing.assert_allclose(
      draws.mean(0), tf.nn.softmax(logits), atol=0.015)


@pytest.mark.parametrize('method', ['sample', 'mode'])
def test_one_hot_gradients_pass_straight_through(logits, method):
  noise, weights = (
      normal(np.random.default_rng(seed), 5, 4) for seed in (1, 2))
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(logits)
    action = getattr(tools.OneHot(logits), method)(noise)
    loss = tf.reduce_sum(weights * action)
    expected = tf.reduce_sum(weights * tf.nn.softmax(logits))
  assert np.abs(tape.gradient(loss, logits)).min() > 0
  np.testing.assert_allclose(
      tape.gradient(loss, logits), tape.gradient(expected, logits), atol=1e-6)


def test_unit_normal():
  rng = np.random.default_rng(0)
  mean, value = normal(rng, 2, 3, 4, 5), normal(rng, 2, 3, 4, 5)
  for events in (0, 3):
    expected = tfd.Independent(tfd.Normal(mean, 1), events)
    dist = tools.UnitNormal(mean, events)
    np.testing.assert_allclose(
        dist.log_prob(value), expected.log_prob(value), rtol=1e-5)
    assert dist.sample().shape == mean.shape


### Returns ###


@pytest.mark.parametrize('shape, axis', [
    ([6], 0), ([5, 3], 0), ([5, 3], 1), ([2, 4, 7], 1), ([3, 2, 4], 2),
    ([3, 3, 3], 2), ([3, 2, 4], -1), ([1, 3], 0)])
@pytest.mark.parametrize('lambda_', [0, 0.8, 1])
def test_lambda_return(shape, axis, lambda_):
  rng = np.random.default_rng(0)
  reward, value = rng.normal(size=[2, *shape]).astype(np.float32)
  pcont = rng.uniform(size=shape).astype(np.float32)
  bootstrap = rng.normal(size=np.delete(shape, axis)).astype(np.float32)
  returns = tools.lambda_return(
      *map(tf.constant, (reward, value, pcont, bootstrap)), lambda_, axis)
  assert returns.shape == shape

  def follow(reward, value, pcont, bootstrap):
    if not len(reward):
      return bootstrap
    following = value[1] if len(value) > 1 else bootstrap
    return reward[0] + pcont[0] * (
        (1 - lambda_) * following +
        lambda_ * follow(reward[1:], value[1:], pcont[1:], bootstrap))

  reward, value, pcont, returns = (
      np.moveaxis(x, axis, 0) for x in (reward, value, pcont, returns.numpy()))
  for step in range(len(reward)):
    np.testing.assert_allclose(
        returns[step],
        follow(reward[step:], value[step:], pcont[step:], bootstrap), 1e-4,
        1e-5)


def test_lambda_return_takes_a_constant_discount():
  rng = np.random.default_rng(0)
  reward, value = normal(rng, 5, 3), normal(rng, 5, 3)
  np.testing.assert_array_equal(
      tools.lambda_return(reward, value, 0.9, value[-1], 0.95, 0),
      tools.lambda_return(
          reward, value, 0.9 * tf.ones([5, 3]), value[-1], 0.95, 0))


### Fresh weights ###


def test_fresh_weights_depend_on_seed_and_name():
  tf.random.set_seed(1)
  one = arrays(make_agent())
  tf.random.set_seed(2)
  two = arrays(make_agent(pcont=True))
  other = arrays(make_agent(seed=1))
  assert set(two) - set(one) == {
      f'pcont/{layer}/{part}' for layer in ('h0', 'h1', 'h2', 'hout')
      for part in ('kernel', 'bias')}
  assert_same(one, {name: two[name] for name in one})
  assert changed(one, other) == {name for name in one if 'bias' not in name}
  assert not np.array_equal(one['actor/h1/kernel'], one['actor/h2/kernel'])
  assert not np.array_equal(one['value/h1/kernel'], one['reward/h1/kernel'])


def test_fresh_weights_are_the_defaults_of_keras():
  agent = dreamer.Dreamer(dreamer.define_config(), ACTIONS)
  for name, value in arrays(agent).items():
    if name.endswith('/bias'):
      assert not value.any(), name
    elif name.endswith('/recurrent_kernel'):
      np.testing.assert_allclose(
          value @ value.T, np.eye(len(value)), atol=1e-5)
    else:
      # Uniform up to this bound (Glorot and Bengio 2010), kernels of
      # transposed convolutions included.
      bound = np.sqrt(6 / (np.prod(value.shape[:-2]) * sum(value.shape[-2:])))
      most = np.abs(value).max()
      assert most <= bound * (1 + 1e-6), name
      assert most > bound * (1 - 20 / value.size), name
      error = 4 / np.sqrt(value.size)
      assert abs(value.mean()) < bound * error, name
      assert abs(value.std() * np.sqrt(3) / bound - 1) < error, name


def test_published_sizes():
  agent = dreamer.Dreamer(dreamer.define_config(), ACTIONS)
  shapes = {name: value.shape for name, value in arrays(agent).items()}
  assert shapes['encoder/h4/kernel'] == (4, 4, 128, 256)
  assert shapes['decoder/h1/kernel'] == (230, 1024)
  assert shapes['decoder/h2/kernel'] == (5, 5, 128, 1024)
  assert shapes['decoder/h5/kernel'] == (6, 6, 3, 32)
  assert shapes['dynamics/img1/kernel'] == (30 + ACTIONS, 200)
  assert shapes['dynamics/gru/kernel'] == (200, 600)
  assert shapes['dynamics/gru/bias'] == (2, 600)
  assert shapes['dynamics/obs1/kernel'] == (1224, 200)
  assert shapes['dynamics/obs2/kernel'] == (200, 60)
  assert shapes['reward/h1/kernel'] == (400, 400)
  assert shapes['reward/hout/kernel'] == (400, 1)
  assert shapes['value/h2/kernel'] == (400, 400)
  assert shapes['actor/h3/kernel'] == (400, 400)
  assert shapes['actor/hout/kernel'] == (400, 2 * ACTIONS)
  assert len(shapes) == 55


### Files ###


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """An agent after two updates and some actions, and its checkpoint."""
  tf.config.run_functions_eagerly(True)
  agent = make_agent(pcont=True, weight_decay=1e-3)
  train(agent, 2)
  agent.policy({'image': np.zeros([1, 64, 64, 3], np.uint8)}, None, True)
  agent.step = 1234
  file = tmp_path_factory.mktemp('agent') / 'variables.pkl'
  agent.save(file)
  return agent, file


def test_load_agent_continues(trained):
  agent, file = trained
  expected = arrays(agent)
  for path in (file, file.parent):
    loaded = dreamer.load_agent(path)
    assert loaded.config.plain() == agent.config.plain()
    assert_same(arrays(loaded), expected)
    assert (loaded.step, loaded.updates) == (1234, 2)
    assert loaded.random.calls == agent.random.calls == {True: 1, False: 0}
  again = dreamer.load_agent(file)
  metrics, again_metrics = train(loaded), train(again)
  assert metrics == again_metrics
  assert_same(arrays(loaded), arrays(again))
  for name, optimizer in loaded.optimizers.items():
    assert optimizer.state()['iterations'] == 3
  assert changed(expected, arrays(loaded)) == set(expected)


def test_a_loaded_agent_learns_as_the_saved_one(trained):
  _, file = trained
  agent = make_agent(pcont=True, weight_decay=1e-3)
  train(agent, 3)
  loaded = dreamer.load_agent(file)
  train(loaded)
  assert_same(arrays(loaded), arrays(agent))
  for name, optimizer in agent.optimizers.items():
    for slot in ('m', 'v'):
      assert_same(
          optimizer.state()[slot], loaded.optimizers[name].state()[slot])


def test_load_into_an_agent(trained):
  agent, file = trained
  other = make_agent(pcont=True, weight_decay=1e-3, seed=5)
  other.load(file)
  assert_same(arrays(other), arrays(agent))


def test_load_names_what_does_not_fit(trained):
  _, file = trained
  larger = make_agent(pcont=True, num_units=17)
  before = arrays(larger)
  with pytest.raises(terminal.UserError, match='other layer sizes: actor/h0'):
    larger.load(file)
  assert_same(arrays(larger), before)
  with pytest.raises(terminal.UserError, match='lacks .* pcont/h0/kernel'):
    make_agent(pcont=True).load(
        ORACLE / 'a' / 'variables.pkl')


def test_load_agent_without_a_checkpoint(tmp_path):
  with pytest.raises(terminal.UserError, match='no checkpoint'):
    dreamer.load_agent(tmp_path)
  with pytest.raises(terminal.UserError, match='does not exist'):
    dreamer.load_agent(tmp_path / 'variables.pkl')


def test_loading_changes_no_file(trained, tmp_path, capfd):
  """The file may be of a run that is going on."""
  agent, _ = trained
  for _ in range(2):
    agent.save(tmp_path / 'variables.pkl', keep=True)
  damaged = (tmp_path / 'variables.pkl').read_bytes()[:-100]
  (tmp_path / 'variables.pkl').write_bytes(damaged)
  before = running.content(tmp_path)
  loaded = dreamer.load_agent(tmp_path)
  assert_same(arrays(loaded), arrays(agent))
  assert running.content(tmp_path) == before
  assert 'variables.prev.pkl' in capfd.readouterr().err


def test_an_agent_comes_back_without_the_script_that_trained_it(
    trained, tmp_path):
  agent, _ = trained
  agent.save(tmp_path / 'variables.pkl', script='of_somebody_else.py')
  loaded = dreamer.load_agent(tmp_path)
  assert loaded.script == 'of_somebody_else.py'
  assert_same(arrays(loaded), arrays(agent))


def test_a_part_that_was_frozen_is_trained_afterwards(tmp_path):
  agent = make_agent(freeze='^actor')
  train(agent)
  agent.save(tmp_path / 'variables.pkl')
  saved = checkpoints.load(tmp_path / 'variables.pkl')
  assert set(saved['optimizers']) == {'model', 'value'}
  thawed = dreamer.Dreamer.from_checkpoint(
      make_config(), ACTIONS, saved)
  assert thawed.optimizers['model'].state()['iterations'] == 1
  before = arrays(thawed)
  train(thawed)
  assert changed(before, arrays(thawed)) == set(before)


### Activations and precision ###


def test_rssm_has_elu_whatever_dense_act():
  for act in ('relu', 'leaky_relu', 'tanh'):
    agent = make_agent(dense_act=act)
    assert {
        layer.activation.__name__ for name, layer
        in agent._dynamics._layers.items() if name != 'gru'} == {
            'elu', 'linear'}
    kernel = agent.variables['reward/h0/kernel'].numpy()
    x = -np.ones([1, len(kernel)], np.float32)
    hidden = agent._reward._layers['h0'](x).numpy()
    expected = {
        'relu': lambda x: np.maximum(x, 0), 'tanh': np.tanh,
        'leaky_relu': lambda x: np.where(x > 0, x, 0.2 * x)}[act](x @ kernel)
    np.testing.assert_allclose(hidden, expected, atol=1e-6)


def test_leaky_convolutions():
  agent = make_agent(cnn_act='leaky_relu')
  x = np.random.default_rng(0).normal(size=(1, 6, 6, 3)).astype(np.float32)
  layer = agent._encode._layers['h1']
  linear = tf.nn.conv2d(x, layer.kernel, 2, 'VALID').numpy()
  np.testing.assert_allclose(
      layer(x), np.where(linear > 0, linear, 0.2 * linear), atol=1e-5)
  assert agent._decode._layers['h5'].activation.__name__ == 'linear'


def test_older_agents_keep_the_activation_of_their_rssm(tmp_path):
  """Before rssm_act was saved, the RSSM had the activation of --dense_act."""
  agent = dreamer.Dreamer(
      make_config(dense_act='tanh'), ACTIONS, rssm_act='tanh')
  train(agent)
  state = agent.state()
  new, old = tmp_path / 'new.pkl', tmp_path / 'old.pkl'
  agent.save(new)
  checkpoints.save(old, {
      'format': checkpoints.CHECKPOINT,
      **{key: state[key] for key in state if key not in (
          'rssm_act', 'precision', 'frozen')}})
  metrics = train(agent)
  for path in (new, old):
    loaded = dreamer.load_agent(path)
    assert loaded.rssm_act == 'tanh'
    assert train(loaded) == metrics
    with pytest.raises(terminal.UserError, match='tanh.*elu.*load_agent'):
      make_agent(dense_act='tanh').load(path)
  # The public agent's RSSM has ELU, whatever its other layers have.
  positions = tmp_path / 'positions.pkl'
  positions.write_bytes(pickle.dumps(tuple(arrays(agent).values())))
  assert dreamer.load_agent(positions).rssm_act == 'elu'


def test_auto_precision_is_saved_and_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(precision, 'processor', lambda: {'avx512_bf16'})
  path = tmp_path / 'variables.pkl'
  agent = make_agent(precision='auto')
  assert agent.precision == 'bfloat16'
  train(agent)
  agent.save(path)
  metrics = train(agent)
  # It goes on in bfloat16 where that is slow, unless told otherwise.
  monkeypatch.setattr(precision, 'processor', set)
  loaded = dreamer.load_agent(path)
  assert loaded.precision == 'bfloat16' and train(loaded) == metrics
  saved = checkpoints.load(path)
  for flag, kept in (('auto', 'bfloat16'), ('32', '32'), ('16', '16')):
    other = dreamer.Dreamer.from_checkpoint(
        make_config(precision=flag), ACTIONS, saved)
    assert other.precision == other.state()['precision'] == kept
  # Runs from before precisions were saved had float32 on every processor.
  monkeypatch.setattr(precision, 'processor', lambda: {'avx512_bf16'})
  del saved['precision']
  assert dreamer.Dreamer.from_checkpoint(
      make_config(precision='auto'), ACTIONS, saved).precision == '32'


def test_loss_scale_is_fresh_where_the_precision_changed():
  def scales(precision, state):
    agent = dreamer.Dreamer.from_checkpoint(
        make_config(precision=precision), ACTIONS, state)
    return [x.state()['scale'] for x in agent.optimizers.values()]

  agent = make_agent(precision='32')
  train(agent)
  plain = agent.state()
  assert scales('16', plain) == [2.0 ** 15] * 3
  low, high = (copy.deepcopy(plain) for _ in range(2))
  for optimizer in low['optimizers'].values():
    optimizer.update(scaled=True, scale=1.0, good=0)
  for optimizer in high['optimizers'].values():
    optimizer.update(scaled=True, scale=2.0 ** 9, good=7)
  assert scales('16', low) == [1.0] * 3
  assert scales('16', high) == [2.0 ** 9] * 3
  assert scales('32', high) == [1.0] * 3
  # Older versions did not save whether there was a scale.
  for state in plain, high:
    for optimizer in state['optimizers'].values():
      del optimizer['scaled']
  assert scales('16', plain) == [2.0 ** 15] * 3
  assert scales('16', high) == [2.0 ** 9] * 3


def test_bfloat16_repeats(compiled):
  metrics, values = [], []
  for _ in range(2):
    agent = make_agent(precision='bfloat16')
    metrics.append(train(agent, 2))
    values.append(arrays(agent))
  assert metrics[0] == metrics[1]
  assert_same(*values)


def test_number_of_parameters(trained):
  agent, file = trained
  assert agent.parameters == sum(x.size for x in arrays(agent).values())


@pytest.mark.parametrize('flag', ['freeze', 'weight_decay_pattern'])
def test_a_pattern_that_fits_nothing_is_an_error(flag):
  def start(pattern):
    return dreamer.Dreamer.start(make_config(**{flag: pattern}), ACTIONS)

  start('^actor/h0|reward.*bias')
  start('^(encoder|pcont)/')  # An agent may have no pcont.
  start('^actor|^pcont/h1')
  with pytest.raises(
      terminal.UserError, match=f"--{flag} '.encoderr/h1'.*encoder/h1"):
    start('^encoderr/h1')
  start('^(encoder|decoder)/(h1|h5)/kernel')
  with pytest.raises(terminal.UserError, match=r"part '\^\(decodr\)'.*decoder"):
    start('^(encoder|decodr)')
  with pytest.raises(terminal.UserError, match="its part 'valeu'.*value"):
    start(r'^actor/(h0|h\d)|valeu')
  with pytest.raises(terminal.UserError, match=f'--{flag}.*expression'):
    start('(')


def test_patterns_of_a_run_that_goes_on_are_not_judged(tmp_path):
  agent = make_agent(freeze='nothing', weight_decay_pattern='no|one')
  agent.save(tmp_path / 'variables.pkl')
  assert dreamer.load_agent(tmp_path).config.freeze == 'nothing'
  saved = checkpoints.load(tmp_path / 'variables.pkl')
  with pytest.raises(terminal.UserError, match='--freeze'):
    dreamer.Dreamer.from_checkpoint(
        make_config(freeze='nobody'), ACTIONS, saved)


def test_alternatives_of_a_pattern():
  assert patterns.alternatives(r'a(b|c)|[|(]d\||e') == [
      'a(b)', 'a(c)', r'[|(]d\|', 'e']
  # Each beside all of the others: no layer of the encoder is called h5.
  assert patterns.alternatives('^(encoder|decoder)/(h1|h5)') == [
      '^(encoder)/(h1|h5)', '^(decoder)/(h1|h5)',
      '^(encoder|decoder)/(h1)', '^(encoder|decoder)/(h5)']
  assert patterns.alternatives('(a(?:b|c)|d)') == [
      '(a(?:b)|d)', '(a(?:c)|d)', '(a(?:b|c))', '(d)']
  for pattern in '(a|b)*', '(?=a|b)', '(a|b){2}':
    assert patterns.alternatives(pattern) == [pattern]


def test_save_single(trained, tmp_path):
  agent, file = trained
  for module in agent.modules.values():
    path = tmp_path / f'{module.name}.pkl'
    agent.save_single(module, path)
    saved = checkpoints.module(path, module.name)
    assert_same(saved, {
        name: variable.numpy() for name, variable in module.variables.items()})
    assert_same(saved, checkpoints.module(file, module.name))
  assert {path.stem for path in tmp_path.iterdir()} == {
      'actor', 'decoder', 'dynamics', 'encoder', 'pcont', 'reward', 'value'}


### Acting ###


def observations(count=2):
  rng = np.random.default_rng(0)
  return {'image': rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)}


@pytest.mark.parametrize('training', [True, False])
def test_policy_repeats_with_its_seed(training):
  def act(agent):
    first, state = agent.policy(observations(), None, training)
    second, _ = agent.policy(observations(), state, training)
    return np.stack([first, second])

  agent = make_agent()
  actions = act(agent)
  assert actions.shape == (2, 2, ACTIONS)
  assert np.abs(actions).max() <= 1
  np.testing.assert_array_equal(actions, act(make_agent()))
  assert np.any(actions != act(agent))
  assert np.any(actions != act(make_agent(seed=1)))


def test_policy_takes_the_largest_seed():
  action, _ = make_agent(seed=2 ** 31 - 1).policy(observations(), None, True)
  assert np.isfinite(action).all()


def test_reset_begins_anew():
  def act(state, reset):
    agent = make_agent()
    agent.random.calls[False] = 1
    return agent(observations(), np.array(reset), state, training=False)[0]

  _, state = make_agent().policy(observations(), None, False)
  begun = act(None, [True, True])
  continued = act(state, [False, False])
  mixed = act(state, [True, False])
  np.testing.assert_allclose(mixed[0], begun[0], rtol=1e-5)
  np.testing.assert_allclose(mixed[1], continued[1], rtol=1e-5)
  assert np.all(np.any(begun != continued, -1))


def test_evaluation_acts_by_the_likeliest_of_samples():
  """An actor that always says mean 0 and deviation 0.5 samples up to 1."""
  agent = make_agent(expl_amount=0.0, action_init_std=0.5)
  kernel = agent.variables['actor/hout/kernel']
  kernel.assign(tf.zeros_like(kernel))
  obs = observations(300)
  explored, _ = agent.policy(obs, None, True)
  evaluated, _ = agent.policy(obs, None, False)
  # Simulated: the best of 100 draws in 3 dimensions, in NumPy.
  assert np.std(explored) == pytest.approx(0.416, abs=0.02)
  assert np.std(evaluated) == pytest.approx(0.092, abs=0.01)


def explored(agent, action, amount):
  return agent._explore(action, amount, np.random.default_rng(3))


def test_additive_gaussian():
  agent = make_agent(expl='additive_gaussian')
  action = np.tile(np.float32([0.0, 0.5, -1.0]), [10000, 1])
  noisy = explored(agent, action, 0.1)
  np.testing.assert_allclose(noisy[:, :2].mean(0), [0, 0.5], atol=0.01)
  np.testing.assert_allclose(noisy[:, :2].std(0), 0.1, rtol=0.05)
  assert noisy.min() == -1
  assert (noisy[:, 2] == -1).mean() == pytest.approx(0.5, abs=0.02)
  np.testing.assert_array_equal(explored(agent, action, 0.0), action)


def test_epsilon_greedy():
  agent = make_agent(expl='epsilon_greedy')
  action = np.full([10000, ACTIONS], 0.5, np.float32)
  noisy = explored(agent, action, 0.3)
  random = np.any(noisy != 0.5, -1)
  assert random.mean() == pytest.approx(0.3, abs=0.02)
  assert np.all(noisy[random] != 0.5)
  np.testing.assert_allclose(noisy[random].mean(), 0, atol=0.03)
  np.testing.assert_allclose(noisy[random].std(), 1 / np.sqrt(3), rtol=0.03)
  np.testing.assert_array_equal(explored(agent, action, 0.0), action)


def test_completely_random():
  agent = make_agent(expl='completely_random')
  action = np.full([10000, ACTIONS], 0.5, np.float32)
  noisy = explored(agent, action, 0.3)
  assert np.all(noisy != 0.5)
  assert np.abs(noisy).max() <= 1
  np.testing.assert_allclose(noisy.std(0), 1 / np.sqrt(3), rtol=0.03)
  # Evaluation, whose amount is 0, stays the policy.
  np.testing.assert_array_equal(explored(agent, action, 0.0), action)


@pytest.mark.parametrize('expl, share', [
    ('epsilon_greedy', 0.3 * 2 / 3), ('completely_random', 2 / 3)])
def test_exploration_of_discrete_actions(expl, share):
  agent = make_agent(expl=expl, action_dist='onehot')
  action = np.tile(np.float32([0.0, 1.0, 0.0]), [10000, 1])
  noisy = explored(agent, action, 0.3)
  assert np.all(noisy.sum(-1) == 1) and np.all(noisy.max(-1) == 1)
  assert 1 - noisy[:, 1].mean() == pytest.approx(share, abs=0.02)
  assert noisy[:, 0].mean() == pytest.approx(noisy[:, 2].mean(), abs=0.02)


def test_discrete_policy():
  agent = make_agent(action_dist='onehot', expl='epsilon_greedy')
  for training in (True, False):
    action, _ = agent.policy(observations(), None, training)
    np.testing.assert_allclose(np.sort(action), [[0, 0, 1]] * 2, atol=1e-6)


def test_exploration_decays():
  agent = make_agent(
      expl_amount=0.4, expl_decay=1000.0, expl_min=0.15, eval_noise=0.05)
  amounts = []
  for agent.step in (0, 1000, 1500, 10000):
    amounts.append(agent.expl_amount())
    assert agent.expl_amount(training=False) == 0.05
  np.testing.assert_allclose(amounts, [0.4, 0.2, 0.15, 0.15])
  agent = make_agent(expl_amount=0.4)
  agent.step = 10 ** 6
  assert agent.expl_amount() == 0.4
  assert agent.expl_amount(training=False) == 0


### Learning ###


@pytest.mark.parametrize('changes', [
    dict(), dict(pcont=True), dict(action_dist='onehot', pcont=True)],
    ids=str)
def test_every_variable_gets_a_gradient_and_moves(changes):
  agent = make_agent(**changes)
  agent._make_optimizers()
  grads, _ = agent.gradients(
      dreamer.tensors(make_batch(agent.config)), tf.constant([0, 0]))
  names = []
  for part, optimizer in agent.optimizers.items():
    for name, grad in zip(optimizer.names, grads[part]):
      assert np.isfinite(grad).all(), name
      assert np.abs(grad).max() > 0, name
      names.append(name)
  assert sorted(names) == sorted(agent.variables)
  before = arrays(agent)
  train(agent)
  assert changed(before, arrays(agent)) == set(before)


def test_seed_decides_the_update():
  one, two, other = (make_agent() for _ in range(3))
  other.config.seed = 1
  metrics = [train(agent) for agent in (one, two, other)]
  assert metrics[0] == metrics[1]
  assert_same(arrays(one), arrays(two))
  assert metrics[0]['actor_loss'] != metrics[2]['actor_loss']
  assert changed(arrays(one), arrays(other))


def test_updates_differ_in_their_noise():
  agent = make_agent(model_lr=0.0, value_lr=0.0, actor_lr=0.0)
  batch = make_batch(agent.config)
  one, two = (agent.train(batch)['model_loss'].numpy() for _ in range(2))
  assert one != two


@pytest.mark.parametrize('part, lr', [
    ('model', 'model_lr'), ('value', 'value_lr'), ('actor', 'actor_lr')])
def test_each_part_has_its_rate(part, lr):
  others = {'model_lr', 'value_lr', 'actor_lr'} - {lr}
  agent = make_agent(**{lr: 1e-3}, **{other: 0.0 for other in others})
  before = arrays(agent)
  train(agent)
  after = arrays(agent)
  moved = changed(before, after)
  assert moved == set(agent.optimizers[part].names)
  # The first step of Adam is nearly the rate itself.
  steps = np.concatenate([
      np.abs(before[name] - after[name]).ravel() for name in moved])
  assert np.quantile(steps, 0.9) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize('step, share', [
    (0, 1.0), (500, 0.55), (1000, 0.1), (1500, 0.1)])
def test_rates_fall_to_their_end(step, share):
  plain, falling = make_agent(steps=1000), make_agent(steps=1000, lr_end=0.1)
  sizes = []
  for agent in (plain, falling):
    agent.step = step
    before = arrays(agent)
    train(agent)
    sizes.append({
        name: np.abs(after - before[name]).max()
        for name, after in arrays(agent).items()})
  for name, size in sizes[0].items():
    assert sizes[1][name] == pytest.approx(share * size, rel=0.02)


def test_frozen_variables_stay():
  agent = make_agent(freeze='^(encoder|decoder)/|reward/h0', weight_decay=0.1)
  before = arrays(agent)
  train(agent, 2)
  after = arrays(agent)
  frozen = {name for name in before if agent.frozen(name)}
  assert len(frozen) == 8 + 10 + 2
  assert changed(before, after) == set(before) - frozen


def test_everything_can_be_frozen():
  agent = make_agent(freeze='.')
  before = arrays(agent)
  train(agent)
  assert_same(arrays(agent), before)


def test_weight_decay_takes_its_pattern():
  agent = make_agent(
      weight_decay=0.25, weight_decay_pattern=r'value/.*kernel', model_lr=0.0,
      value_lr=0.0, actor_lr=0.0)
  before = arrays(agent)
  train(agent)
  after = arrays(agent)
  assert changed(before, after) == {
      f'value/{layer}/kernel' for layer in ('h0', 'h1', 'h2', 'hout')}
  np.testing.assert_allclose(
      after['value/h1/kernel'], 0.75 * before['value/h1/kernel'], rtol=1e-5)


def test_bad_numbers_change_nothing():
  agent = make_agent()
  train(agent)
  before = arrays(agent)
  batch = make_batch(agent.config)
  batch['reward'][0, 0] = np.nan
  metrics = agent.train(batch)
  assert np.isnan(metrics['model_loss'])
  after = arrays(agent)
  assert not changed(before, after) & set(agent.optimizers['model'].names)
  assert all(np.isfinite(value).all() for value in after.values())
  assert agent.optimizers['model'].state()['iterations'] == 1


@pytest.mark.parametrize('precision', ['16', 'bfloat16'])
def test_low_precision(precision):
  # In a graph, where types are checked more strictly; once, for the time.
  tf.config.run_functions_eagerly(precision == 'bfloat16')
  agent = make_agent(precision=precision)
  agent._make_optimizers()
  scaled = precision == '16'
  optimizer = agent.optimizers['model']
  if scaled:
    optimizer.restore(dict(optimizer.state(), scale=np.float32(2.0 ** 22)))
  before = arrays(agent)
  assert all(value.dtype == np.float32 for value in before.values())
  metrics = train(agent)
  if scaled:
    # Too large a scale: the step is left out and the scale halved.
    assert not np.isfinite(metrics['model_grad_norm'])
    assert not changed(before, arrays(agent)) & set(optimizer.names)
    assert optimizer.state()['scale'] == 2.0 ** 21
    optimizer.restore(dict(optimizer.state(), scale=np.float32(2.0 ** 4)))
    metrics = train(agent)
    assert optimizer.state()['scale'] == 2.0 ** 4
  assert all(np.isfinite(value) for value in metrics.values())
  after = arrays(agent)
  assert changed(before, after) == set(before)
  assert all(np.isfinite(value).all() for value in after.values())
  tf.config.run_functions_eagerly(True)
  other = make_agent()
  other.updates = agent.updates - 1
  exact = train(other)
  for name in ('image_loss', 'reward_loss', 'div', 'value_loss'):
    assert metrics[name] == pytest.approx(exact[name], rel=0.05), name
  action, _ = agent.policy(observations(), None, False)
  assert action.dtype == tf.float32 and np.isfinite(action).all()


@pytest.mark.parametrize('precision, rssm', [
    ('32', 'float32'), ('bfloat16', 'float32'), ('16', 'float16')])
def test_the_recurrent_model_is_exact_on_a_processor(precision, rssm):
  agent = make_agent(precision=precision)
  types = {layer.compute_dtype for layer in agent._dynamics._layers.values()}
  assert types == {rssm}


@pytest.mark.parametrize('precision', ['16', 'bfloat16'])
def test_low_precision_outside_of_graphs(precision):
  """As people try things out."""
  agent = make_agent(precision=precision)
  feat = normal(np.random.default_rng(0), 2, agent._dynamics.feature_size)
  with tf.GradientTape() as tape:
    image = agent._decode(feat).mean()
  kernel = agent.variables['decoder/h5/kernel']
  assert np.abs(tape.gradient(image, kernel)).max() > 0
  assert image.dtype == agent._reward(feat).mean().dtype == tf.float32


@pytest.mark.parametrize('precision', ['16', 'bfloat16'])
def test_many_gradients_of_a_bias_add_up(precision):
  """Sums in half precision stop growing beyond some hundred terms."""
  agent = make_agent(precision=precision)
  count = 20000
  features = np.random.default_rng(0).normal(
      size=(2, count // 2, agent._dynamics.feature_size)).astype(np.float32)
  bias = agent.variables['value/hout/bias']
  with tf.GradientTape() as tape:
    total = tf.reduce_sum(agent._value(features).mean())
  assert tape.gradient(total, bias).numpy() == pytest.approx(count, rel=0.01)


def test_graph_makes_the_same_update(compiled):
  agent = make_agent(pcont=True)
  metrics = train(agent, 2)
  tf.config.run_functions_eagerly(True)
  other = make_agent(pcont=True)
  assert_same_update(agent, metrics, other, train(other, 2))


def test_gradients_of_scans_are_built_once(compiled):
  """Not for gradients of gradients too, a third of the time of tracing."""
  agent = make_agent()
  agent._make_optimizers()
  graph = agent._train.get_concrete_function(
      dreamer.tensors(make_batch(agent.config)), tf.constant([0, 0])).graph
  names = [
      function.signature.name
      for function in graph.as_graph_def().library.function]
  scans = 2  # Of the world model and of imagination.
  assert sum('while_body' in x and '_grad_' in x for x in names) == scans
  assert not any('cflow_gradient_wrapper' in name for name in names)


def test_normal_numbers_are_normal_and_finite(monkeypatch):
  numbers = tools.normal([300, 300], tf.constant([1, 2])).numpy().ravel()
  assert scipy.stats.kstest(numbers, 'norm').pvalue > 0.01
  again = tools.normal([300, 300], tf.constant([1, 3])).numpy().ravel()
  assert abs(np.corrcoef(numbers, again)[0, 1]) < 0.02
  monkeypatch.setattr(
      tf.random, 'stateless_uniform',
      lambda *args, **kwargs: tf.constant([0, 2 ** 32 - 1], tf.uint32))
  low, high = tools.normal([2], tf.constant([1, 2])).numpy()
  assert low == -high and 5 < high < 6


@pytest.mark.slow
def test_xla_makes_the_same_update(compiled):
  agent = make_agent(jit=True)
  metrics = train(agent, 2)
  tf.config.run_functions_eagerly(True)
  other = make_agent()
  assert_same_update(agent, metrics, other, train(other, 2))


def assert_same_update(agent, metrics, other, other_metrics):
  assert set(metrics) == set(other_metrics)
  for name, value in metrics.items():
    np.testing.assert_allclose(
        value, other_metrics[name], 1e-3, 1e-5, err_msg=name)
  for part, optimizer in agent.optimizers.items():
    theirs = other.optimizers[part].state()
    for slot in ('m', 'v'):
      for name, value in optimizer.state()[slot].items():
        expected = theirs[slot][name]
        error = np.linalg.norm(value - expected)
        assert error <= 1e-3 * np.linalg.norm(expected), name


### The optimizer ###


class Adam:
  """Kingma and Ba 2015, with the small number outside of the root."""

  def __init__(self, rate):
    self.rate = rate
    self.m = self.v = 0.0
    self.count = 0

  def step(self, value, grad):
    self.count += 1
    self.m = 0.9 * self.m + 0.1 * grad
    self.v = 0.999 * self.v + 0.001 * grad ** 2
    m = self.m / (1 - 0.9 ** self.count)
    v = self.v / (1 - 0.999 ** self.count)
    return value - self.rate * m / (np.sqrt(v) + 1e-7)


def make_variables():
  rng = np.random.default_rng(0)
  return {
      'net/h0/kernel': tf.Variable(normal(rng, 4, 3)),
      'net/h0/bias': tf.Variable(normal(rng, 3))}


def minimize(optimizer, variables, target, slope=1.0):
  """One step on half the squared distance from `target`."""
  with tf.GradientTape(persistent=True) as tape:
    loss = slope * sum(
        tf.reduce_sum((variable - target) ** 2) / 2
        for variable in variables.values())
  grads, norm = optimizer.gradients(tape, loss)
  optimizer.apply(grads)
  return grads, norm.numpy()


def test_adam():
  variables = make_variables()
  expected = {
      name: variable.numpy().astype(float)
      for name, variable in variables.items()}
  clip, decay = 8.0, 0.05
  optimizer = tools.Optimizer(
      'test', variables, 1e-2, clip, decay, pattern='kernel')
  adams = {name: Adam(1e-2) for name in variables}
  clipped = []
  for number in range(8):
    target = [20.0, 0.5, 0.6][number % 3]
    grads = {name: value - target for name, value in expected.items()}
    expected_norm = np.sqrt(sum(np.sum(x ** 2) for x in grads.values()))
    expected['net/h0/kernel'] = expected['net/h0/kernel'] * (1 - decay)
    for name, grad in grads.items():
      grad = grad * min(1, clip / expected_norm)
      expected[name] = adams[name].step(expected[name], grad)
    _, norm = minimize(optimizer, variables, target)
    assert norm == pytest.approx(expected_norm, rel=1e-4)
    clipped.append(norm > clip)
    for name, variable in variables.items():
      np.testing.assert_allclose(
          variable, expected[name], 1e-4, 1e-5, err_msg=name)
  assert any(clipped) and not all(clipped)


def test_optimizer_continues():
  variables, others = make_variables(), make_variables()
  one, two = (
      tools.Optimizer('test', x, 1e-2, scaled=True)
      for x in (variables, others))
  for _ in range(3):
    minimize(one, variables, 1.0)
    one.count(tf.constant(True))
  one.count(tf.constant(False))
  two.restore(one.state())
  assert two.state()['scale'] == 2.0 ** 14
  for name, variable in others.items():
    variable.assign(variables[name])
  for optimizer, values in ((one, variables), (two, others)):
    minimize(optimizer, values, 1.0)
  for name in variables:
    np.testing.assert_array_equal(variables[name], others[name])


def test_scaled_loss_gives_the_same_gradients():
  plain, scaled = (
      minimize(
          tools.Optimizer('test', variables, 1e-2, scaled=scale), variables, 2)
      for scale, variables in ((False, make_variables()),
                               (True, make_variables())))
  assert plain[1] == pytest.approx(scaled[1])
  for left, right in zip(plain[0], scaled[0]):
    np.testing.assert_allclose(left, right, rtol=1e-6)


def test_scale_halves_until_gradients_fit():
  variable = tf.Variable([0.5])
  optimizer = tools.Optimizer('test', {'x': variable}, 1e-2, scaled=True)
  assert optimizer.state()['scale'] == 2.0 ** 15
  finite = []
  for _ in range(5):
    with tf.GradientTape(persistent=True) as tape:
      # The largest float16 is below 2 ** 16.
      loss = tf.cast(8 * tf.cast(variable, tf.float16), tf.float32)[0]
    grads, norm = optimizer.gradients(tape, loss)
    finite.append(bool(tf.math.is_finite(norm)))
    optimizer.count(tf.math.is_finite(norm))
  assert finite == [False, False, False, True, True]
  assert optimizer.state()['scale'] == 2.0 ** 12
  np.testing.assert_allclose(grads[0], [8])


def test_scale_grows_again():
  optimizer = tools.Optimizer('test', make_variables(), 1e-2, scaled=True)
  optimizer.restore(dict(optimizer.state(), good=1998))
  optimizer.count(tf.constant(True))
  assert optimizer.state()['scale'] == 2.0 ** 15
  optimizer.count(tf.constant(True))
  assert optimizer.state()['scale'] == 2.0 ** 16
  for _ in range(40):
    optimizer.count(tf.constant(False))
  assert optimizer.state()['scale'] == 1


def test_scale_stays_without_float16():
  optimizer = tools.Optimizer('test', make_variables(), 1e-2)
  optimizer.count(tf.constant(False))
  assert optimizer.state()['scale'] == 1


def test_loss_without_a_variable_is_an_error():
  variables = make_variables()
  optimizer = tools.Optimizer('test', variables, 1e-2)
  with tf.GradientTape(persistent=True) as tape:
    loss = tf.reduce_sum(variables['net/h0/kernel'])
  with pytest.raises(ValueError, match='test loss .* net/h0/bias'):
    optimizer.gradients(tape, loss)


### Small tools ###


def test_means():
  means = tools.Means()
  means.add({'a': tf.constant(1.0), 'b': 5.0})
  means.add({'a': tf.constant(2.0)})
  copy = tools.Means()
  copy.restore(means.state())
  for counted in (means, copy):
    counted.add({'a': tf.constant(6.0)})
    assert counted.read() == {'a': 3.0, 'b': 5.0}
    assert counted.read() == {}


def test_every_counts_periods():
  every = tools.Every(10)
  assert [every(step) for step in (4, 8, 14, 15, 39, 44)] == [
      1, 0, 1, 0, 2, 1]


def test_images_are_scaled_once():
  image = np.array([0, 51, 255], np.uint8)
  scaled = dreamer.scale_image(tf.constant(image))
  np.testing.assert_allclose(scaled, [-0.5, -0.3, 0.5], atol=1e-6)
  np.testing.assert_array_equal(dreamer.scale_image(scaled), scaled)


def test_second_batch_size(compiled):
  """Of training and of the video, in graphs that are there already."""
  agent = make_agent()
  sizes = make_config(), make_config()
  sizes[1].update(dict(batch_size=3, batch_length=7))
  for config in sizes:
    batch = make_batch(config)
    assert np.isfinite(agent.train(batch)['model_loss'])
    assert agent.open_loop(batch).shape == (
        config.batch_length, 3 * 64, config.batch_size * 64, 3)


def test_open_loop_sees_images_again_where_an_episode_begins():
  agent = make_agent()
  model = agent._dynamics
  batch = dreamer.tensors(make_batch(agent.config))
  data = agent.preprocess({
      **batch, 'first': tf.constant(
          [[False] * 6, [False, False, False, True, False, False]])})
  tf.random.set_seed(3)
  states = prediction.open_loop(agent, data, context=2)
  embed = agent._encode(data)

  def statistics(deter, embed=None):
    state = model._prior(deter, 0.0) if embed is None else model._posterior(
        deter, embed, 0.0)
    return state['mean']

  # Episodes begin at 0, and in the second sequence at 3 too.
  seen = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0]]
  for row in range(2):
    for step in range(6):
      deter = states['deter'][row, None, step]
      expected = statistics(
          deter, embed[row, None, step] if seen[row][step] else None)
      np.testing.assert_allclose(
          states['mean'][row, step], expected[0], rtol=1e-4, atol=1e-5)
  # Nothing of the episode before is left in the state.
  zeros = tf.zeros([1, ACTIONS])
  begun = model.obs_step(model.initial(1), zeros, embed[1, None, 3])[0]
  np.testing.assert_allclose(
      states['deter'][1, 3], begun['deter'][0], rtol=1e-4, atol=1e-6)


def test_open_loop_shows_truth_model_and_error():
  agent = make_agent()
  batch = make_batch(agent.config)
  video = agent.open_loop(batch)
  assert video.shape == (6, 3 * 64, 2 * 64, 3)
  assert video.dtype == np.uint8
  truth = np.concatenate(list(batch['image']), 2)
  assert np.abs(video[:, :64].astype(int) - truth).max() <= 1
