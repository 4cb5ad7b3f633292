"""The networks: encoder, recurrent state-space model, decoder, heads, actor.

Each is a `Module`: layers with explicit names, all variables made at once,
with initial values that depend on the seed and the variable's name alone.
"""

import re
import zlib

import numpy as np

from common import convolutions, layers
from common.backend import keras, tf, tfd
import tools


# Activations that Keras does not know by the value of the flag. The slope is
# 0.2, that of tf.nn.leaky_relu, which the public agent takes.
ACTIVATIONS = {'leaky_relu': tf.nn.leaky_relu}


class Module:
  """Named layers whose variables are known as `module/layer/variable`."""

  def __init__(self, name, seed=0, dtype='float32'):
    self.name = name
    self._seed = seed
    self._dtype = keras.mixed_precision.Policy(dtype)
    self._layers = {}

  @property
  def variables(self):
    """`{name: variable}`, for example `reward/hout/bias`."""
    return {
        f'{self.name}/{layer}/{re.split("[/:]", variable.name)[-2]}': variable
        for layer, made in self._layers.items()
        for variable in made.weights}

  def _add(self, name, kind, input_shape, *args, **kwargs):
    """Makes a layer and its variables."""
    path = f'{self.name}/{name}'
    if 'activation' in kwargs:
      act = kwargs['activation']
      kwargs['activation'] = ACTIVATIONS.get(act, act)
    layer = kind(
        *args, name=path, dtype=self._dtype,
        kernel_initializer=self._initializer(
            keras.initializers.GlorotUniform, f'{path}/kernel'), **kwargs)
    layer.build(input_shape)
    layer.built = True
    self._layers[name] = layer
    return layer

  def _dense(self, name, kernel, act=None):
    """A dense layer whose kernel has the shape `[in, out]`."""
    inputs, units = kernel
    return self._add(name, Dense, [None, inputs], units, activation=act)

  def _initializer(self, kind, path):
    return kind(seed=zlib.crc32(f'{self._seed}/{path}'.encode()))


class Encoder(Module):
  """Images [..., 64, 64, 3] in -0.5 to 0.5 to embeddings [..., 32 · depth]."""

  def __init__(self, depth=32, act='relu', name='encoder', **kwargs):
    super().__init__(name, **kwargs)
    self.size = layers.embed_size(depth)
    for layer, (size, _, inputs, outputs) in layers.encoder(depth).items():
      self._add(
          layer, Conv, [None, None, None, inputs], outputs, size, strides=2,
          activation=act)

  def __call__(self, obs):
    image = obs['image']
    x = tf.reshape(image, tf.concat([[-1], tf.shape(image)[-3:]], 0))
    x = tf.ensure_shape(x, [None, 64, 64, 3])
    for layer in self._layers.values():
      x = layer(x)
    shape = tf.concat([tf.shape(image)[:-3], [self.size]], 0)
    return tf.reshape(x, shape)


class Decoder(Module):
  """Features [..., F] to a Normal over images [..., 64, 64, 3]."""

  def __init__(self, features, depth=32, act='relu', name='decoder', **kwargs):
    super().__init__(name, **kwargs)
    kernels = layers.decoder(features, depth)
    self._size = kernels['h1'][1]
    self._dense('h1', kernels.pop('h1'))
    for layer, (size, _, outputs, inputs) in kernels.items():
      self._add(
          layer, Deconv, [None, None, None, inputs], outputs, size, strides=2,
          activation=act if layer != 'h5' else None)

  def __call__(self, features):
    first, *others = self._layers.values()
    x = tf.reshape(first(features), [-1, 1, 1, self._size])
    for layer in others:
      x = layer(x)
    shape = tf.concat([tf.shape(features)[:-1], [64, 64, 3]], 0)
    return tools.UnitNormal(tf.reshape(x, shape), events=3)


class Dense(keras.layers.Dense):
  """Dense layer whose bias has a right gradient in half precision too."""

  def call(self, x):
    x = tf.cast(x, self.compute_dtype)
    # As rows all the way: so product, bias and activation are one operation.
    rows = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), self.kernel)
    rows = self.activation(convolutions.add_bias(rows, self.bias))
    return tf.reshape(rows, tf.concat([tf.shape(x)[:-1], [self.units]], 0))


class Conv(keras.layers.Conv2D):
  """Convolution with stride 2 without padding."""

  def call(self, x):
    return self.activation(convolutions.conv(x, self.kernel, self.bias))


class Deconv(keras.layers.Conv2DTranspose):
  """Transposed convolution with stride 2 without padding."""

  def call(self, x):
    return self.activation(convolutions.deconv(x, self.kernel, self.bias))


