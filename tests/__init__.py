"""Settings of every process of the tests. Python runs this file before numpy and torch are imported."""

import os
from pathlib import Path

# The parallel processes share the cores. More threads would wait for each other, and the tiny models need only one.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

# A client of httpx reads all certificates of the machine when it is created: 25 ms of CPU time. No test needs them. Each
# folder without certificates has the same effect.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
