"""The devices and machines that learn together, and how they keep in step."""

import contextlib
import json
import os

from common import terminal
from common.backend import tf


class Team:
  """The workers of a run, one process on each machine that TF_CONFIG lists.

  Every worker has its own environments, episodes and random numbers. All make
  the same updates, from their shares of the batches; the chief, worker 0,
  evaluates, logs and writes the checkpoint. Without TF_CONFIG a run is a team
  of one.
  """

  # Decisions between agreements, each of which costs a message or two.
  stride = 10

  def __init__(self, batch_size):
    workers, self.index = _read_environment()
    self.size = len(workers)
    if self.size > 1:
      self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif len(tf.config.list_physical_devices('GPU')) > 1:
      self.strategy = tf.distribute.MirroredStrategy()
    else:
      self.strategy = tf.distribute.get_strategy()
    if self.size == 1:
      self.stride = 1
    count = self.strategy.num_replicas_in_sync
    if batch_size % count:
      raise terminal.UserError(
          f'--batch_size {batch_size} cannot be shared by {count} devices: '
          'give a multiple of that, or fewer GPUs with CUDA_VISIBLE_DEVICES.')

  @property
  def chief(self):
    return self.index == 0

  def sum(self, *values):
    """Sums of numbers over all workers; each waits here for the others."""
    if self.size == 1:
      return values
    return self._sum(tf.constant(values, tf.float64)).numpy().tolist()

  def wait(self):
    """Returns when all workers have come here."""
    self.sum(0)

  @contextlib.contextmanager
  def together(self):
    """In this context one worker's end is everyone's, with a clear message."""
    lost = (
        tf.errors.UnavailableError, tf.errors.AbortedError,
        tf.errors.CancelledError, tf.errors.DeadlineExceededError,
        tf.errors.InternalError)
    try:
      with self.strategy.scope():
        yield
    except lost as error:
      if self.size == 1:
        raise
      reason = str(error).strip().splitlines()[-1]
      raise terminal.UserError(
          f'worker {self.index} of {self.size} ends because another one has '
          f'ended or cannot be reached; its own output says why ({reason}). '
          'The same command on every machine continues from the last '
          'checkpoint.') from None

  def _sum(self, values):
    @tf.function(autograph=False)
    def total(values):
      # The mean over replicas, since those of one machine say the same.
      mean = self.strategy.reduce(
          'MEAN', self.strategy.run(tf.identity, (values,)), axis=None)
      return mean * self.size

    self._sum = total
    return total(values)


def distribute(strategy, batch):
  """Gives each replica of this machine its share of a batch of sequences.

  Args:
    batch: dict of arrays [B, ...].

  Returns:
    The same as tensors, by replica where there are several.
  """
  def tensors(batch):
    return {name: tf.convert_to_tensor(x) for name, x in batch.items()}

  if strategy.num_replicas_in_sync == 1:
    return tensors(batch)
  local = len(strategy.extended.worker_devices)
  share = len(batch['reward']) // local

  def part(context):
    begin = context.replica_id_in_sync_group % local * share
    return tensors({k: v[begin:begin + share] for k, v in batch.items()})

  return strategy.experimental_distribute_values_from_function(part)


def on_replicas(strategy, function, *args):
  """Calls `function(*args) -> grads, metrics` on every replica.

  Returns:
    The gradients, by replica where there are several, and the means of the
    metrics, a dict of scalars.
  """
  names = []

  def stacked(*args):
    grads, metrics = function(*args)
    names[:] = metrics
    return grads, tf.stack(list(metrics.values()))

  grads, metrics = strategy.run(stacked, args)
  metrics = strategy.reduce('MEAN', metrics, axis=None)
  return grads, dict(zip(names, tf.unstack(metrics)))


def configure(config):
  """Threads, memory and seed, before the first tensor is made."""
  # A process can set these only once; later runs in it take what there is.
  with contextlib.suppress(RuntimeError):
    for device in tf.config.list_physical_devices('GPU'):
      tf.config.experimental.set_memory_growth(device, config.gpu_growth)
    if config.threads:
      tf.config.threading.set_intra_op_parallelism_threads(config.threads)
      tf.config.threading.set_inter_op_parallelism_threads(config.threads)
  tf.random.set_seed(config.seed)


def _read_environment():
  """Addresses of all workers, the chief's first, and the index of this one."""
  text = os.environ.get('TF_CONFIG')
  if not text:
    return ['localhost'], 0
  try:
    parts = json.loads(text)
    cluster, task = parts.get('cluster', {}), parts.get('task', {})
    workers = [*cluster.get('chief', []), *cluster.get('worker', [])]
    index = int(task.get('index', 0))
    if task.get('type') == 'worker':
      index += len(cluster.get('chief', []))
    if set(cluster) - {'chief', 'worker'} or not 0 <= index < max(
        len(workers), 1):
      raise ValueError
  except (ValueError, AttributeError, TypeError):
    raise terminal.UserError(
        f"TF_CONFIG is '{text}': it must be like {{\"cluster\": {{\"worker\": "
        '["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": '
        '0}}, with the index of this machine.') from None
  return workers or ['localhost'], index
