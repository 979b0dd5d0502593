"""Kernels compute the operations between the matrix products of a decode step. A CUDA graph can capture all kernels.

torch_kernels.py contains the kernels in torch, and triton_kernels.py contains the kernels in Triton. triton_launch.py
launches the Triton kernels. depth.py and persistent_kernel.py contain the kernels for all steps of a depth decoder.
sets.py contains the sets of kernels, checks.py compares them with those in torch, and `candidates` in choice.py returns
the sets that a device can run. The import of this package does not import Triton. The kernels do not depend on models,
cache classes or requests.
"""
