"""The flags of the training scripts: each with its default and its meaning.

Defaults are the published values. TensorFlow is never imported here, so that
`--help` answers at once and plots can ask which flags make a method.

`fixed=False` marks a flag that may change when a run is continued;
`method=False` one that tells no methods apart in plots, either since the same
is learned with every value or since a plot shows it elsewhere, as it does the
task and the seed.
"""

import pathlib
import re

from common import flags

NUMBERED = 8  # Tasks of a run, and source reward models, at most.
LOGDIR = pathlib.Path('./logdir/TASK/METHOD/SEED')
# Flags that are settings of `wrappers.make_env`.
ENVIRONMENT = (
    'action_repeat', 'time_limit', 'own_limit', 'termination', 'render',
    'camera', 'end_of_life', 'noops')


def environment(config):
  """Defines the settings of `wrappers.make_env`."""
  define = config.define
  define('action_repeat', 2, 'Environment steps for which a decision is '
         'repeated.', low=1)
  define('time_limit', 1000, 'Environment steps after which an episode is '
         'truncated; 108000 for Atari.', low=1)
  define('own_limit', False, 'Let the registered time limits of PyBullet tasks '
         'hold too (Reacher and Pusher 150, Thrower 100 environment steps); on '
         'unless time_limit is given.')
  define('termination', False, 'Let PyBullet tasks terminate episodes by their '
         'own rules; turns pcont on.')
  define('end_of_life', False, 'Let a lost life terminate an Atari episode; '
         'on for Atari.')
  define('noops', 0, 'Most environment steps without an action at the '
         'beginning of an Atari episode; 30 for Atari.', low=0)
  define('render', 'default', 'Rendering of DeepMind Control; fast leaves out '
         'shadows and reflections.', ['default', 'fast'])
  define('camera', 'published', 'Camera of PyBullet: the published one cuts '
         'off parts of some robots, whole shows all of them.',
         ['published', 'whole'])


