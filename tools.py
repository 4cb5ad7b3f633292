"""TensorFlow pieces of the algorithm that are not networks.

Distributions, returns, noise, shapes, the optimizer, running means and clocks.
"""

import re

import numpy as np

from common.backend import keras, tf


class UnitNormal:
  """Normal with standard deviation 1 whose last `events` axes are one event."""

  def __init__(self, mean, events=0):
    self._mean = tf.cast(mean, tf.float32)
    self._axes = list(range(-events, 0))

  def mean(self):
    return self._mean

  mode = mean

  def sample(self):
    return self._mean + tf.random.normal(tf.shape(self._mean))

  def log_prob(self, value):
    # Not tfd.Normal: on images its general form costs several more passes
    # over 100 MB each.
    error = tf.math.squared_difference(tf.cast(value, tf.float32), self._mean)
    size = 1
    if self._axes:
      error = tf.reduce_sum(error, self._axes)
      size = np.prod(self._mean.shape[-len(self._axes):])
    return -0.5 * error - 0.5 * np.log(2 * np.pi) * size


class TanhNormal:
  """Diagonal Normal pushed through tanh, so that samples lie in (-1, 1).

  `mean` and `std` [..., A] are those before tanh. Entropy and mode have no
  closed form; both come from 100 samples.
  """

  samples = 100

  def __init__(self, mean, std):
    self.mean_before, self.std_before = mean, std

  def sample(self, noise=None):
    """An action [..., A]; `noise` [..., A] stands for the Normal's draw."""
    if noise is None:
      noise = tf.random.normal(tf.shape(self.mean_before))
    return tf.tanh(self.mean_before + self.std_before * noise)

  def log_prob(self, action):
    # The bounds themselves, which float32 rounds to, lie at infinity.
    limit = 0.99999997
    return self._log_prob_before(
        tf.atanh(tf.clip_by_value(action, -limit, limit)))

  @property
  def shape(self):
    """Shape [..., A] of an action."""
    return self.mean_before.shape

  def entropy(self, noise=None):
    return -tf.reduce_mean(self._log_prob_before(self._draws(noise)), 0)

  def sampled_entropy(self, noise):
    """The entropy [...] from one draw, which `noise` [..., A] stands for.

    The Normal's part is exact, the draw tells what tanh takes off.
    """
    draw = self.mean_before + self.std_before * noise
    normal = tf.math.log(self.std_before) + 0.5 * np.log(2 * np.pi * np.e)
    return tf.reduce_sum(normal + _log_slope(draw), -1)

  def mode(self, noise=None):
    """The likeliest of the samples; `noise` [100, ..., A] as in `sample`."""
    draws = self._draws(noise)
    best = tf.argmax(self._log_prob_before(draws), 0)
    best = tf.one_hot(best, self.samples, axis=0, dtype=draws.dtype)
    return tf.tanh(tf.reduce_sum(draws * best[..., None], 0))

  def _draws(self, noise):
    if noise is None:
      shape = tf.shape(self.mean_before)
      noise = tf.random.normal(tf.concat([[self.samples], shape], 0))
    return self.mean_before + self.std_before * noise

  def _log_prob_before(self, draw):
    """Log-density of tanh(draw): the Normal's minus log |d tanh / d draw|."""
    scaled = (draw - self.mean_before) / self.std_before
    normal = -0.5 * tf.square(scaled) - tf.math.log(
        self.std_before) - 0.5 * np.log(2 * np.pi)
    return tf.reduce_sum(normal - _log_slope(draw), -1)


def _log_slope(x):
  """log of the derivative of tanh at x."""
  return 2 * (np.log(2) - x - tf.nn.softplus(-2 * x))


class OneHot:
  """Categorical over one-hot vectors with straight-through gradients."""

  samples = 1

  def __init__(self, logits):
    self._logits = tf.nn.log_softmax(logits)
    self._probs = tf.exp(self._logits)

  def sample(self, noise=None):
    """A one-hot action [..., A]; `noise` [..., A] is standard normal."""
    if noise is None:
      noise = tf.random.normal(tf.shape(self._logits))
    # Gumbel noise turns argmax into a draw; a normal number's cumulative
    # probability is the uniform number that Gumbel noise is made of.
    uniform = 0.5 * tf.math.erfc(-noise / np.sqrt(2))
    uniform = tf.clip_by_value(uniform, 1e-7, 1 - 1e-7)
    return self._straight(self._logits - tf.math.log(-tf.math.log(uniform)))

  def mode(self, noise=None):
    del noise  # Needs none; taken so that all actors are called alike.
    return self._straight(self._logits)

  def log_prob(self, action):
    return tf.reduce_sum(self._logits * action, -1)

  @property
  def shape(self):
    """Shape [..., A] of an action."""
    return self._logits.shape

  def entropy(self, noise=None):
    del noise
    return -tf.reduce_sum(self._probs * self._logits, -1)

  sampled_entropy = entropy

  def _straight(self, scores):
    hard = tf.one_hot(tf.argmax(scores, -1), scores.shape[-1])
    return tf.stop_gradient(hard - self._probs) + self._probs