class RSSM(Module):
  """Recurrent state-space model (Hafner et al. 2019, PlaNet).

  A state is a dict of `mean`, `std`, `stoch` [..., S] and `deter` [..., D].
  `noise` [..., S] arguments stand for the standard normal draw of `stoch`.
  """

  def __init__(
      self, embed, actions, stoch=30, deter=200, act='elu', name='dynamics',
      **kwargs):
    super().__init__(name, **kwargs)
    self._stoch, self._deter = stoch, deter
    self.feature_size = stoch + deter
    kernels = layers.dynamics(stoch, deter, actions, embed)
    self._cell = self._add(
        'gru', keras.layers.GRUCell, [None, kernels['img1'][1]], deter,
        recurrent_initializer=self._initializer(
            keras.initializers.Orthogonal,
            f'{name}/gru/recurrent_kernel'))
    self._img1 = self._dense('img1', kernels['img1'], act)
    self._img2 = self._dense('img2', kernels['img2'], act)
    self._img3 = self._dense('img3', kernels['img3'])
    self._obs1 = self._dense('obs1', kernels['obs1'], act)
    self._obs2 = self._dense('obs2', kernels['obs2'])

  def initial(self, batch_size):
    """The state of zeros before an episode."""
    return {
        name: tf.zeros([batch_size, size]) for name, size in (
            ('mean', self._stoch), ('std', self._stoch),
            ('stoch', self._stoch), ('deter', self._deter))}

  def observe(self, embed, action, state=None, first=None, noise=None):
    """Filters sequences.

    Args:
      embed: `[B, T, E]`.
      action: `[B, T, A]`, each the action that led to the observation.
      state: the state before; zeros by default.
      first: bool `[B, T]`, where a new episode begins; the state and action
        before it are replaced by zeros.
      noise: two of `[B, T, S]`, for the posterior and the prior.

    Returns:
      Posterior and prior states, `[B, T, ...]`.
    """
    embed, action = _swap(embed), _swap(action)
    shape = tf.concat([tf.shape(action)[:2], [self._stoch]], 0)
    noise = [
        tf.random.normal(shape) if noise is None else _swap(noise[index])
        for index in range(2)]
    keep = tf.ones(shape[:2]) if first is None else (
        1 - tf.cast(_swap(first), tf.float32))
    if state is None:
      state = self.initial(shape[1])

    def step(prev, inputs):
      embed, action, *constant = inputs
      # Nobody asks for their gradients, but the scan would add them up.
      keep, noise = [tf.stop_gradient(part) for part in constant]
      prev = {name: prev[name] * keep for name in ('stoch', 'deter')}
      return self.filter(prev, action * keep, embed, noise)

    post = tf.scan(step, (embed, action, keep[..., None], noise[0]), state)
    # The prior does not feed back, so all steps are computed together.
    prior = self._prior(post['deter'], noise[1])
    return tf.nest.map_structure(_swap, (post, prior))

  def imagine(self, action, state=None, noise=None):
    """Prior states `[B, T, ...]` under actions `[B, T, A]`."""
    action = _swap(action)
    shape = tf.concat([tf.shape(action)[:2], [self._stoch]], 0)
    noise = tf.random.normal(shape) if noise is None else _swap(noise)
    if state is None:
      state = self.initial(shape[1])
    prior = tf.scan(
        lambda prev, inputs: self.img_step(prev, *inputs), (action, noise),
        state)
    return tf.nest.map_structure(_swap, prior)

  def obs_step(self, prev_state, prev_action, embed, noise=None):
    """Posterior and prior `[B, ...]` of one step with an observation."""
    prior = self.img_step(prev_state, prev_action)
    return self._posterior(prior['deter'], embed, noise), prior

  def filter(self, prev_state, prev_action, embed, noise=None):
    """Posterior `[B, ...]` of one step with an observation, without prior."""
    deter = self._recur(
        prev_state['stoch'], prev_state['deter'], prev_action)
    return self._posterior(deter, embed, noise)

  def img_step(self, prev_state, prev_action, noise=None):
    """Prior `[B, ...]` of one step without an observation."""
    deter = self._recur(prev_state['stoch'], prev_state['deter'], prev_action)
    return self._prior(deter, noise)

  def get_feat(self, state):
    """Features `[..., S + D]`, what the heads and the actor see."""
    return tf.concat([state['stoch'], state['deter']], -1)

  def from_feat(self, feat):
    """The `stoch` and `deter` that features are made of."""
    stoch, deter = tf.split(feat, [self._stoch, self._deter], -1)
    return {'stoch': stoch, 'deter': deter}

  def get_dist(self, state):
    """Distribution of `stoch` with one event per state."""
    return tfd.Independent(tfd.Normal(state['mean'], state['std']), 1)

  def _recur(self, stoch, deter, action):
    x = self._img1(tf.concat([stoch, action], -1))
    deter, _ = self._cell(x, [tf.cast(deter, x.dtype)])
    return tf.cast(deter, tf.float32)

  def _prior(self, deter, noise):
    return self._state(self._img3(self._img2(deter)), deter, noise)

  def _posterior(self, deter, embed, noise):
    x = tf.concat([deter, tf.cast(embed, deter.dtype)], -1)
    return self._state(self._obs2(self._obs1(x)), deter, noise)

  def _state(self, statistics, deter, noise):
    mean, std = tf.split(tf.cast(statistics, tf.float32), 2, -1)
    std = tf.nn.softplus(std) + 0.1
    if noise is None:
      noise = tf.random.normal(tf.shape(mean))
    return {
        'mean': mean, 'std': std, 'stoch': mean + std * noise, 'deter': deter}


