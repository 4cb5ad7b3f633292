"""Updates of sheeprl's Dreamer V1, one for each line of the standard input.

Runs in sheeprl's own environment, started by bench.py, which measures the time
between its line and the answer. Sizes are sheeprl's defaults, which are those
of the paper: batch 50 x 50, horizon 15, reward 2, value 3, actor 4 hidden
layers of 400. PRECISION is one of Lightning Fabric: 32-true or bf16-mixed.

.venv-sheeprl/bin/python tests/sheeprl_step.py PRECISION [NAME=VALUE ...]
"""

import sys
import warnings

import gymnasium as gym
import hydra
from lightning.fabric import Fabric
import numpy as np
import torch

from sheeprl.algos.dreamer_v1.agent import build_agent
from sheeprl.algos.dreamer_v1.dreamer_v1 import train

ACTIONS = 6


def make_step(precision, overrides):
  """A function that does one update on random data."""
  with hydra.initialize_config_module('sheeprl.configs', version_base='1.3'):
    config = hydra.compose('config', ['exp=dreamer_v1', *overrides])
  fabric = Fabric(accelerator='cpu', devices=1, precision=precision)
  space = gym.spaces.Dict({
      'rgb': gym.spaces.Box(0, 255, (3, 64, 64), np.uint8)})
  world, actor, critic, _ = build_agent(
      fabric, [ACTIONS], True, config, space)
  parts = [
      (world, config.algo.world_model), (actor, config.algo.actor),
      (critic, config.algo.critic)]
  optimizers = fabric.setup_optimizers(*(
      hydra.utils.instantiate(
          part.optimizer, params=module.parameters(), _convert_='all')
      for module, part in parts))
  shape = (
      config.algo.per_rank_sequence_length, config.algo.per_rank_batch_size)
  data = {
      'rgb': torch.randint(0, 256, (*shape, 3, 64, 64)).float(),
      'actions': torch.rand(*shape, ACTIONS) * 2 - 1,
      'rewards': torch.randn(*shape, 1), 'terminated': torch.zeros(*shape, 1),
      'is_first': torch.zeros(*shape, 1)}
  return lambda: train(
      fabric, world, actor, critic, *optimizers, data, None, config)


def main(precision, *overrides):
  warnings.simplefilter('ignore')
  step = make_step(precision, overrides)
  print('ready', flush=True)
  for _ in sys.stdin:
    step()
    print('done', flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