def lambda_return(reward, value, pcont, bootstrap, lambda_, axis):
  """TD(λ) returns (Hafner et al. 2020, equation 6).

  Args:
    reward, value, pcont: `[..., H, ...]` with time at `axis`; `pcont` may also
      be a constant discount.
    bootstrap: value of the state after the last, without the time axis.
    lambda_: 0 gives one-step targets, 1 the discounted sum.

  Returns:
    Returns of the shape of `reward`.
  """
  if not tf.is_tensor(pcont) and np.ndim(pcont) == 0:
    pcont = pcont * tf.ones_like(reward)
  order = list(range(len(reward.shape)))
  order.insert(0, order.pop(axis))
  reward, value, pcont = (
      tf.transpose(x, order) for x in (reward, value, pcont))
  following = tf.concat([value[1:], bootstrap[None]], 0)
  inputs = reward + pcont * following * (1 - lambda_)
  returns, last = [], bootstrap
  for step in reversed(range(reward.shape[0])):
    last = inputs[step] + pcont[step] * lambda_ * last
    returns.append(last)
  return tf.transpose(tf.stack(returns[::-1]), np.argsort(order))


class ReturnRange:
  """Running 5 and 95 percent points of returns (DreamerV3, arXiv 2301.04104).

  Returns divided by their range have the same scale in every task.
  """

  rate = 0.01

  def __init__(self):
    self._points = tf.Variable([0.0, 0.0], trainable=False)

  @property
  def spread(self):
    """Distance between the points, 1 at least: noise is not enlarged."""
    return tf.maximum(self._points[1] - self._points[0], 1.0)

  def update(self, low, high):
    """Moves the points towards those of the returns of an update."""
    now = tf.stack([low, high])
    self._points.assign_add(tf.where(
        tf.math.is_finite(now), self.rate * (now - self._points), 0.0))

  def state(self):
    return self._points.numpy()

  def restore(self, state):
    self._points.assign(state)


def percentile(x, share, axis=0):
  """The number below which a share of the numbers in a tensor lie.

  Replicas join their tensors along `axis`.
  """
  context = tf.distribute.get_replica_context()
  x = tf.stop_gradient(x)
  if context.num_replicas_in_sync > 1:
    x = context.all_gather(x, axis)
  ordered = tf.sort(tf.reshape(x, [-1]))
  last = tf.cast(tf.size(ordered) - 1, tf.float32)
  return ordered[tf.cast(share * last, tf.int32)]


def noise(shape, seed, axis):
  """Standard normal numbers; with several replicas, this one's share.

  All replicas draw what a single one would draw for the joined batch, and each
  takes its part along `axis`: the number of devices changes no result.
  """
  context = tf.distribute.get_replica_context()
  if context.num_replicas_in_sync == 1:
    return normal(shape, seed)
  joined, begin = list(shape), [0] * len(shape)
  joined[axis] *= context.num_replicas_in_sync
  begin[axis] = context.replica_id_in_sync_group * shape[axis]
  return tf.slice(normal(joined, seed), begin, shape)


def normal(shape, seed):
  """Standard normal numbers that depend on the seed alone.

  Made of random bits, since XLA makes other normal numbers of a seed.
  """
  bits = tf.random.stateless_uniform(
      shape, seed, None, None, tf.uint32, alg='philox')
  # The middles of 2 ** 23 equal parts of -1 to 1, all exact in float32.
  parts = tf.cast(tf.bitwise.right_shift(bits, 9), tf.float32)
  uniform = (parts + 0.5) * 2.0 ** -22 - 1
  return np.float32(np.sqrt(2)) * tf.math.erfinv(uniform)


def replica_mean(value):
  """Mean of a scalar over all replicas, without gradient."""
  context = tf.distribute.get_replica_context()
  return context.all_reduce(
      tf.distribute.ReduceOp.MEAN, tf.stop_gradient(value))


