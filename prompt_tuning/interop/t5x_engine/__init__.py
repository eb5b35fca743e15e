"""Upstream T5X as the engine: its train, eval and infer run our sentences.

Only `model.py` and `optimizer.py` import T5X, and only gin files of `gin/t5x/` import
them, so the library does without it.
"""
