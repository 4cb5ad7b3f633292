"""Dreamer with the wrong sign of one term of its losses, to see that it fails.

python3 results/wrong_sign.py --term reward --logdir ./logdir/reward \\
    --task HopperBulletEnv-v0 --preset small --steps 25e3

All other flags are those of dreamer.py.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from common import flags, options

OF_MODEL = 'image', 'reward', 'pcont'


def define_config():
  config = options.dreamer()
  config.define(
      'term', 'actor', 'Term of the losses whose sign is turned.',
      [*OF_MODEL, 'divergence', 'actor', 'value'])
  return config


if __name__ == '__main__':
  # Before TensorFlow is imported: --help and bad flags are answered at once.
  flags.check(define_config, __doc__)

from common import terminal
import dreamer
from runs import loop


class WrongSign(dreamer.Dreamer):

  script = 'wrong_sign.py'

  def losses(self, data, seed):
    losses, metrics = super().losses(data, seed)
    term = self.config.term
    if term in OF_MODEL:
      losses['model'] -= 2 * metrics[f'{term}_loss']
    elif term == 'divergence':
      rest = sum(metrics.get(f'{name}_loss', 0.0) for name in OF_MODEL)
      losses['model'] = 2 * rest - losses['model']
    else:
      losses[term] = -losses[term]
    return losses, metrics


def main(argv):
  return loop.main(argv, __doc__, define_config, WrongSign)


if __name__ == '__main__':
  terminal.run(main)
