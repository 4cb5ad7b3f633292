"""Writes one module of an agent to a file of its own, for dreamer-MMTL.py.

python3 export.py --from ./logdir --module encoder --to ./logdir/encoder.pkl

In Python, on an agent from `dreamer.load_agent('./logdir')`, the same is
`agent.save_single(agent._encode, './logdir/encoder.pkl')`.
"""

import pathlib

from common import flags, layers, terminal
from data import checkpoints


def define_config():
  config = flags.Config()
  define = config.define
  define('from', None, 'Log directory of the agent, or a checkpoint in either '
         'format.', type=pathlib.Path, metavar='PATH', required=True)
  define('module', 'encoder', 'Module to export.', list(layers.MODULES))
  define('to', None, 'File to write, for example ./encoder.pkl.',
         type=pathlib.Path, metavar='FILE', required=True)
  return config



def main(argv):
  config = define_config().command(argv, __doc__)
  source, module, target = getattr(config, 'from'), config.module, config.to
  file = checkpoints.file_in(source)
  if target.exists():
    raise terminal.UserError(
        f'{target} is there already: remove it or choose another name.')
  data = checkpoints.load(file)
  variables = checkpoints.module(file, module)
  checkpoints.save_module(
      target, module, variables, data['config'], checkpoints.rssm_act(data))
  size = sum(array.size for array in variables.values())
  terminal.say(f'{target}: the {module} of {file}, {size:,} parameters.')


if __name__ == '__main__':
  terminal.run(main)
