"""Saves an agent, every part by name, and brings it back."""

import numpy as np

from common import layers, precision, terminal
from data import checkpoints


class Saved:
  """The part of an agent that saves it; see `dreamer.Dreamer` for the rest."""

  @classmethod
  def from_checkpoint(cls, config, action_dim, checkpoint):
    """The agent that a checkpoint holds.

    `config` has the flags that it is to go on with.
    """
    facts = built(checkpoint)
    if config.precision != 'auto':
      facts['bits'] = config.precision
    agent = cls(config, action_dim, **facts)
    agent.restore(checkpoint)
    return agent.checked(checkpoint['config'])

  def state(self):
    """Everything that `restore` needs, as plain containers and arrays."""
    return {
        'script': self.script,
        'config': self.config.plain(),
        'action_dim': self.action_dim,
        'frozen': list(self._frozen),
        'records': dict(self.records),
        'rssm_act': self.rssm_act,
        'precision': self.precision,
        'step': self.step,
        'updates': self.updates,
        'calls': self.random.state(),
        **({'return_range': self._range.state()} if self._range else {}),
        'variables': {k: v.numpy() for k, v in self.variables.items()},
        'optimizers': {k: v.state() for k, v in self.optimizers.items()}}

  def restore(self, checkpoint):
    """Takes over everything that a checkpoint of this agent holds."""
    self.assign(checkpoint['variables'])
    self.records = dict(checkpoint.get('records', {}))
    self.step = int(checkpoint.get('step', 0))
    self.updates = int(checkpoint.get('updates', 0))
    self.random.restore(checkpoint.get('calls', (0, 0)))
    if self._range and 'return_range' in checkpoint:
      self._range.restore(checkpoint['return_range'])
    if checkpoint.get('optimizers'):
      self._make_optimizers()
      for name, optimizer in self.optimizers.items():
        # All of a part may have been frozen before: then it begins fresh.
        if name in checkpoint['optimizers']:
          optimizer.restore(checkpoint['optimizers'][name])

  def assign(self, values):
    """Sets all variables to the arrays of the same names."""
    check_shapes(self.variables, values)
    for name, variable in self.variables.items():
      variable.assign(values[name])

  def save(self, file, keep=False, **extra):
    """Writes a checkpoint; with `keep` the one before stays too."""
    checkpoints.save(file, {
        'format': checkpoints.CHECKPOINT, **self.state(), **extra}, keep)

  def load(self, file):
    """Reads the checkpoint of an agent of the same sizes, old format too."""
    checkpoint = checkpoints.load(file)
    check_shapes(self.variables, checkpoint['variables'], file)
    theirs = built(checkpoint)['rssm_act']
    if theirs != self.rssm_act:
      raise terminal.UserError(
          f'{file} has an RSSM with activation {theirs}, this agent has '
          f'{self.rssm_act}: use dreamer.load_agent.')
    self.restore(checkpoint)

  def save_single(self, module, file):
    """Writes one module, for example `agent._encode`, to a file."""
    checkpoints.save_module(
        file, module.name,
        {name: variable.numpy() for name, variable in module.variables.items()},
        self.config.plain(), self.rssm_act)


def built(checkpoint):
  """Arguments of `dreamer.Dreamer` that a checkpoint gives and no flag does."""
  variables, config = checkpoint['variables'], checkpoint['config']
  modules = dict.fromkeys(map(layers.module_of, variables))
  return dict(
      frozen=checkpoint.get('frozen', ()),
      sources=[
          layers.hidden(layers.of_module(module, variables))
          for module in modules if module.startswith('reward/')],
      rssm_act=checkpoints.rssm_act(checkpoint),
      bits=precision.saved(
          checkpoint.get('precision'), config.get('precision', 'auto')))


def check_shapes(variables, values, where='the checkpoint'):
  """Raises a `UserError` that names variables without a fitting array."""
  missing = [name for name in variables if name not in values]
  if missing:
    raise terminal.UserError(
        f'{where} lacks {len(missing)} variables that the agent '
        f'needs: {", ".join(missing[:4])}' + ', …' * (len(missing) > 4))
  wrong = [
      f'{name} is {list(values[name].shape)}, the agent needs '
      f'{list(variable.shape)}' for name, variable in variables.items()
      if tuple(values[name].shape) != tuple(variable.shape)]
  if wrong:
    ours, theirs = layers.flags(variables), layers.flags(values)
    fitting = ' '.join(
        f'--{flag} {size}' for flag, size in theirs.items()
        if ours.get(flag) != size)
    raise terminal.UserError(
        f'{where} has other layer sizes: ' + '; '.join(wrong[:3]) +
        f'; and {len(wrong) - 3} more' * (len(wrong) > 3) +
        f'. Sizes that fit it: {fitting}.' * bool(fitting))


def check_finite(values, where):
  """Raises a `UserError` that names variables with NaN or infinity."""
  bad = [name for name, x in values.items() if not np.isfinite(x).all()]
  if bad:
    raise terminal.UserError(
        f'{where} has numbers that are not finite in {", ".join(bad[:4])}' +
        ', …' * (len(bad) > 4) + ': transfer from another checkpoint, for '
        'example an earlier one of that run.')
