"""Strided convolutions without padding, in the form fastest on each device."""

from common.backend import tf

# cuDNN is fastest with the plain operations; oneDNN and Eigen are not.
PLAIN = bool(tf.config.list_physical_devices('GPU'))


def conv(x, kernel, bias):
  """Convolution with stride 2 without padding.

  `x` [N, H, W, C], `kernel` [k, k, C, D], `bias` [D] -> [N, (H-k)/2+1, .., D].
  """
  if PLAIN or _size(x, kernel) > 2:
    return add_bias(tf.nn.conv2d(x, kernel, 2, 'VALID'), bias)
  return add_bias(_conv_patches(x, kernel), bias)


def deconv(x, kernel, bias):
  """Transposed convolution with stride 2 without padding.

  `x` [N, H, W, C], `kernel` [k, k, D, C], `bias` [D] -> [N, 2(H-1)+k, .., D].
  """
  if x.shape[1] == x.shape[2] == 1:
    return add_bias(_deconv_pixel(x, kernel), bias)
  if PLAIN or kernel.shape[0] % 2:
    return add_bias(_deconv_plain(x, kernel), bias)
  return _deconv_subpixel(
      x, tf.convert_to_tensor(kernel), tf.convert_to_tensor(bias))


def add_bias(x, bias):
  """Sum of `x` [..., D] and `bias` [D], in half precision too."""
  if x.dtype == tf.float32:
    return tf.nn.bias_add(x, bias)
  return _add_bias(x, tf.convert_to_tensor(bias))


@tf.custom_gradient
def _add_bias(x, bias):
  # On a CPU, tf.nn.bias_add sums its gradient in bfloat16 (and tf.reduce_sum
  # in float16): beyond some hundred terms the sum stops growing.
  def grad(dy):
    return dy, _column_sums(tf.reshape(dy, [-1, bias.shape[0]]))
  return tf.nn.bias_add(x, bias), grad


def _column_sums(x):
  # As a product, which accumulates in float32 whatever its type.
  return tf.matmul(tf.ones([1, tf.shape(x)[0]], x.dtype), x)[0]


def _size(x, kernel):
  return (max(x.shape[1:3]) - kernel.shape[0]) // 2 + 1


def _conv_patches(x, kernel):
  # Few output pixels: the product of their patches with the kernel.
  k, _, channels, depth = kernel.shape
  rows, columns = [(s - k) // 2 + 1 for s in x.shape[1:3]]
  patches = tf.concat([
      tf.reshape(
          tf.slice(x, [0, i, j, 0], [-1, k, k, channels]),
          [-1, k * k * channels])
      for i in range(0, 2 * rows, 2) for j in range(0, 2 * columns, 2)], 1)
  patches = tf.reshape(patches, [-1, k * k * channels])
  y = tf.matmul(patches, tf.reshape(kernel, [-1, depth]))
  return tf.reshape(y, [-1, rows, columns, depth])


def _deconv_pixel(x, kernel):
  # One pixel in: every output pixel is its own product, so all are one.
  k, _, depth, units = kernel.shape
  kernel = tf.reshape(kernel, [-1, units])
  x = tf.matmul(tf.reshape(x, [-1, units]), kernel, transpose_b=True)
  return tf.reshape(x, [-1, k, k, depth])


def _deconv_plain(x, kernel):
  size = [2 * (s - 1) + kernel.shape[0] for s in x.shape[1:3]]
  shape = [tf.shape(x)[0], *size, kernel.shape[2]]
  return tf.nn.conv2d_transpose(x, kernel, shape, 2, 'VALID')


@tf.custom_gradient
def _deconv_subpixel(x, kernel, bias):
  # Output pixels of each of the 4 parities see their own k/2 x k/2 kernel: one
  # convolution at the low resolution computes the 4 as channels. Backward, the
  # strided convolutions themselves are faster.
  half, pad = kernel.shape[0] // 2, kernel.shape[0] // 2 - 1
  pads = [[0, 0], [pad, pad], [pad, pad], [0, 0]]
  y = tf.nn.conv2d(x, _phases(kernel, half), 1, pads)
  y = tf.nn.bias_add(y, tf.tile(bias, [4]))
  height, width, depth = y.shape[1], y.shape[2], kernel.shape[2]
  y = tf.reshape(y, [-1, height, width, 2, 2 * depth])
  y = tf.transpose(y, [0, 1, 3, 2, 4])

  def grad(dy):
    dx = tf.nn.conv2d(dy, kernel, 2, 'VALID')
    dkernel = tf.raw_ops.Conv2DBackpropFilter(
        input=dy, filter_sizes=kernel.shape, out_backprop=x,
        strides=[1, 2, 2, 1], padding='VALID')
    # With few channels, sums over whole rows of pixels are faster.
    dbias = _column_sums(tf.reshape(dy, [-1, 2 * width * depth]))
    return dx, dkernel, _column_sums(tf.reshape(dbias, [-1, depth]))
  return tf.reshape(y, [-1, 2 * height, 2 * width, depth]), grad


def _phases(kernel, half):
  # [k, k, D, C] -> [k/2, k/2, C, 4 D]
  depth, channels = kernel.shape[2:]
  kernel = tf.reshape(kernel, [half, 2, half, 2, depth, channels])
  kernel = tf.transpose(kernel[::-1, :, ::-1], [0, 2, 5, 1, 3, 4])
  return tf.reshape(kernel, [half, half, channels, 4 * depth])
