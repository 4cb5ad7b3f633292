"""Trains a Dreamer agent (Hafner et al. 2020) on one task.

python3 dreamer.py --logdir ./logdir/dmc_walker_walk/dreamer/1 \\
    --task dmc_walker_walk

The same command continues a run that was stopped.
"""

import functools
import importlib.util
import pathlib
import re

import numpy as np

from common import files, layers, options, terminal
from common.backend import tf, tfd
from data import checkpoints
from data.logdir import CHECKPOINT, Logdir
import models
import tools

SCRIPTS = tuple(options.SCRIPTS)

define_config = options.dreamer

# AutoGraph, which nothing here needs, would make building the graphs slower.
function = functools.partial(
    tf.function, reduce_retracing=True, autograph=False)


class Dreamer:
  """World model, actor and value, and how they learn.

  Built from a configuration and the number of action dimensions alone; no
  environment, replay or training step is needed. Built in the scope of a
  `tf.distribute` strategy, it learns on all devices of it.
  """

  script = 'dreamer.py'
  # Whether a foreign variables.pkl in a new log directory is to be used.
  takes_source = False
  # What a new agent has from others, for people to read.
  report = ''

  def __init__(self, config, action_dim):
    self.config = config
    self.action_dim = action_dim
    self._strategy = tf.distribute.get_strategy()
    self.updates = 0
    self.step = 0
    self.calls = {True: 0, False: 0}
    # Which of a run's workers acts with this copy: each has its own noise.
    self.worker = 0
    self._dtype = compute_dtype(config.precision)
    self._build()
    for flag in ('freeze', 'weight_decay_pattern'):
      check_pattern(flag, getattr(config, flag))
    self._optimizers = {}
    self._graphs = {}
    self._watched = None

  @classmethod
  def start(cls, config, action_dim):
    """The agent of a new run."""
    return cls(config, action_dim)

  @classmethod
  def from_checkpoint(cls, config, action_dim, checkpoint):
    """The agent that a checkpoint holds."""
    agent = cls(config, action_dim)
    agent.restore(checkpoint)
    return agent

  def begin(self, logdir):
    """Called once in a new run, before anything is written to its logdir."""

  def _build(self):
    c = self.config
    common = dict(seed=c.seed, dtype=self._dtype)
    self._encode = models.Encoder(c.cnn_depth, c.cnn_act, **common)
    self._dynamics = models.RSSM(
        self._encode.size, self.action_dim, c.stoch_size, c.deter_size,
        c.dense_act, **common)
    features = self._dynamics.feature_size
    hidden = {
        name: [c.num_units] * count for name, count in layers.HIDDEN.items()}

    def head(name, kind=models.DenseHead, **kwargs):
      arguments = dict(
          inputs=features, hidden=hidden[name], act=c.dense_act, **common)
      return kind(name, **{**arguments, **kwargs})

    self._decode = models.Decoder(features, c.cnn_depth, c.cnn_act, **common)
    self._reward = self._build_reward(head)
    if c.pcont:
      self._pcont = head('pcont', dist='binary')
    self._value = head('value')
    self._actor = models.Actor(
        features, self.action_dim, hidden['actor'], c.dense_act, c.action_dist,
        c.action_init_std, **common)

  def _build_reward(self, head):
    return head('reward')

  @property
  def modules(self):
    """`{name: module}` in the order of old checkpoints."""
    modules = [
        self._actor, self._decode, self._dynamics, self._encode,
        *([self._pcont] if self.config.pcont else []), self._reward,
        self._value]
    return {module.name: module for module in modules}

  @property
  def variables(self):
    """`{name: variable}` of all modules."""
    return {
        name: variable for module in self.modules.values()
        for name, variable in module.variables.items()}

  def frozen(self, name):
    """Whether the variable called `name` is never trained."""
    pattern = self.config.freeze
    return bool(pattern) and re.search(pattern, name) is not None

  # Acting

  def __call__(self, obs, reset, state=None, training=True):
    """Like `policy`, with states zeroed where `reset` [N] is true."""
    if state is not None and reset.any():
      keep = (~reset).astype(np.float32)[:, None]
      state = tuple(x * keep for x in state)
    return self.policy(obs, state, training)

  def policy(self, obs, state, training):
    """Actions for observations.

    Args:
      obs: dict with `image` [N, 64, 64, 3] uint8.
      state: what the previous call returned; None begins.
      training: whether to sample and explore, or to act as well as possible.

    Returns:
      Actions [N, A] in -1 to 1, and the state for the next call, a tuple of
      arrays [N, ...].
    """
    image = tf.convert_to_tensor(obs['image'])
    count = image.shape[0]
    if state is None:
      state = (
          np.zeros([count, self._dynamics.feature_size], np.float32),
          np.zeros([count, self.action_dim], np.float32))
    feat, action = state
    rng = self._numbers(training)
    noise = rng.standard_normal(
        [count, self._noise_size(training)], np.float32)
    feat, action = self._acting(training, image.dtype)(
        image, tf.convert_to_tensor(feat),
        tf.convert_to_tensor(np.concatenate([action, noise], 1)))
    action = self._explore(action.numpy(), self.expl_amount(training), rng)
    return tf.convert_to_tensor(action), (feat, action)

  def random_actions(self, count):
    """Actions [N, A] that depend on no observation, for before training."""
    return self._random(count, self._numbers(training=True))

  def _numbers(self, training):
    """Random numbers of the next call; each call has its own."""
    self.calls[training] += 1
    return np.random.default_rng([
        self.config.seed, int(training), self.worker, self.calls[training]])

  def expl_amount(self, training=True):
    """Exploration at the present step."""
    c = self.config
    if not training:
      return c.eval_noise
    amount = c.expl_amount
    if c.expl_decay:
      amount *= 0.5 ** (self.step / c.expl_decay)
    return max(amount, c.expl_min)

  def _acting(self, training, image_type):
    """The graph of `_policy`, for any number of environments.

    Called as it is, without the search for a fitting one, which would take as
    long as the networks for a single environment.
    """
    key = training, image_type
    if key not in self._graphs:
      policy = functools.partial(self._policy, training)
      self._graphs[key] = function(policy).get_concrete_function(
          tf.TensorSpec([None, 64, 64, 3], image_type),
          tf.TensorSpec([None, self._dynamics.feature_size]),
          tf.TensorSpec([None, self.action_dim + self._noise_size(training)]))
    return self._graphs[key]

  def _noise_size(self, training):
    """How many normal numbers a policy takes for each environment."""
    draws = 1 if training else self._actor.samples
    return self.config.stoch_size + draws * self.action_dim

  def _policy(self, training, image, feat, inputs):
    # Few arguments: to pass one takes as long as a small layer.
    action, stoch_noise, action_noise = tf.split(
        inputs, [self.action_dim, self.config.stoch_size, -1], 1)
    latent = self._dynamics.filter(
        self._dynamics.from_feat(feat), action,
        self._encode({'image': scale_image(image)}), stoch_noise)
    feat = self._dynamics.get_feat(latent)
    dist = self._actor(feat)
    if training:
      return feat, dist.sample(action_noise)
    draws = tf.reshape(action_noise, [-1, dist.samples, self.action_dim])
    return feat, dist.mode(tf.transpose(draws, [1, 0, 2]))

  def _explore(self, action, amount, rng):
    """Adds exploration of the given amount to actions [N, A]."""
    if self.config.expl == 'additive_gaussian':
      noise = rng.standard_normal(action.shape, np.float32)
      return np.clip(action + np.float32(amount) * noise, -1, 1)
    random = self._random(len(action), rng)
    if self.config.expl == 'epsilon_greedy':
      chance = rng.uniform(size=[len(action), 1])
      return np.where(chance < amount, random, action)
    return random if amount > 0 else action

  def _random(self, count, rng):
    """Random actions [N, A]."""
    if self.config.action_dist == 'onehot':
      choice = rng.integers(0, self.action_dim, count)
      return np.eye(self.action_dim, dtype=np.float32)[choice]
    return rng.uniform(-1, 1, [count, self.action_dim]).astype(np.float32)

  # Learning

  def train(self, batch):
    """One update of all three parts.

    Args:
      batch: `image` [B, T, 64, 64, 3] uint8, `action` [B, T, A], `reward`
        and `discount` [B, T], and `first` bool [B, T], optional, where an
        episode begins.

    Returns:
      Dict of scalar tensors.
    """
    self._make_optimizers()
    seed = tf.constant([self.config.seed, self.updates])
    self.updates += 1
    return self._train(self._distribute(batch), seed)

  def _distribute(self, batch):
    """Gives each device of this machine its share of the sequences."""
    strategy = self._strategy
    if strategy.num_replicas_in_sync == 1:
      return tensors(batch)
    local = len(strategy.extended.worker_devices)
    share = len(batch['reward']) // local

    def part(context):
      begin = context.replica_id_in_sync_group % local * share
      return tensors({k: v[begin:begin + share] for k, v in batch.items()})

    return strategy.experimental_distribute_values_from_function(part)

  @functools.cached_property
  def _train(self):
    return function(self._update, jit_compile=self.config.jit)

  def _update(self, data, seed):
    names = []

    def gradients(data, seed):
      grads, metrics = self.gradients(data, seed)
      names[:] = metrics
      return grads, tf.stack(list(metrics.values()))

    # The gradients are those of all devices together, so all make the same
    # step. One that is not finite is skipped.
    run = self._strategy.run
    grads, metrics = run(gradients, (data, seed))
    metrics = dict(zip(names, tf.unstack(
        self._strategy.reduce('MEAN', metrics, axis=None))))
    for name, optimizer in self._optimizers.items():
      finite = tf.math.is_finite(metrics[f'{name}_grad_norm'])
      tf.cond(
          finite, lambda: run(optimizer.apply, (grads[name],)), lambda: None)
      optimizer.count(finite)
    return metrics

  def gradients(self, data, seed):
    """Losses of a batch, the gradients of all variables, and metrics."""
    with tf.GradientTape(persistent=True) as tape:
      losses, metrics = self.losses(data, seed)
    grads = {}
    for name, optimizer in self._optimizers.items():
      grads[name], metrics[f'{name}_grad_norm'] = optimizer.gradients(
          tape, losses[name])
    return grads, metrics

  @property
  def skipped(self):
    """Updates of each part that were left out because of bad numbers."""
    return {
        name: optimizer.skipped for name, optimizer in self._optimizers.items()}

  @property
  def stuck(self):
    """Whether one of the parts takes no updates any more."""
    return any(optimizer.stuck for optimizer in self._optimizers.values())

  def bad_variables(self):
    """Names of variables that are not finite."""
    # Judged on the device, so that the weights need not leave it.
    finite = tf.stack([
        tf.reduce_all(tf.math.is_finite(variable))
        for variable in self.variables.values()]).numpy()
    return [
        f'variable {name}' for name, good in zip(self.variables, finite)
        if not good]

  def bad_numbers(self, batch):
    """Names of what is not finite when the last update is repeated.

    In the order of the algorithm, so that the first is nearest to the cause.
    """
    self._watched = {}
    seed = tf.constant([self.config.seed, self.updates - 1])
    grads, _ = self.gradients(tensors(batch), seed)
    for name, optimizer in self._optimizers.items():
      for key, grad in zip(optimizer.names, grads[name]):
        self._watch(**{f'{name} gradient of {key}': grad})
    watched, self._watched = self._watched, None
    return [
        name for name, value in watched.items()
        if not np.isfinite(np.asarray(value, np.float32)).all()]

  def _watch(self, **tensors):
    """Keeps tensors, or dicts of them, for `bad_numbers` to look at."""
    if self._watched is None:
      return
    for name, value in tensors.items():
      parts = value if isinstance(value, dict) else {'': value}
      for key, part in parts.items():
        self._watched[f'{name} {key}'.strip()] = part

  def losses(self, data, seed):
    """Losses of world model, actor and value on a batch, and metrics."""
    c = self.config
    model_seed, behaviour_seed, metric_seed = tools.split_seed(seed, 3)
    data = self._preprocess(data)

    embed = self._encode(data)
    shape = [*data['action'].shape[:2], c.stoch_size]
    post, prior = self._dynamics.observe(
        embed, data['action'], first=data.get('first'),
        noise=tools.noise([2, *shape], model_seed, axis=1))
    feat = self._dynamics.get_feat(post)
    likes = {
        'image': tf.reduce_mean(self._decode(feat).log_prob(data['image'])),
        'reward': tf.reduce_mean(self._reward(feat).log_prob(data['reward']))}
    if c.pcont:
      target = c.discount * data['discount']
      likes['pcont'] = c.pcont_scale * tf.reduce_mean(
          self._pcont(feat).log_prob(target))
    prior_dist = self._dynamics.get_dist(prior)
    post_dist = self._dynamics.get_dist(post)
    div = tf.reduce_mean(tfd.kl_divergence(post_dist, prior_dist))
    # The free nats are those of the batch of all devices together.
    free = tools.replica_mean(div) < c.free_nats
    model_loss = c.kl_scale * tf.where(free, c.free_nats, div) - sum(
        likes.values())
    self._watch(
        data=data, embed=embed, post=post, prior=prior, likelihood=likes,
        div=div, model_loss=model_loss)

    imag_feat = self._imagine_ahead(post, behaviour_seed)
    reward = self._reward(imag_feat).mode()
    value = self._value(imag_feat).mode()
    if c.pcont:
      pcont = self._pcont(imag_feat).mean()
    else:
      pcont = c.discount * tf.ones_like(reward)
    returns = tools.lambda_return(
        reward[:-1], value[:-1], pcont[:-1], value[-1], c.disclam, axis=0)
    weights = tf.stop_gradient(tf.math.cumprod(
        tf.concat([tf.ones_like(pcont[:1]), pcont[:-2]], 0), 0))
    weights *= self._alive(data)
    actor_loss = -tf.reduce_mean(weights * returns)
    # The features do not depend on the value's variables, so the values in
    # hand serve the value's own loss too.
    value_loss = -tf.reduce_mean(weights * tools.UnitNormal(
        value[:-1]).log_prob(tf.stop_gradient(returns)))
    self._watch(
        imag_feat=imag_feat, imag_reward=reward, imag_value=value,
        imag_pcont=pcont, returns=returns, actor_loss=actor_loss,
        value_loss=value_loss)

    losses = {'model': model_loss, 'actor': actor_loss, 'value': value_loss}
    metrics = {f'{name}_loss': loss for name, loss in losses.items()}
    metrics.update({f'{name}_loss': -like for name, like in likes.items()})
    entropy_noise = tools.noise(
        [tools.TanhNormal.samples, *shape[:2], self.action_dim], metric_seed,
        axis=1)
    metrics.update(
        div=div, prior_ent=tf.reduce_mean(prior_dist.entropy()),
        post_ent=tf.reduce_mean(post_dist.entropy()),
        action_ent=tf.reduce_mean(self._actor(feat).entropy(entropy_noise)))
    return losses, metrics

  def _imagine_ahead(self, post, seed):
    """Features `[H, N, F]` of what the actor brings about from each state."""
    c = self.config
    if c.pcont:  # The last state of a sequence may be terminal.
      post = {name: x[:, :-1] for name, x in post.items()}
    start = {
        name: tf.stop_gradient(tf.reshape(x, [-1, x.shape[-1]]))
        for name, x in post.items()}
    count = start['deter'].shape[0]
    seeds = tools.split_seed(seed, 2)
    noise = [
        tools.noise([c.horizon, count, size], part, axis=1)
        for size, part in zip((c.stoch_size, self.action_dim), seeds)]

    def step(prev, noise):
      # Nobody asks for gradients of noise, but the scan would add them up.
      noise = [tf.stop_gradient(part) for part in noise]
      feat = tf.stop_gradient(self._dynamics.get_feat(prev))
      action = self._actor(feat).sample(noise[1])
      return self._dynamics.img_step(prev, action, noise[0])

    return self._dynamics.get_feat(tf.scan(step, tuple(noise), start))

  def _alive(self, data):
    """Weight [1, N] of imagined trajectories; 0 where they start at an end.

    Sequences that cross the end of an episode have such states in the middle.
    """
    if not self.config.pcont:
      return 1.0
    return tf.reshape(data['discount'][:, :-1], [1, -1])

  def _preprocess(self, data):
    data = dict(data, image=scale_image(data['image']))
    if self.config.clip_rewards == 'tanh':
      data['reward'] = tf.tanh(data['reward'])
    return data

  def _make_optimizers(self):
    """Made when training begins: acting and loading need none."""
    if self._optimizers:
      return
    c = self.config
    groups = {
        'model': ['encoder', 'dynamics', 'decoder', 'reward', 'pcont'],
        'value': ['value'], 'actor': ['actor']}
    for name, modules in groups.items():
      variables = {
          key: variable for key, variable in self.variables.items()
          if key.split('/')[0] in modules and not self.frozen(key)}
      if variables:
        with self._strategy.scope():
          self._optimizers[name] = tools.Optimizer(
              name, variables, getattr(c, f'{name}_lr'), c.grad_clip,
              c.weight_decay, c.weight_decay_pattern,
              scaled=self._dtype == 'mixed_float16')

  # Looking inside

  def open_loop(self, batch, context=5):
    """Video uint8 `[T, 3 · 64, B · 64, 3]`: truth, model, error.

    The model sees `context` images and predicts the others from the actions.
    """
    return self._open_loop(tensors(batch), context).numpy()

  @function
  def _open_loop(self, data, context):
    data = self._preprocess({
        key: data[key][:6] for key in ('image', 'action', 'reward')})
    truth, action = data['image'] + 0.5, data['action']
    embed = self._encode({'image': data['image'][:, :context]})
    init, _ = self._dynamics.observe(embed, action[:, :context])
    prior = self._dynamics.imagine(
        action[:, context:], {name: x[:, -1] for name, x in init.items()})
    model = tf.concat([
        self._decode(self._dynamics.get_feat(states)).mode()
        for states in (init, prior)], 1) + 0.5
    video = tf.concat([truth, model, (model - truth + 1) / 2], 2)
    video = tf.concat(tf.unstack(video), 2)
    return tf.cast(tf.clip_by_value(video, 0, 1) * 255 + 0.5, tf.uint8)

  # Saving

  def state(self):
    """What `restore` needs, as plain containers and arrays."""
    return {
        'script': self.script,
        'config': self.config.plain(),
        'action_dim': self.action_dim,
        'step': self.step,
        'updates': self.updates,
        'calls': [self.calls[False], self.calls[True]],
        'variables': {k: v.numpy() for k, v in self.variables.items()},
        'optimizers': {k: v.state() for k, v in self._optimizers.items()}}

  def restore(self, checkpoint):
    """Takes over everything that a checkpoint of this agent holds."""
    self.assign(checkpoint['variables'])
    self.step = int(checkpoint.get('step', 0))
    self.updates = int(checkpoint.get('updates', 0))
    self.calls = dict(zip((False, True), checkpoint.get('calls', (0, 0))))
    if checkpoint.get('optimizers'):
      self._make_optimizers()
      for name, optimizer in self._optimizers.items():
        optimizer.restore(checkpoint['optimizers'][name])

  def assign(self, values):
    """Sets all variables to the arrays of the same names."""
    check_shapes(self.variables, values)
    for name, variable in self.variables.items():
      variable.assign(values[name])

  def save(self, file, keep=False, **extra):
    """Writes a checkpoint; with `keep` the one before stays too."""
    checkpoints.save(file, {
        'format': 'dreamer-checkpoint-1', **self.state(), **extra}, keep)

  def load(self, file):
    """Reads the checkpoint of an agent of the same sizes, old format too."""
    checkpoint = checkpoints.load(file)
    check_shapes(self.variables, checkpoint['variables'], file)
    self.restore(checkpoint)

  def save_single(self, module, file):
    """Writes one module, for example `agent._encode`, to a file."""
    checkpoints.save_module(
        file, module.name,
        {name: variable.numpy() for name, variable in module.variables.items()},
        self.config.plain())