def split_seed(seed, count):
  """Makes `count` independent seeds of one; a seed is an int32 pair [2]."""
  return tf.unstack(tf.random.split(seed, count, alg='philox'))


def assert_shapes(**tensors):
  """Checks shapes while a function is traced, so that it costs nothing later.

  For example `assert_shapes(image=(image, 'B T 64 64 3'), reward=(reward, 'B
  T'))`: an axis is a number, or a letter that stands for one number everywhere.

  Raises:
    ValueError: A tensor has another shape; names it and shows the shape.
  """
  known = {}
  for name, (tensor, axes) in tensors.items():
    axes, shape = axes.split(), list(tensor.shape)
    fits = len(axes) == len(shape)
    for axis, size in zip(axes, shape):
      if size is not None:
        fits &= size == (
            int(axis) if axis.isdigit() else known.setdefault(axis, size))
    if not fits:
      where = ', '.join(
          f'{axis} = {known[axis]}' for axis in axes if axis in known)
      raise ValueError(
          f'{name} has shape {shape}, expected [{", ".join(axes)}]' +
          f' with {where}' * bool(where))


class Generators:
  """Random numbers for acting, a generator for every call.

  So what is drawn depends on the number of the call alone. `calls` counts them
  in training (True) and in evaluation (False); `worker` tells apart the copies
  of an agent that act on several machines.
  """

  def __init__(self):
    self.calls = {True: 0, False: 0}
    self.worker = 0

  def next(self, seed, training):
    """The generator of the next call."""
    self.calls[training] += 1
    return np.random.default_rng([
        seed, int(training), self.worker, self.calls[training]])

  def state(self):
    return [self.calls[False], self.calls[True]]

  def restore(self, state):
    self.calls = dict(zip((False, True), state))


class GraphTape:
  """Has the interface of a persistent tape, for what is computed in a graph.

  A graph is its own record. Under a persistent tape TensorFlow builds the
  gradients of each scan several times, in case they are differentiated as well.
  """

  def __enter__(self):
    return self

  def __exit__(self, *error):
    pass

  def gradient(self, target, sources, output_gradients):
    """Gradients of a scalar [] by variables, None where it has none."""
    return tf.gradients(target, sources, output_gradients)


def gradient_tape():
  """A context; its `gradient` may be called more than once afterwards."""
  return (
      tf.GradientTape(persistent=True) if tf.executing_eagerly()
      else GraphTape())


def adam(rate):
  """Adam of which XLA compiles nothing by itself.

  Keras would have it compile the step of each variable wherever there is a GPU,
  also where XLA is off or does not work.
  """
  return keras.optimizers.Adam(rate, jit_compile=False)


