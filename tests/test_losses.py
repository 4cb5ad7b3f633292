"""The training step's losses and gradients against NumPy in float64.

The NumPy side is written from the paper and the specification. It draws no
numbers: both sides get the noise that the seed of the update stands for.
"""

import numpy as np
import pytest
import scipy.special

from common.backend import tf
import dreamer
import tools

SEED = [7, 3]
SIZES = dict(
    precision='32', cnn_depth=2, deter_size=6, stoch_size=3, num_units=5, batch_size=2,
    batch_length=5, horizon=4, action_init_std=0.7, discount=0.9, disclam=0.8,
    free_nats=0.01, kl_scale=0.7)
CASES = {
    'defaults': dict(),
    'pcont': dict(pcont=True, pcont_scale=3.0),
    'onehot': dict(action_dist='onehot'),
    'pcont and onehot': dict(pcont=True, action_dist='onehot'),
    'clipped rewards': dict(clip_rewards='tanh'),
    'free nats': dict(free_nats=1000.0),
}
ACTIONS = 3
GROUPS = {
    'model': ('encoder/', 'dynamics/', 'decoder/', 'reward/', 'pcont/'),
    'actor': ('actor/',),
    'value': ('value/',),
}


### Layers ###


def relu(x):
  return np.maximum(x, 0)


def elu(x):
  return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softplus(x):
  return np.logaddexp(0, x)


def conv(x, kernel, bias):
  size = (x.shape[1] - kernel.shape[0]) // 2 + 1
  y = np.zeros([len(x), size, size, kernel.shape[3]])
  for row in range(kernel.shape[0]):
    for column in range(kernel.shape[1]):
      seen = x[:, row:row + 2 * size:2, column:column + 2 * size:2]
      y += seen[:, :size, :size] @ kernel[row, column]
  return y + bias


def deconv(x, kernel, bias):
  size = 2 * (x.shape[1] - 1) + kernel.shape[0]
  y = np.zeros([len(x), size, size, kernel.shape[2]])
  span = 2 * x.shape[1]
  for row in range(kernel.shape[0]):
    for column in range(kernel.shape[1]):
      # Only every second pixel is written, the first at the kernel's offset.
      y[:, row:row + span:2, column:column + span:2] += (
          x @ kernel[row, column].T)
  return y + bias


def normal_log_prob(x, mean):
  return -0.5 * (x - mean) ** 2 - 0.5 * np.log(2 * np.pi)


class Stop:
  """Stop-gradient for finite differences: repeats the values of a first run."""

  def __init__(self):
    self._values = []
    self._replay = None

  def replay(self):
    self._replay = iter(self._values)

  def __call__(self, value):
    if self._replay is not None:
      return next(self._replay)
    self._values.append(value)
    return value