def check_pattern(flag, pattern):
  """Raises a `UserError` if a flag's value is no regular expression."""
  try:
    re.compile(pattern)
  except re.error as error:
    raise terminal.UserError(
        f"--{flag} '{pattern}' is not a regular expression: {error}."
    ) from None


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
    raise terminal.UserError(
        f'{where} has other layer sizes: ' + '; '.join(wrong[:3]) +
        f'; and {len(wrong) - 3} more' * (len(wrong) > 3))


def scale_image(image):
  """uint8 to -0.5 … 0.5; floats are taken as they are."""
  if image.dtype != tf.uint8:
    return image
  return tf.cast(image, tf.float32) / 255 - 0.5


def tensors(batch):
  return {name: tf.convert_to_tensor(value) for name, value in batch.items()}


def compute_dtype(precision):
  """Keras policy for a value of `--precision`."""
  if precision == 'auto':
    precision = '16' if tf.config.list_physical_devices('GPU') else '32'
  return {
      '16': 'mixed_float16', 'bfloat16': 'mixed_bfloat16',
      '32': 'float32'}[precision]


def load_agent(path):
  """The agent of a log directory or of a checkpoint file, old format too.

  Neither environments nor replay are needed.
  """
  path = pathlib.Path(path)
  checkpoint = (
      checkpoints.recover(Logdir(path).checkpoint) if path.is_dir()
      else checkpoints.load(path))
  if checkpoint is None:
    raise terminal.UserError(f'{path} holds no checkpoint ({CHECKPOINT}).')
  script = script_module(checkpoint.get('script') or 'dreamer.py')
  config = script.define_config()
  config.update({
      name: value for name, value in checkpoint['config'].items()
      if name in config})
  return script.Agent.from_checkpoint(
      config, checkpoint['action_dim'], checkpoint)


def script_module(name):
  """The entry script called `name`, whose dash forbids a plain import."""
  if name not in SCRIPTS:
    raise terminal.UserError(
        f"the checkpoint was written by '{name}', not by one of "
        f'{", ".join(SCRIPTS)}.')
  if name == 'dreamer.py':
    return importlib.import_module('dreamer')
  path = files.ROOT / name
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


Agent = Dreamer


def main(argv):
  from runs import loop
  return loop.main(argv, __doc__, define_config, Dreamer)


if __name__ == '__main__':
  # The module is known by its name too, to the scripts that import it.
  import dreamer
  terminal.run(dreamer.main)