class Optimizer:
  """Adam on named variables: clipping, weight decay, loss scaling, skipping.

  Weight decay multiplies matching variables by `1 - decay` at each update.
  With `scaled`, the loss is scaled for float16: halved when a gradient
  overflows, doubled after 2,000 updates without.
  """

  def __init__(
      self, name, variables, rate, clip=None, decay=0.0, pattern='.*',
      scaled=False):
    self.name, self._rate = name, rate
    self._variables = dict(variables)
    self._clip, self._decay = clip, decay
    self._decayed = [
        variable for key, variable in self._variables.items()
        if decay and re.search(pattern, key)]
    self._adam = adam(rate)
    self._adam.build(list(self._variables.values()))
    self._scaled = scaled
    self._scale = tf.Variable(2.0 ** 15 if scaled else 1.0, trainable=False)
    self._good = tf.Variable(0, trainable=False, dtype=tf.int64)
    self._skipped = tf.Variable(0, trainable=False, dtype=tf.int64)
    self._in_a_row = tf.Variable(0, trainable=False, dtype=tf.int64)

  def gradients(self, tape, loss):
    """Clipped gradients of the mean loss over replicas, and their norm.

    The norm is not finite if the loss is not: such an update is not to be
    applied, although the gradients of an infinite loss can be finite.
    """
    grads = tape.gradient(
        loss, list(self._variables.values()), output_gradients=self._scale)
    missing = [
        name for name, grad in zip(self._variables, grads) if grad is None]
    if missing:
      raise ValueError(
          f'the {self.name} loss does not depend on {", ".join(missing)}')
    context = tf.distribute.get_replica_context()
    loss, grads = context.all_reduce(
        tf.distribute.ReduceOp.MEAN, (loss, grads))
    grads = [grad / self._scale for grad in grads]
    norm = tf.linalg.global_norm(grads)
    norm = tf.where(tf.math.is_finite(loss), norm, loss)
    if self._clip:
      grads, _ = tf.clip_by_global_norm(grads, self._clip, norm)
    return grads, norm

  def apply(self, grads):
    """One Adam step."""
    for variable in self._decayed:
      variable.assign((1 - self._decay) * variable)
    self._adam.apply_gradients(
        zip(grads, self._variables.values()),
        skip_gradients_aggregation=True)

  def step(self, grads, norm, strategy):
    """One Adam step on all replicas, or none where the norm is not finite.

    Gradients are averaged over replicas already: all make the same step.
    """
    finite = tf.math.is_finite(norm)
    tf.cond(
        finite, lambda: strategy.run(self.apply, (grads,)), lambda: None)
    self.count(finite)

  def count(self, finite):
    """Keeps the books of an update that was applied, or skipped."""
    skip = tf.cast(~finite, tf.int64)
    self._skipped.assign_add(skip)
    self._in_a_row.assign((self._in_a_row + 1) * skip)
    if self._scaled:
      grown = self._good + 1 >= 2000
      self._good.assign(
          tf.where(finite & ~grown, self._good + 1, tf.zeros_like(self._good)))
      factor = tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
      self._scale.assign(tf.clip_by_value(self._scale * factor, 1.0, 2.0 ** 24))

  def scale_rate(self, factor):
    """Makes the learning rate `factor` times the one that was given."""
    self._adam.learning_rate.assign(factor * self._rate)

  @property
  def names(self):
    """Names of the variables, in the order of the gradients."""
    return list(self._variables)

  @property
  def skipped(self):
    """Number of updates that were skipped so far."""
    return int(self._skipped.numpy())

  @property
  def stuck(self):
    """Whether so many updates in a row were skipped that none will follow.

    Scaled losses overflow now and then, and from the largest scale to the
    smallest it takes 24 updates.
    """
    return int(self._in_a_row.numpy()) >= (200 if self._scaled else 20)

  def state(self):
    """Everything that the next update depends on, as plain containers."""
    return {
        'iterations': self._adam.iterations.numpy(),
        'scaled': self._scaled,
        'scale': self._scale.numpy(),
        'good': self._good.numpy(),
        'skipped': self._skipped.numpy(),
        'in_a_row': self._in_a_row.numpy(),
        'm': _arrays(self._variables, self._adam._momentums),
        'v': _arrays(self._variables, self._adam._velocities)}

  def restore(self, state):
    self._adam.iterations.assign(state['iterations'])
    # Older versions did not save whether there was a scale.
    scaled = state.get('scaled', state['scale'] != 1 or state['good'] > 0)
    if scaled and self._scaled:  # Else the precision is another one now.
      self._scale.assign(state['scale'])
      self._good.assign(state['good'])
    self._skipped.assign(state['skipped'])
    self._in_a_row.assign(state['in_a_row'])
    for slots, values in (
        (self._adam._momentums, state['m']),
        (self._adam._velocities, state['v'])):
      for name, slot in zip(self._variables, slots):
        if name in values:  # What was frozen before has none.
          slot.assign(values[name])


def _arrays(names, variables):
  return {name: variable.numpy() for name, variable in zip(names, variables)}


class Means:
  """Means of named numbers between two readings."""

  def __init__(self):
    self._sums, self._counts = {}, {}

  def add(self, values):
    """Adds one number per name; tensors stay on their device."""
    for name, value in values.items():
      self._sums[name] = self._sums.get(name, 0.0) + value
      self._counts[name] = self._counts.get(name, 0) + 1

  def read(self):
    """The means since the last reading, as floats."""
    means = {
        name: float(total) / self._counts[name]
        for name, total in self._sums.items()}
    self._sums, self._counts = {}, {}
    return means

  def state(self):
    return {
        'sums': {name: float(x) for name, x in self._sums.items()},
        'counts': dict(self._counts)}

  def restore(self, state):
    # As float32 because a running mean of tensors is summed in it.
    self._sums = {k: np.float32(v) for k, v in state['sums'].items()}
    self._counts = dict(state['counts'])


class Every:
  """Counts the periods of `every` steps that have passed."""

  def __init__(self, every):
    self._every = every
    self.last = None

  def __call__(self, step):
    """How many ended since the last call; the first call counts as one."""
    if self.last is None:
      self.last = step
      return 1
    periods = max(0, (step - self.last) // self._every)
    self.last += periods * self._every
    return periods