def dreamer():
  """The flags of dreamer.py."""
  config = flags.Config()
  define = config.define

  config.heading('General')
  define('logdir', LOGDIR, 'Log directory: checkpoints, episodes, metrics. A '
         'run that is there already is continued. METHOD is dreamer, '
         'multi-task, FTL or MMTL.', fixed=False, method=False)
  define('preset', 'paper', 'Set of values to start from: paper is the '
         'defaults, cpu learns on one core with options of later agents, small '
         'has the published losses at small sizes, debug is for tests. Flags '
         'given as well win over it.', ['paper', 'cpu', 'small', 'debug'],
         fixed=False, method=False)
  define('seed', 0, 'Seed of the environments, the actions, the batches and '
         'the initial weights.', low=0, high=2 ** 31 - 1, method=False)
  define('steps', int(5e6), 'Environment steps to train for, those of all '
         'tasks and environments together.', low=0, fixed=False, method=False)
  define('eval_every', int(1e4), 'Environment steps between evaluations.',
         low=1, fixed=False, method=False)
  define('eval_episodes', 1, 'Episodes of each task in an evaluation.',
         low=1, fixed=False, method=False)
  define('log_every', int(1e3), "Environment steps between logs of the agent's "
         'metrics.', low=1, fixed=False, method=False)
  define('log_scalars', True, "Whether to log the agent's metrics.",
         fixed=False, method=False)
  define('log_images', True, 'Whether to log videos of evaluation episodes '
         'and of open-loop predictions.', fixed=False, method=False)
  define('log_histograms', False, 'Whether to log histograms of all variables '
         'at evaluations.', fixed=False, method=False)
  define('save_every', 600.0, 'Seconds between checkpoints.', low=0,
         fixed=False, method=False)
  define('gpu_growth', True, 'Whether to take GPU memory as it is needed '
         'instead of all at once.', fixed=False, method=False)
  define('threads', 0, 'Threads of TensorFlow; 0 takes all cores. With 1, '
         'runs repeat bit for bit.', low=0, fixed=False, method=False)
  define('precision', 'auto', 'Floating-point format of the networks; auto is '
         '16 on a GPU, bfloat16 on a CPU with instructions for it '
         '(avx512_bf16, amx_bf16), else 32. A run that goes on keeps the one '
         'it was trained in.', ['auto', '16', 'bfloat16', '32'], fixed=False,
         method=False)
  define('jit', 'auto', 'Whether to compile the update with XLA, which takes '
         'a minute or two at the start; auto does on a GPU, where updates are '
         'several times as fast then.', ['auto', 'True', 'False'], fixed=False,
         method=False)
  define('allow_changes', False, 'Continue a run although flags differ from '
         'those it was started with.', fixed=False, method=False)

  config.heading('Environment')
  define('task', 'dmc_walker_walk', 'Task to learn: a PyBullet id such as '
         'HopperBulletEnv-v0, dmc_DOMAIN_TASK, atari_GAME, a registered '
         'Gymnasium id, or MODULE:FUNCTION that returns an environment.',
         method=False)
  define('envs', 1, 'Environments that collect episodes side by side.', low=1,
         method=False)
  define('parallel', 'none', 'Where environments run: in this thread (none), '
         'in threads, or in processes.', ['none', 'thread', 'process'],
         fixed=False, method=False)
  environment(config)
  define('collect_limit', 0, 'Environment steps after which an episode to '
         'learn from is truncated, where that is sooner than the time limit; 0 '
         'leaves it. Short ones show the beginning of a task more often, and '
         'evaluation keeps the time limit.', low=0)
  define('collect_short', 0, 'Episodes of each environment that collect_limit '
         'truncates, the first ones; 0 for all.', low=0)
  define('prefill', 5000, 'Environment steps with random actions before '
         'training.', low=0)
  define('eval_noise', 0.0, 'Amount of exploration during evaluation.', low=0)
  define('clip_rewards', 'none', 'Function applied to rewards before they are '
         'learned.', ['none', 'tanh'])

  config.heading('World model')
  activations = ['elu', 'relu', 'leaky_relu', 'tanh', 'selu', 'swish']
  define('deter_size', 200, 'Units of the deterministic state (GRU).', low=1)
  define('stoch_size', 30, 'Dimensions of the stochastic state (Gaussian).',
         low=1)
  define('num_units', 400, 'Units of a hidden layer of the reward, value, '
         'pcont and actor networks.', low=1)
  define('dense_act', 'elu', 'Activation of the dense layers of reward, value, '
         'pcont and actor; the RSSM always has ELU.', activations)
  define('cnn_act', 'relu', 'Activation of convolutions.', activations)
  define('cnn_depth', 32, 'Channels of the first convolution; later layers '
         'have multiples.', low=1)
  define('pcont', False, 'Learn to predict the discount, and with it the end '
         'of episodes; on for tasks that can terminate.')
  define('free_nats', 3.0, 'Free nats: KL divergence of posterior and prior '
         'below which it has no gradient.', low=0)
  define('free_nats_of', 'batch', 'Divergence to which free nats are given: '
         'the mean of a batch, as published, or that of each time step '
         '(PlaNet).', ['batch', 'step'])
  define('kl_balance', 0.0, 'KL balancing: share of the divergence that trains '
         'the prior, the rest trains the posterior (DreamerV2, arXiv '
         '2010.02193: 0.8); 0 trains both with all of it.', low=0, high=1)
  define('kl_scale', 1.0, 'Scale β of the KL divergence in the model loss.',
         low=0)
  define('decode_stride', 1, 'Images are decoded at one of so many time steps '
         'of a sequence, which saves time on a processor.', low=1)
  define('pcont_scale', 10.0, 'Scale of the log-likelihood of the discount in '
         'the model loss.', low=0)
  define('weight_decay', 0.0, 'Decoupled weight decay: fraction by which '
         'matching variables shrink at an update.', low=0, high=1)
  define('weight_decay_pattern', '.*', 'Variables that decay (regular '
         'expression).', regex=True)
  define('freeze', '', 'Variables that are never trained (regular '
         'expression).', regex=True)

  config.heading('Training')
  define('batch_size', 50, 'Sequences in a batch (B).', low=1)
  define('batch_length', 50, 'Time steps in a sequence (T).', low=2)
  define('train_every', 1000, 'Environment steps between phases of training.',
         low=1)
  define('train_steps', 100, 'Updates in a phase of training.', low=1)
  define('pretrain', 100, 'Updates in the first phase of training.', low=0)
  define('model_lr', 6e-4, 'Learning rate of the world model.', low=0)
  define('value_lr', 8e-5, 'Learning rate of the value network.', low=0)
  define('actor_lr', 8e-5, 'Learning rate of the actor.', low=0)
  define('lr_end', 1.0, 'Factor of the learning rates at --steps, to which '
         'they fall linearly; 1 keeps them. Weight decay stays.', low=0, high=1)
  define('grad_clip', 100.0, 'Global norm to which gradients are clipped.',
         positive=True)
  define('dataset_balance', False, 'Draw more sequences from the ends of '
         'episodes.')
  define('replay_memory', 0.0, 'Memory in GiB that replay may take; 0 takes a '
         'quarter of what is free.', low=0, high=2 ** 20, fixed=False,
         method=False)

  config.heading('Behaviour')
  define('discount', 0.99, 'Discount factor γ per decision.', low=0, high=1)
  define('disclam', 0.95, 'λ of the λ-returns.', low=0, high=1)
  define('horizon', 15, 'Imagination horizon H, in decisions.', low=3)
  define('action_dist', 'tanh_normal', 'Action distribution of the actor; '
         'tasks with discrete actions have onehot.', ['tanh_normal', 'onehot'])
  define('action_init_std', 5.0, 'Initial standard deviation of the actor, '
         'before tanh.', positive=True)
  define('actor_min_std', 1e-4, 'Minimum standard deviation of the actor, '
         'before tanh (DreamerV2: 0.1).', low=0)
  define('actor_entropy', 0.0, "Scale of the actor's entropy in its loss "
         '(DreamerV3, arXiv 2301.04104: 3e-4).', low=0)
  define('return_norm', False, 'Divide returns in the loss of the actor by the '
         'running range of their 5 to 95 percent points (DreamerV3).')
  define('imag_stride', 1, 'Imagination starts at one of so many time steps of '
         'a sequence, which saves time on a processor.', low=1)
  define('expl', 'additive_gaussian', 'Exploration: noise added to actions, '
         'random actions only, or random actions at times.',
         ['additive_gaussian', 'completely_random', 'epsilon_greedy'])
  define('expl_amount', 0.3, 'Amount of exploration: standard deviation of '
         'additive_gaussian, probability of epsilon_greedy.', low=0)
  define('expl_decay', 0.0, 'Environment steps in which the amount of '
         'exploration halves; 0 keeps it.', low=0)
  define('expl_min', 0.0, 'Minimum to which the amount of exploration decays.',
         low=0)

  config.preset('paper')
  config.preset(
      'cpu', cnn_depth=8, deter_size=128, num_units=128, batch_size=5,
      train_every=100, train_steps=20, pretrain=500, model_lr=1e-3,
      value_lr=3e-4, actor_lr=3e-4, lr_end=0.1, free_nats=1.0,
      free_nats_of='step', kl_balance=0.8, return_norm=True,
      actor_entropy=1e-2, actor_min_std=0.1, action_init_std=1.0,
      decode_stride=2, imag_stride=2, collect_limit=200, collect_short=150)
  config.preset(
      'small', cnn_depth=16, deter_size=128, num_units=128, batch_size=8,
      batch_length=16)
  config.preset(
      'debug', cnn_depth=2, deter_size=12, stoch_size=4, num_units=16,
      batch_size=4, batch_length=10, horizon=5, prefill=200, time_limit=100,
      train_every=100, train_steps=2, pretrain=2, eval_every=200,
      log_every=100, steps=600)
  return config


