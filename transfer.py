"""Shared by the transfer scripts: tasks, files of modules, the report."""

import hashlib
import math
import pathlib

import numpy as np

from common import layers, options, terminal
from data import checkpoints

STORED = pathlib.Path('stored_meta')


def numbered(config, name):
  """The values given for `name1`, `name2`, …, which leave no gap."""
  values = [getattr(config, f'{name}{i + 1}') for i in range(options.NUMBERED)]
  count = sum(map(bool, values))
  if not all(values[:count]):
    raise terminal.UserError(
        f'--{name}{values.index("") + 1} is missing: {name}s are numbered '
        'without gaps.')
  return values[:count]


def tasks(config):
  """The tasks of a run, each of which gets an environment."""
  names = numbered(config, 'task')
  if config.task or not names:
    raise terminal.UserError('name the tasks with --task1, --task2 and so on.')
  for name in names:
    if names.count(name) > 1:
      raise terminal.UserError(f'{name} is given as two tasks: name it once.')
  if config.envs not in (0, len(names)):
    raise terminal.UserError(
        f'--envs {config.envs} does not fit the number of tasks, {len(names)}: '
        f'each has one environment, so give --envs {len(names)} or leave it '
        'out.')
  config.envs = len(names)
  return names


# Files of pickled variables.

def find_module(module, config):
  """The file that a flag names, or one in or above the log directory."""
  if getattr(config, module):
    return file_of(getattr(config, module), module)
  for folder in (config.logdir, config.logdir.absolute().parent):
    if (folder / f'{module}.pkl').exists():
      return folder / f'{module}.pkl'


def file_of(path, module):
  """The file that a path names for a module.

  Of a directory it is the checkpoint, or else the module's own file.
  """
  file = checkpoints.file_in(path)
  own = pathlib.Path(path) / f'{module}.pkl'
  return own if own.exists() and not file.exists() else file


def find_reward(name):
  """The file of a source reward model: a path, or stored under a task."""
  if '/' in name or name.endswith('.pkl'):
    return file_of(name, 'reward')
  if (STORED / f'{name}.pkl').exists():
    return STORED / f'{name}.pkl'
  stored = sorted(STORED.glob('*.pkl'))
  fitting = [file for file in stored if file.stem.lower() in name.lower()]
  if len(fitting) != 1:
    raise terminal.UserError(
        f"{len(fitting) or 'no'} files in ./{STORED} fit {name}: "
        f"{', '.join(map(str, fitting or stored)) or 'it is empty'}. "
        f'Rename one to {name}.pkl, or give its path.')
  return fitting[0]


def read_agent(path, config):
  """The checkpoint of an agent that a new one may be made of."""
  data = checkpoints.load(path)
  check_activations(path, data['config'], config, ['cnn_act', 'dense_act'])
  return data


def read_module(path, module, config):
  """Variables of one module, from its own file or from a checkpoint."""
  values = checkpoints.module(path, module)
  data = checkpoints.contents(path)
  if isinstance(data, dict):
    act = 'dense_act' if module == 'reward' else 'cnn_act'
    check_activations(path, data['config'], config, [act])
    if module in ('decoder', 'reward'):
      check_features(path, data['config'], config)
  return values


def has_module(path, module):
  """Whether a file that is known to be sound has a module."""
  try:
    return bool(checkpoints.module(path, module))
  except checkpoints.Damaged:
    return False


def check_features(path, saved, config):
  """Raises a `UserError` if a module was trained on other features.

  Its arrays tell the sum of their two sizes alone; the file knows all sizes.
  """
  fitting = {
      flag: saved[flag] for flag in layers.SIZES
      if saved.get(flag, getattr(config, flag)) != getattr(config, flag)}
  if {'deter_size', 'stoch_size'} & set(fitting):
    words = ' '.join(f'--{flag} {size}' for flag, size in fitting.items())
    raise terminal.UserError(
        f'{path} has other layer sizes. Sizes that fit it: {words}.')


def check_activations(path, saved, config, flags):
  """Layers that fit but have other activations would compute nonsense."""
  for flag in flags:
    ours = getattr(config, flag)
    # Old files do not say; their scripts had today's defaults.
    if saved.get(flag, ours) != ours:
      raise terminal.UserError(
          f'{path} was trained with --{flag} {saved[flag]}, this run has '
          f'{ours}: give it the same.')


def hashes(given):
  """`{source_sha256: hash}` of the arrays that a run starts from, for records.

  A file that was copied into a log directory, or found there, has no name of
  its own: the hash tells sources apart, wherever they lie.

  Args:
    given: `{flag: {variable: array}}`.
  """
  found = {}
  for flag, arrays in given.items():
    digest = hashlib.sha256()
    for name in sorted(arrays):
      array = np.ascontiguousarray(arrays[name])
      digest.update(f'{name} {array.dtype} {array.shape}'.encode())
      digest.update(array)
    found[f'{flag}_sha256'] = digest.hexdigest()
  return found


# The report.

def report(title, rules, values, frozen, factor=None):
  """A table of what became of the variables of each module.

  Args:
    title: lines to stand above it.
    rules: `{name: 'copy', 'scale' or 'reset'}` of variables or parts of them.
    values: `{name: array or variable}` of the same.
    frozen: function that says of a name whether it is never trained.
    factor: what is scaled is scaled by this.
  """
  def cell(names):
    size = sum(math.prod(values[name].shape) for name in names)
    return f'{len(names)} ({size:,})' if names else '-'

  kinds = {'copy': 'copied', 'reset': 'reset'}
  if factor is not None:
    kinds = {'copy': 'copied', 'scale': f'scaled by {factor:g}', **kinds}
  rows = [['module', *kinds.values(), 'frozen']]
  for module in [*dict.fromkeys(map(layers.module_of, rules)), 'all']:
    names = [
        name for name in rules if module in (layers.module_of(name), 'all')]
    rows.append([
        module, *(cell([name for name in names if rules[name] == kind])
                  for kind in kinds), cell(list(filter(frozen, names)))])
  widths = [max(map(len, column)) for column in zip(*rows)]
  table = ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
  return '\n'.join([
      title, 'Variables (and parameters) by what became of them:', *table])