class DenseHead(Module):
  """Hidden dense layers and a scalar distribution of features [..., F].

  `hidden` has the size of each hidden layer; `dist` is `normal` (standard
  deviation 1) or `binary`.
  """

  def __init__(
      self, name, inputs, hidden, act='elu', dist='normal', **kwargs):
    super().__init__(name, **kwargs)
    self._dist = dist
    for layer, kernel in layers.head(inputs, hidden).items():
      self._dense(layer, kernel, act if layer != 'hout' else None)

  def __call__(self, features):
    x = features
    for layer in self._layers.values():
      x = layer(x)
    x = tf.cast(x[..., 0], tf.float32)
    if self._dist == 'binary':
      return tfd.Independent(tfd.Bernoulli(logits=x, dtype=tf.float32), 0)
    return tools.UnitNormal(x)


class MetaReward(DenseHead):
  """Reward of features and of what other tasks' reward models say of them.

  A dense network on [features, r̂_1 … r̂_N] (Sasso et al. 2023).
  Gradients pass through the sources, named `source1` and so on, to the
  features. Whoever trains this keeps the sources' own variables as they are.
  """

  def __init__(self, name, inputs, hidden, sources, act='elu', **kwargs):
    """`sources`: for each the sizes of its hidden layers, `[[400, 400], …]`."""
    super().__init__(name, inputs + len(sources), hidden, act, **kwargs)
    self.sources = [
        DenseHead(f'{name}/source{number}', inputs, sizes, act, **kwargs)
        for number, sizes in enumerate(sources, 1)]

  @property
  def variables(self):
    variables = super().variables
    for source in self.sources:
      variables.update(source.variables)
    return variables

  def __call__(self, features):
    predictions = [source(features).mean() for source in self.sources]
    return super().__call__(tf.concat(
        [features, tf.stack(predictions, -1)], -1))


class Actor(Module):
  """Features [..., F] to a distribution of actions [..., A].

  `dist` is `tanh_normal` or `onehot`.
  """

  def __init__(
      self, features, actions, hidden, act='elu', dist='tanh_normal',
      init_std=5.0, min_std=1e-4, mean_scale=5.0, name='actor', **kwargs):
    super().__init__(name, **kwargs)
    self._dist = tools.OneHot if dist == 'onehot' else tools.TanhNormal
    self.actions = actions
    # Draws that the distribution's mode is chosen from.
    self.samples = self._dist.samples
    self._min_std, self._mean_scale = min_std, mean_scale
    # The softplus of this is init_std.
    self._raw_init_std = np.log(np.exp(init_std) - 1)
    outputs = actions if self._dist is tools.OneHot else 2 * actions
    for layer, kernel in layers.head(features, hidden, outputs).items():
      self._dense(layer, kernel, act if layer != 'hout' else None)

  def __call__(self, features):
    x = features
    for layer in self._layers.values():
      x = layer(x)
    x = tf.cast(x, tf.float32)
    if self._dist is tools.OneHot:
      return self._dist(x)
    mean, std = tf.split(x, 2, -1)
    mean = self._mean_scale * tf.tanh(mean / self._mean_scale)
    std = tf.nn.softplus(std + self._raw_init_std) + self._min_std
    return self._dist(mean, std)


def _swap(x):
  """Exchanges batch and time axes."""
  x = tf.convert_to_tensor(x)
  return tf.transpose(x, [1, 0] + list(range(2, x.shape.rank)))