class Reference:
  """World model, actor and value with given variables."""

  def __init__(self, values, config, stop):
    self.values = values
    self.config = config
    self.stop = stop

  def dense(self, x, name):
    return x @ self.values[f'{name}/kernel'] + self.values[f'{name}/bias']

  def head(self, x, name, hidden):
    for index in range(hidden):
      x = elu(self.dense(x, f'{name}/h{index}'))
    return self.dense(x, f'{name}/hout')

  def layer(self, name):
    return self.values[f'{name}/kernel'], self.values[f'{name}/bias']

  def encode(self, image):
    batch, length = image.shape[:2]
    x = image.reshape(-1, 64, 64, 3)
    for index in range(1, 5):
      x = relu(conv(x, *self.layer(f'encoder/h{index}')))
    return x.reshape(batch, length, -1)

  def decode(self, feat):
    batch, length = feat.shape[:2]
    x = self.dense(feat, 'decoder/h1').reshape(batch * length, 1, 1, -1)
    for index in range(2, 5):
      x = relu(deconv(x, *self.layer(f'decoder/h{index}')))
    x = deconv(x, *self.layer('decoder/h5'))
    return x.reshape(batch, length, 64, 64, 3)

  def recur(self, stoch, deter, action):
    x = elu(self.dense(np.concatenate([stoch, action], -1), 'dynamics/img1'))
    gates = x @ self.values['dynamics/gru/kernel']
    gates = gates + self.values['dynamics/gru/bias'][0]
    inner = deter @ self.values['dynamics/gru/recurrent_kernel']
    inner = inner + self.values['dynamics/gru/bias'][1]
    update, reset, new = np.split(gates, 3, -1)
    inner_update, inner_reset, inner_new = np.split(inner, 3, -1)
    update = sigmoid(update + inner_update)
    reset = sigmoid(reset + inner_reset)
    new = np.tanh(new + reset * inner_new)
    return update * deter + (1 - update) * new

  def statistics(self, x, hidden, out):
    mean, std = np.split(self.dense(
        elu(self.dense(x, f'dynamics/{hidden}')), f'dynamics/{out}'), 2, -1)
    return mean, softplus(std) + 0.1

  def prior(self, deter):
    return self.statistics(deter, 'img2', 'img3')

  def posterior(self, deter, embed):
    return self.statistics(
        np.concatenate([deter, embed], -1), 'obs1', 'obs2')

  def act(self, feat, noise):
    out = self.head(feat, 'actor', 4)
    if self.config.action_dist == 'onehot':
      logits = out - scipy.special.logsumexp(out, -1, keepdims=True)
      probs = np.exp(logits)
      gumbel = -np.log(-np.log(scipy.special.ndtr(noise)))
      chosen = np.eye(ACTIONS)[np.argmax(logits + gumbel, -1)]
      return self.stop(chosen - probs) + probs
    mean, std = np.split(out, 2, -1)
    mean = 5 * np.tanh(mean / 5)
    raw = np.log(np.exp(self.config.action_init_std) - 1)
    return np.tanh(mean + (softplus(std + raw) + 1e-4) * noise)

  def losses(self, data, noise):
    """Losses and their parts: sums over events, means over the rest."""
    c = self.config
    image = data['image'] / 255 - 0.5
    reward = data['reward']
    if c.clip_rewards == 'tanh':
      reward = np.tanh(reward)

    # World model: one step after the other, from zeros where one begins.
    embed = self.encode(image)
    batch, length = reward.shape
    stoch, deter = np.zeros([batch, c.stoch_size]), np.zeros(
        [batch, c.deter_size])
    stochs, deters, div, prior_ent, post_ent = [], [], [], [], []
    for t in range(length):
      goes_on = ~data['first'][:, t, None]
      deter = self.recur(
          stoch * goes_on, deter * goes_on, data['action'][:, t] * goes_on)
      prior_mean, prior_std = self.prior(deter)
      mean, std = self.posterior(deter, embed[:, t])
      stoch = mean + std * noise['post'][:, t]
      div.append(np.sum(
          np.log(prior_std / std) - 0.5 +
          (std ** 2 + (mean - prior_mean) ** 2) / (2 * prior_std ** 2), -1))
      for entropies, scale in ((prior_ent, prior_std), (post_ent, std)):
        entropies.append(np.sum(
            np.log(scale) + 0.5 * np.log(2 * np.pi * np.e), -1))
      stochs.append(stoch)
      deters.append(deter)
    stochs, deters = np.stack(stochs, 1), np.stack(deters, 1)
    feat = np.concatenate([stochs, deters], -1)
    parts = {
        'div': np.mean(div),
        'div_first': np.mean(div[0]),
        'div_above_free': float(np.mean(div) > c.free_nats),
        'replay_reward': np.mean(reward),
        'replay_value': np.mean(self.head(feat, 'value', 3)),
        'prior_ent': np.mean(prior_ent),
        'post_ent': np.mean(post_ent),
        'image_loss': -np.mean(np.sum(
            normal_log_prob(image, self.decode(feat)), (2, 3, 4))),
        'reward_loss': -np.mean(normal_log_prob(
            reward, self.head(feat, 'reward', 2)[..., 0]))}
    model_loss = c.kl_scale * max(parts['div'], c.free_nats) + (
        parts['image_loss'] + parts['reward_loss'])
    if c.pcont:
      target = c.discount * data['discount']
      logit = self.head(feat, 'pcont', 3)[..., 0]
      like = -target * softplus(-logit) - (1 - target) * softplus(logit)
      parts['pcont_loss'] = -c.pcont_scale * np.mean(like)
      model_loss += parts['pcont_loss']

    # Behaviour: imagination from every state, at the end of none.
    ends = slice(None, -1) if c.pcont else slice(None)
    stoch = self.stop(stochs[:, ends].reshape(-1, c.stoch_size))
    deter = self.stop(deters[:, ends].reshape(-1, c.deter_size))
    imagined = []
    for t in range(c.horizon):
      feat = self.stop(np.concatenate([stoch, deter], -1))
      action = self.act(feat, noise['action'][t])
      deter = self.recur(stoch, deter, action)
      mean, std = self.prior(deter)
      stoch = mean + std * noise['prior'][t]
      imagined.append(np.concatenate([stoch, deter], -1))
    imagined = np.stack(imagined)
    reward = self.head(imagined, 'reward', 2)[..., 0]
    value = self.head(imagined, 'value', 3)[..., 0]
    parts.update(imag_reward=np.mean(reward), imag_value=np.mean(value))
    if c.pcont:
      pcont = sigmoid(self.head(imagined, 'pcont', 3)[..., 0])
    else:
      pcont = np.full_like(reward, c.discount)
    count = c.horizon - 1
    returns = [None] * count
    following = value[count]
    for t in reversed(range(count)):
      returns[t] = reward[t] + pcont[t] * (
          (1 - c.disclam) * value[t + 1] + c.disclam * following)
      following = returns[t]
    returns = np.stack(returns)
    weights = [np.ones(returns.shape[1])]
    if c.pcont:
      # Nothing follows the end of an episode in the middle of a sequence.
      weights = [data['discount'][:, :-1].reshape(-1)]
    for t in range(count - 1):
      weights.append(weights[-1] * pcont[t])
    weights = self.stop(np.stack(weights))
    actor_loss = -np.mean(weights * returns)
    known = self.head(self.stop(imagined)[:count], 'value', 3)[..., 0]
    value_loss = -np.mean(
        weights * normal_log_prob(self.stop(returns), known))
    return {
        'model_loss': model_loss, 'actor_loss': actor_loss,
        'value_loss': value_loss, **parts}


