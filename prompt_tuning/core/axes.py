"""The letters of the library: one letter, one axis, in names, annotations and einsums.

A name that ends in letters says its axes in order: `prompt_RGPH` is [R G P H].

  B  rows of a batch                      P  prompt positions
  R  examples: B, or B * S where rows     G  tables that a site asks for
     are packed (in a factor's name:      Q  vectors of a code
     its rank)                            C  width of a code
  S  segments (examples) of a packed      K  tasks, labels or bank entries
     row; positions of an offset table    F  width of a feed-forward layer
  T  input tokens                         N  attention heads
  U  target tokens                        D  width of a head
  V  vocabulary rows                      J  width of all heads, N * D
  H  width of the backbone and of a
     prompt
"""

from jaxtyping import Array, Float


def along(values: Float[Array, "*Y"], like: Float[Array, "*X"]) -> Array:
  """Values with leading axes of length 1, so that they stand for each entry of `like`.

  Tests refuse arrays of other ranks beside each other: a vector that meets the wrong
  axis is a silent fault.
  """
  return values.reshape((1,) * (like.ndim - values.ndim) + values.shape)
