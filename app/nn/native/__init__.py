"""Kernels in C++ for transformers with 8-bit or 4-bit weights on a CPU. This package does not depend on any model.

`library` compiles and loads kernels.cpp. `modules` contains the PyTorch modules that use the loaded library.
"""
