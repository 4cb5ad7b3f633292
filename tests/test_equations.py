"""The losses as functions, on networks of a line each and without an agent."""

import types

import numpy as np
import pytest

from common.backend import tf, tfd
import dreamer
import tools

SEED = tf.constant([1, 2])
B, T, H = 2, 3, 4


def settings(**values):
  return types.SimpleNamespace(**{
      **dict(kl_scale=0.5, free_nats=0.0, stoch_size=1, discount=0.9,
             pcont_scale=3.0, horizon=H, disclam=0.8, free_nats_of='batch',
             kl_balance=0.0, decode_stride=1, imag_stride=1,
             actor_entropy=0.0), **values})


class Dynamics:
  """Posterior N(1, 1) and prior N(0, 1); imagination counts upwards."""

  def observe(self, embed, action, first=None, noise=None):
    def state(mean):
      full = mean * tf.ones([*action.shape[:2], 1])
      return {'mean': full, 'stoch': full, 'deter': full}
    return state(1.0), state(0.0)

  def img_step(self, prev, action, noise):
    return {name: x + 1 for name, x in prev.items()}

  def get_feat(self, state):
    return state['stoch']

  def get_dist(self, state):
    return tfd.Independent(tfd.Normal(state['mean'], 1.0), 1)


def head(scale, events=0):
  """A Normal around multiples of the feature."""
  def of(feat):
    mean = scale * feat[..., 0]
    if events:
      mean = mean[..., None, None, None] * tf.ones([64, 64, 3])
    return tools.UnitNormal(mean, events)
  return of


def pcont(feat):
  return tfd.Independent(tfd.Bernoulli(
      logits=0 * feat[..., 0], dtype=tf.float32), 0)


class Actor:
  actions = 1

  def __call__(self, feat):
    return types.SimpleNamespace(sample=lambda noise: noise)


def batch(**changes):
  return {
      'image': tf.ones([B, T, 64, 64, 3]), 'action': tf.zeros([B, T, 1]),
      'reward': tf.fill([B, T], 3.0), 'discount': tf.ones([B, T]), **changes}


def world_model(data=None, config=None, pcont=None):
  return dreamer.world_model_loss(
      data or batch(), SEED, encode=lambda data: data['image'],
      dynamics=Dynamics(), decode=head(0.0, 3), reward=head(1.0), pcont=pcont,
      config=config or settings())


def log_prob(error, count=1):
  return -0.5 * count * (error ** 2 + np.log(2 * np.pi))


def test_world_model_loss():
  loss, parts = world_model()
  # KL of N(1, 1) and N(0, 1); images and rewards miss by 1 and by 2.
  assert tf.reduce_mean(parts['div']) == 0.5
  expected = 0.5 * 0.5 - log_prob(1, 64 * 64 * 3) - log_prob(2)
  assert float(loss) == pytest.approx(expected, rel=1e-6)
  free, _ = world_model(config=settings(free_nats=2.0))
  assert float(free - loss) == pytest.approx(0.5 * (2 - 0.5), abs=2e-3)
  ends, parts = world_model(pcont=pcont)
  assert float(parts['likelihood']['pcont']) == pytest.approx(3 * np.log(0.5))
  assert float(ends - loss) == pytest.approx(-3 * np.log(0.5), abs=2e-3)


def behaviour(discount=None, config=None, pcont=None):
  post, _ = Dynamics().observe(None, tf.zeros([B, T, 1]))
  return dreamer.behaviour_losses(
      post, tf.ones([B, T]) if discount is None else discount, SEED,
      dynamics=Dynamics(), actor=Actor(), reward=head(1.0), value=head(10.0),
      pcont=pcont, config=config or settings())


def returns_of(rewards, values, gamma, lam):
  """Equation 6 in its recursive form."""
  last, found = values[-1], []
  for t in reversed(range(len(rewards) - 1)):
    last = rewards[t] + gamma * ((1 - lam) * values[t + 1] + lam * last)
    found.insert(0, last)
  return np.array(found)


@pytest.mark.parametrize('ends', [False, True])
def test_behaviour_losses(ends):
  gamma = 0.5 if ends else 0.9
  actor, value, parts = behaviour(pcont=pcont if ends else None)
  rewards = np.arange(2.0, 2 + H)  # From a state of 1 on.
  returns = returns_of(rewards, 10 * rewards, gamma, 0.8)
  weights = gamma ** np.arange(H - 1)
  assert parts['imag_feat'].shape == (H, B * (T - ends), 1)
  np.testing.assert_allclose(parts['returns'][:, 0], returns, rtol=1e-6)
  assert float(actor) == pytest.approx(-np.mean(weights * returns), rel=1e-6)
  assert float(value) == pytest.approx(-np.mean(
      weights * log_prob(returns - 10 * rewards[:-1])), rel=1e-6)


def test_what_follows_an_end_has_no_weight():
  whole, _, _ = behaviour(pcont=pcont)
  one = tf.constant([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])  # One of four starts.
  actor, _, _ = behaviour(one, pcont=pcont)
  assert float(actor) == pytest.approx(0.75 * float(whole), rel=1e-6)


@pytest.mark.parametrize('changes, words', [
    (dict(reward=tf.zeros([B, T, 1])), 'reward has shape [2, 3, 1], expected '
     '[B, T] with B = 2, T = 3'),
    (dict(action=tf.zeros([B, 4, 1])), 'action has shape [2, 4, 1], expected '
     '[B, T, A] with B = 2, T = 3, A = 1'),
    (dict(image=tf.zeros([B, T, 32, 64, 3])), 'image has shape [2, 3, 32, 64, '
     '3], expected [B, T, 64, 64, 3]')])
def test_a_wrong_shape_is_shown(changes, words):
  with pytest.raises(ValueError) as error:
    world_model(batch(**changes))
  assert words in str(error.value)


def test_unknown_sizes_fit():
  @tf.function(input_signature=[tf.TensorSpec([None, 3])] * 2)
  def check(x, y):
    tools.assert_shapes(x=(x, 'A B'), y=(y, 'A B'))
    return x + y

  assert check(tf.zeros([2, 3]), tf.zeros([2, 3])).shape == (2, 3)