def _several_tasks():
  """The flags of dreamer.py with several tasks in place of one."""
  config = dreamer()
  config.define('task', '', 'Of dreamer.py; here tasks have numbers.',
                method=False)
  config.define('envs', 0, 'One environment for each task: 0, or the number of '
                'tasks.', low=0, method=False)
  config.heading('Transfer')
  _numbered(config, 'task', 'Task {}, named as in dreamer.py.', method=False)
  return config


def _numbered(config, name, meaning, **more):
  """Defines `name1`, `name2`, …"""
  for number in range(1, NUMBERED + 1):
    config.define(f'{name}{number}', '', meaning.format(number), **more)


def multi_task():
  """The flags of dreamer-multi-task.py."""
  config = _several_tasks()
  config.define('transfer', False, 'Only False here; to transfer, see '
                'dreamer-FTL.py.', method=False)
  return config


def fractional():
  """The flags of dreamer-FTL.py."""
  config = _several_tasks()
  define = config.define
  # The names of methods in plots tell these two: scratch, FTL ω=0.2.
  define('transfer', False, 'Start from a source instead of from scratch; '
         'True if --source is given.', method=False)
  define('transfer_factor', 0.2, 'Transfer factor ω, the fraction of the '
         'source added to what is scaled; 0 is modular transfer alone.', low=0,
         method=False)
  define('source', '', 'Log directory or checkpoint to transfer from. Without '
         'it, variables.pkl in the new log directory, which becomes '
         'source.pkl.', path=True)
  define('reset', '^actor/hout|^dynamics/img1/kernel/action', 'Variables that '
         'keep their fresh values (regular expression).', regex=True)
  define('scale', '^(reward|value|pcont)/hout', 'Variables W that become '
         'W_fresh + ω · W_source (regular expression).', regex=True)
  define('copy', '.*', 'Variables that are copied, unless --reset or --scale '
         'fits them (regular expression).', regex=True)
  return config