### Both sides on the same numbers ###


class Case:
  """An agent with random variables, a batch and the noise of an update."""

  def __init__(self, changes):
    self.config = dreamer.define_config()
    self.config.update({**SIZES, **changes})
    rng = np.random.default_rng(1)
    self.agent = dreamer.Dreamer(self.config, ACTIONS)
    # Not the fresh ones: biases of zero hide mistakes, and so does an actor
    # that hardly looks at the state.
    for name, variable in self.agent.variables.items():
      dense = len(variable.shape) == 2
      scale = 1.5 / variable.shape[0] ** 0.5 if dense else 0.3
      variable.assign(scale * rng.normal(size=variable.shape))
    self.data = self._batch(rng)
    self.noise = self._noise()

  def _batch(self, rng):
    c = self.config
    shape = c.batch_size, c.batch_length
    data = dict(
        image=rng.integers(0, 256, (*shape, 64, 64, 3), dtype=np.uint8),
        action=rng.uniform(-1, 1, (*shape, ACTIONS)).astype(np.float32),
        reward=rng.normal(size=shape).astype(np.float32),
        discount=np.ones(shape, np.float32), first=np.zeros(shape, bool))
    # One sequence crosses the end of an episode, the other is cut from the
    # start of one, with an action that the model must not see.
    data['discount'][0, 2] = 0
    data['first'][0, 3] = data['first'][1, 0] = True
    return data

  def _noise(self):
    c = self.config
    starts = c.batch_size * (c.batch_length - c.pcont)
    model, behaviour, _ = tf.unstack(tf.random.split(tf.constant(SEED), 3))
    prior, action = tf.unstack(tf.random.split(behaviour, 2))

    def draw(shape, seed):
      return tools.normal(shape, seed).numpy().astype(float)

    return dict(
        post=draw([2, c.batch_size, c.batch_length, c.stoch_size], model)[0],
        prior=draw([c.horizon, starts, c.stoch_size], prior),
        action=draw([c.horizon, starts, ACTIONS], action))

  def theirs(self):
    """Losses of the agent, and their gradients by variable name."""
    variables = self.agent.variables
    with tf.GradientTape(persistent=True) as tape:
      losses, metrics = self.agent.losses(
          dreamer.tensors(self.data), tf.constant(SEED))
    grads = {}
    for group, prefixes in GROUPS.items():
      names = [name for name in variables if name.startswith(prefixes)]
      grads.update(zip(names, tape.gradient(
          losses[group], [variables[name] for name in names],
          unconnected_gradients='zero')))
    return losses, metrics, {
        name: grad.numpy().astype(float) for name, grad in grads.items()}

  def values(self):
    return {
        name: variable.numpy().astype(float)
        for name, variable in self.agent.variables.items()}

  def ours(self, values, stop):
    data = {
        name: value if value.dtype == bool else value.astype(float)
        for name, value in self.data.items()}
    return Reference(values, self.config, stop).losses(data, self.noise)


