"""Trains a Dreamer agent (Hafner et al. 2020) on one task.

python3 dreamer.py --logdir ./logdir/dmc_walker_walk/dreamer/1 \\
    --task dmc_walker_walk

The same command continues a run that was stopped.
"""

from common import flags, options

if __name__ == '__main__':
  # Before TensorFlow is imported: --help and bad flags are answered at once.
  flags.check(options.dreamer, __doc__)

import functools
import pathlib

import numpy as np

from common import layers, patterns, precision, terminal
from common.backend import tf, tfd
from data import checkpoints, saving
from data.logdir import Logdir
import models
from runs import devices, loop, prediction
import tools

define_config = options.dreamer

# AutoGraph, which nothing here needs, would make building the graphs slower.
function = functools.partial(tf.function, autograph=False)


### The losses (Hafner et al. 2020, arXiv 1912.01603) ###


def world_model_loss(
    data, seed, *, encode, dynamics, decode, reward, pcont, config):
  """Equation 10, negated: images, rewards and KL divergence of a batch.

  Args:
    data: `image` [B, T, 64, 64, 3] in -0.5 to 0.5, `action` [B, T, A], each the
      one that led to the image, `reward` and `discount` [B, T], and `first`
      bool [B, T], optional, where an episode begins.
    seed: int32 pair [2] that all noise follows from.
    encode, dynamics, decode, reward, pcont: the networks; pcont may be None.
    config: `kl_scale`, `free_nats`, `free_nats_of`, `kl_balance`, `stoch_size`,
      `decode_stride`, and with pcont `discount` and `pcont_scale`.

  Returns:
    The loss, a scalar, and what it was computed from, by name and in order.
  """
  tools.assert_shapes(
      image=(data['image'], 'B T 64 64 3'), action=(data['action'], 'B T A'),
      reward=(data['reward'], 'B T'), discount=(data['discount'], 'B T'))
  embed = encode(data)
  post, prior = dynamics.observe(
      embed, data['action'], first=data.get('first'), noise=tools.noise(
          [2, *data['reward'].shape, config.stoch_size], seed, axis=1))
  feat = dynamics.get_feat(post)
  shown = steps_apart(config.decode_stride, seed)
  likelihood = {
      'image': tf.reduce_mean(
          decode(shown(feat)).log_prob(shown(data['image']))),
      'reward': tf.reduce_mean(reward(feat).log_prob(data['reward']))}
  if pcont:
    likelihood['pcont'] = config.pcont_scale * tf.reduce_mean(
        pcont(feat).log_prob(config.discount * data['discount']))
  penalty, div = divergence_loss(post, prior, dynamics.get_dist, config)
  loss = config.kl_scale * penalty - sum(likelihood.values())
  return loss, dict(
      embed=embed, post=post, prior=prior, feat=feat, likelihood=likelihood,
      div=div)


def divergence_loss(post, prior, dist, config):
  """KL divergence of posterior from prior above the free nats.

  Args:
    post, prior: states [B, T, ...].
    dist: gives the distribution of a state.
    config: `free_nats`, `free_nats_of` and `kl_balance`.

  Returns:
    The loss, a scalar, and the divergences [B, T] in nats.
  """
  def free(div):
    if config.free_nats_of == 'step':
      return tf.reduce_mean(tf.maximum(div, config.free_nats))
    # Free nats are given to the whole batch, of all replicas together.
    mean = tf.reduce_mean(div)
    return tf.where(
        tools.replica_mean(mean) < config.free_nats, config.free_nats, mean)

  div = tfd.kl_divergence(dist(post), dist(prior))
  if not config.kl_balance:
    return free(div), div
  fixed = lambda state: dist(tf.nest.map_structure(tf.stop_gradient, state))
  share = config.kl_balance
  return (
      share * free(tfd.kl_divergence(fixed(post), dist(prior))) +
      (1 - share) * free(tfd.kl_divergence(dist(post), fixed(prior)))), div


