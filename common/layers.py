"""The layers of every network: the one table of their sizes.

Networks are built from it (`models.py`), old checkpoints, which name nothing,
are read by it, and operations are counted by it. Functions return `{layer:
shape of its kernel}` in the order of old checkpoints: `[in, out]` of a dense
layer, `[k, k, in, out]` of a convolution, `[k, k, out, in]` of a transposed
one; both have stride 2 and no padding. Each layer has a bias of its outputs.
"""

import math
import re

# Flags that layers follow from.
SIZES = 'cnn_depth', 'deter_size', 'stoch_size', 'num_units'
# Number of hidden layers of each network of features.
HIDDEN = {'actor': 4, 'pcont': 3, 'reward': 2, 'value': 3}


def encoder(depth):
  """Images 64×64×3 to embeddings of `embed_size(depth)`."""
  return {
      'h1': (4, 4, 3, depth),
      'h2': (4, 4, depth, 2 * depth),
      'h3': (4, 4, 2 * depth, 4 * depth),
      'h4': (4, 4, 4 * depth, 8 * depth)}


def embed_size(depth):
  return 2 * 2 * 8 * depth


def decoder(features, depth):
  """Features to images 64×64×3: a dense layer, then from 1×1 pixel on."""
  return {
      'h1': (features, 32 * depth),
      'h2': (5, 5, 4 * depth, 32 * depth),
      'h3': (5, 5, 2 * depth, 4 * depth),
      'h4': (6, 6, depth, 2 * depth),
      'h5': (6, 6, 3, depth)}


def dynamics(stoch, deter, actions, embed):
  """Recurrent state-space model, whose layers have as many units as `deter`.

  The kernel of the GRU has three parts, and so has its recurrent kernel,
  `[deter, 3 deter]`; its bias has a row for either.
  """
  return {
      'gru': (deter, 3 * deter),
      'img1': (stoch + actions, deter),
      'img2': (deter, deter),
      'img3': (deter, 2 * stoch),
      'obs1': (deter + embed, deter),
      'obs2': (deter, 2 * stoch)}


def head(features, hidden, outputs=1):
  """Features to numbers; `hidden` are the units of the layers between."""
  sizes = [features, *hidden, outputs]
  names = [*(f'h{index}' for index in range(len(hidden))), 'hout']
  return dict(zip(names, zip(sizes, sizes[1:])))


def names(module):
  """Names of the layers of a module of an ordinary agent."""
  if module in HIDDEN:
    return list(head(1, [1] * HIDDEN[module]))
  return list({
      'encoder': encoder(1), 'decoder': decoder(1, 1),
      'dynamics': dynamics(1, 1, 1, 1)}[module])


# Modules in the order of old checkpoints.
MODULES = (
    'actor', 'decoder', 'dynamics', 'encoder', 'pcont', 'reward', 'value')


def operations(kernel, pixels=1):
  """Floating-point operations of one use: a product and a sum for each weight.

  A convolution uses its kernel at each of its `pixels`, as many as the
  smaller of its two images has.
  """
  return 2 * pixels * math.prod(kernel)


def module_of(variable):
  """The module of a variable, with the number of a source reward model."""
  return re.match(r'\w+(/source\d+)?', variable)[0]


def of_module(module, variables):
  """The part of `{name: variable or array}` that belongs to a module."""
  return {k: v for k, v in variables.items() if module_of(k) == module}


def hidden(variables):
  """Units of the hidden layers of a head, `{name: variable or array}`."""
  return [
      len(variables[name]) for name in sorted(variables)
      if re.search(r'/h\d+/bias$', name)]


def flags(variables):
  """Flags of the sizes that variables or arrays tell, `{flag: size}`."""
  shape = lambda name: tuple(variables[name].shape)
  found = {}
  if 'encoder/h1/kernel' in variables:
    found['cnn_depth'] = shape('encoder/h1/kernel')[-1]
  elif 'decoder/h5/kernel' in variables:
    found['cnn_depth'] = shape('decoder/h5/kernel')[-2]
  if 'dynamics/img3/bias' in variables:
    found['deter_size'] = shape('dynamics/img2/bias')[0]
    found['stoch_size'] = shape('dynamics/img3/bias')[0] // 2
  for module in HIDDEN:
    if f'{module}/h0/bias' in variables:
      found['num_units'] = shape(f'{module}/h0/bias')[0]
  return found
