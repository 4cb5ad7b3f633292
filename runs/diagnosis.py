"""Finds the numbers that keep an agent from learning."""

import numpy as np

from common.backend import tf
from runs import devices


def bad_variables(agent):
  """Names of variables that are not finite."""
  # Judged on the device, so that the weights need not leave it.
  finite = tf.stack([
      tf.reduce_all(tf.math.is_finite(variable))
      for variable in agent.variables.values()]).numpy()
  return [
      f'variable {name}' for name, good in zip(agent.variables, finite)
      if not good]


def bad_numbers(agent, batch):
  """Names of what is not finite when the last update is repeated.

  In the order of the algorithm, so that the first is nearest to the cause. With
  several replicas, what is not finite on one of them.
  """
  seed = tf.constant([agent.config.seed, agent.updates - 1])

  def repeat(data, seed):
    _, parts = agent.compute(data, seed)
    grads, _ = agent.gradients(data, seed)
    return {**parts, **{
        f'{part} gradient of': dict(zip(optimizer.names, grads[part]))
        for part, optimizer in agent.optimizers.items()}}

  strategy = agent.strategy

  def run(data, seed):
    return strategy.run(repeat, (data, seed))

  if strategy.num_replicas_in_sync > 1:  # They can do it in a graph alone.
    run = tf.function(run, autograph=False)
  values = run(devices.distribute(strategy, batch), seed)
  return [name for name, value in _flat(values) if not all(
      np.isfinite(np.asarray(part, np.float32)).all()
      for part in strategy.experimental_local_results(value))]


def _flat(values):
  """Pairs of names and tensors, of a dict of tensors or of dicts of them."""
  for name, value in values.items():
    parts = value if isinstance(value, dict) else {'': value}
    for key, part in parts.items():
      yield f'{name} {key}'.strip(), part
