"""The files of the public scripts: arrays by position, without names.

Dropping the scalars (step, metric sums), they are the kernels and biases of
the layers of each module, in the order of `common/layers.py`. A module file
has those of one module. All sizes follow from the shapes.
"""

import numpy as np

from common import layers
from data import pickles


def agent(data):
  """A whole checkpoint without its format, from the content of an old file.

  Its script is None. Raises `pickles.Refused` if the arrays fit no agent.
  """
  arrays = _arrays(data)
  if len(arrays) not in _AGENTS:
    raise pickles.Refused(
        f'is not an old checkpoint: it holds {len(arrays)} arrays, '
        f'an agent has {" or ".join(map(str, _AGENTS))}')
  modules = _order(arrays)
  variables, sizes = {}, {}
  for name in modules:
    count = len(names(name))
    found, measured = _named(name, arrays[:count])
    arrays = arrays[count:]
    variables.update(found)
    for size, value in measured.items():
      if sizes.setdefault(size, value) != value:
        raise pickles.Refused(
            f'is not an old checkpoint: {size} is {sizes[size]} in its other '
            f'modules and {value} in its {name}')
  return {
      'variables': variables,
      'config': _config(sizes, 'pcont' in modules),
      'action_dim': sizes['action_dim'], 'script': None, 'step': _step(data)}


def module(data, name):
  """Variables by name, from the old file of a module or of a whole agent."""
  arrays = _arrays(data)
  if len(arrays) in _AGENTS:
    return agent(data)['variables']
  if len(arrays) != len(names(name)):
    raise pickles.Refused(
        f'is not an old {name} module: it holds {len(arrays)} arrays, '
        f'such a module has {len(names(name))}')
  return _named(name, arrays)[0]


def _arrays(data):
  """The variables of an old file; its scalars are the step and metric sums."""
  for item in data:
    if not isinstance(item, (int, float, np.generic, np.ndarray)):
      raise pickles.Refused(
          f'is not an old checkpoint: it holds a {type(item).__name__} '
          'between its arrays')
  return [item for item in data if np.ndim(item)]


def _step(data):
  scalars = [np.asarray(item) for item in data if not np.ndim(item)]
  counts = [item for item in scalars if item.dtype.kind in 'iu']
  return int(counts[0]) if counts else 0


def names(module):
  """Names of the variables of a module, in the order of old files."""
  kernels = {'gru': ('kernel', 'recurrent_kernel')}
  return [
      f'{layer}/{variable}' for layer in layers.names(module)
      for variable in (*kernels.get(layer, ('kernel',)), 'bias')]


_AGENTS = {
    sum(len(names(name)) for name in modules): modules
    for modules in (
        [name for name in layers.MODULES if name != 'pcont'],
        [*layers.MODULES])}


def _order(arrays):
  """The modules of an old checkpoint.

  By name pcont comes before the reward, but in files that were written after
  the optimizer was made it follows: one hidden layer more tells them apart.
  """
  modules = _AGENTS[len(arrays)]
  start = sum(len(names(name)) for name in modules[:4])
  ends_reward = arrays[start + len(names('reward')) - 1].shape == (1,)
  if 'pcont' in modules and ends_reward:
    return [*modules[:4], 'reward', 'pcont', 'value']
  return modules


def _named(name, arrays):
  """The variables of a module and its sizes, if every shape fits them."""
  arrays = dict(zip(names(name), arrays))
  sizes = _measure(name, arrays)
  expected = shapes(name, sizes)
  for key, array in arrays.items():
    if array.shape != expected[key] or array.dtype.kind != 'f':
      raise pickles.Refused(
          f'is no old checkpoint or {name} module: {name}/{key} would be '
          f'{array.dtype}{[*array.shape]}, and float{[*expected[key]]} goes '
          'with the other arrays')
  named = {
      f'{name}/{key}': array.astype(np.float32)
      for key, array in arrays.items()}
  return named, sizes


def _measure(name, arrays):
  """The sizes that shape a module, each read off one of its arrays."""
  def rows(key):
    return arrays[key].shape[0]
  def columns(key):
    return arrays[key].shape[-1]
  if name == 'encoder':
    return {'cnn_depth': columns('h1/kernel')}
  if name == 'decoder':
    return {'features': rows('h1/kernel'), 'cnn_depth': columns('h5/kernel')}
  if name == 'dynamics':
    deter = rows('gru/recurrent_kernel')
    stoch = rows('img3/bias') // 2
    return {
        'deter_size': deter, 'stoch_size': stoch, 'features': deter + stoch,
        'cnn_depth': (rows('obs1/kernel') - deter) // layers.embed_size(1),
        'action_dim': rows('img1/kernel') - stoch}
  sizes = {'features': rows('h0/kernel'), 'num_units': columns('h0/kernel')}
  if name == 'actor':
    sizes['action_outputs'] = columns('hout/kernel')
  return sizes


def shapes(name, sizes):
  """The shape of each variable of a module of the given sizes."""
  found = {}
  for layer, kernel in _kernels(name, sizes).items():
    transposed = name == 'decoder' and len(kernel) == 4
    found[f'{layer}/kernel'] = found[f'{layer}/recurrent_kernel'] = kernel
    found[f'{layer}/bias'] = (kernel[-2] if transposed else kernel[-1],)
  if name == 'dynamics':
    found['gru/bias'] = (2, *found['gru/bias'])
  return found


def _kernels(name, sizes):
  if name == 'encoder':
    return layers.encoder(sizes['cnn_depth'])
  if name == 'decoder':
    return layers.decoder(sizes['features'], sizes['cnn_depth'])
  if name == 'dynamics':
    return layers.dynamics(
        sizes['stoch_size'], sizes['deter_size'], sizes['action_dim'],
        layers.embed_size(sizes['cnn_depth']))
  outputs = sizes['action_outputs'] if name == 'actor' else 1
  return layers.head(
      sizes['features'], [sizes['num_units']] * layers.HIDDEN[name], outputs)


def _config(sizes, pcont):
  actions, outputs = sizes['action_dim'], sizes['action_outputs']
  if outputs not in (actions, 2 * actions):
    raise pickles.Refused(
        f'is not an old checkpoint: its actor has {outputs} outputs for '
        f'{actions} actions')
  return {
      **{key: sizes[key] for key in layers.SIZES}, 'pcont': pcont,
      'action_dist': 'onehot' if outputs == actions else 'tanh_normal'}
