"""A second backbone family, as small as can be.

Put it among `interop.families.KNOWN` to read its folders.
"""
