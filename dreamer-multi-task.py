"""Trains one Dreamer agent on several tasks at once, as a source of transfer.

python dreamer-multi-task.py --task1 HopperBulletEnv-v0 \\
    --task2 AntBulletEnv-v0 --task3 HalfCheetahBulletEnv-v0 \\
    --batch_length 50 --envs 3 --steps 2e6 --transfer False \\
    --logdir './logdir/'

One encoder, decoder, dynamics, reward, value and actor learn all tasks; the
agent is not told which task it is in. It is one agent in these ways:

- Actions are as wide as in the widest task. An environment receives the
  leading ones; replay holds all, as the agent chose them.
- All environments take a step in turn, so tasks get equally many.
- A sequence of a batch is drawn from a task that is drawn uniformly, however
  long the episodes are and however many there are of each task.
- Evaluation, videos and metrics are kept by task.

It writes ./logdir/variables.pkl and ./logdir/episodes/. The other scripts
start from the first: dreamer-FTL.py from all of it, dreamer-MMTL.py from its
encoder. It may be continued with the same command.
"""

from common import flags, options

if __name__ == '__main__':
  # Before TensorFlow is imported: --help and bad flags are answered at once.
  flags.check(options.multi_task, __doc__)

from common import terminal
import dreamer
from runs import loop
import transfer


define_config = options.multi_task


def tasks(config):
  """The tasks to learn together."""
  if config.transfer:
    raise terminal.UserError(
        '--transfer True is for dreamer-FTL.py; dreamer-multi-task.py trains '
        'the agent to transfer from.')
  return transfer.tasks(config)


class MultiTask(dreamer.Dreamer):
  """The agent as it is: what differs lies in its data."""

  script = 'dreamer-multi-task.py'


Agent = MultiTask


def main(argv):
  return loop.main(argv, __doc__, define_config, Agent, tasks)


if __name__ == '__main__':
  terminal.run(main)
