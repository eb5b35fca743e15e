"""The letters of the library: one letter, one axis, in names, annotations and einsums.

A name that ends in letters says its axes in order: `prompt_RGPH` is [R G P H].
"""

AXES = {
  "B": "rows of a batch",
  "R": "examples: B, or B * S in a packed batch (in a factor's name: its rank)",
  "S": "segments (examples) of a packed row; input positions of an offset table",
  "T": "input tokens",
  "U": "target tokens",
  "V": "vocabulary rows",
  "H": "width of the backbone and of a prompt",
  "N": "attention heads",
  "D": "width of a head",
  "J": "width of all heads, N * D",
  "P": "prompt positions",
  "G": "tables that a site asks for",
  "Q": "vectors of a code",
  "C": "width of a code",
  "K": "tasks, labels or bank entries",
  "F": "width of a feed-forward layer",
}
