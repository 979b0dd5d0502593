"""Kernels: the operations between the matrix products of a decode step. A CUDA graph can capture each of them.

torch_kernels.py implements the kernels in torch and triton_kernels.py in Triton; triton_launch.py launches the Triton
kernels. `candidates` in choice.py returns the sets of kernels that a device can run. Importing this package does not
import Triton. The kernels take tensors only and do not depend on models, cache classes or requests.
"""
