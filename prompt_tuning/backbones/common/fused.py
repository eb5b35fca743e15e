"""Attention by kernels that never hold the weights [B N Q T].

  cudnn   cuDNN's flash attention: NVIDIA GPUs from Ampere on, bfloat16, D up to 128
  pallas  JAX's flash attention for TPUs (jax.experimental.pallas.ops.tpu)

Both read position bias and mask as one additive bias [B N Q T]. It is frozen, and its
gradient is as large as all the weights; but the public functions of JAX 0.10 compute
and write that of any bias, asked for or not. So the parts beneath them are called here,
with a backward pass that has no such output. Neither kernel drops weights of attention.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Kind -> what jax.default_backend() says, and the words for it.
RUNS_ON = {"cudnn": ("gpu", "NVIDIA GPUs"), "pallas": ("tpu", "TPUs")}
# Fewer queries than this (decoding, short targets) make weights that are small anyway.
LEAST_QUERIES = 128
# Lengths must be multiples; the rest is padded and masked.
MULTIPLE = {"cudnn": 2, "pallas": 128}
# Added where attention is forbidden; finite, so that a row with no key stays finite.
MASKED = -1e10
_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  "target", default=None
)


@contextlib.contextmanager
def lowering_for(platform: str) -> Iterator[None]:
  """What is traced within is for "gpu" or "tpu", whatever this machine has."""
  token = _TARGET.set(platform)
  try:
    yield
  finally:
    _TARGET.reset(token)


def check(kind: str) -> None:
  """Refuses a kernel that this machine cannot run.

  Raises:
    ValueError: naming what it runs on.
  """
  if kind not in RUNS_ON:
    return
  needed, words = RUNS_ON[kind]
  platform = _TARGET.get() or jax.default_backend()
  fix = "Set ATTENTION = 'xla', which runs everywhere."
  if platform != needed:
    raise ValueError(
      f"`ATTENTION` (`T5Config.attention`) is {kind!r}, which runs on {words}, but JAX "
      f"runs on {platform!r} here. {fix}"
    )
  if _TARGET.get() is not None:
    return
  if kind == "pallas" and jax.device_count() > 1:
    raise ValueError(
      "`ATTENTION` (`T5Config.attention`) is 'pallas', whose kernel XLA cannot divide "
      f"over devices, and there are {jax.device_count()}. {fix}"
    )
  if kind == "cudnn":
    capability = getattr(jax.local_devices()[0], "compute_capability", "0")
    if _library().cuda_versions is None or float(capability) < 8:
      raise ValueError(
        "`ATTENTION` (`T5Config.attention`) is 'cudnn', which takes cuDNN and a GPU of "
        f"compute capability 8.0 or more; this one has {capability}. {fix}"
      )


def chosen(kind: str, queries: Any) -> bool:
  """Whether so many queries go through a kernel, whose blocks take a known number.

  Args:
    kind: as in `RUNS_ON`. queries: a symbol where a program is exported.
  """
  known = kind in RUNS_ON and isinstance(queries, int)
  return known and queries >= LEAST_QUERIES


def bias_of(
  bias: Float[Array, "#B #N #Q T"], shape: tuple[int, int, int], dtype: Any, kind: str
) -> Float[Array, "B N Q T"]:
  """The bias as a kernel reads it; a pass makes it once for all its layers.

  Args:
    bias: position bias and mask. shape: (B, N, Q). dtype: of the activations.
    kind: as in `RUNS_ON`. XLA, and few queries, take the bias as it is.
  """
  B, N, Q = shape
  if not chosen(kind, Q):
    return bias
  bias = jnp.broadcast_to(bias, (B, N, Q, bias.shape[-1]))
  pads = [(0, 0), (0, 0), *((0, _rest(size, kind)) for size in bias.shape[2:])]
  bias = jnp.pad(bias, pads, constant_values=MASKED)
  # cuDNN adds a bias of the queries' own type.
  return jax.lax.stop_gradient(bias.astype(dtype) if kind == "cudnn" else bias)


def attend(
  query_BQND: Float[Array, "B Q N D"],
  key_BTND: Float[Array, "B T N D"],
  value_BTND: Float[Array, "B T N D"],
  bias_BNQT: Float[Array, "B N Q2 T2"],
  kind: str,
) -> Float[Array, "B Q N D"]:
  """Unscaled attention, softmax in float32; the bias is one of `bias_of`."""
  check(kind)
  Q = query_BQND.shape[1]
  kernel = {"cudnn": _cudnn, "pallas": _pallas}[kind]
  padded = (_padded(x, kind) for x in (query_BQND, key_BTND, value_BTND))
  return kernel(*padded, bias_BNQT)[:, :Q]


def _rest(size: int, kind: str) -> int:
  return -size % MULTIPLE[kind]


def _padded(x_BTND: Array, kind: str) -> Array:
  rest = _rest(x_BTND.shape[1], kind)
  return jnp.pad(x_BTND, ((0, 0), (0, rest), (0, 0), (0, 0))) if rest else x_BTND


def _library() -> Any:
  from jax._src.cudnn import fused_attention_stablehlo

  return fused_attention_stablehlo


def _cudnn(query: Array, key: Array, value: Array, bias: Array) -> Array:
  library = _library()
  versions = library.cuda_versions
  unused = [jnp.zeros(0, query.dtype)] * 6
  has_bias, wants_its_gradient = True, False
  return library._dot_product_attention(
    query,
    key,
    value,
    bias,
    *unused,
    1.0,  # scale
    0,  # seed
    0.0,  # dropout_rate
    (has_bias, wants_its_gradient),
    library.MaskType.NO_MASK,
    library.AttentionLayout.BTNH.value,
    None,  # sliding_window_length
    versions.cudnn_get_version() if versions else 0,
    False,  # return_residual
  )


def _pallas(query: Array, key: Array, value: Array, bias: Array) -> Array:
  heads = (x.swapaxes(1, 2) for x in (query, key, value))
  return _flash(*heads, bias).swapaxes(1, 2)


@jax.custom_vjp
def _flash(q_BNQD: Array, k_BNTD: Array, v_BNTD: Array, bias_BNQT: Array) -> Array:
  return _flash_forward(q_BNQD, k_BNTD, v_BNTD, bias_BNQT)[0]


def _flash_forward(q: Array, k: Array, v: Array, bias: Array) -> Any:
  from jax.experimental.pallas.ops.tpu import flash_attention as library

  wide, long = _block(q), _block(k)
  out, total, most = library._flash_attention_impl(
    q, k, v, bias, None, True, False, 1.0, 1, wide, long, long, False
  )
  return out, (q, k, v, bias, out, total, most)


def _flash_backward(kept: Any, grad: Array) -> Any:
  from jax.experimental.pallas.ops.tpu import flash_attention as library

  q, k, v, bias, out, total, most = kept
  mean = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1)
  wide, long = _block(q), _block(k)
  dk, dv = library._flash_attention_bwd_dkv(
    q,
    k,
    v,
    bias,
    None,
    total,
    most,
    grad,
    mean,
    block_q_major=wide,
    block_q=wide,
    block_k_major=long,
    block_k=long,
    sm_scale=1.0,
    causal=False,
    mask_value=library.DEFAULT_MASK_VALUE,
    debug=False,
  )
  return _query_gradient(library, kept, grad, mean), dk, dv, None


_flash.defvjp(_flash_forward, _flash_backward)


def _block(x_BNTD: Array) -> int:
  return next(size for size in (512, 256, 128) if x_BNTD.shape[2] % size == 0)


def _query_gradient(library: Any, kept: Any, grad: Array, mean: Array) -> Array:
  """The library's kernel for it, called without the bias's gradient as an output."""
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import tpu as pltpu

  q, k, v, bias, _, total, most = kept
  (B, N, Q, D), T = q.shape, k.shape[2]
  wide, long = _block(q), _block(k)
  lanes = library.MIN_BLOCK_SIZE
  total, most, mean = (
    jnp.broadcast_to(x[..., None], (*x.shape, lanes)) for x in (total, most, mean)
  )

  def rows(width: int) -> Any:
    return pl.BlockSpec((1, 1, wide, width), lambda b, n, q, t: (b, n, q, 0))

  keys = pl.BlockSpec((1, 1, long, D), lambda b, n, q, t: (b, n, t, 0))
  pairs = pl.BlockSpec((1, 1, wide, long), lambda b, n, q, t: (b, n, q, t))
  kernel = functools.partial(
    library._flash_attention_dq_kernel,
    sm_scale=1.0,
    causal=False,
    mask_value=library.DEFAULT_MASK_VALUE,
    block_k=lanes,
    kv_seq_len=T,
  )

  def without_bias(q, k, v, bias, total, most, grad, mean, dq, scratch) -> None:
    kernel(q, k, v, bias, None, None, total, most, grad, mean, dq, None, scratch)

  return pl.pallas_call(
    without_bias,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=0,
      grid=(B, N, Q // wide, T // long),
      in_specs=[
        *(rows(D), keys, keys, pairs),
        *(rows(lanes), rows(lanes), rows(D), rows(lanes)),
      ],
      out_specs=rows(D),
      scratch_shapes=[pltpu.VMEM((wide, D), jnp.float32)],
    ),
    out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
    ),
  )(q, k, v, bias, total, most, grad, mean)
