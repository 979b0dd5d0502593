"""Kernels in C++ for transformers with 8-bit or 4-bit weights on a CPU. This package does not depend on any model.

`library` compiles kernels.cpp and loads the result, `modules` has the PyTorch modules that use it.
"""