@pytest.fixture(scope='module')
def cases():
  made = {}

  def get(name):
    if name not in made:
      case = Case(CASES[name])
      made[name] = case, case.theirs()
    return made[name]

  return get


@pytest.mark.parametrize('name', CASES)
def test_losses(cases, name):
  case, (losses, metrics, _) = cases(name)
  expected = case.ours(case.values(), Stop())
  assert (expected['div'] < case.config.free_nats) == (name == 'free nats')
  of_actor = {'action_ent'}
  if case.config.action_dist == 'tanh_normal':
    of_actor |= {'action_abs', 'action_std'}
  assert set(metrics) == {*expected, *of_actor}
  for key, value in expected.items():
    np.testing.assert_allclose(
        metrics[key].numpy(), value, rtol=1e-4, err_msg=key)
  for key, loss in losses.items():
    np.testing.assert_allclose(
        loss.numpy(), expected[f'{key}_loss'], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize('name', ['defaults', 'pcont', 'pcont and onehot'])
def test_gradients(cases, name):
  """Along a direction of every variable, by central differences.

  The directions are the gradients themselves, so that there is something to
  compare, and as much at random, to find what they leave out.
  """
  case, (_, _, grads) = cases(name)
  rng = np.random.default_rng(2)
  values, stop = case.values(), Stop()
  case.ours(values, stop)
  for key, grad in grads.items():
    norm = np.linalg.norm(grad)
    random = rng.normal(size=grad.shape)
    direction = random / np.linalg.norm(random) + grad / (norm or 1)
    group, = (
        group for group, prefixes in GROUPS.items()
        if key.startswith(prefixes))

    def loss(step):
      stop.replay()
      moved = {**values, key: values[key] + step * direction}
      return case.ours(moved, stop)[f'{group}_loss']

    # Smaller steps drown in the rounding of a loss of 1e5.
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    np.testing.assert_allclose(
        slope, np.sum(grad * direction), rtol=0, atol=5e-4 * norm + 1e-6,
        err_msg=key)


def test_free_nats_hide_the_divergence(cases):
  """The prior's own layers learn from the divergence alone."""
  free, plain = cases('free nats')[1][2], cases('defaults')[1][2]
  for layer in ('img2', 'img3'):
    for part in ('kernel', 'bias'):
      name = f'dynamics/{layer}/{part}'
      assert not free[name].any()
      assert plain[name].any()


def test_nothing_is_learned_from_what_follows_an_end(cases):
  """If all states are ends, neither actor nor value has a loss."""
  case, (losses, _, _) = cases('pcont')
  ends = dict(case.data, discount=np.zeros_like(case.data['discount']))
  nothing, _ = case.agent.losses(dreamer.tensors(ends), tf.constant(SEED))
  assert nothing['actor'] == nothing['value'] == 0
  assert losses['actor'] != 0 and losses['value'] != 0
