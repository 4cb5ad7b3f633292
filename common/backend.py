"""Imports TensorFlow, TensorFlow Probability and Keras, quietly and safely.

Every module that needs them takes them from here.
"""

import os
import sys
import warnings

from common import machine, terminal

# TensorFlow 2.20 and 2.21 load their library with global symbols, which makes
# Mesa's software OpenGL (dm_control on a machine without a GPU) crash in the
# same process (tensorflow issue 124205). This is what the fix upstream does.
sys.modules.setdefault('tensorflow.python.pywrap_dlopen_global_flags', None)
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# TensorFlow Probability and our layers share Keras 2.
os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
# TensorFlow leaves oneDNN off where a processor has no AVX-512 VNNI, though
# updates are faster with it there as well (docs/speed.md).
if machine.is_x86():
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')

with terminal.silence(), warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import tensorflow as tf
  import tensorflow_probability as tfp
  import tf_keras as keras

tf.get_logger().setLevel('ERROR')
tfd = tfp.distributions

__all__ = ['keras', 'tf', 'tfd']