def meta_model():
  """The flags of dreamer-MMTL.py."""
  config = _several_tasks()
  define = config.define
  define('encoder', '', 'Module file, checkpoint, log directory or directory '
         'of module files with the encoder. Without it, encoder.pkl in the log '
         'directory or its parent.', path=True)
  define('decoder', '', 'The same for the decoder. Without it, decoder.pkl, '
         "or a decoder in the encoder's file or directory, if any; else the "
         'decoder is trained. With none, the decoder is trained from scratch.', path=True)
  # The names of methods in plots tell these: MMTL N=2, MMTL N=2 decoder copied.
  define('freeze_decoder', True, 'Keep a decoder that is taken over as it is; '
         'False trains it, as the published script does.', method=False)
  define('n_meta', 0, 'Number N of source reward models.', low=0,
         high=NUMBERED, method=False)
  _numbered(
      config, 'meta', 'Source reward model {}: a task in ./stored_meta, or '
      'the path of a module file, a checkpoint or a directory with one.',
      path=True)
  define('num_meta_lay', 1, 'Hidden layers of the reward model on features and '
         'predictions of the sources.', low=0)
  return config


SCRIPTS = {
    'dreamer.py': dreamer,
    'dreamer-multi-task.py': multi_task,
    'dreamer-FTL.py': fractional,
    'dreamer-MMTL.py': meta_model}


def place(config, script, tasks):
  """Puts the log directory of a run in place of its pattern, the default.

  Args:
    config: flags of the run, changed in place.
    script: name of the script, for example 'dreamer-FTL.py'.
    tasks: names of the tasks; several are joined with +.
  """
  if config.logdir != LOGDIR:
    return
  tasks = list(dict.fromkeys(tasks))
  task = '+'.join(tasks)
  if len(task) > 150:  # File systems take names of 255 bytes.
    task = f'{tasks[0]}+{len(tasks) - 1}'
  method = pathlib.Path(script).stem.removeprefix('dreamer-')
  config.logdir = pathlib.Path(
      'logdir', re.sub(r'[^\w.+-]', '-', task), method, str(config.seed))