def steps_apart(stride, seed):
  """Takes one of `stride` time steps of [B, T, ...], from a random first one.

  It saves the time of the decoder on a processor.
  """
  if stride == 1:
    return lambda x: x
  first = tf.random.stateless_uniform([], seed, 0, stride, tf.int32)
  return lambda x: tf.gather(
      x, first + stride * tf.range(x.shape[1] // stride), axis=1)


def behaviour_losses(
    post, discount, seed, *, dynamics, actor, reward, value, pcont, config,
    spread=1.0):
  """Equations 7 and 8, negated: actor and value on imagined trajectories.

  Args:
    post: posterior states [B, T, ...], all of which imagination starts from,
      or one of `imag_stride`; with pcont not the last, which may be terminal.
    discount: [B, T]; 0 where an episode terminated.
    seed: int32 pair [2] that all noise follows from.
    dynamics, actor, reward, value, pcont: the networks; pcont may be None.
    config: `horizon` (H), `disclam` (λ), `stoch_size`, `imag_stride`,
      `actor_entropy`, without pcont `discount`.
    spread: the actor's returns are divided by it.

  Returns:
    The actor's loss, the value's loss, both scalars, and what they were
    computed from, by name and in order.
  """
  stride = config.imag_stride
  starts = slice(stride - 1, -1 if pcont else None, stride)
  post = {name: x[:, starts] for name, x in post.items()}
  # Sequences that cross the end of an episode have ends in the middle.
  alive = tf.reshape(discount[:, starts], [1, -1]) if pcont else 1.0
  feat, entropy = imagine(post, seed, dynamics, actor, config)
  rewards, values = reward(feat).mode(), value(feat).mode()
  pconts = (
      pcont(feat).mean() if pcont else config.discount * tf.ones_like(rewards))
  tools.assert_shapes(
      reward=(rewards, 'H N'), value=(values, 'H N'), pcont=(pconts, 'H N'))
  returns = tools.lambda_return(
      rewards[:-1], values[:-1], pconts[:-1], values[-1], config.disclam,
      axis=0)
  weights = alive * tf.stop_gradient(tf.math.cumprod(
      tf.concat([tf.ones_like(pconts[:1]), pconts[:-2]], 0), 0))
  objective = returns / spread
  if config.actor_entropy:
    # The first entropy is at the start, which no return belongs to.
    objective += config.actor_entropy * entropy[1:]
  actor_loss = -tf.reduce_mean(weights * objective)
  # Features do not depend on the variables of the value, so that the values
  # that the returns are made of serve here too.
  value_loss = -tf.reduce_mean(weights * tools.UnitNormal(
      values[:-1]).log_prob(tf.stop_gradient(returns)))
  return actor_loss, value_loss, dict(
      imag_feat=feat, imag_reward=rewards, imag_value=values,
      imag_pcont=pconts, returns=returns)


def imagine(post, seed, dynamics, actor, config):
  """Imagines H steps of the actor from each of N states.

  Returns:
    Features [H, N, F] and, with `actor_entropy`, the entropies [H, N] of the
    actor at the states before them.
  """
  start = {
      name: tf.stop_gradient(tf.reshape(x, [-1, x.shape[-1]]))
      for name, x in post.items()}
  count = start['deter'].shape[0]
  seeds = tools.split_seed(seed, 2)
  noise = [
      tools.noise([config.horizon, count, size], part, axis=1)
      for size, part in zip((config.stoch_size, actor.actions), seeds)]

  def step(prev, noise):
    # Noise needs no gradients, but the scan would add them up.
    noise = [tf.stop_gradient(part) for part in noise]
    feat = tf.stop_gradient(dynamics.get_feat(prev))
    policy = actor(feat)
    state = dynamics.img_step(prev, policy.sample(noise[1]), noise[0])
    if config.actor_entropy:
      state['entropy'] = policy.sampled_entropy(noise[1])
    return state

  if config.actor_entropy:
    start['entropy'] = tf.zeros([count])
  states = tf.scan(step, tuple(noise), start)
  return dynamics.get_feat(states), states.get('entropy')


### The agent ###


class Dreamer(saving.Saved):
  """World model, actor and value, and how they learn and act.

  Built from a configuration and the number of action dimensions alone; no
  environment, replay or training step is needed. Built in the scope of a
  `tf.distribute` strategy, it learns on all devices of it.
  """

  script = 'dreamer.py'
  # Whether a foreign variables.pkl in a new log directory is to be used.
  takes_source = False
  # Report of what a new agent has from others.
  report = ''
  # Facts of a run that no flag tells, for its config.json.
  records = {}

  def __init__(
      self, config, action_dim, frozen=(), sources=(), rssm_act='elu',
      bits=None):
    """Args:
      config: flags, see `define_config`.
      action_dim: number of action dimensions (A).
      frozen: names of modules that are never trained, `reward/source1` too.
      sources: for each source reward model, whose predictions the reward model
        sees, the units of its hidden layers, `[[400, 400], …]`.
      rssm_act: activation of the RSSM's dense layers; ELU but in agents that
        were trained with another one.
      bits: the precision, as `--precision` has it; what that flag says if None.
    """
    self.config = config
    self.action_dim = action_dim
    self.random = tools.Generators()
    self.updates = 0
    self.step = 0
    self.rssm_act = rssm_act
    self.precision = bits or precision.resolve(config.precision)
    self.strategy = tf.distribute.get_strategy()
    self._frozen = list(frozen)
    self._build(sources)
    self.optimizers = {}
    self._graphs = {}
    self._range = tools.ReturnRange() if config.return_norm else None

  @classmethod
  def start(cls, config, action_dim):
    """The agent of a new run."""
    return cls(config, action_dim).checked()

  def begin(self, logdir):
    """Called once in a new run, before anything is written to its logdir."""

  def coverage(self, directory):
    """Called once before the first update of a run, with its episodes.

    Returns:
      None, or of parts that are another agent's how they fit the target:
      `{measure: number}`, a line that says so, and warnings.
    """

  def _build(self, sources):
    c = self.config
    common = dict(seed=c.seed, dtype=precision.POLICIES[self.precision])
    units = {
        name: [c.num_units] * count for name, count in layers.HIDDEN.items()}
    self._encode = models.Encoder(c.cnn_depth, c.cnn_act, **common)
    # Steps of few rows lose more time to casts than bfloat16 gains.
    exact = dict(dtype='float32') if self.precision == 'bfloat16' else {}
    self._dynamics = models.RSSM(
        self._encode.size, self.action_dim, c.stoch_size, c.deter_size,
        self.rssm_act, **{**common, **exact})
    features = self._dynamics.feature_size
    self._decode = models.Decoder(features, c.cnn_depth, c.cnn_act, **common)
    common.update(act=c.dense_act)
    if sources:
      self._reward = models.MetaReward(
          'reward', features, [c.num_units] * c.num_meta_lay, sources, **common)
    else:
      self._reward = models.DenseHead(
          'reward', features, units['reward'], **common)
    self._pcont = None
    if c.pcont:
      self._pcont = models.DenseHead(
          'pcont', features, units['pcont'], dist='binary', **common)
    self._value = models.DenseHead('value', features, units['value'], **common)
    self._actor = models.Actor(
        features, self.action_dim, units['actor'], dist=c.action_dist,
        init_std=c.action_init_std, min_std=c.actor_min_std, **common)

  @property
  def modules(self):
    """`{name: module}` in the order of old checkpoints."""
    modules = [
        self._actor, self._decode, self._dynamics, self._encode,
        *([self._pcont] if self._pcont else []), self._reward, self._value]
    return {module.name: module for module in modules}

  @property
  def variables(self):
    """`{name: variable}` of all modules."""
    return {
        name: variable for module in self.modules.values()
        for name, variable in module.variables.items()}

  @property
  def parameters(self):
    """Number of parameters of all modules."""
    return sum(
        variable.shape.num_elements() for variable in self.variables.values())

  def frozen(self, name):
    """Whether the variable called `name` is never trained."""
    return layers.module_of(name) in self._frozen or patterns.fits(
        self.config.freeze, name)

  def checked(self, before=None):
    """This agent, if each pattern of its flags fits one of its variables.

    `before` are the flags of a run that goes on, whose patterns may stay.
    """
    for flag in ('freeze', 'weight_decay_pattern'):
      value = getattr(self.config, flag)
      if flag in self.config.changed() and (before or {}).get(flag) != value:
        patterns.check(flag, value, self.variables)
    return self

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
    self._schedule_rates()
    seed = tf.constant([self.config.seed, self.updates])
    self.updates += 1
    return self._train(devices.distribute(self.strategy, batch), seed)

  @functools.cached_property
  def _train(self):
    return function(self._update, jit_compile=devices.compiles(
        self.config.jit, self.strategy.num_replicas_in_sync))

  def _update(self, data, seed):
    """The update: losses, their gradients, a step of the three optimizers."""
    grads, metrics = devices.on_replicas(
        self.strategy, self.gradients, data, seed)
    for name, optimizer in self.optimizers.items():
      optimizer.step(
          grads[name], metrics[f'{name}_grad_norm'], self.strategy)
    if self._range:
      self._range.update(metrics['return_low'], metrics['return_high'])
    return metrics

  def gradients(self, data, seed):
    """Gradients of the losses of a batch, `{part: [gradient]}`, and metrics."""
    with tools.gradient_tape() as tape:
      losses, metrics = self.losses(data, seed)
    grads = {}
    for name, optimizer in self.optimizers.items():
      grads[name], metrics[f'{name}_grad_norm'] = optimizer.gradients(
          tape, losses[name])
    return grads, metrics

  def losses(self, data, seed):
    """Losses of world model, actor and value on a batch, and metrics."""
    losses, parts = self.compute(data, seed)
    metrics = {f'{name}_loss': loss for name, loss in losses.items()}
    metrics.update({
        f'{name}_loss': -x for name, x in parts['likelihood'].items()})
    shape = [tools.TanhNormal.samples, *parts['feat'].shape[:2]]
    noise = tools.noise(
        [*shape, self.action_dim], tools.split_seed(seed, 3)[2], axis=1)
    prior, post = (
        self._dynamics.get_dist(parts[name]) for name in ('prior', 'post'))
    policy = self._actor(parts['feat'])
    metrics.update(self._measures(parts, policy))
    metrics.update(
        div=tf.reduce_mean(parts['div']),
        prior_ent=tf.reduce_mean(prior.entropy()),
        post_ent=tf.reduce_mean(post.entropy()),
        action_ent=tf.reduce_mean(policy.entropy(noise)))
    return losses, metrics

  def _measures(self, parts, policy):
    """Further metrics, by which one sees why an agent does not learn."""
    div, feat = parts['div'], parts['feat']
    mean = tf.reduce_mean(div)
    measures = {
        'div_first': tf.reduce_mean(div[:, 0]),
        'div_above_free': tf.cast(
            tools.replica_mean(mean) > self.config.free_nats, tf.float32),
        'imag_reward': tf.reduce_mean(parts['imag_reward']),
        'imag_value': tf.reduce_mean(parts['imag_value']),
        'replay_reward': tf.reduce_mean(parts['data']['reward']),
        'replay_value': tf.reduce_mean(self._value(feat).mode())}
    if self.config.action_dist == 'tanh_normal':
      measures.update(
          action_abs=tf.reduce_mean(tf.abs(tf.tanh(policy.mean_before))),
          action_std=tf.reduce_mean(policy.std_before))
    if self._range:
      measures.update({
          f'return_{name}': tools.percentile(parts['returns'], share, axis=1)
          for name, share in (('low', 0.05), ('high', 0.95))})
    return measures

  def compute(self, data, seed):
    """Losses of a batch, and all that they were computed from, in order."""
    model_seed, behaviour_seed, _ = tools.split_seed(seed, 3)
    shared = dict(
        dynamics=self._dynamics, reward=self._reward, pcont=self._pcont,
        config=self.config)
    data = self.preprocess(data)
    model, parts = world_model_loss(
        data, model_seed, encode=self._encode, decode=self._decode, **shared)
    actor, value, more = behaviour_losses(
        parts['post'], data['discount'], behaviour_seed, actor=self._actor,
        value=self._value,
        spread=self._range.spread if self._range else 1.0, **shared)
    return {'model': model, 'actor': actor, 'value': value}, {
        'data': data, **parts, 'model_loss': model,
        **more, 'actor_loss': actor, 'value_loss': value}

  def preprocess(self, data):
    """A batch as the networks see it: images scaled, rewards clipped."""
    data = dict(data, image=scale_image(data['image']))
    if 'reward' in data:
      data['reward'] = clip_reward(data['reward'], self.config.clip_rewards)
    return data

  def _make_optimizers(self):
    """Made when training begins: acting and loading need none."""
    if self.optimizers:
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
        with self.strategy.scope():
          self.optimizers[name] = tools.Optimizer(
              name, variables, getattr(c, f'{name}_lr'), c.grad_clip,
              c.weight_decay, c.weight_decay_pattern,
              scaled=self.precision == '16')

  def _schedule_rates(self):
    """Gives the optimizers the learning rates of the present step."""
    c = self.config
    if c.lr_end < 1:
      passed = min(1.0, self.step / max(c.steps, 1))
      for optimizer in self.optimizers.values():
        optimizer.scale_rate(1 - passed * (1 - c.lr_end))

  @property
  def skipped(self):
    """Updates of each part that were left out because of bad numbers."""
    return {
        name: optimizer.skipped for name, optimizer in self.optimizers.items()}

  @property
  def stuck(self):
    """Whether one of the parts takes no updates any more."""
    return any(optimizer.stuck for optimizer in self.optimizers.values())

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
    rng = self.random.next(self.config.seed, training)
    noise = rng.standard_normal(
        [count, self._noise_size(training)], np.float32)
    feat, action = self._acting(training, image.dtype)(
        image, tf.convert_to_tensor(feat),
        tf.convert_to_tensor(np.concatenate([action, noise], 1)))
    action = self._explore(action.numpy(), self.expl_amount(training), rng)
    return tf.convert_to_tensor(action), (feat, action)

  def random_actions(self, count):
    """Actions [N, A] that depend on no observation, for before training."""
    return self._random(count, self.random.next(
        self.config.seed, training=True))

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

  # Looking inside

  def open_loop(self, batch, context=5):
    """Video uint8 [T, 3 · 64, B · 64, 3] of images predicted from actions.

    See `prediction.video`; `context` is the number of images that the model
    sees of each episode.
    """
    return self._open_loop(tensors(batch), context).numpy()

  @functools.cached_property
  def _open_loop(self):
    return function(functools.partial(prediction.video, self))


def scale_image(image):
  """uint8 to -0.5 … 0.5; floats are taken as they are."""
  image = tf.convert_to_tensor(image)
  if image.dtype != tf.uint8:
    return image
  return tf.cast(image, tf.float32) / 255 - 0.5


def clip_reward(reward, function):
  """Rewards as they are learned; `function` is that of `--clip_rewards`."""
  return tf.tanh(reward) if function == 'tanh' else reward


def tensors(batch):
  return {name: tf.convert_to_tensor(value) for name, value in batch.items()}


def load_agent(path):
  """The agent of a log directory or of a checkpoint file, old format too.

  Neither environments nor replay nor the script that trained it are needed, and
  nothing is written.

  Raises:
    UserError: There is no checkpoint, or it is damaged.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    checkpoint, _ = checkpoints.newest(Logdir(path).checkpoint)
  else:
    checkpoint = checkpoints.load(path)
  script = checkpoint['script'] or Dreamer.script
  config = options.SCRIPTS.get(script, define_config)()
  config.update({
      name: value for name, value in checkpoint['config'].items()
      if name in config})
  agent = Dreamer.from_checkpoint(config, checkpoint['action_dim'], checkpoint)
  agent.script = script
  return agent


Agent = Dreamer


def main(argv):
  return loop.main(argv, __doc__, define_config, Dreamer)


if __name__ == '__main__':
  terminal.run(main)
